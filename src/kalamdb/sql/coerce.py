"""Values on their way into a column: assignment casts as PostgreSQL makes them, and defaults the server evaluates."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from math import isfinite
from typing import Any

from sqlglot import exp

from kalamdb import kept, types
from kalamdb.errors import KalamError
from kalamdb.numbers import read_numeric
from kalamdb.sql.bind import Params, number_operand, parameter_index
from kalamdb.sql.native import DAY_MAX, EPOCH_MICROS, MICROS_MAX
from kalamdb.sql.parse import parse_expression
from kalamdb.txn.api import ColumnDef
from kalamdb.types import PgType

Convert = Callable[[Any], Any]
_INTEGERS = {"int2": 15, "int4": 31, "int8": 63}
_NUMBERS = frozenset({*_INTEGERS, "float4", "float8", "numeric"})
_MOMENTS = frozenset({"date", "timestamp", "timestamptz"})
_TEXTS = frozenset({"text", "varchar"})
MICROS_PER_DAY = 86_400_000_000


def mismatch(column: ColumnDef, source: PgType) -> KalamError:
    return KalamError(
        "42804", f'column "{column.name}" is of type {column.type.display} but expression is of type {source.display}',
        hint="You will need to rewrite or cast the expression.", column=column.name,
    )


def _integer(target: PgType, value: Any) -> int:
    if isinstance(value, float):
        if not isfinite(value):
            raise KalamError("22003", f"{target.display} out of range")
        number = int(Decimal(value).quantize(Decimal(1), ROUND_HALF_EVEN)) if abs(value) < 2**62 else int(value)
    elif isinstance(value, str):
        exact = Decimal(value)
        if not exact.is_finite():
            raise KalamError("0A000", f"cannot convert {value} to {target.display}")
        number = int(exact.to_integral_value(ROUND_HALF_UP))
    else:
        number = value
    limit = 1 << _INTEGERS[target.name]
    if not -limit <= number < limit:
        raise KalamError("22003", f"{target.display} out of range")
    return number


def _moment(source: str, target: str, value: int) -> int:
    """Between date, timestamp and timestamptz (the server's time zone is UTC)."""
    if source == "date" and target != "date":
        if value == DAY_MAX:
            return MICROS_MAX
        return -MICROS_MAX - 1 if value == -DAY_MAX - 1 else value * MICROS_PER_DAY
    if target == "date" and source != "date":
        if value == MICROS_MAX:
            return DAY_MAX
        return -DAY_MAX - 1 if value == -MICROS_MAX - 1 else value // MICROS_PER_DAY
    return value


def assignment(source: PgType | None, column: ColumnDef) -> Convert | None:
    """How a value of ``source`` becomes the column's; None: as it is. 42804 where PostgreSQL has no such cast."""
    target, typmod = column.type, column.typmod
    if source is None or source.name == target.name:
        if typmod == -1 or source is None:
            return None
        return lambda value: types.apply_typmod(target, value, typmod)
    one, two = source.name, target.name
    if two in _INTEGERS and one in _NUMBERS:
        return lambda value: _integer(target, value)
    if one in _NUMBERS and two in _NUMBERS:
        return lambda value: types.read_text(target, types.write_text(source, value), typmod)
    if one in _MOMENTS and two in _MOMENTS:
        return lambda value: _moment(one, two, value)
    if two in _TEXTS:
        if one in _TEXTS and typmod == -1:
            return None
        return lambda value: types.read_text(target, types.write_text(source, value), typmod)
    if (one, two) == ("inet", "cidr"):
        return kept.network
    if {one, two} <= {"json", "jsonb"} or (one, two) == ("cidr", "inet") or (one in _TEXTS and target.text_only):
        return lambda value: types.read_text(target, value, typmod)
    raise mismatch(column, source)


# ---------- time and identifiers ----------
def now_micros() -> int:
    """timestamptz's storage value of this instant."""
    return time.time_ns() // 1000 - EPOCH_MICROS


_SNOWFLAKE_EPOCH_MS = 1_577_836_800_000  # 2020-01-01


class Snowflakes:
    """snowflake_id() on the server: 41 bits of milliseconds, 10 of node, 12 of sequence; strictly increasing.

    The extension numbers its backends' hosts from the server's node number, so the server itself takes the number
    with the highest bit flipped and never meets them.
    """

    def __init__(self, node_id: int) -> None:
        self._node = (node_id ^ 512) & 1023
        self._last = 0
        self._lock = threading.Lock()

    def next(self) -> int:
        with self._lock:
            stamp = (time.time_ns() // 1_000_000 - _SNOWFLAKE_EPOCH_MS) << 12  # millisecond and sequence
            self._last = max(stamp, self._last + 1)
            return (self._last >> 12) << 22 | self._node << 12 | (self._last & 0xFFF)


def random_uuid() -> bytes:
    data = bytearray(os.urandom(16))
    data[6] = data[6] & 0x0F | 0x40
    data[8] = data[8] & 0x3F | 0x80
    return bytes(data)


# ---------- defaults ----------
#: functions of DEFAULT that the server evaluates: what they give and its type
NOW, SNOWFLAKE, UUID = "now", "snowflake_id", "gen_random_uuid"
_FUNCTION_TYPES = {NOW: "timestamptz", SNOWFLAKE: "int8", UUID: "uuid"}


_FUNCTION_NAMES = {"now": NOW, "transaction_timestamp": NOW, "statement_timestamp": NOW, "snowflake_id": SNOWFLAKE,
                   "gen_random_uuid": UUID}


def function_of(node: exp.Expr) -> str | None:
    """The server's own function that an expression calls."""
    match node:
        case exp.Paren():
            return function_of(node.this)
        case exp.CurrentTimestamp():
            return NOW
        case exp.Anonymous() if not node.expressions:
            return _FUNCTION_NAMES.get(str(node.this).lower())
        case exp.Dot() if isinstance(node.expression, exp.Anonymous):
            return function_of(node.expression)
    return None


def function_type(name: str) -> PgType:
    return types.by_name(_FUNCTION_TYPES[name])


def constant(node: exp.Expression, column: ColumnDef, params: Params) -> tuple[bool, Any]:
    """A literal as the column's storage value: (is it one, value)."""
    match node:
        case exp.Paren():
            return constant(node.this, column, params)
        case exp.Null():
            return True, None
        case exp.Literal() if node.is_string:
            return True, types.read_text(column.type, node.this, column.typmod)
        case exp.ByteString() | exp.RawString() | exp.National():
            return True, types.read_text(column.type, str(node.this), column.typmod)
        case exp.Boolean():
            return True, _assigned(types.by_name("bool"), column, int(bool(node.this)))
        case exp.Literal():
            return True, _number(node.this, column)
        case exp.Neg() if isinstance(node.this, exp.Literal) and not node.this.is_string:
            return True, _number("-" + node.this.this, column)
        case exp.Cast() if type(node) is exp.Cast and isinstance(node.this, exp.Literal | exp.ByteString):
            target, typmod = types.parse_declared(node.to.sql("postgres").lower())
            return True, _assigned(target, column, types.read_text(target, str(node.this.this), typmod))
        case exp.Cast() if type(node) is exp.Cast and isinstance(node.this, exp.Null):
            return True, None
    return False, None


def _number(text: str, column: ColumnDef) -> Any:
    if column.type.name in ("float4", "float8", "numeric"):  # a numeric first: there is no -0
        return types.read_text(column.type, read_numeric(text), column.typmod)
    operand = number_operand(text)
    assert operand.type is not None
    return _assigned(operand.type, column, operand.constant)


def _assigned(source: PgType, column: ColumnDef, value: Any) -> Any:
    convert = assignment(source, column)
    return value if convert is None or value is None else convert(value)


def parameter(node: exp.Expression, column: ColumnDef, params: Params) -> tuple[int, Convert | None] | None:
    """A bare (perhaps cast) parameter: its index and conversion."""
    if isinstance(node, exp.Parameter | exp.Placeholder):
        index = parameter_index(node)
        params.infer(index, column.type)
        return index, assignment(params.type(index), column)
    if type(node) is exp.Cast and isinstance(node.this, exp.Parameter):
        index = parameter_index(node.this)
        target, typmod = types.parse_declared(node.to.sql("postgres").lower())
        params.infer(index, target)
        if params.type(index) is target and typmod == -1:
            return index, assignment(target, column)
    return None


def default_of(column: ColumnDef) -> tuple[str, Any]:
    """A column's default: ("value", storage value), ("function", name) or ("unknown", text)."""
    if column.default is None:
        return "value", None
    try:
        tree = parse_expression(column.default)
        name = function_of(tree)
        if name is not None:
            return "function", name
        found, value = constant(tree, column, Params(()))
    except KalamError:
        return "unknown", column.default
    return ("value", value) if found else ("unknown", column.default)
