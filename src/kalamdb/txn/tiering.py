"""What a flush and a compaction write: the part that works in a thread and changes nothing but new files.

A flush takes all hot rows and tombstones of one snapshot; a compaction merges segments and leaves their dead rows out.
Both give a ``Change`` for the writer to publish. Until then nobody knows of the files.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

import apsw
import numpy as np
import pyarrow as pa

from kalamdb import faults, types
from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.store import bloom
from kalamdb.store.cold import ColdRange, ColdStore, matches
from kalamdb.store.contents import Storage
from kalamdb.store.files import told
from kalamdb.store.hot import HotSnapshot, Layout, Stop
from kalamdb.store.manifest import (
    Change,
    Manifest,
    Positions,
    Segment,
    add_segment,
    begin_tiering,
    flushed_at,
    publish,
    tombstones,
)
from kalamdb.store.segment import Key, SegmentWriter, Written, key_at, position_of, segment_schema
from kalamdb.txn.api import TableDef
from kalamdb.txn.clock import now_ms
from kalamdb.txn.jobs import Job
from kalamdb.txn.overlay import TableOverlay

log = logging.getLogger(__name__)

#: what a flush reads at a time: whichever comes first
CHUNK_ROWS = 8192
CHUNK_BYTES = 8 << 20
#: rows whose bytes are summed up at a time
SIZED_ROWS = 32
SEGMENT_ROWS = 4_000_000
WIDE = (pa.string(), pa.binary())


def remove(storage: Storage, names: Sequence[str]) -> None:
    """Files that no manifest names. What fails stays until the next start."""
    for name in names:
        try:
            storage.delete(name)
        except KalamError as error:
            log.warning("segment file %r, which nothing names, is not removed: %s", name, error)


def prefix_of(table_id: int) -> str:
    return f"{table_id}/"


class Output:
    """New segments of one table: written to scratch files, then put into the storage."""

    def __init__(self, table: TableDef, storage: Storage, job: Job) -> None:
        self.schema = segment_schema(table)
        self.rows = 0
        self.done: list[tuple[str, Written]] = []
        self._table = table
        self._storage = storage
        self._job = job
        self._writer: SegmentWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self._job.check()
        if self._writer is None:
            path = self._storage.scratch()
            with told("write", path.name, self._storage.id):
                self._writer = SegmentWriter(path, self._table, self.schema)
        with told("write", self._writer.path.name, self._storage.id):
            self._writer.add(batch)
        self.rows += batch.num_rows
        if self._writer.taken >= SEGMENT_ROWS:
            self._finish()

    def _finish(self) -> None:
        writer = self._writer
        if writer is None:
            return
        name = f"{prefix_of(self._table.id)}{uuid.uuid4().hex}.parquet"
        with told("write", name, self._storage.id):
            written = writer.finish()
            faults.reach("segment.written")
            self.done.append((name, written))
            self._storage.put(name, written.path)
        self._writer = None  # until then it may have to be abandoned
        faults.reach("segment.put")

    def finish(self) -> list[tuple[str, Written]]:
        self._finish()
        return self.done

    def abandon(self) -> None:
        """Nobody will publish them."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
        remove(self._storage, [name for name, _ in self.done])
        self.done.clear()


# ---------- flush ----------
@dataclass(slots=True)
class Flushed:
    change: Change
    rows: int
    tombstones: int


@dataclass(slots=True)
class _Dead:
    """Dead rows of older segments, found so far."""

    found: dict[int, list[Positions]] = field(default_factory=dict)

    def add(self, number: int, positions: Positions) -> None:
        if len(positions):
            self.found.setdefault(number, []).append(positions)

    def all(self, manifest: Manifest) -> list[tuple[int, Positions]]:
        made = []
        for segment in manifest.segments:
            if segment.id in self.found:
                together = np.unique(np.concatenate([segment.dead, *self.found[segment.id]])).astype(np.uint32)
                made.append((segment.id, together))
        return made


