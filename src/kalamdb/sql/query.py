"""Plans for the query engine: which tables feed it, what is pushed down to their scans, what its columns are called.

A plan replaces every table of the statement by a relation of its own (``k0``, ``k1`` …) that holds just the columns
the statement mentions and the rows that the table's simple conditions leave. Conditions stay in the query as well, so
pushing down may only ever narrow. Parameters and session facts are marked by NUL characters, which no statement text
can contain, and filled in as literals for each execution.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
from sqlglot import exp

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.sql import access, native
from kalamdb.sql.bind import Binder, NotSimple, Params, identifier, parameter_index, position_of
from kalamdb.sql.cursors import ThreadSource
from kalamdb.sql.duck import QueryEngine, QueryResult
from kalamdb.sql.predicate import SEQ, USERID, Condition, conjunction
from kalamdb.sql.read import Filter, picker, qualifiers, table_name
from kalamdb.sql.run import Run, answer
from kalamdb.txn.api import CatalogView, ScanCursor, TableDef
from kalamdb.types import PgType

SCAN_ROWS = 10_000
#: the column that says which of the given rows a result row is for
ROW_NUMBER = "__kalam_row"
_MARK = re.compile("\0([a-z]+)(\\d*)\0")
#: functions that sqlglot has no class for and that mean the same in PostgreSQL and DuckDB
_FUNCTIONS = frozenset({
    "btrim", "ltrim", "rtrim", "lpad", "rpad", "md5", "reverse", "repeat", "strpos", "starts_with", "ascii", "chr",
    "bit_length", "octet_length", "cbrt", "degrees", "radians", "pi", "factorial", "gcd", "lcm", "age", "isfinite",
    "cot", "acos", "asin", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "every", "regr_slope",
    "regr_intercept", "regr_count", "regr_r2", "percent_rank", "cume_dist", "bit_and", "bit_or", "bit_xor",
    "array_length", "cardinality", "array_position", "json_array_length", "to_hex", "make_date", "make_timestamp",
    "concat_ws", "translate", "split_part", "initcap", "trunc", "div", "mod", "random", "mode", "overlay",
})
#: what a session knows of itself: name in SQL → mark
_FACTS: dict[str, str] = {
    "version": "version", "current_database": "database", "current_catalog": "database", "current_schema": "schema",
    "pg_backend_pid": "pid", "snowflake_id": "snowflake", "kalam_user_id": "tenant",
}
_TABLE_FUNCTIONS = (exp.GenerateSeries, exp.ExplodingGenerateSeries)


@dataclass(frozen=True, slots=True)
class Feed:
    """One table that a query reads."""

    relation: str
    table: TableDef
    positions: tuple[int, ...]
    as_text: frozenset[int]  # numeric columns that are only passed through
    filter: Filter
    given: str | None = None  # "target" or "excluded": rows that the statement has at hand, with their numbers


def column_name(table: TableDef, position: int) -> str:
    return {SEQ: "_seq", USERID: "_userid"}.get(position) or table.columns[position].name


def column_type(table: TableDef, position: int) -> tuple[PgType, int]:
    if position < 0:
        return types.by_name("int8" if position == SEQ else "text"), -1
    column = table.columns[position]
    return column.type, column.typmod


def to_table(table: TableDef, positions: Sequence[int], as_text: frozenset[int], rows: Sequence[Sequence[Any]]
             ) -> pa.Table:
    """Rows of the store (the columns at ``positions``) as a relation."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(positions)
    arrays = []
    for place, position in enumerate(positions):
        type_, typmod = column_type(table, position)
        arrays.append(native.to_array(type_, typmod, columns[place], as_text=position in as_text))
    return pa.Table.from_arrays(arrays, [column_name(table, position) for position in positions])


