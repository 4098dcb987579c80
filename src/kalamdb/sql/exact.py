"""Functions that the query engine has not, or has otherwise: PostgreSQL's own rules, in Python over Arrow arrays.

Numerics travel as their text, so that every value keeps its scale, any number of digits, NaN and the infinities. A
function takes and gives storage values (``None`` is NULL and, unless it says otherwise, makes the result NULL); errors
pass through DuckDB as ``kalam:SQLSTATE:message`` (``kalamdb.sql.duck`` takes them apart again).
"""

from __future__ import annotations

import decimal
import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_UP, Decimal
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from duckdb.func import FunctionNullHandling, PythonUDFType

from kalamdb import kept, types
from kalamdb.errors import KalamError
from kalamdb.numbers import read_integer, read_numeric
from kalamdb.order import numeric_bytes
from kalamdb.sql import documents, keyarrays, native, octets, patterns, regression

_CONTEXT = decimal.Context(prec=20_000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN,
                           traps=[decimal.InvalidOperation])
#: digits that a quotient has at least, and how many decimal digits one of PostgreSQL's holds
_MIN_DIGITS, _GROUP = 16, 4
_MAX_SCALE = 16_383


# ---------- numeric ----------
def _special(value: str) -> bool:
    return value[-1] in "Ny"  # NaN, Infinity


def _scale(value: str) -> int:
    return len(value.partition(".")[2])


def _shown(value: Decimal, scale: int, rounding: str = ROUND_HALF_UP) -> str:
    text = f"{value.quantize(Decimal(1).scaleb(-scale), rounding, _CONTEXT):f}"
    return text[1:] if text[0] == "-" and not text.strip("-0.") else text


def _specials(one: str, two: str, work: Callable[[float, float], float]) -> str:
    """Arithmetic with NaN and the infinities is that of floats."""
    def number(text: str) -> float:
        return float(text) if _special(text) else (-1.0 if text[0] == "-" else 1.0 if text.strip("-0.") else 0.0)

    value = work(number(one), number(two))
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def add(one: str, two: str) -> str:
    if _special(one) or _special(two):
        return _specials(one, two, lambda a, b: a + b)
    return _shown(_CONTEXT.add(Decimal(one), Decimal(two)), max(_scale(one), _scale(two)))


def subtract(one: str, two: str) -> str:
    if _special(one) or _special(two):
        return _specials(one, two, lambda a, b: a - b)
    return _shown(_CONTEXT.subtract(Decimal(one), Decimal(two)), max(_scale(one), _scale(two)))


def multiply(one: str, two: str) -> str:
    if _special(one) or _special(two):
        return _specials(one, two, lambda a, b: a * b)
    scale = _scale(one) + _scale(two)
    return _shown(_CONTEXT.multiply(Decimal(one), Decimal(two)), min(scale, _MAX_SCALE))


def _leading(value: str) -> tuple[int, int]:
    """Weight and value of the first group of four digits, as PostgreSQL stores a number; zero has neither."""
    digits = value.lstrip("-")
    whole, _, fraction = digits.partition(".")
    whole = whole.lstrip("0")
    if whole:
        return (len(whole) - 1) // _GROUP, int(whole[: (len(whole) - 1) % _GROUP + 1])
    zeros = len(fraction) - len(fraction.lstrip("0"))
    if zeros == len(fraction):
        return 0, 0
    place = zeros // _GROUP
    return -1 - place, int(fraction[place * _GROUP : (place + 1) * _GROUP].ljust(_GROUP, "0"))


def _quotient_scale(one: str, two: str) -> int:
    (weight1, first1), (weight2, first2) = _leading(one), _leading(two)
    weight = weight1 - weight2 - (first1 <= first2)
    return min(1000, max(_MIN_DIGITS - weight * _GROUP, _scale(one), _scale(two), 0))


def divide(one: str, two: str) -> str:
    if one == "NaN" or two == "NaN":
        return "NaN"
    if not _special(two) and not two.strip("-0."):
        raise KalamError("22012", "division by zero")
    if _special(one):
        return "NaN" if _special(two) else _specials(one, two, lambda a, b: a * b)
    if _special(two):
        return "0"
    return _divided(Decimal(one), Decimal(two), _quotient_scale(one, two))


def _divided(one: Decimal, two: Decimal, scale: int, rounding: str = ROUND_HALF_UP) -> str:
    whole = max(one.adjusted() - two.adjusted(), 0)
    with decimal.localcontext(_CONTEXT) as context:
        context.prec = whole + scale + 40
        context.rounding = ROUND_DOWN  # a digit too many never rounds up what the last rounding decides
        quotient = context.divide(one, two)
    return _shown(quotient, scale, rounding)


def modulo(one: str, two: str) -> str:
    if one == "NaN" or two == "NaN":
        return "NaN"
    if not _special(two) and not two.strip("-0."):
        raise KalamError("22012", "division by zero")
    if _special(one):
        return "NaN"
    if _special(two):
        return one
    return _shown(_CONTEXT.remainder(Decimal(one), Decimal(two)), max(_scale(one), _scale(two)))


