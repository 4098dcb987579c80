"""Random scripts of writes on ordinary tables and on KalamDB tables: outcome and contents after every statement.

A script goes through transactions, savepoints and errors; rows are hot, cold, half and half, or move between the tiers.
Of user tables it changes the tenant, in and out of transactions: each tenant has heap tables of its own, which the
search path chooses.
`KALAM_WRITE_SEED` chooses the scripts, `KALAM_WRITES` how many statements each has; a failure tells both and all of it.

What others stumbled over, and where it is tested:

===============================================================  ======================================================
COPY FROM and routing enter by BeginForeignInsert                test_write_rows (copy), test_write_tenants (partitions)
ON CONFLICT, RETURNING, WITH CHECK OPTION ignored                test_write_conflict, test_write_rows, here
batches pointing into reused slots: contents, not counts         test_write_rows (batches of any size), Pair.both
a BEFORE trigger changes a column that was not set               test_write_triggers (before row changes)
generated columns get no value, stay generated                   test_write_rows (constraints and generated columns)
UPDATE … WHERE 1 = 0                                             test_write_rows, test_write_transactions (round trips)
UPDATE of a key column                                           test_write_rows, test_write_direct, here
a join that finds a row twice                                    test_write_rows (USING other o, other p), here
an error of a batch that comes in a later call                   test_write_transactions (inner query, exception block)
rows locked when they are read                                   test_write_transactions (fifty increments)
a deferred INSERT's error comes too late                         test_write_transactions (duplicate key …)
pending rows before a trigger or another statement reads         test_write_triggers (reads), test_write_transactions
WITH CHECK OPTION sees the row as a BEFORE trigger left it       test_write_order
row movement into a partition that the command updates           test_write_tenants (partitions)
several AFTER ROW triggers                                       test_write_triggers (all)
empty string and NULL; uuid; infinities; time zones              test_write_rows (extremes), test_types
results of statements sent whole leak on error                   test_write_order (memory)
transition tables, MERGE refused cleanly                         test_write_order
===============================================================  ======================================================
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest
from psycopg.types.string import TextLoader

from .pair import Outcome, Pair, Side

pytestmark = pytest.mark.pg

SEED = int(os.environ.get("KALAM_WRITE_SEED", "20240301"))
WRITES = int(os.environ.get("KALAM_WRITES", "160"))
TIERS = ("hot", "cold", "half", "moving", "user")
TENANTS = ("alice", "bob")

SETUP = """
CREATE TABLE items (n int, b text, t text, a int, m numeric(8, 2), d double precision, y boolean, at timestamptz,
    k bigint NOT NULL DEFAULT 1, PRIMARY KEY (a, b)) {using};
CREATE TABLE other (id int PRIMARY KEY, n int, t text) {using};
CREATE TABLE local (id int, n int);
CREATE TABLE parts (id int, k int, n int, t text) PARTITION BY LIST (k);
CREATE TABLE p0 PARTITION OF parts (PRIMARY KEY (id)) FOR VALUES IN (0) {using};
CREATE TABLE p1 (t text, n int, k int, id int PRIMARY KEY) {using};
ALTER TABLE parts ATTACH PARTITION p1 FOR VALUES IN (1);
CREATE TABLE rest PARTITION OF parts (PRIMARY KEY (id)) DEFAULT {using};
"""
FILL = """
INSERT INTO items SELECT nullif(g % 7, 6), chr(120 + g % 3), nullif('row ' || g % 11, 'row 5'), g / 3,
    nullif(g, 9) * 1.37, g / 8.0, nullif(g % 5, 4) > 1, '2024-01-01 UTC'::timestamptz + g * interval '7 hours', g
    FROM generate_series(0, 59) g;
