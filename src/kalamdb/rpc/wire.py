"""PostgreSQL's wire protocol, version 3, without any I/O.

``Decoder`` turns the bytes a client sends into message objects; the functions below it build what a server sends.
Whatever the bytes are, only ``WireError`` is raised. One with severity FATAL means that the stream can no longer be
understood (a wrong length, a message out of place): close the connection. One with severity ERROR concerns a single
message whose frame was sound; the next call of ``Decoder.next`` goes on behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Final

from kalamdb.errors import KalamError

MAX_STARTUP: Final = 10_000
MAX_PASSWORD: Final = 65_535
MAX_SMALL: Final = 10_000
#: A longer one is no message at all. One beyond the limit goes by unread, so that its sender lives to hear of it.
MAX_SKIPPED: Final = 1 << 30

PROTOCOL_MAJOR: Final = 3
#: 3.2 differs from 3.0 in the length of the cancel key alone.
NEWEST_MINOR: Final = 2

_SSL_REQUEST = 80877103
_GSSENC_REQUEST = 80877104
_CANCEL_REQUEST = 80877102

_I32 = struct.Struct("!i")
_U16 = struct.Struct("!H")
_TWO_U32 = struct.Struct("!II")
_HEADER = struct.Struct("!Bi")
_ROW_HEAD = struct.Struct("!cIH")
_FIELD_TAIL = struct.Struct("!IHIhih")


class WireError(KalamError):
    """The client's bytes break the protocol. ``kind``: the type byte of the message, if that much was readable."""

    kind: str = ""


def _fatal(message: str, *, detail: str | None = None, hint: str | None = None) -> WireError:
    return WireError("08P01", message, detail=detail, hint=hint, severity="FATAL")


def _malformed(what: str) -> WireError:
    return WireError("08P01", f"invalid format of a {what} message")


# ---------- what a client sends ----------


@dataclass(slots=True)
class Startup:
    minor: int
    parameters: dict[str, str]


@dataclass(slots=True)
class SSLRequest:
    pass


@dataclass(slots=True)
class GSSENCRequest:
    pass


@dataclass(slots=True)
class CancelRequest:
    pid: int
    key: bytes


@dataclass(slots=True)
class Password:
    data: bytes


@dataclass(slots=True)
class Query:
    sql: str


@dataclass(slots=True)
class Parse:
    name: str
    sql: str
    types: tuple[int, ...]


@dataclass(slots=True)
class Bind:
    portal: str
    statement: str
    formats: tuple[int, ...]  # as many as params
    params: list[bytes | None]
    result_formats: tuple[int, ...]


@dataclass(slots=True)
class Describe:
    kind: str  # "S" statement, "P" portal
    name: str


@dataclass(slots=True)
class Execute:
    portal: str
    max_rows: int  # 0: all


@dataclass(slots=True)
class Close:
    kind: str
    name: str


@dataclass(slots=True)
class Flush:
    pass


@dataclass(slots=True)
class Sync:
    pass


@dataclass(slots=True)
class Terminate:
    pass


@dataclass(slots=True)
class CopyInput:
    """CopyData, CopyDone or CopyFail: legal after a COPY that failed, and ignored then."""


@dataclass(slots=True)
class FunctionCall:
    pass


@dataclass(slots=True)
class Flight:
    """Parse and Bind of the unnamed portal, then Describe, Execute and Sync, that came in one piece: what libpq sends
    for a statement with parameters. Whoever cannot handle it whole gives back what it has not (``Decoder.give_back``).
    """

    parse: Parse
    bind: Bind


#: Parse, Describe, Execute and Close are to be treated as immutable: equal messages may be one object.
Message = (
    Startup | SSLRequest | GSSENCRequest | CancelRequest | Password | Query | Flight | Parse | Bind | Describe | Execute
    | Close | Flush | Sync | Terminate | CopyInput | FunctionCall
)


# ---------- bodies of messages ----------


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        bad = " ".join(f"0x{byte:02x}" for byte in data[error.start : error.end])
        raise WireError("22021", f'invalid byte sequence for encoding "UTF8": {bad}') from None


