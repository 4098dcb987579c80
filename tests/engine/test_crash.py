"""A process killed while it commits: all that it acknowledged is there afterwards, and nothing by halves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import apsw
import pytest

from engine.committer import SESSIONS, WIDTH
from engine.rig import Runner, create, definition, put, stored
from kalamdb.txn.engine import StoreEngine

SCRIPT = Path(__file__).with_name("committer.py")
KILLS = 4


def commit_until(directory: Path, lines: int) -> list[tuple[int, int]]:
    """Start the process, kill it after that many acknowledged commits; all that it acknowledged."""
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(directory)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process, process.stdout as output:
        said = [output.readline() for _ in range(lines)]
        process.kill()
        said += output.readlines()
    assert all(said), "it ended by itself"
    return [(int(session), int(commit)) for session, commit in (line.split() for line in said if line.endswith(b"\n"))]


@pytest.mark.slow
def test_kill_9(run: Runner) -> None:
    told: set[tuple[int, int]] = set()
    highest = [0]

    async def check(engine: StoreEngine) -> None:
        table = engine.catalog.by_name["n", "log"]
        places: dict[tuple[int, int], set[int]] = defaultdict(set)
        numbers: dict[tuple[int, int], set[int]] = defaultdict(set)
        for session, commit, place, seq in stored(engine, table, columns=(0, 1, 2, -1)):
            places[session, commit].add(place)
            numbers[session, commit].add(seq)
        await check_whole(engine, places, told)
        check_numbers(numbers)
        highest.append(max(max(found) for found in numbers.values()))
        assert highest[-1] > highest[-2]

    for kill in range(KILLS):
        told |= set(commit_until(run.directory, 50 + 37 * kill))
        run(check)
        assert integrity(run.directory) == "ok"


def check_numbers(numbers: dict[tuple[int, int], set[int]]) -> None:
    """One for each commit, rising within a session."""
    assert all(len(found) == 1 for found in numbers.values())
    for session in range(SESSIONS):
        order = [min(numbers[key]) for key in sorted(numbers) if key[0] == session]
        assert order == sorted(set(order))


async def check_whole(engine: StoreEngine, places: dict[tuple[int, int], set[int]], told: set[tuple[int, int]]
                      ) -> None:
    """Every commit up to a session's last is there with all its rows, or was deleted by the one after it."""
    for session in range(SESSIONS):
        last = max(commit for owner, commit in places if owner == session)
        assert max(commit for owner, commit in told if owner == session) <= last
        for commit in range(1, last + 1):
            deleted = commit % 10 == 9 and commit < last
            assert len(places.get((session, commit), ())) == (0 if deleted else WIDTH), (session, commit)
            assert await engine.outcome(f"{session}.{commit}") == "committed"
        assert await engine.outcome(f"{session}.{last + 1}") == "aborted"


def integrity(directory: Path) -> str:
    connection = apsw.Connection(str(directory / "hot.db"))
    try:
        found = connection.execute("PRAGMA integrity_check").fetchall()
    finally:
        connection.close()
    return str(found[0][0])


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.7, 0.99])
def test_a_log_that_was_cut(run: Runner, tmp_path: Path, part: float) -> None:
    """As after a crash of the machine that lost the end of the write-ahead log: what is there is a beginning, whole."""
    copy = tmp_path / "copy"

    async def write(engine: StoreEngine) -> None:
        table = await create(engine, definition())
        for number in range(50):
            await put(engine, table, (2 * number, "a"), (2 * number + 1, "b"))
        shutil.copytree(run.directory, copy, ignore=shutil.ignore_patterns("copy"))

    run(write)
    log = copy / "hot.db-wal"
    (copy / "hot.db-shm").unlink(missing_ok=True)
    written = len(log.read_bytes().rstrip(b"\0"))
    os.truncate(log, int(written * part))

    async def look(engine: StoreEngine) -> None:
        table = engine.catalog.by_name.get(("n", "t"))
        if table is None:
            assert part < 0.1
            return
        rows = stored(engine, table)
        assert rows == [(number, "ab"[number % 2]) for number in range(len(rows))]
        assert len(rows) % 2 == 0
        await put(engine, table, (1000, "goes on"))

    Runner(copy)(look)
    assert integrity(copy) == "ok"
