"""Statements that only tell: SHOW, DESCRIBE."""

from __future__ import annotations

import re
from collections.abc import Sequence

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.sql import access, system
from kalamdb.sql.capabilities import capabilities
from kalamdb.sql.native import EPOCH_MICROS
from kalamdb.sql.parseadmin import FORMS
from kalamdb.sql.run import Run
from kalamdb.sql.settings import all_settings, show_setting
from kalamdb.sql.statements import (
    Describe,
    Show,
    ShowColumnWidths,
    ShowOutcome,
    ShowScanStats,
    ShowTable,
    ShowTableSize,
    ShowTableStats,
    Statement,
    StorageJob,
)
from kalamdb.sql.storage import MOVED, STATS, WIDTHS
from kalamdb.txn.api import CatalogView, TableDef


def columns_of(*names: str) -> tuple[Column, ...]:
    """Text columns, or ``name:type``."""
    made = []
    for name in names:
        word, _, kind = name.partition(":")
        made.append(Column(word, types.by_name(kind or "text")))
    return tuple(made)


CAPABILITIES = columns_of("kind", "name", "args", "remote", "flags")
NAMESPACES = columns_of("namespace")
TABLES = columns_of("namespace", "table", "type", "owner")
DROPPED = columns_of("id:int8", "namespace", "table", "type", "dropped_at:timestamptz", "until:timestamptz")
TABLE = columns_of("option", "value")
DESCRIBE = columns_of("name", "type", "not_null:bool", "default", "key:int4", "system:bool")
SETTINGS = columns_of("name", "setting")
OUTCOME = columns_of("outcome")


def result_columns(statement: Statement) -> tuple[Column, ...] | None:
    match statement:
        case Describe():
            return DESCRIBE
        case ShowTable():
            return TABLE
        case ShowTableStats() | ShowTableSize():
            return STATS
        case ShowScanStats():
            return SETTINGS
        case ShowColumnWidths():
            return WIDTHS
        case StorageJob():
            return MOVED
        case ShowOutcome():
            return OUTCOME
        case Show(what="capabilities"):
            return CAPABILITIES
        case Show(what="namespaces" | "schemas"):
            return NAMESPACES
        case Show(what="tables"):
            return TABLES
        case Show(what="dropped tables"):
            return DROPPED
        case Show(what="all"):
            return SETTINGS
        case Show():
            return _setting_columns(statement.what)
    return None


_setting_shapes: dict[str, tuple[Column, ...]] = {}


def _setting_columns(name: str) -> tuple[Column, ...]:
    shape = _setting_shapes.get(name)
    if shape is None:
        shape = _setting_shapes[name] = columns_of(name.replace(":", "_"))
        if len(_setting_shapes) > 1000:
            _setting_shapes.clear()
    return shape


def _tables(namespace: str | None, catalog: CatalogView) -> list[TableDef]:
    """Those of one namespace, or all but the system's."""
    if namespace == system.NAMESPACE:
        return list(system.TABLES.values())
    if namespace is not None and namespace not in catalog.namespaces():
        raise KalamError("3F000", f'schema "{namespace}" does not exist')
    return catalog.tables(namespace)


def _described(table: TableDef) -> list[Row]:
    rows: list[Row] = []
    for place, column in enumerate(table.columns):
        key = table.key.index(place) + 1 if place in table.key else None
        rows.append((column.name, column.declared, int(column.not_null), column.default, key, 0))
    if system.is_system(table):
        return rows
    rows.append(("_seq", "bigint", 0, None, None, 1))
    if table.kind != "shared":
        rows.append(("_userid", "text", 0, None, None, 1))
    return rows


def _table_options(table: TableDef) -> list[Row]:
    options = {"type": table.kind, **dict(table.options), "key_constraint": table.key_constraint}
    if not table.key_constraint:  # a system table
        del options["key_constraint"]
    if table.kind == "shared":
        options.setdefault("access_level", "private")
    if table.owner is not None:
        options["owner"] = table.owner
    if system.is_system(table):
        return list(options.items())
    options["definition"] = table.definition
    options |= {f"not_null.{column.name}": "true" for column in table.columns if column.not_null}
    for check in table.checks:
        options[f"check.{check.name}"] = check.expression
        if check.enforced:
            options[f"enforced.{check.name}"] = "true"
    return list(options.items())


def _dropped(namespace: str | None, run: Run) -> list[Row]:
    access.can_manage(run.account, "look at dropped tables")
    return [
        (each.table.id, each.table.namespace, each.table.name, each.table.kind, each.dropped_at * 1000 - EPOCH_MICROS,
         each.until * 1000 - EPOCH_MICROS)
        for each in run.engine.dropped_tables() if namespace is None or each.table.namespace == namespace
    ]


def _like(rows: list[Row], place: int, pattern: str | None) -> list[Row]:
    """The rows whose text there is LIKE the pattern."""
    if pattern is None:
        return rows
    parts, escaped = [], False
    for char in pattern:
        if escaped or char not in "%_\\":
            parts.append(re.escape(char))
            escaped = False
        elif char == "\\":
            escaped = True
        else:
            parts.append(".*" if char == "%" else ".")
    if escaped:
        raise KalamError("22025", "LIKE pattern must not end with escape character")
    matches = re.compile("".join(parts), re.DOTALL).fullmatch
    return [row for row in rows if matches(row[place])]


def _setting(statement: Show, run: Run) -> str:
    try:
        return show_setting(run.session, statement.what, run.transaction, run.executor.settings)
    except KalamError as error:
        error.position = statement.place
        if error.hint is None:
            error.hint = "SHOW also takes " + ", ".join(FORMS).upper() + " and TABLE name."
        raise


async def show_outcome(statement: ShowOutcome, run: Run) -> Result:
    return Result("SHOW", columns=result_columns(statement), rows=[(await run.engine.outcome(statement.id),)])


def show(statement: Statement, run: Run) -> Result:
    columns = result_columns(statement)
    rows: Sequence[Row]
    catalog = run.transaction.catalog
    match statement:
        case Describe():
            table = access.resolve(catalog, statement.table, run.path)
            access.check_describable(run.account, table)
            rows = _like(_described(table), 0, statement.pattern)
        case ShowTable():
            found = access.find_table(catalog, statement.table, run.path)
            if found is None and not statement.if_exists:
                raise access.undefined_table(statement.table)
            if found is not None:
                access.check_describable(run.account, found)
            rows = [] if found is None else _table_options(found)
        case ShowScanStats():
            report = run.state.reports.take(statement.number)
            rows = [] if report is None else report.rows()
        case Show(what="capabilities"):
            rows = capabilities(run.engine.server_id, run.engine.node_id)
        case Show(what="namespaces" | "schemas"):
            rows = _like([(name,) for name in sorted(catalog.namespaces())], 0, statement.pattern)
        case Show(what="tables"):
            tables = sorted(_tables(statement.namespace, catalog), key=lambda table: (table.namespace, table.name))
            rows = _like([(table.namespace, table.name, table.kind, table.owner) for table in tables
                          if access.may_read(run.account, table)], 1, statement.pattern)
        case Show(what="dropped tables"):
            rows = _dropped(statement.namespace, run)
        case Show(what="all"):
            rows = all_settings(run.session, run.executor.settings)
        case Show():
            rows = [(_setting(statement, run),)]
        case _:
            raise AssertionError(statement)
    return Result("SHOW" if not isinstance(statement, Describe) else "DESCRIBE", columns=columns, rows=rows)
