"""Transaction control: BEGIN … ROLLBACK TO LEVEL, and the transaction block that a context names.

A session's transaction lives in ``ClientSession.transaction``; what SQL keeps beside it (savepoint names, settings to
restore) lives in ``SessionState``. Ending a transaction ends its cursors first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast, get_args

from kalamdb.api import ClientSession, Context, Pending, Result
from kalamdb.errors import KalamError
from kalamdb.sql.cursors import close_cursors, release_cursors
from kalamdb.sql.report import Reports
from kalamdb.sql.statements import (
    Begin,
    Commit,
    Modes,
    Release,
    Rollback,
    RollbackTo,
    RollbackToLevel,
    Savepoint,
    SetTransaction,
    Statement,
)
from kalamdb.txn.api import Engine, Isolation, Transaction

_LEVELS: Final = frozenset(get_args(Isolation))
#: statements that a failed transaction accepts
ENDING = (Commit, Rollback, RollbackTo, RollbackToLevel)
CONTROL = (Begin, Commit, Rollback, Savepoint, Release, RollbackTo, RollbackToLevel, SetTransaction)


@dataclass(slots=True)
class SessionState:
    """What the SQL layer remembers of a session."""

    savepoints: list[str] = field(default_factory=list)  # the n-th has level n + 2
    settings_before: dict[str, str] | None = None  # as BEGIN found them; ROLLBACK brings them back
    settings_local: dict[str, str | None] = field(default_factory=dict)  # what SET LOCAL replaced
    modes: Modes = field(default_factory=Modes)  # of SET SESSION CHARACTERISTICS
    used: bool = False  # has a statement run in the transaction?
    now: int = 0  # now() of the transaction block, once asked for
    scans: int = 0  # cursors named so far
    told: bool = False  # what SERIALIZABLE means
    reports: Reports = field(default_factory=Reports)
    uploads: dict[str, Any] = field(default_factory=dict)  # ``kalamdb.sql.files.Pending`` by their names


_DURATION = re.compile(r"(\d+)\s*(ms|s|min|h|d)?")
_UNITS = {None: 1, "ms": 1, "s": 1000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def milliseconds(setting: str) -> int:
    """A duration setting's value; milliseconds are its unit when none is written."""
    found = _DURATION.fullmatch(setting.strip())
    return int(found.group(1)) * _UNITS[found.group(2)] if found is not None else 0


def default_read_only(session: ClientSession, state: SessionState) -> bool:
    if state.modes.read_only is not None:
        return state.modes.read_only
    return session.settings.get("default_transaction_read_only") == "on"


def default_isolation(session: ClientSession, state: SessionState) -> Isolation:
    if state.modes.isolation is not None:
        return state.modes.isolation
    setting = session.settings.get("default_transaction_isolation")
    if setting == "repeatable read":
        return "repeatable read"
    return "serializable" if setting == "serializable" else "read committed"


def isolation_notices(state: SessionState, isolation: Isolation) -> tuple[str, ...]:
    """What a session is to hear when it opens a transaction: once, that SERIALIZABLE is less than its name says."""
    if isolation != "serializable" or state.told:
        return ()
    state.told = True
    return ("isolation level serializable is snapshot isolation on this server, as repeatable read: "
            "write skew is possible",)


def check_usable(transaction: Transaction) -> None:
    if transaction.status == "E":
        raise KalamError(
            "25P02", "current transaction is aborted, commands ignored until end of transaction block"
        )


def fail(session: ClientSession, context: Context | None) -> None:
    """After an error: an open block is a failed one. pg_kalam may have a savepoint that the server has not heard of."""
    current = session.transaction
    if current is not None and current.status == "T":
        current.fail(final=context is None and current.level == 1)


