"""A listener over the tiny executor in a thread of this process, and raw connections to it."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import frames
from kalamdb.api import Role
from kalamdb.auth.authenticator import Authenticator
from kalamdb.rpc.listener import BACKLOG, Listener
from kalamdb.rpc.unix import unix_socket
from kalamdb.settings import Settings, load, socket_file
from kalamdb.txn.api import Accounts
from tiny import TinyExecutor


@dataclass
class StoredAccount:
    name: str
    role: Role
    password_hash: str | None
    locked: bool = False


class StoredAccounts:
    def __init__(self, *accounts: StoredAccount) -> None:
        self._accounts = {account.name: account for account in accounts}

    def get(self, name: str) -> Any:
        return self._accounts.get(name)


def make_settings(**given: object) -> Settings:
    """Settings by name, with __ for the dot."""
    return load({name.replace("__", "."): value for name, value in given.items()}, env={})


def wait_for(condition: Callable[[], object], what: str = "a condition") -> None:
    deadline = time.monotonic() + 60
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        pause.wait(0.002)


class Rig:
    """The listener's loop runs in its own thread; ``call`` runs something in it.

    ``raw`` is a client by TCP, or one of the Unix-domain socket if the settings have a ``socket_dir``.
    """

    def __init__(self, settings: Settings, accounts: StoredAccounts, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.loop = loop
        self.sockets = ExitStack()
        tcp = self.sockets.enter_context(socket.create_server(("127.0.0.1", 0)))
        tcp.setblocking(False)
        self.port: int = tcp.getsockname()[1]
        self.file: Path | None = None
        sockets = [tcp]
        if settings.rpc.socket_dir is not None:
            sockets.append(self.sockets.enter_context(unix_socket(settings.rpc.socket_dir, self.port, BACKLOG)))
            self.file = socket_file(settings.rpc.socket_dir, self.port)
        self._thread = threading.Thread(target=self.loop.run_forever, name="rig")
        self._thread.start()
        self.executor: TinyExecutor = self.call(self._make_executor())
        self.authenticator = Authenticator(settings.auth, cast(Accounts, accounts))
        self.listener = Listener(settings, self.executor, self.authenticator, *sockets)
        self.call(self.listener.start())

    async def _make_executor(self) -> TinyExecutor:
        return TinyExecutor()

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(20)

    def drain(self, *, hurry: bool = False) -> None:
        async def run() -> None:
            event = asyncio.Event()
            if hurry:
                event.set()
            await self.listener.drain(event)

        self.call(run())

    def stop(self) -> None:
        self.drain(hurry=True)
        self.authenticator.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        self.sockets.close()

    def dsn(self, user: str = "kalam", **more: str) -> str:
        parts = {"host": "127.0.0.1", "port": self.port, "user": user, "dbname": "kalam", "connect_timeout": 10, **more}
        return " ".join(f"{name}='{value}'" for name, value in parts.items())

    def raw(self) -> Raw:
        return Raw(("127.0.0.1", self.port) if self.file is None else self.file)


class Raw:
    """A socket that speaks frames."""

    def __init__(self, address: tuple[str, int] | Path) -> None:
        if isinstance(address, Path):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(10)
            self.socket.connect(str(address))
        else:
            self.socket = socket.create_connection(address, timeout=10)
        self._data = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *data: bytes) -> None:
        self.socket.sendall(b"".join(data))

    def byte(self) -> bytes:
        return self.socket.recv(1)

    def until(self, kind: str) -> bytes:
        """Everything up to the end of the next message of this type."""
        out = b""
        while True:
            head = self._exactly(5)
            (length,) = struct.unpack_from("!i", head, 1)
            out += head + self._exactly(length - 4)
            if head[:1] == kind.encode():
                return out

    def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            more = self.socket.recv(65536)
            assert more, "the server closed the connection"
            self._data += more
        out, self._data = self._data[:size], self._data[size:]
        return out

    def until_ready(self) -> bytes:
        """Everything up to ReadyForQuery, for answers too long to be taken apart here."""
        parts = [self._data]
        while not parts[-1].endswith(b"Z\0\0\0\5I"):
            parts.append(self.socket.recv(1 << 20))
            assert parts[-1], "the server closed the connection"
        self._data = b""
        return b"".join(parts)

    def rest(self) -> bytes:
        """Everything until the server closes."""
        out = self._data
        while more := self.socket.recv(65536):
            out += more
        return out

    def log_in(self, user: str = "kalam", **parameters: str) -> tuple[int, bytes]:
        """Log in where no password is asked for; pid and key for cancel requests."""
        self.send(frames.startup(user=user, **parameters))
        data = self.until("Z")
        body = next(body for kind, body in frames.split(data) if kind == "K")
        return struct.unpack_from("!i", body)[0], body[4:]


@contextmanager
def rig(*accounts: StoredAccount, **given: object) -> Iterator[Rig]:
    running = Rig(make_settings(**given), StoredAccounts(*accounts), asyncio.new_event_loop())
    try:
        yield running
    finally:
        running.stop()
