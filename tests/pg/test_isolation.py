"""Two sessions at a time, on heap tables and on KalamDB tables: every step has the same outcome.

A schedule is lines of `A sql`, `B sql` and so on. `B> sql` begins a statement that has to wait for a lock (that
it does is part of the comparison), and `B<` collects its outcome. PostgreSQL's own answer on a heap table is what is
expected; only where a difference is documented does a test name the outcome itself.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator

import psycopg
import pytest

from support.ports import wait_until
from support.server import KalamServer

from .pair import Outcome, Pair, Side

pytestmark = pytest.mark.pg

LEVELS = ["READ COMMITTED", "REPEATABLE READ"]
BEGIN = "A BEGIN ISOLATION LEVEL {level}\nB BEGIN ISOLATION LEVEL {level}\n"


class Actor:
    """A session of a schedule."""

    def __init__(self, side: Side, dsn: str, waiting: Callable[[int], bool]) -> None:
        self.side = Side(dsn, side.schema, side.using)
        self.side.conn.execute("SET statement_timeout = '30s'")
        self.waiting = waiting
        self.thread: threading.Thread | None = None
        self.outcome: Outcome | None = None

    def begin(self, sql: str) -> None:
        """Returns once the statement waits for a lock."""
        def work() -> None:
            self.outcome = self.side.run(sql)

        self.thread = threading.Thread(target=work)
        self.thread.start()
        pid = self.side.conn.info.backend_pid
        wait_until(lambda: self.waiting(pid) or self.outcome is not None, f"the wait of {sql!r}")
        assert self.outcome is None, f"{sql!r} did not wait: {self.outcome}"

    def collect(self) -> Outcome:
        assert self.thread is not None
        self.thread.join(30)
        assert self.outcome is not None, "it waits for ever"
        outcome, self.outcome = self.outcome, None
        self.thread = None
        return outcome

    def close(self) -> None:
        if self.thread is not None:
            self.side.conn.cancel_safe()
            self.thread.join()
        self.side.conn.close()


class Stage:
    """Runs schedules on both sides of a pair."""

    def __init__(self, dsn: str, server: KalamServer) -> None:
        self.dsn = dsn
        self.pair = Pair(dsn, "shared")
        self.watch = psycopg.connect(dsn, autocommit=True)
        self.there = psycopg.connect(server.dsn(), autocommit=True)
        self.pair.setup("CREATE TABLE items (id int PRIMARY KEY, n int, t text) {using}")

    def fill(self) -> None:
        self.pair.setup("DELETE FROM items; INSERT INTO items SELECT g, g * 10, 'r' FROM generate_series(1, 5) g")

    def on_heap(self, pid: int) -> bool:
        sql = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
        return bool((self.watch.execute(sql, [pid]).fetchone() or [False])[0])

    def on_server(self, _: int) -> bool:
        """Nobody else is there: any transaction that waits is the one."""
        sql = "SELECT count(*) FROM system.locks WHERE NOT granted"
        return bool((self.there.execute(sql).fetchone() or [0])[0])

    def play(self, schedule: str) -> dict[str, list[tuple[str, Outcome]]]:
        told = {}
        for side, waiting in ((self.pair.heap, self.on_heap), (self.pair.kalam, self.on_server)):
            wait_until(lambda: not self.on_server(0), "the end of what others waited for")
            actors = {name: Actor(side, self.dsn, waiting) for name in "ABC"}
            try:
                told[side.schema[-1]] = [self.step(actors, line) for line in schedule.strip().splitlines()]
            finally:
                for actor in actors.values():
                    actor.close()
        return told

    def step(self, actors: dict[str, Actor], line: str) -> tuple[str, Outcome]:
        actor, sql = actors[line[0]], line[2:].strip()
        if line[1] == ">":
            actor.begin(sql)
            return (line, Outcome(0, None))
        return (line, actor.collect() if line[1] == "<" else actor.side.run(sql))

    def agree(self, schedule: str) -> None:
        told = self.play(schedule)
        for wanted, got in zip(told["h"], told["k"], strict=True):
            assert got == wanted, wanted[0]
        assert self.pair.kalam.contents() == self.pair.heap.contents()

    def close(self) -> None:
        self.watch.close()
        self.there.close()
        self.pair.close()


@pytest.fixture(scope="module")
def shared_stage(module_dsn: str, running_server: KalamServer) -> Iterator[Stage]:
    stage = Stage(module_dsn, running_server)
    yield stage
    stage.close()


@pytest.fixture
def stage(shared_stage: Stage) -> Iterator[Stage]:
    """With its one table filled, and none of another test's."""
    shared_stage.fill()
    yield shared_stage
    for side in (shared_stage.pair.heap, shared_stage.pair.kalam):
        side.conn.execute("ROLLBACK")
        side.conn.execute("DROP TABLE IF EXISTS local; DROP FOREIGN TABLE IF EXISTS jobs; RESET kalam.user_id")