def enter(engine: Engine, session: ClientSession, context: Context) -> Transaction | None:
    """The block that a context asks for (opened if need be), at its level; None: autocommit."""
    wanted, current = context.txn, session.transaction
    if current is None:
        if wanted is None:
            return None
        if wanted.iso not in _LEVELS:
            raise KalamError("22023", f'invalid isolation level "{wanted.iso}"')
        current = engine.begin(
            session, isolation=cast(Isolation, wanted.iso), read_only=wanted.ro, txn_id=wanted.id,
        )
        session.transaction = current
    elif wanted is not None and wanted.id != current.id:
        raise KalamError("25001", f'transaction "{current.id}" is still open in this session')
    check_usable(current)
    current.lock_timeout_ms = context.lock_timeout
    if context.level != current.level or context.floor < current.level:
        if session.cursors:
            release_cursors(session, current, context.floor)
        current.set_level(context.floor, context.level)
    for number in context.drop:
        current.release(number)
    if wanted is not None:
        current.read_only = wanted.ro  # SET TRANSACTION READ ONLY may come late
    transaction: Transaction = current
    return transaction


async def commit(session: ClientSession, state: SessionState, *, alone: bool = False) -> None:
    """Make the session's transaction durable; it is over even if that fails. ``alone``: see ``Transaction.commit``."""
    transaction = session.transaction
    close_cursors(session, transaction)
    try:
        await transaction.commit(alone=alone)
    except BaseException:
        transaction.rollback()
        _leave(session, state, committed=False)
        raise
    _leave(session, state, committed=True)


def commit_soon(session: ClientSession, state: SessionState, answer: Callable[[], Result]) -> Pending | None:
    """The same of little, without a task; ``answer`` comes after it. None: nothing was done."""
    transaction: Transaction = session.transaction
    try:
        stored = None if session.cursors else transaction.commit_soon()
    except BaseException:
        _leave(session, state, committed=False)
        raise
    if stored is None:
        return None

    def end(stored: asyncio.Future[int]) -> Result:
        try:
            stored.result()
        except BaseException:
            _leave(session, state, committed=False)
            raise
        _leave(session, state, committed=True)
        return answer()

    return Pending(stored, end)


def commit_now(session: ClientSession, state: SessionState) -> bool:
    """The same, waiting for nothing but the disk, where that can be (False: nothing was done), of a session that does
    what is left to do ``later``: not of one that goes on to other statements before it answers."""
    transaction: Transaction = session.transaction
    if session.later is None or session.active or session.cursors:
        return False
    try:
        if transaction.commit_now(session.later.append) is None:
            return False
    except BaseException:
        _leave(session, state, committed=False)
        raise
    _leave(session, state, committed=True)
    return True


def rollback(session: ClientSession, state: SessionState) -> None:
    transaction = session.transaction
    if transaction is None:
        return
    close_cursors(session, transaction)
    transaction.rollback()
    _leave(session, state, committed=False)


def _leave(session: ClientSession, state: SessionState, *, committed: bool) -> None:
    session.transaction = None
    session.ends_itself = session.ends_itself and committed
    state.used = False
    state.now = 0
    state.savepoints.clear()
    if committed:
        for name, value in state.settings_local.items():
            if value is None:
                session.settings.pop(name, None)
            else:
                session.settings[name] = value
    elif state.settings_before is not None:
        session.settings.clear()
        session.settings.update(state.settings_before)
    state.settings_local.clear()
    state.settings_before = None


def begin(engine: Engine, session: ClientSession, state: SessionState, statement: Begin, lock_timeout: int) -> Result:
    tag = "START TRANSACTION" if statement.start else "BEGIN"
    if session.transaction is not None:
        check_usable(session.transaction)
        return Result(tag, notices=("there is already a transaction in progress",))
    isolation = statement.modes.isolation or default_isolation(session, state)
    read_only = statement.modes.read_only
    if read_only is None:
        read_only = default_read_only(session, state)
    session.transaction = engine.begin(
        session, isolation=isolation, read_only=read_only, lock_timeout_ms=lock_timeout
    )
    state.settings_before = dict(session.settings)
    return Result(tag, notices=isolation_notices(state, isolation))


