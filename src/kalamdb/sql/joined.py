"""Rows of a join whose tables' rows are locked: UPDATE … FROM, DELETE … USING, SELECT … FOR UPDATE of several tables.

The query engine makes the join in the statement's snapshot, with the identity of each table's row beside what is
wanted. Rows are locked in the order in which it gives them. Where a locked row has a newer version, the join is made
once more of just the rows that it was made of, the locked ones in their newest version: what fails then is left out. So
does PostgreSQL (EvalPlanQual).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlglot import exp

from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.order import part_encoder
from kalamdb.sql import access
from kalamdb.sql.bind import Params, identifier, place_of
from kalamdb.sql.cursors import size_of
from kalamdb.sql.query import QueryPlan, given_table
from kalamdb.sql.read import LOCK_ROWS, Lock, LockSource, LockWait, limit_value
from kalamdb.sql.run import Run, answer
from kalamdb.sql.select import ROW_NUMBER, has_aggregate
from kalamdb.sql.system import is_system
from kalamdb.txn.api import NotInMemory, RowId, TableDef

#: from a tree to a plan of the query engine
Engine = Callable[[exp.Expr], QueryPlan]
#: what a table in FROM is
Resolve = Callable[[exp.Table], TableDef]


@dataclass(frozen=True, slots=True)
class Side:
    """A table of FROM. Its row's identity and version are columns of the query from ``start`` on."""

    alias: str
    table: TableDef
    start: int
    encoders: tuple[Callable[[Any], bytes], ...]

    @property
    def names(self) -> list[str]:
        names = [self.table.columns[place].name for place in self.table.key]
        return [*names, *(["_userid"] if self.table.kind != "shared" else []), "_seq"]

    def row_id(self, row: Row) -> RowId | None:
        """None: an outer join has put NULLs in its place."""
        end = self.start + len(self.table.key)
        key = row[self.start : end]
        if key[0] is None:
            return None
        return (row[end] if self.table.kind != "shared" else "", key)

    def version(self, row: Row) -> int | None:
        place = self.start + len(self.names) - 1
        found: int | None = row[place]
        return found

    def mark(self, id_: RowId) -> tuple[Any, ...]:
        """Equal for equal keys: NaN and NaN are one."""
        return (id_[0], *(encode(part) for encode, part in zip(self.encoders, id_[1], strict=True)))


@dataclass(slots=True)
class Match:
    """A row of the join: the targets' rows in their newest versions, and what is wanted of it."""

    ids: tuple[RowId, ...]
    rows: tuple[Row, ...]
    values: Row


