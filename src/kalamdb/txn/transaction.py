"""One transaction: reads through snapshots, writes into its overlay, locks what it writes, commits as one record.

READ COMMITTED takes a new snapshot for every number asked for and changes the newest version of a row after a wait.
REPEATABLE READ and SERIALIZABLE keep one snapshot of committed data; changing a row that somebody else changed since
is 40001. Uniqueness of keys is decided under the key's lock against own writes and the newest committed rows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice, repeat
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakSet

import pyarrow as pa

from kalamdb import types
from kalamdb.api import ClientSession, Row
from kalamdb.catalog.catalog import CatalogChanges, View
from kalamdb.errors import KalamError
from kalamdb.store.files import told, unlink_scratch
from kalamdb.store.hot import HotSnapshot, Layout, LiveReader
from kalamdb.store.writer import Settled, outcome
from kalamdb.txn import bulk, few
from kalamdb.txn.api import (
    AccountDef,
    DroppedTable,
    Isolation,
    Key,
    NotInMemory,
    RowId,
    Sample,
    Scan,
    StaleDefinition,
    TableDef,
)
from kalamdb.txn.bulk import Part, Run, Version
from kalamdb.txn.locks import LockKey, Waiter
from kalamdb.txn.overlay import FEW, Overlay, RowKey, TableOverlay
from kalamdb.txn.sample import StoreSample
from kalamdb.txn.scan import StoreScan

if TYPE_CHECKING:
    from kalamdb.txn.engine import StoreEngine

#: rows written before others get a turn of the event loop
TURN = 1000
_ABSENT: Any = object()
T = TypeVar("T")
ContentKey = tuple[int, str, bytes]  # table, tenant, SHA-256


class TxnSnapshot:
    """What one statement sees: committed rows of an instant, and own writes up to a position."""

    __slots__ = ("hot", "position")

    def __init__(self, hot: HotSnapshot, position: int) -> None:
        self.hot = hot
        self.position = position


class StoreTransaction:
    """``kalamdb.txn.api.Transaction``."""

    def __init__(self, engine: StoreEngine, txn_id: str, isolation: Isolation, read_only: bool, lock_timeout_ms: int,
                 *, named: bool, session: ClientSession | None = None) -> None:
        self.id = txn_id
        self.session = session
        self.started_ns = time.time_ns()
        self.named = named  # by the client, who may ask for the outcome
        self.isolation = isolation
        self.read_only = read_only
        self.status = "T"
        self.catalog = View(engine.catalog)
        self.locks: list[LockKey] = []
        self.waits_for: Waiter | None = None
        self._engine = engine
        self.lock_timeout_ms = lock_timeout_ms
        self._overlay = Overlay()
        self._snapshots: dict[int, TxnSnapshot] = {}
        self._pinned: HotSnapshot | None = None
        self._opened: WeakSet[HotSnapshot] | None = None  # none outlives the transaction but for who holds it
        self._entered: set[int] = set()
        #: contents that its rows refer to, by table: they stay as long as it may commit
        self.contents: set[ContentKey] = set()
        self._ended = False

    @property
    def level(self) -> int:
        return self._overlay.level

    @property
    def keeps_snapshot(self) -> bool:
        """Will it read what is committed by now as it was before?"""
        return self._pinned is not None or bool(self._snapshots)

    @property
    def rows_written(self) -> int:
        return sum(len(overlay.rows) + overlay.runs.rows for overlay in self._overlay.tables.values())

    # ---------- snapshots ----------
    def snapshot(self, number: int = 0) -> TxnSnapshot:
        found = self._snapshots.get(number) if number else None
        if found is not None:
            return found
        if self._ended:
            raise AssertionError("transaction used after its end")
        made = TxnSnapshot(self._committed(), self._overlay.position)
        self._overlay.position += 1
        if number:  # more statements will name it: fixed now, whether this one reads or not
            made.hot.fix()
            self._snapshots[number] = made
        return made

    def newest(self) -> TxnSnapshot:
        hot = self._open()
        hot.fix()
        made = TxnSnapshot(hot, self._overlay.position)
        self._overlay.position += 1
        return made

    def _check_definition(self, hot: HotSnapshot, table: TableDef) -> None:
        """A snapshot must not be younger than the definition it is read by: a plan may have waited, and a commit is
        on the disk before its definitions are everybody's."""
        engine = self._engine
        current = engine.catalog.by_id.get(table.id)
        if current is None or (current.version == table.version and table.id not in engine.changing):
            return
        if self.catalog.changes is not None and self.catalog.changes.of(table.id) is not None:
            return
        found = hot.query("SELECT json_extract(definition, '$.version') FROM kalam_tables WHERE id = ? "
                          "AND definition <> ''", (table.id,))
        if found and found[0][0] > table.version:
            raise StaleDefinition(table)

    async def settled(self, table: TableDef) -> None:
        await self._engine.wait_changed(table.id)
        self._check_alive()

    def _open(self) -> HotSnapshot:
        made = self._engine.hot_snapshot(late=True)
        if self._opened is None:
            self._opened = WeakSet()
        self._opened.add(made)
        return made

    def _committed(self) -> HotSnapshot:
        if self.isolation == "read committed":
            return self._open()
        if self._pinned is None:
            self._pinned = self._open()
            self._pinned.fix()
        return self._pinned

    def release(self, number: int) -> None:
        self._snapshots.pop(number, None)

    # ---------- reading ----------
    def get(self, snapshot: TxnSnapshot, table: TableDef, tenant: str, key: Key) -> Row | None:
        self._check_definition(snapshot.hot, table)
        layout = self._engine.layouts.of(table)
        k = layout.codec.encode(key)
        overlay = self._overlay.tables.get(table.id)
        if overlay is not None:
            version = overlay.visible((tenant, k), snapshot.position)
            if version is not None:
                return None if version[1] is None else _own(layout, tenant, version[1])
        return self._engine.stored(table, layout, snapshot.hot, (tenant, k))

    def own_definition(self, table: TableDef) -> TableDef | None:
        changes = self.catalog.changes
        return None if changes is None else changes.of(table.id)

    def reads_hot_alone(self, snapshot: TxnSnapshot, table: TableDef) -> bool:
        snapshot.hot.pin()
        overlay = self._overlay.tables.get(table.id)
        own = overlay is not None and bool(overlay.rows or overlay.runs)
        return not own and self._engine.cold_part(snapshot.hot, table) is None

    def scan(self, snapshot: TxnSnapshot, scan: Scan) -> StoreScan:
        layout = self._engine.layouts.of(scan.table)
        since = self._engine.horizon(scan.table) if layout.stream else None
        snapshot.hot.pin()
        self._check_definition(snapshot.hot, scan.table)
        overlay = self._overlay.tables.get(scan.table.id)
        own = _candidates(overlay, scan) if overlay is not None and overlay.rows else ()
        return StoreScan(snapshot.hot, layout, scan, since, own, snapshot.position,
                         self._engine.cold_part(snapshot.hot, scan.table),
                         overlay.runs.view() if overlay is not None and overlay.runs else None,
                         None if layout.stream else self._engine.columns)

    def at_hand(self, snapshot: TxnSnapshot, scan: Scan, *, alone: bool) -> list[pa.RecordBatch] | None:
        table, overlay = scan.table, self._overlay.tables.get(scan.table.id)
        part = scan.where is not None or scan.limit is not None or scan.in_range
        if part or scan.with_id or not scan.columns or table.kind == "stream" or (
                overlay is not None and (overlay.rows or overlay.runs)):
            return None
        hot = snapshot.hot
        hot.fix()
        self._check_definition(hot, table)
        return None if self._engine.cold_part(hot, table) else few.at_hand(self._engine, hot, scan, alone=alone)

    def sample(self, snapshot: TxnSnapshot, sample: Sample) -> StoreSample:
        table = sample.table
        layout = self._engine.layouts.of(table)
        since = self._engine.horizon(table) if layout.stream else None
        snapshot.hot.pin()
        self._check_definition(snapshot.hot, table)
        own = table.id in self._overlay.tables
        tenant = "" if layout.shared else sample.tenant
        whole = self.scan(snapshot, Scan(table, tenant, sample.columns, None, (), sample.key_prefix, sample.low,
                                         sample.high)) if own else None
        return StoreSample(snapshot.hot, layout, sample, since, self._engine.cold_part(snapshot.hot, table), whole)

    # ---------- locks ----------
    async def _lock(self, key: LockKey, *, share: bool = False, timeout_ms: int = 0) -> bool:
        """True if it had to wait."""
        timeout = timeout_ms or self.lock_timeout_ms or self._engine.lock_timeout_ms
        waited = await self._engine.locks.lock(self, key, share=share, timeout_ms=timeout)
        self._check_alive()
        return waited

    def _check_alive(self) -> None:
        if self._ended:
            raise KalamError("25P01", "the transaction has ended")

    def _check_writable(self) -> None:
        self._check_alive()
        if self.read_only:
            raise KalamError("25006", "cannot write in a read-only transaction")

    def _enter_nowait(self, table: TableDef) -> bool:
        """The writer's share lock on its table, which keeps DROP away; False where it has to wait."""
        self._check_writable()
        if table.id in self._entered:
            return True
        if not self._engine.locks.try_lock(self, (table.id,), share=True):
            return False
        self._entered_table(table)
        return True

    async def _enter(self, table: TableDef) -> None:
        self._check_writable()
        if table.id not in self._entered:
            await self._lock((table.id,), share=True)
            self._entered_table(table)

    def _entered_table(self, table: TableDef) -> None:
        current = self.catalog.current(table)
        if current is None:
            raise self._gone(table)
        if current.version != table.version:
            raise StaleDefinition(table)
        if self._pinned is None and self.isolation != "read committed":
            self._committed()  # a write, too, fixes what the transaction sees
        if self.level == 1:  # a savepoint's rollback gives the lock back
            self._entered.add(table.id)

    # ---------- writing ----------
    def insert_nowait(self, table: TableDef, tenant: str, row: Row) -> bool:
        if not self._enter_nowait(table):
            return False
        layout = self._engine.layouts.of(table)
        overlay = self._overlay.table(table, layout)
        if _spills(overlay) or self._loaders(table):
            return False
        key = new_key(self._engine, table, layout, tenant, row, self.contents)
        if not self._engine.locks.try_lock(self, (table.id, *key)):
            return False
        try:
            if table.key and self._exists(overlay, key):
                raise duplicate(table, row)
        except NotInMemory:
            return False
        self._overlay.insert(overlay, key, row)
        return True

    async def insert(self, table: TableDef, rows: Iterable[tuple[str, Row]], *, skip_conflicts: bool = False,
                     conflicts: list[int] | None = None) -> int:
        await self._enter(table)
        layout = self._engine.layouts.of(table)
        overlay = self._overlay.table(table, layout)
        last: dict[str, Any] = {}  # by tenant: the highest committed key, as long as nobody else had a turn
        source, count, seen = iter(rows), 0, 0
        while part := list(islice(source, TURN)):
            taken: list[int] = []
            if not self._insert_new(overlay, part, last):
                await self._insert_each(overlay, part, last, taken if skip_conflicts else None)
            count += len(part) - len(taken)
            if conflicts is not None:
                conflicts += [seen + place for place in taken]
            seen += len(part)
            if len(part) == TURN:
                await asyncio.sleep(0)
                self._check_alive()
                last.clear()
                await self._spill(overlay)
        await self._spill(overlay)
        return count

    async def insert_batch(self, table: TableDef, tenant: str, batch: pa.RecordBatch) -> bool:
        await self._enter(table)
        layout = self._engine.layouts.of(table)
        if layout.stream or layout.files or not table.key or table.checks or batch.num_rows < bulk.PART_ROWS or any(
                batch.column(place).null_count for place, column in enumerate(table.columns)
                if column.not_null or place in table.key):
            return False
        overlay = self._overlay.table(table, layout)
        if overlay.runs.making is not None and overlay.runs.making.sealed:
            await self._finish_run(overlay)
        keys = await self._keys_of(overlay, batch)
        part = overlay.runs.part_of(tenant, self._overlay.position, batch, keys)
        if part is None:
            return False
        if overlay.runs.may_be_in_files(part):
            known = await self._engine.tiers.in_thread(partial(overlay.runs.in_files, part), pool="bulk")
            self._check_alive()
            if known:
                return False
        if not self._is_new(overlay, part):
            return False
        self._overlay.insert_part(overlay, part)
        self._engine.locks.try_lock(self, self._run_key(part.id))
        self._engine.loading.setdefault(table.id, {})[self] = None
        await asyncio.sleep(0)
        self._check_alive()
        await self._write_parts(overlay)
        return True

    async def _keys_of(self, overlay: TableOverlay, batch: pa.RecordBatch) -> bulk.Keys:
        """Of a batch; those that have to be encoded one by one let others have their turns."""
        if overlay.layout.codec.integer:
            return overlay.runs.keys_of(batch)
        keys: list[Any] = []
        for start in range(0, batch.num_rows, TURN):
            keys += overlay.runs.keys_of(batch.slice(start, TURN))
            await asyncio.sleep(0)
            self._check_alive()
        return keys

    def _is_new(self, overlay: TableOverlay, part: Part) -> bool:
        """Has nobody a row in the range of a part's keys, or a lock?"""
        table, (tenant, least), greatest = overlay.table, part.first, part.last[1]
        if overlay.rows and overlay.in_range(tenant, ((">=", least), ("<=", greatest))):
            return False
        return not (
            overlay.runs.collides(part)
            or any(other.overlaps_runs(table, part) for other in self._loaders(table))
            or self._engine.locks.others_have(self, table.id, tenant, part.memory.key_list())
            or self._engine.any_between(overlay.layout, tenant, least, greatest))

    async def _write_parts(self, overlay: TableOverlay) -> None:
        """Parts beyond what a transaction may hold in memory are written to a run."""
        runs = overlay.runs
        many = sum(part.rows for part in runs.waiting) >= bulk.BULK_ROWS or (
            sum(part.bytes for part in runs.waiting) >= bulk.BULK_BYTES)
        if runs.making is not None and runs.making.takes(runs.waiting):
            self._make_run(overlay, runs.waiting)
        elif many:
            if runs.making is not None:
                await self._finish_run(overlay)
            self._make_run(overlay, runs.waiting)
            if overlay.table.id in self._engine.catalog.by_id:  # else it is this transaction's own
                await self._engine.tiers.begin(overlay.table)  # while more rows come, not at the commit
                self._check_alive()
        making = runs.making
        if making is None:
            return
        if making.full:
            await self._finish_run(overlay)
        elif making.behind:
            await making.drained()
            self._check_alive()

    def _make_run(self, overlay: TableOverlay, parts: Sequence[Part]) -> None:
        """These go to the run in the making, or a new one."""
        runs, tiers = overlay.runs, self._engine.tiers
        making = runs.making
        if making is None:
            storage = tiers.storage(overlay.table)
            making = runs.make(storage.scratch(), storage.id, partial(tiers.in_thread, pool="bulk"))
        making.add(parts)
        runs.waiting = []

    async def _finish_run(self, overlay: TableOverlay) -> None:
        """The run in the making takes its parts' place, and is locked as its first part is."""
        making = overlay.runs.making
        assert making is not None
        segment, written = await making.finish()
        if self._ended or overlay.runs.making is not making:
            self._check_alive()
            return
        overlay.runs.add_made(making, segment, written)
        self._engine.locks.forget(self, {self._run_key(part.id) for part in making.parts[1:]},
                                  self._overlay.locks_before)

    async def settle_runs(self, overlay: TableOverlay) -> None:
        """Before the commit: of the parts that are left, those become a run that may go with others, or are many, or
        have rows that a run may hide."""
        runs = overlay.runs
        made = {part.id for part in runs.making.parts} if runs.making is not None else set()
        rest = sorted((part for part in runs.parts if part.id not in made), key=attrgetter("first"))
        if rest and runs.making is not None and not runs.making.takes(rest):
            await self._finish_run(overlay)
        if rest and (runs.making is not None or runs.changing or sum(part.rows for part in rest) >= bulk.BULK_ROWS):
            self._make_run(overlay, rest)
        if runs.making is not None:
            await self._finish_run(overlay)

    def _insert_new(self, overlay: TableOverlay, part: Sequence[tuple[str, Row]], last: dict[str, Any]) -> bool:
        """Insert rows whose keys lie where no row is, as those of a load mostly do, all at once. False where each has
        to be looked at, and nothing was done."""
        table, tenants = overlay.table, {tenant for tenant, _ in part}
        if len(part) < FEW or not table.key or table.checks or overlay.layout.files:
            return False
        for column, values in zip(table.columns, zip(*[row for _, row in part], strict=True), strict=True):
            if column.not_null and None in values:
                return False
        keys = overlay.layout.codec.row_keys(part, table.key)
        for tenant in tenants:
            if tenant not in last:
                last[tenant] = self._engine.last_key(overlay.layout, tenant)
        if any(last[tenant] is not None and min([k for owner, k in keys if owner == tenant]) <= last[tenant]
               for tenant in tenants):
            return False
        if len(set(keys)) < len(keys) or not overlay.rows.keys().isdisjoint(keys) or overlay.runs.may_hold(keys):
            return False
        if any(other.may_hold_in_run(table, keys) for other in self._loaders(table)):
            return False
        if not self._engine.locks.try_lock_new(self, _lock_keys(table, keys)):
            return False
        self._overlay.insert_new(overlay, keys, [row for _, row in part])
        return True

    async def _insert_each(self, overlay: TableOverlay, part: Sequence[tuple[str, Row]], last: dict[str, Any],
                           skipped: list[int] | None) -> None:
        """Rows whose key is taken are an error, or go to ``skipped`` by their places."""
        table, layout = overlay.table, overlay.layout
        write = self._overlay.insert
        for place, (tenant, row) in enumerate(part):
            key = new_key(self._engine, table, layout, tenant, row, self.contents)
            await self._lock_row(table, key, aside=last)
            taken = bool(table.key) and await self._read(self._exists, overlay, key, last, aside=last)
            if taken:
                if skipped is None:
                    raise duplicate(table, row)
                await self._read(self._check_visible, overlay, key, aside=last)
                skipped.append(place)
            else:
                write(overlay, key, row)

    async def _spill(self, overlay: TableOverlay) -> None:
        """Rows and deletions beyond what a transaction may hold in memory become runs. Being there is their lock: those
        that they had need not stay in memory either."""
        if not _spills(overlay):
            return
        found = overlay.for_run()
        if not found:
            overlay.forget_fresh()
            return
        storage, changes = self._engine.tiers.storage(overlay.table), overlay.changing
        there = [(key, version) for key, version in found if version[1] is not None]
        gone = [(key, version) for key, version in found if version[1] is None]
        paths: list[Path] = []

        def write() -> list[Run]:
            made = []
            for part in filter(None, (there, gone)):
                paths.append(storage.scratch())
                with told("write", paths[-1].name, storage.id):
                    made.append(overlay.runs.write(paths[-1], part, gone=part is gone, changes=changes))
            return made

        try:
            runs = await self._engine.tiers.in_thread(write, pool="bulk")
            self._check_alive()
        except BaseException:
            for path in paths:
                unlink_scratch(path)
            raise
        keys = [key for key, _ in found]
        self._overlay.to_runs(overlay, keys, runs)
        self._engine.loading.setdefault(overlay.table.id, {})[self] = None
        lock_keys, keep = _lock_keys(overlay.table, keys), self._overlay.locks_before
        if not self._engine.locks.forget_last(self, lock_keys, keep):
            self._engine.locks.forget(self, set(lock_keys), keep)
        for run in runs:
            self._engine.locks.try_lock(self, self._run_key(run.segment.id))

    def _exists(self, overlay: TableOverlay, key: tuple[str, int | bytes], last: dict[str, Any] | None = None) -> bool:
        """Is there a row of this key now? The key's lock is held. ``last`` spares look-ups beyond the highest key."""
        version = overlay.newest(key)
        if version is not None:
            return version[1] is not None
        tenant, k = key
        live = self._engine.live
        if last is not None:
            highest = last.get(tenant, _ABSENT)
            if highest is _ABSENT:
                highest = last[tenant] = self._engine.last_key(overlay.layout, tenant)
            if highest is None or k > highest:
                return False
        if overlay.layout.stream:
            return self._committed_row(overlay, live, key) is not None
        if overlay.table.id not in self._engine.tiered:
            return live.exists(overlay.layout, tenant, k)
        with live.instant():
            return live.exists(overlay.layout, tenant, k) or self._engine.cold_exists(overlay.layout, key)

    async def _read(self, look: Callable[..., T], *args: Any, aside: dict[str, Any] | None = None) -> T:
        """What ``look`` finds; where it has to wait for a file, after it has been read. ``aside``: what the caller has
        noted of committed rows, and is emptied when others had a turn meanwhile."""
        while True:
            try:
                return look(*args)
            except NotInMemory as missing:
                await self._engine.load(missing)
                self._check_alive()
                if aside is not None:
                    aside.clear()

    def _check_visible(self, overlay: TableOverlay, key: tuple[str, int | bytes]) -> None:
        """ON CONFLICT DO NOTHING over a row that the snapshot does not see is a conflict of its own (PostgreSQL)."""
        if self._pinned is None or overlay.newest(key) is not None:
            return
        if self._committed_row(overlay, self._pinned, key) is None:
            raise _concurrent()

    def _newest(self, overlay: TableOverlay, key: tuple[str, int | bytes], since: int | None = None) -> Row | None:
        """The row of a key whose lock is held, (*columns, _seq, _userid); 40001 if it changed since the snapshot. None
        also where this transaction has written it after the position ``since``."""
        version = overlay.newest(key)
        if version is not None:
            position, own, _ = version
            return None if own is None or (since is not None and position > since) else (
                _own(overlay.layout, key[0], own))
        row = self._committed_row(overlay, self._engine.live, key)
        if self._pinned is not None:
            seen = self._committed_row(overlay, self._pinned, key)
            if (None if seen is None else seen[-2]) != (None if row is None else row[-2]):
                if seen is None:  # came later: not there for this transaction
                    return None
                raise _concurrent(deleted=row is None)
        return row

    def _committed_row(self, overlay: TableOverlay, source: HotSnapshot | LiveReader, key: RowKey) -> Row | None:
        return self._engine.stored(overlay.table, overlay.layout, source, key)

    async def update(self, table: TableDef, changes: Sequence[tuple[RowId, Mapping[int, Any]]]) -> int:
        await self._enter(table)
        layout = self._engine.layouts.of(table)
        overlay = self._overlay.table(table, layout)
        count = 0
        for place, ((tenant, key), values) in enumerate(changes, 1):
            row_key = (tenant, layout.codec.encode(key))
            await self._lock_row(table, row_key)
            before = await self._read(self._newest, overlay, row_key)
            if before is not None:
                await self._replace(overlay, row_key, before, values)
                count += 1
            await self._turn(overlay, place)
        await self._spill(overlay)
        return count

    async def _turn(self, overlay: TableOverlay, place: int) -> None:
        """Others get theirs now and then, and what is too much for the memory goes to a run."""
        if place % TURN == 0:
            await asyncio.sleep(0)
            self._check_alive()
            await self._spill(overlay)
        elif overlay.weight >= bulk.BULK_BYTES:
            await self._spill(overlay)

    def change_nowait(self, table: TableDef, tenant: str, key: Key, matches: Callable[[Row], bool],
                      values: Callable[[Row], Mapping[int, Any]] | None) -> bool | None:
        if self.isolation != "read committed" or not self._enter_nowait(table) or self._loaders(table):
            return None
        layout = self._engine.layouts.of(table)
        overlay = self._overlay.table(table, layout)
        if _spills(overlay):
            return None
        row_key = (tenant, layout.codec.encode(key))
        try:
            row = self._newest(overlay, row_key)
        except NotInMemory:
            return None
        if row is None or not matches(row):
            return False
        # a lock is given back in this thread: what was read is still the newest once it is had
        if not self._engine.locks.try_lock(self, (table.id, *row_key)):
            return None
        changed = None if values is None else self._changed(table, tenant, row, values(row))
        self._overlay.write(overlay, row_key, changed)
        return True

    # ---------- rows' locks ----------
    async def update_locked(self, table: TableDef, changes: Sequence[tuple[RowId, Row, Mapping[int, Any]]]) -> None:
        layout = self._engine.layouts.of(table)
        overlay = self._overlay.table(table, layout)
        for place, ((tenant, key), before, values) in enumerate(changes, 1):
            await self._replace(overlay, (tenant, layout.codec.encode(key)), before, values)
            await self._turn(overlay, place)
        await self._spill(overlay)

    async def _lock_row(self, table: TableDef, key: RowKey, *, share: bool = False, wait: bool = True,
                        timeout_ms: int = 0, aside: dict[str, Any] | None = None) -> bool:
        """False where it would have to wait for somebody and must not. ``aside``: see ``_read``."""
        if self._engine.locks.holds_alone(self, (table.id,)):  # given back, if at all, with what was written under it
            return True
        while self._loaders(table):
            other = await self._read(self._loader_of, table, key, aside=aside)
            if other is None:
                break
            if not wait:
                return False
            await self._wait_for_run(other, timeout_ms)
            if aside is not None:
                aside.clear()
        lock_key = (table.id, *key)
        if self._engine.locks.try_lock(self, lock_key, share=share):
            return True
        if not wait:
            return False
        await self._lock(lock_key, share=share, timeout_ms=timeout_ms)
        if aside is not None:
            aside.clear()
        return True

    async def _wait_for_run(self, key: LockKey, timeout_ms: int) -> None:
        """Until it was committed or taken back."""
        try:
            await self._lock(key, share=True, timeout_ms=timeout_ms)
        finally:
            self._engine.locks.release_one(self, key)

    def _run_key(self, number: int) -> LockKey:
        """Who waits for a row in a part or run of this transaction waits for this."""
        return ("runs", self.id, number)

    def _loaders(self, table: TableDef) -> list[StoreTransaction]:
        """Others that have runs of the table."""
        loading = self._engine.loading.get(table.id)
        return [] if loading is None else [other for other in loading if other is not self]

    def _loader_of(self, table: TableDef, key: RowKey) -> LockKey | None:
        """What to wait for where somebody has a key in a run. NotInMemory."""
        return next(filter(None, (other.run_with(table, key) for other in self._loaders(table))), None)

    def run_with(self, table: TableDef, key: RowKey) -> LockKey | None:
        overlay = self._overlay.tables.get(table.id)
        found = None if overlay is None else overlay.runs.number_with(key)
        return None if found is None else self._run_key(found)

    def overlaps_runs(self, table: TableDef, part: Part) -> bool:
        overlay = self._overlay.tables.get(table.id)
        return overlay is not None and overlay.runs.overlaps(part.first, part.last)

    def may_hold_in_run(self, table: TableDef, keys: Sequence[RowKey]) -> bool:
        overlay = self._overlay.tables.get(table.id)
        return overlay is not None and overlay.runs.may_hold(keys)

    def _end_loading(self) -> None:
        for number in list(self._overlay.tables):
            loading = self._engine.loading.get(number)
            if loading is not None and self in loading:
                del loading[self]
                if not loading:
                    del self._engine.loading[number]

    def _changed(self, table: TableDef, tenant: str, before: Row, values: Mapping[int, Any]) -> Row:
        """A row with new values, looked over."""
        whole = list(before[:-2])
        for position, value in values.items():
            whole[position] = value
        row = tuple(whole)
        for position in values:
            if row[position] is None and table.columns[position].not_null:
                raise _null(table, table.columns[position].name, row)
        if table.checks:
            self._engine.check_row(table, row)
        for place in self._engine.layouts.of(table).files:
            if (value := row[place]) is not None and value != before[place]:
                self.contents.add(self._engine.files.check(table, tenant, table.columns[place], value))
        return row

    async def _replace(self, overlay: TableOverlay, key: tuple[str, int | bytes], before: Row,
                       values: Mapping[int, Any]) -> None:
        table, layout = overlay.table, overlay.layout
        row = self._changed(table, key[0], before, values)
        moved = key
        if any(position in values for position in table.key):
            moved = (key[0], layout.codec.encode([row[place] for place in table.key]))
        if moved != key:
            await self._lock_row(table, moved)
            if await self._read(self._exists, overlay, moved):
                raise duplicate(table, row)
            self._overlay.write(overlay, key, None)
        self._overlay.write(overlay, moved, row)

    async def delete(self, table: TableDef, ids: Sequence[RowId]) -> int:
        await self._enter(table)
        layout = self._engine.layouts.of(table)
        overlay = self._overlay.table(table, layout)
        count = 0
        for place, (tenant, key) in enumerate(ids, 1):
            row_key = (tenant, layout.codec.encode(key))
            await self._lock_row(table, row_key)
            if await self._read(self._newest, overlay, row_key) is not None:
                self._overlay.write(overlay, row_key, None)
                count += 1
            await self._turn(overlay, place)
        await self._spill(overlay)
        return count

    async def lock(
        self, snapshot: TxnSnapshot, table: TableDef, ids: Sequence[RowId], *, share: bool = False,
        wait: Literal["wait", "nowait", "skip"] = "wait", timeout_ms: int = 0,
    ) -> list[Row | None]:
        if wait == "wait":
            await self._enter(table)
        elif not self._enter_nowait(table):
            if wait == "nowait":
                raise _locked(table)
            return [None] * len(ids)
        layout = self._engine.layouts.of(table)
        overlay = self._overlay.table(table, layout)
        found: list[Row | None] = []
        for place, (tenant, key) in enumerate(ids, 1):
            row_key = (tenant, layout.codec.encode(key))
            if not await self._lock_row(table, row_key, share=share, wait=wait == "wait", timeout_ms=timeout_ms):
                if wait == "nowait":
                    raise _locked(table)
                found.append(None)
                continue
            found.append(await self._read(self._newest, overlay, row_key, snapshot.position))
            if place % TURN == 0:
                await asyncio.sleep(0)
                self._check_alive()
        return found

    # ---------- definitions ----------
    async def create_namespace(self, name: str) -> None:
        self._check_writable()
        await self._lock(("namespace", name))
        if name not in self.catalog.namespaces():
            self._define((self.catalog.changes or CatalogChanges()).with_namespace(name, self._version()))

    async def lock_namespace(self, name: str) -> None:
        self._check_writable()
        await self._lock(("namespace", name))

    async def drop_namespace(self, name: str) -> None:
        await self.lock_namespace(name)
        self._define((self.catalog.changes or CatalogChanges()).without_namespace(name, self._version()))

    async def _settle_in(self, namespace: str, name: str) -> None:
        """Lock a name for a new table, and its namespace against being dropped."""
        await self._lock(("namespace", namespace), share=True)
        await self._lock(("table", namespace, name))
        if namespace not in self.catalog.namespaces():
            raise KalamError("3F000", f'schema "{namespace}" does not exist')

    async def create_table(self, table: TableDef) -> TableDef:
        self._check_writable()
        await self._settle_in(table.namespace, table.name)
        if self.catalog.table(table.namespace, table.name) is not None:
            raise KalamError("42P07", f'relation "{table.name}" already exists', schema=table.namespace,
                             table=table.name)
        made = TableDef(self._engine.catalog.next_id(), table.namespace, table.name, table.kind, table.columns,
                        table.key, table.key_constraint, table.checks, table.options, table.owner)
        self._define((self.catalog.changes or CatalogChanges()).with_table(made, self._version()))
        return made

    def _gone(self, table: TableDef) -> Exception:
        """For who waited while a table was dropped: its name is looked up again, as in PostgreSQL."""
        return _gone(table) if self.catalog.table(table.namespace, table.name) is None else StaleDefinition(table)

    async def lock_to_drop(self, table: TableDef) -> None:
        self._check_writable()
        await self._lock(("table", table.namespace, table.name))
        await self._lock((table.id,))
        current = self.catalog.current(table)
        if current is None:
            raise self._gone(table)
        if current.version != table.version:  # its name may be another table's now
            raise StaleDefinition(table)

    async def drop_table(self, table: TableDef) -> None:
        await self.lock_to_drop(table)
        self._define((self.catalog.changes or CatalogChanges()).without_table(table, self._version()))

    async def restore_table(self, dropped: DroppedTable, namespace: str, name: str) -> TableDef:
        self._check_writable()
        await self._settle_in(namespace, name)
        await self._lock((dropped.table.id,))
        if self.catalog.table(namespace, name) is not None:
            raise KalamError("42P07", f'relation "{name}" already exists', schema=namespace, table=name)
        if all(each.table.id != dropped.table.id for each in self._engine.dropped_tables()) or (
                self.catalog.has(dropped.table)):
            raise KalamError("42704", f'dropped table "{dropped.table.name}" cannot be restored any more')
        made = replace(dropped.table, namespace=namespace, name=name, owner=None,
                       version=self._engine.catalog.next_definition())
        self._define((self.catalog.changes or CatalogChanges()).with_restored(made, self._version()))
        return made

    async def lock_table(self, table: TableDef) -> TableDef:
        self._check_writable()
        await self._lock((table.id,))
        current = self.catalog.current(table)
        if current is None:
            raise self._gone(table)
        if self._pinned is None and self.isolation != "read committed":
            self._committed()
        return current

    async def alter_table(self, table: TableDef) -> TableDef:
        before = await self.lock_table(table)
        if (before.namespace, before.name) != (table.namespace, table.name):
            for name in sorted([(before.namespace, before.name), (table.namespace, table.name)]):
                await self._lock(("table", *name))
            if self.catalog.table(table.namespace, table.name) is not None:
                raise KalamError("42P07", f'relation "{table.name}" already exists', schema=table.namespace,
                                 table=table.name)
        made = replace(table, version=self._engine.catalog.next_definition(),
                       last_column=max(before.next_column, table.next_column) - 1)
        own = self._overlay.tables.get(table.id)
        if own is not None and own.runs.making is not None:
            await self._finish_run(own)
        self._define((self.catalog.changes or CatalogChanges()).with_altered(before, made, self._version()))
        self._overlay.alter(made, self._engine.layouts.of(made))
        return made

    async def put_account(self, account: AccountDef) -> None:
        await self._change_account(account.name, account)

    async def drop_account(self, name: str) -> None:
        await self._change_account(name, None)

    async def lock_account(self, name: str) -> None:
        self._check_writable()
        await self._lock(("account", name))

    async def _change_account(self, name: str, account: AccountDef | None) -> None:
        await self.lock_account(name)
        self._define((self.catalog.changes or CatalogChanges()).with_account(name, account, self._version()))

    def _version(self) -> int:
        return self._engine.catalog.next_version()

    def _define(self, changes: CatalogChanges) -> None:
        self._overlay.note_definition(self.catalog.changes)
        self.catalog.changes = changes

    # ---------- savepoints ----------
    def set_level(self, floor: int, level: int) -> None:
        while self.level > max(1, floor):
            self._overlay.release_level()
        while self.level < level:
            self._overlay.open_level(len(self.locks))

    def rollback_to_level(self, level: int) -> None:
        keep: int | None = None
        while self.level >= max(2, level):
            keep, definitions = self._overlay.roll_back_level()
            for before in definitions:
                self.catalog.changes = before
        if keep is not None:
            self._engine.locks.release(self, keep)
        self._overlay.position += 1  # what is undone is out of every reader's sight
        if self.status == "E":
            self.status = "T"

    def fail(self, *, final: bool = False) -> None:
        if self.status == "C":  # a commit under way decides itself
            return
        self.status = "E"
        if final and self.locks:
            self._end_loading()
            self._engine.locks.release(self)
            self._entered.clear()

    # ---------- the end ----------
    async def commit(self, *, alone: bool = False) -> int | None:
        self._check_alive()
        if self.status == "E":
            raise KalamError("25P02", "current transaction is aborted, commands ignored until end of transaction block")
        if alone and (now := self.commit_now(_at_once)) is not None:
            return now
        overlays = self._written()
        changes = self.catalog.changes
        if not overlays and not changes:
            self._end(committed=True)
            return None
        seq: int = await outcome(self._store(overlays, changes))
        return seq

    def commit_soon(self) -> asyncio.Future[int] | None:
        if self._ended or self.status != "T" or self.catalog.changes:
            return None
        overlays = self._written()
        return self._store(overlays, None) if overlays and not any(each.runs.large for each in overlays) else None

    def _store(self, overlays: list[TableOverlay], changes: CatalogChanges | None) -> asyncio.Future[int]:
        self.status = "C"
        self._close_snapshots()
        try:
            stored = self._engine.write(self, overlays, changes)
        except BaseException:
            self._end(committed=False)
            raise
        if isinstance(stored, Settled):
            stored.then(self._decided)
        else:
            stored.add_done_callback(self._decided)
        return stored

    def _written(self) -> list[TableOverlay]:
        """What it has to store."""
        return [overlay for overlay in self._overlay.tables.values()
                if (overlay.rows or overlay.runs) and self.catalog.has(overlay.table)]

    def commit_now(self, later: Callable[[Callable[[], None]], None]) -> int | None:
        if self._ended or self.status != "T" or self.catalog.changes:
            return None
        overlays = self._written()
        if not overlays or not self._engine.is_prompt(overlays):
            return None
        self.status = "C"
        self._close_snapshots()
        try:
            seq = self._engine.commit_now(self, overlays)
        except BaseException:
            self._end(committed=False)
            raise
        later(partial(self._end, committed=True))
        return seq

    def _decided(self, stored: asyncio.Future[int]) -> None:
        """The commit has succeeded or failed. Not for the one who waits to say, who may be gone before: a lock given
        back while the writer is still to store the row would let another change what it was."""
        self._end(committed=not stored.cancelled() and stored.exception() is None)

    def rollback(self) -> None:
        if not self._ended and self.status != "C":  # a commit under way decides itself
            self._end(committed=False)

    def _close_snapshots(self) -> None:
        if self._opened is None:
            return
        for snapshot in tuple(self._opened):
            snapshot.close()
        self._opened = None
        self._snapshots.clear()
        self._pinned = None

    def _end(self, *, committed: bool) -> None:
        self._ended = True
        self._close_snapshots()
        self._end_loading()
        self._overlay.clear()
        self._entered.clear()
        if self.waits_for is not None:
            self.waits_for.future.cancel()
        if self.locks:
            self._engine.locks.release(self)
        self._engine.ended(self, committed=committed)


