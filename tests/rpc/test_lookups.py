"""Flights that look a row up and come again: which of them take the short way, and that it gives the usual answer."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from link import Wire, scenario

import frames
from kalamdb.api import CONTEXT_OID
from kalamdb.errors import KalamError
from kalamdb.rpc import lookups

TYPES = [25, CONTEXT_OID]
WORDS = {("ann", b"1"): "one", ("ann", b"2"): "two", ("bob", b"1"): "of bob", (None, b"1"): "nobody's"}


def pick(key: bytes | None, context: bytes = b'{"user":"ann"}', *, sql: str = "PICK", result_format: int = 0) -> bytes:
    return frames.flight(sql, [key, context], TYPES, result_format)


def ready(w: Wire) -> Wire:
    w.executor.words.update(WORDS)
    return w


def status(answer: bytes) -> str:
    return answer[-1:].decode()


async def ask(w: Wire, data: bytes) -> tuple[bytes, bool]:
    """The answer, and whether the way was short."""
    before = len(w.executor.ran), w.executor.looked
    answer = await w.ask(data)
    after = len(w.executor.ran), w.executor.looked
    assert sum(after) == sum(before) + 1, "it was executed once"
    return answer, after[1] > before[1]


@scenario
async def test_the_second_of_its_kind_takes_the_short_way(w: Wire) -> None:
    ready(w)
    first, short = await ask(w, pick(b"1"))
    assert (frames.kinds(first), frames.rows(first), short) == ("12TDCZ", [[b"one"]], False)
    assert await ask(w, pick(b"1")) == (first, True)
    assert len(w.writes) == 0
    other, short = await ask(w, pick(b"2"))
    assert (frames.rows(other), frames.tags(other), short) == ([[b"two"]], ["SELECT 1"], True)
    none, short = await ask(w, pick(b"no such key"))
    assert (frames.kinds(none), frames.tags(none), short) == ("12TCZ", ["SELECT 0"], True)


@scenario
async def test_what_is_not_the_same_is_not_known(w: Wire) -> None:
    ready(w)
    await w.ask(pick(b"1"))
    for data, row in (
        (pick(b"1", b'{"user":"bob"}'), b"of bob"), (pick(b"1", b'{"user":"ann" }'), b"one"),
        (pick(b"1", b"{}"), b"nobody's"), (pick(b"1", sql="PICK "), b"one"), (pick(b"1", result_format=1), b"one"),
    ):
        answer, short = await ask(w, data)
        assert (frames.rows(answer), short) == ([[row]], False)
        assert await ask(w, data) == (answer, True)
    assert (await ask(w, pick(b"1")))[1]


@scenario
async def test_null_is_no_key(w: Wire) -> None:
    ready(w)
    for _ in range(2):
        answer, short = await ask(w, pick(None))
        assert (frames.tags(answer), short) == (["SELECT 0"], False)
    await w.ask(pick(b"1"))
    assert not (await ask(w, pick(None)))[1]


@scenario
async def test_without_a_context_nothing_is_kept(w: Wire) -> None:
    ready(w)
    for _ in range(3):
        assert not (await ask(w, frames.flight("PICK $1", [b"1"], [25])))[1]


@scenario
async def test_what_it_rests_upon_changes(w: Wire) -> None:
    ready(w)
    await w.ask(pick(b"1"))
    w.executor.stands = False
    answer, short = await ask(w, pick(b"1"))
    assert (frames.rows(answer), short) == ([[b"one"]], False)
    w.executor.stands = True
    assert await ask(w, pick(b"1")) == (answer, True)


@scenario
async def test_errors_are_those_of_the_usual_way(w: Wire) -> None:
    ready(w)
    data = await w.ask(pick(b"bad"))
    await w.ask(pick(b"1"))
    assert await w.ask(pick(b"bad")) == data
    assert [error["C"] for error in frames.errors(data)] == ["22P02"]
    assert frames.kinds(data) == "12EZ"
    assert (await ask(w, pick(b"1")))[1]


@scenario
async def test_a_fault_is_told_as_in_the_usual_way(w: Wire) -> None:
    ready(w)
    await w.ask(pick(b"1"))
    data = await w.ask(pick(b"crash"))
    assert ([error["C"] for error in frames.errors(data)], frames.kinds(data)) == (["XX000"], "12EZ")
    assert (await ask(w, pick(b"1")))[1]


@scenario
async def test_a_transaction_is_not_left_out(w: Wire) -> None:
    ready(w)
    await w.ask(pick(b"1"))
    await w.ask(frames.query("BEGIN"))
    answer, short = await ask(w, pick(b"1"))
    assert (status(answer), short) == ("T", False)
    await w.ask(frames.query("FAIL"))
    data = await w.ask(pick(b"1"))
    assert ([error["C"] for error in frames.errors(data)], status(data)) == (["25P02"], "E")
    await w.ask(frames.query("ROLLBACK"))
    answer, short = await ask(w, pick(b"1"))
    assert (status(answer), short) == ("I", True)


@scenario
async def test_the_unnamed_statement_is_the_one_that_came_last(w: Wire) -> None:
    ready(w)
    await w.ask(pick(b"1"))
    await w.ask(frames.flight("NUMBER 5"))
    assert (await ask(w, pick(b"1")))[1]
    data = await w.ask(frames.bind([b"2", b'{"user":"ann"}']), frames.execute(), frames.SYNC)
    assert frames.rows(data) == [[b"two"]]
    assert not w.session._portals


@scenario
async def test_after_an_error_until_sync_everything_is_skipped(w: Wire) -> None:
    ready(w)
    await w.ask(pick(b"1"))
    ran = len(w.executor.ran)
    data = await w.ask(frames.parse("FAIL"), frames.bind(), frames.execute(), pick(b"1"))
    assert frames.kinds(data) == "12EZ"
    assert "PICK" not in w.executor.ran[ran:]
    w.send(frames.message("P", b"no end"))
    data = await w.ask(pick(b"1"))
    assert (frames.kinds(data), w.executor.looked) == ("EZ", 0)


@scenario
async def test_it_waits_for_what_runs_before_it(w: Wire) -> None:
    ready(w)
    await w.ask(pick(b"1"))
    w.send(frames.flight("HOLD"))
    w.send(pick(b"2"))
    assert (w.taken(), w.executor.looked) == (b"", 0)
    w.executor.release.set()
    await w.until(lambda: b"".join(w.writes).count(b"Z\0\0\0\5") == 2)
    assert frames.rows(w.taken()) == [[b"two"]]


@scenario
async def test_nothing_is_written_to_who_does_not_read(w: Wire) -> None:
    ready(w)
    await w.ask(pick(b"1"))
    w.blocked = True
    w.send(pick(b"2"))
    assert (w.taken(), w.executor.looked) == (b"", 0)
    w.blocked = False
    w.session.advance()
    assert frames.rows(w.taken()) == [[b"two"]]


@scenario
async def test_who_is_to_go_is_not_answered_any_more(w: Wire) -> None:
    ready(w)
    await w.ask(pick(b"1"))
    w.session.end_now(KalamError("57P01", "terminating", severity="FATAL"))
    w.taken()
    w.send(pick(b"1"))
    assert (w.taken(), w.executor.looked) == (b"", 0)


@scenario
async def test_nothing_is_kept_of_who_is_gone(w: Wire) -> None:
    """Sessions and their connections know each other: what they hold may stay for long if nobody lets it go."""
    ready(w)
    lookup, kept = w.executor.lookup, []

    def noted(*arguments: Any) -> Any:
        found = lookup(*arguments)
        assert found is not None
        kept.append(weakref.ref(found))
        return found

    w.executor.lookup = noted  # type: ignore[method-assign,assignment]
    await w.ask(pick(b"1"))
    assert (await ask(w, pick(b"1")))[1]
    assert [each() is None for each in kept] == [False]
    w.session.lost()
    assert [each() is None for each in kept] == [True]


@scenario
async def test_so_many_are_kept_and_no_more(w: Wire) -> None:
    ready(w)
    for n in range(lookups.KEPT + 10):
        await w.ask(pick(b"1", b'{"user":"u%d"}' % n))
    assert (await ask(w, pick(b"1", b'{"user":"u0"}')))[1]
    assert not (await ask(w, pick(b"1", b'{"user":"u%d"}' % (lookups.KEPT + 1))))[1]
    for n in range(lookups._STRANGERS):
        await w.ask(pick(b"1", b'{"user":"v%d"}' % n))
    assert not (await ask(w, pick(b"1", b'{"user":"u0"}')))[1], "it made room"
    assert (await ask(w, pick(b"1", b'{"user":"v%d"}' % (lookups._STRANGERS - 1))))[1]


@scenario
async def test_what_is_learned_anew_counts_once(w: Wire) -> None:
    """A table may be altered, and a client change its formats, more often than flights are kept."""
    ready(w)
    typed = [frames.parse("PICK", types=TYPES) + frames.bind([b"1", b"{}"], formats=formats) + frames.describe()
             + frames.execute() + frames.SYNC for formats in ((), (0, 0))]
    for n in range(lookups.KEPT + 10):
        w.executor.stands = False
        await w.ask(pick(b"1"))
        await w.ask(typed[n % 2])
    w.executor.stands = True
    assert (await ask(w, pick(b"1", b'{"user":"bob"}')))[1] is False
    assert (await ask(w, pick(b"1", b'{"user":"bob"}')))[1] is True


@scenario
async def test_what_is_long_is_not_kept(w: Wire) -> None:
    ready(w)
    sql = "PICK " + "x" * lookups.LONGEST
    for _ in range(3):
        assert not (await ask(w, pick(b"1", sql=sql)))[1]
    await w.ask(pick(b"1"))
    assert not (await ask(w, pick(b"1" * lookups.LONGEST)))[1]


KNOWN = [pick(b"1"), pick(b"1", b"{}"), frames.flight("NUMBER 7"), frames.query("NUMBER 8"), frames.SYNC]


def answers(parts: list[bytes], *, keep: bool) -> tuple[bytes, int]:
    """What a session says that gets these pieces, and how many took the short way."""
    async def run() -> tuple[bytes, int]:
        w = ready(Wire())
        if not keep:
            w.executor.lookup = lambda *_: None  # type: ignore[method-assign]
        for part in parts:
            w.send(part)
            for _ in range(4):
                await asyncio.sleep(0)
        return w.taken(), w.executor.looked

    return asyncio.run(run())


@st.composite
def pieces(draw: Any) -> list[bytes]:
    """Flights one by one, some of them damaged, cut, or glued to the next."""
    found = [b""]
    for flight in draw(st.lists(st.sampled_from(KNOWN), min_size=3, max_size=8)):
        part = bytearray(flight)
        if draw(st.integers(0, 5)) == 0:
            part[draw(st.integers(0, len(part) - 1))] = draw(st.sampled_from([0, 1, 2, 5, 34, 80, 83, 127, 255]))
        how = draw(st.sampled_from(["whole", "whole", "whole", "cut", "glued"]))
        if how == "glued":
            found[-1] += part
        elif how == "cut":
            at = draw(st.integers(0, len(part)))
            found += [bytes(part[:at]), bytes(part[at:])]
        else:
            found.append(bytes(part))
    return [part for part in found if part]


@given(pieces())
def test_whatever_comes_the_answer_is_that_of_the_usual_way(parts: list[bytes]) -> None:
    assert answers(parts, keep=True)[0] == answers(parts, keep=False)[0]


def test_every_byte_counts() -> None:
    """A known flight of which one byte is another, and the same with formats, and then the sound one."""
    typed = frames.parse("PICK", types=TYPES) + frames.bind([b"1", b"{}"], formats=[0, 0], result_formats=[1])
    for flight in (KNOWN[0], typed + frames.describe() + frames.execute() + frames.SYNC):
        for place in range(len(flight)):
            for byte in {flight[place] ^ 1, (flight[place] + 1) % 256, 255}:
                parts = [flight, flight[:place] + bytes([byte]) + flight[place + 1 :], flight]
                assert answers(parts, keep=True)[0] == answers(parts, keep=False)[0], (place, byte)


def test_the_same_of_flights_that_come_one_by_one() -> None:
    parts = [KNOWN[0], KNOWN[0], KNOWN[1], KNOWN[3], KNOWN[1], KNOWN[0]]
    kept, looked = answers(parts, keep=True)
    assert (kept, looked) == (answers(parts, keep=False)[0], 3)
