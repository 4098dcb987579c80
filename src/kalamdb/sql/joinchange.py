"""UPDATE … FROM, DELETE … USING, and those whose condition asks other tables.

A row is changed once, whatever it joins with, by the first match that is found (PostgreSQL does not say which it takes
either).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlglot import exp

from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.sql.bind import Params, identifier
from kalamdb.sql.cursors import size_of
from kalamdb.sql.joined import Engine, JoinPlan, Match, Resolve, plan_join, table_alias
from kalamdb.sql.read import Lock, Step
from kalamdb.sql.returning import Gathered, Returning
from kalamdb.sql.run import Run
from kalamdb.sql.update import (
    FIND_ROWS,
    changed_row,
    conversions,
    converted,
    mentions_tenant,
    refuse_stream_update,
    set_items,
    set_values,
    writing_tenant,
)
from kalamdb.txn.api import TableDef


@dataclass(slots=True)
class JoinChangePlan:
    """UPDATE … FROM and DELETE … USING, and those whose condition asks other tables."""

    table: TableDef
    join: JoinPlan
    assigned: tuple[int, ...] | None  # positions, and what makes their values of the join's; None: DELETE
    converts: tuple[Any, ...]
    returning: Returning | None  # of the table alone
    picks: tuple[tuple[bool, int], ...] | None  # RETURNING of the join: (of the row written?, place)
    columns: tuple[Column, ...] | None
    params: Params
    names_tenant: bool
    writes: bool = True

    @property
    def verb(self) -> str:
        return "DELETE" if self.assigned is None else "UPDATE"

    def start(self, run: Run) -> Awaitable[Result]:
        return self._run(run)

    async def _run(self, run: Run) -> Result:
        writing_tenant(run, self.table, self.verb, named=self.names_tenant)
        source = self.join.plan.source(run)
        count = 0
        written: list[Row] = []  # for RETURNING that takes a query
        gathered = None if self.columns is None else Gathered(run, self.columns)
        step = Step(FIND_ROWS)
        try:
            while found := await source.read(step.rows):
                matches = await self.join.matches(run, found, once=True)
                made = await self._write(run, matches)
                step.took(sum(map(size_of, found)) + sum(size_of(row) for match in matches for row in match.rows))
                count += len(made)
                if self.returning is not None and self.returning.query is not None:
                    written += made
                elif gathered is not None:
                    await gathered.add(await self._returned(run, made, matches))
        finally:
            source.close()
        if gathered is None:
            return Result(f"{self.verb} {count}")
        if self.returning is not None:
            await gathered.add(await self.returning.rows(run, written))
        return await gathered.answer(f"{self.verb} {count}")

    async def _returned(self, run: Run, made: Sequence[Row], matches: Sequence[Match]) -> list[Row]:
        if self.returning is not None:
            return await self.returning.rows(run, made)
        return [self._picked(row, match.values) for row, match in zip(made, matches, strict=True)]

    async def _write(self, run: Run, matches: Sequence[Match]) -> list[Row]:
        """The rows written: as they are now, or as they were before DELETE."""
        if self.assigned is None:
            await run.transaction.delete(self.table, [match.ids[0] for match in matches])
            return [match.rows[0] for match in matches]
        width = len(self.assigned)
        changes = [converted(self.assigned, self.converts, match.values[:width]) for match in matches]
        await run.transaction.update_locked(self.table, [
            (match.ids[0], match.rows[0], values) for match, values in zip(matches, changes, strict=True)])
        return [changed_row(match.rows[0], values) for match, values in zip(matches, changes, strict=True)]

    def _picked(self, row: Row, values: Row) -> Row:
        assert self.picks is not None
        return tuple(row[place] if own else values[place] for own, place in self.picks)


def other_tables(tree: exp.Update | exp.Delete) -> list[exp.Expression]:
    """The items of FROM or USING; of FROM, what follows a comma hangs on the first one."""
    clause = tree.args.get("from_")
    return list(tree.args.get("using") or []) if clause is None else [clause.this]


def is_over_join(tree: exp.Update | exp.Delete, table: TableDef) -> bool:
    """Does it take a join to find its rows?"""
    where = tree.args.get("where")
    return bool(other_tables(tree)) or (bool(table.key) and where is not None and where.find(exp.Select) is not None)


def _join_tree(tree: exp.Expression, target: exp.Table, others: Sequence[exp.Expression],
               items: Sequence[exp.Expr]) -> exp.Select:
    """SELECT items FROM target, others WHERE …"""
    made = exp.Select(expressions=list(items))
    made.set("from_", exp.From(this=target.copy()))
    made.set("joins", [exp.Join(this=item.copy()) for item in others])
    if tree.args.get("where") is not None:
        made.set("where", tree.args["where"].copy())
    return made


def _returned_columns(clause: exp.Expression | None, table: TableDef, alias: str
                      ) -> list[tuple[exp.Column, int | None]]:
    """Of RETURNING over a join: each column, and which of the target's it is."""
    found: list[tuple[exp.Column, int | None]] = []
    for item in [] if clause is None else clause.expressions:
        inner = item.unalias()
        if not isinstance(inner, exp.Column) or isinstance(inner.this, exp.Star):
            raise KalamError("0A000", "RETURNING of a statement over several tables takes columns only")
        qualifier = inner.args.get("table")
        place = None
        if qualifier is None or identifier(qualifier) == alias:
            names = [*(column.name for column in table.columns), "_seq", "_userid"]
            name = identifier(inner.this)
            place = names.index(name) if name in names and (name != "_userid" or table.kind != "shared") else None
        found.append((inner, place))
    return found


def plan_join_change(tree: exp.Update | exp.Delete, table: TableDef, target: exp.Table, params: Params,
                     returning: Returning | None, resolve: Resolve, engine: Engine) -> JoinChangePlan:
    """``returning``: of the table alone, where there is no other in FROM."""
    if isinstance(tree, exp.Update):
        refuse_stream_update(table)
    if not table.key:
        raise KalamError("0A000", f'rows of "{table.name}", which has no key, cannot be changed by a join')
    others = other_tables(tree)
    alias = table_alias(target)
    pairs = set_items(tree.expressions, table) if isinstance(tree, exp.Update) else []
    values, items = set_values(pairs, table)
    clause = tree.args.get("returning") if others else None
    wanted = _returned_columns(clause, table, alias)
    items += [exp.alias_(column.copy(), f"r{place}", quoted=True) for place, (column, _) in enumerate(wanted)]
    made = _join_tree(tree, target, others, items or [exp.Null()])
    join = plan_join(made, [(alias, Lock(share=False, wait="wait"))], resolve, engine)
    positions = tuple(position for position, _ in pairs)
    converts = conversions(table, positions, join.columns[: len(pairs)], values)
    picks, columns = None, None if returning is None else returning.columns
    if clause is not None:
        picks = tuple((True, own) if own is not None else (False, len(pairs) + place)
                      for place, (_, own) in enumerate(wanted))
        columns = tuple(Column(item.alias_or_name, column.type, column.typmod)
                        for item, column in zip(clause.expressions, join.columns[len(pairs) :], strict=False))
    where = tree.args.get("where")
    return JoinChangePlan(table, join, positions if isinstance(tree, exp.Update) else None, converts,
                          returning if clause is None else None, picks, columns, params,
                          mentions_tenant(None if where is None else where.this))
