"""Ownership: who created the remote table drops its data; everybody else detaches; a NOTICE says which."""

from __future__ import annotations

import pytest

from .ddl import Session

pytestmark = pytest.mark.pg


def make(db: Session, ns: str, *names: str) -> None:
    for name in names:
        db(f"CREATE TABLE {ns}.{name} (id bigint, a text) USING kalamdb")
        db(f"INSERT INTO {ns}.{name} VALUES (1, '{name}')")
    db.notices.clear()


def there(db: Session, ns: str, name: str) -> bool:
    return db.facts(f'"{ns}"."{name}"') != {}


@pytest.mark.parametrize(
    "statement", ["DROP TABLE {ns}.t", "DROP FOREIGN TABLE {ns}.t", "DROP TABLE IF EXISTS {ns}.t CASCADE"]
)
def test_drop(db: Session, ns: str, statement: str) -> None:
    make(db, ns, "t")
    db(statement.format(ns=ns))
    assert [n for n in db.notices if "was dropped" in n and f'"{ns}"."t"' in n]
    assert not db.exists(f"{ns}.t")
    assert not there(db, ns, "t")
    db(f"CREATE TABLE {ns}.t (id bigint, other int) USING kalamdb")
    assert db(f"SELECT * FROM {ns}.t") == []


def test_mixed_list(db: Session, ns: str) -> None:
    make(db, ns, "t", "u")
    db(f"CREATE TABLE {ns}.h (a int); CREATE TABLE {ns}.p (id bigint, a text) PARTITION BY LIST (id)")
    db(f"CREATE TABLE {ns}.part (id bigint, a text) USING kalamdb WITH (system_columns = false)")
    db(f"ALTER TABLE {ns}.p ATTACH PARTITION {ns}.part FOR VALUES IN (1)")
    db(f"DROP TABLE IF EXISTS {ns}.h, {ns}.t, {ns}.absent, {ns}.p, {ns}.part, {ns}.u")
    assert 'table "absent" does not exist, skipping' in db.notices
    assert [db.exists(f"{ns}.{n}") for n in ("h", "t", "u", "p", "part")] == [False] * 5
    assert [there(db, ns, n) for n in ("t", "u", "part")] == [False] * 3


def test_mixed_list_that_fails_drops_nothing(db: Session, ns: str) -> None:
    make(db, ns, "t")
    db.fails(f"DROP TABLE {ns}.t, {ns}.absent", "42P01", "absent")
    assert db.exists(f"{ns}.t")
    assert there(db, ns, "t")
    assert db(f"SELECT a FROM {ns}.t") == [("t",)]


def test_dependent_objects_hold_a_table(db: Session, ns: str) -> None:
    make(db, ns, "t")
    db(f"CREATE VIEW {ns}.v AS SELECT id FROM {ns}.t")
    db.fails(f"DROP TABLE {ns}.t", "2BP01", "v")
    assert there(db, ns, "t")
    db(f"DROP TABLE {ns}.t CASCADE")
    assert not there(db, ns, "t")


