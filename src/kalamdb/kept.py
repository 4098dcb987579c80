"""Types whose values are kept as the text PostgreSQL writes, and what the server knows of them: reading and equality.

A reader takes what people write in server SQL and gives that text; what PostgreSQL wrote comes out of it unchanged. A
key form has equal bytes for values that are equal to PostgreSQL, however they are written. Those of ``ORDERED`` are in
PostgreSQL's order, too; others are canonical texts, in no order that anything may rely on. Where the text does as well
(``ORDERED_TEXTS``, ``EQUAL_TEXTS``), conditions compare it as it is, which takes no function. The forms of numbers,
bits and addresses follow the PostgreSQL documentation, "Data Types".
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_interface
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any

from kalamdb import composed
from kalamdb.errors import KalamError

_DAY = 86_400_000_000
_INT4, _INT8 = 2**31, 2**63
#: keys that are remembered, of each type where they take long to make
_REMEMBERED = lru_cache(maxsize=50_000)


@dataclass(frozen=True, slots=True)
class Kept:
    """``remote`` names the type in server SQL; ``key`` is None where it cannot be part of a key."""

    name: str  # in pg_catalog
    display: str
    remote: str
    read: Callable[[str], str]
    key: Callable[[str], bytes] | None = None
    shown: Callable[[bytes, int], tuple[str, int]] | None = None  # a text of a key's value, and where the next begins


def _invalid(display: str, text: str, sqlstate: str = "22P02") -> KalamError:
    return KalamError(sqlstate, f'invalid input syntax for type {display}: "{text}"')


# ---------- canonical texts ----------
def _text_key(text: str) -> bytes:
    return text.encode() + b"\x00"


def shown_text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(b"\x00", at)
    return data[at:end].decode(), end + 1


def _fixed_integer(value: int, width: int) -> bytes:
    return (value + (1 << (8 * width - 1))).to_bytes(width, "big")


def _read_integer(data: bytes, at: int, width: int) -> tuple[int, int]:
    return int.from_bytes(data[at : at + width], "big") - (1 << (8 * width - 1)), at + width


# ---------- times ----------
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(?:\.(\d{1,6})\d*)?)?", re.ASCII)
_ZONE = re.compile(r"([+-])(\d{1,2})(?::?(\d{2}))?(?::?(\d{2}))?", re.ASCII)


def _clock(display: str, word: str, text: str) -> int:
    found = _CLOCK.fullmatch(word)
    if found is None:
        raise _invalid(display, text, "22007")
    hour, minute, second = int(found[1]), int(found[2]), int(found[3] or 0)
    micros = ((hour * 60 + minute) * 60 + second) * 1_000_000 + int((found[4] or "").ljust(6, "0"))
    if minute > 59 or second > 60 or micros > _DAY:
        raise KalamError("22008", f'date/time field value out of range: "{text}"')
    return micros


def clock_text(micros: int) -> str:
    seconds, fraction = divmod(micros, 1_000_000)
    shown = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return shown + f".{fraction:06}".rstrip("0") if fraction else shown


def _read_time(text: str) -> str:
    return clock_text(_clock("time", text.strip(), text))


def _time_key(text: str) -> bytes:
    return _fixed_integer(_clock("time", text, text), 8)


def _shown_time(data: bytes, at: int) -> tuple[str, int]:
    micros, at = _read_integer(data, at, 8)
    return clock_text(micros), at


def _zoned(text: str) -> tuple[int, int]:
    """Microseconds of the day, and seconds east of Greenwich."""
    word = re.sub(r"(?i)\s*(z|utc|gmt)$", "+00", text.strip())
    cut = max(word.rfind("+"), word.rfind("-"))
    if cut < 0:
        word, cut = f"{word}+00", len(word)
    zone = _ZONE.fullmatch(word[cut:])
    if zone is None:
        raise _invalid("time with time zone", text, "22007")
    seconds = int(zone[2]) * 3600 + int(zone[3] or 0) * 60 + int(zone[4] or 0)
    if seconds >= 16 * 3600:
        raise KalamError("22009", f'time zone displacement out of range: "{text}"')
    return _clock("time with time zone", word[:cut].strip(), text), -seconds if zone[1] == "-" else seconds


def _zoned_text(micros: int, east: int) -> str:
    parts = [abs(east) // 3600, abs(east) // 60 % 60, abs(east) % 60]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return clock_text(micros) + ("-" if east < 0 else "+") + ":".join(f"{part:02}" for part in parts)


def _read_timetz(text: str) -> str:
    return _zoned_text(*_zoned(text))


@_REMEMBERED
def _timetz_key(text: str) -> bytes:
    """By the moment, then by the zone: of one moment the easternmost is the least."""
    micros, east = _zoned(text)
    return _fixed_integer(micros - east * 1_000_000, 8) + _fixed_integer(-east, 4)


def _shown_timetz(data: bytes, at: int) -> tuple[str, int]:
    moment, at = _read_integer(data, at, 8)
    west, at = _read_integer(data, at, 4)
    return _zoned_text(moment - west * 1_000_000, -west), at


# ---------- intervals ----------
_UNITS = {
    "microsecond": ("us", 1), "us": ("us", 1), "usec": ("us", 1), "millisecond": ("us", 1000), "ms": ("us", 1000),
    "msec": ("us", 1000), "second": ("us", 10**6), "sec": ("us", 10**6), "s": ("us", 10**6),
    "minute": ("us", 60 * 10**6), "min": ("us", 60 * 10**6), "m": ("us", 60 * 10**6),
    "hour": ("us", 3600 * 10**6), "hr": ("us", 3600 * 10**6), "h": ("us", 3600 * 10**6),
    "day": ("days", 1), "d": ("days", 1), "week": ("days", 7), "w": ("days", 7),
    "month": ("months", 1), "mon": ("months", 1), "year": ("months", 12), "yr": ("months", 12), "y": ("months", 12),
    "decade": ("months", 120), "century": ("months", 1200), "centurie": ("months", 1200),
}  # fmt: skip
_PIECE = re.compile(r"\s*(?:([+-]?\d+):(\d{1,2})(?::(\d{1,2})(?:\.(\d{1,6})\d*)?)?|([+-]?\d+)\s*([a-zA-Z]+))")
#: months, days and microseconds of an interval that PostgreSQL (since 17) takes for endless
_ENDLESS = {"infinity": (_INT4 - 1, _INT4 - 1, _INT8 - 1), "-infinity": (-_INT4, -_INT4, -_INT8)}


def read_interval(text: str) -> tuple[int, int, int]:
    """Months, days and microseconds of ``1 year 2 mons 3 days 04:05:06.7``."""
    total = {"months": 0, "days": 0, "us": 0}
    place, body = 0, text.strip()
    if re.fullmatch(r"[+-]?\d+", body):
        body += " s"
    ago = body.lower().endswith(" ago")
    body = body[:-4] if ago else body
    while place < len(body):
        found = _PIECE.match(body, place)
        if found is None:
            break
        hours, minutes, seconds, fraction, count, unit = found.groups()
        if hours is not None:
            micros = (int(hours.lstrip("+-")) * 60 + int(minutes)) * 60 + int(seconds or 0)
            micros = micros * 10**6 + int((fraction or "").ljust(6, "0"))
            total["us"] += -micros if hours[0] == "-" else micros
        else:
            word = unit.lower()
            known = _UNITS.get(word) or _UNITS.get(word.rstrip("s"))
            if known is None:
                break
            total[known[0]] += int(count) * known[1]
        place = found.end()
    if place < len(body) or not body:
        raise KalamError("22007", f'invalid input syntax for type interval: "{text}"',
                         hint="Write it as '1 year 2 months 3 days 04:05:06'.")
    sign = -1 if ago else 1
    return sign * total["months"], sign * total["days"], sign * total["us"]


#: as PostgreSQL writes it
_PLAIN_INTERVAL = re.compile(r"(?:(-?\d+) years? ?)?(?:([+-]?\d+) mons? ?)?(?:([+-]?\d+) days? ?)?"
                             r"(?:([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?", re.ASCII)


def _interval(text: str) -> tuple[int, int, int]:
    plain = _PLAIN_INTERVAL.fullmatch(text) if text else None
    if plain is not None:
        years, months, days, sign, hours, minutes, seconds, fraction = plain.groups()
        micros = 0
        if hours is not None:
            micros = ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1_000_000
            micros += int(fraction.ljust(6, "0")) if fraction else 0
        return _in_range(text, (12 * int(years or 0) + int(months or 0), int(days or 0),
                                -micros if sign == "-" else micros))
    return _in_range(text, _ENDLESS.get(text.strip().lower()) or read_interval(text))


def _in_range(text: str, found: tuple[int, int, int]) -> tuple[int, int, int]:
    months, days, micros = found
    if not (-_INT4 <= months < _INT4 and -_INT4 <= days < _INT4 and -_INT8 <= micros < _INT8):
        raise KalamError("22015", f'interval field value out of range: "{text}"')
    return found


def _count(count: int, unit: str) -> str:
    return f"{count} {unit}" + ("" if count == 1 else "s")


def interval_text(months: int, days: int, micros: int) -> str:
    """An interval as PostgreSQL writes it under IntervalStyle postgres."""
    parts: list[str] = []
    years = abs(months) // 12 if months >= 0 else -(abs(months) // 12)
    for count, unit in ((years, "year"), (months - 12 * years, "mon"), (days, "day")):
        if count:
            before = parts and parts[-1].startswith("-") and count > 0
            parts.append(("+" if before else "") + _count(count, unit))
    if micros or not parts:
        sign = "-" if micros < 0 else "+" if parts and parts[-1].startswith("-") else ""
        parts.append(sign + clock_text(abs(micros)))
    return " ".join(parts)


def _out_of_range() -> KalamError:
    return KalamError("22008", "interval out of range")


def _combined(one: str, two: str, sign: int) -> str:
    if one in _ENDLESS or two in _ENDLESS:
        endless = two if sign > 0 or two not in _ENDLESS else negative_interval(two)
        if one in _ENDLESS and endless in _ENDLESS and one != endless:
            raise _out_of_range()
        return one if one in _ENDLESS else endless
    made = tuple(left + sign * right for left, right in zip(_interval(one), _interval(two), strict=True))
    return _written(*made)


def _written(months: int, days: int, micros: int) -> str:
    if not (-_INT4 <= months < _INT4 and -_INT4 <= days < _INT4 and -_INT8 <= micros < _INT8):
        raise _out_of_range()
    return interval_text(months, days, micros)


def interval_sum(one: str, two: str) -> str:
    """Field by field; 22008 where one is too large, or of two that are endless in opposite directions."""
    return _combined(one, two, 1)


def interval_difference(one: str, two: str) -> str:
    return _combined(one, two, -1)


def negative_interval(text: str) -> str:
    if text in _ENDLESS:
        return "infinity" if text[0] == "-" else "-infinity"
    months, days, micros = _interval(text)
    return _written(-months, -days, -micros)


def interval_parts(text: str) -> tuple[int, int, int] | None:
    """Months, days and microseconds; None of an endless one."""
    return None if text in _ENDLESS else _interval(text)


def time_moved(time: str, interval: str, sign: int) -> str:
    """By the interval's hours, which may go past midnight; the number of microseconds wraps as PostgreSQL's does."""
    if interval in _ENDLESS:
        what = "add infinite interval to" if sign > 0 else "subtract infinite interval from"
        raise KalamError("22008", f"cannot {what} time")
    moved = _clock("time", time, time) + sign * _interval(interval)[2]
    return clock_text(((moved + _INT8) % (2 * _INT8) - _INT8) % _DAY)


def time_difference(one: str, two: str) -> str:
    return interval_text(0, 0, _clock("time", one, one) - _clock("time", two, two))


def _read_interval(text: str) -> str:
    word = text.strip().lower()
    return word if word in _ENDLESS else interval_text(*_interval(text))


@_REMEMBERED
def _interval_key(text: str) -> bytes:
    """A month has 30 days and a day 24 hours, as where PostgreSQL compares."""
    months, days, micros = _interval(text)
    return _fixed_integer((months * 30 + days) * _DAY + micros, 16)


def _shown_interval(data: bytes, at: int) -> tuple[str, int]:
    total, at = _read_integer(data, at, 16)
    sign, (days, micros) = (-1 if total < 0 else 1), divmod(abs(total), _DAY)
    months, days = (0, days) if days < _INT4 else divmod(days, 30)
    if months >= _INT4:
        return "-infinity" if total < 0 else "infinity", at
    return interval_text(sign * months, sign * days, sign * micros), at


# ---------- bits ----------
def _bits_key(bits: str) -> bytes:
    """Eight bits and how many of them count, 9 where more follow: a prefix is less than what it begins."""
    out = bytearray()
    for at in range(0, max(len(bits), 1), 8):
        part = bits[at : at + 8]
        out.append(int(part.ljust(8, "0"), 2))
        out.append(9 if at + 8 < len(bits) else len(part))
    return bytes(out)


def _shown_bits(data: bytes, at: int) -> tuple[str, int]:
    bits = ""
    while True:
        byte, count = data[at], data[at + 1]
        at += 2
        bits += f"{byte:08b}"[: min(count, 8)]
        if count <= 8:
            return bits, at


def _read_bits(text: str) -> str:
    if text[:1] in ("x", "X"):
        if not re.fullmatch(r"[0-9a-fA-F]*", text[1:], re.ASCII):
            raise KalamError("22P02", f'"{text}" is not a valid hexadecimal number')
        return "".join(f"{int(digit, 16):04b}" for digit in text[1:])
    bits = text[1:] if text[:1] in ("b", "B") else text
    if bits.strip("01"):
        raise KalamError("22P02", f'"{bits.strip("01")[0]}" is not a valid binary digit')
    return bits


# ---------- addresses ----------
def _address(display: str, text: str) -> IPv4Interface | IPv6Interface:
    try:
        return ip_interface(text.strip())
    except ValueError:
        raise _invalid(display, text) from None


_ADDRESS = re.compile(r"[0-9a-fA-F.:]+(?:/\d{1,3})?", re.ASCII)


def _read_address(display: str, text: str) -> IPv4Interface | IPv6Interface:
    """With a number of bits at most: netmasks and names of interfaces are nothing to PostgreSQL."""
    if _ADDRESS.fullmatch(text.strip()) is None:
        raise _invalid(display, text)
    return _address(display, text)


def _plain_address(address: IPv4Interface | IPv6Interface) -> str:
    """As PostgreSQL has it: the last two groups of ``::ffff:1.2.3.4`` and ``::1.2.3.4`` are an address of IPv4."""
    number = int(address.ip)
    if address.version == 6 and (number >> 32 == 0xFFFF or (number >> 32 == 0 and number >> 16)):
        return f"::{'ffff:' if number >> 32 else ''}{IPv4Address(number & 0xFFFFFFFF)}"
    return str(address.ip)


def _read_inet(text: str) -> str:
    address = _read_address("inet", text)
    length = address.network.prefixlen
    return _plain_address(address) + ("" if length == address.max_prefixlen else f"/{length}")


def _read_cidr(text: str) -> str:
    address = _read_address("cidr", text)
    if address.ip != address.network.network_address:
        raise KalamError("22P02", f'invalid cidr value: "{text}"', detail="Value has bits set to right of mask.")
    return f"{_plain_address(address)}/{address.network.prefixlen}"


@_REMEMBERED
def _inet_key(text: str) -> bytes:
    """Family, network (as ``_bits_key`` has it), then the whole address."""
    host, _, given = text.partition("/")
    version, family = (6, AF_INET6) if ":" in host else (4, AF_INET)
    packed = inet_pton(family, host)
    length = int(given) if given else 8 * len(packed)
    last = max(length - 1, 0) // 8
    network = bytearray((version,))
    for byte in packed[:last]:
        network += bytes((byte, 9))
    count = length - 8 * last
    return bytes(network) + bytes((packed[last] >> 8 - count << 8 - count, count)) + packed


@_REMEMBERED
def _bits_of(text: str) -> tuple[int, int, int, int]:
    """Of an address: its family, the number, how many bits of it are the network's, and how many there are."""
    host, _, given = text.partition("/")
    version, family = (6, AF_INET6) if ":" in host else (4, AF_INET)
    packed = inet_pton(family, host)
    width = 8 * len(packed)
    return version, int.from_bytes(packed, "big"), int(given) if given else width, width


