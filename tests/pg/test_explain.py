"""EXPLAIN of scans: what is told without ANALYZE, with it, in text and in JSON."""

from __future__ import annotations

import re
import threading
from typing import Any
from xml.etree import ElementTree

import psycopg
import pytest

from support.ports import wait_until
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

TELLING = {
    "Rows Received", "Chunks", "Bytes Received", "Server Path", "Server Time", "Hot Rows", "Cold Rows", "Segments Read",
    "Segments Pruned", "Row Groups Read", "Row Groups Pruned",
}


@pytest.fixture
def table(db: Session, ns: str) -> str:
    """1,000 cold rows in each of two segments, 500 hot ones."""
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, n int, body text) USING kalamdb WITH (type = 'shared')")
    for first in (1, 1001):
        db(f"INSERT INTO {ns}.t SELECT g, g % 10, 'body' FROM generate_series({first}, {first + 999}) g")
        db("SELECT kalam_flush(%s::regclass)", f"{ns}.t")
    db(f"INSERT INTO {ns}.t SELECT g, g % 10, 'body' FROM generate_series(2001, 2500) g")
    return f"{ns}.t"


def scans(node: dict[str, Any]) -> list[dict[str, Any]]:
    found = [node] if node["Node Type"] == "Foreign Scan" else []
    return found + [scan for child in node.get("Plans", ()) for scan in scans(child)]


def explain(db: Session, query: str, options: str = "ANALYZE") -> list[dict[str, Any]]:
    (found,) = db.value(f"EXPLAIN (FORMAT JSON, {options}) {query}")
    return scans(found["Plan"])


def text(db: Session, query: str, options: str) -> str:
    return "\n".join(row[0] for row in db(f"EXPLAIN ({options}) {query}"))


def test_a_scan(db: Session, table: str) -> None:
    db(f"ALTER FOREIGN TABLE {table} OPTIONS (ADD fetch_size '1000')")
    (scan,) = explain(db, f"SELECT id, body FROM {table}")
    assert scan.keys() >= TELLING
    assert scan["Rows Received"] == scan["Actual Rows"] == 2500
    assert scan["Chunks"] == 3
    assert scan["Bytes Received"] > 2500 * 8
    assert scan["Server Path"] == "store"
    assert scan["Server Time"] > 0
    assert (scan["Hot Rows"], scan["Cold Rows"]) == (500, 2000)
    assert (scan["Segments Read"], scan["Segments Pruned"]) == (2, 0)
    assert (scan["Row Groups Read"], scan["Row Groups Pruned"]) == (2, 0)


def test_what_is_pruned(db: Session, table: str) -> None:
    (scan,) = explain(db, f"SELECT body FROM {table} WHERE id BETWEEN 1100 AND 1199")
    assert (scan["Rows Received"], scan["Cold Rows"], scan["Hot Rows"]) == (100, 100, 0)
    assert (scan["Segments Read"], scan["Segments Pruned"]) == (1, 1)


def test_paths(db: Session, table: str) -> None:
    db(f"SELECT body FROM {table} WHERE id = 77")  # the first may have to read a file
    (scan,) = explain(db, f"SELECT body FROM {table} WHERE id = 77")
    assert (scan["Server Path"], scan["Rows Received"], scan["Chunks"]) == ("key lookup", 1, 1)
    (scan,) = explain(db, f"SELECT n, count(*) FROM {table} GROUP BY n")
    assert (scan["Server Path"], scan["Rows Received"], scan["Cold Rows"]) == ("query engine", 10, 2000)


def test_in_text(db: Session, table: str) -> None:
    lines = text(db, f"SELECT id FROM {table}", "ANALYZE")
    assert re.search(r"Received: rows=2500 chunks=1 bytes=\d+\n", lines), lines
    assert re.search(r"Server: path=store time=\d+\.\d{3} ms hot rows=500 cold rows=2000\n", lines), lines
    assert "Segments: read=2 pruned=0 groups read=2 groups pruned=0\n" in lines
    lines = text(db, f"SELECT id FROM {table}", "ANALYZE, TIMING off, COSTS off, SUMMARY off")
    assert "Server: path=store hot rows=500" in lines
    assert "time" not in lines


