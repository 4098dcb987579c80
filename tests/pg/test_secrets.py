"""A secret shows up nowhere: not in catalogs, logs, errors, plans or statistics, of either program.

Everything runs with both logs as talkative as they get; `quiet` looks through them when a test is done.
"""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from support.postgres import Postgres
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

SECRET = "Zaubertrank-0123456789-0123456789-shared"
PASSWORD = "Rumpelstilzchen-4711"
WRONG = "Falsch-0815-0123456789"
KEY = "-----BEGIN PRIVATE KEY-----Sesam-42-----END PRIVATE KEY-----"
SECRETS = [SECRET, PASSWORD, WRONG, "Sesam-42"]
TALKATIVE = {
    "log_statement": "all", "log_min_messages": "debug2", "log_min_error_statement": "debug5",
    "log_min_duration_statement": "0", "log_error_verbosity": "verbose", "log_parameter_max_length": "-1",
    "log_parameter_max_length_on_error": "-1", "debug_print_parse": "on", "debug_print_rewritten": "on",
    "debug_print_plan": "on",
}  # fmt: skip


@pytest.fixture(scope="module")
def guarded() -> Iterator[KalamServer]:
    server = KalamServer(auth__mode="password", auth__shared_secret=SECRET, log_level="debug")
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def db(second: Session) -> Session:
    for name, value in TALKATIVE.items():
        second(f"SET {name} = '{value}'")
    second("SET client_min_messages = notice")
    return second


@pytest.fixture
def quiet(pg: Postgres, guarded: KalamServer) -> Iterator[None]:
    begun, begun_there = pg.log_size(), guarded.log_size()
    yield
    for log in (pg.log_since(begun), guarded.log_since(begun_there)):
        shown = [line for line in log.splitlines() if any(secret in line for secret in SECRETS)]
        assert not shown, shown


def show_nothing(db: Session, *texts: object) -> None:
    for text in (*texts, *db.notices):
        assert not any(secret in str(text) for secret in SECRETS), text


def told(error: psycopg.Error) -> list[str | None]:
    """What the server said: the line with the place of a syntax error is the client's own."""
    diag = error.diag
    return [diag.message_primary, diag.message_detail, diag.message_hint, diag.context, diag.internal_query]


def refused(db: Session, sql: str, sqlstate: str | None, *words: str) -> None:
    error = db.fails(sql, sqlstate, *words)
    show_nothing(db, *told(error))


def make(db: Session, guarded: KalamServer, name: str, more: str) -> None:
    db(f"CREATE SERVER {name} FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{guarded.port}'{more})")


