"""Hot rows kept as columns: every scan shows its own snapshot's rows, and the next one does not read SQLite again."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from engine.rig import Runner, create, definition, put, stored
from kalamdb import types
from kalamdb.api import Row
from kalamdb.store import columns as module
from kalamdb.txn import scan
from kalamdb.txn.api import ColumnDef, Scan, ScanStats, TableDef
from kalamdb.txn.engine import StoreEngine
from kalamdb.txn.scan import StoreScan
from kalamdb.txn.transaction import StoreTransaction

ROWS = [(number, f"row {number}", None if number % 3 else number / 7) for number in range(1, 601)]


def columns(transaction: StoreTransaction, table: TableDef, tenant: str | None = "", wanted: Sequence[int] = (0, 1, 2),
            *, number: int = 0) -> list[str]:
    """All rows as batches, as ``shown``."""
    cursor = transaction.scan(transaction.snapshot(number), Scan(table, tenant, tuple(wanted)))
    batches = cursor.batches()
    assert batches is not None
    kinds = [table.columns[place].type for place in wanted]
    found = [row for batch in batches for row in types.rows_of_batch(batch, kinds)]
    cursor.close()
    return shown(found)


def shown(rows: Sequence[Row]) -> list[str]:
    """In some order; NaN is like NaN."""
    return sorted(map(repr, rows))


def is_kept(engine: StoreEngine, table: TableDef, tenant: str | None = "", names: Sequence[str] = ("c1",)) -> bool:
    snapshot = engine.hot_snapshot()
    try:
        return engine.columns.of(snapshot, engine.layouts.of(table), tenant, names) is not None
    finally:
        snapshot.close()


async def filled(engine: StoreEngine) -> TableDef:
    table = await create(engine, definition(columns="id int8, v text, f float8"))
    await put(engine, table, *ROWS)
    return table


def test_changes_over_a_base(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        old, young = engine.begin(None, isolation="repeatable read"), engine.begin(None)
        assert columns(old, table, wanted=(0,), number=1) == shown([row[:1] for row in ROWS])
        assert is_kept(engine, table)
        await young.update(table, [(("", (number,)), {1: "new", 2: float("nan")}) for number in (1, 300, 600)])
        await young.delete(table, [("", (number,)) for number in (2, 301)])
        await young.insert(table, [("", (number, "in", 1.5)) for number in (0, 601)])
        own = columns(young, table)
        await young.commit()
        assert len(own) == len(ROWS)
        assert is_kept(engine, table)
        reader = engine.begin(None)
        assert columns(reader, table) == shown(stored(engine, table)) == own
        assert columns(old, table, number=1) == columns(old, table) == shown(ROWS), "it is older than the changes"
        reader.rollback()
        old.rollback()

    run(test)


def test_a_scan_of_a_base_reads_what_has_changed(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        reader = engine.begin(None)
        columns(reader, table)
        held = engine.columns.of(reader.snapshot(0).hot, engine.layouts.of(table), "", ("c1", "c2", "c3"))
        assert held is not None
        assert sum(batch.num_rows for batch in held.batches) == len(ROWS)
        assert not held.changed
        stats = ScanStats()
        cursor = reader.scan(reader.snapshot(0), Scan(table, "", (0,), stats=stats))
        batches = cursor.batches()
        assert batches is not None
        list(batches)
        assert stats.hot_rows == len(ROWS)
        await put(engine, table, (1000, "new", None))
        held = engine.columns.of(reader.snapshot(0).hot, engine.layouts.of(table), "", ("c1",))
        assert held is not None
        assert held.changed == [("", 1000)]
        reader.rollback()

    run(test)


def test_more_columns_than_before(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        reader = engine.begin(None)
        columns(reader, table, wanted=(0,))
        assert not is_kept(engine, table, names=["c3"])
        columns(reader, table, wanted=(2,))
        assert is_kept(engine, table, names=["c1", "c3"])
        reader.rollback()

    run(test)


@pytest.mark.parametrize("alone", [True, False])
def test_a_flush_makes_them_void(run: Runner, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    """Whether the hot rows go with the publication, or step by step after it."""
    if not alone:
        monkeypatch.setattr(StoreEngine, "last_written", lambda self, number: 1 << 62)

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        reader = engine.begin(None)
        before = engine.begin(None, isolation="repeatable read")
        columns(reader, table)
        columns(before, table, number=1)
        await engine.flush(table)
        assert not is_kept(engine, table)
        await put(engine, table, (7000, "hot", None))
        assert columns(reader, table) == shown([*ROWS, (7000, "hot", None)])
        assert columns(before, table, number=1) == shown(ROWS)
        assert columns(before, table) == shown(ROWS)
        reader.rollback()
        before.rollback()

    run(test)


def test_many_changes_make_them_void(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        reader = engine.begin(None)
        columns(reader, table)
        await put(engine, table, *[(number, "more", None) for number in range(1000, 1200)])
        assert not is_kept(engine, table)
        assert len(columns(reader, table)) == len(columns(reader, table)) == 800
        reader.rollback()

    run(test)


def test_a_tenant(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns="id int8, v text, f float8", kind="user"))
        for tenant in ("a", "b", ""):
            await put(engine, table, *[(number, f"of {tenant}", None) for number in range(400)], tenant=tenant)
        await put(engine, table, (1, "few", None), tenant="c")
        reader = engine.begin(None)
        for tenant in ("a", "b", "", "c"):
            assert columns(reader, table, tenant) == shown(stored(engine, table, tenant=tenant))
        assert [is_kept(engine, table, tenant) for tenant in ("a", "b", "", "c")] == [True, True, True, False]
        await put(engine, table, (999, "new", 1.0), tenant="a")
        await put(engine, table, (998, "new", 2.0), tenant="")
        for tenant in ("a", "b", "", "c"):
            assert columns(reader, table, tenant) == shown(stored(engine, table, tenant=tenant))
        assert columns(reader, table, None) == columns(reader, table, None) == shown(stored(engine, table))
        await put(engine, table, (999, "too", 3.0), tenant="b")
        assert columns(reader, table, None) == shown(stored(engine, table))
        reader.rollback()

    run(test)


def test_an_altered_table(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        reader, writer = engine.begin(None), engine.begin(None)
        columns(reader, table)
        reader.rollback()
        locked = await writer.lock_table(table)
        late = ColumnDef(locked.next_column, "g", types.by_name("int4"), "int4", late=True, missing=5)
        altered = await writer.alter_table(replace(locked, columns=(*locked.columns, late)))
        await writer.commit()
        assert not is_kept(engine, altered)
        reader = engine.begin(None)
        for _ in range(2):
            assert columns(reader, altered, wanted=(0, 3)) == shown([(row[0], 5) for row in ROWS])
        assert is_kept(engine, altered)
        reader.rollback()

    run(test)


def test_the_longest_unused_go_first(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns="id int8, v text, f float8", kind="user"))
        for tenant in "abc":
            await put(engine, table, *ROWS, tenant=tenant)
        reader = engine.begin(None)
        columns(reader, table, "a")
        engine.columns.budget = 2 * engine.columns._nbytes + 1000
        for tenant in "bac":
            columns(reader, table, tenant)
        assert [is_kept(engine, table, tenant) for tenant in "abc"] == [True, False, True]
        engine.columns.budget = 1000
        assert columns(reader, table, "b") == shown(ROWS)
        assert not is_kept(engine, table, "b")
        reader.rollback()

    run(test)


def test_at_hand(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread only what is in memory, and all that the scan is to show."""

    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        reader = engine.begin(None)

        def at_hand(**wanted: object) -> list[str] | None:
            batches = reader.at_hand(reader.snapshot(0), Scan(table, "", (0, 1), **wanted),  # type: ignore[arg-type]
                                     alone=False)
            kinds = [column.type for column in table.columns[:2]]
            return None if batches is None else shown([row for batch in batches
                                                       for row in types.rows_of_batch(batch, kinds)])

        assert at_hand() is None
        columns(reader, table)
        assert at_hand() == shown([row[:2] for row in ROWS])
        assert at_hand(where="c1 > 5") is at_hand(limit=3) is at_hand(low=(5, True)) is at_hand(with_id=True) is None
        await reader.insert(table, [("", (5000, "own", None))])
        assert at_hand() is None
        reader.rollback()
        reader = engine.begin(None)
        assert at_hand() is not None
        await put(engine, table, (5001, "another's", None))
        with monkeypatch.context() as patch:
            patch.setattr(engine.columns, "of", None)  # puts all keys that have changed in order
            assert at_hand() is None
        await engine.flush(table)
        assert at_hand() is None
        reader.rollback()

    run(test)