def quotient(one: str, two: str) -> str:
    """div(): the integer part."""
    if _special(one) or _special(two) or not two.strip("-0."):
        return divide(one, two)
    return _divided(Decimal(one), Decimal(two), 0, ROUND_DOWN)


def negate(value: str) -> str:
    if value == "NaN":
        return value
    if value[0] == "-":
        return value[1:]
    return "-" + value if _special(value) or value.strip("0.") else value


def absolute(value: str) -> str:
    return value.lstrip("-")


def sign(value: str) -> str:
    if value == "NaN":
        return value
    return "-1" if value[0] == "-" else "1" if value.strip("0.") else "0"


def _to_scale(rounding: str) -> Callable[[str, int], str]:
    def work(value: str, scale: int) -> str:
        if _special(value):
            return value
        scale = max(-_MAX_SCALE, min(scale, _MAX_SCALE))
        rounded = _shown(Decimal(value), scale, rounding)
        return rounded if scale >= 0 else _shown(Decimal(rounded), 0)

    return work


rounded, truncated = _to_scale(ROUND_HALF_UP), _to_scale(ROUND_DOWN)


def ceiling(value: str) -> str:
    return value if _special(value) else _shown(Decimal(value), 0, ROUND_CEILING)


def floored(value: str) -> str:
    return value if _special(value) else _shown(Decimal(value), 0, ROUND_FLOOR)


def to_integer(value: str, bits: int) -> int:
    display = {16: "smallint", 32: "integer", 64: "bigint"}[bits]
    if _special(value):
        raise KalamError("0A000", f"cannot convert {'NaN' if value == 'NaN' else 'infinity'} to {display}")
    number = int(Decimal(value).to_integral_value(ROUND_HALF_UP)) if len(value) < 400 else 1 << 64
    if not -(1 << (bits - 1)) <= number < 1 << (bits - 1):
        raise KalamError("22003", f"{display} out of range")
    return number


def to_float(value: str) -> float:
    number = float(value)
    if number in (float("inf"), float("-inf")) and not _special(value):
        raise KalamError("22003", f'"{value}" is out of range for type double precision')
    return number


def from_float(value: float, digits: int) -> str:
    """15 digits of a double precision, 6 of a real."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return read_numeric(f"{value:.{digits}g}")


def scale(value: str) -> int | None:
    return None if _special(value) else _scale(value)


def trimmed(value: str) -> str:
    """Without zeros at the end of the fraction."""
    return value.rstrip("0").rstrip(".") if "." in value else value


def _whole(one: str, two: str) -> tuple[int, int, int] | None:
    """Both in units of the finer one's last digit, and how many digits that are; None: not finite."""
    if _special(one) or _special(two):
        return None
    digits = max(_scale(one), _scale(two))
    return int(_CONTEXT.scaleb(Decimal(one), digits)), int(_CONTEXT.scaleb(Decimal(two), digits)), digits


def greatest_divisor(one: str, two: str) -> str:
    found = _whole(one, two)
    return "NaN" if found is None else _shown(_CONTEXT.scaleb(Decimal(math.gcd(*found[:2])), -found[2]), found[2])


def least_multiple(one: str, two: str) -> str:
    found = _whole(one, two)
    return "NaN" if found is None else _shown(_CONTEXT.scaleb(Decimal(math.lcm(*found[:2])), -found[2]), found[2])


def factorial(number: int) -> str:
    if number < 0:
        raise KalamError("22003", "factorial of a negative number is undefined")
    if number > 32177:
        raise KalamError("22003", "value overflows numeric format")
    return f"{Decimal(math.factorial(number)):f}"


