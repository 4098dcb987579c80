"""Storages of the settings as a server's users see them; a service is not asked before a segment is written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from support.ports import wait_until
from support.s3 import BUCKET as S3_BUCKET
from support.s3 import S3Service
from support.server import KalamServer

SECRETS = {"access_key_id": "geheim-key", "secret_access_key": "geheim-secret"}
BUCKET = {"type": "s3", "bucket": "history", "endpoint": "http://127.0.0.1:1", "allow_http": "true"}


@pytest.fixture
def server() -> Iterator[KalamServer]:
    """A server with the storage ``cold``, in a bucket that cannot be reached."""
    storage = {f"storages__cold__{name}": value for name, value in (BUCKET | SECRETS).items()}
    server = KalamServer(log_level="debug", **storage)
    try:
        server.start()
        yield server
    finally:
        server.close()


def create(server: KalamServer, name: str, storage: str) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(f"CREATE SHARED TABLE {name} (id bigint PRIMARY KEY) WITH (storage_id = '{storage}')".encode())


def test_a_table_names_its_storage(server: KalamServer) -> None:
    for name, storage in (("public.a", "local"), ("public.b", "cold")):
        create(server, name, storage)
    assert "geheim" not in server.log_since(0)


def test_they_are_listed_without_credentials(server: KalamServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        found = conn.execute("SELECT id, kind, location FROM system.storages ORDER BY id").fetchall()
    assert found == [
        ("cold", "s3", "s3://history at http://127.0.0.1:1"), ("local", "local", str(server.data / "segments")),
    ]


@pytest.mark.parametrize("name", ["colder", "COLD", "", "cold "])
def test_a_storage_that_is_not_configured(server: KalamServer, name: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        create(server, "public.a", name)
    assert caught.value.diag.sqlstate == "42704"
    assert caught.value.diag.message_primary == f'storage "{name}" does not exist'
    assert caught.value.diag.message_hint == "Storages: local, cold."


def test_a_storage_that_was_removed_from_the_settings(server: KalamServer) -> None:
    create(server, "public.b", "cold")
    server.stop()
    for name in BUCKET | SECRETS:
        del server.settings[f"storages__cold__{name}"]
    server.start()
    assert 'storage "cold" of table "public.b" is not among the settings' in server.log_since(0)
    with pytest.raises(psycopg.Error, match='storage "cold" does not exist'):
        create(server, "public.c", "cold")


# ---------- segments in a bucket ----------
@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Service]:
    service = S3Service(tmp_path_factory.mktemp("moto"))
    try:
        yield service
    finally:
        service.close()


@pytest.fixture
def remote(service: S3Service) -> Iterator[KalamServer]:
    """A server whose storage ``cold`` is in that service."""
    storage = {
        "type": "s3", "bucket": S3_BUCKET, "prefix": "history", "endpoint": service.endpoint, "allow_http": "true",
        "access_key_id": service.access_key_id, "secret_access_key": service.secret_access_key,
    }
    server = KalamServer(**{f"storages__cold__{name}": value for name, value in storage.items()})
    try:
        server.start()
        yield server
    finally:
        server.close()


def objects(service: S3Service) -> list[str]:
    return sorted(service.keys())


def test_a_table_whose_history_is_in_a_bucket(remote: KalamServer, service: S3Service) -> None:
    every = "SELECT id, v FROM app.t ORDER BY id"
    with psycopg.connect(remote.dsn(), autocommit=True) as conn:
        conn.execute("CREATE NAMESPACE app")
        conn.execute("CREATE SHARED TABLE app.t (id bigint PRIMARY KEY, v text) WITH (storage_id = 'cold')")
        conn.execute("INSERT INTO app.t SELECT i, 'row ' || i FROM generate_series(1, 2000) i")
        conn.execute("STORAGE FLUSH TABLE app.t")
        assert len(objects(service)) == 1
        assert objects(service)[0].startswith("history/")
        conn.execute("UPDATE app.t SET v = 'changed' WHERE id = 7")
        conn.execute("DELETE FROM app.t WHERE id = 8")
        with pytest.raises(psycopg.errors.UniqueViolation):
            conn.execute("INSERT INTO app.t VALUES (9, 'twice')")
        conn.execute("STORAGE FLUSH TABLE app.t")
        wanted = conn.execute(every).fetchall()
        assert wanted == [(i, "changed" if i == 7 else f"row {i}") for i in range(1, 2001) if i != 8]
        conn.execute("STORAGE COMPACT TABLE app.t")
        assert conn.execute("SELECT storage, rows FROM system.segments").fetchall() == [("cold", 1999)]
        conn.execute("INSERT INTO app.t VALUES (5000, 'hot')")
    remote.restart()
    with psycopg.connect(remote.dsn(), autocommit=True) as conn:
        assert conn.execute("SELECT v FROM app.t WHERE id = 7").fetchone() == ("changed",)
        assert conn.execute(every).fetchall() == [*wanted, (5000, "hot")]
    remote.stop()
    service.stop()
    remote.start()  # with a cache that is empty, and nobody to ask
    with psycopg.connect(remote.dsn(), autocommit=True) as conn:
        assert conn.execute("SELECT v FROM app.t WHERE id = 5000").fetchone() == ("hot",)
        with pytest.raises(psycopg.errors.IoError) as caught:
            conn.execute(every)
        assert "cold" in str(caught.value)
        assert service.secret_access_key not in str(caught.value)


# ---------- whose a bucket is ----------
MARKER = "history/kalam.json"


def fill(server: KalamServer) -> None:
    """A table with a segment and a file in the bucket."""
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute("CREATE NAMESPACE app")
        conn.execute("CREATE SHARED TABLE app.t (id bigint PRIMARY KEY, f FILE) WITH (storage_id = 'cold')")
        ((found,),) = conn.execute("FILE PUT INTO app.t (f) DATA 'hello'").fetchall()
        conn.execute("INSERT INTO app.t VALUES (1, %s)", [json.dumps(found)])
        conn.execute("STORAGE FLUSH TABLE app.t")


def whole(server: KalamServer) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        assert conn.execute("SELECT id FROM app.t").fetchall() == [(1,)]
        ((_, data),) = conn.execute("FILE GET f FROM app.t WHERE id = 1").fetchall()
        assert data == b"hello"


def test_a_restored_copy_is_another_server(remote: KalamServer, service: S3Service, tmp_path: Path) -> None:
    fill(remote)
    before = objects(service)
    assert len(before) == 2
    for arguments in (["backup", "--data", str(remote.data), "--to", str(tmp_path / "backups")],
                      ["restore", "--from", str(tmp_path / "backups"), "--data", str(tmp_path / "data")]):
        subprocess.run([Path(sys.executable).with_name("kalam"), *arguments], env=remote._environment(), check=True,
                       capture_output=True)
    copy = KalamServer(**{name: text for name, text in remote.settings.items() if name.startswith("storages")})
    copy.data = tmp_path / "data"
    try:
        copy.start()
        wait_until(lambda: 'storage "cold" belongs to another server' in copy.log_since(0), "its refusal", 20)
        assert objects(service) == before
        whole(copy)
        with psycopg.connect(copy.dsn(), autocommit=True) as conn:
            for what in ("FILE PUT INTO app.t (f) DATA 'x'", "STORAGE FLUSH TABLE app.t",
                         "STORAGE COMPACT TABLE app.t"):
                with pytest.raises(psycopg.errors.ObjectInUse) as caught:
                    conn.execute(what.encode())
                assert "kalam.json" in str(caught.value.diag.message_detail)
        remote.restart()  # with a cache that is empty
        whole(remote)

        remote.stop()  # what the hint says
        mine = str(caught.value.diag.message_hint).partition(" write ")[2].partition(" to kalam.json")[0]
        service.client().put_object(Bucket=S3_BUCKET, Key=MARKER, Body=mine.encode())
        copy.restart()
        with psycopg.connect(copy.dsn(), autocommit=True) as conn:
            conn.execute("FILE PUT INTO app.t (f) DATA 'x'")
        assert not set(objects(service)) & set(before)
        whole(copy)
        start = len(remote.log_since(0))
        remote.start()
        wait_until(lambda: "belongs to another server" in remote.log_since(0)[start:], "its refusal", 20)
    finally:
        copy.close()


def test_a_bucket_from_before_there_were_markers(remote: KalamServer, service: S3Service) -> None:
    fill(remote)
    before = objects(service)
    remote.stop()
    service.client().delete_object(Bucket=S3_BUCKET, Key=MARKER)
    other = KalamServer(**{name: text for name, text in remote.settings.items() if name.startswith("storages")})
    try:
        other.start()
        wait_until(lambda: "belongs to another server" in other.log_since(0), "the other's refusal", 20)
    finally:
        other.close()
    assert objects(service) == before
    remote.start()
    whole(remote)
    with psycopg.connect(remote.dsn(), autocommit=True) as conn:
        conn.execute("FILE PUT INTO app.t (f) DATA 'x'")
    assert service.client().get_object(Bucket=S3_BUCKET, Key=MARKER)["Body"].read()
    assert set(before) < set(objects(service))
