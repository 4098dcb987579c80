"""Scans of several partitions at the same time, on one server and on two: the same rows as one after the other gives.

The proxies show that both servers work at once, and what happens when one of them hangs, fails or dies meanwhile.
"""

from __future__ import annotations

import threading

import psycopg
import pytest

from support.server import KalamServer

from .ddl import Session
from .plans import nodes, plan
from .shards import Shards

pytestmark = pytest.mark.pg

#: on both servers, two in a row on the same, and a local one
PLACES = "babah"
ROWS = 1000
#: what is asked first of a partition
ASKED = 'SELECT .* FROM "[^"]*"."p_'


@pytest.fixture
def parts(shards: Shards) -> Shards:
    shards.options(async_capable="true", fetch_size="70")
    shards.fill("p", PLACES, ROWS)
    return shards


def asynchronous(db: Session, sql: str) -> int:
    return sum(node.get("Async Capable") is True for node in nodes(plan(db, sql)))


def test_who_is_asynchronous(parts: Shards) -> None:
    db = parts.db
    assert asynchronous(db, "SELECT * FROM p") == 4
    assert "Async Foreign Scan on " in str(db("EXPLAIN SELECT * FROM p"))
    assert asynchronous(db, "SELECT * FROM p_0") == 0
    assert asynchronous(db, "SELECT * FROM p ORDER BY id") in (0, 4)  # MergeAppend, or Sort above Append
    db("ALTER FOREIGN TABLE p_0 OPTIONS (ADD async_capable 'false')")
    assert asynchronous(db, "SELECT * FROM p") == 3
    db("SET enable_async_append = off")
    assert asynchronous(db, "SELECT * FROM p") == 0
    db("RESET enable_async_append")
    parts.options("SET", async_capable="false")
    assert asynchronous(db, "SELECT * FROM p") == 0
    db("ALTER FOREIGN TABLE p_1 OPTIONS (ADD async_capable 'true')")
    assert asynchronous(db, "SELECT * FROM p") == 1


QUERIES = [
    "SELECT * FROM {t}",
    "SELECT count(*), sum(id), min(v) FROM {t}",
    "SELECT k, count(*) FROM {t} GROUP BY k",
    "SELECT * FROM {t} WHERE length(v) = 3 AND md5(v) > '8'",  # a filter left here, which drops whole chunks
    "SELECT * FROM {t} WHERE md5(v) = md5('v777')",
    "SELECT * FROM {t} WHERE md5(v) = 'none'",
    "SELECT * FROM {t} WHERE k IN (0, 3) AND id % 7 = 0",
    "SELECT count(*) FROM (SELECT * FROM {t} LIMIT 333) s",
    "SELECT count(*) FROM (SELECT * FROM {t} LIMIT 0) s",
    "SELECT EXISTS (SELECT FROM {t} WHERE id > 500)",
    "SELECT x, (SELECT count(*) FROM {t} WHERE id <= x AND md5(v) <> '') FROM generate_series(1, 400, 57) x",
    "SELECT x, s.* FROM generate_series(1, 30, 9) x, LATERAL (SELECT id, v FROM {t} WHERE id % 30 = x) s",
    "SELECT x, s.* FROM generate_series(1, 5) x, LATERAL (SELECT id FROM {t} WHERE id > x * 100 LIMIT 0) s",
    "SELECT a.id, b.v FROM {t} a JOIN {t} b ON a.id = b.id + 1",
    "SELECT a.id FROM {t} a WHERE NOT EXISTS (SELECT FROM {t} b WHERE b.id = a.id * 2)",
    "SELECT * FROM {t} UNION ALL SELECT id, -k, v FROM {t} WHERE id < 10",
    "SELECT id FROM {t} EXCEPT SELECT id * 2 FROM {t}",
    "WITH c AS MATERIALIZED (SELECT * FROM {t}) SELECT count(*) FROM c, c d WHERE c.id = d.id",
    "SELECT id, row_number() OVER (ORDER BY id DESC) FROM {t}",
    "SELECT * FROM {t} WHERE id % 100 = 7 FOR UPDATE",
    "SELECT tableoid::regclass::text LIKE '%\\_0', id FROM {t} WHERE k = 0",
]


