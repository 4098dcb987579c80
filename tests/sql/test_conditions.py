"""Conditions of the wire dialect give what PostgreSQL gives, for every capability and every value at the edges.

Each condition is evaluated by the store (a scan), again on locked rows (FOR UPDATE), on cold rows (a table with
``_cold`` after its name), and on rows found by their key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kalamdb.sql import capabilities

from .client import Client, Wire, batch
from .values import KEPT
from .values import VALUES as BASIC

VALUES = BASIC | KEPT
OPERATORS = capabilities.EQUALITY + capabilities.ORDER
DECLARED = {"bool": "boolean"}


@pytest.fixture
def both(db: Client, pg: Client, wire: Wire, ns: str) -> Callable[..., str]:
    """Makes one table on both sides and fills it with the same rows; its name in the wire dialect."""

    def make(name: str, columns: dict[str, str], rows: list[tuple[str | None, ...]], key: str = "id") -> str:
        body = ", ".join(f'"{column}" {kind}' for column, kind in columns.items())
        sql = f"CREATE TABLE {name} ({body}, PRIMARY KEY ({key}))"
        names = ", ".join(f'"{column}"' for column in columns)
        marks = ", ".join(f"${place}" for place in range(1, len(columns) + 1))
        for client in (db, pg):
            client.run(sql)
            client.run("BEGIN")
            for row in rows:
                client.run(f"INSERT INTO {name} ({names}) VALUES ({marks})", *row)
            client.run("COMMIT")
        db.run(f"CREATE TABLE {name}_cold ({body}, PRIMARY KEY ({key}))")
        db.run(f"INSERT INTO {name}_cold SELECT * FROM {name}")
        db.run(f"STORAGE FLUSH TABLE {name}_cold")
        return f'"{ns}"."{name}"'

    return make


def numbered(texts: Sequence[str | None]) -> list[tuple[str | None, ...]]:
    return [(str(place), text) for place, text in enumerate(texts)]


def locally(condition: str, table: str, pg: Client, *params: tuple[str, str | None]) -> list[int]:
    for place, (kind, _) in reversed(list(enumerate(params, 1))):
        condition = condition.replace(f"${place}", f"${place}::{kind}")
    return sorted(int(value) for value in pg.run(f"SELECT id FROM {table} WHERE {condition}",
                                                 *(value for _, value in params)).column)


def remotely(condition: str, table: str, wire: Wire, *params: tuple[str, str | None]) -> list[int]:
    sql = f'SELECT "id" FROM {table} WHERE {condition}'
    scanned = sorted(wire(sql, *params).column)
    assert sorted(wire(sql + " FOR UPDATE", *params).column) == scanned, f"evaluated otherwise: {condition} {params}"
    cold = sql.replace(table, f'{table[:-1]}_cold"')
    assert sorted(wire(cold, *params).column) == scanned, f"otherwise of cold rows: {condition} {params}"
    return scanned


def agree(condition: str, name: str, table: str, wire: Wire, pg: Client, *params: tuple[str, str | None]) -> None:
    wanted = locally(condition, name, pg, *params)
    assert remotely(condition, table, wire, *params) == wanted, f"{condition} {params}"


@pytest.mark.parametrize("left", sorted({left for left, _ in capabilities.COMPARABLE}))
def test_every_operator(left: str, both: Callable[..., str], wire: Wire, pg: Client) -> None:
    """A column with a parameter, on either side."""
    table = both("t", {"id": "bigint", "v": left}, numbered([*VALUES[left], None]))
    wanted = 0
    for right in (two for one, two in capabilities.COMPARABLE if one == left):
        for operator, text in product(OPERATORS, [*VALUES[right], None]):
            for condition in (f'("v" {operator} $1)', f'($1 {operator} "v")'):
                agree(condition, "t", table, wire, pg, (right, text))
                wanted += 1
    assert wanted


@pytest.mark.parametrize("kind", sorted({left for left, right in capabilities.COMPARABLE if left == right}))
def test_keys(kind: str, both: Callable[..., str], wire: Wire, pg: Client) -> None:
    """A row of the key's value, ranges of keys, lists of keys."""
    distinct = list(dict.fromkeys(pg.value(f"SELECT $1::{kind}::text", text) for text in VALUES[kind]))
    kept: list[str] = []
    for text in distinct:  # equal values that are written differently are one key
        if not any(pg.value(f"SELECT $1::{kind} = $2::{kind}", text, other) == "t" for other in kept):
            kept.append(text)
    table = both("t", {"id": "bigint", "v": kind}, numbered(kept), key="v")
    for text in [*VALUES[kind], None]:
        for operator in OPERATORS:
            agree(f'("v" {operator} $1)', "t", table, wire, pg, (kind, text))
        agree('(("v" = $1) AND ("id" > $2))', "t", table, wire, pg, (kind, text), ("int8", "2"))
        agree('("v" IN ($1, $2, NULL))', "t", table, wire, pg, (kind, text), (kind, kept[0]))
    for low, high in product(kept[:6], kept[-6:]):
        agree('(("v" >= $1) AND ("v" < $2))', "t", table, wire, pg, (kind, low), (kind, high))
        agree('(("v" > $1) AND ("v" <= $2))', "t", table, wire, pg, (kind, low), (kind, high))


