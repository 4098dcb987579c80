"""extract, date_part and date_trunc whose field is computed, as signatures of ``kalamdb.sql.functions``.

A field is known by PostgreSQL's words for it. A line holds one branch for each; where the field is a constant the query
engine leaves one. Types are date and timestamp only: the fields of a timestamptz depend on the session's time zone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kalamdb.sql.native import failure

#: as PostgreSQL compares them, by ten characters
WORDS: dict[str, str] = {
    "microseconds": "microsecon us usec usecond useconds usecs", "year": "y year years yr yrs",
    "milliseconds": "millisecon ms msec msecond mseconds msecs", "second": "s sec second seconds secs",
    "minute": "m min mins minute minutes", "hour": "h hour hours hr hrs", "day": "d day days", "week": "w week weeks",
    "month": "mon mons month months", "quarter": "qtr quarter", "decade": "dec decade decades decs",
    "century": "c cent century centuries", "millennium": "mil mils millennia millennium", "dow": "dow",
    "isodow": "isodow", "doy": "doy", "isoyear": "isoyear", "epoch": "epoch", "julian": "j jd julian",
    "timezone": "timezone timezone_h timezone_m", "now": "now today tomorrow yesterday",
}
#: of infinite values infinite; the others are NULL
GROWING = ("year", "decade", "century", "millennium", "isoyear", "epoch", "julian")
_CLOCK = ("microseconds", "milliseconds", "second", "minute", "hour")

_YEAR = "extract(year FROM $2)"
_MICROS = "extract(microsecond FROM $2)"
_OF_DAY = f"(extract(hour FROM $2) * 3600000000 + extract(minute FROM $2) * 60000000 + {_MICROS})"


def _ages(years: int) -> str:
    """Centuries and millennia begin with their year 1."""
    return (f"CASE WHEN {_YEAR} > 0 THEN ({_YEAR} + {years - 1}) // {years} ELSE -(({years} - {_YEAR}) // {years}) END")


_WHOLE: dict[str, str] = {
    "microseconds": _MICROS, "year": f"CASE WHEN {_YEAR} > 0 THEN {_YEAR} ELSE {_YEAR} - 1 END",
    "decade": f"({_YEAR} - ({_YEAR} % 10 + 10) % 10) // 10", "century": _ages(100), "millennium": _ages(1000),
    "isoyear": "CASE WHEN extract(isoyear FROM $2) > 0 THEN extract(isoyear FROM $2) "
               "ELSE extract(isoyear FROM $2) - 1 END",
    **{word: f"extract({word} FROM $2)" for word in (
        "minute", "hour", "day", "week", "month", "quarter", "dow", "isodow", "doy")},
}  # fmt: skip
_DAYS = "(CAST($2 AS DATE) - DATE '1970-01-01')"


def _shifted(micros: str, digits: int) -> str:
    """A whole number with so many digits after the point."""
    unit = f"CAST('{10.0**-digits:.{digits}f}' AS DECIMAL(7, {digits}))"
    return f"(CAST({micros} AS DECIMAL(20, 0)) * {unit})"


#: SQL, and digits after the point
_DECIMAL: dict[str, tuple[str, int]] = {
    **{word: (sql, 0) for word, sql in _WHOLE.items()}, "second": (_shifted(_MICROS, 6), 6),
    "milliseconds": (_shifted(_MICROS, 3), 3), "epoch": (_shifted("epoch_us($2)", 6), 6),
}  # fmt: skip
_DATE_EPOCH = f"CAST({_DAYS} AS BIGINT) * 86400"
_NUMERIC: dict[str, str] = {
    **{word: f"CAST({sql} AS VARCHAR)" for word, (sql, _) in _DECIMAL.items()},
    "julian": f"kalam_n_add(CAST({_DAYS} + 2440588 AS VARCHAR), kalam_n_div(CAST({_OF_DAY} AS VARCHAR), "
              "'86400000000'))",
}  # fmt: skip
_OF_DATE: dict[str, str] = {
    **{word: sql for word, sql in _NUMERIC.items() if word not in _CLOCK},
    "epoch": f"CAST({_DATE_EPOCH} AS VARCHAR)", "julian": f"CAST({_DAYS} + 2440588 AS VARCHAR)",
}  # fmt: skip
_SECOND, _REST = f"CAST({_MICROS} // 1000000 AS DOUBLE)", f"CAST({_MICROS} % 1000000 AS DOUBLE)"
_FLOATS = ("CAST('Infinity' AS DOUBLE)", "CAST('-Infinity' AS DOUBLE)")
_MILLION = "CAST(1000000 AS DOUBLE)"
_FLOAT: dict[str, str] = {
    **{word: f"CAST({sql} AS DOUBLE)" for word, sql in _WHOLE.items()},
    "second": f"{_SECOND} + {_REST} / {_MILLION}", "milliseconds": f"{_SECOND} * 1000 + {_REST} / CAST(1000 AS DOUBLE)",
    "epoch": f"CAST(epoch_us($2) AS DOUBLE) / {_MILLION}",
    "julian": f"CAST({_DAYS} + 2440588 AS DOUBLE) + (CAST({_OF_DAY} // 1000000 AS DOUBLE) + {_REST} / {_MILLION})"
              " / CAST(86400 AS DOUBLE)",
}  # fmt: skip


def _first_year(years: int, first: int) -> str:
    """The first of January of the decade, century or millennium."""
    into = f"(({_YEAR} - {first}) % {years} + {years}) % {years}"
    return f"date_trunc('year', $2) - to_years(CAST({into} AS INTEGER))"


#: after it the query engine has dates, but no timestamps
LAST_DAY = "DATE '294247-01-09'"


def moment_of(date: str, duck: str = "TIMESTAMP") -> str:
    """A date as a timestamp of either kind."""
    late = failure("22008", "date out of range for timestamp")
    return f"(CASE WHEN {date} > {LAST_DAY} AND isfinite({date}) THEN {late} ELSE CAST({date} AS {duck}) END)"


#: of PostgreSQL's first day
FIRST = "make_timestamp(-210866803200000000)"
_EARLY = failure("22008", "timestamp out of range")


def _bounded(sql: str) -> str:
    return f"CASE WHEN {sql} < {FIRST} THEN {_EARLY} ELSE {sql} END"


_TRUNCATED: dict[str, str] = {
    **{word: f"date_trunc('{word}', $2)" for word in (*_CLOCK, "day")},
    **{word: _bounded(f"date_trunc('{word}', $2)") for word in ("week", "month", "quarter", "year")},
    "decade": _bounded(_first_year(10, 0)), "century": _bounded(_first_year(100, 1)),
    "millennium": _bounded(_first_year(1000, 1)),
}  # fmt: skip


def _when(words: list[str]) -> str:
    listed = ", ".join(f"'{word}'" for field in words for word in WORDS[field].split())
    return f"left(lower($1), 10) IN ({listed})"


def _refusal(sqlstate: str, what: str) -> str:
    before, after = failure(sqlstate, f"unit \0 {what}").split("\0")
    return f"""{before}"' || $1 || '"{after}"""


def _unknown(of: str, words: list[str]) -> str:
    """The error of a field that is one of these words, or none."""
    return (f"CASE WHEN {_when(words)} THEN {_refusal('0A000', f'not supported for type {of}')} "
            f"ELSE {_refusal('22023', f'not recognized for type {of}')} END")


def _field(of: str, branches: Mapping[str, str], infinite: tuple[str, str]) -> str:
    end = _unknown(of, [word for word in WORDS if word not in branches])
    others = [word for word in branches if word not in GROWING] + (["timezone"] if "hour" in branches else [])
    sides = f"CASE WHEN $2 > DATE '2000-01-01' THEN {infinite[0]} ELSE {infinite[1]} END"
    whens = " ".join(f"WHEN {_when([word])} THEN {sql}" for word, sql in branches.items())
    return (f"CASE WHEN $1 IS NULL OR $2 IS NULL THEN NULL WHEN isfinite($2) THEN CASE {whens} ELSE {end} END "
            f"WHEN {_when(list(GROWING))} THEN {sides} WHEN {_when(others)} THEN NULL ELSE {end} END")


def canonical(word: str) -> str | None:
    """The field that a word means."""
    known = word.lower()[:10]
    return next((field for field, words in WORDS.items() if known in words.split()), None)


def decimal_of(field: str | None, of: str) -> tuple[str, int] | None:
    """SQL of a field of a date or timestamp $2 that is not infinite, and its digits after the point."""
    if of == "date" and (field in _CLOCK or field == "epoch"):
        return (_DATE_EPOCH, 0) if field == "epoch" else None
    return _DECIMAL.get(field or "")


def constant(function: str, word: str) -> str | None:
    """The template of date_part or date_trunc of a timestamp where the field is known; None if it is none."""
    field = canonical(word) or ""
    if function == "date_trunc":
        sql = _TRUNCATED.get(field)
        return None if sql is None else f"CASE WHEN isfinite($2) THEN {sql} ELSE $2 END"
    sql = _FLOAT.get(field)
    if sql is None:
        return None
    sides = f"CASE WHEN $2 > DATE '2000-01-01' THEN {_FLOATS[0]} ELSE {_FLOATS[1]} END"
    infinite = sides if field in GROWING else "NULL"
    return f"CASE WHEN isfinite($2) THEN {sql} WHEN $2 IS NOT NULL THEN {infinite} END"


def lines() -> Iterator[str]:
    texts = ("'Infinity'", "'-Infinity'")
    yield f"extract_field(text,timestamp) numeric {_field('timestamp without time zone', _NUMERIC, texts)}"
    yield f"extract_field(text,date) numeric {_field('date', _OF_DATE, texts)}"
    yield f"date_part(text,timestamp) float8 {_field('timestamp without time zone', _FLOAT, _FLOATS)}"
    whens = " ".join(f"WHEN {_when([word])} THEN {sql}" for word, sql in _TRUNCATED.items())
    end = _unknown("timestamp without time zone", ["timezone"])
    yield (f"date_trunc(text,timestamp) timestamp CASE WHEN $1 IS NULL THEN NULL WHEN NOT isfinite($2) THEN $2 "
           f"WHEN $2 IS NULL THEN NULL {whens} ELSE {end} END")
