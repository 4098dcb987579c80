"""Statements that would leave the two sides apart are refused with 0A000 and a hint; what is local goes through."""

from __future__ import annotations

import pytest

from .ddl import Session

pytestmark = pytest.mark.pg

CREATES = [
    "CREATE UNLOGGED TABLE {ns}.x (id bigint) USING kalamdb",
    "CREATE TEMPORARY TABLE x (id bigint) USING kalamdb",
    "CREATE TABLE pg_temp.x (id bigint) USING kalamdb",
    "CREATE TABLE {ns}.x () INHERITS ({ns}.heap) USING kalamdb",
    "CREATE TABLE {ns}.x OF {ns}.composite USING kalamdb",
    "CREATE TABLE {ns}.x (id bigint) PARTITION BY LIST (id) USING kalamdb",
    "CREATE TABLE {ns}.x (id bigint) USING kalamdb TABLESPACE pg_default",
    "CREATE MATERIALIZED VIEW {ns}.x USING kalamdb AS SELECT 1 AS id",
    "CREATE TABLE {ns}.x USING kalamdb AS WITH w AS (INSERT INTO {ns}.heap VALUES (1) RETURNING id) SELECT id FROM w",
    "SET default_table_access_method=kalamdb; WITH w AS (DELETE FROM {ns}.t RETURNING id) SELECT * INTO {ns}.x FROM w",
    "EXPLAIN ANALYZE CREATE TABLE {ns}.x USING kalamdb AS SELECT 1 AS id",
    "CREATE TABLE {ns}.x (id bigint, a int UNIQUE) USING kalamdb",
    "CREATE TABLE {ns}.x (id bigint, a int, UNIQUE (a)) USING kalamdb",
    "CREATE TABLE {ns}.x (id bigint, a int, EXCLUDE (a WITH =)) USING kalamdb",
    "CREATE TABLE {ns}.x (id bigint, a int REFERENCES {ns}.heap (id)) USING kalamdb",
    "CREATE TABLE {ns}.x (id bigint, a int, FOREIGN KEY (a) REFERENCES {ns}.heap (id)) USING kalamdb",
]

ALTERS = [
    "ALTER TABLE {ns}.t ALTER COLUMN a TYPE bytea USING 'x'",
    "ALTER TABLE {ns}.t ALTER COLUMN a TYPE bigint USING 1",
    "ALTER TABLE {ns}.t ALTER COLUMN a OPTIONS (ADD column_name 'z')",
    "ALTER TABLE {ns}.t OPTIONS (SET \"table\" 'elsewhere')",
    "ALTER TABLE {ns}.t SET ACCESS METHOD heap",
    "ALTER TABLE {ns}.heap SET ACCESS METHOD kalamdb",
    "ALTER TABLE {ns}.t ADD UNIQUE (a)",
    "ALTER TABLE {ns}.t ADD PRIMARY KEY (a)",
    "ALTER TABLE {ns}.t ADD FOREIGN KEY (id) REFERENCES {ns}.heap (id)",
    "ALTER TABLE {ns}.t ADD EXCLUDE (a WITH =)",
    "ALTER TABLE {ns}.t ADD COLUMN b int UNIQUE",
    "ALTER TABLE {ns}.t ADD COLUMN b int PRIMARY KEY",
    "ALTER TABLE {ns}.t ADD COLUMN b int DEFAULT (random() * 10)::int",
    "ALTER TABLE {ns}.t ADD COLUMN b int GENERATED ALWAYS AS (id * 2) STORED",
    "ALTER FOREIGN TABLE {ns}.t ADD COLUMN b int OPTIONS (key '2')",
    "ALTER TABLE {ns}.t OWNER TO CURRENT_USER, ADD COLUMN b int UNIQUE",
    "ALTER TABLE {ns}.t RENAME COLUMN _seq TO version",
    "CREATE INDEX ON {ns}.t (a)",
    "CREATE UNIQUE INDEX IF NOT EXISTS i ON {ns}.t (a)",
]

LOCAL = [
    "ALTER TABLE {ns}.t OWNER TO CURRENT_USER",
    "ALTER FOREIGN TABLE {ns}.t OWNER TO CURRENT_USER",
    "ALTER TABLE {ns}.t OPTIONS (ADD fetch_size '17')",
    "ALTER TABLE {ns}.t ALTER COLUMN a SET STATISTICS 10",
    "ALTER TABLE {ns}.t DISABLE TRIGGER ALL",
    "COMMENT ON TABLE {ns}.t IS 'a table'",
    "COMMENT ON FOREIGN TABLE {ns}.t IS 'a table'",
    "COMMENT ON COLUMN {ns}.t.a IS 'a column'",
    "GRANT SELECT ON {ns}.t TO PUBLIC",
]


