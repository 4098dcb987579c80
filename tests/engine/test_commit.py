"""Commits: grouped, durable, numbered in order, their outcomes known; what the disk refuses harms nobody else."""

from __future__ import annotations

import asyncio
import resource
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import apsw
import pytest

from engine.rig import Runner, create, definition, opened, put, read, refused, soon, stored, until
from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.sql import eager
from kalamdb.txn.api import TableDef
from kalamdb.txn.clock import now_ms, seq_at
from kalamdb.txn.engine import LIGHT_BYTES, LIGHT_ROWS, OUTCOMES_KEPT_MS, StoreEngine, open_engine
from kalamdb.txn.transaction import StoreTransaction


@contextmanager
def held_writer(engine: StoreEngine) -> Iterator[None]:
    """Jobs pile up meanwhile, and are then one group."""
    held, go = threading.Event(), threading.Event()

    def job(_: apsw.Connection) -> None:
        held.set()
        assert go.wait(20)

    engine._writer.submit(job)
    assert held.wait(20)
    try:
        yield
    finally:
        go.set()


async def begun(engine: StoreEngine, table: TableDef, *rows: Row, name: str | None = None) -> StoreTransaction:
    one = engine.begin(None, txn_id=name)
    await one.insert(table, [("", row) for row in rows])
    return one


# ---------- groups ----------
def test_a_group_is_one_commit_of_the_database(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        commits = 0

        def committing() -> bool:
            nonlocal commits
            commits += 1
            return False

        engine._writer._connection.set_commit_hook(committing)
        with held_writer(engine):
            tasks = [asyncio.create_task((await begun(engine, table, (number, "a"))).commit()) for number in range(40)]
            await until(lambda: engine._writer.waiting == 40)
        numbers = [number for number in await soon(asyncio.gather(*tasks)) if number is not None]
        assert commits <= 2
        assert numbers == sorted(set(numbers))
        assert [row[1] for row in stored(engine, table, columns=(0, -1))] == numbers
        engine._writer._connection.set_commit_hook(None)

    run(test)


@pytest.mark.parametrize("error", [ValueError("bad job"), apsw.FullError("full"), apsw.IOError("broken")])
def test_a_job_that_fails_takes_no_other_along(run: Runner, error: Exception) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())

        def bad(connection: apsw.Connection) -> None:
            connection.execute(f"INSERT INTO h_{table.id} VALUES ('', 999, 1, 999, 'half')")
            raise error

        with held_writer(engine):
            good = [asyncio.create_task((await begun(engine, table, (number, "a"))).commit()) for number in range(3)]
            await until(lambda: engine._writer.waiting == 3)
            failing = engine._writer.submit(bad)
            good.append(asyncio.create_task((await begun(engine, table, (3, "a"))).commit()))
            await until(lambda: engine._writer.waiting == 5)
        numbers = [number for number in await soon(asyncio.gather(*good)) if number is not None]
        assert numbers == sorted(set(numbers))
        assert len(numbers) == 4
        with pytest.raises((KalamError, ValueError)) as caught:
            await failing
        if isinstance(error, apsw.Error):
            assert isinstance(caught.value, KalamError)
            assert caught.value.sqlstate == ("53100" if isinstance(error, apsw.FullError) else "58030")
        assert stored(engine, table) == [(number, "a") for number in range(4)]

    run(test)