def total(values: Sequence[str | None]) -> str | None:
    """sum(), NULLs left out."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    if any(map(_special, present)):
        result = "0"
        for value in present:
            if _special(value):
                result = add(result, value)
        return result
    number = Decimal(0)
    for value in present:
        number = _CONTEXT.add(number, Decimal(value))
    return _shown(number, max(map(_scale, present)))


def _rooted(value: str, scale: int) -> str:
    """The square root, rounded half up; one digit more than asked for decides."""
    digits = scale + 1
    root = math.isqrt(int(_CONTEXT.multiply(Decimal(value), Decimal(10) ** (2 * digits))))
    return _shown(_CONTEXT.scaleb(Decimal(root), -digits), scale)


def square_root(value: str) -> str:
    if value[0] == "-" and value.strip("-0."):
        raise KalamError("2201F", "cannot take square root of a negative number")
    if _special(value):
        return value
    weight = (_leading(value)[0] + 1) * _GROUP // 2 - 1
    return _rooted(value, min(1000, max(_MIN_DIGITS - weight, _scale(value), 0)))


def _deviation(*, sample: bool, root: bool) -> Callable[[Sequence[str | None]], str | None]:
    def work(values: Sequence[str | None]) -> str | None:
        present = [value for value in values if value is not None]
        count = len(present)
        if count <= sample:
            return None
        if any(map(_special, present)):
            return "NaN"
        one, squares = total(present), total([multiply(value, value) for value in present])
        assert one is not None
        assert squares is not None
        above = subtract(multiply(str(count), squares), multiply(one, one))
        if above[0] == "-" or not above.strip("0."):
            return "0"
        variance = divide(above, str(count * (count - sample)))
        return _rooted(variance, _scale(variance)) if root else variance

    return work


def distinct(values: Sequence[str | None]) -> list[str]:
    """Of equal numbers the first."""
    found: dict[bytes, str] = {}
    for value in values:
        if value is not None:
            found.setdefault(numeric_bytes(value), value)
    return list(found.values())


# ---------- floats and dates ----------
_OVERFLOW, _UNDERFLOW = "value out of range: overflow", "value out of range: underflow"


def power(one: float, two: float) -> float:
    if one == 0 and two < 0:
        raise KalamError("2201F", "zero raised to a negative power is undefined")
    if one < 0 and math.isfinite(two) and two != int(two):
        raise KalamError("2201F", "a negative number raised to a non-integer power yields a complex result")
    try:
        value = math.pow(one, two)
    except (OverflowError, ValueError):
        raise KalamError("22003", _OVERFLOW) from None
    if value == 0 and one != 0 and math.isfinite(one) and math.isfinite(two):
        raise KalamError("22003", _UNDERFLOW)
    return value


def exponential(value: float) -> float:
    try:
        found = math.exp(value)
    except OverflowError:
        raise KalamError("22003", _OVERFLOW) from None
    if found == 0 and math.isfinite(value):
        raise KalamError("22003", _UNDERFLOW)
    return found


def cube_root(value: float) -> float:
    return math.cbrt(value)


def hyperbolic(function: Callable[[float], float]) -> Callable[[float], float]:
    """sinh and cosh: an overflow is infinity there."""
    def work(value: float) -> float:
        try:
            return function(value)
        except OverflowError:
            return math.copysign(math.inf, value) if function is math.sinh else math.inf

    return work


# ---------- bits ----------
def _wrapped(value: int, bits: int) -> int:
    half = 1 << (bits - 1)
    return (value + half) % (1 << bits) - half


def shifted_left(value: int, places: int, bits: int) -> int:
    """As a processor does that takes the number modulo the width; smallint is shifted as an integer."""
    return _wrapped(value << (places & (max(bits, 32) - 1)), bits)


def shifted_right(value: int, places: int, bits: int) -> int:
    return value >> (places & (max(bits, 32) - 1))


def make_date(year: int, month: int, day: int) -> str:
    shown = f"{abs(year):04}-{month:02}-{day:02}"
    try:
        if year == 0 or month < 1 or day < 1:
            raise KalamError("22008", "")
        return types.write_text(_DATE, _DATE.read(shown + (" BC" if year < 0 else "")))
    except KalamError:
        minus = "-" if year < 0 else ""
        raise KalamError("22008", f"date field value out of range: {minus}{abs(year)}-{month:02}-{day:02}") from None


def make_timestamp(year: int, month: int, day: int, hour: int, minute: int, second: float) -> str:
    date = make_date(year, month, day)
    micros = -1 if second != second or abs(second) > 100 else round(second * 1_000_000)
    if not (0 <= hour <= 24 and 0 <= minute < 60 and 0 <= micros <= 60_000_000) or (
            (hour * 60 + minute) * 60_000_000 + micros > types.MICROS_PER_DAY):
        raise KalamError("22008", f"time field value out of range: {hour}:{minute:02}:{second:02g}")
    value = _DATE.read(date) * types.MICROS_PER_DAY + (hour * 60 + minute) * 60_000_000 + micros
    if not types._FIRST_MICROS <= value < types._END_MICROS:
        raise KalamError("22008", f"timestamp out of range: {year}-{month:02}-{day:02} {hour}:{minute:02}:{second:02g}")
    return types.write_text(types.by_name("timestamp"), value)


def of_epoch(seconds: float) -> str:
    """to_timestamp(), as text."""
    if seconds != seconds:
        raise KalamError("22008", "timestamp cannot be NaN")
    if seconds in (float("inf"), float("-inf")):
        return "infinity" if seconds > 0 else "-infinity"
    micros = round((seconds - 946_684_800) * 1_000_000)
    if not types._FIRST_MICROS <= micros < types._END_MICROS:
        raise KalamError("22008", f'timestamp out of range: "{seconds:g}"')
    return types.write_text(types.by_name("timestamptz"), micros)


_DATE = types.by_name("date")


# ---------- text ----------
def lower(text: str) -> str:
    """Letter by letter, as the C library has it: of the one that becomes two (U+0130) the first."""
    return "".join(char.lower()[0] for char in text)


def upper(text: str) -> str:
    """Letter by letter: one that would become two takes its title case, if that is one, or stays."""
    return "".join(next((new for new in (char.upper(), char.title()) if len(new) == 1), char) for char in text)


def initcap(text: str) -> str:
    made, inside = [], False
    for char in text:
        made.append((lower if inside else upper)(char))
        inside = char.isalnum()
    return "".join(made)


def c_initcap(text: str) -> str:
    """Under the locale C, in which letters and digits are those of ASCII."""
    return re.sub("[A-Za-z0-9]+", lambda word: word[0].capitalize(), text)


def like(text: str, pattern: str) -> bool:
    """LIKE as PostgreSQL goes about it, which tells what an escape character at the pattern's end comes to."""
    return _like(text, 0, pattern, 0) is True


