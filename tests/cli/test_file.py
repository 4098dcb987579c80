"""``kalam file put`` and ``get`` against a real server: what a shell sees of them, and what is left after errors."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.server import KalamServer

KALAM = Path(sys.executable).with_name("kalam")
#: more than a chunk of the command's and many of the server's
LARGE = 9_000_001


@pytest.fixture(scope="module")
def server() -> Iterator[KalamServer]:
    server = KalamServer(files__max_mib="12")
    try:
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("CREATE NAMESPACE app")
            conn.execute("CREATE SHARED TABLE app.docs (a int, b text, scan FILE, extra jsonb, PRIMARY KEY (b, a))")
            conn.execute("CREATE USER TABLE app.u (id bigint PRIMARY KEY, photo FILE)")
            conn.execute('CREATE SHARED TABLE app."My.Table" (id int PRIMARY KEY, "The ""File""" FILE)')
        yield server
    finally:
        server.close()


@pytest.fixture
def conn(server: KalamServer) -> Iterator[psycopg.Connection]:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute("DELETE FROM app.docs")
        yield connection


def kalam(server: KalamServer, *arguments: str | Path, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [str(KALAM), "file", *[os.fspath(each) for each in arguments], "--data", str(server.data)]
    done = subprocess.run(command, input=given, capture_output=True, check=False)
    assert b"Traceback" not in done.stderr
    return done


def put(server: KalamServer, *arguments: str | Path, given: bytes = b"") -> Any:
    done = kalam(server, "put", *arguments, given=given)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_there_and_back(server: KalamServer, conn: psycopg.Connection, tmp_path: Path) -> None:
    source, target = tmp_path / "plan é.pdf", tmp_path / "copy"
    source.write_bytes(os.urandom(LARGE))
    conn.execute("INSERT INTO app.docs VALUES (1, 'x', NULL), (2, 'x', NULL)")
    found = put(server, "app.docs.scan", source, "--key", "x", "--key", "1")
    assert found.pop("id").isdigit()
    assert found == {"sub": "files", "name": "plan é.pdf", "size": LARGE, "mime": "application/pdf",
                     "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    rows = conn.execute("SELECT scan FROM app.docs ORDER BY a").fetchall()
    assert rows[0][0]["sha256"] == found["sha256"]
    assert rows[1] == (None,)
    target.write_bytes(b"of before")
    assert kalam(server, "get", "app.docs.scan", target, "--key", "x", "--key", "1").returncode == 0
    assert target.read_bytes() == source.read_bytes()
    done = kalam(server, "get", "app.docs.scan", "-", "--key", "x", "--key", "1")
    assert done.stdout == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "plan é.pdf"]


def test_a_reference_for_a_row_to_come(server: KalamServer, conn: psycopg.Connection) -> None:
    found = put(server, "app.docs.scan", "-", "--name", "note", "--mime", "text/x-note", given=b"hello")
    assert (found["name"], found["mime"], found["size"]) == ("note", "text/x-note", 5)
    conn.execute("INSERT INTO app.docs VALUES (1, 'it''s', %s)", [json.dumps(found)])
    assert kalam(server, "get", "APP.Docs.scan", "-", "--key", "it's", "--key", "1").stdout == b"hello"


def test_an_empty_file(server: KalamServer, conn: psycopg.Connection, tmp_path: Path) -> None:
    conn.execute("INSERT INTO app.docs VALUES (1, 'x', NULL)")
    assert put(server, "app.docs.scan", "-", "--key", "x", "--key", "1")["size"] == 0
    assert kalam(server, "get", "app.docs.scan", tmp_path / "out", "--key", "x", "--key", "1").returncode == 0
    assert (tmp_path / "out").read_bytes() == b""


def test_tenants(server: KalamServer, conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO app.u (_userid, id) VALUES ('ann', 1), ('bob', 1)")
    put(server, "app.u.photo", "-", "--key", "1", "--tenant", "ann", given=b"of ann")
    assert kalam(server, "get", "app.u.photo", "-", "--key", "1", "--tenant", "ann").stdout == b"of ann"
    done = kalam(server, "get", "app.u.photo", "-", "--key", "1", "--tenant", "bob")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"null: the row has no file" in done.stderr


def test_quoted_names(server: KalamServer, conn: psycopg.Connection) -> None:
    conn.execute('INSERT INTO app."My.Table" VALUES (1, NULL)')
    column = 'app."My.Table"."The ""File"""'
    put(server, column, "-", "--key", "1", given=b"quoted")
    assert kalam(server, "get", column, "-", "--key", "1").stdout == b"quoted"


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (("put", "app.docs.scan", "{}/none"), 1, "No such file or directory"),
    (("put", "app.docs.scan", "{}"), 1, "Is a directory"),
    (("put", "docs", "-"), 2, "does not name a column"),
    (("put", 'a."b', "-"), 2, "does not name a column"),
    (("put", "a.b.c.d", "-"), 2, "does not name a column"),
    (("put", "app.docs.extra", "-"), 1, "is not of type FILE"),
    (("put", "app.docs.none", "-"), 1, 'column "none" of relation "docs" does not exist'),
    (("put", "app.none.scan", "-"), 1, 'relation "app.none" does not exist'),
    (("put", "app.docs.scan", "-", "--key", "x"), 2, "the key has 2 columns (b, a)"),
    (("put", "app.docs.scan", "-", "--key", "x", "--key", "no"), 1, 'invalid input syntax for type integer: "no"'),
    (("put", "app.docs.scan", "-", "--key", "x", "--key", "77"), 1, 'no row of table "docs" has the key x, 77'),
    (("put", "app.docs.scan", "-", "--name", "../../x"), 1, "invalid name of a file"),
    (("put", "app.docs.scan", "-", "--name", "n" * 256), 1, "longer than 255 bytes"),
    (("put", "app.docs.scan", "-", "--mime", "nothing"), 1, "invalid media type"),
    (("put", "app.u.photo", "-"), 1, "no tenant is set"),
    (("get", "app.docs.scan", "{}", "--key", "x", "--key", "1"), 1, "no row of table"),
    (("get", "app.docs.scan", "{}/out"), 2, "Missing option"),
])
def test_errors(server: KalamServer, conn: psycopg.Connection, tmp_path: Path, arguments: tuple[str, ...], code: int,
                words: str) -> None:
    done = kalam(server, *(argument.format(tmp_path) for argument in arguments), given=b"data")
    assert (done.returncode, done.stdout) == (code, b"")
    assert words in done.stderr.decode()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_too_large(server: KalamServer, conn: psycopg.Connection) -> None:
    done = kalam(server, "put", "app.docs.scan", "-", given=bytes(12 * 2**20 + 1))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"the file is larger than 12 MiB" in done.stderr
    assert b"files.max_mib" in done.stderr
    assert list((server.data / "segments" / ".unfinished").iterdir()) == []


