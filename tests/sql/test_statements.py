"""What the server's SQL has beside queries, who may say it, and how it refuses the rest."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import pq

from support.server import KalamServer

from .client import Client, Failed

GOOD = "long enough"


@pytest.fixture
def accounts(server: KalamServer, ns: str) -> Iterator[Callable[[str], Client]]:
    """Clients of accounts of this test, one for each role, which is made with its first use."""
    opened: dict[str, Client] = {}
    boss = Client(server.dsn())

    def of(role: str) -> Client:
        if role not in opened:
            boss.run(f"CREATE USER IF NOT EXISTS {ns}_{role} PASSWORD '{GOOD}' ROLE {role}")
            opened[role] = Client(server.dsn(f"{ns}_{role}"))
            opened[role].run(f"SET search_path = {ns}")
        return opened[role]

    yield of
    for client in opened.values():
        client.close()
    for (name,) in boss.rows(f"SELECT name FROM system.users WHERE name LIKE '{ns}\\_%' ORDER BY name"):
        with contextlib.suppress(Failed):  # the last administrator stays
            boss.run(f"DROP USER {name}")
    boss.close()


# ---------- namespaces ----------
def test_drop_namespace(db: Client, ns: str) -> None:
    db.run(f"CREATE NAMESPACE {ns}_a;")
    db.run(f"CREATE NAMESPACE {ns}_b")
    db.run(f"CREATE TABLE {ns}_a.t (id int PRIMARY KEY)")
    db.run(f"INSERT INTO {ns}_a.t VALUES (1)")
    error = db.fails("2BP01", f"DROP NAMESPACE {ns}_b, {ns}_a")
    assert error.detail == f'table "t" depends on schema "{ns}_a"'
    assert db.rows(f"SHOW NAMESPACES LIKE '{ns}\\__'") == [(f"{ns}_a",), (f"{ns}_b",)]
    db.run(f"DROP NAMESPACE IF EXISTS {ns}_b, {ns}_a, {ns}_c CASCADE")
    assert db.notices == [f'schema "{ns}_c" does not exist, skipping', "drop cascades to 1 table"]
    db.fails("3F000", f"DROP SCHEMA {ns}_a")
    db.fails("3F000", f"CREATE TABLE {ns}_a.t (id int PRIMARY KEY)")
    db.fails("3F000", f"UNDROP TABLE {ns}_a.t")
    db.run(f"CREATE SCHEMA {ns}_a")
    assert db.rows(f"SHOW TABLES IN {ns}_a") == []
    db.run(f"UNDROP TABLE {ns}_a.t")
    assert db.rows(f"SELECT * FROM {ns}_a.t") == [("1",)]
    db.fails("42939", "DROP NAMESPACE system")


def test_drop_namespace_and_others(server: KalamServer, db: Client, other: Client, ns: str) -> None:
    """Who makes a table keeps its namespace from going, and the other way round; a rollback undoes both."""
    name = f"{ns}_x"
    db.run(f"CREATE NAMESPACE {name}")
    db.run("BEGIN")
    db.run(f"CREATE TABLE {name}.t (id int PRIMARY KEY)")
    other.run("SET lock_timeout = '50ms'")
    other.fails("55P03", f"DROP NAMESPACE {name}")
    db.run("ROLLBACK")
    other.run("BEGIN")
    other.run(f"DROP NAMESPACE {name}")
    failed: list[str | None] = []

    def create() -> None:
        try:
            db.run(f"CREATE TABLE {name}.t (id int PRIMARY KEY)")
        except Failed as error:
            failed.append(error.sqlstate)

    thread = threading.Thread(target=create)
    thread.start()
    with psycopg.connect(server.dsn(), autocommit=True) as observer:
        while not observer.execute("SELECT 1 FROM system.transactions WHERE waiting").fetchall():
            assert thread.is_alive()
    other.run("COMMIT")
    thread.join()
    assert failed == ["3F000"]
    other.run("BEGIN")
    other.run(f"CREATE NAMESPACE {name}")
    other.run("SAVEPOINT a")
    other.run(f"DROP NAMESPACE {name}")
    other.run("ROLLBACK TO a")
    assert other.rows(f"SHOW NAMESPACES LIKE '{name}'") == [(name,)]
    other.run("COMMIT")
    assert db.rows(f"SHOW NAMESPACES LIKE '{name}'") == [(name,)]


# ---------- accounts ----------
@pytest.mark.parametrize(("role", "sql", "sqlstate"), [
    ("user", "CREATE USER {ns}_n", "42501"), ("service", "CREATE USER {ns}_n", "42501"),
    ("dba", "CREATE USER {ns}_n ROLE system", "42501"), ("dba", "CREATE USER {ns}_n ROLE servise", "22023"),
    ("user", "ALTER USER {ns}_user PASSWORD 'my new password'", None),
    ("user", "ALTER USER {ns}_user PASSWORD 'my new password' ROLE user", "42501"),
    ("user", "ALTER USER {ns}_user PASSWORD NULL", "42501"), ("user", "ALTER USER {ns}_user UNLOCK", "42501"),
    ("user", "ALTER USER {ns}_dba PASSWORD 'my new password'", "42501"), ("dba", "DROP USER {ns}_dba", "55006"),
    ("dba", "CREATE USER {ns}_dba", "42710"), ("dba", "CREATE USER IF NOT EXISTS {ns}_dba ROLE user", None),
    ("dba", "ALTER USER {ns}_none LOCK", "42704"), ("dba", "ALTER USER IF EXISTS {ns}_none LOCK", None),
    ("dba", "CREATE USER {ns}_n PASSWORD 'short'", "22023"), ("dba", "CREATE USER bearer", "42939"),
    ("dba", "CREATE USER {ns}_n LOCK UNLOCK", "42601"), ("dba", "ALTER USER {ns}_dba", "42601"),
    ("dba", "CREATE USER {ns}_n PASWORD 'a secret word'", "42601"),
    ("dba", "CREATE USER {ns}_n 'a secret word'", "42601"),
    ("dba", "CREATE USER {ns}_n PASSWORD a secret word", "42601"),
])
def test_who_manages_accounts(accounts: Callable[[str], Client], ns: str, role: str, sql: str, sqlstate: str | None
                              ) -> None:
    accounts("dba")
    client, text = accounts(role), sql.format(ns=ns)
    if sqlstate is None:
        client.run(text)
    else:
        assert "secret" not in str(client.fails(sqlstate, text))
    assert client.value("SELECT 1") == "1"


def test_a_locked_account_and_the_last_administrator() -> None:
    server = KalamServer(auth__shared_secret="tell nobody at all")
    try:
        server.start()
        boss = Client(server.dsn("bearer", password="tell nobody at all"))
        boss.run(f"CREATE USER one PASSWORD '{GOOD}' ROLE dba")
        for sql in ("DROP USER one", "ALTER USER one LOCK", "ALTER USER one ROLE service",
            "ALTER USER one PASSWORD NULL"):
            boss.fails("55000", sql)
        boss.run(f"CREATE USER two PASSWORD '{GOOD}' ROLE dba LOCK")
        boss.fails("55000", "DROP USER one")
        boss.run("ALTER USER two UNLOCK")
        boss.run("ALTER USER one LOCK")
        with pytest.raises(psycopg.OperationalError, match='account "one" is locked'):
            psycopg.connect(server.dsn("one", password=GOOD))
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(server.dsn("one", password="wrong password"))
        boss.close()
        server.restart()
        boss = Client(server.dsn("two", password=GOOD))
        assert boss.rows("SHOW USERS") == [("one", "dba", "t", "t"), ("two", "dba", "t", "f")]
        boss.run("ALTER USER one UNLOCK")
        Client(server.dsn("one", password=GOOD)).close()
        boss.run("DROP USER one")
        boss.close()
        assert GOOD not in server.log_since(0)
    finally:
        server.close()


def ended(client: Client) -> None:
    """By an administrator's command, and nothing more is done for it."""
    with socket.socket(fileno=os.dup(client.conn.socket)) as link:
        link.setblocking(True)
        link.settimeout(30)
        said = b"".join(iter(lambda: link.recv(1000), b""))
    client.conn.exec_(b"SELECT 1")  # libpq may have read it already, and takes it for a notice
    told = [said.decode(), *client.notices]
    assert any("terminating connection due to administrator command" in each for each in told), told