CARRYING = [
    "CREATE SERVER s FOREIGN DATA WRAPPER pg_kalam OPTIONS (host 'h', port '1', auth_header 'Bearer {secret}')",
    "CREATE SERVER s FOREIGN DATA WRAPPER pg_kalam OPTIONS (host 'h', port '1', auth_mode 'account_login',"
    " login_user 'u', login_password '{secret}')",
    "ALTER SERVER kalam_server OPTIONS (ADD auth_header 'Bearer {secret}')",
    "ALTER SERVER kalam_server OPTIONS (ADD login_user 'u', ADD login_password '{secret}')",
    "ALTER SERVER kalam_server VERSION '2' OPTIONS (auth_header 'Bearer {secret}', ADD timeout '5')",
    "CREATE USER MAPPING FOR postgres SERVER kalam_server OPTIONS (auth_header 'Bearer {secret}')",
    "CREATE USER MAPPING FOR PUBLIC SERVER kalam_server OPTIONS (login_user 'u', login_password '{secret}')",
    "DO $$ BEGIN EXECUTE 'CREATE USER MAPPING FOR PUBLIC SERVER kalam_server OPTIONS (login_user ''u'','"
    " || ' login_password ''{secret}'')'; END $$",
]


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("sql", CARRYING)
def test_statements_that_carry_one(db: Session, sql: str) -> None:
    db(sql.format(secret=SECRET))
    db("BEGIN")
    refused(db, "SELECT 1 / 0", "22012")
    db("ROLLBACK")
    show_nothing(
        db,
        db("SELECT srvoptions FROM pg_foreign_server"),
        db("SELECT query FROM pg_stat_activity WHERE pid <> pg_backend_pid()"),
    )


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("sql", "sqlstate"),
    [
        ("CREATE SERVER s FOREIGN DATA WRAPPER pg_kalam OPTIONS (auth_header 'Bearer {secret}', x '1')", "HV00D"),
        ("CREATE SERVER s FOREIGN DATA WRAPPER pg_kalam OPTIONS (auth_heeder 'Bearer {secret}')", "HV00D"),
        ("CREATE SERVER s FOREIGN DATA WRAPPER pg_kalam OPTIONS (auth_header '{secret}')", None),
        ("CREATE SERVER s FOREIGN DATA WRAPPER pg_kalam OPTIONS (auth_header E'Bearer {secret}\\n')", None),
        ("CREATE SERVER s FOREIGN DATA WRAPPER pg_kalam OPTIONS (login_password '{secret}')", None),
        ("CREATE SERVER s FOREIGN DATA WRAPPER pg_kalam OPTIONS (auth_header 'Bearer {secret}',"
         " login_user 'u', login_password '{secret}')", None),
        ("CREATE SERVER s FOREIGN DATA WRAPPER pg_kalam OPTIONS (auth_header 'Bearer {secret}' x", "42601"),
        ("CREATE SERVER kalam_server FOREIGN DATA WRAPPER pg_kalam OPTIONS (auth_header 'Bearer {secret}')", "42710"),
        ("CREATE USER MAPPING FOR nobody_there SERVER kalam_server OPTIONS (auth_header 'Bearer {secret}')", "42704"),
        ("CREATE USER MAPPING FOR PUBLIC SERVER kalam_server OPTIONS (login_password '{secret}', user_ID 'x')", None),
        ("CREATE USER MAPPING FOR PUBLIC SERVER kalam_server OPTIONS (login_user E'\\x01', login_password '{secret}')",
         None),
        ("ALTER SERVER nowhere OPTIONS (auth_header 'Bearer {secret}')", "42704"),
        ("ALTER USER MAPPING FOR PUBLIC SERVER kalam_server OPTIONS (SET auth_header 'Bearer {secret}')", "42704"),
        ("SELECT kalam_exec('CREATE USER u PASSWORD ''{secret}'' ROLE nonsense')", None),
        ("SELECT kalam_exec('CREATE USER u PASSWORD ''{secret}'' nonsense')", None),
        ("DO $$ BEGIN EXECUTE 'ALTER SERVER nowhere OPTIONS (auth_header ''Bearer {secret}'')'; END $$", "42704"),
        ("CREATE FOREIGN TABLE t (id int) SERVER kalam_server OPTIONS (auth_header 'Bearer {secret}')", "HV00D"),
    ],
)  # fmt: skip
def test_statements_that_fail(db: Session, sql: str, sqlstate: str | None) -> None:
    refused(db, sql.format(secret=SECRET), sqlstate)
    with pytest.raises(psycopg.Error) as caught:  # as a prepared statement with its own log lines
        db.conn.execute(sql.format(secret=SECRET).replace("%", "%%"), prepare=True)
    show_nothing(db, *told(caught.value))
    assert db("SELECT 1") == [(1,)]


@pytest.mark.usefixtures("quiet")
def test_moves_to_the_mapping_of_public(db: Session, guarded: KalamServer) -> None:
    make(db, guarded, "s", f", auth_header 'Bearer {SECRET}'")
    assert [notice for notice in db.notices if "auth_header" in notice and "PUBLIC" in notice]
    assert db.value("SELECT kalam_exec('SELECT 1 AS one', 's')") == '[{"one":1}]'
    assert db.value("SELECT array_agg(split_part(o, '=', 1)) FROM pg_foreign_server, unnest(srvoptions) o"
                    " WHERE srvname = 's'") == ["host", "port"]
    assert db("SELECT usename, umoptions FROM pg_user_mappings WHERE srvname = 's'") == [
        ("public", [f"auth_header=Bearer {SECRET}"])
    ]
    db("ALTER SERVER s OPTIONS (SET auth_header 'Bearer " + WRONG + "')")
    refused(db, "SELECT kalam_exec('SELECT 1', 's')", "28P01", "auth_header")
    db("ALTER SERVER s OPTIONS (DROP auth_header)")
    assert db("SELECT umoptions FROM pg_user_mappings WHERE srvname = 's'") in ([(None,)], [([],)])
    refused(db, "ALTER SERVER s OPTIONS (DROP auth_header)", "42704", "auth_header")
    db("BEGIN; CREATE SERVER r FOREIGN DATA WRAPPER pg_kalam OPTIONS (auth_header 'Bearer x'); ROLLBACK")
    assert not db("SELECT FROM pg_user_mappings WHERE srvname = 'r'")


