"""The file of a Unix-domain socket: whose it is, who may use it, and what becomes of it."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import frames
from kalamdb.rpc.listener import BACKLOG
from kalamdb.rpc.unix import SocketError, unix_socket
from kalamdb.settings import LONGEST_SOCKET, SettingError, load
from rig import rig, wait_for
from support import places

PORT = 9188


@pytest.fixture
def folder() -> Iterator[Path]:
    folder = places.new("krpc")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / f".s.PGSQL.{PORT}"


def reaches(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


def left_behind(path: Path) -> None:
    """By a process that was killed."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_the_file_is_there_as_long_as_the_socket(folder: Path, path: Path) -> None:
    with unix_socket(folder, PORT, BACKLOG):
        assert stat.S_IMODE(path.stat().st_mode) == 0o777
        assert (folder / f".s.PGSQL.{PORT}.lock").read_text() == f"{os.getpid()}\n"
        assert reaches(path)
    assert list(folder.iterdir()) == []


def test_a_file_that_nobody_listens_on_is_replaced(folder: Path, path: Path) -> None:
    left_behind(path)
    (folder / f".s.PGSQL.{PORT}.lock").write_text("1234567\nof a process that was killed\n")
    with unix_socket(folder, PORT, BACKLOG):
        assert reaches(path)
    assert list(folder.iterdir()) == []


def test_a_socket_in_use_is_left_alone(folder: Path, path: Path) -> None:
    with unix_socket(folder, PORT, BACKLOG):
        with pytest.raises(SocketError, match="another server listens there"), unix_socket(folder, PORT, BACKLOG):
            pass
        assert reaches(path)
        with unix_socket(folder, PORT + 1, BACKLOG):
            assert reaches(path)


def test_a_socket_of_another_program_is_left_alone(folder: Path, path: Path) -> None:
    """PostgreSQL's lock is not ours, and is not taken with it."""
    lock = folder / f".s.PGSQL.{PORT}.lock"
    lock.write_text("1234567\n")
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen(0)
        for _ in range(3):  # the last ones find its queue full
            with pytest.raises(SocketError, match="another server listens there"), unix_socket(folder, PORT, BACKLOG):
                pass
        assert path.is_socket()
    assert lock.read_text() == "1234567\n"


def test_another_file_of_that_name_is_left_alone(folder: Path, path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(SocketError, match="is no socket"), unix_socket(folder, PORT, BACKLOG):
        pass
    assert path.read_text() == "mine"
    assert list(folder.iterdir()) == [path]


def test_a_file_that_another_has_put_there_meanwhile_stays(folder: Path, path: Path) -> None:
    with unix_socket(folder, PORT, BACKLOG):
        path.unlink()
        left_behind(path)
    assert path.is_socket()


def test_no_such_directory(folder: Path) -> None:
    with pytest.raises(SocketError, match="No such file or directory"), unix_socket(folder / "none", PORT, BACKLOG):
        pass
    (folder / "file").touch()
    with pytest.raises(SocketError, match="Not a directory"), unix_socket(folder / "file", PORT, BACKLOG):
        pass


# ---------- the listener ----------
def test_both_ways_lead_to_one_server(folder: Path) -> None:
    """A cancel request may come by the other one; both are closed at the end."""
    with rig(rpc__socket_dir=str(folder)) as server:
        assert server.file is not None
        with server.raw() as local, socket.create_connection(("127.0.0.1", server.port)) as other:
            pid, key = local.log_in()
            local.send(frames.query("WAIT"))
            wait_for(lambda: server.executor.waiting == 1)
            session = server.listener._by_pid[pid].session
            assert session is not None
            assert session.client.peer == "local"
            other.sendall(frames.cancel(pid, key))
            assert frames.errors(local.until("Z"))[0]["C"] == "57014"
        server.drain()
        assert not reaches(server.file)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))


# ---------- the setting ----------
def test_the_setting() -> None:
    assert load({"rpc.socket_dir": "/run/kalam"}, env={}).rpc.socket_dir == Path("/run/kalam")
    for nothing in ({}, {"KALAM_RPC_SOCKET_DIR": ""}):
        assert load(env=nothing).rpc.socket_dir is None
    for bad in ("sockets", "/a,/b", "@kalam"):
        with pytest.raises(SettingError, match=r'"rpc.socket_dir".*must be the absolute path of a directory'):
            load({"rpc.socket_dir": bad}, env={})


def test_the_length_of_the_path() -> None:
    directory = "/" + "d" * (LONGEST_SOCKET - len("//.s.PGSQL.9188"))
    assert load({"rpc.socket_dir": directory}, env={}).rpc.socket_dir == Path(directory)
    for more in ({"rpc.socket_dir": directory + "d"}, {"rpc.socket_dir": directory, "rpc.port": 19188},
                 {"rpc.socket_dir": directory, "rpc.port": 0}):
        with pytest.raises(SettingError, match=f'"rpc.socket_dir" is too long.* may have {LONGEST_SOCKET} bytes, and'):
            load(more, env={})
