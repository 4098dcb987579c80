"""Each function, operator, aggregate and cast of the server's SQL gives PostgreSQL's result, at the edges of values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import pytest

from kalamdb.sql.capabilities import LOCAL_NAMES, aggregates, scalars
from kalamdb.sql.functions import BY_NAME, SIGNATURES, Signature
from kalamdb.sql.kinds import ORDERS
from support.postgres import Postgres
from support.server import KalamServer

from .arguments import ARGUMENTS, FIELDS, JSONB, arguments, literal
from .client import Client
from .proof import Sides, agree, both, outcome
from .values import VALUES

#: where PostgreSQL's own result is not a fixed one
RANDOM = {"random", "clock_timestamp"}
#: last digits may differ: the C library's or the processor's
ROUGH = {"power", "pow", "^", "exp", "ln", "log", "log10", "cbrt", "sin", "cos", "tan", "atan", "atan2", "asin",
         "acos", "degrees", "radians", "stddev", "stddev_samp", "stddev_pop", "variance", "var_samp", "var_pop", "avg",
         "sum", "to_timestamp"}
OPERATORS = {name for name in BY_NAME if not name[0].isalpha()}


@pytest.fixture(scope="module")
def sides(server: KalamServer, postgres: Postgres) -> Iterator[Sides]:
    sides = Sides(Client(postgres.dsn()), Client(server.dsn()))
    yield sides
    sides.close()


def call_of(signature: Signature, columns: Sequence[str]) -> str:
    name = signature.name
    if name in OPERATORS:
        return f"{name} {columns[0]}" if len(columns) == 1 else f"{columns[0]} {name} {columns[1]}"
    if name == "position":
        return f"position({columns[1]} IN {columns[0]})"
    return f"{name}({', '.join(columns)})"


LISTED = {(name, args) for _, name, args, _, flags in [*scalars(), *aggregates()] if flags != "a"}  # test_capabilities


def is_tried(signature: Signature) -> bool:
    """Here: not in test_capabilities, which has what is listed, and columns of types without literals. Intervals that
    are listed are those of columns, not the query engine's own."""
    listed = LOCAL_NAMES.get(signature.name, signature.name), ",".join(signature.args)
    return signature.supported and ORDERS.keys().isdisjoint(signature.args) and (
        listed not in LISTED or "interval" in (*signature.args, signature.result))


SCALARS = [each for each in SIGNATURES if is_tried(each) and not each.aggregate and not each.window and each.args
           and each.name not in RANDOM and not each.name.startswith("kalam_")]


@pytest.mark.parametrize("signature", SCALARS, ids=lambda each: f"{each.name}({','.join(each.args)})")
def test_scalars(signature: Signature, sides: Sides) -> None:
    columns = list("abc"[: len(signature.args)])
    rows = arguments(signature.name, signature.args)
    agree(sides, [call_of(signature, columns)], columns, rows, rough=signature.name in ROUGH)


@pytest.mark.parametrize("name", ["lower", "upper"])
def test_every_letter(name: str, sides: Sides) -> None:
    """Between letters that make the server take each by itself."""
    for start in range(0, 0x110000, 0x4000):
        sql = (f"SELECT string_agg({name}('é' || chr(n)), '' ORDER BY n) FROM generate_series({max(1, start)}, "
               f"{start + 0x3FFF}) g(n) WHERE n NOT BETWEEN 55296 AND 57343")
        both(sides, sql)


AGGREGATES = [each for each in SIGNATURES if is_tried(each) and each.aggregate and len(each.args) == 1]


