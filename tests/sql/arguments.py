"""Arguments at the edges, for every function and operator of the server's SQL, as typed literals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import gcd

from .values import VALUES

MOST_ROWS = 400

JSONB = ['{"a": 1, "b": [1, 2, {"c": null}]}', "[1, 2.0, \"x\", null]", '"text"', "1.50", "null", "{}", "[]"]
ARGUMENTS: dict[str, list[str]] = {
    "bool": ["t", "f"],
    "int2": ["0", "1", "-1", "32767", "-32768", "7"],
    "int4": ["0", "1", "-1", "2147483647", "-2147483648", "7", "3"],
    "int8": ["0", "1", "-1", "9223372036854775807", "-9223372036854775808", "7"],
    "float4": ["0", "-0", "1.5", "-2.5", "NaN", "Infinity", "-Infinity", "3.4028235e38", "1e-45"],
    "float8": ["0", "-0", "1.5", "2.5", "-2.5", "0.5", "NaN", "Infinity", "-Infinity", "1.7976931348623157e308",
               "5e-324", "-3"],
    "numeric": ["0", "1", "-1.50", "2.5", "0.000000001", "NaN", "Infinity", "-Infinity", "123456789012345678901.5",
                "1e30", "1e-20", "3", "9999", "0.00012"],
    "text": ["", "a", "Hello", "héllo wörld", "ß☃𝄞", "a,b,c", "%_\\", " x ", "ab"],
    "bytea": ["\\x", "\\x00", "\\x6162", "\\xff00"],
    "date": ["2000-01-01", "2024-02-29", "1999-12-31", "infinity", "-infinity", "0044-03-15 BC",
             "0001-12-31 BC", "0001-01-01", "2001-01-01", "1900-12-30", "5874897-12-31"],
    "timestamp": ["2000-01-01 00:00:00", "2024-02-29 12:30:15.123456", "1999-12-31 23:59:59.999999", "infinity",
                  "-infinity", "0044-03-15 12:00:00 BC", "0001-12-31 23:00:00.5 BC", "0101-01-01 00:00:00.000001",
                  "1969-12-31 23:59:59.9", "4713-01-01 00:00:00 BC"],
    "timestamptz": ["2000-01-01 00:00:00+00", "2024-02-29 12:30:15.123456+00", "infinity", "-infinity"],
    "interval": ["1 day", "1 month", "-1 year 2 days", "04:05:06.7", "0"],
    "jsonb": JSONB, "json": [*JSONB, '{"b":[1,  2],"a":1e2, "a":"\\u00e9"}', '{"x": -0.10,"a":{ }}'],
    "uuid": VALUES["uuid"], "any": ["1", "2", "1"],
}  # fmt: skip
FIELDS = ["microseconds", "milliseconds", "second", "minute", "hour", "day", "week", "month", "quarter", "year",
          "decade", "century", "millennium", "dow", "isodow", "doy", "isoyear", "epoch", "julian", "YEAR", "yrs",
          "timezone", "nonsense"]  # fmt: skip
#: arguments that stand for something, by function and place
SPECIAL: dict[tuple[str, int], list[str]] = {
    ("encode", 1): ["hex", "base64", "escape", "nonsense"], ("decode", 1): ["hex", "base64", "escape", "nonsense"],
    ("decode", 0): ["", "6162", "YWI=", "x", "abc\\\\def"], ("split_part", 1): [",", "", "b", "ab"],
    ("split_part", 2): ["0", "1", "-1", "2", "9", "-9"], ("chr", 0): ["65", "233", "0", "-1", "1114112", "55296"],
    ("make_date", 0): ["2024", "-44", "0", "5874897"], ("make_date", 1): ["2", "13", "0"],
    ("make_date", 2): ["29", "30", "1", "0"], ("repeat", 1): ["0", "3", "-1"], ("lpad", 1): ["0", "3", "9", "-1"],
    ("rpad", 1): ["0", "3", "9", "-1"], ("substr", 1): ["0", "1", "-2", "3", "2147483647"],
    ("substr", 2): ["0", "2", "-1", "2147483647"], ("substring", 1): ["0", "1", "-2", "3"],
    ("substring", 2): ["0", "2", "-1", "2147483647"], ("round", 1): ["0", "2", "-1", "-30", "20"],
    ("trunc", 1): ["0", "2", "-1", "20"], ("to_timestamp", 0): ["0", "1.5", "-1e9", "NaN", "Infinity", "1e300"],
    ("overlay", 2): ["0", "1", "2", "9", "2147483647", "-1"], ("overlay", 3): ["0", "2", "-3", "2147483647"],
    ("left", 1): ["0", "2", "-2", "99"], ("right", 1): ["0", "2", "-2", "99"],
    ("#>", 1): ["{a}", "{b,1}", "{b,-1,c}", "{}", "{x}", "{0}"], ("#>>", 1): ["{a}", "{b,1}", "{b,2,c}", "{}", "{3}"],
    ("->", 1): ["a", "b", "x", ""], ("->>", 1): ["a", "b", "x", ""], ("?", 1): ["a", "x", "text", "1"],
    ("->int4", 1): ["0", "1", "-1", "2", "-5"], ("->>int4", 1): ["0", "1", "-1", "2", "-5"],
    ("extract", 0): FIELDS, ("date_part", 0): FIELDS, ("date_trunc", 0): FIELDS,
    ("numeric", 1): ["393222", "1310724", "-1", "198656"],
    ("translate", 1): ["lo", "", "héw"], ("translate", 2): ["01", "", "abc"],
}  # fmt: skip


def literal(text: str | None, kind: str) -> str:
    name = "int4" if kind == "any" else kind
    return f"NULL::{name}" if text is None else "'" + text.replace("'", "''") + f"'::{name}"


def texts(name: str, kinds: Sequence[str]) -> list[tuple[str | None, ...]]:
    """Rows of arguments for a function of these types, NULLs among them."""
    lists = []
    for place, kind in enumerate(kinds):
        special = SPECIAL.get((name + kind, place)) or SPECIAL.get((name, place))
        found = special or ARGUMENTS[kind]
        if "interval" in kinds:
            found = [text for text in found if "2147483647" not in text]
        lists.append([*found, None])
    rows = list(product(*lists))
    step = -(-len(rows) // MOST_ROWS)
    while gcd(step, len(lists[-1])) > 1:  # else some of the last arguments were never taken
        step += 1
    return rows[::step]


def arguments(name: str, kinds: Sequence[str]) -> list[list[str]]:
    """As typed literals."""
    return [[literal(text, kind) for text, kind in zip(row, kinds, strict=True)] for row in texts(name, kinds)]
