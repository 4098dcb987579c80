"""Faults at each step of a transaction: what PostgreSQL reports is what has happened, and nothing is half done.

| step | what is lost | what the client is told |
|---|---|---|
| first statement of a transaction | either way | nothing: it is repeated, for nothing of it remained |
| a later statement, FETCH, savepoint | either way | 08006, and the transaction is undone on both sides |
| COMMIT, or a lone write that brings it | the message | 08006, "did not commit", undone on both sides |
| | the answer | success, with the right count: the server is asked by the transaction's id |
| | the answer, and the server comes back | the same |
| | the answer, and the server is gone for good, or the wait is ended | 08007, with the id to ask by later |
| ROLLBACK, end of the session | either way | nothing: the server undoes what has no client |

Each fault is at a message, not at a moment: nothing here depends on luck.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable

import psycopg
import pytest

from support.ports import wait_until
from support.proxy import Fault, Proxy
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

BEFORE = [(1, "a"), (2, "b"), (3, "c")]
#: statement (autocommit, or with COMMIT after it in a block), rows afterwards, its count
WRITES: dict[str, tuple[str, list[tuple[int, str]], int]] = {
    "lone insert": ("INSERT INTO {t} VALUES (9, 'n')", [*BEFORE, (9, "n")], 1),
    "insert": ("INSERT INTO {t} VALUES (8, 'n'), (9, 'n')", [*BEFORE, (8, "n"), (9, "n")], 2),
    "update": ("UPDATE {t} SET body = 'u' WHERE id > 1", [(1, "a"), (2, "u"), (3, "u")], 2),
    "delete": ("DELETE FROM {t} WHERE id < 3", [(3, "c")], 2),
    "update of a key": ("UPDATE {t} SET id = 7 WHERE id = 3", [(1, "a"), (2, "b"), (7, "c")], 1),
    "update by rows": ("UPDATE {t} SET body = lower(body) || 'u' WHERE id > 1", [(1, "a"), (2, "bu"), (3, "cu")], 2),
    "delete by rows": ("DELETE FROM {t} WHERE lower(body) < 'c'", [(3, "c")], 2),
}


class Faults:
    """A table behind the proxy, a local one, and a look at the first that does not go through the proxy."""

    def __init__(self, db: Session, other: Session, ns: str, proxy: Proxy) -> None:
        self.db, self.other, self.proxy = db, other, proxy
        self.table, self.local = f"{ns}.t", f"{ns}.local"
        db(f"CREATE TABLE {self.table} (id bigint PRIMARY KEY, body text) USING kalamdb WITH (type = 'shared', "
           f"server = '{ns}_proxy', system_columns = 'false')")
        db(f"CREATE TABLE {self.local} (id int)")
        db(f"INSERT INTO {self.table} VALUES (1, 'a'), (2, 'b'), (3, 'c')")
        other(f"CREATE FOREIGN TABLE {ns}.seen (id bigint OPTIONS (key '1'), body text) SERVER kalam_server"
              f" OPTIONS (namespace '{ns}', \"table\" 't')")
        self.seen = f"{ns}.seen"

    def rows(self) -> list[tuple[int, str]]:
        return [(row[0], row[1]) for row in self.other(f"SELECT id, body FROM {self.seen} ORDER BY id")]

    def locals(self) -> int:
        return int(self.other.value(f"SELECT count(*) FROM {self.local}"))

    def usable(self, rows: list[tuple[int, str]], local: int = 0) -> None:
        """Nothing else is there, no lock is left, and the session goes on."""
        assert self.rows() == rows
        assert self.locals() == local
        self.other("SET lock_timeout = '10s'")
        self.other(f"UPDATE {self.seen} SET body = body")
        self.db(f"INSERT INTO {self.table} VALUES (100, 'after'), (101, 'after')")
        self.db(f"DELETE FROM {self.table} WHERE id >= 100")
        assert self.rows() == rows


@pytest.fixture
def faults(db: Session, other: Session, ns: str, proxy: Proxy) -> Faults:
    return Faults(db, other, ns, proxy)


class Running(threading.Thread):
    """One statement of a session in a thread; `end` gives its row count, or raises its error."""

    def __init__(self, session: Session, sql: str) -> None:
        super().__init__()
        self.session, self.sql = session, sql
        self.count = -1
        self.error: psycopg.Error | None = None
        self.start()

    def run(self) -> None:
        try:
            self.count = self.session.conn.execute(self.sql).rowcount
        except psycopg.Error as error:
            self.error = error

    def end(self) -> int:
        self.join(40)
        assert not self.is_alive(), self.sql
        if self.error is not None:
            raise self.error
        return self.count


def commits(name: str, block: bool) -> str:
    """The message that brings the COMMIT: its own, or a lone statement's last rows."""
    return '"commit":true' if not block and (name == "lone insert" or "by rows" in name) else r"COMMIT\0"


