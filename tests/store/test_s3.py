"""The storage in a bucket, against a real service: its cache, and every failure with a name and without a secret."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from kalamdb.errors import KalamError
from kalamdb.settings import Settings, StorageSettings
from kalamdb.store import s3
from kalamdb.store.s3 import S3Storage
from kalamdb.store.storage import Storage, open_storages
from support.s3 import BUCKET, PAGE, S3Service

NAME = "seg/12/345.parquet"


@pytest.fixture
def storage(service: S3Service, tmp_path: Path) -> S3Storage:
    return S3Storage("cold", service.settings(prefix="kalam/one"), tmp_path / "cache")


def put(storage: Storage, name: str, data: bytes) -> None:
    source = storage.scratch()
    source.write_bytes(data)
    storage.put(name, source)


def another(storage_settings: StorageSettings, directory: Path) -> S3Storage:
    """The same bucket seen by a server whose cache is empty."""
    return S3Storage("cold", storage_settings, directory)


# ---------- what it does ----------
def test_a_file_that_was_put_is_an_object_until_it_is_deleted(
    storage: S3Storage, service: S3Service, tmp_path: Path
) -> None:
    source = storage.scratch()
    source.write_bytes(b"rows")
    storage.put(NAME, source)
    assert service.client().get_object(Bucket=BUCKET, Key="kalam/one/" + NAME)["Body"].read() == b"rows"
    other = another(service.settings(prefix="kalam/one/"), tmp_path / "other")
    for each in (storage, other):
        assert each.fetch(NAME).read_bytes() == b"rows"
        assert each.names("") == [NAME]
    storage.delete(NAME)
    storage.delete(NAME)
    assert (service.keys(), storage.names("")) == ([], [])
    with pytest.raises(KalamError, match="is missing"):
        storage.fetch(NAME)


def test_names_are_those_with_the_prefix(storage: S3Storage, service: S3Service) -> None:
    for name in ("seg/1/2", "seg/12/1", "seg/1/10", "other"):
        put(storage, name, b"x")
    service.client().put_object(Bucket=BUCKET, Key="kalam/oneself/seg/1/1", Body=b"of somebody else")
    assert storage.names("") == ["other", "seg/1/10", "seg/1/2", "seg/12/1"]
    assert storage.names("seg/1") == ["seg/1/10", "seg/1/2", "seg/12/1"]
    assert storage.names("seg/1/") == ["seg/1/10", "seg/1/2"]
    assert storage.names("seg/1/1") == ["seg/1/10"]
    assert storage.names("nothing") == []


def test_a_large_file_goes_up_in_parts(storage: S3Storage, service: S3Service, tmp_path: Path) -> None:
    data = os.urandom(2 * s3.PART + 12_345)
    put(storage, NAME, data)
    assert another(service.settings(prefix="kalam/one"), tmp_path / "other").fetch(NAME).read_bytes() == data


def test_more_names_than_one_answer_holds(storage: S3Storage, service: S3Service) -> None:
    client = service.client()
    for number in range(2 * PAGE + 1):
        client.put_object(Bucket=BUCKET, Key=f"kalam/one/seg/{number}", Body=b"")
    assert len(storage.names("seg/")) == 2 * PAGE + 1


def test_it_is_made_from_the_settings(service: S3Service, tmp_path: Path) -> None:
    settings = Settings(storages={"cold": service.settings(prefix="p")})
    storages = open_storages(tmp_path, settings)
    assert [(each.id, each.kind) for each in storages.values()] == [("local", "local"), ("cold", "s3")]
    assert storages["cold"].location == f"s3://{BUCKET}/p at {service.endpoint}"
    put(storages["cold"], NAME, b"x")
    assert service.keys() == ["p/" + NAME]
    for each in storages.values():
        each.close()


@pytest.fixture
def first_request() -> Iterator[tuple[str, Callable[[], str]]]:
    """Address of a service that has nothing, and what gives the first request that it got."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def serve() -> str:
            client, _ = listener.accept()
            with client:
                text = client.recv(65536).decode()
                client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return text

        yield f"http://127.0.0.1:{listener.getsockname()[1]}", pool.submit(serve).result


