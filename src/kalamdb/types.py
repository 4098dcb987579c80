"""The registry of types: how PostgreSQL's values are stored here and how they travel, exactly.

A value has one storage form (docs/protocol.md, "Values") and two outside forms: PostgreSQL's text and PostgreSQL's
binary. Reading a bad outside form raises KalamError with PostgreSQL's SQLSTATE and words (22P02, 22003, 22007, 22008,
22P03). Formats follow the PostgreSQL documentation, "Data Types" and "Frontend/Backend Protocol"; the shortest texts of
floats follow its float output (exponents from 1e15 for double precision, 1e6 for real).
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.compute as pc

from kalamdb import composed, kept
from kalamdb.errors import KalamError
from kalamdb.numbers import MAX_SCALE, SPACE, invalid, read_integer, read_numeric

#: type OID of a value that is an Arrow IPC message or stream (docs/protocol.md)
ARROW_OID = 90002

Value = Any
Reader = Callable[[str], Value]
Writer = Callable[[Value], str]
BinaryReader = Callable[[bytes], Value]
BinaryWriter = Callable[[Value], bytes]

DAY_INFINITY = 2**31 - 1
MICROS_INFINITY = 2**63 - 1
MICROS_PER_DAY = 86_400_000_000
_EPOCH_JULIAN = 2_451_545  # 2000-01-01
_FIRST_DAY = -_EPOCH_JULIAN  # 4714-11-24 BC
_LAST_DAY = 2_145_031_948  # 5874897-12-31
_FIRST_MICROS = -211_813_488_000_000_000
_END_MICROS = 9_223_371_331_200_000_000

_ARROW = {
    "bool": pa.bool_(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(), "float32": pa.float32(),
    "float64": pa.float64(), "utf8": pa.utf8(), "binary": pa.binary(),
}


@dataclass(frozen=True, slots=True, eq=False)
class PgType:
    """One PostgreSQL type. ``size`` is RowDescription's (-1: variable); ``layout`` names its Arrow form."""

    name: str
    oid: int
    size: int
    display: str
    layout: str
    read: Reader
    write: Writer
    read_binary: BinaryReader
    write_binary: BinaryWriter
    is_key: bool = True
    text_only: bool = False  # kept as the text PostgreSQL writes

    @property
    def arrow(self) -> pa.DataType:
        return _ARROW[self.layout]

    def decode(self, data: bytes, fmt: int) -> Value:
        """Storage value of an outside form; ``fmt`` 0 text (UTF-8), 1 binary."""
        if fmt == 1:
            try:
                return self.read_binary(data)
            except struct.error:
                raise KalamError("22P03", f"incorrect binary data format for type {self.display}") from None
        return self.read(_utf8(data))

    def encode(self, value: Value, fmt: int) -> bytes:
        """Outside form of a storage value."""
        return self.write_binary(value) if fmt == 1 else self.write(value).encode()

    def __repr__(self) -> str:
        return f"<PgType {self.name}>"


