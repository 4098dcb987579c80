"""Moments between two steps of the cold tier: what others do there neither loses nor doubles nor revives a row."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from engine.rig import DEADLINE, Runner, chunks, create, definition, put, refused, stored, until
from engine.test_tiers import ROWS, filled, get, held, segment_files, small
from kalamdb.store.hot import HotSnapshot
from kalamdb.txn import tiering
from kalamdb.txn.api import Scan
from kalamdb.txn.engine import StoreEngine

__all__ = ["small"]  # a fixture


def test_a_deletion_committed_while_tiering_begins(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """It left no tombstone, since the table had no cold rows yet; the first flush must not have seen the row then."""
    monkeypatch.setattr("kalamdb.store.writer.GROUP", 1)
    monkeypatch.setattr("kalamdb.txn.engine.LIGHT_ROWS", -1)  # the thread applies every commit, not the loop

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        other = await create(engine, definition("other"))
        first, go_on, applied, commit = (threading.Event() for _ in range(4))

        def reach(name: str) -> None:
            if name == "commit.applied" and not first.is_set():
                first.set()
                assert go_on.wait(DEADLINE)
            elif name == "commit.applied" and not applied.is_set():
                applied.set()
                assert commit.wait(DEADLINE)

        looks: list[int] = []
        look, refresh = engine.hot_snapshot, engine.tiers._cold.refresh

        def looking(**how: bool) -> HotSnapshot:
            looks.append(1)
            return look(**how)

        def late(*arguments: Any) -> None:
            assert applied.wait(DEADLINE)  # the deletion is written, not committed; it knows of no cold tier
            refresh(*arguments)

        monkeypatch.setattr("kalamdb.faults.reach", reach)
        monkeypatch.setattr(engine, "hot_snapshot", looking)
        monkeypatch.setattr(engine.tiers._cold, "refresh", late)
        stall = asyncio.create_task(put(engine, other, (1, "keeps the writer")))
        await until(first.is_set)
        flush = asyncio.create_task(engine.flush(table))
        for _ in range(10):
            await asyncio.sleep(0)  # it has asked the writer to begin
        one = engine.begin(None)
        await one.delete(table, [("", (7,))])
        deletion = asyncio.create_task(one.commit())
        for _ in range(10):
            await asyncio.sleep(0)
        go_on.set()
        await until(lambda: looks or engine._writer.waiting)  # the flush has gone on, or waits behind the deletion
        commit.set()
        await asyncio.gather(stall, deletion, flush)
        assert stored(engine, table) == [row for row in ROWS if row[0] != 7]

    run(test)


def test_keys_that_came_while_an_insert_read_a_file(run: Runner) -> None:
    """Waiting for a segment gives others a turn: what was the highest key before is not any more."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        await engine.flush(table)
        await put(engine, table, (1000, "the highest"))
        load = engine.load

        async def slow(missing: Any) -> None:
            if not stored(engine, table, low=(1001, True), high=None):
                await put(engine, table, (1001, "theirs"))
            await load(missing)

        engine.load = slow  # type: ignore[method-assign]
        one = engine.begin(None)
        rows = [("", (250, "mine")), ("", (1001, "mine"))]
        assert await one.insert(table, rows, skip_conflicts=True) == 0
        await one.commit()
        assert stored(engine, table, low=(1001, True)) == [(1001, "theirs")]

    run(test)


