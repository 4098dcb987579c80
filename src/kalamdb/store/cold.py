"""Cold rows: key look-ups and ordered scans over a manifest's segments.

Look-ups go through a cache of decoded row groups with a byte budget: a binary search in memory where the group is
there. Where it is not, ``lookup`` raises ``NotInMemory`` if the caller must not wait (the event loop), or reads it.
Bloom filters and key ranges leave one segment at most to open for a key. Everything else here is for worker threads.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.store import bloom, manifest
from kalamdb.store.hot import Layout
from kalamdb.store.manifest import Manifest, Positions, Query, Segment
from kalamdb.store.segment import Key, SegmentFile, key_at, position_of
from kalamdb.txn.api import NotInMemory, ScanStats

CACHE_BYTES = 256 << 20
OPEN_FILES = 256
#: a scan of so few row groups of a segment leaves them in the cache
FEW_GROUPS = 2
#: a scan leaves its columns in the cache if they may take this share of it at most, as values of so many bytes; those
#: beyond that share, as wide values may be, it does not
CACHE_SHARE, VALUE_BYTES = 4, 16
#: so many keys are looked for one by one in a batch
FEW_KEYS = 64

#: rows kept for those who could not wait for them; an update under REPEATABLE READ needs two at once
ANSWERS = 256
_UNKNOWN: Any = object()

Bounds = Sequence[tuple[str, Any]]


class Absent(Exception):
    """What ``locate`` needs is not in memory."""


class Files(Protocol):
    """What holds segment files (``store.storage.Storage``)."""

    def fetch(self, name: str) -> Path: ...


# ---------- decoded row groups ----------
class DecodedGroup:
    """A row group in memory: every column, and its tenants as runs."""

    __slots__ = ("arrays", "batch", "ends", "integers", "nbytes", "tenants")

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        self.arrays: dict[str, pa.Array] = dict(zip(batch.schema.names, batch.columns, strict=True))
        keys = self.arrays["k"]
        self.integers: npt.NDArray[np.int64] | None = keys.to_numpy() if keys.type == pa.int64() else None
        self.tenants: list[str] | None = None
        self.ends: list[int] = []
        tenants = self.arrays.get("_userid")
        if tenants is not None:
            runs = pc.run_end_encode(tenants, run_end_type=pa.int32())
            self.tenants, self.ends = runs.values.to_pylist(), runs.run_ends.to_pylist()
        self.nbytes = batch.nbytes + 100 * len(self.ends) + 1000

    def position(self, tenant: str, k: Any) -> int | None:
        """Where the row of a key is."""
        low, high = 0, self.batch.num_rows
        if self.tenants is not None:
            run = bisect_left(self.tenants, tenant)
            if run == len(self.tenants) or self.tenants[run] != tenant:
                return None
            low, high = self.ends[run - 1] if run else 0, self.ends[run]
        if self.integers is not None:
            integers = self.integers
            place = low + int(integers[low:high].searchsorted(k))
            return place if place < high and integers[place] == k else None
        keys: Any = self.arrays["k"]
        place = bisect_left(range(high), k, low, high, key=lambda at: keys[at].as_py())
        return place if place < high and keys[place].as_py() == k else None

    def row(self, place: int, layout: Layout, segment: Segment, tenant: str) -> Row:
        """(*columns, _seq, _userid) in storage values."""
        arrays = self.arrays
        values: list[Any] = [
            layout.missing.get(name) if (array := arrays.get(name)) is None else array[place].as_py()
            for name in layout.columns
        ]
        for at in layout.booleans:
            if values[at] is not None:
                values[at] = int(values[at])
        seq = arrays.get("_seq")
        return (*values, segment.min_seq if seq is None else seq[place].as_py(), None if layout.shared else tenant)


class GroupCache:
    """Decoded row groups by segment and number, and columns of others by segment, number and name; the longest unused
    go first. Any thread."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._groups: OrderedDict[Any, Any] = OrderedDict()
        self.nbytes = 0

    def get(self, key: tuple[int, int]) -> DecodedGroup | None:
        found: DecodedGroup | None = self._get(key)
        return found

    def put(self, key: tuple[int, int], group: DecodedGroup) -> None:
        self._put(key, group)

    def column(self, segment: int, number: int, name: str) -> pa.Array | None:
        return self._get((segment, number, name))

    def put_column(self, segment: int, number: int, name: str, array: pa.Array) -> None:
        self._put((segment, number, name), array)

    def _get(self, key: tuple[Any, ...]) -> Any:
        with self._lock:
            found = self._groups.get(key)
            if found is not None:
                self._groups.move_to_end(key)
            return found

    def _put(self, key: tuple[Any, ...], group: Any) -> None:
        with self._lock:
            self._drop(key)
            self._groups[key] = group
            self.nbytes += group.nbytes
            while self.nbytes > self.budget and len(self._groups) > 1:
                self._drop(next(iter(self._groups)))

    def forget(self, segment: int) -> None:
        with self._lock:
            for key in [key for key in self._groups if key[0] == segment]:
                self._drop(key)

    def _drop(self, key: tuple[Any, ...]) -> None:
        found = self._groups.pop(key, None)
        if found is not None:
            self.nbytes -= found.nbytes


