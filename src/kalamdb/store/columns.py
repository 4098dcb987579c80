"""Hot rows as columns, kept from one scan of a table or a tenant to the next: SQLite's rows become arrays once.

What is kept is the hot rows of a table, or of one tenant in it, as one snapshot saw them (the *base*), and the keys
that commits have written from then on. Another snapshot's hot rows are the base without those keys, and what SQLite
has under them in that snapshot: right for any snapshot, older or younger than the base, that has seen all commits begun
before keys were noted. A commit notes its keys in the writer's thread before it is visible to anybody. Whatever else
changes a hot table (a flush, an ALTER, a purge) makes its bases void, at the same place.

All methods: any thread.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from kalamdb.store.hot import HotSnapshot, Layout

#: of all bases together, and those in the making
BUDGET = 128 << 20
#: how many there may be
MOST = 10_000
#: fewer rows are read as fast from SQLite
LEAST_ROWS = 256
#: of one batch, about
BATCH_ROWS = 32_768
#: changed keys are looked up one by one: so many at most, or one in so many of the rows
CHANGES, CHANGES_SHARE = 100, 50
#: as long as there is no base, whose rows could be counted
CHANGES_BEFORE = 20_000
#: a base in the making that has not grown for so long gives way to another scan, as its cursor may never go on
STALLED_SECONDS = 2.0

RowKey = tuple[str, Any]  # tenant, encoded key


@dataclass(slots=True, eq=False)
class _Tracked:
    """What is known of a table (``tenant`` None: all of it). ``since``: all groups of commits up to this one had begun
    when keys began to be noted. ``large``: columns that turned out to be too much for the budget."""

    table_id: int
    tenant: str | None
    since: int = 0
    keys: set[RowKey] = field(default_factory=set)
    most: int = CHANGES_BEFORE
    layout: Layout | None = None
    names: frozenset[str] = frozenset()
    batches: Sequence[pa.RecordBatch] = ()
    nbytes: int = 0
    large: frozenset[str] | None = None
    gathering: Gathering | None = None

    def empty(self) -> None:
        self.layout, self.names, self.batches, self.nbytes = None, frozenset(), (), 0


@dataclass(frozen=True, slots=True)
class HotColumns:
    """A base, in order of tenant and key, with the columns that were asked for among others; and the keys whose rows
    are to be left out and read from the snapshot, in order."""

    batches: Sequence[pa.RecordBatch]
    changed: Sequence[RowKey]


def joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """As one."""
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


class Gathering:
    """A base in the making: the batches of a scan, in order. ``keep`` it once the scan is through, or ``give_up``.

    The cache may end it at any time, and does not take what comes after that.
    """

    def __init__(self, cache: ColumnCache, tracked: _Tracked, layout: Layout, names: Sequence[str]) -> None:
        self.names = names
        self.tracked = tracked
        self.layout = layout
        self.batches: list[pa.RecordBatch] = []
        self.rows = self.nbytes = 0
        self.grown = time.monotonic()
        self._cache = cache
        self._small: list[pa.RecordBatch] = []  # the last ones, to be one

    @property
    def stalled(self) -> bool:
        return time.monotonic() - self.grown > STALLED_SECONDS

    def add(self, batch: pa.RecordBatch) -> None:
        if not self._cache.grow(self, batch):
            self.clear()
            return
        self._small.append(batch)
        if sum(each.num_rows for each in self._small) >= BATCH_ROWS:
            self._join()

    def _join(self) -> None:
        small, self._small = self._small, []
        if small:
            self.batches.append(joined(small))

    def keep(self) -> None:
        self._join()
        self._cache.put(self)

    def give_up(self) -> None:
        self._cache.give_up(self)

    def clear(self) -> None:
        self.rows = self.nbytes = 0
        self.batches, self._small = [], []


class ColumnCache:
    """``begun``: the number of the group of commits that the writer began last. A tenant is None for a whole table; a
    shared table has the one tenant ""."""

    def __init__(self, begun: Callable[[], int], budget: int = BUDGET) -> None:
        self.budget = budget
        self.least_rows = LEAST_ROWS
        self._begun = begun
        self._lock = threading.Lock()
        self._by_table: dict[int, dict[str | None, _Tracked]] = {}
        self._used: OrderedDict[_Tracked, None] = OrderedDict()  # the longest unused first
        self._nbytes = 0

    # ---------- for who writes, before it can be seen ----------
    def changed(self, layout: Layout, keys: Collection[RowKey]) -> None:
        with self._lock:  # also to see that there is nothing: a scan may be about to note keys
            tenants = self._by_table.get(layout.table_id)
            if tenants is None:
                return
            for tenant in (None, "") if layout.shared else (None,):
                if (tracked := tenants.get(tenant)) is not None:
                    self._note(tracked, keys)
            if not layout.shared and len(tenants) > (None in tenants):
                for key in keys:
                    if (tracked := tenants.get(key[0])) is not None:
                        self._note(tracked, (key,))

    def _note(self, tracked: _Tracked, keys: Collection[RowKey]) -> None:
        if len(tracked.keys) + len(keys) > tracked.most:
            self._drop(tracked)
        else:
            tracked.keys.update(keys)

    def void(self, table_id: int) -> None:
        """The table's hot rows change in a way that nobody notes."""
        with self._lock:
            for tracked in list(self._by_table.get(table_id, {}).values()):
                self._drop(tracked)

    # ---------- for who reads ----------
    def of(self, snapshot: HotSnapshot, layout: Layout, tenant: str | None, names: Collection[str]
           ) -> HotColumns | None:
        """The hot rows of a snapshot, which has been pinned."""
        with self._lock:
            tracked = self._found(snapshot, layout, tenant, names)
            if tracked is None:
                return None
            batches, changed = tracked.batches, list(tracked.keys)
        changed.sort()  # writers wait for the lock
        return HotColumns(batches, changed)

    def unchanged(self, snapshot: HotSnapshot, layout: Layout, tenant: str | None, names: Collection[str]
                  ) -> Sequence[pa.RecordBatch] | None:
        """The same where no key has changed."""
        with self._lock:
            tracked = self._found(snapshot, layout, tenant, names)
            return None if tracked is None or tracked.keys else tracked.batches

    def _found(self, snapshot: HotSnapshot, layout: Layout, tenant: str | None, names: Collection[str]
               ) -> _Tracked | None:
        tracked = self._by_table.get(layout.table_id, {}).get(tenant)
        if tracked is None or tracked.layout is not layout or snapshot.since < tracked.since or (
                not tracked.names.issuperset(names)):
            return None
        self._used.move_to_end(tracked)
        return tracked

    def gather(self, snapshot: HotSnapshot, layout: Layout, tenant: str | None, names: Sequence[str]
               ) -> Gathering | None:
        """For a scan that is to read all hot rows of a snapshot; None where it would not make a base, or another one is
        making it. The scan reads the columns of ``Gathering.names``, which are more where others have wanted more."""
        with self._lock:
            tracked = self._by_table.get(layout.table_id, {}).get(tenant)
            if tracked is None:
                tracked = _Tracked(layout.table_id, tenant)
                self._by_table.setdefault(layout.table_id, {})[tenant] = tracked
                self._used[tracked] = None
                tracked.since = self._begun()  # what begins after this finds it
                if len(self._used) > MOST:
                    self._drop(next(iter(self._used)))
            if snapshot.since < tracked.since:
                return None
            before = tracked.names if tracked.layout is layout else ()
            wanted = [*names, *sorted(set(before) - set(names))]
            if tracked.large is not None and tracked.large.issubset(wanted):
                return None
            if tracked.gathering is not None:
                if not tracked.gathering.stalled:
                    return None
                self._end(tracked)
            tracked.gathering = Gathering(self, tracked, layout, wanted)
            return tracked.gathering

    # ---------- bases in the making ----------
    def grow(self, gathering: Gathering, batch: pa.RecordBatch) -> bool:
        """May it have one more batch?"""
        size = batch.get_total_buffer_size()  # of whole batches that is nbytes, which takes long to count
        with self._lock:
            if gathering.tracked.gathering is not gathering:
                return False
            gathering.rows += batch.num_rows
            gathering.nbytes += size
            gathering.grown = time.monotonic()
            self._nbytes += size
            self._make_room(gathering.tracked, gathering.nbytes)
            return gathering.tracked.gathering is gathering

    def _make_room(self, tracked: _Tracked, nbytes: int) -> None:
        """For what is being gathered, which has so many bytes: it goes itself if there is none."""
        if nbytes > self.budget:
            assert tracked.gathering is not None
            tracked.large = frozenset(tracked.gathering.names)
            self._end(tracked)
        if self._nbytes <= self.budget:
            return
        others = [other for other in self._used if other is not tracked]
        for other in others:
            if other.gathering is not None and other.gathering.stalled:
                self._end(other)
        for other in others:
            if other.nbytes and self._nbytes > self.budget:
                self._drop(other)
        if self._nbytes > self.budget:  # what it is to replace
            self._nbytes -= tracked.nbytes
            tracked.empty()
        if self._nbytes > self.budget:
            self._end(tracked)

    def give_up(self, gathering: Gathering) -> None:
        with self._lock:
            if gathering.tracked.gathering is gathering:
                self._end(gathering.tracked)

    def _end(self, tracked: _Tracked) -> None:
        gathering, tracked.gathering = tracked.gathering, None
        if gathering is not None:
            self._nbytes -= gathering.nbytes
            gathering.clear()

    def put(self, gathering: Gathering) -> None:
        tracked = gathering.tracked
        with self._lock:
            if tracked.gathering is not gathering:  # void since
                return
            rows = gathering.rows
            tracked.most = max(CHANGES, rows // CHANGES_SHARE)
            if len(tracked.keys) > tracked.most or rows < self.least_rows:
                self._drop(tracked)
                return
            self._nbytes -= tracked.nbytes
            tracked.gathering = None  # its bytes are the base's
            tracked.layout, tracked.names = gathering.layout, frozenset(gathering.names)
            tracked.batches, tracked.nbytes = gathering.batches, gathering.nbytes
            self._used.move_to_end(tracked)

    def _drop(self, tracked: _Tracked) -> None:
        self._end(tracked)
        self._used.pop(tracked, None)
        tenants = self._by_table.get(tracked.table_id, {})
        if tenants.get(tracked.tenant) is tracked:
            del tenants[tracked.tenant]
            self._nbytes -= tracked.nbytes
            if not tenants:
                del self._by_table[tracked.table_id]
