"""Results of the SQL layer as bytes of the wire protocol.

Rows are encoded by their columns' types; a result that comes as Arrow becomes one column of IPC messages
(docs/protocol.md, "Results").
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

from kalamdb.api import ARROW_OID, Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.rpc import wire

_LENGTH = struct.Struct("!i")
_ROW_HEAD = struct.Struct("!cIH")
_NULL: Final = b"\xff\xff\xff\xff"

ARROW_DESCRIPTION: Final = wire.row_description([wire.Field("arrow", ARROW_OID, -1, -1, 1)])

#: of a DataRow with its length, which is a signed word
_MOST: Final = 0x7FFF_FFFF

Formats = tuple[int, ...]
Encoder = Callable[[Any], bytes]


def spread_formats(formats: Formats, count: int) -> Formats:
    """Result format codes of Bind, one for each column."""
    if len(formats) == count:
        return formats
    if len(formats) > 1:
        raise KalamError("08P01", f"bind message has {len(formats)} result formats but query has {count} columns")
    return (formats or (0,)) * count


class _Shape:
    """What encoding needs of one tuple of columns in one choice of formats."""

    __slots__ = ("columns", "description", "encoders")

    def __init__(self, columns: tuple[Column, ...], formats: Formats) -> None:
        spread = spread_formats(formats, len(columns))
        self.columns = columns  # held, so that its id() stays its own
        self.description = wire.row_description(
            [wire.Field(c.name, c.type.oid, c.type.size, c.typmod, f) for c, f in zip(columns, spread, strict=True)]
        )
        self.encoders = tuple(_encoder(c, f) for c, f in zip(columns, spread, strict=True))


def _encoder(column: Column, format_code: int) -> Encoder:
    """Gives a value's bytes with their length before them."""
    if format_code == 1:
        return _with_length(column.type.write_binary)
    write = column.type.write
    return _with_length(lambda value: write(value).encode())


def _with_length(encode: Encoder) -> Encoder:
    pack = _LENGTH.pack

    def cell(value: Any) -> bytes:
        data = encode(value)
        if len(data) > _MOST:
            raise _too_large()
        return pack(len(data)) + data

    return cell


def _too_large() -> KalamError:
    return KalamError("54000", "a row of the result is larger than the protocol takes",
                      detail=f"The limit is {_MOST} bytes.", hint="Ask for fewer columns, or for parts of the values.")


#: The SQL layer keeps one tuple of columns for each cached plan, so identity finds it again.
_shapes: dict[tuple[int, Formats], _Shape] = {}
_SHAPES_LIMIT = 4_096


def _shape(columns: tuple[Column, ...], formats: Formats) -> _Shape:
    shape = _shapes.get((id(columns), formats))
    if shape is not None and shape.columns is columns:
        return shape
    shape = _Shape(columns, formats)
    if len(_shapes) >= _SHAPES_LIMIT:
        _shapes.clear()
    _shapes[id(columns), formats] = shape
    return shape


def description(columns: tuple[Column, ...] | None, formats: Formats) -> bytes:
    """RowDescription, or NoData."""
    return wire.NO_DATA if columns is None else _shape(columns, formats).description


def result_description(result: Result, formats: Formats) -> bytes:
    return ARROW_DESCRIPTION if result.batches is not None else description(result.columns, formats)


def data_rows(columns: tuple[Column, ...], formats: Formats, rows: Sequence[Row]) -> bytes:
    """DataRow messages."""
    encoders = _shape(columns, formats).encoders
    width = len(encoders)
    out: list[bytes] = []
    for row in rows:
        data = b"".join([_NULL if value is None else encode(value)
                         for encode, value in zip(encoders, row, strict=True)])
        if len(data) > _MOST - 6:
            raise _too_large()
        out.append(_ROW_HEAD.pack(b"D", 6 + len(data), width))
        out.append(data)
    return b"".join(out)


def arrow_rows(result: Result) -> list[Any]:
    """DataRow messages in pieces (bytes, Arrow buffers): the schema if this is a scan's first chunk, and batches."""
    pieces: list[Any] = []
    messages = [] if result.schema is None else [result.schema.serialize()]
    messages += [batch.serialize() for batch in result.batches or ()]
    for message in messages:
        if message.size > _MOST - 10:
            raise _too_large()
        pieces.append(_ROW_HEAD.pack(b"D", message.size + 10, 1) + _LENGTH.pack(message.size))
        pieces.append(message)
    return pieces


def tag(result: Result, sent: int | None = None) -> bytes:
    """CommandComplete. ``sent``: the number of rows, where only sending them told."""
    text = result.tag
    if sent is not None:
        text = f"{text.split(' ', 1)[0]} {sent}"
    if result.cursor is not None and not text.endswith(" " + result.cursor):
        text = f"{text} {result.cursor}"
    return wire.command_complete(text)
