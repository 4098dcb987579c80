"""A disk that fails on demand, below one directory of one process: see ``disk.c``."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = Path(__file__).with_name("disk.c")
_FORM = struct.Struct("5i1004s")


def build(place: Path) -> Path:
    library = place / "disk.so"
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Disk:
    """``environment`` makes a process use it; ``root`` is the directory, which may be another one later."""

    def __init__(self, library: Path, control: Path) -> None:
        control.write_bytes(bytes(_FORM.size))
        with control.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _FORM.size)
        self.root = Path("/nowhere")
        self.environment = {"LD_PRELOAD": str(library), "DISK_CONTROL": str(control)}

    @contextmanager
    def failing(self, kind: str, after: int = 0) -> Iterator[None]:
        """"full": nothing can be written; "sync": nor synchronised; "read-only": nor made or removed. ``after`` so many
        such calls that work."""
        self.fail(kind, after)
        try:
            yield
        finally:
            self.mend()

    def fail(self, kind: str, after: int = 0) -> None:
        errors = {"full": (0, errno.ENOSPC, 0), "sync": (errno.EIO, 0, 0),
                  "read-only": (0, errno.EROFS, errno.EROFS)}[kind]
        self._map[:] = _FORM.pack(*errors, after, 0, os.fsencode(self.root))

    def mend(self) -> None:
        self._map[:12] = bytes(12)

    @property
    def failed(self) -> int:
        """How many calls have failed since ``fail``."""
        found: int = _FORM.unpack(self._map[:])[4]
        return found

    def close(self) -> None:
        self._map.close()