@pytest.mark.parametrize("signature", AGGREGATES, ids=lambda each: f"{each.name}({','.join(each.args)})")
def test_aggregates(signature: Signature, sides: Sides) -> None:
    kind = signature.args[0]
    texts = ARGUMENTS[kind]
    if signature.name == "avg":  # PostgreSQL's squares, which it does not need, overflow
        texts = [text for text in texts if "e308" not in text]
    finite = [text for text in texts if text not in ("NaN", "Infinity", "-Infinity", "infinity", "-infinity")]
    small = [text for text in finite if len(text) < 8]
    rough = signature.name in ROUGH and kind in ("float4", "float8")
    name = "" if signature.name == "array_agg" else signature.name
    for part in (texts, finite, small, small[:1], [*small, *small]):
        body = ", ".join(f"({literal(text, kind)})" for text in [*part, None])
        for call in (f"{signature.name}(v)", f"{signature.name}(v) FILTER (WHERE v IS NULL)"):
            sql = f"SELECT {call} FROM (VALUES {body}) t(v)"
            both(sides, sql, rough=rough, types=bool(name))
        if signature.name not in ROUGH:
            both(sides, f"SELECT {signature.name}(DISTINCT v) FROM (VALUES {body}) t(v)", rough=rough, types=bool(name))
    both(sides, f"SELECT {signature.name}(v) FROM (VALUES ({literal(None, kind)})) t(v) WHERE false", rough=rough,
         types=bool(name))


WINDOWS = ["row_number()", "rank()", "dense_rank()", "percent_rank()", "cume_dist()", "ntile(3)", "lag(v)",
           "lag(v, 2)", "lead(v, 1, 'x'::text)", "first_value(v)", "last_value(v)", "nth_value(v, 2)", "count(*)",
           "sum(n)", "avg(n)", "min(v)", "max(p)", "sum(p)", "avg(p)", "sum(u)", "count(v)", "bool_or(n > 2)",
           "string_agg(v, ',')"]  # fmt: skip
OVER = ["ORDER BY n, v", "PARTITION BY n % 2 ORDER BY n, v", "ORDER BY u DESC", "PARTITION BY u ORDER BY v",
        "ORDER BY n ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING", "ORDER BY n, v ROWS UNBOUNDED PRECEDING",
        "ORDER BY n RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING", "ORDER BY v DESC NULLS LAST"]  # fmt: skip


#: whose result equal rows share out in any order
TIED = ("row", "ntile", "lag", "lead", "first", "last", "nth", "string")


@pytest.mark.parametrize("call", WINDOWS)
def test_windows(call: str, sides: Sides) -> None:
    rows = ("(1, 'a'::text, 1.50::numeric(10,2), 1.5::numeric), (2, 'b', 2.00, 1.50), (2, NULL, NULL, NULL), "
            "(3, 'a', 0.25, 'NaN'), (5, '', 9.99, 3)")  # fmt: skip
    for over in OVER:
        if "DESC NULLS LAST" in over and call.startswith(TIED):
            continue
        sql = f"SELECT n, v, {call} OVER ({over}) FROM (VALUES {rows}) t(n, v, p, u) ORDER BY n, v"
        both(sides, sql, rough="avg" in call)


MOMENTS = ("date", "timestamp", "timestamptz")
CASTABLE = ["bool", "int2", "int4", "int8", "float4", "float8", "numeric", "text", "varchar", "bytea", "uuid", "date",
            "timestamp", "timestamptz", "json", "jsonb"]  # fmt: skip
TEXTS = ["", "1", " 12 ", "-3.5", "1e3", "t", "yes", "x", "2024-02-29", "2024-02-30", "2024-01-01 10:00:00",
         "infinity", "NaN", "\\x6162", "{}", '{"b": 1.0, "a": [1]}', "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
         "1e400", "héllo"]  # fmt: skip


def samples(kind: str) -> list[str]:
    if kind in ("json", "jsonb"):
        return JSONB
    if kind in ("text", "varchar"):
        return TEXTS
    return VALUES[kind]


@pytest.mark.parametrize("target", [*CASTABLE, "varchar(3)", "numeric(6,2)", "numeric(20)"])
@pytest.mark.parametrize("source", CASTABLE)
def test_casts(source: str, target: str, sides: Sides) -> None:
    """From a column, so that no literal takes the way of its own. What is refused instead is so in every row."""
    refused = ["0A000"] if source in ("json", "jsonb", "text", "varchar") else []
    if source in MOMENTS or source in ("text", "varchar"):
        refused.append("22008")  # beyond the query engine's range, and said so
    rows = [[literal(text, source)] for text in [*samples(source), None]]
    agree(sides, [f"(a::{target})::text"], ["a"], rows, refused=refused)


