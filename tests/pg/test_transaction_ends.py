"""What PostgreSQL does around COMMIT and ROLLBACK, with KalamDB tables in it: both sides end alike.

| trap | tests |
|---|---|
| an error after the server has committed | `serialization_failure`, `on_commit_action`, `notify`, `between` |
| an error while a transaction aborts is a PANIC | `dead_or_silent_server`, `postgres_killed` |
| PREPARE TRANSACTION ignored: the remote transaction dangles | `prepare_transaction` |
| savepoints not mirrored; exception blocks are savepoints | `nested`, `thousand`, `cursors_and_savepoints` |
| a deferred write told too late | `deferred_constraint_trigger`, `waiting_row`, `not_alone` |
| a backend that exits without a word | `client_that_vanishes` |
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator

import psycopg
import pytest

from support.ports import wait_until
from support.postgres import Postgres
from support.server import KalamServer

from .ddl import Session
from .pair import Pair

pytestmark = pytest.mark.pg


@pytest.fixture
def table(db: Session, ns: str) -> str:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, body text) USING kalamdb WITH (type = 'shared')")
    db(f"INSERT INTO {ns}.t VALUES (1, 'kept'), (2, 'kept')")
    return f"{ns}.t"


@pytest.fixture
def pair(dsn: str) -> Iterator[Pair]:
    pair = Pair(dsn, "user")
    pair.setup("CREATE TABLE items (id int PRIMARY KEY, n int, t text) {using}")
    pair.both("INSERT INTO items SELECT g, g, 'r' FROM generate_series(1, 5) g")
    yield pair
    pair.close()


# ---------- what can fail at COMMIT ----------
def test_serialization_failure_of_postgres_undoes_the_server_too(
    db: Session, other: Session, ns: str, table: str
) -> None:
    """PostgreSQL finds out at COMMIT that one of the two must go: before the server commits."""
    db(f"CREATE TABLE {ns}.doctors (name text, on_call bool); INSERT INTO {ns}.doctors VALUES ('a', true), ('b', true)")
    for number, (session, name) in enumerate([(db, "a"), (other, "b")], 10):
        session("BEGIN ISOLATION LEVEL SERIALIZABLE")
        assert session.value(f"SELECT count(*) FROM {ns}.doctors WHERE on_call") == 2
        session(f"INSERT INTO {table} VALUES ({number}, 'sent {name} home')")
    for session, name in [(db, "a"), (other, "b")]:
        session(f"UPDATE {ns}.doctors SET on_call = false WHERE name = '{name}'")
    db("COMMIT")
    other.fails("COMMIT", "40001")
    assert db(f"SELECT id, body FROM {table} WHERE id >= 10") == [(10, "sent a home")]
    assert db.value(f"SELECT count(*) FROM {ns}.doctors WHERE on_call") == 1


def test_on_commit_action_that_fails_undoes_the_server_too(db: Session, table: str) -> None:
    db("CREATE TEMP TABLE parent (id int PRIMARY KEY) ON COMMIT DELETE ROWS")
    db("BEGIN; CREATE TEMP TABLE child (id int REFERENCES parent) ON COMMIT PRESERVE ROWS")
    db(f"INSERT INTO {table} VALUES (3, 'lost')")
    db.fails("COMMIT", "0A000", "ON COMMIT")
    assert db(f"SELECT count(*) FROM {table}") == [(2,)]
    db(f"BEGIN; CREATE TEMP TABLE gone ON COMMIT DROP AS SELECT * FROM {table}; INSERT INTO {table} SELECT id + 5, body"
       " FROM gone; CREATE TEMP TABLE emptied (id bigint) ON COMMIT DELETE ROWS")
    db(f"INSERT INTO emptied SELECT id FROM {table}")
    db("COMMIT")
    assert db(f"SELECT count(*), (SELECT count(*) FROM emptied), to_regclass('gone') FROM {table}") == [(4, 0, None)]


def test_notify(db: Session, other: Session, table: str) -> None:
    other("LISTEN kalam_news")
    db(f"BEGIN; INSERT INTO {table} VALUES (3, 'new'); NOTIFY kalam_news, 'kept'; COMMIT")
    db("BEGIN; NOTIFY kalam_news, 'undone'")
    db.fails(f"INSERT INTO {table} VALUES (3, 'duplicate')", "23505")
    db("ROLLBACK; NOTIFY kalam_news, 'last'")
    heard = [notice.payload for notice in other.conn.notifies(timeout=20, stop_after=2)]
    assert heard == ["kept", "last"]


@pytest.fixture
def stuck_commit(db: Session, dsn: str, ns: str) -> Iterator[psycopg.Connection]:
    """A session whose COMMIT waits for a standby that is not there, and lets no other COMMIT with a NOTIFY pass."""
    db(f"CREATE TABLE {ns}.noise (id int)")
    db("ALTER SYSTEM SET synchronous_commit = 'local'")
    db("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    db("SELECT pg_reload_conf()")
    conn = psycopg.connect(dsn, autocommit=True)
    conn.execute("SET synchronous_commit = on")

    def notify() -> None:
        for _ in range(10_000):  # PostgreSQL takes a moment to know of the standby
            try:
                conn.execute(f"BEGIN; INSERT INTO {ns}.noise VALUES (1); NOTIFY kalam_stuck; COMMIT")
            except psycopg.errors.QueryCanceled:  # a cancel was meant for the COMMIT before this one
                conn.execute("ROLLBACK")
            if released.is_set():
                return

    released = threading.Event()
    thread = threading.Thread(target=notify)
    thread.start()
    waits = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = %s"
    wait_until(lambda: db(waits, conn.info.backend_pid) == [(True,)], "the wait for a standby")
    yield conn
    released.set()
    for name in ("synchronous_commit", "synchronous_standby_names"):
        db(f"ALTER SYSTEM RESET {name}")
    db("SELECT pg_reload_conf()")
    conn.cancel_safe()
    thread.join()
    conn.close()


def test_cancel_between_the_two_commits(
    db: Session, other: Session, dsn: str, ns: str, table: str, stuck_commit: psycopg.Connection
) -> None:
    """The server has committed, PostgreSQL waits for a lock: a cancel now would leave them apart."""
    db(f"CREATE TABLE {ns}.local (id int)")
    other("SET synchronous_commit = local")
    other(f"BEGIN; INSERT INTO {ns}.local VALUES (3); INSERT INTO {table} VALUES (3, 'kept'); NOTIFY kalam_stuck")
    failed: list[psycopg.Error] = []

    def commit() -> None:
        try:
            other("COMMIT")
        except psycopg.Error as error:
            failed.append(error)

    thread = threading.Thread(target=commit)
    thread.start()
    waits = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s"
    wait_until(lambda: db(waits, other.conn.info.backend_pid) == [(True,)], "the wait for the lock")
    assert db(f"SELECT id FROM {table} ORDER BY id") == [(1,), (2,), (3,)]
    other.conn.cancel_safe()
    stuck_commit.cancel_safe()
    thread.join(30)
    assert not failed
    assert db(f"SELECT id FROM {ns}.local") == [(3,)]


def test_deferred_constraint_trigger(db: Session, ns: str, table: str) -> None:
    """It runs at COMMIT: it reads and writes there, or it refuses, and then nothing remains on either side."""
    db(f"""CREATE TABLE {ns}.local (id int, ok bool);
        CREATE FUNCTION {ns}.check_it() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            IF NOT NEW.ok THEN RAISE check_violation; END IF;
            INSERT INTO {table} SELECT 100 + NEW.id, 'saw ' || count(*) FROM {table}; RETURN NULL; END$$;
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON {ns}.local DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION {ns}.check_it()""")
    db(f"BEGIN; INSERT INTO {ns}.local VALUES (1, true); INSERT INTO {table} VALUES (3, 'x'); COMMIT")
    db(f"INSERT INTO {ns}.local VALUES (2, true)")
    for script in (f"INSERT INTO {ns}.local VALUES (3, false)", f"INSERT INTO {table} VALUES (4, 'lost');"
                   f" INSERT INTO {ns}.local VALUES (4, true), (5, false)", f"INSERT INTO {ns}.local VALUES (1, true)"):
        db.fails(script, None)
        db("BEGIN; SAVEPOINT s")
        for part in script.split(";"):
            db(part)
        db.fails("COMMIT", None)
    assert db(f"SELECT id, body FROM {table} ORDER BY id") == [
        (1, "kept"), (2, "kept"), (3, "x"), (101, "saw 3"), (102, "saw 4")]
    assert db(f"SELECT id FROM {ns}.local ORDER BY id") == [(1,), (2,)]


def test_swallowed_error_of_a_waiting_row(db: Session, ns: str, table: str) -> None:
    """A lone INSERT's row waits for COMMIT. If what runs before sends it and swallows its error, COMMIT still fails."""
    db(f"""CREATE TABLE {ns}.log (id int);
        CREATE FUNCTION {ns}.note() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN INSERT INTO {ns}.log VALUES (NEW.id); RETURN NEW; END$$;
        CREATE TRIGGER note BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION {ns}.note();
        CREATE FUNCTION {ns}.look() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            BEGIN PERFORM count(*) FROM {table}; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN NULL; END$$;
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON {ns}.log DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION {ns}.look()""")
    db(f"INSERT INTO {table} VALUES (3, 'x')")
    db.fails(f"INSERT INTO {table} VALUES (3, 'duplicate')", None)
    assert db(f"SELECT id FROM {ns}.log") == [(3,)]
    assert db(f"SELECT id FROM {table} ORDER BY id") == [(1,), (2,), (3,)]


