"""Random rows of a table, for statistics: every row with the same chance, and how many rows there are in all.

Hot and cold rows are drawn as one list of places, in which a cold row that a hot one or a tombstone hides is drawn in
vain; so a few more are drawn than asked for, and the share of those in vain tells how many rows there really are.
Where a table has more blocks of cold rows than may be read, the cold rows come from some blocks drawn at random.

A transaction's own rows are rare among statistics: with them, all rows are read, and some kept.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kalamdb.api import Row
from kalamdb.store.cold import ColdRange, without
from kalamdb.store.hot import TURN_ROWS, HotSnapshot, Layout, Stop
from kalamdb.store.manifest import Segment
from kalamdb.store.segment import GROUP_ROWS
from kalamdb.txn.api import Sample, Sampled
from kalamdb.txn.scan import Cold, StoreScan, hiding_keys, to_rows

#: numpy draws from no larger populations
MOST_ROWS = 1_000_000_000

Positions = npt.NDArray[np.int64]


class StoreSample:
    """``kalamdb.txn.api.SampleCursor``. ``whole``: a scan of all rows, where the transaction has some of its own."""

    def __init__(self, snapshot: HotSnapshot, layout: Layout, sample: Sample, since: int | None, cold: Cold | None,
                 whole: StoreScan | None) -> None:
        self._reader = snapshot.reader
        self._layout = layout
        self._sample = sample
        self._since = since
        self._cold = cold
        self._whole = whole
        self._stop = Stop()
        self._tenant = "" if layout.shared else sample.tenant
        self._bounds: tuple[tuple[str, Any], ...] = ()
        self._random = np.random.default_rng()
        self._names = [layout.output(position) for position in sample.columns]

    def interrupt(self) -> None:
        self._stop.asked = True
        if self._whole is not None:
            self._whole.interrupt()

    def draw(self) -> Sampled:
        if self._whole is not None:
            return _reservoir(self._whole, self._sample.rows)
        bounds, possible = self._layout.codec.bounds(self._sample.key_prefix, self._sample.low, self._sample.high)
        if not possible:
            return Sampled([], 0)
        self._bounds = tuple(bounds)
        hot = self._hot_rows()
        blocks = self._blocks()
        cold = sum(rows for _, _, rows in blocks)
        if self._sample.blocks is not None and len(blocks) > self._sample.blocks:
            blocks = random.sample(blocks, self._sample.blocks)
        within = sum(rows for _, _, rows in blocks)
        wanted = self._sample.rows
        places = min(hot + cold, wanted if not cold else wanted + wanted // 10 + 10)
        while True:
            of_hot, of_cold = self._shares(hot, cold, places)
            of_cold = min(of_cold, within)
            found = list(self._cold_rows(blocks, within, of_cold))
            if len(found) + of_hot >= wanted or places == hot + cold or of_cold == within:
                break
            places = min(hot + cold, 2 * places)
        total = hot + round(cold * len(found) / of_cold) if of_cold else hot + cold
        rows = [*self._hot_sample(of_hot), *found]
        return Sampled(rows if len(rows) <= wanted else random.sample(rows, wanted), total)

    def _shares(self, hot: int, cold: int, places: int) -> tuple[int, int]:
        """How many of so many random places are hot rows, and how many are cold."""
        if places == hot + cold:
            return hot, cold
        if hot + cold < MOST_ROWS:
            of_hot = int(self._random.hypergeometric(hot, cold, places))
        else:
            of_hot = min(hot, int(self._random.binomial(places, hot / (hot + cold))))
        return of_hot, places - of_hot

    # ---------- hot rows ----------
    def _select(self, text: str, values: Sequence[Any]) -> Iterator[list[Row]]:
        cursor = self._reader.execute(self._layout, text, values, self._stop)
        while cursor is not None and (rows := self._reader.rows(cursor, TURN_ROWS, self._stop)):
            yield rows

    def _source(self) -> tuple[str, tuple[Any, ...]]:
        tests = [(f"k {operator} ?", value) for operator, value in self._bounds]
        if self._since is not None:
            tests.append(("_seq > ?", self._since))
        if self._tenant is not None:
            tests.append(("_userid = ?", self._tenant))
        where = " WHERE " + " AND ".join(test for test, _ in tests) if tests else ""
        return f"FROM {self._layout.table}{where}", tuple(value for _, value in tests)

    def _hot_rows(self) -> int:
        source, values = self._source()
        found = [row for rows in self._select(f"SELECT count(*) {source}", values) for row in rows]
        return int(found[0][0]) if found else 0

    def _hot_sample(self, count: int) -> Iterator[Row]:
        source, values = self._source()
        load = self._layout.loader(self._sample.columns)
        text = f"SELECT {', '.join(self._names) or 'NULL'} {source} ORDER BY random() LIMIT ?"
        for rows in self._select(text, (*values, count)):
            yield from rows if load is None else load(rows)

    # ---------- cold rows ----------
    def _blocks(self) -> list[tuple[Segment, int, int]]:
        """Of all cold rows in the range: segment, first place and number of places."""
        if self._cold is None:
            return []
        wanted = ColdRange(self._tenant, self._bounds)
        blocks = []
        for segment in self._cold.manifest.segments:
            first, end = self._cold.store.places(segment, self._layout, wanted)
            blocks += [(segment, start, min(GROUP_ROWS, end - start)) for start in range(first, end, GROUP_ROWS)]
        return blocks

    def _cold_rows(self, blocks: Sequence[tuple[Segment, int, int]], within: int, count: int) -> Iterator[Row]:
        if not count:
            return
        drawn = np.sort(self._random.choice(within, count, replace=False, shuffle=False)).astype(np.int64)
        before = 0
        for segment, start, rows in blocks:
            low, high = drawn.searchsorted((before, before + rows))
            if low < high:
                yield from self._of_segment(segment, drawn[low:high] - before + start)
            before += rows

    def _of_segment(self, segment: Segment, positions: Positions) -> Iterator[Row]:
        assert self._cold is not None
        layout = self._layout
        head = ["k"] if layout.shared else ["_userid", "k"]
        columns = list(dict.fromkeys([*head, *(name for name in self._names if name != "NULL")]))
        for batch in self._cold.store.rows_at(segment, layout, columns, positions, self._stop.check):
            yield from to_rows(self._visible(batch), self._names or ["NULL"])

    def _visible(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        keys = hiding_keys(self._reader, self._layout, batch, self._stop)
        return without(batch, keys, shared=self._layout.shared)


def _reservoir(scan: StoreScan, count: int) -> Sampled:
    """Of all rows of a scan, so many at random."""
    kept: list[Row] = []
    total = 0
    try:
        while rows := scan.fetch(TURN_ROWS):
            for row in rows:
                total += 1
                if len(kept) < count:
                    kept.append(row)
                elif (place := random.randrange(total)) < count:
                    kept[place] = row
    finally:
        scan.close()
    return Sampled(kept, total)
