"""INSERT, UPDATE, DELETE and COPY against the same statements on ordinary tables; contents compared after each."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from uuid import UUID

import pytest

from .pair import Pair

pytestmark = pytest.mark.pg


@pytest.fixture(params=["shared", "user"])
def pair(dsn: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(dsn, request.param)
    yield pair
    pair.close()


ITEMS = "CREATE TABLE items (id int PRIMARY KEY, n int, t text) {using}"
TEN = "INSERT INTO items SELECT g, g % 3, 'row ' || g FROM generate_series(1, 10) g"


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO items VALUES (11, 1, 'one')",
        "INSERT INTO items VALUES (11, NULL, NULL)",
        "INSERT INTO items (t, id) VALUES ('turned', 11), ('round', 12)",
        "INSERT INTO items VALUES (11, 1, ''), (12, 2, 'naïve ☃ 𝄞'), (13, 3, E'tab\\tand\\nnewline')",
        "INSERT INTO items SELECT id + 100, n, t FROM items",
        "INSERT INTO items SELECT id, n, t FROM items WHERE false",
        "INSERT INTO items VALUES (11, 1, 'a') RETURNING *, id * 2",
        "INSERT INTO items SELECT id + 20, n, upper(t) FROM items ORDER BY id RETURNING id, t",
        "INSERT INTO items VALUES (1, 1, 'again')",
        "INSERT INTO items VALUES (11, 1, 'a'), (1, 1, 'again')",
        "INSERT INTO items VALUES (11, 1, 'a'), (11, 1, 'twice')",
        "INSERT INTO items VALUES (1, 1, 'again') RETURNING id",
        "INSERT INTO items VALUES (NULL, 1, 'no key')",
        "INSERT INTO items VALUES (1, 0, 'x') ON CONFLICT DO NOTHING",
        "INSERT INTO items VALUES (11, 0, 'x') ON CONFLICT DO NOTHING",
        "INSERT INTO items SELECT g, 0, 'x' FROM generate_series(5, 15) g ON CONFLICT DO NOTHING RETURNING id",
        "INSERT INTO items VALUES (20, 0, 'x'), (20, 1, 'y') ON CONFLICT DO NOTHING",
        "INSERT INTO items SELECT 100 + id, (SELECT count(*) FROM items WHERE n >= i.n), t FROM items i",
        "INSERT INTO items SELECT g, CASE WHEN g > 31 THEN (SELECT count(*) FROM items) END"
        " FROM generate_series(30, 35) g",
        "UPDATE items SET t = 'changed' WHERE id = 3",
        "UPDATE items SET n = n + 1",
        "UPDATE items SET n = NULL, t = NULL WHERE n = 1",
        "UPDATE items SET t = t || '!' WHERE t LIKE '%1%'",
        "UPDATE items SET t = 'nobody' WHERE id = 99",
        "UPDATE items SET t = 'never' WHERE 1 = 0",
        "UPDATE items SET t = 'never' WHERE NULL",
        "UPDATE items SET id = id + 100",
        "UPDATE items SET id = 100, t = 'moved' WHERE id = 5",
        "UPDATE items SET id = 1 WHERE id = 2",
        "UPDATE items SET id = NULL WHERE id = 2",
        "UPDATE items SET id = id WHERE id = 2",
        "UPDATE items SET (n, t) = (SELECT 7, 'seven') WHERE id < 4",
        "UPDATE items SET n = 0 WHERE id IN (SELECT id FROM items WHERE n = 2)",
        "UPDATE items SET n = o.id FROM other o WHERE o.ref = items.id",
        "UPDATE items SET t = 'once' FROM other o WHERE items.n = 1 RETURNING items.id, items.t",
        "UPDATE items SET n = n * 10 WHERE id > 7 RETURNING id, n, t",
        "WITH gone AS (DELETE FROM items WHERE n = 1 RETURNING *) INSERT INTO items SELECT id + 50, n, t FROM gone",
        "WITH up AS (UPDATE items SET n = 9 WHERE id = 1 RETURNING id) SELECT * FROM up",
        "WITH a AS (INSERT INTO items VALUES (40, 0, 'a')), b AS (INSERT INTO items VALUES (41, 0, 'b'))"
        " UPDATE items SET n = 5 WHERE id = 1",
        "DELETE FROM items WHERE id = 4",
        "DELETE FROM items WHERE n = 2 RETURNING *",
        "DELETE FROM items WHERE t = 'row 9' RETURNING id",
        "DELETE FROM items USING other o WHERE o.ref = items.id",
        "DELETE FROM items USING other o, other p WHERE o.ref = items.id RETURNING items.id",
        "DELETE FROM items WHERE 1 = 0",
        "DELETE FROM items WHERE EXISTS (SELECT 1 FROM items i WHERE i.n = items.n AND i.id < items.id)",
        "DELETE FROM items",
    ],
)
def test_statement(pair: Pair, sql: str) -> None:
    pair.setup(ITEMS)
    pair.setup("CREATE TABLE other (id int PRIMARY KEY, ref int) {using}")
    pair.both(TEN)
    pair.both("INSERT INTO other VALUES (1, 3), (2, 4), (3, 77)")
    pair.both(sql)
    pair.both("SELECT count(*), sum(id), sum(n) FROM items")


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_batches_of_any_size_hold_their_own_rows(pair: Pair, size: int) -> None:
    pair.setup(ITEMS)
    pair.kalam.conn.execute(f"ALTER FOREIGN TABLE items OPTIONS (ADD batch_size '{size}')")
    pair.both("INSERT INTO items SELECT g, g, repeat(chr(97 + g % 26), g % 11) FROM generate_series(1, 100) g")
    pair.both("UPDATE items SET t = t || id, n = -n WHERE id % 2 = 0")
    pair.both("DELETE FROM items WHERE id % 3 = 0")
    pair.both("INSERT INTO items SELECT g, g, NULL FROM generate_series(1, 5) g ON CONFLICT DO NOTHING")
    pair.both("UPDATE items SET id = id + 1000")


@pytest.mark.parametrize("place", [1, 4, 5, 8, 9])
def test_error_of_a_batch_that_is_under_way(pair: Pair, place: int) -> None:
    """Batches of two are sent without waiting for the one before: its error must come before the statement's end."""
    pair.setup(ITEMS)
    pair.kalam.conn.execute("ALTER FOREIGN TABLE items OPTIONS (ADD batch_size '2')")
    pair.both(f"INSERT INTO items VALUES ({place}, 0, 'there')")
    fails = "INSERT INTO items SELECT g, g, 'x' FROM generate_series(1, 9) g"
    assert pair.both(fails).sqlstate == "23505"
    pair.both("BEGIN")
    pair.both("SAVEPOINT a")
    assert pair.both(fails).sqlstate == "23505"
    pair.both("ROLLBACK TO a")
    pair.both("INSERT INTO items SELECT g, g, 'y' FROM generate_series(11, 19) g")
    assert pair.copy("COPY items (id) FROM STDIN", [(n,) for n in range(29, 0, -1)]).sqlstate == "23505"
    pair.both("ROLLBACK TO a")
    pair.copy("COPY items (id) FROM STDIN", [(n,) for n in range(31, 38)])
    pair.both("COMMIT")


