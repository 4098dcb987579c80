"""Random expressions over the tables of test_read_differential, from a seeded generator.

Expressions are typed by tags; an entry of `FORMS` is SQL with tags in braces, each of which becomes an expression of
that type: a column or literal if a dot follows, a literal if ``!``, an array of literals if ``[]``, the same one again
if a letter does (``{int:a}``). No expression fails: sums stay small, divisors are not 0
and what has extreme values is only compared. So the order of evaluation is nobody's concern.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

#: tag → SQL type, its literals (None: NULL)
TYPES: dict[str, tuple[str, tuple[str | None, ...]]] = {
    "int": ("int", ("0", "1", "2", "3", "-1", "7", "-9", None)),
    "big": ("bigint", ("0", "9223372036854775807", "-9223372036854775808", "9007199254740993", None)),
    "numeric": ("numeric", ("0", "0.0", "1.50", "1.5", "2", "-3.25", "100", "NaN", None)),
    "nx": ("numeric", ("Infinity", "-Infinity", "1e30", "1.00", "1", "0.00000000000000000001", "NaN", None)),
    "float": ("float8", ("0", "-0", "0.5", "-2.25", "3", "NaN", "Infinity", "-Infinity", None)),
    "fx": ("float8", ("5e-324", "1.7976931348623157e308", "-1.7976931348623157e308", "0.1", "-0", "NaN", None)),
    "real": ("real", ("0.1", "16777216", "3.4028235e38", "-0", "NaN", None)),
    "text": ("text", ("", "a", "B", "b", "é", "text 1", "text 12", " x ", "%", "日本", None)),
    "bool": ("bool", ("true", "false", None)),
    "date": ("date", ("2024-01-01", "2024-02-29", "1999-12-31", "infinity", "0044-03-15 BC", None)),
    "dx": ("date", ("5874897-12-31", "4714-11-24 BC", "-infinity", "2000-01-01", None)),
    "ts": ("timestamp", ("2024-01-01 00:00", "2024-02-29 12:30:15.5", "-infinity", "infinity", None)),
    "tsx": ("timestamp", ("294246-12-31 23:59:59.999999", "4714-11-24 00:00:00 BC", "2000-01-01", None)),
    "tz": ("timestamptz", ("2024-01-01 00:00+00", "2024-03-31 02:30+01", "infinity", None)),
    "uuid": ("uuid", ("00000000-0000-0000-0000-000000000000", "7fffffff-ffff-ffff-8000-000000000000", None)),
    "bytea": ("bytea", ("", "\\x00", "\\xdeadbeef", None)),
    "json": ("jsonb", ('{"a": "1"}', "null", "[1, 2]", '{"b": [1]}', None)),
}
ORDERED = tuple(tag for tag in TYPES if tag != "json")

FORMS: dict[str, tuple[str, ...]] = {
    "int": (
        "({int} + {int})", "({int} - {int})", "({int.} * {int.})", "({int} / NULLIF({int}, 0))",
        "({int} % NULLIF({int}, 0))", "CASE WHEN {int:a} <> 0 THEN {int} / {int:a} END", "abs({int})", "(-{int})",
        "length({text})", "strpos({text}, {text})", "ascii({text})", "{bool}::int",
        "jsonb_array_length({json.} -> 'b')", "({json.} ->> 'a')::int", "octet_length({bytea})", "(SELECT {int})",
    ),
    "numeric": (
        "({numeric} + {numeric})", "({numeric} - {numeric})", "({numeric} * {numeric.})",
        "({numeric} / NULLIF({numeric}, 0))", "mod({numeric}, NULLIF({numeric}, 0))", "round({numeric}, 1)",
        "trunc({numeric})", "ceil({numeric})", "floor({numeric})", "abs({numeric})", "(-{numeric})", "{int}::numeric",
        "sqrt(abs({numeric}))", "{numeric.}::numeric(12,2)", "extract(year FROM {date})", "extract(dow FROM {ts})",
        "extract(epoch FROM {ts})", "sign({numeric})",
    ),
    "float": (
        "({float} + {float})", "({float} - {float})", "({float.} * {float.})", "({float} / NULLIF({float}, 0))",
        "abs({float})", "floor({float})", "ceil({float})", "round({float})", "trunc({float})", "sqrt(abs({float}))",
        "{int}::float8", "{numeric.}::float8", "date_part('month', {ts})", "ln(abs({float}) + 1)", "(-{float})",
    ),
    "text": (
        "({text} || {text})", "substr({text}, 2, 3)", "substr({text}, {int})", "left({text}, {int})",
        "right({text}, {int})", "upper({text})", "lower({text})", "replace({text}, {text}, {text})", "btrim({text})",
        "rtrim({text}, 'a ')", "lpad({text}, 5, {text})", "rpad({text}, 4)", "reverse({text})", "repeat({text}, 2)",
        "split_part({text}, ' ', 2)", "translate({text}, 'ab', 'ba')", "md5({text})", "{int}::text", "{date}::text",
        "{bool}::text", "{ts}::text", "{tz}::text", "{big}::text", "{uuid}::text", "({json.} ->> 'a')",
        "concat({text}, {int}, {text})", "to_char({date}, 'YYYY-MM')", "encode({bytea}, 'hex')",
        "jsonb_typeof({json})", "chr(65 + abs({int.}))", "quote_literal({text})", "format('%s|%s', {text}, {int})",
        "{numeric}::text", "{float}::text",
    ),
    "bool": (
        "({int} = {numeric})", "({int} < {float})", "({date} <= {ts})", "({big} > {int})", "({real} <> {fx})",
        "({text} LIKE 'text 1%')", "({text} NOT LIKE '_')", "({text} ILIKE 'TEXT%')", "({text} LIKE {text} || '%')",
        "({text} ~ '^[a-c]')", "({text} COLLATE \"C\" < {text})", "starts_with({text}, {text})", "({text} ^@ 'te')",
        "({json.} @> {json!})", "({json.} ? 'b')", "({json} = {json})", "isfinite({date})",
        "({bool} AND {bool})", "({bool} OR {bool})", "({bool} AND {bool} AND {bool})", "({bool} OR {bool} OR {bool})",
        "(NOT {bool})", "({bool} IS TRUE)", "({bool} IS NOT TRUE)", "({bool} IS FALSE)", "({bool} IS NOT FALSE)",
        "({bool} IS UNKNOWN)", "({bool} IS NOT UNKNOWN)", "(({int}, {text}) = ({int}, {text}))",
        "(({int}, {date}) < ({int}, {date}))", "(({int}, {text}) IN ((1, 'a'), (2, NULL), ({int}, 'b')))",
    ),
    "date": ("({date} + {int.})", "({date} - {int.})", "{ts}::date", "make_date(2024, 1 + abs({int.}) % 12, 1)"),
    "ts": (
        "({ts} + interval '1 month 2 days')", "({ts} - interval '90 minutes')", "date_trunc('month', {ts})",
        "{date}::timestamp", "({date} + interval '5 hours')", "({tz} AT TIME ZONE 'UTC')",
    ),
    "tz": ("({tz} + interval '1 day')", "date_trunc('day', {tz})"),
    "bytea": ("({bytea} || {bytea})", "decode(md5({text}), 'hex')"),
    "json": ("({json.} -> 'b')", "({json.} -> 'c')", "jsonb_build_object('k', {int})", "to_jsonb({int})"),
}  # fmt: skip
#: of any type T
COMMON = (
    "CASE WHEN {bool} THEN {T} ELSE {T} END", "CASE {int} WHEN 1 THEN {T} WHEN {int} THEN {T} END",
    "COALESCE({T}, {T})", "NULLIF({T}, {T})", "GREATEST({T}, {T})", "LEAST({T}, {T}, {T})",
)  # fmt: skip
TESTS = (
    "({T} = {T})", "({T} <> {T})", "({T} < {T})", "({T} <= {T})", "({T} > {T})", "({T} >= {T})", "({T} IS NULL)",
    "({T} IS NOT NULL)", "({T} IS DISTINCT FROM {T})", "({T} IS NOT DISTINCT FROM {T})", "({T} BETWEEN {T} AND {T})",
    "({T} NOT BETWEEN {T} AND {T})", "({T} BETWEEN SYMMETRIC {T} AND {T})", "({T} IN ({T}, {T}, {T}))",
    "({T} NOT IN ({T}, {T}))", "({T} IN ({T!}, {T!}, NULL))", "({T} NOT IN ({T!}, {T!}, NULL))",
    "({T} = ANY ({T[]}))", "({T} <> ALL ({T[]}))", "({T} < ANY ({T[]}))", "({T} >= ALL ({T[]}))",
    "({T} = ANY (NULL::{T::}[]))", "({T} <> ALL (NULL::{T::}[]))", "({T} = {T!})", "({T} < {T!})", "({T} >= {T!})",
)  # fmt: skip
_HOLE = re.compile(r"\{([A-Za-z]+)(\[\]|::|[!.])?(?::([a-z]))?\}")


@dataclass(frozen=True)
class Column:
    sql: str
    tag: str


@dataclass
class Grammar:
    """`params` are the values of the parameters that literals become, None if they become none."""

    random: random.Random
    params: list[tuple[str, str]] | None = None
    names: int = 0
    columns: Sequence[Column] = field(default=())

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    # ---------- leaves ----------
    def constant(self, type_: str, text: str | None) -> str:
        value = "NULL" if text is None else "'" + text.replace("'", "''") + "'"
        if self.params is not None and self.chance(0.6):
            self.params.append((type_, value))
            return f"${len(self.params)}"
        return f"{value}::{type_}"

    def literal(self, tag: str) -> str:
        type_, values = TYPES[tag]
        return self.constant(type_, self.random.choice(values))

    def array(self, tag: str) -> str:
        type_, values = TYPES[tag]
        drawn = [self.random.choice(values) for _ in range(self.random.randint(0, 4))]
        quoted = ["NULL" if each is None else '"' + re.sub(r'(["\\])', r"\\\1", each) + '"' for each in drawn]
        return self.constant(f"{type_}[]", "{" + ",".join(quoted) + "}")

    def leaf(self, tag: str) -> str:
        fitting = [column.sql for column in self.columns if column.tag == tag]
        return self.random.choice(fitting) if fitting and self.chance(0.8) else self.literal(tag)

    # ---------- expressions ----------
    def expression(self, tag: str, depth: int = 2) -> str:
        if depth <= 0 or self.chance(0.3):
            return self.leaf(tag)
        if tag == "bool" and self.chance(0.5):
            return self.fill(self.random.choice(TESTS), self.random.choice(ORDERED), depth)
        forms = FORMS.get(tag, ())
        if not forms or self.chance(0.25):
            forms = COMMON
        return self.fill(self.random.choice(forms), tag, depth)

    def condition(self, depth: int = 2) -> str:
        """A bool expression that is no mere column or literal."""
        if self.chance(0.6):
            return self.fill(self.random.choice(TESTS), self.random.choice(ORDERED), depth - 1)
        return self.fill(self.random.choice(FORMS["bool"]), "bool", depth)

    def fill(self, form: str, tag: str, depth: int) -> str:
        same: dict[str, str] = {}

        def hole(found: re.Match[str]) -> str:
            wanted = tag if found[1] == "T" else found[1]
            if found[2] == "[]":
                return self.array(wanted)
            if found[2] == "::":
                return TYPES[wanted][0]
            if found[2] == "!":
                return self.literal(wanted)
            if found[2] == ".":
                return self.leaf(wanted)
            if found[3] in same:
                return same[found[3]]
            text = self.expression(wanted, depth - 1)
            if found[3]:
                same[found[3]] = text
            return text

        return _HOLE.sub(hole, form)