@pytest.mark.parametrize("sql", ["ALTER USER {} LOCK", "DROP USER {}", "ALTER USER {} ROLE service"])
def test_an_account_that_loses_rights_loses_its_sessions(db: Client, accounts: Callable[[str], Client], ns: str,
    server: KalamServer, sql: str) -> None:
    """Idle, within a transaction that holds a lock on its own account, and waiting for such a lock."""
    accounts("dba")  # another administrator
    name = f"{ns}_gone"
    db.run(f"CREATE USER {name} PASSWORD '{GOOD}' ROLE dba")
    idle, holding, waiting = (Client(server.dsn(name, password=GOOD)) for _ in range(3))
    holding.run("BEGIN")
    holding.run(f"ALTER USER {name} PASSWORD 'another good one'")
    waiting.conn.send_query(f"BEGIN; ALTER USER {name} PASSWORD 'a third good one'".encode())
    db.run("SET lock_timeout = '20s'")
    db.run("BEGIN")
    db.run(sql.format(name))
    ended(holding)
    assert idle.value("SELECT 1") == "1"
    db.run("COMMIT")
    ended(idle)
    answers = []
    while (result := waiting.conn.get_result()) is not None:
        answers.append(result.error_field(pq.DiagnosticField.SQLSTATE))
    assert b"57P01" in answers
    assert db.rows("SHOW USERS LIKE 'evil'") == []
    if "DROP" not in sql:
        db.run(f"DROP USER {name}")


