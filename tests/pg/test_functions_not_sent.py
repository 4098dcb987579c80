"""Every immutable function of PostgreSQL's own over types that the server stores: it is sent, or it is named here.

Functions of PostgreSQL that are new, or entries that the capability table loses, show as names without a reason.
"""

from __future__ import annotations

import re

import pytest

from kalamdb.sql.capabilities import TYPES, capabilities

from .ddl import Session

pytestmark = pytest.mark.pg

#: why → patterns of name(argument types)
NOT_SENT: dict[str, tuple[str, ...]] = {
    "support of indexes, sorting, windows and statistics, which applications do not call": (
        r"bt\w+cmp\(.*", r"(byteacmp|\w+_cmp|\w+_cmp_\w+|gin_\w+)\(.*", r"\w*hash\w*\(.*", r"in_range\(.*",
        r"\w+_subdiff\(.*", r"bttext_pattern_cmp\(.*", r"gist_translate_cmptype_common\(.*", r"text_pattern_\w+\(.*",
    ),
    "support of aggregates": (
        r"(int[248]|float[48]|text|date|timestamp|timestamptz|numeric|bytea|array|uuid)_?(larger|smaller)\(.*",
        r"bool(and|or)_statefunc\(.*", r"int[248]_(sum|avg_accum)\(.*", r"int8(inc|dec)(_any|_float8_float8)?\(.*",
        r"(int4inc|numeric_inc|any_value_transfn)\(.*",
    ),
    "the wire's binary form": (r"\w+send\(.*",),
    "another name of an operator or function, which nobody writes": (
        r"(numeric_(exp|ln|sqrt|log|power|div_trunc)|dexp|dlog1|dlog10|dpow|dsqrt|dround|dtrunc|textlen)\(.*",
        r"(not)?like\(.*", r"unnamed\(.*",
    ),
    "known before anything is sent: without columns, or of constants in practice": (
        r"pi\(\)", r"\w+multirange\(\)", r"(like_escape|similar_escape|similar_to_escape)\(.*",
        r"pg_encoding_max_length\(.*",
        r"unistr\(.*", r"pg_char_to_encoding\(.*", r"(icu_)?unicode_version\(\)",
    ),
    "the result is of a type that the server keeps as text": (
        r"age\(.*", r"(bit|char|name|oid|time|point|pg_lsn|money|xid8?)\(.*", r"(date|int4|int8|num|ts|tstz)range\(.*",
        r"make_(interval|time)\(.*", r"(timestamp|timestamptz)_mi\(.*", r"array_to_tsvector\(.*", r"xml\w*\(.*",
        r"jsonb_path\w*\(.*", r"(parse_ident|regexp_match|regexp_split_to_array|string_to_array)\(.*",
        r"tsvector\w*\(.*", r"strip\(.*",
    ),
    "sets of rows": (
        r"generate_(series|subscripts)\(.*",
        r"jsonb?_(array_elements|array_elements_text|each|each_text|object_keys)\(.*",
        r"(regexp_matches|regexp_split_to_table|string_to_table|unnest)\(.*",
    ),
    "digits that versions of PostgreSQL round otherwise": (r"width_bucket\(.*",),
    "numeric by series, whose last digit is the algorithm's": (r"(exp|ln|log|log10|pow|power)\(numeric.*",),
    "not C library functions: sums of constants of it": (r"(a?(cos|sin|tan)d|atan2d|cotd)\(.*",),
    "C library functions that the query engine's Python has of its own": (
        r"(asinh|acosh|atanh|erfc?|l?gamma|cot)\(.*",),
    "its last years are beyond the query engine's timestamps": (r"make_timestamp\(.*",),
    "rounded at every row, in the order of rows": (r"sum\(float4\)",),
    "the order of rows makes the result": (r"any_value\(.*", r"string_agg\(bytea.*"),
    "ordered and hypothetical sets": (
        r"(percentile_cont|percentile_disc|mode)\(.*", r"(rank|dense_rank|percent_rank|cume_dist)\(any\)"),
    "whole values of objects, by keys of any type": (r"jsonb_object_agg\w*\(.*", r"jsonb?_object\(.*"),
    "a jsonb's order depends on the database's collation": (r"jsonb_(lt|le|gt|ge)\(.*",),
    "positions and counts of matches, and options, of regular expressions": (
        r"regexp_(count|instr)\(.*", r"regexp_like\(text,text,text\)",
        r"regexp_replace\(text,text,text,(int4.*|text,.*)\)",
        r"regexp_substr\(text,text,.*\)", r"substring\(text,text,text\)",
    ),
    "Unicode's version, an encoding, PostgreSQL's time zones or keywords decide": (
        r"date_trunc\(text,timestamptz,text\)",
        r"(normalize|is_normalized|to_ascii|casefold|unicode_assigned|quote_ident|convert\w*)\(.*",),
    "nothing has asked for it": (
        r"jsonb_set_lax\(.*", r"json_strip_nulls\(.*", r"num_(non)?nulls\(.*", r"pg_size_(pretty|bytes)\(.*",
        r"(crc32c?|reverse)\(bytea\)", r"to_(bin|oct)\(.*", r"uuid_extract_\w+\(.*", r"date_(add|subtract)\(.*",
        r"(min|max)\(bytea\)", r"bytea\(int[248]\)", r"int[248]\(bytea\)", r"array_(?!agg)\w+\(.*", r"trim_array\(.*",
    ),
    "written in SQL: the planner puts what it is made of in its place": (r"date_part\(text,date\)",),
}  # fmt: skip

FUNCTIONS = """
SELECT p.proname, p.args, array(SELECT o.oprname FROM pg_operator o WHERE o.oprcode = p.oid)
FROM (SELECT *, array_to_string(array(SELECT t.typname FROM unnest(proargtypes::oid[]) WITH ORDINALITY u (type, n)
        JOIN pg_type t ON t.oid = u.type ORDER BY n), ',') AS args FROM pg_proc) p
WHERE p.provolatile = 'i' AND p.oid < 16384 AND p.pronamespace = 'pg_catalog'::regnamespace
    AND p.prorettype NOT IN ('internal'::regtype, 'trigger'::regtype, 'cstring'::regtype, 'void'::regtype)
"""
STORED = {name for name, *_ in TYPES} | {"_text", "any", "anyelement", "anynonarray", "anycompatible"}


def version_of(flags: str, word: str, otherwise: int) -> int:
    found = re.search(rf"\b{word}(\d+)", flags)
    return int(found[1]) if found else otherwise


def listed(version: int) -> set[tuple[str, str]]:
    """Functions and aggregates by name, operators by their sign, with argument types."""
    return {(name, args) for kind, name, args, _, flags in capabilities("", 0)
            if kind in ("function", "operator", "aggregate", "window")
            and version_of(flags, "from", 0) <= version < version_of(flags, "before", 99)}


def test_every_function_is_sent_or_has_a_reason(db: Session) -> None:
    sent = listed(db.conn.info.server_version // 10000)
    unexplained, both, used = [], [], set()
    for name, args, operators in db(FUNCTIONS):
        if not set(filter(None, args.split(","))) <= STORED:
            continue
        call = f"{name}({args})"
        reasons = [reason for reason, patterns in NOT_SENT.items()
                   if any(re.fullmatch(pattern, call) for pattern in patterns)]
        is_sent = any((each, args) in sent for each in (name, *operators))
        used |= set() if is_sent else set(reasons)
        if not is_sent and not reasons:
            unexplained.append(call)
        if is_sent and (name, args) in sent and reasons:
            both.append((call, reasons))
    assert not unexplained
    assert not both
    assert used == set(NOT_SENT)
