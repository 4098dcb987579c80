"""SELECT against the same statements on ordinary tables: conditions, joins, parameters, extreme values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.types.string import TextLoader

from .pair import Outcome, Pair

pytestmark = pytest.mark.pg

ROWS = """
CREATE TABLE a (id bigint PRIMARY KEY, n int, t text, v varchar(10), f float8, d numeric, b bool,
    ts timestamptz) {using};
INSERT INTO a SELECT g, NULLIF(g % 7, 3), 'text ' || g, 'v' || g % 5, g / 4.0, g / 8.0, NULLIF(g % 3, 2) = 1,
    '2024-01-01 00:00+00'::timestamptz + g * interval '1 hour' FROM generate_series(1, 600) g;
INSERT INTO a VALUES (1001, NULL, NULL, NULL, 'NaN', 'NaN', NULL, 'infinity'),
    (1002, -1, '', '', '-0', 0.00, true, '-infinity'), (1003, 0, 'Z', 'ä', 'Infinity', 1e30, false, NULL);
CREATE TABLE c (id int, sub int, t text, PRIMARY KEY (id, sub)) {using};
INSERT INTO c SELECT g % 50, g, 'c' || g FROM generate_series(1, 200) g;
CREATE TABLE empty (id int PRIMARY KEY, t text) {using};
"""  # fmt: skip


@pytest.fixture(scope="module", params=["shared", "user"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(dsn: str, kind: str) -> Iterator[Pair]:
    pair = Pair(dsn, kind)
    pair.setup(ROWS)
    for side in (pair.heap, pair.kalam):  # NaN is not equal to itself in Python, and infinity no datetime
        for name in ("float8", "numeric", "timestamptz"):
            side.conn.adapters.register_loader(name, TextLoader)
    yield pair
    pair.close()


def agree(pair: Pair, *queries: str) -> list[Outcome]:
    """Nothing is written, so only the outcomes are compared; all that differ are told."""
    outcomes = [(query, pair.heap.run(query), pair.kalam.run(query)) for query in queries]
    assert not [outcome for outcome in outcomes if outcome[1] != outcome[2]]
    return [got for _, _, got in outcomes]


CONDITIONS = [
    "id = 5", "id = 5000", "5 = id", "id < 3", "id <= 3 AND id <> 2", "id BETWEEN 3 AND 6", "id > 599 OR id = 1",
    "n = 2 AND t > 'text 5'", "n IS NULL", "n IS NOT NULL AND id < 9", "NOT n = 2", "NOT (n = 2 OR n IS NULL)",
    "n IN (1, 2)", "n IN (1, NULL)", "n NOT IN (1, 2)", "n NOT IN (1, NULL)", "n = ANY ('{}')", "n = ANY (NULL::int[])",
    "n <> ALL ('{1,2,5}')", "n = ALL ('{1}')", "id = ANY ('{1,2,2,NULL,700}'::int[])", "id::int = 4", "n + 1 = 3",
    "b", "NOT b", "b IS TRUE", "b IS NOT TRUE", "b IS FALSE", "b IS NOT FALSE", "b IS UNKNOWN", "b IS NOT UNKNOWN",
    "b = (n = 1)", "(n = 1) IS NULL", "(n = 1) IS UNKNOWN", "n IS DISTINCT FROM 1", "n IS NOT DISTINCT FROM NULL",
    "t = ''", "t = 'text 7'", "t < 'text 11'", "t COLLATE \"C\" >= 'text 6'", "t LIKE 'text 1%'", "v = 'v1' AND t <> v",
    "v IN ('v1', 'ä')", "t BETWEEN 'Z' AND 'a'", "f = 'NaN'", "f > 1e300", "f = 0", "f < 0.5", "d = 'NaN'", "d > 70",
    "d = 0", "d IN (1.5, 0.000)", "d < 0.3", "ts = 'infinity'", "ts < '2024-01-01 05:00+00'", "ts IS NULL",
    "ts < now()",
    "ts BETWEEN '2024-01-02' AND '2024-01-03'", "n = n", "id = n", "id > (SELECT max(sub) FROM c)",
    "id IN (SELECT sub FROM c WHERE id < 4)", "NOT EXISTS (SELECT FROM c WHERE c.id = a.n)", "FALSE", "NULL", "1 = 1",
    "n = 1 / NULLIF(n - n, 0)", "(n = 0 OR 10 / n = 5)", "random() >= 0", "a IS NOT NULL", "a.* IS NULL",
]  # fmt: skip


def test_conditions(pair: Pair) -> None:
    outcomes = agree(pair, *(f"SELECT id FROM a WHERE {condition}" for condition in CONDITIONS))
    assert {outcome.sqlstate for outcome in outcomes} == {None}


def test_conditions_fail_alike(pair: Pair) -> None:
    outcomes = agree(pair, "SELECT id FROM a WHERE 1 / (n - 1) = 1", "SELECT id FROM a WHERE t::int = 1")
    assert [outcome.sqlstate for outcome in outcomes] == ["22012", "22P02"]


def test_whole_rows_and_extreme_values(pair: Pair) -> None:
    agree(pair, "SELECT * FROM a", "SELECT a FROM a WHERE id > 590",
          "SELECT count(*), count(n), sum(id), min(t), max(v), sum(d) FILTER (WHERE d < 5) FROM a")


QUERIES = [
    "SELECT a.id, c.t FROM a JOIN c ON c.sub = a.id",
    "SELECT a.id, c.t FROM a LEFT JOIN c ON c.id = a.id AND c.sub = a.id WHERE a.id < 20",
    "SELECT a.t, c.t FROM a FULL JOIN c ON a.id = c.sub WHERE a.id < 20 OR c.sub > 190",
    "SELECT v.x, (SELECT t FROM a WHERE id = v.x) FROM (VALUES (1), (2), (NULL), (9999)) v(x)",
    "SELECT v.x, l.t FROM (VALUES (1), (2), (2)) v(x), "
    "LATERAL (SELECT t FROM c WHERE c.id = v.x ORDER BY sub LIMIT 2) l",
    "SELECT x.id, y.id FROM a x, a y WHERE x.id = y.id + 1 AND y.n = 1",
    "SELECT n, count(*), array_agg(id ORDER BY id) FROM a GROUP BY n HAVING count(*) > 3 ORDER BY n",
    "SELECT DISTINCT v FROM a",
    "SELECT id FROM a ORDER BY t COLLATE \"C\" DESC, id LIMIT 5 OFFSET 3",
    "SELECT id FROM a UNION ALL SELECT sub FROM c UNION ALL SELECT id FROM empty",
    "WITH x AS MATERIALIZED (SELECT * FROM a WHERE n = 1) SELECT count(*) FROM x JOIN x y USING (id)",
    "WITH RECURSIVE r(i) AS (SELECT 1::bigint UNION SELECT a.id + 1 FROM r JOIN a ON a.id = r.i WHERE r.i < 9)"
    " SELECT i FROM r",
    "SELECT * FROM empty",
    "SELECT count(*), max(t) FROM empty",
    "SELECT 1 / (id - 3) FROM a",
    "SELECT a.id, s.id, s.x FROM (SELECT id FROM a WHERE id < 20) a FULL JOIN (SELECT x.id, y.t FROM a x LEFT JOIN c y"
    " ON x.id = y.sub WHERE x.n < 4) s (id, x) ON a.id = s.id + 5",
    "SELECT a.id, s.a, s.b FROM (SELECT id FROM a WHERE id BETWEEN 5 AND 60) a FULL JOIN (SELECT x.id, y.sub FROM"
    " (SELECT id FROM a WHERE id BETWEEN 50 AND 70) x FULL JOIN (SELECT sub FROM c WHERE sub < 60) y ON x.id = y.sub"
    " WHERE x.id IS NULL OR x.id < 66) s (a, b) ON a.id = s.b ORDER BY 1, 2, 3",
    "SELECT x.id, s.id FROM a x FULL JOIN (SELECT * FROM a y WHERE NOT EXISTS (SELECT FROM c WHERE c.sub = y.id)) s"
    " ON x.id = s.id + 100 ORDER BY 1, 2 LIMIT 300",
    "SELECT a.id, s.z, s.k, s.z || '!' FROM a LEFT JOIN (SELECT sub, COALESCE(NULLIF(t, 'c7'), 'none') AS z, 42 AS"
    " k FROM c"
    " WHERE id > 3) s ON a.id = s.sub AND s.z > 'c2' ORDER BY a.id",
    "SELECT a.id FROM a LEFT JOIN (SELECT sub, 42 AS z FROM c) s ON a.id = s.sub WHERE s.z IS NULL ORDER BY 1",
    "SELECT s.z, count(*), lower(max(s.z)) FROM a LEFT JOIN (SELECT x.sub, COALESCE(y.t, x.t, '?') AS z FROM c x"
    " LEFT JOIN"
    " (SELECT sub, NULLIF(t, 'c9') AS t FROM c) y ON x.id = y.sub) s ON a.id = s.sub GROUP BY 1 ORDER BY 1",
    "SELECT v.id, v.z, w.z FROM (SELECT a.id, s.z FROM a LEFT JOIN (SELECT sub, COALESCE(t, 'o') AS z FROM c) s ON"
    " a.id ="
    " s.sub) v LEFT JOIN (SELECT a.id, s.z FROM a RIGHT JOIN (SELECT sub, true AS z FROM c) s ON a.id = s.sub) w"
    " ON v.id = w.id + 2 AND v.z > 'c5'",
    "SELECT x.one, s.yes FROM (SELECT id, 1 AS one FROM a) x FULL JOIN (SELECT sub, 'yes' AS yes FROM c) s ON x.id ="
    " s.sub + 590",
    "SELECT a.id, s.z FROM a LEFT JOIN (SELECT sub, COALESCE(t, 'o') AS z FROM c) s ON a.id = s.sub WHERE NOT EXISTS"
    " (SELECT FROM c LEFT JOIN (SELECT id, upper(t) AS w, COALESCE(v, 'v') AS v FROM a) b ON b.id = c.sub"
    " WHERE c.sub = a.id AND b.v < s.z)",
    "SELECT string_agg(t, v ORDER BY id), string_agg(t, NULL ORDER BY id) FROM a",
    "SELECT v, array_agg(id ORDER BY id), array_agg(ts ORDER BY id), array_agg(f ORDER BY id DESC), array_agg(d"
    " ORDER BY"
    " n, id), array_agg(t ORDER BY id), array_agg(b ORDER BY id) FROM a GROUP BY 1 ORDER BY 1",
    "SELECT array_agg(DISTINCT n), array_agg(DISTINCT v ORDER BY v DESC), array_agg(DISTINCT b) FILTER (WHERE id < 3),"
    " array_agg(DISTINCT n % 3 ORDER BY n % 3 DESC NULLS LAST), array_agg(DISTINCT substr(t, 1, 6)), array_agg(DISTINCT"
    " ts::date) FROM a WHERE id < 50 OR id > 1000", "SELECT array_agg(id ORDER BY id) FROM a WHERE id < 0",
    "SELECT DISTINCT ON (n) n, id, upper(t) FROM a ORDER BY n DESC, id",
    "SELECT DISTINCT ON (v, b) d, id FROM a ORDER BY b NULLS FIRST, v, f DESC, id LIMIT 7 OFFSET 1",
    "SELECT DISTINCT ON (d) d, id FROM a ORDER BY d DESC, id DESC LIMIT 20",
    "SELECT DISTINCT ON (a.n) a.n, c.t FROM a LEFT JOIN c ON a.id = c.sub ORDER BY a.n, c.sub DESC NULLS LAST, a.id",
    "SELECT DISTINCT ON (v) v, n, count(*) FROM a GROUP BY v, n ORDER BY v, count(*) DESC, n",
    "SELECT DISTINCT sum(n) / 10 FROM a GROUP BY v", "SELECT 5, sum(n) FROM a WHERE id < 0 GROUP BY 1",
    "SELECT 5, now() IS NULL, sum(n) FROM a GROUP BY 1, 2 HAVING max(n) > 3",
    "SELECT sum(DISTINCT n % 3 ORDER BY n % 3), string_agg(DISTINCT substr(t, 1, 6), '+' ORDER BY substr(t, 1, 6)"
    " DESC),"
    " string_agg(DISTINCT left(v, 9 - 8), NULL ORDER BY left(v, 9 - 8)) FILTER (WHERE id > 5) FROM a",
    "SELECT id FROM a WHERE t = 'text 9' FOR UPDATE",
    "SELECT a.id FROM a JOIN c ON a.id = c.sub WHERE c.id = 3 FOR SHARE OF a NOWAIT",
]  # fmt: skip


def test_queries(pair: Pair) -> None:
    agree(pair, *QUERIES)


@pytest.mark.parametrize(
    "setting", ["enable_hashjoin = enable_mergejoin", "enable_nestloop", "plan_cache_mode", "fetch"]
)
def test_queries_by_other_plans(pair: Pair, setting: str) -> None:
    """The same answers whatever the plan, and however small the chunks."""
    side = pair.kalam
    if setting == "plan_cache_mode":
        side.conn.execute("SET plan_cache_mode = force_generic_plan")
    elif setting == "fetch":
        for table in ("a", "c"):
            side.conn.execute(f"ALTER FOREIGN TABLE {table} OPTIONS (ADD fetch_size '7')")
    else:
        for name in setting.split(" = "):
            side.conn.execute(f"SET {name} = off")
        side.conn.execute("SET enable_material = off")
    agree(pair, *QUERIES)


def test_more_constants_than_a_message_holds(pair: Pair) -> None:
    lists = (",".join(map(str, range(first, first + 1000))) for first in range(-69500, 500, 1000))
    agree(pair, "SELECT count(*) FROM a WHERE " + " OR ".join(f"id IN ({values})" for values in lists))
    agree(pair, "SELECT count(*) FROM a WHERE " + " OR ".join(f"n = {n} AND id > 5" for n in range(1, 7000)))


FUNCTIONS_THAT_WRITE = """
CREATE FUNCTION add(i int) RETURNS int LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO empty VALUES (i, 'one'); RETURN i; END $$;
CREATE FUNCTION added(i int) RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO empty VALUES (i, 'two');
    BEGIN INSERT INTO empty VALUES (i + 1, 'undone'); RAISE 'x'; EXCEPTION WHEN raise_exception THEN NULL; END;
    RETURN (SELECT count(*) FROM empty);