class Cancel:
    """What an interrupt stops while a query's inputs are gathered and while it runs."""

    def __init__(self) -> None:
        self.scan: ScanCursor | None = None
        self.result: QueryResult | None = None
        self.asked = False

    def interrupt(self) -> None:
        self.asked = True
        if self.scan is not None:
            self.scan.interrupt()
        if self.result is not None:
            self.result.interrupt()

    def check(self) -> None:
        if self.asked:
            raise KalamError("57014", "canceling statement due to user request")


@dataclass(slots=True)
class QueryPlan:
    """A statement for the query engine. ``tables`` maps names as resolved, to notice a changed catalog."""

    sql: str
    feeds: tuple[Feed, ...]
    columns: tuple[Column, ...]
    params: Params
    writes: bool = False
    wire: bool = False

    def start(self, run: Run) -> Result | Awaitable[Result]:
        return self._answer(run)

    async def _answer(self, run: Run) -> Result:
        return await answer(run, self.source(run), self.columns)

    def text(self, run: Run) -> str:
        return fill(self.sql, run, self.params.final())

    def source(self, run: Run, given: Sequence[Row] = (), excluded: Sequence[Row] = ()) -> ThreadSource:
        """The query as a source of rows. Opens the scans now, in the event loop, reads them in the worker.

        ``given`` and ``excluded`` are whole rows for the feeds that take such.
        """
        cancel = Cancel()
        scans: list[tuple[Feed, ScanCursor | None]] = []
        for feed in self.feeds:
            if feed.given is not None:
                continue
            tenant = access.read_tenant(run.session.account, feed.table, run.tenant)
            scan = feed.filter.scan(feed.table, tenant, feed.positions, run.params)
            scans.append((feed, None if scan is None else run.transaction.scan(run.snapshot, scan)))
        text = self.text(run)
        result = QueryResult(run.queries.open())
        kinds = [column.type for column in self.columns]
        started = False

        def fetch(count: int) -> list[Any]:
            nonlocal started
            if not started:
                started = True
                relations = _gather(scans, cancel)
                for feed in self.feeds:
                    if feed.given is not None:
                        relations[feed.relation] = _numbered(feed, given if feed.given == "target" else excluded)
                cancel.result = result
                cancel.check()
                result.start(text, relations, kinds)
            return result.fetch(count)

        def close() -> None:
            for _, scan in scans:
                if scan is not None:
                    scan.close()
            result.close()

        return ThreadSource(run.workers, run.session, fetch, cancel.interrupt, close)


def _gather(scans: list[tuple[Feed, ScanCursor | None]], cancel: Cancel) -> dict[str, pa.Table]:
    relations = {}
    for feed, scan in scans:
        parts = []
        while scan is not None:
            cancel.scan = scan
            cancel.check()
            rows = scan.fetch(SCAN_ROWS)
            if not rows:
                scan.close()
                break
            parts.append(rows)
        relations[feed.relation] = _relation(feed, parts)
    cancel.scan = None
    return relations


def _numbered(feed: Feed, rows: Sequence[Row]) -> pa.Table:
    """Whole rows as a relation, with the number of each."""
    pick = picker(feed.positions)
    table = to_table(feed.table, feed.positions, feed.as_text, [pick(row) for row in rows])
    return table.append_column(ROW_NUMBER, pa.array(range(len(rows)), pa.int64()))


def _relation(feed: Feed, parts: list[list[Any]]) -> pa.Table:
    unconstrained = any(
        column_type(feed.table, position)[0].name == "numeric" and position not in feed.as_text
        and native.numeric_type(column_type(feed.table, position)[1]) is None
        for position in feed.positions
    )
    if unconstrained or len(parts) <= 1:  # a decimal's scale is that of all its values
        return to_table(feed.table, feed.positions, feed.as_text, [row for part in parts for row in part])
    return pa.concat_tables([to_table(feed.table, feed.positions, feed.as_text, part) for part in parts])


def fill(sql: str, run: Run, kinds: Sequence[PgType]) -> str:
    """The statement with its parameters and the session's facts as literals."""

    def replace(found: re.Match[str]) -> str:
        what, number = found.groups()
        if what == "p":
            index = int(number)
            return native.literal(kinds[index], run.params[index])
        return fact(what, run)

    return _MARK.sub(replace, sql)


