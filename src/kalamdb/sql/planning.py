"""From a parsed statement to a plan: the fast path where it can, the query engine where it must.

Plans are kept per statement text, announced parameter types and search path, and are good as long as every table name
they looked up still means the same definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from sqlglot import exp

from kalamdb.api import ARROW_OID, Account, Column, Role
from kalamdb.errors import KalamError
from kalamdb.sql import access
from kalamdb.sql.bind import NotSimple, Params, position_of
from kalamdb.sql.count import plan_count
from kalamdb.sql.duck import QueryEngine
from kalamdb.sql.estimate import EstimatePlan
from kalamdb.sql.files import plan_file
from kalamdb.sql.insert import Planned, plan_arrow_insert, plan_insert
from kalamdb.sql.joinchange import is_over_join, other_tables, plan_join_change
from kalamdb.sql.joined import plan_locked
from kalamdb.sql.kinds import Kind
from kalamdb.sql.parse import too_deep
from kalamdb.sql.query import QueryPlan, plan_query, rows_tree
from kalamdb.sql.read import is_simple_select, limit_of, plan_read, qualifiers, table_name
from kalamdb.sql.returning import Returning, plan_returning
from kalamdb.sql.run import Run
from kalamdb.sql.show import result_columns
from kalamdb.sql.statements import FILE_STATEMENTS, ArrowWrite, Estimate, ExecuteAs, Name, Query, Statement
from kalamdb.sql.top import TopPlan, plan_top
from kalamdb.sql.update import plan_arrow_change, plan_delete, plan_finder, plan_update
from kalamdb.txn.api import AccountDef, CatalogView, TableDef
from kalamdb.types import PgType

Path = tuple[str, ...]
#: search paths whose plans one statement text keeps
PATHS_KEPT = 8


class Plan(Protocol):
    params: Params
    writes: bool

    @property
    def columns(self) -> tuple[Column, ...] | None: ...

    def start(self, run: Run) -> Any: ...


class Recorder:
    """A catalog that notes what was asked of it."""

    def __init__(self, catalog: CatalogView) -> None:
        self._catalog = catalog
        self.asked: dict[tuple[str, str], TableDef | None] = {}

    @property
    def version(self) -> int:
        return self._catalog.version

    def table(self, namespace: str, name: str) -> TableDef | None:
        found = self._catalog.table(namespace, name)
        self.asked[namespace, name] = found
        return found

    def tables(self, namespace: str | None = None) -> list[TableDef]:
        return self._catalog.tables(namespace)

    def namespaces(self) -> list[str]:
        return self._catalog.namespaces()

    def account(self, name: str) -> AccountDef | None:
        return self._catalog.account(name)

    def accounts(self) -> list[AccountDef]:
        return self._catalog.accounts()


_PLANNED = (Query, ArrowWrite, Estimate, *FILE_STATEMENTS)


@dataclass(slots=True)
class Bound:
    """A plan and what it was made from."""

    plan: Plan
    kinds: tuple[PgType, ...]
    asked: dict[tuple[str, str], TableDef | None]

    def fits(self, catalog: CatalogView) -> bool:
        for name, table in self.asked.items():  # noqa: SIM110 - one frame less than all()
            if catalog.table(*name) is not table:
                return False
        return True


@dataclass(slots=True, eq=False)
class Entry:
    """A statement text with its announced types, and its plans by search path."""

    statement: Statement
    announced: tuple[int, ...]
    bounds: dict[Path, Bound] = field(default_factory=dict)
    inner: Entry | None = None  # of EXECUTE AS USER

    @property
    def planned(self) -> bool:
        return isinstance(self.statement, _PLANNED)

    @property
    def columns(self) -> tuple[Column, ...] | None:
        """Of a statement that needs no plan."""
        return result_columns(self.statement)

    def bound(self, catalog: CatalogView, path: Path, queries: QueryEngine, account: Account) -> Bound:
        """Of tables that the account may not read nothing is told: neither a plan's columns nor what is wrong in it."""
        found = self.bounds.get(path)
        if found is not None and found.fits(catalog):
            _check_describable(account, found.asked)
            return found
        recorder = Recorder(catalog)
        try:
            plan = make_plan(self.statement, recorder, path, Params(self.announced), queries)
        finally:
            _check_describable(account, recorder.asked)
        found = Bound(plan, plan.params.final(), recorder.asked)
        if len(self.bounds) >= PATHS_KEPT:
            self.bounds.clear()
        self.bounds[path] = found
        return found


def _check_describable(account: Account, asked: dict[tuple[str, str], TableDef | None]) -> None:
    if account.role < Role.DBA:
        for table in asked.values():
            if table is not None:
                access.check_describable(account, table)


def entry_of(statement: Statement, announced: tuple[int, ...]) -> Entry:
    entry = Entry(statement, announced)
    if isinstance(statement, ExecuteAs):
        entry.inner = Entry(statement.inner, announced)
    return entry


def make_plan(statement: Statement, catalog: CatalogView, path: Path, params: Params, queries: QueryEngine) -> Plan:
    try:
        if isinstance(statement, ArrowWrite):
            return _Planning(catalog, path, params, queries).arrow(statement)
        if isinstance(statement, Estimate):
            return _Planning(catalog, path, params, queries).estimate(statement.query.tree)
        if isinstance(statement, FILE_STATEMENTS):
            return plan_file(statement, catalog, path, params, _Planning(catalog, path, params, queries).query)
        assert isinstance(statement, Query)
        return _Planning(catalog, path, params, queries).tree(statement.tree)
    except RecursionError:
        raise too_deep() from None
    except NotSimple:
        raise KalamError("0A000", "the statement cannot be evaluated here") from None


