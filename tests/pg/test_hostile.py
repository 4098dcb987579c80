"""Hostile names, options, tenants and texts: each is a name or a value, as on a local table, or a clear error.

`Both` runs a statement on a heap table and on one of ours and compares rows and SQLSTATEs. A canary, of another tenant
and in another schema, has to survive whatever a name says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from support.postgres import Postgres
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

DROP = "DROP TABLE canary"
NAMES = [
    'a"b', '""', "it's", "''", f"'; {DROP}; --", f'"; {DROP}; --', f'x"); {DROP}; --', "\\", "\\'", '\\"', "a\\nb",
    "/*", "*/", "/* x */", "--", ";", "a\nb", "\r\n", "\t", "\x01\x7f", "$1", "$$", "$x$", "{}", "{0}", "%s",
    "%(x)s", "?", ":x", "@x", "#", "`", "[x]", "a.b", '"a"."b"', " ",
    " lead", "trail ", "MiXeD", "é", "e\u0301", "שלום", "\u202eabc",
    "\u200b", "\ufeff", "\u2028", "İ", "ß", "😀", "👩\u200d👩\u200d👧", "日本語", "\U0010fffd", "x" * 63, "é" * 31,
    "😀" * 15, "_x", "__", "_Seq", "_pos", "_at", "k", "c1", "h_1",
    "d_1", "r1", "r2", "excluded", "arrow", "kalam_any", "kalam_meta",
    "kalam_tables", "main", "temp", "memory", "sqlite_master", "sqlite_x", "duckdb_tables", "generate_series",
    "select", "table", "from", "where", "user", "order", "group", "index", "rowid", "null", "true", "default", "values",
    "returning", "qualify", "pivot", "exclude", "lateral", "window", "without", "glob", "replace", "end", "all",
    "current_user", "..", "../../x", "/etc/passwd", "C:\\x", "~", "id'--", "0", "1e5", "-1", "{\"user\":\"canary\"}",
]  # fmt: skip
#: where a local table refuses them, too, or where the server has a use for them itself
RESERVED = ["_seq", "_userid", "_deleted"]


def q(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def lit(text: str) -> str:
    return sql.Literal(text).as_string(None)


class Both:
    """The same statements on both kinds of table; `{t}` is the table's name."""

    def __init__(self, db: Session, heap: str, ours: str) -> None:
        self.db, self.heap, self.ours = db, heap, ours

    def _one(self, statement: str, table: str) -> Any:
        try:
            return self.db(statement.replace("{t}", table))
        except psycopg.Error as error:
            return error.sqlstate, error.diag.constraint_name, error.diag.column_name

    def __call__(self, statement: str) -> Any:
        there, here = self._one(statement, self.heap), self._one(statement, self.ours)
        assert here == there, statement
        return here


@pytest.fixture
def canary(db: Session, server: KalamServer) -> Iterator[None]:
    db("SET kalam.user_id = 'canary'")
    db("CREATE TABLE canary (id bigint PRIMARY KEY, v text) USING kalamdb WITH (type = 'user')")
    db("INSERT INTO canary VALUES (1, 'alive')")
    above = {path.name for path in server.dir.iterdir()}
    yield
    db.conn.execute("ROLLBACK")
    db("RESET ALL; SET kalam.user_id = 'canary'")
    found = db("SELECT id, v, _userid FROM public.canary")
    db("DROP TABLE public.canary")  # its name on the server is that of the next one, of another database perhaps
    assert found == [(1, "alive", "canary")]
    assert {path.name for path in server.dir.iterdir()} == above
    assert all(path.is_relative_to(server.data) for path in files(server))


def files(server: KalamServer) -> list[Path]:
    return [path.resolve() for path in server.data.rglob("*") if path.is_file()]


def is_control(name: str) -> bool:
    return any(ord(letter) < 32 or letter == "\x7f" for letter in name)


def chunks(names: list[str], count: int) -> list[list[str]]:
    return [names[at::count] for at in range(count)]


@pytest.fixture
def both(db: Session, ns: str, canary: None) -> Callable[[list[str]], Both]:
    """Tables with columns, defaults, checks and values of these names."""

    def make(names: list[str]) -> Both:
        pair = Both(db, f"{ns}.heap", f"{ns}.ours")
        columns = ", ".join(f"{q(name)} text DEFAULT {lit(name)}, "
                            f"CONSTRAINT {q(name)} CHECK ({q(name)} <> {lit('not ' + name)})" for name in names)
        for table, using in ((pair.heap, ""), (pair.ours, "USING kalamdb WITH (system_columns = false)")):
            db(f"CREATE TABLE {table} (key int, {columns}, CONSTRAINT {q(names[0] + 'p')} PRIMARY KEY (key)) {using}")
        return pair

    return make


