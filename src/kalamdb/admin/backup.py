"""Backups: a consistent copy of the database file, and the segments and contents of FILE columns that it names.

A backup directory holds ``segments/<storage>/<file>``, shared by all backups in it (these files never change, so that
each is copied once), and ``backups/<name>/`` with the database and ``backup.json``. A backup is there when its
directory has its name, which is the last step. The server may go on writing: the database is copied as of one instant,
and when a segment of that instant has been merged into another meanwhile, or a content removed, the copy is taken anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import apsw

from kalamdb.admin.files import Readable
from kalamdb.catalog import formats
from kalamdb.catalog.catalog import last_commit
from kalamdb.errors import KalamError
from kalamdb.store import contents
from kalamdb.store.files import sync
from kalamdb.store.hot import open_connection
from kalamdb.store.segment import checksum_of
from kalamdb.store.storage import DIRECTORY, LOCAL

#: times that a copy is taken anew because segments went away meanwhile
ATTEMPTS = 10
FACTS = "backup.json"
Progress = Callable[[int, int, int], None]  # files done, files in all, bytes copied


@dataclass(frozen=True)
class SegmentCopy:
    storage: str
    file: str
    bytes: int
    checksum: str

    @property
    def place(self) -> str:
        return f"{self.storage}/{self.file}"

    def is_at(self, path: Path) -> bool:
        """Is the file there what it was?"""
        return path.is_file() and checksum_of(path) == self.checksum


@dataclass(frozen=True)
class ContentCopy(SegmentCopy):
    """A content of a FILE column, whose checksum is its SHA-256."""

    def is_at(self, path: Path) -> bool:
        return path.is_file() and contents.problem_of(path, bytes.fromhex(self.checksum), self.bytes) is None


@dataclass(frozen=True)
class Backup:
    """``copied``: bytes of files that no earlier backup had."""

    name: str
    format: int
    server_id: str
    last_seq: int
    checksum: str  # of the database
    segments: tuple[SegmentCopy, ...]
    contents: tuple[ContentCopy, ...] = ()
    copied: int = 0

    @property
    def files(self) -> tuple[SegmentCopy, ...]:
        return (*self.segments, *self.contents)


def backups(root: Path) -> list[Backup]:
    """Complete ones, oldest first."""
    return [_load(path) for path in sorted((root / "backups").glob("*")) if (path / FACTS).is_file()
            and not path.name.endswith(".part")]


def _load(path: Path) -> Backup:
    try:
        found = json.loads((path / FACTS).read_text(encoding="utf-8"))
        segments = tuple(SegmentCopy(**item) for item in found.pop("segments"))
        held = tuple(ContentCopy(**item) for item in found.pop("contents", ()))
        return Backup(**found, segments=segments, contents=held)
    except (ValueError, TypeError, KeyError) as error:
        raise KalamError("58030", f"{path / FACTS} is damaged: {error}") from None


# ---------- backup ----------
def take(data: Path, storages: dict[str, Readable], root: Path, progress: Progress) -> Backup:
    """A new backup of a data directory, of a running server's too."""
    if not (data / "hot.db").is_file():
        raise KalamError("58P01", f"{data} is not a data directory: it has no hot.db")
    with _alone(root):
        return _take(data, storages, root, progress)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One at a time in a backup directory: 55006 for the second. What an interrupted one left is removed."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _private(root / "backups", root)
    handle = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KalamError("55006", f"another backup is being made in {root}") from None
        for left in [*(root / "backups").glob("*.part"), *(root / "segments").rglob("*.part")]:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield
    finally:
        os.close(handle)


def _private(directory: Path, root: Path) -> None:
    """Make it, and what is missing above it, for the owner only."""
    for path in [*reversed(directory.relative_to(root).parents), directory.relative_to(root)]:
        (root / path).mkdir(mode=0o700, exist_ok=True)


def _take(data: Path, storages: dict[str, Readable], root: Path, progress: Progress) -> Backup:
    name = _new_name(root)
    part = root / "backups" / f"{name}.part"
    part.mkdir(mode=0o700)
    try:
        copied = 0
        for _ in range(ATTEMPTS):
            facts = _copy_database(data, part / "hot.db")
            try:
                copied += _copy_files((*facts["segments"], *facts["contents"]), storages, root, progress)
                break
            except KalamError as error:
                if error.sqlstate != "58P01":
                    raise
                (part / "hot.db").unlink()
        else:
            raise KalamError("58P01", "segment files went away while they were copied",
                             hint="kalam check tells whether the data directory is sound.")
        made = Backup(name, copied=copied, **facts)
        (part / FACTS).write_text(json.dumps(asdict(made)), encoding="utf-8")
        sync(part / FACTS)
        sync(part)
        part.rename(root / "backups" / name)
        sync(root / "backups")
        return made
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _new_name(root: Path) -> str:
    """Names sort by time."""
    known = {backup.name for backup in backups(root)}
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    name, number = stamp, 1
    while name in known:
        number += 1
        name = f"{stamp}-{number}"
    return name


