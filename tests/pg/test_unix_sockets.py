"""A server whose `host` is a directory: everything goes through the KalamDB server's Unix-domain socket."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from support import places
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

DEADLINE = 10.0


@pytest.fixture
def local(db: Session, ns: str, server: KalamServer) -> str:
    """The name of the server."""
    return make_server(db, f"{ns}_local", server.dir, server.port)


def make_server(db: Session, name: str, directory: Path | str, port: int) -> str:
    db(f"CREATE SERVER {name} FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '{directory}', port '{port}')")
    return name


@pytest.fixture
def table(db: Session, ns: str, local: str) -> str:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, body text)"
       f" USING kalamdb WITH (type = 'shared', server = '{local}')")
    db(f"INSERT INTO {ns}.t SELECT g, 'body ' || g FROM generate_series(1, 1000) g")
    return f"{ns}.t"


@contextmanager
def directory() -> Iterator[Path]:
    found = places.new("kdir")
    try:
        yield found
    finally:
        found.chmod(0o700)
        shutil.rmtree(found)


def backend(db: Session, local: str) -> int:
    """The server's number of the connection: another one after it was made anew."""
    found: int = db.value(f"SELECT (kalam_server_info('{local}')->>'backend')::int")
    return found


def test_read_and_write(db: Session, ns: str, local: str, table: str, server: KalamServer) -> None:
    address = db.value(f"SELECT kalam_server_info('{local}')->>'address'")
    assert address == f"{server.dir}/.s.PGSQL.{server.port}"
    pid = backend(db, local)
    sessions = f"SELECT kalam_exec('SELECT peer FROM system.sessions WHERE id = {pid}', '{local}')::jsonb->0->>'peer'"
    assert db(sessions) == [("local",)]
    with db.conn.transaction():
        db(f"UPDATE {table} SET body = 'changed' WHERE id <= 10")
        with pytest.raises(psycopg.Error), db.conn.transaction():
            db(f"INSERT INTO {table} VALUES (2000, 'undone'), (1, 'there is one')")
        db(f"DELETE FROM {table} WHERE id > 990")
    assert db(f"SELECT count(*), count(*) FILTER (WHERE body = 'changed') FROM {table}") == [(990, 10)]
    assert db(f"SELECT count(*) FROM {table} WHERE body = 'changed'") == [(10,)]
    assert (f"{local}", True) in db("SELECT server_name, valid FROM kalam_connections()")


def test_more_than_the_socket_holds(db: Session, table: str) -> None:
    """Both ways, and wide values."""
    db(f"INSERT INTO {table} SELECT g, repeat('x', 200) FROM generate_series(10001, 60000) g")
    db(f"INSERT INTO {table} VALUES (0, repeat('wide ', 1000000))")
    with db.conn.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN") as copy:
        for i in range(20000):
            copy.write_row((100_000 + i, f"copied {i}"))
    assert db(f"SELECT length(body) FROM {table} WHERE id = 0") == [(5_000_000,)]
    rows = db(f"SELECT id, body FROM {table} WHERE id > 10000")
    assert len(rows) == 70_000
    assert sum(len(body) for _, body in rows if body.startswith("x")) == 10_000_000


def test_prepared_changes_are_committed_once(db: Session, table: str) -> None:
    for i in range(50):
        db(f"INSERT INTO {table} VALUES (%s, 'new')", 5000 + i)
        assert db(f"SELECT body FROM {table} WHERE id = %s", 5000 + i) == [("new",)]
    assert db(f"SELECT count(*) FROM {table}") == [(1050,)]


# ---------- cancel ----------
def test_cancel_reaches_the_server(db: Session, other: Session, local: str, table: str) -> None:
    """By a socket of its own, and is enough: the connection stays."""
    other("BEGIN")
    other(f"UPDATE {table} SET body = 'held' WHERE id = 1")
    db(f"SELECT count(*) FROM {table}")
    pid = backend(db, local)
    for _ in range(5):
        db("SET statement_timeout = '200ms'")
        begun = time.monotonic()
        db.fails(f"UPDATE {table} SET body = 'mine' WHERE id = 1", "57014", "statement timeout")
        assert time.monotonic() - begun < DEADLINE
        db.without_timeout()
        assert db(f"SELECT body FROM {table} WHERE id = 2") == [("body 2",)]
    assert backend(db, local) == pid
    other("ROLLBACK")
    db(f"UPDATE {table} SET body = 'mine' WHERE id = 1")


def test_cancel_within_a_transaction(db: Session, other: Session, local: str, table: str) -> None:
    other("BEGIN")
    other(f"UPDATE {table} SET body = 'held' WHERE id = 1")
    with db.conn.transaction():
        db(f"INSERT INTO {table} VALUES (5000, 'kept')")
        pid = backend(db, local)
        db("SAVEPOINT s")
        db("SET LOCAL statement_timeout = '200ms'")
        db.fails(f"UPDATE {table} SET body = 'mine' WHERE id = 1", "57014")
        db("ROLLBACK TO s")
        assert backend(db, local) == pid
    other("ROLLBACK")
    assert db(f"SELECT body FROM {table} WHERE id IN (1, 5000) ORDER BY id") == [("body 1",), ("kept",)]


