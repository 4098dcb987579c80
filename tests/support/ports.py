"""Free ports, and waiting for a condition; nothing in the tests waits for time alone."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path


def reserved_port() -> socket.socket:
    """Bound to a port that nobody else gets, neither to listen nor to connect from, while the socket is open.

    A server that is told of the port can listen there, as it too has SO_REUSEADDR, and again after it was down.
    """
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", 0))
    return found


def free_port() -> int:
    """A port nobody listens on now, for who will not listen there either."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clients_of(port: int) -> set[int]:
    """Ports of this machine that are connected to that one, as their own side of the connection sees it."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows
            if int(row[2].rpartition(":")[2], 16) == port and row[3] == "01"}


def wait_until(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Return as soon as the condition is true; fail with `what` if it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds:g} s"
        time.sleep(0.01)