@dataclass(slots=True)
class JoinPlan:
    """``plan`` finds rows, ``again`` makes those anew that have changed: see the head of this file."""

    plan: QueryPlan
    again: QueryPlan
    sides: tuple[Side, ...]
    targets: tuple[Side, ...]
    given: tuple[Side, ...]  # of ``again``
    width: int  # of the identities, which stand before what is wanted
    locks: tuple[Lock, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.plan.columns[self.width :]

    def check(self, run: Run) -> None:
        for side in self.targets:
            access.write_tenant(run.account, side.table, run.tenant)

    async def matches(self, run: Run, found: Sequence[Row], *, once: bool) -> list[Match]:
        """Locks the targets' rows of what was found. ``once``: each row of the (one) target counts once."""
        alive = await self._locked(run, found)
        stale = [place for place, (ids, rows) in alive.items() if self._changed(found[place], ids, rows)]
        anew = await self._anew(run, found, alive, stale) if stale else {}
        changed, seen = set(stale), set()
        made = []
        for place, (ids, rows) in alive.items():
            if once and (mark := self.targets[0].mark(ids[0])) in seen:
                continue
            values = anew.get(place) if place in changed else found[place][self.width :]
            if values is None:
                continue
            if once:
                seen.add(mark)
            made.append(Match(ids, rows, values))
        return made

    async def _locked(self, run: Run, found: Sequence[Row]) -> dict[int, tuple[tuple[RowId, ...], tuple[Row, ...]]]:
        """By the places in ``found``: what is still there, and was not written by this transaction meanwhile."""
        alive: dict[int, tuple[tuple[RowId, ...], tuple[Row, ...]]] = dict.fromkeys(range(len(found)), ((), ()))
        for side, lock in zip(self.targets, self.locks, strict=True):
            ids: dict[tuple[Any, ...], RowId] = {}
            marks = {}
            for place in alive:
                id_ = side.row_id(found[place])
                assert id_ is not None
                marks[place] = side.mark(id_)
                ids.setdefault(marks[place], id_)
            rows = await run.transaction.lock(run.snapshot, side.table, list(ids.values()), share=lock.share,
                                              wait=lock.wait, timeout_ms=run.lock_timeout)
            newest = dict(zip(ids, rows, strict=True))
            alive = {place: ((*before, ids[marks[place]]), (*others, row)) for place, (before, others) in alive.items()
                     if (row := newest[marks[place]]) is not None}
        return alive

    def _changed(self, found: Row, ids: Sequence[RowId], rows: Sequence[Row]) -> bool:
        return any(side.version(found) != row[-2] for side, row in zip(self.targets, rows, strict=True))

    async def _anew(self, run: Run, found: Sequence[Row], alive: dict[int, tuple[tuple[RowId, ...], tuple[Row, ...]]],
                    places: Sequence[int]) -> dict[int, Row]:
        given: dict[str, list[Row | None]] = {}
        for side in self.given:
            if side in self.targets:
                at = self.targets.index(side)
                given[side.alias] = [alive[place][1][at] for place in places]
            else:
                given[side.alias] = [await _as_seen(run, side, side.row_id(found[place])) for place in places]
        source = self.again.source_of(run, given)
        made: dict[int, Row] = {}
        try:
            while rows := await source.read(LOCK_ROWS):
                for row in rows:
                    made.setdefault(places[row[0]], row[1:])
        finally:
            source.close()
        return made


async def _as_seen(run: Run, side: Side, id_: RowId | None) -> Row | None:
    """A row as the statement's snapshot has it."""
    while id_ is not None:
        try:
            return run.transaction.get(run.snapshot, side.table, *id_)
        except NotInMemory as missing:
            await run.workers.run(run.session, _nothing, missing.load)
    return None


def _nothing() -> None:
    pass


# ---------- FROM ----------
@dataclass(slots=True)
class _From:
    """The tables of FROM, those in parentheses and joins included; ``whole``: there is nothing else."""

    tables: list[tuple[exp.Table, bool]] = field(default_factory=list)  # and may NULLs stand for its row?
    whole: bool = True

    @classmethod
    def of(cls, tree: exp.Select) -> _From:
        found = cls()
        found._item(tree.args["from_"].this, nullable=False)
        found._joins(tree.args.get("joins") or [], 0, nullable=False)
        return found

    def _item(self, node: exp.Expr, *, nullable: bool) -> None:
        first = len(self.tables)
        if isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier):
            self.tables.append((node, nullable))
        elif isinstance(node, exp.Subquery) and node.args.get("alias") is None and (
                isinstance(node.this, exp.Subquery) or not isinstance(node.this, exp.Query)):
            self._item(node.this, nullable=nullable)
        else:
            self.whole = False
        self._joins(node.args.get("joins") or [], first, nullable=nullable)

    def _joins(self, joins: Sequence[exp.Join], first: int, *, nullable: bool) -> None:
        for join in joins:
            side = str(join.args.get("side") or "").upper()
            if side in ("RIGHT", "FULL"):
                self.tables[first:] = [(table, True) for table, _ in self.tables[first:]]
            if join.args.get("using") or join.args.get("method"):
                self.whole = False
            self._item(join.this, nullable=nullable or side in ("LEFT", "FULL"))


def table_alias(node: exp.Table) -> str:
    alias = node.args.get("alias")
    return identifier(node.this) if alias is None else identifier(alias.this)


def _column(alias: str, name: str) -> exp.Column:
    return exp.column(exp.to_identifier(name, quoted=True), table=exp.to_identifier(alias, quoted=True))


def _tied(node: exp.Expr) -> exp.Expr:
    """Joins, of given rows, only rows of one number; gives that number."""
    if isinstance(node, exp.Table):
        number: exp.Expr = _column(table_alias(node), ROW_NUMBER)
    else:
        number = _tied(node.this)
    return _tied_joins(number, node.args.get("joins") or [])


def _tied_joins(number: exp.Expr, joins: Sequence[exp.Join]) -> exp.Expr:
    for join in joins:
        other = _tied(join.this)
        equal: exp.Expr = exp.EQ(this=number.copy(), expression=other.copy())
        on, side = join.args.get("on"), str(join.args.get("side") or "").upper()
        if on is not None:
            equal = exp.And(this=exp.paren(on, copy=False), expression=equal)
        join.set("on", equal)
        if not side:
            join.set("kind", "INNER")
        if side == "RIGHT":
            number = other
        elif side == "FULL":
            number = exp.Anonymous(this="coalesce", expressions=[number, other])
    return number


def _and_where(tree: exp.Select, conditions: Sequence[exp.Expr]) -> None:
    if not conditions:
        return
    where = tree.args.get("where")
    parts = [*([exp.paren(where.this)] if where is not None else []), *conditions]
    tree.set("where", exp.Where(this=exp.and_(*parts)))


def _given_tree(tree: exp.Select, given: Sequence[Side], *, whole: bool) -> exp.Select:
    """The join over rows at hand: (their number, what is wanted)."""
    again = tree.copy()
    nodes = {table_alias(node): node for node, _ in _From.of(again).tables}
    for side in given:
        made = given_table(side.table, side.alias, side.alias)
        made.set("joins", nodes[side.alias].args.get("joins"))
        nodes[side.alias].replace(made)
    numbers = [_column(side.alias, ROW_NUMBER) for side in given]
    if whole:
        number = _tied_joins(_tied(again.args["from_"].this), again.args.get("joins") or [])
    else:
        number = numbers[0]
        _and_where(again, [exp.EQ(this=number.copy(), expression=other) for other in numbers[1:]])
    again.set("expressions", [number.copy(), *again.expressions])
    again.set("order", None)
    return again


