"""The first rows of one table in an order that is not its key's: ORDER BY columns LIMIT n, without the query engine.

The scan reads the columns that order and those of the key, and a bounded number of rows is kept while it goes on; the
other columns are then read for these rows alone, by key, in the same snapshot. So what it costs is one column or two of
all rows, however wide they are. Only for types whose order is that of integers made of them: floats, moments, booleans
and integers themselves.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.sql import access
from kalamdb.sql.bind import Binder, NotSimple, Params
from kalamdb.sql.cursors import CHUNK_BYTES, ListSource, Source, ThreadSource
from kalamdb.sql.predicate import FAMILIES, USERID, Value
from kalamdb.sql.read import Filter, limit_of, limit_value, lock_of, order_position, picker, projection, qualifiers
from kalamdb.sql.report import STORE
from kalamdb.sql.run import Run, answer
from kalamdb.sql.system import is_system
from kalamdb.txn.api import NotInMemory, RowId, ScanCursor, TableDef
from kalamdb.types import PgType

#: families of types that ``ordinals`` takes
ORDINAL = frozenset({"int", "float", "bool", "date", "timestamp", "timestamptz"})
#: a larger LIMIT is the query engine's: each row is looked up by its key
MOST = 200
SCAN_ROWS = 10_000
#: others get the event loop after so many bytes of rows
TURN_BYTES = 1 << 20

Ordinals = npt.NDArray[np.int64]


# ---------- order ----------
@dataclass(frozen=True, slots=True)
class Ordering:
    """One item of ORDER BY: ``place`` among the scan's columns."""

    place: int
    family: str
    descending: bool
    nulls_first: bool

    def of(self, array: pa.Array) -> tuple[Ordinals, Ordinals]:
        """Of each row whether its NULL, or not being NULL, puts it after others (0, 1), and then its place."""
        empty = pc.is_null(array).to_numpy(zero_copy_only=False) if array.null_count else np.zeros(len(array), np.bool_)
        late = (empty != self.nulls_first).astype(np.int64) if array.null_count or self.nulls_first else (
            np.zeros(len(array), np.int64))
        found = ordinals(array, self.family)
        return late, ~found if self.descending else found


def ordinals(array: pa.Array, family: str) -> Ordinals:
    """Integers in the order of the values; of NULLs, any."""
    if family == "float":
        values = array.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False) + 0.0  # -0 is 0
        bits = values.view(np.int64)
        found: Ordinals = np.where(bits < 0, bits ^ np.int64(0x7FFFFFFFFFFFFFFF), bits)
        found[np.isnan(values)] = np.iinfo(np.int64).max  # above infinity
        return found
    if family == "bool":
        array = array.cast(pa.int8())
    integers: Ordinals = array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return integers


