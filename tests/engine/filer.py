"""A process that puts contents, refers to them, lets go of them and collects, until a fault kills it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kalamdb import faults, types
from kalamdb.reference import Reference
from kalamdb.txn.api import ColumnDef, Kind, TableDef
from kalamdb.txn.engine import StoreEngine, open_engine


def table_of(name: str = "t", kind: Kind = "user", **options: str) -> TableDef:
    columns = (ColumnDef(1, "id", types.by_name("int8"), "int8", not_null=True),
               ColumnDef(2, "f", types.by_name("jsonb"), "file"))
    return TableDef(0, "n", name, kind, columns, (0,), f"{name}_pkey", (), options)


async def put_file(engine: StoreEngine, table: TableDef, tenant: str, data: bytes) -> str:
    """Put a content; its reference."""
    upload = engine.upload(table, 1 << 20)
    for place in range(0, len(data), 7):
        upload.append(data[place : place + 7])
    await engine.publish_content(table, tenant, upload)
    return Reference(upload.sha256, len(data), "name").text()


async def refer(engine: StoreEngine, table: TableDef, tenant: str, key: int, reference: str | None) -> None:
    transaction = engine.begin(None)
    await transaction.insert(table, [(tenant, (key, reference))])
    await transaction.commit()


def data_of(number: int) -> bytes:
    return b"content %d" % number


def run(directory: str, fault: str) -> None:
    """Says each content to which a row refers for good. In a process of its own."""
    faults.arm(fault)
    asyncio.run(_work(Path(directory)))


async def _work(directory: Path) -> None:
    engine = await open_engine(directory, file_grace_hours=0)
    transaction = engine.begin(None)
    await transaction.create_namespace("n")
    table = await transaction.create_table(table_of())
    await transaction.commit()
    for number in range(1_000_000):
        await refer(engine, table, "ann", number, await put_file(engine, table, "ann", data_of(number)))
        await put_file(engine, table, "ann", b"nobody's %d" % number)
        if number % 3 == 1:
            transaction = engine.begin(None)
            await transaction.delete(table, [("ann", (number,))])
            await transaction.commit()
        else:
            print(number, flush=True)
        if number % 5 == 2:
            await engine.flush(table)
        await engine.collect_contents(table)
        await engine.tiers.sweep()
