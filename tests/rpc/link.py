"""A session without a socket: bytes go in at one end, and what it writes is there to look at."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from kalamdb.api import ClientSession
from kalamdb.rpc import wire
from kalamdb.rpc.session import Session
from tiny import TinyExecutor, dba


class Wire:
    """A session at one end, a test at the other."""

    def __init__(self, idle_in_transaction_ms: int = 0) -> None:
        self.executor = TinyExecutor()
        self.client = ClientSession(1, dba())
        self.decoder = wire.Decoder(1 << 20)
        self.decoder.phase = wire.Phase.NORMAL
        self.blocked = False
        self.closed = False
        self.writes: list[bytes] = []
        self.unblocked = asyncio.Event()
        self.session = Session(
            self, self.decoder, self.executor, self.client, idle_in_transaction_ms=idle_in_transaction_ms
        )

    # the link
    def write(self, data: bytes) -> None:
        self.writes.append(data)

    async def drain(self) -> None:
        if self.blocked:
            await self.unblocked.wait()

    def close(self, *, linger: bool = False) -> None:
        self.closed = True

    def settled(self) -> None:
        pass

    # the test
    def send(self, *data: bytes) -> None:
        self.session.received(b"".join(data))

    def taken(self) -> bytes:
        data = b"".join(self.writes)
        self.writes.clear()
        return data

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - what is waited for is bytes, not an event
                await asyncio.sleep(0)

    async def ask(self, *data: bytes) -> bytes:
        """Send, and wait for ReadyForQuery."""
        self.send(*data)
        await self.until(lambda: b"".join(self.writes)[-6:-1] == b"Z\0\0\0\5")
        return self.taken()


def scenario(body: Callable[[Wire], Awaitable[None]]) -> Callable[[], None]:
    def test() -> None:
        async def run() -> None:
            await body(Wire())

        asyncio.run(run())

    test.__name__ = body.__name__
    return test
