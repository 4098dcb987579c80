"""Moves rows between tiers in the background: flush, compaction, removal of files that nobody can read any more.

One job at a time for a table. A flush goes: the table's deletes begin to leave tombstones; a snapshot; new files
(``tiering``); one commit that publishes them; then the hot rows that are cold now leave in bounded steps. A crash
before the publication leaves files that no manifest names: they are removed at the next start. A crash after it leaves
hot rows to clean: that goes on at the next start. Readers see the same rows at every step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import apsw

from kalamdb import faults
from kalamdb.catalog.catalog import load_table
from kalamdb.errors import KalamError
from kalamdb.store import contents, manifest
from kalamdb.store.cold import ColdStore
from kalamdb.store.columns import ColumnCache
from kalamdb.store.contents import Storage
from kalamdb.store.hot import HotSnapshot
from kalamdb.store.manifest import Manifest, tombstones
from kalamdb.txn.api import TableDef
from kalamdb.txn.clock import now_ms
from kalamdb.txn.jobs import Job, Jobs, to_micros
from kalamdb.txn.overlay import TableOverlay
from kalamdb.txn.places import Place, is_own, open_places
from kalamdb.txn.tiering import Bulk, Flush, Flushed, choose, compact, remove, some_died

if TYPE_CHECKING:
    from kalamdb.txn.engine import StoreEngine

log = logging.getLogger(__name__)

T = TypeVar("T")
Pool = Literal["tier", "bulk", "read"]
#: threads: whoever commits many rows or reads one must not wait for jobs, which take minutes
POOLS: dict[Pool, int] = {"tier": 2, "bulk": 2, "read": 4}
CLEAN_ROWS = 5_000
LOOK_EVERY = 1.0
DEFAULT_POLICY = "rows:1000000"
DEFAULT_RETENTION_HOURS = 168
HOUR_MS = 3_600_000
#: looking for dead rows takes one part in so many of the time at most
LOOK_SHARE = 20
#: after an error a table's background work rests so long
REST_MS = 60_000


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """``deleted``: dead rows. ``created_at``: a timestamptz's storage value."""

    id: int
    namespace: str
    table: str
    file: str
    storage: str
    rows: int
    deleted: int
    bytes: int
    min_seq: int
    max_seq: int
    created_at: int


async def ended(future: asyncio.Future[Any], job: Job | None = None) -> asyncio.CancelledError | None:
    """Wait for the end of what cannot be stopped, however often the task is cancelled meanwhile; that it was, is told
    to the job at once and to the caller at the end."""
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])  # unlike await future, leaves the future alone
        except asyncio.CancelledError as error:
            cancelled = error
            if job is not None:
                job.cancelled = True
    future.exception()  # looked at: no complaint where the caller only raises the cancellation
    return cancelled


