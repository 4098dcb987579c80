"""SELECT count(*) of one table's rows under a condition the store can evaluate, without the query engine.

A whole key is looked up; otherwise the rows of a scan are counted as they go by, of which no column is wanted.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass

from sqlglot import exp

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.sql import access
from kalamdb.sql.bind import Binder, NotSimple, Params, identifier
from kalamdb.sql.cursors import ListSource, Source, ThreadSource
from kalamdb.sql.expressions import function_name
from kalamdb.sql.predicate import SEQ
from kalamdb.sql.read import Filter, ReadPlan, picker, qualifiers
from kalamdb.sql.report import KEY, STORE
from kalamdb.sql.run import Run, answer
from kalamdb.sql.statements import Name
from kalamdb.sql.system import is_system
from kalamdb.txn.api import ScanCursor, TableDef

SCAN_ROWS = 10_000


@dataclass(slots=True)
class CountPlan:
    """``rows``: SELECT NULL FROM table WHERE condition."""

    rows: ReadPlan
    columns: tuple[Column, ...]
    params: Params
    writes: bool = False

    def start(self, run: Run) -> Result | Awaitable[Result]:
        found = self.rows.rows_by_key(run, alone=run.own)
        if found is not None:
            run.scanning(KEY)
            return Result("SELECT 1", columns=self.columns, rows=[(len(found),)])
        return answer(run, self._scanned(run), self.columns)

    def source(self, run: Run) -> Source:
        """The row for a statement that reads it itself."""
        found = self.rows.rows_by_key(run)
        return self._scanned(run) if found is None else ListSource([(len(found),)])

    def _scanned(self, run: Run) -> Source:
        plan = self.rows
        tenant = access.read_tenant(run.account, plan.table, run.tenant)
        scan = plan.filter.scan(plan.table, tenant, (SEQ,), run.params, stats=run.scanning(STORE))
        if scan is None:
            return ListSource([(0,)])
        counting = _Counting(run.transaction.scan(run.snapshot, scan))
        return ThreadSource(run.workers, run.session, counting.fetch, counting.scan.interrupt, counting.scan.close)


class _Counting:
    """A scan's rows, counted: one row, in a worker thread."""

    def __init__(self, scan: ScanCursor) -> None:
        self.scan = scan
        self._done = False

    def fetch(self, _: int) -> list[Row]:
        if self._done:
            return []
        self._done = True
        batches, count = self.scan.batches(), 0
        if batches is not None:
            return [(sum(batch.num_rows for batch in batches),)]
        while rows := self.scan.fetch(SCAN_ROWS):
            count += len(rows)
        return [(count,)]


def _is_count(node: exp.Expr) -> bool:
    """count(*) and no more."""
    if not isinstance(node, exp.Anonymous) or function_name(node) != "count" or len(node.expressions) != 1:
        return False
    (star,) = node.expressions
    rest = [value for part, value in node.args.items() if part not in ("this", "expressions")]
    return isinstance(star, exp.Star) and not any(rest) and not any(star.args.values())


def plan_count(tree: exp.Select, name: Name, table: TableDef, params: Params) -> CountPlan:
    """Raises NotSimple where it is another query."""
    if len(tree.expressions) != 1 or any(tree.args.get(part) for part in ("order", "limit", "locks", "kind")):
        raise NotSimple
    item = tree.expressions[0]
    inner = item.this if isinstance(item, exp.Alias) else item
    if not _is_count(inner) or is_system(table):
        raise NotSimple
    binder = Binder(table, params, qualifiers(tree.args["from_"].this, table))
    where = tree.args.get("where")
    found = Filter.of(table, None if where is None else binder.condition(where.this))
    shown = identifier(item.args["alias"]) if isinstance(item, exp.Alias) else "count"
    return CountPlan(ReadPlan(name, table, (), (), found, params, None, None, picker(())),
                     (Column(shown, types.by_name("int8")),), params)
