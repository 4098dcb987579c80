"""Others alter the remote table while a session knows its rules: noticed at the next statement, at no price.

`t` knows the table, in its caches and its prepared plans, when `kalam_exec` of another session alters it, on the
server only.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from support.ports import wait_until

from .ddl import Session

pytestmark = pytest.mark.pg

CHANGE = "UPDATE t SET n = n + $1 WHERE n > 0"


@pytest.fixture
def t(db: Session, ns: str) -> Session:
    db(f"SET search_path = {ns}, public; SET plan_cache_mode = force_generic_plan")
    db("CREATE TABLE t (id bigint PRIMARY KEY, n int NOT NULL CHECK (n < 100), b text) USING kalamdb")
    db("INSERT INTO t VALUES (1, 10, 'one'), (2, 20, 'two')")
    db(f"PREPARE change(int) AS {CHANGE}")
    db("PREPARE shown(int) AS UPDATE t SET n = n + $1 WHERE n > 0 RETURNING id, n, b")
    db("PREPARE erase AS UPDATE t SET n = NULLIF(n, n) WHERE id = 1")
    db("PREPARE put(int, int) AS INSERT INTO t VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET n = t.n + excluded.n")
    assert is_whole(db)
    db("EXECUTE change(1); EXECUTE shown(1); EXECUTE put(1, 1)")
    return db


def is_whole(db: Session) -> bool:
    return "Foreign Update" in "\n".join(row[0] for row in db("EXPLAIN (VERBOSE, COSTS OFF) EXECUTE change(1)"))


def rows(db: Session) -> list[tuple[object, ...]]:
    return db("SELECT id, n, b FROM t ORDER BY id")


def trips(db: Session, sql: str) -> int:
    before = db.value("SELECT kalam_round_trips()")
    db(sql)
    return int(db.value("SELECT kalam_round_trips()") - before)


def test_rules_cost_no_round_trip(t: Session) -> None:
    assert trips(t, "EXECUTE change(1)") == 2
    assert trips(t, "EXECUTE put(1, 1)") == 2
    assert trips(t, "INSERT INTO t VALUES (9, 1)") == 1
    assert trips(t, "SELECT * FROM t WHERE id = 9") == 1
    t("DISCARD PLANS")
    assert trips(t, "UPDATE t SET n = n + 1 WHERE n > 0") == 2


def test_a_check_that_is_gone_is_checked_here(t: Session, other: Session, ns: str) -> None:
    other.remote(f'ALTER TABLE "{ns}".t DROP CONSTRAINT t_n_check')
    before = rows(t)
    error = t.fails("EXECUTE change(90)", "23514", "t_n_check")
    assert error.diag.constraint_name == "t_n_check"
    assert rows(t) == before
    assert not is_whole(t)  # known by now
    t("EXECUTE change(1)")
    assert rows(t) == [(1, 14, "one"), (2, 23, "two")]


@pytest.mark.parametrize("statement", ["EXECUTE change(1)", "EXECUTE shown(1)", CHANGE.replace("$1", "1")])
@pytest.mark.parametrize("alter", [
    "DROP CONSTRAINT t_n_check", "ALTER n DROP NOT NULL", "ADD COLUMN other int DEFAULT 3",
    "ADD CONSTRAINT more CHECK (n < 1000)", "ALTER b SET NOT NULL", "RENAME CONSTRAINT t_n_check TO another",
])
def test_every_change_is_taken_silently(t: Session, other: Session, ns: str, alter: str, statement: str) -> None:
    other.remote(f'ALTER TABLE "{ns}".t {alter}')
    returned = t(statement)
    assert [row[1] for row in rows(t)] == [14, 23]
    if "shown" in statement:
        assert sorted(returned) == [(1, 14, "one"), (2, 23, "two")]
    assert trips(t, "EXECUTE change(1)") <= 4


def test_not_null_that_is_gone_is_checked_here(t: Session, other: Session, ns: str) -> None:
    t.fails("EXECUTE erase", "23502")
    other.remote(f'ALTER TABLE "{ns}".t ALTER n DROP NOT NULL')
    error = t.fails("EXECUTE erase", "23502")
    assert error.diag.column_name == "n"
    assert [row[1] for row in rows(t)] == [13, 22]


def test_on_conflict_is_tried_again(t: Session, other: Session, ns: str) -> None:
    other.remote(f'ALTER TABLE "{ns}".t ADD COLUMN other int')
    t("EXECUTE put(1, 2)")
    assert rows(t)[0] == (1, 15, "one")
    other.remote(f'ALTER TABLE "{ns}".t DROP CONSTRAINT t_n_check')
    t.fails("EXECUTE put(1, 90)", "40001", "retried")
    t.fails("EXECUTE put(1, 90)", "23514")
    t("EXECUTE put(1, 3)")
    assert rows(t)[0] == (1, 18, "one")


def test_inside_a_transaction(t: Session, other: Session, ns: str) -> None:
    t("BEGIN; INSERT INTO t VALUES (3, 30, 'three'); SAVEPOINT s")
    t.conn.execute("SELECT 1")
    other("SET lock_timeout = '200ms'")
    other.fails(f"SELECT kalam_exec('ALTER TABLE \"{ns}\".t DROP CONSTRAINT t_n_check')", "55P03")  # t writes to it
    t("EXECUTE change(1)")
    t("COMMIT")
    other.remote(f'ALTER TABLE "{ns}".t DROP CONSTRAINT t_n_check')
    t("BEGIN; SAVEPOINT s")
    with pytest.raises(psycopg.errors.CheckViolation):
        t("EXECUTE change(95)")
    t("ROLLBACK TO s")
    t("EXECUTE change(1); COMMIT")
    assert [row[1] for row in rows(t)] == [15, 24, 32]


@pytest.mark.parametrize("block", [False, True])
def test_rules_that_change_while_a_statement_waits(t: Session, other: Session, ns: str, block: bool) -> None:
    if block:
        t("BEGIN; SELECT 1")
    other("BEGIN")
    other.remote(f'ALTER TABLE "{ns}".t ADD COLUMN other int DEFAULT 3')
    with ThreadPoolExecutor(1) as pool:
        change = pool.submit(t, "EXECUTE change(1)")
        wait_until(lambda: other.remote("SELECT 1 FROM system.locks WHERE NOT granted"), "the UPDATE waits")
        other("COMMIT")
        change.result(20)
    if block:
        t("COMMIT")
    assert [row[1] for row in rows(t)] == [14, 23]


def test_a_table_that_took_the_name(t: Session, other: Session, ns: str) -> None:
    other.remote(f'DROP TABLE "{ns}".t')
    t.fails("EXECUTE change(1)", "HV00R")
    other.remote(f'CREATE SHARED TABLE "{ns}".t (id bigint PRIMARY KEY, n int, b text)')
    other.remote(f'INSERT INTO "{ns}".t VALUES (1, 99, NULL)')
    t.fails("EXECUTE change(1)", "23514")
    t("EXECUTE change(-1)")
    assert rows(t) == [(1, 98, None)]


@pytest.mark.parametrize("alter", ["DROP COLUMN b", "RENAME COLUMN b TO c"])
def test_columns_that_are_gone(t: Session, other: Session, ns: str, alter: str) -> None:
    other.remote(f'ALTER TABLE "{ns}".t {alter}')
    t.fails("EXECUTE shown(1)", "HV005", "kalam_drift")
    t.fails("SELECT * FROM t", "HV005", "kalam_drift")
    t.fails("INSERT INTO t VALUES (5, 5, 'five')", "HV005", "kalam_drift")
    t("EXECUTE change(1)")


def test_columns_of_another_type(t: Session, other: Session, ns: str) -> None:
    other.remote(f'ALTER TABLE "{ns}".t ALTER n TYPE bigint')
    t("EXECUTE change(1)")
    other.remote(f'DROP TABLE "{ns}".t')
    other.remote(f'CREATE SHARED TABLE "{ns}".t (id text PRIMARY KEY, n text, b int)')
    other.remote(f"INSERT INTO \"{ns}\".t VALUES ('1', '1', 1)")
    for sql in ("SELECT * FROM t", "EXECUTE change(1)", "EXECUTE put(1, 1)", "INSERT INTO t VALUES (5, 5, 'x')"):
        t.fails(sql, None)
    t.fails("SELECT id FROM t", "HV005")