def _shares(one: str, two: str, order: Callable[[int, int], bool]) -> bool:
    """Are the shorter network's bits the same in both, and the lengths in that order?"""
    (family1, number1, length1, width), (family2, number2, length2, _) = _bits_of(one), _bits_of(two)
    other = width - min(length1, length2)
    return family1 == family2 and order(length1, length2) and number1 >> other == number2 >> other


def is_inside(one: str, two: str) -> bool:
    return _shares(one, two, operator.gt)


def is_inside_or_equal(one: str, two: str) -> bool:
    return _shares(one, two, operator.ge)


def overlaps(one: str, two: str) -> bool:
    return _shares(one, two, lambda _, __: True)


def mask_length(text: str) -> int:
    return _bits_of(text)[2]


def network(text: str) -> str:
    """As a cidr."""
    version, number, length, width = _bits_of(text)
    kept = number >> (width - length) << (width - length)
    address = IPv4Interface(kept) if version == 4 else IPv6Interface(kept)
    return f"{_plain_address(address)}/{length}"


def as_cidr(text: str) -> str:
    """An inet's text as that of a cidr, which always has the number of bits."""
    return text if "/" in text else text + ("/128" if ":" in text else "/32")


def _shown_inet(data: bytes, at: int) -> tuple[str, int]:
    width = 4 if data[at] == 4 else 16
    network, at = _shown_bits(data, at + 1)
    host = data[at : at + width]
    return f"{ip_interface(host).ip}/{len(network)}", at + width


