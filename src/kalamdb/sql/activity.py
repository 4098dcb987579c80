"""The rows of the namespace `system`, whole and as an account may see them.

A *user* sees its own account, sessions, transactions and locks, and the tables it may read; what concerns the server as
a whole (settings, jobs, segments, storages) is for *service* and above. What a row is made from is gathered at once, in
the event loop, so that rows fit together; where there may be very many, a worker thread makes the rows of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from kalamdb.api import ClientSession, Row
from kalamdb.settings import described
from kalamdb.sql import access, system
from kalamdb.sql.native import EPOCH_MICROS
from kalamdb.txn.api import TableDef
from kalamdb.types import canonical_jsonb

if TYPE_CHECKING:
    from kalamdb.sql.run import Run

_STATES = {"I": "idle", "T": "idle in transaction", "E": "idle in transaction (aborted)",
           "C": "active"}
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


def rows(run: Run, table: TableDef) -> Iterator[Row]:
    """Rows as scans give them: the columns, and NULL for ``_seq`` and ``_userid``."""
    found = _PROVIDERS[table.name](run)
    if table.name not in _GATHERED:
        found = list(found)
    return ((*row, None, None) for row in found)


def _mine(run: Run) -> str | None:
    """The account whose doings are to be shown; None: all."""
    return None if access.sees_all(run.account) else run.session.account.name


def _hidden(run: Run, session: ClientSession | None) -> bool:
    """A role that is bound to a tenant may share its account with roles that are not: it sees its own session."""
    return run.bound is not None and session is not run.session


def _instant(unix_ns: int) -> int | None:
    return unix_ns // 1000 - EPOCH_MICROS if unix_ns else None


# ---------- the catalog ----------
def _readable(run: Run) -> list[TableDef]:
    found = [*run.transaction.catalog.tables(), *system.TABLES.values()]
    return [table for table in found if access.may_read(run.account, table)]


def _tables(run: Run) -> Iterator[Row]:
    for table in _readable(run):
        key = ", ".join(table.columns[place].name for place in table.key) or None
        level = table.options.get("access_level", "private") if table.kind == "shared" else None
        yield (table.id, table.namespace, table.name, table.kind, key, len(table.columns), level,
               canonical_jsonb(json.dumps(dict(table.options))), table.owner, table.version)


def _columns(run: Run) -> Iterator[Row]:
    for table in _readable(run):
        for place, column in enumerate(table.columns):
            key = table.key.index(place) + 1 if place in table.key else None
            yield (table.namespace, table.name, place + 1, column.name, column.declared, int(column.not_null),
                   column.default, key)


def _namespaces(run: Run) -> Iterator[Row]:
    return ((name,) for name in sorted({*run.transaction.catalog.namespaces(), system.NAMESPACE}))


def _users(run: Run) -> Iterator[Row]:
    mine = _mine(run)
    for account in run.transaction.catalog.accounts():
        if mine is None or account.name == mine:
            yield (account.name, account.role.name.lower(), int(account.password_hash is not None),
                   int(account.locked))


# ---------- what goes on ----------
def _state(session: ClientSession, run: Run) -> str:
    return "active" if session.active or session is run.session else _STATES[session.status]


def _sessions(run: Run) -> Iterator[Row]:
    mine = _mine(run)
    running = {each.session.id: each.id for each in run.engine.transactions() if each.session is not None}
    for session in run.executor.sessions.values():
        if (mine is None or session.account.name == mine) and not _hidden(run, session):
            yield (session.id, session.account.name, session.account.role.name.lower(), session.tenant, session.peer,
                   session.application, _state(session, run), _instant(session.connected_ns),
                   _instant(session.statement_ns), running.get(session.id), len(session.cursors))


def _number(session: ClientSession | None) -> int | None:
    return None if session is None else session.id


def _transactions(run: Run) -> Iterator[Row]:
    for each in run.engine.transactions(_mine(run)):
        if not _hidden(run, each.session):
            yield (each.id, _number(each.session), each.isolation, int(each.read_only), each.status,
                   _instant(each.started_ns), each.rows_written, each.level, int(each.waiting))


def _locks(run: Run) -> Iterator[Row]:
    return (
        (each.transaction, _number(each.session), each.namespace, each.table, each.tenant, each.key, each.mode,
         int(each.granted))
        for each in run.engine.held_locks(_mine(run)) if not _hidden(run, each.session)
    )


# ---------- the server ----------
def _settings(run: Run) -> Iterable[Row]:
    return described(run.executor.settings) if access.sees_all(run.account) else ()


def _listed(name: str) -> Callable[[Run], Iterator[Row]]:
    """What the engine's method of that name lists: objects with an attribute for each column."""
    columns = [column.name for column in system.TABLES[name].columns]

    def provide(run: Run) -> Iterator[Row]:
        method = getattr(run.engine, name, None)
        found = method() if method is not None and access.sees_all(run.account) else ()
        return (tuple(_stored(getattr(item, column)) for column in columns) for item in found)

    return provide


def _stored(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value - _EPOCH) // timedelta(microseconds=1)
    return value


#: providers that gather when they are called, and give rows when they are read
_GATHERED = frozenset({"locks", "segments"})
_PROVIDERS: dict[str, Callable[[Run], Iterable[Row]]] = {
    "tables": _tables, "columns": _columns, "namespaces": _namespaces, "users": _users, "sessions": _sessions,
    "transactions": _transactions, "locks": _locks, "settings": _settings,
    **{name: _listed(name) for name in ("jobs", "segments", "storages")},
}