@pytest.mark.parametrize("options", ["COSTS off", "VERBOSE"])
def test_without_analyze(db: Session, table: str, options: str) -> None:
    before = db.value("SELECT kalam_round_trips()")
    lines = text(db, f"SELECT id FROM {table} WHERE id = 3", options)
    assert db.value("SELECT kalam_round_trips()") == before
    assert "Received" not in lines
    assert "Server" not in lines
    assert ("Remote SQL" in lines) == (options == "VERBOSE")


def leaves(db: Session, query: str, form: str, options: str = "VERBOSE, COSTS OFF") -> str:
    return "\n".join(str(row[0]) for row in db(f"EXPLAIN ({options}, FORMAT {form}) {query}"))


def test_formats(db: Session, table: str) -> None:
    """Remote SQL and, with ANALYZE, the figures are properties of the node in each of them."""
    for query, word in ((f"SELECT id FROM {table} WHERE n = 3", "SELECT"),
                        (f"UPDATE {table} t SET n = u.n FROM {table} u WHERE u.id = t.id + 1", "UPDATE"),
                        (f"DELETE FROM {table} WHERE n = 3", "DELETE")):  # fmt: skip
        (found,) = db.value(f"EXPLAIN (VERBOSE, FORMAT JSON) {query}")
        node = found["Plan"] if word == "SELECT" else found["Plan"]["Plans"][0]
        assert node["Remote SQL"].startswith(word)
        assert f'Remote SQL: "{word} ' in leaves(db, query, "YAML")
        tree = ElementTree.fromstring(leaves(db, query, "XML"))
        assert [(each.text or "").split()[0] for each in tree.iter() if each.tag.endswith("}Remote-SQL")] == [word]
    query = f"SELECT n, count(*) FROM {table} GROUP BY n"
    tree = ElementTree.fromstring(leaves(db, query, "XML", "ANALYZE"))
    tags = {each.tag.rpartition("}")[2] for each in tree.iter()}
    assert tags >= {name.replace(" ", "-") for name in TELLING}
    assert all(f"{name}: " in leaves(db, query, "YAML", "ANALYZE") for name in TELLING)


def test_prepared_statements(db: Session, table: str) -> None:
    """A custom plan knows the values, a generic one does not: both send parameters."""
    db(f"PREPARE q(bigint, int) AS SELECT body FROM {table} WHERE id < $1 AND n = $2")
    db(f"PREPARE w(int) AS UPDATE {table} SET n = n + 1 WHERE id = $1")
    for mode in ("force_custom_plan", "force_generic_plan"):
        db(f"SET plan_cache_mode = {mode}")
        shown = text(db, "EXECUTE q(100, 3)", "VERBOSE")
        assert 'WHERE (("id" < $1) AND ("n" = $2))' in shown or 'WHERE ("id" < $1) AND ("n" = $2)' in shown, shown
        (scan,) = explain(db, "EXECUTE q(100, 3)")
        assert scan["Rows Received"] == 10
        assert "Remote SQL: UPDATE" in text(db, "EXECUTE w(5)", "VERBOSE")
        assert db(f"SELECT count(*) FROM {table} WHERE n > 9") == [(0,)]  # only shown
    if db.value("SELECT current_setting('server_version_num')::int") >= 160000:
        shown = text(db, f"SELECT body FROM {table} WHERE id = $1", "VERBOSE, GENERIC_PLAN")
        assert 'Remote SQL: SELECT "body"' in shown
        query = f"DELETE FROM {table} t USING {table} u WHERE u.id = t.n AND u.n = $1"
        shown = text(db, query, "VERBOSE, GENERIC_PLAN")
        assert "Remote SQL: DELETE FROM" in shown


def test_nothing_is_asked_for_where_nobody_asks(db: Session, table: str) -> None:
    query = f"SELECT id FROM {table} WHERE id = 3"
    trips = []
    for prefix in ("", "EXPLAIN ANALYZE "):
        before = db.value("SELECT kalam_round_trips()")
        db(prefix + query)
        trips.append(db.value("SELECT kalam_round_trips()") - before)
    assert trips[0] == 1
    assert trips[1] > 1


