"""Rows of a large transaction that do not stay in memory: runs, ordered files that a commit publishes as segments.

Once a transaction has inserted ``BULK_ROWS`` rows, or ``BULK_BYTES`` of text, into a table they are written to a
scratch file in a segment's form, with the position of each in the column ``_pos`` and without ``_seq``, which the
commit decides. Only rows that are new go there: their keys are in no other run and in no committed row, so that a run
is read as a cold segment is. What the transaction does to such a row later stays in its overlay and hides it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from kalamdb import types
from kalamdb.api import Row
from kalamdb.store import bloom
from kalamdb.store.cold import Absent, ColdRange, ColdStore, positions_in
from kalamdb.store.files import unlink_scratch
from kalamdb.store.hot import Layout
from kalamdb.store.manifest import Manifest, Positions, Segment
from kalamdb.store.segment import Key, SegmentWriter, Written, key_at, segment_schema
from kalamdb.txn.api import NotInMemory, TableDef

if TYPE_CHECKING:
    from kalamdb.txn.overlay import Loaded

#: rows of one table that a transaction holds in memory before they become a run
BULK_ROWS = 100_000
#: or so much text in them
BULK_BYTES = 64 << 20
CHUNK_ROWS = 8192
CACHE_BYTES = 32 << 20
_STORAGE = "scratch"
_EMPTY = Manifest(-1, 0)
_numbers = itertools.count(1)


class _Scratch:
    """Scratch files by their paths, as ``ColdStore`` fetches them."""

    def fetch(self, name: str) -> Path:
        return Path(name)


@dataclass(frozen=True, slots=True)
class RunView:
    """Runs as of the opening of a scan."""

    store: ColdStore
    layout: Layout
    manifest: Manifest

    def batches(self, columns: Sequence[str], wanted: ColdRange, position: int, check: Callable[[], None]
                ) -> Iterator[pa.RecordBatch]:
        """Rows of a range as of a position, in order; ``_seq`` is NULL."""
        needed = list(dict.fromkeys([*columns, "_pos"]))
        for batch in self.store.batches(self.manifest, self.layout, needed, wanted, check):
            seen = batch.filter(pa.array(batch.column("_pos").to_numpy() <= position))
            if seen.num_rows:
                yield seen.select(list(columns))


class Runs:
    """The runs of one table in one transaction."""

    def __init__(self, table: TableDef, layout: Layout) -> None:
        self.table = table
        self.written: list[tuple[Segment, Written]] = []
        self._layout = layout
        self._manifest = _EMPTY

    def altered(self, table: TableDef, layout: Layout) -> Runs:
        """The same runs under another definition of the table; they are one transaction's, and end once."""
        made = Runs(table, layout)
        made.written = list(self.written)
        made._renew()
        return made

    @cached_property
    def _store(self) -> ColdStore:
        """Made by the first run: most transactions have none."""
        return ColdStore({_STORAGE: _Scratch()}, CACHE_BYTES)

    def __bool__(self) -> bool:
        return bool(self.written)

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment, _ in self.written)

    def view(self) -> RunView:
        """The runs of now, for a scan: those to come, which may be taken back, are none of its business."""
        return RunView(self._store, self._layout, self._manifest)

    # ---------- writing, in a worker thread ----------
    def write(self, path: Path, rows: Sequence[tuple[Key, int, Row]]) -> tuple[Segment, Written]:
        """A new run of rows in order of their keys: (key, position, row). ``add`` makes it known."""
        layout, schema = self._layout, self._schema()
        key = types.by_name("int8" if layout.codec.integer else "bytea")
        kinds = [*([] if layout.shared else [types.TEXT]), key, types.by_name("int8"), *layout.types]
        return self._write(path, schema, (
            types.rows_to_arrow([(*(key[1:] if layout.shared else key), position, *row)
                                 for key, position, row in rows[start : start + CHUNK_ROWS]], kinds, schema)
            for start in range(0, len(rows), CHUNK_ROWS)))

    def write_loaded(self, path: Path, keys: Sequence[Key], loaded: Sequence[Loaded]) -> tuple[Segment, Written]:
        """``write`` of rows as they came."""
        schema = self._schema()
        key_type, shared = schema.field("k").type, self._layout.shared

        def batches() -> Iterator[pa.RecordBatch]:
            at = 0
            for part in loaded:
                count = part.batch.num_rows
                head = [] if shared else [pa.array([part.tenant] * count, pa.string())]
                head.append(pa.array([k for _, k in keys[at : at + count]], key_type))
                head.append(pa.array(np.full(count, part.position, np.int64)))
                yield pa.RecordBatch.from_arrays([*head, *part.batch.columns], schema=schema)
                at += count

        whole = pa.Table.from_batches(batches(), schema).combine_chunks()
        return self._write(path, schema, whole.to_batches(max_chunksize=CHUNK_ROWS))

    def _schema(self) -> pa.Schema:
        schema = segment_schema(self.table, seq=False)
        return schema.insert(schema.names.index("k") + 1, pa.field("_pos", pa.int64(), nullable=False))

    def _write(self, path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> tuple[Segment, Written]:
        writer = SegmentWriter(path, self.table, schema)
        try:
            for batch in batches:
                writer.add(batch)
            written = writer.finish()
        except BaseException:
            writer.abandon()
            raise
        no_seq: Any = None
        segment = Segment(-next(_numbers), _STORAGE, str(path), written.rows, written.bytes, written.checksum,
                          written.first, written.last, written.least, written.greatest, no_seq, no_seq, 0)
        return segment, written

    def add(self, segment: Segment, written: Written) -> None:
        self.written.append((segment, written))
        self._renew()

    def drop(self, segment: Segment) -> None:
        """A savepoint's rollback takes the run back."""
        self.written = [item for item in self.written if item[0] is not segment]
        self._store.forget(segment.id)
        unlink_scratch(Path(segment.file))
        self._renew()

    def clear(self) -> None:
        if not self.written:
            return
        for segment, _ in self.written:
            self._store.forget(segment.id)
            unlink_scratch(Path(segment.file))
        self.written = []
        self._renew()

    def _renew(self) -> None:
        segments = sorted((segment for segment, _ in self.written), key=lambda segment: segment.first)
        self._manifest = Manifest(-1, self._manifest.version + 1, tuple(segments))

    # ---------- reading ----------
    def may_hold(self, keys: Sequence[Key]) -> bool:
        """Might one of these keys be in a run? Their bounds tell."""
        if not self.written:
            return False
        least, greatest = min([k for _, k in keys]), max([k for _, k in keys])
        return any(segment.least <= greatest and least <= segment.greatest for segment, _ in self.written)

    def lookup(self, key: Key, position: int | None = None, *, wait: bool = False) -> Row | None:
        """The row of a key, (*columns, NULL, owner), if it was written at ``position`` or before. NotInMemory."""
        if all(not segment.may_hold(key) for segment in self._manifest.segments):
            return None
        try:
            found = self._store.locate(self._manifest, *key, wait=wait)
        except Absent:
            raise NotInMemory(partial(self.lookup, key, position, wait=True)) from None
        if found is None:
            return None
        segment, group, place = found
        if position is not None and group.arrays["_pos"][place].as_py() > position:
            return None
        return group.row(place, self._layout, segment, key[0])

    # ---------- the commit, in a worker thread ----------
    def dead(self, segment: Segment, hidden: Sequence[Key]) -> Positions:
        """Where a run's rows are that the overlay has changed since; ``hidden`` in order."""
        file, found = self._store.file(segment), [np.empty(0, np.uint32)]
        names = ["k"] if self._layout.shared else ["_userid", "k"]
        keys = [key for key in hidden if segment.may_hold(key)]
        for number, group in enumerate(file.groups):
            inside = [key for key in keys if group.first <= key <= group.last]
            if inside:
                found.append(positions_in(file.read(number, names), inside, shared=self._layout.shared) + group.start)
        return np.concatenate(found).astype(np.uint32)

    def has(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Those of some keys, in order, that are in a run."""
        column: Any = keys.column("k")
        column = column.to_numpy() if self._layout.codec.integer else column.to_pylist()
        hashes = bloom.key_hashes(None if self._layout.shared else keys.column("_userid").to_pylist(), column)
        perhaps = np.zeros(keys.num_rows, np.bool_)
        for segment in self._manifest.segments:
            perhaps |= bloom.may_contain_many(self._store.file(segment).bloom, hashes)
        places = [int(place) for place in np.flatnonzero(perhaps)
                  if self.lookup(key_at(keys, int(place)), wait=True) is not None]
        return keys.take(pa.array(places, pa.int64()))
