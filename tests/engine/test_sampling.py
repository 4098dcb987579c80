"""Samples drawn from many blocks in several segments: each row's chance, key bounds, tenants, faults, writers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from engine.rig import Runner, create, definition, put
from kalamdb.errors import KalamError
from kalamdb.txn.api import Sample, Sampled, TableDef
from kalamdb.txn.engine import StoreEngine


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalamdb.store.segment.GROUP_ROWS", 16)
    monkeypatch.setattr("kalamdb.txn.sample.GROUP_ROWS", 16)
    monkeypatch.setattr("kalamdb.txn.tiers.LOOK_EVERY", 3600)


def draw(engine: StoreEngine, table: TableDef, rows: int, blocks: int | None = None, **bounds: Any) -> Sampled:
    transaction = engine.begin(None)
    try:
        return transaction.sample(transaction.snapshot(), Sample(table, (0, 1), rows, blocks, **bounds)).draw()
    finally:
        transaction.rollback()


async def three_segments(engine: StoreEngine, table: TableDef, tenant: str = "") -> None:
    """Keys 0 to 959 in three segments, every third in each, and 960 to 999 hot."""
    for part in range(3):
        await put(engine, table, *[(number, "cold") for number in range(part, 960, 3)], tenant=tenant)
        await engine.flush(table)
    await put(engine, table, *[(number, "hot") for number in range(960, 1000)], tenant=tenant)


def test_every_row_has_the_same_chance(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await three_segments(engine, table)
        seen: Counter[int] = Counter()
        for _ in range(200):
            found = draw(engine, table, 100)
            assert len({row[0] for row in found.rows}) == len(found.rows) == 100
            assert found.total == 1000
            seen.update(row[0] for row in found.rows)
        assert len(seen) == 1000  # 20 each, and a deviation of 4.4
        assert min(seen.values()) >= 2
        assert max(seen.values()) <= 45

    run(test)


def test_no_more_blocks_than_allowed(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await three_segments(engine, table)
        read: set[tuple[int, int]] = set()
        original = engine.cold.read

        def reading(segment: Any, number: int, columns: Any) -> Any:
            read.add((segment.id, number))
            return original(segment, number, columns)

        engine.cold.read = reading  # type: ignore[method-assign]
        hot = []
        for _ in range(30):
            read.clear()
            found = draw(engine, table, 60, 5)
            assert len(read) <= 5
            assert found.total == 1000
            hot.append(sum(row[1] == "hot" for row in found.rows))
        assert 30 * 1 <= sum(hot) <= 30 * 5  # 2.4 of 60: a tier keeps its share
        found = draw(engine, table, 1000, 5)  # there are 80 rows in them
        assert len(found.rows) <= 80 + 40
        assert found.total == 1000

    run(test)


def test_rows_that_are_hidden(run: Runner) -> None:
    """Most cold rows are dead, deleted or changed: those drawn in vain are made up for."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await three_segments(engine, table)
        for first, last in ((0, 400), (400, 700)):
            transaction = engine.begin(None)
            await transaction.delete(table, [("", (number,)) for number in range(first, last)])
            await transaction.commit()
            if first == 0:
                await engine.flush(table)  # these are dead, the others have tombstones
        transaction = engine.begin(None)
        await transaction.update(table, [(("", (number,)), {1: "changed"}) for number in range(700, 800)])
        await transaction.commit()
        found = draw(engine, table, 5000)
        assert Counter(row[1] for row in found.rows) == {"cold": 160, "changed": 100, "hot": 40}
        assert sorted(row[0] for row in found.rows) == list(range(700, 1000))
        assert found.total == 300
        for _ in range(20):
            found = draw(engine, table, 200)
            assert len({row[0] for row in found.rows}) == len(found.rows) == 200

    run(test)


@pytest.mark.parametrize(("bounds", "keys"), [
    ({"low": (100, True), "high": (119, True)}, range(100, 120)),
    ({"low": (950, True)}, range(950, 1000)), ({"high": (10, False)}, range(10)),
    ({"low": (2000, True)}, range(0)), ({"key_prefix": (77,)}, range(77, 78)),
    ({"low": (9, True), "high": (3, True)}, range(0)),
])
def test_bounds_of_the_key(run: Runner, bounds: dict[str, Any], keys: range) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await three_segments(engine, table)
        found = draw(engine, table, 5000, **bounds)
        assert set(keys) <= {row[0] for row in found.rows}
        assert abs(found.total - len(keys)) <= 3  # of each segment a row may be just outside

    run(test)


def test_of_one_tenant(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(kind="user"))
        for tenant, rows in (("a", 5), ("b", 100), ("c", 40)):
            await put(engine, table, *[(number, tenant) for number in range(rows)], tenant=tenant)
        await engine.flush(table)
        await put(engine, table, *[(number, "b") for number in range(100, 130)], tenant="b")
        for tenant, rows in (("a", 5), ("b", 130), ("c", 40), ("d", 0)):
            found = draw(engine, table, 1000, tenant=tenant)
            assert (len(found.rows), found.total) == (rows, rows)
            assert {row[1] for row in found.rows} <= {tenant}
        assert draw(engine, table, 1000).total == 175
        assert len(draw(engine, table, 20, tenant="b").rows) == 20

    run(test)


def test_a_damaged_segment(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await three_segments(engine, table)
        for path in (run.directory / "segments").rglob("*.parquet"):
            path.unlink()
        with pytest.raises(KalamError) as caught:
            draw(engine, table, 5000)
        assert caught.value.sqlstate == "58P01"

    run(test)


def test_interrupted(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await three_segments(engine, table)
        transaction = engine.begin(None)
        sample = transaction.sample(transaction.snapshot(), Sample(table, (0, 1), 5000))
        sample.interrupt()
        with pytest.raises(KalamError) as caught:
            sample.draw()
        assert caught.value.sqlstate == "57014"
        transaction.rollback()

    run(test)


def test_while_rows_are_moved_and_changed(run: Runner) -> None:
    """A sample is of its snapshot, whatever happens meanwhile."""

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await three_segments(engine, table)
        transaction = engine.begin(None)
        snapshot = transaction.snapshot()
        sample = transaction.sample(snapshot, Sample(table, (0, 1), 5000))
        other = engine.begin(None)
        await other.delete(table, [("", (number,)) for number in range(500)])
        await other.commit()
        await engine.flush(table)
        await engine.compact(table)
        found = await asyncio.to_thread(sample.draw)
        assert sorted(row[0] for row in found.rows) == list(range(1000))
        transaction.rollback()
        assert draw(engine, table, 5000).total == 500

    run(test)
