"""Real clients on KalamDB tables as on heap tables: psql, and psycopg in all its ways."""

# ruff: noqa: PT012 - errors are raised where blocks and pipelines end

from __future__ import annotations

import asyncio
import subprocess
import uuid
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import pq, sql
from psycopg.types.json import Jsonb

from support.postgres import Postgres

from .ddl import Session
from .pair import Pair

pytestmark = pytest.mark.pg

ITEMS = "CREATE TABLE items (id int PRIMARY KEY, n int, t text) {using}"


@pytest.fixture
def pair(dsn: str) -> Iterator[Pair]:
    pair = Pair(dsn)
    pair.setup(ITEMS)
    yield pair
    pair.close()


# ---------- psql ----------
SCRIPT = r"""
\set VERBOSITY terse
\copy items FROM STDIN
1	10	one
2	20	tab\\t
3	\N	\N
\.
SELECT max(id) AS top, count(*) AS rows FROM items \gset
\echo top :top rows :rows
INSERT INTO items VALUES (:top + 1, :rows, :'top');
INSERT INTO items VALUES (1, 0, 'only described') RETURNING id, t, n * 1.5 AS m \gdesc
UPDATE items SET n = 0 RETURNING items \gdesc
SELECT n, count(*) FROM items GROUP BY n \gdesc
\set ON_ERROR_ROLLBACK on
BEGIN;
INSERT INTO items VALUES (5, 5, 'kept');
INSERT INTO items VALUES (5, 5, 'dup');
\echo :LAST_ERROR_SQLSTATE
SELECT 1/0;
UPDATE items SET n = n + 1 WHERE id = 5 RETURNING n = 6 AS n \gset seen_
\if :seen_n
DELETE FROM items WHERE id = 2;
\endif
COMMIT;
\set ON_ERROR_ROLLBACK off
\set AUTOCOMMIT off
INSERT INTO items VALUES (6, 6, 'undone');
ROLLBACK;
INSERT INTO items VALUES (7, 7, 'kept');
COMMIT;
\set AUTOCOMMIT on
\set FETCH_COUNT 2
SELECT id, n, t FROM items ORDER BY id;
\unset FETCH_COUNT
SELECT format('INSERT INTO items VALUES (%s, 0, %L)', g, 'g''' || g) FROM generate_series(20, 22) g \gexec
PREPARE p AS UPDATE items SET n = $1 WHERE id = $2;
EXECUTE p(99, 20);
BEGIN \; INSERT INTO items VALUES (30, 0, 'a') \; SAVEPOINT s \; DELETE FROM items \; ROLLBACK TO s \; COMMIT;
INSERT INTO items VALUES (31, 0, 'undone') \; INSERT INTO items VALUES (1, 0, 'dup');
\bind 40 'bound'
INSERT INTO items (id, t) VALUES ($1, $2) \g
\copy (SELECT id, n, t FROM items ORDER BY id) TO STDOUT WITH (FORMAT csv)
\copy (SELECT id, n, t FROM items ORDER BY id) TO '{file}' WITH (FORMAT binary)
BEGIN;
DELETE FROM items;
\copy items FROM '{file}' WITH (FORMAT binary)
ROLLBACK;
SELECT id, n, t FROM items ORDER BY id;
"""


def test_psql(pair: Pair, pg: Postgres, tmp_path: Path) -> None:
    script = SCRIPT.replace("{file}", str(pg.dir / "copied"))
    if pg.installed.version.startswith("15"):  # psql 15 has no \bind
        script = script.replace("\\bind 40 'bound'\n", "").replace("($1, $2) \\g", "(40, 'bound');")
    told = []
    for side in (pair.heap, pair.kalam):
        done = subprocess.run(
            [pg.installed.bin / "psql", pair.dsn, "-qXAt", "-c", f"SET search_path = {side.schema}", "-f", "-"],
            input=script, capture_output=True, text=True, check=False, timeout=60,
        )
        told.append((done.stdout, done.stderr))
    assert told[1] == told[0]
    assert "top 3 rows 3" in told[0][0]
    assert told[0][1].count("ERROR") == 3, told[0][1]
    assert pair.kalam.contents() == pair.heap.contents()


