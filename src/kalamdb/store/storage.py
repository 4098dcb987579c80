"""Storages: where the immutable segment files of the cold tier lie.

A storage's calls block, are made in worker threads, and are safe in several at a time. A file is seen under its name
whole or not at all, also after ``kill -9``. Errors are ``KalamError`` and name storage and file, never a credential:
58P01 a file is missing, 53100 the disk is full, 58030 anything else that went wrong outside. (Class 08 would tell a
client that its own connection to the server is lost.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from kalamdb.settings import Settings
from kalamdb.store.files import Scratch, Tree, check_name, check_prefix, missing, open_error, told

LOCAL = "local"
DIRECTORY = "segments"
CACHE = "cache"
#: says whose a storage outside the data directory is; none of its files
MARKER = "kalam.json"


class Storage(Protocol):
    @property
    def id(self) -> str:
        """Its name, which ``storage_id`` of a table says."""

    @property
    def kind(self) -> str:
        """``local`` or ``s3``."""

    @property
    def location(self) -> str:
        """For people: a directory or an address, without credentials."""

    def scratch(self) -> Path:
        """A new path to write a segment to. What was not put is removed at the next start."""

    def put(self, name: str, source: Path) -> None:
        """Make the finished file ``source``, of a path from ``scratch``, the segment file ``name``.

        It is durable when this returns, and ``source`` is gone. A file that has the name already was put but never
        published, and is replaced. After an error ``source`` may be there, and the file too: nobody knows.
        """

    def fetch(self, name: str) -> Path:
        """A local path of the whole file, to be opened at once: it may be unlinked later, which does no harm then."""

    def delete(self, name: str) -> None:
        """Remove the file; no error if there is none."""

    def names(self, prefix: str) -> list[str]:
        """Names of all files that begin with ``prefix``, sorted."""

    def close(self) -> None:
        """Give back what it holds; no call may follow."""


class LocalStorage:
    """A directory. Unfinished files are in one of its own, so that the move to the final name is a rename."""

    kind = "local"

    def __init__(self, id_: str, directory: Path) -> None:
        self.id = id_
        self._directory = directory
        try:
            self._tree = Tree(directory)
            self._scratch = Scratch(directory / ".unfinished")
        except OSError as error:
            raise open_error(error, id_, directory) from error

    def __repr__(self) -> str:
        return f"<LocalStorage {self.id!r} {self.location}>"

    @property
    def location(self) -> str:
        return str(self._directory)

    def scratch(self) -> Path:
        return self._scratch.new()

    def put(self, name: str, source: Path) -> None:
        check_name(name, self.id)
        with told("write", name, self.id):
            self._tree.place(source, name)

    def fetch(self, name: str) -> Path:
        path = self._tree.path(check_name(name, self.id))
        with told("read", name, self.id):
            try:
                path.stat()
            except (FileNotFoundError, NotADirectoryError):
                raise missing(name, self.id) from None
        return path

    def delete(self, name: str) -> None:
        with told("delete", name, self.id):
            self._tree.path(check_name(name, self.id)).unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        check_prefix(prefix, self.id)
        with told("list", prefix + "*", self.id):
            return self._tree.names(prefix)

    def close(self) -> None:
        """A directory holds nothing."""


def open_storages(data_dir: Path, settings: Settings | None = None) -> dict[str, Storage]:
    """All storages by name: ``local`` below the data directory, and those of the settings.

    Nothing is asked of a remote one: a server starts though a service is away.
    """
    found: dict[str, Storage] = {LOCAL: LocalStorage(LOCAL, data_dir / DIRECTORY)}
    if settings is not None and settings.storages:
        from kalamdb.store.s3 import S3Storage  # its library takes a while to load, and most servers do without

        for name, storage in settings.storages.items():
            found[name] = S3Storage(name, storage, data_dir / CACHE / name)
    return found
