"""Contents of FILE columns: files beside a table's segments, each stored once for a tenant, found by its SHA-256.

``kalam_contents`` has a row for every content that is there to be referred to. It is written after the file is durable,
so that a crash leaves a file without a row (removed at the next start), never a row without a file. ``userid``: the
tenant, "" in shared tables; another tenant's content of the same hash is another file. ``put_at``: when it was last
put; ``unused_since``: when nothing was found to refer to it, NULL where something does (milliseconds of Unix time).
A file's name has a random part, so that a content which is removed and put again is never the same file.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import apsw

from kalamdb import reference
from kalamdb.errors import KalamError
from kalamdb.store.files import disk_error, told, unlink_scratch
from kalamdb.store.manifest import Query

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS kalam_contents (table_id INTEGER NOT NULL, userid TEXT NOT NULL, sha256 BLOB NOT NULL, "
    "size INTEGER NOT NULL, storage TEXT NOT NULL, file TEXT NOT NULL, put_at INTEGER NOT NULL, unused_since INTEGER, "
    "PRIMARY KEY (table_id, userid, sha256)) STRICT, WITHOUT ROWID",
)
OWN_FILE = re.compile(rf"\d+/{reference.FOLDER}/[0-9a-f]{{64}}-[0-9a-f]{{32}}")
_PIECE = 1 << 20

Owner = tuple[str, bytes]  # tenant, SHA-256


class Storage(Protocol):
    """The part of ``store.storage.Storage`` that writers of segments and contents need."""

    @property
    def id(self) -> str: ...
    def scratch(self) -> Path: ...
    def put(self, name: str, source: Path) -> None: ...
    def fetch(self, name: str) -> Path: ...
    def delete(self, name: str) -> None: ...
    def names(self, prefix: str) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Content:
    userid: str
    sha256: bytes
    size: int
    storage: str
    file: str
    put_at: int
    unused_since: int | None

    @property
    def owner(self) -> Owner:
        return self.userid, self.sha256


_COLUMNS = "userid, sha256, size, storage, file, put_at, unused_since"


def new_name(table_id: int, sha256: bytes) -> str:
    return f"{table_id}/{reference.FOLDER}/{sha256.hex()}-{uuid.uuid4().hex}"


# ---------- reading ----------
def find(query: Query, table_id: int, userid: str, sha256: bytes) -> Content | None:
    found = query(f"SELECT {_COLUMNS} FROM kalam_contents WHERE table_id = ? AND userid = ? AND sha256 = ?",
                  (table_id, userid, sha256))
    return Content(*found[0]) if found else None


def of_table(query: Query, table_id: int) -> list[Content]:
    return [Content(*row) for row in query(f"SELECT {_COLUMNS} FROM kalam_contents WHERE table_id = ?", (table_id,))]


def tables(query: Query) -> list[int]:
    """Ids of the tables that have contents."""
    return [number for (number,) in query("SELECT DISTINCT table_id FROM kalam_contents", ())]


def missing(sha256: bytes) -> KalamError:
    return KalamError("58P01", f"the content {sha256.hex()} of a file is missing",
                      hint="It was removed from outside. Put it again, or restore it from a backup; kalam check lists "
                           "what is missing.")


def damaged(sha256: bytes, what: str) -> KalamError:
    return KalamError("XX001", f"the content {sha256.hex()} of a file is damaged", detail=what,
                      hint="Put it again, or restore it from a backup; kalam check lists what is damaged.")


def problem_of(path: Path, sha256: bytes, size: int, *, quick: bool = False) -> str | None:
    """What is wrong with a content's file, for a sentence that begins with "It"."""
    there = path.stat().st_size
    if there != size:
        return f"has {there} bytes instead of {size}"
    if quick:
        return None
    with path.open("rb") as file:
        return None if hashlib.file_digest(file, "sha256").digest() == sha256 else "has another SHA-256 than its name"


class OpenContent:
    """A content's bytes, which stay readable whatever becomes of the file's name. In worker threads, one at a time."""

    def __init__(self, storage: Storage, found: Content) -> None:
        self.sha256 = found.sha256
        self.size = found.size
        self._name, self._storage = found.file, storage.id
        try:
            self._file: BinaryIO = storage.fetch(found.file).open("rb")
        except FileNotFoundError:
            raise missing(found.sha256) from None
        except KalamError as error:
            raise (missing(found.sha256) if error.sqlstate == "58P01" else error) from None
        except OSError as error:
            raise disk_error(error, "read", found.file, storage.id) from error
        there = os.fstat(self._file.fileno()).st_size
        if there != found.size:
            self._file.close()
            raise damaged(found.sha256, f"It has {there} bytes instead of {found.size}.")
        self._next = 0
        self._digest: Any = hashlib.sha256()

    def read(self, offset: int, count: int) -> bytes:
        """Bytes from ``offset``, fewer only at the end. Whoever reads all in order gets XX001 at the end if they are
        not what the hash says."""
        with told("read", self._name, self._storage):
            self._file.seek(offset)
            data = self._file.read(count)
        if len(data) < min(count, max(0, self.size - offset)):
            raise damaged(self.sha256, "It ends early.")
        if offset == self._next:
            self._digest.update(data)
            self._next += len(data)
            if self._next == self.size and data and self._digest.digest() != self.sha256:
                raise damaged(self.sha256, "It has another SHA-256 than its name.")
        return data

    def close(self) -> None:
        self._file.close()


