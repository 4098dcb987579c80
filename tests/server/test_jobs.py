"""Jobs as clients see and stop them: a flush or compaction held at a step of its way, in a server of this process."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest

from kalamdb.auth.authenticator import Authenticator
from kalamdb.rpc.listener import Listener
from kalamdb.settings import load
from kalamdb.sql.executor import SqlExecutor
from kalamdb.txn.engine import open_engine
from support.ports import wait_until

DEADLINE = 20.0
ROWS = 300


class Server:
    """Engine, SQL and listener in a thread's event loop."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.settings = load({"data": str(directory)}, env={})
        self.loop = asyncio.new_event_loop()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self._thread = threading.Thread(target=self.loop.run_forever, name="server")
        self._thread.start()
        self.call(self._open())

    async def _open(self) -> None:
        self.engine = await open_engine(self.directory)
        self.executor = SqlExecutor(cast(Any, self.engine), self.settings)
        self.authenticator = Authenticator(self.settings.auth, self.engine.accounts)
        self.listener = Listener(self.settings, self.executor, self.authenticator, self.socket)
        await self.listener.start()

    async def _close(self) -> None:
        hurry = asyncio.Event()
        hurry.set()
        await self.listener.drain(hurry)
        self.executor.shutdown()
        await self.engine.close()

    def call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(DEADLINE)

    def stop(self) -> None:
        try:
            self.call(self._close())
        finally:
            self.authenticator.close()
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(DEADLINE)
            self.loop.close()
            self.socket.close()

    def connect(self) -> psycopg.Connection:
        port = self.socket.getsockname()[1]
        return psycopg.connect(f"host=127.0.0.1 port={port} user=kalam dbname=kalam", autocommit=True)

    def files(self) -> list[Path]:
        return list((self.directory / "segments").rglob("*.parquet"))


