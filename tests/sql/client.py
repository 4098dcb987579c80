"""Two clients over libpq: one that takes everything as text, one that speaks with the context parameter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
import pytest
from psycopg import pq

from kalamdb import types
from kalamdb.api import ARROW_OID, CONTEXT_OID

_DIAG = pq.DiagnosticField
_OK = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK, pq.ExecStatus.EMPTY_QUERY)


class Failed(Exception):
    """An ErrorResponse with its fields."""

    def __init__(self, result: Any) -> None:
        def get(name: _DIAG) -> str | None:
            value = result.error_field(name)
            return None if value is None else value.decode()

        self.sqlstate = get(_DIAG.SQLSTATE)
        self.message = get(_DIAG.MESSAGE_PRIMARY)
        self.detail = get(_DIAG.MESSAGE_DETAIL)
        self.hint = get(_DIAG.MESSAGE_HINT)
        position = get(_DIAG.STATEMENT_POSITION)
        self.position = None if position is None else int(position)
        self.schema = get(_DIAG.SCHEMA_NAME)
        self.table = get(_DIAG.TABLE_NAME)
        self.column = get(_DIAG.COLUMN_NAME)
        self.constraint = get(_DIAG.CONSTRAINT_NAME)
        super().__init__(f"{self.sqlstate} {self.message} (detail {self.detail}, hint {self.hint}, at {self.position})")


def _check(result: Any) -> Any:
    if result.status not in _OK:
        raise Failed(result)
    return result


@dataclass
class Answer:
    tag: str
    names: list[str] = field(default_factory=list)
    oids: list[int] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)

    @property
    def value(self) -> Any:
        """The only one."""
        ((value,),) = self.rows
        return value

    @property
    def column(self) -> list[Any]:
        return [row[0] for row in self.rows]


class Client:
    """Values are PostgreSQL's texts. ``notices`` holds those of the last statement."""

    def __init__(self, dsn: str) -> None:
        self.conn = pq.PGconn.connect(dsn.encode())
        assert self.conn.status == pq.ConnStatus.OK, self.conn.get_error_message()
        self.notices: list[str] = []
        self.conn.notice_handler = self._notice

    def _notice(self, result: Any) -> None:
        self.notices.append(result.error_field(_DIAG.MESSAGE_PRIMARY).decode())

    def run(self, sql: str, *params: str | None, oids: Sequence[int] | None = None) -> Answer:
        """One statement, by the extended protocol; parameters $1 … as text."""
        self.notices.clear()
        given = [None if value is None else value.encode() for value in params]
        return self._answer(self.conn.exec_params(sql.encode(), given, oids))

    def simple(self, sql: str) -> Answer:
        """By the simple protocol; the last statement's answer."""
        self.notices.clear()
        return self._answer(self.conn.exec_(sql.encode()))

    def _answer(self, result: Any) -> Answer:
        _check(result)
        width = result.nfields
        rows = [
            tuple(None if (value := result.get_value(row, place)) is None else value.decode() for place in range(width))
            for row in range(result.ntuples)
        ]
        names = [result.fname(place).decode() for place in range(width)]
        oids = [result.ftype(place) for place in range(width)]
        return Answer((result.command_status or b"").decode(), names, oids, rows)

    def rows(self, sql: str, *params: str | None) -> list[tuple[Any, ...]]:
        return self.run(sql, *params).rows

    def value(self, sql: str, *params: str | None) -> Any:
        return self.run(sql, *params).value

    def fails(self, sqlstate: str, sql: str, *params: str | None) -> Failed:
        with pytest.raises(Failed) as caught:
            self.run(sql, *params)
        assert caught.value.sqlstate == sqlstate, caught.value
        return caught.value

    def close(self) -> None:
        self.conn.finish()


@dataclass
class Chunk:
    """One answer in the wire dialect, in storage values. ``cursor`` names what is left, ``arrow`` how it came."""

    tag: str
    names: list[str]
    types: list[str]
    rows: list[tuple[Any, ...]]
    cursor: str | None
    arrow: bool = False

    @property
    def column(self) -> list[Any]:
        return [row[0] for row in self.rows]


