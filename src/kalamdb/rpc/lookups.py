"""Flights that look a row up by its key, known by their bytes: but for the key the same ones come again and again.

What they mean (the statement, whose rows it reads, how these are sent) was found out the first time; what has to be
equal for that is compared, not decoded. All else, errors included, is left to the usual way.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from kalamdb.api import ClientSession, Column, Executor, Lookup
from kalamdb.rpc import results, wire
from kalamdb.rpc.portals import Portal, Statement

#: bytes of a flight that is known, or may be
LONGEST: Final = 8_192
#: flights known of a session; when so many others have come since the last one was added, they make room
KEPT: Final = 256
_STRANGERS: Final = 4_096

_I32 = struct.Struct("!i")
_U16 = struct.Struct("!H")
#: a message's type and length
_HEAD: Final = 5


@dataclass(slots=True)
class Known:
    """Flights that differ in the values of their parameters alone."""

    statement: Statement
    formats: tuple[int, ...]
    columns: tuple[Column, ...]
    result_formats: tuple[int, ...]
    look: Lookup
    before: bytes  # of the answer: up to the rows


@dataclass(slots=True)
class _Text:
    """Flights with the same Parse message and formats of parameters, by what follows the values: the context first."""

    head: bytes  # of Bind's body: up to the first value
    count: int  # of values
    endings: dict[bytes, Known] = field(default_factory=dict)


class Lookups:
    """Those of one session."""

    __slots__ = ("_client", "_executor", "_kept", "_strangers", "_texts")

    def __init__(self, executor: Executor, client: ClientSession) -> None:
        self._executor = executor
        self._client = client
        self._texts: dict[bytes, _Text] = {}  # by the Parse message and the type of the next
        self._kept = self._strangers = 0

    def answer(self, data: bytes) -> tuple[Statement, bytes] | None:
        """The whole answer, and what the unnamed statement is after it; None if the flight is not known, or answered
        in the usual way alone. An error, whichever it is, is for the usual way to tell."""
        size = len(data)
        if size > LONGEST:
            return None
        try:
            bind = 1 + _I32.unpack_from(data, 1)[0]
            text = self._texts.get(data[: bind + 1])
            if text is None or not data.startswith(text.head, bind + _HEAD) or (
                    bind + 1 + _I32.unpack_from(data, bind + 1)[0] != size - wire.DESCRIBE_ON):
                return None
            at, values = bind + _HEAD + len(text.head), []
            for _ in range(text.count):
                (length,) = _I32.unpack_from(data, at)
                if length < 0:
                    return None
                at += 4
                values.append(data[at : at + length])
                at += length
        except struct.error:
            return None
        known = text.endings.get(data[at:])
        if known is None or (rows := known.look(values, known.formats)) is None:
            return None
        return known.statement, b"".join((
            known.before, results.data_rows(known.columns, known.result_formats, rows),
            wire.command_complete(f"SELECT {len(rows)}"), wire.READY["I"],
        ))

    def learn(self, flight: bytes, message: wire.Flight, portal: Portal, columns: tuple[Column, ...]) -> None:
        """After one of a statement with a context has been answered in the usual way, with one row at most."""
        if self._kept >= KEPT:
            self._strangers += 1
            if self._strangers < _STRANGERS:
                return
            self.clear()
        prepared, context = portal.statement.prepared, portal.context
        named = message.parse.name or message.bind.statement
        if named or prepared is None or context is None or None in portal.params or not portal.params or (
                len(flight) > LONGEST):
            return
        look = self._executor.lookup(self._client, prepared, context)
        if look is not None:
            formats = portal.result_formats
            before = wire.PARSE_COMPLETE + wire.BIND_COMPLETE + results.description(columns, formats)
            self._add(flight, Known(portal.statement, portal.formats, columns, formats, look, before), portal.params)

    def clear(self) -> None:
        self._texts.clear()
        self._kept = self._strangers = 0

    def _add(self, flight: bytes, known: Known, values: Sequence[bytes | None]) -> None:
        bind = 1 + _I32.unpack_from(flight, 1)[0]
        body = bind + _HEAD
        (codes,) = _U16.unpack_from(flight, body + 2)  # two empty names come before, and the number of values after
        first = body + 2 + 2 + 2 * codes + 2
        head = flight[body:first]
        text = self._texts.get(flight[: bind + 1])
        if text is None or text.head != head:
            self._kept -= 0 if text is None else len(text.endings)
            text = self._texts[flight[: bind + 1]] = _Text(head, len(values))
        ending = flight[first + sum(4 + len(value) for value in values if value is not None) :]
        self._kept += ending not in text.endings
        text.endings[ending] = known
