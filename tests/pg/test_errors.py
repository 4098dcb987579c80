"""What goes wrong and what the user is told: SQLSTATE, one fact, a hint; never XX000, and nothing lost."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from support.build import Installed
from support.ports import free_port
from support.postgres import Postgres
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

SECRET = "s3cret-in-all-of-these-tests-0123456789"


@pytest.fixture
def table(db: Session, ns: str) -> str:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, body text) USING kalamdb WITH (type = 'shared')")
    return f"{ns}.t"


@pytest.fixture(scope="module")
def bare_pg(installed: Installed) -> Iterator[Postgres]:
    """A PostgreSQL without the library in shared_preload_libraries."""
    pg = Postgres(installed, shared_preload_libraries="")
    try:
        pg.start()
        with pg.connect() as conn:
            conn.execute("CREATE EXTENSION pg_kalam")
        yield pg
    finally:
        pg.close()


@pytest.fixture(scope="module")
def guarded() -> Iterator[KalamServer]:
    """A server that asks for credentials."""
    server = KalamServer(auth__mode="password", auth__shared_secret=SECRET)
    try:
        server.start()
        yield server
    finally:
        server.close()


def make_server(db: Session, ns: str, port: int | str, more: str = "") -> str:
    db(f"CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{port}'{more})")
    return f"{ns}_s"


# ---------- the library ----------
def test_using_without_the_hook(bare_pg: Postgres) -> None:
    session = Session(bare_pg.dsn())
    session.fails("CREATE TABLE t (id bigint) USING kalamdb", "55000", "shared_preload_libraries", "LOAD 'pg_kalam'")
    session.close()


def test_load_makes_using_work(bare_pg: Postgres, server: KalamServer) -> None:
    session = Session(bare_pg.dsn())
    session("LOAD 'pg_kalam'")
    session("CREATE SERVER kalam_server FOREIGN DATA WRAPPER pg_kalam "
            f"OPTIONS (host '127.0.0.1', port '{server.port}')")
    session("CREATE SCHEMA by_load; CREATE TABLE by_load.t (id bigint) USING kalamdb")
    session("INSERT INTO by_load.t VALUES (1)")
    assert session("SELECT id FROM by_load.t") == [(1,)]
    ids = [row[0] for row in session("SELECT snowflake_id() FROM generate_series(1, 2000)")]
    assert len(set(ids)) == 2000
    assert len({number >> 22 for number in ids}) < 1000, "a backend has a share of each millisecond"
    session.close()


# ---------- reaching the server ----------
def test_no_server_of_that_name(db: Session, ns: str) -> None:
    db.fails(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb WITH (server = 'nowhere')", "42704", "nowhere",
             "CREATE SERVER")
    db("SET kalam.default_server = 'elsewhere'")
    db.fails(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb", "42704", "elsewhere", "CREATE SERVER")
    db.fails("SELECT kalam_exec('SELECT 1')", "42704", "elsewhere")


def test_nobody_listens(db: Session, ns: str) -> None:
    port = free_port()
    name = make_server(db, ns, port)
    db.fails(f"SELECT kalam_exec('SELECT 1', '{name}')", "08001", f"could not connect to KalamDB at 127.0.0.1:{port}: ")
    db.fails(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb WITH (server = '{name}')", "08001")
    assert not db.exists(f"{ns}.t")


def test_no_such_host(db: Session, ns: str) -> None:
    name = make_server(db, ns, 1)
    db(f"ALTER SERVER {name} OPTIONS (SET host 'no-such-host.invalid')")
    db.fails(f"SELECT kalam_exec('SELECT 1', '{name}')", "08001", "no-such-host.invalid")


def test_the_http_port(db: Session, ns: str, server: KalamServer) -> None:
    assert server.http is not None
    name = make_server(db, ns, server.http.rpartition(":")[2])
    db.fails(f"SELECT kalam_exec('SELECT 1', '{name}')", "08001", "HTTP port", f"{server.port}")


def test_options_needed_at_first_use(db: Session, ns: str) -> None:
    db(f"CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam")
    db.fails(f"SELECT kalam_exec('SELECT 1', '{ns}_s')", None, "host", "ALTER SERVER")


# ---------- who is asking ----------
@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ("", "auth_header"),
        (", auth_header 'Bearer wrong-and-long-enough-to-be-one'", "auth_header"),
        (", auth_mode 'account_login', login_user 'nobody', login_password 'guessing'", "login_user"),
    ],
)
def test_wrong_credentials(db: Session, ns: str, guarded: KalamServer, options: str, hint: str) -> None:
    name = make_server(db, ns, guarded.port, options)
    error = db.fails(f"SELECT kalam_exec('SELECT 1', '{name}')", None, hint)
    assert error.sqlstate in ("28000", "28P01")
    assert "guessing" not in str(error)
    assert "wrong-and-long" not in str(error)


def test_credentials_that_are_right(db: Session, ns: str, guarded: KalamServer) -> None:
    name = make_server(db, ns, guarded.port, f", auth_header 'Bearer {SECRET}'")
    assert db.value(f"SELECT kalam_exec('SELECT 1 AS one', '{name}')") == '[{"one":1}]'


def test_account_login(db: Session, ns: str, guarded: KalamServer) -> None:
    name = make_server(db, ns, guarded.port, f", auth_header 'Bearer {SECRET}'")
    create = f"SELECT kalam_exec('CREATE USER {ns}_app PASSWORD ''long enough'' ROLE service', '{name}')"
    db("BEGIN")
    db(create)
    db("ROLLBACK")
    db(create)
    db.fails(create, "42710", f"{ns}_app")
    other = f"{ns}_t"
    db(f"CREATE SERVER {other} FOREIGN DATA WRAPPER pg_kalam "
       f"OPTIONS (host '127.0.0.1', port '{guarded.port}', auth_mode 'account_login')")
    db(f"CREATE USER MAPPING FOR PUBLIC SERVER {other} OPTIONS (login_user '{ns}_app', login_password 'long enough')")
    assert db.value(f"SELECT kalam_exec('SELECT 2 AS two', '{other}')") == '[{"two":2}]'


def test_no_tenant(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.notes (id bigint PRIMARY KEY, body text) USING kalamdb WITH (type = 'user')")
    for sql in (f"SELECT * FROM {ns}.notes", f"INSERT INTO {ns}.notes VALUES (1, 'x')",
                f"UPDATE {ns}.notes SET body = 'x'", f"DELETE FROM {ns}.notes"):
        db.fails(sql, "42501", "SET kalam.user_id")
    db("SET kalam.user_id = 'alice'")
    assert db(f"SELECT * FROM {ns}.notes") == []


@pytest.fixture
def plain(db: Session, ns: str, dsn: str) -> Iterator[Session]:
    """A session of a role without any rights of its own."""
    role = f"{ns}_role"
    db(f"CREATE ROLE {role} LOGIN; GRANT USAGE, CREATE ON SCHEMA {ns} TO {role}")
    session = Session(psycopg.conninfo.make_conninfo(dsn, user=role))
    yield session
    session.close()
    db(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_role_may_not_set_the_tenant(plain: Session, db: Session, ns: str) -> None:
    plain.fails("SET kalam.user_id = 'alice'", "42501", "kalam.user_id")
    db(f"GRANT SET ON PARAMETER kalam.user_id TO {ns}_role")
    plain("SET kalam.user_id = 'alice'")
    assert plain.value("SELECT kalam_user_id()") == "alice"


def test_kalam_exec_without_the_privilege(plain: Session) -> None:
    plain.fails("SELECT kalam_exec('SELECT 1')", "42501", "kalam_exec")


def test_using_without_usage_on_the_server(plain: Session, db: Session, ns: str) -> None:
    plain.fails(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb", "42501",
                f"GRANT USAGE ON FOREIGN SERVER kalam_server TO {ns}_role")
    db(f"GRANT USAGE ON FOREIGN SERVER kalam_server TO {ns}_role")
    plain(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb")


# ---------- what is there ----------
def test_columns_that_differ(db: Session, ns: str, table: str) -> None:
    db.fails(f"CREATE FOREIGN TABLE {ns}.f (id bigint, nobody text) SERVER kalam_server "
             f"OPTIONS (namespace '{ns}', \"table\" 't')", "HV005", "nobody")
    db.fails(f"CREATE FOREIGN TABLE {ns}.f (id bigint, body bigint) SERVER kalam_server "
             f"OPTIONS (namespace '{ns}', \"table\" 't')", None, "body")


def test_columns_that_differ_later(db: Session, ns: str, table: str) -> None:
    """The remote table is replaced by another behind PostgreSQL's back."""
    db(f"INSERT INTO {table} VALUES (1, 'x')")
    db.remote(f"DROP TABLE {ns}.t")
    db.fails(f"SELECT * FROM {table}", "HV00R", f"{ns}.t")
    db.remote(f"CREATE SHARED TABLE {ns}.t (id bigint PRIMARY KEY, other text)")
    db.fails(f"SELECT body FROM {table}", "HV005", "body")
    assert db(f"SELECT id FROM {table}") == []


