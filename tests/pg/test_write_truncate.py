"""TRUNCATE: whose rows go, and that it is a part of its transaction like any other statement."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .pair import Pair, Side

pytestmark = pytest.mark.pg


@pytest.fixture(params=["shared", "user"])
def pair(dsn: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(dsn, request.param)
    pair.setup("CREATE TABLE a (id int PRIMARY KEY, t text) {using}; CREATE TABLE b (id int PRIMARY KEY) {using}")
    pair.setup("CREATE TABLE local (id int)")
    pair.setup("INSERT INTO a SELECT g, 'x' FROM generate_series(1, 300) g; INSERT INTO b VALUES (1), (2)")
    pair.setup("INSERT INTO local VALUES (1)")
    yield pair
    pair.close()


@pytest.mark.parametrize(
    "sql",
    [
        "TRUNCATE a",
        "TRUNCATE TABLE a, b, local",
        "TRUNCATE ONLY a RESTART IDENTITY",
        "TRUNCATE b CONTINUE IDENTITY CASCADE",
        "TRUNCATE a; INSERT INTO a VALUES (5, 'after')",
    ],
)
def test_forms(pair: Pair, sql: str) -> None:
    pair.both(sql)
    pair.both("INSERT INTO a VALUES (1001, 'again')")


def test_in_a_transaction(pair: Pair) -> None:
    pair.both("BEGIN")
    pair.both("INSERT INTO a VALUES (500, 'mine')")
    pair.both("SAVEPOINT s")
    pair.both("TRUNCATE a, b")
    pair.both("INSERT INTO a VALUES (1, 'new')")
    pair.both("ROLLBACK TO s")
    pair.both("TRUNCATE b")
    pair.both("COMMIT")
    pair.both("BEGIN")
    pair.both("TRUNCATE a")
    pair.both("ROLLBACK")
    pair.both("BEGIN READ ONLY")
    assert pair.both("TRUNCATE a").sqlstate == "25006"
    pair.both("ROLLBACK")


def test_triggers_fire(pair: Pair) -> None:
    if pair.heap.conn.info.server_version < 160000:
        pytest.skip("foreign tables have TRUNCATE triggers since PostgreSQL 16")
    pair.setup(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN INSERT INTO local SELECT count(*) FROM a; RETURN NULL; END$$;"
        "CREATE TRIGGER n BEFORE TRUNCATE ON a EXECUTE FUNCTION note();"
        "CREATE TRIGGER m AFTER TRUNCATE ON a EXECUTE FUNCTION note()"
    )
    pair.both("TRUNCATE a")


def test_partitioned(pair: Pair) -> None:
    for side in (pair.heap, pair.kalam):
        side.conn.execute("CREATE TABLE whole (id int) PARTITION BY RANGE (id)")
        side.conn.execute("ALTER TABLE whole ATTACH PARTITION b FOR VALUES FROM (1) TO (10)")
    pair.both("TRUNCATE whole")


def tenant(side: Side, name: str) -> None:
    side.conn.execute(f"SET kalam.user_id = '{name}'")


def test_whose_rows(dsn: str) -> None:
    pair = Pair(dsn, "user", system_columns=True)
    side = pair.kalam
    side.conn.execute("CREATE TABLE a (id int PRIMARY KEY) " + side.using)
    for name in ("u1", "u2", "u3"):
        tenant(side, name)
        side.conn.execute("INSERT INTO a VALUES (1), (2)")
    side.conn.execute("TRUNCATE a")
    side.conn.execute("RESET kalam.user_id")
    assert side.run("TRUNCATE a").sqlstate == "42501"
    tenant(side, "*")
    assert side.run("SELECT DISTINCT _userid FROM a ORDER BY _userid").rows == [("u1",), ("u2",)]
    side.conn.execute("TRUNCATE a")
    assert side.run("SELECT count(*) FROM a").rows == [(0,)]
    pair.close()


def test_not_truncatable(pair: Pair) -> None:
    pair.kalam.conn.execute("ALTER FOREIGN TABLE a OPTIONS (ADD truncatable 'false')")
    outcome = pair.kalam.run("TRUNCATE a")
    assert (outcome.sqlstate, outcome.message) == ("55000", 'foreign table "a" does not allow truncates')