def _at_once(what: Callable[[], None]) -> None:
    what()


# ---------- rows and errors ----------
def new_key(engine: StoreEngine, table: TableDef, layout: Layout, tenant: str, row: Row,
            held: set[ContentKey] | None = None) -> RowKey:
    """Of a row to be inserted, which is looked over. The contents that it refers to are added to ``held``."""
    if None in row:
        for column, value in zip(table.columns, row, strict=True):
            if value is None and column.not_null:
                raise _null(table, column.name, row)
    if table.checks:
        engine.check_row(table, row)
    for place in layout.files:
        if (value := row[place]) is not None:
            found = engine.files.check(table, tenant, table.columns[place], value)
            if held is not None:
                held.add(found)
    if not table.key:
        return tenant, engine.next_row_number()
    return tenant, layout.codec.encode([row[place] for place in table.key])


def _candidates(overlay: TableOverlay, scan: Scan) -> Sequence[tuple[RowKey, Version]]:
    """Own rows that a scan may show or hide, found without looking at all that were written."""
    rows = overlay.rows
    if scan.tenant is None or len(rows) < FEW:
        return list(rows.items())
    bounds, possible = overlay.layout.codec.bounds(scan.key_prefix, scan.low, scan.high)
    if not possible:
        return ()
    if bounds and bounds[0][0] == "=":
        key = (scan.tenant, bounds[0][1])
        return ((key, rows[key]),) if key in rows else ()
    return [(key, rows[key]) for key in overlay.in_range(scan.tenant, bounds)]


