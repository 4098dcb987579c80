"""A process killed while it moves rows between tiers: every acknowledged commit is there, whole, and nothing else.

``KALAM_CRASH_ROUNDS`` makes the test of random moments longer.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from engine.mover import SESSIONS, State, state
from engine.rig import Runner, stored
from kalamdb.admin.check import Check
from kalamdb.admin.files import LocalFiles
from kalamdb.txn.engine import StoreEngine

SCRIPT = Path(__file__).with_name("mover.py")
ROUNDS = int(os.environ.get("KALAM_CRASH_ROUNDS", "12"))
POINTS = [
    "segment.written", "segment.put", "flush.publish", "flush.published", "flush.cleaned", "compaction.publish",
    "compaction.published", "segment.removed", "bulk.put", "bulk.publish", "commit.applied", "commit.durable",
]


def move_until(directory: Path, lines: int, fault: str = "") -> tuple[dict[int, int], bool]:
    """Run the process until it kills itself, or has acknowledged that many commits; the last of each session."""
    environment = {**os.environ, "KALAM_FAULT": fault}
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(directory)], stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    with process, process.stdout as output:
        said = [line for _ in range(lines) if (line := output.readline())]
        process.kill()
        said += output.readlines()
    last: dict[int, int] = {}
    for session, commit in (line.split() for line in said if line.endswith(b"\n")):
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
                assert engine.outcome(f"{session}.{done}") == "committed"
            assert engine.outcome(f"{session}.{done + 1}") == "aborted"
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


@pytest.mark.slow
def test_killed_at_every_point(run: Runner) -> None:
    told: dict[int, int] = {}
    move_until(run.directory, 30)
    told.update(dict.fromkeys(range(SESSIONS), 0))
    _catch_up(run, told)
    for turn, point in enumerate(POINTS * 2):
        last, died = move_until(run.directory, 400, f"{point}:kill:{1 + turn % 5}")
        assert died, f"{point} was not reached"
        told.update(last)
        verify(run, told)


def _catch_up(run: Runner, told: dict[int, int]) -> None:
    async def look(engine: StoreEngine) -> None:
        found = rows_of(engine)
        told.update({session: found[session].get((0, 0), 0) for session in range(SESSIONS)})

    run(look)


@pytest.mark.slow
@pytest.mark.timeout(120 + 10 * ROUNDS)
def test_killed_at_any_moment(run: Runner) -> None:
    told: dict[int, int] = {}
    generator = random.Random(5)
    for _ in range(ROUNDS):
        last, died = move_until(run.directory, generator.randrange(1, 150))
        assert not died, "it ended by itself"
        told.update(last)
        verify(run, told)
