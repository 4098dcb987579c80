"""Conditions that keep others, or aggregates, from rows for which they fail: what PostgreSQL computes is computed."""

from __future__ import annotations

import pytest

from .ddl import Session

pytestmark = pytest.mark.pg

ROWS = """VALUES (1, '12', 1, '{"k":0,"v":7}'::jsonb), (2, 'w', 0, '{"k":1,"v":"w"}'), (3, NULL, NULL, '{}'),
    (4, '5', 2, '{"k":0,"v":9}')"""
GUARDED = [
    # a condition of an equivalence class stands behind others in PostgreSQL's own lists
    "SELECT count(*) FROM {t} WHERE jsonb_typeof(j->'v') = 'number' AND (j->>'v')::int > 5",
    "SELECT count(*) FROM {t} WHERE (j->>'k') = '0' AND (j->>'v')::int > 5",
    "SELECT count(*), sum(a) FROM {t} WHERE length(x) = 2 AND x::int > 5",
    "SELECT count(*) FROM {t} WHERE strpos(x, 'w') = 0 AND x::int > 5",
    "SELECT count(*) FROM {t} WHERE length(x) = 2 AND 10 / (a * a) > 0",
    "SELECT t.id FROM {t} t JOIN {t} u ON t.id = u.id WHERE length(t.x) = 2 AND t.x::int > 5",
    "SELECT t.id FROM {t} t LEFT JOIN {t} u ON t.id = u.id AND u.a <> 0 AND 10 / u.a > 5 ORDER BY 1",
    # FILTER
    "SELECT sum(x::int) FILTER (WHERE x = '12') FROM {t}",
    "SELECT sum(10 / a) FILTER (WHERE a <> 0), avg(10 / a) FILTER (WHERE a > 0) FROM {t}",
    "SELECT count(10 / a) FILTER (WHERE a > 1) FROM {t}",
    "SELECT sum(sqrt(a - 1)) FILTER (WHERE a >= 1) FROM {t}",
    "SELECT sum((j->>'v')::numeric) FILTER (WHERE jsonb_typeof(j->'v') = 'number') FROM {t}",
    "SELECT string_agg(x, ',' ORDER BY x::int) FILTER (WHERE x <> 'w') FROM {t}",
    "SELECT string_agg(DISTINCT x, ',') FILTER (WHERE x <> 'w') FROM {t}",
    "SELECT count(DISTINCT x::int) FILTER (WHERE x <> 'w') FROM {t}",
    "SELECT sum(DISTINCT x::numeric) FILTER (WHERE x <> 'w') FROM {t}",
    "SELECT array_agg(x::int ORDER BY id) FILTER (WHERE id <> 2) FROM {t}",
    "SELECT id, sum(x::int) FILTER (WHERE x <> 'w') OVER () FROM {t} ORDER BY id",
    # inside a value
    "SELECT DISTINCT (x = '12' AND x::int = 12) FROM {t} ORDER BY 1",
    "SELECT id FROM {t} ORDER BY (id > 5 AND x::int = 1), id",
    "SELECT (id > 5 AND x::int = 1), count(*) FROM {t} GROUP BY 1 ORDER BY 1",
    "SELECT id, rank() OVER (ORDER BY id > 5 AND x::int = 1) FROM {t} ORDER BY id",
    "SELECT bool_or(id > 5 AND x::int = 1), count(*) FILTER (WHERE id > 5 AND x::int = 1) FROM {t}",
    "SELECT sum((x = '12' AND x::int = 12)::int) FROM {t}",
    "SELECT id FROM {t} WHERE (x = '12' AND x::int = 12) IS NOT TRUE ORDER BY id",
    "SELECT id FROM {t} WHERE coalesce(x = '12' AND x::int = 12, false) ORDER BY id",
    "SELECT count(*) FROM {t} WHERE (a = 0 OR 10 / a > 1) IS NULL",
    "SELECT count(*) FROM {t} WHERE (a <> 0 AND 10 / a > 1) OR (a = 0 AND length(x) = 1)",
    "SELECT count(*) FROM {t} WHERE (a = 0 OR 10 / a > 1 OR 1 / (a - 2) = 5) AND (a <> 2 OR 1 / (a - 1) = 1)",
    "SELECT a, count(*) FROM {t} GROUP BY a HAVING (a <> 0 AND 10 / a > 1) IS NOT FALSE ORDER BY 1",
    "UPDATE {t} SET a = (x = 'zz' AND x::int = 12)::int WHERE id < 4 RETURNING id, a",
    "UPDATE {t} SET a = 7 WHERE length(x) = 2 AND x::int > 5 RETURNING id, a",
    "DELETE FROM {t} WHERE (x <> 'w' AND x::int = 5) OR a = 99 RETURNING id",
]


@pytest.fixture
def tables(db: Session, ns: str) -> tuple[str, str]:
    columns = "(id int PRIMARY KEY, x text, a int, j jsonb)"
    heap, kalam = f"{ns}.heap", f"{ns}.kalam"
    db(f"CREATE TABLE {heap} {columns}")
    db(f"CREATE TABLE {kalam} {columns} USING kalamdb WITH (type = 'shared')")
    for table in (heap, kalam):
        db(f"INSERT INTO {table} {ROWS}")
    return heap, kalam


@pytest.mark.parametrize("cold", [False, True], ids=["hot", "cold"])
def test_guards(db: Session, tables: tuple[str, str], cold: bool) -> None:
    if cold:
        db(f"SELECT kalam_flush('{tables[1]}')")
    for query in GUARDED:
        answers = []
        for table in tables:
            db("BEGIN")
            answers.append(db(query.format(t=table)))
            db("ROLLBACK")
        assert sorted(map(repr, answers[0])) == sorted(map(repr, answers[1])), query


def test_what_has_no_guard_fails_as_ever(db: Session, tables: tuple[str, str]) -> None:
    for condition, sqlstate in (("x::int > 5 AND id > 1", "22P02"), ("10 / a > 1", "22012"),
                                ("a = 1 OR 10 / a > 1", "22012")):
        for table in tables:
            db.fails(f"SELECT count(*) FROM {table} WHERE {condition}", sqlstate)


def test_many_rows(db: Session, ns: str) -> None:
    """The query engine changes the order of conditions while it runs, as it finds what they sort out."""
    columns = "(id int PRIMARY KEY, k text, x text)"
    db(f"CREATE TABLE {ns}.heap {columns}")
    db(f"CREATE TABLE {ns}.kalam {columns} USING kalamdb WITH (type = 'shared')")
    query = ("SELECT count(*) FROM {} WHERE (k = 'n' AND x::int > 50) OR (k = 's' AND length(x) > 5)",
             "SELECT count(*) FROM {} WHERE k = 'n' AND x::int > 50 AND (id > 100 OR x::int > 60)")
    for table in (f"{ns}.heap", f"{ns}.kalam"):
        db(f"INSERT INTO {table} SELECT g, CASE WHEN g % 5 > 0 THEN 'n' ELSE 's' END,"
           f" CASE WHEN g % 5 > 0 THEN (g % 300)::text ELSE 'w' || g END FROM generate_series(1, 200000) g")
    for each in query:
        assert db(each.format(f"{ns}.kalam")) == db(each.format(f"{ns}.heap"))
    db(f"SELECT kalam_flush('{ns}.kalam')")
    for each in query:
        assert db(each.format(f"{ns}.kalam")) == db(each.format(f"{ns}.heap"))
