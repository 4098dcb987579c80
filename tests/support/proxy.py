"""A TCP proxy between PostgreSQL and the server that holds, slows down, counts and cuts what passes.

Some things are done to everything: `hold`, `crawl`, `resume`, `cut`, `refuse`. A `Trap` is sprung by a message to the
server that matches a pattern: text of a statement (`FETCH`), or of its parameters (`"commit":true`). What it does then
is done to that connection alone, so that a cancel request, which comes on another, still passes (`lose_cancels`: they
are accepted and go nowhere). Who closes a connection closes it on both sides, also while it is held.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from .ports import clients_of, wait_until

Fault = Literal["hold", "hold answer", "crawl", "cut", "cut answer"]

#: one piece of a crawling answer, and the seconds between two
CRAWL_BYTES, CRAWL_PAUSE = 3, 0.05
#: no more of an answer is taken from the server while this much is held
HELD_BYTES = 1 << 18
CANCEL_REQUEST, PROTOCOL_3 = 80877102, 3
#: Parse, Bind, Describe, Execute, Close: more follows
PARTS = (b"P", b"B", b"D", b"E", b"C")


@dataclass(eq=False)
class Trap:
    """`after`: so many bytes of the answer pass before it is held, slowed down or cut; `skip`: so many matches pass.

    hold: neither the message nor what comes after it reaches the server.  cut: the connection ends instead.
    hold answer, crawl, cut answer: the server gets the message and those that belong to it, up to Sync, and what it
    says to them is treated so: it may say something to the first of them before it has the last.
    """

    pattern: re.Pattern[bytes]
    fault: Fault
    after: int = 0
    skip: int = 0
    _sprung: threading.Event = field(default_factory=threading.Event)

    @property
    def sprung(self) -> bool:
        return self._sprung.is_set()

    def wait(self, seconds: float = 20) -> None:
        """Until the message has come; for what is done to an answer: until it has."""
        assert self._sprung.wait(seconds), f"nothing matched {self.pattern.pattern!r} in {seconds:g} s"


class Messages:
    """Cuts what a client sends into messages; the start-up packets have no type."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.cancels = False
        self._started = False

    def feed(self, data: bytes) -> list[bytes]:
        self._buffer += data
        found = []
        while (message := self._next()) is not None:
            found.append(message)
        return found

    def _next(self) -> bytes | None:
        head = 1 if self._started else 0
        if len(self._buffer) < head + 4:
            return None
        size = head + struct.unpack_from("!I", self._buffer, head)[0]
        if len(self._buffer) < size:
            return None
        message = bytes(self._buffer[:size])
        del self._buffer[:size]
        if not self._started:
            code = struct.unpack_from("!I", message, 4)[0]
            self._started = code >> 16 == PROTOCOL_3
            self.cancels |= code == CANCEL_REQUEST
        return message


