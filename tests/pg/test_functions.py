"""The SQL functions, and whose tenant, role and transaction they act for."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from kalamdb import __version__
from support.postgres import Postgres
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg


@pytest.fixture
def table(db: Session, ns: str) -> str:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, body text) USING kalamdb WITH (type = 'shared')")
    return f"{ns}.t"


@pytest.fixture
def role(db: Session, ns: str) -> Iterator[str]:
    name = f"{ns}_role"
    db(f"CREATE ROLE {name} LOGIN; GRANT USAGE, CREATE ON SCHEMA {ns} TO {name};"
       f"GRANT USAGE ON FOREIGN SERVER kalam_server TO {name}")
    yield name
    db("RESET ROLE")
    db(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


# ---------- metadata ----------
def test_metadata(db: Session) -> None:
    assert db.value("SELECT kalam_version()") == __version__
    assert db.value("SELECT kalam_compiled_mode()") == "remote"
    assert db.value("SELECT kalam_user_id_guc_name()") == "kalam.user_id"


def test_user_id(db: Session) -> None:
    assert db.value("SELECT kalam_user_id()") is None
    db("SET kalam.user_id = 'alice'")
    assert db.value("SELECT kalam_user_id()") == "alice"
    with db.conn.transaction():
        db("SET LOCAL kalam.user_id = 'bób ''x'")
        assert db.value("SELECT kalam_user_id()") == "bób 'x"
    assert db.value("SELECT kalam_user_id()") == "alice"
    db("SET kalam.user_id = ''")
    assert db.value("SELECT kalam_user_id()") is None


# ---------- snowflake_id ----------
def test_snowflake_ids_of_many_sessions(dsn: str) -> None:
    found: list[list[int]] = []

    def draw() -> None:
        with psycopg.connect(dsn) as conn:
            rows = conn.execute("SELECT snowflake_id() FROM generate_series(1, 10000)").fetchall()
            found.append([row[0] for row in rows])

    threads = [threading.Thread(target=draw) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    for ids in found:
        assert ids == sorted(ids)
    everything = [number for ids in found for number in ids]
    assert len(set(everything)) == 100_000
    assert all(0 < number < 2**63 for number in everything)
    assert len({number >> 12 & 1023 for number in everything}) == 1  # one node


def test_snowflake_id_tells_the_time_and_the_node(db: Session) -> None:
    sql = """SELECT abs(extract(epoch FROM now() - ('2020-01-01 UTC'::timestamptz
             + (snowflake_id() >> 22) * interval '1 ms'))) < 60"""
    assert db.value(sql) is True
    node = int(db.value("SELECT kalam_server_info()->>'node_id'"))
    assert db.value("SELECT (snowflake_id() >> 12) & 1023") == node
    db("SET kalam.node_id = 77")
    assert db.value("SELECT (snowflake_id() >> 12) & 1023") == 77


# ---------- the connection ----------
def test_ping_and_server_info(db: Session, server: KalamServer) -> None:
    assert timedelta(0) < db.value("SELECT kalam_ping()") < timedelta(seconds=30)
    info = db.value("SELECT kalam_server_info('kalam_server')")
    assert info["server"] == "kalam_server"
    assert info["address"] == f"127.0.0.1:{server.port}"
    assert info["extension"] == info["version"] == __version__
    assert info["capabilities"] > 50
    server.kill()
    db.fails("SELECT kalam_ping()", None)
    db.fails("SELECT kalam_ping()", "08001")
    db.fails("SELECT kalam_server_info()", "08001")
    server.start()
    assert db.value("SELECT kalam_ping()")


@pytest.mark.parametrize("call", ["kalam_ping({})", "kalam_server_info({})", "kalam_exec('SELECT 1', {})"])
def test_functions_want_a_server_one_may_use(db: Session, ns: str, role: str, call: str) -> None:
    db.fails(f"SELECT {call.format(chr(39) + 'nowhere' + chr(39))}", "42704", "nowhere", "CREATE SERVER")
    db(f"CREATE FOREIGN DATA WRAPPER {ns}_w; CREATE SERVER {ns}_x FOREIGN DATA WRAPPER {ns}_w")
    db.fails(f"SELECT {call.format(f'{chr(39)}{ns}_x{chr(39)}')}", "42809")
    db("SET kalam.default_server = 'gone'")
    db.fails(f"SELECT {call.format('NULL')}", "42704", "gone")
    db("RESET kalam.default_server")
    db(f"REVOKE USAGE ON FOREIGN SERVER kalam_server FROM {role};"
       f"GRANT EXECUTE ON FUNCTION kalam_exec TO {role}; SET ROLE {role}")
    db.fails(f"SELECT {call.format('NULL')}", "42501", "kalam_server", "GRANT USAGE")


def test_connections_and_disconnect(db: Session, table: str, server: KalamServer, ns: str) -> None:
    connections = "SELECT server_name, user_name, valid, used_in_xact FROM kalam_connections() ORDER BY 1"
    assert db("SELECT kalam_disconnect()") == [(True,)]
    assert db(connections) == []
    assert db("SELECT kalam_disconnect(), kalam_disconnect('kalam_server')") == [(False, False)]
    db(f"SELECT * FROM {table}")
    user = db.value("SELECT current_user")
    assert db(connections) in ([("kalam_server", user, True, False)], [("kalam_server", None, True, False)])
    db("BEGIN")
    db(f"INSERT INTO {table} VALUES (1)")
    assert [row[3] for row in db(connections)] == [True]
    assert db("SELECT kalam_disconnect()") == [(False,)]
    assert any("still in use" in notice for notice in db.notices)
    db("COMMIT")
    assert db(f"SELECT id FROM {table}") == [(1,)]
    db(f"CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{server.port}')")
    db(f"SELECT kalam_ping('{ns}_s')")
    assert len(db(connections)) == 2
    assert db(f"SELECT kalam_disconnect('{ns}_s')") == [(True,)]
    assert len(db(connections)) == 1
    db.fails("SELECT kalam_disconnect('nowhere')", "42704")
    db("BEGIN")
    db(f"ALTER SERVER {ns}_s OPTIONS (ADD fetch_size '10')")
    db("COMMIT")
    assert db(f"SELECT kalam_ping('{ns}_s') > '0'") == [(True,)]
    db("BEGIN")
    db(f"SELECT kalam_ping('{ns}_s')")
    db(f"DROP SERVER {ns}_s")
    assert db(connections)[-1][2:] == (False, True)
    db("COMMIT")
    assert len(db(connections)) == 1, "nobody would ever ask for the dropped server's again"


# ---------- kalam_exec ----------
def test_exec_answers(db: Session, ns: str, table: str) -> None:
    db(f"INSERT INTO {table} VALUES (1, 'é\"☃'), (2, NULL), (9007199254740993, '')")
    rows = db.value(f"SELECT kalam_exec('SELECT id, body FROM {table} ORDER BY id')")
    assert json.loads(rows) == [
        {"id": 1, "body": 'é"☃'}, {"id": 2, "body": None}, {"id": 9007199254740993, "body": ""}
    ]  # fmt: skip
    assert db.remote(f"SELECT id FROM {table} WHERE id < 0") == []
    assert db.remote(f"UPDATE {table} SET body = 'x' WHERE id < 3") == {"message": "UPDATE 2", "affected": 2}
    assert db.remote(f"DELETE FROM {table} WHERE id = 77")["affected"] == 0
    assert db.remote(f"INSERT INTO {table} (id) VALUES (3), (4)")["affected"] == 2
    assert db.remote(f"CREATE SHARED TABLE {ns}.made (id bigint PRIMARY KEY)")["message"] == "CREATE TABLE"
    assert db.remote(f"DROP TABLE {ns}.made")["message"] == "DROP TABLE"
    assert db.value("SELECT kalam_exec(NULL)") is None
    assert db(f"SELECT count(*) FROM {table}") == [(5,)]


@pytest.mark.parametrize(
    ("sql", "sqlstate"),
    [
        ("", None), (";", None), ("nonsense", "42601"), ("SELECT * FROM nowhere", "42P01"),
        ("SELECT nothing FROM {t}", "42703"), ("INSERT INTO {t} (id) VALUES (1), (1)", "23505"),
        ("INSERT INTO {t} (id) VALUES (NULL)", "23502"), ("INSERT INTO {t} (id) VALUES (''x'')", "22P02"),
        ("SELECT 1; SELECT 2", "42601"), ("BEGIN", "0A000"), ("COMMIT", "0A000"), ("ROLLBACK", "0A000"),
        ("SAVEPOINT a", "0A000"), ("START TRANSACTION", "0A000"), ("SET TRANSACTION READ ONLY", "0A000"),
        ("SELECT $1", None), ("SELECT 5 % 0", "22012"),
    ],
)  # fmt: skip
def test_exec_errors_are_whole(db: Session, table: str, sql: str, sqlstate: str | None) -> None:
    error = db.fails(f"SELECT kalam_exec('{sql.format(t=table)}')", sqlstate)
    assert error.sqlstate not in ("XX000", "58000")
    assert error.diag.message_primary
    assert db(f"SELECT count(*) FROM {table}") == [(0,)]


def test_exec_names_by_search_path(db: Session, ns: str, table: str) -> None:
    other = f"{ns}_b"
    db(f"CREATE SCHEMA {other}; CREATE TABLE {other}.t (id bigint PRIMARY KEY) USING kalamdb")
    db(f"INSERT INTO {table} VALUES (1); INSERT INTO {other}.t VALUES (2)")
    db(f"CREATE TABLE {other}.{ns}_only (id bigint PRIMARY KEY) USING kalamdb")
    db.fails(f"SELECT kalam_exec('SELECT id FROM {ns}_only')", "42P01")
    db(f"SET search_path = {ns}, {other}, public")
    assert db.remote("SELECT id FROM t") == [{"id": 1}]
    db(f"SET search_path = nowhere, {other}, {ns}, public")
    assert db.remote("SELECT id FROM t") == [{"id": 2}]
    db.remote("INSERT INTO t (id) VALUES (3)")
    db(f"SET search_path = {other}, public")
    db.remote("CREATE SHARED TABLE fresh (id bigint PRIMARY KEY)")
    assert db.remote(f"SELECT id FROM {other}.fresh") == []
    assert db(f"SELECT id FROM {other}.t ORDER BY id") == [(2,), (3,)]


def test_exec_in_transactions(db: Session, other: Session, ns: str, table: str) -> None:
    db("BEGIN")
    db(f"INSERT INTO {table} VALUES (1, 'mine')")
    assert db.remote(f"SELECT id FROM {table}") == [{"id": 1}]
    db.remote(f"INSERT INTO {table} (id) VALUES (2)")
    db.remote(f"CREATE SHARED TABLE {ns}.made (id bigint PRIMARY KEY)")
    db("SAVEPOINT s")
    db.remote(f"UPDATE {table} SET body = 'theirs'")
    db.remote(f"CREATE SHARED TABLE {ns}.undone (id bigint PRIMARY KEY)")
    db.fails(f"SELECT kalam_exec('INSERT INTO {table} (id) VALUES (1)')", "23505")
    db("ROLLBACK TO s")
    assert db(f"SELECT id, body FROM {table} ORDER BY id") == [(1, "mine"), (2, None)]
    assert other(f"SELECT count(*) FROM {table}") == [(0,)]
    db("COMMIT")
    assert other(f"SELECT count(*) FROM {table}") == [(2,)]
    assert other.facts(f"{ns}.made")
    assert not other.facts(f"{ns}.undone")
    db("BEGIN")
    db.remote(f"DROP TABLE {ns}.made")
    db.remote(f"DELETE FROM {table}")
    db.fails("SELECT 1 / 0", "22012")
    db("COMMIT")
    assert other.facts(f"{ns}.made")
    assert other(f"SELECT count(*) FROM {table}") == [(2,)]


def test_exec_in_a_statement_that_fails_later(db: Session, table: str) -> None:
    db.fails(f"SELECT kalam_exec('INSERT INTO {table} (id) VALUES (1)'), 1 / (SELECT 0)", "22012")
    db.fails(f"SELECT kalam_exec('INSERT INTO {table} (id) VALUES (' || g || ')'), 1 / (g - 3)"
             " FROM generate_series(1, 5) g", "22012")
    assert db(f"SELECT count(*) FROM {table}") == [(0,)]
    db(f"SELECT kalam_exec('INSERT INTO {table} (id) VALUES (' || g || ')') FROM generate_series(1, 5) g")
    assert db(f"SELECT count(*) FROM {table}") == [(5,)]


def test_exec_read_only(db: Session, table: str) -> None:
    for begin in ("BEGIN READ ONLY", "BEGIN; SET TRANSACTION READ ONLY"):
        db(begin)
        assert db.remote(f"SELECT id FROM {table}") == []
        db.fails(f"SELECT kalam_exec('INSERT INTO {table} (id) VALUES (1)')", "25006")
        db("ROLLBACK")


# ---------- tenants ----------
@pytest.fixture
def mine(db: Session, ns: str) -> str:
    db(f"CREATE TABLE {ns}.mine (id bigint PRIMARY KEY, body text) USING kalamdb WITH (type = 'user')")
    return f"{ns}.mine"


def test_tenant_changes_inside_a_transaction(db: Session, mine: str) -> None:
    db("BEGIN")
    for tenant in ("alice", "bob", "o'hara", "日本"):
        db(psycopg.sql.SQL("SET LOCAL kalam.user_id = {}").format(tenant).as_string(db.conn))
        db(f"INSERT INTO {mine} VALUES (1, 'of ' || kalam_user_id())")
    db("SAVEPOINT s; SET LOCAL kalam.user_id = 'carol'")
    db(f"INSERT INTO {mine} VALUES (1, 'undone')")
    db("ROLLBACK TO s")
    assert db(f"SELECT body, _userid FROM {mine}") == [("of 日本", "日本")]
    assert db.remote(f"SELECT body FROM {mine}") == [{"body": "of 日本"}]
    db("COMMIT")
    db.fails(f"SELECT * FROM {mine}", "42501", "kalam.user_id")
    db.fails(f"SELECT kalam_exec('SELECT * FROM {mine}')", "42501")
    db("SET kalam.user_id = '*'")
    assert db(f"SELECT _userid, body FROM {mine} ORDER BY 1") == [
        ("alice", "of alice"), ("bob", "of bob"), ("o'hara", "of o'hara"), ("日本", "of 日本")
    ]  # fmt: skip


def test_roles_bound_to_tenants(db: Session, ns: str, role: str, mine: str) -> None:
    """By user mappings: in SET ROLE, in views and in functions the role that is checked decides."""
    two = f"{ns}_two"
    db(f"CREATE ROLE {two}; GRANT USAGE ON SCHEMA {ns} TO {two}, {role};"
       f"GRANT ALL ON {mine} TO {two}, {role}; GRANT EXECUTE ON FUNCTION kalam_exec TO {two}, {role}")
    db(f"GRANT USAGE ON FOREIGN SERVER kalam_server TO {two}")
    db(f"CREATE USER MAPPING FOR {role} SERVER kalam_server OPTIONS (user_id 'one');"
       f"CREATE USER MAPPING FOR {two} SERVER kalam_server OPTIONS (user_id 'two')")
    for name in (role, two):
        db(f"SET ROLE {name}; INSERT INTO {mine} VALUES (1, current_user)")
    assert db(f"SELECT body, _userid FROM {mine}") == [(two, "two")]
    assert db.remote(f"SELECT _userid FROM {mine}") == [{"_userid": "two"}]
    db(f"SET ROLE {role}")
    assert db(f"SELECT body, _userid FROM {mine}") == [(role, "one")]
    db.fails(f"INSERT INTO {mine} (id, _userid) VALUES (2, 'two')", "42501", "two")
    db.fails(f"INSERT INTO {mine} (id, _userid) SELECT g, CASE g WHEN 700 THEN 'two' END"
             " FROM generate_series(2, 900) g", "42501", "two")
    db(f"INSERT INTO {mine} (id, _userid) VALUES (2, 'one'); DELETE FROM {mine} WHERE id = 2")
    for other in (f"INSERT INTO {mine} (id, _userid) VALUES (2, ''one''), (3, ''two'')",
                  f"INSERT INTO {mine} (id, _userid) SELECT 2, ''tw'' || ''o''",
                  f"EXECUTE AS USER ''two'' (DELETE FROM {mine})",
                  f"EXECUTE AS USER ''*'' (SELECT * FROM {mine})"):
        db.fails(f"SELECT kalam_exec('{other}')", "42501", "permission denied to act for tenant")
    assert db.remote(f"EXECUTE AS USER 'one' (SELECT body FROM {mine})") == [{"body": role}]
    for other in (f"ALTER TABLE {mine} ADD CHECK (id > 5)", f"DROP TABLE {mine}", "SHOW DROPPED TABLES"):
        db.fails(f"SELECT kalam_exec('{other}')", "42501", "permission denied")
    assert len(db.remote("SELECT id FROM system.sessions")) == 1
    db(f"RESET ROLE; GRANT CREATE ON SCHEMA {ns} TO {role}; SET ROLE {role};"  # what PostgreSQL allows is mirrored
       f"CREATE TABLE {ns}.own (id bigint PRIMARY KEY) USING kalamdb WITH (type = 'user');"
       f"ALTER TABLE {ns}.own ADD COLUMN v text; INSERT INTO {ns}.own VALUES (1, 'x'); DROP TABLE {ns}.own")

    # a function of one role, called by the other: its owner's tenant within, its caller's after
    db(f"CREATE FUNCTION {ns}.count_mine() RETURNS text LANGUAGE sql SECURITY DEFINER"
       f" AS $$ SELECT max(_userid) || count(*) FROM {mine} $$")
    db(f"CREATE VIEW {ns}.seen AS SELECT * FROM {mine}; GRANT SELECT ON {ns}.seen TO {two}; SET ROLE {two}")
    assert db(f"SELECT {ns}.count_mine(), (SELECT max(_userid) FROM {mine})") == [("one1", "two")]
    assert db(f"SELECT _userid FROM {ns}.seen") == [("one",)]
    assert db(f"SELECT a._userid, b._userid FROM {ns}.seen a, {mine} b") == [("one", "two")]

    # the setting does not help, and a superuser may do both
    db("RESET ROLE; SET kalam.user_id = 'two'")
    db(f"SET ROLE {role}")
    outcome = None
    try:
        outcome = db(f"SELECT _userid FROM {mine}")
    except psycopg.Error as error:
        assert error.sqlstate == "42501"  # noqa: PT017
    assert outcome in (None, [("one",)])
    db("RESET ROLE; RESET kalam.user_id")
    db.fails(f"SELECT * FROM {mine}", "42501")
    db(f"DROP OWNED BY {two} CASCADE; DROP ROLE {two}")


def test_who_may_set_the_tenant(db: Session, pg: Postgres, role: str, mine: str) -> None:
    db(f"GRANT ALL ON {mine} TO {role}")
    plain = Session(pg.dsn(db.conn.info.dbname, role))
    plain.fails("SET kalam.user_id = 'alice'", "42501")
    plain.fails("SELECT set_config('kalam.user_id', 'alice', true)", "42501")
    db(f"GRANT SET ON PARAMETER kalam.user_id TO {role}")
    plain("SET kalam.user_id = 'alice'")
    plain(f"INSERT INTO {mine} VALUES (1, 'x')")
    assert plain(f"SELECT _userid FROM {mine}") == [("alice",)]
    plain.fails("SELECT kalam_exec('SELECT 1')", "42501")
    plain.close()
    db(f"REVOKE SET ON PARAMETER kalam.user_id FROM {role}")


def test_mapping_that_changes_while_the_connection_lives(db: Session, role: str, mine: str) -> None:
    db(f"GRANT ALL ON {mine} TO {role}; CREATE USER MAPPING FOR {role} SERVER kalam_server OPTIONS (user_id 'one')")
    db(f"SET ROLE {role}")
    db(f"INSERT INTO {mine} VALUES (1, 'x')")
    db(f"RESET ROLE; ALTER USER MAPPING FOR {role} SERVER kalam_server OPTIONS (SET user_id 'other')")
    db(f"SET ROLE {role}")
    assert db(f"SELECT count(*) FROM {mine}") == [(0,)]
    db(f"RESET ROLE; DROP USER MAPPING FOR {role} SERVER kalam_server")
    assert db("SELECT FROM kalam_connections() WHERE user_name = %s", role) == []
    db(f"SET ROLE {role}")
    db.fails(f"SELECT * FROM {mine}", "42501", "kalam.user_id")


def test_bound_role_cannot_free_itself(db: Session, pg: Postgres, ns: str, role: str, mine: str) -> None:
    """It may change its own mapping, but not whose rows it sees: that is for the server's owner."""
    db(f"GRANT ALL ON {mine} TO {role}; GRANT USAGE ON SCHEMA {ns} TO {role};"
       f"GRANT USAGE ON FOREIGN SERVER kalam_server TO {role}")
    db(f"CREATE USER MAPPING FOR {role} SERVER kalam_server OPTIONS (user_id 'one')")
    plain = Session(pg.dsn(db.conn.info.dbname, role))
    plain(f"INSERT INTO {mine} VALUES (1, 'x')")
    for sql in (
        "ALTER USER MAPPING FOR CURRENT_USER SERVER kalam_server OPTIONS (SET user_id 'two')",
        "ALTER USER MAPPING FOR CURRENT_USER SERVER kalam_server OPTIONS (DROP user_id)",
        f"ALTER USER MAPPING FOR {role} SERVER kalam_server OPTIONS (SET user_id '*')",
        f"DROP USER MAPPING FOR {role} SERVER kalam_server",
        f"DROP OWNED BY {role}",
        f"DO $$BEGIN EXECUTE 'DROP USER MAPPING FOR {role} SERVER kalam_server'; END$$",
    ):
        plain.fails(sql, "42501", "must be owner of foreign server kalam_server", "user_id")
    assert plain(f"SELECT _userid FROM {mine}") == [("one",)]
    db(f"DROP USER MAPPING FOR {role} SERVER kalam_server")
    for sql in ("CREATE USER MAPPING FOR CURRENT_USER SERVER kalam_server OPTIONS (user_id 'two')",
                "CREATE USER MAPPING IF NOT EXISTS FOR USER SERVER kalam_server OPTIONS (user_id '*')"):
        plain.fails(sql, "42501")
    db("CREATE USER MAPPING FOR PUBLIC SERVER kalam_server OPTIONS (user_id 'everybody')")
    plain.fails("CREATE USER MAPPING FOR CURRENT_USER SERVER kalam_server", "42501")
    db("DROP USER MAPPING FOR PUBLIC SERVER kalam_server")
    plain("CREATE USER MAPPING FOR CURRENT_USER SERVER kalam_server")  # binds nobody
    plain("DROP USER MAPPING FOR CURRENT_USER SERVER kalam_server")
    db(f"CREATE ROLE {ns}_owner; GRANT USAGE ON FOREIGN DATA WRAPPER pg_kalam TO {ns}_owner; SET ROLE {ns}_owner")
    db(f"CREATE SERVER {ns}_o FOREIGN DATA WRAPPER pg_kalam OPTIONS (host 'x', port '1', auth_header 'Bearer x')")
    db(f"CREATE USER MAPPING FOR {role} SERVER {ns}_o OPTIONS (user_id 'three');"
       f"ALTER USER MAPPING FOR PUBLIC SERVER {ns}_o OPTIONS (ADD user_id 'four');"
       f"ALTER SERVER {ns}_o OPTIONS (SET auth_header 'Bearer y'); DROP SERVER {ns}_o CASCADE; RESET ROLE;"
       f"DROP OWNED BY {ns}_owner; DROP ROLE {ns}_owner")
    plain.close()