class Burial:
    """Finds the rows that some keys have in the segments of a manifest."""

    def __init__(self, layout: Layout, cold: ColdStore, manifest: Manifest) -> None:
        self._layout = layout
        self._cold = cold
        self._manifest = manifest
        self._dead = _Dead()

    def bury(self, keys: pa.RecordBatch) -> None:
        """Keys in order."""
        segments = [segment for segment in self._manifest.segments
                    if segment.overlaps(key_at(keys, 0), key_at(keys, keys.num_rows - 1))]
        if not segments:
            return
        integer = self._layout.codec.integer
        column: Any = keys.column("k").to_numpy() if integer else keys.column("k").to_pylist()
        hashes = bloom.key_hashes(None if self._layout.shared else keys.column("_userid").to_pylist(), column)
        for segment in segments:
            perhaps = bloom.may_contain_many(self._cold.file(segment).bloom, hashes)
            if perhaps.any():
                found = self._positions(segment, keys.filter(pa.array(perhaps)))
                self._dead.add(segment.id, np.setdiff1d(found, segment.dead))

    def _positions(self, segment: Segment, keys: pa.RecordBatch) -> Positions:
        """Where these keys' rows are in a segment."""
        file, found = self._cold.file(segment), []
        for number in file.between(key_at(keys, 0), key_at(keys, keys.num_rows - 1)):
            group = file.groups[number]
            low, high = position_of(keys, group.first), position_of(keys, group.last, after=True)
            if low < high:
                batch = self._cold.read(segment, number, keys.schema.names)
                found.append(matches(batch, pa.Table.from_batches([keys.slice(low, high - low)])) + group.start)
        return np.concatenate(found).astype(np.uint32) if found else np.empty(0, np.uint32)

    @property
    def some(self) -> bool:
        """Were there any that are not known to be dead?"""
        return bool(self._dead.found)

    def dead(self) -> list[tuple[int, Positions]]:
        """All dead rows of the segments where some were found."""
        return self._dead.all(self._manifest)


def by_tenant(layout: Layout, keys: pa.RecordBatch) -> Iterator[tuple[str, Any]]:
    """Keys in order as SQLite takes them: a tenant and what stands for all its keys."""
    column = keys.column("k")
    tenants = [""] if layout.shared else keys.column("_userid").to_pylist()
    start = 0
    for tenant, same in groupby(tenants):
        end = keys.num_rows if layout.shared else start + len(list(same))
        part = column.slice(start, end - start)
        yield tenant, apsw.carray(part.to_numpy() if layout.codec.integer else tuple(part.to_pylist()))
        start = end


def read_rows(snapshot: HotSnapshot, layout: Layout, text: str, wide: Sequence[int] = (), values: Sequence[Any] = ()
              ) -> Iterator[list[Row]]:
    """A statement's rows in chunks; ``wide``: places of texts and bytes, whose lengths count."""
    reader, stop = snapshot.reader, Stop()
    pickers = [itemgetter(place) for place in wide]
    cursor = reader.execute(layout, text, values, stop)
    if cursor is None:
        return
    while True:
        rows: list[Row] = []
        taken = 0
        while taken < CHUNK_BYTES and (more := reader.rows(
                cursor, min(SIZED_ROWS if wide else CHUNK_ROWS, CHUNK_ROWS - len(rows)), stop)):
            rows += more
            taken += sum(sum(map(len, filter(None, map(pick, more)))) for pick in pickers)
        if not rows:
            return
        yield rows


def key_columns(layout: Layout) -> tuple[list[types.PgType], pa.Schema]:
    """Of a batch of keys: types and schema."""
    k = pa.field("k", pa.int64() if layout.codec.integer else pa.binary(), nullable=False)
    kind = types.by_name("int8" if layout.codec.integer else "bytea")
    if layout.shared:
        return [kind], pa.schema([k])
    return [types.TEXT, kind], pa.schema([pa.field("_userid", pa.string(), nullable=False), k])


def some_died(layout: Layout, snapshot: HotSnapshot, cold: ColdStore, manifest: Manifest) -> bool:
    """Has a snapshot's hot row or tombstone the key of a cold row that is not known to be dead?"""
    kinds, schema = key_columns(layout)
    burial = Burial(layout, cold, manifest)
    for name in (tombstones(layout.table_id), layout.table):
        text = f"SELECT {'' if layout.shared else '_userid, '}k FROM {name} ORDER BY _userid, k"
        for rows in read_rows(snapshot, layout, text):
            burial.bury(types.rows_to_arrow(rows, kinds, schema))
            if burial.some:
                return True
    return False


