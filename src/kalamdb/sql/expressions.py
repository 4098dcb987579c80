"""Expressions: from sqlglot's tree to the query engine's SQL, typed as PostgreSQL types them.

``Expressions`` translates one expression in a ``Frame`` (one level of SELECT); where names come from and how a subquery
is translated is the caller's, ``Names``. Everything that is not known here is refused with a code of its own: nothing
reaches the query engine that would mean something else there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from sqlglot import exp

from kalamdb import types
from kalamdb.errors import KalamError
from kalamdb.numbers import read_numeric
from kalamdb.sql import fields, functions, patterns
from kalamdb.sql.bind import MARKS, Params, identifier, parameter_index, place_of
from kalamdb.sql.casts import (
    Typed,
    cast,
    constant,
    null,
    numeric_constant,
    numeric_text,
    settle,
    settled,
    to_text,
)
from kalamdb.sql.functions import Signature, failure
from kalamdb.sql.guard import junction, may_fail
from kalamdb.sql.kinds import (
    BOOL,
    EQUALITIES,
    FLOAT8,
    INT4,
    INT8,
    INTEGERS,
    JSONS,
    KEPT,
    MOMENTS,
    NUMBERS,
    NUMERIC,
    ORDERS,
    RAW,
    STORED_INTERVAL,
    STRINGS,
    TEXT,
    TIMESTAMP,
    TIMESTAMPTZ,
    UNKNOWN,
    Kind,
    as_numeric,
    category,
    common,
    decimal,
    kind,
    of_column,
    plain,
)
from kalamdb.sql.native import literal

#: longest translation of one expression
MAX_SQL = 200_000
AGGREGATES = frozenset(each.name for each in functions.SIGNATURES if each.aggregate)
WINDOWS = frozenset(each.name for each in functions.SIGNATURES if each.window)
SERIES = frozenset({"generate_series", "unnest"})
#: values of a generate_series: they are one list in memory, which nothing else bounds
LONGEST_SERIES = 10_000_000
_TOO_LONG = failure("54000", f"generate_series of more than {LONGEST_SERIES} values is not supported")


@dataclass(slots=True)
class Frame:
    """One level of SELECT while it is translated."""

    scope: object
    outer: Frame | None = None
    clause: str = "SELECT"
    aggregates: bool = False  # allowed here?
    windows: bool = False
    series: bool = False
    inside: str | None = None  # "aggregate" or "window": whose arguments are translated
    grouped: bool = False
    groups: dict[str, Typed] = field(default_factory=dict)  # by the expression's key
    marks: dict[str, str] = field(default_factory=dict)  # how what is grouped by is shown → the key itself
    spread: bool = False  # argument lists may be bound by a lambda
    named_windows: dict[str, exp.Window] = field(default_factory=dict)


class Names(Protocol):
    """What stands around an expression."""

    def column(self, node: exp.Column, frame: Frame) -> Typed: ...

    def subquery(self, node: exp.Expr, frame: Frame) -> tuple[str, list[Kind]]: ...


def not_supported(what: str, node: exp.Expr | None = None, hint: str | None = None) -> KalamError:
    return KalamError("0A000", f"{what} is not supported", position=None if node is None else place_of(node), hint=hint)


def no_operator(name: str, given: Sequence[Kind], node: exp.Expr | None = None) -> KalamError:
    shown = f" {name} ".join(each.display for each in given) if len(given) > 1 else f"{name} {given[0].display}"
    return KalamError("42883", f"operator does not exist: {shown}", position=None if node is None else place_of(node),
                      hint="No operator matches the given name and argument types. You might need to add explicit "
                           "type casts.")


def no_function(name: str, args: Sequence[Typed], node: exp.Expr) -> KalamError:
    if name in functions.UNSUPPORTED:
        return not_supported(f"{name}()", node)
    shown = ", ".join(each.kind.display for each in args)
    return KalamError("42883", f"function {name}({shown}) does not exist", position=place_of(node),
                      hint="No function matches the given name and argument types. You might need to add explicit "
                           "type casts.")


_OTHER_TYPES = re.compile(r"(char|character|bpchar|time|timetz|money|bit|varbit|inet|cidr|macaddr|xml|point|name|oid|"
                          r"regclass|hstore|vector|tsvector|tsquery|int4range|int8range|numrange|daterange)\b.*")


def declared(node: exp.DataType) -> Kind:
    """The type of a CAST."""
    written = node.sql("postgres").lower()
    if _OTHER_TYPES.fullmatch(written) and not written.startswith(("character varying", "char varying")):
        raise not_supported(f"a cast to {written}", node)
    if node.this == exp.DataType.Type.INTERVAL or node.is_type("interval"):
        return kind("interval")
    if node.this == exp.DataType.Type.ARRAY and node.expressions:
        return kind(declared(node.expressions[0]).name + "[]")
    type_, typmod = types.parse_declared(node.sql("postgres").lower())
    return Kind(type_.name, typmod=typmod) if type_.name == "numeric" and typmod != -1 and not of_column(
        type_, typmod).fixed else of_column(type_, typmod)


def function_name(node: exp.Anonymous) -> str:
    return identifier(node.this) if isinstance(node.this, exp.Identifier) else str(node.this).lower()


_BINARY: dict[type[exp.Expr], str] = {
    exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/", exp.Mod: "%", exp.Pow: "^", exp.DPipe: "||",
    exp.BitwiseAnd: "&", exp.BitwiseOr: "|", exp.BitwiseXor: "#", exp.BitwiseLeftShift: "<<",
    exp.BitwiseRightShift: ">>", exp.StartsWith: "^@", exp.ArrayContainsAll: "@>", exp.ArrayContainedBy: "<@",
    exp.JSONBContainsTopKey: "?", exp.JSONBExtract: "#>", exp.JSONBExtractScalar: "#>>",
    exp.JSONBDeleteAtPath: "#-", exp.JSONBContainsAnyTopKeys: "?|", exp.JSONBContainsAllTopKeys: "?&",
}  # fmt: skip
COMPARISONS: dict[type[exp.Expr], str] = {
    exp.EQ: "=", exp.NEQ: "<>", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM", exp.NullSafeNEQ: "IS DISTINCT FROM",
}
_SHOWN = {"IS NOT DISTINCT FROM": "=", "IS DISTINCT FROM": "="}
#: what is written like a constant or a function and is the same for a whole statement: mark and type
FACTS: dict[str, tuple[str, str]] = {
    "version": ("version", "text"), "current_database": ("database", "text"), "current_schema": ("schema", "text"),
    "pg_backend_pid": ("pid", "int4"), "kalam_user_id": ("tenant", "text"), "now": ("now", "timestamptz"),
    "transaction_timestamp": ("now", "timestamptz"), "statement_timestamp": ("now", "timestamptz"),
}
_FACT_NODES: dict[type[exp.Expr], tuple[str, str]] = {
    exp.CurrentUser: ("user", "text"), exp.SessionUser: ("user", "text"), exp.CurrentSchema: ("schema", "text"),
    exp.CurrentCatalog: ("database", "text"), exp.CurrentRole: ("user", "text"),
    exp.CurrentTimestamp: ("now", "timestamptz"),
}
#: what the query engine takes for another value each time: it may fail
_VOLATILE = re.compile(r"\berror\(|\blambda\b|\bkalam_")
#: an escape character at the end is an error if it is reached; where the pattern is a constant, one branch is left
_LIKE = r"CASE WHEN suffix($2, '\') THEN kalam_t_like($1, $2) ELSE ($1 LIKE $2 ESCAPE '\') END"


class Expressions:
    def __init__(self, params: Params, names: Names) -> None:
        self.params = params
        self.names = names
        self._each: dict[int, Typed] = {}  # what array parameters stand for inside kalam_any and kalam_all

    # ---------- entry points ----------
    def value(self, node: exp.Expr, frame: Frame) -> Typed:
        """Any expression; perhaps of unknown type."""
        found = frame.groups.get(key_of(node)) if frame.groups and frame.inside != "aggregate" else None
        typed = found if found is not None else self._node(node, frame)
        if len(typed.sql) > MAX_SQL:
            raise KalamError("54001", "the expression is too complex")
        return typed

    def known(self, node: exp.Expr, frame: Frame) -> Typed:
        return settled(self.value(node, frame), self.params)

    def condition(self, node: exp.Expr, frame: Frame, what: str) -> str:
        typed = self.value(node, frame)
        if typed.unknown:
            typed = settle(typed, BOOL, self.params)
        if typed.kind.name != "bool":
            raise KalamError("42804", f"argument of {what} must be type boolean, not type {typed.kind.display}",
                             position=place_of(node))
        return typed.sql

    def cast(self, typed: Typed, target: Kind, *, explicit: bool = False) -> Typed:
        return cast(typed, target, self.params, explicit=explicit)

    def sort_key(self, typed: Typed, node: exp.Expr | None = None, *, equality: bool = False) -> str:
        """What orders (or groups) values as PostgreSQL does."""
        typed = settled(typed, self.params)
        name = typed.kind.name
        if name == "numeric" and not typed.kind.fixed:
            return f"kalam_n_key({typed.sql})"
        if name == "json":
            what = "an equality" if equality else "an ordering"
            raise KalamError("42883", f"could not identify {what} operator for type json",
                             position=None if node is None else place_of(node))
        if name in ORDERS:
            return (EQUALITIES if equality else ORDERS)[name].replace("$1", typed.sql)
        if name == "jsonb" and equality:
            return f"kalam_j_key({typed.sql})"
        if name == "jsonb" or name in KEPT:
            raise not_supported(f"{'grouping' if equality else 'ordering'} by {typed.kind.display}", node)
        return typed.sql

    # ---------- nodes ----------
    def _node(self, node: exp.Expr, frame: Frame) -> Typed:
        kind_ = type(node)
        if kind_ in COMPARISONS:
            return self._comparison(node, frame)
        if kind_ in _BINARY:
            return self._binary(node, frame)
        if kind_ in _FACT_NODES:
            return _fact(*_FACT_NODES[kind_])
        work = _NODES.get(kind_)
        if work is None:
            raise not_supported(f"this expression ({node.sql('postgres')[:60]})", node)
        return work(self, node, frame)

    def _paren(self, node: exp.Expr, frame: Frame) -> Typed:
        inner = self.value(node.this, frame)
        return inner if inner.unknown or inner.simple else Typed(f"({inner.sql})", inner.kind, exact=inner.exact)

    def _literal(self, node: exp.Expr, frame: Frame) -> Typed:
        assert isinstance(node, exp.Literal)
        return Typed("", UNKNOWN, literal=node.this, place=place_of(node)) if node.is_string else number(node.this)

    def _string(self, node: exp.Expr, frame: Frame) -> Typed:
        return Typed("", UNKNOWN, literal=str(node.this), place=place_of(node))

    def _null(self, node: exp.Expr, frame: Frame) -> Typed:
        return Typed("NULL", UNKNOWN, True)

    def _boolean(self, node: exp.Expr, frame: Frame) -> Typed:
        return Typed("TRUE" if node.this else "FALSE", BOOL, True)

    def _parameter(self, node: exp.Expr, frame: Frame) -> Typed:
        index = parameter_index(node)
        announced = self.params.type(index)
        if index in self._each:
            return self._each[index]
        typed = Typed("", UNKNOWN, param=index)
        return typed if announced is None else settle(typed, of_column(announced, -1), self.params)

    def _column(self, node: exp.Expr, frame: Frame) -> Typed:
        assert isinstance(node, exp.Column)
        return self.names.column(node, frame)

    def _negative(self, node: exp.Expr, frame: Frame) -> Typed:
        inner = node.this
        if isinstance(inner, exp.Literal) and not inner.is_string:
            return number("-" + inner.this)
        return self.operator("-", [self.value(inner, frame)], node)

    def _bitwise_not(self, node: exp.Expr, frame: Frame) -> Typed:
        return self.operator("~", [self.value(node.this, frame)], node)

    # ---------- logic ----------
    def _junction(self, node: exp.Expr, frame: Frame) -> Typed:
        word = "AND" if isinstance(node, exp.And) else "OR"
        assert isinstance(node, exp.Connector)
        parts = [self.condition(part, frame, word) for part in node.flatten(unnest=False)]
        return Typed(f"({junction(word, parts)})", BOOL)

    def _not(self, node: exp.Expr, frame: Frame) -> Typed:
        return Typed(f"(NOT {self.condition(node.this, frame, 'NOT')})", BOOL)

    def _is(self, node: exp.Expr, frame: Frame) -> Typed:
        test, negate = node.args["expression"], "NOT " if node.args.get("negate") else ""
        if isinstance(test, exp.Null):
            if isinstance(node.this.unnest(), exp.Tuple):
                raise not_supported("IS NULL of a row", node)
            return Typed(f"({self.known(node.this, frame).sql} IS {negate}NULL)", BOOL)
        if isinstance(test, exp.Boolean):
            word = "TRUE" if test.this else "FALSE"
            return Typed(f"({self.condition(node.this, frame, f'IS {word}')} IS {negate}{word})", BOOL)
        raise not_supported(f"IS {test.sql('postgres')}", node)

    # ---------- comparison ----------
    def _comparison(self, node: exp.Expr, frame: Frame) -> Typed:
        sign = COMPARISONS[type(node)]
        left, right = node.this, node.args["expression"]
        if isinstance(right, exp.Any | exp.All):
            return self._quantified(sign, "ANY" if isinstance(right, exp.Any) else "ALL", left, right.this, frame)
        if isinstance(right, exp.Anonymous) and function_name(right) in ("all", "some") and len(right.expressions) == 1:
            word = "ALL" if function_name(right) == "all" else "ANY"
            return self._quantified(sign, word, left, right.expressions[0], frame)
        if isinstance(left.unnest(), exp.Tuple) and isinstance(right.unnest(), exp.Tuple):
            return self._rows(sign, left.unnest(), right.unnest(), frame)
        return self.compare(sign, self.value(left, frame), self.value(right, frame), node)

    def compare(self, sign: str, one: Typed, two: Typed, node: exp.Expr | None = None) -> Typed:
        if {one.kind.name, two.kind.name} == {"date", "timestamp"}:
            return _day_and_moment(sign, one, two)
        if one.kind.name == two.kind.name in RAW and one.exact is not None and two.exact is not None:
            return Typed(f"({one.exact} {sign} {two.exact})", BOOL)
        one, two = self._alike(sign, one, two, node)
        name = one.kind.name
        shown = _SHOWN.get(sign, sign)
        if name == "json" or name == "record":
            raise no_operator(shown, (one.kind, two.kind), node)
        if name == "jsonb":
            if sign in ("<", "<=", ">", ">="):
                raise not_supported(f"{sign} of jsonb", node)
            one, two = (Typed(self.sort_key(each, node, equality=True), kind("bytea")) for each in (one, two))
        if name == "numeric" and not (one.kind.fixed and two.kind.fixed):
            one_key, two_key = (f"kalam_n_key({numeric_text(each).sql})" for each in (one, two))
            return Typed(f"({one_key} {sign} {two_key})", BOOL)
        if name in KEPT:
            one, two = self._kept_keys(sign, one, two, node)
        if one.kind.is_array:
            raise not_supported("comparing arrays", node)
        return Typed(f"({one.sql} {sign} {two.sql})", BOOL)

    def _kept_keys(self, sign: str, one: Typed, two: Typed, node: exp.Expr | None) -> tuple[Typed, Typed]:
        equality = _SHOWN.get(sign, sign) in ("=", "<>")
        left, right = (self.sort_key(each, node, equality=equality) for each in (one, two))
        return Typed(left, kind("bytea")), Typed(right, kind("bytea"))

    def _alike(self, sign: str, one: Typed, two: Typed, node: exp.Expr | None) -> tuple[Typed, Typed]:
        """Both sides in the type in which PostgreSQL compares them."""
        if one.unknown and two.unknown:
            return settled(one, self.params), settled(two, self.params)
        if one.unknown or two.unknown:
            target = plain(two.kind if one.unknown else one.kind)
            target = TEXT if target.name == "varchar" else kind(target.name)
            one = settle(one, target, self.params) if one.unknown else one
            two = settle(two, target, self.params) if two.unknown else two
        names = {one.kind.name, two.kind.name}
        if len(names) == 1:
            return self._same_digits(one, two)
        if names <= NUMBERS:
            return self._numbers(one, two)
        if names <= STRINGS:
            return one, two
        if names <= {*STRINGS, "bpchar"}:
            return to_text(one), to_text(two)
        if names == {"interval", STORED_INTERVAL}:
            return self.cast(one, kind(STORED_INTERVAL)), self.cast(two, kind(STORED_INTERVAL))
        if names == {"inet", "cidr"}:
            return self.cast(one, kind("inet")), self.cast(two, kind("inet"))
        if names <= MOMENTS:
            target = TIMESTAMPTZ if "timestamptz" in names else TIMESTAMP
            return self.cast(one, target), self.cast(two, target)
        raise no_operator(_SHOWN.get(sign, sign), (one.kind, two.kind), node)

    def _numbers(self, one: Typed, two: Typed) -> tuple[Typed, Typed]:
        names = {one.kind.name, two.kind.name}
        if names & {"float4", "float8"}:
            return self.cast(one, FLOAT8), self.cast(two, FLOAT8)
        if "numeric" in names:
            return self._same_digits(self.cast(one, NUMERIC), self.cast(two, NUMERIC))
        return one, two

    def _same_digits(self, one: Typed, two: Typed) -> tuple[Typed, Typed]:
        """Two DECIMALs that fit into one, or both as text."""
        if one.kind.name != "numeric" or not (one.kind.fixed and two.kind.fixed):
            return one, two
        assert one.kind.scale is not None
        assert two.kind.scale is not None
        whole = max(one.kind.precision - one.kind.scale, two.kind.precision - two.kind.scale)
        if whole + max(one.kind.scale, two.kind.scale) <= 38:
            return one, two
        return numeric_text(one), numeric_text(two)

    def _rows(self, sign: str, left: exp.Expr, right: exp.Expr, frame: Frame) -> Typed:
        """Row by row: equal in all places, or by the first that differs."""
        ones = [self.value(item, frame) for item in left.expressions]
        twos = [self.value(item, frame) for item in right.expressions]
        if len(ones) != len(twos):
            raise KalamError("42601", "unequal number of entries in row expressions", position=place_of(right))
        if sign in ("=", "IS NOT DISTINCT FROM", "<>", "IS DISTINCT FROM"):
            word = " AND " if sign in ("=", "IS NOT DISTINCT FROM") else " OR "
            pairs = zip(ones, twos, strict=True)
            return Typed("(" + word.join(self.compare(sign, one, two).sql for one, two in pairs) + ")", BOOL)
        strict = sign[0]
        sql = self.compare(sign, ones[-1], twos[-1]).sql
        for one, two in zip(reversed(ones[:-1]), reversed(twos[:-1]), strict=True):
            sql = f"({self.compare(strict, one, two).sql} OR ({self.compare('=', one, two).sql} AND {sql}))"
        return Typed(sql, BOOL)

    def _between(self, node: exp.Expr, frame: Frame) -> Typed:
        item = self.value(node.this, frame)
        low, high = (self.value(node.args[part], frame) for part in ("low", "high"))

        def within(one: Typed, two: Typed) -> str:
            return f"({self.compare('>=', item, one, node).sql} AND {self.compare('<=', item, two, node).sql})"

        if node.args.get("symmetric"):
            return Typed(f"({within(low, high)} OR {within(high, low)})", BOOL)
        return Typed(within(low, high), BOOL)

    def _in(self, node: exp.Expr, frame: Frame) -> Typed:
        query = node.args.get("query")
        if query is not None:
            return self._in_query(node.this, "=", "ANY", query, frame)
        if node.args.get("unnest") is not None or node.args.get("field") is not None:
            raise not_supported("this form of IN", node)
        left = node.this.unnest()
        assert isinstance(node, exp.In)
        elements = self.params.elements(node)
        if elements:
            return self._in_arrays(self.known(left, frame), node, elements)
        if isinstance(left, exp.Tuple):
            parts = [self._rows("=", left, part.unnest(), frame).sql for part in node.expressions]
            return Typed("(" + " OR ".join(parts) + ")", BOOL)
        return self._any_of("=", self.value(left, frame), [self.value(part, frame) for part in node.expressions], node)

    def _in_arrays(self, item: Typed, node: exp.In, elements: Sequence[types.PgType]) -> Typed:
        """IN array parameters: an empty one has no value, a NULL one has NULL."""
        parts = []
        for part, element in zip(node.expressions, elements, strict=True):
            index = parameter_index(part)
            self._alike("=", item, null(of_column(element, -1)), node)
            form, sql = "a", item.sql
            if item.kind.name == "numeric":
                form, sql = "k", f"kalam_n_key({numeric_text(item).sql})"
            elif item.kind.name in RAW and item.exact is not None:
                form, sql = "r", item.exact
            elif element.name in _KEPT_NAMES and (EQUALITIES[item.kind.name] != "$1" or item.kind.name != element.name):
                form, sql = "k", f"kalam_key_{element.name}({item.sql})"
            if _element_name(item.kind) != element.name and not (
                    {item.kind.name, element.name} <= INTEGERS | STRINGS or
                    {item.kind.name, element.name} == {"inet", "cidr"}):
                raise not_supported(f"IN an array of {element.display}", node)
            parts.append(f"(CASE WHEN \0e{index}\0 THEN FALSE ELSE {sql} IN (\0{form}{index}\0) END)")
        return Typed(f"({' OR '.join(parts)})", BOOL)

    def _each_element(self, node: exp.Expr, frame: Frame) -> Typed:
        """kalam_any($1, condition), kalam_all: the condition with each element of the array for $1."""
        assert isinstance(node, exp.Anonymous)
        array = node.expressions[0] if len(node.expressions) == 2 else None
        index = parameter_index(array) if isinstance(array, exp.Parameter) else -1
        element = types.element_of(self.params.type(index)) if index >= 0 else None
        if element is None:
            raise not_supported(f"{function_name(node)} of this", node)
        before = self._each.get(index)
        self._each[index] = Typed(f"\0v{index}\0", of_column(element, -1), True)
        sql = self.condition(node.expressions[1], frame, "ANY")
        del self._each[index]
        if before is not None or "\0o" in sql:
            raise not_supported("ANY and ALL inside each other", node)
        begin = "o" if function_name(node) == "kalam_any" else "w"
        return Typed(f"(\0{begin}{index}\0{sql}\0x{index}\0)", BOOL)

    def _any_of(self, sign: str, item: Typed, values: list[Typed], node: exp.Expr, word: str = " OR ") -> Typed:
        known = [each for each in values if not each.unknown]
        if known and len({category(each.kind.name) for each in [item, *known]}) == 1:
            target = common([item.kind, *(each.kind for each in known)], "IN")
            if target.name != "numeric":
                values = [self.cast(each, target) for each in values]
                item = self.cast(item, target)
        return Typed("(" + word.join(self.compare(sign, item, each, node).sql for each in values) + ")", BOOL)

    def _quantified(self, sign: str, word: str, left: exp.Expr, right: exp.Expr, frame: Frame) -> Typed:
        inner = right.unnest()
        if isinstance(inner, exp.Query):
            return self._in_query(left, sign, word, inner, frame)
        if isinstance(inner, exp.Array):
            values = [self.value(item, frame) for item in inner.expressions]
            if values:
                return self._any_of(sign, self.value(left, frame), values, right, " OR " if word == "ANY" else " AND ")
        raise not_supported(f"{sign} {word} of this array", right, "Write the array as ARRAY[…], or use IN.")

    def _in_query(self, left: exp.Expr, sign: str, word: str, query: exp.Expr, frame: Frame) -> Typed:
        inner = query.unnest() if isinstance(query, exp.Subquery) else query
        sql, kinds = self.names.subquery(inner, frame)
        if isinstance(left.unnest(), exp.Tuple):
            raise not_supported("a row before a subquery", left)
        if len(kinds) != 1:
            raise KalamError("42601", "subquery has too many columns", position=place_of(left))
        item = self.value(left, frame)
        one, two = self._alike(sign, item, Typed("q.o1", kinds[0]), left)
        if one.kind.name == "json" or (one.kind.name == "jsonb" and sign not in ("=", "<>")):
            raise not_supported(f"{sign} {word} of {one.kind.display}", left)
        if one.kind.name == "jsonb":
            one, two = (Typed(self.sort_key(each, left, equality=True), kind("bytea")) for each in (one, two))
        if one.kind.name in KEPT:
            one, two = self._kept_keys(sign, one, two, left)
        if one.kind.name == "numeric" and not (one.kind.fixed and two.kind.fixed):
            one, two = (Typed(f"kalam_n_key({numeric_text(each).sql})", kind("bytea")) for each in (one, two))
        return Typed(f"({one.sql} {sign} {word}(SELECT {two.sql} FROM ({sql}) q))", BOOL)

    # ---------- patterns ----------
    def _like(self, node: exp.Expr, frame: Frame, escape: str | None = "\\") -> Typed:
        one, two = (self._as_text(part, frame, "~~") for part in (node.this, node.args["expression"]))
        if isinstance(node, exp.ILike):
            one, two = (self._call("lower", [each]) for each in (one, two))
        quoted = f" ESCAPE '{escape}'" if escape else ""
        sql = f"({one.sql} LIKE {two.sql}{quoted})"
        if escape == "\\":
            sql = _filled(_LIKE, [one, two]) if two.simple else expand(_LIKE, [one, two])
        word = "NOT " if node.args.get("negate") else ""
        return Typed(f"({word}{sql})", BOOL)

    def _escape(self, node: exp.Expr, frame: Frame) -> Typed:
        escape = node.args["expression"]
        if not isinstance(escape, exp.Literal) or not escape.is_string or "'" in escape.this:
            raise not_supported("ESCAPE with something else than a character", node)
        if len(escape.this) > 1:
            raise KalamError("22025", "invalid escape string", hint="Escape string must be empty or one character.")
        return self._like(node.this, frame, escape.this or None)

    def _as_text(self, node: exp.Expr, frame: Frame, operator: str) -> Typed:
        typed = self.known(node, frame)
        if typed.kind.name not in STRINGS:
            raise no_operator(operator, (typed.kind, TEXT), node)
        return typed

    def _regexp(self, node: exp.Expr, frame: Frame) -> Typed:
        pattern = node.args["expression"]
        insensitive = isinstance(node, exp.RegexpILike)
        made = patterns.translated(pattern.this, fold=insensitive) if (
            isinstance(pattern, exp.Literal) and pattern.is_string) else None
        if made is None or re.search(r"\\[dwsDWS]", pattern.this) or (insensitive and not pattern.this.isascii()):
            raise not_supported("this regular expression", node, "Constant patterns of ordinary characters, lists "
                                "and the operators . * + ? | { } ( ) ^ $ are.")
        one = self._as_text(node.this, frame, "~").sql
        return Typed(f"regexp_matches({one}, {literal(types.TEXT, made)}, 's')", BOOL)

    # ---------- operators and functions ----------
    def _binary(self, node: exp.Expr, frame: Frame) -> Typed:
        sides = [self.value(node.this, frame), self.value(node.args["expression"], frame)]
        return self.operator(_BINARY[type(node)], sides, node)

    def operator(self, name: str, args: list[Typed], node: exp.Expr) -> Typed:
        if name in ("+", "-", "*", "%") and (made := self._fixed(name, args)) is not None:
            return made
        if name == "||":
            args = self._concatenated(args, node)
        elif len(args) == 2 and args[0].unknown is not args[1].unknown and name in "+-*/%":
            args = self._like_the_other(name, args)
        found = functions.resolve(functions.BY_NAME.get(name, []), [each.kind.name for each in args])
        if found is None:
            raise no_operator(name, [each.kind for each in args], node)
        if name in "/%" and (divisor := _small_integer(args[1])) not in (None, 0, -1):
            return self._apply(replace(found, template=f"($1 {'//' if name == '/' else name} $2)"), args, node) if (
                args[0].kind.name in INTEGERS and divisor) else self._apply(found, args, node)
        return self._apply(found, args, node)

    def _like_the_other(self, name: str, args: list[Typed]) -> list[Typed]:
        """An unknown side takes the other's type where such an operator exists."""
        other = next(each.kind for each in args if not each.unknown)
        same = any(each.args == (other.name, other.name) for each in functions.BY_NAME.get(name, []))
        return [settle(each, kind(other.name), self.params) if each.unknown and same else each for each in args]

    def _concatenated(self, args: list[Typed], node: exp.Expr) -> list[Typed]:
        names = {each.kind.name for each in args if not each.unknown}
        if names & STRINGS or not names or (any(each.unknown for each in args) and not names & {"bytea", "jsonb"}):
            if any(each.kind.is_array for each in args):
                raise not_supported("|| of arrays", node)
            return [to_text(settled(each, self.params)) for each in args]
        return args

    def _fixed(self, name: str, args: list[Typed]) -> Typed | None:
        """Arithmetic of DECIMALs whose result has room; None: not that."""
        if not any(each.kind.fixed for each in args) or len(args) != 2:
            if len(args) == 1 and args[0].kind.fixed and name in "+-":
                return Typed(f"({name}{args[0].sql})", plain(args[0].kind))
            return None
        if not all(each.kind.fixed or each.kind.name in ("int2", "int4", "int8") for each in args):
            return None
        one, two = (self.cast(each, NUMERIC) for each in args)
        left, right = one.kind, two.kind
        assert left.scale is not None
        assert right.scale is not None
        scale = max(left.scale, right.scale)
        whole = max(left.precision - left.scale, right.precision - right.scale)
        if name == "*":
            made = decimal(left.precision + right.precision, left.scale + right.scale)
        else:
            made = decimal(whole + scale + (name != "%"), scale)
        if not made.fixed:
            return None
        sql = f"(CAST({one.sql} AS {made.duck}) {name} {two.sql})" if name == "*" else \
            f"(CAST({one.sql} AS {made.duck}) {name} CAST({two.sql} AS {made.duck}))"
        if name == "%":
            zero = failure("22012", "division by zero")
            sql = f"CASE WHEN {two.sql} = 0 AND {one.sql} IS NOT NULL THEN {zero} ELSE {sql} END"
        elif name == "*":
            sql = f"CAST(({one.sql} * {two.sql}) AS {made.duck})"
        return Typed(sql, made)

    def _apply(self, found: Signature, args: list[Typed], node: exp.Expr, wrap: Callable[[str], str] | None = None,
               frame: Frame | None = None) -> Typed:
        if not found.supported:
            shown = ", ".join(each.kind.display for each in args)
            hint = "Cast the argument to double precision." if "numeric" in found.args else None
            raise not_supported(f"{found.name}({shown})", node, hint)
        made = []
        for each, wanted in zip(args, found.args, strict=True):
            if wanted == "any":
                made.append(settled(each, self.params))
            elif wanted == "numeric":
                made.append(numeric_text(self.cast(each, NUMERIC)))
            else:
                made.append(self.cast(each, kind(wanted)))
        result = found.result.replace("$1", plain(made[0].kind).name) if "$1" in found.result else found.result
        of = plain(made[0].kind) if found.result == "$1" else kind(result)
        return Typed(expand(found.template, made, wrap), of)

    def _call(self, name: str, args: list[Typed]) -> Typed:
        found = functions.resolve(functions.BY_NAME[name], [each.kind.name for each in args])
        assert found is not None
        return self._apply(found, args, exp.Null())

    def _function(self, node: exp.Expr, frame: Frame) -> Typed:
        assert isinstance(node, exp.Anonymous)
        name = function_name(node)
        special = _SPECIAL.get(name)
        if special is not None:
            return special(self, node, frame)
        if name in FACTS and not node.expressions:
            return _fact(*FACTS[name])
        if name in AGGREGATES or name in WINDOWS:
            return self._aggregate(node, frame, None, None)
        return self.call(name, [self.value(item, frame) for item in node.expressions], node)

    def call(self, name: str, args: list[Typed], node: exp.Expr) -> Typed:
        if (made := self._fixed_function(name, args)) is not None:
            return made
        found = functions.resolve(functions.BY_NAME.get(name, []), [each.kind.name for each in args])
        if found is None:
            raise no_function(name, args, node)
        return self._apply(found, args, node)

    def _fixed_function(self, name: str, args: list[Typed]) -> Typed | None:
        """abs, round and the like of DECIMALs."""
        if not args or not args[0].kind.fixed:
            return None
        first = args[0]
        precision, scale = first.kind.precision, first.kind.scale or 0
        if name == "abs":
            return Typed(f"abs({first.sql})", plain(first.kind))
        if name in ("ceil", "ceiling", "floor") and len(args) == 1:
            made = decimal(precision - scale + 1, 0)
            word = "floor" if name == "floor" else "ceil"
            return Typed(f"CAST({word}({first.sql}) AS {made.duck})", made) if made.fixed else None
        if name == "mod" and len(args) == 2:
            return self._fixed("%", args)
        digits = 0 if len(args) == 1 else _small_integer(args[1])
        if name in ("round", "trunc") and digits is not None and 0 <= digits <= scale:
            made = decimal(precision - scale + digits + 1, digits)
            word = "round" if name == "round" else "trunc"
            if made.fixed and (word == "round" or digits == 0):
                inner = f"round({first.sql}, {digits})" if word == "round" else f"trunc({first.sql})"
                return Typed(f"CAST({inner} AS {made.duck})", made)
        return None

    # ---------- aggregates and windows ----------
    def _grouping(self, node: exp.Expr, frame: Frame) -> Typed:
        """Bits, of the last argument the lowest: is it not among what this row's set is grouped by?"""
        assert isinstance(node, exp.Anonymous)
        if frame.inside == "aggregate" or not frame.aggregates:
            raise KalamError("42803", f"grouping operations are not allowed in {frame.inside or frame.clause}",
                             position=place_of(node))
        keys = [frame.marks.get(self.value(item.unnest(), frame).sql) for item in node.expressions]
        known = [key for key in keys if key is not None]
        if len(known) < len(keys):
            raise KalamError("42803", "arguments to GROUPING must be grouping expressions of the associated query "
                                      "level", position=place_of(node))
        if not 1 <= len(known) < 32:
            raise KalamError("54023", "GROUPING must have fewer than 32 arguments", position=place_of(node))
        return Typed(f"CAST(grouping({', '.join(known)}) AS INTEGER)", kind("int4"))

    def _aggregate(self, node: exp.Anonymous, frame: Frame, where: exp.Expr | None, over: exp.Window | None) -> Typed:
        name = function_name(node)
        self._check_place(name, node, frame, over)
        before, frame.inside = frame.inside, "aggregate" if over is None else "window"
        try:
            condition = "" if where is None else self.condition(where, frame, "FILTER")
            args, suffix = self._arguments(node, frame, condition)
        finally:
            frame.inside = before
        filtered = f" FILTER (WHERE {condition})" if condition else ""
        window = "" if over is None else f" OVER ({self._over(over, frame)})"

        distinct, order = suffix
        if name not in ("array_agg", "string_agg"):
            order = ""  # changes nothing, and beside DISTINCT the query engine takes it only of what it adds up

        def wrap(call: str) -> str:
            head, _, rest = call.partition("(")
            return f"{head}({'DISTINCT ' if distinct else ''}{rest[:-1]}{order}){filtered}{window}"

        if name == "count" and args is None:
            return Typed(f"count(*){filtered}{window}", INT8)
        assert args is not None
        if distinct and name in ("array_agg", "string_agg") and _VOLATILE.search(args[0].sql):
            return self._distinct_list(name, [settled(each, self.params) for each in args], order, condition, node)
        if name in ("lag", "lead") and len(args) == 3:  # of one type, the value and what stands for it
            (args[0], args[2]), _ = self.united([args[0], args[2]], name)
        if (made := self._fixed_aggregate(name, args, wrap)) is not None:
            return made
        found = functions.resolve(functions.BY_NAME[name], [each.kind.name for each in args])
        if found is None:
            raise no_function(name, args, node)
        if distinct and not order and name in ("array_agg", "string_agg"):  # PostgreSQL sorts to find what is distinct
            order = f" ORDER BY {self.sort_key(settled(args[0], self.params))} ASC NULLS LAST"
        if distinct and found.args == ("numeric",):
            made = self._distinct_numbers(name, args[0], filtered + window)
            if made is not None:
                return made
        if name == "count" and distinct and (
                args[0].kind.name in ("numeric", "json", "jsonb") or args[0].kind.name in KEPT):
            args = [Typed(self.sort_key(args[0], node, equality=True), kind("bytea"))]
        return self._apply(found, args, node, wrap)

    def _distinct_list(self, name: str, args: Sequence[Typed], order: str, condition: str, node: exp.Expr) -> Typed:
        """What is sorted by what it lists, where the query engine does not see that these are the same."""
        order = order or " ASC NULLS LAST"
        separator = args[1].sql if len(args) > 1 else ""
        if order.count(" NULLS ") > 1 or re.search(r"\bt\d+\.", separator) or args[0].kind.name == "numeric":
            raise not_supported(f"this order of {name}(DISTINCT …)", node)
        way, nulls = re.findall(r" (ASC|DESC) (NULLS \w+)$", order)[0]
        conditions = [condition] if condition else []
        if name == "string_agg":
            conditions.append(f"{args[0].sql} IS NOT NULL")
        known = f" FILTER (WHERE {' AND '.join(conditions)})" if conditions else ""
        listed = f"list_sort(list(DISTINCT {args[0].sql}){known}, '{way}', '{nulls}')"
        if name == "string_agg":
            return Typed(f"array_to_string({listed}, coalesce({separator}, ''))", TEXT)
        return Typed(listed, kind(f"{args[0].kind.name}[]"))

    def _distinct_numbers(self, name: str, arg: Typed, suffix: str) -> Typed | None:
        """sum and avg of numbers that are different, not only written differently."""
        numbers = f"kalam_n_distinct(list({numeric_text(self.cast(arg, NUMERIC)).sql}){suffix})"
        if name == "sum":
            return Typed(f"kalam_n_sum({numbers})", NUMERIC)
        if name == "avg":
            count = f"CAST(nullif(len({numbers}), 0) AS VARCHAR)"
            return Typed(f"kalam_n_div(kalam_n_sum({numbers}), {count})", NUMERIC)
        if name.startswith(("stddev", "var")):
            work = {"stddev": "stddev_samp", "variance": "var_samp"}.get(name, name)
            return Typed(f"kalam_n_{work}({numbers})", NUMERIC)
        return None

    def _check_place(self, name: str, node: exp.Expr, frame: Frame, over: exp.Window | None) -> None:
        position = place_of(node)
        if over is None and name in WINDOWS:
            raise KalamError("42809", f"window function {name} requires an OVER clause", position=position)
        if over is not None and not frame.windows:
            raise KalamError("42P20", f"window functions are not allowed in {frame.clause}", position=position)
        if frame.inside is not None:
            if frame.inside == "window" and over is not None:
                raise KalamError("42P20", "window function calls cannot be nested", position=position)
            if frame.inside == "aggregate":
                raise KalamError("42803", "aggregate function calls cannot be nested" if over is None else
                                 "aggregate function calls cannot contain window function calls", position=position)
        if over is None and not frame.aggregates:
            raise KalamError("42803", f"aggregate functions are not allowed in {frame.clause}", position=position)

    def _arguments(self, node: exp.Anonymous, frame: Frame, condition: str
                   ) -> tuple[list[Typed] | None, tuple[bool, str]]:
        """Arguments (None: a star), whether DISTINCT stands before them, and their ORDER BY; of rows that satisfy the
        condition of FILTER, which the query engine looks at later."""

        def within(sql: str) -> str:
            return f"CASE WHEN {condition} THEN {sql} END" if condition and may_fail(sql) else sql

        items, order, distinct = list(node.expressions), "", False
        if len(items) == 1 and isinstance(items[0], exp.Star):
            if function_name(node) != "count":
                raise KalamError("42809", f"{function_name(node)}(*) specified, but {function_name(node)} is not an "
                                          "aggregate function that takes it", position=place_of(node))
            return None, (False, "")
        if items and isinstance(items[-1], exp.Order):
            last = items.pop()
            parts = [within(self.sort_key(self.value(each.this, frame), each.this)) + direction(each)
                     for each in last.expressions]
            order = " ORDER BY " + ", ".join(parts)
            items.append(last.this)
        if items and isinstance(items[0], exp.Distinct):
            distinct = True
            items = [*items[0].expressions, *items[1:]]
        values = [self.value(item, frame) for item in items]
        if condition:
            values = [each if each.unknown or each.simple or not may_fail(each.sql) else
                      Typed(within(each.sql), each.kind, exact=each.exact and within(each.exact)) for each in values]
        return values, (distinct, order)

    def _ordered(self, node: exp.Expr, frame: Frame) -> str:
        key = self.sort_key(self.value(node.this, frame), node.this)
        return key + direction(node)

    def _fixed_aggregate(self, name: str, args: list[Typed], wrap: Callable[[str], str]) -> Typed | None:
        if not args or not args[0].kind.fixed:
            return None
        first = args[0]
        scale = first.kind.scale or 0
        if name in ("min", "max"):
            return Typed(wrap(f"{name}({first.sql})"), plain(first.kind))
        if name == "sum":
            made = decimal(38, scale)
            return Typed(wrap(f"sum({first.sql})"), made)
        if name == "avg":
            total = f"CAST({wrap(f'sum({first.sql})')} AS VARCHAR)"
            count = f"CAST(nullif({wrap(f'count({first.sql})')}, 0) AS VARCHAR)"
            return Typed(f"kalam_n_div({total}, {count})", NUMERIC)
        return None

    def _filter(self, node: exp.Expr, frame: Frame) -> Typed:
        inner = node.this
        if not isinstance(inner, exp.Anonymous) or function_name(inner) not in AGGREGATES:
            raise KalamError("42809", "FILTER specified, but this is not an aggregate function",
                             position=place_of(inner))
        return self._aggregate(inner, frame, node.args["expression"].this, None)

    def _window(self, node: exp.Expr, frame: Frame) -> Typed:
        assert isinstance(node, exp.Window)
        inner, where = node.this, None
        if isinstance(inner, exp.Filter):
            inner, where = inner.this, inner.expression.this
        if not isinstance(inner, exp.Anonymous) or function_name(inner) not in AGGREGATES | WINDOWS:
            raise KalamError("42809", "OVER specified, but this is neither a window function nor an aggregate function",
                             position=place_of(inner))
        return self._aggregate(inner, frame, where, node)

    def _over(self, node: exp.Window, frame: Frame) -> str:
        alias = node.args.get("alias")
        if alias is not None:
            named = frame.named_windows.get(identifier(alias))
            if named is None:
                raise KalamError("42704", f'window "{identifier(alias)}" does not exist', position=place_of(node))
            if node.args.get("partition_by") or node.args.get("order") or node.args.get("spec"):
                raise not_supported("a window that refines another", node)
            node = named
        parts = []
        if node.args.get("partition_by"):
            keys = [self.sort_key(self.value(item, frame), item, equality=True) for item in node.args["partition_by"]]
            if any("error(" in key or "random()" in key or "uuid()" in key for key in keys):
                raise not_supported("PARTITION BY an expression that may fail", node, "Compute it in a subquery.")
            parts.append("PARTITION BY " + ", ".join(keys))
        order = node.args.get("order")
        if order is not None:
            parts.append("ORDER BY " + ", ".join(self._ordered(item, frame) for item in order.expressions))
        spec = node.args.get("spec")
        if spec is not None:
            parts.append(self._frame_clause(spec))
        return " ".join(parts)

    def _frame_clause(self, spec: exp.Expr) -> str:
        def edge(side: str) -> str:
            value, word = spec.args.get(side), str(spec.args.get(f"{side}_side") or "").upper()
            if value in (None, ""):
                return "CURRENT ROW"
            if isinstance(value, str):
                return f"{value.upper()} {word}".strip()
            if not isinstance(value, exp.Literal) or value.is_string or not value.this.isdecimal():
                raise not_supported("this frame of a window", spec)
            if str(spec.args.get("kind")).upper() != "ROWS":
                raise not_supported("RANGE with an offset", spec)
            return f"{value.this} {word}"

        mode = str(spec.args.get("kind") or "RANGE").upper()
        if mode == "GROUPS" or spec.args.get("exclude"):
            raise not_supported(f"{mode} in the frame of a window", spec)
        if spec.args.get("end") is None:
            return f"{mode} {edge('start')}"
        return f"{mode} BETWEEN {edge('start')} AND {edge('end')}"

    # ---------- subqueries ----------
    def _scalar(self, node: exp.Expr, frame: Frame) -> Typed:
        inner = node.this if isinstance(node, exp.Subquery) else node
        sql, kinds = self.names.subquery(inner, frame)
        if len(kinds) != 1:
            raise KalamError("42601", "subquery must return only one column", position=place_of(inner))
        return Typed(f"({sql})", kinds[0])

    def _exists(self, node: exp.Expr, frame: Frame) -> Typed:
        sql, _ = self.names.subquery(node.this, frame)
        return Typed(f"EXISTS ({sql})", BOOL)

    # ---------- branches ----------
    def united(self, parts: list[Typed], what: str) -> tuple[list[Typed], Kind]:
        target = common([each.kind for each in parts], what)
        made = [settle(each, kind(target.name), self.params) if each.unknown else each for each in parts]
        if target.name != "numeric":
            return [self.cast(each, target) for each in made], target
        numerics = [self.cast(each, NUMERIC) for each in made]
        scales = {each.kind.scale for each in numerics if each.sql[:9] != "CAST(NULL"}
        if len(scales) == 1 and None not in scales:
            fixed = decimal(max(as_numeric(each.kind).precision for each in numerics), scales.pop() or 0)
            return [each if each.kind.fixed else null(fixed) for each in numerics], fixed
        return [numeric_text(each) for each in numerics], NUMERIC

    def _case(self, node: exp.Expr, frame: Frame) -> Typed:
        subject = node.this
        tests = []
        for branch in node.args["ifs"]:
            if subject is None:
                tests.append(self.condition(branch.this, frame, "CASE/WHEN"))
            else:
                tests.append(self.compare("=", self.value(subject, frame), self.value(branch.this, frame), node).sql)
        values = [self.value(branch.args["true"], frame) for branch in node.args["ifs"]]
        default = node.args.get("default")
        values.append(Typed("NULL", UNKNOWN, True) if default is None else self.value(default, frame))
        made, of = self.united(values, "CASE")
        whens = "".join(f" WHEN {test} THEN {value.sql}" for test, value in zip(tests, made, strict=False))
        return Typed(f"CASE{whens} ELSE {made[-1].sql} END", of)

    def _coalesce(self, node: exp.Expr, frame: Frame) -> Typed:
        made, of = self.united([self.value(item, frame) for item in node.expressions], "COALESCE")
        return Typed(f"coalesce({', '.join(each.sql for each in made)})", of)

    def _extreme(self, node: exp.Expr, frame: Frame) -> Typed:
        assert isinstance(node, exp.Anonymous)
        name = function_name(node)
        made, of = self.united([self.value(item, frame) for item in node.expressions], name.upper())
        if of.name == "numeric" and not of.fixed:
            sign, word = (-1, "list_max") if name == "greatest" else (1, "list_min")  # of equal ones the first
            pairs = ", ".join(f"{{'k': kalam_n_key({each.sql}), 'i': {sign * place}, 'v': {each.sql}}}"
                              for place, each in enumerate(made))
            return Typed(f"struct_extract({word}(list_filter([{pairs}], lambda s: s.v IS NOT NULL)), 'v')", of)
        if of.name in JSONS or of.is_array or of.name in KEPT:
            raise not_supported(f"{name} of {of.display}", node)
        if of.name == "float4":  # the query engine's of FLOAT turns -0 into 0
            return Typed(f"CAST({name}({', '.join(f'CAST({each.sql} AS DOUBLE)' for each in made)}) AS FLOAT)", of)
        return Typed(f"{name}({', '.join(each.sql for each in made)})", of)

    def _nullif(self, node: exp.Expr, frame: Frame) -> Typed:
        if len(node.expressions) != 2:
            raise KalamError("42601", "NULLIF takes two arguments", position=place_of(node))
        one, two = (self.value(item, frame) for item in node.expressions)
        test = self.compare("=", one, two, node)
        one = settle(one, kind(two.kind.name), self.params) if one.unknown and not two.unknown else \
            settled(one, self.params)
        if one.kind.name in INTEGERS and two.kind.name in NUMBERS - INTEGERS:
            one = self._numbers(one, two)[0]
        return Typed(f"CASE WHEN {test.sql} THEN NULL ELSE {one.sql} END", plain(one.kind))

    # ---------- casts ----------
    def _cast(self, node: exp.Expr, frame: Frame) -> Typed:
        target = declared(node.args["to"])
        inner = self.value(node.this, frame)
        if inner.param is not None and target.typmod != -1:
            inner = settle(inner, kind(target.name), self.params)
        try:
            return self.cast(inner, target, explicit=True)
        except KalamError as error:
            error.position = error.position or place_of(node.this)
            raise

    def _interval(self, node: exp.Expr, frame: Frame) -> Typed:
        from kalamdb.sql.casts import interval_constant

        unit = node.args.get("unit")
        if not isinstance(node.this, exp.Literal) or isinstance(unit, exp.IntervalSpan):
            raise not_supported("this form of INTERVAL", node)
        return interval_constant(f"{node.this.this} {unit.name}" if unit is not None else node.this.this)

    def _json_literal(self, node: exp.Expr, frame: Frame) -> Typed:
        return constant(kind("json"), types.by_name("json").read(node.this.this))

    def _array(self, node: exp.Expr, frame: Frame) -> Typed:
        made, of = self.united([self.value(item, frame) for item in node.expressions], "ARRAY")
        if of.is_array:
            raise not_supported("an array of arrays", node)
        return Typed(f"CAST([{', '.join(each.sql for each in made)}] AS {of.duck}[])", kind(of.name + "[]"))

    def _array_query(self, node: exp.Expr, frame: Frame) -> Typed:
        raise not_supported("ARRAY(subquery)", node, "array_agg is.")

    def _zone(self, node: exp.Expr, frame: Frame) -> Typed:
        inner, zone = self.known(node.this, frame), node.args["zone"]
        if not isinstance(zone, exp.Literal) or zone.this.upper() not in ("UTC", "GMT", "Z") or (
                inner.kind.name not in ("timestamp", "timestamptz")):
            raise not_supported("AT TIME ZONE with another zone than UTC", node)
        return self.cast(inner, TIMESTAMP if inner.kind.name == "timestamptz" else TIMESTAMPTZ)

    def _json_arrow(self, node: exp.Expr, frame: Frame) -> Typed:
        path = node.args["expression"]
        if isinstance(path, exp.JSONPath):
            part = path.expressions[-1]
            if len(path.expressions) != 2 or not isinstance(part, exp.JSONPathKey | exp.JSONPathSubscript):
                raise not_supported("this path into json", node)
            key = constant(TEXT, part.this) if isinstance(part, exp.JSONPathKey) else number(str(part.this))
        else:
            key = self.value(path, frame)
        name = "->>" if isinstance(node, exp.JSONExtractScalar) else "->"
        one = self.value(node.this, frame)
        if one.kind.name not in JSONS:
            raise no_operator(name, (one.kind, key.kind), node)
        return self.operator(name, [one, key], node)

    def _current_date(self, node: exp.Expr, frame: Frame) -> Typed:
        return self.cast(_fact("now", "timestamptz"), kind("date"))

    def _local_time(self, node: exp.Expr, frame: Frame) -> Typed:
        return self.cast(_fact("now", "timestamptz"), TIMESTAMP)

    # ---------- functions with a grammar or rules of their own ----------
    def _substring(self, node: exp.Expr, frame: Frame) -> Typed:
        parts = [node.this, node.args.get("start"), node.args.get("length")]
        return self.call("substring", [self.value(part, frame) for part in parts if part is not None], node)

    def _position(self, node: exp.Expr, frame: Frame) -> Typed:
        return self.call("position", [self.value(node.this, frame), self.value(node.args["substr"], frame)], node)

    def _trim(self, node: exp.Expr, frame: Frame) -> Typed:
        name = {"LEADING": "ltrim", "TRAILING": "rtrim"}.get(str(node.args.get("position") or "").upper(), "btrim")
        parts = [node.this, node.args.get("expression")]
        return self.call(name, [self.value(part, frame) for part in parts if part is not None], node)

    def _overlay(self, node: exp.Expr, frame: Frame) -> Typed:
        parts = [node.this, node.args["expression"], node.args["from_"], node.args.get("for_")]
        return self.call("overlay", [self.value(part, frame) for part in parts if part is not None], node)

    def _extract(self, node: exp.Expr, frame: Frame) -> Typed:
        return self._field(node.name, self.value(node.args["expression"], frame), node)

    def _date_part(self, node: exp.Expr, frame: Frame) -> Typed:
        if len(node.expressions) != 2:
            raise not_supported("date_part of this", node)
        word, source = (self.value(item, frame) for item in node.expressions)
        return self._of_field("date_part", word, self._moment("date_part", source, TIMESTAMP, node), node)

    def _of_field(self, name: str, word: Typed, source: Typed, node: exp.Expr) -> Typed:
        """With the one branch of a field that is written as a constant."""
        found = functions.resolve(functions.BY_NAME[name], [word.kind.name, source.kind.name])
        template = None if word.literal is None else fields.constant(name, word.literal)
        if found is None or template is None or source.kind.name != "timestamp":
            return self.call(name, [word, source], node)
        return self._apply(replace(found, template=template), [word, source], node)

    def _moment(self, what: str, source: Typed, target: Kind, node: exp.Expr) -> Typed:
        if source.unknown:
            source = settle(source, TIMESTAMPTZ, self.params)
        if source.kind.name not in MOMENTS:
            raise not_supported(f"{what}(… {source.kind.display})", node)
        return self.cast(source, target)

    def _field(self, name: str, source: Typed, node: exp.Expr) -> Typed:
        """Held as DECIMAL, which is quicker, but for what the infinite values have no number for."""
        if source.kind.name != "date":
            source = self._moment("extract", source, TIMESTAMP, node)
        word = fields.canonical(name)
        found = fields.decimal_of(word, source.kind.name)
        if found is None:
            return self.call("extract_field", [constant(TEXT, name), source], node)
        sql, made = found[0].replace("$2", source.sql), decimal(20, found[1])
        infinite = failure("0A000", f"extract({word} of an infinite value is not supported") if (
            word in fields.GROWING) else "NULL"
        return Typed(f"CASE WHEN isfinite({source.sql}) THEN CAST({sql} AS {made.duck}) WHEN {source.sql} IS NOT NULL "
                     f"THEN {infinite} END", made)

    def _date_trunc(self, node: exp.Expr, frame: Frame) -> Typed:
        if len(node.expressions) != 2:
            raise not_supported("date_trunc with a time zone", node)
        word, source = (self.value(item, frame) for item in node.expressions)
        if source.unknown or source.kind.name == "date":
            source = self.cast(source, TIMESTAMPTZ)
        if source.kind.name != "timestamptz":  # whose zone is always UTC
            return self._of_field("date_trunc", word, source, node)
        return self.cast(self._of_field("date_trunc", word, self.cast(source, TIMESTAMP), node), TIMESTAMPTZ)

    def _output(self, node: exp.Expr, frame: Frame) -> Typed:
        """By the type's output function, where a cast of bool has another."""
        typed = self.known(node, frame)
        if typed.kind.name == "bool":
            return Typed(f"(CASE {typed.sql} WHEN TRUE THEN 't' WHEN FALSE THEN 'f' END)", TEXT)
        return to_text(typed)

    def _concat(self, node: exp.Expr, frame: Frame) -> Typed:
        args = [self._output(item, frame) for item in node.expressions]
        if not args:
            raise KalamError("42883", "function concat() does not exist", position=place_of(node))
        return Typed(f"concat({', '.join(each.sql for each in args)})", TEXT)

    def _concat_ws(self, node: exp.Expr, frame: Frame) -> Typed:
        args = [self._output(item, frame) for item in node.expressions]
        if len(args) < 2:
            raise KalamError("42883", "function concat_ws(unknown) does not exist", position=place_of(node))
        return Typed(f"concat_ws({', '.join(each.sql for each in args)})", TEXT)

    def _typeof(self, node: exp.Expr, frame: Frame) -> Typed:
        return constant(TEXT, self.value(node.expressions[0], frame).kind.display)

    def _uuid(self, node: exp.Expr, frame: Frame) -> Typed:
        return Typed("uuid()", kind("uuid"))

    def _series(self, node: exp.Expr, frame: Frame) -> Typed:
        if not frame.series:
            raise KalamError("0A000", f"set-returning functions are not allowed in {frame.clause}",
                             position=place_of(node))
        sql, of = self.series(node, frame)
        return Typed(f"unnest({sql})", of)

    def series(self, node: exp.Expr, frame: Frame) -> tuple[str, Kind]:
        """The list that generate_series or unnest makes rows of."""
        assert isinstance(node, exp.Anonymous)
        args = [self.value(item, frame) for item in node.expressions]
        if function_name(node) == "unnest":
            if len(args) != 1 or not args[0].kind.is_array:
                raise not_supported("unnest of this", node)
            return args[0].sql, args[0].kind.element
        if len(args) not in (2, 3):
            raise KalamError("42883", "function generate_series() does not exist", position=place_of(node))
        given = [each.kind.name for each in args if not each.unknown]
        if all(name in ("int2", "int4", "int8") for name in given):
            of = INT8 if "int8" in given else INT4
            made = [self.cast(each, INT8).sql for each in args]
            step = made[2] if len(made) == 3 else "1"
            zero = failure("22023", "step size cannot equal zero")
            steps = f"(CAST({made[1]} AS HUGEINT) - CAST({made[0]} AS HUGEINT)) // {step}"
            return (f"CAST(generate_series({made[0]}, {made[1]}, CASE WHEN {step} = 0 THEN {zero} "
                    f"WHEN {steps} >= {LONGEST_SERIES} THEN {_TOO_LONG} ELSE {step} END) AS {of.duck}[])", of)
        if len(args) == 3 and given and given[0] in MOMENTS:
            of = TIMESTAMPTZ if "timestamptz" in given or "date" in given else TIMESTAMP
            inner = [f"CAST({self.cast(each, of).sql} AS TIMESTAMP)" for each in args[:2]]
            step = self.cast(args[2], kind("interval")).sql
            steps = f"(epoch({inner[1]}) - epoch({inner[0]})) / epoch({step})"
            return (f"CAST(generate_series({inner[0]}, {inner[1]}, CASE WHEN {steps} >= {LONGEST_SERIES} "
                    f"THEN {_TOO_LONG} ELSE {step} END) AS {of.duck}[])", of)
        raise not_supported("generate_series of these types", node)

    def _cardinality(self, node: exp.Expr, frame: Frame) -> Typed:
        assert isinstance(node, exp.Anonymous)
        args = [self.value(item, frame) for item in node.expressions]
        name = function_name(node)
        if not args or not args[0].kind.is_array or len(args) != (1 if name == "cardinality" else 2):
            raise no_function(name, args, node)
        length = f"CAST(len({args[0].sql}) AS INTEGER)"
        if name == "cardinality":
            return Typed(length, INT4)
        return Typed(f"CASE WHEN {self.cast(args[1], INT4).sql} = 1 THEN nullif({length}, 0) END", INT4)

    def _marked(self, node: exp.Expr, frame: Frame) -> Typed:
        """kalam_as_inet(column): the column, or the text in it read as such a value."""
        assert isinstance(node, exp.Anonymous)
        name = MARKS[function_name(node)]
        if len(node.expressions) != 1:
            raise no_function(function_name(node), [], node)
        inner = self.known(node.expressions[0], frame)
        if inner.kind.name in STRINGS:
            return Typed(f"kalam_as_{name}({inner.sql})", of_column(types.by_name(name), -1))
        if _element_name(inner.kind) != name:
            raise no_function(function_name(node), [inner], node)
        return inner

    def _row(self, node: exp.Expr, frame: Frame) -> Typed:
        raise not_supported("a row as a value", node)

    def _qualified(self, node: exp.Expr, frame: Frame) -> Typed:
        """pg_catalog.f(…)"""
        inner = node.args["expression"]
        if isinstance(node.this, exp.Identifier) and identifier(node.this) == "pg_catalog" and isinstance(
                inner, exp.Anonymous):
            return self._function(inner, frame)
        raise not_supported("this qualified name", node)

    def _collate(self, node: exp.Expr, frame: Frame) -> Typed:
        name = identifier(node.args["expression"]) if isinstance(node.args["expression"], exp.Identifier) else \
            node.args["expression"].name
        if name.upper() not in ("C", "POSIX", "UCS_BASIC", "DEFAULT", "C.UTF-8"):
            raise KalamError("42704", f'collation "{name}" for encoding "UTF8" does not exist', position=place_of(node))
        return self.known(node.this, frame)


