"""ANALYZE: what PostgreSQL then knows of shared tables, of tenants' tables, and of tables that cannot be read."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import psycopg
import pytest

from support.postgres import Postgres
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

COLUMNS = "id bigint PRIMARY KEY, place text, size numeric(10, 2), at timestamptz, rare int"
ROWS = """SELECT n, 'place ' || n % 7, n % 100 + 0.5, timestamptz '2026-01-01' + n * interval '1 minute',
          CASE WHEN n % 4 = 0 THEN n END FROM generate_series({}, {}) n"""


def make(db: Session, name: str, kind: str = "shared", **options: str) -> None:
    given = "".join(f", {option} = '{value}'" for option, value in options.items())
    db(f"CREATE TABLE {name} ({COLUMNS}) USING kalamdb WITH (type = '{kind}', system_columns = 'false'{given})")


def fill(db: Session, name: str, first: int, last: int) -> None:
    db(f"INSERT INTO {name} {ROWS.format(first, last)}")


def stats(db: Session, name: str) -> dict[str, tuple[object, ...]]:
    schema, table = name.split(".")
    rows = db("SELECT attname, null_frac, avg_width, n_distinct, most_common_vals IS NOT NULL, "
              "histogram_bounds IS NOT NULL FROM pg_stats WHERE schemaname = %s AND tablename = %s", schema, table)
    return {row[0]: row[1:] for row in rows}


def counted(db: Session, name: str) -> float:
    found: float = db.value("SELECT reltuples FROM pg_class WHERE oid = %s::regclass", name)
    return found


# ---------- shared tables ----------
def test_a_shared_table(db: Session, ns: str) -> None:
    """The same as of a heap table with the same rows, whatever tier they are in."""
    table = f"{ns}.t"
    make(db, table)
    fill(db, table, 1, 4000)
    db("SELECT kalam_flush(%s::regclass)", table)
    fill(db, table, 4001, 5000)
    db(f"DELETE FROM {table} WHERE id <= 500")
    db(f"UPDATE {table} SET size = size WHERE id <= 1000")
    db(f"CREATE TABLE {ns}.heap ({COLUMNS}); INSERT INTO {ns}.heap SELECT * FROM {table}")
    db(f"ANALYZE {table}; ANALYZE {ns}.heap")
    assert counted(db, table) == counted(db, f"{ns}.heap") == 4500
    assert stats(db, table) == stats(db, f"{ns}.heap")
    assert stats(db, table)["place"][2:] == (7.0, True, False)
    assert db.value("SELECT relpages FROM pg_class WHERE oid = %s::regclass", table) > 0


@pytest.mark.parametrize("method", ["off", "auto", "random", "system", "bernoulli"])
def test_sampling(db: Session, ns: str, method: str) -> None:
    table = f"{ns}.t"
    make(db, table, analyze_sampling=method, fetch_size="700")
    fill(db, table, 1, 6000)
    db("SELECT kalam_flush(%s::regclass)", table)
    fill(db, table, 6001, 8000)
    db("SET default_statistics_target = 10")  # 3,000 rows
    db("SET client_min_messages = debug1")
    db.notices.clear()
    db(f"ANALYZE VERBOSE {table}")
    assert '"t": table contains 8000 rows, 3000 rows in sample' in db.notices
    assert counted(db, table) == 8000
    found = stats(db, table)
    assert 0.7 < float(str(found["rare"][0])) < 0.8  # NULLs
    assert found["id"][2] == -1.0


def test_rows_do_not_travel(db: Session, ns: str, server: KalamServer) -> None:
    """One answer, whatever the table's size; with sampling off, a chunk after the other."""
    table = f"{ns}.t"
    make(db, table)
    fill(db, table, 1, 5000)
    trips = []
    for change in ("ADD fetch_size '100'", "ADD analyze_sampling 'off'"):
        db(f"ALTER FOREIGN TABLE {table} OPTIONS ({change})")
        db("SELECT 1 FROM " + table)
        before = db.value("SELECT kalam_round_trips()")
        db(f"ANALYZE {table}")
        trips.append(db.value("SELECT kalam_round_trips()") - before)
    assert trips[0] < 10
    assert trips[1] > 50


def test_a_large_sample(db: Session, ns: str) -> None:
    """It comes in chunks."""
    table = f"{ns}.t"
    make(db, table)
    fill(db, table, 1, 25_000)
    db.notices.clear()
    db("SET client_min_messages = debug1")
    db(f"ANALYZE VERBOSE {table}")
    assert '"t": table contains 25000 rows, 25000 rows in sample' in db.notices
    assert stats(db, table)["id"][2] == -1.0