INSERT INTO other SELECT g, nullif(g % 4, 3), 'o' || g FROM generate_series(0, 14) g;
INSERT INTO parts SELECT g, g % 4, g % 9, 'p' || g FROM generate_series(0, 39) g;
"""
LOCAL = "INSERT INTO local SELECT g, g * 2 FROM generate_series(0, 9) g"
#: of half the rows that were flushed there are new versions
HALF = """UPDATE items SET n = n + 1 WHERE a % 2 = 0; DELETE FROM items WHERE a % 5 = 1;
    UPDATE parts SET k = 1 WHERE k = 3"""

#: each takes (int, text, int), and keeps its generic plan
PREPARED = {
    "one": "INSERT INTO items (a, b, n) VALUES ($1, $2, $3)",
    "put": "INSERT INTO items (a, b, n) VALUES ($1, $2, $3) ON CONFLICT (a, b) DO UPDATE SET n = items.n + excluded.n",
    "new": "UPDATE items SET n = n + $1, t = $2 WHERE a = $3",
    "key": "UPDATE items SET n = $3 WHERE a = $1 AND b = $2 RETURNING a, b, n",
    "far": "UPDATE items SET t = upper(t) || $2, k = k + $3 WHERE a > $1 AND n IS NOT NULL",
    "del": "DELETE FROM items WHERE a BETWEEN $1 AND $1 + 1 AND (b = $2 OR n = $3) RETURNING a, b, t",
    "joined": "UPDATE items i SET t = o.t || $2 FROM other o WHERE o.id = i.a AND o.n > $3 - 3 AND i.a > $1"
            " RETURNING i.a, i.b, o.id",
    "move": "UPDATE parts SET k = $3 % 4, t = $2 WHERE id % 7 = $1 % 7 RETURNING id, k, t",
}  # fmt: skip


class Script:
    """Statements, each made of what is allowed where the script stands."""

    def __init__(self, seed: int, tenants: tuple[str, ...] = ()) -> None:
        self.random = random.Random(seed)
        self.tenants = tenants
        self.savepoints: list[str] = []
        self.block = False

    def key(self) -> tuple[int, str]:
        return self.random.randint(0, 24), self.random.choice("xyz")

    def number(self) -> str:
        return self.random.choice(["0", "1", "2", "3", "4", "5", "11", "NULL"])

    def condition(self, item: str = "items") -> str:
        r, (a, b) = self.random, self.key()
        simple = [
            f"{item}.a = {a} AND {item}.b = '{b}'", f"{item}.a = {a}", f"{item}.a IN ({a}, {a + 3}, NULL, 7)",
            f"{item}.a BETWEEN {a} AND {a + 4}", f"{item}.n = {self.number()}", f"{item}.n > 3", f"{item}.n IS NULL",
            f"{item}.t LIKE '%{a % 10}%'", f"{item}.m < {a}.5", f"{item}.y", f"NOT {item}.y", f"{item}.d >= {a} / 4.0",
            f"{item}.at < '2024-01-{a + 1:02} UTC'", f"upper({item}.t) = 'ROW {a}'", f"{item}.n % 3 = 1",
            f"length({item}.t) > 5", f"{item}.k + {item}.n < {a}", "false", "true",
            f"EXISTS (SELECT 1 FROM other o WHERE o.id = {item}.a AND o.n > 0)",
            f"{item}.a IN (SELECT id FROM other WHERE n = 2)", f"{item}.n = (SELECT max(n) FROM other)",
            f"{item}.a IN (SELECT id FROM local WHERE id > {a % 10})",
        ]  # fmt: skip
        if r.random() < 0.35:
            return f"({r.choice(simple)}) {r.choice(['AND', 'OR', 'AND NOT'])} ({r.choice(simple)})"
        return r.choice(simple)

    def setting(self, item: str = "items") -> str:
        r = self.random
        values = {
            "n": [f"{item}.n + 1", f"{item}.n * {item}.n - 2", self.number(), f"length({item}.t)", "random() * 0",
                  "(SELECT count(*) FROM other)", f"CASE WHEN {item}.y THEN 1 ELSE {item}.n END"],
            "t": [f"{item}.t || '+'", f"upper({item}.t)", "''", "NULL", f"coalesce({item}.t, {item}.b)",
                  f"substr({item}.t, 2, 4)", "'plain'", f"{item}.n::text"],
            "m": [f"{item}.m * 1.1", f"{item}.n", "7.005", f"{item}.m / 3", "NULL"],
            "d": [f"{item}.d / 4", f"{item}.n", "'NaN'", "-0.0"],
            "y": [f"{item}.n > 2", f"NOT {item}.y", "NULL", "true"],
            "at": ["'2025-02-03 04:05 UTC'", f"{item}.at + interval '1 day'", "'infinity'"],
            "k": [f"{item}.k + 1", "9", f"{item}.a"],
        }  # fmt: skip
        columns = r.sample(list(values), r.choice([1, 1, 2, 3]))
        if r.random() < 0.1:
            return f"(n, t) = (SELECT id, t FROM other WHERE id = {r.randint(0, 16)})"
        return ", ".join(f"{column} = {r.choice(values[column])}" for column in columns)

    def returning(self, column: str = "a, b, n + 1") -> str:
        return self.random.choice(["", "", ""] + [f" RETURNING {what}" for what in ("*", column, "t", "1")])

    # ---------- statements ----------
    def insert(self) -> str:
        r = self.random
        rows = []
        for _ in range(r.choice([1, 1, 1, 2, 5])):
            a, b = self.key()
            rows.append(f"({a}, '{b}', {self.number()}, {r.choice(['NULL', repr('new'), repr('')])}, {a}.255)")
        return f"INSERT INTO items (a, b, n, t, m) VALUES {', '.join(rows)}{self.conflict()}{self.returning()}"

    def conflict(self) -> str:
        r = self.random
        update = ["n = excluded.n", "n = items.n + excluded.n, t = excluded.t", "t = items.t || excluded.t",
                  "m = items.m * 2", "t = upper(items.t), k = excluded.k", "n = items.n + random() * 0",
                  "a = items.a + 100", "d = (SELECT max(n) FROM other)"]  # fmt: skip
        condition = r.choice(["", " WHERE items.n > 1", " WHERE excluded.n IS NOT NULL", " WHERE false"])
        return r.choice(["", " ON CONFLICT DO NOTHING", " ON CONFLICT (a, b) DO NOTHING",
                         f" ON CONFLICT (b, a) DO UPDATE SET {r.choice(update)}{condition}"])  # fmt: skip

    def insert_select(self) -> str:
        r = self.random
        source = r.choice([
            f"SELECT a + {r.choice([0, 1, 40])}, b, n, t, m FROM items WHERE {self.condition()}",
            f"SELECT id + {r.choice([0, 30])}, 'x', n, t, n FROM other WHERE id > {r.randint(0, 12)}",
            f"SELECT id, 'w', n, NULL, id FROM local WHERE id < {r.randint(0, 9)}",
        ])  # fmt: skip
        return f"INSERT INTO items (a, b, n, t, m) {source}{self.conflict()}{self.returning()}"

    def update(self) -> str:
        return f"UPDATE items SET {self.setting()} WHERE {self.condition()}{self.returning()}"

    def move(self) -> str:
        """A key update: to where no other row of the statement is."""
        a, b = self.key()
        return self.random.choice([
            f"UPDATE items SET a = {a} WHERE a = {a + 1} AND b = '{b}'{self.returning()}",
            f"UPDATE items SET b = '{b}', n = 1 WHERE a = {a} AND b = 'z'",
            f"UPDATE items SET a = a + 200 WHERE a < 100 AND ({self.condition()})",
            f"UPDATE items SET a = a - 200 WHERE a BETWEEN 200 AND 399 AND ({self.condition()})",
        ])  # fmt: skip

    def update_from(self) -> str:
        return self.random.choice([
            f"UPDATE items i SET {self.setting('i')} FROM other o WHERE o.id = i.a AND {self.condition('i')}",
            f"UPDATE items i SET n = o.n, t = o.t FROM other o WHERE o.id = i.n AND {self.condition('i')}"
            " RETURNING i.a, o.id, o.t",
            "UPDATE items SET n = l.n FROM local l WHERE l.id = items.a RETURNING items.b, l.n",
            "UPDATE items SET k = 5 FROM other o WHERE o.n = items.n RETURNING a, b, k",
        ])  # fmt: skip

    def delete(self) -> str:
        (a, b), r = self.key(), self.random
        return r.choice([
            f"DELETE FROM items WHERE a = {a} AND b = '{b}'{self.returning()}",
            f"DELETE FROM items WHERE a = {a} AND {self.condition()}{self.returning()}",
            f"DELETE FROM items WHERE a > 18 AND {self.condition()}{self.returning()}",
            f"DELETE FROM items i USING other o WHERE o.id = i.n AND i.a = {a} RETURNING i.b, o.t",
            f"DELETE FROM items USING local l WHERE l.id = items.a AND l.n = {a}",
        ])  # fmt: skip

    def with_parts(self) -> str:
        a, b = self.key()
        return self.random.choice([
            f"WITH gone AS (DELETE FROM items WHERE a = {a} RETURNING *) INSERT INTO items (a, b, n, t)"
            " SELECT a + 300, b, n, t FROM gone RETURNING a, b",
            f"WITH up AS (UPDATE items SET n = 3 WHERE a = {a} RETURNING a, b) SELECT * FROM up",
            f"WITH ins AS (INSERT INTO other VALUES ({a + 20}, 1, 'w') ON CONFLICT (id) DO NOTHING RETURNING id)"
            f" UPDATE items SET n = ins.id FROM ins WHERE items.a = {a} AND items.b = '{b}'",
        ])  # fmt: skip

    def prepared(self) -> str:
        (a, b), r = self.key(), self.random
        return f"EXECUTE {r.choice(list(PREPARED))}({r.choice([str(a), str(a), 'NULL'])}, '{b}', {self.number()})"

    def copy(self) -> str:
        """The data from the second line on; at most one thing is wrong with them."""
        r, low = self.random, self.random.choice([1400, 1500, 0])
        rows = [f"{low + a}\t{b}\t{r.randint(0, 9)}\tc{a}"
                for a, b in dict.fromkeys(self.key() for _ in range(r.choice([1, 3, 20])))]
        if low and r.random() < 0.3:
            rows.insert(r.randint(0, len(rows)), r.choice(["x\ty\t1\tt", "7\ty", "\\N\tz\t1\tt", "9\tx\t1\t\t9"]))
        return "COPY items (a, b, n, t) FROM STDIN\n" + "\n".join(rows) + "\n"

    def partitioned(self) -> str:
        r = self.random
        i, k, m = r.randint(0, 60), r.choice(["0", "1", "2", "3", "NULL", "(k + 1) % 4", "id % 4"]), r.randint(2, 9)
        return r.choice([
            f"INSERT INTO parts VALUES ({i}, {i % 4}, 1, 'new'), ({i + 100}, {i % 3}, NULL, '2'){self.returning('k')}",
            f"INSERT INTO parts SELECT id + {i} * 10, {k}, n, t FROM parts WHERE id % {m} = 0 ON CONFLICT DO NOTHING",
            f"UPDATE parts SET k = {k} WHERE id % {m} = 1{self.returning('k')}",
            f"UPDATE parts SET k = {k}, n = n + 1, t = t || '>' WHERE n > {m} OR k = {i % 4}{self.returning('n')}",
            f"UPDATE parts SET n = n * 2 WHERE k = {i % 4}{self.returning('t')}",
            f"UPDATE parts SET k = o.n, t = o.t FROM other o WHERE o.id = parts.id AND o.n < {m} RETURNING parts.id, k",
            f"DELETE FROM parts WHERE id % {m} = 0 AND k IS DISTINCT FROM 1{self.returning('id')}",
            f"WITH gone AS (DELETE FROM parts WHERE k = {i % 4} RETURNING *)"
            " INSERT INTO parts SELECT id + 1000, k, n, t FROM gone RETURNING id, k",
        ])  # fmt: skip

    def locking(self) -> str:
        r = self.random
        return r.choice([
            f"SELECT a, b, n FROM items WHERE {self.condition()} FOR UPDATE",
            f"SELECT a, b FROM items WHERE a > {r.randint(0, 20)} ORDER BY a, b LIMIT 3 FOR SHARE",
            f"UPDATE items SET n = 0 WHERE (a, b) IN (SELECT a, b FROM items WHERE n > {r.randint(0, 9)}"
            " ORDER BY a, b LIMIT 2 FOR UPDATE SKIP LOCKED) RETURNING a, b",
        ])  # fmt: skip

    def control(self) -> str:
        r = self.random
        if self.tenants and r.random() < 0.3:
            return f"SET {'LOCAL ' if self.block else ''}kalam.user_id = '{r.choice(self.tenants)}'"
        if not self.block:
            self.block = True
            return "BEGIN"
        choice = r.random()
        if choice < 0.35 or not self.savepoints:
            if choice < 0.15:
                return self.end(r.choice(["COMMIT", "ROLLBACK"]))
            self.savepoints.append(f"s{len(self.savepoints)}")
            return f"SAVEPOINT {self.savepoints[-1]}"
        name = r.choice(self.savepoints)
        place = self.savepoints.index(name)
        if choice < 0.7:
            del self.savepoints[place + 1 :]
            return f"ROLLBACK TO {name}"
        del self.savepoints[place:]
        return f"RELEASE {name}"

    def end(self, how: str) -> str:
        self.block = False
        self.savepoints.clear()
        return how

    def recover(self) -> str:
        """After an error in a block."""
        if self.savepoints and self.random.random() < 0.7:
            return f"ROLLBACK TO {self.savepoints[-1]}"
        return self.end("ROLLBACK")

    def next(self) -> str:
        makers: list[tuple[Callable[[], str], float]] = [
            (self.insert, 4), (self.insert_select, 2), (self.update, 5), (self.move, 2), (self.update_from, 2),
            (self.delete, 2), (self.with_parts, 1), (self.control, 5), (self.prepared, 4), (self.copy, 1),
            (self.partitioned, 3), (self.locking, 1),
        ]  # fmt: skip
        [make] = self.random.choices([maker for maker, _ in makers], weights=[weight for _, weight in makers])
        return make()


def flush(pair: Pair) -> None:
    for table in ("items", "other", "p0", "p1", "rest"):
        pair.kalam.conn.execute(f"SELECT kalam_flush('{pair.kalam.schema}.{table}')")


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(dsn: str, tier: str) -> Iterator[Pair]:
    with closing(Pair(dsn, "user" if tier == "user" else "shared")) as pair:
        pair.setup(SETUP)
        pair.setup(FILL)
        pair.setup(LOCAL)
        if tier == "user":
            heap = pair.heap
            heap.conn.execute(f"CREATE SCHEMA {heap.schema}_bob; SET search_path = {heap.schema}_bob, public")
            heap.conn.execute(heap.text(SETUP + LOCAL) + f"; SET search_path = {heap.schema}, public")
        for side in (pair.heap, pair.kalam):
            side.conn.execute("SET TimeZone = 'America/New_York'")
            side.conn.execute("SET plan_cache_mode = force_generic_plan")
            for name, sql in PREPARED.items():
                side.conn.execute(f"PREPARE {name}(int, text, int) AS {sql}")
            for kind in ("float4", "float8"):  # NaN equals itself
                side.conn.adapters.register_loader(kind, TextLoader)
        if tier in ("cold", "half", "moving"):
            flush(pair)
        if tier == "half":
            pair.setup(HALF)
        yield pair
        if tier == "user":
            pair.heap.conn.execute(f"ROLLBACK; DROP SCHEMA {pair.heap.schema}_bob CASCADE")


def of_heap(pair: Pair, sql: str) -> str:
    """A tenant's heap tables are a schema."""
    head, found, tenant = sql.partition("kalam.user_id = ")
    if not found:
        return sql
    return f"{head}search_path = {pair.heap.schema}{'' if 'alice' in tenant else '_bob'}, public"


