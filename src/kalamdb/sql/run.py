"""One execution: who asks, in which transaction, with which parameters; and how its rows become a Result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from kalamdb import types
from kalamdb.api import Account, ClientSession, Column, Context, Result, Row
from kalamdb.sql import coerce
from kalamdb.sql.cursors import SMALL, BatchChunks, BatchSource, Chunks, Cursor, RowStream, Source
from kalamdb.sql.report import Report
from kalamdb.sql.transaction import SessionState, milliseconds
from kalamdb.sql.workers import Workers
from kalamdb.txn.api import CatalogView, Engine, ScanStats, Snapshot, Transaction

if TYPE_CHECKING:
    from kalamdb.sql.duck import QueryEngine
    from kalamdb.sql.executor import SqlExecutor

#: rows per chunk for clients without a context
STREAM_ROWS = 10_000
MAX_FETCH = 1_000_000


@dataclass(slots=True)
class Run:
    executor: SqlExecutor
    session: ClientSession
    state: SessionState
    context: Context | None
    begun: Transaction | None
    own: bool  # autocommit: the transaction is this statement's, and begins when something asks for it
    tenant: str | None
    path: tuple[str, ...]
    account: Account  # whose permissions count: the session's, or less
    bound: str | None = None  # the only tenant that it may act for, whatever the session's account may
    params: Sequence[Any] = ()
    handed: bool = False  # the transaction now belongs to a cursor or stream
    wrote: bool = False
    spares: bool = False  # a cancel does not fail the transaction
    report: Report | None = None
    described: tuple[Column, ...] | None = None  # what the client was told of the result
    _snapshot: Snapshot | None = field(default=None)
    _now: int = 0

    @property
    def transaction(self) -> Transaction:
        if self.begun is None:
            self.begun = self.executor.begin_own(self.session, self.state, self.context)
        return self.begun

    @property
    def catalog(self) -> CatalogView:
        return self.engine.committed if self.begun is None else self.begun.catalog

    def roll_back(self) -> None:
        """End the statement's own transaction."""
        if self.begun is not None:
            self.begun.rollback()

    @property
    def engine(self) -> Engine:
        return self.executor.engine

    @property
    def workers(self) -> Workers:
        return self.executor.workers

    @property
    def queries(self) -> QueryEngine:
        return self.executor.queries

    def function(self, name: str) -> Any:
        """What one of the server's own functions gives now."""
        match name:
            case coerce.SNOWFLAKE:
                return self.executor.snowflakes.next()
            case coerce.UUID:
                return coerce.random_uuid()
        if self.own:
            self._now = self._now or coerce.now_micros()
            return self._now
        self.state.now = self.state.now or coerce.now_micros()  # one instant for the whole block
        return self.state.now

    def scanning(self, path: str) -> ScanStats | None:
        """Where its scans count, if somebody wants to know; ``path``: of ``kalamdb.sql.report``."""
        if self.report is None:
            return None
        self.report.path = path
        return self.report.scans

    @property
    def snapshot(self) -> Snapshot:
        if self._snapshot is None:
            self._snapshot = self.transaction.snapshot(self.context.snap if self.context is not None else 0)
        return self._snapshot

    def forget_snapshot(self) -> None:
        self._snapshot = None

    def fresh_snapshot(self) -> Snapshot:
        """One that sees this statement's own writes."""
        return self.transaction.snapshot(0)

    @property
    def lock_timeout(self) -> int:
        if self.context is not None:
            return self.context.lock_timeout
        return milliseconds(self.session.settings.get("lock_timeout", "0"))

    @property
    def exec(self) -> bool:
        return self.context is not None and self.context.exec


def batcher(columns: tuple[Column, ...], schema: pa.Schema) -> Callable[[Sequence[Row]], pa.RecordBatch]:
    kinds = [column.type for column in columns]
    return lambda rows: types.rows_to_arrow(rows, kinds, schema)


def _nothing() -> None:
    pass


async def answer(run: Run, source: Source | BatchSource, columns: tuple[Column, ...]) -> Result:
    """The first chunk; the rest behind a cursor (context) or a stream (none)."""
    try:
        if isinstance(source, BatchSource):
            assert run.context is not None
            return await _batches(run, BatchChunks(source), columns, run.context)
        chunks = Chunks(source)
        if run.context is None or run.context.exec:
            return await _plain(run, chunks, columns)
        return await _wire(run, chunks, columns, run.context)
    except BaseException:
        source.close()
        raise


async def _plain(run: Run, chunks: Chunks, columns: tuple[Column, ...]) -> Result:
    if run.exec:  # its JSON needs them all
        rows: list[Row] = []
        while chunks.more or not rows:
            part = await chunks.take(STREAM_ROWS)
            rows += part
            if not part:
                break
        chunks.source.close()
        return Result(f"SELECT {len(rows)}", columns=columns, rows=rows)
    rows = await chunks.take(STREAM_ROWS)
    if not chunks.more:
        chunks.source.close()
        return Result(f"SELECT {len(rows)}", columns=columns, rows=rows)
    finish = run.transaction.rollback if run.own else _nothing
    run.handed = True
    return Result("SELECT", columns=columns, rows=rows, stream=RowStream(chunks, STREAM_ROWS, finish))


async def _wire(run: Run, chunks: Chunks, columns: tuple[Column, ...], context: Context) -> Result:
    size = max(1, min(context.fetch, MAX_FETCH))
    held = await chunks.peek(size + 1)
    large = size > SMALL and (held > SMALL or chunks.full)
    schema = types.arrow_schema([(column.name, column.type) for column in columns]) if context.arrow and large else None
    rows = await chunks.take(size)
    result = Result(f"SELECT {len(rows)}", columns=columns)
    to_batch = None
    if schema is not None:
        to_batch = batcher(columns, schema)
        make = to_batch
        result.schema = schema
        result.batches = [await run.workers.run(run.session, _nothing, lambda: make(rows))]
    else:
        result.rows = rows
    return _rest(run, result, chunks, to_batch, size)


async def _batches(run: Run, chunks: BatchChunks, columns: tuple[Column, ...], context: Context) -> Result:
    size = max(1, min(context.fetch, MAX_FETCH))
    held = await chunks.peek(size + 1)
    large = size > SMALL and (held > SMALL or chunks.full)
    taken = await chunks.take(size)
    count = sum(batch.num_rows for batch in taken)
    result = Result(f"SELECT {count}", columns=columns)
    if large:
        result.schema = types.arrow_schema([(column.name, column.type) for column in columns])
        result.batches = taken
    else:
        chunks.as_rows = True
        result.rows = chunks.source.rows(taken)
    return _rest(run, result, chunks, None, size)


def _rest(run: Run, result: Result, chunks: Chunks | BatchChunks, to_batch: Any, size: int) -> Result:
    """The chunks after the first become a cursor's."""
    if not chunks.more:
        chunks.source.close()
        return result
    run.state.scans += 1
    result.cursor = f"scan_{run.state.scans}"
    result.tag += f" {result.cursor}"
    cursor = Cursor(result.cursor, chunks, result.columns or (), to_batch, size, run.transaction, run.own, run.workers)
    run.session.cursors[result.cursor] = cursor
    run.handed = True
    cursor.ahead()
    return result
