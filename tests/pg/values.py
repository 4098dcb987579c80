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


# ---------- types that are kept as their text ----------
_CLOCK = ["00:00:00", "24:00:00", "23:59:59.999999", "12:30:15.1", "00:00:00.000001"]
_MOMENTS = "{{{},{},-infinity,infinity}}"

KEPT: dict[str, list[str]] = {
    "time": _CLOCK,
    "time(2)": ["00:00:00.005", "23:59:59.999"],
    "timetz": ["12:00:00+00", "13:00:00+01", "11:00:00-01", "24:00:00-15:59:59", "00:00:00.000001+15:59",
               "12:00:00.5+05:30"],
    "interval": ["0", "1 mon", "30 days", "720:00:00", "-1 mon", "1 year 2 mons -3 days 04:05:06.789",
                 "-1 years -2 mons +3 days -04:05:06.7", "178000000 years", "-178000000 years",
                 "2147483647 days", "9223372036854775807 us", "-9223372036854775808 us", "1 us", "-00:00:00.000001"],
    "interval(2)": ["1.239 s", "-0.999 s"],
    "char(5)": ["", "a", "ab   ", "é☃é☃é", "A", " a"],
    "bpchar": ["", "a", "a  ", "é☃"],
    '"char"': ["a", "", "\\", "z"],
    "name": ["", "a", "A name", "é"],
    "bit(5)": ["00000", "11111", "01010"],
    "varbit": ["", "0", "1", "10", "100000001", "10000000", "1" * 100],
    "varbit(3)": ["", "101"],
    "inet": ["10.0.0.1", "10.0.0.1/8", "10.0.0.0/8", "0.0.0.0/0", "255.255.255.255", "::1", "::/0", "2001:db8::1/64",
             "::ffff:1.2.3.4", "192.168.1.5/32", "::1.2.3.4"],
    "cidr": ["10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "192.168.100.128/25", "::ffff:1.2.3.0/120"],
    "macaddr": ["00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "08:00:2b:01:02:03"],
    "macaddr8": ["00:00:00:00:00:00:00:00", "08:00:2b:01:02:03:04:05", "08:00:2b:01:02:03"],
    "oid": ["0", "4294967295", "1259"],
    "money": ["0", "-92233720368547758.08", "92233720368547758.07", "1234567.89", "-0.01"],
    "pg_lsn": ["0/0", "FFFFFFFF/FFFFFFFF", "16/B374D848"],
    "xid8": ["0", "18446744073709551615"],
    "tsvector": ["", "'a':1A 'b c':2,3B", "fat cat sat"],
    "tsquery": ["'a' & !'b':AB", "fat <-> cat"],
    "point": ["(0,0)", "(1.5,-2e300)", "(NaN,Infinity)"],
    "box": ["(1,1),(0,0)"],
    "polygon": ["((0,0),(1,0),(1,1))"],
    "circle": ["<(0,0),1.5>"],
    "jsonpath": ["$", '$."a"[*]?(@ > 1)'],
    "tid": ["(0,0)", "(4294967295,65535)"],
    "pg_snapshot": ["10:20:10,14"],
    "regclass": ["pg_class", "-"],
    "regtype": ["integer", "text[]"],
    "int2vector": ["1 2 3"],
    "mood": ["sad", "ok", "very happy", "it's, \"so\" \\so"],
    "pairing": ["(1,a,)", '(,"",{1.0})', '(-5,"q""uo,te\\\\","{NULL,NaN,-1.50}")', "(,,)"],
    "small": ["1", "99"],
    "words": ["", "é☃"],
    "moods": ["sad"],
    "numbers": ["{}", "{1,NULL,3}", "[0:1]={5,6}"],
    "pairings": ["(1,b,)"],
    "int4range": ["empty", "[1,10)", "(,)", "[,5]", "[-2147483648,2147483647)"],
    "int8range": ["empty", "[1,10)", "(,0)"],
    "numrange": ["empty", "[1.0,2.50)", "(,)", "[NaN,NaN]", "(-Infinity,1e30]", "[0.00,0.00]"],
    "daterange": ["empty", "[2000-01-01,infinity]", "[4714-11-24 BC,5874897-12-31)", "(,2000-01-01)"],
    "tsrange": ["empty", '["2000-01-01 00:00:00","2000-01-01 00:00:00.000001")', "[-infinity,infinity]"],
    "tstzrange": ["empty", '["2000-01-01 00:00:00+02","2000-07-01 00:00:00-07")', "(,infinity)"],
    "int4multirange": ["{}", "{[1,3),[5,7)}"],
    "nummultirange": ["{}", "{[1.0,2.00),(5,)}"],
    "datemultirange": ["{[2000-01-01,2000-02-01)}"],
    "tstzmultirange": ['{["2000-01-01 00:00:00+02","2000-07-01 00:00:00-07")}'],
    "spans": ["[-0,1.5]", "empty", "[-1e300,NaN]"],
    "int[]": ["{}", "{1,NULL,-2147483648}", "{{1,2},{3,4}}", "[2:3]={7,8}", "[0:0][-1:0]={{1,NULL}}"],
    "bigint[]": ["{9223372036854775807}"],
    "boolean[]": ["{t,f,NULL}"],
    "text[]": ["{}", '{"",NULL,"NULL","a,b","q\\"q","b\\\\b"," sp ","{x}",é☃}', "{{a},{b}}"],
    "varchar(5)[]": ["{abcde,NULL}"],
    "char(3)[]": ["{a,bcd}"],
    "numeric[]": ["{1.0,1.00,NaN,-Infinity,NULL}", "{{1e30,0.00}}"],
    "numeric(10,2)[]": ["{1,2.345}"],
    "double precision[]": ["{-0,0,NaN,Infinity,5e-324,0.1,1e15}"],
    "real[]": ["{-0,3.4028235e38,1e-45}"],
    "bytea[]": ['{"\\\\x","\\\\x00ff",NULL}'],
    "uuid[]": ["{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}"],
    "date[]": [_MOMENTS.format("4714-11-24 BC", "5874897-12-31")],
    "timestamp[]": [_MOMENTS.format('"4714-11-24 00:00:00 BC"', '"294276-12-31 23:59:59.999999"')],
    "timestamptz[]": [_MOMENTS.format('"4714-11-24 00:00:00+00 BC"', '"2024-06-30 12:00:00+02"')],
    "interval[]": ['{"1 mon","30 days",NULL,"-1 years +3 days"}'],
    "time[]": ["{24:00:00}"],
    "json[]": ['{"{\\"a\\":  1}",NULL}'],
    "jsonb[]": ['{"{\\"a\\": 1.50}","\\"\\\\\\"\\""}'],
    "inet[]": ["{10.0.0.1,::1/64}"],
    "mood[]": ["{sad,NULL}", '{"it\'s, \\"so\\" \\\\so"}'],
    "pairing[]": ['{"(1,\\"a,b\\",)",NULL}'],
    "int4range[]": ['{empty,"[1,2)"}'],
    "small[]": ["{1,99}"],
}  # fmt: skip

#: what the types above are made of
MADE = """
CREATE TYPE mood AS ENUM ('very happy', 'ok', 'sad', 'it''s, "so" \\so');
CREATE TYPE pairing AS (a int, b text, c numeric[]);
CREATE DOMAIN small AS int CHECK (value < 100);
CREATE DOMAIN words AS text CHECK (value <> 'bad');
CREATE DOMAIN moods AS mood CHECK (value <> 'ok');
CREATE DOMAIN numbers AS int[] CHECK (cardinality(value) < 10);
CREATE DOMAIN pairings AS pairing CHECK ((value).a > 0);
CREATE TYPE spans AS RANGE (subtype = float8);
"""
