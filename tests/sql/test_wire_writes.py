"""The wire dialect's writes: single rows, batches, `commit`, levels, `exec`, locks."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from kalamdb.sql.executor import ALONE_NS
from support.ports import wait_until
from support.server import KalamServer

from .client import Client, Failed, Wire, batch

TXN = {"id": "0123456789abcdef0123456789abcdef"}


def another() -> dict[str, str]:
    return {"id": uuid.uuid4().hex}


@pytest.fixture(autouse=True)
def fresh_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is over cannot be opened again."""
    monkeypatch.setitem(TXN, "id", another()["id"])


@pytest.fixture
def t(db: Client, ns: str) -> str:
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, a integer, b text DEFAULT 'd')")
    return f'"{ns}"."t"'


@pytest.fixture
def mine(db: Client, ns: str) -> str:
    db.run("CREATE USER TABLE mine (id integer PRIMARY KEY, v text)")
    return f'"{ns}"."mine"'


def contents(wire: Wire, t: str, columns: str = '"id", "a", "b"', **context: object) -> list[tuple[object, ...]]:
    return wire(f"SELECT {columns} FROM {t}", **context).rows


# ---------- INSERT ----------
def test_one_row(wire: Wire, t: str) -> None:
    assert wire(f'INSERT INTO {t} ("id", "b") VALUES ($1, $2)', ("int8", "1"), ("text", "x")).tag == "INSERT 0 1"
    assert wire(f'INSERT INTO {t} ("id") VALUES ($1)', ("int8", "2")).tag == "INSERT 0 1"
    assert contents(wire, t) == [(1, None, "x"), (2, None, "d")]


def test_a_duplicate_key(wire: Wire, t: str) -> None:
    sql = f'INSERT INTO {t} ("id") VALUES ($1)'
    wire(sql, ("int8", "1"))
    error = wire.fails("23505", sql, ("int8", "1"))
    assert error.message == 'duplicate key value violates unique constraint "t_pkey"'
    assert error.detail == "Key (id)=(1) already exists."
    assert (error.table, error.constraint) == ("t", "t_pkey")
    assert wire(sql + " ON CONFLICT DO NOTHING", ("int8", "1")).tag == "INSERT 0 0"
    assert wire(sql + " ON CONFLICT DO NOTHING", ("int8", "2")).tag == "INSERT 0 1"


def test_a_batch(wire: Wire, t: str) -> None:
    sql = f'INSERT INTO {t} ("id", "a") FROM ARROW $1'
    assert wire(sql, batch(id=("int8", [3, 1, 2]), a=("int4", [30, None, 20]))).tag == "INSERT 0 3"
    assert contents(wire, t) == [(1, None, "d"), (2, 20, "d"), (3, 30, "d")]
    assert wire(sql, batch(id=("int8", []), a=("int4", []))).tag == "INSERT 0 0"


def test_a_batch_is_atomic(wire: Wire, t: str) -> None:
    sql = f'INSERT INTO {t} ("id", "a") FROM ARROW $1'
    wire(sql, batch(id=("int8", [5]), a=("int4", [0])))
    error = wire.fails("23505", sql, batch(id=("int8", [4, 5, 6]), a=("int4", [0, 0, 0])))
    assert error.detail == "Key (id)=(5) already exists."
    assert contents(wire, t, '"id"') == [(5,)]
    skipping = sql + " ON CONFLICT DO NOTHING"
    assert wire(skipping, batch(id=("int8", [4, 5, 6, 6]), a=("int4", [0, 0, 0, 1]))).tag == "INSERT 0 2"


@pytest.mark.parametrize(("rows", "state"), [
    (batch(id=("int4", [1]), a=("int4", [1])), "08P01"),
    (batch(id=("int8", [1])), "08P01"),
    (batch(id=("int8", [1]), a=("int4", [1]), b=("text", ["x"])), "08P01"),
    (batch(id=("int8", [None]), a=("int4", [1])), "23502"),
])  # fmt: skip
def test_bad_batches(wire: Wire, t: str, rows: object, state: str) -> None:
    wire.fails(state, f'INSERT INTO {t} ("id", "a") FROM ARROW $1', rows)
    assert contents(wire, t) == []


def test_what_is_no_batch(wire: Wire, t: str) -> None:
    wire.fails("42804", f'INSERT INTO {t} ("id", "a") FROM ARROW $1', ("bytea", "\\x00"))
    wire.fails("42P01", 'INSERT INTO "no"."t" ("id") FROM ARROW $1', batch(id=("int8", [1])))
    wire.fails("42703", f'INSERT INTO {t} ("nix") FROM ARROW $1', batch(id=("int8", [1])))
    wire.fails("42701", f'INSERT INTO {t} ("id", "id") FROM ARROW $1', batch(id=("int8", [1]), i=("int8", [1])))
    wire.fails("428C9", f'INSERT INTO {t} ("id", "_seq") FROM ARROW $1', batch(id=("int8", [1]), i=("int8", [1])))
    for bad in ("FROM ARROW $2", "FROM ARROW 1", "FROM ARROW", "FROM ARROW $1 nonsense", "FROM ARROW $0"):
        error = wire.fails_any(f'INSERT INTO {t} ("id") {bad}', batch(id=("int8", [1])))
        assert error.sqlstate in ("42601", "42P02", "42804", "08P01"), error