def lose_answer(faults: Faults, sql: str, pattern: str, rows: list[tuple[int, str]],
                meanwhile: Callable[[], object] = lambda: None) -> Running:
    """The statement runs, and the server commits; its answer never comes, and the connection breaks."""
    faults.proxy.trap(pattern, "hold answer")
    running = Running(faults.db, sql)
    wait_until(lambda: faults.rows() == rows, "the commit on the server")
    meanwhile()
    faults.proxy.cut()
    return running


# ---------- COMMIT ----------
@pytest.mark.parametrize("block", [False, True], ids=["autocommit", "block"])
@pytest.mark.parametrize("name", WRITES)
def test_commit_that_never_arrives(faults: Faults, name: str, block: bool) -> None:
    sql, _, count = WRITES[name]
    sql = sql.format(t=faults.table)
    if block:
        faults.db("BEGIN")
        faults.db(f"INSERT INTO {faults.local} VALUES (1)")
        assert faults.db.conn.execute(sql).rowcount == count
        sql = "COMMIT"
    trap = faults.proxy.trap(commits(name, block), "cut")
    error = faults.db.fails(sql, "08006", "did not commit")
    trap.wait()
    assert "lost during COMMIT" in str(error)
    faults.usable(BEFORE)


@pytest.mark.parametrize("block", [False, True], ids=["autocommit", "block"])
@pytest.mark.parametrize("name", WRITES)
def test_commit_whose_answer_is_lost(faults: Faults, name: str, block: bool) -> None:
    sql, rows, count = WRITES[name]
    sql = sql.format(t=faults.table)
    if block:
        faults.db("BEGIN")
        faults.db(f"INSERT INTO {faults.local} VALUES (1)")
        assert faults.db.conn.execute(sql).rowcount == count
        sql = "COMMIT"
    assert lose_answer(faults, sql, commits(name, block), rows).end() == (-1 if block else count)
    faults.usable(rows, 1 if block else 0)


@pytest.mark.parametrize(
    "sql",
    [
        "DO $$BEGIN INSERT INTO {t} VALUES (9, 'n'); INSERT INTO {l} VALUES (1); END$$",
        "INSERT INTO {l} VALUES (1); INSERT INTO {t} VALUES (9, 'n')",
        "DO $$BEGIN INSERT INTO {l} VALUES (1); INSERT INTO {t} VALUES (9, 'n'); COMMIT; END$$",
        "WITH w AS (INSERT INTO {t} VALUES (9, 'n') RETURNING id) INSERT INTO {l} SELECT id FROM w",
    ],
    ids=["DO", "several statements", "procedural COMMIT", "CTE"],
)
@pytest.mark.parametrize("lost", ["message", "answer"])
def test_commit_of_more_than_a_statement(faults: Faults, sql: str, lost: str) -> None:
    sql = sql.format(t=faults.table, l=faults.local)
    if lost == "message":
        trap = faults.proxy.trap(r"COMMIT\0", "cut")
        faults.db.fails(sql, "08006", "did not commit")
        trap.wait()
        faults.usable(BEFORE)
    else:
        lose_answer(faults, sql, r"COMMIT\0", [*BEFORE, (9, "n")]).end()
        faults.usable([*BEFORE, (9, "n")], 1)


