"""How large tables and tenants' parts are: what the event loop says by itself, and what it leaves to a worker."""

from __future__ import annotations

import pytest

from engine.rig import Runner, create, definition, put
from kalamdb.txn import sizes
from kalamdb.txn.engine import StoreEngine


def test_few_rows_are_counted_at_once(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "COUNTED_AT_ONCE", 50)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(kind="user"))
        for tenant, rows in (("few", 40), ("many", 60)):
            await put(engine, table, *[(number, "x") for number in range(rows)], tenant=tenant)
        assert engine.table_size_nowait(table, "few") is None, "the table was not looked at yet"
        assert engine.table_size(table, None)["rows"] == 100
        assert engine.table_size_nowait(table, None) == engine.table_size(table, None)
        few = engine.table_size_nowait(table, "few")
        assert few is not None
        assert few["tenant_rows"] == 40
        assert engine.table_size_nowait(table, "many") is None
        assert engine.table_size(table, "many")["tenant_rows"] == 60
        assert engine.table_size_nowait(table, "many") == engine.table_size(table, "many"), "a worker has counted them"
        nobody = engine.table_size_nowait(table, "nobody")
        assert nobody is not None
        assert nobody["tenant_rows"] == 0

    run(test)


def test_counts_follow_writes(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(kind="user"))
        found = []
        for part in range(3):
            await put(engine, table, *[(200 * part + number, "x") for number in range(200)], tenant="a")
            found.append(engine.table_size(table, "a")["tenant_rows"])
        await engine.flush(table)
        assert engine.table_size_nowait(table, "a") is None, "the table has changed"
        found.append(engine.table_size(table, "a")["tenant_rows"])
        known = engine.table_size_nowait(table, "a")
        assert known is not None
        found.append(known["tenant_rows"])
        assert engine.table_size_nowait(table, "b") is not None, "no segment may have rows of this one"
        await put(engine, table, (1000, "x"), tenant="0")
        await put(engine, table, (1000, "x"), tenant="z")
        await engine.flush(table)
        engine.table_size(table, None)
        assert engine.table_size_nowait(table, "b") is None, "a file would have to be read"
        assert engine.table_size(table, "b")["tenant_rows"] == 0
        assert found == [200, 400, 600, 600, 600]

    run(test)


def test_rows_that_are_large_or_expire(run: Runner) -> None:
    """What takes long to read is a worker's work, however few rows there are; a stream's rows are always counted."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(kind="user"))
        await put(engine, table, *[(number, "x" * 100_000) for number in range(20)], tenant="a")
        assert engine.table_size(table, None)["rows"] == 20
        assert engine.table_size_nowait(table, "a") is None
        assert engine.table_size(table, "a")["tenant_rows"] == 20
        stream = await create(engine, definition("s", kind="stream"))
        await put(engine, stream, *[(number, "x") for number in range(20)], tenant="a")
        await put(engine, stream, *[(number, "x") for number in range(100)], tenant="b")
        engine.table_size(stream, "a")
        await put(engine, stream, (21, "x"), tenant="a")
        counted = engine.table_size_nowait(stream, "a")
        assert counted is not None
        assert counted["tenant_rows"] == 21

    run(test)
