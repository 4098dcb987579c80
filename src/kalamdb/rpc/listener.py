"""The RPC listener: accepts connections by TCP and on a Unix-domain socket, limits their number, finds the target of a
cancel request, drains."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import socket
from typing import Final

from kalamdb.api import Account, Executor, Role
from kalamdb.auth.authenticator import Authenticator
from kalamdb.errors import KalamError
from kalamdb.rpc import wire
from kalamdb.rpc.connection import Connection
from kalamdb.rpc.polling import BusyPoll
from kalamdb.settings import Settings

log = logging.getLogger(__name__)

#: Connections beyond ``max_connections`` that may be logging in or bringing a cancel request.
_HALF_OPEN: Final = 100
#: Connections that may wait to be accepted. One more, and libpq fails at once on a Unix-domain socket.
BACKLOG: Final = 512
#: Sessions kept free for dba and system, so that a full server can still be looked at.
_RESERVED: Final = 3


def _shutting_down() -> KalamError:
    return KalamError("57P01", "terminating connection due to administrator command", severity="FATAL")


class Listener:
    def __init__(
        self, settings: Settings, executor: Executor, authenticator: Authenticator, *sockets: socket.socket
    ) -> None:
        self.settings = settings
        self.executor = executor
        self.authenticator = authenticator
        self.polling = BusyPoll(settings.rpc.busy_poll)
        self._sockets = sockets  # bound and listening
        self.http_url: str | None = None
        self._connections: set[Connection] = set()
        self._by_pid: dict[int, Connection] = {}
        self._servers: list[asyncio.Server] = []  # uvloop's end when nobody holds them
        self._empty = asyncio.Event()
        self._empty.set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            serve = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
            self._servers.append(await serve(lambda: Connection(self), sock=sock, backlog=BACKLOG))

    @property
    def sessions(self) -> int:
        return len(self._by_pid)

    # ---------- for connections ----------

    def add(self, connection: Connection) -> bool:
        """Register; False if there are too many already."""
        self._connections.add(connection)
        self._empty.clear()
        return len(self._connections) <= self.settings.max_connections + _HALF_OPEN

    def remove(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.polling.gone(connection)
        self._by_pid.pop(connection.pid, None)
        if not self._connections:
            self._empty.set()

    def admits(self, account: Account) -> bool:
        limit = self.settings.max_connections
        reserved = 0 if account.role >= Role.DBA else min(_RESERVED, limit - 1)
        return len(self._by_pid) < limit - reserved

    def new_pid(self, connection: Connection) -> int:
        pid = 0
        while pid == 0 or pid in self._by_pid:
            pid = secrets.randbelow(1 << 31)
        self._by_pid[pid] = connection
        return pid

    def cancel(self, request: wire.CancelRequest) -> None:
        target = self._by_pid.get(request.pid)
        if target is None or target.session is None or not hmac.compare_digest(target.key, request.key):
            log.info("cancel request for no session of this server")
            return
        target.session.cancel()

    # ---------- the end ----------

    async def drain(self, hurry: asyncio.Event) -> None:
        """Stop accepting; idle clients get 57P01 at once, others when their statement has ended.

        What still runs after ``shutdown_timeout``, or as soon as ``hurry`` is set, is cancelled.
        """
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            if connection.session is not None:
                connection.session.end_when_idle(_shutting_down())
            else:
                connection.abandon()
        if not await self._emptied(hurry, self.settings.shutdown_timeout):
            log.warning("cancelling the statements of %d clients", len(self._connections))
            for connection in list(self._connections):
                if connection.session is not None:
                    connection.session.end_now(_shutting_down())
            await self._emptied(None, 10.0)
        for connection in list(self._connections):
            connection.abandon()

    async def _emptied(self, hurry: asyncio.Event | None, seconds: float) -> bool:
        waits = [asyncio.ensure_future(self._empty.wait())]
        if hurry is not None:
            waits.append(asyncio.ensure_future(hurry.wait()))
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        return self._empty.is_set()
