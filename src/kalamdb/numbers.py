"""Texts of numbers, as PostgreSQL's input functions read them.

Since PostgreSQL 16 integers and numeric take other bases (``0x1F``) and underscores (``1_000``); some bad texts fail
with another SQLSTATE; ``old`` asks for the rules of earlier versions. What is read ends where it stops to be a number:
being too large by then comes before the complaint about the rest.
"""

from __future__ import annotations

import re
from decimal import Decimal

from kalamdb.errors import KalamError

SPACE = " \t\n\r\v\f"  # what PostgreSQL skips around a number

_WHOLE = (r"([+-]?)(?:0[xX]((?:_?[0-9a-fA-F])+)|0[oO]((?:_?[0-7])+)|0[bB]((?:_?[01])+)|(\d+(?:_\d+)*))")
_BASES = ((2, 16), (3, 8), (4, 2), (5, 10))  # groups of _WHOLE
_INTEGER = re.compile(_WHOLE, re.ASCII)
_OTHER_BASE = re.compile(r"[+-]?0[xXoObB]")
_OLD_INTEGER = re.compile(r"([+-]?)()()()(\d+)", re.ASCII)
#: digits that no integer and no numeric has room for, leading zeros aside; Python reads only so many at once
_LONG = 70


def invalid(display: str, text: str) -> KalamError:
    return KalamError("22P02", f'invalid input syntax for type {display}: "{text}"')


def read_integer(text: str, display: str, bits: int, *, old: bool = False) -> int:
    """smallint, integer or bigint; 22P02, 22003."""
    word = text.strip(SPACE)
    found = (_OLD_INTEGER if old else _INTEGER).match(word)
    if found is None:
        raise invalid(display, text)
    group, base = next((group, base) for group, base in _BASES if found[group])
    digits = found[group].replace("_", "").lstrip("0") or "0"
    limit = 1 << (bits - 1)
    number = int(digits, base) if len(digits) <= _LONG else limit << 9
    # before another digit is taken, there must be room for it
    full = number > limit if old else number // base > limit // base
    if not full and found.end() < len(word):
        raise invalid(display, text)
    if full or number > limit - (found[1] != "-"):
        raise KalamError("22003", f'value "{text}" is out of range for type {display}')
    return -number if found[1] == "-" else number


# ---------- numeric ----------
MAX_INTEGRAL, MAX_SCALE = 131_072, 16_383  # digits before and after the point
_DIGITS = r"\d+(?:_\d+)*"
_NUMERIC = re.compile(rf"([+-]?)(?:({_DIGITS})(?:\.({_DIGITS})?)?|\.({_DIGITS}))(?:[eE]([+-]?{_DIGITS}))?", re.ASCII)
_OLD_NUMERIC = re.compile(r"([+-]?)(?:(\d+)(?:\.(\d+)?)?|\.(\d+))(?:[eE]([ \t\n\r\v\f]*[+-]?\d+))?", re.ASCII)
_SPECIAL = {"nan": "NaN", "infinity": "Infinity", "inf": "Infinity", "+infinity": "Infinity", "+inf": "Infinity",
            "-infinity": "-Infinity", "-inf": "-Infinity"}
_EXPONENT = 2**30 - 1  # the largest; before 16 it is too large


def _overflow() -> KalamError:
    return KalamError("22003", "value overflows numeric format")


def _exponent(text: str | None, *, old: bool) -> int:
    digits = (text or "0").replace("_", "").strip(SPACE)
    number = int(digits) if len(digits) < 1000 else int(digits.lstrip("+-0")[:20] or "0")
    if abs(number) > _EXPONENT - old:
        raise _overflow()
    return number


def _other_base(found: re.Match[str]) -> str:
    digits, base = next((found[group].replace("_", ""), base) for group, base in _BASES[:3] if found[group])
    digits = digits.lstrip("0") or "0"
    if len(digits) * (base.bit_length() - 1) > MAX_INTEGRAL * 4:
        raise _overflow()
    return f"{Decimal(int(digits, base)):f}"


def read_numeric(text: str, *, old: bool = False) -> str:
    """PostgreSQL's own text of a number: no exponent, its scale kept; 22P02, 22003."""
    word = text.strip(SPACE)
    special = _SPECIAL.get(word.lower())
    if special is not None:
        return special
    other = _INTEGER.match(word) if _OTHER_BASE.match(word) and not old else None
    if other is not None and other[5] is None:
        written = _written(other[1], _other_base(other), "", 0)
        if other.end() < len(word):
            raise invalid("numeric", text)
        return written
    found = (_OLD_NUMERIC if old else _NUMERIC).match(word)
    if found is None:
        raise invalid("numeric", text)
    exponent = _exponent(found[5], old=old)
    if found.end() < len(word):
        raise invalid("numeric", text)
    whole, fraction = (found[2] or "").replace("_", ""), (found[3] or found[4] or "").replace("_", "")
    return _written(found[1], whole, fraction, exponent)


def _written(sign: str, whole: str, fraction: str, exponent: int) -> str:
    digits, scale = (whole + fraction).lstrip("0"), max(0, len(fraction) - exponent)
    shift = max(0, exponent - len(fraction))  # zeros before the point
    if scale > MAX_SCALE or (digits and len(digits) + shift - scale > MAX_INTEGRAL):
        raise _overflow()
    if not digits:
        return "0." + "0" * scale if scale else "0"
    digits = (digits + "0" * shift).rjust(scale + 1, "0")
    point = len(digits) - scale
    return ("-" if sign == "-" else "") + digits[:point] + ("." + digits[point:] if scale else "")
