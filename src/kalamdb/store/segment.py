"""One segment: an immutable Parquet file of one table's rows in order of tenant and encoded key.

Columns: ``_userid`` (utf8; not in shared tables), ``k`` (int64 or binary, ``store.keys``), ``_seq`` (int64), and
``c<column id>`` in the wire layout of each column's type (``PgType.arrow``). A file without ``_seq`` holds rows of one
commit, whose number the manifest knows. The footer carries, beside Parquet's own metadata, ``kalam.index`` (JSON: the
first and last tenant and key of every row group) and ``kalam.bloom`` (``store.bloom``). Pages have checksums.

``SegmentWriter`` makes a file; ``SegmentFile`` reads one: any thread, several at once.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kalamdb.errors import KalamError
from kalamdb.store import bloom
from kalamdb.store.files import unlink_scratch
from kalamdb.txn.api import TableDef

FORMAT = "1"
#: a row group ends with whichever comes first: it is what a look-up decodes and a merge holds of each segment
GROUP_ROWS = 32_768
GROUP_BYTES = 8 << 20
#: so many rows of the first group tell which columns repeat their values
SAMPLE_ROWS = 4096
Key = tuple[str, Any]  # tenant, encoded key

_INDEX, _BLOOM, _FORMAT = b"kalam.index", b"kalam.bloom", b"kalam.format"


def segment_schema(table: TableDef, *, seq: bool = True) -> pa.Schema:
    """Of the files written for a table now."""
    integer = _integer_key(table)
    head = [] if table.kind == "shared" else [pa.field("_userid", pa.string(), nullable=False)]
    head.append(pa.field("k", pa.int64() if integer else pa.binary(), nullable=False))
    if seq:
        head.append(pa.field("_seq", pa.int64(), nullable=False))
    return pa.schema(head + [pa.field(f"c{column.id}", column.type.arrow) for column in table.columns])


def _integer_key(table: TableDef) -> bool:
    from kalamdb.store.keys import KeyCodec

    return KeyCodec.of(table).integer


@dataclass(frozen=True, slots=True)
class Group:
    """A row group: where its rows begin in the segment, how many there are, and its first and last key."""

    start: int
    rows: int
    first: Key
    last: Key


@dataclass(frozen=True, slots=True)
class Written:
    """What became a file: facts for the manifest."""

    path: Path
    rows: int
    bytes: int
    checksum: str
    first: Key
    last: Key
    least: Any  # key of whichever tenant
    greatest: Any
    min_seq: int
    max_seq: int


# ---------- keys of a batch ----------
def key_at(batch: pa.RecordBatch | pa.Table, place: int) -> Key:
    tenant = batch.column("_userid")[place].as_py() if batch.schema.get_field_index("_userid") >= 0 else ""
    return tenant, batch.column("k")[place].as_py()


def position_of(batch: pa.RecordBatch | pa.Table, key: tuple[Any, ...], *, after: bool = False) -> int:
    """How many rows come before ``key`` (or up to it, with ``after``) in an ordered batch. A key of one part: its
    tenant's rows."""
    low, high = 0, batch.num_rows
    tenants = batch.column("_userid") if batch.schema.get_field_index("_userid") >= 0 else None
    keys = batch.column("k") if len(key) > 1 else None
    while low < high:
        middle = (low + high) // 2
        tenant = "" if tenants is None else tenants[middle].as_py()
        found = (tenant,) if keys is None else (tenant, keys[middle].as_py())
        if found < key or (after and found == key):
            low = middle + 1
        else:
            high = middle
    return low


def checksum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _shown(key: Key) -> list[Any]:
    tenant, k = key
    return [tenant, k if isinstance(k, int) else {"b": base64.b64encode(k).decode()}]


def _read(shown: list[Any]) -> Key:
    tenant, k = shown
    return tenant, k if isinstance(k, int) else base64.b64decode(k["b"])


