"""The storage in a directory: files appear whole and for good, and every failure has a name."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kalamdb.errors import KalamError
from kalamdb.store import files
from kalamdb.store.storage import LocalStorage, open_storages


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage("local", tmp_path / "segments")


def put(storage: LocalStorage, name: str, data: bytes) -> None:
    source = storage.scratch()
    source.write_bytes(data)
    storage.put(name, source)
    assert not source.exists()


# ---------- what it does ----------
def test_a_file_that_was_put_is_there_until_it_is_deleted(storage: LocalStorage) -> None:
    put(storage, "seg/12/345.parquet", b"rows")
    assert storage.fetch("seg/12/345.parquet").read_bytes() == b"rows"
    storage.delete("seg/12/345.parquet")
    storage.delete("seg/12/345.parquet")
    assert storage.names("") == []


def test_names_are_those_with_the_prefix_and_no_unfinished_ones(storage: LocalStorage) -> None:
    for name in ("seg/1/2.parquet", "seg/12/1.parquet", "seg/1/10.parquet", "other"):
        put(storage, name, b"x")
    storage.scratch().write_bytes(b"half")
    assert storage.names("") == ["other", "seg/1/10.parquet", "seg/1/2.parquet", "seg/12/1.parquet"]
    assert storage.names("seg/1") == ["seg/1/10.parquet", "seg/1/2.parquet", "seg/12/1.parquet"]
    assert storage.names("seg/1/") == ["seg/1/10.parquet", "seg/1/2.parquet"]
    assert storage.names("seg/1/1") == ["seg/1/10.parquet"]
    assert storage.names("nothing/") == []


def test_a_new_start_keeps_segments_and_removes_the_rest(storage: LocalStorage, tmp_path: Path) -> None:
    put(storage, "seg/1/1", b"x")
    put(storage, "seg/2/1", b"x")
    storage.delete("seg/2/1")
    left = storage.scratch()
    left.write_bytes(b"half")
    again = open_storages(tmp_path)["local"]
    assert (again.id, again.kind, again.location) == ("local", "local", str(tmp_path / "segments"))
    assert again.names("") == ["seg/1/1"]
    assert not left.exists()
    assert not (tmp_path / "segments/seg/2").exists()


def test_a_file_put_again_replaces_the_one_that_was_never_published(storage: LocalStorage) -> None:
    put(storage, "seg/1", b"old")
    put(storage, "seg/1", b"new")
    assert storage.fetch("seg/1").read_bytes() == b"new"


def test_many_threads_put_into_directories_that_are_not_there_yet(storage: LocalStorage) -> None:
    names = [f"seg/{number % 7}/{number}" for number in range(100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: put(storage, name, name.encode()), names))
    assert storage.names("seg/") == sorted(names)
    assert all(storage.fetch(name).read_bytes() == name.encode() for name in names)


def test_file_and_directories_are_synchronised_before_put_returns(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def record(path: Path) -> None:
        synced.append("source" if path.parent.name == ".unfinished" else path.relative_to(tmp_path).as_posix())

    monkeypatch.setattr(files, "sync", record)
    put(storage, "seg/1/a", b"x")
    assert synced == ["source", "segments", "segments/seg", "segments/seg/1"]
    synced.clear()
    put(storage, "seg/1/b", b"x")
    assert synced == ["source", "segments/seg/1"]


# ---------- bad names ----------
@pytest.mark.parametrize(
    "name",
    ["", "/", "/etc/passwd", "..", "../hot.db", "seg/../../hot.db", "seg//1", "seg/", ".unfinished/x", "seg/.x", "a b",
     "seg\\1", "seg/\0", "seg/1\n", "ä", "a" * 201, "/".join("abcdefghi")],
)
def test_names_that_could_leave_the_storage_are_refused(storage: LocalStorage, name: str) -> None:
    source = storage.scratch()
    source.write_bytes(b"x")
    calls: list[Callable[[], object]] = [
        lambda: storage.put(name, source), lambda: storage.fetch(name), lambda: storage.delete(name),
    ]
    for call in calls:
        with pytest.raises(KalamError) as caught:
            call()
        assert caught.value.sqlstate == "42602"
        assert 'storage "local"' in caught.value.message
    assert source.exists()


@pytest.mark.parametrize("prefix", ["/", "..", "../", "seg/../..", ".unfinished", "seg//", "a b"])
def test_prefixes_that_could_leave_the_storage_are_refused(storage: LocalStorage, prefix: str) -> None:
    with pytest.raises(KalamError) as caught:
        storage.names(prefix)
    assert caught.value.sqlstate == "42602"


# ---------- faults ----------
def test_a_missing_file_is_named(storage: LocalStorage) -> None:
    with pytest.raises(KalamError) as caught:
        storage.fetch("seg/12/345.parquet")
    assert caught.value.sqlstate == "58P01"
    assert caught.value.message == 'segment file "seg/12/345.parquet" of storage "local" is missing'


@pytest.mark.parametrize(
    ("number", "sqlstate"), [(errno.ENOSPC, "53100"), (errno.EDQUOT, "53100"), (errno.EIO, "58030")]
)
def test_a_failed_fsync_leaves_no_file_under_the_name(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, number: int, sqlstate: str
) -> None:
    source = storage.scratch()
    source.write_bytes(b"x")

    def fail(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(KalamError) as caught:
            storage.put("seg/1/a", source)
    assert caught.value.sqlstate == sqlstate
    assert caught.value.message == (
        f'could not write segment file "seg/1/a" of storage "local": {os.strerror(number).lower()}'
    )
    assert storage.names("") == []
    storage.put("seg/1/a", source)  # the caller may try again
    assert storage.names("") == ["seg/1/a"]


@pytest.fixture
def ordinary_user() -> Iterator[Path]:
    """A directory, and a process that is not root: root may write into every directory."""
    directory = Path(tempfile.mkdtemp(dir="/tmp", prefix="kalam-"))
    directory.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.chown(directory, 65534, -1)
        os.seteuid(65534)
    try:
        yield directory
    finally:
        if root:
            os.seteuid(0)
        for path in (directory, *directory.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(directory)


def test_a_directory_that_became_read_only(ordinary_user: Path) -> None:
    storage = LocalStorage("local", ordinary_user / "segments")
    put(storage, "seg/1", b"x")
    source = storage.scratch()
    source.write_bytes(b"y")
    (ordinary_user / "segments/seg").chmod(0o555)
    calls: list[Callable[[], object]] = [
        lambda: storage.put("seg/2", source), lambda: storage.delete("seg/1"),
    ]
    for call in calls:
        with pytest.raises(KalamError, match=r'segment file "seg/\d" of storage "local": permission denied') as caught:
            call()
        assert caught.value.sqlstate == "58030"
    assert storage.names("") == ["seg/1"]
    (ordinary_user / "segments/seg").chmod(0)
    calls = [lambda: storage.fetch("seg/1"), lambda: storage.names("seg/")]
    for call in calls:
        with pytest.raises(KalamError, match=r'of storage "local": permission denied') as caught:
            call()
        assert caught.value.sqlstate == "58030"


def test_a_data_directory_that_is_read_only(ordinary_user: Path) -> None:
    ordinary_user.chmod(0o555)
    with pytest.raises(KalamError, match=r'could not use the directory /.* of storage "local": permission denied'):
        open_storages(ordinary_user)


_PUT_FOREVER = """
import sys
from pathlib import Path
from kalamdb.store.storage import LocalStorage
storage = LocalStorage("local", Path(sys.argv[1]))
for number in range(10**9):
    source = storage.scratch()
    source.write_bytes(b"whole" * 4_000_000)
    storage.put(f"seg/{number}", source)
    print(number, flush=True)
"""


def test_kill_during_put_leaves_whole_files_only(tmp_path: Path) -> None:
    directory = tmp_path / "segments"
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", _PUT_FOREVER, str(directory)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            last = int(process.stdout.readline())
            seen = set(os.listdir(directory / "seg"))
            # At the very moment when a name appears the file must be whole.
            deadline = time.monotonic() + 20
            while set(os.listdir(directory / "seg")) == seen:
                assert time.monotonic() < deadline
            process.send_signal(signal.SIGKILL)
            process.wait()
        storage = LocalStorage("local", directory)
        names = storage.names("")
        assert f"seg/{last}" in names
        assert all(storage.fetch(name).stat().st_size == 20_000_000 for name in names)
        assert list((directory / ".unfinished").iterdir()) == []
        for name in names:
            storage.delete(name)
