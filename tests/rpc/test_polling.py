"""Busy polling: whose statements are waited for awake, and when it is left off. Time is the test's own."""

from __future__ import annotations

import asyncio

import pytest

from kalamdb.rpc import polling
from kalamdb.rpc.polling import ALONE, LONGEST_REST, BusyPoll


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(polling, "time", clock)
    monkeypatch.setattr(polling, "processors", lambda: 2)
    return clock


async def turns(poll: BusyPoll, most: int = 5) -> bool:
    """Does it look for more in the next turns of the loop?"""
    for _ in range(most):
        await asyncio.sleep(0)
    return poll.polling


def test_who_alone_sends_is_waited_for(clock: Clock) -> None:
    async def test() -> None:
        poll, one, other = BusyPoll(300), object(), object()
        poll.answered(one)
        assert not await turns(poll)  # it may not be alone
        clock.now += 2 * ALONE
        poll.answered(one)
        assert await turns(poll)
        clock.now += 0.0002
        poll.answered(one)
        clock.now += 0.0002
        assert await turns(poll)  # it goes on after each answer
        poll.answered(other)
        assert not await turns(poll)
        poll.answered(one)
        assert not await turns(poll)

    asyncio.run(test())


def test_it_ends_and_is_left_off_where_it_is_in_vain(clock: Clock) -> None:
    async def test() -> None:
        poll, one = BusyPoll(300), object()
        poll.answered(one)
        clock.now += 2 * ALONE
        rests = []
        for _ in range(12):
            rest = 0
            poll.answered(one)
            while not await turns(poll):
                poll.answered(one)
                rest += 1
            rests.append(rest)
            clock.now += 0.001  # the client thinks
            assert not await turns(poll)
        assert rests == [0, 0, 1, 3, 7, 15, 31, 63, 127, LONGEST_REST, LONGEST_REST, LONGEST_REST]
        while not await turns(poll):
            poll.answered(one)
        clock.now += 0.0001
        poll.answered(one)  # in time: from the start
        clock.now += 0.001
        assert not await turns(poll)
        poll.answered(one)
        assert await turns(poll)

    asyncio.run(test())


@pytest.mark.parametrize(("limit", "processors"), [(0, 2), (300, 1)])
def test_it_is_off(clock: Clock, monkeypatch: pytest.MonkeyPatch, limit: int, processors: int) -> None:
    async def test() -> None:
        monkeypatch.setattr(polling, "processors", lambda: processors)
        poll, one = BusyPoll(limit), object()
        for _ in range(3):
            poll.answered(one)
            clock.now += 2 * ALONE
            assert not await turns(poll)

    asyncio.run(test())
