"""Types of expressions as PostgreSQL's rules see them, and how the query engine holds their values.

A ``Kind`` is a type's name in pg_catalog; ``unknown`` is a literal or parameter whose type its surroundings decide.
``numeric`` has two forms: with a scale it is DuckDB's DECIMAL, which is fast and has one scale for all values; without
one it is the number's text, computed by the functions of ``kalamdb.sql.exact`` with PostgreSQL's own scale, any number
of digits, NaN and infinities. Implicit casts, categories and preferred types are those of PostgreSQL's catalog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kalamdb import kept, types
from kalamdb.errors import KalamError
from kalamdb.types import PgType

MAX_DIGITS = 38


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    precision: int = 0
    scale: int | None = None  # of a numeric held as DECIMAL
    typmod: int = -1

    @property
    def fixed(self) -> bool:
        """A numeric held as DECIMAL?"""
        return self.scale is not None

    @property
    def is_array(self) -> bool:
        return self.name.endswith("[]")

    @property
    def element(self) -> Kind:
        return kind(self.name[:-2])

    @property
    def display(self) -> str:
        """The type as PostgreSQL's messages call it."""
        if self.is_array:
            return self.element.display + "[]"
        found = _PG_TYPES.get(self.name)
        return found.display if found is not None else _DISPLAY.get(self.name, self.name)

    @property
    def pg(self) -> PgType:
        """The type of a result column; text for what the server has no type of its own for."""
        return _PG_TYPES.get(self.name, types.TEXT)

    @property
    def duck(self) -> str:
        """DuckDB's type."""
        if self.is_array:
            return self.element.duck + "[]"
        if self.scale is not None:
            return f"DECIMAL({self.precision}, {self.scale})"
        return _DUCK.get(self.name, "VARCHAR")


#: an interval as it is stored; the query engine computes with its own
STORED_INTERVAL = "stored_interval"
_PG_TYPES = {type_.name: type_ for type_ in types.TYPES} | {
    STORED_INTERVAL if name == "interval" else name: types.by_name(name) for name in kept.TYPES
}
_DISPLAY = {"interval": "interval", "unknown": "unknown", "record": "record"}
_DUCK = {
    "bool": "BOOLEAN", "int2": "SMALLINT", "int4": "INTEGER", "int8": "BIGINT", "float4": "FLOAT", "float8": "DOUBLE",
    "bytea": "BLOB", "uuid": "UUID", "date": "DATE", "timestamp": "TIMESTAMP", "timestamptz": "TIMESTAMPTZ",
    "interval": "INTERVAL",
}
_KINDS: dict[str, Kind] = {}


def kind(name: str) -> Kind:
    found = _KINDS.get(name)
    if found is None:
        found = _KINDS[name] = Kind(name)
    return found


BOOL, INT4, INT8, FLOAT8, NUMERIC = kind("bool"), kind("int4"), kind("int8"), kind("float8"), kind("numeric")
TEXT, UNKNOWN, INTERVAL, DATE = kind("text"), kind("unknown"), kind("interval"), kind("date")
TIMESTAMP, TIMESTAMPTZ = kind("timestamp"), kind("timestamptz")


def decimal(precision: int, scale: int) -> Kind:
    """A numeric held as DECIMAL where it has room, else as text."""
    precision = max(precision, scale + 1)  # DuckDB writes .5 where there is no digit before the point
    return Kind("numeric", precision, scale) if precision <= MAX_DIGITS else NUMERIC


def of_column(type_: PgType, typmod: int) -> Kind:
    """A stored column's; numeric(p,s) as DECIMAL."""
    if type_.name == "interval":
        return kind(STORED_INTERVAL)
    if typmod == -1:
        return kind(type_.name)
    if type_.name != "numeric":
        return Kind(type_.name, typmod=typmod)
    precision, scale = ((typmod - 4) >> 16) & 0xFFFF, (((typmod - 4) & 0x7FF) ^ 0x400) - 0x400
    if not 0 <= scale <= precision or max(precision, scale + 1) > MAX_DIGITS:
        return Kind("numeric", typmod=typmod)
    return Kind("numeric", max(precision, scale + 1), scale, typmod)


