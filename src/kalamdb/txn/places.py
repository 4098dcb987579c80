"""Where files lie, one place for a storage: threads of its own, and whether it is this server's and swept.

Two servers on one bucket and prefix would remove each other's files, since neither's database names them. So a storage
outside the data directory has a marker that names the one server, and the one storage of it, that may write and remove
there. A server makes it in an empty storage, or where its database names files that lie there (which it wrote before
there were markers). A copy made by ``kalam restore`` is another server.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar, runtime_checkable

from kalamdb.errors import KalamError
from kalamdb.store import contents
from kalamdb.store.contents import Storage
from kalamdb.store.hot import LiveReader
from kalamdb.store.storage import MARKER
from kalamdb.txn.clock import now_ms

log = logging.getLogger(__name__)

T = TypeVar("T")
_SEGMENT = re.compile(r"\d+/[0-9a-f]{32}\.parquet")
#: contents of FILE columns that go into a storage at a time
PUTS = 4
#: after it failed, removing files does not ask again whose the storage is for so long
REST_MS = 60_000


@runtime_checkable
class Marked(Protocol):
    """A storage that other servers can reach, too."""

    def owner(self) -> str | None:
        """What the marker says, None where there is none."""

    def make_owner(self, text: str) -> None:
        """Make the marker where there is none."""


class Place:
    """``swept``: what a crash left is gone, or that was given up. ``slots``: for contents that are being put."""

    def __init__(self, storage: Storage, server: str, live: LiveReader) -> None:
        self.storage = storage
        self.swept = asyncio.Event()
        self.slots = asyncio.Semaphore(PUTS)
        self.owned = not isinstance(storage, Marked)
        self._server = server
        self._live = live
        self._lock = asyncio.Lock()
        self._rest_until = 0
        self._threads = ThreadPoolExecutor(PUTS, thread_name_prefix=f"kalam-{storage.id}")

    def close(self) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    async def run(self, work: Callable[[], T], *, unwanted: Callable[[T], None] | None = None) -> T:
        """In a thread of this storage. Who is cancelled hears of it at once: the work goes on if it has begun, and what
        it gives is handed to ``unwanted``."""
        begun = self._threads.submit(work)
        future = asyncio.wrap_future(begun)
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            if not begun.cancel():
                begun.add_done_callback(lambda done: _leave(done, unwanted))
                future.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        return future.result()

    async def own(self) -> None:
        """Make sure that this server may write and remove here. 55006 where another does."""
        if self.owned:
            return
        async with self._lock:
            if not self.owned:
                known = {name for (name,) in self._live.query(
                    "SELECT file FROM kalam_segments WHERE storage = ?1 UNION ALL "
                    "SELECT file FROM kalam_contents WHERE storage = ?1 UNION ALL "
                    "SELECT file FROM kalam_removed WHERE storage = ?1", (self.storage.id,))}
                await self.run(lambda: _claim(self.storage, self._server, known))
                self.owned = True

    async def may_remove(self) -> bool:
        """Does not ask again and again for a storage that is another's, or away."""
        if not self.swept.is_set() or (not self.owned and now_ms() < self._rest_until):
            return False
        try:
            await self.own()
        except KalamError:
            self._rest_until = now_ms() + REST_MS
        return self.owned


def _leave(done: Future[T], unwanted: Callable[[T], None] | None) -> None:
    if unwanted is not None and done.exception() is None:
        unwanted(done.result())


def _claim(storage: Storage, server: str, known: set[str]) -> None:
    """In a thread."""
    if not isinstance(storage, Marked):
        return
    found = storage.owner()
    if found is None:
        names = [name for name in storage.names("") if is_own(name)]
        if names and known.isdisjoint(names):
            raise _foreign(storage, server, f"It has files that this server did not write, and no {MARKER}.")
        storage.make_owner(marker(server, storage.id))
        log.info("storage %r is this server's from now on", storage.id)
        found = storage.owner()  # of whoever came first
    owner = _read(found)
    if owner != (server, storage.id):
        whose = f'names server {owner[0]}, storage "{owner[1]}"' if owner is not None else "cannot be read"
        raise _foreign(storage, server, f"Its {MARKER} {whose}.")


def marker(server: str, storage: str) -> str:
    return json.dumps({"server": server, "storage": storage})


def _read(text: str | None) -> tuple[Any, Any] | None:
    try:
        found = json.loads(text or "")
        return found["server"], found["storage"]
    except (ValueError, TypeError, KeyError):
        return None


def _foreign(storage: Storage, server: str, what: str) -> KalamError:
    return KalamError(
        "55006", f'storage "{storage.id}" belongs to another server', detail=what,
        hint="Give each server a bucket or prefix of its own. To take this one over, which removes all files there "
             "that this server does not name, stop the other server and write "
             f"{marker(server, storage.id)} to {MARKER}.")


def open_places(storages: Mapping[str, Storage], server: str, live: LiveReader) -> dict[str, Place]:
    return {name: Place(storage, server, live) for name, storage in storages.items()}


def is_own(name: str) -> bool:
    """Is that a name of a segment or content? What else lies in a storage is somebody's."""
    return bool(_SEGMENT.fullmatch(name) or contents.OWN_FILE.fullmatch(name))
