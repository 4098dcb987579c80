"""SAMPLE, SHOW COLUMN WIDTHS and SHOW TABLE SIZE, over rows in every tier and of a transaction's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from kalamdb import types
from support.server import KalamServer

from .client import Chunk, Client, Wire, batch


def total(chunk: Chunk) -> int:
    word, rows, total, *_ = chunk.tag.split()
    assert word == "SAMPLE"
    assert int(rows) == len(chunk.rows)
    return int(total)


@pytest.fixture
def t(db: Client, wire: Wire, ns: str) -> str:
    """10,000 rows: 6,000 cold and untouched, 1,000 deleted when they were cold, 2,000 changed since, 2,000 hot only."""
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, place text, x float8)")
    name = f'"{ns}"."t"'
    ids = list(range(9000))
    rows = batch(id=("int8", ids), place=("text", ["cold"] * 9000), x=("float8", [float("nan")] * 9000))
    wire(f'INSERT INTO {name} ("id", "place", "x") FROM ARROW $1', rows)
    db.run("STORAGE FLUSH TABLE t")
    db.run("DELETE FROM t WHERE id < 1000")
    db.run("UPDATE t SET place = 'changed' WHERE id BETWEEN 1000 AND 2999")
    ids = list(range(9000, 11000))
    rows = batch(id=("int8", ids), place=("text", ["hot"] * 2000), x=("float8", [0.5] * 2000))
    wire(f'INSERT INTO {name} ("id", "place", "x") FROM ARROW $1', rows)
    return name


# ---------- SAMPLE ----------
@pytest.mark.parametrize("method", ["auto", "random", "system", "bernoulli"])
def test_all_rows(t: str, wire: Wire, method: str) -> None:
    found = wire(f'SAMPLE 20000 ROWS OF {t} ("id", "place") METHOD {method}', arrow=True, fetch=20000)
    assert total(found) == 10_000
    assert sorted(row[0] for row in found.rows) == list(range(1000, 11000))
    assert Counter(row[1] for row in found.rows) == {"cold": 6000, "changed": 2000, "hot": 2000}


def test_some_rows(t: str, wire: Wire) -> None:
    seen: Counter[int] = Counter()
    places: Counter[str] = Counter()
    for _ in range(40):
        found = wire(f'SAMPLE 500 ROWS OF {t} ("id", "place", "x")', arrow=True)
        assert len({row[0] for row in found.rows}) == len(found.rows) == 500
        assert 9000 < total(found) < 11_000
        seen.update(row[0] for row in found.rows)
        places.update(row[1] for row in found.rows)
        assert all(row[2] == 0.5 if row[1] == "hot" else row[2] != row[2] for row in found.rows)
    assert 0.56 < places["cold"] / 20_000 < 0.64  # 0.6, and a standard deviation of 0.0035
    assert 0.17 < places["hot"] / 20_000 < 0.23
    low = sum(count for number, count in seen.items() if number < 6000)
    assert 0.46 < low / 20_000 < 0.54  # no part of the keys is preferred
    assert min(seen) >= 1000


def test_a_sample_in_chunks(t: str, wire: Wire) -> None:
    sql = f'SAMPLE 900 ROWS OF {t} ("id")'
    first = wire(sql, fetch=400, arrow=True)
    assert (len(first.rows), first.cursor is not None) == (400, True)
    assert 9000 < total(first) < 11_000
    assert len(set(wire.all(sql, fetch=400, arrow=True))) == 900


def test_own_rows(t: str, wire: Wire) -> None:
    txn = {"id": "9a" * 16, "iso": "read committed", "ro": False}
    wire(f'DELETE FROM {t} FROM ARROW $1 KEY ("id")', batch(id=("int8", list(range(1000, 10_990)))), txn=txn)
    wire(f'INSERT INTO {t} ("id", "place") FROM ARROW $1', batch(id=("int8", [-1]), place=("text", ["own"])), txn=txn)
    found = wire(f'SAMPLE 100 ROWS OF {t} ("id")', txn=txn)
    assert sorted(found.column) == [-1, *range(10_990, 11_000)]
    assert total(found) == 11
    found = wire(f'SAMPLE 4 ROWS OF {t} ("id")', txn=txn)
    assert len(set(found.column)) == 4
    assert total(found) == 11
    wire("ROLLBACK")


def test_an_empty_table(db: Client, wire: Wire, ns: str) -> None:
    db.run("CREATE TABLE e (id bigint PRIMARY KEY)")
    found = wire(f'SAMPLE 100 ROWS OF "{ns}"."e" ("id")')
    assert (found.rows, total(found)) == ([], 0)
    assert wire(f'SHOW TABLE SIZE "{ns}"."e"').rows[0] == ("rows", 0)


def test_an_uncommitted_table(db: Client, wire: Wire, ns: str) -> None:
    txn = {"id": "9b" * 16, "iso": "read committed", "ro": False}
    wire(f'CREATE SHARED TABLE "{ns}"."u" ("id" bigint NOT NULL, CONSTRAINT "u_pkey" PRIMARY KEY ("id"))', txn=txn)
    wire(f'INSERT INTO "{ns}"."u" ("id") VALUES ($1)', ("int8", "7"), txn=txn)
    found = wire(f'SAMPLE 100 ROWS OF "{ns}"."u" ("id")', txn=txn)
    assert (found.rows, total(found)) == ([(7,)], 1)
    assert wire(f'SHOW TABLE SIZE "{ns}"."u"', txn=txn).rows[0] == ("rows", 0)
    wire("ROLLBACK")


def test_a_sample_is_of_shared_tables(db: Client, wire: Wire, ns: str) -> None:
    db.run("CREATE USER TABLE u (id bigint PRIMARY KEY)")
    db.run("CREATE STREAM TABLE s (id bigint PRIMARY KEY) WITH (ttl_seconds = '60')")
    for name, kind in (("u", "user"), ("s", "stream")):
        for tenant in (None, "alice", "*"):
            context = {} if tenant is None else {"user": tenant}
            error = wire.fails("42809", f'SAMPLE 10 ROWS OF "{ns}"."{name}" ("id")', **context)
            assert error.message == f'"{name}" is a {kind} table'


@pytest.mark.parametrize(("sqlstate", "sql"), [
    ("42703", 'SAMPLE 10 ROWS OF {t} ("nope")'), ("42P01", 'SAMPLE 10 ROWS OF "no"."t" ("id")'),
    ("42601", 'SAMPLE 10 ROWS OF {t} ("id") METHOD some'), ("42601", 'SAMPLE x ROWS OF {t} ("id")'),
    ("42601", "SAMPLE 10 ROWS OF {t} ()"), ("42601", 'SAMPLE -1 ROWS OF {t} ("id")'),
    ("42501", 'SAMPLE 10 ROWS OF "system"."sessions" ("id")'), ("42P01", 'SHOW TABLE SIZE "no"."t"'),
    ("42P01", 'SHOW COLUMN WIDTHS "no"."t"'),
])
def test_refused(t: str, wire: Wire, sqlstate: str, sql: str) -> None:
    wire.fails(sqlstate, sql.format(t=t))


def test_people_do_not_sample(t: str, db: Client) -> None:
    db.fails("0A000", f'SAMPLE 10 ROWS OF {t} ("id")')


def test_who_may(db: Client, server: KalamServer, ns: str, connect: Callable[..., Client]) -> None:
    db.run("CREATE SHARED TABLE p (id bigint PRIMARY KEY) WITH (access_level = 'dba')")
    db.run("CREATE USER TABLE u (id bigint PRIMARY KEY)")
    db.run(f"CREATE USER {ns}_x PASSWORD 'secret-long-enough' ROLE user")
    try:
        weak = Wire(server.dsn(user=f"{ns}_x", password="secret-long-enough"))
        weak.fails("42501", f'SAMPLE 10 ROWS OF "{ns}"."p" ("id")')
        weak.fails("42501", f'SHOW TABLE SIZE "{ns}"."p"')
        weak.fails("42501", f'SHOW COLUMN WIDTHS "{ns}"."p"')
        assert dict(weak(f'SHOW TABLE SIZE "{ns}"."u"', user="somebody").rows).keys() == {"rows", "bytes"}
        assert dict(weak(f'SHOW TABLE SIZE "{ns}"."u"', user=f"{ns}_x").rows)["tenant_rows"] == 0
        weak.close()
    finally:
        db.run(f"DROP USER {ns}_x")


# ---------- SHOW COLUMN WIDTHS ----------
WIDTHS = {
    "a": "42", "b": "'x'", "c": "repeat('é', 50)", "d": "repeat('x', 1000)", "e": "'\\x0102'::bytea",
    "f": "12345.678", "g": "'00000000-0000-0000-0000-000000000001'", "h": "true", "i": "NULL",
}


def test_widths_as_postgresql_has_them(db: Client, pg: Client, wire: Wire, ns: str) -> None:
    columns = "a bigint, b text, c text, d text, e bytea, f numeric, g uuid, h boolean, i text"
    names = ", ".join(WIDTHS)
    for client in (pg, db):
        client.run(f"CREATE TABLE w (id bigint PRIMARY KEY, {columns})")
    pg.run("ALTER TABLE w ALTER d SET STORAGE EXTERNAL")
    pg.run(f"INSERT INTO w VALUES (1, {', '.join(WIDTHS.values())})")
    given = pg.run(f"SELECT {', '.join(name + '::text' for name in WIDTHS)} FROM w").rows[0]
    db.run(f"INSERT INTO w (id, {names}) VALUES (1, {', '.join(f'${n}' for n in range(1, 10))})", *given)
    found = {name: width for name, width, rows in wire(f'SHOW COLUMN WIDTHS "{ns}"."w"').rows if name != "id"}
    sizes = pg.run(f"SELECT {', '.join(f'coalesce(pg_column_size({name}), 0)' for name in WIDTHS)} FROM w").rows[0]
    assert found == {name: int(size) for name, size in zip(WIDTHS, sizes, strict=True)}


def test_widths_are_of_all_tenants(db: Client, wire: Wire, ns: str) -> None:
    db.run("CREATE USER TABLE u (id bigint PRIMARY KEY, body text)")
    for tenant, length in (("a", 9), ("b", 99)):
        db.run(f"SET kalam.user_id = '{tenant}'")
        for number in range(10):
            db.run("INSERT INTO u VALUES ($1, $2)", str(number), "x" * length)
        if tenant == "a":
            db.run("STORAGE FLUSH TABLE u")
    assert wire(f'SHOW COLUMN WIDTHS "{ns}"."u"').rows == [("id", 8, 20), ("body", 55, 20)]


# ---------- SHOW TABLE SIZE ----------
def test_size_of_a_tenant(db: Client, wire: Wire, ns: str) -> None:
    db.run("CREATE USER TABLE u (id bigint PRIMARY KEY)")
    for part in range(2):
        for place, tenant in enumerate(("a", "b", "c"), 1):
            ids = list(range(1000 * part, 1000 * part + 100 * place))
            wire(f'INSERT INTO "{ns}"."u" ("id") FROM ARROW $1', batch(id=("int8", ids)), user=tenant)
        if part == 0:
            db.run("STORAGE FLUSH TABLE u")
    for tenant, rows in (("a", 200), ("b", 400), ("c", 600), ("nobody", 0)):
        facts = dict(wire(f'SHOW TABLE SIZE "{ns}"."u"', user=tenant).rows)
        assert facts["tenant_rows"] == rows
        assert facts["rows"] == 1200
        assert facts["bytes"] > 0
    assert "tenant_rows" not in dict(wire(f'SHOW TABLE SIZE "{ns}"."u"', user="*").rows)
    assert "tenant_rows" not in dict(wire(f'SHOW TABLE SIZE "{ns}"."u"').rows)


def test_size_follows_writes(db: Client, wire: Wire, ns: str) -> None:
    db.run("CREATE TABLE t (id bigint PRIMARY KEY)")
    sizes = []
    for part in range(3):
        ids = list(range(1000 * part, 1000 * part + 1000))
        wire(f'INSERT INTO "{ns}"."t" ("id") FROM ARROW $1', batch(id=("int8", ids)))
        sizes.append(dict(wire(f'SHOW TABLE SIZE "{ns}"."t"').rows)["rows"])
        if part == 1:
            db.run("STORAGE FLUSH TABLE t")
            assert dict(wire(f'SHOW TABLE SIZE "{ns}"."t"').rows)["rows"] == 2000
    assert sizes == [1000, 2000, 3000]


def test_types_are_what_they_were(db: Client, wire: Wire, ns: str) -> None:
    """A sample's columns have the layouts of a scan."""
    db.run("CREATE TABLE t (id bigint PRIMARY KEY, n numeric(10, 2), d date, j jsonb, b boolean, r real)")
    for number in range(300):
        db.run("INSERT INTO t VALUES ($1, 1.50, '2026-01-01', '{}', true, 1.5)", str(number))
    names = '"id", "n", "d", "j", "b", "r"'
    sampled = wire(f'SAMPLE 300 ROWS OF "{ns}"."t" ({names})', arrow=True)
    read = wire(f'SELECT {names} FROM "{ns}"."t"', arrow=True)
    assert sampled.arrow
    assert read.arrow
    assert sampled.types == read.types == [str(types.by_name(name).arrow) for name in (
        "int8", "numeric", "date", "jsonb", "bool", "float4")]
    assert sorted(sampled.rows) == sorted(read.rows)


