"""FILE statements as clients of the server's own SQL see them: who may put and get, sessions, buckets, kills."""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from support.ports import wait_until
from support.s3 import BUCKET, S3Service
from support.server import KalamServer

MIB = 1 << 20


@pytest.fixture(scope="module")
def shared_server() -> Iterator[KalamServer]:
    server = KalamServer(files__grace="0")
    try:
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("CREATE USER ann PASSWORD 'ann-secret' ROLE user")
            conn.execute("CREATE USER bob PASSWORD 'bob-secret' ROLE user")
            conn.execute("CREATE NAMESPACE app")
            for kind, name, options in (("USER", "u", ""), ("SHARED", "s", "WITH (access_level = 'public')"),
                                        ("SHARED", "p", "")):
                conn.execute(f"CREATE {kind} TABLE app.{name} (id bigint PRIMARY KEY, f FILE, j jsonb) {options}")
        yield server
    finally:
        server.close()


@pytest.fixture
def conn(shared_server: KalamServer) -> Iterator[psycopg.Connection]:
    with psycopg.connect(shared_server.dsn(), autocommit=True) as connection:
        for name in ("s", "p"):
            connection.execute(f"DELETE FROM app.{name}")
        for tenant in ("ann", "bob"):
            connection.execute(f"EXECUTE AS USER '{tenant}' (DELETE FROM app.u)")
        yield connection


@pytest.fixture
def ann(shared_server: KalamServer) -> Iterator[psycopg.Connection]:
    with psycopg.connect(shared_server.dsn("ann"), autocommit=True) as connection:
        yield connection


@pytest.fixture
def bob(shared_server: KalamServer) -> Iterator[psycopg.Connection]:
    with psycopg.connect(shared_server.dsn("bob"), autocommit=True) as connection:
        yield connection


def value(conn: psycopg.Connection, text: str, *values: Any) -> Any:
    ((found,),) = conn.execute(text, values or None).fetchall()
    return found


def got(conn: psycopg.Connection, text: str, *values: Any) -> bytes:
    cursor = conn.cursor(binary=True)
    cursor.execute(text, values or None)
    place, whole = None, b""
    for offset, data in cursor:
        assert place is None or offset == place
        place, whole = offset + len(data), whole + data
    return whole


def fails(conn: psycopg.Connection, sqlstate: str, text: str, *values: Any) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(text, values or None)
    assert caught.value.diag.sqlstate == sqlstate, caught.value
    return caught.value


def unfinished(server: KalamServer) -> list[Path]:
    return list((server.data / "segments" / ".unfinished").iterdir())


# ---------- statements ----------
@pytest.mark.parametrize("data", [
    "'\\x68656c6c6f'", "'hello'", "E'\\\\x68656c6c6f'", "BASE64 'aGVsbG8='", "BASE64 'aGVs\n bG8='",
])
def test_ways_to_give_data(conn: psycopg.Connection, data: str) -> None:
    found = value(conn, f"FILE PUT INTO app.s (f) NAME 'a.txt' DATA {data}")
    assert (found["size"], found["mime"]) == (5, "text/plain")
    conn.execute("INSERT INTO app.s (id, f) VALUES (1, %s)", [json.dumps(found)])
    assert got(conn, "FILE GET f FROM app.s WHERE id = 1") == b"hello"


def test_everything_is_a_parameter(conn: psycopg.Connection) -> None:
    data = os.urandom(1000)
    found = value(conn, "FILE PUT INTO app.s (f) NAME %s MIME %s SHA256 %s DATA %b", "n", "a/b",
                  hashlib.sha256(data).hexdigest(), data)
    assert (found["name"], found["mime"]) == ("n", "a/b")
    conn.execute("INSERT INTO app.s (id, f) VALUES (%s, %s)", [7, json.dumps(found)])
    assert got(conn, "FILE GET f FROM app.s WHERE id = %s OFFSET 10 LIMIT 20", 7) == data[10:30]
    assert got(conn, "FILE GET f FROM app.s WHERE id = 7 OFFSET 990") == data[990:]
    assert got(conn, "FILE GET f FROM app.s WHERE id = 7 OFFSET 2000") == b""
    assert got(conn, "FILE GET f FROM app.s WHERE id = 7 LIMIT 0") == b""


