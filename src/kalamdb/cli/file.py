"""``kalam file put`` and ``get``: a file of this machine into a FILE column, and out of one.

Both speak the server's own SQL (FILE OPEN, APPEND, CLOSE; FILE GET), a chunk at a time. What is got is held against the
SHA-256 of the row's reference before it gets its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import psycopg
from psycopg import sql

from kalamdb.cli.output import fail

CHUNK = 4 << 20
STREAM = Path("-")
_SYSTEM = ("_seq", "_userid")


class Target(NamedTuple):
    namespace: str | None
    table: str
    column: str

    @property
    def name(self) -> sql.Composable:
        return sql.Identifier(self.table) if self.namespace is None else sql.Identifier(self.namespace, self.table)


def target_of(text: str) -> Target:
    """``[namespace.]table.column``; a part may stand in double quotes, as in SQL, and else is in lower case."""
    parts, rest = [], text
    while True:
        if rest.startswith('"'):
            part, end = "", 1
            while (at := rest.find('"', end)) >= 0 and rest[at + 1 : at + 2] == '"':
                part, end = part + rest[end : at + 1], at + 2
            part, rest = part + rest[end:at], rest[at + 1 :] if at >= 0 else "x"
        else:
            part, dot, after = rest.partition(".")
            part, rest = part.lower(), dot + after
        parts.append(part)
        if not rest:
            break
        if rest[0] != "." or len(parts) == 3:
            parts = []
            break
        rest = rest[1:]
    if len(parts) not in (2, 3) or not all(parts) or "\0" in text:
        raise fail(f'"{text}" does not name a column', "Such as app.documents.scan: [namespace.]table.column", 2)
    return Target(parts[0] if len(parts) == 3 else None, *parts[-2:])


# ---------- the row ----------
def condition(connection: psycopg.Connection[Any], target: Target, key: Sequence[str]) -> sql.Composable:
    """That of the row with these values in the columns of the table's key."""
    rows = connection.execute(sql.SQL("DESCRIBE {}").format(target.name)).fetchall()
    columns = [name for _, name in sorted((row[4], row[0]) for row in rows if row[4] is not None)]
    if not columns:
        raise fail(f'table "{target.table}" has no key')
    if len(key) != len(columns):
        raise fail(f"the key has {len(columns)} columns ({', '.join(columns)}), --key was given {len(key)} times",
                   code=2)
    return sql.SQL(" AND ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in zip(columns, key, strict=True))


# ---------- put ----------
def put(connection: psycopg.Connection[Any], target: Target, path: Path, *, name: str | None, mime: str | None,
        key: Sequence[str]) -> str:
    """Send a file; its reference as JSON. With a key the row's column is set to it, in the same transaction that finds
    the row."""
    where = condition(connection, target, key) if key else None  # before the file is sent in vain
    name = name or (path.name if path != STREAM else "file")
    with _source(path) as source:
        reference = _send(connection, target, source, _unicode(name), mime)
    text = json.dumps(reference, ensure_ascii=False)
    if where is not None:
        statement = sql.SQL("UPDATE {} SET {} = {} WHERE {}").format(
            target.name, sql.Identifier(target.column), sql.Literal(text), where)
        with connection.transaction():
            if connection.execute(statement).rowcount != 1:
                raise fail(f'no row of table "{target.table}" has the key {", ".join(key)}')
    return text


def _unicode(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of the file system that are no UTF-8
        raise fail(f"the name {name!r} is not valid UTF-8", "Give another by --name.") from None
    return name


@contextlib.contextmanager
def _source(path: Path) -> Iterator[BinaryIO]:
    if path == STREAM:
        yield sys.stdin.buffer
    else:
        with path.open("rb") as file:
            yield file


def _send(connection: psycopg.Connection[Any], target: Target, source: BinaryIO, name: str, mime: str | None) -> Any:
    statement = sql.SQL("FILE OPEN INTO {} ({}) NAME {}").format(target.name, sql.Identifier(target.column),
                                                                 sql.Literal(name))
    if mime is not None:
        statement += sql.SQL(" MIME {}").format(sql.Literal(mime))
    (upload,) = connection.execute(statement).fetchall()[0]
    digest, size = hashlib.sha256(), 0
    while data := source.read(CHUNK):
        digest.update(data)
        append = sql.SQL("FILE APPEND TO {} AT {} DATA ").format(sql.Literal(upload), sql.Literal(size))
        connection.execute(append + sql.Placeholder(format=psycopg.adapt.PyFormat.BINARY), (data,))
        size += len(data)
    close = sql.SQL("FILE CLOSE {} SHA256 {}").format(sql.Literal(upload), sql.Literal(digest.hexdigest()))
    return connection.execute(close).fetchall()[0][0]


# ---------- get ----------
def get(connection: psycopg.Connection[Any], target: Target, path: Path, key: Sequence[str]) -> None:
    where = condition(connection, target, key)
    # one instant: what is read is what the reference says
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    rows = connection.execute(sql.SQL("SELECT {} FROM {} WHERE {}").format(
        sql.Identifier(target.column), target.name, where)).fetchall()
    if not rows:
        raise fail(f'no row of table "{target.table}" has the key {", ".join(key)}')
    if not isinstance(rows[0][0], dict):
        what = "is null: the row has no file" if rows[0][0] is None else "is not of type FILE"
        raise fail(f'column "{target.column}" {what}')
    statement = sql.SQL("FILE GET {} FROM {} WHERE {}").format(sql.Identifier(target.column), target.name, where)
    if path == STREAM:
        _receive(connection, statement, rows[0][0], sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        _receive_into(connection, statement, rows[0][0], path)


def _receive_into(connection: psycopg.Connection[Any], statement: sql.Composed, reference: Any, path: Path) -> None:
    """The file gets its name when it is whole; what had it before stays till then."""
    if path.is_dir():
        raise fail(f"{path} is a directory", "Name the file to write.")
    handle, part = tempfile.mkstemp(prefix=".kalam-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            _receive(connection, statement, reference, file)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)  # as any other file that is made
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _receive(connection: psycopg.Connection[Any], statement: sql.Composed, reference: Any, to: BinaryIO) -> None:
    digest, size = hashlib.sha256(), 0
    with contextlib.closing(connection.cursor(binary=True)) as cursor:
        for _, data in cursor.stream(statement):
            digest.update(data)
            size += len(data)
            to.write(data)
    if size != reference["size"] or digest.hexdigest() != reference["sha256"]:
        raise fail("what came is not the file: its size or SHA-256 is another",
                   "kalam check on the server's data directory tells what is damaged.")
