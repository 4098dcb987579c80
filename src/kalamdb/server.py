"""The server put together: settings, engine, executor, listeners; and its life from start to signal.

``run(settings)`` returns the process's exit code. While the server is ready, ``server.json`` in the data directory
says where it listens. SIGTERM and SIGINT end it: no new clients, running statements finish, checkpoint; a second one
hurries.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from kalamdb import __version__
from kalamdb.auth.authenticator import Authenticator
from kalamdb.errors import KalamError
from kalamdb.http.app import make_app
from kalamdb.http.listener import HttpListener
from kalamdb.rpc.listener import BACKLOG, Listener
from kalamdb.rpc.unix import SocketError, unix_socket
from kalamdb.settings import DEFINITIONS, SettingError, Settings, is_loopback, load

log = logging.getLogger("kalamdb")

STATE_FILE = "server.json"
#: frames: a level of nesting in a statement takes about 25
RECURSION = 4000


class StartError(Exception):
    """The server cannot start; the message says why."""


def run(settings: Settings) -> int:
    """Serve until a signal comes; the exit code."""
    _configure_logging(settings.log_level)
    sys.setrecursionlimit(RECURSION)
    try:
        _make_data_directory(settings.data)
        with _locked(settings.data):
            (settings.data / STATE_FILE).unlink(missing_ok=True)  # of a server that was killed
            _run(_serve(settings))
    except StartError as error:
        log.error("%s", error)
        return 1
    return 0


def _run(serving: Coroutine[Any, Any, None]) -> None:
    """In uvloop's event loop: a busy server spends a fifth less on each message than in asyncio's own, which is there
    where uvloop is not."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(serving)
    else:
        uvloop.run(serving)


def _configure_logging(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _make_data_directory(data: Path) -> None:
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(f"cannot use the data directory {data}: {error.strerror}") from None


@contextlib.contextmanager
def _locked(data: Path) -> Iterator[None]:
    """One server for a data directory: two would each hold their own idea of what is locked and committed."""
    try:
        handle = os.open(data / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"cannot use the data directory {data}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"another server uses the data directory {data}") from None
        yield
    finally:
        os.close(handle)


def _bind(what: str, host: str, port: int) -> socket.socket:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        raise StartError(f"cannot listen on {what}.host {host}, {what}.port {port}: {error.strerror}") from None
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def _unix_socket(directory: Path, port: int) -> Iterator[socket.socket]:
    try:
        with unix_socket(directory, port, BACKLOG) as sock:
            yield sock
    except SocketError as error:
        raise StartError(f"cannot listen in rpc.socket_dir {directory}, rpc.port {port}: {error}") from None


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def write_state(data: Path, state: dict[str, Any]) -> None:
    """Replace ``server.json`` in one step: a reader sees the old one or the new one."""
    temporary = data / f"{STATE_FILE}.{os.getpid()}"
    temporary.write_text(json.dumps(state) + "\n", encoding="utf-8")
    temporary.replace(data / STATE_FILE)


class _Signals:
    """First signal: stop; second: hurry."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)

    def _received(self, number: signal.Signals) -> None:
        log.info("%s: %s", number.name, "hurrying" if self.stop.is_set() else "stopping")
        (self.hurry if self.stop.is_set() else self.stop).set()


async def _serve(settings: Settings) -> None:
    signals = _Signals()
    async with contextlib.AsyncExitStack() as stack:
        rpc_socket = _bind("rpc", settings.rpc.host, settings.rpc.port)
        stack.callback(rpc_socket.close)
        rpc_port: int = rpc_socket.getsockname()[1]
        sockets = [rpc_socket]
        if settings.rpc.socket_dir is not None:
            sockets.append(stack.enter_context(_unix_socket(settings.rpc.socket_dir, rpc_port)))
        engine = await _open_engine(settings)
        stack.push_async_callback(engine.close)
        executor = _make_executor(engine, settings)
        if hasattr(executor, "shutdown"):
            stack.callback(executor.shutdown)
        authenticator = Authenticator(settings.auth, engine.accounts)
        stack.callback(authenticator.close)
        listener = Listener(settings, executor, authenticator, *sockets)
        if settings.http.port >= 0:
            http_socket = _bind("http", settings.http.host, settings.http.port)
            listener.http_url = _url(settings.http.host, http_socket.getsockname()[1])
            http = HttpListener(make_app(rpc_port), http_socket, rpc_port)
            await http.start()
            stack.push_async_callback(http.stop)
        await listener.start()
        stack.push_async_callback(listener.drain, signals.hurry)
        write_state(settings.data, {
            "pid": os.getpid(), "rpc": {"host": settings.rpc.host, "port": rpc_port},
            "socket_dir": settings.rpc.socket_dir and str(settings.rpc.socket_dir), "http": listener.http_url,
            "version": __version__,
        })
        stack.callback((settings.data / STATE_FILE).unlink, missing_ok=True)
        _settle_garbage_collector()
        _say_ready(settings, rpc_port, listener.http_url)
        await signals.stop.wait()
    log.info("stopped")


async def _open_engine(settings: Settings) -> Any:
    from kalamdb.store.storage import open_storages
    from kalamdb.txn.engine import open_engine

    try:
        return await open_engine(
            settings.data, node_id=settings.node_id, lock_timeout_ms=settings.lock_timeout,
            drop_grace_hours=settings.drop_grace, storages=open_storages(settings.data, settings),
            cache_bytes=settings.tiers.cache_mib << 20, flush_policy=settings.tiers.flush_policy,
            file_grace_hours=settings.files.grace,
        )
    except KalamError as error:
        said = ". ".join(each for each in (error.message, error.detail, error.hint) if each)
        raise StartError(f"cannot use the data directory {settings.data}: {said}") from error


def _settle_garbage_collector() -> None:
    """What the imports made stays: no collection needs to look at it again, and few are needed between statements."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def _make_executor(engine: Any, settings: Settings) -> Any:
    from kalamdb.sql.executor import SqlExecutor

    return SqlExecutor(engine, settings)


def _say_ready(settings: Settings, rpc_port: int, http_url: str | None) -> None:
    local = f" and in {settings.rpc.socket_dir}" if settings.rpc.socket_dir else ""
    log.info("KalamDB %s ready: RPC on %s:%d%s, HTTP %s, data in %s", __version__, settings.rpc.host, rpc_port, local,
             http_url or "off", settings.data)
    if settings.auth.mode == "trust" and not is_loopback(settings.rpc.host):
        log.warning("auth.mode is trust on %s: whoever reaches this address may do everything", settings.rpc.host)


# ---------- python -m kalamdb.server ----------


def add_setting_options(parser: argparse.ArgumentParser) -> None:
    """One option for each setting: ``rpc.max_message`` is ``--rpc-max-message``. Secrets have none: ps shows them."""
    for setting in DEFINITIONS.values():
        if not setting.secret:
            option = "--" + setting.name.replace(".", "-").replace("_", "-")
            text = setting.doc.replace("`", "").replace("%", "%%")
            parser.add_argument(option, dest=setting.name, metavar="VALUE", help=text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kalamdb.server", description="Run the KalamDB server.")
    parser.add_argument("--config", type=Path, help="settings file (TOML); default: kalamdb.toml in the data directory")
    add_setting_options(parser)
    given = vars(parser.parse_args(arguments))
    config = given.pop("config")
    try:
        settings = load({name: value for name, value in given.items() if value is not None}, config=config)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return run(settings)


if __name__ == "__main__":
    sys.exit(main())
