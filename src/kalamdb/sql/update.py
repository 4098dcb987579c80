"""UPDATE and DELETE in both dialects.

Rows are found (by key, by a scan, or by the query engine), locked, checked again in their newest version, and then
written. Only where a statement names whole keys and sets values that no row decides is the lock left to the write.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isinf
from operator import add, mul, sub
from typing import Any

from sqlglot import exp

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.sql import access, coerce
from kalamdb.sql.bind import Binder, NotSimple, Operand, Params, identifier
from kalamdb.sql.cursors import ThreadSource, size_of
from kalamdb.sql.insert import (
    Cell,
    PlanQuery,
    constant_cell,
    default_cell,
    function_cell,
    is_default,
    param_cell,
    target_positions,
)
from kalamdb.sql.predicate import SEQ, USERID, Condition, Field, KeyRange, conjunction, evaluate
from kalamdb.sql.query import QueryPlan, column_type, rows_tree
from kalamdb.sql.read import Filter, Step, picker, qualifiers
from kalamdb.sql.returning import Gathered, Returning
from kalamdb.sql.rows import RowQuery
from kalamdb.sql.run import Run
from kalamdb.sql.select import conjuncts
from kalamdb.sql.statements import ArrowWrite
from kalamdb.txn.api import ColumnDef, NotInMemory, RowId, TableDef
from kalamdb.types import PgType

FIND_ROWS = 10_000
Changes = dict[int, Any]
#: (this execution, the row) → new storage value
RowCell = Callable[[Run, Row], Any]


# ---------- SET ----------
@dataclass(slots=True)
class Assignments:
    """New values for rows, and which rows are to have them."""

    table: TableDef
    filter: Filter | None  # the whole condition, where it is simple; None: ``query`` has it
    cells: list[tuple[int, RowCell]]
    fixed: bool  # no cell looks at the row
    query: RowQuery | None
    positions: tuple[int, ...] = ()  # of the query's columns
    converts: tuple[Any, ...] = ()
    pairs: bool = False  # cells and filter see excluded rows, too (``PairBinder``)
    moves: bool = field(init=False)  # may a row's key change?

    def __post_init__(self) -> None:
        self.moves = any(position in self.table.key for position, _ in self.cells)

    async def values(self, run: Run, rows: Sequence[Row], excluded: Sequence[Row] = ()) -> list[tuple[int, Changes]]:
        """(place of the row, its changes) for the rows that satisfy the condition."""
        if self.query is not None:
            return [(row[0], converted(self.positions, self.converts, row[1:]))
                    for row in await self.query.rows(run, rows, excluded)]
        if self.pairs:
            rows = [(*row[:-2], *other, *row[-2:]) for row, other in zip(rows, excluded, strict=True)]
        return [
            (place, {position: cell(run, row) for position, cell in self.cells})
            for place, row in enumerate(rows)
            if self.filter is None or self.filter.matches(row, run.params)
        ]


class PairBinder(Binder):
    """Columns of a row and of the one proposed for its place, which stands before the row's system columns."""

    def column(self, node: exp.Column) -> Operand:
        qualifier = node.args.get("table")
        if qualifier is None or identifier(qualifier) != "excluded" or isinstance(node.this, exp.Star):
            return super().column(node)
        assert self.table is not None
        inner = exp.column(node.this.copy())
        position = self.position(identifier(node.this))
        if position is None:
            return super().column(inner)  # says that there is none
        width = len(self.table.columns)
        place = width + (position if position >= 0 else width - 1 - position)
        return Operand(self.type_of(position), field=Field(place, ""))


def _row_cell(cell: Cell) -> RowCell:
    return lambda run, row: cell(run, ())


def _fixed_cell(item: exp.Expression, column: ColumnDef, params: Params) -> Cell | None:
    if is_default(item):
        return default_cell(column)
    found, value = coerce.constant(item, column, params)
    if found:
        return constant_cell(value)
    bound = coerce.parameter(item, column, params)
    if bound is not None:
        return param_cell(*bound)
    name = coerce.function_of(item)
    if name is not None:
        return function_cell(name, coerce.assignment(coerce.function_type(name), column))
    return None


_ARITHMETIC: dict[type[exp.Expr], Callable[[Any, Any], Any]] = {exp.Add: add, exp.Sub: sub, exp.Mul: mul}
_WIDTHS = {"int2": 15, "int4": 31, "int8": 63}


