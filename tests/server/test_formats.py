"""Data directories of older formats are brought to today's, those of a newer one refused untouched by every command."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest

from kalamdb import __version__
from kalamdb.catalog import formats
from kalamdb.catalog.catalog import create_schema
from support.server import KalamServer

STORED = Path(__file__).parents[1] / "data"
OLDER = range(formats.OLDEST, formats.CURRENT)
ITEMS = [(1, "apple", Decimal("0.25")), (2, "pear", Decimal("0.75")), (4, "näme", None)]


def kalam(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("kalam")), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def stored(number: int, target: Path) -> Path:
    """A data directory as that format's server left it."""
    shutil.copytree(STORED / f"format{number}" / "segments", target / "segments")
    with sqlite3.connect(target / "hot.db") as database:
        database.executescript((STORED / f"format{number}" / "hot.sql").read_text(encoding="utf-8"))
    database.close()
    return target


def facts(data: Path) -> dict[str, Any]:
    connection = apsw.Connection(str(data / "hot.db"))
    try:
        rows: list[Any] = connection.execute("SELECT name, value FROM kalam_meta").fetchall()
        return dict(rows)
    finally:
        connection.close()


def set_format(data: Path, number: object, release: str) -> None:
    connection = apsw.Connection(str(data / "hot.db"))
    connection.execute("REPLACE INTO kalam_meta VALUES ('format', ?), ('release', ?)", (number, release))
    connection.close()


@contextmanager
def serving(data: Path) -> Iterator[psycopg.Connection]:
    server = KalamServer.over(data)
    try:
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            yield conn
        server.stop()
    finally:
        server.close()


def check_contents(conn: psycopg.Connection) -> None:
    assert conn.execute("SELECT * FROM shop.items ORDER BY id").fetchall() == ITEMS
    assert conn.execute("SELECT name FROM shop.items WHERE id = 1").fetchall() == [("apple",)]
    for who in ("alice", "bob"):
        rows = conn.execute(f"EXECUTE AS USER '{who}' (SELECT id, body FROM shop.notes ORDER BY id)").fetchall()
        assert rows == [(1, f"{who} one"), (2, f"{who} two")]
        rows = conn.execute(f"EXECUTE AS USER '{who}' (SELECT id, what FROM shop.events)").fetchall()
        assert rows == [(1, f"{who} came")]


def test_every_older_format_is_stored() -> None:
    assert sorted(path.name for path in STORED.glob("format*")) == [f"format{number}" for number in OLDER]
    assert sorted(formats.STEPS) == list(OLDER)


@pytest.mark.parametrize("number", OLDER)
def test_an_older_directory_is_brought_to_todays_format(number: int, tmp_path: Path) -> None:
    data = stored(number, tmp_path / "data")
    with serving(data) as conn:
        check_contents(conn)
        conn.execute("ALTER TABLE shop.items ADD COLUMN extra int DEFAULT 7, DROP COLUMN price")
        conn.execute("INSERT INTO shop.items VALUES (5, 'plum', 8)")
        conn.execute("ALTER TABLE shop.items ADD COLUMN price numeric")  # another column, which has no number of old
        conn.execute("STORAGE FLUSH ALL")
        conn.execute("STORAGE COMPACT TABLE shop.items")
        rows = conn.execute("SELECT * FROM shop.items ORDER BY id").fetchall()
        assert rows == [(1, "apple", 7, None), (2, "pear", 7, None), (4, "näme", 7, None), (5, "plum", 8, None)]
        with pytest.raises(psycopg.errors.UniqueViolation):
            conn.execute("INSERT INTO shop.items (id, name) VALUES (1, 'again')")
        known = conn.execute("SHOW TRANSACTION OUTCOME '0123456789abcdef0123456789abcdef'").fetchall()
        assert known in ([("committed",)], [("aborted",)])  # as long as outcomes are kept
    assert (facts(data)["format"], facts(data)["release"]) == (formats.CURRENT, __version__)
    done = kalam("check", "--data", data)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_file_column_of_before_is_one(tmp_path: Path) -> None:
    """When FILE was jsonb by another name, its type was kept as it was written, and it took any jsonb."""
    data = stored(2, tmp_path / "data")
    column: dict[str, Any] = {"typmod": -1, "default": None}
    definition: dict[str, Any] = {
        "namespace": "shop", "name": "papers", "kind": "shared", "key": [0], "key_constraint": "papers_pkey",
        "columns": [{"id": 1, "name": "id", "type": "int8", "declared": "bigint", "not_null": True, **column},
                    {"id": 2, "name": "f", "type": "jsonb", "declared": "FILE", "not_null": False, **column}],
        "checks": [], "options": {}, "owner": None, "version": 1, "last_column": 0,
    }
    with sqlite3.connect(data / "hot.db") as database:
        database.execute("INSERT INTO kalam_tables VALUES (5, ?, NULL)", [json.dumps(definition)])
        database.execute("CREATE TABLE h_5 (_userid TEXT NOT NULL, k ANY NOT NULL, _seq INTEGER NOT NULL, c1 ANY, "
                         "c2 ANY, PRIMARY KEY (_userid, k)) STRICT, WITHOUT ROWID")
        database.execute("INSERT INTO h_5 VALUES ('', 1, 914640253048848384, 1, '{\"any\": 1}')")
    database.close()
    done = kalam("check", "--data", data)
    assert done.returncode == 0, done.stdout + done.stderr
    with serving(data) as conn:
        columns = conn.execute("SELECT * FROM system.columns").fetchall()
        assert [row[4] for row in columns if row[:2] == ("shop", "papers")] == ["bigint", "file"]
        ((found,),) = conn.execute("FILE PUT INTO shop.papers (f) DATA 'x'").fetchall()
        conn.execute("INSERT INTO shop.papers VALUES (2, %s)", [json.dumps(found)])
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            conn.execute("INSERT INTO shop.papers VALUES (3, '{}')")
        assert conn.execute("SELECT f FROM shop.papers ORDER BY id").fetchall() == [({"any": 1},), (found,)]
    done = kalam("check", "--data", data)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("number", OLDER)
