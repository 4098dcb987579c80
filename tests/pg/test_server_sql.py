"""The server's own SQL through kalam_exec: definitions, accounts, tenants, and where in a statement an error is."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from .ddl import Session

pytestmark = pytest.mark.pg


def run(db: Session, sql: str) -> Any:
    return json.loads(db.value("SELECT kalam_exec(%s)", sql))


def test_namespaces_come_and_go_with_the_transaction(db: Session, ns: str) -> None:
    db("BEGIN")
    run(db, f"CREATE NAMESPACE {ns}_x")
    run(db, f"CREATE TABLE {ns}_x.t (id bigint PRIMARY KEY)")
    db("SAVEPOINT s")
    assert run(db, f"DROP NAMESPACE {ns}_x CASCADE")["message"] == "DROP NAMESPACE"
    assert run(db, f"SHOW NAMESPACES LIKE '{ns}\\_x'") == []
    db("ROLLBACK TO s")
    assert run(db, f"SHOW NAMESPACES LIKE '{ns}\\_x'") == [{"namespace": f"{ns}_x"}]
    db("COMMIT")
    db.fails(f"SELECT kalam_exec('DROP NAMESPACE {ns}_x')", "2BP01")
    run(db, f"DROP NAMESPACE {ns}_x CASCADE")
    assert run(db, f"SHOW TABLES LIKE '{ns}%'") == []


def test_a_managed_table_whose_namespace_was_dropped(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.m (id bigint PRIMARY KEY) USING kalamdb; INSERT INTO {ns}.m VALUES (1)")
    run(db, f"DROP NAMESPACE {ns} CASCADE")
    db.fails(f"SELECT * FROM {ns}.m", "HV00R")
    db.fails(f"SELECT kalam_exec('UNDROP TABLE {ns}.m')", "3F000")
    run(db, f"CREATE NAMESPACE {ns}")
    run(db, f"UNDROP TABLE {ns}.m")
    assert db.value(f"SELECT count(*) FROM {ns}.m") == 1


def test_execute_as_user(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.u (id bigint PRIMARY KEY, v text) USING kalamdb WITH (type = 'user')")
    name = 'o\'br"ien; é\\'
    quoted = name.replace("'", "''")
    run(db, f"EXECUTE AS USER '{quoted}' (INSERT INTO {ns}.u VALUES (1, ')'))")
    assert run(db, f"EXECUTE AS USER '{quoted}' (SELECT id, v, _userid FROM {ns}.u)") == [
        {"id": 1, "v": ")", "_userid": name}]
    db("SET kalam.user_id = 'another'")
    assert db.value(f"SELECT count(*) FROM {ns}.u") == 0


def test_accounts(db: Session, ns: str) -> None:
    run(db, f"CREATE USER {ns}_a PASSWORD 'long enough' ROLE service LOCK")
    assert run(db, f"SHOW USERS LIKE '{ns}\\_%'") == [
        {"name": f"{ns}_a", "role": "service", "has_password": True, "locked": True}]
    run(db, f"ALTER USER {ns}_a UNLOCK PASSWORD NULL")
    assert not run(db, f"SHOW USERS LIKE '{ns}\\_%'")[0]["has_password"]
    run(db, f"DROP USER {ns}_a")
    error = db.fails(f"SELECT kalam_exec('CREATE USER {ns}_a ''hunter2 hunter2''')", "42601")
    told = (error.diag.message_primary, error.diag.message_hint, error.diag.internal_query, error.diag.context)
    assert "hunter2" not in str(told)


@pytest.mark.parametrize(("sql", "sqlstate", "place"), [
    ("SELEC 1", "42601", "SELEC"), ("  SELECT 'é', nosuch", "42703", "nosuch"),
    ("CREATE VIEW v AS SELECT 1", "0A000", "VIEW"),
    ("SELECT 1; SELECT 2", "42601", "SELECT 2"), ("VACUUM", "0A000", "VACUUM"),
    ("/* ü */ SHOW tabels", "42704", "tabels"),
])
def test_the_place_of_an_error_is_shown(db: Session, sql: str, sqlstate: str, place: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        db.value("SELECT kalam_exec(%s)", sql)
    diag = caught.value.diag
    assert diag.sqlstate == sqlstate
    assert diag.internal_query == sql
    assert int(diag.internal_position or 0) == sql.index(place) + 1
    assert db.value("SELECT 1") == 1


def test_arrays_and_ranges_are_read(db: Session, ns: str) -> None:
    """PostgreSQL can read what is stored, equal values are one key, and what is none of the type is refused."""
    db(f"CREATE TABLE {ns}.a (k int[] PRIMARY KEY, r int4range) USING kalamdb")
    run(db, f"INSERT INTO {ns}.a VALUES ('{{1, 02}}', '[1, 2]')")
    for sql, sqlstate in ((f"INSERT INTO {ns}.a VALUES ('{{abc}}', NULL)", "22P02"),
                          (f"INSERT INTO {ns}.a VALUES ('{{3}}', '[zz,1)')", "22P02"),
                          (f"INSERT INTO {ns}.a VALUES ('{{3}}', '[5,1)')", "22000"),
                          (f"UPDATE {ns}.a SET r = '[1'", "22P02"),
                          (f"INSERT INTO {ns}.a VALUES ('{{1,2}}', NULL)", "23505")):
        error = db.fails("SELECT kalam_exec('" + sql.replace("'", "''") + "')", sqlstate)
        assert error.sqlstate == sqlstate
    db.fails(f"INSERT INTO {ns}.a VALUES ('{{1,2}}', NULL)", "23505")
    assert db.value(f"SELECT k::text || r::text FROM {ns}.a WHERE k = '{{1,2}}' AND r = '(0,3)'") == "{1,2}[1,3)"
