"""ORDER BY the key with LIMIT: what an application's pages ask for, read in order and no further than the page."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from .ddl import Session
from .plans import nodes, remote_sql

pytestmark = pytest.mark.pg

#: ORDER BY and condition: those that a scan gives in order, and others
IN_ORDER = [
    ("owner, id", "true"), ("owner", "true"), ("owner, id", "n > 3"), ("id", "owner = 7"), ("owner, id", "owner = 7"),
    ("id", "owner = 7 AND id > 40"), ("owner, id", "owner BETWEEN 3 AND 5 AND n = 2"), ("id, owner", "owner = 7"),
]
OTHERS = [("id, owner", "true"), ("n, owner, id", "true"), ("owner, id DESC", "true"), ("owner, n, id", "owner > 2")]


def server_path(db: Session, sql: str) -> str:
    (found,) = db.value(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}")
    (scan,) = [node for node in nodes(found["Plan"]) if node["Node Type"] == "Foreign Scan"]
    assert scan is found["Plan"], "sent whole"
    return str(scan["Server Path"])


def fill(db: Session, ns: str, kind: str) -> None:
    db(f"CREATE TABLE {ns}.k (owner int, id bigint, n int, body text, PRIMARY KEY (owner, id)) USING kalamdb"
       f" WITH (type = '{kind}')")
    db(f"CREATE TABLE {ns}.h (owner int, id bigint, n int, body text)")


def rows(db: Session, ns: str, first: int) -> None:
    for table in ("k", "h"):
        db(f"INSERT INTO {ns}.{table} SELECT g * 7 % 10, g * 13 % 997, g % 5, 'body ' || g"
           f" FROM generate_series({first}, {first + 299}) g")


def compare(db: Session, ns: str, orders: list[tuple[str, str]]) -> None:
    for (order, condition), desc, limit in itertools.product(orders, (False, True), (1, 7, 10_000)):
        keys = ", ".join(f"{part} DESC" for part in order.split(", ")) if desc and "DESC" not in order else order
        full = f"{keys}, id" if keys.startswith("owner") and "id" not in keys and limit != 1 else keys
        if "id" not in keys:  # of equals any may come: only their owners are known
            query = f"SELECT owner FROM {ns}.{{}} WHERE {condition} ORDER BY {keys} LIMIT {limit}"
        else:
            query = f"SELECT owner, id, n, body FROM {ns}.{{}} WHERE {condition} ORDER BY {full} LIMIT {limit}"
        found: list[tuple[Any, ...]] = db(query.format("k"))
        assert found == db(query.format("h")), query


@pytest.mark.parametrize("kind", ["shared", "user"])
def test_pages(db: Session, ns: str, kind: str) -> None:
    """Hot, half cold, cold, and with rows of the transaction's own over all of it."""
    db("SET kalam.user_id = 'other'")
    fill(db, ns, kind)
    if kind == "user":
        db(f"INSERT INTO {ns}.k SELECT 7, g, 1, 'not mine' FROM generate_series(1, 100) g")
    db("SET kalam.user_id = 'me'")
    rows(db, ns, 1)
    compare(db, ns, IN_ORDER + OTHERS)
    db("SELECT kalam_flush(%s::regclass)", f"{ns}.k")
    compare(db, ns, IN_ORDER)
    rows(db, ns, 301)
    compare(db, ns, IN_ORDER + OTHERS)
    db("BEGIN")
    for table in ("k", "h"):
        db(f"DELETE FROM {ns}.{table} WHERE id % 3 = 0")
        db(f"UPDATE {ns}.{table} SET owner = 11 WHERE owner = 3")
        db(f"INSERT INTO {ns}.{table} VALUES (7, -5, 1, 'own'), (-1, 5000, 2, 'own'), (99, 1, 4, 'own')")
    compare(db, ns, IN_ORDER)
    db("ROLLBACK")


def test_no_query_engine(db: Session, ns: str) -> None:
    db("SET kalam.user_id = 'me'")
    fill(db, ns, "user")
    rows(db, ns, 1)
    page = f"SELECT id, body FROM {ns}.k WHERE owner = 7 AND id > 20 ORDER BY id {{}} LIMIT 10"
    assert server_path(db, page.format("")) == "store"
    assert server_path(db, page.format("DESC")) == "store"
    assert server_path(db, f"SELECT * FROM {ns}.k ORDER BY owner, id LIMIT 10") == "store"
    assert server_path(db, f"SELECT * FROM {ns}.k ORDER BY body COLLATE \"C\" LIMIT 10") == "query engine"
    db("SELECT kalam_flush(%s::regclass)", f"{ns}.k")
    assert server_path(db, page.format("")) == "store"
    assert server_path(db, page.format("DESC")) == "store"


def test_a_limit_that_is_null(db: Session, ns: str) -> None:
    """A generic plan relies on the server's order before it knows the limit."""
    db("SET plan_cache_mode = force_generic_plan")
    fill(db, ns, "shared")

    def agree() -> None:
        for _ in range(2):  # the second time the server has columns in memory
            db(f"SELECT sum(id), max(owner) FROM {ns}.k")
            for desc, limit in itertools.product(("asc", "desc"), ("NULL", "5", "NULL")):
                found, wanted = (db(f"EXECUTE {table}_{desc}({limit})") for table in ("k", "h"))
                assert found == wanted, (desc, limit)

    for table, (desc, order) in itertools.product(("k", "h"), (("asc", "owner, id"), ("desc", "owner DESC, id DESC"))):
        db(f"PREPARE {table}_{desc}(bigint) AS SELECT owner, id, body FROM {ns}.{table} ORDER BY {order} LIMIT $1")
    (sent,) = remote_sql(db, "EXECUTE k_asc(NULL)")
    assert "LIMIT $1" in sent
    rows(db, ns, 1)
    agree()
    db("SELECT kalam_flush(%s::regclass)", f"{ns}.k")
    agree()
    rows(db, ns, 301)
    agree()
    db("BEGIN")
    for table in ("k", "h"):
        db(f"DELETE FROM {ns}.{table} WHERE id % 3 = 0")
        db(f"INSERT INTO {ns}.{table} VALUES (7, -5, 1, 'own'), (-1, 5000, 2, 'own'), (99, 1, 4, 'own')")
    agree()
    db("ROLLBACK")
