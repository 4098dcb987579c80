"""Namespaces, tables and accounts: kept in the database, with a copy in memory that follows each commit.

The copy is read and changed in the event loop only; a transaction sees it through a view with its own changes on top.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import apsw

from kalamdb import __version__, types
from kalamdb.api import Role
from kalamdb.catalog import formats
from kalamdb.errors import KalamError
from kalamdb.store import contents, manifest
from kalamdb.store.hot import Layout, Layouts
from kalamdb.txn.api import FILE, AccountDef, CheckDef, ColumnDef, TableDef, is_file

log = logging.getLogger(__name__)

TableName = tuple[str, str]

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS kalam_meta (name TEXT PRIMARY KEY, value ANY) STRICT, WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS kalam_namespaces (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS kalam_tables (id INTEGER PRIMARY KEY, definition TEXT NOT NULL, dropped_at INTEGER) "
    "STRICT",
    "CREATE TABLE IF NOT EXISTS kalam_accounts (name TEXT PRIMARY KEY, role INTEGER NOT NULL, password_hash TEXT) "
    "STRICT, WITHOUT ROWID",
    # in order of commits: each adds to the last page, where an index by id would change pages anywhere
    "CREATE TABLE IF NOT EXISTS kalam_commits (seq INTEGER PRIMARY KEY, txn_id TEXT NOT NULL) STRICT",
)


def create_schema(connection: apsw.Connection) -> None:
    """Within a transaction: the store's own tables, made or brought to today's format. Raises KalamError, and changes
    nothing, where the data are of a later one."""
    new = not connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
    before = None if new else formats.upgrade(connection)
    if before is not None:
        log.info("the data directory had format %d, and has format %d now", before, formats.CURRENT)
    for statement in (*_SCHEMA, *manifest.SCHEMA, *contents.SCHEMA):
        connection.execute(statement)
    if formats.found(connection) != (formats.CURRENT, __version__):
        connection.execute("REPLACE INTO kalam_meta VALUES ('format', ?), ('release', ?)",
                           (formats.CURRENT, __version__))


def meta(connection: apsw.Connection, name: str, make: Callable[[], Any]) -> Any:
    """A fact of the data directory, made at its first use."""
    row = connection.execute("SELECT value FROM kalam_meta WHERE name = ?", (name,)).fetchall()
    if row:
        return row[0][0]
    value = make()
    connection.execute("INSERT INTO kalam_meta VALUES (?, ?)", (name, value))
    return value


def last_commit(connection: apsw.Connection) -> int:
    """The latest commit whose outcome is kept; ``last_seq`` among the facts may be older than that."""
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'kalam_commits'").fetchall():
        return 0  # of the first format
    number: Any = connection.execute("SELECT max(seq) FROM kalam_commits").fetchall()[0][0]
    return number or 0


# ---------- definitions as text ----------
def dump_table(table: TableDef) -> str:
    return json.dumps({
        "namespace": table.namespace, "name": table.name, "kind": table.kind,
        "columns": [_dump_column(column) for column in table.columns],
        "key": list(table.key), "key_constraint": table.key_constraint,
        "checks": [[check.name, check.expression, check.enforced] for check in table.checks],
        "options": dict(table.options), "owner": table.owner, "version": table.version,
        "last_column": table.last_column,
    }, ensure_ascii=False)


def _dump_column(column: ColumnDef) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": column.id, "name": column.name, "type": column.type.name, "declared": column.declared,
        "typmod": column.typmod, "not_null": column.not_null, "default": column.default,
    }
    if column.late:
        shown["missing"] = None if column.missing is None else types.write_text(column.type, column.missing)
    return shown


def _load_column(item: dict[str, Any]) -> ColumnDef:
    kind, late = types.by_name(item["type"]), "missing" in item
    missing = item["missing"] if late else None
    declared = FILE if is_file(item["declared"]) else item["declared"]  # it was kept as written
    return ColumnDef(item["id"], item["name"], kind, declared, item["typmod"], item["not_null"],
                     item["default"], late, None if missing is None else types.read_text(kind, missing))


def load_table(number: int, text: str) -> TableDef:
    """Of a definition in today's format."""
    found = json.loads(text)
    columns = tuple(map(_load_column, found["columns"]))
    checks = tuple(CheckDef(*check) for check in found["checks"])
    return TableDef(number, found["namespace"], found["name"], found["kind"], columns, tuple(found["key"]),
                    found["key_constraint"], checks, found["options"], found["owner"], found["version"],
                    found["last_column"])


