"""Contents of FILE columns: what rows may refer to, whose it is, and when it goes; a process killed at every step."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.filer import data_of, put_file, refer, table_of
from engine.rig import Runner, create, refused, stored, until
from kalamdb import reference
from kalamdb.admin.check import Check
from kalamdb.admin.files import LocalFiles
from kalamdb.errors import KalamError
from kalamdb.txn.api import TableDef
from kalamdb.txn.clock import now_ms
from kalamdb.txn.engine import StoreEngine
from support.nursery import Nursery

HOUR = 3_600_000
POINTS = ["content.written", "content.put", "content.published", "contents.settled", "commit.applied",
          "segment.removed"]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery("engine.filer", "kalamdb.admin.check")
    yield found
    found.close()


async def got(engine: StoreEngine, table: TableDef, tenant: str, text: str) -> bytes:
    content = await engine.open_content(table, tenant, reference.read(text).sha256)
    try:
        return content.read(0, content.size)
    finally:
        content.close()


def files(directory: Path) -> list[str]:
    """Contents on the disk, by their hashes."""
    return sorted(path.name.partition("-")[0] for path in (directory / "segments").rglob("files/*"))


def hashes(*data: bytes) -> list[str]:
    return sorted(hashlib.sha256(each).hexdigest() for each in data)


async def collected(engine: StoreEngine, table: TableDef, hours: float) -> int:
    """As the job does it, so many hours from now."""
    count = await engine.files.collect(table, now=now_ms() + int(hours * HOUR))
    await engine.tiers.sweep()
    return count


def test_stored_once(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        other = await create(engine, table_of("other"))
        first = await put_file(engine, table, "ann", b"the same")
        assert await put_file(engine, table, "ann", b"the same") == first
        assert files(run.directory) == hashes(b"the same")
        assert await got(engine, table, "ann", first) == b"the same"
        await put_file(engine, table, "bob", b"the same")
        await put_file(engine, other, "ann", b"the same")
        assert files(run.directory) == hashes(*[b"the same"] * 3)
        assert list((run.directory / "segments" / ".unfinished").iterdir()) == []

    run(test)


def test_whose_it_is(run: Runner) -> None:
    """Neither another tenant nor another table can refer to a content, though it is known to be there."""
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        shared = await create(engine, table_of("shared", "shared"))
        text = await put_file(engine, table, "ann", b"secret")
        for where, tenant in ((table, "bob"), (table, "an"), (table, ""), (shared, "")):
            error = await refused("23503", refer(engine, where, tenant, 1, text))
            assert error.column == "f"
            await refused("58P01", got(engine, where, tenant, text))
        await refer(engine, table, "ann", 1, text)
        transaction = engine.begin(None)
        await transaction.insert(table, [("bob", (1, None))])
        await refused("23503", transaction.update(table, [(("bob", (1,)), {1: text})]))
        transaction.rollback()
        many = [("bob", (number, text)) for number in range(1000)]  # rows of a load are looked at, too
        transaction = engine.begin(None)
        await refused("23503", transaction.insert(table, many))
        transaction.rollback()

    run(test)


@pytest.mark.parametrize("value", [
    [], "text", 5, {}, {"sha256": "0" * 64}, {"name": "x", "size": 6},
])
def test_what_is_no_reference(run: Runner, value: Any) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        await refused("22023", refer(engine, table, "ann", 1, json.dumps(value)))

    run(test)


@pytest.mark.parametrize("change", [
    {"size": "6"}, {"size": 6.5}, {"size": True}, {"size": -1}, {"size": 7}, {"sha256": 5}, {"sha256": "A" * 64},
    {"sha256": "../" * 20}, {"name": 5}, {"name": "../../etc/passwd"}, {"name": "a\\b"}, {"name": ".."}, {"name": ""},
    {"name": "a\nb"}, {"name": "x" * 256}, {"name": "é" * 128}, {"mime": "x"}, {"mime": "a/b\r\nX: y"}, {"mime": None},
    {"more": 1}, {"id": 5},
])
def test_what_a_reference_must_not_say(run: Runner, change: dict[str, Any]) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        whole = json.loads(await put_file(engine, table, "ann", b"secret"))
        await refused("22023", refer(engine, table, "ann", 1, json.dumps(whole | change)))
        assert stored(engine, table) == []

    run(test)


@pytest.mark.parametrize("more", [
    {}, {"name": "ünïcode 文件.txt"}, {"name": "x" * 255}, {"mime": "text/plain; charset=utf-8"}, {"id": "elsewhere"},
])
def test_what_its_owner_may_say(run: Runner, more: dict[str, str]) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        whole = json.loads(await put_file(engine, table, "ann", b"secret")) | more
        await refer(engine, table, "ann", 1, json.dumps(whole))

    run(test)


def test_a_rollback_leaves_what_goes_after_the_grace(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        text = await put_file(engine, table, "ann", b"rolled back")
        kept = await put_file(engine, table, "ann", b"kept")
        await refer(engine, table, "ann", 1, kept)
        transaction = engine.begin(None)
        await transaction.insert(table, [("ann", (2, text))])
        transaction.rollback()
        assert await collected(engine, table, 0) == 0
        assert await collected(engine, table, 23) == 0  # found unused an instant ago
        assert await collected(engine, table, 25) == 1
        assert files(run.directory) == hashes(b"kept")
        await refused("23503", refer(engine, table, "ann", 2, text))
        assert await put_file(engine, table, "ann", b"rolled back") == text
        await refer(engine, table, "ann", 2, text)
        assert await got(engine, table, "ann", text) == b"rolled back"

    run(test)


def test_what_is_put_or_used_again_stays(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        again, used = [await put_file(engine, table, "ann", data) for data in (b"again", b"used")]
        assert await collected(engine, table, -30) == 0  # as of then, nothing referred to them
        await put_file(engine, table, "ann", b"again")
        await refer(engine, table, "ann", 1, used)
        assert await collected(engine, table, 0.1) == 0
        transaction = engine.begin(None)
        await transaction.delete(table, [("ann", (1,))])
        await transaction.commit()
        assert await collected(engine, table, 23.9) == 0
        assert files(run.directory) == hashes(b"again", b"used")
        assert await collected(engine, table, 48) == 2
        assert again != used

    run(test)


def test_references_of_every_tier(run: Runner) -> None:
    """Hot, cold, and deleted but still in a segment, until a compaction has left the row out."""
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of(deleted_retention_hours="168"))
        for number in range(4):
            await refer(engine, table, "ann", number, await put_file(engine, table, "ann", data_of(number)))
            if number == 2:
                await engine.flush(table)
        transaction = engine.begin(None)
        await transaction.delete(table, [("ann", (0,))])
        await transaction.update(table, [(("ann", (1,)), {1: None})])
        await transaction.commit()
        for hours in (0, 25, 50):
            assert await collected(engine, table, hours) == 0
        await engine.flush(table)
        assert await collected(engine, table, 75) == 0
        await engine.compact(table)
        assert await collected(engine, table, 100) == 0
        assert await collected(engine, table, 125) == 2
        assert files(run.directory) == hashes(data_of(2), data_of(3))

    run(test)


@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_references_that_were_kept_as_they_came(run: Runner, tier: str) -> None:
    """Older releases kept what clients sent in binary as it came: compact, or no JSON at all."""
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        for tenant, data in (("ann", b"a"), ("bob", b"b"), ("eve", b"e")):
            await refer(engine, table, tenant, 1, await put_file(engine, table, tenant, data))
        await put_file(engine, table, "eve", b"unused of eve")
        await put_file(engine, table, "ann", b"unused of ann")
        compact = json.dumps(json.loads(await put_file(engine, table, "bob", b"b")), separators=(",", ":"))

        def keep(connection: Any) -> None:
            hot = f"h_{table.id}"
            connection.execute(f"UPDATE {hot} SET c2 = ? WHERE _userid = 'bob'", (compact,))
            connection.execute(f"UPDATE {hot} SET c2 = 'not json' WHERE _userid = 'eve'")

        await engine.submit(keep)
        if tier == "cold":
            await engine.flush(table)
        for hours in (0, 25):
            await collected(engine, table, hours)
        assert await collected(engine, table, 50) == 0
        assert files(run.directory) == hashes(b"a", b"b", b"e", b"unused of eve")

    run(test)
    check = Check(run.directory, {"local": LocalFiles(run.directory / "segments")})
    assert list(check.problems()) == ['n.t: a row of tenant "eve" has a reference to a file that cannot be read']
    check.close()


def test_an_open_transaction_keeps_what_it_refers_to(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        text = await put_file(engine, table, "ann", b"kept")
        transaction = engine.begin(None)
        await transaction.insert(table, [("ann", (1, text))])
        for hours in (0, 25, 50):
            assert await collected(engine, table, hours) == 0
        await transaction.commit()
        assert await got(engine, table, "ann", text) == b"kept"
        assert await collected(engine, table, 75) == 0

    run(test)


@pytest.mark.parametrize("action", ["refer", "put"])
def test_during_a_look(run: Runner, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """After the look's snapshot was taken a row refers to the content, or somebody puts it once more."""
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        text = await put_file(engine, table, "ann", b"at the last moment")
        assert await collected(engine, table, 0) == 0
        loop, mark = asyncio.get_running_loop(), engine.files._mark

        def meanwhile(*args: Any) -> None:
            work: Any = (refer(engine, table, "ann", 1, text) if action == "refer"
                         else put_file(engine, table, "ann", b"at the last moment"))
            asyncio.run_coroutine_threadsafe(work, loop).result()
            mark(*args)

        monkeypatch.setattr(engine.files, "_mark", meanwhile)
        assert await collected(engine, table, 25) == 0
        assert await got(engine, table, "ann", text) == b"at the last moment"

    run(test)


