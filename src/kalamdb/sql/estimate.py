"""ESTIMATE SELECT … FROM table WHERE …: about how many rows, from some random ones of the range of the key.

For PostgreSQL's planner with the option ``use_remote_estimate``. Any condition that a query could have is judged, by
the query engine where the store cannot.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.sql import access
from kalamdb.sql.bind import Params
from kalamdb.sql.predicate import SEQ, USERID
from kalamdb.sql.run import Run
from kalamdb.sql.system import is_system
from kalamdb.sql.update import Finder
from kalamdb.txn.api import Sample, Sampled, TableDef

#: classes of SQLSTATE: data exceptions, and values that the query engine does not take
UNKNOWN = ("22", "0A")
ROWS, BLOCKS = 2000, 16
COLUMNS = (Column("rows", types.by_name("int8")),)


@dataclass(slots=True)
class EstimatePlan:
    table: TableDef
    finder: Finder
    params: Params
    columns: tuple[Column, ...] = COLUMNS
    writes: bool = False

    def start(self, run: Run) -> Awaitable[Result]:
        return self._answer(run)

    async def _answer(self, run: Run) -> Result:
        """No row where nothing can be told: of the namespace system, or where the condition fails for a row."""
        rows: list[Row] = []
        try:
            if not is_system(self.table):
                rows.append((await self._estimate(run),))
        except KalamError as error:
            if not error.sqlstate.startswith(UNKNOWN):
                raise
        return Result(f"SELECT {len(rows)}", columns=COLUMNS, rows=rows)

    async def _estimate(self, run: Run) -> int:
        tenant = access.read_tenant(run.account, self.table, run.tenant)
        keys = self.finder.keys(run, tenant)
        if keys is not None:
            return len(keys)
        scan = self.finder.filter.scan(self.table, tenant, (), run.params)
        if scan is None:
            return 0
        columns = (*range(len(self.table.columns)), SEQ, USERID)
        sample = run.transaction.sample(run.snapshot, Sample(
            self.table, columns, ROWS, BLOCKS, tenant, scan.key_prefix, scan.low, scan.high))
        found = await run.workers.run(run.session, sample.interrupt, sample.draw)
        return _share(found, await self._matching(run, found.rows))

    async def _matching(self, run: Run, rows: Sequence[Row]) -> int:
        if self.finder.query is not None:
            return len(await self.finder.query.rows(run, rows))
        return sum(self.finder.filter.matches(row, run.params) for row in rows)


def _share(found: Sampled, matching: int) -> int:
    """Where none of the sample matches, fewer rows do than would make one of it likely."""
    if not found.rows:
        return 0
    if matching == 0 and found.total > len(found.rows):
        return found.total // (2 * len(found.rows))
    return round(found.total * matching / len(found.rows))
