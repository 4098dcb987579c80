"""The server process from start to end: what it says, what stops it, and what is left on the disk afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from support.ports import free_port, wait_until
from support.server import KalamServer

TABLE = "CREATE NAMESPACE app; CREATE SHARED TABLE app.t (id bigint PRIMARY KEY, body text)"


def run_to_its_end(data: Path, *options: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """A server that is not expected to stay: its exit code and what it wrote."""
    command = [sys.executable, "-m", "kalamdb.server", "--data", str(data), "--rpc-port", "0", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, env=os.environ | (env or {})
    )
    return done.returncode, done.stdout + done.stderr


def connect(server: KalamServer) -> psycopg.Connection:
    return psycopg.connect(server.dsn(), autocommit=True)


def make_table(server: KalamServer) -> None:
    with connect(server) as conn:
        for statement in TABLE.split("; "):
            conn.execute(statement)


def rows(server: KalamServer, query: str = "SELECT id FROM app.t ORDER BY id") -> list[int]:
    with connect(server) as conn:
        return [row[0] for row in conn.execute(query.encode())]


def test_state_file_says_where_it_listens() -> None:
    """On ports that the system has chosen."""
    server = KalamServer(rpc__port="0", http__port="0")
    try:
        server.start()
        state = json.loads((server.data / "server.json").read_text())
        assert state["pid"] == server.pid
        assert state["rpc"] == {"host": "127.0.0.1", "port": server.port}
        assert state["http"].startswith("http://127.0.0.1:")
        assert rows(server, "SELECT 1") == [1]
    finally:
        server.close()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly(server: KalamServer, how: signal.Signals) -> None:
    make_table(server)
    with connect(server) as idle:
        assert server.stop(how) == 0
        with pytest.raises(psycopg.OperationalError):
            idle.execute("SELECT 1")
    assert not (server.data / "server.json").exists()
    with pytest.raises(psycopg.OperationalError):
        connect(server)


def test_restart_on_the_same_data_and_ports(server: KalamServer) -> None:
    make_table(server)
    with connect(server) as conn:
        conn.execute("INSERT INTO app.t VALUES (1, 'kept')")
    port, http = server.port, server.http
    server.restart()
    assert (server.port, server.http) == (port, http)
    assert rows(server) == [1]


def test_kill_keeps_what_was_committed_and_nothing_else(server: KalamServer) -> None:
    make_table(server)
    conn, open_block = connect(server), connect(server)
    for number in range(20):
        conn.execute("INSERT INTO app.t VALUES (%s, 'kept')", [number])
    open_block.execute("BEGIN")
    open_block.execute("INSERT INTO app.t VALUES (100, 'never committed')")
    server.kill()
    conn.close()
    open_block.close()
    server.start()
    assert rows(server) == list(range(20))
    with connect(server) as conn:
        conn.execute("INSERT INTO app.t VALUES (100, 'its key is free')")


def test_kill_in_the_middle_of_writers(server: KalamServer) -> None:
    """Whatever was answered is there afterwards; what was not may be."""
    make_table(server)
    answered: list[int] = []
    begun: list[int] = []

    def write(first: int) -> None:
        with suppress(psycopg.OperationalError), connect(server) as conn:
            for number in range(first, first + 100_000):
                begun.append(number)
                conn.execute("INSERT INTO app.t VALUES (%s, 'row')", [number])
                answered.append(number)

    writers = [threading.Thread(target=write, args=(first,)) for first in (0, 1_000_000, 2_000_000)]
    for writer in writers:
        writer.start()
    wait_until(lambda: len(answered) > 100, "a hundred commits")
    server.kill()
    for writer in writers:
        writer.join()
    server.start()
    found = set(rows(server))
    assert set(answered) <= found <= set(begun)


def test_outcome_of_a_transaction_nobody_knows(conn: psycopg.Connection) -> None:
    assert conn.execute("SHOW TRANSACTION OUTCOME 'no such id'").fetchall() == [("aborted",)]
    for wrong in ("SHOW TRANSACTION OUTCOME", "SHOW TRANSACTION OUTCOME 7"):
        with pytest.raises(psycopg.errors.SyntaxError):
            conn.execute(wrong)


def test_insert_from_a_select_of_another_table(conn: psycopg.Connection) -> None:
    for statement in (
        "CREATE SHARED TABLE a (id bigint PRIMARY KEY, body text)",
        "CREATE SHARED TABLE b (id bigint PRIMARY KEY, body text)",
        "INSERT INTO a VALUES (1, 'x'), (2, 'y'), (3, 'z')",
        "INSERT INTO b SELECT id, body FROM a WHERE id > 1",
        "INSERT INTO b SELECT id, body FROM a WHERE id = 1",
    ):
        conn.execute(statement)
    assert conn.execute("SELECT id, body FROM b ORDER BY id").fetchall() == [(1, "x"), (2, "y"), (3, "z")]


def test_one_server_for_a_data_directory(server: KalamServer) -> None:
    code, said = run_to_its_end(server.data, "--http-port", "off")
    assert code == 1
    assert "another server uses the data directory" in said
    assert server.running


def test_taken_port_is_named(server: KalamServer, tmp_path: Path) -> None:
    code, said = run_to_its_end(tmp_path / "data", "--rpc-port", str(server.port), "--http-port", "off")
    assert code == 1
    assert f"rpc.port {server.port}" in said


@pytest.mark.parametrize(
    ("options", "env", "words"),
    [
        (["--rpc-port", "70000"], {}, ["rpc.port", "70000"]),
        (["--http-port", "eighty"], {}, ["http.port", "off"]),
        ([], {"KALAM_LOCK_TIMEOUT": "soon"}, ["lock_timeout", "KALAM_LOCK_TIMEOUT", "soon"]),
        ([], {"KALAM_LOG_LEVL": "info"}, ["KALAM_LOG_LEVL"]),
        (["--config", "nowhere.toml"], {}, ["nowhere.toml"]),
        ([], {"KALAM_AUTH_JWT_KEY": "tooshortasecret"}, ["auth.jwt_key"]),
    ],
)
def test_bad_setting_stops_the_start_and_is_named(
    tmp_path: Path, options: list[str], env: dict[str, str], words: list[str]
) -> None:
    code, said = run_to_its_end(tmp_path / "data", *options, env=env)
    assert code == 2
    assert [word for word in words if word not in said] == []
    assert "tooshortasecret" not in said
    assert not (tmp_path / "data").exists()


def test_unusable_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    code, said = run_to_its_end(tmp_path / "file", "--rpc-port", str(free_port()))
    assert code == 1
    assert str(tmp_path / "file") in said


def test_a_directory_of_segments_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "segments").write_text("in the way")
    code, text = run_to_its_end(tmp_path)
    assert code == 1
    assert f'could not use the directory {tmp_path / "segments"} of storage "local": file exists' in text
    assert "Traceback" not in text


def test_a_bad_storage_stops_the_start(tmp_path: Path) -> None:
    code, text = run_to_its_end(tmp_path, env={"KALAM_STORAGES_COLD_SECRET_ACCESS_KEY": "geheim-secret"})
    assert code == 2
    assert 'setting "storages.cold.type" is needed' in text
    assert "geheim" not in text
