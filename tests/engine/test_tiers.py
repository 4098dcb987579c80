"""Flush and compaction beside everything else: readers, writers, faults, cancellation, the end."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.rig import DEADLINE, Runner, create, definition, opened, put, read, refused, stored, until
from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.store.cold import GroupCache
from kalamdb.txn.api import NotInMemory, Scan, TableDef
from kalamdb.txn.engine import StoreEngine

ROWS = [(number, f"row {number}") for number in range(300)]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalamdb.store.segment.GROUP_ROWS", 16)
    monkeypatch.setattr("kalamdb.txn.tiering.CHUNK_ROWS", 10)
    monkeypatch.setattr("kalamdb.txn.tiers.CLEAN_ROWS", 20)
    monkeypatch.setattr("kalamdb.txn.tiers.LOOK_EVERY", 3600)


async def filled(engine: StoreEngine, name: str = "t", **options: Any) -> TableDef:
    table = await create(engine, definition(name, **options))
    await put(engine, table, *ROWS)
    return table


def segment_files(directory: Path) -> list[Path]:
    return sorted(path for path in (directory / "segments").rglob("*") if path.is_file())


async def get(engine: StoreEngine, table: TableDef, key: Any) -> Row | None:
    one = engine.begin(None)
    try:
        while True:
            try:
                return one.get(one.snapshot(), table, "", (key,))
            except NotInMemory as missing:
                await engine.load(missing)
    finally:
        one.rollback()


# ---------- files that are not as they should be ----------
def _flip(path: Path, start: int = 120) -> None:
    raw = bytearray(path.read_bytes())
    raw[start : start + 100] = bytes(byte ^ 0xFF for byte in raw[start : start + 100])
    path.write_bytes(raw)


DAMAGE: list[tuple[str, Callable[[Path], Any]]] = [
    ("XX001", _flip), ("XX001", lambda path: path.write_bytes(path.read_bytes()[:300])),
    ("XX001", lambda path: path.write_bytes(b"")), ("58P01", Path.unlink),
]


@pytest.mark.parametrize(("sqlstate", "damage"), DAMAGE, ids=["flipped bits", "cut", "empty", "missing"])
def test_a_damaged_segment(run: Runner, sqlstate: str, damage: Callable[[Path], Any]) -> None:
    """Named in the error; the rest works on; mended, it is read again without a restart."""

    async def write(engine: StoreEngine) -> None:
        table, other = await filled(engine), await filled(engine, "other")
        assert await engine.flush(table) == await engine.flush(other) == len(ROWS)
        await put(engine, table, (1000, "hot"))

    run(write)

    async def look(engine: StoreEngine) -> None:
        table, other = (engine.catalog.by_name["n", name] for name in ("t", "other"))
        (path,) = [path for path in segment_files(run.directory) if path.parent.name == str(table.id)]
        sound = path.read_bytes()
        path.rename(path.with_suffix(".copy"))  # whoever has it open reads the old one
        path.write_bytes(sound)
        damage(path)
        for where in (None, "c2 = 'x'"):
            with pytest.raises(KalamError) as caught:
                stored(engine, table, where=where)
            assert (caught.value.sqlstate, path.name in caught.value.message) == (sqlstate, True)
        error = await refused(sqlstate, get(engine, table, 1))
        assert path.name in error.message
        assert await get(engine, table, 1000) is not None
        await refused(sqlstate, _update_all(engine, table))
        assert stored(engine, other) == ROWS
        await put(engine, other, (1001, "goes on"))
        path.write_bytes(sound)
        path.with_suffix(".copy").unlink()
        assert stored(engine, table) == [*ROWS, (1000, "hot")]
        assert await get(engine, table, 1) is not None
        await _update_all(engine, table)
        assert await engine.flush(table) == len(ROWS) + 1

    run(look)


def test_a_file_that_is_cut_while_it_is_open(run: Runner) -> None:
    """The process that reads it lives."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        await engine.flush(table)
        assert stored(engine, table) == ROWS
        (path,) = segment_files(run.directory)
        sound = path.read_bytes()
        os.truncate(path, 0)
        engine.cold.cache = GroupCache(1)  # nothing of it is in memory
        with pytest.raises(KalamError) as caught:
            stored(engine, table)
        assert (caught.value.sqlstate, path.name in caught.value.message) == ("XX001", True)
        path.write_bytes(sound)
        assert stored(engine, table) == ROWS

    run(test)


