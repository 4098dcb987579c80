"""The one thread that writes to the database: group commit.

It takes every job that is queued, applies them in one SQLite transaction (each within a savepoint, so that one that
fails does not take others along) and synchronises once. A job's future is resolved in the event loop after the data
are on the disk. It keeps the write-ahead log short, too: readers that overlap for ever would let it grow for ever.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

import apsw

from kalamdb.errors import KalamError
from kalamdb.store.hot import storage_error

log = logging.getLogger(__name__)

Job = Callable[[apsw.Connection], Any]
#: jobs of one SQLite transaction
GROUP = 256
#: bytes of the log beyond which readers are waited for
LONG_LOG = 64 << 20
READERS_WAIT_MS = 100
#: seconds to the next time; longer after each wait in vain
REST, LONGEST_REST = 1.0, 60.0


class Settled(asyncio.Future[Any]):
    """A job's future. It cannot be cancelled: what is queued will be stored, and its outcome must be known.

    A task that is cancelled while it waits for one gets CancelledError when the job is done; ``outcome`` then tells.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        return False


async def outcome(future: asyncio.Future[Any]) -> Any:
    """What a job gave, or its error, whatever happened to the task that waits."""
    try:
        return await future
    except asyncio.CancelledError:
        return future.result()


class Writer:
    """``connection`` belongs to the thread from here on."""

    def __init__(self, connection: apsw.Connection, loop: asyncio.AbstractEventLoop,
                 after_group: Callable[[apsw.Connection], None]) -> None:
        self._connection = connection
        self._loop = loop
        self._after_group = after_group
        self._closed = False
        self.begun = self.done = 0  # groups: the number of the last one
        self._log = connection.filename_wal
        self._rest = REST
        self._tend_at = 0.0
        self._queue: SimpleQueue[tuple[Job, asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kalam-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Settled:
        """From the event loop. The future has the job's result, or its error; then nothing of it was stored."""
        future = Settled(loop=self._loop)
        if self._closed:
            raise KalamError("57P01", "the data directory has been closed")
        self._queue.put((job, future))
        return future

    async def close(self) -> None:
        """After what is queued."""
        self._closed = True
        self._queue.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    # ---------- in the thread ----------
    def _run(self) -> None:
        while self._turn():
            pass
        with suppress(apsw.Error):
            self._connection.close()

    def _turn(self) -> bool:
        """Wait for jobs and commit them; False at the end. On its own, so that no rows are kept while it waits."""
        first = self._queue.get()
        if first is None:
            return False
        group, more = [first], True
        with suppress(Empty):
            while more and len(group) < GROUP:
                job = self._queue.get_nowait()
                if job is None:
                    more = False
                else:
                    group.append(job)
        self.begun += 1
        outcomes = self._commit(group)
        self.done = self.begun
        self._resolve(outcomes)
        self._tend_log()
        return more

    def _resolve(self, outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
        with suppress(RuntimeError):  # the loop is gone: nobody waits
            self._loop.call_soon_threadsafe(_settle, outcomes)

    def _commit(self, group: list[tuple[Job, asyncio.Future[Any]]]
                ) -> list[tuple[asyncio.Future[Any], Any, BaseException | None]]:
        connection = self._connection
        outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        committing = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            for job, future in group:
                outcomes.append((future, *self._apply(job, alone=len(group) == 1)))
            self._after_group(connection)
            committing = True
            connection.execute("COMMIT")
        except BaseException as error:
            self._roll_back()
            if committing:
                self._void()
            if len(group) > 1:  # one of them may be to blame: each by itself
                return [outcome for item in group for outcome in self._commit([item])]
            log.error("commit failed: %r", error)
            return [(group[0][1], None, storage_error(error))]
        return outcomes

    def _apply(self, job: Job, *, alone: bool) -> tuple[Any, BaseException | None]:
        connection = self._connection
        if alone:
            return job(connection), None
        connection.execute("SAVEPOINT job")
        try:
            result = job(connection)
        except (apsw.FullError, apsw.IOError, apsw.CorruptError):
            raise
        except Exception as error:
            connection.execute("ROLLBACK TO job")
            connection.execute("RELEASE job")
            return None, storage_error(error)
        connection.execute("RELEASE job")
        return result, None

    def _roll_back(self) -> None:
        with suppress(apsw.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _void(self) -> None:
        """A commit whose synchronisation failed lies complete in the log, and a restart would find it, though its
        client was told that nothing was stored: a commit of nothing is written over it. That one is not synchronised,
        which would fail again, nor may it move the log: the next commit that succeeds does both."""
        connection = self._connection
        pages = connection.pragma("wal_autocheckpoint")
        try:
            connection.pragma("wal_autocheckpoint", 0)
            connection.pragma("synchronous", "OFF")
            connection.execute("BEGIN IMMEDIATE")
            self._after_group(connection)
            connection.execute("COMMIT")
        except apsw.Error as error:
            self._roll_back()
            log.error("a failed commit could not be made void; a restart before the next commit may find it: %r", error)
        finally:
            connection.pragma("synchronous", "FULL")
            connection.pragma("wal_autocheckpoint", pages)

    def _tend_log(self) -> None:
        """A checkpoint by itself waits for nobody, and while somebody reads, the log goes on at its end. Once it is
        long, those who read now are waited for; whoever comes meanwhile does no harm."""
        now = time.monotonic()
        if now < self._tend_at or _size(self._log) < LONG_LOG:
            return
        connection = self._connection
        before = connection.pragma("busy_timeout")
        try:
            connection.set_busy_timeout(READERS_WAIT_MS)
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
            self._rest = REST
        except apsw.Error as error:
            self._rest = min(2 * self._rest, LONGEST_REST)
            log.debug("the write-ahead log stays long: %r", error)
        finally:
            connection.set_busy_timeout(before)
            self._tend_at = time.monotonic() + self._rest


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _settle(outcomes: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for future, result, error in outcomes:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
