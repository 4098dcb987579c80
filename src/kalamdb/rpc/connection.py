"""One accepted connection: asyncio's callbacks on one side, handshake and session on the other.

Reading stops while a statement runs and a bounded amount waits behind it, or while the client does not read its
answers; a client that vanishes meanwhile is noticed all the same.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import select
import socket
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final

from kalamdb import __version__
from kalamdb.api import Account, ClientSession, Role
from kalamdb.errors import KalamError
from kalamdb.rpc import wire
from kalamdb.rpc.handshake import Handshake
from kalamdb.rpc.options import startup_settings
from kalamdb.rpc.session import REPORTED, Session

if TYPE_CHECKING:
    from kalamdb.rpc.listener import Listener

log = logging.getLogger(__name__)

#: Bytes that may wait behind a running statement before reading stops.
_READ_AHEAD: Final = 1 << 20
#: How often a connection that is not read from is looked at, in seconds.
_WATCH: Final = 0.25
#: How long a client may take to read a farewell, in seconds.
_LINGER: Final = 5.0


class Connection(asyncio.Protocol):
    def __init__(self, listener: Listener) -> None:
        self.blocked = False
        self.pid = 0
        self.key = b""
        self.session: Session | None = None
        self._listener = listener
        self._decoder = wire.Decoder(listener.settings.rpc.max_message << 20)
        self._handshake: Handshake | None = None
        self._transport: Any = None
        self._reading = True
        self._closing = False
        self._writable: asyncio.Future[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._login_timer: asyncio.TimerHandle | None = None
        self._login_task: asyncio.Task[None] | None = None

    # ---------- asyncio.Protocol ----------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        peer = transport.get_extra_info("peername")
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._peer = peer[0] if isinstance(peer, tuple) else "local"
        self._handshake = Handshake(
            self, self._decoder, self._listener.authenticator, peer=self._peer, http_url=self._listener.http_url,
            on_login=self._log_in, on_cancel=self._listener.cancel,
        )
        limit = self._listener.settings.authentication_timeout
        self._login_timer = asyncio.get_running_loop().call_later(limit, self._handshake.time_out)
        if not self._listener.add(self):
            self._handshake.fail(KalamError("53300", "too many connections that have not logged in"))

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self.session is not None:
            self.session.received(data)
            self._listener.polling.answered(self)
        else:
            self._decoder.feed(data)
            if self._handshake is not None:
                self._handshake.advance()
            self.settled()

    def eof_received(self) -> bool:
        """A client that sends no more is gone, though it may not have read everything yet."""
        if self._closing:
            return False
        if self.session is not None:
            self.session.lost()
        self.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        for timer in (self._watch, self._login_timer):
            if timer is not None:
                timer.cancel()
        self.resume_writing()
        if self._handshake is not None:
            self._handshake.stop()
        if self._login_task is not None:
            self._login_task.cancel()
        if self.session is not None:
            self.session.lost()
            self.session.released.add_done_callback(lambda _: self._listener.remove(self))
        else:
            self._listener.remove(self)

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None
        if self.session is not None and not self._closing:
            self.session.advance()

    # ---------- for handshake and session ----------

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    async def drain(self) -> None:
        if self.blocked:
            if self._writable is None:
                self._writable = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._writable)

    def close(self, *, linger: bool = False) -> None:
        """Closing a socket with unread bytes resets it, and the client may lose what was written: ``linger`` reads on
        until the client closes."""
        if self._closing:
            return
        self._closing = True
        if linger:
            self._transport.write_eof()
            self._transport.resume_reading()
        else:
            self._transport.close()
        asyncio.get_running_loop().call_later(_LINGER, self._transport.abort)

    def abandon(self) -> None:
        """Close without a farewell."""
        self._transport.abort()

    def settled(self) -> None:
        """Read on, unless enough waits already."""
        busy = self.blocked or self.session is None or self.session.busy
        want = not (busy and self._decoder.buffered > _READ_AHEAD)
        if want == self._reading or self._closing:
            return
        self._reading = want
        if want:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
            self._watch_socket()

    def _watch_socket(self) -> None:
        """Without reading, asyncio does not see the end of a connection; ask the kernel now and then."""
        if self._reading or self._closing:
            return
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if poll.poll(0):
            self._transport.abort()
        else:
            self._watch = asyncio.get_running_loop().call_later(_WATCH, self._watch_socket)

    # ---------- login ----------

    def _log_in(self, account: Account, startup: wire.Startup) -> None:
        if self._login_timer is not None:
            self._login_timer.cancel()
        self._handshake = None
        try:
            if not self._listener.admits(account):
                hint = 'the server\'s setting is "max_connections"'
                raise KalamError("53300", "sorry, too many clients already", hint=hint)
            settings = startup_settings(startup.parameters)
        except KalamError as error:
            self._refuse(error)
            return
        self.pid = self._listener.new_pid(self)
        self.key = secrets.token_bytes(4 if startup.minor < 2 else 32)
        name = startup.parameters.get("application_name", "")
        client = ClientSession(self.pid, account, application=name, peer=self._peer)
        client.settings["application_name"] = name
        if settings:
            self._login_task = asyncio.get_running_loop().create_task(self._set_and_open(client, settings))
        else:
            self._open_session(client)

    async def _set_and_open(self, client: ClientSession, settings: list[str]) -> None:
        """Settings of the start-up packet are set as SET would."""
        executor = self._listener.executor
        try:
            for sql in settings:
                outcome = executor.execute(client, executor.prepare(client, sql, ()), (), (), None)
                if isinstance(outcome, Awaitable):
                    await outcome
        except KalamError as error:
            executor.close(client)
            self._refuse(error)
        except Exception:
            log.exception("opening a session failed")
            executor.close(client)
            self._refuse(KalamError("XX000", "internal error", hint="see the server's log"))
        else:
            self._open_session(client)

    def _open_session(self, client: ClientSession) -> None:
        self.write(self._greeting(client))
        self._listener.executor.open(client)
        self.session = Session(
            self, self._decoder, self._listener.executor, client,
            idle_in_transaction_ms=self._listener.settings.idle_in_transaction_session_timeout,
        )
        self.session.advance()

    def _refuse(self, error: KalamError) -> None:
        error.severity = "FATAL"
        self.write(wire.error_response(error))
        self.close(linger=True)

    def _greeting(self, client: ClientSession) -> bytes:
        status = {
            "server_version": f"16.0 (KalamDB {__version__})",
            "server_encoding": "UTF8",
            "is_superuser": "on" if client.account.role >= Role.DBA else "off",
            "session_authorization": client.account.name,
            "integer_datetimes": "on",
            **{name: client.settings.get(name, value) for name, value in REPORTED.items()},
        }
        return b"".join((
            wire.AUTHENTICATION_OK,
            *(wire.parameter_status(name, value) for name, value in status.items()),
            wire.backend_key_data(self.pid, self.key),
            wire.READY["I"],
        ))
