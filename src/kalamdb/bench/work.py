"""The pieces of work that are measured; each is one row of the table.

A work is measured on three sides in alternating rounds: a KalamDB table, a postgres_fdw table whose remote side is a
second database of the same PostgreSQL, and a local heap table (the floor, for reading only). Tables and columns are
the same everywhere: ``(id bigint primary key, owner text, a text, b double precision, c timestamptz)``.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psycopg

COLUMNS = "id bigint NOT NULL, owner text, a text, b double precision, c timestamptz"
ROW = (
    "i, 'owner-' || lpad((i % {owners})::text, 4, '0'), 'row number ' || i, (i::bigint * 7919 % 1000003) / 3.0::float8,"
    " timestamptz '2026-01-01' + make_interval(secs => i)"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where to measure: PostgreSQL's connection string, its pgbench, sizes."""

    dsn: str
    pgbench: Path
    rows: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Work:
    """``measure(place, table)`` gives units a second; ``must``/``aim`` are ratios to postgres_fdw. ``cold``: once all
    rows of the KalamDB side are in segments."""

    name: str
    unit: str
    must: float
    aim: float
    measure: Callable[[Place, str], float]
    cold: bool = False


def pgbench(place: Place, script: str, *options: str) -> float:
    """Transactions a second of one client running the script."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        command = [str(place.pgbench), "-n", "-T", str(place.seconds), "-c", "1", "-f", file.name, *options, place.dsn]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("tps = ") and done.returncode == 0 and "ABORTED" not in done.stderr.upper():
            return float(line.split()[2])
    raise RuntimeError(f"pgbench failed: {done.stderr.strip()}")


def key_read(protocol: str) -> Callable[[Place, str], float]:
    def measure(place: Place, table: str) -> float:
        script = f"\\set i random(1, {place.rows})\nSELECT id, owner, a, b, c FROM {table} WHERE id = :i;\n"
        return pgbench(place, script, "-M", protocol)

    return measure


def insert(place: Place, table: str) -> float:
    """Single-row autocommit INSERT with keys that no round has used."""
    script = (
        "\\set i random(1000000000, 9000000000000000000)\n"
        f"INSERT INTO {table} (id, owner, a, b, c) VALUES (:i, 'owner-new', 'a new row', 1.5, now());\n"
    )
    rate = pgbench(place, script)
    with psycopg.connect(place.dsn, autocommit=True) as connection:
        connection.execute(f"DELETE FROM {table} WHERE id >= 1000000000")
    return rate


def full_scan(place: Place, table: str) -> float:
    """Rows a second of a scan of all columns that the executor consumes and nobody prints."""
    with psycopg.connect(place.dsn, autocommit=True) as connection:
        plan = connection.execute(
            f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) SELECT id, owner, a, b, c FROM {table}"
        ).fetchone()
    assert plan is not None
    top = plan[0][0]
    return float(top["Plan"]["Actual Rows"] / (top["Execution Time"] / 1000))


WORKS = (
    Work("SELECT by primary key, simple protocol", "tps", 2, 3, key_read("simple")),
    Work("SELECT by primary key, prepared", "tps", 2, 3, key_read("prepared")),
    Work("single-row autocommit INSERT", "tps", 1.5, 2, insert),
    Work("full scan, 5 columns", "rows/s", 1.5, 4, full_scan),
    Work("SELECT by primary key, simple, cold", "tps", 1.5, 3, key_read("simple"), cold=True),
    Work("SELECT by primary key, prepared, cold", "tps", 1.5, 3, key_read("prepared"), cold=True),
    Work("full scan, 5 columns, cold", "rows/s", 4, 7, full_scan, cold=True),
)
