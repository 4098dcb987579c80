"""SELECT, VALUES, UNION and WITH: names resolved as PostgreSQL resolves them, written down for the query engine.

Every name in the result is the translator's own (tables ``t1``, columns ``c1``, output columns ``o1`` …), so that
nothing depends on how the query engine resolves, folds or quotes names. A table of the store becomes a relation that
holds just the columns the statement uses and the rows that its simple conditions leave: those conditions are the
store's and do not appear in the query again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from sqlglot import exp

from kalamdb.errors import KalamError
from kalamdb.sql import access
from kalamdb.sql.bind import Binder, NotSimple, Params, identifier, place_of, position_of
from kalamdb.sql.casts import WRITTEN, Typed, settle, settled
from kalamdb.sql.expressions import (
    AGGREGATES,
    Expressions,
    Frame,
    direction,
    function_name,
    key_of,
    not_supported,
)
from kalamdb.sql.functions import failure
from kalamdb.sql.groupsets import grouping_sets, has_sets
from kalamdb.sql.guard import junction
from kalamdb.sql.kinds import BOOL, INT4, INT8, NUMERIC, RAW, Kind, common, kind, of_column, plain
from kalamdb.sql.names import output_name
from kalamdb.sql.predicate import SEQ, USERID, Condition, conjunction
from kalamdb.txn.api import CatalogView, TableDef

#: the column that says which of the given rows a result row is for
ROW_NUMBER = "__kalam_row"
_SELECT_PARTS = frozenset({
    "expressions", "from_", "joins", "where", "group", "having", "order", "limit", "offset", "distinct", "with_",
    "windows", "kind", "locks", "laterals", "hint", "into", "qualify", "operation_modifiers",
})
_SETS: dict[type[exp.Expr], str] = {exp.Union: "UNION", exp.Intersect: "INTERSECT", exp.Except: "EXCEPT"}


@dataclass(slots=True, eq=False)
class Entry:
    """A column in sight. ``hidden``: not what a star stands for."""

    name: str
    get: Callable[[], Typed]
    owner: Source
    hidden: bool = False


@dataclass(slots=True, eq=False)
class Source:
    """One item of FROM."""

    number: int
    alias: str | None
    entries: list[Entry] = field(default_factory=list)
    node: exp.Expr | None = None
    table: TableDef | None = None
    given: str | None = None
    fields: dict[tuple[int, bool], str] = field(default_factory=dict)  # (position, as stored) → column of the relation
    condition: Condition | None = None


@dataclass(slots=True, eq=False)
class Scope:
    """What FROM has brought into sight: ``entries`` in the order of a star, merged columns of USING once."""

    entries: list[Entry] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)
    filtered: list[Source] = field(default_factory=list)  # whose rows a condition in WHERE may leave out
    groups: set[int] | None = None  # ids of the entries grouped by, where that matters
    grouped_sources: set[int] = field(default_factory=set)  # … by their whole key
    keys: dict[int, Typed] = field(default_factory=dict)


@dataclass(slots=True)
class Output:
    """A translated query: its columns are o1, o2 …"""

    sql: str
    names: list[str]
    kinds: list[Kind]
    unknown: list[bool]


@dataclass(slots=True)
class Common:
    """One query of WITH."""

    name: str
    names: list[str]
    kinds: list[Kind]


class SelectTranslator:
    """Translates one statement. Use once; ``tables`` are the store's tables it reads.

    ``wide``: no stored numeric is held as DECIMAL, which is slower and knows NaN.
    """

    def __init__(self, catalog: CatalogView, path: Sequence[str], params: Params, *, wide: bool = False) -> None:
        self.wide = wide
        self.catalog = catalog
        self.path = path
        self.params = params
        self.tables: list[Source] = []
        self.exprs = Expressions(params, self)
        self._count = 0
        self._with: list[dict[str, Common]] = []

    # ---------- Names ----------
    def column(self, node: exp.Column, frame: Frame) -> Typed:
        if isinstance(node.this, exp.Star):
            raise KalamError("42601", "row expansion via \"*\" is not supported here", position=place_of(node))
        level: Frame | None = frame
        while level is not None:
            assert isinstance(level.scope, Scope)
            entry = self._find(node, level.scope)
            if entry is not None:
                return self._checked(entry, node, level)
            level = level.outer
        raise self._unknown_column(node, frame)

    def _find(self, node: exp.Column, scope: Scope) -> Entry | None:
        name, qualifier = identifier(node.this), node.args.get("table")
        if qualifier is None:
            found = [entry for entry in scope.entries if entry.name == name]
            if not found:
                found = [entry for source in scope.sources for entry in source.entries
                         if entry.hidden and entry.name == name]
        else:
            source = self._source(node, scope)
            if source is None:
                return None
            found = [entry for entry in source.entries if entry.name == name]
            if not found:
                written = f"{identifier(qualifier)}.{name}"
                raise KalamError("42703", f"column {written} does not exist", position=place_of(node), column=name)
        if len(found) > 1:
            raise KalamError("42702", f'column reference "{name}" is ambiguous', position=place_of(node))
        return found[0] if found else None

    def _source(self, node: exp.Column, scope: Scope) -> Source | None:
        name, schema = identifier(node.args["table"]), node.args.get("db")
        found = [source for source in scope.sources if source.alias == name and (
            schema is None or (source.table is not None and source.table.namespace == identifier(schema)))]
        return found[0] if found else None

    def _unknown_column(self, node: exp.Column, frame: Frame) -> KalamError:
        name, qualifier, place = identifier(node.this), node.args.get("table"), place_of(node)
        if qualifier is not None:
            return KalamError("42P01", f'missing FROM-clause entry for table "{identifier(qualifier)}"', position=place)
        assert isinstance(frame.scope, Scope)
        if any(source.alias == name for source in frame.scope.sources):
            return not_supported("a whole row as a value", node)
        return KalamError("42703", f'column "{name}" does not exist', position=place, column=name)

    def _checked(self, entry: Entry, node: exp.Column, level: Frame) -> Typed:
        """In a grouped query only what is grouped by may stand outside aggregates."""
        scope = level.scope
        assert isinstance(scope, Scope)
        if not level.grouped or level.inside == "aggregate":
            return entry.get()
        key = scope.keys.get(id(entry))
        if key is not None:
            return key
        if entry.owner.number in scope.grouped_sources:
            inner = entry.get()
            return Typed(f"any_value({inner.sql})", inner.kind)
        shown = f"{entry.owner.alias}.{entry.name}" if entry.owner.alias else entry.name
        raise KalamError("42803", f'column "{shown}" must appear in the GROUP BY clause or be used in an aggregate '
                                  "function", position=place_of(node))

    def subquery(self, node: exp.Expr, frame: Frame) -> tuple[str, list[Kind]]:
        made = self.query(node, frame)
        return made.sql, made.kinds

    # ---------- queries ----------
    def query(self, node: exp.Expr, outer: Frame | None, targets: Sequence[Kind | None] | None = None, *,
              top: bool = False) -> Output:
        while isinstance(node, exp.Subquery) and not any(
                value for part, value in node.args.items() if part not in ("this", "alias")):
            node = node.this
        if isinstance(node, exp.Subquery):
            return self._wrapped(node, outer, targets)
        before = len(self._with)
        prefix = self._with_clause(node.args.get("with_"), outer)
        try:
            if isinstance(node, exp.Select):
                made = self._select(node, outer, targets, top=top)
            elif isinstance(node, exp.SetOperation):
                made = self._set_operation(node, outer, targets)
            elif isinstance(node, exp.Values):
                made = self._values(node, outer, targets)
            else:
                raise not_supported("this query", node)
        finally:
            del self._with[before:]
        made.sql = prefix + made.sql
        return made

    def _wrapped(self, node: exp.Subquery, outer: Frame | None, targets: Sequence[Kind | None] | None) -> Output:
        """(query) ORDER BY … LIMIT …"""
        extra = {part for part, value in node.args.items() if value} - {"this", "alias", "order", "limit", "offset",
                                                                       "with_"}
        if extra:
            raise not_supported(f"{sorted(extra)[0]} of a query in parentheses", node)
        inner = self.query(node.this, outer, targets)
        return self._ordered(inner, node, outer)

    def _ordered(self, inner: Output, node: exp.Expr, outer: Frame | None) -> Output:
        """ORDER BY, LIMIT and OFFSET over output columns."""
        tail = self._limits(node, outer)
        order = node.args.get("order")
        if order is not None:
            keys = []
            for item in order.expressions:
                place = self._output_place(item.this, inner.names)
                if place is None:
                    raise KalamError("0A000", "invalid UNION/INTERSECT/EXCEPT ORDER BY clause",
                                     detail="Only result column names can be used, not expressions or functions.",
                                     position=place_of(item))
                keys.append(self._out_key(f"q.o{place + 1}", inner.kinds[place], item.this) + direction(item))
            tail = " ORDER BY " + ", ".join(keys) + tail
        if tail:
            columns = ", ".join(f"q.o{place}" for place in range(1, len(inner.names) + 1))
            inner.sql = f"SELECT {columns} FROM ({inner.sql}) q{tail}"
        return inner

    def _out_key(self, sql: str, of: Kind, node: exp.Expr) -> str:
        return self.exprs.sort_key(Typed(sql, of), node)

    def _output_place(self, node: exp.Expr, names: Sequence[str]) -> int | None:
        if isinstance(node, exp.Literal) and not node.is_string:
            if not node.this.isdecimal() or not 1 <= int(node.this) <= len(names):
                raise KalamError("42P10", f"ORDER BY position {node.this} is not in select list",
                                 position=place_of(node))
            return int(node.this) - 1
        if isinstance(node, exp.Column) and node.args.get("table") is None and not isinstance(node.this, exp.Star):
            name = identifier(node.this)
            return names.index(name) if name in names else None
        return None

    def _limits(self, node: exp.Expr, outer: Frame | None) -> str:
        text = ""
        for part, code, word in (("limit", "2201W", "LIMIT"), ("offset", "2201X", "OFFSET")):
            clause = node.args.get(part)
            if clause is None:
                continue
            if isinstance(clause, exp.Fetch):
                options = clause.args.get("limit_options")
                if options is not None and (options.args.get("percent") or options.args.get("with_ties")):
                    raise not_supported("FETCH with PERCENT or WITH TIES", clause)
                value = clause.args.get("count") or exp.Literal.number(1)
            else:
                value = clause.expression
            if isinstance(value, exp.Var) and value.name.upper() == "ALL":
                continue
            text += self._limit(value, code, word, outer)
        return text

    def _limit(self, value: exp.Expr, code: str, word: str, outer: Frame | None) -> str:
        frame = Frame(Scope(), None, word)
        typed = self.exprs.value(value, frame)
        sql = self.exprs.cast(typed, INT8).sql
        if isinstance(value, exp.Literal):
            return f" {word} {sql}"
        fail = failure(code, f"{word} must not be negative")
        most = "4611686018427387903"
        none = most if word == "LIMIT" else "0"
        return f" {word} (CASE WHEN {sql} < 0 THEN {fail} ELSE least(coalesce({sql}, {none}), {most}) END)"

    # ---------- WITH ----------
    def _with_clause(self, clause: exp.Expr | None, outer: Frame | None) -> str:
        if clause is None:
            return ""
        scope: dict[str, Common] = {}
        self._with.append(scope)
        parts = []
        recursive = bool(clause.args.get("recursive"))
        for cte in clause.expressions:
            name = identifier(cte.args["alias"].this)
            if name in scope:
                raise KalamError("42712", f'WITH query name "{name}" specified more than once')
            if not isinstance(cte.this, exp.Query | exp.Values):
                raise not_supported("INSERT, UPDATE or DELETE inside WITH", cte)
            self._count += 1
            inner_name = f"w{self._count}"
            columns = [identifier(item) for item in cte.args["alias"].args.get("columns") or []]
            if recursive and isinstance(cte.this, exp.Union) and _mentions(cte.this.expression, name):
                made = self._recursive(cte.this, name, inner_name, columns, scope, outer)
            else:
                made = self.query(cte.this, outer)
            names = _renamed(made.names, columns, name, cte)
            scope[name] = Common(inner_name, names, made.kinds)
            outs = ", ".join(f"o{place}" for place in range(1, len(names) + 1))
            parts.append(f"{inner_name}({outs}) AS ({made.sql})")
        return f"WITH {'RECURSIVE ' if recursive else ''}{', '.join(parts)} "

    def _recursive(self, node: exp.Union, name: str, inner_name: str, columns: list[str], scope: dict[str, Common],
                   outer: Frame | None) -> Output:
        if any(node.args.get(part) for part in ("order", "limit", "offset", "with_")):
            raise not_supported("ORDER BY, LIMIT or WITH in a recursive query", node)
        base = self.query(node.this, outer)
        base = _as(base, [NUMERIC if each.fixed else plain(each) for each in base.kinds], self)
        scope[name] = Common(inner_name, _renamed(base.names, columns, name, node), base.kinds)
        step = self.query(node.expression, outer)
        _check_width(base, step, node)
        for place, (one, two) in enumerate(zip(base.kinds, step.kinds, strict=True), 1):
            if one.name != two.name:
                raise KalamError("42804", f'recursive query "{name}" column {place} has type {one.display} in '
                                          f"non-recursive term but type {two.display} overall",
                                 hint="Cast the output of the non-recursive term to the correct type.")
        step = _as(step, base.kinds, self)
        word = "UNION" if node.args.get("distinct") else "UNION ALL"
        return Output(f"{base.sql} {word} {step.sql}", base.names, base.kinds, base.unknown)

    # ---------- UNION, INTERSECT, EXCEPT ----------
    def _set_operation(self, node: exp.SetOperation, outer: Frame | None, targets: Sequence[Kind | None] | None
                       ) -> Output:
        if node.args.get("by_name") or node.args.get("side") or node.args.get("kind") or node.args.get("on"):
            raise not_supported("this set operation", node)
        word = _SETS[type(node)]
        start, count = len(self.tables), self._count
        one, two = self.query(node.this, outer), self.query(node.expression, outer)
        _check_width(one, two, node)
        wanted: list[Kind | None] = []
        for place in range(len(one.kinds)):
            sides = [side.kinds[place] for side in (one, two) if not side.unknown[place]]
            target = None if targets is None or place >= len(targets) else targets[place]
            wanted.append(common(sides, word) if sides else target)
        undecided = [place for side in (one, two) for place, unknown in enumerate(side.unknown) if unknown]
        if any(wanted[place] is not None for place in undecided):
            del self.tables[start:]
            self._count = count
            one, two = self.query(node.this, outer, wanted), self.query(node.expression, outer, wanted)
        made = [common([left, right], word) for left, right in zip(one.kinds, two.kinds, strict=True)]
        distinct = bool(node.args.get("distinct"))
        one, two = _as(one, made, self), _as(two, made, self)
        sql = f"({one.sql}) {word}{'' if distinct else ' ALL'} ({two.sql})"
        if distinct or word != "UNION":
            outs = [f"q.o{place}" for place in range(1, len(made) + 1)]
            keys = [self.exprs.sort_key(Typed(out, of), node, equality=True)
                    for out, of in zip(outs, made, strict=True)]
            if keys != outs:
                if word != "UNION":
                    raise not_supported(f"{word} of numeric values that are not held to one scale", node,
                                        "Cast the column to numeric(p,s) or text.")
                listed = ", ".join(outs)
                sql = f"SELECT DISTINCT ON ({', '.join(keys)}) {listed} FROM (({one.sql}) UNION ALL ({two.sql})) q"
        unknown = [left and right for left, right in zip(one.unknown, two.unknown, strict=True)]
        return self._ordered(Output(sql, one.names, made, unknown), node, outer)

    def _values(self, node: exp.Values, outer: Frame | None, targets: Sequence[Kind | None] | None) -> Output:
        frame = Frame(Scope(), outer, "VALUES")
        rows = [[self.exprs.value(item, frame) for item in _row_items(row)] for row in node.expressions]
        if any(len(row) != len(rows[0]) for row in rows):
            raise KalamError("42601", "VALUES lists must all be the same length", position=place_of(node))
        columns, kinds, unknown = [], [], []
        for place, parts in enumerate(zip(*rows, strict=True)):
            target = None if targets is None or place >= len(targets) else targets[place]
            undecided = all(part.unknown for part in parts)
            if undecided and target is not None:
                parts = tuple(settle(part, plain(target), self.params) for part in parts)
            made, of = self.exprs.united(list(parts), "VALUES")
            columns.append(made)
            kinds.append(of)
            unknown.append(undecided)
        body = ", ".join("(" + ", ".join(part.sql for part in row) + ")" for row in zip(*columns, strict=True))
        outs = ", ".join(f"o{place}" for place in range(1, len(kinds) + 1))
        cast = ", ".join(f"CAST(o{place} AS {of.duck}) AS o{place}" for place, of in enumerate(kinds, 1))
        made_output = Output(f"SELECT {cast} FROM (VALUES {body}) v({outs})",
                             [f"column{place}" for place in range(1, len(kinds) + 1)], kinds, unknown)
        return self._ordered(made_output, node, outer)

    # ---------- SELECT ----------
    def _select(self, node: exp.Select, outer: Frame | None, targets: Sequence[Kind | None] | None, *,
                top: bool) -> Output:
        self._refuse_parts(node)
        scope = Scope()
        frame = Frame(scope, outer)
        source = self._from(node, scope, outer)
        for window in node.args.get("windows") or []:
            frame.named_windows[identifier(window.this)] = window
        where = self._where(node, scope, frame)
        items, names = self._expanded(node, scope)
        grouped, groups = self._group(node, scope, frame, items, names)
        outputs, unknown = self._items(items, frame, targets, grouped=grouped)
        having = ""
        if node.args.get("having") is not None:
            frame.clause, frame.aggregates, frame.windows, frame.series = "HAVING", True, False, False
            having = f" HAVING {self.exprs.condition(node.args['having'].this, frame, 'HAVING')}"
        qualify = ""
        if node.args.get("qualify") is not None:
            frame.clause, frame.aggregates, frame.windows, frame.series = "QUALIFY", True, True, False
            qualify = f" QUALIFY {self.exprs.condition(node.args['qualify'].this, frame, 'QUALIFY')}"
        head, order, wrap = self._distinct_and_order(node, frame, items, outputs, names)
        shown = [_final(each) for each in outputs] if top and not wrap else outputs
        made = Output("", names, [each.kind for each in shown], unknown)
        signed = order != "" and head.startswith("DISTINCT ON") and any(each.kind.name == "float4" for each in shown)
        parts = [_signed(each) for each in shown] if signed else [each.sql for each in shown]
        listed = ", ".join(f"{sql} AS o{place}" for place, sql in enumerate(parts, 1))
        made.sql = f"SELECT {head}{listed}{source}{where}{groups}{having}{qualify}{order}"
        if wrap:
            return self._ordered(made, node, outer)
        made.sql += self._limits(node, outer)
        if signed:
            back = ", ".join(f"CAST(d.o{place} AS {each.kind.duck}) AS o{place}" if each.kind.name == "float4" else
                             f"d.o{place} AS o{place}" for place, each in enumerate(shown, 1))
            made.sql = f"SELECT {back} FROM ({made.sql}) d"
        return made

    def _refuse_parts(self, node: exp.Select) -> None:
        for part, value in node.args.items():
            if value and part not in _SELECT_PARTS:
                raise not_supported(f"{part.strip('_').upper()}", value[0] if isinstance(value, list) else
                                    value if isinstance(value, exp.Expr) else node)
        for part in ("into", "hint", "kind", "laterals", "operation_modifiers"):
            if node.args.get(part):
                raise KalamError("0A000", f"{part.upper()} is not supported")
        if node.args.get("locks"):
            raise KalamError("0A000", "FOR UPDATE and FOR SHARE work in the outermost SELECT only")
        if not node.expressions:
            raise not_supported("SELECT without columns", node)

    def _where(self, node: exp.Select, scope: Scope, frame: Frame) -> str:
        where = node.args.get("where")
        if where is None:
            return ""
        frame.clause = "WHERE"
        kept = []
        for part in conjuncts(where.this):
            if not self._push(part, scope):
                kept.append(self.exprs.condition(part, frame, "WHERE"))
        return f" WHERE {junction('AND', kept)}" if kept else ""

    def _push(self, part: exp.Expr, scope: Scope) -> bool:
        """Leave a condition to the store; it then is nobody else's."""
        if not any(part.find_all(exp.Column)):
            return False
        for source in scope.filtered:
            if source.table is None or source.given is not None:
                continue

            def owns(column: exp.Column, source: Source = source) -> bool:
                entry = self._find(column, scope)
                return entry is not None and entry.owner is source and entry.name == identifier(column.this)

            try:
                condition = Binder(source.table, self.params, {source.alias or ""}, owns=owns).condition(part)
            except NotSimple:
                continue
            source.condition = conjunction([condition] if source.condition is None else [source.condition, condition])
            return True
        return False

    # ---------- the select list ----------
    def _expanded(self, node: exp.Select, scope: Scope) -> tuple[list[exp.Expr | Entry], list[str]]:
        """The items with stars written out, and their names."""
        items: list[exp.Expr | Entry] = []
        names: list[str] = []
        for item in node.expressions:
            inner = item.this if isinstance(item, exp.Alias) else item
            if isinstance(inner, exp.Star) or (isinstance(inner, exp.Column) and isinstance(inner.this, exp.Star)):
                star = inner if isinstance(inner, exp.Star) else inner.this
                if any(value for value in star.args.values()) or inner is not item:
                    raise KalamError("42601", "syntax error at or near \"*\"", position=place_of(item),
                                     hint="A star takes no modifiers.")
                entries = self._star(inner, scope)
                items += entries
                names += [entry.name for entry in entries]
                continue
            items.append(inner)
            names.append(identifier(item.args["alias"]) if isinstance(item, exp.Alias) else output_name(inner))
        return items, names

    def _star(self, node: exp.Expr, scope: Scope) -> list[Entry]:
        if isinstance(node, exp.Column):
            source = self._source(node, scope)
            if source is None:
                raise KalamError("42P01", f'missing FROM-clause entry for table "{identifier(node.args["table"])}"',
                                 position=place_of(node))
            return [entry for entry in source.entries if not entry.hidden]
        if not scope.sources:
            raise KalamError("42601", "SELECT * with no tables specified is not valid", position=place_of(node))
        return list(scope.entries)

    def _items(self, items: Sequence[exp.Expr | Entry], frame: Frame, targets: Sequence[Kind | None] | None, *,
               grouped: bool) -> tuple[list[Typed], list[bool]]:
        frame.clause, frame.aggregates, frame.windows, frame.series = "SELECT", True, True, True
        frame.grouped = grouped
        outputs, unknown = [], []
        for place, item in enumerate(items):
            typed = self._entry_value(item, frame) if isinstance(item, Entry) else self.exprs.value(item, frame)
            unknown.append(typed.unknown)
            if typed.unknown:
                target = targets[place] if targets is not None and place < len(targets) else None
                typed = settled(typed, self.params) if target is None else settle(typed, plain(target), self.params)
            outputs.append(typed)
        return outputs, unknown

    def _entry_value(self, entry: Entry, frame: Frame) -> Typed:
        node = exp.column(exp.to_identifier(entry.name, quoted=True))
        return self._checked(entry, node, frame)

    # ---------- GROUP BY ----------
    def _group(self, node: exp.Select, scope: Scope, frame: Frame, items: Sequence[exp.Expr | Entry],
               names: Sequence[str]) -> tuple[bool, str]:
        group = node.args.get("group")
        parts = [*(item for item in items if not isinstance(item, Entry))]
        for extra in ("having", "qualify", "order"):
            if node.args.get(extra) is not None:
                parts.append(node.args[extra])
        if group is None:
            return node.args.get("having") is not None or any(map(has_aggregate, parts)), ""
        for part, value in group.args.items():
            if value and part != "expressions":
                raise not_supported(f"GROUP BY {part.replace('_', ' ').upper()}", node)
        frame.clause, frame.aggregates, frame.windows, frame.series = "GROUP BY", False, False, False
        sets = has_sets(group.expressions)

        def key(item: exp.Expr) -> str:
            return self._group_key(item, scope, frame, items, names, sets=sets)

        found = grouping_sets(group.expressions, key, distinct=group.args.get("all") is False)
        if sets:
            return True, f" GROUP BY GROUPING SETS ({', '.join('(' + ', '.join(keys) + ')' for keys in found)})"
        self._whole_keys(scope)
        return True, " GROUP BY " + ", ".join(found[0]) if found[0] else ""

    def _group_key(self, item: exp.Expr, scope: Scope, frame: Frame, items: Sequence[exp.Expr | Entry],
                   names: Sequence[str], *, sets: bool) -> str:
        """What is grouped by. `sets`: where a set has it not, it is NULL."""
        target: exp.Expr | Entry = item
        if isinstance(item, exp.Literal) and not item.is_string:
            if not item.this.isdecimal() or not 1 <= int(item.this) <= len(items):
                raise KalamError("42P10", f"GROUP BY position {item.this} is not in select list",
                                 position=place_of(item))
            target = items[int(item.this) - 1]
        elif isinstance(item, exp.Column) and item.args.get("table") is None and self._find(item, scope) is None:
            name = identifier(item.this)
            if name in names:
                target = items[names.index(name)]
        if isinstance(target, exp.Expr) and has_aggregate(target):
            raise KalamError("42803", "aggregate functions are not allowed in GROUP BY", position=place_of(item))
        if isinstance(target, exp.Expr) and (known := frame.groups.get(key_of(target))) is not None:
            return frame.marks[known.sql]  # of another set, too
        entry = target if isinstance(target, Entry) else (
            self._find(target, scope) if isinstance(target, exp.Column) else None)
        typed = entry.get() if entry is not None else settled(
            self.exprs.value(target, frame) if isinstance(target, exp.Expr) else target.get(), self.params)
        key = self.exprs.sort_key(typed, item, equality=True)
        if key == typed.sql:
            shown = Typed(typed.sql, typed.kind, typed.simple)
        else:
            any_ = f"any_value({typed.sql})"
            shown = Typed(f"CASE WHEN grouping({key}) = 0 THEN {any_} END" if sets else any_, typed.kind)
        frame.marks[shown.sql] = key
        if entry is not None:
            scope.keys[id(entry)] = shown
        elif isinstance(target, exp.Expr) and key_of(target):
            frame.groups[key_of(target)] = shown
        return key

    def _whole_keys(self, scope: Scope) -> None:
        """A table grouped by its whole key has one row a group."""
        for source in scope.sources:
            if source.table is not None and source.table.key and source.table.kind == "shared":
                names = {source.table.columns[place].name for place in source.table.key}
                held = {entry.name for entry in source.entries if id(entry) in scope.keys}
                if names <= held:
                    scope.grouped_sources.add(source.number)

    # ---------- DISTINCT and ORDER BY ----------
    def _distinct_and_order(self, node: exp.Select, frame: Frame, items: Sequence[exp.Expr | Entry],
                            outputs: Sequence[Typed], names: Sequence[str]) -> tuple[str, str, bool]:
        """What stands after SELECT, ORDER BY, and whether ORDER BY and LIMIT go around the query instead."""
        distinct, order = node.args.get("distinct"), node.args.get("order")
        series = any("unnest(" in each.sql for each in outputs)
        if distinct is not None and distinct.args.get("on") is None:
            head = "DISTINCT "
            keys = [self.exprs.sort_key(each, equality=True) for each in outputs]
            if any(key != each.sql for key, each in zip(keys, outputs, strict=True)):
                head = f"DISTINCT ON ({', '.join(keys)}) "
            if order is not None:
                for item in order.expressions:
                    if self._order_place(item.this, items, names) is None:
                        raise KalamError("42P10", "for SELECT DISTINCT, ORDER BY expressions must appear in select "
                                                  "list", position=place_of(item))
                self._name_order(node, items, names)
            return head, "", True
        head = ""
        frame.clause, frame.aggregates, frame.windows, frame.series = "ORDER BY", True, True, False
        if distinct is not None:
            frame.clause = "DISTINCT ON"
            on = distinct.args["on"]
            parts = on.expressions if isinstance(on, exp.Tuple) else [on]
            head = f"DISTINCT ON ({', '.join(self._key(part, frame, items, outputs, names) for part in parts)}) "
        if order is None:
            return head, "", False
        if series and all(self._order_place(item.this, items, names) is not None for item in order.expressions):
            self._name_order(node, items, names)
            return head, "", True
        keys = [self._key(item.this, frame, items, outputs, names) + direction(item) for item in order.expressions]
        return head, " ORDER BY " + ", ".join(keys), False

    def _order_place(self, node: exp.Expr, items: Sequence[exp.Expr | Entry], names: Sequence[str]) -> int | None:
        place = self._output_place(node, names)
        if place is None and key_of(node):
            texts = [None if isinstance(item, Entry) else key_of(item) for item in items]
            place = texts.index(key_of(node)) if key_of(node) in texts else None
        return place

    def _name_order(self, node: exp.Select, items: Sequence[exp.Expr | Entry], names: Sequence[str]) -> None:
        for item in node.args["order"].expressions:
            place = self._order_place(item.this, items, names)
            assert place is not None
            item.set("this", exp.Literal.number(place + 1))

    def _key(self, node: exp.Expr, frame: Frame, items: Sequence[exp.Expr | Entry], outputs: Sequence[Typed],
             names: Sequence[str]) -> str:
        place = self._output_place(node, names)
        made = self.exprs.value(node, frame) if place is None else outputs[place]
        distinct = frame.clause.startswith("DISTINCT")
        if made.kind.name in RAW and made.exact is not None and not distinct:
            return made.exact  # storage order is PostgreSQL's
        key = self.exprs.sort_key(made, node)
        if place is None or distinct or made.kind.fixed or key != made.sql:
            return key
        return f"o{place + 1}"

    # ---------- FROM ----------
    def _from(self, node: exp.Select, scope: Scope, outer: Frame | None) -> str:
        clause = node.args.get("from_")
        if clause is None:
            return ""
        sql, entries = self._item(clause.this, scope, outer, lateral=None)
        joins = list(node.args.get("joins") or [])
        sql, entries = self._joins(joins, sql, entries, scope, outer)
        while joins:  # a comma binds less than JOIN
            filtered, scope.filtered = scope.filtered, []
            right, others = self._item(joins.pop(0).this, scope, outer, lateral=entries)
            right, others = self._joins(joins, right, others, scope, outer, beside=entries)
            scope.filtered = filtered + scope.filtered
            sql, entries = f"{sql} CROSS JOIN {right}", [*entries, *others]
        scope.entries = entries
        return f" FROM {sql}"

    def _joins(self, joins: list[exp.Join], sql: str, entries: list[Entry], scope: Scope, outer: Frame | None,
               beside: Sequence[Entry] = ()) -> tuple[str, list[Entry]]:
        """What the first of the joins make, up to a comma; they are taken from the list."""
        joined = False
        while joins and not _is_comma(joins[0]):
            sql, entries = self._join(joins.pop(0), sql, entries, scope, outer, beside)
            joined = True
        return (f"({sql})" if joined and beside else sql), entries

    def _item(self, node: exp.Expr, scope: Scope, outer: Frame | None, *, lateral: list[Entry] | None
              ) -> tuple[str, list[Entry]]:
        joins = node.args.get("joins") or []
        outside, scope.filtered = scope.filtered, []
        sql, entries = self._single(node, scope, outer, lateral)
        for join in joins:
            sql, entries = self._join(join, sql, entries, scope, outer)
        scope.filtered = outside + scope.filtered
        return (f"({sql})" if joins else sql), entries

    def _single(self, node: exp.Expr, scope: Scope, outer: Frame | None, lateral: list[Entry] | None
                ) -> tuple[str, list[Entry]]:
        match node:
            case exp.Table() if isinstance(node.this, exp.Identifier):
                return self._named(node, scope)
            case exp.Table() if isinstance(node.this, exp.Anonymous):
                return self._series(node, [node.this], scope, outer, lateral)
            case exp.Unnest():
                if node.args.get("offset"):
                    raise not_supported("WITH ORDINALITY", node)
                call = exp.Anonymous(this="unnest", expressions=node.expressions)
                return self._series(node, [call], scope, outer, lateral)
            case exp.Subquery() if _is_join(node.this):
                if node.args.get("alias") is not None:
                    raise not_supported("an alias of a join", node)
                return self._item(node.this, scope, outer, lateral=lateral)
            case exp.Subquery() | exp.Values():
                return self._derived(node, node, scope, outer)
            case exp.Lateral():
                inner = node.this
                if isinstance(inner, exp.Subquery):
                    return self._derived(node, inner, scope, self._beside(scope, outer, lateral))
                if isinstance(inner, exp.Anonymous | exp.Unnest):
                    call = inner if isinstance(inner, exp.Anonymous) else exp.Anonymous(
                        this="unnest", expressions=inner.expressions)
                    return self._series(node, [call], scope, outer, lateral)
        raise not_supported("this in FROM", node, "FROM takes tables, subqueries, VALUES, generate_series and unnest.")

    def _beside(self, scope: Scope, outer: Frame | None, lateral: list[Entry] | None) -> Frame:
        """The frame of LATERAL: what stands to its left is in sight."""
        return Frame(Scope(list(lateral or []), list(scope.sources)), outer, "FROM")

    def _add(self, scope: Scope, alias: str | None, node: exp.Expr) -> Source:
        self._count += 1
        if alias is not None and any(source.alias == alias for source in scope.sources):
            raise KalamError("42712", f'table name "{alias}" specified more than once', position=place_of(node))
        source = Source(self._count, alias, node=node)
        scope.sources.append(source)
        scope.filtered.append(source)
        return source

    def _named(self, node: exp.Table, scope: Scope) -> tuple[str, list[Entry]]:
        for part, value in node.args.items():
            if value and part not in ("this", "db", "catalog", "alias", "joins", "only"):
                raise not_supported(f"{part.upper()} of a table", node)
        alias, columns = _alias(node)
        found = self._common(node)
        if found is not None:
            source = self._add(scope, alias or identifier(node.this), node)
            self._plain_entries(source, _renamed(found.names, columns, source.alias or "", node), found.kinds)
            return f"{found.name} AS t{source.number}", list(source.entries)
        given = node.meta.get("kalam_given")
        from kalamdb.sql.read import table_name

        table = given[1] if given is not None else access.resolve(
            self.catalog, table_name(node), self.path, position_of(node))
        source = self._add(scope, alias or table.name, node)
        source.table, source.given = table, None if given is None else given[0]
        self._table_entries(source, columns)
        self.tables.append(source)
        return f"k{source.number} AS t{source.number}", [entry for entry in source.entries if not entry.hidden]

    def _common(self, node: exp.Table) -> Common | None:
        if node.args.get("db") is not None or node.meta.get("kalam_given") is not None:
            return None
        name = identifier(node.this)
        return next((scope[name] for scope in reversed(self._with) if name in scope), None)

    def _plain_entries(self, source: Source, names: Sequence[str], kinds: Sequence[Kind]) -> None:
        def getter(place: int, of: Kind) -> Callable[[], Typed]:
            return lambda: Typed(f"t{source.number}.o{place}", of, True)

        source.entries = [Entry(name, getter(place, of), source)
                          for place, (name, of) in enumerate(zip(names, kinds, strict=True), 1)]

    def _table_entries(self, source: Source, renamed: Sequence[str]) -> None:
        table = source.table
        assert table is not None
        names = _renamed([column.name for column in table.columns], list(renamed), table.name, source.node)

        def getter(position: int) -> Callable[[], Typed]:
            return lambda: stored(source, position, wide=self.wide)

        source.entries = [Entry(name, getter(place), source) for place, name in enumerate(names)]
        source.entries.append(Entry("_seq", getter(SEQ), source, True))
        if table.kind != "shared":
            source.entries.append(Entry("_userid", getter(USERID), source, True))
        if source.given is not None:
            number = Typed(f"t{source.number}.\"{ROW_NUMBER}\"", INT8, True)
            source.entries.append(Entry(ROW_NUMBER, lambda: number, source, True))

    def _derived(self, node: exp.Expr, inner: exp.Expr, scope: Scope, outer: Frame | None) -> tuple[str, list[Entry]]:
        alias, columns = _alias(node)
        if isinstance(inner, exp.Values):
            query: exp.Expr = exp.Values(expressions=inner.expressions)
        else:
            query = inner.this if isinstance(inner, exp.Subquery) and not inner.args.get("order") else inner
        made = self.query(query, outer)
        source = self._add(scope, alias, node)
        self._plain_entries(source, _renamed(made.names, columns, alias or "unnamed", node), made.kinds)
        lateral = "LATERAL " if isinstance(node, exp.Lateral) else ""
        return f"{lateral}({made.sql}) AS t{source.number}", list(source.entries)

    def _series(self, node: exp.Expr, calls: Sequence[exp.Expr], scope: Scope, outer: Frame | None,
                lateral: list[Entry] | None) -> tuple[str, list[Entry]]:
        call = calls[0]
        assert isinstance(call, exp.Anonymous)
        name = function_name(call)
        if name not in ("generate_series", "unnest"):
            raise not_supported(f"{name}() in FROM", node,
                                "FROM takes tables, subqueries, VALUES, generate_series and unnest.")
        sql, of = self.exprs.series(call, self._beside(scope, outer, lateral))
        alias, columns = _alias(node)
        source = self._add(scope, alias or name, node)
        self._plain_entries(source, columns[:1] or [alias or name], [of])
        return f"{'LATERAL ' if lateral else ''}(SELECT unnest({sql}) AS o1) AS t{source.number}", list(source.entries)

    # ---------- joins ----------
    def _join(self, join: exp.Join, left_sql: str, left: list[Entry], scope: Scope, outer: Frame | None,
              beside: Sequence[Entry] = ()) -> tuple[str, list[Entry]]:
        side, kind_, method = (str(join.args.get(part) or "").upper() for part in ("side", "kind", "method"))
        if method not in ("", "NATURAL") or kind_ not in ("", "INNER", "CROSS", "OUTER") or side not in (
                "", "LEFT", "RIGHT", "FULL"):
            raise not_supported(f"{method} {side} {kind_} JOIN".replace("  ", " ").strip(), join)
        filtered, scope.filtered = scope.filtered, []
        right_sql, right = self._item(join.this, scope, outer, lateral=[*beside, *left])
        scope.filtered = _still_filtered(side, filtered, scope.filtered)
        using = [identifier(item) for item in join.args.get("using") or []]
        if method == "NATURAL":
            using = [entry.name for entry in left if any(entry.name == other.name for other in right)]
        on = join.args.get("on")
        word = f"{side} JOIN" if side else "JOIN"
        if using:
            return self._join_using(word, left_sql, left, right_sql, right, using, join, side)
        entries = [*left, *right]
        if on is None:
            if side or kind_ == "INNER":
                if method != "NATURAL":
                    raise KalamError("42601", "syntax error: JOIN needs ON or USING", position=place_of(join))
                return f"{left_sql} {word} {right_sql} ON TRUE", entries
            return f"{left_sql} CROSS JOIN {right_sql}", entries
        frame = Frame(Scope(entries, list(scope.sources)), outer, "JOIN conditions")
        condition = self.exprs.condition(on, frame, "JOIN/ON")
        return f"{left_sql} {word} {right_sql} ON {condition}", entries

    def _join_using(self, word: str, left_sql: str, left: list[Entry], right_sql: str, right: list[Entry],
                    using: list[str], join: exp.Join, side: str) -> tuple[str, list[Entry]]:
        merged, conditions = [], []
        for name in using:
            one, two = _one(left, name, "left", join), _one(right, name, "right", join)
            conditions.append(self.exprs.compare("=", one.get(), two.get(), join).sql)
            if side == "FULL":
                made, of = self.exprs.united([one.get(), two.get()], "JOIN/USING")
                both = Typed(f"coalesce({made[0].sql}, {made[1].sql})", of)
                merged.append(Entry(name, _constant(both), one.owner))
            else:
                merged.append(two if side == "RIGHT" else one)
        rest = [entry for entry in [*left, *right] if entry.name not in using]
        return f"{left_sql} {word} {right_sql} ON {' AND '.join(conditions)}", [*merged, *rest]


