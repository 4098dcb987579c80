"""Transactions that change or delete very many rows: what stays in memory is bounded, and all else is as with few."""

from __future__ import annotations

import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from engine.rig import Runner, batch_of, chunks, create, definition, every, put, read, refused, soon, stored, waiting
from kalamdb.api import Row
from kalamdb.store.cold import GroupCache
from kalamdb.txn.api import RowId, Scan, TableDef
from kalamdb.txn.engine import StoreEngine
from kalamdb.txn.transaction import StoreTransaction

RUN = 50
ROWS = 6 * RUN
KINDS = [("shared", (0,)), ("user", (0,)), ("shared", (1, 0))]
State = dict[int, str]


@pytest.fixture(autouse=True)
def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalamdb.txn.bulk.BULK_ROWS", RUN)
    monkeypatch.setattr("kalamdb.txn.bulk.PART_ROWS", 2)
    monkeypatch.setattr("kalamdb.txn.transaction.TURN", 10)
    monkeypatch.setattr("kalamdb.store.segment.GROUP_ROWS", 32)


class Table:
    """A table of one tenant's rows (id, "key <id>", value), and what should be in it."""

    def __init__(self, engine: StoreEngine, table: TableDef) -> None:
        self.engine = engine
        self.table = table
        self.tenant = "" if table.kind == "shared" else "me"
        self.state: State = {}

    def id(self, number: int) -> RowId:
        return self.tenant, tuple((number, f"key {number}")[place] for place in self.table.key)

    def rows(self, state: State) -> list[Row]:
        return [(number, f"key {number}", state[number]) for number in sorted(state)]

    async def fill(self, tier: str, count: int = ROWS) -> None:
        for first in range(0, count, RUN - 1):
            numbers = range(first, min(count, first + RUN - 1))
            await put(self.engine, self.table, *self.rows(dict.fromkeys(numbers, "old")), tenant=self.tenant)
            if tier == "cold" or (tier == "half" and first < count // 2):
                await self.engine.flush(self.table)
        self.state = dict.fromkeys(range(count), "old")

    async def set(self, one: StoreTransaction, numbers: Any, value: str) -> None:
        there = [number for number in numbers if number in self.state]
        assert await one.update(self.table, [(self.id(number), {2: value}) for number in numbers]) == len(there)
        self.state |= dict.fromkeys(there, value)

    async def delete(self, one: StoreTransaction, numbers: Any) -> None:
        there = [number for number in numbers if number in self.state]
        assert await one.delete(self.table, [self.id(number) for number in numbers]) == len(there)
        for number in there:
            del self.state[number]

    async def insert(self, one: StoreTransaction, numbers: Any, value: str) -> None:
        made = dict.fromkeys(numbers, value)
        await one.insert(self.table, [(self.tenant, row) for row in self.rows(made)])
        self.state |= made

    def read(self, one: StoreTransaction, number: int = 0, **scan: Any) -> list[Row]:
        return sorted(read(one, self.table, number, tenant=self.tenant, **scan))

    def check(self, one: StoreTransaction, state: State | None = None, number: int = 0) -> None:
        """All that can be asked of a transaction says the same."""
        state = self.state if state is None else state
        assert self.read(one, number) == self.rows(state)
        for value in {"old", *state.values()}:
            some = {each: value for each, there in state.items() if there == value}
            assert self.read(one, number, where="c3 = ?", params=(value,)) == self.rows(some)
        if self.table.key == (0,):
            part = {each: there for each, there in state.items() if 40 <= each < 140}
            assert self.read(one, number, low=(40, True), high=(140, False)) == self.rows(part)

    def check_stored(self, seq: int | None = None) -> None:
        assert sorted(stored(self.engine, self.table, tenant=self.tenant)) == self.rows(self.state)


async def table_of(engine: StoreEngine, kind: Any = "shared", key: tuple[int, ...] = (0,)) -> Table:
    return Table(engine, await create(engine, definition("t", "id int8, name text, v text", key=key, kind=kind)))


def in_memory(one: StoreTransaction) -> int:
    """Rows and locks that it keeps one by one."""
    return sum(len(overlay.rows) for overlay in one._overlay.tables.values()) + len(one.locks)


@pytest.mark.parametrize("tier", ["hot", "half", "cold"])
@pytest.mark.parametrize(("kind", "key"), KINDS)
def test_rows_changed_and_deleted_in_bulk(run: Runner, tmp_path: Path, tier: str, kind: Any, key: tuple[int, ...]
                                          ) -> None:
    async def test(engine: StoreEngine) -> None:
        t = await table_of(engine, kind, key)
        await t.fill(tier)
        one = engine.begin(None)
        await t.set(one, range(ROWS), "new")
        assert in_memory(one) < 2 * RUN + 20
        t.check(one)
        await t.delete(one, range(0, ROWS, 2))
        t.check(one)
        await t.insert(one, range(0, ROWS, 4), "back")
        await t.insert(one, range(ROWS, ROWS + 2 * RUN), "more")
        await t.set(one, range(0, ROWS + RUN, 3), "again")
        assert in_memory(one) < 4 * RUN + 20
        t.check(one)
        engine.cold.cache = GroupCache(1)
        for number in (0, 1, 2, 3, ROWS - 1, ROWS + 1, ROWS + 2 * RUN):
            (row,) = await one.lock(one.snapshot(), t.table, [t.id(number)])
            assert (None if row is None else row[2]) == t.state.get(number)
        await refused("23505", one.insert(t.table, [(t.tenant, (1, "key 1", "twice"))]))
        seq = await one.commit()
        for _ in range(2):
            t.check_stored()
            await engine.flush(t.table)
        written = {row[0]: row[1] for row in stored(engine, t.table, tenant=t.tenant, columns=(0, -1))}
        assert {number for number, each in written.items() if each == seq} == set(t.state)
        await engine.compact(t.table)
        t.check_stored()
        assert len(engine.locks) == 0

    run(test)

    async def again(engine: StoreEngine) -> None:
        (table,) = engine.catalog.by_id.values()
        rows = stored(engine, table, tenant="" if kind == "shared" else "me")
        assert len(rows) == ROWS // 2 + ROWS // 4 + 2 * RUN

    run(again)


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_all_rows_deleted(run: Runner, tier: str) -> None:
    async def test(engine: StoreEngine) -> None:
        t = await table_of(engine)
        await t.fill(tier)
        before = engine.begin(None, isolation="repeatable read")
        t.check(before)
        one = engine.begin(None)
        await t.delete(one, range(ROWS))
        t.check(one)
        await one.commit()
        t.check_stored()
        t.check(before, dict.fromkeys(range(ROWS), "old"))
        before.rollback()
        await put(engine, t.table, (1, "key 1", "back"))
        t.state[1] = "back"
        t.check_stored()
        await engine.flush(t.table)
        t.check_stored()

    run(test)


def test_what_is_done_after_it_is_no_part_of_a_snapshot(run: Runner) -> None:
    """Each number reads what was there when it was asked for, whichever run has that."""
    async def test(engine: StoreEngine) -> None:
        t = await table_of(engine)
        await t.fill("half")
        one = engine.begin(None)
        steps: list[Callable[[], Any]] = [
            lambda: t.set(one, range(ROWS), "one"), lambda: t.delete(one, range(0, ROWS, 3)),
            lambda: t.insert(one, range(0, ROWS, 3), "two"), lambda: t.set(one, range(ROWS), "three"),
            lambda: t.delete(one, range(ROWS)),
        ]
        seen: dict[int, State] = {}
        cursors = []
        for number, step in enumerate(steps, 1):
            seen[number] = dict(t.state)
            snapshot = one.snapshot(number)
            cursors.append((one.scan(snapshot, Scan(t.table, "", every(t.table))), seen[number]))
            await step()
        for number, state in seen.items():
            t.check(one, state, number)
            for each in (0, 1, ROWS - 1):
                row = await one._read(one.get, one.snapshot(number), t.table, "", (each,))
                assert (None if row is None else row[2]) == state.get(each)
        for cursor, state in cursors:
            assert list(chunks(cursor.fetch)) == t.rows(state)
            cursor.close()
        t.check(one, {})
        await one.commit()
        t.check_stored()

    run(test)


@pytest.mark.parametrize("loaded", [RUN // 2, 3 * RUN])
def test_rows_of_a_load_changed_in_bulk(run: Runner, loaded: int) -> None:
    """Those of batches that never became a file, too."""
    async def test(engine: StoreEngine) -> None:
        t = await table_of(engine)
        await t.fill("half", 2 * RUN)
        one = engine.begin(None)
        new = dict.fromkeys(range(1000, 1000 + loaded), "loaded")
        assert await one.insert_batch(t.table, "", batch_of(t.table, t.rows(new)))
        t.state |= new
        await t.set(one, [*range(2 * RUN), *range(1000, 1000 + loaded, 2)], "new")
        await t.delete(one, range(1001, 1001 + loaded, 4))
        t.check(one)
        assert await one.insert_batch(t.table, "", batch_of(t.table, t.rows({5000: "a", 5001: "b"})))
        t.state |= {5000: "a", 5001: "b"}
        await one.commit()
        t.check_stored()
        await engine.flush(t.table)
        t.check_stored()

    run(test)


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_savepoints(run: Runner, tmp_path: Path, tier: str) -> None:
    async def test(engine: StoreEngine) -> None:
        t = await table_of(engine)
        await t.fill(tier)
        one, other = engine.begin(None), engine.begin(None)
        await t.set(one, range(ROWS), "one")
        first = dict(t.state)
        one.set_level(1, 2)
        await t.set(one, range(0, ROWS, 2), "two")
        second = dict(t.state)
        one.set_level(2, 3)
        await t.delete(one, range(ROWS))
        await t.insert(one, range(ROWS, ROWS + 2 * RUN), "three")
        t.check(one)
        late = await waiting(other.insert(t.table, [("", (ROWS + 1, "key", "other's"))]), other)
        one.rollback_to_level(3)
        assert await soon(late) == 1
        other.rollback()
        t.state = dict(second)
        t.check(one)
        one.set_level(2, 3)
        await t.delete(one, range(10, ROWS))
        one.set_level(2, 2)  # released
        one.rollback_to_level(2)
        t.state = dict(first)
        t.check(one)
        one.set_level(1, 2)
        await t.delete(one, range(0, ROWS, 2))
        one.set_level(1, 1)
        await one.commit()
        t.check_stored()
        assert len(engine.locks) == 0

    run(test)


@pytest.mark.parametrize("tier", ["hot", "cold"])
@pytest.mark.parametrize("commits", [True, False])
def test_others_wait_for_just_those_rows(run: Runner, tier: str, commits: bool) -> None:
    async def test(engine: StoreEngine) -> None:
        t = await table_of(engine)
        await t.fill(tier)
        one = engine.begin(None)
        old = engine.begin(None, isolation="repeatable read")
        assert len(t.read(old)) == ROWS
        await t.set(one, range(2 * RUN), "new")
        await t.delete(one, range(2 * RUN, 4 * RUN))
        assert in_memory(one) < RUN
        free = engine.begin(None)
        assert await soon(free.update(t.table, [(t.id(5 * RUN), {2: "free"})])) == 1
        assert await soon(free.insert(t.table, [("", (-1, "key", "free"))])) == 1
        free.rollback()
        looking = engine.begin(None)
        ids = [t.id(number) for number in (1, 2 * RUN + 1, 5 * RUN)]
        found = await looking.lock(looking.snapshot(), t.table, ids, wait="skip")
        assert [row is not None for row in found] == [False, False, True]
        for number in (1, 2 * RUN + 1):
            await refused("55P03", looking.lock(looking.snapshot(), t.table, [t.id(number)], wait="nowait"))
            await refused("55P03", looking.lock(looking.snapshot(), t.table, [t.id(number)], timeout_ms=1))
        looking.rollback()
        tasks = []
        works: list[Callable[[StoreTransaction], Awaitable[int]]] = [
            lambda each: each.update(t.table, [(t.id(1), {2: "late"})]),
            lambda each: each.delete(t.table, [t.id(2 * RUN + 1)]),
            lambda each: each.insert(t.table, [("", (2 * RUN + 2, "key", "late"))]),
        ]
        for work in works:
            each = engine.begin(None)
            tasks.append((each, await waiting(work(each), each)))
        if commits:
            await one.commit()
        else:
            one.rollback()
        assert await soon(tasks[0][1]) == 1
        assert await soon(tasks[1][1]) == (0 if commits else 1)
        if commits:
            assert await soon(tasks[2][1]) == 1
            await refused("40001", old.update(t.table, [(t.id(3), {2: "old"})]))
            await refused("40001", old.delete(t.table, [t.id(2 * RUN + 3)]))
        else:
            await refused("23505", soon(tasks[2][1]))
        old.rollback()
        for each, _ in tasks:
            each.rollback()
        assert len(engine.locks) == 0

    run(test)


def test_a_deadlock_over_rows_of_runs(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        t = await table_of(engine)
        await t.fill("half")
        one, other = engine.begin(None), engine.begin(None)
        await t.set(one, range(2 * RUN), "one")
        await t.delete(other, range(2 * RUN, 4 * RUN))
        waits = await waiting(one.delete(t.table, [t.id(3 * RUN)]), one)
        await refused("40P01", other.update(t.table, [(t.id(1), {2: "other"})]))
        other.rollback()
        assert await soon(waits) == 1
        one.rollback()

    run(test)


def test_single_changes_go_to_runs_too(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        t = await table_of(engine)
        await t.fill("hot")
        one = engine.begin(None)
        refusals = 0
        for number in range(ROWS):
            changed = one.change_nowait(t.table, *t.id(number), lambda row: True, lambda row: {2: "new"})
            if changed is None:  # it is time for a run
                refusals += 1
                await t.set(one, [number], "new")
            t.state[number] = "new"
        assert refusals == ROWS // (RUN + 1)
        assert in_memory(one) < 2 * RUN + 20
        t.check(one)
        await one.commit()
        t.check_stored()

    run(test)


def test_keys_that_move(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        t = await table_of(engine)
        await t.fill("half")
        one = engine.begin(None)
        await one.update(t.table, [(t.id(number), {0: number + 1}) for number in reversed(range(ROWS))])
        moved = [(number + 1, f"key {number}", "old") for number in range(ROWS)]
        assert t.read(one) == moved
        await one.commit()
        assert sorted(stored(engine, t.table)) == moved

    run(test)


def test_wide_rows_do_not_wait_until_they_are_many(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalamdb.txn.bulk.BULK_ROWS", 1_000_000)
    monkeypatch.setattr("kalamdb.txn.bulk.BULK_BYTES", 20_000)

    async def test(engine: StoreEngine) -> None:
        t = await table_of(engine)
        await t.fill("hot", 100)
        one = engine.begin(None)
        await t.set(one, range(100), "x" * 1000)
        assert in_memory(one) < 50
        await one.commit()
        t.check_stored()

    run(test)


@pytest.mark.parametrize("verb", ["update", "delete"])
def test_memory_stays_bounded(run: Runner, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr("kalamdb.txn.bulk.BULK_ROWS", 5000)
    monkeypatch.setattr("kalamdb.txn.transaction.TURN", 1000)
    monkeypatch.setattr("kalamdb.store.segment.GROUP_ROWS", 32_768)
    count = 60_000

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = engine.begin(None)
        await one.insert(table, (("", (number, f"row {number}")) for number in range(count)))
        await one.commit()
        one = engine.begin(None)
        tracemalloc.start()
        try:
            for first in range(0, count, 1000):
                if verb == "delete":
                    await one.delete(table, [("", (number,)) for number in range(first, first + 1000)])
                else:
                    await one.update(table, [(("", (number,)), {1: f"new {number}"})
                                             for number in range(first, first + 1000)])
            await one.commit()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 12_000_000  # 60,000 changes in memory are 30 MB
        assert len(stored(engine, table)) == (0 if verb == "delete" else count)

    run(test)
