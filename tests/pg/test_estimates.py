"""How many rows plans expect, of tables never analyzed and of tenants' tables; and what asking for that costs."""

from __future__ import annotations

from typing import Any

import pytest

from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg


def plan(db: Session, query: str) -> dict[str, Any]:
    (found,) = db.value(f"EXPLAIN (FORMAT JSON) {query}")
    root: dict[str, Any] = found["Plan"]
    return root


def expected(db: Session, query: str) -> int:
    return int(plan(db, query)["Plan Rows"])


def nodes(root: dict[str, Any]) -> list[str]:
    return [root["Node Type"]] + [node for child in root.get("Plans", ()) for node in nodes(child)]


def trips(db: Session, query: str) -> int:
    before = db.value("SELECT kalam_round_trips()")
    db(query)
    return int(db.value("SELECT kalam_round_trips()") - before)


def make(db: Session, name: str, rows: int, kind: str = "shared") -> None:
    db(f"CREATE TABLE {name} (id bigint PRIMARY KEY, n int, body text) USING kalamdb WITH (type = '{kind}')")
    if rows:
        db(f"INSERT INTO {name} SELECT g, g % 10, 'body' FROM generate_series(1, {rows}) g")


# ---------- never analyzed ----------
def test_never_analyzed(db: Session, ns: str) -> None:
    for rows in (0, 5, 3000):
        make(db, f"{ns}.t{rows}", rows)
        assert expected(db, f"SELECT * FROM {ns}.t{rows}") == max(rows, 1)
    db("SELECT kalam_flush(%s::regclass)", f"{ns}.t3000")
    db(f"ALTER FOREIGN TABLE {ns}.t3000 OPTIONS (ADD fetch_size '100')")  # forgets what is known
    assert expected(db, f"SELECT * FROM {ns}.t3000") == 3000
    assert expected(db, f"SELECT * FROM {ns}.t3000 WHERE id = 7") == 1
    assert 10 <= expected(db, f"SELECT * FROM {ns}.t3000 WHERE n = 7") <= 3000


def test_joins_are_planned_for_their_size(db: Session, ns: str) -> None:
    """Thousands of rows are not looked up one by one; a few are."""
    make(db, f"{ns}.big", 20_000)
    db(f"CREATE TABLE {ns}.heap AS SELECT g AS id, g AS n FROM generate_series(1, 20000) g; ANALYZE {ns}.heap")
    db(f"CREATE TABLE {ns}.few AS SELECT g AS id FROM generate_series(1, 3) g; ANALYZE {ns}.few")
    db(f"CREATE INDEX ON {ns}.heap (id); CREATE INDEX ON {ns}.few (id)")
    for _ in range(2):
        found = nodes(plan(db, f"SELECT * FROM {ns}.heap JOIN {ns}.big USING (id)"))
        assert "Nested Loop" not in found, found
        assert found.count("Foreign Scan") == 1
        for order in ("", "ORDER BY id"):
            found = nodes(plan(db, f"SELECT * FROM {ns}.few JOIN {ns}.big USING (id) {order}"))
            assert "Nested Loop" in found, found
        db(f"ANALYZE {ns}.big")  # tells how little of it a merge join would read


def test_joins_on_keys(db: Session, ns: str) -> None:
    """A key has as many values as the table has rows, though nothing was analyzed."""
    make(db, f"{ns}.a", 5000)
    make(db, f"{ns}.b", 3000)
    db(f"CREATE TABLE {ns}.heap AS SELECT g AS id FROM generate_series(1, 4000) g; ANALYZE {ns}.heap")
    assert 2900 <= expected(db, f"SELECT * FROM {ns}.a JOIN {ns}.b USING (id)") <= 3100
    assert 3900 <= expected(db, f"SELECT * FROM {ns}.a JOIN {ns}.heap USING (id)") <= 4100
    assert expected(db, f"SELECT a.id FROM {ns}.a JOIN {ns}.b USING (n)") > 10_000
    assert 4900 <= expected(db, f"SELECT id, count(*) FROM {ns}.a GROUP BY id") <= 5000


def test_a_condition_of_values_the_query_engine_does_not_take(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, v numeric) USING kalamdb "
       "WITH (type = 'shared', use_remote_estimate = 'true')")
    db(f"INSERT INTO {ns}.t SELECT g, CASE WHEN g < 5 THEN 'NaN' ELSE g::numeric END FROM generate_series(1, 300) g")
    assert expected(db, f"SELECT * FROM {ns}.t WHERE v + 1 > 7") > 0


