"""``kalam check``, ``backup`` and ``restore`` on data directories of real servers: sound, damaged and busy ones."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pyarrow.parquet as pq
import pytest

from kalamdb.store.segment import checksum_of
from support.server import KalamServer

KALAM = Path(sys.executable).with_name("kalam")


def kalam(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(KALAM), *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    """A data directory with a shared and a user table that have rows in both tiers, tombstones and dead rows."""
    server = KalamServer()
    try:
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            fill(conn)
        server.stop()
        yield server.data
    finally:
        server.close()


@pytest.fixture
def data(template: Path, tmp_path: Path) -> Path:
    """A copy of it that no server has open."""
    copied: Path = shutil.copytree(template, tmp_path / "data")
    return copied


@pytest.fixture
def server(data: Path) -> Iterator[KalamServer]:
    """A server on it."""
    server = KalamServer.over(data)
    try:
        server.start()
        yield server
    finally:
        server.close()


def fill(conn: psycopg.Connection) -> None:
    conn.execute("CREATE NAMESPACE app")
    conn.execute("CREATE SHARED TABLE app.s (id bigint PRIMARY KEY, v text)")
    conn.execute("CREATE USER TABLE app.u (name text PRIMARY KEY, n int)")
    conn.execute("INSERT INTO app.s SELECT i, 'row ' || i FROM generate_series(1, 5000) i")
    for tenant in ("ann", "bob"):
        conn.execute(f"EXECUTE AS USER '{tenant}' "
                     "(INSERT INTO app.u SELECT 'k' || i, i FROM generate_series(1, 500) i)")
    conn.execute("STORAGE FLUSH ALL")
    conn.execute("UPDATE app.s SET v = 'changed' WHERE id <= 100")
    conn.execute("STORAGE FLUSH TABLE app.s")
    conn.execute("DELETE FROM app.s WHERE id BETWEEN 200 AND 300")
    conn.execute("INSERT INTO app.s VALUES (6000, 'hot')")


def contents(conn: psycopg.Connection) -> list[Any]:
    return [
        conn.execute("SELECT id, v FROM app.s ORDER BY id").fetchall(),
        conn.execute("EXECUTE AS USER 'bob' (SELECT name, n FROM app.u ORDER BY name)").fetchall(),
    ]


def segment_files(data: Path) -> list[Path]:
    return sorted((data / "segments").rglob("*.parquet"))


def change(data: Path, text: str, *values: Any) -> None:
    """Behind the program's back."""
    connection = apsw.Connection(str(data / "hot.db"))
    connection.execute(text, values)
    connection.close()


# ---------- check ----------
def test_a_sound_directory(data: Path) -> None:
    done = kalam("check", "--data", data)
    assert (done.returncode, done.stdout) == (0, "")
    assert "2 tables, 1 hot rows, 3 segments, 6,000 cold rows: no problems" in done.stderr
    found = json.loads(kalam("check", "--data", data, "--json").stdout)
    assert found == {"problems": [], "orphans": [], "tables": 2, "segments": 3, "hot_rows": 1, "cold_rows": 6000,
                     "files": 0}


def test_after_a_kill(server: KalamServer) -> None:
    server.kill()
    assert kalam("check", "--data", server.data).returncode == 0


def test_a_directory_in_use(server: KalamServer) -> None:
    done = kalam("check", "--data", server.data)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: a server uses the data directory" in done.stderr


def test_no_directory(tmp_path: Path) -> None:
    done = kalam("check", "--data", tmp_path)
    assert done.returncode == 2
    assert "is not a data directory" in done.stderr


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x40
    path.write_bytes(raw)


