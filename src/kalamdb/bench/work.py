"""The pieces of work that are measured; each is one row of the table.

A work is measured on all sides in alternating rounds. Its figure is units a second, so that more is better.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import psycopg

from kalamdb.bench.sides import BATCH, HEAP, KALAM, OWNERS, ROW, Place, Side, fresh_load_table

#: keys from here on are of rows that a work inserts, and takes away afterwards
NEW = 1_000_000_000
SELECT_INTO = 100_000


@dataclass(frozen=True, slots=True)
class Work:
    """``must``/``aim`` are ratios to postgres_fdw. ``key``: what ``--only`` names."""

    key: str
    name: str
    unit: str
    must: float
    aim: float
    measure: Callable[[Place, Side], float]


# ---------- small statements ----------
def pgbench(place: Place, *scripts: str, options: tuple[str, ...] = ()) -> float:
    """Transactions a second. A script may begin with its weight: ``@8``."""
    with ExitStack() as files:
        command = [str(place.pgbench), "-n", "-T", str(place.seconds), *options]
        for script in scripts:
            weight, _, text = script.partition("\n") if script.startswith("@") else ("", "", script)
            file = files.enter_context(tempfile.NamedTemporaryFile("w", suffix=".sql"))
            file.write(text)
            file.flush()
            command += ["-f", file.name + weight]
        done = subprocess.run([*command, place.dsn], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("tps = ") and done.returncode == 0 and "ABORTED" not in done.stderr.upper():
            return float(line.split()[2])
    raise RuntimeError(f"pgbench failed: {done.stderr.strip()}")


def _read(place: Place, table: str) -> str:
    return f"\\set i random(1, {place.rows})\nSELECT id, owner, a, b, c FROM {table} WHERE id = :i;\n"


def _insert(table: str) -> str:
    return (f"\\set n random({NEW}, 9000000000000000000)\n"
            f"INSERT INTO {table} (id, owner, a, b, c) VALUES (:n, 'owner-new', 'a new row', 1.5, now());\n")


def _update(place: Place, table: str) -> str:
    return f"\\set k random(1, {place.rows})\nUPDATE {table} SET a = 'changed', b = b + 1 WHERE id = :k;\n"


@contextmanager
def _taken_away(place: Place, table: str) -> Iterator[None]:
    """What is inserted here is gone afterwards."""
    yield
    with place.connect() as connection:
        connection.execute(f"DELETE FROM {table} WHERE id >= {NEW}")


def key_read(protocol: str, *, cold: bool = False) -> Callable[[Place, Side], float]:
    def measure(place: Place, side: Side) -> float:
        return pgbench(place, _read(place, side.cold if cold else side.table), options=("-M", protocol))

    return measure


def insert(place: Place, side: Side) -> float:
    with _taken_away(place, side.table):
        return pgbench(place, _insert(side.table))


def update(place: Place, side: Side) -> float:
    return pgbench(place, _update(place, side.table))


def delete(place: Place, side: Side) -> float:
    """Each transaction deletes a row of its own, by key; more are there than can be deleted in that time."""
    count = min(place.seconds * 10_000, BATCH)
    with _taken_away(place, side.table):
        with place.connect() as connection:
            connection.execute(f"INSERT INTO {side.table} (id, owner, a, b, c) SELECT {NEW} + s.i, owner, a, b, c"
                               f" FROM (SELECT {ROW} FROM generate_series(1, {count}) AS i) AS s (i, owner, a, b, c)")
        script = f"\\set d :d + 1\nDELETE FROM {side.table} WHERE id = {NEW} + :d;\n"
        rate = pgbench(place, script, options=("-D", "d=0"))
        with place.connect() as connection:
            left = connection.execute(f"SELECT count(*) FROM {side.table} WHERE id > {NEW}").fetchone()
        if left == (0,):
            raise RuntimeError("there were fewer rows than could be deleted in that time")
    return rate


def transaction(place: Place, side: Side) -> float:
    """Two reads and two updates by key and an insert, in a block."""
    read, write = _read(place, side.table), _update(place, side.table)
    with _taken_away(place, side.table):
        return pgbench(place, f"BEGIN;\n{read}{write}{_insert(side.table)}{read}{write}COMMIT;\n")


def mixed(place: Place, side: Side) -> float:
    """16 clients: of ten transactions eight read by key, one inserts, one updates."""
    scripts = "@8\n" + _read(place, side.table), "@1\n" + _insert(side.table), "@1\n" + _update(place, side.table)
    with _taken_away(place, side.table):
        return pgbench(place, *scripts, options=("-c", "16", "-j", "2"))


# ---------- loading ----------
def _loaded(connection: psycopg.Connection[object], table: str, rows: int, began: float) -> float:
    taken = time.perf_counter() - began
    if connection.execute(f"SELECT count(*) FROM {table}").fetchone() != (rows,):
        raise RuntimeError(f'not all rows have arrived in table "{table}"')
    return rows / taken


def insert_select(*, row_by_row: bool = False) -> Callable[[Place, Side], float]:
    """``row_by_row``: against postgres_fdw as it is by default, with no batch_size."""

    def measure(place: Place, side: Side) -> float:
        fresh_load_table(place, side)
        table = side.load_row_by_row if row_by_row else side.load
        rows = min(SELECT_INTO, place.rows)
        with place.connect() as connection:
            began = time.perf_counter()
            connection.execute(f"INSERT INTO {table} (id, owner, a, b, c)"
                               f" SELECT {ROW} FROM generate_series(1, {rows}) AS i")
            return _loaded(connection, table, rows, began)

    return measure


def copy_from(place: Place, side: Side) -> float:
    """All rows, as a client sends them."""
    fresh_load_table(place, side)
    with place.connect() as connection, tempfile.TemporaryFile() as file:
        with connection.cursor().copy(f"COPY {HEAP.user} (id, owner, a, b, c) TO STDOUT") as out:
            for block in out:
                file.write(block)
        file.seek(0)
        began = time.perf_counter()
        with connection.cursor().copy(f"COPY {side.load} (id, owner, a, b, c) FROM STDIN") as into:
            while block := file.read(1 << 18):
                into.write(block)
        return _loaded(connection, side.load, place.rows, began)


# ---------- large reads ----------
def scan(*, cold: bool = False) -> Callable[[Place, Side], float]:
    """Rows a second of a scan of all columns that the executor consumes and nobody prints."""

    def measure(place: Place, side: Side) -> float:
        statement = f"SELECT id, owner, a, b, c FROM {side.cold if cold else side.table}"
        with place.connect() as connection:
            plan = connection.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}").fetchone()
        assert plan is not None
        top = plan[0][0]
        return float(top["Plan"]["Actual Rows"] / (top["Execution Time"] / 1000))

    return measure


def _often(place: Place, run: Callable[[], object]) -> float:
    """One by the median time of as many runs as fit, of three at least."""
    run()
    times: list[float] = []
    end = time.perf_counter() + place.seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return 1 / statistics.median(times)


def query(statement: str, *, cold: bool = False) -> Callable[[Place, Side], float]:
    """``{}`` in the statement is the table."""

    def measure(place: Place, side: Side) -> float:
        text = statement.format(side.cold if cold else side.table)
        with place.connect() as connection:
            return _often(place, lambda: connection.execute(text))

    return measure


def one_owner(place: Place, side: Side) -> float:
    """All rows of one owner: of a tenant in KalamDB, by an index on the other sides."""
    statement = f"SELECT id, owner, a, b, c FROM {side.user}"
    with place.connect() as connection:

        def run() -> None:
            owner = f"owner-{random.randrange(OWNERS):04}"
            if side is KALAM:
                connection.execute(f"SET kalam.user_id = '{owner}'")
                where = ""
            else:
                connection.execute("SET application_name = 'one more'")  # a round trip on each side
                where = f" WHERE owner = '{owner}'"
            done = connection.pgconn.exec_((statement + where).encode())  # nothing is spent on Python's values
            if done.ntuples != place.rows // OWNERS:
                raise RuntimeError(f"{owner} has {done.ntuples} rows")

        return _often(place, run)


SUMS = "SELECT count(*), sum(b) FROM {}"
GROUPS = "SELECT owner, sum(b) FROM {} GROUP BY owner ORDER BY sum(b) DESC LIMIT 10"
LATEST = "SELECT id, owner, a, b, c FROM {} ORDER BY c DESC LIMIT 10"

WORKS = (
    Work("key", "SELECT by primary key, simple protocol", "tps", 2, 3, key_read("simple")),
    Work("key-prepared", "SELECT by primary key, prepared", "tps", 2, 3, key_read("prepared")),
    Work("key-cold", "SELECT by primary key, simple, cold", "tps", 1.5, 3, key_read("simple", cold=True)),
    Work("key-prepared-cold", "SELECT by primary key, prepared, cold", "tps", 1.5, 3, key_read("prepared", cold=True)),
    Work("insert", "single-row autocommit INSERT", "tps", 1.5, 2, insert),
    Work("update", "UPDATE by key, autocommit", "tps", 1.3, 2, update),
    Work("delete", "DELETE by key, autocommit", "tps", 1.3, 2, delete),
    Work("transaction", "BEGIN, 5 statements, COMMIT", "tps", 1.2, 2, transaction),
    Work("mixed", "16 clients, 80 % reads, 20 % writes", "tps", 1.3, 2, mixed),
    Work("insert-select-default", "INSERT … SELECT 100,000 rows, against the default", "rows/s", 10, 10,
         insert_select(row_by_row=True)),
    Work("insert-select", "INSERT … SELECT 100,000 rows, against batch_size 1000", "rows/s", 1.5, 3, insert_select()),
    Work("copy", "COPY FROM, all rows", "rows/s", 1, 3, copy_from),
    Work("scan", "full scan, 5 columns", "rows/s", 1.5, 4, scan()),
    Work("scan-cold", "full scan, 5 columns, cold", "rows/s", 4, 7, scan(cold=True)),
    Work("sums", "count(*), sum(b), cold", "1/s", 5, 10, query(SUMS, cold=True)),
    Work("groups", "GROUP BY owner ORDER BY sum LIMIT 10, cold", "1/s", 5, 15, query(GROUPS, cold=True)),
    Work("owner", "all rows of one owner, as a user table", "1/s", 1.5, 3, one_owner),
    Work("latest", "ORDER BY c DESC LIMIT 10", "1/s", 3, 10, query(LATEST)),
    Work("latest-cold", "ORDER BY c DESC LIMIT 10, cold", "1/s", 3, 10, query(LATEST, cold=True)),
)
