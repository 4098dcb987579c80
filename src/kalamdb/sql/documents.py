"""Changes to jsonb values by PostgreSQL's rules (its ``jsonfuncs.c``): ``||``, ``-``, ``#-``, jsonb_set and their kin.

Functions take and give a jsonb's text. Arrays are one-dimensional. Paths count from the end with negative numbers; what
they do not reach is left as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from kalamdb.errors import KalamError
from kalamdb.types import _jsonb_text, _Number, _parse_json

_BEFORE, _AFTER, _CREATE, _REPLACE, _DELETE = range(5)
_ADDING = (_BEFORE, _AFTER, _CREATE)
#: what strtoint() reads to the end
_INTEGER = re.compile(r"[ \t\n\r\v\f]*[+-]?\d+", re.ASCII)
_FIRST = -(1 << 31)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, _Number):
        return "numeric"
    return {bool: "boolean", str: "string", list: "array", dict: "object"}[type(value)]


# ---------- casts ----------
def _scalar(text: str, display: str, wanted: str) -> Any:
    value = _parse_json(text)
    found = _kind(value)
    if found != wanted:
        raise KalamError("22023", f"cannot cast jsonb {found} to type {display}")
    return value


def to_bool(text: str) -> bool:
    return bool(_scalar(text, "boolean", "boolean"))


def to_number(text: str, display: str) -> str:
    """A numeric, on its way to another type."""
    return str(_scalar(text, display, "numeric"))


# ---------- without a path ----------
def concatenated(one: str, two: str) -> str:
    left, right = _parse_json(one), _parse_json(two)
    if isinstance(left, dict) and isinstance(right, dict):
        return _jsonb_text(left | right)
    return _jsonb_text((left if isinstance(left, list) else [left]) + (right if isinstance(right, list) else [right]))


def _container(text: str, what: str) -> Any:
    value = _parse_json(text)
    if not isinstance(value, list | dict):
        raise KalamError("22023", f"cannot {what} scalar")
    return value


def without_keys(text: str, keys: Sequence[str | None]) -> str:
    """Without these keys of an object, or these strings of an array."""
    value = _container(text, "delete from")
    if isinstance(value, dict):
        return _jsonb_text({key: item for key, item in value.items() if key not in keys})
    return _jsonb_text([item for item in value if type(item) is not str or item not in keys])


def without_key(text: str, key: str) -> str:
    return without_keys(text, [key])


def without_place(text: str, place: int) -> str:
    value = _container(text, "delete from")
    if isinstance(value, dict):
        raise KalamError("22023", "cannot delete from object using integer index")
    if -len(value) <= place < len(value):
        del value[place]
    return _jsonb_text(value)


def without_nulls(text: str, arrays: bool = False) -> str:
    """Without what is null in objects, and where that is said, in arrays."""
    def stripped(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: stripped(item) for key, item in value.items() if item is not None}
        if isinstance(value, list):
            return [stripped(item) for item in value if not (arrays and item is None)]
        return value

    return _jsonb_text(stripped(_parse_json(text)))


def pretty(text: str) -> str:
    def shown(value: Any, indent: str) -> str:
        if not isinstance(value, list | dict):
            return _jsonb_text(value)
        deeper = indent + "    "
        if isinstance(value, dict):
            items = [f"{_jsonb_text(key)}: {shown(item, deeper)}" for key, item in value.items()]
        else:
            items = [shown(item, deeper) for item in value]
        opening, closing = "{}" if isinstance(value, dict) else "[]"
        body = ",".join(f"\n{deeper}{item}" for item in items)
        return f"{opening}{body}\n{indent}{closing}"

    return shown(_parse_json(text), "")


# ---------- by a path ----------
def _changed(value: Any, path: Sequence[str | None], level: int, new: Any, how: int) -> Any:
    if path[level] is None:
        raise KalamError("22004", f"path element at position {level + 1} is null")
    if isinstance(value, dict):
        return _changed_object(value, path, level, new, how)
    return _changed_array(value, path, level, new, how) if isinstance(value, list) else value


def _changed_object(value: dict[str, Any], path: Sequence[str | None], level: int, new: Any, how: int) -> Any:
    key, made = path[level], dict(value)
    assert key is not None
    if level < len(path) - 1:
        if key in made:
            made[key] = _changed(made[key], path, level + 1, new, how)
    elif key not in made:
        if how in _ADDING:
            made[key] = new
    elif how in (_BEFORE, _AFTER):
        raise KalamError("22023", "cannot replace existing key",
                         hint="Try using the function jsonb_set to replace key value.")
    elif how == _DELETE:
        del made[key]
    else:
        made[key] = new
    return made


def _place(part: str, level: int) -> int:
    place = int(part) if _INTEGER.fullmatch(part) else 1 << 31
    if not _FIRST <= place < 1 << 31:
        raise KalamError("22P02", f'path element at position {level + 1} is not an integer: "{part}"')
    return place


def _changed_array(value: list[Any], path: Sequence[str | None], level: int, new: Any, how: int) -> Any:
    part, made = path[level], list(value)
    assert part is not None
    place, last = _place(part, level), level == len(path) - 1
    before = place < -len(made)
    place = place + len(made) if place < 0 else place
    if not last:
        if not before and place < len(made):
            made[place] = _changed(made[place], path, level + 1, new, how)
    elif before or place >= len(made):
        if how in _ADDING:
            made.insert(0 if before else len(made), new)
    elif how in (_BEFORE, _AFTER):
        made.insert(place + (how == _AFTER), new)
    elif how == _DELETE:
        del made[place]
    else:
        made[place] = new
    return made


def _by_path(text: str, path: Sequence[str | None], new: str | None, how: int, what: str) -> str:
    value = _container(text, what)
    if not path or (not value and how not in _ADDING):
        return text
    return _jsonb_text(_changed(value, path, 0, None if new is None else _parse_json(new), how))


def without_path(text: str, path: Sequence[str | None]) -> str:
    return _by_path(text, path, None, _DELETE, "delete path in")


def with_value(text: str, path: Sequence[str | None], new: str, create: bool) -> str:
    """jsonb_set()."""
    return _by_path(text, path, new, _CREATE if create else _REPLACE, "set path in")


def inserted(text: str, path: Sequence[str | None], new: str, after: bool) -> str:
    """jsonb_insert()."""
    return _by_path(text, path, new, _AFTER if after else _BEFORE, "set path in")
