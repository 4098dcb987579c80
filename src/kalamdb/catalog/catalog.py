"""Namespaces, tables and accounts: kept in the database, with a copy in memory that follows each commit.

The copy is read and changed in the event loop only; a transaction sees it through a view with its own changes on top.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import apsw

from kalamdb import types
from kalamdb.api import Role
from kalamdb.errors import KalamError
from kalamdb.store import manifest
from kalamdb.store.hot import Layouts
from kalamdb.txn.api import AccountDef, CheckDef, ColumnDef, TableDef

TableName = tuple[str, str]

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS kalam_meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS kalam_namespaces (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS kalam_tables (id INTEGER PRIMARY KEY, definition TEXT NOT NULL, dropped_at INTEGER) "
    "STRICT",
    "CREATE TABLE IF NOT EXISTS kalam_accounts (name TEXT PRIMARY KEY, role INTEGER NOT NULL, password_hash TEXT) "
    "STRICT, WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS kalam_outcomes (txn_id TEXT PRIMARY KEY, seq INTEGER NOT NULL, at INTEGER NOT NULL) "
    "STRICT, WITHOUT ROWID",
)
FORMAT = 1


def create_schema(connection: apsw.Connection) -> None:
    """The store's own tables, if they are not there. Raises KalamError where the data are of a later format."""
    for statement in (*_SCHEMA, *manifest.SCHEMA):
        connection.execute(statement)
    found = meta(connection, "format", lambda: FORMAT)
    if found != FORMAT:
        raise KalamError("58000", f"the data directory has format {found}, this server reads format {FORMAT}")


def meta(connection: apsw.Connection, name: str, make: Callable[[], Any]) -> Any:
    """A fact of the data directory, made at its first use."""
    row = connection.execute("SELECT value FROM kalam_meta WHERE name = ?", (name,)).fetchall()
    if row:
        return row[0][0]
    value = make()
    connection.execute("INSERT INTO kalam_meta VALUES (?, ?)", (name, value))
    return value


# ---------- definitions as text ----------
def dump_table(table: TableDef) -> str:
    return json.dumps({
        "namespace": table.namespace, "name": table.name, "kind": table.kind,
        "columns": [
            {"id": column.id, "name": column.name, "type": column.type.name, "declared": column.declared,
             "typmod": column.typmod, "not_null": column.not_null, "default": column.default}
            for column in table.columns
        ],
        "key": list(table.key), "key_constraint": table.key_constraint,
        "checks": [[check.name, check.expression, check.enforced] for check in table.checks],
        "options": dict(table.options), "owner": table.owner, "version": table.version,
    }, ensure_ascii=False)


def load_table(number: int, text: str) -> TableDef:
    found = json.loads(text)
    columns = tuple(
        ColumnDef(item["id"], item["name"], types.by_name(item["type"]), item["declared"], item["typmod"],
                  item["not_null"], item["default"])
        for item in found["columns"]
    )
    checks = tuple(CheckDef(*check) for check in found["checks"])
    return TableDef(number, found["namespace"], found["name"], found["kind"], columns, tuple(found["key"]),
                    found["key_constraint"], checks, found["options"], found["owner"], found["version"])


# ---------- committed ----------
class Catalog:
    """What is committed."""

    def __init__(self) -> None:
        self.namespaces: set[str] = set()
        self.by_name: dict[TableName, TableDef] = {}
        self.by_id: dict[int, TableDef] = {}
        self.accounts: dict[str, AccountDef] = {}
        self._versions = itertools.count(1)
        self.version = 0
        self._last_id = 0

    def load(self, connection: apsw.Connection) -> None:
        self.namespaces = {name for (name,) in connection.execute("SELECT name FROM kalam_namespaces")}
        query = "SELECT id, definition FROM kalam_tables WHERE dropped_at IS NULL"
        number: Any
        text: Any
        for number, text in connection.execute(query).fetchall():
            self._add(load_table(number, text))
        for name, role, password in connection.execute("SELECT name, role, password_hash FROM kalam_accounts"):
            self.accounts[name] = AccountDef(name, Role(role), password)
        ((number,),) = connection.execute("SELECT coalesce(max(id), 0) FROM kalam_tables").fetchall()
        self._last_id = number

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def next_version(self) -> int:
        return next(self._versions)

    def _add(self, table: TableDef) -> None:
        self.by_name[table.namespace, table.name] = table
        self.by_id[table.id] = table

    def publish(self, changes: CatalogChanges) -> None:
        """A committed transaction's definitions become everybody's."""
        self.namespaces |= changes.namespaces
        for name, table in changes.tables.items():
            before = self.by_name.pop(name, None)
            if before is not None:
                self.by_id.pop(before.id, None)
            if table is not None:
                self._add(table)
        for user, account in changes.accounts.items():
            if account is None:
                self.accounts.pop(user, None)
            else:
                self.accounts[user] = account
        self.version = self.next_version()


