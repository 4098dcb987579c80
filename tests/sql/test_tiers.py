"""Statements about tiers, and statements over rows in all of them."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from support.server import KalamServer

from .client import Client, Failed


@pytest.fixture
def t(db: Client) -> Client:
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, a text, n numeric(10,2), at timestamptz, d date, u uuid, b bool)")
    for number in range(20):
        db.run("INSERT INTO t VALUES ($1, $2, $3, $4, $5, $6, $7)", str(number), f"text {number}", f"{number}.50",
               f"2026-01-{number + 1:02} 12:00:00+00", f"2026-01-{number + 1:02}",
               f"00000000-0000-0000-0000-0000000000{number:02}", "t" if number % 2 else None)
    return db


QUERIES = [
    "SELECT * FROM t ORDER BY id",
    "SELECT count(*), sum(n), min(at), max(d), count(b), min(u::text) FROM t",
    "SELECT id FROM t WHERE a LIKE '%1%' AND n > 3 ORDER BY id",
    "SELECT b, count(*) FROM t GROUP BY b ORDER BY 1",
    "SELECT x.id, y.a FROM t x JOIN t y ON x.id = y.id + 1 ORDER BY 1 LIMIT 5",
    "SELECT id, a FROM t WHERE id = 7",
    "SELECT id FROM t WHERE id IN (1, 3, 99) ORDER BY id",
    "SELECT id FROM t WHERE u = '00000000-0000-0000-0000-000000000005'",
    "SELECT id FROM t WHERE at >= '2026-01-10' AND d < '2026-01-15' ORDER BY id",
    "SELECT id FROM t WHERE b IS NULL ORDER BY id",
]


def answers(db: Client) -> list[object]:
    return [db.run(sql).rows for sql in QUERIES]


def test_flush_and_compact(t: Client, ns: str) -> None:
    before = answers(t)
    assert t.run("STORAGE FLUSH TABLE t").rows == [(ns, "t", "20")]
    assert answers(t) == before
    t.run("UPDATE t SET a = a || '!' WHERE id < 3")
    t.run("DELETE FROM t WHERE id = 4")
    t.run("INSERT INTO t (id, a) VALUES (100, 'new')")
    changed = answers(t)
    assert changed != before
    assert t.run(f"STORAGE FLUSH {ns}.t").rows == [(ns, "t", "4")]
    assert answers(t) == changed
    assert dict(t.run("SHOW TABLE STATS t").rows) | {"hot_bytes": "", "cold_bytes": ""} == {
        "hot_rows": "0", "tombstones": "0", "segments": "2", "cold_rows": "20", "dead_rows": "4", "hot_bytes": "",
        "cold_bytes": ""}
    assert t.run("STORAGE COMPACT TABLE t").rows == [(ns, "t", "20")]
    assert answers(t) == changed
    segments = 'SELECT "table", rows, deleted FROM system.segments WHERE namespace = $1'
    assert t.run(segments, ns).rows == [("t", "20", "0")]
    kinds = t.run("SELECT kind, status, rows, progress FROM system.jobs WHERE namespace = $1 ORDER BY id", ns).rows
    assert kinds == [("flush", "done", "20", "1"), ("flush", "done", "4", "1"), ("compaction", "done", "20", "1")]
    assert t.run("SELECT count(*) FROM system.jobs WHERE namespace = $1 AND ended_at BETWEEN started_at AND now()", ns
                 ).value == "3"


def test_bytes_move_with_the_rows(db: Client) -> None:
    db.run("CREATE TABLE w (id bigint PRIMARY KEY, a text)")
    empty = dict(db.run("SHOW TABLE STATS w").rows)
    db.run("INSERT INTO w SELECT i, repeat('wide ', 100) || i FROM generate_series(1, 2000) i")
    hot = dict(db.run("SHOW TABLE STATS w").rows)
    assert int(hot["hot_bytes"]) > 2000 * 500
    assert hot["cold_bytes"] == "0"
    db.run("STORAGE FLUSH TABLE w")
    cold = dict(db.run("SHOW TABLE STATS w").rows)
    assert cold["hot_bytes"] == empty["hot_bytes"]
    assert int(cold["cold_bytes"]) > 0


def test_keys_are_unique_over_tiers(t: Client) -> None:
    t.run("STORAGE FLUSH TABLE t")
    with pytest.raises(Failed) as failed:
        t.run("INSERT INTO t (id) VALUES (7)")
    assert (failed.value.sqlstate, failed.value.detail) == ("23505", "Key (id)=(7) already exists.")
    upsert = "INSERT INTO t (id, a) VALUES (7, 'x') ON CONFLICT (id) DO UPDATE SET a = 'up' RETURNING a"
    assert t.run(upsert).value == "up"
    t.run("DELETE FROM t WHERE id = 8")
    t.run("INSERT INTO t (id, a) VALUES (8, 'again')")
    assert t.run("SELECT id, a FROM t WHERE id IN (7, 8) ORDER BY id").rows == [("7", "up"), ("8", "again")]


def test_all_tables_of_a_namespace(t: Client, ns: str) -> None:
    t.run("CREATE USER TABLE private (id bigint PRIMARY KEY)")
    t.run("CREATE STREAM TABLE events (id bigint) WITH (ttl_seconds = '60')")
    t.run(f"EXECUTE AS USER 'ann' (INSERT INTO {ns}.private VALUES (1))")
    assert t.run(f"STORAGE FLUSH ALL IN {ns}").rows == [(ns, "private", "1"), (ns, "t", "20")]
    assert t.run(f"STORAGE COMPACT ALL IN {ns}").rows == [(ns, "private", "0"), (ns, "t", "0")]
    assert t.run(f"EXECUTE AS USER 'ann' (SELECT id FROM {ns}.private)").value == "1"
    assert t.run(f"EXECUTE AS USER 'bob' (SELECT count(*) FROM {ns}.private)").value == "0"


def test_in_a_transaction(t: Client, ns: str) -> None:
    """What is not committed stays where it is, and what was flushed stays flushed."""
    t.run("BEGIN")
    t.run("INSERT INTO t (id) VALUES (50)")
    assert t.run("STORAGE FLUSH TABLE t").rows == [(ns, "t", "20")]
    assert t.run("SELECT count(*) FROM t").value == "21"
    t.run("CREATE TABLE young (id bigint PRIMARY KEY)")
    with pytest.raises(Failed) as failed:
        t.run("STORAGE FLUSH TABLE young")
    assert failed.value.sqlstate == "55000"
    t.run("ROLLBACK")
    assert t.run("SELECT count(*) FROM t").value == "20"
    assert t.run("STORAGE FLUSH TABLE t").rows == [(ns, "t", "0")]


@pytest.mark.parametrize(("sql", "sqlstate"), [
    ("STORAGE FLUSH TABLE missing", "42P01"), ("STORAGE FLUSH ALL IN missing", "3F000"),
    ("STORAGE FLUSH TABLE system.tables", "42501"), ("STORAGE EMPTY TABLE t", "42601"), ("STORAGE FLUSH", "42601"),
    ("CANCEL JOB 999999", "42704"), ("CANCEL JOB x", "42601"), ("SHOW TABLE STATS missing", "42P01"),
])
def test_refused(db: Client, sql: str, sqlstate: str) -> None:
    with pytest.raises(Failed) as failed:
        db.run(sql)
    assert failed.value.sqlstate == sqlstate


def test_streams_have_no_cold_tier(db: Client) -> None:
    db.run("CREATE STREAM TABLE events (id bigint) WITH (ttl_seconds = '60')")
    with pytest.raises(Failed) as failed:
        db.run("STORAGE FLUSH TABLE events")
    assert failed.value.sqlstate == "42809"


def test_an_ended_job_cannot_be_cancelled(t: Client, ns: str) -> None:
    t.run("STORAGE FLUSH TABLE t")
    number = t.run("SELECT id FROM system.jobs WHERE namespace = $1", ns).value
    with pytest.raises(Failed) as failed:
        t.run(f"CANCEL JOB {number}")
    assert failed.value.sqlstate == "55000"


def test_accounts_of_role_user_move_nothing(t: Client, server: KalamServer, ns: str) -> None:
    t.run("CREATE USER flusher WITH PASSWORD 'a secret' ROLE 'user'")
    with psycopg.connect(server.dsn(user="flusher", password="a secret"), autocommit=True) as other:
        for sql in (f"STORAGE FLUSH TABLE {ns}.t", "STORAGE COMPACT ALL", "CANCEL JOB 1", f"SHOW TABLE STATS {ns}.t"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                other.execute(sql)


def test_an_update_outside_the_search_path(t: Client, ns: str, connect: Callable[..., Client]) -> None:
    t.run("SET search_path = ''")
    assert t.run(f"UPDATE {ns}.t SET n = n + 1 WHERE id % 10 = 3").tag == "UPDATE 2"
