"""Arrays, ranges and multiranges in PostgreSQL's text form: read as people write them, written as PostgreSQL does.

The syntax follows the PostgreSQL documentation, "Array Input and Output Syntax" and "Range Input/Output". What
PostgreSQL wrote comes out unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cmp_to_key
from typing import Any

from kalamdb.errors import KalamError

Form = Callable[[str], str]
_SPACE = " \t\n\r\v\f"
MAX_DIMENSIONS = 6
_INT4 = 2**31

# ---------- arrays ----------
_TOKEN = re.compile(r'([{},])|"((?:[^"\\]|\\.)*)"|((?:[^{},"\\]|\\.)+)', re.DOTALL)
_DIMENSION = re.compile(r"\[\s*([+-]?\d+)\s*(?::\s*([+-]?\d+)\s*)?\]\s*", re.ASCII)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_QUOTED = re.compile(r'[{},"\\ \t\n\r\v\f]')


@dataclass(slots=True)
class _Open:
    """An array that has begun: what may come next, and how long it is so far."""

    count: int = 0
    wants_item: bool = True  # after a comma, or nothing yet


class _ArrayReader:
    def __init__(self, text: str, form: Form) -> None:
        self._text = text
        self._form = form
        self._lengths: list[int | None] = []  # by depth
        self._leaf: int | None = None  # the depth of elements

    def _bad(self, detail: str) -> KalamError:
        return KalamError("22P02", f'malformed array literal: "{self._text}"', detail=detail)

    def read(self) -> str:
        place = len(self._text) - len(self._text.lstrip(_SPACE))
        bounds, place = self._bounds(place)
        if self._text[place : place + 1] != "{":
            raise self._bad("Array contents must start with \"{\"." if bounds else
                            'Array value must start with "{" or dimension information.')
        body, place = self._body(place)
        if self._text[place:].strip(_SPACE):
            raise self._bad("Junk after closing right brace.")
        return self._written(bounds, body)

    def _bounds(self, place: int) -> tuple[list[tuple[int, int]], int]:
        bounds = []
        while found := _DIMENSION.match(self._text, place):
            low, high = (1, int(found[1])) if found[2] is None else (int(found[1]), int(found[2]))
            if not (-_INT4 <= low < _INT4 and -_INT4 <= high < _INT4 - 1):
                raise KalamError("22003" if not -_INT4 <= low < _INT4 or not -_INT4 <= high < _INT4 else "54000",
                                 "array bound is out of integer range")
            if high < low:
                raise KalamError("2202E", "upper bound cannot be less than lower bound")
            bounds.append((low, high))
            place = found.end()
        self._check_depth(len(bounds))
        if not bounds:
            return bounds, place
        if self._text[place : place + 1] != "=":
            raise self._bad('Missing "=" after array dimensions.')
        return bounds, len(self._text) - len(self._text[place + 1 :].lstrip(_SPACE))

    def _check_depth(self, depth: int) -> None:
        if depth > MAX_DIMENSIONS:
            raise KalamError("54000", f"number of array dimensions exceeds the maximum allowed ({MAX_DIMENSIONS})")

    def _body(self, place: int) -> tuple[list[str], int]:
        """Braces, commas and elements as they are written, to the last brace."""
        out: list[str] = []
        opened: list[_Open] = []
        while True:
            found = _TOKEN.match(self._text, place)
            if found is None:
                raise self._bad("Unexpected end of input.")
            place = found.end()
            mark = found[1]
            if mark is None:
                item = self._element(found)
                if item is not None:
                    self._begin_item(opened, leaf=True)
                    out.append(item)
            elif mark == "{":
                if opened:
                    self._begin_item(opened, leaf=False)
                opened.append(_Open())
                self._check_depth(len(opened))
                out.append(mark)
            elif mark == ",":
                if opened[-1].wants_item:
                    raise self._bad('Unexpected "," character.')
                opened[-1].wants_item = True
                out.append(mark)
            else:
                self._end(opened)
                out.append(mark)
                if not opened:
                    return out, place

    def _begin_item(self, opened: list[_Open], *, leaf: bool) -> None:
        if not opened[-1].wants_item:
            raise self._bad("Unexpected array element.")
        if leaf and self._leaf is None:
            self._leaf = len(opened)
        if self._leaf is not None and leaf != (len(opened) == self._leaf):
            raise self._ragged()
        opened[-1].wants_item = False
        opened[-1].count += 1

    def _end(self, opened: list[_Open]) -> None:
        one = opened.pop()
        depth = len(opened)
        if one.wants_item and one.count:
            raise self._bad('Unexpected "}" character.')
        self._lengths += [None] * (depth + 1 - len(self._lengths))
        if self._lengths[depth] not in (None, one.count):
            raise self._ragged()
        self._lengths[depth] = one.count

    def _ragged(self) -> KalamError:
        return self._bad("Multidimensional arrays must have sub-arrays with matching dimensions.")

    def _element(self, found: re.Match[str]) -> str | None:
        """As it is written; None for blanks between others."""
        if found[2] is not None:
            return _element_text(self._form(_ESCAPE.sub(r"\1", found[2])))
        word = found[3].strip(_SPACE)
        if word[-1:] == "\\":  # of an escaped blank, or of an escaped backslash
            word = _without_blanks(found[3])
        if not word:
            return None
        if word.upper() == "NULL":
            return "NULL"
        return _element_text(self._form(_ESCAPE.sub(r"\1", word)))

    def _written(self, bounds: list[tuple[int, int]], body: list[str]) -> str:
        lengths = self._lengths
        if self._leaf is None:  # of any dimensions, but empty
            if bounds:
                raise self._bad("Specified array dimensions do not match array contents.")
            return "{}"
        if bounds and [high - low + 1 for low, high in bounds] != lengths:
            raise self._bad("Specified array dimensions do not match array contents.")
        shown = "".join(body)
        if all(low == 1 for low, _ in bounds):
            return shown
        return "".join(f"[{low}:{high}]" for low, high in bounds) + "=" + shown


def _without_blanks(word: str) -> str:
    """Escaped blanks stay."""
    last = max((escape.end() for escape in _ESCAPE.finditer(word)), default=0)
    return word[:last].lstrip(_SPACE) + word[last:].rstrip(_SPACE)


def _element_text(text: str) -> str:
    if not text or text.upper() == "NULL" or _QUOTED.search(text):
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text


def read_array(text: str, form: Form) -> str:
    """``form`` makes of an element's text what PostgreSQL writes for it."""
    return _ArrayReader(text, form).read()


