"""Many sessions at once over real connections: no lost update, no torn total, deadlocks with one victim, write skew."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest

from support.ports import wait_until
from support.server import KalamServer

READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE = "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"
RETRIED = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


@pytest.fixture(scope="module")
def server() -> Iterator[KalamServer]:
    server = KalamServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


def connect(server: KalamServer) -> psycopg.Connection:
    return psycopg.connect(server.dsn(), autocommit=True)


@pytest.fixture
def conn(server: KalamServer) -> Iterator[psycopg.Connection]:
    """An observer with a new table ``t``; nothing is left locked afterwards."""
    with connect(server) as connection:
        connection.execute("DROP TABLE IF EXISTS t")
        connection.execute("CREATE SHARED TABLE t (id bigint PRIMARY KEY, n bigint, who text)")
        yield connection
        wait_until(lambda: values(connection, "SELECT count(*) FROM system.sessions") == [1], "the sessions' end")
        assert values(connection, "SELECT count(*) FROM system.locks") == [0]
        assert values(connection, "SELECT count(*) FROM system.transactions") == [0]


def values(conn: psycopg.Connection, query: str) -> list[Any]:
    return [row[0] for row in conn.execute(query)]


def fill(conn: psycopg.Connection, count: int, n: int = 0) -> None:
    conn.execute(f"INSERT INTO t SELECT i, {n} FROM generate_series(1, {count}) i")


def test_what_a_commit_leaves_to_do_is_done_before_the_next_message(conn: psycopg.Connection) -> None:
    """A lone client's COMMIT is answered before its locks are given back; what came behind it in one piece finds them
    free, and so does who asks after the answer."""
    for number in range(200):  # the first ones are not alone for long enough
        with conn.pipeline():
            conn.execute("BEGIN")
            conn.execute("INSERT INTO t VALUES (%s, 0)", [number])
            conn.execute("COMMIT")
            conn.execute("BEGIN")
            locks = conn.execute("SELECT count(*) FROM system.locks")
            updated = conn.execute("UPDATE t SET n = n + 1 WHERE id = %s", [number])
            conn.execute("COMMIT")
        assert (locks.fetchone(), updated.rowcount) == ((0,), 1)
        assert values(conn, "SELECT count(*) FROM system.locks") == [0]
    assert values(conn, "SELECT sum(n) FROM t") == [200]


@pytest.mark.parametrize("vanishes", [False, True])
def test_a_commit_with_more_behind_it_in_one_message_gives_its_locks_back(
    server: KalamServer, conn: psycopg.Connection, vanishes: bool
) -> None:
    fill(conn, 5000)
    endless = "SELECT count(*) FROM t a, t b, t c, t d WHERE a.id + b.id + c.id + d.id < 0"
    with connect(server) as one:
        for _ in range(40):  # until it has been alone for long enough
            one.execute("UPDATE t SET n = n + 1 WHERE id = 1")
        update = "BEGIN; UPDATE t SET n = n + 1 WHERE id = 1; COMMIT"
        one.execute(f"{update}; SELECT id FROM t WHERE id = 1 FOR UPDATE NOWAIT")
        pid = one.info.backend_pid
        one.pgconn.send_query(f"{update}; {endless}".encode())
        one.pgconn.flush()
        wait_until(lambda: values(conn, "SELECT n FROM t WHERE id = 1") == [42], "the commit")
        with connect(server) as other:
            other.execute("SET lock_timeout = '20s'")
            other.execute("UPDATE t SET n = n + 1 WHERE id = 1")
            if vanishes:
                one.pgconn.finish()
                wait_until(lambda: pid not in values(conn, "SELECT id FROM system.sessions"), "the client's end")
            else:
                one.cancel_safe()
                while one.pgconn.get_result() is not None:
                    pass
            assert values(conn, "SELECT count(*) FROM system.locks") == [0]
            other.execute("UPDATE t SET n = n + 1 WHERE id = 1")
    assert values(conn, "SELECT n FROM t WHERE id = 1") == [44]


def at_once(server: KalamServer, count: int, work: Callable[[psycopg.Connection, int], Any]) -> list[Any]:
    """What ``work(connection, number)`` gives in so many sessions, all connected before the first begins."""
    barrier = threading.Barrier(count, timeout=60)
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        try:
            with connect(server) as conn:
                barrier.wait()
                results[number] = work(conn, number)
        except BaseException as error:  # told by the caller's thread
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a session hangs"
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, psycopg.Error):
            raise result
    return results


def succeeded(results: Sequence[Any]) -> None:
    for result in results:
        if isinstance(result, BaseException):
            raise result


def transact(conn: psycopg.Connection, isolation: str, body: Callable[[], Any]) -> int:
    """Run a transaction until it commits; how often it had to be repeated."""
    for again in range(10_000):
        try:
            conn.execute(f"BEGIN ISOLATION LEVEL {isolation}")
            body()
            conn.execute("COMMIT")
        except RETRIED:
            conn.execute("ROLLBACK")
        else:
            return again
    raise AssertionError("a transaction never succeeds")


# ---------- lost updates ----------
def test_a_thousand_increments_from_fifty_sessions(server: KalamServer, conn: psycopg.Connection) -> None:
    fill(conn, 1)

    def work(session: psycopg.Connection, _: int) -> None:
        for _ in range(20):
            assert session.execute("UPDATE t SET n = n + 1 WHERE id = 1").rowcount == 1

    succeeded(at_once(server, 50, work))
    assert values(conn, "SELECT n FROM t") == [1000]


@pytest.mark.parametrize("isolation", [READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE])
def test_increments_in_transactions(server: KalamServer, conn: psycopg.Connection, isolation: str) -> None:
    """What is read first and written then counts as well, where the row is locked or the conflict is repeated."""
    fill(conn, 1)
    lock = " FOR UPDATE" if isolation == READ_COMMITTED else ""

    def work(session: psycopg.Connection, _: int) -> int:
        def body() -> None:
            (before,) = values(session, f"SELECT n FROM t WHERE id = 1{lock}")
            session.execute("UPDATE t SET n = %s WHERE id = 1", (before + 1,))

        return sum(transact(session, isolation, body) for _ in range(5))

    repeated = at_once(server, 10, work)
    succeeded(repeated)
    assert values(conn, "SELECT n FROM t") == [50]
    assert sum(repeated) == 0 or isolation != READ_COMMITTED


def test_one_of_many_inserts_of_a_key(server: KalamServer, conn: psycopg.Connection) -> None:
    def work(session: psycopg.Connection, number: int) -> None:
        session.execute("INSERT INTO t VALUES (1, %s, 'first')", (number,))

    results = at_once(server, 20, work)
    assert sorted(getattr(result, "sqlstate", "") for result in results) == [""] + ["23505"] * 19
    assert values(conn, "SELECT n FROM t") == [results.index(None)]


def test_upserts_of_one_key(server: KalamServer, conn: psycopg.Connection) -> None:
    def work(session: psycopg.Connection, _: int) -> None:
        for _ in range(5):
            session.execute("INSERT INTO t VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = t.n + 1")

    succeeded(at_once(server, 20, work))
    assert values(conn, "SELECT n FROM t") == [100]


def test_a_queue_with_skip_locked(server: KalamServer, conn: psycopg.Connection) -> None:
    """Every job is taken once, and nobody waits for another's."""
    fill(conn, 60)

    def work(session: psycopg.Connection, number: int) -> int:
        taken = 0
        while True:
            session.execute("BEGIN")
            found = values(session, "SELECT id FROM t WHERE who IS NULL LIMIT 2 FOR UPDATE SKIP LOCKED")
            for job in found:
                session.execute("UPDATE t SET who = %s, n = n + 1 WHERE id = %s", (f"w{number}", job))
            session.execute("COMMIT")
            taken += len(found)
            if not found and not values(session, "SELECT id FROM t WHERE who IS NULL"):
                return taken

    taken = at_once(server, 6, work)
    succeeded(taken)
    assert sum(taken) == 60
    assert conn.execute("SELECT min(n), max(n), count(who) FROM t").fetchall() == [(1, 1, 60)]