@pytest.mark.parametrize("wide", [False, True])
def test_a_scan_takes_its_share_of_the_cache(run: Runner, monkeypatch: pytest.MonkeyPatch, wide: bool) -> None:
    """However much larger its values are than it thought, and however often it comes."""
    monkeypatch.setattr("kalamdb.store.segment.GROUP_ROWS", 10)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        rows = [(number, "x" * (1000 if wide else 1)) for number in range(200)]
        await put(engine, table, *rows)
        await engine.flush(table)
        cache = engine.cold.cache = GroupCache(100_000)
        for _ in range(8):
            assert stored(engine, table) == rows
        assert 0 < cache.nbytes <= 25_000
        if not wide:
            kept = {key[1] for key in cache._groups}
            assert kept == set(range(20)), "all of it"

    run(test)


def test_a_flush_that_finds_damage(run: Runner) -> None:
    """It goes on once the file was replaced by a sound one, without a restart."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        await engine.flush(table)
        await changed(engine, table, 7)
        (path,) = segment_files(run.directory)
        copy = path.with_suffix(".copy")
        copy.write_bytes(path.read_bytes())
        _flip(path, 20)  # keys
        await refused("XX001", engine.flush(table))
        copy.replace(path)
        assert await engine.flush(table) == 1
        assert len(stored(engine, table)) == len(ROWS)

    run(test)


async def _update_all(engine: StoreEngine, table: TableDef) -> None:
    one = engine.begin(None)
    try:
        await one.update(table, [(("", (number,)), {1: "x"}) for number, _ in ROWS])
        await one.commit()
    finally:
        one.rollback()


# ---------- storages that fail ----------
@pytest.mark.parametrize("step", ["scratch", "put"])
def test_a_storage_that_fails(run: Runner, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        (storage,) = engine.storages()

        def fail(*args: Any) -> None:
            raise KalamError("53100", "no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(storage, step, fail)
            await refused("53100", engine.flush(table))
        assert stored(engine, table) == ROWS
        assert segment_files(run.directory) == []
        assert [(job.status, "no space" in job.detail) for job in engine.jobs()] == [("failed", True)]
        assert await engine.flush(table) == len(ROWS)
        assert stored(engine, table) == ROWS

    run(test)


@pytest.mark.parametrize("point", ["segment.written", "segment.put", "flush.publish"])
def test_an_error_at_any_step(run: Runner, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)

        def reach(name: str) -> None:
            if name == point:
                raise OSError(errno.ENOSPC, "no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("kalamdb.faults.reach", reach)
            with pytest.raises((OSError, KalamError)):
                await engine.flush(table)
        assert stored(engine, table) == ROWS
        assert segment_files(run.directory) == []
        assert await engine.flush(table) == len(ROWS)
        assert stored(engine, table) == ROWS
        assert len(segment_files(run.directory)) == 1

    run(test)


def full_disk(directory: Path) -> Callable[[], Path]:
    """Scratch paths on a device that takes nothing."""

    def scratch() -> Path:
        path = directory / "unfinished"
        path.symlink_to("/dev/full")
        return path

    return scratch


def test_a_full_disk(run: Runner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Told as such, and nothing lies about; afterwards it goes on by itself, also in the background."""
    monkeypatch.setattr("kalamdb.txn.tiers.LOOK_EVERY", 0.001)
    monkeypatch.setattr("kalamdb.txn.tiers.REST_MS", 0)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(options={"flush_policy": "rows:300"}))
        (storage,) = engine.storages()
        with monkeypatch.context() as patch:
            patch.setattr(storage, "scratch", full_disk(tmp_path))
            await put(engine, table, *ROWS)
            await until(lambda: len([job for job in engine.jobs() if job.status == "failed"]) > 1)
            error = await refused("53100", engine.flush(table))
            assert "no space left on device" in error.message
            assert "storage \"local\"" in error.message
            assert not (tmp_path / "unfinished").is_symlink()
        await until(lambda: engine.segments() != [])
        assert stored(engine, table) == ROWS

    run(test)