def _arithmetic(item: exp.Expression, column: ColumnDef, binder: Binder) -> RowCell | None:
    """``n + 1`` over integers or double precision: what counters do, without the query engine."""
    sides = item.unnest()
    work = _ARITHMETIC.get(type(sides))
    if work is None:
        return None
    try:
        left, right = binder.operand(sides.this), binder.operand(sides.expression)
    except NotSimple:
        return None
    if left.type is None or right.type is None:
        return None
    if left.type.name == right.type.name == "float8" and all(
        side.field is not None or side.index is not None for side in (left, right)
    ):
        result = left.type
        compute: Callable[[Any, Any], Any] = _float_work(work)
    elif left.type.name in _WIDTHS and right.type.name in _WIDTHS:
        result = max(left.type, right.type, key=lambda type_: _WIDTHS[type_.name])
        compute = _integer_work(work, result)
    else:
        return None
    one, two, convert = _getter(left), _getter(right), coerce.assignment(result, column)

    def cell(run: Run, row: Row) -> Any:
        a, b = one(run, row), two(run, row)
        if a is None or b is None:
            return None
        value = compute(a, b)
        return value if convert is None else convert(value)

    return cell


def _column_cell(item: exp.Expression, column: ColumnDef, binder: Binder) -> RowCell | None:
    source = item.unnest()
    if not isinstance(source, exp.Column):
        return None
    operand = binder.column(source)
    get, convert = _getter(operand), coerce.assignment(operand.type, column)
    if convert is None:
        return get

    def cell(run: Run, row: Row) -> Any:
        value = get(run, row)
        return None if value is None else convert(value)

    return cell


def _integer_work(work: Callable[[int, int], int], result: PgType) -> Callable[[int, int], int]:
    limit = 1 << _WIDTHS[result.name]

    def compute(a: int, b: int) -> int:
        value = work(a, b)
        if not -limit <= value < limit:
            raise KalamError("22003", f"{result.display} out of range")
        return value

    return compute


def _float_work(work: Callable[[float, float], float]) -> Callable[[float, float], float]:
    def compute(a: float, b: float) -> float:
        value = work(a, b)
        if isinf(value) and not (isinf(a) or isinf(b)):
            raise KalamError("22003", "value out of range: overflow")
        if value == 0 and work is mul and a != 0 and b != 0:
            raise KalamError("22003", "value out of range: underflow")
        return value

    return compute


def _getter(operand: Operand) -> RowCell:
    if operand.field is not None:
        place = operand.field.position
        place = place if place >= 0 else -3 - place
        return lambda run, row: row[place]
    if operand.index is not None:
        index = operand.index
        return lambda run, row: run.params[index]
    return lambda run, row: operand.constant


def set_items(items: Sequence[exp.Expression], table: TableDef) -> list[tuple[int, exp.Expression]]:
    """(position, expression) of every assigned column."""
    pairs: list[tuple[str, exp.Expression]] = []
    for item in items:
        if not isinstance(item, exp.EQ):
            raise KalamError("0A000", "this form of SET is not supported")
        left, right = item.this, item.expression
        if isinstance(left, exp.Tuple):
            values = right.expressions if isinstance(right, exp.Tuple) else []
            if len(values) != len(left.expressions):
                raise KalamError("0A000", "SET (...) = takes a list of as many values")
            pairs += [(identifier(name.this), value) for name, value in zip(left.expressions, values, strict=True)]
        elif isinstance(left, exp.Paren) and isinstance(left.this, exp.Column):
            pairs.append((identifier(left.this.this), right.unnest()))
        else:
            pairs.append((identifier(left.this), right))
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise KalamError("42601", f'multiple assignments to same column "{name}"', column=name)
    return [(_assignable(table, name), value) for name, value in pairs]


def _assignable(table: TableDef, name: str) -> int:
    if name == "_userid" and table.kind != "shared":
        raise KalamError("0A000", 'column "_userid" cannot be updated',
                         hint="Insert the row for the other tenant and delete this one.", column="_userid")
    if name == "_seq":
        raise KalamError("428C9", 'column "_seq" cannot be updated', column="_seq",
                         detail="The server numbers the versions of rows itself.")
    return target_positions(table, [name])[0]


