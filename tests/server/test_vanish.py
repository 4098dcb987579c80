"""Sessions that end without a word, or are ended: their transaction is rolled back and their locks are free at once."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from support.ports import wait_until
from support.server import KalamServer

UPDATE = "UPDATE t SET n = n + 1 WHERE id = 1"


@pytest.fixture(scope="module")
def server() -> Iterator[KalamServer]:
    server = KalamServer(idle_in_transaction_session_timeout="600000")
    try:
        server.start()
        with connect(server) as conn:
            conn.execute("CREATE SHARED TABLE t (id bigint PRIMARY KEY, n bigint)")
            conn.execute("INSERT INTO t VALUES (1, 0)")
        yield server
    finally:
        server.close()


@pytest.fixture
def watch(server: KalamServer) -> Iterator[psycopg.Connection]:
    """An observer; afterwards no transaction and no lock is left."""
    with connect(server) as connection:
        connection.execute("UPDATE t SET n = 0")
        yield connection
        wait_until(lambda: values(connection, "SELECT count(*) FROM system.sessions") == [1], "the sessions' end")
        assert values(connection, "SELECT count(*) FROM system.locks") == [0]
        assert values(connection, "SELECT count(*) FROM system.transactions") == [0]


def connect(server: KalamServer, **more: str) -> psycopg.Connection:
    return psycopg.connect(server.dsn(**more), autocommit=True)


def values(conn: psycopg.Connection, query: str) -> list[Any]:
    return [row[0] for row in conn.execute(query)]


def waiting(watch: psycopg.Connection) -> int:
    return int(values(watch, "SELECT count(*) FROM system.locks WHERE NOT granted")[0])


def held(watch: psycopg.Connection) -> int:
    return int(values(watch, "SELECT count(*) FROM system.locks WHERE granted AND key = '1'")[0])


class Waiter:
    """A statement in a thread of its own."""

    def __init__(self, conn: psycopg.Connection, statement: str = UPDATE) -> None:
        self.error: psycopg.Error | None = None
        self._thread = threading.Thread(target=self._run, args=(conn, statement))
        self._thread.start()

    def _run(self, conn: psycopg.Connection, statement: str) -> None:
        try:
            conn.execute(statement)
        except psycopg.Error as error:
            self.error = error

    def done(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


# ---------- the idle limit ----------
def ended(conn: psycopg.Connection) -> None:
    """The session was ended for its idleness."""
    with pytest.raises(psycopg.errors.IdleInTransactionSessionTimeout) as raised:
        conn.execute("SELECT 1")
    assert raised.value.sqlstate == "25P03"
    assert conn.closed


@pytest.mark.parametrize("how", ["SET {} = '20ms'", "SET LOCAL {} = 20"])
def test_an_idle_transaction_is_ended(server: KalamServer, watch: psycopg.Connection, how: str) -> None:
    with connect(server) as idle, connect(server) as other:
        idle.execute("BEGIN")
        idle.execute(UPDATE)
        waiter = Waiter(other)
        wait_until(lambda: waiting(watch), "a waiter")
        idle.execute(how.format("idle_in_transaction_session_timeout"))
        waiter.done()
        assert waiter.error is None
        ended(idle)
        assert values(watch, "SELECT n FROM t") == [1]


def test_a_failed_transaction_is_ended_too(server: KalamServer, watch: psycopg.Connection) -> None:
    with connect(server, options="-c idle_in_transaction_session_timeout=20ms") as idle:
        with pytest.raises(psycopg.errors.UndefinedTable):
            idle.execute("BEGIN; SELECT * FROM nowhere")  # one message: the session is not idle within it
        wait_until(lambda: values(watch, "SELECT count(*) FROM system.sessions") == [1], "its end")
        ended(idle)


def test_only_an_idle_transaction_is_ended(server: KalamServer, watch: psycopg.Connection) -> None:
    """Neither a session without one, nor one whose statement waits for longer than the limit."""
    with connect(server, options="-c idle_in_transaction_session_timeout=1ms") as quick, connect(server) as other:
        other.execute("BEGIN")
        other.execute(UPDATE)
        waiter = Waiter(quick, f"BEGIN; {UPDATE}; COMMIT")
        wait_until(lambda: waiting(watch), "a waiter")
        wait_until(lambda: values(watch, "SELECT count(*) FROM system.sessions WHERE state = 'active' "
                                         "AND now() - statement_started_at > INTERVAL '50 ms'") == [1], "a long wait")
        other.execute("COMMIT")
        waiter.done()
        assert waiter.error is None
        assert values(quick, "SELECT n FROM t") == [2]


def test_the_setting_of_server_and_session(server: KalamServer, watch: psycopg.Connection) -> None:
    show = "SHOW idle_in_transaction_session_timeout"
    with connect(server) as conn:
        assert values(conn, show) == ["600000ms"]
        conn.execute("SET idle_in_transaction_session_timeout = '2min'")
        assert values(conn, show) == ["2min"]
        conn.execute("RESET idle_in_transaction_session_timeout")
        assert values(conn, show) == ["600000ms"]
        for wrong in ("soon", "-1", "5 fortnights"):
            with pytest.raises(psycopg.errors.InvalidParameterValue):
                conn.execute(f"SET idle_in_transaction_session_timeout = '{wrong}'")


def test_the_servers_own_limit() -> None:
    server = KalamServer(idle_in_transaction_session_timeout="20")
    try:
        server.start()
        with connect(server) as spared, connect(server) as idle:
            spared.execute("SET idle_in_transaction_session_timeout = 0")
            spared.execute("BEGIN")
            idle.execute("BEGIN")
            wait_until(lambda: values(spared, "SELECT count(*) FROM system.sessions") == [1], "the idle one's end")
            ended(idle)
    finally:
        server.close()


# ---------- clients that vanish ----------
CLIENT = """
import psycopg, sys
conn = psycopg.connect(sys.argv[1], autocommit=True)
for statement in sys.argv[2:]:
    conn.execute(statement)
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def spawn(server: KalamServer) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a client process that runs statements."""
    started: list[subprocess.Popen[str]] = []

    def spawn(*statements: str) -> subprocess.Popen[str]:
        started.append(subprocess.Popen(
            [sys.executable, "-c", CLIENT, server.dsn(), *statements], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True))
        return started[-1]

    yield spawn
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_killed_client_frees_its_locks(
    server: KalamServer, watch: psycopg.Connection, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    victim = spawn("BEGIN", UPDATE)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "done\n"
    with connect(server) as other:
        waiter = Waiter(other)
        wait_until(lambda: waiting(watch), "a waiter")
        victim.kill()
        waiter.done()
        assert waiter.error is None
    assert values(watch, "SELECT n FROM t") == [1]


def test_a_client_killed_while_it_waits_for_a_lock(
    server: KalamServer, watch: psycopg.Connection, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    """It leaves the queue, and frees what its transaction held already."""
    watch.execute("INSERT INTO t VALUES (2, 0) ON CONFLICT DO NOTHING")
    with connect(server) as holder, connect(server) as other:
        holder.execute("BEGIN")
        holder.execute(UPDATE)
        victim = spawn("BEGIN", "UPDATE t SET n = n + 1 WHERE id = 2", UPDATE)
        wait_until(lambda: waiting(watch) == 1, "the victim's wait")
        waiter = Waiter(other, "UPDATE t SET n = n + 10 WHERE id = 2")
        wait_until(lambda: waiting(watch) == 2, "one that waits for the victim")
        os.kill(victim.pid, signal.SIGKILL)
        waiter.done()
        assert waiter.error is None
        wait_until(lambda: waiting(watch) == 0, "the victim's end")
        assert held(watch) == 1
        holder.execute("COMMIT")
    assert values(watch, "SELECT n FROM t ORDER BY id") == [1, 10]
    watch.execute("DELETE FROM t WHERE id = 2")


def test_many_killed_in_the_queue_of_one_lock(
    server: KalamServer, watch: psycopg.Connection, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    with connect(server) as holder, connect(server) as last:
        holder.execute("BEGIN")
        holder.execute(UPDATE)
        victims = [spawn(UPDATE) for _ in range(4)]
        wait_until(lambda: waiting(watch) == 4, "the queue")
        waiter = Waiter(last)
        wait_until(lambda: waiting(watch) == 5, "one behind it")
        for victim in victims:
            victim.kill()
        wait_until(lambda: waiting(watch) == 1, "the end of those killed")
        holder.execute("COMMIT")
        waiter.done()
    assert values(watch, "SELECT n FROM t") == [2]


@pytest.mark.parametrize("how", ["close", "half"])
def test_a_closed_socket_in_the_middle_of_a_wait(server: KalamServer, watch: psycopg.Connection, how: str) -> None:
    with connect(server) as holder:
        holder.execute("BEGIN")
        holder.execute(UPDATE)
        victim = connect(server)
        victim.pgconn.send_query(UPDATE.encode())
        wait_until(lambda: waiting(watch) == 1, "the wait")
        with socket.socket(fileno=os.dup(victim.fileno())) as raw:
            raw.shutdown(socket.SHUT_RDWR if how == "close" else socket.SHUT_WR)
            wait_until(lambda: waiting(watch) == 0, "the waiter's end")
        victim.close()
        holder.execute("ROLLBACK")
    assert values(watch, "SELECT n FROM t") == [0]


def test_locks_are_free_though_the_answer_is_not_read(server: KalamServer, watch: psycopg.Connection) -> None:
    """A client that stops sending while megabytes wait for it to read."""
    watch.execute("CREATE SHARED TABLE wide (id bigint PRIMARY KEY, body text)")
    for number in range(64):
        watch.execute("INSERT INTO wide VALUES (%s, %s)", (number, "x" * 500_000))
    victim = connect(server)
    victim.execute("BEGIN")
    victim.execute(UPDATE)
    victim.pgconn.send_query(b"SELECT * FROM wide")
    assert select.select([victim.fileno()], [], [], 20)[0], "the answer did not begin"
    assert held(watch) == 1
    with socket.socket(fileno=os.dup(victim.fileno())) as raw:
        raw.shutdown(socket.SHUT_WR)
        wait_until(lambda: held(watch) == 0, "the lock's release")
    victim.close()
    watch.execute("DROP TABLE wide")


def test_a_session_that_says_goodbye_in_a_transaction(server: KalamServer, watch: psycopg.Connection) -> None:
    conn = connect(server)
    conn.execute("BEGIN")
    conn.execute(UPDATE)
    conn.close()
    wait_until(lambda: held(watch) == 0, "the lock's release")
    assert values(watch, "SELECT n FROM t") == [0]
