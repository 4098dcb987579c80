"""Transactions over two servers: what is reported of a COMMIT is what has happened on each, and nobody is forgotten.

There is no moment at which both commit. What tells beforehand that it will not commit stops the other; a failure after
the first has committed says which one did.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import pytest

from support.ports import wait_until
from support.server import KalamServer

from .ddl import Session
from .shards import Shards

pytestmark = pytest.mark.pg


class Both:
    """Table ta on server a, tb on b, heap here; rows seen by another session over connections of its own."""

    def __init__(self, shards: Shards, other: Session) -> None:
        self.shards, self.db, self.other, self.a, self.b = shards, shards.db, other, shards.a, shards.b
        shards.table("ta", "a")
        shards.table("tb", "b")
        self.db("CREATE TABLE heap (id int)")
        other(f"SET search_path = {shards.ns}, public")

    def write(self, i: int) -> None:
        for table in ("ta", "tb"):
            self.db(f"INSERT INTO {table} VALUES ({i}, 'x')")
        self.db(f"INSERT INTO heap VALUES ({i})")

    def rows(self) -> list[list[int]]:
        return [[row[0] for row in self.other(f"SELECT id FROM {t} ORDER BY id")] for t in ("ta", "tb", "heap")]

    def where(self, shard: str) -> str:
        return f"KalamDB at 127.0.0.1:{getattr(self.shards, shard).port}"


@pytest.fixture(params=["false", "true"], ids=["one by one", "parallel"])
def both(request: pytest.FixtureRequest, shards: Shards, other: Session) -> Both:
    shards.options(parallel_commit=request.param, parallel_abort=request.param)
    return Both(shards, other)


class Commit(threading.Thread):
    def __init__(self, db: Session) -> None:
        super().__init__()
        self.db = db
        self.error: psycopg.Error | None = None
        self.start()

    def run(self) -> None:
        try:
            self.db("COMMIT")
        except psycopg.Error as error:
            self.error = error

    def end(self) -> psycopg.Error | None:
        self.join(40)
        assert not self.is_alive()
        return self.error


def test_commit_rollback_and_savepoints(both: Both) -> None:
    db = both.db
    db("BEGIN")
    both.write(1)
    db("COMMIT")
    db("BEGIN")
    both.write(2)
    db("ROLLBACK")
    db("BEGIN")
    both.write(3)
    db("SAVEPOINT s")
    both.write(4)
    db("SAVEPOINT deeper")
    db("UPDATE ta SET id = 40 WHERE id = 4; DELETE FROM tb WHERE id = 3")
    db("ROLLBACK TO deeper; ROLLBACK TO s")
    both.write(5)
    db("RELEASE s")
    db(
        "DO $$ BEGIN BEGIN INSERT INTO ta VALUES (6, 'x'); INSERT INTO tb VALUES (5, 'twice');"
        " EXCEPTION WHEN unique_violation THEN INSERT INTO tb VALUES (7, 'x'); END; END $$"
    )
    db("COMMIT")
    assert both.rows() == [[1, 3, 5], [1, 3, 5, 7], [1, 3, 5]]
    db("BEGIN; INSERT INTO ta VALUES (8, 'x')")
    db.fails("INSERT INTO tb VALUES (1, 'twice')", "23505")
    db("COMMIT")  # is a rollback
    assert both.rows() == [[1, 3, 5], [1, 3, 5, 7], [1, 3, 5]]


LONE: dict[str, tuple[str, list[list[int]]]] = {
    "insert from the other": ("INSERT INTO ta SELECT id + 10, v FROM tb WHERE id = 1", [[1, 2, 11], [1, 2]]),
    "delete using the other": ("DELETE FROM ta USING tb WHERE tb.id = ta.id AND tb.id = 1", [[2], [1, 2]]),
    "both in one statement": (
        "WITH d AS (DELETE FROM ta RETURNING id, v) INSERT INTO tb SELECT id + 10, v FROM d",
        [[], [1, 2, 11, 12]],
    ),
    "by a function": ("INSERT INTO ta SELECT other(3), 'x'", [[1, 2, 3], [1, 2, 103]]),
    "by a BEFORE trigger": ("INSERT INTO tb VALUES (7, 'x')", [[1, 2, 1007], [1, 2, 7]]),
    "by an AFTER trigger": ("UPDATE ta SET id = 50 WHERE id = 2", [[1, 50], [1, 2, 2050]]),
    "two statements at once": (
        "INSERT INTO ta VALUES (3, 'x'); INSERT INTO tb VALUES (4, 'x')",
        [[1, 2, 3], [1, 2, 4]],
    ),
}


@pytest.mark.parametrize("name", LONE)
def test_statements_outside_a_block(both: Both, name: str) -> None:
    """A transaction's last words are for one server only if there is no other."""
    db = both.db
    db("INSERT INTO ta VALUES (1, 'x'), (2, 'x'); INSERT INTO tb VALUES (1, 'x'), (2, 'x')")
    if "function" in name:
        db(
            "CREATE FUNCTION other(int) RETURNS int LANGUAGE sql VOLATILE AS "
            "$$ INSERT INTO tb VALUES ($1 + 100, 'x') RETURNING $1 $$"
        )
    if "trigger" in name:
        when, table, target, n = (
            ("BEFORE INSERT", "tb", "ta", 1000) if "BEFORE" in name else ("AFTER UPDATE", "ta", "tb", 2000)
        )
        db(
            "CREATE FUNCTION copies() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN INSERT INTO {target} VALUES (NEW.id + {n}, 'x'); RETURN NEW; END $$;"
            f"CREATE TRIGGER t {when} ON {table} FOR EACH ROW EXECUTE FUNCTION copies()"
        )
    sql, wanted = LONE[name]
    db(sql)
    assert both.rows()[:2] == (wanted if name != "by an AFTER trigger" else [[1, 50], [1, 2, 2050]])


