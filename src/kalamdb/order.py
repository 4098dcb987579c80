"""Byte strings whose order is PostgreSQL's order of the values: what keys are made of, and conditions on numerics.

Integers have the sign bit flipped, floats their ordered bit pattern, numerics class, exponent and digits; texts and
blobs end in a terminator that no longer value can pass. The scheme is the usual memory-comparable one of ordered
key-value stores; equal values (``1.0`` and ``1.00``, ``-0`` and ``0``) have equal bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from kalamdb import kept

#: NaN as SQLite holds it, which would make NULL of it: a blob is above every number there, as NaN is in PostgreSQL
NAN = struct.pack(">d", float("nan"))
#: the SQLite function that gives a numeric column's order
NUMERIC_FUNCTION = "kalam_numeric"


def key_function(type_name: str) -> str:
    """The SQLite function that gives the order of a type kept as text."""
    return f"kalam_key_{type_name}"


INTEGERS = frozenset({"int2", "int4", "int8", "date", "timestamp", "timestamptz"})
_FLOATS = frozenset({"float4", "float8"})
_EXPONENT_BIAS = 1 << 31
_COMPLEMENT = bytes(255 - byte for byte in range(256))


def is_float(type_name: str) -> bool:
    return type_name in _FLOATS


def integer_bytes(value: int) -> bytes:
    return (value + (1 << 63)).to_bytes(8, "big")


def float_bytes(value: float) -> bytes:
    if value != value:
        return b"\xff" * 8
    bits: int = struct.unpack(">Q", struct.pack(">d", value or 0.0))[0]
    return ((bits ^ 0xFFFFFFFFFFFFFFFF) if bits >> 63 else bits | (1 << 63)).to_bytes(8, "big")


def numeric_bytes(text: str) -> bytes:
    """Order of numeric's text form: -Infinity, negative, zero, positive, Infinity, NaN."""
    value = Decimal(text)
    if value.is_nan():
        return b"\x05"
    if value.is_infinite():
        return b"\x00" if value < 0 else b"\x04"
    sign, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)
    plain = bytes(digit + 1 for digit in digits).lstrip(b"\x01")
    if not plain:
        return b"\x02"
    body = (len(plain) + exponent + _EXPONENT_BIAS).to_bytes(4, "big") + plain.rstrip(b"\x01") + b"\x00"
    return b"\x01" + body.translate(_COMPLEMENT) if sign else b"\x03" + body


def text_bytes(value: str) -> bytes:
    return value.encode() + b"\x00"


def blob_bytes(value: bytes) -> bytes:
    return value.replace(b"\x00", b"\x00\xff") + b"\x00\x00"


def _uuid_bytes(value: bytes) -> bytes:
    return value


def _bool_bytes(value: int) -> bytes:
    return b"\x01" if value else b"\x00"


def part_encoder(type_name: str) -> Callable[[Any], bytes]:
    """Bytes of one key column."""
    if type_name in INTEGERS:
        return integer_bytes
    if type_name in _FLOATS:
        return float_bytes
    found = kept.TYPES.get(type_name)
    if found is not None and found.key is not None:
        return found.key
    return _ENCODERS.get(type_name, text_bytes)


_ENCODERS: dict[str, Callable[[Any], bytes]] = {
    "numeric": numeric_bytes, "bool": _bool_bytes, "bytea": blob_bytes, "uuid": _uuid_bytes, "jsonb": kept.jsonb_key,
}


# ---------- and back ----------
Part = tuple[Any, int]  # a value, and where the next one begins


def _read_integer(data: bytes, at: int) -> Part:
    return int.from_bytes(data[at : at + 8], "big") - (1 << 63), at + 8


def _read_float(data: bytes, at: int) -> Part:
    bits = int.from_bytes(data[at : at + 8], "big")
    bits = bits & ~(1 << 63) if bits >> 63 else bits ^ 0xFFFFFFFFFFFFFFFF
    value: float = struct.unpack(">d", bits.to_bytes(8, "big"))[0]
    return value, at + 8


def _read_numeric(data: bytes, at: int) -> Part:
    kind = data[at]
    if kind not in (1, 3):
        return {0: "-Infinity", 2: "0", 4: "Infinity", 5: "NaN"}[kind], at + 1
    end = data.index(b"\xff" if kind == 1 else b"\x00", at + 5)
    body = data[at + 1 : end].translate(_COMPLEMENT) if kind == 1 else data[at + 1 : end]
    digits = tuple(byte - 1 for byte in body[4:])
    exponent = int.from_bytes(body[:4], "big") - _EXPONENT_BIAS - len(digits)
    return format(Decimal((int(kind == 1), digits, exponent)), "f"), end + 1


def _read_text(data: bytes, at: int) -> Part:
    end = data.index(b"\x00", at)
    return data[at:end].decode(), end + 1


def _read_blob(data: bytes, at: int) -> Part:
    end = data.index(b"\x00\x00", at)
    return data[at:end].replace(b"\x00\xff", b"\x00"), end + 2


def _read_uuid(data: bytes, at: int) -> Part:
    return data[at : at + 16], at + 16


def _read_bool(data: bytes, at: int) -> Part:
    return data[at], at + 1


def part_decoder(type_name: str) -> Callable[[bytes, int], Part]:
    """What undoes ``part_encoder``: of values that are equal, it gives one (``1`` for ``1.00``)."""
    if type_name in INTEGERS:
        return _read_integer
    if type_name in _FLOATS:
        return _read_float
    found = kept.TYPES.get(type_name)
    if found is not None and found.shown is not None:
        return found.shown
    return _DECODERS.get(type_name, _read_text)


_DECODERS: dict[str, Callable[[bytes, int], Part]] = {
    "numeric": _read_numeric, "bool": _read_bool, "bytea": _read_blob, "uuid": _read_uuid,
}


def float_operand(value: float) -> float | bytes:
    """A float as SQLite compares it."""
    return NAN if value != value else value
