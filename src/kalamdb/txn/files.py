"""Contents of FILE columns: putting them, holding references against them, and removing what nothing refers to.

A content belongs to a table and a tenant. It is put outside any transaction, and durable before a row can refer to it,
so a commit never waits for it. Nobody counts references: a look at all rows of a table, hot and cold, dead ones of
segments included, finds which contents are referred to; one that was not for the grace period, and was not put within
it, is removed. What an open transaction refers to stays, and what is referred to while the look goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

import apsw

from kalamdb import faults, reference
from kalamdb.errors import KalamError
from kalamdb.store import contents
from kalamdb.store.contents import Content, OpenContent, Owner, Storage, Upload
from kalamdb.store.hot import HotSnapshot
from kalamdb.txn.api import ColumnDef, TableDef
from kalamdb.txn.clock import now_ms
from kalamdb.txn.jobs import Job
from kalamdb.txn.places import Place
from kalamdb.txn.tiering import read_rows, remove
from kalamdb.txn.tiers import HOUR_MS, Tiers, check_there, ended, gone

if TYPE_CHECKING:
    from kalamdb.txn.engine import StoreEngine

log = logging.getLogger(__name__)

DEFAULT_GRACE_HOURS = 24.0
#: by itself a look begins a tenth of the grace period after the last, within these bounds (seconds)
SOONEST, LATEST = 60.0, 3600.0


class Files:
    def __init__(self, engine: StoreEngine, tiers: Tiers, grace_hours: float) -> None:
        self._engine = engine
        self._tiers = tiers
        self._grace_ms = int(grace_hours * HOUR_MS)
        #: by table that is being looked at: what was put or referred to since
        self._noted: dict[int, set[Owner]] = {}
        #: contents whose removal is under way: for new references they are gone
        self._dying: set[tuple[int, str, bytes]] = set()
        self._publishing: set[asyncio.Task[None]] = set()
        every = min(max(grace_hours * HOUR_MS / 10_000, SOONEST), LATEST)
        self._task = asyncio.create_task(self._work_forever(every), name="files")

    async def close(self) -> None:
        """Before the tiers', whose threads and locks it uses."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._publishing:
            await asyncio.wait(self._publishing)

    # ---------- references ----------
    def check(self, table: TableDef, tenant: str, column: ColumnDef, value: str) -> tuple[int, str, bytes]:
        """What a value of a FILE column refers to. 22023 where it is no reference, 23503 where there is no such content
        of this tenant in this table; whether another has it is nobody's business."""
        try:
            found = reference.read(value)
        except KalamError as error:
            raise KalamError(error.sqlstate, error.message, detail=error.detail, hint=error.hint,
                             schema=table.namespace, table=table.name, column=column.name) from None
        key = (table.id, tenant, found.sha256)
        there = None if key in self._dying else contents.find(self._engine.live.query, *key)
        if there is None:
            raise KalamError(
                "23503", f'column "{column.name}" of relation "{table.name}" refers to a file that has not been put',
                detail=f"There is no content {found.sha256.hex()}"
                       + ("." if table.kind == "shared" else f' of tenant "{tenant}".'),
                hint="Put it into this table first, by FILE PUT or kalam file put.", schema=table.namespace,
                table=table.name, column=column.name)
        if there.size != found.size:
            raise KalamError("22023", "invalid reference to a file",
                             detail=f'Its field "size" is {found.size}, the content has {there.size} bytes.',
                             schema=table.namespace, table=table.name, column=column.name)
        self._note(key)
        return key

    def _note(self, key: tuple[int, str, bytes]) -> None:
        noted = self._noted.get(key[0])
        if noted is not None:
            noted.add(key[1:])

    # ---------- putting ----------
    def upload(self, table: TableDef, limit: int) -> Upload:
        if table.id not in self._engine.catalog.by_id:
            raise KalamError("55000", f'table "{table.name}" is not committed', hint="Try again after COMMIT.")
        return Upload(self._tiers.storage(table), limit)

    async def publish(self, table: TableDef, tenant: str, upload: Upload) -> None:
        """A statement that is cancelled ends at once: a content that is on its way into the storage goes there, and is
        removed again. Only so many are on their way, those of cancelled statements included."""
        place = self._tiers.places[upload.storage.id]
        try:
            await self._tiers.ready_in(place)
            await place.slots.acquire()
        except BaseException:
            upload.abandon()
            raise
        task = asyncio.create_task(self._publish(table, tenant, upload, place))
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)
        task.add_done_callback(lambda _: place.slots.release())
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            upload.wanted = False
            task.add_done_callback(_forget)
            raise
        task.result()

    async def _publish(self, table: TableDef, tenant: str, upload: Upload, place: Place) -> None:
        try:
            await place.run(upload.finish)
            sha256, size = upload.sha256, upload.size
            self._note((table.id, tenant, sha256))
            if not await self._put_again(table, tenant, sha256, size):
                await self._put(table, tenant, upload, place)
        finally:
            await place.run(upload.abandon)

    async def _put_again(self, table: TableDef, tenant: str, sha256: bytes, size: int) -> bool:
        """Is the content there already, sound? What is missing or damaged is put anew."""
        found = contents.find(self._engine.live.query, table.id, tenant, sha256)
        place = None if found is None else self._tiers.places.get(found.storage)
        if found is None or place is None or not await place.run(lambda: _sound(place.storage, found)):
            return False

        def job(connection: apsw.Connection) -> bool:
            check_there(connection, table)
            return contents.touch(connection, table.id, found, now_ms())

        there: bool = await self._engine.submit(job)
        return there

    async def _put(self, table: TableDef, tenant: str, upload: Upload, place: Place) -> None:
        storage, sha256 = place.storage, upload.sha256
        made = Content(tenant, sha256, upload.size, storage.id, contents.new_name(table.id, sha256), now_ms(), None)

        def job(connection: apsw.Connection) -> list[tuple[str, str]]:
            check_there(connection, table)
            return contents.add(connection, table.id, made)

        future = None
        try:
            faults.reach("content.written")
            await place.run(lambda: storage.put(made.file, upload.path))
            faults.reach("content.put")
            if not upload.wanted:
                raise KalamError("57014", "nobody waits for the file any more")
            future = self._engine.submit(job)
            cancelled = await ended(future)
            replaced = future.result()
        except BaseException:
            if future is None or future.exception() is not None:
                await place.run(lambda: remove(storage, [made.file]))
            raise
        faults.reach("content.published")
        self._tiers.condemn((*file, 0) for file in replaced)
        if cancelled is not None:
            raise cancelled

    # ---------- getting ----------
    async def open(self, table: TableDef, tenant: str, sha256: bytes) -> OpenContent:
        number = self._engine.readers.enter()  # until it is open, its file is not removed
        try:
            found = contents.find(self._engine.live.query, table.id, tenant, sha256)
            if found is None:
                raise contents.missing(sha256)
            place = self._tiers.places.get(found.storage)
            if place is None:
                raise KalamError("58P01", f'storage "{found.storage}" is not configured',
                                 hint="Add it to the server's settings.")
            return await place.run(lambda: OpenContent(place.storage, found), unwanted=OpenContent.close)
        finally:
            self._engine.readers.leave(number)

    # ---------- removing what nothing refers to ----------
    async def _work_forever(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            for number in contents.tables(self._engine.live.query):
                table = self._engine.catalog.by_id.get(number)
                if table is not None:  # else it was dropped, and its contents go with it
                    try:
                        await self.collect(table)
                    except Exception as error:
                        log.warning('contents of table "%s.%s": %r', table.namespace, table.name, error)

    async def collect(self, table: TableDef, *, now: int | None = None) -> int:
        """Look at a table's references; how many contents were removed."""
        async with self._tiers.lock_of(table):
            if table.id not in self._engine.catalog.by_id:
                raise gone(table)
            if not contents.of_table(self._engine.live.query, table.id):
                return 0
            with self._tiers.jobs.running("files", table) as job:
                try:
                    return await self._collect(table.id, job, now_ms() if now is None else now)
                finally:
                    self._noted.pop(table.id, None)

    async def _collect(self, number: int, job: Job, now: int) -> int:
        # What is referred to from here on is noted; what was before is in the snapshot, or an open transaction has it.
        noted = self._noted[number] = {key[1:] for key in self._engine.open_contents() if key[0] == number}
        snapshot = self._engine.hot_snapshot()
        try:
            snapshot.pin()
            known = contents.of_table(snapshot.query, number)
            unused = {each.owner for each in known}
            table = self._engine.catalog.by_id[number]
            await self._tiers.in_thread(lambda: self._mark(table, snapshot, unused, job))
        finally:
            snapshot.close()
        job.check()
        return await self._settle(number, known, unused - noted, job, now)

    def _mark(self, table: TableDef, snapshot: HotSnapshot, unused: set[Owner], job: Job) -> None:
        """Takes out what a row refers to."""
        layout = self._engine.layouts.of(table)
        names = [layout.columns[place] for place in layout.files]
        if not names:
            return
        listed = ", ".join(names)
        text = f"SELECT _userid, {listed} FROM {layout.table} WHERE coalesce({listed}, NULL) IS NOT NULL"
        for rows in read_rows(snapshot, layout, text, range(1, len(names) + 1)):
            job.check()
            for tenant, *values in rows:
                _take_out(unused, tenant, values)
        found = self._engine.cold.as_of(snapshot.query, table.id)
        for segment in found.segments if found is not None else ():
            for group in range(len(self._engine.cold.file(segment).groups)):
                job.check()
                batch = self._engine.cold.read(segment, group, [*names, *([] if layout.shared else ["_userid"])])
                columns = [batch.column(name).to_pylist() for name in names if name in batch.schema.names]
                tenants = [""] * batch.num_rows if layout.shared else batch.column("_userid").to_pylist()
                for tenant, *values in zip(tenants, *columns, strict=True):
                    _take_out(unused, tenant, values)

    async def _settle(self, number: int, known: list[Content], unused: set[Owner], job: Job, now: int) -> int:
        first = [each for each in known if each.owner in unused and each.unused_since is None]
        used = [each for each in known if each.owner not in unused and each.unused_since is not None]
        oldest = self._engine.oldest_reader_ms()  # who began before may see rows that referred to it
        dead = [each for each in known if each.owner in unused and now - each.put_at >= self._grace_ms
                and now - (now if each.unused_since is None else each.unused_since) >= self._grace_ms
                and (oldest is None or (each.unused_since is not None and each.unused_since < oldest))]
        if not first and not used and not dead:
            return 0
        keys = {(number, *each.owner) for each in dead}
        self._dying |= keys  # no step between this and what was noted
        future = self._engine.submit(lambda connection: contents.settle(
            connection, number, used=used, unused=first, dead=dead, now=now))
        future.add_done_callback(lambda _: self._dying.difference_update(keys))
        cancelled = await ended(future)
        removed = future.result()
        faults.reach("contents.settled")
        job.rows = len(removed)
        self._tiers.condemn((*file, 0) for file in removed)
        if cancelled is not None:
            raise cancelled
        return len(removed)


def _forget(task: asyncio.Task[None]) -> None:
    """Of a statement that has ended: what became of its content is no news to anybody."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.debug("a file of a cancelled statement: %s", error)


def _sound(storage: Storage, found: Content) -> bool:
    try:
        return contents.problem_of(storage.fetch(found.file), found.sha256, found.size) is None
    except (KalamError, OSError):
        return False


def _take_out(unused: set[Owner], tenant: str, values: list[str | None]) -> None:
    for value in values:
        if value is None:
            continue
        found = reference.hash_of(value)
        if found is not None:  # empty: no content's
            unused.discard((tenant, found))
        else:  # it may be any of the tenant's
            unused -= {owner for owner in unused if owner[0] == tenant}
