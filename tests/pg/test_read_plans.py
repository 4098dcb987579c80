"""Which forms of a SELECT are made on the server, and which must not be, by EXPLAIN.

Of what is sent the root of the plan is the Foreign Scan. What stays in PostgreSQL is told by a pattern that no Remote
SQL of the plan may match; so that this proves something, each pattern is found in the statement itself, too.
That the answers are right is shown by test_read_differential.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import pytest

from .ddl import Session
from .plans import make_collations, nodes, plan, remote_sql, root_is_foreign_scan

pytestmark = pytest.mark.pg

TABLES = """
CREATE TABLE a (id bigint PRIMARY KEY, n int, m int, x text, e text COLLATE english, ci text COLLATE any_case, f float8,
    d numeric, b bool, at timestamp, tz timestamptz, day date, j jsonb)
    USING kalamdb WITH (type = 'shared', system_columns = 'false');
INSERT INTO a SELECT g, NULLIF(g % 7, 3), g % 50, 'text ' || g % 40, 'e' || g % 9, 'c' || g % 4, g / 4.0, g / 8.0,
    g % 3 = 1, timestamp '2024-01-01' + g * interval '1 hour', timestamptz '2024-01-01' + g * interval '1 hour',
    date '2024-01-01' + g % 30, jsonb_build_object('k', g % 5) FROM generate_series(1, 3000) g;
CREATE TABLE c (id bigint, sub int, x text, ci text COLLATE any_case, PRIMARY KEY (id, sub))
    USING kalamdb WITH (type = 'shared', system_columns = 'false');
INSERT INTO c SELECT g % 500, g, 'c' || g % 20, 'c' || g % 4 FROM generate_series(1, 2000) g;
CREATE TABLE u (id bigint PRIMARY KEY, n int, x text) USING kalamdb WITH (type = 'user', system_columns = 'false');
INSERT INTO u SELECT g, g % 9, 'u' || g % 30 FROM generate_series(1, 1000) g;
CREATE TABLE heap AS SELECT id, n, x FROM a;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE k (id bigint PRIMARY KEY, iv interval, t time, zoned timetz, ip inet, net cidr, mac macaddr, bits varbit,
    ch char(5) COLLATE "C", en char(5) COLLATE english, mood mood, o oid, price money, r int4range)
    USING kalamdb WITH (type = 'shared', system_columns = 'false');
