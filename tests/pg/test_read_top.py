"""ORDER BY any columns with LIMIT: the first rows of one table, found without the query engine.

Over hot, cold and changed rows and such as the transaction has written or deleted itself, against a heap table.
"""

from __future__ import annotations

import itertools

import pytest

from .ddl import Session
from .test_key_order import server_path

pytestmark = pytest.mark.pg

COLUMNS = "id bigint, n int, s smallint, f float8, r real, b boolean, d date, t timestamptz, x text"
VALUES = """SELECT g,
  CASE WHEN g % 11 = 0 THEN NULL ELSE g * 37 % 101 - 50 END, (g * 7 % 5)::smallint,
  CASE g % 13 WHEN 0 THEN NULL WHEN 1 THEN 'NaN' WHEN 2 THEN 'Infinity' WHEN 3 THEN '-Infinity' WHEN 4 THEN '-0'
    WHEN 5 THEN 0 ELSE (g * 29 % 83 - 40) / 3.0 END,
  CASE g % 17 WHEN 0 THEN NULL WHEN 1 THEN 'NaN' ELSE (g * 31 % 89 - 44) / 7.0 END,
  CASE g % 3 WHEN 0 THEN NULL ELSE g % 2 = 0 END,
  CASE g % 19 WHEN 0 THEN NULL WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity' ELSE
    '2000-01-01'::date + g * 41 % 977 - 400 END,
  CASE g % 23 WHEN 0 THEN NULL WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity' ELSE
    'epoch'::timestamptz + g * 43 % 991 * interval '1 h' END,
  'row ' || g
FROM generate_series({}, {}) g"""
ORDERS = ["n", "n, id", "s, n, id", "f", "f, id", "r, id", "b, id", "d", "d, id", "t", "t, d, id", "b, s, f, id", "id"]
FORMS = [" ASC NULLS LAST", " ASC NULLS FIRST", " DESC NULLS LAST", " DESC NULLS FIRST"]
CONDITIONS = ["true", "id BETWEEN 100 AND 140 OR s = 3"]


def fill(db: Session, ns: str, first: int, last: int) -> None:
    for table in ("k", "h"):
        db(f"INSERT INTO {ns}.{table} {VALUES.format(first, last)}")


def compare(db: Session, ns: str) -> None:
    """Of equal rows any may come: what orders is compared, and that the rest belongs to the row."""
    for columns, form, condition in itertools.product(ORDERS, FORMS, CONDITIONS):
        order = ", ".join(column + form for column in columns.split(", "))
        names = columns.split(", ")
        shown = ", ".join("(f + 0)::text" if name == "f" else f"{name}::text" for name in names)  # -0 is 0
        inner = ", ".join(dict.fromkeys([*names, "id", "x"]))
        query = (f"SELECT {shown}, id, x FROM (SELECT {inner} FROM {ns}.{{}} WHERE {condition}"
                 f" ORDER BY {order} LIMIT 7) q")
        found, wanted = db(query.format("k")), db(query.format("h"))
        assert [row[:len(names)] for row in found] == [row[:len(names)] for row in wanted], query
        assert all(row[-1].rstrip("!?") == f"row {row[-2]}" for row in found), query
        assert len({row[-2] for row in found}) == len(found), query


COUNTED = ["true", "id = 7", "id = 10000", "id IN (7, 8, 9, 10, 7000)", "id = ANY (ARRAY[7, 7, NULL, 12])", "id > 290",
           "id BETWEEN 5 AND 310 AND n > 0", "n IS NULL", "f = 'NaN'", "id = NULL", "id = 7 AND n > 100", "b"]


def compare_counts(db: Session, ns: str) -> None:
    for condition in COUNTED:
        query = f"SELECT count(*) FROM {ns}.{{}} WHERE {condition}"
        assert db(query.format("k")) == db(query.format("h")), condition


@pytest.mark.parametrize("kind", ["shared", "user"])
def test_first_rows(db: Session, ns: str, kind: str) -> None:
    db("SET kalam.user_id = 'me'")
    db(f"CREATE TABLE {ns}.k ({COLUMNS}, PRIMARY KEY (id)) USING kalamdb WITH (type = '{kind}')")
    db(f"CREATE TABLE {ns}.h ({COLUMNS})")
    if kind == "user":
        db("SET kalam.user_id = 'another'")
        db(f"INSERT INTO {ns}.k SELECT g, 1000, 1000, 'NaN', 'NaN', true, 'infinity', 'infinity', 'not mine'"
           " FROM generate_series(1, 50) g")
        db("SET kalam.user_id = 'me'")
    assert db(f"SELECT n FROM {ns}.k ORDER BY n LIMIT 5") == []
    fill(db, ns, 1, 300)
    compare(db, ns)
    compare_counts(db, ns)
    db("SELECT kalam_flush(%s::regclass)", f"{ns}.k")
    for table in ("k", "h"):  # rows that hide cold ones: the best of old may not be among the new
        db(f"UPDATE {ns}.{table} SET n = -n, f = -f, x = x || '!' WHERE id % 7 = 0")
        db(f"DELETE FROM {ns}.{table} WHERE id % 10 = 9 OR f = 'NaN' AND id < 200")
    fill(db, ns, 301, 420)
    compare(db, ns)
    compare_counts(db, ns)
    db("BEGIN")
    for table in ("k", "h"):
        db(f"UPDATE {ns}.{table} SET d = d + 1, t = t - interval '1 y', x = x || '?' WHERE id % 5 = 0")
        db(f"DELETE FROM {ns}.{table} WHERE f = 'Infinity' OR n > 45")
    fill(db, ns, 421, 460)
    compare(db, ns)
    compare_counts(db, ns)
    db("ROLLBACK")
    db("SELECT kalam_flush(%s::regclass)", f"{ns}.k")
    compare(db, ns)
    compare_counts(db, ns)


