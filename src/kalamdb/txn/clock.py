"""The hybrid clock that numbers commits: wall-clock milliseconds above, a counter below, never going back.

``_seq = (milliseconds since 2020-01-01 UTC) << 22 | counter``. When the wall clock stands still or goes back, the
counter runs on from the last number (hybrid logical clocks: Kulkarni et al., 2014).
"""

from __future__ import annotations

import time

EPOCH_MS = 1_577_836_800_000  # 2020-01-01T00:00:00Z
COUNTER_BITS = 22


def seq_at(milliseconds: int) -> int:
    """The first number of a Unix time in milliseconds."""
    return max(0, milliseconds - EPOCH_MS) << COUNTER_BITS


def time_of(number: int) -> int:
    """The Unix time in milliseconds of a commit's number."""
    return (number >> COUNTER_BITS) + EPOCH_MS


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Clock:
    """``last`` is the highest number ever given, as read from the data directory."""

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def next(self) -> int:
        """A number above all before. Called by one thread."""
        self.last = max(self.last + 1, seq_at(now_ms()))
        return self.last