class _Planning:
    def __init__(self, catalog: CatalogView, path: Path, params: Params, queries: QueryEngine) -> None:
        self.catalog = catalog
        self.path = path
        self.params = params
        self.queries = queries

    def tree(self, tree: exp.Expression) -> Plan:
        match tree:
            case exp.Insert():
                return self.insert(tree)
            case exp.Update():
                return self.update(tree)
            case exp.Delete():
                return self.delete(tree)
        inner = next(tree.find_all(exp.Insert, exp.Update, exp.Delete), None)
        if inner is not None:
            raise KalamError("0A000", "INSERT, UPDATE and DELETE inside WITH are not supported",
                             position=position_of(inner), hint="Let one transaction hold them one after the other.")
        return self.query(tree)

    def arrow(self, write: ArrowWrite) -> Plan:
        if self.params.oid(write.param) != ARROW_OID:
            number = write.param + 1
            raise KalamError("42804", f"parameter ${number} of FROM ARROW must be of type {ARROW_OID} (kalam_arrow)")
        table = access.resolve_target(self.catalog, write.table, self.path)
        if write.verb == "insert":
            return plan_arrow_insert(write, table, self.params, self.query)
        return plan_arrow_change(write, table, self.params)

    def query(self, tree: exp.Expr, targets: Sequence[Kind | None] | None = None) -> Planned:
        if isinstance(tree, exp.Select) and is_simple_select(tree):
            source = tree.args["from_"].this
            try:
                if "kalam_given" in source.meta:  # rows at hand, not a table of that name
                    raise NotSimple
                name = table_name(source)
                table = access.resolve(self.catalog, name, self.path, position_of(source))
                return self._by_store(tree, name, table, cache(lambda: self._by_engine(tree, targets)))
            except NotSimple:
                pass
        if isinstance(tree, exp.Select) and tree.args.get("locks"):
            return plan_locked(tree, self.params, limit_of(tree, self.params), self.resolve, self.engine)
        return self._by_engine(tree, targets)

    def _by_store(self, tree: exp.Select, name: Name, table: TableDef, engine: Callable[[], QueryPlan]) -> Planned:
        def top() -> TopPlan | QueryPlan:  # where the rows do not lie in the key's order that is asked for
            try:
                return plan_top(tree, table, self.params, engine)
            except NotSimple:
                return engine()

        try:
            return plan_read(tree, name, table, self.params, cache(top))
        except NotSimple:
            if tree.args.get("order") is None:
                return plan_count(tree, name, table, self.params)
            return plan_top(tree, table, self.params, engine)

    def _by_engine(self, tree: exp.Expr, targets: Sequence[Kind | None] | None) -> QueryPlan:
        return plan_query(tree, self.catalog, self.path, self.params, self.queries, targets)

    def engine(self, tree: exp.Expr) -> QueryPlan:
        return self._by_engine(tree, None)

    def resolve(self, node: exp.Table) -> TableDef:
        return access.resolve(self.catalog, table_name(node), self.path, position_of(node))

    def estimate(self, tree: exp.Expression) -> Plan:
        if not isinstance(tree, exp.Select) or not is_simple_select(tree):
            raise NotSimple
        source = tree.args["from_"].this
        table = access.resolve(self.catalog, table_name(source), self.path, position_of(source))
        where = tree.args.get("where")
        finder = plan_finder(where.this if where is not None else None, table, source, self.params, self.query)
        return EstimatePlan(table, finder, self.params)

    def target(self, node: exp.Expression) -> tuple[exp.Table, TableDef]:
        table = node.this if isinstance(node, exp.Schema) else node
        if not isinstance(table, exp.Table):
            raise KalamError("0A000", "this form of target is not supported")
        alias = table.args.get("alias")
        if alias is not None and alias.args.get("columns"):
            raise KalamError("42601", "the table that is written to has no column aliases",
                             position=position_of(alias.args["columns"][0]))
        return table, access.resolve_target(self.catalog, table_name(table), self.path, position_of(table))

    def returning(self, tree: exp.Expression, target: exp.Table, table: TableDef) -> Returning | None:
        alias = next(iter(qualifiers(target, table)))

        def rows(items: list[exp.Expression]) -> QueryPlan:
            plan = self.query(rows_tree(table, alias, items, None))
            assert isinstance(plan, QueryPlan)
            return plan

        return plan_returning(tree.args.get("returning"), table, target, self.params, rows)

    def insert(self, tree: exp.Insert) -> Plan:
        target, table = self.target(tree.this)
        returning = self.returning(tree, target, table)
        return plan_insert(tree, table, self.params, self.query, returning)

    def update(self, tree: exp.Update) -> Plan:
        return self.changes(tree) or plan_update(tree, *self.changed(tree))

    def delete(self, tree: exp.Delete) -> Plan:
        return self.changes(tree) or plan_delete(tree, *self.changed(tree))

    def changed(self, tree: exp.Update | exp.Delete) -> tuple[TableDef, Params, Any, Returning | None]:
        target, table = self.target(tree.this)
        return table, self.params, self.query, self.returning(tree, target, table)

    def changes(self, tree: exp.Update | exp.Delete) -> Plan | None:
        """A change that takes a join; None: it does not."""
        if tree.args.get("with_") is not None or tree.args.get("limit"):
            raise KalamError("0A000", f"{tree.key.upper()} with WITH or LIMIT is not supported",
                             hint="Other tables in FROM or USING, and subqueries are.")
        target, table = self.target(tree.this)
        if not is_over_join(tree, table):
            return None
        returning = None if other_tables(tree) else self.returning(tree, target, table)
        return plan_join_change(tree, table, target, self.params, returning, self.resolve, self.engine)
