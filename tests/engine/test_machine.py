"""Several transactions at random against a model: reads through snapshots, writes, savepoints, locks, commits,
flushes, compactions, restarts.

Hypothesis chooses (and shrinks) the sequence of steps, a seeded generator what each of them does: drawn one by one,
the values would hardly ever meet. Nothing waits here: who holds which key is part of the model, and a write to a key
of somebody else's is only checked to be refused with NOWAIT.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.model import Conflict, Model, ModelTransaction, View, plain
from engine.rig import batch_of, create, definition, every, refused, stored
from kalamdb import types
from kalamdb.api import Row
from kalamdb.catalog.catalog import dump_table
from kalamdb.order import NUMERIC_FUNCTION, float_bytes, float_operand, numeric_bytes
from kalamdb.store.cold import ColdRange, GroupCache
from kalamdb.txn.api import Key, NotInMemory, RowId, Scan, TableDef
from kalamdb.txn.engine import StoreEngine, open_engine
from kalamdb.txn.overlay import FEW

EXAMPLES = int(os.environ.get("KALAM_MACHINE_EXAMPLES", "50"))
FLOATS = [0.0, -0.0, 1.5, -2.25, math.inf, -math.inf, math.nan]
NUMERICS = ["0", "0.00", "1", "1.0", "-3", "10", "NaN", "Infinity"]
TEXTS = ["", "a", "ab", "b", "é", "zz"]
_COMMITTED: Any = object()  # for a row that is not the transaction's own
SLOTS = st.sampled_from([0, 1, 2])
#: few of each, so that rows meet
KEYS: dict[str, list[Any]] = {
    "int4": [-1, 0, 1, 2, 3], "text": ["", "a", "é"], "numeric": ["0", "0.0", "7", "NaN"],
    "float8": [-0.0, 0.0, math.inf, math.nan],
}
RANKS: dict[str, Callable[[Any], Any]] = {
    "int4": int, "text": str.encode, "float8": lambda value: (math.isnan(value), 0.0 if math.isnan(value) else value),
    "numeric": lambda text: (text == "NaN", Decimal(0 if text == "NaN" else text)),
}


@dataclass(frozen=True)
class Shape:
    """A table, and how its keys compare. The last three columns are v (text), f (float8) and n (numeric)."""

    table: TableDef
    tenants: tuple[str, ...]

    @property
    def types(self) -> list[str]:
        return [self.table.columns[place].type.name for place in self.table.key]

    def rank(self, key: Key) -> tuple[Any, ...]:
        return tuple(RANKS[name](part) for name, part in zip(self.types, key, strict=False))

    def key(self, row: Row) -> Key:
        return tuple(row[place] for place in self.table.key)


DATA = "v text, f float8, n numeric"
SHAPES = [
    Shape(definition("t1", f"id int4, {DATA}"), ("",)),
    Shape(definition("t2", f"id numeric, {DATA}", kind="user"), ("a", "b")),
    Shape(definition("t3", f"x text, y int4, {DATA}", key=(1, 0), kind="user"), ("a", "b", "é")),
    Shape(definition("t4", f"x float8, y text, z numeric, {DATA}", key=(0, 1, 2)), ("",)),
]


@dataclass(frozen=True)
class Condition:
    sql: str
    params: tuple[Any, ...]
    holds: Callable[[str, Row], bool]  # of the tenant and the last three columns


def _conditions(text: str, number: float, numeric: str) -> list[Condition]:
    """The columns' names are completed by the caller: {v}, {f}, {n}."""
    return [
        Condition("{v} = ?", (text,), lambda _, row: row[0] is not None and row[0] == text),
        Condition("NOT ({v} < ?)", (text,), lambda _, row: row[0] is not None and row[0].encode() >= text.encode()),
        Condition("{v} IS NULL OR {f} IS NULL", (), lambda _, row: row[0] is None or row[1] is None),
        Condition("{f} > ?", (float_operand(number),),
                  lambda _, row: row[1] is not None and float_bytes(row[1]) > float_bytes(number)),
        Condition("_userid >= ? AND {n} IS NOT NULL", ("b",), lambda tenant, row: tenant >= "b" and row[2] is not None),
        Condition(f"{NUMERIC_FUNCTION}({{n}}) <= {NUMERIC_FUNCTION}(?)", (numeric,),
                  lambda _, row: row[2] is not None and numeric_bytes(row[2]) <= numeric_bytes(numeric)),
    ]