class Flush:
    """All hot rows and tombstones of a table, as of a snapshot."""

    def __init__(self, table: TableDef, layout: Layout, snapshot: HotSnapshot, cold: ColdStore, manifest: Manifest,
                 storage: Storage, job: Job, expected: int, as_of: int) -> None:
        self._table = table
        self._layout = layout
        self._snapshot = snapshot
        self._job = job
        self._storage = storage
        self._output = Output(table, storage, job)
        self._burial = Burial(layout, cold, manifest)
        self._expected = max(1, expected)
        self._as_of = as_of
        self._last_seq = 0
        self._key_kinds, self._key_schema = key_columns(layout)
        self._kinds = [*self._key_kinds, types.by_name("int8"), *layout.types]

    def run(self) -> Flushed:
        try:
            return self._run()
        except BaseException:
            self._output.abandon()
            raise

    def _run(self) -> Flushed:
        layout = self._layout
        head = "" if layout.shared else "_userid, "
        names = "".join(f", {name}" for name in layout.columns)
        first = len(self._kinds) - len(layout.columns)
        load = layout.loader(range(len(layout.columns)), first)
        wide = [first + place for place, kind in enumerate(layout.types) if kind.arrow in WIDE]
        text = f"SELECT {head}k, _seq{names} FROM {layout.table} ORDER BY _userid, k"
        for rows in read_rows(self._snapshot, layout, text, wide):
            batch = types.rows_to_arrow(rows if load is None else load(rows), self._kinds, self._output.schema)
            self._note_seqs(batch.column("_seq").to_pylist())
            self._burial.bury(batch.select(self._key_schema.names))
            self._output.add(batch)
            self._job.rows = self._output.rows
            self._job.progress = min(0.9, self._output.rows / self._expected)
        buried = 0
        text = f"SELECT {head}k, _seq FROM {tombstones(self._table.id)} ORDER BY _userid, k"
        for rows in read_rows(self._snapshot, layout, text):
            self._job.check()
            buried += len(rows)
            self._note_seqs([row[-1] for row in rows])
            keys = [row[:-1] for row in rows]
            self._burial.bury(types.rows_to_arrow(keys, self._key_kinds, self._key_schema))
        done = self._output.finish()
        self._job.check()
        change = Change(self._storage.id, done, dead=self._burial.dead(),
                        dead_since=flushed_at(self._snapshot.query, self._table.id), clean_seq=self._last_seq,
                        as_of=self._as_of)
        return Flushed(change, self._output.rows, buried)

    def _note_seqs(self, seqs: Sequence[int]) -> None:
        self._last_seq = max(self._last_seq, *seqs)