# ---------- the store ----------
@dataclass(slots=True)
class Room:
    """So many bytes of the cache are left for a scan's columns, those that it finds there counted."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class ColdRange:
    """Which rows a scan wants: of one tenant (None: all), whose encoded keys satisfy the bounds."""

    tenant: str | None = None
    bounds: Bounds = ()

    def ends(self, *, shared: bool) -> tuple[tuple[Any, ...] | None, tuple[Any, ...] | None]:
        """Lowest and highest key, both perhaps too wide; None: open."""
        tenant = "" if shared else self.tenant
        if tenant is None:
            return None, None
        low: tuple[Any, ...] = (tenant,)
        high: tuple[Any, ...] = (tenant + "\0",)
        for operator, value in self.bounds:
            if operator in ("=", ">", ">="):
                low = max(low, (tenant, value))
            if operator in ("=", "<", "<="):
                high = min(high, (tenant, value))
        return low, high

    def may_match(self, segment: Segment) -> bool:
        for operator, value in self.bounds:
            if operator in ("=", ">", ">=") and segment.greatest < value:
                return False
            if operator in ("=", "<", "<=") and segment.least > value:
                return False
        return True


class ColdStore:
    """``tables``: the newest manifest of every table that has ever been tiered, kept by the event loop."""

    def __init__(self, storages: Mapping[str, Files], cache_bytes: int = CACHE_BYTES) -> None:
        self.storages = storages
        self.tables: dict[int, Manifest] = {}
        self.cache = GroupCache(cache_bytes)
        self._files: OrderedDict[int, SegmentFile] = OrderedDict()
        self._lock = threading.Lock()
        self._answers: dict[Any, Row | None] = {}
        self._older: dict[int, Manifest] = {}  # by table, the one asked for last that is not the newest

    # ---------- manifests ----------
    def refresh(self, query: Query, table_id: int) -> None:
        """Take over what was published."""
        version = manifest.version_of(query, table_id)
        if version:
            self.tables[table_id] = manifest.load(query, table_id, version)
        self._older.pop(table_id, None)

    def forget_table(self, table_id: int) -> Sequence[Segment]:
        """Its segments, which open scans may still read."""
        found = self.tables.pop(table_id, None)
        self._older.pop(table_id, None)
        return found.segments if found is not None else ()

    def forget(self, number: int) -> None:
        """A segment that nobody can read any more."""
        self.cache.forget(number)
        with self._lock:
            file = self._files.pop(number, None)
        if file is not None:
            file.close()

    def as_of(self, query: Query, table_id: int) -> Manifest | None:
        """The manifest a snapshot sees; None where it sees no segment of the table."""
        newest = self.tables.get(table_id)
        if newest is None:
            return None
        version = manifest.version_of(query, table_id)
        found = newest
        if version != newest.version:
            older = self._older.get(table_id)
            found = older if older is not None and older.version == version else manifest.load(query, table_id, version)
            self._older[table_id] = found
        return found if found.segments else None

    # ---------- files ----------
    def file(self, segment: Segment) -> SegmentFile:
        with self._lock:
            found = self._files.get(segment.id)
            if found is not None:
                self._files.move_to_end(segment.id)
                return found
        storage = self.storages.get(segment.storage)
        if storage is None:
            raise manifest.storage_missing(segment)
        opened = SegmentFile(storage.fetch(segment.file), segment.file)
        with self._lock:
            kept = self._files.setdefault(segment.id, opened)
            while len(self._files) > OPEN_FILES:  # closed with the last reference to it
                self._files.popitem(last=False)
        return kept

    def opened(self, segment: Segment) -> SegmentFile | None:
        return self._files.get(segment.id)

    def group(self, segment: Segment, number: int, *, wait: bool = True) -> DecodedGroup:
        found = self.cache.get((segment.id, number))
        if found is None:
            if not wait:
                raise Absent
            found = DecodedGroup(self.read(segment, number, None))
            self.cache.put((segment.id, number), found)
        return found

    def read(self, segment: Segment, number: int, columns: Sequence[str] | None) -> pa.RecordBatch:
        """A row group's columns (None: all). A file found damaged is opened anew the next time: it may be mended."""
        file = self.file(segment)
        try:
            return file.read(number, file.schema.names if columns is None else columns)
        except KalamError:
            self.forget(segment.id)
            raise

    def read_kept(self, segment: Segment, number: int, columns: Sequence[str], room: Room) -> pa.RecordBatch:
        """The same for a scan whose columns are to stay in the cache: decoding takes most of its time."""
        names = [name for name in columns if name in self.file(segment).schema.names] or ["k"]
        found = {name: self.cache.column(segment.id, number, name) for name in names}
        room.nbytes -= sum(array.nbytes for array in found.values() if array is not None)
        absent = [name for name, array in found.items() if array is None]
        if absent:
            batch = self.read(segment, number, absent)
            for name in absent:
                array = found[name] = batch.column(name)
                room.nbytes -= array.nbytes
                if room.nbytes >= 0:
                    self.cache.put_column(segment.id, number, name, array)
        return pa.RecordBatch.from_arrays(list(found.values()), list(found))

    # ---------- one key ----------
    def lookup(self, found: Manifest, layout: Layout, tenant: str, k: Any, *, wait: bool = True) -> Row | None:
        """The live row of a key, (*columns, _seq, _userid).

        Not ``wait``: raises NotInMemory rather than read a file; what its ``load`` found is the answer to the next
        calls, however small the cache is.
        """
        asked = (found.table_id, found.version, layout, tenant, k)
        if wait:
            row = self._row(found, layout, tenant, k, wait=True)
            if len(self._answers) >= ANSWERS:
                self._answers.clear()
            self._answers[asked] = row
            return row
        try:
            return self._row(found, layout, tenant, k, wait=False)
        except Absent:
            answer = self._answers.get(asked, _UNKNOWN)
            if answer is _UNKNOWN:
                raise NotInMemory(partial(self.lookup, found, layout, tenant, k)) from None
            return answer  # type: ignore[no-any-return]

    def _row(self, found: Manifest, layout: Layout, tenant: str, k: Any, *, wait: bool) -> Row | None:
        place = self.locate(found, tenant, k, wait=wait)
        if place is None:
            return None
        segment, group, position = place
        return group.row(position, layout, segment, tenant)

    def locate(self, found: Manifest, tenant: str, k: Any, *, wait: bool) -> tuple[Segment, DecodedGroup, int] | None:
        key: Key = (tenant, k)
        hashed: int | None = None
        for segment in found.segments:
            if segment.first > key:
                break
            if not segment.may_hold(key):
                continue
            file = self.opened(segment)
            if file is None:
                if not wait:
                    raise Absent
                file = self.file(segment)
            number = bisect_right(file.groups, key, key=_first) - 1
            if number < 0 or file.groups[number].last < key:
                continue
            group = self.cache.get((segment.id, number))
            if group is None:  # what has been read is looked at sooner than its Bloom filter
                if hashed is None:
                    hashed = bloom.key_hash(tenant, k)
                if not bloom.may_contain(file.bloom, hashed):
                    continue
                group = self.group(segment, number, wait=wait)
            position = group.position(tenant, k)
            if position is not None and not _is_dead(segment.dead, file.groups[number].start + position):
                return segment, group, position
        return None

    # ---------- scans ----------
    def batches(self, found: Manifest, layout: Layout, columns: Sequence[str], wanted: ColdRange,
                check: Callable[[], None], *, ordered: bool = True, stats: ScanStats | None = None
                ) -> Iterator[pa.RecordBatch]:
        """Live rows of the range with these columns (one at least of ``_userid``, ``k``, ``_seq``, ``c<id>``); hot rows
        and tombstones may hide some. ``ordered`` by tenant and key needs both among the columns."""
        chosen = []
        low, high = wanted.ends(shared=layout.shared)
        for segment in found.segments:
            if (low is not None and segment.last < low) or (high is not None and segment.first > high):
                continue
            if segment.live and wanted.may_match(segment):
                chosen.append(segment)
        if stats is not None:
            stats.segments_pruned += len(found.segments) - len(chosen)
        values = sum(segment.rows for segment in chosen) * (len(columns) + 1)
        share = self.cache.budget // CACHE_SHARE
        room = Room(share if values * VALUE_BYTES <= share else 0)
        sources = [(segment, self._of_segment(segment, layout, columns, wanted, check, stats, room))
                   for segment in chosen]
        if not ordered or len(sources) <= 1:
            for _, source in sources:
                yield from source
        else:
            yield from merged([(segment.first, source) for segment, source in sources], shared=layout.shared)

    def _of_segment(self, segment: Segment, layout: Layout, columns: Sequence[str], wanted: ColdRange,
                    check: Callable[[], None], stats: ScanStats | None, room: Room) -> Iterator[pa.RecordBatch]:
        file = self.file(segment)
        low, high = wanted.ends(shared=layout.shared)
        numbers = file.between(low, high)
        if stats is not None:
            stats.segments += 1
            stats.groups_pruned += len(file.groups) - len(numbers)
        needed = list(dict.fromkeys([*columns, "k", *([] if layout.shared else ["_userid"])])) if (
            wanted.tenant is not None or wanted.bounds) else list(columns)
        for number in numbers:
            check()
            group = self.cache.get((segment.id, number))
            if group is None and len(numbers) <= FEW_GROUPS:
                group = self.group(segment, number)
            if group is not None:
                batch = group.batch
            else:
                kept = room.nbytes > 0
                batch = (self.read_kept(segment, number, needed, room) if kept else
                         self.read(segment, number, needed))
            start, batch = restricted(batch, wanted, shared=layout.shared)
            batch = _alive(batch, segment.dead, file.groups[number].start + start)
            batch = _bounded(batch, wanted, shared=layout.shared)
            if stats is not None:
                stats.groups += 1
                stats.cold_rows += batch.num_rows
            if batch.num_rows:
                yield projected(batch, columns, layout, segment)

    # ---------- rows by their places ----------
    def places(self, segment: Segment, layout: Layout, wanted: ColdRange) -> tuple[int, int]:
        """From which position to which (not included) a segment may hold rows of the range."""
        low, high = wanted.ends(shared=layout.shared)
        if low is None or high is None or (layout.shared and not wanted.bounds):
            return 0, segment.rows
        if segment.last < low or segment.first > high or not wanted.may_match(segment):
            return 0, 0
        file = self.file(segment)
        numbers = file.between(low, high)
        if not numbers:
            return 0, 0
        ends = []
        for number in (numbers[0], numbers[-1]):
            found = self.cache.get((segment.id, number))
            batch = self.read(segment, number, ["_userid", "k"]) if found is None else found.batch
            start, part = restricted(batch, wanted, shared=layout.shared)
            ends.append((file.groups[number].start + start, part.num_rows))
        return ends[0][0], sum(ends[1])

    def rows_at(self, segment: Segment, layout: Layout, columns: Sequence[str], positions: npt.NDArray[np.int64],
                check: Callable[[], None]) -> Iterator[pa.RecordBatch]:
        """Of a segment's rows at these positions (ascending), those that live; a batch for each row group."""
        positions = positions[~np.isin(positions, segment.dead)]
        for number, group in enumerate(self.file(segment).groups):
            low, high = positions.searchsorted((group.start, group.start + group.rows))
            if low == high:
                continue
            check()
            found = self.cache.get((segment.id, number))
            batch = self.read(segment, number, columns) if found is None else found.batch
            yield projected(batch, columns, layout, segment).take(pa.array(positions[low:high] - group.start))


