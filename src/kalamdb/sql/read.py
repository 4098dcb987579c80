"""The fast path: SELECT of columns from one table under a condition the store can evaluate, without the query engine.

A plan is made once per statement text and holds everything but the parameters. A whole key is read at once, in the
event loop; everything else is a scan in a worker thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Any, Literal

from sqlglot import exp

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.order import part_encoder
from kalamdb.sql import access, activity
from kalamdb.sql.bind import Binder, NotSimple, Params, identifier, parameter_index
from kalamdb.sql.cursors import CHUNK_BYTES, BatchSource, ListSource, Source, ThreadSource, size_of
from kalamdb.sql.mask import bind, compile_mask
from kalamdb.sql.predicate import (
    FAMILIES,
    SEQ,
    Compiled,
    Condition,
    KeyRange,
    Value,
    compile_condition,
    evaluate,
    key_range,
)
from kalamdb.sql.report import KEY, STORE
from kalamdb.sql.run import Run, answer
from kalamdb.sql.statements import Name
from kalamdb.sql.system import is_system
from kalamdb.txn.api import Engine, Key, NotInMemory, Scan, ScanStats, TableDef

LockWait = Literal["wait", "nowait", "skip"]
#: rows locked with one call: at first, and at most
FIRST_LOCKED, LOCK_ROWS = 4, 1000
#: of so many bytes that twice as many may be locked with the next
SMALL_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Lock:
    share: bool
    wait: LockWait


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition made ready: compiled, and what it says about the key."""

    condition: Condition | None
    compiled: Compiled | None
    range: KeyRange
    mask: Any = None

    @classmethod
    def of(cls, table: TableDef, condition: Condition | None) -> Filter:
        compiled = None if condition is None else compile_condition(condition)
        return cls(condition, compiled, key_range(condition, table.key, lambda _: True), compile_mask(condition))

    @property
    def whole_key(self) -> bool:
        return False

    def scan(self, table: TableDef, tenant: str | None, columns: tuple[int, ...], params: Sequence[Any],
             *, limit: int | None = None, with_id: bool = False, stats: ScanStats | None = None,
             descending: bool = False) -> Scan | None:
        """The engine's scan; None where a NULL bound of the key says that no row qualifies."""
        found = self.range
        prefix = tuple(value.get(params) for value in found.prefix)
        low = None if found.low is None else (found.low[0].get(params), found.low[1])
        high = None if found.high is None else (found.high[0].get(params), found.high[1])
        if None in prefix or (low is not None and low[0] is None) or (high is not None and high[0] is None):
            return None
        where = None if self.compiled is None else self.compiled.sql
        values = () if self.compiled is None else self.compiled.bind(params)
        return Scan(table, tenant, columns, where, values, prefix, low, high, limit, with_id, bind(self.mask, params),
                    stats, descending)

    def matches(self, row: Row, params: Sequence[Any]) -> bool:
        return self.condition is None or evaluate(self.condition, row, params) is True

    def keys(self, table: TableDef, params: Sequence[Any]) -> list[Key] | None:
        """The whole keys it asks for; None: not a set of whole keys."""
        found = self.range
        if not table.key or len(found.prefix) + (found.points is not None) != len(table.key):
            return None
        prefix = tuple(value.get(params) for value in found.prefix)
        if None in prefix:
            return []
        if found.points is None:
            return [prefix]
        encode = part_encoder(table.columns[table.key[-1]].type.name)  # 1.0 and 1.00, NaN and NaN are one key
        last = {encode(value): value for value in found.points.listed(params) if value is not None}
        return [(*prefix, value) for value in last.values()]


def picker(positions: Sequence[int]) -> Callable[[Row], Row]:
    """From a whole row, ``(*columns, _seq, _userid)``, the wanted columns."""
    if not positions:
        return lambda row: (None,)
    places = [place if place >= 0 else -3 - place for place in positions]
    if len(places) == 1:
        only = places[0]
        return lambda row: (row[only],)
    return itemgetter(*places)


