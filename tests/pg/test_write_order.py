"""What PostgreSQL sees of a written row, in which order, and what it refuses: views, triggers, row locks, MERGE."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import psycopg
import pytest

from support.ports import wait_until

from .pair import Outcome, Pair, Side

pytestmark = pytest.mark.pg


@pytest.fixture
def pair(dsn: str) -> Iterator[Pair]:
    pair = Pair(dsn, "user")
    pair.setup("CREATE TABLE items (id int PRIMARY KEY, n int, t text) {using}")
    pair.setup("CREATE TABLE local (id int PRIMARY KEY, n int)")
    pair.setup("INSERT INTO items SELECT g, g, 'row ' || g FROM generate_series(1, 9) g")
    pair.setup("INSERT INTO local SELECT g, g * 10 FROM generate_series(1, 9) g")
    yield pair
    pair.close()


def test_check_option_looks_at_the_row_that_a_trigger_has_made(pair: Pair) -> None:
    pair.setup(
        "CREATE VIEW few AS SELECT * FROM items WHERE n < 100 WITH CHECK OPTION;"
        "CREATE FUNCTION grow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN NEW.n = NEW.n * 10; RETURN NEW; END$$;"
        "CREATE TRIGGER g BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION grow()"
    )
    pair.both("INSERT INTO few VALUES (20, 9, 'in') RETURNING *")
    assert pair.both("INSERT INTO few VALUES (21, 10, 'out')").sqlstate == "44000"
    assert pair.both("INSERT INTO few VALUES (22, 1, 'in'), (23, 10, 'out')").sqlstate == "44000"
    assert pair.both("UPDATE few SET n = 11 WHERE id = 3").sqlstate == "44000"
    pair.both("UPDATE few SET t = 'u' WHERE id < 4 RETURNING n")
    pair.both("INSERT INTO few VALUES (24, 2, 'in') ON CONFLICT DO NOTHING")


def test_security_barrier_view(pair: Pair) -> None:
    pair.setup("CREATE VIEW odd WITH (security_barrier) AS SELECT * FROM items WHERE n % 2 = 1")
    pair.both("UPDATE odd SET t = 'odd' WHERE id < 6 RETURNING id, t")
    pair.both("DELETE FROM odd WHERE t LIKE 'row%'")


def test_merge_and_current_of_are_refused(pair: Pair) -> None:
    side = pair.kalam
    outcome = side.run(
        "MERGE INTO items USING local l ON l.id = items.id WHEN MATCHED THEN UPDATE SET n = l.n"
        " WHEN NOT MATCHED THEN INSERT VALUES (l.id, l.n)"
    )
    assert outcome.sqlstate in ("0A000", "42809")
    side.conn.execute("BEGIN; DECLARE c CURSOR FOR SELECT * FROM items; FETCH c")
    assert side.run("UPDATE items SET n = 1 WHERE CURRENT OF c").sqlstate == "0A000"
    side.conn.execute("ROLLBACK")
    # as a source it is a table like any other
    pair.both(
        "MERGE INTO local USING items i ON i.id = local.id WHEN MATCHED AND i.n > 4 THEN UPDATE SET n = i.n"
        " WHEN MATCHED THEN DELETE"
    )


def test_transition_tables_are_refused(pair: Pair) -> None:
    pair.kalam.conn.execute(
        "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RETURN NULL; END$$"
    )
    outcome = pair.kalam.run(
        "CREATE TRIGGER s AFTER UPDATE ON items REFERENCING NEW TABLE AS fresh EXECUTE FUNCTION see()"
    )
    assert outcome.sqlstate == "42809"


def test_statements_sent_whole_leave_no_memory_behind_when_they_fail(pair: Pair) -> None:
    used = "SELECT sum(used_bytes)::int FROM pg_backend_memory_contexts"
    run = (
        "DO $$BEGIN FOR i IN 1..%s LOOP"
        " BEGIN UPDATE items SET n = 1 / (n - 5); EXCEPTION WHEN division_by_zero THEN NULL; END;"
        " BEGIN PERFORM 1 / count(*) FROM (SELECT 1 WHERE false) x; DELETE FROM items WHERE n = 99;"
        " EXCEPTION WHEN division_by_zero THEN NULL; END;"
        " INSERT INTO items VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = items.n; END LOOP; END$$"
    )
    side = pair.kalam
    side.conn.execute("BEGIN")
    side.conn.execute(run % 20)
    [(before,)] = side.run(used).rows or []
    side.conn.execute(run % 300)
    [(after,)] = side.run(used).rows or []
    assert after - before < 150_000
    side.conn.execute("ROLLBACK")


class Waiting:
    """A statement of a second session, in a thread of its own."""

    def __init__(self, dsn: str, side: Side, sql: str) -> None:
        self.side = Side(dsn, side.schema, side.using)
        self.outcome: Outcome | None = None
        self.pid = self.side.conn.info.backend_pid
        self.thread = threading.Thread(target=self.work, args=(sql,))
        self.thread.start()

    def work(self, sql: str) -> None:
        self.outcome = self.side.run(sql)

    def wait(self) -> Outcome:
        self.thread.join(30)
        assert self.outcome is not None
        self.side.conn.close()
        return self.outcome


RECHECKED = [
    # what the waiting statement does to rows that the first has changed meanwhile
    "UPDATE items SET t = 'second' WHERE n < 5 RETURNING id, n",
    "UPDATE items SET n = n + 100 WHERE n < 5 RETURNING id, n",
    "UPDATE items SET t = upper(t) WHERE n < 5 AND upper(t) LIKE 'ROW%' RETURNING id, n",
    "DELETE FROM items WHERE n < 5 RETURNING id, n",
    "UPDATE items SET t = 'joined' FROM local l WHERE l.id = items.id AND items.n < 5 RETURNING items.id, l.n",
    "DELETE FROM items USING local l WHERE l.id = items.id AND items.n < 5 AND l.n < 45 RETURNING items.id, items.n",
    "SELECT id, n FROM items WHERE n < 5 FOR UPDATE",
    "SELECT i.id, i.n, l.n FROM items i JOIN local l USING (id) WHERE i.n < 5 FOR UPDATE",
    "SELECT i.id, i.n, l.n FROM items i JOIN local l USING (id) WHERE i.n < 5 FOR SHARE OF i",
    "INSERT INTO items VALUES (2, 7, 'x'), (30, 7, 'x') ON CONFLICT (id) DO UPDATE SET n = excluded.n"
    " WHERE items.n < 5 RETURNING id, n",
]  # fmt: skip


@pytest.mark.parametrize("sql", RECHECKED)
@pytest.mark.parametrize(
    "first", ["UPDATE items SET n = n + 10 WHERE id IN (2, 3)", "DELETE FROM items WHERE id = 2",
              "UPDATE items SET t = 'changed' WHERE id IN (2, 3)"],
)  # fmt: skip
def test_conditions_are_looked_at_again_after_a_wait(pair: Pair, dsn: str, sql: str, first: str) -> None:
    outcomes = []
    with psycopg.connect(dsn, autocommit=True) as observer:
        observer.execute("SET kalam.user_id = 'alice'")
        for side in (pair.heap, pair.kalam):
            side.conn.execute("BEGIN")
            side.conn.execute(first)
            waiting = Waiting(dsn, side, sql)
            wait_until(partial(pair.waits, side, observer, waiting.pid), "the statement's wait")
            side.conn.execute("COMMIT")
            outcomes.append(waiting.wait())
    assert outcomes[1] == outcomes[0]
    assert pair.kalam.contents() == pair.heap.contents()