class Watched:
    """A lock that tells when another thread asks for it."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._lock = threading.Lock()
        self._reader = threading.current_thread()

    def __enter__(self) -> None:
        if threading.current_thread() is not self._reader:
            self.asked.set()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_commit_that_begins_as_keys_begin_to_be_noted(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await filled(engine)
        layout, cache, lock = engine.layouts.of(table), engine.columns, Watched()
        begun = cache._begun
        writers: list[threading.Thread] = []

        def write() -> None:
            cache.changed(layout, [("", 5)])
            lock.asked.set()

        def before() -> int:
            """A group begins right after its number was asked for."""
            number = begun()
            if not writers:
                writers.append(threading.Thread(target=write))
                writers[0].start()
                assert lock.asked.wait(20)
            return number

        monkeypatch.setattr(cache, "_lock", lock)
        monkeypatch.setattr(cache, "_begun", before)
        reader = engine.begin(None)
        columns(reader, table)
        writers[0].join()
        found = cache.of(reader.snapshot(0).hot, layout, "", ("c1",))
        assert found is not None
        assert found.changed == [("", 5)]
        reader.rollback()

    run(test)


def paused(reader: StoreTransaction, table: TableDef, tenant: str = "") -> tuple[StoreScan, Iterator[pa.RecordBatch]]:
    """A scan that has given its first batch."""
    cursor = reader.scan(reader.snapshot(0), Scan(table, tenant, (0, 1)))
    batches = cursor.batches()
    assert batches is not None
    next(batches)
    return cursor, batches


def test_one_scan_at_a_time_makes_a_base(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cursors are open: what they have read is in memory once, and counts."""
    monkeypatch.setattr(scan, "BATCH_ROWS", 200)
    monkeypatch.setattr(scan, "TURN_ROWS", 200)
    monkeypatch.setattr(module, "STALLED_SECONDS", 1e9)

    async def test(engine: StoreEngine) -> None:
        table, cache = await filled(engine), engine.columns
        reader = engine.begin(None)
        cursors = [paused(reader, table) for _ in range(5)]
        held = cache._nbytes
        assert 0 < held == sum(cursor._gathering.nbytes for cursor, _ in cursors if cursor._gathering is not None)
        assert cursors[0][0]._gathering is not None
        assert [cursor._gathering for cursor, _ in cursors[1:]] == [None] * 4
        for cursor, _ in cursors:
            cursor.close()
        assert cache._nbytes == 0
        first, rest = paused(reader, table)
        assert cache._nbytes == held
        monkeypatch.setattr(module, "STALLED_SECONDS", -1)
        columns(reader, table, wanted=(0,))
        assert is_kept(engine, table)
        assert not is_kept(engine, table, names=["c2"])
        kept = cache._nbytes
        assert sum(batch.num_rows for batch in rest) == 400, "it has given way, and goes on"
        first.close()
        assert cache._nbytes == kept
        assert not is_kept(engine, table, names=["c2"])
        reader.rollback()

    run(test)


