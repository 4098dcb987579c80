"""Every basic type, written and read by every way there is, byte by byte as an ordinary table has it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from psycopg import sql

from .pair import Pair, Side
from .values import KEYS, LARGE, VALUES, literal

pytestmark = pytest.mark.pg

ROWS = 300  # more than travel as ordinary rows
Bytes = list[list[bytes | None]]


@pytest.fixture
def pair(dsn: str) -> Iterator[Pair]:
    pair = Pair(dsn)
    yield pair
    pair.close()


def raw(side: Side, query: str, *, binary: bool) -> Bytes:
    """The answer as it travels, of a prepared statement."""
    with side.conn.cursor(binary=binary) as cursor:
        result = cursor.execute(query, prepare=True).pgresult
        assert result is not None
        return [[result.get_value(row, col) for col in range(result.nfields)] for row in range(result.ntuples)]


def same(pair: Pair, *queries: str) -> None:
    """In text and in binary; what changes rows is done once."""
    for query in queries:
        for binary in (False, True) if query.startswith("SELECT") else (True,):
            wanted = raw(pair.heap, query, binary=binary)
            assert raw(pair.kalam, query, binary=binary) == wanted, query


# ---------- ways to write ----------
def by_values(side: Side) -> None:
    for k, text in side.conn.execute("SELECT k, format('%L', v::text) FROM source").fetchall():
        side.conn.execute(sql.SQL("INSERT INTO t VALUES ({}, {})").format(sql.Literal(k), sql.SQL(text)))


def by_select(side: Side) -> None:
    side.conn.execute("INSERT INTO t SELECT k, v FROM source")


def by_copy(form: str) -> Callable[[Side], None]:
    def write(side: Side) -> None:
        with side.conn.cursor() as out, out.copy(f"COPY source TO STDOUT (FORMAT {form})") as data:
            chunks = [bytes(chunk) for chunk in data]
        with side.conn.cursor() as into, into.copy(f"COPY t (k, v) FROM STDIN (FORMAT {form})") as copy:
            for chunk in chunks:
                copy.write(chunk)

    return write


def by_update(side: Side) -> None:
    side.conn.execute("INSERT INTO t SELECT k FROM source")
    side.conn.execute("UPDATE t SET v = source.v FROM source WHERE source.k = t.k")


def by_function(side: Side) -> None:
    """One row at a time, by a plan that is kept."""
    side.conn.execute("""DO $$ DECLARE r record; BEGIN
        FOR r IN SELECT * FROM source LOOP INSERT INTO t VALUES (r.k, r.v); END LOOP; END $$""")


WAYS = {
    "values": by_values, "select": by_select, "text copy": by_copy("text"), "binary copy": by_copy("binary"),
    "update": by_update, "function": by_function,
}  # fmt: skip


def make(pair: Pair, type_: str) -> int:
    """`source` on both sides, an ordinary table of NULL and the values, and an empty `t`; the number of rows."""
    rows = [literal(text, type_) for text in VALUES[type_]]
    for side in (pair.heap, pair.kalam):
        side.conn.execute(f"CREATE TABLE source (k int, v {type_})")
        for k, value in enumerate(rows):
            side.conn.execute(f"INSERT INTO source VALUES ({k}, {value})".encode())
        side.conn.execute(f"INSERT INTO source VALUES ({len(rows)}, NULL)")
    pair.setup(f"CREATE TABLE t (k int PRIMARY KEY, v {type_}) {{using}}")
    return len(rows) + 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("type_", VALUES)
def test_values(pair: Pair, type_: str, way: str) -> None:
    rows = make(pair, type_)
    for side in (pair.heap, pair.kalam):
        WAYS[way](side)
    same(pair, "SELECT k, v FROM t ORDER BY k")
    times = ROWS // rows + 1
    for side in (pair.heap, pair.kalam):
        more = f"INSERT INTO source SELECT k + 100 * g, v FROM source, generate_series(1, {times}) g"
        side.conn.execute(f"{more}; DELETE FROM t")
        if way != "values":
            WAYS[way](side)
        else:
            by_select(side)
    same(pair, "SELECT k, v FROM t ORDER BY k", "SELECT v FROM t WHERE k = 3",
         "SELECT k FROM t WHERE v IS NULL ORDER BY k")


@pytest.mark.parametrize("type_", VALUES)
def test_returning(pair: Pair, type_: str) -> None:
    make(pair, type_)
    same(pair, "INSERT INTO t SELECT k, v FROM source RETURNING v, k")
    # the old row came from the server
    same(pair, "UPDATE t SET k = k + 1000 RETURNING k, v", "DELETE FROM t WHERE k < 1010 RETURNING *")


@pytest.mark.parametrize("type_", VALUES)
def test_by_filter(pair: Pair, type_: str) -> None:
    """A value finds itself, as a constant, as a parameter and as another column."""
    if type_ == "json":
        pytest.skip("json has no equality")
    make(pair, type_)
    for side in (pair.heap, pair.kalam):
        by_select(side)
    for text in VALUES[type_]:
        value = literal(text, type_)
        for op in ("=", "<", ">=") if type_ != "jsonb" else ("=",):
            same(pair, f"SELECT k FROM t WHERE v {op} {value} ORDER BY k")
    same(pair, "SELECT s.k, t.k FROM source s JOIN LATERAL (SELECT * FROM t WHERE t.v = s.v OFFSET 0) t ON true "
               "ORDER BY 1, 2")


@pytest.mark.parametrize("type_", LARGE)
def test_large_values(pair: Pair, type_: str) -> None:
    pair.setup(f"CREATE TABLE t (k int PRIMARY KEY, v {type_}) {{using}}")
    pair.setup(f"INSERT INTO t VALUES (0, {LARGE[type_]})")
    pair.setup(f"INSERT INTO t SELECT g, {LARGE[type_]} FROM generate_series(1, 5) g")
    pair.setup("INSERT INTO t SELECT g FROM generate_series(6, 400) g")
    pair.setup("UPDATE t SET v = (SELECT v FROM t WHERE k = 0) WHERE k = 6")
    same(pair, "SELECT k, v FROM t WHERE k < 3 ORDER BY k", "SELECT k, v FROM t ORDER BY k")
    if type_ not in ("json", "jsonb"):
        same(pair, f"SELECT k FROM t WHERE v = {LARGE[type_]} ORDER BY k")


# ---------- keys ----------
@pytest.mark.parametrize("type_", KEYS)
def test_keys(pair: Pair, type_: str) -> None:
    pair.setup(f"CREATE TABLE t (k int, v {type_} PRIMARY KEY) {{using}}")
    for k, text in enumerate(VALUES[type_]):
        pair.both(f"INSERT INTO t VALUES ({k}, {literal(text, type_)})")
    same(pair, "SELECT k, v FROM t ORDER BY v", "SELECT a.k, a.v FROM t a JOIN t b USING (k) ORDER BY a.v DESC")
    for k, text in enumerate(VALUES[type_]):
        value = literal(text, type_)
        same(pair, f"SELECT k, v FROM t WHERE v = {value}", f"UPDATE t SET k = k + 100 WHERE v = {value} RETURNING *")
        if k % 2:
            same(pair, f"DELETE FROM t WHERE v = {value} RETURNING *")
    same(pair, "SELECT k, v FROM t ORDER BY v")
    pair.both("INSERT INTO t VALUES (0, NULL)")


@pytest.mark.parametrize("type_", [name for name, values in KEYS.items() if values])
def test_equal_keys_written_otherwise(pair: Pair, type_: str) -> None:
    """They are duplicates, and what was written first is what is shown."""
    pair.setup(f"CREATE TABLE t (k int, v {type_} PRIMARY KEY) {{using}}")
    for first, second in KEYS[type_]:
        pair.both("DELETE FROM t")
        pair.both(f"INSERT INTO t VALUES (1, {literal(first, type_)})")
        pair.both(f"INSERT INTO t VALUES (2, {literal(second, type_)})")
        pair.both(f"INSERT INTO t SELECT 3, {literal(second, type_)} ON CONFLICT DO NOTHING")
        same(pair, f"UPDATE t SET k = 4 WHERE v = {literal(second, type_)} RETURNING *", "SELECT * FROM t ORDER BY k")


# ---------- what a type refuses ----------
@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("varchar(5)", "'123456'"), ("varchar(5)", "'12345 '"), ("numeric(12,4)", "100000000"),
        ("numeric(12,4)", "99999999.99995"), ("numeric(12,4)", "'Infinity'"), ("smallint", "32768"),
        ("real", "'1e39'"), ("double precision", "'1e309'"), ("date", "'5874898-01-01'"), ("jsonb", "'\"\\u0000\"'"),
        ("timestamp", "'294277-01-01'"), ("timestamptz", "'4714-11-23 BC'"), ("uuid", "'x'"), ("bytea", "'\\x0'"),
    ],
)  # fmt: skip
def test_bad_values(pair: Pair, type_: str, value: str) -> None:
    pair.setup(f"CREATE TABLE t (k int PRIMARY KEY, v {type_}) {{using}}")
    pair.both(f"INSERT INTO t VALUES (1, {value})")
    pair.both(f"INSERT INTO t SELECT g, {value} FROM generate_series(1, 500) g")
