"""The read-only namespace `system`: what it shows, to whom, and what it refuses."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from kalamdb.api import Account, Role
from kalamdb.sql import activity, system
from support.ports import wait_until
from support.server import KalamServer

NAMES = {"tables", "columns", "namespaces", "users", "sessions", "transactions", "locks", "settings", "jobs",
         "segments", "storages"}
SECRET = "a secret that nobody may see anywhere, ever"


@pytest.fixture(scope="module")
def server() -> Iterator[KalamServer]:
    server = KalamServer(auth__mode="trust", auth__jwt_key=SECRET, storages__cold__type="s3",
                         storages__cold__bucket="history", storages__cold__access_key_id=SECRET,
                         storages__cold__secret_access_key=SECRET)
    try:
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            for statement in (
                "CREATE NAMESPACE app", "CREATE USER alice WITH PASSWORD 'long enough' ROLE user",
                "CREATE USER bob WITH PASSWORD 'long enough' ROLE user",
                "CREATE USER robot WITH PASSWORD 'long enough' ROLE service",
                "CREATE SHARED TABLE app.open (id bigint PRIMARY KEY, n numeric(10,2) NOT NULL DEFAULT 5) "
                "WITH (access_level = 'public')",
                "CREATE SHARED TABLE app.closed (id bigint PRIMARY KEY)",
                "CREATE USER TABLE app.mine (a text, b numeric, c boolean, PRIMARY KEY (b, a, c))",
                "INSERT INTO app.open (id) VALUES (1), (2)",
            ):
                conn.execute(statement)
        yield server
    finally:
        server.close()


def connect(server: KalamServer, user: str = "kalam", **more: str) -> psycopg.Connection:
    return psycopg.connect(server.dsn(user, **more), autocommit=True)


@pytest.fixture
def conn(server: KalamServer) -> Iterator[psycopg.Connection]:
    with connect(server) as connection:
        yield connection


def rows(conn: psycopg.Connection, query: str, params: Any = None) -> list[tuple[Any, ...]]:
    return conn.execute(query, params).fetchall()


def pid(conn: psycopg.Connection) -> int:
    return conn.info.backend_pid


# ---------- what there is ----------
def test_tables_of_the_namespace(conn: psycopg.Connection) -> None:
    assert {row[1] for row in rows(conn, "SHOW TABLES IN system")} == NAMES
    assert not {row[0] for row in rows(conn, "SHOW TABLES")} & {"system"}
    assert ("system",) in rows(conn, "SELECT name FROM system.namespaces")


@pytest.mark.parametrize("name", sorted(NAMES))
def test_columns_are_the_same_everywhere(conn: psycopg.Connection, name: str) -> None:
    """DESCRIBE, system.columns and the query itself agree; so an import makes what a query gives."""
    described = rows(conn, f"DESCRIBE system.{name}")
    listed = rows(conn, 'SELECT name, type FROM system.columns WHERE namespace = %s AND "table" = %s ORDER BY position',
                  ("system", name))
    assert [(row[0], row[1]) for row in described] == listed
    assert not any(row[5] for row in described)
    found = conn.execute(f"SELECT * FROM system.{name}")
    assert found.description is not None
    shown = [(column.name, column.type_display) for column in found.description]
    assert [(row[0], row[1].replace("timestamp with time zone", "timestamptz").replace("boolean", "bool")) for row in
            described] == [(name, kind.replace("int8", "bigint").replace("int4", "integer")
                            .replace("float8", "double precision")) for name, kind in shown]
    assert dict(rows(conn, f"SHOW TABLE system.{name}")) == {
        "type": "shared", "access_level": "public", "updatable": "false"}


def test_catalog(conn: psycopg.Connection) -> None:
    assert rows(conn, 'SELECT "table", type, key, columns, access_level FROM system.tables '
                      "WHERE namespace = 'app' ORDER BY 1") == [
        ("closed", "shared", "id", 1, "private"), ("mine", "user", "b, a, c", 3, None),
        ("open", "shared", "id", 2, "public")]
    assert rows(conn, 'SELECT name, type, not_null, "default", key FROM system.columns '
                      "WHERE namespace = 'app' AND \"table\" = 'open' ORDER BY position") == [
        ("id", "bigint", True, None, 1), ("n", "numeric(10,2)", True, "5", None)]


def test_own_definitions_are_seen_before_the_commit(conn: psycopg.Connection, server: KalamServer) -> None:
    query = "SELECT count(*) FROM system.tables WHERE \"table\" = 'coming'"
    conn.execute("BEGIN")
    conn.execute("CREATE SHARED TABLE app.coming (id bigint)")
    assert rows(conn, query) == [(1,)]
    with connect(server) as other:
        assert rows(other, query) == [(0,)]
    conn.execute("ROLLBACK")
    assert rows(conn, query) == [(0,)]


def test_users_without_their_hashes(conn: psycopg.Connection) -> None:
    assert rows(conn, "SHOW USERS") == [
        ("alice", "user", True, False), ("bob", "user", True, False), ("robot", "service", True, False)]


def test_settings_mask_secrets(conn: psycopg.Connection) -> None:
    found = {row[0]: row[1] for row in rows(conn, "SELECT * FROM system.settings")}
    assert found["auth.jwt_key"] == found["storages.cold.secret_access_key"] == "********"
    assert found["storages.cold.bucket"] == "history"
    assert found["auth.shared_secret"] is None
    assert (found["lock_timeout"], found["auth.mode"], found["duckdb.threads"]) == ("60000", "trust", "0")
    assert SECRET not in str(rows(conn, "SELECT * FROM system.settings"))


def test_storages(conn: psycopg.Connection) -> None:
    assert rows(conn, "SELECT id, kind FROM system.storages ORDER BY id") == [("cold", "s3"), ("local", "local")]
    assert SECRET not in str(rows(conn, "SELECT * FROM system.storages"))


# ---------- what goes on ----------
def test_sessions(server: KalamServer, conn: psycopg.Connection) -> None:
    state = ("SELECT state, account, role, application_name, tenant, transaction IS NOT NULL FROM system.sessions "
             "WHERE id = %s")
    with connect(server, "alice", application_name="shop") as other:
        assert rows(conn, state, (pid(other),)) == [("idle", "alice", "user", "shop", None, False)]
        other.execute("BEGIN")
        other.execute("SELECT 1")
        assert rows(conn, state, (pid(other),)) == [("idle in transaction", "alice", "user", "shop", "alice", True)]
        with pytest.raises(psycopg.Error):
            other.execute("SELECT * FROM nowhere")
        assert rows(conn, state, (pid(other),))[0][0] == "idle in transaction (aborted)"
        number = pid(other)
    wait_until(lambda: not rows(conn, state, (number,)), "the session's end")
    assert rows(conn, state, (pid(conn),))[0][0] == "active"
    assert rows(conn, "SELECT count(*) FROM system.sessions WHERE connected_at > statement_started_at "
                      "OR statement_started_at > now() OR peer <> '127.0.0.1'") == [(0,)]


def test_locks_and_transactions(server: KalamServer, conn: psycopg.Connection) -> None:
    locks = ("SELECT l.key, l.mode, l.granted, t.waiting FROM system.locks l JOIN system.transactions t "
             "ON t.id = l.transaction AND t.session = l.session WHERE l.\"table\" = 'open' AND l.session = %s "
             "ORDER BY l.key NULLS FIRST")
    with connect(server) as one, connect(server) as two:
        one.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        one.execute("UPDATE app.open SET n = 7 WHERE id = 1")
        one.execute("SAVEPOINT s")
        one.execute("SELECT * FROM app.open WHERE id = 2 FOR SHARE")
        assert rows(conn, locks, (pid(one),)) == [
            (None, "share", True, False), ("1", "exclusive", True, False), ("2", "share", True, False)]
        assert rows(conn, "SELECT isolation, read_only, status, rows_written, savepoint_level FROM system.transactions "
                          "WHERE session = %s", (pid(one),)) == [("repeatable read", False, "active", 1, 2)]
        waiter = threading.Thread(target=two.execute, args=("UPDATE app.open SET n = 8 WHERE id = 1",))
        waiter.start()
        wait_until(lambda: ("1", "exclusive", False, True) in rows(conn, locks, (pid(two),)), "a lock waited for")
        assert rows(conn, "SELECT state FROM system.sessions WHERE id = %s", (pid(two),)) == [("active",)]
        one.execute("ROLLBACK")
        waiter.join(20)
        assert rows(conn, "SELECT count(*) FROM system.locks WHERE session IN (%s, %s)", (pid(one), pid(two))) == [(0,)]
        assert rows(conn, "SELECT count(*) FROM system.transactions WHERE session <> %s", (pid(conn),)) == [(0,)]


def test_keys_are_shown_as_postgresql_writes_rows(server: KalamServer, conn: psycopg.Connection) -> None:
    with connect(server) as one:
        one.execute("SET kalam.user_id = 'carol'")
        one.execute("BEGIN")
        one.execute("INSERT INTO app.mine VALUES ('x', 1.50, true), ('a \"b\", c', -12.5, false), ('', 0, true), "
                    "('n', 'NaN', true), ('i', '-Infinity', false), ('big', 1e20, true), ('z\\y', 100, false)")
        found = rows(conn, "SELECT tenant, key FROM system.locks WHERE session = %s AND key IS NOT NULL", (pid(one),))
    assert {tenant for tenant, _ in found} == {"carol"}
    assert {key for _, key in found} == {
        "(1.5,x,t)", '(-12.5,"a ""b"", c",f)', '(0,"",t)', "(NaN,n,t)", "(-Infinity,i,f)",
        "(100000000000000000000,big,t)", '(100,"z\\\\y",f)'}


def test_locks_on_definitions(server: KalamServer, conn: psycopg.Connection) -> None:
    with connect(server) as one:
        one.execute("BEGIN")
        one.execute("CREATE SHARED TABLE app.fresh (id bigint)")
        one.execute("INSERT INTO app.fresh VALUES (1)")
        assert rows(conn, 'SELECT namespace, "table", key, mode FROM system.locks WHERE session = %s '
                          "ORDER BY key NULLS FIRST, mode, \"table\" NULLS FIRST", (pid(one),)) == [
            ("app", "fresh", None, "exclusive"), ("app", None, None, "share"), ("app", "fresh", None, "share"),
            ("app", "fresh", "1", "exclusive")]
        one.execute("ROLLBACK")  # else the connection's end commits, and other tests find the table


# ---------- as any table in SELECT ----------
def test_conditions_aggregates_and_ctes(conn: psycopg.Connection) -> None:
    assert rows(conn, 'SELECT count(*), min("table"), bool_and(id < 0) FROM system.tables '
                      "WHERE namespace = 'system'") == [(len(NAMES), "columns", True)]
    assert rows(conn, "WITH t AS (SELECT * FROM system.tables WHERE namespace = %s) "
                      "SELECT t.\"table\", count(*) FROM t "
                      "JOIN system.columns c USING (namespace, \"table\") LEFT JOIN app.open o ON o.id = c.position "
                      "GROUP BY 1 HAVING count(*) > 1 ORDER BY 1", ("app",)) == [("mine", 3), ("open", 2)]
    assert rows(conn, "SELECT \"table\" FROM system.tables WHERE \"table\" IN ('locks', 'jobs') OR id IS NULL "
                      "ORDER BY 1 DESC LIMIT 1") == [("locks",)]
    assert rows(conn, "SELECT name FROM system.namespaces WHERE name = %s LIMIT 0", ("app",)) == []
    assert rows(conn, "SELECT name FROM system.namespaces WHERE name = %s", (None,)) == []


def test_names_are_found_by_the_search_path(server: KalamServer, conn: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        conn.execute("SELECT * FROM locks")
    with connect(server, options="-c search_path=app,system") as other:
        assert rows(other, "SELECT count(*) FROM locks WHERE session <> %s", (pid(other),)) == [(0,)]


# ---------- who sees what ----------
def test_a_user_sees_its_own(server: KalamServer) -> None:
    with connect(server, "alice") as alice, connect(server, "alice") as again, connect(server, "bob") as bob:
        for each in (again, bob):
            each.execute("BEGIN")
            each.execute("INSERT INTO app.mine VALUES ('x', 1, true)")
        assert {row[0] for row in rows(alice, "SELECT id FROM system.sessions")} == {pid(alice), pid(again)}
        assert {row[0] for row in rows(alice, "SELECT session FROM system.transactions")} == {pid(again)}
        assert {row[0] for row in rows(alice, "SELECT session FROM system.locks")} == {pid(again)}
        assert rows(alice, "SELECT name FROM system.users") == [("alice",)]
        assert rows(alice, "SELECT \"table\" FROM system.tables WHERE namespace = 'app' ORDER BY 1") == [
            ("mine",), ("open",)]
        assert rows(alice, "SELECT count(*) FROM system.columns WHERE \"table\" = 'closed'") == [(0,)]
        for name in ("settings", "jobs", "segments", "storages"):
            assert rows(alice, f"SELECT * FROM system.{name}") == []


def test_a_service_sees_all_and_acting_for_a_user_changes_nothing(server: KalamServer) -> None:
    with connect(server, "robot") as robot, connect(server, "bob") as bob:
        bob.execute("BEGIN")
        bob.execute("INSERT INTO app.mine VALUES ('x', 2, true)")
        query = f"SELECT account FROM system.sessions WHERE id = {pid(bob)}"
        assert rows(robot, query) == [("bob",)]
        assert rows(robot, f"EXECUTE AS USER 'alice' ({query})") == [("bob",)]
        assert rows(robot, "SELECT count(*) FROM system.locks WHERE session = %s", (pid(bob),)) == [(2,)]


# ---------- what the engine lists ----------
@dataclass
class Job:
    id: int = 1
    kind: str = "flush"
    namespace: str = "app"
    table: str = "t"
    status: str = "running"
    progress: float = 0.25
    rows: int = 1000
    detail: str | None = None
    started_at: datetime | int = datetime(2000, 1, 2, tzinfo=UTC)
    ended_at: datetime | None = None
    secret: str = "not a column"


def run_for(role: Role, **methods: Any) -> Any:
    """As much of a Run as a provider looks at."""
    return SimpleNamespace(engine=SimpleNamespace(**methods), account=Account("x", role))


def test_jobs_become_rows() -> None:
    jobs = [Job(), Job(2, status="done", started_at=5)]
    found = list(activity.rows(run_for(Role.SERVICE, jobs=lambda: jobs), system.TABLES["jobs"]))
    assert found == [(1, "flush", "app", "t", "running", 0.25, 1000, None, 86_400_000_000, None, None, None),
                     (2, "flush", "app", "t", "done", 0.25, 1000, None, 5, None, None, None)]


def test_jobs_of_an_engine_without_any_or_for_a_user() -> None:
    assert list(activity.rows(run_for(Role.SERVICE), system.TABLES["segments"])) == []
    assert list(activity.rows(run_for(Role.USER, jobs=lambda: [Job()]), system.TABLES["jobs"])) == []


def test_a_look_at_many_locks_can_be_cancelled_and_holds_nobody_up(
    server: KalamServer, conn: psycopg.Connection
) -> None:
    with connect(server) as writer, connect(server) as looker:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO app.closed SELECT i FROM generate_series(1, 99000) i")
        written = "SELECT rows_written FROM system.transactions WHERE session = %s"
        assert rows(conn, written, (pid(writer),)) == [(99000,)]
        looker.execute("SET statement_timeout = '1ms'")
        for query in ("SELECT * FROM system.locks WHERE key = 'none'", "SELECT count(*) FROM system.locks"):
            with pytest.raises(psycopg.errors.QueryCanceled):
                looker.execute(query)
        assert rows(conn, "SELECT key FROM system.locks WHERE session = %s AND key = '77777'", (pid(writer),)) == [
            ("77777",)]
        assert len(rows(conn, "SELECT key FROM system.locks LIMIT 3")) == 3


# ---------- what it refuses ----------
@pytest.mark.parametrize(("statement", "sqlstate", "words"), [
    ("INSERT INTO system.namespaces VALUES ('x')", "42501", 'permission denied: "namespaces" is a system catalog'),
    ("UPDATE system.users SET role = 'dba'", "42501", 'permission denied: "users" is a system catalog'),
    ("DELETE FROM system.locks", "42501", 'permission denied: "locks" is a system catalog'),
    ("DROP TABLE system.locks", "42501", 'permission denied: "locks" is a system catalog'),
    ("DROP TABLE IF EXISTS system.locks", "42501", 'permission denied: "locks" is a system catalog'),
    ("CREATE SHARED TABLE system.mine (id bigint)", "42501", 'permission denied to create "system.mine"'),
    ("CREATE TABLE IF NOT EXISTS system.locks (id bigint)", "42501", 'permission denied to create "system.locks"'),
    ("CREATE NAMESPACE system", "42939", 'namespace name "system" is reserved'),
    ("CREATE NAMESPACE IF NOT EXISTS system", "42939", 'namespace name "system" is reserved'),
    ("SELECT * FROM system.locks FOR UPDATE", "42809", 'cannot lock rows in system table "locks"'),
    ("SELECT * FROM system.nothing", "42P01", 'relation "system.nothing" does not exist'),
    ("SELECT nothing FROM system.locks", "42703", 'column "nothing" does not exist'),
    ("DESCRIBE system.nothing", "42P01", 'relation "system.nothing" does not exist'),
    ("SHOW TABLE system.nothing", "42P01", 'relation "system.nothing" does not exist'),
])
def test_refused(conn: psycopg.Connection, statement: str, sqlstate: str, words: str) -> None:
    with pytest.raises(psycopg.Error) as raised:
        conn.execute(statement)
    assert (raised.value.sqlstate, raised.value.diag.message_primary) == (sqlstate, words)


def test_a_show_that_may_find_nothing(conn: psycopg.Connection) -> None:
    assert rows(conn, "SHOW TABLE IF EXISTS system.nothing") == []


def test_writing_in_a_failed_attempt_leaves_no_lock(conn: psycopg.Connection) -> None:
    conn.execute("BEGIN")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("DELETE FROM system.sessions")
    conn.execute("ROLLBACK")
    assert rows(conn, "SELECT count(*) FROM system.locks WHERE session = %s", (pid(conn),)) == [(0,)]