def _first(group: Any) -> Key:
    key: Key = group.first
    return key


def _is_dead(dead: Positions, position: int) -> bool:
    if not len(dead):
        return False
    place = int(dead.searchsorted(position))
    return place < len(dead) and dead[place] == position


# ---------- batches ----------
def restricted(batch: pa.RecordBatch, wanted: ColdRange, *, shared: bool) -> tuple[int, pa.RecordBatch]:
    """The slice of an ordered batch that a range of one tenant wants, and where it begins."""
    low, high = wanted.ends(shared=shared)
    if low is None or high is None or (shared and not wanted.bounds):
        return 0, batch
    start = position_of(batch, low)
    stop = position_of(batch, high, after=len(high) > 1)  # of the tenant alone: up to what follows it
    return start, batch.slice(start, max(0, stop - start))


def _alive(batch: pa.RecordBatch, dead: Positions, start: int) -> pa.RecordBatch:
    low, high = dead.searchsorted((start, start + batch.num_rows))
    if low == high:
        return batch
    mask = np.ones(batch.num_rows, np.bool_)
    mask[dead[low:high] - start] = False
    return batch.filter(pa.array(mask))


_TESTS: dict[str, Callable[[Any, Any], Any]] = {
    "=": pc.equal, ">": pc.greater, ">=": pc.greater_equal, "<": pc.less, "<=": pc.less_equal,
}