def fact(what: str, run: Run) -> str:
    from kalamdb import __version__

    match what:
        case "version":
            return native.literal(types.TEXT, f"PostgreSQL 16.0 (KalamDB {__version__})")
        case "database":
            return "'kalam'"
        case "schema":
            return native.literal(types.TEXT, run.path[0] if run.path else None)
        case "user":
            return native.literal(types.TEXT, run.session.account.name)
        case "tenant":
            return native.literal(types.TEXT, run.tenant)
        case "pid":
            return f"CAST({run.session.id} AS INTEGER)"
        case _:
            raise KalamError("0A000", f"{what}() cannot be used here",
                             hint="It can be a column's default and a value of INSERT.")


def describe_marks(sql: str, kinds: Sequence[PgType | None]) -> str:
    """The statement with typed NULLs for its parameters."""

    def replace(found: re.Match[str]) -> str:
        what, number = found.groups()
        if what == "p":
            return native.literal(kinds[int(number)], None)
        return "CAST(NULL AS BIGINT)" if what in ("snowflake",) else \
            "CAST(NULL AS INTEGER)" if what == "pid" else "CAST(NULL AS VARCHAR)"

    return _MARK.sub(replace, sql)


# ---------- planning ----------
def given_table(table: TableDef, alias: str, role: str) -> exp.Table:
    """A table in a tree that stands for given rows."""
    node = exp.Table(this=exp.to_identifier(table.name, quoted=True),
                     alias=exp.TableAlias(this=exp.to_identifier(alias, quoted=True)))
    node.meta["kalam_given"] = (role, table)
    return node


def rows_tree(table: TableDef, alias: str, items: Sequence[exp.Expr], where: exp.Expression | None, *,
              excluded: bool = False) -> exp.Select:
    """SELECT row number, items FROM given rows [JOIN excluded rows] WHERE …, as a tree for the planner."""
    number = exp.column(exp.to_identifier(ROW_NUMBER, quoted=True), table=exp.to_identifier(alias, quoted=True))
    tree = exp.Select(expressions=[number, *[item.copy() for item in items]])
    tree.set("from_", exp.From(this=given_table(table, alias, "target")))
    if excluded:
        other = exp.column(exp.to_identifier(ROW_NUMBER, quoted=True), table=exp.to_identifier("excluded"))
        tree.set("joins", [exp.Join(this=given_table(table, "excluded", "excluded"),
                                    on=exp.EQ(this=number.copy(), expression=other))])
    if where is not None:
        tree.set("where", exp.Where(this=where.copy()))
    return tree


