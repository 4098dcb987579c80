"""An executor small enough to see through, for tests of the protocol alone.

Its statements: ``NUMBER n`` (one row), ``SERIES n`` (rows 0 … n-1 in one chunk), ``STREAM n`` (the same, chunk by
chunk), ``ECHO`` (its text parameters), ``PUT x`` (remembered when its transaction commits), ``LATER x`` (PUT through an
awaitable), ``WAIT`` (until cancelled), ``HOLD`` (until ``release``), ``FAIL``, ``CRASH``, ``NOTE``, ``CONTEXT`` (its
context as JSON), ``PICK`` (a row of ``words`` by its key and the context's user, a look-up), ``ARROW n``,
``SOON`` (when the future ``soon`` is done, without a task), ``SET name = 'value'``, BEGIN, COMMIT, ROLLBACK.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pyarrow as pa

from kalamdb.api import CONTEXT_OID, Account, ClientSession, Column, Context, Lookup, Pending, Prepared, Result, Role
from kalamdb.errors import KalamError
from kalamdb.types import by_name

NUMBER = (Column("n", by_name("int8")),)
WORD = (Column("word", by_name("text")),)
_CONTROL = ("BEGIN", "COMMIT", "ROLLBACK")


@dataclass
class TinyTransaction:
    status: str = "T"
    put: list[str] = field(default_factory=list)

    def fail(self) -> None:
        self.status = "E"


class Unstoppable(asyncio.Future[int]):
    def cancel(self, msg: object = None) -> bool:
        return False


class TinyExecutor:
    def __init__(self) -> None:
        self.stored: list[str] = []
        self.ran: list[str] = []
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.interrupted = 0
        self.waiting = 0
        self.streams_open = 0
        self.streamed = 0
        self.words: dict[tuple[str | None, bytes], str] = {}
        self.looked = 0
        self.stands = True  # what look-ups rest upon
        self.release = asyncio.Event()
        self.soon: asyncio.Future[int] = Unstoppable()
        self.ends = 0

    def open(self, session: ClientSession) -> None:
        self.opened.append(session.id)

    def prepare(self, session: ClientSession, sql: str, param_types: Sequence[int]) -> Prepared:
        word, _, rest = sql.strip().partition(" ")
        context = bool(param_types) and param_types[-1] == CONTEXT_OID
        given = tuple(param_types[:-1] if context else param_types)
        if word not in WORDS:
            raise KalamError("42601", f'syntax error at or near "{word}"', position=1)
        columns = None if context else {"NUMBER": NUMBER, "SERIES": NUMBER, "STREAM": NUMBER, "ECHO": WORD}.get(word)
        types = tuple(oid or 25 for oid in given) if given else (25,) * rest.count("$")
        return Prepared(sql, types, columns, (word, rest.strip()))

    def execute(
        self, session: ClientSession, prepared: Prepared, params: Sequence[bytes | None], formats: Sequence[int],
        context: Context | None,
    ) -> Result | Awaitable[Result]:
        word, rest = prepared.plan
        self.ran.append(prepared.sql)
        if session.status == "E" and word != "ROLLBACK":
            raise KalamError("25P02", "current transaction is aborted, commands ignored until end of transaction block")
        if word in _CONTROL:
            return self.control(session, word)
        method: Any = getattr(self, word.lower())
        if word == "ECHO":
            return Result("SELECT 1", WORD, [(b"|".join(p if p is not None else b"NULL" for p in params).decode(),)])
        if word == "CONTEXT":
            return self.context(context)
        if word == "SOON":
            return Pending(self.soon, self._end)
        if word == "PICK":
            return self.pick(context, params)
        return method(session, rest)  # type: ignore[no-any-return]

    def lookup(self, session: ClientSession, prepared: Prepared, context: Context) -> Lookup | None:
        if prepared.plan[0] != "PICK" or context.txn is not None:
            return None

        def look(params: Sequence[bytes], formats: Sequence[int]) -> list[tuple[str]] | None:
            if not self.stands:
                return None
            self.looked += 1
            return list(self.pick(context, params).rows)

        return look

    def split(self, sql: str) -> list[tuple[int, str]]:
        return [(found.start(), found.group().rstrip()) for found in re.finditer(r"[^;\s][^;]*", sql)]

    def close(self, session: ClientSession) -> None:
        session.transaction = None
        self.closed.append(session.id)

    # ---------- statements ----------

    def control(self, session: ClientSession, word: str) -> Result | Awaitable[Result]:
        transaction = session.transaction
        if word == "BEGIN":
            if transaction is None:
                session.transaction = TinyTransaction()
            return Result("BEGIN")
        session.transaction = None
        if word == "ROLLBACK" or transaction is None or transaction.status == "E":
            return Result("ROLLBACK")
        return self._commit(transaction)

    async def _commit(self, transaction: TinyTransaction) -> Result:
        await asyncio.sleep(0)
        if "poison" in transaction.put:
            raise KalamError("40001", "could not serialize access")
        self.stored += transaction.put
        return Result("COMMIT")

    def number(self, session: ClientSession, rest: str) -> Result:
        return Result("SELECT 1", NUMBER, [(int(rest),)])

    def series(self, session: ClientSession, rest: str) -> Result:
        return Result(f"SELECT {rest}", NUMBER, [(n,) for n in range(int(rest))])

    def stream(self, session: ClientSession, rest: str) -> Result:
        return Result("SELECT", NUMBER, stream=self._numbers(int(rest)))

    async def _numbers(self, count: int) -> AsyncIterator[Sequence[tuple[int]]]:
        self.streams_open += 1
        try:
            for start in range(0, count, 1000):
                await asyncio.sleep(0)
                self.streamed = start
                yield [(n,) for n in range(start, min(start + 1000, count))]
        finally:
            self.streams_open -= 1

    def put(self, session: ClientSession, rest: str) -> Result:
        if session.transaction is None:
            self.stored.append(rest)
        else:
            session.transaction.put.append(rest)
        return Result("INSERT 0 1")

    async def later(self, session: ClientSession, rest: str) -> Result:
        await asyncio.sleep(0)
        return self.put(session, rest)

    async def wait(self, session: ClientSession, rest: str) -> Result:
        return await self._until(session, asyncio.Event(), Result("SELECT 0"))

    async def hold(self, session: ClientSession, rest: str) -> Result:
        return await self._until(session, self.release, Result("SELECT 0"))

    async def _until(self, session: ClientSession, event: asyncio.Event, result: Result) -> Result:
        def interrupt() -> None:
            self.interrupted += 1

        session.interrupt = interrupt
        self.waiting += 1
        try:
            await event.wait()
        finally:
            self.waiting -= 1
            session.interrupt = None
        return result

    def fail(self, session: ClientSession, rest: str) -> Result:
        raise KalamError(
            "23505", "duplicate key", detail="Key (id)=(5) already exists.", hint="take another", position=3,
            schema="s", table="t", column="c", constraint="t_pkey",
        )

    def crash(self, session: ClientSession, rest: str) -> Result:
        raise ZeroDivisionError("secret detail")

    def note(self, session: ClientSession, rest: str) -> Result:
        return Result("NOTE", notices=["mind the gap"])

    def _end(self, future: asyncio.Future[int]) -> Result:
        self.ends += 1
        return Result(f"INSERT 0 {future.result()}")

    def echo(self) -> None: ...

    def pick(self, context: Context | None, params: Sequence[bytes | None]) -> Result:
        (key,) = params
        if key == b"bad":
            raise KalamError("22P02", "invalid input syntax")
        if key == b"crash":
            raise ZeroDivisionError("secret detail")
        found = self.words.get((None if context is None else context.user, key or b""))
        rows = [] if found is None else [(found,)]
        return Result(f"SELECT {len(rows)}", WORD, rows)

    def context(self, context: Context | None) -> Result:
        text = "none" if context is None else msgspec.json.encode(context).decode()
        return Result("SELECT 1", WORD, [(text,)])

    def arrow(self, session: ClientSession, rest: str) -> Result:
        batch = pa.record_batch({"n": pa.array(range(int(rest)), pa.int64())})
        return Result(f"SELECT {rest}", NUMBER, batches=[batch, batch], schema=batch.schema, cursor="scan_7")

    def set(self, session: ClientSession, rest: str) -> Result:
        found = re.fullmatch(r"([\w.]+) = '(.*)'", rest)
        if found is None or found[1] == "nothing":
            raise KalamError("42704", f'unrecognized configuration parameter "{rest}"')
        session.settings[found[1]] = found[2]
        return Result("SET")


WORDS = frozenset(
    ["NUMBER", "SERIES", "STREAM", "ECHO", "PUT", "LATER", "WAIT", "HOLD", "FAIL", "CRASH", "NOTE", "CONTEXT", "ARROW",
     "PICK", "SOON", "SET", *_CONTROL]
)


def dba(name: str = "kalam") -> Account:
    return Account(name, Role.DBA)
