"""The engine's own figures, with no PostgreSQL in the way: psycopg straight to the server's RPC port.

Key reads of hot and cold rows, durable commits with one and with many writers, flush and compaction. There is no peer:
they are for reading beside the comparison, and to see a change.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

COLUMNS = "id bigint PRIMARY KEY, owner text, a text, b double precision, c timestamptz"
ROW = "i, 'owner-' || i % 1000, 'row number ' || i, i / 3.0, now()"
#: rows of one transaction: fewer than the server writes straight to segments
BATCH = 50_000
WRITERS = 32


async def _repeat(dsn: str, seconds: float, clients: int,
                  work: Callable[[psycopg.AsyncConnection[Any], random.Random], Awaitable[None]]) -> float:
    """How often a second all clients together do a piece of work."""
    done = 0

    async def client() -> None:
        nonlocal done
        generator = random.Random()
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=0)
        async with connection:
            await work(connection, generator)
            await everybody.wait()
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                await work(connection, generator)
                done += 1

    everybody = asyncio.Barrier(clients)
    await asyncio.gather(*[client() for _ in range(clients)])
    return done / seconds


def key_reads(dsn: str, seconds: float, rows: int) -> float:
    async def read(connection: psycopg.AsyncConnection[Any], generator: random.Random) -> None:
        cursor = await connection.execute("SELECT id, owner, a, b, c FROM bench.t WHERE id = %s",
                                          (generator.randint(1, rows),))
        assert await cursor.fetchone() is not None

    return asyncio.run(_repeat(dsn, seconds, 1, read))


def commits(dsn: str, seconds: float, writers: int) -> float:
    """Durable single-row transactions a second."""

    async def write(connection: psycopg.AsyncConnection[Any], generator: random.Random) -> None:
        await connection.execute("INSERT INTO bench.w (id, a) VALUES (%s, 'a row')", (generator.getrandbits(62),))

    return asyncio.run(_repeat(dsn, seconds, writers, write))


def _fill(connection: psycopg.Connection[Any], first: int, rows: int) -> None:
    for start in range(first, first + rows, BATCH):
        last = min(start + BATCH, first + rows) - 1
        connection.execute(f"INSERT INTO bench.t SELECT {ROW} FROM generate_series({start}, {last}) i")


def _timed(connection: psycopg.Connection[Any], statement: str) -> float:
    """Rows a second."""
    began = time.perf_counter()
    ((_, _, rows),) = connection.execute(statement).fetchall()
    return float(rows / (time.perf_counter() - began))


def measure(dsn: str, rows: int, seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Medians of all rounds."""
    figures: dict[tuple[str, str], list[float]] = {}

    def note(work: str, unit: str, value: float) -> None:
        figures.setdefault((work, unit), []).append(value)

    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE NAMESPACE IF NOT EXISTS bench")
        for _ in range(rounds):
            for table in ("t", "w"):
                connection.execute(f"DROP TABLE IF EXISTS bench.{table}")
                connection.execute(f"CREATE SHARED TABLE bench.{table} ({COLUMNS}) "
                                   "WITH (flush_policy = 'rows:1000000000')")
            _fill(connection, 1, rows)
            note("key read, hot", "1/s", key_reads(dsn, seconds, rows))
            note("flush", "rows/s", _timed(connection, "STORAGE FLUSH TABLE bench.t"))
            note("key read, cold", "1/s", key_reads(dsn, seconds, rows))
            _fill(connection, rows + 1, rows // 4)
            connection.execute("STORAGE FLUSH TABLE bench.t")
            note("compaction", "rows/s", _timed(connection, "STORAGE COMPACT TABLE bench.t"))
            note("durable commits, 1 writer", "1/s", commits(dsn, seconds, 1))
            note(f"durable commits, {WRITERS} writers", "1/s", commits(dsn, seconds, WRITERS))
        for table in ("t", "w"):
            connection.execute(f"DROP TABLE bench.{table}")
    return [{"work": work, "unit": unit, "median": statistics.median(values), "rounds": values}
            for (work, unit), values in figures.items()]