@pytest.mark.parametrize(
    "sql",
    [
        "EXPLAIN (ANALYZE) INSERT INTO items VALUES (1, 0, 'dup')",
        "WITH w AS (INSERT INTO items VALUES (1, 0, 'dup')), v AS (INSERT INTO items VALUES (60, 0, 'x')) SELECT 1",
        "WITH w AS (UPDATE items SET n = 0) INSERT INTO items VALUES (1, 0, 'dup')",
        "INSERT INTO items VALUES (1, log_it(1), 'dup')",
        "COPY items FROM PROGRAM 'echo 1'",
        "INSERT INTO watched VALUES (1)",
        "INSERT INTO watched VALUES (50), (1)",
        "WITH w AS (INSERT INTO items VALUES (1, 0, 'dup')) SELECT log_it(5)",
        "CREATE TABLE copied AS SELECT put_it(1)",
    ],
)
def test_error_of_a_statement_that_is_not_alone(pair: Pair, sql: str) -> None:
    pair.setup("""CREATE TABLE log (n int); CREATE TABLE watched (id int);
        CREATE FUNCTION log_it(int) RETURNS int LANGUAGE sql AS 'INSERT INTO log VALUES ($1) RETURNING n';
        CREATE FUNCTION put_it(int) RETURNS int LANGUAGE sql AS 'INSERT INTO items VALUES ($1) RETURNING id';
        CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            INSERT INTO items VALUES (NEW.id, 0, 'watched'); PERFORM log_it(NEW.id); RETURN NEW; END$$;
        CREATE TRIGGER watch BEFORE INSERT ON watched FOR EACH ROW EXECUTE FUNCTION watch()""")
    assert pair.both(sql).sqlstate is not None
    pair.both("SELECT count(*) FROM log")