# ---------- psycopg ----------
def test_pipeline(pair: Pair) -> None:
    """The same result of every statement, errors where they happen, transactions by Sync."""
    told = []
    for side in (pair.heap, pair.kalam):
        seen: list[Any] = []
        with side.conn.pipeline() as pipeline:
            first = side.conn.execute("INSERT INTO items VALUES (1, 1, 'a'), (2, 2, 'b') RETURNING id")
            second = side.conn.execute("UPDATE items SET n = n + 1")
            third = side.conn.execute("SELECT id, n FROM items ORDER BY id")
            pipeline.sync()
            seen += [first.fetchall(), second.rowcount, third.fetchall()]
            with side.conn.cursor() as many:
                many.executemany("INSERT INTO items VALUES (%s, %s, 'm')", [(i, i) for i in range(10, 60)])
                seen.append(many.rowcount)
        with pytest.raises(psycopg.errors.UniqueViolation), side.conn.pipeline() as pipeline:
            side.conn.execute("INSERT INTO items VALUES (100, 0, 'undone')")
            side.conn.execute("UPDATE items SET id = 1 WHERE id = 2")
            side.conn.execute("INSERT INTO items VALUES (101, 0, 'never')")
            pipeline.sync()
        with side.conn.pipeline() as pipeline, side.conn.transaction():
            side.conn.execute("INSERT INTO items VALUES (102, 0, 'kept')")
            with pytest.raises(psycopg.errors.UniqueViolation), side.conn.transaction():
                side.conn.execute("INSERT INTO items VALUES (103, 0, 'undone')")
                side.conn.execute("INSERT INTO items VALUES (102, 0, 'dup')")
                pipeline.sync()
            side.conn.execute("INSERT INTO items VALUES (104, 0, 'kept')")
        told.append(seen)
    assert told[1] == told[0]
    assert pair.kalam.contents() == pair.heap.contents()


def test_lone_write_among_others_in_a_pipeline(pair: Pair) -> None:
    """An INSERT that comes first, without a Sync behind it: what follows fails, so nothing of it stays."""
    pair.setup("CREATE TABLE plain (id int PRIMARY KEY); INSERT INTO plain VALUES (1)")
    for statements in (
        ["INSERT INTO items VALUES (1, 1, 'a')", "INSERT INTO plain VALUES (1)"],
        ["INSERT INTO items VALUES (1, 1, 'a')", "SELECT count(*) FROM plain", "INSERT INTO items VALUES (1, 1)"],
        ["UPDATE items SET n = 5", "INSERT INTO plain VALUES (2)", "DELETE FROM items", "SELECT 1 / 0"],
    ):
        for side in (pair.heap, pair.kalam):
            with pytest.raises(psycopg.Error), side.conn.pipeline() as pipeline:
                for statement in statements:
                    side.conn.execute(statement)
                pipeline.sync()
        pair.both("SELECT count(*) FROM items")
    pair.both("SELECT count(*) FROM plain")


def test_async(pair: Pair) -> None:
    async def work(schema: str) -> list[Any]:
        conn = await psycopg.AsyncConnection.connect(pair.dsn, options=f"-csearch_path={schema}")
        async with conn:
            async with conn.transaction():
                await conn.execute("INSERT INTO items SELECT g, g, 'a' FROM generate_series(1, 500) g")
                with pytest.raises(psycopg.errors.UniqueViolation):
                    async with conn.transaction():
                        await conn.execute("DELETE FROM items WHERE id > 400")
                        await conn.execute("INSERT INTO items VALUES (1, 0, 'dup')")
            async with conn.cursor("named") as named:
                await named.execute("SELECT id FROM items ORDER BY id")
                head = await named.fetchmany(3)
                await named.scroll(100)
                seen = [head, await named.fetchone(), len(await named.fetchall())]
            async with conn.cursor() as cursor, cursor.copy("COPY items (id, t) FROM STDIN") as copy:
                for i in range(1000, 1500):
                    await copy.write_row((i, f"ä\t{i}\n"))
            await conn.rollback()
            async with conn.cursor() as cursor:
                await cursor.execute("SELECT count(*) FROM items")
                seen.append(await cursor.fetchone())
            await conn.commit()
        return seen

    told = [asyncio.run(work(side.schema)) for side in (pair.heap, pair.kalam)]
    assert told[1] == told[0]
    assert told[0][3] == (500,)
    assert pair.kalam.contents() == pair.heap.contents()


