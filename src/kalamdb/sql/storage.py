"""Statements about tiers: STORAGE FLUSH and COMPACT, SHOW TABLE STATS, CANCEL JOB.

A flush or compaction is about what is committed, whatever transaction asks for it, and a rollback does not undo it:
which tier a row is in is nothing that a transaction sees.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.sql import access
from kalamdb.sql.run import Run
from kalamdb.sql.statements import CancelJob, ShowTableStats, StorageJob
from kalamdb.sql.system import check_writable
from kalamdb.txn.api import TableDef

_TEXT, _INT8 = types.by_name("text"), types.by_name("int8")
MOVED = (Column("namespace", _TEXT), Column("table", _TEXT), Column("rows", _INT8))
WIDTHS = (Column("column", _TEXT), Column("width", types.by_name("int4")), Column("rows", _INT8))
STATS = (Column("name", _TEXT), Column("value", _INT8))


async def storage_job(statement: StorageJob, run: Run) -> Result:
    """Does the work for one table or for many, and tells how many rows went to new segments of each."""
    access.can_manage(run.account, f"{statement.verb} a table")
    work: Callable[[TableDef], Awaitable[int]] = (
        run.engine.flush if statement.verb == "flush" else lambda table: _compact(table, run))
    rows: list[Row] = []
    for table in _tables(statement, run):
        rows.append((table.namespace, table.name, await work(table)))
    return Result(f"STORAGE {statement.verb.upper()}", columns=MOVED, rows=rows)


async def _compact(table: TableDef, run: Run) -> int:
    rows = await run.engine.compact(table)
    await run.engine.collect_contents(table)
    return rows


def _tables(statement: StorageJob, run: Run) -> list[TableDef]:
    catalog = run.transaction.catalog
    if statement.table is not None:
        table = access.resolve(catalog, statement.table, run.path)
        check_writable(table)
        return [table]
    if statement.namespace is not None and statement.namespace not in catalog.namespaces():
        raise KalamError("3F000", f'schema "{statement.namespace}" does not exist')
    found = [table for table in catalog.tables(statement.namespace) if table.kind != "stream" and table.id > 0]
    return sorted(found, key=lambda table: (table.namespace, table.name))


async def cancel_job(statement: CancelJob, run: Run) -> Result:
    access.can_manage(run.account, "cancel a job")
    run.engine.cancel_job(statement.number)
    return Result("CANCEL JOB")


async def table_stats(statement: ShowTableStats, run: Run) -> Result:
    table = access.resolve(run.transaction.catalog, statement.table, run.path)
    check_writable(table)  # those of the namespace system have none
    if not access.may_read(run.account, table):
        access.read_tenant(run.account, table, run.tenant)
    facts = await run.engine.table_stats(table)
    return Result("SHOW", columns=STATS, rows=list(facts.items()))
