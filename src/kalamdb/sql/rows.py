"""Expressions over given rows of a table: new values of an UPDATE, RETURNING, conditions the store cannot evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kalamdb.api import Row
from kalamdb.sql.query import QueryPlan
from kalamdb.sql.run import Run
from kalamdb.txn.api import TableDef


@dataclass(slots=True)
class RowQuery:
    """A query whose first relation is rows that are at hand, not a scan."""

    table: TableDef
    plan: QueryPlan

    async def rows(self, run: Run, given: Sequence[Row], excluded: Sequence[Row] = ()) -> list[Row]:
        """(place in ``given``, *expressions) for the rows that satisfy the query's condition, in order."""
        if not given:
            return []
        source = self.plan.source(run, given, excluded)
        found: list[Row] = []
        try:
            while part := await source.read(10_000):
                found += part
        finally:
            source.close()
        found.sort(key=lambda row: row[0])
        return found