def test_asked_once(db: Session, ns: str) -> None:
    make(db, f"{ns}.t", 100)
    first, second = (trips(db, f"SELECT * FROM {ns}.t WHERE n = 3") for _ in range(2))
    assert first - second == 1
    db(f"ALTER FOREIGN TABLE {ns}.t OPTIONS (ADD fetch_size '500')")
    assert trips(db, f"SELECT * FROM {ns}.t WHERE n = 3") == first
    assert trips(db, f"SELECT * FROM {ns}.t WHERE n = 3") == second


def test_nothing_is_asked_for_a_key(db: Session, ns: str) -> None:
    for kind in ("shared", "user"):
        db("SET kalam.user_id = 'alice'")
        make(db, f"{ns}.{kind}", 10, kind)
        assert trips(db, f"SELECT * FROM {ns}.{kind} WHERE id = 3") == 1
        assert trips(db, f"UPDATE {ns}.{kind} SET n = 1 WHERE id = 3") <= 3


def test_nothing_is_asked_of_an_analyzed_table(db: Session, ns: str) -> None:
    make(db, f"{ns}.t", 2000)
    db(f"ANALYZE {ns}.t")
    assert trips(db, f"SELECT * FROM {ns}.t WHERE n = 3") == 1


def test_a_table_that_was_empty_when_it_was_analyzed(db: Session, ns: str) -> None:
    make(db, f"{ns}.t", 0)
    db(f"ANALYZE {ns}.t")
    assert expected(db, f"SELECT * FROM {ns}.t") <= 1
    db(f"INSERT INTO {ns}.t SELECT generate_series(1, 5000)")
    assert expected(db, f"SELECT * FROM {ns}.t") == 5000


def test_many_rows_written_are_noticed(db: Session, ns: str) -> None:
    make(db, f"{ns}.t", 10)
    assert expected(db, f"SELECT * FROM {ns}.t") == 10
    db(f"INSERT INTO {ns}.t SELECT g FROM generate_series(100, 5099) g")
    assert expected(db, f"SELECT * FROM {ns}.t") == 5010


def test_in_a_transaction(db: Session, ns: str) -> None:
    """A question while planning disturbs no transaction, and counts what is committed."""
    make(db, f"{ns}.t", 10)
    with db.conn.transaction():
        db(f"CREATE TABLE {ns}.new (id bigint PRIMARY KEY, n int) USING kalamdb WITH (type = 'shared')")
        db(f"INSERT INTO {ns}.new SELECT g, g FROM generate_series(1, 50) g")
        assert db(f"SELECT count(*) FROM {ns}.new JOIN {ns}.t USING (id)") == [(10,)]
        db("SAVEPOINT a")
        db(f"SELECT * FROM {ns}.new WHERE n = 3")
        db("ROLLBACK TO a")
    assert db(f"SELECT count(*) FROM {ns}.new") == [(50,)]


def test_a_system_table(db: Session, ns: str) -> None:
    db(f"CREATE FOREIGN TABLE {ns}.s (id bigint) SERVER kalam_server OPTIONS (namespace 'system', table 'sessions')")
    assert expected(db, f"SELECT * FROM {ns}.s") > 0


# ---------- tenants ----------
def test_of_one_tenant(db: Session, ns: str) -> None:
    """A tenant's plans are made for that tenant's rows, with statistics and without."""
    table = f"{ns}.u"
    make(db, table, 0, "user")
    sizes = {"small": 20, "large": 4000}
    for tenant, rows in sizes.items():
        db(f"SET kalam.user_id = '{tenant}'")
        db(f"INSERT INTO {table} SELECT g, g, 'x' FROM generate_series(1, {rows}) g")
    for analyzed in (False, True):
        if analyzed:
            db(f"ANALYZE {table}")
        for tenant, rows in [*sizes.items(), ("nobody", 1), ("*", 4020)]:
            db(f"SET kalam.user_id = '{tenant}'")
            assert expected(db, f"SELECT * FROM {table}") == rows, (tenant, analyzed)
        db("RESET kalam.user_id")
        assert expected(db, f"SELECT * FROM {table}") == 4020