# ---------- SHOW SCAN STATS ----------
def report(wire: Wire, number: int) -> dict[str, str]:
    return dict(wire(f"SHOW SCAN STATS {number}").rows)


def test_what_scans_did(t: str, db: Client, wire: Wire) -> None:
    wire(f'SELECT "id", "x" FROM {t}', arrow=True, stats=1, fetch=100_000)
    found = report(wire, 1)
    assert int(found.pop("time_us")) > 0
    assert found == {"path": "store", "hot_rows": "4000", "cold_rows": "9000", "segments": "1", "segments_pruned": "0",
                     "groups": "1", "groups_pruned": "0"}
    assert report(wire, 1) == {}  # once
    wire(f'SELECT "id" FROM {t} WHERE ("id" = $1)', ("int8", "5000"), stats=2)
    assert report(wire, 2)["path"] in ("key lookup", "store")  # the first may have to read the file
    wire(f'SELECT "id" FROM {t} WHERE ("id" = $1)', ("int8", "5000"), stats=3)
    assert (report(wire, 3)["path"], report(wire, 3)) == ("key lookup", {})
    wire(f'SELECT "id" FROM {t} WHERE ("id" > $1)', ("int8", "10500"), stats=4)
    found = report(wire, 4)
    assert (found["segments"], found["segments_pruned"], found["hot_rows"]) == ("0", "1", "499")
    wire(f"SELECT count(*) FROM {t}", stats=5, user="x")
    assert report(wire, 5)["path"] == "store"
    wire(f'SELECT sum("x") FROM {t}', stats=6, user="x")
    assert report(wire, 6)["path"] == "query engine"


