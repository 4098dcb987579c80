"""A disk that is full, fails to synchronise or is read-only, under a real server: clients get a clear error, nothing
acknowledged is lost, nothing refused appears, and once the disk works, so does the server, by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg
import pytest

from kalamdb.admin.check import Check
from kalamdb.admin.files import LocalFiles
from support.disk import Disk, build
from support.nursery import Nursery
from support.server import KalamServer

KINDS = {"full": "53100", "sync": "58030", "read-only": "58030"}
#: so many rows of one transaction do not stay in memory
BULK = 110_000


@dataclass
class Rig:
    server: KalamServer
    disk: Disk
    rows: set[int]  # that a client was told are there

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.server.dsn(), autocommit=True)

    def insert(self, conn: psycopg.Connection, *ids: int) -> None:
        conn.execute(f"INSERT INTO app.t VALUES {', '.join(f'({id_}, {id_})' for id_ in ids)}")
        self.rows.update(ids)

    def try_to(self, conn: psycopg.Connection, statement: str, kind: str) -> bool:
        states = {None, KINDS[kind]}
        try:
            conn.execute(statement)
            state = None
        except psycopg.Error as error:
            state = error.sqlstate
        assert state in states
        return state is None

    def refused(self, conn: psycopg.Connection, statement: str, kind: str) -> str:
        with pytest.raises(psycopg.Error) as caught:
            conn.execute(statement)
        assert caught.value.sqlstate == KINDS[kind], caught.value
        return caught.value.diag.message_hint or ""

    def verify(self, conn: psycopg.Connection | None = None) -> None:
        if conn is None:
            with self.connect() as conn:
                self.verify(conn)
            return
        assert conn.execute("SELECT id FROM app.t ORDER BY id").fetchall() == [(id_,) for id_ in sorted(self.rows)]

    def verify_all(self) -> None:
        """Here, and after a kill; and files and manifest are of one mind."""
        self.verify()
        self.server.kill()
        checking = Check(self.server.data, {"local": LocalFiles(self.server.data / "segments")})
        try:
            assert list(checking.problems()) == []
        finally:
            checking.close()
        self.server.start()
        self.verify()
        with self.connect() as conn:
            self.insert(conn, 1_000_000_000)
            conn.execute("STORAGE FLUSH TABLE app.t")
            self.verify(conn)
            named = {row[0] for row in conn.execute("SELECT file FROM system.segments")}
        self.server.stop()
        root = self.server.data / "segments"
        assert {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} == named


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    place = tmp_path_factory.mktemp("disk")
    found = Disk(build(place), place / "control")
    yield found
    found.close()


@pytest.fixture(scope="module")
def nursery(disk: Disk) -> Iterator[Nursery]:
    found = Nursery("kalamdb.server", "kalamdb.sql.executor", environment=disk.environment)
    yield found
    found.close()


@pytest.fixture
def rig(disk: Disk, nursery: Nursery) -> Iterator[Rig]:
    """A server on a disk that works, as yet."""
    server = KalamServer(tiers__flush_policy="rows:1000000000")
    server.nursery = nursery
    disk.root = server.data
    try:
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("CREATE NAMESPACE app")
            conn.execute("CREATE SHARED TABLE app.t (id bigint PRIMARY KEY, v text)")
        yield Rig(server, disk, set())
    finally:
        disk.mend()
        server.close()


@pytest.mark.parametrize("kind", KINDS)
def test_commits(rig: Rig, kind: str) -> None:
    with rig.connect() as conn, rig.connect() as block:
        rig.insert(conn, *range(20))
        block.execute("BEGIN")
        block.execute("INSERT INTO app.t VALUES (100, 'in a transaction')")
        with rig.disk.failing(kind):
            hint = rig.refused(conn, "INSERT INTO app.t VALUES (50, 'x')", kind)
            assert "Nothing of the transaction was stored." in hint
            rig.verify(conn)
            rig.refused(block, "COMMIT", kind)
            rig.refused(block, "CREATE SHARED TABLE app.u (id bigint PRIMARY KEY)", kind)
            rig.refused(conn, "STORAGE FLUSH TABLE app.t", kind)
            assert rig.disk.failed
        rig.insert(block, 50)
        conn.execute("CREATE SHARED TABLE app.u (id bigint PRIMARY KEY)")
        conn.execute("STORAGE FLUSH TABLE app.t")
    rig.verify_all()


@pytest.mark.parametrize("kind", KINDS)
def test_killed_after_a_refused_commit(rig: Rig, kind: str) -> None:
    """What was said not to be stored is not there either if the server then had no time for anything else."""
    with rig.connect() as conn:
        rig.insert(conn, *range(20))
        rig.disk.fail(kind)
        rig.refused(conn, "INSERT INTO app.t SELECT i FROM generate_series(50, 90) i", kind)
        rig.server.kill()
    rig.disk.mend()
    rig.server.start()
    rig.verify()
    with rig.connect() as conn:
        rig.insert(conn, *range(50, 91))
    rig.verify_all()


@pytest.mark.parametrize("kind", KINDS)
def test_any_call_may_be_the_first_that_fails(rig: Rig, kind: str) -> None:
    outcomes = set()
    with rig.connect() as conn:
        rig.insert(conn, *range(1000, 1200))
        for after in range(24):
            with rig.disk.failing(kind, after):
                done = rig.try_to(conn, f"INSERT INTO app.t VALUES ({after}, 'x')", kind)
            if done:
                rig.rows.add(after)
            outcomes.add(done)
            rig.verify(conn)
            with rig.disk.failing(kind, after):
                rig.try_to(conn, "STORAGE FLUSH TABLE app.t", kind)
            rig.verify(conn)
            with rig.disk.failing(kind, after):
                rig.try_to(conn, "STORAGE COMPACT TABLE app.t", kind)
            rig.verify(conn)
    assert outcomes == {False, True}
    rig.verify_all()


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_transaction_of_many_rows(rig: Rig, kind: str) -> None:
    many = f"INSERT INTO app.t SELECT i, 'row' FROM generate_series(1, {BULK}) i"
    with rig.connect() as conn:
        with rig.disk.failing(kind):
            rig.refused(conn, many, kind)
        rig.verify(conn)
        conn.execute(many)
        rig.rows.update(range(1, BULK + 1))
    rig.verify_all()


@pytest.mark.parametrize("kind", KINDS)
def test_start(rig: Rig, kind: str) -> None:
    """It starts, or says in a line what is wrong; afterwards it starts as ever."""
    with rig.connect() as conn:
        rig.insert(conn, *range(20))
    rig.server.kill()
    rig.disk.fail(kind)
    before = rig.server.log_size()
    process = rig.server.spawn()
    assert process.wait(60) == 1
    said = rig.server.log_since(before)
    assert "Traceback" not in said
    assert str(rig.server.data) in said.splitlines()[-1]
    rig.disk.mend()
    rig.server.start()
    rig.verify_all()