def test_server_that_trusts_is_reached_by_a_superusers_server_only(
    db: Session, pg: Postgres, ns: str, role: str, mine: str, server: KalamServer
) -> None:
    """Else a role that may create servers would reach all tenants of a KalamDB that trusts this machine."""
    db(f"GRANT USAGE ON FOREIGN DATA WRAPPER pg_kalam TO {role}; GRANT EXECUTE ON FUNCTION kalam_exec TO {role}")
    db(f"SET kalam.user_id = 'ann'; INSERT INTO {mine} VALUES (1, 'private'); RESET kalam.user_id")
    plain = Session(pg.dsn(db.conn.info.dbname, role))
    plain(f"CREATE SERVER {ns}_own FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{server.port}')")
    plain(f"CREATE USER MAPPING FOR CURRENT_USER SERVER {ns}_own OPTIONS (user_id '*')")
    for sql in (f"SELECT kalam_exec('SELECT * FROM {mine}', '{ns}_own')", f"SELECT kalam_ping('{ns}_own')",
                f"CREATE TABLE {ns}.made (id bigint PRIMARY KEY) USING kalamdb WITH (server = '{ns}_own')"):
        plain.fails(sql, "42501", "asks for no credentials", f'"{ns}_own" is not owned by a superuser')
    plain(f"ALTER SERVER {ns}_own OPTIONS (ADD auth_header 'Bearer anything')")
    plain.fails(f"SELECT kalam_ping('{ns}_own')", "42501", "asks for no credentials")
    db(f"ALTER USER MAPPING FOR PUBLIC SERVER {ns}_own OPTIONS (DROP auth_header);"
       f"ALTER SERVER {ns}_own OWNER TO CURRENT_USER")
    db(f"GRANT USAGE ON FOREIGN SERVER {ns}_own TO {role}")
    assert plain.value(f"SELECT kalam_ping('{ns}_own') > '0'")
    plain.close()
    db(f"DROP SERVER {ns}_own CASCADE")
