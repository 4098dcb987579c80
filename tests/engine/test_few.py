"""Few rows that the event loop reads by itself: the same that a worker reads, kept for the next scan, and no more
than take a moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from engine.rig import Runner, create, definition, put, stored
from engine.test_columns import columns, is_kept, shown
from kalamdb import types
from kalamdb.store.hot import HotSnapshot
from kalamdb.txn import few
from kalamdb.txn.api import ColumnDef, Kind, Scan, ScanStats, TableDef
from kalamdb.txn.engine import StoreEngine
from kalamdb.txn.transaction import StoreTransaction

ROWS = [(number, f"row {number}", None if number % 3 else number / 7, number % 2) for number in range(1, 301)]
COLUMNS = "id int8, v text, f float8, b bool"


def at_hand(transaction: StoreTransaction, table: TableDef, tenant: str | None = "a",
            wanted: Sequence[int] = (0, 1, 2, 3), *, number: int = 0, alone: bool = True, **scan: Any
            ) -> list[str] | None:
    batches = transaction.at_hand(transaction.snapshot(number), Scan(table, tenant, tuple(wanted), **scan), alone=alone)
    kinds = [table.columns[place].type for place in wanted]
    return None if batches is None else shown([row for batch in batches for row in types.rows_of_batch(batch, kinds)])


async def with_late(engine: StoreEngine, table: TableDef, kind: str, missing: Any
                    ) -> tuple[StoreTransaction, TableDef]:
    """A transaction that has added a column, and the table as it sees it."""
    writer = engine.begin(None)
    locked = await writer.lock_table(table)
    late = ColumnDef(locked.next_column, "g", types.by_name(kind), kind, late=True, missing=missing)
    return writer, await writer.alter_table(replace(locked, columns=(*locked.columns, late)))


def never(*_: object, **__: object) -> Any:
    raise AssertionError("SQLite is read")


@pytest.mark.parametrize("key", ["int8", "int4", "text"])
def test_all_of_a_tenant(run: Runner, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    make: Any = str if key == "text" else int

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=COLUMNS.replace("int8", key), kind="user"))
        rows = [(make(number), text, float("nan") if number == 9 else value, flag)
                for number, text, value, flag in ROWS]
        for tenant in ("a", "b"):
            await put(engine, table, *rows, tenant=tenant)
        reader, stats = engine.begin(None), ScanStats()
        assert at_hand(reader, table, alone=False) is None, "others would wait"
        found = at_hand(reader, table, stats=stats)
        assert found == shown(stored(engine, table, tenant="a"))
        assert stats.hot_rows == len(found) == len(ROWS)
        assert is_kept(engine, table, "a", ["c1", "c2", "c3", "c4", "k", "_userid"])
        with monkeypatch.context() as patch:
            patch.setattr(HotSnapshot, "few", never)
            assert at_hand(reader, table, wanted=(1,)) == shown([row[1:2] for row in rows])
        assert at_hand(reader, table, "nobody") == []
        await put(engine, table, (make(301), "more", None, 1), tenant="a")  # through the connection that was read from
        assert len(columns(reader, table, "a", (0, 1, 2, 3))) == len(ROWS) + 1
        reader.rollback()

    run(test)


def test_parts_and_own_rows_are_a_workers(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=COLUMNS, kind="user"))
        await put(engine, table, *ROWS, tenant="a")
        reader = engine.begin(None)
        for part in ({"where": "c1 > 5"}, {"limit": 3}, {"low": (5, True)}, {"key_prefix": (5,)}, {"with_id": True}):
            assert at_hand(reader, table, **part) is None, part
        await reader.insert(table, [("a", (500, "own", None, 0))])
        assert at_hand(reader, table) is None
        reader.rollback()
        reader = engine.begin(None)
        assert at_hand(reader, table) is not None
        await engine.flush(table)
        assert at_hand(reader, table) is None, "cold"
        stream = await create(engine, definition("s", kind="stream"))
        await put(engine, stream, (1, "x"), tenant="a")
        assert at_hand(reader, stream, wanted=(0, 1)) is None, "its rows expire"
        reader.rollback()

    run(test)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_an_older_snapshot(run: Runner, isolation: Any) -> None:
    """One that shares the connection that commits has a read transaction of its own from the next commit on."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=COLUMNS, kind="user"))
        await put(engine, table, *ROWS, tenant="a")
        old, young, late = engine.begin(None, isolation=isolation), engine.begin(None), engine.begin(None)
        old.snapshot(1)
        await young.update(table, [(("a", (7,)), {1: "new"})])
        await young.delete(table, [("a", (8,))])
        await young.commit()
        for _ in range(2):
            assert at_hand(old, table, number=1) in (None, shown(ROWS))
            assert columns(old, table, "a", (0, 1, 2, 3), number=1) == shown(ROWS)
            assert at_hand(late, table) == shown(stored(engine, table, tenant="a"))
        old.rollback()
        late.rollback()

    run(test)


