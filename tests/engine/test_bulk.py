"""Large transactions: rows beyond what stays in memory go to runs, and are rows like any other."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.rig import (
    DEADLINE,
    Runner,
    batch_of,
    chunks,
    create,
    definition,
    every,
    put,
    read,
    refused,
    soon,
    stored,
    until,
)
from engine.rig import waiting as waiting_for
from engine.test_commit import held_writer
from engine.test_tiers import full_disk
from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.store.segment import SegmentWriter
from kalamdb.txn.api import CheckDef, Scan, TableDef
from kalamdb.txn.engine import StoreEngine
from kalamdb.txn.transaction import StoreTransaction

RUN = 500
BATCH = 100


@pytest.fixture(autouse=True, params=["rows", "columns"])
def small_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With columns every load of one tenant comes in batches, as from PostgreSQL."""
    monkeypatch.setattr("kalamdb.txn.bulk.BULK_ROWS", RUN)
    monkeypatch.setattr("kalamdb.txn.bulk.RUN_ROWS", RUN)
    monkeypatch.setattr("kalamdb.txn.bulk.PART_ROWS", 2)
    monkeypatch.setattr("kalamdb.txn.transaction.TURN", BATCH)
    insert = StoreTransaction.insert

    async def in_batches(one: StoreTransaction, table: TableDef, rows: Iterable[tuple[str, Row]], **more: Any) -> int:
        if not isinstance(rows, list) or len({tenant for tenant, _ in rows}) != 1 or more:
            return await insert(one, table, rows, **more)
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            batch = batch_of(table, [row for _, row in part])
            if not await one.insert_batch(table, rows[0][0], batch):
                await insert(one, table, part)
        return len(rows)

    if request.param == "columns":
        monkeypatch.setattr(StoreTransaction, "insert", in_batches)


def rows_from(first: int, count: int) -> list[tuple[str, Row]]:
    return [("", (number, f"row {number}")) for number in range(first, first + count)]


def expected(*ranges: tuple[int, int]) -> list[Row]:
    return [(number, f"row {number}") for low, high in ranges for number in range(low, high)]


def files(engine_directory: Path) -> list[str]:
    """Segment files and such as are not finished."""
    root = engine_directory / "segments"
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


async def loaded(engine: StoreEngine, table: TableDef, count: int = 4 * RUN) -> StoreTransaction:
    one = engine.begin(None)
    assert await one.insert(table, rows_from(0, count)) == count
    return one