def test_while_it_is_being_removed(run: Runner) -> None:
    """A row that comes while the removal is being stored is refused, a content that is put then is there."""
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        text = await put_file(engine, table, "ann", b"late")
        removal = asyncio.ensure_future(engine.files.collect(table, now=now_ms()))
        await until(lambda: engine.files._dying or removal.done())
        if engine.files._dying:
            await refused("23503", refer(engine, table, "ann", 1, text))
        await put_file(engine, table, "ann", b"late")
        assert await removal == 1
        await engine.tiers.sweep()
        await refer(engine, table, "ann", 1, text)
        assert await got(engine, table, "ann", text) == b"late"

    run(test, file_grace_hours=0)


def test_an_old_snapshot_keeps_what_its_rows_refer_to(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        text = await put_file(engine, table, "ann", b"seen")
        await refer(engine, table, "ann", 1, text)
        reader = engine.begin(None, isolation="repeatable read")
        assert reader.get(reader.snapshot(), table, "ann", (1,)) is not None
        writer = engine.begin(None)
        await writer.delete(table, [("ann", (1,))])
        await writer.commit()
        for _ in range(2):
            assert await engine.collect_contents(table) == 0
            row = reader.get(reader.snapshot(), table, "ann", (1,))
            assert row is not None
            assert await got(engine, table, "ann", row[1]) == b"seen"
        reader.rollback()
        assert await engine.collect_contents(table) == 1

    run(test, file_grace_hours=0)


def test_one_who_reads_it_reads_on(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        text = await put_file(engine, table, "ann", b"being read")
        content = await engine.open_content(table, "ann", reference.read(text).sha256)
        assert await collected(engine, table, 0) == 1
        assert files(run.directory) == []
        assert content.read(0, 100) == b"being read"
        content.close()

    run(test, file_grace_hours=0)


def test_a_dropped_table(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        text = await put_file(engine, table, "ann", b"kept")
        await refer(engine, table, "ann", 1, text)
        await drop(engine, table)
        await refused("42P01", engine.files.collect(table))
        await engine.purge()
        assert files(run.directory) == hashes(b"kept")
        transaction = engine.begin(None)
        back = await transaction.restore_table(engine.dropped_tables()[0], "n", "back")
        await transaction.commit()
        assert await got(engine, back, "ann", text) == b"kept"
        assert await collected(engine, back, 50) == 0

    run(test, drop_grace_hours=1)


def test_a_purged_table(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        await refer(engine, table, "ann", 1, await put_file(engine, table, "ann", b"gone"))
        upload = engine.upload(table, 100)
        upload.append(b"too late")
        await drop(engine, table)
        await refused("42P01", engine.publish_content(table, "ann", upload))
        await engine.purge()
        await engine.tiers.sweep()
        assert files(run.directory) == []

    run(test, drop_grace_hours=0)


async def drop(engine: StoreEngine, table: TableDef) -> None:
    transaction = engine.begin(None)
    await transaction.drop_table(table)
    await transaction.commit()


def test_events_that_expired(run: Runner) -> None:
    """A stream's contents go with its rows."""
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of(kind="stream", ttl_seconds="1"))
        await refer(engine, table, "ann", 1, await put_file(engine, table, "ann", b"event"))
        assert await collected(engine, table, 0) == 0
        await until(lambda: not stored(engine, table))
        await engine.purge()
        assert await collected(engine, table, 0) == 1

    run(test, file_grace_hours=0)


def test_uploads_that_come_to_nothing(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, table_of())
        upload = engine.upload(table, 10)
        upload.append(b"0123456789")
        with pytest.raises(KalamError, match="larger than"):
            upload.append(b"x")
        with pytest.raises(KalamError, match="has ended"):
            upload.append(b"x")
        upload = engine.upload(table, 10)
        upload.append(b"given up")
        upload.abandon()
        with pytest.raises(KalamError):
            await engine.publish_content(table, "ann", upload)
        assert files(run.directory) == []
        assert list((run.directory / "segments" / ".unfinished").iterdir()) == []

    run(test)


def test_a_table_that_is_not_committed(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        transaction = engine.begin(None)
        await transaction.create_namespace("n")
        table = await transaction.create_table(table_of())
        with pytest.raises(KalamError) as caught:
            engine.upload(table, 10)
        assert caught.value.sqlstate == "55000"
        transaction.rollback()

    run(test)


@pytest.mark.parametrize("times", [1, 8])
@pytest.mark.parametrize("point", POINTS)
def test_killed(run: Runner, nursery: Nursery, point: str, times: int) -> None:
    """Every row's content is there, and once nothing refers to a content nothing of it stays."""
    nursery.said()
    process = nursery.spawn("engine.filer:run", str(run.directory), f"{point}:kill:{times}")
    assert process.wait() == -9
    said = {int(line) for line in nursery.said()}
    checking = Check(run.directory, {"local": LocalFiles(run.directory / "segments")})
    try:
        assert list(checking.problems()) == []
    finally:
        checking.close()

    async def test(engine: StoreEngine) -> None:
        table = engine.catalog.by_name.get(("n", "t"))
        if table is None:
            assert point == "commit.applied"
            return
        await engine.tiers.wait_swept()
        rows: dict[int, str] = dict(stored(engine, table))
        assert said <= rows.keys()
        for number, text in rows.items():
            assert await got(engine, table, "ann", text) == data_of(number)
        await engine.flush(table)
        await engine.compact(table)
        await engine.files.collect(table)
        await engine.tiers.sweep()
        await until(lambda: not engine.tiers._condemned)
        assert files(run.directory) == hashes(*map(data_of, rows))
        assert list((run.directory / "segments" / ".unfinished").iterdir()) == []

    run(test, file_grace_hours=0)
