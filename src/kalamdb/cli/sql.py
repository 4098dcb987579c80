"""``kalam sql``: one statement, a script on standard input, or a prompt; results as a table or as JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.types.string import TextLoader
from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

from kalamdb.cli.output import err, fail, out
from kalamdb.settings import load
from kalamdb.stack.common import StackError
from kalamdb.stack.server import ServerProcess

#: rows held for a table on the screen at once; JSON is written row by row
SCREEN_ROWS = 1000
HISTORY = Path("~/.kalam_history")
#: shown as the server writes them: Python's types lack infinity, years before Christ or digits
AS_TEXT = ("date", "time", "timetz", "timestamp", "timestamptz", "interval", "numeric")
NUMBERS = {20, 21, 23, 700, 701, 1700}
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}


def server_address(data: Path) -> tuple[str, int]:
    """Where the server of a data directory listens."""
    state = ServerProcess(data.resolve()).state()
    if state is None:
        raise StackError(f"no KalamDB server is running on {data}",
                         f"kalam up --data {data} starts one; --host and --port reach any other.")
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(state["rpc"]["host"], state["rpc"]["host"])
    return host, state["rpc"]["port"]


def local_secret(data: Path) -> str | None:
    """The shared secret of a data directory's server, if its settings have one."""
    return load({"data": str(data.resolve())}).auth.shared_secret


def connect(host: str, port: int, user: str, password: str | None) -> psycopg.Connection[Any]:
    try:
        connection = psycopg.connect(
            host=host, port=port, user=user, password=password, dbname="kalam", autocommit=True,
            application_name="kalam sql", connect_timeout=10,
        )
    except psycopg.OperationalError as error:
        reason = str(error).splitlines()[0].rpartition("failed: ")[2].strip()
        refused = reason.startswith("FATAL") or "password" in reason
        hint = "Give --user and $KALAM_PASSWORD; with --user bearer that is a token or the shared secret."
        raise StackError(f"cannot connect to KalamDB at {host}:{port}: {reason.removeprefix('FATAL:').strip()}",
                         hint if refused else None) from None
    for name in AS_TEXT:
        connection.adapters.register_loader(name, TextLoader)
    return connection


@contextmanager
def server(data: Path, host: str | None, port: int | None, user: str | None, tenant: str | None
           ) -> Iterator[psycopg.Connection[Any]]:
    """A connection as the options of a command ask for it. A password comes from $KALAM_PASSWORD; the shared secret of
    a data directory's server is found by itself."""
    if (host is None) != (port is None):
        raise fail("--host and --port belong together", code=2)
    address = (host, port) if host is not None and port is not None else server_address(data)
    password = os.environ.get("KALAM_PASSWORD")
    if host is None and user is None and password is None and (password := local_secret(data)) is not None:
        user = "bearer"
    with connect(*address, user or "kalam", password) as connection:
        if tenant is not None:
            connection.execute(sql.SQL("SET kalam.user_id = {}").format(sql.Literal(tenant)))
        yield connection


