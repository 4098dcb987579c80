"""Arguments at the edges, for every function and operator of the server's SQL, as typed literals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import gcd

from .values import KEPT, VALUES

MOST_ROWS = 400

JSONB = ['{"a": 1, "b": [1, 2, {"c": null}]}', "[1, 2.0, \"x\", null]", '"text"', "1.50", "null", "{}", "[]"]
ARGUMENTS: dict[str, list[str]] = {
    **KEPT,
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
    "text[]": ["{}", "{a}", "{b,1}", "{b,-1,c}", "{x,a}", "{0}", "{text}", "{3}", "{b,+1}", '{b," 1"}', '{b,"1 "}',
               "{b,1_0}",
               "{b,99999999999}", "{1,NULL}", "{NULL}", '{b,"2",c}', "{-1}", "{-9}", '{"NULL"}', "{b,\u0661}"],
    "uuid": VALUES["uuid"], "any": ["1", "2", "1"], "varchar": ["", "a", "Hello", "héllo wörld", "ab   "],
}  # fmt: skip
FIELDS = ["microseconds", "milliseconds", "second", "minute", "hour", "day", "week", "month", "quarter", "year",
          "decade", "century", "millennium", "dow", "isodow", "doy", "isoyear", "epoch", "julian", "YEAR", "yrs",
          "timezone", "nonsense"]  # fmt: skip
#: texts of numbers, or nearly so
NUMBERS = [
    "5", " 5 ", "+5", "-5", "", "  ", "-", "+", "--5", "- 5", "1 2", "5\n", "\v5\f", "5\x01", "\u00a05", "\uff15", "-0",
    "00000000000000000000005", "1e3", "1.0", "1.5x", "1 _", "07", "-000000001", "123456789", "999999999999999999",
    # of other bases and with underscores, since 16
    "1_000", "1__0", "_1", "1_", "0_1", "1_e5", "0x1F", "0X1f", "0x", "0x_1F", "0x1_", "0xg", "0x1F.5", "-0x10", "+0b1",
    "0b101", "0b_1", "0b2", "0o17", "0o8", "0x00000000000000000000001", "-0xff", "0x0", "-0x0", "0b" + "1" * 63,
    "0b" + "1" * 64, "0x7fff", "0x8000", "-0x8000", "0x7fffffff", "0x80000000", "-0x80000000", "0x80000001g",
    "0x7fffffffffffffff", "0x8000000000000000", "-0x8000000000000000", "0xFFFFFFFFF_", "0o1_7", "1.5_5", "1._5", "1_.5",
    # too large, and what else is wrong with them
    "32767", "32768", "-32768", "-32769", "32768x", "32769x", "327680x", "2147483647", "2147483648", "-2147483648",
    "-2147483649", "2147483648abc", "2147483649abc", "21474836490abc", "214748364_9", "9223372036854775807",
    "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "9223372036854775809x",
    "9223372036854775810x", "9" * 400,
    # numeric and double precision
    ".5", "5.", ".", "+.", "-.5", "+.5e1", "NaN", "nan ", "+nan", "-nan", "nanx", "nan(5)", "nan(", "Infinity", "inf",
    "+inf", "-INF", "infinit", "inf x", "1.5.5", "1 e5", "1e5 ", "1e", "1e+", "1e 5", "1e\t5", "1e+ 5", "1e1_0", "1e_1",
    "1e0_5", "1e+05", "1e5_", "0.0", "-0.00", "0e-5", "0e300000", "0.0e200000", "1e-1638", "1e-16384", "1e1310",
    "1e131072", "1e99999999999", "1e99999999999x", "0e99999999999", "1e-99999999999", "0e1073741822", "0e1073741823",
    "0e1073741824", "1e1073741823x", "1e-1073741824x",
    "1e400", "1e400x", "-1e400", "1e-400", "5e-324", "2e-324", "1e-310", "0x1p3", "0x.8", "0x1.8p1x", "0x1p99999",
    "0x1p-1080", "0x1p-1074", "1.7976931348623157e308", "1.7976931348623159e308", "0.1", "9007199254740993", " inf\t",
]  # fmt: skip
LONG_NUMBERS = [
    "0" * 6000 + "1", "1" * 5000, "1" * 131072, "1" * 131073, "1" * 131073 + "x", "0." + "0" * 16382 + "1",
    "0." + "0" * 16383 + "1", "0." + "0" * 300000 + "1e300001", "1e131071", "0x" + "f" * 100000, "0x" + "f" * 109000,
    "0x" + "0" * 200000 + "1", "0x" + "f" * 109000 + "g",
]  # fmt: skip
#: letters whose other case is more, less, none or another's
LETTERS = ["", "a", "HELLO world", "Zz[`{@", "o'neil-smith 2nd", "1abc ABC9d", "héLLO ÀÉ éa", "ǅ Ǆ ǆ", "İstanbul ıI",
           "straße STRASSE ẞ", "ſ S", "\u212a K", "ÿ Ÿ", "ŉ ΐ", "ΣΑΣ σας", "ＡＢ ａｂ",
           "𐐀𐐨", "Ⅷ ⅷ", "e\u0301 E\u0301", "%_\\"]
#: arguments that stand for something, by function and place
SPECIAL: dict[tuple[str, int], list[str]] = {
    ("encode", 1): ["hex", "base64", "escape", "nonsense"], ("decode", 1): ["hex", "base64", "escape", "nonsense"],
    ("decode", 0): ["", "6162", "YWI=", "x", "abc\\\\def"], ("split_part", 1): [",", "", "b", "ab"],
    ("split_part", 2): ["0", "1", "-1", "2", "9", "-9"], ("chr", 0): ["65", "233", "0", "-1", "1114112", "55296"],
    ("make_timestamp", 0): ["2024", "-44", "0", "294246", "-4713"], ("make_timestamp", 1): ["2", "11", "13"],
    ("make_timestamp", 2): ["29", "24", "0"], ("make_timestamp", 3): ["0", "23", "24", "25", "-1"],
    ("make_timestamp", 4): ["0", "59", "60"],
    ("make_timestamp", 5): ["0", "59.9999995", "60", "60.5", "NaN", "-0.0000004", "1.0000005", "Infinity", "12.5"],
    ("make_date", 0): ["2024", "-44", "0", "5874897"], ("make_date", 1): ["2", "13", "0"],
    ("make_date", 2): ["29", "30", "1", "0"], ("repeat", 1): ["0", "3", "-1"], ("lpad", 1): ["0", "3", "9", "-1"],
    ("rpad", 1): ["0", "3", "9", "-1"], ("substr", 1): ["0", "1", "-2", "3", "2147483647"],
    ("substr", 2): ["0", "2", "-1", "2147483647"], ("substring", 1): ["0", "1", "-2", "3"],
    ("substring", 2): ["0", "2", "-1", "2147483647"], ("round", 1): ["0", "2", "-1", "-30", "20"],
    ("trunc", 1): ["0", "2", "-1", "20"], ("to_timestamp", 0): ["0", "1.5", "-1e9", "NaN", "Infinity", "1e300"],
    ("overlay", 2): ["0", "1", "2", "9", "2147483647", "-1"], ("overlay", 3): ["0", "2", "-3", "2147483647"],
    ("left", 1): ["0", "2", "-2", "99"], ("right", 1): ["0", "2", "-2", "99"],
    ("->", 1): ["a", "b", "x", ""], ("->>", 1): ["a", "b", "x", ""], ("?", 1): ["a", "x", "text", "1"],
    ("->int4", 1): ["0", "1", "-1", "2", "-5"], ("->>int4", 1): ["0", "1", "-1", "2", "-5"],
    ("extract", 0): FIELDS, ("date_part", 0): FIELDS, ("date_trunc", 0): FIELDS,
    ("numeric", 1): ["393222", "1310724", "-1", "198656"],
    **{(name + "text", 0): NUMBERS for name in ("int2", "int4", "int8", "numeric", "float8")},
    ("booltext", 0): ["t", "T", "tr", " true ", "o", "of", "on", "yes", "ye", "\u00a0t", "1", "0", "01", "", "\vt", "n",
                      "truex", "TRUE", "no", "1 ", "y\u0131", "falſe"],
    ("uuidtext", 0): ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
                      "{a0eebc99-9c0b4ef8-bb6d-6bb9bd380a11}", "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
                      " a0eebc999c0b4ef8bb6d6bb9bd380a11", "a0eebc999c0b4ef8bb6d6bb9bd380a11\n", "",
                      "a0eebc999c0b4ef8bb6d6bb9bd380a11", "{a0eebc999c0b4ef8bb6d6bb9bd380a11",
                      "a0eebc999c0b4ef8bb6d6bb9bd380a1", "a0eebc99--9c0b4ef8bb6d6bb9bd380a11",
                      "a-0eebc999c0b4ef8bb6d6bb9bd380a11", "a0eebc999c0b4ef8bb6d6bb9bd380a11-"],
    **{(name, 0): LETTERS for name in ("lower", "upper", "initcap", "~~*", "!~~*")},
    **{(name, 1): ["hello%", "%STRASSE%", "%é_", "%É_", "%k%", "ǆ%", "%i%", "\\A", "%\\", "_", "", "İ%", "ﬀ"]
       for name in ("~~*", "!~~*")},
    **{(name, 1): ["%", "h%", "%b%", "_%", "%_", "a_c%", "\\%_\\\\", "%\\", "a\\", "_\\", "a%\\", "b\\", "H%lo\\",
                   "%\\\\", "\\", "", "%,\\b,_", "ß_𝄞", "%é%\\", "\\a", "%%\\%"] for name in ("~~", "!~~")},
    ("jsonb_set_text", 1): ["{}", "{a}", "{b,1}", "{b,-1,c}", "{b,2,c}", "{x,a}", "{0}", "{9}", "{-9}", "{b,x}",
                           "{b,9}",
                           "{b,-9}", "{b, 1}", "{a,b}", "{b,NULL}", "{NULL}", "{b,99999999999}", "{1,2}"],
    ("varchar", 1): ["-1", "4", "5", "6", "9", "20"],
    ("timestampint4", 1): ["0", "1", "3", "5", "6", "2"], ("timestamptzint4", 1): ["0", "1", "3", "5", "6", "2"],
    ("~~bytea", 1): ["\\x25", "\\x", "\\x5f25", "\\x615f", "\\xff25", "\\x2561", "\\x5c61", "\\x5c"],
    ("!~~bytea", 1): ["\\x25", "\\x", "\\x615f", "\\x5c"],
    **{(name, 1): ["a", "^h", "l+o$", "[^a-z]", "(a|b),", "^(.*)$", "b{1,2}", "é", " +x", "^.$", "%_\\\\",
                   "[,.-]", "^$"]
       for name in ("~", "!~", "regexp_like")},
    **{(name, 1): ["HELLO", "^[a-h]+", "\\s", "\\w\\W", "É", "[^L]", "\\d|\\S", "(ab|X)$", "k", "ß"]
       for name in ("~*", "!~*")},
    **{(name, 1): ["l+", "[^a-z]", "^.", "é|a"[:1], "b,c", "(l+)o", "x ", "[ab]{2}", "\\.", "%(_)", ".+"]
       for name in ("regexp_replace", "regexp_substr", "substringtext")},
    ("regexp_replace", 2): ["", "-", "é"], ("regexp_replace", 3): ["g"],
    ("<<int4", 1): ["0", "1", "5", "15", "16", "31", "32", "33", "63", "64", "-1", "-2147483648", "2147483647"],
    (">>int4", 1): ["0", "1", "5", "15", "16", "31", "32", "33", "63", "64", "-1", "-2147483648", "2147483647"],
    ("factorial", 0): ["0", "1", "-1", "5", "20", "21", "170", "32178", "9223372036854775807"],
    ("translate", 1): ["lo", "", "héw"], ("translate", 2): ["01", "", "abc"],
}  # fmt: skip


def literal(text: str | None, kind: str) -> str:
    name = "int4" if kind == "any" else kind
    name = "text[]" if name == "_text" else name
    return f"NULL::{name}" if text is None else "'" + text.replace("'", "''") + f"'::{name}"


def texts(name: str, kinds: Sequence[str], *, stored: bool = False) -> list[tuple[str | None, ...]]:
    """Rows of arguments for a function of these types, NULLs among them; ``stored``: in columns, which hold more than
    the query engine's intervals."""
    lists = []
    for place, kind in enumerate(kinds):
        special = SPECIAL.get((name + kind, place)) or SPECIAL.get((name, place))
        found = special or ARGUMENTS["text[]" if kind == "_text" else kind]
        if stored and kind == "interval":
            found = [*KEPT["interval"], *found]
        elif "interval" in kinds and not stored:
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
