"""CREATE and DROP of namespaces and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kalamdb import types
from kalamdb.api import Result
from kalamdb.errors import KalamError
from kalamdb.sql import access, checks, system
from kalamdb.sql.coerce import default_of
from kalamdb.sql.lexer import quote
from kalamdb.sql.run import Run
from kalamdb.sql.statements import (
    ColumnSpec,
    CreateNamespace,
    CreateTable,
    DropNamespace,
    DropTable,
    Name,
    UndropTable,
)
from kalamdb.txn.api import FILE, ColumnDef, Kind, TableDef, is_file

RESERVED_COLUMNS = frozenset({"_seq", "_userid", "_deleted"})
#: namespaces nobody creates
RESERVED_NAMESPACES = frozenset({"system", "information_schema", "pg_catalog"})
KINDS: dict[str, Kind] = {"user": "user", "shared": "shared", "stream": "stream"}
ACCESS_LEVELS = ("public", "private", "restricted", "dba")
NAME_BYTES = 63
_OPTIONS: dict[str, frozenset[str]] = {
    "type": frozenset(KINDS), "storage_id": frozenset(KINDS), "flush_policy": frozenset({"user", "shared"}),
    "deleted_retention_hours": frozenset({"user", "shared"}), "ttl_seconds": frozenset({"stream"}),
    "access_level": frozenset({"shared"}), "use_user_storage": frozenset({"user"}),
    "compression": frozenset({"user", "shared"}), "owner": frozenset(KINDS),
}


def check_name(name: str, what: str) -> str:
    if not name or len(name.encode()) > NAME_BYTES:
        raise KalamError("42602", f'invalid name for a {what}: "{name}"',
                         hint=f"Names have 1 to {NAME_BYTES} bytes.")
    return name


# ---------- namespaces ----------
async def create_namespace(statement: CreateNamespace, run: Run) -> Result:
    access.can_manage(run.account, "create a namespace")
    name = check_name(statement.name, "namespace")
    if name in RESERVED_NAMESPACES:
        raise KalamError("42939", f'namespace name "{name}" is reserved')
    if name in run.transaction.catalog.namespaces():
        if not statement.if_not_exists:
            raise KalamError("42P06", f'schema "{name}" already exists')
        if run.context is not None and not run.exec:  # pg_kalam makes sure of it before every table
            return Result("CREATE NAMESPACE")
        return Result("CREATE NAMESPACE", notices=(f'schema "{name}" already exists, skipping',))
    await run.transaction.create_namespace(name)
    return Result("CREATE NAMESPACE")


async def drop_namespace(statement: DropNamespace, run: Run) -> Result:
    """All of them or none; with CASCADE their tables are dropped as by DROP TABLE."""
    access.can_manage(run.account, "drop a namespace")
    notices: list[str] = []
    found: list[str] = []
    for name in statement.names:
        if name in RESERVED_NAMESPACES:
            raise KalamError("42939", f'namespace name "{name}" is reserved')
        await run.transaction.lock_namespace(name)
        if name in run.transaction.catalog.namespaces():
            found.append(name)
        elif statement.if_exists:
            notices.append(f'schema "{name}" does not exist, skipping')
        else:
            raise KalamError("3F000", f'schema "{name}" does not exist')
    tables = [table for name in found for table in run.transaction.catalog.tables(name)]
    tables.sort(key=lambda table: (table.namespace, table.name))
    if tables and not statement.cascade:
        named = tables[0].namespace
        raise KalamError("2BP01", f'cannot drop schema "{named}" because other objects depend on it', schema=named,
                         detail=_listed([table for table in tables if table.namespace == named]),
                         hint="Use DROP ... CASCADE to drop the dependent objects too.")
    for table in tables:
        access.can_manage_table(run.session.account, table, "drop a table")
        await run.transaction.lock_to_drop(table)
    for table in tables:
        await run.transaction.drop_table(table)
    for name in found:
        await run.transaction.drop_namespace(name)
    if tables:
        notices.append(f"drop cascades to {len(tables)} table{'s' if len(tables) > 1 else ''}")
    return Result("DROP NAMESPACE", notices=notices)


def _listed(tables: Sequence[TableDef]) -> str:
    lines = [f'table "{table.name}" depends on schema "{table.namespace}"' for table in tables[:10]]
    if len(tables) > 10:
        lines.append(f"and {len(tables) - 10} more")
    return "\n".join(lines)


async def _namespace_for(name: Name, run: Run) -> str:
    """Where a table is created; public comes into being when it is first needed."""
    known = run.transaction.catalog.namespaces()
    candidates = (name.namespace,) if name.namespace is not None else run.path
    for candidate in candidates:
        system.check_creatable(candidate, name.table)
        if candidate in known:
            return candidate
        if candidate == "public":
            await run.transaction.create_namespace("public")
            return candidate
    if name.namespace is not None:
        raise KalamError("3F000", f'schema "{name.namespace}" does not exist',
                         hint=f"CREATE NAMESPACE {quote(name.namespace)}")
    raise KalamError("3F000", "no schema has been selected to create in", hint="Qualify the name or SET search_path.")


# ---------- tables ----------
async def create_table(statement: CreateTable, run: Run) -> Result:
    access.can_manage(run.account, "create a table")
    check_name(statement.name.table, "table")
    options = dict(statement.options)
    kind = _kind(statement, options)
    check_options(kind, options, run)
    namespace = await _namespace_for(statement.name, run)
    if run.transaction.catalog.table(namespace, statement.name.table) is not None:
        if not statement.if_not_exists:
            raise KalamError("42P07", f'relation "{statement.name.table}" already exists',
                             schema=namespace, table=statement.name.table)
        return Result("CREATE TABLE", notices=(f'relation "{statement.name.table}" already exists, skipping',))
    table = _definition(statement, namespace, kind, options)
    access.check_level(run.account, table)
    await run.transaction.create_table(table)
    return Result("CREATE TABLE")


def _kind(statement: CreateTable, options: dict[str, str]) -> Kind:
    given = options.pop("type", None)
    if given is not None and given not in KINDS:
        raise KalamError("22023", f'invalid table type "{given}"', hint="Types are user, shared and stream.")
    if given is not None and statement.kind is not None and given != statement.kind:
        raise KalamError("42601", f"the table is declared {statement.kind.upper()} and has type '{given}'")
    return KINDS[statement.kind or given or "shared"]


def check_options(kind: Kind, options: Mapping[str, str], run: Run) -> None:
    for name, value in options.items():
        if name not in _OPTIONS or kind not in _OPTIONS[name]:
            valid = ", ".join(sorted(option for option, kinds in _OPTIONS.items() if kind in kinds))
            raise KalamError("22023", f'option "{name}" is not valid for a {kind} table',
                             hint=f"Valid options: {valid}.")
        _check_option(name, value)
        if name == "storage_id":
            _check_storage(value, run)
    if kind == "stream" and "ttl_seconds" not in options:
        raise KalamError("22023", "a stream table needs the option ttl_seconds")


def _check_option(name: str, value: str) -> None:
    allowed: str | None = None
    if name == "access_level" and value not in ACCESS_LEVELS:
        allowed = ", ".join(ACCESS_LEVELS)
    elif name == "ttl_seconds" and not (value.isdecimal() and 0 < int(value) <= 10**12):
        allowed = "a whole number of seconds above 0"
    elif name == "deleted_retention_hours" and not (value.isdecimal() and int(value) <= 10**9):
        allowed = "a whole number of hours"
    elif name == "compression" and value not in ("zstd", "snappy", "none"):
        allowed = "zstd, snappy, none"
    elif name == "use_user_storage" and value.lower() not in ("true", "false", "on", "off", "1", "0", "yes", "no"):
        allowed = "true or false"
    elif name == "flush_policy" and not _is_flush_policy(value):
        allowed = "rows:N, interval:SECONDS, or both with a comma"
    if allowed is not None:
        raise KalamError("22023", f'invalid value for option "{name}": "{value}"', hint=f"Allowed: {allowed}.")


def _check_storage(name: str, run: Run) -> None:
    known = [storage.id for storage in run.engine.storages()]
    if name not in known:
        raise KalamError("42704", f'storage "{name}" does not exist', hint=f"Storages: {', '.join(known)}.")


def _is_flush_policy(value: str) -> bool:
    parts = [part.strip().partition(":") for part in value.split(",")]
    names = [name for name, _, _ in parts]
    return len(set(names)) == len(names) and all(
        name in ("rows", "interval") and number.isdecimal() and int(number) > 0 for name, _, number in parts
    )


def _definition(statement: CreateTable, namespace: str, kind: Kind, options: dict[str, str]) -> TableDef:
    name = statement.name.table
    owner = options.pop("owner", None)
    columns = [column_of(place + 1, spec) for place, spec in enumerate(statement.columns)]
    names = [column.name for column in columns]
    for each in names:
        if names.count(each) > 1:
            raise KalamError("42701", f'column "{each}" specified more than once', column=each)
    key = _key(statement, names, kind)
    for place in key:
        if not columns[place].type.is_key or columns[place].is_file:
            raise KalamError("0A000", f"type {columns[place].declared} cannot be part of a key",
                             column=columns[place].name)
        column = columns[place]
        columns[place] = ColumnDef(column.id, column.name, column.type, column.declared, column.typmod, True,
                                   column.default)
    constraint = statement.key_constraint or f"{name}_pkey"
    table = TableDef(0, namespace, name, kind, tuple(columns), key, constraint, (), options, owner)
    made = checks.define(table, statement.checks)
    return TableDef(0, namespace, name, kind, tuple(columns), key, constraint, made, options, owner)


def check_reserved(name: str) -> None:
    if name in RESERVED_COLUMNS:
        raise KalamError("42701", f'column name "{name}" is reserved', column=name,
                         detail="_seq and _userid exist on every table without being declared.")


def column_of(number: int, spec: ColumnSpec) -> ColumnDef:
    check_reserved(check_name(spec.name, "column"))
    try:
        type_, typmod = types.parse_declared(spec.type)
    except KalamError as error:
        error.position = error.position or spec.position
        raise
    declared = FILE if is_file(spec.type) else spec.type
    column = ColumnDef(number, spec.name, type_, declared, typmod, spec.not_null, spec.default)
    if column.is_file and spec.default is not None:
        raise file_default(column.name)
    if spec.default is not None:
        _check_default(column)
    return column


def file_default(column: str) -> KalamError:
    return KalamError("0A000", f'column "{column}" of type FILE cannot have a default', column=column,
                      hint="A file is put before a row refers to it.")


def _check_default(column: ColumnDef) -> None:
    """A constant default must be a value of the column's type; what cannot be evaluated is kept as it is."""
    default_of(column)


