"""Casts between types, and literals, in the query engine's SQL with PostgreSQL's results.

``Typed`` is a translated expression. What is still ``unknown`` (a quoted literal, NULL, a parameter) becomes a value of
the type that it is cast to; everything else is converted as PostgreSQL's catalog of casts says.
"""

from __future__ import annotations

from dataclasses import dataclass

from kalamdb import types
from kalamdb.errors import KalamError
from kalamdb.kept import read_interval
from kalamdb.sql import fields, native
from kalamdb.sql.bind import Params
from kalamdb.sql.exact import read_array
from kalamdb.sql.functions import failure, stored_interval
from kalamdb.sql.kinds import (
    FLOATS,
    INTEGERS,
    INTERVAL,
    JSONS,
    KEPT,
    MOMENTS,
    NUMBERS,
    NUMERIC,
    RAW,
    STORED_INTERVAL,
    STRINGS,
    TEXT,
    UNKNOWN,
    Kind,
    decimal,
    kind,
    of_column,
)


@dataclass(slots=True)
class Typed:
    """``simple``: may be repeated at no cost. ``exact``: the SQL of a numeric column's text, beside its DECIMAL; of
    a type of RAW, that of the storage value."""

    sql: str
    kind: Kind
    simple: bool = False
    literal: str | None = None  # characters of an unknown literal
    param: int | None = None  # an unknown parameter
    exact: str | None = None
    place: int | None = None  # of an unknown literal, from 1

    @property
    def unknown(self) -> bool:
        return self.kind.name == "unknown"


def null(of: Kind) -> Typed:
    return Typed(f"CAST(NULL AS {of.duck})", of, True)


# ---------- literals ----------
def constant(of: Kind, value: object) -> Typed:
    """A storage value; numerics with their own scale."""
    if value is None:
        return null(of)
    if of.name == "numeric":
        return numeric_constant(str(value))
    if of.name in JSONS:
        return Typed(native.literal(types.TEXT, value), of, True)
    return Typed(native.literal(of.pg, value), of, True)


def numeric_constant(text: str) -> Typed:
    whole, _, fraction = text.lstrip("-").partition(".")
    made = decimal(len(whole) + len(fraction), len(fraction))
    if text[-1].isdigit() and made.fixed:
        return Typed(f"CAST('{text}' AS {made.duck})", made, True)
    return Typed(f"'{text}'", NUMERIC, True)


def interval_constant(text: str) -> Typed:
    months, days, micros = read_interval(text)
    if max(abs(months), abs(days)) >= 2**31 or abs(micros) >= 2**63:
        raise KalamError("22015", f'interval field value out of range: "{text}"')
    return Typed(f"(to_months({months}) + to_days({days}) + to_microseconds(CAST({micros} AS BIGINT)))", INTERVAL, True)


# ---------- settling what is unknown ----------
def settle(typed: Typed, target: Kind, params: Params) -> Typed:
    """An unknown literal or parameter as a value of that type."""
    if typed.param is not None:
        return parameter(typed.param, target, params)
    if typed.literal is None:
        return null(target)
    try:
        if target.name == "interval":
            return interval_constant(typed.literal)
        if target.name == "text[]":
            items = ", ".join(native.literal(types.TEXT, item) for item in read_array(typed.literal))
            return Typed(f"CAST([{items}] AS VARCHAR[])", target, True)
        if target.is_array or target.name in ("record", "unknown"):
            raise KalamError("0A000", f"a literal of type {target.display} is not supported")
        return constant(target, types.read_text(target.pg, typed.literal, target.typmod))
    except KalamError as error:
        error.position = error.position or typed.place
        raise


def parameter(index: int, target: Kind, params: Params) -> Typed:
    """A mark that each execution fills in; a numeric as its text."""
    array = types.ARRAYS["text[]"] if target.name == "text[]" else None
    if target.name not in ("unknown", "text") and target.pg is types.TEXT and array is None:
        raise KalamError("0A000", f"parameters of type {target.display} are not supported")
    params.infer(index, array or target.pg)
    announced = params.type(index)
    assert announced is not None
    form = "n" if announced.name == "numeric" else "p"
    exact = f"\0r{index}\0" if announced.name in RAW else None
    return Typed(f"\0{form}{index}\0", of_column(announced, -1), True, exact=exact)