def test_cursor_with_hold(pair: Pair) -> None:
    """Its rows are read at COMMIT, and outlive the transaction, in which rows came after it was opened."""
    for side in (pair.heap, pair.kalam):
        side.conn.execute("INSERT INTO items SELECT g, g, 'h' FROM generate_series(6, 30000) g")
        side.conn.execute("BEGIN")
        side.conn.execute("DECLARE c CURSOR WITH HOLD FOR SELECT id FROM items WHERE n > 2 ORDER BY id")
        side.conn.execute("DECLARE s SCROLL CURSOR WITH HOLD FOR SELECT n FROM items ORDER BY id")
        side.conn.execute("FETCH 100 FROM c")
        side.conn.execute("INSERT INTO items VALUES (30001, 7, 'later')")
        side.conn.execute("COMMIT")
    pair.both("FETCH 3 FROM c")
    pair.both("FETCH LAST FROM s")
    pair.both("FETCH ABSOLUTE 17 FROM s")
    pair.both("MOVE FORWARD ALL IN c")
    pair.both("CLOSE ALL")


def test_prepare_transaction(db: Session, other: Session, ns: str, table: str) -> None:
    db(f"CREATE TABLE {ns}.local (id int)")
    for use in (f"INSERT INTO {table} VALUES (3, 'lost')", f"SELECT * FROM {table}",
                f"SELECT 1 FROM {table} FOR UPDATE", f"CREATE TABLE {ns}.made (id bigint PRIMARY KEY) USING kalamdb",
                "SELECT kalam_exec('SELECT 1')"):
        db(f"BEGIN; INSERT INTO {ns}.local VALUES (1)")
        db(use)
        db.fails("PREPARE TRANSACTION 'p'", "0A000", "PREPARE")
        assert db("SELECT gid FROM pg_prepared_xacts") == []
        db("SELECT 1")
    assert db(f"SELECT count(*) FROM {ns}.local") == [(0,)]
    assert not db.exists(f"{ns}.made")
    other("SET lock_timeout = '10s'")
    other(f"UPDATE {table} SET body = 'free'")
    assert other(f"SELECT count(*) FROM {table}") == [(2,)]


