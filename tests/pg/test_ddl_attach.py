"""CREATE FOREIGN TABLE: attaches to what is there, creates what table_type asks for, refuses what does not fit."""

from __future__ import annotations

import pytest

from .ddl import Session

pytestmark = pytest.mark.pg


@pytest.fixture
def remote(db: Session, ns: str) -> Session:
    db.remote(f'CREATE NAMESPACE "{ns}"')
    db.remote(
        f'CREATE USER TABLE "{ns}"."t" (a text NOT NULL, n numeric(8,2), "b c" bigint NOT NULL, at timestamptz, '
        f'CONSTRAINT "k" PRIMARY KEY ("b c", a))'
    )
    db("SET kalam.user_id = 'alice'")
    return db


def test_attach_takes_key_and_type(remote: Session, ns: str) -> None:
    remote(f'CREATE FOREIGN TABLE {ns}.t ("b c" bigint, a text, n numeric) SERVER kalam_server')
    assert remote.key(f"{ns}.t") == ["b c", "a"]
    assert remote.options(f"{ns}.t") == {"namespace": ns, "table": "t", "table_type": "user"}
    remote(f"INSERT INTO {ns}.t VALUES (1, 'x', 2.5)")
    remote(f"UPDATE {ns}.t SET n = 3 WHERE a = 'x'")
    assert remote(f'SELECT "b c", a, n FROM {ns}.t') == [(1, "x", 3)]


def test_attach_by_other_names(remote: Session, ns: str) -> None:
    remote(
        f"CREATE FOREIGN TABLE here (x bigint OPTIONS (column_name 'b c'), y text OPTIONS (column_name 'a')) "
        f"SERVER kalam_server OPTIONS (namespace '{ns}', \"table\" 't')"
    )
    try:
        assert remote.key("here") == ["x", "y"]
        remote("INSERT INTO here VALUES (1, 'x')")
        assert remote("SELECT x, y FROM here") == [(1, "x")]
    finally:
        remote("DROP TABLE here")
    assert remote.facts(f'"{ns}"."t"')


def test_attach_if_not_exists(remote: Session, ns: str) -> None:
    for _ in range(2):
        remote(f"CREATE FOREIGN TABLE IF NOT EXISTS {ns}.t (a text) SERVER kalam_server")
    assert remote.notices[-1] == 'relation "t" already exists, skipping'


MISFITS = [
    ("(a text, nope int)", "", "HV005", ["nope"]),
    ("(a text OPTIONS (column_name 'A'))", "", "HV005", ["A"]),
    ("(a bigint)", "", "HV005", ["a", "bigint", "text"]),
    ("(n double precision)", "", "HV005", ["n", "numeric"]),
    ("(at timestamp)", "", "HV005", ["at"]),
    ("(a text OPTIONS (key '1'))", "", "HV005", ["key", '"a"']),
    ("(a text, _seq int)", "", "42P16", ["_seq", "bigint"]),
    ("(a text, _userid varchar)", "", "42P16", ["_userid", "text"]),
    ("(a text, _deleted boolean)", "", "42939", ["_deleted"]),
    ("(a text)", "OPTIONS (table_type 'shared')", "HV00D", ["table_type", "user"]),
    ("(a text)", "OPTIONS (\"table\" 'typo')", "HV00R", ["typo"]),
    ("(a text)", "OPTIONS (namespace 'typo')", "HV00R", ["typo"]),
    ("(a text)", "OPTIONS (colour 'red')", "HV00D", ["colour", "namespace"]),
    ("(a text OPTIONS (colour 'red'))", "", "HV00D", ["colour", "column_name"]),
    ("(a text OPTIONS (key '0'))", "", "HV00D", ["key"]),
    ("(a text OPTIONS (remote_type 'map'))", "", "HV00D", ["remote_type"]),
]


@pytest.mark.parametrize(("columns", "options", "sqlstate", "words"), MISFITS)
def test_misfits(remote: Session, ns: str, columns: str, options: str, sqlstate: str, words: list[str]) -> None:
    remote.fails(f"CREATE FOREIGN TABLE {ns}.t {columns} SERVER kalam_server {options}", sqlstate, *words)
    assert not remote.exists(f"{ns}.t")