@pytest.mark.parametrize("names", chunks(NAMES, 4), ids=lambda names: ascii(names[0]))
def test_names_of_columns(names: list[str], both: Callable[[list[str]], Both], db: Session, ns: str) -> None:
    t = both(names)
    some = names[:6]
    everyone = ", ".join(map(q, names))
    assert t(f"INSERT INTO {{t}} (key) VALUES (1) RETURNING {everyone}") == [tuple(names)]
    t(f"INSERT INTO {{t}} VALUES (2, {', '.join(lit(name * 2) for name in names)})")
    t(f"INSERT INTO {{t}} ({everyone}, key) VALUES ({', '.join(['NULL'] * len(names))}, 3)")
    t("INSERT INTO {t} (key) VALUES (1)")
    for name in some:
        t(f"INSERT INTO {{t}} (key, {q(name)}) VALUES (9, {lit('not ' + name)})")
        t(f"UPDATE {{t}} SET {q(name)} = {lit('not ' + name)} WHERE key = 1")
    t("UPDATE {t} SET " + ", ".join(f"{q(name)} = {q(name)} || {lit(name)}" for name in names)
      + " WHERE " + " AND ".join(f"{q(name)} = {lit(name)}" for name in names) + f" RETURNING {everyone}")
    t("INSERT INTO {t} (key) VALUES (2) ON CONFLICT (key) DO UPDATE SET "
      + ", ".join(f"{q(name)} = excluded.{q(name)}" for name in names))
    db.conn.execute(f"SELECT kalam_flush('{t.ours}')")
    t("SELECT * FROM {t} WHERE " + " OR ".join(f"{q(name)} IN ({lit(name)}, 'x')" for name in names) + " ORDER BY key")
    t(f"SELECT {everyone}, count(*) FROM {{t}} GROUP BY {everyone} ORDER BY "
      + ", ".join(f"{q(name)} COLLATE \"C\"" for name in names))
    t("SELECT key, " + ", ".join(f"max({q(name)} COLLATE \"C\") AS {q(name)}" for name in names)
      + " FROM {t} GROUP BY key HAVING " + " AND ".join(f"count({q(name)}) < 9" for name in names) + " ORDER BY key")
    for name in some:
        c = q(name)
        t(f"SELECT {c}.{c}, b.key FROM {{t}} AS {c} JOIN {{t}} b ON {c}.{c} = b.{c} ORDER BY 2")
        t(f"SELECT key FROM {{t}} WHERE {c} = ANY (ARRAY[{lit(name)}, NULL, '']) ORDER BY key")
        t(f"SELECT key FROM {{t}} WHERE {c} LIKE {lit('%' + name.replace(chr(92), chr(92) * 2) + '%')} ORDER BY key")
        t(f"WITH {c} AS (UPDATE {{t}} SET key = key WHERE {c} = {lit(name)} RETURNING *) "
          f"SELECT key FROM {c} ORDER BY key")
    t("ALTER TABLE {t} " + ", ".join(f"ALTER {q(name)} SET DEFAULT {lit(name + name)}" for name in names))
    t(f"ALTER TABLE {{t}} RENAME COLUMN {q(names[1])} TO plain")
    t(f"ALTER TABLE {{t}} RENAME COLUMN plain TO {q(names[1])}")
    t(f"ALTER TABLE {{t}} RENAME CONSTRAINT {q(names[2])} TO {q(names[2][:20] + 'y')}")
    t(f"ALTER TABLE {{t}} DROP COLUMN {q(names[3])}, ADD COLUMN {q(names[3])} text NOT NULL DEFAULT {lit(names[3])}")
    t(f"INSERT INTO {{t}} (key) VALUES (4) RETURNING {everyone}")
    t(f"SELECT {everyone} FROM {{t}} ORDER BY key")
    assert db("SELECT * FROM kalam_drift(%s::regclass)", t.ours) == []
    db(f"IMPORT FOREIGN SCHEMA {ns} LIMIT TO (ours) FROM SERVER kalam_server INTO public")
    assert db(f"SELECT {everyone} FROM public.ours ORDER BY key") == db(f"SELECT {everyone} FROM {t.heap} ORDER BY key")
    db("DROP FOREIGN TABLE public.ours")


PINNED = [name for name in NAMES if not is_control(name)]