def test_a_large_one_in_pieces(conn: psycopg.Connection, shared_server: KalamServer) -> None:
    data = os.urandom(3 * MIB + 5)
    upload = value(conn, "FILE OPEN INTO app.s (f)")
    for start in range(0, len(data), MIB):
        size = value(conn, "FILE APPEND TO %s AT " + str(start) + " DATA %b", upload, data[start : start + MIB])
        assert size == min(len(data), start + MIB)
    fails(conn, "55000", "FILE APPEND TO %s AT 5 DATA 'x'", upload)
    found = value(conn, "FILE CLOSE %s", upload)
    assert (found["size"], found["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    conn.execute("INSERT INTO app.s (id, f) VALUES (1, %s)", [json.dumps(found)])
    assert got(conn, "FILE GET f FROM app.s WHERE id = 1") == data
    fails(conn, "42704", "FILE CLOSE %s", upload)
    assert unfinished(shared_server) == []


def test_an_upload_is_its_sessions(conn: psycopg.Connection, ann: psycopg.Connection, shared_server: KalamServer
                                   ) -> None:
    with psycopg.connect(shared_server.dsn(), autocommit=True) as other:
        upload = value(other, "FILE OPEN INTO app.s (f)")
        value(other, "FILE APPEND TO %s DATA 'x'", upload)
        fails(conn, "42704", "FILE APPEND TO %s DATA 'x'", upload)
        assert len(unfinished(shared_server)) == 1
        for _ in range(15):
            value(other, "FILE OPEN INTO app.s (f)")
        fails(other, "53400", "FILE OPEN INTO app.s (f)")
        other.execute("FILE CANCEL %s", [upload])
        assert unfinished(shared_server) == []
        value(other, "FILE APPEND TO %s DATA 'x'", value(other, "FILE OPEN INTO app.s (f)"))
    wait_until(lambda: not unfinished(shared_server), "the end of the session's uploads", 20)


@pytest.mark.parametrize(("sqlstate", "text"), [
    ("42601", "FILE"), ("42601", "FILE PUT app.s (f) DATA 'x'"), ("42601", "FILE PUT INTO app.s (f)"),
    ("42601", "FILE PUT INTO app.s (f) NAME 'a' NAME 'b' DATA 'x'"), ("42601", "FILE GET f FROM app.s WHERE"),
    ("42601", "FILE PUT INTO app.s (f) DATA 'x' y"), ("42601", "FILE OPEN INTO app.s (f) DATA 'x'"),
    ("42601", "FILE GET f FROM app.s WHERE id = 1 UNION SELECT f FROM app.s"),
    ("42601", "FILE GET f FROM app.s WHERE id = 1 ORDER BY 1"), ("42601", "FILE GET f FROM app.s AS x(j, f)"),
    ("42601", "FILE GET f FROM app.s, app.p"), ("42601", "FILE GET f FROM app.s OFFSET -1"),
    ("42P01", "FILE PUT INTO app.none (f) DATA 'x'"), ("42703", "FILE PUT INTO app.s (none) DATA 'x'"),
    ("42809", "FILE PUT INTO app.s (j) DATA 'x'"), ("42809", "FILE GET j FROM app.s"),
    ("42703", "FILE GET f FROM app.s WHERE none = 1"), ("P0002", "FILE GET f FROM app.s WHERE id = 99"),
    ("42501", "FILE PUT INTO system.tables (f) DATA 'x'"), ("22P02", "FILE PUT INTO app.s (f) DATA '\\x1'"),
    ("22023", "FILE PUT INTO app.s (f) DATA BASE64 'a'"), ("22023", "FILE PUT INTO app.s (f) NAME '../../x' DATA 'x'"),
    ("22023", "FILE PUT INTO app.s (f) MIME 'x' DATA 'x'"), ("22023", "FILE PUT INTO app.s (f) SHA256 'x' DATA 'x'"),
    ("42704", "FILE APPEND TO 'none' DATA 'x'"), ("42704", "FILE CANCEL ''"),
    ("0A000", "CREATE SHARED TABLE app.d (id int PRIMARY KEY, f FILE DEFAULT '{}')"),
    ("0A000", "ALTER TABLE app.s ALTER COLUMN j TYPE FILE"), ("0A000", "ALTER TABLE app.s ALTER COLUMN f TYPE jsonb"),
    ("0A000", "ALTER TABLE app.s ALTER COLUMN f SET DEFAULT '{}'"),
    ("22023", "INSERT INTO app.s (id, f) VALUES (1, '{}')"), ("22023", "INSERT INTO app.s (id, f) VALUES (1, '[1]')"),
])
def test_errors(conn: psycopg.Connection, shared_server: KalamServer, sqlstate: str, text: str) -> None:
    fails(conn, sqlstate, text)
    assert unfinished(shared_server) == []


def test_a_hash_that_is_another(conn: psycopg.Connection, shared_server: KalamServer) -> None:
    fails(conn, "22000", "FILE PUT INTO app.s (f) SHA256 %s DATA 'x'", "0" * 64)
    upload = value(conn, "FILE OPEN INTO app.s (f)")
    fails(conn, "22000", "FILE CLOSE %s SHA256 %s", upload, "0" * 64)
    assert unfinished(shared_server) == []


def test_a_table_that_changes_under_an_upload(conn: psycopg.Connection, ann: psycopg.Connection,
                                              shared_server: KalamServer) -> None:
    conn.execute("CREATE SHARED TABLE app.late (id bigint PRIMARY KEY, f FILE, g FILE) WITH (access_level = 'public')")
    conn.execute("CREATE USER sue PASSWORD 'sue-secret' ROLE service")
    try:
        with psycopg.connect(shared_server.dsn("sue"), autocommit=True) as sue:
            first, second = (value(sue, f"FILE OPEN INTO app.late ({column})") for column in "fg")
            conn.execute("ALTER TABLE app.late DROP COLUMN f")
            fails(sue, "42703", "FILE CLOSE %s", first)
            conn.execute("ALTER TABLE app.late RENAME COLUMN g TO h")
            value(sue, "FILE APPEND TO %s DATA 'x'", second)
            conn.execute("ALTER TABLE app.late SET (access_level = 'dba')")
            fails(sue, "42501", "FILE APPEND TO %s DATA 'x'", second)
            fails(sue, "42501", "FILE CLOSE %s", second)
            sue.execute("FILE CANCEL %s", [first])
            conn.execute("ALTER TABLE app.late SET (access_level = 'public')")
            assert value(sue, "FILE CLOSE %s", second)["size"] == 1
            third = value(sue, "FILE OPEN INTO app.late (h)")
            conn.execute("DROP TABLE app.late")
            fails(sue, "42P01", "FILE CLOSE %s", third)
    finally:
        conn.execute("DROP TABLE IF EXISTS app.late")
        conn.execute("DROP USER sue")


@pytest.mark.parametrize("base64", [True, False])
def test_long_texts(conn: psycopg.Connection, base64: bool) -> None:
    """A thread reads them; a wrong one leaves the upload as it was."""
    data = os.urandom(2 * MIB)
    text = b64encode(data).decode() if base64 else "\\x" + data.hex()
    form = f"DATA {'BASE64 ' if base64 else ''}'{{}}'"
    upload = value(conn, "FILE OPEN INTO app.s (f)")
    for wrong in (text[:-1] + "!", text[:-2] + "zzz"):
        with pytest.raises(psycopg.DataError):
            conn.execute(f"FILE APPEND TO '{upload}' {form.format(wrong)}")
    assert value(conn, f"FILE APPEND TO '{upload}' {form.format(text)}") == len(data)
    assert value(conn, "FILE CLOSE %s", upload)["sha256"] == hashlib.sha256(data).hexdigest()


def test_a_reference_in_binary(conn: psycopg.Connection) -> None:
    """Compact, as many clients write it: it is kept as any other, and so its content stays."""
    found = value(conn, "FILE PUT INTO app.s (f) DATA 'in binary'")
    compact = Jsonb(found, dumps=lambda each: json.dumps(each, separators=(",", ":")))
    conn.execute("INSERT INTO app.s (id, f, j) VALUES (1, %b, %b)", [compact, compact])
    for _ in range(2):
        conn.execute("STORAGE COMPACT TABLE app.s")
    assert got(conn, "FILE GET f FROM app.s WHERE id = 1") == b"in binary"
    rows = conn.execute("SELECT f::text, j::text, f = %s::jsonb FROM app.s", [json.dumps(found)]).fetchall()
    ((one, two, same),) = rows
    assert one == two
    assert '"sha256": "' in one
    assert same
    fails(conn, "22P02", "INSERT INTO app.s (id, j) VALUES (2, %b)", Jsonb(0, dumps=lambda _: "not json"))


@pytest.mark.parametrize("name", ["a\x85b", "a\u202eb", "a\u2066b", "\ufeffa", "a\x7f"])
def test_names_with_controls(conn: psycopg.Connection, name: str) -> None:
    fails(conn, "22023", "FILE PUT INTO app.s (f) NAME %s DATA 'x'", name)
    assert value(conn, "FILE PUT INTO app.s (f) NAME 'می\u200cخواهم' DATA 'x'")["name"] == "می\u200cخواهم"


def test_a_size_of_thousands_of_digits(conn: psycopg.Connection) -> None:
    found = json.dumps(value(conn, "FILE PUT INTO app.s (f) DATA 'x'"))
    size = '"size": 1'
    assert size in found
    fails(conn, "22023", "INSERT INTO app.s (id, f) VALUES (1, %s)", found.replace(size, size + "0" * 5000))


def test_null_parameters(conn: psycopg.Connection) -> None:
    fails(conn, "22004", "FILE PUT INTO app.s (f) DATA %s", None)
    fails(conn, "22004", "FILE PUT INTO app.s (f) NAME %s DATA 'x'", None)


def test_several_rows_and_none(conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO app.s (id) VALUES (1), (2)")
    fails(conn, "21000", "FILE GET f FROM app.s")
    assert "has no file" in str(fails(conn, "P0002", "FILE GET f FROM app.s WHERE id = 1"))


def test_a_read_only_transaction(conn: psycopg.Connection) -> None:
    conn.execute("BEGIN READ ONLY")
    fails(conn, "25006", "FILE PUT INTO app.s (f) DATA 'x'")
    conn.execute("ROLLBACK")


def test_a_transaction_sees_its_rows(conn: psycopg.Connection, shared_server: KalamServer) -> None:
    found = value(conn, "FILE PUT INTO app.s (f) DATA 'mine'")
    conn.execute("BEGIN")
    conn.execute("INSERT INTO app.s (id, f) VALUES (1, %s)", [json.dumps(found)])
    assert got(conn, "FILE GET f FROM app.s WHERE id = 1") == b"mine"
    with psycopg.connect(shared_server.dsn(), autocommit=True) as other:
        fails(other, "P0002", "FILE GET f FROM app.s WHERE id = 1")
        other.execute("STORAGE COMPACT TABLE app.s")  # removes what nothing refers to
    conn.execute("COMMIT")
    assert got(conn, "FILE GET f FROM app.s WHERE id = 1") == b"mine"
    conn.execute("BEGIN")
    conn.execute("DELETE FROM app.s")
    fails(conn, "P0002", "FILE GET f FROM app.s WHERE id = 1")
    conn.execute("ROLLBACK")
    assert got(conn, "FILE GET f FROM app.s WHERE id = 1") == b"mine"


def test_what_is_rolled_back_goes(conn: psycopg.Connection, shared_server: KalamServer) -> None:
    found = value(conn, "FILE PUT INTO app.s (f) DATA 'rolled back'")
    conn.execute("BEGIN")
    conn.execute("INSERT INTO app.s (id, f) VALUES (1, %s)", [json.dumps(found)])
    conn.execute("ROLLBACK")
    conn.execute("STORAGE COMPACT TABLE app.s")
    jobs = conn.execute("SELECT status, rows FROM system.jobs WHERE kind = 'files' ORDER BY id DESC LIMIT 1").fetchall()
    assert jobs[0][0] == "done"
    assert jobs[0][1] >= 1
    wait_until(lambda: not list((shared_server.data / "segments").rglob(f"{found['sha256']}-*")), "its removal", 20)
    assert "has not been put" in str(fails(conn, "23503", "INSERT INTO app.s (id, f) VALUES (1, %s)",
                                           json.dumps(found)))


# ---------- who may ----------
def test_tenants(ann: psycopg.Connection, bob: psycopg.Connection, conn: psycopg.Connection) -> None:
    found = value(ann, "FILE PUT INTO app.u (f) DATA 'secret of ann'")
    ann.execute("INSERT INTO app.u (id, f) VALUES (1, %s)", [json.dumps(found)])
    assert got(ann, "FILE GET f FROM app.u WHERE id = 1") == b"secret of ann"
    fails(bob, "P0002", "FILE GET f FROM app.u WHERE id = 1")
    error = fails(bob, "23503", "INSERT INTO app.u (id, f) VALUES (1, %s)", json.dumps(found))
    nowhere = fails(bob, "23503", "INSERT INTO app.u (id, f) VALUES (1, %s)",
                    json.dumps(found | {"sha256": hashlib.sha256(b"nowhere").hexdigest()}))
    assert error.diag.message_primary == nowhere.diag.message_primary
    bob.execute("INSERT INTO app.u (id, j) VALUES (1, %s)", [json.dumps(found)])
    fails(bob, "42809", "FILE GET j FROM app.u WHERE id = 1")
    fails(bob, "42501", "EXECUTE AS USER 'ann' (FILE GET f FROM app.u WHERE id = 1)")
    fails(bob, "42501", "EXECUTE AS USER 'ann' (FILE PUT INTO app.u (f) DATA 'x')")
    assert got(conn, "EXECUTE AS USER 'ann' (FILE GET f FROM app.u WHERE id = 1)") == b"secret of ann"
    fails(conn, "42501", "FILE PUT INTO app.u (f) DATA 'x'")
    fails(conn, "42501", "FILE GET f FROM app.u WHERE id = 1")
    conn.execute("SET kalam.user_id = '*'")
    assert got(conn, "FILE GET f FROM app.u WHERE id = 1 AND _userid = 'ann'") == b"secret of ann"
    fails(conn, "42501", "FILE PUT INTO app.u (f) DATA 'x'")


def test_roles(ann: psycopg.Connection, conn: psycopg.Connection) -> None:
    for name in ("s", "p"):
        found = value(conn, f"FILE PUT INTO app.{name} (f) DATA 'all'")
        conn.execute(f"INSERT INTO app.{name} (id, f) VALUES (1, %s)", [json.dumps(found)])
        fails(ann, "42501", f"FILE PUT INTO app.{name} (f) DATA 'x'")
        fails(ann, "42501", f"FILE OPEN INTO app.{name} (f)")
    assert got(ann, "FILE GET f FROM app.s WHERE id = 1") == b"all"
    fails(ann, "42501", "FILE GET f FROM app.p WHERE id = 1")


# ---------- a bucket ----------
def test_in_a_bucket(tmp_path: Path) -> None:
    service = S3Service(tmp_path)
    storage = {
        "type": "s3", "bucket": BUCKET, "prefix": "history", "endpoint": service.endpoint, "allow_http": "true",
        "access_key_id": service.access_key_id, "secret_access_key": service.secret_access_key,
    }
    server = KalamServer(files__grace="0", **{f"storages__cold__{name}": text for name, text in storage.items()})
    data = os.urandom(2 * MIB)
    try:
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("CREATE NAMESPACE app")
            conn.execute("CREATE SHARED TABLE app.t (id bigint PRIMARY KEY, f FILE) WITH (storage_id = 'cold')")
            for number, content in enumerate((data, b"")):
                found = value(conn, "FILE PUT INTO app.t (f) DATA %b", content)
                conn.execute("INSERT INTO app.t VALUES (%s, %s)", [number, json.dumps(found)])
            value(conn, "FILE PUT INTO app.t (f) DATA 'nobody refers to it'")
            assert len(service.keys()) == 3
        server.restart()  # with a cache that is empty
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            assert got(conn, "FILE GET f FROM app.t WHERE id = 0") == data
            assert got(conn, "FILE GET f FROM app.t WHERE id = 1") == b""
            conn.execute("STORAGE COMPACT TABLE app.t")
            wait_until(lambda: len(service.keys()) == 2, "the removal of what nobody refers to", 20)
        server.restart()
        service.stop()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            error = fails(conn, "58030", "FILE GET f FROM app.t WHERE id = 0")
            assert service.secret_access_key not in str(error)
            fails(conn, "58030", "FILE PUT INTO app.t (f) DATA 'x'")
            assert conn.execute("SELECT count(*) FROM app.t").fetchall() == [(2,)]
    finally:
        server.close()
        service.close()


# ---------- kill -9 ----------
def test_killed_during_an_upload(shared_server: KalamServer) -> None:
    with psycopg.connect(shared_server.dsn(), autocommit=True) as conn:
        upload = value(conn, "FILE OPEN INTO app.s (f)")
        value(conn, "FILE APPEND TO %s DATA %b", upload, bytes(MIB))
        kept = value(conn, "FILE PUT INTO app.s (f) DATA 'acknowledged'")
        shared_server.kill()
    assert len(unfinished(shared_server)) == 1
    shared_server.start()
    assert unfinished(shared_server) == []
    with psycopg.connect(shared_server.dsn(), autocommit=True) as conn:
        conn.execute("DELETE FROM app.s")
        conn.execute("INSERT INTO app.s (id, f) VALUES (1, %s)", [json.dumps(kept)])
        assert got(conn, "FILE GET f FROM app.s WHERE id = 1") == b"acknowledged"
