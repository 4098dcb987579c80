"""The same SELECTs on ordinary tables and on KalamDB tables, hand-written and generated: rows, order and SQLSTATE.

Every tier that rows can be in holds the same edge data, full of NULLs. `KALAM_QUERY_SEED` chooses the generated
queries, `KALAM_QUERIES` how many there are in each tier; a failure tells both and the statements to repeat it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg.types.string import TextLoader

from .edge_tables import TIERS, fill
from .pair import Pair, Side
from .plans import make_collations
from .statements import Query, Statements

pytestmark = pytest.mark.pg

SEED = int(os.environ.get("KALAM_QUERY_SEED", "20240229"))
QUERIES = int(os.environ.get("KALAM_QUERIES", "300"))
FLOATS, NUMERIC = (700, 701), 1700

Row = tuple[Any, ...]
Result = str | list[Row]


@pytest.fixture(scope="module")
def collations(module_dsn: str) -> None:
    with psycopg.connect(module_dsn, autocommit=True) as conn:
        make_collations(conn)


@pytest.fixture(scope="module", params=TIERS)
def pair(request: pytest.FixtureRequest, module_dsn: str, collations: None) -> Iterator[Pair]:
    with closing(Pair(module_dsn, "user" if request.param == "user" else "shared")) as pair:
        for side in (pair.heap, pair.kalam):
            side.conn.adapters.register_loader(0, TextLoader)
            for info in side.conn.adapters.types:
                side.conn.adapters.register_loader(info.oid, TextLoader)
                side.conn.adapters.register_loader(info.array_oid, TextLoader)
            side.conn.prepare_threshold = None
            side.conn.execute("SET TimeZone = 'America/New_York'")
        fill(pair, request.param)
        yield pair


# ---------- running and comparing ----------
def statements(query: Query) -> tuple[list[str], str, list[str]]:
    """What to do before, the query, and what to do after."""
    before = [f"SET {name} = off" for name in query.off]
    after = [f"RESET {name}" for name in query.off]
    if query.params is None:
        return before, query.sql, after
    before += [f"SET plan_cache_mode = force_{'generic' if query.generic else 'custom'}_plan", query.prepare()]
    return before, query.execute(), [*after, "RESET plan_cache_mode", "DEALLOCATE ALL"]


def run(side: Side, query: Query) -> Result:
    before, sql, after = statements(query)
    in_block = side.conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
    try:
        if in_block:
            side.conn.execute("SAVEPOINT one")
        for each in before:
            side.conn.execute(each)
        cursor = side.conn.execute(sql)
        types = [column.type_code for column in cursor.description or ()]
        return [tuple(known(each, type_) for each, type_ in zip(row, types, strict=True)) for row in cursor]
    except psycopg.Error as error:
        if side.conn.broken:
            raise
        return f"{error.sqlstate}"
    finally:
        if not side.conn.broken:
            side.conn.execute("ROLLBACK TO one; RELEASE one" if in_block else "SELECT")
            for each in after:
                side.conn.execute(each)


def known(text: str | None, type_: int) -> Any:
    """Numbers as numbers that remember how they are spelled."""
    if text is None or type_ not in (*FLOATS, NUMERIC):
        return text
    return (float(text) if type_ in FLOATS else Decimal(text), text)


def same_value(one: Any, two: Any, by_value: bool) -> bool:
    if one == two:
        return True
    if not isinstance(one, tuple) or not isinstance(two, tuple):
        return False
    if one[1] == two[1]:
        return True  # NaN is not equal to itself
    if isinstance(one[0], float):
        near = math.isclose(one[0], two[0], rel_tol=1e-12)
        return near and (by_value or math.copysign(1, one[0]) == math.copysign(1, two[0]))
    return by_value and bool(one[0] == two[0])


def same_row(one: Row, two: Row, by_value: bool) -> bool:
    return len(one) == len(two) and all(map(same_value, one, two, [by_value] * len(one)))


def sort_key(row: Row) -> list[str]:
    """Without what `same_value` leaves open."""
    return [repr(each) if not isinstance(each, tuple) else f"{float(each[0]) + 0.0:.9g}" for each in row]


def differ(wanted: Result, got: Result, query: Query) -> bool:
    if isinstance(wanted, str) or isinstance(got, str):
        return wanted != got
    if len(wanted) != len(got):
        return True
    if query.counted:
        return False
    if not query.ordered:
        wanted, got = sorted(wanted, key=sort_key), sorted(got, key=sort_key)
    if all(same_row(one, two, query.by_value) for one, two in zip(wanted, got, strict=True)):
        return False
    return query.ordered or not match(wanted, got, query.by_value)


def match(wanted: Sequence[Row], got: Sequence[Row], by_value: bool) -> bool:
    """Is there a row of one for each of the other? Those that sort alike may have changed places."""
    left = list(got)
    for row in wanted:
        found = next((place for place, other in enumerate(left) if same_row(row, other, by_value)), None)
        if found is None:
            return False
        del left[found]
    return True


def compare(pair: Pair, query: Query) -> str:
    """What is told of a query whose results differ."""
    wanted, got = run(pair.heap, query), run(pair.kalam, query)
    if not differ(wanted, got, query):
        return ""
    return f"{query}\n-- ordinary tables: {shown(wanted, got)}\n-- KalamDB tables:  {shown(got, wanted)}\n"


def shown(one: Result, two: Result) -> str:
    """Most of all the rows that the other has not."""
    if isinstance(one, str):
        return one
    rows = [tuple(each[1] if isinstance(each, tuple) else each for each in row) for row in one
            if isinstance(two, str) or row not in two] or one[:3]
    return f"{len(one)} rows, of its own: " + "; ".join(map(str, rows[:5]))


def test_generated_queries(pair: Pair, examples: Callable[[int], int]) -> None:
    generated = Statements(SEED)
    failed = [told for told in (compare(pair, generated.query()) for _ in range(examples(QUERIES))) if told]
    told = "\n".join([f"KALAM_QUERY_SEED={SEED} KALAM_QUERIES={QUERIES}: {len(failed)} differ\n", *failed[:12]])
    assert not failed, told
