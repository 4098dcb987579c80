"""IMPORT FOREIGN SCHEMA with its clauses, and dumps: the same tables again, attached and managing nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import psycopg
import pytest

from support.postgres import Postgres
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg


@pytest.fixture
def made(db: Session, ns: str) -> Session:
    db(f"SET search_path = {ns}, public; SET kalam.user_id = 'alice'")
    db("CREATE TABLE users (name text, id bigint DEFAULT snowflake_id(), n numeric(8,2) NOT NULL DEFAULT 1.25, "
       "at timestamptz DEFAULT now(), f file, PRIMARY KEY (name, id)) USING kalamdb WITH (type = 'user')")
    db('CREATE TABLE "Shared ""Things" (id int PRIMARY KEY, "select" jsonb, ok boolean DEFAULT true) USING kalamdb')
    db("CREATE TABLE events (what text, ip inet) USING kalamdb WITH (type = 'stream', ttl_seconds = 600)")
    db("INSERT INTO users (name, n) VALUES ('x', 2.25)")
    db('INSERT INTO "Shared ""Things" VALUES (1, \'{"a": 1}\')')
    db("INSERT INTO events VALUES ('login', '10.0.0.1')")
    return db


def shape(db: Session, table: str, *, defaults: bool = True) -> list[tuple[object, ...]]:
    return db(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, attfdwoptions::text"
        + (", pg_get_expr(adbin, adrelid)" if defaults else "") +
        " FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum "
        "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum", table)


def foreign_tables(db: Session, ns: str) -> list[str]:
    rows = db("SELECT relname FROM pg_class WHERE relnamespace = %s::regnamespace AND relkind = 'f' ORDER BY 1", ns)
    return [row[0] for row in rows]


@pytest.fixture
def into(second: Session, ns: str) -> Session:
    second(f"CREATE SCHEMA {ns}; SET search_path = {ns}, public; SET kalam.user_id = 'alice'")
    return second


def test_import(made: Session, into: Session, ns: str) -> None:
    into(f"IMPORT FOREIGN SCHEMA {ns} FROM SERVER kalam_server INTO {ns} OPTIONS (import_default 'true')")
    for table in ("users", '"Shared ""Things"'):
        assert shape(into, table) == shape(made, table)
        assert into(f"SELECT * FROM {table}") == made(f"SELECT * FROM {table}")
        assert into.key(table) == made.key(table)
    assert into("SELECT what, host(ip) FROM events") == [("login", "10.0.0.1")]
    assert into.options("users")["table_type"] == "user"
    into("INSERT INTO users (name) VALUES ('y')")
    assert made("SELECT name, n::text FROM users WHERE name = 'y'") == [("y", "1.25")]
    into("UPDATE users SET n = 7 WHERE name = 'y'")
    into("DROP TABLE users")
    assert made.facts(f'"{ns}"."users"')


def test_clauses(made: Session, into: Session, ns: str) -> None:
    into(f"IMPORT FOREIGN SCHEMA {ns} LIMIT TO (users, nothing) FROM SERVER kalam_server INTO {ns}")
    assert foreign_tables(into, ns) == ["users"]
    assert [row[4] for row in shape(into, "users")] == [None] * len(shape(into, "users"))
    into(f'DROP FOREIGN TABLE users; IMPORT FOREIGN SCHEMA {ns} EXCEPT (users) FROM SERVER kalam_server INTO {ns} '
         f"OPTIONS (import_not_null 'false', import_collate 'true')")
    assert not into.exists("users")
    assert into("SELECT collname FROM pg_attribute JOIN pg_collation c ON c.oid = attcollation "
                "WHERE attrelid = 'events'::regclass AND attname = 'what'") == [("C",)]
    assert [row[2] for row in shape(into, '"Shared ""Things"')][1:] == [False] * 3
    bad = [("colour 'red'", "HV00D", "import_default"), ("import_default 'maybe'", "42601", "Boolean")]
    for options, state, word in bad:
        into.fails(f"IMPORT FOREIGN SCHEMA {ns} FROM SERVER kalam_server INTO {ns} OPTIONS ({options})", state, word)
    into.fails(f"IMPORT FOREIGN SCHEMA {ns} FROM SERVER kalam_server INTO {ns}", "42P07")
    into.fails(f"IMPORT FOREIGN SCHEMA no_such FROM SERVER kalam_server INTO {ns}", "HV00Q", "no_such")


def test_the_namespace_system(into: Session, ns: str) -> None:
    into(f"IMPORT FOREIGN SCHEMA system FROM SERVER kalam_server INTO {ns}")
    assert into("SELECT count(*) > 0 FROM tables") == [(True,)]
    names = foreign_tables(into, ns)
    assert {"tables", "columns", "namespaces", "sessions", "settings"} <= set(names)
    for name in names:
        into(f"SELECT * FROM {name} LIMIT 1")
    into.fails("INSERT INTO namespaces VALUES ('x')", "42501")


# ---------- dumps ----------
def dump(pg: Postgres, dbname: str) -> str:
    done = subprocess.run([str(pg.installed.bin / "pg_dump"), "-d", pg.dsn(dbname)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def restore(pg: Postgres, dbname: str, script: str) -> str:
    command = [str(pg.installed.bin / "psql"), "-X", "-v", "ON_ERROR_STOP=1", "-q", "-d", pg.dsn(dbname)]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def source(pg: Postgres, made: Session, ns: str) -> str:
    """A dump of the module's database."""
    made("ALTER TABLE users RENAME TO people")
    made("CREATE TABLE p (id int, a text) PARTITION BY LIST (id)")
    made("CREATE TABLE p1 (id int PRIMARY KEY, a text) USING kalamdb WITH (system_columns = false)")
    made("ALTER TABLE p ATTACH PARTITION p1 FOR VALUES IN (1)")
    made("INSERT INTO p VALUES (1, 'in a partition')")
    return dump(pg, made.conn.info.dbname)


