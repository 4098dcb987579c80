"""Window functions: with what PostgreSQL moves into them from a query above (run conditions), and with arguments of
several types, as on a heap table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .ddl import Session

pytestmark = pytest.mark.pg

RANKED = (
    "row_number() OVER (ORDER BY id)",
    "rank() OVER (ORDER BY grp)",
    "dense_rank() OVER (ORDER BY grp)",
    "count(*) OVER (ORDER BY id)",
    "count(val) OVER (ORDER BY id ROWS UNBOUNDED PRECEDING)",
    "row_number() OVER (PARTITION BY grp ORDER BY id)",
    "rank() OVER (PARTITION BY grp ORDER BY val DESC NULLS LAST)",
    "count(*) OVER (ORDER BY id RANGE BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING)",
)
CONDITIONS = (
    "n < 4",
    "n <= 3",
    "3 >= n",
    "n = 2",
    "n > 17",
    "n BETWEEN 2 AND 4",
    "n < 1",
    "n <= 2 AND val IS NOT NULL",
    "n < (SELECT 3)",
    "n <> 2",
    "n < 3 OR n > 15",
)
ABOVE = (
    "SELECT * FROM ({}) x WHERE {} ORDER BY id",
    "SELECT grp, count(*), sum(n) FROM ({}) x WHERE {} GROUP BY grp ORDER BY grp NULLS LAST",
    "SELECT DISTINCT n FROM ({}) x WHERE {} ORDER BY n DESC LIMIT 2",
    "SELECT x.other, n FROM (SELECT id AS other FROM t) x JOIN ({}) y ON other = id WHERE {} ORDER BY other",
)
SEVERAL = (
    "SELECT * FROM (SELECT id, row_number() OVER (ORDER BY id) a, rank() OVER (ORDER BY grp DESC) b FROM t) x"
    " WHERE a < 15 AND b <= 12 ORDER BY id",
    "SELECT * FROM (SELECT id, row_number() OVER w a, count(*) OVER w b, sum(val) OVER (PARTITION BY grp) c FROM t"
    " WINDOW w AS (PARTITION BY grp ORDER BY id)) x WHERE a <= 2 AND b <= 3 ORDER BY id",
    "SELECT * FROM (SELECT grp, row_number() OVER (ORDER BY grp NULLS LAST) n, sum(val) s FROM t GROUP BY grp) x"
    " WHERE n <= 2 ORDER BY n",
    "SELECT * FROM (SELECT DISTINCT row_number() OVER (PARTITION BY grp ORDER BY id) n FROM t) x"
    " WHERE n < 3 ORDER BY n",
    "SELECT id, ntile(grp + 1) OVER (ORDER BY id) FROM t WHERE grp > 1 ORDER BY id",
    # keys that PostgreSQL does not group by: equal to a constant, to each other, and of more than a column
    "SELECT grp, val, count(*), row_number() OVER (PARTITION BY grp ORDER BY val) n FROM t WHERE grp = 1"
    " GROUP BY grp, val ORDER BY n",
    "SELECT grp, val, count(*), rank() OVER (ORDER BY val) FROM t WHERE grp = val GROUP BY grp, val ORDER BY 1",
    "SELECT abs(grp), val, count(*), rank() OVER (ORDER BY val) FROM t WHERE abs(grp) = 1 GROUP BY abs(grp), val"
    " ORDER BY 2",
    "SELECT count(*), rank() OVER (ORDER BY count(*)) FROM t WHERE grp = 99 GROUP BY grp ORDER BY 1",
)
VALUES = (
    "lag(val, 1, 0.75) OVER (ORDER BY id)",
    "lead(val, 2, -1.25) OVER (ORDER BY id)",
    "lag(val, 1, 2) OVER (ORDER BY id)",
    "lag(num, 1, 7) OVER (ORDER BY id)",
    "lead(num, grp, 0.125) OVER (ORDER BY id)",
    "lag(num) OVER (ORDER BY id)",
    "lag(flt, 1, 1) OVER (ORDER BY id)",
    "lag(val, 1, 1.5::float8) OVER (ORDER BY id)",
    "lag(txt, 1, 'none') OVER (ORDER BY id)",
    "lag(val, 1, NULL) OVER (ORDER BY id)",
    "lag(num, 1, NULL) OVER (ORDER BY id)",
    "first_value(num) OVER (ORDER BY id)",
    "nth_value(num, 2) OVER (ORDER BY id)",
    "lag(fix, 1, 0.75) OVER (ORDER BY id)",
    "lag(fix, 1, 3) OVER (ORDER BY id)",
    "lag(fix, 1, 12345.678) OVER (ORDER BY id)",
)


@pytest.fixture(scope="module", params=["hot", "cold"])
def rows(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def both(db: Session, ns: str, rows: str) -> Iterator[Session]:
    columns = 'id int PRIMARY KEY, grp int, val int, num numeric, fix numeric(10,2), flt float8, txt text COLLATE "C"'
    db(f"CREATE SCHEMA {ns}_heap")
    db(f"CREATE TABLE {ns}_heap.t ({columns})")
    db(
        f"INSERT INTO {ns}_heap.t SELECT i, nullif(i % 5, 4), nullif(i * 7 % 11, 3), i / 8.0, i / 3.0, i / 7.0,"
        " 'text ' || i FROM generate_series(1, 20) i"
    )
    db(f"CREATE TABLE {ns}.t ({columns}) USING kalamdb WITH (type = 'shared', system_columns = 'false')")
    db(f"INSERT INTO {ns}.t SELECT * FROM {ns}_heap.t")
    if rows == "cold":
        db(f"SELECT kalam_flush('{ns}.t')")
    yield db
    db("RESET search_path")
    db(f"DROP SCHEMA {ns}_heap CASCADE")


def same(db: Session, ns: str, statements: list[str]) -> list[str]:
    """Those whose rows differ from heap's."""
    found = {}
    for schema in (f"{ns}_heap", ns):
        db(f"SET search_path = {schema}")
        found[schema] = [db(statement) for statement in statements]
    return [
        f"{statement}: {heap} is {kalam}"
        for statement, heap, kalam in zip(statements, *found.values(), strict=True)
        if heap != kalam
    ]


