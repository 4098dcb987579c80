"""PostgreSQL's lexical rules: statement text in, tokens with their positions out.

Serves the statements that have a hand-written parser, the splitting of simple-protocol strings, and the check that
user SQL is lexically sound before sqlglot sees it. Positions count characters from 0. Raises 42601 on an unterminated
string, identifier or comment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from kalamdb.errors import KalamError

Kind = Literal["word", "name", "string", "number", "param", "op", "end"]


@dataclass(frozen=True, slots=True)
class Token:
    """``value`` is the decoded content: lower-cased word, unquoted name, string's characters."""

    kind: Kind
    value: str
    start: int
    end: int

    def is_word(self, *words: str) -> bool:
        return self.kind == "word" and self.value in words

    def is_op(self, *ops: str) -> bool:
        return self.kind == "op" and self.value in ops


_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*)
  | (?P<comment>/\*)
  | (?P<estring>[eE]'(?:[^'\\]|\\.|'')*')
  | (?P<ustring>[uU]&'(?:[^']|'')*')
  | (?P<bits>[bBxX]'[^']*')
  | (?P<string>'(?:[^']|'')*')
  | (?P<name>"(?:[^"]|"")*")
  | (?P<dollar>\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$)
  | (?P<param>\$\d+)
  | (?P<number>(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)
  | (?P<word>[^\W\d][\w$]*)
  | (?P<op>::|:=|<=|>=|<>|!=|=>|->>|->|\|\||[-+*/%^<>=~!@\#&|`?(),;.\[\]:])
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_SIMPLE_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_UNICODE = re.compile(r"\\(\\|[0-9a-fA-F]{4}|\+[0-9a-fA-F]{6})")


def _skip_comment(sql: str, start: int) -> int:
    depth, position = 0, start
    for edge in _COMMENT_EDGE.finditer(sql, start):
        depth += 1 if edge.group() == "/*" else -1
        position = edge.end()
        if depth == 0:
            return position
    raise KalamError("42601", "unterminated /* comment", position=start + 1)


def _unescape(body: str) -> str:
    def decode(found: re.Match[str]) -> str:
        code = found.group(1)
        if code[0] in "uU" and len(code) > 1:
            return chr(int(code[1:], 16))
        if code[0] == "x" and len(code) > 1:
            return chr(int(code[1:], 16))
        if code[0] in "01234567":
            return chr(int(code, 8))
        return _SIMPLE_ESCAPES.get(code, code)

    return _ESCAPE.sub(decode, body.replace("''", "'"))


def _ununicode(body: str) -> str:
    def decode(found: re.Match[str]) -> str:
        code = found.group(1)
        return "\\" if code == "\\" else chr(int(code.lstrip("+"), 16))

    return _UNICODE.sub(decode, body.replace("''", "'"))


def _unlexed(sql: str, start: int) -> KalamError:
    char = sql[start]
    if char == "'":
        return KalamError("42601", "unterminated quoted string", position=start + 1)
    if char == '"':
        return KalamError("42601", "unterminated quoted identifier", position=start + 1)
    if char == "$":
        return KalamError("42601", "unterminated dollar-quoted string", position=start + 1)
    return KalamError("42601", f'syntax error at or near "{char}"', position=start + 1)


def _token(found: re.Match[str]) -> Token | None:
    group, text = found.lastgroup, found.group()
    if group == "tag":
        group = "dollar"
    start, end = found.span()
    match group:
        case "space":
            return None
        case "word":
            return Token("word", text.lower(), start, end)
        case "name":
            value = text[1:-1].replace('""', '"')
            if not value:
                raise KalamError("42601", "zero-length delimited identifier", position=start + 1)
            return Token("name", value, start, end)
        case "string":
            return Token("string", text[1:-1].replace("''", "'"), start, end)
        case "estring":
            return Token("string", _unescape(text[2:-1]), start, end)
        case "ustring":
            return Token("string", _ununicode(text[3:-1]), start, end)
        case "bits":
            return Token("op", text, start, end)
        case "dollar":
            width = len(found.group("tag")) + 2
            return Token("string", text[width:-width], start, end)
        case "param":
            return Token("param", text[1:], start, end)
        case "number":
            return Token("number", text, start, end)
        case _:
            return Token("op", text, start, end)


def tokenize(sql: str) -> list[Token]:
    """All tokens, ended by one of kind ``end``."""
    tokens: list[Token] = []
    position, length = 0, len(sql)
    while position < length:
        found = _TOKEN.match(sql, position)
        if found is None:
            raise _unlexed(sql, position)
        if found.lastgroup == "comment":
            position = _skip_comment(sql, position)
            continue
        token = _token(found)
        if token is not None:
            tokens.append(token)
        position = found.end()
    tokens.append(Token("end", "", length, length))
    return tokens


def split(sql: str) -> list[str]:
    """The statements of a string, without the semicolons; empty ones are left out."""
    statements: list[str] = []
    first: Token | None = None
    last = 0
    for token in tokenize(sql):
        if token.kind == "end" or token.is_op(";"):
            if first is not None:
                statements.append(sql[first.start : last])
            first = None
        else:
            first = first or token
            last = token.end
    return statements


def quote(identifier: str) -> str:
    """A delimited identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string literal, by standard_conforming_strings."""
    return "'" + text.replace("'", "''") + "'"