INSERT INTO k (id, iv) SELECT g, g * interval '1 hour' FROM generate_series(1, 100) g;
CREATE FUNCTION unsteady(int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1; END';
CREATE FUNCTION steady(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'BEGIN RETURN $1; END';
ANALYZE a; ANALYZE c; ANALYZE u; ANALYZE heap
"""


@pytest.fixture(scope="module")
def tables(module_dsn: str) -> Iterator[Session]:
    with closing(Session(module_dsn)) as session:
        session("CREATE SCHEMA plans; SET search_path = plans, public; SET kalam.user_id = 'alice'")
        make_collations(session.conn)
        session(TABLES)
        yield session


#: statement and what of it must not be asked for, by why it stays here
LOCAL: dict[str, list[tuple[str, str]]] = {
    "a collation's order is not that of code points": [
        ("SELECT id FROM a ORDER BY e", "ORDER BY"),
        ("SELECT id FROM a ORDER BY n, e DESC, id LIMIT 5", "ORDER BY|LIMIT"),
        ("SELECT id FROM a ORDER BY x COLLATE english", "ORDER BY"),
        ("SELECT id FROM a WHERE e < 'e5'", "<"),
        ("SELECT id FROM a WHERE e BETWEEN 'e2' AND 'e4'", ">=|<=|BETWEEN"),
        ("SELECT id FROM a WHERE e >= ANY ('{e1,e2}')", ">="),
        ("SELECT min(e), max(e) FROM a", "min|max"),
        ("SELECT n, max(e) FROM a GROUP BY n", "max"),
        ("SELECT max(GREATEST(e, 'e5')) FROM a", "GREATEST"),
        ("SELECT id, rank() OVER (ORDER BY e) FROM a", "rank"),
        ("SELECT string_agg(x, ',' ORDER BY e) FROM a", "string_agg"),
        ("SELECT x.id FROM a x JOIN a y ON x.e < y.e AND x.id < 5 AND y.id < 5", r"\be\S* < "),
    ],
    "the collation says that different texts are equal": [
        ("SELECT id FROM a WHERE ci = 'C1'", " = "),
        ("SELECT id FROM a WHERE ci <> 'C1'", "<>"),
        ("SELECT id FROM a WHERE ci IN ('C1', 'c2')", "IN"),
        ("SELECT id FROM a WHERE ci IS DISTINCT FROM 'C1'", "DISTINCT"),
        ("SELECT id FROM a WHERE NULLIF(ci, 'C1') IS NULL", "NULLIF"),
        ("SELECT id FROM a WHERE x = 'TEXT 1' COLLATE any_case", " = "),
        ("SELECT ci, count(*) FROM a GROUP BY ci", "GROUP BY|count"),
        ("SELECT ci, n, count(*) FROM a GROUP BY CUBE (ci, n)", "GROUP BY|count"),
        ("SELECT DISTINCT ci FROM a", "DISTINCT"),
        ("SELECT count(DISTINCT ci) FROM a", "DISTINCT"),
        ("SELECT a.id FROM a JOIN c ON a.ci = c.ci", "JOIN"),
        ("SELECT id FROM a WHERE ci IN (SELECT ci FROM c)", "IN|EXISTS"),
        ("SELECT id, row_number() OVER (PARTITION BY ci ORDER BY id) FROM a", "PARTITION"),
        ("SELECT id FROM a ORDER BY ci", "ORDER BY"),
    ],
    "the function is volatile": [
        ("SELECT id FROM a WHERE random() < 0.5", "random"),
        ("SELECT id, random() FROM a ORDER BY id", "random"),
        ("SELECT id FROM a WHERE id = (random() * 10)::int", "random"),
        ("SELECT id FROM a WHERE unsteady(n) = 2", "unsteady"),
        ("SELECT id FROM a WHERE n = unsteady(2)", "unsteady| = "),
        ("SELECT sum(unsteady(n)) FROM a", "unsteady|sum"),
        ("SELECT unsteady(n), count(*) FROM a GROUP BY 1", "unsteady|count"),
        ("SELECT DISTINCT unsteady(n) FROM a", "unsteady|DISTINCT"),
        ("SELECT id FROM a ORDER BY random()", "random|ORDER BY"),
        ("SELECT id FROM a WHERE at < clock_timestamp()::timestamp", "clock_timestamp|<"),
        ("SELECT a.id FROM a JOIN c ON a.id = c.id AND a.n + random() > 5", "random"),
        ("SELECT n FROM a GROUP BY n HAVING count(*) > random() * 10", "random|HAVING"),
    ],
    "the function is not on the server's list": [
        ("SELECT id FROM a WHERE steady(n) = 2", "steady"),
        ("SELECT id FROM a WHERE lower(x) = 'text 1'", "lower"),
        ("SELECT id FROM a WHERE x ILIKE 'TEXT 1%'", "I?LIKE"),
        ("SELECT id FROM a WHERE x ~ ('^' || e)", "~"),
        ("SELECT regexp_replace(x, 'a|b', ''), count(*) FROM a GROUP BY 1", "replace|count"),
        ("SELECT id FROM a WHERE to_char(at, 'MM') = '01'", "to_char"),
        ("SELECT id FROM a WHERE ln(d + 1) > 3", r"\bln\b"), ("SELECT id FROM a WHERE sind(f) > 0.5", r"\bsind\b"),
        ("SELECT id FROM a WHERE format('%s', n) = '1'", "format"),
        ("SELECT lower(x), count(*) FROM a GROUP BY 1", "lower|count"),
        ("SELECT lower(x), count(*) FROM a GROUP BY ROLLUP (lower(x))", "GROUP BY|count"),
        ("SELECT sum(steady(n)) FROM a", "steady|sum"),
        ("SELECT id FROM a ORDER BY lower(x)", "lower|ORDER BY"),
        ("SELECT DISTINCT lower(x) FROM a", "lower|DISTINCT"),
        ("SELECT a.id FROM a JOIN c ON lower(a.x) = lower(c.x)", "lower"),
        ("SELECT a.id FROM a LEFT JOIN c ON a.id = c.id AND lower(a.x) = c.x", "lower|JOIN"),
        ("SELECT id FROM a WHERE NOT EXISTS (SELECT FROM c WHERE c.id = a.id AND lower(a.x) = c.x)", "lower|EXISTS"),
    ],
    "the result depends on the session's time zone": [
        ("SELECT id FROM a WHERE tz::date = '2024-01-02'", "CAST|date| = "),
        ("SELECT id FROM a WHERE date_trunc('day', tz) = '2024-01-02'", "date_trunc"),
        ("SELECT extract(hour FROM tz), count(*) FROM a GROUP BY 1", "extract|count"),
        ("SELECT id FROM a WHERE tz > at", ">"),
        ("SELECT id FROM a WHERE tz::text < '2024-02'", "CAST|<"),
    ],
    "a value's text depends on the session's settings": [
        ("SELECT id FROM a WHERE f::text = '1'", "CAST| = "),
        ("SELECT id FROM a WHERE at::text < '2024-02'", "CAST|<"),
        ("SELECT id FROM a WHERE x::date = '2024-01-02'", "CAST| = "),
        ("SELECT id FROM a WHERE concat(x, f) = 'text 11'", "concat"),
        ("SELECT concat_ws('-', n, at), count(*) FROM a GROUP BY 1", "concat_ws|count"),
    ],
    "the order of rows makes the result": [
        ("SELECT string_agg(x, ',') FROM a", "string_agg"),
        ("SELECT string_agg(x, ',') OVER (ORDER BY id) FROM a", "string_agg"),
        ("SELECT array_agg(id) FROM a", "array_agg"),
    ],
    "equal values that look different": [
        ("SELECT array_agg(DISTINCT d) FROM a", "array_agg"),
        ("SELECT array_agg(DISTINCT f ORDER BY f) FROM a", "array_agg"),
    ],
    "the server has no arrays and no records": [
        ("SELECT array_agg(ARRAY[id] ORDER BY id) FROM a", "array_agg"),
        ("SELECT n, array_agg(id ORDER BY id) FROM a GROUP BY n ORDER BY 2", "ORDER BY 2|ORDER BY 2$"),
        ("SELECT id FROM a WHERE m = (ARRAY[n, m])[1]", r"ARRAY|\["),
        ("SELECT jsonb_agg(n ORDER BY id) FROM a", "jsonb_agg"),
        ("SELECT DISTINCT ROW(n, m) FROM a", "ROW|DISTINCT"),
        ("SELECT DISTINCT ARRAY[n, m] FROM a", "ARRAY|DISTINCT"),
        ("SELECT a FROM a ORDER BY a", "ORDER BY"),
        ("SELECT count(a) FROM a", "count"),
        ("SELECT DISTINCT a FROM a", "DISTINCT"),
        ("SELECT id FROM a WHERE (n, m) < (3, 4)", "<"),
        ("SELECT id FROM a WHERE ROW(n, m) IS NULL", "ROW"),
    ],
    "the server keeps it as text and knows of no order": [
        ("SELECT id FROM k ORDER BY mood", "ORDER BY"),
        ("SELECT id FROM k WHERE mood > 'sad'", ">"),
        ("SELECT max(o), min(price) FROM k", "max|min"),
        ("SELECT id FROM k ORDER BY price LIMIT 3", "ORDER BY|LIMIT"),
        ("SELECT id FROM k ORDER BY r", "ORDER BY"),
        ("SELECT id FROM k WHERE r = '[1,5)'", " = "),
        ("SELECT r, count(*) FROM k GROUP BY r", "GROUP BY|count"),
        ("SELECT id FROM k ORDER BY en", "ORDER BY"),
        ("SELECT id FROM k WHERE GREATEST(t, '12:00') = '12:00'", "GREATEST"),
        ("SELECT array_agg(ip ORDER BY id) FROM k", "array_agg"),
    ],
    "rows are still left out here": [
        ("SELECT id FROM a WHERE lower(x) = 'text 1' LIMIT 3", "LIMIT"),
        ("SELECT id FROM a WHERE lower(x) = 'text 1' ORDER BY id LIMIT 3 OFFSET 1", "LIMIT|OFFSET"),
        ("SELECT count(*) FROM a WHERE lower(x) = 'text 1'", "count"),
        ("SELECT DISTINCT n FROM a WHERE lower(x) = 'text 1'", "DISTINCT"),
        ("SELECT id, row_number() OVER (ORDER BY id) FROM a WHERE lower(x) = 'text 1'", "row_number"),
        ("SELECT a.id FROM a LEFT JOIN c ON a.id = c.id WHERE lower(c.x) = 'c1' LIMIT 3", "LIMIT"),
        ("SELECT a.id, s.z FROM a LEFT JOIN (SELECT id, lower(COALESCE(x, 'N')) AS z FROM c) s ON a.id = s.id", "JOIN"),
        ("SELECT a.id, s.z FROM a LEFT JOIN (SELECT id, ARRAY[sub] AS z FROM c) s ON a.id = s.id", "JOIN"),
        ("SELECT a.id FROM a LEFT JOIN (SELECT * FROM c WHERE lower(x) = 'c1') c ON a.id = c.id", "JOIN"),
        ("SELECT count(*) FROM a FULL JOIN c USING (id) WHERE lower(a.x) = lower(c.x)", "count"),
        ("SELECT max(x) FROM a GROUP BY n HAVING lower(max(x)) > 'text' LIMIT 2", "LIMIT"),
        ("SELECT DISTINCT max(x) FROM a GROUP BY n HAVING lower(max(x)) > 'text'", "DISTINCT"),
        ("SELECT id FROM a WHERE random() < 2 LIMIT 3", "LIMIT"),
    ],
    "the query engine's quantiles and mode choose another of the values": [
        ("SELECT percentile_disc(0.07) WITHIN GROUP (ORDER BY n) FROM a", "percentile|ORDER"),
        ("SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY f) FROM a", "percentile|ORDER"),
        ("SELECT percentile_disc(ARRAY[0.1, 0.9]) WITHIN GROUP (ORDER BY n) FROM a", "percentile|ORDER"),
        ("SELECT mode() WITHIN GROUP (ORDER BY n) FROM a", "mode|ORDER"),
    ],
    "the query engine has no WITH TIES: rows come in order here, and no more than are wanted": [
        ("SELECT n, id FROM a ORDER BY n FETCH FIRST 3 ROWS WITH TIES", "FETCH|LIMIT"),
    ],
    "the server's SQL has no such frame": [
        ("SELECT id, sum(m) OVER (ORDER BY id GROUPS 2 PRECEDING) FROM a", "GROUPS|sum"),
        ("SELECT id, sum(m) OVER (ORDER BY id RANGE 2 PRECEDING) FROM a", "RANGE|sum"),
        ("SELECT id, sum(m) OVER (ORDER BY id ROWS 2 PRECEDING EXCLUDE CURRENT ROW) FROM a", "EXCLUDE|sum"),
        ("SELECT id, sum(m) OVER (ORDER BY id ROWS (SELECT 2) PRECEDING) FROM a", "ROWS|sum"),
    ],
    "what a window sorts by may fail, and LIMIT may leave PostgreSQL without computing it": [
        ("SELECT rank() OVER (ORDER BY day + n) FROM a", "rank"),
        ("SELECT sum(n) OVER (PARTITION BY n / NULLIF(m, 0)) FROM a", "sum|PARTITION"),
        ("SELECT ntile(n + 1) OVER (ORDER BY id) FROM a", "ntile"),
    ],
    "PostgreSQL asks no foreign-data wrapper for paths of set operations, and plans each side apart": [
        ("SELECT n FROM a UNION SELECT sub FROM c", "UNION|DISTINCT"),
        ("SELECT id FROM a EXCEPT SELECT id FROM c", "EXCEPT|DISTINCT"),
        ("SELECT n FROM a INTERSECT ALL SELECT sub FROM c", "INTERSECT"),
        ("SELECT id FROM a UNION ALL SELECT id FROM c", "UNION"),
    ],
    "it plans these subqueries apart, too": [
        ("SELECT count(*) FROM (SELECT DISTINCT ON (n) id FROM a ORDER BY n, id) s", "count"),
        ("WITH w AS MATERIALIZED (SELECT * FROM a) SELECT count(*) FROM w", "count"),
        ("SELECT count(*) FROM (SELECT id FROM a OFFSET 1) s", "count"),
    ],
    "sets of rows in the output": [
        ("SELECT id, generate_series(1, 2) FROM a LIMIT 3", "LIMIT|generate_series"),
        ("SELECT DISTINCT n, generate_series(1, 2) FROM a", "DISTINCT|generate_series"),
        ("SELECT id, generate_series(1, 2) FROM a ORDER BY 2, 1", "ORDER BY|generate_series"),
    ],
    "a constant among grouping sets is NULL where a set has it not": [
        ("SELECT n, count(*) FROM a GROUP BY ROLLUP (n, 'k'::text)", "GROUP BY|count"),
    ],
    "more than 64 grouping sets make too long a statement": [
        ("SELECT n, count(*) FROM a GROUP BY CUBE (n, m, b, x, f, d, day)", "GROUP BY|count"),
    ],
    "the table is not on the server": [
        ("SELECT a.id FROM a JOIN heap USING (id) WHERE a.n = 5", "JOIN|heap"),
        ("SELECT sum(n) FROM a WHERE id IN (SELECT id FROM heap)", "IN|heap|sum"),
    ],
    "only PostgreSQL makes it": [
        ("SELECT DISTINCT ON (n) n, id, a FROM a ORDER BY n, id", "DISTINCT"),
        ("SELECT DISTINCT ON (e) id FROM a ORDER BY e, id", "DISTINCT"),
        ("SELECT id FROM a WHERE n NOT IN (SELECT sub FROM c)", "NOT IN|EXISTS"),
        ("SELECT count(*) FROM a WHERE id IN (SELECT id FROM c) OR n = 5", "count|IN"),
        ("SELECT a, c.sub FROM a JOIN c ON a.id = c.id", "JOIN"),
        ("SELECT string_agg(x, ',' ORDER BY now()) FROM a", "string_agg"),
        ("SELECT string_agg(x, x ORDER BY id) FROM a", "string_agg"),
        ("SELECT tableoid::regclass, id FROM a", "tableoid"),
        ("SELECT tableoid, count(*) FROM a GROUP BY 1", "tableoid|count"),
        ("SELECT id FROM a WHERE tableoid = 'a'::regclass", "tableoid| = "),
        ("SELECT a.id, l.x FROM a, LATERAL (SELECT c.x FROM c WHERE c.id = a.id LIMIT 1) l", "JOIN|LATERAL"),
        ("SELECT sum((SELECT max(sub) FROM c WHERE c.id = a.id)) FROM a", "sum"),
    ],
    "PostgreSQL would need whole rows to check them again": [
        ("SELECT a.id FROM a JOIN c ON a.id = c.id, heap WHERE heap.id = a.id FOR UPDATE", "JOIN"),
        ("SELECT a, c.id FROM a JOIN c ON a.id = c.id FOR UPDATE", "JOIN"),
        ("DELETE FROM a USING c, heap WHERE a.id = c.id AND heap.id = a.id", "USING|JOIN"),
        ("UPDATE a SET n = 1 FROM c WHERE a.id = c.id RETURNING c", "SET n|JOIN"),
    ],
}  # fmt: skip


def test_keys_that_are_equal_below_grouping_sets(tables: Session) -> None:
    """WHERE makes them equal and grouping sets different, which PostgreSQL knows since 18: before, it sorts by any."""
    sql = "SELECT n, m, count(*) FROM a WHERE n = m GROUP BY CUBE (n, m) ORDER BY n"
    (remote,) = remote_sql(tables, sql)
    assert ("ORDER BY" in remote) is (tables.conn.info.server_version >= 180000)


@pytest.mark.parametrize("reason", LOCAL)
def test_what_stays_here(tables: Session, reason: str) -> None:
    sent = []
    for sql, pattern in LOCAL[reason]:
        assert re.search(pattern, sql), f"{pattern} is not in {sql}"
        sent += [(sql, remote) for remote in remote_sql(tables, sql) if re.search(pattern, remote)]
    assert not sent


def test_every_statement_reads_on_the_server(tables: Session) -> None:
    """A pattern absent from no Remote SQL at all would prove nothing."""
    for sql, _ in (case for cases in LOCAL.values() for case in cases):
        assert remote_sql(tables, sql), sql
        assert any(node["Node Type"] in ("Foreign Scan", "ForeignScan") for node in nodes(plan(tables, sql))), sql


#: statements of which nothing is left to do here
SENT: dict[str, list[str]] = {
    "conditions": [
        "SELECT id FROM a WHERE n + m > 40 AND NOT b", "SELECT id FROM a WHERE n IN (1, 2, NULL)",
        "SELECT id FROM a WHERE n NOT IN (1, 2)", "SELECT id FROM a WHERE n = ANY ('{1,NULL}'::int[])",
        "SELECT id FROM a WHERE n <> ALL ('{1,2}')", "SELECT id FROM a WHERE n < ANY ('{3,5}')",
        "SELECT id FROM a WHERE n > ALL ('{1,2}')", "SELECT id FROM a WHERE m BETWEEN 3 AND 7 OR d > 300",
        "SELECT id FROM a WHERE m BETWEEN SYMMETRIC 7 AND 3", "SELECT id FROM a WHERE x LIKE 'text 1_'",
        "SELECT id FROM a WHERE x NOT LIKE '%1'", "SELECT id FROM a WHERE n IS NULL AND d IS NOT NULL",
        "SELECT id FROM a WHERE b IS TRUE", "SELECT id FROM a WHERE b IS NOT FALSE",
        "SELECT id FROM a WHERE (n = 1) IS UNKNOWN", "SELECT id FROM a WHERE (n = 1) IS NOT TRUE",
        "SELECT id FROM a WHERE n IS DISTINCT FROM m", "SELECT id FROM a WHERE n IS NOT DISTINCT FROM 3",
        "SELECT id FROM a WHERE CASE WHEN n > 3 THEN m ELSE n END = 4",
        "SELECT id FROM a WHERE CASE n WHEN 1 THEN 'one' WHEN 2 THEN 'two' END = 'two'",
        "SELECT id FROM a WHERE COALESCE(n, m, 0) = 3", "SELECT id FROM a WHERE NULLIF(n, 2) = 4",
        "SELECT id FROM a WHERE GREATEST(n, m) = 4", "SELECT id FROM a WHERE LEAST(x, 'text 3') = 'text 3'",
        "SELECT id FROM a WHERE length(x) = 6 AND substr(x, 6) = '3'",
        "SELECT id FROM a WHERE at < '2024-02-01' AND extract(hour FROM at) = 3",
        "SELECT id FROM a WHERE day + 1 = '2024-01-05'", "SELECT id FROM a WHERE round(d, 1) = 2.5",
        "SELECT id FROM a WHERE j @> '{\"k\": 3}'", "SELECT id FROM a WHERE j ->> 'k' = '3'",
        "SELECT id FROM a WHERE (j ->> 'k')::int = 3", "SELECT id FROM a WHERE id::text LIKE '1%'",
        "SELECT id FROM a WHERE j ?| '{k,z}'", "SELECT id FROM a WHERE concat(x, n) = 'text 11'",
        "SELECT id FROM a WHERE lower(x COLLATE \"C\") = 'text 1'",
        "SELECT id FROM a WHERE x ILIKE 'TEXT 1%' COLLATE \"C\"",
        "SELECT id FROM a WHERE e = 'e3'", "SELECT id FROM a WHERE e IN ('e3', 'e4')",
        "SELECT id FROM a WHERE tz < now()", "SELECT id FROM a WHERE n = (SELECT max(sub) FROM c)",
        "SELECT id FROM a WHERE (n, m) IN ((1, 2), (3, 4))", "SELECT id FROM a WHERE x > 'text 3' COLLATE \"C\"",
    ],
    "outputs": [
        "SELECT id, n + m, upper(x), random(), a FROM a", "SELECT x || '!', CASE WHEN b THEN 1 END FROM a",
    ],
    "aggregates": [
        "SELECT count(*) FROM a", "SELECT count(n), min(x), max(at), sum(m), avg(d), bool_and(b) FROM a",
        "SELECT n, count(*) FROM a GROUP BY n", "SELECT n, m, sum(d) FROM a WHERE b GROUP BY n, m",
        "SELECT n + 1, max(m) FROM a GROUP BY 1", "SELECT date_trunc('month', at), count(*) FROM a GROUP BY 1",
        "SELECT CASE WHEN n > 3 THEN 'many' ELSE 'few' END, count(*) FROM a GROUP BY 1",
        "SELECT n FROM a GROUP BY n", "SELECT n, sum(m) + count(*) FROM a GROUP BY n",
        "SELECT n, count(*) FROM a GROUP BY n HAVING count(*) > 10 AND max(m) < 100",
        "SELECT count(*) FILTER (WHERE n > 2), sum(m) FILTER (WHERE b) FROM a",
        "SELECT count(DISTINCT n), sum(DISTINCT m) FROM a", "SELECT n, count(DISTINCT x) FROM a GROUP BY n",
        "SELECT string_agg(x, ',' ORDER BY id) FROM a", "SELECT n, string_agg(DISTINCT x, ',' ORDER BY x) FROM a"
        " GROUP BY n", "SELECT e, count(*) FROM a GROUP BY e", "SELECT count(DISTINCT e) FROM a",
        "SELECT sum(CASE WHEN b THEN m ELSE 0 END), max(COALESCE(n, -1)) FROM a",
        "SELECT stddev(m), variance(d), bit_or(m), every(b) FROM a", "SELECT lower(max(x)), now() FROM a",
        "SELECT count(*) FROM (SELECT n FROM a WHERE m > 5) s",
        "SELECT 1 FROM a HAVING count(*) > 5", "SELECT n FROM a GROUP BY n HAVING n IS NULL",
        "SELECT n, 5, now(), count(*) FROM a GROUP BY n, 2, 3", "SELECT 5, sum(m) FROM a WHERE n = 9 GROUP BY 1",
        "SELECT 'x' FROM a WHERE n > 9 GROUP BY 1 HAVING max(m) > 3",
        "SELECT sum(DISTINCT m % 3 ORDER BY m % 3), string_agg(DISTINCT left(x, 3), ',' ORDER BY left(x, 3)) FROM a",
    ],
    "grouping sets": [
        "SELECT n, m, count(*) FROM a GROUP BY GROUPING SETS ((n), (m), ())",
        "SELECT n, m, count(*), GROUPING(n, m) FROM a GROUP BY ROLLUP (n, m) HAVING GROUPING(m) = 0 OR max(m) > 3",
        "SELECT n + 1, GROUPING(n + 1, m), sum(d) FROM a GROUP BY CUBE (n + 1, m)",
        "SELECT max(m), GROUPING(n) FROM a GROUP BY n",
        "SELECT n, lower(x), count(*) FROM a GROUP BY b, ROLLUP (n, x)",
        "SELECT sum(m) FROM a GROUP BY GROUPING SETS ((), ())",
        "SELECT n, count(*) FROM a GROUP BY ROLLUP (n) ORDER BY GROUPING(n), n LIMIT 5",
        "SELECT DISTINCT n, count(*) FROM a GROUP BY CUBE (n, b)",
        "SELECT n, rank() OVER (PARTITION BY GROUPING(n) ORDER BY count(*)) FROM a GROUP BY ROLLUP (n)",
        "SELECT CASE WHEN GROUPING(x) = 1 THEN 'all' ELSE lower(x) END, count(*) FROM a GROUP BY ROLLUP (x)",
        "SELECT c.x, a.n, count(*) FROM a LEFT JOIN c ON a.id = c.id GROUP BY ROLLUP (c.x, a.n)",
    ],
    "DISTINCT ON": [
        "SELECT DISTINCT ON (n) n, id FROM a ORDER BY n, id", "SELECT DISTINCT ON (n) id, lower(x) FROM a",
        "SELECT DISTINCT ON (n, b) x FROM a WHERE m < 9 ORDER BY b, n DESC NULLS LAST, d, id LIMIT 5 OFFSET 1",
        "SELECT DISTINCT ON (m % 3) id, rank() OVER (ORDER BY id) FROM a",
        "SELECT DISTINCT ON (n) n, x, count(*) FROM a GROUP BY n, x ORDER BY n, count(*) DESC",
        "SELECT DISTINCT ON (a.n) c.sub FROM a LEFT JOIN c ON a.id = c.id ORDER BY a.n, c.sub",
    ],
    "types kept as text": [
        "SELECT iv, count(*) FROM k WHERE iv > '1 day' GROUP BY iv HAVING max(t) < '12:00' ORDER BY iv",
        "SELECT id FROM k WHERE ip = '10.0.0.1' OR ip BETWEEN '10.0.0.0' AND '10.1.0.0' ORDER BY ip DESC, id LIMIT 5",
        "SELECT id FROM k WHERE ip = ANY (ARRAY(SELECT ip FROM k WHERE id < 9)) AND t IS DISTINCT FROM '24:00'",
        "SELECT DISTINCT ch, mood FROM k WHERE mood IN ('ok', 'sad') AND ch <> 'a'", "SELECT min(iv), max(ip) FROM k",
        "SELECT DISTINCT ON (net) net, id FROM k WHERE net >= '10.0.0.0/8' ORDER BY net, id",
        "SELECT x.id FROM k x JOIN k y ON x.iv = y.iv LEFT JOIN k z ON z.mood = y.mood AND z.t > y.t",
        "SELECT id, rank() OVER (PARTITION BY mood ORDER BY bits, mac) FROM k WHERE COALESCE(iv, '1 day') = '1 day'",
        "SELECT at - timestamp '2024-01-01', count(*) FROM a GROUP BY 1 ORDER BY 1",
        "SELECT x.id FROM k x JOIN k y ON x.ip << y.net AND x.t + y.iv < '12:00' ORDER BY x.iv + y.iv, host(x.ip)",
        "SELECT id FROM k WHERE o = 5 AND price = '1.50' AND NULLIF(t, '1:00') IS NULL ORDER BY zoned, id",
    ],
    "arrays": [
        "SELECT array_agg(id ORDER BY id), array_agg(at ORDER BY n, id) FROM a", "SELECT n, array_agg(DISTINCT x)"
        " FROM a"
        " GROUP BY n", "SELECT n, array_agg(DISTINCT m % 5 ORDER BY m % 5 DESC) FILTER (WHERE b) FROM a GROUP BY n",
        "SELECT n, (array_agg(id ORDER BY id))[1], cardinality(array_agg(j ORDER BY id)) FROM a GROUP BY n ORDER BY n",
        f"SELECT id FROM a WHERE n IN ({', '.join(map(str, range(40)))})",
        f"SELECT id FROM a WHERE n NOT IN ({', '.join(map(str, range(40)))}, NULL)",
        "SELECT id FROM a WHERE id = ANY ((SELECT array_agg(id) FROM c)::bigint[])",
        "SELECT id FROM a WHERE n + 1 <> ALL (ARRAY(SELECT sub FROM c))",
        "SELECT id FROM a WHERE x LIKE ANY (ARRAY(SELECT x FROM c)) OR n < ALL (ARRAY(SELECT sub FROM c))",
        "SELECT count(*) FILTER (WHERE x = ANY (ARRAY(SELECT x FROM c))) FROM a",
    ],
    "DISTINCT": [
        "SELECT DISTINCT n FROM a", "SELECT DISTINCT n, m % 3 FROM a", "SELECT DISTINCT x FROM a WHERE m < 20",
        "SELECT DISTINCT e FROM a", "SELECT DISTINCT n FROM a ORDER BY n", "SELECT DISTINCT n FROM a LIMIT 3",
        "SELECT DISTINCT count(*) FROM a GROUP BY n", "SELECT DISTINCT sum(m) / 10 FROM a GROUP BY n, m ORDER BY 1",
        "SELECT DISTINCT n FROM a ORDER BY n DESC LIMIT 3", "SELECT DISTINCT m, n, count(*) FROM a GROUP BY m, n",
    ],
    "ORDER BY": [
        "SELECT id FROM a ORDER BY id", "SELECT id FROM a ORDER BY n DESC, id",
        "SELECT id FROM a ORDER BY n NULLS FIRST, d DESC NULLS LAST, id", "SELECT id, x FROM a ORDER BY x, id",
        "SELECT id FROM a ORDER BY e COLLATE \"C\", id", "SELECT id FROM a ORDER BY n + m, id",
        "SELECT id, lower(x) FROM a ORDER BY id", "SELECT n, count(*) FROM a GROUP BY n ORDER BY n",
        "SELECT n, count(*) FROM a GROUP BY n ORDER BY count(*) DESC, n",
        "SELECT n, count(*) AS c FROM a GROUP BY n ORDER BY c", "SELECT id FROM a ORDER BY f, id",
        "SELECT id FROM a ORDER BY n USING >, id",
    ],
    "LIMIT": [
        "SELECT id FROM a LIMIT 5", "SELECT id FROM a WHERE n = 3 LIMIT 5 OFFSET 2", "SELECT id FROM a OFFSET 2990",
        "SELECT id FROM a ORDER BY n, id LIMIT 5", "SELECT id FROM a ORDER BY n DESC, id LIMIT 5 OFFSET 10",
        "SELECT id FROM a ORDER BY id FETCH FIRST 3 ROWS ONLY", "SELECT n, count(*) FROM a GROUP BY n LIMIT 2",
        "SELECT n, count(*) FROM a GROUP BY n ORDER BY n LIMIT 2", "SELECT id FROM a LIMIT (SELECT 3)",
        "SELECT id, upper(x) FROM a ORDER BY x, id LIMIT 5",
    ],
    "window functions": [
        "SELECT id, row_number() OVER (ORDER BY id) FROM a",
        "SELECT id, rank() OVER (PARTITION BY n ORDER BY m DESC NULLS LAST) FROM a",
        "SELECT id, dense_rank() OVER w, percent_rank() OVER w, cume_dist() OVER w FROM a WINDOW w AS (ORDER BY m)",
        "SELECT id, ntile(4) OVER (ORDER BY id) FROM a",
        "SELECT id, lag(x) OVER w, lead(x, 2) OVER w, lag(n, 1, 0) OVER w FROM a WINDOW w AS (ORDER BY id)",
        "SELECT id, first_value(x) OVER w, last_value(m) OVER w, nth_value(n, 2) OVER w FROM a"
        " WINDOW w AS (PARTITION BY n ORDER BY id)",
        "SELECT id, sum(m) OVER (PARTITION BY n) FROM a", "SELECT id, count(*) OVER () FROM a",
        "SELECT id, sum(m) OVER (ORDER BY id ROWS BETWEEN 2 PRECEDING AND 1 FOLLOWING) FROM a",
        "SELECT id, max(x) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING) FROM a",
        "SELECT id, avg(d) OVER (ORDER BY m RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) FROM a",
        "SELECT id, count(n) FILTER (WHERE b) OVER (ORDER BY id) FROM a",
        "SELECT x, count(*), rank() OVER (ORDER BY count(*)) FROM a GROUP BY x",
        "SELECT n, x, count(*), rank() OVER (PARTITION BY n ORDER BY x) FROM a WHERE n = 3 GROUP BY n, x",
        "SELECT n, m, count(*), rank() OVER (ORDER BY count(*)) FROM a WHERE n = m GROUP BY n, m",
        "SELECT id, row_number() OVER (ORDER BY id DESC), rank() OVER (PARTITION BY n ORDER BY m) FROM a",
        "SELECT id, row_number() OVER (ORDER BY m, id) AS r FROM a ORDER BY r LIMIT 10",
        "SELECT rank() OVER (PARTITION BY n > 3 AND x = 'text 3' ORDER BY COALESCE(n, 0), GREATEST(x, 'a')) FROM a",
    ],
    "joins": [
        "SELECT a.id, c.x FROM a JOIN c ON a.id = c.id", "SELECT a.id, c.x FROM a LEFT JOIN c ON a.id = c.id",
        "SELECT a.id, c.x FROM a RIGHT JOIN c ON a.id = c.id AND a.n = 2",
        "SELECT a.id, c.x FROM a FULL JOIN c ON a.id = c.id",
        "SELECT a.id, c.x FROM a LEFT JOIN c ON a.id = c.id AND c.sub > 100 WHERE a.n = 3",
        "SELECT a.id, c.x FROM a LEFT JOIN c ON a.id = c.id WHERE c.id IS NULL OR c.sub < 9",
        "SELECT id FROM a WHERE id IN (SELECT id FROM c)",
        "SELECT id FROM a WHERE EXISTS (SELECT FROM c WHERE c.id = a.id AND c.sub > 7)",
        "SELECT id FROM a WHERE NOT EXISTS (SELECT FROM c WHERE c.id = a.id)",
        "SELECT y.id FROM a x JOIN a y ON x.id = y.m AND x.n < 3", "SELECT x.id FROM a x, a y WHERE x.id = y.id + 1",
        "SELECT a.id FROM a JOIN c ON a.id = c.id JOIN u ON u.id = a.id",
        "SELECT a.id FROM a LEFT JOIN (c JOIN u ON u.id = c.sub) ON a.id = c.id",
        "SELECT a.id FROM a JOIN c ON a.id = c.id WHERE NOT EXISTS (SELECT FROM u WHERE u.id = a.id AND u.n > c.sub)",
        "SELECT a.id FROM a JOIN c ON a.id = c.id ORDER BY a.id, c.sub LIMIT 5",
        "SELECT count(*), max(c.x) FROM a JOIN c ON a.id = c.id",
        "SELECT c.x, count(a.n), sum(a.d) FROM c LEFT JOIN a ON a.id = c.id GROUP BY c.x ORDER BY c.x",
        "SELECT count(*) FROM a FULL JOIN c ON a.id = c.id", "SELECT DISTINCT c.x FROM a JOIN c USING (id)",
        "SELECT count(*) FROM a WHERE id IN (SELECT id FROM c WHERE sub < 99)",
        "SELECT a.e FROM a JOIN a o ON a.e = o.e AND a.id < 10 AND o.id < 10",
        "WITH w AS (SELECT * FROM a WHERE n = 3) SELECT w.id, c.sub FROM w JOIN c USING (id)",
        "SELECT a.id FROM a, LATERAL (SELECT * FROM c WHERE c.id = a.id) l",
        "SELECT lower(a.x), c.sub, random() FROM a JOIN c ON a.id = c.id", "SELECT 1 FROM a JOIN c ON a.id = c.id",
        "SELECT a.n + a.m, COALESCE(l.x, a.x) FROM a LEFT JOIN c l ON a.id = l.id",
        "SELECT c.sub, rank() OVER (PARTITION BY a.n ORDER BY c.sub) FROM a JOIN c ON a.id = c.id",
        "SELECT a.id, s.x FROM (SELECT id FROM a WHERE n < 3) a FULL JOIN (SELECT c.id, u.x FROM c JOIN u ON u.id ="
        " c.sub"
        " WHERE u.n > 3) s ON a.id = s.id",
        "SELECT a.id, s.id, s.u FROM (SELECT id FROM a WHERE n < 3) a FULL JOIN (SELECT c.id, u.id FROM (SELECT *"
        " FROM c"
        " WHERE sub > 5) c FULL JOIN (SELECT * FROM u WHERE n > 3) u ON c.sub = u.id WHERE u.x IS NULL OR c.x > 'b')"
        " s (id, u) ON a.id = s.id",
        "SELECT a.id, s.id FROM a FULL JOIN (SELECT * FROM c WHERE EXISTS (SELECT FROM u WHERE u.id = c.sub)) s"
        " ON a.id = s.id",
        "SELECT a.id, s.id FROM a LEFT JOIN (SELECT * FROM c WHERE NOT EXISTS (SELECT FROM u WHERE u.id = c.sub)) s"
        " ON a.id = s.id",
    ],
    "computed columns below outer joins": [
        f"SELECT {outputs} FROM {source} {rest}" for source in (
            "a LEFT JOIN (SELECT id, COALESCE(x, 'none') AS z, 42 AS k FROM c WHERE sub > 7) s ON a.id = s.id",
            "(SELECT id, COALESCE(x, 'none') AS z, 42 AS k FROM c) s RIGHT JOIN a ON a.id = s.id AND s.z <> 'c1'",
            "a LEFT JOIN (SELECT c.id, COALESCE(u.x, c.x, '?') AS z, u.k FROM c LEFT JOIN"
            " (SELECT id, x, n + 1 AS k FROM u) u ON u.id = c.sub) s ON a.id = s.id",
            "a FULL JOIN (SELECT id, COALESCE(x, 'none') AS z, true AS k FROM c) s ON a.id = s.id")
        for outputs, rest in (
            ("a.id, s.z, s.k", ""), ("a.id, s.z || '!', lower(s.z), s.k", "WHERE s.z IS NULL OR s.z > 'c'"),
            ("s.z, count(*), lower(max(a.x))", "GROUP BY s.z ORDER BY 1"), ("DISTINCT s.z", ""),
            ("a.id", "ORDER BY s.z DESC, a.id LIMIT 3"), ("row_number() OVER (ORDER BY s.z)", ""),
            ("a.id, s.z", "WHERE NOT EXISTS (SELECT FROM u WHERE u.id = a.id AND u.x > s.z)"))
    ],
}  # fmt: skip


LOCKED = [
    "SELECT a.id FROM a JOIN c ON a.id = c.id FOR UPDATE", "SELECT a.id FROM a JOIN c ON a.id = c.id FOR SHARE OF a",
    "SELECT a.n + c.sub FROM a LEFT JOIN c ON a.id = c.id WHERE a.m < 9 FOR UPDATE OF a SKIP LOCKED",
    "SELECT a.id, c.sub, b.n FROM a JOIN c ON a.id = c.id JOIN a b ON b.id = c.id FOR UPDATE OF c",
    "SELECT a.id FROM a JOIN c ON a.id = c.id JOIN a b ON b.id = c.id LEFT JOIN c d ON d.id = b.id FOR UPDATE OF a, b",
    "SELECT a.id, s.z FROM a LEFT JOIN (SELECT id, COALESCE(x, 'none') AS z FROM c WHERE sub > 7) s ON a.id = s.id"
    " FOR UPDATE OF a",
    "SELECT id FROM a WHERE id IN (SELECT id FROM c) FOR UPDATE", "SELECT id FROM a ORDER BY n, id FOR UPDATE",
    "SELECT id FROM a WHERE n + 1 > 3 ORDER BY n DESC LIMIT 3 FOR UPDATE",
    "SELECT a.id FROM a JOIN c ON a.id = c.id ORDER BY a.n, a.id LIMIT 2 FOR UPDATE OF a FOR SHARE OF c NOWAIT",
]  # fmt: skip


def test_rows_that_are_locked(tables: Session) -> None:
    for sql in LOCKED:
        found = {node["Node Type"] for node in nodes(plan(tables, sql))}
        assert found <= {"Limit", "LockRows", "Foreign Scan"}, (sql, found)
        (remote,) = remote_sql(tables, sql)
        assert re.search("FOR (UPDATE|SHARE)", remote)
        assert ("LIMIT" in remote) is ("LIMIT" in sql), remote
        unlocked = re.sub(" FOR (UPDATE|SHARE).*", "", sql, flags=re.DOTALL)
        assert sorted(map(repr, tables(sql))) == sorted(map(repr, tables(unlocked))), sql


@pytest.mark.parametrize("form", SENT)
def test_what_is_sent(tables: Session, form: str) -> None:
    left = {sql: plan(tables, sql) for sql in SENT[form] if not root_is_foreign_scan(tables, sql)}
    assert not left