def test_the_remote_table_is_not_there(db: Session, ns: str, table: str) -> None:
    db.fails(f"CREATE FOREIGN TABLE {ns}.f (id bigint) SERVER kalam_server "
             f"OPTIONS (namespace '{ns}', \"table\" 'gone')", "HV00R", "gone")
    db.remote(f"DROP TABLE {ns}.t")
    for sql in (f"SELECT * FROM {table}", f"INSERT INTO {table} VALUES (1, 'x')", f"UPDATE {table} SET body = 'x'",
                f"DELETE FROM {table}", f"INSERT INTO {table} VALUES (1, 'x'), (2, 'y')"):
        db.fails(sql, "HV00R", "t")


def test_a_row_that_is_too_long_for_the_server(db: Session, ns: str) -> None:
    small = KalamServer(rpc__max_message="1")
    try:
        small.start()
        name = make_server(db, ns, small.port)
        db(f"CREATE TABLE {ns}.big (id bigint PRIMARY KEY, t text) USING kalamdb WITH (server = '{name}')")
        for sql in ("INSERT INTO {} VALUES (1, repeat('x', 2000000))", "UPDATE {} SET t = repeat('x', 2000000)",
                    "SELECT id FROM {} WHERE t = repeat('x', 2000000)"):
            db(f"INSERT INTO {ns}.big VALUES (0, '') ON CONFLICT DO NOTHING")
            db.fails(sql.format(f"{ns}.big"), "54000", "too long", "rpc.max_message")
            db("BEGIN")
            db(f"INSERT INTO {ns}.big VALUES (2, 'kept')")
            db("SAVEPOINT s")
            db.fails(sql.format(f"{ns}.big"), "54000")
            db("ROLLBACK TO s")
            assert db(f"SELECT id FROM {ns}.big ORDER BY id") == [(0,), (2,)]
            db("ROLLBACK")
        db(f"DROP SERVER {name} CASCADE")
    finally:
        small.close()