def _level(state: SessionState, name: str) -> int:
    for place in range(len(state.savepoints) - 1, -1, -1):
        if state.savepoints[place] == name:
            return place + 2
    raise KalamError("3B001", f'savepoint "{name}" does not exist')


def _need(session: ClientSession, what: str) -> Transaction:
    if session.transaction is None:
        raise KalamError("25P01", f"{what} can only be used in transaction blocks")
    transaction: Transaction = session.transaction
    return transaction


def _savepoint(session: ClientSession, state: SessionState, name: str) -> Result:
    transaction = _need(session, "SAVEPOINT")
    transaction.set_level(transaction.level, transaction.level + 1)
    state.savepoints.append(name)
    return Result("SAVEPOINT")


def _release(session: ClientSession, state: SessionState, name: str) -> Result:
    transaction = _need(session, "RELEASE SAVEPOINT")
    level = _level(state, name)
    transaction.set_level(level - 1, level - 1)
    del state.savepoints[level - 2 :]
    return Result("RELEASE")


def _rollback_to(session: ClientSession, state: SessionState, name: str) -> Result:
    transaction = _need(session, "ROLLBACK TO SAVEPOINT")
    level = _level(state, name)
    close_cursors(session, transaction)
    transaction.rollback_to_level(level)
    transaction.set_level(level - 1, level)
    del state.savepoints[level - 1 :]
    return Result("ROLLBACK")


def _rollback_to_level(session: ClientSession, level: int) -> Result:
    transaction = _need(session, "ROLLBACK TO LEVEL")
    if level < 2:
        raise KalamError("3B001", f"there is no savepoint level {level}")
    close_cursors(session, transaction, level)
    if level <= transaction.level or transaction.status == "E":
        transaction.rollback_to_level(level)
    return Result("ROLLBACK")


def _set_transaction(engine: Engine, session: ClientSession, state: SessionState, statement: SetTransaction,
                     lock_timeout: int) -> Result:
    if statement.session:
        state.modes = statement.modes
        return Result("SET")
    if session.transaction is None:
        return Result("SET", notices=("SET TRANSACTION can only be used in transaction blocks",))
    current: Transaction = session.transaction
    isolation = statement.modes.isolation or current.isolation
    read_only = current.read_only if statement.modes.read_only is None else statement.modes.read_only
    if (isolation, read_only) != (current.isolation, current.read_only):
        if state.used:
            raise KalamError("25001", "SET TRANSACTION must be called before any query")
        current.rollback()
        session.transaction = engine.begin(
            session, isolation=isolation, read_only=read_only, lock_timeout_ms=lock_timeout
        )
    return Result("SET", notices=isolation_notices(state, isolation))


def control(engine: Engine, session: ClientSession, state: SessionState, statement: Statement,
            lock_timeout: int) -> Result | None:
    """Everything but COMMIT, which has to be awaited (None)."""
    match statement:
        case Begin():
            return begin(engine, session, state, statement, lock_timeout)
        case Rollback():
            notices = () if session.transaction is not None else ("there is no transaction in progress",)
            rollback(session, state)
            return Result("ROLLBACK", notices=notices)
        case RollbackTo():
            return _rollback_to(session, state, statement.name)
        case RollbackToLevel():
            return _rollback_to_level(session, statement.level)
        case Commit():
            if session.transaction is None:
                return Result("COMMIT", notices=("there is no transaction in progress",))
            if session.transaction.status == "E":
                rollback(session, state)
                return Result("ROLLBACK")
            return None
    if session.transaction is not None:
        check_usable(session.transaction)
    match statement:
        case Savepoint():
            return _savepoint(session, state, statement.name)
        case Release():
            return _release(session, state, statement.name)
        case SetTransaction():
            return _set_transaction(engine, session, state, statement, lock_timeout)
    raise AssertionError(statement)