def test_more_rows_than_a_chunk_or_a_batch(pair: Pair) -> None:
    pair.setup(ITEMS)
    pair.both("INSERT INTO items SELECT g, g % 100, md5(g::text) FROM generate_series(1, 25000) g")
    pair.both("UPDATE items SET n = n + id WHERE n < 60")
    pair.both("DELETE FROM items WHERE n % 2 = 1")


def test_wide_rows_go_out_before_they_fill_memory(pair: Pair) -> None:
    pair.setup(ITEMS)
    pair.both("INSERT INTO items SELECT g, g, repeat(md5(g::text), 10000) FROM generate_series(1, 30) g")
    pair.both("UPDATE items SET t = t || 'x' WHERE id > 3")


def test_values_from_a_toasted_heap_column(pair: Pair) -> None:
    pair.setup(ITEMS)
    pair.setup("CREATE TABLE big (t text)")
    pair.both("INSERT INTO big SELECT string_agg(md5(g::text), '') FROM generate_series(1, 5000) g")
    pair.both("INSERT INTO items SELECT 1, 1, t FROM big")
    pair.both("INSERT INTO items SELECT g, 1, t FROM big, generate_series(2, 4) g")


EVERY = """CREATE TABLE every (id bigint PRIMARY KEY, b boolean, s smallint, i int, r real, d double precision,
    n numeric, m numeric(10, 2), t text, v varchar(5), y bytea, da date, ts timestamp, tz timestamptz, u uuid,
    j json, jb jsonb) {using}"""
