"""Conditions on one table's rows that need no query engine: bind, compile to SQLite, evaluate, find key ranges.

A condition is a small immutable tree over storage values with SQL's three-valued logic. The same tree is compiled to
a SQLite expression (for scans), evaluated in Python (to re-check a row after a lock wait) and searched for bounds of
the key. Comparison follows PostgreSQL: text by bytes, NaN equal to itself and greatest, numeric by value. All operands
of a ``Compare`` have been brought to one family of types when it is made; what cannot be is the query engine's.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from math import isnan
from typing import Any

import apsw

from kalamdb import kept
from kalamdb.order import NUMERIC_FUNCTION, float_operand, key_function, numeric_bytes

Params = Sequence[Any]

#: types that compare with each other as stored, by the name of the family
FAMILIES: dict[str, str] = {
    "bool": "bool", "int2": "int", "int4": "int", "int8": "int", "float4": "float", "float8": "float",
    "numeric": "numeric", "text": "text", "varchar": "text", "bytea": "bytea", "uuid": "uuid", "date": "date",
    "timestamp": "timestamp", "timestamptz": "timestamptz",
    **{each.name: "inet" if each.name == "cidr" else each.name for each in kept.ORDERED},
}
#: by what order values of these are compared
_KEPT: dict[str, Callable[[Any], Any]] = {
    each.name: each.key for each in kept.ORDERED if each.key is not None and each.name not in kept.ORDERED_TEXTS
} | {"bpchar": kept.unpadded}
#: operators of equality
EQUALITY = frozenset({"=", "<>", "IS", "IS NOT"})
SEQ, USERID = -1, -2
#: of IN, that are bound one by one
FEW_VALUES = 100


@dataclass(frozen=True, slots=True)
class Field:
    """A column, by its position in the table (SEQ and USERID for the system columns)."""

    position: int
    sql: str  # SQLite's name of it


@dataclass(frozen=True, slots=True)
class Value:
    """A constant (``index`` None) or a parameter, brought to the family by ``convert``."""

    index: int | None
    constant: Any = None
    convert: Callable[[Any], Any] | None = None

    def get(self, params: Params) -> Any:
        value = self.constant if self.index is None else params[self.index]
        return value if self.convert is None or value is None else self.convert(value)

    def elements(self, params: Params) -> Sequence[Any]:
        """Of an array parameter."""
        assert self.index is not None
        values = params[self.index]
        if values is None:
            return (None,)
        return values if self.convert is None else [None if each is None else self.convert(each) for each in values]


Operand = Field | Value


@dataclass(frozen=True, slots=True)
class Compare:
    op: str  # = <> < <= > >= IS, IS NOT (not distinct from, distinct from)
    left: Operand
    right: Operand
    family: str


def family_of(op: str, left: str, right: str, family: str) -> str:
    """By what two values of these types are compared: where equal values have one text, that."""
    return "text" if op in EQUALITY and left == right and left in kept.EQUAL_TEXTS else family


class Given(tuple[Any, ...]):
    """The parameters of one execution, and what its conditions have made of them for all rows: no plan keeps either."""

    def __init__(self, values: Sequence[Any]) -> None:  # tuple has taken the values
        self.made: dict[int, tuple[InList, Members]] = {}  # by the identity of the condition, which thereby lives


@dataclass(frozen=True, slots=True)
class InList:
    """IN: values one by one, or the elements of array parameters."""

    item: Operand
    values: tuple[Value, ...]
    family: str
    arrays: bool = False
    _constant: list[Members] = field(default_factory=list, compare=False, repr=False)

    def listed(self, params: Params) -> list[Any]:
        """What is looked for; NULL for an array that is NULL itself."""
        if not self.arrays:
            return [value.get(params) for value in self.values]
        return [each for value in self.values for each in value.elements(params)]

    def members(self, params: Params) -> Members:
        """The same made ready, once for all rows of an execution; constants once and for all."""
        if self._constant:
            return self._constant[0]
        given = params if isinstance(params, Given) else None
        if given is not None and (found := given.made.get(id(self))) is not None:
            return found[1]
        made = Members(self.listed(params), self.family)
        if all(value.index is None for value in self.values):
            self._constant.append(made)
        elif given is not None:
            given.made[id(self)] = self, made
        return made


class Members:
    """The elements of one IN, to be looked up by value."""

    def __init__(self, listed: Sequence[Any], family: str) -> None:
        key = _KEYS.get(family)
        known = [each for each in listed if each is not None]
        self.has_null = len(known) < len(listed)
        self.keys = set(known if key is None else map(key, known))


@dataclass(frozen=True, slots=True)
class IsNull:
    item: Operand | Condition


@dataclass(frozen=True, slots=True)
class IsBool:
    """IS TRUE, IS FALSE."""

    item: Condition
    truth: bool


@dataclass(frozen=True, slots=True)
class Boolean:
    """A boolean column, parameter or constant as a condition."""

    item: Operand


@dataclass(frozen=True, slots=True)
class Not:
    item: Condition


@dataclass(frozen=True, slots=True)
class Junction:
    """AND (``every``) or OR of two or more."""

    every: bool
    items: tuple[Condition, ...]


Condition = Compare | InList | IsNull | IsBool | Boolean | Not | Junction


# ---------- order of values ----------
def numeric_key(text: str) -> tuple[int, Decimal]:
    """Orders numeric's text form: -Infinity, finite values, Infinity, NaN."""
    value = Decimal(text)
    if value.is_nan():
        return 2, Decimal(0)
    if value.is_infinite():
        return (1, Decimal(0)) if value > 0 else (-1, Decimal(0))
    return 0, value