def test_a_cancelled_commit_happens_all_the_same(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await begun(engine, table, (1, "a"), name="one")
        made = await one.create_table(definition("made"))
        other = engine.begin(None)
        with held_writer(engine):
            task = asyncio.create_task(one.commit())
            await until(lambda: engine._writer.waiting == 1)
            task.cancel()
            await asyncio.sleep(0)
            one.rollback()
            assert not task.done()
            assert await engine.outcome("one") == "in progress"
            assert not other.insert_nowait(table, "", (1, "b"))
        assert await soon(task) is not None
        assert await engine.outcome("one") == "committed"
        assert engine.catalog.by_id[made.id] == made
        await refused("23505", other.insert(table, [("", (1, "b"))]))
        other.rollback()
        assert len(engine.locks) == 0

    run(test)


def test_a_commit_nobody_waits_for_any_more_keeps_its_locks_to_its_end(run: Runner) -> None:
    """As when the task is thrown away before its first step, and the coroutine is closed."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await begun(engine, table, (1, "a"), name="one")
        made = await one.create_table(definition("made"))
        other = engine.begin(None)
        with held_writer(engine):
            commit = one.commit()
            commit.send(None)
            commit.close()
            one.fail(final=True)
            one.rollback()
            assert await engine.outcome("one") == "in progress"
            assert not other.insert_nowait(table, "", (1, "b"))
        await refused("23505", other.insert(table, [("", (1, "b"))]))
        assert await engine.outcome("one") == "committed"
        assert engine.catalog.by_id[made.id] == made
        other.rollback()
        assert len(engine.locks) == 0

    run(test)


def test_commits_without_a_task(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever hears of one finds what follows from it done; of those it is not for, nothing is done."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        assert engine.begin(None).commit_soon() is None
        ddl = engine.begin(None)
        await ddl.create_namespace("other")
        failed = await begun(engine, table, (7, "x"))
        failed.fail()
        ended = await begun(engine, table, (8, "x"))
        ended.rollback()
        assert [each.commit_soon() for each in (ddl, failed, ended)] == [None, None, None]
        failed.rollback()
        await ddl.commit()
        before = engine.rows_written(table.id)
        one = await begun(engine, table, (1, "a"), name="one")
        with held_writer(engine):
            stored_soon = one.commit_soon()
            assert stored_soon is not None
            assert not stored_soon.cancel()
            one.rollback()
            assert await engine.outcome("one") == "in progress"
        heard: list[int] = []
        stored_soon.add_done_callback(
            lambda _: heard.extend([len(engine.locks), engine.rows_written(table.id) - before]))
        assert await soon(stored_soon) > 0
        assert heard == [0, 1]
        assert await engine.outcome("one") == "committed"

    run(test)


def test_commits_without_a_task_that_fail(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one, two = await begun(engine, table, (1, "a"), name="one"), await begun(engine, table, (2, "b"), name="two")

        def full(name: str) -> None:
            if name == "commit.applied":
                raise apsw.FullError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr("kalamdb.faults.reach", full)
            for each in (one, two):
                waits_for = each.commit_soon()
                assert waits_for is not None
                await refused("53100", soon(waits_for))
        assert [await engine.outcome(name) for name in ("one", "two")] == ["aborted", "aborted"]
        assert len(engine.locks) == 0
        await put(engine, table, (1, "b"))

    run(test)


def test_a_fault_in_what_follows_from_a_commit(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not its neighbours'."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        faults: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what["exception"]))
        failing = True

        def follow(name: str) -> None:
            nonlocal failing
            if name == "commit.durable" and failing:
                failing = False
                raise OSError("what follows")

        monkeypatch.setattr("kalamdb.faults.reach", follow)
        with held_writer(engine):
            made = [(await begun(engine, table, (number, "a"))).commit_soon() for number in range(3)]
        assert len({await soon(each) for each in made if each is not None}) == 3
        assert [str(fault) for fault in faults] == ["what follows"]
        assert len(engine.locks) == 0
        assert len(stored(engine, table)) == 3

    run(test)


def test_definitions_that_follow_each_other_at_once(run: Runner) -> None:
    """As soon as a table's lock is free, the next may alter it: what is said of the first is not the second's."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        faults: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what["exception"]))
        one, two, ended = engine.begin(None), engine.begin(None), engine.ended
        following: list[Awaitable[int | None]] = []
        go = threading.Event()

        async def follow() -> int | None:
            current = engine.catalog.by_id[table.id]
            await two.alter_table(replace(current, options={"second": "yes"}))
            return await two.commit()

        def then_follow(transaction: StoreTransaction, *, committed: bool) -> None:
            """The next message comes in the same turn of the loop."""
            ended(transaction, committed=committed)
            if transaction is one:
                engine._writer.submit(lambda _: go.wait(20))
                following.append(cast(Awaitable[int | None], eager.begin(follow())))

        engine.ended = then_follow  # type: ignore[method-assign]
        await one.alter_table(replace(table, options={"first": "yes"}))
        await soon(one.commit())
        assert table.id in engine.changing
        go.set()
        await soon(following[0])
        await asyncio.sleep(0)
        assert (engine.changing, faults) == ({}, [])
        assert engine.catalog.by_id[table.id].options == {"second": "yes"}

    run(test)


def test_the_end_waits_for_commits_under_way(run: Runner) -> None:
    async def test() -> None:
        async with opened(run.directory) as engine:
            table = await create(engine, definition())
            with held_writer(engine):
                task = asyncio.create_task((await begun(engine, table, (1, "a"))).commit())
                await until(lambda: engine._writer.waiting == 1)
                closing = asyncio.create_task(engine.close())
                await asyncio.sleep(0)
            await soon(closing)
            assert await soon(task) is not None
            with pytest.raises(KalamError) as caught:
                engine._writer.submit(lambda _: None)
            assert caught.value.sqlstate == "57P01"
        assert not (run.directory / "hot.db-wal").exists()

    asyncio.run(test())

    async def find(engine: StoreEngine) -> list[Row]:
        return stored(engine, engine.catalog.by_name["n", "t"])

    assert run(find) == [(1, "a")]


# ---------- numbers ----------
def test_numbers_rise_over_restarts_with_the_clock_going_back(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def make(engine: StoreEngine) -> int:
        table = await create(engine, definition())
        return await put(engine, table, (0, "a"))

    numbers = [run(make)]
    for number, offset in enumerate([0, -10**9, 0, 10**9, 0, -10**6], 1):
        monkeypatch.setattr("kalamdb.txn.clock.now_ms", lambda offset=offset: now_ms() + offset)

        async def more(engine: StoreEngine, key: int = number * 10) -> list[int]:
            table = engine.catalog.by_name["n", "t"]
            return [await put(engine, table, (key + step, "a")) for step in range(3)]

        numbers += run(more)
    assert numbers == sorted(set(numbers))

    async def shown(engine: StoreEngine) -> list[int]:
        return [row[0] for row in stored(engine, engine.catalog.by_name["n", "t"], columns=(-1,))]

    assert run(shown) == numbers
    assert all(number > seq_at(now_ms()) for number in numbers[12:])


def test_one_commit_has_one_number(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (0, "old"), (1, "old"))
        one = await begun(engine, table, (2, "new"), (3, "new"))
        await one.update(table, [(("", (1,)), {1: "new"})])
        seq = await one.commit()
        assert [row[0] for row in stored(engine, table, columns=(-1,), low=(1, True))] == [seq] * 3
        none = engine.begin(None)
        assert read(none, table)
        assert await none.commit() is None

    run(test)


# ---------- outcomes ----------
def test_outcomes(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await begun(engine, table, (1, "a"), name="one")
        assert await engine.outcome("one") == "in progress"
        with pytest.raises(KalamError) as caught:
            engine.begin(None, txn_id="one")
        assert caught.value.sqlstate == "25001"
        await one.commit()
        (await begun(engine, table, (2, "b"), name="two")).rollback()
        engine.begin(None, txn_id="left open")
        reader = engine.begin(None, txn_id="reader")
        await reader.commit()
        failed = await begun(engine, table, (3, "c"), name="failed")
        failed.fail()
        failed.rollback()
        states = {name: await engine.outcome(name) for name in ("one", "two", "left open", "reader", "failed", "never")}
        assert states == {"one": "committed", "two": "aborted", "left open": "in progress", "reader": "committed",
                          "failed": "aborted", "never": "aborted"}

    async def again(engine: StoreEngine) -> None:
        engine.begin(None, txn_id="one").rollback()  # nobody has asked for it in this life
        assert [await engine.outcome(name) for name in ("one", "two", "left open", "failed")] == [
            "committed", "aborted", "aborted", "aborted"]
        assert await engine.outcome("one") == "committed"

    run(test)
    run(again)


def test_looking_for_an_outcome_holds_up_nobody(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is kept is looked through: not in the event loop, and once for all who ask the same."""

    async def first(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await (await begun(engine, table, (1, "a"), name="before")).commit()

    async def test(engine: StoreEngine) -> None:
        table = engine.catalog.by_name["n", "t"]
        looking, go, looks = threading.Event(), threading.Event(), 0
        is_kept = engine._is_kept

        def held(txn_id: str) -> bool:
            nonlocal looks
            looks += 1
            looking.set()
            assert go.wait(20)
            return is_kept(txn_id)

        monkeypatch.setattr(engine, "_is_kept", held)
        try:
            never = [asyncio.create_task(engine.outcome("never")) for _ in range(3)]
            before = asyncio.create_task(engine.outcome("before"))
            await until(looking.is_set)
            with pytest.raises(KalamError) as caught:  # what was told to be aborted, or will be, cannot begin
                engine.begin(None, txn_id="never")
            assert caught.value.sqlstate == "25001"
            assert not engine.insert_alone("never", table, "", (2, "b"))
            await put(engine, table, (3, "c"))
            never[0].cancel()  # who waits for it, not the look
            await asyncio.wait([never[0]])
            assert never[0].cancelled()
            assert not any(task.done() for task in (*never[1:], before))
        finally:
            go.set()
        assert await soon(asyncio.gather(*never[1:], before)) == ["aborted", "aborted", "committed"]
        assert looks == 2
        assert stored(engine, table) == [(1, "a"), (3, "c")]
        assert await engine.outcome("before") == "committed"
        assert looks == 2  # known by now
        assert not engine._sought

    run(first)
    run(test)


def test_outcomes_are_kept_for_an_hour_and_not_for_ever(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await (await begun(engine, table, (1, "a"), name="one")).commit()
        monkeypatch.setattr("kalamdb.txn.engine.now_ms", lambda: now_ms() + 3_600_000)
        await engine.purge()
        assert engine.live.query("SELECT txn_id FROM kalam_commits", ()) == [("one",)]
        monkeypatch.setattr("kalamdb.txn.engine.now_ms", lambda: now_ms() + OUTCOMES_KEPT_MS + 1000)
        await engine.purge()
        assert engine.live.query("SELECT txn_id FROM kalam_commits", ()) == []

    run(test)


# ---------- who is alone ----------
def test_a_commit_of_who_is_alone_waits_for_no_thread(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await begun(engine, table, (1, "a"), name="one")
        commit = one.commit(alone=True)
        with pytest.raises(StopIteration) as end:  # it has not waited at all
            commit.send(None)
        assert stored(engine, table, columns=(0, -1)) == [(1, end.value.value)]
        assert await engine.outcome("one") == "committed"
        assert len(engine.locks) == 0
        assert engine.insert_alone("two", table, "", (2, "b"))
        assert await engine.outcome("two") == "committed"
        assert engine.rows_written(table.id) == 2

    async def again(engine: StoreEngine) -> None:
        assert stored(engine, engine.catalog.by_name["n", "t"]) == [(1, "a"), (2, "b")]
        assert engine.live.query("SELECT txn_id FROM kalam_commits ORDER BY seq", ()) == [("one",), ("two",)]

    run(test)
    run(again)


def test_what_a_lone_commit_leaves_to_do_is_done_later(run: Runner) -> None:
    """It is durable, and seen; locks are had until then, and given to who waits for them."""
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await begun(engine, table, (1, "a"), name="one")
        other = engine.begin(None)
        waiting = asyncio.create_task(other.insert(table, [("", (1, "b"))]))
        await until(lambda: other.waits_for is not None)
        later: list[Callable[[], None]] = []
        assert one.commit_now(later.append) is not None
        assert stored(engine, table) == [(1, "a")]
        await asyncio.sleep(0)
        assert not waiting.done()
        for each in later:
            each()
        await refused("23505", waiting)
        assert await engine.outcome("one") == "committed"
        other.rollback()
        assert len(engine.locks) == 0

    run(test)


def test_a_commit_that_is_no_lone_one_is_left_alone(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        nothing = engine.begin(None)
        assert nothing.commit_now(refuse) is None
        assert await nothing.commit() is None
        large = await begun(engine, table, *[(number, "x") for number in range(LIGHT_ROWS + 1)])
        assert large.commit_now(refuse) is None
        assert await large.commit() is not None
        ddl = engine.begin(None)
        await ddl.create_namespace("other")
        assert ddl.commit_now(refuse) is None
        await ddl.commit()
        failed = await begun(engine, table, (1000, "x"))
        failed.fail()
        assert failed.commit_now(refuse) is None
        failed.rollback()
        behind = await begun(engine, table, (1001, "x"))
        with held_writer(engine):
            assert behind.commit_now(refuse) is None
        await behind.commit()
        assert len(stored(engine, table)) == LIGHT_ROWS + 2

    run(test)


def refuse(_: Callable[[], None]) -> None:
    raise AssertionError("nothing is left to do")


def test_a_lone_commit_that_fails_is_taken_back(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = await begun(engine, table, (1, "a"), name="one")

        def full(name: str) -> None:
            if name == "commit.applied":
                raise apsw.FullError("database or disk is full")

        with monkeypatch.context() as patch:
            patch.setattr("kalamdb.faults.reach", full)
            with pytest.raises(KalamError) as raised:
                one.commit_now(refuse)
        assert raised.value.sqlstate == "53100"
        assert await engine.outcome("one") == "aborted"
        assert len(engine.locks) == 0
        assert stored(engine, table) == []
        await put(engine, table, (1, "b"))

    run(test)


def test_a_lone_row_goes_the_long_way_where_anything_is_in_it(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("t", "id int8, v text", optional=False))
        await put(engine, table, (1, "there"))
        assert not engine.insert_alone("a", table, "", (1, "a row is there"))
        assert not engine.insert_alone("a", table, "", (2, None))
        other = await begun(engine, table, (3, "open"))
        assert not engine.insert_alone("a", table, "", (3, "somebody has the key"))
        assert engine.insert_alone("b", table, "", (4, "another key"))
        assert not engine.insert_alone("b", table, "", (5, "the same transaction"))
        ddl = engine.begin(None)
        waits = asyncio.create_task(ddl.lock_table(table))
        await asyncio.sleep(0)
        assert not engine.insert_alone("a", table, "", (6, "somebody waits for the table"))
        await other.commit()
        await waits
        assert not engine.insert_alone("a", table, "", (6, "somebody has the table"))
        altered = await ddl.alter_table(replace(table, columns=definition("t", "id int8, v text").columns))
        await ddl.commit()
        assert not engine.insert_alone("a", table, "", (6, "not its definition any more"))
        with held_writer(engine):
            assert not engine.insert_alone("a", altered, "", (6, "a commit is under way"))
        await until(lambda: engine._writer.prompt)
        assert engine.insert_alone("a", altered, "", (6, "now"))
        assert [row[0] for row in stored(engine, altered)] == [1, 3, 4, 6]

    run(test)


@contextmanager
def threads_that_apply(engine: StoreEngine) -> Iterator[list[bool]]:
    """For each group of jobs that was applied: did the event loop do it?"""
    found: list[bool] = []
    writer, loop = engine._writer, threading.current_thread()
    apply_all = writer._apply_all

    def applied(group: Any, **how: Any) -> Any:
        found.append(threading.current_thread() is loop)
        return apply_all(group, **how)

    writer._apply_all = applied  # type: ignore[method-assign]
    try:
        yield found
    finally:
        writer._apply_all = apply_all  # type: ignore[method-assign]


WIDE = "x" * (LIGHT_BYTES + 1)


@pytest.mark.parametrize(("columns", "rows", "here"), [
    ("id int8, v text", [(1, "a")], True),
    ("id int8, v text", [(1, WIDE[:-1])], True),
    ("id int8, v text", [(1, WIDE)], False),
    ("id int8, v bytea", [(1, WIDE.encode())], False),
    ("id text, v text", [(WIDE, None)], False),
    ("id int8, v text", [(number, WIDE[:LIGHT_BYTES // 4]) for number in range(4)], True),
    ("id int8, v text", [(number, WIDE[:LIGHT_BYTES // 4]) for number in range(5)], False),
    ("id int8, v text", [(number, None) for number in range(LIGHT_ROWS + 1)], False),
])  # fmt: skip
@pytest.mark.parametrize("alone", [True, False])
def test_the_event_loop_stores_little(run: Runner, columns: str, rows: list[Row], here: bool, alone: bool) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=columns))
        if len(rows) == 1 and alone and not here:
            assert not engine.insert_alone("lone", table, "", rows[0])
            assert stored(engine, table) == []
        one = await begun(engine, table, *rows)
        with threads_that_apply(engine) as by_loop:
            await one.commit(alone=alone)
        assert by_loop == [here]
        assert stored(engine, table) == rows

    run(test)


@pytest.mark.parametrize(("rows", "width", "here"), [(1, 10, True), (LIGHT_ROWS, 10, False), (1, LIGHT_BYTES, False)])
def test_many_light_commits_are_not_light(run: Runner, rows: int, width: int, here: bool) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        text = "x" * width
        many = [await begun(engine, table, *[(job * 1000 + row, text) for row in range(rows)]) for job in range(9)]
        with held_writer(engine):
            tasks = [asyncio.create_task(each.commit()) for each in many]
            await until(lambda: engine._writer.waiting == 9)
        with threads_that_apply(engine) as by_loop:
            await soon(asyncio.gather(*tasks))
        assert by_loop == [here]
        assert len(stored(engine, table, columns=(0,))) == 9 * rows

    run(test)


def test_after_a_slow_commit_the_thread_does_them(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        monkeypatch.setattr("kalamdb.store.writer.SLOW", -1.0)
        assert engine.insert_alone("a", table, "", (1, "slow"))
        assert not engine.insert_alone("b", table, "", (2, "not now"))
        one = await begun(engine, table, (2, "b"))
        commit = one.commit(alone=True)
        assert isinstance(commit.send(None), asyncio.Future)
        commit.close()
        await until(lambda: not engine._writer._busy and stored(engine, table)[-1] == (2, "b"))

    run(test)


@pytest.mark.parametrize("alone", [True, False])
def test_the_log_begins_anew_while_commits_go_on(run: Runner, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    """Written back beside them, and the rest between two of them, by a thread that may have to wait for its turn."""
    monkeypatch.setattr("kalamdb.store.hot.LOG_PAGES", 100)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        begun_anew = 0
        for number in range(1500):
            before = engine._writer._pages
            one = await begun(engine, table, (number, "x" * 500))
            await one.commit(alone=alone)
            await asyncio.sleep(0)
            begun_anew += engine._writer._pages < before
            if engine._writer._pages > 500:
                await until(lambda: not engine._writer._keeping)
            assert engine._writer._pages < 1000
        assert begun_anew > 1

    run(test)


def test_the_last_number_is_known_by_its_outcome(run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits that keep an outcome do not keep the clock: it goes on above them though time has gone back, and when the
    outcomes are gone."""

    async def first(engine: StoreEngine) -> int:
        table = await create(engine, definition())
        one = await begun(engine, table, (1, "a"), name="one")
        number = await one.commit()
        assert number is not None
        assert engine.live.query("SELECT value FROM kalam_meta WHERE name = 'last_seq'", ()) < [(number,)]
        shutil.copytree(run.directory, crashed.directory)  # its end would keep the clock
        return number

    async def second(engine: StoreEngine) -> int:
        number = await put(engine, engine.catalog.by_name["n", "t"], (2, "b"))
        await engine.run("DELETE FROM kalam_commits")
        return number

    async def third(engine: StoreEngine) -> int:
        return await put(engine, engine.catalog.by_name["n", "t"], (3, "c"))

    crashed = Runner(tmp_path / "crashed")
    numbers = [run(first)]
    monkeypatch.setattr("kalamdb.txn.clock.now_ms", lambda: 1_600_000_000_000)
    numbers += [crashed(second), crashed(third)]
    assert numbers == sorted(set(numbers))


# ---------- what the disk refuses ----------
@contextmanager
def full_disk(engine: StoreEngine) -> Iterator[None]:
    """SQLite itself finds no room for another page."""
    connection = engine._writer._connection
    pages: Any = connection.execute("PRAGMA page_count").fetchall()[0][0]
    connection.execute(f"PRAGMA max_page_count = {pages + 8}").fetchall()
    try:
        yield
    finally:
        connection.execute("PRAGMA max_page_count = 1000000000").fetchall()


@contextmanager
def files_cannot_be_written(_: StoreEngine) -> Iterator[None]:
    """The operating system refuses to write beyond the first pages of any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("fault", "sqlstate"), [(full_disk, "53100"), (files_cannot_be_written, "58030")])
def test_the_engine_goes_on_after_a_fault(run: Runner, fault: Callable[[StoreEngine], Any], sqlstate: str) -> None:
    wide = "x" * 3000

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (0, "before"))
        big = await begun(engine, table, *[(number, wide) for number in range(10, 900)], name="big")
        made = await big.create_table(definition("made"))
        with fault(engine):
            error = await refused(sqlstate, big.commit())
            assert error.hint
            assert await engine.outcome("big") == "aborted"
            assert stored(engine, table) == [(0, "before")]
            assert made.id not in engine.catalog.by_id
            assert len(engine.locks) == 0
        await put(engine, table, (1, "after"))
        again = await begun(engine, table, *[(number, wide) for number in range(10, 900)])
        await again.create_table(definition("made"))
        await again.commit()
        assert len(stored(engine, table)) == 892

    async def reopened(engine: StoreEngine) -> None:
        assert len(stored(engine, engine.catalog.by_name["n", "t"])) == 892
        assert await engine.outcome("big") == "aborted"

    run(test)
    run(reopened)


def test_a_full_disk_refuses_the_big_and_stores_the_small(run: Runner) -> None:
    """Both are in one group: the big one must not take the others along."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        big = await begun(engine, table, *[(number, "x" * 3000) for number in range(10, 900)])
        small = [await begun(engine, table, (number, "small")) for number in range(3)]
        with full_disk(engine):
            with held_writer(engine):
                tasks = [asyncio.create_task(one.commit()) for one in (small[0], big, *small[1:])]
                await until(lambda: engine._writer.waiting == 4)
            await refused("53100", tasks[1])
            await soon(asyncio.gather(tasks[0], *tasks[2:]))
        assert stored(engine, table) == [(number, "small") for number in range(3)]

    run(test)


def test_a_light_job_that_fails_does_not_take_the_others_along(run: Runner) -> None:
    """The event loop applies the group as one at first; what it did of it must be gone."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        first, last = await begun(engine, table, (1, "first")), await begun(engine, table, (2, "last"))

        def fails(connection: apsw.Connection) -> None:
            connection.execute("CREATE TABLE left_over (id)")
            raise KalamError("22000", "no")

        with held_writer(engine):
            before = asyncio.create_task(first.commit())
            await until(lambda: engine._writer.waiting == 1)
            failing = engine.submit(fails, weight=0)
            after = asyncio.create_task(last.commit())
            await until(lambda: engine._writer.waiting == 3)
        await refused("22000", failing)
        await soon(asyncio.gather(before, after))
        assert stored(engine, table) == [(1, "first"), (2, "last")]
        assert engine.live.query("SELECT name FROM sqlite_schema WHERE name = 'left_over'", ()) == []

    run(test)


def test_readers_without_end_do_not_make_the_log_long(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is always somebody who reads, each for a moment: the log is used from its beginning all the same."""
    monkeypatch.setattr("kalamdb.store.hot.LOG_PAGES", 100)
    monkeypatch.setattr("kalamdb.store.writer.LONG_LOG", 1 << 20)
    monkeypatch.setattr("kalamdb.store.writer.REST", 0.0)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        sizes = []
        done = False

        async def look(after: float) -> None:
            await asyncio.sleep(after)
            while not done:
                snapshot = engine.hot_snapshot()
                snapshot.pin()
                await asyncio.sleep(0.004)
                snapshot.close()

        readers = [asyncio.create_task(look(0.001 * place)) for place in range(4)]
        for number in range(400):
            await put(engine, table, *[(10 * number + place, "x" * 1000) for place in range(10)])
            sizes.append((run.directory / "hot.db-wal").stat().st_size)
            if sizes[-1] > 2 << 20:  # the thread that writes the log back may be late
                await until(lambda: not engine._writer._keeping)
        done = True
        await asyncio.gather(*readers)
        assert sum(before > after for before, after in pairwise(sizes)) > 1  # 8 MB were written

    run(test)


def test_a_directory_that_cannot_be_read(tmp_path: Path) -> None:
    async def open_in(directory: Path) -> None:
        await open_engine(directory)

    error = asyncio.run(refused("58030", open_in(tmp_path / "nowhere")))
    assert "data directory" in error.message
    (tmp_path / "hot.db").write_bytes(b"this is no database, whatever its name says " * 100)
    asyncio.run(refused("58030", open_in(tmp_path)))


def test_data_of_a_later_format(run: Runner) -> None:
    async def nothing(engine: StoreEngine) -> None:
        pass

    run(nothing)
    connection = apsw.Connection(str(run.directory / "hot.db"))
    connection.execute("UPDATE kalam_meta SET value = 99 WHERE name = 'format'")
    connection.close()
    with pytest.raises(KalamError) as caught:
        run(nothing)
    assert caught.value.sqlstate == "58000"
    assert "99" in caught.value.message