VALUES = [
    (1, *[None] * 16),
    (
        2,
        True,
        -32768,
        2147483647,
        1.5,
        -0.0,
        Decimal("1.000"),
        Decimal("12345678.90"),
        "text",
        "five5",
        b"\x00\xff",
        dt.date(2024, 2, 29),
        dt.datetime(2024, 2, 29, 12, 30, 15, 123456),
        dt.datetime(2024, 2, 29, 12, 30, 15, 123456, tzinfo=dt.UTC),
        UUID(int=2**127 + 5),
        '{"a": 1}',
        '{"a": [1, null]}',
    ),
]


def test_every_basic_type_by_parameter(pair: Pair) -> None:
    pair.setup(EVERY)
    marks = ", ".join(["%s"] * 17)
    for row in VALUES:
        pair.both(f"INSERT INTO every VALUES ({marks})", row)


def test_extremes_both_ways(pair: Pair) -> None:
    """One row alone (parameters), then many (Arrow): both forms must hold the same values."""
    pair.setup(EVERY)
    pair.setup(EVERY.replace("every", "source").replace(" {using}", ""))
    source = """INSERT INTO source VALUES
        (1, false, 32767, -2147483648, 'NaN', 'NaN', 'NaN', -99999999.99, '', '', '', 'infinity', 'infinity',
         'infinity', '00000000-0000-0000-0000-000000000000', 'null', 'null'),
        (2, true, -32768, 0, 'Infinity', '-Infinity', '-Infinity', 0.00, 'a', 'b', '\\x00', '-infinity', '-infinity',
         '-infinity', 'ffffffff-ffff-ffff-ffff-ffffffffffff', '[]', '{}'),
        (3, true, 1, 1, '-0', '-0', 1e-30, 0.10, E'\\u2603', 'é', '\\xdeadbeef', '4713-01-01 BC', '4713-01-01 BC',
         '294276-12-31 23:59:59.999999 UTC', gen_random_uuid(), '{"k": 1.10}', '{"k": 1.10, "a": 1e5}'),
        (9223372036854775807, true, 1, 1, 3.4028235e38, 1.7976931348623157e308,
         12345678901234567890123456789012345678.123456789, 1.5, 'x', 'y', 'z', '5874897-12-31',
         '294276-12-31 23:59:59.999999', '4714-11-24 00:00:00+00 BC', gen_random_uuid(), '1', '1')"""
    pair.heap.conn.execute(source)
    pair.kalam.conn.execute(f"INSERT INTO source SELECT * FROM {pair.heap.schema}.source")
    shown = (
        "SELECT t::text FROM (SELECT id, b, s, i, r, d, n, m, t, v, y, da, ts, tz, u, j, jb FROM every) t ORDER BY id"
    )
    for ids in ["id = 1", "id = 2", "id IN (3, 9223372036854775807)"]:
        for side in (pair.heap, pair.kalam):
            side.conn.execute(f"INSERT INTO every SELECT * FROM source WHERE {ids}")
        assert pair.kalam.run(shown) == pair.heap.run(shown)
    for side in (pair.heap, pair.kalam):
        side.conn.execute("UPDATE every SET d = d, n = n, ts = ts, tz = tz, da = da, jb = jb, m = m + 1")
    assert pair.kalam.run(shown) == pair.heap.run(shown)


@pytest.mark.parametrize("binary", [False, True], ids=["text", "binary"])
@pytest.mark.parametrize("rows", [0, 1, 2, 12_345])
def test_copy(pair: Pair, binary: bool, rows: int) -> None:
    pair.setup(ITEMS)
    data = [(i, i % 7 if i % 5 else None, f"row\t{i}\\ñ") for i in range(rows)]
    form = " (FORMAT binary)" if binary else ""
    outcome = pair.copy(f"COPY items (id, n, t) FROM STDIN{form}", data, ["int4", "int4", "text"] if binary else None)
    assert outcome.count == rows


