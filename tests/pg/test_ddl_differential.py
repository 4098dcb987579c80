"""Random scripts of CREATE, ALTER and DROP with savepoints, rollbacks and rows in every tier, on ordinary tables and
on KalamDB tables: the same outcome of each statement, the same rows after it, and no difference between the two sides
of a KalamDB table after each script."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from .pair import Pair

pytestmark = pytest.mark.pg

STEPS = 40
#: type, values, wider types
TYPES: dict[str, tuple[list[str], list[str]]] = {
    "smallint": (["1", "-7", "NULL"], ["integer", "bigint"]),
    "integer": (["1", "100000", "NULL"], ["bigint"]),
    "bigint": (["5000000000", "1", "NULL"], []),
    "real": (["0.1", "'-0'", "'NaN'", "NULL"], ["double precision"]),
    "double precision": (["0.1", "'Infinity'", "NULL"], []),
    "varchar(4)": (["'ab'", "''", "NULL"], ["varchar(9)", "text"]),
    "varchar(9)": (["'abcdefghi'", "NULL"], ["text"]),
    "text": (["'a''b'", "'äö'", "NULL"], []),
    "numeric(6,2)": (["1.5", "-1234.56", "NULL"], ["numeric(10,2)", "numeric"]),
    "numeric(10,2)": (["12345678.25", "NULL"], ["numeric"]),
    "numeric": (["0.10", "'NaN'", "NULL"], []),
    "boolean": (["true", "false", "NULL"], []),
    "timestamptz": (["'2020-01-01 00:00+00'", "'infinity'", "NULL"], []),
    "jsonb": (["'{\"a\": 1}'", "NULL"], []),
    "uuid": (["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "NULL"], []),
    "integer[]": (["'{1,2}'", "NULL"], []),
}
NAMES = ["a", "b", "Mixed Case", "select", "ä"]


def quoted(name: str) -> str:
    return '"' + name + '"'


class Script:
    """Draws statements from what the ordinary table looks like now."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair = pair
        self.random = Random(seed)
        self.depth = 0
        self.next_id = 0

    def columns(self) -> dict[str, str]:
        rows = self.pair.heap.conn.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = to_regclass('t') "
            "AND attnum > 0 AND NOT attisdropped AND attname <> 'id'").fetchall()
        aliases = {"character varying(4)": "varchar(4)", "character varying(9)": "varchar(9)",
                   "timestamp with time zone": "timestamptz"}
        return {str(name): str(aliases.get(kind, kind)) for name, kind in rows}

    def statement(self) -> str:
        if not self.pair.heap.tables():
            return "CREATE TABLE t (id bigint PRIMARY KEY, a smallint DEFAULT 3, b text NOT NULL DEFAULT 'b') {using}"
        kinds = ["insert", "alter"] * 4 + ["update"] * 2
        kinds += ["delete", "rename", "savepoint", "rollback", "begin", "commit", "drop"]
        return str(getattr(self, f"_{self.random.choice(kinds)}")())

    # ---------- rows ----------
    def _value(self, kind: str) -> str:
        return self.random.choice(TYPES[kind][0])

    def _insert(self) -> str:
        self.next_id += 1
        chosen = {name: kind for name, kind in self.columns().items() if self.random.random() < 0.7}
        names = "".join(f", {quoted(name)}" for name in chosen)
        values = "".join(f", {self._value(kind)}" for kind in chosen.values())
        return f"INSERT INTO t (id{names}) VALUES ({self.next_id}{values})"

    def _update(self) -> str:
        columns = self.columns()
        if not columns:
            return "UPDATE t SET id = id"
        name = self.random.choice(list(columns))
        return (f"UPDATE t SET {quoted(name)} = {self._value(columns[name])} "
                f"WHERE id % {self.random.choice([1, 2, 3])} = 0")

    def _delete(self) -> str:
        return f"DELETE FROM t WHERE id % 5 = {self.random.randint(0, 4)}"

    # ---------- definitions ----------
    def _alter(self) -> str:
        return "ALTER TABLE t " + ", ".join(self._clause() for _ in range(self.random.choice([1, 1, 2, 3])))

    def _clause(self) -> str:
        columns = self.columns()
        name = self.random.choice(list(columns) or ["id"])
        kind = columns.get(name)
        match self.random.choice(["add", "add", "drop", "type", "default", "null", "check", "uncheck"]):
            case "add":
                made = self.random.choice(list(TYPES))
                value = self._value(made)
                default = f" DEFAULT {value}" if self.random.random() < 0.6 else ""
                null = " NOT NULL" if self.random.random() < 0.2 else ""
                return f"ADD COLUMN {quoted(self.random.choice(NAMES))} {made}{null}{default}"
            case "drop":
                return f"DROP COLUMN IF EXISTS {quoted(self.random.choice([name, *NAMES]))}"
            case "type" if kind is not None and TYPES[kind][1]:
                return f"ALTER COLUMN {quoted(name)} TYPE {self.random.choice(TYPES[kind][1])}"
            case "default" if kind is not None:
                return f"ALTER COLUMN {quoted(name)} " + self.random.choice(
                    ["DROP DEFAULT", f"SET DEFAULT {self._value(kind)}"])
            case "null":
                return f"ALTER COLUMN {quoted(name)} {self.random.choice(['SET', 'SET', 'DROP'])} NOT NULL"
            case "check":
                number = self.random.randint(1, 3)
                least = self.random.randint(0, 9)
                return f"ADD CONSTRAINT c{number} CHECK ({quoted(name)} IS NOT NULL OR id > {least})"
        return f"DROP CONSTRAINT IF EXISTS c{self.random.randint(1, 3)}"

    def _rename(self) -> str:
        columns = list(self.columns())
        if columns and self.random.random() < 0.8:
            before, after = self.random.choice(columns), self.random.choice(NAMES)
            return f"ALTER TABLE t RENAME COLUMN {quoted(before)} TO {quoted(after)}"
        return "ALTER TABLE t RENAME CONSTRAINT c1 TO c2"

    def _drop(self) -> str:
        return "DROP TABLE t" if self.random.random() < 0.4 else self._insert()

    # ---------- transactions ----------
    @property
    def status(self) -> int:
        return int(self.pair.heap.conn.info.transaction_status)

    def _begin(self) -> str:
        self.depth = 0
        return "BEGIN" if self.status == 0 else self._savepoint()

    def _savepoint(self) -> str:
        if self.status != 2:
            return self._insert() if self.status == 0 else self._commit()
        self.depth += 1
        return f"SAVEPOINT s{self.depth}"

    def _rollback(self) -> str:
        if self.status == 0:
            return self._insert()
        if self.depth and self.random.random() < 0.8:
            return f"ROLLBACK TO SAVEPOINT s{self.random.randint(1, self.depth)}"
        return "ROLLBACK"

    def _commit(self) -> str:
        return "COMMIT" if self.status != 0 else self._insert()