class Planner:
    """Rewrites one tree. Use once."""

    def __init__(self, catalog: CatalogView, path: Sequence[str], params: Params, queries: QueryEngine) -> None:
        self.catalog = catalog
        self.path = path
        self.params = params
        self.queries = queries
        self.sources: list[tuple[exp.Table, TableDef]] = []

    def plan(self, tree: exp.Expression) -> QueryPlan:
        original = tree
        tree = tree.copy()
        if any(select.args.get("locks") for select in tree.find_all(exp.Select)):
            raise KalamError("0A000", "FOR UPDATE and FOR SHARE work on plain selections from one table only")
        self._tables(tree)
        names = output_names(original)
        feeds = tuple(self._feed(place, node, table, tree) for place, (node, table) in enumerate(self.sources))
        hidden = self._hidden_stars(tree)
        direct = self._direct_columns(tree)
        rewritten = self._rewrite(tree, hidden)
        sql = generate(rewritten)
        return self._describe(sql, feeds, names, direct)

    # ---------- tables ----------
    def _tables(self, tree: exp.Expression) -> None:
        for node in list(tree.find_all(exp.Table)):
            if isinstance(node.this, exp.Identifier):
                given = node.meta.get("kalam_given")
                if given is not None:
                    self.sources.append((node, given[1]))
                elif not _is_cte(node):
                    name = table_name(node)
                    table = access.resolve(self.catalog, name, self.path, position_of(node))
                    _check_case(table)
                    self.sources.append((node, table))
            elif not isinstance(node.this, _TABLE_FUNCTIONS):
                raise KalamError("0A000", "this function cannot be used in FROM",
                                 hint="FROM takes tables, subqueries, VALUES, generate_series and unnest.")

    def _feed(self, place: int, node: exp.Table, table: TableDef, tree: exp.Expression) -> Feed:
        used, star = _mentioned(tree)
        positions = [position for position, column in enumerate(table.columns) if star or column.name in used]
        if "_seq" in used:
            positions.append(SEQ)
        if "_userid" in used and table.kind != "shared":
            positions.append(USERID)
        if not positions:
            positions = [table.key[0] if table.key else SEQ]
        given = node.meta.get("kalam_given")
        if given is not None:
            return Feed(f"k{place}", table, tuple(positions), frozenset(), Filter.of(table, None), given[0])
        passed = _passed_through(tree, table)
        condition = self._pushed(node, table)
        return Feed(f"k{place}", table, tuple(positions), passed, Filter.of(table, condition))

    # ---------- pushing down ----------
    def _pushed(self, node: exp.Table, table: TableDef) -> Condition | None:
        select = node.find_ancestor(exp.Select)
        if select is None or not _filters_reach(select, node):
            return None
        where = select.args.get("where")
        if where is None:
            return None
        owners = _owners(select, {id(source): found for source, found in self.sources})
        binder = Binder(table, self.params, qualifiers(node, table),
                        owns=lambda column: owners(column) is node)
        kept = []
        for part in _conjuncts(where.this):
            try:
                kept.append(binder.condition(part))
            except NotSimple:
                continue
        return conjunction(kept)

    # ---------- stars and system columns ----------
    def _hidden_stars(self, tree: exp.Expression) -> bool:
        """Do system columns that the statement names stand where a star must not show them?"""
        used, star = _mentioned(tree)
        return star and bool(used & {"_seq", "_userid"})

    def _direct_columns(self, tree: exp.Expression) -> list[tuple[PgType, int] | None]:
        """Types of output columns that are plain columns of a table."""
        select = tree if isinstance(tree, exp.Select) else None
        if select is None:
            return []
        owners = _owners(select, {id(source): found for source, found in self.sources})
        tables = {id(source): found for source, found in self.sources}
        found: list[tuple[PgType, int] | None] = []
        for item in select.expressions:
            inner = item.unalias()
            if isinstance(inner, exp.Star) or (isinstance(inner, exp.Column) and isinstance(inner.this, exp.Star)):
                found += self._star_types(select, inner, tables)
                continue
            owner = owners(inner) if isinstance(inner, exp.Column) else None
            table = tables.get(id(owner))
            position = None if table is None else Binder(table, self.params).position(identifier(inner.this))
            found.append(None if table is None or position is None else column_type(table, position))
        return found

    def _star_types(self, select: exp.Select, star: exp.Expression, tables: Mapping[int, TableDef]
                    ) -> list[tuple[PgType, int] | None]:
        """What a star stands for, where every source in FROM is a table; else nothing is known of what follows."""
        qualifier = identifier(star.args["table"]) if isinstance(star, exp.Column) else None
        found: list[tuple[PgType, int] | None] = []
        for source in _sources(select):
            table = tables.get(id(source))
            if table is None or any(join.args.get("using") for join in select.args.get("joins") or []):
                return [None] * 10_000
            if qualifier is None or qualifier == identifier(_alias(source)):
                found += [(column.type, column.typmod) for column in table.columns]
        return found

    # ---------- rewriting ----------
    def _rewrite(self, tree: exp.Expression, hidden: bool) -> exp.Expression:
        for place, (node, table) in enumerate(self.sources):
            alias = node.args.get("alias")
            if alias is None:
                alias = exp.TableAlias(this=exp.to_identifier(table.name, quoted=True))
            else:
                alias.this.set("quoted", True)
            node.replace(exp.Table(this=exp.to_identifier(f"k{place}", quoted=True), alias=alias))
        return cast(exp.Expression, tree.transform(lambda node: self._node(node, hidden)))

    def _node(self, node: exp.Expr, hidden: bool) -> exp.Expr:
        match node:
            case exp.Identifier() if not node.args.get("quoted"):
                return exp.Identifier(this=node.this.lower(), quoted=True)
            case exp.Parameter():
                index = parameter_index(node)
                self.params.type(index)
                return exp.Var(this=f"\0p{index}\0")
            case exp.Column() if node.args.get("db") is not None:
                node.set("db", None)
                node.set("catalog", None)
            case exp.Star() if hidden and not isinstance(node.parent, exp.Count):
                node.set("except_", None)
                return exp.Var(this="COLUMNS(lambda c: c NOT IN ('_seq', '_userid'))")
            case exp.Cast():
                return _cast(node)
            case exp.Anonymous():
                return _function(node)
            case exp.CurrentUser() | exp.SessionUser():
                return exp.Var(this="\0user\0")
            case exp.CurrentSchema():
                return exp.Var(this="\0schema\0")
            case exp.CurrentDatabase() | exp.CurrentCatalog():
                return exp.Var(this="\0database\0")
            case exp.CurrentVersion():
                return exp.Var(this="\0version\0")
            case exp.CurrentTimestamp():
                return exp.Var(this="now()")
        return node

    # ---------- result ----------
    def _describe(self, sql: str, feeds: tuple[Feed, ...], names: list[str | None],
                  direct: list[tuple[PgType, int] | None]) -> QueryPlan:
        relations = {
            feed.relation: to_table(feed.table, feed.positions, feed.as_text, []) if feed.given is None
            else _numbered(feed, ())
            for feed in feeds
        }
        found_names, found_types = self.queries.describe(describe_marks(sql, self.params.types), relations)
        columns = []
        for place, (name, kind) in enumerate(zip(_merge_names(names, found_names), found_types, strict=True)):
            type_, typmod = native.result_type(kind), -1
            known = direct[place] if place < len(direct) else None
            if known is not None and _agrees(known[0], type_):
                type_, typmod = known
            columns.append(Column(name, type_, typmod))
        return QueryPlan(sql, feeds, tuple(columns), self.params)