def _like(text: str, at: int, pattern: str, start: int) -> bool | None:
    """None: no later beginning would match either."""
    place, length = start, len(text)
    while at < length and place < len(pattern):
        sign = pattern[place]
        if sign == "%":
            while place < len(pattern) and pattern[place] in "%_":
                if pattern[place] == "_":
                    if at >= length:
                        return None
                    at += 1
                place += 1
            if place == len(pattern):
                return True
            first = _literal(pattern, place)
            while at < length:
                if text[at] == first and (found := _like(text, at, pattern, place)) is not False:
                    return found
                at += 1
            return None
        if sign != "_" and text[at] != _literal(pattern, place):
            return False
        at, place = at + 1, place + 1 + (sign == "\\")
    if at < length:
        return False
    return True if not pattern[place:].strip("%") else None


def _literal(pattern: str, place: int) -> str:
    if pattern[place] != "\\":
        return pattern[place]
    if place + 1 == len(pattern):
        raise KalamError("22025", "LIKE pattern must not end with escape character")
    return pattern[place + 1]


def translate(text: str, old: str, new: str) -> str:
    table: dict[int, str | None] = {}
    for place, char in enumerate(old):
        table.setdefault(ord(char), new[place] if place < len(new) else None)
    return text.translate(table)


def split_part(text: str, delimiter: str, number: int) -> str:
    if number == 0:
        raise KalamError("22023", "field position must not be zero")
    parts = text.split(delimiter) if delimiter else [text]
    if not text:
        return ""
    place = number - 1 if number > 0 else len(parts) + number
    return parts[place] if 0 <= place < len(parts) else ""