# ---------- helpers ----------
_KEPT_NAMES = frozenset(MARKS.values())


def _element_name(of: Kind) -> str:
    """The type's name in pg_catalog."""
    return "interval" if of.name == STORED_INTERVAL else of.name


def number(text: str) -> Typed:
    """A number written in the statement: integer, bigint or numeric."""
    digits = text.lstrip("-")
    if digits.isdecimal() and len(digits) <= 19:
        value = int(text)
        if -(2**31) <= value < 2**31:
            return constant(INT4, value)
        if -(2**63) <= value < 2**63:
            return constant(INT8, value)
    return numeric_constant(read_numeric(text))


def _stored_moment(day: str) -> str:
    """A date's first microsecond as timestamps are stored; after the last of them, just below infinity."""
    micros = f"CAST({day} - DATE '2000-01-01' AS HUGEINT) * 86400000000"
    return (f"(CASE WHEN isfinite({day}) THEN least({micros}, {2**63 - 2}) WHEN {day} > DATE '2000-01-01' "
            f"THEN {2**63 - 1} WHEN {day} IS NOT NULL THEN -{2**63} END)")


def _day_and_moment(sign: str, one: Typed, two: Typed) -> Typed:
    """Days after the query engine's last timestamp are between all finite timestamps and infinity."""
    date, other = (one, two) if one.kind.name == "date" else (two, one)
    if other.exact is not None:
        sides = (_stored_moment(date.sql), other.exact)
        left, right = sides if date is one else reversed(sides)
        return Typed(f"({left} {sign} {right})", BOOL)
    day, moment = date.sql, other.sql
    side = f"(CASE WHEN {moment} = TIMESTAMP 'infinity' THEN -1 WHEN {moment} IS NOT NULL THEN 1 END)"
    parts = [(side, "0"), (f"CAST({day} AS TIMESTAMP)", moment)]
    late, near = (f"{a} {sign} {b}" if one.kind.name == "date" else f"{b} {sign} {a}" for a, b in parts)
    return Typed(f"(CASE WHEN {day} > {fields.LAST_DAY} AND isfinite({day}) THEN {late} ELSE {near} END)", BOOL)


