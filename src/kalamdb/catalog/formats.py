"""Formats of a data directory: which this program reads, and how an older one becomes today's.

The number stands in the database. A server that opens an older directory brings it to ``CURRENT`` within the
transaction in which it loads it: a crash leaves the old format or the new one. Nobody touches a directory of a newer
format. Tools that only read take an older one as it is (``modern``).

A change that an older program would misread is a new format: one more step here, and a directory of the format before
it among the tests' data. What never moves is the table ``kalam_meta`` and its ``format``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import apsw

from kalamdb import __version__
from kalamdb.errors import KalamError

Definition = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """From one format to the next: statements, then each table's definition."""

    statements: tuple[str, ...] = ()
    definition: Callable[[Definition], Definition] | None = None


def _last_column(definition: Definition) -> Definition:
    """A number that a dropped column had is not given again: columns could not be dropped before."""
    return {"last_column": max((column["id"] for column in definition["columns"]), default=0), **definition}


#: the format that a step begins with
STEPS: dict[int, Step] = {
    # 2: tables that were altered; outcomes of commits in their order (some directories of format 1 have that already)
    1: Step(definition=_last_column, statements=(
        "CREATE TABLE IF NOT EXISTS kalam_outcomes (txn_id TEXT PRIMARY KEY, seq INTEGER NOT NULL, at INTEGER NOT "
        "NULL) STRICT, WITHOUT ROWID",
        "CREATE TABLE IF NOT EXISTS kalam_commits (seq INTEGER PRIMARY KEY, txn_id TEXT NOT NULL) STRICT",
        "INSERT OR IGNORE INTO kalam_commits SELECT seq, txn_id FROM kalam_outcomes",
        "DROP TABLE kalam_outcomes",
    )),
    # 3: columns of types that are kept as text, by their own names (what a table of before declared as text stays text)
    2: Step(),
}
OLDEST = min(STEPS)
CURRENT = max(STEPS) + 1


def found(connection: apsw.Connection) -> tuple[Any, str | None]:
    """(the format, the release that wrote it) of a database; (None, None) where it is not one of ours, or empty."""
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'kalam_meta'").fetchall():
        return None, None
    query = "SELECT name, value FROM kalam_meta WHERE name IN ('format', 'release')"
    rows: list[Any] = connection.execute(query).fetchall()
    facts: dict[str, Any] = dict(rows)
    return facts.get("format"), facts.get("release")


def refusal(number: Any, release: str | None) -> KalamError | None:
    """58000 for what this program does not read."""
    if isinstance(number, int) and OLDEST <= number <= CURRENT:
        return None
    reads = f"KalamDB {__version__} reads formats {OLDEST} to {CURRENT}"
    if number is None:
        return KalamError("58000", "the database says no format", detail=f"{reads}.", hint="Is it a KalamDB's?")
    written = f", written by KalamDB {release}" if release else ""
    return KalamError("58000", f"the data directory has format {number}{written}", detail=f"{reads}.",
                      hint="Use the release that wrote it, or a later one.")


def upgrade(connection: apsw.Connection) -> int | None:
    """Within a transaction: bring the database to ``CURRENT``. The format it had, if that was another."""
    number, release = found(connection)
    error = refusal(number, release)
    if error is not None:
        raise error
    if number == CURRENT:
        return None
    for at in range(number, CURRENT):
        for statement in STEPS[at].statements:
            connection.execute(statement)
    query = "SELECT id, definition FROM kalam_tables WHERE definition <> ''"
    rows: list[Any] = connection.execute(query).fetchall()
    for table, text in rows:
        connection.execute("UPDATE kalam_tables SET definition = ? WHERE id = ?", (modern(text, number), table))
    return int(number)


def modern(text: str, number: int) -> str:
    """A table's definition of that format as ``CURRENT`` has it."""
    definition: Definition = json.loads(text)
    for at in range(number, CURRENT):
        change = STEPS[at].definition
        if change is not None:
            definition = change(definition)
    return json.dumps(definition, ensure_ascii=False)