def test_columns_and_targets(db: Session, ns: str) -> None:
    table = f"{ns}.t"
    make(db, table)
    fill(db, table, 1, 100)
    db(f"ALTER FOREIGN TABLE {table} ALTER place SET STATISTICS 0")
    db(f"ANALYZE {table} (place, rare)")
    assert set(stats(db, table)) == {"rare"}
    db(f"CREATE STATISTICS {ns}.both ON rare, size FROM {table}; ANALYZE {table}")
    assert db.value("SELECT count(*) FROM pg_stats_ext WHERE statistics_schemaname = %s", ns) == 1


def test_other_names_and_types(db: Session, ns: str) -> None:
    db(f"CREATE TYPE {ns}.mood AS ENUM ('sad', 'happy')")
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, a int[], j jsonb, u uuid, b bytea) USING kalamdb "
       "WITH (type = 'shared', system_columns = 'true')")
    db(f"INSERT INTO {ns}.t SELECT n, ARRAY[n, n], jsonb_build_object('n', n), gen_random_uuid(), '\\x01' "
       "FROM generate_series(1, 300) n")
    db(f"ALTER FOREIGN TABLE {ns}.t RENAME TO renamed")
    db(f"CREATE FOREIGN TABLE {ns}.other (\"kéy\" bigint OPTIONS (column_name 'id')) SERVER kalam_server "
       f"OPTIONS (table 't', table_type 'shared')")
    db(f"ANALYZE {ns}.renamed; ANALYZE {ns}.other")
    assert set(stats(db, f"{ns}.renamed")) == {"id", "a", "j", "u", "b", "_seq"}
    assert stats(db, f"{ns}.other") == {"kéy": (0.0, 8, -1.0, False, True)}


def test_an_empty_table(db: Session, ns: str) -> None:
    make(db, f"{ns}.t")
    db(f"ANALYZE {ns}.t")
    assert counted(db, f"{ns}.t") == 0
    assert stats(db, f"{ns}.t") == {}


def test_own_rows_in_a_transaction(db: Session, ns: str) -> None:
    table = f"{ns}.t"
    make(db, table)
    fill(db, table, 1, 100)
    with db.conn.transaction():
        fill(db, table, 101, 300)
        db(f"DELETE FROM {table} WHERE id <= 50")
        db(f"ANALYZE {table}")
        assert counted(db, table) == 250
        db.conn.execute("SAVEPOINT a")
        fill(db, table, 1000, 1009)
        db(f"ANALYZE {table}")
        assert counted(db, table) == 260
        db.conn.execute("ROLLBACK TO a")
        db(f"ANALYZE {table}")
        assert counted(db, table) == 250


def test_what_the_planner_makes_of_it(db: Session, ns: str) -> None:
    table = f"{ns}.t"
    make(db, table)
    fill(db, table, 1, 7000)
    db(f"ANALYZE {table}")
    (plan,) = db.value(f"EXPLAIN (FORMAT JSON) SELECT * FROM {table} WHERE place = 'place 3'")
    assert 900 < plan["Plan"]["Plan Rows"] < 1100
    (plan,) = db.value(f"EXPLAIN (FORMAT JSON) SELECT * FROM {table} WHERE place = 'nowhere'")
    assert plan["Plan"]["Plan Rows"] < 100


# ---------- tenants' tables ----------
@pytest.fixture
def tenants(db: Session, ns: str) -> str:
    """A user table: 300 rows of alice with 10 characters, 100 of bob with 50."""
    table = f"{ns}.u"
    db(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text, n int) USING kalamdb WITH (type = 'user')")
    for tenant, rows, length in (("alice", 300, 10), ("bob", 100, 50)):
        db(f"SET kalam.user_id = '{tenant}'")
        db(f"INSERT INTO {table} SELECT n, repeat('{tenant[0]}', {length}), n FROM generate_series(1, {rows}) n")
        if tenant == "alice":
            db("SELECT kalam_flush(%s::regclass)", table)
    db("RESET kalam.user_id")
    return table


