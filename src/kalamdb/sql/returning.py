"""RETURNING: columns of the written rows at once, expressions through the query engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
from sqlglot import exp

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.sql.bind import Binder, NotSimple, Params, identifier
from kalamdb.sql.cursors import CHUNK_BYTES, BatchSource, Sized, size_of
from kalamdb.sql.query import QueryPlan, column_name, column_type
from kalamdb.sql.read import picker
from kalamdb.sql.rows import RowQuery
from kalamdb.sql.run import Run, answer, batcher
from kalamdb.sql.spool import Spool
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


class Gathered:
    """What RETURNING gives of a statement that is under way, and its answer.

    Whoever commits later and asks for rows as such has them in chunks, as a scan's; beyond one chunk they wait as Arrow
    batches, and beyond ``Spool``'s bound on the disk.
    """

    def __init__(self, run: Run, columns: tuple[Column, ...]) -> None:
        self._run = run
        self._columns = columns
        self._rows: list[Row] = []
        self._bytes = 0
        self._spool: Spool | None = None
        context = run.context
        self._chunked = context is not None and not (context.exec or context.commit or run.own)
        self._spools = self._chunked and context is not None and context.arrow

    async def add(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        if self._spools:
            self._bytes += sum(map(size_of, rows))
            if self._bytes >= CHUNK_BYTES:
                await self._put_away()

    async def _put_away(self) -> None:
        rows, self._rows, self._bytes = self._rows, [], 0
        schema = types.arrow_schema([(column.name, column.type) for column in self._columns])
        to_batch = batcher(self._columns, schema)
        spool = self._spool = self._spool or Spool()
        step = max(1, len(rows) * CHUNK_BYTES // max(CHUNK_BYTES, sum(map(size_of, rows))))

        def put() -> None:
            for start in range(0, len(rows), step):
                spool.add(pa.Table.from_batches([to_batch(rows[start : start + step])], schema))

        await self._run.workers.run(self._run.session, lambda: None, put)

    async def answer(self, tag: str) -> Result:
        run, columns = self._run, self._columns
        if not self._chunked:
            return Result(tag, columns=columns, rows=self._rows)
        if self._spool is None:
            result = await answer(run, Sized(self._rows), columns)
        else:
            await self._put_away()
            table = self._spool.table()
            assert table is not None
            source = BatchSource.ready(run.workers, run.session, table.to_batches(), columns)
            result = await answer(run, source, columns)
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
