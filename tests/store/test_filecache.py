"""The cache of files by itself, with time and downloads in the test's hands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kalamdb.store.filecache import HELD, FileCache
from support.ports import wait_until


class Source:
    """Gives each name a file of 100 bytes, and counts."""

    def __init__(self) -> None:
        self.now = 0.0
        self.loads: list[str] = []
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None
        self.room: list[int] = []

    def load(self, name: str, target: Path, make_room: Callable[[int], None]) -> None:
        self.loads.append(name)
        assert self.open.wait(20)
        make_room(100)
        target.write_bytes(name.encode() * (100 // len(name)))
        if self.error is not None:
            raise self.error


@pytest.fixture
def source() -> Source:
    return Source()


def cache(source: Source, directory: Path, budget: int = 300) -> FileCache:
    return FileCache(directory, budget, source.load, clock=lambda: source.now)


def names(directory: Path) -> set[str]:
    return {path.read_bytes()[:1].decode() for path in directory.iterdir()}


def test_the_file_used_longest_ago_goes_first(source: Source, tmp_path: Path) -> None:
    files = cache(source, tmp_path)
    for name in "abcad":
        files.get(name)
        source.now += HELD
    assert names(tmp_path) == {"a", "c", "d"}
    assert source.loads == list("abcd")
    assert files.bytes == 300


def test_room_is_made_before_a_download_is_written(source: Source, tmp_path: Path) -> None:
    files = cache(source, tmp_path)
    for name in "abc":
        files.get(name)
    source.now += HELD
    source.error = OSError("the disk is full")
    with pytest.raises(OSError, match="full"):
        files.get("d")
    assert names(tmp_path) == {"b", "c"}


def test_a_path_that_was_just_given_out_stays(source: Source, tmp_path: Path) -> None:
    files = cache(source, tmp_path, budget=100)
    first = files.get("a")
    source.now += HELD / 2
    files.get("b")
    assert first.exists()
    source.now += HELD / 2
    files.get("c")
    assert not first.exists()
    assert names(tmp_path) == {"b", "c"}


def test_an_open_file_survives_its_eviction(source: Source, tmp_path: Path) -> None:
    files = cache(source, tmp_path, budget=100)
    with files.get("a").open("rb") as file:
        source.now += HELD
        files.get("b")
        assert names(tmp_path) == {"b"}
        assert file.read() == b"a" * 100


def asked_by_four(files: FileCache, source: Source) -> list[Path | BaseException]:
    """What four threads get that ask while the download waits."""
    source.open.clear()
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(files.get, "a") for _ in range(4)]
        wait_until(lambda: all(future.running() for future in futures), "all threads' asking")
        wait_until(lambda: source.loads, "the download")
        source.open.set()
        return [future.exception() or future.result() for future in futures]


def test_those_who_wait_for_a_download_share_it(source: Source, tmp_path: Path) -> None:
    assert len(set(asked_by_four(cache(source, tmp_path), source))) == 1
    assert source.loads == ["a"]


def test_those_who_wait_for_a_download_get_its_error(source: Source, tmp_path: Path) -> None:
    source.error = ValueError("broken")
    files = cache(source, tmp_path)
    assert asked_by_four(files, source) == [source.error] * 4
    assert list(tmp_path.iterdir()) == []
    source.error = None
    assert files.get("a").exists()


def test_other_files_are_given_while_one_is_downloaded(source: Source, tmp_path: Path) -> None:
    files = cache(source, tmp_path)
    files.get("a")
    source.open.clear()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(files.get, "b")
        wait_until(lambda: source.loads == ["a", "b"], "the download")
        assert files.get("a").exists()
        source.open.set()
        assert slow.result().exists()


def test_what_is_added_replaces_what_was_there(source: Source, tmp_path: Path) -> None:
    files = cache(source, tmp_path)
    old = files.get("a")
    new = files.new()
    new.write_bytes(b"z" * 40)
    files.add("a", new)
    assert files.get("a") == new
    assert not old.exists()
    assert files.bytes == 40
    files.discard("a")
    files.discard("a")
    assert (files.bytes, list(tmp_path.iterdir())) == (0, [])
