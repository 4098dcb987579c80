"""The bodies of CREATE TABLE and ALTER TABLE: what stands between the table's name and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kalamdb.errors import KalamError
from kalamdb.sql.statements import (
    Action,
    AddCheck,
    AddColumn,
    AlterTable,
    CheckSpec,
    ColumnSpec,
    DropColumn,
    DropConstraint,
    RenameColumn,
    RenameConstraint,
    RenameTable,
    SetDefault,
    SetNotNull,
    SetOptions,
    SetType,
)

if TYPE_CHECKING:
    from kalamdb.sql.parse import Parser

#: words that end a column's type or default
COLUMN_WORDS = frozenset({"not", "null", "constraint", "primary", "check", "unique", "references", "collate",
                          "generated", "default", "deferrable", "initially", "fill"})


class TableBody:
    """The parenthesised part of CREATE TABLE."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser
        self.columns: list[ColumnSpec] = []
        self.checks: list[CheckSpec] = []
        self.key: tuple[str, ...] = ()
        self.key_constraint: str | None = None

    def element(self) -> None:
        if not self._table_constraint():
            self.column()

    def _table_constraint(self) -> bool:
        parser = self.parser
        constraint: str | None = None
        if parser.token.is_word("constraint"):
            parser.advance()
            constraint = parser.name()
        if parser.accept("primary", "key"):
            self._set_key(parser.names(), constraint)
            return True
        if parser.token.is_word("check") and parser.peek().is_op("("):
            parser.advance()
            self._check(constraint)
            return True
        if parser.token.is_word("unique", "foreign", "exclude", "like") and (
            constraint is not None or parser.peek().is_op("(") or parser.peek().is_word("key", "using")
        ):
            raise KalamError("0A000", f"{parser.token.value.upper()} is not supported on tables of this server",
                             position=parser.token.start + 1)
        if constraint is not None:
            raise parser.error()
        return False

    def _set_key(self, columns: tuple[str, ...], constraint: str | None) -> None:
        if self.key:
            raise KalamError("42P16", "multiple primary keys for the table are not allowed",
                             position=self.parser.token.start + 1)
        self.key, self.key_constraint = columns, constraint

    def _check(self, constraint: str | None) -> None:
        parser = self.parser
        parser.expect_op("(")
        expression = parser.until()
        parser.expect_op(")")
        self.checks.append(CheckSpec(constraint, expression))

    def column(self) -> None:
        parser = self.parser
        name = parser.name()
        place = parser.token.start + 1
        declared = parser.until(words=COLUMN_WORDS)
        not_null, default = False, None
        while parser.token.kind == "word":
            constraint = None
            if parser.accept("constraint"):
                constraint = parser.name()
            if parser.accept("not", "null"):
                not_null = True
            elif parser.accept("null"):
                pass
            elif parser.accept("default"):
                default = parser.until(words=COLUMN_WORDS)
            elif parser.accept("primary", "key"):
                self._set_key((name,), constraint)
            elif parser.accept("check"):
                self._check(constraint)
            elif parser.accept("collate"):
                parser.table()
            elif parser.token.is_word("fill"):
                break
            elif parser.token.is_word("unique", "references", "generated"):
                raise KalamError("0A000", f"{parser.token.value.upper()} is not supported on tables of this server",
                                 position=parser.token.start + 1)
            else:
                raise parser.error()
        self.columns.append(ColumnSpec(name, declared, not_null, default, place))


# ---------- ALTER TABLE ----------
def alter_table(parser: Parser, kind: str | None) -> AlterTable:
    exists = parser.if_exists()
    parser.accept("only")
    name = parser.table()
    owner = parser.string() if parser.accept("owned", "by") else None
    actions = [_action(parser)]
    while parser.accept_op(","):
        actions.append(_action(parser))
    return AlterTable(name, kind, exists, tuple(actions), owner)