def pad(text: str, length: int, fill: str, *, left: bool) -> str:
    length = max(0, length)
    if len(text) >= length or not fill:
        return text[:length]
    if length > 10_000_000:
        raise KalamError("54000", "requested length too large")
    more = (fill * ((length - len(text)) // len(fill) + 1))[: length - len(text)]
    return more + text if left else text + more


def to_length(text: str, typmod: int, explicit: bool) -> str:
    """varchar(n), whose modifier is n + 4: cut by a cast, refused by an assignment unless only spaces go."""
    length = typmod - 4
    if length < 0 or len(text) <= length:
        return text
    if not explicit and text[length:].strip(" "):
        raise KalamError("22001", f"value too long for type character varying({length})")
    return text[:length]


def repeated(text: str, count: int) -> str:
    if len(text) * max(0, count) > 100_000_000:
        raise KalamError("54000", "requested length too large")
    return text * max(0, count)


def character(code: int) -> str:
    if code < 0:
        raise KalamError("22023", "character number must be positive")
    if code == 0:
        raise KalamError("54000", "null character not permitted")
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise KalamError("54000", f"requested character not valid for encoding: {code}")
    return chr(code)


def quote_literal(text: str) -> str:
    quoted = "'" + text.replace("'", "''") + "'"
    return "E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


_ENCODINGS = {"hex", "base64", "escape"}


def encode(data: bytes, name: str) -> str:
    import base64

    match name.lower():
        case "hex":
            return data.hex()
        case "base64":
            text = base64.b64encode(data).decode()
            return "\n".join(text[place : place + 76] for place in range(0, len(text), 76))
        case "escape":
            return "".join(
                "\\\\" if byte == 92 else chr(byte) if 0 < byte < 128 else f"\\{byte:03o}" for byte in data)
    raise KalamError("22023", f'unrecognized encoding: "{name}"')


def decode(text: str, name: str) -> bytes:
    import base64
    import binascii

    try:
        match name.lower():
            case "hex":
                return bytes.fromhex(text)
            case "base64":
                return base64.b64decode("".join(text.split()), validate=True)
            case "escape":
                return bytes(types.by_name("bytea").read(text)) if not text.startswith("\\x") else text.encode()
    except (ValueError, binascii.Error):
        raise KalamError("22023", f"invalid {name.lower()} data") from None
    raise KalamError("22023", f'unrecognized encoding: "{name}"')


# ---------- json ----------
def _json(text: str) -> Any:
    return types._parse_json(text)


def _json_text(value: Any) -> str:
    return types._jsonb_text(value)


def _step(value: Any, key: str | int) -> tuple[bool, Any]:
    if isinstance(key, int):
        if isinstance(value, list) and -len(value) <= key < len(value):
            return True, value[key]
        return False, None
    if isinstance(value, dict) and key in value:
        return True, value[key]
    return False, None


def _item(text: str, key: str | int) -> tuple[bool, Any]:
    """A scalar is its own first item, as jsonb keeps it."""
    value = _json(text)
    if key in (0, -1) and isinstance(key, int) and not isinstance(value, list | dict):
        return True, value
    return _step(value, key)


def json_get(text: str, key: str | int) -> str | None:
    found, value = _item(text, key)
    return _json_text(value) if found else None


def _scalar(value: Any) -> str | None:
    if value is None:
        return None
    return str(value) if isinstance(value, str) else _json_text(value)


def json_get_text(text: str, key: str | int) -> str | None:
    found, value = _item(text, key)
    return _scalar(value) if found else None


#: what strtol() reads; in a path it must fit an integer
_PLACE = re.compile(r"[ \t\n\r\v\f]*[+-]?\d{1,20}", re.ASCII)


def _place(part: str) -> int | None:
    """Of an item of an array."""
    place = int(part) if _PLACE.fullmatch(part) else 1 << 31
    return place if -(1 << 31) <= place < 1 << 31 else None


def _walk(text: str, path: Sequence[str | None]) -> tuple[bool, Any]:
    if None in path:
        return False, None
    value, found = _json(text), True
    for part in path:
        assert part is not None
        key = _place(part) if isinstance(value, list) else part
        found, value = (False, None) if key is None else _step(value, key)
        if not found:
            return False, None
    return found, value


def json_path(text: str, path: Sequence[str | None]) -> str | None:
    found, value = _walk(text, path)
    return _json_text(value) if found else None


def json_path_text(text: str, path: Sequence[str | None]) -> str | None:
    found, value = _walk(text, path)
    return _scalar(value) if found else None


_SPACE = re.compile(r"[ \t\n\r]*")
_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _parts(text: str) -> Iterator[tuple[str | int, str]]:
    """Members of an object or items of an array of type json, as they are written."""
    at, place = _skip(text, 0), 0
    opening = text[at]
    if opening not in "{[":
        return
    at = _skip(text, at + 1)
    while text[at] not in "}]":
        key: str | int = place
        if opening == "{":
            key, at = _SCANNER.raw_decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # the colon
        _, end = _SCANNER.raw_decode(text, at)
        yield key, text[at:end]
        at, place = _skip(text, end), place + 1
        if text[at] == ",":
            at = _skip(text, at + 1)


def written_get(text: str, key: str | int) -> str | None:
    """-> of type json: of equal names the last."""
    parts = list(_parts(text))
    if isinstance(key, int) and key < 0:
        key += len(parts)
    return next((part for name, part in reversed(parts) if name == key and type(name) is type(key)), None)


def _written_text(part: str | None) -> str | None:
    if part is None or part.strip() == "null":
        return None
    return str(json.loads(part)) if part.lstrip()[0] == '"' else part


def written_get_text(text: str, key: str | int) -> str | None:
    return _written_text(written_get(text, key))


def written_path(text: str, path: Sequence[str | None]) -> str | None:
    found: str | None = None if None in path else text
    for part in path:
        if part is None or found is None:
            return None
        key = _place(part) if found.lstrip().startswith("[") else part
        found = None if key is None else written_get(found, key)
    return found


def written_path_text(text: str, path: Sequence[str | None]) -> str | None:
    return _written_text(written_path(text, path))


def read_array(text: str) -> list[str | None]:
    """Elements of a one-dimensional array's text."""
    if not (text.startswith("{") and text.endswith("}")):
        raise KalamError("22P02", f'malformed array literal: "{text}"')
    body, parts, place = text[1:-1], list[str | None](), 0
    while place < len(body):
        quoted, made = False, ""
        while place < len(body) and body[place] != ",":
            if body[place] == '"':
                quoted, place = True, place + 1
                while place < len(body) and body[place] != '"':
                    place += body[place] == "\\"
                    made += body[place : place + 1]
                    place += 1
            elif body[place] in "{}":
                raise KalamError("22P02", f'malformed array literal: "{text}"')
            else:
                made += body[place]
            place += 1
        place += 1
        parts.append(made if quoted else None if made.strip().upper() == "NULL" else made.strip())
    return parts


def json_typeof(text: str) -> str:
    value = _json(text)
    if isinstance(value, types._Number):
        return "number"
    if value is None:
        return "null"
    return {bool: "boolean", str: "string", list: "array", dict: "object"}[type(value)]


def json_array_length(text: str) -> int:
    value = _json(text)
    if not isinstance(value, list):
        what = "a non-array" if isinstance(value, dict) else "a scalar"
        raise KalamError("22023", f"cannot get array length of {what}")
    return len(value)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, types._Number) or isinstance(two, types._Number):
        return isinstance(one, types._Number) and isinstance(two, types._Number) and Decimal(one) == Decimal(two)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_same(value, two[key]) for key, value in one.items())
    return type(one) is type(two) and bool(one == two)


def _contains(one: Any, two: Any, *, top: bool = False) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        return all(key in one and _contains(one[key], value) for key, value in two.items())
    if isinstance(one, list) and isinstance(two, list):
        return all(any(_contains(item, value) if isinstance(value, list | dict) and type(item) is type(value)
                       else _same(item, value) for item in one) for value in two)
    if top and isinstance(one, list) and not isinstance(two, dict):
        return any(_same(item, two) for item in one)
    return _same(one, two)


def json_contains(one: str, two: str) -> bool:
    return _contains(_json(one), _json(two), top=True)


