"""What a scan sends and asks for: its statement, chunks, snapshot and locks; and what it says when it cannot."""

from __future__ import annotations

import psycopg
import pytest

from .ddl import Session

pytestmark = pytest.mark.pg


@pytest.fixture
def table(db: Session, ns: str) -> str:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, n int, v varchar, b bool, at timestamptz) USING kalamdb")
    db(f"INSERT INTO {ns}.t SELECT g, g % 10, 'v' || g, true, now() FROM generate_series(1, 1000) g")
    return f"{ns}.t"


def remote_sql(db: Session, query: str) -> str:
    """The statement of a plan's only foreign scan."""
    lines = [row[0].strip() for row in db(f"EXPLAIN (VERBOSE, COSTS OFF) {query}")]
    (found,) = [line for line in lines if line.startswith("Remote SQL: SELECT")]
    return str(found.removeprefix("Remote SQL: "))


def condition(db: Session, table: str, text: str) -> str:
    return remote_sql(db, f"SELECT FROM {table} WHERE {text}").partition(" WHERE ")[2]


@pytest.mark.parametrize(
    ("local", "remote"),
    [
        ("id = 5", '("id" = $1)'),
        ("5 > n AND n <> 2", '(($1 > "n") AND ("n" <> $2))'),
        ("n IN (1, 2, NULL)", '("n" IN ($1, $2, NULL))'),
        ("n NOT IN (1, 2)", '(NOT ("n" IN ($1, $2)))'),
        ("v = 'x' OR n IS NULL", '(("v" = $1) OR ("n" IS NULL))'),
        ("v < 'x'", '("v" < $1)'),
        ("b", '"b"'),
        ("NOT b OR (n = 1) IS UNKNOWN", '((NOT "b") OR (("n" = $1) IS UNKNOWN))'),
        ("at < now()", '("at" < $1)'),
        ("at < now() - interval '1 day'", '("at" < $1)'),
        ("n = (SELECT 3)", '("n" = $1)'),
        ("n = 1 / (n - 1)", '("n" = ($1 / ("n" - $2)))'),
        ("v LIKE 'x%'", '("v" LIKE $1)'),
        ("v = 'x' COLLATE \"C\"", '("v" = $1)'),
        ("b = (n = 1)", '("b" = ("n" = $1))'),
        ("n = ANY ('{}')", "$1"),  # false
        # what may fail is not computed where PostgreSQL might not have
        ("n = 1 OR id = length(now()::text)", ""),
        ("n = random()", ""),
        ("lower(v) = 'x'", ""),
        ("tableoid = 5", ""),
    ],
)
def test_what_is_sent(db: Session, table: str, local: str, remote: str) -> None:
    assert condition(db, table, local) == remote


def test_columns_sent(db: Session, table: str) -> None:
    assert remote_sql(db, f"SELECT v FROM {table} WHERE v ILIKE id || '%'").startswith('SELECT "id", "v" FROM ')
    assert remote_sql(db, f"SELECT 1 FROM {table}").startswith("SELECT NULL FROM ")
    assert remote_sql(db, f"SELECT x FROM {table} x").startswith('SELECT "id", "n", "v", "b", "at", "_seq" FROM ')
    assert remote_sql(db, f"UPDATE {table} SET v = lower(v) WHERE id = 2").endswith('WHERE ("id" = $1) FOR UPDATE')


def test_order_of_text_is_left_to_code_points_only(db: Session, table: str) -> None:
    db("CREATE COLLATION same (provider = libc, locale = 'C')")
    db("CREATE COLLATION other (provider = libc, locale = 'C.UTF-8')")
    assert condition(db, table, "v < 'x' COLLATE \"same\"")
    assert condition(db, table, "v < 'x' COLLATE \"other\"")
    if db("SELECT FROM pg_collation WHERE collname = 'en-x-icu'"):
        assert condition(db, table, "v < 'x' COLLATE \"en-x-icu\"") == ""
        assert condition(db, table, "v = 'x' COLLATE \"en-x-icu\"") == '("v" = $1)'


@pytest.mark.parametrize("fetch_size", [1, 7, 1000, 1001])
def test_chunks(db: Session, table: str, fetch_size: int) -> None:
    db(f"ALTER FOREIGN TABLE {table} OPTIONS (ADD fetch_size '{fetch_size}')")
    assert db(f"SELECT count(*), sum(id) FROM {table}") == [(1000, 500500)]
    assert db(f"SELECT count(*) FROM {table} a, {table} b WHERE a.id = b.id") == [(1000,)]
    assert len(db(f"SELECT * FROM {table} LIMIT 20")) == 20
    assert db(f"SELECT count(*) FROM (SELECT * FROM {table} OFFSET 0) t WHERE v LIKE 'v9%'") == [(111,)]