@pytest.mark.parametrize("place", [0, 1, 5_000, 19_999])
def test_copy_of_a_duplicate_leaves_nothing(pair: Pair, place: int) -> None:
    pair.setup(ITEMS)
    pair.both("INSERT INTO items VALUES (-1, 0, 'there')")
    data = [(i if i != place else -1, i, "x") for i in range(20_000)]
    outcome = pair.copy("COPY items (id, n, t) FROM STDIN", data)
    assert outcome.sqlstate == "23505"


def test_copy_in_a_transaction_is_seen_by_it_and_undone(pair: Pair) -> None:
    pair.setup(ITEMS)
    pair.both("BEGIN")
    pair.copy("COPY items (id, n, t) FROM STDIN", [(i, i, str(i)) for i in range(50)])
    pair.both("UPDATE items SET n = 0 WHERE id < 10")
    pair.both("ROLLBACK")


CHECKED = """CREATE TABLE checked (a int, id int PRIMARY KEY, n int NOT NULL CHECK (n > 0), t varchar(3) DEFAULT 'dft',
    twice int GENERATED ALWAYS AS (n * 2) STORED, CONSTRAINT apart CHECK (a IS DISTINCT FROM n)) {using}"""


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO checked (id, n) VALUES (3, NULL)",
        "INSERT INTO checked (id, n) VALUES (3, 0)",
        "INSERT INTO checked (id, n) SELECT g, 5 - g FROM generate_series(3, 9) g",
        "INSERT INTO checked (id, n, a) VALUES (3, 4, 4)",
        "INSERT INTO checked (id, n, t) VALUES (3, 4, 'long')",
        "INSERT INTO checked (id, n) VALUES (3, 4) RETURNING *",
        "INSERT INTO checked (id, n) VALUES (3, 4), (4, 5)",
        "INSERT INTO checked (id, n, twice) VALUES (3, 4, 5)",
        "UPDATE checked SET n = NULL",
        "UPDATE checked SET n = -n WHERE id = 2",
        "UPDATE checked SET a = n",
        "UPDATE checked SET n = n + 10 RETURNING twice, n, id",
        "UPDATE checked SET n = n + 10",
        "UPDATE checked SET twice = DEFAULT, n = 100 WHERE id = 1",
        "UPDATE checked SET t = DEFAULT",
    ],
)
def test_constraints_defaults_and_generated_columns(pair: Pair, sql: str) -> None:
    pair.setup(CHECKED)
    pair.both("INSERT INTO checked (id, n, t) VALUES (1, 1, 'a'), (2, 2, NULL)")
    pair.both(sql)


def test_copy_checks_constraints(pair: Pair) -> None:
    pair.setup(CHECKED)
    assert pair.copy("COPY checked (id, n) FROM STDIN", [(1, 1), (2, -2)]).sqlstate == "23514"
    assert pair.copy("COPY checked (id, n) FROM STDIN", [(1, 1), (2, None)]).sqlstate == "23502"
    assert pair.copy("COPY checked (id, n) FROM STDIN", [(1, 1), (2, 2)]).count == 2


def test_key_of_several_columns_anywhere(pair: Pair) -> None:
    pair.setup("CREATE TABLE parts (note text, b text, n int, a int, PRIMARY KEY (a, b)) {using}")
    pair.both("INSERT INTO parts SELECT 'n' || g, chr(97 + g % 3), g, g / 3 FROM generate_series(0, 20) g")
    pair.both("UPDATE parts SET note = note || b WHERE n > 10")
    pair.both("UPDATE parts SET b = upper(b) WHERE a = 2")
    pair.both("UPDATE parts SET a = a + 100, b = b || 'x', n = 0 WHERE a = 3")
    pair.both("UPDATE parts SET a = 0, b = 'a' WHERE a = 4 AND b = 'b'")
    pair.both("DELETE FROM parts WHERE b = 'c'")
    pair.both("INSERT INTO parts VALUES ('dup', 'B', 1, 2)")