def test_rows_are_those_of_an_ordinary_table(parts: Shards) -> None:
    parts.partitioned("h", "h" * len(PLACES))
    parts.db("INSERT INTO h SELECT * FROM p")
    assert parts.db.value("SELECT count(*) FROM h") == ROWS
    for sql in QUERIES:
        wanted = parts.sorted(sql.format(t="h"))
        assert parts.sorted(sql.format(t="p")) == wanted, sql
        with parts.db.conn.transaction():
            assert parts.sorted(sql.format(t="p")) == wanted, sql
    for setting in ("enable_hashjoin", "enable_mergejoin", "enable_material"):
        parts.db(f"SET {setting} = off")  # so that scans are begun again and again
    rescans = "SELECT x, p.id FROM generate_series(1, 3) x LEFT JOIN {t} p ON md5(p.v) > 'f' AND p.id % 3 = x % 3"
    assert parts.sorted(rescans.format(t="p")) == parts.sorted(rescans.format(t="h"))


def test_prepared_with_pruning_at_run_time(parts: Shards) -> None:
    db = parts.db
    db("SET plan_cache_mode = force_generic_plan")
    db("PREPARE q (int[], int) AS SELECT count(*), sum(id) FROM p WHERE k = ANY($1) AND id <= $2")
    for ks in ([0], [1, 2], [0, 1, 2, 3, 4], [4], [], [9]):
        wanted = [g for g in range(1, 501) if g % 5 in ks]
        array = "{" + ",".join(map(str, ks)) + "}"
        assert db(f"EXECUTE q ('{array}', 500)") == [(len(wanted), sum(wanted) or None)]
    db("PREPARE one (int) AS SELECT v FROM p WHERE k = $1 % 5 AND id = $1")
    for i in (1, 5, 12, 999):
        assert db(f"EXECUTE one ({i})") == [(f"v{i}",)]


def test_writes(parts: Shards) -> None:
    db = parts.db
    assert parts.sorted("UPDATE p SET v = v || '!' WHERE id % 50 = 0 RETURNING id, v") == sorted(
        repr((i, f"v{i}!")) for i in range(50, ROWS + 1, 50)
    )
    assert db(
        "WITH d AS (DELETE FROM p WHERE id > 900 RETURNING id) SELECT count(*), (SELECT count(*) FROM p) FROM d"
    ) == [(100, ROWS)]
    assert db("INSERT INTO p SELECT id + 1000, k, v FROM p RETURNING 1")[899:] == [(1,)]
    assert db.value("SELECT count(*) FROM p") == 1800
    db("UPDATE p SET id = p.id + 5000 FROM p q WHERE q.id = p.id AND md5(q.v) < '8'")
    assert db("SELECT count(*) FROM p WHERE id > 5000") == db("SELECT count(*) FROM p WHERE md5(v) < '8'")


def test_cursors(parts: Shards) -> None:
    db = parts.db
    db("BEGIN")
    db("DECLARE c NO SCROLL CURSOR FOR SELECT id FROM p WHERE md5(v) <> ''")
    db("DECLARE h CURSOR WITH HOLD FOR SELECT id FROM p")
    db("UPDATE p SET id = id + 10000")  # neither sees this
    found = [row[0] for row in db("FETCH 10 FROM c")]
    db("SAVEPOINT s")
    found += [row[0] for row in db("FETCH 200 FROM c")]
    db.fails("SELECT 1 / (id - id) FROM p", "22012")
    db("ROLLBACK TO s")
    found += [row[0] for row in db("FETCH ALL FROM c")]
    assert sorted(found) == list(range(1, ROWS + 1))
    db("CLOSE c")
    db("DECLARE r SCROLL CURSOR FOR SELECT id FROM p")
    first = {row[0] for row in db("FETCH 100 FROM r")}
    db("MOVE ABSOLUTE 0 FROM r")
    assert {row[0] for row in db("FETCH ALL FROM r")} == set(range(10001, 10001 + ROWS)) > first
    db("DECLARE n NO SCROLL CURSOR FOR SELECT id FROM p; FETCH 1 FROM n")
    db.fails("MOVE ABSOLUTE 0 FROM n", "55000")
    db("ROLLBACK TO s; COMMIT")
    assert sorted(row[0] for row in db("FETCH ALL FROM h")) == list(range(1, ROWS + 1))
    assert db("SELECT min(id), count(*) FROM p") == [(10001, ROWS)]