def _action(parser: Parser) -> Action:
    first = parser.token
    word = first.value if first.kind == "word" else ""
    parser.advance()
    match word:
        case "add":
            return _add(parser)
        case "drop":
            return _drop(parser)
        case "rename":
            return _rename(parser)
        case "alter":
            return _alter_column(parser)
        case "set" if parser.token.is_op("("):
            return SetOptions(parser.options())
        case "reset" if parser.token.is_op("("):
            return SetOptions({}, parser.names())
    if word in ("set", "reset", "owner", "enable", "disable", "attach", "detach", "validate", "inherit", "cluster"):
        what = f"{word} {parser.token.value}".upper() if parser.token.kind == "word" else word.upper()
        raise KalamError("0A000", f"ALTER TABLE ... {what} is not supported", position=first.start + 1)
    raise parser.error(first, hint="expected ADD, DROP, RENAME, ALTER COLUMN, SET (...) or RESET (...)")


def _add(parser: Parser) -> Action:
    start = parser.token
    if start.is_word("primary", "unique", "foreign", "exclude"):
        raise KalamError("0A000", f"ADD {start.value.upper()} is not supported", position=start.start + 1,
                         hint="The key is declared by CREATE TABLE.")
    if start.is_word("constraint", "check"):
        name = None
        if parser.accept("constraint"):
            name = parser.name()
        if not parser.token.is_word("check"):
            raise KalamError("0A000", "only CHECK constraints can be added", position=parser.token.start + 1)
        parser.advance()
        parser.expect_op("(")
        expression = parser.until()
        parser.expect_op(")")
        return AddCheck(CheckSpec(name, expression), not parser.accept("not", "valid"))
    parser.accept("column")
    exists = parser.if_not_exists()
    body = TableBody(parser)
    body.column()
    if body.key:
        raise KalamError("0A000", "ADD PRIMARY KEY is not supported", position=start.start + 1,
                         hint="The key is declared by CREATE TABLE.")
    filled, fill = parser.accept("fill"), None
    if filled and not parser.accept("null"):
        fill = parser.string()
    return AddColumn(body.columns[0], tuple(body.checks), exists, fill, filled)


def _drop(parser: Parser) -> Action:
    if parser.accept("constraint"):
        exists = parser.if_exists()
        dropped: Action = DropConstraint(parser.name(), exists)
    else:
        parser.accept("column")
        exists = parser.if_exists()
        dropped = DropColumn(parser.name(), exists)
    parser.accept("cascade") or parser.accept("restrict")
    return dropped


def _rename(parser: Parser) -> Action:
    if parser.accept("to"):
        return RenameTable(parser.name())
    constraint = parser.accept("constraint")
    if not constraint:
        parser.accept("column")
    name = parser.name()
    parser.expect("to")
    return RenameConstraint(name, parser.name()) if constraint else RenameColumn(name, parser.name())


def _alter_column(parser: Parser) -> Action:
    parser.accept("column")
    name = parser.name()
    if parser.accept("set", "data", "type") or parser.accept("type"):
        place = parser.token.start + 1
        declared = parser.until(words=frozenset({"using", "collate"}))
        if parser.accept("collate"):
            parser.table()
        if parser.token.is_word("using"):
            raise KalamError("0A000", "ALTER COLUMN TYPE ... USING is not supported",
                             position=parser.token.start + 1,
                             hint="Add a column of the new type, UPDATE it, and drop the old one.")
        return SetType(name, declared, place)
    if parser.accept("set", "default"):
        return SetDefault(name, parser.until())
    if parser.accept("drop", "default"):
        return SetDefault(name, None)
    if parser.accept("set", "not", "null"):
        return SetNotNull(name, True)
    if parser.accept("drop", "not", "null"):
        return SetNotNull(name, False)
    raise parser.error(hint="expected TYPE, SET DEFAULT, DROP DEFAULT, SET NOT NULL or DROP NOT NULL")