def test_who_takes_its_own_role_is_answered_first(db: Client, accounts: Callable[[str], Client], ns: str,
    server: KalamServer) -> None:
    accounts("dba")
    name = f"{ns}_tired"
    db.run(f"CREATE USER {name} PASSWORD '{GOOD}' ROLE dba")
    client = Client(server.dsn(name, password=GOOD))
    client.run("BEGIN")
    client.run(f"ALTER USER {name} ROLE user")
    client.fails("42501", "CREATE USER evil ROLE dba")
    client.run("ROLLBACK")
    client.run("BEGIN")
    client.run(f"ALTER USER {name} ROLE service")
    assert client.run("COMMIT").tag == "COMMIT"
    ended(client)
    db.run(f"DROP USER {name}")


# ---------- access levels ----------
@pytest.mark.parametrize("sql", [
    "FILE PUT INTO secret ({column}) DATA 'x'", "FILE OPEN INTO secret ({column})", "FILE GET {column} FROM secret",
    "INSERT INTO secret ({column}) VALUES (1)", "SELECT {column} FROM secret",
    "SELECT id AS x FROM secret ORDER BY {column}",
    "UPDATE secret SET {column} = 1", "DELETE FROM secret WHERE {column} = 1", "DELETE FROM secret RETURNING {column}",
    "SELECT a.id FROM open a JOIN secret b ON b.{column} = a.id", "SELECT (SELECT max({column}) FROM secret) FROM open",
    "EXECUTE AS USER '{ns}_user' (SELECT {column} FROM secret)",
])
def test_columns_of_tables_that_one_may_not_read_are_not_told(
    db: Client, accounts: Callable[[str], Client], ns: str, sql: str) -> None:
    """One error whatever there is, when it is prepared as well."""
    db.run("CREATE TABLE open (id int PRIMARY KEY) WITH (access_level = 'public')")
    db.run("CREATE TABLE secret (id int PRIMARY KEY, f FILE) WITH (access_level = 'dba')")
    user = accounts("user")
    for column in ("id", "f", "nothing"):
        assert "nothing" not in str(user.fails("42501", sql.format(column=column, ns=ns)))
        text = sql.format(column=column, ns=ns).encode()
        result = user.conn.prepare(b"", text)
        assert b"permission denied for table secret" in result.error_message


