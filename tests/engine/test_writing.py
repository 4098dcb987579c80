"""Writes: uniqueness of keys, keys that change, constraints, streams."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import apsw
import pytest

from engine.rig import Runner, create, definition, every, put, read, refused, soon, stored, waiting
from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.txn.api import CheckDef, TableDef
from kalamdb.txn.clock import now_ms
from kalamdb.txn.engine import StoreEngine


# ---------- uniqueness ----------
def test_a_duplicate_is_worded_as_postgresql_does(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("u", "a text, b int4, c numeric", key=(1, 0), kind="user"))
        await put(engine, table, ("x,y", 1, "1"), tenant="t")
        await put(engine, table, ("x,y", 1, "1"), tenant="s")
        one = engine.begin(None)
        error = await refused("23505", one.insert(table, [("t", ("x,y", 1, "2"))]))
        assert error.message == 'duplicate key value violates unique constraint "u_pkey"'
        assert error.detail == "Key (b, a)=(1, x,y) already exists."
        assert (error.schema, error.table, error.constraint) == ("n", "u", "u_pkey")
        with pytest.raises(KalamError) as caught:
            one.insert_nowait(table, "t", ("x,y", 1, "2"))
        assert caught.value.sqlstate == "23505"
        one.rollback()

    run(test)


@pytest.mark.parametrize(("type_name", "first", "second"), [
    ("numeric", "1.0", "1.00"), ("float8", 0.0, -0.0), ("float8", float("nan"), float("nan")), ("text", "é", "é"),
    ("bytea", b"\0\0", b"\0\0"),
])
def test_equal_values_are_one_key(run: Runner, type_name: str, first: object, second: object) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=f"id {type_name}, v text"))
        await put(engine, table, (first, "stays"))
        one = engine.begin(None)
        await refused("23505", one.insert(table, [("", (second, "new"))]))
        assert await one.insert(table, [("", (second, "new"))], skip_conflicts=True) == 0
        assert await one.update(table, [(("", (second,)), {0: second, 1: "changed"})]) == 1
        await one.commit()
        assert repr(stored(engine, table)) == repr([(second, "changed")])

    run(test)


def test_different_keys_that_look_alike(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns="a bytea, b bytea", key=(0, 1)))
        rows: list[Row] = [(b"", b"\0"), (b"\0", b""), (b"\0\0", b""), (b"", b"\0\0"), (b"\0", b"\0"), (b"\xff", b"")]
        await put(engine, table, *rows)
        assert stored(engine, table) == sorted(rows)

    run(test)


@pytest.mark.parametrize("winner_commits", [True, False])
def test_the_second_insert_of_a_key_waits_for_the_first(run: Runner, winner_commits: bool) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one, other, third = engine.begin(None), engine.begin(None), engine.begin(None)
        await one.insert(table, [("", (1, "one"))])
        assert not other.insert_nowait(table, "", (1, "other"))
        plain = await waiting(other.insert(table, [("", (1, "other"))]), other)
        skipping = await waiting(third.insert(table, [("", (1, "third"))], skip_conflicts=True), third)
        if winner_commits:
            await one.commit()
            await refused("23505", plain)
            other.rollback()
            assert await soon(skipping) == 0
            await third.commit()
            assert stored(engine, table) == [(1, "one")]
        else:
            one.rollback()
            assert await soon(plain) == 1
            other.rollback()
            assert await soon(skipping) == 1
            await third.commit()
            assert stored(engine, table) == [(1, "third")]

    run(test)


def test_one_of_many_inserters_wins_each_key(run: Runner) -> None:
    """In random order within each transaction, so that there are deadlocks too; the losers repeat."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        draw = random.Random(5)
        inserted: list[int] = []

        async def insert(name: str) -> None:
            while True:
                one = engine.begin(None)
                keys = draw.sample(range(12), 4)
                try:
                    mine = []
                    for key in keys:
                        if await one.insert(table, [("", (key, name))], skip_conflicts=True):
                            mine.append(key)
                        await asyncio.sleep(0)
                    await one.commit()
                except KalamError as error:
                    one.rollback()
                    if error.sqlstate != "40P01":
                        raise
                else:
                    inserted.extend(mine)
                    return

        await soon(asyncio.gather(*[insert(f"w{number}") for number in range(25)]))
        assert sorted(inserted) == sorted(set(inserted)) == [row[0] for row in stored(engine, table)]
        assert len(engine.locks) == 0

    run(test)