@dataclass(slots=True)
class ReadPlan:
    """SELECT columns FROM table WHERE condition [LIMIT n] [FOR …]; with one of them also ORDER BY the key's columns.

    ``engine``: the query engine's plan of the same, where rows do not lie in the order that is asked for.
    """

    name: Name
    table: TableDef
    positions: tuple[int, ...]  # (): SELECT NULL
    columns: tuple[Column, ...]
    filter: Filter
    params: Params
    lock: Lock | None
    limit: Value | None
    pick: Callable[[Row], Row]
    ordered: bool = False
    writes: bool = False
    descending: bool = False
    engine: Callable[[], Any] | None = None
    one: tuple[Value, ...] = field(init=False)  # the whole key of the only row, if that is all it takes to read it

    def __post_init__(self) -> None:
        found = self.filter.range
        by_key = found.points is None and len(found.prefix) == len(self.table.key)
        self.one = found.prefix if by_key and not (self.lock or self.limit or self.engine) else ()

    def row(self, engine: Engine, tenant: str, params: Sequence[Any]) -> list[Row]:
        """By the key ``one``, as last committed. Raises NotInMemory."""
        key = tuple([value.get(params) for value in self.one])
        return [] if None in key else self._picked(params, (engine.get_newest(self.table, tenant, key),))

    def _in_order(self, run: Run) -> bool:
        """Does a scan give the rows in the order that is asked for?"""
        if not self.ordered or self.lock is not None:
            return True
        if access.read_tenant(run.account, self.table, run.tenant) is None:
            return False
        return not self.descending or run.transaction.reads_hot_alone(run.snapshot, self.table)

    def start(self, run: Run) -> Result | Awaitable[Result]:
        if self.engine is not None and not self._in_order(run):
            outcome: Result | Awaitable[Result] = self.engine().start(run)
            return outcome
        if (rows := self.rows_by_key(run, alone=run.own)) is not None:
            run.scanning(KEY)
            return Result(f"SELECT {len(rows)}", columns=self.columns, rows=rows)
        return answer(run, self._source(run, alone=True), self.columns)

    def source(self, run: Run) -> Source:
        """The rows for a statement that reads them itself, as INSERT … SELECT does."""
        if self.engine is not None and not self._in_order(run):
            other: Source = self.engine().source(run)
            return other
        rows = self.rows_by_key(run)
        if rows is not None:
            return ListSource(rows)
        source = self._source(run)
        assert not isinstance(source, BatchSource)
        return source

    def _source(self, run: Run, *, alone: bool = False) -> Source | BatchSource:
        account, table = run.account, self.table
        tenant = access.read_tenant(account, table, run.tenant)
        if self.lock is None:
            return self._scan(run, tenant, alone)
        access.write_tenant(account, table, run.tenant)
        return self._locking(run, tenant)

    def rows_by_key(self, run: Run, *, alone: bool = False) -> list[Row] | None:
        """What the condition gives by whole keys; None if it takes a scan. ``alone``: the transaction does no more."""
        if self.lock is not None or self.limit is not None:
            return None
        tenant = access.read_tenant(run.account, self.table, run.tenant)
        keys = self.filter.keys(self.table, run.params) if tenant is not None else None
        if keys is None:
            return None
        try:
            if alone and len(keys) == 1:  # one row is a snapshot of its own
                return self._picked(run.params, (run.engine.get_newest(self.table, tenant or "", keys[0]),))
            return self._get(run, tenant or "", keys)
        except NotInMemory:  # a file has to be read: a worker's work
            return None

    def _get(self, run: Run, tenant: str, keys: list[Key]) -> list[Row]:
        get, snapshot, table = run.transaction.get, run.snapshot, self.table
        return self._picked(run.params, [get(snapshot, table, tenant, key) for key in keys])

    def _picked(self, params: Sequence[Any], rows: Sequence[Row | None]) -> list[Row]:
        rest, pick = self.filter.range.rest, self.pick
        return [
            pick(row) for row in rows if row is not None and (rest is None or evaluate(rest, row, params) is True)
        ]

    def _scan(self, run: Run, tenant: str | None, alone: bool) -> Source | BatchSource:
        """``alone``: the rows are the statement's answer, and may be batches."""
        limit = limit_value(self.limit, run)
        scan = self.filter.scan(self.table, tenant, self.positions or (SEQ,), run.params, limit=limit,
                                stats=run.scanning(STORE), descending=self.descending)
        if scan is None or limit == 0:
            return ListSource([])
        if is_system(self.table):
            rows = SystemScan(run, self.table, self.filter, self.positions, limit)
            return ThreadSource.of_scan(run.workers, run.session, rows)
        context = run.context
        # LIMIT NULL leaves only ORDER BY, and batches come in no order
        batched = alone and not self.ordered and context is not None and context.arrow and not context.exec
        if batched and self.positions:
            ready = run.transaction.at_hand(run.snapshot, scan, alone=run.executor.alone(run.session))
            if ready is not None:
                return BatchSource.ready(run.workers, run.session, ready, self.columns)
        cursor = run.transaction.scan(run.snapshot, scan)
        if self.positions:
            if batched:
                batches = cursor.batches()
                if batches is not None:
                    return BatchSource(run.workers, run.session, batches, cursor.interrupt, cursor.close,
                                       self.columns)
            return ThreadSource.of_scan(run.workers, run.session, cursor)
        return ThreadSource(run.workers, run.session, lambda count: [(None,)] * len(cursor.fetch(count)),
                            cursor.interrupt, cursor.close)

    def _locking(self, run: Run, tenant: str | None) -> Source:
        scan = self.filter.scan(self.table, tenant, (SEQ,), run.params, with_id=True, stats=run.scanning(STORE))
        if scan is None:
            return ListSource([])
        inner: Source = ThreadSource.of_scan(run.workers, run.session, run.transaction.scan(run.snapshot, scan))
        if self.ordered and tenant is None:
            inner = SortSource(inner, self.table)
        return LockSource(inner, limit_value(self.limit, run), lambda found: self._locked(run, found))

    async def _locked(self, run: Run, found: Sequence[Row]) -> tuple[list[Row], int]:
        """Rows in their newest version, and their bytes; those that match no longer are left out."""
        assert self.lock is not None
        whole = await run.transaction.lock(
            run.snapshot, self.table, [(row[0], row[1]) for row in found], share=self.lock.share, wait=self.lock.wait,
            timeout_ms=run.lock_timeout,
        )
        rows = [row for row in whole if row is not None]
        return ([self.pick(row) for row in rows if self.filter.matches(row, run.params)], sum(map(size_of, rows)))