def test_a_bulk_insert_is_seen_by_itself_and_after_its_commit(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await loaded(engine, table)
        assert read(one, table) == expected((0, 4 * RUN))
        assert stored(engine, table) == []
        assert len(engine.locks) < 2 * RUN
        seq = await one.commit()
        assert stored(engine, table) == expected((0, 4 * RUN))
        assert {row[0] for row in stored(engine, table, columns=(-1,))} == {seq}
        assert len(engine.tiered[table.id].segments) == 4
        assert len(engine.locks) == 0

    run(test)
    run(_all_there, )


async def _all_there(engine: StoreEngine) -> None:
    (table,) = engine.catalog.by_id.values()
    assert stored(engine, table) == expected((0, 4 * RUN))


@pytest.mark.parametrize("kind", ["shared", "user"])
@pytest.mark.parametrize("key", [(0,), (1, 0)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_load_is_stored_as_it_came(run: Runner, kind: Any, key: tuple[int, ...], turned: bool) -> None:
    """Rows of all layouts, in order and not, untouched and not: as they were given, as columns where they may be."""
    columns = "id int8, name text, flag bool, raw bytea, number numeric, real float8, doc jsonb"

    def row(n: int) -> Row:
        return (n, f"n{n:05}", None if n % 3 else n % 2, b"\0" * (n % 5), None if n % 7 else f"{n}.50",
                float("nan") if n % 11 == 0 else n / 4, '{"a": 1}' if n % 2 else None)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("t", columns, key=key, kind=kind))
        tenant = "" if kind == "shared" else "me"
        one = engine.begin(None)

        async def load(numbers: Sequence[int], *, new: bool = True) -> None:
            rows = [row(n) for n in (reversed(numbers) if turned else numbers)]
            assert await one.insert_batch(table, tenant, batch_of(table, rows)) is new

        await load(range(RUN))
        assert not one._overlay.tables[table.id].rows
        await load(range(RUN, RUN + RUN // 2))
        await one.update(table, [((tenant, tuple(row(RUN + 3)[place] for place in key)), {2: 1})])
        await load(range(2 * RUN, 3 * RUN))
        await load(range(RUN + RUN // 2, 2 * RUN, 2))
        await load(range(RUN + RUN // 2 + 1, 2 * RUN, 2))
        for once_more in (RUN - 2, RUN + 3, RUN + RUN // 2, 2 * RUN + 7):
            await load(range(once_more, once_more + 2), new=False)
        wanted = [row(n) if n != RUN + 3 else (*row(n)[:2], 1, *row(n)[3:]) for n in range(3 * RUN)]
        for _ in range(2):
            found = read(one, table, tenant=tenant) if not one._ended else stored(engine, table, tenant=tenant)
            assert repr(found) == repr(wanted)
            if not one._ended:
                await one.commit()

    run(test)


def test_memory_stays_bounded(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalamdb.txn.bulk.BULK_ROWS", 10_000)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        tracemalloc.start()
        try:
            one = engine.begin(None)
            await one.insert(table, (("", (number, f"row {number}")) for number in range(60_000)))
            await one.commit()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 20_000_000  # 60,000 rows in memory are 36 MB

    run(test)


@pytest.mark.parametrize("together", [1, 100])
def test_wide_rows_become_a_run_before_they_are_many(
    run: Runner, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    monkeypatch.setattr("kalamdb.txn.bulk.BULK_ROWS", 1_000_000)
    monkeypatch.setattr("kalamdb.txn.bulk.BULK_BYTES", 100_000)
    monkeypatch.setattr("kalamdb.txn.bulk.RUN_BYTES", 100_000)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = engine.begin(None)
        for first in range(0, 400, together):
            await one.insert(table, [("", (number, "x" * 1000)) for number in range(first, first + together)])
        await one.insert(table, [("", (number, None)) for number in range(400, 500)])
        assert one.rows_written == 500
        await one.commit()
        assert len(engine.tiered[table.id].segments) == 4
        assert len(stored(engine, table)) == 500

    run(test)


def test_what_is_done_to_rows_of_a_run(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await loaded(engine, table)
        assert await one.update(table, [(("", (3,)), {1: "changed"}), (("", (4,)), {0: -4})]) == 2
        assert await one.delete(table, [("", (5,)), ("", (RUN + 1,))]) == 2
        await refused("23505", one.insert(table, [("", (7, "again"))]))
        assert await one.insert(table, [("", (7, "again"))], skip_conflicts=True) == 0
        assert await one.insert(table, [("", (5, "back"))]) == 1
        wanted = sorted([
            *(row for row in expected((0, 4 * RUN)) if row[0] not in (3, 4, 5, RUN + 1)),
            (3, "changed"), (-4, "row 4"), (5, "back")])
        assert read(one, table) == wanted
        assert read(one, table, where="c2 = 'changed'") == [(3, "changed")]
        assert read(one, table, low=(RUN, True), high=(RUN + 3, False)) == expected((RUN, RUN + 1), (RUN + 2, RUN + 3))
        await one.commit()
        assert stored(engine, table) == wanted
        assert await engine.tiers.compact(table) + 3 == len(wanted)
        assert stored(engine, table) == wanted

    run(test)


def test_savepoints_take_runs_back(run: Runner, tmp_path: Path) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await loaded(engine, table, RUN + 10)
        one.set_level(1, 2)
        await one.insert(table, rows_from(10_000, 3 * RUN))
        assert await one.delete(table, [("", (1,))]) == 1
        one.rollback_to_level(2)
        assert read(one, table) == expected((0, RUN + 10))
        one.set_level(1, 2)
        one.set_level(2, 3)
        await one.insert(table, rows_from(20_000, 2 * RUN))
        one.set_level(2, 2)  # released: part of the level below
        one.rollback_to_level(2)
        assert read(one, table) == expected((0, RUN + 10))
        await one.insert(table, rows_from(10_000, RUN))
        await one.commit()
        assert stored(engine, table) == expected((0, RUN + 10), (10_000, 10_000 + RUN))
        assert len(files(tmp_path)) == len(engine.tiered[table.id].segments)

    run(test)


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("commits", [True, False])
def test_rows_of_before_an_alter_become_a_run_too(run: Runner, tmp_path: Path, level: int, commits: bool) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = engine.begin(None)
        one.set_level(1, level)
        await one.insert(table, rows_from(0, RUN - 10))
        column = replace(table.columns[1], id=3, name="w", late=True, missing="new")
        altered = await one.alter_table(replace(table, columns=(*table.columns, column)))
        await one.insert(altered, [("", (number, "b", "w")) for number in range(RUN, RUN + 10)])
        assert one._overlay.tables[table.id].runs.rows == RUN
        assert await one.update(altered, [(("", (1,)), {2: "changed"})]) == 1
        old = [(*row, "changed" if row[0] == 1 else "new") for row in expected((0, RUN - 10))]
        wanted = [*old, *[(number, "b", "w") for number in range(RUN, RUN + 10)]]
        assert sorted(read(one, altered)) == wanted
        if commits:
            await one.commit()
            assert sorted(stored(engine, altered)) == wanted
            return
        if level > 1:
            one.rollback_to_level(level)
            assert read(one, table) == []
            await one.insert(table, rows_from(0, 5))
            await one.commit()
        else:
            one.rollback()
        assert stored(engine, table) == expected((0, 5 if level > 1 else 0))
        await until(lambda: not files(tmp_path))

    run(test)


def test_a_cursor_sees_what_was_there_when_it_was_opened(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await loaded(engine, table, RUN // 2)
        before = one.snapshot(1)
        await one.insert(table, rows_from(RUN, 2 * RUN))  # with the first rows in one run
        assert read(one, table, 1) == expected((0, RUN // 2))
        assert one.get(before, table, "", (1,)) is not None
        assert one.get(before, table, "", (RUN,)) is None
        assert len(read(one, table)) == RUN // 2 + 2 * RUN
        one.rollback()

    run(test)


def test_a_rollback_leaves_no_file(run: Runner, tmp_path: Path) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await loaded(engine, table)
        assert files(tmp_path)
        one.rollback()
        assert files(tmp_path) == []
        assert stored(engine, table) == []
        assert len(engine.locks) == 0

    run(test)


def test_a_failed_commit_leaves_no_file(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await loaded(engine, table)

        def full(*args: Any) -> None:
            raise OSError("the disk is full")

        monkeypatch.setattr("kalamdb.txn.tiering.add_segment", full)
        with pytest.raises(OSError, match="full"):
            await one.commit()
        assert files(tmp_path) == []
        assert stored(engine, table) == []
        await put(engine, table, (1, "a"))
        assert stored(engine, table) == [(1, "a")]

    run(test)


def test_a_table_of_the_same_transaction(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        one = engine.begin(None)
        await one.create_namespace("n")
        table = await one.create_table(definition())
        await one.insert(table, rows_from(0, 2 * RUN))
        await one.commit()
        assert stored(engine, table) == expected((0, 2 * RUN))
        await refused("23505", put(engine, table, (5, "again")))

    run(test)


def test_cold_rows_that_were_deleted_come_back(run: Runner) -> None:
    """A tombstone hides the old row only."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, *[(number, "old") for number in range(2 * RUN)])
        await engine.tiers.flush(table)
        one = engine.begin(None)
        assert await one.delete(table, [("", (number,)) for number in range(2 * RUN)]) == 2 * RUN
        await one.commit()
        one = await loaded(engine, table, 2 * RUN)
        await one.commit()
        assert stored(engine, table) == expected((0, 2 * RUN))
        await engine.tiers.flush(table)
        await engine.tiers.compact(table)
        assert stored(engine, table) == expected((0, 2 * RUN))

    run(test)


def test_one_statement_that_deletes_and_inserts_the_same_keys(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, *[(number, "old") for number in range(RUN)])
        one = engine.begin(None)
        await one.delete(table, [("", (number,)) for number in range(RUN)])
        await one.insert(table, rows_from(0, 2 * RUN))
        assert read(one, table) == expected((0, 2 * RUN))
        await one.commit()
        assert stored(engine, table) == expected((0, 2 * RUN))

    run(test)


def test_rows_of_a_run_are_locked_and_no_others(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await loaded(engine, table)
        assert len(engine.locks) < 10  # however many rows there are
        other = engine.begin(None)
        await refused("55P03", other.lock(other.snapshot(), table, [("", (1,))], wait="nowait"))
        assert await other.lock(other.snapshot(), table, [("", (1,)), ("", (-1,))], wait="skip") == [None, None]
        assert await soon(other.insert(table, [("", (-1, "other"))])) == 1
        assert await soon(other.insert(table, rows_from(10_000, 40))) == 40
        waiting = await waiting_for(other.insert(table, [("", (1, "late"))]), other)
        await one.commit()
        await refused("23505", waiting)
        await other.commit()
        assert stored(engine, table) == [(-1, "other"), *expected((0, 4 * RUN), (10_000, 10_040))]
        assert not engine.loading
        assert len(engine.locks) == 0

    run(test)


@pytest.mark.parametrize("end", ["rollback", "savepoint", "fail"])
def test_rows_of_a_run_that_is_taken_back(run: Runner, end: str) -> None:
    """Whoever waits for one goes on."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = engine.begin(None)
        await one.insert(table, rows_from(-1, 1))
        one.set_level(1, 2)
        await one.insert(table, rows_from(0, 4 * RUN))
        other = engine.begin(None)
        waiting = await waiting_for(other.insert(table, [("", (1, "late"))]), other)
        if end == "rollback":
            one.rollback()
        elif end == "savepoint":
            one.rollback_to_level(2)
        else:
            one.fail(final=True)
        assert await soon(waiting) == 1
        assert await soon(other.insert(table, rows_from(2, 20))) == 20
        await other.commit()
        one.rollback()
        assert stored(engine, table) == [(1, "late"), *expected((2, 22))]
        assert not engine.loading
        assert len(engine.locks) == 0

    run(test)


def test_rows_of_a_run_after_one_that_was_taken_back(run: Runner) -> None:
    """Who waited for the first has no part in the second, and is not let off waiting for it."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one, other, third = engine.begin(None), engine.begin(None), engine.begin(None)
        one.set_level(1, 2)
        await one.insert(table, rows_from(0, 4 * RUN))
        waiting = await waiting_for(other.insert(table, [("", (1, "late"))]), other)
        one.rollback_to_level(2)
        assert await soon(waiting) == 1
        assert not any(key[0] == "runs" for key in other.locks)
        await one.insert(table, rows_from(10_000, 4 * RUN))
        late = [await waiting_for(each.insert(table, [("", (10_000 + number, "late"))]), each)
                for number, each in enumerate([other, third])]
        await one.commit()
        for each in late:
            await refused("23505", each)
        await other.commit()
        third.rollback()
        assert stored(engine, table) == [(1, "late"), *expected((10_000, 10_000 + 4 * RUN))]
        assert len(engine.locks) == 0

    run(test)


def test_two_loads_of_the_same_keys(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one, two = engine.begin(None), engine.begin(None)
        await one.insert(table, rows_from(0, 3 * RUN))
        await two.insert(table, rows_from(10_000, 3 * RUN))
        waiting = await waiting_for(two.insert(table, rows_from(RUN, 3 * RUN)), two)
        await refused("40P01", one.insert(table, rows_from(10_000, 3 * RUN)))
        one.rollback()
        assert await soon(waiting) == 3 * RUN
        await two.commit()
        assert stored(engine, table) == expected((RUN, 4 * RUN), (10_000, 10_000 + 3 * RUN))
        assert len(engine.locks) == 0

    run(test)


def test_a_row_waited_for_when_it_goes_to_a_run(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one, other = engine.begin(None), engine.begin(None)
        await one.insert(table, rows_from(0, 2))
        waiting = await waiting_for(other.insert(table, [("", (1, "late"))]), other)
        await one.insert(table, rows_from(2, 4 * RUN))
        assert other.waits_for is not None
        await one.commit()
        await refused("23505", waiting)
        other.rollback()
        assert len(engine.locks) == 0

    run(test)


def test_a_row_whose_file_moves_with_the_commit(run: Runner) -> None:
    """Who asks for it while it is published waits for the commit."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (-1, "cold"))
        await engine.flush(table)
        one, other = await loaded(engine, table), engine.begin(None)
        with held_writer(engine):
            commit = asyncio.create_task(one.commit())
            await until(lambda: engine._writer.waiting == 1)
            waiting = await waiting_for(other.insert(table, [("", (1, "late"))]), other)
        await commit
        await refused("23505", waiting)
        other.rollback()

    run(test)


def test_bulk_rows_of_tenants(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns="id text, v int4", kind="user"))
        one = engine.begin(None)
        rows = [(tenant, (f"k{number}", number)) for number in range(RUN) for tenant in ("b", "a", "é")]
        await one.insert(table, rows)
        assert len(read(one, table, tenant="a")) == RUN
        await one.commit()
        for tenant in ("a", "b", "é"):
            assert sorted(stored(engine, table, tenant=tenant)) == sorted(row for _, row in rows[::3])
        assert stored(engine, table, tenant="c") == []

    run(test)


def test_a_stream_is_kept_in_memory(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(kind="stream", key=()))
        one = engine.begin(None)
        await one.insert(table, [("a", (number, "x")) for number in range(2 * RUN)])
        await one.commit()
        assert len(stored(engine, table)) == 2 * RUN
        with pytest.raises(KalamError, match="no cold tier"):
            await engine.tiers.flush(table)

    run(test)


def test_single_inserts_go_to_runs_too(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = engine.begin(None)
        for tenant, row in rows_from(0, 3 * RUN):
            if not one.insert_nowait(table, tenant, row):
                assert await one.insert(table, [(tenant, row)]) == 1
        assert len(one._overlay.tables[table.id].rows) <= RUN
        assert read(one, table) == expected((0, 3 * RUN))
        await one.commit()
        assert stored(engine, table) == expected((0, 3 * RUN))

    run(test)


async def batches(one: StoreTransaction, table: TableDef, first: int, count: int) -> None:
    """Rows that become parts."""
    for start in range(first, first + count, BATCH):
        rows = [row for _, row in rows_from(start, min(BATCH, first + count - start))]
        assert await one.insert_batch(table, "", batch_of(table, rows))


def test_parts_of_a_savepoint_are_let_go_with_it(run: Runner) -> None:
    """Who waits for a row of theirs need not wait for the end, whatever else the transaction has loaded."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one, other, third = engine.begin(None), engine.begin(None), engine.begin(None)
        await batches(one, table, 0, BATCH)
        one.set_level(1, 2)
        await batches(one, table, 1000, BATCH)
        late = await waiting_for(other.insert(table, [("", (1001, "late"))]), other)
        latest = await waiting_for(third.insert(table, [("", (1, "late"))]), third)
        one.rollback_to_level(2)
        assert await soon(late) == 1
        assert third.waits_for is not None
        await other.commit()
        await one.commit()
        await refused("23505", latest)
        third.rollback()
        assert stored(engine, table) == [*expected((0, BATCH)), (1001, "late")]
        assert len(engine.locks) == 0

    run(test)


@pytest.mark.parametrize("kept", [False, True])
def test_a_savepoint_while_a_run_is_in_the_making(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                  kept: bool) -> None:
    monkeypatch.setattr("kalamdb.txn.bulk.RUN_ROWS", 100 * RUN)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one, other = engine.begin(None), engine.begin(None)
        await batches(one, table, 0, RUN + BATCH)
        runs = one._overlay.tables[table.id].runs
        first = runs.making
        assert first is not None
        one.set_level(1, 2)
        await batches(one, table, 10_000, RUN + BATCH)
        assert [each.segment.rows for each in runs.written] == [RUN + BATCH]
        assert runs.making is not first
        one.set_level(2, 3)
        await batches(one, table, 20_000, BATCH)
        late = await waiting_for(other.insert(table, [("", (20_001, "late"))]), other)
        one.rollback_to_level(3)
        assert await soon(late) == 1
        wanted = [(0, RUN + BATCH), (10_000, 10_000 + RUN + BATCH)]
        assert read(one, table) == expected(*wanted)
        if not kept:
            one.rollback_to_level(2)
            del wanted[1]
            assert read(one, table) == expected(*wanted)
            await until(lambda: len(files(tmp_path)) == 1)
        await batches(one, table, 5000, BATCH)
        await one.commit()
        await other.commit()
        assert stored(engine, table) == sorted([*expected(*wanted, (5000, 5000 + BATCH)), (20_001, "late")])
        assert len(engine.locks) == 0

    run(test)
    assert len(files(tmp_path)) == 1 + kept


def test_rows_whose_keys_others_have_are_looked_at_one_by_one(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (150, "cold"))
        await engine.flush(table)
        await put(engine, table, (50, "hot"))
        one, other = engine.begin(None), engine.begin(None)
        await other.insert(table, [("", (250, "other"))])
        await batches(other, table, 300, BATCH)
        assert await other.lock(other.snapshot(), table, [("", (450,))]) == [None]
        await one.insert(table, [("", (550, "own"))])

        async def load(first: int, count: int) -> bool:
            return await one.insert_batch(table, "", batch_of(table, [row for _, row in rows_from(first, count)]))

        for first in range(0, 600, BATCH):
            assert not await load(first, BATCH)
        assert not await load(-BATCH, 2 * BATCH)
        twice = [row for _, row in [*rows_from(1000, BATCH), *rows_from(1000, 1)]]
        assert not await one.insert_batch(table, "", batch_of(table, twice))
        assert await load(0, 50)
        assert await load(-BATCH, BATCH)
        assert not await load(49, 2)
        await refused("23505", one.insert(table, rows_from(49, 2)))
        one.rollback()
        other.rollback()
        assert len(engine.locks) == 0

    run(test)


def test_nothing_that_must_be_checked_goes_unseen(run: Runner) -> None:
    """NULL in a column that is NOT NULL, or a check."""

    async def test(engine: StoreEngine) -> None:
        strict = await create(engine, definition("strict", optional=False))
        one = engine.begin(None)
        rows: list[Row] = [*[row for _, row in rows_from(0, BATCH)], (BATCH, None)]
        assert not await one.insert_batch(strict, "", batch_of(strict, rows))
        await refused("23502", one.insert(strict, [("", row) for row in rows]))
        one.rollback()
        checked = await create(engine, replace(definition("checked"), checks=(CheckDef("c", "id > 0", True),)))
        one = engine.begin(None)
        assert not await one.insert_batch(checked, "", batch_of(checked, rows[:-1]))
        one.rollback()

    run(test)


def test_an_error_of_the_thread_that_writes(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The load hears of it at the latest at the commit, which then stores nothing."""
    monkeypatch.setattr("kalamdb.txn.bulk.RUN_ROWS", 100 * RUN)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = engine.begin(None)
        await batches(one, table, 0, RUN - BATCH)
        with monkeypatch.context() as patch:
            patch.setattr(engine.storages()[0], "scratch", full_disk(tmp_path))
            await batches(one, table, RUN - BATCH, 2 * BATCH)
            await refused("53100", one.commit())
        assert stored(engine, table) == []
        assert len(engine.locks) == 0

    run(test)


@pytest.mark.parametrize("end", ["cancel", "rollback"])
def test_ended_while_a_run_is_written(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        there, go_on = threading.Event(), threading.Event()
        finish = SegmentWriter.finish

        def slow(self: SegmentWriter) -> Any:
            written = finish(self)
            there.set()
            assert go_on.wait(DEADLINE)
            return written

        monkeypatch.setattr(SegmentWriter, "finish", slow)
        one = engine.begin(None)
        insert = asyncio.create_task(one.insert(table, rows_from(0, 2 * RUN)))
        await until(there.is_set)
        if end == "cancel":
            insert.cancel()
        else:
            one.rollback()
        go_on.set()
        with pytest.raises((asyncio.CancelledError, KalamError)):
            await insert
        one.rollback()
        await until(lambda: files(tmp_path) == [])

    run(test)


def test_a_full_disk(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        (storage,) = engine.storages()
        monkeypatch.setattr(storage, "scratch", full_disk(tmp_path))
        one = engine.begin(None)
        await refused("53100", one.insert(table, rows_from(0, 2 * RUN)))
        one.rollback()
        assert not (tmp_path / "unfinished").is_symlink()

    run(test)


def test_a_cursor_outlives_a_run_that_is_taken_back(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await loaded(engine, table)
        cursor = one.scan(one.snapshot(1), Scan(table, None, every(table)))
        one.set_level(1, 2)
        await one.insert(table, rows_from(RUN * 4, 2 * RUN))
        found = cursor.fetch(10)
        one.rollback_to_level(2)
        assert found + list(chunks(cursor.fetch)) == expected((0, 4 * RUN))
        one.rollback()

    run(test)
