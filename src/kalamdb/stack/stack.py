"""``up``, ``down``, ``status``: the two programs of one data directory.

``stack.json`` in it remembers which PostgreSQL was chosen, the ports and the superuser's password, so that whatever
has died is started again as it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from kalamdb.settings import SettingError, Settings, load
from kalamdb.stack import install
from kalamdb.stack.common import Report, StackError, alone, silent
from kalamdb.stack.postgres import Cluster, free_port, port_is_free
from kalamdb.stack.server import ServerProcess, own_sockets

DATABASE = "kalam"
SERVER = "kalam_server"
DEFAULT_POSTGRES = "bundled16"
_STATE = "stack.json"


@dataclass(frozen=True)
class Stack:
    """What runs. ``dsn``: a superuser of the database that has the extension and the server ``kalam_server``."""

    dsn: str
    rpc: dict[str, Any]
    http: str | None
    data: str
    pids: dict[str, int]


@dataclass(frozen=True)
class Status:
    """``None`` pids: not running."""

    data: str
    postgres: str
    server_pid: int | None
    postgres_pid: int | None
    stack: Stack | None


@dataclass
class _Saved:
    postgres: str
    pg_port: int
    password: str
    bindir: str
    build: str = ""
    rpc_port: int = 0
    http_port: int = 0


# ---------- what is remembered ----------
def _read(data: Path) -> _Saved | None:
    try:
        return _Saved(**json.loads((data / _STATE).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StackError(f"cannot read {data / _STATE}: {error}", "It knows the superuser's password: restore it, or "
                         "take another data directory.") from None


def _write(data: Path, saved: _Saved) -> None:
    fresh = data / f".{_STATE}"
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(dataclasses.asdict(saved), file)
    fresh.replace(data / _STATE)


# ---------- up ----------
def up(data: Path, *, postgres: str | None = None, pg_port: int = 0, rpc_port: int = 0, http_port: int = 0,
       report: Report = silent) -> Stack:
    """Start what does not run; returns when a query works. Port 0: the one it had, or a free one."""
    shown, data = data.absolute(), data.resolve()
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(f"cannot use the data directory {data}: {error.strerror}") from None
    settings = _settings(data)
    with alone(data / "up.lock"):
        saved = _choose(data, postgres)
        found = install.ready(install.find(saved.postgres), report)
        cluster = Cluster(data / "postgres", found.bindir, saved.password)
        if found.build != saved.build and cluster.pid is not None:
            report("restarting PostgreSQL with the new extension")
            cluster.stop()
        saved.bindir, saved.build = str(found.bindir), found.build
        server = ServerProcess(data)
        if http_port == 0 and settings.http.port < 0:
            http_port = -1
        sockets = None if settings.rpc.socket_dir is not None else own_sockets(data)
        state = _start(saved, cluster, server, (pg_port, rpc_port, http_port), sockets, report)
        saved.rpc_port = state["rpc"]["port"]
        saved.http_port = _port_of(state["http"])
        _write(data, saved)
        _prepare(data, cluster, saved, state, settings)
        return _stack(shown, cluster, saved, state)


def _settings(data: Path) -> Settings:
    """What the server will read too, so that a bad setting is told before anything starts."""
    try:
        return load({"data": str(data)})
    except SettingError as error:
        raise StackError(error.message, error.hint) from None


def _choose(data: Path, postgres: str | None) -> _Saved:
    saved = _read(data)
    if postgres is not None and postgres not in install.BUNDLED:
        postgres = str(install.find(postgres).pg_config)
    if saved is None:
        return _Saved(postgres or DEFAULT_POSTGRES, 0, secrets.token_urlsafe(18), "")
    if postgres is not None and postgres != saved.postgres:
        raise StackError(f"{data} was made with {saved.postgres}, not {postgres}",
                         "Leave --postgres out, or take another data directory.")
    return saved


def _port_of(url: str | None) -> int:
    return int(url.rpartition(":")[2]) if url else 0


def _chosen_port(what: str, given: int, before: int) -> int:
    """The port to start on: as asked, else as before, else a free one; -1 is none at all."""
    port = given or before
    if port > 0 and not port_is_free(port):
        raise StackError(f"port {port} for {what} is taken by another program", "Name another one.")
    return port or free_port()


def _same_port(what: str, given: int, now: int) -> None:
    if given > 0 and given != now:
        raise StackError(f"{what} is running on port {now}, not {given}", "kalam down first.")


def _start(saved: _Saved, cluster: Cluster, server: ServerProcess, ports: tuple[int, int, int], sockets: Path | None,
           report: Report) -> dict[str, Any]:
    """Both at once: what the server says of itself."""
    pg_port, rpc_port, http_port = ports
    serving: subprocess.Popen[bytes] | None = None
    if server.running:
        state = server.wait(None)
        _same_port("the KalamDB server", rpc_port, state["rpc"]["port"])
        _same_port("the KalamDB server's HTTP", http_port, _port_of(state["http"]))
    else:
        report("starting the KalamDB server")
        serving = server.start(_chosen_port("the KalamDB server", rpc_port, saved.rpc_port),
                               _chosen_port("HTTP", http_port, saved.http_port), sockets)
    running: subprocess.Popen[bytes] | None = None
    if cluster.pid is not None:
        _same_port("PostgreSQL", pg_port, saved.pg_port)
    else:
        if not cluster.exists:
            report("creating a PostgreSQL cluster")
            cluster.create()
        report("starting PostgreSQL")
        saved.pg_port = _chosen_port("PostgreSQL", pg_port, saved.pg_port)
        _write(server.data, saved)
        running = cluster.start(saved.pg_port)
    cluster.wait(running, saved.pg_port)
    return server.wait(serving)


# ---------- the database ----------
def _prepare(data: Path, cluster: Cluster, saved: _Saved, state: dict[str, Any], settings: Settings) -> None:
    try:
        with psycopg.connect(cluster.dsn(saved.pg_port, "postgres"), autocommit=True) as conn:
            if not conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchall():
                conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        with psycopg.connect(cluster.dsn(saved.pg_port, DATABASE), autocommit=True) as conn:
            conn.execute("SET client_min_messages = error")
            conn.execute("CREATE EXTENSION IF NOT EXISTS pg_kalam")
            _lead_to_server(conn, state, settings.auth.shared_secret)
    except psycopg.errors.InvalidAuthorizationSpecification as error:
        raise StackError(f"PostgreSQL is not let in by the KalamDB server: {error.diag.message_primary}",
                         f"Set auth.shared_secret in {data / 'kalamdb.toml'}; kalam up then gives it to PostgreSQL."
                         ) from None
    except psycopg.Error as error:
        raise StackError(f"preparing the database {DATABASE} failed: {error}".rstrip()) from None


def _lead_to_server(conn: psycopg.Connection[Any], state: dict[str, Any], secret: str | None) -> None:
    """By the Unix-domain socket if PostgreSQL, which may be another account, can reach it, else by TCP."""
    host, port = state["rpc"]["host"], state["rpc"]["port"]
    tcp = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    directory = state.get("socket_dir")  # a server of an older release may be running, which says nothing of it
    try:
        _define(conn, directory or tcp, port, secret)
    except psycopg.errors.SqlclientUnableToEstablishSqlconnection:
        if directory is None:
            raise
        _define(conn, tcp, port, secret)


def _define(conn: psycopg.Connection[Any], host: str, port: int, secret: str | None) -> None:
    """Both objects, if the server can be reached with them."""
    with conn.transaction():
        _define_server(conn, host, port)
        _define_credentials(conn, secret)
        conn.execute("SELECT kalam_exec('SELECT 1', %s)", [SERVER])


def _define_server(conn: psycopg.Connection[Any], host: str, port: int) -> None:
    options = conn.execute(
        "SELECT o.option_name, o.option_value FROM pg_foreign_server s"
        " LEFT JOIN LATERAL pg_options_to_table(s.srvoptions) o ON true WHERE s.srvname = %s", [SERVER]
    ).fetchall()
    if not options:
        conn.execute(sql.SQL("CREATE SERVER {} FOREIGN DATA WRAPPER pg_kalam OPTIONS (host {}, port {})").format(
            sql.Identifier(SERVER), sql.Literal(host), sql.Literal(str(port))))
        return
    known = dict(options)
    for name, value in (("host", host), ("port", str(port))):
        if known.get(name) != value:
            verb = sql.SQL("SET" if name in known else "ADD")
            conn.execute(sql.SQL("ALTER SERVER {} OPTIONS ({} {} {})").format(
                sql.Identifier(SERVER), verb, sql.Identifier(name), sql.Literal(value)))


def _define_credentials(conn: psycopg.Connection[Any], secret: str | None) -> None:
    """Where the server's settings ask for a secret, PostgreSQL is told it."""
    if secret is None:
        return
    header = f"Bearer {secret}"
    mapped = conn.execute(
        "SELECT o.option_value FROM pg_user_mappings m LEFT JOIN LATERAL pg_options_to_table(m.umoptions) o"
        " ON o.option_name = 'auth_header' WHERE m.srvname = %s AND m.umuser = 0", [SERVER]
    ).fetchall()
    if mapped == [(header,)]:
        return
    verb = "CREATE" if not mapped else "ALTER"
    action = sql.SQL("ADD " if mapped and mapped[0][0] is None else "SET " if mapped else "")
    conn.execute(sql.SQL("{} USER MAPPING FOR PUBLIC SERVER {} OPTIONS ({}auth_header {})").format(
        sql.SQL(verb), sql.Identifier(SERVER), action, sql.Literal(header)))