def test_partition_goes_with_its_parent(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.p (id bigint) PARTITION BY LIST (id)")
    db(f"CREATE TABLE {ns}.part (id bigint) USING kalamdb WITH (system_columns = false)")
    db(f"ALTER TABLE {ns}.p ATTACH PARTITION {ns}.part FOR VALUES IN (1)")
    db(f"DROP TABLE {ns}.p")
    assert not there(db, ns, "part")


def test_drop_schema_cascade(db: Session, ns: str) -> None:
    db(f"CREATE SCHEMA {ns}_s")
    make(db, f"{ns}_s", "t", "u")
    db.fails(f"DROP SCHEMA {ns}_s", "2BP01")
    assert there(db, f"{ns}_s", "t")
    db(f"DROP SCHEMA {ns}_s CASCADE")
    assert [there(db, f"{ns}_s", n) for n in "tu"] == [False, False]


def test_drop_owned(db: Session, ns: str) -> None:
    db(f"CREATE ROLE {ns}_role; GRANT CREATE, USAGE ON SCHEMA {ns} TO {ns}_role")
    db(f"GRANT USAGE ON FOREIGN SERVER kalam_server TO {ns}_role")
    db(f"SET ROLE {ns}_role; CREATE TABLE {ns}.t (id bigint) USING kalamdb; RESET ROLE")
    db(f"DROP OWNED BY {ns}_role")
    assert not there(db, ns, "t")
    db(f"DROP ROLE {ns}_role")


def test_dropping_a_column_by_cascade_with_its_table(db: Session, ns: str) -> None:
    db(f"CREATE SCHEMA {ns}_s; CREATE TYPE {ns}_s.mood AS ENUM ('fine')")
    db(f"CREATE TABLE {ns}_s.t (id bigint, m {ns}_s.mood) USING kalamdb")
    db(f"DROP SCHEMA {ns}_s CASCADE")
    assert not there(db, f"{ns}_s", "t")


@pytest.mark.parametrize("what", ["SERVER {ns}_srv", "EXTENSION pg_kalam"])
def test_dropping_the_server_detaches(db: Session, second: Session, ns: str, what: str) -> None:
    """In a database of its own, since the extension goes."""
    second(f"CREATE SERVER {ns}_srv FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{port(db)}')")
    copy_secrets(db, second, f"{ns}_srv")
    second(f"CREATE SCHEMA {ns}; CREATE TABLE {ns}.t (id bigint) USING kalamdb WITH (server = '{ns}_srv')")
    second(f"INSERT INTO {ns}.t VALUES (1)")
    second.notices.clear()
    second(f"DROP {what.format(ns=ns)} CASCADE")
    assert [n for n in second.notices if "detached" in n]
    assert db.remote(f'SELECT id FROM "{ns}"."t"') == [{"id": 1}]
    db.remote(f'DROP TABLE "{ns}"."t"')


def port(db: Session) -> str:
    return server_options(db)["port"]


def server_options(db: Session) -> dict[str, str]:
    rows = db("SELECT (pg_options_to_table(srvoptions)).* FROM pg_foreign_server WHERE srvname = 'kalam_server'")
    return dict(rows)


def copy_secrets(db: Session, second: Session, server: str) -> None:
    """The first database's way in, for another server object."""
    rows = db("SELECT (pg_options_to_table(umoptions)).* FROM pg_user_mappings WHERE srvname = 'kalam_server'")
    given = ", ".join(f"{name} '{value}'" for name, value in rows)
    auth = server_options(db)
    if "auth_mode" in auth:
        second(f"ALTER SERVER {server} OPTIONS (ADD auth_mode '{auth['auth_mode']}')")
    if given:
        second(f"CREATE USER MAPPING FOR PUBLIC SERVER {server} OPTIONS ({given})")


@pytest.fixture
def attached(db: Session, second: Session, ns: str) -> Session:
    """A second database of the same PostgreSQL, attached to t of the first."""
    make(db, ns, "t")
    second(f"CREATE SCHEMA {ns}; CREATE FOREIGN TABLE {ns}.t (id bigint, a text) SERVER kalam_server")
    second.notices.clear()
    return second


def test_drop_of_an_attached_table_detaches(db: Session, attached: Session, ns: str) -> None:
    assert attached(f"SELECT * FROM {ns}.t") == [(1, "t")]
    attached(f"DROP TABLE {ns}.t")
    assert [n for n in attached.notices if "detached" in n]
    assert db(f"SELECT id, a FROM {ns}.t") == [(1, "t")]


def test_ddl_of_an_attached_table_is_local(db: Session, attached: Session, ns: str) -> None:
    attached(f"ALTER TABLE {ns}.t DROP COLUMN a; ALTER TABLE {ns}.t ALTER COLUMN id SET DEFAULT 5")
    assert attached(f"SELECT * FROM {ns}.t") == [(1,)]
    assert db(f"SELECT id, a FROM {ns}.t") == [(1, "t")]


def test_owner_option_cannot_be_claimed(db: Session, second: Session, ns: str) -> None:
    make(db, ns, "t")
    owner = db.facts(f'"{ns}"."t"')["owner"]
    second(f"CREATE SCHEMA {ns}")
    second.fails(
        f"CREATE FOREIGN TABLE {ns}.t (id bigint) SERVER kalam_server OPTIONS (owner '{owner}')", "HV00D", "owner"
    )


def test_table_that_went_on_the_server(db: Session, ns: str) -> None:
    make(db, ns, "t")
    db.remote(f'DROP TABLE "{ns}"."t"')
    db(f"DROP TABLE {ns}.t")
    assert not db.exists(f"{ns}.t")


def test_undrop(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (a int, b text, PRIMARY KEY (b, a)) USING kalamdb; INSERT INTO {ns}.t VALUES (1, 'x')")
    db(f"SELECT kalam_flush('{ns}.t'); INSERT INTO {ns}.t VALUES (2, 'y')")
    db(f"DROP TABLE {ns}.t")
    assert [row["table"] for row in db.remote(f"SHOW DROPPED TABLES IN {ns}")] == ["t"]
    db.remote(f'UNDROP TABLE "{ns}"."t"')
    db(f"IMPORT FOREIGN SCHEMA {ns} FROM SERVER kalam_server INTO {ns}")
    assert db(f"SELECT a, b FROM {ns}.t ORDER BY a") == [(1, "x"), (2, "y")]
    db(f"ALTER TABLE {ns}.t ADD COLUMN here int")
    assert "here" not in db.remote_columns(f'"{ns}"."t"')
    db(f"ALTER TABLE {ns}.t DROP COLUMN here; SELECT kalam_manage('{ns}.t')")
    db(f"ALTER TABLE {ns}.t ADD COLUMN c int DEFAULT 3")
    assert db(f"SELECT sum(c) FROM {ns}.t") == [(6,)]
    db(f"DROP TABLE {ns}.t")
    assert db.facts(f'"{ns}"."t"') == {}
