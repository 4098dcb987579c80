"""A statement that is to end ends, whatever the server is doing; nothing of it stays, and the session goes on.

`long` statements take minutes if nobody ends them. The deadline is generous against a busy machine; the promise is one
second, and its own waits for the server are as short: who asks for locks asks again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import psycopg
import pytest

from support.ports import wait_until
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

DEADLINE = 10.0
#: of short series, which are in memory before it begins to compute
CROSS = ("SELECT count(*) FROM generate_series(1, 10000) a(x), generate_series(1, 10000) b(y),"
         " generate_series(1, 10000) c(z) WHERE (x + y + z) % 7 = 3")


@pytest.fixture
def table(db: Session, ns: str) -> str:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, body text) USING kalamdb WITH (type = 'shared')")
    db(f"INSERT INTO {ns}.t SELECT g, 'body ' || g FROM generate_series(1, 20000) g")
    return f"{ns}.t"


LONG = {
    "scan": "SELECT count(*) FROM {t} a, {t} b, {t} c WHERE a.id + b.id + c.id < 0",
    "remote query": f"SELECT kalam_exec('{CROSS}')",
    "row lock": "UPDATE {t} SET body = 'mine' WHERE id = 1",
    "row lock by a read": "SELECT * FROM {t} WHERE id = 1 FOR UPDATE",
    "row lock by a key": "INSERT INTO {t} SELECT g FROM generate_series(100001, 101000) g UNION ALL SELECT 100000",
    "row lock at commit": "INSERT INTO {t} VALUES (100000, 'mine')",
    "remote row lock": "SELECT kalam_exec('UPDATE {t} SET body = ''x'' WHERE id = 1')",
    "insert": "INSERT INTO {t} SELECT g, repeat('x', 50) FROM generate_series(100001, 300000000) g",
    "update": "UPDATE {t} SET body = a.body FROM generate_series(1, 100000) g, {t} a WHERE {t}.id = a.id + g",
    "delete and insert": "WITH gone AS (DELETE FROM {t} WHERE id > 10 RETURNING id)"
    " INSERT INTO {t} SELECT id + 1000000 + g FROM gone, generate_series(1, 1000000) g",
    "sort": "SELECT * FROM {t} a, {t} b, generate_series(1, 100) ORDER BY a.body || b.body",
}


def started(dsn: str, pid: int) -> None:
    """Waits until the session's statement is under way."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        sql = "SELECT state = 'active' AND now() - query_start > '100 ms' FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: (conn.execute(sql, [pid]).fetchone() or [False])[0], "the statement's start")


class Running(threading.Thread):
    """One statement of a session; `end` waits for it and returns its error."""

    def __init__(self, session: Session, sql: str) -> None:
        super().__init__()
        self.session, self.sql = session, sql
        self.error: psycopg.Error | None = None
        self.start()

    def run(self) -> None:
        try:
            self.session.conn.execute(self.sql)
        except psycopg.Error as error:
            self.error = error

    def end(self) -> psycopg.Error:
        self.join(DEADLINE)
        assert not self.is_alive(), f"still running: {self.sql}"
        assert self.error is not None, f"it finished by itself: {self.sql}"
        return self.error


def rows(dsn: str, table: str) -> list[Any]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        text = "count(*) FILTER (WHERE body LIKE 'body %')"
        return conn.execute(f"SELECT count(*), sum(id), {text} FROM {table}").fetchall()


WHOLE = [(20000, 200010000, 20000)]


