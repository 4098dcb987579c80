"""Contents of FILE columns: FILE PUT, and OPEN, APPEND, CLOSE for those too large for one value; FILE GET.

Who may write the table puts contents of the tenant that the statement runs for; a content is durable when its reference
is answered, whatever becomes of the transaction. Nobody names a content to get it: FILE GET reads a row's reference as
a SELECT would, by the same permissions and in the same snapshot, and a row can refer to its own tenant's contents only.
"""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from kalamdb import reference, types
from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.reference import Reference
from kalamdb.sql import access
from kalamdb.sql.bind import Params
from kalamdb.sql.insert import Planned, PlanQuery
from kalamdb.sql.run import Run
from kalamdb.sql.statements import (
    FileAppend,
    FileCancel,
    FileClose,
    FileData,
    FileGet,
    FilePut,
    FileText,
    Name,
)
from kalamdb.txn.api import CatalogView, ColumnDef, OpenContent, TableDef, Upload

if TYPE_CHECKING:
    from collections.abc import Callable

#: bytes of a content in one row of FILE GET
CHUNK = 1 << 20
#: bytes that go into one answer that is not streamed
WHOLE = 16 << 20
#: characters of a text that a thread reads, not the event loop
LONG = 1 << 20
#: uploads that a session may have open
UPLOADS = 16
_BYTEA, _TEXT, _INT8, _JSONB = (types.by_name(name) for name in ("bytea", "text", "int8", "jsonb"))
PUT_COLUMNS = (Column("file", _JSONB),)
OPEN_COLUMNS = (Column("upload", _TEXT),)
SIZE_COLUMNS = (Column("size", _INT8),)
GET_COLUMNS = (Column("offset", _INT8), Column("data", _BYTEA))


@dataclass(slots=True)
class Pending:
    """An open upload of a session."""

    table: TableDef
    column: ColumnDef
    tenant: str
    name: str
    mime: str
    upload: Upload
    busy: bool = False


def abandon(uploads: dict[str, Pending]) -> None:
    """A session's, at its end."""
    for pending in uploads.values():
        pending.upload.abandon()
    uploads.clear()


# ---------- operands ----------
def _infer(params: Params, *operands: FileText | None) -> None:
    for operand in operands:
        if isinstance(operand, int):
            params.infer(operand, _TEXT)


def _infer_data(params: Params, data: FileData) -> None:
    if isinstance(data.value, int):
        params.infer(data.value, _TEXT if data.base64 else _BYTEA)


def _text(run: Run, operand: FileText, what: str) -> str:
    value = run.params[operand] if isinstance(operand, int) else operand
    if value is None:
        raise KalamError("22004", f"{what} must not be null")
    if not isinstance(value, str):
        raise KalamError("42804", f"{what} must be of type text")
    if "\0" in value:
        raise KalamError("22021", 'invalid byte sequence for encoding "UTF8": 0x00')
    return value


def _read(value: Any, *, is_base64: bool) -> bytes:
    if is_base64:
        try:
            return base64.b64decode("".join(str(value).split()), validate=True)
        except (binascii.Error, ValueError):
            raise KalamError("22023", "invalid base64 data of a file") from None
    if isinstance(value, str):
        value = types.read_text(_BYTEA, value)
    if not isinstance(value, bytes):
        raise KalamError("42804", "the data of a file must be of type bytea")
    return value


async def _bytes(run: Run, data: FileData) -> bytes:
    value = run.params[data.value] if isinstance(data.value, int) else data.value
    if value is None:
        raise KalamError("22004", "the data of a file must not be null")
    if isinstance(value, str) and len(value) > LONG:
        return await run.workers.run(run.session, lambda: None, lambda: _read(value, is_base64=data.base64))
    return _read(value, is_base64=data.base64)


# ---------- putting ----------
@dataclass(slots=True)
class PutPlan:
    """PUT and OPEN."""

    statement: FilePut
    table: TableDef
    params: Params
    writes: bool = True

    @property
    def columns(self) -> tuple[Column, ...]:
        return OPEN_COLUMNS if self.statement.data is None else PUT_COLUMNS

    def start(self, run: Run) -> Awaitable[Result]:
        return self._answer(run)

    async def _answer(self, run: Run) -> Result:
        statement = self.statement
        uploads = run.state.uploads
        if statement.data is None and len(uploads) >= UPLOADS:
            raise KalamError("53400", f"the session has {UPLOADS} open uploads", hint="FILE CLOSE or CANCEL ends one.")
        pending = self._pending(run)
        if statement.data is None:
            name = uuid.uuid4().hex
            uploads[name] = pending
            return Result("FILE OPEN", columns=OPEN_COLUMNS, rows=[(name,)])
        upload = pending.upload
        try:
            data = await _bytes(run, statement.data)
            await _work(run, lambda: upload.append(data))
            return await _close(run, pending, statement.sha256, "FILE PUT")
        finally:
            await _work(run, upload.abandon)

    def _pending(self, run: Run) -> Pending:
        table, statement = self.table, self.statement
        default = access.write_tenant(run.account, table, run.tenant)
        tenant = "" if table.kind == "shared" else access.row_tenant(run.account, default, None, run.tenant)
        name = "file" if statement.name is None else _text(run, statement.name, "the name of a file")
        reference.check_name(name)
        mime = (reference.guessed_mime(name) if statement.mime is None
                else reference.check_mime(_text(run, statement.mime, "the media type of a file")))
        if statement.sha256 is not None:
            _hash(run, statement.sha256)
        limit = run.executor.settings.files.max_mib << 20
        return Pending(table, _column(table, statement.column), tenant, name, mime, run.engine.upload(table, limit))