# ---------- ranges ----------
@dataclass(frozen=True, slots=True)
class Bounds:
    """What ranges are made of. ``step``: the next value of a discrete type, None for one that has no next."""

    read: Callable[[str], Any]
    write: Callable[[Any], str]
    step: Callable[[Any], Any] | None = None
    order: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True, slots=True)
class _Range:
    """Bounds of None are endless; ``low_in`` and ``high_in``: is the bound itself part of it?"""

    low: Any
    high: Any
    low_in: bool
    high_in: bool


_BOUND = re.compile(r'(?:[^,)\]"\\]|\\.|"(?:[^"\\]|\\.|"")*")*', re.DOTALL)


def _bad_range(kind: str, text: str, detail: str) -> KalamError:
    return KalamError("22P02", f'malformed {kind} literal: "{text}"', detail=detail)


def _bound_text(written: str) -> str:
    """Without quotes and escapes: a doubled quote within quotes is one."""
    out, quoted, place = [], False, 0
    while place < len(written):
        char = written[place]
        if char == "\\":
            place += 1
            out.append(written[place])
        elif char == '"' and quoted and written[place + 1 : place + 2] == '"':
            place += 1
            out.append('"')
        elif char == '"':
            quoted = not quoted
        else:
            out.append(char)
        place += 1
    return "".join(out)


