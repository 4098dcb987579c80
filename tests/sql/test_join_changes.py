"""UPDATE … FROM, DELETE … USING and locks on joined rows: the same as PostgreSQL, also after a wait for a lock."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable

import pytest

from support.ports import wait_until

from .client import Client, Wire

TABLES = (
    "CREATE {kind} TABLE t (id int PRIMARY KEY, n int, x text)",
    "CREATE {kind} TABLE o (a int, b text, ref int, v numeric(8, 2), PRIMARY KEY (a, b))",
    "CREATE {kind} TABLE p (id text PRIMARY KEY, m int)",
)
ROWS = (
    "INSERT INTO t VALUES (1, 10, 'a'), (2, 20, 'b'), (3, 30, NULL), (4, NULL, 'd'), (5, 50, 'e')",
    "INSERT INTO o VALUES (1, 'x', 1, 1.5), (2, 'x', 2, 2.25), (2, 'y', NULL, 9), (3, 'z', 4, NULL), (9, 'q', 77, 0)",
    "INSERT INTO p VALUES ('x', 100), ('y', 200), ('z', NULL)",
)
CHANGES = [
    "UPDATE t SET n = o.a + t.n, x = o.b || '!' FROM o WHERE o.ref = t.id",
    "UPDATE t SET n = 0 FROM o WHERE o.ref = t.id AND o.v > 2 RETURNING t.id, t.n, o.v, b",
    "UPDATE t AS one SET x = two.x FROM t two WHERE two.id = one.id + 1 RETURNING one.id, two.id AS other, two.x",
    "UPDATE t SET n = p.m FROM o JOIN p ON p.id = o.b WHERE o.ref = t.id",
    "UPDATE t SET n = p.m, x = DEFAULT FROM o LEFT JOIN p ON p.id = o.b AND p.m > 150 WHERE o.ref = t.id",
    "UPDATE t SET n = 1 FROM o, p WHERE o.ref = t.id AND p.id = o.b AND p.m IS NOT NULL",
    "UPDATE t SET n = s.c FROM (SELECT ref, count(*) AS c FROM o GROUP BY ref) s WHERE s.ref = t.id",
    "UPDATE t SET n = 7 FROM o WHERE o.b = 'none'",
    "UPDATE t SET id = t.id + 100 FROM o WHERE o.ref = t.id",
    "UPDATE t SET n = n + 1 WHERE EXISTS (SELECT 1 FROM o WHERE o.ref = t.id) RETURNING *",
    "UPDATE t SET n = n + 1 WHERE id NOT IN (SELECT ref FROM o WHERE ref IS NOT NULL)",
    "UPDATE t SET n = 5, x = 'lit' FROM o WHERE o.ref = t.id AND t.id IN (SELECT min(id) FROM t)",
    "DELETE FROM t USING o WHERE o.ref = t.id RETURNING t.id, o.b, x",
    "DELETE FROM t USING o JOIN p ON p.id = o.b WHERE o.ref = t.id AND p.m = 100",
    "DELETE FROM t WHERE NOT EXISTS (SELECT 1 FROM o WHERE o.ref = t.id) RETURNING id, n * 2",
    "DELETE FROM t one USING t two WHERE one.n < two.n",
    "DELETE FROM o USING t, p WHERE o.ref = t.id AND p.id = o.b AND p.m > 1",
]  # fmt: skip


def fill(client: Client, kind: str) -> None:
    for sql in TABLES:
        client.run(sql.format(kind=kind))
    for sql in ROWS:
        client.run(sql)


def contents(client: Client) -> list[object]:
    return [sorted(map(repr, client.run(f"SELECT {columns} FROM {table}").rows))
            for table, columns in (("t", "id, n, x"), ("o", "a, b, ref, v"))]


@pytest.mark.parametrize("kind", ["SHARED", "USER"])
def test_as_postgres(connect: Callable[..., Client], pg: Client, kind: str) -> None:
    db = connect("alice" if kind == "USER" else None)
    fill(db, kind)
    fill(pg, "")
    for sql in CHANGES:
        for client in (db, pg):
            client.run("BEGIN")
        got, wanted = db.run(sql), pg.run(sql)
        assert (got.tag, sorted(map(repr, got.rows))) == (wanted.tag, sorted(map(repr, wanted.rows))), sql
        assert got.names == wanted.names
        assert contents(db) == contents(pg), sql
        for client in (db, pg):
            client.run("ROLLBACK")


def test_a_row_with_several_partners_is_changed_once(db: Client, pg: Client) -> None:
    for client, kind in ((db, "SHARED"), (pg, "")):
        fill(client, kind)
        client.run("INSERT INTO o SELECT g, 'many', 5, g FROM generate_series(10, 40) g")
        changed = client.run("UPDATE t SET n = n + 1 FROM o WHERE o.ref = t.id AND o.b = 'many' RETURNING t.id, n")
        assert changed.rows == [("5", "51")]
        assert client.run("DELETE FROM t USING o WHERE o.ref = t.id AND o.b = 'many'").tag == "DELETE 1"


def test_refused(db: Client, pg: Client) -> None:
    fill(db, "SHARED")
    fill(pg, "")
    for state, sql in (
        ("42703", "UPDATE t SET n = 1 FROM o WHERE o.nope = t.id"), ("42P01", "UPDATE t SET n = 1 FROM nope"),
        ("42712", "UPDATE t SET n = 1 FROM t"), ("42702", "UPDATE t one SET n = 1 FROM t two WHERE n = 1"),
        ("42703", "UPDATE t SET nope = 1 FROM o"), ("0A000", "SELECT count(*) FROM t, o FOR UPDATE"),
        ("0A000", "SELECT t.id FROM t LEFT JOIN o ON o.ref = t.id FOR UPDATE"),
        ("42P01", "SELECT 1 FROM t JOIN o ON true FOR UPDATE OF nope"),
        ("0A000", "SELECT DISTINCT n FROM t JOIN o ON true FOR UPDATE"),
        ("23505", "UPDATE t SET id = 5 FROM o WHERE o.ref = t.id AND o.ref = 1"),
    ):  # fmt: skip
        db.fails(state, sql)
        pg.fails(state, sql)


LOCKS = [
    "SELECT t.id, o.b, p.m FROM t JOIN o ON o.ref = t.id LEFT JOIN p ON p.id = o.b FOR UPDATE OF t, o",
    "SELECT t.id, t.n + 1 FROM t WHERE EXISTS (SELECT 1 FROM o WHERE o.ref = t.id) FOR SHARE",
    "SELECT id FROM t ORDER BY n DESC NULLS LAST LIMIT 2 FOR UPDATE",
    "SELECT id FROM t WHERE n + 1 > 11 ORDER BY n LIMIT 2 FOR UPDATE SKIP LOCKED",
    "SELECT t.id FROM t, o WHERE o.ref = t.id ORDER BY o.v DESC NULLS FIRST, t.id FOR UPDATE OF t NOWAIT",
]  # fmt: skip


def test_locked_rows(db: Client, pg: Client) -> None:
    for client, kind in ((db, "SHARED"), (pg, "")):
        fill(client, kind)
    for sql in LOCKS:
        for client in (db, pg):
            client.run("BEGIN")
        got, wanted = db.run(sql).rows, pg.run(sql).rows
        assert got == wanted if "ORDER BY" in sql else sorted(got) == sorted(wanted), sql
        for client in (db, pg):
            client.run("ROLLBACK")


UPDATE, DELETE = "UPDATE r.t r1 SET ", "DELETE FROM r.t r1 USING r.o r2 WHERE "
WAITS = [  # what the first session does, what the second one waits with, and its answer
    ("UPDATE r.t SET n = 11 WHERE id = 1", UPDATE + "n = r1.n + r2.a FROM r.o r2 WHERE r2.ref = r1.id", "UPDATE 3"),
    ("UPDATE r.t SET n = 99 WHERE id = 1", DELETE + "r2.ref = r1.id AND r1.n = 10", "DELETE 0"),
    ("DELETE FROM r.t WHERE id = 2", UPDATE + "n = 0 FROM r.o r2 WHERE r2.ref = r1.id", "UPDATE 2"),
    # the partner that was joined counts, whatever others there are now
    ("UPDATE r.t SET n = 20 WHERE id = 1", UPDATE + "x = r2.b FROM r.o r2 WHERE r2.a * 10 = r1.n", "UPDATE 2"),
    ("UPDATE r.o SET v = 7 WHERE a = 1", UPDATE + "x = 'u' FROM r.o r2 WHERE r2.ref = r1.id AND r2.v = 1.5", None),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second", "tag"), WAITS)
def test_after_a_wait(wires: Callable[[], Wire], db: Client, other: Client, ns: str, first: str, second: str,
                      tag: str | None) -> None:
    fill(db, "SHARED")
    waiter = wires()
    db.run("BEGIN")
    db.run(first.replace("r.", f"{ns}.", 1))
    waiter.send(re.sub(r"r\.([top])\b", rf'"{ns}"."\1"', second), txn={"id": uuid.uuid4().hex})
    if tag is None:  # the other table's row is read, not locked
        assert waiter.answer().tag == "UPDATE 1"
        return
    waits = "SELECT count(*) FROM system.locks WHERE NOT granted"
    wait_until(lambda: other.value(waits) == "1", "the wait for the lock")
    db.run("COMMIT")
    wait_until(lambda: not waiter.busy, "the lock")
    assert waiter.answer().tag == tag


def test_repeatable_read_fails(wire: Wire, wires: Callable[[], Wire], db: Client, ns: str) -> None:
    fill(db, "SHARED")
    txn = {"id": uuid.uuid4().hex, "iso": "repeatable read"}
    wire(f'SELECT "id" FROM "{ns}"."t"', txn=txn)
    db.run("UPDATE t SET n = 5 WHERE id = 1")
    wire.fails("40001", f'UPDATE "{ns}"."t" r1 SET "n" = 0 FROM "{ns}"."o" r2 WHERE (r2."ref" = r1."id")', txn=txn)


def test_returning_comes_in_chunks(wire: Wire, db: Client, ns: str) -> None:
    fill(db, "SHARED")
    db.run("INSERT INTO t SELECT g, g, repeat('x', 100000) FROM generate_series(100, 400) g")
    txn = {"id": uuid.uuid4().hex}
    sql = f'UPDATE "{ns}"."t" SET "n" = "n" WHERE ("id" >= 100) RETURNING "id", "x"'
    first = wire(sql, txn=txn)
    assert first.tag.startswith("UPDATE 301 scan_")
    assert 50 < len(first.rows) < 180  # some 8 MB, and what told whether the result is a large one
    rows, chunk = list(first.rows), first
    while chunk.cursor is not None:
        chunk = wire(f"FETCH 10000 FROM {chunk.cursor}")
        rows += chunk.rows
    assert sorted(row[0] for row in rows) == list(range(100, 401))
    assert len(wire(sql + ', "n"', txn=txn, fetch=10).rows) == 10
    wire("COMMIT")
