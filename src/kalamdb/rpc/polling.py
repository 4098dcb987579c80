"""Busy polling: while one client alone sends statements, the event loop looks for its next one before it sleeps.

To wake a processor that sleeps takes longer than most statements, above all in a virtual machine. A client that takes
its time costs little: after each time in vain the loop sleeps at once for twice as many of its messages.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Final

#: so long must a client have been the only one that sent anything, in seconds
ALONE: Final = 0.02
#: messages without polling after a time in vain: one less than a power of two, this at most
LONGEST_REST: Final = 255


def processors() -> int:
    """Those this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BusyPoll:
    """``microseconds``: how long the loop looks for more, 0: not at all. Where there is one processor, it never does:
    who is waited for needs it."""

    def __init__(self, microseconds: int) -> None:
        self._limit = microseconds / 1e6 if processors() > 1 else 0.0
        self._client: object = None
        self._since = 0.0  # it is alone
        self._until = 0.0
        self.polling = False
        self._rest = self._next_rest = 0

    def answered(self, client: object) -> None:
        """What a client sent has been dealt with, as far as it goes."""
        now = time.monotonic()
        if client is not self._client:
            self._client, self._since = client, now
            self._until = 0.0
            self._rest = self._next_rest = 0
        elif self.polling:
            self._until = now + self._limit
            self._next_rest = 0
        elif self._rest:
            self._rest -= 1
        elif now - self._since >= ALONE and self._limit:
            self.polling = True
            self._until = now + self._limit
            asyncio.get_running_loop().call_soon(self._turn)

    def gone(self, client: object) -> None:
        """A client has disconnected."""
        if client is self._client:
            self._client, self._until = None, 0.0

    def _turn(self) -> None:
        if time.monotonic() < self._until:
            os.sched_yield()  # to whoever can run
            asyncio.get_running_loop().call_soon(self._turn)
            return
        self.polling = False
        if self._until:  # else another client has come
            self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest + 1, LONGEST_REST)