# ---------- helpers ----------
def _is_comma(join: exp.Join) -> bool:
    return not any(join.args.get(part) for part in ("side", "kind", "method", "on", "using"))


def _still_filtered(side: str, left: list[Source], right: list[Source]) -> list[Source]:
    """Whose rows WHERE may filter before the join, of those of its sides: not those that it fills up with NULLs."""
    return {"": left + right, "LEFT": left, "RIGHT": right, "FULL": []}[side]


def _constant(typed: Typed) -> Callable[[], Typed]:
    return lambda: typed


def _one(entries: Sequence[Entry], name: str, side: str, node: exp.Expr) -> Entry:
    found = [entry for entry in entries if entry.name == name]
    if not found:
        raise KalamError("42703", f'column "{name}" specified in USING clause does not exist in {side} table',
                         position=place_of(node))
    if len(found) > 1:
        raise KalamError("42702", f'common column name "{name}" appears more than once in {side} table',
                         position=place_of(node))
    return found[0]


def stored(source: Source, position: int, *, wide: bool) -> Typed:
    """A column of a table of the store, noted as used."""
    table = source.table
    assert table is not None
    if position < 0:
        return _used(source, position, INT8 if position == SEQ else kind("text"))
    column = table.columns[position]
    of = of_column(column.type, column.typmod)
    if of.name in RAW:
        return StoredMoment(source, position, of)
    if of.fixed:
        return Typed(_used(source, position, of).sql, NUMERIC, True) if wide else StoredNumeric(source, position, of)
    return _used(source, position, of)