def all_locks_free(dsn: str, table: str) -> None:
    """Every row can be locked at once, by a session that waits for none."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        assert conn.execute(f"SELECT count(*) FROM (SELECT FROM {table} FOR UPDATE NOWAIT) t").fetchall() == [(20000,)]
        conn.execute(f"INSERT INTO {table} (id) VALUES (100000), (100500), (1000999)")
        conn.execute(f"DELETE FROM {table} WHERE id IN (100000, 100500, 1000999)")


def frees(dsn: str, table: str) -> bool:
    try:
        all_locks_free(dsn, table)
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def wait_until_free(dsn: str, table: str) -> None:
    wait_until(lambda: frees(dsn, table), "the end of its remote transaction", DEADLINE)


def prepare(name: str, table: str, other: Session) -> str:
    """The statement; rows it is to wait for are locked."""
    if "row lock" in name:
        other("BEGIN")
        other(f"UPDATE {table} SET body = 'held' WHERE id = 1")
        other(f"INSERT INTO {table} (id) VALUES (100000)")
    return LONG[name].format(t=table)


@pytest.mark.parametrize("block", [False, True], ids=["autocommit", "block"])
@pytest.mark.parametrize("name", LONG)
def test_cancel(db: Session, other: Session, dsn: str, table: str, name: str, block: bool) -> None:
    sql = prepare(name, table, other)
    if block:
        db("BEGIN")
        db(f"INSERT INTO {table} VALUES (-5, 'of the block')")
        db("SAVEPOINT s")
    running = Running(db, sql)
    started(dsn, db.conn.info.backend_pid)
    db.conn.cancel_safe()
    assert running.end().sqlstate == "57014"
    if block:
        db("ROLLBACK TO s")
        assert db(f"SELECT body FROM {table} WHERE id = -5") == [("of the block",)]
        db("ROLLBACK")
    assert db(f"SELECT count(*) FROM {table}") == [(20000,)]
    other("ROLLBACK")
    assert rows(dsn, table) == WHOLE
    wait_until_free(dsn, table)


@pytest.mark.parametrize("name", LONG)
def test_statement_timeout(db: Session, other: Session, dsn: str, table: str, name: str) -> None:
    sql = prepare(name, table, other)
    db("SET statement_timeout = '300ms'")
    begun = time.monotonic()
    assert db.fails(sql, "57014", "statement timeout")
    assert time.monotonic() - begun < DEADLINE
    db.without_timeout()
    assert db(f"SELECT count(*) FROM {table}") == [(20000,)]
    other("ROLLBACK")
    assert rows(dsn, table) == WHOLE
    wait_until_free(dsn, table)


@pytest.mark.parametrize("how", ["terminate", "disconnect"])
@pytest.mark.parametrize("name", LONG)
def test_session_that_ends(db: Session, other: Session, dsn: str, table: str, name: str, how: str) -> None:
    sql = prepare(name, table, other)
    pid = db.conn.info.backend_pid
    if how == "terminate":
        running = Running(db, sql)
        started(dsn, pid)
        other.value("SELECT pg_terminate_backend(%s)", pid)
        assert running.end().sqlstate in ("57P01", None)
    else:
        db("SET client_connection_check_interval = '200ms'")
        db.conn.pgconn.send_query(sql.encode())
        started(dsn, pid)
        db.conn.close()
    with psycopg.connect(dsn, autocommit=True) as conn:
        left = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: conn.execute(left, [pid]).fetchone() == (True,), "the backend's end", DEADLINE)
    other("ROLLBACK")
    assert rows(dsn, table) == WHOLE
    wait_until_free(dsn, table)


@pytest.mark.parametrize(("setting", "sqlstate"), [("lock_timeout", "55P03"), ("statement_timeout", "57014")])
@pytest.mark.parametrize("name", [name for name in LONG if "row lock" in name])
def test_lock_wait(db: Session, other: Session, table: str, name: str, setting: str, sqlstate: str) -> None:
    sql = prepare(name, table, other)
    db(f"SET {setting} = '200ms'")
    for _ in range(3):
        db.fails(sql, sqlstate)
    db("BEGIN")
    db("SAVEPOINT s")
    db.fails(sql, sqlstate)
    db("ROLLBACK TO s")
    db(f"SET {setting} = '60s'")
    db(f"UPDATE {table} SET body = 'mine' WHERE id = 2")
    db("COMMIT")
    assert db(f"SELECT id, body FROM {table} WHERE id < 3 ORDER BY id") == [(1, "body 1"), (2, "mine")]
    other("ROLLBACK")
    db(sql)


# ---------- COPY ----------
@pytest.mark.parametrize("how", ["cancel", "terminate", "disconnect", "fail"])
def test_copy(db: Session, other: Session, dsn: str, table: str, how: str) -> None:
    pid = db.conn.info.backend_pid

    def copy_rows() -> None:
        with db.conn.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN") as copy:
            for i in range(30_000):
                copy.write_row((100_001 + i, "copied"))
            if how == "disconnect":
                db.conn.pgconn.finish()
            elif how == "fail":
                raise psycopg.DataError("the client's own")
            else:
                other.value(f"SELECT pg_{how}_backend(%s)", pid)
            for i in range(1_000_000):
                copy.write_row((200_001 + i, "copied"))

    with pytest.raises(psycopg.Error):
        copy_rows()
    if how in ("cancel", "fail"):
        assert db(f"SELECT count(*) FROM {table}") == [(20000,)]
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET lock_timeout = '10s'")
        conn.execute(f"INSERT INTO {table} VALUES (100001), (200001)")  # waits for the end of the COPY's transaction
        conn.execute(f"DELETE FROM {table} WHERE id IN (100001, 200001)")
    assert rows(dsn, table) == WHOLE


# ---------- the next statement ----------
def test_cancel_hits_no_other_statement(db: Session, table: str, dsn: str) -> None:
    """A hundred cancels at any moment of a statement: what comes next never feels one."""
    outcomes = set()
    for i in range(100):
        running = Running(db, f"SELECT count(*), min(body) FROM {table} WHERE id > {i}")
        for _ in range(i * 400):  # later and later
            pass
        db.conn.cancel_safe()
        running.join(DEADLINE)
        assert not running.is_alive()
        outcomes.add(running.error.sqlstate if running.error else None)
        try:
            db("SELECT 1")  # takes a cancel that came when all was over
        except psycopg.errors.QueryCanceled:
            continue
        assert db(f"SELECT count(*) FROM {table} WHERE id <= 10") == [(10,)]
        db(f"UPDATE {table} SET body = body WHERE id = {i + 1}")
    assert outcomes <= {None, "57014"}
    assert rows(dsn, table) == WHOLE


def test_timeouts_in_quick_succession(db: Session, other: Session, table: str) -> None:
    """The server is told to cancel each time; the statement after it is not hit, in or out of a block."""
    other("BEGIN")
    other(f"UPDATE {table} SET body = 'held' WHERE id = 1")
    for i in range(100):
        db("SET statement_timeout = '5ms'")
        db.fails(f"UPDATE {table} SET body = 'mine' WHERE id = 1", "57014")
        db.without_timeout()
        assert db(f"SELECT body FROM {table} WHERE id = {i + 2}") == [(f"body {i + 2}",)]
    db("BEGIN")
    for i in range(50):
        db("SAVEPOINT s")
        db("SET LOCAL statement_timeout = '5ms'")
        db.fails(f"UPDATE {table} SET body = 'mine' WHERE id = 1", "57014")
        db("ROLLBACK TO s")
        db(f"UPDATE {table} SET body = 'kept' WHERE id = {i + 2}")
    db("COMMIT")
    other("ROLLBACK")
    assert db(f"SELECT count(*) FROM {table} WHERE body = 'kept'") == [(50,)]


def test_cancel_inside_an_exception_block(db: Session, other: Session, table: str) -> None:
    """PL/pgSQL can catch a timeout of a lock, also one set in the middle of a transaction; what it wrote stays."""
    db("SET statement_timeout = '20s'")
    other("BEGIN")
    other(f"UPDATE {table} SET body = 'held' WHERE id = 1")
    db(f"""DO $$ BEGIN
        INSERT INTO {table} VALUES (-1, 'body before');
        BEGIN
            SET LOCAL lock_timeout = '100ms';
            UPDATE {table} SET body = 'mine' WHERE id = 1;
        EXCEPTION WHEN lock_not_available THEN
            INSERT INTO {table} VALUES (-2, 'body after');
        END; END $$""")
    other("ROLLBACK")
    assert db(f"SELECT id FROM {table} WHERE id < 0 ORDER BY id") == [(-2,), (-1,)]


# ---------- the server option ----------
def test_timeout_option(db: Session, other: Session, ns: str, table: str, server: KalamServer) -> None:
    db(f"CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{server.port}',"
       " timeout '1000')")
    db(f"CREATE FOREIGN TABLE {ns}.timed (id bigint OPTIONS (key '1'), body text) SERVER {ns}_s"
       f" OPTIONS (namespace '{ns}', \"table\" 't')")
    other("BEGIN")
    other(f"UPDATE {table} SET body = 'held' WHERE id = 1")
    for sql in (f"SELECT kalam_exec('{CROSS}', '{ns}_s')", f"UPDATE {ns}.timed SET body = 'x' WHERE id = 1"):
        begun = time.monotonic()
        error = db.fails(sql, None)
        assert error.sqlstate in ("57014", "08006", "HV00L")
        assert "timeout" in f"{error} {error.diag.message_hint}"
        assert time.monotonic() - begun < DEADLINE
    other("ROLLBACK")
    db(f"ALTER SERVER {ns}_s OPTIONS (DROP timeout)")
    assert db(f"SELECT count(*) FROM {ns}.timed") == [(20000,)]


def test_server_that_is_stopped(db: Session, table: str, server: KalamServer) -> None:
    """A process that answers nothing any more, not even a cancel."""
    db("SET statement_timeout = '300ms'")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        for sql in (f"SELECT count(*) FROM {table}", f"INSERT INTO {table} VALUES (-1)", "SELECT kalam_ping()"):
            begun = time.monotonic()
            db.fails(sql, None)
            assert time.monotonic() - begun < DEADLINE
        db.without_timeout()
        assert db("SELECT 1") == [(1,)]
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert db(f"SELECT count(*) FROM {table} WHERE id > 0") == [(20000,)]