def test_another_tenant_of_a_table_read_alone(db: Session, ns: str) -> None:
    """Where there is only one plan, nothing is asked for it, unless somebody looks at it."""
    table = f"{ns}.u"
    make(db, table, 0, "user")
    sizes = {"a": 30, "b": 70, "c": 20_000, "d": 5, "e": 40}
    for tenant, rows in sizes.items():
        db(f"SET kalam.user_id = '{tenant}'")
        db(f"INSERT INTO {table} SELECT g, g, 'x' FROM generate_series(1, {rows}) g")
    db("RESET kalam.user_id")
    db(f"ALTER FOREIGN TABLE {table} OPTIONS (ADD fetch_size '50000')")  # forgets what is known

    def trips_of(tenant: str, query: str) -> int:
        db(f"SET kalam.user_id = '{tenant}'")
        return trips(db, query)

    everything = f"SELECT * FROM {table}"
    assert trips_of("c", everything) == trips_of("a", everything) == 2, "the first one tells nothing of small ones"
    assert trips_of("b", everything) == trips_of("b", f"{everything} WHERE n > 5") == 1
    assert db(f"SELECT count(*) FROM {table}") == [(70,)]
    for query in (f"{everything} ORDER BY n", f"{everything} LIMIT 3", f"SELECT DISTINCT n FROM {table}",
                  f"SELECT sum(n) FROM {table}", f"SELECT * FROM {table} x JOIN {table} y USING (id)",
                  f"SELECT * FROM {table} WHERE n IN (SELECT 1)", f"{everything} UNION ALL {everything}",
                  f"WITH w AS MATERIALIZED ({everything}) SELECT * FROM w"):
        db(f"ALTER FOREIGN TABLE {table} OPTIONS (SET fetch_size '50000')")
        assert trips_of("a", everything) == 2
        asked = trips_of("d", query)
        assert asked - trips_of("d", query) == 1, query
    for tenant, rows in sizes.items():
        db(f"SET kalam.user_id = '{tenant}'")
        assert len(db(everything)) == rows
        assert expected(db, everything) == rows
    db("SET kalam.user_id = '*'")
    assert len(db(everything)) == sum(sizes.values())


def test_a_look_at_a_plan_that_fails(db: Session, ns: str) -> None:
    """After EXPLAIN, however it ends, nothing is asked again for a table read alone."""
    table = f"{ns}.u"
    make(db, table, 0, "user")
    for tenant in ("a", "b", "c"):
        db(f"SET kalam.user_id = '{tenant}'")
        db(f"INSERT INTO {table} VALUES (1, 0, 'x')")
    db("SET kalam.user_id = 'a'")
    assert expected(db, f"SELECT * FROM {table}") == 1
    db.fails("EXPLAIN ANALYZE SELECT 1 / n FROM " + table, "22012")
    db.fails("EXPLAIN SELECT * FROM pg_class WHERE oid = 'no.table'::regclass", None)
    db("SET kalam.user_id = 'b'")
    assert trips(db, f"SELECT * FROM {table}") == 1


def test_whoever_may_not_is_told_when_it_runs(db: Session, ns: str) -> None:
    table = f"{ns}.u"
    make(db, table, 0, "user")
    db(f"EXPLAIN SELECT * FROM {table}")
    db.fails(f"SELECT * FROM {table}", "42501", "no tenant is set")


def test_the_server_is_down(db: Session, ns: str, server: KalamServer) -> None:
    make(db, f"{ns}.t", 10)
    server.kill()
    try:
        db.fails(f"SELECT * FROM {ns}.t", None, "127.0.0.1")
    finally:
        server.start()
    assert expected(db, f"SELECT * FROM {ns}.t") == 10


# ---------- use_remote_estimate ----------
@pytest.fixture
def skewed(db: Session, ns: str) -> str:
    """4,000 rows, of which 3,600 have n = 0 and the body 'common', and 4 have n = 1."""
    table = f"{ns}.t"
    db(f"CREATE TABLE {table} (id bigint PRIMARY KEY, n int, body text, at date) USING kalamdb "
       "WITH (type = 'shared', use_remote_estimate = 'true')")
    db(f"INSERT INTO {table} SELECT g, CASE WHEN g % 10 > 0 THEN 0 WHEN g % 1000 = 0 THEN 1 ELSE 2 END, "
       "CASE WHEN g % 10 > 0 THEN 'common' ELSE 'rare' END, date '2026-01-01' + g FROM generate_series(1, 4000) g")
    return table