def _fact(mark: str, of: str) -> Typed:
    return Typed(f"\0{mark}\0", kind(of), True)


def _small_integer(typed: Typed) -> int | None:
    found = re.fullmatch(r"CAST\((-?\d{1,4}) AS INTEGER\)", typed.sql)
    return int(found.group(1)) if found else None


def direction(node: exp.Expr) -> str:
    """ASC or DESC and where NULLs go, always said."""
    nulls = "FIRST" if node.args.get("nulls_first") else "LAST"
    return f" {'DESC' if node.args.get('desc') else 'ASC'} NULLS {nulls}"


_AGG = re.compile(r"agg\[((?:[^\[\]]|\[[^\]]*\])*)\]")
_ARG = re.compile(r"\$(\d)")


def expand(template: str, args: Sequence[Typed], wrap: Callable[[str], str] | None = None) -> str:
    """A signature's SQL with its arguments in place; an argument used twice is computed once where that is possible."""
    if wrap is not None:
        return _AGG.sub(lambda found: wrap(_filled(found.group(1), args)), template)
    uses = [template.count(f"${place}") for place in range(1, len(args) + 1)]
    if all(count < 2 or each.simple for count, each in zip(uses, args, strict=True)) or _aggregated(args):
        return _filled(template, args)
    fields = ", ".join(f"'kalam{place}': {each.sql}" for place, each in enumerate(args, 1))
    body = _ARG.sub(lambda found: f"kalam_s['kalam{found.group(1)}']", template)
    return f"list_extract(list_transform([{{{fields}}}], lambda kalam_s: {body}), 1)"


