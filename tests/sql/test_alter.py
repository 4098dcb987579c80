"""ALTER TABLE on the server: what it changes, what it refuses, and that old rows show it, hot, cold and uncommitted."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from psycopg import pq

from kalamdb.admin.check import Check
from kalamdb.store.storage import open_storages
from support.ports import wait_until
from support.server import KalamServer

from .client import Client, Failed, Wire, batch


@pytest.fixture
def t(db: Client) -> Client:
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, a smallint, b text DEFAULT 'd', CONSTRAINT c CHECK (a < 100))")
    db.run("INSERT INTO t VALUES (1, 10, 'x'), (2, NULL, NULL)")
    db.run("STORAGE FLUSH TABLE t")
    db.run("INSERT INTO t VALUES (3, 30, 'y')")
    return db


def columns(db: Client, table: str = "t") -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:4] for row in db.rows(f"DESCRIBE {table}") if row[5] == "f"}


def move(db: Client, place: str) -> None:
    """Rows to where the test wants them."""
    if place != "as they are":
        db.run("STORAGE FLUSH TABLE t")
    if place == "merged":
        db.run("STORAGE COMPACT TABLE t")


PLACES = pytest.mark.parametrize("place", ["as they are", "cold", "merged"])


@PLACES
def test_added_columns(t: Client, place: str) -> None:
    assert t.run("ALTER TABLE t ADD COLUMN n integer").tag == "ALTER TABLE"
    t.run("ALTER TABLE t ADD x text NOT NULL DEFAULT 'é''\"', ADD COLUMN f float8 DEFAULT 'NaN', "
          "ADD COLUMN y bytea DEFAULT '\\x00ff', ADD COLUMN o boolean DEFAULT TRUE, ADD q numeric(5,2) DEFAULT 1")
    old = [(str(key), None, "é'\"", "NaN", "\\x00ff", "t", "1.00") for key in (1, 2, 3)]
    assert t.rows("SELECT id, n, x, f, y, o, q FROM t ORDER BY id") == old
    move(t, place)
    t.run("INSERT INTO t (id, n, o) VALUES (4, 7, NULL)")
    new = ("4", "7", "é'\"", "NaN", "\\x00ff", None, "1.00")
    assert t.rows("SELECT id, n, x, f, y, o, q FROM t ORDER BY id") == [*old, new]
    assert t.rows("SELECT id FROM t WHERE f = 'NaN' AND o AND x LIKE 'é%' AND n IS NULL") == [("1",), ("2",), ("3",)]
    assert t.rows("SELECT n, x, f FROM t WHERE id = 1") == [(None, "é'\"", "NaN")]
    t.run("UPDATE t SET n = 1 WHERE id = 1")
    assert t.rows("SELECT n, x, o, a FROM t WHERE id = 1") == [("1", "é'\"", "t", "10")]
    t.fails("23502", "UPDATE t SET x = NULL WHERE id = 2")


@PLACES
def test_a_column_that_comes_again_does_not_show_what_the_old_one_held(t: Client, place: str) -> None:
    t.run("ALTER TABLE t DROP COLUMN b")
    assert list(columns(t)) == ["id", "a"]
    move(t, place)
    t.run("ALTER TABLE t ADD COLUMN b text")
    assert t.rows("SELECT id, a, b FROM t ORDER BY id") == [("1", "10", None), ("2", None, None), ("3", "30", None)]
    t.run("BEGIN")
    t.run("ALTER TABLE t DROP COLUMN b, ADD COLUMN b integer DEFAULT 5")
    t.run("UPDATE t SET b = 6 WHERE id = 3")
    t.run("ALTER TABLE t DROP COLUMN b, ADD COLUMN b text DEFAULT 'new'")
    t.run("COMMIT")
    move(t, place)
    assert t.rows("SELECT id, b FROM t ORDER BY id") == [("1", "new"), ("2", "new"), ("3", "new")]


@PLACES
def test_renamed_columns(t: Client, place: str) -> None:
    t.run("ALTER TABLE t RENAME COLUMN a TO \"select\"")
    t.run("ALTER TABLE t RENAME id TO key")
    move(t, place)
    assert t.rows('SELECT key, "select" FROM t ORDER BY key') == [("1", "10"), ("2", None), ("3", "30")]
    t.fails("42703", "SELECT a FROM t")
    error = t.fails("23514", "INSERT INTO t (key, \"select\") VALUES (9, 100)")
    assert error.constraint == "c"
    error = t.fails("23505", "INSERT INTO t (key) VALUES (1)")
    assert error.detail == "Key (key)=(1) already exists."
    t.fails("42701", "ALTER TABLE t RENAME COLUMN b TO key")
    t.fails("42703", "ALTER TABLE t RENAME COLUMN a TO z")
    t.fails("42701", "ALTER TABLE t RENAME COLUMN b TO _seq")


@PLACES
def test_wider_types(t: Client, place: str) -> None:
    t.run("ALTER TABLE t ADD r real DEFAULT 0.1, ADD v varchar(3) DEFAULT 'abc', ADD n numeric(4,1) DEFAULT 99.5")
    t.run("ALTER TABLE t ALTER COLUMN a TYPE integer")
    move(t, place)
    t.run("ALTER TABLE t ALTER a SET DATA TYPE bigint, ALTER r TYPE float8, ALTER v TYPE varchar(5), "
          "ALTER n TYPE numeric(12,1)")
    t.run("INSERT INTO t (id, a, r, v, n) VALUES (4, -5000000000, 1e300, 'abcde', 12345678901.5)")
    rows = [("1", "10", "0.10000000149011612", "abc", "99.5"), ("2", None, "0.10000000149011612", "abc", "99.5"),
            ("3", "30", "0.10000000149011612", "abc", "99.5"),
            ("4", "-5000000000", "1e+300", "abcde", "12345678901.5")]
    assert t.rows("SELECT id, a, r, v, n FROM t ORDER BY id") == rows
    move(t, place)
    assert t.rows("SELECT id, a, r, v, n FROM t ORDER BY id") == rows
    assert t.value("SELECT sum(a) FROM t") == "-4999999960"
    t.run("ALTER TABLE t ALTER v TYPE text, ALTER n TYPE numeric")
    t.run("UPDATE t SET v = 'more than five', n = 0.123 WHERE a = 10")
    assert t.rows("SELECT v, n FROM t WHERE id = 1") == [("more than five", "0.123")]


def test_a_wider_key(db: Client) -> None:
    db.run("CREATE TABLE t (k smallint, s varchar(2), PRIMARY KEY (k, s))")
    db.run("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
    db.run("STORAGE FLUSH TABLE t")
    db.run("ALTER TABLE t ALTER k TYPE bigint, ALTER s TYPE text")
    db.run("INSERT INTO t VALUES (5000000000, 'long')")
    db.fails("23505", "INSERT INTO t VALUES (1, 'a')")
    assert db.rows("SELECT k, s FROM t ORDER BY k") == [("1", "a"), ("2", "b"), ("5000000000", "long")]
    assert db.rows("SELECT s FROM t WHERE k = 2 AND s = 'b'") == [("b",)]


@pytest.mark.parametrize("declared", ["smallint", "real", "text", "numeric(10,2)", "boolean"])
def test_other_types_are_refused(db: Client, declared: str) -> None:
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, a integer)")
    error = db.fails("0A000", f"ALTER TABLE t ALTER a TYPE {declared}")
    assert "widens" in str(error.hint)
    db.fails("42704", "ALTER TABLE t ALTER a TYPE nothing")
    db.fails("0A000", "ALTER TABLE t ALTER a TYPE bigint USING a * 2")


def test_defaults(t: Client) -> None:
    t.run("ALTER TABLE t ALTER a SET DEFAULT 42, ALTER b DROP DEFAULT")
    t.run("INSERT INTO t (id) VALUES (4)")
    assert t.rows("SELECT a, b FROM t WHERE id = 4") == [("42", None)]
    assert columns(t)["a"] == ("smallint", "f", "42")


def test_not_null_looks_at_the_rows(t: Client) -> None:
    error = t.fails("23502", "ALTER TABLE t ALTER a SET NOT NULL")
    assert (error.message, error.column) == ('column "a" of relation "t" contains null values', "a")
    t.run("UPDATE t SET a = 0 WHERE id = 2")
    t.run("ALTER TABLE t ALTER a SET NOT NULL")
    t.fails("23502", "INSERT INTO t (id) VALUES (4)")
    t.run("ALTER TABLE t ALTER a DROP NOT NULL")
    t.run("INSERT INTO t (id) VALUES (4)")
    t.fails("42P16", "ALTER TABLE t ALTER id DROP NOT NULL")
    t.fails("23502", "ALTER TABLE t ADD COLUMN z integer NOT NULL")
    t.run("ALTER TABLE t ADD COLUMN z integer NOT NULL DEFAULT 3")
    t.run("DELETE FROM t")
    t.run("ALTER TABLE t ADD COLUMN y integer NOT NULL")


def test_not_null_looks_at_cold_and_own_rows(t: Client) -> None:
    t.run("BEGIN")
    t.run("UPDATE t SET b = NULL WHERE id = 3")
    t.run("UPDATE t SET b = 'z' WHERE id = 2")
    t.fails("23502", "ALTER TABLE t ALTER b SET NOT NULL")
    t.run("ROLLBACK")
    t.fails("23502", "ALTER TABLE t ALTER b SET NOT NULL")


def test_checks(t: Client) -> None:
    error = t.fails("23514", "ALTER TABLE t ADD CONSTRAINT small CHECK (a < 30)")
    assert error.message == 'check constraint "small" of relation "t" is violated by some row'
    assert error.constraint == "small"
    t.run("ALTER TABLE t ADD CONSTRAINT small CHECK (a <= 30), ADD CHECK (b <> 'no')")
    assert t.fails("23514", "INSERT INTO t VALUES (4, 31, 'x')").constraint == "small"
    assert t.fails("23514", "INSERT INTO t VALUES (4, 1, 'no')").constraint == "t_check"
    t.fails("42710", "ALTER TABLE t ADD CONSTRAINT small CHECK (a < 31)")
    t.run("ALTER TABLE t RENAME CONSTRAINT small TO tiny")
    assert t.fails("23514", "INSERT INTO t VALUES (4, 31, 'x')").constraint == "tiny"
    t.run("ALTER TABLE t DROP CONSTRAINT tiny")
    t.fails("42704", "ALTER TABLE t DROP CONSTRAINT tiny")
    t.run("ALTER TABLE t DROP CONSTRAINT IF EXISTS tiny")
    t.run("INSERT INTO t VALUES (4, 31, 'x')")
    t.run("ALTER TABLE t ADD CONSTRAINT late CHECK (a < 31) NOT VALID")
    t.fails("23514", "INSERT INTO t VALUES (5, 31, 'x')")
    t.fails("0A000", "ALTER TABLE t DROP CONSTRAINT t_pkey")


def test_a_dropped_column_takes_its_checks(t: Client) -> None:
    t.run("ALTER TABLE t ADD CONSTRAINT both CHECK (b <> 'no' AND a > 0)")
    t.run("ALTER TABLE t DROP COLUMN a")
    t.run("INSERT INTO t VALUES (4, 'no')")
    t.fails("2BP01", "ALTER TABLE t DROP COLUMN id")
    t.run("ALTER TABLE t DROP COLUMN IF EXISTS a")
    assert t.notices == ['column "a" of relation "t" does not exist, skipping']
    t.run("ALTER TABLE t ADD COLUMN IF NOT EXISTS b text")
    assert t.notices == ['column "b" of relation "t" already exists, skipping']


def test_rename_the_table(t: Client, other: Client) -> None:
    t.run("BEGIN")
    t.run("ALTER TABLE t RENAME TO u")
    t.fails("42P01", "SELECT 1 FROM t")
    t.run("ROLLBACK")
    t.run("BEGIN")
    t.run("ALTER TABLE t RENAME TO u")
    t.run("CREATE TABLE t (id bigint PRIMARY KEY)")
    t.run("INSERT INTO t VALUES (77)")
    assert t.value("SELECT count(*) FROM u") == "3"
    assert other.value("SELECT count(*) FROM t") == "3"
    t.run("COMMIT")
    assert other.rows("SELECT * FROM t") == [("77",)]
    assert other.value("SELECT count(*) FROM u") == "3"
    t.fails("42P07", "ALTER TABLE t RENAME TO u")
    t.run("BEGIN")
    for one, two in (("t", "x"), ("u", "t"), ("x", "u")):
        t.run(f"ALTER TABLE {one} RENAME TO {two}")
    t.run("COMMIT")
    assert (other.value("SELECT count(*) FROM t"), other.value("SELECT count(*) FROM u")) == ("3", "1")
    t.run("BEGIN")
    t.run("ALTER TABLE u RENAME TO v")
    t.run("DROP TABLE v")
    t.run("COMMIT")
    t.fails("42P01", "SELECT 1 FROM u")
    t.fails("42P01", "SELECT 1 FROM v")


def test_options(t: Client, ns: str) -> None:
    t.run("ALTER TABLE t SET (flush_policy = 'rows:7', access_level = 'public'), ADD z int")
    facts = dict(t.rows("SHOW TABLE t"))
    assert (facts["flush_policy"], facts["access_level"]) == ("rows:7", "public")
    t.run("ALTER TABLE t RESET (flush_policy)")
    assert "flush_policy" not in dict(t.rows("SHOW TABLE t"))
    t.fails("22023", "ALTER TABLE t SET (colour = 'red')")
    t.fails("22023", "ALTER TABLE t SET (ttl_seconds = '5')")
    t.fails("0A000", "ALTER TABLE t SET (type = 'user')")
    t.run("ALTER TABLE t SET (owner = '1/2/3')")
    assert t.run("ALTER TABLE t OWNED BY '1/2/4' ADD y int").tag == "DETACH"
    assert "y" not in columns(t)
    assert t.run("ALTER TABLE t OWNED BY '1/2/3' ADD y int").tag == "ALTER TABLE"
    t.run("CREATE STREAM TABLE s (a int) WITH (ttl_seconds = '60')")
    t.fails("22023", "ALTER TABLE s RESET (ttl_seconds)")
    t.run("ALTER STREAM TABLE s SET (ttl_seconds = '90'), ADD b int DEFAULT 3")
    t.fails("42809", "ALTER USER TABLE s ADD c int")
    t.fails("42P01", "ALTER TABLE nowhere ADD c int")
    t.run("ALTER TABLE IF EXISTS nowhere ADD c int")
    assert t.notices == ['relation "nowhere" does not exist, skipping']


@pytest.mark.parametrize("bad", [
    "", "ADD", "ADD COLUMN z", "DROP", "RENAME a b", "ALTER a", "ALTER a SET", "ADD z int,", "SET ()", "FROBNICATE",
    "ADD CONSTRAINT", "ADD CHECK a > 0",
])
def test_syntax(t: Client, bad: str) -> None:
    assert t.fails("42601", f"ALTER TABLE t {bad}").position is not None


@pytest.mark.parametrize("other", [
    "ADD PRIMARY KEY (a)", "ADD UNIQUE (a)", "ADD CONSTRAINT u UNIQUE (a)", "ADD z int PRIMARY KEY", "SET SCHEMA x",
    "OWNER TO somebody", "ADD z int DEFAULT nextval('s')",
])
def test_what_it_does_not_do(t: Client, other: str) -> None:
    t.fails("0A000", f"ALTER TABLE t {other}")
    assert list(columns(t)) == ["id", "a", "b"]


def test_who_may(connect: Callable[..., Client], t: Client) -> None:
    t.run("CREATE USER reader WITH PASSWORD 'secret enough' ROLE user")
    reader = connect(user="reader", password="secret enough")
    reader.fails("42501", "ALTER TABLE t ADD z int")
    t.run("DROP USER reader")


def test_who_may_not_read_a_table_may_not_change_it(connect: Callable[..., Client], t: Client) -> None:
    t.run("CREATE USER clerk WITH PASSWORD 'secret enough' ROLE service")
    clerk = connect(user="clerk", password="secret enough")
    clerk.run("ALTER TABLE t SET (access_level = 'restricted')")
    clerk.fails("42501", "ALTER TABLE t SET (access_level = 'dba')")
    t.run("ALTER TABLE t SET (access_level = 'dba', owner = '1/2/3')")
    for sql in ("SELECT * FROM t", "ALTER TABLE t ADD CHECK (b <> 'x')", "ALTER TABLE t SET (access_level = 'private')",
                "ALTER TABLE t RESET (access_level)", "ALTER TABLE t RENAME TO u", "DROP TABLE t", "DELETE FROM t",
                "ALTER TABLE t OWNED BY '1/2/3' ADD z int", "DROP TABLE t OWNED BY '1/2/3'"):
        assert clerk.fails("42501", sql).detail == "The table's access level is dba."
    assert clerk.run("ALTER TABLE t OWNED BY '1/2/4' ADD z int").tag == "DETACH"
    assert clerk.run("DROP TABLE t OWNED BY '1/2/4'").tag == "DETACH"
    t.run("DROP TABLE t")
    clerk.fails("42501", "UNDROP TABLE t")
    t.run("UNDROP TABLE t")
    t.run("ALTER TABLE t RESET (access_level)")
    clerk.run("ALTER TABLE t ADD z int")
    t.run("DROP USER clerk")


# ---------- transactions ----------
def test_own_rows_and_savepoints(t: Client, other: Client) -> None:
    t.run("BEGIN")
    t.run("INSERT INTO t VALUES (4, 40, 'mine')")
    t.run("UPDATE t SET b = 'changed' WHERE id = 1")
    t.run("ALTER TABLE t ADD z integer DEFAULT 5")
    t.run("SAVEPOINT s")
    t.run("UPDATE t SET z = 6 WHERE id IN (1, 3)")
    t.run("ALTER TABLE t DROP COLUMN b, ALTER a TYPE integer, RENAME z TO y")
    t.run("INSERT INTO t VALUES (5, 99, 7)")
    assert t.rows("SELECT * FROM t ORDER BY id") == [
        ("1", "10", "6"), ("2", None, "5"), ("3", "30", "6"), ("4", "40", "5"), ("5", "99", "7")]
    t.run("ROLLBACK TO s")
    assert t.rows("SELECT * FROM t ORDER BY id") == [
        ("1", "10", "changed", "5"), ("2", None, None, "5"), ("3", "30", "y", "5"), ("4", "40", "mine", "5")]
    assert other.rows("SELECT * FROM t ORDER BY id") == [("1", "10", "x"), ("2", None, None), ("3", "30", "y")]
    t.run("ALTER TABLE t ADD y text DEFAULT 'w'")
    t.run("RELEASE s")
    t.run("COMMIT")
    assert other.rows("SELECT * FROM t ORDER BY id") == [
        ("1", "10", "changed", "5", "w"), ("2", None, None, "5", "w"), ("3", "30", "y", "5", "w"),
        ("4", "40", "mine", "5", "w")]


def test_rollback_leaves_nothing(t: Client) -> None:
    before = t.rows("DESCRIBE t"), t.rows("SELECT * FROM t ORDER BY id")
    t.run("BEGIN")
    t.run("ALTER TABLE t DROP COLUMN a, ADD z int DEFAULT 1, RENAME b TO q")
    t.run("DELETE FROM t WHERE z = 1")
    t.run("ROLLBACK")
    assert (t.rows("DESCRIBE t"), t.rows("SELECT * FROM t ORDER BY id")) == before


def test_a_table_of_the_same_transaction(db: Client, other: Client) -> None:
    db.run("BEGIN")
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, a int)")
    db.run("INSERT INTO t VALUES (1, 2)")
    db.run("ALTER TABLE t ADD b text DEFAULT 'x', DROP COLUMN a")
    db.run("ALTER TABLE t RENAME TO t2")
    db.run("INSERT INTO t2 VALUES (2)")
    db.run("COMMIT")
    assert other.rows("SELECT * FROM t2 ORDER BY id") == [("1", "x"), ("2", "x")]
    db.run("STORAGE FLUSH TABLE t2")
    assert other.rows("SELECT * FROM t2 ORDER BY id") == [("1", "x"), ("2", "x")]


def test_an_old_snapshot_reads_by_the_new_definition(t: Client, other: Client) -> None:
    """As in PostgreSQL: definitions are those of now, rows those of the snapshot."""
    other.run("BEGIN ISOLATION LEVEL REPEATABLE READ")
    assert other.value("SELECT count(*) FROM t") == "3"
    t.run("ALTER TABLE t ADD z integer DEFAULT 5, DROP COLUMN b, ALTER a TYPE integer")
    t.run("UPDATE t SET z = 6")
    t.run("INSERT INTO t VALUES (4, 4, 4)")
    rows = [("1", "10", "5"), ("2", None, "5"), ("3", "30", "5")]
    assert other.rows("SELECT * FROM t ORDER BY id") == rows
    t.run("STORAGE FLUSH TABLE t")
    t.run("STORAGE COMPACT TABLE t")
    assert other.rows("SELECT * FROM t ORDER BY id") == rows
    assert other.rows("SELECT z FROM t WHERE id = 3 AND z < 6") == [("5",)]
    assert other.rows("SELECT id FROM t WHERE z > 5") == []
    other.fails("40001", "UPDATE t SET z = 7 WHERE id = 1")
    other.run("ROLLBACK")


def test_a_cursor_reads_on_by_the_definition_it_began_with(t: Client, wire: Wire, ns: str) -> None:
    t.run("INSERT INTO t VALUES " + ", ".join(f"({number}, 1, 'row')" for number in range(10, 1010)))
    first = wire(f'SELECT "id", "b" FROM "{ns}"."t"', fetch=300, arrow=True)
    t.run("ALTER TABLE t DROP COLUMN b, ADD b integer DEFAULT 3")
    t.run("UPDATE t SET b = 4")
    t.run("STORAGE FLUSH TABLE t")
    t.run("STORAGE COMPACT TABLE t")
    rows = first.rows
    chunk = first
    while chunk.cursor is not None:
        chunk = wire(f"FETCH 300 FROM {first.cursor}")
        rows += chunk.rows
    assert len(rows) == 1003
    assert {row[1] for row in rows} == {"row", "x", "y", None}


def test_writers_wait_and_see_the_new_definition(t: Client, other: Client, wire: Wire, ns: str) -> None:
    t.run("BEGIN")
    t.run("ALTER TABLE t ADD z integer NOT NULL DEFAULT 5, DROP COLUMN b")
    wire.send(f'INSERT INTO "{ns}"."t" ("id", "a") VALUES (9, 9)')
    wait_until(lambda: other.rows("SELECT 1 FROM system.locks WHERE NOT granted") != [], "somebody waits")
    assert other.rows("SELECT * FROM t WHERE id = 1") == [("1", "10", "x")]
    t.run("COMMIT")
    assert wire.answer().tag == "INSERT 0 1"
    assert other.rows("SELECT * FROM t WHERE id = 9") == [("9", "9", "5")]


def test_a_writer_of_a_column_that_goes_meanwhile(t: Client, other: Client, wire: Wire, ns: str) -> None:
    t.run("BEGIN")
    t.run("ALTER TABLE t DROP COLUMN b")
    wire.send("UPDATE t SET b = 'q' WHERE id = 1", exec=True, path=[ns])
    wait_until(lambda: other.rows("SELECT 1 FROM system.locks WHERE NOT granted") != [], "somebody waits")
    t.run("COMMIT")
    with pytest.raises(Failed, match="42703"):
        wire.answer()


def test_alter_waits_for_writers(t: Client, other: Client, wire: Wire, ns: str) -> None:
    other.run("BEGIN")
    other.run("UPDATE t SET a = 11 WHERE id = 1")
    wire.send(f'ALTER TABLE "{ns}"."t" ALTER a SET DEFAULT 1, ADD z integer DEFAULT 2')
    wait_until(lambda: t.rows("SELECT 1 FROM system.locks WHERE NOT granted") != [], "somebody waits")
    assert list(columns(t)) == ["id", "a", "b"]
    other.run("INSERT INTO t VALUES (8, 8, 'w')")
    other.run("COMMIT")
    assert wire.answer().tag == "ALTER TABLE"
    assert t.rows("SELECT * FROM t ORDER BY id") == [
        ("1", "11", "x", "2"), ("2", None, None, "2"), ("3", "30", "y", "2"), ("8", "8", "w", "2")]


def test_two_alter_one_table(t: Client, wire: Wire, other: Client, ns: str) -> None:
    t.run("BEGIN")
    t.run("ALTER TABLE t ADD y integer")
    wire.send(f'ALTER TABLE "{ns}"."t" ADD z integer DEFAULT 2')
    wait_until(lambda: other.rows("SELECT 1 FROM system.locks WHERE NOT granted") != [], "somebody waits")
    t.run("COMMIT")
    wire.answer()
    assert list(columns(t)) == ["id", "a", "b", "y", "z"]


def swap(t: Client, other: Client, wire: Wire, sql: str) -> None:
    """Send a statement that waits while another table takes the name t."""
    t.run("BEGIN")
    t.run("ALTER TABLE t RENAME TO t_old")
    t.run("CREATE TABLE t (id bigint PRIMARY KEY)")
    wire.send(sql)
    wait_until(lambda: other.rows("SELECT 1 FROM system.locks WHERE NOT granted") != [], "somebody waits")
    t.run("COMMIT")
    wire.answer()


@pytest.mark.parametrize(("sql", "rows"), [
    ("INSERT INTO {} (id) VALUES (9)", [("9",)]), ("DELETE FROM {}", []), ("ALTER TABLE {} ADD z integer", []),
])
def test_a_name_is_looked_up_again_when_its_table_is_gone(t: Client, other: Client, wire: Wire, ns: str, sql: str,
                                                          rows: list[tuple[str]]) -> None:
    t.run("BEGIN")
    t.run("DROP TABLE t")
    t.run("CREATE TABLE t (id bigint PRIMARY KEY)")
    wire.send(sql.format(f'"{ns}"."t"'))
    wait_until(lambda: other.rows("SELECT 1 FROM system.locks WHERE NOT granted") != [], "somebody waits")
    t.run("COMMIT")
    wire.answer()
    assert t.rows("SELECT id FROM t") == rows
    t.run("INSERT INTO t (id) VALUES (10)")
    t.run("BEGIN")
    t.run("DROP TABLE t")
    wire.send(sql.format(f'"{ns}"."t"').replace("ADD z", "ADD y"))
    wait_until(lambda: other.rows("SELECT 1 FROM system.locks WHERE NOT granted") != [], "somebody waits")
    t.run("COMMIT")
    with pytest.raises(Failed) as caught:
        wire.answer()
    assert caught.value.sqlstate == "42P01"


def test_alter_means_the_table_that_has_the_name_now(t: Client, other: Client, wire: Wire, ns: str) -> None:
    swap(t, other, wire, f'ALTER TABLE "{ns}"."t" ADD z integer')
    assert list(columns(t)) == ["id", "z"]
    assert list(columns(t, "t_old")) == ["id", "a", "b"]


def test_drop_means_the_table_that_has_the_name_now(t: Client, other: Client, wire: Wire, ns: str) -> None:
    t.run("CREATE TABLE first (id bigint PRIMARY KEY)")
    swap(t, other, wire, f'DROP TABLE "{ns}"."first", "{ns}"."t"')
    for name in ("t", "first"):
        t.fails("42P01", f"SELECT 1 FROM {name}")
    t.run("INSERT INTO t_old VALUES (4, 4, 'q')")
    assert t.value("SELECT count(*) FROM t_old") == "4"
    assert {row[2] for row in t.rows(f"SHOW DROPPED TABLES IN {ns}")} == {"t", "first"}


# ---------- values of their own ----------
@PLACES
def test_every_row_gets_a_value_of_its_own(t: Client, place: str) -> None:
    move(t, place)
    t.run("BEGIN")
    t.run("INSERT INTO t VALUES (4, 4, 'own')")
    t.run("ALTER TABLE t ADD s bigint NOT NULL DEFAULT snowflake_id(), ADD u uuid DEFAULT gen_random_uuid(), "
          "ADD n timestamptz DEFAULT now()")
    t.run("COMMIT")
    assert t.rows("SELECT count(DISTINCT s), count(DISTINCT u), count(DISTINCT n), count(*) FROM t") == [
        ("4", "4", "1", "4")]


def test_many_tenants(db: Client) -> None:
    db.run("CREATE USER TABLE t (id bigint PRIMARY KEY)")
    for tenant in ("a", "b"):
        db.run(f"SET kalam.user_id = '{tenant}'")
        db.run("INSERT INTO t VALUES (1), (2)")
    db.run("STORAGE FLUSH TABLE t")
    db.run("ALTER TABLE t ADD s bigint DEFAULT snowflake_id(), ADD z integer DEFAULT 1")
    db.run("SET kalam.user_id = '*'")
    assert db.rows("SELECT count(DISTINCT s), sum(z) FROM t") == [("4", "4")]
    db.run("SET kalam.user_id = 'a'")
    db.run("UPDATE t SET z = NULL WHERE id = 1")
    db.fails("23502", "ALTER TABLE t ALTER z SET NOT NULL")


def test_rows_of_a_stream_are_not_written_again(db: Client) -> None:
    """They would live for another ttl_seconds."""
    db.run("CREATE STREAM TABLE s (v text) WITH (ttl_seconds = '1000')")
    db.run("ALTER TABLE s ADD a bigint DEFAULT snowflake_id()")
    db.run("SET kalam.user_id = 'a'")
    db.run("INSERT INTO s (v) VALUES ('x')")
    before = db.rows("SELECT v, a, _seq FROM s")
    error = db.fails("0A000", "ALTER TABLE s ADD b integer DEFAULT 3, ADD u uuid DEFAULT gen_random_uuid()")
    assert error.hint == "Add the column without it, then SET DEFAULT for rows to come."
    assert list(columns(db, "s")) == ["v", "a"]
    db.run("ALTER TABLE s ADD b integer DEFAULT 3, ADD n timestamptz DEFAULT now(), ADD u uuid")
    db.run("ALTER TABLE s ALTER u SET DEFAULT gen_random_uuid()")
    assert db.rows("SELECT v, a, _seq FROM s") == before
    db.run("INSERT INTO s (v) VALUES ('y')")
    assert db.rows("SELECT v, b, u IS NULL, n IS NULL FROM s ORDER BY v") == [
        ("x", "3", "t", "f"), ("y", "3", "f", "f")]


def test_fill(t: Client) -> None:
    """As pg_kalam writes it, for defaults that only PostgreSQL evaluates."""
    t.run("ALTER TABLE t ADD z integer NOT NULL FILL '12', ADD y text DEFAULT 'later' FILL NULL")
    t.run("INSERT INTO t (id, z) VALUES (4, 1)")
    assert t.rows("SELECT z, y FROM t ORDER BY id") == [("12", None), ("12", None), ("12", None), ("1", "later")]


def test_a_bulk_run_before_and_after(t: Client, wire: Wire, ns: str) -> None:
    """Rows beyond what a transaction holds in memory are files before the commit, by the definition of their time."""
    def load(start: int, count: int, level: int = 1) -> None:
        rows = batch(id=("int8", list(range(start, start + count))))
        wire(f'INSERT INTO "{ns}"."t" ("id") FROM ARROW $1', rows, floor=level, level=level)

    def run(sql: str) -> None:
        assert wire.conn.exec_(f"SET search_path = {ns}; {sql}".encode()).status == pq.ExecStatus.COMMAND_OK

    run("BEGIN")
    load(1000, 70_000)
    run("ALTER TABLE t ADD z integer DEFAULT 5, DROP COLUMN b, ALTER a TYPE bigint")
    run("SAVEPOINT s")
    run("ALTER TABLE t ADD y integer DEFAULT 1")
    load(200_000, 70_000, level=2)
    run("ROLLBACK TO s")
    run("ALTER TABLE t ADD y text DEFAULT 'text'")
    load(200_000, 70_000, level=2)
    run("UPDATE t SET z = 6 WHERE id = 1001 OR id = 200001")
    expected = [("140003", "700017", "140003")]
    own = wire("SELECT count(*) AS n, sum(z) AS z, count(y) AS y FROM t", exec=True, path=[ns], floor=2, level=2)
    assert json.loads(own.column[0]) == [{"n": 140003, "z": 700017, "y": 140003}]
    run("COMMIT")
    assert t.rows("SELECT count(*), sum(z), count(y) FROM t") == expected
    t.run("STORAGE FLUSH TABLE t")
    t.run("STORAGE COMPACT TABLE t")
    assert t.rows("SELECT count(*), sum(z), count(y) FROM t") == expected


def test_prepared_statements(t: Client, wire: Wire, ns: str) -> None:
    t.conn.prepare(b"star", b"SELECT * FROM t WHERE id = 1")
    t.conn.prepare(b"named", b"SELECT a FROM t WHERE id = 1")
    t.run("ALTER TABLE t ADD z integer")
    result = t.conn.exec_prepared(b"star", [])
    assert "cached plan must not change result type" in result.get_error_message()
    assert t.conn.exec_prepared(b"named", []).get_value(0, 0) == b"10"
    sql = f'SELECT "a" FROM "{ns}"."t" WHERE ("id" = $1)'
    assert wire(sql, ("int8", "1")).rows == [(10,)]
    t.run("ALTER TABLE t DROP COLUMN a")
    wire.fails("42703", sql, ("int8", "1"))


# ---------- restart, check ----------
def test_restart_and_check() -> None:
    server = KalamServer()
    try:
        server.start()
        db = Client(server.dsn())
        db.run("CREATE TABLE t (id bigint PRIMARY KEY, a smallint, b text)")
        db.run("INSERT INTO t VALUES (1, 1, 'x')")
        db.run("STORAGE FLUSH TABLE t")
        db.run("ALTER TABLE t ADD z float8 DEFAULT '-Infinity', DROP COLUMN b, ALTER a TYPE bigint")
        db.run("INSERT INTO t VALUES (2, 2, 2)")
        db.run("ALTER TABLE t ADD b integer DEFAULT 7")
        db.close()
        server.restart()
        db = Client(server.dsn())
        rows = [("1", "1", "-Infinity", "7"), ("2", "2", "2", "7")]
        assert db.rows("SELECT * FROM t ORDER BY id") == rows
        db.run("ALTER TABLE t DROP COLUMN b, ADD b text DEFAULT 'again'")
        assert [row[3] for row in db.rows("SELECT * FROM t ORDER BY id")] == ["again", "again"]
        db.close()
        server.stop()
        check = Check(server.data, dict(open_storages(server.data)))
        assert list(check.problems()) == []
        check.close()
    finally:
        server.close()


# ---------- dropped tables ----------
def test_undrop(t: Client, other: Client, ns: str) -> None:
    t.run("DROP TABLE t")
    ((number, namespace, name, kind, dropped_at, until),) = t.rows(f"SHOW DROPPED TABLES IN {ns}")
    assert (namespace, name, kind) == (ns, "t", "shared")
    assert dropped_at < until
    t.run("BEGIN")
    t.run("UNDROP TABLE t")
    assert t.value("SELECT count(*) FROM t") == "3"
    other.fails("42P01", "SELECT 1 FROM t")
    t.run("ROLLBACK")
    other.fails("42P01", "SELECT 1 FROM t")
    t.run("CREATE TABLE t (id bigint PRIMARY KEY)")
    t.fails("42P07", "UNDROP TABLE t")
    t.run(f"UNDROP TABLE {ns}.t TO old")
    assert other.rows("SELECT id, a, b FROM old ORDER BY id") == [("1", "10", "x"), ("2", None, None), ("3", "30", "y")]
    t.run("ALTER TABLE old ADD z integer DEFAULT 1")
    t.run("STORAGE FLUSH TABLE old")
    assert other.value("SELECT sum(z) FROM old") == "3"
    t.fails("42704", "UNDROP TABLE t")
    assert t.rows(f"SHOW DROPPED TABLES IN {ns}") == []
    t.run("DROP TABLE t")
    t.run("CREATE TABLE t (id bigint PRIMARY KEY)")
    t.run("DROP TABLE t")
    first, second = (row[0] for row in t.rows(f"SHOW DROPPED TABLES IN {ns}"))
    t.run(f"UNDROP TABLE t ID {second}")
    t.fails("42P07", "UNDROP TABLE t")
    t.run(f"UNDROP TABLE t ID {first} TO t2")
    t.run("DROP TABLE t")
    t.run("BEGIN")
    t.run("UNDROP TABLE t")
    t.run("ALTER TABLE t RENAME TO t3")
    t.run("INSERT INTO t3 VALUES (1)")
    t.run("COMMIT")
    assert other.value("SELECT count(*) FROM t3") == "1"
    t.run("BEGIN")
    t.run("DROP TABLE t3")
    t.fails("42704", "UNDROP TABLE t3")
    t.run("ROLLBACK")
    t.run("DROP TABLE old")
    assert number == t.rows(f"SHOW DROPPED TABLES IN {ns}")[0][0]


def test_who_may_undrop(connect: Callable[..., Client], t: Client) -> None:
    t.run("CREATE USER reader WITH PASSWORD 'secret enough' ROLE user")
    reader = connect(user="reader", password="secret enough")
    t.run("DROP TABLE t")
    reader.fails("42501", "UNDROP TABLE t")
    reader.fails("42501", "SHOW DROPPED TABLES")
    t.run("DROP USER reader")


def test_nothing_is_restored_after_the_grace() -> None:
    server = KalamServer(drop_grace="0")
    try:
        server.start()
        db = Client(server.dsn())
        db.run("CREATE TABLE t (id bigint PRIMARY KEY)")
        db.run("DROP TABLE t")
        db.fails("42704", "UNDROP TABLE t")
        assert db.rows("SHOW DROPPED TABLES") == []
        db.close()
    finally:
        server.close()