def test_the_server_estimates(db: Session, skewed: str) -> None:
    for where, low, high in (
        ("n = 0", 3400, 3800), ("body = 'common'", 3400, 3800), ("body = 'rare'", 300, 500), ("n = 1", 1, 20),
        ("n = 77", 1, 5), ("id BETWEEN 100 AND 119", 20, 20), ("id BETWEEN 100 AND 119 AND body = 'common'", 18, 18),
        ("id IN (4, 5)", 2, 2), ("at < date '2026-01-01' + 11", 1, 20), ("n = 0 AND body = 'common'", 3400, 3800),
        ("length(body) = 4", 300, 500), ("body LIKE 'r%'", 300, 500), ("n IS NULL", 1, 5),
    ):
        assert low <= expected(db, f"SELECT * FROM {skewed} WHERE {where}") <= high, where
    db(f"ALTER FOREIGN TABLE {skewed} OPTIONS (SET use_remote_estimate 'false')")
    assert expected(db, f"SELECT * FROM {skewed} WHERE n = 0") < 100


def test_estimates_with_parameters(db: Session, skewed: str, ns: str) -> None:
    """Custom plans know the values; generic ones, and lookups from a join, go by PostgreSQL's guesses."""
    db("SET plan_cache_mode = force_custom_plan")
    db(f"PREPARE p (int) AS SELECT * FROM {skewed} WHERE n = $1")
    assert expected(db, "EXECUTE p(0)") > 3400
    assert expected(db, "EXECUTE p(1)") < 21
    assert expected(db, "EXECUTE p(NULL)") <= 1
    db("SET plan_cache_mode = force_generic_plan")
    assert expected(db, "EXECUTE p(0)") < 3400
    db(f"CREATE TABLE {ns}.few AS SELECT g AS id FROM generate_series(1, 3) g; ANALYZE {ns}.few")
    assert db(f"SELECT count(*) FROM {ns}.few JOIN {skewed} USING (id) WHERE n = 0") == [(3,)]


def test_estimates_where_conditions_stay_here(db: Session, skewed: str) -> None:
    all_common = expected(db, f"SELECT * FROM {skewed} WHERE n = 0")
    some = expected(db, f"SELECT * FROM {skewed} WHERE n = 0 AND body = current_setting('search_path')||random()::text")
    assert 1 <= some < all_common / 10


def test_a_condition_that_fails(db: Session, skewed: str) -> None:
    """It fails when the query runs, and not when it is planned."""
    with db.conn.transaction():
        assert expected(db, f"SELECT * FROM {skewed} WHERE 10 / (n - 2) > 3") > 0
        assert db(f"SELECT count(*) FROM {skewed} WHERE n = 1") == [(4,)]
    db.fails(f"SELECT * FROM {skewed} WHERE 10 / (n - 2) > 3", "22012")


@pytest.mark.parametrize("kind", ["text", "jsonb", "bytea"])
def test_a_column_of_the_same_transaction(db: Session, ns: str, kind: str) -> None:
    """As a migration does it: the tenant's rows are counted while the column is not committed."""
    table = f"{ns}.m"
    make(db, table, 0, "user")
    for tenant in ("a", "b"):
        db(f"SET kalam.user_id = '{tenant}'")
        db(f"INSERT INTO {table} SELECT g, g FROM generate_series(1, 3) g")
    db("BEGIN")
    db(f"ALTER FOREIGN TABLE {table} ADD COLUMN w {kind}")
    assert db.value(f"SELECT count(w) FROM {table} WHERE n > 0") == 0
    db(f"UPDATE {table} SET w = '1' WHERE n > 1")
    assert db.value(f"SELECT count(w) FROM {table} WHERE n > 0") == 2
    db("COMMIT")
    assert db.value(f"SELECT count(w) FROM {table} WHERE n > 0") == 2


def test_estimates_of_a_tenant(db: Session, ns: str) -> None:
    table = f"{ns}.u"
    make(db, table, 0, "user")
    db(f"ALTER FOREIGN TABLE {table} OPTIONS (ADD use_remote_estimate 'on')")
    for tenant, rows in (("a", 30), ("b", 3000)):
        db(f"SET kalam.user_id = '{tenant}'")
        db(f"INSERT INTO {table} SELECT g, g % 2 FROM generate_series(1, {rows}) g")
        found = expected(db, f"SELECT * FROM {table} WHERE n = 1")
        assert 0.45 * rows < found < 0.55 * rows
    db("RESET kalam.user_id")
    assert expected(db, f"SELECT * FROM {table} WHERE n = 1") > 0
