"""DDL is transactional on both sides: rollback, savepoints, races between sessions, a server that goes away."""

from __future__ import annotations

import threading

import psycopg
import pytest

from .ddl import Session

pytestmark = pytest.mark.pg


def there(db: Session, ns: str, name: str) -> bool:
    return db.facts(f'"{ns}"."{name}"') != {}


def test_rollback_of_create(db: Session, other: Session, ns: str) -> None:
    db(f"BEGIN; CREATE TABLE {ns}.t (id bigint, a text) USING kalamdb")
    db(f"INSERT INTO {ns}.t VALUES (1, 'x')")
    assert db(f"SELECT id, a FROM {ns}.t") == [(1, "x")]
    assert not there(other, ns, "t")
    db("ROLLBACK")
    assert not db.exists(f"{ns}.t")
    assert not there(db, ns, "t")


def test_rollback_of_drop(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint, a text) USING kalamdb")
    db(f"INSERT INTO {ns}.t VALUES (1, 'x')")
    db(f"BEGIN; DROP TABLE {ns}.t")
    assert not there(db, ns, "t")
    db("ROLLBACK")
    assert db(f"SELECT id, a FROM {ns}.t") == [(1, "x")]


def test_savepoints(db: Session, ns: str) -> None:
    db(f"BEGIN; CREATE TABLE {ns}.a (id bigint) USING kalamdb; SAVEPOINT s")
    db(f"CREATE TABLE {ns}.b (id bigint) USING kalamdb")
    db(f"DROP TABLE {ns}.a")
    db("ROLLBACK TO s")
    db(f"INSERT INTO {ns}.a VALUES (1)")
    db(f"SAVEPOINT s2; CREATE TABLE {ns}.c (id bigint) USING kalamdb; RELEASE s2; COMMIT")
    assert [there(db, ns, n) for n in "abc"] == [True, False, True]
    assert [db.exists(f"{ns}.{n}") for n in "abc"] == [True, False, True]
    assert db(f"SELECT id FROM {ns}.a") == [(1,)]


def test_drop_and_create_again_in_one_transaction(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint, a text) USING kalamdb")
    db(f"INSERT INTO {ns}.t VALUES (1, 'x')")
    db(f"BEGIN; DROP TABLE {ns}.t; CREATE TABLE {ns}.t (id bigint, b int) USING kalamdb")
    db(f"INSERT INTO {ns}.t VALUES (2, 3)")
    db("COMMIT")
    assert db(f"SELECT id, b FROM {ns}.t") == [(2, 3)]


def test_failing_statement_leaves_nothing(db: Session, ns: str) -> None:
    db.fails(f"CREATE TABLE {ns}.t (id bigint, a nosuchtype) USING kalamdb", "42704", "nosuchtype")
    db.fails(f"CREATE TABLE {ns}.t (id bigint, a int CHECK (b > 1)) USING kalamdb", "42703", "b")
    db("BEGIN")
    db.fails(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb WITH (storage_id = 'nowhere')", None, "nowhere")
    db("ROLLBACK")
    assert not db.exists(f"{ns}.t")
    assert not there(db, ns, "t")


def test_read_only_transaction(db: Session, ns: str) -> None:
    db("BEGIN READ ONLY")
    db.fails(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb", "25006")
    db("ROLLBACK")
    assert not there(db, ns, "t")


def test_two_sessions_create_the_same_table(db: Session, other: Session, ns: str) -> None:
    outcomes: list[str] = []

    def create(session: Session) -> None:
        try:
            session(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb")
            outcomes.append("created")
        except psycopg.Error as error:
            outcomes.append(error.sqlstate or "?")

    for round_ in range(5):
        outcomes.clear()
        threads = [threading.Thread(target=create, args=(session,)) for session in (db, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert outcomes.count("created") == 1, (round_, outcomes)
        assert set(outcomes) <= {"created", "42P07", "42710", "23505", "40001"}
        assert there(db, ns, "t")
        db(f"DROP TABLE {ns}.t")


def test_other_session_waits_for_the_outcome(db: Session, other: Session, ns: str) -> None:
    db(f"BEGIN; CREATE TABLE {ns}.t (id bigint) USING kalamdb WITH (\"table\" = 'far')")
    failed: list[str] = []

    def create() -> None:
        try:
            other(f"CREATE TABLE {ns}.u (id bigint) USING kalamdb WITH (\"table\" = 'far')")
        except psycopg.Error as error:
            failed.append(error.sqlstate or "?")

    thread = threading.Thread(target=create)
    thread.start()
    db("COMMIT")
    thread.join(30)
    assert not thread.is_alive()
    assert failed
    assert set(failed) <= {"42P07", "40001"}
    assert db.facts(f'"{ns}"."far"')["owner"].endswith(str(db.value("SELECT %s::regclass::oid", f"{ns}.t")))
