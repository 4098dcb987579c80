"""The engine: catalog, hot store, cold store, locks and the writer, put together for one data directory.

``open_engine`` reads what is there; ``StoreEngine`` makes transactions and takes their commits. A background task
purges expired rows of streams, dropped tables after their grace, and outcomes of commits nobody asks for any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import apsw

from kalamdb import faults
from kalamdb.api import ClientSession, Row
from kalamdb.catalog.catalog import (
    Accounts,
    Catalog,
    CatalogChanges,
    View,
    create_schema,
    last_commit,
    load_table,
    meta,
)
from kalamdb.errors import KalamError
from kalamdb.store.cold import CACHE_BYTES, ColdStore
from kalamdb.store.columns import ColumnCache
from kalamdb.store.contents import OpenContent, Upload
from kalamdb.store.hot import (
    HotSnapshot,
    Layout,
    Layouts,
    LiveReader,
    ReaderPool,
    apply_rows,
    extend_log,
    open_connection,
    storage_error,
)
from kalamdb.store.manifest import Manifest, tombstones
from kalamdb.store.storage import LOCAL, Storage, open_storages
from kalamdb.store.writer import ROW_WEIGHT, Settled, Writer, outcome
from kalamdb.txn import activity
from kalamdb.txn.api import (
    DroppedTable,
    Isolation,
    Key,
    LockInfo,
    NotInMemory,
    StaleDefinition,
    TableDef,
    TransactionInfo,
)
from kalamdb.txn.clock import Clock, now_ms, seq_at, time_of
from kalamdb.txn.files import DEFAULT_GRACE_HOURS, Files
from kalamdb.txn.jobs import Job
from kalamdb.txn.locks import LockTable
from kalamdb.txn.overlay import RowKey, TableOverlay
from kalamdb.txn.scan import Cold
from kalamdb.txn.sizes import Sizes
from kalamdb.txn.tiering import Bulk
from kalamdb.txn.tiers import DEFAULT_POLICY, SegmentInfo, Tiers
from kalamdb.txn.transaction import StoreTransaction, new_key

log = logging.getLogger(__name__)

FILE = "hot.db"
LOCK_TIMEOUT_MS = 60_000
OUTCOMES_KEPT_MS = 2 * 3_600_000
ENDED_KEPT = 10_000
#: of a commit that may be applied in the event loop: rows, and bytes of texts and blobs
LIGHT_ROWS, LIGHT_BYTES = 64, 256 << 10
PURGE_EVERY = 1.0
PURGE_ROWS = 5_000
NODE_IDS = 1024
Outcome = Literal["committed", "aborted", "in progress"]


class StoreEngine:
    """``kalamdb.txn.api.Engine`` over one directory."""

    def __init__(self, path: Path, connection: apsw.Connection, catalog: Catalog, *, server_id: str, owner: str,
                 node_id: int, last_seq: int, lock_timeout_ms: int, drop_grace_hours: float,
                 storages: Mapping[str, Storage], cache_bytes: int = CACHE_BYTES, flush_policy: str = DEFAULT_POLICY,
                 file_grace_hours: float = DEFAULT_GRACE_HOURS) -> None:
        self.server_id = server_id
        self.node_id = node_id
        self.lock_timeout_ms = lock_timeout_ms or LOCK_TIMEOUT_MS
        self.catalog = catalog
        self.committed = View(catalog)
        self.layouts = Layouts()
        self.locks = LockTable()
        self.loading: dict[int, dict[StoreTransaction, None]] = {}  # by table, who has runs of it
        self.live = LiveReader(path)
        self.accounts = Accounts(catalog)
        self.check_row: Callable[[TableDef, Row], None] = _no_checks
        self.accounts_changed: Callable[[Sequence[str]], None] = _nobody_asks
        self._clock = Clock(last_seq)
        self._row_numbers = Clock(last_seq)
        self._latest_ms = 0
        self._recorded = 0  # the commit whose number this group keeps together with its outcome
        self.readers = ReaderPool(path, lambda: self._writer.done, lambda: self._writer.free())
        self.cold = ColdStore(storages, cache_bytes)
        self.tiered = self.cold.tables
        for (number,) in self.live.query("SELECT table_id FROM kalam_manifests", ()):
            self.cold.refresh(self.live.query, number)
        self._last_written: dict[int, int] = {}  # by table, the last commit of this life of the server
        self._rows_written: dict[int, int] = {}
        self._writer = Writer(connection, open_connection(path, read_only=True), asyncio.get_running_loop(),
                              self.readers.settle, self._keep_clock)
        self.live.writing = self._writer.free
        self.columns = ColumnCache(lambda: self._writer.begun)
        self._active: dict[str, StoreTransaction] = {}  # those that the client named
        self._open: set[StoreTransaction] = set()
        self._ended: OrderedDict[str, Outcome] = OrderedDict()
        self._sought: dict[str, asyncio.Task[Outcome]] = {}
        self._searching = asyncio.Lock()
        self._storages = storages
        self._drop_grace_ms = int(drop_grace_hours * 3_600_000)
        self._purger = asyncio.create_task(self._purge_forever(), name="purge")
        self._large: set[asyncio.Task[int]] = set()  # commits that have more to do than the writer's
        #: tables whose altered definitions may be on the disk and are nobody's yet
        self.changing: dict[int, asyncio.Future[None]] = {}
        self.sizes = Sizes(self, self.cold)
        self.tiers = Tiers(self, self.cold, storages, owner, flush_policy)
        self.files = Files(self, self.tiers, file_grace_hours)

    # ---------- transactions ----------
    def begin(
        self, session: ClientSession | None, *, isolation: Isolation = "read committed", read_only: bool = False,
        txn_id: str | None = None, lock_timeout_ms: int = 0,
    ) -> StoreTransaction:
        named = txn_id is not None
        transaction = StoreTransaction(self, txn_id or _new_id(), isolation, read_only, lock_timeout_ms, named=named,
                                       session=session)
        if named:
            if transaction.id in self._active:
                raise KalamError("25001", f'transaction "{txn_id}" is open in another session')
            if transaction.id in self._ended:  # or its client was told that it came to nothing, before it came here
                raise KalamError("25001", f'transaction "{txn_id}" is over')
            self._active[transaction.id] = transaction
        self._open.add(transaction)
        return transaction

    def ended(self, transaction: StoreTransaction, *, committed: bool) -> None:
        """A transaction is over; called by it, once."""
        self._open.discard(transaction)
        if not transaction.named:
            return
        self._active.pop(transaction.id, None)
        self._remember(transaction.id, "committed" if committed else "aborted")

    def _remember(self, txn_id: str, outcome: Outcome) -> None:
        self._ended[txn_id] = outcome
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)

    def transactions(self, account: str | None = None) -> list[TransactionInfo]:
        return [activity.describe(each) for each in self._open if activity.belongs(each, account)]

    def held_locks(self, account: str | None = None) -> Iterator[LockInfo]:
        return activity.locks(self, account)

    async def outcome(self, txn_id: str) -> Outcome:
        """What became of a transaction that the client named; asked after the answer to its COMMIT was lost.

        A commit is on the disk together with its outcome, so one that left none there has not happened, and from now on
        it cannot: what is still on its way on the broken connection comes too late.
        """
        if txn_id in self._active:
            return "in progress"
        if self._ended.get(txn_id) == "committed":  # most that are asked for: spares looking through all that are kept
            return "committed"
        if txn_id not in self._ended:
            self._remember(txn_id, "aborted")  # before looking: nobody can begin it meanwhile
        search = self._sought.get(txn_id)
        if search is None:
            search = self._sought[txn_id] = asyncio.ensure_future(self._search(txn_id))
        return await asyncio.shield(search)

    async def _search(self, txn_id: str) -> Outcome:
        """One at a time: threads are there for others, too."""
        try:
            async with self._searching:
                found = await self.tiers.in_thread(lambda: self._is_kept(txn_id), pool="read")
        finally:
            del self._sought[txn_id]
        if found:
            self._remember(txn_id, "committed")
        return "committed" if found else "aborted"

    def _is_kept(self, txn_id: str) -> bool:
        """Is a commit of the transaction on the disk? Any thread; takes its time."""
        snapshot = self.hot_snapshot()
        try:
            return bool(snapshot.query("SELECT 1 FROM kalam_commits WHERE txn_id = ? ORDER BY seq DESC LIMIT 1",
                                       (txn_id,)))
        finally:
            snapshot.close()

    def hot_snapshot(self, *, late: bool = False) -> HotSnapshot:
        """``late``: see there; for the event loop's thread."""
        return HotSnapshot(self.readers, late=late)

    def storages(self) -> list[Storage]:
        return list(self._storages.values())

    def next_row_number(self) -> int:
        """A stream row's own key: above all before, in this life of the server and the last."""
        return self._row_numbers.next()

    def horizon(self, table: TableDef) -> int:
        """Rows of a stream with this ``_seq`` or a lower one have expired. What has expired stays so when the clock of
        the machine goes back, over a restart too: the last commit's time is the earliest."""
        self._latest_ms = max(self._latest_ms, now_ms(), time_of(self._clock.last))
        return seq_at(self._latest_ms - int(table.options["ttl_seconds"]) * 1000)

    # ---------- tiers ----------
    async def flush(self, table: TableDef) -> int:
        return await self.tiers.flush(table)

    async def compact(self, table: TableDef) -> int:
        return await self.tiers.compact(table)

    # ---------- contents of FILE columns ----------
    def upload(self, table: TableDef, limit: int) -> Upload:
        return self.files.upload(table, limit)

    async def publish_content(self, table: TableDef, tenant: str, upload: Upload) -> None:
        await self.files.publish(table, tenant, upload)

    async def open_content(self, table: TableDef, tenant: str, sha256: bytes) -> OpenContent:
        return await self.files.open(table, tenant, sha256)

    async def collect_contents(self, table: TableDef) -> int:
        return await self.files.collect(table)

    def open_contents(self) -> Iterator[tuple[int, str, bytes]]:
        """What rows of open transactions refer to, those among them that are being stored."""
        return chain.from_iterable(each.contents for each in self._open)

    def oldest_reader_ms(self) -> int | None:
        """When the first of those transactions began that keep what they see; None: there is none."""
        return min((each.started_ns // 1_000_000 for each in self._open if each.keeps_snapshot), default=None)

    # ---------- figures ----------
    async def table_stats(self, table: TableDef) -> dict[str, int]:
        return await self.tiers.in_thread(lambda: self.tiers.stats(table), pool="read")

    def table_size(self, table: TableDef, tenant: str | None) -> dict[str, int]:
        return self.sizes.of(table, tenant)

    def table_size_nowait(self, table: TableDef, tenant: str | None) -> dict[str, int] | None:
        return self.sizes.at_hand(table, tenant)

    def dropped_tables(self) -> list[DroppedTable]:
        cutoff = now_ms() - self._drop_grace_ms
        found = self.live.query("SELECT id, definition, dropped_at FROM kalam_tables WHERE dropped_at > ? "
                                "AND dropped_at > 0 AND definition <> '' ORDER BY dropped_at DESC, id DESC", (cutoff,))
        return [DroppedTable(load_table(number, text), at, at + self._drop_grace_ms) for number, text, at in found]

    def jobs(self) -> list[Job]:
        return self.tiers.jobs.all()

    def cancel_job(self, number: int) -> None:
        self.tiers.jobs.cancel(number)

    def segments(self) -> list[SegmentInfo]:
        return self.tiers.segments()

    # ---------- one row ----------
    def get_newest(self, table: TableDef, tenant: str, key: Key) -> Row | None:
        if table.id in self.changing:  # what is on the disk may have another definition already
            raise StaleDefinition(table)
        layout = self.layouts.of(table)
        return self.stored(table, layout, self.live, (tenant, layout.codec.encode(key)))

    def stored(self, table: TableDef, layout: Layout, source: HotSnapshot | LiveReader, key: RowKey) -> Row | None:
        """The committed row of a key, hot or cold: both looks of one instant, else it may move past them."""
        if table.id in self.tiered:
            return self._stored_tiered(layout, source, key)
        row = source.get(layout, *key)
        return None if row is None else self.alive(table, layout, row)

    def _stored_tiered(self, layout: Layout, source: HotSnapshot | LiveReader, key: RowKey) -> Row | None:
        """The same in one statement, mostly. Raises NotInMemory."""
        found = source.get_tiered(layout, *key)
        newest = self.tiered.get(layout.table_id)
        if found is not None and found[2] is not None:
            return layout.load_row(found[3:])
        if found is not None and newest is not None and found[0] == newest.version:
            dead = found[1] or not newest.segments
            return None if dead else self.cold.lookup(newest, layout, *key, wait=False)
        with source.instant():  # another manifest than the newest, or none
            row = source.get(layout, *key)
            return self.cold_row(source, layout, key) if row is None else layout.load_row(row)

    def alive(self, table: TableDef, layout: Layout, row: Row) -> Row | None:
        """A hot row as read back from SQLite; None where a stream's row has expired."""
        if layout.stream and row[-2] <= self.horizon(table):
            return None
        return layout.load_row(row)

    # ---------- cold rows ----------
    def cold_row(self, source: HotSnapshot | LiveReader, layout: Layout, key: RowKey) -> Row | None:
        """The cold row of a key that is not hot, (*columns, _seq, _userid). Raises NotInMemory."""
        found = self._cold_place(source, layout.table_id, key)
        return None if found is None else self.cold.lookup(found, layout, *key, wait=False)

    def cold_exists(self, layout: Layout, key: RowKey) -> bool:
        """Is there a committed cold row of a key that is not hot? Raises NotInMemory."""
        return self.cold_row(self.live, layout, key) is not None

    def _cold_place(self, source: HotSnapshot | LiveReader, table_id: int, key: RowKey) -> Manifest | None:
        """Where a cold row may be; None where a tombstone hides it."""
        found = self.cold.as_of(source.query, table_id)
        if found is None:
            return None
        dead = source.query(f"SELECT 1 FROM {tombstones(table_id)} WHERE _userid = ? AND k = ?", key)
        return None if dead else found

    def cold_part(self, source: HotSnapshot, table: TableDef) -> Cold | None:
        """What a scan reads beside hot rows."""
        found = self.cold.as_of(source.query, table.id) if table.id in self.tiered else None
        return None if found is None else Cold(self.cold, found)

    def last_key(self, layout: Layout, tenant: str) -> int | bytes | None:
        """No committed row of the tenant has a higher key."""
        hot = self.live.last_key(layout, tenant)
        found = self.cold.as_of(self.live.query, layout.table_id)
        keys: list[Any] = [segment.greatest for segment in found.segments] if found is not None else []
        if hot is not None:
            keys.append(hot)
        return max(keys, default=None)

    def any_between(self, layout: Layout, tenant: str, least: Any, greatest: Any) -> bool:
        """Might there be a committed row of the tenant in this range of keys?"""
        if self.live.any_between(layout, tenant, least, greatest):
            return True
        found = self.cold.as_of(self.live.query, layout.table_id)  # after the hot ones: rows only go there
        return found is not None and any(segment.least <= greatest and least <= segment.greatest
                                         and segment.overlaps((tenant, least), (tenant, greatest))
                                         for segment in found.segments)

    async def load(self, missing: NotInMemory) -> None:
        """Read what a look-up did not find in memory; its file stays there meanwhile."""
        number = self.readers.enter()
        try:
            await self.tiers.in_thread(missing.load, pool="read")
        finally:
            self.readers.leave(number)

    def last_written(self, table_id: int) -> int:
        """The table's last commit since the start, 0 if none. In the writer's thread."""
        return self._last_written.get(table_id, 0)

    def rows_written(self, table_id: int) -> int:
        """Committed changes of the hot table's rows since the start, each time counted."""
        return self._rows_written.get(table_id, 0)

    # ---------- commit ----------
    def write(self, transaction: StoreTransaction, overlays: Sequence[TableOverlay],
              changes: CatalogChanges | None) -> asyncio.Future[int]:
        """Store a transaction's writes; its sequence number, after the data are on the disk. What follows from that is
        done by then, whether or not anybody still waits."""
        large = [overlay for overlay in overlays if overlay.runs.large]
        if not large:
            return self._write(transaction.id if transaction.named else None, overlays, changes, ())
        task = asyncio.ensure_future(self._write_large(transaction, overlays, changes, large))
        self._large.add(task)
        task.add_done_callback(self._large.discard)
        return task

    async def _write_large(self, transaction: StoreTransaction, overlays: Sequence[TableOverlay],
                           changes: CatalogChanges | None, large: Sequence[TableOverlay]) -> int:
        txn_id = transaction.id if transaction.named else None
        for overlay in large:
            await transaction.settle_runs(overlay)
        async with self.tiers.publishing(large) as bulk:
            seq: int = await outcome(self._write(txn_id, overlays, changes, bulk))
            return seq

    def insert_alone(self, txn_id: str, table: TableDef, tenant: str, row: Row) -> bool:
        """One step from beginning to end takes no locks, if nobody has them."""
        current = self.catalog.by_id.get(table.id)
        if not self._writer.prompt or txn_id in self._active or txn_id in self._ended or not table.key or (
                table.kind == "stream" or current is None or current.version != table.version):
            return False
        layout = self.layouts.of(table)
        try:
            key = new_key(self, table, layout, tenant, row)
            if table.id in self.loading or not self.locks.is_free((table.id,), share=True) or not (
                    self.locks.is_free((table.id, *key))) or self.stored(table, layout, self.live, key) is not None:
                return False
        except (KalamError, NotInMemory):
            return False
        overlay = TableOverlay(table, layout)
        overlay.rows[key] = (0, row, None)
        if _weight((overlay,)) is None:
            return False
        self._writer.commit_now(self._job(txn_id, (overlay,), None, ()))
        self._stored((overlay,), None)
        self._remember(txn_id, "committed")
        return True

    def is_prompt(self, overlays: Sequence[TableOverlay]) -> bool:
        """Can ``commit_now`` store these writes?"""
        return self._writer.prompt and not any(overlay.runs for overlay in overlays) and _weight(overlays) is not None

    def commit_now(self, transaction: StoreTransaction, overlays: Sequence[TableOverlay]) -> int:
        """Store a transaction's few writes; durable when this returns, which the event loop waits for."""
        txn_id = transaction.id if transaction.named else None
        seq: int = self._writer.commit_now(self._job(txn_id, overlays, None, ()))
        self._stored(overlays, None)
        return seq

    def _write(self, txn_id: str | None, overlays: Sequence[TableOverlay],
               changes: CatalogChanges | None, bulk: Sequence[Bulk]) -> Settled:
        weight = None if changes or bulk else _weight(overlays)
        future = self.submit(self._job(txn_id, overlays, changes, bulk), weight=weight)

        def settled(_: object) -> None:
            if future.exception() is None:
                self._stored(overlays, changes)

        future.then(settled)
        if changes:
            self._announce(future, changes)
        return future

    def _job(self, txn_id: str | None, overlays: Sequence[TableOverlay], changes: CatalogChanges | None,
             bulk: Sequence[Bulk]) -> Callable[[apsw.Connection], int]:
        def job(connection: apsw.Connection) -> int:
            seq = self._clock.next()
            if changes:
                changes.apply(connection, self.layouts)
                for number in changes.altered:
                    self.columns.void(number)
            for made in bulk:  # before what is newer
                made.publish(connection, seq)
                if made.changes_hot:
                    self.columns.void(made.table.id)
            for overlay in overlays:
                table_id = overlay.table.id
                dug = tombstones(table_id) if table_id in self.tiered else None
                apply_rows(connection, overlay.layout, seq, overlay.changes(), dug)
                self._last_written[table_id] = seq
                self.columns.changed(overlay.layout, overlay.keys())
            if txn_id is not None:
                connection.execute("INSERT INTO kalam_commits VALUES (?, ?)", (seq, txn_id))
            faults.reach("commit.applied")
            if txn_id is not None:
                self._recorded = seq
            return seq

        return job

    def _announce(self, future: Settled, changes: CatalogChanges) -> None:
        """Definitions that may be on the disk, and are everybody's only when the commit is through."""
        changing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for number in changes.altered:
            self.changing[number] = changing

        def through(_: object) -> None:
            for number in changes.altered:
                del self.changing[number]
            changing.set_result(None)

        future.then(through)

    def _stored(self, overlays: Sequence[TableOverlay], changes: CatalogChanges | None) -> None:
        for overlay in overlays:  # not before: whoever counts rows now must find them
            table_id = overlay.table.id
            self._rows_written[table_id] = self._rows_written.get(table_id, 0) + overlay.count
        faults.reach("commit.durable")
        if changes:
            self.catalog.publish(changes)
            if changes.accounts:
                asyncio.get_running_loop().call_soon(self.accounts_changed, tuple(changes.accounts))

    async def wait_changed(self, number: int) -> None:
        """Until a commit under way that alters a table is through."""
        while (changing := self.changing.get(number)) is not None:
            await asyncio.shield(changing)

    def submit(self, job: Any, *, weight: int | None = None) -> Settled:
        """A job for the writer, part of a group that is committed as one."""
        return self._writer.submit(job, weight=weight)

    async def run(self, text: str, *values: Any) -> None:
        """One statement, durable when this returns."""
        def job(connection: apsw.Connection) -> None:
            connection.execute(text, values)

        await self.submit(job)

    def _keep_clock(self, connection: apsw.Connection) -> None:
        """Part of every group: a restart goes on above every number given. Where the last one is kept together with its
        commit's outcome, that spares a page."""
        last, recorded = max(self._clock.last, self._row_numbers.last), self._recorded
        self._recorded = 0
        if recorded == last:
            return
        connection.execute("REPLACE INTO kalam_meta VALUES ('last_seq', ?)", (last,))

    # ---------- purging ----------
    async def _purge_forever(self) -> None:
        while True:
            await asyncio.sleep(PURGE_EVERY)
            try:
                await self.purge()
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.warning("purge: %s", error)

    async def purge(self) -> None:
        """Expired stream rows, dropped tables after their grace, and old outcomes, in bounded steps."""
        for table in [table for table in self.catalog.by_id.values() if table.kind == "stream"]:
            await self._purge_stream(table)
        await self._purge_dropped()
        cutoff = seq_at(now_ms() - OUTCOMES_KEPT_MS)
        if self.live.query("SELECT 1 FROM kalam_commits WHERE seq < ? LIMIT 1", (cutoff,)):
            await self.run("DELETE FROM kalam_commits WHERE seq < ?", cutoff)

    async def _purge_stream(self, table: TableDef) -> None:
        name = self.layouts.of(table).table
        horizon = self.horizon(table)
        while self.live.query(f"SELECT 1 FROM {name} WHERE _seq <= ? LIMIT 1", (horizon,)):
            await self.run(f"DELETE FROM {name} WHERE (_userid, k) IN "
                            f"(SELECT _userid, k FROM {name} WHERE _seq <= ? LIMIT {PURGE_ROWS})", horizon)

    async def _purge_dropped(self) -> None:
        cutoff = now_ms() - self._drop_grace_ms
        found = self.live.query("SELECT id FROM kalam_tables WHERE dropped_at <= ? AND definition <> ''", (cutoff,))
        for (number,) in found:
            if await self.submit(_claimer(number, cutoff)):
                await self._purge_table(number)

    async def _purge_table(self, number: int) -> None:
        name = f"h_{number}"
        self.columns.void(number)  # nobody reads it any more
        while self.live.query(f"SELECT 1 FROM {name} LIMIT 1", ()):
            await self.run(f"DELETE FROM {name} WHERE (_userid, k) IN "
                            f"(SELECT _userid, k FROM {name} LIMIT {PURGE_ROWS})")

        await self.tiers.forget_table(number)

        def drop(connection: apsw.Connection) -> None:
            connection.execute(f"DROP TABLE IF EXISTS {name}")
            connection.execute("UPDATE kalam_tables SET definition = '' WHERE id = ?", (number,))

        await self.submit(drop)

    # ---------- the end ----------
    async def close(self) -> None:
        self._purger.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._purger
        if self._sought:
            await asyncio.wait(self._sought.values())
        await self.files.close()
        await self.tiers.close()
        if self._large:
            await asyncio.wait(self._large)
        with contextlib.suppress(KalamError, apsw.Error):
            await self.submit(lambda connection: None)  # comes after all others
        self.readers.close()
        self.live.close()
        await self._writer.close()
        for storage in self._storages.values():
            storage.close()


def _claimer(number: int, cutoff: int) -> Callable[[apsw.Connection], bool]:
    """Marks a dropped table as being purged, unless it was restored meanwhile."""
    def job(connection: apsw.Connection) -> bool:
        connection.execute("UPDATE kalam_tables SET dropped_at = 0 WHERE id = ? AND dropped_at <= ?", (number, cutoff))
        return connection.changes() > 0

    return job


def _weight(overlays: Sequence[TableOverlay]) -> int | None:
    """Of a light job; None where these are too many rows, or too much in them, for the event loop."""
    rows = sum(overlay.count for overlay in overlays)
    if rows > LIGHT_ROWS:
        return None
    size = 0
    for overlay in overlays:
        size += overlay.size(LIGHT_BYTES)
        if size > LIGHT_BYTES:
            return None
    return rows * ROW_WEIGHT + size


def _nobody_asks(names: Sequence[str]) -> None:
    pass


def _no_checks(table: TableDef, row: Row) -> None:
    pass


def _new_id() -> str:
    return f"{random.getrandbits(128):032x}"


def _open_database(path: Path) -> tuple[apsw.Connection, Catalog, dict[str, Any]]:
    try:
        connection = open_connection(path)
    except apsw.Error as error:
        raise storage_error(error) from error
    try:
        return connection, *_load(connection)
    except apsw.Error as error:
        connection.close(True)
        raise storage_error(error) from error
    except BaseException:
        connection.close(True)
        raise


def _load(connection: apsw.Connection) -> tuple[Catalog, dict[str, Any]]:
    connection.execute("BEGIN IMMEDIATE")
    create_schema(connection)
    facts = {
        "server_id": meta(connection, "server_id", lambda: str(uuid.uuid4())),
        "storage_owner": meta(connection, "storage_owner", lambda: str(uuid.uuid4())),
        "node_id": meta(connection, "node_id", lambda: random.randrange(NODE_IDS)),
        "last_seq": max(meta(connection, "last_seq", lambda: 0), last_commit(connection)),
    }
    catalog = Catalog()
    catalog.load(connection)
    connection.execute("COMMIT")
    extend_log(connection)
    return catalog, facts


async def open_engine(data_dir: Path, *, node_id: int | None = None, lock_timeout_ms: int = 0,
                      drop_grace_hours: float = 0, storages: Mapping[str, Storage] | None = None,
                      cache_bytes: int = CACHE_BYTES, flush_policy: str = DEFAULT_POLICY,
                      file_grace_hours: float = DEFAULT_GRACE_HOURS) -> StoreEngine:
    """Open (or make) the engine of a data directory. Raises KalamError where it cannot be read.

    ``storages``: where segments lie, by name; without them in the data directory alone. ``cache_bytes``: for decoded
    row groups. ``flush_policy``: of tables that declare none. ``file_grace_hours``: that contents of FILE columns stay
    after nothing refers to them.
    """
    started = time.monotonic()
    path = data_dir / FILE
    connection, catalog, facts = _open_database(path)
    try:
        storages = open_storages(data_dir) if storages is None else storages
    except BaseException:
        connection.close(True)
        raise
    _look_for_storages(catalog, storages)
    log.debug("opened %s in %.3f s", path, time.monotonic() - started)
    return StoreEngine(
        path, connection, catalog, server_id=facts["server_id"], owner=facts["storage_owner"],
        node_id=facts["node_id"] if node_id is None else node_id, last_seq=facts["last_seq"],
        lock_timeout_ms=lock_timeout_ms, drop_grace_hours=drop_grace_hours, storages=storages,
        cache_bytes=cache_bytes, flush_policy=flush_policy, file_grace_hours=file_grace_hours,
    )


def _look_for_storages(catalog: Catalog, storages: Mapping[str, Storage]) -> None:
    """A setting that was removed harms the tables that need it, not the start."""
    for table in catalog.by_name.values():
        name = table.options.get("storage_id", LOCAL)
        if name not in storages:
            log.warning('storage "%s" of table "%s.%s" is not among the settings', name, table.namespace, table.name)
