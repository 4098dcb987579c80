"""CREATE, ALTER and DROP USER: who may make and change whose account.

An account manages those of its own role and below, from role dba on; everybody changes their own password. There is
always somebody left who can manage accounts, once there was.
"""

from __future__ import annotations

from collections.abc import Callable

from kalamdb.api import Account, Result, Role
from kalamdb.errors import KalamError
from kalamdb.sql import access, refusals
from kalamdb.sql.ddl import check_name
from kalamdb.sql.run import Run
from kalamdb.sql.statements import CreateUser, DropUser
from kalamdb.txn.api import AccountDef

_ROLES = {role.name.lower(): role for role in Role}
MIN_PASSWORD = 8
#: not names of accounts: the start-up user of tokens, and all tenants
_RESERVED = frozenset({"bearer", access.EVERYONE})


async def create_user(statement: CreateUser, run: Run) -> Result:
    """ALTER USER as well."""
    tag = "ALTER USER" if statement.alter else "CREATE USER"
    own = _sets_own_password(statement, run)
    role = _role(statement.role)
    _check_may_change(run, role, own=own)
    name = statement.name
    if not statement.alter:
        check_name(name, "user")
        if name in _RESERVED:
            raise KalamError("42939", f'user name "{name}" is reserved')
    elif not own:
        _make_way(name, lambda before: _changed(statement, before, role, before.password_hash), run)
    await run.transaction.lock_account(name)
    _check_may_change(run, role, own=own)  # once more: the lock may have taken its time
    before = run.transaction.catalog.account(name)
    if (before is None) == statement.alter:
        problem = f'user "{name}" ' + ("does not exist" if statement.alter else "already exists")
        if not statement.exists:
            raise KalamError("42704" if statement.alter else "42710", problem)
        return Result(tag, notices=(f"{problem}, skipping",))
    if before is None:
        before = AccountDef(name, Role.USER)
    elif not own:
        _not_above(before, run)
    hashed = before.password_hash
    if statement.sets_password:
        hashed = None if statement.password is None else await _hash(run, statement.password)
    after = _changed(statement, before, role, hashed)
    await _keep_an_administrator(before, after, run)
    await run.transaction.put_account(after)
    if name == run.session.account.name and not access.still_stands(run.session.account, after):
        run.session.ends_itself = True
    return Result(tag)


def _changed(statement: CreateUser, before: AccountDef, role: Role | None, hashed: str | None) -> AccountDef:
    if statement.sets_password and statement.password is None:
        hashed = None
    locked = before.locked if statement.locked is None else statement.locked
    return AccountDef(before.name, role or before.role, hashed, locked)


def _manager(run: Run) -> Account:
    """Who makes the change, of the role that it has now. An account that is gone or locked changes none."""
    own = run.session.account
    known = run.catalog.account(own.name)
    if (known is None and own.stored) or (known is not None and known.locked):
        raise KalamError("42501", "permission denied to manage accounts",
                         detail=f'The account "{own.name}" ' + ("has been dropped." if known is None else "is locked."))
    if known is None or not own.stored:
        return run.account
    return Account(run.account.name, min(run.account.role, known.role))


def _check_may_change(run: Run, role: Role | None, *, own: bool) -> None:
    manager = _manager(run)
    if not own:
        access.can_manage(manager, "manage accounts", Role.DBA)
    if role is not None and role > manager.role:
        raise KalamError("42501", "permission denied to grant a role above one's own")


def _make_way(name: str, change: Callable[[AccountDef], AccountDef | None], run: Run) -> None:
    """End the transactions of an account that is to lose rights: with a lock on itself it could keep everybody out."""
    before = run.catalog.account(name)
    if before is None:
        return
    _not_above(before, run)
    after = change(before)
    if access.still_stands(Account(name, before.role, stored=True), after):
        return
    if _loses_an_administrator(before, after):
        _check_another_administrator(before, run)
    for session in list(run.executor.sessions.values()):
        if session.account.name == name and session is not run.session and session.transaction is not None:
            access.end_session(session)


def _sets_own_password(statement: CreateUser, run: Run) -> bool:
    """A role of PostgreSQL that is bound to a tenant is not that tenant's account."""
    return (statement.alter and statement.password is not None and statement.role is None and statement.locked is None
            and run.bound is None and statement.name == run.session.account.name)


def _role(name: str | None) -> Role | None:
    role = None if name is None else _ROLES.get(name.lower())
    if name is not None and role is None:
        raise KalamError("22023", f'invalid role "{name}"',
                         hint=refusals.meant(name, _ROLES, "Roles are user, service, dba and system."))
    return role


async def _hash(run: Run, password: str) -> str:
    from kalamdb.auth.passwords import hash_password

    if len(password) < MIN_PASSWORD:
        raise KalamError("22023", f"a password has at least {MIN_PASSWORD} characters")
    return await run.workers.run(run.session, lambda: None, lambda: hash_password(password))


def _not_above(account: AccountDef, run: Run) -> None:
    if account.role > _manager(run).role:
        raise KalamError("42501", f'permission denied to change user "{account.name}"',
                         hint=f"Its role is {account.role.name.lower()}.")


def _administers(account: AccountDef | None) -> bool:
    return (account is not None and account.role >= Role.DBA and account.password_hash is not None
            and not account.locked)


async def _keep_an_administrator(before: AccountDef, after: AccountDef | None, run: Run) -> None:
    if _loses_an_administrator(before, after):
        await run.transaction.lock_account("")  # two of them may be going at the same time
        _check_another_administrator(before, run)


def _loses_an_administrator(before: AccountDef, after: AccountDef | None) -> bool:
    return _administers(before) and not _administers(after)


def _check_another_administrator(before: AccountDef, run: Run) -> None:
    if not any(_administers(each) for each in run.transaction.catalog.accounts() if each.name != before.name):
        raise KalamError("55000", f'user "{before.name}" is the last one of role dba or above that can log in',
                         hint="Make another one first: CREATE USER name PASSWORD '...' ROLE dba.")


async def drop_user(statement: DropUser, run: Run) -> Result:
    _check_may_change(run, None, own=False)
    name = statement.name
    if name == run.session.account.name:
        raise KalamError("55006", "current user cannot be dropped")
    _make_way(name, lambda _: None, run)
    await run.transaction.lock_account(name)
    _check_may_change(run, None, own=False)
    account = run.transaction.catalog.account(name)
    if account is None:
        if not statement.if_exists:
            raise KalamError("42704", f'user "{name}" does not exist')
        return Result("DROP USER", notices=(f'user "{name}" does not exist, skipping',))
    _not_above(account, run)
    await _keep_an_administrator(account, None, run)
    await run.transaction.drop_account(name)
    return Result("DROP USER")