def _mac_reader(display: str, width: int) -> Callable[[str], str]:
    def read(text: str) -> str:
        digits = re.sub(r"[:.\-]", "", text.strip())
        if width == 8 and len(digits) == 12:
            digits = digits[:6] + "fffe" + digits[6:]
        if not re.fullmatch(rf"[0-9a-fA-F]{{{2 * width}}}", digits, re.ASCII):
            raise _invalid(display, text)
        return ":".join(re.findall("..", digits.lower()))

    return read


def _mac_key(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _mac_shower(width: int) -> Callable[[bytes, int], tuple[str, int]]:
    return lambda data, at: (data[at : at + width].hex(":"), at + width)


# ---------- padded text ----------
def _read_padded(text: str) -> str:
    return text


def unpadded(text: str) -> str:
    """Blanks at the end do not count."""
    return text.rstrip(" ")


def _padded_key(text: str) -> bytes:
    return _text_key(unpadded(text))


# ---------- json ----------
class _Written(str):
    """A number of a JSON text in one of its forms."""


def _plain_number(text: str) -> str:
    """One text for all that are equal: 1.50 and 1.5, 1e2 and 100."""
    shown = format(Decimal(text), "f")
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return "0" if shown in ("-0", "") else shown


def _json_form(value: Any) -> str:
    if isinstance(value, _Written):
        return str(value)
    if isinstance(value, dict):
        parts = sorted((key, _json_form(item)) for key, item in value.items())
        return "{" + ",".join(f"{json.dumps(key)}:{item}" for key, item in parts) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json_form, value)) + "]"
    return json.dumps(value)


