"""A backend's memory is bounded by the chunk, not by the result: wide rows that are read, and that RETURNING gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .ddl import Session

pytestmark = pytest.mark.pg

ROWS, WIDTH = 5000, 20_000  # 100 MB
BOUND = 64 << 20


def peak(pid: int) -> int:
    """The most memory that the process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found.group(1)) << 10


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT sum(length(lower(body))) FROM {t}",
        "WITH up AS (UPDATE {t} SET n = n + 1 RETURNING body) SELECT sum(length(lower(body))) FROM up",
    ],
)
def test_wide_rows(db: Session, other: Session, ns: str, sql: str) -> None:
    table = f"{ns}.wide"
    db(f"CREATE TABLE {table} (id int PRIMARY KEY, n int, body text) USING kalamdb WITH (type = 'shared')")
    db(f"INSERT INTO {table} SELECT g, 0, repeat('Wide', {WIDTH // 4}) FROM generate_series(1, {ROWS}) g")
    other("SET work_mem = '4MB'")
    pid = other.value("SELECT pg_backend_pid()")
    assert other.value(f"SELECT length(lower(body)) FROM {table} WHERE id = 1") == WIDTH
    before = peak(pid)
    assert other.value(sql.format(t=table)) == ROWS * WIDTH
    assert peak(pid) - before < BOUND