def test_paused_scans_keep_to_the_budget(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "BATCH_ROWS", 200)
    monkeypatch.setattr(scan, "TURN_ROWS", 200)
    monkeypatch.setattr(module, "STALLED_SECONDS", 1e9)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns="id int8, v text, f float8", kind="user"))
        tenants = [f"t{number}" for number in range(8)]
        for tenant in tenants:
            await put(engine, table, *ROWS, tenant=tenant)
        reader, cache = engine.begin(None), engine.columns
        cursors = [paused(reader, table, tenants[0])]
        cache.budget = 4 * cache._nbytes  # a whole base takes three
        cursors += [paused(reader, table, tenant) for tenant in tenants[1:]]
        assert cache._nbytes <= cache.budget
        assert columns(reader, table, tenants[-1]) == shown(ROWS)
        monkeypatch.setattr(module, "STALLED_SECONDS", -1)
        assert columns(reader, table, tenants[-1], (0, 1)) == shown([row[:2] for row in ROWS])
        assert is_kept(engine, table, tenants[-1]), "paused ones have given way"
        for cursor, rest in cursors:
            list(rest)
            cursor.close()
        assert cache._nbytes <= cache.budget
        reader.rollback()

    run(test)


def test_a_table_larger_than_the_budget_is_tried_once(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table, cache = await filled(engine), engine.columns
        layout = engine.layouts.of(table)
        reader = engine.begin(None)
        cache.budget = 7_000
        assert columns(reader, table, wanted=(0, 1)) == shown([row[:2] for row in ROWS])
        snapshot = reader.snapshot(0).hot
        assert cache.gather(snapshot, layout, "", ["k", "c1", "c2"]) is None
        assert cache.gather(snapshot, layout, "", ["k", "c1", "c2", "c3"]) is None
        cache.budget = 100_000
        fits = cache.gather(snapshot, layout, "", ["k", "c1"])
        assert fits is not None
        fits.give_up()
        await engine.flush(table)
        again = cache.gather(reader.snapshot(1).hot, layout, "", ["k", "c1", "c2"])
        assert again is not None
        reader.rollback()

    run(test)


@pytest.mark.parametrize("columns_of", ["id int2, v text", "id int4, v text", "id date, v text",
                                        "id timestamptz, v text", "id text, v text"])
def test_keys_that_are_columns(run: Runner, columns_of: str) -> None:
    """The key of a row and its tenant follow from what is read; they are what says which rows have changed."""
    make: Any = str if "id text" in columns_of else int

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(columns=columns_of, kind="user"))
        for tenant in ("a", "b"):
            await put(engine, table, *[(make(number), f"{tenant}{number}") for number in range(300)], tenant=tenant)
        for wanted in ((1,), (0, 1)):  # with the key's column, and without
            for whose, of in (("a", "a"), (None, "ab")):
                reader = engine.begin(None)
                everything = [(make(number), f"{tenant}{number}") for tenant in of for number in range(300)]
                assert columns(reader, table, whose, wanted) == shown([row[wanted[0]:] for row in everything])
                assert is_kept(engine, table, whose, ["c2", "k", "_userid"])
                reader.rollback()
        writer = engine.begin(None)
        await writer.update(table, [(("a", (make(7),)), {1: "new"})])
        await writer.delete(table, [("b", (make(8),))])
        await writer.insert(table, [("a", (make(301), "in"))])
        own = columns(writer, table, None, (0, 1))
        await writer.commit()
        reader = engine.begin(None)
        assert is_kept(engine, table, None, ["c1"])
        found = columns(reader, table, None, (0, 1))
        assert found == own
        assert len(found) == 600
        assert repr((make(7), "new")) in found
        assert repr((make(8), "b8")) not in found
        assert repr((make(8), "a8")) in found
        reader.rollback()

    run(test)


