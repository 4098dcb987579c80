"""Conditions on record batches agree with conditions on rows, for every kind of value and NULL."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from kalamdb import types
from kalamdb.sql.mask import bind, compile_mask
from kalamdb.sql.predicate import (
    Boolean,
    Compare,
    Condition,
    Field,
    InList,
    IsBool,
    IsNull,
    Junction,
    Not,
    Value,
    evaluate,
)

#: by family: the type of its column and its values
COLUMNS: dict[str, tuple[str, list[Any]]] = {
    "int": ("int8", [0, 1, -1, 5, 1 << 62, -(1 << 63)]),
    "float": ("float8", [0.0, -0.0, 1.5, math.inf, -math.inf, math.nan]),
    "bool": ("bool", [0, 1]), "text": ("text", ["", "a", "B", "ä", "aa"]), "bytea": ("bytea", [b"", b"a", b"\xff"]),
    "timestamptz": ("timestamptz", [0, 1, -(1 << 63), (1 << 63) - 1]),
    "numeric": ("numeric", ["1", "1.0", "-2", "NaN"]),
    "interval": ("interval", ["1 mon", "30 days", "31 days", "-00:00:01"]), "bpchar": ("bpchar", ["", "a", "a ", "b"]),
    "inet": ("inet", ["10.0.0.1", "10.0.0.0/8", "9.0.0.1", "::1"]), "time": ("time", ["24:00:00", "12:00:00.5"]),
}
FAMILIES = list(COLUMNS)


def a_condition(random: Random, depth: int, params: list[Any]) -> Condition:
    family = random.choice(FAMILIES)
    place = FAMILIES.index(family)
    field, known = Field(place, f"c{place + 1}"), COLUMNS[family][1]

    def value() -> Value:
        found = random.choice([*known, None])
        if random.random() < 0.5:
            return Value(None, found)
        params.append(found)
        return Value(len(params) - 1)

    match random.randrange(8 if depth else 4):
        case 0:
            op = random.choice(["=", "<>", "<", "<=", ">", ">=", "IS", "IS NOT"])
            return Compare(op, field, value(), family) if random.random() < 0.5 else Compare(op, value(), field, family)
        case 1 if random.random() < 0.5:
            some = [random.choice([*known, None]) for _ in range(random.randrange(4))]
            params.append(random.choice([None, [], some]))
            return InList(field, (Value(len(params) - 1),), family, arrays=True)
        case 1:
            return InList(field, tuple(value() for _ in range(random.randint(1, 3))), family)
        case 2:
            return IsNull(field)
        case 3:
            return Boolean(Field(FAMILIES.index("bool"), f"c{FAMILIES.index('bool') + 1}"))
        case 4:
            return Not(a_condition(random, depth - 1, params))
        case 5:
            return IsBool(a_condition(random, depth - 1, params), random.random() < 0.5)
        case 6:
            return IsNull(a_condition(random, depth - 1, params))
    return Junction(random.random() < 0.5, tuple(a_condition(random, depth - 1, params) for _ in range(2)))


@pytest.mark.parametrize("seed", range(20))
def test_masks_agree_with_rows(seed: int) -> None:
    random, made = Random(seed), 0
    rows = [tuple(random.choice([*known, None]) for _, known in COLUMNS.values()) for _ in range(60)]
    arrays = [types.to_array(values, types.by_name(COLUMNS[family][0]))
              for family, values in zip(FAMILIES, zip(*rows, strict=True), strict=True)]
    batch = pa.RecordBatch.from_arrays(arrays, [f"c{place}" for place in range(1, len(FAMILIES) + 1)])
    for _ in range(150):
        params: list[Any] = []
        condition = a_condition(random, 2, params)
        mask = bind(compile_mask(condition), params)
        if mask is None:
            continue
        made += 1
        found = mask(batch).to_pylist()
        wanted = [evaluate(condition, (*row, 1, None), params) for row in rows]
        assert found == wanted, (condition, params)
    assert made > 50
