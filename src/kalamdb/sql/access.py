"""Which table a name means, and whose rows of it a statement may touch."""

from __future__ import annotations

from collections.abc import Sequence

from kalamdb.api import Account, ClientSession, Context, Role
from kalamdb.errors import KalamError
from kalamdb.sql import system
from kalamdb.sql.statements import Name
from kalamdb.txn.api import AccountDef, CatalogView, TableDef

SearchPath = tuple[str, ...]
DEFAULT_PATH: SearchPath = ("public",)
#: the tenant setting; '*' in it means all tenants
TENANT_SETTING = "kalam.user_id"
EVERYONE = "*"
_READ_LEVELS = {"public": Role.USER, "private": Role.SERVICE, "restricted": Role.SERVICE, "dba": Role.DBA}


def search_path(session: ClientSession, context: Context | None) -> SearchPath:
    if context is not None and context.path:
        return context.path
    setting = session.settings.get("search_path")
    if setting is None:
        return DEFAULT_PATH
    return tuple(part.strip().strip('"') for part in setting.split(",") if part.strip().strip('"') != "$user")


def undefined_table(name: Name, position: int | None = None) -> KalamError:
    hint = None
    if name.namespace in ("pg_catalog", "information_schema") or name.table.startswith("pg_"):
        hint = "SHOW TABLES, DESCRIBE and the namespace system tell what there is."
    return KalamError("42P01", f'relation "{name}" does not exist', position=position, hint=hint)


def find_table(catalog: CatalogView, name: Name, path: Sequence[str]) -> TableDef | None:
    for namespace in (name.namespace,) if name.namespace is not None else path:
        own = namespace == system.NAMESPACE
        table = system.TABLES.get(name.table) if own else catalog.table(namespace, name.table)
        if table is not None:
            return table
    return None


def resolve(catalog: CatalogView, name: Name, path: Sequence[str], position: int | None = None) -> TableDef:
    table = find_table(catalog, name, path)
    if table is None:
        raise undefined_table(name, position)
    return table


def resolve_target(catalog: CatalogView, name: Name, path: Sequence[str], position: int | None = None) -> TableDef:
    """The table of a writing statement."""
    table = resolve(catalog, name, path, position)
    system.check_writable(table)
    return table


def tenant_of(session: ClientSession, context: Context | None) -> str | None:
    """The tenant a statement runs for: the context's, or the setting; a user account's own when nothing is said."""
    if context is not None:
        if context.user is not None or not context.exec:
            return context.user
    elif session.settings:
        setting = session.settings.get(TENANT_SETTING)
        if setting:
            return setting
    return session.account.name if session.account.role == Role.USER else None


def _denied(table: TableDef) -> KalamError:
    return KalamError("42501", f"permission denied for table {table.name}",
                      detail=f"The table's access level is {table.options.get('access_level', 'private')}.",
                      schema=table.namespace, table=table.name)


def _read_role(table: TableDef) -> Role:
    """The least role that reads a shared table."""
    return _READ_LEVELS.get(table.options.get("access_level", "private"), Role.DBA)


def may_read(account: Account, table: TableDef) -> bool:
    """May the account read the table at all? Of user and stream tables, everybody has rows of its own."""
    return table.kind != "shared" or account.role >= _read_role(table)


def sees_all(account: Account) -> bool:
    """Does the account see what others do (sessions, transactions, locks), or only its own?"""
    return account.role >= Role.SERVICE


def _check_shared(account: Account, table: TableDef, *, write: bool) -> None:
    if account.role >= Role.DBA:
        return
    needed = _read_role(table)
    if write:
        needed = max(needed, Role.SERVICE)
    if account.role < needed:
        raise _denied(table)


def check_tenant(account: Account, tenant: str) -> None:
    """May this account act for that tenant?"""
    if account.role >= Role.SERVICE:
        return
    if tenant == EVERYONE:
        raise KalamError("42501", "permission denied to act for all tenants",
                         hint="The role service or above is needed.")
    if tenant != account.name:
        raise KalamError("42501", f'permission denied to act for tenant "{tenant}"',
                         hint="An account of role user acts for itself only.")


