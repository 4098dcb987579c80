"""What PostgreSQL itself refuses, with our hint; RETURNING old and new; a server that ends an idle session."""

from __future__ import annotations

import psycopg
import pytest

from support.ports import wait_until
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg


@pytest.fixture
def t(db: Session, ns: str) -> Session:
    db(f"SET search_path = {ns}, public")
    db("CREATE TABLE t (id bigint PRIMARY KEY, n int, CONSTRAINT t_n CHECK (n > 0)) USING kalamdb; "
       "INSERT INTO t VALUES (1, 10), (2, 20); CREATE TABLE heap (id bigint PRIMARY KEY, n int); "
       "INSERT INTO heap VALUES (1, 10), (2, 20); "
       "CREATE TABLE p (id bigint, n int) PARTITION BY RANGE (id); "
       "CREATE TABLE p1 PARTITION OF p (PRIMARY KEY (id)) FOR VALUES FROM (0) TO (10) USING kalamdb")
    return db


@pytest.mark.parametrize("target", ["t", "p1"])
def test_merge(t: Session, target: str) -> None:
    t.fails(f"MERGE INTO {target} USING heap h ON h.id = {target}.id WHEN MATCHED THEN DELETE", "0A000",
            "INSERT ... ON CONFLICT (key) DO UPDATE")
    t("MERGE INTO heap USING t ON heap.id = t.id WHEN MATCHED THEN UPDATE SET n = t.n + 1")
    assert t("SELECT * FROM heap ORDER BY id") == [(1, 11), (2, 21)]


@pytest.mark.parametrize(("target", "constraint"), [("t", "t_pkey"), ("t", "t_n"), ("p1", "p1_pkey"), ("p", "p_pkey")])
@pytest.mark.parametrize("action", ["NOTHING", "UPDATE SET n = 1"])
def test_on_conflict_on_constraint(t: Session, target: str, constraint: str, action: str) -> None:
    sql = f"INSERT INTO {target} VALUES (1, 1) ON CONFLICT ON CONSTRAINT {constraint} DO {action}"
    if constraint == "t_n":  # it is one, but of no use here
        t.fails(sql, None)
    else:
        t.fails(sql, "42704", "name its columns, ON CONFLICT (key)")


def test_on_conflict_through_a_parent(t: Session) -> None:
    """A parent has no key: neither its partition's by columns, nor DO UPDATE."""
    t("INSERT INTO p VALUES (1, 1)")
    t("INSERT INTO p VALUES (1, 2), (2, 2) ON CONFLICT DO NOTHING")
    for action in ("DO NOTHING", "DO UPDATE SET n = 9"):
        t.fails(f"INSERT INTO p VALUES (1, 2) ON CONFLICT (id) {action}", "42P10")
    t("INSERT INTO p1 VALUES (1, 7) ON CONFLICT (id) DO UPDATE SET n = excluded.n")
    assert t("SELECT * FROM p ORDER BY id") == [(1, 7), (2, 2)]


@pytest.mark.parametrize("sql", [
    "INSERT INTO {} VALUES (3, 30) RETURNING old.n, new.n, n",
    "UPDATE {} SET n = n + 1 WHERE id < 3 RETURNING id, old.n, new.n, new.n - old.n",
    "UPDATE {} SET n = n + 1 WHERE n < 15 RETURNING old.id, new.*",
    "DELETE FROM {} WHERE id = 1 RETURNING old.n, new.n, n",
    "UPDATE {} AS u SET n = heap.n + 5 FROM heap WHERE heap.id = u.id RETURNING WITH (OLD AS o) u.id, o.n, u.n",
    "INSERT INTO {} VALUES (1, 5), (9, 9) ON CONFLICT (id) DO UPDATE SET n = excluded.n RETURNING id, new.n",
])
def test_returning_old_and_new(t: Session, sql: str) -> None:
    if t.conn.info.server_version < 180000:
        t.fails(sql.format("t"), None)
        return
    t("CREATE TABLE local (id bigint PRIMARY KEY, n int); INSERT INTO local VALUES (1, 10), (2, 20)")
    t("DROP TABLE IF EXISTS ours; CREATE TABLE ours (id bigint PRIMARY KEY, n int) USING kalamdb "
      "WITH (system_columns = false); INSERT INTO ours VALUES (1, 10), (2, 20)")
    assert sorted(t(sql.format("ours"))) == sorted(t(sql.format("local")))
    assert t("SELECT * FROM ours ORDER BY id") == t("SELECT * FROM local ORDER BY id")


def test_a_session_that_the_server_ends(t: Session, ns: str) -> None:
    """The next statement says so; the transaction is over, and the one after it is as good as new."""
    server = KalamServer(idle_in_transaction_session_timeout="500")
    try:
        server.start()
        t(f"CREATE SERVER {ns}_ends FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{server.port}')")
        t(f"CREATE TABLE ends (id bigint PRIMARY KEY) USING kalamdb WITH (server = '{ns}_ends')")
        t("BEGIN; INSERT INTO ends VALUES (1)")
        with psycopg.connect(server.dsn(), autocommit=True) as there:
            others = "SELECT count(*) FROM system.sessions WHERE state <> 'active'"
            wait_until(lambda: there.execute(others).fetchone() == (0,), "the end of the idle session")
        error = t.fails("SELECT * FROM ends", "08006", "idle-in-transaction timeout")
        assert "25P03" not in str(error)
        t("ROLLBACK")
        assert t("SELECT * FROM ends") == []
        t("INSERT INTO ends VALUES (2); DROP TABLE ends")
    finally:
        server.close()
