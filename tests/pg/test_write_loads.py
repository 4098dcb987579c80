"""Loads: INSERT … SELECT of thousands of rows, which the server keeps as the batches they came in, beside everything
that looks at single rows of them. The same statements run on heap tables."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from .pair import Pair

pytestmark = pytest.mark.pg

#: more rows than the server keeps in memory
MANY = 70_000
KEYS = {"int": "g", "text": "'k' || lpad(g::text, 6, '0') COLLATE \"C\"", "numeric": "g / 10.0"}


@pytest.fixture(params=["shared", "user"])
def pair(dsn: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(dsn, request.param)
    pair.setup("CREATE TABLE items (id int PRIMARY KEY, n int NOT NULL, t text) {using}")
    yield pair
    pair.close()


def load(first: int, last: int, n: str = "g % 7", *, order: str = "g", more: str = "") -> str:
    return (f"INSERT INTO items SELECT g, {n}, 'row ' || g FROM generate_series({first}, {last}) g ORDER BY {order}"
            f" {more}")


def test_what_is_done_to_the_rows_of_a_load(pair: Pair) -> None:
    """Within the transaction, between its savepoints, and after it."""
    assert pair.both("BEGIN").sqlstate is None
    pair.both(load(1, 3000, order="g % 13, g"))
    pair.both("UPDATE items SET n = n + 100 WHERE id % 500 = 0")
    pair.both("DELETE FROM items WHERE id BETWEEN 100 AND 120")
    pair.both("INSERT INTO items VALUES (100, 1, 'again')")
    pair.both("SAVEPOINT a")
    pair.both(load(5000, 7000))
    pair.both("UPDATE items SET id = id + 10000 WHERE id IN (1, 5001)")
    pair.both("SAVEPOINT b")
    pair.both(load(3001, 4999))
    pair.both("SELECT count(*), sum(n), min(t), max(id) FROM items")
    pair.both("ROLLBACK TO b")
    pair.both(load(3001, 3900, "-g"))
    pair.both("RELEASE a")
    pair.both("SELECT * FROM items WHERE id IN (100, 110, 500, 3001, 3900, 3901, 10001, 15001)")
    pair.both("COMMIT")
    pair.both("DELETE FROM items WHERE id % 2 = 0")
    pair.both(load(2, 90, "1", more="ON CONFLICT DO NOTHING"))


@pytest.mark.parametrize("statement", [
    load(2500, 4500), load(-1000, 1), load(-3000, 3000, order="-g"), load(5000, 6999, "NULLIF(g, 6500)"),
    "INSERT INTO items SELECT g / 2, g, 'twice' FROM generate_series(10001, 13000) g",
    load(9000, 11000).replace("SELECT g,", "SELECT CASE g WHEN 10500 THEN 7 ELSE g END,"),
])
@pytest.mark.parametrize("own", [False, True])
def test_errors_of_loads(pair: Pair, statement: str, own: bool) -> None:
    """Keys that are there, in the load itself, in the transaction or before it; NULL."""
    if own:
        pair.both("BEGIN")
    pair.both(load(1, 3000))
    if own:
        pair.both("SAVEPOINT a")
    failed = pair.both(statement)
    assert failed.sqlstate in ("23505", "23502")
    if own:
        pair.both("ROLLBACK TO a")
    pair.both(load(3001, 6000))
    if own:
        pair.both("COMMIT")


@pytest.mark.parametrize("order", ["g", "-g", "g % 97, g"])
def test_more_rows_than_stay_in_memory(pair: Pair, order: str) -> None:
    pair.both("BEGIN")
    pair.both(load(1, MANY, order=order))
    pair.both(load(MANY + 1, MANY + 5000))
    pair.both("UPDATE items SET t = 'changed' WHERE id % 10000 = 3")
    pair.both("SAVEPOINT a")
    pair.both(load(200_001, 200_000 + MANY))
    pair.both("ROLLBACK TO a")
    assert pair.both(f"INSERT INTO items VALUES ({MANY}, 1, 'twice')").sqlstate == "23505"
    pair.both("ROLLBACK TO a")
    pair.both(load(-MANY // 2, 0))
    pair.both("COMMIT")
    assert pair.both(load(MANY - 1000, MANY + 1000)).sqlstate == "23505"


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_other_types(dsn: str, kind: str) -> None:
    pair = Pair(dsn)
    key = KEYS[kind]
    clause = ' COLLATE "C"' if kind == "text" else ""
    pair.setup(f"CREATE TABLE items (n int, id {kind}{clause}, PRIMARY KEY (id, n)) {{using}};"
               f"CREATE TABLE alone (id {kind}{clause} PRIMARY KEY, v float8) {{using}}")
    for order in ("g", "md5(g::text)"):
        pair.both("BEGIN")
        pair.both(f"INSERT INTO items SELECT g % 5, {key} FROM generate_series(1, 2500) g ORDER BY {order}")
        pair.both(f"INSERT INTO alone SELECT {key}, 'NaN' FROM generate_series(2501, 4500) g ORDER BY {order}")
        pair.both(f"DELETE FROM alone WHERE id = (SELECT {key} FROM (SELECT 3000 AS g) s)")
        pair.both("ROLLBACK" if order == "g" else "COMMIT")
    assert pair.both(f"INSERT INTO alone SELECT {key}, 1 FROM generate_series(4000, 6000) g").sqlstate == "23505"
    pair.both(f"INSERT INTO alone SELECT {key}, 1 FROM generate_series(3000, 3000) g")
    pair.close()


def test_two_sessions_with_the_same_keys(dsn: str, pair: Pair) -> None:
    """The second waits for the first, whatever became of its rows then."""
    for end, outcome in (("ROLLBACK", None), ("COMMIT", "23505")):
        results = []
        for side in (pair.heap, pair.kalam):
            side.conn.execute("TRUNCATE items")
            with psycopg.connect(dsn, autocommit=True) as other:
                other.execute(f"SET search_path = {side.schema}, public")
                other.execute("SET kalam.user_id = 'alice'")
                side.conn.execute("BEGIN")
                side.conn.execute(side.text(load(1, 2000)))
                found: list[Any] = []

                def late(session: psycopg.Connection[Any] = other, found: list[Any] = found) -> None:
                    try:
                        found.append(session.execute(load(1500, 3500)).rowcount)
                    except psycopg.Error as error:
                        found.append((error.sqlstate, error.diag.message_primary, error.diag.message_detail))

                thread = threading.Thread(target=late)
                thread.start()
                with psycopg.connect(dsn, autocommit=True) as observer:
                    observer.execute("SET kalam.user_id = 'alice'")
                    while thread.is_alive() and not pair.waits(side, observer, other.info.backend_pid):
                        thread.join(0.02)
                assert thread.is_alive()
                side.conn.execute(end)
                thread.join(30)
                results.append(found)
        assert results[0] == results[1]
        assert (results[0][0][0] if isinstance(results[0][0], tuple) else None) == outcome
        assert pair.kalam.contents() == pair.heap.contents()


@pytest.mark.parametrize("seed", range(6))
def test_random_scripts(pair: Pair, seed: int) -> None:
    """Loads into and beside each other, single rows, savepoints and ends, contents compared after each."""
    chance = random.Random(seed)
    depth = 0
    pair.both("BEGIN")
    for _ in range(30):
        first = chance.choice([0, 1000, 2500, 4000, 9000]) + chance.randrange(3)
        rows = chance.choice([600, 1500, 2400])
        more = "" if chance.random() < 0.4 else "ON CONFLICT DO NOTHING"
        kind = chance.choices("ludispr", [5, 2, 2, 1, 2, 2, 1])[0]
        match kind:
            case "l":
                outcome = pair.both(load(first, first + rows, order=chance.choice(["g", "-g", "g % 3, g"]), more=more))
            case "u":
                outcome = pair.both(f"UPDATE items SET n = n + 1 WHERE id BETWEEN {first} AND {first + 20}")
            case "d":
                outcome = pair.both(f"DELETE FROM items WHERE id BETWEEN {first} AND {first + rows // 3}")
            case "i":
                outcome = pair.both(f"INSERT INTO items VALUES ({first}, 0, 'one') ON CONFLICT DO NOTHING")
            case "s":
                depth += 1
                outcome = pair.both(f"SAVEPOINT s{depth}")
            case "p" if depth:
                outcome = pair.both(f"ROLLBACK TO s{depth}")
            case _:
                pair.both(chance.choice(["COMMIT", "COMMIT", "ROLLBACK"]))
                depth = 0
                outcome = pair.both("BEGIN")
        if outcome.sqlstate is not None:
            if depth:
                pair.both(f"ROLLBACK TO s{depth}")
            else:
                pair.both("ROLLBACK")
                pair.both("BEGIN")
    pair.both("COMMIT")
