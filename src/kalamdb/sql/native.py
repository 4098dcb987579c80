"""Storage values to the query engine's native types and back.

Rows of the store become Arrow arrays of DuckDB's types (DATE, TIMESTAMP, DECIMAL, UUID, JSON …); results become storage
values with a PostgreSQL type. Exact both ways; what DuckDB cannot hold (NaN in a decimal, more than 38 digits) raises
an error that says so. Types that DuckDB has and the server has not come back as their PostgreSQL text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from kalamdb import kept, types
from kalamdb.errors import KalamError
from kalamdb.types import PgType

EPOCH_DAYS = 10_957  # 2000-01-01 in days since 1970-01-01
EPOCH_MICROS = 946_684_800_000_000
DAY_MAX, MICROS_MAX = 2**31 - 1, 2**63 - 1
#: last microsecond that DuckDB's TIMESTAMP holds, as a storage value
LAST_MICROS = MICROS_MAX - 1 - EPOCH_MICROS


# ---------- into DuckDB ----------
def _day(value: int | None) -> int | None:
    if value is None or value == DAY_MAX:
        return value
    if value == -DAY_MAX - 1:
        return -DAY_MAX
    return value + EPOCH_DAYS


def _micros(value: int | None) -> int | None:
    if value is None or value == MICROS_MAX:
        return value
    if value == -MICROS_MAX - 1:
        return -MICROS_MAX
    if value > LAST_MICROS:
        raise KalamError("22008", "timestamp is out of the range that queries can compute with",
                         hint="Values later than the year 294246 can be selected, ordered and compared with constants.")
    return value + EPOCH_MICROS


def _decimal_shape(values: Sequence[str | None]) -> tuple[int, int]:
    """Digits before and after the point that hold every value."""
    whole, scale = 1, 0
    for value in values:
        if value is None:
            continue
        if not (value[-1].isdigit()):
            raise KalamError("0A000", f"numeric value {value} cannot take part in a computation here",
                             hint="It can be selected and compared with simple conditions.")
        digits, _, fraction = value.lstrip("-").partition(".")
        whole, scale = max(whole, len(digits)), max(scale, len(fraction))
    return whole, scale


def to_array(type_: PgType, values: Sequence[Any]) -> pa.Array:
    """One column. Numerics stay their text, which the query casts where it computes with them."""
    match type_.name:
        case "bool":
            return pa.array([None if value is None else bool(value) for value in values], pa.bool_())
        case "int2":
            return pa.array(values, pa.int16())
        case "int4":
            return pa.array(values, pa.int32())
        case "int8":
            return pa.array(values, pa.int64())
        case "float4":
            return pa.array(values, pa.float32())
        case "float8":
            return pa.array(values, pa.float64())
        case "bytea":
            return pa.array(values, pa.binary())
        case "uuid":
            storage = pa.array(values, pa.binary(16))
            return pa.ExtensionArray.from_storage(pa.uuid(), storage)
        case "date":
            return pa.array([_day(value) for value in values], pa.int32()).cast(pa.date32())
        case "timestamp":
            return pa.array([_micros(value) for value in values], pa.int64()).cast(pa.timestamp("us"))
        case "timestamptz":
            return pa.array([_micros(value) for value in values], pa.int64()).cast(pa.timestamp("us", "UTC"))
        case _:
            return pa.array(values, pa.string())


def from_wire(type_: PgType, array: pa.Array) -> pa.Array:
    """One column from its wire layout."""
    match type_.name:
        case "date":
            if _within(array, -DAY_MAX, DAY_MAX - 1):
                return pc.add(array, pa.scalar(EPOCH_DAYS, pa.int32())).cast(pa.date32())
        case "timestamp" | "timestamptz" as name:
            if _within(array, -MICROS_MAX, LAST_MICROS):
                unix = pc.add(array, pa.scalar(EPOCH_MICROS, pa.int64()))
                return unix.cast(pa.timestamp("us", "UTC" if name == "timestamptz" else None))
        case "uuid":
            return pa.ExtensionArray.from_storage(pa.uuid(), array.cast(pa.binary(16)))
        case _:
            return array
    return to_array(type_, array.to_pylist())


def _within(array: pa.Array, low: int, high: int) -> bool:
    ends = pc.min_max(array).as_py()
    return ends["min"] is None or (ends["min"] >= low and ends["max"] <= high)


def failure(sqlstate: str, message: str) -> str:
    """SQL that raises."""
    quoted = message.replace("'", "''")
    return f"error('kalam:{sqlstate}:{quoted}:malak')"


def literal(type_: PgType | None, value: Any) -> str:
    """A storage value as DuckDB's SQL; ``type_`` None: of a type that the context decides."""
    if value is None:
        cast = None if type_ is None else _CASTS.get(type_.name)
        return "NULL" if cast is None else f"CAST(NULL AS {cast})"
    match type_.name if type_ is not None else "text":
        case "bool":
            return "TRUE" if value else "FALSE"
        case "int2" | "int4" | "int8" as name:
            return f"CAST({value} AS {_CASTS[name]})" if value != -MICROS_MAX - 1 else "(-9223372036854775807 - 1)"
        case "float4" | "float8" as name:
            return f"CAST('{value!r}' AS {_CASTS[name]})"
        case "numeric":
            whole, scale = _decimal_shape([value])
            if whole + scale > 38:
                raise KalamError("22003", "numeric value has more digits than queries can compute with (38)")
            return f"CAST('{value}' AS DECIMAL({whole + scale}, {scale}))"
        case "bytea":
            return f"unhex('{value.hex()}')"
        case "uuid":
            return f"CAST('{UUID(bytes=value)}' AS UUID)"
        case "date":
            return _date_literal(_day(value))
        case "timestamp":
            return _timestamp_literal(_micros(value), "TIMESTAMP")
        case "timestamptz":
            return _timestamp_literal(_micros(value), "TIMESTAMPTZ")
        case _:
            return "'" + str(value).replace("'", "''") + "'"


