"""Every type in one wide table: written and read in each way, hot and cold, byte by byte as a heap table has it.

A column for each type, a row for each value; columns with fewer values begin again, and one row is NULL throughout.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg import pq

from .pair import Pair, Side
from .values import KEPT, MADE, VALUES, literal

pytestmark = pytest.mark.pg

TYPES = {**VALUES, **KEPT}
NAMES = {f"c{place}": type_ for place, type_ in enumerate(TYPES)}
LISTED = ", ".join(NAMES)
MANY = 20  # copies of the rows, more than travel as ordinary rows

#: shows values in other forms than those in which they travel
SESSION = "SET TimeZone = 'Asia/Kolkata'; SET bytea_output = 'escape'; SET IntervalStyle = 'iso_8601'"
PORTABLE = ("SET TimeZone = 'UTC'; SET bytea_output = 'hex'; SET IntervalStyle = 'postgres'; SET lc_monetary = 'C'")

Bytes = list[list[bytes | None]]


@pytest.fixture(scope="module")
def made(module_dsn: str) -> None:
    with psycopg.connect(module_dsn, autocommit=True) as conn:
        conn.execute(MADE)


@pytest.fixture
def pair(dsn: str, made: None) -> Iterator[Pair]:
    pair = Pair(dsn)
    body = ", ".join(f"{name} {type_}" for name, type_ in NAMES.items())
    pair.setup(f"CREATE TABLE source (k int, {body})")
    pair.setup(f"CREATE TABLE t (k int PRIMARY KEY, {body}) {{using}}")
    count = max(map(len, TYPES.values()))
    rows = [", ".join([str(k), *(literal(texts[k % len(texts)], type_) for type_, texts in TYPES.items())])
            for k in range(count)]
    rows.append(", ".join([str(count), *(f"NULL::{type_}" for type_ in TYPES)]))
    for side in (pair.heap, pair.kalam):
        for row in rows:  # one by one: of many rows PostgreSQL would make one type
            side.conn.execute(f"INSERT INTO source VALUES ({row})".encode())
        side.conn.execute(SESSION)
    yield pair
    pair.close()


def raw(side: Side, query: str, *, binary: bool) -> Bytes:
    with side.conn.cursor(binary=binary) as cursor:
        result = cursor.execute(query.encode(), prepare=True).pgresult
        assert result is not None
        return [[result.get_value(row, col) for col in range(result.nfields)] for row in range(result.ntuples)]


def same_rows(pair: Pair, query: str, *, binary: bool = True) -> None:
    wanted, found = (raw(side, query, binary=binary) for side in (pair.heap, pair.kalam))
    assert len(found) == len(wanted), query
    for one, two in zip(wanted, found, strict=True):
        for name, first, second in zip(["k", *NAMES], one, two, strict=False):
            assert second == first, (NAMES.get(name), query)


# ---------- ways to write ----------
def by_values(side: Side) -> None:
    rows = side.conn.execute("SELECT k, " + ", ".join(f"format('%L', {name})" for name in NAMES)
                             + " FROM source").fetchall()
    for k, *cells in rows:
        texts = (f"{cell}::{type_}" for cell, type_ in zip(cells, TYPES, strict=True))
        side.conn.execute(f"INSERT INTO t VALUES ({k}, {', '.join(texts)})".encode())


def by_select(side: Side) -> None:
    side.conn.execute("INSERT INTO t SELECT * FROM source")


def by_copy(form: str) -> Callable[[Side], None]:
    def write(side: Side) -> None:
        with side.conn.cursor() as out, out.copy(f"COPY source TO STDOUT (FORMAT {form})") as data:
            chunks = [bytes(chunk) for chunk in data]
        with side.conn.cursor() as into, into.copy(f"COPY t (k, {LISTED}) FROM STDIN (FORMAT {form})") as copy:
            for chunk in chunks:
                copy.write(chunk)

    return write


def by_parameters(form: int) -> Callable[[Side], None]:
    """A prepared statement, with values as the type's send or output function writes them."""

    def write(side: Side) -> None:
        oids = [23, *(side.conn.execute("SELECT %s::regtype::oid", [type_]).fetchone()[0]  # type: ignore[index]
                      for type_ in TYPES)]
        marks = ", ".join(f"${place}" for place in range(1, len(oids) + 1))
        pg = side.conn.pgconn
        assert pg.prepare(b"", f"INSERT INTO t VALUES ({marks})".encode(), oids).status == pq.ExecStatus.COMMAND_OK
        for row in raw(side, "SELECT * FROM source", binary=form == 1):
            result = pg.exec_prepared(b"", row, [form] * len(row))  # type: ignore[arg-type]  # None is NULL
            assert result.status == pq.ExecStatus.COMMAND_OK, result.error_message

    return write