def bound_tenant(account: Account, context: Context) -> str | None:
    """The only tenant that a statement may act for, though its account may act for others: its role's."""
    if not context.bound:
        return None
    if not context.user or context.user == EVERYONE:
        raise KalamError("42501", "a role that is bound to a tenant must name one",
                         detail="The statement's context is bound, but has no tenant.")
    check_tenant(account, context.user)
    return context.user


def check_bound(bound: str | None, tenant: str) -> None:
    """A role of PostgreSQL may be bound to one tenant though the account it comes with is not."""
    if bound is not None and tenant != bound:
        raise KalamError("42501", f'permission denied to act for tenant "{tenant}"',
                         detail=f'The role is bound to tenant "{bound}".')


def no_tenant() -> KalamError:
    return KalamError("42501", "no tenant is set", hint="SET kalam.user_id")


def read_tenant(account: Account, table: TableDef, tenant: str | None) -> str | None:
    """The engine's tenant for reading: "" for shared tables, None for all."""
    if table.kind == "shared":
        _check_shared(account, table, write=False)
        return ""
    if not tenant:
        raise no_tenant()
    check_tenant(account, tenant)
    return None if tenant == EVERYONE else tenant


def write_tenant(account: Account, table: TableDef, tenant: str | None) -> str | None:
    """The engine's tenant for writing; None: every row must name its own (``_userid``)."""
    if table.kind == "shared":
        _check_shared(account, table, write=True)
        return ""
    if not tenant:
        return None
    check_tenant(account, tenant)
    if "\0" in tenant:  # a context's JSON can say so, but no text of PostgreSQL
        raise KalamError("22021", 'invalid byte sequence for encoding "UTF8": 0x00')
    return None if tenant == EVERYONE else tenant


def row_tenant(account: Account, default: str | None, named: str | None, told: str | None) -> str:
    """The tenant of one row to write: the one it names, or the statement's. ``told`` is what the client had set."""
    if named is not None:
        if named != default:
            check_tenant(account, named)
            if named == EVERYONE or not named:
                raise KalamError("22023", f'invalid tenant "{named}"', column="_userid")
        return named
    if default is None:
        if told == EVERYONE:
            raise KalamError("42501", "no tenant is named for a row to write",
                             hint="With kalam.user_id = '*' every written row names its _userid.")
        raise no_tenant()
    return default


def still_stands(account: Account, known: AccountDef | None) -> bool:
    """Is a session's account as it was at log-in, or above? ``known``: what is stored of it now."""
    if known is None:
        return not account.stored
    return not known.locked and (not account.stored or known.role >= account.role)


def end_session(session: ClientSession) -> None:
    if session.end is not None:
        session.end(KalamError("57P01", "terminating connection due to administrator command", severity="FATAL"))


def can_manage(account: Account, what: str, role: Role = Role.SERVICE) -> None:
    if account.role < role:
        raise KalamError("42501", f"permission denied to {what}",
                         hint=f"The role {role.name.lower()} or above is needed.")


def can_manage_table(account: Account, table: TableDef, what: str) -> None:
    """Who may not read a shared table may not change it either: a constraint's check would tell what is in it."""
    can_manage(account, what)
    if not may_read(account, table):
        raise _denied(table)


def check_level(account: Account, table: TableDef) -> None:
    """Nobody gives a table to those above."""
    if not may_read(account, table):
        level = table.options["access_level"]
        raise KalamError("42501", f'permission denied to give a table the access level "{level}"',
                         hint=f"The role {_read_role(table).name.lower()} or above is needed.",
                         schema=table.namespace, table=table.name)


def check_describable(account: Account, table: TableDef) -> None:
    """What a table is like is told to those who may read it, as system.columns does."""
    if not may_read(account, table):
        raise _denied(table)