def _lock_keys(table: TableDef, keys: Sequence[RowKey]) -> list[LockKey]:
    return list(zip(repeat(table.id), *zip(*keys, strict=True), strict=False))


def _spills(overlay: TableOverlay) -> bool:
    """Does the transaction hold as many of the table's rows in memory as it may?"""
    many = len(overlay.fresh) >= bulk.BULK_ROWS or overlay.weight >= bulk.BULK_BYTES
    return many and bool(overlay.table.key) and not overlay.layout.stream


def _own(layout: Layout, tenant: str, row: Row) -> Row:
    return (*row, None, None if layout.shared else tenant)


def _concurrent(*, deleted: bool = False) -> KalamError:
    return KalamError("40001", f"could not serialize access due to concurrent {'delete' if deleted else 'update'}",
                      hint="Repeat the transaction.")


def _locked(table: TableDef) -> KalamError:
    return KalamError("55P03", f'could not obtain lock on row in relation "{table.name}"', schema=table.namespace,
                      table=table.name)


def _gone(table: TableDef) -> KalamError:
    return KalamError("42P01", f'relation "{table.namespace}.{table.name}" does not exist', schema=table.namespace,
                      table=table.name)


def _shown(table: TableDef, place: int, value: Any) -> str:
    return "null" if value is None else types.write_text(table.columns[place].type, value)


def _null(table: TableDef, column: str, row: Row) -> KalamError:
    whole = ", ".join(_shown(table, place, value) for place, value in enumerate(row))
    return KalamError(
        "23502", f'null value in column "{column}" of relation "{table.name}" violates not-null constraint',
        detail=f"Failing row contains ({whole}).", schema=table.namespace, table=table.name, column=column,
    )


def duplicate(table: TableDef, row: Row) -> KalamError:
    """23505 as PostgreSQL words it."""
    names = ", ".join(table.columns[place].name for place in table.key)
    values = ", ".join(_shown(table, place, row[place]) for place in table.key)
    return KalamError("23505", f'duplicate key value violates unique constraint "{table.key_constraint}"',
                      detail=f"Key ({names})=({values}) already exists.", schema=table.namespace, table=table.name,
                      constraint=table.key_constraint)