# ---------- UPDATE, DELETE ----------
def fill(wire: Wire, t: str, count: int = 5) -> None:
    rows = batch(id=("int8", range(1, count + 1)), a=("int4", [0] * count))
    wire(f'INSERT INTO {t} ("id", "a") FROM ARROW $1', rows)


def test_update_by_key(wire: Wire, t: str) -> None:
    fill(wire, t)
    rows = batch(a=("int4", [10, None, 99]), b=("text", ["x", None, "y"]), key=("int8", [1, 2, 77]))
    assert wire(f'UPDATE {t} SET ("a", "b") FROM ARROW $1 KEY ("id")', rows).tag == "UPDATE 2"
    assert contents(wire, t)[:3] == [(1, 10, "x"), (2, None, None), (3, 0, "d")]


def test_every_row_gets_an_id_of_its_own(db: Client, ns: str) -> None:
    db.run("CREATE TABLE made (id bigint PRIMARY KEY, g uuid DEFAULT gen_random_uuid(), s bigint, at timestamptz)")
    db.run("INSERT INTO made SELECT i, NULL, 0, NULL FROM generate_series(1, 4) AS g(i)")
    for where in ("id IN (1, 2, 3, 4)", "id > 0"):
        for new in ("gen_random_uuid()", "DEFAULT"):
            before = set(db.rows("SELECT g FROM made"))
            db.run(f"UPDATE made SET g = {new}, s = snowflake_id(), at = now() WHERE {where}")
            after = set(db.rows("SELECT g FROM made"))
            assert len(after) == 4
            assert not before & after
            assert db.rows("SELECT count(DISTINCT s), count(DISTINCT at) FROM made") == [("4", "1")]


def test_update_of_the_key(wire: Wire, t: str) -> None:
    fill(wire, t, 3)
    sql = f'UPDATE {t} SET ("id", "a") FROM ARROW $1 KEY ("id")'
    assert wire(sql, batch(id=("int8", [30]), a=("int4", [3]), key=("int8", [3]))).tag == "UPDATE 1"
    assert contents(wire, t, '"id", "a"') == [(1, 0), (2, 0), (30, 3)]
    wire.fails("23505", sql, batch(id=("int8", [2]), a=("int4", [3]), key=("int8", [1])))


def test_delete_by_key(wire: Wire, t: str) -> None:
    fill(wire, t)
    sql = f'DELETE FROM {t} FROM ARROW $1 KEY ("id")'
    assert wire(sql, batch(id=("int8", [1, 3, 3, 8]))).tag == "DELETE 2"
    assert contents(wire, t, '"id"') == [(2,), (4,), (5,)]


def test_keys_that_are_no_keys(wire: Wire, t: str) -> None:
    wire.fails("42P10", f'DELETE FROM {t} FROM ARROW $1 KEY ("a")', batch(a=("int4", [1])))
    wire.fails("42703", f'DELETE FROM {t} FROM ARROW $1 KEY ("x")', batch(a=("int4", [1])))
    wire.fails("42601", f"DELETE FROM {t} FROM ARROW $1", batch(a=("int8", [1])))
    wire.fails("428C9", f'UPDATE {t} SET ("_seq") FROM ARROW $1 KEY ("id")', batch(s=("int8", [1]), k=("int8", [1])))


def test_a_key_of_two_columns_in_any_order(wire: Wire, db: Client, ns: str) -> None:
    db.run("CREATE TABLE two (v text, b integer, a text, PRIMARY KEY (a, b))")
    t = f'"{ns}"."two"'
    wire(f'INSERT INTO {t} ("a", "b", "v") FROM ARROW $1',
         batch(a=("text", ["x", "x", "y"]), b=("int4", [1, 2, 1]), v=("text", ["x1", "x2", "y1"])))
    rows = batch(v=("text", ["new"]), b=("int4", [2]), a=("text", ["x"]))
    assert wire(f'UPDATE {t} SET ("v") FROM ARROW $1 KEY ("b", "a")', rows).tag == "UPDATE 1"
    assert wire(f'DELETE FROM {t} FROM ARROW $1 KEY ("a", "b")',
                batch(a=("text", ["y"]), b=("int4", [1]))).tag == "DELETE 1"
    assert contents(wire, t, '"a", "b", "v"') == [("x", 1, "x1"), ("x", 2, "new")]


def test_tenants_of_batches(wire: Wire, mine: str) -> None:
    rows = batch(id=("int4", [1, 1, 1]), v=("text", ["a", "b", "c"]), u=("text", ["ann", "ben", None]))
    wire(f'INSERT INTO {mine} ("id", "v", "_userid") FROM ARROW $1', rows, user="cid")
    assert sorted(contents(wire, mine, '"_userid", "v"', user="*")) == [("ann", "a"), ("ben", "b"), ("cid", "c")]
    change = batch(v=("text", ["A", "B"]), id=("int4", [1, 1]), u=("text", ["ann", "nobody"]))
    assert wire(f'UPDATE {mine} SET ("v") FROM ARROW $1 KEY ("id", "_userid")', change, user="*").tag == "UPDATE 1"
    gone = batch(u=("text", ["ben"]), id=("int4", [1]))
    assert wire(f'DELETE FROM {mine} FROM ARROW $1 KEY ("_userid", "id")', gone, user="*").tag == "DELETE 1"
    assert sorted(contents(wire, mine, '"_userid", "v"', user="*")) == [("ann", "A"), ("cid", "c")]
    wire.fails("42501", f'INSERT INTO {mine} ("id") VALUES ($1)', ("int4", "1"), user="*")
    wire.fails("42501", f'INSERT INTO {mine} ("id") VALUES ($1)', ("int4", "1"))
    wire.fails("42501", f'DELETE FROM {mine} FROM ARROW $1 KEY ("id")', batch(id=("int4", [1])), user="*")
    wire.fails("22023", f'INSERT INTO {mine} ("id", "_userid") VALUES ($1, $2)', ("int4", "1"), ("text", "*"), user="x")