def run_one(side: Side, sql: str) -> Outcome:
    if not sql.startswith("COPY"):
        return side.run(sql)
    head, _, data = sql.partition("\n")
    try:
        with side.conn.cursor() as cursor:
            with cursor.copy(head) as copy:
                copy.write(data)
            return Outcome(cursor.rowcount, None)
    except psycopg.Error as error:
        return Outcome(-1, None, error.sqlstate)


def run(pair: Pair, sql: str) -> Outcome:
    """Of errors only their codes: which of several comes first is nobody's promise."""
    wanted, got = run_one(pair.heap, of_heap(pair, sql)), run_one(pair.kalam, sql)
    assert (got.sqlstate, got.count, got.rows) == (wanted.sqlstate, wanted.count, wanted.rows)
    if not pair.heap.failed():
        assert pair.kalam.contents() == pair.heap.contents()
    return wanted


def test_scripts(pair: Pair, tier: str, examples: Callable[[int], int]) -> None:
    script = Script(SEED + TIERS.index(tier), TENANTS if tier == "user" else ())
    done: list[str] = []
    failed = False
    try:
        for number in range(examples(WRITES)):
            sql = script.recover() if failed else script.next()
            done.append(sql)
            run(pair, sql)
            failed = pair.heap.failed()
            if tier in ("half", "moving") and number % (12 if tier == "moving" else 40) == 11 and not script.block:
                flush(pair)
        if script.block:
            run(pair, script.end("COMMIT"))
        for tenant in script.tenants:
            run(pair, f"SET kalam.user_id = '{tenant}'")
    except AssertionError as error:
        told = "\n".join(done)
        raise AssertionError(f"KALAM_WRITE_SEED={SEED} KALAM_WRITES={WRITES}, {tier}:\n{told}\n{error}") from None
