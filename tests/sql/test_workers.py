"""Work in threads under cancellation: nothing goes on behind the back of a statement that has ended."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kalamdb.api import Account, ClientSession, Role
from kalamdb.errors import KalamError
from kalamdb.sql.workers import Workers


class Work:
    """Lets go at the interrupt of the given number only; ``interrupted`` happens at the first one."""

    def __init__(self, interrupts: int) -> None:
        self.left = interrupts
        self.running = threading.Event()
        self.enough = threading.Event()
        self.ended = False
        self.interrupted = asyncio.Event()

    def __call__(self) -> None:
        self.running.set()
        assert self.enough.wait(20)
        self.ended = True

    def interrupt(self) -> None:
        self.interrupted.set()
        self.left -= 1
        if self.left <= 0:
            self.enough.set()


@pytest.mark.parametrize("interrupts", [1, 3])
def test_a_cancelled_statement_ends_after_its_thread(interrupts: int) -> None:
    """Also one that was between two steps when the first interrupt came, and one that is cancelled twice."""

    async def play() -> None:
        workers, work, session = Workers(1), Work(interrupts), ClientSession(1, Account("u", Role.USER))
        task = asyncio.create_task(workers.run(session, work.interrupt, work))
        await asyncio.to_thread(work.running.wait, 20)
        task.cancel()
        await work.interrupted.wait()
        task.cancel()
        with pytest.raises(KalamError) as raised:
            await task
        assert (raised.value.sqlstate, work.ended, session.interrupt) == ("57014", True, None)
        workers.close()

    asyncio.run(play())
