"""The query engine: DuckDB in memory, over Arrow tables that one statement made, shut off from everything else.

One database without files, network, extensions or changeable settings serves all queries; each query runs on its own
connection, whose relations are the statement's sources and go away with it. DuckDB's errors come out as KalamError
with PostgreSQL's codes. Everything that runs here runs in a worker thread.
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.sql import exact
from kalamdb.sql.native import from_array, to_wire
from kalamdb.types import PgType

BATCH_ROWS = 10_000

_CONFIG = (
    "enable_external_access = false", "autoinstall_known_extensions = false", "autoload_known_extensions = false",
    "allow_community_extensions = false", "python_enable_replacements = false", "TimeZone = 'UTC'",
    "integer_division = true",  # 7/2 = 3, as PostgreSQL has it; other types divide as ever
    "preserve_insertion_order = true",
)

#: what DuckDB's message says → SQLSTATE
_BY_MESSAGE: tuple[tuple[str, str], ...] = (
    (r"division by zero", "22012"),
    (r"max expression depth|stack overflow", "54001"),
    (r"(convert|cast).*\b(date|timestamp)|not in timestamp range", "22008"),
    (r"like pattern must not end", "22025"),
    (r"more than one row returned by a subquery", "21000"),
    (r"logarithm", "2201E"),
    (r"square root of a negative", "2201F"),
    (r"out of range|overflow|could not cast value|can't be cast because the value|failed to cast decimal", "22003"),
    (r"function with name|no function matches|could not choose a best candidate", "42883"),
    (r"table with name|referenced table", "42P01"),
    (r"type with name", "42704"),
    (r"ambiguous", "42702"),
    (r"cannot compare values", "42883"),
    (r"must appear in the group by|cannot contain aggregates|cannot contain window|nested", "42803"),
    (r"referenced column|does not have a column|not found in from clause", "42703"),
    (r"same number of result columns", "42601"), (r"no space left on device", "53100"),
)
_BY_CLASS: tuple[tuple[type[duckdb.Error], str], ...] = (
    (duckdb.InterruptException, "57014"), (duckdb.OutOfMemoryException, "53200"), (duckdb.ParserException, "42601"),
    (duckdb.SyntaxException, "42601"), (duckdb.ConversionException, "22P02"), (duckdb.OutOfRangeException, "22003"),
    (duckdb.PermissionException, "42501"), (duckdb.NotImplementedException, "0A000"),
    (duckdb.TypeMismatchException, "42804"), (duckdb.CatalogException, "42P01"), (duckdb.BinderException, "42804"),
    (duckdb.InvalidInputException, "22023"), (duckdb.IOException, "58030"),
)


_OWN = re.compile(r"kalam:(\w{5}):(.*?):malak", re.DOTALL)
_INTEGERS = {"INT16": "smallint", "INT32": "integer", "INT64": "bigint", "INT128": "numeric"}


def query_error(error: duckdb.Error) -> KalamError:
    """A DuckDB error with PostgreSQL's code and a message without DuckDB's trimmings."""
    if isinstance(error, duckdb.InterruptException):
        return KalamError("57014", "canceling statement due to user request")
    if isinstance(error, duckdb.OutOfMemoryException):
        return KalamError("53200", "out of memory", detail="The query needs more than duckdb.memory_limit allows.")
    return error_of(str(error), type(error))


def error_of(text: str, kind: type[duckdb.Error] = duckdb.Error) -> KalamError:
    own = _OWN.search(text)
    if own is not None:
        return KalamError(own.group(1), own.group(2))
    text = re.sub(r"^[A-Z][\w ]*Error: ", "", text.partition("\n")[0])
    lowered = text.lower()
    code = next((code for pattern, code in _BY_MESSAGE if re.search(pattern, lowered)), None)
    if code is None:
        code = next((code for class_, code in _BY_CLASS if issubclass(kind, class_)), "0A000")
    if code == "22003":
        found = re.search(r"\b(INT16|INT32|INT64)\b(?!.*\b(?:INT16|INT32|INT64)\b)", text)
        if found is not None:
            return KalamError(code, f"{_INTEGERS[found.group(1)]} out of range")
        found = re.search(r"(?:in division of|on abs\(|in negation of|\bnegate) ?(-?\d+)", text)
        if found is not None:
            size = len(bin(abs(int(found.group(1)))))
            name = "smallint" if size <= 18 else "integer" if size <= 34 else "bigint"
            return KalamError(code, f"{name} out of range")
        if "timestamp" in lowered or "interval" in lowered:
            return KalamError("22008", "timestamp out of range")
        if "date" in lowered:
            return KalamError("22008", "date out of range")
        if "DECIMAL" in text or "decimal" in text:
            return KalamError(code, "numeric field overflow")
    if code == "54001":
        return KalamError(code, "statement is too deeply nested", hint="Chains of operators count as nested, too.")
    if code == "22008":
        return KalamError(code, "timestamp out of range")
    if code == "22025":
        return KalamError(code, "LIKE pattern must not end with escape character")
    if code == "21000":
        return KalamError(code, "more than one row returned by a subquery used as an expression")
    if text[1:2].islower():
        text = text[:1].lower() + text[1:]
    return KalamError(code, text or "the query failed")


class QueryEngine:
    """The database all queries share."""

    def __init__(self, memory_limit: str = "1GB", threads: int = 0) -> None:
        self._db = duckdb.connect(":memory:")
        self._equipped = False
        self._equipping = threading.Lock()
        self._spill = tempfile.TemporaryDirectory(prefix="kalam-query-")  # what a query puts there beyond its memory
        options = [f"temp_directory = '{self._spill.name}'", *_CONFIG, f"memory_limit = '{memory_limit}'"]
        if threads:
            options.append(f"threads = {threads}")
        for option in options:
            self._db.execute(f"SET {option}")
        self._db.execute("SET lock_configuration = true")

    def open(self) -> duckdb.DuckDBPyConnection:
        if not self._equipped:
            with self._equipping:
                if not self._equipped:  # with the first query: it loads numpy
                    exact.install(self._db)
                    self._equipped = True
        return self._db.cursor()

    def check(self, sql: str, relations: Mapping[str, pa.Table]) -> None:
        """What the query engine has against a query; nothing is executed."""
        connection = self.open()
        try:
            for name, table in relations.items():
                connection.register(name, table)
            connection.sql(sql)
        except duckdb.Error as error:
            raise query_error(error) from None
        finally:
            connection.close()

    def close(self) -> None:
        self._db.close()
        self._spill.cleanup()


class QueryResult:
    """A query under way: rows in storage values or batches in wire layouts. ``types`` are its columns'."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, types: Sequence[PgType]) -> None:
        self._connection = connection
        self._reader: pa.RecordBatchReader | None = None
        self._types = types
        self._rows: list[Row] = []
        self._closed = False

    def start(self, sql: str, relations: Mapping[str, pa.Table]) -> None:
        try:
            for name, table in relations.items():
                self._connection.register(name, table)
            relation = self._connection.sql(sql)
            self._reader = relation.to_arrow_reader(BATCH_ROWS)
        except duckdb.Error as error:
            raise query_error(error) from None

    def _next(self) -> pa.RecordBatch | None:
        assert self._reader is not None
        try:
            return self._reader.read_next_batch()
        except StopIteration:
            return None
        except duckdb.Error as error:
            raise query_error(error) from None
        except (pa.ArrowException, OSError) as error:
            raise _arrow_error(error) from None

    def batch(self) -> pa.RecordBatch | None:
        """The next batch in wire layouts, None at the end. Instead of ``fetch``."""
        batch = None if self._reader is None else self._next()
        if batch is None:
            self._finish()
            return None
        columns = [to_wire(type_, column) for type_, column in zip(self._types, batch.columns, strict=True)]
        return pa.RecordBatch.from_arrays(columns, [str(place) for place in range(len(columns))])

    def fetch(self, count: int) -> list[Row]:
        """Up to ``count`` more rows, [] at the end."""
        while not self._rows and self._reader is not None:
            batch = self._next()
            if batch is None:
                self._finish()
                break
            columns = [from_array(type_, column) for type_, column in zip(self._types, batch.columns, strict=True)]
            self._rows = list(zip(*columns, strict=True))
        rows, self._rows = self._rows[:count], self._rows[count:]
        return rows

    def interrupt(self) -> None:
        self._connection.interrupt()

    def _finish(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._finish()
            self._connection.close()


def _arrow_error(error: Exception) -> KalamError:
    """An error inside a stream comes wrapped; its text is still DuckDB's."""
    text = str(error)
    if "INTERRUPT" in text.upper():
        return KalamError("57014", "canceling statement due to user request")
    if "Out of Memory" in text:
        return KalamError("53200", "out of memory", detail="The query needs more than duckdb.memory_limit allows.")
    found = re.search(r"(\w[\w ]*) Error: ([^\n]*)", text)
    if found is None and _OWN.search(text) is None:
        return KalamError("0A000", "the query failed", detail=text.partition("\n")[0])
    kinds: dict[str, type[duckdb.Error]] = {
        "Conversion": duckdb.ConversionException, "Out of Range": duckdb.OutOfRangeException,
        "Invalid Input": duckdb.InvalidInputException, "Not implemented": duckdb.NotImplementedException,
    }
    name = "" if found is None else found.group(1)
    kind = next((kind for word, kind in kinds.items() if name.endswith(word)), duckdb.Error)
    return error_of(text if found is None or _OWN.search(text) else found.group(2), kind)


def value_of(result: Any) -> Any:
    """The only value of a one-row, one-column result."""
    rows = result.fetch(1)
    return rows[0][0] if rows else None