def test_streams_take_no_updates(wire: Wire, db: Client, ns: str) -> None:
    db.run("CREATE STREAM TABLE s (id bigint PRIMARY KEY, v text) WITH (ttl_seconds = 60)")
    t = f'"{ns}"."s"'
    wire(f'INSERT INTO {t} ("id") VALUES ($1)', ("int8", "1"), user="u")
    wire.fails("0A000", f'UPDATE {t} SET ("v") FROM ARROW $1 KEY ("id")', batch(v=("text", ["x"]), k=("int8", [1])),
               user="u")
    assert wire(f'DELETE FROM {t} FROM ARROW $1 KEY ("id")', batch(k=("int8", [1])), user="u").tag == "DELETE 1"


# ---------- transactions ----------
def test_commit_in_the_same_flight(wire: Wire, wires: Callable[[], Wire], t: str) -> None:
    sql = f'INSERT INTO {t} ("id") VALUES ($1)'
    wire(sql, ("int8", "1"), txn=TXN)
    assert wire.status == "T"
    assert contents(wires(), t, '"id"') == []
    wire(sql, ("int8", "2"), txn=TXN, commit=True)
    assert wire.status == "I"
    assert contents(wires(), t, '"id"') == [(1,), (2,)]
    wire(sql, ("int8", "3"), txn=another(), commit=True)
    wire(sql, ("int8", "4"), commit=True)
    assert len(contents(wires(), t)) == 4


def test_a_failing_statement_with_commit_commits_nothing(wire: Wire, t: str) -> None:
    sql = f'INSERT INTO {t} ("id") VALUES ($1)'
    wire(sql, ("int8", "1"), txn=TXN)
    wire.fails("23505", sql, ("int8", "1"), txn=TXN, commit=True)
    assert wire.status == "E"
    assert wire("COMMIT").tag == "ROLLBACK"
    assert contents(wire, t) == []


def test_a_statement_that_relies_on_other_rules_does_nothing(wire: Wire, db: Client, t: str) -> None:
    change, put = f'UPDATE {t} SET "a" = ("a" + $1)', f'INSERT INTO {t} ("id") VALUES ($1)'
    upsert = put + ' ON CONFLICT ("id") DO UPDATE SET "a" = $1'
    known = dict(db.rows("SHOW TABLE t"))["definition"]
    wire(put, ("int8", "1"), txn=TXN)
    assert wire(change, ("int4", "1"), txn=TXN, rules=known).tag == "UPDATE 1"
    for wrong in (known + "1", "0.0", "'; DROP TABLE t"):
        assert wire(change, ("int4", "1"), txn=TXN, rules=wrong, commit=True).tag == f"STALE {known}"
        assert wire(upsert, ("int8", "1"), rules=wrong).tag == f"STALE {known}"
    assert wire.status == "T"  # nor has anything ended
    wire("COMMIT")
    db.run("ALTER TABLE t ADD c integer NOT NULL DEFAULT 0")
    facts = dict(db.rows("SHOW TABLE t"))
    assert facts["definition"] != known
    assert {name for name in facts if name.startswith("not_null.")} == {"not_null.id", "not_null.c"}
    assert wire(change, ("int4", "1"), rules=known).tag == f"STALE {facts['definition']}"
    assert wire.status == "I"
    assert wire(change, ("int4", "1"), rules=facts["definition"]).tag == "UPDATE 1"
    db.run("DROP TABLE t")
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, a integer)")
    assert wire(change, ("int4", "1"), rules=known).tag.startswith("STALE")


@pytest.mark.parametrize("within", [False, True])
def test_rules_change_while_a_statement_waits(wire: Wire, other: Client, db: Client, t: str, within: bool) -> None:
    """It was planned under the definition it relies on, and begins anew under another."""
    known = dict(db.rows("SHOW TABLE t"))["definition"]
    wire(f'INSERT INTO {t} ("id", "a") VALUES ($1, $1)', ("int8", "1"))
    context = {"txn": TXN, "commit": True} if within else {}
    db.run("BEGIN")
    db.run("ALTER TABLE t ADD COLUMN c integer")
    wire.send(f'UPDATE {t} SET "a" = ("a" + 1) WHERE ("id" = 1)', rules=known, **context)
    wait_until(lambda: other.rows("SELECT 1 FROM system.locks WHERE NOT granted"), "the UPDATE waits")
    db.run("COMMIT")
    now = dict(db.rows("SHOW TABLE t"))["definition"]
    assert wire.answer().tag == f"STALE {now}"
    assert wire.status == ("T" if within else "I")
    assert contents(wire, t, '"id", "a"', **({"txn": TXN} if within else {})) == [(1, 1)]
    assert wire(f'UPDATE {t} SET "a" = ("a" + 1) WHERE ("id" = 1)', rules=now, **context).tag == "UPDATE 1"
    assert contents(wire, t, '"id", "a"') == [(1, 2)]