# ---------- a server that is gone ----------
def test_server_that_is_killed(db: Session, table: str, server: KalamServer) -> None:
    """What it leaves behind is refused by the system; the next server replaces it."""
    where = f"{server.dir}/.s.PGSQL.{server.port}"
    db("BEGIN")
    db(f"INSERT INTO {table} VALUES (5000, 'never committed')")
    server.kill()
    db.fails(f"SELECT count(*) FROM {table}", "08006", f"connection to KalamDB at {where} was lost")
    db("ROLLBACK")
    assert Path(where).is_socket()
    db.fails(f"SELECT count(*) FROM {table}", "08001", f"could not connect to KalamDB at {where}: Connection refused")
    server.start()
    assert db(f"SELECT count(*) FROM {table}") == [(1000,)]
    server.stop()
    db.fails(f"SELECT count(*) FROM {table}", "08001", f"at {where}: No such file or directory")
    server.start()
    assert db(f"SELECT count(*) FROM {table}") == [(1000,)]


def test_commit_is_looked_up_after_a_kill(db: Session, table: str, server: KalamServer) -> None:
    db("BEGIN")
    db(f"INSERT INTO {table} VALUES (5000, 'x')")
    server.kill()
    db.fails("COMMIT", None, f"{server.dir}/.s.PGSQL.{server.port}")
    server.start()
    assert db(f"SELECT count(*) FROM {table}") == [(1000,)]


# ---------- wrong ones ----------
def test_nobody_listens(db: Session, ns: str, server: KalamServer) -> None:
    with directory() as empty:
        name = make_server(db, f"{ns}_s", empty, server.port)
        told = f"could not connect to KalamDB at {empty}/.s.PGSQL.{server.port}: "
        db.fails(f"SELECT kalam_ping('{name}')", "08001", told + "No such file or directory\n")
        db(f"ALTER SERVER {name} OPTIONS (SET host '{empty}/none')")
        db.fails(f"SELECT kalam_ping('{name}')", "08001", f"{empty}/none/.s.PGSQL.", "No such file or directory")
        empty.chmod(0)
        db.fails(f"SELECT kalam_ping('{name}')", "08001", "Permission denied")
        db(f"ALTER SERVER {name} OPTIONS (SET host '{server.dir}', SET port '1')")
        db.fails(f"SELECT kalam_ping('{name}')", "08001", f"{server.dir}/.s.PGSQL.1: No such file or directory")


def test_a_path_too_long(db: Session, ns: str) -> None:
    name = make_server(db, f"{ns}_s", "/" + "d" * 100, 9188)
    db.fails(f"SELECT kalam_ping('{name}')", "08001", "/.s.PGSQL.9188", "is too long (maximum")


def test_a_changed_host_is_another_connection(db: Session, local: str, table: str, server: KalamServer) -> None:
    pid = backend(db, local)
    db(f"ALTER SERVER {local} OPTIONS (SET host '127.0.0.1')")
    assert backend(db, local) != pid
    assert db.value(f"SELECT kalam_server_info('{local}')->>'address'") == f"127.0.0.1:{server.port}"
    assert db(f"SELECT count(*) FROM {table}") == [(1000,)]
    db(f"ALTER SERVER {local} OPTIONS (SET host '127.0.0.1,{server.dir}')")  # libpq tries one after the other
    assert db(f"SELECT count(*) FROM {table}") == [(1000,)]


def test_trust_is_a_superusers_to_lend(db: Session, dsn: str, ns: str, server: KalamServer) -> None:
    db(f"CREATE ROLE {ns}_plain LOGIN")
    db(f"GRANT USAGE ON FOREIGN DATA WRAPPER pg_kalam TO {ns}_plain")
    try:
        plain = Session(psycopg.conninfo.make_conninfo(dsn, user=f"{ns}_plain"))
        name = make_server(plain, f"{ns}_own", server.dir, server.port)
        plain.fails(f"SELECT kalam_ping('{name}')", "42501",
                    f"KalamDB at {server.dir}/.s.PGSQL.{server.port} asks for no credentials")
        plain.close()
    finally:
        db(f"DROP OWNED BY {ns}_plain")
        db(f"DROP ROLE {ns}_plain")


def test_an_import(db: Session, ns: str, local: str, table: str) -> None:
    db(f"CREATE SCHEMA {ns}_again")
    db(f'IMPORT FOREIGN SCHEMA "{ns}" FROM SERVER {local} INTO {ns}_again')
    assert db(f"SELECT count(*) FROM {ns}_again.t") == [(1000,)]