@pytest.mark.parametrize("tenant", ["", "alice", "*"])
def test_counts_and_widths_only(db: Session, tenants: str, tenant: str) -> None:
    db(f"SET kalam.user_id = '{tenant}'")
    db(f"ANALYZE {tenants}")
    assert counted(db, tenants) == 400
    assert stats(db, tenants) == {"body": (0.0, 21, 0.0, False, False)}
    db(f"ANALYZE {tenants}")  # again: what is there is replaced
    assert stats(db, tenants) == {"body": (0.0, 21, 0.0, False, False)}
    slots = db("SELECT stanumbers1, stavalues1, stakind1 FROM pg_statistic WHERE starelid = %s::regclass", tenants)
    assert slots == [(None, None, 0)]


def test_values_known_before_are_forgotten(db: Session, tenants: str) -> None:
    """Such as a table analyzed while its option said that it was shared."""
    db(f"ANALYZE {tenants}")
    relation = db.value("SELECT %s::regclass::oid", tenants)
    db("SET allow_system_table_mods = on")
    db(f"UPDATE pg_statistic SET stanumbers1 = '{{0.5}}', stakind1 = 1 WHERE starelid = {relation}")
    db(f"ANALYZE {tenants}")
    assert db("SELECT stanumbers1, stakind1 FROM pg_statistic WHERE starelid = %s", relation) == [(None, 0)]


def test_plans_with_widths(db: Session, tenants: str) -> None:
    db("SET kalam.user_id = 'alice'")
    db(f"ANALYZE {tenants}")
    (plan,) = db.value(f"EXPLAIN (FORMAT JSON) SELECT body FROM {tenants}")
    assert plan["Plan"]["Plan Width"] == 21
    (plan,) = db.value(f"EXPLAIN (FORMAT JSON) SELECT body FROM {tenants} WHERE body = 'a'")
    assert plan["Plan"]["Plan Rows"] < 10


def test_a_stream(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.s (id bigint PRIMARY KEY, body text) USING kalamdb "
       "WITH (type = 'stream', ttl_seconds = '3600')")
    db("SET kalam.user_id = 'alice'")
    db(f"INSERT INTO {ns}.s SELECT n, 'xxx' FROM generate_series(1, 50) n")
    db("RESET kalam.user_id")
    db(f"ANALYZE {ns}.s")
    assert counted(db, f"{ns}.s") == 50
    assert stats(db, f"{ns}.s") == {"body": (0.0, 4, 0.0, False, False)}