@pytest.mark.parametrize(("role", "sql", "sqlstate"), [
    ("service", "CREATE TABLE n (id int PRIMARY KEY) WITH (access_level = 'dba')", "42501"),
    ("service", "ALTER TABLE private SET (access_level = 'dba')", "42501"),
    ("service", "ALTER TABLE secret SET (access_level = 'public')", "42501"),
    ("service", "ALTER TABLE private SET (access_level = 'restricted')", None),
    ("dba", "ALTER TABLE private SET (access_level = 'dba')", None),
    ("user", "DESCRIBE private", "42501"), ("user", "SHOW TABLE private", "42501"),
    ("user", "SHOW COLUMNS IN private", "42501"),
    ("service", "DESCRIBE secret", "42501"), ("service", "DESCRIBE private", None), ("user", "DESCRIBE open", None),
    ("user", "DROP NAMESPACE {ns} CASCADE", "42501"), ("service", "DROP NAMESPACE {ns} CASCADE", "42501"),
])
def test_levels(db: Client, accounts: Callable[[str], Client], ns: str, role: str, sql: str,
    sqlstate: str | None) -> None:
    for name, level in (("open", "public"), ("private", "private"), ("secret", "dba")):
        db.run(f"CREATE TABLE {name} (id int PRIMARY KEY) WITH (access_level = '{level}')")
    seen = [row[1] for row in accounts(role).rows(f"SHOW TABLES IN {ns}")]
    assert seen == {"user": ["open"], "service": ["open", "private"], "dba": ["open", "private", "secret"]}[role]
    if sqlstate is None:
        accounts(role).run(sql.format(ns=ns))
    else:
        accounts(role).fails(sqlstate, sql.format(ns=ns))


# ---------- EXECUTE AS USER ----------
def test_execute_as_user(db: Client, accounts: Callable[[str], Client], ns: str) -> None:
    db.run("CREATE USER TABLE mine (id int PRIMARY KEY, v text)")
    name = "o'br\"ien); é\\"
    run = f"EXECUTE AS USER '{name.replace(chr(39), chr(39) * 2)}' "
    assert db.run(run + "(INSERT INTO mine VALUES ($1, $2), (2, ')') RETURNING id, _userid)", "1", "x").rows == [
        ("1", name), ("2", name)]
    db.run("BEGIN")
    assert db.run(run + "(UPDATE mine SET v = $1 WHERE id = $2)", "y", "1").tag == "UPDATE 1"
    db.run("SAVEPOINT a")
    assert db.run(run + "(DELETE FROM mine)").tag == "DELETE 2"
    db.run("ROLLBACK TO a")
    db.run("COMMIT")
    assert db.rows(run + "(SELECT v FROM mine WHERE id = $1)", "1") == [("y",)]
    assert db.rows("EXECUTE AS USER '*' (SELECT _userid FROM mine WHERE id = 1)") == [(name,)]
    assert accounts("service").value(run + "(SELECT count(*) FROM mine)") == "2"
    assert accounts("user").value(f"EXECUTE AS USER '{ns}_user' (SELECT count(*) FROM mine)") == "0"
    accounts("user").fails("42501", run + "(SELECT count(*) FROM mine)")
    for sqlstate, body, place in (("0A000", f"({run}(SELECT 1))", "EXECUTE"),
        ("0A000", "(CREATE NAMESPACE x)", "CREATE"),
                                  ("42601", "()", ")"), ("42601", "(SELECT 1) 2", "2"),
                                  ("42703", "(SELECT no FROM mine)", "no")):
        error = db.fails(sqlstate, run + body)
        assert error.position == len(run) + body.index(place) + 1


