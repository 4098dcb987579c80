"""The statements about contents of FILE columns: ``FILE PUT``, ``OPEN``, ``APPEND``, ``CLOSE``, ``CANCEL``, ``GET``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlglot import exp

from kalamdb.errors import KalamError
from kalamdb.sql.lexer import quote
from kalamdb.sql.statements import (
    FileAppend,
    FileCancel,
    FileClose,
    FileData,
    FileGet,
    FilePut,
    FileText,
    Query,
    Statement,
)

if TYPE_CHECKING:
    from kalamdb.sql.parse import Parser


def file_statement(parser: Parser) -> Statement:
    """After the word FILE."""
    match parser.token.value if parser.token.kind == "word" else "":
        case "put" | "open":
            return _put(parser)
        case "append":
            return _append(parser)
        case "close" | "cancel":
            return _end(parser)
        case "get":
            return _get(parser)
    raise parser.error(hint="expected PUT, OPEN, APPEND, CLOSE, CANCEL or GET")


def _put(parser: Parser) -> FilePut:
    whole = parser.advance().value == "put"
    parser.expect("into")
    table = parser.table()
    parser.expect_op("(")
    column = parser.name()
    parser.expect_op(")")
    given: dict[str, FileText] = {}
    words = ("name", "mime", "sha256") if whole else ("name", "mime")
    while parser.token.is_word(*words) and parser.token.value not in given:
        word = parser.advance().value
        given[word] = _text(parser)
    data = _data(parser) if whole else None
    return FilePut(table, column, given.get("name"), given.get("mime"), given.get("sha256"), data)


def _append(parser: Parser) -> FileAppend:
    parser.advance()
    parser.expect("to")
    upload = _text(parser)
    at = parser.integer() if parser.accept("at") else None
    return FileAppend(upload, at, _data(parser))


def _end(parser: Parser) -> FileClose | FileCancel:
    if parser.advance().value == "cancel":
        return FileCancel(_text(parser))
    upload = _text(parser)
    return FileClose(upload, _text(parser) if parser.accept("sha256") else None)


def _data(parser: Parser) -> FileData:
    parser.expect("data")
    base64 = parser.accept("base64")
    return FileData(_text(parser), base64)


def _text(parser: Parser) -> FileText:
    """A quoted string, or a parameter's place (from 0)."""
    if parser.token.kind == "param" and int(parser.token.value) > 0:
        return int(parser.advance().value) - 1
    return parser.string()


def _get(parser: Parser) -> FileGet:
    from kalamdb.sql.parse import parse

    first = parser.advance()
    column = parser.name()
    parser.expect("from")
    table = parser.table()
    condition = None
    if parser.accept("where"):
        condition = parser.until(";", words=frozenset({"offset", "limit"}))
        # blanks keep the condition's positions
        lead = f"SELECT {quote(column)} FROM {_quoted(table.namespace, table.table)} WHERE "
        end = parser.tokens[parser.at - 1].end
        start = end - len(condition)
        condition = lead + " " * max(0, start - len(lead)) + condition
    offset, limit = 0, None
    if parser.accept("offset"):
        offset = parser.integer()
    if parser.accept("limit"):
        limit = parser.integer()
    text = condition or f"SELECT {quote(column)} FROM {_quoted(table.namespace, table.table)}"
    query = parse(text)
    tree = query.tree if isinstance(query, Query) else None
    if not isinstance(tree, exp.Select) or any(
            value for part, value in tree.args.items() if part not in ("expressions", "from_", "where", "kind")):
        raise KalamError("42601", "FILE GET takes a column, a table and a condition", position=first.start + 1)
    return FileGet(table, column, tree, offset, limit)


def _quoted(namespace: str | None, table: str) -> str:
    return quote(table) if namespace is None else f"{quote(namespace)}.{quote(table)}"
