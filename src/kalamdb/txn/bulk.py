"""Rows of a large transaction that are not kept one by one: parts, batches in memory, and runs, files of ordered rows
that a commit publishes as segments.

Both have a segment's form, with the position of each row in the column ``_pos`` and without ``_seq``, which the commit
decides, and are read as cold segments are. Rows of a part are new: their keys are in no other part or run and in no
committed row. What the transaction keeps one by one (new rows, changed ones and deletions) hides them, and becomes runs
of its own where it is much: rows, and keys of what is deleted. Of several runs with a key the newest counts (``rank``),
and all of them hide the committed row.

A batch of a load whose keys lie where no row is becomes a part as it came. Once a transaction has ``BULK_ROWS`` rows of
a table in parts, or ``BULK_BYTES``, they are written to a scratch file in a worker thread while more come
(``Making``); they are in memory until the file is complete, which is when it has ``RUN_ROWS`` rows, or at the commit.
Rows that are kept one by one become a run at the same numbers.
"""

from __future__ import annotations

import asyncio
import itertools
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import attrgetter, lt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kalamdb import types
from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.store import bloom
from kalamdb.store.cold import Absent, ColdRange, ColdStore, DecodedGroup, joined, positions_in, projected
from kalamdb.store.files import told, unlink_scratch
from kalamdb.store.hot import Layout
from kalamdb.store.manifest import Manifest, Positions, Segment
from kalamdb.store.segment import GROUP_ROWS, Group, Key, SegmentFile, SegmentWriter, Written, key_at, segment_schema
from kalamdb.txn.api import NotInMemory, TableDef

#: rows of one table that a transaction holds in memory before they become a run
BULK_ROWS = 2 * GROUP_ROWS
#: or so much text in them
BULK_BYTES = 32 << 20
#: a run that grows while a load goes on is complete with so many rows, or bytes in memory
RUN_ROWS = 8 * GROUP_ROWS
RUN_BYTES = 64 << 20
#: a load waits while more than this is to be written
QUEUE_BYTES = 16 << 20
#: fewer rows than these are kept one by one
PART_ROWS = 500
CHUNK_ROWS = 8192
CACHE_BYTES = 32 << 20
_STORAGE, _MEMORY = "scratch", "memory"
_EMPTY = Manifest(-1, 0)
Keys = npt.NDArray[np.int64] | list[bytes]
#: (position, row or None for deleted, the version before)
Version = tuple[int, Row | None, Any]
InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
_numbers = itertools.count(1)


# ---------- parts ----------
class Memory:
    """A part's rows, to be read as a segment's file with one row group is."""

    bloom = b"\xff" * 8  # every key may be in it

    def __init__(self, batch: pa.RecordBatch, keys: Keys, group: Group) -> None:
        self.batch = batch
        self.keys = keys
        self.groups = [group]
        self.schema = batch.schema
        self.rows = group.rows

    @cached_property
    def decoded(self) -> DecodedGroup:
        return DecodedGroup(self.batch)

    def read(self, number: int, columns: Sequence[str]) -> pa.RecordBatch:
        return self.batch.select([name for name in columns if name in self.schema.names] or ["k"])

    def between(self, low: Any, high: Any) -> range:
        return range(1)

    def key_list(self) -> list[Any]:
        return self.keys.tolist() if isinstance(self.keys, np.ndarray) else self.keys

    def shares_keys(self, other: Memory) -> bool:
        """Is one of the other's keys here?"""
        if isinstance(self.keys, np.ndarray):
            places = self.keys.searchsorted(other.keys)
            places[places == len(self.keys)] = 0
            return bool((self.keys[places] == other.keys).any())
        return not set(self.keys).isdisjoint(other.keys)


