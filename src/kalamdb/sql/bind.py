"""From sqlglot's tree to conditions and values with PostgreSQL's types.

``Binder`` knows one table's columns (as far as a condition may name them) and the statement's parameters, whose types
it infers where they were not announced. What it cannot express raises ``NotSimple``: the query engine's work. What
PostgreSQL would refuse as well raises KalamError.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlglot import exp

from kalamdb import kept, types
from kalamdb.errors import KalamError
from kalamdb.sql.predicate import (
    FAMILIES,
    SEQ,
    USERID,
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
    family_of,
)
from kalamdb.txn.api import TableDef
from kalamdb.types import PgType

INT4_MAX, INT8_MAX = 2**31 - 1, 2**63 - 1
_COMPARISONS: dict[type[exp.Expr], str] = {
    exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=",
    exp.NullSafeEQ: "IS", exp.NullSafeNEQ: "IS NOT",
}


#: functions by which the wire dialect marks columns as values of a type kept as text, and the type's name
MARK = "kalam_as_"
MARKS: dict[str, str] = {MARK + each.name: each.name for each in kept.ORDERED}


class NotSimple(Exception):
    """The expression needs the query engine."""


def identifier(node: exp.Expression | str | None) -> str:
    """A name as PostgreSQL folds it."""
    if isinstance(node, exp.Identifier):
        return str(node.this) if node.args.get("quoted") else str(node.this).lower()
    return str(node or "")


def position_of(node: exp.Expression) -> int | None:
    """Where a node stands in the statement, from 1, where the parser kept it."""
    return place_of(node)


def place_of(node: exp.Expr) -> int | None:
    """Where an expression begins, as far as its parts tell."""
    starts = [start for part in node.walk() if (start := part.meta.get("start")) is not None]
    if not starts:
        return None
    first = min(starts) + 1
    if isinstance(node, exp.Column):  # its qualifier's place is not kept
        for part in ("table", "db"):
            qualifier = node.args.get(part)
            if qualifier is not None and qualifier.meta.get("start") is None:
                first -= len(qualifier.sql("postgres")) + 1
    return max(1, int(first))


class Params:
    """The statement's parameters: announced types, completed by what they are compared with or assigned to."""

    def __init__(self, announced: Sequence[int]) -> None:
        self.types: list[PgType | None] = [types.by_oid(oid) if oid else None for oid in announced]

    def type(self, index: int) -> PgType | None:
        while len(self.types) <= index:
            self.types.append(None)
        return self.types[index]

    def oid(self, index: int) -> int:
        """0: not announced."""
        type_ = self.type(index)
        return 0 if type_ is None else type_.oid

    def infer(self, index: int, type_: PgType) -> None:
        if self.type(index) is None:
            self.types[index] = type_

    def elements(self, node: exp.In) -> list[PgType]:
        """Of the array parameters that are all its values; none where the values are written one by one."""
        found = [types.element_of(self.type(parameter_index(part))) if isinstance(part, exp.Parameter) else None
                 for part in node.expressions]
        known = [each for each in found if each is not None]
        if known and len(known) < len(found):
            raise KalamError("0A000", "IN takes either arrays or values", position=place_of(node))
        return known

    def final(self) -> tuple[PgType, ...]:
        """What was never inferred is text, as in PostgreSQL."""
        return tuple(type_ or types.TEXT for type_ in self.types)


def parameter_index(node: exp.Expr) -> int:
    if isinstance(node, exp.Placeholder):  # sqlglot's of ?, :name and a % without a left side
        raise KalamError("42P02", "there is no parameter of that form", position=place_of(node),
                         hint="Parameters are written $1, $2 and so on.")
    index = int(node.name or node.this.name) - 1 if str(node.this.name).isdecimal() else -1
    if index < 0:
        raise KalamError("42P02", f"there is no parameter ${node.name}")
    if index > 65534:
        raise KalamError("54023", "too many parameters")
    return index