@pytest.fixture
def empty(pg: Postgres, server: KalamServer) -> Iterator[str]:
    with pg.connect() as conn:
        conn.execute("CREATE DATABASE restored")
    yield "restored"
    server.start()
    with pg.connect() as conn:
        conn.execute("DROP DATABASE restored WITH (FORCE)")


def check_restored(pg: Postgres, made: Session, ns: str) -> None:
    again = Session(pg.dsn("restored"))
    try:
        again(f"SET search_path = {ns}, public; SET kalam.user_id = 'alice'")
        for table in ("people", '"Shared ""Things"', "events", "p1"):
            assert shape(again, table) == shape(made, table)
            assert again.key(table) == made.key(table)
            assert again(f"SELECT * FROM {table}") == made(f"SELECT * FROM {table}")
            assert again(f"SELECT * FROM kalam_drift('{table}')") == []
        assert again("SELECT a FROM p") == [("in a partition",)]
        again("INSERT INTO people (name) VALUES ('restored')")
        assert made("SELECT count(*) FROM people WHERE name = 'restored'") == [(1,)]
        again("DELETE FROM people WHERE name = 'restored'")
        again("ALTER TABLE people ADD COLUMN local_only int")
        again("DROP TABLE people")
    finally:
        again.close()
    assert "local_only" not in made.remote_columns(f'"{ns}"."users"')


def test_dump_and_restore(pg: Postgres, made: Session, source: str, empty: str, ns: str) -> None:
    assert "WARNING" not in restore(pg, empty, source)
    check_restored(pg, made, ns)


def test_restore_while_the_server_is_down(pg: Postgres, made: Session, source: str, empty: str, ns: str,
                                          server: KalamServer) -> None:
    server.stop()
    assert "was not compared" in restore(pg, empty, source)
    with psycopg.connect(pg.dsn(empty)) as conn, pytest.raises(psycopg.OperationalError, match="could not connect"):
        conn.execute(f"SELECT * FROM {ns}.p1")
    server.start()
    check_restored(pg, made, ns)


def test_the_end_of_a_restored_database_harms_nothing(pg: Postgres, made: Session, source: str, empty: str,
                                                      ns: str) -> None:
    restore(pg, empty, source)
    with pg.connect() as conn:
        conn.execute("DROP DATABASE restored WITH (FORCE)")
        conn.execute("CREATE DATABASE restored")
    assert made("SELECT count(*) FROM people") == [(1,)]
    restore(pg, empty, source)
    with pg.connect("restored") as conn:
        conn.execute("DROP EXTENSION pg_kalam CASCADE")
    assert made("SELECT count(*) FROM people") == [(1,)]


