"""Row locks: who waits for whom, in which order, and how waiting ends."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest

from engine.rig import Runner, create, definition, put, read, refused, soon, stored, waiting
from kalamdb.txn.api import Isolation, TableDef
from kalamdb.txn.engine import StoreEngine
from kalamdb.txn.transaction import StoreTransaction


def row(number: int) -> list[tuple[str, tuple[int]]]:
    return [("", (number,))]


async def with_rows(engine: StoreEngine, count: int = 4) -> TableDef:
    table = await create(engine, definition(columns="id int8, n int4"))
    await put(engine, table, *[(number, 0) for number in range(count)])
    return table


async def update(one: StoreTransaction, table: TableDef, number: int, value: int) -> int:
    return await one.update(table, [(("", (number,)), {1: value})])


async def lock(one: StoreTransaction, table: TableDef, number: int, *, share: bool = False,
               wait: Literal["wait", "nowait", "skip"] = "wait", timeout_ms: int = 0) -> Any:
    return (await one.lock(one.snapshot(), table, row(number), share=share, wait=wait, timeout_ms=timeout_ms))[0]


def begin(engine: StoreEngine, count: int, isolation: Isolation = "read committed") -> list[StoreTransaction]:
    return [engine.begin(None, isolation=isolation) for _ in range(count)]


async def done(engine: StoreEngine, *transactions: StoreTransaction) -> None:
    for one in transactions:
        one.rollback()
    await asyncio.sleep(0)
    assert len(engine.locks) == 0
    assert engine.locks.holders() == []


# ---------- waiting ----------
def test_a_writer_waits_and_sees_the_newest_version(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, other = begin(engine, 2)
        assert read(other, table, number=1)[0] == (0, 0)
        await update(one, table, 0, 5)
        task = await waiting(lock(other, table, 0), other)
        seq = await one.commit()
        assert await soon(task) == (0, 5, seq, None)
        assert read(other, table, number=1)[0] == (0, 0)
        assert await update(other, table, 0, 6) == 1
        await other.commit()
        assert stored(engine, table)[0] == (0, 6)
        await done(engine)

    run(test)


def test_fifty_sessions_lose_no_update(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine, 1)

        async def add_one() -> None:
            one = engine.begin(None)
            found = await lock(one, table, 0)
            await asyncio.sleep(0)
            await update(one, table, 0, found[1] + 1)
            await one.commit()

        await soon(asyncio.gather(*[add_one() for _ in range(50)]))
        assert stored(engine, table) == [(0, 50)]
        await done(engine)

    run(test)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.parametrize("change", ["update", "delete", "move", "again"])
def test_what_changed_since_the_snapshot_is_a_conflict(run: Runner, isolation: Isolation, change: str) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        (one,) = begin(engine, 1, isolation)
        assert len(read(one, table)) == 4
        (other,) = begin(engine, 1)
        if change == "update":
            await update(other, table, 0, 1)
        elif change == "move":
            await other.update(table, [(("", (0,)), {0: 9})])
        else:
            await other.delete(table, row(0))
            if change == "again":
                await other.insert(table, [("", (0, 0))])
        await other.commit()
        for attempt in (update(one, table, 0, 2), one.delete(table, row(0)), lock(one, table, 0, share=True)):
            error = await refused("40001", attempt)
            assert error.hint
        assert await update(one, table, 1, 2) == 1
        await done(engine, one)

    run(test)


def test_a_conflict_shows_after_the_wait(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, other, third = begin(engine, 3, "repeatable read")
        for transaction in (one, other, third):
            transaction.snapshot(1)
        await update(one, table, 0, 1)
        await update(one, table, 1, 1)
        loser = await waiting(update(other, table, 0, 2), other)
        winner = await waiting(update(third, table, 1, 2), third)
        one.set_level(1, 2)
        await one.commit()
        await refused("40001", loser)
        await refused("40001", winner)
        other.rollback()
        third.rollback()
        one, other = begin(engine, 2, "repeatable read")
        one.snapshot(1)
        other.snapshot(1)
        await update(one, table, 0, 7)
        task = await waiting(update(other, table, 0, 8), other)
        one.rollback()
        assert await soon(task) == 1
        await done(engine, other)

    run(test)


def test_a_row_that_came_later_is_not_there(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine, 1)
        (one,) = begin(engine, 1, "repeatable read")
        one.snapshot(1)
        await put(engine, table, (7, 0))
        assert await update(one, table, 7, 1) == 0
        assert await one.delete(table, row(7)) == 0
        assert await lock(one, table, 7) is None
        await refused("23505", one.insert(table, [("", (7, 1))]))
        await refused("40001", one.insert(table, [("", (7, 1))], skip_conflicts=True))
        await done(engine, one)

    run(test)


# ---------- share ----------
def test_shares_go_together_and_a_writer_waits_for_all(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, other, writer = begin(engine, 3)
        await lock(one, table, 0, share=True)
        await lock(other, table, 0, share=True)
        task = await waiting(update(writer, table, 0, 1), writer)
        one.rollback()
        await asyncio.sleep(0)
        assert not task.done()
        other.rollback()
        assert await soon(task) == 1
        await done(engine, writer)

    run(test)


def test_a_share_does_not_overtake_a_waiting_writer(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, writer, late = begin(engine, 3)
        await lock(one, table, 0, share=True)
        writing = await waiting(update(writer, table, 0, 1), writer)
        sharing = await waiting(lock(late, table, 0, share=True), late)
        await refused("55P03", lock(engine.begin(None), table, 0, share=True, wait="nowait"))
        await lock(one, table, 0, share=True)  # who holds it already does
        one.rollback()
        assert await soon(writing) == 1
        assert not sharing.done()
        seq = await writer.commit()
        assert await soon(sharing) == (0, 1, seq, None)
        late.rollback()

    run(test)


def test_an_upgrade_goes_before_those_who_wait(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, other, third = begin(engine, 3)
        await lock(one, table, 0, share=True)
        await lock(other, table, 0, share=True)
        behind = await waiting(update(third, table, 0, 3), third)
        upgrade = await waiting(update(one, table, 0, 1), one)
        other.rollback()
        assert await soon(upgrade) == 1
        assert not behind.done()
        await one.commit()
        assert await soon(behind) == 1
        await done(engine, third)

    run(test)


# ---------- fairness ----------
def test_the_queue_is_in_order_of_arrival(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        first = engine.begin(None)
        await update(first, table, 0, 1)
        order: list[int] = []

        async def change(number: int, one: StoreTransaction) -> None:
            await update(one, table, 0, number)
            order.append(number)
            await one.commit()

        tasks = []
        for number in range(20):
            one = engine.begin(None)
            tasks.append(await waiting(change(number, one), one))
        await first.commit()
        latecomer = engine.begin(None)
        tasks.append(asyncio.create_task(change(99, latecomer)))
        await soon(asyncio.gather(*tasks))
        assert order == [*range(20), 99]
        await done(engine)

    run(test)


def test_nobody_overtakes_by_luck(run: Runner) -> None:
    """The lock passes to the first in the queue at once, not to whoever asks before it wakes up."""

    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, second, thief = begin(engine, 3)
        await update(one, table, 0, 1)
        task = await waiting(update(second, table, 0, 2), second)
        one.rollback()
        await refused("55P03", lock(thief, table, 0, wait="nowait"))
        assert thief.insert_nowait(table, "", (50, 0))
        assert await soon(task) == 1
        await done(engine, second, thief)

    run(test)


# ---------- not waiting ----------
def test_nowait_and_skip_locked(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, other = begin(engine, 2)
        await update(one, table, 1, 1)
        error = await refused("55P03", lock(other, table, 1, wait="nowait"))
        assert (error.message, error.table) == ('could not obtain lock on row in relation "t"', "t")
        ids = [("", (number,)) for number in range(4)]
        found = await other.lock(other.snapshot(), table, ids, wait="skip")
        assert [None if part is None else part[0] for part in found] == [0, None, 2, 3]
        assert not one.insert_nowait(table, "", (2, 9))
        await done(engine, one, other)

    run(test)


def test_timeouts(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, other = begin(engine, 2)
        await update(one, table, 0, 1)
        error = await refused("55P03", lock(other, table, 0, timeout_ms=10))
        assert error.message == "canceling statement due to lock timeout"
        mine = engine.begin(None, lock_timeout_ms=10)
        await refused("55P03", update(mine, table, 0, 1))
        mine.rollback()
        assert other.waits_for is None
        await one.commit()
        assert await update(other, table, 0, 3) == 1
        await done(engine, other)

    run(test)
    run(_engine_timeout, lock_timeout_ms=10)


async def _engine_timeout(engine: StoreEngine) -> None:
    table = engine.catalog.by_name["n", "t"]
    one, other = begin(engine, 2)
    await update(one, table, 0, 1)
    await refused("55P03", update(other, table, 0, 1))
    await done(engine, one, other)


# ---------- deadlocks ----------
@pytest.mark.parametrize("parties", [2, 3, 7])
def test_a_circle_is_broken_by_who_closes_it(run: Runner, parties: int) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine, parties)
        circle = begin(engine, parties)
        for number, one in enumerate(circle):
            await update(one, table, number, 1)
        tasks = [await waiting(update(circle[number], table, number + 1, 2), circle[number])
                 for number in range(parties - 1)]
        error = await refused("40P01", update(circle[-1], table, 0, 2))
        assert error.detail is not None
        assert error.detail.splitlines()[0].startswith(f"Transaction {circle[-1].id} waits for transaction ")
        assert len(error.detail.splitlines()) == parties
        assert not any(task.done() for task in tasks)
        circle[-1].rollback()
        for task, one in zip(reversed(tasks), reversed(circle[:-1]), strict=True):
            assert await soon(task) == 1
            await one.commit()
        await done(engine)

    run(test)


def test_two_upgrades_of_one_share(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, other = begin(engine, 2)
        await lock(one, table, 0, share=True)
        await lock(other, table, 0, share=True)
        task = await waiting(update(one, table, 0, 1), one)
        await refused("40P01", update(other, table, 0, 2))
        assert not task.done()
        other.rollback()
        assert await soon(task) == 1
        await done(engine, one)

    run(test)


def test_a_circle_through_the_queue(run: Runner) -> None:
    """A share waits behind a writer that waits: the circle is closed although nobody holds against it."""

    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        holder, writer, late = begin(engine, 3)
        await lock(holder, table, 0, share=True)
        await update(late, table, 1, 1)
        writing = await waiting(update(writer, table, 0, 1), writer)
        sharing = await waiting(lock(late, table, 0, share=True), late)
        await refused("40P01", update(holder, table, 1, 1))
        holder.rollback()
        assert await soon(writing) == 1
        writer.rollback()
        assert await soon(sharing) is not None
        await done(engine, late)

    run(test)


def test_a_long_queue_is_no_deadlock(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one = engine.begin(None)
        await update(one, table, 0, 1)
        waiters = begin(engine, 30)
        tasks = [await waiting(lock(other, table, 0, share=number % 3 == 0), other)
                 for number, other in enumerate(waiters)]
        await update(one, table, 1, 1)
        one.rollback()
        for task, other in zip(tasks, waiters, strict=True):
            await soon(task)
            other.rollback()
        await done(engine)

    run(test)


def test_a_deadlock_between_inserts_of_the_same_keys(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns="id int8, n int4"))
        one, other = begin(engine, 2)
        await one.insert(table, [("", (1, 0))])
        await other.insert(table, [("", (2, 0))])
        task = await waiting(one.insert(table, [("", (2, 0))]), one)
        await refused("40P01", other.insert(table, [("", (1, 0))]))
        other.rollback()
        assert await soon(task) == 1
        await one.commit()
        assert stored(engine, table) == [(1, 0), (2, 0)]
        await done(engine)

    run(test)


# ---------- waiting that ends otherwise ----------
def test_a_cancelled_wait_leaves_the_queue(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, gone, third = begin(engine, 3)
        await lock(one, table, 0, share=True)
        cancelled = await waiting(update(gone, table, 0, 1), gone)
        behind = await waiting(lock(third, table, 0, share=True), third)
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await soon(behind) is not None  # nobody before it wants more than a share any longer
        assert gone.waits_for is None
        await done(engine, one, gone, third)

    run(test)


def test_a_lock_granted_to_who_was_cancelled_is_freed_with_the_transaction(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, gone, third = begin(engine, 3)
        await update(one, table, 0, 1)
        cancelled = await waiting(update(gone, table, 0, 1), gone)
        behind = await waiting(update(third, table, 0, 2), third)
        one.rollback()  # grants it, and before the task runs:
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert not behind.done()
        gone.rollback()
        assert await soon(behind) == 1
        await done(engine, third)

    run(test)


def test_a_transaction_that_ends_while_it_waits(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, gone, third = begin(engine, 3)
        await update(one, table, 0, 1)
        task = await waiting(update(gone, table, 0, 1), gone)
        behind = await waiting(update(third, table, 0, 2), third)
        gone.rollback()
        with pytest.raises(asyncio.CancelledError):
            await task
        one.rollback()
        assert await soon(behind) == 1
        await done(engine, third)

    run(test)


def test_a_transaction_that_ends_when_it_is_granted(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, gone = begin(engine, 2)
        await update(one, table, 0, 1)
        task = await waiting(update(gone, table, 0, 1), gone)
        one.rollback()
        gone.rollback()
        await refused("25P01", task)
        await done(engine)

    run(test)


def test_a_savepoint_gives_its_locks_back(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, other = begin(engine, 2)
        await update(one, table, 0, 1)
        one.set_level(1, 2)
        await update(one, table, 1, 1)
        one.set_level(2, 3)
        await update(one, table, 2, 1)
        kept = await waiting(update(other, table, 0, 9), other)
        third, fourth = begin(engine, 2)
        freed = await waiting(update(third, table, 2, 5), third)
        one.rollback_to_level(3)
        assert await soon(freed) == 1
        await refused("55P03", lock(fourth, table, 1, wait="nowait"))
        one.rollback_to_level(2)
        assert await lock(fourth, table, 1, wait="nowait") is not None
        assert not kept.done()
        await one.commit()
        await soon(kept)
        await done(engine, other, third, fourth)

    run(test)


def test_a_released_savepoint_keeps_its_locks(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, other = begin(engine, 2)
        one.set_level(1, 2)
        await update(one, table, 1, 1)
        one.set_level(1, 1)
        one.set_level(1, 2)
        one.rollback_to_level(2)
        await refused("55P03", lock(other, table, 1, wait="nowait"))
        await done(engine, one, other)

    run(test)


def test_a_failed_block_gives_its_locks_back(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, other = begin(engine, 2)
        await update(one, table, 0, 1)
        task = await waiting(update(other, table, 0, 2), other)
        one.fail()
        await asyncio.sleep(0)
        assert not task.done()
        one.fail(final=True)
        assert await soon(task) == 1
        await refused("25P02", one.commit())
        await done(engine, one, other)

    run(test)


def test_a_failed_commit_frees_its_locks(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await with_rows(engine)
        one, other = begin(engine, 2)
        await update(one, table, 0, 1)
        task = await waiting(update(other, table, 0, 2), other)
        one._overlay.tables[table.id].rows["", 3] = (0, (3, object()), None)  # nothing SQLite can hold
        with pytest.raises(TypeError):
            await one.commit()
        assert await soon(task) == 1
        await other.commit()
        assert stored(engine, table)[0] == (0, 2)
        await done(engine)

    run(test)
