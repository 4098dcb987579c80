"""Which segments hold a table's cold rows, and which of their rows are dead: kept in the same database as hot rows.

So "these rows left the hot table and that segment appeared" is one SQLite transaction, and a snapshot sees the list of
the same instant. A ``Manifest`` is immutable; every change gives the table's next version. Every row is in one segment
at most (the deletion vectors see to that), and it counts only if neither a hot row nor a tombstone has its key.

``kalam_manifests``: one row per table that has been tiered; ``clean_seq``: rows up to this number are in segments and
are being removed from the hot table. ``kalam_removed``: files that no manifest names, until nobody can read them.
``kalam_flushes``: by table, an instant before which no row of its segments died that is not in a deletion vector. Hot
rows and tombstones do not tell when a row died that was replaced again and again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import apsw
import numpy as np
import numpy.typing as npt

from kalamdb.errors import KalamError
from kalamdb.store.segment import Key, Written
from kalamdb.txn.api import TableDef

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS kalam_manifests (table_id INTEGER PRIMARY KEY, version INTEGER NOT NULL, "
    "clean_seq INTEGER) STRICT",
    "CREATE TABLE IF NOT EXISTS kalam_segments (id INTEGER PRIMARY KEY AUTOINCREMENT, table_id INTEGER NOT NULL, "
    "storage TEXT NOT NULL, file TEXT NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL, checksum TEXT NOT NULL, "
    "first_userid TEXT NOT NULL, first_k ANY NOT NULL, last_userid TEXT NOT NULL, last_k ANY NOT NULL, "
    "least_k ANY NOT NULL, greatest_k ANY NOT NULL, min_seq INTEGER NOT NULL, max_seq INTEGER NOT NULL, "
    "created_at INTEGER NOT NULL) STRICT",
    "CREATE INDEX IF NOT EXISTS kalam_segments_table ON kalam_segments (table_id)",
    "CREATE TABLE IF NOT EXISTS kalam_deletions (segment_id INTEGER PRIMARY KEY, since INTEGER NOT NULL, "
    "positions BLOB NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS kalam_flushes (table_id INTEGER PRIMARY KEY, at INTEGER NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS kalam_removed (storage TEXT NOT NULL, file TEXT NOT NULL, at INTEGER NOT NULL, "
    "PRIMARY KEY (storage, file)) STRICT, WITHOUT ROWID",
)

Positions = npt.NDArray[np.uint32]
Query = Callable[[str, Sequence[Any]], list[Any]]
NOTHING: Positions = np.empty(0, np.uint32)

_COLUMNS = ("id, storage, file, rows, bytes, checksum, first_userid, first_k, last_userid, last_k, least_k, "
            "greatest_k, min_seq, max_seq, created_at")


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment and its dead rows (positions in the file, ascending; ``dead_since``: none died before, ms)."""

    id: int
    storage: str
    file: str
    rows: int
    bytes: int
    checksum: str
    first: Key
    last: Key
    least: Any
    greatest: Any
    min_seq: int
    max_seq: int
    created_at: int
    dead: Positions = field(default_factory=lambda: NOTHING, compare=False)
    dead_since: int = 0

    @property
    def live(self) -> int:
        return self.rows - len(self.dead)

    def may_hold(self, key: Key) -> bool:
        return self.least <= key[1] <= self.greatest and self.first <= key <= self.last

    def overlaps(self, low: Key, high: Key) -> bool:
        return self.first <= high and low <= self.last


@dataclass(frozen=True, slots=True)
class Manifest:
    table_id: int
    version: int
    segments: tuple[Segment, ...] = ()  # in order of their first keys

    def named(self, number: int) -> Segment:
        return next(segment for segment in self.segments if segment.id == number)


def tombstones(table_id: int) -> str:
    """The table of keys whose cold rows are deleted."""
    return f"d_{table_id}"


def create_tombstones(table_id: int) -> str:
    return (f"CREATE TABLE IF NOT EXISTS {tombstones(table_id)} (_userid TEXT NOT NULL, k ANY NOT NULL, "
            "_seq INTEGER NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (_userid, k)) STRICT, WITHOUT ROWID")


def storage_missing(segment: Segment) -> KalamError:
    return KalamError("58P01", f'storage "{segment.storage}" of segment file "{segment.file}" is not configured',
                      hint="Add it to the server's settings.")


# ---------- reading ----------
def version_of(query: Query, table_id: int) -> int:
    """0: nothing of the table was ever cold."""
    found = query("SELECT version FROM kalam_manifests WHERE table_id = ?", (table_id,))
    return int(found[0][0]) if found else 0


