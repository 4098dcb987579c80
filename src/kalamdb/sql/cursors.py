"""Results that come in chunks: sources of rows, the chunker above them, and the cursors a session has open.

A source yields storage rows; it may work in a thread, one read at a time. ``Chunks`` cuts them so that it is always
known whether more follows, and prepares one chunk ahead. Closing a source interrupts a read under way, whose thread
may outlive the transaction by a moment: its snapshot is held until then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import pyarrow as pa

from kalamdb import types
from kalamdb.api import ClientSession, Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.sql.workers import Workers
from kalamdb.txn.api import ScanCursor, Transaction

#: results up to this many rows travel as rows (docs/protocol.md)
SMALL = 64


#: a chunk ends after about so many bytes, as after so many rows
CHUNK_BYTES = 8 << 20


def _nothing() -> None:
    pass


def _no_rows(_: int) -> list[Row]:
    return []


def size_of(row: Row) -> int:
    """Bytes of a row, about."""
    return sum([len(value) if isinstance(value, str | bytes) else 16 for value in row])


class Source(Protocol):
    """Rows of one execution."""

    full: bool

    async def read(self, count: int) -> list[Row]:
        """Up to ``count`` more rows; fewer only at the end, or, then ``full`` is set, where they are large."""

    def ahead(self, count: int) -> None:
        """Begin the next read, which will ask for ``count`` rows. A hint."""

    def close(self) -> None: ...


class ThreadSource:
    """A blocking ``fetch(n)`` (an engine's scan, a query's result) read in a worker thread."""

    def __init__(self, workers: Workers, session: ClientSession, fetch: Callable[[int], list[Row]],
                 interrupt: Callable[[], None], close: Callable[[], None]) -> None:
        self._workers = workers
        self._session = session
        self._fetch = fetch
        self._interrupt = interrupt
        self._close = close
        self._running: Future[list[Row]] | None = None
        self._closed = False
        self._scan: ScanCursor | None = None
        self.full = False

    @classmethod
    def of_scan(cls, workers: Workers, session: ClientSession, scan: ScanCursor) -> ThreadSource:
        made = cls(workers, session, scan.fetch, scan.interrupt, scan.close)
        made._scan = scan
        return made

    def ahead(self, count: int) -> None:
        if self._running is None and not self._closed:
            self._running = self._workers.submit(lambda: self._fill(count))

    def _fill(self, count: int) -> list[Row]:
        rows = self._fetch(count)
        while len(rows) < count and not self._is_full():
            more = self._fetch(count - len(rows))
            if not more:
                break
            rows.extend(more)
        return rows

    def _is_full(self) -> bool:
        return self._scan is not None and self._scan.full

    async def read(self, count: int) -> list[Row]:
        self.ahead(count)
        running = self._running
        assert running is not None
        try:
            rows = await self._workers.wait(self._session, running, self._interrupt)
            self.full = self._is_full()
            return rows
        finally:
            self._running = None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        running, self._running = self._running, None
        interrupt, close = self._interrupt, self._close
        self._fetch, self._interrupt, self._close = _no_rows, _nothing, _nothing  # who is read from may have this one
        if running is None or running.cancel() or running.done():
            close()
        else:
            self._workers.abandon(running, interrupt, close)


class ListSource:
    """Rows that are there already."""

    full = False

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows
        self._at = 0

    def ahead(self, count: int) -> None:
        pass

    async def read(self, count: int) -> list[Row]:
        rows = self._rows[self._at : self._at + count]
        self._at += count
        return rows

    def close(self) -> None:
        self._rows = []


class Sized(ListSource):
    """Rows that are there already, in reads that end after ``CHUNK_BYTES``."""

    async def read(self, count: int) -> list[Row]:
        end, size = self._at, 0
        while end < min(self._at + count, len(self._rows)) and size < CHUNK_BYTES:
            size += size_of(self._rows[end])
            end += 1
        self.full = size >= CHUNK_BYTES
        rows, self._at = self._rows[self._at : end], end
        return rows


class BatchSource:
    """Record batches of a scan or query, read in a worker thread: the columns in their wire layouts."""

    def __init__(self, workers: Workers, session: ClientSession, batches: Iterator[pa.RecordBatch],
                 interrupt: Callable[[], None], close: Callable[[], None], columns: Sequence[Column]) -> None:
        self.columns = columns
        self._batches = batches
        self._at_hand = False
        self._wanted = 1
        self._inner = ThreadSource(workers, session, self._fetch, interrupt, close)

    @classmethod
    def ready(cls, workers: Workers, session: ClientSession, batches: Sequence[pa.RecordBatch],
              columns: Sequence[Column]) -> BatchSource:
        """Of batches that are there already, for which no thread is needed."""
        made = cls(workers, session, iter(batches), _nothing, _nothing, columns)
        made._at_hand = True
        return made

    def _fetch(self, _: int) -> list[Any]:
        """What ``read`` gives, as a list of one: threads are changed once for a chunk, not for each batch."""
        found: list[pa.RecordBatch] = []
        rows = size = 0
        while rows < self._wanted and size < CHUNK_BYTES:
            batch = next(self._batches, None)
            if batch is None:
                return [(found, True)]
            found.append(batch)
            rows += batch.num_rows
            size += batch.nbytes
        return [(found, False)]

    async def read(self, count: int) -> tuple[Sequence[pa.RecordBatch], bool]:
        """Batches of so many rows, if their bytes allow it; and True where that is all."""
        if self._at_hand:
            return list(self._batches), True
        self._wanted = count
        (found,) = await self._inner.read(1)
        return found

    def ahead(self, count: int) -> None:
        """Begin to read so many rows."""
        if not self._at_hand:
            self._wanted = count
            self._inner.ahead(1)

    def rows(self, batches: Sequence[pa.RecordBatch]) -> list[Row]:
        """Few rows in storage values."""
        kinds = [column.type for column in self.columns]
        return [row for batch in batches for row in types.rows_of_batch(batch, kinds)]

    def close(self) -> None:
        self._inner.close()
        if self._at_hand:  # a file's, perhaps, whose space is free when nobody has them any more
            self._batches = iter(())


class BatchChunks:
    """Batches cut into chunks of rows, always one row ahead at least, so that ``more`` is known."""

    def __init__(self, source: BatchSource) -> None:
        self.source = source
        self.as_rows = False  # the first chunk went as rows, and so do the others
        self._held: list[tuple[pa.RecordBatch, int]] = []  # and their bytes, which take a while to count
        self._rows = self._bytes = 0
        self._ended = False

    @property
    def more(self) -> bool:
        return self._rows > 0

    @property
    def full(self) -> bool:
        """What is held is large."""
        return self._bytes >= CHUNK_BYTES

    async def peek(self, count: int) -> int:
        """Hold more than one row, and ``count`` if there are so many and their bytes allow it."""
        while self._rows < count and not self._ended and not (self.full and self._rows > 1):
            batches, self._ended = await self.source.read(count - self._rows)
            for batch in batches:
                if batch.num_rows:
                    self._held.append((batch, size := batch.nbytes))
                    self._rows += batch.num_rows
                    self._bytes += size
        return self._rows

    async def take(self, count: int) -> list[pa.RecordBatch]:
        await self.peek(count + 1)
        if not self._ended:
            count = min(count, self._rows - 1)
        taken: list[pa.RecordBatch] = []
        left = CHUNK_BYTES
        while count > 0 and left > 0 and self._held:
            batch, size = self._held.pop(0)
            rows = min(count, batch.num_rows)
            if size > left:  # as many as fit, and one at least
                rows = min(rows, max(1, batch.num_rows * left // size))
            self._bytes -= size
            if rows < batch.num_rows:
                rest = batch.slice(rows)
                self._held.insert(0, (rest, rest.nbytes))
                self._bytes += rest.nbytes
                batch = batch.slice(0, rows)
                size = batch.nbytes
            taken.append(batch)
            count -= rows
            left -= size
            self._rows -= rows
        return taken

    def ahead(self, count: int) -> None:
        if self._rows <= count and not self._ended and not self.full:
            self.source.ahead(count + 1 - self._rows)


class Chunks:
    """A source cut into chunks, always one row ahead, so that ``more`` is known."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._held: list[Row] = []
        self._ended = False
        self._asked = 0  # size of the read begun ahead
        self.full = False  # what is held is large

    @property
    def more(self) -> bool:
        return bool(self._held)

    async def peek(self, count: int) -> int:
        """Hold at least ``count`` rows if there are so many; how many are held."""
        if len(self._held) < count and not self._ended:
            asked = self._asked or count - len(self._held)
            self._asked = 0
            rows = await self.source.read(asked)
            self.full = self.source.full
            self._ended = len(rows) < asked and not self.full
            self._held += rows
            if len(self._held) < (2 if self.full else count) and not self._ended:
                return await self.peek(count)
        return len(self._held)

    async def take(self, count: int) -> list[Row]:
        """As many rows, if their bytes allow it."""
        if not self.full or len(self._held) < 2:
            await self.peek(count + 1)
        if self.full:
            count = min(count, len(self._held) - 1)
            self.full = False
        rows, self._held = self._held[:count], self._held[count:]
        return rows

    def ahead(self, count: int) -> None:
        if self._held and not self._ended and not self._asked and len(self._held) <= count:
            self._asked = count
            self.source.ahead(count)