def test_files_of_a_storage_that_is_away(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their removal waits for it; that of others does not."""

    async def test(engine: StoreEngine) -> None:
        tables = [await filled(engine, name) for name in ("one", "two")]
        for table in tables:
            await engine.flush(table)
            await put(engine, table, (1000, "new"))
            await engine.flush(table)
            await engine.compact(table)
        (storage,) = engine.storages()
        delete = storage.delete

        def away(name: str) -> None:
            if name.startswith(f"{tables[0].id}/"):
                raise KalamError("58030", "the service is away")
            delete(name)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "delete", away)
            await engine.tiers.sweep()
            assert len(segment_files(run.directory)) == 4
        await engine.tiers.sweep()
        assert len(segment_files(run.directory)) == 2
        assert engine.live.query("SELECT * FROM kalam_removed", ()) == []

    run(test)


# ---------- beside readers and writers ----------
async def moving(engine: StoreEngine, table: TableDef, stop: asyncio.Event) -> int:
    turns = 0
    while not stop.is_set():
        turns += 1
        await engine.flush(table)
        if turns % 3 == 0:
            await engine.compact(table)
            await engine.tiers.sweep()
        await asyncio.sleep(0)
    return turns


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_no_lost_update(run: Runner, isolation: Any) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns="id int8, n int8"))
        await put(engine, table, *[(number, 0) for number in range(5)])

        async def increment(key: int) -> None:
            one = engine.begin(None, isolation=isolation)
            try:
                row = (await one.lock(one.snapshot(1), table, [("", (key,))]))[0]
                assert row is not None
                await one.update(table, [(("", (key,)), {1: row[1] + 1})])
                await one.commit()
            finally:
                one.rollback()

        async def session(number: int) -> None:
            for turn in range(20):
                done = False
                while not done:
                    try:
                        await increment((number + turn) % 5)
                        done = True
                    except KalamError as error:
                        if error.sqlstate != "40001":
                            raise

        stop = asyncio.Event()
        mover = asyncio.create_task(moving(engine, table, stop))
        await asyncio.gather(*[session(number) for number in range(50)])
        stop.set()
        assert await mover > 3
        assert stored(engine, table) == [(number, 200) for number in range(5)]

    run(test)


def test_snapshots_and_cursors_stay_as_they_were(run: Runner) -> None:
    """Whatever moves, and however often, while they are open."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        old: list[tuple[Any, list[Row], Any]] = []
        expected = list(ROWS)
        for turn in range(12):
            one = engine.begin(None, isolation="repeatable read")
            cursor = one.scan(one.snapshot(1), Scan(table, None, (0, 1)))
            old.append((one, list(expected), (cursor, cursor.fetch(7))))
            two = engine.begin(None)
            await two.update(table, [(("", (turn * 10,)), {1: f"turn {turn}"})])
            await two.delete(table, [("", (turn * 10 + 1,))])
            await two.insert(table, [("", (1000 + turn, "new"))])
            await two.commit()
            expected = sorted(
                [row if row[0] != turn * 10 else (row[0], f"turn {turn}") for row in expected
                 if row[0] != turn * 10 + 1] + [(1000 + turn, "new")])
            await engine.flush(table)
            if turn % 3 == 2:
                await engine.compact(table)
                await engine.tiers.sweep()
            for each, rows, _ in old:
                assert read(each, table, 1) == rows
            assert stored(engine, table) == expected
        for each, rows, (cursor, first) in old:
            rest = []
            while part := cursor.fetch(50):
                rest += part
            assert first + rest == rows
            cursor.close()
            each.rollback()
        del each, cursor, old
        await engine.tiers.sweep()
        assert len(segment_files(run.directory)) == len(engine.segments())

    run(test)


def test_writers_go_on_during_a_flush(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed while a flush runs is neither lost nor brought back by it."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        reached, go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def reach(name: str) -> None:
            if name == "segment.put":
                loop.call_soon_threadsafe(reached.set)
                assert go_on.wait(DEADLINE)

        monkeypatch.setattr("kalamdb.faults.reach", reach)
        flush = asyncio.create_task(engine.flush(table))
        await reached.wait()
        two = engine.begin(None)
        await two.update(table, [(("", (5,)), {1: "changed"}), (("", (6,)), {0: -6})])
        await two.delete(table, [("", (7,)), ("", (8,))])
        await two.insert(table, [("", (8, "again")), ("", (5000, "new"))])
        await two.commit()
        wanted = sorted([row for row in ROWS if row[0] not in (5, 6, 7, 8)]
                        + [(5, "changed"), (-6, "row 6"), (8, "again"), (5000, "new")])
        assert stored(engine, table) == wanted
        go_on.set()
        assert await flush == len(ROWS)
        assert stored(engine, table) == wanted
        await refused("23505", put(engine, table, (9, "twice")))
        await put(engine, table, (7, "back"))
        await engine.flush(table)
        await engine.compact(table)
        assert stored(engine, table) == sorted([*wanted, (7, "back")])

    run(test)


# ---------- ends ----------
def held(monkeypatch: pytest.MonkeyPatch, point: str) -> tuple[threading.Event, threading.Event]:
    """The first to reach the point waits there: (somebody is there, let it go)."""
    there, go_on = threading.Event(), threading.Event()

    def reach(name: str) -> None:
        if name == point and not there.is_set():
            there.set()
            assert go_on.wait(DEADLINE)

    monkeypatch.setattr("kalamdb.faults.reach", reach)
    return there, go_on


def test_cancelled(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalamdb.txn.tiering.SEGMENT_ROWS", 50)

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        there, go_on = held(monkeypatch, "segment.put")
        flush = asyncio.create_task(engine.flush(table))
        await until(there.is_set)
        (job,) = engine.jobs()
        assert (job.status, job.kind, job.table) == ("running", "flush", "t")
        assert 0 < job.progress < 1
        engine.cancel_job(job.id)
        go_on.set()
        await refused("57014", flush)
        assert job.status == "cancelled"
        assert segment_files(run.directory) == []
        assert stored(engine, table) == ROWS
        with pytest.raises(KalamError, match="has ended"):
            engine.cancel_job(job.id)

    run(test)


def test_a_cancelled_task_cancels_its_job(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalamdb.txn.tiering.SEGMENT_ROWS", 50)

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        there, go_on = held(monkeypatch, "segment.put")
        flush = asyncio.create_task(engine.flush(table))
        await until(there.is_set)
        flush.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await flush
        assert engine.jobs()[-1].status == "cancelled"
        assert segment_files(run.directory) == []
        assert await engine.flush(table) == len(ROWS)

    run(test)


@pytest.mark.parametrize("kind", ["flush", "compaction"])
def test_cancelled_while_it_is_published(run: Runner, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Too late: it is done, and the files of its commit stay."""
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        if kind == "compaction":
            await engine.flush(table)
            await put(engine, table, (1000, "new"))
            await engine.flush(table)
        wanted = stored(engine, table)
        there, go_on = held(monkeypatch, f"{kind}.publish")
        task = asyncio.create_task(engine.flush(table) if kind == "flush" else engine.compact(table))
        await until(there.is_set)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stored(engine, table) == wanted
        assert (engine.jobs()[-1].kind, engine.jobs()[-1].status, engine.jobs()[-1].progress) == (kind, "done", 1)
        await engine.tiers.sweep()
        assert len(segment_files(run.directory)) == len(engine.segments()) == 1

    run(test)

    async def after_a_restart(engine: StoreEngine) -> None:
        (table,) = engine.catalog.by_id.values()
        assert len(stored(engine, table)) == len(ROWS) + (kind == "compaction")

    run(after_a_restart)


def test_cancelled_while_its_publication_fails(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        there, go_on = threading.Event(), threading.Event()

        def reach(name: str) -> None:
            if name == "flush.publish":
                there.set()
                assert go_on.wait(DEADLINE)
                raise OSError(errno.ENOSPC, "no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("kalamdb.faults.reach", reach)
            flush = asyncio.create_task(engine.flush(table))
            await until(there.is_set)
            flush.cancel()
            await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await flush
        assert engine.jobs()[-1].status == "cancelled"
        assert segment_files(run.directory) == []
        assert stored(engine, table) == ROWS
        assert await engine.flush(table) == len(ROWS)

    run(test)


def test_cancelled_twice(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread's work ends before anybody else may touch the table."""
    monkeypatch.setattr("kalamdb.txn.tiering.SEGMENT_ROWS", 50)

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        there, go_on = held(monkeypatch, "segment.put")
        flush = asyncio.create_task(engine.flush(table))
        await until(there.is_set)
        for _ in range(3):
            flush.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert not flush.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await flush
        assert segment_files(run.directory) == []
        assert await engine.flush(table) == len(ROWS)

    run(test)


def test_the_table_is_dropped_meanwhile(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        there, go_on = held(monkeypatch, "segment.put")
        flush = asyncio.create_task(engine.flush(table))
        await until(there.is_set)
        one = engine.begin(None)
        await one.drop_table(table)
        await one.commit()
        go_on.set()
        await refused("42P01", flush)
        assert segment_files(run.directory) == []

    run(test)


def test_segments_of_a_dropped_table_go(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        await engine.flush(table)
        one = engine.begin(None)
        await one.drop_table(table)
        await one.commit()
        await engine.purge()
        await engine.tiers.sweep()
        assert segment_files(run.directory) == []
        assert engine.live.query("SELECT count(*) FROM kalam_segments", ()) == [(0,)]
        again = await filled(engine)
        assert stored(engine, again) == ROWS

    run(test, drop_grace_hours=0)


def test_the_engine_closes_during_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalamdb.txn.tiering.SEGMENT_ROWS", 50)

    async def test() -> None:
        async with opened(tmp_path) as engine:
            table = await filled(engine)
            there, go_on = held(monkeypatch, "segment.put")
            flush = asyncio.create_task(engine.flush(table))
            await until(there.is_set)
            threading.Timer(0.05, go_on.set).start()
        await refused("57014", flush)
        assert segment_files(tmp_path) == []
        async with opened(tmp_path) as engine:
            assert stored(engine, engine.catalog.by_name["n", "t"]) == ROWS

    asyncio.run(test())


# ---------- by itself ----------
def test_a_disk_that_is_full_at_the_start(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash left cannot be cleared away; the rest of the background work goes on."""
    async def leave(engine: StoreEngine) -> None:
        table = await filled(engine)
        await engine.run("INSERT INTO kalam_removed VALUES (?, ?, 1)", "local", f"{table.id}/{'0' * 32}.parquet")

    async def test(engine: StoreEngine) -> None:
        await until(lambda: [job.status for job in engine.jobs()] == ["done"])
        assert stored(engine, engine.catalog.by_name["n", "t"]) == ROWS

    async def full(engine: StoreEngine, text: str, *values: Any) -> None:
        raise KalamError("53100", "could not write to the data directory: no space left on device")

    run(leave)
    monkeypatch.setattr("kalamdb.txn.tiers.LOOK_EVERY", 0.001)
    monkeypatch.setattr(StoreEngine, "run", full)
    run(test, flush_policy="rows:200")


def test_flush_policies(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalamdb.txn.tiers.LOOK_EVERY", 0.001)

    async def test(engine: StoreEngine) -> None:
        few = await filled(engine, "few", options={"flush_policy": "rows:1000"})
        many = await filled(engine, "many", options={"flush_policy": "rows:300"})
        timed = await filled(engine, "timed", options={"flush_policy": "rows:1000,interval:1"})
        default = await filled(engine, "plain")
        await until(lambda: len({job.table for job in engine.jobs() if job.status == "done"}) == 3)
        assert {job.table for job in engine.jobs()} == {"many", "timed", "plain"}
        for table in (few, many, timed, default):
            assert stored(engine, table) == ROWS

    run(test, flush_policy="rows:200")


def test_small_segments_are_merged(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        for number in range(4):
            assert await engine.tiers.compact(table, everything=False) == 0
            await put(engine, table, (number, "a"))
            await engine.flush(table)
        assert len(engine.segments()) == 4
        assert await engine.tiers.compact(table, everything=False) == 4
        assert len(engine.segments()) == 1

    run(test)


def test_many_small_segments_are_merged_in_parts(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a merge holds does not grow with their number."""
    monkeypatch.setattr("kalamdb.txn.tiers.LOOK_EVERY", 1000)
    monkeypatch.setattr("kalamdb.txn.tiering.MOST_SEGMENTS", 5)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        for number in range(11):
            await put(engine, table, (number, "a"))
            await engine.flush(table)
        for rows, left in ((5, 7), (9, 3), (0, 3)):
            assert await engine.tiers.compact(table, everything=False) == rows
            assert len(engine.segments()) == left
        assert len(stored(engine, table)) == 11

    run(test)


@pytest.mark.parametrize(("hours", "merged"), [("0", True), ("1", False)])
def test_retention_of_deletions(run: Runner, hours: str, merged: bool) -> None:
    """A deleted row leaves the files when its time is over, and not for every deletion."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine, options={"deleted_retention_hours": hours})
        await engine.flush(table)
        one = engine.begin(None)
        await one.delete(table, [("", (5,))])
        await one.commit()
        assert await engine.tiers.flush_due(table) is merged
        await engine.flush(table)
        assert await engine.tiers.compact(table, everything=False) == (len(ROWS) - 1 if merged else 0)
        assert sum(segment.deleted for segment in engine.segments()) == (0 if merged else 1)

    run(test)


def test_look_ups_open_one_segment(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Key ranges and Bloom filters leave one, though all cover the same range."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        for first in range(8):
            await put(engine, table, *[(number, f"row {number}") for number in range(first, 800, 8)])
            await engine.flush(table)
        asked = []
        decode = engine.cold.group

        def group(segment: Any, number: int, **options: Any) -> Any:
            asked.append(segment.id)
            return decode(segment, number, **options)

        stored(engine, table)
        monkeypatch.setattr(engine.cold, "group", group)
        keys = range(0, 800, 7)
        for key in keys:
            assert (await get(engine, table, key) or ())[:2] == (key, f"row {key}")
            assert await get(engine, table, key + 10_000) is None
        assert len(asked) < 2.5 * len(keys)  # each is asked for twice: to be told to wait, and then

    run(test)


def test_wide_rows_are_moved_in_small_parts(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a flush holds at a time, and a look-up decodes, is bounded in bytes, not in rows alone."""
    monkeypatch.setattr("kalamdb.store.segment.GROUP_ROWS", 32_768)
    monkeypatch.setattr("kalamdb.store.segment.GROUP_BYTES", 1 << 20)
    monkeypatch.setattr("kalamdb.txn.tiering.CHUNK_ROWS", 8192)
    monkeypatch.setattr("kalamdb.txn.tiering.CHUNK_BYTES", 1 << 20)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        for first in range(0, 1000, 50):
            await put(engine, table, *[(number, f"{number:020000}") for number in range(first, first + 50)])
        tracemalloc.start()
        try:
            assert await engine.flush(table) == 1000
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 6_000_000  # of 20 MB
        (segment,) = engine.tiered[table.id].segments
        assert max(group.rows for group in engine.cold.file(segment).groups) < 200
        await put(engine, table, (1000, "hot"))
        await engine.flush(table)
        assert await engine.compact(table) == 1001
        (segment,) = engine.tiered[table.id].segments
        assert max(group.rows for group in engine.cold.file(segment).groups) < 300
        assert len(stored(engine, table)) == 1001
        row = await get(engine, table, 777)
        assert row is not None
        assert row[1] == f"{777:020000}"

    run(test)


@pytest.fixture
def on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes on in the background, and whoever asks is not put off."""
    monkeypatch.setattr("kalamdb.txn.tiers.LOOK_EVERY", 1000)
    monkeypatch.setattr("kalamdb.txn.tiers.LOOK_SHARE", 0)


@pytest.mark.usefixtures("on_demand")
def test_deletions_leave_in_time(run: Runner) -> None:
    """Their time counts from the deletion or the replacement, however late they were flushed and however often the row
    was replaced since."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine, options={"deleted_retention_hours": "2"})
        await engine.flush(table)
        await put(engine, table, (1000, "new"))
        await aged(engine, table)
        assert not await engine.tiers.flush_due(table)  # nothing cold has died
        await changed(engine, table, 7)
        assert not await engine.tiers.flush_due(table)
        await aged(engine, table)
        await changed(engine, table, 7)
        assert await engine.tiers.flush_due(table)
        await engine.flush(table)
        assert await engine.tiers.compact(table, everything=False) == len(ROWS) - 1
        for key in (8, 1000):
            await deleted(engine, table, key)
        assert not await engine.tiers.flush_due(table)
        await aged(engine, table)
        assert await engine.tiers.flush_due(table)
        await engine.flush(table)
        assert await engine.tiers.compact(table, everything=False) in (len(ROWS) - 2, 1)
        await engine.tiers.compact(table, everything=False)
        assert sum(segment.deleted for segment in engine.segments()) == 0
        await aged(engine, table)
        assert not await engine.tiers.flush_due(table)

    run(test)


@pytest.mark.usefixtures("on_demand")
def test_deletions_of_rows_that_were_never_cold(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine, options={"deleted_retention_hours": "0"})
        await engine.flush(table)
        await put(engine, table, (1000, "hot"))
        await deleted(engine, table, 1000)
        assert not await engine.tiers.flush_due(table)

    run(test)


@pytest.mark.usefixtures("on_demand")
def test_a_file_that_is_needed_to_find_deletions(run: Runner) -> None:
    """Where it is missing nothing is taken for looked at."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine, options={"deleted_retention_hours": "2"})
        await engine.flush(table)
        await deleted(engine, table, 8)
        await aged(engine, table)
        (segment,) = engine.tiered[table.id].segments
        (storage,) = engine.storages()
        path = storage.fetch(segment.file)
        away = path.with_suffix(".away")
        engine.cold.forget(segment.id)
        path.rename(away)
        await refused("58P01", engine.tiers.flush_due(table))
        away.rename(path)
        assert await engine.tiers.flush_due(table)

    run(test)


@pytest.mark.usefixtures("on_demand")
def test_rows_that_are_counted_while_they_are_committed(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not taken for rows that the count has found."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(options={"flush_policy": "rows:200"}))
        applied, go_on = held(monkeypatch, "commit.applied")
        writing = asyncio.create_task(put(engine, table, *ROWS))
        await until(applied.is_set)
        assert not await engine.tiers.flush_due(table)
        go_on.set()
        await writing
        assert await engine.tiers.flush_due(table)

    run(test)


async def changed(engine: StoreEngine, table: TableDef, key: int) -> None:
    one = engine.begin(None)
    await one.update(table, [(("", (key,)), {1: "changed"})])
    await one.commit()


async def deleted(engine: StoreEngine, table: TableDef, key: int) -> None:
    one = engine.begin(None)
    await one.delete(table, [("", (key,))])
    await one.commit()


async def aged(engine: StoreEngine, table: TableDef) -> None:
    """As if three hours had passed since the last flush."""
    await engine.run("UPDATE kalam_flushes SET at = at - 3 * 3600000 WHERE table_id = ?", table.id)