@pytest.fixture
def tables(db: Session, ns: str) -> Session:
    db(f"CREATE TABLE {ns}.heap (id bigint PRIMARY KEY); CREATE TYPE {ns}.composite AS (id bigint)")
    db(f"CREATE TABLE {ns}.parted (id bigint) PARTITION BY LIST (id)")
    db(f"CREATE TYPE {ns}.mood AS ENUM ('fine')")
    db(f"CREATE TABLE {ns}.t (id bigint, a text CONSTRAINT ok CHECK (a <> 'no'), m {ns}.mood) USING kalamdb")
    return db


@pytest.mark.parametrize("statement", CREATES)
def test_create_is_refused(tables: Session, ns: str, statement: str) -> None:
    error = tables.fails(statement.format(ns=ns), "0A000")
    assert error.diag.message_hint
    assert tables.value(f"SELECT count(*) FROM {ns}.heap") == 0
    assert not tables.exists(f"{ns}.x")
    assert tables.facts(f'"{ns}"."x"') == {}


@pytest.mark.parametrize("statement", ALTERS)
def test_change_of_a_managed_table_is_refused(tables: Session, ns: str, statement: str) -> None:
    before = tables.local_columns(f"{ns}.t"), tables.remote_columns(f'"{ns}"."t"')
    error = tables.fails(statement.format(ns=ns), "0A000")
    assert error.diag.message_hint
    assert (tables.local_columns(f"{ns}.t"), tables.remote_columns(f'"{ns}"."t"')) == before


@pytest.mark.parametrize("statement", LOCAL)
def test_local_change_goes_through(tables: Session, ns: str, statement: str) -> None:
    tables(statement.format(ns=ns))
    tables(f"INSERT INTO {ns}.t (id, a) VALUES (1, 'x')")
    assert tables(f"SELECT id, a FROM {ns}.t") == [(1, "x")]


def test_rename_and_move_keep_the_mapping(tables: Session, ns: str) -> None:
    tables(f"INSERT INTO {ns}.t VALUES (1, 'x')")
    tables(f"ALTER TABLE {ns}.t RENAME TO t2; CREATE SCHEMA {ns}_b; ALTER TABLE {ns}.t2 SET SCHEMA {ns}_b")
    tables(f"ALTER FOREIGN TABLE {ns}_b.t2 RENAME TO t3")
    assert tables(f"SELECT id, a FROM {ns}_b.t3") == [(1, "x")]
    tables(f"DROP SCHEMA {ns}_b CASCADE")
    assert tables.facts(f'"{ns}"."t"') == {}


def test_lock_table(tables: Session, ns: str, other: Session) -> None:
    tables.fails(f"LOCK TABLE {ns}.t", "25P01")
    tables("BEGIN")
    tables(f"LOCK TABLE {ns}.heap, {ns}.t IN EXCLUSIVE MODE")
    other("BEGIN")
    other.fails(f"LOCK TABLE {ns}.t IN ROW EXCLUSIVE MODE NOWAIT", "55P03")
    other("ROLLBACK")
    tables("COMMIT")
    other("BEGIN")
    other(f"LOCK {ns}.t IN ACCESS EXCLUSIVE MODE NOWAIT")
    other("COMMIT")


def test_lock_needs_a_privilege(tables: Session, ns: str) -> None:
    tables(f"CREATE ROLE {ns}_role; GRANT USAGE ON SCHEMA {ns} TO {ns}_role; GRANT SELECT ON {ns}.t TO {ns}_role")
    tables(f"SET ROLE {ns}_role")
    try:
        tables("BEGIN")
        tables.fails(f"LOCK TABLE {ns}.t IN ACCESS EXCLUSIVE MODE", "42501")
        tables("ROLLBACK; BEGIN")
        tables(f"LOCK TABLE {ns}.t IN ACCESS SHARE MODE")
        tables("COMMIT")
    finally:
        tables(f"ROLLBACK; RESET ROLE; DROP OWNED BY {ns}_role; DROP ROLE {ns}_role")
