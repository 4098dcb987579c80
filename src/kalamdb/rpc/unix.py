"""The RPC listener's Unix-domain socket: a file that libpq finds by directory and port, as it does PostgreSQL's.

Whose the file is says the lock beside it, which ends with its process, so that what a killed server has left is
replaced and what a living one listens on is not. PostgreSQL has a lock of the same name, and looks for the process
whose number is in it: neither takes the other's socket.

Everybody may connect who may enter the directory, as to PostgreSQL.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from kalamdb.settings import socket_file

TAKEN = "another server listens there"


class SocketError(Exception):
    """Why there can be no socket."""


@contextlib.contextmanager
def unix_socket(directory: Path, port: int, backlog: int) -> Iterator[socket.socket]:
    """A listening socket, whose file is removed at the end. Raises SocketError."""
    path = socket_file(directory, port)
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(_locked(path.with_name(path.name + ".lock")))
            _clear(path)
            os.ftruncate(lock, 0)
            os.pwrite(lock, _own_number(), 0)
            sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.bind(str(path))
            stack.callback(_remove, path, _identity(path.lstat()))
            path.chmod(0o777)
            sock.listen(backlog)
            sock.setblocking(False)
        except OSError as error:
            raise SocketError(error.strerror or str(error)) from None
        yield sock


@contextlib.contextmanager
def _locked(lock: Path) -> Iterator[int]:
    handle = _lock(lock)
    try:
        yield handle
    finally:
        with contextlib.suppress(OSError):
            if os.pread(handle, 20, 0) in (b"", _own_number()):  # else it is a PostgreSQL's
                lock.unlink()
        os.close(handle)


def _lock(lock: Path) -> int:
    """The lock file, locked. Who had it may have removed it meanwhile, and then it is nobody's lock."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _identity(lock.stat()) == _identity(os.fstat(handle)):
                return handle
        except BlockingIOError:
            os.close(handle)
            raise SocketError(TAKEN) from None
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _clear(path: Path) -> None:
    """Make way for the socket, if what is there is one that nobody listens on."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise SocketError(f"{path} is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except BlockingIOError:  # so many wait for it
            raise SocketError(TAKEN) from None
        else:
            raise SocketError(TAKEN)


def _own_number() -> bytes:
    return b"%d\n" % os.getpid()


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _remove(path: Path, identity: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):
        if _identity(path.lstat()) == identity:
            path.unlink()
