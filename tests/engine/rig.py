"""What the engine's tests share: an engine in a directory of its own, tables in a word, waiting without sleeping."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pytest

from kalamdb import types
from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.txn.api import ColumnDef, Kind, Scan, TableDef
from kalamdb.txn.engine import StoreEngine, open_engine
from kalamdb.txn.transaction import StoreTransaction

T = TypeVar("T")
DEADLINE = 20.0


@asynccontextmanager
async def opened(directory: Path, **options: Any) -> Any:
    engine = await open_engine(directory, **options)
    try:
        yield engine
    finally:
        await engine.close()


class Runner:
    """Runs a coroutine function with an engine of the test's directory; every call opens and closes it anew."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, test: Callable[[StoreEngine], Awaitable[T]], **options: Any) -> T:
        async def whole() -> T:
            async with opened(self.directory, **options) as engine:
                return await test(engine)

        return asyncio.run(whole())


def definition(name: str = "t", columns: str = "id int8, v text", *, key: tuple[int, ...] = (0,),
               kind: Kind = "shared", options: Mapping[str, str] | None = None, optional: bool = True) -> TableDef:
    """A definition from ``name type`` pairs; key columns are NOT NULL, the others where they are not ``optional``."""
    parts = [part.split() for part in columns.split(",")] if columns else []
    made = tuple(
        ColumnDef(number, part[0], types.by_name(part[1]), part[1], not_null=not optional or number - 1 in key)
        for number, part in enumerate(parts, 1)
    )
    if kind == "stream":
        options = {"ttl_seconds": "3600", **(options or {})}
    return TableDef(0, "n", name, kind, made, key, f"{name}_pkey", (), options or {})


def batch_of(table: TableDef, rows: Sequence[Row]) -> pa.RecordBatch:
    """Rows as columns, as they come from PostgreSQL."""
    schema = types.arrow_schema([(column.name, column.type) for column in table.columns])
    return types.rows_to_arrow(rows, [column.type for column in table.columns], schema)


async def create(engine: StoreEngine, table: TableDef) -> TableDef:
    """Create and commit."""
    transaction = engine.begin(None)
    await transaction.create_namespace(table.namespace)
    made = await transaction.create_table(table)
    await transaction.commit()
    return made


async def put(engine: StoreEngine, table: TableDef, *rows: Row, tenant: str = "") -> int:
    """Insert and commit; the commit's number."""
    transaction = engine.begin(None)
    await transaction.insert(table, [(tenant, row) for row in rows])
    seq = await transaction.commit()
    assert seq is not None
    return seq


def every(table: TableDef) -> tuple[int, ...]:
    return tuple(range(len(table.columns)))


def read(transaction: StoreTransaction, table: TableDef, number: int = 0, **scan: Any) -> list[Row]:
    """All rows of a scan; by default the whole table's, all columns."""
    scan.setdefault("tenant", None)
    scan.setdefault("columns", every(table))
    cursor = transaction.scan(transaction.snapshot(number), Scan(table, **scan))
    try:
        return list(chunks(cursor.fetch))
    finally:
        cursor.close()


def chunks(fetch: Callable[[int], list[Row]], size: int = 100) -> Iterable[Row]:
    while rows := fetch(size):
        yield from rows


def stored(engine: StoreEngine, table: TableDef, **scan: Any) -> list[Row]:
    """What is committed now."""
    transaction = engine.begin(None)
    try:
        return read(transaction, table, **scan)
    finally:
        transaction.rollback()


async def refused(sqlstate: str, work: Awaitable[Any]) -> KalamError:
    with pytest.raises(KalamError) as caught:
        await asyncio.wait_for(work, DEADLINE)
    assert caught.value.sqlstate == sqlstate, caught.value
    return caught.value


async def until(condition: Callable[[], Any]) -> None:
    """Let others work until the condition holds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - what it looks at tells nobody
            await asyncio.sleep(0.001)


async def waiting(work: Awaitable[T], transaction: StoreTransaction) -> asyncio.Task[T]:
    """Start something that has to wait for a lock; returns when it does."""
    task = asyncio.ensure_future(work)
    await until(lambda: task.done() or transaction.waits_for is not None)
    assert not task.done(), task.exception() or task.result()
    assert isinstance(task, asyncio.Task)
    return task


async def soon(work: Awaitable[T]) -> T:
    return await asyncio.wait_for(work, DEADLINE)
