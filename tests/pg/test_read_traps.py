"""Traps that other foreign-data wrappers fell into when reading, one test each, here or where the table says.

wrong rows and plans
  a target-list entry that is only a parameter; whole rows  test_whole_rows_and_parameters
  WHERE col = (SELECT ...); another table's columns         test_conditions_of_other_relations
  plans whose target list changed after planning            test_plans_that_live_on
  system columns in WHERE                                   test_read_scans.test_no_invented_system_columns
  a column needed only by a local condition                 test_read_scans.test_columns_sent
  LIMIT below a filter or a lock                            test_read_plans, test_read_scans.test_a_limit_locks_...
  gating conditions, ORDER BY a constant, the same twice    test_conditions_and_columns_that_are_constant
  order of text, collations of comparisons                  test_read_plans, test_read_scans.test_order_of_text_...
  = ANY (NULL), arrays with NULL, now() and parameters      test_read_plans, test_read_differential
  fixed row estimates                                       test_estimates
  values shifted by TimeZone or DateStyle                   test_types, test_session_settings
scans and cursors
  a scan that stops early                                   test_early_stop
  two scans open on one connection                          test_scans_interleaved
  rescan with changed parameters, rewound cursors           test_rescans, test_cursors_back_and_forth
  a request under way during rescan, subabort, commit       test_rescans, test_cursors_and_savepoints, test_with_hold
  a connection that failed while a cursor points at it      test_a_cursor_whose_connection_is_gone
sessions
  error context without catalogs                            test_read_scans.test_remote_table_differs
  user mapping of the view's owner or SECURITY DEFINER      test_whose_mapping
  SIGTERM; waits that watch no latch                        test_wire_faults, test_cancel
  parallel workers                                          test_parallel_plans
  fewer, more and dropped columns                           test_columns_that_differ
  large values held to the end of the transaction           test_large_values
  timestamps beyond 2038                                    test_types
"""

from __future__ import annotations

from typing import Any

import pytest

from support.server import KalamServer

from .ddl import Session
from .plans import nodes, plan

pytestmark = pytest.mark.pg


@pytest.fixture
def table(db: Session, ns: str) -> str:
    """2,000 rows in chunks of 300."""
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, n int, body text) USING kalamdb WITH (type = 'shared')")
    db(f"ALTER FOREIGN TABLE {ns}.t OPTIONS (ADD fetch_size '300')")
    db(f"INSERT INTO {ns}.t SELECT g, g % 10, 'body ' || g FROM generate_series(1, 2000) g")
    return f"{ns}.t"


@pytest.fixture
def heap(db: Session, ns: str, table: str) -> str:
    db(f"CREATE TABLE {ns}.heap AS SELECT id, n, body FROM {table}")
    db(f"ANALYZE {ns}.heap")
    return f"{ns}.heap"


def same(db: Session, sql: str, table: str, heap: str) -> list[tuple[Any, ...]]:
    """What the query gives on the table, which is what it gives on a heap."""
    found = db(sql.format(t=table))
    assert found == db(sql.format(t=heap))
    return found


# ---------- wrong rows and plans ----------
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_whole_rows_and_parameters(db: Session, table: str, heap: str, mode: str) -> None:
    db(f"SET plan_cache_mode = {mode}")
    for number, source in enumerate((table, heap)):
        columns = f"(SELECT id, n, body FROM {source}) x"
        db(f"PREPARE q{number}a(int) AS SELECT $1 FROM {source} WHERE id < 3")
        db(f"PREPARE q{number}b(int) AS SELECT x, $1 + n FROM {columns} WHERE id = $1 OR n = $1 ORDER BY id LIMIT 5")
        db(f"PREPARE q{number}c(int) AS SELECT $1, count(*), max(x.body) FROM {columns} GROUP BY $1, n ORDER BY 2, 3")
    for query, value in (("a", 7), ("b", 3), ("c", 1)):
        assert db(f"EXECUTE q0{query}({value})") == db(f"EXECUTE q1{query}({value})")
    db("DEALLOCATE ALL")


