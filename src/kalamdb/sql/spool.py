"""A relation for the query engine, gathered piece by piece: in memory while it is small, then in a temporary file.

The file holds Arrow batches as they are in memory and is mapped, so that it can be read as often as a query wants and
the operating system decides how much of it is in memory. It has no name; its space is free again with the last
reference to the table.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from kalamdb.errors import KalamError

#: bytes that a relation may have in memory
IN_MEMORY = 64 << 20


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise KalamError("53100" if full else "58030",
                         f"could not write a temporary file for the query: {error.strerror or error}",
                         hint="Free space in the temporary directory." if full else None) from None


class Spool:
    """Pieces of one table; all have the first one's columns. One thread."""

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._in_memory = in_memory
        self._parts: list[pa.Table] = []
        self._held = 0
        self._file: Any = None
        self._writer: pa.ipc.RecordBatchFileWriter | None = None

    def add(self, part: pa.Table) -> None:
        self._parts.append(part)
        self._held += part.nbytes
        if self._held > self._in_memory:
            self._spill()

    def _spill(self) -> None:
        with _writing():
            if self._writer is None:
                self._file = tempfile.NamedTemporaryFile(prefix="kalam-query-")  # noqa: SIM115 - as long as the table
                self._writer = pa.ipc.new_file(self._file.name, self._parts[0].schema)
            for part in self._parts:
                self._writer.write_table(part)
        self._parts.clear()
        self._held = 0

    def table(self) -> pa.Table | None:
        """All pieces; None where there was none."""
        spilled = []
        if self._writer is not None:
            with _writing():
                self._writer.close()
                spilled = [pa.ipc.open_file(pa.memory_map(self._file.name)).read_all()]
            self._file.close()  # the mapping keeps its bytes
        parts = [*spilled, *self._parts]
        if len(parts) <= 1:
            return parts[0] if parts else None
        return pa.concat_tables(parts)