# ---------- options ----------
@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (hots 'x')", ["hots", "host", "port"]),
        ("CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (port '0')", ["port", "65535"]),
        ("CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (port 'abc')", ["port"]),
        ("CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (fetch_size '0')", ["fetch_size"]),
        ("CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (fetch_size '1000001')", ["fetch_size"]),
        ("CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (timeout '-1')", ["timeout"]),
        ("CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (auth_mode 'magic')", ["static_header"]),
        ("CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (login_user 'a')", ["login"]),
        ("CREATE SERVER {ns}_s FOREIGN DATA WRAPPER pg_kalam OPTIONS (client_cert 'x')", ["client_"]),
        ("CREATE TABLE {ns}.x (id bigint) USING kalamdb WITH (typ = 'user')", ["typ", "type"]),
        ("CREATE TABLE {ns}.x (id bigint) USING kalamdb WITH (type = 'private')", ["type", "shared"]),
        ("CREATE TABLE {ns}.x (id bigint) USING kalamdb WITH (type = 'user, shared')", ["type", "shared"]),
        ("CREATE TABLE {ns}.x (id bigint) USING kalamdb WITH (type = 'stream', ttl_seconds = '0')", ["ttl_seconds"]),
        ("CREATE TABLE {ns}.x (id bigint) USING kalamdb WITH (flush_policy = 'sometimes')", ["flush_policy"]),
        ("CREATE FOREIGN TABLE {ns}.x (id bigint OPTIONS (column_nam 'y')) SERVER kalam_server", ["column_nam"]),
        ("CREATE USER MAPPING FOR PUBLIC SERVER kalam_server OPTIONS (user_idd 'x')", ["user_idd", "user_id"]),
        ("ALTER FOREIGN TABLE {ns}.t OPTIONS (ADD fetch_sise '3')", ["fetch_sise", "fetch_size"]),
    ],
)
def test_bad_option(db: Session, ns: str, table: str, sql: str, words: list[str]) -> None:
    error = db.fails(sql.format(ns=ns), None, *words)
    assert error.sqlstate is not None
    assert error.sqlstate in ("HV00D", "22023", "HV024"), error.sqlstate