def _json_text(text: str) -> str:
    def number(digits: str) -> _Written:
        return _Written(_plain_number(digits))

    return _json_form(json.loads(text, parse_int=number, parse_float=number))


def jsonb_key(text: str) -> bytes:
    return _text_key(_json_text(text))


# ---------- numbers in ranges ----------
_FRACTION = re.compile(r"(\.\d*?)0+(?!\d)")


def _number_text(text: str) -> str:
    """Without the zeros that end a fraction; the rest of a range's text has no digits."""
    return _FRACTION.sub(lambda found: "" if found[1] == "." else found[1], text)


def _range_reader(base: str, kind: str) -> Callable[[str], str]:
    bounds = cache(lambda: composed.bounds_of(base))
    read = composed.read_range if kind == "range" else composed.read_multirange
    return lambda text: read(text, bounds())


# ---------- arrays ----------
_ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^{},"]+)', re.DOTALL)


def _elements_mapped(text: str, form: Callable[[str], str]) -> str:
    """The array's text with every element in another form; bounds and NULLs stay."""
    bounds, braces, body = text.partition("{")

    def replace(found: re.Match[str]) -> str:
        if found[1] is None and found[2].upper() == "NULL":
            return found[2]
        value = found[2] if found[1] is None else re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL)
        shown = form(value).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{shown}"'

    return bounds + braces + _ELEMENT.sub(replace, body)


