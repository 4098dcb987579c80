"""What a session shows when the way to the server is slow, silent or cut, wherever in a statement that happens.

Between PostgreSQL and the server stands a proxy. Each test names the message at which it begins to misbehave. The
promise is one second; the deadline is generous against a busy machine. An observer, who connects to the server itself,
sees what is left there.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection

import psycopg
import pytest

from support.ports import wait_until
from support.proxy import Fault, Proxy, Trap
from support.server import KalamServer

from .ddl import Session
from .observer import Observer

pytestmark = pytest.mark.pg

DEADLINE = 10.0
LOST = {"08001", "08006"}


@pytest.fixture
def table(db: Session, ns: str, proxy: Proxy) -> str:
    """5,000 rows in chunks of 1,000, behind the proxy."""
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, body text) USING kalamdb WITH (type = 'shared', "
       f"server = '{ns}_proxy')")
    db(f"ALTER FOREIGN TABLE {ns}.t OPTIONS (ADD fetch_size '1000')")
    db(f"INSERT INTO {ns}.t SELECT g, 'body ' || g FROM generate_series(1, 5000) g")
    return f"{ns}.t"


class Running(threading.Thread):
    """One statement of a session; `end` waits for it and returns its error."""

    def __init__(self, session: Session, sql: str) -> None:
        super().__init__(daemon=True)
        self.session, self.sql = session, sql
        self.error: psycopg.Error | None = None
        self.start()

    def run(self) -> None:
        try:
            self.session.conn.execute(self.sql)
        except psycopg.Error as error:
            self.error = error

    def end(self) -> psycopg.Error | None:
        self.join(DEADLINE)
        assert not self.is_alive(), f"still running: {self.sql}"
        return self.error

    def fails(self, sqlstates: Collection[str], *words: str) -> None:
        error = self.end()
        assert error is not None, f"it finished by itself: {self.sql}"
        told = f"{error.sqlstate}: {error}\n{error.diag.message_hint}"
        assert error.sqlstate in sqlstates, told
        for word in words:
            assert word in told


#: where in a statement: the message at which the way ends, and the statement
ROWS = "SELECT count(*) FROM (SELECT * FROM {t} OFFSET 0) t"
PLACES: dict[str, tuple[str, str]] = {
    "capabilities": ("SHOW CAPABILITIES", ROWS),
    "size": ("SHOW TABLE SIZE", ROWS),
    "estimate": ("ESTIMATE", "SELECT count(*) FROM (SELECT * FROM {t} WHERE id > 7 OFFSET 0) t"),
    "first chunk": ('SELECT "?[Nr1i]', ROWS),
    "a later chunk": ("FETCH", ROWS),
    "a chunk ahead": ("FETCH", "SELECT count(pg_sleep(0.001 * id)) FROM (SELECT * FROM {t} OFFSET 0) t"),
    "a function": ("SHOW TABLE STATS", "SELECT kalam_table_stats('{t}')"),
    "kalam_exec": ("SELECT 1 AS one", "SELECT kalam_exec('SELECT 1 AS one', '{ns}_proxy')"),
    "analyze": ("SAMPLE", "ANALYZE {t}"),
    "explain": ("SHOW SCAN STATS", "EXPLAIN ANALYZE SELECT * FROM {t}"),
    "a row lock": ("FOR UPDATE", "SELECT count(*) FROM (SELECT * FROM {t} FOR UPDATE) t"),
    "an update": ("UPDATE", "UPDATE {t} SET body = body WHERE id < 100"),
}


def prepare(db: Session, ns: str, table: str, proxy: Proxy, place: str, fault: Fault, after: int = 0
            ) -> tuple[str, Trap]:
    """The statement, and the trap that it will run into."""
    pattern, sql = PLACES[place]
    if place in ("capabilities", "size"):
        db(f"SELECT kalam_disconnect('{ns}_proxy')")
    if place == "size":  # what a session knows, it does not ask for again
        db(f"ALTER FOREIGN TABLE {table} OPTIONS (SET fetch_size '1000')")
    if place == "estimate":
        db(f"ALTER FOREIGN TABLE {table} OPTIONS (ADD use_remote_estimate 'true')")
    trap = proxy.trap(pattern, fault, after=after, skip=1 if place == "a later chunk" else 0)
    return sql.format(t=table, ns=ns), trap


def usable(db: Session, proxy: Proxy, table: str) -> None:
    assert db("SELECT 1") == [(1,)]
    proxy.resume()
    assert db(f"SELECT count(*), sum(id) FROM {table} WHERE body LIKE 'body %'") == [(5000, 12502500)]


def at_rest(observer: Observer) -> None:
    wait_until(observer.at_rest, "the end of what the server did", DEADLINE)


# ---------- cancel ----------
@pytest.mark.parametrize(("silence", "place"), [
    *(("request lost", place) for place in PLACES),
    *(("all lost", place) for place in ("size", "first chunk", "a chunk ahead")),
    *(("answer lost", place) for place in ("first chunk", "a later chunk")),
    *(("answer crawls", place) for place in ("size", "first chunk", "a later chunk", "a chunk ahead", "analyze")),
])
def test_cancel(db: Session, ns: str, proxy: Proxy, table: str, observer: Observer, place: str, silence: str) -> None:
    """All lost: the cancel, too, goes nowhere, and all that helps is to close the connection."""
    fault: Fault = {"answer lost": "hold answer", "answer crawls": "crawl"}.get(silence, "hold")  # type: ignore[assignment]
    sql, trap = prepare(db, ns, table, proxy, place, fault, 20)
    if silence == "all lost":
        proxy.lose_cancels()
    running = Running(db, sql)
    trap.wait()
    db.conn.cancel_safe(timeout=5)
    running.fails({"57014"})
    at_rest(observer)
    usable(db, proxy, table)


@pytest.mark.parametrize(("place", "fault"), [
    *((place, "hold") for place in ("capabilities", "size", "estimate", "first chunk", "a later chunk", "a chunk ahead",
                                    "analyze")),
    *((place, "crawl") for place in ("size", "first chunk", "a later chunk")),
])
def test_statement_timeout(db: Session, ns: str, proxy: Proxy, table: str, observer: Observer, place: str, fault: Fault
                           ) -> None:
    sql, _ = prepare(db, ns, table, proxy, place, fault, 20)
    proxy.lose_cancels()
    db("SET statement_timeout = '300ms'")
    Running(db, sql).fails({"57014"}, "statement timeout")
    db.without_timeout()
    at_rest(observer)
    usable(db, proxy, table)


@pytest.mark.parametrize("place", ["size", "first chunk", "a later chunk"])
def test_timeout_of_the_server(db: Session, ns: str, proxy: Proxy, table: str, observer: Observer, place: str) -> None:
    """The option bounds each request: those that are answered have time enough."""
    sql, _ = prepare(db, ns, table, proxy, place, "hold answer")
    db(f"ALTER SERVER {ns}_proxy OPTIONS (ADD timeout '1000')")
    Running(db, sql).fails({"57014"}, "did not answer within 1000 ms", '"timeout"')
    db(f"ALTER SERVER {ns}_proxy OPTIONS (DROP timeout)")
    at_rest(observer)
    usable(db, proxy, table)


@pytest.mark.parametrize("place", ["size", "a later chunk", "a chunk ahead", "analyze"])
def test_termination(db: Session, other: Session, ns: str, proxy: Proxy, table: str, observer: Observer, place: str
                     ) -> None:
    sql, trap = prepare(db, ns, table, proxy, place, "hold answer")
    proxy.lose_cancels()
    pid = db.conn.info.backend_pid
    running = Running(db, sql)
    trap.wait()
    other.value("SELECT pg_terminate_backend(%s)", pid)
    running.end()
    wait_until(lambda: not other("SELECT FROM pg_stat_activity WHERE pid = %s", pid), "the backend's end", DEADLINE)
    at_rest(observer)
    usable(other, proxy, table)


# ---------- a connection that ends ----------
@pytest.mark.parametrize("place", [place for place in PLACES if place != "a chunk ahead"])
@pytest.mark.parametrize("how", ["before", "in the answer"])
def test_cut(db: Session, ns: str, proxy: Proxy, table: str, observer: Observer, place: str, how: str) -> None:
    """What had no effect yet is asked again on a new connection."""
    sql, trap = prepare(db, ns, table, proxy, place, "cut" if how == "before" else "cut answer", 20)
    error = Running(db, sql).end()
    assert error is None or error.sqlstate in LOST
    assert error is None or place in ("capabilities", "a later chunk", "a function", "analyze", "explain"), error
    trap.wait()
    at_rest(observer)
    usable(db, proxy, table)


@pytest.mark.parametrize("place", ["first chunk", "a later chunk", "an update", "analyze"])
@pytest.mark.parametrize("how", ["before", "instead of the answer", "in the answer"])
def test_cut_in_a_block(db: Session, ns: str, proxy: Proxy, table: str, observer: Observer, place: str, how: str
                        ) -> None:
    """What the block saw and did is lost, so it fails."""
    sql, trap = prepare(db, ns, table, proxy, place, "cut" if how == "before" else "cut answer",
                        20 if how == "in the answer" else 0)
    db("BEGIN")
    db(f"SELECT kalam_exec('SELECT 2', '{ns}_proxy')")
    Running(db, sql).fails(LOST, f"127.0.0.1:{proxy.port} was lost")
    trap.wait()
    db.fails("SELECT 1", "25P02")
    db("ROLLBACK")
    at_rest(observer)
    usable(db, proxy, table)


@pytest.mark.parametrize("place", ["size", "estimate", "first chunk", "a later chunk"])
def test_server_that_dies(db: Session, ns: str, proxy: Proxy, table: str, server: KalamServer, place: str) -> None:
    sql, trap = prepare(db, ns, table, proxy, place, "hold")
    running = Running(db, sql)
    trap.wait()
    server.kill()
    running.fails(LOST)
    db.fails(sql, None)
    server.start()
    usable(db, proxy, table)


@pytest.mark.parametrize("place", ["size", "estimate", "first chunk", "a later chunk", "a chunk ahead", "analyze"])
def test_server_that_is_stopped(db: Session, ns: str, proxy: Proxy, table: str, server: KalamServer,
                                observer: Observer, place: str) -> None:
    """A process that the system does not let run accepts connections and cancels, and answers neither."""
    sql, trap = prepare(db, ns, table, proxy, place, "hold")
    running = Running(db, sql)
    trap.wait()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        proxy.resume()
        db.conn.cancel_safe(timeout=5)
        running.fails({"57014"})
        assert db("SELECT 1") == [(1,)]
    finally:
        os.kill(server.pid, signal.SIGCONT)
    at_rest(observer)
    usable(db, proxy, table)


# ---------- connecting ----------
@pytest.mark.parametrize("how", ["cancel", "statement_timeout", "timeout", "refused", "cut"])
def test_connecting(db: Session, ns: str, proxy: Proxy, table: str, how: str) -> None:
    db(f"SELECT kalam_disconnect('{ns}_proxy')")
    if how == "timeout":
        db(f"ALTER SERVER {ns}_proxy OPTIONS (ADD timeout '200')")
    if how == "statement_timeout":
        db("SET statement_timeout = '200ms'")
    if how == "refused":
        proxy.refuse()
    else:
        proxy.hold()
    before = proxy.accepted
    running = Running(db, f"SELECT count(*) FROM {table}")
    if how in ("cancel", "cut"):
        wait_until(lambda: proxy.accepted > before, "a connection")
    if how == "cancel":
        db.conn.cancel_safe(timeout=5)
    elif how == "cut":
        proxy.cut()
    wanted = {"57014"} if how in ("cancel", "statement_timeout") else {"08001"}
    running.fails(wanted, *({"timeout": ["no answer within 200 ms"]}.get(how, [])))
    if how == "refused":
        proxy.accept()
    if how == "timeout":
        db(f"ALTER SERVER {ns}_proxy OPTIONS (DROP timeout)")
    db.without_timeout()
    usable(db, proxy, table)
