"""kalam_exec's answer: rows as a JSON array of objects, anything else as an object with its tag and count.

Numbers keep every digit (bigint and numeric are written as their text); NaN and the infinities are strings, bytea is
``\\x…``, json and jsonb stand as they are, everything else is PostgreSQL's text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from kalamdb import types
from kalamdb.api import Column, Result

ANSWER = (Column("kalam_exec", types.TEXT),)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _number(text: str) -> str:
    return text if text[-1:].isdigit() else _string(text)


def _float(value: float, text: Callable[[Any], str]) -> str:
    return text(value) if math.isfinite(value) else _string(text(value))


def _writer(column: Column) -> Callable[[Any], str]:
    type_ = column.type
    match type_.name:
        case "bool":
            return lambda value: "true" if value else "false"
        case "int2" | "int4" | "int8":
            return str
        case "numeric":
            return _number
        case "float4" | "float8":
            return lambda value: _float(value, lambda number: types.write_text(type_, number))
        case "json" | "jsonb":
            return str
        case _:
            return lambda value: _string(types.write_text(type_, value))


def rows_json(result: Result) -> str:
    assert result.columns is not None
    names = [_string(column.name) + ":" for column in result.columns]
    writers = [_writer(column) for column in result.columns]
    parts = []
    for row in result.rows:
        fields = [
            name + ("null" if value is None else write(value))
            for name, write, value in zip(names, writers, row, strict=True)
        ]
        parts.append("{" + ",".join(fields) + "}")
    return "[" + ",".join(parts) + "]"


def exec_answer(result: Result) -> Result:
    """One row, one text column."""
    if result.columns is not None:
        text = rows_json(result)
    else:
        last = result.tag.rsplit(" ", 1)[-1]
        text = json.dumps({"message": result.tag, "affected": int(last) if last.isdecimal() else 0})
    return Result(result.tag if result.columns is None else "SELECT 1", columns=ANSWER, rows=[(text,)],
                  notices=result.notices)