def plan_assignments(items: Sequence[exp.Expression], table: TableDef, params: Params, plan_query: PlanQuery,
                     where: exp.Expression | None, *, alias: str | None = None, excluded: bool = False) -> Assignments:
    pairs = set_items(items, table)
    binder = (PairBinder if excluded else Binder)(table, params, {alias} if alias else ())
    try:
        condition = None if where is None else binder.condition(where)
        cells: list[tuple[int, RowCell]] = []
        fixed = True
        for position, item in pairs:
            column = table.columns[position]
            cell = _fixed_cell(item, column, params)
            row_cell = _row_cell(cell) if cell is not None else None
            if row_cell is None:
                row_cell, fixed = _column_cell(item, column, binder) or _arithmetic(item, column, binder), False
            if row_cell is None:
                raise NotSimple
            cells.append((position, row_cell))
        found = Filter(condition, None, KeyRange()) if excluded else Filter.of(table, condition)
        return Assignments(table, found, cells, fixed, None, pairs=excluded)
    except NotSimple:
        pass
    values, named = set_values(pairs, table)
    plan = plan_query(rows_tree(table, alias or table.name, named, where, excluded=excluded))
    assert isinstance(plan, QueryPlan)
    positions = tuple(position for position, _ in pairs)
    converts = conversions(table, positions, plan.columns[1:], values)
    return Assignments(table, None, [], False, RowQuery(table, plan), positions, converts)


def set_values(pairs: Sequence[tuple[int, exp.Expression]], table: TableDef
                ) -> tuple[list[exp.Expression], list[exp.Expr]]:
    """The new values, and the same as outputs of a query."""
    values = [_default_expression(table.columns[position]) if is_default(item) else item for position, item in pairs]
    return values, [exp.alias_(value.copy(), f"c{place}", quoted=True) for place, value in enumerate(values)]


def conversions(table: TableDef, positions: Sequence[int], columns: Sequence[Column],
                 values: Sequence[exp.Expression]) -> tuple[Any, ...]:
    return tuple(
        _assignment(column.type, table.columns[position], value)
        for position, column, value in zip(positions, columns, values, strict=True)
    )


def converted(positions: Sequence[int], converts: Sequence[Any], values: Row) -> Changes:
    return {
        position: value if convert is None or value is None else convert(value)
        for position, convert, value in zip(positions, converts, values, strict=True)
    }


def _assignment(source: PgType, column: ColumnDef, value: exp.Expression) -> Any:
    if isinstance(value, exp.Literal) and value.is_string:  # an unknown literal takes the column's type
        return lambda text: types.read_text(column.type, text, column.typmod)
    return coerce.assignment(source, column)


def _default_expression(column: ColumnDef) -> exp.Expression:
    kind, value = coerce.default_of(column)
    if kind != "value":
        raise KalamError("0A000", f'SET {column.name} = DEFAULT beside computed values is not supported')
    return exp.Null() if value is None else exp.Literal.string(types.write_text(column.type, value))


# ---------- finding ----------
@dataclass(slots=True)
class Finder:
    """Which rows a statement means: the simple part of its condition for the scan, the rest for the query engine."""

    table: TableDef
    filter: Filter
    query: RowQuery | None  # conditions the scan could not check

    def keys(self, run: Run, tenant: str | None) -> list[RowId] | None:
        if tenant is None or self.query is not None:
            return None
        keys = self.filter.keys(self.table, run.params)
        return None if keys is None else [(tenant, key) for key in keys]

    def _present(self, run: Run, tenant: str | None) -> list[RowId] | None:
        """Whole keys whose rows the snapshot sees: nobody waits for a row that is being inserted."""
        keys = self.keys(run, tenant)
        try:
            return keys and [id_ for id_ in keys if run.transaction.get(run.snapshot, self.table, *id_) is not None]
        except NotInMemory:
            return None

    async def batches(self, run: Run, tenant: str | None) -> AsyncIterator[list[RowId]]:
        keys = self._present(run, tenant)
        if keys is not None:
            yield keys
            return
        every = tuple(range(len(self.table.columns)))
        columns = (*every, SEQ, USERID) if self.query is not None else (SEQ,)
        scan = self.filter.scan(self.table, tenant, columns, run.params, with_id=True)
        if scan is None:
            return
        source = ThreadSource.of_scan(run.workers, run.session, run.transaction.scan(run.snapshot, scan))
        try:
            while rows := await source.read(FIND_ROWS):
                if self.query is not None:
                    found = await self.query.rows(run, [row[2:] for row in rows])
                    rows = [rows[row[0]] for row in found]
                yield [(row[0], row[1]) for row in rows]
        finally:
            source.close()


def plan_finder(where: exp.Expression | None, table: TableDef, target: exp.Table, params: Params,
                plan_query: PlanQuery) -> Finder:
    if where is None:
        return Finder(table, Filter.of(table, None), None)
    binder = Binder(table, params, qualifiers(target, table))
    kept: list[Condition] = []
    whole = True
    for part in conjuncts(where):
        try:
            kept.append(binder.condition(part))
        except NotSimple:
            whole = False
    query = None
    if not whole:
        plan = plan_query(rows_tree(table, next(iter(qualifiers(target, table))), [], where))
        assert isinstance(plan, QueryPlan)
        query = RowQuery(table, plan)
    return Finder(table, Filter.of(table, conjunction(kept)), query)


