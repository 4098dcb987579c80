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
from .plans import make_collations, nodes, plan, remote_sql

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
        ("SELECT id FROM a WHERE x ~ '^text'", "~"),
        ("SELECT id FROM a WHERE to_char(at, 'MM') = '01'", "to_char"),
        ("SELECT id FROM a WHERE ln(f + 1) > 3", r"\bln\b"),
        ("SELECT id FROM a WHERE concat(x, n) = 'text 11'", "concat"),
        ("SELECT id FROM a WHERE format('%s', n) = '1'", "format"),
        ("SELECT lower(x), count(*) FROM a GROUP BY 1", "lower|count"),
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
    "the order of rows makes the result": [
        ("SELECT sum(f) FROM a", "sum"),
        ("SELECT n, avg(f) FROM a GROUP BY n", "avg"),
        ("SELECT stddev(f) FROM a", "stddev"),
        ("SELECT string_agg(x, ',') FROM a", "string_agg"),
        ("SELECT string_agg(x, ',') OVER (ORDER BY id) FROM a", "string_agg"),
        ("SELECT array_agg(id) FROM a", "array_agg"),
    ],
    "the server has no arrays, records or intervals": [
        ("SELECT array_agg(id ORDER BY id) FROM a", "array_agg"),
        ("SELECT n, array_agg(DISTINCT x) FROM a GROUP BY n", "array_agg"),
        ("SELECT jsonb_agg(n ORDER BY id) FROM a", "jsonb_agg"),
        ("SELECT DISTINCT ROW(n, m) FROM a", "ROW|DISTINCT"),
        ("SELECT DISTINCT ARRAY[n, m] FROM a", "ARRAY|DISTINCT"),
        ("SELECT a FROM a ORDER BY a", "ORDER BY"),
        ("SELECT count(a) FROM a", "count"),
        ("SELECT DISTINCT a FROM a", "DISTINCT"),
        ("SELECT id FROM a WHERE (n, m) < (3, 4)", "<"),
        ("SELECT id FROM a WHERE ROW(n, m) IS NULL", "ROW"),
        ("SELECT at - timestamp '2024-01-01', count(*) FROM a GROUP BY 1", "count| - "),
        ("SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY f) FROM a", "percentile|ORDER"),
        ("SELECT mode() WITHIN GROUP (ORDER BY n) FROM a", "mode|ORDER"),
    ],
    "rows are still left out here": [
        ("SELECT id FROM a WHERE lower(x) = 'text 1' LIMIT 3", "LIMIT"),
        ("SELECT id FROM a WHERE lower(x) = 'text 1' ORDER BY id LIMIT 3 OFFSET 1", "LIMIT|OFFSET"),
        ("SELECT count(*) FROM a WHERE lower(x) = 'text 1'", "count"),
        ("SELECT DISTINCT n FROM a WHERE lower(x) = 'text 1'", "DISTINCT"),
        ("SELECT id, row_number() OVER (ORDER BY id) FROM a WHERE lower(x) = 'text 1'", "row_number"),
        ("SELECT a.id FROM a LEFT JOIN c ON a.id = c.id WHERE lower(c.x) = 'c1' LIMIT 3", "LIMIT"),
        ("SELECT a.id FROM a LEFT JOIN (SELECT * FROM c WHERE lower(x) = 'c1') c ON a.id = c.id", "JOIN"),
        ("SELECT count(*) FROM a FULL JOIN c USING (id) WHERE lower(a.x) = lower(c.x)", "count"),
        ("SELECT max(x) FROM a GROUP BY n HAVING lower(max(x)) > 'text' LIMIT 2", "LIMIT"),
        ("SELECT DISTINCT max(x) FROM a GROUP BY n HAVING lower(max(x)) > 'text'", "DISTINCT"),
        ("SELECT id FROM a WHERE random() < 2 LIMIT 3", "LIMIT"),
    ],
    "only PostgreSQL makes it": [
        ("SELECT DISTINCT ON (n) n, id FROM a ORDER BY n, id", "DISTINCT"),
        ("SELECT n, m, count(*) FROM a GROUP BY GROUPING SETS ((n), (m), ())", "GROUP BY|count"),
        ("SELECT n, m, count(*) FROM a GROUP BY ROLLUP (n, m)", "GROUP BY|count"),
        ("SELECT n, m, count(*) FROM a GROUP BY CUBE (n, m)", "GROUP BY|count"),
        ("SELECT n, id FROM a ORDER BY n FETCH FIRST 3 ROWS WITH TIES", "FETCH|LIMIT"),
        ("SELECT id, generate_series(1, 2) FROM a LIMIT 3", "LIMIT|generate_series"),
        ("SELECT DISTINCT n, generate_series(1, 2) FROM a", "DISTINCT|generate_series"),
        ("SELECT id, generate_series(1, 2) FROM a ORDER BY 2, 1", "ORDER BY|generate_series"),
        ("SELECT id, sum(m) OVER (ORDER BY id GROUPS 2 PRECEDING) FROM a", "GROUPS|sum"),
        ("SELECT id, sum(m) OVER (ORDER BY id RANGE 2 PRECEDING) FROM a", "RANGE|sum"),
        ("SELECT id, sum(m) OVER (ORDER BY id ROWS 2 PRECEDING EXCLUDE CURRENT ROW) FROM a", "EXCLUDE|sum"),
        ("SELECT tableoid::regclass, id FROM a", "tableoid"),
        ("SELECT tableoid, count(*) FROM a GROUP BY 1", "tableoid|count"),
        ("SELECT id FROM a WHERE tableoid = 'a'::regclass", "tableoid| = "),
        ("SELECT n FROM a UNION SELECT sub FROM c", "UNION|DISTINCT"),
        ("SELECT id FROM a EXCEPT SELECT id FROM c", "EXCEPT|DISTINCT"),
        ("WITH w AS MATERIALIZED (SELECT * FROM a) SELECT count(*) FROM w", "count"),
        ("SELECT count(*) FROM (SELECT id FROM a OFFSET 1) s", "count"),
        ("SELECT a.id, l.x FROM a, LATERAL (SELECT c.x FROM c WHERE c.id = a.id LIMIT 1) l", "JOIN|LATERAL"),
        ("SELECT sum((SELECT max(sub) FROM c WHERE c.id = a.id)) FROM a", "sum"),
        ("SELECT a.id FROM a JOIN heap USING (id) WHERE a.n = 5", "JOIN|heap"),
        ("SELECT sum(n) FROM a WHERE id IN (SELECT id FROM heap)", "IN|heap|sum"),
    ],
    "rows are locked one table at a time, as they are read": [
        ("SELECT a.id FROM a JOIN c ON a.id = c.id FOR UPDATE", "JOIN"),
        ("SELECT a.id FROM a JOIN c ON a.id = c.id FOR SHARE OF a", "JOIN"),
        ("SELECT id FROM a WHERE id IN (SELECT id FROM c) FOR UPDATE", "EXISTS|IN"),
        ("SELECT id FROM a ORDER BY n, id FOR UPDATE", "ORDER BY"),
        ("SELECT id FROM a ORDER BY n LIMIT 3 FOR UPDATE", "ORDER BY|LIMIT"),
        ("DELETE FROM a USING c WHERE a.id = c.id", "USING|JOIN"),
        ("DELETE FROM a WHERE NOT EXISTS (SELECT FROM c WHERE c.id = a.id)", "EXISTS"),
    ],
}  # fmt: skip


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