def test_reports_add_up_over_chunks(t: str, wire: Wire) -> None:
    rows = wire.all(f'SELECT "id" FROM {t}', stats=7, fetch=300)
    assert len(rows) == 10_000
    once = report(wire, 7)
    for _ in range(2):
        wire(f'SELECT "id" FROM {t}', stats=7, fetch=100_000)
    twice = report(wire, 7)
    assert int(twice["cold_rows"]) == 2 * int(once["cold_rows"]) == 18_000


def test_reports_nobody_asks_for_go(t: str, wire: Wire) -> None:
    for number in range(1, 1102):
        wire(f'SELECT "id" FROM {t} WHERE ("id" = $1)', ("int8", "5000"), stats=number)
    assert report(wire, 1) == {}
    assert report(wire, 1101)["path"] == "key lookup"
    assert report(wire, 5000) == {}
    wire.fails("42601", "SHOW SCAN STATS x")


# ---------- ESTIMATE ----------
def estimate(wire: Wire, table: str, condition: str, *params: tuple[str, str | None], **context: object) -> int:
    return int(wire(f"ESTIMATE SELECT NULL FROM {table} WHERE {condition}", *params, **context).column[0])


def test_estimates(t: str, wire: Wire) -> None:
    """Of 10,000 rows: 6,000 cold, 2,000 changed, 2,000 hot."""
    assert 9500 < int(wire(f"ESTIMATE SELECT NULL FROM {t}").column[0]) < 10_500
    assert 5000 < estimate(wire, t, '("place" = $1)', ("text", "cold")) < 7000
    assert 1500 < estimate(wire, t, '("place" = $1)', ("text", "hot")) < 2500
    assert estimate(wire, t, '("place" = $1)', ("text", "nowhere")) < 10
    assert 7000 < estimate(wire, t, '(length("place") < $1)', ("int4", "6")) < 9000  # the query engine's
    assert estimate(wire, t, '("id" = $1)', ("int8", "5000")) == 1
    assert estimate(wire, t, '("id" IN ($1, $2))', ("int8", "5000"), ("int8", "6000")) == 2
    assert estimate(wire, t, '("id" = $1)', ("int8", None)) == 0
    assert estimate(wire, t, '("id" > $1)', ("int8", None)) == 0