@pytest.mark.parametrize("names", chunks(PINNED, 4), ids=lambda names: ascii(names[0]))
def test_names_of_schemas_tables_and_tenants(names: list[str], db: Session, ns: str, canary: None) -> None:
    """Each is a schema, a table in it, a key, and the tenant whose row that is."""
    db(f"CREATE TABLE {ns}.mine (k text PRIMARY KEY, v text) USING kalamdb WITH (type = 'user')")
    db("BEGIN")
    for name in names:
        c = q(name)
        db("SELECT set_config('kalam.user_id', %s, true)", name)
        db(f"CREATE SCHEMA {c}; CREATE TABLE {c}.{c} (id text PRIMARY KEY, v text) USING kalamdb WITH (type = 'user')")
        db(f"INSERT INTO {c}.{c} VALUES ({lit(name)}, 'v'); INSERT INTO {ns}.mine VALUES ({lit(name)})")
        assert db("SELECT * FROM canary") == []
        db("DELETE FROM canary")
    db("COMMIT")
    db(f"SELECT kalam_flush('{ns}.mine')")
    for name in names:
        c = q(name)
        db(f"BEGIN; SET LOCAL search_path = {c}, public")
        db("SELECT set_config('kalam.user_id', %s, true)", name)
        assert db(f"SELECT id, v, _userid FROM {c}.{c} WHERE id = {lit(name)}") == [(name, "v", name)]
        assert db(f"UPDATE {ns}.mine SET v = k WHERE _userid = %s RETURNING k, v", name) == [(name, name)]
        assert db(f"SELECT k, v, _userid FROM {ns}.mine") == [(name, name, name)]
        assert db.remote(f"SELECT id, _userid FROM {c}") == [{"id": name, "_userid": name}]
        db.conn.execute("SAVEPOINT s")
        error = db.fails(f"INSERT INTO {c}.{c} VALUES ({lit(name)})", "23505")
        assert error.diag.table_name == name or error.diag.message_detail == f"Key (id)=({name}) already exists."
        db("ROLLBACK TO s")
        db(f"CREATE SCHEMA {ns}_i; IMPORT FOREIGN SCHEMA {c} LIMIT TO ({c}) FROM SERVER kalam_server INTO {ns}_i")
        assert db(f"SELECT id FROM {ns}_i.{c}") == [(name,)]
        db(f"DROP SCHEMA {ns}_i, {c} CASCADE")
        assert db.facts(f"{c}.{c}") == {}
        db("COMMIT")


ROLES = [name for name in [*NAMES, "kalam", "bearer", "PUBLIC", "*"] if len(name.encode()) < 64]