def test_server_restarts_between_commit_and_question(faults: Faults, server: KalamServer) -> None:
    def restart() -> None:
        server.kill()
        server.start()

    sql = f"UPDATE {faults.table} SET body = 'u' WHERE id > 1"
    assert lose_answer(faults, sql, r"COMMIT\0", [(1, "a"), (2, "u"), (3, "u")], restart).end() == 2
    faults.usable([(1, "a"), (2, "u"), (3, "u")])


def test_server_gone_for_good(faults: Faults, server: KalamServer, ns: str) -> None:
    faults.db(f"ALTER SERVER {ns}_proxy OPTIONS (ADD timeout '2000')")
    faults.db("BEGIN")
    faults.db(f"INSERT INTO {faults.local} VALUES (1)")
    faults.db(f"INSERT INTO {faults.table} VALUES (9, 'n')")
    running = lose_answer(faults, "COMMIT", r"COMMIT\0", [*BEFORE, (9, "n")], server.kill)
    with pytest.raises(psycopg.Error) as caught:
        running.end()
    assert caught.value.sqlstate == "08007"
    assert "it is not known whether KalamDB at 127.0.0.1:" in str(caught.value)
    hint = caught.value.diag.message_hint or ""
    server.start()
    asked = re.search(r"SHOW TRANSACTION OUTCOME '(\w{32})'", hint)
    assert asked is not None, hint
    assert faults.other.remote(asked.group()) == [{"outcome": "committed"}]
    faults.usable([*BEFORE, (9, "n")])


def test_wait_for_the_outcome_is_cancelled(faults: Faults, server: KalamServer) -> None:
    """It must not look as if the statement had been cancelled."""
    def vanish() -> None:
        faults.proxy.refuse()
        server.kill()

    running = lose_answer(faults, f"INSERT INTO {faults.table} VALUES (9, 'n')", '"commit":true', [*BEFORE, (9, "n")],
                          vanish)
    faults.db.conn.cancel_safe()
    with pytest.raises(psycopg.Error) as caught:
        running.end()
    assert caught.value.sqlstate == "08007"
    assert faults.db("SELECT 1") == [(1,)]
    server.start()
    faults.proxy.accept()
    faults.usable([*BEFORE, (9, "n")])


def test_cancel_of_a_silent_commit(faults: Faults) -> None:
    """The answer is held, and so is what would say that the cancel came too late: nobody knows."""
    faults.db(f"SELECT * FROM {faults.table}")
    trap = faults.proxy.trap('"commit":true', "hold answer")
    faults.proxy.lose_cancels()
    running = Running(faults.db, f"INSERT INTO {faults.table} VALUES (9, 'n')")
    wait_until(lambda: faults.rows() == [*BEFORE, (9, "n")], "the commit on the server")
    faults.db.conn.cancel_safe()
    with pytest.raises(psycopg.Error) as caught:
        running.end()
    assert caught.value.sqlstate == "08007"
    trap.wait()
    faults.proxy.resume()
    faults.usable([*BEFORE, (9, "n")])


def test_cancel_that_comes_too_late_for_a_commit(faults: Faults) -> None:
    """The commit has happened on the server, so it happens here, too, and the cancel is forgotten."""
    faults.db("BEGIN")
    faults.db(f"INSERT INTO {faults.local} VALUES (1)")
    faults.db(f"INSERT INTO {faults.table} VALUES (9, 'n')")
    trap = faults.proxy.trap(r"COMMIT\0", "hold answer")
    running = Running(faults.db, "COMMIT")
    wait_until(lambda: faults.rows() == [*BEFORE, (9, "n")], "the commit on the server")
    faults.db.conn.cancel_safe()
    wait_until(lambda: faults.proxy.cancels > 0, "the cancel's arrival")
    trap.wait()
    faults.proxy.resume()
    running.end()
    faults.usable([*BEFORE, (9, "n")], 1)


