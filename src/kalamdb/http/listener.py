"""The HTTP listener: uvicorn in the server's event loop.

A PostgreSQL client that came to this port is known by its first byte (a start-up packet's length begins with 0, no
HTTP request does) and gets an error that names the RPC port.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kalamdb.errors import KalamError
from kalamdb.rpc import wire


class WrongPort:
    """Answers a PostgreSQL client: bytes in, bytes out, until ``over``."""

    def __init__(self, rpc_port: int) -> None:
        self._rpc_port = rpc_port
        self._decoder = wire.Decoder()
        self.over = False

    def answer(self, data: bytes) -> bytes:
        self._decoder.feed(data)
        out = b""
        while not self.over:
            try:
                message = self._decoder.next()
            except wire.WireError as error:
                self.over = True
                return out + wire.error_response(error)
            if message is None:
                break
            if isinstance(message, wire.SSLRequest | wire.GSSENCRequest):
                out += wire.REFUSE_ENCRYPTION
                continue
            self.over = True
            if isinstance(message, wire.Startup):
                out += wire.error_response(self._error())
        return out

    def _error(self) -> KalamError:
        return KalamError("08001", "this is KalamDB's HTTP port", hint=f"the RPC port is {self._rpc_port}",
                          severity="FATAL")


def _protocol(rpc_port: int) -> type[asyncio.Protocol]:
    class Protocol(HttpToolsProtocol):
        _wrong_port: WrongPort | None = None
        _began = False

        def data_received(self, data: bytes) -> None:
            if not self._began:
                self._began = True
                if data[:1] == b"\0":
                    self._wrong_port = WrongPort(rpc_port)
            if self._wrong_port is None:
                super().data_received(data)
            elif not self._wrong_port.over:
                self.transport.write(self._wrong_port.answer(data))
                if self._wrong_port.over:
                    self.transport.close()

    return Protocol


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the server's own business."""
        yield


class HttpListener:
    def __init__(self, app: ASGIApp, sock: socket.socket, rpc_port: int) -> None:
        self._socket = sock
        config = uvicorn.Config(
            app, http=_protocol(rpc_port), ws="none", lifespan="off", loop="none", log_config=None, access_log=False,
            server_header=False, timeout_graceful_shutdown=5,
        )
        self._uvicorn = _Uvicorn(config)
        self._task: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._uvicorn.serve(sockets=[self._socket]))
        while not self._uvicorn.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError("the HTTP listener ended at once")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        self._uvicorn.should_exit = True
        if self._task is not None:
            await self._task
