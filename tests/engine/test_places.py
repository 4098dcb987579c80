"""Storages apart from each other: one that hangs holds up only who waits for it, and whose they are."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from engine.filer import put_file, table_of
from engine.rig import DEADLINE, Runner, create, definition, put, refused, until
from kalamdb.store.storage import LocalStorage, open_storages
from kalamdb.txn.engine import StoreEngine
from kalamdb.txn.places import PUTS


class Slow(LocalStorage):
    """Lists and puts only while its gate is open."""

    def __init__(self, directory: Path, *, lists: bool = True) -> None:
        super().__init__("cold", directory)
        self.gate = threading.Event()
        self.lists = lists
        self.waiting = 0

    def names(self, prefix: str) -> list[str]:
        if not self.lists:
            self._wait()
        return super().names(prefix)

    def put(self, name: str, source: Path) -> None:
        self._wait()
        super().put(name, source)

    def _wait(self) -> None:
        self.waiting += 1
        assert self.gate.wait(DEADLINE)


class Shared(LocalStorage):
    """As a bucket is, for servers with other data directories, too."""

    def __init__(self, id_: str, directory: Path) -> None:
        super().__init__(id_, directory)
        self._marker = directory / ".marker"

    def owner(self) -> str | None:
        return self._marker.read_text() if self._marker.exists() else None

    def make_owner(self, text: str) -> None:
        self._marker.write_text(text)


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    done, _ = await asyncio.wait(tasks, timeout=DEADLINE)
    assert len(done) == len(tasks)
    assert all(task.cancelled() for task in tasks)


def test_a_put_that_hangs(run: Runner, tmp_path: Path) -> None:
    cold = Slow(tmp_path / "cold")

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of(storage_id="cold"))
        local = await create(engine, table_of("local"))
        try:
            puts = [asyncio.create_task(put_file(engine, table, "ann", b"%d" % number)) for number in range(PUTS + 2)]
            await until(lambda: cold.waiting == PUTS)
            async with asyncio.timeout(DEADLINE / 2):
                await put_file(engine, local, "ann", b"of another storage")
                await cancelled(*puts)
        finally:
            cold.gate.set()
        await until(lambda: not engine.files._publishing)
        assert cold.waiting == PUTS
        assert cold.names("") == []
        assert engine.live.query("SELECT count(*) FROM kalam_contents WHERE storage = 'cold'", ()) == [(0,)]
        await put_file(engine, table, "ann", b"0")
        assert len(cold.names("")) == 1

    run(test, storages={**open_storages(run.directory), "cold": cold})


def test_a_start_that_hangs(run: Runner, tmp_path: Path) -> None:
    cold = Slow(tmp_path / "cold", lists=False)

    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of(storage_id="cold"))
        local, rows = await create(engine, table_of("local")), await create(engine, definition("rows"))
        try:
            await until(lambda: cold.waiting == 1)
            async with asyncio.timeout(DEADLINE / 2):
                waits: list[asyncio.Task[Any]] = [asyncio.create_task(put_file(engine, table, "ann", b"x")),
                         asyncio.create_task(engine.flush(table))]
                await put_file(engine, local, "ann", b"of another storage")
                await put(engine, rows, (1, "a"))
                assert await engine.flush(rows) == 1
                await engine.collect_contents(local)
                assert not any(task.done() for task in waits)
                await cancelled(*waits)
        finally:
            cold.gate.set()
        await put_file(engine, table, "ann", b"x")

    run(test, storages={**open_storages(run.directory), "cold": cold})


def test_two_servers_and_two_storages_in_one_place(tmp_path: Path) -> None:
    """The second server, and the first one's second storage there, neither write nor remove."""
    place = tmp_path / "cold"

    async def first(engine: StoreEngine) -> None:
        table = await create(engine, table_of(storage_id="cold"))
        await put_file(engine, table, "ann", b"x")

    async def other(engine: StoreEngine) -> None:
        table = await create(engine, table_of("other", storage_id=next(iter(engine.tiers.places.keys() - {"local"}))))
        await engine.tiers.wait_swept()
        error = await refused("55006", put_file(engine, table, "ann", b"y"))
        assert "kalam.json" in (error.detail or "")
        await refused("55006", engine.flush(table))

    def named(name: str, directory: Path) -> dict[str, LocalStorage]:
        return {"local": LocalStorage("local", directory / "segments"), name: Shared(name, place)}

    one, two = Runner(tmp_path / "one"), Runner(tmp_path / "two")
    for runner in (one, two):
        runner.directory.mkdir()
    one(first, storages=named("cold", one.directory))
    before = LocalStorage("cold", place).names("")
    assert len(before) == 1
    two(other, storages=named("cold", two.directory))
    one(other, storages=named("second", one.directory))
    assert LocalStorage("cold", place).names("") == before