def test_loops_add_up(db: Session, table: str, ns: str) -> None:
    db(f"CREATE TABLE {ns}.few AS SELECT g * 100 AS id FROM generate_series(1, 7) g; ANALYZE {ns}.few")
    db("SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_material = off")
    (scan,) = explain(db, f"SELECT body FROM {ns}.few JOIN {table} USING (id)")
    assert (scan["Actual Loops"], scan["Rows Received"], scan["Chunks"]) == (7, 7, 7)


def test_a_scan_that_never_ran(db: Session, table: str, ns: str) -> None:
    db(f"CREATE TABLE {ns}.none (id bigint)")
    (scan,) = explain(db, f"SELECT body FROM {table} WHERE (SELECT count(*) FROM {ns}.none) > 0")
    assert scan["Actual Loops"] == 0
    assert not scan.keys() & TELLING


def test_in_a_transaction_and_with_writes(db: Session, table: str) -> None:
    with db.conn.transaction():
        db(f"DELETE FROM {table} WHERE id <= 10")
        (scan,) = explain(db, f"SELECT n FROM {table}")
        assert scan["Rows Received"] == 2490
        (scan,) = explain(db, f"UPDATE {table} SET body = lower(body) WHERE n = 3")
        assert scan["Rows Received"] == 249
        db("SAVEPOINT a")
        db.fails(f"EXPLAIN ANALYZE SELECT 1 / (n - n) FROM {table}", "22012")
        db("ROLLBACK TO a")
        assert explain(db, f"SELECT n FROM {table}")[0]["Rows Received"] == 2490


def test_several_scans(db: Session, table: str) -> None:
    found = explain(db, f"SELECT count(*) FROM (SELECT id FROM {table} OFFSET 0) a "
                        f"JOIN (SELECT id FROM {table} WHERE n = 3 OFFSET 0) b USING (id)")
    assert sorted(scan["Rows Received"] for scan in found) in ([250, 2500], [1])


def test_tenants(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.u (id bigint PRIMARY KEY) USING kalamdb WITH (type = 'user')")
    for tenant, rows in (("a", 5), ("b", 50)):
        db(f"SET kalam.user_id = '{tenant}'")
        db(f"INSERT INTO {ns}.u SELECT generate_series(1, {rows})")
        assert explain(db, f"SELECT id FROM {ns}.u")[0]["Hot Rows"] == rows


def test_the_server_restarts(db: Session, table: str, server: KalamServer) -> None:
    explain(db, f"SELECT id FROM {table}")
    server.restart()
    assert explain(db, f"SELECT id FROM {table}")[0]["Rows Received"] == 2500


def test_what_a_backend_waits_for(db: Session, other: Session, table: str) -> None:
    process = other.value("SELECT pg_backend_pid()")
    waiting = threading.Thread(target=lambda: other(f"UPDATE {table} SET n = 3 WHERE id = 5"))
    with db.conn.transaction():
        db(f"UPDATE {table} SET n = 2 WHERE id = 5")
        waiting.start()
        name = "KalamDBAnswer" if db.conn.info.server_version >= 170000 else "Extension"

        def shown() -> bool:
            db("SELECT pg_stat_clear_snapshot()")
            return db("SELECT wait_event_type, wait_event FROM pg_stat_activity WHERE pid = %s", process) == [
                ("Extension", name)]

        wait_until(shown, f"waiting for {name}")
    waiting.join()
    assert db.value(f"SELECT n FROM {table} WHERE id = 5") == 3


def test_auto_explain(db: Session, table: str, ns: str) -> None:
    """It asks at the end of each statement, those of functions included."""
    try:
        db("LOAD 'auto_explain'")
    except psycopg.errors.UndefinedFile:
        pytest.skip("this PostgreSQL has no auto_explain")
    db("SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on")
    db("SET auto_explain.log_nested_statements = on; SET auto_explain.log_level = notice")
    db(f"CREATE FUNCTION {ns}.f(bigint) RETURNS int LANGUAGE sql AS 'SELECT n FROM {table} WHERE id = $1'")
    db.notices.clear()
    assert db(f"SELECT sum({ns}.f(id)) FROM {table} WHERE id <= 3") == [(6,)]
    db(f"UPDATE {table} SET n = 7 WHERE id <= 3")
    assert db(f"SELECT count(*) FROM {table} WHERE n = 7 AND id <= 3") == [(3,)]
    assert sum("Server: path=" in notice for notice in db.notices) >= 4