def test_server_side_cursors_and_prepared_statements(pair: Pair) -> None:
    told = []
    for side in (pair.heap, pair.kalam):
        seen: list[Any] = []
        side.conn.execute("INSERT INTO items SELECT g, g % 7, 'x' FROM generate_series(1, 3000) g")
        with side.conn.transaction(), side.conn.cursor("c", scrollable=True, withhold=True) as cursor:
            cursor.itersize = 300
            cursor.execute("SELECT id FROM items WHERE n = %s ORDER BY id", [3])
            seen.append([next(iter(cursor)) for _ in range(2)])
            side.conn.execute("DELETE FROM items WHERE id % 2 = 0")
            cursor.scroll(0, mode="absolute")
            seen.append(len(cursor.fetchall()))
        for i in range(12):  # psycopg prepares it at the fifth
            seen.append(side.conn.execute("UPDATE items SET n = %s WHERE id < %s", [i, i], prepare=None).rowcount)
            seen.append(side.conn.execute("SELECT sum(n) FROM items WHERE id < %s", [i * 100], prepare=True).fetchall())
        told.append(seen)
    assert told[1] == told[0]
    assert pair.kalam.contents() == pair.heap.contents()


ROWS = [
    (1, 10, "a", Decimal("1.50"), datetime(2024, 2, 29, 12, 30, 0, 123456, tzinfo=UTC), uuid.UUID(int=7), {"k": [1]}),
    (2, None, "tab\tline\n\\é☃", Decimal("-0.001"), datetime(1, 1, 1, tzinfo=UTC), uuid.UUID(int=2**127), {"é": None}),
    (3, -5, "", None, None, None, []),
]


@pytest.mark.parametrize("form", ["TEXT", "BINARY"])
def test_copy(pair: Pair, form: str) -> None:
    pair.setup("CREATE TABLE rich (id int PRIMARY KEY, n int, t text, d numeric, z timestamptz, u uuid, j jsonb)"
               " {using}")
    types = ["int4", "int4", "text", "numeric", "timestamptz", "uuid", "jsonb"]
    rows = [(*row[:6], Jsonb(row[6])) for row in ROWS]
    pair.copy(f"COPY rich FROM STDIN (FORMAT {form})", rows, types)
    assert pair.copy(f"COPY rich FROM STDIN (FORMAT {form})", rows, types).sqlstate == "23505"
    told = []
    for side in (pair.heap, pair.kalam):
        with side.conn.cursor() as cursor, cursor.copy(
            f"COPY (SELECT * FROM rich ORDER BY id) TO STDOUT (FORMAT {form})"
        ) as copy:
            copy.set_types(types)
            told.append(list(copy.rows()))
    assert told[1] == told[0] == [tuple(row) for row in ROWS]
    with pair.kalam.conn.cursor() as cursor, cursor.copy(f"COPY rich TO STDOUT (FORMAT {form})") as copy:
        assert len(list(copy.rows())) == 3


@pytest.mark.parametrize("binary", [False, True])
def test_parameters_in_both_formats(pair: Pair, binary: bool) -> None:
    told = []
    for side in (pair.heap, pair.kalam):
        with side.conn.cursor(binary=binary) as cursor:
            mark = sql.Placeholder(format=psycopg.adapt.PyFormat.BINARY if binary else psycopg.adapt.PyFormat.TEXT)
            cursor.execute(sql.SQL("INSERT INTO items VALUES ({0}, {0}, {0}) RETURNING id, n, t").format(mark),
                           [1, 2, "ü'"])
            seen = [cursor.fetchall()]
            cursor.execute(sql.SQL("SELECT id, n, t FROM items WHERE t = {0} AND n < {0}").format(mark), ["ü'", 99])
            told.append([*seen, cursor.fetchall()])
    assert told[1] == told[0]


def test_client_that_cancels_or_leaves_in_the_middle_of_rows(db: Session, dsn: str, ns: str) -> None:
    """Single-row mode: the client has seen some rows, and wants no more."""
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY) USING kalamdb")
    db(f"INSERT INTO {ns}.t SELECT generate_series(1, 60000)")
    for how in ("close", "cancel"):
        conn = psycopg.connect(dsn, autocommit=True)
        with conn.cursor() as cursor:
            rows = cursor.stream(f"SELECT id FROM {ns}.t")
            assert isinstance(rows, Generator)
            assert len([next(rows) for _ in range(10)]) == 10
            if how == "cancel":
                conn.cancel_safe()
            rows.close()
        if how == "close":
            assert conn.execute(f"SELECT count(*) FROM {ns}.t").fetchone() == (60000,)
        assert conn.info.transaction_status == pq.TransactionStatus.IDLE
        conn.close()
    db(f"UPDATE {ns}.t SET id = -id WHERE id < 10")
