"""Parts of different releases: an older extension script under this library, and servers of other releases."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from support.build import SOURCE
from support.postgres import Postgres
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

SCRIPTS = sorted(SOURCE.glob("pg_kalam--*.sql"))
CONTROL = (SOURCE / "pg_kalam.control").read_text()
BASE, WANTED = "0.1.0", re.search(r"default_version = '(.*)'", CONTROL)[1]  # type: ignore[index]
#: of each object of the extension: what it is, who may use it, what is said of it
OBJECTS = """
SELECT pg_describe_object(classid, objid, 0),
       COALESCE(obj_description(objid, classid::regclass::name), ''),
       CASE classid WHEN 'pg_proc'::regclass THEN (SELECT pg_get_functiondef(p.oid) || COALESCE(p.proacl::text, '-')
                                                          || p.proowner::regrole FROM pg_proc p WHERE p.oid = objid)
            WHEN 'pg_foreign_data_wrapper'::regclass
            THEN (SELECT concat_ws(' ', fdwhandler::regproc, fdwvalidator::regproc, fdwoptions, fdwacl)
                  FROM pg_foreign_data_wrapper WHERE oid = objid)
            WHEN 'pg_am'::regclass THEN (SELECT concat_ws(' ', amhandler::regproc, amtype) FROM pg_am WHERE oid = objid)
       END
FROM pg_depend WHERE deptype = 'e' AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_kalam') ORDER BY 1
"""


def objects(db: Session) -> dict[str, tuple[str, str]]:
    return {name: (comment, facts) for name, comment, facts in db(OBJECTS)}


@pytest.fixture
def database(pg: Postgres, server: KalamServer) -> Iterator[Callable[[str], Session]]:
    """Makes a database with a version of the extension."""
    made: list[tuple[str, Session]] = []

    def make(version: str) -> Session:
        name = f"upgrade{len(made)}"
        with pg.connect() as conn:
            conn.execute(f"CREATE DATABASE {name}")
        session = Session(pg.dsn(name))
        made.append((name, session))
        session(f"CREATE EXTENSION pg_kalam VERSION '{version}'")
        session(f"CREATE SERVER kalam_server FOREIGN DATA WRAPPER pg_kalam "
                f"OPTIONS (host '127.0.0.1', port '{server.port}')")
        return session

    yield make
    pg.start()
    for name, session in made:
        session.close()
        with pg.connect() as conn:
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)")


def older_versions() -> list[str]:
    """All but today's, which PostgreSQL reaches from them."""
    ends = [path.stem.removeprefix("pg_kalam--").split("--")[-1] for path in SCRIPTS]
    return sorted(set(ends) - {WANTED})


def test_the_library_knows_its_scripts() -> None:
    named = re.findall(r"CREATE FUNCTION (\w+)\(", "".join(path.read_text() for path in SCRIPTS))
    ours = [name for name in named if name.startswith("kalam_") or name == "snowflake_id"]
    (block,) = re.findall(r"functions\[\] = \{(.*?)\};", (SOURCE / "kalam_hint.c").read_text(), re.DOTALL)
    assert re.findall(r'"(\w+)"', block) == ours
    assert f'#define KALAM_SCRIPTS "{WANTED}"' in (SOURCE / "kalam.h").read_text()


@pytest.mark.parametrize("version", older_versions())
def test_update_in_place(version: str, database: Callable[[str], Session]) -> None:
    old, new = database(version), database(WANTED)
    info = old.value("SELECT kalam_server_info()")
    assert (info["scripts"], info["scripts_wanted"]) == (version, WANTED)
    old("CREATE SCHEMA up; CREATE TABLE up.t (id bigint PRIMARY KEY DEFAULT snowflake_id(), n int CHECK (n > 0)) "
        "USING kalamdb; CREATE ROLE kalam_upgraded; GRANT EXECUTE ON FUNCTION kalam_exec TO kalam_upgraded")
    try:
        old("INSERT INTO up.t VALUES (1, 10)")
        assert objects(old) != objects(new)
        old("ALTER EXTENSION pg_kalam UPDATE")
        assert old.value("SELECT extversion FROM pg_extension WHERE extname = 'pg_kalam'") == WANTED
        old("UPDATE up.t SET n = n + 1")
        old("INSERT INTO up.t (n) VALUES (12)")
        assert old("SELECT n FROM up.t ORDER BY n") == [(11,), (12,)]
        assert old.value("SELECT has_function_privilege('kalam_upgraded', 'kalam_exec(text, name)', 'EXECUTE')")
        assert old.value("SELECT kalam_server_info()")["scripts"] == WANTED
        old("ALTER EXTENSION pg_kalam UPDATE")
        assert "already installed" in old.notices[-1]
        old("REVOKE ALL ON FUNCTION kalam_exec FROM kalam_upgraded")
        assert objects(old) == objects(new)
        assert all(comment for name, (comment, _) in objects(new).items()
                   if "handler" not in name and "validator" not in name)
    finally:
        old("DROP SCHEMA up CASCADE; DROP OWNED BY kalam_upgraded; DROP ROLE kalam_upgraded")