class Link:
    """One connection: what the client sends is cut into messages, what the server says is passed as it comes."""

    def __init__(self, proxy: Proxy, client: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        self.proxy = proxy
        self.client, self.to_client = client
        self.to_server: asyncio.StreamWriter | None = None
        self.cancels = False
        self.slow = False
        self.passes: int | None = None  # bytes of the answer before the fault; None: all
        self.trap: Trap | None = None
        self._asked = asyncio.Event()  # nothing of the request that has sprung a trap is still to come
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self.ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.resume()

    def hold(self) -> None:
        self._up.clear()
        self._down.clear()

    def resume(self) -> None:
        self.slow = False
        self.passes = None
        self._asked.set()
        self._up.set()
        self._down.set()

    def cut(self) -> None:
        """Both sides see a reset."""
        for writer in (self.to_client, self.to_server):
            if writer is not None:
                sock = writer.get_extra_info("socket")
                if sock is not None and sock.fileno() >= 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        for writer in (self.to_client, self.to_server):
            if writer is not None:
                writer.close()
        for task in self._tasks:
            task.cancel()

    async def run(self) -> None:
        """Until both sides are closed, and not only about to be."""
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks = {asyncio.create_task(part) for part in (self._listen(queue), self._speak(queue))}
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.close()
        for writer in (self.to_client, self.to_server):
            if writer is not None:
                with suppress(OSError):
                    await writer.wait_closed()
        self.ended.set()

    # ---------- to the server ----------

    async def _listen(self, queue: asyncio.Queue[bytes]) -> None:
        """Reads on whatever is held, or nobody would notice that the client is gone."""
        messages = Messages()
        try:
            while data := await self.client.read(1 << 16):
                for message in messages.feed(data):
                    self.cancels = messages.cancels
                    queue.put_nowait(message)
        except OSError:
            pass
        if not self._up.is_set():
            self.close()
        queue.put_nowait(b"")

    async def _speak(self, queue: asyncio.Queue[bytes]) -> None:
        """An empty message is the end."""
        try:
            while message := await queue.get():
                await self._up.wait()
                if self.to_server is None and not await self._connect():
                    return
                assert self.to_server is not None
                self.proxy.note(self, message)
                self._spring(message)
                await self._up.wait()
                self.to_server.write(message)
                await self.to_server.drain()
                if message[:1] not in PARTS:
                    self._asked.set()
        except OSError:
            pass
        self.close()

    async def _connect(self) -> bool:
        if self.cancels and not self.proxy.passes_cancels:
            await asyncio.Event().wait()
        try:
            server, self.to_server = await asyncio.open_connection("127.0.0.1", self.proxy.target)
        except OSError:
            self.close()
            return False
        self._tasks.add(asyncio.create_task(self._answer(server)))
        return True

    def _spring(self, message: bytes) -> None:
        trap = self.proxy.trap_for(message)
        if trap is None:
            return
        if trap.fault == "hold":
            self._up.clear()
            trap._sprung.set()
        elif trap.fault == "cut":
            trap._sprung.set()
            self.cut()
        else:
            self.trap = trap
            self.passes = trap.after
            if message[:1] in PARTS:
                self._asked.clear()

    # ---------- to the client ----------

    async def _answer(self, server: asyncio.StreamReader) -> None:
        try:
            while data := await server.read(HELD_BYTES):
                self.proxy.bytes_down += len(data)
                await self._say(data)
        except OSError:
            pass
        self.close()

    async def _say(self, data: bytes) -> None:
        await self._down.wait()
        if self.passes is not None:
            await self._asked.wait()
        if self.passes is not None:
            now, data = data[: self.passes], data[self.passes :]
            self.passes -= len(now)
            await self._write(now)
            if not data:
                return
            self._fault()
            await self._down.wait()
        while self.slow and data:
            await self._write(data[:CRAWL_BYTES])
            data = data[CRAWL_BYTES:]
            await asyncio.sleep(CRAWL_PAUSE)
            await self._down.wait()
        await self._write(data)

    def _fault(self) -> None:
        trap, self.trap, self.passes = self.trap, None, None
        assert trap is not None
        if trap.fault == "cut answer":
            self.cut()
        elif trap.fault == "crawl":
            self.slow = True
        else:
            self._down.clear()
        trap._sprung.set()

    async def _write(self, data: bytes) -> None:
        self.to_client.write(data)
        await self.to_client.drain()


class Proxy:
    """Listens on ``port`` and leads to the ``target`` port of this machine; its work is done in a thread."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.accepted = 0
        self.connections = 0  # that got as far as a start-up packet
        self.cancels = 0
        self.bytes_down = 0
        self.messages: list[bytes] = []  # Parse, Bind, Query and so on, as they came
        self.passes_cancels = True
        self._held = False
        self._traps: list[Trap] = []
        self._links: set[Link] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.accept()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---------- everything ----------

    def hold(self) -> None:
        """From now on nothing passes, and who connects waits."""

        def hold() -> None:
            self._held = True
            for link in self._links:
                link.hold()

        self._call(hold)

    def crawl(self) -> None:
        """From now on the server speaks a few bytes at a time."""

        def crawl() -> None:
            for link in self._links:
                link.slow = True

        self._call(crawl)

    def resume(self) -> None:
        """Everything passes again, what was held first; traps are gone."""

        def resume() -> None:
            self._held = False
            self._traps.clear()
            self.passes_cancels = True
            for link in self._links:
                link.resume()

        self._call(resume)

    def cut(self) -> None:
        """Ends all connections, for both sides; new ones may come."""

        async def cut() -> None:
            links = list(self._links)
            names = (link.to_client.get_extra_info("peername") for link in links)
            clients.update(name[1] for name in names if name is not None)
            for link in links:
                link.cut()
            for link in links:
                await link.ended.wait()

        clients: set[int] = set()
        self._await(cut())
        wait_until(lambda: not clients & clients_of(self.port), "the end of the connections for the clients")

    def wait_until_alone(self) -> None:
        """Until all connections have ended, for both sides: the client's system knows as well."""
        self._await(self._empty.wait())
        wait_until(lambda: not clients_of(self.port), "the end of the connections for the clients")

    def refuse(self) -> None:
        """Nobody listens any more; connections that stand stay."""
        self._call(lambda: self._server.close() if self._server else None)

    def accept(self) -> None:
        """Listens, the first time on a port of the system's choice."""
        self._await(self._listen())

    def lose_cancels(self) -> None:
        self.passes_cancels = False

    def close(self) -> None:
        self.refuse()
        self.cut()
        self._await(self._empty.wait())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---------- one message ----------

    def trap(self, pattern: str, fault: Fault, *, after: int = 0, skip: int = 0) -> Trap:
        """A trap for the next message that matches; it is sprung once."""
        trap = Trap(re.compile(pattern.encode()), fault, after, skip)
        self._call(lambda: self._traps.append(trap))
        return trap

    def count(self, pattern: str) -> int:
        """How many messages so far match."""
        wanted = re.compile(pattern.encode())
        return sum(wanted.search(message) is not None for message in list(self.messages))

    def wait_for(self, pattern: str, more_than: int = 0) -> None:
        wait_until(lambda: self.count(pattern) > more_than, f"a message {pattern!r}")

    # ---------- in the thread ----------

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(self, (reader, writer))
        self.accepted += 1
        if self._held:
            link.hold()
        self._links.add(link)
        self._empty.clear()
        try:
            await link.run()
        finally:
            self._links.discard(link)
            if not self._links:
                self._empty.set()

    def note(self, link: Link, message: bytes) -> None:
        if link.cancels:
            self.cancels += 1
        elif message[:1].isalpha():
            self.messages.append(message)
        elif message[4:6] == b"\0\3":
            self.connections += 1

    def trap_for(self, message: bytes) -> Trap | None:
        for trap in self._traps:
            if trap.pattern.search(message) is None:
                continue
            if trap.skip:
                trap.skip -= 1
                continue
            self._traps.remove(trap)
            return trap
        return None

    def _call(self, work: Callable[[], object]) -> None:
        async def call() -> None:
            work()

        self._await(call())

    def _await(self, work: Coroutine[Any, Any, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)