class Step:
    """How many rows to lock at once. Their size is known only then: so few at first, and more as long as they are
    small, up to ``most``."""

    def __init__(self, most: int) -> None:
        self.rows = FIRST_LOCKED
        self._most = most

    def took(self, size: int) -> None:
        """So many bytes were in the last ones."""
        self.rows = min(2 * self.rows, self._most) if size < SMALL_BYTES else max(1, self.rows // 4)


class LockSource:
    """Rows locked as they are read, and no more than LIMIT lets through. ``lock`` gives what of them is the answer, and
    the bytes of what was locked. A read ends after ``CHUNK_BYTES``.
    """

    def __init__(self, inner: Source, limit: int | None,
                 lock: Callable[[Sequence[Row]], Awaitable[tuple[list[Row], int]]]) -> None:
        self.full = False
        self._inner = inner
        self._left = limit
        self._lock = lock
        self._found: list[Row] = []  # and not locked yet
        self._step = Step(LOCK_ROWS)
        self._ended = False

    def ahead(self, count: int) -> None:
        pass

    async def read(self, count: int) -> list[Row]:
        wanted = count if self._left is None else min(count, self._left)
        rows: list[Row] = []
        size = 0
        self.full = False
        while len(rows) < wanted and not self.full and (self._found or not self._ended):
            locked, taken = await self._lock_some(wanted - len(rows))
            rows += locked
            size += taken
            self.full = size >= CHUNK_BYTES
        if self._left is not None:
            self._left -= len(rows)
        return rows

    async def _lock_some(self, count: int) -> tuple[list[Row], int]:
        if not self._found:
            self._found = await self._inner.read(min(LOCK_ROWS, count))
            self._ended = len(self._found) < min(LOCK_ROWS, count) and not self._inner.full
            if not self._found:
                return [], 0
        step = min(self._step.rows, count)
        part, self._found = self._found[:step], self._found[step:]
        rows, size = await self._lock(part)
        self._step.took(size)
        return rows, size

    def close(self) -> None:
        self._inner.close()


class SortSource:
    """Rows (tenant, key) of all tenants, which come in order of the tenant, in order of the key."""

    full = False

    def __init__(self, inner: Source, table: TableDef) -> None:
        self._inner = inner
        self._encoders = [part_encoder(table.columns[place].type.name) for place in table.key]
        self._rows: ListSource | None = None

    def ahead(self, count: int) -> None:
        pass

    async def read(self, count: int) -> list[Row]:
        if self._rows is None:
            found: list[Row] = []
            while rows := await self._inner.read(LOCK_ROWS):
                found += rows
            found.sort(key=lambda row: [encode(part) for encode, part in zip(self._encoders, row[1], strict=True)])
            self._rows = ListSource(found)
        return await self._rows.read(count)

    def close(self) -> None:
        self._inner.close()


class SystemScan:
    """Rows of a table of the namespace system, as a ``ScanCursor``."""

    full = False

    def __init__(self, run: Run, table: TableDef, condition: Filter, positions: Sequence[int], limit: int | None = None
                 ) -> None:
        pick, params = picker(positions), run.params
        rows = self._until_stopped(activity.rows(run, table))
        self._rows = islice((pick(row) for row in rows if condition.matches(row, params)), limit)
        self._stopped = False

    def _until_stopped(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            if self._stopped:
                raise KalamError("57014", "canceling statement due to user request")
            yield row

    def fetch(self, n: int) -> list[Row]:
        return list(islice(self._rows, n))

    def batches(self) -> None:
        return None

    def interrupt(self) -> None:
        self._stopped = True

    def close(self) -> None:
        self._rows = islice((), 0)


def limit_value(limit: Value | None, run: Run) -> int | None:
    """What LIMIT says; None: nothing."""
    if limit is None:
        return None
    value = limit.get(run.params)
    if value is not None and value < 0:
        raise KalamError("2201W", "LIMIT must not be negative")
    return None if value is None else int(value)


# ---------- planning ----------
def table_name(node: exp.Table) -> Name:
    if node.args.get("catalog") is not None:
        raise KalamError("0A000", "cross-database references are not implemented")
    if not isinstance(node.this, exp.Identifier):
        raise NotSimple
    db = node.args.get("db")
    return Name(identifier(db) if db is not None else None, identifier(node.this))


def qualifiers(node: exp.Table, table: TableDef) -> set[str]:
    alias = node.args.get("alias")
    return {identifier(alias.this)} if alias is not None else {table.name}


_SIMPLE_PARTS = {"expressions", "from_", "where", "locks", "limit", "kind"}
_LOCK_PARTS = _SIMPLE_PARTS | {"order"}


def is_simple_select(tree: exp.Expression) -> bool:
    """One plain table, no clause that needs the query engine."""
    if not isinstance(tree, exp.Select):
        return False
    if any(value for part, value in tree.args.items() if part not in _SIMPLE_PARTS):
        if not tree.args.get("locks") and not tree.args.get("limit"):  # else all rows are to be sorted
            return False
        if any(value for part, value in tree.args.items() if part not in _LOCK_PARTS):
            return False
    source = tree.args.get("from_")
    if source is None or not isinstance(source.this, exp.Table):
        return False
    table = source.this
    alias = table.args.get("alias")
    extra = any(value for part, value in table.args.items() if part not in ("this", "db", "catalog", "alias"))
    return not extra and isinstance(table.this, exp.Identifier) and (alias is None or not alias.args.get("columns"))


def lock_of(tree: exp.Select) -> Lock | None:
    locks = tree.args.get("locks") or []
    if not locks:
        return None
    if len(locks) > 1:
        raise KalamError("0A000", "several locking clauses are not supported")
    wait = locks[0].args.get("wait")
    mode: LockWait = "wait" if wait is None else "nowait" if wait is True else "skip"
    return Lock(not locks[0].args.get("update"), mode)


def projection(tree: exp.Select, binder: Binder) -> tuple[tuple[int, ...], tuple[Column, ...]]:
    positions: list[int] = []
    columns: list[Column] = []
    table = binder.table
    assert table is not None

    def add(position: int, name: str) -> None:
        positions.append(position)
        typmod = table.columns[position].typmod if position >= 0 else -1
        columns.append(Column(name, binder.type_of(position), typmod))

    for item in tree.expressions:
        inner = item.this if isinstance(item, exp.Alias) else item
        if isinstance(inner, exp.Star) and not any(inner.args.values()):
            for place, column in enumerate(table.columns):
                add(place, column.name)
            continue
        if isinstance(inner, exp.Null) and len(tree.expressions) == 1:
            return (), (Column(identifier(item.args["alias"]) if isinstance(item, exp.Alias) else "?column?",
                               types.TEXT),)
        if not isinstance(inner, exp.Column):
            raise NotSimple
        operand = binder.column(inner)
        assert operand.field is not None
        add(operand.field.position, identifier(item.args["alias"]) if item is not inner else identifier(inner.this))
    if not positions:
        raise NotSimple
    return tuple(positions), tuple(columns)


def limit_of(tree: exp.Select, params: Params) -> Value | None:
    """LIMIT as a number or parameter; NotSimple for anything else."""
    limit = tree.args.get("limit")
    if limit is None:
        return None
    count = limit.expression if isinstance(limit, exp.Limit) else None
    if isinstance(count, exp.Literal) and not count.is_string and count.this.isdecimal():
        return Value(None, int(count.this))
    if isinstance(count, exp.Parameter):
        index = parameter_index(count)
        params.infer(index, types.by_name("int8"))
        return Value(index)
    raise NotSimple


def order_position(item: exp.Expr, binder: Binder, positions: Sequence[int], columns: Sequence[Column]) -> int:
    """The column that an item of ORDER BY names: of the output first, as PostgreSQL has it. Raises NotSimple."""
    if isinstance(item, exp.Ordered) and isinstance(item.this, exp.Anonymous):
        operand = binder.column(binder.marked(item.this))
        assert operand.field is not None
        return operand.field.position
    if not isinstance(item, exp.Ordered) or not isinstance(item.this, exp.Column):
        raise NotSimple
    if item.this.args.get("table") is None and isinstance(item.this.this, exp.Identifier):
        name = identifier(item.this.this)
        shown = {position for position, column in zip(positions, columns, strict=True) if column.name == name}
        if shown:
            if len(shown) > 1:
                raise NotSimple
            return shown.pop()
    operand = binder.column(item.this)
    if operand.field is None:
        raise NotSimple
    return operand.field.position


def _order(tree: exp.Select, binder: Binder, fixed: int, positions: Sequence[int], columns: Sequence[Column]
           ) -> bool | None:
    """ORDER BY the key's columns in their order, of which the condition fixes the first: is it descending? None: there
    is no ORDER BY. Raises NotSimple for any other order."""
    order = tree.args.get("order")
    if order is None:
        return None
    table = binder.table
    assert table is not None
    place, directions = fixed, set()
    if table.kind == "stream" and not tree.args.get("locks"):  # whose rows lie in the order in which they came
        raise NotSimple
    for item in order.expressions:
        position = order_position(item, binder, positions, columns)
        if binder.type_of(position).name not in FAMILIES:  # whose keys are in no order
            raise NotSimple
        if position in table.key[:fixed]:
            continue
        if place >= len(table.key) or position != table.key[place]:
            raise NotSimple
        place += 1
        directions.add(bool(item.args.get("desc")))
    if len(directions) > 1:
        raise NotSimple
    return True in directions


def plan_read(tree: exp.Select, name: Name, table: TableDef, params: Params, engine: Callable[[], Any]) -> ReadPlan:
    """Raises NotSimple where the query engine has to do it."""
    source = tree.args["from_"].this
    binder = Binder(table, params, qualifiers(source, table))
    positions, columns = projection(tree, binder)
    where = tree.args.get("where")
    condition = None if where is None else binder.condition(where.this)
    lock = lock_of(tree)
    if lock is not None and is_system(table):
        raise KalamError("42809", f'cannot lock rows in system table "{table.name}"')
    found = Filter.of(table, condition)
    descending = _order(tree, binder, 0 if lock is not None else len(found.range.prefix), positions,
                        columns if positions else ())
    if descending and lock is not None:
        raise NotSimple
    return ReadPlan(name, table, positions, columns, found, params, lock, limit_of(tree, params), picker(positions),
                    ordered=descending is not None, writes=lock is not None, descending=bool(descending),
                    engine=None if lock is not None or descending is None else engine)