@pytest.mark.parametrize("names", chunks(ROLES, 12), ids=lambda names: ascii(names[0]))
def test_names_of_roles(names: list[str], db: Session, ns: str, canary: None) -> None:
    """Each is a role that owns a table, is bound to the tenant of its name, and reaches others' rows by no way."""
    db(f"CREATE TABLE {ns}.mine (k text PRIMARY KEY, who name) USING kalamdb WITH (type = 'user')")
    try:
        for name in names:
            role, tenant = q(name), "t" if is_control(name) or name == "*" else name
            db(f"CREATE ROLE {role}; GRANT ALL ON SCHEMA {ns} TO {role}; GRANT ALL ON {ns}.mine TO {role}")
            db(f"GRANT ALL ON FOREIGN SERVER kalam_server TO {role}")
            db(f"CREATE USER MAPPING FOR {role} SERVER kalam_server OPTIONS (user_id {lit(tenant)})")
            db(f"SET kalam.user_id = 'canary'; SET ROLE {role}")
            db.fails(f"SELECT * FROM {ns}.mine", "42501", "may not act for tenant")
            db(f"RESET ROLE; RESET kalam.user_id; SET ROLE {role}")
            assert db(f"INSERT INTO {ns}.mine VALUES ('k', current_user) RETURNING _userid, who") == [(tenant, name)]
            assert db(f"UPDATE {ns}.mine SET k = lower(k) || 'x' WHERE who = current_user RETURNING k") == [("kx",)]
            assert db(f"SELECT who FROM {ns}.mine") == [(name,)]
            assert name in [row[0] for row in db("SELECT user_name FROM kalam_connections()")]
            db(f"CREATE TABLE {ns}.own (id int PRIMARY KEY, v text) USING kalamdb")
            db(f"INSERT INTO {ns}.own VALUES (1, {lit(name)}), (2, session_user)")
            db.fails(f"INSERT INTO {ns}.own VALUES (1)", "23505")
            assert db(f"DELETE FROM {ns}.own WHERE v = current_user RETURNING id") == [(1,)]
            db(f"DROP TABLE {ns}.own")
            db.fails("SELECT * FROM canary", "42501", "permission")
            db.fails("SELECT kalam_exec('SELECT 1')", "42501", "permission")
            db("SELECT kalam_disconnect(); RESET ROLE")
            db(f"DROP USER MAPPING FOR {role} SERVER kalam_server")
    finally:
        db("RESET ROLE; SELECT kalam_disconnect()")
        there = {row[0] for row in db("SELECT rolname FROM pg_roles")}
        for role in [q(name) for name in names if name in there]:
            db(f"DROP USER MAPPING IF EXISTS FOR {role} SERVER kalam_server; DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("name", [*filter(is_control, NAMES), "", "*"], ids=ascii)
def test_names_that_cannot_be(name: str, db: Session, ns: str, canary: None) -> None:
    """Control characters in an option or a tenant are refused; no tenant, and all of them, have no rows."""
    if is_control(name):
        db.fails(f"SET kalam.user_id = {lit(name)}", "22023", "Control characters")
        db.fails(f"CREATE TABLE {ns}.{q(name)} (id int PRIMARY KEY) USING kalamdb", "HV00D", "Control characters")
        db.fails(f"ALTER SERVER kalam_server OPTIONS (ADD application_name {lit(name).strip()})", "HV00D", "Control")
        db.fails(f"CREATE USER MAPPING FOR PUBLIC SERVER kalam_server OPTIONS (user_id {lit(name).strip()})", "HV00D")
        return
    db(f"SET kalam.user_id = {lit(name)}")
    db.fails("INSERT INTO canary VALUES (2)", "42501")
    if not name:
        db.fails("SELECT * FROM canary", "42501", "kalam.user_id")


@pytest.mark.parametrize("name", RESERVED)
def test_names_that_the_server_uses(name: str, db: Session, ns: str, canary: None) -> None:
    db.fails(f"CREATE TABLE {ns}.t (id int PRIMARY KEY, {q(name)} text) USING kalamdb", "42939", name)
    db(f"CREATE TABLE {ns}.{q(name)} (id int PRIMARY KEY, v text, CONSTRAINT {q(name)} CHECK (v <> '')) USING kalamdb")
    db(f"INSERT INTO {ns}.{q(name)} VALUES (1, 'v')")
    assert db(f"SELECT id, v FROM {ns}.{q(name)} AS {q(name)}") == [(1, "v")]


@pytest.mark.parametrize("name", ["system", "information_schema", "pg_catalog"])
def test_namespaces_that_are_reserved(name: str, db: Session, ns: str, canary: None) -> None:
    options = f"SERVER kalam_server OPTIONS (namespace '{name}', \"table\" 'mine', table_type 'shared')"
    error = db.fails(f"CREATE FOREIGN TABLE {ns}.t (id int OPTIONS (key '1')) {options}", None)
    assert name in str(error)


SHARP = [name for name in PINNED if not name.isalnum()][:24:3]


LONG = ["x" * 64, "é" * 64, "x" * 10_000]


@pytest.mark.parametrize("name", [*SHARP, "", "../../x", *LONG], ids=lambda name: ascii(name)[:40])
def test_options(name: str, db: Session, ns: str, canary: None) -> None:
    """Wherever an option takes a text: it works, or the error is one of the option or of the connection."""
    o = lit(name).strip()
    here = f"{ns}.{{}}"
    allowed = {None, "HV00D", "HV00R", "42602", "42704", "22023", "08001", "28000", "42P01", "42939"}
    texts = [
        f"CREATE SERVER {ns}_h FOREIGN DATA WRAPPER pg_kalam OPTIONS (host {o}, port '1', timeout '300')",
        f"SELECT kalam_ping('{ns}_h')",
        *[f"CREATE SERVER {ns}_x FOREIGN DATA WRAPPER pg_kalam OPTIONS ({option} {o})" for option in (
            "port", "auth_mode", "timeout", "fetch_size", "keep_connections", "fdw_tuple_cost", "ca_cert")],
        f"CREATE FOREIGN TABLE {here.format('f')} (id bigint OPTIONS (key '1', column_name {o})) SERVER kalam_server "
        f"OPTIONS (namespace '{ns}', \"table\" {o}, table_type 'shared')",
        f"INSERT INTO {here.format('f')} VALUES (1)",
        f"SELECT id FROM {here.format('f')} WHERE id = 1",
        f"CREATE FOREIGN TABLE {here.format('g')} (id bigint OPTIONS (key {o})) SERVER kalam_server "
        f"OPTIONS (namespace {o}, \"table\" 'g', table_type 'shared')",
        *[f"CREATE TABLE {here.format('h')} (id int PRIMARY KEY) USING kalamdb WITH ({option} = {o})" for option in (
            "server", "storage_id", "flush_policy", "deleted_retention_hours", "access_level", "compression", "type",
            "system_columns")],
    ]
    for text in texts:
        try:
            db(text)
            state = None
        except psycopg.Error as error:
            state = error.sqlstate
            assert state != "XX000", text
        assert state in allowed, (text, state)


@pytest.mark.parametrize("name", SHARP, ids=ascii)
def test_application_name(name: str, db: Session, ns: str, server: KalamServer) -> None:
    """A connection's parameters are not a string that could have others in it."""
    db(f"CREATE SERVER {ns}_a FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{server.port}', "
       f"application_name {lit(name + ' host=elsewhere user=root').strip()})")
    (row,) = db.remote("SELECT 1 AS one")
    assert row == {"one": 1}
    shown = db.value(f"SELECT kalam_exec('SELECT * FROM system.sessions', '{ns}_a')")
    assert "elsewhere" in shown
    assert '"root"' not in shown


# ---------- other encodings ----------
@pytest.fixture
def in_encoding(pg: Postgres, server: KalamServer) -> Iterator[Callable[[str], Session]]:
    made: list[tuple[str, Session]] = []

    def make(encoding: str) -> Session:
        name = f"enc_{encoding.lower()}"
        with pg.connect() as conn:
            conn.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'")
        session = Session(pg.dsn(name) + " client_encoding=utf8")
        made.append((name, session))
        session("CREATE EXTENSION pg_kalam")
        session(f"CREATE SERVER kalam_server FOREIGN DATA WRAPPER pg_kalam "
                f"OPTIONS (host '127.0.0.1', port '{server.port}')")
        session("CREATE SCHEMA enc; SET search_path = enc, public")
        return session

    yield make
    pg.start()
    for name, session in made:
        session("DROP SCHEMA enc CASCADE")
        session.close()
        with pg.connect() as conn:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize(("encoding", "name"), [("LATIN1", "é\"'\\ß"), ("EUC_JP", "日本\"'語")])
def test_names_in_other_encodings(encoding: str, name: str, in_encoding: Callable[[str], Session], db: Session) -> None:
    enc = in_encoding(encoding)
    c, text = q(name), lit(name).strip()
    enc(f"CREATE TABLE {c} (id int PRIMARY KEY, {c} text DEFAULT {text}, CONSTRAINT {c} CHECK ({c} <> 'bad')) "
        "USING kalamdb WITH (system_columns = false)")
    enc(f"INSERT INTO {c} (id) VALUES (1)")
    enc(f"SELECT kalam_flush({lit(c).strip()}::regclass)")
    assert enc(f"SELECT {c} FROM {c} WHERE {c} = {text}") == [(name,)]
    assert enc(f"UPDATE {c} SET {c} = {c} || {text} WHERE {c} LIKE {lit(name[0] + '%').strip()} RETURNING {c}") == [
        (name * 2,)]
    error = enc.fails(f"INSERT INTO {c} VALUES (2, 'bad')", "23514")
    assert error.diag.constraint_name == name
    db(f"SELECT kalam_exec({lit(f'UPDATE enc.{c} SET {c} = ' + chr(39) + '😀' + chr(39)).strip()})")
    enc.fails(f"SELECT * FROM {c}", "22P05")
    assert enc(f"SELECT id FROM {c}") == [(1,)]
    enc(f"SET kalam.user_id = {text}; CREATE TABLE mine (id int PRIMARY KEY) USING kalamdb WITH (type = 'user')")
    enc("INSERT INTO mine VALUES (1)")
    assert enc("SELECT _userid FROM mine") == [(name,)]
    enc(f"DROP TABLE {c}")


def test_bytes_that_are_no_text(in_encoding: Callable[[str], Session]) -> None:
    enc = in_encoding("SQL_ASCII")
    enc("CREATE TABLE t (id int PRIMARY KEY, v text) USING kalamdb")
    for text in ("E'\\xff'", "E'\\xed\\xa0\\x80'", "E'\\xc0\\x80'"):
        enc.conn.execute("SET client_encoding = 'SQL_ASCII'")
        enc.fails(f"INSERT INTO t VALUES (1, {text})", "22021")
        enc.fails(f"SELECT * FROM t WHERE v = {text}", "22021")
        enc.conn.execute(f"SET kalam.user_id = {text}")
        enc.fails("SELECT kalam_exec('SELECT 1')", "22021")
        enc.conn.execute("RESET kalam.user_id")
    assert enc("SELECT id FROM t") == []
