"""What the DDL tests share: a session that keeps its notices, and questions to both sides about one table.

`Session.fails` asserts SQLSTATE (None: any but XX000) and words of the message or hint, and leaves the session usable.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import psycopg
import pytest


class Session:
    """One autocommit connection of a test."""

    def __init__(self, dsn: str) -> None:
        self.conn = psycopg.connect(dsn, autocommit=True)
        self.notices: list[str] = []
        self.conn.add_notice_handler(lambda diag: self.notices.append(diag.message_primary or ""))

    def __call__(self, sql: str, *params: object) -> list[tuple[Any, ...]]:
        cursor = self.conn.execute(sql, params or None)
        return cursor.fetchall() if cursor.description else []

    def value(self, sql: str, *params: object) -> Any:
        return self(sql, *params)[0][0]

    def fails(self, sql: str, sqlstate: str | None, *words: str) -> psycopg.Error:
        with pytest.raises(psycopg.Error) as caught:
            self(sql)
        error = caught.value
        told = f"{error.sqlstate}: {error.diag.message_primary}\n{error.diag.message_hint}\n{error.diag.message_detail}"
        assert error.sqlstate == sqlstate or (sqlstate is None and error.sqlstate != "XX000"), told
        for word in words:
            assert word in told
        return error

    def without_timeout(self) -> None:
        """RESET statement_timeout. A short one may strike this statement itself, if the machine pauses in it."""
        reset = False
        while not reset:
            with suppress(psycopg.errors.QueryCanceled):
                self("RESET statement_timeout")
                reset = True

    def close(self) -> None:
        self.conn.close()

    def remote(self, sql: str) -> Any:
        """The server's own answer, by kalam_exec."""
        return json.loads(self.value("SELECT kalam_exec(%s)", sql))

    def facts(self, table: str) -> dict[str, str]:
        """SHOW TABLE of a quoted remote name; empty if it is not there."""
        return {row["option"]: row["value"] for row in self.remote(f"SHOW TABLE IF EXISTS {table}")}

    def remote_columns(self, table: str) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.remote(f"DESCRIBE {table}")}

    def local_columns(self, table: str) -> list[str]:
        return [
            row[0]
            for row in self(
                "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 "
                "AND NOT attisdropped ORDER BY attnum",
                table,
            )
        ]

    def options(self, table: str) -> dict[str, str]:
        rows = self(
            "SELECT option_name, option_value FROM pg_options_to_table("
            "(SELECT ftoptions FROM pg_foreign_table WHERE ftrelid = %s::regclass))",
            table,
        )
        return dict(rows)

    def key(self, table: str) -> list[str]:
        rows = self(
            "SELECT attname FROM pg_attribute, LATERAL pg_options_to_table(attfdwoptions) "
            "WHERE attrelid = %s::regclass AND option_name = 'key' ORDER BY option_value::int",
            table,
        )
        return [row[0] for row in rows]

    def exists(self, table: str) -> bool:
        return bool(self.value("SELECT to_regclass(%s) IS NOT NULL", table))