def _hash(run: Run, operand: FileText) -> bytes:
    return reference.check_sha256(_text(run, operand, "the SHA-256 of a file"))


async def _work(run: Run, work: Callable[[], None]) -> None:
    await run.workers.run(run.session, lambda: None, work)


async def _close(run: Run, pending: Pending, sha256: FileText | None, tag: str) -> Result:
    upload = pending.upload
    if sha256 is not None and _hash(run, sha256) != upload.sha256:
        raise KalamError("22000", "the file is not what was sent",
                         detail=f"It has SHA-256 {upload.sha256.hex()}.", hint="Put it again.")
    await run.engine.publish_content(pending.table, pending.tenant, upload)
    made = Reference(upload.sha256, upload.size, pending.name, pending.mime, str(run.executor.snowflakes.next()))
    return Result(tag, columns=PUT_COLUMNS, rows=[(made.text(),)])


def _still(run: Run, pending: Pending) -> TableDef:
    """The table by now, if it still has the column and the account may still write it."""
    table = next((each for each in run.catalog.tables() if each.id == pending.table.id), None)
    if table is None:
        raise KalamError("42P01", f'relation "{pending.table.namespace}.{pending.table.name}" does not exist',
                         schema=pending.table.namespace, table=pending.table.name)
    if table.kind != "shared":
        access.check_bound(run.bound, pending.tenant)
        access.check_tenant(run.account, pending.tenant)
    else:
        access.write_tenant(run.account, table, run.tenant)
    if not any(each.id == pending.column.id and each.is_file for each in table.columns):
        raise KalamError("42703", f'column "{pending.column.name}" of relation "{table.name}" does not exist',
                         column=pending.column.name)
    return table


@dataclass(slots=True)
class UploadPlan:
    """APPEND, CLOSE and CANCEL."""

    statement: FileAppend | FileClose | FileCancel
    params: Params
    writes: bool = True

    @property
    def columns(self) -> tuple[Column, ...] | None:
        match self.statement:
            case FileAppend():
                return SIZE_COLUMNS
            case FileClose():
                return PUT_COLUMNS
        return None

    def start(self, run: Run) -> Awaitable[Result]:
        return self._answer(run)

    async def _answer(self, run: Run) -> Result:
        name = _text(run, self.statement.upload, "the name of an upload")
        pending = run.state.uploads.get(name)
        if pending is None:
            raise KalamError("42704", f'upload "{name}" does not exist',
                             hint="FILE OPEN begins one; it ends with its session, and with an error.")
        if pending.busy:
            raise KalamError("55006", f'upload "{name}" is being used')
        if not isinstance(self.statement, FileCancel):
            pending.table = _still(run, pending)
        match self.statement:
            case FileAppend():
                return await self._append(run, name, pending, self.statement)
            case FileClose():
                del run.state.uploads[name]
                try:
                    return await _close(run, pending, self.statement.sha256, "FILE CLOSE")
                finally:
                    await _work(run, pending.upload.abandon)
        del run.state.uploads[name]
        await _work(run, pending.upload.abandon)
        return Result("FILE CANCEL")

    async def _append(self, run: Run, name: str, pending: Pending, statement: FileAppend) -> Result:
        upload = pending.upload
        if statement.at is not None and statement.at != upload.size:
            raise KalamError("55000", f'upload "{name}" has {upload.size} bytes, not {statement.at}')
        pending.busy = True
        try:
            data = await _bytes(run, statement.data)
            await self._take(run, name, upload, data)
        finally:
            pending.busy = False
        return Result("FILE APPEND", columns=SIZE_COLUMNS, rows=[(upload.size,)])

    async def _take(self, run: Run, name: str, upload: Upload, data: bytes) -> None:
        try:
            await _work(run, lambda: upload.append(data))
        except BaseException:  # who is cancelled does not know how much was taken
            run.state.uploads.pop(name, None)
            await _work(run, upload.abandon)
            raise