def _is_there(value: Any, key: str) -> bool:
    return (isinstance(value, dict) and key in value) or (
        isinstance(value, list) and any(type(item) is str and item == key for item in value)
    ) or (type(value) is str and value == key)


def json_exists(text: str, key: str) -> bool:
    return _is_there(_json(text), key)


def json_exists_any(text: str, keys: Sequence[str | None]) -> bool:
    value = _json(text)
    return any(key is not None and _is_there(value, key) for key in keys)


def json_exists_all(text: str, keys: Sequence[str | None]) -> bool:
    value = _json(text)
    return all(key is None or _is_there(value, key) for key in keys)


def _part(place: int, text: str) -> int | None:
    parts = kept.interval_parts(text)
    return None if parts is None else parts[place]


# ---------- what the query engine is given ----------
@dataclass(frozen=True, slots=True)
class Function:
    name: str
    args: tuple[str, ...]  # DuckDB's types
    result: str
    work: Callable[..., Any]
    arrays: Callable[..., pa.Array] | None = None  # the same of whole columns


_NUMERIC, _REAL = types.by_name("numeric"), types.by_name("float4")
_V, _I, _B, _L, _Y = "VARCHAR", "INTEGER", "BOOLEAN", "VARCHAR[]", "BLOB"
FUNCTIONS: tuple[Function, ...] = (
    Function("n_add", (_V, _V), _V, add), Function("n_sub", (_V, _V), _V, subtract),
    Function("n_mul", (_V, _V), _V, multiply), Function("n_div", (_V, _V), _V, divide),
    Function("n_mod", (_V, _V), _V, modulo), Function("n_quo", (_V, _V), _V, quotient),
    Function("n_neg", (_V,), _V, negate), Function("n_abs", (_V,), _V, absolute), Function("n_sign", (_V,), _V, sign),
    Function("n_round", (_V, _I), _V, rounded), Function("n_trunc", (_V, _I), _V, truncated),
    Function("n_ceil", (_V,), _V, ceiling), Function("n_floor", (_V,), _V, floored),
    Function("n_key", (_V,), "BLOB", numeric_bytes), Function("n_sum", ("VARCHAR[]",), _V, total),
    Function("n_scale", (_V,), _I, scale), Function("n_min_scale", (_V,), _I, lambda value: scale(trimmed(value))),
    Function("n_trim", (_V,), _V, trimmed), Function("n_sqrt", (_V,), _V, square_root),
    Function("n_var_samp", ("VARCHAR[]",), _V, _deviation(sample=True, root=False)),
    Function("n_var_pop", ("VARCHAR[]",), _V, _deviation(sample=False, root=False)),
    Function("n_stddev_samp", ("VARCHAR[]",), _V, _deviation(sample=True, root=True)),
    Function("n_stddev_pop", ("VARCHAR[]",), _V, _deviation(sample=False, root=True)),
    Function("n_distinct", ("VARCHAR[]",), "VARCHAR[]", distinct),
    Function("n_int2", (_V,), "SMALLINT", lambda value: to_integer(value, 16)),
    Function("n_int4", (_V,), _I, lambda value: to_integer(value, 32)),
    Function("n_int8", (_V,), "BIGINT", lambda value: to_integer(value, 64)),
    Function("n_float", (_V,), "DOUBLE", to_float), Function("n_real", (_V,), "FLOAT", _REAL.read),
    Function("n_gcd", (_V, _V), _V, greatest_divisor), Function("n_lcm", (_V, _V), _V, least_multiple),
    Function("n_factorial", ("BIGINT",), _V, factorial), Function("n_of_float", ("DOUBLE", _I), _V, from_float),
    Function("n_typmod", (_V, _I), _V, lambda value, typmod: types.apply_typmod(_NUMERIC, value, typmod)),
    Function("f_power", ("DOUBLE", "DOUBLE"), "DOUBLE", power), Function("f_exp", ("DOUBLE",), "DOUBLE", exponential),
    Function("f_cbrt", ("DOUBLE",), "DOUBLE", cube_root), Function("d_make", (_I, _I, _I), _V, make_date),
    Function("d_of_epoch", ("DOUBLE",), _V, of_epoch),
    Function("d_make_timestamp", (_I, _I, _I, _I, _I, "DOUBLE"), _V, make_timestamp),
    Function("t_lower", (_V,), _V, lower), Function("t_upper", (_V,), _V, upper),
    Function("t_initcap", (_V,), _V, initcap), Function("t_like", (_V, _V), _B, like),
    Function("t_c_initcap", (_V,), _V, c_initcap),
    Function("t_translate", (_V, _V, _V), _V, translate),
    Function("t_split", (_V, _V, _I), _V, split_part),
    Function("t_lpad", (_V, _I, _V), _V, lambda text, length, fill: pad(text, length, fill, left=True)),
    Function("t_rpad", (_V, _I, _V), _V, lambda text, length, fill: pad(text, length, fill, left=False)),
    Function("t_repeat", (_V, _I), _V, repeated), Function("t_chr", (_I,), _V, character),
    Function("t_quote", (_V,), _V, quote_literal), Function("t_encode", ("BLOB", _V), _V, encode),
    Function("t_decode", (_V, _V), "BLOB", decode), Function("t_reverse", (_V,), _V, lambda text: text[::-1]),
    Function("j_get", (_V, _V), _V, json_get), Function("j_item", (_V, _I), _V, json_get),
    Function("j_get_text", (_V, _V), _V, json_get_text), Function("j_item_text", (_V, _I), _V, json_get_text),
    Function("j_path", (_V, _L), _V, json_path), Function("j_path_text", (_V, _L), _V, json_path_text),
    Function("o_get", (_V, _V), _V, written_get), Function("o_item", (_V, _I), _V, written_get),
    Function("o_get_text", (_V, _V), _V, written_get_text), Function("o_item_text", (_V, _I), _V, written_get_text),
    Function("o_path", (_V, _L), _V, written_path), Function("o_path_text", (_V, _L), _V, written_path_text),
    Function("j_typeof", (_V,), _V, json_typeof), Function("j_length", (_V,), _I, json_array_length),
    Function("j_contains", (_V, _V), _B, json_contains),
    Function("j_exists", (_V, _V), _B, json_exists), Function("j_any", (_V, _L), _B, json_exists_any),
    Function("j_all", (_V, _L), _B, json_exists_all), Function("j_canonical", (_V,), _V, types.canonical_jsonb),
    *(Function("key_" + each.name, (_V,), "BLOB", each.key, keyarrays.keys_of(each.name)) for each in kept.ORDERED
      if each.key is not None),
    *(Function("i_" + name, (_V,), duck, partial(_part, place)) for place, (name, duck) in enumerate(
        (("months", _I), ("days", _I), ("micros", "BIGINT")))),
    Function("i_add", (_V, _V), _V, kept.interval_sum), Function("i_sub", (_V, _V), _V, kept.interval_difference),
    Function("i_neg", (_V,), _V, kept.negative_interval),
    Function("i_time_plus", (_V, _V), _V, lambda time, interval: kept.time_moved(time, interval, 1)),
    Function("i_time_minus", (_V, _V), _V, lambda time, interval: kept.time_moved(time, interval, -1)),
    Function("i_between", (_V, _V), _V, kept.time_difference),
    Function("a_inside", (_V, _V), _B, kept.is_inside, keyarrays.networks(operator.gt, kept.is_inside)),
    Function("a_within", (_V, _V), _B, kept.is_inside_or_equal,
             keyarrays.networks(operator.ge, kept.is_inside_or_equal)),
    Function("a_overlaps", (_V, _V), _B, kept.overlaps, keyarrays.networks(lambda _, __: True, kept.overlaps)),
    Function("a_masklen", (_V,), _I, kept.mask_length),
    Function("a_network", (_V,), _V, kept.network),
    *(Function("as_" + each.name, (_V,), _V, each.read) for each in kept.ORDERED),
    *(Function("old_" + name, (_V,), duck, partial(read_integer, display=display, bits=bits, old=True))
      for name, duck, display, bits in (("int2", "SMALLINT", "smallint", 16), ("int4", _I, "integer", 32),
                                        ("int8", "BIGINT", "bigint", 64))),
    Function("old_numeric", (_V,), _V, partial(read_numeric, old=True)),
    Function("j_key", (_V,), "BLOB", kept.jsonb_key), Function("j_bool", (_V,), _B, documents.to_bool),
    Function("j_number", (_V, _V), _V, documents.to_number), Function("j_concat", (_V, _V), _V, documents.concatenated),
    Function("j_drop", (_V, _V), _V, documents.without_key), Function("j_drop_item", (_V, _I), _V,
                                                                      documents.without_place),
    Function("j_drop_all", (_V, _L), _V, documents.without_keys),
    Function("j_drop_path", (_V, _L), _V, documents.without_path),
    Function("j_set", (_V, _L, _V, _B), _V, documents.with_value),
    Function("j_insert", (_V, _L, _V, _B), _V, documents.inserted),
    Function("j_strip", (_V, _B), _V, documents.without_nulls), Function("j_pretty", (_V,), _V, documents.pretty),
    Function("b_part", (_Y, _I), _Y, octets.part), Function("b_part3", (_Y, _I, _I), _Y, octets.part),
    Function("b_place", (_Y, _Y), _I, octets.place), Function("b_overlay", (_Y, _Y, _I), _Y, octets.overlaid),
    Function("b_overlay4", (_Y, _Y, _I, _I), _Y, octets.overlaid), Function("b_byte", (_Y, _I), _I, octets.byte),
    Function("b_set_byte", (_Y, _I, _I), _Y, octets.with_byte), Function("b_bit", (_Y, "BIGINT"), _I, octets.bit),
    Function("b_set_bit", (_Y, "BIGINT", _I), _Y, octets.with_bit), Function("b_bits", (_Y,), "BIGINT", octets.bits),
    Function("b_trim", (_Y, _Y), _Y, octets.trimmed), Function("b_ltrim", (_Y, _Y), _Y, octets.trimmed_left),
    Function("b_rtrim", (_Y, _Y), _Y, octets.trimmed_right), Function("b_sha224", (_Y,), _Y, octets.sha224),
    Function("b_sha384", (_Y,), _Y, octets.sha384), Function("b_sha512", (_Y,), _Y, octets.sha512),
    Function("b_like", (_Y, _Y), _B, lambda data, pattern: like(data.decode("latin-1"), pattern.decode("latin-1"))),
    Function("t_varchar", (_V, _I, _B), _V, to_length),
    *(Function("a_" + name, ("DOUBLE[]", "DOUBLE[]"), "DOUBLE", regression.aggregate(name))
      for name in regression.NAMES),
    Function("i_left", ("BIGINT", _I, _I), "BIGINT", shifted_left),
    Function("i_right", ("BIGINT", _I, _I), "BIGINT", shifted_right),
    Function("f_sinh", ("DOUBLE",), "DOUBLE", hyperbolic(math.sinh)),
    Function("f_cosh", ("DOUBLE",), "DOUBLE", hyperbolic(math.cosh)),
    *(Function("r_" + work.__name__, (_V,), _V, work)
      for work in (patterns.plain, patterns.folded, patterns.replaced, patterns.first, patterns.whole)),
    Function("j_string", (_V,), _V, lambda text: json.dumps(text, ensure_ascii=False)),
)  # fmt: skip
#: types whose text is PostgreSQL's own work in both directions
_CONVERTED = {
    "bool": _B, "int2": "SMALLINT", "int4": _I, "int8": "BIGINT", "float4": "FLOAT", "float8": "DOUBLE",
    "numeric": _V, "bytea": "BLOB", "uuid": "UUID", "date": "DATE", "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMPTZ", "json": _V, "jsonb": _V,
}