def _agrees(column: PgType, result: PgType) -> bool:
    """Is the query's type how the column's travels through the query engine?"""
    if column.name == result.name:
        return True
    travels = {"varchar": "text", "jsonb": "json", "numeric": "text"}
    return travels.get(column.name, "text") == result.name


def _is_cte(node: exp.Table) -> bool:
    """Is the table a name that an enclosing WITH has defined?"""
    if node.args.get("db") is not None:
        return False
    name = identifier(node.this)
    ancestor = node.parent
    inside: exp.CTE | None = None
    while ancestor is not None:
        if isinstance(ancestor, exp.CTE):
            inside = ancestor
        clause = ancestor.args.get("with_")
        if isinstance(clause, exp.With) and _defines(clause, name, inside):
            return True
        ancestor = ancestor.parent
    return False


def _defines(clause: exp.With, name: str, inside: exp.CTE | None) -> bool:
    for cte in clause.expressions:
        if cte is inside and not clause.args.get("recursive"):
            return False
        if identifier(cte.args["alias"].this) == name:
            return True
    return False


def _check_case(table: TableDef) -> None:
    names = [column.name.lower() for column in table.columns]
    if len(set(names)) != len(names):
        raise KalamError("0A000", f'columns of "{table.name}" differ in case only',
                         hint="Such a table can be read by plain selections under simple conditions.")


