"""ALTER TABLE: from a definition and actions to another definition, and what the rows that are there have to stand.

All actions of a statement are applied to the definition first, in the order written; then the table takes it, defaults
that differ from row to row are written, and constraints are held against every row, hot, cold and own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kalamdb import kept, types
from kalamdb.api import Result, Row
from kalamdb.errors import KalamError
from kalamdb.sql import access, checks, system
from kalamdb.sql.coerce import NOW, assignment, default_of, function_type
from kalamdb.sql.ddl import check_name, check_options, check_reserved, column_of, file_default
from kalamdb.sql.read import Filter
from kalamdb.sql.run import Run
from kalamdb.sql.statements import (
    Action,
    AddCheck,
    AddColumn,
    AlterTable,
    DropColumn,
    DropConstraint,
    RenameColumn,
    RenameConstraint,
    RenameTable,
    SetDefault,
    SetNotNull,
    SetOptions,
    SetType,
)
from kalamdb.txn.api import CheckDef, ColumnDef, Scan, StaleDefinition, TableDef, is_file

#: rows written with one call
FILL_ROWS = 1000
_WIDTHS = {"int2": 2, "int4": 4, "int8": 8, "float4": 4, "float8": 8}
_FAMILIES = ({"int2", "int4", "int8"}, {"float4", "float8"})
_WIDER = ("The server widens types: smallint to integer to bigint, real to double precision, varchar(n) to a longer "
          "one or text, numeric(p,s) to a higher p or numeric. Else add a column, UPDATE it, and drop the old one.")


async def alter_table(statement: AlterTable, run: Run) -> Result:
    access.can_manage(run.account, "alter a table")
    found = access.find_table(run.transaction.catalog, statement.name, run.path)
    if found is None:
        if not statement.if_exists:
            raise access.undefined_table(statement.name)
        return Result("ALTER TABLE", notices=(f'relation "{statement.name}" does not exist, skipping',))
    system.check_writable(found)
    if statement.owned_by in (None, found.owner):
        access.can_manage_table(run.session.account, found, "alter a table")
    table = await run.transaction.lock_table(found)
    if (table.namespace, table.name) != (found.namespace, found.name):
        raise StaleDefinition(found)
    if statement.kind is not None and statement.kind != table.kind:
        raise KalamError("42809", f'"{table.name}" is not a {statement.kind} table',
                         hint=f"It is a {table.kind} table.")
    if statement.owned_by is not None and statement.owned_by != table.owner:
        return Result("DETACH")
    access.can_manage_table(run.session.account, table, "alter a table")
    alteration = Alteration(table, run, statement.owned_by is not None)
    for action in statement.actions:
        alteration.apply(action)
    if alteration.table is not table:
        await alteration.finish()
    tag = f"ALTER TABLE {alteration.unheld}" if alteration.unheld and run.context is not None else "ALTER TABLE"
    return Result(tag, notices=alteration.notices)


def _undefined(table: TableDef, column: str) -> KalamError:
    return KalamError("42703", f'column "{column}" of relation "{table.name}" does not exist', schema=table.namespace,
                      table=table.name, column=column)


def wider(before: ColumnDef, kind: types.PgType, typmod: int) -> bool:
    """Has every value of a column the same storage form in another type?"""
    one, two = before.type.name, kind.name
    if one in _WIDTHS and two in _WIDTHS:
        return any(one in family and two in family for family in _FAMILIES) and _WIDTHS[one] <= _WIDTHS[two]
    if one == two and typmod == -1:
        return True
    if one == two in ("bit", "embedding"):
        return False
    if one == two == "varchar":
        return before.typmod != -1 and typmod >= before.typmod
    if one == two == "numeric":
        return before.typmod != -1 and _wider_numeric(before.typmod - 4, typmod - 4)
    if one == two:  # timestamps
        return before.typmod != -1 and typmod >= before.typmod
    if two == "text" and one in _WRITTEN:
        return True
    return {one, two} <= {"varchar", "text"} and typmod == -1


#: kept as text, whose cast to text is that text
_WRITTEN = {name for name in kept.TYPES if name not in ("bpchar", "inet", "cidr")}


def _wider_numeric(before: int, after: int) -> bool:
    """The same scale: else every value would be written otherwise."""
    return before & 0x7FF == after & 0x7FF and after >> 16 >= before >> 16


@dataclass
class Alteration:
    table: TableDef
    run: Run
    owned: bool = False  # said by the PostgreSQL that manages it
    notices: list[str] = field(default_factory=list)
    unheld: int = 0  # new constraints that only PostgreSQL evaluates
    _fills: dict[int, str] = field(default_factory=dict)  # column id: function whose value every row has its own
    _not_null: set[int] = field(default_factory=set)  # column ids to look at
    _checks: list[str] = field(default_factory=list)

    def apply(self, action: Action) -> None:
        match action:
            case AddColumn():
                self._add_column(action)
            case DropColumn():
                self._drop_column(action)
            case RenameColumn():
                self._rename_column(action)
            case RenameTable():
                self.table = replace(self.table, name=check_name(action.to, "table"))
            case RenameConstraint():
                self._rename_constraint(action)
            case SetType():
                self._set_type(action)
            case SetDefault():
                self._set_default(action)
            case SetNotNull():
                self._set_not_null(action)
            case AddCheck():
                name = action.check.name or checks.free_name(self.table)
                self._add_check(name, action.check.expression, action.valid)
            case DropConstraint():
                self._drop_constraint(action)
            case SetOptions():
                self._set_options(action)

    # ---------- columns ----------
    def _place(self, name: str) -> int:
        for place, column in enumerate(self.table.columns):
            if column.name == name:
                return place
        if name in ("_seq", "_userid"):
            raise KalamError("0A000", f'system column "{name}" cannot be altered', column=name)
        raise _undefined(self.table, name)

    def _replace(self, place: int, **changes: Any) -> None:
        columns = list(self.table.columns)
        columns[place] = replace(columns[place], **changes)
        self.table = replace(self.table, columns=tuple(columns))

    def _is_free(self, name: str) -> bool:
        return all(column.name != name for column in self.table.columns)

    def _exists_already(self, name: str) -> KalamError:
        return KalamError("42701", f'column "{name}" of relation "{self.table.name}" already exists',
                          schema=self.table.namespace, table=self.table.name, column=name)

    def _add_column(self, action: AddColumn) -> None:
        spec = action.column
        if not self._is_free(spec.name):
            if not action.if_not_exists or not self._is_adopted(action):
                raise self._exists_already(spec.name)
            self.notices.append(f'column "{spec.name}" of relation "{self.table.name}" already exists, skipping')
            return
        number = self.table.next_column
        column = replace(column_of(number, spec), late=True)
        column = replace(column, missing=self._fill(action, column))
        self.table = replace(self.table, columns=(*self.table.columns, column), last_column=number)
        if spec.not_null:
            self._not_null.add(number)
        for check in action.checks:
            self._add_check(check.name or checks.free_name(self.table, spec.name), check.expression, True)

    def _is_adopted(self, action: AddColumn) -> bool:
        """pg_kalam means the column that is there only if it is of the same type: it mends a difference."""
        if not self.owned:
            return True
        there = self.table.columns[self._place(action.column.name)]
        return types.parse_declared(action.column.type) == (there.type, there.typmod)

    def _fill(self, action: AddColumn, column: ColumnDef) -> Any:
        """What rows that are there show in a new column."""
        if column.is_file and action.fill is not None:
            raise file_default(column.name)
        if action.filled:
            return None if action.fill is None else types.read_text(column.type, action.fill, column.typmod)
        how, value = default_of(column)
        if how == "value":
            return value
        if how == "unknown":
            raise KalamError("0A000", f'the default of column "{column.name}" cannot be evaluated for the rows '
                                      f"that are there", column=column.name,
                             hint="Add the column without it, UPDATE the rows, then SET DEFAULT.")
        convert = assignment(function_type(value), column)
        if value == NOW:
            now = self.run.function(value)
            return now if convert is None else convert(now)
        self._fills[column.id] = value
        return None

    def _drop_column(self, action: DropColumn) -> None:
        if self._is_free(action.name) and action.if_exists:
            self.notices.append(f'column "{action.name}" of relation "{self.table.name}" does not exist, skipping')
            return
        place = self._place(action.name)
        if place in self.table.key:
            raise KalamError("2BP01", f'cannot drop column "{action.name}" because it is part of the key of table '
                                      f'"{self.table.name}"', column=action.name,
                             hint="Create a new table with another key and copy the rows by INSERT ... SELECT.")
        if len(self.table.columns) == 1:
            raise KalamError("0A000", f'cannot drop the last column of table "{self.table.name}"', column=action.name)
        columns = self.table.columns[:place] + self.table.columns[place + 1 :]
        self.table = replace(
            self.table, columns=columns, last_column=self.table.next_column - 1,
            key=tuple(each - (each > place) for each in self.table.key),
            checks=tuple(check for check in self.table.checks if not checks.mentions(check, action.name)),
        )

    def _rename_column(self, action: RenameColumn) -> None:
        place = self._place(action.name)
        check_reserved(check_name(action.to, "column"))
        if not self._is_free(action.to):
            raise self._exists_already(action.to)
        self._replace(place, name=action.to)
        self.table = replace(self.table, checks=tuple(
            checks.renamed(check, action.name, action.to) for check in self.table.checks))

    def _set_type(self, action: SetType) -> None:
        place = self._place(action.column)
        column = self.table.columns[place]
        try:
            kind, typmod = types.parse_declared(action.type)
        except KalamError as error:
            error.position = error.position or action.position
            raise
        if (kind.name, typmod) == (column.type.name, column.typmod) and is_file(action.type) == column.is_file:
            return
        key = place in self.table.key and column.type.name in _WRITTEN
        if not wider(column, kind, typmod) or key or column.is_file or is_file(action.type):
            raise KalamError("0A000", f'cannot alter type of column "{column.name}" from {column.declared} to '
                                      f"{action.type}", column=column.name, hint=_WIDER)
        self._replace(place, type=kind, typmod=typmod, declared=action.type)

    def _set_default(self, action: SetDefault) -> None:
        place = self._place(action.column)
        if self.table.columns[place].is_file and action.default is not None:
            raise file_default(action.column)
        self._replace(place, default=action.default)
        if action.default is not None:
            default_of(self.table.columns[place])

    def _set_not_null(self, action: SetNotNull) -> None:
        place = self._place(action.column)
        if place in self.table.key and not action.not_null:
            raise KalamError("42P16", f'column "{action.column}" is in a primary key', column=action.column)
        if action.not_null and not self.table.columns[place].not_null:
            self._not_null.add(self.table.columns[place].id)
        self._replace(place, not_null=action.not_null)

    # ---------- constraints ----------
    def _add_check(self, name: str, expression: str, valid: bool) -> None:
        check_name(name, "constraint")
        self._check_free(name)
        self.table = replace(self.table, checks=(*self.table.checks, checks.definition(self.table, name, expression)))
        if valid:
            self._checks.append(name)

    def _check_free(self, name: str) -> None:
        if name == self.table.key_constraint or any(check.name == name for check in self.table.checks):
            raise KalamError("42710", f'constraint "{name}" for relation "{self.table.name}" already exists',
                             schema=self.table.namespace, table=self.table.name, constraint=name)

    def _no_constraint(self, name: str) -> KalamError:
        return KalamError("42704", f'constraint "{name}" of relation "{self.table.name}" does not exist',
                          schema=self.table.namespace, table=self.table.name, constraint=name)

    def _rename_constraint(self, action: RenameConstraint) -> None:
        known = {check.name for check in self.table.checks}
        if action.name not in known and action.name != self.table.key_constraint:
            raise self._no_constraint(action.name)
        self._check_free(check_name(action.to, "constraint"))
        if action.name == self.table.key_constraint:
            self.table = replace(self.table, key_constraint=action.to)
            return
        self.table = replace(self.table, checks=tuple(
            replace(check, name=action.to) if check.name == action.name else check for check in self.table.checks))
        self._checks = [action.to if name == action.name else name for name in self._checks]

    def _drop_constraint(self, action: DropConstraint) -> None:
        if action.name == self.table.key_constraint:
            raise KalamError("0A000", f'the key of table "{self.table.name}" cannot be dropped', constraint=action.name)
        left = tuple(check for check in self.table.checks if check.name != action.name)
        if len(left) == len(self.table.checks):
            if not action.if_exists:
                raise self._no_constraint(action.name)
            self.notices.append(f'constraint "{action.name}" of relation "{self.table.name}" does not exist, skipping')
            return
        self.table = replace(self.table, checks=left)

    # ---------- options ----------
    def _set_options(self, action: SetOptions) -> None:
        if "type" in action.options or "type" in action.reset:
            raise KalamError("0A000", "the type of a table cannot be changed",
                             hint="Create a new table and copy the rows by INSERT ... SELECT.")
        options = {**dict(self.table.options), **action.options}
        for name in action.reset:
            options.pop(name, None)
        owner = options.pop("owner", None if "owner" in action.reset else self.table.owner)
        check_options(self.table.kind, options, self.run)
        self.table = replace(self.table, options=options, owner=owner)
        access.check_level(self.run.session.account, self.table)

    # ---------- the rows that are there ----------
    async def finish(self) -> None:
        defined = tuple(checks.definition(self.table, check.name, check.expression) for check in self.table.checks)
        self.table = await self.run.transaction.alter_table(replace(self.table, checks=defined))
        known = {column.id: place for place, column in enumerate(self.table.columns)}
        fills = {known[number]: name for number, name in self._fills.items() if number in known}
        if fills:
            await self._fill_rows(fills)
        for place in sorted(known[number] for number in self._not_null if number in known):
            if self.table.columns[place].not_null:
                await self._check_not_null(place)
        for check in self.table.checks:
            if check.name in self._checks:
                await self._check_check(check)

    @property
    def _tenant(self) -> str | None:
        return "" if self.table.kind == "shared" else None

    async def _rows(self, scan: Scan, count: int, use: Callable[[list[Row]], Any] | None = None) -> list[Row]:
        """The first rows of a scan; or, ``use`` given, all of them in parts of ``count``."""
        cursor = self.run.transaction.scan(self.run.transaction.newest(), scan)
        try:
            while True:
                rows = await self.run.workers.run(self.run.session, cursor.interrupt, lambda: cursor.fetch(count))
                if use is None or not rows:
                    return rows
                await use(rows)
        finally:
            cursor.close()

    async def _fill_rows(self, fills: dict[int, str]) -> None:
        """Defaults of which every row has its own value."""
        if self.table.kind == "stream":
            await self._check_no_events(self.table.columns[min(fills)])
        async def write(rows: list[Row]) -> None:
            await self.run.transaction.update(self.table, [
                ((tenant, key), {place: self.run.function(name) for place, name in fills.items()})
                for tenant, key in rows
            ])

        await self._rows(Scan(self.table, self._tenant, (), with_id=True), FILL_ROWS, write)

    async def _check_no_events(self, column: ColumnDef) -> None:
        """A row that is written again lives for another ttl_seconds."""
        if await self._rows(Scan(self.table, self._tenant, (), limit=1), 1):
            raise KalamError("0A000", f'the default of column "{column.name}" cannot be given to the rows of a stream '
                                      f"that are there", schema=self.table.namespace, table=self.table.name,
                             column=column.name, hint="Add the column without it, then SET DEFAULT for rows to come.")

    async def _check_not_null(self, place: int) -> None:
        column = self.table.columns[place]
        name = f"c{column.id}"

        def mask(batch: pa.RecordBatch) -> pa.Array:
            return pc.is_null(batch.column(name))

        if await self._rows(Scan(self.table, self._tenant, (place,), f"{name} IS NULL", limit=1, mask=mask), 1):
            raise KalamError("23502", f'column "{column.name}" of relation "{self.table.name}" contains null values',
                             schema=self.table.namespace, table=self.table.name, column=column.name)

    async def _check_check(self, check: CheckDef) -> None:
        condition = checks.violation(self.table, check)
        if condition is None:
            self.unheld += 1
            return
        scan = Filter.of(self.table, condition).scan(self.table, self._tenant, (), (), limit=1)
        if scan is not None and await self._rows(scan, 1):
            raise KalamError("23514", f'check constraint "{check.name}" of relation "{self.table.name}" is violated by '
                                      f"some row", schema=self.table.namespace, table=self.table.name,
                             constraint=check.name)
