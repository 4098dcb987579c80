"""Values of every basic type as SQL literals: the extremes, and what differs between engines; none is NULL."""

from __future__ import annotations

MEGABYTE = 1 << 20

FLOAT8 = [
    "0", "-0", "1", "-1.5", "NaN", "Infinity", "-Infinity", "5e-324", "-5e-324", "2.2250738585072009e-308",
    "2.2250738585072014e-308", "1.7976931348623157e308", "-1.7976931348623157e308", "0.1", "0.30000000000000004",
    "1e15", "123456789012345680", "1e-5", "9007199254740993",
]  # fmt: skip
FLOAT4 = [
    "0", "-0", "1", "-1.5", "NaN", "Infinity", "-Infinity", "1e-45", "-1e-45", "1.17549421e-38", "1.17549435e-38",
    "3.4028235e38", "-3.4028235e38", "0.1", "16777216", "1e6", "1e-5", "3.1415927",
]  # fmt: skip
NUMERIC = [
    "0", "0.00", "1", "1.000", "-1.50", "NaN", "Infinity", "-Infinity", "1e-20", "0.00000000000000000001", "1e30",
    "99999999999999999999999999999999999999", "-99999999999999999999999999999999999999",
    "12345678901234567890123456789012345678.00", "0.12345678901234567890123456789012345678", "10000", "100000000",
    "-0.0", "9999.9999", "1e200", "1.5e-200", "7" * 1000,
]  # fmt: skip
TEXT = [
    "", " ", "a", "A", "a ", "é", "e\u0301", "☃", "𝄞 clef", "日本語", "\t\n\r\\", "'", '"', "\x01\x7f", "\ufffd",
    "x" * 255, "ÿ" * 300, "{}", "NULL", "\\N", "\uffff", "\U0010ffff",
]  # fmt: skip
DATE = [
    "2000-01-01", "1999-12-31", "1970-01-01", "2024-02-29", "0001-01-01", "0001-12-31 BC", "4714-11-24 BC",
    "5874897-12-31", "infinity", "-infinity", "9999-12-31", "10000-01-01",
]  # fmt: skip
TIMESTAMP = [
    "2000-01-01 00:00:00", "1999-12-31 23:59:59.999999", "2024-02-29 12:30:15.123456", "0001-01-01 00:00:00.000001",
    "0044-03-15 12:00 BC", "4714-11-24 00:00:00 BC", "294276-12-31 23:59:59.999999", "294247-01-10 04:00:54.775807",
    "294247-01-10 04:00:54.775808", "infinity", "-infinity", "1970-01-01 00:00:00.5", "2024-03-31 02:30:00",
]  # fmt: skip
JSON = [
    "null", "true", "1", "1.10", '""', "[]", "{}", '{"b": 1, "a": 2,   "b": 3}', "[1,2 ,\t3]", '"\\u00e9 é"',
    '{"k": 1.0, "n": 1e5, "deep": [[[[{"x": null}]]]]}', "123456789012345678901234567890.000", '"☃"', "  [1]  ",
    '"\\\\u0000"', "-0", "1e-7",
]  # fmt: skip
BYTEA = ["", "\\x00", "\\x0000ff", "\\xdeadbeef", "\\x" + "00" * 1000, "\\x27225c", "\\x80"]
UUID = [
    "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "7fffffff-ffff-ffff-8000-000000000000", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
]  # fmt: skip

#: type → the texts of its values, the large ones left out
VALUES: dict[str, list[str]] = {
    "boolean": ["true", "false"],
    "smallint": ["0", "1", "-1", "32767", "-32768"],
    "integer": ["0", "1", "-1", "2147483647", "-2147483648"],
    "bigint": ["0", "1", "-1", "9223372036854775807", "-9223372036854775808", "9007199254740993"],
    "real": FLOAT4,
    "double precision": FLOAT8,
    "numeric": NUMERIC,
    "numeric(12,4)": ["0", "1", "1.00005", "-1.00005", "99999999.9999", "-99999999.9999", "NaN", "0.1"],
    "numeric(38)": ["0", "1.5", "2.5", "-" + "9" * 38, "9" * 38, "NaN"],
    "text": TEXT,
    "varchar": TEXT,
    "varchar(5)": ["", "a", "é☃é☃é", "𝄞𝄞𝄞𝄞𝄞", "ab   ", "    "],
    "bytea": BYTEA,
    "date": DATE,
    "timestamp": TIMESTAMP,
    "timestamp(3)": ["2024-01-01 00:00:00.0005", "2024-01-01 00:00:00.123456", "infinity"],
    "timestamptz": [f"{value} UTC" if value[-1] in "0123456789" else value for value in TIMESTAMP if "BC" not in value]
    + ["0044-03-15 12:00 UTC BC", "4714-11-24 00:00:00 UTC BC", "2024-06-30 12:00:00 Europe/Berlin"],
    "uuid": UUID,
    "json": [*JSON, '"\\u0000"', '{"a":1,"a":2}'],
    "jsonb": JSON,
}

LARGE: dict[str, str] = {
    "text": f"repeat('é☃', {MEGABYTE // 5})",
    "varchar": f"repeat('x', {MEGABYTE})",
    "bytea": f"decode(repeat('00ff', {MEGABYTE // 2}), 'hex')",
    "json": f"('[\"' || repeat('j', {MEGABYTE}) || '\"]')::json",
    "jsonb": f"('[\"' || repeat('j', {MEGABYTE}) || '\"]')::jsonb",
    "numeric": "repeat('9', 131072)::numeric",
}

#: what may be a key, and values equal to one another that are written differently
KEYS: dict[str, list[tuple[str, str]]] = {
    "boolean": [], "smallint": [], "integer": [], "bigint": [], "text": [], "varchar": [], "varchar(5)": [],
    "bytea": [], "date": [], "timestamp": [], "timestamptz": [], "uuid": [],
    "real": [("0", "-0"), ("NaN", "NaN")],
    "double precision": [("0", "-0"), ("-0", "0"), ("NaN", "NaN"), ("Infinity", "1e308")],
    "numeric": [("1", "1.0"), ("1.000", "1"), ("0", "-0.00"), ("NaN", "NaN"), ("1e30", "1e30"), ("-1.50", "-1.5")],
    "numeric(12,4)": [("1", "1.00004")],
    "timestamp(3)": [],
}  # fmt: skip


def literal(text: str, type_: str) -> str:
    return "'" + text.replace("'", "''") + f"'::{type_}"