@pytest.mark.parametrize("target", [*CASTABLE, "varchar(3)", "numeric(6,2)", "numeric(20)", "timestamp(3)"])
def test_literals(target: str, sides: Sides) -> None:
    rows = [[literal(text, target)] for text in dict.fromkeys([*TEXTS, *samples(target.partition("(")[0])])]
    refused = ["22008"] if target.startswith("timestamp") else []  # beyond the query engine's range
    agree(sides, ["a"], ["a"], rows, refused=refused)


@pytest.mark.parametrize("kind", MOMENTS)
@pytest.mark.parametrize("field", FIELDS)
def test_fields(field: str, kind: str, sides: Sides) -> None:
    """Written as constants; computed ones are in the list of capabilities."""
    rows = [[literal(text, kind)] for text in [*ARGUMENTS[kind], None]]
    agree(sides, [f"extract({field} FROM a)"], ["a"], rows, refused=["0A000"] if field != "nonsense" else [])
    agree(sides, [f"date_part('{field}', a)"], ["a"], rows, refused=["0A000"] if field == "timezone" else [])
    agree(sides, [f"date_trunc('{field}', a)"], ["a"], rows)


ARITHMETIC = ["a + b", "a - b", "a * b", "a / b", "a % b", "-a", "abs(a)", "round(a)", "round(a, 1)", "trunc(a)",
              "trunc(a, 1)", "ceil(a)", "floor(a)", "a = b", "a < b", "a::int", "a::text", "a::float8", "a + 1",
              "a * 2.5", "a / 3", "1 / a", "mod(a, b)", "div(a, b)", "sign(a)", "greatest(a, b)", "least(a, b)",
              "coalesce(a, b)", "nullif(a, b)", "CASE WHEN a > b THEN a ELSE b END", "a IN (b, 1)", "a BETWEEN b AND 5",
              "a IS DISTINCT FROM b", "a > 1.5::float8", "round(a / b, 3)", "(a + b) * (a - b)", "a ^ 2.0::float8",
              "a::numeric(20,1)", "a::numeric", "a + b::float8"]  # fmt: skip
DECIMALS = ["numeric(10,2)", "numeric(4,0)", "numeric(38,10)", "numeric(12,12)", "int4", "numeric", "int8"]


@pytest.mark.parametrize("right", DECIMALS)
@pytest.mark.parametrize("left", DECIMALS)
def test_decimals(left: str, right: str, sides: Sides) -> None:
    """Numerics of declared digits, which the query engine holds otherwise, in columns."""
    values = ["0", "1", "-1", "0.5", "7.25", None]
    if "12,12" in left + right:
        values = ["0", "0.5", "-0.25", "0.000000000001", None]
    rows = [[literal(one, left), literal(two, right)] for one, two in product(values, values)]
    for rough in (False, True):
        agree(sides, [call for call in ARITHMETIC if ("float8" in call) is rough], ["a", "b"], rows, rough=rough)


@pytest.mark.parametrize("kind", ["float4", "float8"])
def test_extremes_keep_the_sign_of_zero(kind: str, sides: Sides) -> None:
    """Of those that are equal the first, as PostgreSQL has it."""
    values = ["-0", "0", "NaN", "-inf", "1", "-1", None]
    rows = [[literal(one, kind), literal(two, kind)] for one, two in product(values, values)]
    calls = [f"{name}({args})" for name in ("least", "greatest") for args in
             ("a, b", "a, 1", "b, -1", "a, a", "a, b, NULL", f"a, b, '-0'::{kind}", "least(a, b), greatest(b, a)")]
    agree(sides, [*calls, "least(a, 1::bigint)"], ["a", "b"], rows)