@pytest.mark.parametrize("few", [0, 5, 1000], ids=["none", "some", "all"])
@pytest.mark.parametrize("kind", ["shared", "user"])
def test_what_hides_cold_rows(run: Runner, monkeypatch: pytest.MonkeyPatch, few: int, kind: Any) -> None:
    """Whether it is read once for a scan or for each batch: of all rows, of a tenant's, of a range of keys."""
    monkeypatch.setattr(scan, "FEW_HIDDEN", few)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition(kind=kind))
        tenants = ["a", "b"] if kind == "user" else [""]
        rows: dict[tuple[str, int], str] = {}
        for tenant in tenants:
            await put(engine, table, *[(number, "old") for number in range(100)], tenant=tenant)
            rows.update({(tenant, number): "old" for number in range(100)})
        await engine.flush(table)
        writer = engine.begin(None)
        for tenant in tenants:
            await writer.update(table, [((tenant, (number,)), {1: "new"}) for number in (0, 7, 50)])
            await writer.delete(table, [(tenant, (number,)) for number in (8, 51, 99)])
            rows.update({(tenant, number): "new" for number in (0, 7, 50)})
            for number in (8, 51, 99):
                del rows[tenant, number]
        await writer.commit()
        reader = engine.begin(None)
        for whose in (*tenants, None):
            for low, high in ((None, None), ((7, True), (51, True)), ((51, True), None)):
                first, last = low[0] if low else 0, high[0] if high else 100
                wanted = shown([(key[1], text) for key, text in rows.items()
                                if whose in (None, key[0]) and first <= key[1] <= last])
                part = Scan(table, whose, (0, 1), low=low, high=high)
                cursor = reader.scan(reader.snapshot(), part)
                batches = cursor.batches()
                assert batches is not None
                kinds = [column.type for column in table.columns]
                assert shown([row for batch in batches for row in types.rows_of_batch(batch, kinds)]) == wanted
                cursor.close()
                cursor = reader.scan(reader.snapshot(), part)
                assert shown(cursor.fetch(1000)) == wanted
                cursor.close()
        reader.rollback()

    run(test)
