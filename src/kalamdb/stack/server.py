"""The KalamDB server as a process of the stack."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from kalamdb.settings import fits_socket, socket_file
from kalamdb.stack.common import StackError, alive, end, is_locked, python, spawn, tail, wait_for

SOCKETS = "run"
START_SECONDS = 30.0
STOP_SECONDS = 45.0


def may_hold_sockets(folder: Path) -> bool:
    """A socket's path is short, and a comma separates hosts for libpq."""
    return "," not in str(folder) and fits_socket(socket_file(folder, 65535))


def own_sockets(data: Path) -> Path | None:
    """A directory for Unix-domain sockets that only who runs the server may enter; None if there can be none in this
    data directory, for its path or since its file system has no sockets."""
    folder = data / SOCKETS
    if not may_hold_sockets(folder):
        return None
    trial = folder / f".{os.getpid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(trial))
        trial.unlink()
    except OSError:
        return None
    return folder


class ServerProcess:
    """The server of a data directory."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.log = data / "kalamdb.log"

    @property
    def running(self) -> bool:
        return is_locked(self.data / "server.lock")

    def state(self) -> dict[str, Any] | None:
        """What the server says of itself, once it is ready."""
        if not self.running:
            return None
        try:
            found: dict[str, Any] = json.loads((self.data / "server.json").read_text())
        except (OSError, ValueError):
            return None
        return found if alive(found["pid"]) else None

    def start(self, rpc_port: int, http_port: int, socket_dir: Path | None) -> subprocess.Popen[bytes]:
        """``socket_dir``: where it is to listen on a Unix-domain socket; None: as its settings say."""
        (self.data / "server.json").unlink(missing_ok=True)
        command = [python(), "-m", "kalamdb.server", "--data", str(self.data), "--rpc-port", str(rpc_port),
                   "--http-port", str(http_port)]
        if socket_dir is not None:
            command += ["--rpc-socket-dir", str(socket_dir)]
        return spawn(command, self.log)

    def wait(self, process: subprocess.Popen[bytes] | None) -> dict[str, Any]:
        def ready() -> bool:
            if process is not None and process.poll() is not None:
                raise StackError(f"the KalamDB server did not start; the end of {self.log}:\n{tail(self.log)}")
            return self.state() is not None

        if not wait_for(ready, START_SECONDS):
            raise StackError(f"the KalamDB server is not ready after {START_SECONDS:g} s", f"Its log is {self.log}.")
        state = self.state()
        assert state is not None
        return state

    def stop(self) -> bool:
        """SIGTERM, and wait; was it running?"""
        state = self.state()
        if state is None:
            if self.running and not wait_for(lambda: self.state() is not None or not self.running, START_SECONDS):
                raise StackError("the KalamDB server is starting and does not get ready", f"Its log is {self.log}.")
            state = self.state()
            if state is None:
                return False
        end(state["pid"], signal.SIGTERM, STOP_SECONDS, signal.SIGKILL)
        return True
