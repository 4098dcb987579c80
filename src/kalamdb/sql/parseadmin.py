"""The grammar of namespaces, accounts and SHOW."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kalamdb.errors import KalamError
from kalamdb.sql import refusals, system
from kalamdb.sql.lexer import literal, quote
from kalamdb.sql.statements import (
    CreateNamespace,
    CreateUser,
    Describe,
    DropNamespace,
    DropTable,
    DropUser,
    Show,
    ShowColumnWidths,
    ShowOutcome,
    ShowScanStats,
    ShowTable,
    ShowTableSize,
    ShowTableStats,
    Statement,
)

if TYPE_CHECKING:
    from kalamdb.sql.parse import Parser

_TABLE_KINDS = ("user", "shared", "stream")
_CREATED = "expected NAMESPACE, USER, or [USER | SHARED | STREAM] TABLE"


# ---------- CREATE, ALTER, DROP of what ----------
def refuse_object(parser: Parser, verb: str) -> KalamError:
    """An object that is not to be created, altered or dropped here."""
    token = parser.token
    word = token.value if token.kind == "word" else ""
    if verb == "create" and word == "or" and parser.peek().is_word("replace"):
        token, word = parser.peek(2), parser.peek(2).value
    if word in refusals.OBJECTS:
        return refusals.unsupported(f"{verb.upper()} {word.upper()}", token.start + 1, refusals.OBJECTS[word])
    if verb == "alter" and word in ("namespace", "schema"):
        return refusals.unsupported(f"ALTER {word.upper()}", token.start + 1,
                                    "Make another namespace; a table moves there by INSERT ... SELECT.")
    return parser.error(token, hint=refusals.meant(
        word, (*refusals.OBJECTS, "namespace", "schema", "table", *_TABLE_KINDS), _CREATED) if word else _CREATED)


def create_namespace(parser: Parser) -> CreateNamespace:
    exists = parser.if_not_exists()
    name = parser.name()
    if parser.token.is_word("authorization"):
        raise refusals.unsupported("AUTHORIZATION", parser.token.start + 1, refusals.STATEMENTS["grant"])
    return CreateNamespace(name, exists)


def drop(parser: Parser) -> Statement:
    if parser.accept("namespace") or parser.accept("schema"):
        exists = parser.if_exists()
        names = [parser.name()]
        while parser.accept_op(","):
            names.append(parser.name())
        cascade = parser.accept("cascade")
        if not cascade:
            parser.accept("restrict")
        return DropNamespace(tuple(dict.fromkeys(names)), exists, cascade)
    kind = parser.token.is_word(*_TABLE_KINDS) and parser.peek().is_word("table")
    if parser.token.is_word("user") and not kind:
        parser.advance()
        exists = parser.if_exists()
        return DropUser(user_name(parser), exists)
    if kind:
        parser.advance()
    if not parser.accept("table"):
        raise refuse_object(parser, "drop")
    exists = parser.if_exists()
    tables = [parser.table()]
    while parser.accept_op(","):
        tables.append(parser.table())
    parser.accept("cascade") or parser.accept("restrict")
    owner = parser.string() if parser.accept("owned", "by") else None
    return DropTable(tuple(tables), exists, owner)


# ---------- accounts ----------
_CLAUSES = "expected PASSWORD '...', PASSWORD NULL, ROLE user, service, dba or system, LOCK or UNLOCK"


def user_name(parser: Parser) -> str:
    return parser.string() if parser.token.kind == "string" else parser.name()


def account(parser: Parser, *, alter: bool) -> CreateUser:
    """CREATE USER or ALTER USER, after these words."""
    exists = parser.if_exists() if alter else parser.if_not_exists()
    name = user_name(parser)
    given: set[str] = set()
    password: str | None = None
    role: str | None = None
    locked: bool | None = None
    parser.accept("with") or parser.accept("set")
    while parser.token.kind == "word":
        first = parser.token
        if parser.accept("password"):
            word = "password"
            password = None if parser.accept("null") else parser.string()
        elif parser.accept("role"):
            word, role = "role", user_name(parser)
        elif first.is_word("lock", "unlock"):
            parser.advance()
            word, locked = "lock", first.value == "lock"
        elif alter and first.is_word("rename"):
            raise refusals.unsupported("RENAME of a user", first.start + 1,
                                       "A tenant's rows belong to its name; make another account.")
        else:
            raise parser.error(hint=refusals.meant(
                first.value, ("password", "role", "lock", "unlock"), _CLAUSES))
        if word in given:
            raise KalamError("42601", "conflicting or redundant options", position=first.start + 1)
        given.add(word)
    if alter and not given:
        raise parser.error(hint=_CLAUSES)
    return CreateUser(name, password, role, alter, exists, "password" in given, locked)


# ---------- SHOW ----------
#: tables of the namespace system that SHOW lists, and the column that LIKE is about
LISTED = {
    "users": "name", "storages": "id", "settings": "name", "sessions": "account", "transactions": "id",
    "locks": "table", "segments": "table", "jobs": "table",
}
FORMS = ("namespaces", "schemas", "tables", "columns", "capabilities", "all", *LISTED)


def _pattern(parser: Parser) -> str | None:
    return parser.string() if parser.accept("like") else None


def _namespace(parser: Parser) -> str | None:
    return parser.name() if parser.accept("in") or parser.accept("from") else None


def show(parser: Parser) -> Statement:
    found = _show_of_table(parser)
    if found is not None:
        return found
    if parser.accept("dropped", "tables"):
        return Show("dropped tables", _namespace(parser))
    if parser.accept("tables"):
        namespace = _namespace(parser)
        return Show("tables", namespace, _pattern(parser))
    if parser.accept("namespaces") or parser.accept("schemas"):
        return Show("namespaces", None, _pattern(parser))
    if parser.accept("transaction", "isolation", "level"):
        return Show("transaction_isolation")
    if parser.accept("transaction", "outcome"):
        return ShowOutcome(parser.string())
    if parser.accept("time", "zone"):
        return Show("timezone")
    if parser.token.is_word(*LISTED):
        return _listed(parser)
    if parser.token.kind not in ("word", "name"):
        raise parser.error(hint=f"expected one of {', '.join(FORMS).upper()}, TABLE, or a setting's name")
    place = parser.token.start + 1
    return Show(parser.setting_name(), place=place)


def _show_of_table(parser: Parser) -> Statement | None:
    if parser.accept("table", "stats") or parser.accept("stats"):
        parser.accept("for")
        parser.accept("table")
        return ShowTableStats(parser.table())
    if parser.accept("table", "size"):
        return ShowTableSize(parser.table())
    if parser.accept("scan", "stats"):
        return ShowScanStats(parser.integer())
    if parser.accept("column", "widths"):
        return ShowColumnWidths(parser.table())
    if parser.accept("table"):
        exists = parser.if_exists()
        return ShowTable(parser.table(), exists)
    if parser.accept("columns"):
        if not (parser.accept("in") or parser.accept("from")):
            raise parser.error(hint="expected IN table")
        return Describe(parser.table(), _pattern(parser))
    return None


def _listed(parser: Parser) -> Statement:
    """SHOW of a table of the namespace system is a query of it."""
    name = parser.advance().value
    pattern = _pattern(parser)
    where = "" if pattern is None else f" WHERE {quote(LISTED[name])} LIKE {literal(pattern)}"
    return parser.written(f"SELECT * FROM {system.NAMESPACE}.{quote(name)}{where} ORDER BY 1")