def _other_filter(data: Path) -> None:
    """With a footer that is sound, and a manifest that knows the file."""
    path = segment_files(data)[0]
    raw = bytearray(path.read_bytes())
    metadata = pq.ParquetFile(path).metadata.metadata[b"kalam.bloom"]
    at = raw.index(metadata)
    raw[at : at + len(metadata)] = bytes(len(metadata))
    path.write_bytes(raw)
    change(data, "UPDATE kalam_segments SET checksum = ? WHERE file = ?", checksum_of(path),
           path.relative_to(data / "segments").as_posix())


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("a flipped bit", lambda data: flip(segment_files(data)[0]), "another checksum"),
    ("a shorter file", lambda data: segment_files(data)[0].write_bytes(b"PAR1"), "has 4 bytes instead of"),
    ("a missing file", lambda data: segment_files(data)[0].unlink(), "is missing"),
    ("dead rows beyond the file",
     lambda data: change(data, "UPDATE kalam_deletions SET positions = x'ffffff0f'"), "dead rows that cannot be"),
    ("a row that is dead no more", lambda data: change(data, "DELETE FROM kalam_deletions"), "has two live rows"),
    ("first keys that are wrong", lambda data: change(
        data, "UPDATE kalam_segments SET first_k = -5, least_k = 7 WHERE id = 1"), "than the manifest says"),
    ("rows from the future", lambda data: change(
        data, "UPDATE kalam_meta SET value = 1 WHERE name = 'last_seq'"), "after the last one"),
    ("hot rows that are gone", lambda data: change(data, "DROP TABLE h_1"), "are not there"),
    ("a Bloom filter of other keys", _other_filter, "Bloom filter"),
    ("a storage that is not there", lambda data: change(
        data, "UPDATE kalam_segments SET storage = 'other' WHERE id = 1"), "not configured"),
]


@pytest.mark.parametrize(("damage", "words"), [(damage, words) for _, damage, words in DAMAGE],
                         ids=[name for name, _, _ in DAMAGE])
