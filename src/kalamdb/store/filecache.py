"""Local copies of remote files under a byte budget; the ones used longest ago go first.

It begins empty: the truth is elsewhere, and a copy of a former life may be half written or of another bucket. Several
threads that ask for the same file share one download. A path that ``get`` gave stays for ``HELD`` seconds at least, so
that its caller can open it; the budget is exceeded by such files only.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from kalamdb.store.files import Scratch

log = logging.getLogger(__name__)

HELD = 2.0


@dataclass(slots=True)
class _Entry:
    path: Path
    size: int
    used: float


class FileCache:
    """``load(name, target, make_room)`` writes the whole file; it calls ``make_room(size)`` before it writes."""

    def __init__(self, directory: Path, budget: int, load: Callable[[str, Path, Callable[[int], None]], None], *,
                 clock: Callable[[], float] = time.monotonic) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self._scratch = Scratch(directory)
        self._budget = budget
        self._load = load
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the one used longest ago first
        self._loading: dict[str, Future[Path]] = {}
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Size of the copies."""
        with self._lock:
            return self._bytes

    def new(self) -> Path:
        """A path in the cache's file system, for ``add`` to take."""
        return self._scratch.new()

    def get(self, name: str) -> Path:
        with self._lock:
            if (entry := self._entries.get(name)) is not None:
                if entry.path.exists():
                    entry.used = self._clock()
                    self._entries.move_to_end(name)
                    return entry.path
                self._drop(name)  # somebody emptied the cache's directory
            if (other := self._loading.get(name)) is None:
                mine = self._loading[name] = Future[Path]()
        return self._download(name, mine) if other is None else other.result()

    def _download(self, name: str, future: Future[Path]) -> Path:
        path = self.new()
        try:
            self._load(name, path, self._make_room)
            self.add(name, path)
        except BaseException as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            future.set_exception(error)
            raise
        else:
            future.set_result(path)
            return path
        finally:
            with self._lock:
                del self._loading[name]

    def add(self, name: str, path: Path) -> None:
        """Keep a file of a path from ``new``, in place of what the name had."""
        size = path.stat().st_size
        with self._lock:
            self._drop(name)
            self._entries[name] = _Entry(path, size, self._clock())
            self._bytes += size
            self._shrink(0)

    def discard(self, name: str) -> None:
        with self._lock:
            self._drop(name)

    def _make_room(self, size: int) -> None:
        with self._lock:
            self._shrink(size)

    def _shrink(self, coming: int) -> None:
        held = self._clock() - HELD
        while self._entries and self._bytes + coming > self._budget:
            name, entry = next(iter(self._entries.items()))
            if entry.used > held:
                return
            self._drop(name)

    def _drop(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        self._bytes -= entry.size
        try:
            entry.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("could not remove %s from the cache: %s", entry.path, error.strerror)