# ---------- putting ----------
class Upload:
    """A content on its way into a storage: a scratch file. In worker threads, one call at a time."""

    def __init__(self, storage: Storage, limit: int) -> None:
        self.storage = storage
        self.size = 0
        self.path = storage.scratch()
        self._limit = limit
        self._digest: Any = hashlib.sha256()
        self._file: BinaryIO | None = None
        self.over = False
        self.wanted = True  # false: whoever put it has gone

    @property
    def sha256(self) -> bytes:
        digest: bytes = self._digest.digest()
        return digest

    def append(self, data: bytes) -> None:
        """After an error nothing is left of the whole."""
        if self.over:
            raise KalamError("55000", "the upload has ended")
        if self.size + len(data) > self._limit:
            self.abandon()
            raise KalamError("54000", f"the file is larger than {self._limit >> 20} MiB",
                             hint='The server\'s setting "files.max_mib" says how large a file may be.')
        try:
            with told("write", self.path.name, self.storage.id):
                if self._file is None:
                    self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC,
                                                   0o600), "wb", buffering=0)
                view = memoryview(data)
                while view:
                    view = view[self._file.write(view):]
        except BaseException:
            self.abandon()
            raise
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> None:
        """No more will come."""
        self.append(b"")
        assert self._file is not None
        self._file.close()
        self.over = True

    def abandon(self) -> None:
        self.over = True
        if self._file is not None:
            self._file.close()
        unlink_scratch(self.path)


# ---------- changing, in the writer's thread ----------
def touch(connection: apsw.Connection, table_id: int, found: Content, now: int) -> bool:
    """It was put once more. False where it is gone, or another file's."""
    connection.execute("UPDATE kalam_contents SET put_at = ?, unused_since = NULL "
                       "WHERE table_id = ? AND userid = ? AND sha256 = ? AND file = ?",
                       (now, table_id, found.userid, found.sha256, found.file))
    return connection.changes() > 0


def add(connection: apsw.Connection, table_id: int, made: Content) -> list[tuple[str, str]]:
    """Storage and name of the file that it takes the place of, if there is one."""
    key = (table_id, made.userid, made.sha256)
    before: list[Any] = connection.execute(
        "SELECT storage, file FROM kalam_contents WHERE table_id = ? AND userid = ? AND sha256 = ?", key).fetchall()
    connection.execute(
        f"REPLACE INTO kalam_contents (table_id, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, NULL)",
        (*key, made.size, made.storage, made.file, made.put_at))
    _remove(connection, before, made.put_at)
    return [(storage, file) for storage, file in before]


def _remove(connection: apsw.Connection, files: Sequence[tuple[str, str]], now: int) -> None:
    connection.executemany("REPLACE INTO kalam_removed VALUES (?, ?, ?)",
                           [(storage, file, now) for storage, file in files])


def settle(connection: apsw.Connection, table_id: int, *, used: Sequence[Content], unused: Sequence[Content],
           dead: Sequence[Content], now: int) -> list[tuple[str, str]]:
    """What a look at a table's references found. Contents that were put meanwhile stay as they are; the files of the
    dead ones that are gone now."""
    where = "WHERE table_id = ? AND userid = ? AND sha256 = ? AND put_at = ?"
    connection.executemany(f"UPDATE kalam_contents SET unused_since = NULL {where}",
                           [(table_id, *each.owner, each.put_at) for each in used])
    connection.executemany(f"UPDATE kalam_contents SET unused_since = ? {where}",
                           [(now, table_id, *each.owner, each.put_at) for each in unused])
    gone = []
    for each in dead:
        connection.execute(f"DELETE FROM kalam_contents {where}", (table_id, *each.owner, each.put_at))
        if connection.changes():
            gone.append((each.storage, each.file))
    _remove(connection, gone, now)
    return gone


def forget_table(connection: apsw.Connection, table_id: int, now: int) -> list[tuple[str, str]]:
    """A dropped table's contents become files to remove."""
    files: list[Any] = connection.execute("SELECT storage, file FROM kalam_contents WHERE table_id = ?",
                                          (table_id,)).fetchall()
    _remove(connection, files, now)
    connection.execute("DELETE FROM kalam_contents WHERE table_id = ?", (table_id,))
    return [(storage, file) for storage, file in files]