# ---------- savepoints ----------
def test_nested_exception_blocks(pair: Pair) -> None:
    pair.both("""DO $$
        BEGIN
            UPDATE items SET t = 'a' WHERE id = 1;
            BEGIN
                UPDATE items SET t = 'undone' WHERE id IN (1, 2);
                BEGIN
                    INSERT INTO items VALUES (10, 0, 'undone');
                    INSERT INTO items VALUES (1, 0, 'dup');
                EXCEPTION WHEN unique_violation THEN
                    INSERT INTO items VALUES (11, 0, 'undone with the outer');
                END;
                DELETE FROM items WHERE id = 3;
                RAISE division_by_zero;
            EXCEPTION WHEN division_by_zero THEN
                INSERT INTO items VALUES (12, 0, 'kept');
                BEGIN
                    DELETE FROM items WHERE id > 3;
                EXCEPTION WHEN OTHERS THEN RAISE;
                END;
            END;
            UPDATE items SET n = n + 100;
        END$$""")


def test_thousand_exception_blocks(pair: Pair) -> None:
    """Every other one fails; some of them only when their rows are sent, at their end."""
    pair.both("""DO $$
        BEGIN
            FOR i IN 1..1000 LOOP
                BEGIN
                    INSERT INTO items VALUES (i, i, 'x');
                    IF i % 4 = 0 THEN INSERT INTO items VALUES (i - 1, 0, 'dup'); END IF;
                    IF i % 6 = 0 THEN PERFORM 1 / 0; END IF;
                EXCEPTION
                    WHEN unique_violation THEN UPDATE items SET n = -i WHERE id = i - 2;
                    WHEN division_by_zero THEN NULL;
                END;
            END LOOP;
        END$$""")
    assert pair.both("SELECT count(*) FROM items").rows == [(668,)]