def _key(statement: CreateTable, names: list[str], kind: Kind) -> tuple[int, ...]:
    wanted = statement.key
    if not wanted:
        if kind == "stream":
            return ()
        if "id" not in names:
            raise KalamError("42P16", f'table "{statement.name.table}" has no primary key',
                             hint="Declare PRIMARY KEY (...), or name a column id.")
        wanted = ("id",)
    for name in wanted:
        if name not in names:
            raise KalamError("42703", f'column "{name}" named in key does not exist', column=name)
        if wanted.count(name) > 1:
            raise KalamError("42701", f'column "{name}" appears twice in primary key constraint', column=name)
    return tuple(names.index(name) for name in wanted)


async def drop_table(statement: DropTable, run: Run) -> Result:
    access.can_manage(run.account, "drop a table")
    notices: list[str] = []
    detached = 0
    found: list[TableDef] = []
    for name in statement.names:
        table = access.find_table(run.transaction.catalog, name, run.path)
        if table is not None:
            system.check_writable(table)
        if table is None:
            if not statement.if_exists:
                raise KalamError("42P01", f'table "{name}" does not exist')
            notices.append(f'table "{name}" does not exist, skipping')
        elif statement.owned_by is not None and table.owner != statement.owned_by:
            detached += 1
        elif table not in found:
            access.can_manage_table(run.session.account, table, "drop a table")
            found.append(table)
    for table in found:  # all, before the first is dropped: what one of them is may have to be looked up again
        await run.transaction.lock_to_drop(table)
    for table in found:
        await run.transaction.drop_table(table)
    return Result("DETACH" if detached and not found else "DROP TABLE", notices=notices)


async def undrop_table(statement: UndropTable, run: Run) -> Result:
    access.can_manage(run.account, "restore a table")
    name = statement.name
    namespaces = (name.namespace,) if name.namespace is not None else run.path
    found = next((each for each in run.engine.dropped_tables()
                  if each.table.namespace in namespaces and each.table.name == name.table
                  and statement.id in (None, each.table.id)), None)
    if found is None:
        raise KalamError("42704", f'there is no dropped table "{name}"',
                         hint="SHOW DROPPED TABLES lists those that are kept (setting drop_grace).")
    access.can_manage_table(run.session.account, found.table, "restore a table")
    to = name.table if statement.to is None else check_name(statement.to, "table")
    await run.transaction.restore_table(found, found.table.namespace, to)
    return Result("UNDROP TABLE")