def _stack(data: Path, cluster: Cluster, saved: _Saved, state: dict[str, Any]) -> Stack:
    pid = cluster.pid
    if pid is None:
        raise StackError("PostgreSQL has just ended", f"Its log is {cluster.log}.")
    return Stack(cluster.dsn(saved.pg_port, DATABASE), dict(state["rpc"]), state["http"], str(data),
                 {"server": state["pid"], "postgres": pid})


# ---------- down, status ----------
def down(data: Path) -> list[str]:
    """Stop both, PostgreSQL first; what was running."""
    data = data.resolve()
    if not data.is_dir():
        raise StackError(f"there is no data directory {data}")
    stopped = []
    with alone(data / "up.lock"):
        saved = _read(data)
        if saved is not None and Cluster(data / "postgres", Path(saved.bindir), "").stop():
            stopped.append("postgres")
        if ServerProcess(data).stop():
            stopped.append("server")
    return stopped


def status(data: Path) -> Status:
    """What runs now; nothing is changed."""
    shown, data = data.absolute(), data.resolve()
    if not data.is_dir():
        raise StackError(f"there is no data directory {data}", f"kalam up --data {data} makes it.")
    saved = _read(data)
    state = ServerProcess(data).state()
    pid = None
    found: Stack | None = None
    if saved is not None:
        cluster = Cluster(data / "postgres", Path(saved.bindir), saved.password)
        pid = cluster.pid
        if pid is not None and state is not None:
            found = _stack(shown, cluster, saved, state)
    return Status(str(shown), saved.postgres if saved else "none", state["pid"] if state else None, pid, found)
