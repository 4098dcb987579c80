"""Proof that an expression has PostgreSQL's result: over many rows of arguments, on PostgreSQL and on the server.

PostgreSQL says in one statement which rows fail and how. All rows that succeed there are compared in one statement of
each side; of those that fail, some of each SQLSTATE are tried one by one on the server.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence

from .client import Client, Failed

Row = Sequence[str]
#: an expression as PostgreSQL is asked and as the server is
Call = tuple[str, str]
#: what the server has no type of its own for comes as its text: interval, arrays
TEXT_HERE = {1186, 199, 1000, 1001, 1005, 1007, 1009, 1015, 1016, 1021, 1022, 1115, 1182, 1185, 1231, 2951, 3807}
#: so many failing rows of one SQLSTATE are tried
TRIED = 3

_FAILURE = """CREATE FUNCTION pg_temp.failure(query text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN EXECUTE query; RETURN NULL; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$"""


class Sides:
    """PostgreSQL and the server."""

    def __init__(self, pg: Client, kalam: Client) -> None:
        self.pg, self.kalam = pg, kalam
        pg.run(_FAILURE)

    def failures(self, queries: Sequence[str]) -> list[str | None]:
        """The SQLSTATE with which PostgreSQL fails each, None where it does not."""
        sql = "SELECT pg_temp.failure(query) FROM jsonb_array_elements_text($1) WITH ORDINALITY t(query, n) ORDER BY n"
        return self.pg.run(sql, json.dumps(queries)).column

    def close(self) -> None:
        self.pg.close()
        self.kalam.close()


def outcome(client: Client, sql: str, *, rough: bool = False) -> object:
    """A SQLSTATE, or types and rows; ``rough`` to 12 digits, without the sign of zero."""
    try:
        answer = client.run(sql)
    except Failed as error:
        return error.sqlstate
    rows = [tuple(map(_about, row)) for row in answer.rows] if rough else answer.rows
    return [25 if oid in TEXT_HERE else oid for oid in answer.oids], rows


def _about(text: str | None) -> str | None:
    try:
        return text if text is None or text.strip("-0123456789.e+") else f"{float(text) + 0.0:.12g}"
    except ValueError:
        return text


def over(call: str, columns: Sequence[str], rows: Sequence[Row]) -> str:
    """The types stand with the first row, which is quicker to read, unless they have modifiers."""
    rest = rows[1:] if any(")" in text for text in rows[0]) else [
        [text.rpartition("::")[0] for text in row] for row in rows[1:]]
    body = ", ".join("(" + ", ".join(row) + ")" for row in [rows[0], *rest])
    return f"SELECT {call} FROM (VALUES {body}) v({', '.join(columns)})"


def agree(sides: Sides, calls: Sequence[str | Call], columns: Sequence[str], rows: Sequence[Row], *,
          rough: bool = False, refused: Sequence[str] = ()) -> None:
    """The calls over all rows. The server may fail what PostgreSQL does not with a SQLSTATE of ``refused``."""
    pairs = [(call, call) if isinstance(call, str) else call for call in calls]
    together: dict[tuple[int, ...], list[Call]] = defaultdict(list)  # calls that succeed with the same rows
    found = _failures(sides, [local for local, _ in pairs], columns, rows)
    for call, failures in zip(pairs, found, strict=True):
        together[tuple(place for place, failure in enumerate(failures) if failure is None)].append(call)
        for row, failure in _some(rows, failures):
            sql = over(call[1], columns, [row])
            got = outcome(sides.kalam, sql, rough=rough)
            assert got == failure or got in refused, sql
    for good, same in together.items():
        if good:
            _same(sides, same, columns, [rows[place] for place in good], rough, refused)


def _failures(sides: Sides, calls: Sequence[str], columns: Sequence[str], rows: Sequence[Row]
              ) -> list[list[str | None]]:
    """Of each call, by row; only rows with which some call fails are tried call by call."""
    every = sides.failures([over(", ".join(calls), columns, [row]) for row in rows])
    if len(calls) == 1:
        return [every]
    bad = [place for place, failure in enumerate(every) if failure is not None]
    found: list[list[str | None]] = []
    for call in calls:
        tried = sides.failures([over(call, columns, [rows[place]]) for place in bad])
        failures = dict(zip(bad, tried, strict=True))
        found.append([failures.get(place) for place in range(len(rows))])
    return found


def _same(sides: Sides, calls: Sequence[Call], columns: Sequence[str], rows: Sequence[Row], rough: bool,
          refused: Sequence[str]) -> None:
    """Halves what differs, down to one call of one row."""
    local, remote = (over(", ".join(call[side] for call in calls), columns, rows) for side in (0, 1))
    wanted, got = outcome(sides.pg, local, rough=rough), outcome(sides.kalam, remote, rough=rough)
    if wanted == got:
        assert not isinstance(wanted, str), local
        return
    parts: list[tuple[Sequence[Call], Sequence[Row]]]
    if len(calls) > 1:
        parts = [([call], rows) for call in calls]
    elif len(rows) > 1:
        half = len(rows) // 2
        parts = [(calls, rows[:half]), (calls, rows[half:])]
    else:
        assert got == wanted or got in refused, remote
        return
    for some_calls, some_rows in parts:
        _same(sides, some_calls, columns, some_rows, rough, refused)
    assert isinstance(got, str), f"only together they differ: {remote}"


def _some(rows: Sequence[Row], failures: Sequence[str | None]) -> Iterator[tuple[Row, str]]:
    """Failing rows, of each SQLSTATE some from first to last."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row, failure in zip(rows, failures, strict=True):
        if failure is not None:
            found[failure].append(row)
    for failure, failing in found.items():
        step = max(1, len(failing) // TRIED)
        for row in failing[::step][:TRIED]:
            yield row, failure


def both(sides: Sides, sql: str, *, rough: bool = False, types: bool = True) -> None:
    """One statement."""
    wanted, got = (outcome(client, sql, rough=rough) for client in (sides.pg, sides.kalam))
    if not types and not isinstance(wanted, str) and not isinstance(got, str):
        wanted, got = wanted[1], got[1]  # type: ignore[index]
    assert got == wanted, sql
