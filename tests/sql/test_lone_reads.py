"""Reads of one row by its key, outside a block: which of them take the short way, and that it shows the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from kalamdb.api import CONTEXT_OID, Account, ClientSession, Context, Result, Role
from kalamdb.errors import KalamError
from kalamdb.sql.executor import SqlExecutor
from kalamdb.txn.engine import open_engine

READ = 'SELECT "v" FROM "n"."{}" WHERE "id" = $1'


class Asker:
    """Executes statements as pg_kalam's would be, and says of each whether it took the short way."""

    def __init__(self, executor: SqlExecutor) -> None:
        self._executor = executor
        self._long = 0
        opened = executor._open

        def open_(*arguments: Any) -> Any:
            self._long += 1
            return opened(*arguments)

        executor._open = open_  # type: ignore[method-assign,assignment]

    async def plain(self, sql: str) -> None:
        session = ClientSession(99, Account("admin", Role.SYSTEM))
        await self._run(session, sql, (), (), None)

    async def ask(self, sql: str, key: str, *, role: Role = Role.DBA, **context: Any) -> tuple[Any, bool]:
        """Its rows, or its SQLSTATE; and whether the way was short."""
        session = ClientSession(1, Account("someone", role))
        before = self._long
        try:
            result = await self._run(session, sql, (20, CONTEXT_OID), (key.encode(),), Context(**context))
        except KalamError as error:
            return error.sqlstate, self._long == before
        finally:
            self._executor.close(session)
        return list(result.rows), self._long == before

    async def _run(self, session: ClientSession, sql: str, types: tuple[int, ...], params: tuple[bytes, ...],
                   context: Context | None) -> Result:
        outcome = self._executor.execute(session, self._executor.prepare(session, sql, types), params, (), context)
        return await outcome if isinstance(outcome, Awaitable) else outcome


def run(path: Path, test: Callable[[Asker], Awaitable[None]]) -> None:
    async def whole() -> None:
        engine = await open_engine(path)
        executor = SqlExecutor(cast(Any, engine))
        try:
            asker = Asker(executor)
            await asker.plain("CREATE NAMESPACE n")
            await asker.plain("CREATE SHARED TABLE n.s (id bigint PRIMARY KEY, v text)")
            await asker.plain("CREATE TABLE n.u (id bigint PRIMARY KEY, v text) WITH (type = 'user')")
            await asker.plain("INSERT INTO n.s VALUES (1, 'one')")
            await asker.plain("EXECUTE AS USER 'a' (INSERT INTO n.u VALUES (1, 'of a'))")
            await asker.ask(READ.format("s"), "1")  # plans are made by the long way
            await asker.ask(READ.format("u"), "1", user="a")
            await test(asker)
        finally:
            executor.shutdown()
            await engine.close()

    asyncio.run(whole())


def test_one_row(tmp_path: Path) -> None:
    async def test(asker: Asker) -> None:
        assert await asker.ask(READ.format("s"), "1") == ([("one",)], True)
        assert await asker.ask(READ.format("s"), "2") == ([], True)
        await asker.plain("UPDATE n.s SET v = 'two' WHERE id = 1")
        assert await asker.ask(READ.format("s"), "1") == ([("two",)], True)

    run(tmp_path, test)


def test_tenants(tmp_path: Path) -> None:
    async def test(asker: Asker) -> None:
        read = READ.format("u")
        assert await asker.ask(read, "1", user="a") == ([("of a",)], True)
        assert await asker.ask(read, "1", user="b") == ([], True)
        assert await asker.ask(read, "1") == ("42501", False)
        assert await asker.ask(read, "1", user="*") == ([("of a",)], False)
        assert await asker.ask(read, "1", user="a", bound=True) == ([("of a",)], False)

    run(tmp_path, test)


@pytest.mark.parametrize(("role", "found"), [(Role.USER, "42501"), (Role.SERVICE, [("one",)])])
def test_who_may_not_read_everything(tmp_path: Path, role: Role, found: Any) -> None:
    async def test(asker: Asker) -> None:
        assert await asker.ask(READ.format("s"), "1", role=role) == (found, False)

    run(tmp_path, test)


@pytest.mark.parametrize("rest", ["LIMIT 1", "FOR UPDATE", "OR id = 2", 'ORDER BY "v"'])
def test_more_than_a_row(tmp_path: Path, rest: str) -> None:
    async def test(asker: Asker) -> None:
        for _ in range(2):
            assert await asker.ask(f'{READ.format("s")} {rest}', "1") == ([("one",)], False)

    run(tmp_path, test)


def test_definitions_that_change(tmp_path: Path) -> None:
    async def test(asker: Asker) -> None:
        await asker.plain("ALTER TABLE n.s ADD COLUMN w int DEFAULT 7")
        assert await asker.ask(READ.format("s"), "1") == ([("one",)], False), "planned anew"
        assert await asker.ask(READ.format("s"), "1") == ([("one",)], True)
        await asker.plain("DROP TABLE n.s")
        assert await asker.ask(READ.format("s"), "1") == ("42P01", False)

    run(tmp_path, test)


def test_bad_values(tmp_path: Path) -> None:
    async def test(asker: Asker) -> None:
        assert await asker.ask(READ.format("s"), "one") == ("22P02", False)

    run(tmp_path, test)


def test_look_ups(tmp_path: Path) -> None:
    """What ``lookup`` gives goes on giving rows as long as ``execute`` would take the short way."""
    async def test(asker: Asker) -> None:
        executor, session = asker._executor, ClientSession(1, Account("someone", Role.DBA))
        executor.open(session)

        def lookup(sql: str, **context: Any) -> Any:
            return executor.lookup(session, executor.prepare(session, sql, (20, CONTEXT_OID)), Context(**context))

        for sql, context in (
            (READ.format("s") + " LIMIT 1", {}), (READ.format("u"), {}), (READ.format("u"), {"user": "*"}),
            (READ.format("s"), {"exec": True}), (READ.format("s"), {"close": ("scan_1",)}),
            (READ.format("s"), {"txn": {"id": "0"}}), ("SHOW TABLES", {}), ("COMMIT", {}),
        ):
            assert lookup(sql, **context) is None, (sql, context)
        look, of_a = lookup(READ.format("s")), lookup(READ.format("u"), user="a")
        assert (look([b"1"], ()), look([b"2"], ()), of_a([b"1"], ())) == ([("one",)], [], [("of a",)])
        assert (session.tenant, session.statement_ns > 0) == ("a", True)
        await asker.plain("UPDATE n.s SET v = 'two' WHERE id = 1")
        assert look([b"1"], ()) == [("two",)]
        assert look([b"one"], ()) is None
        session.transaction = executor.engine.begin(session)
        assert look([b"1"], ()) is None
        session.transaction.rollback()
        session.transaction = None
        assert look([b"1"], ()) == [("two",)]
        session.settings["search_path"] = "elsewhere"
        assert look([b"1"], ()) is None
        del session.settings["search_path"]
        await asker.plain("ALTER TABLE n.s ADD COLUMN w int")
        assert look([b"1"], ()) is None
        executor.close(session)

    run(tmp_path, test)
