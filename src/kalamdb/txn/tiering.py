"""What a flush and a compaction write: the part that works in a thread and changes nothing but new files.

A flush takes all hot rows and tombstones of one snapshot; a compaction merges segments and leaves their dead rows out.
Both give a ``Change`` for the writer to publish. Until then nobody knows of the files.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from kalamdb import faults, types
from kalamdb.api import Row
from kalamdb.store import bloom
from kalamdb.store.cold import ColdRange, ColdStore, matches
from kalamdb.store.hot import HotSnapshot, Layout, Stop
from kalamdb.store.manifest import Change, Manifest, Positions, Segment, tombstones
from kalamdb.store.segment import SegmentWriter, Written, key_at, position_of, segment_schema
from kalamdb.txn.api import TableDef
from kalamdb.txn.jobs import Job

CHUNK_ROWS = 8192
SEGMENT_ROWS = 4_000_000


class Storage(Protocol):
    """The part of ``store.storage.Storage`` that writing needs."""

    @property
    def id(self) -> str: ...
    def scratch(self) -> Path: ...
    def put(self, name: str, source: Path) -> None: ...
    def fetch(self, name: str) -> Path: ...
    def delete(self, name: str) -> None: ...
    def names(self, prefix: str) -> list[str]: ...


def prefix_of(table_id: int) -> str:
    return f"{table_id}/"


class Output:
    """New segments of one table: written to scratch files, then put into the storage."""

    def __init__(self, table: TableDef, storage: Storage, job: Job, most: int = SEGMENT_ROWS) -> None:
        self.schema = segment_schema(table)
        self.rows = 0
        self.done: list[tuple[str, Written]] = []
        self._table = table
        self._storage = storage
        self._job = job
        self._most = most
        self._writer: SegmentWriter | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        self._job.check()
        if self._writer is None:
            self._writer = SegmentWriter(self._storage.scratch(), self._table, self.schema)
        self._writer.add(batch)
        self.rows += batch.num_rows
        if self._writer.taken >= self._most:
            self._finish()

    def _finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        written = writer.finish()
        faults.reach("segment.written")
        name = f"{prefix_of(self._table.id)}{uuid.uuid4().hex}.parquet"
        self._storage.put(name, written.path)
        self.done.append((name, written))
        faults.reach("segment.put")

    def finish(self) -> list[tuple[str, Written]]:
        self._finish()
        return self.done

    def abandon(self) -> None:
        """Nobody will publish them."""
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None
        for name, _ in self.done:
            self._storage.delete(name)
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


class Flush:
    """All hot rows and tombstones of a table, as of a snapshot."""

    def __init__(self, table: TableDef, layout: Layout, snapshot: HotSnapshot, cold: ColdStore, manifest: Manifest,
                 storage: Storage, job: Job, expected: int) -> None:
        self._table = table
        self._layout = layout
        self._snapshot = snapshot
        self._cold = cold
        self._manifest = manifest
        self._job = job
        self._storage = storage
        self._output = Output(table, storage, job)
        self._dead = _Dead()
        self._expected = max(1, expected)
        self._last_seq = 0
        head = [] if layout.shared else [types.TEXT]
        integer = types.by_name("int8")
        key = integer if layout.codec.integer else types.by_name("bytea")
        self._kinds = [*head, key, integer, *(column.type for column in table.columns)]
        self._key_schema = pa.schema(list(self._output.schema)[: len(head) + 1])

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
        load = layout.loader(range(len(layout.columns)), len(self._kinds) - len(layout.columns))
        for rows in self._rows(f"SELECT {head}k, _seq{names} FROM {layout.table} ORDER BY _userid, k"):
            batch = types.rows_to_arrow(rows if load is None else load(rows), self._kinds, self._output.schema)
            self._note_seqs(batch.column("_seq").to_pylist())
            self._bury(batch.select(self._key_schema.names))
            self._output.add(batch)
            self._job.rows = self._output.rows
            self._job.progress = min(0.9, self._output.rows / self._expected)
        buried = 0
        for rows in self._rows(f"SELECT {head}k, _seq FROM {tombstones(self._table.id)} ORDER BY _userid, k"):
            self._job.check()
            buried += len(rows)
            self._note_seqs([row[-1] for row in rows])
            keys = [row[:-1] for row in rows]
            self._bury(types.rows_to_arrow(keys, self._kinds[: len(self._key_schema)], self._key_schema))
        change = Change(self._storage.id, self._output.finish(), dead=self._dead.all(self._manifest),
                        clean_seq=self._last_seq)
        return Flushed(change, self._output.rows, buried)

    def _rows(self, text: str) -> Iterator[list[Row]]:
        reader, stop = self._snapshot.reader, Stop()
        cursor = reader.execute(text, (), stop)
        while cursor is not None and (rows := reader.rows(cursor, CHUNK_ROWS, stop)):
            yield rows

    def _note_seqs(self, seqs: Sequence[int]) -> None:
        self._last_seq = max(self._last_seq, *seqs)

    def _bury(self, keys: pa.RecordBatch) -> None:
        """Find the keys' rows in older segments. They die with the publication."""
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
                self._dead.add(segment.id, self._positions(segment, keys.filter(pa.array(perhaps))))

    def _positions(self, segment: Segment, keys: pa.RecordBatch) -> Positions:
        """Where these keys' rows are in a segment."""
        file, found = self._cold.file(segment), []
        for number in file.between(key_at(keys, 0), key_at(keys, keys.num_rows - 1)):
            group = file.groups[number]
            low, high = position_of(keys, group.first), position_of(keys, group.last, after=True)
            if low < high:
                batch = file.read(number, self._key_schema.names)
                found.append(matches(batch, pa.Table.from_batches([keys.slice(low, high - low)])) + group.start)
        return np.concatenate(found).astype(np.uint32) if found else np.empty(0, np.uint32)


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
        return Change(storage.id, output.finish(), removed=segments), output.rows
    except BaseException:
        output.abandon()
        raise


#: segments whose live rows differ by less than this factor are of one tier
TIER_FACTOR = 4
#: so many segments of one tier are merged
TIER_SEGMENTS = 4
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
            return tiers[tier]
    return []
