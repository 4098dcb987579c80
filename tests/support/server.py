"""A KalamDB server process of the tests' own: own data directory, free ports, killed and restarted on the same data."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg

from . import places
from .nursery import Child, Nursery
from .ports import reserved_port, wait_until


@functools.cache
def mother() -> Nursery:
    """Of the servers of this test run: a start is a fork, where Python would import for a second."""
    found = Nursery("kalamdb.server", "kalamdb.sql.executor")
    atexit.register(found.close)
    return found


class KalamServer:
    """One server; settings as their names with __ for the dot (``rpc__max_message="1"``).

    It has two ports for itself, also while it is down, as clients know them. ``nursery``: whose child it is; None makes
    it a Python of its own, as one that users start.
    """

    def __init__(self, **settings: str) -> None:
        self.dir = places.new("kdb")
        self.data = self.dir / "data"
        self.log = self.dir / "log"
        reserved = {name: reserved_port() for name in ("rpc__port", "http__port") if name not in settings}
        self.settings = {**{name: str(port.getsockname()[1]) for name, port in reserved.items()}, **settings}
        self._reserved = [port.detach() for port in reserved.values()]
        self.process: subprocess.Popen[bytes] | Child | None = None
        self.nursery: Nursery | None = mother()
        self.port = 0
        self.http: str | None = None

    @classmethod
    def over(cls, data: Path) -> KalamServer:
        """On a data directory that is there."""
        server = cls()
        server.data = data
        return server

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None, "the server was not started"
        return self.process.pid

    def start(self) -> None:
        """Start it unless it runs, and wait until it says that it is ready."""
        if self.running:
            return
        (self.data / "server.json").unlink(missing_ok=True)
        self.process = self.spawn()
        wait_until(self._state, "the server's start", 30)
        state = self._state()
        self.port = state["rpc"]["port"]
        self.http = state["http"]
        self.settings["rpc__port"] = str(self.port)
        if self.http:
            self.settings["http__port"] = self.http.rpartition(":")[2]

    def spawn(self) -> subprocess.Popen[bytes] | Child:
        """Its process, which may end at once."""
        if self.nursery is not None:
            return self.nursery.spawn("kalamdb.server:main", [], environment=self._environment(), log=self.log)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "kalamdb.server"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment(), cwd=self.dir,
            )  # fmt: skip

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KALAM_")}
        given = {"data": str(self.data), **self.settings}
        return inherited | {f"KALAM_{name.replace('__', '_').upper()}": value for name, value in given.items()}

    def _state(self) -> dict[str, Any]:
        assert self.running, f"the server did not start:\n{self.log_since(0)[-4000:]}"
        try:
            found: dict[str, Any] = json.loads((self.data / "server.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return found

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int | None:
        """End it as its administrator would; its exit code."""
        if self.process is None:
            return None
        if self.running:
            self.process.send_signal(how)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not end in 40 s:\n{self.log_since(0)[-4000:]}") from None
        finally:
            self.process = None

    def kill(self) -> None:
        """kill -9: nothing is said, flushed or closed."""
        self.stop(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        try:
            self.stop()
        finally:
            while self._reserved:
                os.close(self._reserved.pop())
            shutil.rmtree(self.dir, ignore_errors=True)

    def dsn(self, user: str = "kalam", host: str = "127.0.0.1", **more: str) -> str:
        """How a PostgreSQL client reaches the server itself."""
        return psycopg.conninfo.make_conninfo("", host=host, port=str(self.port), user=user, dbname="kalam", **more)

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def log_since(self, offset: int) -> str:
        """What was logged after this size of the log."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")