class Top:
    """The first ``count`` of the rows added; which of equal ones is left open."""

    def __init__(self, count: int, orderings: Sequence[Ordering]) -> None:
        self._count = count
        self._orderings = orderings
        self._keys: list[Ordinals] = [np.empty(0, np.int64)] * (2 * len(orderings))
        self.rows: list[Row] = []

    def add(self, batch: pa.RecordBatch, kinds: Sequence[PgType]) -> None:
        keys = [part for ordering in self._orderings for part in ordering.of(batch.column(ordering.place))]
        chosen = self._candidates(keys)
        if not len(chosen):
            return
        self.rows += types.rows_of_batch(batch.take(pa.array(chosen)), kinds)
        merged = [np.concatenate([old, new[chosen]]) for old, new in zip(self._keys, keys, strict=True)]
        order = np.lexsort(merged[::-1])[: self._count]
        self._keys = [part[order] for part in merged]
        self.rows = [self.rows[place] for place in order]

    def _candidates(self, keys: Sequence[Ordinals]) -> npt.NDArray[np.int64]:
        """Rows of a batch that may be among the first, in no order."""
        late, value = keys[:2]
        if len(self.rows) == self._count:  # better than the last one, or with more columns to come as good
            last, bound = self._keys[0][-1], self._keys[1][-1]
            better = value < bound if len(keys) == 2 else value <= bound
            places: npt.NDArray[np.int64] = np.flatnonzero((late < last) | ((late == last) & better))
        else:
            places = np.arange(len(value))
        if len(places) <= 2 * self._count:
            return places
        early: npt.NDArray[np.int64] = places[late[places] == 0]
        if len(early) >= self._count:
            return self._least(early, value, self._count, alone=len(keys) == 2)
        rest = places[late[places] == 1]
        return np.concatenate([early, self._least(rest, value, self._count - len(early), alone=len(keys) == 2)])

    @staticmethod
    def _least(places: npt.NDArray[np.int64], value: Ordinals, count: int, *, alone: bool) -> npt.NDArray[np.int64]:
        """Those with the least values: ``count``, and with more columns to come all that are as good."""
        if len(places) <= count:
            return places
        values = value[places]
        bound = np.partition(values, count - 1)[count - 1]
        if not alone:
            as_good: npt.NDArray[np.int64] = places[values <= bound]
            return as_good
        less: npt.NDArray[np.int64] = places[values < bound]
        return np.concatenate([less, places[values == bound][: count - len(less)]])


# ---------- the plan ----------
@dataclass(slots=True)
class TopPlan:
    """SELECT columns FROM table WHERE condition ORDER BY columns LIMIT n. ``engine``: the query engine's plan of it."""

    table: TableDef
    positions: tuple[int, ...]
    columns: tuple[Column, ...]
    filter: Filter
    params: Params
    limit: Value
    read: tuple[int, ...]  # by the scan: what orders, the key, the tenant
    orderings: tuple[Ordering, ...]
    engine: Callable[[], Any]
    writes: bool = False

    @property
    def seen(self) -> Callable[[Row], Row] | None:
        """From a row of the scan, the wanted columns; None where it has not read them all."""
        if not set(self.positions) <= set(self.read):
            return None
        places = [self.read.index(position) for position in self.positions]
        return lambda row: tuple([row[place] for place in places]) if places else (None,)

    def start(self, run: Run) -> Result | Awaitable[Result]:
        limit = limit_value(self.limit, run)
        if limit is None or limit > MOST:
            outcome: Result | Awaitable[Result] = self.engine().start(run)
            return outcome
        return answer(run, self._source(run, limit), self.columns)

    def source(self, run: Run) -> Source:
        """The rows for a statement that reads them itself."""
        limit = limit_value(self.limit, run)
        if limit is None or limit > MOST:
            other: Source = self.engine().source(run)
            return other
        return self._source(run, limit)

    def _source(self, run: Run, limit: int) -> Source:
        tenant = access.read_tenant(run.account, self.table, run.tenant)
        scan = self.filter.scan(self.table, tenant, self.read, run.params, stats=run.scanning(STORE))
        if scan is None or limit == 0:
            return ListSource([])
        return TopSource(run, self, run.transaction.scan(run.snapshot, scan), limit)


