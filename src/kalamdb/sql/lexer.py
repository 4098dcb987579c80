"""PostgreSQL's lexical rules: statement text in, tokens with their positions out.

Serves the statements that have a hand-written parser, the splitting of simple-protocol strings, and the check that
user SQL is lexically sound before sqlglot sees it. Positions count characters from 0. Raises 42601 on an unterminated
string, identifier or comment.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
  | (?P<estring>[eE]'[^'\\]*(?:(?:\\.|'')[^'\\]*)*')
  | (?P<ustring>[uU]&'[^']*(?:''[^']*)*')
  | (?P<uname>[uU]&"[^"]*(?:""[^"]*)*")
  | (?P<bits>[bBxX]'[^']*')
  | (?P<string>'[^']*(?:''[^']*)*')
  | (?P<name>"[^"]*(?:""[^"]*)*")
  | (?P<dollar>\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$)
  | (?P<param>\$\d+)
  | (?P<radix>0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+)
  | (?P<number>(?:\d+(?:_\d+)*(?:\.(?:\d+(?:_\d+)*)?)?|\.\d+(?:_\d+)*)(?:[eE][+-]?\d+(?:_\d+)*)?)
  | (?P<word>[^\W\d][\w$]*)
  | (?P<op>::|:=|<=|>=|<>|!=|=>|->>|->|\|\||[-+*/%^<>=~!@\#&|`?(),;.\[\]:])
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_ESCAPE = re.compile(
    r"(?P<bytes>(?:\\x[0-9a-fA-F]{1,2}|\\[0-7]{1,3})+)"
    r"|(?P<units>(?:\\u[0-9a-fA-F]{4})+)|\\U(?P<code>[0-9a-fA-F]{8})|\\(?P<char>.)", re.DOTALL)
_BYTE = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3}))")
_SIMPLE_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_UNICODE = re.compile(r"\\(?:(?P<self>\\)|(?P<units>[0-9a-fA-F]{4}(?:\\[0-9a-fA-F]{4})*)|\+(?P<code>[0-9a-fA-F]{6})"
                      r"|(?P<char>))")


_JUNK = re.compile(r"[^\W\d][\w$]*")


def _skip_comment(sql: str, start: int) -> int:
    depth, position = 0, start
    for edge in _COMMENT_EDGE.finditer(sql, start):
        depth += 1 if edge.group() == "/*" else -1
        position = edge.end()
        if depth == 0:
            return position
    raise KalamError("42601", "unterminated /* comment", position=start + 1)


def _character(code: int) -> str:
    if code > 0x10FFFF:
        raise KalamError("42601", "invalid Unicode escape value")
    if code == 0:
        raise KalamError("22021", 'invalid byte sequence for encoding "UTF8": 0x00')
    return chr(code)


def _units(digits: str) -> str:
    """UTF-16 units, four digits each: two may be one character."""
    try:
        text = bytes.fromhex(digits).decode("utf-16-be")
    except UnicodeDecodeError:
        raise KalamError("42601", "invalid Unicode surrogate pair") from None
    return "".join(_character(ord(char)) for char in text)


def _bytes(escapes: str) -> str:
    data = bytes(int(digits, 16) if digits else int(octal, 8) & 255 for digits, octal in _BYTE.findall(escapes))
    if 0 in data:
        raise KalamError("22021", 'invalid byte sequence for encoding "UTF8": 0x00')
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        shown = " ".join(f"0x{byte:02x}" for byte in data[error.start : error.start + 4])
        raise KalamError("22021", f'invalid byte sequence for encoding "UTF8": {shown}') from None


def _unescape(body: str) -> str:
    def decode(found: re.Match[str]) -> str:
        if found["bytes"] is not None:
            return _bytes(found["bytes"])
        if found["units"] is not None:
            return _units(found["units"].replace("\\u", ""))
        if found["code"] is not None:
            return _character(_scalar(int(found["code"], 16)))
        char = found["char"]
        if char in "uU":
            raise KalamError("22025", "invalid Unicode escape",
                             hint="Unicode escapes must be \\uXXXX or \\UXXXXXXXX.")
        return _SIMPLE_ESCAPES.get(char, char)

    return _ESCAPE.sub(decode, body.replace("''", "'"))


def _scalar(code: int) -> int:
    if 0xD800 <= code <= 0xDFFF:
        raise KalamError("42601", "invalid Unicode surrogate pair")
    return code


def _ununicode(body: str) -> str:
    def decode(found: re.Match[str]) -> str:
        if found["self"] is not None:
            return "\\"
        if found["units"] is not None:
            return _units(found["units"].replace("\\", ""))
        if found["code"] is not None:
            return _character(_scalar(int(found["code"], 16)))
        raise KalamError("42601", "invalid Unicode escape", hint="Unicode escapes must be \\XXXX or \\+XXXXXX.")

    return _UNICODE.sub(decode, body)


def _unlexed(sql: str, start: int) -> KalamError:
    char = sql[start]
    if char == "'":
        return KalamError("42601", "unterminated quoted string", position=start + 1)
    if char == '"':
        return KalamError("42601", "unterminated quoted identifier", position=start + 1)
    if char == "$":
        return KalamError("42601", "unterminated dollar-quoted string", position=start + 1)
    return KalamError("42601", f'syntax error at or near "{char}"', position=start + 1)


def _placed(decode: Callable[[str], str], body: str, start: int) -> str:
    try:
        return decode(body)
    except KalamError as error:
        error.position = start + 1
        raise


def _name(value: str, start: int, end: int) -> Token:
    if not value:
        raise KalamError("42601", "zero-length delimited identifier", position=start + 1)
    return Token("name", value, start, end)


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
            return _name(text[1:-1].replace('""', '"'), start, end)
        case "string":
            return Token("string", text[1:-1].replace("''", "'"), start, end)
        case "estring":
            return Token("string", _placed(_unescape, text[2:-1], start), start, end)
        case "ustring":
            return Token("string", _placed(_ununicode, text[3:-1].replace("''", "'"), start), start, end)
        case "uname":
            return _name(_placed(_ununicode, text[3:-1].replace('""', '"'), start), start, end)
        case "bits":
            return Token("op", text, start, end)
        case "dollar":
            width = len(found.group("tag")) + 2
            return Token("string", text[width:-width], start, end)
        case "param":
            return Token("param", text[1:], start, end)
        case "radix":
            return Token("number", str(int(text, 0)), start, end)
        case "number":
            return Token("number", text.replace("_", ""), start, end)
        case _:
            return Token("op", text, start, end)


def _continues(sql: str, before: Token, token: Token) -> bool:
    """Is this string the rest of the one before, which a line break divides?"""
    return (before.kind == "string" and sql[token.start] == "'" and sql[before.end - 1] == "'"
            and "\n" in sql[before.end : token.start])


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
            if token.kind == "number" and (junk := _JUNK.match(sql, token.end)):
                raise KalamError("42601", "trailing junk after numeric literal at or near "
                                          f'"{sql[token.start : junk.end()]}"', position=token.start + 1)
            if tokens and token.kind == "string" and _continues(sql, tokens[-1], token):
                before = tokens.pop()
                token = Token("string", before.value + token.value, before.start, token.end)
            tokens.append(token)
        position = found.end()
    tokens.append(Token("end", "", length, length))
    return tokens


def split(sql: str) -> list[tuple[int, str]]:
    """The statements of a string, each with its place; without the semicolons, and without empty ones."""
    statements: list[tuple[int, str]] = []
    first: Token | None = None
    last = 0
    for token in tokenize(sql):
        if token.kind == "end" or token.is_op(";"):
            if first is not None:
                statements.append((first.start, sql[first.start : last]))
            first = None
        else:
            first = first or token
            last = token.end
    return statements


def plain(sql: str, tokens: Sequence[Token]) -> tuple[str, list[tuple[int, int]]]:
    """The same tokens without comments, and with strings in their plain form, each where it was as far as that goes.

    The list tells where it did not go, as (place in the new text, place in the old one) from which on both go on alike.
    """
    parts: list[str] = []
    moved: list[tuple[int, int]] = []
    at = shift = 0
    for token in tokens:
        write = _WRITTEN.get(token.kind)
        text = write(token.value) if write is not None else sql[token.start : token.end]
        if at > token.start + shift:  # what is before became longer than it was, and ends by itself
            shift = at - token.start
            moved.append((at, token.start))
        parts += (" " * (token.start + shift - at), text)
        at = token.start + shift + len(text)
    return "".join(parts), moved


def original(place: int, moved: Sequence[tuple[int, int]]) -> int:
    """The place in the text that ``plain`` was made of."""
    for new, old in reversed(moved):
        if place >= new:
            return place - new + old
    return place


def quote(identifier: str) -> str:
    """A delimited identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string literal, by standard_conforming_strings."""
    return "'" + text.replace("'", "''") + "'"


#: ``$1,$`` would begin a dollar-quoted string of sqlglot's
_WRITTEN: dict[Kind, Callable[[str], str]] = {"string": literal, "name": quote, "number": str, "param": "${} ".format}