def _utf8(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise KalamError("22021", f'invalid byte sequence for encoding "UTF8": 0x{data[error.start]:02x}') from None
    if "\0" in text:
        raise KalamError("22021", 'invalid byte sequence for encoding "UTF8": 0x00')
    return text


# ---------- boolean ----------
_TRUE = ("t", "tr", "tru", "true", "y", "ye", "yes", "on", "1")
_FALSE = ("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0")


def _read_bool(text: str) -> int:
    word = text.strip(SPACE).lower()
    if word in _TRUE:
        return 1
    if word in _FALSE:
        return 0
    raise invalid("boolean", text)


def _read_bool_binary(data: bytes) -> int:
    if len(data) != 1:
        raise KalamError("22P03", "incorrect binary data format for type boolean")
    return int(data != b"\0")


# ---------- integers ----------
def _integer(display: str, bits: int) -> tuple[Reader, BinaryReader, BinaryWriter]:
    form = struct.Struct({16: ">h", 32: ">i", 64: ">q"}[bits])

    def read(text: str) -> int:
        return read_integer(text, display, bits)

    def read_binary(data: bytes) -> int:
        number: int = form.unpack(data)[0]
        return number

    return read, read_binary, form.pack


# ---------- floats ----------
#: what strtod() takes
_FLOAT = re.compile(r"[+-]?(?:0x(?P<hex>[\da-f]+\.?[\da-f]*|\.[\da-f]+)(?:p[+-]?\d+)?|"
                    r"(?P<decimal>\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)", re.ASCII | re.IGNORECASE)
_NAN = re.compile(r"[+-]?nan(\(\w*\))?", re.ASCII)
_SPECIAL = {"infinity": float("inf"), "inf": float("inf"), "+infinity": float("inf"),
            "+inf": float("inf"), "-infinity": float("-inf"), "-inf": float("-inf")}


def _float4_digits(value: float) -> str:
    for precision in range(1, 10):
        text = f"{value:.{precision}g}"
        try:
            if struct.pack(">f", float(text)) == struct.pack(">f", value):
                return text
        except OverflowError:  # rounded up beyond the largest
            continue
    return f"{value:.9g}"


def _write_float(value: float, *, single: bool) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    if value == 0:
        return "-0" if struct.pack(">d", value)[0] else "0"
    sign, digits, exponent = Decimal(_float4_digits(value) if single else repr(value)).as_tuple()
    text = "".join(map(str, digits)).rstrip("0") or "0"
    point = len(digits) + int(exponent)  # digits before the decimal point
    shown = point - 1
    minus = "-" if sign else ""
    if -5 < shown < (6 if single else 15):
        if point <= 0:
            return f"{minus}0.{'0' * -point}{text}"
        if len(text) <= point:
            return minus + text.ljust(point, "0")
        return f"{minus}{text[:point]}.{text[point:]}"
    mantissa = text[0] + ("." + text[1:] if len(text) > 1 else "")
    return f"{minus}{mantissa}e{'-' if shown < 0 else '+'}{abs(shown):02}"


_REAL_BITS, _REAL_FORM = struct.Struct(">i"), struct.Struct(">f")
#: from here on a real is infinite
_SINGLE_END = 2.0**128 - 2.0**103


def _single(text: str, value: float) -> float:
    """The real nearest to a decimal text, of which ``value`` is the nearest double: rounded once, not twice."""
    if abs(value) == _SINGLE_END and abs(Decimal(text)) < _SINGLE_END:
        return math.copysign(2.0**128 - 2.0**104, value)
    near: float = _REAL_FORM.unpack(_REAL_FORM.pack(value))[0]
    if near == value:
        return near
    bits = _REAL_BITS.unpack(_REAL_FORM.pack(abs(near)))[0]
    other = math.copysign(_REAL_FORM.unpack(_REAL_BITS.pack(bits + (1 if abs(value) > abs(near) else -1)))[0], value)
    exact = Decimal(text)
    if value - near == other - value and exact != Decimal(value):  # the double is in the middle, the text is not
        return max(near, other) if exact > Decimal(value) else min(near, other)
    return near


def _float(display: str, *, single: bool) -> tuple[Reader, Writer, BinaryReader, BinaryWriter]:
    form = struct.Struct(">f" if single else ">d")

    def read(text: str) -> float:
        """22003, as far as it is a number, before 22P02 for the rest."""
        word = text.strip(SPACE)
        found = _FLOAT.match(word)
        if found is None:
            if _NAN.fullmatch(word.lower()):
                return float("nan")
            if word.lower() not in _SPECIAL:
                raise invalid(display, text)
            return _SPECIAL[word.lower()]
        try:
            value = float(found[0]) if found["hex"] is None else float.fromhex(found[0])
            if single and abs(value) != float("inf"):
                value = _REAL_FORM.unpack(_REAL_FORM.pack(value))[0] if found["hex"] else _single(found[0], value)
        except OverflowError:
            value = float("inf")
        if abs(value) == float("inf") or (value == 0 and (found["hex"] or found["decimal"]).strip("0.")):
            raise KalamError("22003", f'"{found[0]}" is out of range for type {display}')
        if found.end() < len(word):
            raise invalid(display, text)
        return value

    def read_binary(data: bytes) -> float:
        value: float = form.unpack(data)[0]
        return value

    def write(value: float) -> str:
        return _write_float(value, single=single)

    return read, write, read_binary, form.pack


# ---------- numeric ----------
_NUMERIC_SIGNS = {0xC000: "NaN", 0xD000: "Infinity", 0xF000: "-Infinity"}


def _read_numeric_binary(data: bytes) -> str:
    count, weight, sign, scale = struct.unpack_from(">HhHH", data)
    if sign in _NUMERIC_SIGNS:
        return _NUMERIC_SIGNS[sign]
    groups = struct.unpack(f">{count}H", data[8:])
    if sign not in (0, 0x4000):
        raise KalamError("22P03", 'invalid sign in external "numeric" value')
    if scale > MAX_SCALE:
        raise KalamError("22P03", 'invalid scale in external "numeric" value')
    if any(group > 9999 for group in groups):
        raise KalamError("22P03", 'invalid digit in external "numeric" value')
    before = "".join(f"{groups[i] if i < count else 0:04}" for i in range(weight + 1)) if weight >= 0 else ""
    after = "".join(f"{groups[i] if 0 <= i < count else 0:04}" for i in range(weight + 1, weight + 2 + scale // 4))
    if weight < -1:
        after = ("0000" * (-weight - 1) + "".join(f"{group:04}" for group in groups)).ljust(scale, "0")
    whole, fraction = before.lstrip("0") or "0", after[:scale].ljust(scale, "0")
    minus = "-" if sign == 0x4000 and (whole != "0" or fraction.strip("0")) else ""
    return minus + whole + ("." + fraction if scale else "")


def _write_numeric_binary(text: str) -> bytes:
    special = {"NaN": 0xC000, "Infinity": 0xD000, "-Infinity": 0xF000}.get(text)
    if special is not None:
        return struct.pack(">HhHH", 0, 0, special, 0)
    sign = 0x4000 if text[0] == "-" else 0
    whole, _, fraction = text.lstrip("-").partition(".")
    scale = len(fraction)
    whole = whole.rjust(-(-len(whole) // 4) * 4, "0")
    digits = whole + fraction.ljust(-(-scale // 4) * 4, "0")
    groups = [int(digits[i : i + 4]) for i in range(0, len(digits), 4)]
    weight = len(whole) // 4 - 1
    while groups and groups[0] == 0:
        groups.pop(0)
        weight -= 1
    while groups and groups[-1] == 0:
        groups.pop()
    if not groups:
        sign, weight = 0, 0
    return struct.pack(f">HhHH{len(groups)}H", len(groups), weight, sign, scale, *groups)


# ---------- text, bytes, uuid ----------
def _read_plain(text: str) -> str:
    if "\0" in text:
        raise KalamError("22021", 'invalid byte sequence for encoding "UTF8": 0x00')
    return text


def _write_plain(value: str) -> str:
    return value


_ESCAPED = re.compile(rb"\\(\\|[0-3][0-7]{2})|\\")


def _read_bytea(text: str) -> bytes:
    if text.startswith("\\x"):
        try:
            return bytes.fromhex(text[2:])
        except ValueError:
            raise KalamError("22P02", "invalid hexadecimal data for type bytea") from None

    def unescape(match: re.Match[bytes]) -> bytes:
        if match[1] is None:
            raise invalid("bytea", text)
        return b"\\" if match[1] == b"\\" else bytes([int(match[1], 8)])

    return _ESCAPED.sub(unescape, text.encode())


def _write_bytea(value: bytes) -> str:
    return "\\x" + value.hex()


def _read_uuid(text: str) -> bytes:
    inner = text[1:-1] if text[:1] == "{" and text[-1:] == "}" else text
    if not re.fullmatch(r"([0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4}", inner):
        raise invalid("uuid", text)
    return bytes.fromhex(inner.replace("-", ""))


def _write_uuid(value: bytes) -> str:
    return str(UUID(bytes=value))


def _read_uuid_binary(data: bytes) -> bytes:
    if len(data) != 16:
        raise KalamError("22P03", "incorrect binary data format for type uuid")
    return bytes(data)


# ---------- json ----------
class _Number(str):
    """A number of a JSON text, as PostgreSQL's numeric writes it."""


def _bad_constant(word: str) -> Value:
    raise ValueError(f'Token "{word}" is invalid.')


_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _json_string(text: str) -> str:
    return '"' + re.sub(r'["\\\x00-\x1f]', lambda m: _ESCAPES.get(m[0]) or f"\\u{ord(m[0]):04x}", text) + '"'


def _jsonb_text(value: Value) -> str:
    parts: list[str] = []
    todo = [value]  # no recursion: what could be parsed can be written
    while todo:
        item = todo.pop()
        if isinstance(item, _Number):
            parts.append(item)
        elif isinstance(item, str):
            if "\0" in item:
                raise KalamError("22P05", "unsupported Unicode escape sequence",
                                 detail="\\u0000 cannot be converted to text.")
            parts.append(_json_string(_without_surrogates(item)))
        elif isinstance(item, list):
            parts.append("[")
            todo.append(_Number("]"))
            for place in range(len(item) - 1, -1, -1):
                todo += [item[place], _Number(", ")] if place else [item[place]]
        elif isinstance(item, dict):
            parts.append("{")
            todo.append(_Number("}"))
            keys = sorted(item, key=_key_order)
            for place in range(len(keys) - 1, -1, -1):
                todo += [item[keys[place]], _Number(": "), keys[place]]
                if place:
                    todo.append(_Number(", "))
        else:
            parts.append({True: "true", False: "false", None: "null"}[item])
    return "".join(parts)


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise KalamError("22P02", "invalid input syntax for type json",
                         detail="Unicode low surrogate must follow a high surrogate.") from None
    return text


def _key_order(key: str) -> tuple[int, bytes]:
    data = key.encode("utf-8", "surrogatepass")
    return len(data), data


def _read_number(text: str) -> _Number:
    return _Number(read_numeric(text))


_JSON = json.JSONDecoder(parse_float=_read_number, parse_int=_read_number, parse_constant=_bad_constant)


def _parse_json(text: str) -> Value:
    try:
        return _JSON.decode(text)
    except RecursionError:
        raise KalamError("54001", "a JSON value is nested too deeply") from None
    except ValueError as error:
        detail = f"{error.msg}." if isinstance(error, json.JSONDecodeError) else str(error)
        raise KalamError("22P02", "invalid input syntax for type json", detail=detail) from None


def _read_json(text: str) -> str:
    _parse_json(text)
    return text


class _NotCanonical(Exception):
    pass


def _in_order(pairs: list[tuple[str, Value]]) -> dict[str, Value]:
    last = (-1, b"")
    for key, _ in pairs:
        order = _key_order(key)
        if order <= last:
            raise _NotCanonical
        last = order
    return dict(pairs)


def _plain_float(text: str) -> float:
    number = float(text)
    if "e" in text or "E" in text or (not number and text[0] == "-"):
        raise _NotCanonical
    return number


_PLAIN_JSON = json.JSONDecoder(object_pairs_hook=_in_order, parse_float=_plain_float, parse_constant=_bad_constant)
_JSON_WRITER = json.JSONEncoder(ensure_ascii=False)


def _is_canonical(text: str) -> bool:
    """Cheaply; False where it takes a closer look."""
    try:
        return "\\u0000" not in text and _JSON_WRITER.encode(_PLAIN_JSON.decode(text)) == text
    except (_NotCanonical, ValueError, RecursionError):
        return False


def canonical_jsonb(text: str) -> str:
    """The text that ``jsonb_out`` gives: keys by length and bytes, the last of equal keys, numbers as numeric."""
    return text if _is_canonical(text) else _jsonb_text(_parse_json(text))


def _read_jsonb_binary(data: bytes) -> str:
    if data[:1] != b"\x01":
        raise KalamError("22P03", f"unsupported jsonb version number {data[0] if data else 0}")
    return canonical_jsonb(_utf8(data[1:]))


# ---------- dates and times ----------
def _days(year: int, month: int, day: int) -> int:
    """Days since 2000-01-01 in the proleptic Gregorian calendar; year 0 is 1 BC."""
    year -= month <= 2
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 730_425


def _civil(days: int) -> tuple[int, int, int]:
    days += 730_425
    era, of_era = divmod(days, 146_097)
    year = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * year + year // 4 - year // 100)
    shifted = (5 * of_year + 2) // 153
    month = shifted + 3 if shifted < 10 else shifted - 9
    return year + era * 400 + (month <= 2), month, of_year - (153 * shifted + 2) // 5 + 1


_MOMENT = re.compile(
    r"(\d{1,7})-(\d{1,2})-(\d{1,2})(?:[ Tt]+(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d*))?)?)?"
    r"\s*(Z|z|UTC|utc|GMT|gmt|[+-]\d{1,2}(?::?\d{2}(?::?\d{2})?)?)?(\s*(?:BC|bc|AD|ad))?"
)


def _fields(display: str, text: str) -> tuple[int, int, int]:
    """(days, microseconds of the day, offset from UTC in microseconds or 0)."""
    match = _MOMENT.fullmatch(text.strip())
    if not match:
        raise KalamError("22007", f'invalid input syntax for type {display}: "{text}"')
    year, month, day = int(match[1]), int(match[2]), int(match[3])
    if match[9] and match[9].strip().lower() == "bc":
        year = 1 - year
    elif year == 0:
        year = -(10**9)
    hour, minute, second = (int(match[i] or 0) for i in (4, 5, 6))
    length = (29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28) if month == 2 else (
        30 if month in (4, 6, 9, 11) else 31)
    in_range = 1 <= month <= 12 and 1 <= day <= length and year > -10_000
    if not in_range or hour > 24 or minute > 59 or second > 60 or (hour == 24 and (minute or second)):
        raise KalamError("22008", f'date/time field value out of range: "{text}"')
    fraction = (match[7] or "").ljust(7, "0")
    micros = int(fraction[:6]) + (fraction[6] >= "5")
    time = ((hour * 60 + minute) * 60 + second) * 1_000_000 + micros
    return _days(year, month, day), time, _offset(match[8])


def _offset(zone: str | None) -> int:
    if zone is None or zone[0] not in "+-":
        return 0
    digits = zone[1:].replace(":", "")
    digits = digits.rjust(2, "0") if len(digits) <= 2 else digits.rjust(4, "0")
    parts = [int(digits[i : i + 2]) for i in range(0, len(digits), 2)] + [0, 0]
    seconds = parts[0] * 3600 + parts[1] * 60 + parts[2]
    return (-seconds if zone[0] == "-" else seconds) * 1_000_000


_ENDLESS = {"infinity": 1, "+infinity": 1, "-infinity": -1}


def _read_date(text: str) -> int:
    word = text.strip().lower()
    if word in _ENDLESS:
        return DAY_INFINITY if _ENDLESS[word] > 0 else -DAY_INFINITY - 1
    if word == "epoch":
        return -10_957
    days = _fields("date", text)[0]
    if not _FIRST_DAY <= days <= _LAST_DAY:
        raise KalamError("22008", f'date out of range: "{text}"')
    return days


def _timestamp_reader(display: str, *, zoned: bool) -> Reader:
    def read(text: str) -> int:
        word = text.strip().lower()
        if word in _ENDLESS:
            return MICROS_INFINITY if _ENDLESS[word] > 0 else -MICROS_INFINITY - 1
        if word == "epoch":
            return -946_684_800_000_000
        days, time, offset = _fields(display, text)
        micros = days * MICROS_PER_DAY + time - (offset if zoned else 0)
        if not _FIRST_MICROS <= micros < _END_MICROS:
            raise KalamError("22008", f'timestamp out of range: "{text}"')
        return micros

    return read


def _date_in_range(days: int) -> int:
    if not _FIRST_DAY <= days <= _LAST_DAY and days not in (DAY_INFINITY, -DAY_INFINITY - 1):
        raise KalamError("22008", "date out of range")
    return days


def _timestamp_in_range(micros: int) -> int:
    if not _FIRST_MICROS <= micros < _END_MICROS and micros not in (MICROS_INFINITY, -MICROS_INFINITY - 1):
        raise KalamError("22008", "timestamp out of range")
    return micros


def _date_text(days: int) -> tuple[str, str]:
    year, month, day = _civil(days)
    era = ""
    if year <= 0:
        year, era = 1 - year, " BC"
    return f"{year:04}-{month:02}-{day:02}", era


def _write_date(days: int) -> str:
    if days == DAY_INFINITY:
        return "infinity"
    return "-infinity" if days == -DAY_INFINITY - 1 else "".join(_date_text(days))


def _timestamp_writer(zone: str) -> Writer:
    def write(micros: int) -> str:
        if micros == MICROS_INFINITY:
            return "infinity"
        if micros == -MICROS_INFINITY - 1:
            return "-infinity"
        days, time = divmod(micros, MICROS_PER_DAY)
        date, era = _date_text(days)
        seconds, fraction = divmod(time, 1_000_000)
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        if fraction:
            clock += f".{fraction:06}".rstrip("0")
        return f"{date} {clock}{zone}{era}"

    return write


# ---------- the table ----------
def _text_kind(name: str, oid: int, display: str, *, is_key: bool = True, text_only: bool = False,
               read: Reader = _read_plain) -> PgType:
    return PgType(name, oid, -1, display, "utf8", read, _write_plain,
                  _utf8 if read is _read_plain else lambda data: read(_utf8(data)), str.encode, is_key, text_only)


def _make() -> list[PgType]:
    table = [PgType("bool", 16, 1, "boolean", "bool", _read_bool, lambda v: "t" if v else "f", _read_bool_binary,
                    lambda v: b"\x01" if v else b"\0")]
    for name, oid, display, bits in (("int2", 21, "smallint", 16), ("int4", 23, "integer", 32),
                                     ("int8", 20, "bigint", 64)):
        read, read_binary, write_binary = _integer(display, bits)
        table.append(PgType(name, oid, bits // 8, display, f"int{bits}", read, str, read_binary, write_binary))
    for name, oid, display, single in (("float4", 700, "real", True), ("float8", 701, "double precision", False)):
        layout = "float32" if single else "float64"
        table.append(PgType(name, oid, 4 if single else 8, display, layout, *_float(display, single=single)))
    day, micros = struct.Struct(">i"), struct.Struct(">q")
    table += [
        PgType("numeric", 1700, -1, "numeric", "utf8", read_numeric, _write_plain, _read_numeric_binary,
               _write_numeric_binary),
        _text_kind("text", 25, "text"),
        _text_kind("varchar", 1043, "character varying"),
        PgType("bytea", 17, -1, "bytea", "binary", _read_bytea, _write_bytea, bytes, bytes),
        PgType("uuid", 2950, 16, "uuid", "binary", _read_uuid, _write_uuid, _read_uuid_binary, bytes),
        PgType("date", 1082, 4, "date", "int32", _read_date, _write_date,
               lambda d: _date_in_range(day.unpack(d)[0]), day.pack),
        PgType("timestamp", 1114, 8, "timestamp without time zone", "int64",
               _timestamp_reader("timestamp", zoned=False), _timestamp_writer(""),
               lambda d: _timestamp_in_range(micros.unpack(d)[0]), micros.pack),
        PgType("timestamptz", 1184, 8, "timestamp with time zone", "int64",
               _timestamp_reader("timestamp with time zone", zoned=True), _timestamp_writer("+00"),
               lambda d: _timestamp_in_range(micros.unpack(d)[0]), micros.pack),
        _text_kind("json", 114, "json", is_key=False, read=_read_json),
        PgType("jsonb", 3802, -1, "jsonb", "utf8", canonical_jsonb, _write_plain, _read_jsonb_binary,
               lambda v: b"\x01" + v.encode()),
    ]
    return table


# ---------- arrays ----------
_ARRAY_HEAD, _ARRAY_LENGTH = struct.Struct(">iiI"), struct.Struct(">i")


def _array_binary_reader(element: PgType, element_oid: int) -> BinaryReader:
    """The elements in one row, whatever the dimensions."""

    def read(data: bytes) -> Value:
        bad = KalamError("22P03", f"incorrect binary data format for type {element.display}[]")
        dimensions, _, oid = _ARRAY_HEAD.unpack_from(data)
        if oid != element_oid or not 0 <= dimensions <= 6:
            raise bad
        count, place = min(dimensions, 1), _ARRAY_HEAD.size + 8 * dimensions
        for dimension in range(dimensions):
            count *= _ARRAY_LENGTH.unpack_from(data, _ARRAY_HEAD.size + 8 * dimension)[0]
        if not 0 <= count <= len(data) // 4:
            raise bad
        values: list[Value] = []
        for _ in range(count):
            (length,) = _ARRAY_LENGTH.unpack_from(data, place)
            place += 4
            if length < -1 or place + length > len(data):
                raise bad
            values.append(None if length == -1 else element.read_binary(data[place : place + length]))
            place += max(length, 0)
        if place != len(data):
            raise bad
        return tuple(values)

    return read


def _array(element: PgType, oid: int, element_oid: int | None = None) -> PgType:
    """A parameter's type; no column is kept so. Its value is the tuple of its elements."""

    def read(text: str) -> Value:
        raise KalamError("0A000", "array parameters travel in binary only", hint="Use IN with its elements instead.")

    return PgType(f"{element.name}[]", oid, -1, f"{element.display}[]", "utf8", read, str,
                  _array_binary_reader(element, element_oid or element.oid), lambda _: b"", is_key=False)


#: OIDs of the array types of basic types
_ARRAY_OIDS = {
    "bool": 1000, "bytea": 1001, "int2": 1005, "int4": 1007, "text": 1009, "varchar": 1015, "int8": 1016,
    "float4": 1021, "float8": 1022, "timestamp": 1115, "date": 1182, "timestamptz": 1185, "numeric": 1231,
    "uuid": 2951, "jsonb": 3807,
}
#: OIDs by which parameters of types kept as text are announced, and arrays of them; in each they travel as their texts
KEPT_OIDS = {
    "time": (1083, 1183), "timetz": (1266, 1270), "interval": (1186, 1187), "bpchar": (1042, 1014),
    "bit": (1560, 1561), "varbit": (1562, 1563), "inet": (869, 1041), "cidr": (650, 651), "macaddr": (829, 1040),
    "macaddr8": (774, 775),
}


def _no_text(text: str) -> Value:
    raise KalamError("0A000", "record batches travel in binary only")


def _kept(each: kept.Kept) -> PgType:
    """It travels as text, and clients are told so."""
    return _text_kind(each.name, 25, each.display, is_key=each.key is not None, text_only=True, read=each.read)



TYPES: tuple[PgType, ...] = tuple(_make())
#: a parameter that holds an Arrow IPC stream
ARROW = PgType("kalam_arrow", ARROW_OID, -1, "kalam_arrow", "binary", _no_text, str, bytes, bytes, False)
_BY_NAME = {type_.name: type_ for type_ in (*TYPES, *map(_kept, kept.TYPES.values()))}
_BY_OID = {type_.oid: type_ for type_ in (*TYPES, ARROW)}
#: of parameters
ARRAYS: dict[str, PgType] = {f"{name}[]": _array(_BY_NAME[name], oid) for name, oid in _ARRAY_OIDS.items()} | {
    f"{name}[]": _array(_BY_NAME[name], oid, element) for name, (element, oid) in KEPT_OIDS.items()}
_BY_OID.update({type_.oid: type_ for type_ in ARRAYS.values()})
TEXT = _BY_NAME["text"]
#: announced by clients for what is text here: name, unknown
_BY_OID.update({19: TEXT, 705: TEXT})
_BY_OID.update({oid: _BY_NAME[name] for name, (oid, _) in KEPT_OIDS.items()})
_ALIASES = {
    "boolean": "bool", "smallint": "int2", "integer": "int4", "int": "int4", "bigint": "int8", "real": "float4",
    "double precision": "float8", "double": "float8", "decimal": "numeric", "character varying": "varchar",
    "string": "text", "file": "jsonb",
    "timestamp without time zone": "timestamp", "timestamp with time zone": "timestamptz",
    "time without time zone": "time", "time with time zone": "timetz", "character": "bpchar", "char": "bpchar",
    "bit varying": "varbit",
}
#: of one character or bit where no length is given
_SINGLE = frozenset({"char", "character", "bit"})
_DECLARED = re.compile(r"\s*([a-z_][a-z0-9_ ]*?)\s*(?:\(\s*([\d\s,+-]+?)\s*\))?\s*((?:with|without) time zone)?\s*")
_BRACKETS = re.compile(r"(.*?)\s*(?:array|(?:\[\s*\d*\s*\]\s*)+)", re.DOTALL)


def by_name(name: str) -> PgType:
    """By catalog name (``int8``); KeyError where there is none."""
    return _BY_NAME[name]


composed.use_types(by_name)


def element_of(type_: PgType | None) -> PgType | None:
    """Of an array; None if it is none."""
    return None if type_ is None or type_.name not in ARRAYS else _BY_NAME[type_.name[:-2]]


def by_oid(oid: int) -> PgType | None:
    return _BY_OID.get(oid)


def parse_declared(declared: str) -> tuple[PgType, int]:
    """``numeric(10,2)`` → the type and its typmod (-1: none). 42704 for an unknown type, 22023 for bad modifiers."""
    array = _BRACKETS.fullmatch(declared.lower().strip())
    if array is not None:
        element = parse_declared(array[1])[0].name
        if "_" + element in kept.TYPES:
            return _BY_NAME["_" + element], -1
    match = _DECLARED.fullmatch(declared.lower())
    name = f"{match[1]} {match[3]}" if match and match[3] else match[1] if match else ""
    type_ = _BY_NAME.get(_ALIASES.get(name, name))
    if type_ is None or match is None or name.startswith("_"):
        raise KalamError("42704", f'type "{declared.strip()}" does not exist', hint="Types of the server: "
                         + ", ".join([*(t.display for t in TYPES), *(k.display for k in kept.SCALARS)])
                         + ", and arrays of them.")
    try:
        modifiers = [int(part) for part in match[2].split(",")] if match[2] else [1] if name in _SINGLE else []
    except ValueError:  # of digits, blanks and commas, but no list of numbers
        raise KalamError("42601", f'syntax error in type "{declared.strip()}"') from None
    return type_, _typmod(type_, modifiers, declared)


#: types whose modifier is a number of digits after the second's point
_FRACTIONS = frozenset({"timestamp", "timestamptz", "time", "timetz", "interval"})


def _typmod(type_: PgType, modifiers: list[int], declared: str) -> int:
    if not modifiers:
        return -1
    first = modifiers[0]
    if type_.name == "varchar" and len(modifiers) == 1 and 1 <= first <= 10_485_760:
        return first + 4
    if type_.name == "numeric" and len(modifiers) <= 2 and 1 <= first <= 1000:
        scale = modifiers[1] if len(modifiers) == 2 else 0
        if -1000 <= scale <= 1000:
            return ((first << 16) | (scale & 0x7FF)) + 4
    if type_.name in _FRACTIONS and len(modifiers) == 1 and 0 <= first <= 6:
        return first
    if type_.name in kept.LIMITS and len(modifiers) == 1 and 1 <= first <= kept.LIMITS[type_.name]:
        return first
    raise KalamError("22023", f'invalid type modifier in "{declared.strip()}"')


def apply_typmod(type_: PgType, value: Value, typmod: int) -> Value:
    """The value under an assignment cast to the modifier: rounded (numeric, timestamps) or refused (22001, 22003)."""
    if typmod == -1 or value is None:
        return value
    if type_.name == "varchar":
        limit = typmod - 4
        if len(value) > limit and value[limit:].strip(" "):
            raise KalamError("22001", f"value too long for type character varying({limit})")
        return value[:limit]
    if type_.name == "numeric":
        return _round_numeric(value, ((typmod - 4) >> 16) & 0xFFFF, (((typmod - 4) & 0x7FF) ^ 0x400) - 0x400)
    if type_.name in ("timestamp", "timestamptz") and abs(value) < MICROS_INFINITY:
        unit = 10 ** (6 - typmod)
        rounded = (abs(value) + unit // 2) // unit * unit
        return rounded if value >= 0 else -rounded
    return kept.assigned(type_.name, value, typmod) if type_.text_only else value


def _round_numeric(text: str, precision: int, scale: int) -> str:
    if text == "NaN":
        return text
    overflow = KalamError(
        "22003", "numeric field overflow",
        detail=f"A field with precision {precision}, scale {scale} "
        + ("cannot hold an infinite value." if "Inf" in text else
           f"must round to an absolute value less than {'1' if precision == scale else f'10^{precision - scale}'}."),
    )
    if "Inf" in text:
        raise overflow
    minus = text[0] == "-"
    whole, _, fraction = text.lstrip("-").partition(".")
    if whole != "0" and len(whole) > precision - scale:
        raise overflow
    fraction = fraction[: max(scale, 0) + 1]  # one digit decides the rounding, and Python does not convert thousands
    digits = int(whole + fraction)
    shift = len(fraction) - scale
    if shift > 0:
        digits, rest = divmod(digits, 10**shift)
        digits += rest * 2 >= 10**shift
    else:
        digits *= 10**-shift
    if digits >= 10**precision:
        raise overflow
    shown = str(digits * 10 ** max(0, -scale)).rjust(max(scale, 0) + 1, "0")
    result = shown if scale <= 0 else f"{shown[:-scale]}.{shown[-scale:]}"
    return "-" + result if minus and digits else result


def read_text(type_: PgType, text: str, typmod: int = -1) -> Value:
    """Storage value of PostgreSQL's text form, under a modifier."""
    return apply_typmod(type_, type_.read(text), typmod)


def write_text(type_: PgType, value: Value) -> str:
    return type_.write(value)


# ---------- Arrow ----------
def arrow_schema(columns: Iterable[tuple[str, PgType]]) -> pa.Schema:
    return pa.schema([pa.field(name, type_.arrow) for name, type_ in columns])


def rows_to_arrow(rows: Sequence[Sequence[Value]], kinds: Sequence[PgType], schema: pa.Schema) -> pa.RecordBatch:
    """A batch of storage rows; every array in its type's layout."""
    columns = zip(*rows, strict=True) if rows else ((),) * len(kinds)
    return pa.RecordBatch.from_arrays(
        [to_array(values, kind) for values, kind in zip(columns, kinds, strict=True)], schema=schema
    )


def to_array(values: Sequence[Value], kind: PgType) -> pa.Array:
    """Storage values in their type's layout."""
    if kind.layout == "bool":
        values = [None if value is None else bool(value) for value in values]
    return pa.array(values, kind.arrow, from_pandas=False)


def rows_from_arrow(stream: bytes, kinds: Sequence[PgType]) -> list[tuple[Value, ...]]:
    """Storage rows of an IPC stream."""
    return [row for batch in batches_from_arrow(stream, kinds) for row in rows_of_batch(batch, kinds)]


def batches_from_arrow(stream: bytes, kinds: Sequence[PgType]) -> list[pa.RecordBatch]:
    """The batches of an IPC stream. 08P01 where it is damaged or its columns have other layouts, 22021 where text is
    not UTF-8."""
    try:
        with pa.ipc.open_stream(pa.py_buffer(stream)) as reader:
            found = [field.type for field in reader.schema]
            if found != [kind.arrow for kind in kinds]:
                raise KalamError("08P01", f"record batch has columns {', '.join(map(str, found))}; expected "
                                 + ", ".join(str(kind.arrow) for kind in kinds))
            batches = list(reader)
            for batch in batches:
                _validate(batch)
    except pa.ArrowException as error:
        raise KalamError("08P01", "malformed Arrow stream", detail=str(error)) from None
    return [_read_batch(batch, kinds) for batch in batches]


def _validate(batch: pa.RecordBatch) -> None:
    """Bytes that are no text are the user's: PostgreSQL lets them in by COPY with the encoding SQL_ASCII."""
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid as error:
        if "Invalid UTF8" in str(error):  # which is looked for when offsets have been found right
            for column in batch.columns:
                if column.type == pa.string():
                    for data in column.view(pa.binary()).to_pylist():
                        _utf8(data or b"")
        raise


def _read_batch(batch: pa.RecordBatch, kinds: Sequence[PgType]) -> pa.RecordBatch:
    columns = [_read_array(column, kind) for column, kind in zip(batch.columns, kinds, strict=True)]
    if all(one is two for one, two in zip(columns, batch.columns, strict=True)):
        return batch
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


#: what a numeric's text looks like, but for the longest
_PLAIN_NUMERIC = r"^(-?[1-9][0-9]*(\.[0-9]+)?|0(\.[0-9]+)?|-0\.[0-9]*[1-9][0-9]*|NaN|-?Infinity)$"


def _read_array(column: pa.Array, kind: PgType) -> pa.Array:
    """Whoever sends texts of a type with rules of its own may send others: they are read as any are. The same array
    where nothing changes."""
    if kind.layout != "utf8" or kind.name in ("text", "varchar") or column.null_count == len(column):
        return column
    if kind.name == "numeric" and _all(pc.match_substring_regex(column, _PLAIN_NUMERIC)) and (
            pc.max(pc.binary_length(column)).as_py() <= MAX_SCALE):
        return column
    texts = column.to_pylist()
    values = [None if text is None else kind.read(_read_plain(text)) for text in texts]
    return column if values == texts else pa.array(values, pa.utf8())


def _all(found: pa.Array) -> bool:
    return pc.all(found).as_py() is not False


def rows_of_batch(batch: pa.RecordBatch, kinds: Sequence[PgType]) -> Iterable[tuple[Value, ...]]:
    """Storage rows of a batch with one column at least, each in its type's layout."""
    return zip(*(_values(column, kind) for column, kind in zip(batch.columns, kinds, strict=True)), strict=True)


def _values(column: pa.Array, kind: PgType) -> list[Value]:
    values: list[Value] = column.to_pylist()
    if kind.layout == "bool":
        return [None if value is None else int(value) for value in values]
    return values
