"""Implicit transaction blocks: which transaction a statement belongs to that names none.

PostgreSQL runs the statements of one simple Query, and those of a pipeline up to Sync, as one transaction, unless they
hold BEGIN or COMMIT themselves. ``Block`` does that by running BEGIN, COMMIT and ROLLBACK through the executor.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from kalamdb.api import ClientSession, Executor, Prepared, Result
from kalamdb.errors import KalamError

_SPACE = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
_CONTROL = re.compile(
    _SPACE + r"(?P<word>BEGIN|START\s+TRANSACTION|COMMIT|END|ROLLBACK(?P<to>(?:\s+(?:WORK|TRANSACTION))?\s+TO)?|ABORT"
    r"|SAVEPOINT|RELEASE|PREPARE\s+TRANSACTION)\b(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)


def control(sql: str) -> tuple[str, str] | None:
    """(word, rest) of a transaction control statement: BEGIN, COMMIT, ROLLBACK or SAVEPOINT; None for others."""
    found = _CONTROL.match(sql)
    if found is None:
        return None
    word = found["word"].split()[0].upper()
    if found["to"] or word in ("SAVEPOINT", "RELEASE"):
        word = "SAVEPOINT"
    word = {"START": "BEGIN", "END": "COMMIT", "PREPARE": "COMMIT", "ABORT": "ROLLBACK"}.get(word, word)
    return word, found["rest"].strip(" \t\r\n;")


class Block:
    """The implicit block of one session; ``open`` says whether there is one."""

    __slots__ = ("_client", "_executor", "open")

    def __init__(self, executor: Executor, client: ClientSession) -> None:
        self._executor = executor
        self._client = client
        self.open = False

    async def run(self, prepared: Prepared, params: Sequence[bytes | None] = (), formats: Sequence[int] = ()) -> Result:
        """Run a statement inside the session's transaction, or else inside the implicit one, opened if need be."""
        word, rest = control(prepared.sql) or ("", "")
        if self.open and word == "BEGIN":
            return self._become_explicit(rest)
        if self.open and word == "SAVEPOINT":
            raise KalamError("25P01", "savepoints can only be used in transaction blocks", hint="send BEGIN first")
        if not word and self._client.status == "I":
            await self._plain("BEGIN")
            self.open = True
        result = await self.execute(prepared, params, formats)
        if self._client.status == "I":
            self.open = False
        return result

    def _become_explicit(self, rest: str) -> Result:
        if rest.upper() not in ("", "WORK", "TRANSACTION"):
            raise KalamError(
                "25001", "BEGIN with options must be called before any query",
                hint="the statements before it, sent along with it, have begun a transaction",
            )
        self.open = False
        return Result("BEGIN")

    async def finish(self) -> None:
        """The block's end: commit, or roll back after an error."""
        if not self.open:
            return
        self.open = False
        if self._client.status != "I":
            await self._plain("COMMIT" if self._client.status == "T" else "ROLLBACK")

    async def execute(self, prepared: Prepared, params: Sequence[bytes | None], formats: Sequence[int]) -> Result:
        outcome = self._executor.execute(self._client, prepared, params, formats, None)
        return await outcome if inspect.isawaitable(outcome) else outcome

    async def _plain(self, sql: str) -> None:
        await self.execute(self._executor.prepare(self._client, sql, ()), (), ())