def test_a_key_is_free_again(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"))
        one = engine.begin(None)
        await one.delete(table, [("", (1,))])
        assert await one.delete(table, [("", (1,))]) == 0
        await one.insert(table, [("", (1, "b"))])
        await refused("23505", one.insert(table, [("", (1, "c"))]))
        await one.commit()
        assert stored(engine, table) == [(1, "b")]

    run(test)


def test_a_bulk_insert_beyond_the_last_key_finds_what_comes_in_between(run: Runner) -> None:
    """Looking keys up is spared above the highest; others commit while the insert gives them a turn."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (10, "first"))
        one = engine.begin(None)
        bulk = asyncio.create_task(one.insert(table, [("", (number, "bulk")) for number in range(100, 100_000)]))
        await asyncio.sleep(0)
        await put(engine, table, (99_990, "between"))
        error = await refused("23505", bulk)
        assert error.detail == "Key (id)=(99990) already exists."
        one.rollback()
        assert len(stored(engine, table)) == 2

    run(test)


# ---------- keys that change ----------
def moves(*pairs: tuple[int, int]) -> list[tuple[tuple[str, tuple[int]], dict[int, int]]]:
    return [(("", (old,)), {0: new}) for old, new in pairs]


def test_keys_move_up_from_the_top(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, *[(number, f"v{number}") for number in range(1, 4)])
        one = engine.begin(None)
        before = read(one, table, number=1)
        assert await one.update(table, moves((3, 4), (2, 3), (1, 2))) == 3
        after = [(2, "v1"), (3, "v2"), (4, "v3")]
        assert read(one, table, number=2) == after
        assert read(one, table, number=1) == before
        await one.commit()
        assert stored(engine, table) == after

    run(test)


def test_a_key_that_is_taken_is_a_duplicate_at_once(run: Runner) -> None:
    """As a key of PostgreSQL that is not deferrable."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"), (2, "b"))
        one = engine.begin(None)
        one.set_level(1, 2)
        error = await refused("23505", one.update(table, moves((1, 2), (2, 3))))
        assert error.detail == "Key (id)=(2) already exists."
        one.rollback_to_level(2)
        assert read(one, table) == [(1, "a"), (2, "b")]
        assert await one.update(table, moves((1, 1), (2, 2))) == 2
        await one.commit()
        assert stored(engine, table) == [(1, "a"), (2, "b")]

    run(test)