def _copy_database(data: Path, target: Path) -> dict[str, Any]:
    """One instant of the database, without the free space in it; and what it says of itself."""
    connection = open_connection(data / "hot.db", read_only=True)
    try:
        connection.execute("VACUUM INTO ?", (str(target),))
    except apsw.Error as error:
        target.unlink(missing_ok=True)
        raise KalamError("58030", f"could not copy the database: {error}") from None
    finally:
        connection.close(True)
    target.chmod(0o600)
    sync(target)
    copy = apsw.Connection(str(target), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        refused = formats.refusal(*formats.found(copy))
        if refused is not None:
            raise refused
        facts: list[Any] = copy.execute("SELECT name, value FROM kalam_meta").fetchall()
        meta: dict[str, Any] = dict(facts)
        last = max(meta.get("last_seq", 0), last_commit(copy))
        rows: list[Any] = copy.execute(
            "SELECT storage, file, bytes, checksum FROM kalam_segments ORDER BY storage, file").fetchall()
        segments = tuple(SegmentCopy(*row) for row in rows)
        held = tuple(_contents(copy))
    finally:
        copy.close(True)
    return {"format": meta["format"], "server_id": meta["server_id"], "last_seq": last,
            "checksum": checksum_of(target), "segments": segments, "contents": held}


def _contents(copy: apsw.Connection) -> Iterator[ContentCopy]:
    """Of a directory that no program of this version has opened, none."""
    if not copy.execute("SELECT 1 FROM sqlite_schema WHERE name = 'kalam_contents'").fetchall():
        return
    rows: list[Any] = copy.execute("SELECT storage, file, size, sha256 FROM kalam_contents ORDER BY storage, file"
                                   ).fetchall()
    for storage, file, size, sha256 in rows:
        yield ContentCopy(storage, file, size, sha256.hex())


def _copy_files(segments: tuple[SegmentCopy, ...], storages: dict[str, Readable], root: Path, progress: Progress
                   ) -> int:
    copied = 0
    for done, segment in enumerate(segments):
        progress(done, len(segments), copied)
        target = root / "segments" / segment.place
        if segment.is_at(target):  # a copy may have been damaged since
            continue
        storage = storages.get(segment.storage)
        if storage is None:
            raise KalamError("42704", f'storage "{segment.storage}" is not configured')
        _private(target.parent, root)
        _copy(storage.fetch(segment.file), target, segment)
        copied += segment.bytes
    progress(len(segments), len(segments), copied)
    return copied


def _copy(source: Path, target: Path, segment: SegmentCopy) -> None:
    """A file that is there whole, verified, or not at all."""
    part = target.with_name(target.name + ".part")
    try:
        shutil.copyfile(source, part)
    except FileNotFoundError:
        raise KalamError("58P01", f'segment file "{segment.file}" is missing') from None
    part.chmod(0o600)
    if not segment.is_at(part):
        part.unlink()
        raise KalamError("XX001", f'segment file "{segment.place}" is damaged', hint="kalam check tells what else is.")
    sync(part)
    os.replace(part, target)
    sync(target.parent)


def prune(root: Path, keep: int) -> list[str]:
    """Remove all but the newest ``keep`` backups, and files that none of those needs; the names removed."""
    with _alone(root):
        return _prune(root, keep)


def _prune(root: Path, keep: int) -> list[str]:
    found = backups(root)
    gone, kept = found[: max(0, len(found) - keep)], found[max(0, len(found) - keep) :]
    for backup in gone:
        shutil.rmtree(root / "backups" / backup.name)
    needed = {segment.place for backup in kept for segment in backup.files}
    places = root / "segments"
    for path in list(places.rglob("*")):
        if path.is_file() and path.relative_to(places).as_posix() not in needed:
            path.unlink()
    return [backup.name for backup in gone]


# ---------- restore ----------
def choose(root: Path, name: str | None) -> Backup:
    found = backups(root)
    if not found:
        raise KalamError("58P01", f"there is no backup in {root}")
    if name is None:
        return found[-1]
    for backup in found:
        if backup.name == name:
            return backup
    raise KalamError("58P01", f'there is no backup "{name}" in {root}', hint=f"The newest is {found[-1].name}.")


def restore(root: Path, backup: Backup, data: Path, progress: Progress) -> None:
    """Make a data directory of a backup; all its files become those of the storage ``local``, and storages outside
    are not its own. ``data`` must be empty or not there; after an error it is as before."""
    if data.exists() and any(data.iterdir()):
        raise KalamError("58P02", f"{data} is not empty", hint="Restore into a new directory.")
    refused = formats.refusal(backup.format, None)
    if refused is not None:
        raise refused
    existed = data.exists()
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        _restore(root, backup, data, progress)
    except BaseException:
        for path in data.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not existed:
            data.rmdir()
        raise


def _restore(root: Path, backup: Backup, data: Path, progress: Progress) -> None:
    source = root / "backups" / backup.name / "hot.db"
    database = data / "hot.db.part"  # the last to get its name: without it, it is no data directory
    shutil.copyfile(source, database)
    database.chmod(0o600)
    if checksum_of(database) != backup.checksum:
        raise KalamError("XX001", f'the database of backup "{backup.name}" is damaged')
    copied = 0
    for done, segment in enumerate(backup.files):
        progress(done, len(backup.files), copied)
        copy = root / "segments" / segment.place
        if not copy.is_file():
            raise KalamError("58P01", f'segment file "{segment.place}" is missing in the backup')
        target = data / DIRECTORY / segment.file
        _private(target.parent, data)
        _copy(copy, target, segment)
        copied += segment.bytes
    progress(len(backup.files), len(backup.files), copied)
    connection = open_connection(database)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE kalam_segments SET storage = ?", (LOCAL,))
        if backup.contents:
            connection.execute("UPDATE kalam_contents SET storage = ?", (LOCAL,))
        connection.execute("DELETE FROM kalam_removed")
        # In storages outside it is another server than the one that wrote there, which may be running.
        connection.execute("DELETE FROM kalam_meta WHERE name = 'storage_owner'")
        connection.execute("COMMIT")
        connection.pragma("journal_mode", "delete")  # all of it is in the one file
    finally:
        connection.close()
    sync(database)
    database.rename(data / "hot.db")
    sync(data)