def test_a_lone_row_that_relies_on_other_rules(wire: Wire, db: Client, t: str) -> None:
    """Also of the only session that does anything, whose rows take the short way."""
    known = dict(db.rows("SHOW TABLE t"))["definition"]
    put, lone = f'INSERT INTO {t} ("id") VALUES ($1)', time.monotonic() + ALONE_NS / 1e9
    wait_until(lambda: wire("SELECT 1").rows and time.monotonic() > lone, "nobody else does anything")
    assert wire(put, ("int8", "1"), txn=another(), commit=True, rules=known).tag == "INSERT 0 1"
    assert wire(put, ("int8", "2"), txn=TXN, commit=True, rules="0.0").tag == f"STALE {known}"
    assert contents(wire, t, '"id"', txn=TXN) == [(1,)]
    wire("ROLLBACK")


def test_levels(wire: Wire, t: str) -> None:
    sql = f'INSERT INTO {t} ("id") VALUES ($1)'
    wire(sql, ("int8", "1"), txn=TXN)
    wire(sql, ("int8", "2"), txn=TXN, level=2)
    wire(sql, ("int8", "3"), txn=TXN, floor=2, level=4)
    assert wire("ROLLBACK TO LEVEL 3").tag == "ROLLBACK"
    assert contents(wire, t, '"id"', txn=TXN, floor=2, level=2) == [(1,), (2,)]
    wire(sql, ("int8", "4"), txn=TXN, floor=1, level=2)  # released 2, opened another
    assert wire("ROLLBACK TO LEVEL 2").tag == "ROLLBACK"
    assert contents(wire, t, '"id"', txn=TXN) == [(1,), (2,)]
    wire("COMMIT", txn=TXN)
    assert contents(wire, t, '"id"') == [(1,), (2,)]


def test_a_failed_transaction_is_open_again_after_rollback_to_level(wire: Wire, t: str) -> None:
    sql = f'INSERT INTO {t} ("id") VALUES ($1)'
    wire(sql, ("int8", "1"), txn=TXN)
    wire.fails("23505", sql, ("int8", "1"), txn=TXN, level=2)
    assert wire.status == "E"
    wire("ROLLBACK TO LEVEL 2")
    assert wire.status == "T"
    wire(sql, ("int8", "2"), txn=TXN)
    wire("COMMIT")
    assert contents(wire, t, '"id"') == [(1,), (2,)]


def test_levels_count_for_a_statement_that_does_not_parse(wire: Wire, t: str) -> None:
    """pg_kalam believes the level to be open and rolls back to it."""
    wire(f'INSERT INTO {t} ("id") VALUES ($1)', ("int8", "1"), txn=TXN)
    wire.fails("42601", "SELECT FROM FROM", txn=TXN, level=2)
    assert wire("ROLLBACK TO LEVEL 2").tag == "ROLLBACK"
    assert wire.status == "T"
    assert contents(wire, t, '"id"', txn=TXN) == [(1,)]
    wire("ROLLBACK")


def test_rollback_to_level_outside(wire: Wire) -> None:
    wire.fails("25P01", "ROLLBACK TO LEVEL 2")
    wire("SELECT 1", exec=True, txn=TXN)
    wire.fails("3B001", "ROLLBACK TO LEVEL 1", txn=TXN)
    wire("ROLLBACK")


def test_read_only(wire: Wire, t: str) -> None:
    txn = TXN | {"ro": True}
    wire.fails("25006", f'INSERT INTO {t} ("id") VALUES ($1)', ("int8", "1"), txn=txn)
    wire("ROLLBACK")
    wire.fails("25006", f'CREATE TABLE {t[:-3]}"u" ("id" bigint)', txn=txn | another())
    wire("ROLLBACK")


def test_read_only_comes_late(wire: Wire, t: str) -> None:
    """SET TRANSACTION READ ONLY in a transaction that the server knows already."""
    wire(f'INSERT INTO {t} ("id") VALUES ($1)', ("int8", "1"), txn=TXN)
    wire.fails("25006", f'INSERT INTO {t} ("id") VALUES ($1)', ("int8", "2"), txn=TXN | {"ro": True})
    wire("ROLLBACK")


def test_outcomes(wire: Wire, wires: Callable[[], Wire], t: str) -> None:
    sql = f'INSERT INTO {t} ("id") VALUES ($1)'
    ids = [f"{number:032x}" for number in range(0xABC0, 0xABC4)]

    def outcome(place: int) -> str:
        return str(wires()(f"SHOW TRANSACTION OUTCOME '{ids[place]}'").rows[0][0])

    wire(sql, ("int8", "1"), txn={"id": ids[0]}, commit=True)
    wire(sql, ("int8", "2"), txn={"id": ids[1]})
    assert (outcome(0), outcome(1), outcome(3)) == ("committed", "in progress", "aborted")
    wire("ROLLBACK")
    wire(sql, ("int8", "3"), txn={"id": ids[2]})
    wire("COMMIT")
    assert (outcome(1), outcome(2)) == ("aborted", "committed")
    # what its client has been told is over cannot come in late, from a connection that had been given up
    wire.fails("25001", sql, ("int8", "4"), txn={"id": ids[3]}, commit=True)
    assert outcome(3) == "aborted"
    assert wire(f'SELECT "id" FROM {t} WHERE ("id" = $1)', ("int8", "4")).rows == []