def test_too_many_or_too_wide(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few, "FEW_VALUES", 10 * 6)  # four columns, tenant and key
    monkeypatch.setattr(few, "FEW_BYTES", 1000)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=COLUMNS, kind="user"))
        for tenant, count, text in (("few", 9, "x"), ("many", 11, "x"), ("wide", 2, "x" * 501)):
            await put(engine, table, *[(number, text, None, 0) for number in range(count)], tenant=tenant)
        reader = engine.begin(None)
        with monkeypatch.context() as patch:
            patch.setattr(HotSnapshot, "few", never)
            for tenant in ("many", "wide"):
                assert at_hand(reader, table, tenant) is None
        assert len(at_hand(reader, table, "few") or ()) == 9
        await put(engine, table, *[(number, "x", None, 0) for number in range(9, 11)], tenant="few")
        assert at_hand(reader, table, "few") is None, "it grew"
        reader.rollback()

    run(test)


def test_rows_that_became_many_or_wide_after_they_were_counted(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A count stands until a tenth has changed; what is read then is as small as if it were known."""
    monkeypatch.setattr(few, "FEW_VALUES", 55 * 6)
    monkeypatch.setattr(few, "FEW_BYTES", 2000)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=COLUMNS, kind="user"))
        for tenant in ("many", "wide"):
            await put(engine, table, *[(number, "x", None, 0) for number in range(54)], tenant=tenant)
        for tenant in ("many", "wide"):
            engine.table_size(table, tenant)
        await put(engine, table, *[(number, "x", None, 0) for number in range(54, 56)], tenant="many")
        writer = engine.begin(None)
        await writer.update(table, [(("wide", (5,)), {1: "x" * 2000})])
        await writer.commit()
        reader = engine.begin(None)
        for tenant, count in (("many", 56), ("wide", 54)):
            assert engine.sizes.few(table, tenant, 55) is not None, "counted before"
            assert at_hand(reader, table, tenant) is None
            assert len(columns(reader, table, tenant, (0, 1, 2, 3))) == count
        reader.rollback()

    run(test)


@pytest.mark.parametrize("kind", ["shared", "user"])
def test_a_column_that_came_late(run: Runner, kind: Kind) -> None:
    """Also to a snapshot from before it."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=COLUMNS, kind=kind))
        tenant = "" if kind == "shared" else "a"
        await put(engine, table, *ROWS, tenant=tenant)
        engine.table_size(table, tenant)
        writer, altered = await with_late(engine, table, "int4", 5)
        assert at_hand(writer, altered, tenant, (0, 4)) in (None, shown([(row[0], 5) for row in ROWS]))
        await writer.commit()
        reader = engine.begin(None)
        for _ in range(2):
            assert at_hand(reader, altered, tenant, (0, 4)) == shown([(row[0], 5) for row in ROWS])
        reader.rollback()

    run(test)


@pytest.mark.parametrize("count", ["first", "later"])
def test_a_late_text_of_rows_that_were_not_counted(run: Runner, count: str) -> None:
    """The count names the column, which the database gets with the commit only."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=COLUMNS, kind="user"))
        await put(engine, table, *ROWS, tenant="a")
        await put(engine, table, *ROWS, tenant="b")
        writer, altered = await with_late(engine, table, "text", "m" * 10)
        expected = shown([(row[0], "m" * 10) for row in ROWS])
        if count == "first":
            assert engine.table_size(altered, "a")["tenant_rows"] == len(ROWS)
            assert engine.table_size_nowait(altered, "b") is not None
        for tenant in ("a", "b"):
            assert at_hand(writer, altered, tenant, (0, 4)) in (None, expected)
        await writer.commit()
        reader = engine.begin(None)
        assert at_hand(reader, altered, "a", (0, 4)) == expected
        reader.rollback()

    run(test)


def test_a_late_text_that_is_long(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its default makes rows large that were counted as small, and nothing was written: they are looked at."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=COLUMNS, kind="user"))
        await put(engine, table, *ROWS, tenant="a")
        engine.table_size(table, "a")
        long = "m" * (few.FEW_BYTES // 20)
        writer, altered = await with_late(engine, table, "text", long)
        await writer.commit()
        reader = engine.begin(None)
        with monkeypatch.context() as patch:
            patch.setattr("kalamdb.txn.shape.HotRows.whole", never)
            assert at_hand(reader, altered, "a", (0, 4)) is None
        reader.rollback()

    run(test)


def test_many_rows_are_counted_once(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns="id int8, v text", kind="user"))
        most = few.FEW_VALUES // 3
        await put(engine, table, *[(number, "v") for number in range(most + 2)], tenant="a")
        reader = engine.begin(None)
        assert engine.sizes.few(table, "a", most) is None
        with monkeypatch.context() as patch:
            patch.setattr(engine.sizes, "_hot_rows_of", never)
            assert engine.sizes.few(table, "a", most) is None
        assert engine.table_size(table, "a")["tenant_rows"] == most + 2, "the planner's count goes on"
        reader.rollback()

    run(test)


def test_what_fails_is_given_up(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may keep the tenant's rows after an error."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=COLUMNS, kind="user"))
        await put(engine, table, *ROWS, tenant="a")
        reader = engine.begin(None)
        with monkeypatch.context() as patch:
            patch.setattr(pa, "repeat", never)
            with pytest.raises(AssertionError):
                at_hand(reader, table)
        assert at_hand(reader, table) == shown(ROWS)
        assert is_kept(engine, table, "a")
        reader.rollback()

    run(test)
