"""UPDATE and DELETE that are sent whole: which are, and that nobody can tell it from what they do."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from .pair import Pair

pytestmark = pytest.mark.pg

SETUP = """
CREATE TABLE items (id int PRIMARY KEY, n int, b bigint NOT NULL DEFAULT 0, m numeric(8, 2), d double precision,
    t text, v varchar(4), c char(3), at timestamptz, day date, u uuid, j jsonb, y boolean, s smallint) {using};
CREATE TABLE other (id int PRIMARY KEY, ref int, t text) {using};
"""
FILL = """
INSERT INTO items SELECT g, g % 4, g * 1000, g * 1.25, g / 4.0, 'row ' || g, 'v' || g, 'c',
    '2024-01-01 UTC'::timestamptz + g * interval '1 day', '2024-01-01'::date + g, NULL,
    json_build_object('g', g), g % 2 = 0, g
    FROM generate_series(1, 12) g;
INSERT INTO items (id) VALUES (20), (21);
INSERT INTO other VALUES (1, 3, 'three'), (2, 4, 'four'), (3, 3, 'again'), (4, 77, NULL);
"""


@pytest.fixture(params=["shared", "user"])
def pair(dsn: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(dsn, request.param)
    pair.setup(SETUP)
    pair.setup(FILL)
    yield pair
    pair.close()


DIRECT = [
    "UPDATE items SET t = 'changed' WHERE id = 3",
    "UPDATE items SET n = n + 1",
    "UPDATE items SET n = n + 1 WHERE id IN (3, 4, 5, NULL, 99)",
    "UPDATE items SET n = n * n - 2, s = s + 1::smallint WHERE n > 1",
    "UPDATE items SET n = NULL, t = NULL, m = NULL WHERE n = 1",
    "UPDATE items SET t = t || '!' WHERE t LIKE '%1%'",
    "UPDATE items SET m = m * 1.005, d = d / 3 WHERE id < 10",
    "UPDATE items SET m = 999999.99 WHERE id = 99",
    "UPDATE items SET id = id + 100",
    "UPDATE items SET id = 100, t = 'moved' WHERE id = 5",
    "UPDATE items SET id = id WHERE id = 2",
    "UPDATE items SET n = CASE WHEN n = 1 THEN 10 WHEN n = 2 THEN NULL ELSE n END, t = coalesce(t, 'none')",
    "UPDATE items SET n = length(t), t = substr(t, 2, 3) WHERE n + 1 > 2",
    "UPDATE items SET b = b + n WHERE n > 0",
    "UPDATE items SET d = b, n = b WHERE id % 2 = 1 AND b < 5000",
    "UPDATE items SET y = n > 1, t = CASE WHEN y THEN 'yes' END",
    "UPDATE items SET v = 'abcd', c = 'x', at = '2024-05-05 UTC', day = '2030-01-01' WHERE id = 1",
    "UPDATE items SET j = '{\"k\": [1.10]}', u = 'ffffffff-ffff-ffff-ffff-ffffffffffff' WHERE id = 1",
    "UPDATE items SET b = 5 WHERE at > '2024-01-05 UTC' AND day < '2024-01-10'",
    "UPDATE items SET n = n + 1 WHERE id = 3 RETURNING *",
    "UPDATE items SET n = n * 10 WHERE id > 7 RETURNING id, n, t, id + n",
    "UPDATE items SET n = 12 / n WHERE n > 0 RETURNING n",
    "UPDATE items SET t = 'x' WHERE id < 4 RETURNING 1",
    "UPDATE items SET t = 'x' WHERE id = 99 RETURNING id",
    "UPDATE items i SET t = 'x' WHERE i.id = 4 RETURNING i.id, i",
    "UPDATE items SET n = 0 WHERE n = (SELECT max(ref) FROM other WHERE id = 1)",
    "UPDATE items SET n = (SELECT count(*) FROM other), t = (SELECT t FROM other WHERE id = 1) WHERE id < 3",
    "WITH up AS (UPDATE items SET n = 9 WHERE id < 3 RETURNING id, n) SELECT * FROM up",
    "DELETE FROM items",
    "DELETE FROM items WHERE id = 4",
    "DELETE FROM items WHERE n = 2 RETURNING *",
    "DELETE FROM items WHERE t = 'row 9' OR t IS NULL RETURNING id",
    "DELETE FROM items WHERE lower(id::text) = '7' OR n = 3 RETURNING items",
    "DELETE FROM items WHERE id BETWEEN 3 AND 5 OR v = 'v7'",
    "DELETE FROM items WHERE n > (SELECT avg(ref) FROM other WHERE ref < 10)",
    "WITH gone AS (DELETE FROM items WHERE n = 1 RETURNING *) SELECT count(*), sum(id) FROM gone",
]  # fmt: skip


@pytest.mark.parametrize("sql", DIRECT)
def test_statements(pair: Pair, sql: str) -> None:
    """Whether sent or not: as on an ordinary table."""
    pair.both(sql)
    pair.both("SELECT count(*) FROM items")


@pytest.mark.parametrize("sql", [s for s in DIRECT if "lower(" not in s])
def test_they_are_sent_whole(pair: Pair, sql: str) -> None:
    shown = pair.plan(sql)
    assert "Foreign Update on" in shown or "Foreign Delete on" in shown
    assert "FROM ARROW" not in shown
    assert "FOR UPDATE" not in shown


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE items SET n = random() * 10",
        "UPDATE items SET t = upper(t)",
        "DELETE FROM items WHERE upper(t) = 'ROW 3'",
        "UPDATE items SET (n, t) = (SELECT 1, 'x')",
        "UPDATE items SET n = (SELECT count(*) FROM other o WHERE o.ref = items.id)",
    ],
)
def test_what_only_postgres_can_compute_is_done_row_by_row(pair: Pair, sql: str) -> None:
    shown = pair.plan(sql)
    assert "Foreign Update" not in shown
    assert "Foreign Delete" not in shown
    assert "FROM ARROW" in shown


def test_errors_are_those_of_a_local_table(pair: Pair) -> None:
    assert pair.both("UPDATE items SET n = n + 2147483647").sqlstate == "22003"
    assert pair.both("UPDATE items SET n = 10 / n WHERE id < 13").sqlstate == "22012"
    assert pair.both("UPDATE items SET id = 1 WHERE id = 2").sqlstate == "23505"
    assert pair.both("UPDATE items SET b = NULL WHERE id = 2").sqlstate == "23502"
    for side in (pair.heap, pair.kalam):
        assert side.run("UPDATE items SET m = m * 1000000").sqlstate == "22003"
    assert pair.both("UPDATE items SET v = t WHERE id = 12").sqlstate == "22001"
    pair.both("BEGIN")
    pair.both("UPDATE items SET n = 5 WHERE id = 3")
    pair.both("SAVEPOINT a")
    assert pair.both("UPDATE items SET id = 1 WHERE id = 2").sqlstate == "23505"
    pair.both("ROLLBACK TO a")
    pair.both("DELETE FROM items WHERE id = 4")
    pair.both("COMMIT")


def test_parameters_of_prepared_statements(pair: Pair) -> None:
    for side in (pair.heap, pair.kalam):
        side.conn.execute("SET plan_cache_mode = force_generic_plan")
        side.conn.execute("PREPARE u(int, text, numeric) AS UPDATE items SET n = n + $1, t = $2, m = $3 WHERE id = $1")
        side.conn.execute("PREPARE d(int, int) AS DELETE FROM items WHERE n = $1 AND id > $2 RETURNING id")
    assert "Foreign Update on" in pair.plan("EXECUTE u(1, 'x', 1.5)")
    for values in ("3, 'three', 3.33", "4, NULL, NULL", "99, '', 0", "NULL, 'x', 1", "5, 'e', 5.005"):
        pair.both(f"EXECUTE u({values})")
    for values in ("2, 3", "NULL, 1", "3, NULL", "0, 0"):
        pair.both(f"EXECUTE d({values})")


def test_a_statement_sees_what_was_there_when_it_began(pair: Pair) -> None:
    """Data-modifying WITH: parts of one statement do not see each other's rows, nor change one row twice."""
    pair.both("WITH a AS (INSERT INTO items (id, n) VALUES (50, 1)) UPDATE items SET n = 100 WHERE id = 50")
    pair.both("WITH a AS (INSERT INTO items (id, n) VALUES (51, 1)) DELETE FROM items WHERE n = 1")
    pair.both("WITH a AS (DELETE FROM items WHERE id = 3 RETURNING id) UPDATE items SET n = 7 WHERE id = 4")
    pair.both(
        "WITH a AS (UPDATE items SET n = n + 1 WHERE id = 5 RETURNING n)"
        " UPDATE items SET t = a.n::text FROM a WHERE items.id = 6"
    )
    # which of the two changes a row is nobody's promise, but only one does
    twice = "WITH a AS (UPDATE items SET n = n + 10 WHERE id = 8 RETURNING id) UPDATE items SET n = n + 10 WHERE id = 8"
    for side in (pair.heap, pair.kalam):
        side.conn.execute(twice)
        assert side.run("SELECT n FROM items WHERE id = 8").rows == [(10,)]
        side.conn.execute(
            "WITH a AS (DELETE FROM items WHERE id = 9 RETURNING id) UPDATE items SET id = 900 WHERE id = 9"
        )
        assert side.run("SELECT count(*) FROM items WHERE id IN (9, 900)").rows in ([(0,)], [(1,)])


