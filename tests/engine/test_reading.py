"""Snapshots and scans: what a reader sees, how it is stopped, what it gives back."""

from __future__ import annotations

import gc
import math
from concurrent.futures import ThreadPoolExecutor

import apsw
import pytest

from engine.rig import Runner, create, definition, put, read, refused, stored, until
from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.store import hot
from kalamdb.txn.api import Isolation, Scan
from kalamdb.txn.engine import StoreEngine


# ---------- isolation ----------
@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
def test_what_others_commit(run: Runner, isolation: Isolation) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"))
        reader = engine.begin(None, isolation=isolation)
        assert read(reader, table) == [(1, "a")]
        await put(engine, table, (2, "b"))
        fresh = read(reader, table)
        assert fresh == ([(1, "a"), (2, "b")] if isolation == "read committed" else [(1, "a")])
        reader.rollback()

    run(test)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_numbered_snapshot_stays(run: Runner, isolation: Isolation) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"))
        one = engine.begin(None, isolation=isolation)
        first = one.snapshot(7)
        await one.update(table, [(("", (1,)), {1: "mine"})])
        await one.insert(table, [("", (3, "own"))])
        await put(engine, table, (2, "b"))
        assert one.snapshot(7) is first
        assert read(one, table, number=7) == [(1, "a")]
        assert one.get(first, table, "", (3,)) is None
        others = [(2, "b")] if isolation == "read committed" else []
        assert read(one, table, number=8) == [(1, "mine"), *others, (3, "own")]
        await one.update(table, [(("", (1,)), {1: "again"})])
        assert read(one, table, number=8)[0] == (1, "mine")
        one.release(8)
        assert read(one, table, number=8)[0] == (1, "again")
        one.rollback()

    run(test)


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_snapshot_that_read_nothing_yet_stays_over_commits(run: Runner, isolation: Isolation) -> None:
    """It has no read transaction of its own until somebody commits; light and heavy commits, in loop and thread."""
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"), (2, "b"))
        one = engine.begin(None, isolation=isolation)
        late = one.snapshot(1)
        assert len(engine.readers.late) == 1
        alone = engine.begin(None)
        assert alone.change_nowait(table, "", (1,), lambda row: True, lambda row: {1: "changed"})
        await alone.commit(alone=True)
        assert not engine.readers.late
        assert one.get(late, table, "", (1,))[:2] == (1, "a")  # type: ignore[index]
        other = engine.begin(None, isolation="repeatable read")
        before = other.snapshot()
        await put(engine, table, *[(number, "many") for number in range(10, 1000)])
        later = engine.begin(None)
        await later.delete(table, [("", (2,))])
        await later.commit()
        assert [read(each, table, number=1) for each in (one, other)] == [
            [(1, "a"), (2, "b")], [(1, "changed"), (2, "b")]]
        assert other.get(before, table, "", (2,)) is not None
        assert other.get(before, table, "", (500,)) is None
        one.rollback()
        other.rollback()
        assert len(stored(engine, table)) == 991

    run(test)


