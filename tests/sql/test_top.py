"""ORDER BY columns LIMIT n from the store: how much of wide rows is read at a time."""

from __future__ import annotations

import uuid

from .client import Client, Wire

WIDE = 1_000_000


def wide(db: Client, ns: str) -> str:
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, n integer, s text)")
    db.run(f"INSERT INTO t SELECT g, -g, repeat('x', {WIDE}) FROM generate_series(1, 30) g")
    return f'"{ns}"."t"'


def test_wide_rows_come_in_chunks(db: Client, ns: str, wire: Wire) -> None:
    table = wide(db, ns)
    for arrow in (False, True):
        context = {"txn": {"id": uuid.uuid4().hex}, "fetch": 10_000, "arrow": arrow}
        chunk = wire(f'SELECT "id", "s" FROM {table} ORDER BY "n" LIMIT 25', **context)
        found = chunk.rows
        while chunk.cursor is not None:
            assert len(chunk.rows) < 12, "8 MiB and one more"
            chunk = wire(f"FETCH 10000 FROM {chunk.cursor}")
            found += chunk.rows
        assert [row[0] for row in found] == list(range(30, 5, -1))
        assert {len(row[1]) for row in found} == {WIDE}
        wire("ROLLBACK", txn=context["txn"])


def test_a_table_altered_between_chunks(db: Client, ns: str, wire: Wire) -> None:
    """Never a row in the shape of another definition."""
    table = wide(db, ns)
    txn = {"id": uuid.uuid4().hex}
    wire(f'UPDATE {table} SET "n" = "n" - 100 WHERE "id" < 30', txn=txn)
    chunk = wire(f'SELECT "id", "s" FROM {table} ORDER BY "n" LIMIT 25', txn=txn, fetch=10_000)
    assert chunk.cursor is not None
    wire(f"ALTER TABLE {table} DROP COLUMN \"n\"", txn=txn)
    failed = wire.fails("55006", f"FETCH 100 FROM {chunk.cursor}")
    assert "altered" in str(failed.detail)
