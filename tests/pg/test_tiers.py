"""Tables whose rows are in both tiers, through PostgreSQL; the functions that move them."""

from __future__ import annotations

import pytest

from .ddl import Session


def table(db: Session, ns: str, kind: str = "shared") -> str:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, a text, n numeric, at timestamptz) USING kalamdb "
       f"WITH (type = '{kind}')")
    if kind == "user":
        db("SET kalam.user_id = 'ann'")
    db(f"INSERT INTO {ns}.t SELECT g, 'text ' || g, g / 4.0, timestamptz '2026-01-01' + make_interval(hours => g) "
       "FROM generate_series(1, 1000) g")
    return f"{ns}.t"


CHECKS = [
    "SELECT count(*), sum(id), sum(n), min(at), max(a) FROM {}",
    "SELECT id, a, n, at FROM {} WHERE id IN (1, 2, 3, 500, 2000) ORDER BY id",
    "SELECT a FROM {} WHERE id = 77",
    "SELECT id FROM {} WHERE n > 240 AND at < '2026-02-11' ORDER BY id",
    "SELECT count(*) FROM {} WHERE a = 'text 12' OR id BETWEEN 20 AND 30",
]


def answers(db: Session, name: str) -> list[object]:
    return [db(check.format(name)) for check in CHECKS]


@pytest.mark.parametrize("kind", ["shared", "user"])
def test_the_same_rows_in_every_tier(db: Session, ns: str, kind: str) -> None:
    name = table(db, ns, kind)
    before = answers(db, name)
    assert db.value(f"SELECT kalam_flush('{name}')") == 1000
    assert answers(db, name) == before
    db(f"UPDATE {name} SET a = a || '!', n = n + 1 WHERE id % 10 = 0")
    db(f"DELETE FROM {name} WHERE id BETWEEN 11 AND 19")
    db(f"INSERT INTO {name} (id, a) VALUES (15, 'back'), (2000, 'new')")
    db.fails(f"INSERT INTO {name} (id) VALUES (500)", "23505")
    db.fails(f"UPDATE {name} SET id = 501 WHERE id = 500", "23505")
    changed = answers(db, name)
    assert changed != before
    assert db.value(f"SELECT kalam_flush('{name}')") == 102
    assert answers(db, name) == changed
    assert db.value(f"SELECT kalam_compact('{name}')") == 993
    assert answers(db, name) == changed
    stats = db.value(f"SELECT kalam_table_stats('{name}')")
    assert stats == {"hot_rows": 0, "tombstones": 0, "segments": 1, "cold_rows": 993, "dead_rows": 0,
                     "hot_bytes": stats["hot_bytes"], "cold_bytes": stats["cold_bytes"]}
    assert stats["cold_bytes"] > 0


def test_in_a_transaction(db: Session, ns: str) -> None:
    name = table(db, ns)
    db("BEGIN ISOLATION LEVEL REPEATABLE READ")
    seen = answers(db, name)
    assert db.value(f"SELECT kalam_flush('{name}')") == 1000
    assert answers(db, name) == seen
    db(f"UPDATE {name} SET a = 'own' WHERE id = 77")
    db("SAVEPOINT s")
    db(f"DELETE FROM {name}")
    assert db.value(f"SELECT count(*) FROM {name}") == 0
    db("ROLLBACK TO s")
    assert db.value(f"SELECT a FROM {name} WHERE id = 77") == "own"
    db("ROLLBACK")
    assert answers(db, name) == seen
    assert db.value(f"SELECT kalam_table_stats('{name}') ->> 'hot_rows'") == "0"


def test_who_may(db: Session, ns: str) -> None:
    name = table(db, ns)
    db(f"CREATE TABLE {ns}.heap (id int); CREATE ROLE {ns}_reader; GRANT USAGE ON SCHEMA {ns} TO {ns}_reader; "
       f"GRANT USAGE ON FOREIGN SERVER kalam_server TO {ns}_reader")
    db.fails(f"SELECT kalam_flush('{ns}.heap')", "42809", "not a table of KalamDB")
    db.fails("SELECT kalam_flush(1)", "42P01")
    db(f"SET ROLE {ns}_reader")
    for function in ("kalam_flush", "kalam_compact", "kalam_table_stats"):
        db.fails(f"SELECT {function}('{name}')", "42501")
    db("RESET ROLE")
    db(f"GRANT SELECT ON {name} TO {ns}_reader; SET ROLE {ns}_reader")
    assert db.value(f"SELECT kalam_table_stats('{name}') ->> 'hot_rows'") == "1000"
    db.fails(f"SELECT kalam_flush('{name}')", "42501")
    db("RESET ROLE")


def test_an_owner_without_the_server(db: Session, ns: str) -> None:
    """A role that owns a table but may not use its server moves nothing; with USAGE it does."""
    name = table(db, ns)
    db(f"CREATE ROLE {ns}_owner; GRANT USAGE, CREATE ON SCHEMA {ns} TO {ns}_owner; "
       f"ALTER FOREIGN TABLE {name} OWNER TO {ns}_owner; SET ROLE {ns}_owner")
    for function in ("kalam_flush", "kalam_compact"):
        db.fails(f"SELECT {function}('{name}')", "42501", "permission denied for foreign server kalam_server")
    db("RESET ROLE")
    db(f"GRANT USAGE ON FOREIGN SERVER kalam_server TO {ns}_owner; SET ROLE {ns}_owner")
    assert db.value(f"SELECT kalam_flush('{name}')") == 1000
    db("RESET ROLE")


def test_streams_have_no_cold_tier(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.s (id bigint) USING kalamdb WITH (type = 'stream', ttl_seconds = '60')")
    db.fails(f"SELECT kalam_flush('{ns}.s')", "42809", "no cold tier")