# ---------- bulk commits ----------
class Bulk:
    """One table's runs in a commit: files put into the storage, and what their rows replace."""

    def __init__(self, overlay: TableOverlay, storage: Storage) -> None:
        self.table = overlay.table
        self._overlay = overlay
        self._storage = storage
        self._files: list[tuple[str, Written, Positions]] = []  # and which of their rows are dead
        self._hot: list[pa.RecordBatch] = []  # keys of hot rows that were changed or deleted
        self._dead: list[tuple[int, Positions]] = []
        self._dead_since = 0
        self._stale: list[Key] = []  # tombstones

    def prepare(self, snapshot: HotSnapshot, cold: ColdStore, manifest: Manifest) -> None:
        overlay, layout, runs = self._overlay, self._overlay.layout, self._overlay.runs
        hidden = sorted(overlay.rows)
        dead = {run.segment.id: [runs.dead(run.segment, hidden)] for run in runs.written if not run.segment.gone}
        burial = Burial(layout, cold, manifest)
        for run in runs.changing:
            older = Burial(layout, runs.store, runs.before(run))
            for keys in runs.key_batches(run):
                burial.bury(keys)
                older.bury(keys)
                self._find_hot(snapshot, keys)
            for number, positions in older.dead():
                dead[number].append(positions)
        self._find_tombstones(snapshot, burial)
        for run in runs.written:
            if run.segment.gone:
                continue
            name = f"{prefix_of(self.table.id)}{uuid.uuid4().hex}.parquet"
            self._files.append((name, run.written, np.unique(np.concatenate(dead[run.segment.id]))))
            self._storage.put(name, run.written.path)
            faults.reach("bulk.put")

    def _find_hot(self, snapshot: HotSnapshot, keys: pa.RecordBatch) -> None:
        """Which of these keys, in order, have hot rows: nobody else changes them or moves them before the commit."""
        layout, found = self._overlay.layout, []
        head = "" if layout.shared else "_userid, "
        text = f"SELECT {head}k FROM {layout.table} WHERE _userid = ? AND k IN carray(?)"
        for tenant, wanted in by_tenant(layout, keys):
            for rows in read_rows(snapshot, layout, text, values=(tenant, wanted)):
                found += rows
        if found:
            kinds, schema = key_columns(layout)
            self._hot.append(types.rows_to_arrow(sorted(found), kinds, schema))

    def _find_tombstones(self, snapshot: HotSnapshot, burial: Burial) -> None:
        """Keys that were cold, deleted and are here again: their old rows die for good, their tombstones go."""
        layout = self._overlay.layout
        kinds, schema = key_columns(layout)
        head = "" if layout.shared else "_userid, "
        for rows in read_rows(snapshot, layout, f"SELECT {head}k FROM {tombstones(self.table.id)} ORDER BY _userid, k"):
            again = self._overlay.runs.has(types.rows_to_arrow(rows, kinds, schema))
            if again.num_rows:
                burial.bury(again)
                self._stale += [key_at(again, place) for place in range(again.num_rows)]
        self._dead = burial.dead()
        self._dead_since = flushed_at(snapshot.query, self.table.id)

    @property
    def changes_hot(self) -> bool:
        return bool(self._hot)

    def publish(self, connection: apsw.Connection, seq: int) -> None:
        """In the writer's thread, as a part of the commit of this number."""
        faults.reach("bulk.publish")
        begin_tiering(connection, self.table)  # where it has not begun: a table that this commit creates
        layout = self._overlay.layout
        for keys in self._hot:
            for tenant, gone in by_tenant(layout, keys):
                connection.execute(f"DELETE FROM {layout.table} WHERE _userid = ? AND k IN carray(?)", (tenant, gone))
        connection.executemany(f"DELETE FROM {tombstones(self.table.id)} WHERE _userid = ? AND k = ?", self._stale)
        publish(connection, self.table.id, Change(self._storage.id, dead=self._dead, dead_since=self._dead_since))
        now = now_ms()
        for name, written, dead in self._files:
            add_segment(connection, self.table.id, self._storage.id, name, written, now, seq)
            if len(dead):
                connection.execute("INSERT INTO kalam_deletions VALUES (?, ?, ?)",
                                   (connection.last_insert_rowid(), now, dead.tobytes()))

    def abandon(self) -> None:
        remove(self._storage, [name for name, _, _ in self._files])


# ---------- compaction ----------
def compact(table: TableDef, layout: Layout, cold: ColdStore, segments: Sequence[Segment], storage: Storage, job: Job,
            check: Callable[[], None]) -> tuple[Change, int]:
    """Several segments as one (or as few as their size allows), without their dead rows; and how many are left."""
    output = Output(table, storage, job)
    expected = max(1, sum(segment.live for segment in segments))
    try:
        merged = cold.batches(Manifest(table.id, 0, tuple(segments)), layout, output.schema.names, ColdRange(), check)
        for batch in merged:
            output.add(batch)
            job.rows = output.rows
            job.progress = min(0.95, output.rows / expected)
        done = output.finish()
        job.check()
        return Change(storage.id, done, removed=segments), output.rows
    except BaseException:
        output.abandon()
        raise


#: segments whose live rows differ by less than this factor are of one tier
TIER_FACTOR = 4
#: so many segments of one tier are merged
TIER_SEGMENTS = 4
#: and no more at once: a merge may hold a row group of each
MOST_SEGMENTS = 16
#: a segment with this share of dead rows is rewritten
DEAD_SHARE = 0.3


def choose(segments: Sequence[Segment], now: int, retention_ms: int) -> list[Segment]:
    """What to compact next, [] for nothing: size-tiered, and segments with many or with old dead rows."""
    for segment in segments:
        if len(segment.dead) and (len(segment.dead) >= DEAD_SHARE * segment.rows
                                  or now - segment.dead_since >= retention_ms):
            return [segment]
    tiers: dict[int, list[Segment]] = {}
    for segment in segments:
        if segment.live < SEGMENT_ROWS // 2:
            tier = 0
            while TIER_FACTOR ** (tier + 6) <= segment.live:
                tier += 1
            tiers.setdefault(tier, []).append(segment)
    for tier in sorted(tiers):
        if len(tiers[tier]) >= TIER_SEGMENTS:
            return tiers[tier][:MOST_SEGMENTS]
    return []
