"""Scans: a transaction's own rows over a snapshot's hot rows over its cold ones, in order of tenant and key.

Own rows hide the committed ones of their keys; hot rows and tombstones hide cold ones. A scan's condition is SQLite's:
own and cold rows that it is to judge are put into an in-memory table of the same shape, so that one evaluator decides
for all.
"""

from __future__ import annotations

import operator
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import apsw
import pyarrow as pa

from kalamdb import types
from kalamdb.api import Row
from kalamdb.store.cold import ColdRange, ColdStore, positions_in, without
from kalamdb.store.columns import ColumnCache, Gathering, HotColumns, joined
from kalamdb.store.hot import SEQ, TURN_ROWS, HotSnapshot, Layout, Reader, Sizes, Stop, open_scratch, scan_sql
from kalamdb.store.manifest import Manifest, tombstones
from kalamdb.store.segment import key_at
from kalamdb.txn.api import Scan
from kalamdb.txn.bulk import RunView, Version
from kalamdb.txn.overlay import RowKey
from kalamdb.txn.shape import WIDE, HotRows, Shape, needed
from kalamdb.types import PgType

#: hot rows of one batch, about
BATCH_ROWS = 8_192
#: keys of hot rows and tombstones that a scan reads once, not for each batch of cold rows
FEW_HIDDEN = 256
#: a fetch ends after about so many bytes, as after so many rows
CHUNK_BYTES = 8 << 20
_KEY = operator.itemgetter(0, 1)


@dataclass(frozen=True, slots=True)
class Cold:
    """The segments that a snapshot sees of a table."""

    store: ColdStore
    manifest: Manifest


