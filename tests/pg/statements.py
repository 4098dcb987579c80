"""Random SELECTs: joins, groups, windows, DISTINCT, subqueries, set operations, ORDER BY and LIMIT in all their forms.

A `Query` tells how its rows may be compared: in order only where ORDER BY is total; by value where equal values may be
spelled differently (1 and 1.0 are one group); only counted where LIMIT has no order to choose by.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .edge_tables import KEYS, TABLES
from .grammar import ORDERED, TYPES, Column, Grammar

#: planner settings, under some of which a query is planned
SETTINGS: tuple[tuple[str, ...], ...] = (
    (), (), (), ("enable_hashjoin", "enable_mergejoin"), ("enable_nestloop",), ("enable_hashagg",), ("enable_sort",),
    ("enable_hashjoin", "enable_nestloop"), ("enable_hashjoin", "enable_nestloop", "enable_sort"),
    ("enable_hashjoin", "enable_mergejoin", "enable_material", "enable_memoize"),
)  # fmt: skip
AGGREGATES = (
    "count(*)", "count({T})", "sum({int})", "sum({big})", "sum({numeric})", "avg({int})", "avg({numeric})",
    "sum({float.})", "avg({float.})", "min({T})", "max({T})", "bool_and({bool})", "bool_or({bool})", "every({bool})",
    "bit_and({int})", "bit_or({int})", "stddev({int})", "variance({numeric.})", "var_pop({int})", "count(DISTINCT {T})",
    "sum(DISTINCT {int})", "string_agg({text}, '|' ORDER BY {KEYS})", "array_agg({int} ORDER BY {KEYS})",
    "string_agg(DISTINCT {text:a}, ',' ORDER BY {text:a})", "array_agg({text} ORDER BY {int} DESC NULLS LAST, {KEYS})",
    "percentile_disc(0.5) WITHIN GROUP (ORDER BY {int})", "jsonb_agg({int} ORDER BY {KEYS})",
)  # fmt: skip
#: of any frame, and those that need a total order
WINDOWS = ("rank()", "dense_rank()", "percent_rank()", "cume_dist()", "count(*)", "count({T})", "sum({int})",
           "min({int})", "max({text})", "avg({numeric})", "bool_or({bool})")  # fmt: skip
TOTAL_WINDOWS = ("row_number()", "ntile(3)", "lag({T})", "lead({T}, 2)", "lag({int}, 1, 0)", "first_value({T})",
                 "last_value({T})", "nth_value({T}, 2)", "string_agg({text}, ',')")  # fmt: skip
FRAMES = ("", "ROWS UNBOUNDED PRECEDING", "ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING", "ROWS BETWEEN CURRENT ROW AND "
          "UNBOUNDED FOLLOWING", "GROUPS 1 PRECEDING", "ROWS BETWEEN 3 PRECEDING AND CURRENT ROW EXCLUDE CURRENT ROW",
          "RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING", "ROWS BETWEEN 1 FOLLOWING AND 3 FOLLOWING")  # fmt: skip
DIRECTIONS = ("", " ASC", " DESC", " NULLS FIRST", " DESC NULLS LAST", " ASC NULLS LAST", " DESC NULLS FIRST")


@dataclass(frozen=True)
class Query:
    sql: str
    ordered: bool = False
    by_value: bool = False
    counted: bool = False
    params: tuple[tuple[str, str], ...] | None = None
    generic: bool = False
    off: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"SET {name} = off;" for name in self.off]
        if self.params is None:
            return "\n".join([*lines, f"{self.sql};"])
        mode = "generic" if self.generic else "custom"
        lines += [f"SET plan_cache_mode = force_{mode}_plan;", f"{self.prepare()};", f"{self.execute()};"]
        return "\n".join(lines)

    def prepare(self) -> str:
        types = ", ".join(type_ for type_, _ in self.params or ())
        return f"PREPARE one{f'({types})' if types else ''} AS {self.sql}"

    def execute(self) -> str:
        values = ", ".join(f"{value}::{type_}" for type_, value in self.params or ())
        return f"EXECUTE one{f'({values})' if values else ''}"


@dataclass(frozen=True)
class Source:
    """FROM, its columns, and what no two of its rows have in common."""

    sql: str
    columns: tuple[Column, ...]
    keys: tuple[str, ...]


class Statements:
    """An endless supply of queries; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.grammar = Grammar(self.random)

    def query(self) -> Query:
        prepared = self.random.random() < 0.25
        self.grammar = Grammar(self.random, [] if prepared else None)
        forms: Sequence[Callable[[], Query]] = (
            self.rows, self.rows, self.rows, self.distinct, self.groups, self.groups, self.groups, self.windows,
            self.windows, self.distinct_on, self.grouping_sets, self.united, self.semi, self.semi, self.lateral,
            self.scalar,
        )  # fmt: skip
        query = self.random.choice(forms)()
        return Query(query.sql, query.ordered, query.by_value, query.counted,
                     tuple(self.grammar.params) if self.grammar.params is not None else None,
                     self.random.random() < 0.5, self.random.choice(SETTINGS))

    # ---------- FROM and WHERE ----------
    def table(self) -> Source:
        table = self.random.choice(("p", "p", "p", "q", "q", "q", "w", "z", "z", "l"))
        alias = self.grammar.name()
        columns = tuple(Column(f"{alias}.{name}", tag) for name, _, tag in TABLES[table])
        return Source(f"{table} {alias}", columns, tuple(f"{alias}.{key}" for key in KEYS[table]))

    def derived(self) -> Source:
        """A subquery of a table, or of groups of it, whose columns have one spelling each."""
        inner, alias, g = self.table(), self.grammar.name(), self.grammar
        g.columns = inner.columns
        where = self.where()
        if g.chance(0.5):
            tags = [self.random.choice(tuple(TYPES)) for _ in range(3)]
            outputs = [f"{g.expression(tag)} AS c{place}" for place, tag in enumerate(tags)]
            keys = tuple(f"k{place}" for place in range(len(inner.keys)))
            outputs += [f"{key} AS {name}" for key, name in zip(inner.keys, keys, strict=True)]
            sql = f"SELECT {', '.join(outputs)} FROM {inner.sql}{where}"
            if g.chance(0.2):
                sql += f" ORDER BY {', '.join(inner.keys)} LIMIT {self.random.randint(1, 30)}"
        else:
            tags = [self.random.choice(("int", "text", "date", "bool")), "int", "text"]
            sql = (f"SELECT {g.expression(tags[0])} AS c0, count(*)::int AS c1, max({g.expression('text')}) AS c2"
                   f" FROM {inner.sql}{where} GROUP BY 1")
            keys = ("c0",)
        columns = tuple(Column(f"{alias}.c{place}", tag) for place, tag in enumerate(tags))
        return Source(f"({sql}) {alias}", columns, tuple(f"{alias}.{key}" for key in keys))

    def one(self) -> Source:
        return self.derived() if self.grammar.chance(0.12) else self.table()

    def equality(self, left: Source, right: Source) -> str:
        """Of columns of both sides; always one of integers can be found."""
        tag = self.random.choice(("int", "int", "int", "text", "bool", "date", "numeric", "float"))
        ones, twos = ([column.sql for column in side.columns if column.tag == tag] for side in (left, right))
        if not ones or not twos:
            return f"{left.keys[0]}::text = {right.keys[0]}::text"
        return f"{self.random.choice(ones)} = {self.random.choice(twos)}"

    def joined(self, most: int = 3) -> Source:
        source, g = self.one(), self.grammar
        for _ in range(self.random.choice((0, 0, 1, 1, 2)[: most + 2])):
            other = self.one()
            kind = self.random.choice(("JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"))
            condition = self.equality(source, other)
            columns = source.columns + other.columns
            if kind != "FULL JOIN" and g.chance(0.4):
                g.columns = columns
                condition += f" AND {g.condition()}"
            source = Source(f"{source.sql} {kind} {other.sql} ON {condition}", columns, source.keys + other.keys)
        g.columns = source.columns
        return source

    def where(self, share: float = 0.6) -> str:
        g = self.grammar
        if not g.chance(share):
            return ""
        return f" WHERE {' AND '.join(g.condition() for _ in range(self.random.choice((1, 1, 2))))}"

    # ---------- ORDER BY and LIMIT ----------
    def direction(self) -> str:
        return self.random.choice(DIRECTIONS)

    def limit(self) -> str:
        clause = f" LIMIT {self.random.choice((0, 1, 3, 10, 40))}" if self.grammar.chance(0.8) else ""
        if self.grammar.params is not None and clause and self.grammar.chance(0.5):
            clause = f" LIMIT {self.grammar.constant('bigint', self.random.choice(('2', '7', None)))}"
        return clause + (f" OFFSET {self.random.choice((0, 1, 5, 100))}" if self.grammar.chance(0.4) else "")

    def total(self, keys: Sequence[str]) -> str:
        """An order by any expressions, then by what tells all rows apart."""
        some = [self.grammar.expression(self.random.choice(ORDERED)) for _ in range(self.random.randint(0, 2))]
        some = [f"({each})" for each in some]  # a mere number would be an output's
        return ", ".join(each + self.direction() for each in (*some, *keys))

    def tail(self, keys: Sequence[str]) -> tuple[str, bool, bool]:
        """ORDER BY and LIMIT; is it ordered, may rows only be counted?"""
        if keys and self.grammar.chance(0.55):
            order = " ORDER BY " + self.total(keys)
            return order + (self.limit() if self.grammar.chance(0.6) else ""), True, False
        if self.grammar.chance(0.1):
            return self.limit(), False, True
        return "", False, False

    # ---------- forms ----------
    def outputs(self, most: int = 4, tags: Sequence[str] = tuple(TYPES)) -> list[str]:
        count = self.random.randint(1, most)
        return [self.grammar.expression(self.random.choice(tags)) for _ in range(count)]

    def rows(self) -> Query:
        source = self.joined()
        outputs = ", ".join([*self.outputs(), *(source.keys if self.grammar.chance(0.5) else ())])
        where = self.where()
        tail, ordered, counted = self.tail(source.keys)
        sql = f"SELECT {outputs} FROM {source.sql}{where}{tail}"
        if self.grammar.chance(0.1):
            sql = f"WITH c AS {self.random.choice(('', 'NOT ', ''))}MATERIALIZED ({sql}) SELECT * FROM c"
        return Query(sql, ordered, False, counted)

    def by_outputs(self, outputs: Sequence[str]) -> tuple[str, bool]:
        """ORDER BY all outputs, in any sequence."""
        if not outputs or not self.grammar.chance(0.6):
            return "", False
        places = self.random.sample(range(1, len(outputs) + 1), len(outputs))
        order = " ORDER BY " + ", ".join(f"{place}{self.direction()}" for place in places)
        return order + (self.limit() if self.grammar.chance(0.5) else ""), True

    def distinct(self) -> Query:
        source = self.joined()
        outputs = self.outputs(3)
        where = self.where()
        tail, ordered = self.by_outputs(outputs)
        return Query(f"SELECT DISTINCT {', '.join(outputs)} FROM {source.sql}{where}{tail}", ordered, True)

    def aggregate(self, source: Source) -> str:
        g = self.grammar
        form = self.random.choice(AGGREGATES).replace("{KEYS}", ", ".join(source.keys))
        tags = ORDERED if "DISTINCT" in form else [tag for tag in ORDERED if tag not in ("bool", "uuid", "bytea")]
        call = g.fill(form, self.random.choice(tags), 2)
        return f"{call} FILTER (WHERE {g.condition()})" if g.chance(0.25) else call

    def groups(self) -> Query:
        source, g = self.joined(), self.grammar
        keys = [g.expression(self.random.choice(ORDERED), 1) for _ in range(self.random.choice((0, 1, 1, 2)))]
        calls = [self.aggregate(source) for _ in range(self.random.randint(1, 3))]
        where = self.where()
        group = f" GROUP BY {', '.join(str(place) for place in range(1, len(keys) + 1))}" if keys else ""
        having = f" HAVING {self.random.choice(('count(*) > 1', 'max(1) IS NOT NULL', self.having()))}" \
            if g.chance(0.3) else ""
        tail, ordered = self.by_outputs(keys)
        sql = f"SELECT {', '.join([*keys, *calls])} FROM {source.sql}{where}{group}{having}{tail}"
        return Query(sql, ordered, True)

    def having(self) -> str:
        return self.grammar.fill("sum({int}) > {int!} OR count({T}) < 3", self.random.choice(ORDERED), 2)

    def grouping_sets(self) -> Query:
        """Keys are columns or expressions of them; some are grouped by twice, some queries read no rows at all."""
        self.grammar.params = None  # each parameter would be another expression
        source, g = self.joined(2), self.grammar
        plain = [each.sql for each in source.columns if each.tag != "json"] or source.keys
        one, two, three = (self.random.choice(plain) if g.chance(0.7) else
                           f"({self.random.choice(plain)} = {self.random.choice(plain)}::text)" if g.chance(0.2) else
                           f"({g.expression(self.random.choice(ORDERED), 1)})" for _ in range(3))
        sets = self.random.choice((
            f"GROUPING SETS (({one}), ({one}, {two}), ())", f"ROLLUP ({one}, {two})", f"CUBE ({one}, {two})",
            f"GROUPING SETS ({two}, ({one}))", f"ROLLUP ({one}, ({two}, {three}))", f"{three}, ROLLUP ({one}, {two})",
            f"GROUPING SETS (({one}), ({two}), ({one}), (), ())", f"CUBE ({one}, {three}), GROUPING SETS ({two}, ())",
            f"DISTINCT ROLLUP ({one}, {two}), CUBE ({two})", f"GROUPING SETS (CUBE ({one}, {two}), ({two}, {one}))",
            f"ROLLUP ({one}), {two}", f"CUBE ({two}), {one}, ()"))  # fmt: skip
        where = self.where() if g.chance(0.9) else " WHERE false"
        having = f" HAVING {self.random.choice(('count(*) > 1', f'GROUPING({one}) = 0', f'{two} IS NULL'))}" \
            if g.chance(0.3) else ""
        call = self.random.choice((self.aggregate(source), f"count({one})", f"max({two}::text)"))
        outputs = [one, two, f"GROUPING({one}, {two})", f"CASE WHEN GROUPING({two}) = 1 THEN {call}::text END"]
        if g.chance(0.2):
            outputs.append(f"rank() OVER (ORDER BY count(*) DESC, GROUPING({one}))")
        shown = ", ".join([*outputs, "count(*)"])
        return Query(f"SELECT {shown} FROM {source.sql}{where} GROUP BY {sets}{having}", by_value=True)

    def window(self, source: Source) -> str:
        g = self.grammar
        total = g.chance(0.5)
        form = self.random.choice((*WINDOWS, *TOTAL_WINDOWS) if total else WINDOWS)
        call = g.fill(form, self.random.choice(tuple(TYPES)), 2)
        if g.chance(0.15) and form in ("count(*)", "sum({int})", "min({int})"):
            call += f" FILTER (WHERE {g.condition()})"
        parts = []
        if g.chance(0.5):
            parts.append(f"PARTITION BY {g.expression(self.random.choice(ORDERED), 1)}")
        if total:
            parts.append(f"ORDER BY {self.total(source.keys)}")
            parts.append(self.random.choice(FRAMES))
        elif g.chance(0.7):
            parts.append(f"ORDER BY {g.expression(self.random.choice(ORDERED), 1)}{self.direction()}")
        return f"{call} OVER ({' '.join(filter(None, parts))})"

    def windows(self) -> Query:
        source = self.joined(2)
        calls = [self.window(source) for _ in range(self.random.choice((1, 1, 2)))]
        where = self.where()
        if self.grammar.chance(0.15):
            key = self.random.choice([column.sql for column in source.columns if column.tag != "json"] or source.keys)
            sql = f"SELECT {key}, count(*), rank() OVER (ORDER BY count(*) DESC) FROM {source.sql}{where} GROUP BY 1"
            return Query(f"{sql} ORDER BY 1{self.direction()}", True, True)
        tail, ordered, counted = self.tail(source.keys)
        outputs = ", ".join([*self.outputs(2), *calls])
        return Query(f"SELECT {outputs} FROM {source.sql}{where}{tail}", ordered, False, counted)

    def distinct_on(self) -> Query:
        source, g = self.joined(2), self.grammar
        key = f"({g.expression(self.random.choice(ORDERED), 1)})"
        where = self.where()
        order = f" ORDER BY {key}{self.direction()}, {self.total(source.keys)}"
        return Query(f"SELECT DISTINCT ON ({key}) {', '.join(self.outputs(3))} FROM {source.sql}{where}{order}", True)

    def united(self) -> Query:
        tags = [self.random.choice(ORDERED) for _ in range(self.random.randint(1, 3))]
        sides = []
        for _ in range(self.random.choice((2, 2, 3))):
            source = self.joined(1)
            outputs = ", ".join(self.grammar.expression(tag) for tag in tags)
            sides.append(f"SELECT {outputs} FROM {source.sql}{self.where()}")
        sql = sides[0]
        for side in sides[1:]:
            sql += f" {self.random.choice(('UNION ALL', 'UNION', 'INTERSECT', 'EXCEPT', 'EXCEPT ALL'))} {side}"
        return Query(sql, by_value=True)

    def semi(self) -> Query:
        """IN, EXISTS, ANY of a subquery, and their negations."""
        source = self.joined(1)
        outer = self.grammar.columns
        inner = self.table()
        equality = self.equality(source, inner)
        self.grammar.columns = inner.columns
        inside = self.where()
        one, two = equality.split(" = ")
        restricted = inside or " WHERE true"
        condition = self.random.choice((
            f"EXISTS (SELECT FROM {inner.sql} WHERE {equality})",
            f"NOT EXISTS (SELECT FROM {inner.sql} WHERE {equality})",
            f"EXISTS (SELECT FROM {inner.sql}{restricted} AND {equality})",
            f"NOT EXISTS (SELECT FROM {inner.sql}{restricted} AND {equality})",
            f"{one} IN (SELECT {two} FROM {inner.sql}{inside})",
            f"{one} NOT IN (SELECT {two} FROM {inner.sql}{inside})",
            f"{one} >= ALL (SELECT {two} FROM {inner.sql}{inside})",
            f"(EXISTS (SELECT FROM {inner.sql} WHERE {equality}) OR {one} IS NULL)",
        ))  # fmt: skip
        self.grammar.columns = outer
        where = f" WHERE {condition}" + (f" AND {self.grammar.condition()}" if self.grammar.chance(0.4) else "")
        if self.grammar.chance(0.3):
            return Query(f"SELECT count(*), {self.aggregate(source)} FROM {source.sql}{where}", False, True)
        tail, ordered, counted = self.tail(source.keys)
        return Query(f"SELECT {', '.join(self.outputs(3))} FROM {source.sql}{where}{tail}", ordered, False, counted)

    def lateral(self) -> Query:
        source, inner, g = self.table(), self.table(), self.grammar
        equality = self.equality(source, inner)
        g.columns = inner.columns + source.columns
        outputs = ", ".join(f"{each} AS c{place}" for place, each in enumerate(self.outputs(2)))
        order = f" ORDER BY {self.total(inner.keys)} LIMIT {self.random.randint(1, 3)}" if g.chance(0.6) else ""
        g.columns = source.columns
        kind = self.random.choice((", LATERAL ({}) l", " LEFT JOIN LATERAL ({}) l ON true"))
        text = kind.format(f"SELECT {outputs} FROM {inner.sql} WHERE {equality}{order}")
        return Query(f"SELECT {', '.join(source.keys)}, l.* FROM {source.sql}{text}{self.where(0.4)}")

    def scalar(self) -> Query:
        source, inner, g = self.table(), self.table(), self.grammar
        equality = self.equality(source, inner)
        g.columns = inner.columns
        call, uncorrelated = self.aggregate(inner), self.aggregate(inner)
        g.columns = source.columns
        sub = f"(SELECT {call} FROM {inner.sql} WHERE {equality})"
        sql = f"SELECT {', '.join(source.keys)}, {sub}, (SELECT {uncorrelated} FROM {inner.sql}) FROM {source.sql}" \
              f"{self.where(0.5)}"
        return Query(sql, by_value=True)