def _float_form(text: str) -> str:
    return "0" if text == "-0" else text


#: elements that are equal in more than one form, and one form of them; other types' texts are equal where values are
_FORMS: dict[str, Callable[[str], str]] = {
    "numeric": lambda text: text if text[-1:].isalpha() else _plain_number(text),
    "float4": _float_form, "float8": _float_form, "jsonb": _json_text, "bpchar": lambda text: text.rstrip(" "),
    "interval": lambda text: _interval_key(text).hex(), "numrange": _number_text, "nummultirange": _number_text,
}
#: elements that cannot be compared
_INCOMPARABLE = frozenset({"json", "embedding"})


def array_of(element: str, display: str, remote: str) -> Kept:
    """Arrays of a type by its name in pg_catalog, of any dimensions."""
    form = _FORMS.get(element)
    element_form = cache(lambda: composed.element_form(element))

    def key(text: str) -> bytes:
        return _text_key(text if form is None else _elements_mapped(text, form))

    return Kept("_" + element, f"{display}[]", f"{remote}[]",
                lambda text: composed.read_array(text, element_form()),
                None if element in _INCOMPARABLE else key, shown_text)


# ---------- vectors ----------
def vector_length(text: str) -> int:
    """Of ``[1,2.5,-3]``."""
    word = text.strip()
    if not word.startswith("[") or not word.endswith("]"):
        raise KalamError("22P02", f'invalid input syntax for type vector: "{text}"',
                         detail='Vector contents must start with "[" and end with "]".')
    try:
        parts = [float(part) for part in word[1:-1].split(",")]
    except ValueError:
        raise KalamError("22P02", f'invalid input syntax for type vector: "{text}"') from None
    if any(part - part != 0 for part in parts):  # pgvector's float4 has neither here
        raise KalamError("22000", "NaN and infinite values are not allowed in vector")
    return len(parts)


