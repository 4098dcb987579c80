"""Transactions of many rows: memory in proportion, others get their turns, a few rows are found without seeing all."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.rig import Runner, create, definition, put, read, stored
from kalamdb.store.hot import Layout
from kalamdb.txn.api import Scan
from kalamdb.txn.engine import StoreEngine
from kalamdb.txn.overlay import Overlay, TableOverlay
from kalamdb.txn.transaction import _candidates

MANY = 60_000  # as many as stay in memory
#: bytes of one row in a transaction: its tuple and values, its key, its lock, its version
ROW_BYTES = 600


@contextmanager
def traced() -> Iterator[None]:
    gc.collect()
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_of_a_big_transaction(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        with traced():
            one = engine.begin(None)
            assert await one.insert(table, (("", (number, f"row {number}")) for number in range(MANY))) == MANY
            inserted, _ = tracemalloc.get_traced_memory()
            assert inserted < MANY * ROW_BYTES
            one.set_level(1, 2)
            await one.delete(table, [("", (number,)) for number in range(0, MANY, 2)])
            one.rollback_to_level(2)
            assert len(engine.locks) == MANY + 1
            await one.commit()
            _, peak = tracemalloc.get_traced_memory()
            assert peak < 2 * MANY * ROW_BYTES
            gc.collect()
            left, _ = tracemalloc.get_traced_memory()
            assert left < 80 * MANY  # the dictionary of locks keeps its size
        assert len(engine.locks) == 0
        assert stored(engine, table, low=(MANY - 2, True)) == [(n, f"row {n}") for n in range(MANY - 2, MANY)]

    run(test)


def test_others_get_their_turns(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        other = await create(engine, definition("other"))
        one = engine.begin(None)
        turns, working = 0, True

        async def commit_meanwhile() -> None:
            nonlocal turns
            while working:
                await put(engine, other, (turns, "a"))
                turns += 1

        for work in (one.insert(table, [("", (number, "a")) for number in range(60_000)]),
                     one.update(table, [(("", (number,)), {1: "b"}) for number in range(60_000)]),
                     one.delete(table, [("", (number,)) for number in range(60_000)])):
            turns_before, working = turns, True
            ticking = asyncio.create_task(commit_meanwhile())
            assert await work
            working = False
            await ticking
            assert turns > turns_before
        one.rollback()
        assert len(engine.locks) == 0

    run(test)


def test_rolling_back_in_the_middle_stops_the_work(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = engine.begin(None)
        work = asyncio.create_task(one.insert(table, [("", (number, "a")) for number in range(60_000)]))
        await asyncio.sleep(0)
        one.rollback()
        with pytest.raises(Exception, match="the transaction has ended"):
            await work
        assert len(engine.locks) == 0

    run(test)


def test_few_own_rows_are_looked_at(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition("u", kind="user"))
        one = engine.begin(None)
        await one.insert(table, [(tenant, (number, "a")) for tenant in "ab" for number in range(5000)])
        overlay = one._overlay.tables[table.id]

        def looked_at(**scan: object) -> int:
            return len(_candidates(overlay, Scan(table, columns=(0,), **scan)))  # type: ignore[arg-type]

        assert looked_at(tenant="a", key_prefix=(7,)) == 1
        assert looked_at(tenant="a", key_prefix=(7000,)) == 0
        assert looked_at(tenant="b", low=(10, False), high=(20, True)) == 10
        assert looked_at(tenant="c", low=(10, True)) == 0
        assert looked_at(tenant="b") == 5000
        assert looked_at(tenant=None, low=(4990, True)) == 10_000
        await one.delete(table, [("b", (12,))])
        await one.insert(table, [("b", (-1, "a")), ("c", (15, "a"))])
        assert read(one, table, tenant="b", low=(-5, True), high=(1, True), columns=(0,)) == [(-1,), (0,), (1,)]
        assert read(one, table, tenant="b", low=(11, True), high=(13, True), columns=(0,)) == [(11,), (13,)]
        assert read(one, table, tenant="c", columns=(0,)) == [(15,)]
        one.rollback()

    run(test)


KEYS = st.tuples(st.sampled_from(["a", "a\0", "b"]), st.integers(0, 5))


@settings(max_examples=300)
@given(st.lists(st.lists(KEYS, max_size=12), min_size=2, max_size=5), st.lists(KEYS, min_size=1, max_size=3), KEYS,
       st.lists(st.tuples(st.sampled_from(["=", ">", ">=", "<", "<="]), st.integers(0, 5)), max_size=2))
def test_ranges_of_own_rows(
    batches: list[list[tuple[str, int]]], forgotten: list[tuple[str, int]], tenant: tuple[str, int],
    bounds: list[tuple[str, int]],
) -> None:
    """Against the plain way, while keys come and go."""
    table = definition()
    own, overlay = Overlay(), TableOverlay(table, Layout(table))
    tests = {"=": int.__eq__, ">": int.__gt__, ">=": int.__ge__, "<": int.__lt__, "<=": int.__le__}
    for number, batch in enumerate(batches):
        for key in batch:
            own.write(overlay, key, (key[1], "v"))
        for key in forgotten if number % 2 else ():
            if key in overlay.rows:
                overlay.forget(key)
        expected = sorted(key for key in overlay.rows
                          if key[0] == tenant[0] and all(tests[sign](key[1], edge) for sign, edge in bounds))  # type: ignore[arg-type]
        assert overlay.in_range(tenant[0], bounds) == expected
