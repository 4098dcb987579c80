"""The same statements on ordinary tables and on KalamDB tables, outcomes and contents compared.

Two schemas of one database hold the same names: ``{using}`` in a script becomes nothing in one and
``USING kalamdb`` in the other, and ``search_path`` chooses between them, so that even messages are equal word by word.
An outcome is the row count, the rows, and the error with its fields; `both` asserts that the two sides agree on it and
on the contents of every table afterwards, and returns it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import psycopg


@dataclass(frozen=True)
class Outcome:
    count: int
    rows: list[tuple[Any, ...]] | None
    sqlstate: str | None = None
    message: str | None = None
    detail: str | None = None
    constraint: str | None = None


class Side:
    """One connection with one of the two schemas in its path."""

    def __init__(self, dsn: str, schema: str, using: str) -> None:
        self.conn = psycopg.connect(dsn, autocommit=True)
        self.schema = schema
        self.using = using
        self.conn.execute(f"SET search_path = {schema}, public")
        self.conn.execute("SET kalam.user_id = 'alice'")

    def text(self, sql: str) -> str:
        return sql.replace("{using}", self.using)

    def run(self, sql: str, params: Any = None) -> Outcome:
        try:
            cursor = self.conn.execute(self.text(sql), params)
            rows = cursor.fetchall() if cursor.description else None
            if rows and ("ORDER BY" not in sql or " RETURNING " in sql):  # in no order that a table would promise
                rows.sort(key=repr)
            return Outcome(cursor.rowcount, rows)
        except psycopg.Error as error:
            diag = error.diag
            return Outcome(-1, None, error.sqlstate, diag.message_primary, diag.message_detail, diag.constraint_name)

    def copy(self, sql: str, rows: list[tuple[Any, ...]], types: list[str] | None = None) -> Outcome:
        try:
            with self.conn.cursor() as cursor:
                with cursor.copy(sql) as copy:
                    if types:
                        copy.set_types(types)
                    for row in rows:
                        copy.write_row(row)
                return Outcome(cursor.rowcount, None)
        except psycopg.Error as error:
            diag = error.diag
            return Outcome(-1, None, error.sqlstate, diag.message_primary, diag.message_detail, diag.constraint_name)

    def tables(self) -> list[str]:
        return [
            row[0]
            for row in self.conn.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'f')"
                " ORDER BY relname",
                [self.schema],
            )
        ]

    def columns(self, table: str) -> list[str]:
        return [
            row[0]
            for row in self.conn.execute(
                "SELECT quote_ident(attname) FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0"
                " AND NOT attisdropped AND attname NOT IN ('_seq', '_userid') ORDER BY attnum",
                [f"{self.schema}.{table}"],
            )
        ]

    def contents(self) -> dict[str, list[str]]:
        """Rows as their text: Python has neither an infinite date, nor a NaN that equals itself."""
        found = {}
        for table in self.tables():
            columns = ", ".join(self.columns(table))
            query = f"SELECT whole_row::text FROM (SELECT {columns} FROM {table}) whole_row"
            found[table] = sorted(row[0] for row in self.conn.execute(query))
        return found

    def failed(self) -> bool:
        return self.conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR


class Pair:
    def __init__(self, dsn: str, kind: str = "shared", *, system_columns: bool = False) -> None:
        """Without system columns ``*`` means the same on both sides."""
        name = f"w{uuid4().hex[:12]}"
        clause = f"USING kalamdb WITH (type = '{kind}', system_columns = '{str(system_columns).lower()}')"
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(f"CREATE SCHEMA {name}_h")
            conn.execute(f"CREATE SCHEMA {name}_k")
        self.dsn = dsn
        self.heap = Side(dsn, f"{name}_h", "")
        self.kalam = Side(dsn, f"{name}_k", clause)

    def setup(self, script: str) -> None:
        for side in (self.heap, self.kalam):
            side.conn.execute(side.text(script))

    def both(self, sql: str, params: Any = None) -> Outcome:
        return self.agree(sql, self.heap.run(sql, params), self.kalam.run(sql, params))

    def copy(self, sql: str, rows: list[tuple[Any, ...]], types: list[str] | None = None) -> Outcome:
        return self.agree(sql, self.heap.copy(sql, rows, types), self.kalam.copy(sql, rows, types))

    def agree(self, what: str, wanted: Outcome, got: Outcome) -> Outcome:
        assert got == wanted, what
        if not self.heap.failed():
            assert self.kalam.contents() == self.heap.contents(), what
        return wanted

    def waits(self, side: Side, observer: psycopg.Connection[Any], pid: int) -> bool:
        """Does the one other session, whose process in PostgreSQL is `pid`, wait for a lock?"""
        if side is self.kalam:
            row = observer.execute("SELECT kalam_exec('SELECT key FROM system.locks WHERE NOT granted')").fetchone()
            return row is not None and str(row[0]) != "[]"
        row = observer.execute("SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
        return row is not None and bool(row[0])

    def plan(self, sql: str) -> str:
        """EXPLAIN (VERBOSE) of the statement on the Kalam tables."""
        return "\n".join(str(row[0]) for row in self.kalam.run(f"EXPLAIN (VERBOSE, COSTS OFF) {sql}").rows or [])

    def close(self) -> None:
        for side in (self.heap, self.kalam):
            side.conn.rollback()
            side.conn.execute(f"DROP SCHEMA {side.schema} CASCADE")
            side.conn.close()
