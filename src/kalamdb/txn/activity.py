"""What goes on in the engine, for people to look at: open transactions, and locks held and waited for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kalamdb import types
from kalamdb.order import part_decoder
from kalamdb.txn.api import LockInfo, TableDef, TransactionInfo
from kalamdb.txn.locks import LockKey, Owner
from kalamdb.txn.transaction import StoreTransaction

if TYPE_CHECKING:
    from kalamdb.txn.engine import StoreEngine

_STATUS = {"T": "active", "E": "failed", "C": "committing"}
_QUOTED = re.compile(r'[\s(),"\\]|^$')


def describe(transaction: StoreTransaction) -> TransactionInfo:
    return TransactionInfo(
        transaction.id, transaction.session, transaction.isolation, transaction.read_only,
        _STATUS[transaction.status], transaction.started_ns, transaction.rows_written, transaction.level,
        transaction.waits_for is not None,
    )


def belongs(transaction: StoreTransaction, account: str | None) -> bool:
    """Is it a transaction of this account's? None: anybody's will do."""
    return account is None or (transaction.session is not None and transaction.session.account.name == account)


def locks(engine: StoreEngine, account: str | None) -> Iterator[LockInfo]:
    """Those of one account's sessions, or (None) all."""
    return _described(engine, account, engine.locks.entries())


def _described(engine: StoreEngine, account: str | None, entries: Iterator[tuple[LockKey, Owner, bool, bool]]
               ) -> Iterator[LockInfo]:
    for key, owner, share, granted in entries:
        if isinstance(owner, StoreTransaction) and belongs(owner, account):
            namespace, table, tenant, text = _named(engine, owner, key)
            mode = "share" if share else "exclusive"
            yield LockInfo(owner.id, owner.session, namespace, table, tenant, text, mode, granted)


def _named(engine: StoreEngine, owner: Owner, key: LockKey) -> tuple[str | None, str | None, str | None, str | None]:
    """Namespace, table, tenant and key as PostgreSQL would write it."""
    match key:
        case ("table", namespace, name):  # a name, for a definition
            return namespace, name, None, None
        case ("namespace", name):
            return name, None, None, None
        case ("account", _) | ("runs", _, _):
            return None, None, None, None
    table = _table(engine, owner, key[0])
    if table is None:
        return None, None, None, None
    if len(key) == 1:
        return table.namespace, table.name, None, None
    return table.namespace, table.name, key[1] or None, key_text(table, key[2])


def _table(engine: StoreEngine, owner: Owner, number: int) -> TableDef | None:
    found = engine.catalog.by_id.get(number)
    if found is None and isinstance(owner, StoreTransaction) and owner.catalog.changes is not None:  # not committed
        found = owner.catalog.changes.of(number)
    return found


def key_text(table: TableDef, encoded: int | bytes) -> str:
    """A key's value; of several columns, the row as PostgreSQL writes it. A stream's own number where it has no key."""
    if isinstance(encoded, int):
        return types.write_text(table.columns[table.key[0]].type, encoded) if table.key else str(encoded)
    parts, at = [], 0
    for position in table.key:
        type_ = table.columns[position].type
        value: Any
        value, at = part_decoder(type_.name)(encoded, at)
        parts.append(types.write_text(type_, value))
    return parts[0] if len(parts) == 1 else f"({','.join(map(_in_row, parts))})"


def _in_row(text: str) -> str:
    if not _QUOTED.search(text):
        return text
    doubled = text.replace("\\", "\\\\").replace('"', '""')
    return f'"{doubled}"'