def test_estimates_of_key_ranges(t: str, wire: Wire) -> None:
    """Few rows of many: a sample of the whole table would have none of them."""
    for low, high, rows in ((5000, 5009, 10), (8990, 9009, 20), (2990, 3009, 20), (10_990, 20_000, 10), (0, 999, 0)):
        found = estimate(wire, t, '(("id" >= $1) AND ("id" <= $2))', ("int8", str(low)), ("int8", str(high)))
        assert found == rows, (low, high)
    found = estimate(wire, t, '(("id" >= $1) AND ("place" = $2))', ("int8", "10900"), ("text", "hot"))
    assert found == 100


def test_estimates_of_tenants(db: Client, wire: Wire, ns: str) -> None:
    db.run("CREATE USER TABLE u (id bigint PRIMARY KEY, n int4)")
    name = f'"{ns}"."u"'
    for place, tenant in enumerate(("a", "b", "c"), 1):
        ids = list(range(100 * place))
        wire(f'INSERT INTO {name} ("id", "n") FROM ARROW $1', batch(id=("int8", ids), n=("int4", ids)), user=tenant)
        if tenant == "b":
            db.run("STORAGE FLUSH TABLE u")
    for tenant, rows in (("a", 100), ("b", 200), ("c", 300), ("nobody", 0), ("*", 600)):
        assert estimate(wire, name, '("n" >= $1)', ("int4", "0"), user=tenant) == rows
        half = estimate(wire, name, '("n" >= $1)', ("int4", "50"), user=tenant)
        assert half == {"nobody": 0, "*": 450}.get(tenant, rows - 50)
    wire.fails("42501", f"ESTIMATE SELECT NULL FROM {name}")


def test_estimates_refused(t: str, wire: Wire, db: Client) -> None:
    wire.fails("42P01", 'ESTIMATE SELECT NULL FROM "no"."t"')
    wire.fails("42703", f'ESTIMATE SELECT NULL FROM {t} WHERE ("nope" = $1)', ("int8", "1"))
    wire.fails("0A000", f"ESTIMATE SELECT NULL FROM {t} a JOIN {t} b ON true")
    wire.fails("0A000", f"ESTIMATE DELETE FROM {t}")
    wire.fails("42601", "ESTIMATE")
    assert wire('ESTIMATE SELECT NULL FROM "system"."sessions"').rows == []
    assert 9000 < int(db.value(f"ESTIMATE SELECT 1 FROM {t}")) < 11_000