def test_conditions_of_other_relations(db: Session, table: str, heap: str) -> None:
    assert same(db, "SELECT id FROM {t} WHERE id = (SELECT max(id) - 7 FROM {t})", table, heap) == [(1993,)]
    assert same(db, "SELECT id FROM {t} a WHERE n = (SELECT 3) AND id < (SELECT 20) ORDER BY id", table, heap)
    inner = "(SELECT body FROM {t} b WHERE b.id = a.id + a.n)"
    assert same(db, f"SELECT a.id, {inner} FROM {{t}} a WHERE a.id < 9 ORDER BY 1", table, heap)
    outer = ("SELECT v.x, t.id FROM (VALUES (1), (2), (NULL)) v(x) LEFT JOIN {t} t ON t.id = v.x AND v.x > 1"
             " ORDER BY 1, 2")
    assert same(db, outer, table, heap) == [(1, None), (2, 2), (None, None)]


CONSTANT = [
    # decided once, before the scan: also where a join or what is above it is one scan
    "SELECT count(*) FROM {t} a JOIN {t} b USING (id) WHERE {gate}",
    "SELECT a.id FROM {t} a LEFT JOIN {t} b ON a.id = b.id AND {gate} WHERE b.id IS NULL ORDER BY 1 LIMIT 3",
    "SELECT n, count(*) FROM {t} WHERE {gate} GROUP BY n ORDER BY n",
    "SELECT n, count(*) FROM {t} GROUP BY n HAVING {gate} ORDER BY n",
    "SELECT a.id FROM {t} a JOIN {t} b USING (id) WHERE {gate} ORDER BY 1 LIMIT 3",
    "SELECT count(*) FROM {t} a WHERE EXISTS (SELECT FROM {t} b WHERE b.id = a.id AND {gate})",
    # no column's place, though the server might read it as one
    "SELECT * FROM (SELECT 2 AS x, id FROM {t} UNION ALL SELECT 1, id FROM {t}) u WHERE {gate} ORDER BY x, id LIMIT 5",
    "SELECT id, 2 AS k FROM {t} WHERE {gate} ORDER BY k, id DESC LIMIT 3",
    # one expression, twice
    "SELECT n, n, count(*) FROM {t} WHERE {gate} GROUP BY n, n ORDER BY 1",
    "SELECT n AS a, n AS b, count(*) FROM {t} WHERE {gate} GROUP BY 1, 2 ORDER BY 1",
    "SELECT DISTINCT n, n FROM {t} WHERE {gate} ORDER BY 1",
]


@pytest.mark.parametrize("gate", ["1 = 0", "1 = 1", "current_setting('application_name') = 'open'",
                                  "(SELECT current_setting('application_name') = 'open')"])
def test_conditions_and_columns_that_are_constant(db: Session, table: str, heap: str, gate: str) -> None:
    for name in ("open", "shut"):
        db(f"SET application_name = '{name}'")
        for sql in CONSTANT:
            same(db, sql.replace("{gate}", gate), table, heap)


def test_plans_that_live_on(db: Session, table: str, ns: str) -> None:
    """A cached plan meets columns that were added, dropped and renamed since."""
    db("SET plan_cache_mode = force_generic_plan")
    db(f"PREPARE q AS SELECT id, body FROM {table} WHERE n = 3 ORDER BY id LIMIT 2")
    db(f"CREATE FUNCTION {ns}.f() RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT body FROM {table} t"
       " WHERE id = 3); END $$")
    wanted = [(3, "body 3"), (13, "body 13")]
    for ddl in ("ADD COLUMN extra int", "DROP COLUMN n, ADD COLUMN n int DEFAULT 3", "RENAME COLUMN body TO text",
                "RENAME COLUMN text TO body"):
        assert db("EXECUTE q")[:2] == wanted
        assert db.value(f"SELECT {ns}.f()") == "body 3"
        db(f"ALTER FOREIGN TABLE {table} {ddl}")
        if "TO text" in ddl:
            db.fails("EXECUTE q", "42703")
            db.fails(f"SELECT {ns}.f()", "42703")
            db(f"ALTER FOREIGN TABLE {table} RENAME COLUMN text TO body")
            break
        wanted = db(f"SELECT id, body FROM {table} WHERE n = 3 ORDER BY id LIMIT 2")
    assert db("EXECUTE q") == wanted


