"""Settings of a session change how values look, never what they are; nor does the database's encoding."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.postgres import Postgres
from support.server import KalamServer

from .ddl import Session
from .pair import Pair

pytestmark = pytest.mark.pg

SETTINGS = [
    "TimeZone = 'America/St_Johns'",
    "TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'German, DMY'",
    "DateStyle = 'SQL, MDY'",
    "DateStyle = 'Postgres, DMY'",
    "DateStyle = 'ISO, YMD'; SET IntervalStyle = 'iso_8601'",
    "IntervalStyle = 'sql_standard'",
    "bytea_output = 'escape'",
    "extra_float_digits = 0",
    "extra_float_digits = -15",
    "extra_float_digits = 3",
    "standard_conforming_strings = off; SET escape_string_warning = off",
    "array_nulls = off",
    "transform_null_equals = on",
    "client_encoding = 'LATIN1'",
    "kalam.busy_poll = 0",
    "kalam.busy_poll = 10000",
    "lc_numeric = 'C.UTF-8'; SET lc_monetary = 'C.UTF-8'",
]

ALL = """CREATE TABLE t (id int PRIMARY KEY, d double precision, r real, y bytea, da date, ts timestamp, tz timestamptz,
    n numeric, s text, u uuid, jb jsonb) {using}"""
ROWS = """INSERT INTO t SELECT g, 1 / (g + 0.7)::float8, 1 / (g + 0.7)::float8, decode(lpad(to_hex(g), 8, '0'), 'hex'),
    '2024-02-28'::date + g, '2024-03-30 23:59:59.999999'::timestamp + g * interval '1 hour 1 us',
    '2024-03-10 01:59:59.5+00'::timestamptz + g * interval '17 min', g / 7.0, 'é' || g || '''' || chr(92),
    lpad(to_hex(g), 32, '0')::uuid, to_jsonb('2024-03-10 01:59:59.5+00'::timestamptz)
    FROM generate_series(1, 400) g"""
QUERIES = [
    "SELECT t::text FROM t ORDER BY id",
    "SELECT t::text FROM t WHERE id = 9",
    "SELECT id FROM t WHERE tz < '2024-03-12 10:00' ORDER BY id",
    "SELECT id FROM t WHERE tz > '01/02/2024 04:05:06' ORDER BY id",
    "SELECT id FROM t WHERE da = '01.03.2024' OR da = '2024-03-05' ORDER BY id",
    "SELECT id FROM t WHERE da::timestamp <= ts AND da IN ('2024-03-01', '03/04/2024') ORDER BY id",
    "SELECT id FROM t WHERE y = '\\x00000007' OR y = E'\\\\000\\\\000\\\\000\\\\010' ORDER BY id",
    "SELECT id FROM t WHERE d = (SELECT d FROM t WHERE id = 33)",
    "SELECT id FROM t WHERE d = 0.5882352941176471 OR r = 0.5882353 ORDER BY id",
    "SELECT id FROM t WHERE s = 'é5''' || chr(92) OR u = '00000000000000000000000000000011' ORDER BY id",
    "SELECT id FROM t WHERE s = NULL",
    "SELECT id FROM t WHERE n = 1 / 7.0 OR n >= 57 ORDER BY id",
    "SELECT min(tz), max(ts), sum(n) FROM t",
]  # fmt: skip


@pytest.fixture
def pair(dsn: str) -> Iterator[Pair]:
    pair = Pair(dsn)
    yield pair
    for side in (pair.heap, pair.kalam):
        side.conn.execute("RESET ALL")
    pair.close()


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(pair: Pair, setting: str) -> None:
    pair.setup(ALL)
    pair.setup(ROWS)
    for side in (pair.heap, pair.kalam):
        side.conn.execute(f"SET {setting}")
    for query in QUERIES:
        wanted = pair.heap.run(f"SELECT q::text FROM ({query}) q")
        assert pair.kalam.run(f"SELECT q::text FROM ({query}) q") == wanted, query
    for side in (pair.heap, pair.kalam):  # what is written under it
        side.conn.execute("INSERT INTO t (id, tz, da, d, y) VALUES (1000, '03/04/05 12:30', '03/04/05', 0.1, 'ab')")
        side.conn.execute("INSERT INTO t SELECT id + 2000, d, r, y, da, ts, tz, n, s, u, jb FROM t WHERE id < 1000")
        side.conn.execute("UPDATE t SET ts = tz, tz = ts WHERE id % 3 = 0")
        side.conn.execute("RESET ALL")
        side.conn.execute(f"SET search_path = {side.schema}")
    assert pair.kalam.run(QUERIES[0]) == pair.heap.run(QUERIES[0])


def test_change_between_statements_of_a_kept_plan(pair: Pair) -> None:
    pair.setup(ALL)
    pair.setup(ROWS)
    pair.setup("PREPARE q(text) AS SELECT id FROM t WHERE tz < $1::timestamptz AND da < '2024-05-02' ORDER BY id")
    for zone in ("UTC", "Asia/Kathmandu", "America/St_Johns", "UTC", "Asia/Tokyo", "UTC", "Europe/Berlin"):
        for side in (pair.heap, pair.kalam):
            side.conn.execute(f"SET TimeZone = '{zone}'")
        assert pair.both("EXECUTE q('2024-03-10 18:30')").rows