# ---------- what is refused ----------
REFUSED = [
    ("CREATE VIEW v AS SELECT 1", "VIEW"), ("CREATE UNIQUE INDEX ON t (id)", "UNIQUE"),
    ("CREATE OR REPLACE FUNCTION f()", "FUNCTION"),
    ("CREATE TEMP TABLE t (id int)", "TEMP"), ("CREATE STORAGE s", "STORAGE"), ("DROP VIEW v", "VIEW"),
    ("ALTER ROLE r", "ROLE"),
    ("ALTER NAMESPACE a RENAME TO b", "NAMESPACE"), ("GRANT SELECT ON t TO u", "GRANT"), ("VACUUM", "VACUUM"),
    ("COPY t TO STDOUT", "COPY"),
    ("LISTEN x", "LISTEN"), ("PREPARE p AS SELECT 1", "PREPARE"), ("MERGE INTO t USING u ON true", "MERGE"),
    ("DO $$x$$", "DO"),
    ("EXPLAIN SELECT 1", "EXPLAIN"), ("TRUNCATE t", "TRUNCATE"), ("DECLARE c CURSOR FOR SELECT 1", "DECLARE"),
    ("EXECUTE p", "EXECUTE"),
]
MISTAKEN = [
    ("SELEC 1", "SELEC", "SELECT"), ("CREATE TABEL t (id int)", "TABEL", "TABLE"),
    ("DROP NAMESPCE x", "NAMESPCE", "NAMESPACE"),
    ("SHWO TABLES", "SHWO", "SHOW"), ("ALTER USER x PASWORD 'y'", "PASWORD", "PASSWORD"),
    ("nonsense", "nonsense", "SELECT"),
    ("SHOW tabels", "tabels", "tables"), ("SET serch_path = x", "serch_path", "search_path"),
    ("STORAGE x", "x", "FLUSH"),
]


@pytest.mark.parametrize("before", ["", "  /* é */ -- ü\n", "SELECT 'ä; -- '; /* ö; */ "])
def test_refusals_have_a_place_and_a_hint(db: Client, before: str) -> None:
    run = db.simple if ";" in before else db.run
    for sql, place in REFUSED:
        with pytest.raises(Failed) as caught:
            run(before + sql)
        error = caught.value
        assert (error.sqlstate, error.position) == ("0A000", len(before) + sql.index(place) + 1), sql
        assert error.hint, sql
    for sql, place, hint in MISTAKEN:
        with pytest.raises(Failed) as caught:
            run(before + sql)
        error = caught.value
        assert (error.sqlstate, error.position) == ("42704" if " = " in sql or "tabels" in sql else "42601",
                                                    len(before) + sql.index(place) + 1), sql
        assert hint in (error.hint or ""), sql


@pytest.mark.parametrize("sql", [
    "SELECT x IN FROM t", "SELECT 1 AS", "SELECT id, FROM t", "SELECT 1 FROM t GROUP BY", "SELECT x IS FROM t",
    "SELECT 'a' 'b'",
    "SELECT 1abc", "SELECT (1", "UPDATE t SET a = WHERE id = 1", "INSERT INTO t VALUES (1,)", "SELECT 'open",
    "SELECT /* open",
    'SELECT "open', "SELECT $x$ open", 'SELECT ""', "SELECT E'\\uD800'", "SELECT U&'\\00'",
])
def test_syntax_errors(db: Client, sql: str) -> None:
    assert db.fails("42601", sql).position is not None


# ---------- strings, numbers, depth ----------
def test_strings_and_numbers(db: Client) -> None:
    assert db.rows("SELECT E'a\\'b\\n\\x41\\u00e9\\U0001F600\\uD83D\\uDE00', 'a\\n', $$it's$$, $q$ '' $$ $q$, "
                   "U&'d\\0061\\+00006C', 'a'\n'b'") == [
        ("a'b\nAé😀😀", "a\\n", "it's", " '' $$ ", "dal", "ab")]
    assert db.rows("SELECT 0x1F, 1_000, 0b11, 0o17, $1::int,$2::text,$3::int", "1", "$2", "3") == [
        ("31", "1000", "3", "15", "1", "$2", "3")]
    db.fails("22021", "SELECT E'a\\000'")
    db.fails("22021", "SELECT E'\\xff'")
    db.fails("22025", "SELECT E'\\u12'")
    assert db.fails("42703", "SELECT $$''''''''''$$, E'\\'\\'', nosuch").position == 33
    db.fails("0A000", "SET standard_conforming_strings = off")