class Tiers:
    def __init__(self, engine: StoreEngine, cold: ColdStore, storages: Mapping[str, Storage], owner: str,
                 flush_policy: str = DEFAULT_POLICY) -> None:
        self.jobs = Jobs()
        self.flush_policy = flush_policy
        self._engine = engine
        self._cold = cold
        self._storages = storages
        self.places = open_places(storages, owner, engine.live)
        self._threads = {pool: ThreadPoolExecutor(size, thread_name_prefix=f"kalam-{pool}")
                         for pool, size in POOLS.items()}
        self._locks: dict[int, asyncio.Lock] = {}
        self._condemned: list[tuple[int, str, str, int]] = []  # reader number, storage, file, segment
        self._flushed_at: dict[int, int] = {}
        self._look_at: dict[int, int] = {}  # for dead rows, not sooner
        self._counted: dict[int, tuple[int, int]] = {}  # hot rows, and the rows written when they were counted
        self._rest_until: dict[int, int] = {}
        self._beginning: set[int] = set()
        self._closing = False
        self._sweeps = [asyncio.create_task(self._first_sweep(place), name=f"sweep {name}")
                        for name, place in self.places.items()]
        self._task = asyncio.create_task(self._work_forever(), name="tiers")

    async def close(self) -> None:
        self._closing = True
        for job in self.jobs.all():
            if job.ended_at is None:
                job.cancelled = True
        for task in (*self._sweeps, self._task):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for lock in list(self._locks.values()):  # whoever is at it has been told to end
            async with lock:
                pass
        for threads in self._threads.values():
            threads.shutdown(wait=True, cancel_futures=True)
        for place in self.places.values():
            place.close()

    async def in_thread(self, work: Callable[[], T], *, pool: Pool = "tier") -> T:
        """Run to its end, whatever happens to the task that waits: files and locks must not be left to chance."""
        future = asyncio.get_running_loop().run_in_executor(self._threads[pool], work)
        cancelled = await ended(future)
        if cancelled is not None:
            raise cancelled
        return future.result()

    async def _written(self, work: Callable[[], T], job: Job, change_of: Callable[[T], manifest.Change]) -> T:
        """What a job made, files among it. A cancelled task cancels the job, and nothing of it is left."""
        future = asyncio.get_running_loop().run_in_executor(self._threads["tier"], work)
        cancelled = await ended(future, job)
        if cancelled is None:
            return future.result()
        if future.exception() is None:  # it was done before it could hear of it
            await self._discard(change_of(future.result()))
        raise cancelled

    def lock_of(self, table: TableDef) -> asyncio.Lock:
        """Whoever moves rows or files of the table holds it."""
        return self._locks.setdefault(table.id, asyncio.Lock())

    def storage(self, table: TableDef) -> Storage:
        """Where the table's segments go. 58P01 where the settings do not have it any more."""
        name = dict(table.options).get("storage_id", "local")
        found = self._storages.get(name)
        if found is None:
            raise KalamError("58P01", f'storage "{name}" is not configured', hint="Add it to the server's settings.")
        return found

    async def ready(self, table: TableDef) -> None:
        """Before files go into the table's storage: what a crash left there is gone, and the storage is this server's
        (else 55006)."""
        await self.ready_in(self.places[self.storage(table).id])

    async def ready_in(self, place: Place) -> None:
        await place.swept.wait()
        if self._closing:
            raise KalamError("57P01", "the server is shutting down")
        await place.own()

    # ---------- flush ----------
    def _check_committed(self, table: TableDef) -> None:
        if table.kind == "stream":
            raise KalamError("42809", f'stream table "{table.name}" has no cold tier',
                             hint="Its rows expire after ttl_seconds.")
        if table.id not in self._engine.catalog.by_id:
            raise KalamError("55000", f'table "{table.name}" is not committed', hint="Try again after COMMIT.")

    def _still(self, table: TableDef) -> TableDef:
        """The table's definition after the wait for its lock."""
        if self._closing:
            raise KalamError("57P01", "the server is shutting down")
        found = self._engine.catalog.by_id.get(table.id)
        if found is None:
            raise gone(table)
        return found

    def _as_of(self, snapshot: HotSnapshot, table: TableDef) -> TableDef:
        """The definition that a snapshot's rows have. 42P01 where the table is gone."""
        found = snapshot.query("SELECT definition FROM kalam_tables WHERE id = ? AND dropped_at IS NULL", (table.id,))
        if not found:
            raise gone(table)
        made = load_table(table.id, found[0][0])
        return table if made.version == table.version else made

    async def flush(self, table: TableDef) -> int:
        """Make all hot rows cold; how many there were. Background and on demand."""
        self._check_committed(table)
        await self.ready(table)
        async with self.lock_of(table):
            table = self._still(table)
            await self.ready(table)  # its storage may be another since
            self._flushed_at[table.id] = now_ms()
            with self.jobs.running("flush", table) as job:
                return await self._flush(table, job)

    async def _flush(self, table: TableDef, job: Job) -> int:
        engine = self._engine
        await self.begin(table)
        if await self._cleaning_left(table):  # of a flush before a crash
            await self._clean(table)
        as_of = now_ms()
        snapshot = engine.hot_snapshot()
        try:
            snapshot.pin()
            table = self._as_of(snapshot, table)
            found = self._cold.as_of(snapshot.query, table.id) or Manifest(table.id, 1)
            expected = await self.in_thread(lambda: self._count(table))
            self._counted.pop(table.id, None)
            work = Flush(table, engine.layouts.of(table), snapshot, self._cold, found, self.storage(table), job,
                         expected, as_of)
            flushed = await self._written(work.run, job, lambda made: made.change)
        finally:
            snapshot.close()
        if not flushed.rows and not flushed.tombstones:
            return 0
        if not await self._publish_flush(table, flushed, job):
            await self._clean(table)
        return flushed.rows

    async def begin(self, table: TableDef) -> None:
        """From now on deletes leave tombstones."""
        if table.id not in self._cold.tables:
            await self._engine.submit(lambda connection: manifest.begin_tiering(connection, table))
            self._cold.refresh(self._engine.live.query, table.id)
            self._beginning.add(table.id)
        if table.id in self._beginning:  # the writer may be at deletions that left none: they are committed first
            await self._engine.submit(lambda connection: None)
            self._beginning.discard(table.id)

    async def _publish_flush(self, table: TableDef, flushed: Flushed, record: Job) -> bool:
        """True where nobody wrote since the snapshot, so that the hot rows could go with the publication."""
        change = flushed.change
        hot = self._engine.layouts.of(table).table
        assert change.clean_seq is not None
        last = change.clean_seq

        def job(connection: apsw.Connection) -> bool:
            faults.reach("flush.publish")
            check_there(connection, table)
            manifest.publish(connection, table.id, change)
            alone = self._engine.last_written(table.id) <= last
            if alone:
                self._engine.columns.void(table.id)
                connection.execute(f"DELETE FROM {hot}")
                connection.execute(f"DELETE FROM {tombstones(table.id)}")
                _set_clean(connection, table)
            return alone

        emptied = await self._publish(table, change, job, record)
        faults.reach("flush.published")
        return emptied

    async def _publish(self, table: TableDef, change: manifest.Change, job: Callable[[apsw.Connection], T],
                       record: Job) -> T:
        """What the writer did counts: it goes on when the task that waits is cancelled, which hears of it after."""
        try:
            future = self._engine.submit(job)
        except KalamError:
            await self._discard(change)
            raise
        cancelled = await ended(future)
        if future.exception() is not None:
            await self._discard(change)
        else:
            record.published = True
            self._cold.refresh(self._engine.live.query, table.id)
            self.condemn((segment.storage, segment.file, segment.id) for segment in change.removed)
        if cancelled is not None:
            raise cancelled
        result: T = future.result()
        return result

    async def _discard(self, change: manifest.Change) -> None:
        """Not published: nobody knows of its files."""
        await self.in_thread(lambda: remove(self._storages[change.storage], [name for name, _ in change.added]))

    # ---------- bulk commits ----------
    @contextlib.asynccontextmanager
    async def publishing(self, overlays: Sequence[TableOverlay]) -> AsyncIterator[list[Bulk]]:
        """The runs of a transaction made ready for its commit, which publishes them (``Bulk.publish``) within this
        block. No flush or compaction of their tables meanwhile; after an error their files are gone."""
        ready: list[Bulk] = []
        async with contextlib.AsyncExitStack() as stack:
            for overlay in overlays:
                await self.ready(overlay.table)
            for overlay in sorted(overlays, key=lambda overlay: overlay.table.id):
                if overlay.table.id in self._engine.catalog.by_id:  # else it is this transaction's own
                    await self.begin(overlay.table)
                await stack.enter_async_context(self.lock_of(overlay.table))
            try:
                for overlay in overlays:
                    made = Bulk(overlay, self.storage(overlay.table))
                    ready.append(made)
                    await self._prepare(made)
                yield ready
            except BaseException:
                for made in ready:
                    await self.in_thread(made.abandon, pool="bulk")
                raise
            finally:
                for made in ready:
                    self._cold.refresh(self._engine.live.query, made.table.id)

    async def _prepare(self, made: Bulk) -> None:
        snapshot = self._engine.hot_snapshot()
        try:
            snapshot.pin()
            found = self._cold.as_of(snapshot.query, made.table.id) or Manifest(made.table.id, 1)
            await self.in_thread(lambda: made.prepare(snapshot, self._cold, found), pool="bulk")
        finally:
            snapshot.close()

    # ---------- the hot rows that are cold now ----------
    async def _cleaning_left(self, table: TableDef) -> bool:
        found = self._engine.live.query("SELECT clean_seq FROM kalam_manifests WHERE table_id = ?", (table.id,))
        return bool(found) and found[0][0] is not None

    async def _clean(self, table: TableDef) -> None:
        for name in (self._engine.layouts.of(table).table, tombstones(table.id)):
            after: tuple[Any, Any] | None = None
            while True:
                after = await self._engine.submit(_cleaner(name, table.id, after, self._engine.columns))
                faults.reach("flush.cleaned")
                if after is None:
                    break
        await self._engine.submit(lambda connection: _set_clean(connection, table))

    # ---------- figures ----------
    def stats(self, table: TableDef) -> dict[str, int]:
        """In a worker thread: counting takes its time."""
        snapshot = self._engine.hot_snapshot()
        try:
            snapshot.pin()
            name = self._engine.layouts.of(table).table
            ((hot,),) = snapshot.query(f"SELECT count(*) FROM {name}", ())
            ((taken,),) = snapshot.query("SELECT sum(pgsize) FROM dbstat WHERE name = ? AND aggregate = 1", (name,))
            found = self._cold.as_of(snapshot.query, table.id)
            dug = snapshot.query(f"SELECT count(*) FROM {tombstones(table.id)}", ()) if found is not None else [(0,)]
        finally:
            snapshot.close()
        segments = found.segments if found is not None else ()
        return {
            "hot_rows": int(hot), "tombstones": int(dug[0][0]), "segments": len(segments),
            "cold_rows": sum(segment.live for segment in segments),
            "dead_rows": sum(len(segment.dead) for segment in segments),
            "hot_bytes": int(taken or 0), "cold_bytes": sum(segment.bytes for segment in segments),
        }

    def segments(self) -> list[SegmentInfo]:
        """All segments of tables that are there, as ``system.segments`` shows them."""
        return [
            SegmentInfo(segment.id, table.namespace, table.name, segment.file, segment.storage, segment.rows,
                        len(segment.dead), segment.bytes, segment.min_seq, segment.max_seq,
                        to_micros(segment.created_at))
            for number, found in list(self._cold.tables.items())
            if (table := self._engine.catalog.by_id.get(number)) is not None
            for segment in found.segments
        ]

    # ---------- compaction ----------
    async def compact(self, table: TableDef, *, everything: bool = True) -> int:
        """Merge segments; the number of rows written. ``everything``: all of the table's, else what is due."""
        self._check_committed(table)
        await self.ready(table)
        async with self.lock_of(table):
            table = self._still(table)
            await self.ready(table)
            found = self._cold.tables.get(table.id)
            if found is None or not found.segments:
                return 0
            chosen = list(found.segments) if everything else choose(found.segments, now_ms(), _retention_ms(table))
            if not chosen or (everything and len(chosen) == 1 and not len(chosen[0].dead)):
                return 0
            with self.jobs.running("compaction", table) as job:
                job.detail = f"{len(chosen)} segments"
                layout, storage = self._engine.layouts.of(table), self.storage(table)
                change, rows = await self._written(
                    lambda: compact(table, layout, self._cold, chosen, storage, job, job.check), job, itemgetter(0))

                def publish(connection: apsw.Connection) -> None:
                    faults.reach("compaction.publish")
                    check_there(connection, table)
                    manifest.publish(connection, table.id, change)

                await self._publish(table, change, publish, job)
                faults.reach("compaction.published")
                return rows

    # ---------- files that nobody reads ----------
    def condemn(self, files: Any) -> None:
        """Files (storage, name, segment or 0) that nothing names any more: they go when nobody can be reading them."""
        number = self._engine.readers.enter()
        self._engine.readers.leave(number)
        self._condemned += [(number, *file) for file in files]

    async def sweep(self) -> None:
        """Remove files once all who might read them have ended."""
        held = []
        for item in self._condemned:
            number, storage_id, file, segment = item
            place, storage = self.places.get(storage_id), self._storages.get(storage_id)
            if place is None or storage is None or not self._engine.readers.nobody_before(number) or (
                    not await place.may_remove()):
                held.append(item)
                continue
            try:
                await self.in_thread(lambda storage=storage, file=file: storage.delete(file))  # type: ignore[misc]
            except KalamError as error:
                log.warning("removal of a segment file: %s", error)
                held.append(item)
                continue
            self._cold.forget(segment)
            faults.reach("segment.removed")
            await self._engine.run("DELETE FROM kalam_removed WHERE storage = ? AND file = ?", storage_id, file)
        self._condemned = held

    async def forget_table(self, number: int) -> None:
        """A dropped table's grace is over: its segments are files to remove."""
        async with self._locks.setdefault(number, asyncio.Lock()):
            def forget(connection: apsw.Connection) -> list[tuple[str, str]]:
                manifest.forget_table(connection, number)
                return contents.forget_table(connection, number, now_ms())

            files: list[tuple[str, str]] = await self._engine.submit(forget)
            self.condemn((*file, 0) for file in files)
            self.condemn((segment.storage, segment.file, segment.id) for segment in self._cold.forget_table(number))

    async def wait_swept(self) -> None:
        """Until what a crash left is gone, in all storages."""
        for place in self.places.values():
            await place.swept.wait()

    async def _first_sweep(self, place: Place) -> None:
        try:
            await self._sweep_place(place)
        except KalamError as error:
            level = logging.ERROR if error.sqlstate == "55006" else logging.WARNING
            log.log(level, "storage %r: %s%s", place.storage.id, error,
                    f" {error.detail} {error.hint}" if level == logging.ERROR else "")
        except Exception as error:
            log.warning("removal of files that a crash left in storage %r: %r", place.storage.id, error)
        finally:
            place.swept.set()

    async def _sweep_place(self, place: Place) -> None:
        """What a crash left: files removed from manifests, and such as were never in one; the same of contents."""
        storage, query = place.storage, self._engine.live.query
        await place.own()
        known = {name for (name,) in query("SELECT file FROM kalam_segments WHERE storage = ?1 UNION ALL "
                                           "SELECT file FROM kalam_contents WHERE storage = ?1", (storage.id,))}
        for name in await place.run(lambda: storage.names("")):
            if name not in known and is_own(name):
                log.info("removing file %r of storage %r: nothing names it", name, storage.id)
                await place.run(lambda name=name: storage.delete(name))  # type: ignore[misc]
        if query("SELECT 1 FROM kalam_removed WHERE storage = ? LIMIT 1", (storage.id,)):
            await self._engine.run("DELETE FROM kalam_removed WHERE storage = ?", storage.id)

    # ---------- by itself ----------
    async def _work_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.sweep()
            except Exception as error:
                log.warning("removal of segment files: %r", error)
            for table in list(self._engine.catalog.by_id.values()):
                if table.kind != "stream" and self._rest_until.get(table.id, 0) <= now_ms():
                    await self._look_after(table)

    async def _look_after(self, table: TableDef) -> None:
        try:
            place = self.places.get(dict(table.options).get("storage_id", "local"))
            if place is not None and not place.swept.is_set():  # which may take long; other tables go on
                return
            if await self._cleaning_left(table) and not self.lock_of(table).locked():
                async with self.lock_of(table):
                    await self._clean(table)
            if await self.flush_due(table):
                await self.flush(table)
            found = self._cold.tables.get(table.id)
            if found is not None and choose(found.segments, now_ms(), _retention_ms(table)):
                await self.compact(table, everything=False)
        except Exception as error:  # whatever it is: other tables go on, and this one is tried again
            log.warning('background work on table "%s.%s": %r', table.namespace, table.name, error)
            self._rest_until[table.id] = now_ms() + REST_MS

    async def flush_due(self, table: TableDef) -> bool:
        """By the table's flush policy, or for deletions that may be older than their retention."""
        query, name = self._engine.live.query, self._engine.layouts.of(table).table
        for word, number in _policy(dict(table.options).get("flush_policy", self.flush_policy)):
            if word == "rows" and await self._has_rows(table, number):
                return True
            if word == "interval":
                since = self._flushed_at.setdefault(table.id, now_ms())
                if now_ms() - since >= number * 1000 and query(f"SELECT 1 FROM {name} LIMIT 1", ()):
                    return True
        return table.id in self._cold.tables and await self._deletions_due(table)

    async def _deletions_due(self, table: TableDef) -> bool:
        """Are there any, where the first may be so old? If not, the next look is a retention away."""
        began = now_ms()
        if began - manifest.flushed_at(self._engine.live.query, table.id) < _retention_ms(table) or (
                began < self._look_at.get(table.id, 0)):
            return False
        if await self.in_thread(lambda: self._some_died(table)):
            return True
        await self._engine.submit(lambda connection: manifest.none_died_before(connection, table.id, began))
        ended = now_ms()
        self._look_at[table.id] = ended + LOOK_SHARE * (ended - began)
        return False

    async def _has_rows(self, table: TableDef, number: int) -> bool:
        """Are there so many hot rows? They are counted, in a thread, only when enough have been written since."""
        written = self._engine.rows_written(table.id)
        counted, then = self._counted.get(table.id, (number, written))
        if counted + written - then < number:
            return False
        rows = await self.in_thread(lambda: self._count(table))
        self._counted[table.id] = rows, written
        return rows >= number

    def _count(self, table: TableDef) -> int:
        snapshot = self._engine.hot_snapshot()
        try:
            found = snapshot.query(f"SELECT count(*) FROM {self._engine.layouts.of(table).table}", ())
        finally:
            snapshot.close()
        return int(found[0][0])

    def _some_died(self, table: TableDef) -> bool:
        snapshot = self._engine.hot_snapshot()
        try:
            snapshot.pin()
            found = self._cold.as_of(snapshot.query, table.id)
            return found is not None and some_died(self._engine.layouts.of(table), snapshot, self._cold, found)
        finally:
            snapshot.close()


