"""The server process on a Unix-domain socket: psycopg through it, its end, its death, and a second server."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from support.ports import wait_until
from support.server import KalamServer

WAITING = "SELECT count(*) FROM system.locks WHERE NOT granted"


@pytest.fixture
def server() -> Iterator[KalamServer]:
    """With its sockets beside its data."""
    server = KalamServer()
    server.settings["rpc__socket_dir"] = str(server.dir)
    try:
        server.start()
        yield server
    finally:
        server.close()


def connect(server: KalamServer, **more: str) -> psycopg.Connection:
    return psycopg.connect(server.dsn(host=str(server.dir), **more), autocommit=True)


def file(server: KalamServer) -> Path:
    return server.dir / f".s.PGSQL.{server.port}"


def lock_a_row(conn: psycopg.Connection) -> None:
    for statement in ("CREATE NAMESPACE app", "CREATE SHARED TABLE app.t (id bigint PRIMARY KEY)",
                      "INSERT INTO app.t VALUES (1)", "BEGIN", "SELECT id FROM app.t FOR UPDATE"):
        conn.execute(statement)


def failing(server: KalamServer, **settings: str) -> str:
    """What a server says that cannot start."""
    other = KalamServer(http__port="off", **settings)
    try:
        process = other.spawn()
        assert process.wait(30) == 1
        return other.log_since(0)
    finally:
        other.close()


def test_a_client_of_the_socket(server: KalamServer) -> None:
    assert json.loads((server.data / "server.json").read_text())["socket_dir"] == str(server.dir)
    assert stat.S_IMODE(file(server).stat().st_mode) == 0o777
    with connect(server, sslmode="require") as conn, psycopg.connect(server.dsn(), autocommit=True) as tcp:
        assert conn.info.host == str(server.dir)
        conn.execute("CREATE NAMESPACE app")
        conn.execute("CREATE SHARED TABLE app.t (id bigint PRIMARY KEY, body text)")
        conn.execute("INSERT INTO app.t SELECT i, repeat('x', 100) FROM generate_series(1, 50000) AS g(i)")
        found = conn.execute("SELECT count(*), sum(length(body)) FROM app.t").fetchone()
        assert found == tcp.execute("SELECT count(*), sum(length(body)) FROM app.t").fetchone() == (50000, 5000000)
        assert len(conn.execute("SELECT id, body FROM app.t").fetchall()) == 50000
        sessions = conn.execute("SELECT count(*) FROM system.sessions WHERE peer = 'local'").fetchone()
        assert sessions == (1,)


def test_cancel(server: KalamServer) -> None:
    with connect(server) as conn, connect(server) as other:
        lock_a_row(other)
        conn.pgconn.send_query(b"DELETE FROM app.t")
        wait_until(lambda: other.execute(WAITING).fetchone() == (1,), "the wait for the row")
        conn.cancel()
        (result,) = list(iter(conn.pgconn.get_result, None))
        assert result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) == b"57014"
        assert conn.execute("SELECT id FROM app.t").fetchall() == [(1,)]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_restart(server: KalamServer, how: signal.Signals) -> None:
    """After kill -9 the file is still there, and the next server replaces it."""
    with connect(server) as conn:
        server.stop(how)
        with pytest.raises(psycopg.OperationalError):
            conn.execute("SELECT 1")
    assert file(server).exists() == (how == signal.SIGKILL)
    with pytest.raises(psycopg.OperationalError):
        connect(server)
    server.start()
    with connect(server) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_a_second_server_is_refused(server: KalamServer) -> None:
    """By another address it could have the port; the socket is the first one's."""
    said = failing(server, rpc__host="127.0.0.2", rpc__port=str(server.port), rpc__socket_dir=str(server.dir))
    assert f"cannot listen in rpc.socket_dir {server.dir}, rpc.port {server.port}: another server listens there" in said
    assert "Traceback" not in said
    with connect(server) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_no_such_directory(server: KalamServer) -> None:
    said = failing(server, rpc__socket_dir=str(server.dir / "none"))
    assert f"cannot listen in rpc.socket_dir {server.dir / 'none'}, rpc.port " in said
    assert "No such file or directory" in said
    assert "Traceback" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_who_may_not_enter_the_directory_does_not_get_in(server: KalamServer) -> None:
    def knock() -> int:
        """As another user: 0 if the server answers."""
        pid = os.fork()
        if pid == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            try:
                connect(server).close()
            except psycopg.OperationalError as error:
                os._exit(2 if "Permission denied" in str(error) else 3)
            except BaseException:
                os._exit(4)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert stat.S_IMODE(server.dir.stat().st_mode) == 0o700
    assert knock() == 2
    server.dir.chmod(0o711)
    assert knock() == 0


def test_password(server: KalamServer) -> None:
    server.settings["auth__shared_secret"] = "geheim12"
    server.restart()
    with connect(server, user="bearer", password="geheim12") as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)
    with pytest.raises(psycopg.OperationalError, match="secret"):
        connect(server, user="bearer", password="wrong")


def test_a_client_that_vanishes_in_a_statement(server: KalamServer) -> None:
    with connect(server) as conn:
        lock_a_row(conn)
        gone = connect(server)
        gone.pgconn.send_query(b"DELETE FROM app.t")
        wait_until(lambda: conn.execute(WAITING).fetchone() == (1,), "the wait for the row")
        gone.close()
        wait_until(lambda: conn.execute("SELECT count(*) FROM system.sessions").fetchone() == (1,), "its end")