def test_own_writes_before_it_are_seen(pair: Pair) -> None:
    pair.both("BEGIN")
    pair.both("INSERT INTO items (id, n) VALUES (60, 6), (61, 6)")
    pair.both("UPDATE items SET n = n + 1 WHERE n = 6 RETURNING id, n")
    pair.both("SAVEPOINT a")
    pair.both("DELETE FROM items WHERE n = 7")
    pair.both("ROLLBACK TO a")
    pair.both("UPDATE items SET id = id + 10 WHERE n = 7 RETURNING id")
    pair.both("COMMIT")


def test_row_triggers_checks_and_generated_columns_keep_it_here(pair: Pair) -> None:
    pair.setup("CREATE TABLE gen (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED) {using}")
    assert "Foreign Update" not in pair.plan("UPDATE gen SET n = 1")
    pair.setup(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$;"
        "CREATE TRIGGER k BEFORE UPDATE ON other FOR EACH ROW EXECUTE FUNCTION keep();"
        "CREATE TRIGGER s AFTER UPDATE ON items EXECUTE FUNCTION keep()"
    )
    assert "Foreign Update" not in pair.plan("UPDATE other SET ref = 1")
    assert "Foreign Delete" in pair.plan("DELETE FROM other")
    assert "Foreign Update" in pair.plan("UPDATE items SET n = 1")
    pair.setup("CREATE VIEW few AS SELECT * FROM items WHERE n < 3 WITH CHECK OPTION")
    assert "Foreign Update" not in pair.plan("UPDATE few SET n = 1")
    assert pair.both("UPDATE few SET n = 5").sqlstate == "44000"
    assert "Foreign Delete" in pair.plan("DELETE FROM few")
    pair.both("DELETE FROM few WHERE id = 1")


