"""Processes that start at once: a mother that has imported everything forks them.

For tests that kill a process a hundred times, where importing would be nearly all they do. ``python nursery.py`` is the
mother. She reads a line for each child, JSON with what to run (``module:function``, called with ``arguments``), its
environment and its log, and says on her output who was born and who ended. What a child says on its own output comes
there too, before its end: whole lines, written at once.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

#: libraries that start some when they are loaded
_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}


class Nursery:
    """``environment``: the mother's, on top of this process's own without KalamDB's settings. Threads may share it."""

    def __init__(self, *modules: str, environment: Mapping[str, str] | None = None) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("KALAM_")}
        self._mother = subprocess.Popen(
            [sys.executable, __file__, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            env=inherited | _NO_THREADS | dict(environment or {}))
        self._one = threading.RLock()
        self._ended: dict[int, int] = {}
        self._said: list[bytes] = []
        self._rest = b""

    def spawn(self, work: str, *arguments: Any, environment: Mapping[str, str] | None = None, log: Path | None = None
              ) -> Child:
        order = {"work": work, "arguments": arguments, "environment": dict(environment or {}),
                 "log": None if log is None else str(log)}
        assert self._mother.stdin is not None
        with self._one:
            self._mother.stdin.write(json.dumps(order).encode() + b"\n")
            while True:
                word, *rest = self._line(60).split()
                if word == b"born":
                    return Child(self, int(rest[0]))

    def _line(self, timeout: float) -> bytes:
        """The mother's next line, b"" if none comes in time."""
        with self._one:
            return self._read_line(timeout)

    def _read_line(self, timeout: float) -> bytes:
        assert self._mother.stdout is not None
        until = time.monotonic() + timeout
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._mother.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return b""
            more = self._mother.stdout.read(65536)
            assert more, "the mother is gone"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        if line.startswith(b"ended "):
            pid, status = map(int, line.split()[1:])
            self._ended[pid] = status
        elif not line.startswith(b"born "):
            self._said.append(line)
        return line

    def look(self, timeout: float = 0.0) -> bool:
        """Take note of the next line; was there one?"""
        return bool(self._line(timeout))

    def said(self) -> list[bytes]:
        found, self._said = self._said, []
        return found

    def close(self) -> None:
        assert self._mother.stdin is not None
        self._mother.stdin.close()
        self._mother.wait(30)
        assert self._mother.stdout is not None
        self._mother.stdout.close()


class Child:
    """As ``subprocess.Popen`` has it."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.nursery = nursery
        self.pid = pid

    def poll(self) -> int | None:
        while self.pid not in self.nursery._ended and self.nursery.look():
            pass
        return self.nursery._ended.get(self.pid)

    def wait(self, timeout: float = 60.0) -> int:
        until = time.monotonic() + timeout
        while (status := self.poll()) is None:
            left = until - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired("a child", timeout)
            self.nursery.look(min(left, 0.1))  # others may want to look
        return status

    def lines(self, count: int) -> list[bytes]:
        """So many lines, fewer if it ends before; those after them are for ``nursery.said``."""
        found: list[bytes] = []
        while len(found) < count and (self.poll() is None or self.nursery._said):
            if not self.nursery._said:
                self.nursery.look(60)
                continue
            found.append(self.nursery._said.pop(0))
        return found

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# ---------- the mother ----------
def _mother(modules: list[str]) -> None:
    for module in modules:
        importlib.import_module(module)
    assert len(os.listdir("/proc/self/task")) == 1, "a thread would not be in the child"
    tell, told = os.pipe()
    os.set_blocking(told, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who ends the test run closes her input
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(told)
    children: set[int] = set()
    orders = b""
    while True:
        ready, _, _ = select.select([0, tell], [], [])
        if tell in ready:
            os.read(tell, 1000)
            _report(children)
        if 0 in ready:
            more = os.read(0, 65536)
            if not more:
                break
            orders += more
            while b"\n" in orders:
                order, _, orders = orders.partition(b"\n")
                children.add(_bear(json.loads(order)))
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _report(children: set[int]) -> None:
    for pid in list(children):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            children.discard(pid)
            os.write(1, f"ended {pid} {os.waitstatus_to_exitcode(status)}\n".encode())


def _bear(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        os.write(1, f"born {pid}\n".encode())
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if order["log"] is not None:
            log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
        os.environ.update(order["environment"])
        module, _, name = order["work"].partition(":")
        work: Callable[..., Any] = getattr(importlib.import_module(module), name)
        code = work(*order["arguments"]) or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    _mother(sys.argv[1:])