def test_a_function_that_an_older_script_lacks(database: Callable[[str], Session]) -> None:
    old = database(BASE)
    old("ALTER EXTENSION pg_kalam DROP FUNCTION kalam_drift(regclass); DROP FUNCTION kalam_drift(regclass)")
    old.fails("SELECT * FROM kalam_drift('pg_class')", "42883", "ALTER EXTENSION pg_kalam UPDATE")
    old.fails("SELECT public.kalam_drift(1)", "42883", "ALTER EXTENSION pg_kalam UPDATE")
    for other in ("SELECT my_kalam_drift(1)", "SELECT kalam_drifts(1)", "SELECT nothing(1)"):
        assert "ALTER EXTENSION" not in str(old.fails(other, "42883"))
    assert old.value("SELECT kalam_version()")


def test_objects_without_a_function_in_the_library(database: Callable[[str], Session]) -> None:
    new = database(WANTED)
    new.fails("CREATE FUNCTION later() RETURNS int AS '$libdir/pg_kalam', 'sql_kalam_later' LANGUAGE C", "42883",
              "sql_kalam_later")


# ---------- servers ----------
SERVER = """
import kalamdb.sql.capabilities as capabilities, kalamdb.sql.show as show
{change}
from kalamdb.server import main
import sys
sys.exit(main([]))
"""
#: it has no word for a definition, and knows nothing of ``rules`` in a context
BEFORE_RULES = """
import json, kalamdb.rpc.portals as portals
options = show._table_options
later = ("definition", "not_null.")
show._table_options = lambda table: [row for row in options(table) if not row[0].startswith(later)]
decode = portals._decode_context
def without(data):
    assert "rules" not in json.loads(data), "an older server was told rules"
    return decode(data)
portals._decode_context = without
"""
NEXT_PROTOCOL = """
made = capabilities.capabilities
def of_protocol_2(*given):
    return [row if row[:2] != ("info", "protocol") else (*row[:3], "2", *row[4:]) for row in made(*given)]
show.capabilities = of_protocol_2
"""


class OtherServer(KalamServer):
    """A server of another release."""

    change = ""

    def spawn(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen([sys.executable, "-c", SERVER.format(change=self.change)], stdout=log, stderr=log,
                                    stdin=subprocess.DEVNULL, env=self._environment(), cwd=self.dir)


@pytest.fixture
def other_server(request: pytest.FixtureRequest, db: Session, ns: str) -> Iterator[str]:
    """The name of a foreign server that is one."""
    server = OtherServer()
    server.change = request.param
    try:
        server.start()
        db(f"CREATE SERVER {ns}_other FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{server.port}')")
        yield f"{ns}_other"
        assert "Traceback" not in server.log_since(0)
    finally:
        server.close()


@pytest.mark.parametrize("other_server", [BEFORE_RULES], ids=["before rules"], indirect=True)
def test_an_older_server_is_used_for_what_it_can(other_server: str, db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, n int NOT NULL CHECK (n < 100)) USING kalamdb "
       f"WITH (server = '{other_server}')")
    db(f"INSERT INTO {ns}.t VALUES (1, 1), (2, 2)")
    db(f"UPDATE {ns}.t SET n = n + 1")
    db(f"INSERT INTO {ns}.t VALUES (1, 5) ON CONFLICT (id) DO UPDATE SET n = t.n + excluded.n")
    db.fails(f"UPDATE {ns}.t SET n = n + 95", "23514")
    db.fails(f"UPDATE {ns}.t SET n = NULLIF(n, n)", "23502")
    assert db(f"SELECT id, n FROM {ns}.t ORDER BY id") == [(1, 7), (2, 3)]


@pytest.mark.parametrize("other_server", [NEXT_PROTOCOL], ids=["next protocol"], indirect=True)
def test_another_protocol_is_refused(other_server: str, db: Session, ns: str) -> None:
    for _ in range(2):
        error = db.fails(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY) USING kalamdb WITH (server = '{other_server}')",
                         "HV00N", "speaks protocol 2", "this pg_kalam")
        assert "releases that belong together" in str(error.diag.message_hint)
    db.fails(f"SELECT kalam_exec('SELECT 1', '{other_server}')", "HV00N")
    db.fails(f"SELECT kalam_ping('{other_server}')", "HV00N")
    db.fails(f"IMPORT FOREIGN SCHEMA x FROM SERVER {other_server} INTO {ns}", "HV00N")