# ---------- writing ----------
class SegmentWriter:
    """Takes batches in order of tenant and key; ``finish`` completes the file, ``abandon`` removes it. One thread."""

    def __init__(self, path: Path, table: TableDef, schema: pa.Schema) -> None:
        self.path = path
        self._schema = schema
        self._shared = table.kind == "shared"
        self._groups: list[list[Any]] = []
        self.taken = 0
        self._hashes: list[bloom.Hashes] = []
        self._waiting: list[pa.RecordBatch] = []
        self._held = self._held_bytes = 0
        self._first: Key | None = None
        self._last: Key = ("", 0)
        self._least: Any = None
        self._greatest: Any = None
        self._seqs: list[int] = []
        self._compression = table.options.get("compression", "zstd") if table.options else "zstd"
        self._writer: pq.ParquetWriter | None = None  # made with the first group

    def _open(self, group: pa.Table) -> pq.ParquetWriter:
        """Dictionaries where they are of use: one of values that are all different takes the time of all the rest."""
        repeated = [field.name for field in self._schema
                    if field.name not in ("k", "_seq") and _repeats(group.column(field.name).slice(0, SAMPLE_ROWS))]
        packed = [field.name for field in self._schema
                  if pa.types.is_integer(field.type) and field.name not in repeated]
        try:
            return pq.ParquetWriter(
                self.path, self._schema, compression=self._compression, version="2.6", write_page_checksum=True,
                store_schema=False, use_dictionary=repeated,
                column_encoding=dict.fromkeys(packed, "DELTA_BINARY_PACKED"),
            )
        except BaseException:  # it writes already
            unlink_scratch(self.path)
            raise

    def add(self, batch: pa.RecordBatch) -> None:
        if not batch.num_rows:
            return
        self._note(batch)
        self.taken += batch.num_rows
        for part in _parts(pa.RecordBatch.from_arrays(batch.columns, schema=self._schema), GROUP_BYTES // 4):
            self._waiting.append(part)
            self._held += part.num_rows
            self._held_bytes += part.nbytes
            while self._held >= GROUP_ROWS:
                self._write(GROUP_ROWS)
            if self._held_bytes >= GROUP_BYTES:
                self._write(self._held)

    def _note(self, batch: pa.RecordBatch) -> None:
        if self._first is None:
            self._first = key_at(batch, 0)
        self._last = key_at(batch, batch.num_rows - 1)
        keys: Any = batch.column("k")
        keys = keys.to_numpy() if keys.type == pa.int64() else keys.to_pylist()
        self._hashes.append(bloom.key_hashes(None if self._shared else batch.column("_userid").to_pylist(), keys))
        least, greatest = (int(keys.min()), int(keys.max())) if isinstance(keys, np.ndarray) else (min(keys), max(keys))
        self._least = least if self._least is None else min(self._least, least)
        self._greatest = greatest if self._greatest is None else max(self._greatest, greatest)
        if "_seq" in self._schema.names:
            seqs = batch.column("_seq").to_numpy()
            self._seqs = [min([int(seqs.min()), *self._seqs]), max([int(seqs.max()), *self._seqs])]

    def _write(self, rows: int) -> None:
        table = pa.Table.from_batches(self._waiting, self._schema)
        group, rest = table.slice(0, rows), table.slice(rows)
        if self._writer is None:
            self._writer = self._open(group)
        self._writer.write_table(group, row_group_size=rows)
        self._groups.append([group.num_rows, _shown(key_at(group, 0)), _shown(key_at(group, group.num_rows - 1))])
        self._held, self._held_bytes = rest.num_rows, rest.nbytes
        self._waiting = rest.to_batches()

    def finish(self) -> Written:
        """Complete the file; at least one row must have been added."""
        if self._held:
            self._write(self._held)
        assert self._first is not None
        assert self._writer is not None
        self._writer.add_key_value_metadata({
            _FORMAT: FORMAT, _INDEX: json.dumps(self._groups, separators=(",", ":")),
            _BLOOM: bloom.build(np.concatenate(self._hashes)),
        })
        self._writer.close()
        low, high = self._seqs or (0, 0)
        return Written(self.path, self.taken, self.path.stat().st_size, checksum_of(self.path), self._first, self._last,
                       self._least, self._greatest, low, high)

    def abandon(self) -> None:
        if self._writer is None:
            return
        try:
            with suppress(OSError, pa.ArrowException):  # a full disk: there is a footer to write
                self._writer.close()
        finally:
            self._writer.is_open = False  # or it tries again when it is collected
            unlink_scratch(self.path)


def _repeats(sample: pa.ChunkedArray) -> bool:
    """Is each value there twice, on average?"""
    distinct: int = pc.count_distinct(sample, mode="all").as_py()
    return 2 * distinct <= len(sample)


def _parts(batch: pa.RecordBatch, most: int) -> Iterator[pa.RecordBatch]:
    """Slices of up to so many bytes, or of one row."""
    if batch.nbytes <= most or batch.num_rows == 1:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _parts(batch.slice(0, half), most)
    yield from _parts(batch.slice(half), most)


# ---------- reading ----------
@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise KalamError("58P01", f'segment file "{name}" is missing',
                         hint="Restore it from a backup; kalam check lists what it held.") from None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise KalamError("XX001", f'segment file "{name}" is damaged', detail=str(error).partition("\n")[0],
                         hint="Restore it from a backup; kalam check lists what it held.") from None


class SegmentFile:
    """An open segment. Raises KalamError (58P01, XX001) that names the file where it is missing or damaged."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        with _reading(name):
            # not mapped: the end of a file that was cut, or a disk that fails, would end the process (SIGBUS)
            self._file = pq.ParquetFile(path, memory_map=False, page_checksum_verification=True)
            metadata = self._file.metadata.metadata or {}
            if metadata.get(_FORMAT) != FORMAT.encode():
                raise ValueError(f"its format is {metadata.get(_FORMAT)!r}")
            self.bloom: bytes = metadata[_BLOOM]
            self.groups = _groups(json.loads(metadata[_INDEX]))
            self.schema: pa.Schema = self._file.schema_arrow
            self.rows: int = self._file.metadata.num_rows
            if sum(group.rows for group in self.groups) != self.rows:
                raise ValueError("its index does not fit its rows")

    def read(self, number: int, columns: Sequence[str]) -> pa.RecordBatch:
        """A row group's columns, those that the file has."""
        wanted = [name for name in columns if name in self.schema.names] or ["k"]
        with _reading(self.name), self._lock:
            table = self._file.read_row_group(number, columns=wanted, use_threads=False)
            if table.num_rows != self.groups[number].rows:
                raise ValueError("a row group has other rows than its index says")
        batches = table.combine_chunks().to_batches()
        return batches[0]

    def between(self, low: Key | None, high: Key | None) -> range:
        """Numbers of the row groups that may hold keys from low to high (both inclusive; None: open)."""
        first, last = 0, len(self.groups)
        while first < last and low is not None and self.groups[first].last < low:
            first += 1
        while last > first and high is not None and self.groups[last - 1].first > high:
            last -= 1
        return range(first, last)

    def close(self) -> None:
        self._file.close(force=True)


def _groups(index: list[Any]) -> list[Group]:
    groups: list[Group] = []
    start = 0
    for rows, first, last in index:
        groups.append(Group(start, rows, _read(first), _read(last)))
        start += rows
    return groups