def by_update(side: Side) -> None:
    side.conn.execute("INSERT INTO t SELECT k FROM source")
    sets = ", ".join(f"{name} = s.{name}" for name in NAMES)
    side.conn.execute(f"UPDATE t SET {sets} FROM source s WHERE s.k = t.k".encode())


def by_server(side: Side) -> None:
    """By the server's own SQL, where that is the table's; values in their portable forms."""
    if not side.using:
        return by_select(side)
    side.conn.execute(PORTABLE)
    texts = ", ".join(f"format('%L', {name})" for name in NAMES)
    for row in side.conn.execute(f"SELECT k::text, {texts} FROM source".encode()).fetchall():
        sql = f"INSERT INTO {side.schema}.t VALUES ({', '.join(row)})"
        side.conn.execute("SELECT kalam_exec(%s)", [sql.replace(" E'", " '").replace("\\\\", "\\")])
    side.conn.execute(SESSION)
    return None


WAYS = {
    "values": by_values, "select": by_select, "text copy": by_copy("text"), "binary copy": by_copy("binary"),
    "text parameters": by_parameters(0), "binary parameters": by_parameters(1), "update": by_update,
    "server SQL": by_server,
}  # fmt: skip


# ---------- ways to read ----------
def copied(side: Side, form: str) -> bytes:
    with side.conn.cursor() as out, out.copy(f"COPY (SELECT k, {LISTED} FROM t ORDER BY k) TO STDOUT (FORMAT {form})"
                                             .encode()) as data:
        return b"".join(bytes(chunk) for chunk in data)


def read_all(pair: Pair) -> None:
    same_rows(pair, f"SELECT k, {LISTED} FROM t ORDER BY k")
    same_rows(pair, f"SELECT k, {LISTED} FROM t ORDER BY k", binary=False)
    for form in ("text", "binary"):
        assert copied(pair.kalam, form) == copied(pair.heap, form)


def read_otherwise(pair: Pair) -> None:
    """By a cursor, by lookups of a nested loop, and by what is left of a row when it is changed."""
    for side in (pair.heap, pair.kalam):
        side.conn.execute(f"BEGIN; DECLARE c CURSOR FOR SELECT k, {LISTED} FROM t ORDER BY k".encode())
    same_rows(pair, "FETCH 7 FROM c")
    same_rows(pair, "FETCH ALL FROM c")
    for side in (pair.heap, pair.kalam):
        side.conn.execute("COMMIT")
    same_rows(pair, f"SELECT x.k, {', '.join('x.' + name for name in NAMES)} FROM source s, "
                    "LATERAL (SELECT * FROM t WHERE t.k = s.k OFFSET 0) x ORDER BY 1")
    same_rows(pair, f"UPDATE t SET k = k + 1000 WHERE k = 3 RETURNING k, {LISTED}")
    same_rows(pair, f"DELETE FROM t WHERE k = 1003 RETURNING k, {LISTED}")
    same_rows(pair, f"INSERT INTO t SELECT * FROM source WHERE k = 3 RETURNING k, {LISTED}")


def read_by_server(pair: Pair) -> None:
    """What the server's own SQL shows, read by PostgreSQL."""
    kalam = pair.kalam
    answer = kalam.conn.execute("SELECT kalam_exec(%s)", [f"SELECT * FROM {kalam.schema}.t ORDER BY k"]).fetchall()
    shown = json.loads(answer[0][0], parse_float=str, parse_int=str)
    pair.heap.conn.execute(PORTABLE)
    for name, type_ in NAMES.items():
        if type_ in ("json", "jsonb"):  # which stand there as json
            continue
        wanted = pair.heap.conn.execute(
            f"SELECT CASE num_nulls({name}) WHEN 0 THEN format('%s', {name}) END FROM t ORDER BY k".encode()).fetchall()
        texts = [{True: "t", False: "f"}.get(row[name], row[name]) for row in shown]
        assert texts == [text for text, in wanted], type_
    pair.heap.conn.execute(SESSION)