# ---------- plans ----------
@dataclass(slots=True)
class ChangePlan:
    """UPDATE (``assignments``) or DELETE of rows under a condition."""

    table: TableDef
    finder: Finder
    assignments: Assignments | None
    returning: Returning | None
    params: Params
    names_tenant: bool
    writes: bool = True

    @property
    def columns(self) -> tuple[Column, ...] | None:
        return None if self.returning is None else self.returning.columns

    @property
    def verb(self) -> str:
        return "DELETE" if self.assignments is None else "UPDATE"

    def start(self, run: Run) -> Result | Awaitable[Result]:
        if self.returning is None and self.finder.query is None and not (run.context is not None and run.context.snap):
            changed = self._change_one(run)
            if changed is not None:
                return Result(f"{self.verb} {int(changed)}")
        return self._run(run)

    def _change_one(self, run: Run) -> bool | None:
        """Whether a row was changed, if there is one whole key and nobody has to be waited for."""
        assignments = self.assignments
        if assignments is not None and (assignments.query is not None or assignments.moves):
            return None
        tenant = writing_tenant(run, self.table, self.verb, named=self.names_tenant)
        keys = self.finder.keys(run, tenant)
        if tenant is None or keys is None or len(keys) != 1:
            return None
        rest, params = self.finder.filter.range.rest, run.params

        def matches(row: Row) -> bool:
            return rest is None or evaluate(rest, row, params) is True

        def values(row: Row) -> Changes:
            assert assignments is not None
            return {position: cell(run, row) for position, cell in assignments.cells}

        return run.transaction.change_nowait(self.table, *keys[0], matches, None if assignments is None else values)

    async def _run(self, run: Run) -> Result:
        tenant = writing_tenant(run, self.table, self.verb, named=self.names_tenant)
        count = 0
        written: list[Row] = []  # for a query, which comes last
        returning = self.returning
        gathered = None if returning is None else Gathered(run, returning.columns)
        step = Step(FIND_ROWS)
        async for ids in self.finder.batches(run, tenant):
            if self._direct(run, tenant):
                count += await self._write_direct(run, ids)
                continue
            while ids:
                part, ids = ids[: step.rows], ids[step.rows :]
                changed, size = await self._write_checked(run, part)
                step.took(size)
                count += len(changed)
                if returning is not None and returning.query is not None:
                    written += changed
                elif returning is not None and gathered is not None:
                    await gathered.add(await returning.rows(run, changed))
        if returning is None or gathered is None:
            return Result(f"{self.verb} {count}")
        await gathered.add(await returning.rows(run, written))
        return await gathered.answer(f"{self.verb} {count}")

    def _direct(self, run: Run, tenant: str | None) -> bool:
        """Nothing to look at in the row before it is written?"""
        if self.returning is not None or tenant is None or self.finder.query is not None:
            return False
        if run.context is not None and run.context.snap:  # other parts of the statement may have written the row
            return False
        if self.finder.filter.keys(self.table, run.params) is None or self.finder.filter.range.rest is not None:
            return False
        return self.assignments is None or (self.assignments.query is None and self.assignments.fixed)

    async def _write_direct(self, run: Run, ids: list[RowId]) -> int:
        if self.assignments is None:
            return await run.transaction.delete(self.table, ids)
        cells = self.assignments.cells  # for each row anew: gen_random_uuid() gives every one its own
        changes = [(id_, {position: cell(run, ()) for position, cell in cells}) for id_ in ids]
        return await run.transaction.update(self.table, changes)

    async def _write_checked(self, run: Run, ids: list[RowId]) -> tuple[list[Row], int]:
        """The rows written, as they are now, or as they were before DELETE; and the bytes of those looked at."""
        locked = await run.transaction.lock(run.snapshot, self.table, ids, timeout_ms=run.lock_timeout)
        present = [(id_, row) for id_, row in zip(ids, locked, strict=True) if row is not None]
        rows = [row for _, row in present]
        size = sum(map(size_of, rows))
        if self.assignments is None:
            places = await self._matching(run, rows)
            await run.transaction.delete(self.table, [present[place][0] for place in places])
            return [rows[place] for place in places], size
        changes = await self.assignments.values(run, rows)
        await run.transaction.update_locked(self.table, [(*present[place], values) for place, values in changes])
        return [changed_row(rows[place], values) for place, values in changes], size

    async def _matching(self, run: Run, rows: list[Row]) -> list[int]:
        if self.finder.query is not None:
            return [row[0] for row in await self.finder.query.rows(run, rows)]
        return [place for place, row in enumerate(rows) if self.finder.filter.matches(row, run.params)]