def _passing(error: KalamError) -> ValueError:
    return ValueError(f"kalam:{error.sqlstate}:{error.message}:malak")


def _vectorized(function: Function) -> Callable[..., pa.Array]:
    work, kind = function.work, _ARROW[function.result]
    arrays = function.arrays
    if arrays is not None:
        return (lambda one: arrays(one)) if len(function.args) == 1 else (lambda one, two: arrays(one, two))

    def run(*columns: pa.ChunkedArray) -> pa.Array:
        try:
            made = [None if None in row else work(*row)
                    for row in zip(*(column.to_pylist() for column in columns), strict=True)]
        except KalamError as error:
            raise _passing(error) from None
        return pa.array(made, kind)

    match len(function.args):  # DuckDB counts a function's parameters
        case 1:
            return lambda one: run(one)
        case 2:
            return lambda one, two: run(one, two)
        case 3:
            return lambda one, two, three: run(one, two, three)
        case 4:
            return lambda one, two, three, four: run(one, two, three, four)
    return lambda one, two, three, four, five, six: run(one, two, three, four, five, six)


_ARROW = {_V: pa.string(), _I: pa.int32(), _B: pa.bool_(), "BLOB": pa.binary(), "SMALLINT": pa.int16(),
          "BIGINT": pa.int64(), "DOUBLE": pa.float64(), "FLOAT": pa.float32(), "VARCHAR[]": pa.list_(pa.string())}