def load(query: Query, table_id: int, version: int) -> Manifest:
    dead = {number: (since, np.frombuffer(positions, np.uint32)) for number, since, positions in query(
        "SELECT segment_id, since, positions FROM kalam_deletions WHERE segment_id IN "
        "(SELECT id FROM kalam_segments WHERE table_id = ?)", (table_id,))}
    segments = []
    for row in query(f"SELECT {_COLUMNS} FROM kalam_segments WHERE table_id = ?", (table_id,)):
        since, positions = dead.get(row[0], (0, NOTHING))
        number, storage, file, rows, size, checksum, *rest = row
        segments.append(Segment(number, storage, file, rows, size, checksum, (rest[0], rest[1]), (rest[2], rest[3]),
                                rest[4], rest[5], rest[6], rest[7], rest[8], positions, since))
    segments.sort(key=lambda segment: (segment.first, segment.id))
    return Manifest(table_id, version, tuple(segments))


def flushed_at(query: Query, table_id: int) -> int:
    """No row died before that no deletion vector has (ms)."""
    found = query("SELECT at FROM kalam_flushes WHERE table_id = ?", (table_id,))
    return int(found[0][0]) if found else 0


# ---------- changing, in the writer's thread ----------
def begin_tiering(connection: apsw.Connection, table: TableDef) -> None:
    """Before a table's first flush: from here on its deletes leave tombstones."""
    connection.execute(create_tombstones(table.id))
    connection.execute("INSERT OR IGNORE INTO kalam_manifests VALUES (?, 1, NULL)", (table.id,))
    connection.execute("INSERT OR IGNORE INTO kalam_flushes VALUES (?, ?)", (table.id, int(time.time() * 1000)))


def none_died_before(connection: apsw.Connection, table_id: int, at: int) -> None:
    """See ``kalam_flushes``. Nothing where the table is not tiered (any more)."""
    connection.execute("REPLACE INTO kalam_flushes SELECT table_id, ? FROM kalam_manifests WHERE table_id = ?",
                       (at, table_id))


@dataclass(frozen=True, slots=True)
class Change:
    """What a flush or a compaction does to a manifest."""

    storage: str
    added: Sequence[tuple[str, Written]] = ()  # file names, and what is in them
    removed: Sequence[Segment] = ()
    dead: Sequence[tuple[int, Positions]] = ()  # segment id, all of its dead rows from now on
    dead_since: int = 0  # none of them died before (ms); they may have been found much later
    clean_seq: int | None = None
    as_of: int | None = None  # a flush: when its snapshot was taken, or a little before


def publish(connection: apsw.Connection, table_id: int, change: Change) -> None:
    now = int(time.time() * 1000)
    for file, written in change.added:
        add_segment(connection, table_id, change.storage, file, written, now)
    for segment in change.removed:
        connection.execute("DELETE FROM kalam_segments WHERE id = ?", (segment.id,))
        connection.execute("DELETE FROM kalam_deletions WHERE segment_id = ?", (segment.id,))
        connection.execute("REPLACE INTO kalam_removed VALUES (?, ?, ?)", (segment.storage, segment.file, now))
    for number, positions in change.dead:
        connection.execute(
            "INSERT INTO kalam_deletions VALUES (?, ?, ?) "
            "ON CONFLICT (segment_id) DO UPDATE SET positions = excluded.positions",
            (number, change.dead_since, positions.tobytes()))
    if change.as_of is not None:
        none_died_before(connection, table_id, change.as_of)
    connection.execute("UPDATE kalam_manifests SET version = version + 1, clean_seq = coalesce(?, clean_seq) "
                       "WHERE table_id = ?", (change.clean_seq, table_id))


def add_segment(connection: apsw.Connection, table_id: int, storage: str, file: str, written: Written, now: int,
                seq: int | None = None) -> None:
    """``seq``: the number of the commit that all its rows are of, where the file itself has none."""
    low, high = (written.min_seq, written.max_seq) if seq is None else (seq, seq)
    connection.execute(
        "INSERT INTO kalam_segments (table_id, storage, file, rows, bytes, checksum, first_userid, first_k, "
        "last_userid, last_k, least_k, greatest_k, min_seq, max_seq, created_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (table_id, storage, file, written.rows, written.bytes, written.checksum, *written.first, *written.last,
         written.least, written.greatest, low, high, now))


def forget_table(connection: apsw.Connection, table_id: int) -> None:
    """A dropped table's segments become files to remove."""
    now = int(time.time() * 1000)
    connection.execute("REPLACE INTO kalam_removed SELECT storage, file, ? FROM kalam_segments WHERE table_id = ?",
                       (now, table_id))
    connection.execute("DELETE FROM kalam_deletions WHERE segment_id IN "
                       "(SELECT id FROM kalam_segments WHERE table_id = ?)", (table_id,))
    connection.execute("DELETE FROM kalam_segments WHERE table_id = ?", (table_id,))
    connection.execute("DELETE FROM kalam_manifests WHERE table_id = ?", (table_id,))
    connection.execute("DELETE FROM kalam_flushes WHERE table_id = ?", (table_id,))
    connection.execute(f"DROP TABLE IF EXISTS {tombstones(table_id)}")