END $$
"""


@pytest.mark.parametrize("block", [False, True], ids=["autocommit", "block"])
def test_functions_that_write_what_the_statement_reads_later(pair: Pair, block: bool) -> None:
    """A statement's snapshot is from before its functions, though it begins to read after them."""
    pair.setup(FUNCTIONS_THAT_WRITE)
    if block:
        pair.both("BEGIN")
    agree(
        pair,
        "SELECT add(1), (SELECT count(*) FROM empty)",
        "SELECT f, count(id) FROM add(2) f LEFT JOIN empty ON true GROUP BY f",
        "SELECT added(3), (SELECT count(*) FROM empty), added(5), (SELECT count(*) FROM empty e WHERE t = 'two')",
        "WITH x AS (SELECT add(7)), i AS (INSERT INTO empty VALUES (8) RETURNING id), d AS (DELETE FROM empty"
        " WHERE id = 1 RETURNING id) SELECT (SELECT count(*) FROM x), (SELECT count(*) FROM i),"
        " (SELECT count(*) FROM d), count(*) FROM empty",
        "SELECT id, t FROM empty ORDER BY id",
    )
    if block:
        pair.both("COMMIT")


def test_prepared_statements(pair: Pair) -> None:
    script = """
        PREPARE one(bigint) AS SELECT t FROM a WHERE id = $1;
        PREPARE several(int, int) AS SELECT id FROM a WHERE n IN ($1, $2) OR id = $1 + 100;
        PREPARE listed(int[]) AS SELECT id FROM a WHERE n = ANY ($1) AND t >= 'text 3'
    """
    pair.setup(script)
    for i in range(8):  # past the change to a generic plan
        agree(pair, f"EXECUTE one({i})", f"EXECUTE several({i}, NULL)", f"EXECUTE listed('{{{i},NULL}}')")
    agree(pair, "EXECUTE one(NULL)")


