"""Statements and portals of a session: what Parse and Bind leave behind for later messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from kalamdb.api import CONTEXT_OID, Context, Prepared, Result, Row
from kalamdb.errors import KalamError
from kalamdb.rpc import wire

_decode_context = msgspec.json.Decoder(Context).decode


@dataclass(slots=True)
class Statement:
    """A parsed statement. ``prepared`` is None for an empty one; ``local`` ones concern the session alone."""

    prepared: Prepared | None
    has_context: bool = False
    local: bool = False


class Rows:
    """The rows of a result, first chunk and stream, handed out in pieces."""

    __slots__ = ("_chunk", "_offset", "_stream")

    def __init__(self, result: Result) -> None:
        self._chunk: Sequence[Row] = result.rows
        self._offset = 0
        self._stream: AsyncIterator[Sequence[Row]] | None = result.stream

    @property
    def streaming(self) -> bool:
        return self._stream is not None

    @property
    def left(self) -> int:
        """Rows at hand."""
        return len(self._chunk) - self._offset

    def take(self) -> Sequence[Row]:
        """All rows at hand."""
        rows = self._chunk[self._offset :] if self._offset else self._chunk
        self._chunk, self._offset = (), 0
        return rows

    async def next(self, most: int) -> Sequence[Row]:
        """Up to ``most`` rows; none at the end."""
        while self._offset == len(self._chunk):
            if self._stream is None:
                return ()
            try:
                self._chunk, self._offset = await anext(self._stream), 0
            except StopAsyncIteration:
                self._stream = None
                return ()
        rows = self._chunk[self._offset : self._offset + most]
        self._offset += len(rows)
        return rows

    async def close(self) -> None:
        stream, self._stream = self._stream, None
        self._chunk, self._offset = (), 0
        if stream is not None and hasattr(stream, "aclose"):
            await stream.aclose()


@dataclass(slots=True)
class Portal:
    """A bound statement, and its result as soon as it has run."""

    statement: Statement
    params: Sequence[bytes | None] = ()
    formats: tuple[int, ...] = ()
    result_formats: tuple[int, ...] = ()
    context: Context | None = None
    result: Result | None = None
    rows: Rows | None = None
    counted: bool = False  # the tag's number is of rows sent, not the executor's
    done: bool = False
    limit: int = 0  # rows the running Execute asked for; 0: all

    def accept(self, result: Result) -> None:
        self.result = result
        self.rows = Rows(result)
        self.counted = result.stream is not None


def bind(statement: Statement, message: wire.Bind) -> Portal:
    """The portal of a Bind message; takes the context out of the parameters."""
    params, formats, context = message.params, message.formats, None
    if statement.has_context:
        if not params:
            raise KalamError("08P01", "bind message lacks the context parameter")
        context = decode_context(params.pop(), formats[-1])
        formats = formats[:-1]
    prepared = statement.prepared
    wanted = 0 if prepared is None else len(prepared.param_types)
    if len(params) != wanted:
        raise KalamError(
            "08P01",
            f'bind message supplies {len(params)} parameters, but prepared statement "{message.statement}" '
            f"requires {wanted}",
        )
    return Portal(statement, params, formats, message.result_formats, context)


def decode_context(data: bytes | None, format_code: int) -> Context:
    hint = "the last parameter, of type kalam_context, is a JSON object in text format"
    if data is None or format_code != 0:
        raise KalamError("08P01", "the context parameter must be text and not null", hint=hint)
    try:
        return _decode_context(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KalamError("08P01", f"invalid context parameter: {error}", hint=hint) from None


def takes_context(types: Sequence[int]) -> bool:
    return bool(types) and types[-1] == CONTEXT_OID


#: Streams that are being closed; the loop itself keeps only weak references to tasks.
_closing: set[asyncio.Future[Any]] = set()


def discard(portal: Portal) -> None:
    """End a portal that is not needed any more, and the work behind its stream."""
    if portal.rows is not None and portal.rows.streaming:
        task = asyncio.ensure_future(portal.rows.close())
        _closing.add(task)
        task.add_done_callback(_closing.discard)
