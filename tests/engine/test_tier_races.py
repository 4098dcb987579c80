"""Moments between two steps of the cold tier: what others do there neither loses nor doubles nor revives a row."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from engine.rig import DEADLINE, Runner, create, definition, put, stored, until
from engine.test_tiers import ROWS, filled, small
from kalamdb.txn.engine import StoreEngine

__all__ = ["small"]  # a fixture


def wait_for(event: threading.Event) -> None:
    """In the event loop, on purpose: nothing else happens there meanwhile."""
    assert event.wait(DEADLINE)


def test_a_deletion_committed_while_tiering_begins(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """It left no tombstone, since the table had no cold rows yet; the first flush must not have seen the row then."""
    monkeypatch.setattr("kalamdb.store.writer.GROUP", 1)

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

        monkeypatch.setattr("kalamdb.faults.reach", reach)
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
        wait_for(applied)  # the deletion is written, not committed; the flush has not gone on
        for _ in range(50):
            await asyncio.sleep(0)
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