# ---------- a database that is not UTF-8 ----------
@pytest.fixture
def latin(pg: Postgres, server: KalamServer) -> Iterator[str]:
    with pg.connect() as conn:
        conn.execute("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
    with pg.connect("latin") as conn:
        conn.execute("CREATE EXTENSION pg_kalam")
        conn.execute(
            f"CREATE SERVER kalam_server FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{server.port}')"
        )
    yield pg.dsn("latin")
    with pg.connect() as conn:
        conn.execute("DROP DATABASE latin WITH (FORCE)")


def test_latin1_database(latin: str) -> None:
    pair = Pair(latin)
    pair.setup('CREATE TABLE "Ärger" (id int PRIMARY KEY, "größe" text, v varchar(3), j json, jb jsonb) {using}')
    pair.both("""INSERT INTO "Ärger" VALUES (1, 'é', 'éüÿ', '{"é": "ü"}', '{"é": "ü"}')""")
    pair.both("""INSERT INTO "Ärger" VALUES (2, '\xa0', 'x', '"\\u00e9"', '"\\u00e9"')""")
    pair.both("""INSERT INTO "Ärger" VALUES (3, 'x', 'éüÿé')""")
    pair.both("""INSERT INTO "Ärger" SELECT g, repeat(chr(g), g), chr(g), '"é"' FROM generate_series(161, 255) g""")
    pair.both("""INSERT INTO "Ärger" SELECT g, 'é' || g FROM generate_series(1000, 1400) g""")
    pair.both("""UPDATE "Ärger" SET "größe" = "größe" || 'ß' WHERE "größe" = 'é' OR v = 'éüÿ' RETURNING id, "größe" """)
    pair.copy('COPY "Ärger" (id, "größe") FROM STDIN', [(5000, "ñ"), (5001, "\x7f")])
    shown = 'SELECT t::text FROM (SELECT id, "größe", v, j, jb FROM "Ärger") t'
    for condition in ("true", "\"größe\" > 'é'", "\"größe\" = 'éß'", "\"größe\" IN ('éß', 'ñ', 'þ')", "v < 'ÿ'"):
        query = f"{shown} WHERE id IN (SELECT id FROM \"Ärger\" WHERE {condition}) ORDER BY id"
        assert pair.kalam.run(query) == pair.heap.run(query), condition
        assert pair.kalam.run(query).rows
    duplicate = pair.both("""INSERT INTO "Ärger" VALUES (1, 'é')""")
    assert duplicate.sqlstate == "23505"
    pair.setup('CREATE TABLE words (w text PRIMARY KEY) {using}')
    pair.both("INSERT INTO words VALUES ('né')")
    assert pair.both("INSERT INTO words VALUES ('né')").detail == "Key (w)=(né) already exists."
    pair.close()


def test_text_that_a_latin1_database_cannot_hold(latin: str, db: Session, ns: str) -> None:
    """The same error as a client's text would have, and the session goes on."""
    db(f"CREATE TABLE {ns}.t (id int PRIMARY KEY, w text) USING kalamdb")
    db(f"INSERT INTO {ns}.t SELECT g, 'é' FROM generate_series(1, 300) g")
    db(f"INSERT INTO {ns}.t VALUES (0, '☃')")
    there = Session(latin)
    there(f"CREATE FOREIGN TABLE t (id int OPTIONS (key '1'), w text) SERVER kalam_server "
          f"OPTIONS (namespace '{ns}', \"table\" 't')")
    for query in ("SELECT w FROM t WHERE id = 0", "SELECT max(w) FROM t",
                  "UPDATE t SET id = -1 WHERE id = 0 RETURNING w", "SELECT id, w FROM t WHERE id < 10",
                  f"SELECT kalam_exec('SELECT w FROM {ns}.t WHERE id = 0')"):
        there.fails(query, "22P05", "LATIN1")
    assert there("SELECT w FROM t WHERE id = 1") == [("é",)]
    assert there("SELECT count(w) FROM t") == [(301,)]  # the text stays where it is
    bytes_of = "octet_length({0}), bit_length({0}), md5({0}), ascii({0}), length({0})"
    assert there(f"SELECT {bytes_of.format('w')} FROM t WHERE id = 1 GROUP BY w") == there(
        f"SELECT {bytes_of.format(chr(39) + 'é' + chr(39))}")
    there.fails("SELECT count(*) FROM t WHERE octet_length(w) = 1", "22P05", "LATIN1")
    assert there("SELECT count(*) FROM t WHERE id > 0 AND octet_length(w) = 1") == [(300,)]
    assert there("SELECT count(*), max(w) FROM t WHERE id > 0") == [(300, "é")]
    # what is wrong is told all the same
    copy = f"SELECT kalam_exec('INSERT INTO {ns}.words SELECT w, w FROM {ns}.t WHERE id = 0')"
    db(f"CREATE TABLE {ns}.words (w text PRIMARY KEY, x text) USING kalamdb")
    there(copy)
    there.fails(copy, "23505", "unique constraint", "(w)=(?)")
    there("DELETE FROM t WHERE id = 0")
    there.close()
    assert db.value(f"SELECT count(*) FROM {ns}.t") == 300