def _bounded(batch: pa.RecordBatch, wanted: ColdRange, *, shared: bool) -> pa.RecordBatch:
    """Without the rows at the edges that the bounds exclude; of every tenant, without all that they exclude."""
    for operator, value in wanted.bounds:
        if batch.num_rows and (operator in ("<", ">") or (wanted.tenant is None and not shared)):
            keys = batch.column("k")
            batch = batch.filter(_TESTS[operator](keys, pa.scalar(value, keys.type)))
    return batch


def projected(batch: pa.RecordBatch, columns: Sequence[str], layout: Layout, segment: Segment) -> pa.RecordBatch:
    """These columns of a segment's batch."""
    arrays = []
    names = batch.schema.names
    for name in columns:
        if name in names:
            array = batch.column(name)
            if name in layout.arrow and array.type != layout.arrow[name]:
                array = array.cast(layout.arrow[name])
        elif name == "_seq":
            array = pa.repeat(pa.scalar(segment.min_seq, pa.int64()), batch.num_rows)
        elif name == "_userid":
            array = pa.repeat("", batch.num_rows)
        else:
            array = _missing(layout, name, batch.num_rows)
        arrays.append(array)
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _missing(layout: Layout, name: str, rows: int) -> pa.Array:
    """A column that is younger than the file."""
    value, kind = layout.missing.get(name), layout.arrow[name]
    if value is None:
        return pa.nulls(rows, kind)
    return pa.repeat(pa.scalar(bool(value) if kind == pa.bool_() else value, kind), rows)


