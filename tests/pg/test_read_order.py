"""Rows in the server's order: partitions are merged and local tables joined by it, without a Sort in PostgreSQL.

Always the same tables twice, on KalamDB and ordinary: the rows must be equal, in their order where it is total.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from .pair import Pair
from .plans import make_collations

pytestmark = pytest.mark.pg

#: a column's name, its type, and a value of the row's number g, with NULLs and extremes
COLUMNS = {
    "i": ("int", "NULLIF(g % 17, 3)"),
    "b": ("bigint", "CASE g % 9 WHEN 0 THEN NULL WHEN 1 THEN -9223372036854775808 WHEN 2 THEN 9223372036854775807"
          " ELSE g % 9 END"),
    "f": ("float8", "CASE g % 11 WHEN 0 THEN NULL WHEN 1 THEN 'NaN' WHEN 2 THEN '-0' WHEN 3 THEN '0' WHEN 4 THEN"
          " '-Infinity' WHEN 5 THEN 'Infinity' ELSE g % 11 / 4.0 END"),
    "n": ("numeric", "CASE g % 7 WHEN 0 THEN NULL WHEN 1 THEN 1.50 WHEN 2 THEN 1.5 WHEN 3 THEN 'NaN' WHEN 4 THEN"
          " 'Infinity' ELSE g % 7 END"),
    "x": ("text", "CASE g % 13 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN 'é' WHEN 3 THEN 'E' WHEN 4 THEN '日本'"
          " ELSE 'e' || g % 13 END"),
    "d": ("date", "CASE g % 10 WHEN 0 THEN NULL WHEN 1 THEN 'infinity' WHEN 2 THEN '0044-03-15 BC' ELSE date"
          " '2024-01-01' + g % 10 END"),
    "t": ("timestamptz", "CASE g % 12 WHEN 0 THEN NULL WHEN 1 THEN '-infinity' ELSE timestamptz '2024-01-01' +"
          " g % 12 * interval '1 us' END"),
    "u": ("uuid", "md5((g % 14)::text)::uuid"),
    "y": ("bytea", "decode(repeat('00', g % 5) || CASE WHEN g % 3 = 0 THEN 'ff' ELSE '' END, 'hex')"),
    "o": ("bool", "NULLIF(g % 4, 3) = 1"),
}  # fmt: skip
DIRECTIONS = ("", " DESC", " NULLS FIRST", " DESC NULLS LAST")


def script(name: str, where: str, rows: int) -> str:
    """A table of these columns; an ordinary one is indexed, so that it has an order of its own."""
    names = ", ".join(f"{column} {type_}" for column, (type_, _) in COLUMNS.items())
    values = ", ".join(value for _, value in COLUMNS.values())
    return (f"CREATE TABLE {name} (id int, e text COLLATE english, {names}{where};"
            f"INSERT INTO {name} SELECT g, 'e' || g % 5, {values} FROM generate_series(1, {rows}) g")


@pytest.fixture(scope="module")
def pair(module_dsn: str) -> Iterator[Pair]:
    with psycopg.connect(module_dsn, autocommit=True) as conn:
        make_collations(conn)
    with closing(Pair(module_dsn)) as pair:
        pair.setup(script("k", ", PRIMARY KEY (id)) {using}", 500))
        pair.setup(script("m", ", PRIMARY KEY (id)) {using}", 300))
        pair.setup(script("l", ", PRIMARY KEY (id))", 200))
        for column in ("id", *COLUMNS):
            pair.setup(f"CREATE INDEX ON l ({column})")
        parts = "; ".join(f"CREATE TABLE p{k} PARTITION OF p (PRIMARY KEY (id)) FOR VALUES WITH (MODULUS 3, REMAINDER"
                          f" {k}) {{using}}" for k in range(3))
        pair.setup(script("p", ") PARTITION BY HASH (id)", 0).replace(";", f"; {parts};", 1))
        pair.setup("INSERT INTO p SELECT * FROM k; ANALYZE k; ANALYZE m; ANALYZE l; ANALYZE p")
        pair.kalam.conn.execute("SELECT kalam_flush('m'), kalam_flush('p1')")
        yield pair


def asked(plan: str) -> list[str]:
    return re.findall("Remote SQL: (.*)", plan)


@pytest.mark.parametrize("column", ["id", *COLUMNS])
def test_partitions_are_merged(pair: Pair, column: str) -> None:
    for direction in DIRECTIONS:
        order = f"{column}{direction}" if column == "id" else f"{column}{direction}, id"
        for tail in ("", " LIMIT 7", " LIMIT 5 OFFSET 3"):
            sql = f"SELECT id, e, {column}::text AS shown FROM p WHERE id > 9 ORDER BY {order}{tail}"
            plan = pair.plan(sql)
            assert "Merge Append" in plan
            assert len(asked(plan)) == 3
            assert all("ORDER BY" in each and ("LIMIT" in each) is bool(tail) for each in asked(plan)), plan
            assert not re.search(r"->  (Incremental )?Sort", plan)
            pair.both(sql)


def test_a_limit_that_partitions_must_not_take(pair: Pair) -> None:
    for sql in (
        "SELECT id FROM p WHERE lower(x) > 'e5' ORDER BY id LIMIT 5",  # filtered here
        "SELECT i, id FROM p ORDER BY i, id FETCH FIRST 2 ROWS WITH TIES",
        "SELECT i FROM p ORDER BY i FETCH FIRST 1 ROWS WITH TIES",
        "SELECT DISTINCT i FROM p ORDER BY i LIMIT 3",
        "SELECT i, count(*) FROM p GROUP BY i ORDER BY i LIMIT 3",
        "SELECT id, sum(i) OVER (ORDER BY id DESC) FROM p ORDER BY id LIMIT 3",
        "SELECT id, generate_series(1, id % 3) FROM p ORDER BY id LIMIT 6",
        "SELECT p.id, m.i FROM p JOIN m ON m.id = p.id AND m.id > 200 ORDER BY p.id LIMIT 4",
        "SELECT p.id FROM p WHERE EXISTS (SELECT FROM l WHERE l.id = p.id AND l.i = 5) ORDER BY p.id LIMIT 4",
        "SELECT id FROM p ORDER BY e, id LIMIT 5",  # no order of the server
        "SELECT id FROM p ORDER BY id LIMIT 3 FOR UPDATE SKIP LOCKED",
    ):
        assert not any("LIMIT" in each for each in asked(pair.plan(sql))), sql
        pair.both(sql)
    assert all("LIMIT" in each for each in asked(pair.plan("SELECT id FROM p LIMIT 3")))
    for limit, offset in ((0, 0), (3, 490), (1000, 0)):
        pair.both(f"SELECT id FROM p ORDER BY id LIMIT {limit} OFFSET {offset}")


def only_merge_joins(pair: Pair) -> None:
    pair.setup("SET enable_hashjoin = off; SET enable_nestloop = off")


@pytest.mark.parametrize("column", ["id", *COLUMNS])
def test_merge_joins_with_a_local_table(pair: Pair, column: str) -> None:
    only_merge_joins(pair)
    try:
        for table, kind in (("k", "JOIN"), ("k", "LEFT JOIN"), ("k", "RIGHT JOIN"), ("k", "FULL JOIN"), ("p", "JOIN")):
            sql = f"SELECT r.id, l.id FROM {table} r {kind} l ON r.{column} = l.{column} WHERE r.id < 80 OR l.id < 50"
            plan = pair.plan(sql)
            assert "Merge Full Join" in plan or "Merge Join" in plan or "Merge Left" in plan or "Merge Right" in plan
            assert all("ORDER BY" in each for each in asked(plan)), plan
            assert not re.search(r"Sort\n.*\n +->  (Append|Foreign)", plan), plan
            pair.both(sql)
        for sql in (f"SELECT id FROM k WHERE {column} IN (SELECT {column} FROM l WHERE id < 9)",
                    f"SELECT id FROM k WHERE NOT EXISTS (SELECT FROM l WHERE l.{column} = k.{column})",
                    f"SELECT k.id, m.id, l.id FROM k JOIN m ON k.id = m.id JOIN l ON l.{column} = m.{column}"
                    f" WHERE k.i < 9 ORDER BY l.{column}, k.id, l.id"):
            pair.both(sql)
    finally:
        pair.setup("RESET enable_hashjoin; RESET enable_nestloop")


def test_texts_in_no_order_of_the_server(pair: Pair) -> None:
    only_merge_joins(pair)
    sql = "SELECT k.id, l.id FROM k JOIN l ON k.e = l.e WHERE k.id < 90"
    try:
        assert not any("ORDER BY" in each for each in asked(pair.plan(sql)))
        pair.both(sql)
    finally:
        pair.setup("RESET enable_hashjoin; RESET enable_nestloop")


def test_joins_of_partitions_are_merged(pair: Pair) -> None:
    pair.setup("CREATE TABLE r (id int, i int, v text) PARTITION BY HASH (id);" + ";".join(
        f"CREATE TABLE r{k} PARTITION OF r (PRIMARY KEY (id)) FOR VALUES WITH (MODULUS 3, REMAINDER {k}) {{using}}"
        for k in range(3)) + "; INSERT INTO r SELECT id, i, x FROM k WHERE id % 2 = 0;"
        "SET enable_partitionwise_join = on")  # fmt: skip
    try:
        for sql in ("SELECT p.id, r.v FROM p JOIN r USING (id) ORDER BY id",
                    "SELECT p.id, r.v FROM p LEFT JOIN r USING (id) ORDER BY r.v DESC, p.id"):
            plan = pair.plan(sql)
            assert len(asked(plan)) == 3, plan
            assert all("JOIN" in each and "ORDER BY" in each for each in asked(plan))
            assert "Merge Append" in plan
            pair.both(sql)
    finally:
        pair.setup("RESET enable_partitionwise_join; DROP TABLE r")


def test_orders_for_what_stays_here(pair: Pair) -> None:
    """GROUP BY, DISTINCT and windows above a condition that is left here, or above partitions."""
    for sql in ("SELECT i, string_agg(x, ',' ORDER BY id) FROM p WHERE lower(x) > 'e3' GROUP BY i ORDER BY i",
                "SELECT id, row_number() OVER (ORDER BY id) FROM p WHERE id < 100 ORDER BY id",
                "SELECT DISTINCT ON (i) i, id FROM p ORDER BY i, id"):
        assert all("ORDER BY" in each for each in asked(pair.plan(sql))), sql
        pair.both(sql)


def test_changes_of_partitions_while_they_are_merged(pair: Pair) -> None:
    """Each partition's rows come by a cursor of its own, as they were when the statement began."""
    pair.setup("BEGIN")
    try:
        pair.setup("DECLARE c CURSOR FOR SELECT id, i FROM p ORDER BY id")
        pair.both("FETCH 5 FROM c")
        pair.setup("UPDATE p SET i = i + 1000; DELETE FROM p WHERE id % 2 = 0")
        pair.both("FETCH 10 FROM c")
        pair.both("FETCH ALL FROM c")
        pair.both("SELECT id, i FROM p ORDER BY i DESC NULLS LAST, id LIMIT 20")
    finally:
        pair.setup("ROLLBACK")