def _policy(text: str) -> list[tuple[str, int]]:
    parts = [part.strip().partition(":") for part in text.split(",")]
    return [(word, int(number)) for word, _, number in parts]


def _retention_ms(table: TableDef) -> int:
    return int(dict(table.options).get("deleted_retention_hours", DEFAULT_RETENTION_HOURS)) * HOUR_MS


def gone(table: TableDef) -> KalamError:
    return KalamError("42P01", f'relation "{table.namespace}.{table.name}" does not exist', schema=table.namespace,
                      table=table.name)


def check_there(connection: apsw.Connection, table: TableDef) -> None:
    if not connection.execute("SELECT 1 FROM kalam_tables WHERE id = ? AND dropped_at IS NULL", (table.id,)).fetchall():
        raise gone(table)


def _set_clean(connection: apsw.Connection, table: TableDef) -> None:
    connection.execute("UPDATE kalam_manifests SET clean_seq = NULL WHERE table_id = ?", (table.id,))


def _cleaner(name: str, table_id: int, after: tuple[Any, Any] | None, columns: ColumnCache
             ) -> Callable[[apsw.Connection], Any]:
    """Removes the next rows that a flush took and nobody changed since; gives where to go on, None at the end."""

    def job(connection: apsw.Connection) -> tuple[Any, Any] | None:
        columns.void(table_id)
        ((last,),) = connection.execute("SELECT clean_seq FROM kalam_manifests WHERE table_id = ?",
                                        (table_id,)).fetchall()
        low = "" if after is None else "(_userid, k) > (?, ?)"
        values = after or ()
        found = connection.execute(
            f"SELECT _userid, k FROM {name} {'WHERE ' + low if low else ''} ORDER BY _userid, k "
            f"LIMIT 1 OFFSET {CLEAN_ROWS - 1}", values).fetchall()
        conditions = [low] if low else []
        if found:
            conditions.append("(_userid, k) <= (?, ?)")
            values = (*values, *found[0])
        connection.execute(f"DELETE FROM {name} WHERE {' AND '.join([*conditions, '_seq <= ?'])}", (*values, last))
        return (found[0][0], found[0][1]) if found else None

    return job