def float_key(value: float) -> tuple[int, float]:
    return (1, 0.0) if isnan(value) else (0, value)


_KEYS: dict[str, Callable[[Any], Any]] = {"numeric": numeric_key, "float": float_key, **_KEPT}
#: families whose values are strings that take a key to be compared
KEYED = {"numeric": numeric_key, **_KEPT}


# ---------- evaluation in Python ----------
def _operand(item: Operand, row: Sequence[Any], params: Params) -> Any:
    if isinstance(item, Value):
        return item.get(params)
    position = item.position
    return row[position if position >= 0 else -3 - position]  # the row ends with _seq, _userid


def _compare(op: str, left: Any, right: Any, family: str) -> bool | None:
    if left is None or right is None:
        if op == "IS":
            return left is right
        return left is not right if op == "IS NOT" else None
    key = _KEYS.get(family)
    if key is not None:
        left, right = key(left), key(right)
    match op:
        case "=" | "IS":
            return bool(left == right)
        case "<>" | "IS NOT":
            return bool(left != right)
        case "<":
            return bool(left < right)
        case "<=":
            return bool(left <= right)
        case ">":
            return bool(left > right)
        case _:
            return bool(left >= right)


def _in_list(node: InList, row: Sequence[Any], params: Params) -> bool | None:
    members, item = node.members(params), _operand(node.item, row, params)
    if item is None:
        return None if members.keys or members.has_null else False
    key = _KEYS.get(node.family)
    if (item if key is None else key(item)) in members.keys:
        return True
    return None if members.has_null else False


def _junction(node: Junction, row: Sequence[Any], params: Params) -> bool | None:
    unknown = False
    for item in node.items:
        answer = evaluate(item, row, params)
        if answer is None:
            unknown = True
        elif answer is not node.every:
            return answer
    return None if unknown else node.every