SCHEDULES = {
    "lost update": """
        A SELECT n FROM items WHERE id = 1
        B SELECT n FROM items WHERE id = 1
        A UPDATE items SET n = n + 1 WHERE id = 1
        B> UPDATE items SET n = n + 1 WHERE id = 1 RETURNING n
        A COMMIT
        B<
        B COMMIT""",
    "lost update that is rolled back": """
        A UPDATE items SET n = n + 1 WHERE id = 1
        B> UPDATE items SET n = n + 1 WHERE id = 1 RETURNING n
        A ROLLBACK
        B<
        B COMMIT""",
    "read, then write what was read": """
        A SELECT n FROM items WHERE id = 1
        B UPDATE items SET n = 77 WHERE id = 1
        B COMMIT
        A UPDATE items SET n = n + 1 WHERE id = 1 RETURNING n
        A COMMIT""",
    "non-repeatable read": """
        A SELECT sum(n) FROM items
        B UPDATE items SET n = 1000 WHERE id = 2
        B DELETE FROM items WHERE id = 5
        A SELECT sum(n) FROM items
        B COMMIT
        A SELECT sum(n), count(*) FROM items
        A SELECT n FROM items WHERE id = 2
        A COMMIT
        A SELECT n FROM items WHERE id = 2""",
    "phantom": """
        A SELECT count(*) FROM items WHERE n > 15
        B INSERT INTO items VALUES (9, 90, 'phantom')
        B COMMIT
        A SELECT count(*) FROM items WHERE n > 15
        A UPDATE items SET t = 'seen' WHERE n > 15
        A SELECT id, t FROM items
        A COMMIT""",
    "phantom and its key": """
        A SELECT count(*) FROM items
        B INSERT INTO items VALUES (9, 90, 'phantom')
        B COMMIT
        A INSERT INTO items VALUES (9, 91, 'mine')
        A ROLLBACK""",
    "write skew": """
        A SELECT sum(n) FROM items WHERE id IN (1, 2)
        B SELECT sum(n) FROM items WHERE id IN (1, 2)
        A UPDATE items SET n = 0 WHERE id = 1
        B UPDATE items SET n = 0 WHERE id = 2
        A COMMIT
        B COMMIT""",
    "read-only anomaly": """
        A SELECT n FROM items WHERE id = 1
        B SELECT n FROM items WHERE id IN (1, 2)
        A UPDATE items SET n = n + 5 WHERE id = 1
        A COMMIT
        C BEGIN ISOLATION LEVEL {level} READ ONLY
        C SELECT id, n FROM items WHERE id IN (1, 2)
        B UPDATE items SET n = -1 WHERE id = 2
        B COMMIT
        C SELECT id, n FROM items WHERE id IN (1, 2)
        C COMMIT""",
    "condition that no longer holds": """
        A UPDATE items SET n = 99 WHERE id = 1
        B> UPDATE items SET t = 'low' WHERE n < 25
        A COMMIT
        B<
        B COMMIT""",
    "condition that holds only now": """
        A UPDATE items SET n = 5 WHERE id = 4
        A UPDATE items SET n = 11 WHERE id = 1
        B> UPDATE items SET t = 'low' WHERE n < 25
        A COMMIT
        B<
        B COMMIT""",
    "row that goes": """
        A DELETE FROM items WHERE id = 1
        B> UPDATE items SET t = 'low' WHERE n < 25
        A COMMIT
        B<
        B COMMIT""",
    "row that goes, deleted twice": """
        A DELETE FROM items WHERE id < 3
        B> DELETE FROM items WHERE id = 2
        A COMMIT
        B<
        B COMMIT""",
    "key that comes": """
        A INSERT INTO items VALUES (9, 1, 'a')
        B> INSERT INTO items VALUES (9, 2, 'b')
        A COMMIT
        B<
        B ROLLBACK""",
    "key that comes and goes": """
        A INSERT INTO items VALUES (9, 1, 'a')
        B> INSERT INTO items VALUES (9, 2, 'b')
        A ROLLBACK
        B<
        B COMMIT""",
    "conflict that is skipped": """
        A INSERT INTO items VALUES (9, 1, 'a')
        B> INSERT INTO items VALUES (9, 2, 'b'), (10, 2, 'b') ON CONFLICT DO NOTHING
        A ROLLBACK
        B<
        B COMMIT""",
    "key that goes": """
        A DELETE FROM items WHERE id = 3
        B> INSERT INTO items VALUES (3, 2, 'b')
        A COMMIT
        B<
        B COMMIT""",
    "select for update": """
        A SELECT n FROM items WHERE id = 1 FOR UPDATE
        B SELECT n FROM items WHERE id = 1
        B> SELECT n FROM items WHERE n < 25 FOR UPDATE
        A UPDATE items SET n = 99 WHERE id = 1
        A COMMIT
        B<
        B COMMIT""",
    "select for share": """
        A SELECT n FROM items WHERE id = 1 FOR SHARE
        B SELECT n FROM items WHERE id = 1 FOR SHARE
        A> UPDATE items SET n = 0 WHERE id = 1
        B COMMIT
        A<
        A COMMIT""",
    "nowait": """
        A UPDATE items SET n = 0 WHERE id = 2
        B SAVEPOINT s
        B SELECT n FROM items WHERE id < 4 FOR UPDATE NOWAIT
        B ROLLBACK TO s
        B SELECT n FROM items WHERE id > 2 FOR UPDATE NOWAIT
        A COMMIT
        B SELECT n FROM items WHERE id = 1 FOR UPDATE NOWAIT
        B COMMIT""",
    "skip locked": """
        A SELECT id FROM items WHERE id IN (1, 3) FOR UPDATE
        B SELECT id FROM items ORDER BY id LIMIT 2 FOR UPDATE SKIP LOCKED
        A SELECT id FROM items ORDER BY id FOR SHARE SKIP LOCKED
        B DELETE FROM items WHERE id = 2
        B COMMIT
        A COMMIT""",
    "queue of jobs": """
        C BEGIN ISOLATION LEVEL {level}
        A SELECT id FROM items WHERE n > 15 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
        B UPDATE items SET t = 'taken' WHERE id =
 (SELECT id FROM items WHERE n > 15 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id
        C SELECT id FROM items WHERE n > 15 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
        A SELECT id FROM items WHERE n > 15 ORDER BY id OFFSET 1 LIMIT 1 FOR UPDATE SKIP LOCKED
        A COMMIT
        B SELECT id FROM items ORDER BY id LIMIT 2 FOR UPDATE SKIP LOCKED
        B COMMIT
        C SELECT id FROM items ORDER BY id FOR UPDATE SKIP LOCKED
        C COMMIT""",
    "queue in another order": """
        C BEGIN ISOLATION LEVEL {level}
        A SELECT id FROM items ORDER BY n DESC LIMIT 1 FOR UPDATE SKIP LOCKED
        B SELECT id FROM items WHERE n + 1 > 0 ORDER BY n DESC LIMIT 2 FOR UPDATE SKIP LOCKED
        C SELECT id FROM items ORDER BY n DESC, id FOR UPDATE SKIP LOCKED
        A COMMIT
        B COMMIT
        C COMMIT""",
    "locks of joined rows": """
        A UPDATE items SET n = 77 WHERE id = 2
        B> SELECT a.id, b.n FROM items a JOIN items b ON b.id = a.id + 1 WHERE a.n < 35 FOR UPDATE OF a
        A COMMIT
        B<
        B COMMIT""",
    "a join that changes rows": """
        A UPDATE items SET n = 30 WHERE id = 1
        A UPDATE items SET t = 'new' WHERE id = 3
        B> UPDATE items a SET t = b.t || '!' FROM items b WHERE b.n = a.n RETURNING a.id, a.t
        A COMMIT
        B<
        B COMMIT""",
    "a join that deletes rows": """
        A UPDATE items SET n = 15 WHERE id = 2
        B> DELETE FROM items a USING items b WHERE b.n = a.n + 10 AND a.n > 10 RETURNING a.id, b.id
        A COMMIT
        B<
        B COMMIT""",
    "lock timeout": """
        A UPDATE items SET n = 0 WHERE id = 2
        B SAVEPOINT s
        B SET LOCAL lock_timeout = '100ms'
        B UPDATE items SET n = 1 WHERE id = 2
        B ROLLBACK TO s
        B UPDATE items SET n = 1 WHERE id = 3
        A COMMIT
        B COMMIT""",
    "savepoint that gives its locks back": """
        A SAVEPOINT s
        A UPDATE items SET n = 0 WHERE id = 2
        B> UPDATE items SET n = n + 1 WHERE id = 2 RETURNING n
        A ROLLBACK TO s
        B<
        A UPDATE items SET n = 0 WHERE id = 3
        B COMMIT
        A COMMIT""",
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_as_postgres(stage: Stage, name: str, level: str) -> None:
    stage.agree(lines(BEGIN + SCHEDULES[name]).format(level=level))


def lines(schedule: str) -> str:
    """A line that begins with one blank goes on with the one before."""
    schedule = schedule.replace("\n (", " (")
    return "\n".join(line.strip() for line in schedule.splitlines() if line.strip())


def test_queue_of_three(stage: Stage) -> None:
    stage.agree(lines("""
        A BEGIN
        B BEGIN
        C BEGIN
        A UPDATE items SET n = n + 1 WHERE id = 1
        B> UPDATE items SET n = n * 2 WHERE id = 1
        A COMMIT
        B<
        C> UPDATE items SET n = n - 7 WHERE id = 1 RETURNING n
        B COMMIT
        C<
        C COMMIT"""))


def test_serializable_is_snapshot_isolation(stage: Stage) -> None:
    """The documented difference: write skew is not found, an overwritten row is."""
    told = stage.play(lines(BEGIN + SCHEDULES["write skew"]).format(level="SERIALIZABLE"))
    assert "40001" in [outcome.sqlstate for _, outcome in told["h"]]
    assert [outcome.sqlstate for _, outcome in told["k"]] == [None] * len(told["k"])
    stage.fill()
    stage.agree(lines(BEGIN + SCHEDULES["lost update"]).format(level="SERIALIZABLE"))


# ---------- differences that are documented ----------
def test_row_whose_key_changes_counts_as_deleted(stage: Stage) -> None:
    """Rows are known by their keys, so who waited for the old one finds no row."""
    told = stage.play(lines("""
        A BEGIN
        B BEGIN
        A UPDATE items SET id = 20 WHERE id = 2
        B> UPDATE items SET t = 'b' WHERE n = 20
        A COMMIT
        B<
        B COMMIT
        B UPDATE items SET t = 'b' WHERE n = 20"""))
    assert [outcome.count for _, outcome in told["h"][-3:]] == [1, -1, 1]
    assert [outcome.count for _, outcome in told["k"][-3:]] == [0, -1, 1]


def test_join_sees_the_newest_rows_at_once(stage: Stage) -> None:
    """PostgreSQL checks the old row's partner again, and nothing else; here rows are locked, then joined."""
    told = stage.play(lines("""
        A BEGIN
        A UPDATE items SET n = 1000 WHERE id = 1
        B> UPDATE items SET t = name FROM (VALUES (10, 'a'), (20, 'b'), (1000, 'c')) v(m, name) WHERE n = m
        A COMMIT
        B<
        B SELECT t FROM items WHERE id IN (1, 2)"""))
    assert told["h"][-1][1].rows == [("b",), ("r",)]
    assert told["k"][-1][1].rows == [("b",), ("c",)]


# ---------- deadlocks ----------
def deadlock(stage: Stage, side: Side, waiting: Callable[[int], bool], closing: str) -> set[str | None]:
    a, b = (Actor(side, stage.dsn, waiting) for _ in "AB")
    for actor, own in ((a, 1), (b, 2)):
        actor.side.conn.execute("BEGIN")
        actor.side.conn.execute(f"UPDATE items SET n = n + 100 WHERE id = {own}")
    a.begin("UPDATE items SET n = n + 100 WHERE id = 2")
    second = b.side.run(closing)
    if b.side.failed():
        b.side.conn.execute("ROLLBACK")
    first = a.collect()
    for actor in (a, b):
        actor.side.conn.execute("COMMIT")
        actor.close()
    return {first.sqlstate, second.sqlstate}


def test_deadlock(stage: Stage) -> None:
    """One of the two fails, and what the other wrote stays whole."""
    closing = "UPDATE items SET n = n + 100 WHERE id = 1"
    assert deadlock(stage, stage.pair.heap, stage.on_heap, closing) == {None, "40P01"}
    assert deadlock(stage, stage.pair.kalam, stage.on_server, closing) == {None, "40P01"}
    for side in (stage.pair.heap, stage.pair.kalam):
        assert side.run("SELECT n FROM items WHERE id < 3").rows == [(110,), (120,)]


def test_deadlock_through_a_lock_of_postgres(stage: Stage) -> None:
    """Neither side sees the whole circle: the limit on waiting ends it."""
    side = stage.pair.kalam
    side.conn.execute("CREATE TABLE local (id int); INSERT INTO local VALUES (1)")
    a, b = Actor(side, stage.dsn, stage.on_server), Actor(side, stage.dsn, stage.on_heap)
    a.side.conn.execute("BEGIN; SET lock_timeout = '2s'; UPDATE local SET id = 2")
    b.side.conn.execute("BEGIN; UPDATE items SET n = 0 WHERE id = 1")
    b.begin("UPDATE local SET id = 3")
    assert a.side.run("UPDATE items SET n = 1 WHERE id = 1").sqlstate == "55P03"
    a.side.conn.execute("ROLLBACK")
    assert b.collect().sqlstate is None
    b.side.conn.execute("COMMIT")
    assert side.run("SELECT n FROM items WHERE id = 1").rows == [(0,)]
    assert side.run("SELECT id FROM local").rows == [(3,)]
    for actor in (a, b):
        actor.close()


# ---------- how many rows are locked ----------
@pytest.mark.parametrize(
    ("tenant", "query", "rows"),
    [
        ("t1", "ORDER BY a, b LIMIT 3", ["t11", "t12", "t13"]), ("t1", "LIMIT 2", None),
        ("t1", "ORDER BY a LIMIT 1 OFFSET 4", None), ("*", "ORDER BY a, b LIMIT 3", ["t11", "t12", "t21"]),
        ("t1", "WHERE n > 30 AND n <> 31 ORDER BY a, b FETCH FIRST 2 ROWS ONLY", ["t132", "t133"]),
        ("t1", "WHERE a = 7 ORDER BY a, b LIMIT 1", ["t121"]),
    ],
)
def test_no_more_rows_are_locked_than_limit_lets_through(
    stage: Stage, tenant: str, query: str, rows: list[str] | None
) -> None:
    """In the order of the key, or of a part of it; also of all tenants' rows, which are kept in another order."""
    side = stage.pair.kalam
    using = side.using.replace("shared", "user")
    side.conn.execute(f'CREATE TABLE jobs (a int, b text COLLATE "C", n int, PRIMARY KEY (a, b)) {using}')
    for each in ("t1", "t2"):
        side.conn.execute(f"SET kalam.user_id = '{each}'")
        side.conn.execute("INSERT INTO jobs SELECT g / 3, %s || g, g FROM generate_series(1, 600) g", [each])
    side.conn.execute(f"SET kalam.user_id = '{tenant}'")
    side.conn.execute("BEGIN")
    found = [row[0] for row in side.conn.execute(f"SELECT b FROM jobs {query} FOR UPDATE")]
    session = side.conn.execute("SELECT (kalam_server_info('kalam_server')->>'backend')::int").fetchone()
    locked = stage.there.execute("SELECT count(*) FROM system.locks WHERE key IS NOT NULL AND session = %s", session
                                 ).fetchone()
    side.conn.execute("ROLLBACK")
    assert rows is None or found == rows
    assert locked == (len(found) + (4 if "OFFSET" in query else 0),)


# ---------- crowds ----------
def crowd(number: int, work: Callable[[int], None]) -> None:
    failed: list[BaseException] = []

    def run(place: int) -> None:
        try:
            work(place)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[:3]


def test_fifty_sessions_add_up(stage: Stage) -> None:
    side = stage.pair.kalam

    def work(place: int) -> None:
        one = Side(stage.dsn, side.schema, "")
        for turn in range(20):
            if (place + turn) % 5 == 0:
                one.conn.execute("DO $$BEGIN UPDATE items SET n = n + 1 WHERE id = 1; END$$")
            else:
                assert one.conn.execute("UPDATE items SET n = n + 1 WHERE id = 1").rowcount == 1
        one.conn.close()

    crowd(50, work)
    assert side.run("SELECT n FROM items WHERE id = 1").rows == [(10 + 1000,)]


@pytest.mark.parametrize("level", LEVELS)
def test_transfers_keep_the_total(stage: Stage, level: str) -> None:
    """Who reads sees no money on its way; who fails with 40001 or 40P01 tries again."""
    side = stage.pair.kalam

    def transfer(one: Side, source: int, target: int, amount: int) -> None:
        with one.conn.transaction():
            one.conn.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
            assert one.conn.execute("SELECT sum(n), count(*) FROM items").fetchone() == (150, 5)
            one.conn.execute("UPDATE items SET n = n - %s WHERE id = %s", [amount, source])
            one.conn.execute("UPDATE items SET n = n + %s WHERE id = %s", [amount, target])
            if amount == 3:
                raise psycopg.Rollback

    def work(place: int) -> None:
        one = Side(stage.dsn, side.schema, "")
        chance = random.Random(place)
        done = 0
        while done < 12:
            source, target = chance.sample(range(1, 6), 2)
            try:
                transfer(one, source, target, chance.randint(1, 9))
                done += 1
            except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                pass
        one.conn.close()

    crowd(6, work)
    assert side.run("SELECT sum(n) FROM items").rows == [(150,)]