def test_rules_that_the_server_enforces_are_left_to_it(pair: Pair) -> None:
    pair.setup(
        "CREATE TABLE ruled (id int PRIMARY KEY, n int NOT NULL CHECK (n > 0), m int,"
        " CONSTRAINT apart CHECK (m IS NULL OR m <> n)) {using};"
        "CREATE TABLE loud (id int PRIMARY KEY, t text CHECK (upper(t) <> 'NO')) {using};"
        "INSERT INTO ruled VALUES (1, 1), (2, 2), (3, 3); INSERT INTO loud VALUES (1, 'a')"
    )
    for sql in ("UPDATE ruled SET n = n + 1", "UPDATE ruled SET m = n + id RETURNING *"):
        assert "Foreign Update on" in pair.plan(sql)
        pair.both(sql)
    assert pair.both("UPDATE ruled SET n = n - 2").sqlstate == "23514"
    assert pair.both("UPDATE ruled SET m = n").constraint == "apart"
    assert pair.both("UPDATE ruled SET n = m + NULL").sqlstate == "23502"
    upsert = "INSERT INTO ruled VALUES (1, 5), (7, 7) ON CONFLICT (id) DO UPDATE SET n = ruled.n - excluded.n"
    assert "DO UPDATE" in pair.plan(upsert)
    assert pair.both(upsert).sqlstate == "23514"
    pair.both(upsert.replace("-", "+"))
    assert "Foreign Update on" not in pair.plan("UPDATE loud SET t = t || 'o'")
    pair.both("UPDATE loud SET t = 'n'")
    assert pair.both("UPDATE loud SET t = t || 'o'").sqlstate == "23514"
    # a rule that only this side knows
    pair.kalam.conn.execute(
        "CREATE FOREIGN TABLE attached (id int NOT NULL, n int NOT NULL, m int NOT NULL) SERVER kalam_server"
        f" OPTIONS (namespace '{pair.kalam.schema}', \"table\" 'ruled')"
    )
    shown = pair.plan("UPDATE attached SET m = m + NULL")
    assert "Foreign Update on" not in shown
    assert pair.kalam.run("UPDATE attached SET m = m + NULL").sqlstate == "23502"
    # the same rule in the same words about another column
    pair.kalam.conn.execute(
        "CREATE FOREIGN TABLE crossed (id int NOT NULL, n int OPTIONS (column_name 'm') CONSTRAINT ruled_n_check"
        " CHECK (n > 0), other int OPTIONS (column_name 'n')) SERVER kalam_server"
        f" OPTIONS (namespace '{pair.kalam.schema}', \"table\" 'ruled')"
    )
    assert pair.kalam.run("UPDATE crossed SET n = -1 - n * n").sqlstate == "23514"