def evaluate(node: Condition, row: Sequence[Any], params: Params) -> bool | None:
    """Truth of a condition for one row, ``(*columns, _seq, _userid)``."""
    match node:
        case Compare():
            return _compare(node.op, _operand(node.left, row, params), _operand(node.right, row, params), node.family)
        case Junction():
            return _junction(node, row, params)
        case InList():
            return _in_list(node, row, params)
        case Not():
            answer = evaluate(node.item, row, params)
            return None if answer is None else not answer
        case IsNull():
            item = node.item
            if isinstance(item, Field | Value):
                return _operand(item, row, params) is None
            return evaluate(item, row, params) is None
        case IsBool():
            return evaluate(node.item, row, params) is node.truth
        case Boolean():
            value = _operand(node.item, row, params)
            return None if value is None else bool(value)


# ---------- SQLite ----------
def _joined(parts: list[str], word: str) -> str:
    """In parentheses, and in groups: SQLite takes a chain for as deep as it is long, and a thousand for too deep."""
    while len(parts) > 100:
        parts = [f"({word.join(parts[at : at + 100])})" for at in range(0, len(parts), 100)]
    return f"({word.join(parts)})"


def _flat(node: Junction) -> list[Condition]:
    """A chain's items, however its parts are nested."""
    items: list[Condition] = []
    left: list[Condition] = [node]
    while left:
        item = left.pop()
        if isinstance(item, Junction) and item.every == node.every:
            left += reversed(item.items)
        else:
            items.append(item)
    return items


class _Compiler:
    """Collects the values in the order of their question marks."""

    def __init__(self) -> None:
        self.values: list[Callable[[Params], Any]] = []

    def operand(self, item: Operand, family: str) -> str:
        if isinstance(item, Value):
            encode = SQLITE_VALUES.get(family)
            self.values.append(item.get if encode is None else partial(_encoded, item, encode))
            return "?"
        return SQLITE_OPERANDS[family].format(item.sql) if family in SQLITE_OPERANDS else item.sql

    def many(self, node: InList) -> str:
        """Any number of values, which are bound as arrays: of what is stored as bytes, and of the rest."""
        found = []
        for part in (_plain_values, _byte_values, _null_flag):
            left = self.operand(node.item, node.family) if part is not _null_flag else ""
            self.values.append(partial(part, node))
            found.append(f"{left} IN carray(?)" if left else "?")
        return f"({' OR '.join(found)})"

    def sql(self, node: Condition) -> str:
        match node:
            case Compare():
                left = self.operand(node.left, node.family)
                return f"({left} {node.op} {self.operand(node.right, node.family)})"
            case InList() if node.arrays or len(node.values) > FEW_VALUES:
                return self.many(node)
            case InList():
                left = self.operand(node.item, node.family)
                return f"({left} IN ({', '.join(self.operand(value, node.family) for value in node.values)}))"
            case Junction():
                return _joined([self.sql(item) for item in _flat(node)], " AND " if node.every else " OR ")
            case Not():
                return f"(NOT {self.sql(node.item)})"
            case IsNull():
                item = node.item
                inner = self.operand(item, "") if isinstance(item, Field | Value) else self.sql(item)
                return f"({inner} IS NULL)"
            case IsBool():
                return f"({self.sql(node.item)} IS {'TRUE' if node.truth else 'FALSE'})"
            case Boolean():
                return f"({self.operand(node.item, 'bool')})"


#: how a stored column of a family is written in SQLite where its storage does not order by itself
SQLITE_OPERANDS: dict[str, str] = {
    "numeric": NUMERIC_FUNCTION + "({})", **{name: key_function(name) + "({})" for name in _KEPT},
    "bpchar": "rtrim({}, ' ')",
}
#: how a value of such a family is bound
SQLITE_VALUES: dict[str, Callable[[Any], Any]] = {
    "numeric": numeric_bytes, "float": float_operand, **_KEPT,
}


def _encoded(value: Value, encode: Callable[[Any], Any], params: Params) -> Any:
    found = value.get(params)
    return None if found is None else encode(found)


def _stored(node: InList, params: Params) -> list[Any]:
    encode = SQLITE_VALUES.get(node.family)
    known = [each for each in node.listed(params) if each is not None]
    return known if encode is None else list(map(encode, known))