def _used(source: Source, position: int, of: Kind, *, raw: bool = False) -> Typed:
    name = {SEQ: "c_seq", USERID: "c_userid"}.get(position) or f"c{position + 1}{'r' if raw else ''}"
    source.fields[position, raw] = name
    return Typed(f"t{source.number}.{name}", of, True)


class _Stored(Typed):
    """A column with two forms: ``sql`` to compute with it, ``exact`` to hand it on."""

    def __init__(self, source: Source, position: int, of: Kind) -> None:
        self._source, self._position = source, position
        self.kind, self.simple, self.literal, self.param, self.place = of, True, None, None, None


class StoredNumeric(_Stored):
    """A numeric(p,s) column: DECIMAL, and its text."""

    @property
    def sql(self) -> str:  # type: ignore[override]
        return f"CAST({self.exact} AS {self.kind.duck})"

    @property
    def exact(self) -> str:  # type: ignore[override]
        return _used(self._source, self._position, self.kind).sql


class StoredMoment(_Stored):
    """A column of a type of RAW: the query engine's value, and the storage value."""

    @property
    def sql(self) -> str:  # type: ignore[override]
        return _used(self._source, self._position, self.kind).sql

    @property
    def exact(self) -> str:  # type: ignore[override]
        return _used(self._source, self._position, self.kind, raw=True).sql


