"""Commits to the database: in groups, by one connection that the event loop and a thread have in turn.

What is queued together is one SQLite transaction (each job within a savepoint, so that one that fails does not take
others along) and synchronised once. Light jobs, a few small rows each, are applied in the event loop, as long as they
are few, and only the COMMIT is left to the thread: every call into SQLite gives the interpreter's lock away, and two
busy threads would fight for it. Where nobody else would have to wait, the loop commits by itself. A job's future is
resolved in the event loop after the data are on the disk.

The write-ahead log is written back to the database by a thread and a connection of their own, so that no commit waits
for that; only what has come meanwhile is left for a moment in which nothing is committed, and then the log begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import apsw

from kalamdb.errors import KalamError
from kalamdb.store import hot
from kalamdb.store.hot import storage_error

log = logging.getLogger(__name__)

Job = Callable[[apsw.Connection], Any]
Outcome = tuple["Settled | None", Any, BaseException | None]
#: jobs of one SQLite transaction
GROUP = 256
#: of light jobs: bytes and, each as so many bytes, rows; and how much the event loop applies at once, some milliseconds
ROW_WEIGHT = 4096
GROUP_WEIGHT = 2 << 20
#: bytes of the log beyond which readers are waited for
LONG_LOG = 64 << 20
READERS_WAIT_MS = 100
#: seconds to the next time; longer after each wait in vain
REST, LONGEST_REST = 1.0, 60.0
#: seconds that a commit in the event loop may take, and for how long there is none after one that took longer
SLOW, SLOW_REST = 0.05, 1.0


class Settled(asyncio.Future[Any]):
    """A job's future. It cannot be cancelled: what is queued will be stored, and its outcome must be known.

    A task that is cancelled while it waits for one gets CancelledError when the job is done; ``outcome`` then tells.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        return False

    _first: list[Callable[[asyncio.Future[Any]], object]] | None = None

    def then(self, callback: Callable[[asyncio.Future[Any]], object]) -> None:
        """``add_done_callback``, but called at once when it is done, before those who wait."""
        if self.done():
            callback(self)
        elif self._first is None:
            self._first = [callback]
        else:
            self._first.append(callback)

    def settle(self, result: Any, error: BaseException | None) -> None:
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(result)
        for callback in self._first or ():
            try:
                callback(self)
            except Exception as raised:
                self.get_loop().call_exception_handler({
                    "message": "what follows from a commit failed", "exception": raised, "future": self,
                })
        self._first = None


async def outcome(future: asyncio.Future[Any]) -> Any:
    """What a job gave, or its error, whatever happened to the task that waits."""
    try:
        return await future
    except asyncio.CancelledError:
        return future.result()


class Item:
    """A job that waits for its turn."""

    __slots__ = ("future", "job", "weight")

    def __init__(self, job: Job, future: Settled | None, weight: int | None) -> None:
        self.job = job
        self.future = future
        self.weight = weight  # None: not for the event loop


