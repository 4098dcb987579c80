"""RETURNING: columns of the written rows at once, expressions through the query engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlglot import exp

from kalamdb.api import Column, Result, Row
from kalamdb.sql.bind import Binder, NotSimple, Params, identifier
from kalamdb.sql.cursors import Sized
from kalamdb.sql.query import QueryPlan, column_name, column_type
from kalamdb.sql.read import picker
from kalamdb.sql.rows import RowQuery
from kalamdb.sql.run import Run, answer
from kalamdb.txn.api import TableDef


@dataclass(slots=True)
class Returning:
    """``pick`` where only columns are wanted, ``query`` otherwise."""

    columns: tuple[Column, ...]
    pick: Callable[[Row], Row]
    query: RowQuery | None = None

    @property
    def immediate(self) -> bool:
        return self.query is None

    async def rows(self, run: Run, written: Sequence[Row]) -> list[Row]:
        """From whole rows, ``(*columns, _seq, _userid)``."""
        if self.query is None:
            return [self.pick(row) for row in written]
        return [row[1:] for row in await self.query.rows(run, written)]


async def returned(run: Run, tag: str, columns: tuple[Column, ...], rows: list[Row]) -> Result:
    """The answer of a statement that has been executed: in chunks, as a scan's, for whoever commits later and asks for
    rows as such."""
    context = run.context
    if context is None or context.exec or context.commit or run.own:
        return Result(tag, columns=columns, rows=rows)
    result = await answer(run, Sized(rows), columns)
    result.tag = tag if result.cursor is None else f"{tag} {result.cursor}"
    return result


def plan_returning(clause: exp.Expression | None, table: TableDef, target: exp.Table, params: Params,
                   plan_rows: Callable[[list[exp.Expression]], QueryPlan]) -> Returning | None:
    if clause is None:
        return None
    binder = Binder(table, params, {identifier(target.args["alias"].this)} if target.args.get("alias") else ())
    positions: list[int] = []
    names: list[str] = []
    try:
        for item in clause.expressions:
            inner = item.unalias()
            if isinstance(inner, exp.Star):
                positions += range(len(table.columns))
                names += [column.name for column in table.columns]
                continue
            if not isinstance(inner, exp.Column):
                raise NotSimple
            operand = binder.column(inner)
            assert operand.field is not None
            positions.append(operand.field.position)
            names.append(identifier(item.args["alias"]) if item is not inner
                         else column_name(table, operand.field.position))
    except NotSimple:
        query = RowQuery(table, plan_rows(list(clause.expressions)))
        return Returning(query.plan.columns[1:], lambda row: row, query)
    places = zip(names, positions, strict=True)
    columns = tuple(Column(name, *column_type(table, position)) for name, position in places)
    return Returning(columns, picker(positions))