_CASTS = {
    "bool": "BOOLEAN", "int2": "SMALLINT", "int4": "INTEGER", "int8": "BIGINT", "float4": "FLOAT", "float8": "DOUBLE",
    "numeric": "VARCHAR", "text": "VARCHAR", "varchar": "VARCHAR", "bytea": "BLOB", "uuid": "UUID",
    "date": "DATE", "timestamp": "TIMESTAMP", "timestamptz": "TIMESTAMPTZ", "json": "VARCHAR", "jsonb": "VARCHAR",
}


def _date_literal(days: int | None) -> str:
    assert days is not None
    if abs(days) == DAY_MAX:
        return f"CAST('{'-' if days < 0 else ''}infinity' AS DATE)"
    return f"(DATE '1970-01-01' + {days})" if days >= 0 else f"(DATE '1970-01-01' - {-days})"


def _timestamp_literal(micros: int | None, name: str) -> str:
    assert micros is not None
    if abs(micros) == MICROS_MAX:
        return f"CAST('{'-' if micros < 0 else ''}infinity' AS {name})"
    return f"CAST(make_timestamp(CAST({micros} AS BIGINT)) AS {name})"


# ---------- out of DuckDB ----------
def _from_days(value: int) -> int:
    if value == DAY_MAX:
        return value
    return -DAY_MAX - 1 if value == -DAY_MAX else value - EPOCH_DAYS


def _from_micros(value: int) -> int:
    if value == MICROS_MAX:
        return value
    return -MICROS_MAX - 1 if value == -MICROS_MAX else value - EPOCH_MICROS


def _from_numeric(value: Any) -> str:
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def interval_text(months: int, days: int, nanos: int) -> str:
    """An interval as PostgreSQL writes it."""
    return kept.interval_text(months, days, nanos // 1000 if nanos >= 0 else -(-nanos // 1000))


def _element_text(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return _any_text(value)
    text = _any_text(value)
    if re.fullmatch(r'[^\s{},"\\]+', text) and text.upper() != "NULL":
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _any_text(value: Any) -> str:
    if isinstance(value, list):
        return "{" + ",".join(_element_text(item) for item in value) + "}"
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, dict):
        return json.dumps(value, default=str, ensure_ascii=False)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if hasattr(value, "months"):
        return interval_text(value.months, value.days, value.nanoseconds)
    if isinstance(value, float):
        return types.write_text(types.by_name("float8"), value)
    return str(value)


_MOMENTS = frozenset({"date", "timestamp", "timestamptz"})
_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "bool": int, "numeric": _from_numeric, "date": _from_days, "timestamp": _from_micros, "timestamptz": _from_micros,
    "text": _any_text,
}


def to_wire(type_: PgType, array: pa.Array) -> pa.Array:
    """One result column in its wire layout; integers for a date or timestamp are storage values."""
    wire = type_.arrow
    if array.type == wire:
        return array
    if pa.types.is_date(array.type):
        days = array.cast(pa.int32())
        if _within(days, -DAY_MAX + 1, DAY_MAX - 1):
            return pc.subtract(days, pa.scalar(EPOCH_DAYS, pa.int32()))
    elif pa.types.is_timestamp(array.type):
        micros = array.cast(pa.int64())
        if _within(micros, -MICROS_MAX + 1, MICROS_MAX - 1):
            return pc.subtract(micros, pa.scalar(EPOCH_MICROS, pa.int64()))
    elif pa.types.is_binary(array.type) and type_.name == "uuid":
        return array.cast(wire)
    return types.to_array(from_array(type_, array), type_)


def from_array(type_: PgType, array: pa.Array) -> list[Any]:
    """Storage values of one result column; integers for a date or timestamp are storage values already."""
    name = type_.name
    if name == "uuid":
        if pa.types.is_string(array.type):
            return [None if value is None else UUID(value).bytes for value in array.to_pylist()]
        return [None if value is None else bytes(value) for value in array.cast(pa.binary()).to_pylist()]
    if pa.types.is_date(array.type):
        array = array.cast(pa.int32())
    elif pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
    elif name in _MOMENTS:
        return array.to_pylist()  # type: ignore[no-any-return]
    values: list[Any] = array.to_pylist()
    convert = _CONVERTERS.get(name)
    if convert is None or (name == "text" and pa.types.is_string(array.type)):
        return values
    return [None if value is None else convert(value) for value in values]