def _cstring(body: bytes, start: int, what: str) -> tuple[str, int]:
    end = body.find(b"\0", start)
    if end < 0:
        raise _malformed(what)
    return _text(body[start:end]), end + 1


def _only_string(body: bytes, what: str) -> str:
    text, end = _cstring(body, 0, what)
    if end != len(body):
        raise _malformed(what)
    return text


def _u16s(body: bytes, start: int) -> tuple[tuple[int, ...], int]:
    """A counted list of 16-bit numbers."""
    (count,) = _U16.unpack_from(body, start)
    if count == 0:
        return (), start + 2
    return struct.unpack_from(f"!{count}H", body, start + 2), start + 2 + 2 * count


def _query(body: bytes) -> Query:
    return Query(_only_string(body, "Query"))


#: Parse messages by their bytes: applications repeat few texts, and decoding one costs more than finding it.
_parsed: dict[bytes, Parse] = {}
_PARSED_LIMIT = 4_096
_PARSED_LONGEST = 8_192


def _parse(body: bytes) -> Parse:
    found = _parsed.get(body)
    if found is not None:
        return found
    name, start = _cstring(body, 0, "Parse")
    sql, start = _cstring(body, start, "Parse")
    (count,) = _U16.unpack_from(body, start)
    types = struct.unpack_from(f"!{count}I", body, start + 2)
    if start + 2 + 4 * count != len(body):
        raise _malformed("Parse")
    message = Parse(name, sql, types)
    if len(body) <= _PARSED_LONGEST and b"password" not in body.lower():  # none stays longer than its statement
        if len(_parsed) >= _PARSED_LIMIT:
            _parsed.clear()
        _parsed[body] = message
    return message


def _params(body: bytes, start: int) -> tuple[list[bytes | None], int]:
    (count,) = _U16.unpack_from(body, start)
    start += 2
    params: list[bytes | None] = []
    length_at = _I32.unpack_from
    for _ in range(count):
        (length,) = length_at(body, start)
        start += 4
        if length < 0:
            if length != -1:
                raise _malformed("Bind")
            params.append(None)
            continue
        end = start + length
        params.append(body[start:end])
        start = end
    return params, start


def _bind(body: bytes) -> Bind:
    if body.startswith(b"\0\0"):
        portal = statement = ""
        start = 2
    else:
        portal, start = _cstring(body, 0, "Bind")
        statement, start = _cstring(body, start, "Bind")
    formats, start = _u16s(body, start)
    params, start = _params(body, start)
    result_formats, start = _u16s(body, start)
    if start != len(body):
        raise _malformed("Bind")
    if len(formats) != len(params):
        formats = _spread(formats, len(params))
    codes = formats + result_formats
    if codes and max(codes) > 1:
        bad = max(codes)
        raise WireError("22023", f"unsupported format code: {bad}", hint="0 is text, 1 is binary")
    return Bind(portal, statement, formats, params, result_formats)


def _spread(formats: tuple[int, ...], count: int) -> tuple[int, ...]:
    if len(formats) > 1:
        raise WireError("08P01", f"bind message has {len(formats)} parameter formats but {count} parameters")
    return (formats or (0,)) * count


def _kind_and_name(body: bytes, what: str) -> tuple[str, str]:
    kind = body[:1].decode("latin-1")
    if kind not in ("S", "P") or kind == "":
        raise _malformed(what)
    return kind, _only_string(body[1:], what)


_PARSE, _BIND = b"PB"
_UNNAMED_PORTAL = Describe("P", "")
_ALL_ROWS = Execute("", 0)


def _describe(body: bytes) -> Describe:
    return _UNNAMED_PORTAL if body == b"P\0" else Describe(*_kind_and_name(body, "Describe"))


def _close(body: bytes) -> Close:
    return Close(*_kind_and_name(body, "Close"))


def _execute(body: bytes) -> Execute:
    if body == b"\0\0\0\0\0":
        return _ALL_ROWS
    portal, start = _cstring(body, 0, "Execute")
    if len(body) != start + 4:
        raise _malformed("Execute")
    return Execute(portal, max(0, _I32.unpack_from(body, start)[0]))


def _bare(make: Callable[[], Message], what: str) -> Callable[[bytes], Message]:
    def parse(body: bytes) -> Message:
        if body:
            raise _fatal(f"invalid format of a {what} message")
        return make()

    return parse