def test_thousand_savepoints(pair: Pair) -> None:
    """One in another, all released or undone at once."""
    for end in ("ROLLBACK TO s500; COMMIT", "RELEASE s2; COMMIT", "ROLLBACK"):
        for side in (pair.heap, pair.kalam):
            script = "".join(f"SAVEPOINT s{i}; INSERT INTO items VALUES ({i + 1000}, 0, 's');" if i % 10 == 0
                             else f"SAVEPOINT s{i};" for i in range(1, 1001))
            side.conn.execute(f"BEGIN; DELETE FROM items WHERE id >= 1000; {script}")
            side.conn.execute(end)
        pair.both("SELECT count(*), max(id) FROM items")


def test_cursors_and_savepoints(pair: Pair) -> None:
    """A cursor of an outer level goes on after ROLLBACK TO; one of the level that is undone goes with it."""
    pair.setup("INSERT INTO items SELECT g, g, 'h' FROM generate_series(6, 25000) g")
    pair.both("BEGIN")
    pair.both("DECLARE outer_c CURSOR FOR SELECT id FROM items ORDER BY id")
    pair.both("FETCH 2 FROM outer_c")
    pair.both('SAVEPOINT "quoted "" name ☃"')
    pair.both("DELETE FROM items WHERE id < 1000")
    pair.both("DECLARE inner_c CURSOR FOR SELECT id FROM items ORDER BY id")
    pair.both("FETCH 2 FROM inner_c")
    pair.both("FETCH 12000 FROM outer_c")
    pair.both('ROLLBACK TO "quoted "" name ☃"')
    pair.both("FETCH 12000 FROM outer_c")
    pair.both("SAVEPOINT b")
    assert pair.both("FETCH 1 FROM inner_c").sqlstate == "34000"
    pair.both("ROLLBACK TO b")
    pair.both("FETCH ALL FROM outer_c")
    pair.both("COMMIT")


def test_failing_function_about_a_table_is_undone_by_its_savepoint(db: Session, ns: str, table: str) -> None:
    db(f"CREATE FOREIGN TABLE {ns}.gone (id bigint OPTIONS (key '1')) SERVER kalam_server"
       f" OPTIONS (namespace '{ns}', \"table\" 't')")
    db(f"ALTER FOREIGN TABLE {ns}.gone OPTIONS (SET \"table\" 'nowhere')")
    db("BEGIN")
    db(f"INSERT INTO {table} VALUES (3, 'kept')")
    for call in ("kalam_table_stats", "kalam_flush", "kalam_compact"):
        db("SAVEPOINT s")
        db.fails(f"SELECT {call}('{ns}.gone')", None)
        db("ROLLBACK TO s")
    db(f"INSERT INTO {table} VALUES (4, 'kept')")
    db("COMMIT")
    assert db(f"SELECT count(*) FROM {table}") == [(4,)]


def test_commit_and_chain(pair: Pair) -> None:
    for level in ("READ COMMITTED", "REPEATABLE READ"):
        for step in (f"BEGIN ISOLATION LEVEL {level}", "INSERT INTO items VALUES (7, 1, 'kept')", "COMMIT AND CHAIN",
                     "SHOW transaction_isolation", "DELETE FROM items WHERE id = 7", "ROLLBACK AND CHAIN",
                     "UPDATE items SET n = n + 1 WHERE id = 7 RETURNING n", "SELECT 1/0", "ROLLBACK AND CHAIN",
                     "DELETE FROM items WHERE id = 7", "COMMIT"):
            pair.both(step)


# ---------- procedures ----------
def test_procedure_that_commits_and_rolls_back(pair: Pair) -> None:
    pair.setup("""CREATE PROCEDURE move() LANGUAGE plpgsql AS $$
        DECLARE r record;
        BEGIN
            FOR r IN SELECT id, n FROM items ORDER BY id LOOP
                INSERT INTO items VALUES (r.id + 100, r.n, 'moved');
                IF r.id % 2 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
                BEGIN
                    INSERT INTO items VALUES (r.id + 100, r.n, 'again');
                EXCEPTION WHEN unique_violation THEN UPDATE items SET t = 'twice' WHERE id = r.id + 100;
                END;
            END LOOP;
            INSERT INTO items VALUES (1, 0, 'dup');
        END$$""")
    assert pair.both("CALL move()").sqlstate == "23505"
    pair.both("SELECT count(*) FROM items WHERE t = 'twice'")