def round_trips(db: Session, sql: str) -> int:
    """Of the second time it runs: the first one may plan."""
    for _ in range(2):
        before = db.value("SELECT kalam_round_trips()")
        db(sql)
    return int(db.value("SELECT kalam_round_trips()") - before)


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("SELECT * FROM {} WHERE id = 5", 1),
        ("SELECT count(*) FROM {} WHERE n = 5", 1),
        ("SELECT * FROM {} LIMIT 5", 1),
        ("SELECT EXISTS (SELECT FROM {})", 2),  # an InitPlan: in a transaction, whose end is sent
        ("SELECT 1 FROM {} WHERE false", 0),
    ],
)
def test_round_trips(db: Session, table: str, sql: str, wanted: int) -> None:
    assert round_trips(db, sql.format(table)) == wanted


def test_a_cursor_sees_what_was_there_when_it_was_opened(db: Session, table: str) -> None:
    with db.conn.transaction():
        db(f"DECLARE c CURSOR FOR SELECT n FROM {table} WHERE id < 4 ORDER BY id")
        db("DECLARE d CURSOR FOR SELECT t.n FROM (VALUES (1), (2)) v(x), "
           f"LATERAL (SELECT * FROM {table} WHERE id = x OFFSET 0) t")
        db(f"DECLARE e CURSOR FOR SELECT n FROM {table}")
        assert db("FETCH 1 FROM e") == [(1,)]
        db(f"UPDATE {table} SET n = -1")
        assert db("FETCH ALL FROM c") == [(1,), (2,), (3,)]
        assert db("FETCH ALL FROM d") == [(1,), (2,)]
        assert (-1,) not in db("FETCH ALL FROM e")
        db("SAVEPOINT s")
        db(f"DELETE FROM {table} WHERE id > 500")
        db("ROLLBACK TO s")
    assert db(f"SELECT DISTINCT n, count(*) FROM {table} GROUP BY n") == [(-1, 1000)]


def test_a_loop_that_writes_what_it_reads_ends(db: Session, table: str) -> None:
    db(f"ALTER FOREIGN TABLE {table} OPTIONS (ADD fetch_size '50')")
    db(f"""DO $$ DECLARE r record; BEGIN
        FOR r IN SELECT id FROM {table} LOOP
            INSERT INTO {table} (id) VALUES (r.id + 5000);
        END LOOP; END $$""")
    assert db(f"SELECT count(*) FROM {table}") == [(2000,)]


def test_locking_reads(db: Session, other: Session, table: str) -> None:
    with db.conn.transaction():
        assert db(f"SELECT id FROM {table} WHERE id = 3 FOR UPDATE") == [(3,)]
        other.fails(f"SELECT FROM {table} WHERE id = 3 FOR UPDATE NOWAIT", "55P03")
        other.fails(f"SET lock_timeout = '50ms'; DELETE FROM {table} WHERE id = 3", "55P03")
        assert other(f"SELECT id FROM {table} WHERE id < 5 FOR UPDATE SKIP LOCKED") == [(1,), (2,), (4,)]
        assert other(f"SELECT n FROM {table} WHERE id = 3") == [(3,)]
    assert other(f"SELECT id FROM {table} WHERE id = 3 FOR SHARE NOWAIT") == [(3,)]


def test_a_limit_locks_no_more_than_it_takes(db: Session, other: Session, table: str) -> None:
    with db.conn.transaction():
        ((mine,),) = db(f"SELECT id FROM {table} LIMIT 1 FOR UPDATE SKIP LOCKED")
        locked = other(f"SELECT count(*) FROM (SELECT id FROM {table} FOR UPDATE SKIP LOCKED) t")
        assert locked[0][0] >= 998  # the server looks one row ahead
        assert mine not in [row[0] for row in other(f"SELECT id FROM {table} FOR UPDATE SKIP LOCKED")]


