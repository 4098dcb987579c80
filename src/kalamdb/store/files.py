"""Segment files on a disk: which names they may have, how they get there for good, and how failures are told.

A name is relative, with "/" between its parts, of letters, digits, ".", "_" and "-"; no part begins with a dot, so that
a name cannot leave its storage and what begins with a dot there is never a segment.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from kalamdb.errors import KalamError

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}){0,7}", re.ASCII)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_name(name: str, storage: str) -> str:
    if not _NAME.fullmatch(name):
        raise KalamError("42602", f'invalid name {name!r} of a segment file of storage "{storage}"')
    return name


def check_prefix(prefix: str, storage: str) -> str:
    if prefix and not _NAME.fullmatch(prefix.removesuffix("/")):
        raise KalamError("42602", f'invalid prefix {prefix!r} of segment files of storage "{storage}"')
    return prefix


# ---------- errors ----------
def missing(name: str, storage: str) -> KalamError:
    return KalamError("58P01", f'segment file "{name}" of storage "{storage}" is missing',
                      hint="It was removed from outside. Restore it from a backup; kalam check lists what is missing.")


def _reason(error: OSError) -> str:
    text = os.strerror(error.errno) if error.errno else error.strerror  # libraries have longer ones of their own
    return (text or type(error).__name__).lower()


def disk_error(error: OSError, action: str, name: str, storage: str) -> KalamError:
    """``action``: "write", "read", …"""
    message = f'could not {action} segment file "{name}" of storage "{storage}": {_reason(error)}'
    if error.errno in _FULL:
        return KalamError("53100", message, hint="Free space and repeat it.")
    return KalamError("58030", message)


def open_error(error: OSError, storage: str, directory: Path) -> KalamError:
    return KalamError("53100" if error.errno in _FULL else "58030",
                      f'could not use the directory {directory} of storage "{storage}": {_reason(error)}')


@contextlib.contextmanager
def told(action: str, name: str, storage: str) -> Iterator[None]:
    """An OSError within becomes one that clients see."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, action, name, storage) from error


# ---------- directories ----------
def sync(path: Path) -> None:
    """A file's contents, or a directory's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unlink_scratch(path: Path) -> None:
    """An unfinished file that nobody needs. Where it cannot be removed it goes when its directory is opened anew."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("unfinished file %s is not removed: %s", path, error.strerror)


class Scratch:
    """A directory of unfinished files, emptied when it is opened: nobody needs what a former life left in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def new(self) -> Path:
        return self._path / uuid.uuid4().hex


class Tree:
    """Directories below ``root`` in which files appear whole and for good."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(root.parent)
        self._prune()
        # Directories whose entry is on the disk. One that exists need not be: another thread may just have made it.
        self._durable = {root}
        self._lock = threading.Lock()

    def path(self, name: str) -> Path:
        return self.root / name

    def place(self, source: Path, name: str) -> None:
        """Move a finished file of the same file system here; on the disk when it returns."""
        target = self.root / name
        sync(source)
        self._make(target.parent)
        source.replace(target)
        sync(target.parent)

    def _make(self, directory: Path) -> None:
        with self._lock:
            missing = [directory, *directory.parents]
            for path in reversed(missing[: missing.index(self.root)]):
                if path not in self._durable:
                    path.mkdir(mode=0o700, exist_ok=True)
                    sync(path.parent)
                    self._durable.add(path)

    def _prune(self) -> None:
        """Directories of dropped tables go when the server starts, while nobody writes into them."""
        for path, _, _ in os.walk(self.root, topdown=False):
            if path != str(self.root):
                with contextlib.suppress(OSError):  # not empty, which is the ordinary case
                    os.rmdir(path)

    def names(self, prefix: str) -> list[str]:
        start = self.root / prefix.rpartition("/")[0]
        found = []
        for folder, folders, files in os.walk(start, onerror=_reraise):
            folders[:] = [each for each in folders if not each.startswith(".")]
            base = Path(folder).relative_to(self.root)
            found += [(base / file).as_posix() for file in files if not file.startswith(".")]
        return sorted(name for name in found if name.startswith(prefix))


def _reraise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # a prefix without files
        raise error
