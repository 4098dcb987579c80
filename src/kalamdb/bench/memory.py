"""How much the processes grow: a backend and the server during a scan of many rows, the server during one large write.

What counts is anonymous memory (RssAnon): shared buffers and mapped files belong to nobody alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from kalamdb.bench.sides import COLUMNS, ROW, Place

SCANNED = 10_000_000
WRITTEN = 5_000_000
TABLE = "bench_kalam_memory"
_EVERY = 0.05


def _anonymous(pid: int) -> float:
    """MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return 0.0


class _Watch:
    """The largest growth of some processes while it is open."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._before = {name: _anonymous(pid) for name, pid in pids.items()}
        self._most = dict(self._before)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._done.wait(_EVERY):
            for name, pid in self._pids.items():
                self._most[name] = max(self._most[name], _anonymous(pid))

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def grown(self) -> dict[str, float]:
        return {name: self._most[name] - before for name, before in self._before.items()}


def measure(place: Place, server: int, report: Callable[[str], None]) -> list[dict[str, Any]]:
    """``server``: its process id. MiB of growth and the most that is allowed."""
    with place.connect() as connection:
        connection.execute(f"DROP TABLE IF EXISTS {TABLE}")
        connection.execute(f"CREATE TABLE {TABLE} ({COLUMNS}, PRIMARY KEY (id)) USING kalamdb")
        report(f"writing {WRITTEN:,} rows in one statement")
        with _Watch({"server": server}) as writing:
            _fill(connection, 1, WRITTEN)
        report(f"scanning {SCANNED:,} rows")
        _fill(connection, WRITTEN + 1, SCANNED)
        connection.execute(f"SELECT kalam_flush('{TABLE}')")
    with place.connect() as connection:
        connection.execute(f"SELECT id, owner, a, b, c FROM {TABLE} WHERE id = 1")
        with _Watch({"server": server, "backend": connection.info.backend_pid}) as scanning:
            connection.execute(f"EXPLAIN (ANALYZE, TIMING OFF) SELECT id, owner, a, b, c FROM {TABLE}")
        connection.execute(f"DROP TABLE {TABLE}")
    return [
        {"work": f"scan of {SCANNED:,} rows, backend", "grown": scanning.grown["backend"], "must": 64},
        {"work": f"scan of {SCANNED:,} rows, server", "grown": scanning.grown["server"], "must": 256},
        {"work": f"INSERT … SELECT of {WRITTEN:,} rows, server", "grown": writing.grown["server"], "must": 512},
    ]


def _fill(connection: psycopg.Connection[Any], first: int, last: int) -> None:
    connection.execute(f"INSERT INTO {TABLE} (id, owner, a, b, c)"
                       f" SELECT {ROW} FROM generate_series({first}, {last}) AS i")