# ---------- partitions, other tables, whole databases ----------
def test_partitions(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.p ({COLUMNS.replace(' PRIMARY KEY', '')}) PARTITION BY RANGE (id)")
    db(f"CREATE TABLE {ns}.heap PARTITION OF {ns}.p FOR VALUES FROM (0) TO (1000)")
    make(db, f"{ns}.t")
    db(f"ALTER TABLE {ns}.p ATTACH PARTITION {ns}.t FOR VALUES FROM (1000) TO (5000)")
    db(f"INSERT INTO {ns}.p {ROWS.format(1, 1999)}")
    db(f"ANALYZE {ns}.p")
    assert counted(db, f"{ns}.p") == 1999
    rows = db("SELECT n_distinct FROM pg_stats WHERE schemaname = %s AND tablename = 'p' AND inherited "
              "AND attname = 'place'", ns)
    assert rows == [(7.0,)]


def test_partitions_that_cannot_be_read(second: Session, server: KalamServer) -> None:
    """ANALYZE of the parent, and of the whole database, goes on with a warning."""
    db = second
    db("CREATE TABLE p (id bigint, a text) PARTITION BY RANGE (id)")
    db("CREATE TABLE heap PARTITION OF p FOR VALUES FROM (0) TO (100)")
    db("CREATE TABLE t (id bigint PRIMARY KEY, a text) USING kalamdb "
       "WITH (type = 'shared', system_columns = 'false')")
    db("ALTER TABLE p ATTACH PARTITION t FOR VALUES FROM (100) TO (200)")
    db("INSERT INTO p SELECT n, 'a' FROM generate_series(50, 149) n")
    server.kill()
    try:
        for command in ("ANALYZE p", "ANALYZE", "VACUUM ANALYZE"):
            db.notices.clear()
            db(command)
            assert [notice for notice in db.notices if notice.startswith('skipping foreign table "t": ')], db.notices
            assert counted(db, "p") == 50
    finally:
        server.start()
    db.notices.clear()
    db("ANALYZE p")
    assert counted(db, "p") == 100
    assert db.notices == []


def test_the_server_is_down(db: Session, ns: str, server: KalamServer) -> None:
    make(db, f"{ns}.t")
    make(db, f"{ns}.t2")
    fill(db, f"{ns}.t", 1, 10)
    db(f"CREATE TABLE {ns}.heap (a int); INSERT INTO {ns}.heap VALUES (1)")
    server.kill()
    try:
        with pytest.raises(psycopg.Error) as caught:
            db(f"ANALYZE {ns}.t")
        assert caught.value.sqlstate in ("08001", "08006")
        db("ANALYZE")  # foreign tables take part only when they are named
        assert counted(db, f"{ns}.heap") == 1
    finally:
        server.start()
    db(f"ANALYZE {ns}.t, {ns}.t2")
    assert counted(db, f"{ns}.t") == 10


def test_the_remote_table_is_gone(db: Session, ns: str) -> None:
    make(db, f"{ns}.t")
    make(db, f"{ns}.lost")
    db.remote(f"DROP TABLE {ns}.lost")
    db.fails(f"ANALYZE {ns}.lost", "HV00R", "lost")
    db(f"ANALYZE {ns}.t")


def test_as_its_owner(db: Session, ns: str) -> None:
    """Whoever may ANALYZE, statistics are those that the owner's account sees."""
    make(db, f"{ns}.t")
    fill(db, f"{ns}.t", 1, 10)
    db(f"CREATE ROLE {ns}_r; GRANT USAGE ON SCHEMA {ns} TO {ns}_r")
    try:
        db(f"SET ROLE {ns}_r")
        db.notices.clear()
        db(f"ANALYZE {ns}.t")
        assert "permission denied" in db.notices[0] or "only table or database owner" in db.notices[0]
    finally:
        db("RESET ROLE")
        db(f"DROP OWNED BY {ns}_r; DROP ROLE {ns}_r")
    assert counted(db, f"{ns}.t") == -1


def test_while_others_write(db: Session, other: Session, ns: str) -> None:
    """Each sample is of one moment: rows are moved between tiers and changed all the while."""
    table = f"{ns}.t"
    make(db, table)
    fill(db, table, 1, 2000)
    ended = threading.Event()
    failures: list[BaseException] = []

    def write() -> None:
        try:
            while not ended.is_set():
                other(f"UPDATE {table} SET place = place || '.' WHERE id % 10 = 3")
                other("SELECT kalam_flush(%s::regclass)", table)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(10):
            db(f"ANALYZE {table}")
            assert counted(db, table) == 2000
            assert stats(db, table)["id"] == (0.0, 8, -1.0, False, True)
    finally:
        ended.set()
        thread.join()
    assert failures == []


def test_the_server_hangs(db: Session, ns: str, server: KalamServer) -> None:
    """ANALYZE can be cancelled, and ends by itself with the option timeout."""
    make(db, f"{ns}.t")
    fill(db, f"{ns}.t", 1, 10)
    db(f"ANALYZE {ns}.t")
    os.kill(server.pid, signal.SIGSTOP)
    try:
        db("SET statement_timeout = '300ms'")
        db.fails(f"ANALYZE {ns}.t", "57014")
        db.without_timeout()
        db("ALTER SERVER kalam_server OPTIONS (ADD timeout '300')")
        error = db.fails(f"ANALYZE {ns}.t", None, "127.0.0.1")
        assert error.sqlstate in ("57014", "08001")
    finally:
        os.kill(server.pid, signal.SIGCONT)
        db.without_timeout()
        db("ALTER SERVER kalam_server OPTIONS (DROP timeout)")
    db(f"ANALYZE {ns}.t")
    assert counted(db, f"{ns}.t") == 10


def test_a_table_attached_without_its_type(db: Session, tenants: str, ns: str) -> None:
    db(f"CREATE SCHEMA {ns}_a")
    db(f"CREATE FOREIGN TABLE {ns}_a.u (id bigint, body text, n int) SERVER kalam_server "
       f"OPTIONS (namespace '{ns}', table 'u')")
    db(f"ANALYZE {ns}_a.u")
    assert counted(db, f"{ns}_a.u") == 400
    assert set(stats(db, f"{ns}_a.u")) == {"body"}


def test_cancelled(db: Session, ns: str, pg: Postgres) -> None:
    make(db, f"{ns}.t")
    fill(db, f"{ns}.t", 1, 1000)
    db("SET statement_timeout = '1ms'")
    with contextlib.suppress(psycopg.errors.QueryCanceled):
        db(f"ANALYZE {ns}.t")
    db.without_timeout()
    db(f"ANALYZE {ns}.t")
    assert counted(db, f"{ns}.t") == 1000