def test_columns_that_differ(db: Session, ns: str, table: str) -> None:
    """Fewer columns than the remote table, in another order, and dropped ones between."""
    db(f"CREATE FOREIGN TABLE {ns}.u (body text, id bigint OPTIONS (key '1')) SERVER kalam_server"
       f" OPTIONS (namespace '{ns}', \"table\" 't')")
    db(f"ALTER FOREIGN TABLE {ns}.u ADD COLUMN gone int")
    db(f"ALTER FOREIGN TABLE {ns}.u DROP COLUMN gone")
    assert db(f"SELECT * FROM {ns}.u WHERE id = 5") == [("body 5", 5)]
    assert db(f"UPDATE {ns}.u SET body = 'new' WHERE id = 5 RETURNING *") == [("new", 5)]
    assert db(f"SELECT n, body FROM {table} WHERE id = 5") == [(5, "new")]
    assert db(f"SELECT u::text FROM {ns}.u WHERE id = 6") == [("(\"body 6\",6)",)]


# ---------- scans and cursors ----------
def test_scans_interleaved(db: Session, table: str, heap: str) -> None:
    """Several scans take turns on one connection, each many chunks long."""
    db("SET enable_hashjoin = off; SET enable_material = off")
    same(db, "SELECT count(*), sum(a.id - b.id) FROM (SELECT * FROM {t} ORDER BY id OFFSET 0) a JOIN"
             " (SELECT * FROM {t} ORDER BY id OFFSET 0) b ON a.id = b.id + 1", table, heap)
    with db.conn.transaction():
        names = [f"c{i}" for i in range(5)]
        for i, name in enumerate(names):
            db(f"DECLARE {name} CURSOR FOR SELECT id FROM {table} WHERE id > {i} ORDER BY id")
        for turn in range(6):
            for i, name in enumerate(names):
                rows = db(f"FETCH 200 FROM {name}")
                assert rows == [(i + 1 + turn * 200 + j,) for j in range(200)]
                assert db(f"SELECT n FROM {table} WHERE id = {turn + 1}") == [((turn + 1) % 10,)]


def test_rescans(db: Session, table: str, heap: str) -> None:
    """With the same and with other parameters, in the middle of a chunk, and with a chunk under way."""
    db("SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off; SET enable_memoize = off")
    inner = "(SELECT * FROM {t} b WHERE b.id > a.x * 400 ORDER BY b.id OFFSET {o}) b"
    lateral = "SELECT a.x, b.id FROM generate_series(0, 4) a(x), LATERAL " + inner
    for offset, limit in ((0, 3), (299, 3), (310, 500)):
        sql = lateral.replace("{o}", str(offset))
        same(db, f"SELECT x, count(*), sum(id) FROM ({sql}) t GROUP BY x ORDER BY x", table, heap)
        few = sql.replace(f"OFFSET {offset}", f"OFFSET {offset} LIMIT {limit}")
        same(db, f"SELECT * FROM ({few}) t ORDER BY 1, 2", table, heap)
    same(db, "SELECT x, (SELECT count(*) FROM (SELECT FROM {t} WHERE id > x AND body ILIKE '%1%' LIMIT 350) t)"
             " FROM generate_series(1, 2000, 400) x ORDER BY 1", table, heap)
    same(db, "SELECT x, EXISTS (SELECT FROM (SELECT * FROM {t} OFFSET 0) t WHERE id = x)"
             " FROM generate_series(1, 2500, 700) x ORDER BY 1", table, heap)
    db(f"DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT a.id FROM {heap} a JOIN {table} b USING (id) WHERE b.id < 9"
       " ORDER BY 1")
    assert db("FETCH 3 FROM c") == [(1,), (2,), (3,)]
    assert db("FETCH ABSOLUTE 1 FROM c") == [(1,)]
    assert db("FETCH PRIOR FROM c") == []
    db("CLOSE c")


def test_cursors_back_and_forth(db: Session, table: str) -> None:
    with db.conn.transaction():
        db(f"DECLARE c SCROLL CURSOR FOR SELECT id FROM {table} WHERE id > 10 ORDER BY id")
        assert db("FETCH 3 FROM c") == [(11,), (12,), (13,)]
        assert db("FETCH BACKWARD 2 FROM c") == [(12,), (11,)]
        assert db("MOVE FORWARD 1000 FROM c") == []
        assert db("FETCH c") == [(1012,)]
        assert db("FETCH FIRST FROM c") == [(11,)]
        assert db("FETCH LAST FROM c") == [(2000,)]
        db(f"DECLARE d NO SCROLL CURSOR FOR SELECT id FROM {table} ORDER BY id")
        db("FETCH 400 FROM d")
        db("SAVEPOINT s")
        db.fails("FETCH BACKWARD 1 FROM d", "55000")
        db("ROLLBACK TO s")
        assert db("FETCH c") == []