def test_tenants_that_are_no_text(wire: Wire, mine: str) -> None:
    for tenant in ("\0", "a\0", "a\0b"):
        wire.fails("22021", f'INSERT INTO {mine} ("id") VALUES ($1)', ("int4", "1"), user=tenant)
        assert wire(f'SELECT "id" FROM {mine}', user=tenant).rows == []
    wire(f'INSERT INTO {mine} ("id") VALUES ($1)', ("int4", "1"), user="a\n☃ \U0001f600")
    assert wire(f'SELECT "_userid" FROM {mine}', user="*").rows == [("a\n☃ \U0001f600",)]


# ---------- exec ----------
def run(wire: Wire, sql: str, **context: object) -> object:
    return json.loads(wire(sql, exec=True, **context).rows[0][0])


def test_exec(wire: Wire, ns: str, t: str) -> None:
    assert run(wire, "INSERT INTO t VALUES (1, 2), (2, null)", path=[ns]) == {"message": "INSERT 0 2", "affected": 2}
    assert run(wire, "SELECT id, a FROM t ORDER BY id", path=[ns]) == [{"id": 1, "a": 2}, {"id": 2, "a": None}]
    assert run(wire, "UPDATE t SET a = a + 1", path=[ns]) == {"message": "UPDATE 2", "affected": 2}
    assert run(wire, "SELECT id FROM t WHERE false", path=["nowhere", ns]) == []
    assert run(wire, f"CREATE TABLE {ns}.u (id int)") == {"message": "CREATE TABLE", "affected": 0}
    wire.fails("42P01", "SELECT * FROM t", exec=True)


def test_exec_takes_part_in_the_transaction(wire: Wire, ns: str, t: str) -> None:
    run(wire, "INSERT INTO t VALUES (1)", path=[ns], txn=TXN)
    assert contents(wire, t, '"id"', txn=TXN) == [(1,)]
    wire("ROLLBACK")
    assert contents(wire, t) == []


@pytest.mark.parametrize("sql", [
    "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT a", "RELEASE a", "ROLLBACK TO a", "ROLLBACK TO LEVEL 2",
    "SET TRANSACTION READ ONLY", "SET search_path = x", "RESET ALL",
])  # fmt: skip
def test_exec_refuses_control(wire: Wire, sql: str) -> None:
    wire.fails("0A000", sql, exec=True)
    wire("SELECT 1", exec=True, txn=TXN)
    wire.fails("0A000", sql, exec=True, txn=TXN)
    assert wire.status == "E"
    wire("ROLLBACK")


@pytest.fixture
def bound(wire: Wire, wires: Callable[[], Wire], t: str, mine: str) -> Callable[..., object]:
    """Runs as a role that its mapping binds to tenant ann, while another session's transaction wrote for bob."""
    wire(f'INSERT INTO {mine} VALUES (1, $1)', ("text", "of ann"), user="ann")
    wire(f'INSERT INTO {mine} VALUES (77, $1)', ("text", "secret"), user="bob", txn=TXN)
    role = wires()
    return lambda sql, **more: run(role, sql, user="ann", bound=True, **more)


def test_a_bound_role_sees_its_tenant_and_itself(bound: Callable[..., object], wire: Wire, ns: str, t: str) -> None:
    rows = run(wire, "SELECT count(*) AS n FROM system.locks WHERE tenant = 'bob'")
    assert rows != [{"n": 0}]
    assert bound("SELECT tenant, key FROM system.locks") == []
    sessions = "SELECT count(*) AS n, max(tenant) AS tenant FROM system.sessions"
    wait_until(lambda: bound(sessions) == [{"n": 1, "tenant": "ann"}], "the end of the sessions of other tests")
    assert bound("SELECT count(*) AS n FROM system.transactions WHERE rows_written > 0") == [{"n": 0}]
    assert bound("SELECT name FROM system.settings") == []
    assert bound(f"SELECT type FROM system.tables WHERE namespace = '{ns}'") == [{"type": "user"}]
    assert bound(f"SELECT v FROM {ns}.mine") == [{"v": "of ann"}]
    assert bound(f"EXECUTE AS USER 'ann' (SELECT v FROM {ns}.mine)") == [{"v": "of ann"}]
    bound(f"UPDATE {ns}.mine SET v = 'changed'")
    own = another()
    bound(f"UPDATE {ns}.mine SET v = 'locked' WHERE id = 1", txn=own)
    held = bound("SELECT tenant, key FROM system.locks WHERE key IS NOT NULL", txn=own)
    assert held == [{"tenant": "ann", "key": "1"}]


@pytest.mark.parametrize("sql", [
    "SELECT * FROM {ns}.t", "INSERT INTO {ns}.t (id) VALUES (5)", "EXECUTE AS USER 'bob' (SELECT * FROM {ns}.mine)",
    "EXECUTE AS USER '*' (SELECT * FROM {ns}.mine)", "INSERT INTO {ns}.mine (id, _userid) VALUES (5, 'bob')",
    "ALTER TABLE {ns}.mine ADD CHECK (v <> 'secret')", "DROP TABLE {ns}.mine", "CREATE USER TABLE {ns}.more (id int)",
    "CREATE NAMESPACE {ns}_more", "STORAGE FLUSH TABLE {ns}.mine", "SHOW DROPPED TABLES", "UNDROP TABLE {ns}.mine",
    "CREATE USER mallory WITH PASSWORD 'long enough' ROLE system",
])
def test_a_bound_role_has_no_rights_beyond_its_tenant(bound: Callable[..., object], ns: str, sql: str) -> None:
    with pytest.raises(Failed) as caught:
        bound(sql.format(ns=ns))
    assert caught.value.sqlstate == "42501", caught.value