# ---------- committed ----------
class Catalog:
    """What is committed."""

    def __init__(self) -> None:
        self.namespaces: set[str] = set()
        self.by_name: dict[TableName, TableDef] = {}
        self.by_id: dict[int, TableDef] = {}
        self.accounts: dict[str, AccountDef] = {}
        self._versions = itertools.count(1)
        self._definitions = itertools.count(2)
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
            self.accounts[name] = _load_account(name, role, password)
        ((number,),) = connection.execute("SELECT coalesce(max(id), 0) FROM kalam_tables").fetchall()
        self._last_id = number
        self._definitions = itertools.count(max([1, *(table.version for table in self.by_id.values())]) + 1)

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def next_version(self) -> int:
        return next(self._versions)

    def next_definition(self) -> int:
        """A version for an altered table, which is nobody else's: what is rolled back may be in caches."""
        return next(self._definitions)

    def _add(self, table: TableDef) -> None:
        self.by_name[table.namespace, table.name] = table
        self.by_id[table.id] = table

    def publish(self, changes: CatalogChanges) -> None:
        """A committed transaction's definitions become everybody's."""
        self.namespaces = (self.namespaces - changes.gone_namespaces) | changes.namespaces
        for name in changes.tables:
            before = self.by_name.pop(name, None)
            if before is not None:
                self.by_id.pop(before.id, None)
        for table in changes.standing():
            self._add(table)
        for user, account in changes.accounts.items():
            if account is None:
                self.accounts.pop(user, None)
            else:
                self.accounts[user] = account
        self.version = self.next_version()


@dataclass(frozen=True, slots=True)
class CatalogChanges:
    """One transaction's definitions: new and dropped namespaces; tables and accounts by name, None where dropped."""

    namespaces: frozenset[str] = frozenset()
    gone_namespaces: frozenset[str] = frozenset()
    tables: Mapping[TableName, TableDef | None] = field(default_factory=dict)
    dropped: tuple[int, ...] = ()  # ids of committed tables
    altered: frozenset[int] = frozenset()  # and of those with another definition now
    restored: frozenset[int] = frozenset()  # and of dropped ones that are there again
    accounts: Mapping[str, AccountDef | None] = field(default_factory=dict)
    version: int = 0

    def standing(self) -> list[TableDef]:
        """Created or altered tables."""
        return [table for table in self.tables.values() if table is not None]

    def of(self, number: int) -> TableDef | None:
        """The definition of a created or altered table."""
        return next((table for table in self.standing() if table.id == number), None)

    def with_namespace(self, name: str, version: int) -> CatalogChanges:
        return replace(self, namespaces=self.namespaces | {name}, gone_namespaces=self.gone_namespaces - {name},
                       version=version)

    def without_namespace(self, name: str, version: int) -> CatalogChanges:
        return replace(self, namespaces=self.namespaces - {name}, gone_namespaces=self.gone_namespaces | {name},
                       version=version)

    def with_table(self, table: TableDef, version: int) -> CatalogChanges:
        return replace(self, tables={**self.tables, (table.namespace, table.name): table}, version=version)

    def with_altered(self, before: TableDef, table: TableDef, version: int) -> CatalogChanges:
        """``before`` may have another name."""
        own = self.of(table.id) is not None and table.id not in self.altered
        return replace(
            self, tables={**self.tables, (before.namespace, before.name): None, (table.namespace, table.name): table},
            altered=self.altered if own else self.altered | {table.id}, version=version,
        )

    def with_restored(self, table: TableDef, version: int) -> CatalogChanges:
        return replace(self, tables={**self.tables, (table.namespace, table.name): table},
                       restored=self.restored | {table.id}, version=version)

    def without_table(self, table: TableDef, version: int) -> CatalogChanges:
        own = self.of(table.id) is not None and table.id not in self.altered
        return replace(
            self, tables={**self.tables, (table.namespace, table.name): None}, altered=self.altered - {table.id},
            dropped=self.dropped if own else (*self.dropped, table.id), version=version,
        )

    def with_account(self, name: str, account: AccountDef | None, version: int) -> CatalogChanges:
        return replace(self, accounts={**self.accounts, name: account}, version=version)

    def apply(self, connection: apsw.Connection, layouts: Layouts) -> None:
        """In the writer's thread, within its transaction. A dropped table's rows stay until they are purged."""
        for name in self.gone_namespaces:
            connection.execute("DELETE FROM kalam_namespaces WHERE name = ?", (name,))
        for name in self.namespaces:
            connection.execute("INSERT OR IGNORE INTO kalam_namespaces VALUES (?)", (name,))
        now = int(time.time() * 1000)
        for number in self.dropped:
            connection.execute("UPDATE kalam_tables SET dropped_at = ? WHERE id = ?", (now, number))
        for table in self.standing():
            layout = layouts.of(table)
            if table.id in self.restored:
                _restore(connection, table)
            if table.id in self.altered or table.id in self.restored:
                _alter(connection, table, layout)
                continue
            connection.execute("INSERT INTO kalam_tables (id, definition) VALUES (?, ?)", (table.id, dump_table(table)))
            connection.execute(layout.create)
            if layout.index is not None:
                connection.execute(layout.index)
        for name, account in self.accounts.items():
            if account is None:
                connection.execute("DELETE FROM kalam_accounts WHERE name = ?", (name,))
            else:
                connection.execute("REPLACE INTO kalam_accounts VALUES (?, ?, ?)",
                                   (name, int(account.role), _dump_password(account)))