@dataclass(frozen=True, slots=True)
class CatalogChanges:
    """One transaction's definitions: new namespaces; tables and accounts by name, None where dropped."""

    namespaces: frozenset[str] = frozenset()
    tables: Mapping[TableName, TableDef | None] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()  # ids of committed tables
    accounts: Mapping[str, AccountDef | None] = field(default_factory=dict)
    version: int = 0

    def created(self) -> list[TableDef]:
        return [table for table in self.tables.values() if table is not None]

    def with_namespace(self, name: str, version: int) -> CatalogChanges:
        return replace(self, namespaces=self.namespaces | {name}, version=version)

    def with_table(self, table: TableDef, version: int) -> CatalogChanges:
        return replace(self, tables={**self.tables, (table.namespace, table.name): table}, version=version)

    def without_table(self, table: TableDef, version: int) -> CatalogChanges:
        own = any(made is not None and made.id == table.id for made in self.tables.values())
        return replace(self, tables={**self.tables, (table.namespace, table.name): None},
                       dropped=self.dropped if own else (*self.dropped, table.id), version=version)

    def with_account(self, name: str, account: AccountDef | None, version: int) -> CatalogChanges:
        return replace(self, accounts={**self.accounts, name: account}, version=version)

    def apply(self, connection: apsw.Connection, layouts: Layouts) -> None:
        """In the writer's thread, within its transaction. A dropped table's rows stay until they are purged."""
        for name in self.namespaces:
            connection.execute("INSERT OR IGNORE INTO kalam_namespaces VALUES (?)", (name,))
        now = int(time.time() * 1000)
        for number in self.dropped:
            connection.execute("UPDATE kalam_tables SET dropped_at = ? WHERE id = ?", (now, number))
        for table in self.created():
            connection.execute("INSERT INTO kalam_tables (id, definition) VALUES (?, ?)", (table.id, dump_table(table)))
            layout = layouts.of(table)
            connection.execute(layout.create)
            if layout.index is not None:
                connection.execute(layout.index)
        for name, account in self.accounts.items():
            if account is None:
                connection.execute("DELETE FROM kalam_accounts WHERE name = ?", (name,))
            else:
                connection.execute("REPLACE INTO kalam_accounts VALUES (?, ?, ?)",
                                   (name, int(account.role), account.password_hash))


class View:
    """The committed catalog under a transaction's own changes."""

    __slots__ = ("_catalog", "changes")

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.changes: CatalogChanges | None = None

    @property
    def version(self) -> int:
        own = self.changes.version if self.changes is not None else 0
        return own << 40 | self._catalog.version

    def table(self, namespace: str, name: str) -> TableDef | None:
        if self.changes is not None and (namespace, name) in self.changes.tables:
            return self.changes.tables[namespace, name]
        return self._catalog.by_name.get((namespace, name))

    def tables(self, namespace: str | None = None) -> list[TableDef]:
        found: dict[TableName, TableDef | None] = dict(self._catalog.by_name)
        if self.changes is not None:
            found.update(self.changes.tables)
        return [table for table in found.values()
                if table is not None and (namespace is None or table.namespace == namespace)]

    def namespaces(self) -> list[str]:
        own = self.changes.namespaces if self.changes is not None else frozenset()
        return sorted(self._catalog.namespaces | own)

    def account(self, name: str) -> AccountDef | None:
        if self.changes is not None and name in self.changes.accounts:
            return self.changes.accounts[name]
        return self._catalog.accounts.get(name)

    def has(self, table: TableDef) -> bool:
        """Is this table still there?"""
        if self.changes is not None:
            if table.id in self.changes.dropped:
                return False
            own = self.changes.tables.get((table.namespace, table.name))
            if own is not None and own.id == table.id:
                return True
        return table.id in self._catalog.by_id


class Accounts:
    """``kalamdb.txn.api.Accounts`` over a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def get(self, name: str) -> AccountDef | None:
        return self._catalog.accounts.get(name)

    def all(self) -> list[AccountDef]:
        return sorted(self._catalog.accounts.values(), key=lambda account: account.name)