class Held:
    """The first job to reach a point waits there until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
        self._point = point
        self._there, self._go_on = threading.Event(), threading.Event()
        monkeypatch.setattr("kalamdb.faults.reach", self._reach)

    def _reach(self, name: str) -> None:
        if name == self._point and not self._there.is_set():
            self._there.set()
            assert self._go_on.wait(DEADLINE)

    def wait(self) -> None:
        assert self._there.wait(DEADLINE)

    def let_go(self) -> None:
        self._go_on.set()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("kalamdb.store.segment.GROUP_ROWS", 16)
    monkeypatch.setattr("kalamdb.txn.tiering.CHUNK_ROWS", 10)
    monkeypatch.setattr("kalamdb.txn.tiering.SEGMENT_ROWS", 50)
    monkeypatch.setattr("kalamdb.txn.tiers.LOOK_EVERY", 3600)
    running = Server(tmp_path)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def watch(server: Server) -> Iterator[psycopg.Connection]:
    """A session with a filled table app.t."""
    with server.connect() as conn:
        conn.execute("CREATE NAMESPACE app")
        conn.execute("CREATE TABLE app.t (id bigint PRIMARY KEY, a text)")
        conn.execute(f"INSERT INTO app.t SELECT i, 'row ' || i FROM generate_series(1, {ROWS}) i")
        yield conn


@pytest.fixture
def worker(server: Server, watch: psycopg.Connection) -> Iterator[psycopg.Connection]:
    with server.connect() as conn:
        yield conn


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def started(pool: ThreadPoolExecutor, conn: psycopg.Connection, sql: str) -> Future[list[tuple[Any, ...]]]:
    return pool.submit(lambda: conn.execute(sql.encode()).fetchall())


def jobs(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    query = 'SELECT kind, namespace, "table", status, ended_at IS NULL FROM system.jobs ORDER BY id'
    return conn.execute(query).fetchall()


def total(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    return conn.execute("SELECT count(*), sum(id), min(a), max(a) FROM app.t").fetchall()


def test_a_running_flush_is_seen(
    server: Server, watch: psycopg.Connection, worker: psycopg.Connection, pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = total(watch)
    held = Held(monkeypatch, "segment.put")
    flush = started(pool, worker, "STORAGE FLUSH TABLE app.t")
    held.wait()
    assert jobs(watch) == [("flush", "app", "t", "running", True)]
    found = watch.execute("SELECT rows, progress > 0 AND progress < 1 FROM system.jobs").fetchall()
    assert found[0][1]
    assert 0 < found[0][0] < ROWS
    assert watch.execute("SELECT count(*) FROM system.segments").fetchall() == [(0,)]  # not published
    assert total(watch) == before
    held.let_go()
    assert flush.result(DEADLINE) == [("app", "t", ROWS)]
    assert jobs(watch) == [("flush", "app", "t", "done", False)]
    segments = 'SELECT namespace, "table", sum(rows)::bigint, count(*) FROM system.segments GROUP BY 1, 2'
    assert watch.execute(segments).fetchall() == [("app", "t", ROWS, len(server.files()))]
    assert total(watch) == before


@pytest.mark.parametrize("how", ["CANCEL JOB", "cancel request"])
def test_a_flush_is_cancelled(
    server: Server, watch: psycopg.Connection, worker: psycopg.Connection, pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch, how: str,
) -> None:
    """Nothing of it is left, and the session goes on."""
    before = total(watch)
    held = Held(monkeypatch, "segment.put")
    flush = started(pool, worker, "STORAGE FLUSH TABLE app.t")
    held.wait()
    if how == "CANCEL JOB":
        ((number,),) = watch.execute("SELECT id FROM system.jobs WHERE status = 'running'").fetchall()
        watch.execute(f"CANCEL JOB {number}".encode())
    else:
        worker.cancel_safe()
    wait_until(lambda: server.engine.jobs()[0].cancelled, "the job's cancellation", DEADLINE)
    held.let_go()
    with pytest.raises(psycopg.errors.QueryCanceled):
        flush.result(DEADLINE)
    assert jobs(watch) == [("flush", "app", "t", "cancelled", False)]
    assert server.files() == []
    assert total(watch) == before
    assert worker.execute("STORAGE FLUSH TABLE app.t").fetchall() == [("app", "t", ROWS)]
    assert total(watch) == before


@pytest.mark.parametrize("kind", ["flush", "compaction"])
def test_a_cancel_request_that_comes_too_late(
    server: Server, watch: psycopg.Connection, worker: psycopg.Connection, pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch, kind: str,
) -> None:
    """What is being published stays: its rows are the table's."""
    if kind == "compaction":
        watch.execute("STORAGE FLUSH TABLE app.t")
        watch.execute("DELETE FROM app.t WHERE id % 7 = 0")
        watch.execute("STORAGE FLUSH TABLE app.t")
    before = total(watch)
    held = Held(monkeypatch, f"{kind}.publish")
    work = started(pool, worker, "STORAGE FLUSH TABLE app.t" if kind == "flush" else "STORAGE COMPACT TABLE app.t")
    held.wait()
    worker.cancel_safe()
    wait_until(lambda: any(task.cancelling() for task in asyncio.all_tasks(server.loop)), "the cancellation", DEADLINE)
    held.let_go()
    with pytest.raises(psycopg.errors.QueryCanceled):
        work.result(DEADLINE)
    assert jobs(watch)[-1] == (kind, "app", "t", "done", False)
    assert total(watch) == before


def test_all_tables_stop_with_the_statement(
    server: Server, watch: psycopg.Connection, worker: psycopg.Connection, pool: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watch.execute("CREATE TABLE app.u (id bigint PRIMARY KEY)")
    watch.execute("INSERT INTO app.u VALUES (1)")
    held = Held(monkeypatch, "segment.put")
    flush = started(pool, worker, "STORAGE FLUSH ALL IN app")
    held.wait()
    worker.cancel_safe()
    wait_until(lambda: server.engine.jobs()[0].cancelled, "the job's cancellation", DEADLINE)
    held.let_go()
    with pytest.raises(psycopg.errors.QueryCanceled):
        flush.result(DEADLINE)
    assert jobs(watch) == [("flush", "app", "t", "cancelled", False)]  # app.u was not begun
