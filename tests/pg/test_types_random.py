"""Random values of all types and random conditions: the rows are those of an ordinary table, whoever picks them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from .pair import Pair
from .values import DATE, FLOAT4, FLOAT8, KEPT, NUMERIC, TEXT, TIMESTAMP, UUID

pytestmark = pytest.mark.pg

FEW = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

# ---------- texts of values ----------
plain = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
words = st.text(plain, max_size=20)
floats = st.floats(allow_subnormal=True).map(repr)
singles = st.floats(width=32).map(repr)


def whole(bits: int) -> st.SearchStrategy[str]:
    return st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1).map(str)


def double_of(bits: int) -> str:
    return repr(struct.unpack(">d", bits.to_bytes(8))[0])


moments = st.integers(-210_000_000_000, 9_000_000_000_000).flatmap(
    lambda seconds: st.integers(0, 999_999).map(lambda micros: f"{seconds}.{micros:06}")
)


def array_text(values: list[str | None]) -> str:
    def element(value: str) -> str:
        doubled = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{doubled}"'

    return "{" + ",".join("NULL" if value is None else element(value) for value in values) + "}"


def arrays(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(st.none() | values, max_size=4).map(array_text)


clocks = st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999_999)).map(
    lambda parts: "{:02}:{:02}:{:02}.{:06}".format(*parts)
)
zones = st.integers(-57_599, 57_599).map(
    lambda zone: f"{'-' if zone < 0 else '+'}{abs(zone) // 3600:02}:{abs(zone) // 60 % 60:02}:{abs(zone) % 60:02}"
)
whole_numbers = st.integers(-(2**31), 2**31 - 1)
intervals = st.tuples(whole_numbers, whole_numbers, st.integers(1 - 2**63, 2**63 - 1)).map(
    lambda parts: f"{parts[0]} mons {parts[1]} days {parts[2]} us"
)
numbers = st.decimals(allow_nan=True, allow_infinity=True).map(str).filter(lambda text: "sNaN" not in text)
VALUES: dict[str, st.SearchStrategy[str]] = {
    "boolean": st.sampled_from(["true", "false"]),
    "smallint": whole(16),
    "integer": whole(32),
    "bigint": whole(64),
    "real": singles,
    "double precision": floats | st.integers(0, (1 << 64) - 1).map(double_of),
    "numeric": numbers.map(lambda text: text.replace("-NaN", "NaN")),
    "numeric(20,5)": st.decimals(-(10**14), 10**14, places=7, allow_nan=False, allow_infinity=False).map(str),
    "text": words,
    "varchar(20)": words,
    "bytea": st.binary(max_size=20).map(lambda data: "\\x" + data.hex()),
    "date": st.integers(-2_400_000, 2_145_000_000).map(lambda day: f"J{day + 2_451_545}"),
    "timestamp": moments,
    "timestamptz": moments,
    "uuid": st.uuids().map(str),
    "json": words,
    "jsonb": words,
    "time": clocks,
    "timetz": st.tuples(clocks, zones).map("".join),
    "interval": intervals,
    "varbit": st.text("01", max_size=20),
    "inet": st.ip_addresses().flatmap(lambda ip: st.integers(0, ip.max_prefixlen).map(lambda bits: f"{ip}/{bits}")),
    "char(25)": words,
    "int4range": st.tuples(whole_numbers, whole_numbers).map(sorted).map(lambda ends: f"[{ends[0]},{ends[1]})"),
    "text[]": arrays(words),
    "numeric[]": arrays(st.decimals(-(10**50), 10**50, allow_nan=False, allow_infinity=False).map(str)),
    "double precision[]": arrays(floats),
    "bytea[]": arrays(st.binary(max_size=9).map(lambda data: "\\x" + data.hex())),
    "interval[]": arrays(intervals),
}  # fmt: skip


def literal(type_: str, text: str | None) -> str:
    if text is None:
        return f"NULL::{type_}"
    quoted = "'" + text.replace("'", "''") + "'"
    if type_ in ("timestamp", "timestamptz"):  # seconds since 2000, exactly
        seconds, _, micros = text.partition(".")
        shift = f"{seconds} s {'-' if text[0] == '-' else ''}{micros} us"
        return f"('2000-01-01 00:00 UTC'::timestamptz + '{shift}'::interval)::{type_}"
    if type_ in ("json", "jsonb"):
        return f"json_build_object('a b', {quoted}::text, 'n', 1.50)::{type_}"
    return f"{quoted}::{type_}"


@pytest.fixture
def pair(dsn: str) -> Iterator[Pair]:
    pair = Pair(dsn)
    yield pair
    pair.close()


@pytest.mark.parametrize("form", ["one statement a row", "one batch"])
def test_random_rows(pair: Pair, form: str) -> None:
    names = [f"c{i}" for i in range(len(VALUES))]
    columns = ", ".join(f"{name} {type_}" for name, type_ in zip(names, VALUES, strict=True))
    pair.setup(f"CREATE TABLE t (id int PRIMARY KEY, {columns}) {{using}}")
    row = st.tuples(*(st.none() | values for values in VALUES.values()))
    kept = "SELECT t::text FROM (SELECT id, " + ", ".join(names) + " FROM t) t ORDER BY id"

    @FEW
    @given(st.lists(row, min_size=1, max_size=5))
    def check(rows: list[tuple[str | None, ...]]) -> None:
        texts = [
            ", ".join(literal(type_, value) for type_, value in zip(VALUES, values, strict=True)) for values in rows
        ]
        for side in (pair.heap, pair.kalam):
            side.conn.execute("DELETE FROM t")
            if form == "one batch":
                many = ", ".join(f"({i}, {text})" for i, text in enumerate(texts))
                side.conn.execute(f"INSERT INTO t SELECT x.* FROM (VALUES {many}) x, generate_series(1, 1)".encode())
                side.conn.execute("INSERT INTO t SELECT id + 10 * g, " + ", ".join(names)
                                  + " FROM t, generate_series(1, 300) g")
            else:
                for i, text in enumerate(texts):
                    side.conn.execute(f"INSERT INTO t VALUES ({i}, {text})".encode())
        assert pair.kalam.run(kept) == pair.heap.run(kept)

    check()


# ---------- conditions ----------
NUMBERS = ["0", "1", "-1", "2", "32767", "-32768", "2147483647", "9223372036854775807", "100"]
COLUMNS: dict[str, tuple[str, list[str]]] = {
    "s": ("smallint", ["0", "1", "-1", "32767", "-32768", "2"]),
    "i": ("integer", ["0", "1", "-1", "32767", "2147483647", "-2147483648", "2"]),
    "l": ("bigint", NUMBERS),
    "r": ("real", FLOAT4),
    "d": ("double precision", [*FLOAT8, "3.1415927", "3.1415927410125732", "16777217"]),
    "n": ("numeric", [*NUMERIC[:12], "32767", "2.0"]),
    "b": ("boolean", ["true", "false"]),
    "t": ("text", TEXT),
    "v": ("varchar", TEXT),
    "da": ("date", DATE),
    "ts": ("timestamp", TIMESTAMP),
    "u": ("uuid", UUID),
    "iv": ("interval", KEPT["interval"][:-3]),
    "ne": ("inet", KEPT["inet"]),
    "ar": ("numeric[]", ["{1.0,1.00}", "{1,1}", "{}", "{1,NULL}", "{NaN}"]),
    "tz": ("timetz", KEPT["timetz"]),
}
ALIKE = [["iv"], ["ne"], ["ar"], ["tz"],
         ["s", "i", "l", "n"], ["r", "d"], ["n"], ["b"], ["t", "v"], ["da"], ["ts"], ["u"],
         ["s", "d"], ["da", "ts"]]
OPERATORS = ["=", "<>", "<", "<=", ">", ">="]
#: comparisons of these pairs are in the capability table
SENT = [{"s", "i", "l"}, {"r", "d"}, {"n"}, {"t", "v"}, {"da"}, {"ts"}, {"u"}]


@st.composite
def constants(draw: st.DrawFn, name: str) -> str:
    type_, texts = COLUMNS[name]
    text = draw(st.none() | st.sampled_from(texts))
    quoted = "NULL" if text is None else "'" + text.replace("'", "''") + "'"
    return f"{quoted}::{type_}"


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    names = draw(st.sampled_from(ALIKE))
    left, right = draw(st.sampled_from(names)), draw(st.sampled_from(names))
    kind = draw(st.sampled_from(["constant", "column", "in", "not in", "null", "between"]))
    if kind == "null":
        return f"{left} IS {draw(st.sampled_from(['', 'NOT ']))}NULL"
    if kind.endswith("in"):
        values = draw(st.lists(constants(left), min_size=1, max_size=4))
        return f"{left} {kind.upper()} ({', '.join(values)})"
    if kind == "between":
        return f"{left} BETWEEN {draw(constants(right))} AND {draw(constants(right))}"
    operand = right if kind == "column" else draw(constants(right))
    sides = [left, operand] if draw(st.booleans()) else [operand, left]
    return f"{sides[0]} {draw(st.sampled_from(OPERATORS))} {sides[1]}"


conditions = st.recursive(
    comparisons() | st.just("b"),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda part: f"(NOT {part})"),
        st.tuples(inner, st.sampled_from(["TRUE", "FALSE", "UNKNOWN", "NOT TRUE", "NOT FALSE", "NOT UNKNOWN"])).map(
            lambda parts: f"(({parts[0]}) IS {parts[1]})"
        ),
    ),
    max_leaves=5,
)


def fill(pair: Pair) -> None:
    columns = ", ".join(f"{name} {type_}" for name, (type_, _) in COLUMNS.items())
    pair.setup(f"CREATE TABLE t (id int PRIMARY KEY, {columns}) {{using}}")
    rows = []
    for i in range(60):
        row = [str(i)]
        for place, (type_, texts) in enumerate(COLUMNS.values()):
            text = texts[(i * (place + 3) // 2) % len(texts)].replace("'", "''")
            row.append("NULL" if (i + place) % 7 == 0 else f"'{text}'::{type_}")
        rows.append(f"({', '.join(row)})")
    for side in (pair.heap, pair.kalam):
        side.conn.execute(f"INSERT INTO t VALUES {', '.join(rows)}".encode())


def test_random_conditions(pair: Pair, examples: Callable[[int], int]) -> None:
    fill(pair)

    @settings(FEW, max_examples=examples(300))
    @given(conditions)
    @example("'294276-12-31 23:59:59.999999'::timestamp = da")
    def check(condition: str) -> None:
        query = f"SELECT id FROM t WHERE {condition} ORDER BY id".encode()
        wanted = pair.heap.conn.execute(query).fetchall()
        assert pair.kalam.conn.execute(query).fetchall() == wanted, condition
        changed = f"UPDATE t SET s = s WHERE {condition}".encode()
        assert pair.kalam.conn.execute(changed).rowcount == len(wanted)

    check()


def test_random_comparisons_are_sent(pair: Pair, examples: Callable[[int], int]) -> None:
    """By themselves and within AND, OR and NOT: the plan has no condition left to PostgreSQL."""
    fill(pair)
    names = st.sampled_from(sorted(name for group in SENT for name in group))
    parts = st.tuples(names, st.sampled_from(OPERATORS), names, st.booleans(), st.booleans())

    def in_one_group(left: str, right: str) -> bool:
        return any({left, right} <= group for group in SENT)

    @settings(FEW, max_examples=examples(100))
    @given(st.lists(parts, min_size=1, max_size=4), st.data())
    def check(chosen: list[tuple[str, str, str, bool, bool]], data: st.DataObject) -> None:
        terms = []
        for left, op, right, as_column, negated in chosen:
            other = right if in_one_group(left, right) else left
            operand = other if as_column else data.draw(constants(other))
            terms.append(f"{'NOT ' if negated else ''}({left} {op} {operand})")
        query = f"SELECT id FROM t WHERE {' OR '.join(terms)}"
        plan = "\n".join(row[0] for row in pair.kalam.conn.execute(f"EXPLAIN (VERBOSE) {query}".encode()).fetchall())
        # the planner itself finds that a comparison with NULL is never true
        assert ("Filter:" not in plan and " WHERE " in plan) or "One-Time Filter: false" in plan, plan

    check()


@pytest.mark.parametrize(
    "condition",
    ["s = 2::numeric", "n = 2::bigint", "i > 1.5", "s = 1::float8", "r = 1::numeric", "da < '2024-01-01'::timestamp",
     "d < i", "n IN (1, 2::int)"],
)  # fmt: skip
def test_mixed_types(pair: Pair, condition: str) -> None:
    """Where PostgreSQL converts a column, the answer is as PostgreSQL's; a converted constant is sent."""
    fill(pair)
    query = f"SELECT id FROM t WHERE {condition} ORDER BY id"
    assert pair.kalam.run(query) == pair.heap.run(query)