def joined(parts: Sequence[pa.RecordBatch], *, shared: bool) -> pa.RecordBatch:
    """Ordered batches as one."""
    parts = [part for part in parts if part.num_rows]
    if len(parts) == 1:
        return parts[0]
    table = pa.Table.from_batches(parts).combine_chunks()
    keys = [("k", "ascending")] if shared else [("_userid", "ascending"), ("k", "ascending")]
    made: pa.RecordBatch = table.take(pc.sort_indices(table, sort_keys=keys)).combine_chunks().to_batches()[0]
    return made


def merged(sources: Sequence[tuple[Key, Iterator[pa.RecordBatch]]], *, shared: bool) -> Iterator[pa.RecordBatch]:
    """Several ordered sources as one. Each comes with a key that none of its rows is below; it is opened no sooner
    than that key is reached, and one batch of each is held."""
    pending = sorted(sources, key=lambda source: source[0], reverse=True)
    heads: list[tuple[pa.RecordBatch, Iterator[pa.RecordBatch]]] = []

    def advance(source: Iterator[pa.RecordBatch]) -> None:
        for batch in source:
            if batch.num_rows:
                heads.append((batch, source))
                return

    while heads or pending:
        bound = min((key_at(batch, batch.num_rows - 1) for batch, _ in heads), default=None)
        if pending and (bound is None or pending[-1][0] <= bound):
            advance(pending.pop()[1])
            continue
        assert bound is not None
        parts, held = [], heads
        heads = []
        for batch, source in held:
            count = position_of(batch, bound, after=True)
            parts.append(batch.slice(0, count))
            if count < batch.num_rows:
                heads.append((batch.slice(count), source))
            else:
                advance(source)
        yield joined(parts, shared=shared)


def without(batch: pa.RecordBatch, keys: Sequence[Key], *, shared: bool) -> pa.RecordBatch:
    """An ordered batch without the rows of these keys."""
    gone = positions_in(batch, keys, shared=shared)
    if not len(gone):
        return batch
    mask = np.ones(batch.num_rows, np.bool_)
    mask[gone] = False
    return batch.filter(pa.array(mask))


def positions_in(batch: pa.RecordBatch, keys: Sequence[Key], *, shared: bool) -> Positions:
    """Where the rows of these keys are, ascending, for those that are there."""
    if not keys:
        return manifest.NOTHING
    if len(keys) <= FEW_KEYS:
        found = []
        for key in keys:
            place = position_of(batch, key)
            if place < batch.num_rows and key_at(batch, place) == key:
                found.append(place)
        return np.array(sorted(found), np.uint32)
    columns = {"k": pa.array([key[1] for key in keys], batch.column("k").type)}
    if not shared:
        columns["_userid"] = pa.array([key[0] for key in keys], pa.string())
    return matches(batch, pa.table(columns))


def matches(batch: pa.RecordBatch, keys: pa.Table) -> Positions:
    """Positions of the batch's rows whose key columns are in a table of keys."""
    names = keys.schema.names
    mine = pa.Table.from_batches([batch.select(names)]).append_column(
        "at", pa.array(np.arange(batch.num_rows, dtype=np.uint32)))
    met = mine.join(keys, names, join_type="left semi", use_threads=False)
    positions: Positions = np.sort(met.column("at").to_numpy())
    return positions