def _signed(typed: Typed) -> str:
    """An output of DISTINCT ON with an order: where the query engine picks a row by that, it makes 0 of a FLOAT's -0,
    and not of a DOUBLE's."""
    return f"CAST({typed.sql} AS DOUBLE)" if typed.kind.name == "float4" else typed.sql


def _final(typed: Typed) -> Typed:
    """A column of the statement's result, in a form that takes the least to send."""
    of = typed.kind
    if of.is_array and of.element.name in WRITTEN:
        return Typed(f"list_transform({typed.sql}, lambda kalam_e: kalam_write_{of.element.name}(kalam_e))", of)
    if of.name == "numeric" and (of.fixed or typed.exact is not None):
        return Typed(typed.exact or f"CAST({typed.sql} AS VARCHAR)", Kind("numeric", typmod=of.typmod))
    if of.name not in RAW:
        return typed
    if typed.exact is not None:
        return Typed(typed.exact, of)
    return Typed(f"unhex(replace(CAST({typed.sql} AS VARCHAR), '-', ''))", of) if of.name == "uuid" else typed


def _is_join(node: exp.Expr) -> bool:
    """Is it, in parentheses, a join or a table rather than a query?"""
    return isinstance(node, exp.Table) or (
        isinstance(node, exp.Subquery) and (bool(node.args.get("joins")) or
                                            (node.args.get("alias") is None and _is_join(node.this))))