@pytest.mark.parametrize("way", WAYS)
def test_written_and_read(pair: Pair, way: str) -> None:
    for side in (pair.heap, pair.kalam):
        WAYS[way](side)
    read_all(pair)
    read_otherwise(pair)
    if way in ("select", "server SQL"):
        read_by_server(pair)
    pair.kalam.conn.execute(f"SELECT kalam_flush('{pair.kalam.schema}.t'::regclass)")
    read_all(pair)
    read_otherwise(pair)
    if way not in ("select", "text copy", "binary copy", "update"):
        return
    for side in (pair.heap, pair.kalam):  # so many that they travel as record batches
        side.conn.execute(f"INSERT INTO source SELECT k + 100 * g, {LISTED} FROM source, generate_series(1, {MANY}) g; "
                          "DELETE FROM t".encode())
        WAYS[way](side)
    read_all(pair)
    if way == "select":
        pair.kalam.conn.execute(f"SELECT kalam_flush('{pair.kalam.schema}.t'::regclass)")
        read_all(pair)


# ---------- comparing ----------
def questions(name: str, type_: str) -> Iterator[str]:
    """Filters by each operator, sorting, grouping and joining; where a type has none of it, both say so."""
    texts = TYPES[type_]
    for op in ("=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM"):
        yield f"SELECT k FROM t WHERE {name} {op} {literal(texts[len(texts) // 2], type_)} ORDER BY k"
    listed = ", ".join(literal(text, type_) for text in texts[:3])
    yield f"SELECT k FROM t WHERE {name} IN ({listed}) ORDER BY k"
    yield f"SELECT k FROM t WHERE {name} BETWEEN {literal(texts[0], type_)} AND {literal(texts[-1], type_)} ORDER BY k"
    yield f"SELECT k FROM t ORDER BY {name}, k"
    yield f"SELECT k FROM t ORDER BY {name} DESC NULLS LAST, k LIMIT 5"
    yield f"SELECT count(*) FROM t GROUP BY {name} ORDER BY 1"
    yield f"SELECT count(DISTINCT {name}), count(*) FROM t ORDER BY 1"
    yield f"SELECT count(*) FROM (SELECT DISTINCT {name} FROM t) x ORDER BY 1"
    yield f"SELECT a.k, b.k FROM t a JOIN t b USING ({name}) ORDER BY 1, 2"
    yield f"SELECT t.k, s.k FROM t JOIN source s USING ({name}) ORDER BY 1, 2"
    for word in ("min", "max"):
        yield (f"SELECT {word}({name}) = (SELECT {word}({name}) FROM source), count(DISTINCT {name}) FROM t "
               "ORDER BY 1")


def test_compared(pair: Pair) -> None:
    for side in (pair.heap, pair.kalam):
        for name, type_ in NAMES.items():
            if type_ in ("timestamp", "timestamptz"):  # later ones are not computed with: docs/protocol.md
                side.conn.execute(f"UPDATE source SET {name} = NULL WHERE {name} > '294246-01-01' AND "
                                  f"{name} < 'infinity'".encode())
        by_select(side)
    for name, type_ in NAMES.items():
        for query in questions(name, type_):
            wanted, found = pair.heap.run(query), pair.kalam.run(query)
            assert (found.rows, found.sqlstate, found.message) == (wanted.rows, wanted.sqlstate, wanted.message), query


#: types kept as text whose order the server knows, and those of which it knows what is equal
ORDERED = ["time", "timetz", "interval", "char(5)", "bpchar", "bit(5)", "varbit", "inet", "cidr", "macaddr", "macaddr8"]
EQUAL = ['"char"', "name", "oid", "money", "pg_lsn", "xid8", "mood"]
#: that are compared in two tiers at once, too
HALF = ["time", "timetz", "interval", "bpchar", "varbit", "inet", "cidr", "mood"]
LEAST = ("time", "interval", "bpchar", "inet")