# ---------- getting ----------
@dataclass(slots=True)
class GetPlan:
    """``query`` gives the reference and, of tables that have tenants, whose row it is."""

    table: TableDef
    column: str
    query: Planned
    offset: int
    limit: int | None
    params: Params
    columns: tuple[Column, ...] = GET_COLUMNS
    writes: bool = False

    def start(self, run: Run) -> Awaitable[Result]:
        return self._answer(run)

    async def _answer(self, run: Run) -> Result:
        value, *owner = await self._row(run)
        if value is None:
            raise KalamError("P0002", f'column "{self.column}" of the row is null: it has no file',
                             schema=self.table.namespace, table=self.table.name, column=self.column)
        sha256 = reference.hash_of(value) or reference.read(value).sha256  # its name may be one that is refused today
        content = await run.engine.open_content(self.table, owner[0] if owner else "", sha256)
        end = content.size if self.limit is None else min(content.size, self.offset + self.limit)
        stream = ContentStream(run, content, self.offset, end)
        if run.context is None:
            return Result("SELECT", columns=GET_COLUMNS, stream=stream)
        try:
            if end - self.offset > WHOLE:
                raise KalamError("54000", f"the answer would have {end - self.offset} bytes, more than {WHOLE}",
                                 hint="Get the file in parts: FILE GET ... OFFSET n LIMIT n.")
            rows: list[Row] = [row async for part in stream for row in part]
        finally:
            await stream.aclose()
        return Result(f"SELECT {len(rows)}", columns=GET_COLUMNS, rows=rows)

    async def _rows(self, run: Run) -> list[Row]:
        """Two at most. The snapshot ends here: who takes a file slowly keeps no others from being removed."""
        source = self.query.source(run)
        try:
            rows: list[Row] = list(await source.read(2))
            if len(rows) == 1:
                rows += await source.read(1)
            return rows
        finally:
            source.close()
            run.forget_snapshot()

    async def _row(self, run: Run) -> Row:
        rows = await self._rows(run)
        if not rows:
            raise KalamError("P0002", f'no row of table "{self.table.name}" satisfies the condition',
                             schema=self.table.namespace, table=self.table.name)
        if len(rows) > 1:
            raise KalamError("21000", f'more than one row of table "{self.table.name}" satisfies the condition',
                             schema=self.table.namespace, table=self.table.name,
                             hint="Give FILE GET a condition that only one row satisfies, such as its key.")
        return rows[0]


class ContentStream:
    """A content's bytes as rows of one chunk each. ``aclose`` ends it, begun or not."""

    def __init__(self, run: Run, content: OpenContent, offset: int, end: int) -> None:
        self._workers, self._session = run.workers, run.session
        self._content: OpenContent | None = content
        self._offset = offset
        self._end = end

    def __aiter__(self) -> ContentStream:
        return self

    async def __anext__(self) -> Sequence[Row]:
        content, offset = self._content, self._offset
        if content is None or offset >= self._end:
            await self.aclose()
            raise StopAsyncIteration
        count = min(CHUNK, self._end - offset)
        try:
            data: bytes = await self._workers.run(self._session, lambda: None, lambda: content.read(offset, count))
        except BaseException:
            await self.aclose()
            raise
        self._offset = offset + len(data)
        return [(offset, data)]

    async def aclose(self) -> None:
        content, self._content = self._content, None
        if content is not None:
            content.close()


# ---------- planning ----------
def _column(table: TableDef, name: str) -> ColumnDef:
    column = next((each for each in table.columns if each.name == name), None)
    if column is None:
        raise KalamError("42703", f'column "{name}" of relation "{table.name}" does not exist', column=name)
    if not column.is_file:
        raise KalamError("42809", f'column "{name}" of relation "{table.name}" is not of type FILE',
                         schema=table.namespace, table=table.name, column=name,
                         detail=f"It is of type {column.declared}.")
    return column


def plan_file(statement: Any, catalog: CatalogView, path: Sequence[str], params: Params,
              plan_query: PlanQuery) -> PutPlan | UploadPlan | GetPlan:
    match statement:
        case FilePut():
            table = access.resolve_target(catalog, statement.table, path)
            _column(table, statement.column)
            _infer(params, statement.name, statement.mime, statement.sha256)
            if statement.data is not None:
                _infer_data(params, statement.data)
            return PutPlan(statement, table, params)
        case FileGet():
            return _plan_get(statement, catalog, path, params, plan_query)
    _infer(params, statement.upload)
    if isinstance(statement, FileAppend):
        _infer_data(params, statement.data)
    if isinstance(statement, FileClose):
        _infer(params, statement.sha256)
    return UploadPlan(statement, params)


def _plan_get(statement: FileGet, catalog: CatalogView, path: Sequence[str], params: Params,
              plan_query: PlanQuery) -> GetPlan:
    name: Name = statement.table
    table = access.resolve(catalog, name, path)
    _column(table, statement.column)
    tree = statement.tree.copy()
    if table.kind != "shared":
        tree.append("expressions", exp.column(exp.to_identifier("_userid", quoted=True)))
    return GetPlan(table, statement.column, plan_query(tree), statement.offset, statement.limit, params)