class Writer:
    """``connection`` and ``keeper``, a second one for checkpoints, are the writer's from here on. ``before_group`` is
    called in the event loop before a group is begun, ``after_group`` as part of it, where the connection is."""

    def __init__(self, connection: apsw.Connection, keeper: apsw.Connection, loop: asyncio.AbstractEventLoop,
                 before_group: Callable[[], None], after_group: Callable[[apsw.Connection], None]) -> None:
        self._connection = connection
        self._keeper = keeper
        self._loop = loop
        self._before_group = before_group
        self._after_group = after_group
        self._closed = False
        self.begun = self.done = 0  # groups: the number of the last one
        self._queue: deque[Item] = deque()
        self._busy = False  # the thread has the connection
        self._gathering = False
        self._idle: asyncio.Future[None] | None = None  # when the last group is through
        self._slow_until = 0.0
        self._log = connection.filename_wal
        self._pages = 0  # of the log
        self._due = hot.LOG_PAGES  # when it has so many, it is written back
        self._keeping = False
        self._ending = False  # written back but for the last of it
        self._rest = REST
        self._tend_at = 0.0
        connection.set_wal_hook(self._committed)
        self._work: SimpleQueue[Callable[[], list[Outcome]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="kalam-writer", daemon=True)
        self._thread.start()
        self._checkpoints: SimpleQueue[bool] = SimpleQueue()
        self._keeping_thread = threading.Thread(target=self._keep, name="kalam-checkpoint", daemon=True)
        self._keeping_thread.start()

    # ---------- in the event loop ----------
    @property
    def waiting(self) -> int:
        """Jobs that are queued and not begun."""
        return len(self._queue)

    def free(self) -> apsw.Connection | None:
        """The connection, to read committed rows with, if nothing is being committed."""
        return None if self._busy else self._connection

    @property
    def prompt(self) -> bool:
        """Can the event loop commit by itself now?"""
        return not (self._busy or self._queue or self._closed) and time.monotonic() >= self._slow_until

    def submit(self, job: Job, *, weight: int | None = None) -> Settled:
        """The future has the job's result, or its error; then nothing of it was stored. ``weight``: of a light job."""
        future = Settled(loop=self._loop)
        if self._closed:
            raise KalamError("57P01", "the data directory has been closed")
        item = Item(job, future, weight)
        free = not self._busy and not self._queue
        self._queue.append(item)
        if free and weight is None:
            self._begin()
        elif not self._busy and not self._gathering:
            self._gathering = True  # what else this turn of the loop brings
            self._loop.call_soon(self._gathered)
        return future

    def commit_now(self, job: Job) -> Any:
        """A light job, done by the event loop at once, which ``prompt`` allows; its result. Raises its error."""
        began = time.monotonic()
        self._before_group()
        ((_, result, error),) = self._commit([Item(job, None, 0)])
        ended = time.monotonic()
        if ended - began > SLOW:
            self._slow_until = ended + SLOW_REST
        if error is not None:
            raise error
        return result

    def _gathered(self) -> None:
        self._gathering = False
        if not self._busy and self._queue:
            self._begin()

    def _begin(self) -> None:
        """The next group."""
        self._before_group()
        queue = self._queue
        group = [queue.popleft() for _ in range(min(len(queue), GROUP))]
        applied: list[Outcome] | None = None
        if _is_light(group):
            try:
                applied = self._apply_all(group, savepoints=False)  # they seldom fail
            except BaseException:  # the thread will find the same, and deals with it
                self._roll_back()
        self._hand_over(lambda: self._commit(group, applied))

    def _hand_over(self, work: Callable[[], list[Outcome]]) -> None:
        self._busy = True
        self._work.put(work)

    def _done(self, outcomes: list[Outcome]) -> None:
        """The thread has given the connection back."""
        self._busy = False
        if self._ending:
            self._ending = False
            self._hand_over(self._tend_log)
        elif self._queue:  # at once: it is synchronised while answers are sent
            self._begin()
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        _settle(outcomes)

    async def close(self) -> None:
        """After what is queued."""
        self._closed = True
        if self._busy or self._queue:
            self._idle = self._loop.create_future()
            await self._idle
        self._work.put(None)
        self._checkpoints.put(False)
        await self._loop.run_in_executor(None, self._keeping_thread.join)
        await self._loop.run_in_executor(None, self._thread.join)

    # ---------- in the thread ----------
    def _run(self) -> None:
        while self._turn():
            pass
        with suppress(apsw.Error):
            self._connection.close()

    def _turn(self) -> bool:
        """Wait for work and do it; False at the end. On its own, so that no rows are kept while it waits."""
        work = self._work.get()
        if work is None:
            return False
        outcomes = work()
        with suppress(RuntimeError):  # the loop is gone: nobody waits
            self._loop.call_soon_threadsafe(self._done, outcomes)
        return True

    # ---------- where the connection is ----------
    def _commit(self, group: list[Item], applied: list[Outcome] | None = None) -> list[Outcome]:
        """``applied``: in a transaction that is open, and lacks only its end."""
        committing = False
        try:
            if applied is None:
                applied = self._apply_all(group)
            committing = True
            self._connection.execute("COMMIT")
        except BaseException as error:
            self._roll_back()
            if committing:
                self._void()
            if len(group) > 1:  # one of them may be to blame: each by itself
                return [outcome for item in group for outcome in self._commit([item])]
            log.error("commit failed: %r", error)
            return [(group[0].future, None, storage_error(error))]
        finally:
            self.done = self.begun
        return applied

    def _apply_all(self, group: list[Item], *, savepoints: bool = True) -> list[Outcome]:
        """``savepoints``: a job that fails does not take the others along."""
        connection = self._connection
        alone = len(group) == 1 or not savepoints
        self.begun += 1
        connection.execute("BEGIN IMMEDIATE")
        outcomes: list[Outcome] = [(item.future, *self._apply(item.job, alone=alone)) for item in group]
        self._after_group(connection)
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
        try:
            connection.pragma("synchronous", "OFF")
            connection.execute("BEGIN IMMEDIATE")
            self._after_group(connection)
            connection.execute("COMMIT")
        except apsw.Error as error:
            self._roll_back()
            log.error("a failed commit could not be made void; a restart before the next commit may find it: %r", error)
        finally:
            connection.pragma("synchronous", "FULL")

    # ---------- the log ----------
    def _committed(self, _: apsw.Connection, __: str, pages: int) -> int:
        """After each commit. The log grows until all of it is in the database and nobody reads from it: then a commit
        begins it anew."""
        if pages < self._pages:
            self._due = hot.LOG_PAGES
        self._pages = pages
        if pages >= self._due and not self._keeping:
            self._keeping = True
            self._checkpoints.put(True)
        return apsw.SQLITE_OK

    def _keep(self) -> None:
        """The thread of checkpoints."""
        while self._checkpoints.get():
            try:
                self._keeper.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.Error as error:
                log.debug("the write-ahead log was not written back: %r", error)
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._end_checkpoint)
        with suppress(apsw.Error):
            self._keeper.close()

    def _end_checkpoint(self) -> None:
        """In the event loop: what was committed since is little."""
        if self._busy:
            self._ending = True
        else:
            self._hand_over(self._tend_log)

    def _tend_log(self) -> list[Outcome]:
        """In the thread, while nothing is committed."""
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error as error:
            log.debug("the write-ahead log was not written back: %r", error)
        self._shorten_log()
        self._due = self._pages + hot.LOG_PAGES // 4  # if readers keep it from beginning anew
        self._keeping = False
        return []

    def _shorten_log(self) -> None:
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


def _is_light(group: list[Item]) -> bool:
    """May the event loop apply it?"""
    total = 0
    for item in group:
        if item.weight is None:
            return False
        total += item.weight
    return total <= GROUP_WEIGHT


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _settle(outcomes: list[Outcome]) -> None:
    for future, result, error in outcomes:
        if future is not None and not future.done():
            future.settle(result, error)