def test_a_key_of_the_settings_is_not_mixed_with_the_environment(
    first_request: tuple[str, Callable[[], str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SKIP_SIGNATURE"):
        monkeypatch.setenv(name, "true")
    endpoint, request = first_request
    settings = StorageSettings(
        type="s3", bucket=BUCKET, endpoint=endpoint, allow_http=True, access_key_id="OURS", secret_access_key="x"
    )
    refused(lambda: S3Storage("cold", settings, tmp_path / "cache").fetch(NAME), "58P01")
    assert "Credential=OURS/" in request()
    assert "x-amz-security-token" not in request()


def test_without_a_key_that_of_the_environment_is_used(
    first_request: tuple[str, Callable[[], str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint, request = first_request
    theirs = {"AWS_ACCESS_KEY_ID": "THEIRS", "AWS_SECRET_ACCESS_KEY": "x", "AWS_ENDPOINT_URL": endpoint}
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    storage = S3Storage("cold", StorageSettings(type="s3", bucket=BUCKET, allow_http=True), tmp_path / "cache")
    refused(lambda: storage.fetch(NAME), "58P01")
    assert "Credential=THEIRS/" in request()


def test_no_key_anywhere(service: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own service for credentials, which the client asks last, is not there."""
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    storage = S3Storage("cold", service.settings(access_key_id=None, secret_access_key=None), tmp_path / "cache")
    for call in calls(storage):
        error = refused(call)
        assert "no credentials were found" in error.message
        assert '"storages.cold.access_key_id"' in (error.hint or "")


# ---------- the cache ----------
def test_several_threads_download_once(service: S3Service, tmp_path: Path) -> None:
    settings = service.settings()
    put(another(settings, tmp_path / "first"), NAME, os.urandom(3_000_000))
    storage = another(settings, tmp_path / "second")
    barrier = threading.Barrier(8)

    def fetch(_: int) -> bytes:
        barrier.wait()
        return storage.fetch(NAME).read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(fetch, range(8)))) == 1
    assert service.requests("GET")[f"/{BUCKET}/{NAME}"] == 1


def test_what_was_put_is_not_downloaded(storage: S3Storage, service: S3Service) -> None:
    put(storage, NAME, b"rows")
    assert storage.fetch(NAME).read_bytes() == b"rows"
    assert service.requests("GET") == {}


def test_the_cache_keeps_its_budget(service: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalamdb.store.filecache.HELD", 0)
    storage = S3Storage("cold", service.settings(cache_bytes=2500), tmp_path / "cache")
    for number in range(6):
        put(storage, f"seg/{number}", bytes([number]) * 1000)
    for number in [*range(6), *range(6)]:
        with storage.fetch(f"seg/{number}").open("rb") as file:
            assert file.read() == bytes([number]) * 1000
        assert storage.cached_bytes == sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= 2500


def test_a_file_larger_than_the_budget_is_served(service: S3Service, tmp_path: Path) -> None:
    storage = S3Storage("cold", service.settings(cache_bytes=0), tmp_path / "cache")
    put(storage, NAME, b"x" * 1000)
    for _ in range(3):
        assert storage.fetch(NAME).read_bytes() == b"x" * 1000


def test_a_cache_that_was_emptied_from_outside(storage: S3Storage) -> None:
    put(storage, NAME, b"rows")
    storage.fetch(NAME).unlink()
    assert storage.fetch(NAME).read_bytes() == b"rows"


def test_a_former_life_leaves_nothing_in_the_cache(storage: S3Storage, service: S3Service, tmp_path: Path) -> None:
    put(storage, NAME, b"rows")
    storage.scratch().write_bytes(b"half")
    again = another(service.settings(bucket="elsewhere"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(KalamError, match='bucket "elsewhere" does not exist'):
        again.fetch(NAME)


# ---------- faults ----------
def refused(call: Callable[[], object], sqlstate: str = "58030") -> KalamError:
    with pytest.raises(KalamError) as caught:
        call()
    error = caught.value
    assert error.sqlstate == sqlstate
    assert 'of storage "cold"' in error.message
    logged = "".join(traceback.format_exception(error))
    assert not any(text in logged for text in ("KEYID", "secret_", "wrong-secret", "obstore.exceptions", "<Error>"))
    return error


def calls(storage: S3Storage) -> list[Callable[[], object]]:
    return [
        lambda: put(storage, NAME, b"x"), lambda: storage.fetch("seg/1"), lambda: storage.delete(NAME),
        lambda: storage.names("seg/"),
    ]


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG, "kalamdb")
    yield
    assert S3Service.secret_access_key not in caplog.text
    assert "wrong-secret" not in caplog.text


def test_a_deleted_object_is_missing(storage: S3Storage) -> None:
    error = refused(lambda: storage.fetch(NAME), "58P01")
    assert error.message == f'segment file "{NAME}" of storage "cold" is missing'


def test_all_threads_that_wait_for_a_download_get_its_error(storage: S3Storage) -> None:
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(storage.fetch, NAME) for _ in range(8)]:
            refused(future.result, "58P01")


def test_a_bucket_that_does_not_exist(service: S3Service, tmp_path: Path) -> None:
    storage = S3Storage("cold", service.settings(bucket="nowhere"), tmp_path / "cache")
    for call in calls(storage):
        error = refused(call)
        assert 'bucket "nowhere" does not exist' in error.message
        assert '"storages.cold.bucket"' in (error.hint or "")


def test_wrong_credentials(service: S3Service, tmp_path: Path) -> None:
    service.require_credentials()
    settings = service.settings(access_key_id="WRONGKEYID", secret_access_key="wrong-secret")
    for call in calls(S3Storage("cold", settings, tmp_path / "cache")):
        error = refused(call)
        assert "access denied (403 InvalidAccessKeyId)" in error.message
        assert '"storages.cold.secret_access_key"' in (error.hint or "")
        for text in (error.message, error.hint, repr(error)):
            assert "WRONGKEYID" not in str(text)
            assert "wrong-secret" not in str(text)


def test_a_service_that_went_away_and_came_back(storage: S3Storage, service: S3Service) -> None:
    put(storage, NAME, b"x")
    service.stop()
    assert storage.fetch(NAME).read_bytes() == b"x"
    for call in calls(storage):
        error = refused(call)
        assert f"at {service.endpoint} cannot be reached" in error.message
        assert '"storages.cold.endpoint"' in (error.hint or "")
    service.start()
    put(storage, "seg/1", b"y")
    assert storage.names("") == ["seg/1"]


def test_a_service_that_does_not_answer(service: S3Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "READ_TIMEOUT", s3.READ_TIMEOUT / 100)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = service.settings(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        for call in calls(S3Storage("cold", settings, tmp_path / "cache")):
            assert "gave no answer in time" in refused(call).message


def test_a_put_of_a_file_that_is_not_there(storage: S3Storage, service: S3Service) -> None:
    assert "no such file" in refused(lambda: storage.put(NAME, storage.scratch())).message
    assert service.keys() == []


def test_names_that_could_leave_the_storage_are_refused(storage: S3Storage, service: S3Service) -> None:
    source = storage.scratch()
    source.write_bytes(b"x")
    for name in ("../x", "seg//x", "", "a b", "seg/x?acl"):
        for call in (partial(storage.put, name, source), partial(storage.fetch, name), partial(storage.delete, name)):
            refused(call, "42602")
    for prefix in ("../", "seg//", "a b"):
        refused(partial(storage.names, prefix), "42602")
    assert service.requests("PUT").keys() == {f"/{BUCKET}"}


class Answers:
    """A service that gives every request the same answer and closes the connection."""

    def __init__(self, answer: bytes) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = 0
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with client:
                if not client.recv(65536):  # of close
                    return
                self.requests += 1
                client.sendall(self._answer)

    def close(self) -> None:
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()


@pytest.fixture
def answering(tmp_path: Path) -> Iterator[Callable[[bytes], tuple[Answers, S3Storage]]]:
    made: list[Answers] = []

    def make(answer: bytes) -> tuple[Answers, S3Storage]:
        made.append(Answers(answer))
        settings = StorageSettings(
            type="s3", bucket=BUCKET, endpoint=made[-1].endpoint, allow_http=True, access_key_id="KEYID",
            secret_access_key="wrong-secret",
        )
        return made[-1], S3Storage("cold", settings, tmp_path / "cache")

    yield make
    for each in made:
        each.close()


Answering = Callable[[bytes], tuple[Answers, S3Storage]]


def http(status: str, body: bytes, length: int | None = None) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\nConnection: close\r\n"
    return head.encode() + b'Last-Modified: Wed, 21 Oct 2026 07:28:00 GMT\r\nETag: "e"\r\n\r\n' + body


def test_an_overloaded_service_is_asked_a_few_times(answering: Answering) -> None:
    service, storage = answering(http("503 Slow Down", b"<Error><Code>SlowDown</Code></Error>"))
    assert refused(lambda: storage.fetch(NAME)).message.endswith("the service answered 503 SlowDown")
    assert service.requests == s3.RETRIES + 1


def test_a_download_that_breaks_off_leaves_no_file(answering: Answering, tmp_path: Path) -> None:
    _, storage = answering(http("200 OK", b"half", 8))
    for _ in range(2):
        assert f'"{NAME}"' in refused(lambda: storage.fetch(NAME)).message
        assert list((tmp_path / "cache").iterdir()) == []


def test_what_the_service_says_of_the_request_is_not_passed_on(answering: Answering) -> None:
    body = b"<Error><Code>SignatureDoesNotMatch</Code><AWSAccessKeyId>KEYID</AWSAccessKeyId><X>wrong-secret</X></Error>"
    _, storage = answering(http("403 Forbidden", body))
    for call in calls(storage):
        error = refused(call)
        assert "access denied (403 SignatureDoesNotMatch)" in error.message
        assert "KEYID" not in error.message + str(error.hint)
        assert "wrong-secret" not in error.message + str(error.hint)


def test_no_room_for_a_download(storage: S3Storage, service: S3Service, tmp_path: Path) -> None:
    put(storage, NAME, b"x")
    other = another(service.settings(prefix="kalam/one"), tmp_path / "other")
    full = tmp_path / "other" / "full"
    full.symlink_to("/dev/full")  # every write to it fails with ENOSPC
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(other._cache, "new", lambda: full)
        error = refused(lambda: other.fetch(NAME), "53100")
    assert error.message == f'could not cache segment file "{NAME}" of storage "cold": no space left on device'
    assert other.fetch(NAME).read_bytes() == b"x"
    assert other.cached_bytes == 1


def test_a_put_that_cannot_be_cached_is_a_put(
    storage: S3Storage, service: S3Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str, path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage._cache, "add", fail)
    source = storage.scratch()
    source.write_bytes(b"x")
    storage.put(NAME, source)
    assert not source.exists()
    assert service.keys() == ["kalam/one/" + NAME]
    assert "could not keep segment file" in caplog.text


_PUT_FOREVER = """
import sys
from pathlib import Path
from kalamdb.settings import StorageSettings
from kalamdb.store.s3 import S3Storage
settings = StorageSettings(type="s3", bucket=sys.argv[2], endpoint=sys.argv[3], allow_http=True, access_key_id="x",
                           secret_access_key="x", cache_bytes=0)
storage = S3Storage("cold", settings, Path(sys.argv[1]))
for number in range(10**9):
    source = storage.scratch()
    source.write_bytes(b"x" * 20_000_000)
    storage.put(f"seg/{number}", source)
    print(number, flush=True)
"""


def test_kill_during_put_leaves_whole_objects_only(service: S3Service, tmp_path: Path) -> None:
    for _ in range(3):
        command = [sys.executable, "-c", _PUT_FOREVER, str(tmp_path / "cache"), BUCKET, service.endpoint]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            last = process.stdout.readline().decode().strip()
            process.kill()
        storage = another(service.settings(), tmp_path / "cache")
        names = storage.names("")
        assert f"seg/{last}" in names
        assert all(storage.fetch(name).stat().st_size == 20_000_000 for name in names)


def test_whose_it_is(storage: S3Storage, service: S3Service, tmp_path: Path) -> None:
    """The first one's mark stays."""
    assert storage.owner() is None
    for text in ("first", "second"):
        storage.make_owner(text)
        assert storage.owner() == "first"
    assert storage.names("") == []
    nowhere = S3Storage("nowhere", service.settings(bucket="nowhere"), tmp_path / "other")
    for ask in (nowhere.owner, lambda: nowhere.make_owner("first")):
        with pytest.raises(KalamError) as caught:
            ask()
        assert caught.value.sqlstate == "58030"