def _plain_values(node: InList, params: Params) -> Any:
    values = [each for each in _stored(node, params) if not isinstance(each, bytes)]
    if not values:
        return None  # for SQLite an array without elements
    if isinstance(values[0], str):
        return apsw.carray(tuple(values))
    return apsw.carray(array("d" if node.family == "float" else "q", values))


def _byte_values(node: InList, params: Params) -> Any:
    values = tuple(each for each in _stored(node, params) if isinstance(each, bytes))
    return apsw.carray(values) if values else None


def _null_flag(node: InList, params: Params) -> Any:
    return None if None in node.listed(params) else 0


@dataclass(frozen=True, slots=True)
class Compiled:
    """SQLite text and what makes the values of its question marks."""

    sql: str
    values: tuple[Callable[[Params], Any], ...]

    def bind(self, params: Params) -> tuple[Any, ...]:
        return tuple([value(params) for value in self.values])


def compile_condition(node: Condition) -> Compiled:
    compiler = _Compiler()
    text = compiler.sql(node)
    return Compiled(text, tuple(compiler.values))


# ---------- keys ----------
@dataclass(frozen=True, slots=True)
class KeyRange:
    """What a condition says about a table's key: equal leading columns, bounds of the next one, and what is left.

    ``rest`` is None where prefix and bounds say all.
    """

    prefix: tuple[Value, ...] = ()
    low: tuple[Value, bool] | None = None
    high: tuple[Value, bool] | None = None
    points: InList | None = None  # the last key column IN (…), the others in prefix
    rest: Condition | None = None


def conjuncts(node: Condition | None) -> list[Condition]:
    if node is None:
        return []
    if isinstance(node, Junction) and node.every:
        return [part for item in node.items for part in conjuncts(item)]
    return [node]


def conjunction(items: Sequence[Condition]) -> Condition | None:
    if not items:
        return None
    return items[0] if len(items) == 1 else Junction(True, tuple(items))


def _bound(node: Condition, position: int) -> tuple[str, Value] | None:
    """``column op value`` with the column on the left."""
    if not isinstance(node, Compare):
        return None
    left, right, op = node.left, node.right, node.op
    if isinstance(left, Value) and isinstance(right, Field):
        left, right, op = right, left, {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(op, op)
    if isinstance(left, Field) and left.position == position and isinstance(right, Value):
        return op, right
    return None


def key_range(node: Condition | None, key: Sequence[int], exact: Callable[[int], bool]) -> KeyRange:
    """The key's bounds in the conjuncts of a condition; ``exact`` tells which positions' values bound the key."""
    rest = conjuncts(node)
    prefix: list[Value] = []
    for position in key:
        found = next((item for item in rest if exact(position) and (_bound(item, position) or ("",))[0] == "="), None)
        if found is None:
            break
        bound = _bound(found, position)
        assert bound is not None
        prefix.append(bound[1])
        rest.remove(found)
    if len(prefix) == len(key) or not exact(key[len(prefix)]):
        return KeyRange(tuple(prefix), rest=conjunction(rest))
    return _range_after(tuple(prefix), key, rest)


def _range_after(prefix: tuple[Value, ...], key: Sequence[int], rest: list[Condition]) -> KeyRange:
    position = key[len(prefix)]
    if len(prefix) + 1 == len(key):
        for item in rest:
            if isinstance(item, InList) and isinstance(item.item, Field) and item.item.position == position:
                rest.remove(item)
                return KeyRange(prefix, points=item, rest=conjunction(rest))
    low: tuple[Value, bool] | None = None
    high: tuple[Value, bool] | None = None
    left: list[Condition] = []
    for item in rest:
        op, value = _bound(item, position) or ("", None)
        if value is not None and op in (">", ">=") and low is None:
            low = value, op == ">="
        elif value is not None and op in ("<", "<=") and high is None:
            high = value, op == "<="
        else:
            left.append(item)
    return KeyRange(prefix, low, high, rest=conjunction(left))
