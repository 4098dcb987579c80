"""KalamDB tables as partitions: what goes where, pruning, moves between partitions, and what is checked on every row.

Differential where it can be: the same statements with ordinary partitions, contents of every partition and RETURNING
compared. The partitions differ: one has its columns in another order and a dropped one, one is partitioned again, one
is the DEFAULT, one is local on both sides.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from .ddl import Session
from .pair import Pair
from .plans import nodes, plan, remote_sql
from .shards import Shards

pytestmark = pytest.mark.pg

TREE = """
CREATE TABLE p (x int, id int NOT NULL, n int, k int, t text DEFAULT 'd', g int GENERATED ALWAYS AS (n * 2) STORED,
  CONSTRAINT small CHECK (n < 1000)) PARTITION BY LIST (k);
ALTER TABLE p DROP COLUMN x;
CREATE TABLE p0 PARTITION OF p (PRIMARY KEY (id)) FOR VALUES IN (0) {using};
CREATE TABLE p1 (t text, junk int, k int, g int GENERATED ALWAYS AS (n * 2) STORED, n int, id int PRIMARY KEY,
  CONSTRAINT small CHECK (n < 1000)) {using};
ALTER TABLE p1 DROP COLUMN junk;
ALTER TABLE p1 ALTER COLUMN t SET DEFAULT 'e';
ALTER TABLE p ATTACH PARTITION p1 FOR VALUES IN (1);
CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2, 3) PARTITION BY RANGE (n);
CREATE TABLE p2_low PARTITION OF p2 (id PRIMARY KEY) FOR VALUES FROM (MINVALUE) TO (50) {using};
CREATE TABLE p2_high PARTITION OF p2 (id PRIMARY KEY, n NOT NULL) FOR VALUES FROM (50) TO (MAXVALUE) {using};
CREATE TABLE rest PARTITION OF p (PRIMARY KEY (id)) DEFAULT {using};
CREATE TABLE here PARTITION OF p (PRIMARY KEY (id)) FOR VALUES IN (9);
"""


@pytest.fixture
def pair(dsn: str) -> Iterator[Pair]:
    pair = Pair(dsn)
    try:
        pair.setup(TREE)
        yield pair
    finally:
        pair.close()


@pytest.fixture
def full(pair: Pair) -> Pair:
    pair.both("INSERT INTO p (id, n, k) SELECT g, g % 100, g % 12 FROM generate_series(0, 599) g")
    return pair


STATEMENTS = [
    "INSERT INTO p VALUES (1000, 1, 0), (1001, 2, 1), (1002, 49, 2), (1003, 50, 3), (1004, 0, 77), (1005, 0, NULL),"
    " (1006, 0, 9) RETURNING *, tableoid::regclass::text",
    "INSERT INTO p2 VALUES (1010, 60, 2, 'sub') RETURNING id, g, tableoid::regclass::text",
    "INSERT INTO p SELECT id + 2000, n, (k + 1) % 12, t FROM p WHERE id < 300",
    "UPDATE p SET t = t || '!' WHERE id % 3 = 0 RETURNING id, k, t",
    "UPDATE p SET k = 1 WHERE k = 0 AND id < 100 RETURNING id, n, k, t, g",  # columns in another order
    "UPDATE p SET k = 0, n = n + 1, t = 'back' WHERE k = 1 RETURNING *",
    "UPDATE p SET k = CASE k WHEN 0 THEN 1 WHEN 1 THEN 0 ELSE k END, t = t || '~'",  # nothing twice
    "UPDATE p SET n = 99 - n WHERE k IN (2, 3) RETURNING id, n, g",  # within the subtree
    "UPDATE p2 SET n = n + 3 WHERE n < 50",
    "UPDATE p SET k = (k + 1) % 8 WHERE k < 8 AND id % 2 = 0 RETURNING id, k",
    "UPDATE p SET k = 100 + k WHERE k IN (0, 2) AND id % 5 = 0",  # to the DEFAULT
    "UPDATE p SET k = NULL WHERE k > 100 RETURNING id, k",
    "UPDATE p SET k = 3, n = 70 WHERE k = 9 AND id < 200 RETURNING id, k, n, g",  # from the local partition
    "UPDATE p SET k = CASE WHEN k = 9 THEN 1 ELSE 2 END, n = n % 100, t = t || '+' WHERE k IN (9, 1, 2)",
    "UPDATE p SET k = v.b, t = v.c FROM (VALUES (300, 0, 'v'), (301, 1, 'w'), (301, 2, 'w')) v (a, b, c)"
    " WHERE p.id = v.a AND p.id < 301 RETURNING p.id, p.k, v.c",
    "UPDATE p SET k = 0 FROM p q WHERE p.id = q.id + 1 AND q.k = 1 AND p.k = 2",
    "WITH u AS (UPDATE p SET k = 1 WHERE k = 3 RETURNING id, n) SELECT count(*), sum(n) FROM u",
    "WITH d AS (DELETE FROM p WHERE k = 1 AND id % 2 = 1 RETURNING *) INSERT INTO p SELECT id, n, 2, t FROM d"
    " RETURNING id, k",
    "DELETE FROM p WHERE id % 7 = 0 RETURNING id, k, g",
    "DELETE FROM p2 WHERE n > 90",
    "SELECT k, count(*), sum(n), min(t) FROM p GROUP BY k ORDER BY k",
    # what no partition takes, or a constraint forbids
    "UPDATE p2 SET k = 0 WHERE id = (SELECT min(id) FROM p2)",  # p2 itself is updated: nowhere else
    "UPDATE p0 SET k = 1 WHERE id = (SELECT min(id) FROM p0)",
    "INSERT INTO p0 VALUES (5000, 1, 1)",
    "INSERT INTO p VALUES (5000, 2000, 0)",
    "INSERT INTO p VALUES (NULL, 1, 0)",
    "UPDATE p SET n = 5000 WHERE id = (SELECT min(id) FROM p WHERE k = 0)",
    "TRUNCATE p2",
    "TRUNCATE p",
]


def test_statements(full: Pair) -> None:
    for sql in STATEMENTS:
        full.both(sql)


def test_copy(pair: Pair) -> None:
    rows = [(i, i % 90, i % 12, f"c{i}") for i in range(500)]
    assert pair.copy("COPY p (id, n, k, t) FROM STDIN", rows).count == 500
    pair.copy("COPY p2 (id, n, k, t) FROM STDIN", [(1000 + i, i, 2 + i % 2, "x") for i in range(80)])
    for bad in [(600, 1, 0, "ok"), (601, 2000, 0, "check")], [(602, 1, 1, "ok"), (None, 1, 1, "null")]:
        assert pair.copy("COPY p (id, n, k, t) FROM STDIN", bad).sqlstate in ("23514", "23502")
    assert pair.copy("COPY p2 (id, n, k, t) FROM STDIN", [(603, 1, 0, "misplaced")]).sqlstate == "23514"


def test_random_moves(full: Pair, request: pytest.FixtureRequest) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(25):
        a, b, m = rng.randrange(12), rng.randrange(9), rng.randrange(2, 9)
        full.both(rng.choice([
            f"UPDATE p SET k = {b}, t = t || '{a}' WHERE k = {a} AND id % {m} = 0 RETURNING id, n, k, t, g",
            f"UPDATE p SET k = (coalesce(k, 0) * {b} + id) % 8, n = abs(n - id) % 100 WHERE id % {m} = 1",
            f"UPDATE p SET n = (n * {m} + id) % 100, t = t || '.' WHERE k IN (2, 3) OR k = {a}",
            f"DELETE FROM p WHERE k = {a} AND id % 10 = {m} RETURNING id",
            f"INSERT INTO p SELECT id + 100000 + {rng.randrange(10**6)} * 10, n, {a}, 'new' FROM p WHERE id % 50 = {m}"
            " AND id < 600 RETURNING id, k",
            "BEGIN", "COMMIT", "SAVEPOINT s", "ROLLBACK",
        ]))  # fmt: skip
    full.both("COMMIT")


def test_a_failed_move_moves_nothing(full: Pair) -> None:
    full.both("BEGIN")
    full.both("UPDATE p SET k = 1 WHERE k = 0 AND id < 100")
    full.both("SAVEPOINT s")
    assert full.both("UPDATE p SET k = 2, n = 10 / (id - 300) WHERE k = 0").sqlstate == "22012"
    full.both("ROLLBACK TO s")
    full.both("UPDATE p SET k = 4 WHERE k = 1")
    full.both("COMMIT")
    full.both("INSERT INTO p1 (id, k) VALUES (240, 1)")
    assert full.both("UPDATE p SET k = 1 WHERE id = 240 AND k = 0").sqlstate == "23505"


def test_misplaced_rows_are_refused(full: Pair) -> None:
    """To a local partition, or where row triggers would have to fire: refused, and everything is where it was."""
    side = full.kalam
    before = side.contents()
    outcome = side.run("UPDATE p SET k = 9 WHERE k = 0")
    assert outcome.sqlstate == "0A000"
    assert '"p0" to partition "here"' in (outcome.message or "")
    side.conn.execute("CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$")
    for when in ("AFTER UPDATE", "BEFORE DELETE", "AFTER DELETE", "BEFORE INSERT", "AFTER INSERT"):
        table = "p1" if "INSERT" in when else "p0"
        side.conn.execute(f"CREATE TRIGGER t {when} ON {table} FOR EACH ROW EXECUTE FUNCTION nothing()")
        assert side.run("UPDATE p SET k = 1 WHERE k = 0").sqlstate == "0A000", when
        side.conn.execute(f"DROP TRIGGER t ON {table}")
    assert side.contents() == before


TRIGGERS = """
CREATE TABLE log (what text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF TG_LEVEL = 'ROW' THEN INSERT INTO log SELECT format('%s %s %s %s %s', TG_NAME, TG_TABLE_NAME, TG_OP, OLD, NEW);
  ELSE INSERT INTO log SELECT format('%s %s %s', TG_NAME, TG_TABLE_NAME, TG_OP); END IF;
  RETURN COALESCE(NEW, OLD); END $$;
CREATE FUNCTION changes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.t := NEW.t || ' trg'; RETURN NEW; END $$;
CREATE FUNCTION misplaces() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.k := 6; RETURN NEW; END $$;
CREATE FUNCTION skips() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
"""


def test_triggers(full: Pair) -> None:
    full.setup(TRIGGERS)
    full.setup(
        "CREATE TRIGGER s BEFORE INSERT OR UPDATE OR DELETE ON p FOR EACH STATEMENT EXECUTE FUNCTION note();"
        "CREATE TRIGGER s2 AFTER INSERT OR UPDATE OR DELETE ON p FOR EACH STATEMENT EXECUTE FUNCTION note();"
        "CREATE TRIGGER r AFTER INSERT OR UPDATE OR DELETE ON p2_low FOR EACH ROW EXECUTE FUNCTION note();"
        "CREATE TRIGGER b BEFORE INSERT OR UPDATE ON p1 FOR EACH ROW EXECUTE FUNCTION changes();"
        "CREATE TRIGGER u BEFORE UPDATE ON p0 FOR EACH ROW EXECUTE FUNCTION changes()"
    )
    full.both("INSERT INTO p VALUES (700, 1, 1), (701, 1, 2), (702, 1, 0) RETURNING *")
    full.both("UPDATE p SET n = n + 1 WHERE id IN (700, 701, 702) RETURNING *")
    full.both("UPDATE p SET k = 5 WHERE id IN (700, 702) RETURNING *")  # moves, with a BEFORE UPDATE trigger
    full.both("DELETE FROM p WHERE id IN (700, 701, 702) RETURNING id, t")
    full.setup(
        "CREATE TRIGGER m BEFORE INSERT OR UPDATE ON p0 FOR EACH ROW EXECUTE FUNCTION misplaces();"
        "CREATE TRIGGER k BEFORE INSERT OR UPDATE ON rest FOR EACH ROW EXECUTE FUNCTION skips()"
    )
    assert full.both("INSERT INTO p VALUES (710, 1, 0)").sqlstate in ("23514", "0A000")
    full.both("INSERT INTO p VALUES (711, 1, 6)")
    full.both("UPDATE p SET t = 'x' WHERE k = 6")


def test_transition_tables_are_refused(full: Pair) -> None:
    """Rows that went by the server would be missing in them: an error, never an empty table."""
    side = full.kalam
    for operation, table, sql in (
        ("INSERT", "NEW", "INSERT INTO p VALUES (900, 1, 0)"), ("UPDATE", "OLD", "UPDATE p SET t = 'x' WHERE k = 0"),
        ("UPDATE", "NEW", "UPDATE p SET k = 1 WHERE k = 0"), ("DELETE", "OLD", "DELETE FROM p WHERE k = 0"),
    ):  # fmt: skip
        side.conn.execute(
            "CREATE OR REPLACE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
        )
        side.conn.execute(
            f"CREATE TRIGGER tt AFTER {operation} ON p REFERENCING {table} TABLE rows "
            "FOR EACH STATEMENT EXECUTE FUNCTION nothing()"
        )
        assert side.run(sql).sqlstate == "0A000", sql
        side.conn.execute("DROP TRIGGER tt ON p")


def test_merge_is_refused(full: Pair) -> None:
    for clause in (
        "MATCHED THEN UPDATE SET t = 'm'",
        "MATCHED THEN DELETE",
        "NOT MATCHED THEN INSERT VALUES (s.a, 1, 0)",
    ):
        outcome = full.kalam.run(f"MERGE INTO p USING (VALUES (1), (900)) s (a) ON p.id = s.a WHEN {clause}")
        assert outcome.sqlstate == "0A000"


# ---------- plans ----------
@pytest.fixture
def parts(db: Session, ns: str) -> Session:
    db(f"SET search_path = {ns}, public")
    for table in ("p", "q"):
        db(f"CREATE TABLE {table} (id int, k int, v text) PARTITION BY LIST (k)")
        for k in range(3):
            db(f"CREATE TABLE {table}{k} PARTITION OF {table} (PRIMARY KEY (id)) FOR VALUES IN ({k}) USING kalamdb")
        db(f"INSERT INTO {table} SELECT g, g % 3, 'v' || g FROM generate_series(1, 60) g")
    return db


def scans(db: Session, sql: str) -> int:
    return sum(node["Node Type"] == "Foreign Scan" for node in nodes(plan(db, sql)))


def test_pruning(parts: Session) -> None:
    assert scans(parts, "SELECT * FROM p") == 3
    assert scans(parts, "SELECT * FROM p WHERE k = 1") == 1
    assert scans(parts, "SELECT * FROM p WHERE k IN (0, 2) AND id > 5") == 2
    assert scans(parts, "SELECT * FROM p WHERE k = 7") == 0
    assert scans(parts, "DELETE FROM p WHERE k = 1 AND md5(v) = ''") == 1
    parts("SET plan_cache_mode = force_generic_plan")
    parts("PREPARE q (int) AS SELECT count(*) FROM p WHERE k = $1 AND id % 2 = 0")
    (found,) = parts.value("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE q (1)")
    assert [node.get("Subplans Removed") for node in nodes(found["Plan"]) if "Subplans Removed" in node] == [2]
    assert parts("EXECUTE q (1)") == [(10,)]
    joined = (
        "SELECT p.v FROM (VALUES (4)) a (id) JOIN LATERAL (SELECT * FROM p WHERE k = a.id % 3 AND id = a.id) p ON true"
    )
    assert parts(joined) == [("v4",)]


def test_joins_and_groups_by_partition(parts: Session) -> None:
    parts("SET enable_partitionwise_join = on; SET enable_partitionwise_aggregate = on")
    join = "FROM p JOIN q ON p.k = q.k AND p.id = q.id"
    for sql, word in (
        (f"SELECT p.id, q.v {join} WHERE p.id < 10", "INNER JOIN"),
        ("SELECT p.id, q.v FROM p LEFT JOIN q ON p.k = q.k AND p.id = q.id + 3", "LEFT JOIN"),
        ("SELECT k, count(*), sum(id) FROM p GROUP BY k", "GROUP BY"),
        (f"SELECT p.k, count(*), sum(q.id) {join} GROUP BY p.k HAVING sum(q.id) > 5", "GROUP BY"),
    ):
        asked = remote_sql(parts, sql)
        assert len(asked) == 3
        assert all(word in text for text in asked), asked
        found = sorted(map(repr, parts(sql)))
        parts("SET enable_partitionwise_join = off; SET enable_partitionwise_aggregate = off")
        assert sorted(map(repr, parts(sql))) == found
        parts("SET enable_partitionwise_join = on; SET enable_partitionwise_aggregate = on")
    parts("ANALYZE p")
    assert parts("SELECT reltuples FROM pg_class WHERE oid = 'p'::regclass") == [(60,)]


# ---------- definitions ----------
def test_partition_of_using(db: Session, ns: str) -> None:
    db(f"SET search_path = {ns}, public")
    db("CREATE TABLE p (a int, id int, k int, v text DEFAULT 'd') PARTITION BY LIST (k)")
    db("CREATE TABLE p0 PARTITION OF p FOR VALUES IN (0) USING kalamdb")
    db("CREATE TABLE p1 PARTITION OF p (PRIMARY KEY (k, a)) FOR VALUES IN (1) USING kalamdb WITH (type = 'shared')")
    db("CREATE TABLE p2 PARTITION OF p (a PRIMARY KEY, v DEFAULT 'e' NOT NULL) FOR VALUES IN (2) USING kalamdb")
    assert (db.key("p0"), db.key("p1"), db.key("p2")) == (["id"], ["k", "a"], ["a"])
    assert db.local_columns("p0") == ["a", "id", "k", "v"]
    db("INSERT INTO p VALUES (1, 1, 0), (1, 1, 1), (2, 1, 1), (1, 1, 2)")
    db.fails("INSERT INTO p VALUES (7, 1, 0)", "23505", "p0_pkey")
    db.fails("INSERT INTO p VALUES (7, 1, 2, NULL)", "23502")
    assert db("SELECT * FROM p2") == [(1, 1, 2, "d")]  # a row that is routed has its parent's default
    for text, state, word in (
        ("p (PRIMARY KEY (nope)) FOR VALUES IN (7)", "42703", "nope"), ("p FOR VALUES IN (1)", "42P17", "overlap"),
        ("p (id GENERATED ALWAYS AS IDENTITY) FOR VALUES IN (7)", "0A000", "identity"),
        ("nope FOR VALUES IN (7)", "42P01", "nope"),
    ):  # fmt: skip
        db.fails(f"CREATE TABLE x PARTITION OF {text} USING kalamdb", state, word)
    db("CREATE TABLE u (a int, k int) PARTITION BY LIST (k)")
    db.fails("CREATE TABLE x PARTITION OF u FOR VALUES IN (7) USING kalamdb", "42P16", "primary key")
    db("ALTER TABLE u ADD PRIMARY KEY (k)")
    db.fails("CREATE TABLE x PARTITION OF u (PRIMARY KEY (a)) FOR VALUES IN (7) USING kalamdb", None, "x")
    assert not db.facts(f'"{ns}"."x"')
    db("ALTER TABLE p DETACH PARTITION p1; INSERT INTO p1 VALUES (5, 5, 50)")
    assert db("SELECT count(*) FROM p1") == [(3,)]
    db("DROP TABLE p")
    assert db("SELECT count(*) FROM p1") == [(3,)]


# ---------- several servers ----------
def test_moves_between_servers_are_refused(shards: Shards) -> None:
    db = shards.db
    shards.fill("p", "aabh", 40)
    db("UPDATE p SET k = 1 WHERE k = 0 AND id < 20")
    for sql in ("UPDATE p SET k = 2 WHERE k = 0", "UPDATE p SET k = 3 WHERE k = 2", "UPDATE p SET k = (k + 1) % 4"):
        db.fails(sql, "0A000", "cannot move a row from foreign partition")
    db("UPDATE p SET k = id % 3 WHERE k = 3")  # from here to both
    assert db("SELECT tableoid::regclass::text, count(*) FROM p GROUP BY 1 ORDER BY 1") == [
        ("p_0", 6 + 4), ("p_1", 14 + 3), ("p_2", 10 + 3),
    ]  # fmt: skip
    db("INSERT INTO p SELECT id + 100, (k + 1) % 3, v FROM p RETURNING id")
    db("DELETE FROM p WHERE id > 100 AND md5(v) <> ''")
    assert db("SELECT count(*), count(DISTINCT id) FROM p") == [(40, 40)]
    db("TRUNCATE p")
    assert db("SELECT count(*) FROM p") == [(0,)]


def test_user_tables_as_partitions(db: Session, ns: str) -> None:
    db(
        f"SET search_path = {ns}, public;"
        "CREATE TABLE p (id int, k int, v text, _seq bigint, _userid text) PARTITION BY LIST (k)"
    )
    for k in range(2):
        db(f"CREATE TABLE p{k} PARTITION OF p FOR VALUES IN ({k}) USING kalamdb WITH (type = 'user')")
    db.fails("INSERT INTO p VALUES (1, 0, 'a')", "42501", "kalam.user_id")
    for tenant in ("alice", "bob"):
        db(f"SET kalam.user_id = '{tenant}'")
        db(f"INSERT INTO p (id, k, v) VALUES (1, 0, '{tenant}'), (2, 1, '{tenant}')")
        assert db("UPDATE p SET k = 1 - k RETURNING id, k, v, _userid") == [
            (1, 1, tenant, tenant),
            (2, 0, tenant, tenant),
        ]
    db("SET kalam.user_id = '*'")
    assert db("UPDATE p SET k = 1 WHERE k = 0 RETURNING id, _userid") == [(2, "alice"), (2, "bob")]
    assert db("SELECT id, k, v, _userid FROM p ORDER BY id, v") == [
        (1, 1, "alice", "alice"), (1, 1, "bob", "bob"), (2, 1, "alice", "alice"), (2, 1, "bob", "bob"),
    ]  # fmt: skip