@pytest.mark.usefixtures("quiet")
def test_wherever_a_connection_shows(db: Session, guarded: KalamServer, pg: Postgres) -> None:
    make(db, guarded, "s", f", auth_header 'Bearer {SECRET}'")
    db(f"SELECT kalam_exec('CREATE USER app PASSWORD ''{PASSWORD}'' ROLE service', 's')")
    make(db, guarded, "a", f", auth_mode 'account_login', login_user 'app', login_password '{PASSWORD}'")
    db.notices.clear()
    for name in ("s", "a"):
        db(f"CREATE TABLE {name} (id int PRIMARY KEY, x text) USING kalamdb WITH (server = '{name}')")
        db(f"INSERT INTO {name} VALUES (1, 'x')")
        show_nothing(
            db,
            db(f"EXPLAIN (VERBOSE, ANALYZE) SELECT * FROM {name} WHERE id = 1"),
            db(f"SELECT kalam_server_info('{name}')"),
            db("SELECT c::text FROM kalam_connections() c"),
            db(f"SELECT kalam_exec('SHOW TABLE public.{name}', '{name}')"),
            db("SELECT a::text FROM pg_stat_activity a WHERE pid <> pg_backend_pid()"),
            db("SELECT f::text FROM pg_foreign_server f"),
            db("SELECT f::text FROM pg_foreign_table f"),
            db("SELECT name, setting FROM pg_settings"),
        )
        refused(db, f"INSERT INTO {name} VALUES (1, 'again')", "23505")
        refused(db, f"SELECT kalam_exec('nonsense', '{name}')", "42601")
    there = psycopg.connect(guarded.dsn("bearer", password=SECRET), autocommit=True)
    for statement in ("SHOW ALL", "SHOW SETTINGS", "SELECT * FROM system.settings", "SELECT * FROM system.users"):
        try:
            show_nothing(db, there.execute(statement).fetchall())
        except psycopg.Error as error:
            show_nothing(db, error)
    there.close()


@pytest.mark.usefixtures("quiet")
def test_server_that_goes_away(db: Session, guarded: KalamServer) -> None:
    make(db, guarded, "s", f", auth_header 'Bearer {SECRET}'")
    assert db.value("SELECT kalam_exec('SELECT 1 AS one', 's')")
    guarded.kill()
    refused(db, "SELECT kalam_exec('SELECT 1', 's')", None)
    refused(db, "SELECT kalam_exec('SELECT 1', 's')", "08001")
    guarded.start()
    assert db.value("SELECT kalam_exec('SELECT 1 AS one', 's')")


@pytest.mark.usefixtures("quiet")
def test_passwords_on_the_server(db: Session, guarded: KalamServer) -> None:
    """Its own SQL carries passwords, too; and clients offer wrong ones."""
    make(db, guarded, "s", f", auth_header 'Bearer {SECRET}'")
    db(f"SELECT kalam_exec('CREATE USER mine PASSWORD ''{PASSWORD}''', 's')")
    db(f"SELECT kalam_exec('ALTER USER mine PASSWORD ''{PASSWORD}2''', 's')")
    with psycopg.connect(guarded.dsn("bearer", password=SECRET), autocommit=True) as there:
        for sql in (f"CREATE USER mine PASSWORD '{PASSWORD}'", f"CREATE USER PASSWORD '{PASSWORD}'"):
            with pytest.raises(psycopg.Error) as caught:
                there.execute(sql)
            show_nothing(db, *told(caught.value))
    for user, password in (("bearer", WRONG), ("mine", WRONG), (WRONG, PASSWORD)):
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(guarded.dsn(user, password=password))