def plan(db: Session, statement: str) -> str:
    return "\n".join(row[0] for row in db(f"EXPLAIN (VERBOSE, COSTS OFF) {statement}"))


def test_conditions_on_windows(both: Session, ns: str) -> None:
    subqueries = [f"SELECT id, grp, val, {ranked} AS n FROM t" for ranked in RANKED]
    statements = [
        above.format(subquery, condition) for above in ABOVE for subquery in subqueries for condition in CONDITIONS
    ]
    assert same(both, ns, [*statements, *SEVERAL]) == []


def test_they_are_sent(both: Session, ns: str) -> None:
    both(f"SET search_path = {ns}")
    for ranked in RANKED:
        statement = f"SELECT * FROM (SELECT id, grp, {ranked} AS n FROM t) x WHERE n <= 3"
        shown = plan(both, statement)
        assert "WindowAgg" not in shown, shown
        assert "QUALIFY" in shown or "Filter" in shown, shown


def test_prepared(both: Session, ns: str) -> None:
    """A parameter in a generic plan."""
    both(f"SET search_path = {ns}")
    both("SET plan_cache_mode = force_generic_plan")
    both(
        "PREPARE few(int) AS SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) n FROM t) x"
        " WHERE n <= $1 ORDER BY id"
    )
    assert [both(f"EXECUTE few({count})") for count in (2, 0, 3)] == [[(1,), (2,)], [], [(1,), (2,), (3,)]]
    both("DEALLOCATE few")
    both("RESET plan_cache_mode")


def test_values_of_windows(both: Session, ns: str) -> None:
    assert same(both, ns, [f"SELECT id, {value}, pg_typeof({value}) FROM t ORDER BY id" for value in VALUES]) == []


@pytest.mark.parametrize(("value", "state"), [("ntile(0)", "22014"), ("ntile(-1)", "22014"),
                                              ("nth_value(val, 0)", "22016"), ("nth_value(val, -2)", "22016")])
def test_wrong_arguments(both: Session, ns: str, value: str, state: str) -> None:
    for schema in (f"{ns}_heap", ns):
        both(f"SET search_path = {schema}")
        both.fails(f"SELECT {value} OVER (ORDER BY id) FROM t", state, "must be greater than zero")
        assert both(f"SELECT {value} OVER (ORDER BY id) FROM t WHERE id < 0") == []
