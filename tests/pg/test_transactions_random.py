"""Random transactions on heap tables and on KalamDB tables: savepoints, exception blocks, cursors, writes of all kinds.

After every step outcomes and contents are compared. What a failed transaction says, and what a cursor sees that was
opened before the writes around it, are part of that. `KALAM_TRANSACTION_ROUNDS` makes it longer.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest
from psycopg import pq

from .pair import Pair

pytestmark = pytest.mark.pg

ROUNDS = int(os.environ.get("KALAM_TRANSACTION_ROUNDS", "12"))
STEPS = 60

SETUP = """
    CREATE TABLE items (id int PRIMARY KEY, n int, t text) {using};
    CREATE TABLE parts (a int, b int, n int NOT NULL, PRIMARY KEY (a, b)) {using};
    CREATE FUNCTION put(int) RETURNS int LANGUAGE plpgsql AS $$BEGIN
        INSERT INTO items VALUES ($1, $1, 'put'); UPDATE parts SET n = n + 1 WHERE a = $1 % 5; RETURN $1; END$$;
    CREATE FUNCTION try(int, int) RETURNS text LANGUAGE plpgsql AS $$
        DECLARE seen int;
        BEGIN
            UPDATE items SET n = -1 WHERE id = $1;
            BEGIN
                DELETE FROM items WHERE id BETWEEN $1 AND $1 + 2;
                INSERT INTO items SELECT g, g, 'try' FROM generate_series($1, $1 + 3) g;
                IF $2 % 3 = 0 THEN PERFORM 1 / 0; END IF;
                SELECT sum(n) INTO seen FROM items WHERE id > $1;
                INSERT INTO parts VALUES ($1 % 5, $2, seen % 100);
            EXCEPTION
                WHEN unique_violation THEN RETURN 'dup';
                WHEN division_by_zero THEN INSERT INTO items VALUES (1000 + $1, $2, 'zero') ON CONFLICT DO NOTHING;
            END;
            RETURN (SELECT count(*) FROM items);
        END$$;
    INSERT INTO items SELECT g, g % 7, 'r' FROM generate_series(1, 30) g;
    INSERT INTO parts SELECT g % 5, g, g FROM generate_series(1, 20) g"""

STATEMENTS = [
    "INSERT INTO items VALUES ({i}, {j}, 'one')",
    "INSERT INTO items VALUES ({i}, {j}, 'two'), ({j}, {i}, 'two')",
    "INSERT INTO items SELECT g, g, 'many' FROM generate_series({i}, {i} + 4) g ON CONFLICT DO NOTHING",
    "INSERT INTO parts SELECT a, b + 20, n FROM parts WHERE a = {s}",
    "INSERT INTO parts VALUES ({s}, {j}, NULLIF({i}, 7)) RETURNING n",
    "UPDATE items SET n = n + 1 WHERE id = {i}",
    "UPDATE items SET n = n * 2, t = lower(t) || '!' WHERE id % 5 = {s} AND length(t) < 9 RETURNING id, n",
    "UPDATE items SET id = id + 500 WHERE id > {i}",
    "UPDATE items SET id = {j} WHERE id = {i}",
    "UPDATE parts SET n = items.n FROM items WHERE parts.b = items.id AND items.n IS NOT NULL",
    "UPDATE parts SET b = b + 100 WHERE a = {s}",
    "DELETE FROM items WHERE id = {i}",
    "DELETE FROM items WHERE n < {s} AND lower(t) <> 'one' RETURNING id",
    "DELETE FROM parts USING items WHERE items.id = parts.b AND items.n > {i}",
    "WITH gone AS (DELETE FROM items WHERE id = {i} RETURNING *) INSERT INTO items SELECT id + 200, n, t FROM gone",
    "SELECT put({i})",
    "SELECT try({i}, {j})",
    "SELECT id, put(id + 300) FROM items WHERE id < {s}",
    "DO $$BEGIN PERFORM try(g, g * {s}) FROM generate_series({i}, {i} + 3) g; END$$",
    "SELECT count(*), sum(n), max(id) FROM items",
    "SELECT i.id, p.n FROM items i LEFT JOIN parts p ON i.id = p.b WHERE i.id < {i} ORDER BY 1, 2",
    "SELECT id FROM items WHERE n > {s} ORDER BY id LIMIT 3 FOR UPDATE",
    "SELECT 1 / (id - {i}) FROM items",
    "INSERT INTO items VALUES ({i}); INSERT INTO items VALUES ({j})",
]
CURSORS = ["SELECT id, n, t FROM items ORDER BY id", "SELECT a, b, n FROM parts WHERE a > 1 ORDER BY a, b",
           "SELECT i.id, p.a FROM items i JOIN parts p ON p.b = i.id ORDER BY 1, 2"]


class Script:
    """Chooses the next statement, by what the transaction has come to."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.savepoints: list[str] = []
        self.cursors: list[str] = []

    def next(self, status: pq.TransactionStatus) -> str:
        if status == pq.TransactionStatus.IDLE:
            self.savepoints.clear()
            self.cursors.clear()
            if self.chance.random() < 0.5:
                return f"BEGIN ISOLATION LEVEL {self.chance.choice(['READ COMMITTED', 'REPEATABLE READ'])}"
        elif status == pq.TransactionStatus.INERROR and self.chance.random() < 0.8:
            return self.back() if self.savepoints else "ROLLBACK"
        elif self.chance.random() < 0.4:
            return self.control()
        values = {"i": self.chance.randint(1, 40), "j": self.chance.randint(1, 40), "s": self.chance.randint(0, 4)}
        return self.chance.choice(STATEMENTS).format(**values)

    def back(self) -> str:
        place = self.chance.randrange(len(self.savepoints))
        del self.savepoints[place + 1 :]
        return f"ROLLBACK TO {self.savepoints[place]}"

    def control(self) -> str:
        kind = self.chance.random()
        if kind < 0.25 or not self.savepoints:
            self.savepoints.append(f"s{len(self.savepoints)}")
            return f"SAVEPOINT {self.savepoints[-1]}"
        if kind < 0.4:
            return self.back()
        if kind < 0.5:
            name = self.chance.choice(self.savepoints)
            del self.savepoints[self.savepoints.index(name) :]
            return f"RELEASE {name}"
        if kind < 0.65:
            self.cursors.append(f"c{len(self.cursors)}")
            return f"DECLARE {self.cursors[-1]} CURSOR FOR {self.chance.choice(CURSORS)}"
        if kind < 0.92 and self.cursors:
            return f"FETCH {self.chance.choice(['1', '5', '5', 'ALL'])} FROM {self.chance.choice(self.cursors)}"
        return self.chance.choice(["COMMIT", "COMMIT", "ROLLBACK", "COMMIT AND CHAIN"])


@pytest.fixture
def pair(dsn: str, request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(dsn, request.param)
    pair.setup(SETUP)
    yield pair
    pair.close()


@pytest.mark.parametrize("pair", ["shared", "user"], indirect=True)
@pytest.mark.parametrize("seed", range(ROUNDS // 2))
def test_random(pair: Pair, seed: int, examples: Callable[[int], int]) -> None:
    script = Script(seed)
    for _ in range(examples(STEPS)):
        pair.both(script.next(pair.heap.conn.info.transaction_status))
    pair.both("ROLLBACK")