def _mentioned(tree: exp.Expression) -> tuple[set[str], bool]:
    """Names of columns anywhere in the statement, and whether there is a star that stands for columns."""
    names: set[str] = set()
    star = False
    for node in tree.find_all(exp.Column, exp.Star, exp.Join):
        if isinstance(node, exp.Join):
            names.update(identifier(part) for part in node.args.get("using") or [])
            star = star or str(node.args.get("method") or "").upper() == "NATURAL"
        elif isinstance(node, exp.Star):
            star = star or not isinstance(node.parent, exp.Count)
        elif not isinstance(node.this, exp.Star):
            names.add(identifier(node.this))
            # a whole row (count(t), t IS NULL) is written like a column
    return names, star


def _passed_through(tree: exp.Expression, table: TableDef) -> frozenset[int]:
    """Positions of numeric columns that the outermost SELECT only hands on (exact text serves them best)."""
    numeric = {column.name: place for place, column in enumerate(table.columns)
               if column.type.name == "numeric" and native.numeric_type(column.typmod) is None}
    if not numeric:
        return frozenset()
    for node in tree.find_all(exp.Column):
        if isinstance(node.this, exp.Star):
            continue
        parent = node.parent.parent if isinstance(node.parent, exp.Alias) else node.parent
        if parent is not tree or not isinstance(tree, exp.Select) or node.find_ancestor(exp.Join, exp.Where):
            numeric.pop(identifier(node.this), None)
    if not isinstance(tree, exp.Select) or tree.args.get("distinct") or len(list(tree.find_all(exp.Select))) > 1:
        return frozenset()
    return frozenset(numeric.values())


def _alias(source: exp.Expression) -> exp.Expression | None:
    alias = source.args.get("alias")
    if alias is not None:
        name: exp.Expression | None = alias.this
        return name
    return source.this if isinstance(source, exp.Table) else None


def _sources(select: exp.Select) -> Iterator[exp.Expression]:
    source = select.args.get("from_")
    if source is not None:
        yield source.this
        yield from (join.this for join in source.this.args.get("joins") or [])
    for join in select.args.get("joins") or []:
        yield join.this


def _owners(select: exp.Select, tables: Mapping[int, TableDef]) -> Any:
    """A function that tells which source of a SELECT a column belongs to; None where it cannot be told."""
    sources = list(_sources(select))
    known = all(id(source) in tables for source in sources)

    def owner(column: exp.Expression) -> exp.Expression | None:
        qualifier = column.args.get("table")
        if qualifier is not None:
            name = identifier(qualifier)
            named = [source for source in sources if identifier(_alias(source)) == name]
            return named[0] if len(named) == 1 else None
        if not known:
            return None
        name = identifier(column.this)
        having = [source for source in sources
                  if name in ("_seq", "_userid") or any(name == part.name for part in tables[id(source)].columns)]
        return having[0] if len(having) == 1 else None

    return owner


def _filters_reach(select: exp.Select, node: exp.Table) -> bool:
    """May a condition in WHERE be applied to this source's rows before the joins?"""
    source = select.args.get("from_")
    joins = select.args.get("joins") or []
    if source is None or node.parent not in (source, *joins):
        return False
    if any(join.side == "FULL" for join in joins):
        return False
    place = next((place for place, join in enumerate(joins) if join.this is node), -1)
    if place >= 0 and joins[place].side == "LEFT":
        return False
    return not any(join.side == "RIGHT" for join in joins[place + 1 :])


def _conjuncts(node: exp.Expr) -> Iterator[exp.Expr]:
    node = node.unnest()
    if isinstance(node, exp.And):
        for part in node.flatten():
            yield from _conjuncts(part)
    else:
        yield node