# ---------- totals ----------
ACCOUNTS, TOTAL = 6, 6000


def transfers(session: psycopg.Connection, isolation: str, seed: int) -> int:
    """Twenty-five of them; how many had to be repeated."""
    draw, again = random.Random(seed), 0
    for _ in range(25):
        source, target = draw.sample(range(1, ACCOUNTS + 1), 2)
        amount = draw.randint(1, 50)

        def body(source: int = source, target: int = target, amount: int = amount) -> None:
            session.execute("UPDATE t SET n = n - %s WHERE id = %s", (amount, source))
            session.execute("UPDATE t SET n = n + %s WHERE id = %s", (amount, target))

        again += transact(session, isolation, body)
    return again


def totals(session: psycopg.Connection) -> set[int]:
    """By aggregate, by the rows of a scan, and by single reads of one snapshot."""
    seen = {int(values(session, "SELECT sum(n) FROM t")[0]), sum(values(session, "SELECT n FROM t"))}
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    seen.add(sum(value for account in range(1, ACCOUNTS + 1)
                 for value in values(session, f"SELECT n FROM t WHERE id = {account}")))
    session.execute("COMMIT")
    return seen


@pytest.mark.parametrize("isolation", [READ_COMMITTED, REPEATABLE_READ])
def test_transfers_keep_the_total(server: KalamServer, conn: psycopg.Connection, isolation: str) -> None:
    """Accounts in any order, so that there are deadlocks as well; who reads meanwhile sees one total, always."""
    writers = 8
    finished: list[int] = []
    fill(conn, ACCOUNTS, TOTAL // ACCOUNTS)

    def work(session: psycopg.Connection, number: int) -> Any:
        if number < writers:
            try:
                return transfers(session, isolation, number)
            finally:
                finished.append(number)
        seen = totals(session)
        while len(finished) < writers:
            seen |= totals(session)
        return seen

    results = at_once(server, writers + 2, work)
    succeeded(results)
    assert results[writers] | results[writers + 1] == {TOTAL}
    assert values(conn, "SELECT sum(n) FROM t") == [TOTAL]


# ---------- deadlocks ----------
@pytest.mark.parametrize(("groups", "size"), [(5, 2), (2, 4)])
def test_one_victim_in_every_deadlock(server: KalamServer, conn: psycopg.Connection, groups: int, size: int) -> None:
    """Rings of sessions, each of which wants the row that the next one holds."""
    fill(conn, groups * size)
    holding = threading.Barrier(groups * size, timeout=60)

    def work(session: psycopg.Connection, number: int) -> str:
        group, place = divmod(number, size)
        session.execute("BEGIN")
        session.execute("UPDATE t SET n = n + 1 WHERE id = %s", (group * size + place + 1,))
        holding.wait()
        try:
            session.execute("UPDATE t SET n = n + 10 WHERE id = %s", (group * size + (place + 1) % size + 1,))
        except psycopg.errors.DeadlockDetected as error:
            session.execute("ROLLBACK")
            return error.diag.message_detail or ""
        session.execute("COMMIT")
        return ""

    details = at_once(server, groups * size, work)
    succeeded(details)
    for group in range(groups):
        victims = [text for text in details[group * size : (group + 1) * size] if text]
        assert len(victims) == 1
        assert len(victims[0].splitlines()) == size  # who waits for whom, all around
    assert values(conn, "SELECT sum(n) FROM t") == [groups * (size - 1) * 11]


def test_a_deadlock_of_two_that_share(server: KalamServer, conn: psycopg.Connection) -> None:
    fill(conn, 1)
    holding = threading.Barrier(2, timeout=60)

    def work(session: psycopg.Connection, _: int) -> None:
        session.execute("BEGIN")
        session.execute("SELECT n FROM t WHERE id = 1 FOR SHARE")
        holding.wait()
        session.execute("UPDATE t SET n = n + 1 WHERE id = 1")
        session.execute("COMMIT")

    results = at_once(server, 2, work)
    assert sorted(getattr(result, "sqlstate", "") for result in results) == ["", "40P01"]
    assert values(conn, "SELECT n FROM t") == [1]


def test_a_deadlock_behind_a_savepoint_can_be_undone(server: KalamServer, conn: psycopg.Connection) -> None:
    """ROLLBACK TO frees what the savepoint had locked; the transaction goes on."""
    fill(conn, 2)
    with connect(server) as one, connect(server) as two:
        one.execute("BEGIN")
        one.execute("SAVEPOINT s")
        one.execute("UPDATE t SET n = 1 WHERE id = 1")
        two.execute("BEGIN")
        two.execute("UPDATE t SET n = 2 WHERE id = 2")
        waiter = threading.Thread(target=two.execute, args=("UPDATE t SET n = 2 WHERE id = 1",))
        waiter.start()
        wait_until(lambda: values(conn, "SELECT count(*) FROM system.locks WHERE NOT granted") == [1], "a waiter")
        with pytest.raises(psycopg.errors.DeadlockDetected):
            one.execute("UPDATE t SET n = 1 WHERE id = 2")
        one.execute("ROLLBACK TO s")
        waiter.join(20)
        two.execute("COMMIT")
        one.execute("UPDATE t SET who = 'one'")
        one.execute("COMMIT")
    assert conn.execute("SELECT n, who FROM t").fetchall() == [(2, "one"), (2, "one")]


# ---------- isolation ----------
@pytest.mark.parametrize("isolation", [REPEATABLE_READ, SERIALIZABLE])
def test_a_conflicting_write_fails(server: KalamServer, conn: psycopg.Connection, isolation: str) -> None:
    fill(conn, 2)
    with connect(server) as one:
        one.execute(f"BEGIN ISOLATION LEVEL {isolation}")
        assert values(one, "SELECT sum(n) FROM t") == [0]
        conn.execute("UPDATE t SET n = 5 WHERE id = 1")
        assert values(one, "SELECT sum(n) FROM t") == [0]
        with pytest.raises(psycopg.errors.SerializationFailure):
            one.execute("UPDATE t SET n = n + 1 WHERE id = 1")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            one.execute("SELECT 1")
        one.execute("ROLLBACK")


def skew(stack: ExitStack, server: KalamServer, isolation: str) -> list[psycopg.Connection]:
    """Two doctors on call; each sees the other and goes home. The transactions are open, their writes made."""
    both = [stack.enter_context(connect(server)) for _ in range(2)]
    for session in both:
        session.execute(f"BEGIN ISOLATION LEVEL {isolation}")
    for session in both:
        assert len(values(session, "SELECT id FROM t WHERE n = 1")) == 2
    for number, session in enumerate(both, 1):
        session.execute("UPDATE t SET n = 0 WHERE id = %s", (number,))
    return both


@pytest.mark.parametrize("isolation", [READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE])
def test_write_skew_is_possible(server: KalamServer, conn: psycopg.Connection, isolation: str) -> None:
    """As docs/reference.md says: SERIALIZABLE is snapshot isolation."""
    fill(conn, 2, 1)
    with ExitStack() as stack:
        for session in skew(stack, server, isolation):
            session.execute("COMMIT")
    assert values(conn, "SELECT sum(n) FROM t") == [0]


@pytest.mark.parametrize("isolation", [READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE])
def test_locking_what_was_read_prevents_write_skew(
    server: KalamServer, conn: psycopg.Connection, isolation: str
) -> None:
    """The way out that docs/reference.md gives."""
    fill(conn, 2, 1)

    def work(session: psycopg.Connection, number: int) -> None:
        def body() -> None:
            if len(values(session, "SELECT id FROM t WHERE n = 1 FOR UPDATE")) == 2:
                session.execute("UPDATE t SET n = 0 WHERE id = %s", (number % 2 + 1,))

        transact(session, isolation, body)

    succeeded(at_once(server, 6, work))
    assert values(conn, "SELECT sum(n) FROM t") == [1]


def test_a_session_hears_once_what_serializable_means(server: KalamServer, conn: psycopg.Connection) -> None:
    heard: list[str] = []
    with connect(server) as session:
        session.add_notice_handler(lambda diag: heard.append(diag.message_primary or ""))
        for statement in ("BEGIN ISOLATION LEVEL REPEATABLE READ", "COMMIT", "BEGIN"):
            session.execute(statement)
        assert heard == []
        session.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        session.execute("COMMIT")
        for _ in range(2):
            session.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
            session.execute("SELECT count(*) FROM t")
            session.execute("COMMIT")
    assert heard == ["isolation level serializable is snapshot isolation on this server, as repeatable read: "
                     "write skew is possible"]


# ---------- waiting has an end ----------
def test_lock_timeout_ends_a_wait_and_nothing_else(server: KalamServer, conn: psycopg.Connection) -> None:
    fill(conn, 1)
    with connect(server) as holder:
        holder.execute("BEGIN")
        holder.execute("UPDATE t SET n = 1 WHERE id = 1")

        def work(session: psycopg.Connection, number: int) -> str | None:
            session.execute("SET lock_timeout = '1h'")
            session.execute("BEGIN")
            session.execute("INSERT INTO t VALUES (%s, 0)", (100 + number,))
            session.execute("SAVEPOINT s")
            session.execute("SET LOCAL lock_timeout = '30ms'")
            try:
                session.execute("UPDATE t SET n = 2 WHERE id = 1")
            except psycopg.errors.LockNotAvailable as error:
                session.execute("ROLLBACK TO s")
                session.execute("COMMIT")
                return error.sqlstate
            return None

        results = at_once(server, 8, work)
        assert results == ["55P03"] * 8
        holder.execute("COMMIT")
    assert values(conn, "SELECT n FROM t WHERE id = 1") == [1]
    assert values(conn, "SELECT count(*) FROM t") == [9]
