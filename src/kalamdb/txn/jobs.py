"""Background work that users can see and stop: flushes, compactions and their like, as ``system.jobs`` shows them."""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from kalamdb.errors import KalamError
from kalamdb.txn.api import TableDef
from kalamdb.txn.clock import now_ms

#: microseconds from 1970 to 2000, where PostgreSQL's timestamps begin
_EPOCH_MICROS = 946_684_800_000_000
#: ended jobs that are remembered
KEPT = 1000


def to_micros(milliseconds: int) -> int:
    """A Unix time as a timestamptz's storage value."""
    return milliseconds * 1000 - _EPOCH_MICROS


@dataclass(slots=True)
class Job:
    """``progress``: 0 to 1. Times are storage values of timestamptz. The worker calls ``check`` often.

    Once ``published``, what it made is there to stay, and a cancelled task changes nothing about that.
    """

    id: int
    kind: str
    namespace: str
    table: str
    status: str = "running"  # done, failed, cancelled
    progress: float = 0.0
    rows: int = 0
    detail: str = ""
    started_at: int = field(default_factory=lambda: to_micros(now_ms()))
    ended_at: int | None = None
    cancelled: bool = False
    published: bool = False

    def check(self) -> None:
        """57014 once somebody has cancelled the job."""
        if self.cancelled:
            raise KalamError("57014", f"{self.kind} was cancelled")


class Jobs:
    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._jobs: OrderedDict[int, Job] = OrderedDict()

    @contextmanager
    def running(self, kind: str, table: TableDef) -> Iterator[Job]:
        job = Job(next(self._numbers), kind, table.namespace, table.name)
        self._jobs[job.id] = job
        try:
            yield job
        except KalamError as error:
            self._end(job, "cancelled" if job.cancelled and error.sqlstate == "57014" else "failed", str(error))
            raise
        except asyncio.CancelledError:
            if job.published:
                job.progress = 1.0
            self._end(job, "done" if job.published else "cancelled", job.detail)
            raise
        except BaseException as error:
            self._end(job, "failed", repr(error))
            raise
        job.progress = 1.0
        self._end(job, "done", job.detail)

    def _end(self, job: Job, status: str, detail: str) -> None:
        job.status, job.detail, job.ended_at = status, detail, to_micros(now_ms())
        if len(self._jobs) > KEPT:
            del self._jobs[next(number for number, each in self._jobs.items() if each.ended_at is not None)]

    def all(self) -> list[Job]:
        return list(self._jobs.values())

    def cancel(self, number: int) -> Job:
        """Ask a running job to end. 42704 if there is none of that number, 55000 if it has ended."""
        job = self._jobs.get(number)
        if job is None:
            raise KalamError("42704", f"job {number} does not exist", hint="SELECT * FROM system.jobs lists them.")
        if job.ended_at is not None:
            raise KalamError("55000", f"job {number} has ended: {job.status}")
        job.cancelled = True
        return job
