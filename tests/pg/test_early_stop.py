"""A scan that stops before its end stops the server's work, too, whatever ended it, and leaves nothing there.

The observer asks the server itself, while the session says nothing more.
"""

from __future__ import annotations

import pytest

from support.ports import wait_until
from support.proxy import Proxy

from .ddl import Session
from .observer import Observer

pytestmark = pytest.mark.pg

#: local conditions and limits: the scan is stopped by what stands above it
EARLY = {
    "limit": "SELECT * FROM (SELECT * FROM {t} OFFSET 0) t LIMIT 1",
    "exists": "SELECT EXISTS (SELECT FROM {t} WHERE body ILIKE 'body 3%')",
    "merge join": "SELECT count(*) FROM (SELECT * FROM {t} ORDER BY id OFFSET 0) a JOIN (VALUES (1)) v(x) ON id = x",
    "join": "SELECT * FROM {t} a JOIN LATERAL (SELECT * FROM {t} b WHERE b.id > a.id AND b.body ILIKE '%' LIMIT 1) b"
            " ON true WHERE a.id < 20",
    "loop": "DO $$ DECLARE r record; BEGIN FOR r IN SELECT * FROM {t} LOOP EXIT; END LOOP; END $$",
    "division": "SELECT 1 / (id - 1500) FROM (SELECT * FROM {t} OFFSET 0) t",
    "exception": "DO $$ DECLARE r record; BEGIN FOR r IN SELECT * FROM {t} LOOP PERFORM 1 / (r.id - 1500); END LOOP;"
                 " EXCEPTION WHEN division_by_zero THEN NULL; END $$",
}


@pytest.fixture
def table(db: Session, ns: str, proxy: Proxy) -> str:
    """20,000 rows in chunks of 1,000, behind the proxy."""
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, body text) USING kalamdb WITH (type = 'shared', "
       f"server = '{ns}_proxy')")
    db(f"ALTER FOREIGN TABLE {ns}.t OPTIONS (ADD fetch_size '1000')")
    db(f"INSERT INTO {ns}.t SELECT g, 'body ' || g FROM generate_series(1, 20000) g")
    return f"{ns}.t"


def run(db: Session, name: str, table: str) -> None:
    sql = EARLY[name].format(t=table)
    if name == "division":
        db.fails(sql, "22012")
    else:
        db(sql)


@pytest.mark.parametrize("name", EARLY)
def test_outside_a_block(db: Session, table: str, observer: Observer, name: str) -> None:
    run(db, name, table)
    wait_until(observer.at_rest, "the end of what the server did")


@pytest.mark.parametrize("name", EARLY)
def test_in_a_block(db: Session, table: str, observer: Observer, name: str) -> None:
    """The transaction goes on, with what it wrote."""
    db("BEGIN")
    db(f"INSERT INTO {table} VALUES (0, 'body 0')")
    db("SAVEPOINT s")
    run(db, name, table)
    if name == "division":
        db("ROLLBACK TO s")
    wait_until(lambda: observer.cursors() == 0 and not observer.active(), "the end of the cursor")
    assert db(f"SELECT body FROM {table} WHERE id = 0") == [("body 0",)]
    db("COMMIT")
    assert db(f"SELECT count(*) FROM {table}") == [(20001,)]
    wait_until(observer.at_rest, "the end of what the server did")


def test_cursors(db: Session, table: str, observer: Observer) -> None:
    with db.conn.transaction():
        db(f"DECLARE a CURSOR FOR SELECT id FROM {table}")
        db(f"DECLARE b CURSOR FOR SELECT id FROM {table} WHERE id > 5000")
        assert (db("FETCH a"), db("FETCH b")) == ([(1,)], [(5001,)])
        wait_until(lambda: observer.cursors() == 2 and not observer.active(), "two cursors")
        db("CLOSE a")
        wait_until(lambda: observer.cursors() == 1, "the end of one of them")
        assert len(db("FETCH ALL FROM b")) == 14999
        wait_until(lambda: observer.cursors() == 0, "the end of the other")


def test_a_chunk_ahead_that_does_not_come(db: Session, table: str, proxy: Proxy, observer: Observer) -> None:
    """The server computes it, or says nothing: nobody waits for it, and its cancel hits nothing else."""
    with db.conn.transaction():
        db(f"INSERT INTO {table} VALUES (0, 'body 0')")
        trap = proxy.trap("FETCH", "hold answer")
        db(f"DECLARE c CURSOR FOR SELECT id FROM {table} WHERE id > 0")
        assert db("FETCH c") == [(1,)]
        trap.wait()
        db("CLOSE c")
        proxy.resume()
        assert db(f"SELECT count(*) FROM {table}") == [(20001,)]
    wait_until(observer.at_rest, "the end of what the server did")