def settled(typed: Typed, params: Params) -> Typed:
    """Unknown to the end: text."""
    return settle(typed, TEXT, params) if typed.unknown else typed


# ---------- casts ----------
#: whose text is not the query engine's own
WRITTEN = frozenset({"float4", "float8", "date", "timestamp", "timestamptz", "bytea"})
_TO_INT = {"int2": "smallint", "int4": "integer", "int8": "bigint"}


def to_text(typed: Typed) -> Typed:
    """The type's output function."""
    name = typed.kind.name
    if name == "bpchar":
        return Typed(f"rtrim({typed.sql}, ' ')", TEXT)
    if name in STRINGS or name in JSONS or name in KEPT:
        return Typed(typed.sql, TEXT, typed.simple)
    if name == "numeric":
        sql = typed.exact or (f"CAST({typed.sql} AS VARCHAR)" if typed.kind.fixed else typed.sql)
    elif name in WRITTEN:
        sql = f"kalam_write_{name}({typed.sql})"
    elif name in ("bool", "uuid", *INTEGERS):
        sql = f"CAST({typed.sql} AS VARCHAR)"
    else:
        raise KalamError("0A000", f"the text of type {typed.kind.display} cannot be computed with here")
    return Typed(sql, TEXT)


def numeric_text(typed: Typed) -> Typed:
    """A number as a numeric in text form."""
    if typed.kind.name == "numeric" and not typed.kind.fixed:
        return typed
    if typed.exact is not None:
        return Typed(typed.exact, NUMERIC, typed.simple)
    return Typed(f"CAST({typed.sql} AS VARCHAR)", NUMERIC)


def _to_integer(typed: Typed, target: Kind) -> Typed | None:
    source = typed.kind
    if source.name in INTEGERS or source.name in FLOATS or source.fixed or (source.name, target.name) == (
            "bool", "int4"):
        return Typed(f"CAST({typed.sql} AS {target.duck})", target)
    return Typed(f"kalam_n_{target.name}({typed.sql})", target) if source.name == "numeric" else None


def _to_float(typed: Typed, target: Kind) -> Typed | None:
    source, sql = typed.kind, typed.sql
    if source.name in INTEGERS or (source.name, target.name) == ("float4", "float8"):
        return Typed(f"CAST({sql} AS {target.duck})", target)
    if source.name == "float8":
        cast = f"CAST({sql} AS FLOAT)"
        over, under = (failure("22003", f"value out of range: {what}flow") for what in ("over", "under"))
        return Typed(f"CASE WHEN isinf({sql}) THEN {cast} WHEN isinf(TRY_CAST({sql} AS FLOAT)) IS DISTINCT FROM FALSE "
                     f"AND {sql} IS NOT NULL THEN {over} WHEN {cast} = 0 AND {sql} <> 0 THEN {under} "
                     f"ELSE {cast} END", target)
    if source.name == "numeric":
        if source.fixed and source.precision <= 15 and target.name == "float8":
            return Typed(f"CAST({sql} AS {target.duck})", target)
        word = "kalam_n_float" if target.name == "float8" else "kalam_n_real"
        return Typed(f"{word}({numeric_text(typed).sql})", target)
    return None


def _to_numeric(typed: Typed, target: Kind) -> Typed | None:
    source = typed.kind
    if source.name in FLOATS:
        digits = 6 if source.name == "float4" else 15
        made = Typed(f"kalam_n_of_float(CAST({typed.sql} AS DOUBLE), {digits})", NUMERIC)
    elif source.name == "numeric":
        made = typed
    elif source.name in INTEGERS:
        digits = {"int2": 5, "int4": 10, "int8": 19}[source.name]
        whole = Kind("numeric", digits, 0)
        made = Typed(f"CAST({typed.sql} AS {whole.duck})", whole)
    else:
        return None
    if target.typmod == -1 and not target.fixed:
        return made
    if made.kind.fixed and target.fixed:
        same = made.kind == target
        return made if same else Typed(f"CAST({made.sql} AS {target.duck})", target)
    if target.typmod != -1:
        return Typed(f"kalam_n_typmod({numeric_text(made).sql}, {target.typmod})", NUMERIC)
    return made


