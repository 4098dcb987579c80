"""The one exception that reaches a client, and PostgreSQL's error codes that this server uses.

Messages follow PostgreSQL's style: lower case, one fact, advice in the hint.
"""

from __future__ import annotations


class KalamError(Exception):
    """An error a client sees, with the fields of PostgreSQL's ErrorResponse.

    ``position`` counts characters of the statement from 1. ``spares``: an open transaction goes on all the same.
    """

    spares = False

    def __init__(
        self, sqlstate: str, message: str, *, detail: str | None = None, hint: str | None = None,
        position: int | None = None, schema: str | None = None, table: str | None = None, column: str | None = None,
        constraint: str | None = None, severity: str = "ERROR",
    ) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
        self.hint = hint
        self.position = position
        self.schema = schema
        self.table = table
        self.column = column
        self.constraint = constraint
        self.severity = severity

    def __repr__(self) -> str:
        return f"<KalamError {self.sqlstate} {self.message!r}>"