def _aggregated(args: Sequence[Typed]) -> bool:
    """A lambda around an aggregate is something that the query engine does not always take."""
    return any(re.search(r"\b(sum|count|avg|min|max|list|arg_min|arg_max|bool_and|bool_or|OVER)\b ?\(", each.sql)
               for each in args)


def _filled(template: str, args: Sequence[Typed]) -> str:
    return _ARG.sub(lambda found: args[int(found.group(1)) - 1].sql, template)


def key_of(node: exp.Expr) -> str:
    """What makes two expressions of one statement the same."""
    return node.sql("postgres", normalize=True, comments=False) if not isinstance(node, exp.Literal) else ""


_NODES: dict[type[exp.Expr], Callable[[Expressions, exp.Expr, Frame], Typed]] = {
    exp.Paren: Expressions._paren, exp.Literal: Expressions._literal, exp.ByteString: Expressions._string,
    exp.RawString: Expressions._string, exp.National: Expressions._string, exp.Null: Expressions._null,
    exp.Boolean: Expressions._boolean, exp.Parameter: Expressions._parameter, exp.Column: Expressions._column,
    exp.Neg: Expressions._negative, exp.BitwiseNot: Expressions._bitwise_not, exp.And: Expressions._junction,
    exp.Or: Expressions._junction, exp.Not: Expressions._not, exp.Is: Expressions._is,
    exp.Between: Expressions._between, exp.In: Expressions._in, exp.Like: Expressions._like,
    exp.ILike: Expressions._like, exp.Escape: Expressions._escape, exp.RegexpLike: Expressions._regexp,
    exp.RegexpILike: Expressions._regexp, exp.Anonymous: Expressions._function, exp.Filter: Expressions._filter,
    exp.Window: Expressions._window, exp.Subquery: Expressions._scalar, exp.Select: Expressions._scalar,
    exp.Exists: Expressions._exists, exp.Case: Expressions._case, exp.Cast: Expressions._cast,
    exp.Interval: Expressions._interval, exp.ParseJSON: Expressions._json_literal, exp.Array: Expressions._array,
    exp.AtTimeZone: Expressions._zone, exp.JSONExtract: Expressions._json_arrow,
    exp.JSONExtractScalar: Expressions._json_arrow, exp.CurrentDate: Expressions._current_date,
    exp.Localtimestamp: Expressions._local_time, exp.Substring: Expressions._substring,
    exp.StrPosition: Expressions._position, exp.Trim: Expressions._trim, exp.Overlay: Expressions._overlay,
    exp.Extract: Expressions._extract, exp.Tuple: Expressions._row, exp.Dot: Expressions._qualified,
    exp.Collate: Expressions._collate,
}
_SPECIAL: dict[str, Callable[[Expressions, exp.Expr, Frame], Typed]] = {
    "coalesce": Expressions._coalesce, "nullif": Expressions._nullif, "greatest": Expressions._extreme,
    "least": Expressions._extreme, "concat": Expressions._concat, "concat_ws": Expressions._concat_ws,
    "date_part": Expressions._date_part, "date_trunc": Expressions._date_trunc, "pg_typeof": Expressions._typeof,
    "gen_random_uuid": Expressions._uuid, "generate_series": Expressions._series, "unnest": Expressions._series,
    "grouping": Expressions._grouping,
    "row": Expressions._row, "array": Expressions._array_query, "cardinality": Expressions._cardinality,
    "array_length": Expressions._cardinality, "kalam_any": Expressions._each_element,
    "kalam_all": Expressions._each_element, **dict.fromkeys(MARKS, Expressions._marked),
}