# ---------- read only ----------
@pytest.mark.parametrize(
    "begin",
    ["BEGIN READ ONLY", "BEGIN; SET TRANSACTION READ ONLY", "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE",
     "SET default_transaction_read_only = on"],
)
def test_read_only(pair: Pair, begin: str) -> None:
    for side in (pair.heap, pair.kalam):
        side.conn.execute(begin)
    pair.both("SELECT count(*) FROM items")
    for sql in ("INSERT INTO items VALUES (9)", "UPDATE items SET n = 0", "DELETE FROM items",
                "SELECT 1 FROM items FOR UPDATE"):
        if "BEGIN" in begin:
            pair.both("SAVEPOINT s")
        assert pair.both(sql).sqlstate == "25006"
        if "BEGIN" in begin:
            pair.both("ROLLBACK TO s")
    for side in (pair.heap, pair.kalam):
        side.conn.execute("ROLLBACK; RESET default_transaction_read_only" if "BEGIN" not in begin else "ROLLBACK")
    pair.both("INSERT INTO items VALUES (9)")


# ---------- the end of one side ----------
@pytest.mark.parametrize("how", ["dead", "silent"])
def test_rollback_of_a_dead_or_silent_server(db: Session, server: KalamServer, table: str, how: str) -> None:
    """At abort, at a savepoint's, inside exception blocks, with cursors open, and with a result half read."""
    db(f"INSERT INTO {table} SELECT g, 'many' FROM generate_series(10, 40000) g")
    db("BEGIN")
    db(f"INSERT INTO {table} VALUES (3, 'lost')")
    db(f"DECLARE c CURSOR FOR SELECT * FROM {table}")
    db("FETCH 10 FROM c")
    db("SAVEPOINT a")
    db(f"UPDATE {table} SET body = 'lost' WHERE id < 3")
    db("SAVEPOINT b")
    db(f"DECLARE d CURSOR FOR SELECT * FROM {table}")
    db("FETCH 10 FROM d")
    if how == "dead":
        server.kill()
    else:
        os.kill(server.pid, signal.SIGSTOP)
    try:
        db("SET statement_timeout = '2s'")
        db.fails(f"DO $$BEGIN BEGIN DELETE FROM {table}; EXCEPTION WHEN OTHERS THEN NULL; END;"
                 f" DELETE FROM {table}; END$$", None)
        db("ROLLBACK TO b")
        db.fails("FETCH 30000 FROM c", "08006")
        db("ROLLBACK TO a")
        db("ROLLBACK")
        assert db("SELECT 1") == [(1,)]
    finally:
        if how == "dead":
            server.start()
        else:
            os.kill(server.pid, signal.SIGCONT)
    db("RESET statement_timeout")
    assert db(f"SELECT id, body FROM {table} WHERE id < 10 ORDER BY id") == [(1, "kept"), (2, "kept")]
    db(f"UPDATE {table} SET body = 'free' WHERE id < 3")