def test_damage(data: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(data)
    done = kalam("check", "--data", data)
    assert done.returncode == 1
    assert words in done.stdout
    assert "Traceback" not in done.stderr


def test_a_file_nobody_names(data: Path) -> None:
    (data / "segments" / "1" / "lost.parquet").write_bytes(b"")
    found = json.loads(kalam("check", "--data", data, "--quick", "--json").stdout)
    assert (found["problems"], found["orphans"]) == ([], ["local/1/lost.parquet"])


def test_a_database_that_is_none(data: Path) -> None:
    (data / "hot.db").write_bytes(b"not a database" * 1000)
    done = kalam("check", "--data", data)
    assert done.returncode == 1
    assert "hot.db" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


# ---------- backup and restore ----------
def restored(root: Path, target: Path, *options: str) -> list[Any]:
    done = kalam("restore", "--from", root, "--data", target, *options)
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout
    again = KalamServer.over(target)
    try:
        again.start()
        with psycopg.connect(again.dsn(), autocommit=True) as conn:
            return contents(conn)
    finally:
        again.close()


def test_a_backup_of_a_running_server(server: KalamServer, tmp_path: Path) -> None:
    root = tmp_path / "backups"
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        before = contents(conn)
        first = json.loads(kalam("backup", "--data", server.data, "--to", root, "--json").stdout)
        assert first["segments"] == 3
        conn.execute("INSERT INTO app.s VALUES (7000, 'later')")
        conn.execute("STORAGE FLUSH TABLE app.s")
        after = contents(conn)
        second = json.loads(kalam("backup", "--data", server.data, "--to", root, "--json").stdout)
        assert second["segments"] == 4
        assert 0 < second["copied_bytes"] < first["copied_bytes"]
        conn.execute("STORAGE COMPACT TABLE app.s")
    listed = kalam("backup", "--to", root, "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [first["name"], second["name"]]
    assert restored(root, tmp_path / "new") == after
    assert restored(root, tmp_path / "old", "--name", first["name"]) == before


def test_old_backups_go(server: KalamServer, tmp_path: Path) -> None:
    root = tmp_path / "backups"
    first = json.loads(kalam("backup", "--data", server.data, "--to", root, "--json").stdout)
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("STORAGE COMPACT ALL")
        wanted = contents(conn)
    last = json.loads(kalam("backup", "--data", server.data, "--to", root, "--keep", "1", "--json").stdout)
    assert last["removed"] == [first["name"]]
    assert len(list((root / "segments").rglob("*.parquet"))) == last["segments"]
    assert restored(root, tmp_path / "new") == wanted


def test_consistent_under_load(server: KalamServer, tmp_path: Path) -> None:
    """Transfers keep the total, in every backup that is taken while they and flushes go on."""
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("CREATE SHARED TABLE app.accounts (id bigint PRIMARY KEY, amount bigint)")
        conn.execute("INSERT INTO app.accounts SELECT i, 100 FROM generate_series(1, 50) i")
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(step: Callable[[psycopg.Connection, int], None]) -> None:
        try:
            with psycopg.connect(server.dsn(), autocommit=True) as conn:
                number = 0
                while not stop.is_set():
                    number += 1
                    step(conn, number)
        except BaseException as error:
            failures.append(error)

    def transfer(conn: psycopg.Connection, number: int) -> None:
        with conn.transaction():
            conn.execute("UPDATE app.accounts SET amount = amount - 1 WHERE id = %s", (1 + number % 50,))
            conn.execute("UPDATE app.accounts SET amount = amount + 1 WHERE id = %s", (1 + number * 7 % 50,))

    def move(conn: psycopg.Connection, number: int) -> None:
        conn.execute(f"STORAGE {'COMPACT' if number % 3 == 0 else 'FLUSH'} TABLE app.accounts")

    threads = [threading.Thread(target=work, args=(step,)) for step in (transfer, move)]
    for thread in threads:
        thread.start()
    try:
        names = [json.loads(kalam("backup", "--data", server.data, "--to", tmp_path / "b", "--json").stdout)["name"]
                 for _ in range(3)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    for name in names:
        target = tmp_path / name
        assert kalam("restore", "--from", tmp_path / "b", "--data", target, "--name", name).returncode == 0
        again = KalamServer.over(target)
        try:
            again.start()
            with psycopg.connect(again.dsn(), autocommit=True) as conn:
                assert conn.execute("SELECT count(*), sum(amount) FROM app.accounts").fetchone() == (50, 5000)
        finally:
            again.close()


def test_a_directory_that_is_not_empty(data: Path, tmp_path: Path) -> None:
    kalam("backup", "--data", data, "--to", tmp_path / "b")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("kept")
    done = kalam("restore", "--from", tmp_path / "b", "--data", tmp_path / "new")
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine"]


def test_a_damaged_backup_restores_nothing(data: Path, tmp_path: Path) -> None:
    kalam("backup", "--data", data, "--to", tmp_path / "b")
    flip(next((tmp_path / "b" / "segments").rglob("*.parquet")))
    done = kalam("restore", "--from", tmp_path / "b", "--data", tmp_path / "new")
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_damaged_copy_is_made_anew(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "b"
    kalam("backup", "--data", data, "--to", root)
    copy = next((root / "segments").rglob("*.parquet"))
    flip(copy)
    again = json.loads(kalam("backup", "--data", data, "--to", root, "--json").stdout)
    assert again["copied_bytes"] == copy.stat().st_size
    assert kalam("restore", "--from", root, "--data", tmp_path / "new").returncode == 0


def test_what_an_interrupted_backup_left(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "b"
    (root / "backups" / "20200101T000000Z.part").mkdir(parents=True)
    assert kalam("backup", "--to", root, "--list").stdout == ""
    made = json.loads(kalam("backup", "--data", data, "--to", root, "--json").stdout)
    assert [path.name for path in (root / "backups").iterdir()] == [made["name"]]
    assert {path.stat().st_mode & 0o077 for path in (root / "segments").rglob("*")} == {0}


def test_one_backup_at_a_time(data: Path, tmp_path: Path) -> None:
    root = tmp_path / "b"
    root.mkdir()
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = kalam("backup", "--data", data, "--to", root)
    assert done.returncode == 1
    assert "another backup is being made" in done.stderr


def test_dropped_tables_are_checked_until_they_are_purged(server: KalamServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("DROP TABLE app.u")
    server.stop()
    for path in segment_files(server.data):
        flip(path)
    done = kalam("check", "--data", server.data)
    assert done.returncode == 1
    assert {line.split(":")[0] for line in done.stdout.splitlines()} == {"app.s", "app.u"}


def test_damage_is_not_backed_up(data: Path, tmp_path: Path) -> None:
    flip(segment_files(data)[0])
    done = kalam("backup", "--data", data, "--to", tmp_path / "b")
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    assert kalam("backup", "--to", tmp_path / "b", "--list").stdout == ""
    assert list((tmp_path / "b" / "backups").iterdir()) == []


@pytest.mark.parametrize(("arguments", "words"), [
    (("restore", "--from", "{}", "--data", "{}/new"), "there is no backup"),
    (("backup", "--data", "{}", "--to", "{}/b"), "is not a data directory"),
])
def test_nothing_there(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = kalam(*(argument.format(tmp_path) for argument in arguments))
    assert done.returncode == 1
    assert words in done.stderr


# ---------- contents of FILE columns ----------
FILES = {"ann": b"of ann" * 1000, "bob": b"of bob", "cid": b""}


@pytest.fixture
def filed(server: KalamServer) -> KalamServer:
    """A server whose table app.f has a content for each of three tenants: cold, hot, and of a table that is dropped."""
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        for table in ("f", "gone"):
            conn.execute(f"CREATE USER TABLE app.{table} (id bigint PRIMARY KEY, photo FILE)")
        for table, tenant in (("f", "ann"), ("f", "bob"), ("gone", "cid")):
            conn.execute(f"SET kalam.user_id = '{tenant}'")
            ((found,),) = conn.execute(f"FILE PUT INTO app.{table} (photo) DATA %s", [FILES[tenant]]).fetchall()
            conn.execute(f"INSERT INTO app.{table} VALUES (1, %s)", [json.dumps(found)])
            if tenant == "ann":
                conn.execute("STORAGE FLUSH TABLE app.f")
        conn.execute("DROP TABLE app.gone")
    return server


def files_of(conn: psycopg.Connection) -> dict[str, bytes]:
    found = {}
    conn.execute("UNDROP TABLE app.gone")
    for table, tenant in (("f", "ann"), ("f", "bob"), ("gone", "cid")):
        cursor = conn.cursor(binary=True)
        cursor.execute(f"EXECUTE AS USER '{tenant}' (FILE GET photo FROM app.{table} WHERE id = 1)")
        found[tenant] = b"".join(data for _, data in cursor)
    return found


def content_files(data: Path) -> list[Path]:
    return sorted((path for path in (data / "segments").rglob("files/*")), key=lambda path: -path.stat().st_size)


def test_a_backup_has_files(filed: KalamServer, tmp_path: Path) -> None:
    root = tmp_path / "backups"
    first = json.loads(kalam("backup", "--data", filed.data, "--to", root, "--json").stdout)
    again = json.loads(kalam("backup", "--data", filed.data, "--to", root, "--json").stdout)
    assert (first["files"], again["files"], again["copied_bytes"]) == (3, 3, 0)
    assert "3 files" in kalam("backup", "--to", root, "--list").stdout
    filed.stop()
    shutil.rmtree(filed.data)
    done = kalam("restore", "--from", root, "--data", tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert "3 files, verified" in done.stdout
    restored = KalamServer.over(tmp_path / "new")
    try:
        restored.start()
        with psycopg.connect(restored.dsn(), autocommit=True) as conn:
            assert files_of(conn) == FILES
    finally:
        restored.close()


def test_files_are_checked(filed: KalamServer) -> None:
    filed.stop()
    found = json.loads(kalam("check", "--data", filed.data, "--json").stdout)
    assert (found["problems"], found["orphans"], found["files"]) == ([], [], 3)
    large, small, _ = content_files(filed.data)
    flip(large)
    small.unlink()
    change(filed.data, "DELETE FROM kalam_contents WHERE size = 0")
    done = kalam("check", "--data", filed.data)
    assert done.returncode == 1
    problems = sorted(done.stdout.splitlines())
    assert ["has another SHA-256" in problems[0] or "has another SHA-256" in problems[1],
            "is missing" in problems[0] or "is missing" in problems[1]] == [True, True]
    assert 'app.gone: a row of tenant "cid" refers to the file' in problems[2]
    assert len(problems) == 3
    assert "note: nothing names file" in done.stderr
    quick = kalam("check", "--data", filed.data, "--quick").stdout.splitlines()
    assert len(quick) == 1
    assert "is missing" in quick[0]


def test_damaged_files_are_not_backed_up(filed: KalamServer, tmp_path: Path) -> None:
    flip(content_files(filed.data)[0])
    done = kalam("backup", "--data", filed.data, "--to", tmp_path / "b")
    assert done.returncode == 1
    assert "is damaged" in done.stderr