@pytest.fixture
def pair(dsn: str) -> Iterator[Pair]:
    made = Pair(dsn)
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(12))
def test_scripts(pair: Pair, seed: int) -> None:
    script = Script(pair, seed)
    done: list[str] = []
    for step in range(STEPS):
        if pair.heap.failed():
            sql = "ROLLBACK" if script.random.random() < 0.5 or not script.depth else script._rollback()
        else:
            sql = script.statement()
        done.append(sql)
        wanted, got = pair.heap.run(sql), pair.kalam.run(sql)
        assert (got.sqlstate, got.count) == (wanted.sqlstate, wanted.count), (done, got, wanted)
        if script.status == 0 and step % 7 == 0 and pair.kalam.tables():
            pair.kalam.conn.execute("SELECT kalam_flush('t')")
        if not pair.heap.failed():
            assert pair.kalam.contents() == pair.heap.contents(), done
    for side in (pair.heap, pair.kalam):
        side.conn.rollback()
    assert pair.kalam.contents() == pair.heap.contents(), done
    if pair.kalam.tables():
        assert pair.kalam.conn.execute("SELECT * FROM kalam_drift('t')").fetchall() == [], done
        pair.kalam.conn.execute("SELECT kalam_compact('t')")
        assert pair.kalam.contents() == pair.heap.contents(), done
