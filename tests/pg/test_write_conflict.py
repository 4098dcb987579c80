"""INSERT … ON CONFLICT on the key of a table, against ordinary tables with a primary key."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from .pair import Pair, Side

pytestmark = pytest.mark.pg


@pytest.fixture(params=["shared", "user"])
def pair(dsn: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(dsn, request.param)
    pair.setup("CREATE TABLE items (id int PRIMARY KEY, n int, t text, m numeric(6, 2), at timestamptz) {using}")
    pair.setup("INSERT INTO items SELECT g, g % 3, 'row ' || g, g * 1.5 FROM generate_series(1, 10) g")
    pair.setup("CREATE TABLE two (a int, b text, n int NOT NULL, PRIMARY KEY (b, a)) {using}")
    pair.setup("INSERT INTO two VALUES (1, 'x', 1), (2, 'x', 2), (1, 'y', 3)")
    yield pair
    pair.close()


STATEMENTS = [
    "INSERT INTO items VALUES (1, 0, 'x') ON CONFLICT (id) DO NOTHING",
    "INSERT INTO items VALUES (11, 0, 'x') ON CONFLICT (id) DO NOTHING",
    "INSERT INTO items SELECT g, 0, 'x' FROM generate_series(5, 15) g ON CONFLICT (id) DO NOTHING",
    "INSERT INTO items SELECT g, 0, 'x' FROM generate_series(5, 15) g ON CONFLICT (id) DO NOTHING RETURNING id, t",
    "INSERT INTO items VALUES (20, 0, 'x'), (20, 1, 'y'), (1, 1, 'z') ON CONFLICT (id) DO NOTHING",
    "INSERT INTO items VALUES (1, 7, 'new') ON CONFLICT (id) DO UPDATE SET n = excluded.n, t = excluded.t",
    "INSERT INTO items VALUES (11, 7, 'new') ON CONFLICT (id) DO UPDATE SET n = excluded.n, t = excluded.t",
    "INSERT INTO items VALUES (1, 7, 'new') ON CONFLICT (id) DO UPDATE SET n = items.n + 1",
    "INSERT INTO items AS i VALUES (1, 7, 'new'), (12, 1, 'b') ON CONFLICT (id) DO UPDATE SET n = i.n + excluded.n",
    "INSERT INTO items AS i SELECT g, g, 'up' FROM generate_series(5, 15) g ON CONFLICT (id)"
    " DO UPDATE SET t = i.t || '/' || excluded.t, n = coalesce(i.n, 0) + excluded.n",
    "INSERT INTO items AS i SELECT g, g, 'up' FROM generate_series(5, 15) g ON CONFLICT (id)"
    " DO UPDATE SET t = excluded.t WHERE i.n > 0",
    "INSERT INTO items AS i SELECT g, g, 'up' FROM generate_series(5, 15) g ON CONFLICT (id)"
    " DO UPDATE SET t = excluded.t WHERE i.n > 0 AND excluded.id <> 7 RETURNING *, id + n",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET n = excluded.n WHERE false",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET m = items.m * 1.333, n = NULL RETURNING m, n",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET id = 100",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET id = 2",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET at = '2024-01-01 UTC' RETURNING at",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET n = (SELECT max(n) FROM two) RETURNING n",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET (n, t) = (excluded.n + 1, 'both')",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET n = DEFAULT",
    "INSERT INTO items VALUES (1, 0, 'a'), (1, 1, 'b') ON CONFLICT (id) DO UPDATE SET n = excluded.n",
    "INSERT INTO items VALUES (30, 0, 'a'), (30, 1, 'b') ON CONFLICT (id) DO UPDATE SET n = excluded.n",
    "INSERT INTO items VALUES (30, 0, 'a'), (30, 1, 'b') ON CONFLICT (id) DO UPDATE SET n = excluded.n RETURNING id",
    "INSERT INTO items AS i VALUES (1, 9, 'a'), (1, 0, 'b') ON CONFLICT (id) DO UPDATE SET n = 5 WHERE excluded.n < 1",
    "INSERT INTO items AS i VALUES (1, 1000000, 'a') ON CONFLICT (id) DO UPDATE SET n = i.n + 2147483647",
    "INSERT INTO items VALUES (NULL, 1, 'x') ON CONFLICT (id) DO UPDATE SET n = excluded.n",
    "INSERT INTO two VALUES (1, 'x', 10), (2, 'y', 20) ON CONFLICT (a, b) DO UPDATE SET n = two.n + excluded.n",
    "INSERT INTO two VALUES (1, 'x', 10) ON CONFLICT (b, a) DO UPDATE SET n = excluded.n RETURNING *",
    "INSERT INTO two VALUES (1, 'x', 10) ON CONFLICT (b, a) DO UPDATE SET n = NULL",
    "INSERT INTO two VALUES (1, 'x', 10) ON CONFLICT (b, a) DO NOTHING",
    "INSERT INTO two VALUES (1, 'x', 10) ON CONFLICT (a) DO NOTHING",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (n) DO UPDATE SET n = 1",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id, n) DO NOTHING",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT DO UPDATE SET n = 1",
    "WITH up AS (INSERT INTO items VALUES (1, 5, 'w'), (40, 5, 'w') ON CONFLICT (id)"
    " DO UPDATE SET t = excluded.t RETURNING id, t) SELECT * FROM up",
    "WITH up AS (INSERT INTO items VALUES (1, 5, 'w'), (40, 5, 'w') ON CONFLICT (id) DO NOTHING RETURNING id)"
    " INSERT INTO two SELECT id, 'z', 1 FROM up",
    "WITH up AS (INSERT INTO items VALUES (1, 5, 'w'), (40, 5, 'w') ON CONFLICT (id) DO NOTHING)"
    " INSERT INTO two VALUES (50, 'z', 1)",
]


#: what only PostgreSQL can compute or check
HERE = [
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET t = upper(items.t) || excluded.t RETURNING *",
    "INSERT INTO items SELECT g, g, 'up' FROM generate_series(8, 12) g ON CONFLICT (id)"
    " DO UPDATE SET t = upper(items.t), n = items.n + random() * 0",
    "INSERT INTO items AS i SELECT g, g, 'up' FROM generate_series(5, 15) g ON CONFLICT (id)"
    " DO UPDATE SET t = initcap(excluded.t) WHERE upper(i.t) LIKE '%7%' OR excluded.n = 9 RETURNING id, t",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET id = 100 + random() * 0, t = 'moved'",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET id = 2 + random() * 0",
    "INSERT INTO items VALUES (1, 1, 'x'), (1, 2, 'y') ON CONFLICT (id) DO UPDATE SET t = upper(excluded.t)",
    "INSERT INTO items VALUES (31, 1, 'x'), (31, 2, 'y') ON CONFLICT (id) DO UPDATE SET t = upper(excluded.t)",
    "INSERT INTO items VALUES (1, 1, 'x'), (1, 2, 'y') ON CONFLICT (id) DO UPDATE SET t = upper(excluded.t)"
    " WHERE lower(excluded.t) = 'y'",
    "INSERT INTO items VALUES (1, 1, 'x'), (100, 2, 'y') ON CONFLICT (id) DO UPDATE SET id = 100, t = upper(items.t)",
    "INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id)"
    " DO UPDATE SET n = (SELECT sum(n) FROM two WHERE a = items.id + excluded.n - 1)",
    "INSERT INTO rules (id, n) VALUES (1, 5), (9, 5) ON CONFLICT (id) DO UPDATE SET n = rules.n + 1 RETURNING *",
    "INSERT INTO rules (id, n) VALUES (1, 5) ON CONFLICT (id) DO UPDATE SET n = -1",
    "INSERT INTO rules (id, n) VALUES (9, 5), (2, 5) ON CONFLICT (id) DO UPDATE SET n = NULL",
    "INSERT INTO rules (id, n) SELECT g, 7 FROM generate_series(1, 6) g ON CONFLICT (id)"
    " DO UPDATE SET n = excluded.n WHERE rules.n <> 2",
    "INSERT INTO rules (id, n) VALUES (1, 0) ON CONFLICT (id) DO UPDATE SET n = 3",
]


@pytest.mark.parametrize("sql", HERE)
def test_what_postgres_has_to_compute_or_check(pair: Pair, sql: str) -> None:
    pair.setup("CREATE TABLE rules (twice int GENERATED ALWAYS AS (n * 2) STORED, id int PRIMARY KEY,"
               " n int NOT NULL CHECK (n > 0)) {using}")  # fmt: skip
    pair.setup("INSERT INTO rules (id, n) VALUES (1, 1), (2, 2), (3, 3)")
    pair.both(sql)
    pair.both("BEGIN")
    pair.both("SAVEPOINT a")
    pair.both(sql)
    pair.both("ROLLBACK TO a")
    pair.both("COMMIT")


@pytest.mark.parametrize("sql", STATEMENTS)
def test_statement(pair: Pair, sql: str) -> None:
    pair.both(sql)
    pair.both("SELECT count(*), sum(n) FROM items")


def plan(side: Side, sql: str) -> str:
    return "\n".join(str(row[0]) for row in side.run(f"EXPLAIN (VERBOSE, COSTS OFF) {sql}").rows or [])


def test_explain_shows_the_clause(pair: Pair) -> None:
    sql = "INSERT INTO items SELECT g, 1 FROM generate_series(1, 3) g ON CONFLICT (id) DO UPDATE SET n = items.n + 2"
    shown = plan(pair.kalam, sql)
    assert "Conflict Resolution: UPDATE" in shown
    assert 'FROM ARROW $2 ON CONFLICT ("id") DO UPDATE SET "n" = (r1."n" + $1)' in shown
    assert "RETURNING" in plan(pair.kalam, sql + " RETURNING id")


def trips(side: Side) -> int:
    return int((side.run("SELECT kalam_round_trips()").rows or [(0,)])[0][0])


def test_many_rows_go_in_batches(pair: Pair) -> None:
    for action in ("DO NOTHING", "DO UPDATE SET n = items.n + excluded.n"):
        before = trips(pair.kalam)
        pair.kalam.run(f"INSERT INTO items SELECT g, 1 FROM generate_series(1, 3000) g ON CONFLICT (id) {action}")
        assert trips(pair.kalam) - before <= 3
        pair.heap.run(f"INSERT INTO items SELECT g, 1 FROM generate_series(1, 3000) g ON CONFLICT (id) {action}")
    pair.both("SELECT sum(n) FROM items")
    pair.kalam.conn.execute("ALTER FOREIGN TABLE items OPTIONS (ADD batch_size '7')")
    rows = "SELECT g, 2 FROM generate_series(2990, 3030) g"
    pair.both(f"INSERT INTO items {rows} ON CONFLICT (id) DO UPDATE SET n = items.n + excluded.n")
    pair.both(f"INSERT INTO items {rows} ON CONFLICT (id) DO NOTHING")
    # the same row again, in another batch of the same statement
    twice = f"INSERT INTO items {rows} UNION ALL SELECT 2990, 3 ON CONFLICT (id) DO UPDATE SET n = excluded.n"
    assert pair.both(twice).sqlstate == "21000"


def test_in_functions_and_with_parameters(pair: Pair) -> None:
    pair.setup(
        "CREATE FUNCTION put(k int, v int) RETURNS int LANGUAGE plpgsql AS $$DECLARE r int; BEGIN"
        " INSERT INTO items AS i (id, n) VALUES (k, v) ON CONFLICT (id) DO UPDATE SET n = i.n + v"
        " WHERE i.n < v RETURNING n INTO r; RETURN r; END$$"
    )
    for _ in range(7):
        pair.both("SELECT put(1, 4), put(99, 2)")
    for side in (pair.heap, pair.kalam):
        side.conn.execute("SET plan_cache_mode = force_generic_plan")
        side.conn.execute(
            "PREPARE p(int, text) AS INSERT INTO items VALUES ($1, 0, $2)"
            " ON CONFLICT (id) DO UPDATE SET t = items.t || $2, n = $1 * 2"
        )
    for values in ("1, 'a'", "1, NULL", "70, 'b'", "70, 'c'"):
        pair.both(f"EXECUTE p({values})")


def test_in_transactions(pair: Pair) -> None:
    pair.both("BEGIN")
    for n in range(3):
        pair.both(f"INSERT INTO items VALUES (60, {n}, 'x') ON CONFLICT (id) DO UPDATE SET n = items.n + 10")
    pair.both("SAVEPOINT a")
    twice = "INSERT INTO items VALUES (60, 1), (60, 2) ON CONFLICT (id) DO UPDATE SET n = excluded.n"
    assert pair.both(twice).sqlstate == "21000"
    pair.both("ROLLBACK TO a")
    pair.both("DELETE FROM items WHERE id = 60")
    pair.both("INSERT INTO items VALUES (60, 5, 'again') ON CONFLICT (id) DO UPDATE SET n = items.n + 10")
    pair.both("COMMIT")


def test_triggers(pair: Pair) -> None:
    pair.setup(
        "CREATE TABLE log (what text);"
        "CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NEW.t = upper(NEW.t); RETURN NEW; END$$;"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN INSERT INTO log VALUES (TG_OP || TG_WHEN || (SELECT sum(n) FROM items)); RETURN NULL; END$$;"
        "CREATE TRIGGER b BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION loud();"
        "CREATE TRIGGER s AFTER INSERT OR UPDATE ON items EXECUTE FUNCTION note()"
    )
    pair.both(
        "INSERT INTO items VALUES (1, 5, 'a'), (80, 5, 'b') ON CONFLICT (id) DO UPDATE SET t = excluded.t, n = 50"
    )
    pair.both("INSERT INTO items VALUES (1, 5, 'a'), (81, 5, 'b') ON CONFLICT (id) DO NOTHING")


def test_views(pair: Pair) -> None:
    pair.setup("CREATE VIEW small AS SELECT id, n, t FROM items WHERE n < 5 WITH CHECK OPTION")
    insert = "INSERT INTO small VALUES (1, 1, 'v'), (90, 2, 'v')"
    pair.both(f"{insert} ON CONFLICT (id) DO UPDATE SET t = excluded.t, n = small.n + 1")
    assert pair.both(f"{insert} ON CONFLICT (id) DO UPDATE SET n = 9").sqlstate == "44000"
    pair.both(f"{insert} ON CONFLICT (id) DO NOTHING")


def test_two_sessions(pair: Pair, dsn: str) -> None:
    """What the other one commits meanwhile is what the conflict is with."""
    side = pair.kalam
    side.conn.execute("BEGIN")
    side.conn.execute("INSERT INTO items VALUES (95, 1, 'first')")
    with psycopg.connect(dsn, autocommit=True) as other:
        other.execute(f"SET search_path = {side.schema}; SET kalam.user_id = 'alice'")
        sql = "INSERT INTO items VALUES (95, 10, 'second') ON CONFLICT (id) DO UPDATE SET n = items.n + excluded.n"
        counts: list[int] = []
        thread = threading.Thread(target=lambda: counts.append(other.execute(sql).rowcount))
        thread.start()
        side.conn.execute("COMMIT")
        thread.join(30)
    assert counts == [1]
    assert side.run("SELECT n, t FROM items WHERE id = 95").rows == [(11, "first")]


def test_what_is_refused_says_so(pair: Pair) -> None:
    side = pair.kalam
    side.conn.execute(
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NEW; END$$;"
        "CREATE TRIGGER s BEFORE UPDATE ON items FOR EACH ROW EXECUTE FUNCTION see()"
    )
    outcome = side.run("INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET n = 1")
    assert (outcome.sqlstate, outcome.detail) == (
        "0A000", "The table has row triggers for UPDATE, or AFTER INSERT."
    )  # fmt: skip
    assert side.run("INSERT INTO items VALUES (1, 1, 'x') ON CONFLICT (id) DO NOTHING").count == 0
    constraint = "INSERT INTO two VALUES (1, 'x', 1) ON CONFLICT ON CONSTRAINT two_pkey DO NOTHING"
    assert side.run(constraint).sqlstate == "42704"


def test_owners(dsn: str) -> None:
    """The key is each tenant's own, whoever is named in the conflict target."""
    pair = Pair(dsn, "user", system_columns=True)
    side = pair.kalam
    side.conn.execute("CREATE TABLE notes (id int PRIMARY KEY, n int) " + side.using)
    side.conn.execute("SET kalam.user_id = '*'")
    insert = "INSERT INTO notes (id, n, _userid) VALUES (1, 1, 'a'), (1, 2, 'b'), (2, 3, 'a') ON CONFLICT"
    assert side.run(f"{insert} (id) DO NOTHING").count == 3
    assert side.run(f"{insert} (id, _userid) DO UPDATE SET n = notes.n * 10").count == 3
    returned = side.run(f"{insert} (id) DO UPDATE SET n = notes.n + excluded.n RETURNING _userid, id, n, _seq").rows
    assert returned == [("a", 1, 11, None), ("a", 2, 33, None), ("b", 1, 22, None)]
    here = side.run(f"{insert} (id) DO UPDATE SET n = notes.n + random() * 0 RETURNING _userid, id, n, _seq").rows
    assert here == [("a", 1, 11, None), ("a", 2, 33, None), ("b", 1, 22, None)]
    assert side.run(f"{insert} (id) DO UPDATE SET _userid = 'c'").sqlstate == "0A000"
    late = "INSERT INTO notes (id, n, _userid) VALUES (3, 1, NULL), (3, 2, 'b'), (4, 3, 'a') ON CONFLICT (id)"
    late += " DO UPDATE SET n = excluded.n RETURNING id, n"
    assert side.run(f"{insert} (_userid) DO NOTHING").sqlstate == "42P10"
    side.conn.execute("SET kalam.user_id = 'c'")
    assert side.run(late).rows == [(3, 1), (3, 2), (4, 3)]
    pair.close()