def _read_vector(text: str) -> str:
    vector_length(text)
    return text.strip()


# ---------- modifiers ----------
#: types with a length, and the largest
LIMITS = {"bpchar": 10_485_760, "bit": 83_886_080, "varbit": 83_886_080, "embedding": 16_000}


def assigned(name: str, text: str, typmod: int) -> str:
    """The value under an assignment cast to a length, or to so many digits of a second's fraction."""
    match name:
        case "bpchar":
            if len(text.rstrip(" ")) > typmod:
                raise KalamError("22001", f"value too long for type character({typmod})")
            return text[:typmod].ljust(typmod)
        case "bit" if len(text) != typmod:
            raise KalamError("22026", f"bit string length {len(text)} does not match type bit({typmod})")
        case "varbit" if len(text) > typmod:
            raise KalamError("22001", f"bit string too long for type bit varying({typmod})")
        case "embedding" if vector_length(text) != typmod:
            raise KalamError("22000", f"expected {typmod} dimensions, not {vector_length(text)}")
        case "time":
            return clock_text(_rounded(_clock("time", text, text), typmod))
        case "timetz":
            micros, east = _zoned(text)
            return _zoned_text(_rounded(micros, typmod), east)
        case "interval" if text not in _ENDLESS:
            months, days, micros = _interval(text)
            return interval_text(months, days, _rounded(micros, typmod))
    return text