def test_with_hold(db: Session, table: str) -> None:
    """What is left of it is read at COMMIT, as of its opening."""
    with db.conn.transaction():
        db(f"DECLARE held CURSOR WITH HOLD FOR SELECT id, n FROM {table} ORDER BY id")
        assert db("FETCH 350 FROM held")[-1] == (350, 0)
        db(f"UPDATE {table} SET n = -1 WHERE id > 340")
    assert db("FETCH FROM held") == [(351, 1)]
    rest = db("FETCH ALL FROM held")
    assert (len(rest), rest[-1]) == (1649, (2000, 0))
    db("CLOSE held")
    db(f"DECLARE held CURSOR WITH HOLD FOR SELECT id, n FROM {table} ORDER BY id")
    assert len(db("FETCH ALL FROM held")) == 2000
    db("CLOSE held")


def test_cursors_and_savepoints(db: Session, table: str) -> None:
    db("BEGIN")
    db(f"DECLARE outer_one CURSOR FOR SELECT id FROM {table} ORDER BY id")
    assert db("FETCH outer_one") == [(1,)]
    db("SAVEPOINT s")
    db(f"DECLARE inner_one CURSOR FOR SELECT id FROM {table} ORDER BY id")
    assert db("FETCH 301 FROM inner_one")[-1] == (301,)
    assert db("FETCH 2 FROM outer_one") == [(2,), (3,)]
    db(f"DELETE FROM {table} WHERE id > 3")
    db("ROLLBACK TO s")
    db.fails("FETCH inner_one", "34000")
    db("ROLLBACK TO s")
    assert len(db("FETCH ALL FROM outer_one")) == 1997
    db("ROLLBACK")
    db(f"""DO $$ DECLARE c refcursor; r record; n int := 0; BEGIN
        OPEN c FOR SELECT id FROM {table} ORDER BY id;
        LOOP
            FETCH c INTO r;
            EXIT WHEN NOT FOUND;
            n := n + 1;
            IF n % 250 = 0 THEN
                BEGIN
                    FOR r IN SELECT id FROM {table} LOOP
                        PERFORM 1 / (r.id - 301);
                    END LOOP;
                EXCEPTION WHEN division_by_zero THEN NULL;
                END;
            END IF;
        END LOOP;
        ASSERT n = 2000, n;
    END $$""")


def test_a_cursor_whose_connection_is_gone(db: Session, table: str, server: KalamServer) -> None:
    """FETCH says so, CLOSE and ROLLBACK work, and nothing points at what is no more."""
    db("BEGIN")
    db(f"DECLARE c CURSOR FOR SELECT id FROM {table} ORDER BY id")
    assert db("FETCH c") == [(1,)]
    server.kill()
    server.start()
    db("SAVEPOINT s")
    db.fails("FETCH ALL FROM c", "08006")
    db("ROLLBACK TO s")
    db("CLOSE c")
    db("ROLLBACK")
    db(f"DECLARE c CURSOR WITH HOLD FOR SELECT id FROM {table} ORDER BY id")
    server.restart()
    assert len(db("FETCH ALL FROM c")) == 2000
    db("CLOSE c")


