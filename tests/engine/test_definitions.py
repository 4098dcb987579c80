"""Namespaces, tables and accounts: made, dropped, taken back inside transactions, found again after a restart."""

from __future__ import annotations

from dataclasses import replace

import apsw
import pytest

from engine.rig import Runner, create, definition, every, put, read, refused, soon, stored, until, waiting
from kalamdb.api import Role
from kalamdb.catalog.catalog import dump_table, load_table
from kalamdb.txn.api import AccountDef, CheckDef, ColumnDef, Scan, StaleDefinition, TableDef
from kalamdb.txn.engine import StoreEngine
from kalamdb.types import TYPES


def tables_in(directory: object) -> set[str]:
    connection = apsw.Connection(f"{directory}/hot.db")
    try:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'h_%'")}
    finally:
        connection.close()


# ---------- visible to whom ----------
def test_a_table_is_its_makers_alone_until_commit(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        one, other = engine.begin(None), engine.begin(None)
        version = other.catalog.version
        await one.create_namespace("n")
        table = await one.create_table(definition())
        await one.insert(table, [("", (1, "a"))])
        assert one.catalog.table("n", "t") == table
        assert one.catalog.tables() == one.catalog.tables("n") == [table]
        assert read(one, table) == [(1, "a")]
        assert other.catalog.table("n", "t") is None
        assert other.catalog.namespaces() == []
        assert other.catalog.version == version != one.catalog.version
        await one.commit()
        assert other.catalog.table("n", "t") == table
        assert other.catalog.tables("m") == []
        assert other.catalog.version != version
        assert read(other, table) == [(1, "a")]
        other.rollback()

    run(test)


def test_rollback_takes_definitions_back(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        kept = await create(engine, definition("kept"))
        await put(engine, kept, (1, "a"))
        one = engine.begin(None)
        await one.create_namespace("m")
        table = await one.create_table(definition())
        await one.insert(table, [("", (1, "a"))])
        await one.drop_table(kept)
        one.rollback()
        fresh = engine.begin(None)
        assert fresh.catalog.namespaces() == ["n"]
        assert fresh.catalog.tables() == [kept]
        assert read(fresh, kept) == [(1, "a")]
        fresh.rollback()

    run(test)
    assert tables_in(run.directory) == {"h_1"}


def test_rollback_to_a_savepoint(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        old = await create(engine, definition("old"))
        one = engine.begin(None)
        first = await one.create_table(definition("first"))
        versions = [one.catalog.version]
        one.set_level(1, 2)
        await one.create_namespace("m")
        await one.drop_table(first)
        one.set_level(2, 3)
        second = await one.create_table(definition("first", "x text"))
        await one.drop_table(old)
        await one.insert(second, [("", ("a",))])
        versions.append(one.catalog.version)
        one.rollback_to_level(3)
        assert one.catalog.table("n", "first") is None
        assert one.catalog.table("n", "old") == old
        one.rollback_to_level(2)
        assert one.catalog.table("n", "first") == first
        assert one.catalog.namespaces() == ["n"]
        assert one.catalog.version == versions[0] != versions[1]
        await one.insert(first, [("", (1, "a"))])
        await one.insert(old, [("", (1, "b"))])
        await one.commit()
        assert stored(engine, first) == [(1, "a")]
        assert stored(engine, old) == [(1, "b")]
        assert len(engine.locks) == 0

    run(test)
    assert tables_in(run.directory) == {"h_1", "h_2"}


def test_create_drop_create_in_one_transaction(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        before = await create(engine, definition())
        await put(engine, before, (1, "old"))
        one = engine.begin(None)
        await one.drop_table(before)
        for _ in range(3):
            table = await one.create_table(definition(columns="a text, b text"))
            await one.insert(table, [("", ("lost", "x"))])
            await one.drop_table(table)
            assert one.catalog.table("n", "t") is None
        last = await one.create_table(definition(columns="a text, b text"))
        assert read(one, last) == []
        await one.insert(last, [("", ("kept", "x"))])
        await one.commit()
        assert stored(engine, last) == [("kept", "x")]
        assert engine.catalog.by_id == {last.id: last}

    run(test)

    async def again(engine: StoreEngine) -> None:
        table = engine.catalog.by_name["n", "t"]
        assert [column.name for column in table.columns] == ["a", "b"]
        assert stored(engine, table) == [("kept", "x")]
        assert engine.catalog.next_id() > table.id

    run(again)


def test_create_and_drop_leaves_nothing(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        await create(engine, definition("other"))
        one = engine.begin(None)
        table = await one.create_table(definition())
        await one.insert(table, [("", (1, "a"))])
        await one.drop_table(table)
        await one.commit()
        assert [found.name for found in engine.begin(None).catalog.tables()] == ["other"]

    run(test)
    assert tables_in(run.directory) == {"h_1"}


# ---------- refused ----------
def test_refusals(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one = engine.begin(None)
        error = await refused("42P07", one.create_table(definition()))
        assert (error.message, error.schema, error.table) == ('relation "t" already exists', "n", "t")
        await refused("3F000", one.create_table(replace(definition(), namespace="nowhere")))
        await one.drop_table(table)
        await refused("42P01", one.drop_table(table))
        one.rollback()
        reader = engine.begin(None, read_only=True)
        for attempt in (reader.create_namespace("m"), reader.create_table(definition("x")), reader.drop_table(table),
                        reader.put_account(AccountDef("a", Role.USER)), reader.drop_account("a")):
            await refused("25006", attempt)
        reader.rollback()

    run(test)


@pytest.mark.parametrize("first_commits", [True, False])
def test_two_make_the_same_table(run: Runner, first_commits: bool) -> None:
    async def test(engine: StoreEngine) -> None:
        one, other = engine.begin(None), engine.begin(None)
        await one.create_namespace("n")
        waits = await waiting(other.create_namespace("n"), other)
        await one.create_table(definition())
        if first_commits:
            await one.commit()
        else:
            one.rollback()
        await soon(waits)
        if first_commits:
            await refused("42P07", other.create_table(definition()))
            other.rollback()
        else:
            await other.create_table(definition())
            await other.commit()
        assert len(engine.begin(None).catalog.tables()) == 1

    run(test)


# ---------- DROP against others ----------
def test_drop_waits_for_writers(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        writer, dropper = engine.begin(None), engine.begin(None)
        await writer.insert(table, [("", (1, "a"))])
        dropping = await waiting(dropper.drop_table(table), dropper)
        await writer.insert(table, [("", (2, "b"))])  # it is in already
        late = engine.begin(None)
        writing = await waiting(late.insert(table, [("", (3, "c"))]), late)
        assert not late.insert_nowait(table, "", (4, "d"))
        await writer.commit()
        await soon(dropping)
        await dropper.commit()
        error = await refused("42P01", writing)
        assert error.message == 'relation "n.t" does not exist'
        late.rollback()
        stale = engine.begin(None)
        await refused("42P01", stale.update(table, []))
        stale.rollback()
        assert len(engine.locks) == 0

    run(test)


def test_a_drop_that_is_taken_back_lets_writers_go_on(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        dropper, writer, second = engine.begin(None), engine.begin(None), engine.begin(None)
        dropper.set_level(1, 2)
        await dropper.drop_table(table)
        writing = await waiting(writer.insert(table, [("", (1, "a"))]), writer)
        drops_too = await waiting(second.drop_table(table), second)
        dropper.rollback_to_level(2)
        await soon(writing)
        assert not drops_too.done()
        await writer.commit()
        await soon(drops_too)
        second.rollback()
        await dropper.commit()
        assert stored(engine, table) == [(1, "a")]

    run(test)


@pytest.mark.parametrize("entered", [True, False])
def test_rows_of_an_altered_table_need_no_locks_of_their_own(run: Runner, entered: bool) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, *[(number, "a") for number in range(100)])
        one, other = engine.begin(None), engine.begin(None)
        if entered:
            await one.insert(table, [("", (100, "a"))])
        one.set_level(1, 2)
        await one.lock_table(table)
        held = len(engine.locks)
        assert await one.update(table, [(("", (number,)), {1: "b"}) for number in range(100)]) == 100
        assert len(engine.locks) == held
        writing = await waiting(other.update(table, [(("", (5,)), {1: "c"})]), other)
        one.rollback_to_level(2)
        if entered:  # shared before the savepoint; made exclusive, it stays so
            await one.commit()
        assert await soon(writing) == 1
        await other.commit()
        if not entered:
            assert await one.update(table, [(("", (5,)), {1: "d"})]) == 1
            await one.commit()
        assert [row for row in stored(engine, table) if row[1] != "a"] == [(5, "c" if entered else "d")]

    run(test)


@pytest.mark.parametrize("rename", [True, False])
def test_a_drop_that_waited_drops_what_it_was_told(run: Runner, rename: bool) -> None:
    """Else the rows of the table that was renamed are gone after a restart, and the new table is gone at once."""
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, (1, "old"))
        renamer, dropper = engine.begin(None), engine.begin(None)
        altered = await renamer.alter_table(replace(table, name="t_old") if rename else replace(table, owner="1/2/3"))
        if rename:
            await renamer.create_table(definition())
        dropping = await waiting(dropper.drop_table(table), dropper)
        await renamer.commit()
        with pytest.raises(StaleDefinition):
            await soon(dropping)
        dropper.rollback()
        assert engine.catalog.by_id[table.id] == engine.catalog.by_name["n", altered.name] == altered
        assert ("n", "t") in engine.catalog.by_name
        await put(engine, altered, (2, "new"))

    run(test)

    async def again(engine: StoreEngine) -> None:
        altered = engine.catalog.by_name["n", "t_old" if rename else "t"]
        assert stored(engine, altered) == [(1, "old"), (2, "new")]

    run(again)


def test_two_writers_who_both_drop(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        one, other = engine.begin(None), engine.begin(None)
        await one.insert(table, [("", (1, "a"))])
        await other.insert(table, [("", (2, "b"))])
        dropping = await waiting(one.drop_table(table), one)
        await refused("40P01", other.drop_table(table))
        other.rollback()
        await soon(dropping)
        await one.commit()

    run(test)


def test_readers_keep_what_they_read(run: Runner) -> None:
    async def test(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, *[(number, "a") for number in range(3000)])
        reader = engine.begin(None, isolation="repeatable read")
        cursor = reader.scan(reader.snapshot(1), Scan(table, None, every(table)))
        first = cursor.fetch(1)
        one = engine.begin(None)
        await one.drop_table(table)
        await one.commit()
        await engine.purge()
        assert engine.live.query("SELECT name FROM sqlite_master WHERE name = ?", (f"h_{table.id}",)) == []
        assert first + cursor.fetch(5000) == [(number, "a") for number in range(3000)]
        cursor.close()
        assert len(read(reader, table, number=1)) == 3000
        reader.rollback()
        assert stored(engine, table) == []

    run(test)


def test_a_dropped_tables_rows_are_kept_for_its_grace(run: Runner) -> None:
    async def drop(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        await put(engine, table, *[(number, "a") for number in range(20_000)])
        one = engine.begin(None)
        await one.drop_table(table)
        await one.commit()
        await engine.purge()
        assert len(stored(engine, table)) == 20_000

    run(drop, drop_grace_hours=1)
    assert tables_in(run.directory) == {"h_1"}

    async def purge(engine: StoreEngine) -> None:
        assert engine.begin(None).catalog.tables() == []
        await until(lambda: not engine.live.query("SELECT 1 FROM sqlite_master WHERE name = 'h_1'", ()))
        table = await create(engine, definition())
        assert table.id == 2

    run(purge)


# ---------- kept ----------
def test_a_definition_survives_its_text() -> None:
    columns = tuple(ColumnDef(number, f'c"{type_.name} é', type_, type_.display, 7, number % 2 == 0, "now()")
                    for number, type_ in enumerate(TYPES, 5))
    checks = (CheckDef("positive", "x > 0", True), CheckDef("odd", "f(x)", False))
    table = TableDef(3, "näme", 'a"b', "user", columns, (2, 0), "pk", checks, {"flush_policy": "rows:1"}, "1/2/3", 4)
    assert load_table(3, dump_table(table)) == table


def test_everything_is_found_again(run: Runner) -> None:
    async def make(engine: StoreEngine) -> tuple[str, int, TableDef]:
        table = await create(engine, definition("s", "a text, b numeric", key=(1,), kind="user"))
        await put(engine, table, ("x", "1.50"), tenant="t")
        return engine.server_id, engine.node_id, table

    async def find(engine: StoreEngine) -> tuple[str, int, TableDef]:
        table = engine.begin(None).catalog.table("n", "s")
        assert table is not None
        assert stored(engine, table, tenant="t") == [("x", "1.50")]
        return engine.server_id, engine.node_id, table

    assert run(make) == run(find)

    async def node(engine: StoreEngine) -> int:
        return engine.node_id

    assert run(node, node_id=77) == 77


# ---------- accounts ----------
def test_accounts(run: Runner) -> None:
    ann, bob = AccountDef("ann", Role.USER, "hash"), AccountDef("bob", Role.DBA)

    async def test(engine: StoreEngine) -> None:
        one = engine.begin(None)
        await one.put_account(bob)
        await one.put_account(ann)
        one.set_level(1, 2)
        await one.drop_account("bob")
        assert one.catalog.account("bob") is None
        one.rollback_to_level(2)
        assert one.catalog.account("bob") == bob
        assert engine.accounts.all() == []
        await one.commit()
        assert engine.accounts.all() == [ann, bob]
        assert engine.accounts.get("ann") == ann
        other = engine.begin(None)
        await other.put_account(replace(ann, password_hash="new"))
        third = engine.begin(None)
        waits = await waiting(third.drop_account("ann"), third)
        await other.drop_account("bob")
        other.rollback()
        await soon(waits)
        third.rollback()
        assert engine.accounts.all() == [ann, bob]
        last = engine.begin(None)
        await last.put_account(replace(ann, role=Role.SERVICE))
        await last.drop_account("bob")
        await last.commit()

    async def again(engine: StoreEngine) -> None:
        assert engine.accounts.all() == [replace(ann, role=Role.SERVICE)]
        assert engine.accounts.get("bob") is None

    run(test)
    run(again)
