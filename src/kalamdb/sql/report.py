"""What a statement's scans did, for PostgreSQL's EXPLAIN (ANALYZE).

A context with ``stats`` names a report of the session; all statements that name it add to it, and SHOW SCAN STATS gives
it and forgets it. Nothing is measured for other statements.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, field
from time import perf_counter_ns

from kalamdb.api import Result
from kalamdb.txn.api import ScanStats

#: a session's reports; those nobody asked for go first
MOST = 1000
KEY, STORE, QUERY = "key lookup", "store", "query engine"


@dataclass(slots=True)
class Report:
    path: str = ""
    nanos: int = 0  # spent on answering
    scans: ScanStats = field(default_factory=ScanStats)

    def rows(self) -> list[tuple[str, str]]:
        found = self.scans
        numbers = {
            "time_us": self.nanos // 1000, "hot_rows": found.hot_rows, "cold_rows": found.cold_rows,
            "segments": found.segments, "segments_pruned": found.segments_pruned, "groups": found.groups,
            "groups_pruned": found.groups_pruned,
        }
        return [("path", self.path), *((name, str(number)) for name, number in numbers.items())]


class Reports:
    """A session's, by number."""

    def __init__(self) -> None:
        self._kept: dict[int, Report] = {}

    def of(self, number: int) -> Report:
        found = self._kept.get(number)
        if found is None:
            if len(self._kept) >= MOST:
                del self._kept[next(iter(self._kept))]
            found = self._kept[number] = Report()
        return found

    def take(self, number: int) -> Report | None:
        return self._kept.pop(number, None)


def measured(report: Report, started: int, outcome: Result | Awaitable[Result]) -> Result | Awaitable[Result]:
    if isinstance(outcome, Result):
        report.nanos += perf_counter_ns() - started
        return outcome
    return _measured(report, started, outcome)


async def _measured(report: Report, started: int, outcome: Awaitable[Result]) -> Result:
    result = await outcome
    report.nanos += perf_counter_ns() - started
    return result