@pytest.mark.parametrize("word", ["t", "f", "yes", "no", "on", "off", "1", "0", "TRUE"])
def test_booleans_in_all_their_words(db: Session, ns: str, table: str, word: str) -> None:
    db(f"CREATE FOREIGN TABLE {ns}.x (id bigint) SERVER kalam_server OPTIONS (namespace '{ns}', \"table\" 't', "
       f"updatable '{word}', truncatable '{word}', use_remote_estimate '{word}')")
    assert db(f"SELECT id FROM {ns}.x") == []
    if db.value("SELECT %s::boolean", word):
        db(f"INSERT INTO {ns}.x VALUES (1)")
    else:
        db.fails(f"INSERT INTO {ns}.x VALUES (1)", "55000", "does not allow inserts")


@pytest.mark.parametrize("option", ["ca_cert '-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----'"])
def test_tls_is_refused_until_it_works(db: Session, ns: str, server: KalamServer, option: str) -> None:
    name = make_server(db, ns, server.port, f", {option}")
    db.fails(f"SELECT kalam_exec('SELECT 1', '{name}')", "0A000")


# ---------- what the server says ----------
@pytest.mark.parametrize(
    ("remote", "sqlstate"),
    [
        ("SELECT * FROM nowhere.t", "42P01"),
        ("SELECT nothing FROM {ns}.t", "42703"),
        ("SELEKT 1", "42601"),
        ("INSERT INTO {ns}.t VALUES (1, 'dup'), (1, 'dup')", "23505"),
        ("INSERT INTO {ns}.t VALUES ('abc', 'x')", "22P02"),
        ("BEGIN", "0A000"),
        ("COMMIT", "0A000"),
        ("ROLLBACK", "0A000"),
        ("", None),
        ("SELECT 1; SELECT 2", None),
    ],
)
def test_the_servers_error_reaches_the_user(
    db: Session, ns: str, table: str, remote: str, sqlstate: str | None
) -> None:
    error = db.fails("SELECT kalam_exec('" + remote.format(ns=ns).replace("'", "''") + "')", sqlstate)
    if sqlstate not in (None, "0A000"):
        assert "remote SQL command" in str(error.diag.context)
    assert "Traceback" not in str(error)
    assert db("SELECT 1") == [(1,)]


def test_read_only_transaction_stays_read_only(db: Session, ns: str, table: str) -> None:
    db("BEGIN READ ONLY")
    db.fails(f"SELECT kalam_exec('INSERT INTO {ns}.t VALUES (1, ''x'')')", "25006")
    db("ROLLBACK")
    db("BEGIN READ ONLY")
    db.fails(f"INSERT INTO {table} VALUES (1, 'x')", "25006")
    db("ROLLBACK")
    assert db(f"SELECT * FROM {table}") == []
