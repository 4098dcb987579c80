"""The read-only namespace `system`: its tables, their columns, and which table a name means.

Each is a ``TableDef`` with a negative id, so that names, conditions and types are bound as for stored tables; the rows
come from ``kalamdb.sql.activity``. This is the only place that declares the columns.
"""

from __future__ import annotations

from kalamdb import types
from kalamdb.errors import KalamError
from kalamdb.txn.api import ColumnDef, TableDef

NAMESPACE = "system"

#: table: columns as ``name type``
_COLUMNS: dict[str, str] = {
    "tables": "id int8, namespace text, table text, type text, key text, columns int4, access_level text, "
              "options jsonb, owner text, version int4",
    "columns": "namespace text, table text, position int4, name text, type text, not_null bool, default text, "
               "key int4",
    "namespaces": "name text",
    "users": "name text, role text, has_password bool, locked bool",
    "sessions": "id int8, account text, role text, tenant text, peer text, application_name text, state text, "
                "connected_at timestamptz, statement_started_at timestamptz, transaction text, cursors int4",
    "transactions": "id text, session int8, isolation text, read_only bool, status text, started_at timestamptz, "
                    "rows_written int8, savepoint_level int4, waiting bool",
    "locks": "transaction text, session int8, namespace text, table text, tenant text, key text, mode text, "
             "granted bool",
    "settings": "name text, value text, default text, description text",
    "jobs": "id int8, kind text, namespace text, table text, status text, progress float8, rows int8, detail text, "
            "started_at timestamptz, ended_at timestamptz",
    "segments": "id int8, namespace text, table text, file text, storage text, rows int8, deleted int8, bytes int8, "
                "min_seq int8, max_seq int8, created_at timestamptz",
    "storages": "id text, kind text, location text",
}
#: as DESCRIBE writes the types
_DECLARED = {
    "int4": "integer", "int8": "bigint", "float8": "double precision", "bool": "boolean",
    "timestamptz": "timestamp with time zone",
}


def _column(number: int, text: str) -> ColumnDef:
    name, kind = text.split()
    return ColumnDef(number, name, types.by_name(kind), _DECLARED.get(kind, kind))


def _define(number: int, name: str, columns: str) -> TableDef:
    made = tuple(_column(place, text) for place, text in enumerate(columns.split(", "), 1))
    return TableDef(-number, NAMESPACE, name, "shared", made, (), "",
                    options={"access_level": "public", "updatable": "false"})


TABLES: dict[str, TableDef] = {
    name: _define(number, name, columns) for number, (name, columns) in enumerate(_COLUMNS.items(), 1)
}


def is_system(table: TableDef) -> bool:
    return table.id < 0


def check_writable(table: TableDef) -> None:
    """Raises 42501 for a table of this namespace."""
    if table.id < 0:
        raise KalamError("42501", f'permission denied: "{table.name}" is a system catalog',
                         schema=table.namespace, table=table.name)


def check_creatable(namespace: str, table: str) -> None:
    """Raises 42501 where a table is to be made in this namespace."""
    if namespace == NAMESPACE:
        raise KalamError("42501", f'permission denied to create "{namespace}.{table}"',
                         detail="The namespace system is read-only.")
