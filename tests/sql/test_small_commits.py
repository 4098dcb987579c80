"""Small commits of several clients, which wait for the writer alone: what is left of a session when one is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import pytest

from kalamdb.api import CONTEXT_OID, Account, ClientSession, Context, Pending, Result, Role, TxnContext
from kalamdb.errors import KalamError
from kalamdb.sql.executor import SqlExecutor
from kalamdb.txn.engine import open_engine

FULL = KalamError("53100", "no space left on device")


class Clients:
    """Two of them, so that neither is alone."""

    def __init__(self, executor: SqlExecutor) -> None:
        self._executor = executor
        self.one, self.other = (ClientSession(number, Account("root", Role.SYSTEM)) for number in (1, 2))

    def begin(self, sql: str, context: Context | None = None, *, session: ClientSession | None = None
              ) -> Result | Awaitable[Result]:
        client = session or self.one
        prepared = self._executor.prepare(client, sql, () if context is None else (CONTEXT_OID,))
        return self._executor.execute(client, prepared, (), (), context)

    async def run(self, sql: str, context: Context | None = None) -> Result:
        await self._whole(self.begin("SELECT 1", session=self.other))
        return await self._whole(self.begin(sql, context))

    async def _whole(self, outcome: Result | Awaitable[Result]) -> Result:
        return await outcome if isinstance(outcome, Awaitable) else outcome


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("how", ["autocommit", "block", "context"])
def test_a_commit_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, at_once: bool) -> None:
    """``at_once``: the engine does not even begin it."""
    put = "INSERT INTO public.t VALUES (1)"
    context = Context(txn=TxnContext("a" * 32), commit=True) if how == "context" else None

    async def test() -> None:
        engine = await open_engine(tmp_path)
        executor = SqlExecutor(cast(Any, engine))
        clients = Clients(executor)
        session = clients.one
        await clients.run("CREATE NAMESPACE public")
        await clients.run("CREATE SHARED TABLE public.t (id bigint PRIMARY KEY)")
        await clients.run("SET lock_timeout = '5s'")
        if how == "block":
            await clients.run("BEGIN")
            await clients.run("SET LOCAL lock_timeout = '7s'")
            await clients.run(put)

        def refuse(*_: Any, **__: Any) -> Any:
            raise FULL

        with monkeypatch.context() as patch:
            if at_once:
                patch.setattr(engine, "submit", refuse)
            else:
                patch.setattr("kalamdb.faults.reach", refuse)
            with pytest.raises(KalamError) as caught:
                await clients.run("COMMIT" if how == "block" else put, context)
        assert caught.value.sqlstate == "53100"
        assert (session.status, session.settings, len(engine.locks)) == ("I", {"lock_timeout": "5s"}, 0)
        await clients.run("SELECT 1")
        outcome = clients.begin(put)
        assert isinstance(outcome, Pending)
        assert (await outcome).tag == "INSERT 0 1"
        for each in (clients.one, clients.other):
            executor.close(each)
        executor.shutdown()
        await engine.close()

    asyncio.run(test())
