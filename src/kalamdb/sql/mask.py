"""Conditions on record batches: the same tree that ``predicate`` compiles for SQLite, as a mask over columns.

The truth of every row is the same as SQLite's: three-valued, text and blobs by bytes, NaN equal to itself and above all
other numbers. Numerics and types kept as text whose order is not their texts' are compared in Python, each text of a
batch once. What has no such mask (floats against floats, values against values) gives None, and SQLite decides.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kalamdb import kept
from kalamdb.sql import keyarrays
from kalamdb.sql.predicate import (
    KEYED,
    Boolean,
    Compare,
    Condition,
    Field,
    InList,
    IsBool,
    IsNull,
    Junction,
    Not,
    Operand,
    Value,
)

#: truth of each row of a batch with the table's columns (``c<id>``, ``_seq``, ``_userid``); null: unknown
Mask = Callable[[pa.RecordBatch], pa.Array]
Params = Sequence[Any]
_Made = Callable[[pa.RecordBatch, Params], Any]

_TYPES = {
    "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "text": pa.string(), "bytea": pa.binary(),
    "uuid": pa.binary(), "date": pa.int64(), "timestamp": pa.int64(), "timestamptz": pa.int64(),
    **{name: pa.string() for name in kept.ORDERED_TEXTS},
}
_OPERATORS = {
    "=": pc.equal, "<>": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
    "IS": pc.equal, "IS NOT": pc.equal,
}
_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "<>": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "IS": operator.eq, "IS NOT": operator.eq,
}
_SWAPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}


class _NoMask(Exception):
    pass


def compile_mask(node: Condition | None) -> _Made | None:
    """A function of batch and parameters; None where only SQLite can tell."""
    if node is None:
        return None
    try:
        return _made(node)
    except _NoMask:
        return None


def bind(made: _Made | None, params: Params) -> Mask | None:
    return None if made is None else lambda batch: made(batch, params)


def _made(node: Condition) -> _Made:
    match node:
        case Compare():
            return _compare(node)
        case InList():
            return _in_list(node)
        case Junction():
            return _junction(node)
        case Not():
            inner = _made(node.item)
            return lambda batch, params: pc.invert(inner(batch, params))
        case IsNull():
            item = node.item
            if isinstance(item, Value):
                raise _NoMask
            inner = _column(item, "") if isinstance(item, Field) else _made(item)
            return lambda batch, params: pc.is_null(inner(batch, params))
        case IsBool():
            inner, truth = _made(node.item), node.truth
            return lambda batch, params: pc.fill_null(
                pc.equal(inner(batch, params), pa.scalar(truth)), pa.scalar(False))
        case Boolean():
            if not isinstance(node.item, Field):
                raise _NoMask
            return _column(node.item, "bool")


def _column(item: Field, family: str) -> _Made:
    name, wanted = item.sql, _TYPES.get(family)

    def column(batch: pa.RecordBatch, params: Params) -> pa.Array:
        if name == "_userid" and batch.schema.get_field_index(name) < 0:  # of a shared table
            return pa.repeat("", batch.num_rows)
        array = batch.column(name)
        return array if wanted is None or array.type == wanted else array.cast(wanted)

    return column


def _value(item: Value, family: str) -> Callable[[Params], Any]:
    wanted = _TYPES[family]

    def value(params: Params) -> Any:
        found = item.get(params)
        return pa.scalar(bool(found) if family == "bool" and found is not None else found, wanted)

    return value


def _junction(node: Junction) -> _Made:
    parts = [_made(item) for item in node.items]
    join = pc.and_kleene if node.every else pc.or_kleene

    def whole(batch: pa.RecordBatch, params: Params) -> Any:
        found = parts[0](batch, params)
        for part in parts[1:]:
            found = join(found, part(batch, params))
        return found

    return whole


def _compare(node: Compare) -> _Made:
    if node.family not in _TYPES and node.family not in KEYED:
        raise _NoMask
    left, right, op = node.left, node.right, node.op
    if isinstance(left, Value) and isinstance(right, Field):
        left, right, op = right, left, _SWAPPED.get(op, op)
    if not isinstance(left, Field):
        raise _NoMask
    family = node.family
    if family in KEYED:
        if isinstance(right, Field):
            raise _NoMask
        test = _by_key(left, right, op, family)
    else:
        test = _between(left, right, op, family) if isinstance(right, Field) else _against(left, right, op, family)
    if op == "IS NOT":
        return lambda batch, params: pc.invert(test(batch, params))
    return test


def _keys(family: str) -> Callable[[pa.Array], pa.Array] | None:
    """Of a family whose keys are bytes: all of a column's at once."""
    return keyarrays.keys_of(family) if family in KEYED and family not in ("numeric", "bpchar") else None