class Cursor:
    """What FETCH reads from: a scan that its statement's first chunk did not finish."""

    def __init__(self, name: str, chunks: Chunks | BatchChunks, columns: tuple[Column, ...],
                 to_batch: Callable[[Sequence[Row]], pa.RecordBatch] | None, fetch: int, transaction: Transaction,
                 owner: bool, workers: Workers) -> None:
        self.name = name
        self.columns = columns
        self.fetch_size = fetch
        self.transaction = transaction
        self.level = transaction.level  # a savepoint's rollback ends what was opened after it
        self._chunks = chunks
        self._to_batch = to_batch  # None: plain rows
        self._owner = owner  # the transaction exists for this cursor only
        self._workers = workers

    async def fetch(self, session: ClientSession, count: int) -> Result:
        if isinstance(self._chunks, BatchChunks):
            return self._of_batches(self._chunks, await self._chunks.take(count), count)
        rows = await self._chunks.take(count)
        more = self._chunks.more
        if more:
            self._chunks.ahead(count)
        tag = f"FETCH {len(rows)}" + (f" {self.name}" if more else "")
        cursor = self.name if more else None
        make = self._to_batch
        if make is None:
            return Result(tag, columns=self.columns, rows=rows, cursor=cursor)
        batches = [await self._workers.run(session, lambda: None, lambda: make(rows))] if rows else []
        return Result(tag, columns=self.columns, batches=batches, cursor=cursor)  # the schema came first

    def _of_batches(self, chunks: BatchChunks, batches: list[pa.RecordBatch], count: int) -> Result:
        more = chunks.more
        if more:
            chunks.ahead(count)
        tag = f"FETCH {sum(batch.num_rows for batch in batches)}" + (f" {self.name}" if more else "")
        cursor = self.name if more else None
        if chunks.as_rows:
            return Result(tag, columns=self.columns, rows=chunks.source.rows(batches), cursor=cursor)
        return Result(tag, columns=self.columns, batches=batches, cursor=cursor)

    def ahead(self) -> None:
        self._chunks.ahead(self.fetch_size)

    def close(self) -> None:
        self._chunks.source.close()
        if self._owner:
            self.transaction.rollback()


