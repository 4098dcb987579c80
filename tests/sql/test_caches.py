"""What the server keeps of the statements it has run: plans of short texts, and nothing of their values."""

from __future__ import annotations

import asyncio
import gc
import struct
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from kalamdb import types
from kalamdb.api import CONTEXT_OID, Account, ClientSession, Context, Result, Role
from kalamdb.sql import executor
from kalamdb.sql.executor import SqlExecutor
from kalamdb.sql.predicate import Given, Members
from kalamdb.txn.engine import open_engine

INT8_ARRAY = types.ARRAYS["int8[]"].oid


def array(values: Sequence[int]) -> bytes:
    """bigint[] in binary."""
    return struct.pack("!iiIii", 1, 0, 20, len(values), 1) + b"".join(struct.pack("!iq", 8, each) for each in values)


class Rig:
    def __init__(self, sql: SqlExecutor) -> None:
        self.sql = sql
        self.session = ClientSession(1, Account("root", Role.SYSTEM))
        sql.open(self.session)

    async def __call__(self, text: str, *params: tuple[int, bytes], context: Context | None = None) -> Result:
        oids = [oid for oid, _ in params] + ([] if context is None else [CONTEXT_OID])
        prepared = self.sql.prepare(self.session, text, oids)
        outcome = self.sql.execute(self.session, prepared, [data for _, data in params], [1], context)
        return await outcome if isinstance(outcome, Awaitable) else outcome

    def kept(self, word: str) -> int:
        return sum(word in key[0] for cache in (self.sql._entries, self.sql._prepared) for key in cache)


Runner = Callable[[Callable[[Rig], Awaitable[None]]], None]


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    def run(test: Callable[[Rig], Awaitable[None]]) -> None:
        async def body() -> None:
            engine = await open_engine(tmp_path)
            sql = SqlExecutor(cast(Any, engine))
            try:
                rig = Rig(sql)
                await rig("CREATE NAMESPACE public")
                await rig("CREATE SHARED TABLE public.t (id bigint PRIMARY KEY, v text, n bigint)")
                await test(rig)
            finally:
                sql.shutdown()
                await engine.close()

        asyncio.run(body())

    return run


@pytest.mark.parametrize("context", [None, Context(exec=True)])
def test_plans_of_long_texts_are_not_kept(run: Runner, context: Context | None) -> None:
    async def test(rig: Rig) -> None:
        for length in (executor.LONGEST, executor.LONGEST + 1):
            head = f"INSERT INTO public.t VALUES ({length}, '"
            text = head + "x" * (length - len(head) - 5) + "', 1)"
            assert len(text) == length
            await rig(text, context=context)
            assert rig.kept(head) == (2 if length == executor.LONGEST else 0)

    run(test)


@pytest.mark.parametrize("context", [None, Context(exec=True)])
def test_no_password_is_kept(run: Runner, context: Context | None) -> None:
    async def test(rig: Rig) -> None:
        await rig("CREATE USER ann WITH PASSWORD 'hunter2 hunter2'", context=context)
        await rig("ALTER USER ann WITH PASSWORD 'hunter2 hunter3'", context=context)
        assert rig.kept("hunter2") == 0

    run(test)


def test_no_plan_keeps_the_values_of_an_execution(run: Runner) -> None:
    async def test(rig: Rig) -> None:
        await rig("INSERT INTO public.t VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)")
        many, few = array(range(2, 5000)), array([1, 7])
        text = "UPDATE public.t SET v = v WHERE n IN ($1)"
        for context in (None, Context()):
            assert (await rig(text, (INT8_ARRAY, many), context=context)).tag == "UPDATE 2"
            assert (await rig(text, (INT8_ARRAY, few), context=context)).tag == "UPDATE 1"
            assert (await rig(text, (INT8_ARRAY, many), context=context)).tag == "UPDATE 2"
        assert rig.kept("IN ($1)")
        gc.collect()
        assert not [each for each in gc.get_objects() if isinstance(each, Given | Members)]

    run(test)