#: integers that are read at once
_PLAIN = {"int2": "^-?[0-9]{1,4}$", "int4": "^-?[0-9]{1,9}$", "int8": "^-?[0-9]{1,18}$"}


def _reader(type_: types.PgType) -> Callable[[pa.Array], pa.Array]:
    plain = _PLAIN.get(type_.name)

    def read(column: pa.ChunkedArray) -> pa.Array:
        if plain is not None and pc.all(pc.match_substring_regex(column, plain)).as_py():
            return pa.concat_arrays(column.cast(type_.arrow).chunks)
        try:
            values = [None if text is None else type_.read(text) for text in column.to_pylist()]
            return native.to_array(type_, values)
        except KalamError as error:
            raise _passing(error) from None

    return read


def _writer(type_: types.PgType) -> Callable[[pa.Array], pa.Array]:
    def write(column: pa.Array) -> pa.Array:
        values = native.from_array(type_, pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray)
                                   else column)
        return pa.array([None if value is None else types.write_text(type_, value) for value in values], pa.string())

    return write


def install(connection: duckdb.DuckDBPyConnection) -> None:
    """Make all functions known to a database."""
    made: list[tuple[str, Callable[..., pa.Array], list[str], str]] = [
        (function.name, _vectorized(function), list(function.args), function.result) for function in FUNCTIONS
    ]
    for name, duck in _CONVERTED.items():
        type_ = types.by_name(name)
        made += [("read_" + name, _reader(type_), [_V], duck), ("write_" + name, _writer(type_), [duck], _V)]
    kinds = {name: duckdb.dtype(name) if not name.endswith("[]") else duckdb.list_type(duckdb.dtype(name[:-2]))
             for name in {word for _, _, args, result in made for word in (*args, result)}}
    for name, work, args, result in made:
        connection.create_function(
            "kalam_" + name, work, [kinds[word] for word in args], kinds[result], type=PythonUDFType.ARROW,
            null_handling=FunctionNullHandling.SPECIAL,
        )