# ---------- other steps ----------
@pytest.mark.parametrize("fault", ["cut", "cut answer"])
@pytest.mark.parametrize(
    ("sql", "pattern", "rows"),
    [
        ("INSERT INTO {t} VALUES (8, 'n'), (9, 'n')", "INSERT INTO", [*BEFORE, (8, "n"), (9, "n")]),
        ("UPDATE {t} SET body = 'u'", "UPDATE", [(1, "u"), (2, "u"), (3, "u")]),
        ("UPDATE {t} SET body = lower(body) || 'u'", "FOR UPDATE", [(1, "au"), (2, "bu"), (3, "cu")]),
        ("SELECT kalam_exec('DELETE FROM {t}', '{s}')", "DELETE FROM", []),
    ],
    ids=["insert", "update", "update by rows", "kalam_exec"],
)
@pytest.mark.parametrize("block", [False, True], ids=["autocommit", "block"])
def test_first_statement_is_repeated(
    faults: Faults, ns: str, fault: Fault, sql: str, pattern: str, rows: list[tuple[int, str]], block: bool
) -> None:
    """Nothing of it can have remained, and nothing was before it."""
    if block:
        faults.db("BEGIN")
    trap = faults.proxy.trap(pattern, fault)
    faults.db(sql.format(t=faults.table, s=f"{ns}_proxy"))
    trap.wait()
    if block:
        faults.db("COMMIT")
    faults.usable(rows)


@pytest.mark.parametrize("fault", ["cut", "cut answer"])
@pytest.mark.parametrize(
    ("sql", "pattern"),
    [
        ("INSERT INTO {t} VALUES (9, 'n')", "INSERT INTO"),
        ("INSERT INTO {t} SELECT g, 'n' FROM generate_series(10, 1000) g", "INSERT INTO"),
        ("UPDATE {t} SET body = 'u'", "UPDATE"),
        ("UPDATE {t} SET body = lower(body)", "FOR UPDATE"),
        ("DELETE FROM {t}", "DELETE FROM"),
        ("SELECT * FROM {t}", "SELECT"),
        ("SELECT kalam_exec('DELETE FROM {t}', '{s}')", "DELETE FROM"),
        ("DO $$BEGIN BEGIN INSERT INTO {t} VALUES (9, 'n'); EXCEPTION WHEN connection_failure THEN NULL; END;"
         " INSERT INTO {t} VALUES (10, 'n'); END$$", "INSERT INTO"),
    ],
    ids=["insert", "many", "update", "update by rows", "delete", "select", "kalam_exec", "exception block"],
)
def test_later_statement_fails(faults: Faults, ns: str, fault: Fault, sql: str, pattern: str) -> None:
    """What was before it is gone on the server: nothing goes on, not even after a savepoint or an exception."""
    db = faults.db
    db("BEGIN")
    db(f"INSERT INTO {faults.local} VALUES (1)")
    db(f"INSERT INTO {faults.table} VALUES (5, 'first')")
    db("SAVEPOINT s")
    trap = faults.proxy.trap(pattern, fault)
    db.fails(sql.format(t=faults.table, s=f"{ns}_proxy"), "08006")
    trap.wait()
    db.fails(f"SELECT 1 FROM {faults.table}", "25P02")
    db("ROLLBACK TO s")
    db.fails(f"INSERT INTO {faults.table} VALUES (6, 'second')", "08006")
    db("ROLLBACK TO s")
    db.fails("COMMIT", "08006")
    faults.usable(BEFORE)


@pytest.mark.parametrize("skip", [0, 1, 4])
@pytest.mark.parametrize("fault", ["cut", "cut answer"])
def test_statement_of_many_batches_is_all_or_nothing(faults: Faults, fault: Fault, skip: int) -> None:
    faults.db(f"ALTER FOREIGN TABLE {faults.table} OPTIONS (ADD batch_size '100')")
    trap = faults.proxy.trap("FROM ARROW", fault, skip=skip)
    insert = f"INSERT INTO {faults.table} SELECT g, 'n' FROM generate_series(10, 609) g"
    if skip == 0:
        faults.db(insert)  # the first batch was repeated
        faults.db(f"DELETE FROM {faults.table} WHERE id > 3")
    else:
        faults.db.fails(insert, "08006")
    trap.wait()
    faults.usable(BEFORE)