class StoreScan:
    """``kalamdb.txn.api.ScanCursor``. ``own``: the table's overlay items as of the scan's opening, and its position."""

    def __init__(self, snapshot: HotSnapshot, layout: Layout, scan: Scan, since: int | None,
                 own: Sequence[tuple[RowKey, Version]] = (), position: int = 0, cold: Cold | None = None,
                 runs: RunView | None = None, columns: ColumnCache | None = None) -> None:
        self._snapshot = snapshot
        self._open = True
        snapshot.hold()
        self._reader = snapshot.reader
        self._layout = layout
        self._scan = scan
        self._since = since
        self._own = own
        self._position = position
        self._cold = cold
        self._runs = runs
        self._columns = columns
        self._stop = Stop()
        self._cursor: Any = None
        self._parts: Iterator[list[Row]] | None = None
        self._left: list[Row] = []  # of the last part
        self._gathering: Gathering | None = None
        self._sizes: Sizes | None = None
        self._cold_bytes = 0
        self._hidden: list[RowKey] | None = None  # hot rows and tombstones in the range, if they are few
        self._few_hidden = False
        self.full = False

    def fetch(self, n: int) -> list[Row]:
        self._stop.check()
        if self._parts is None:
            layered = self._cold is not None or self._runs is not None
            self._parts = self._merged() if self._own else self._layered() if layered else self._committed()
        rows, self._left = self._left, []
        start = self._taken()
        while len(rows) < n and not (rows and self._taken() - start >= CHUNK_BYTES):
            part = next(self._parts, None)
            if part is None:
                self.full = False
                return rows
            if rows:
                rows.extend(part)
            else:
                rows = part
        self.full = len(rows) < n
        self._left = rows[n:]
        return rows[:n] if self._left else rows

    def _taken(self) -> int:
        """Bytes of what was read so far, about."""
        return self._cold_bytes + (0 if self._sizes is None else self._sizes.taken)

    def batches(self) -> Iterator[pa.RecordBatch] | None:
        scan = self._scan
        if self._runs is not None or scan.with_id or scan.limit is not None or not scan.columns:
            return None
        return self._as_batches()

    def interrupt(self) -> None:
        self._stop.asked = True

    def close(self) -> None:
        cursor, self._cursor = self._cursor, None
        if self._gathering is not None:
            self._gathering.give_up()
        self._parts, self._left = iter(()), []
        if cursor is not None:
            self._reader.finish(cursor)
        if self._open:
            self._open = False
            self._snapshot.drop()

    # ---------- what comes out ----------
    def _identity(self) -> tuple[int, ...]:
        """Positions of the key's columns, put before the wanted ones where the rows' ids are asked for."""
        return self._layout.key if self._scan.with_id else ()

    def _finish(self, row: Row) -> Row:
        """(tenant, key parts …, columns …) → (tenant, key, columns …)."""
        parts = 1 + max(1, len(self._layout.key))
        return (row[0], row[1:parts], *row[parts:])

    def _outputs(self) -> tuple[list[str], int]:
        """SQLite's outputs, and how many come before the scan's columns."""
        layout, scan = self._layout, self._scan
        head: list[str] = []
        if scan.with_id:
            head = ["_userid", *[layout.columns[place] for place in layout.key]]
            if not layout.key:
                head.append("k")
        return head + [layout.output(position) for position in scan.columns], len(head)

    # ---------- hot rows alone ----------
    def _committed(self) -> Iterator[list[Row]]:
        outputs, head = self._outputs()
        statement = scan_sql(self._layout, self._scan, outputs or ["1"], self._since, limit=True)
        if statement is None:
            return
        load = self._loader(head)
        self._sizes = self._sized(head)
        for rows in self._chunks(*statement):
            if not outputs:
                yield [()] * len(rows)
                continue
            loaded = rows if load is None else load(rows)
            yield [self._finish(row) for row in loaded] if head else loaded

    def _loader(self, head: int) -> Any:
        positions = (*self._identity(), *self._scan.columns)
        if head and self._layout.key:
            return self._layout.loader(positions, 1)
        return self._layout.loader(self._scan.columns, head)

    def _sized(self, head: int) -> Sizes | None:
        """What looks at the size of rows whose first columns after ``head`` others may be wide."""
        wide = [head + place for place, position in enumerate(self._scan.columns)
                if position >= 0 and self._layout.types[position].arrow in WIDE]
        return Sizes(wide) if wide else None

    def _chunks(self, text: str, values: tuple[Any, ...]) -> Iterator[list[Row]]:
        self._cursor = self._snapshot.reader.execute(self._layout, text, values, self._stop)
        while self._cursor is not None:
            rows = self._snapshot.reader.rows(self._cursor, TURN_ROWS, self._stop, self._sizes)
            if not rows:
                return
            if self._scan.stats is not None:
                self._scan.stats.hot_rows += len(rows)
            yield rows

    # ---------- hot and cold rows ----------
    def _stored(self, outputs: Sequence[str]) -> Iterator[list[Row]]:
        """Committed rows that satisfy the condition: (tenant, encoded key, *outputs), in order."""
        names = ["_userid", "k", *outputs]
        statement = scan_sql(self._layout, self._scan, names, self._since, limit=False)
        if statement is None:
            return iter(())
        self._sizes = self._sized(len(names) - len(self._scan.columns))
        found = self._chunks(*statement)
        if self._cold is not None:
            found = _zipped(found, self._cold_rows(self._cold, names))
        if self._runs is not None:
            found = _overlaid(found, self._run_rows(self._runs, names))
        return found

    def _layered(self) -> Iterator[list[Row]]:
        outputs, head = self._outputs()
        left = self._scan.limit
        for rows in self._stored(outputs):
            if left is not None:
                rows = rows[:left]
                left -= len(rows)
            yield self._unkeyed(rows, head)
            if left == 0:
                return

    def _unkeyed(self, rows: list[Row], head: int) -> list[Row]:
        """(tenant, encoded key, *outputs) as the scan gives it."""
        plain = 3 if self._layout.key and head else 2 + head
        load = self._layout.loader((*self._identity(), *self._scan.columns), plain)
        loaded = rows if load is None else load(rows)
        return [self._finish(row[2:]) for row in loaded] if head else [row[2:] for row in loaded]

    def _cold_rows(self, cold: Cold, names: Sequence[str]) -> Iterator[list[Row]]:
        for batch in self.cold_batches(cold, needed(self._layout, names, self._scan.where)):
            if rows := self._rows_of(batch, names):
                yield rows

    def _run_rows(self, runs: RunView, names: Sequence[str]) -> Iterator[tuple[list[Row], list[Row]]]:
        """Keys that runs have, in order, and the rows among them that satisfy the condition."""
        wanted = self._range()
        if wanted is not None:
            columns = needed(self._layout, names, self._scan.where)
            for written, there in runs.batches(columns, wanted, self._position, self._stop.check):
                yield to_rows(written, ["_userid", "k"]), self._rows_of(there, names) if there.num_rows else []

    def _range(self) -> ColdRange | None:
        bounds, possible = self._layout.codec.bounds(self._scan.key_prefix, self._scan.low, self._scan.high)
        return ColdRange(self._scan.tenant, tuple(bounds)) if possible else None

    def _rows_of(self, batch: pa.RecordBatch, names: Sequence[str]) -> list[Row]:
        """Those of a batch's rows that satisfy the condition."""
        scan = self._scan
        self._cold_bytes += batch.nbytes
        if scan.where is not None and scan.mask is None:
            return self._evaluated(_scratch_rows(self._layout, batch), names)
        return to_rows(batch if scan.mask is None else batch.filter(scan.mask(batch)), names)

    def cold_batches(self, cold: Cold, columns: Sequence[str], *, ordered: bool = True) -> Iterator[pa.RecordBatch]:
        """Cold rows of the scan's range that nothing hides, whatever its condition."""
        layout, wanted = self._layout, self._range()
        if wanted is None:
            return
        for batch in cold.store.batches(cold.manifest, layout, columns, wanted, self._stop.check, ordered=ordered,
                                        stats=self._scan.stats):
            left = without(batch, self._hiding(batch), shared=layout.shared)
            if left.num_rows:
                yield left

    # ---------- without rows ----------
    def _as_batches(self) -> Iterator[pa.RecordBatch]:
        scan = self._scan
        shape = Shape.of(self._layout, scan)
        if self._cold is not None:
            for batch in self._chosen(self.cold_batches(self._cold, shape.names, ordered=False)):
                yield shape.outputs_of(batch)
        self._cold = None
        hot = self._hot_columns(shape.names)
        if hot is None:
            yield from self._rows_as_batches(self._merged() if self._own else self._committed(), shape.kinds,
                                             shape.schema)
            return
        for batch in self._chosen(hot):
            if scan.stats is not None:
                scan.stats.hot_rows += batch.num_rows
            yield shape.outputs_of(batch)
        if self._own:
            _, own = self._split_own()
            head = self._outputs()[1]
            rows = self._judged(own, shape.outputs)
            yield from self._rows_as_batches(iter([self._unkeyed(rows, head)] if rows else ()), shape.kinds,
                                             shape.schema)

    def _rows_as_batches(self, parts: Iterator[list[Row]], kinds: Sequence[PgType], schema: pa.Schema
                         ) -> Iterator[pa.RecordBatch]:
        held: list[pa.RecordBatch] = []
        count = size = 0
        for rows in parts:
            held.append(types.rows_to_arrow(rows, kinds, schema))
            count += len(rows)
            size += held[-1].get_total_buffer_size()
            if count >= BATCH_ROWS or size >= CHUNK_BYTES:
                yield joined(held)
                held, count, size = [], 0, 0
        if held:
            yield joined(held)

    def _chosen(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Of ordered batches the rows that own ones do not hide and that satisfy the condition."""
        own = sorted({key for key, _ in self._own_visible()})
        for batch in batches:
            left = without(batch, _among(own, batch), shared=self._layout.shared)
            if left.num_rows and self._scan.where is not None:
                left = self._masked(left)
            if left.num_rows:
                yield left

    # ---------- hot rows that are kept as columns ----------
    def _hot_columns(self, names: Sequence[str]) -> Iterator[pa.RecordBatch] | None:
        """All hot rows of the table, if there are columns of them or they are to be kept; None: read them as rows."""
        layout, scan, cache = self._layout, self._scan, self._columns
        if cache is None or self._scan.in_range or (scan.where is not None and scan.mask is None):
            return None
        found = cache.of(self._snapshot, layout, scan.tenant, names)
        if found is not None:
            return self._based(found, names)
        gathering = cache.gather(self._snapshot, layout, scan.tenant, names) if scan.where is None else None
        return None if gathering is None else self._gathered(gathering)

    def _based(self, found: HotColumns, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        for batch in found.batches:
            self._stop.check()
            left = without(batch, _among(found.changed, batch), shared=self._layout.shared)
            if left.num_rows:
                yield left
        for tenant, keys in groupby(found.changed, itemgetter(0)):
            wanted = [k for _, k in keys]
            bound = apsw.carray(array("q", wanted) if self._layout.codec.integer else tuple(wanted))
            yield from self._read_columns("WHERE _userid = ? AND k IN carray(?) ORDER BY k", (tenant, bound), names,
                                          tenant)

    def _gathered(self, gathering: Gathering) -> Iterator[pa.RecordBatch]:
        names = gathering.names
        tenant = self._scan.tenant
        clause, values = ("", ()) if tenant is None else ("WHERE _userid = ? ", (tenant,))
        self._gathering = gathering
        for batch in self._read_columns(f"{clause}ORDER BY _userid, k", values, names, tenant):
            gathering.add(batch)
            yield batch
        gathering.keep()

    def _read_columns(self, clause: str, values: tuple[Any, ...], names: Sequence[str], tenant: str | None
                      ) -> Iterator[pa.RecordBatch]:
        """Hot rows, of this tenant or of all, as batches of columns of these names."""
        wanted = HotRows.of(self._layout, tuple(names), tenant is not None)
        load = wanted.load
        self._sizes = wanted.sizes()
        cursor = self._cursor = self._reader.execute(self._layout, f"{wanted.select} {clause}", values, self._stop)
        if cursor is None:
            return
        parts = iter(lambda: self._reader.rows(cursor, TURN_ROWS, self._stop, self._sizes), [])
        for batch in self._rows_as_batches((rows if load is None else load(rows) for rows in parts), wanted.kinds,
                                           wanted.schema):
            yield wanted.whole(batch, tenant)
        self._cursor = None
        self._reader.finish(cursor)

    def _masked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that satisfy the condition."""
        if self._scan.mask is not None:
            return batch.filter(self._scan.mask(batch))
        names = ["_userid", "k"]
        kept = self._evaluated(_scratch_rows(self._layout, batch), names)
        places = positions_in(batch, kept, shared=self._layout.shared)
        return batch.take(pa.array(places))

    def _own_visible(self) -> Iterator[tuple[RowKey, Version]]:
        for key, head in self._own:
            version: Version | None = head
            while version is not None and version[0] > self._position:
                version = version[2]
            if version is not None:
                yield key, version

    def _hiding(self, batch: pa.RecordBatch) -> Sequence[RowKey]:
        """Keys of hot rows and tombstones among those of an ordered batch of cold rows."""
        if self._hidden is None:
            found = self._hidden_in_range()
            self._few_hidden = len(found) <= FEW_HIDDEN
            self._hidden = found if self._few_hidden else []
        if self._few_hidden:
            return _among(self._hidden, batch)
        return hiding_keys(self._reader, self._layout, batch, self._stop)

    def _hidden_in_range(self) -> list[RowKey]:
        """All that hides cold rows of the scan's range, in order, or more of it than FEW_HIDDEN.

        Once for a scan: where SQLite looks for a key, it reads rows that it compares as a whole, however wide they are.
        """
        layout, wanted = self._layout, self._range()
        if wanted is None:
            return []
        tenant = "" if layout.shared and wanted.bounds else None if layout.shared else wanted.tenant
        conditions = [] if tenant is None else ["_userid = ?"]
        values: list[Any] = [] if tenant is None else [tenant]
        for sign, value in wanted.bounds:
            conditions.append(f"k {sign} ?")
            values.append(value)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        found: list[RowKey] = []
        for table in (layout.table, tombstones(layout.table_id)):
            cursor = self._reader.execute(
                layout, f"SELECT _userid, k FROM {table}{where} ORDER BY _userid, k LIMIT ?",
                (*values, FEW_HIDDEN + 1), self._stop)
            if cursor is None:
                continue
            while rows := self._reader.rows(cursor, TURN_ROWS, self._stop):
                found += rows
            self._reader.finish(cursor)
        found.sort()
        return found

    # ---------- merged with own rows ----------
    def _merged(self) -> Iterator[list[Row]]:
        hidden, own = self._split_own()
        outputs, head = self._outputs()
        mine = self._judged(own, outputs)
        merged = islice(_merge(self._visible(outputs, hidden), mine), self._scan.limit)
        while rows := list(islice(merged, TURN_ROWS)):
            yield self._unkeyed(rows, head)

    def _split_own(self) -> tuple[set[RowKey], list[tuple[RowKey, Row]]]:
        """Keys whose committed rows are hidden, and own rows that may qualify."""
        hidden: set[RowKey] = set()
        own: list[tuple[RowKey, Row]] = []
        fits = _range_check(self._layout, self._scan)
        tenant = self._scan.tenant
        for key, version in self._own_visible():
            if tenant is not None and key[0] != tenant:
                continue
            hidden.add(key)
            row = version[1]
            if row is not None and fits(key[1]):
                own.append((key, row))
        return hidden, own

    def _visible(self, outputs: Sequence[str], hidden: set[RowKey]) -> Iterator[Row]:
        for rows in self._stored(outputs):
            for row in rows:
                if (row[0], row[1]) not in hidden:
                    yield row

    def _judged(self, own: list[tuple[RowKey, Row]], outputs: list[str]) -> list[Row]:
        """Own rows that satisfy the condition: (tenant, encoded key, *outputs), in order."""
        if not own:
            return []
        if self._scan.where is None:
            rows = [self._projected(key, row) for key, row in own]
        else:
            stored = ((*key, None, *self._layout.stored(row)) for key, row in own)
            rows = self._evaluated(stored, ["_userid", "k", *outputs])
        rows.sort(key=_KEY)
        return rows

    def _projected(self, key: RowKey, row: Row) -> Row:
        layout, scan = self._layout, self._scan
        values: list[Any] = [key[0], key[1]]
        if scan.with_id:
            values.append(key[0])
            values += [row[place] for place in layout.key] if layout.key else [key[1]]
        for position in scan.columns:
            if position >= 0:
                values.append(row[position])
            else:
                values.append(None if position == SEQ or layout.shared else key[0])
        return tuple(values)

    def _evaluated(self, stored: Iterable[Row], names: Sequence[str]) -> list[Row]:
        """Rows as SQLite holds them, (tenant, encoded key, _seq, *columns): those that satisfy the condition."""
        layout = self._layout
        connection = open_scratch()
        try:
            connection.execute(layout.create.replace("_seq INTEGER NOT NULL", "_seq INTEGER"))
            connection.execute("BEGIN")
            connection.executemany(layout.put, stored)
            text = f"SELECT {', '.join(names)} FROM {layout.table} WHERE {self._scan.where} ORDER BY _userid, k"
            return connection.execute(text, self._scan.params).fetchall()
        finally:
            connection.close(True)


def hiding_keys(reader: Reader, layout: Layout, batch: pa.RecordBatch, stop: Stop) -> list[Any]:
    """Keys of hot rows and tombstones among those of an ordered batch of cold rows."""
    first, last = key_at(batch, 0), key_at(batch, batch.num_rows - 1)
    part = "SELECT _userid, k FROM {} WHERE (_userid, k) >= (?, ?) AND (_userid, k) <= (?, ?)"
    text = f"{part.format(layout.table)} UNION ALL {part.format(tombstones(layout.table_id))}"
    cursor = reader.execute(layout, text, (*first, *last) * 2, stop)
    if cursor is None:
        return []
    found: list[Any] = []
    while rows := reader.rows(cursor, TURN_ROWS, stop):
        found += rows
    reader.finish(cursor)
    return found


# ---------- cold batches as rows ----------
def _among(keys: Sequence[RowKey], batch: pa.RecordBatch) -> Sequence[RowKey]:
    """Of keys in order, those between a batch's first and last."""
    if not keys:
        return keys
    return keys[bisect_left(keys, key_at(batch, 0)) : bisect_right(keys, key_at(batch, batch.num_rows - 1))]


def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
    if name == "NULL" or batch.schema.get_field_index(name) < 0:
        return ["" if name == "_userid" else None] * batch.num_rows
    array = batch.column(name)
    values: list[Any] = (array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array).to_pylist()
    return values


def to_rows(batch: pa.RecordBatch, names: Sequence[str]) -> list[Row]:
    return list(zip(*(_values(batch, name) for name in names), strict=True))


def _scratch_rows(layout: Layout, batch: pa.RecordBatch) -> Iterator[Row]:
    """As ``Layout.put`` takes them; columns that the batch does not have are NULL."""
    for row in to_rows(batch, ["_userid", "k", "_seq", *layout.columns]):
        yield (*row[:3], *layout.stored(row[3:]))


def _zipped(one: Iterator[list[Row]], two: Iterator[list[Row]]) -> Iterator[list[Row]]:
    """Two sources of lists of rows, each in order of its first two fields, as one."""
    a, b = next(one, None), next(two, None)
    while a is not None and b is not None:
        bound = min(_KEY(a[-1]), _KEY(b[-1]))
        from_a, from_b = bisect_right(a, bound, key=_KEY), bisect_right(b, bound, key=_KEY)
        part = a[:from_a] + b[:from_b]
        if from_a and from_b:
            part.sort(key=_KEY)
        yield part
        a = a[from_a:] or next(one, None)
        b = b[from_b:] or next(two, None)
    for rest, source in ((a, one), (b, two)):
        if rest is not None:
            yield rest
            yield from source


def _overlaid(committed: Iterator[list[Row]], own: Iterator[tuple[list[Row], list[Row]]]) -> Iterator[list[Row]]:
    """Lists of committed rows with those of runs, which hide the rows of their keys; all in order of their first two
    fields."""
    a, b = next(committed, None), next(own, None)
    while a is not None and b is not None:
        keys, rows = b
        bound = min(_KEY(a[-1]), keys[-1])
        from_a, from_keys = bisect_right(a, bound, key=_KEY), bisect_right(keys, bound)
        from_rows = bisect_right(rows, bound, key=_KEY)
        hidden = set(keys[:from_keys])
        part = [row for row in a[:from_a] if _KEY(row) not in hidden] if from_a and hidden else a[:from_a]
        if from_rows:
            part = part + rows[:from_rows]
            part.sort(key=_KEY)
        if part:
            yield part
        a = a[from_a:] or next(committed, None)
        b = (keys[from_keys:], rows[from_rows:]) if from_keys < len(keys) else next(own, None)
    if a is not None:
        yield a
        yield from committed
    while b is not None:
        if b[1]:
            yield b[1]
        b = next(own, None)


def _merge(committed: Iterator[Row], own: list[Row]) -> Iterator[Row]:
    """Two sources in order of their first two fields."""
    place = 0
    for row in committed:
        while place < len(own) and own[place][:2] < row[:2]:
            yield own[place]
            place += 1
        yield row
    yield from own[place:]


_TESTS = {"=": operator.eq, ">=": operator.ge, ">": operator.gt, "<": operator.lt, "<=": operator.le}


def _range_check(layout: Layout, scan: Scan) -> Any:
    bounds, possible = layout.codec.bounds(scan.key_prefix, scan.low, scan.high)
    if not possible:
        return lambda k: False
    tests = [(_TESTS[sign], value) for sign, value in bounds]
    if not tests:
        return lambda k: True
    return lambda k: all(test(k, value) for test, value in tests)
