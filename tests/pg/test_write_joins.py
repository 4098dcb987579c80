"""UPDATE … FROM and DELETE … USING of KalamDB tables: which are sent whole, and that they do what heap tables do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import psycopg
import pytest

from .pair import Pair

pytestmark = pytest.mark.pg

SETUP = """
CREATE TABLE items (id int PRIMARY KEY, n int, m numeric(8, 2), t text, at timestamptz, y boolean) {using};
CREATE TABLE other (a int, b text, ref int, v numeric, d double precision, PRIMARY KEY (a, b)) {using};
CREATE TABLE third (id int PRIMARY KEY, name text COLLATE "C", j jsonb) {using};
"""
FILL = """
INSERT INTO items SELECT g, g % 4, g * 1.25, 'row ' || g, '2024-01-01 UTC'::timestamptz + g * interval '1 day',
    g % 2 = 0 FROM generate_series(1, 12) g;
INSERT INTO items (id) VALUES (20), (21);
INSERT INTO other SELECT g, 'b' || g, g * 2, g * 1.5, g / 3.0 FROM generate_series(1, 8) g;
INSERT INTO other VALUES (9, 'x', NULL, NULL, NULL), (10, 'y', 777, 1, 'NaN');
INSERT INTO third SELECT g, 'name ' || g, json_build_object('g', g) FROM generate_series(1, 5) g;
"""


@pytest.fixture(params=["shared", "user"])
def pair(dsn: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(dsn, request.param)
    pair.setup(SETUP)
    pair.setup(FILL)
    yield pair
    pair.close()


WHOLE = [
    "UPDATE items SET n = other.a, t = other.b || '?' FROM other WHERE other.ref = items.id",
    "UPDATE items i SET n = i.n + o.a FROM other o WHERE o.ref = i.id AND o.v > 4 AND i.n < 3 RETURNING i.*",
    "UPDATE items i SET n = 0 FROM other o WHERE o.ref = i.id RETURNING i.id, o.a, o.v, i.m + o.a, o.b || i.t, i",
    "UPDATE items i SET m = o.v, y = o.d > 1 FROM other o WHERE o.ref = i.id RETURNING i.tableoid > 0, i.m",
    "UPDATE items i SET t = p.t FROM items p WHERE p.id = i.id - 1 RETURNING i.id, i.t, p.id, p.t",
    "UPDATE items i SET t = name FROM other o JOIN third h ON h.id = o.a WHERE o.ref = i.id",
    "UPDATE items i SET t = name, n = o.a FROM other o LEFT JOIN third h ON h.id = o.a AND h.id > 2 WHERE o.ref = i.id"
    " RETURNING i.id, name, h.j",
    "UPDATE items i SET n = 1 FROM other o, third h WHERE o.ref = i.id AND h.id = o.a AND h.name > 'name 2'",
    "UPDATE items SET n = 9 WHERE id IN (SELECT ref FROM other WHERE v < 9)",
    "UPDATE items SET n = n * 2 WHERE EXISTS (SELECT FROM other WHERE ref = items.id AND d > 0.5) RETURNING id, n",
    "UPDATE items SET n = -1 WHERE NOT EXISTS (SELECT FROM other WHERE ref = items.id)",
    "UPDATE items i SET n = 3 FROM other o WHERE o.ref = i.id AND EXISTS (SELECT FROM third WHERE id = o.a)",
    "UPDATE items i SET id = i.id + 100 FROM other o WHERE o.ref = i.id",
    "UPDATE items i SET at = now(), n = 5 FROM other o WHERE o.ref = i.id AND i.at < '2024-01-06 UTC'",
    "UPDATE items i SET n = (SELECT max(id) FROM third) FROM other o WHERE o.ref = i.id RETURNING i.n, o.a",
    "UPDATE items i SET t = s.z FROM other o LEFT JOIN (SELECT id, coalesce(name, 'x') AS z FROM third WHERE id > 1) s"
    " ON s.id = o.a WHERE o.ref = i.id RETURNING i.id, i.t",
    "UPDATE items i SET n = 2 FROM other o WHERE o.ref = i.id AND false",
    "WITH up AS (UPDATE items i SET n = 1 FROM other o WHERE o.ref = i.id RETURNING i.id, o.b) SELECT * FROM up",
    "DELETE FROM items i USING other o WHERE o.ref = i.id RETURNING i.id, i.t, o.b",
    "DELETE FROM items i USING other o WHERE o.ref = i.id AND o.v BETWEEN 3 AND 8 RETURNING i",
    "DELETE FROM other o USING items i, third h WHERE o.ref = i.id AND h.id = o.a RETURNING *",
    "DELETE FROM items a USING items b WHERE a.n = b.n AND a.id > b.id",
    "DELETE FROM items WHERE id IN (SELECT ref FROM other JOIN third ON third.id = other.a)",
    "DELETE FROM items WHERE NOT EXISTS (SELECT FROM other WHERE ref = items.id) RETURNING *",
    "DELETE FROM third h USING (SELECT ref, a FROM other WHERE v > 2) s WHERE s.a = h.id RETURNING h.id, s.ref",
    "WITH gone AS (DELETE FROM items i USING other o WHERE o.ref = i.id RETURNING i.n) SELECT sum(n) FROM gone",
]  # fmt: skip
HERE = {
    "UPDATE items i SET t = upper(o.b) FROM other o WHERE o.ref = i.id": "a new value that is not sent",
    "UPDATE items i SET n = 1 FROM other o WHERE o.ref = i.id AND upper(o.b) = 'B1'": "a condition that is not sent",
    "UPDATE items i SET n = 1 FROM other o WHERE o.ref = i.id RETURNING i.id, o": "another table's whole row",
    "UPDATE items i SET n = 1 FROM generate_series(1, 4) g WHERE g = i.id RETURNING i.id": "something that is no table",
    "UPDATE items i SET n = s.c FROM (SELECT ref, count(*) AS c FROM other GROUP BY ref) s"
    " WHERE s.ref = i.id": "groups",
    "DELETE FROM items i USING pg_class c WHERE c.oid = i.id": "a table that is elsewhere",
    "UPDATE items SET n = 1 WHERE id NOT IN (SELECT ref FROM other WHERE ref IS NOT NULL)": "NOT IN is no join",
}


def test_as_on_heap_tables(pair: Pair) -> None:
    for sql in [*WHOLE, *HERE]:
        pair.both("BEGIN")
        if "now()" in sql:
            assert pair.kalam.run(sql).count == pair.heap.run(sql).count
        else:
            pair.both(sql)
        for side in (pair.heap, pair.kalam):
            side.conn.execute("ROLLBACK")


def test_which_are_sent_whole(pair: Pair) -> None:
    for sql in WHOLE:
        shown = pair.plan(sql)
        if sql.endswith("false"):  # it need not be asked
            assert "One-Time Filter: false" in shown
            continue
        assert "Foreign Update" in shown or "Foreign Delete" in shown, sql
        assert "FROM ARROW" not in shown
        assert "FOR UPDATE" not in shown
        assert not re.search("Hash|Merge|Nested", shown), sql
    for sql, reason in HERE.items():
        shown = pair.plan(sql)
        assert "Foreign Update" not in shown, reason
        assert "Foreign Delete" not in shown, reason


def test_errors_and_settings(pair: Pair) -> None:
    assert pair.both("UPDATE items i SET n = 10 / (o.a - 3) FROM other o WHERE o.ref = i.id").sqlstate == "22012"
    assert pair.both("UPDATE items i SET id = 1 FROM other o WHERE o.ref = i.id AND o.ref = 2").sqlstate == "23505"
    for side in (pair.heap, pair.kalam):
        side.conn.execute("SET plan_cache_mode = force_generic_plan")
        side.conn.execute(
            "PREPARE u(int, text) AS UPDATE items i SET n = i.n + $1, t = $2 FROM other o WHERE o.ref = i.id"
            " AND o.a > $1 RETURNING i.id, o.a, i.n"
        )
    assert "Foreign Update" in pair.plan("EXECUTE u(1, 'x')")
    for values in ("2, 'x'", "NULL, 'y'", "5, NULL", "99, ''"):
        pair.both(f"EXECUTE u({values})")
    for side in (pair.heap, pair.kalam):  # a condition that is decided once
        side.conn.execute("PREPARE once(int) AS UPDATE items i SET n = 8 FROM other o WHERE o.ref = i.id AND $1 > 5")
        side.conn.execute("PREPARE gone(int) AS DELETE FROM items WHERE id IN (SELECT ref FROM other WHERE $1 > 5)")
    for name in ("once", "gone"):
        assert "Foreign Update" not in pair.plan(f"EXECUTE {name}(3)")
        pair.both(f"EXECUTE {name}(3)")
        pair.both(f"EXECUTE {name}(6)")


def test_one_change_a_row(pair: Pair) -> None:
    """Of several partners one is taken, PostgreSQL does not say which."""
    pair.setup("INSERT INTO other SELECT g, 'many', 3, g FROM generate_series(100, 130) g")
    where = "WHERE o.ref = i.id AND i.id = 3 RETURNING"
    for side in (pair.heap, pair.kalam):
        outcome = side.run(f"UPDATE items i SET n = i.n + 1, m = o.a FROM other o {where} i.n")
        assert (outcome.count, outcome.rows) == (1, [(4,)])
        outcome = side.run(f"DELETE FROM items i USING other o {where} i.m BETWEEN 100 AND 130")
        assert (outcome.count, outcome.rows) == (1, [(True,)])


def test_triggers_checks_and_partitions_keep_it_here(pair: Pair) -> None:
    sql = "UPDATE {} i SET n = o.a FROM other o WHERE o.ref = i.id"
    pair.setup(
        "CREATE TABLE gen (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED) {using};"
        "CREATE TABLE loud (id int PRIMARY KEY, n int, t text CHECK (upper(t) <> 'NO')) {using};"
        "INSERT INTO gen VALUES (2, 1); INSERT INTO loud VALUES (2, 1, 'a');"
        "CREATE VIEW few AS SELECT * FROM items WHERE n < 3 WITH CHECK OPTION"
    )
    for table in ("gen", "few"):
        assert "Foreign Update" not in pair.plan(sql.format(table))
        pair.both(sql.format(table))
    assert "Foreign Update" not in pair.plan(sql.format("loud"))
    assert pair.both("UPDATE loud i SET t = 'No' FROM other o WHERE o.ref = i.id").sqlstate == "23514"
    pair.setup(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$;"
        "CREATE TRIGGER k BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION keep()"
    )
    assert "Foreign Update" not in pair.plan(sql.format("items"))
    pair.both(sql.format("items"))
    assert "Foreign Delete" in pair.plan("DELETE FROM items i USING other o WHERE o.ref = i.id")


def test_chunks_of_returning(dsn: str) -> None:
    pair = Pair(dsn, "shared")
    try:
        pair.setup(SETUP)
        pair.setup("INSERT INTO items (id, n, t) SELECT g, 0, repeat('x', 20000) FROM generate_series(1, 1000) g")
        pair.setup("INSERT INTO other SELECT g, 'b', g, g, g FROM generate_series(1, 1000) g")
        for sql in ("UPDATE items SET n = n + 1 RETURNING id, t, n",
                    "UPDATE items i SET n = i.n + o.a FROM other o WHERE o.ref = i.id RETURNING i.id, i.t, o.a, i.n",
                    "DELETE FROM items WHERE id > 100 RETURNING id, n, t"):  # fmt: skip
            assert re.search("Foreign (Update|Delete)", pair.plan(sql))
            pair.both(sql)
    finally:
        pair.close()


def test_two_sessions(pair: Pair, dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute(f"SET search_path = {pair.kalam.schema}; SET kalam.user_id = 'alice'; SET lock_timeout = '100ms'")
        pair.kalam.conn.execute("BEGIN")
        pair.kalam.conn.execute("UPDATE other SET v = 0 WHERE a = 1")
        sql = "UPDATE items i SET n = o.a FROM other o WHERE o.ref = i.id AND o.a = 1"
        assert other.execute(sql).rowcount == 1  # the other table's rows are read, not locked
        pair.kalam.conn.execute("UPDATE items SET n = 7 WHERE id = 4")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            other.execute(sql.replace("o.a = 1", "o.a = 2"))
        pair.kalam.conn.execute("COMMIT")