def test_the_path(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.k ({COLUMNS}, PRIMARY KEY (id)) USING kalamdb WITH (type = 'shared')")
    db(f"INSERT INTO {ns}.k {VALUES.format(1, 100)}")
    for order in ("n DESC", "f, t DESC", "t NULLS FIRST", "b, id DESC"):
        assert server_path(db, f"SELECT id, x FROM {ns}.k ORDER BY {order} LIMIT 5") == "store", order
    for condition, path in (("true", "store"), ("id = 5", "key lookup"), ("id IN (5, 6)", "key lookup"),
                            ("n > 5", "store"), ("x LIKE '%a'", "query engine")):
        assert server_path(db, f"SELECT count(*) FROM {ns}.k WHERE {condition}") == path, condition
    for order in ('x COLLATE "C"', "n + 1", "n LIMIT 1000 OFFSET 1 --"):
        assert server_path(db, f"SELECT id, x FROM {ns}.k ORDER BY {order} LIMIT 5") == "query engine", order


def test_all_tenants(db: Session, ns: str) -> None:
    """The same key in several tenants: each row is its own."""
    db(f"CREATE TABLE {ns}.k ({COLUMNS}, PRIMARY KEY (id)) USING kalamdb WITH (type = 'user')")
    for tenant, number in (("a", 1), ("b", 2), ("c", 3)):
        db(f"SET kalam.user_id = '{tenant}'")
        db(f"INSERT INTO {ns}.k (id, n, x) SELECT g, {number} * 100 - g, '{tenant}' || g FROM generate_series(1, 30) g")
        if number == 2:
            db("SELECT kalam_flush(%s::regclass)", f"{ns}.k")
    db("SET kalam.user_id = '*'")
    assert db(f"SELECT n, x FROM {ns}.k ORDER BY n DESC LIMIT 2") == [(299, "c1"), (298, "c2")]
    assert db(f"SELECT n, x FROM {ns}.k WHERE n < 200 ORDER BY n DESC LIMIT 2") == [(199, "b1"), (198, "b2")]
    assert db(f"SELECT _userid, x FROM {ns}.k WHERE n < 100 ORDER BY n DESC LIMIT 1") == [("a", "a1")]


def test_an_alias_that_hides_a_column(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.k ({COLUMNS}, PRIMARY KEY (id)) USING kalamdb WITH (type = 'shared')")
    db(f"INSERT INTO {ns}.k {VALUES.format(1, 50)}")
    direct = f"SELECT n AS id, id AS n FROM {ns}.k ORDER BY"
    by_alias = db("SELECT kalam_exec(%s)", f"{direct} id LIMIT 1")
    assert by_alias == db("SELECT kalam_exec(%s)", f"{direct} k.n LIMIT 1")
    assert db("SELECT kalam_exec(%s)", f"{direct} n LIMIT 1") == db("SELECT kalam_exec(%s)", f"{direct} k.id LIMIT 1")


def test_wide_rows(db: Session, ns: str) -> None:
    """They come a few at a time, as they were when the statement began."""
    db(f"CREATE TABLE {ns}.k (id bigint PRIMARY KEY, n int, x text, b boolean) USING kalamdb WITH (type = 'shared')")
    for first in (0, 15):
        db(f"INSERT INTO {ns}.k SELECT g, -g, repeat(chr(97 + g), 1000000), g % 2 = 0"
           f" FROM generate_series({first}, {first + 14}) g")
        if first == 0:
            db("SELECT kalam_flush(%s::regclass)", f"{ns}.k")
    db("BEGIN")
    db(f"INSERT INTO {ns}.k VALUES (40, -40, repeat('own', 1000000), true)")
    query = f"SELECT id, n, x FROM {ns}.k ORDER BY n LIMIT 25"
    assert server_path(db, query) == "store"
    db(f"DECLARE wide CURSOR FOR {query}")
    found = db("FETCH 2 FROM wide")
    db(f"UPDATE {ns}.k SET x = 'changed', n = 0")
    db(f"DELETE FROM {ns}.k WHERE id = 3")
    found += db("FETCH ALL FROM wide")
    assert [row[:2] for row in found] == [(40, -40), *((g, -g) for g in range(29, 5, -1))]
    assert [row[2] for row in found] == ["own" * 1000000, *(chr(97 + g) * 1000000 for g in range(29, 5, -1))]
    db("ROLLBACK")
    narrow = db(f"SELECT id, b, n FROM {ns}.k ORDER BY b DESC, n LIMIT 3")
    assert narrow == [(28, True, -28), (26, True, -26), (24, True, -24)]
    assert db(f"SELECT n, b FROM {ns}.k ORDER BY b DESC, n LIMIT 2") == [(-28, True), (-26, True)]