@pytest.mark.parametrize("kind", ["int4", "float8", "numeric", "text", "timestamp", "bytea", "uuid", "bool"])
def test_two_columns(kind: str, both: Callable[..., str], wire: Wire, pg: Client) -> None:
    values = [*VALUES[kind][:9], None]
    rows = [(str(place), *pair) for place, pair in enumerate(product(values, values))]
    table = both("t", {"id": "bigint", "a": kind, "b": kind}, rows)
    for operator in OPERATORS:
        agree(f'("a" {operator} "b")', "t", table, wire, pg)
        agree(f'(NOT ("a" {operator} "b"))', "t", table, wire, pg)


LOGIC = [
    '("a" IS NULL)', '("a" IS NOT NULL)', '(NOT ("a" IS NULL))', '("a" = $1)', '(NOT ("a" = $1))',
    '(("a" = $1) IS TRUE)', '(("a" = $1) IS NOT TRUE)', '(("a" = $1) IS FALSE)', '(("a" = $1) IS NOT FALSE)',
    '(("a" = $1) IS UNKNOWN)', '(("a" = $1) IS NOT UNKNOWN)', '("f" IS TRUE)', '("f" IS UNKNOWN)', '("f")', '"f"',
    '(NOT "f")', '(("f") AND ("a" = $1))', '("f" OR ("a" = $1))', '(("a" = $1) OR ("b" = $1))',
    '(("a" = $1) AND ("b" = $1))', '(NOT (("a" = $1) OR ("b" = $1)))', '(NOT (("a" = $1) AND ("b" = $1)))',
    '("a" IN ($1, NULL))', '(NOT ("a" IN ($1, NULL)))', '("a" IN ($1))', '(("a" IN ($1, $1)) IS UNKNOWN)',
    '("a" IN (NULL))', '(NOT ("a" IN (NULL)))', '((("a" < $1) IS NULL))', '((("a" < $1) IS NOT NULL) OR "f")',
    '("a" IN ($1, "b"))', '($1 IN ("a", "b"))', '(($1 = $1) AND "f")', '($1 IS NULL)',
]  # fmt: skip


@pytest.mark.parametrize("condition", LOGIC)
def test_three_valued_logic(condition: str, both: Callable[..., str], wire: Wire, pg: Client) -> None:
    values = ["1", "2", None]
    rows = [(str(place), *row) for place, row in enumerate(product(values, values, ["t", "f", None]))]
    table = both("t", {"id": "bigint", "a": "int4", "b": "int4", "f": "boolean"}, rows)
    for value in ("1", "3", None):
        params = (("int4", value),) if "$1" in condition else ()
        agree(condition, "t", table, wire, pg, *params)


@pytest.mark.parametrize("kind", ["int2", "float4", "float8", "numeric", "text", "varchar", "date", "timestamptz"])
def test_lists(kind: str, both: Callable[..., str], wire: Wire, pg: Client) -> None:
    cast = "text" if kind == "varchar" else kind
    table = both("t", {"id": "bigint", "v": kind}, numbered([*VALUES[kind], None]))
    for one, two in zip(VALUES[kind], [*VALUES[kind][1:], None], strict=True):
        for condition in ('("v" IN ($1, $2))', '(NOT ("v" IN ($1, $2)))', '("v" IN ($1, $2, NULL))'):
            agree(condition, "t", table, wire, pg, (cast, one), (cast, two))


