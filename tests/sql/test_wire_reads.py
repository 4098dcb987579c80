"""The wire dialect's reads: projections, chunks, Arrow, cursors, snapshots, tenants."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

import pytest
from psycopg import pq

from kalamdb.sql.executor import ALONE_NS
from support.ports import wait_until
from support.server import KalamServer

from .client import Client, Failed, Wire, batch


@pytest.fixture
def numbers(db: Client, ns: str, wire: Wire) -> str:
    """``t`` with rows 1 … 1000."""
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, v integer, s text)")
    rows = batch(id=("int8", range(1, 1001)), v=("int4", [n % 7 for n in range(1, 1001)]),
                 s=("text", [f"row {n}" for n in range(1, 1001)]))
    assert wire(f'INSERT INTO "{ns}"."t" ("id", "v", "s") FROM ARROW $1', rows).tag == "INSERT 0 1000"
    return f'"{ns}"."t"'


def test_a_whole_key(wire: Wire, numbers: str) -> None:
    found = wire(f'SELECT "s", "id" FROM {numbers} WHERE ("id" = $1)', ("int8", "7"))
    assert (found.rows, found.types, found.tag, found.cursor) == ([("row 7", 7)], ["text", "int8"], "SELECT 1", None)


def test_a_key_that_is_not_there(wire: Wire, numbers: str) -> None:
    assert wire(f'SELECT "s" FROM {numbers} WHERE ("id" = $1)', ("int8", "0")).rows == []
    assert wire(f'SELECT "s" FROM {numbers} WHERE ("id" = $1)', ("int8", None)).rows == []


def test_no_column_is_wanted(wire: Wire, numbers: str) -> None:
    found = wire(f'SELECT NULL FROM {numbers} WHERE ("v" = $1)', ("int4", "3"))
    assert set(found.rows) == {(None,)}
    assert len(found.rows) == 143


@pytest.mark.parametrize("arrow", [False, True])
@pytest.mark.parametrize("fetch", [1, 3, 63, 64, 65, 999, 1000, 1001, 5000])
def test_chunks_of_every_size(wire: Wire, numbers: str, fetch: int, arrow: bool) -> None:
    rows = wire.all(f'SELECT "id", "s" FROM {numbers}', fetch=fetch, arrow=arrow)
    assert rows == [(n, f"row {n}") for n in range(1, 1001)]


def test_large_results_are_arrow_and_small_ones_rows(wire: Wire, numbers: str) -> None:
    sql = f'SELECT "id" FROM {numbers} WHERE ("id" <= $1)'
    assert not wire(sql, ("int8", "64"), arrow=True).arrow
    large = wire(sql, ("int8", "65"), arrow=True)
    assert large.arrow
    assert large.types == ["int64"]
    assert not wire(sql, ("int8", "65")).arrow
    assert not wire(sql, ("int8", "0"), arrow=True).arrow


def test_tags_of_chunks(wire: Wire, numbers: str) -> None:
    first = wire(f'SELECT "id" FROM {numbers}', fetch=400)
    assert first.tag == f"SELECT 400 {first.cursor}"
    second = wire(f"FETCH 400 FROM {first.cursor}")
    assert second.tag == f"FETCH 400 {first.cursor}"
    assert wire(f"FETCH 400 FROM {first.cursor}").tag == "FETCH 200"
    wire.fails("34000", f"FETCH 1 FROM {first.cursor}")


def test_several_cursors_at_once(wire: Wire, numbers: str) -> None:
    one = wire(f'SELECT "id" FROM {numbers}', fetch=10)
    two = wire(f'SELECT "id" FROM {numbers} WHERE ("id" > $1)', ("int8", "500"), fetch=10)
    assert one.cursor != two.cursor
    assert wire(f"FETCH 2 FROM {one.cursor}").rows == [(11,), (12,)]
    assert wire(f"FETCH 2 FROM {two.cursor}").rows == [(511,), (512,)]
    assert wire(f"FETCH 2 FROM {one.cursor}").rows == [(13,), (14,)]


def test_closing_a_cursor(wire: Wire, numbers: str) -> None:
    one = wire(f'SELECT "id" FROM {numbers}', fetch=10).cursor
    two = wire(f'SELECT "id" FROM {numbers}', fetch=10).cursor
    assert wire(f"CLOSE {one}").tag.startswith("CLOSE")
    wire.fails("34000", f"FETCH 1 FROM {one}")
    wire(f"CLOSE {one}")  # pg_kalam does not know whether its scan has ended
    assert wire("SELECT 1", close=[two, "scan_999", "nonsense"], exec=True).rows == [('[{"?column?":1}]',)]
    wire.fails("34000", f"FETCH 1 FROM {two}")


def test_a_cursor_ends_with_its_transaction(wire: Wire, numbers: str) -> None:
    txn = {"id": "a" * 32}
    cursor = wire(f'SELECT "id" FROM {numbers}', fetch=10, txn=txn).cursor
    assert wire(f"FETCH 1 FROM {cursor}").rows == [(11,)]
    wire("COMMIT")
    wire.fails("34000", f"FETCH 1 FROM {cursor}")


def test_an_autocommit_cursor_outlives_other_statements(wire: Wire, numbers: str) -> None:
    cursor = wire(f'SELECT "id" FROM {numbers}', fetch=10).cursor
    wire(f'DELETE FROM {numbers} FROM ARROW $1 KEY ("id")', batch(id=("int8", range(1, 1001))))
    assert wire(f"FETCH 3 FROM {cursor}").rows == [(11,), (12,), (13,)]
    assert wire(f'SELECT "id" FROM {numbers}').rows == []


def test_a_cursor_does_not_see_later_writes_of_its_transaction(wire: Wire, numbers: str) -> None:
    txn = {"id": "b" * 32}
    cursor = wire(f'SELECT "v" FROM {numbers} WHERE ("id" <= $1)', ("int8", "20"), fetch=10, txn=txn, snap=1).cursor
    rows = batch(v=("int4", [100] * 20), id=("int8", range(1, 21)))
    wire(f'UPDATE {numbers} SET ("v") FROM ARROW $1 KEY ("id")', rows, txn=txn, snap=1)
    assert wire(f"FETCH 20 FROM {cursor}").rows == [(n % 7,) for n in range(11, 21)]
    assert wire(f'SELECT "v" FROM {numbers} WHERE ("id" = $1)', ("int8", "1"), txn=txn, snap=2).rows == [(100,)]
    wire("ROLLBACK")


def test_one_snapshot_for_one_number(wire: Wire, wires: Callable[[], Wire], numbers: str) -> None:
    txn, other = {"id": "c" * 32}, wires()
    count = f'SELECT NULL FROM {numbers} WHERE ("id" > $1)'
    assert wire(count, ("int8", "1000"), txn=txn, snap=5).rows == []
    other(f'INSERT INTO {numbers} ("id") VALUES ($1)', ("int8", "1001"))
    assert wire(count, ("int8", "1000"), txn=txn, snap=5).rows == []
    assert wire(count, ("int8", "1000"), txn=txn, snap=6).rows == [(None,)]
    assert wire(count, ("int8", "1000"), txn=txn, snap=5).rows == []
    assert wire(count, ("int8", "1000"), txn=txn, snap=5, drop=[5]).rows == [(None,)], "5 was dropped before"
    wire("COMMIT")


def test_own_writes_up_to_the_first_use_of_a_number(wire: Wire, numbers: str) -> None:
    txn = {"id": "d" * 32}
    one = f'SELECT "v" FROM {numbers} WHERE ("id" = $1)'
    change = f'UPDATE {numbers} SET ("v") FROM ARROW $1 KEY ("id")'
    wire(change, batch(v=("int4", [50]), id=("int8", [1])), txn=txn, snap=1)
    assert wire(one, ("int8", "1"), txn=txn, snap=1).rows == [(1,)], "number 1 was fixed before the write"
    assert wire(one, ("int8", "1"), txn=txn, snap=2).rows == [(50,)]
    wire(change, batch(v=("int4", [60]), id=("int8", [1])), txn=txn, snap=2)
    assert wire(one, ("int8", "1"), txn=txn, snap=2).rows == [(50,)]
    assert wire(one, ("int8", "1"), txn=txn, snap=3).rows == [(60,)]
    assert wire(one, ("int8", "1"), txn=txn).rows == [(60,)], "no number: a fresh one"
    wire("ROLLBACK")


def test_repeatable_read_keeps_what_was_committed(wire: Wire, wires: Callable[[], Wire], numbers: str) -> None:
    txn, other = {"id": "e" * 32, "iso": "repeatable read"}, wires()
    one = f'SELECT "v" FROM {numbers} WHERE ("id" = $1)'
    change = f'UPDATE {numbers} SET ("v") FROM ARROW $1 KEY ("id")'
    assert wire(one, ("int8", "1"), txn=txn, snap=1).rows == [(1,)]
    other(change, batch(v=("int4", [77]), id=("int8", [1])))
    assert wire(one, ("int8", "1"), txn=txn, snap=2).rows == [(1,)]
    assert wire.fails("40001", change, batch(v=("int4", [1]), id=("int8", [1])), txn=txn, snap=3).message
    assert wire("COMMIT").tag == "ROLLBACK"


def test_an_error_ends_the_transaction_until_rollback(wire: Wire, numbers: str) -> None:
    txn = {"id": "f" * 32}
    wire.fails("42P01", 'SELECT "a" FROM "nowhere"."t"', txn=txn)
    assert wire.status == "E"
    wire.fails("25P02", f'SELECT "v" FROM {numbers}', txn=txn)
    assert wire("ROLLBACK").tag == "ROLLBACK"
    assert wire.status == "I"


@pytest.fixture
def mine(db: Client, ns: str, wire: Wire) -> str:
    """A user table with rows of two tenants."""
    db.run("CREATE USER TABLE mine (id integer PRIMARY KEY, v text)")
    for user in ("alice", "bob"):
        rows = batch(id=("int4", [1, 2]), v=("text", [f"{user} 1", f"{user} 2"]))
        wire(f'INSERT INTO "{ns}"."mine" ("id", "v") FROM ARROW $1', rows, user=user)
    return f'"{ns}"."mine"'


def test_a_tenant_sees_its_own_rows(wire: Wire, mine: str) -> None:
    assert wire(f'SELECT "v" FROM {mine}', user="alice").rows == [("alice 1",), ("alice 2",)]
    assert wire(f'SELECT "v", "_userid" FROM {mine} WHERE ("id" = $1)', ("int4", "2"), user="bob").rows == [
        ("bob 2", "bob")
    ]
    assert wire(f'SELECT "v" FROM {mine}', user="carol").rows == []


def test_all_tenants(wire: Wire, mine: str) -> None:
    assert sorted(wire(f'SELECT "_userid", "id" FROM {mine}', user="*").rows) == [
        ("alice", 1), ("alice", 2), ("bob", 1), ("bob", 2)
    ]  # fmt: skip
    found = wire(f'SELECT "_userid" FROM {mine} WHERE (("id" = $1) AND ("_userid" = $2))', ("int4", "1"),
                 ("text", "bob"), user="*")
    assert found.rows == [("bob",)]


def test_a_tenants_first_read(wire: Wire, wires: Callable[[], Wire], db: Client, ns: str) -> None:
    """By whom works alone, in the event loop, and beside others, in a thread: the same rows, in chunks of any size, and
    what was changed in between."""
    db.run("CREATE USER TABLE first (id integer PRIMARY KEY, v text)")
    first, other = f'"{ns}"."first"', wires()
    expected: dict[str, list[tuple[int, str]]] = {}
    for size in (0, 1, 64, 65, 300, 1000, 5000):
        expected[f"u{size}"] = [(n, f"row {n} of {size}") for n in range(size)]
        if size:
            whole = batch(id=("int4", range(size)), v=("text", [v for _, v in expected[f"u{size}"]]))
            wire(f'INSERT INTO {first} ("id", "v") FROM ARROW $1', whole, user=f"u{size}")
    lone = time.monotonic() + ALONE_NS / 1e9
    wait_until(lambda: wire("SELECT 1").rows and time.monotonic() > lone, "nobody else does anything")
    for fetch in (10_000, 1000, 64):
        for user, rows in expected.items():
            assert sorted(wire.all(f'SELECT "id", "v" FROM {first}', user=user, arrow=True, fetch=fetch)) == rows
            if rows:
                expected[user] = [(0, f"changed {fetch}"), *rows[1:]]
                wire(f'UPDATE {first} SET "v" = $1 WHERE ("id" = 0)', ("text", f"changed {fetch}"), user=user)
    for user, rows in expected.items():
        assert sorted(other.all(f'SELECT "id", "v" FROM {first}', user=user, arrow=True)) == rows
        assert sorted(wire.all(f'SELECT "v" FROM {first}', user=user, arrow=True)) == sorted((v,) for _, v in rows)


def test_no_tenant(wire: Wire, mine: str) -> None:
    error = wire.fails("42501", f'SELECT "v" FROM {mine}')
    assert error.hint == "SET kalam.user_id"
    wire.fails("42501", f'SELECT "v" FROM {mine}', user="")


def test_sequence_numbers_appear_with_the_commit(wire: Wire, numbers: str) -> None:
    txn = {"id": "1" * 32}
    seq = f'SELECT "_seq" FROM {numbers} WHERE ("id" = $1)'
    (before,) = wire(seq, ("int8", "5"), txn=txn).rows[0]
    wire(f'UPDATE {numbers} SET ("v") FROM ARROW $1 KEY ("id")', batch(v=("int4", [1]), id=("int8", [5])), txn=txn)
    assert wire(seq, ("int8", "5"), txn=txn).rows == [(None,)]
    wire("COMMIT")
    (after,) = wire(seq, ("int8", "5")).rows[0]
    assert after > before


@pytest.mark.parametrize("sql", [
    'DELETE FROM {t} KEY ("id")', 'DELETE FROM {t} AS x ("id")', 'UPDATE {t} AS x ("a") SET "v" = 1',
    'UPDATE {t} SET ("v") KEY ("id")', 'DELETE FROM {t} FROM ARROW $1', 'INSERT INTO {t} FROM ARROW',
])  # fmt: skip
def test_half_of_a_statement(wire: Wire, numbers: str, sql: str) -> None:
    """What is cut off must not become another statement."""
    before = wire(f'SELECT "id", "v" FROM {numbers}').rows
    wire.fails("42601", sql.replace("{t}", numbers))
    assert wire(f'SELECT "id", "v" FROM {numbers}').rows == before


def test_bad_contexts(wire: Wire, numbers: str) -> None:
    wire.fails("22023", f'SELECT "id" FROM {numbers}', txn={"id": "2" * 32, "iso": "chaos"})
    assert wire.status == "I"
    for context in ({"txn": 1}, {"user": 1}, {"fetch": "x"}, {"floor": None}, {"snap": 1.5}, {"close": "scan_1"}):
        wire.fails("08P01", f'SELECT "id" FROM {numbers}', **context)
    assert wire(f'SELECT "id" FROM {numbers}', fetch=0).rows == [(1,)]
    assert wire(f'SELECT "id" FROM {numbers}', fetch=-5).rows == [(1,)]


def test_another_transaction_is_open(wire: Wire, numbers: str) -> None:
    wire(f'SELECT "id" FROM {numbers} WHERE ("id" = $1)', ("int8", "1"), txn={"id": "3" * 32})
    wire.fails("25001", f'SELECT "id" FROM {numbers}', txn={"id": "4" * 32})
    wire("ROLLBACK")
    wire.fails("25P01", "COMMIT", txn={"id": "4" * 32})


def test_results_are_the_same_in_rows_and_in_arrow(wire: Wire, db: Client, ns: str) -> None:
    """Every type, NULLs between."""
    kinds = {
        "bool": "t", "int2": "-5", "int4": "6", "int8": "-7", "float4": "1.5", "float8": "-0", "numeric": "1.00",
        "text": "é☃", "varchar": "", "bytea": "\\x00ff", "date": "infinity", "timestamp": "-infinity",
        "timestamptz": "2020-01-01 00:00:00+00", "uuid": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "json": '{"a" : 1}',
        "jsonb": '{"a": 1}',
    }  # fmt: skip
    db.run("CREATE TABLE every (id integer PRIMARY KEY, " + ", ".join(f"c_{name} {name}" for name in kinds) + ")")
    names = ", ".join(f'"c_{name}"' for name in kinds)
    marks = ", ".join(f"${place}" for place in range(2, len(kinds) + 2))
    for number in range(300):
        values = [(name, text if number % 3 else None) for name, text in kinds.items()]
        wire(f'INSERT INTO "{ns}"."every" ("id", {names}) VALUES ($1, {marks})', ("int4", str(number)), *values,
             txn={"id": "5" * 32})
    wire("COMMIT")
    sql = f'SELECT {names} FROM "{ns}"."every"'
    plain, arrow = wire(sql), wire(sql, arrow=True)
    assert arrow.arrow
    assert not plain.arrow
    assert repr(plain.rows) == repr([tuple(int(v) if isinstance(v, bool) else v for v in row) for row in arrow.rows])
    assert plain.rows[0] == (None,) * len(kinds)


def test_the_log_stays_clean(server: KalamServer, wire: Wire, numbers: str) -> None:
    """Errors that clients cause are no tracebacks."""
    before = server.log_size()
    wire.fails("22P02", "SELECT 'x'::int", exec=True)
    wire.fails("42601", "SELEC")
    assert "Traceback" not in server.log_since(before)


# ---------- the namespace system ----------
def test_a_system_table_is_read_as_any_other(wire: Wire, numbers: str, ns: str) -> None:
    """What pg_kalam sends for a foreign table over one; its `_seq` is NULL."""
    found = wire('SELECT "name", "key", "_seq" FROM "system"."columns" '
                 'WHERE (("namespace" = $1) AND ("position" > $2))', ("text", ns), ("int4", "1"))
    assert (found.rows, found.types, found.tag) == (
        [("v", None, None), ("s", None, None)], ["text", "int4", "int8"], "SELECT 2")
    assert wire('SELECT NULL FROM "system"."columns" WHERE ("namespace" = $1)', ("text", ns)).rows == [(None,)] * 3


def test_chunks_of_a_system_table(wire: Wire) -> None:
    first = wire('SELECT "name" FROM "system"."columns" WHERE ("namespace" = $1)', ("text", "system"), fetch=10)
    assert (len(first.rows), first.cursor is not None) == (10, True)
    found = wire.all('SELECT "name" FROM "system"."columns" WHERE ("namespace" = $1)', ("text", "system"), fetch=10)
    assert len(found) > 50


@pytest.mark.parametrize("statement", [
    'INSERT INTO "system"."jobs" ("kind") VALUES ($1)', 'INSERT INTO "system"."jobs" ("kind") FROM ARROW $1',
    'UPDATE "system"."jobs" SET ("kind") FROM ARROW $1 KEY ("id")',
    'DELETE FROM "system"."jobs" FROM ARROW $1 KEY ("kind")',
])
def test_a_system_table_is_not_written(wire: Wire, statement: str) -> None:
    value = batch(kind=("text", ["x"]), id=("int8", [1])) if "ARROW" in statement else ("text", "x")
    with pytest.raises(Failed, match='42501 permission denied: "jobs" is a system catalog'):
        wire(statement, value)


# ---------- isolation ----------
def test_serializable_says_once_what_it_is(wire: Wire, numbers: str) -> None:
    heard: list[str] = []
    wire.conn.notice_handler = lambda result: heard.append(
        (result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode())
    for number, isolation in enumerate(("repeatable read", "serializable", "serializable")):
        block = {"id": f"{number:032x}", "iso": isolation}
        for _ in range(2):
            wire(f'SELECT "s" FROM {numbers} WHERE ("id" = $1)', ("int8", "7"), txn=block)
        wire("SELECT 1", txn=block, exec=True)
        wire("COMMIT", txn=block)
    assert len(heard) == 1
    assert "snapshot isolation" in heard[0]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("cold", [False, True])
def test_no_limit_leaves_the_order(db: Client, ns: str, wire: Wire, cold: bool, own: bool) -> None:
    """LIMIT NULL, as a plan with a parameter for it may say, is no limit: of every row, in order all the same."""
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, v integer)")
    expected = list(range(2, 1001, 2))
    if cold:
        db.run("INSERT INTO t SELECT g, g FROM generate_series(1, 999, 2) g")
        db.run(f"STORAGE FLUSH TABLE {ns}.t")
        expected = list(range(1, 1001))
    db.run("INSERT INTO t SELECT g, g FROM generate_series(2, 1000, 2) g")
    context = {"arrow": True, "txn": {"id": uuid.uuid4().hex}, "fetch": 10_000}
    if own:
        wire(f'INSERT INTO "{ns}"."t" VALUES (5000, 1), (-5, 1)', txn=context["txn"])
        wire(f'UPDATE "{ns}"."t" SET v = 0 WHERE id = 500', txn=context["txn"])
        expected = [-5, *expected, 5000]
    for _ in range(3):  # the second time from columns in memory
        wire(f'SELECT "id" FROM "{ns}"."t"', **context)
        for order, wanted in (("", expected), (" DESC", expected[::-1])):
            found = wire.all(f'SELECT "id" FROM "{ns}"."t" ORDER BY "id"{order} LIMIT $1', ("int8", None), **context)
            assert [row[0] for row in found] == wanted, order


def test_a_key_that_is_read_again_and_again(db: Client, ns: str, wire: Wire, wires: Callable[[], Wire], numbers: str
                                            ) -> None:
    """The answer is the newest row each time, whatever was done meanwhile to it, its table, or its name."""
    other = wires()
    read = f'SELECT "s" FROM {numbers} WHERE ("id" = $1)'
    unqualified = 'SELECT "s" FROM "t" WHERE ("id" = $1)'

    def seen(key: str = "7") -> list[tuple[object, ...]]:
        found = [wire(read, ("int8", key)).rows for _ in range(3)]
        found += [wire(unqualified, ("int8", key), path=[ns]).rows for _ in range(2)]
        assert all(rows == found[0] for rows in found), found
        return found[0]

    assert (seen(), seen("8"), seen("0")) == ([("row 7",)], [("row 8",)], [])
    db.run("UPDATE t SET s = 'changed' WHERE id = 7")
    assert seen() == [("changed",)]
    db.run("STORAGE FLUSH TABLE t")
    assert (seen(), seen("9")) == ([("changed",)], [("row 9",)])
    db.run("DELETE FROM t WHERE id = 7")
    assert seen() == []
    db.run("INSERT INTO t VALUES (7, 1, NULL)")
    assert seen() == [(None,)]
    db.run("ALTER TABLE t ADD COLUMN w int DEFAULT 5")
    assert (seen(), seen("8")) == ([(None,)], [("row 8",)])
    db.run("ALTER TABLE t DROP COLUMN s")
    for _ in range(2):
        wire.fails("42703", read, ("int8", "7"))
    db.run("ALTER TABLE t ADD COLUMN s text DEFAULT 'new'")
    assert seen() == [("new",)]
    db.run("DROP TABLE t")
    for _ in range(2):
        wire.fails("42P01", read, ("int8", "7"))
    db.run("CREATE TABLE t (id text PRIMARY KEY, s text)")
    db.run("INSERT INTO t VALUES ('7', 'of another type')")
    assert other(read, ("text", "7")).rows == wire(read, ("text", "7")).rows == [("of another type",)]


def test_a_key_that_is_read_again_is_its_tenants(db: Client, ns: str, wire: Wire) -> None:
    db.run("CREATE USER TABLE mine (id bigint PRIMARY KEY, v text)")
    for user in ("ann", "bob"):
        db.run(f"EXECUTE AS USER '{user}' (INSERT INTO mine VALUES (1, 'of {user}'))")
    read = f'SELECT "v" FROM "{ns}"."mine" WHERE ("id" = $1)'
    for _ in range(3):
        for user in ("ann", "bob", "carl"):
            assert wire(read, ("int8", "1"), user=user).rows == ([] if user == "carl" else [(f"of {user}",)])
        wire.fails("42501", read, ("int8", "1"))
        assert sorted(wire(read, ("int8", "1"), user="*").rows) == [("of ann",), ("of bob",)]


def test_a_key_that_is_read_again_within_a_transaction(db: Client, wire: Wire, numbers: str) -> None:
    """Own writes and the snapshot of a block are no business of who reads outside."""
    read = f'SELECT "s" FROM {numbers} WHERE ("id" = $1)'
    block = {"txn": {"id": uuid.uuid4().hex, "iso": "repeatable read", "ro": False}, "snap": 1}
    for _ in range(2):
        assert wire(read, ("int8", "7")).rows == [("row 7",)]
    assert wire(read, ("int8", "7"), **block).rows == [("row 7",)]
    db.run("UPDATE t SET s = 'changed' WHERE id = 7")
    for _ in range(2):
        assert wire(read, ("int8", "7"), **block).rows == [("row 7",)]
    wire(f'UPDATE {numbers} SET "v" = $1 WHERE ("id" = $2)', ("int4", "5"), ("int8", "8"), **block)
    wire("COMMIT")
    for _ in range(2):
        assert wire(read, ("int8", "7")).rows == [("changed",)]