def test_userid_of_a_shared_table(db: Session, ns: str) -> None:
    db.remote(f'CREATE NAMESPACE "{ns}"')
    db.remote(f'CREATE SHARED TABLE "{ns}"."s" (id bigint PRIMARY KEY)')
    db.fails(f"CREATE FOREIGN TABLE {ns}.s (id bigint, _userid text) SERVER kalam_server", "HV005", "_userid")
    db(f"CREATE FOREIGN TABLE {ns}.s (_seq bigint, id bigint) SERVER kalam_server")
    db(f"INSERT INTO {ns}.s (id) VALUES (1)")
    assert db(f"SELECT id, _seq > 0 FROM {ns}.s") == [(1, True)]


def test_create_where_none_exists(db: Session, ns: str) -> None:
    db(
        f"CREATE FOREIGN TABLE {ns}.t (a text NOT NULL, id int OPTIONS (key '1'), d int DEFAULT 4, _seq bigint) "
        f"SERVER kalam_server OPTIONS (table_type 'shared', access_level 'public')"
    )
    facts = db.facts(f'"{ns}"."t"')
    assert (facts["type"], facts["access_level"]) == ("shared", "public")
    assert list(db.remote_columns(f'"{ns}"."t"'))[:3] == ["a", "id", "d"]
    db.remote(f'INSERT INTO "{ns}"."t" (a, id) VALUES (\'x\', 1)')
    assert db(f"SELECT a, id, d FROM {ns}.t") == [("x", 1, 4)]
    db(f"DROP FOREIGN TABLE {ns}.t")
    assert db.facts(f'"{ns}"."t"') == {}


def test_create_takes_id_as_the_key(db: Session, ns: str) -> None:
    db(f"CREATE FOREIGN TABLE {ns}.t (id int, a text) SERVER kalam_server OPTIONS (table_type 'shared')")
    assert db.key(f"{ns}.t") == ["id"]
    db.fails(f"CREATE FOREIGN TABLE {ns}.u (a text) SERVER kalam_server OPTIONS (table_type 'shared')", "42P16", "key")


@pytest.mark.parametrize("places", [("1", "1"), ("2", "3"), ("1", "3")])
def test_places_of_the_key(db: Session, ns: str, places: tuple[str, str]) -> None:
    columns = ", ".join(f"c{n} int OPTIONS (key '{place}')" for n, place in enumerate(places))
    db.fails(
        f"CREATE FOREIGN TABLE {ns}.t ({columns}) SERVER kalam_server OPTIONS (table_type 'shared')", "HV00D", "key"
    )
    assert db.facts(f'"{ns}"."t"') == {}


def test_attach_as_partition(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.p (id bigint, a text) PARTITION BY LIST (id)")
    db(
        f"CREATE FOREIGN TABLE {ns}.p1 PARTITION OF {ns}.p FOR VALUES IN (1) SERVER kalam_server "
        f"OPTIONS (table_type 'shared')"
    )
    assert db.key(f"{ns}.p1") == ["id"]
    db(f"INSERT INTO {ns}.p VALUES (1, 'x')")
    assert db.remote(f'SELECT a FROM "{ns}"."p1"') == [{"a": "x"}]


def test_definition_round_trips_into_another_database(db: Session, second: Session, ns: str) -> None:
    """What pg_dump would write for a table made by USING attaches elsewhere, and does not manage."""
    db(f"CREATE TABLE {ns}.t (a text, b int, PRIMARY KEY (b, a)) USING kalamdb WITH (type = 'shared')")
    options = ", ".join(f"\"{name}\" '{value}'" for name, value in db.options(f"{ns}.t").items())
    second(
        f"CREATE SCHEMA {ns}; CREATE FOREIGN TABLE {ns}.t (a text NOT NULL, b int NOT NULL, _seq bigint) "
        f"SERVER kalam_server OPTIONS ({options}); "
        f"ALTER FOREIGN TABLE ONLY {ns}.t ALTER COLUMN a OPTIONS (key '2'); "
        f"ALTER FOREIGN TABLE ONLY {ns}.t ALTER COLUMN b OPTIONS (key '1')"
    )
    assert second.key(f"{ns}.t") == ["b", "a"]
    second(f"INSERT INTO {ns}.t VALUES ('x', 1)")
    assert db(f"SELECT a, b FROM {ns}.t") == [("x", 1)]
    second(f"DROP TABLE {ns}.t")
    assert db.facts(f'"{ns}"."t"')