def conditions(name: str, type_: str) -> list[str]:
    texts, cast = TYPES[type_], "bpchar" if type_ == "char(5)" else type_
    one, two = literal(texts[len(texts) // 2], cast), literal(texts[0], cast)
    listed = ", ".join(literal(text, cast) for text in texts[:3])
    array = "ARRAY[" + ", ".join([listed, f"NULL::{cast}"] * 6) + "]"  # so many that it is one parameter
    ops = ["=", "<>", "IS DISTINCT FROM", "IS NOT DISTINCT FROM", *(["<", "<=", ">", ">="] if type_ in ORDERED else [])]
    made = [f"{name} {op} {one}" for op in ops] + [
        f"{name} IN ({listed}, NULL)", f"{name} NOT IN ({listed})", f"{name} = ANY ({array})",
        f"{name} <> ALL ({array}) OR k = 3", f"{name} = ANY (ARRAY(SELECT {name} FROM source WHERE k < 4))",
        f"{name} = (SELECT {name} FROM source WHERE k = 1)",
        f"COALESCE({name}, {one}) = {one} AND NULLIF({name}, {two}) IS NOT NULL"]
    if type_ in ORDERED:
        made += [f"{name} BETWEEN {two} AND {one}", f"{name} < ANY ({array})", f"{name} >= ALL ({array[:6]}{listed}])"]
    return made


def sent_questions(name: str, type_: str) -> Iterator[str]:
    """What is sent whole, beside conditions."""
    yield (f"SELECT a.k, b.k, rank() OVER (PARTITION BY b.{name} ORDER BY a.k) FROM t a LEFT JOIN (SELECT k, {name} "
           f"FROM t WHERE k % 2 = 0) b ON a.{name} = b.{name} WHERE EXISTS (SELECT FROM t c WHERE a.{name} = c.{name} "
           "AND a.k < c.k) ORDER BY a.k, b.k")
    yield f"SELECT count(*), count({name}), count(DISTINCT k) FROM t GROUP BY {name} ORDER BY 1, 2"
    yield f"SELECT count(DISTINCT {name}), count({name}) FROM t ORDER BY 1"
    yield f"SELECT count(*), GROUPING({name}) FROM t GROUP BY ROLLUP ({name}, k % 2) ORDER BY 1, 2"
    if type_ in ORDERED:
        yield f"SELECT k FROM t ORDER BY {name} DESC NULLS LAST, k LIMIT 15"
        yield (f"SELECT a.k, b.k, rank() OVER (ORDER BY a.{name} DESC) FROM t a JOIN t b ON a.{name} <= b.{name} "
               f"ORDER BY a.{name} DESC, b.{name}, a.k, b.k")
        yield f"SELECT DISTINCT ON ({name}) {name} IS NULL, k FROM t ORDER BY {name}, k DESC"
    if type_ in LEAST:
        yield (f"SELECT k % 3, min({name}) = (SELECT min({name}) FROM source WHERE k % 3 = 0), max({name})::text "
               "FROM t WHERE k < 7 GROUP BY 1 ORDER BY 1")


@pytest.fixture
def comparing(dsn: str, made: None) -> Iterator[Pair]:
    """More rows than values, so that values are equal."""
    pair = Pair(dsn)
    names = {name: type_ for name, type_ in NAMES.items() if type_ in (*ORDERED, *EQUAL)}
    body = ", ".join(f"{name} {type_}" for name, type_ in names.items())
    for table in ("CREATE TABLE source (k int, body)", "CREATE TABLE t (k int PRIMARY KEY, body) {using}"):
        pair.setup(table.replace("body", body))
    for side in (pair.heap, pair.kalam):
        for k in range(16):
            cells = ", ".join("NULL" if k == 13 else literal(TYPES[type_][k % len(TYPES[type_])], type_)
                              for type_ in names.values())
            side.conn.execute(f"INSERT INTO source VALUES ({k}, {cells})".encode())
        side.conn.execute("ANALYZE source")
    yield pair
    pair.close()


@pytest.mark.parametrize("tier", ["hot", "half"])
def test_compared_on_the_server(comparing: Pair, tier: str) -> None:
    """By the store and by the query engine: nothing is left to do here, and both come to the same, hot and cold."""
    pair, local = comparing, []
    for part in (0, 1):
        for side in (pair.heap, pair.kalam):
            side.conn.execute(f"INSERT INTO t SELECT * FROM source WHERE k % 2 = {part}")
        if tier == "half" and not part:
            pair.kalam.conn.execute(f"SELECT kalam_flush('{pair.kalam.schema}.t'::regclass)")
    for name, type_ in NAMES.items():
        if type_ not in (HALF if tier == "half" else (*ORDERED, *EQUAL)):
            continue
        asked = conditions(name, type_)
        filters = ", ".join(f"string_agg(k::text, ' ' ORDER BY k) FILTER (WHERE {each})" for each in asked)
        whole = [f"SELECT {filters} FROM t", *sent_questions(name, type_)]
        for query in [*(f"SELECT k FROM t WHERE {each} ORDER BY k" for each in asked), *whole]:
            assert pair.kalam.run(query) == pair.heap.run(query), (type_, query)
            if tier == "hot":
                plan = pair.kalam.conn.execute(f"EXPLAIN {query}".encode()).fetchall()
                if not plan[0][0].startswith("Foreign Scan") or any(row[0].startswith("  Filter") for row in plan):
                    local.append((type_, query))
    assert not local
