"""Segment files of a data directory, for reading by another process than its server.

The server's own storages tidy up when they are opened; these change nothing in the data directory.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from kalamdb.errors import KalamError
from kalamdb.settings import Settings
from kalamdb.store.storage import DIRECTORY, LOCAL, open_storages


class Readable(Protocol):
    def fetch(self, name: str) -> Path: ...
    def names(self, prefix: str) -> list[str]: ...


class LocalFiles:
    """The directory of the storage ``local``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def fetch(self, name: str) -> Path:
        path = self._directory / name
        if not path.is_file():
            raise KalamError("58P01", f'segment file "{name}" of storage "{LOCAL}" is missing')
        return path

    def names(self, prefix: str) -> list[str]:
        found = (path.relative_to(self._directory) for path in self._directory.rglob("*") if path.is_file())
        names = [path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts)]
        return sorted(name for name in names if name.startswith(prefix))


@contextmanager
def readable_storages(data: Path, settings: Settings) -> Iterator[dict[str, Readable]]:
    """All storages by name; the caches of remote ones are temporary."""
    found: dict[str, Readable] = {LOCAL: LocalFiles(data / DIRECTORY)}
    with ExitStack() as stack:
        if settings.storages:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kalam-")))
            for name, storage in open_storages(place, settings).items():
                stack.callback(storage.close)
                if name != LOCAL:
                    found[name] = storage
        yield found


@contextmanager
def offline(data: Path) -> Iterator[None]:
    """No server may run on the directory meanwhile: 55006 if one does."""
    if not (data / "hot.db").is_file():
        raise KalamError("58P01", f"{data} is not a data directory: it has no hot.db")
    handle = os.open(data / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KalamError("55006", f"a server uses the data directory {data}", hint="kalam down stops it.") from None
        yield
    finally:
        os.close(handle)
