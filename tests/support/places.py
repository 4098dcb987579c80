"""Where the tests' servers keep their data: in memory, if there is room.

Tests make many small commits, each of which waits for the disk, and what survives a killed process does so in memory.
Paths are short, as a socket's may have about 100 characters.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
ROOM = 4 << 30


@functools.cache
def parent() -> Path:
    if os.access(MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(MEMORY).free >= ROOM:
        return MEMORY
    return Path("/tmp")


def new(prefix: str) -> Path:
    """A new directory."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=parent()))
