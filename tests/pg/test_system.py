"""Foreign tables over the server's namespace `system`, made from DESCRIBE as an import makes them."""

from __future__ import annotations

import pytest

from .ddl import Session

pytestmark = pytest.mark.pg

NAMES = ("tables", "columns", "namespaces", "users", "sessions", "transactions", "locks", "settings", "jobs",
         "segments", "storages")


@pytest.fixture
def system(db: Session, ns: str) -> str:
    """A schema with all of them."""
    for name in NAMES:
        columns = ", ".join(f'"{row["name"]}" {row["type"]}' for row in db.remote(f"DESCRIBE system.{name}"))
        db(f"CREATE FOREIGN TABLE {ns}.{name} ({columns}) SERVER kalam_server OPTIONS (namespace 'system')")
    return ns


@pytest.mark.parametrize("name", NAMES)
def test_every_row_comes_as_the_server_has_it(db: Session, system: str, name: str) -> None:
    db("BEGIN")  # the transaction that is seen is one for both
    found = db(f"SELECT * FROM {system}.{name}")
    assert len(found) == len(db.remote(f"SELECT * FROM system.{name}"))


def test_joins_conditions_and_local_functions(db: Session, system: str) -> None:
    assert db(
        f'SELECT t."table", count(*), bool_and(c.position > 0) FROM {system}.tables t JOIN {system}.columns c '
        f'USING (namespace, "table") WHERE t.namespace = \'system\' AND t."table" LIKE \'%s\' AND c.not_null IS FALSE '
        "GROUP BY 1 HAVING count(*) > 10 ORDER BY 1") == [
            ("segments", 11, True), ("sessions", 11, True)]
    assert db(f"SELECT count(*) FROM {system}.settings WHERE name = %s AND value = '60000'", "lock_timeout") == [(1,)]


def test_own_locks_are_seen_inside_the_transaction(db: Session, system: str) -> None:
    db(f"CREATE TABLE {system}.t (id bigint PRIMARY KEY) USING kalamdb")
    db("BEGIN")
    db(f"INSERT INTO {system}.t VALUES (7)")
    seen = (f'SELECT l.key, l.mode, t.rows_written FROM {system}.locks l JOIN {system}.transactions t '
            f"ON t.id = l.transaction WHERE l.namespace = '{system}' AND l.key IS NOT NULL")
    assert db(seen) == [("7", "exclusive", 1)]
    assert [(row["key"], row["mode"]) for row in
            db.remote(f"SELECT key, mode FROM system.locks WHERE namespace = '{system}' AND key IS NOT NULL")] == [
        ("7", "exclusive")]
    db("COMMIT")
    assert db(seen) == []


@pytest.mark.parametrize("statement", [
    "INSERT INTO {}.namespaces VALUES ('x')", "COPY {}.namespaces FROM STDIN", "DELETE FROM {}.sessions",
    "UPDATE {}.users SET role = 'dba'", "SELECT * FROM {}.locks FOR UPDATE",
])
def test_they_are_not_written(db: Session, system: str, statement: str) -> None:
    db("BEGIN")
    if statement.startswith("COPY"):
        with pytest.raises(Exception, match="system catalog"), db.conn.cursor().copy(statement.format(system)) as copy:
            copy.write(b"x\n")
    else:
        db.fails(statement.format(system), None)
    db("ROLLBACK")


def test_none_is_made_there(db: Session, ns: str) -> None:
    db.fails(f"CREATE FOREIGN TABLE {ns}.t (id bigint) SERVER kalam_server "
             "OPTIONS (namespace 'system', table_type 'shared')", None, "system")
    db.fails(f"SELECT kalam_exec('DROP TABLE system.locks') FROM (SELECT '{ns}') n", "42501", "system catalog")
