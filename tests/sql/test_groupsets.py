"""GROUPING SETS, ROLLUP and CUBE of the server's own SQL give PostgreSQL's rows, and its errors."""

from __future__ import annotations

import pytest

from .client import Client, Failed

TABLE = "CREATE TABLE t (id int PRIMARY KEY, a int, b text, n numeric, d date, f float8, m numeric(6, 2))"
ROWS = """INSERT INTO t VALUES (1, 1, 'x', 1.5, '2024-01-01', 0, 1), (2, 1, 'y', 1.50, NULL, '-0', 2),
    (3, NULL, 'x', NULL, '2024-01-01', 'NaN', NULL), (4, 2, NULL, 2, '0044-03-15 BC', NULL, 1), (5, NULL, NULL, NULL,
    NULL, 1, 1.25), (6, 1, 'x', 0.5, 'infinity', 1, 1)"""
SETS = ("GROUPING SETS ((a), (b), ())", "ROLLUP (a, b)", "CUBE (a, b)", "a, ROLLUP (b)", "ROLLUP ((a, b), a)",
        "GROUPING SETS (a, a, (), ())", "CUBE (a), CUBE (b)", "DISTINCT CUBE (a), CUBE (b), a", "(a, b)",
        "GROUPING SETS (ROLLUP (a, b), CUBE (b, a), (b))", "GROUPING SETS ((a, b)), ()", "a, b, ()",
        "GROUPING SETS (1, ROLLUP (2, 1))")  # fmt: skip
QUERIES = [
    *(f"SELECT a, b, grouping(a, b), grouping(b), count(*), sum(a), string_agg(b, ',' ORDER BY id) FROM t{where} GROUP"
      f" BY {sets}{having}" for sets in SETS for where in ("", " WHERE id > 9") for having in
      ("", " HAVING grouping(a) = 1 OR b IS NULL") if "b" in sets or "1" in sets),
    *(f"SELECT {key}, grouping({key}), grouping(({key})), count(*) FROM t GROUP BY ROLLUP ({key})" for key in
      ("n = 1.5", "d", "m", "m + 1", "a + 1", "f = 'NaN'", "d IS NULL")),
    "SELECT a + 1, a, count(*), max(a) FROM t GROUP BY CUBE (a, a + 1)", "SELECT 1 FROM t GROUP BY ()",
    "SELECT count(*), sum(n) FROM t WHERE false GROUP BY GROUPING SETS ((), ())",
    "SELECT a AS k, count(*) FROM t GROUP BY ROLLUP (k) ORDER BY grouping(a), k NULLS FIRST",
    "SELECT a, rank() OVER (PARTITION BY grouping(a) ORDER BY count(*)) FROM t GROUP BY ROLLUP (a)",
    "SELECT DISTINCT a, count(*) FROM t GROUP BY CUBE (a, b)", "SELECT grouping(a), a FROM t GROUP BY a",
    "SELECT COALESCE(b, '?') || 'z', count(*) FROM t GROUP BY ROLLUP (b)",
    "SELECT s.g, sum(s.c) FROM (SELECT grouping(a) AS g, count(*) AS c FROM t GROUP BY CUBE (a)) s GROUP BY s.g",
]  # fmt: skip
ERRORS = [
    "SELECT a, b FROM t GROUP BY ROLLUP (a)", "SELECT id, b FROM t GROUP BY ROLLUP (id)", "SELECT grouping(a) FROM t",
    "SELECT grouping(b) FROM t GROUP BY a", "SELECT a FROM t WHERE grouping(a) = 0 GROUP BY a",
    "SELECT sum(grouping(a)) FROM t GROUP BY a", "SELECT a FROM t GROUP BY grouping(a)",
    "SELECT 1 FROM t GROUP BY CUBE (id, a, b, n, d, f, m, id + 1, id + 2, id + 3, id + 4, id + 5, id + 6)",
    "SELECT a FROM t GROUP BY ROLLUP (9)", "SELECT a FROM t GROUP BY ROLLUP ()",
    "SELECT 1 FROM t GROUP BY CUBE (id, a, b, n, d, f, m), CUBE (id, a, b, n, d, f, m)",
    f"SELECT grouping({', '.join(['a'] * 32)}) FROM t GROUP BY a",
]  # fmt: skip


@pytest.fixture
def both(db: Client, pg: Client) -> tuple[Client, Client]:
    for client in (pg, db):
        client.run(TABLE)
        client.run(ROWS)
    return pg, db


def test_rows(both: tuple[Client, Client]) -> None:
    differ = []
    for sql in QUERIES:
        wanted, got = (client.run(sql) for client in both)
        rows = [list(map(repr, each.rows)) for each in (wanted, got)]
        if "ORDER BY grouping" not in sql:
            rows = [sorted(each) for each in rows]
        if rows[0] != rows[1]:
            differ.append((sql, rows))
    assert not differ


def test_equal_numbers_that_look_different_are_one_group(both: tuple[Client, Client]) -> None:
    sql = "SELECT n, grouping(n), count(*) FROM t GROUP BY ROLLUP (n) HAVING n = 1.5 OR n IS NULL"
    wanted, got = (sorted((float(row[0] or 0), *row[1:]) for row in client.run(sql).rows) for client in both)
    assert got == wanted


def sqlstate(client: Client, sql: str) -> str | None:
    with pytest.raises(Failed) as caught:
        client.run(sql)
    return caught.value.sqlstate


def test_errors(both: tuple[Client, Client]) -> None:
    for sql in ERRORS:
        wanted, got = (sqlstate(client, sql) for client in both)
        assert got == wanted, sql