# ---------- sessions ----------
def test_whose_mapping(db: Session, ns: str) -> None:
    """A view reads with its owner's mapping, a SECURITY DEFINER function with its owner's; others with their own."""
    db(f"CREATE TABLE {ns}.mine (id bigint PRIMARY KEY) USING kalamdb WITH (type = 'user')")
    roles = [f"{ns}_anna", f"{ns}_bert"]
    for role in roles:
        db(f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA {ns} TO {role}; GRANT ALL ON {ns}.mine TO {role};"
           f" GRANT CREATE ON SCHEMA {ns} TO {role}; CREATE USER MAPPING FOR {role} SERVER kalam_server"
           f" OPTIONS (user_id '{role}')")
        db(f"SET ROLE {role}")
        db(f"INSERT INTO {ns}.mine VALUES ({len(role)}), ({roles.index(role)})")
        db("RESET ROLE")
    anna, bert = roles
    db(f"SET ROLE {anna}")
    db(f"CREATE VIEW {ns}.view AS SELECT * FROM {ns}.mine; GRANT SELECT ON {ns}.view TO {bert}")
    db(f"CREATE FUNCTION {ns}.definer() RETURNS SETOF bigint LANGUAGE sql SECURITY DEFINER AS"
       f" 'SELECT id FROM {ns}.mine ORDER BY id'")
    db(f"SET ROLE {bert}")
    long = len(bert)
    assert db(f"SELECT id FROM {ns}.view ORDER BY id") == [(0,), (long,)]
    assert db(f"SELECT {ns}.definer()") == [(0,), (long,)]
    assert db(f"SELECT id FROM {ns}.mine ORDER BY id") == [(1,), (long,)]
    both = f"SELECT v.id, m.id FROM {ns}.view v, {ns}.mine m WHERE v.id < 2 AND m.id < 2"
    assert db(both) == [(0, 1)]
    db("RESET ROLE")


def test_parallel_plans(db: Session, table: str, heap: str) -> None:
    """Workers scan the heap; the foreign scan stays with the leader, who has the connection."""
    forced = "debug_parallel_query" if db.conn.info.server_version >= 160000 else "force_parallel_mode"
    db("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0")
    db("SET max_parallel_workers_per_gather = 2; SET enable_indexscan = off")
    db(f"ALTER TABLE {heap} SET (parallel_workers = 2)")
    queries = ["SELECT count(*), sum(t.n) FROM {h} h JOIN {t} t USING (id)",
               "SELECT (SELECT count(*) FROM {t}), count(*) FROM {h}",
               "SELECT n, count(*) FROM (SELECT n FROM {h} UNION ALL SELECT n FROM {t}) u GROUP BY n ORDER BY n"]
    for force in ("off", "on"):
        db(f"SET {forced} = {force}")
        for query in queries:
            sql = query.format(t=table, h=heap)
            for node in nodes(plan(db, sql)):
                assert node["Node Type"] != "Foreign Scan" or not node["Parallel Aware"]
                if node["Node Type"] == "Gather" and not node.get("Single Copy"):
                    assert all(inner["Node Type"] != "Foreign Scan" for inner in nodes(node)[1:])
            assert db(sql) == db(query.format(t=heap, h=heap))
    assert any(node["Node Type"] == "Gather" for node in nodes(plan(db, queries[0].format(t=table, h=heap))))


@pytest.mark.parametrize("cold", [False, True], ids=["hot", "cold"])
def test_large_values(db: Session, ns: str, cold: bool) -> None:
    """Rows wider than a chunk is meant to be, and many of them: each chunk is bounded by its bytes."""
    db(f"CREATE TABLE {ns}.wide (id bigint PRIMARY KEY, body text, raw bytea) USING kalamdb WITH (type = 'shared')")
    for i in range(6):
        db(f"INSERT INTO {ns}.wide VALUES ({i}, repeat('ä{i}', 1000000), decode(repeat('0{i % 10}', 3000000), 'hex'))")
    db(f"INSERT INTO {ns}.wide SELECT g, 'short', NULL FROM generate_series(100, 1000) g")
    if cold:
        db("SELECT kalam_flush(%s::regclass)", f"{ns}.wide")
    widths = (f"SELECT count(*), sum(length(body)), sum(length(raw)) FROM (SELECT * FROM {ns}.wide OFFSET 0) t"
              " WHERE id < 100")
    assert db(widths) == [(6, sum(1000000 * len(f"ä{i}") for i in range(6)), 18000000)]
    (found,) = db.value(f"EXPLAIN (ANALYZE, FORMAT JSON) SELECT * FROM {ns}.wide")
    scan = next(node for node in nodes(found["Plan"]) if node["Node Type"] == "Foreign Scan")
    assert scan["Rows Received"] == 907
    assert scan["Chunks"] >= 3  # of 30 MB
    assert db(f"SELECT length(body), length(raw) FROM {ns}.wide WHERE id IN (3, 500) ORDER BY id") == [
        (2000000, 3000000), (5, None)]
    assert len(db(f"SELECT * FROM {ns}.wide ORDER BY id LIMIT 5")) == 5
    with db.conn.transaction():
        assert len(db(f"SELECT * FROM {ns}.wide WHERE id < 5 FOR UPDATE")) == 5