def _cast(node: exp.Cast) -> exp.Expression:
    """Casts to unconstrained numeric keep a constant's digits; to types that DuckDB lacks they stay text."""
    if isinstance(node.this, exp.Literal) and node.this.is_string and node.to.sql("postgres").lower() == "bytea":
        bytea = types.by_name("bytea")  # written in a way of its own there
        return exp.Var(this=native.literal(bytea, types.read_text(bytea, node.this.this)))
    target = node.to
    if target.this == exp.DataType.Type.DECIMAL and not target.expressions:
        inner = node.this
        if isinstance(inner, exp.Literal) and re.fullmatch(r"[0-9]+(\.[0-9]*)?", inner.this):
            return exp.Literal.number(inner.this)
        target.set("expressions", [exp.DataTypeParam(this=exp.Literal.number(38)),
                                   exp.DataTypeParam(this=exp.Literal.number(9))])
    return node


def _function(node: exp.Anonymous) -> exp.Expression:
    name = str(node.this).lower()
    mark = _FACTS.get(name)
    if mark is not None:
        return exp.Var(this=f"\0{mark}\0")
    if name not in _FUNCTIONS:
        raise KalamError("42883", f"function {name}() does not exist",
                         hint="No function of this name is known to the server.")
    return node


def generate(tree: exp.Expression) -> str:
    try:
        return tree.sql(dialect="duckdb")
    except Exception as error:  # sqlglot's generators raise what they happen to meet
        raise KalamError("0A000", "the statement cannot be evaluated here", detail=str(error)) from None


# ---------- names of output columns ----------
def output_names(tree: exp.Expression) -> list[str | None]:
    """PostgreSQL's names for the columns of a query; None stands for a star."""
    while isinstance(tree, exp.SetOperation | exp.Subquery):
        tree = tree.this
    return [output_name(item) for item in tree.expressions] if isinstance(tree, exp.Select) else []


def output_name(item: exp.Expression) -> str | None:
    match item:
        case exp.Alias():
            return identifier(item.args["alias"])
        case exp.Star():
            return None
        case exp.Column():
            return None if isinstance(item.this, exp.Star) else identifier(item.this)
        case exp.Paren():
            return output_name(item.this)
        case exp.Cast():
            inner = output_name(item.this)
            return inner if inner not in (None, "?column?") else types.parse_declared(
                item.to.sql("postgres").lower())[0].name
        case exp.Filter() | exp.Window() | exp.WithinGroup():
            return output_name(item.this)
        case exp.Anonymous():
            return str(item.this).lower()
        case exp.Case():
            return "case"
        case exp.Exists():
            return "exists"
        case exp.Subquery():
            inner_names = output_names(item.this)
            return inner_names[0] if inner_names else "?column?"
        case exp.Boolean():
            return "bool"
        case exp.CurrentTimestamp():
            return "now"
        case exp.CurrentUser():
            return "current_user"
        case exp.Func() if not isinstance(item, exp.Binary | exp.Connector | exp.Predicate):
            return _FUNCTION_NAMES.get(type(item)) or item.sql_name().lower()
    return "?column?"


_FUNCTION_NAMES: dict[type[exp.Expression], str] = {
    exp.GroupConcat: "string_agg", exp.ArrayAgg: "array_agg", exp.TimestampTrunc: "date_trunc", exp.Extract: "extract",
    exp.Uuid: "gen_random_uuid", exp.LogicalAnd: "bool_and", exp.LogicalOr: "bool_or", exp.CurrentVersion: "version",
    exp.CurrentSchema: "current_schema", exp.CurrentDatabase: "current_database",
    exp.CurrentDate: "current_date", exp.Ceil: "ceil",
}


def _merge_names(names: list[str | None], found: list[str]) -> list[str]:
    """Ours for what is no star, DuckDB's (the tables' own) for what a star brought."""
    stars = names.count(None)
    if not stars:
        return [name or "?column?" for name in names] if len(names) == len(found) else found
    if stars > 1:
        return found
    place = names.index(None)
    after = len(names) - place - 1
    middle = found[place : len(found) - after]
    return [name or "?column?" for name in names[:place]] + middle + [name or "?column?" for name in names[place + 1 :]]