@pytest.mark.parametrize("kind", ["float4", "float8"])
def test_a_row_of_many_keeps_the_sign_of_zero(kind: str, db: Client, pg: Client) -> None:
    """DISTINCT ON, and columns that hang on the key that is grouped by."""
    for client in (db, pg):
        client.run(f"CREATE TABLE z (id int PRIMARY KEY, i int, r {kind})")
        client.run("INSERT INTO z VALUES (1, 5, '-0'), (2, 5, '-0'), (3, 6, '0'), (4, 6, '-0'), (5, NULL, 'NaN')")
    for sql in (
        "SELECT DISTINCT ON (i) id, r, r::text FROM z ORDER BY i, id",
        "SELECT DISTINCT ON (r) r, id FROM z ORDER BY r, id",
        "SELECT DISTINCT ON (i) r AS x FROM z ORDER BY i DESC, id DESC LIMIT 2 OFFSET 1",
        "SELECT s.r, s.n FROM (SELECT DISTINCT ON (i) i AS n, least(r, 5) AS r FROM z ORDER BY i, id) s ORDER BY s.n",
        "SELECT id, r, count(*) FROM z GROUP BY id ORDER BY id", "SELECT i, any_value(r) FROM z GROUP BY i ORDER BY i",
        "SELECT DISTINCT ON (i) i, max(r), min(r) FROM z WHERE id < 3 GROUP BY i ORDER BY i",
    ):
        assert db.run(sql).rows == pg.run(sql).rows, sql


OVERFLOWS = [
    "i + 1 > 0", "1 + i > 0", "i - (-1) > 5", "i * 2 > 4", "i * 2 = 4", "-(i - 2147483647 - 2) < 5",
    "s + 1::smallint > 3", "id + 1 = 5", "i + 1 IN (5, 6)", "i + 1 <> 3", "-2 - i < 0", "i - 5 + 10 > 0",
    "s * 2::smallint >= 0", "i + i > 3", "i + 1 BETWEEN 1 AND 5", "i + 1 IS NULL", "(i + 1) IS NOT NULL",
    "coalesce(i + 1, 0) > 0", "id::int4 = 5", "id::int2 IN (1, 2)", "n::int4 = 1", "f::int8 > 1", "f * 10 > 3",
    "f::real = 1", "d + 5 > date '2020-01-01'", "d::timestamp > timestamp '2020-01-01'", "id * 2 / 2 = id",
    "-i - 2 < 0", "abs(-i - 1) > 3",
]  # fmt: skip


@pytest.mark.parametrize("condition", [*OVERFLOWS, "SELECT sum(i + 1) FROM x", "SELECT max(i + 1) FROM x"])
def test_no_optimizer_hides_an_overflow(condition: str, sides: Sides) -> None:
    rows = ("(9223372036854775807, 2147483647, 32767::int2, 1.7e308::float8, 1e30::numeric, '5874897-12-31'::date), "
            "(1, 1, 1::int2, 1, 1, '2020-01-01')")  # fmt: skip
    query = condition if condition.startswith("SELECT") else f"SELECT id FROM x WHERE {condition}"
    sql = f"WITH x AS (SELECT * FROM (VALUES {rows}) t(id, i, s, f, n, d)) {query}"
    assert isinstance(outcome(sides.pg, sql), str), "no error: nothing is tested"
    both(sides, sql)


@pytest.mark.parametrize("call", ["overlay('héllo' PLACING 'xy' FROM 2)", "overlay('héllo' PLACING '' FROM 2 FOR 9)"])
def test_overlay_as_it_is_written(call: str, sides: Sides) -> None:
    both(sides, f"SELECT {call}")


def test_what_is_refused_says_so(sides: Sides) -> None:
    """PostgreSQL has it, this server has not: 0A000, not "does not exist"."""
    kalam = sides.kalam
    for sql in ("regexp_replace('a', 'b', 'c')", "to_char(now(), 'YYYY')", "format('%s', 1)", "jsonb_object_keys('{}')",
                "exp(2.0)", "num_nulls(1)", "age(now())", "ARRAY(SELECT 1)", "ROW(1, 2)", "'a' SIMILAR TO 'b'",
                "'x'::char(3)", "string_to_array('a', ',')"):  # fmt: skip
        kalam.fails("0A000", f"SELECT {sql}")
    for sql in ("nonsense(1)", "length(1)", "lower()", "1 || 2", "true + 1", "sum('x'::text)", "max(true)",
                "date '2020-01-01' = 1", "'{}'::json = '{}'::json"):  # fmt: skip
        error = kalam.fails("42883", f"SELECT {sql}")
        assert error.hint