#: condition with an array for $1, its type, and arrays
ARRAYS = [
    ("id = ANY ($1)", "bigint[]", ("{1,2,NULL,700}", "{{1,2},{3,1001}}", "{}")),
    ("id = ANY ($1)", "int[]", ("{1,600,-5}",)),
    ("id <> ALL ($1) AND id < 9", "bigint[]", ("{1,2,700}", "{1,NULL}", "{}")),
    ("n = ANY ($1)", "smallint[]", ("{1,2,NULL}", "{}")),
    ("n + 1 = ANY ($1) OR id = 7", "bigint[]", ("{1,2,NULL}", "{}", "{NULL}")),
    ("NOT n = ANY ($1)", "int[]", ("{1,2}", "{1,NULL}", "{}")),
    ("n < ANY ($1)", "int[]", ("{1,2,NULL}", "{}", "{5}")), ("n > ALL ($1)", "int[]", ("{1,2}", "{1,NULL}", "{}")),
    ("n <> ANY ($1)", "int[]", ("{1,2}", "{1}", "{}")), ("n = ALL ($1)", "int[]", ("{1,1}", "{1,2}", "{}")),
    ("t = ANY ($1)", "text[]", ('{"text 5","","ä","text 6",NULL}', "{}")),
    ("v = ANY ($1)", "varchar[]", ("{v1,ä,vv}",)),
    ("v <> ALL ($1)", "text[]", ("{v1,ä}", "{v2,NULL}")), ("t LIKE ANY ($1)", "text[]", ("{%5,%66%}", "{NULL}", "{}")),
    ("t NOT LIKE ALL ($1)", "text[]", ("{%5,%6%}", "{NULL,%}", "{}")),
    ("f = ANY ($1)", "float8[]", ("{NaN,-0,1.25,Infinity}", "{NULL}")),
    ("d = ANY ($1)", "numeric[]", ("{NaN,1.50,0.0,1e30}", "{}")), ("d + 1 = ANY ($1)", "numeric[]", ("{NaN,2.50,1}",)),
    ("d < ALL ($1)", "numeric[]", ("{NaN,2.5}", "{}")), ("b = ANY ($1)", "bool[]", ("{t,NULL}", "{f}")),
    ("ts = ANY ($1)", "timestamptz[]", ("{infinity,2024-01-01 05:00+00,294276-12-31}", "{}")),
    ("ts > ANY ($1) AND id < 20", "timestamptz[]", ("{infinity,2024-01-01 05:00+00}",)),
]  # fmt: skip