def test_restore_where_the_tables_are_gone(pg: Postgres, made: Session, source: str, empty: str, ns: str) -> None:
    """What a dump says is enough to make them anew."""
    made('DROP TABLE people, "Shared ""Things", events, p')
    restore(pg, empty, source)
    again = Session(pg.dsn("restored"))
    try:
        again(f"SET search_path = {ns}, public; SET kalam.user_id = 'alice'")
        again("SELECT kalam_manage('people')")
        again("INSERT INTO people (name) VALUES ('new')")
        assert again("SELECT name FROM people") == [("new",)]
        assert again.key("people") == ["name", "id"]
        assert again("SELECT * FROM kalam_drift('people')") == []
        again.fails("INSERT INTO p VALUES (1, 'x')", "HV00R")
        again("SELECT kalam_manage('p1')")
        again("INSERT INTO p VALUES (1, 'x')")
        again("INSERT INTO events VALUES ('start', '::1')")
    finally:
        again(f"DROP SCHEMA {ns} CASCADE")
        again.close()




# ---------- a database that is not UTF-8 ----------
@pytest.fixture
def latin(pg: Postgres, server: KalamServer, ns: str) -> Iterator[Session]:
    with pg.connect() as conn:
        conn.execute("CREATE DATABASE latin_names TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    session = Session(pg.dsn("latin_names"))
    session(f"CREATE EXTENSION pg_kalam; CREATE SERVER kalam_server FOREIGN DATA WRAPPER pg_kalam "
            f"OPTIONS (host '127.0.0.1', port '{server.port}'); CREATE SCHEMA {ns}; SET search_path = {ns}, public")
    yield session
    session.close()
    with pg.connect() as conn:
        conn.execute("DROP DATABASE latin_names WITH (FORCE)")


def test_names_and_defaults_in_latin1(db: Session, latin: Session, ns: str) -> None:
    db(f'CREATE SCHEMA "{ns}_Maß"; CREATE TABLE "{ns}_Maß"."Stücke" ("größe" int PRIMARY KEY, a text DEFAULT \'süß\') '
       f'USING kalamdb; INSERT INTO "{ns}_Maß"."Stücke" VALUES (1)')
    db(f'CREATE TABLE "{ns}_Maß"."☃" (id int PRIMARY KEY) USING kalamdb')
    latin(f'IMPORT FOREIGN SCHEMA "{ns}_Maß" LIMIT TO ("Stücke") FROM SERVER kalam_server INTO {ns} '
          "OPTIONS (import_default 'true')")
    assert latin.local_columns('"Stücke"') == ["größe", "a", "_seq"]
    assert latin.key('"Stücke"') == ["größe"]
    latin('INSERT INTO "Stücke" ("größe") VALUES (2)')
    assert latin('SELECT "größe", a FROM "Stücke" ORDER BY 1') == [(1, "süß"), (2, "süß")]
    assert latin("SELECT * FROM kalam_drift('\"Stücke\"')") == []
    latin.fails(f'IMPORT FOREIGN SCHEMA "{ns}_Maß" EXCEPT ("Stücke") FROM SERVER kalam_server INTO {ns}', "22P05",
                "LATIN1")
    latin(f'CREATE FOREIGN TABLE t ("größe" int, a text) SERVER kalam_server '
          f"OPTIONS (namespace '{ns}_Maß', \"table\" 'Stücke')")
    assert latin.key("t") == ["größe"]
    assert latin("SELECT * FROM kalam_drift('t')") == []
    db(f'ALTER TABLE "{ns}_Maß"."Stücke" ADD "☃" int')
    latin(f'CREATE FOREIGN TABLE less ("größe" int) SERVER kalam_server '
          f"OPTIONS (namespace '{ns}_Maß', \"table\" 'Stücke')")
    latin('CREATE TABLE mine ("größe" int PRIMARY KEY, a text DEFAULT \'süß\', CONSTRAINT "maß" CHECK ("größe" > 0)) '
          "USING kalamdb")
    assert latin("SELECT * FROM kalam_drift('mine')") == []
    latin.remote(f'ALTER TABLE {ns}.mine ADD COLUMN "höhe" int DEFAULT 5')
    latin.remote(f"ALTER TABLE {ns}.mine ALTER COLUMN a SET DEFAULT 'heiß'")
    assert latin("SELECT object, problem, there FROM kalam_drift('mine')") == [
        ("column a", "has another default", "'heiß'"), ('column "höhe"', "is not here", "integer")]