@pytest.mark.parametrize("fault", ["hold", "hold answer", "cut", "cut answer"])
@pytest.mark.parametrize("step", ["ROLLBACK", "ROLLBACK TO LEVEL", "read COMMIT"])
def test_ends_that_undo(faults: Faults, step: str, fault: Fault) -> None:
    """A silent server is waited for within bounds, then the connection goes, and with it the transaction."""
    db = faults.db
    db("BEGIN")
    if step == "read COMMIT":
        db(f"SELECT * FROM {faults.table}")
        faults.proxy.trap(r"COMMIT\0", fault)
        db("COMMIT")
        faults.proxy.resume()
        faults.usable(BEFORE)
        return
    db(f"INSERT INTO {faults.table} VALUES (5, 'first')")
    db("SAVEPOINT s")
    db(f"UPDATE {faults.table} SET body = 'second'")
    trap = faults.proxy.trap(step, fault)
    if step == "ROLLBACK":
        db("ROLLBACK")
    else:
        db("ROLLBACK TO s")
        db.fails("COMMIT" if fault.startswith("cut") else f"SELECT * FROM {faults.table}", "08006")
        db("ROLLBACK")
    trap.wait()
    faults.proxy.resume()
    faults.usable(BEFORE)


# ---------- anywhere ----------
SHAPES = [
    ["INSERT INTO {t} VALUES ({i}, 'x')"],
    ["INSERT INTO {t} VALUES ({i}, 'x'), (-{i}, 'x')"],
    ["BEGIN", "INSERT INTO {l} VALUES ({i})", "INSERT INTO {t} VALUES ({i}, 'x')", "COMMIT"],
    ["BEGIN", "INSERT INTO {t} VALUES ({i}, 'x')", "SELECT count(*) FROM {t}", "SAVEPOINT s",
     "UPDATE {t} SET body = 'y'", "ROLLBACK TO s", "INSERT INTO {l} VALUES ({i})", "COMMIT"],
    ["BEGIN", "INSERT INTO {l} VALUES ({i})", "DECLARE c CURSOR FOR SELECT * FROM {t}", "FETCH 1 FROM c",
     "UPDATE {t} SET id = {i}, body = lower('X') WHERE id = {i} - 1000", "INSERT INTO {t} VALUES ({i}, 'x')", "COMMIT"],
    ["DO $$BEGIN BEGIN INSERT INTO {t} VALUES ({i}, 'x'); PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN"
     " INSERT INTO {t} VALUES ({i}, 'x'); END; INSERT INTO {l} VALUES ({i}); END$$"],
]


def attempt(db: Session, statements: list[str]) -> bool:
    """Whether the client was told of success."""
    try:
        for statement in statements:
            db(statement)
    except psycopg.Error as error:
        if error.sqlstate not in ("08000", "08001", "08006"):  # 08007 neither: the server can be asked
            raise
        db("ROLLBACK")
        return False
    return True


@pytest.mark.parametrize("seed", range(4))
def test_cut_anywhere(faults: Faults, seed: int) -> None:
    """At any message of any transaction: what the client was told is what is there, on both sides, and nothing else."""
    chance = random.Random(seed)
    expected: set[int] = {1, 2, 3}
    local: set[int] = set()
    for i in range(10, 70):
        shape = chance.choice(SHAPES)
        fault: Fault = chance.choice(["cut", "cut answer"])
        faults.proxy.trap("", fault, after=chance.randint(0, 60), skip=chance.randint(0, 7 * len(shape)))
        if attempt(faults.db, [sql.format(t=faults.table, l=faults.local, i=i) for sql in shape]):
            expected |= {i, -i} if "-{i}" in shape[0] else {i}
            local |= {i} if any("{l}" in sql for sql in shape) else set()
        faults.proxy.resume()
        assert {row[0] for row in faults.rows()} == expected, (i, shape, fault)
        assert {row[0] for row in faults.other(f"SELECT id FROM {faults.local}")} == local, (i, shape, fault)
    assert {row[1] for row in faults.rows() if row[0] > 9} == {"x"}
    assert 5 < len(expected) < 120