def _rounded(micros: int, digits: int) -> int:
    unit = int(10 ** (6 - digits))
    rounded = (abs(micros) + unit // 2) // unit * unit
    return rounded if micros >= 0 else -rounded


# ---------- the table ----------
def _ranges() -> list[Kept]:
    made = []
    for base in ("int4", "int8", "num", "date", "ts", "tstz"):
        for kind in ("range", "multirange"):
            name = base + kind
            key = (lambda text: _text_key(_number_text(text))) if base == "num" else _text_key
            made.append(Kept(name, name, name, _range_reader(base, kind), key, shown_text))
    return made


#: types with an order of their own, in which the key form is, too
ORDERED: tuple[Kept, ...] = (
    Kept("time", "time without time zone", "time", _read_time, _time_key, _shown_time),
    Kept("timetz", "time with time zone", "timetz", _read_timetz, _timetz_key, _shown_timetz),
    Kept("interval", "interval", "interval", _read_interval, _interval_key, _shown_interval),
    Kept("bpchar", "character", "bpchar", _read_padded, _padded_key, shown_text),
    Kept("bit", "bit", "bit", _read_bits, _bits_key, _shown_bits),
    Kept("varbit", "bit varying", "varbit", _read_bits, _bits_key, _shown_bits),
    Kept("inet", "inet", "inet", _read_inet, _inet_key, _shown_inet),
    Kept("cidr", "cidr", "cidr", _read_cidr, _inet_key, _shown_inet),
    Kept("macaddr", "macaddr", "macaddr", _mac_reader("macaddr", 6), _mac_key, _mac_shower(6)),
    Kept("macaddr8", "macaddr8", "macaddr8", _mac_reader("macaddr8", 8), _mac_key, _mac_shower(8)),
)
#: of these, whose texts are in PostgreSQL's order by code points, and equal where values are
ORDERED_TEXTS = frozenset({"time", "bit", "varbit", "macaddr", "macaddr8"})
#: whose texts are equal where values are
EQUAL_TEXTS = ORDERED_TEXTS | {"timetz", "inet", "cidr"}
SCALARS: tuple[Kept, ...] = (*ORDERED, *_ranges(), Kept("embedding", "embedding", "embedding", _read_vector))
_BASIC = (
    ("bool", "boolean"), ("int2", "smallint"), ("int4", "integer"), ("int8", "bigint"), ("float4", "real"),
    ("float8", "double precision"), ("numeric", "numeric"), ("text", "text"), ("varchar", "character varying"),
    ("bytea", "bytea"), ("uuid", "uuid"), ("date", "date"), ("timestamp", "timestamp without time zone"),
    ("timestamptz", "timestamp with time zone"), ("json", "json"), ("jsonb", "jsonb"),
)
#: all of them by name: those above, and arrays of these and of the basic types
TYPES: dict[str, Kept] = {each.name: each for each in (
    *SCALARS, *(array_of(name, display, display) for name, display in _BASIC),
    *(array_of(each.name, each.display, each.remote) for each in SCALARS if each.name != "embedding"))}
