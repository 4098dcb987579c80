"""No statement leaves a read transaction behind: while one is open, the write-ahead log of the hot store cannot begin
anew and grows with every commit.

Asked of the database file itself, by SQLite: a checkpoint that is to empty the log fails while anybody reads.
"""

from __future__ import annotations

from contextlib import suppress

import apsw
import psycopg
import pytest

from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

STATEMENTS = {
    "key": "SELECT * FROM {t} WHERE id = 7",
    "scan": "SELECT * FROM {t} WHERE body LIKE '%1'",
    "top": 'SELECT * FROM {t} ORDER BY body COLLATE "C" DESC LIMIT 3',
    "aggregate": 'SELECT count(*), sum(id), max(body COLLATE "C") FROM {t}',
    "sums": "SELECT count(*), sum(b) FROM {t}",
    "groups": "SELECT id % 7, count(*) FROM {t} GROUP BY 1 ORDER BY 2 DESC LIMIT 2",
    "join": "SELECT count(*) FROM {t} a JOIN {t} b ON a.id = b.id + 1",
    "limit": "SELECT * FROM (SELECT * FROM {t} OFFSET 0) x LIMIT 1",
    "loop": "SELECT count(*) FROM generate_series(1, 50) i, LATERAL (SELECT body FROM {t} WHERE id = i OFFSET 0) x",
    "division": "SELECT 1 / (id - 1500) FROM (SELECT * FROM {t} OFFSET 0) x",
    "division, sent": "SELECT sum(1 / (id - 1500)) FROM {t}",
    "locked": "SELECT * FROM {t} WHERE id < 9 FOR UPDATE",
    "update": "UPDATE {t} SET body = body || '!' WHERE id % 100 = 3 RETURNING *",
    "update by rows": "UPDATE {t} SET body = repeat(body, (random() + 1)::int) WHERE id < 30",
    "cursor": "DO $$ DECLARE c CURSOR FOR SELECT * FROM {t}; r record; BEGIN OPEN c; FETCH c INTO r; END $$",
    "exception": "DO $$ BEGIN PERFORM 1 / (id - 1500) FROM {t}; EXCEPTION WHEN division_by_zero THEN NULL; END $$",
    "subtransactions": "DO $$ BEGIN FOR i IN 1..3 LOOP BEGIN PERFORM count(*) FROM {t}; INSERT INTO {t} VALUES (i); "
    "EXCEPTION WHEN unique_violation THEN NULL; END; END LOOP; END $$",
    "analyze": "ANALYZE {t}",
    "server SQL": "SELECT kalam_exec('SELECT count(*), max(body) FROM {t}')",
    "server SQL, rows": "SELECT kalam_exec('SELECT * FROM {t} WHERE id > 100')",
}


def nobody_reads(server: KalamServer) -> bool:
    connection = apsw.Connection(str(server.data / "hot.db"))
    try:
        connection.set_busy_timeout(10_000)  # a checkpoint of the server's own may be under way
        connection.execute("SELECT count(*) FROM kalam_meta").fetchall()  # now it knows that there is a log
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.BusyError:
        return False
    finally:
        connection.close()
    return True


@pytest.mark.parametrize("tier", ["hot", "cold", "half"])
def test_nobody_reads_any_more(db: Session, ns: str, server: KalamServer, tier: str) -> None:
    table = f"{ns}.t"
    columns = "id bigint PRIMARY KEY, body text, b double precision"
    db(f"CREATE TABLE {table} ({columns}) USING kalamdb WITH (type = 'shared')")
    db(f"INSERT INTO {table} SELECT g, 'body ' || g, g FROM generate_series(1, 3000) g")
    if tier != "hot":
        db(f"SELECT kalam_flush('{table}')")
    if tier == "half":
        db(f"UPDATE {table} SET body = 'changed ' || id WHERE id % 2 = 0")
        db(f"DELETE FROM {table} WHERE id % 50 = 0")
    kept = []
    for number, (name, statement) in enumerate(STATEMENTS.items(), 10_000):
        with suppress(psycopg.errors.DivisionByZero):
            db(statement.format(t=table))
        db(f"INSERT INTO {table} VALUES ({number}, 'what is read now is older')")
        if not nobody_reads(server):
            kept.append(name)
    assert kept == []