def plain(of: Kind) -> Kind:
    """Without the modifier of the column or cast it came from."""
    if of.typmod == -1:
        return of
    return Kind(of.name, of.precision, of.scale) if of.fixed else kind(of.name)


# ---------- categories and casts ----------
_INTEGERS = ("int2", "int4", "int8")
INTEGERS = frozenset(_INTEGERS)
FLOATS = frozenset({"float4", "float8"})
NUMBERS = frozenset({*_INTEGERS, "numeric", "float4", "float8"})
MOMENTS = frozenset({"date", "timestamp", "timestamptz"})
STRINGS = frozenset({"text", "varchar"})
JSONS = frozenset({"json", "jsonb"})
ADDRESSES = frozenset({"inet", "cidr"})
#: types kept as text
KEPT = frozenset(_PG_TYPES) - {type_.name for type_ in types.TYPES}
#: of these the ones with an order: by what values are sorted, and what of equal values is equal
ORDERS = {STORED_INTERVAL if each.name == "interval" else each.name:
          "$1" if each.name in kept.ORDERED_TEXTS else f"kalam_key_{each.name}($1)" for each in kept.ORDERED} | {
    "bpchar": "rtrim($1, ' ')"}
EQUALITIES = ORDERS | dict.fromkeys(kept.EQUAL_TEXTS, "$1")
#: types whose columns are handed on, ordered and compared as they are stored
RAW = frozenset({"timestamp", "timestamptz", "uuid"})
_LADDERS = (("int2", "int4", "int8", "numeric", "float4", "float8"), ("date", "timestamp", "timestamptz"))
_IMPLICIT = {(one, two) for ladder in _LADDERS for place, one in enumerate(ladder) for two in ladder[place + 1 :]} | {
    ("varchar", "text"), ("text", "varchar"), ("cidr", "inet"),
    (STORED_INTERVAL, "interval"),
}
_PREFERRED = frozenset({"float8", "text", "timestamptz", "bool", "interval"})


def category(name: str) -> str:
    if name in NUMBERS:
        return "N"
    if name in STRINGS:
        return "S"
    if name in MOMENTS:
        return "D"
    if name in ADDRESSES:
        return "I"
    return name


def preferred(name: str) -> bool:
    return name in _PREFERRED


def implicit(source: str, target: str) -> bool:
    """May a value go there without being asked to?"""
    return source == target or (source, target) in _IMPLICIT


def common(kinds: Sequence[Kind], what: str) -> Kind:
    """The type in which CASE, UNION and the like unite their branches (numerics: united by the caller)."""
    known = [plain(each) for each in kinds if each.name != "unknown"]
    if not known:
        return TEXT
    chosen = known[0]
    for each in known[1:]:
        if each.name == chosen.name:
            chosen = unite(chosen, each)
        elif category(each.name) != category(chosen.name):
            raise KalamError("42804", f"{what} types {chosen.display} and {each.display} cannot be matched")
        elif not preferred(chosen.name) and implicit(chosen.name, each.name) and not implicit(each.name, chosen.name):
            chosen = each
    if chosen.name == "numeric":
        forms = [as_numeric(each) for each in known]
        for form in forms:
            chosen = unite(form, unite(forms[0], form))
        if any(form != chosen and form.scale != chosen.scale for form in forms):
            return NUMERIC
    return chosen


def unite(one: Kind, two: Kind) -> Kind:
    """Two of one name; numerics of one scale stay DECIMAL."""
    if one.fixed and two.fixed and one.scale == two.scale:
        return one if one.precision >= two.precision else two
    return one if one == two else kind(one.name)


def as_numeric(of: Kind) -> Kind:
    """What an integer is as a numeric."""
    digits = {"int2": 5, "int4": 10, "int8": 19}.get(of.name)
    return of if digits is None else decimal(digits, 0)