def test_a_bound_role_has_a_tenant_that_its_account_may_act_for(
    wire: Wire, mine: str, db: Client, server: KalamServer
) -> None:
    for context in ({}, {"user": ""}, {"user": "*"}):
        wire.fails("42501", "SELECT 1", exec=True, bound=True, **context)
        wire.fails("42501", f"SELECT * FROM {mine}", exec=True, bound=True, **context)
    wire.fails("42501", "SELECT 1", exec=True, bound=True, txn=TXN)
    assert wire.status == "E"
    wire("ROLLBACK")
    db.run("CREATE USER ann WITH PASSWORD 'long enough' ROLE user")
    user = Wire(server.dsn("ann"))
    try:
        user.fails("42501", f"SELECT * FROM {mine}", exec=True, bound=True, user="bob")
        assert run(user, f"SELECT * FROM {mine}", bound=True, user="ann") == []
    finally:
        user.close()
        db.run("DROP USER ann")


def test_values_in_json(wire: Wire) -> None:
    sql = ("SELECT 9223372036854775807 AS big, '1.10'::numeric(10,2) AS n, 'NaN'::float8 AS nan, 'a\"\n' AS s,"
           " true AS b, '\\x00ff'::bytea AS y, date '2020-01-01' AS d, NULL AS z, '-Infinity'::float8 AS i")
    text = wire(sql, exec=True).rows[0][0]
    assert '"big":9223372036854775807' in text
    assert '"n":1.10' in text
    assert json.loads(text) == [{
        "big": 9223372036854775807, "n": 1.1, "nan": "NaN", "s": 'a"\n', "b": True, "y": "\\x00ff",
        "d": "2020-01-01", "z": None, "i": "-Infinity",
    }]  # fmt: skip


# ---------- locks ----------
def test_locks_of_rows(wire: Wire, wires: Callable[[], Wire], t: str) -> None:
    fill(wire, t)
    other = wires()
    lock = f'SELECT "id" FROM {t} WHERE ("id" <= $1) FOR UPDATE'
    assert len(wire(lock, ("int8", "2"), txn=TXN).rows) == 2
    error = other.fails("55P03", lock + " NOWAIT", ("int8", "3"), txn=another())
    assert error.message == 'could not obtain lock on row in relation "t"'
    other("ROLLBACK")
    txn2 = another()
    assert other(lock + " SKIP LOCKED", ("int8", "4"), txn=txn2).rows == [(3,), (4,)]
    other.fails("55P03", lock, ("int8", "2"), txn=txn2, lock_timeout=20)
    other("ROLLBACK")
    share = lock.replace("UPDATE", "SHARE")
    other.fails("55P03", share + " NOWAIT", ("int8", "2"), txn=another())
    other("ROLLBACK")
    wire("COMMIT")
    txn2 = another()
    assert len(wire(share, ("int8", "2"), txn=another()).rows) == 2
    assert len(other(share + " NOWAIT", ("int8", "2"), txn=txn2).rows) == 2
    other.fails("55P03", lock + " NOWAIT", ("int8", "2"), txn=txn2)
    other("ROLLBACK")
    wire("ROLLBACK")


def test_a_lock_waits_and_sees_the_newest_row(wire: Wire, wires: Callable[[], Wire], t: str) -> None:
    fill(wire, t, 1)
    other = wires()
    change = f'UPDATE {t} SET ("a") FROM ARROW $1 KEY ("id")'
    wire(change, batch(a=("int4", [5]), id=("int8", [1])), txn=TXN)
    other.send(f'SELECT "a" FROM {t} WHERE (NOT ("a" IS NULL)) FOR UPDATE', txn=another())
    assert other.busy
    wire("COMMIT")
    wait_until(lambda: not other.busy, "the lock")
    assert other.answer().rows == [(5,)]


def test_a_lock_drops_rows_that_match_no_longer(wire: Wire, wires: Callable[[], Wire], db: Client, t: str) -> None:
    fill(wire, t, 2)
    other = wires()
    wire(f'UPDATE {t} SET ("a") FROM ARROW $1 KEY ("id")', batch(a=("int4", [None]), id=("int8", [1])), txn=TXN)
    other.send(f'SELECT "id" FROM {t} WHERE ("a" IS NOT NULL) FOR UPDATE', txn=another())
    assert other.busy
    wire("COMMIT")
    wait_until(lambda: not other.busy, "the lock")
    assert other.answer().rows == [(2,)]


def test_a_deadlock(wire: Wire, wires: Callable[[], Wire], t: str) -> None:
    fill(wire, t, 2)
    other, txn2 = wires(), another()
    lock = f'SELECT "id" FROM {t} WHERE ("id" = $1) FOR UPDATE'
    wire(lock, ("int8", "1"), txn=TXN)
    other(lock, ("int8", "2"), txn=txn2)
    other.send(f'SELECT "id" FROM {t} FOR UPDATE', txn=txn2)
    assert other.busy
    wire.send(f'SELECT "id" FROM {t} FOR UPDATE', txn=TXN)
    wait_until(lambda: not (wire.busy and other.busy), "the deadlock's victim")
    victim, survivor = (other, wire) if wire.busy else (wire, other)
    with pytest.raises(Failed, match="40P01 deadlock detected"):
        victim.answer()
    victim("ROLLBACK")
    assert survivor.answer().rows == [(1,), (2,)]
    survivor("ROLLBACK")