#: Describe, Execute and Sync as they end a flight
_TAIL: Final = b"D\0\0\0\6P\0" + b"E\0\0\0\x09\0\0\0\0\0" + b"S\0\0\0\4"
DESCRIBE_ON: Final = len(_TAIL)
EXECUTE_ON: Final = 15
SYNC_ONLY: Final = 5

_LARGE = 0  # stands for the decoder's own limit

#: by type byte: how the body is read, and the largest body
_MESSAGES: dict[int, tuple[Callable[[bytes], Message], int]] = {
    ord("Q"): (_query, _LARGE),
    ord("P"): (_parse, _LARGE),
    ord("B"): (_bind, _LARGE),
    ord("D"): (_describe, MAX_SMALL),
    ord("E"): (_execute, MAX_SMALL),
    ord("C"): (_close, MAX_SMALL),
    ord("H"): (_bare(Flush, "Flush"), MAX_SMALL),
    ord("S"): (_bare(Sync, "Sync"), MAX_SMALL),
    ord("X"): (_bare(Terminate, "Terminate"), MAX_SMALL),
    ord("d"): (lambda body: CopyInput(), _LARGE),
    ord("c"): (lambda body: CopyInput(), MAX_SMALL),
    ord("f"): (lambda body: CopyInput(), MAX_SMALL),
    ord("F"): (lambda body: FunctionCall(), _LARGE),
}


# ---------- the decoder ----------


class Phase(Enum):
    """What may come next. Start-up packets have no type byte."""

    STARTUP = 1
    PASSWORD = 2
    NORMAL = 3