@pytest.mark.parametrize("mode", ["generic", "custom"])
def test_array_parameters(pair: Pair, mode: str) -> None:
    pair.setup(f"SET plan_cache_mode = force_{mode}_plan")
    queries, remote = [], []
    for number, (condition, type_, arrays) in enumerate(ARRAYS):
        pair.setup(f"PREPARE a{number} ({type_}) AS SELECT id FROM a WHERE {condition}")
        queries += [f"EXECUTE a{number}('{array}')" for array in arrays] + [f"EXECUTE a{number}(NULL)"]
        plan = pair.kalam.conn.execute(f"EXPLAIN (COSTS OFF) EXECUTE a{number}('{arrays[0]}')").fetchall()
        remote += [(condition, plan) for (line,) in plan if "Filter" in line]
    agree(pair, *queries)
    assert not remote


def test_arrays_of_a_nested_loop(pair: Pair) -> None:
    """The array is another table's, or it is as long as no list of parameters could be."""
    lists = "(VALUES (1, '{1,2}'::int[]), (2, '{}'), (3, NULL), (4, '{NULL,7}')) l (n, ids)"
    long = "(SELECT array_agg(g) FROM generate_series(3, 70000) g)"
    some = "(SELECT array_agg(g) FROM generate_series(3, 3000) g)"  # the query engine takes long to plan longer ones
    texts = "(SELECT array_agg('text ' || g) FROM generate_series(3, 2000) g)"
    agree(
        pair,
        f"SELECT l.n, a.t FROM {lists} JOIN a ON a.id = ANY (l.ids)",
        f"SELECT l.n, a.t FROM {lists} LEFT JOIN a ON a.id = ANY (l.ids) AND a.n <> ALL (l.ids)",
        f"SELECT l.n, (SELECT count(*) FROM a WHERE a.n = ANY (l.ids)) FROM {lists}",
        f"SELECT count(*), sum(id) FROM a WHERE id = ANY ({long}::int[])",
        f"SELECT count(*), sum(id) FROM a WHERE n = ANY ({some}::int[]) OR n + 1 <> ALL ({some}::int[])",
        f"SELECT count(*), sum(id) FROM a WHERE t = ANY ({texts}::text[]) OR id > ALL ({some}::int[])",
        f"SELECT id FROM a WHERE id = ANY ({long}::int[]) AND id < 9 FOR UPDATE",
        "SELECT id FROM a WHERE n = ANY (ARRAY(SELECT id FROM c WHERE sub < 5))",
        f"SELECT id FROM a WHERE id IN ({','.join(map(str, range(3, 40)))}, NULL)",
        f"SELECT id FROM a WHERE n NOT IN ({','.join(map(str, range(3, 40)))})",
        f"UPDATE a SET n = 5 WHERE id = ANY ({long}::int[]) RETURNING id, n",
    )


@pytest.mark.parametrize("param", [5, None, 10**15])
def test_bound_parameters(pair: Pair, param: int | None) -> None:
    for condition, value in (("id = %s", param), ("n = ANY (%s)", [param, 1])):
        query = f"SELECT id, t FROM a WHERE {condition}"
        assert pair.kalam.run(query, [value]) == pair.heap.run(query, [value])