class Shell:
    """Runs statements on one connection and shows what they give. ``as_json``: one JSON value a line."""

    def __init__(self, connection: psycopg.Connection[Any], *, as_json: bool) -> None:
        self._connection = connection
        self._as_json = as_json
        connection.add_notice_handler(lambda diag: err.print(Text(f"{diag.severity}:  {diag.message_primary}")))

    @property
    def broken(self) -> bool:
        return self._connection.closed

    def run(self, statement: str) -> bool:
        """False if the server refused it; the error has been shown."""
        try:
            cursor = self._connection.cursor()
            cursor.execute(statement.encode())  # bytes: nothing in it is a placeholder
            while True:
                self._show(cursor)
                if not cursor.nextset():
                    return True
        except psycopg.Error as error:
            show_error(error, statement)
            return False

    def _show(self, cursor: psycopg.Cursor[Any]) -> None:
        if cursor.description is None:
            if self._as_json:
                out.print_json(data={"message": cursor.statusmessage, "affected": max(cursor.rowcount, 0)}, indent=None)
            elif cursor.statusmessage:
                out.print(Text(cursor.statusmessage))
        elif self._as_json:
            names = [column.name for column in cursor.description]
            for row in cursor:
                item = {name: _plain(value) if isinstance(value, float) and not math.isfinite(value) else value
                        for name, value in zip(names, row, strict=True)}
                sys.stdout.write(json.dumps(item, default=_plain, ensure_ascii=False) + "\n")
        else:
            self._table(cursor)

    def _table(self, cursor: psycopg.Cursor[Any]) -> None:
        assert cursor.description is not None
        rows = cursor.fetchall()
        for start in range(0, max(len(rows), 1), SCREEN_ROWS):
            table = Table(box=None, pad_edge=False)
            for column in cursor.description:
                side: JustifyMethod = "right" if column.type_code in NUMBERS else "left"
                table.add_column(Text(_visible(column.name)), overflow="fold", justify=side)
            for row in rows[start : start + SCREEN_ROWS]:
                table.add_row(*[Text("∅", "dim") if value is None else Text(_visible(_plain(value))) for value in row])
            out.print(table)
        out.print(Text(f"({len(rows)} row{'' if len(rows) == 1 else 's'})", "dim"))


def _plain(value: object) -> str:
    if isinstance(value, bytes):
        return "\\x" + value.hex()
    if isinstance(value, bool):
        return "t" if value else "f"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def _visible(text: str) -> str:
    """Nothing that comes out of a table may drive the terminal."""
    return text.translate(_CONTROL)


#: characters of a statement's line that are shown around the place of an error
AROUND = 60


def _place(statement: str, position: int) -> list[str]:
    """The line of the statement, and a mark under the place."""
    before = statement[: position - 1]
    number, start = before.count("\n") + 1, before.rfind("\n") + 1
    line = statement[start:].partition("\n")[0].replace("\t", " ")
    column = len(before) - start
    first = max(0, column - AROUND)
    shown = ("…" if first else "") + line[first : column + AROUND] + ("…" if len(line) > column + AROUND else "")
    head = f"LINE {number}: "
    return [head + shown, " " * (len(head) + column - first + bool(first)) + "^"]


def show_error(error: psycopg.Error, statement: str) -> None:
    """As psql shows it."""
    diag = error.diag
    lines = [f"ERROR:  {diag.sqlstate}: {diag.message_primary}" if diag.message_primary else f"ERROR:  {error}"]
    if diag.statement_position:
        lines += _place(statement, int(diag.statement_position))
    more = (("DETAIL", diag.message_detail), ("HINT", diag.message_hint))
    lines += [f"{word}:  {text}" for word, text in more if text]
    print(_visible("\n".join(lines)), file=sys.stderr)


def prompt(shell: Shell, name: str) -> None:
    """Statements end in a semicolon; \\q or the end of input leaves."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    history_file = HISTORY.expanduser()
    try:
        history_file.touch(mode=0o600)
        history: Any = FileHistory(str(history_file))
    except OSError:
        history = InMemoryHistory()
    session: PromptSession[str] = PromptSession(history=history)
    out.print(Text(f"KalamDB at {name}. Statements end with a semicolon; \\q leaves.", "dim"))
    pending = ""
    while True:
        try:
            line = session.prompt(f"{'kalam' if not pending else '     '}> ")
        except KeyboardInterrupt:
            pending = ""
            continue
        except EOFError:
            return
        if not pending and line.strip() in ("\\q", "quit", "exit"):
            return
        pending += line + "\n"
        if line.rstrip().endswith(";"):
            try:
                shell.run(pending)
            except KeyboardInterrupt:  # psycopg has cancelled the statement
                err.print("cancelled")
            if shell.broken:
                raise StackError("the connection to KalamDB is lost")
            pending = ""
        elif not pending.strip():
            pending = ""