#: before the hash of a locked account, as in a Unix password file: no server that does not know it lets anybody in
_LOCKED = "!"


def _dump_password(account: AccountDef) -> str | None:
    return _LOCKED + (account.password_hash or "") if account.locked else account.password_hash


def _load_account(name: str, role: int, password: str | None) -> AccountDef:
    locked = password is not None and password.startswith(_LOCKED)
    return AccountDef(name, Role(role), (password.removeprefix(_LOCKED) or None) if password else None, locked)


def _alter(connection: apsw.Connection, table: TableDef, layout: Layout) -> None:
    """Columns that are dropped stay in the hot table, where nobody names them, until their rows are written anew."""
    connection.execute("UPDATE kalam_tables SET definition = ? WHERE id = ?", (dump_table(table), table.id))
    present = layout.present(connection)
    for name, addition in layout.additions.items():
        if name not in present:
            connection.execute(addition)


def _restore(connection: apsw.Connection, table: TableDef) -> None:
    """Unless the purge has begun, which sets ``dropped_at`` to 0."""
    connection.execute("UPDATE kalam_tables SET dropped_at = NULL WHERE id = ? AND dropped_at > 0", (table.id,))
    if not connection.changes():
        raise KalamError("42704", f'dropped table "{table.name}" cannot be restored any more')


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
        if self.changes is None:
            return sorted(self._catalog.namespaces)
        return sorted((self._catalog.namespaces - self.changes.gone_namespaces) | self.changes.namespaces)

    def account(self, name: str) -> AccountDef | None:
        if self.changes is not None and name in self.changes.accounts:
            return self.changes.accounts[name]
        return self._catalog.accounts.get(name)

    def accounts(self) -> list[AccountDef]:
        found: dict[str, AccountDef | None] = dict(self._catalog.accounts)
        if self.changes is not None:
            found.update(self.changes.accounts)
        return sorted(filter(None, found.values()), key=lambda account: account.name)

    def current(self, table: TableDef) -> TableDef | None:
        """The definition that a table has now; None: it is gone."""
        if self.changes is not None:
            if table.id in self.changes.dropped:
                return None
            own = self.changes.of(table.id)
            if own is not None:
                return own
        return self._catalog.by_id.get(table.id)

    def has(self, table: TableDef) -> bool:
        """Is this table still there?"""
        return self.current(table) is not None


class Accounts:
    """``kalamdb.txn.api.Accounts`` over a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def get(self, name: str) -> AccountDef | None:
        return self._catalog.accounts.get(name)

    def all(self) -> list[AccountDef]:
        return sorted(self._catalog.accounts.values(), key=lambda account: account.name)
