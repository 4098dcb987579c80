"""Queries that want more memory than they may have: they use the disk, or fail with 53200, and the server lives."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from support.server import KalamServer


@pytest.fixture
def server() -> Iterator[KalamServer]:
    server = KalamServer(duckdb__memory_limit="60MB", duckdb__threads="2")
    try:
        server.start()
        yield server
    finally:
        server.close()


def test_a_query_beyond_its_memory(server: KalamServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        sorted_rows = conn.execute(
            "SELECT count(*), min(m), max(m) FROM (SELECT md5(i::text) AS m FROM generate_series(1, 2000000) i "
            "ORDER BY m LIMIT 1900000) x").fetchone()
        assert sorted_rows is not None
        assert sorted_rows[0] == 1_900_000
        with pytest.raises(psycopg.errors.OutOfMemory) as caught:
            conn.execute("SELECT array_length(array_agg(a + b), 1) "
                         "FROM generate_series(1, 6000) a, generate_series(1, 5000) b")
        assert caught.value.sqlstate == "53200"
        assert conn.execute("SELECT 1").fetchone() == (1,)
    assert server.running


def test_a_large_table_in_little_memory(server: KalamServer) -> None:
    """What feeds a query goes to a file where it is large."""
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("CREATE NAMESPACE app")
        conn.execute("CREATE SHARED TABLE app.t (id bigint PRIMARY KEY, a text)")
        conn.execute("INSERT INTO app.t SELECT i, repeat('x', 500) || i FROM generate_series(1, 200000) i")
        query = "SELECT count(*), sum(length(a)), max(id) FROM app.t x WHERE a LIKE '%x1%'"
        before = conn.execute(query).fetchone()
        assert before is not None
        assert before[0] == 111_111
        conn.execute("STORAGE FLUSH TABLE app.t")
        assert conn.execute(query).fetchone() == before
