"""Values of many megabytes, and rows of such: every way in and out, memory in proportion to one of them, and limits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile

import psycopg
import pytest

from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

SIZE = 16_000_000
#: expressions of values with so many bytes, which differ by n
VALUES = {
    "text": f"repeat(md5({{n}}::text), {SIZE // 32})",
    "bytea": f"decode(repeat(md5({{n}}::text), {SIZE // 16}), 'hex')",
    "jsonb": f"jsonb_build_object('a', {{n}}, 'b', repeat(md5({{n}}::text), {SIZE // 32}))",
}
#: how often a value may be in memory while it travels: as itself, as text, in libpq's buffer, in a buffer that grows
COPIES = 8


def peak(pid: int) -> int:
    """The most memory that the process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found.group(1)) << 10


@pytest.fixture
def table(db: Session, ns: str, kind: str) -> str:
    """With 100 small rows."""
    db(f"CREATE TABLE {ns}.t (id int PRIMARY KEY, n int, v {kind}) USING kalamdb WITH (type = 'shared')")
    db(f"INSERT INTO {ns}.t SELECT g, 0, NULL FROM generate_series(1001, 1100) g")
    return f"{ns}.t"


def holds(db: Session, table: str, kind: str, wanted: dict[int, int]) -> None:
    """The value of row id is that of n, read by the key, as a row and as a record batch."""
    found = dict(db(f"SELECT id, v = {VALUES[kind].format(n='x.n')} FROM (SELECT * FROM {table} OFFSET 0) t"
                    " JOIN (SELECT unnest(%s::int[]) id, unnest(%s::int[]) n) x USING (id)",
                    list(wanted), list(wanted.values())))
    assert found == dict.fromkeys(wanted, True)
    for place, n in wanted.items():
        assert db(f"SELECT v = {VALUES[kind].format(n=n)}, random() < 2 FROM {table} WHERE id = {place}") == [
            (True, True)]


@pytest.mark.parametrize("kind", VALUES)
def test_one_value(db: Session, kind: str, table: str) -> None:
    value = VALUES[kind].format
    db(f"INSERT INTO {table} VALUES (1, 0, {value(n=1)})")
    assert db(f"INSERT INTO {table} VALUES (2, 0, {value(n=2)}) RETURNING v = {value(n=2)}") == [(True,)]
    holds(db, table, kind, {1: 1, 2: 2})
    db(f"UPDATE {table} SET n = n + 1 WHERE id = 1")  # sent whole
    assert db(f"UPDATE {table} SET v = {value(n=3)} WHERE id = 1 RETURNING v = {value(n=3)}, n") == [(True, 1)]
    # row by row: what is set is computed here
    assert db(f"UPDATE {table} SET v = h.v, n = h.id + (random() * 0)::int FROM (SELECT 2 AS id, {value(n=4)} AS v) h"
              f" WHERE t.id = h.id RETURNING t.v = {value(n=4)}, n") == [(True, 2)]
    holds(db, table, kind, {1: 3, 2: 4})
    assert db.value("SELECT kalam_flush(%s::regclass)", table) == 102
    holds(db, table, kind, {1: 3, 2: 4})
    assert db(f"UPDATE {table} SET n = n + 1 WHERE id = 2 RETURNING v = {value(n=4)}, n") == [(True, 3)]
    db(f"INSERT INTO {table} SELECT 3, 0, v FROM {table} WHERE id = 1")
    db(f"DELETE FROM {table} WHERE id = 1")
    holds(db, table, kind, {2: 4, 3: 3})


@pytest.mark.parametrize("kind", ["text"])
def test_memory(db: Session, other: Session, table: str, kind: str, server: KalamServer) -> None:
    """One value is some times in memory while it travels, however it does."""
    value = VALUES[kind].format
    backend = db.value("SELECT pg_backend_pid()")
    before = {backend: peak(backend), server.pid: peak(server.pid)}
    db(f"INSERT INTO {table} VALUES (1, 0, {value(n=1)})")
    for statement in (
        "SELECT length(v), random() < 2 FROM {t} WHERE id = 1",
        "UPDATE {t} SET n = n + 1 WHERE id = 1 RETURNING length(v)",
        "UPDATE {t} SET n = n + 1 + (random() * 0)::int WHERE id = 1 RETURNING length(v)",
        "SELECT sum(length(v)) FROM (SELECT * FROM {t} OFFSET 0) t",
    ):
        assert db.value(statement.format(t=table)) == SIZE
    assert other.value("SELECT kalam_flush(%s::regclass)", table) == 101
    assert db.value(f"SELECT sum(length(v)) FROM (SELECT * FROM {table} OFFSET 0) t") == SIZE
    for pid, figure in before.items():
        assert peak(pid) - figure < COPIES * SIZE, "backend" if pid == backend else "server"


@pytest.mark.parametrize("kind", VALUES)
def test_copy(db: Session, kind: str, table: str, ns: str) -> None:
    """To a client and back, rows of which each is larger than a chunk is meant to be."""
    db(f"INSERT INTO {table} SELECT g, 0, {VALUES[kind].format(n='g')} FROM generate_series(1, 3) g")
    db(f"CREATE TABLE {ns}.back (id int PRIMARY KEY, n int, v {kind}) USING kalamdb WITH (type = 'shared')")
    with TemporaryFile() as file:
        with db.conn.cursor().copy(f"COPY {table} (id, n, v) TO STDOUT") as out:
            for block in out:
                file.write(block)
        file.seek(0)
        with db.conn.cursor().copy(f"COPY {ns}.back (id, n, v) FROM STDIN") as into:
            while block := file.read(1 << 20):
                into.write(block)
    assert db.value(f"SELECT count(*) FROM {ns}.back") == 103
    holds(db, f"{ns}.back", kind, {1: 1, 2: 2, 3: 3})