@dataclass(frozen=True, slots=True)
class Own(Segment):
    """Rows of the transaction. ``rank``: of two that have a key, that with the higher one was written later; 0: all of
    its rows were new. ``gone``: keys of what is deleted."""

    rank: int = field(default=0, kw_only=True)
    gone: bool = field(default=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Part(Own):
    """Rows of one tenant in memory, in order."""

    memory: Memory = field(kw_only=True, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Run:
    """``changes``: committed rows may have its keys, or rows of older runs."""

    segment: Own
    written: Written
    changes: bool = False


class RunStore(ColdStore):
    """Parts and runs as segments."""

    def file(self, segment: Segment) -> SegmentFile:
        return segment.memory if isinstance(segment, Part) else ColdStore.file(self, segment)  # type: ignore[return-value]

    def opened(self, segment: Segment) -> SegmentFile | None:
        return self.file(segment) if isinstance(segment, Part) else ColdStore.opened(self, segment)

    def group(self, segment: Segment, number: int, *, wait: bool = True) -> DecodedGroup:
        return segment.memory.decoded if isinstance(segment, Part) else (
            ColdStore.group(self, segment, number, wait=wait))

    def _of_segment(self, segment: Segment, *args: Any) -> Iterator[pa.RecordBatch]:
        """With whose rows they are, for a merge."""
        assert isinstance(segment, Own)
        for batch in ColdStore._of_segment(self, segment, *args):
            rank, gone = pa.scalar(segment.rank, pa.int64()), pa.scalar(segment.gone)
            yield batch.append_column("_rank", pa.repeat(rank, batch.num_rows)).append_column(
                "_gone", pa.repeat(gone, batch.num_rows))


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
                ) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Of a range as of a position, in order: what is written, deletions among it, and the rows that are there.
        ``columns``: the key's among them; ``_seq`` is NULL."""
        needed = list(dict.fromkeys([*columns, "_pos"]))
        layered = any(segment.rank for segment in self.manifest.segments if isinstance(segment, Own))
        for batch in self.store.batches(self.manifest, self.layout, needed, wanted, check):
            seen = batch.filter(pa.array(batch.column("_pos").to_numpy() <= position))
            if not seen.num_rows:
                continue
            if layered:
                seen = _newest(seen, shared=self.layout.shared)
            there = seen.filter(pc.invert(seen.column("_gone"))) if layered else seen
            yield seen.select(list(columns)), there.select(list(columns))


def _newest(batch: pa.RecordBatch, *, shared: bool) -> pa.RecordBatch:
    """Of an ordered batch, of each key the row of the highest rank."""
    names = ["k"] if shared else ["_userid", "k"]
    if not _repeated(batch, names).any():
        return batch
    order = [(name, "ascending") for name in (*names, "_rank")]
    batch = batch.take(pc.sort_indices(pa.Table.from_batches([batch]), sort_keys=order))
    return batch.filter(pa.array(~np.append(_repeated(batch, names), False)))


def _repeated(batch: pa.RecordBatch, names: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Of each row but the last: does the next one have its key?"""
    same = np.ones(batch.num_rows - 1, np.bool_)
    for name in names:
        column = batch.column(name)
        same &= pc.equal(column.slice(1), column.slice(0, batch.num_rows - 1)).to_numpy(zero_copy_only=False)
    return same


class Runs:
    """The parts and runs of one table in one transaction."""

    def __init__(self, table: TableDef, layout: Layout) -> None:
        self.table = table
        self.written: list[Run] = []
        self.parts: list[Part] = []
        self.waiting: list[Part] = []  # of these, those that may become a run with others that come
        self.making: Making | None = None
        self._layout = layout
        self._manifest = _EMPTY
        self._firsts: list[Key] = []  # of the manifest's segments
        self._lasts: list[Key] = []  # the highest one so far
        self._answers: dict[tuple[Key, int | None], Version | None] = {}
        self._run_of: dict[int, Segment] = {}  # by the number of a part that has become one with others
        self._first_of: dict[int, int] = {}  # the number of a run's first part

    def altered(self, table: TableDef, layout: Layout) -> Runs:
        """The same runs under another definition of the table; they are one transaction's, and end once. None is in the
        making."""
        made = Runs(table, layout)
        made.written, made.parts = list(self.written), list(self.parts)
        made._run_of, made._first_of = dict(self._run_of), dict(self._first_of)
        made._renew()
        return made

    @cached_property
    def store(self) -> RunStore:
        """Made by the first run: most transactions have none."""
        return RunStore({_STORAGE: _Scratch()}, CACHE_BYTES)

    def __bool__(self) -> bool:
        return bool(self._manifest.segments)

    @property
    def rows(self) -> int:
        return sum(segment.rows for segment in self._manifest.segments)

    @property
    def rows_in_parts(self) -> int:
        return sum(part.rows for part in self.parts) if self.parts else 0

    @property
    def large(self) -> bool:
        """Are there files, or should there be at the commit?"""
        return bool(self.written or self.making) or self.rows_in_parts >= BULK_ROWS

    def view(self) -> RunView:
        """The runs of now, for a scan: those to come, which may be taken back, are none of its business."""
        return RunView(self.store, self._layout, self._manifest)

    # ---------- parts ----------
    def keys_of(self, batch: pa.RecordBatch) -> Keys:
        """Encoded keys of a batch of the table's columns, with no null among them."""
        codec, places = self._layout.codec, self.table.key
        if codec.integer:
            keys: npt.NDArray[np.int64] = batch.column(places[0]).cast(pa.int64()).to_numpy()
            return keys
        kinds = [self.table.columns[place].type for place in places]
        encode: Callable[[Row], Any] = codec.encode
        return [encode(key) for key in types.rows_of_batch(batch.select(places), kinds)]

    def part_of(self, tenant: str, position: int, batch: pa.RecordBatch, keys: Keys) -> Part | None:
        """Of a batch and its ``keys_of``. None where a key is there twice."""
        if not _ascending(keys):
            if isinstance(keys, np.ndarray):
                order: Any = np.argsort(keys)
                keys = keys[order]
            else:
                order = sorted(range(len(keys)), key=keys.__getitem__)
                keys = [keys[place] for place in order]
            if not _ascending(keys):
                return None
            batch = batch.take(pa.array(order))
        column = pa.array(keys, pa.int64() if isinstance(keys, np.ndarray) else pa.binary())
        first, last = column[0].as_py(), column[-1].as_py()
        count = batch.num_rows
        head = [] if self._layout.shared else [pa.repeat(tenant, count)]
        whole = pa.RecordBatch.from_arrays(
            [*head, column, pa.array(np.full(count, position, np.int64)), *batch.columns], schema=self._schema())
        no_seq: Any = None
        low, high = (tenant, first), (tenant, last)
        return Part(-next(_numbers), _MEMORY, "", count, whole.nbytes, "", low, high, first, last, no_seq, no_seq, 0,
                    memory=Memory(whole, keys, Group(0, count, low, high)))

    def collides(self, part: Part) -> bool:
        """Is one of a part's keys in another?"""
        return any(other.overlaps(part.first, part.last) and other.memory.shares_keys(part.memory)
                   for other in self.parts)

    def may_be_in_files(self, part: Part) -> bool:
        return any(run.segment.overlaps(part.first, part.last) for run in self.written)

    def in_files(self, part: Part) -> bool:
        """Is one of a part's keys in a run? In a worker thread."""
        tenant, keys = part.first[0], part.memory.keys
        hashes = bloom.key_hashes(None if self._layout.shared else [tenant] * part.rows, keys)
        for run in self.written:
            if run.segment.overlaps(part.first, part.last):
                perhaps = np.flatnonzero(bloom.may_contain_many(self.store.file(run.segment).bloom, hashes))
                if len(self.dead(run.segment, [(tenant, keys[place]) for place in perhaps])):
                    return True
        return False

    def add_part(self, part: Part) -> None:
        self.parts.append(part)
        self.waiting.append(part)
        self._renew()

    def seal(self) -> None:
        """What comes from now on may be taken back by itself."""
        self.waiting = []
        if self.making is not None:
            self.making.sealed = True

    def hot_rows(self) -> Iterator[tuple[str, int | bytes, Row]]:
        """The rows in parts: (tenant, encoded key, row). Any thread."""
        layout = self._layout
        for part in self.parts:
            batch = part.memory.batch
            rows = types.rows_of_batch(projected(batch, layout.columns, layout, part), layout.types)
            yield from zip(itertools.repeat(part.first[0]), batch.column("k").to_pylist(), rows)

    def hot_keys(self) -> list[Key]:
        return [(part.first[0], k) for part in self.parts for k in part.memory.batch.column("k").to_pylist()]

    # ---------- writing, in a worker thread ----------
    def write(self, path: Path, found: Sequence[tuple[Key, Version]], *, gone: bool, changes: bool) -> Run:
        """A new run of rows, or (``gone``) of deletions, in order of their keys. ``add`` makes it known."""
        layout, schema = self._layout, self._schema()
        key = types.by_name("int8" if layout.codec.integer else "bytea")
        kinds = [*([] if layout.shared else [types.TEXT]), key, types.by_name("int8")]
        if gone:
            schema = pa.schema(list(schema)[: len(kinds)])
        else:
            kinds += layout.types
        writer = SegmentWriter(path, self.table, schema)
        try:
            for start in range(0, len(found), CHUNK_ROWS):
                writer.add(types.rows_to_arrow([(*(key[1:] if layout.shared else key), position, *(row or ()))
                                                for key, (position, row, _) in found[start : start + CHUNK_ROWS]],
                                               kinds, schema))
            written = writer.finish()
        except BaseException:
            writer.abandon()
            raise
        return Run(run_of(written, rank=next(_numbers), gone=gone), written, changes or gone)

    def make(self, path: Path, storage: str, in_thread: InThread) -> Making:
        """Begin a run of parts."""
        self.making = Making(SegmentWriter(path, self.table, self._schema()), storage, in_thread, self._fitted)
        return self.making

    def _fitted(self, parts: Sequence[Part]) -> Iterator[pa.RecordBatch]:
        """Rows of parts in order, as they are under the table's definition."""
        schema, layout = self._schema(), self._layout
        batches = [part.memory.batch if part.memory.schema.equals(schema) else
                   projected(part.memory.batch, schema.names, layout, part) for part in parts]
        yield from batches if in_order(parts) else [joined(batches, shared=layout.shared)]

    def _schema(self) -> pa.Schema:
        schema = segment_schema(self.table, seq=False)
        return schema.insert(schema.names.index("k") + 1, pa.field("_pos", pa.int64(), nullable=False))

    def add(self, run: Run) -> None:
        self.written.append(run)
        self._renew()

    def add_made(self, making: Making, segment: Own, written: Written) -> None:
        """A run in the making is complete."""
        gone = {part.id for part in making.parts}
        self._run_of.update(dict.fromkeys(gone, segment))
        self._first_of[segment.id] = making.parts[0].id
        self.parts = [part for part in self.parts if part.id not in gone]
        self.making = None
        self.add(Run(segment, written))

    def drop_part(self, number: int) -> None:
        """A savepoint's rollback takes a part back, and with it all those of its run, which end with it."""
        if self.making is not None and any(part.id == number for part in self.making.parts):
            self.making.abandon()
            self.making = None
        if (run := self._run_of.pop(number, None)) is not None:
            self.drop(run)
        self.parts = [part for part in self.parts if part.id != number]
        self.waiting = [part for part in self.waiting if part.id != number]
        self._renew()

    def drop(self, segment: Segment) -> None:
        """The same of a run."""
        self.written = [run for run in self.written if run.segment is not segment]
        self.store.forget(segment.id)
        unlink_scratch(Path(segment.file))
        self._renew()

    def clear(self) -> None:
        if self.making is not None:
            self.making.abandon()
            self.making = None
        if not self:
            return
        for run in self.written:
            self.store.forget(run.segment.id)
            unlink_scratch(Path(run.segment.file))
        self.written, self.parts, self.waiting = [], [], []
        self._renew()

    def _renew(self) -> None:
        segments: list[Own] = [*self.parts, *(run.segment for run in self.written)]
        segments.sort(key=attrgetter("first"))
        self._manifest = Manifest(-1, self._manifest.version + 1, tuple(segments))
        self._firsts = [segment.first for segment in segments]
        self._lasts = list(itertools.accumulate((segment.last for segment in segments), max))
        self._answers.clear()

    # ---------- reading ----------
    def may_hold(self, keys: Sequence[Key]) -> bool:
        """Might one of these keys be here? Their bounds tell."""
        if not self:
            return False
        least, greatest = min([k for _, k in keys]), max([k for _, k in keys])
        return any(segment.least <= greatest and least <= segment.greatest for segment in self._manifest.segments)

    def overlaps(self, low: Key, high: Key) -> bool:
        return any(segment.overlaps(low, high) for segment in self._manifest.segments)

    def number_with(self, key: Key) -> int | None:
        """Of the part or run with a key; a run has the number of its first part. NotInMemory."""
        for segment in self._holding(key):
            try:
                found = self.store.locate(Manifest(-1, 0, (segment,)), *key, wait=False)
            except Absent:
                raise NotInMemory(partial(self._read, segment, key)) from None
            except KalamError:  # the file has just moved, by the commit: it may be there
                return self._first_of.get(segment.id, segment.id)
            if found is not None:
                return self._first_of.get(segment.id, segment.id)
        return None

    def _read(self, segment: Own, key: Key) -> None:
        """What somebody else's look-up needs; the run may have ended meanwhile."""
        try:
            self._find((segment,), key, None, wait=True)
        except KalamError as error:
            if error.sqlstate != "58P01":
                raise

    def _holding(self, key: Key) -> list[Own]:
        """What may have a key by its bounds, the newest first."""
        found: list[Any] = []
        for place in reversed(range(bisect_right(self._firsts, key))):
            if self._lasts[place] < key:
                break
            segment = self._manifest.segments[place]
            if segment.may_hold(key):
                found.append(segment)
        if len(found) > 1:
            found.sort(key=attrgetter("rank"), reverse=True)
        return found

    def find(self, key: Key, position: int | None = None) -> Version | None:
        """The newest version of a key, or the newest that was written at ``position`` or before. NotInMemory, whose
        ``load`` finds the answer to the next call, however small the cache is."""
        held = self._holding(key)
        if not held:
            return None
        asked = (key, position)
        try:
            return self._find(held, key, position, wait=False)
        except Absent:
            if asked in self._answers:
                return self._answers.pop(asked)

        def load() -> None:
            self._answers[asked] = self._find(held, key, position, wait=True)

        raise NotInMemory(load)

    def _find(self, held: Sequence[Own], key: Key, position: int | None, *, wait: bool) -> Version | None:
        for segment in held:
            found = self.store.locate(Manifest(-1, 0, (segment,)), *key, wait=wait)
            if found is None:
                continue
            _, group, place = found
            written: int = group.arrays["_pos"][place].as_py()
            if position is None or written <= position:
                return written, None if segment.gone else group.row(place, self._layout, segment, key[0])[:-2], None
        return None

    # ---------- the commit, in a worker thread ----------
    @property
    def changing(self) -> list[Run]:
        return [run for run in self.written if run.changes]

    def before(self, run: Run) -> Manifest:
        """Runs with rows that this one may hide."""
        return Manifest(-1, 0, tuple([
            other.segment for other in self.written if other.segment.rank < run.segment.rank and not other.segment.gone
            and other.segment.overlaps(run.segment.first, run.segment.last)]))

    def key_batches(self, run: Run) -> Iterator[pa.RecordBatch]:
        """A run's keys in order."""
        file = self.store.file(run.segment)
        for number in range(len(file.groups)):
            yield file.read(number, ["k"] if self._layout.shared else ["_userid", "k"])

    def dead(self, segment: Segment, hidden: Sequence[Key]) -> Positions:
        """Where a run's rows are that the overlay has changed since; ``hidden`` in order."""
        file, found = self.store.file(segment), [np.empty(0, np.uint32)]
        names = ["k"] if self._layout.shared else ["_userid", "k"]
        keys = [key for key in hidden if segment.may_hold(key)]
        for number, group in enumerate(file.groups):
            inside = [key for key in keys if group.first <= key <= group.last]
            if inside:
                found.append(positions_in(file.read(number, names), inside, shared=self._layout.shared) + group.start)
        return np.concatenate(found).astype(np.uint32)

    def has(self, keys: pa.RecordBatch) -> pa.RecordBatch:
        """Those of some keys, in order, that are in a run."""
        written = Manifest(-1, 0, tuple([run.segment for run in self.written]))
        column: Any = keys.column("k")
        column = column.to_numpy() if self._layout.codec.integer else column.to_pylist()
        hashes = bloom.key_hashes(None if self._layout.shared else keys.column("_userid").to_pylist(), column)
        perhaps = np.zeros(keys.num_rows, np.bool_)
        for segment in written.segments:
            perhaps |= bloom.may_contain_many(self.store.file(segment).bloom, hashes)
        places = [int(place) for place in np.flatnonzero(perhaps)
                  if self.store.locate(written, *key_at(keys, int(place)), wait=True) is not None]
        return keys.take(pa.array(places, pa.int64()))


def _ascending(keys: Keys) -> bool:
    """Each after the one before?"""
    if isinstance(keys, np.ndarray):
        return bool((keys[1:] > keys[:-1]).all())
    return all(map(lt, keys, keys[1:]))


def run_of(written: Written, *, rank: int = 0, gone: bool = False) -> Own:
    no_seq: Any = None
    return Own(-next(_numbers), _STORAGE, str(written.path), written.rows, written.bytes, written.checksum,
               written.first, written.last, written.least, written.greatest, no_seq, no_seq, 0, rank=rank, gone=gone)


class Making:
    """A run that is written in worker threads while more of its rows come. ``in_thread`` runs something to its end,
    whatever happens to the task that waits.

    After an error there, which ``drained`` and ``finish`` raise, nothing more is written.
    """

    def __init__(self, writer: SegmentWriter, storage: str, in_thread: InThread,
                 fitted: Callable[[Sequence[Part]], Iterator[pa.RecordBatch]]) -> None:
        self.parts: list[Part] = []
        self.sealed = False  # no more rows may come
        self.rows = self.nbytes = 0
        self._writer = writer
        self._storage = storage
        self._in_thread = in_thread
        self._fitted = fitted
        self._queue: list[list[Part]] = []
        self._queued = 0
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._abandoned = self._closing = False
        self._made: tuple[Own, Written] | None = None

    @property
    def full(self) -> bool:
        return self.rows >= RUN_ROWS or self.nbytes >= RUN_BYTES

    @property
    def behind(self) -> bool:
        """Is as much to be written as may be?"""
        return self._queued > QUEUE_BYTES

    def takes(self, parts: Sequence[Part]) -> bool:
        """May these follow what is there?"""
        return not self.sealed and (not self.parts or (self.parts[-1].last < parts[0].first and in_order(parts)))

    def add(self, parts: Sequence[Part]) -> None:
        """In any order where they are the first; the run then begins with the least."""
        self._queue.append(list(parts))
        self.parts += parts if in_order(parts) else sorted(parts, key=lambda part: part.last)
        self.rows += sum(part.rows for part in parts)
        nbytes = sum(part.bytes for part in parts)
        self.nbytes += nbytes
        self._queued += nbytes
        self._go_on()

    async def _work(self) -> None:
        """Until there is nothing to be written."""
        try:
            while self._error is None and not self._abandoned:
                if self._queue:
                    parts = self._queue.pop(0)
                    await self._in_thread(partial(self._write, parts))
                    self._queued -= sum(part.bytes for part in parts)
                elif self._closing and self._made is None:
                    self._made = await self._in_thread(self._complete)
                else:
                    break
        except BaseException as error:
            self._error = error  # for whoever asks next
            if not isinstance(error, Exception):
                raise
        finally:
            self._task = None
            if self._abandoned:
                self._writer.abandon()

    def _write(self, parts: Sequence[Part]) -> None:
        with told("write", self._writer.path.name, self._storage):
            for batch in self._fitted(parts):
                self._writer.add(batch)

    def _complete(self) -> tuple[Own, Written]:
        with told("write", self._writer.path.name, self._storage):
            written = self._writer.finish()
        return run_of(written), written

    def _go_on(self) -> None:
        if self._task is None:
            self._task = asyncio.ensure_future(self._work())

    async def drained(self) -> None:
        while self._task is not None:
            await asyncio.wait([self._task])
        if self._error is not None:
            raise self._error

    async def finish(self) -> tuple[Own, Written]:
        """The complete file. It is still to be abandoned where nobody takes it."""
        self.sealed = self._closing = True
        self._go_on()
        await self.drained()
        assert self._made is not None
        return self._made

    def abandon(self) -> None:
        """Nobody wants it."""
        self._abandoned = True
        if self._task is None:
            self._writer.abandon()


def in_order(parts: Sequence[Part]) -> bool:
    return all(one.last < other.first for one, other in itertools.pairwise(parts))