class Decoder:
    """Bytes of one client in, messages out. The owner sets ``phase`` as the conversation goes on, and ``flights`` if it
    takes them."""

    __slots__ = ("_begun", "_data", "_limit", "_need", "_pos", "_skip", "_tail", "flights", "phase")

    def __init__(self, max_message: int = 256 << 20) -> None:
        self.phase = Phase.STARTUP
        self.flights = False
        self._limit = max_message
        self._data = b""  # being read, from _pos
        self._pos = 0
        self._begun = 0  # where the last flight began
        self._tail = bytearray()  # what came after it
        self._need = 0  # bytes without which next() has nothing to give
        self._skip = 0  # bytes to come of a message that is too long

    @property
    def buffered(self) -> int:
        return len(self._data) - self._pos + len(self._tail)

    @property
    def empty(self) -> bool:
        """Is nothing here, nor missing of what was?"""
        return self._pos == len(self._data) and not (self._tail or self._skip)

    @property
    def last_flight(self) -> bytes:
        """The bytes of the flight that ``next`` has just given."""
        return self._data[self._begun :]

    def peek(self, size: int) -> bytes:
        """The first bytes not yet decoded, up to ``size``."""
        head = self._data[self._pos : self._pos + size]
        return head + bytes(self._tail[: size - len(head)])

    def feed(self, data: bytes) -> None:
        if self._pos == len(self._data) and not self._tail:
            self._data = data
            self._pos = 0
        else:
            self._tail += data

    def next(self) -> Message | None:
        """The next message; None if it is not complete. Raises WireError."""
        data, pos = self._data, self._pos
        if self.flights and data.endswith(_TAIL) and pos < len(data) and data[pos] == _PARSE and not (
                self._tail or self._skip):
            flight = self._flight(pos)
            if flight is not None:
                return flight
        if self._skip:
            self._drop()
            pos = self._pos
        have = len(self._data) - pos
        if (have == 0 and not self._tail) or have + len(self._tail) < self._need:
            return None
        if self.phase is not Phase.NORMAL:
            return self._next_before_login()
        if have < 5:
            if not self._join(5):
                return None
            pos = 0
        kind, length = _HEADER.unpack_from(self._data, pos)
        entry = _MESSAGES.get(kind)
        if entry is None:
            raise _fatal(f"invalid frontend message type {kind}")
        if not 4 <= length <= (entry[1] or self._limit):
            raise self._bad_length(kind, length, entry[1])
        if len(self._data) - pos <= length:
            if not self._join(length + 1):
                return None
            pos = 0
        self._need = 0
        self._pos = end = pos + 1 + length
        body = self._data[pos + 5 : end]
        try:
            return entry[0](body)
        except struct.error:
            error = _malformed(chr(kind))
        except WireError as raised:
            error = raised
        error.kind = chr(kind)
        raise error

    def _flight(self, pos: int) -> Flight | None:
        """What begins with the Parse message at ``pos``, if it is one to the end of what is at hand."""
        data = self._data
        end = len(data) - DESCRIBE_ON
        if end - pos > self._limit or end - pos < 16:
            return None
        bind = pos + 1 + _I32.unpack_from(data, pos + 1)[0]
        if not pos + 5 <= bind <= end - 6 or data[bind] != _BIND or (
                bind + 1 + _I32.unpack_from(data, bind + 1)[0] != end):
            return None
        if data[bind + 5]:  # the portal has a name, and what follows means another
            return None
        try:
            flight = Flight(_parse(data[pos + 5 : bind]), _bind(data[bind + 5 : end]))
        except (struct.error, WireError):  # each message on its own, to know whose fault it is
            return None
        self._begun = pos
        self._pos = len(data)
        return flight

    def give_back(self, size: int) -> None:
        """The last bytes of the message that ``next`` has just given come again."""
        self._pos -= size

    def _join(self, need: int) -> bool:
        """Bring ``need`` bytes together at the front of ``_data``; False if they have not all come."""
        if self.buffered < need:
            self._need = need
            return False
        self._data = b"".join((self._data[self._pos :], self._tail))
        self._pos = 0
        self._tail = bytearray()
        return True

    def _bad_length(self, kind: int, length: int, limit: int) -> WireError:
        if limit or not 4 <= length <= MAX_SKIPPED:
            return _fatal(f"invalid message length {length}")
        self._skip = 1 + length
        self._need = 0
        self._drop()
        error = WireError("54000", "message is too long", detail=f"It has {length} bytes, the limit is {self._limit}.",
                          hint='The server\'s setting "rpc.max_message" limits statements and parameters.')
        error.kind = chr(kind)
        return error

    def _drop(self) -> None:
        """Let the rest of a message that is too long go by, as far as it has come."""
        gone = min(self._skip, self.buffered)
        self._skip -= gone
        here = min(gone, len(self._data) - self._pos)
        self._pos += here
        del self._tail[: gone - here]

    def _next_before_login(self) -> Message | None:
        startup = self.phase is Phase.STARTUP
        skip = 0 if startup else 1
        if not self._join(4 + skip):
            return None
        (length,) = _I32.unpack_from(self._data, skip)
        if startup:
            if not 8 <= length <= MAX_STARTUP:
                raise _fatal(f"invalid length of startup packet: {length}")
        elif self._data[0] != ord("p"):
            raise _fatal(f"expected password response, got message type {self._data[0]}")
        elif not 4 <= length <= MAX_PASSWORD:
            raise _fatal(f"invalid length of password packet: {length}")
        if not self._join(length + skip):
            return None
        self._need = 0
        self._pos = length + skip
        body = self._data[4 + skip : self._pos]
        return _startup(body) if startup else _password(body)


def _password(body: bytes) -> Password:
    if body[-1:] != b"\0" or b"\0" in body[:-1]:
        raise _fatal("invalid password packet")
    return Password(body[:-1])


def _startup(body: bytes) -> Message:
    (code,) = _I32.unpack_from(body, 0)
    if code in (_SSL_REQUEST, _GSSENC_REQUEST):
        if len(body) != 4:
            raise _fatal("invalid length of startup packet")
        return SSLRequest() if code == _SSL_REQUEST else GSSENCRequest()
    if code == _CANCEL_REQUEST:
        if not 12 <= len(body) <= 264:
            raise _fatal("invalid length of cancel request packet")
        return CancelRequest(_I32.unpack_from(body, 4)[0], body[8:])
    major, minor = code >> 16, code & 0xFFFF
    if major != PROTOCOL_MAJOR:
        raise WireError(
            "0A000", f"unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{NEWEST_MINOR}",
            severity="FATAL",
        )
    return Startup(minor, _parameters(body[4:]))