def test_keys_swap_by_way_of_a_third(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"), (2, "b"))
        one = engine.begin(None)
        assert await one.update(table, moves((1, 9), (2, 1), (9, 2), (9, 5))) == 3
        await one.commit()
        assert stored(engine, table) == [(1, "b"), (2, "a")]

    run(test)


def test_two_move_to_the_same_key(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"), (2, "b"))
        one, other = engine.begin(None), engine.begin(None)
        await one.update(table, moves((1, 5)))
        task = await waiting(other.update(table, moves((2, 5))), other)
        await one.commit()
        await refused("23505", task)
        other.rollback()
        third = engine.begin(None)
        assert await third.update(table, moves((1, 3))) == 0  # it has moved away
        third.rollback()
        assert stored(engine, table) == [(2, "b"), (5, "a")]

    run(test)


def test_a_tenants_rows_move_within_it(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("u", "id int8, v text", kind="user"))
        await put(engine, table, (1, "t"), tenant="t")
        await put(engine, table, (2, "s"), tenant="s")
        one = engine.begin(None)
        assert await one.update(table, [(("t", (1,)), {0: 2})]) == 1
        assert await one.update(table, [(("x", (2,)), {0: 3})]) == 0
        await one.commit()
        assert stored(engine, table, with_id=True, columns=(1,)) == [("s", (2,), "s"), ("t", (2,), "t")]

    run(test)


# ---------- constraints ----------
def test_not_null(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("q", "id int8, v text, n numeric", optional=False))
        one = engine.begin(None)
        error = await refused("23502", one.insert(table, [("", (1, None, "1.0"))]))
        assert error.message == 'null value in column "v" of relation "q" violates not-null constraint'
        assert error.detail == "Failing row contains (1, null, 1.0)."
        assert (error.schema, error.table, error.column) == ("n", "q", "v")
        with pytest.raises(KalamError):
            one.insert_nowait(table, "", (None, "a", "1"))
        await one.insert(table, [("", (1, "a", "1"))])
        error = await refused("23502", one.update(table, [(("", (1,)), {0: 2, 2: None})]))
        assert error.detail == "Failing row contains (2, a, null)."
        one.rollback()

    run(test)


def test_checks_are_asked_for_every_row(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        asked: list[Row] = []

        def check(table: TableDef, row: Row) -> None:
            asked.append(row)
            if row[1] == "bad":
                raise KalamError("23514", "no")

        engine.check_row = check
        table = await create(engine, replace(definition(), checks=(CheckDef("c", "v <> 'bad'", True),)))
        one = engine.begin(None)
        await one.insert(table, [("", (1, "a"))])
        await refused("23514", one.insert(table, [("", (2, "bad"))]))
        await refused("23514", one.update(table, [(("", (1,)), {1: "bad"})]))
        with pytest.raises(KalamError):
            one.insert_nowait(table, "", (3, "bad"))
        assert asked == [(1, "a"), (2, "bad"), (1, "bad"), (3, "bad")]
        one.rollback()

    run(test)


def test_read_only(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"))
        for late in (False, True):
            one = engine.begin(None, read_only=not late)
            if late:
                await one.insert(table, [("", (9, "x"))])
                one.read_only = True
            for attempt in (one.insert(table, [("", (2, "b"))]), one.update(table, [(("", (1,)), {1: "b"})]),
                            one.delete(table, [("", (1,))]), one.lock(one.snapshot(), table, [("", (1,))])):
                await refused("25006", attempt)
            with pytest.raises(KalamError):
                one.insert_nowait(table, "", (2, "b"))
            assert read(one, table)[0] == (1, "a")
            one.rollback()

    run(test)


def test_nothing_works_after_the_end(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        for commit in (True, False):
            one = engine.begin(None)
            await one.insert(table, [("", (1, "a"))])
            if commit:
                await one.commit()
            else:
                one.rollback()
            one.rollback()
            for attempt in (one.insert(table, [("", (2, "b"))]), one.commit(), one.create_namespace("m")):
                await refused("25P01", attempt)
            with pytest.raises(KalamError):
                one.insert_nowait(table, "", (2, "b"))
            undo = engine.begin(None)
            await undo.delete(table, [("", (1,))])
            await undo.commit()

    run(test)


# ---------- streams ----------
@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the engine's clock."""
    offset = 0.0

    def now() -> int:
        return now_ms() + int(offset * 1000)

    def move(seconds: float) -> None:
        nonlocal offset
        offset += seconds

    monkeypatch.setattr("kalamdb.txn.engine.now_ms", now)
    monkeypatch.setattr("kalamdb.txn.clock.now_ms", now)
    return move


def test_rows_of_a_stream_expire(run: Runner, later: Callable[[float], None]) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("s", kind="stream", options={"ttl_seconds": "100"}))
        await put(engine, table, (1, "old"), tenant="t")
        later(60)
        await put(engine, table, (2, "new"), tenant="t")
        assert stored(engine, table) == [(1, "old"), (2, "new")]
        later(60)
        one = engine.begin(None, isolation="repeatable read")
        assert read(one, table) == [(2, "new")]
        assert one.get(one.snapshot(), table, "t", (1,)) is None
        assert engine.get_newest(table, "t", (1,)) is None
        assert await one.delete(table, [("t", (1,)), ("t", (2,))]) == 1
        assert one.insert_nowait(table, "t", (1, "again"))
        await refused("23505", one.insert(table, [("t", (1, "twice"))]))
        await one.commit()
        assert stored(engine, table) == [(1, "again")]

    run(test)


def test_what_expired_is_purged(run: Runner, later: Callable[[float], None]) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("s", kind="stream", key=(), options={"ttl_seconds": "100"}))
        await put(engine, table, *[(number, "old") for number in range(12_000)], tenant="t")
        other = await create(engine, definition("kept"))
        await put(engine, other, (1, "a"))
        later(60)
        await put(engine, table, (1, "new"), tenant="t")
        reader = engine.begin(None, isolation="repeatable read")
        reader.snapshot(1)
        later(60)
        await engine.purge()
        assert engine.live.query(f"SELECT count(*) FROM h_{table.id}", ()) == [(1,)]
        assert read(reader, table, number=1) == [(1, "new")]
        assert await reader.delete(table, [("t", (1,))]) == 0
        reader.rollback()
        later(100)
        await engine.purge()
        assert engine.live.query(f"SELECT count(*) FROM h_{table.id}", ()) == [(0,)]
        assert stored(engine, other) == [(1, "a")]

    run(test)


def test_an_expired_row_that_was_purged_is_no_conflict(run: Runner, later: Callable[[float], None]) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("s", kind="stream", options={"ttl_seconds": "100"}))
        await put(engine, table, (1, "old"), tenant="t")
        one = engine.begin(None, isolation="repeatable read")
        one.snapshot(1)
        later(101)
        await engine.purge()
        assert await one.delete(table, [("t", (1,))]) == 0
        one.rollback()

    run(test)


def test_a_stream_without_a_key_keeps_the_order_of_insertion(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("s", "v text", kind="stream", key=()))
        one, other = engine.begin(None), engine.begin(None)
        for number in range(3):
            await one.insert(table, [("t", (f"one {number}",)), ("t", ("same",))])
            assert other.insert_nowait(table, "t", ("same",))
        assert [row[0] for row in read(one, table)] == ["one 0", "same", "one 1", "same", "one 2", "same"]
        await other.commit()
        await one.commit()
        rows = stored(engine, table, with_id=True)
        assert [row[2] for row in rows] == ["one 0", "same", "same", "one 1", "same", "same", "one 2", "same", "same"]
        third = engine.begin(None)
        assert third.get(third.snapshot(), table, rows[3][0], rows[3][1])[0] == "one 1"  # type: ignore[index]
        assert await third.delete(table, [(row[0], row[1]) for row in rows if row[2] == "same"]) == 6
        await third.commit()

    async def again(engine: StoreEngine) -> None:
        table = engine.catalog.by_name["n", "s"]
        await put(engine, table, ("last",), tenant="t")
        assert stored(engine, table) == [("one 0",), ("one 1",), ("one 2",), ("last",)]

    run(test)
    run(again)


def test_the_order_of_a_stream_survives_a_clock_that_goes_back(run: Runner, later: Callable[[float], None]) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("s", "v text", kind="stream", key=()))
        await put(engine, table, ("first",), tenant="t")

    async def again(engine: StoreEngine) -> None:
        table = engine.catalog.by_name["n", "s"]
        await put(engine, table, ("second",), tenant="t")
        assert stored(engine, table, columns=every(table)) == [("first",), ("second",)]

    run(test)
    later(-1000)
    run(again)


def test_what_expired_stays_so_when_the_clock_goes_back(run: Runner, later: Callable[[float], None]) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("s", kind="stream", options={"ttl_seconds": "100"}))
        await put(engine, table, (1, "old"), tenant="t")
        later(150)
        assert stored(engine, table) == []
        later(-200)
        assert stored(engine, table) == []
        await put(engine, table, (2, "new"), tenant="t")
        later(200)
        await put(engine, table, (3, "newer"), tenant="t")
        assert stored(engine, table) == [(3, "newer")]

    async def again(engine: StoreEngine) -> None:
        assert stored(engine, engine.catalog.by_name["n", "s"]) == [(3, "newer")]

    run(test)
    later(-200)
    run(again)


def test_a_row_beyond_what_the_store_takes(run: Runner) -> None:
    """It fails its transaction, and no other of the same group of commits."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        connection = engine._writer.free()
        assert connection is not None
        connection.limit(apsw.SQLITE_LIMIT_LENGTH, 100_000)
        large, small = engine.begin(None), engine.begin(None)
        await large.insert(table, [("", (1, "x")), ("", (2, "x" * 200_000))])
        await small.insert(table, [("", (3, "x"))])
        done = await asyncio.gather(large.commit(), small.commit(), return_exceptions=True)
        assert isinstance(done[0], KalamError)
        assert (done[0].sqlstate, done[0].hint) == ("54000", "Nothing of the transaction was stored.")
        assert isinstance(done[1], int)
        assert [row[0] for row in stored(engine, table)] == [3]

    run(test)
