"""What a read takes at once: chunks by rows and bytes, threads changed once for each, locks no further than LIMIT."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, cast

import pyarrow as pa
import pytest

from kalamdb.api import ClientSession, Row
from kalamdb.sql.cursors import CHUNK_BYTES, BatchChunks, BatchSource, ListSource
from kalamdb.sql.read import FIRST_LOCKED, LOCK_ROWS, SMALL_BYTES, LockSource
from kalamdb.sql.workers import Workers


# ---------- rows that are locked ----------
class Locks:
    """Locks rows of so many bytes each; a row that is odd is none of the answer."""

    def __init__(self, size: Callable[[int], int]) -> None:
        self.size = size
        self.calls: list[int] = []

    async def __call__(self, found: Sequence[Row]) -> tuple[list[Row], int]:
        self.calls.append(len(found))
        return [row for row in found if row[0] % 2 == 0], sum(self.size(row[0]) for row in found)


def source(rows: int, locks: Locks, limit: int | None = None) -> LockSource:
    return LockSource(ListSource([(number,) for number in range(rows)]), limit, locks)


def read(work: Awaitable[Any]) -> Any:
    async def whole() -> Any:
        return await work

    return asyncio.run(whole())


def test_small_rows_are_locked_many_at_once() -> None:
    locks = Locks(lambda _: 10)
    reader = source(5000, locks)
    assert read(reader.read(4000)) == [(number,) for number in range(0, 5000, 2)]
    assert not reader.full
    assert sum(locks.calls) == 5000
    assert locks.calls[:3] == [FIRST_LOCKED, 2 * FIRST_LOCKED, 4 * FIRST_LOCKED]
    assert max(locks.calls) == LOCK_ROWS


def test_large_rows_end_a_read() -> None:
    locks = Locks(lambda _: CHUNK_BYTES // 4)
    reader = source(20, locks)
    first = read(reader.read(1000))
    assert first == [(0,), (2,)]
    assert reader.full
    assert locks.calls == [4]
    rest = []
    while rows := read(reader.read(1000)):
        rest += rows
    assert first + rest == [(number,) for number in range(0, 20, 2)]
    assert max(locks.calls[1:]) == 1, "as few at once as they are large"


def test_rows_that_become_large() -> None:
    locks = Locks(lambda number: 10 if number < 500 else SMALL_BYTES)
    assert len(read(source(600, locks).read(1000))) < 300
    assert locks.calls[-1] <= max(locks.calls) / 4


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_no_more_is_locked_than_asked_for(limit: int) -> None:
    """A row that is none of the answer may be locked in vain, one beyond the limit may not."""
    locks = Locks(lambda _: 10)
    reader = source(1000, locks, limit)
    rows = read(reader.read(10_000))
    assert rows == [(number,) for number in range(0, 2 * limit, 2)]
    assert sum(locks.calls) <= 2 * limit
    assert read(reader.read(10)) == []


# ---------- record batches ----------
@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(1)
    yield made
    made.close()


class Counted:
    """Batches of so many rows each, of one text of so many bytes; counts what was taken."""

    def __init__(self, batches: int, rows: int, width: int) -> None:
        self.taken = 0
        self._batch = pa.record_batch({"v": ["x" * width] * rows})
        self._left = batches

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        if not self._left:
            raise StopIteration
        self._left -= 1
        self.taken += 1
        return self._batch


def chunks_of(workers: Workers, batches: Counted, submitted: list[int]) -> BatchChunks:
    submit = workers.submit

    def counting(work: Any) -> Any:
        submitted.append(batches.taken)
        return submit(work)

    workers.submit = counting  # type: ignore[method-assign]
    session = cast(ClientSession, type("Session", (), {"interrupt": None})())
    return BatchChunks(BatchSource(workers, session, iter(batches), lambda: None, lambda: None, ()))


def test_a_chunk_changes_threads_once(workers: Workers) -> None:
    async def whole() -> None:
        submitted: list[int] = []
        batches = Counted(10, 100, 5)
        chunks = chunks_of(workers, batches, submitted)
        assert await chunks.peek(1001) == 1000
        assert sum(batch.num_rows for batch in await chunks.take(1000)) == 1000
        assert not chunks.more
        assert len(submitted) == 1

    asyncio.run(whole())


def test_no_more_batches_than_a_chunk_wants(workers: Workers) -> None:
    async def whole() -> None:
        submitted: list[int] = []
        batches = Counted(100, 100, 5)
        chunks = chunks_of(workers, batches, submitted)
        assert sum(batch.num_rows for batch in await chunks.take(250)) == 250
        assert chunks.more
        assert batches.taken == 3
        assert len(submitted) == 1
        assert sum(batch.num_rows for batch in await chunks.take(100_000)) == 9750
        assert not chunks.more

    asyncio.run(whole())


def test_wide_batches_end_a_chunk(workers: Workers) -> None:
    async def whole() -> None:
        batches = Counted(10, 2, CHUNK_BYTES)
        chunks = chunks_of(workers, batches, [])
        rows = 0
        while part := await chunks.take(1000):
            assert sum(batch.num_rows for batch in part) == 1
            rows += 1
            assert batches.taken <= rows // 2 + 1, "as it is asked for"
        assert rows == 20

    asyncio.run(whole())
