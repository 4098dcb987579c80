"""What the parts of the stack share: the error, waiting, processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

Report = Callable[[str], None]


class StackError(Exception):
    """Something the caller can act upon; ``hint`` says how."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def silent(_: str) -> None:
    pass


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time; others wait."""
    try:
        handle = path.open("w")
    except OSError as error:
        raise StackError(f"cannot use {path.parent}: {error.strerror}") from None
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Does a living process hold the lock?"""
    try:
        handle = path.open("r+")
    except OSError:
        return False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not is_zombie(pid)


def is_zombie(pid: int) -> bool:
    """Has it ended without its parent having noticed?"""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def working_in(folder: Path) -> bool:
    """Does a process have this folder as its working directory?"""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            if link.readlink() == folder.resolve():
                return True
    return False


def runs_in(pid: int, folder: Path) -> bool:
    """Is this process the one that was started with this folder? A process number may have been used again."""
    if not alive(pid):
        return False
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
        said = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, check=False).stdout
        words = said.split()
    except OSError:
        return False
    return os.fsencode(folder) in words


def spawn(command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A process of its own session, which goes on when this one ends; its output goes to the log."""
    with log.open("ab") as output:
        return subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=env,
            cwd="/",
        )


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def end(pid: int, first: signal.Signals, seconds: float, last: signal.Signals) -> None:
    """Ask a process to end, and make it after a while."""
    for how, patience in ((first, seconds), (last, 10.0)):
        with suppress(ProcessLookupError):
            os.kill(pid, how)
        if wait_for(lambda: not alive(pid), patience):
            return
    raise StackError(f"process {pid} does not end")


def tail(log: Path, lines: int = 15) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


def python() -> str:
    return sys.executable
