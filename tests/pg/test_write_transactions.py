"""Writes in transactions: when they are sent, where their errors come, what a rollback undoes, and round trips."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from .pair import Outcome, Pair, Side

pytestmark = pytest.mark.pg


@pytest.fixture
def pair(dsn: str) -> Iterator[Pair]:
    pair = Pair(dsn, "user")
    pair.setup("CREATE TABLE items (id int PRIMARY KEY, n int, t text) {using}")
    yield pair
    pair.close()


def trips(side: Side) -> int:
    row = side.conn.execute("SELECT kalam_round_trips()").fetchone()
    assert row is not None
    return int(row[0])


def counted(side: Side, sql: str, params: Any = None) -> tuple[int, Outcome]:
    before = trips(side)
    outcome = side.run(sql, params)
    return trips(side) - before, outcome


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("INSERT INTO items VALUES (50, 1, 'lone')", 1),
        ("INSERT INTO items SELECT 50, 1, 'lone'", 1),
        ("INSERT INTO items VALUES (50, 1, 'a'), (51, 1, 'b')", 2),
        ("INSERT INTO items SELECT g, 1, 'b' FROM generate_series(50, 90) g", 2),
        ("INSERT INTO items VALUES (50, 1, 'a') RETURNING id", 2),
        ("INSERT INTO items VALUES (50, 1, 'a') ON CONFLICT DO NOTHING", 2),
        ("UPDATE items SET t = 'u' WHERE id = 1", 2),
        ("UPDATE items SET n = n + 1", 2),
        ("UPDATE items SET n = n + 1 WHERE id = 2 RETURNING n", 2),
        ("DELETE FROM items WHERE id = 3", 2),
        ("DELETE FROM items", 2),
        ("UPDATE items SET t = 'u' WHERE id = 99", 2),
        ("UPDATE items SET t = 'u' WHERE 1 = 0", 0),
        ("DO $$BEGIN INSERT INTO items VALUES (50, 1, 'a'); END$$", 2),
    ],
)
def test_round_trips_of_an_autocommit_write(pair: Pair, sql: str, wanted: int) -> None:
    pair.both("INSERT INTO items SELECT g, g, 'r' FROM generate_series(1, 5) g")
    used, outcome = counted(pair.kalam, sql)
    assert outcome.sqlstate is None
    assert outcome == pair.heap.run(sql)
    assert pair.kalam.contents() == pair.heap.contents()
    assert used == wanted


def test_round_trips_in_a_block(pair: Pair) -> None:
    side = pair.kalam
    before = trips(side)
    side.conn.execute("BEGIN")
    for i in range(5):
        side.conn.execute("INSERT INTO items VALUES (%s, 1, 'x')", [i])
    side.conn.execute("COMMIT")
    assert trips(side) - before == 6


DUPLICATE = [
    "INSERT INTO items VALUES (1, 0, 'dup')",
    "INSERT INTO items VALUES (9, 0, 'new'), (1, 0, 'dup')",
    "INSERT INTO items VALUES (1, 0, 'dup') RETURNING id",
    "INSERT INTO items SELECT id, n, t FROM items",
    "UPDATE items SET id = 1 WHERE id = 2",
    "SELECT put(1)",
    "SELECT put(id) FROM items",
    "DO $$BEGIN INSERT INTO items VALUES (1, 0, 'dup'); END$$",
    "WITH w AS (INSERT INTO items VALUES (1, 0, 'dup') RETURNING id) SELECT * FROM w",
    "WITH w AS (INSERT INTO items VALUES (1, 0, 'dup')) SELECT 1",
    "PREPARE p AS INSERT INTO items VALUES ($1, 0, 'dup'); EXECUTE p(1); DEALLOCATE p",
]


@pytest.fixture
def filled(pair: Pair) -> Pair:
    pair.setup("CREATE FUNCTION put(int) RETURNS void LANGUAGE sql AS 'INSERT INTO items VALUES ($1, 0, ''put'')'")
    pair.both("INSERT INTO items SELECT g, g, 'r' FROM generate_series(1, 5) g")
    return pair


@pytest.mark.parametrize("sql", DUPLICATE)
def test_duplicate_key_in_autocommit(filled: Pair, sql: str) -> None:
    wanted, got = filled.heap.run(sql), filled.kalam.run(sql)
    assert wanted.sqlstate == "23505"
    assert got == wanted
    assert filled.kalam.contents() == filled.heap.contents()
    filled.both("INSERT INTO items VALUES (20, 0, 'after')")


@pytest.mark.parametrize("sql", DUPLICATE)
def test_duplicate_key_is_told_by_the_statement_in_a_block(filled: Pair, sql: str) -> None:
    filled.both("BEGIN")
    filled.both("INSERT INTO items VALUES (10, 0, 'before')")
    filled.both("SAVEPOINT s")
    assert filled.both(sql).sqlstate == "23505"
    filled.both("ROLLBACK TO s")
    filled.both("INSERT INTO items VALUES (11, 0, 'after')")
    filled.both("COMMIT")


@pytest.mark.parametrize("sql", [s for s in DUPLICATE if s.startswith(("INSERT", "UPDATE"))])
def test_duplicate_key_is_caught_by_an_exception_block(filled: Pair, sql: str) -> None:
    filled.setup("CREATE TABLE caught (what text)")
    body = sql.replace(" RETURNING id", "").replace("'", "''")
    filled.both(
        f"DO $$BEGIN INSERT INTO items VALUES (30, 0, 'kept');"
        f" BEGIN INSERT INTO items VALUES (31, 0, 'undone'); EXECUTE '{body}';"
        f" EXCEPTION WHEN unique_violation THEN INSERT INTO caught VALUES (SQLERRM); END;"
        f" INSERT INTO items VALUES (32, 0, 'kept'); END$$"
    )
    filled.both("SELECT count(*) FROM caught")


def test_error_says_what_was_sent(pair: Pair) -> None:
    pair.both("INSERT INTO items VALUES (1, 1, 'a')")
    with pytest.raises(psycopg.errors.UniqueViolation) as caught:
        pair.kalam.conn.execute("INSERT INTO items VALUES (1, 1, 'a')")
    assert caught.value.diag.context is not None
    assert "remote SQL command: INSERT INTO" in caught.value.diag.context
    assert caught.value.diag.constraint_name == "items_pkey"
    assert caught.value.diag.message_detail == "Key (id)=(1) already exists."


def test_inner_query_sends_the_outer_rows_and_cannot_swallow_their_error(pair: Pair) -> None:
    """The rows of the INSERT go out when the function reads; its exception block must not hide that they failed."""
    pair.setup(
        "CREATE FUNCTION look(int) RETURNS int LANGUAGE plpgsql VOLATILE AS $$DECLARE r int; BEGIN"
        " SELECT count(*) INTO r FROM items; RETURN r + $1; EXCEPTION WHEN unique_violation THEN RETURN -1; END$$"
    )
    pair.both("INSERT INTO items VALUES (2, 0, 'there')")
    pair.both("INSERT INTO items SELECT g, look(g), 'x' FROM generate_series(10, 15) g")
    assert pair.both("INSERT INTO items SELECT g, look(g), 'x' FROM generate_series(1, 5) g").sqlstate == "23505"


def test_rows_sent_inside_a_savepoint_of_a_function_outlive_it(pair: Pair) -> None:
    pair.setup(
        "CREATE FUNCTION peek(int) RETURNS int LANGUAGE plpgsql VOLATILE AS $$DECLARE r int; BEGIN"
        " BEGIN SELECT count(*) INTO r FROM items; RAISE EXCEPTION 'undo';"
        " EXCEPTION WHEN raise_exception THEN NULL; END;"
        " RETURN r + $1; END$$"
    )
    pair.both("INSERT INTO items SELECT g, peek(g), 'x' FROM generate_series(1, 6) g")
    pair.both("UPDATE items SET n = peek(n)")
    pair.both("DELETE FROM items WHERE peek(id) % 2 = 0")


@pytest.mark.parametrize(
    "script",
    [
        [
            "INSERT INTO items VALUES (1, 1, 'a')",
            "SAVEPOINT a",
            "INSERT INTO items VALUES (2, 1, 'b')",
            "ROLLBACK TO a",
        ],
        [
            "SAVEPOINT a",
            "INSERT INTO items SELECT g, g, 'm' FROM generate_series(1, 20) g",
            "ROLLBACK TO a",
            "INSERT INTO items SELECT g, g, 'n' FROM generate_series(1, 20) g",
        ],
        [
            "INSERT INTO items VALUES (1, 1, 'a')",
            "SAVEPOINT a",
            "UPDATE items SET n = 2",
            "SAVEPOINT b",
            "DELETE FROM items",
            "ROLLBACK TO b",
            "RELEASE a",
            "UPDATE items SET t = t || '!'",
        ],
        [
            "SAVEPOINT a",
            "INSERT INTO items VALUES (1, 1, 'a')",
            "RELEASE a",
            "SAVEPOINT b",
            "UPDATE items SET id = 2",
            "ROLLBACK TO b",
            "INSERT INTO items VALUES (2, 1, 'b')",
        ],
        ["INSERT INTO items VALUES (1, 1, 'a')", "DELETE FROM items", "INSERT INTO items VALUES (1, 2, 'again')"],
        [
            "INSERT INTO items VALUES (1, 1, 'a')",
            "SAVEPOINT a",
            "INSERT INTO items VALUES (1, 1, 'dup')",
            "ROLLBACK TO a",
            "UPDATE items SET n = 5",
        ],
    ],
)
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_blocks(pair: Pair, script: list[str], end: str) -> None:
    pair.both("INSERT INTO items VALUES (100, 0, 'before')")
    pair.both("BEGIN")
    for sql in script:
        pair.both(sql)
    pair.both(end)


def test_multi_statement_string_is_one_transaction(pair: Pair) -> None:
    pair.both("INSERT INTO items VALUES (1, 1, 'a'); INSERT INTO items VALUES (2, 2, 'b')")
    assert pair.both("INSERT INTO items VALUES (3, 1, 'a'); INSERT INTO items VALUES (1, 2, 'b')").sqlstate == "23505"


def test_pipeline_is_one_transaction(pair: Pair) -> None:
    """Statements without a Sync between them: the first may be sent late, never alone."""
    for side in (pair.heap, pair.kalam):
        with pytest.raises(psycopg.errors.UniqueViolation), side.conn.cursor() as cursor:
            cursor.executemany("INSERT INTO items VALUES (%s, 1, 'x')", [(1,), (2,), (1,), (3,)])
    pair.both("SELECT count(*) FROM items")
    with pair.kalam.conn.pipeline():
        pair.kalam.conn.execute("INSERT INTO items VALUES (7, 7, 'p')")
        seen = pair.kalam.conn.execute("SELECT id FROM items").fetchall()
    assert seen == [(7,)]
    pair.heap.conn.execute("INSERT INTO items VALUES (7, 7, 'p')")
    pair.both("SELECT count(*) FROM items")


def test_write_in_a_read_only_transaction(pair: Pair) -> None:
    pair.both("BEGIN READ ONLY")
    assert pair.both("INSERT INTO items VALUES (1, 1, 'a')").sqlstate == "25006"
    pair.both("ROLLBACK")


def test_many_failing_statements(pair: Pair) -> None:
    pair.both("INSERT INTO items VALUES (1, 1, 'a')")
    for _ in range(200):
        assert pair.kalam.run("INSERT INTO items VALUES (1, 1, 'a')").sqlstate == "23505"
        assert pair.kalam.run("INSERT INTO items VALUES (5, 1, 'a'), (1, 1, 'a')").sqlstate == "23505"
    pair.both("INSERT INTO items VALUES (5, 1, 'a')")


def test_failing_statements_leave_no_memory_behind(pair: Pair) -> None:
    """In one transaction, where nothing is freed by its end."""
    used = "SELECT sum(used_bytes)::int FROM pg_backend_memory_contexts"
    run = (
        "DO $$BEGIN FOR i IN 1..%s LOOP BEGIN"
        " INSERT INTO items SELECT g, g / (g - 7), 'x' FROM generate_series(1, 9) g;"
        " EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END$$"
    )
    side = pair.kalam
    side.conn.execute("BEGIN")
    side.conn.execute(run % 10)
    [(before,)] = side.run(used).rows or []
    side.conn.execute(run % 300)
    [(after,)] = side.run(used).rows or []
    assert after - before < 100_000
    side.conn.execute("ROLLBACK")
    pair.both("SELECT count(*) FROM items")


class Background:
    """One statement in a thread of its own, on a second session."""

    def __init__(self, pair: Pair, sql: str) -> None:
        self.side = Side(pair.dsn, pair.kalam.schema, pair.kalam.using)
        self.outcome: Outcome | None = None
        self.thread = threading.Thread(target=self.work, args=(sql,))
        self.thread.start()

    def work(self, sql: str) -> None:
        self.outcome = self.side.run(sql)

    def wait(self) -> Outcome:
        self.thread.join(30)
        assert self.outcome is not None
        self.side.conn.close()
        return self.outcome


def test_two_sessions_updating_one_row(pair: Pair) -> None:
    pair.both("INSERT INTO items VALUES (1, 1, 'a')")
    pair.kalam.conn.execute("BEGIN")
    pair.kalam.conn.execute("UPDATE items SET n = n + 10 WHERE id = 1")
    other = Background(pair, "UPDATE items SET n = n + 100 WHERE id = 1 RETURNING n")
    pair.kalam.conn.execute("COMMIT")
    assert other.wait().rows == [(111,)]
    assert pair.kalam.run("SELECT n FROM items").rows == [(111,)]


def test_two_sessions_inserting_one_key(pair: Pair) -> None:
    pair.kalam.conn.execute("BEGIN")
    pair.kalam.conn.execute("INSERT INTO items VALUES (1, 1, 'a')")
    other = Background(pair, "INSERT INTO items VALUES (1, 2, 'b')")
    pair.kalam.conn.execute("COMMIT")
    assert other.wait().sqlstate == "23505"
    assert pair.kalam.run("SELECT id, n, t FROM items").rows == [(1, 1, "a")]


def test_update_waiting_for_a_row_that_goes(pair: Pair) -> None:
    pair.both("INSERT INTO items VALUES (1, 1, 'a'), (2, 2, 'b')")
    pair.kalam.conn.execute("BEGIN")
    pair.kalam.conn.execute("DELETE FROM items WHERE id = 1")
    other = Background(pair, "UPDATE items SET n = n + 100")
    pair.kalam.conn.execute("COMMIT")
    assert other.wait().count == 1
    assert pair.kalam.run("SELECT id, n FROM items").rows == [(2, 102)]


def test_fifty_increments_from_five_sessions(pair: Pair) -> None:
    pair.both("INSERT INTO items VALUES (1, 0, 'a')")
    work = "DO $$BEGIN FOR i IN 1..10 LOOP UPDATE items SET n = n + 1 WHERE id = 1; COMMIT; END LOOP; END$$"
    others = [Background(pair, work) for _ in range(5)]
    assert [other.wait().sqlstate for other in others] == [None] * 5
    assert pair.kalam.run("SELECT n FROM items").rows == [(50,)]


def test_serializable_says_once_that_it_is_snapshot_isolation(pair: Pair) -> None:
    heard: list[str] = []
    pair.kalam.conn.add_notice_handler(lambda diag: heard.append(diag.message_primary or ""))
    for _ in range(2):
        pair.kalam.conn.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        pair.kalam.conn.execute("INSERT INTO items VALUES (1, 1, 'a')")
        pair.kalam.conn.execute("SELECT count(*) FROM items")
        pair.kalam.conn.execute("ROLLBACK")
    assert len(heard) == 1
    assert "snapshot isolation" in heard[0]
