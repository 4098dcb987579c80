"""A process killed while it moves rows between tiers: every acknowledged commit is there, whole, and nothing else.

``KALAM_CRASH_ROUNDS`` makes the test of random moments longer.
"""

from __future__ import annotations

import os
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import test_files
from engine.mover import SESSIONS, State, state
from engine.rig import Runner, stored
from kalamdb import faults
from kalamdb.admin.check import Check
from kalamdb.admin.files import LocalFiles
from kalamdb.txn.engine import StoreEngine
from support.nursery import Nursery

MEMORY = Path("/dev/shm")
SOURCE = Path(faults.__file__).parent
#: rounds on the same data; with every one there is more to look at
SERIES = 10
ROUNDS = int(os.environ.get("KALAM_CRASH_ROUNDS", "30"))
POINTS = [
    "segment.written", "segment.put", "flush.publish", "flush.published", "flush.cleaned", "compaction.publish",
    "compaction.published", "segment.removed", "bulk.put", "bulk.publish", "commit.applied", "commit.durable",
]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    found = Nursery("engine.mover", "kalamdb.admin.check")
    yield found
    found.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Runner]:
    """In memory, if there is such a place: a killed process needs no disk, and a hundred rounds wait for none."""
    with tempfile.TemporaryDirectory(prefix="kalam-", dir=MEMORY if os.access(MEMORY, os.W_OK) else tmp_path) as place:
        yield Runner(Path(place))


@pytest.fixture(autouse=True)
def small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kalamdb.store.hot.LOG_PAGES", 200)  # it is opened very often


def move_until(nursery: Nursery, directory: Path, lines: int, fault: str = "") -> tuple[dict[int, int], bool]:
    """Run the process until it kills itself, or has acknowledged that many commits; the last of each session."""
    nursery.said()
    process = nursery.spawn("engine.mover:run", str(directory), fault)
    said = process.lines(lines)
    process.kill()
    assert process.wait() == -9
    said += nursery.said()
    last: dict[int, int] = {}
    for session, commit in (line.split() for line in said):
        last[int(session)] = int(commit)
    return last, len(said) < lines


def problems(directory: Path) -> list[str]:
    checking = Check(directory, {"local": LocalFiles(directory / "segments")})
    try:
        return list(checking.problems())
    finally:
        checking.close()


def rows_of(engine: StoreEngine) -> dict[int, State]:
    found: dict[int, State] = defaultdict(dict)
    for session, commit, place, value in stored(engine, engine.catalog.by_name["n", "log"]):
        assert (commit, place) not in found[session]
        found[session][commit, place] = value
    return found


def verify(run: Runner, told: dict[int, int]) -> None:
    """``told``: commits acknowledged so far, by session; brought to what is there."""
    assert problems(run.directory) == []

    async def look(engine: StoreEngine) -> None:
        found = rows_of(engine)
        for session in range(SESSIONS):
            done = found[session].get((0, 0), 0)
            assert told.get(session, 0) <= done <= told.get(session, 0) + 1
            assert found[session] == state(done)
            if done:
                assert await engine.outcome(f"{session}.{done}") == "committed"
            assert await engine.outcome(f"{session}.{done + 1}") == "aborted"
            told[session] = done
        await engine.tiers.wait_swept()
        await engine.flush(engine.catalog.by_name["n", "log"])  # and what was left to clean is cleaned
        await engine.tiers.sweep()
        assert rows_of(engine) == found
        files = {str(path.relative_to(run.directory / "segments"))
                 for path in (run.directory / "segments").rglob("*") if path.is_file()}
        assert files == {segment.file for segment in engine.segments()}

    run(look)
    assert problems(run.directory) == []


def test_the_points_are_all_that_there_are() -> None:
    reached = {name for path in SOURCE.rglob("*.py")
               for name in re.findall(r'faults\.reach\("([\w.]+)"\)', path.read_text(encoding="utf-8"))}
    assert reached == {*POINTS, *test_files.POINTS}


@pytest.mark.slow
def test_killed_at_every_point(run: Runner, nursery: Nursery) -> None:
    told: dict[int, int] = {}
    move_until(nursery, run.directory, 30)
    told.update(dict.fromkeys(range(SESSIONS), 0))
    _catch_up(run, told)
    for turn, point in enumerate(POINTS * 2):
        last, died = move_until(nursery, run.directory, 400, f"{point}:kill:{1 + turn % 5}")
        assert died, f"{point} was not reached"
        told.update(last)
        verify(run, told)


def _catch_up(run: Runner, told: dict[int, int]) -> None:
    async def look(engine: StoreEngine) -> None:
        found = rows_of(engine)
        told.update({session: found[session].get((0, 0), 0) for session in range(SESSIONS)})

    run(look)


@pytest.mark.slow
@pytest.mark.parametrize("series", range((ROUNDS + SERIES - 1) // SERIES))
def test_killed_at_any_moment(run: Runner, nursery: Nursery, series: int) -> None:
    """Again and again on the same data, for which the next process has to go on."""
    told: dict[int, int] = {}
    generator = random.Random(series)
    for _ in range(SERIES):
        last, died = move_until(nursery, run.directory, generator.randrange(1, 120))
        assert not died, "it ended by itself"
        told.update(last)
        verify(run, told)
