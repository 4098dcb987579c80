"""Lockout after repeated failures. Time is given by the caller, in seconds of any clock that does not go back."""

from __future__ import annotations

from collections import OrderedDict

_REMEMBERED = 10_000


class Lockout:
    """Counts failures in a row by name; ``limit`` of them lock the name for ``seconds``."""

    def __init__(self, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()  # count, time of the last

    def remaining(self, name: str, now: float) -> float:
        """Seconds the name stays locked; 0 if it is not."""
        count, last = self._failures.get(name, (0, 0.0))
        if count < self._limit:
            return 0.0
        left = last + self._seconds - now
        if left <= 0:
            del self._failures[name]
        return max(0.0, left)

    def failed(self, name: str, now: float) -> None:
        count, last = self._failures.pop(name, (0, now))
        if now - last > self._seconds:
            count = 0
        self._failures[name] = (count + 1, now)
        if len(self._failures) > _REMEMBERED:  # names come from clients: forget the oldest
            self._failures.popitem(last=False)

    def succeeded(self, name: str) -> None:
        self._failures.pop(name, None)