def changed_row(row: Row, values: Mapping[int, Any]) -> Row:
    whole = list(row)
    for position, value in values.items():
        whole[position] = value
    whole[-2] = None  # _seq: NULL until the commit
    return tuple(whole)


def writing_tenant(run: Run, table: TableDef, verb: str, *, named: bool) -> str | None:
    """Whose rows may change; ``named``: the condition is on _userid, too."""
    access.write_tenant(run.account, table, run.tenant)
    tenant = access.read_tenant(run.account, table, run.tenant)
    if tenant is None and not named and (run.context is None or run.exec):
        raise KalamError("42501", f"{verb} for all tenants must name _userid",
                         hint="Add a condition on _userid, or set kalam.user_id to one tenant.")
    return tenant


def mentions_tenant(where: exp.Expression | None) -> bool:
    return where is not None and any(identifier(node.this) == "_userid" for node in where.find_all(exp.Column))


def refuse_stream_update(table: TableDef) -> None:
    if table.kind == "stream":
        raise KalamError("0A000", f'stream table "{table.name}" cannot be updated',
                         detail="A stream takes INSERT, SELECT and DELETE.", schema=table.namespace, table=table.name)


def plan_update(tree: exp.Update, table: TableDef, params: Params, plan_query: PlanQuery,
                returning: Returning | None) -> ChangePlan:
    refuse_stream_update(table)
    target = tree.this
    where = None if tree.args.get("where") is None else tree.args["where"].this
    alias = next(iter(qualifiers(target, table)))
    assignments = plan_assignments(tree.expressions, table, params, plan_query, where, alias=alias)
    finder = plan_finder(where, table, target, params, plan_query)
    return ChangePlan(table, finder, assignments, returning, params, mentions_tenant(where))


def plan_delete(tree: exp.Delete, table: TableDef, params: Params, plan_query: PlanQuery,
                returning: Returning | None) -> ChangePlan:
    where = None if tree.args.get("where") is None else tree.args["where"].this
    finder = plan_finder(where, table, tree.this, params, plan_query)
    return ChangePlan(table, finder, None, returning, params, mentions_tenant(where))


# ---------- FROM ARROW ----------
@dataclass(slots=True)
class ArrowChangePlan:
    """UPDATE or DELETE … FROM ARROW $n KEY (…): the batch's columns are the new values, then the old key."""

    table: TableDef
    param: int
    positions: tuple[int, ...]
    kinds: tuple[PgType, ...]
    key_order: Callable[[Row], Row]
    tenant_place: int | None
    verb: str
    params: Params
    columns: tuple[Column, ...] | None = None
    writes: bool = True

    def start(self, run: Run) -> Awaitable[Result]:
        return self._run(run)

    async def _run(self, run: Run) -> Result:
        account = run.account
        default = access.write_tenant(account, self.table, run.tenant)
        width = len(self.positions)
        changes: list[tuple[RowId, Changes]] = []
        for row in types.rows_from_arrow(run.params[self.param], self.kinds):
            tenant = ""
            if self.table.kind != "shared":
                named = None if self.tenant_place is None else row[self.tenant_place]
                tenant = access.row_tenant(account, default, named, run.tenant)
            changes.append(((tenant, self.key_order(row)), dict(zip(self.positions, row[:width], strict=True))))
        if self.verb == "update":
            count = await run.transaction.update(self.table, changes)
        else:
            count = await run.transaction.delete(self.table, [id_ for id_, _ in changes])
        return Result(f"{self.verb.upper()} {count}")


def plan_arrow_change(write: ArrowWrite, table: TableDef, params: Params) -> ArrowChangePlan:
    if write.verb == "update":
        refuse_stream_update(table)
    positions = tuple(_assignable(table, name) for name in write.columns)
    if len(set(positions)) != len(positions):
        raise KalamError("42601", "multiple assignments to same column")
    key = target_positions(table, write.key)
    wanted = sorted(position for position in key if position != USERID)
    if wanted != sorted(table.key) or not wanted:
        names = ", ".join(f'"{table.columns[place].name}"' for place in table.key)
        raise KalamError("42P10", f'KEY must name the key of "{table.name}": ({names})')
    width = len(positions)
    places = [width + key.index(position) for position in table.key]
    tenant_place = width + key.index(USERID) if USERID in key else None
    kinds = tuple(column_type(table, position)[0] for position in (*positions, *key))
    return ArrowChangePlan(table, write.param, positions, kinds, picker(places), tenant_place, write.verb, params)


