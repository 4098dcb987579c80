"""From a client's first byte to its login: start-up packet, version negotiation, password.

``Handshake.advance`` is fed by the same decoder as the session after it. It writes its answers through the link; the
outcome is one call of ``on_login`` or ``on_cancel``, or a closed connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from kalamdb.api import Account
from kalamdb.auth.authenticator import Authenticator
from kalamdb.errors import KalamError
from kalamdb.rpc import wire

log = logging.getLogger(__name__)

#: The one database there is (docs/protocol.md). A client that names none asks for its user's name.
DATABASE: Final = "kalam"
_HTTP_METHODS: Final = (b"GET ", b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI", b"PATC", b"CONN", b"TRAC", b"PRI ")


class HandshakeLink(Protocol):
    def write(self, data: bytes) -> None: ...
    def close(self, *, linger: bool = False) -> None: ...


class Handshake:
    def __init__(
        self, link: HandshakeLink, decoder: wire.Decoder, authenticator: Authenticator, *, peer: str,
        http_url: str | None, on_login: Callable[[Account, wire.Startup], None],
        on_cancel: Callable[[wire.CancelRequest], None],
    ) -> None:
        self._link = link
        self._decoder = decoder
        self._authenticator = authenticator
        self._peer = peer
        self._http_url = http_url
        self._on_login = on_login
        self._on_cancel = on_cancel
        self._startup: wire.Startup | None = None
        self._refusals: set[type] = set()
        self._task: asyncio.Task[None] | None = None
        self._over = False

    def advance(self) -> None:
        """Handle what the decoder holds."""
        if self._startup is None and self._decoder.peek(4) in _HTTP_METHODS:
            self._answer_http()
        while not self._over and self._task is None:
            try:
                message = self._decoder.next()
                if message is None:
                    return
                self._handle(message)
            except KalamError as error:
                self.fail(error)

    def stop(self) -> None:
        """The connection is gone."""
        self._over = True
        if self._task is not None:
            self._task.cancel()

    def time_out(self) -> None:
        self.fail(KalamError("57014", "canceling authentication due to timeout", severity="FATAL"))

    def fail(self, error: KalamError) -> None:
        """End the connection with an error; before the start-up packet the client may not even speak this protocol."""
        if self._over:
            return
        self.stop()
        error.severity = "FATAL"
        self._link.write(wire.error_response(error))
        self._link.close(linger=True)

    def _handle(self, message: wire.Message) -> None:
        match message:
            case wire.SSLRequest() | wire.GSSENCRequest():
                self._refuse_encryption(message)
            case wire.CancelRequest():
                self._over = True
                self._on_cancel(message)
                self._link.close()
            case wire.Startup():
                self._begin(message)
            case wire.Password(data=data):
                self._task = asyncio.get_running_loop().create_task(self._check(data))
            case _:  # the decoder gives nothing else before login
                raise KalamError("08P01", "unexpected message", severity="FATAL")

    def _refuse_encryption(self, message: wire.SSLRequest | wire.GSSENCRequest) -> None:
        if type(message) in self._refusals:
            raise KalamError("08P01", "encryption was asked for twice", severity="FATAL")
        self._refusals.add(type(message))
        self._link.write(wire.REFUSE_ENCRYPTION)

    def _begin(self, startup: wire.Startup) -> None:
        self._startup = startup
        parameters = startup.parameters
        unknown = [name for name in parameters if name.startswith("_pq_.")]
        if startup.minor > wire.NEWEST_MINOR or unknown:
            startup.minor = min(startup.minor, wire.NEWEST_MINOR)
            self._link.write(wire.negotiate_version(startup.minor, unknown))
        user = parameters.get("user", "")
        if not user:
            raise KalamError("28000", "no user name specified in startup packet")
        if parameters.get("replication", "off").lower() not in ("off", "false", "no", "0"):
            raise KalamError("0A000", "replication connections are not supported")
        encoding = parameters.get("client_encoding", "UTF8")
        if encoding.strip("'\"").upper().replace("-", "").replace("_", "") not in ("UTF8", "UNICODE"):
            raise KalamError("0A000", f'client encoding "{encoding}" is not supported', hint="use UTF8")
        account = self._authenticator.admit(user)
        if account is not None:
            self._finish(account)
        else:
            self._decoder.phase = wire.Phase.PASSWORD
            self._link.write(wire.ASK_PASSWORD)

    async def _check(self, password: bytes) -> None:
        assert self._startup is not None
        try:
            account = await self._authenticator.authenticate(self._startup.parameters["user"], password, self._peer)
        except KalamError as error:
            self.fail(error)
        except Exception:
            log.exception("authentication raised an unexpected exception")
            self.fail(KalamError("XX000", "authentication failed for an internal reason", hint="see the server's log"))
        else:
            self._finish(account)

    def _finish(self, account: Account) -> None:
        assert self._startup is not None
        if self._over:
            return
        database = self._startup.parameters.get("database", "")
        if database not in ("", DATABASE, self._startup.parameters["user"]):
            message = f'database "{database}" does not exist'
            self.fail(KalamError("3D000", message, hint=f'the only one is "{DATABASE}"'))
            return
        self._over = True
        self._decoder.phase = wire.Phase.NORMAL
        self._on_login(account, self._startup)

    def _answer_http(self) -> None:
        self._over = True
        where = f"the HTTP API is at {self._http_url}" if self._http_url else "this server has no HTTP listener"
        text = f"this is KalamDB's RPC port (PostgreSQL wire protocol); {where}\n"
        self._link.write(
            f"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {len(text)}\r\n"
            f"connection: close\r\n\r\n{text}".encode()
        )
        self._link.close(linger=True)
