"""Keys of types that are kept as text: equal values are one key, however they are written, and every row is found."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from .ddl import Session
from .pair import Pair
from .test_explain import scans
from .values import KEPT, MADE, VALUES, literal

pytestmark = pytest.mark.pg

#: values equal to one another that are written differently, by type; a list of its own for each
EQUAL: dict[str, list[list[str]]] = {
    "interval": [["1 mon", "30 days", "720:00:00", "29 days 24:00:00"], ["0", "1 day -24:00:00"],
                 ["-1 mon", "-30 days"]],
    "bpchar": [["a", "a  "], ["", " "]],
    "char(5)": [["a", "a  "]],
    "numrange": [["[1,2.5)", "[1.0,2.50)"], ["[0,0]", "[0.00,0.0]"], ["empty", "(1,1)"]],
    "nummultirange": [["{[1,2)}", "{[1.0,2.00)}"]],
    "int4range": [["[1,5)", "[1,4]", "(0,4]"], ["empty", "[1,1)"]],
    "tstzrange": [["[2000-01-01 00:00:00+02,)", "[1999-12-31 22:00:00+00,)"]],
    "tstzmultirange": [["{[2000-01-01 00:00:00+02,)}", "{[1999-12-31 22:00:00+00,)}"]],
    "timestamptz[]": [["{2000-01-01 00:00:00+02}", "{1999-12-31 22:00:00+00}"]],
    "numeric[]": [["{1.0,NULL}", "{1,NULL}", "{1.00,NULL}"], ["{{1},{2}}", "{{1.0},{2}}"],
                  ["[0:1]={1,2}", "[0:1]={1.0,2}"]],
    "double precision[]": [["{0,1}", "{-0,1}"]],
    "interval[]": [["{1 mon}", "{30 days}"]],
    "char(3)[]": [["{a}", '{"a  "}']],
    "jsonb[]": [['{"[1.0]"}', '{"[1]"}']],
    "jsonb": [["[1.0]", "[1]", "[1.00]"], ['{"a": 1, "b": 1e2}', '{"b": 100.0, "a": 1.0}'], ["0", "-0.0"]],
    "inet": [["10.0.0.1", "10.0.0.1/32"]],
    "macaddr": [["08:00:2b:01:02:03", "08002b-010203"]],
    "macaddr8": [["08:00:2b:01:02:03", "08:00:2b:ff:fe:01:02:03"]],
    "money": [["1", "1.00"]],
    "text[]": [['{"a"}', "{a}"]],
}
REFUSED = ["json", "point", "box", "polygon", "circle", "tid", "pairing", "pairings", "jsonpath", "pg_snapshot",
           "tsquery", "regclass", "regtype", "int2vector", "json[]", "pairing[]", "small[]", "spans"]  # fmt: skip
ACCEPTED = [type_ for type_ in [*KEPT, "jsonb"] if type_ not in REFUSED]


@pytest.fixture(scope="module")
def made(module_dsn: str) -> None:
    with psycopg.connect(module_dsn, autocommit=True) as conn:
        conn.execute(MADE)


@pytest.fixture
def pair(dsn: str, made: None) -> Iterator[Pair]:
    pair = Pair(dsn)
    yield pair
    pair.close()


def distinct_values(pair: Pair, type_: str) -> list[str]:
    """Literals of the values, of equal ones the first."""
    texts = KEPT[type_] if type_ in KEPT else VALUES[type_]
    listed = ", ".join(f"({place}, {literal(text, type_)})" for place, text in enumerate(texts))
    found = pair.heap.conn.execute(f"SELECT DISTINCT ON (v) n FROM (VALUES {listed}) x(n, v) ORDER BY v, n".encode())
    return [literal(texts[place], type_) for place, in sorted(found.fetchall())]


@pytest.mark.parametrize("type_", ACCEPTED)
def test_keys(pair: Pair, type_: str) -> None:
    """Alone and beside a bigint: rows are found, changed and deleted, hot and cold; a duplicate is one."""
    values = distinct_values(pair, type_)
    for key in ("v", "n, v"):
        pair.setup(f"CREATE TABLE t (k int, n bigint, v {type_}, PRIMARY KEY ({key})) {{using}}")
        for side in (pair.heap, pair.kalam):
            rows = ", ".join(f"({k}, {k % 2}, {value})" for k, value in enumerate(values))
            side.conn.execute(f"INSERT INTO t VALUES {rows}".encode())
        pair.kalam.conn.execute(f"SELECT kalam_flush('{pair.kalam.schema}.t'::regclass)")
        pair.both("SELECT k, v::text FROM t ORDER BY v, n")
        pair.both(f"INSERT INTO t VALUES (100, 0, {values[0]})")
        pair.both("UPDATE t SET k = k + 100 WHERE k % 2 = 0")
        pair.both(f"UPDATE t SET k = k + 1000 WHERE v = {values[-1]}")
        pair.both(f"DELETE FROM t WHERE v = {values[0]} RETURNING k, v::text")
        pair.both(f"INSERT INTO t VALUES (5000, 0, {values[0]})")
        pair.both("SELECT a.k, b.k FROM t a JOIN t b USING (v) ORDER BY 1")
        pair.both("SELECT min(k), count(*) FROM t GROUP BY v ORDER BY 1")
        pair.both("SELECT k FROM t ORDER BY v DESC, n LIMIT 3")
        pair.setup("DROP " + "TABLE t")


@pytest.mark.parametrize("type_", EQUAL)
def test_equal_keys_written_otherwise(pair: Pair, type_: str) -> None:
    """They are duplicates, and what was written first is what is shown."""
    pair.setup(f"CREATE TABLE t (k int, v {type_} PRIMARY KEY) {{using}}")
    for texts in EQUAL[type_]:
        first, *others = (literal(text, type_) for text in texts)
        pair.both(f"INSERT INTO t VALUES (0, {first})")
        for other in others:
            assert pair.heap.conn.execute(f"SELECT {first} = {other}".encode()).fetchone() == (True,)
            outcome = pair.heap.run(f"INSERT INTO t VALUES (1, {other})")
            found = pair.kalam.run(f"INSERT INTO t VALUES (1, {other})")
            assert (outcome.sqlstate, outcome.constraint) == (found.sqlstate, found.constraint) == ("23505", "t_pkey")
            pair.both(f"INSERT INTO t VALUES (1, {other}) ON CONFLICT DO NOTHING")
            pair.both(f"UPDATE t SET k = k + 1 WHERE v = {other} RETURNING k, v::text")


@pytest.mark.parametrize("type_", REFUSED)
def test_types_that_cannot_be_keys(db: Session, ns: str, made: None, type_: str) -> None:
    db.fails(f"CREATE TABLE {ns}.t (v {type_} PRIMARY KEY) USING kalamdb", "42P16", '"v" of type ',
             "cannot be part of the key")
    db(f"CREATE TABLE {ns}.t (k int PRIMARY KEY, v {type_}) USING kalamdb")


@pytest.mark.parametrize("type_", ["pg_node_tree", "pg_ndistinct[]", "gtsvector"])
def test_types_that_cannot_be_stored(db: Session, ns: str, type_: str) -> None:
    if type_ == "pg_ndistinct[]":
        db(f"CREATE TYPE {ns}.row AS (a pg_ndistinct)")
        type_ = f"{ns}.row[]"
    error = db.fails(f"CREATE TABLE {ns}.t (k int PRIMARY KEY, v {type_}) USING kalamdb", "0A000", '"v"',
                     "cannot be stored")
    assert error.diag.message_hint
    db(f"CREATE TABLE {ns}.t (k int PRIMARY KEY) USING kalamdb")
    db.fails(f"ALTER TABLE {ns}.t ADD COLUMN v {type_}", "0A000", '"v"', "cannot be stored")
    for pseudo in ("record", "anyelement", "cstring"):  # PostgreSQL's own refusal
        db.fails(f"CREATE TABLE {ns}.p (k int PRIMARY KEY, v {pseudo}) USING kalamdb", "42P16")


def test_mixed_key(pair: Pair) -> None:
    """Several of them in one key; a prefix of it, and of the bytes of it, is no match."""
    columns = {"a": "interval", "b": "inet", "c": "varbit", "d": "numeric[]", "e": "mood", "f": "numeric"}
    body = ", ".join(f"{name} {type_}" for name, type_ in columns.items())
    pair.setup(f"CREATE TABLE t (k int, {body}, PRIMARY KEY ({', '.join(columns)})) {{using}}")
    all_texts = {**KEPT, **VALUES}
    rows: list[str] = []
    for k in range(60):
        row = [literal(all_texts[type_][k // (place + 1) % len(all_texts[type_])], type_)
               for place, type_ in enumerate(columns.values())]
        rows.append(f"({k}, {', '.join(row)})")
    for each in rows:
        found = [side.run(f"INSERT INTO t VALUES {each}") for side in (pair.heap, pair.kalam)]
        assert found[0].sqlstate == found[1].sqlstate, each
    pair.both("SELECT k FROM t ORDER BY a, b, c, d, e, f")
    pair.both("UPDATE t SET k = k + 100 WHERE k % 3 = 0")
    pair.both("DELETE FROM t WHERE a = '30 days' RETURNING k")
    pair.kalam.conn.execute(f"SELECT kalam_flush('{pair.kalam.schema}.t'::regclass)")
    pair.both("UPDATE t SET a = a + '1 s' WHERE k % 5 = 0")
    pair.both("DELETE FROM t WHERE f > 0")


def scanned(pair: Pair, query: str) -> list[tuple[str, int]]:
    """Of each scan of ours: how the server went about it, and how many rows it looked at."""
    (found,) = pair.kalam.conn.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}".encode()).fetchall()
    return [(scan["Server Path"], scan["Hot Rows"] + scan["Cold Rows"]) for scan in scans(found[0][0]["Plan"])]


@pytest.mark.parametrize("type_", ["interval", "inet", "cidr", "time", "timetz", "char(5)", "varbit", "macaddr", "oid",
                                   "money", "mood"])
def test_looked_up(pair: Pair, type_: str) -> None:
    """By the whole key: one value, a list, a parameter, an array, the rows of a nested loop; by the first column of
    one; and rows of an order that is the key's. As much hot as cold."""
    pair.setup(f"CREATE TABLE t (k int, v {type_} PRIMARY KEY) {{using}}; CREATE TABLE p (k int, v {type_}, "
               f"PRIMARY KEY (v, k)) {{using}}; CREATE TABLE outside (v {type_})")
    values = distinct_values(pair, type_)
    for place, value in enumerate(values):
        if place == len(values) // 2:
            pair.kalam.conn.execute(f"SELECT kalam_flush('{pair.kalam.schema}.t'::regclass)")
            pair.kalam.conn.execute(f"SELECT kalam_flush('{pair.kalam.schema}.p'::regclass)")
        pair.setup(f"INSERT INTO t VALUES ({place}, {value}); INSERT INTO outside VALUES ({value}); "
                   f"INSERT INTO p SELECT g, {value} FROM generate_series(1, 3) g")
    pair.setup("ANALYZE outside")
    one, two = values[0], values[-1]
    pair.setup(f"PREPARE one AS SELECT k FROM t WHERE v = $1; PREPARE many ({type_}[]) AS SELECT k FROM t WHERE "
               "v = ANY ($1); SET plan_cache_mode = force_generic_plan")
    for query in (f"SELECT k FROM t WHERE v = {one}", f"SELECT k FROM t WHERE v IN ({one}, {two})",
                  f"EXECUTE one ({two})", f"EXECUTE many (ARRAY[{one}, NULL, {two}, {one}])",
                  "SELECT k FROM t WHERE v = (SELECT v FROM outside ORDER BY v LIMIT 1)",
                  "SELECT t.k FROM outside o, LATERAL (SELECT * FROM t WHERE t.v = o.v OFFSET 0) t ORDER BY 1",
                  f"UPDATE t SET k = k + 1 WHERE v = {one}", f"SELECT k FROM t WHERE v = {two} FOR UPDATE"):
        pair.both(query)
        if not query.startswith("UPDATE") and "FOR UPDATE" not in query:
            assert [path for path, _ in scanned(pair, query)] == ["key lookup"], query
    for query in (f"SELECT k FROM p WHERE v = {one} ORDER BY k",
                  f"SELECT k FROM p WHERE v = {two} AND k > 1 ORDER BY k"):
        pair.both(query)
        assert [rows for _, rows in scanned(pair, query)] in ([3], [2]), query
        assert "Filter:" not in pair.plan(query)
    pair.setup("DEALLOCATE ALL; RESET plan_cache_mode")