def test_who_is_gone_before_stops_all(both: Both) -> None:
    both.db("BEGIN")
    both.write(1)
    both.b.cut()
    error = both.db.fails("COMMIT", "08006", "undone", both.where("b"))
    assert "committed" not in (error.diag.message_detail or "")
    assert both.rows() == [[], [], []]


def test_server_killed_before_commit(both: Both, second_server: KalamServer) -> None:
    both.db("BEGIN")
    both.write(1)
    second_server.kill()
    both.b.wait_until_alone()  # what the proxy has not passed on yet cannot be known before a has committed
    both.db.fails("COMMIT", "08006", "undone")
    second_server.start()
    assert both.rows() == [[], [], []]
    both.db("BEGIN")
    both.write(2)
    both.db("COMMIT")
    assert both.rows() == [[2], [2], [2]]


def told(both: Both, shard: str) -> str:
    """Which server failed and which one had committed, for an error at COMMIT."""
    return f"changes on {both.where(shard)} are committed"


def commit_fails(both: Both) -> tuple[psycopg.Error, list[list[int]]]:
    error = Commit(both.db).end()
    assert error is not None
    for proxy in (both.a, both.b):
        proxy.resume()
    return error, both.rows()


@pytest.mark.parametrize("silent", ["a", "b"])
def test_one_commit_does_not_arrive(both: Both, silent: str) -> None:
    """The error names the server that lost it, and the other where that had committed already."""
    both.db("BEGIN")
    both.write(1)
    getattr(both, silent).trap(r"COMMIT\0", "cut")
    error, rows = commit_fails(both)
    other = "b" if silent == "a" else "a"
    assert error.sqlstate == "08006"
    assert both.where(silent) in (error.diag.message_primary or "")
    detail = error.diag.message_detail or ""
    assert "did not commit" in detail
    committed = rows["ab".index(other)] == [1]
    assert (told(both, other) in detail) == committed
    assert rows["ab".index(silent)] == rows[2] == []
    if both_parallel(both):
        assert committed
    both.db("BEGIN")
    both.write(2)
    both.db("COMMIT")


def both_parallel(both: Both) -> bool:
    return bool(both.db("SELECT FROM pg_foreign_server WHERE 'parallel_commit=true' = ANY (srvoptions) LIMIT 1"))


def test_lost_answer_is_asked_for(both: Both) -> None:
    for silent in ("a", "b"):
        i = 1 + "ab".index(silent)
        both.db("BEGIN")
        both.write(i)
        getattr(both, silent).trap(r"COMMIT\0", "cut answer")
        both.db("COMMIT")
        assert both.rows() == [list(range(1, i + 1))] * 3


def test_parallel_commits_are_all_told_at_once(shards: Shards, other: Session) -> None:
    shards.options(parallel_commit="true")
    both = Both(shards, other)
    for silent, asked in ((both.a, both.b), (both.b, both.a)):
        both.db("BEGIN")
        both.write(1 if silent is both.a else 2)
        trap = silent.trap(r"COMMIT\0", "hold")
        before = asked.count(r"COMMIT\0")
        commit = Commit(both.db)
        trap.wait()
        asked.wait_for(r"COMMIT\0", before)
        silent.resume()
        assert commit.end() is None
    assert both.rows() == [[1, 2]] * 3


def test_cancel_during_commit(both: Both) -> None:
    """The answer of one does not come; a cancel ends the wait, and what is known of each is told."""
    both.db("BEGIN")
    both.write(1)
    trap = both.b.trap(r"COMMIT\0", "hold answer")
    commit = Commit(both.db)
    trap.wait()
    wait_until(lambda: both.other("SELECT id FROM tb") == [(1,)], "the commit on the server")
    both.other("SELECT pg_cancel_backend(%s)", both.db.conn.info.backend_pid)
    error = commit.end()
    assert error is not None
    assert error.sqlstate == "08007"
    primary, detail = error.diag.message_primary or "", error.diag.message_detail or ""
    assert both.where("b") in primary + detail
    both.b.resume()
    rows = both.rows()
    assert rows[1] == [1]
    if both.where("a") not in primary:  # told at the same time, its answer may be on its way as well
        assert (told(both, "a") in detail) == (rows[0] == [1])


def hang(both: Both) -> None:
    for proxy in (both.a, both.b):
        proxy.hold()


def resume(both: Both) -> None:
    for proxy in (both.a, both.b):
        proxy.resume()


@pytest.mark.parametrize("work", [hang, lambda both: both.b.cut()], ids=["hang", "cut"])
def test_abort_raises_nothing(both: Both, work: Callable[[Both], None]) -> None:
    for end in ("ROLLBACK", "ROLLBACK TO s; INSERT INTO heap VALUES (9)"):
        both.db("BEGIN; INSERT INTO ta VALUES (1, 'x'); SAVEPOINT s")
        both.write(2)
        work(both)
        both.db(end)
        resume(both)
        if "TO" in end:
            both.db.fails("COMMIT", "08006", "undone")
        both.db("ROLLBACK")
    assert both.rows() == [[], [], []]


def test_readers_do_not_delay(both: Both) -> None:
    """A server that was only read is told of the end, and not waited for."""
    both.db("INSERT INTO tb VALUES (1, 'x'), (2, 'x')")
    trap = both.b.trap(r"COMMIT\0", "hold")
    both.db("INSERT INTO ta SELECT id + 10, v FROM tb")
    trap.wait()
    both.b.resume()
    assert both.rows()[0] == [11, 12]