class Pair:
    """One transaction of the engine and its model."""

    def __init__(self, engine: StoreEngine, model: Model, *, repeatable: bool) -> None:
        self.real = engine.begin(None, isolation="repeatable read" if repeatable else "read committed")
        self.model = ModelTransaction(model, repeatable=repeatable)
        self.cursors: list[tuple[Any, list[Any]]] = []

    def close_cursors(self) -> None:
        for cursor, _ in self.cursors:
            cursor.close()
        self.cursors.clear()


class Engine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="kalam-"))
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("kalamdb.store.hot.LOG_PAGES", 100)  # it is opened very often
        self.patch.setattr("kalamdb.txn.tiers.LOOK_EVERY", 3600)  # nothing by itself
        self.patch.setattr("kalamdb.txn.engine.PURGE_EVERY", 3600)
        self.patch.setattr("kalamdb.store.segment.GROUP_ROWS", 4)
        self.patch.setattr("kalamdb.txn.tiering.CHUNK_ROWS", 3)
        self.patch.setattr("kalamdb.txn.tiering.SEGMENT_ROWS", 7)
        self.patch.setattr("kalamdb.txn.tiers.CLEAN_ROWS", 2)
        self.patch.setattr("kalamdb.txn.bulk.BULK_ROWS", 2)
        self.patch.setattr("kalamdb.txn.bulk.RUN_ROWS", 4)
        self.patch.setattr("kalamdb.txn.bulk.PART_ROWS", 1)
        self.patch.setattr("kalamdb.store.columns.LEAST_ROWS", 1)
        self.patch.setattr("kalamdb.store.columns.CHANGES", 4)
        self.runner = asyncio.Runner()
        self.engine = self.runner.run(open_engine(self.directory))
        self.pairs: dict[int, Pair] = {}
        self.random = Random(0)

    def teardown(self) -> None:
        self.check_segments()
        self.patch.undo()
        for pair in self.pairs.values():
            pair.close_cursors()
            pair.real.rollback()
        assert len(self.engine.locks) == 0
        self.runner.run(self.engine.close())
        self.runner.close()
        shutil.rmtree(self.directory)

    @initialize(shape=st.sampled_from(SHAPES), seed=st.integers(0, 1 << 32))
    def table_exists(self, shape: Shape, seed: int) -> None:
        self.random.seed(seed)
        self.patch.setattr("kalamdb.txn.transaction.FEW", seed % 2 * FEW)  # by a search, even in few own rows
        self.table = self.runner.run(create(self.engine, shape.table))
        self.shape = Shape(self.table, shape.tenants)
        self.model = Model(self.same)
        self.seen: list[RowId] = []

    def same(self, key: RowId) -> RowId:
        """One form of all keys that are equal."""
        return key[0], self.shape.rank(key[1])

    # ---------- drawing ----------
    def a_key(self) -> Key:
        return tuple(self.random.choice(KEYS[name]) for name in self.shape.types)

    def an_id(self) -> RowId:
        """Rather one that has been seen before."""
        if self.seen and self.random.random() < 0.6:
            return self.random.choice(self.seen)
        return self.random.choice(self.shape.tenants), self.a_key()

    def a_row(self, key: Key) -> Row:
        row: list[Any] = [None] * len(self.table.columns)
        for place, part in zip(self.table.key, key, strict=True):
            row[place] = part
        row[-3:] = self.some_data()
        return tuple(row)

    def some_data(self) -> list[Any]:
        return [self.random.choice([None, *values]) for values in (TEXTS, FLOATS, NUMERICS)]

    def a_number(self) -> int:
        return self.random.choice([0, 0, 1, 2, 3])

    def pair(self, slot: int) -> Pair:
        if slot not in self.pairs:
            self.pairs[slot] = Pair(self.engine, self.model, repeatable=self.random.random() < 0.5)
        return self.pairs[slot]

    # ---------- writing ----------
    def write(self, slot: int, keys: list[RowId], real: Any, expected: Callable[[], Any]) -> None:
        """Both sides of one write; an error ends the transaction."""
        pair = self.pairs[slot]
        held = [key for key in keys if self.model.holder(self.same(key)) not in (None, pair.model)]
        if held:
            real.close()
            self.is_locked(pair, held[0])
            return
        try:
            wanted = expected()
        except Conflict as conflict:
            self.runner.run(refused(conflict.sqlstate, real))
            self.fail(slot)
            return
        assert self.runner.run(real) == wanted

    def is_locked(self, pair: Pair, key: RowId) -> None:
        pair.model.view(0)
        self.runner.run(
            refused("55P03", pair.real.lock(pair.real.snapshot(), self.table, [key], wait="nowait")))

    def fail(self, slot: int) -> None:
        """As the SQL layer after an error: back to the savepoint, or the end."""
        pair = self.pairs[slot]
        if pair.model.level == 1:
            self.end(slot)
            return
        level = pair.model.level
        pair.close_cursors()
        pair.real.rollback_to_level(level)
        pair.model.rollback_to(level)

    def end(self, slot: int) -> None:
        pair = self.pairs.pop(slot)
        pair.close_cursors()
        pair.real.rollback()
        pair.model.end()

    @rule(slot=SLOTS, count=st.integers(1, 12))
    def write_some(self, slot: int, count: int) -> None:
        for kind in self.random.choices("iumdlsrgcft", weights=[4, 2, 2, 2, 1, 2, 1, 4, 1.5, 0.7, 0.3], k=count):
            match kind:
                case "c":
                    self.commit_now(slot)
                case "f":
                    self.flush_now(cleaned=self.random.random() < 0.6, alone=self.random.random() < 0.3)
                case "t":
                    self.compact_now(everything=self.random.random() < 0.6)
                case "g":
                    self.get(slot, self.a_number())
                    self.scan(slot, self.a_number())
                    self.scan_columns(slot, self.a_number())
                case "s":
                    self.savepoint(slot, self.random.choice([0, 0, 0, 1, 2]), self.random.choice([1, 1, 2]))
                case "r":
                    self.rollback_to(slot, self.random.randint(-1, 2), failed=self.random.random() < 0.5)
                case "i":
                    self.insert(slot)
                case "u" | "m":
                    self.update(slot, moving=kind == "m")
                case "d":
                    self.delete(slot)
                case "l":
                    self.lock(slot)

    def insert(self, slot: int) -> None:
        skip, nowait, batched = (self.random.random() < share for share in (0.4, 0.4, 0.5))
        pair, key = self.pair(slot), self.an_id()
        if pair.model.exists(self.same(key)) and self.random.random() < 0.9:
            return  # a failure would be the end of the transaction: not too often
        if key not in self.seen:
            self.seen.append(key)
        row = self.a_row(key[1])

        async def insert() -> int:
            if nowait and not skip and pair.real.insert_nowait(self.table, key[0], row):
                return 1
            if batched and await pair.real.insert_batch(self.table, key[0], batch_of(self.table, [row])):
                return 1
            return await pair.real.insert(self.table, [(key[0], row)], skip_conflicts=skip)

        self.write(slot, [key], insert(), lambda: pair.model.insert(self.same(key), row, skip=skip))

    def update(self, slot: int, *, moving: bool) -> None:
        pair, key = self.pair(slot), self.an_id()
        width = len(self.table.columns)
        values: dict[int, Any] = dict(zip(range(width - 3, width), self.some_data(), strict=True))
        target = key
        if moving:
            target = (key[0], self.a_key())
            if pair.model.exists(self.same(target)) and self.random.random() < 0.9:
                return
            values.update(zip(self.table.key, target[1], strict=True))

        def changed(row: Row) -> Row:
            return tuple(values.get(place, value) for place, value in enumerate(row))

        self.write(slot, [key, target], pair.real.update(self.table, [(key, values)]),
                   lambda: pair.model.change(self.same(key), self.same(target), changed))

    def delete(self, slot: int) -> None:
        pair, key = self.pair(slot), self.an_id()
        self.write(slot, [key], pair.real.delete(self.table, [key]), lambda: pair.model.delete(self.same(key)))

    def lock(self, slot: int) -> None:
        """A locking read gives the newest version, unless the transaction wrote it after it took the snapshot."""
        number = self.a_number()
        pair, key = self.pair(slot), self.an_id()
        snapshot = pair.real.snapshot(number)
        view = pair.model.view(number)

        async def lock() -> Any:
            row = (await pair.real.lock(snapshot, self.table, [key]))[0]
            return None if row is None else plain(row[:-2])

        def newest() -> Any:
            pair.model.fix()
            pair.model.lock(self.same(key))
            row = pair.model.newest(self.same(key))
            own, then = (owned.get(self.same(key), _COMMITTED) for owned in (pair.model.own, view.own))
            return plain(row) if own is then else None

        self.write(slot, [key], lock(), newest)

    # ---------- reading ----------
    @rule(slot=SLOTS, count=st.integers(1, 6))
    def read_some(self, slot: int, count: int) -> None:
        for _ in range(count):
            self.get(slot, self.a_number())
            self.scan(slot, self.a_number())
            self.scan_columns(slot, self.a_number())

    def get(self, slot: int, number: int) -> None:
        pair, key = self.pair(slot), self.an_id()
        found = self.look_up(pair, pair.real.snapshot(number), key)
        row = pair.model.view(number).rows().get(self.same(key))
        if row is None:
            assert found is None
            return
        assert found is not None
        assert plain(found[:-2]) == plain(row)
        own = pair.model.views[number].own if number else pair.model.own
        assert (found[-2] is None) == (self.same(key) in own)
        assert found[-1] == (None if self.table.kind == "shared" else key[0])

    def look_up(self, pair: Pair, snapshot: Any, key: RowId) -> Row | None:
        while True:
            try:
                return pair.real.get(snapshot, self.table, *key)
            except NotInMemory as missing:
                self.runner.run(self.engine.load(missing))

    def scan(self, slot: int, number: int) -> None:
        pair = self.pair(slot)
        scan, expected = self.a_scan(pair.model.view(number))
        cursor = pair.real.scan(pair.real.snapshot(number), scan)
        if self.random.random() < 0.4:
            pair.cursors.append((cursor, expected))
        else:
            self.drain(cursor, expected)

    @precondition(lambda self: any(pair.cursors for pair in self.pairs.values()))
    @rule()
    def read_on(self) -> None:
        """What a cursor shows is what was there when it was opened."""
        pair = self.random.choice([pair for pair in self.pairs.values() if pair.cursors])
        self.drain(*pair.cursors.pop(0))

    def drain(self, cursor: Any, expected: list[Any]) -> None:
        size = self.random.choice([1, 3, 100])
        found: list[Row] = []
        while rows := cursor.fetch(size):
            assert len(rows) <= size
            found += rows
        cursor.close()
        assert [plain(row) for row in found] == expected

    def scan_columns(self, slot: int, number: int) -> None:
        """All rows as batches, which come in no order; often of columns that the scan before did not have."""
        pair = self.pair(slot)
        columns = tuple(self.random.sample(every(self.table), self.random.randint(1, len(every(self.table)))))
        scan = Scan(self.table, self.random.choice([None, *self.shape.tenants]), columns)
        expected = self.expected(scan, None, pair.model.view(number))
        cursor = pair.real.scan(pair.real.snapshot(number), scan)
        batches = cursor.batches()
        kinds = [self.table.columns[place].type for place in columns]
        if batches is not None:
            found = [plain(row) for batch in batches for row in types.rows_of_batch(batch, kinds)]
            assert sorted(map(repr, found)) == sorted(map(repr, expected))
        cursor.close()

    def a_scan(self, view: View) -> tuple[Scan, list[Any]]:
        """A scan and its rows."""
        draw, chance = self.random.choice, self.random.random
        key = self.a_key()
        prefix = key[: self.random.randint(0, len(key))]
        low, high = self.an_edge(prefix), self.an_edge(prefix)
        where = draw(_conditions(draw(TEXTS), draw(FLOATS), draw(NUMERICS))) if chance() < 0.5 else None
        names = {name: f"c{column.id}" for name, column in zip("vfn", self.table.columns[-3:], strict=True)}
        scan = Scan(
            self.table, draw([None, *self.shape.tenants]), tuple(self.random.choices([*every(self.table), -2], k=4)),
            None if where is None else where.sql.format(**names), () if where is None else where.params,
            prefix, low, high, draw([None, None, 0, 1, 3]), chance() < 0.5,
        )
        return scan, self.expected(scan, where, view)

    def an_edge(self, prefix: Key) -> tuple[Any, bool] | None:
        """A bound of the column after the prefix."""
        if len(prefix) == len(self.shape.types) or self.random.random() < 0.5:
            return None
        return self.random.choice(KEYS[self.shape.types[len(prefix)]]), self.random.random() < 0.5

    def expected(self, scan: Scan, where: Condition | None, view: View) -> list[Any]:
        found = []
        for (tenant, rank), row in sorted(view.rows().items(), key=lambda item: (item[0][0].encode(), item[0][1])):
            if scan.tenant not in (None, tenant) or not self.in_range(scan, rank):
                continue
            if where is not None and not where.holds(tenant, row[-3:]):
                continue
            shown = tuple((None if self.table.kind == "shared" else tenant) if place == -2 else row[place]
                          for place in scan.columns)
            found.append(plain((tenant, self.shape.key(row), *shown) if scan.with_id else shown))
        return found[: scan.limit]

    def in_range(self, scan: Scan, rank: tuple[Any, ...]) -> bool:
        places = len(scan.key_prefix)
        if rank[:places] != self.shape.rank(scan.key_prefix):
            return False
        if scan.low is not None:
            edge = RANKS[self.shape.types[places]](scan.low[0])
            if rank[places] < edge or (rank[places] == edge and not scan.low[1]):
                return False
        if scan.high is not None:
            edge = RANKS[self.shape.types[places]](scan.high[0])
            if rank[places] > edge or (rank[places] == edge and not scan.high[1]):
                return False
        return True

    # ---------- definitions ----------
    @rule()
    def alter(self) -> None:
        """The last three columns go and come again, with values for the rows that are there. Snapshots of before show
        their rows so, too; cursors that are open go on as they began."""
        if any(key == (self.table.id,) for key, _, _ in self.engine.locks.holders()):
            return
        values, number = self.some_data(), self.table.next_column
        kept = self.table.columns[:-3]
        added = tuple(replace(column, id=number + place, late=True, missing=value)
                      for place, (column, value) in enumerate(zip(self.table.columns[-3:], values, strict=True)))

        async def alter() -> TableDef:
            transaction = self.engine.begin(None)
            made = await transaction.alter_table(replace(self.table, columns=(*kept, *added)))
            await transaction.commit()
            return made

        self.table = self.runner.run(alter())
        self.shape = Shape(self.table, self.shape.tenants)
        self.model.alter(lambda row: (*row[:-3], *values))

    # ---------- savepoints, snapshots, the end ----------
    def savepoint(self, slot: int, released: int, opened: int) -> None:
        pair = self.pair(slot)
        floor = max(1, pair.model.level - released)
        pair.real.set_level(floor, floor + opened)
        pair.model.set_level(floor, floor + opened)
        assert pair.real.level == pair.model.level

    def rollback_to(self, slot: int, levels: int, *, failed: bool) -> None:
        pair = self.pair(slot)
        if pair.model.level == 1:
            return
        level = max(2, pair.model.level - levels)
        if failed:
            pair.real.fail()
        pair.close_cursors()
        pair.real.rollback_to_level(level)
        pair.model.rollback_to(level)
        assert (pair.real.level, pair.real.status) == (pair.model.level, "T")

    @rule(slot=SLOTS, number=st.integers(1, 3))
    def release(self, slot: int, number: int) -> None:
        pair = self.pairs.get(slot)
        if pair is not None:
            pair.real.release(number)
            pair.model.views.pop(number, None)

    @rule(slot=SLOTS)
    def commit(self, slot: int) -> None:
        self.commit_now(slot)

    def commit_now(self, slot: int) -> None:
        pair = self.pairs.pop(slot, None)
        if pair is None:
            return
        pair.close_cursors()
        seq = self.runner.run(pair.real.commit())
        assert (seq is None) <= (not pair.model.own)
        pair.model.commit()

    @precondition(lambda self: len(self.pairs) > 1)
    @rule(slot=SLOTS)
    def rollback(self, slot: int) -> None:
        if slot in self.pairs:
            self.end(slot)

    # ---------- tiers ----------
    @rule(cleaned=st.booleans(), alone=st.booleans())
    def flush(self, cleaned: bool, alone: bool) -> None:
        self.flush_now(cleaned=cleaned, alone=alone)

    def flush_now(self, *, cleaned: bool, alone: bool) -> None:
        """Not ``cleaned``: as after a crash behind the publication. Not ``alone``: as if others had written since."""
        with pytest.MonkeyPatch.context() as patch:
            if not alone:
                patch.setattr(self.engine, "last_written", lambda table_id: 1 << 62)
            if not cleaned:
                patch.setattr(self.engine.tiers, "_clean", _nothing)
            self.runner.run(self.engine.tiers.flush(self.table))

    @rule(everything=st.booleans())
    def compact(self, everything: bool) -> None:
        self.compact_now(everything=everything)

    def compact_now(self, *, everything: bool) -> None:
        self.runner.run(self.engine.tiers.compact(self.table, everything=everything))
        self.runner.run(self.engine.tiers.sweep())

    @rule()
    def forget_groups(self) -> None:
        """As if the cache had been needed for others."""
        self.engine.cold.cache = GroupCache(1)

    @precondition(lambda self: not self.pairs)
    @rule()
    def reopen(self) -> None:
        self.runner.run(self.engine.close())
        self.engine = self.runner.run(open_engine(self.directory))
        found = self.engine.begin(None).catalog.table("n", self.table.name)
        assert found is not None
        assert dump_table(found) == dump_table(self.table)  # NaN may be among its values

    @invariant()
    def locks_are_those_of_the_model(self) -> None:
        held = sum(len(pair.model.locks) for pair in self.pairs.values())
        rows = {key[1:] for key, _, _ in self.engine.locks.holders() if len(key) == 3 and key[0] != "runs"}
        for pair in self.pairs.values():
            rows |= self.in_runs(pair)
        assert len(rows) == held

    def in_runs(self, pair: Pair) -> set[tuple[str, Any]]:
        """Keys of rows whose locks need not be kept."""
        found: set[tuple[str, Any]] = set()
        for overlay in pair.real._overlay.tables.values():
            batches = overlay.runs.view().batches(["_userid", "k"], ColdRange(), 1 << 62, lambda: None)
            for batch, _ in batches:
                found.update(zip(batch.column("_userid").to_pylist(), batch.column("k").to_pylist(), strict=True))
        return found

    def check_segments(self) -> None:
        """Files and manifest are of one mind once nobody reads, and no key is in two places."""
        for pair in self.pairs.values():
            pair.close_cursors()
            pair.real.rollback()
        self.runner.run(self.engine.tiers.wait_swept())
        gc.collect()  # errors that were caught hold frames, and these snapshots
        self.runner.run(self.engine.tiers.sweep())
        files = {str(path.relative_to(self.directory / "segments"))
                 for path in (self.directory / "segments").rglob("*.parquet")}
        assert files == {file for (file,) in self.engine.live.query("SELECT file FROM kalam_segments", ())}

    @invariant()
    def committed_rows(self) -> None:
        if not hasattr(self, "model"):
            return
        rows = stored(self.engine, self.table, with_id=True)
        found = {self.same((row[0], row[1])): plain(row[2:]) for row in rows}
        assert len(found) == len(rows)
        assert found == {key: plain(row) for key, (row, _) in self.model.committed.items()}


async def _nothing(table: TableDef) -> None:
    pass


Engine.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
TestEngine = Engine.TestCase