def test_a_failed_block_lets_others_pass(db: Client, other: Client, t: str) -> None:
    """It can only be rolled back: PostgreSQL, too, gives its locks back at once."""
    db.run("INSERT INTO t VALUES (1)")
    db.run("BEGIN")
    db.run("UPDATE t SET a = 1")
    db.fails("22P02", "SELECT 'x'::int")
    other.run("SET lock_timeout = '5s'")
    assert other.run("UPDATE t SET a = 2").tag == "UPDATE 1"
    db.run("ROLLBACK")
    assert db.value("SELECT a FROM t") == "2"


def test_locks_of_another_tenant_are_others(wire: Wire, wires: Callable[[], Wire], mine: str) -> None:
    for user in ("a", "b"):
        wire(f'INSERT INTO {mine} ("id") VALUES ($1)', ("int4", "1"), user=user)
    lock = f'SELECT "id" FROM {mine} FOR UPDATE NOWAIT'
    assert wire(lock, user="a", txn=TXN).rows == [(1,)]
    assert wires()(lock, user="b", txn=another()).rows == [(1,)]
    wire("ROLLBACK")


def test_locking_needs_a_transaction_that_may_write(wire: Wire, t: str) -> None:
    fill(wire, t, 1)
    wire.fails("25006", f'SELECT "id" FROM {t} FOR UPDATE', txn=TXN | {"ro": True})
    wire("ROLLBACK")


def test_a_large_locking_read_comes_in_chunks(wire: Wire, wires: Callable[[], Wire], t: str) -> None:
    fill(wire, t, 3000)
    rows = wire.all(f'SELECT "id" FROM {t} FOR UPDATE', txn=TXN, fetch=700, arrow=True)
    assert rows == [(n,) for n in range(1, 3001)]
    wires().fails("55P03", f'SELECT "id" FROM {t} WHERE ("id" = $1) FOR UPDATE NOWAIT', ("int8", "3000"))
    wire("ROLLBACK")


# ---------- ON CONFLICT … DO UPDATE ----------
ADD = ' ON CONFLICT ("id") DO UPDATE SET "a" = (r1."a" + excluded."a"), "b" = excluded."b"'


def test_a_row_that_is_there_is_changed(wire: Wire, t: str) -> None:
    wire(f'INSERT INTO {t} ("id", "a") FROM ARROW $1', batch(id=("int8", [1, 2, 3]), a=("int4", [10, 20, None])))
    sql = f'INSERT INTO {t} AS r1 ("id", "a", "b") VALUES ($2, $3, $4)' + ADD + ' WHERE (r1."a" < $1)'
    values = ("int8", "1"), ("int4", "5"), ("text", "x")
    assert wire(sql + ' RETURNING "id", "a", "_seq"', ("int4", "100"), *values).rows == [(1, 15, None)]
    assert wire(sql, ("int4", "15"), *values).tag == "INSERT 0 0"
    assert wire(sql, ("int4", "0"), ("int8", "9"), ("int4", "5"), ("text", "new")).tag == "INSERT 0 1"
    assert contents(wire, t) == [(1, 15, "x"), (2, 20, "d"), (3, None, "d"), (9, 5, "new")]


def test_a_batch_of_new_rows_and_changes(wire: Wire, t: str) -> None:
    wire(f'INSERT INTO {t} ("id", "a") FROM ARROW $1', batch(id=("int8", [1, 2, 3]), a=("int4", [10, 20, 30])))
    rows = batch(id=("int8", [3, 4, 1]), a=("int4", [1, 1, 1]), b=("text", ["x", "y", None]))
    sql = f'INSERT INTO {t} AS r1 ("id", "a", "b") FROM ARROW $2' + ADD + ' WHERE (r1."a" > $1)'
    assert wire(sql, ("int4", "10"), rows).tag == "INSERT 0 2"
    assert contents(wire, t) == [(1, 10, "d"), (2, 20, "d"), (3, 31, "x"), (4, 1, "y")]
    # the query engine's work
    sql = f'INSERT INTO {t} AS r1 ("id", "a", "b") FROM ARROW $1 ON CONFLICT ("id") DO UPDATE SET "b" = ' \
          '((r1."b" || excluded."b") || CASE WHEN (excluded."a" > r1."a") THEN $2 ELSE $3 END)'
    rows = batch(id=("int8", [3, 4, 5]), a=("int4", [99, 0, 0]), b=("text", ["1", "2", "3"]))
    assert wire(sql, rows, ("text", "up"), ("text", "down")).tag == "INSERT 0 3"
    assert contents(wire, t) == [(1, 10, "d"), (2, 20, "d"), (3, 31, "x1up"), (4, 1, "y2down"), (5, 0, "3")]


def test_a_row_is_changed_once_by_a_statement(wire: Wire, t: str) -> None:
    sql = f'INSERT INTO {t} AS r1 ("id", "a", "b") FROM ARROW $1' + ADD
    twice = batch(id=("int8", [1, 1]), a=("int4", [1, 1]), b=("text", ["x", "y"]))
    once = batch(id=("int8", [1]), a=("int4", [1]), b=("text", ["x"]))
    wire.fails("21000", sql, twice)
    assert wire(sql, once, txn=TXN, snap=1).tag == "INSERT 0 1"
    wire.fails("21000", sql, once, txn=TXN, snap=1)
    wire("ROLLBACK")
    assert wire(sql, once).tag == "INSERT 0 1"
    assert wire(sql + ' WHERE (r1."a" < excluded."a")', twice).tag == "INSERT 0 0"
    assert contents(wire, t) == [(1, 1, "x")]


