"""Writing for tenants: the session's, a named one, many in one statement; streams; tables without a key."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from .pair import Pair, Side

pytestmark = pytest.mark.pg


@pytest.fixture
def side(dsn: str) -> Iterator[Side]:
    pair = Pair(dsn, "user", system_columns=True)
    pair.setup("CREATE TABLE notes (id int PRIMARY KEY, body text) {using}")
    yield pair.kalam
    pair.close()


def tenant(side: Side, name: str | None) -> None:
    side.conn.execute(f"SET kalam.user_id = '{name}'" if name else "RESET kalam.user_id")


ALL = "SELECT _userid, id, body FROM notes ORDER BY _userid, id"


def test_each_tenant_has_its_own_rows(side: Side) -> None:
    for name in ("alice", "bob"):
        tenant(side, name)
        assert side.run("INSERT INTO notes VALUES (1, %s)", [name]).count == 1
    assert side.run("UPDATE notes SET body = body || '!'").count == 1
    tenant(side, "alice")
    assert side.run("SELECT id, body, _userid FROM notes").rows == [(1, "alice", "alice")]
    assert side.run("DELETE FROM notes").count == 1
    tenant(side, "bob")
    assert side.run("SELECT id, body, _userid FROM notes").rows == [(1, "bob!", "bob")]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO notes VALUES (1, 'x')",
        "INSERT INTO notes VALUES (1, 'x'), (2, 'y')",
        "UPDATE notes SET body = 'x'",
        "DELETE FROM notes",
    ],
)
def test_no_tenant(side: Side, sql: str) -> None:
    tenant(side, None)
    assert side.run(sql).sqlstate == "42501"


def test_returning_shows_the_owner_and_no_version(side: Side) -> None:
    assert side.run("INSERT INTO notes VALUES (1, 'x') RETURNING _userid, _seq").rows == [("alice", None)]
    assert side.run("UPDATE notes SET body = 'y' RETURNING _userid, _seq, body").rows == [("alice", None, "y")]
    ((owner, seq),) = side.run("DELETE FROM notes RETURNING _userid, _seq").rows or []
    assert owner == "alice"
    assert seq > 0


def test_one_statement_for_many_tenants(side: Side) -> None:
    tenant(side, "*")
    count = side.run(
        "INSERT INTO notes (id, body, _userid) SELECT g / 3, 'for ' || g, 'user' || g % 3 FROM generate_series(0, 8) g"
    ).count
    assert count == 9
    assert side.run("UPDATE notes SET body = body || ' of ' || _userid WHERE id = 1").count == 3
    assert side.run("DELETE FROM notes WHERE _userid = 'user2' RETURNING id").count == 3
    assert side.run(ALL).rows == [
        ("user0", 0, "for 0"),
        ("user0", 1, "for 3 of user0"),
        ("user0", 2, "for 6"),
        ("user1", 0, "for 1"),
        ("user1", 1, "for 4 of user1"),
        ("user1", 2, "for 7"),
    ]
    tenant(side, "user1")
    assert side.run("SELECT count(*) FROM notes").rows == [(3,)]


def test_named_and_unnamed_owners_in_one_statement(side: Side) -> None:
    assert side.run(
        "INSERT INTO notes (id, body, _userid) VALUES (1, 'a', NULL), (2, 'b', 'bob'), (3, 'c', NULL)"
        " RETURNING id, _userid"
    ).rows == [(1, "alice"), (2, "bob"), (3, "alice")]
    tenant(side, "*")
    assert side.run(ALL).rows == [("alice", 1, "a"), ("alice", 3, "c"), ("bob", 2, "b")]


def test_copy_names_owners(side: Side) -> None:
    tenant(side, "*")
    assert side.copy("COPY notes (_userid, id, body) FROM STDIN", [("u1", 1, "a"), ("u2", 1, "b")]).sqlstate is None
    assert side.run(ALL).rows == [("u1", 1, "a"), ("u2", 1, "b")]


def test_all_tenants_need_a_named_owner(side: Side) -> None:
    tenant(side, "*")
    assert side.run("INSERT INTO notes VALUES (1, 'whose?')").sqlstate is not None
    assert side.run("SELECT count(*) FROM notes").rows == [(0,)]


def test_duplicate_is_per_tenant(side: Side) -> None:
    tenant(side, "*")
    insert = "INSERT INTO notes (id, body, _userid) VALUES (1, 'x', %s), (1, 'y', %s)"
    assert side.run(insert, ["a", "b"]).count == 2
    assert side.run(insert, ["c", "c"]).sqlstate == "23505"


def test_owner_cannot_be_updated(side: Side) -> None:
    side.run("INSERT INTO notes VALUES (1, 'x')")
    assert side.run("UPDATE notes SET _userid = 'bob'").sqlstate == "0A000"
    side.conn.execute(
        f"CREATE FUNCTION {side.schema}.steal() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN NEW._userid = 'bob'; RETURN NEW; END$$;"
        f"CREATE TRIGGER s BEFORE UPDATE ON notes FOR EACH ROW EXECUTE FUNCTION {side.schema}.steal()"
    )
    assert side.run("UPDATE notes SET body = 'y'").sqlstate == "0A000"
    assert side.run("SELECT body, _userid FROM notes").rows == [("x", "alice")]


def test_tenant_is_that_of_the_statement(side: Side) -> None:
    side.conn.execute("BEGIN")
    side.conn.execute("INSERT INTO notes VALUES (1, 'a')")
    side.conn.execute("SET LOCAL kalam.user_id = 'bob'")
    side.conn.execute("INSERT INTO notes VALUES (1, 'b')")
    side.conn.execute("COMMIT")
    tenant(side, "*")
    assert side.run(ALL).rows == [("alice", 1, "a"), ("bob", 1, "b")]


@pytest.fixture
def stream(dsn: str) -> Iterator[Side]:
    pair = Pair(dsn, "stream', ttl_seconds = '600", system_columns=True)
    pair.setup("CREATE TABLE events (id int PRIMARY KEY, body text) {using}")
    yield pair.kalam
    pair.close()


def test_stream(stream: Side) -> None:
    assert stream.run("INSERT INTO events SELECT g, 'e' || g FROM generate_series(1, 5) g").count == 5
    assert stream.run("UPDATE events SET body = 'x'").sqlstate == "0A000"
    assert stream.run("DELETE FROM events WHERE id > 3").count == 2
    assert stream.run("SELECT id FROM events ORDER BY id").rows == [(1,), (2,), (3,)]


def test_table_without_the_key_is_not_changed(side: Side) -> None:
    name = f"nokey_{uuid4().hex[:8]}"
    side.conn.execute(
        f"CREATE FOREIGN TABLE {name} (body text) SERVER kalam_server"  # without the remote key's column
        f" OPTIONS (namespace '{side.schema}', \"table\" 'notes')"
    )
    assert side.run("INSERT INTO notes VALUES (1, 'a'), (2, 'b')").count == 2
    assert side.run(f"SELECT body FROM {name} ORDER BY body").rows == [("a",), ("b",)]
    for sql in (f"UPDATE {name} SET body = 'x'", f"DELETE FROM {name}"):
        outcome = side.run(sql)
        assert outcome.sqlstate == "0A000"
        assert "key" in str(outcome.message)
    assert side.run("SELECT id, body FROM notes ORDER BY id").rows == [(1, "a"), (2, "b")]


def test_table_that_is_not_updatable(side: Side) -> None:
    side.conn.execute("ALTER FOREIGN TABLE notes OPTIONS (ADD updatable 'false')")
    for sql in ("INSERT INTO notes VALUES (1, 'a')", "UPDATE notes SET body = 'x'", "DELETE FROM notes"):
        assert side.run(sql).sqlstate == "55000"


def test_partitions(dsn: str) -> None:
    pair = Pair(dsn, "shared", system_columns=True)
    try:
        pair.setup("CREATE TABLE base (id int PRIMARY KEY, n int, t text) {using}")
        for side in (pair.heap, pair.kalam):
            side.conn.execute("CREATE TABLE whole (id int, n int, t text) PARTITION BY RANGE (n)")
            side.conn.execute("CREATE TABLE low PARTITION OF whole FOR VALUES FROM (0) TO (10)")
        pair.heap.conn.execute("ALTER TABLE whole ATTACH PARTITION base FOR VALUES FROM (10) TO (20)")
        pair.kalam.conn.execute(
            "CREATE FOREIGN TABLE high (id int OPTIONS (key '1') NOT NULL, n int, t text) SERVER kalam_server"
            f" OPTIONS (namespace '{pair.kalam.schema}', \"table\" 'base');"
            "ALTER TABLE whole ATTACH PARTITION high FOR VALUES FROM (10) TO (20)"
        )

        def run(sql: str) -> None:
            assert pair.kalam.run(sql) == pair.heap.run(sql), sql
            rows = "SELECT id, n, t FROM whole ORDER BY id"
            assert pair.kalam.run(rows) == pair.heap.run(rows), sql

        run("INSERT INTO whole SELECT g, g, 'r' || g FROM generate_series(0, 19) g")
        run("INSERT INTO whole VALUES (30, 15, 'x') RETURNING *")
        run("UPDATE whole SET t = t || '!' WHERE n % 2 = 0")
        run("UPDATE whole SET id = id + 100 WHERE n = 12")
        run("DELETE FROM whole WHERE n IN (3, 13)")
        for side, table in ((pair.heap, "base"), (pair.kalam, "high")):
            assert side.run(f"INSERT INTO {table} VALUES (50, 5, 'misplaced')").sqlstate == "23514"
            assert side.run(f"UPDATE {table} SET n = 5 WHERE n = 11").sqlstate == "23514"
        assert pair.kalam.run("UPDATE whole SET n = 5 WHERE n = 11").sqlstate == "0A000"
        # into a partition that the same command updates: the row must not be found there again
        run("UPDATE whole SET n = n % 4 + 11, t = t || '+' WHERE n IN (6, 7, 14, 17)")
        copied = [(200 + n, n, "copied") for n in range(20)]
        for side in (pair.heap, pair.kalam):
            assert side.copy("COPY whole FROM STDIN", copied).count == 20
        run("SELECT count(*) FROM whole")
    finally:
        pair.close()