def test_tools_take_an_older_directory_as_it_is(number: int, tmp_path: Path) -> None:
    data = stored(number, tmp_path / "data")
    commands: list[list[str | Path]] = [
        ["check", "--data", data], ["backup", "--data", data, "--to", tmp_path / "backups"],
        ["restore", "--from", tmp_path / "backups", "--data", tmp_path / "restored"],
    ]
    for words in commands:
        done = kalam(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    assert facts(data)["format"] == facts(tmp_path / "restored")["format"] == number
    with serving(tmp_path / "restored") as conn:
        check_contents(conn)


def test_a_crash_while_it_is_brought_up_leaves_the_old_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = stored(formats.OLDEST, tmp_path / "data")

    def fail(definition: formats.Definition) -> formats.Definition:
        raise RuntimeError(definition["name"])

    monkeypatch.setitem(formats.STEPS, formats.CURRENT - 1, formats.Step(("CREATE TABLE half (x)",), fail))
    connection = apsw.Connection(str(data / "hot.db"))
    with pytest.raises(RuntimeError), connection:
        create_schema(connection)
    assert connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'half'").fetchall() == [(0,)]
    connection.close()
    assert facts(data)["format"] == formats.OLDEST
    monkeypatch.undo()
    with serving(data) as conn:
        check_contents(conn)


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """A data directory of a format that is not known yet."""
    data = stored(formats.CURRENT - 1, tmp_path / "data")
    with serving(data):
        pass
    assert kalam("backup", "--data", data, "--to", tmp_path / "backups").returncode == 0
    set_format(data, formats.CURRENT + 1, "9.9.0")
    return data


SAID = (f"format {formats.CURRENT + 1}, written by KalamDB 9.9.0",
        f"KalamDB {__version__} reads formats {formats.OLDEST} to {formats.CURRENT}")


def test_a_newer_directory_is_refused_untouched(newer: Path, tmp_path: Path) -> None:
    before = (newer / "hot.db").read_bytes()
    server = KalamServer.over(newer)
    process = server.spawn()
    assert process.wait(30) not in (0, None)
    said = server.log_since(0)
    assert all(words in said for words in (*SAID, "Use the release that wrote it"))
    assert "Traceback" not in said
    done = kalam("check", "--data", newer)
    assert done.returncode == 1
    assert all(words in done.stdout for words in SAID)
    done = kalam("backup", "--data", newer, "--to", tmp_path / "other")
    assert done.returncode not in (0, None)
    assert SAID[0] in done.stderr
    assert "Traceback" not in done.stderr
    assert (newer / "hot.db").read_bytes() == before
    server.data = tmp_path / "none"
    server.close()


@pytest.mark.parametrize("number", [0, -1, "two", 1.5, None])
def test_what_is_no_format_is_refused(number: object, newer: Path) -> None:
    set_format(newer, number, "9.9.0")
    connection = apsw.Connection(str(newer / "hot.db"))
    error = formats.refusal(*formats.found(connection))
    connection.close()
    assert error is not None
    assert error.sqlstate == "58000"


def test_a_backup_of_a_newer_format_is_refused(newer: Path, tmp_path: Path) -> None:
    (path,) = (tmp_path / "backups").rglob("backup.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": formats.CURRENT + 1}))
    done = kalam("restore", "--from", tmp_path / "backups", "--data", tmp_path / "restored")
    assert done.returncode not in (0, None)
    assert f"format {formats.CURRENT + 1}" in done.stderr
    assert not (tmp_path / "restored").exists()


def test_a_database_of_somebody_else_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    connection = apsw.Connection(str(data / "hot.db"))
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    server = KalamServer.over(data)
    process = server.spawn()
    assert process.wait(30) not in (0, None)
    assert "the database says no format" in server.log_since(0)
    server.close()