@pytest.fixture
def own(db: Session, ns: str) -> Iterator[KalamServer]:
    """A server that has done nothing yet: what others made one take would hide what is taken here."""
    server = KalamServer()
    try:
        server.start()
        db(f"CREATE SERVER {ns}_own FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{server.port}')")
        yield server
    finally:
        server.close()


@pytest.mark.parametrize("cold", [False, True], ids=["hot", "cold"])
def test_rows_of_many_megabytes(db: Session, ns: str, own: KalamServer, cold: bool) -> None:
    """A backend's memory is in proportion to some rows, not to what all have together; the server's to what a
    transaction holds before it spills, and what stays hot."""
    rows, columns, width = 24, 2, 4_000_000
    names = [f"v{number}" for number in range(columns)]
    db(f"CREATE TABLE {ns}.t (id int PRIMARY KEY, n int, {', '.join(f'{name} text' for name in names)})"
       f" USING kalamdb WITH (type = 'shared', server = '{ns}_own')")
    backend = db.value("SELECT pg_backend_pid()")
    value = f"repeat(md5((g + {{}})::text), {width // 32})".format
    before = {backend: peak(backend), own.pid: peak(own.pid)}
    for first in range(1, rows, 2):
        db(f"INSERT INTO {ns}.t SELECT g, 0, {', '.join(map(value, range(columns)))}"
           f" FROM generate_series({first}, {first + 1}) g")
    if cold:
        assert db.value("SELECT kalam_flush(%s::regclass)", f"{ns}.t") == rows
    whole = " AND ".join(f"{name} = {value(number)}" for number, name in enumerate(names))
    correct = f"SELECT count(*) FROM (SELECT *, id AS g FROM {ns}.t OFFSET 0) t WHERE {whole} AND random() < 2"
    assert db.value(correct) == rows
    up = f"WITH up AS (UPDATE {ns}.t SET n = n + 1 RETURNING *, id AS g) SELECT count(*) FROM up WHERE {whole}"
    assert db.value(up) == rows
    assert db.value(f"WITH up AS (UPDATE {ns}.t SET n = n + 1 + (random() * 0)::int RETURNING *, id AS g)"
                    f" SELECT sum(n) FROM up WHERE {whole}") == 2 * rows
    assert db.value(correct) == rows
    assert peak(backend) - before[backend] < 22 * columns * width
    if not cold:  # a segment's rows are written, and read again, at once
        assert peak(own.pid) - before[own.pid] < 110 * columns * width


# ---------- limits ----------
@pytest.fixture
def narrow(db: Session, ns: str) -> Iterator[str]:
    """A table with three rows, on a server that takes messages of 8 MiB."""
    server = KalamServer(rpc__max_message="8")
    try:
        server.start()
        db(f"CREATE SERVER {ns}_narrow FOREIGN DATA WRAPPER pg_kalam OPTIONS (host '127.0.0.1', port '{server.port}')")
        db(f"CREATE TABLE {ns}.n (id int PRIMARY KEY, v text) USING kalamdb"
           f" WITH (type = 'shared', server = '{ns}_narrow')")
        db(f"INSERT INTO {ns}.n SELECT g, 'row ' || g FROM generate_series(1, 3) g")
        yield f"{ns}.n"
    finally:
        server.close()


LARGE = "repeat('x', 9000000)"
TOO_LARGE = [
    "INSERT INTO {t} VALUES (10, {v})",
    "INSERT INTO {t} VALUES (10, {v}) RETURNING id",
    "INSERT INTO {t} SELECT g, CASE WHEN g = 15 THEN {v} ELSE 'small' END FROM generate_series(10, 20) g",
    "INSERT INTO {t} VALUES (1, {v}) ON CONFLICT (id) DO UPDATE SET v = excluded.v",
    "UPDATE {t} SET v = {v} WHERE id = 2",
    "UPDATE {t} SET v = CASE WHEN random() < 2 THEN {v} END",
    "DELETE FROM {t} WHERE v <> {v}",
]


@pytest.mark.parametrize("block", [False, True], ids=["alone", "in a block"])
def test_too_large_for_a_message(db: Session, narrow: str, block: bool) -> None:
    """An error that says which limit, and nothing else happens: not to rows, the transaction's or those before, nor to
    the session."""
    rows = [(1, "row 1"), (2, "row 2"), (3, "row 3")]
    contents = f"SELECT id, v FROM {narrow} ORDER BY id"
    if block:
        db("BEGIN")
        db(f"INSERT INTO {narrow} VALUES (4, 'row 4')")
        rows.append((4, "row 4"))
    for statement in TOO_LARGE:
        if block:
            db("SAVEPOINT s")
        db.fails(statement.format(t=narrow, v=LARGE), "54000", "message is too long", "rpc.max_message")
        if block:
            db("ROLLBACK TO s")
        assert db(contents) == rows
    if block:
        db("COMMIT")
    assert db(contents) == rows
    db(f"INSERT INTO {narrow} SELECT g, repeat('x', 100000) FROM generate_series(100, 220) g")  # 12 MB of small ones
    assert db.value(f"SELECT sum(length(v)) FROM {narrow} WHERE id >= 100") == 12_100_000


def test_too_large_for_a_message_in_copy(db: Session, narrow: str) -> None:
    def load() -> None:
        with db.conn.cursor().copy(f"COPY {narrow} (id, v) FROM STDIN") as into:
            for number in range(10, 20):
                into.write_row((number, "x" * (9_000_000 if number == 15 else 10)))

    with pytest.raises(psycopg.errors.ProgramLimitExceeded):
        load()
    assert db.value(f"SELECT count(*) FROM {narrow}") == 3