@dataclass(slots=True)
class Operand:
    """A bound operand before its type is settled; ``type`` None: an unknown literal or parameter."""

    type: PgType | None
    field: Field | None = None
    index: int | None = None
    constant: Any = None
    text: str | None = None  # an unknown literal's characters
    number: bool = False  # a number written in the statement: takes the other side's type where that is exact

    @property
    def family(self) -> str | None:
        return None if self.type is None else FAMILIES.get(self.type.name)


def declared_type(node: exp.Expression) -> tuple[PgType, int]:
    """The type of a CAST's target."""
    return types.parse_declared(node.sql("postgres").lower())


def number_operand(text: str) -> Operand:
    if text.lstrip("-").isdecimal():
        value = int(text)
        if -INT8_MAX - 1 <= value <= INT8_MAX:
            small = -INT4_MAX - 1 <= value <= INT4_MAX
            return Operand(types.by_name("int4" if small else "int8"), constant=value, number=True)
    return Operand(types.by_name("numeric"), constant=f"{Decimal(text):f}", number=True)


class Binder:
    """Binds conditions on one table. ``names`` are what may qualify its columns (alias, or name and namespace)."""

    def __init__(self, table: TableDef | None, params: Params, names: Iterable[str] = (),
                 owns: Callable[[exp.Column], bool] | None = None) -> None:
        self.table = table
        self.params = params
        self.names = set(names) or ({table.name} if table else set())
        self.owns = owns  # is this column the table's? (where other tables are in sight)
        self._positions = {column.name: place for place, column in enumerate(table.columns)} if table else {}

    # ---------- columns ----------
    def position(self, name: str) -> int | None:
        found = self._positions.get(name)
        if found is None and self.table is not None:
            if name == "_seq":
                return SEQ
            if name == "_userid" and self.table.kind != "shared":
                return USERID
        return found

    def column(self, node: exp.Column) -> Operand:
        if self.owns is not None and not self.owns(node):
            raise NotSimple
        name, qualifier = identifier(node.this), node.args.get("table")
        if isinstance(node.this, exp.Star):
            raise NotSimple
        if qualifier is not None and identifier(qualifier) not in self.names:
            raise KalamError("42P01", f'missing FROM-clause entry for table "{identifier(qualifier)}"',
                             position=position_of(node))
        position = self.position(name)
        if position is None and qualifier is None and name in self.names:
            raise NotSimple  # a whole row
        if position is None:
            written = f"{identifier(qualifier)}.{name}" if qualifier is not None else f'"{name}"'
            raise KalamError("42703", f"column {written} does not exist", position=position_of(node), column=name)
        return Operand(self.type_of(position), field=self.field(position))

    def type_of(self, position: int) -> PgType:
        if position == SEQ:
            return types.by_name("int8")
        if position == USERID:
            return types.TEXT
        assert self.table is not None
        return self.table.columns[position].type

    def field(self, position: int) -> Field:
        if position < 0:
            return Field(position, "_seq" if position == SEQ else "_userid")
        assert self.table is not None
        return Field(position, f"c{self.table.columns[position].id}")

    # ---------- operands ----------
    def operand(self, node: exp.Expr) -> Operand:
        match node:
            case exp.Paren():
                return self.operand(node.this)
            case exp.Column():
                return self.column(node)
            case exp.Literal() if node.is_string:
                return Operand(None, text=node.this)
            case exp.Literal():
                return number_operand(node.this)
            case exp.ByteString() | exp.RawString() | exp.National():
                return Operand(None, text=str(node.this))
            case exp.Neg():
                return self._negative(node)
            case exp.Boolean():
                return Operand(types.by_name("bool"), constant=int(bool(node.this)))
            case exp.Null():
                return Operand(None)
            case exp.Parameter() | exp.Placeholder():
                index = parameter_index(node)
                return Operand(self.params.type(index), index=index)
            case exp.Cast() if type(node) is exp.Cast:
                return self._cast(node)
            case exp.Anonymous() if str(node.this) in MARKS:
                return self.column(self.marked(node))
        raise NotSimple

    def marked(self, node: exp.Expr) -> exp.Column:
        """The column in ``kalam_as_inet("ip")``, which is of that type indeed; a text in it has to be read."""
        if isinstance(node, exp.Anonymous) and len(node.expressions) == 1 and isinstance(
                node.expressions[0], exp.Column):
            found = self.column(node.expressions[0]).type
            if found is not None and found.name == MARKS.get(str(node.this)):
                return node.expressions[0]
        raise NotSimple

    def _negative(self, node: exp.Neg) -> Operand:
        inner = node.this
        if isinstance(inner, exp.Literal) and not inner.is_string:
            return number_operand("-" + inner.this)
        raise NotSimple

    def _cast(self, node: exp.Cast) -> Operand:
        inner = self.operand(node.this)
        target, typmod = declared_type(node.to)
        if inner.field is not None or inner.number or (inner.type is not None and inner.type is not target):
            raise NotSimple
        if inner.index is not None:
            if typmod != -1:
                raise NotSimple
            self.params.infer(inner.index, target)
            return Operand(target, index=inner.index)
        if inner.text is not None:
            return Operand(target, constant=types.read_text(target, inner.text, typmod))
        return Operand(target, constant=inner.constant)

    # ---------- one family ----------
    def value(self, operand: Operand, target: PgType) -> Value:
        """A constant or parameter as a value comparable with ``target``'s. NotSimple where types differ in kind."""
        if operand.type is None:
            if operand.index is not None:
                self.params.infer(operand.index, target)
                return Value(operand.index)
            if operand.text is None:
                return Value(None)
            return Value(None, types.read_text(target, operand.text, -1))
        source, wanted = operand.family, FAMILIES.get(target.name)
        if source is None or wanted is None:
            raise NotSimple
        assert operand.type is not None
        if source == wanted:  # of an address in the form of the other type
            forms: dict[str, Callable[[Any], Any]] = {"cidr": kept.as_cidr, "inet": target.read}
            return Value(operand.index, operand.constant,
                         forms.get(target.name) if operand.type.name != target.name else None)
        convert: Callable[[Any], Any] | None = None
        if target.text_only and source == "text" and operand.index is not None:
            return Value(operand.index, None, target.read)
        if wanted == "numeric" and source == "int":
            convert = str
        elif wanted == "float" and source in ("int", "numeric"):
            convert = float
        if convert is None:
            raise NotSimple
        if operand.index is None:
            return Value(None, None if operand.constant is None else convert(operand.constant))
        return Value(operand.index, None, convert)

    def _sides(self, op: str, left: Operand, right: Operand) -> tuple[Field | Value, Field | Value, str]:
        anchor = left.type if left.field is not None or right.type is None else right.type
        if right.field is not None and left.field is None:
            anchor = right.type
        if anchor is None:
            raise NotSimple
        family = FAMILIES.get(anchor.name)
        if family is None:
            raise NotSimple
        sides: list[Field | Value] = []
        for operand in (left, right):
            if operand.field is None:
                sides.append(self.value(operand, anchor))
            elif operand.family == family:
                sides.append(operand.field)
            else:
                raise NotSimple
        names = [each.type.name if each.field is not None and each.type is not None else anchor.name
                 for each in (left, right)]
        return sides[0], sides[1], family_of(op, names[0], names[1], family)

    def compare(self, op: str, left: exp.Expression, right: exp.Expression) -> Compare:
        return self._compared(op, self.operand(left), self.operand(right))

    def _compared(self, op: str, first: Operand, second: Operand) -> Compare:
        check_comparable(op, first, second)
        one, two, family = self._sides(op, first, second)
        return Compare(op, one, two, family)

    # ---------- conditions ----------
    def condition(self, node: exp.Expr) -> Condition:
        op = _COMPARISONS.get(type(node))
        if op is not None:
            return self.compare(op, node.this, node.expression)
        match node:
            case exp.Paren():
                return self.condition(node.this)
            case exp.And() | exp.Or():
                return Junction(isinstance(node, exp.And),
                                tuple(self.condition(part) for part in node.flatten(unnest=False)))
            case exp.Not():
                return Not(self.condition(node.this))
            case exp.Is():
                return self._is(node)
            case exp.In():
                return self._in(node)
            case exp.Between() if not node.args.get("symmetric"):
                return Junction(True, (self.compare(">=", node.this, node.args["low"]),
                                       self.compare("<=", node.this, node.args["high"])))
        return self._boolean(node)

    def _boolean(self, node: exp.Expr) -> Condition:
        operand = self.operand(node)
        boolean = types.by_name("bool")
        if operand.type is not None and operand.type is not boolean:
            raise KalamError("42804", f"argument of WHERE must be type boolean, not type {operand.type.display}",
                             position=place_of(node))
        return Boolean(operand.field if operand.field is not None else self.value(operand, boolean))

    def _is(self, node: exp.Is) -> Condition:
        test = node.expression
        answer: Condition
        if isinstance(test, exp.Null):
            answer = IsNull(self._nullable(node.this))
        elif isinstance(test, exp.Boolean):
            answer = IsBool(self.condition(node.this), bool(test.this))
        else:
            raise NotSimple
        return Not(answer) if node.args.get("negate") else answer

    def _nullable(self, node: exp.Expression) -> Field | Value | Condition:
        inner = node.unnest()
        if isinstance(inner, exp.Column | exp.Literal | exp.Null | exp.Parameter | exp.Cast | exp.Neg) or (
                isinstance(inner, exp.Anonymous) and str(inner.this) in MARKS):
            operand = self.operand(inner)
            if operand.field is not None:
                return operand.field
            if operand.index is not None and operand.type is None:
                self.params.infer(operand.index, types.TEXT)
            return Value(operand.index, operand.text if operand.text is not None else operand.constant)
        return self.condition(inner)

    def _in_arrays(self, node: exp.In, elements: Sequence[PgType]) -> Condition:
        """IN array parameters, whose elements count one by one."""
        item = self.operand(node.this)
        if item.field is None or item.type is None or item.family is None:
            raise NotSimple
        values = []
        for part, element in zip(node.expressions, elements, strict=True):
            operand = Operand(element, index=parameter_index(part))
            check_comparable("=", item, operand)
            values.append(self.value(operand, item.type))
        family = family_of("=", item.type.name, item.type.name, item.family)
        return InList(item.field, tuple(values), family, arrays=True)

    def _in(self, node: exp.In) -> Condition:
        if node.args.get("query") is not None or node.args.get("unnest") is not None or not node.expressions:
            raise NotSimple
        elements = self.params.elements(node)
        if elements:
            return self._in_arrays(node, elements)
        item = self.operand(node.this)
        operands = [self.operand(part) for part in node.expressions]
        if item.field is None or any(operand.field is not None for operand in operands):
            compared = tuple(self._compared("=", item, operand) for operand in operands)
            return compared[0] if len(compared) == 1 else Junction(False, compared)
        if item.type is None or item.family is None:
            raise NotSimple
        values = []
        for operand in operands:
            check_comparable("=", item, operand)
            values.append(self.value(operand, item.type))
        return InList(item.field, tuple(values), family_of("=", item.type.name, item.type.name, item.family))


_NUMBERS = frozenset({"int", "float", "numeric"})
_MOMENTS = frozenset({"date", "timestamp", "timestamptz"})


def check_comparable(op: str, left: Operand, right: Operand) -> None:
    """42883 where PostgreSQL has no such operator between basic types."""
    one, two = left.family, right.family
    if one is None or two is None or one == two:
        return
    if {one, two} <= _NUMBERS or {one, two} <= _MOMENTS or {one, two} == {"text", "bpchar"}:
        return
    assert left.type is not None
    assert right.type is not None
    shown = {"IS": "=", "IS NOT": "="}.get(op, op)
    raise KalamError(
        "42883", f"operator does not exist: {left.type.display} {shown} {right.type.display}",
        hint="No operator matches the given name and argument types. You might need to add explicit type casts.",
    )
