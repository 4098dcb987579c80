"""Keys as bytes: they sort as PostgreSQL sorts the values, equal values are equal, bounds hold what they should."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from decimal import Decimal
from functools import cmp_to_key
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.rig import definition
from kalamdb.order import NAN, float_operand, numeric_bytes, part_encoder
from kalamdb.store.keys import KeyCodec, successor

INT8 = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-3, 3)
FLOAT = st.floats() | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, -5e-324, 1.5])
_CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
TEXT = st.text(_CHARACTERS, max_size=6) | st.text("ab", max_size=4)
BLOB = st.binary(max_size=6) | st.lists(st.sampled_from([0, 1, 254, 255]), max_size=5).map(bytes)
UUID = st.uuids().map(lambda value: value.bytes) | st.just(b"\xff" * 16)
_DECIMALS = st.decimals(allow_nan=False, allow_infinity=False, places=None) | st.integers(-10**40, 10**40).map(Decimal)
NUMERIC = (_DECIMALS.map(lambda value: format(value, "f")).filter(lambda text: len(text) < 200)
           | st.sampled_from(["NaN", "Infinity", "-Infinity", "0", "-0.00", "0.000", "1.0", "1.00", "10", "-1.5"]))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int8": INT8, "float8": FLOAT, "text": TEXT, "bytea": BLOB, "uuid": UUID, "numeric": NUMERIC,
    "bool": st.integers(0, 1),
}


def _float_rank(value: float) -> tuple[int, float]:
    return (1, 0.0) if math.isnan(value) else (0, value)


def _numeric_rank(text: str) -> tuple[int, Decimal]:
    value = Decimal(text)
    return (1, Decimal(0)) if value.is_nan() else (0, value)


#: PostgreSQL's order: NaN above all and equal to itself, -0 equal to 0, texts by bytes (the collation C)
RANK: dict[str, Callable[[Any], Any]] = {
    "int8": int, "float8": _float_rank, "text": str.encode, "bytea": bytes, "uuid": bytes, "numeric": _numeric_rank,
    "bool": int,
}


def compare(first: Any, second: Any) -> int:
    return int(first > second) - int(first < second)


@pytest.mark.parametrize("name", list(VALUES))
def test_order_of_one_column(name: str) -> None:
    encode, rank = part_encoder(name), RANK[name]

    @settings(max_examples=400)
    @given(VALUES[name], VALUES[name])
    def check(first: Any, second: Any) -> None:
        assert compare(encode(first), encode(second)) == compare(rank(first), rank(second))

    check()


@pytest.mark.parametrize("name", list(VALUES))
def test_no_encoding_begins_another(name: str) -> None:
    encode = part_encoder(name)

    @given(VALUES[name], VALUES[name])
    def check(first: Any, second: Any) -> None:
        one, other = encode(first), encode(second)
        assert one == other or not other.startswith(one)

    check()


def test_numerics_as_postgresql_sorts_them() -> None:
    ascending = ["-Infinity", "-1e131071", "-100", "-99.9", "-1.5", "-1.25", "-1", "-0.1", "-0.01", "-1e-16383", "0",
                 "1e-16383", "0.01", "0.1", "0.10000000000000000001", "1", "1.25", "1.5", "9", "10", "99", "100",
                 "1e131071", "Infinity", "NaN"]
    keys = [numeric_bytes(text) for text in ascending]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("pair", ["1 1.000", "0 -0.00", "100 1e2", "0.10 .1", "007 7"])
def test_equal_numerics_are_one_key(pair: str) -> None:
    one, other = pair.split()
    assert numeric_bytes(one) == numeric_bytes(other)


def test_floats_of_either_sign_and_payload() -> None:
    encode = part_encoder("float8")
    assert encode(0.0) == encode(-0.0)
    assert encode(math.nan) == encode(-math.nan)
    assert float_operand(math.nan) == NAN
    assert float_operand(1.5) == 1.5


# ---------- several columns ----------
CODEC = KeyCodec.of(definition(columns="a int4, b text, c numeric", key=(0, 1, 2)))
TRIPLE = st.tuples(st.integers(-2, 2), TEXT, NUMERIC)


def _triple_rank(key: Any) -> Any:
    return key[0], key[1].encode(), _numeric_rank(key[2])


@settings(max_examples=300)
@given(TRIPLE, TRIPLE)
@example((1, "a", "1"), (1, "ab", "0"))
@example((1, "", "1"), (1, "\x01", "1"))
def test_order_of_several_columns(first: Any, second: Any) -> None:
    assert compare(CODEC.encode(first), CODEC.encode(second)) == compare(_triple_rank(first), _triple_rank(second))


def test_a_key_may_be_anywhere_in_the_list() -> None:
    codec = KeyCodec.of(definition(columns="v text, b text, a int4", key=(2, 1)))
    assert codec.encode((1, "z")) < codec.encode((2, "a"))  # type: ignore[operator]


def satisfied(conditions: list[tuple[str, Any]], k: Any) -> bool:
    tests = {"=": k.__eq__, ">=": k.__ge__, ">": k.__gt__, "<": k.__lt__, "<=": k.__le__}
    return all(tests[operator](value) for operator, value in conditions)


EDGE = st.none() | st.tuples(TEXT, st.booleans())


@settings(max_examples=400)
@given(TRIPLE, st.integers(-2, 2), EDGE, EDGE)
@example((2, "b", "1"), 2, ("b", False), None)
@example((2, "b", "1"), 2, None, ("b", True))
def test_bounds_of_the_column_after_a_prefix(key: Any, first: int, low: Any, high: Any) -> None:
    conditions, possible = CODEC.bounds((first,), low, high)
    wanted = key[0] == first
    text = key[1].encode()
    if low is not None:
        wanted = wanted and (text > low[0].encode() or (low[1] and text == low[0].encode()))
    if high is not None:
        wanted = wanted and (text < high[0].encode() or (high[1] and text == high[0].encode()))
    assert (possible and satisfied(conditions, CODEC.encode(key))) == wanted


@pytest.mark.parametrize("name", list(VALUES))
def test_bounds_of_a_first_column(name: str) -> None:
    """A second column follows, so that an exclusive bound has to pass over all that begin with its value."""
    codec = KeyCodec.of(definition(columns=f"a {name}, b int4", key=(0, 1)))
    rank, values = RANK[name], VALUES[name]
    edges = st.none() | st.tuples(values, st.booleans())

    @settings(max_examples=200)
    @given(values, edges, edges)
    def check(value: Any, low: Any, high: Any) -> None:
        conditions, possible = codec.bounds((), low, high)
        wanted = low is None or rank(value) > rank(low[0]) or (low[1] and rank(value) == rank(low[0]))
        wanted = wanted and (high is None or rank(value) < rank(high[0]) or (high[1] and rank(value) == rank(high[0])))
        for second in (-(1 << 31), 0, (1 << 31) - 1):
            assert (possible and satisfied(conditions, codec.encode((value, second)))) == wanted

    check()


def test_nothing_is_above_the_last_key() -> None:
    codec = KeyCodec.of(definition(columns="a uuid", key=(0,)))
    assert codec.bounds((), (b"\xff" * 16, False), None) == ([], False)
    conditions, possible = codec.bounds((), None, (b"\xff" * 16, True))
    assert possible
    assert satisfied(conditions, codec.encode((uuid.UUID(int=5).bytes,)))


@settings(max_examples=300)
@given(st.binary(max_size=4), st.binary(max_size=5))
@example(b"a\xff\xff", b"b")
@example(b"\xff", b"\xff\x00")
def test_successor(prefix: bytes, other: bytes) -> None:
    after = successor(prefix)
    assert (after is None or other < after) == (other < prefix or other.startswith(prefix))


def test_integer_keys_are_integers() -> None:
    codec = KeyCodec.of(definition(columns="a timestamptz", key=(0,)))
    assert codec.encode((-5,)) == -5
    assert codec.bounds((), (1, False), (9, True)) == ([(">", 1), ("<=", 9)], True)
    assert codec.bounds((7,), None, None) == ([("=", 7)], True)


def test_sorting_a_mixed_list() -> None:
    keys = [(1, "a", "NaN"), (1, "", "0"), (0, "z", "1"), (1, "a", "-Infinity"), (1, "ab", "0"), (-1, "é", "3")]
    by_bytes = sorted(keys, key=CODEC.encode)
    assert by_bytes == sorted(keys, key=cmp_to_key(lambda one, other: compare(_triple_rank(one), _triple_rank(other))))