def test_prepared_statements_with_changing_parameters(pair: Pair) -> None:
    pair.setup(ITEMS)
    batches: list[tuple[str, list[tuple[object, ...]]]] = [
        ("INSERT INTO items VALUES (%s, %s, %s)", [(i, i, f"v{i}") for i in range(12)]),
        ("UPDATE items SET t = %s WHERE id = %s", [(f"u{i}", i) for i in range(0, 12, 2)]),
        ("DELETE FROM items WHERE n = %s", [(i,) for i in range(0, 12, 3)]),
    ]
    for sql, params in batches:
        for values in params:
            for side in (pair.heap, pair.kalam):
                side.conn.execute(sql, values, prepare=True)
    assert pair.kalam.contents() == pair.heap.contents()


def test_executemany_in_a_pipeline(pair: Pair) -> None:
    pair.setup(ITEMS)
    for side in (pair.heap, pair.kalam):
        with side.conn.cursor() as cursor:
            cursor.executemany("INSERT INTO items VALUES (%s, %s, %s)", [(i, i, str(i)) for i in range(50)])
    assert pair.kalam.contents() == pair.heap.contents()


def test_with_check_option(pair: Pair) -> None:
    pair.setup(ITEMS)
    pair.setup("CREATE VIEW small AS SELECT id, n, t FROM items WHERE n < 5 WITH CHECK OPTION")
    pair.both("INSERT INTO small VALUES (1, 1, 'in'), (2, 2, 'in')")
    assert pair.both("INSERT INTO small VALUES (3, 9, 'out')").sqlstate == "44000"
    assert pair.both("INSERT INTO small VALUES (3, 3, 'in'), (4, 9, 'out')").sqlstate == "44000"
    assert pair.both("UPDATE small SET n = 6 WHERE id = 1").sqlstate == "44000"
    pair.both("UPDATE small SET n = 4 WHERE id = 1")
    pair.both("DELETE FROM small WHERE n = 2")


@pytest.mark.parametrize("kind", ["shared", "user"])
def test_update_setting_only_the_version(dsn: str, kind: str) -> None:
    """_seq belongs to the server: what is set is not forwarded, the statement still counts its rows."""
    pair = Pair(dsn, kind, system_columns=True)
    pair.setup(ITEMS)
    pair.both("INSERT INTO items VALUES (1, 1, 'a'), (2, 2, 'b')")
    assert pair.kalam.run("UPDATE items SET _seq = 5").count == 2
    assert pair.kalam.run("INSERT INTO items (id, _seq) VALUES (3, 77) RETURNING id, _seq").rows == [(3, None)]
    assert pair.kalam.run("SELECT count(*) FROM items WHERE _seq IN (5, 77)").rows == [(0,)]
    pair.heap.conn.execute("INSERT INTO items VALUES (3)")
    assert pair.kalam.contents() == pair.heap.contents()
    pair.close()


def test_explain_shows_what_is_sent(pair: Pair) -> None:
    pair.setup(ITEMS)

    def plan(sql: str) -> str:
        return "\n".join(str(row[0]) for row in pair.kalam.run(f"EXPLAIN (VERBOSE, COSTS OFF) {sql}").rows or [])

    name = f'"{pair.kalam.schema}"."items"'
    assert f'INSERT INTO {name} ("id", "n", "t") VALUES ($1, $2, $3)' in plan("INSERT INTO items VALUES (1, 2, 'x')")
    assert f'INSERT INTO {name} ("id", "n", "t") FROM ARROW $1' in plan("INSERT INTO items VALUES (1), (2)")
    assert f'UPDATE {name} SET ("t") FROM ARROW $1 KEY ("id"' in plan("UPDATE items SET t = random()::text")
    assert f'DELETE FROM {name} FROM ARROW $1 KEY ("id"' in plan("DELETE FROM items WHERE random() < 2")
    for empty in ("UPDATE items SET t = 'x' WHERE 1 = 0", "DELETE FROM items WHERE false"):
        assert plan(empty)
    pair.both("SELECT * FROM items")