class TopSource:
    """``kalamdb.sql.cursors.Source``. What else the rows have is read as they are asked for."""

    def __init__(self, run: Run, plan: TopPlan, scan: ScanCursor, limit: int) -> None:
        self._run = run
        self._plan = plan
        self._scan = scan
        self._limit = limit
        self._kinds = [_type_of(plan.table, position) for position in plan.read]
        self._looked = False
        self._inner = ThreadSource(run.workers, run.session, self._find, scan.interrupt, scan.close)
        self._found: list[Row] | None = None
        self._at = 0
        self._pick, self._seen = picker(plan.positions), plan.seen
        self._own = run.transaction.own_definition(plan.table)
        self.full = False

    def ahead(self, count: int) -> None:
        pass

    async def read(self, count: int) -> list[Row]:
        if self._found is None:
            self._found = await self._inner.read(self._limit)
        if self._run.transaction.own_definition(self._plan.table) is not self._own:
            raise KalamError("55006", f'cannot read on in table "{self._plan.table.name}"',
                             detail="The transaction has altered the table since.")
        if self._seen is not None:
            rows, self._at = self._found[self._at : self._at + count], self._at + count
            return [self._seen(row) for row in rows]
        return await self._look_up_some(self._found, count)

    async def _look_up_some(self, found: list[Row], count: int) -> list[Row]:
        """In the event loop, which others get in between where rows are wide."""
        rows: list[Row] = []
        size = turn = 0
        while len(rows) < count and size < CHUNK_BYTES and self._at < len(found):
            row = await self._look_up(self._id(found[self._at]))
            self._at += 1
            turn += _weight(row)
            rows.append(self._pick(row))
            size += _weight(rows[-1])
            if turn >= TURN_BYTES:
                turn = 0
                await self._run.workers.run(self._run.session, _nothing, _nothing)
        self.full = size >= CHUNK_BYTES
        return rows

    def _find(self, count: int) -> list[Row]:
        """In a worker thread: the first rows, as the scan has them."""
        if self._looked:
            return []
        self._looked = True
        top = Top(count, self._plan.orderings)
        for batch in self._batches():
            top.add(batch, self._kinds)
        return top.rows

    def _batches(self) -> Iterator[pa.RecordBatch]:
        batches = self._scan.batches()
        if batches is not None:
            yield from batches
            return
        schema = types.arrow_schema([(str(place), kind) for place, kind in enumerate(self._kinds)])
        while rows := self._scan.fetch(SCAN_ROWS):
            yield types.rows_to_arrow(rows, self._kinds, schema)

    def _id(self, row: Row) -> RowId:
        """The scan's columns end with those of the key and the tenant."""
        return row[-1] or "", tuple(row[-1 - len(self._plan.table.key) : -1])

    async def _look_up(self, id_: RowId) -> Row:
        run = self._run
        while True:
            try:
                row = run.transaction.get(run.snapshot, self._plan.table, *id_)
                assert row is not None
                return row
            except NotInMemory as missing:
                await run.workers.run(run.session, _nothing, missing.load)

    def close(self) -> None:
        self._inner.close()


def _nothing() -> None:
    pass


def _weight(row: Row) -> int:
    return sum(len(value) if isinstance(value, str | bytes) else 16 for value in row)


def _type_of(table: TableDef, position: int) -> PgType:
    return types.TEXT if position == USERID else table.columns[position].type


def _ordering(item: exp.Expr, position: int, table: TableDef, read: list[int]) -> Ordering:
    family = FAMILIES.get(table.columns[position].type.name) if position >= 0 else None
    if family is None or family not in ORDINAL:
        raise NotSimple
    if position not in read:
        read.append(position)
    return Ordering(read.index(position), family, bool(item.args.get("desc")), bool(item.args.get("nulls_first")))


def plan_top(tree: exp.Select, table: TableDef, params: Params, engine: Callable[[], Any]) -> TopPlan:
    """Raises NotSimple where the query engine has to do it."""
    order, limit = tree.args.get("order"), limit_of(tree, params)
    if order is None or limit is None or lock_of(tree) is not None or not table.key or table.kind == "stream":
        raise NotSimple
    if is_system(table):
        raise NotSimple
    binder = Binder(table, params, qualifiers(tree.args["from_"].this, table))
    positions, columns = projection(tree, binder)
    where = tree.args.get("where")
    condition = None if where is None else binder.condition(where.this)
    read: list[int] = []
    orderings = tuple(
        _ordering(item, order_position(item, binder, positions, columns if positions else ()), table, read)
        for item in order.expressions)
    return TopPlan(table, positions, columns, Filter.of(table, condition), params, limit,
                   (*read, *table.key, USERID), orderings, engine)