class Wire:
    """pg_kalam's side: parameters are (type, PostgreSQL's text), or a record batch for FROM ARROW."""

    def __init__(self, dsn: str) -> None:
        self.conn = pq.PGconn.connect(dsn.encode())
        assert self.conn.status == pq.ConnStatus.OK, self.conn.get_error_message()
        self._schemas: dict[str, pa.Schema] = {}

    def __call__(self, sql: str, *params: tuple[str, str | None] | pa.RecordBatch, **context: Any) -> Chunk:
        oids, values = [], []
        for param in params:
            oid, value = _parameter(param)
            oids.append(oid)
            values.append(value)
        formats = [pq.Format.BINARY] * len(values) + [pq.Format.TEXT]
        values.append(json.dumps(context).encode())
        result = self.conn.exec_params(sql.encode(), values, [*oids, CONTEXT_OID], formats, pq.Format.BINARY)
        return self._chunk(_check(result), sql)

    def _chunk(self, result: Any, sql: str) -> Chunk:
        tag = (result.command_status or b"").decode()
        cursor = next((word for word in tag.split() if word.startswith("scan_")), None)
        names = [result.fname(place).decode() for place in range(result.nfields)]
        oids = [result.ftype(place) for place in range(result.nfields)]
        cells = [[result.get_value(row, place) for place in range(len(names))] for row in range(result.ntuples)]
        if oids == [ARROW_OID]:
            return self._from_arrow(tag, cursor, [cast(bytes, row[0]) for row in cells], sql)
        kinds = [cast(types.PgType, types.by_oid(oid)) for oid in oids]
        rows = [tuple(None if data is None else kind.decode(data, 1) for data, kind in zip(row, kinds, strict=True))
                for row in cells]
        return Chunk(tag, names, [kind.name for kind in kinds], rows, cursor)

    def _from_arrow(self, tag: str, cursor: str | None, messages: list[bytes], sql: str) -> Chunk:
        if sql.startswith("FETCH"):
            schema = self._schemas[sql.split()[-1]]
        else:
            schema = pa.ipc.read_schema(pa.py_buffer(messages.pop(0)))
            if cursor is not None:
                self._schemas[cursor] = schema
        rows: list[tuple[Any, ...]] = []
        for message in messages:
            batch = pa.ipc.read_record_batch(pa.py_buffer(message), schema)
            batch.validate(full=True)
            rows += zip(*(column.to_pylist() for column in batch.columns), strict=True)
        return Chunk(tag, schema.names, [str(each) for each in schema.types], rows, cursor, arrow=True)

    def all(self, sql: str, *params: tuple[str, str | None], **context: Any) -> list[tuple[Any, ...]]:
        """Every row, however many chunks they come in."""
        chunk = self(sql, *params, **context)
        rows = chunk.rows
        while chunk.cursor is not None:
            chunk = self(f"FETCH {context.get('fetch', 10_000)} FROM {chunk.cursor}")
            rows += chunk.rows
        return rows

    def fails(self, sqlstate: str, sql: str, *params: Any, **context: Any) -> Failed:
        with pytest.raises(Failed) as caught:
            self(sql, *params, **context)
        assert caught.value.sqlstate == sqlstate, caught.value
        return caught.value

    def fails_any(self, sql: str, *params: Any, **context: Any) -> Failed:
        with pytest.raises(Failed) as caught:
            self(sql, *params, **context)
        return caught.value

    def send(self, sql: str, **context: Any) -> None:
        """Without waiting for the answer; `answer` has it."""
        self.conn.send_query_params(sql.encode(), [json.dumps(context).encode()], [CONTEXT_OID], [pq.Format.TEXT],
                                    pq.Format.BINARY)

    def answer(self, sql: str = "") -> Chunk:
        result = self.conn.get_result()
        assert result is not None
        chunk = _check(result)
        assert self.conn.get_result() is None
        return self._chunk(chunk, sql)

    @property
    def busy(self) -> bool:
        self.conn.consume_input()
        return bool(self.conn.is_busy())

    @property
    def status(self) -> str:
        return {pq.TransactionStatus.IDLE: "I", pq.TransactionStatus.INTRANS: "T", pq.TransactionStatus.INERROR: "E",
                }[pq.TransactionStatus(self.conn.transaction_status)]

    def close(self) -> None:
        self.conn.finish()


def _parameter(param: tuple[str, str | None] | pa.RecordBatch) -> tuple[int, bytes | None]:
    if isinstance(param, pa.RecordBatch):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, param.schema) as writer:
            writer.write_batch(param)
        return ARROW_OID, sink.getvalue().to_pybytes()
    name, text = param
    kind = types.by_name(name)
    oid = types.KEPT_OIDS[name][0] if name in types.KEPT_OIDS else kind.oid
    return oid, None if text is None else kind.encode(kind.read(text), 1)


def batch(**columns: tuple[str, Sequence[Any]]) -> pa.RecordBatch:
    """A batch from storage values: ``batch(id=("int8", [1, 2]))``."""
    kinds = [types.by_name(name) for name, _ in columns.values()]
    schema = types.arrow_schema(list(zip(columns, kinds, strict=True)))
    return types.rows_to_arrow(list(zip(*(values for _, values in columns.values()), strict=True)), kinds, schema)