def _blank_end(text: str, place: int) -> int:
    while place < len(text) and text[place] in _SPACE:
        place += 1
    return place


def _parse_range(text: str, place: int, bounds: Bounds, kind: str) -> tuple[_Range | None, int]:
    """From its first mark on; None for an empty one. The place behind it, too."""
    if text[place : place + 5].lower() == "empty":
        return None, place + 5
    if text[place : place + 1] not in ("[", "("):
        raise _bad_range(kind, text, "Missing left parenthesis or bracket.")
    low_in = text[place] == "["
    low, place = _parse_bound(text, place + 1, bounds)
    if text[place : place + 1] != ",":
        ended = place >= len(text)
        raise _bad_range(kind, text, "Unexpected end of input." if ended else "Missing comma after lower bound.")
    high, place = _parse_bound(text, place + 1, bounds)
    if text[place : place + 1] not in ("]", ")"):
        ended = place >= len(text)
        raise _bad_range(kind, text, "Unexpected end of input." if ended else "Too many commas.")
    return _canonical(_Range(low, high, low_in, text[place] == "]"), bounds), place + 1


def _parse_bound(text: str, place: int, bounds: Bounds) -> tuple[Any, int]:
    found = _BOUND.match(text, place)
    assert found is not None
    if not found[0]:
        return None, place
    return bounds.read(_bound_text(found[0])), found.end()


def _canonical(given: _Range, bounds: Bounds) -> _Range | None:
    one = _checked(given, bounds)
    if one is None or bounds.step is None:
        return one
    low, high, low_in, high_in = one.low, one.high, one.low_in, one.high_in
    if low is not None and not low_in and (after := bounds.step(low)) is not None:
        low, low_in = after, True
    if high is not None and high_in and (after := bounds.step(high)) is not None:
        high, high_in = after, False
    return _checked(_Range(low, high, low_in, high_in), bounds)


def _checked(one: _Range, bounds: Bounds) -> _Range | None:
    low_in, high_in = one.low_in and one.low is not None, one.high_in and one.high is not None
    if one.low is not None and one.high is not None:
        low, high = bounds.order(one.low), bounds.order(one.high)
        if low > high:
            raise KalamError("22000", "range lower bound must be less than or equal to range upper bound")
        if low == high and not (low_in and high_in):
            return None
    return _Range(one.low, one.high, low_in, high_in)


def _written_bound(value: Any, bounds: Bounds) -> str:
    if value is None:
        return ""
    shown = bounds.write(value)
    return f'"{shown}"' if re.search(r"\s", shown) else shown  # a moment: nothing else in it needs quotes


def _written_range(one: _Range | None, bounds: Bounds) -> str:
    if one is None:
        return "empty"
    return (("[" if one.low_in else "(") + _written_bound(one.low, bounds) + ","
            + _written_bound(one.high, bounds) + ("]" if one.high_in else ")"))


def read_range(text: str, bounds: Bounds) -> str:
    one, place = _parse_range(text, _blank_end(text, 0), bounds, "range")
    if _blank_end(text, place) < len(text):
        raise _bad_range("range", text, 'Junk after "empty" key word.' if one is None and text[place - 1] in "yY"
                         else "Junk after right parenthesis or bracket.")
    return _written_range(one, bounds)