# ---------- who may see and set what ----------
@pytest.fixture
def plain(db: Session, pg: Postgres, guarded: KalamServer) -> Iterator[Session]:
    """An ordinary role with USAGE on the wrapper and on a server with secrets."""
    make(db, guarded, "s", f", auth_header 'Bearer {SECRET}'")
    role = f"plain_{db.conn.info.dbname}"
    db(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON FOREIGN DATA WRAPPER pg_kalam TO {role};"
       f"GRANT USAGE ON FOREIGN SERVER s TO {role}; GRANT CREATE ON SCHEMA public TO {role}")
    session = Session(pg.dsn(db.conn.info.dbname, role))
    yield session
    session.close()
    db(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.usefixtures("quiet")
def test_ordinary_role_sees_none(plain: Session, db: Session) -> None:
    db("CREATE USER MAPPING FOR postgres SERVER s OPTIONS (auth_header 'Bearer " + SECRET + "')")
    assert plain("SELECT umoptions FROM pg_user_mappings WHERE srvname = 's'") == [(None,), (None,)]
    assert plain("SELECT FROM information_schema.user_mapping_options WHERE option_value IS NOT NULL") == []
    show_nothing(db, plain("SELECT s::text FROM pg_foreign_server s"), plain("SELECT kalam_server_info('s')"))
    plain.fails("SELECT * FROM pg_user_mapping", "42501")


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("option", ["ca_cert", "client_cert", "client_key"])
def test_file_paths_are_for_superusers(plain: Session, db: Session, guarded: KalamServer, option: str) -> None:
    pair = {"client_cert": ", client_key '{}'", "client_key": ", client_cert '{}'", "ca_cert": ""}[option].format(KEY)
    sql = f"CREATE SERVER p FOREIGN DATA WRAPPER pg_kalam OPTIONS ({option} '/etc/passwd'{pair})"
    error = plain.fails(sql, "42501", option)
    show_nothing(db, *told(error))
    plain("CREATE SERVER p FOREIGN DATA WRAPPER pg_kalam")
    plain.fails(f"ALTER SERVER p OPTIONS (ADD {option} 'relative/path'{pair.replace(', ', ', ADD ')})", "42501", option)
    if option != "ca_cert":
        plain.fails(f"CREATE USER MAPPING FOR CURRENT_USER SERVER p OPTIONS ({option} '/x'{pair})", "42501", option)
    inline = KEY.replace("PRIVATE KEY", "CERTIFICATE")
    plain(f"ALTER SERVER p OPTIONS (ADD ca_cert '{inline}')")
    db(sql.replace("SERVER p", "SERVER q"))
    plain.fails("DROP SERVER q", "42501")


@pytest.mark.usefixtures("quiet")
def test_role_without_a_mapping_of_its_own_uses_no_others(plain: Session, db: Session, guarded: KalamServer) -> None:
    """Credentials in another role's mapping are not for it."""
    make(db, guarded, "bare", "")
    db("CREATE USER MAPPING FOR postgres SERVER bare OPTIONS (auth_header 'Bearer " + SECRET + "')")
    db(f"GRANT USAGE ON FOREIGN SERVER bare TO plain_{db.conn.info.dbname}")
    assert db("SELECT kalam_ping('bare') IS NOT NULL") == [(True,)]
    assert plain.fails("SELECT kalam_ping('bare')", None).sqlstate in ("28000", "28P01")


@pytest.mark.usefixtures("quiet")
def test_what_others_see_while_it_runs(db: Session, plain: Session, guarded: KalamServer) -> None:
    """pg_stat_activity shows a statement to its own role and superusers; never to others."""
    db("BEGIN")
    db("CREATE USER MAPPING FOR postgres SERVER kalam_server OPTIONS (auth_header 'Bearer " + SECRET + "')")
    assert not plain(f"SELECT FROM pg_stat_activity WHERE query LIKE '%{SECRET[:9]}_%' AND pid <> pg_backend_pid()")
    db("ROLLBACK")