def test_snapshots_that_are_let_go_leave_nothing_to_settle(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"))
        one = engine.begin(None)
        for number in range(1, 50):
            assert one.get(one.snapshot(number), table, "", (1,)) is not None
            one.release(number)
        gc.collect()
        assert not engine.readers.late
        kept = one.snapshot(50)
        one.rollback()
        assert not engine.readers.late
        with pytest.raises(KalamError, match="has ended"):
            kept.hot.get(engine.layouts.of(table), "", 1)

    run(test)


def test_a_snapshot_that_cannot_be_settled_shows_nothing_else(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"))
        one = engine.begin(None, isolation="repeatable read")
        late = one.snapshot()
        with monkeypatch.context() as patch:
            def no_reader() -> None:
                raise KalamError("58030", "no more files")

            patch.setattr(engine.readers, "take", no_reader)
            await put(engine, table, (2, "b"))
        with pytest.raises(KalamError, match="has ended"):
            one.get(late, table, "", (2,))
        one.rollback()
        assert len(stored(engine, table)) == 2

    run(test)


def test_rows_just_committed_are_read_through_the_connection_that_has_them(run: Runner) -> None:
    """Another one would read their pages from the log again."""
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"))
        asked: list[str] = []
        engine.live.writing = lambda: asked.append("writer") or engine._writer.free()  # type: ignore[func-returns-value]
        assert engine.get_newest(table, "", (1,)) is not None
        assert asked == ["writer"]

    run(test)


def test_every_version_of_an_own_row_stays_for_its_snapshot(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = engine.begin(None)
        await one.insert(table, [("", (1, "v0"))])
        for number in range(1, 30):
            one.snapshot(number)
            await one.update(table, [(("", (1,)), {1: f"v{number}"})])
            await one.update(table, [(("", (1,)), {1: f"v{number}"})])
        assert [read(one, table, number=number) for number in range(1, 30)] == [[(1, f"v{n}")] for n in range(29)]
        await one.delete(table, [("", (1,))])
        assert read(one, table, number=29) == [(1, "v28")]
        assert read(one, table) == []
        one.rollback()

    run(test)


def test_a_scan_shows_what_was_there_when_it_was_opened(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, *[(n, "old") for n in range(5000)])
        one = engine.begin(None)
        cursor = one.scan(one.snapshot(), Scan(table, None, (0, 1)))
        first = cursor.fetch(10)
        await one.update(table, [(("", (n,)), {1: "new"}) for n in range(4990, 5000)])
        await put(engine, table, (6000, "other"))
        rest = cursor.fetch(10_000)
        assert first + rest == [(n, "old") for n in range(5000)]
        assert cursor.fetch(1) == []
        cursor.close()
        one.rollback()

    run(test)


def test_undone_writes_are_nobodys_to_see(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = engine.begin(None)
        await one.insert(table, [("", (1, "kept"))])
        one.set_level(1, 3)
        await one.update(table, [(("", (1,)), {1: "undone"})])
        await one.insert(table, [("", (2, "undone"))])
        assert read(one, table, number=1) == [(1, "undone"), (2, "undone")]
        one.rollback_to_level(2)
        assert read(one, table, number=1) == [(1, "kept")]
        assert one.level == 1
        await one.commit()
        assert stored(engine, table) == [(1, "kept")]

    run(test)


# ---------- what comes out ----------
def test_system_columns_and_ids(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("u", "b text, a int4", key=(1, 0), kind="user"))
        seq = await put(engine, table, ("x", 1), tenant="t")
        one = engine.begin(None)
        await one.insert(table, [("t", ("y", 0)), ("s", ("z", 9))])
        assert read(one, table, columns=(-2, -1, 0), with_id=True) == [
            ("s", (9, "z"), "s", None, "z"), ("t", (0, "y"), "t", None, "y"), ("t", (1, "x"), "t", seq, "x")]
        assert one.get(one.snapshot(), table, "t", (1, "x")) == ("x", 1, seq, "t")
        assert one.get(one.snapshot(), table, "t", (0, "y")) == ("y", 0, None, "t")
        assert read(one, table, where="_seq IS NULL", columns=(0,)) == [("z",), ("y",)]
        assert read(one, table, where="_seq IS NULL AND _userid = ?", params=("t",), columns=(0,)) == [("y",)]
        one.rollback()

    run(test)


@pytest.mark.parametrize("where", [None, "c1 >= 0"])
def test_no_column_wanted_is_an_empty_row_each(run: Runner, where: str | None) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"), (2, "b"))
        assert stored(engine, table, columns=(), where=where) == [(), ()]
        one = engine.begin(None)
        await one.insert(table, [("", (3, "c"))])
        assert read(one, table, columns=(), where=where) == [(), (), ()]
        assert read(one, table, columns=(), with_id=True, where=where) == [("", (1,)), ("", (2,)), ("", (3,))]
        one.rollback()

    run(test)


def test_floats_come_back_exactly(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("f", "id float8, v float4"))
        values = [-math.inf, -1.5, -0.0, 5e-324, 2.0, 1e308, math.inf, math.nan]
        await put(engine, table, *[(value, value) for value in values])
        expected = [repr((value, value)) for value in values]
        assert [repr(row) for row in stored(engine, table)] == expected
        assert [repr(row[2:]) for row in stored(engine, table, with_id=True)] == expected
        one = engine.begin(None)
        row = one.get(one.snapshot(), table, "", (0.0,))
        assert row is not None
        assert math.copysign(1, row[0]) == -1
        error = await refused("23505", one.insert(table, [("", (math.nan, None))]))
        assert error.detail == "Key (id)=(NaN) already exists."
        one.rollback()

    run(test)


def test_a_table_that_is_younger_than_the_snapshot_is_empty(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        await create(engine, definition("other"))
        reader = engine.begin(None, isolation="repeatable read")
        reader.snapshot(1)
        table = await create(engine, definition())
        await put(engine, table, (1, "a"))
        assert read(reader, table, number=1) == []
        assert reader.get(reader.snapshot(1), table, "", (1,)) is None
        reader.rollback()

    run(test)


def test_a_faulty_condition_is_an_error_of_the_scan_alone(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"))
        one = engine.begin(None)
        with pytest.raises(apsw.SQLError):
            read(one, table, number=1, where="no_such_column = 1")
        assert read(one, table, number=1) == [(1, "a")]
        one.rollback()

    run(test)


# ---------- interrupting ----------
ENDLESS = "(WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n) = c1"


def test_an_interrupted_scan_harms_no_other(run: Runner) -> None:
    """Both read the same snapshot; one is stopped in the middle of a search without end."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, *[(n, "v") for n in range(6000)])
        one = engine.begin(None)
        snapshot = one.snapshot(1)
        other = one.scan(snapshot, Scan(table, None, (0,)))
        begun = other.fetch(3000)
        slow = one.scan(snapshot, Scan(table, None, (0,), where=ENDLESS))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(slow.fetch, 10)
            await until(snapshot.hot.reader.lock.locked)
            slow.interrupt()
            with pytest.raises(KalamError) as caught:
                running.result()
        assert caught.value.sqlstate == "57014"
        with pytest.raises(KalamError):
            slow.fetch(1)
        slow.close()
        assert begun + other.fetch(100_000) == [(n,) for n in range(6000)]
        other.close()
        one.rollback()

    run(test)


def test_interrupting_a_merged_scan(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, *[(n, "v") for n in range(6000)])
        one = engine.begin(None)
        await one.insert(table, [("", (-1, "own"))])
        scan = one.scan(one.snapshot(), Scan(table, None, (0,)))
        assert scan.fetch(2) == [(-1,), (0,)]
        scan.interrupt()
        with pytest.raises(KalamError):
            scan.fetch(1)
        scan.close()
        assert len(read(one, table)) == 6001
        one.rollback()

    run(test)


def test_a_scan_whose_transaction_has_ended_reads_nobody_elses_snapshot(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, *[(n, "v") for n in range(6000)])
        for begun in (False, True):
            one = engine.begin(None)
            scan = one.scan(one.snapshot(1), Scan(table, None, (0,)))
            if begun:
                scan.fetch(1)
            one.rollback()
            other = engine.begin(None)
            assert len(read(other, table, number=1)) == 6000
            with pytest.raises(KalamError) as caught:
                scan.fetch(10_000)
            assert caught.value.sqlstate == "34000"
            scan.close()
            assert len(read(other, table, number=1)) == 6000
            other.rollback()

    run(test)


# ---------- the pool ----------
def test_connections_do_not_grow(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand statements, failing ones among them, without help from the garbage collector."""
    made: list[hot.Reader] = []

    class Counted(hot.Reader):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(hot, "Reader", Counted)

    async def statement(engine: StoreEngine, number: int) -> None:
        table = engine.catalog.by_name["n", "t"]
        one = engine.begin(None, isolation="repeatable read" if number % 2 else "read committed")
        try:
            assert read(one, table, number=number % 3, limit=1) == [(1, "a")]
            if number % 5 == 0:
                await one.insert(table, [("", (1, "b"))])
            if number % 7 == 0:
                read(one, table, number=1, where="nonsense")
            one.get(one.snapshot(), table, "", (1,))
        except (KalamError, apsw.SQLError):
            one.fail()
        one.rollback()

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "a"))
        gc.collect()
        gc.disable()
        try:
            for number in range(10_000):
                await statement(engine, number)
        finally:
            gc.enable()
        assert len(made) <= 4

    run(test)


def test_many_snapshots_at_once_leave_a_bounded_pool(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        many = [engine.begin(None) for _ in range(hot.POOL + 20)]
        for one in many:
            assert read(one, table, number=1) == []
        for one in many:
            one.rollback()
        assert len(engine.readers._idle) == hot.POOL

    run(test)


@pytest.mark.parametrize("broken", ["open", "begin"])
def test_a_snapshot_that_cannot_begin_is_nobody_that_reads(
    run: Runner, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """Files that nobody reads any more are deleted after it, too."""

    class Broken:
        def execute(self, text: str) -> None:
            raise apsw.IOError("disk I/O error")

        def close(self, force: bool) -> None:
            pass

    class Failing:
        connection = Broken()

        def __init__(self, path: object) -> None:
            if broken == "open":
                raise apsw.CantOpenError("unable to open database file")

        def end(self) -> None:
            raise apsw.IOError("disk I/O error")

    async def test(engine: StoreEngine) -> None:
        before = set(engine.readers._entered)
        with monkeypatch.context() as patched:
            patched.setattr(hot, "Reader", Failing)
            engine.readers._idle.clear()
            with pytest.raises((KalamError, apsw.Error)):
                hot.HotSnapshot(engine.readers)
            assert not engine.readers._idle
        assert set(engine.readers._entered) == before
        table = await create(engine, definition())
        assert read(engine.begin(None), table, number=1) == []

    run(test)


def test_the_log_is_cut_while_readers_come_and_go(run: Runner) -> None:
    """A snapshot that is over holds no instant: the write-ahead log does not grow for ever."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        rows: list[Row] = [(n, "x" * 500) for n in range(4000)]
        for _ in range(6):
            one = engine.begin(None)
            read(one, table, number=1, limit=1)
            await one.insert(table, [("", row) for row in rows])
            await one.commit()
            again = engine.begin(None)
            await again.delete(table, [("", (row[0],)) for row in rows])
            await again.commit()
            await until(lambda: not engine._writer._keeping)  # the thread that writes the log back may be late
        log = run.directory / "hot.db-wal"
        assert log.stat().st_size < 40 << 20

    run(test)