def _row_items(row: exp.Expr) -> list[exp.Expr]:
    return row.expressions if isinstance(row, exp.Tuple) else [row.unnest()]


def _alias(node: exp.Expr) -> tuple[str | None, list[str]]:
    alias = node.args.get("alias")
    if alias is None:
        return None, []
    name = identifier(alias.this) if alias.this is not None else None
    return name, [identifier(item) for item in alias.args.get("columns") or []]


def _renamed(names: Sequence[str], columns: Sequence[str], what: str, node: exp.Expr | None) -> list[str]:
    if len(columns) > len(names):
        raise KalamError("42P10", f'table "{what}" has {len(names)} columns available but {len(columns)} columns '
                                  "specified", position=None if node is None else place_of(node))
    return [*columns, *names[len(columns) :]]


def _check_width(one: Output, two: Output, node: exp.Expr) -> None:
    if len(one.kinds) != len(two.kinds):
        word = _SETS[type(node)]
        raise KalamError("42601", f"each {word} query must have the same number of columns",
                         position=place_of(node.args["expression"]))


def _as(made: Output, kinds: Sequence[Kind], translator: SelectTranslator) -> Output:
    """The same rows with other types."""
    if list(made.kinds) == list(kinds):
        return made
    columns = []
    for place, (one, two) in enumerate(zip(made.kinds, kinds, strict=True), 1):
        typed = Typed(f"q.o{place}", one)
        if one != two:
            typed = translator.exprs.cast(typed, two)
            if two.name == "numeric" and not two.fixed and typed.kind.fixed:
                typed = Typed(f"CAST({typed.sql} AS VARCHAR)", two)
        columns.append(f"{typed.sql} AS o{place}")
    return Output(f"SELECT {', '.join(columns)} FROM ({made.sql}) q", made.names, list(kinds), made.unknown)


def _mentions(node: exp.Expr, name: str) -> bool:
    return any(isinstance(table.this, exp.Identifier) and table.args.get("db") is None
               and identifier(table.this) == name for table in node.find_all(exp.Table))


def has_aggregate(node: exp.Expr) -> bool:
    """Does an aggregate of this very query stand in it?"""
    if isinstance(node, exp.Query):
        return False
    if isinstance(node, exp.Window):
        inner = node.this.this if isinstance(node.this, exp.Filter) else node.this
        parts = [*inner.iter_expressions(), *(node.args.get("partition_by") or [])]
        if node.args.get("order") is not None:
            parts.append(node.args["order"])
        return any(map(has_aggregate, parts))
    if isinstance(node, exp.Anonymous) and function_name(node) in AGGREGATES:
        return True
    return any(map(has_aggregate, node.iter_expressions()))


def conjuncts(node: exp.Expr) -> Iterator[exp.Expr]:
    node = node.unnest()
    if isinstance(node, exp.And):
        for part in node.flatten():
            yield from conjuncts(part)
    else:
        yield node


__all__ = ["BOOL", "INT4", "ROW_NUMBER", "SelectTranslator", "conjuncts", "has_aggregate"]
