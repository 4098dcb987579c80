"""A table altered on the server by somebody else: HV005, what differs, what mends it; and who manages a table."""

from __future__ import annotations

import pytest

from .ddl import Session

pytestmark = pytest.mark.pg


@pytest.fixture
def t(db: Session, ns: str) -> Session:
    db(f"SET search_path = {ns}, public")
    db("CREATE TABLE t (id bigint PRIMARY KEY, a smallint, b text, c text DEFAULT 'x') USING kalamdb "
       "WITH (flush_policy = 'rows:5')")
    db("INSERT INTO t VALUES (1, 10, 'x')")
    return db


def drift(db: Session) -> list[tuple[str, ...]]:
    return db("SELECT object, problem, here, there, mend FROM kalam_drift('t')")


def test_no_drift(t: Session) -> None:
    assert drift(t) == []
    t("ALTER TABLE t ADD n numeric(8,2) NOT NULL DEFAULT 1, ADD v varchar(7), ADD at timestamp(3) with time zone, "
      "ADD i int[], ADD j jsonb DEFAULT '{}', ADD u uuid DEFAULT gen_random_uuid()")
    assert drift(t) == []


def test_drift_is_told_and_mended(t: Session, ns: str) -> None:
    t.remote(f'ALTER TABLE "{ns}"."t" DROP COLUMN b, ALTER a TYPE bigint, ALTER a SET NOT NULL, '
             f"ADD \"New Col\" numeric(5,1) DEFAULT 2.5, ALTER c SET DEFAULT 'y', SET (flush_policy = 'rows:6')")
    error = t.fails("SELECT b FROM t", "HV005", "kalam_drift")
    assert '"b"' in str(error)
    t("UPDATE t SET a = 11")
    found = drift(t)
    assert [(row[0], row[1]) for row in found] == [
        ("column a", "has another type"), ("column a", "is NOT NULL on one side"), ("column b", "is not on the server"),
        ("column c", "has another default"), ('column "New Col"', "is not here"),
        ("option flush_policy", "has another value"),
    ]
    for row in found:
        t(row[4])
    assert drift(t) == []
    assert t("SELECT id, a, c, \"New Col\"::text FROM t") == [(1, 11, "x", "2.5")]
    assert list(t.remote_columns(f'"{ns}"."t"')) == ["id", "a", "c", "New Col", "_seq"]


def test_a_column_of_another_type_is_not_adopted(t: Session, ns: str) -> None:
    t.remote(f'ALTER TABLE "{ns}"."t" ADD z text')
    t.fails("ALTER TABLE t ADD z int", "42701")
    assert "z" not in t.local_columns("t")


def test_the_remote_table_is_gone(t: Session, ns: str) -> None:
    t.remote(f'DROP TABLE "{ns}"."t"')
    assert [row[:2] for row in drift(t)] == [("table", "is not on the server")]
    t("SELECT kalam_manage('t')")
    assert "was created" in t.notices[-1]
    assert drift(t) == []
    t("INSERT INTO t VALUES (2, 20, 'y')")
    assert t("SELECT id, c FROM t") == [(2, "x")]


def test_who_may_look(t: Session, ns: str) -> None:
    t("CREATE TABLE heap (id int)")
    t.fails("SELECT * FROM kalam_drift('heap')", "42809")
    t.fails("SELECT kalam_manage('heap')", "42809")
    t(f"CREATE ROLE {ns}_r; GRANT USAGE ON SCHEMA {ns} TO {ns}_r; SET ROLE {ns}_r")
    try:
        t.fails("SELECT * FROM kalam_drift('t')", "42501")
        t.fails("SELECT kalam_manage('t')", "42501")
    finally:
        t(f"RESET ROLE; DROP OWNED BY {ns}_r; DROP ROLE {ns}_r")


def test_manage_takes_ownership(t: Session, second: Session, ns: str) -> None:
    second(f"CREATE SCHEMA {ns}; SET search_path = {ns}, public")
    second("CREATE FOREIGN TABLE t (id bigint NOT NULL, a smallint, b text) SERVER kalam_server")
    second.fails("SELECT kalam_manage('t')", "HV005", "ADD COLUMN c")
    for (mend,) in second("SELECT mend FROM kalam_drift('t')"):
        second(mend)
    second("ALTER TABLE t ADD COLUMN c text DEFAULT 'x'")
    second("SELECT kalam_manage('t')")
    assert "manages remote table" in second.notices[-1]
    second("SELECT kalam_manage('t')")
    second("ALTER TABLE t ADD COLUMN z int DEFAULT 4")
    assert "z" in t.remote_columns(f'"{ns}"."t"')
    t("ALTER TABLE t ADD COLUMN y int")
    assert "y" not in t.remote_columns(f'"{ns}"."t"')
    t("DROP TABLE t")
    assert t.facts(f'"{ns}"."t"')
    second("DROP TABLE t")
    assert t.facts(f'"{ns}"."t"') == {}