@pytest.mark.parametrize("how", ["killed psql", "terminated", "closed", "25P03"])
def test_locks_of_a_client_that_vanishes(db: Session, pg: Postgres, dsn: str, table: str, how: str) -> None:
    """Idle in a transaction that holds locks. The promise is one second; what is asserted, that nobody waits longer."""
    hold = f"BEGIN; UPDATE {table} SET body = 'lost'; INSERT INTO {table} VALUES (3, 'lost');"
    if how == "killed psql":
        psql = subprocess.Popen([pg.installed.bin / "psql", dsn, "-qX"], stdin=subprocess.PIPE,
                                stdout=subprocess.PIPE, text=True)
        assert psql.stdin is not None
        assert psql.stdout is not None
        print(hold, "SELECT 'ready';", file=psql.stdin, flush=True)
        while "ready" not in psql.stdout.readline():
            pass
        psql.kill()
        psql.wait()
        psql.stdin.close()
        psql.stdout.close()
    else:
        holder = psycopg.connect(dsn, autocommit=True)
        if how == "25P03":
            holder.execute("SET idle_in_transaction_session_timeout = '100ms'")
        holder.execute(hold)
        if how == "terminated":
            db.value("SELECT pg_terminate_backend(%s)", holder.info.backend_pid)
        if how != "25P03":
            holder.close()
    db("SET lock_timeout = '15s'")
    db(f"INSERT INTO {table} VALUES (3, 'mine')")
    db(f"UPDATE {table} SET body = 'mine'")
    assert db(f"SELECT id, body FROM {table} ORDER BY id") == [(1, "mine"), (2, "mine"), (3, "mine")]
    if how == "25P03":
        holder.close()


def test_postgres_killed(db: Session, pg: Postgres, dsn: str, server: KalamServer, ns: str, table: str) -> None:
    """kill -9 of the whole PostgreSQL: the server undoes what was open, and keeps what was committed."""
    db(f"CREATE TABLE {ns}.local (id int)")
    db(f"BEGIN; INSERT INTO {table} VALUES (3, 'kept'); INSERT INTO {ns}.local VALUES (3); COMMIT")
    db(f"BEGIN; INSERT INTO {table} VALUES (4, 'lost'); UPDATE {table} SET body = 'lost'")
    pids = [pid for (pid,) in db("SELECT pid FROM pg_stat_activity")]
    assert pg.process is not None
    postmaster = int((pg.data / "postmaster.pid").read_text().split()[0])
    for pid in (postmaster, *pids):
        os.kill(pid, signal.SIGKILL)
    pg.process.wait(30)
    db.close()
    with psycopg.connect(server.dsn(), autocommit=True) as there:
        left = "SELECT count(*) FROM system.transactions WHERE rows_written > 0"
        wait_until(lambda: there.execute(left).fetchone() == (0,), "the end of its transactions")
    pg.start()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET lock_timeout = '15s'")
        conn.execute(f"UPDATE {table} SET body = 'new' WHERE id = 1")
        assert conn.execute(f"SELECT id, body FROM {table} ORDER BY id").fetchall() == [
            (1, "new"), (2, "kept"), (3, "kept")]
        assert conn.execute(f"SELECT id FROM {ns}.local").fetchall() == [(3,)]


def has_ended(db: Session) -> bool:
    try:
        db("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


def test_backend_killed(db: Session, pg: Postgres, dsn: str, server: KalamServer, table: str) -> None:
    """kill -9 of one backend: its locks on the server are gone at once, and PostgreSQL restarts."""
    with psycopg.connect(server.dsn(), autocommit=True) as there:
        holder = psycopg.connect(dsn, autocommit=True)
        holder.execute(f"BEGIN; UPDATE {table} SET body = 'lost'; INSERT INTO {table} VALUES (3, 'lost')")
        found = holder.execute("SELECT kalam_server_info('kalam_server')->>'backend'").fetchone()
        assert found is not None
        left = f"SELECT count(*) FROM system.transactions WHERE session = {found[0]}"
        assert there.execute(left).fetchone() == (1,)
        os.kill(holder.info.backend_pid, signal.SIGKILL)
        wait_until(lambda: there.execute(left).fetchone() == (0,), "the end of its transaction")
        namespace, _, name = table.partition(".")
        there.execute("SET lock_timeout = '1s'")
        there.execute(f"UPDATE {namespace}.{name} SET body = 'free'")
    holder.close()
    wait_until(lambda: has_ended(db), "the end of all sessions")
    pg.start()
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"INSERT INTO {table} VALUES (3, 'after')")
        assert conn.execute(f"SELECT id, body FROM {table} ORDER BY id").fetchall() == [
            (1, "free"), (2, "free"), (3, "after")]
