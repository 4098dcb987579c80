"""Whose rows a statement sees, and over which connection, while tenants, roles, mappings and servers change.

| trap | tests |
|---|---|
| a connection cached under the wrong key; SET ROLE, SECURITY DEFINER, views | `whom_a_view_asks`, `one_connection` |
| a mapping or server altered while the connection lives | `altered_inside_a_transaction`, `mapping_dropped` |
| a connection broken while idle, first noticed in the middle of a transaction | `broken_idle` |
| loading the library breaks parallel workers | `parallel_workers` |
| a tenant spliced into SQL; quotes, control characters, other letters | `tenants_of_all_kinds` |
| poolers | `transaction_pooler`, `discard_all` |
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from support.postgres import Postgres
from support.proxy import Proxy
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

CONNECTIONS = "SELECT count(*) FROM kalam_connections()"


@pytest.fixture
def mine(db: Session, ns: str) -> str:
    db(f"CREATE TABLE {ns}.mine (id bigint PRIMARY KEY, body text) USING kalamdb WITH (type = 'user')")
    return f"{ns}.mine"


@pytest.fixture
def roles(db: Session, ns: str, mine: str) -> Iterator[tuple[str, str]]:
    """Two roles bound to tenants of the same names, who may use the table."""
    names = (f"{ns}_one", f"{ns}_two")
    for name in names:
        db(f"CREATE ROLE {name} LOGIN; GRANT ALL ON SCHEMA {ns} TO {name}; GRANT ALL ON {mine} TO {name};"
           f"CREATE USER MAPPING FOR {name} SERVER kalam_server OPTIONS (user_id '{name}')")
    yield names
    db("ROLLBACK; RESET ROLE")
    for name in names:
        db(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def everything(db: Session, table: str) -> list[tuple[str, int, str]]:
    db("SET kalam.user_id = '*'")
    found = [(row[0], row[1], row[2]) for row in db(f"SELECT _userid, id, body FROM {table} ORDER BY 1, 2")]
    db("RESET kalam.user_id")
    return found


# ---------- tenants ----------
def test_cursors_keep_their_tenant(db: Session, mine: str) -> None:
    for tenant in ("ann", "bob"):
        db(f"SET kalam.user_id = '{tenant}'; INSERT INTO {mine} SELECT g, '{tenant}' FROM generate_series(1, 15000) g")
    db("SET kalam.user_id = 'ann'")
    db("BEGIN")
    db(f"DECLARE a CURSOR WITH HOLD FOR SELECT DISTINCT body FROM {mine}; DECLARE b CURSOR FOR SELECT body FROM {mine}")
    assert db("FETCH 2 FROM b") == [("ann",), ("ann",)]
    db("SET LOCAL kalam.user_id = 'bob'")
    assert set(db("FETCH 12000 FROM b")) == {("ann",)}
    assert db(f"SELECT count(*), min(body), max(body) FROM {mine}") == [(15000, "bob", "bob")]
    db("SET LOCAL kalam.user_id = ''")
    assert set(db("FETCH ALL FROM b")) == {("ann",)}
    db.fails(f"SELECT 1 FROM {mine}", "42501")
    db("ROLLBACK")
    db(f"BEGIN; DECLARE a CURSOR WITH HOLD FOR SELECT DISTINCT body FROM {mine}; SET LOCAL kalam.user_id = 'bob'")
    db(f"UPDATE {mine} SET body = 'changed' WHERE id = 1; COMMIT")
    assert db("FETCH ALL FROM a") == [("ann",)]
    assert db("SHOW kalam.user_id") == [("ann",)]
    assert len([row for row in everything(db, mine) if row[2] == "changed"]) == 1


def test_tenant_changes_while_a_statement_runs(db: Session, ns: str, mine: str) -> None:
    """A function may set it: the statement around goes on for the tenant that it began with."""
    db(f"""CREATE FUNCTION {ns}.as_tenant(t text, n int) RETURNS int LANGUAGE plpgsql AS $$BEGIN
        PERFORM set_config('kalam.user_id', t, true); INSERT INTO {mine} VALUES (n, 'by ' || t); RETURN n; END$$""")
    db("BEGIN; SET LOCAL kalam.user_id = 'outer'")
    db(f"INSERT INTO {mine} SELECT 100 + {ns}.as_tenant('t' || g % 2, g), 'outer' FROM generate_series(1, 4) g")
    db("COMMIT")
    assert everything(db, mine) == [
        *[("outer", 100 + n, "outer") for n in range(1, 5)],
        ("t0", 2, "by t0"), ("t0", 4, "by t0"), ("t1", 1, "by t1"), ("t1", 3, "by t1")]


def test_tenant_of_a_function(db: Session, ns: str, mine: str) -> None:
    """A function may carry the setting; it holds within, also when it fails, and not after."""
    db(f"""CREATE FUNCTION {ns}.put(n int) RETURNS bigint LANGUAGE plpgsql SET kalam.user_id = 'fn' AS $$BEGIN
        INSERT INTO {mine} VALUES (n, 'fn'); RETURN (SELECT count(*) FROM {mine}); END$$""")
    db("SET kalam.user_id = 'ann'")
    db(f"INSERT INTO {mine} VALUES (1, 'ann')")
    assert db(f"SELECT {ns}.put(1), (SELECT count(*) FROM {mine}), {ns}.put(2)") == [(1, 1, 2)]
    db("BEGIN; SAVEPOINT s")
    db.fails(f"SELECT {ns}.put(1)", "23505")
    db("ROLLBACK TO s")
    db(f"INSERT INTO {mine} VALUES (3, kalam_user_id()); COMMIT")
    assert everything(db, mine) == [("ann", 1, "ann"), ("ann", 3, "ann"), ("fn", 1, "fn"), ("fn", 2, "fn")]


@pytest.mark.parametrize(
    "tenant",
    ["o'hara", 'say "hi"', "back\\slash", "a','role':'system", '","user":"*', "日本 ☃ ä", " leading", "$1", "%s", "--",
     "x" * 3000, "{}", "null"],
    ids=lambda tenant: tenant[:10],
)
def test_tenants_of_all_kinds(db: Session, mine: str, tenant: str) -> None:
    db(sql.SQL("SET kalam.user_id = {}").format(tenant).as_string(db.conn))
    db(f"INSERT INTO {mine} VALUES (1, 'x'), (2, 'y')")
    db(f"INSERT INTO {mine} (id, _userid) VALUES (3, %s)", tenant)
    db(f"UPDATE {mine} SET body = _userid WHERE id < 3; DELETE FROM {mine} WHERE id = 2")
    assert db(f"SELECT id, body, _userid FROM {mine} ORDER BY id") == [(1, tenant, tenant), (3, None, tenant)]
    assert db(f"SELECT count(*) FROM {mine} WHERE _userid = %s", tenant) == [(2,)]
    assert db.remote(f"SELECT _userid FROM {mine} WHERE id = 1") == [{"_userid": tenant}]
    db("SET kalam.user_id = 'somebody'")
    assert db(f"SELECT count(*) FROM {mine}") == [(0,)]


def test_tenants_that_are_refused(db: Session, mine: str) -> None:
    for tenant in ("a\nb", "\x01", "tab\t", "\x7f"):
        db.fails(sql.SQL("SET kalam.user_id = {}").format(tenant).as_string(db.conn), "22023", "ontrol characters")
        db.fails(sql.SQL("CREATE USER MAPPING FOR USER SERVER kalam_server OPTIONS (user_id {})").format(
            tenant).as_string(db.conn), "HV00D", "ontrol characters")
    db("SET kalam.user_id = '*'")
    db.fails(f"INSERT INTO {mine} VALUES (1)", "42501")
    for owner in ("", "*"):
        db.fails(f"INSERT INTO {mine} (id, _userid) VALUES (1, '{owner}')", "22023")
    db("SET kalam.user_id = ''")
    db.fails(f"INSERT INTO {mine} VALUES (1)", "42501", "kalam.user_id")


# ---------- roles ----------
def test_whom_a_view_asks(db: Session, ns: str, mine: str, roles: tuple[str, str]) -> None:
    """Through a view and in a SECURITY DEFINER function it is the owner, whoever calls; else the caller."""
    one, two = roles
    db(f"SET ROLE {one}; CREATE VIEW {ns}.owned AS SELECT id, body FROM {mine};"
       f"CREATE VIEW {ns}.invoked WITH (security_invoker) AS SELECT id, body FROM {mine};"
       f"GRANT ALL ON {ns}.owned, {ns}.invoked TO {two}")
    db(f"""CREATE FUNCTION {ns}.put(int, text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS
        $$BEGIN INSERT INTO {mine} VALUES ($1, $2); UPDATE {mine} SET body = body || '!' WHERE id = $1; END$$""")
    db(f"SET ROLE {two}; BEGIN")
    for step in (f"INSERT INTO {ns}.owned VALUES (1, 'owned')", f"INSERT INTO {ns}.invoked VALUES (1, 'invoked')",
                 f"SELECT {ns}.put(2, 'put')", f"INSERT INTO {mine} SELECT id + 10, body FROM {ns}.owned",
                 f"UPDATE {ns}.owned SET body = 'UP' WHERE id = 1", f"DELETE FROM {ns}.invoked WHERE id = 11",
                 f"INSERT INTO {ns}.owned SELECT id + 20, body FROM {ns}.invoked"):
        db(step)
    db("COMMIT; RESET ROLE")
    assert everything(db, mine) == [
        (one, 1, "UP"), (one, 2, "put!"), (one, 21, "invoked"), (one, 32, "put!"),
        (two, 1, "invoked"), (two, 12, "put!")]


def test_one_connection_for_a_mapping(db: Session, ns: str, mine: str, roles: tuple[str, str]) -> None:
    db("SELECT kalam_disconnect()")
    for role in (*roles, *roles):
        db(f"SET ROLE {role}; SELECT count(*) FROM {mine}; RESET ROLE")
    assert {(row[0], row[1]) for row in db("SELECT server_name, user_name FROM kalam_connections()")} == {
        ("kalam_server", roles[0]), ("kalam_server", roles[1])}
    db("BEGIN")
    for role in roles:
        db(f"SET LOCAL ROLE {role}; INSERT INTO {mine} VALUES (1, 'kept'); SAVEPOINT s;"
           f" INSERT INTO {mine} VALUES (2, 'undone'); ROLLBACK TO s")
    db("RESET ROLE; COMMIT")
    assert everything(db, mine) == [(role, 1, "kept") for role in sorted(roles)]
    db("SELECT kalam_disconnect()")
    assert db.value(CONNECTIONS) == 0


def test_mapping_dropped_or_set_free(db: Session, pg: Postgres, mine: str, roles: tuple[str, str]) -> None:
    """What a session sees follows its mapping, statement by statement, also while it has a connection and a plan."""
    with psycopg.connect(pg.dsn(db.conn.info.dbname, roles[0]), autocommit=True) as plain:
        plain.execute(f"PREPARE p AS SELECT count(*) FROM {mine}; INSERT INTO {mine} VALUES (1, 'x')")
        assert plain.execute("EXECUTE p").fetchone() == (1,)
        db(f"ALTER USER MAPPING FOR {roles[0]} SERVER kalam_server OPTIONS (SET user_id 'another')")
        assert plain.execute("EXECUTE p").fetchone() == (0,)
        db(f"DROP USER MAPPING FOR {roles[0]} SERVER kalam_server")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            plain.execute("EXECUTE p")


# ---------- connections ----------
def test_altered_inside_a_transaction(db: Session, other: Session, ns: str, server: KalamServer) -> None:
    """The transaction goes on over the connection that it has; the next one uses what is said now."""
    db(f"CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{server.port}');"
       f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY) USING kalamdb WITH (server = '{ns}_s')")
    backend = f"SELECT kalam_server_info('{ns}_s') ->> 'backend'"
    db(f"BEGIN; INSERT INTO {ns}.t VALUES (1)")
    before = db.value(backend)
    db(f"ALTER SERVER {ns}_s OPTIONS (ADD application_name 'altered')")
    db(f"INSERT INTO {ns}.t VALUES (2)")
    assert db.value(backend) == before
    db("COMMIT")
    assert db.value(f"SELECT count(*) FROM {ns}.t") == 2
    assert db.value(backend) != before
    db(f"BEGIN; ALTER SERVER {ns}_s OPTIONS (SET port '1')")
    db.fails(f"SELECT * FROM {ns}.t", "08001")
    db("ROLLBACK")
    assert db.value(f"SELECT count(*) FROM {ns}.t") == 2
    db(f"INSERT INTO {ns}.t VALUES (3)")
    assert other.value(f"SELECT count(*) FROM {ns}.t") == 3
    db(f"ALTER SERVER {ns}_s OPTIONS (SET port '1')")
    other.fails(f"SELECT * FROM {ns}.t", "08001")
    other(f"ALTER SERVER {ns}_s OPTIONS (SET port '{server.port}')")
    assert db.value(f"SELECT count(*) FROM {ns}.t") == 3


def test_keep_connections_off(db: Session, ns: str, server: KalamServer) -> None:
    db(f"CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{server.port}',"
       f" keep_connections 'off'); CREATE TABLE {ns}.t (id bigint PRIMARY KEY) USING kalamdb WITH (server = '{ns}_s')")
    db("SELECT kalam_disconnect()")
    open_ones = f"SELECT used_in_xact FROM kalam_connections() WHERE server_name = '{ns}_s'"
    db("BEGIN")
    db(f"INSERT INTO {ns}.t VALUES (1); DECLARE c CURSOR WITH HOLD FOR SELECT id FROM {ns}.t")
    assert db(open_ones) == [(True,)]
    db("COMMIT")
    assert db("FETCH ALL FROM c") == [(1,)]
    assert db(open_ones) == []
    db.fails(f"INSERT INTO {ns}.t VALUES (1)", "23505")
    assert db(open_ones) == []
    db(f"ALTER SERVER {ns}_s OPTIONS (SET keep_connections 'on')")
    db(f"SELECT * FROM {ns}.t")
    assert db(open_ones) == [(False,)]


def test_disconnect_while_in_use(db: Session, ns: str, mine: str) -> None:
    """A cursor and a transaction hold it: it stays, with a warning, whoever asks from wherever."""
    db(f"SET kalam.user_id = 'ann'; INSERT INTO {mine} SELECT generate_series(1, 30000)")
    db("BEGIN")
    db(f"DECLARE c CURSOR FOR SELECT id FROM {mine}; FETCH 1 FROM c")
    assert db("SELECT kalam_disconnect()") == [(False,)]
    assert db("SELECT kalam_disconnect('kalam_server')") == [(False,)]
    assert sum("still in use" in notice for notice in db.notices) == 2
    assert len(db("FETCH ALL FROM c")) == 29999
    db(f"SAVEPOINT s; INSERT INTO {mine} VALUES (0); ROLLBACK TO s")
    assert db("SELECT kalam_disconnect()") == [(False,)]
    db("COMMIT")
    assert db("SELECT kalam_disconnect()") == [(True,)]
    assert db.value(f"SELECT count(*) FROM {mine}") == 30000


def test_discard_all(db: Session, ns: str, mine: str) -> None:
    db(f"SET kalam.user_id = 'ann'; INSERT INTO {mine} VALUES (1, 'x'); PREPARE p AS SELECT count(*) FROM {mine}")
    db(f"BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT * FROM {mine}; COMMIT")
    db("DISCARD ALL")
    assert db.value("SELECT kalam_user_id()") is None
    db.fails(f"SELECT * FROM {mine}", "42501")
    db.fails("FETCH c", "34000")
    db(f"SET kalam.user_id = 'bob'; INSERT INTO {mine} VALUES (1, 'y')")
    db("DISCARD ALL")
    assert everything(db, mine) == [("ann", 1, "x"), ("bob", 1, "y")]


def test_transaction_pooler(dsn: str, mine: str, db: Session) -> None:
    """Many clients' transactions take turns on two backends; each names its tenant, and leaves no trace."""
    backends = [psycopg.connect(dsn, autocommit=True, prepare_threshold=None) for _ in range(2)]
    for turn in range(60):
        conn, tenant = backends[turn % 2], f"client{turn % 5}"
        conn.execute("BEGIN")
        conn.execute(f"SET LOCAL kalam.user_id = '{tenant}'")
        conn.execute(f"INSERT INTO {mine} VALUES ({turn}, '{tenant}')")
        if turn % 7 == 3:
            conn.execute("SAVEPOINT s")
            with pytest.raises(psycopg.errors.UniqueViolation):
                conn.execute(f"INSERT INTO {mine} VALUES ({turn}, 'dup')")
            conn.execute("ROLLBACK TO s")
        found = conn.execute(f"SELECT DISTINCT body FROM {mine}").fetchall()
        conn.execute("ROLLBACK" if turn % 11 == 5 else "COMMIT")
        assert found == [(tenant,)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            conn.execute(f"SELECT * FROM {mine}")
        if turn % 10 == 9:
            conn.execute("DISCARD ALL")
    for conn in backends:
        conn.close()
    assert [row[1] for row in sorted(everything(db, mine), key=lambda row: row[1])] == [
        turn for turn in range(60) if turn % 11 != 5]


@pytest.mark.parametrize("begin", ["", "BEGIN", "BEGIN ISOLATION LEVEL REPEATABLE READ"])
def test_broken_idle_connection_is_noticed_before_use(db: Session, proxy: Proxy, ns: str, begin: str) -> None:
    """Whatever comes first then, alone or in a block, goes over a new one, and what follows with it."""
    table = f"{ns}.t"
    db(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text) USING kalamdb WITH (server = '{ns}_proxy')")
    db(f"INSERT INTO {table} VALUES (1, 'x')")
    for place, first in enumerate([
        "SELECT count(*) FROM {t}", "INSERT INTO {t} VALUES (2, 'x')", "SELECT 1 FROM {t} FOR UPDATE",
        "SELECT kalam_exec('SELECT 1', '{s}')", "SELECT kalam_ping('{s}')", "SELECT kalam_table_stats('{t}')",
        "DELETE FROM {t} WHERE id = 2",
    ]):
        proxy.cut()
        if begin:
            db(begin)
        db(first.format(t=table, s=f"{ns}_proxy"))
        db(f"UPDATE {table} SET body = '{place}' WHERE id = 1")
        if begin:
            db("COMMIT")
        assert db(f"SELECT body FROM {table} WHERE id = 1") == [(str(place),)]
    assert proxy.connections == 8


def test_library_in_parallel_workers(db: Session, pg: Postgres, ns: str, mine: str) -> None:
    """They load it, take over its settings, and have no connection; the leader reads the tables."""
    name = "force_parallel_mode" if pg.installed.version.startswith("15") else "debug_parallel_query"
    db(f"CREATE TABLE {ns}.local AS SELECT g AS id FROM generate_series(1, 20000) g")
    db(f"SET kalam.user_id = 'ann'; SET {name} = on; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0;"
       " SET min_parallel_table_scan_size = 0; SET max_parallel_workers_per_gather = 2")
    db(f"INSERT INTO {mine} SELECT id, 'x' FROM {ns}.local WHERE id % 2 = 0")
    assert db(f"SELECT count(*) FROM {ns}.local l JOIN {mine} USING (id) WHERE l.id % 3 = 0") == [(3333,)]
    assert db(f"SELECT count(*), kalam_user_id() FROM {ns}.local") == [(20000, "ann")]
    db("BEGIN")
    db(f"DELETE FROM {mine} WHERE id > 10000")
    assert db(f"SELECT count(*) FROM {ns}.local") == [(20000,)]
    assert db(f"SELECT count(*) FROM {ns}.local JOIN {mine} USING (id)") == [(5000,)]
    db("COMMIT")