# ---------- multiranges ----------
def read_multirange(text: str, bounds: Bounds) -> str:
    place = _blank_end(text, 0)
    if text[place : place + 1] != "{":
        raise _bad_range("multirange", text, "Missing left brace.")
    found: list[_Range] = []
    place = _blank_end(text, place + 1)
    while text[place : place + 1] != "}":
        if place >= len(text):
            raise _bad_range("multirange", text, "Unexpected end of input.")
        if text[place] not in "[(" and text[place : place + 5].lower() != "empty":
            raise _bad_range("multirange", text, "Expected range start.")
        one, place = _parse_range(text, place, bounds, "multirange")
        if one is not None:
            found.append(one)
        place = _blank_end(text, place)
        if text[place : place + 1] == ",":
            place = _blank_end(text, place + 1)
            if text[place : place + 1] == "}":
                raise _bad_range("multirange", text, "Expected range start.")
        elif text[place : place + 1] not in ("}", ""):
            raise _bad_range("multirange", text, "Expected comma or end of multirange.")
    if _blank_end(text, place + 1) < len(text):
        raise _bad_range("multirange", text, "Junk after closing right brace.")
    return "{" + ",".join(_written_range(one, bounds) for one in _united(found, bounds)) + "}"


def _low_order(one: _Range, other: _Range, bounds: Bounds) -> int:
    if one.low is None or other.low is None:
        return (one.low is not None) - (other.low is not None)
    low, high = bounds.order(one.low), bounds.order(other.low)
    return (low > high) - (low < high) or other.low_in - one.low_in


def _ends_later(one: _Range, other: _Range, bounds: Bounds) -> bool:
    if one.high is None or other.high is None:
        return one.high is None
    first, second = bounds.order(one.high), bounds.order(other.high)
    return bool(first > second or (first == second and one.high_in and not other.high_in))


def _touches(one: _Range, later: _Range, bounds: Bounds) -> bool:
    """Is there nothing between them?"""
    if one.high is None or later.low is None:
        return True
    high, low = bounds.order(one.high), bounds.order(later.low)
    return bool(low < high or (low == high and (one.high_in or later.low_in)))


def _united(ranges: list[_Range], bounds: Bounds) -> list[_Range]:
    out: list[_Range] = []
    def by_low(one: _Range, other: _Range) -> int:
        return _low_order(one, other, bounds)

    for one in sorted(ranges, key=cmp_to_key(by_low)):
        if not out or not _touches(out[-1], one, bounds):
            out.append(one)
        elif _ends_later(one, out[-1], bounds):
            last = out[-1]
            out[-1] = _Range(last.low, one.high, last.low_in, one.high_in)
    return out


# ---------- what bounds are ----------
_DAY_INFINITY = 2**31 - 1
_LAST_DAY = 2_145_031_948


def _next_integer(limit: int, display: str) -> Callable[[int], int]:
    def after(value: int) -> int:
        if value + 1 >= limit:
            raise KalamError("22003", f"{display} out of range")
        return value + 1

    return after


def _next_day(value: int) -> int | None:
    if value in (_DAY_INFINITY, -_DAY_INFINITY - 1):
        return None
    if value >= _LAST_DAY:
        raise KalamError("22008", "date out of range")
    return value + 1


_type_named: Callable[[str], Any]


def _numeric_order(text: str) -> tuple[bool, Decimal]:
    """NaN is above all others."""
    return (True, Decimal(0)) if text == "NaN" else (False, Decimal(text))


def use_types(type_named: Callable[[str], Any]) -> None:
    """What finds a type by its name: elements are read and written as themselves. ``kalamdb.types``, which is made of
    this module, tells it."""
    global _type_named
    _type_named = type_named


def bounds_of(base: str) -> Bounds:
    """By the first part of a range type's name."""
    element = _type_named({"num": "numeric", "ts": "timestamp", "tstz": "timestamptz"}.get(base, base))
    step = {"int4": _next_integer(_INT4, "integer"), "int8": _next_integer(2**63, "bigint"),
            "date": _next_day}.get(base)
    if base == "num":
        return Bounds(element.read, element.write, order=_numeric_order)
    return Bounds(element.read, element.write, step)


def element_form(name: str) -> Form:
    """What PostgreSQL writes for the text of a value of a type."""
    type_ = _type_named(name)
    return lambda text: type_.write(type_.read(text))