def test_a_conflict_target_is_the_key(wire: Wire, t: str, mine: str) -> None:
    wire.fails("42P10", f'INSERT INTO {t} ("id") VALUES ($1) ON CONFLICT ("a") DO NOTHING', ("int8", "1"))
    wire.fails("42P10", f'INSERT INTO {t} ("id") FROM ARROW $1 ON CONFLICT ("a") DO NOTHING', batch(id=("int8", [1])))
    sql = f'INSERT INTO {mine} AS r1 ("id", "v") VALUES ($1, $2) ON CONFLICT ("id") DO UPDATE SET "v" = (r1."v" || $2)'
    for user in ("a", "b", "a"):
        assert wire(sql, ("int4", "1"), ("text", user), user=user).tag == "INSERT 0 1"
    assert contents(wire, mine, '"v"', user="a") == [("aa",)]


# ---------- computing with the row ----------
def test_double_precision_is_computed_as_postgresql_does(wire: Wire, db: Client, ns: str) -> None:
    db.run("CREATE TABLE f (id bigint PRIMARY KEY, v double precision)")
    table = f'"{ns}"."f"'
    rows = batch(id=("int8", [1, 2, 3]), v=("float8", [1.5, None, 1e308]))
    wire(f'INSERT INTO {table} ("id", "v") FROM ARROW $1', rows)

    def compute(sign: str, key: str, operand: str) -> tuple[object, ...]:
        sql = f'UPDATE {table} SET "v" = ("v" {sign} $1) WHERE ("id" = $2)'
        assert wire(sql, ("float8", operand), ("int8", key), txn=another(), commit=True).tag == "UPDATE 1"
        return contents(wire, table, '"v"')[int(key) - 1]

    assert compute("+", "1", "0.25") == (1.75,)
    assert compute("-", "1", "2") == (-0.25,)
    assert compute("*", "1", "4") == (-1.0,)
    assert compute("+", "2", "1") == (None,)
    assert compute("*", "1", "Infinity") == (-float("inf"),)
    assert compute("+", "1", "1e308") == (-float("inf"),)
    update = f'UPDATE {table} SET "v" = ("v" {{}} $1) WHERE ("id" = $2)'
    for sign, operand, message in (("+", "1e308", "overflow"), ("*", "-10", "overflow"), ("*", "1e-320", None),
                                   ("*", "1e-320", "underflow")):
        arguments = update.format(sign), ("float8", operand), ("int8", "3")
        if message is None:
            assert wire(*arguments).tag == "UPDATE 1"
        else:
            assert wire.fails("22003", *arguments).message == f"value out of range: {message}"


# ---------- much RETURNING ----------
@pytest.mark.parametrize("sql", [
    'DELETE FROM {t} RETURNING "id", "b", "a"',
    'UPDATE {t} SET "a" = ("id" + $1) RETURNING "id", "b", "a"',
    'UPDATE {t} r1 SET "a" = (r1."id" + $1) FROM {u} r2 WHERE (r2."id" = r1."id") RETURNING r1."id", r1."b", r1."a"',
], ids=["DELETE", "UPDATE", "UPDATE FROM"])
def test_rows_of_returning_wait_on_the_disk(wire: Wire, db: Client, ns: str, t: str, server: KalamServer, sql: str
                                            ) -> None:
    """More than a bound in memory goes to a file, which goes with the cursor."""
    width, count = 6000, 16_000
    db.run("CREATE TABLE u (id bigint PRIMARY KEY)")
    db.run(f"INSERT INTO t SELECT i, i, repeat('w', {width} - length(i::text)) || i FROM generate_series(1, {count}) i")
    db.run(f"INSERT INTO u SELECT id FROM t WHERE id > {count // 4}")
    maps = Path(f"/proc/{server.pid}/maps")
    params = [] if "DELETE" in sql else [("int8", "5")]
    first = wire(sql.format(t=t, u=f'"{ns}"."u"'), *params, txn=TXN, arrow=True)
    assert "kalam-query-" in maps.read_text()
    chunk, rows = first, first.rows
    if "DELETE" in sql:  # nobody wants the rest
        wire("ROLLBACK")
        assert wire(f'SELECT count(*) FROM {t}').rows == [(count,)]
        wait_until(lambda: "kalam-query-" not in maps.read_text(), "the file's end")
        return
    while chunk.cursor is not None:
        assert sum(len(row[1]) for row in chunk.rows) < 16 << 20
        chunk = wire(f"FETCH 10000 FROM {chunk.cursor}", txn=TXN)
        rows += chunk.rows
    changed = range(count // 4 + 1 if "FROM {u}" in sql else 1, count + 1)
    assert first.tag.split()[:2] == [sql.split()[0], str(len(changed))]
    assert [(row[0], row[1].lstrip("w"), row[2]) for row in sorted(rows)] == [
        (i, str(i), i + 5) for i in changed]
    wire("ROLLBACK")
    assert wire(f'SELECT count(*) FROM {t}').rows == [(count,)]
    wait_until(lambda: "kalam-query-" not in maps.read_text(), "the file's end")
