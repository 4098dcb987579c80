"""Scans that the event loop answers by itself: of columns kept in memory, and of few hot rows.

Few rows are read through the connection that commits, as long as nothing is committed: it has just counted them, so
they are in its cache, and nobody's read transaction has to be opened. What takes longer than a commit may take is a
worker's, and so is everything while other sessions work, who would wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from kalamdb.store.hot import HotSnapshot, Layout
from kalamdb.txn.api import Scan
from kalamdb.txn.shape import HotRows, Shape

if TYPE_CHECKING:
    from kalamdb.txn.engine import StoreEngine

#: so many rows that are in memory, and their bytes, are given at once
AT_HAND_ROWS, AT_HAND_BYTES = 4_096, 1 << 20
#: so many values are read at once, about a millisecond's, and so many bytes of texts and blobs
FEW_VALUES, FEW_BYTES = 8_192, 256 << 10


def at_hand(engine: StoreEngine, hot: HotSnapshot, scan: Scan, *, alone: bool) -> list[pa.RecordBatch] | None:
    """All committed hot rows of a tenant or table, if they are few; for the event loop's thread. The caller knows that
    there are no others. ``alone``: nobody waits meanwhile."""
    layout = engine.layouts.of(scan.table)
    shape = Shape.of(layout, scan)
    found = engine.columns.unchanged(hot, layout, scan.tenant, shape.names)
    if found is None:
        batch = _read(engine, hot, layout, scan, shape) if alone else None
        if batch is None:
            return None
        found = [batch]
    rows = sum(batch.num_rows for batch in found)
    if rows > AT_HAND_ROWS or sum(batch.get_total_buffer_size() for batch in found) > AT_HAND_BYTES:
        return None
    if scan.stats is not None:
        scan.stats.hot_rows += rows
    return [shape.outputs_of(batch) for batch in found]


def _read(engine: StoreEngine, hot: HotSnapshot, layout: Layout, scan: Scan, shape: Shape) -> pa.RecordBatch | None:
    """The rows as a batch of the columns needed, if they are few; they are kept."""
    known = engine.sizes.few(scan.table, scan.tenant, FEW_VALUES // len(shape.names))
    if known is None or (known.bytes or 0) > FEW_BYTES:
        return None
    gathering = engine.columns.gather(hot, layout, scan.tenant, shape.names)
    if gathering is None:
        return None
    try:
        names, tenant = tuple(gathering.names), scan.tenant
        wanted = HotRows.of(layout, names, tenant is not None)
        counted = known.bytes is not None and hot.newest  # what is read is what has just been counted
        rows = hot.few(layout, f"{wanted.select}{'' if tenant is None else ' WHERE _userid = ?'} ORDER BY _userid, k",
                       () if tenant is None else (tenant,), FEW_VALUES // len(names),
                       None if counted else wanted.sizes(FEW_BYTES))
        if rows is None:
            return None
        batch = wanted.whole(wanted.batch(rows), tenant)
        gathering.add(batch)
        gathering.keep()
        return batch
    finally:
        gathering.give_up()  # unless it is kept
