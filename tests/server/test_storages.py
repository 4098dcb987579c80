"""Storages of the settings as a server's users see them; a service is not asked before a segment is written."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

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