NESTED = {
    "(": ")", "(SELECT ": ")", "abs(": ")", "CASE WHEN true THEN ": " END", "ARRAY[": "]", "numeric(": ")",
    "text(1, ": ")", "int[1, ": "]",
    "date (": ")", "- ": "", "NOT ": "", "CAST(": " AS int)",
}


@pytest.mark.parametrize("part", NESTED)
def test_deep_nesting(db: Client, part: str) -> None:
    """Bounded, and in time that does not double with each level."""
    db.run("SET statement_timeout = '20s'")
    for depth in (5, 40, 5000):
        told = None
        try:
            db.run(f"SELECT {part * depth}{'true' if part == 'NOT ' else 1}{NESTED[part] * depth}")
        except Failed as error:
            told = error.sqlstate
        assert told == "54001" if depth == 5000 else told in (None, "0A000", "42601", "42883", "42846")
    assert db.value("SELECT 1") == "1"


@pytest.mark.parametrize("series", [
    "1, 1000000000000", "-9223372036854775807, 9223372036854775807, 5", "5, -10000000, -1",
    "timestamp '2000-01-01', timestamp '2024-01-01', interval '1 second'",
])
def test_series_without_end(db: Client, series: str) -> None:
    """They would take all of the machine's memory."""
    with pytest.raises(Failed) as told:
        db.run(f"SELECT count(*) FROM generate_series({series}) g")
    assert told.value.sqlstate == "54000"


def test_series(db: Client) -> None:
    for series, count in (("1, 9999999", 9999999), ("1, 0", 0), ("3, 1, -1", 3), ("1, NULL::int", 0), ("5, 5", 1),
                          ("date '2024-01-01', date '2024-02-01', interval '1 month'", 2)):
        assert db.value(f"SELECT count(*) FROM generate_series({series}) g") == str(count)
    with pytest.raises(Failed, match="step size"):
        db.run("SELECT count(*) FROM generate_series(1, 2, 0) g")


def test_long_chains(db: Client) -> None:
    db.run("CREATE TABLE t (id int PRIMARY KEY, v text)")
    db.run("INSERT INTO t SELECT g, 'x' FROM generate_series(1, 10) AS g")
    assert db.value(f"SELECT count(*) FROM t WHERE {' AND '.join(['id > 2'] * 700)}") == "8"
    assert db.value(f"SELECT count(*) FROM t WHERE {' OR '.join(f'(id = {n} AND v = $1)' for n in range(700))}",
        "x") == "10"
    assert db.value(f"SELECT count(*) FROM t WHERE id IN ({', '.join(map(str, range(5, 20_000)))})") == "6"
    db.fails("54001", f"SELECT {' + '.join(['1'] * 5000)}")


def test_set_transaction_after_statements_outside_a_block(db: Client) -> None:
    """Only what the block itself has run comes before it."""
    db.run("CREATE TABLE t (id bigint PRIMARY KEY)")
    for before in ("SELECT 1", "INSERT INTO t VALUES (1)", "SELECT id FROM t WHERE id = 1"):
        db.run(before)
        db.run("BEGIN")
        db.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        db.run("SELECT id FROM t")
        db.fails("25001", "SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        db.run("ROLLBACK")


@pytest.mark.parametrize("sql", [
    "SELECT id FROM t WHERE ? = 1", "SELECT count(*) FROM t WHERE % = 1", "SELECT id FROM t WHERE id = :a",
    "UPDATE t SET id = %", "DELETE FROM t WHERE id = ?", "INSERT INTO t VALUES (?)",
])
def test_placeholders_of_others(db: Client, sql: str) -> None:
    db.run("CREATE TABLE t (id int PRIMARY KEY)")
    assert "$1" in (db.fails("42P02", sql).hint or "")