def _parameters(body: bytes) -> dict[str, str]:
    """Names and values, each ended by NUL, and one NUL after all."""
    parts = body.split(b"\0")
    if len(parts) < 2 or parts[-1] or parts[-2] or len(parts) % 2:
        raise _fatal("invalid startup packet layout: expected terminator as last byte")
    names = parts[:-2]
    try:
        texts = [part.decode() for part in names]
    except UnicodeDecodeError:
        raise WireError("22021", "startup packet is not valid UTF-8", severity="FATAL") from None
    if "" in texts[0::2]:
        raise _fatal("invalid startup packet layout: expected terminator as last byte")
    return dict(zip(texts[0::2], texts[1::2], strict=True))


# ---------- what a server sends ----------


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + _I32.pack(len(body) + 4) + body


def _zero_ended(text: str) -> bytes:
    return text.replace("\0", "\ufffd").encode("utf-8", "replace") + b"\0"


REFUSE_ENCRYPTION: Final = b"N"
PARSE_COMPLETE: Final = _message(b"1", b"")
BIND_COMPLETE: Final = _message(b"2", b"")
CLOSE_COMPLETE: Final = _message(b"3", b"")
NO_DATA: Final = _message(b"n", b"")
PORTAL_SUSPENDED: Final = _message(b"s", b"")
EMPTY_QUERY: Final = _message(b"I", b"")
AUTHENTICATION_OK: Final = _message(b"R", _I32.pack(0))
ASK_PASSWORD: Final = _message(b"R", _I32.pack(3))
READY: Final[Mapping[str, bytes]] = {status: _message(b"Z", status.encode()) for status in "ITE"}


@lru_cache(1024)
def command_complete(tag: str) -> bytes:
    return _message(b"C", _zero_ended(tag))


def parameter_status(name: str, value: str) -> bytes:
    return _message(b"S", _zero_ended(name) + _zero_ended(value))


def backend_key_data(pid: int, key: bytes) -> bytes:
    return _message(b"K", _I32.pack(pid) + key)


def negotiate_version(minor: int, unknown: Iterable[str]) -> bytes:
    """The newest minor version the server speaks, and the protocol options it does not know."""
    names = [_zero_ended(name) for name in unknown]
    return _message(b"v", _TWO_U32.pack(PROTOCOL_MAJOR << 16 | minor, len(names)) + b"".join(names))


def parameter_description(types: Sequence[int]) -> bytes:
    return _message(b"t", struct.pack(f"!H{len(types)}I", len(types), *types))


@dataclass(frozen=True, slots=True)
class Field:
    """A column of a RowDescription."""

    name: str
    type_oid: int
    size: int
    typmod: int
    format: int


def row_description(fields: Sequence[Field]) -> bytes:
    body = [_U16.pack(len(fields))]
    for item in fields:
        body.append(_zero_ended(item.name))
        body.append(_FIELD_TAIL.pack(0, 0, item.type_oid, item.size, item.typmod, item.format))
    return _message(b"T", b"".join(body))


def data_row(values: Sequence[bytes | None]) -> bytes:
    parts = [b""]
    for value in values:
        if value is None:
            parts.append(b"\xff\xff\xff\xff")
        else:
            parts.append(_I32.pack(len(value)))
            parts.append(value)
    parts[0] = _ROW_HEAD.pack(b"D", 6 + sum(map(len, parts)), len(values))
    return b"".join(parts)


def _fields(error: KalamError) -> bytes:
    fields: list[tuple[bytes, object]] = [
        (b"S", error.severity), (b"V", error.severity), (b"C", error.sqlstate), (b"M", error.message),
        (b"D", error.detail), (b"H", error.hint), (b"P", error.position), (b"s", error.schema), (b"t", error.table),
        (b"c", error.column), (b"n", error.constraint),
    ]
    return b"".join(code + _zero_ended(str(value)) for code, value in fields if value is not None) + b"\0"


def error_response(error: KalamError) -> bytes:
    return _message(b"E", _fields(error))


def notice_response(message: str, *, sqlstate: str = "00000", severity: str = "NOTICE") -> bytes:
    return _message(b"N", _fields(KalamError(sqlstate, message, severity=severity)))