def close_cursors(session: ClientSession, transaction: Any = None, level: int = 0) -> None:
    """Those of a transaction (None: all) that belong to this level or a deeper one."""
    for name, cursor in list(session.cursors.items()):
        if transaction is None or (cursor.transaction is transaction and cursor.level >= level):
            del session.cursors[name]
            cursor.close()


def release_cursors(session: ClientSession, transaction: Any, level: int) -> None:
    """Deeper levels have been released: what was opened there belongs to this one."""
    for cursor in session.cursors.values():
        if cursor.transaction is transaction:
            cursor.level = min(cursor.level, level)


def close_cursor(session: ClientSession, name: str, *, missing_ok: bool = False) -> None:
    cursor = session.cursors.pop(name, None)
    if cursor is not None:
        cursor.close()
    elif not missing_ok:
        raise KalamError("34000", f'cursor "{name}" does not exist')


async def fetch(session: ClientSession, name: str, count: int) -> Result:
    cursor: Cursor | None = session.cursors.get(name)
    if cursor is None:
        raise KalamError("34000", f'cursor "{name}" does not exist')
    try:
        result = await cursor.fetch(session, count)
    except BaseException:
        session.cursors.pop(name, None)
        cursor.close()
        raise
    if result.cursor is None:
        session.cursors.pop(name, None)
        cursor.close()
    return result


class RowStream:
    """The chunks after the first, for a client that takes plain rows. ``aclose`` ends it, begun or not."""

    def __init__(self, chunks: Chunks, size: int, finish: Callable[[], None]) -> None:
        self._chunks = chunks
        self._size = size
        self._finish: Callable[[], None] | None = finish

    def __aiter__(self) -> AsyncIterator[Sequence[Row]]:
        return self

    async def __anext__(self) -> Sequence[Row]:
        if self._finish is None or not self._chunks.more:
            self.close()
            raise StopAsyncIteration
        self._chunks.ahead(self._size)
        try:
            return await self._chunks.take(self._size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._finish is not None:
            finish, self._finish = self._finish, None
            self._chunks.source.close()
            finish()

    async def aclose(self) -> None:
        self.close()