def _by_key(left: Field, right: Value, op: str, family: str) -> _Made:
    column, key, test = _column(left, family), KEYED[family], _TESTS[op]
    keys, kernel = _keys(family), _OPERATORS[op]
    nullable = op.startswith("IS")

    def compared(batch: pa.RecordBatch, params: Params) -> Any:
        array, value = column(batch, params), right.get(params)
        if value is None:
            return pc.is_null(array) if nullable else pa.nulls(len(array), pa.bool_())
        bound = key(value)
        if keys is not None:
            found = kernel(keys(array), pa.scalar(bound, pa.binary()))
        else:
            found = keyarrays.each_text(array, lambda text: test(key(text), bound), pa.bool_())
        return pc.fill_null(found, False) if nullable else found

    return compared


def _between(left: Field, right: Field, op: str, family: str) -> _Made:
    if family == "float":
        raise _NoMask
    one, two, test = _column(left, family), _column(right, family), _OPERATORS[op]
    if not op.startswith("IS"):
        return lambda batch, params: test(one(batch, params), two(batch, params))

    def same(batch: pa.RecordBatch, params: Params) -> Any:
        a, b = one(batch, params), two(batch, params)
        return pc.or_(pc.fill_null(pc.equal(a, b), False), pc.and_(pc.is_null(a), pc.is_null(b)))

    return same


def _against(left: Field, right: Operand, op: str, family: str) -> _Made:
    assert isinstance(right, Value)
    column, value, test = _column(left, family), _value(right, family), _OPERATORS[op]
    nullable = op.startswith("IS")

    def compared(batch: pa.RecordBatch, params: Params) -> Any:
        array, scalar = column(batch, params), value(params)
        if nullable and not scalar.is_valid:
            return pc.is_null(array)
        found = _float_test(op, array, scalar) if family == "float" and scalar.is_valid else test(array, scalar)
        return pc.fill_null(found, False) if nullable else found

    return compared


def _float_test(op: str, array: pa.Array, scalar: Any) -> Any:
    """NaN is greater than every other number and equal to itself; Arrow's comparisons with it are false."""
    nan = pc.is_nan(array)
    if scalar.as_py() == scalar.as_py():
        found = _OPERATORS[op](array, scalar)
        return pc.or_(found, nan) if op in (">", ">=") else found
    match op:
        case "=" | "IS" | "IS NOT" | ">=":
            return nan
        case "<" | "<>":
            return pc.invert(nan)
        case "<=":
            return pc.or_(nan, pc.invert(nan))  # true, or null
        case _:
            return pc.and_(nan, pc.invert(nan))


def _in_list(node: InList) -> _Made:
    if not isinstance(node.item, Field) or node.family == "float" or (
            node.family not in _TYPES and node.family not in KEYED):
        raise _NoMask
    column, wanted, family = _column(node.item, node.family), _TYPES.get(node.family), node.family
    key, all_keys = KEYED.get(family), _keys(family)

    def member(batch: pa.RecordBatch, params: Params) -> Any:
        array = column(batch, params)
        listed = node.listed(params)
        if not listed:  # nothing is among no values, not even NULL
            return pa.repeat(pa.scalar(False), batch.num_rows)
        known = [bool(each) if family == "bool" else each for each in listed if each is not None]
        if all_keys is not None:
            found = pc.is_in(all_keys(array), pa.array(list(node.members(params).keys), pa.binary()))
        elif key is not None:
            keys = node.members(params).keys
            found = keyarrays.each_text(array, lambda text: key(text) in keys, pa.bool_())
        else:
            found = pc.is_in(array, pa.array(known, wanted))
        unknown = pc.is_null(array)
        if len(known) < len(listed):  # … IN (…, NULL): true or unknown
            unknown = pc.or_(unknown, pc.invert(found))
        return pc.if_else(unknown, pa.scalar(None, pa.bool_()), found)

    return member
