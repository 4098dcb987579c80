"""Threads for what takes longer than microseconds, each interruptible while it works for a session.

``Workers.run`` is the only place where the event loop hands work away: it wires ``ClientSession.interrupt``, and when
the awaiting task is cancelled it interrupts the work, waits until the thread has let go, and raises 57014.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from kalamdb.api import ClientSession
from kalamdb.errors import KalamError

T = TypeVar("T")

INTERRUPT_SECONDS = 0.05


def cancelled() -> KalamError:
    return KalamError("57014", "canceling statement due to user request")


class Workers:
    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kalam-sql")

    def submit(self, work: Callable[[], T]) -> Future[T]:
        return self._pool.submit(work)

    async def wait(self, session: ClientSession, future: Future[T], interrupt: Callable[[], None]) -> T:
        """The result of submitted work, for this session's current statement."""
        previous, session.interrupt = session.interrupt, interrupt
        waiter = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(waiter)
        except asyncio.CancelledError:
            await self._stop(waiter, interrupt)
            if not waiter.cancelled():
                waiter.exception()  # looked at: what it was does not matter any more
            raise cancelled() from None
        finally:
            session.interrupt = previous

    async def _stop(self, waiter: asyncio.Future[T], interrupt: Callable[[], None]) -> None:
        """Until the thread has let go, whoever cancels once more: the transaction may not end beneath it.

        An interrupt that comes between two steps of a query is forgotten by the query engine, so it is repeated.
        """
        while not waiter.done():
            interrupt()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([waiter], timeout=INTERRUPT_SECONDS)

    async def run(self, session: ClientSession, interrupt: Callable[[], None], work: Callable[[], T]) -> T:
        return await self.wait(session, self.submit(work), interrupt)

    def abandon(self, future: Future[Any], interrupt: Callable[[], None], then: Callable[[], None]) -> None:
        """Nobody waits for submitted work any more: it is interrupted, and ``then`` called, in its thread, when it has
        let go. The event loop does not wait: reading a file may take its time."""
        loop = asyncio.get_running_loop()

        def again() -> None:
            if not future.done():
                interrupt()
                loop.call_later(INTERRUPT_SECONDS, again)

        future.add_done_callback(lambda _: then())
        again()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