def test_tenant_is_asked_for(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.mine (id bigint PRIMARY KEY) USING kalamdb WITH (type = 'user')")
    for sql in ("SELECT * FROM {}", "UPDATE {} SET id = 1", "DELETE FROM {}", "SELECT FROM {} WHERE id = 1 FOR UPDATE"):
        db.fails(sql.format(f"{ns}.mine"), "42501", "kalam.user_id", "mine")
    assert db(f"EXPLAIN SELECT * FROM {ns}.mine")


def test_remote_table_differs(db: Session, ns: str, table: str) -> None:
    db(f"CREATE FOREIGN TABLE {ns}.u (id bigint) SERVER kalam_server OPTIONS (namespace '{ns}', \"table\" 't')")
    db(f"ALTER FOREIGN TABLE {ns}.u ADD COLUMN gone int")
    for _ in range(2):
        error = db.fails(f"SELECT * FROM {ns}.u", "HV005", "gone")
        assert f'remote SQL command: SELECT "id", "gone" FROM "{ns}"."t"' in (error.diag.context or "")
    assert db(f"SELECT count(*) FROM {ns}.u") == [(1000,)]
    db.remote(f'DROP TABLE "{ns}"."t"')
    db.fails(f"SELECT * FROM {table}", "HV00R", f"{ns}.t")
    db.fails(f"UPDATE {table} SET n = 1", "HV00R", f"{ns}.t")


@pytest.mark.parametrize("rows", [10, 1000])
def test_types_differ(db: Session, ns: str, table: str, rows: int) -> None:
    db(f"CREATE FOREIGN TABLE {ns}.u (id bigint, n int) SERVER kalam_server OPTIONS (namespace '{ns}', \"table\" 't')")
    db(f"ALTER FOREIGN TABLE {ns}.u ALTER COLUMN n TYPE text")
    db.fails(f"SELECT n FROM {ns}.u WHERE id <= {rows}", "HV005", '"n"')
    assert db(f"SELECT count(*) FROM {ns}.u") == [(1000,)]


@pytest.mark.parametrize("column", ["ctid", "xmin", "cmax"])
def test_no_invented_system_columns(db: Session, table: str, column: str) -> None:
    db.fails(f"SELECT {column} FROM {table}", "0A000", column)
    db.fails(f"SELECT 1 FROM {table} WHERE {column}::text <> 'x'", "0A000", column)
    assert db(f"SELECT DISTINCT tableoid::regclass::text FROM {table}") == [(table,)]


def test_many_scans_that_end_early_leave_nothing(db: Session, table: str) -> None:
    db(f"ALTER FOREIGN TABLE {table} OPTIONS (ADD fetch_size '300')")
    for _ in range(50):
        db(f"SELECT * FROM {table} LIMIT 1")
        with pytest.raises(psycopg.errors.DivisionByZero):
            db(f"SELECT 1 / (id - 300) FROM {table}")
    with db.conn.transaction():
        for _ in range(50):
            db(f"SELECT * FROM {table} LIMIT 1")
    assert db(f"SELECT count(*) FROM {table}") == [(1000,)]


def test_partitions_of_both_kinds(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.p (id bigint, k int, v text) PARTITION BY LIST (k)")
    db(f"CREATE TABLE {ns}.here PARTITION OF {ns}.p FOR VALUES IN (1)")
    db(f"CREATE FOREIGN TABLE {ns}.there PARTITION OF {ns}.p FOR VALUES IN (2) SERVER kalam_server "
       "OPTIONS (table_type 'shared')")
    db(f"INSERT INTO {ns}.p SELECT g, 1 + g % 2, 'v' || g FROM generate_series(1, 20) g")
    assert db(f"SELECT k, count(*), sum(id) FROM {ns}.p GROUP BY k ORDER BY k") == [(1, 10, 110), (2, 10, 100)]
    assert db(f"SELECT id FROM {ns}.p WHERE id < 4 ORDER BY id FOR UPDATE") == [(1,), (2,), (3,)]
    assert sorted(db(f"UPDATE {ns}.p SET v = v || '!' WHERE id < 3 RETURNING v")) == [("v1!",), ("v2!",)]
    assert condition(db, f"{ns}.p", "k = 2 AND id = 3") == '(("k" = $1) AND ("id" = $2))'
    db.fails(f"SELECT FROM {ns}.p WHERE ctid::text = 'x'", "0A000", "ctid")
    db(f"CREATE TABLE {ns}.keys AS SELECT 7::bigint AS id; ANALYZE {ns}.keys; SET enable_hashjoin = off")
    joined = f"SELECT v FROM {ns}.keys JOIN {ns}.p USING (id)"
    assert remote_sql(db, joined).endswith((' WHERE ("id" = $1)', ' WHERE ($1 = "id")'))
    assert db(joined) == [("v7",)]
