"""Coroutines that mostly do not wait: begun at once, and a task's work only if they have to wait.

A task costs the event loop a turn before it begins and another one after its end. The first step runs outside any
task, so nothing up to the first wait may ask for the current one (as ``asyncio.timeout`` does). A task made of the rest
may be cancelled once it has taken its first step: before that, the cancellation would not reach what has begun.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def begin(work: Coroutine[Any, Any, T]) -> T | Awaitable[T]:
    """What the coroutine gives, or raises, if it comes to its end without waiting; else the rest of it."""
    try:
        waits_for = work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    return _Rest(work, waits_for)


class _Rest(Generic[T]):
    def __init__(self, work: Coroutine[Any, Any, T], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        work, waits_for = self._work, self._waits_for
        try:
            while True:
                try:
                    given = yield waits_for
                except GeneratorExit:
                    work.close()
                    raise
                except BaseException as error:
                    waits_for = work.throw(error)
                else:
                    waits_for = work.send(given)
        except StopIteration as end:
            result: T = end.value
            return result