def test_a_key_of_several_columns(both: Callable[..., str], wire: Wire, pg: Client) -> None:
    texts = ["", "a", "a\x01", "ab", "é", "z"]
    rows = [(str(place), *row) for place, row in enumerate(product(texts, ["-1", "0", "5"], ["NaN", "-0", "1.5"]))]
    table = both("t", {"id": "bigint", "a": "text", "b": "int4", "c": "float8"}, rows, key="a, b, c")
    for text, number, real in product([*texts, "b"], ["0", "4"], ["NaN", "0", "-1"]):
        params = (("text", text), ("int4", number), ("float8", real))
        for condition in (
            '(("a" = $1) AND ("b" = $2) AND ("c" = $3))', '(("c" = $3) AND ("a" = $1) AND ("b" = $2))',
            '(("a" = $1) AND ("b" > $2) AND ("c" <= $3))', '(("a" = $1) AND ("b" = $2) AND ("c" IN ($3, NULL)))',
            '(("a" > $1) AND ("b" = $2) AND ("c" <> $3))', '(("a" <= $1) AND (("b" = $2) OR ("c" = $3)))',
        ):  # fmt: skip
            agree(condition, "t", table, wire, pg, *params)


_values = st.sampled_from(["1", "2", "3", None])


def _conditions() -> st.SearchStrategy[str]:
    column = st.sampled_from(['"a"', '"b"'])
    leaf = st.one_of(
        st.builds(lambda c, op, p: f"({c} {op} {p})", column, st.sampled_from(OPERATORS),
                  st.sampled_from(["$1", "$2", '"a"', '"b"'])),
        st.builds(lambda c, n: f"({c} IS {n}NULL)", column, st.sampled_from(["", "NOT "])),
        st.builds(lambda c, n: f"({c} IN ($1, $2{n}))", column, st.sampled_from(["", ", NULL"])),
        st.just('"f"'),
    )
    return st.recursive(leaf, lambda inner: st.one_of(
        st.builds(lambda x, y, op: f"({x} {op} {y})", inner, inner, st.sampled_from(["AND", "OR"])),
        st.builds(lambda x: f"(NOT {x})", inner),
        st.builds(lambda x, n, t: f"({x} IS {n}{t})", inner, st.sampled_from(["", "NOT "]),
                  st.sampled_from(["TRUE", "FALSE", "UNKNOWN"])),
    ), max_leaves=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(condition=_conditions(), one=_values, two=_values)
def test_random_conditions(shared: tuple[str, str], wire: Wire, pg: Client, condition: str, one: str | None,
                           two: str | None) -> None:
    name, table = shared
    params = [("int4", one), ("int4", two)]
    if "$2" not in condition:
        params.pop()
        if "$1" not in condition:
            params.pop()
    elif "$1" not in condition:
        condition = condition.replace("$2", "$1")
        params.pop(0)
    agree(condition, name, table, wire, pg, *params)


@pytest.fixture
def shared(both: Callable[..., str]) -> tuple[str, str]:
    values = ["1", "2", "3", None]
    rows = [(str(place), *row) for place, row in enumerate(product(values[:3], values, ["t", "f", None]))]
    return "t", both("t", {"id": "bigint", "a": "int4", "b": "int4", "f": "boolean"}, rows, key="a, id")


def test_system_columns(both: Callable[..., str], db: Client, wire: Wire, ns: str) -> None:
    db.run("CREATE USER TABLE u (id int PRIMARY KEY)")
    table = f'"{ns}"."u"'
    for user in ("a", "b"):
        for number in (1, 2, 3):
            wire(f'INSERT INTO {table} ("id") FROM ARROW $1', batch(id=("int4", [number])), user=user)
    seqs = wire(f'SELECT "_seq" FROM {table}', user="a").column
    assert wire(f'SELECT "id" FROM {table} WHERE ("_seq" > $1)', ("int8", str(seqs[0])), user="a").column == [2, 3]
    assert wire(f'SELECT "id" FROM {table} WHERE (("_userid" = $1) AND ("id" = $2))', ("text", "b"), ("int4", "2"),
                user="*").column == [2]
    assert wire(f'SELECT "id" FROM {table} WHERE ("_userid" = $1)', ("text", "b"), user="a").column == []