def plan_join(tree: exp.Select, targets: Sequence[tuple[str, Lock]], resolve: Resolve, engine: Engine) -> JoinPlan:
    """``tree``: SELECT what is wanted FROM … WHERE …; ``targets``: aliases in its FROM."""
    found = _From.of(tree)
    sides: list[Side] = []
    start = 0
    for node, _ in found.tables:
        table = resolve(node)
        if is_system(table) or not table.key:
            found.whole = False
            continue
        encoders = tuple(part_encoder(table.columns[place].type.name) for place in table.key)
        side = Side(table_alias(node), table, start, encoders)
        start += len(side.names)
        sides.append(side)
    by_alias = {side.alias: side for side in sides}
    wanted = tuple(by_alias[alias] for alias, _ in targets)
    given = tuple(sides) if found.whole else wanted
    again = engine(_given_tree(tree, given, whole=found.whole))
    first = tree.copy()
    first.set("expressions", [_column(side.alias, name) for side in sides for name in side.names] + first.expressions)
    return JoinPlan(engine(first), again, tuple(sides), wanted, given, start, tuple(lock for _, lock in targets))


# ---------- SELECT … FOR UPDATE ----------
@dataclass(slots=True)
class LockedJoinPlan:
    """SELECT … FOR UPDATE or FOR SHARE of what the store cannot find by itself: joins, and any order."""

    join: JoinPlan
    limit: Any  # of ``kalamdb.sql.read``: a value, or None
    params: Params
    writes: bool = True

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.join.columns

    def start(self, run: Run) -> Awaitable[Result]:
        self.join.check(run)
        return answer(run, self._rows(run), self.columns)

    def source(self, run: Run) -> LockSource:
        self.join.check(run)
        return self._rows(run)

    def _rows(self, run: Run) -> LockSource:
        async def locked(found: Sequence[Row]) -> tuple[list[Row], int]:
            matches = await self.join.matches(run, found, once=False)
            return [match.values for match in matches], sum(size_of(row) for match in matches for row in match.rows)

        limit = limit_value(self.limit, run)
        return LockSource(self.join.plan.source(run), limit, locked)


_REFUSED = {"group": "GROUP BY clause", "having": "HAVING clause", "distinct": "DISTINCT clause",
            "windows": "WINDOW clause"}


def plan_locked(tree: exp.Select, params: Params, limit: Any, resolve: Resolve, engine: Engine) -> LockedJoinPlan:
    clauses = tree.args["locks"]
    word = "FOR UPDATE" if clauses[0].args.get("update") else "FOR SHARE"
    for part, name in _REFUSED.items():
        if tree.args.get(part):
            raise KalamError("0A000", f"{word} is not allowed with {name}", position=place_of(tree))
    if any(map(has_aggregate, tree.expressions)):
        raise KalamError("0A000", f"{word} is not allowed with aggregate functions", position=place_of(tree))
    if tree.args.get("from_") is None:
        raise KalamError("0A000", f"{word} needs a table to lock rows of")
    if tree.args.get("with_") is not None or tree.args.get("offset") is not None:
        raise KalamError("0A000", f"{word} with WITH or OFFSET is not supported")
    tables = {table_alias(node): (node, nullable) for node, nullable in _From.of(tree).tables}
    targets: dict[str, Lock] = {}
    for clause in clauses:
        for alias, lock in _clause_targets(clause, tables, word):
            before = targets.get(alias)
            targets[alias] = lock if before is None else _stronger(before, lock)
    for alias in targets:
        table = resolve(tables[alias][0])
        if is_system(table):
            raise KalamError("42809", f'cannot lock rows in system table "{table.name}"')
        if not table.key:
            raise KalamError("0A000", f'rows of "{table.name}", which has no key, cannot be locked in a join')
    plain = tree.copy()
    plain.set("locks", None)
    plain.set("limit", None)
    return LockedJoinPlan(plan_join(plain, list(targets.items()), resolve, engine), limit, params)


def _clause_targets(clause: exp.Lock, tables: dict[str, tuple[exp.Table, bool]], word: str
                    ) -> Iterator[tuple[str, Lock]]:
    wait = clause.args.get("wait")
    mode: LockWait = "wait" if wait is None else "nowait" if wait is True else "skip"
    lock = Lock(not clause.args.get("update"), mode)
    named = [identifier(item.this) for item in clause.args.get("expressions") or []]
    for alias in named or list(tables):
        if alias not in tables:
            raise KalamError("42P01", f'relation "{alias}" in {word} clause not found in FROM clause')
        if tables[alias][1]:
            raise KalamError("0A000", f"{word} cannot be applied to the nullable side of an outer join")
        yield alias, lock


def _stronger(one: Lock, two: Lock) -> Lock:
    """Of two clauses for one table, as PostgreSQL merges them: NOWAIT before SKIP LOCKED before waiting."""
    ranks: list[LockWait] = ["wait", "skip", "nowait"]
    return Lock(one.share and two.share, max(one.wait, two.wait, key=ranks.index))
