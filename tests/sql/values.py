"""Texts of values at the edges, by the type's name in pg_catalog; none is NULL."""

from __future__ import annotations

_TIMES = [
    "2000-01-01 00:00:00", "1999-12-31 23:59:59.999999", "0044-03-15 12:00:00 BC", "294276-12-31 23:59:59.999999",
    "infinity", "-infinity", "4714-11-24 00:00:00 BC", "2024-02-29 12:30:15.1",
]

VALUES: dict[str, list[str]] = {
    "bool": ["t", "f"],
    "int2": ["0", "1", "-1", "32767", "-32768"],
    "int4": ["0", "1", "-1", "2147483647", "-2147483648", "32768"],
    "int8": ["0", "1", "-1", "9223372036854775807", "-9223372036854775808", "9007199254740993", "32768"],
    "float4": ["0", "-0", "1", "0.1", "NaN", "Infinity", "-Infinity", "1e-45", "3.4028235e38", "16777216", "-1.5"],
    "float8": ["0", "-0", "1", "0.1", "0.10000000149011612", "NaN", "Infinity", "-Infinity", "5e-324",
               "1.7976931348623157e308", "9007199254740992", "-1.5"],
    "numeric": ["0", "-0.00", "1", "1.0", "1.00", "NaN", "Infinity", "-Infinity", "1e-20", "-1.5", "10000", "9999.9999",
                "99999999999999999999999999999999999999.5", "1e200"],
    "text": ["", " ", "a", "A", "a ", "b", "é", "e\u0301", "☃", "𝄞", "\uffff", "日本", "\x01", "'", "\\", "%"],
    "varchar": ["", " ", "a", "A", "a ", "b", "é", "☃", "𝄞", "\uffff"],
    "bytea": ["\\x", "\\x00", "\\x0000", "\\x00ff", "\\x27", "\\xff", "\\xffff", "\\x61"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff",
             "7fffffff-ffff-ffff-8000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    "date": ["2000-01-01", "1999-12-31", "4714-11-24 BC", "5874897-12-31", "infinity", "-infinity", "2024-02-29"],
    "timestamp": _TIMES,
    "timestamptz": [time if "infinity" in time else time.replace(" BC", "") + "+00" + (" BC" if "BC" in time else "")
                    for time in _TIMES],
}  # fmt: skip
