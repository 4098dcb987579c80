"""Plans for the query engine: which tables feed it, and one execution of it.

A plan's SQL reads relations of its own (``k1``, ``k2`` …) that hold just the columns the statement uses and the rows
that the store's conditions leave (``kalamdb.sql.select`` makes it). Parameters and session facts are marked by NUL
characters, which no statement text can contain, and filled in as literals for each execution.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.order import part_encoder
from kalamdb.sql import access, coerce, native
from kalamdb.sql.bind import Params
from kalamdb.sql.cursors import BatchSource, Source, ThreadSource
from kalamdb.sql.duck import QueryEngine, QueryResult
from kalamdb.sql.kinds import Kind
from kalamdb.sql.predicate import SEQ, USERID
from kalamdb.sql.read import Filter, SystemScan, picker
from kalamdb.sql.report import QUERY
from kalamdb.sql.run import Run, answer
from kalamdb.sql.select import ROW_NUMBER, Output, SelectTranslator
from kalamdb.sql.select import Source as FromItem
from kalamdb.sql.spool import Spool
from kalamdb.sql.system import is_system
from kalamdb.txn.api import CatalogView, ScanCursor, TableDef
from kalamdb.types import PgType

SCAN_ROWS = 10_000
_NONE_GIVEN: Mapping[str, Sequence[Row | None]] = {}
_MARK = re.compile("\0([a-z]+)(\\d*)\0")
_EACH = re.compile("\0([ow])(\\d+)\0(.*?)\0x\\2\0", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Field:
    """A column of a relation: which of the table's, its name there, and whether it holds storage values.

    ``decimal``: numerics that the query computes with as DECIMAL.
    """

    position: int
    name: str
    raw: bool
    decimal: bool


@dataclass(frozen=True, slots=True)
class Feed:
    """One table that a query reads."""

    relation: str
    table: TableDef
    fields: tuple[Field, ...]
    filter: Filter
    given: str | None = None  # as "target": rows that the statement has at hand, with their numbers, by this name

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(field.position for field in self.fields)


def column_name(table: TableDef, position: int) -> str:
    return {SEQ: "_seq", USERID: "_userid"}.get(position) or table.columns[position].name


def column_type(table: TableDef, position: int) -> tuple[PgType, int]:
    if position < 0:
        return types.by_name("int8" if position == SEQ else "text"), -1
    column = table.columns[position]
    return column.type, column.typmod


def to_table(feed: Feed, rows: Sequence[Sequence[Any]]) -> pa.Table:
    """Rows of the store (the feed's columns) as a relation."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(feed.fields)
    arrays = []
    for field, values in zip(feed.fields, columns, strict=True):
        type_, _ = column_type(feed.table, field.position)
        arrays.append(types.to_array(values, type_) if field.raw else native.to_array(type_, values))
    return pa.Table.from_arrays(arrays, [field.name for field in feed.fields])


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
    """A statement for the query engine.

    ``wider`` makes the SQL over the same relations that takes NaN where ``sql`` takes numerics for DECIMAL.
    """

    sql: str
    feeds: tuple[Feed, ...]
    columns: tuple[Column, ...]
    params: Params
    wider: Callable[[], str]
    writes: bool = False

    def start(self, run: Run) -> Result | Awaitable[Result]:
        return self._answer(run)

    async def _answer(self, run: Run) -> Result:
        source: Source | BatchSource
        if run.context is not None and run.context.arrow and not run.context.exec:
            work = Work(self, run)
            source = BatchSource(run.workers, run.session, work.batches(), work.interrupt, work.close, self.columns)
        else:
            source = self.source(run)
        return await answer(run, source, self.columns)

    def source(self, run: Run, given: Sequence[Row] = (), excluded: Sequence[Row] = ()) -> ThreadSource:
        """The query as a source of rows. ``given`` and ``excluded`` are whole rows for the feeds that take such."""
        return self.source_of(run, {"target": given, "excluded": excluded})

    def source_of(self, run: Run, given: Mapping[str, Sequence[Row | None]]) -> ThreadSource:
        """``given``: whole rows by the name of what they are for, numbered by their places; None: no row there."""
        work = Work(self, run, given)
        return ThreadSource(run.workers, run.session, work.rows, work.interrupt, work.close)


class Work:
    """One execution. Its scans are opened here, in the event loop, and read in a worker thread with the first rows."""

    def __init__(self, plan: QueryPlan, run: Run, given: Mapping[str, Sequence[Row | None]] = _NONE_GIVEN) -> None:
        self._plan = plan
        self._run = run
        self._given = given
        self._cancel = Cancel()
        self._text = fill(plan.sql, run, plan.params.final())
        self._scans: list[tuple[Feed, ScanCursor | None]] = []
        stats = run.scanning(QUERY)
        for feed in plan.feeds:
            if feed.given is not None:
                continue
            if is_system(feed.table):
                self._scans.append((feed, SystemScan(run, feed.table, feed.filter, feed.positions)))
                continue
            tenant = access.read_tenant(run.account, feed.table, run.tenant)
            scan = feed.filter.scan(feed.table, tenant, feed.positions, run.params, stats=stats)
            self._scans.append((feed, None if scan is None else run.transaction.scan(run.snapshot, scan)))
        self._result = QueryResult(run.queries.open(), [column.type for column in plan.columns])
        self._started = False

    def _start(self) -> QueryResult:
        if not self._started:
            self._started = True
            relations = _gather(self._scans, self._cancel)
            for feed in self._plan.feeds:
                if feed.given is not None:
                    relations[feed.relation] = _numbered(feed, self._given[feed.given])
            if any(_has_nan(feed, relations[feed.relation]) for feed in self._plan.feeds):
                self._text = fill(self._plan.wider(), self._run, self._plan.params.final())
            self._cancel.result = self._result
            self._cancel.check()
            self._result.start(self._text, relations)
        return self._result

    def rows(self, count: int) -> list[Row]:
        return self._start().fetch(count)

    def batches(self) -> Iterator[pa.RecordBatch]:
        result = self._start()
        while (batch := result.batch()) is not None:
            yield batch

    def interrupt(self) -> None:
        self._cancel.interrupt()

    def close(self) -> None:
        for _, scan in self._scans:
            if scan is not None:
                scan.close()
        self._result.close()


def _has_nan(feed: Feed, relation: pa.Table) -> bool:
    return any(pc.any(pc.equal(relation.column(field.name), "NaN")).as_py() for field in feed.fields if field.decimal)


def _gather(scans: list[tuple[Feed, ScanCursor | None]], cancel: Cancel) -> dict[str, pa.Table]:
    relations = {}
    for feed, scan in scans:
        spool = Spool()
        if scan is not None:
            cancel.scan = scan
            for part in _parts(feed, scan):
                spool.add(part)
                cancel.check()
            scan.close()
        relations[feed.relation] = spool.table() or to_table(feed, [])
    cancel.scan = None
    return relations


def _parts(feed: Feed, scan: ScanCursor) -> Iterator[pa.Table]:
    batches = scan.batches()
    if batches is not None:
        for batch in batches:
            yield _from_wire(feed, batch)
        return
    while rows := scan.fetch(SCAN_ROWS):
        yield to_table(feed, rows)


def _from_wire(feed: Feed, batch: pa.RecordBatch) -> pa.Table:
    arrays = []
    for field, array in zip(feed.fields, batch.columns, strict=True):
        type_, _ = column_type(feed.table, field.position)
        arrays.append(array if field.raw else native.from_wire(type_, array))
    return pa.Table.from_arrays(arrays, [field.name for field in feed.fields])


def _numbered(feed: Feed, rows: Sequence[Row | None]) -> pa.Table:
    """Whole rows as a relation, with the number of each."""
    pick = picker(feed.positions)
    table = to_table(feed, [pick(row) for row in rows if row is not None])
    numbers = [place for place, row in enumerate(rows) if row is not None]
    return table.append_column(ROW_NUMBER, pa.array(numbers, pa.int64()))


def _repeated(sql: str, kinds: Sequence[PgType | None], values: Sequence[Any]) -> str:
    """With a copy of what kalam_any and kalam_all take for each element of the array."""

    def repeat(found: re.Match[str]) -> str:
        every, index, body = found.group(1) == "w", int(found.group(2)), found.group(3)
        element = types.element_of(kinds[index])
        assert element is not None
        form = "n" if element.name == "numeric" else "p"
        elements = (None,) if values[index] is None else values[index]
        copies = [body.replace(f"\0v{index}\0", _parameter(form, element, each)) for each in elements]
        return _balanced(copies, " AND " if every else " OR ") or ("TRUE" if every else "FALSE")

    return _EACH.sub(repeat, sql) if "\0x" in sql else sql


def _balanced(parts: list[str], word: str) -> str:
    """A chain of any length, in parentheses so that it is nowhere deep."""
    while len(parts) > 100:
        parts = [f"({word.join(parts[at : at + 100])})" for at in range(0, len(parts), 100)]
    return word.join(parts)


def fill(sql: str, run: Run, kinds: Sequence[PgType]) -> str:
    """The statement with its parameters and the session's facts as literals."""
    sql = _repeated(sql, kinds, run.params)

    def replace(found: re.Match[str]) -> str:
        what, number = found.groups()
        if number:
            return _parameter(what, kinds[int(number)], run.params[int(number)])
        return fact(what, run)

    return _MARK.sub(replace, sql)


def _elements(form: str, element: PgType, values: Sequence[Any] | None) -> str:
    """Of an array. Form e: has it none? k: numerics as their keys; r: as they are stored; a: as they are; p: texts, as
    one list."""
    if form == "p":
        listed = "NULL" if values is None else f"[{', '.join(native.literal(element, each) for each in values)}]"
        return f"CAST({listed} AS VARCHAR[])"
    if form == "e":
        return "TRUE" if values is not None and not values else "FALSE"
    if form == "k":
        key = part_encoder(element.name)
        element, values = types.by_name("bytea"), [None if each is None else key(each) for each in values or (None,)]
    elif form == "r":
        element = _stored_as(element)
    return ", ".join(native.literal(element, each) for each in values or (None,))


def _stored_as(type_: PgType) -> PgType:
    """The type of a storage value of a type of RAW."""
    return types.by_name("bytea" if type_.name == "uuid" else "int8")


def _parameter(form: str, type_: PgType, value: Any) -> str:
    """Form n: a numeric as its text; r: as it is stored; for those of arrays see above."""
    element = types.element_of(type_)
    if element is not None:
        return _elements(form, element, value)
    if form == "r":
        return native.literal(_stored_as(type_), value)
    if form == "n":
        return "CAST(NULL AS VARCHAR)" if value is None else native.literal(types.TEXT, value)
    if type_.name in ("json", "jsonb"):
        type_ = types.TEXT
    return native.literal(type_, value)


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
        case "now":
            return native.literal(types.by_name("timestamptz"), run.function(coerce.NOW))
        case _:
            raise AssertionError(what)


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


def plan_query(tree: exp.Expr, catalog: CatalogView, path: Sequence[str], params: Params, queries: QueryEngine,
               targets: Sequence[Kind | None] | None = None) -> QueryPlan:
    """A statement's plan; ``targets`` are the types that literals in the select list become."""
    def translated(*, wide: bool) -> tuple[Output, list[FromItem]]:
        translator = SelectTranslator(catalog, path, params, wide=wide)
        return translator.query(tree.copy(), None, targets, top=True), translator.tables

    made, tables = translated(wide=False)
    feeds = tuple(_feed(table, made.sql) for table in tables)
    columns = tuple(Column(name, of.pg, of.typmod) for name, of in zip(made.names, made.kinds, strict=True))
    plan = QueryPlan(made.sql, feeds, columns, params, cache(lambda: translated(wide=True)[0].sql))
    relations = {feed.relation: to_table(feed, []) if feed.given is None else _numbered(feed, ()) for feed in feeds}
    queries.check(_described(made.sql, params.types), relations)
    return plan


_FIELD = re.compile(r"(CAST\()?\b(t\d+)\.(c\w+)(?: AS DECIMAL)?")


def _feed(source: FromItem, sql: str) -> Feed:
    """What the query has of a table, with the columns that stand in its text."""
    assert source.table is not None
    mine = [found for found in _FIELD.finditer(sql) if found.group(2) == f"t{source.number}"]
    used = {found.group(3) for found in mine}
    decimals = {found.group(3) for found in mine if found.group(1) and found.group().endswith(" AS DECIMAL")}
    numeric = types.by_name("numeric")
    fields = tuple(Field(position, name, raw, name in decimals and column_type(source.table, position)[0] is numeric)
                   for (position, raw), name in source.fields.items() if name in used)
    if not fields:
        fields = (Field(SEQ, "c_seq", False, False),)
    return Feed(f"k{source.number}", source.table, fields, Filter.of(source.table, source.condition), source.given)


def _described(sql: str, kinds: Sequence[PgType | None]) -> str:
    """The statement with typed NULLs for its marks."""
    facts = {"pid": "CAST(NULL AS INTEGER)", "now": "CAST(NULL AS TIMESTAMPTZ)"}

    def replace(found: re.Match[str]) -> str:
        what, number = found.groups()
        if number:
            return _parameter(what, kinds[int(number)] or types.TEXT, None)
        return facts.get(what, "CAST(NULL AS VARCHAR)")

    return _MARK.sub(replace, _repeated(sql, kinds, [None] * len(kinds)))