def _to_moment(typed: Typed, target: Kind) -> Typed:
    if typed.kind.name == "date":
        return Typed(fields.moment_of(typed.sql, target.duck), target)
    return Typed(f"CAST({typed.sql} AS {target.duck})", target)


def _from_text(typed: Typed, target: Kind) -> Typed | None:
    if target.name in STRINGS or target.pg is types.TEXT:
        return None
    made = Typed(f"kalam_read_{target.name}({typed.sql})", kind(target.name))
    return _to_numeric(made, target) if target.name == "numeric" else made


def _to_varchar(typed: Typed, target: Kind) -> Typed:
    made = to_text(typed)
    if target.typmod == -1:
        return Typed(made.sql, kind(target.name), made.simple)
    return Typed(f"left({made.sql}, {target.typmod - 4})", target)


def cast(typed: Typed, target: Kind, params: Params, *, explicit: bool = False) -> Typed:
    """42846 where PostgreSQL has no such cast."""
    source = typed.kind
    if typed.unknown:
        if target.name == "varchar" and explicit:  # cut, not refused
            return _to_varchar(settle(typed, TEXT, params), target)
        made = settle(typed, target, params)
        if typed.literal is None and target.name == "numeric" and target.typmod != -1 and typed.param is not None:
            return _to_numeric(made, target) or made
        return _to_varchar(made, target) if target.name == "varchar" and typed.param is not None else made
    if source.name == target.name and target.name != "numeric" and target.typmod == -1:
        return typed
    made_or_none = _convert(typed, target, explicit=explicit)
    if made_or_none is None:
        raise KalamError("42846", f"cannot cast type {source.display} to {target.display}")
    return made_or_none


def _convert(typed: Typed, target: Kind, *, explicit: bool) -> Typed | None:
    source = typed.kind
    if target.name in STRINGS:
        return _to_varchar(typed, target)
    if source.name == "jsonb" and target.name == "bool":
        return Typed(f"kalam_j_bool({typed.sql})", target)
    if source.name == "jsonb" and target.name in NUMBERS:
        display = kind(target.name).display
        return _convert(Typed(f"kalam_j_number({typed.sql}, '{display}')", NUMERIC), target, explicit=explicit)
    if target.name in INTEGERS and source.name not in STRINGS:
        return _to_integer(typed, target)
    if target.name in FLOATS and source.name not in STRINGS:
        return _to_float(typed, target)
    if target.name == "numeric" and source.name not in STRINGS:
        return _to_numeric(typed, target)
    if source.name in MOMENTS and target.name in MOMENTS:
        if target.typmod != -1:
            raise KalamError("0A000", "casts to timestamps of fewer digits are not supported")
        return typed if source.name == target.name else _to_moment(typed, target)
    if source.name == STORED_INTERVAL and target.name == "interval":
        return Typed(stored_interval(typed.sql), target)
    if source.name == "interval" and target.name == STORED_INTERVAL:  # the query engine's words are read as people's
        return Typed(f"kalam_as_interval(CAST({typed.sql} AS VARCHAR))", target)
    if source.name == "cidr" and target.name == "inet":  # without the number of all bits
        return Typed(f"regexp_replace({typed.sql}, '^([^:]*)/32$|/128$', '\\1')", target)
    if source.name == "json" and target.name == "jsonb":
        return Typed(f"kalam_j_canonical({typed.sql})", target)
    if source.name == "jsonb" and target.name == "json":
        return Typed(typed.sql, target, typed.simple)
    if source.name == "int4" and target.name == "bool":
        return Typed(f"({typed.sql} <> 0)", target)
    if source.name in STRINGS and explicit:
        return _from_text(typed, target)
    return None


__all__ = ["UNKNOWN", "WRITTEN", "Typed", "cast", "constant", "null", "settle", "settled"]