def test_a_tombstone_removed_between_two_looks(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush publishes that a row is dead and takes its tombstone away, at once: nobody sees one without the other."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        await engine.flush(table)
        one = engine.begin(None)
        await one.delete(table, [("", (7,))])
        await one.commit()
        there, go_on = held(monkeypatch, "flush.publish")
        flush = asyncio.create_task(engine.flush(table))
        await until(there.is_set)
        query, version = engine.live.query, engine.tiered[table.id].version

        def published() -> bool:
            snapshot = engine.hot_snapshot()
            found = snapshot.query("SELECT version FROM kalam_manifests WHERE table_id = ?", (table.id,))
            snapshot.close()
            return found != [(version,)]

        def between(text: str, values: Any) -> list[Any]:
            if f"d_{table.id}" in text and not go_on.is_set():
                go_on.set()
                deadline = time.monotonic() + DEADLINE
                while not published():
                    assert time.monotonic() < deadline
            return query(text, values)

        monkeypatch.setattr(engine.live, "query", between)
        two = engine.begin(None)
        await two.insert(table, [("", (7, "back"))])
        await two.commit()
        assert go_on.is_set()
        await flush
        assert stored(engine, table, low=(7, True), high=(7, True)) == [(7, "back")]

    run(test)


def test_reading_a_row_does_not_wait_for_jobs(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many flushes are at work, a cold row of another table is read."""

    async def test(engine: StoreEngine) -> None:
        cold = await filled(engine, "cold")
        await engine.flush(cold)
        busy = [await filled(engine, f"busy{number}") for number in range(4)]
        go_on, at_work = threading.Event(), set()

        def reach(name: str) -> None:
            if name == "segment.put":
                at_work.add(threading.get_ident())
                assert go_on.wait(DEADLINE)

        monkeypatch.setattr("kalamdb.faults.reach", reach)
        jobs = [asyncio.create_task(engine.flush(table)) for table in busy]
        await until(lambda: len(at_work) == 2)
        try:
            assert await asyncio.wait_for(get(engine, cold, 7), DEADLINE / 4) is not None
        finally:
            go_on.set()
            await asyncio.gather(*jobs)

    run(test)


def test_cancelled_after_the_last_step(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread is done, its task is not told yet: the job is cancelled, and its files go."""
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        there, go_on = threading.Event(), threading.Event()
        work = tiering.Flush.run

        def late(self: tiering.Flush) -> Any:
            done = work(self)
            there.set()
            assert go_on.wait(DEADLINE)
            return done

        monkeypatch.setattr(tiering.Flush, "run", late)
        flush = asyncio.create_task(engine.flush(table))
        await until(there.is_set)
        flush.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await flush
        assert engine.jobs()[-1].status == "cancelled"
        assert segment_files(run.directory) == []

    run(test)


def test_a_compaction_cancelled_after_the_last_step(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        await engine.flush(table)
        await put(engine, table, (1000, "new"))
        await engine.flush(table)
        there, go_on = threading.Event(), threading.Event()
        work = tiering.compact

        def late(*args: Any) -> Any:
            done = work(*args)
            there.set()
            assert go_on.wait(DEADLINE)
            return done

        monkeypatch.setattr("kalamdb.txn.tiers.compact", late)
        task = asyncio.create_task(engine.compact(table))
        await until(there.is_set)
        task.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(segment_files(run.directory)) == len(engine.segments()) == 2

    run(test)


def test_a_table_dropped_while_its_flush_waits(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told so, and nothing of the table is made anew."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        there, go_on = held(monkeypatch, "segment.put")
        first = asyncio.create_task(engine.flush(table))
        await until(there.is_set)
        second = asyncio.create_task(engine.flush(table))
        await asyncio.sleep(0)
        one = engine.begin(None)
        await one.drop_table(table)
        await one.commit()
        purge = asyncio.create_task(engine.purge())
        await until(lambda: not engine.live.query(f"SELECT 1 FROM h_{table.id} LIMIT 1", ()))
        go_on.set()
        await refused("42P01", first)
        await refused("42P01", second)
        await purge
        assert engine.live.query("SELECT * FROM kalam_manifests", ()) == []
        assert engine.live.query("SELECT name FROM sqlite_schema WHERE name = ?", (f"d_{table.id}",)) == []

    run(test, drop_grace_hours=0)


def test_a_cursor_on_a_table_dropped_since(run: Runner) -> None:
    """Its rows, hot and cold, are there until it ends."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        await engine.flush(table)
        await put(engine, table, (1000, "hot"))
        one = engine.begin(None)
        cursor = one.scan(one.snapshot(1), Scan(table, None, (0, 1)))
        first = cursor.fetch(7)
        two = engine.begin(None)
        await two.drop_table(table)
        await two.commit()
        await engine.purge()
        await engine.tiers.sweep()
        assert first + list(chunks(cursor.fetch)) == [*ROWS, (1000, "hot")]
        cursor.close()
        one.rollback()
        del cursor
        await engine.tiers.sweep()
        assert segment_files(run.directory) == []
        assert engine.cold._files == {}

    run(test, drop_grace_hours=0)


def test_the_tenant_without_a_name(run: Runner) -> None:
    """The empty text is a tenant like any other: its scans show its rows."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(kind="user"))
        for tenant in ("", "b"):
            await put(engine, table, *[(number, f"of {tenant!r}") for number in range(30)], tenant=tenant)
        wanted = stored(engine, table, tenant="")
        assert len(wanted) == 30
        await engine.flush(table)
        assert stored(engine, table, tenant="") == wanted
        assert stored(engine, table, tenant="", where="c2 <> ''") == wanted

    run(test)