def test_function_in_a_statement_sees_the_rows_before_it(pair: Pair) -> None:
    pair.setup(
        "CREATE FUNCTION total() RETURNS bigint LANGUAGE sql STABLE AS 'SELECT sum(n) FROM items';"
        "CREATE FUNCTION add(int) RETURNS bigint LANGUAGE plpgsql AS"
        " $$BEGIN UPDATE items SET n = n + $1 WHERE id < 5; RETURN (SELECT sum(n) FROM items); END$$"
    )
    pair.both("UPDATE items SET b = total() WHERE id < 3")
    pair.both("SELECT add(1), add(2)")
    pair.both("SELECT add(id) FROM other")


def test_two_sessions(pair: Pair, dsn: str) -> None:
    """A condition is looked at again in the row's newest version; nobody waits for a row that is being inserted."""
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute(f"SET search_path = {pair.kalam.schema}; SET kalam.user_id = 'alice'")
        other.execute("SET lock_timeout = '5s'")
        pair.kalam.conn.execute("BEGIN")
        pair.kalam.conn.execute("INSERT INTO items (id, n) VALUES (70, 1)")
        assert other.execute("UPDATE items SET n = 5 WHERE id = 70").rowcount == 0
        assert other.execute("DELETE FROM items WHERE id = 70").rowcount == 0
        pair.kalam.conn.execute("COMMIT")
        assert other.execute("UPDATE items SET n = 5 WHERE id = 70").rowcount == 1


def test_partitions(dsn: str) -> None:
    pair = Pair(dsn, "shared")
    try:
        for side, using in ((pair.heap, ""), (pair.kalam, pair.kalam.using)):
            side.conn.execute("CREATE TABLE whole (id int, n int, t text) PARTITION BY RANGE (id)")
            side.conn.execute("CREATE TABLE local PARTITION OF whole FOR VALUES FROM (0) TO (10)")
            for name, low in (("p1", 10), ("p2", 20)):
                side.conn.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, n int, t text) {using}")
                bounds = f"FROM ({low}) TO ({low + 10})"
                side.conn.execute(f"ALTER TABLE whole ATTACH PARTITION {name} FOR VALUES {bounds}")
        pair.both("INSERT INTO whole SELECT g, g % 3, 'r' || g FROM generate_series(0, 29) g")
        sql = "UPDATE whole SET n = n + 1 WHERE n < 2 RETURNING id, n, tableoid::regclass"
        assert pair.plan(sql).count("->  Foreign Update on") == 2
        pair.both(sql)
        pair.both("UPDATE whole SET n = n + 1, t = t || '?' WHERE id > 5")
        pair.both("DELETE FROM whole WHERE n = 2 RETURNING t, id, tableoid::regclass")
        assert "->  Foreign Update" not in pair.plan("UPDATE whole SET id = id + 1 WHERE id = 12")
        assert "Foreign Update" not in pair.plan("UPDATE p1 SET id = 25")
        assert pair.both("UPDATE p1 SET id = 25").sqlstate == "23514"
    finally:
        pair.close()


def test_stream_rows_are_deleted_whole(dsn: str) -> None:
    pair = Pair(dsn, "stream', ttl_seconds = '600")
    try:
        pair.setup("CREATE TABLE items (id int PRIMARY KEY, n int) {using}")
        pair.both("INSERT INTO items SELECT g, g % 3 FROM generate_series(1, 9) g")
        assert "Foreign Delete on" in pair.plan("DELETE FROM items WHERE n = 1")
        pair.both("DELETE FROM items WHERE n = 1 RETURNING *")
    finally:
        pair.close()
