"""INSERT: VALUES, SELECT and FROM ARROW, in both dialects, with defaults, ON CONFLICT and RETURNING.

A plan holds, for every column of the table, how one row's value is found: a constant, a parameter, a default's
function, or a place in the result of one query that computes all other expressions of the statement.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

from sqlglot import exp

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.sql import access, coerce
from kalamdb.sql.bind import Binder, Params, identifier
from kalamdb.sql.coerce import Convert
from kalamdb.sql.count import CountPlan
from kalamdb.sql.joined import LockedJoinPlan
from kalamdb.sql.kinds import of_column
from kalamdb.sql.predicate import SEQ, USERID
from kalamdb.sql.query import QueryPlan
from kalamdb.sql.read import ReadPlan
from kalamdb.sql.returning import Returning
from kalamdb.sql.run import Run
from kalamdb.sql.statements import ArrowWrite
from kalamdb.sql.top import TopPlan
from kalamdb.sql.upsert import Upsert, plan_conflict
from kalamdb.txn.api import ColumnDef, TableDef
from kalamdb.types import PgType

#: rows handed to the engine at once
BATCH_ROWS = 10_000
Computed = Sequence[Any]
#: (this execution, the computed expressions) → storage value
Cell = Callable[[Run, Computed], Any]
Planned = ReadPlan | TopPlan | CountPlan | QueryPlan | LockedJoinPlan
PlanQuery = Callable[..., Planned]

USERID_COLUMN = ColumnDef(0, "_userid", types.TEXT, "text")


def constant_cell(value: Any) -> Cell:
    return lambda run, computed: value


def param_cell(index: int, convert: Convert | None) -> Cell:
    if convert is None:
        return lambda run, computed: run.params[index]

    def cell(run: Run, computed: Computed) -> Any:
        value = run.params[index]
        return None if value is None else convert(value)

    return cell


def computed_cell(place: int, convert: Convert | None) -> Cell:
    def cell(run: Run, computed: Computed) -> Any:
        value = computed[place]
        return value if convert is None or value is None else convert(value)

    return cell


def function_cell(name: str, convert: Convert | None) -> Cell:
    def cell(run: Run, computed: Computed) -> Any:
        value = run.function(name)
        return value if convert is None else convert(value)

    return cell


def default_cell(column: ColumnDef) -> Cell:
    """A default the server cannot evaluate fails when it is asked for, not before."""
    kind, value = coerce.default_of(column)
    if kind == "value":
        return constant_cell(value)
    if kind == "function":
        return function_cell(value, coerce.assignment(coerce.function_type(value), column))

    def cell(run: Run, computed: Computed) -> Any:
        raise KalamError("0A000", f'the default of column "{column.name}" cannot be evaluated by the server',
                         detail=f"The default is {value}.", hint="Give the column a value.", column=column.name)

    return cell


@dataclass(slots=True)
class InsertPlan:
    """``rows`` (VALUES), ``source`` (SELECT) or ``arrow`` (a parameter's index): one of them."""

    table: TableDef
    rows: list[list[Cell]]  # each as wide as the table, and the tenant's cell last
    source: Planned | None
    source_cells: list[Cell]
    arrow: int | None
    arrow_types: tuple[PgType, ...]
    computed: QueryPlan | None
    skip_conflicts: bool
    upsert: Upsert | None
    returning: Returning | None
    params: Params
    order: list[int] | None = None  # of the columns of ``arrow``, to be the table's, where it has them all
    writes: bool = True

    @property
    def columns(self) -> tuple[Column, ...] | None:
        return None if self.returning is None else self.returning.columns

    def start(self, run: Run) -> Result | Awaitable[Result]:
        if (
            len(self.rows) == 1 and self.computed is None and self.upsert is None
            and (self.returning is None or self.returning.immediate)
        ):
            return self._one(run)
        return self._many(run)

    # ---------- one row ----------
    def one(self, run: Run) -> tuple[str, Row] | None:
        """The only row of a statement that does nothing else, and its tenant."""
        if len(self.rows) != 1 or self.computed is not None or self.upsert is not None or self.skip_conflicts or (
                self.returning is not None):
            return None
        return next(self._built(run, self.rows, ((),)))

    def _one(self, run: Run) -> Result | Awaitable[Result]:
        tenant, row = next(self._built(run, self.rows, ((),)))
        if not self.skip_conflicts and run.transaction.insert_nowait(self.table, tenant, row):
            return self._done_now(run, [(tenant, row)], 1)
        return self._one_waiting(run, tenant, row)

    async def _one_waiting(self, run: Run, tenant: str, row: Row) -> Result:
        count = await run.transaction.insert(self.table, [(tenant, row)], skip_conflicts=self.skip_conflicts)
        return self._done_now(run, [(tenant, row)] if count else [], count)

    def _done_now(self, run: Run, written: list[tuple[str, Row]], count: int) -> Result:
        result = Result(f"INSERT 0 {count}")
        if self.returning is not None:
            result.columns = self.returning.columns
            result.rows = [self.returning.pick((*row, None, tenant)) for tenant, row in written]
        return result

    # ---------- many ----------
    async def _many(self, run: Run) -> Result:
        written: list[tuple[str, Row]] = []
        count = 0
        async for batch in self._batches(run):
            if isinstance(batch, int):
                count += batch
                continue
            if self.upsert is not None:
                done = await self.upsert.run(run, batch)
            elif self.returning is not None and self.skip_conflicts:
                conflicts: list[int] = []
                await run.transaction.insert(self.table, batch, skip_conflicts=True, conflicts=conflicts)
                left = set(conflicts)
                done = [one for place, one in enumerate(batch) if place not in left]
            else:
                count += await run.transaction.insert(self.table, batch, skip_conflicts=self.skip_conflicts)
                done = batch if self.returning is not None else []
                written += done
                continue
            count += len(done)
            if self.returning is not None:
                written += done
        result = Result(f"INSERT 0 {count}")
        if self.returning is not None:
            result.columns = self.returning.columns
            result.rows = await self.returning.rows(run, [(*row, None, tenant) for tenant, row in written])
        return result

    async def _batches(self, run: Run) -> AsyncIterator[list[tuple[str, Row]] | int]:
        """Rows to be inserted, or how many have been already."""
        if self.arrow is not None:
            batches = types.batches_from_arrow(run.params[self.arrow], self.arrow_types)
            if self.order is not None:
                tenant, kinds = self._tenant(run), [column.type for column in self.table.columns]
                for columns in batches:
                    whole = columns.select(self.order)
                    for at in range(0, whole.num_rows, BATCH_ROWS):
                        part = whole.slice(at, BATCH_ROWS)
                        if self.upsert is None and await run.transaction.insert_batch(self.table, tenant, part):
                            yield part.num_rows
                        else:
                            yield list(zip(repeat(tenant), types.rows_of_batch(part, kinds)))
                return
            rows = [row for columns in batches for row in types.rows_of_batch(columns, self.arrow_types)]
            built = self._built(run, [self.source_cells], rows)
            while batch := _take(built, BATCH_ROWS):
                yield batch
        elif self.source is not None:
            source = self.source.source(run)
            try:
                while rows := await source.read(BATCH_ROWS):
                    yield list(self._built(run, [self.source_cells], rows))
            finally:
                source.close()
        else:
            computed: Computed = ()
            if self.computed is not None:
                computed = await one_row(self.computed, run)
            yield list(self._built(run, self.rows, (computed,)))

    def _tenant(self, run: Run) -> str:
        """Of rows that name none."""
        account, table = run.account, self.table
        default = access.write_tenant(account, table, run.tenant)
        return "" if table.kind == "shared" else access.row_tenant(account, default, None, run.tenant)

    def _built(self, run: Run, cells: list[list[Cell]], inputs: Iterable[Computed]) -> Iterator[tuple[str, Row]]:
        """Rows as the engine takes them: every input through every list of cells."""
        account, table = run.account, self.table
        default = access.write_tenant(account, table, run.tenant)
        shared = table.kind == "shared"
        for computed in inputs:
            for row in cells:
                values = tuple([cell(run, computed) for cell in row[:-1]])
                if shared:
                    yield "", values
                else:
                    named = row[-1](run, computed)
                    if named is not None:
                        access.check_bound(run.bound, named)
                    yield access.row_tenant(account, default, named, run.tenant), values


def _take(rows: Iterator[tuple[str, Row]], count: int) -> list[tuple[str, Row]]:
    taken = []
    for row in rows:
        taken.append(row)
        if len(taken) == count:
            break
    return taken


async def one_row(plan: QueryPlan, run: Run) -> Row:
    source = plan.source(run)
    try:
        rows = await source.read(1)
    finally:
        source.close()
    return rows[0]


# ---------- planning ----------
def target_positions(table: TableDef, names: Sequence[str]) -> list[int]:
    """Positions of the columns that an INSERT names; _seq is refused."""
    binder = Binder(table, Params(()))
    positions = []
    for name in names:
        position = binder.position(name)
        if position is None:
            raise KalamError("42703", f'column "{name}" of relation "{table.name}" does not exist', column=name)
        if position == SEQ:
            raise KalamError("428C9", 'cannot insert a value into column "_seq"',
                             detail="The server numbers the versions of rows itself.", column="_seq")
        if position in positions:
            raise KalamError("42701", f'column "{name}" specified more than once', column=name)
        positions.append(position)
    return positions


def _column(table: TableDef, position: int) -> ColumnDef:
    return USERID_COLUMN if position == USERID else table.columns[position]


class InsertPlanner:
    def __init__(self, table: TableDef, params: Params, plan_query: PlanQuery) -> None:
        self.table = table
        self.params = params
        self.plan_query = plan_query
        self._expressions: list[exp.Expression] = []
        self._places: list[tuple[list[Cell], int, ColumnDef]] = []

    def defaults(self) -> list[Cell]:
        return [default_cell(column) for column in self.table.columns] + [constant_cell(None)]

    def place(self, position: int) -> int:
        """Where a column's cell stands in a row of cells."""
        return len(self.table.columns) if position == USERID else position

    def cells(self, items: Sequence[exp.Expression], positions: Sequence[int]) -> list[Cell]:
        row = self.defaults()
        for item, position in zip(items, positions, strict=False):
            if is_default(item):
                continue
            column = _column(self.table, position)
            cell = self._cell(item, column)
            if cell is None:
                self._places.append((row, self.place(position), column))
                self._expressions.append(item)
            else:
                row[self.place(position)] = cell
        return row

    def _cell(self, item: exp.Expression, column: ColumnDef) -> Cell | None:
        found, value = coerce.constant(item, column, self.params)
        if found:
            return constant_cell(value)
        bound = coerce.parameter(item, column, self.params)
        if bound is not None:
            return param_cell(*bound)
        name = coerce.function_of(item)
        if name is not None:
            return function_cell(name, coerce.assignment(coerce.function_type(name), column))
        return None

    def computed(self) -> QueryPlan | None:
        """One query for all expressions that nothing simpler gives."""
        if not self._expressions:
            return None
        plan = self.plan_query(exp.select(*[exp.alias_(item.copy(), f"c{place}", quoted=True)
                                            for place, item in enumerate(self._expressions)]))
        assert isinstance(plan, QueryPlan)
        for place, (row, at, column) in enumerate(self._places):
            convert = coerce.assignment(plan.columns[place].type, column)
            row[at] = computed_cell(place, convert)
        return plan

    def source(self, plan: Planned, positions: Sequence[int]) -> list[Cell]:
        row = self.defaults()
        for place, position in enumerate(positions):
            column = _column(self.table, position)
            row[self.place(position)] = computed_cell(place, coerce.assignment(plan.columns[place].type, column))
        return row


def is_default(item: exp.Expression) -> bool:
    """The word DEFAULT: a Var in VALUES, an unquoted column in SET."""
    if isinstance(item, exp.Var):
        return str(item.this).upper() == "DEFAULT"
    if isinstance(item, exp.Column) and not item.args.get("table"):
        inner = item.this
        return isinstance(inner, exp.Identifier) and not inner.args.get("quoted") and inner.this.upper() == "DEFAULT"
    return False


def _alias(tree: exp.Insert) -> str | None:
    target = tree.this.this if isinstance(tree.this, exp.Schema) else tree.this
    alias = target.args.get("alias")
    return None if alias is None else identifier(alias.this)


def _targets(tree: exp.Insert, table: TableDef) -> tuple[list[int], bool]:
    """Positions of the target columns, and whether they were listed."""
    into = tree.this
    if isinstance(into, exp.Schema):
        return target_positions(table, [identifier(item) for item in into.expressions]), True
    return list(range(len(table.columns))), False


def _check_width(count: int, positions: Sequence[int], listed: bool) -> None:
    if count > len(positions):
        raise KalamError("42601", "INSERT has more expressions than target columns")
    if count < len(positions) and listed:
        raise KalamError("42601", "INSERT has more target columns than expressions")


def plan_insert(tree: exp.Insert, table: TableDef, params: Params, plan_query: PlanQuery,
                returning: Returning | None) -> InsertPlan:
    planner = InsertPlanner(table, params, plan_query)
    positions, listed = _targets(tree, table)
    rows: list[list[Cell]] = []
    source: Planned | None = None
    source_cells: list[Cell] = []
    body = tree.args.get("expression")
    if tree.args.get("default") or body is None:
        rows = [planner.defaults()]
    elif isinstance(body, exp.Values) and not body.args.get("alias"):
        for item in body.expressions:
            items = item.expressions if isinstance(item, exp.Tuple) else [item.unnest()]
            _check_width(len(items), positions, listed)
            rows.append(planner.cells(items, positions))
    else:
        body = body.copy()
        if tree.args.get("with_") is not None:
            body.set("with_", tree.args["with_"].copy())
        targets = [of_column(column.type, column.typmod)
                   for column in (_column(table, position) for position in positions)]
        source = plan_query(body, targets)
        _check_width(len(source.columns), positions, listed)
        source_cells = planner.source(source, positions[: len(source.columns)])
    conflict = tree.args.get("conflict")
    skip, upsert = False, None
    if conflict is not None:
        skip, upsert = plan_conflict(conflict, table, params, plan_query, _alias(tree))
    return InsertPlan(table, rows, source, source_cells, None, (), planner.computed(), skip, upsert, returning, params)


def plan_arrow_insert(write: ArrowWrite, table: TableDef, params: Params, plan_query: PlanQuery) -> InsertPlan:
    planner = InsertPlanner(table, params, plan_query)
    positions = target_positions(table, write.columns)
    cells = planner.defaults()
    for place, position in enumerate(positions):
        cells[planner.place(position)] = computed_cell(place, None)
    kinds = tuple(_column(table, position).type for position in positions)
    order = None
    if sorted(positions) == list(range(len(table.columns))):
        order = [positions.index(place) for place in sorted(positions)]
    skip, upsert = False, None
    if write.conflict is not None:
        skip, upsert = plan_conflict(write.conflict, table, params, plan_query, write.alias)
    return InsertPlan(table, [], None, cells, write.param, kinds, None, skip, upsert, None, params, order)