def test_a_name_that_is_no_utf8(server: KalamServer, conn: psycopg.Connection, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff"
    with open(path, "wb"):
        pass
    done = kalam(server, "put", "app.docs.scan", Path(os.fsdecode(path)))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"not valid UTF-8" in done.stderr


def test_a_content_that_was_damaged(server: KalamServer, conn: psycopg.Connection, tmp_path: Path) -> None:
    """Nothing is written; once it is put again, it is sound."""
    data = os.urandom(3_000_000)
    conn.execute("INSERT INTO app.docs VALUES (1, 'x', NULL)")
    put(server, "app.docs.scan", "-", "--key", "x", "--key", "1", given=data)
    (path,) = (server.data / "segments").rglob(f"{hashlib.sha256(data).hexdigest()}-*")
    flipped = bytes([data[0] ^ 1]) + data[1:]
    for damage, words in ((flipped, "SHA-256"), (data[:-1], "2999999 bytes"), (None, "missing")):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        done = kalam(server, "get", "app.docs.scan", tmp_path / "out", "--key", "x", "--key", "1")
        assert done.returncode == 1
        assert words in done.stderr.decode()
        assert list(tmp_path.iterdir()) == []
    put(server, "app.docs.scan", "-", given=data)
    assert kalam(server, "get", "app.docs.scan", "-", "--key", "x", "--key", "1").stdout == data