FUNCTIONS = """
CREATE FUNCTION seen(int) RETURNS bigint LANGUAGE plpgsql VOLATILE AS
  $$ BEGIN RETURN (SELECT count(*) FROM p WHERE id = $1 AND md5(v) <> ''); END $$;
CREATE FUNCTION fails_within(int) RETURNS int LANGUAGE plpgsql AS
  $$ BEGIN PERFORM 1 / (id - $1) FROM p; RETURN 0; EXCEPTION WHEN division_by_zero THEN RETURN $1; END $$;
CREATE FUNCTION writes(int) RETURNS int LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO p VALUES ($1 + 20000, $1 % 5, 'new'); RETURN $1; END $$;
"""


def test_functions_that_use_the_same_connections(parts: Shards) -> None:
    """Requests that are under way are taken in by others, undone levels leave them alone."""
    db = parts.db
    db(FUNCTIONS)
    few = [(i,) for i in range(100, 105)]
    assert db("SELECT id FROM p WHERE id BETWEEN 100 AND 104 AND seen(id) = 1 ORDER BY id") == few
    assert db("SELECT fails_within(id) FROM p WHERE id BETWEEN 100 AND 104 ORDER BY id") == few
    assert db("SELECT count(*) FROM p WHERE CASE WHEN id < 6 THEN fails_within(id) = id ELSE true END") == [(ROWS,)]
    assert db("SELECT count(*), sum(id) FROM p WHERE writes(id) = id") == [(ROWS, ROWS * (ROWS + 1) // 2)]
    assert db.value("SELECT count(*) FROM p") == 2 * ROWS
    db(
        "DO $$ BEGIN FOR i IN 1..3 LOOP BEGIN PERFORM 1 / (id - 500) FROM p; EXCEPTION WHEN division_by_zero THEN END;"
        " END LOOP; IF (SELECT count(*) FROM p) <> 2000 THEN RAISE 'rows'; END IF; END $$"
    )


# ---------- both at once ----------
class Query(threading.Thread):
    def __init__(self, db: Session, sql: str) -> None:
        super().__init__()
        self.db, self.sql = db, sql
        self.rows: list[tuple[object, ...]] = []
        self.error: psycopg.Error | None = None
        self.start()

    def run(self) -> None:
        try:
            self.rows = self.db(self.sql)
        except psycopg.Error as error:
            self.error = error

    def end(self) -> list[tuple[object, ...]]:
        self.join(40)
        assert not self.is_alive(), self.sql
        if self.error is not None:
            raise self.error
        return self.rows


def test_servers_work_side_by_side(parts: Shards) -> None:
    """Each is asked, for several chunks, while the other says nothing."""
    for silent, asked in ((parts.a, parts.b), (parts.b, parts.a)):
        before = asked.count("FETCH")
        trap = silent.trap(ASKED, "hold answer")
        query = Query(parts.db, "SELECT count(*), sum(id) FROM p")
        trap.wait()
        asked.wait_for("FETCH", before + 2)
        silent.resume()
        assert query.end() == [(ROWS, ROWS * (ROWS + 1) // 2)]


def test_queue_on_one_connection(parts: Shards) -> None:
    """Two partitions of the same server: the second is asked for while the first one's last rows are read."""
    parts.db("SELECT count(*) FROM p")
    made = parts.a.connections, parts.b.connections
    assert parts.db.value("SELECT count(*) FROM p, p q WHERE p.id = q.id") == ROWS
    assert (parts.a.connections, parts.b.connections) == made


def test_enough_rows_end_it(parts: Shards) -> None:
    """A LIMIT that one server satisfies does not wait for the other, nor does the statement's end."""
    parts.db("ALTER TABLE p DETACH PARTITION p_4")
    for silent in (parts.a, parts.b):
        silent.trap(ASKED, "hold")
        assert len(parts.db("SELECT * FROM p LIMIT 5")) == 5
        silent.resume()
        assert parts.db.value("SELECT count(*) FROM p") == 800


# ---------- faults ----------
def usable(parts: Shards) -> None:
    for proxy in (parts.a, parts.b):
        proxy.resume()
    parts.db("ROLLBACK")
    assert parts.db.value("SELECT count(*) FROM p") == ROWS


@pytest.mark.parametrize("block", [False, True])
def test_timeout_while_both_hang(parts: Shards, block: bool) -> None:
    """However many servers hang, the statement ends within a second of its time."""
    if block:
        parts.db("BEGIN; SELECT count(*) FROM p; SAVEPOINT s")
    for proxy in (parts.a, parts.b):
        proxy.hold()
    parts.db("SET statement_timeout = 200")
    parts.db.fails("SELECT count(*) FROM p", "57014", "statement timeout")
    for proxy in (parts.a, parts.b):
        proxy.resume()
    parts.db("ROLLBACK")
    parts.db.without_timeout()
    usable(parts)


def test_cancel_and_termination(parts: Shards, other: Session, dsn: str) -> None:
    trap = parts.b.trap(ASKED, "hold answer")
    query = Query(parts.db, "SELECT count(*) FROM p")
    trap.wait()
    other("SELECT pg_cancel_backend(%s)", parts.db.conn.info.backend_pid)
    with pytest.raises(psycopg.errors.QueryCanceled):
        query.end()
    usable(parts)
    victim = Session(dsn)
    victim(f"SET search_path = {parts.ns}")
    trap = parts.b.trap(ASKED, "hold answer")
    query = Query(victim, "SELECT count(*) FROM p")
    trap.wait()
    other("SELECT pg_terminate_backend(%s)", victim.conn.info.backend_pid)
    with pytest.raises(psycopg.OperationalError):
        query.end()
    usable(parts)


def test_option_timeout(parts: Shards) -> None:
    parts.db(f"ALTER SERVER {parts.ns}_b OPTIONS (ADD timeout '1000')")
    assert parts.db.value("SELECT count(*) FROM p") == ROWS
    parts.b.trap(ASKED, "hold answer")
    parts.db.fails("SELECT count(*) FROM p", "57014", "did not answer within 1000 ms")
    parts.b.trap("FETCH", "hold answer")
    parts.db.fails("SELECT count(*) FROM p", "57014", "did not answer within 1000 ms")
    parts.db(f"ALTER SERVER {parts.ns}_b OPTIONS (DROP timeout)")
    usable(parts)


def test_connection_cut(parts: Shards) -> None:
    for pattern, fault in ((ASKED, "cut"), (ASKED, "cut answer"), ("FETCH", "cut")):
        parts.b.trap(pattern, fault)  # type: ignore[arg-type]
        parts.db.fails("SELECT count(*) FROM p", "08006", "was lost")
        usable(parts)
    parts.db("BEGIN; INSERT INTO p VALUES (5001, 1, 'x'), (5002, 2, 'y')")
    parts.b.trap(ASKED, "cut")
    parts.db.fails("SELECT count(*) FROM p", "08006", "was lost")
    usable(parts)


def test_server_killed_and_back(parts: Shards, second_server: KalamServer) -> None:
    trap = parts.b.trap("FETCH", "hold")
    query = Query(parts.db, "SELECT count(*) FROM p")
    trap.wait()
    second_server.kill()
    parts.b.resume()
    with pytest.raises(psycopg.errors.ConnectionFailure):
        query.end()
    parts.db.fails("SELECT count(*) FROM p", None, "KalamDB at 127.0.0.1")
    second_server.start()
    usable(parts)


def test_an_error_of_one_ends_all(parts: Shards) -> None:
    """One server has lost its table; the other was busy."""
    parts.db(f"SELECT kalam_exec('DROP TABLE {parts.ns}.p_0', '{parts.ns}_b')")
    parts.db.fails("SELECT count(*) FROM p", "HV00R", "p_0")
    parts.db("BEGIN; SAVEPOINT s")
    parts.db.fails("SELECT count(*) FROM p", "HV00R", "p_0")
    parts.db("ROLLBACK TO s")
    assert parts.db("SELECT count(*) FROM p WHERE k > 0") == [(800,)]
    parts.db("COMMIT")
