"""Verification of a data directory that no server has open: SQLite, manifests, segment files, keys, files.

``check`` yields a line for every problem, and reads one row group at a time. That a key is hot and live in a segment at
once is none: the hot row hides the other until it leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pyarrow as pa

from kalamdb import reference
from kalamdb.admin.files import Readable
from kalamdb.catalog import formats
from kalamdb.catalog.catalog import last_commit, load_table
from kalamdb.errors import KalamError
from kalamdb.store import bloom, contents, manifest
from kalamdb.store.cold import ColdRange, ColdStore
from kalamdb.store.hot import Layout, open_connection
from kalamdb.store.manifest import Manifest, Segment, tombstones
from kalamdb.store.segment import Key, SegmentFile, checksum_of, key_at
from kalamdb.txn.api import TableDef


@dataclass
class Counts:
    """What has been looked at."""

    tables: int = 0
    segments: int = 0
    hot_rows: int = 0
    cold_rows: int = 0
    files: int = 0  # contents of FILE columns


class Check:
    """``quick``: without reading the segments' contents."""

    def __init__(self, data: Path, storages: dict[str, Readable], *, quick: bool = False) -> None:
        self.counts = Counts()
        self.orphans: list[str] = []
        self._storages = storages
        self._quick = quick
        self._unreadable = ""
        try:
            self._connection = open_connection(data / "hot.db", read_only=True)
        except (apsw.NotADBError, apsw.CorruptError) as error:
            self._unreadable = str(error)
        except apsw.Error as error:
            raise KalamError("58030", f"cannot open {data / 'hot.db'}: {error}") from None

    def close(self) -> None:
        if not self._unreadable:
            self._connection.close(True)

    def _query(self, text: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(text, values).fetchall()

    def problems(self) -> Iterator[str]:
        if self._unreadable:
            yield f"hot.db: {self._unreadable}"
            return
        try:
            yield from self._database()
            number, release = formats.found(self._connection)
            refused = formats.refusal(number, release)
            if refused is not None:
                yield f"hot.db: {refused.message}; {refused.detail}"
                return
            ((self._last_seq,),) = self._query("SELECT value FROM kalam_meta WHERE name = 'last_seq'") or [(0,)]
            self._last_seq = max(self._last_seq, last_commit(self._connection))
            definitions = self._query(  # dropped tables, too, until they are purged
                "SELECT id, definition FROM kalam_tables WHERE definition <> '' ORDER BY id")
            tables = [load_table(id_, formats.modern(text, number)) for id_, text in definitions]
            for table in tables:
                self.counts.tables += 1
                yield from self._table(table)
                yield from self._contents_of(table)
            yield from self._files()
        except apsw.Error as error:
            yield f"hot.db: {error}"

    def _database(self) -> Iterator[str]:
        for (line,) in self._query("PRAGMA integrity_check"):
            if line != "ok":
                yield f"hot.db: {line}"

    # ---------- one table ----------
    def _table(self, table: TableDef) -> Iterator[str]:
        name, layout = f"{table.namespace}.{table.name}", Layout(table)
        for each in (layout.table, tombstones(table.id)):
            if not self._query("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (each,)):
                if each == layout.table:
                    yield f"{name}: its hot rows ({each}) are not there"
                continue
            ((rows, newest),) = self._query(f"SELECT count(*), max(_seq) FROM {each}")
            if each == layout.table:
                self.counts.hot_rows += rows
            if newest is not None and newest > self._last_seq:
                yield f"{name}: {each} has a row of commit {newest}, after the last one ({self._last_seq})"
            if each == layout.table and (lost := set(layout.columns) - layout.present(self._connection)):
                yield f"{name}: {each} does not have the column {min(lost)}"
        version = manifest.version_of(self._query, table.id)
        if not version:
            return
        try:
            found = manifest.load(self._query, table.id, version)
        except (ValueError, TypeError) as error:
            yield f"{name}: its manifest cannot be read: {error}"
            return
        sound = True
        for segment in found.segments:
            for problem in self._segment(segment, layout):
                sound = False
                yield f'{name}: segment file "{segment.file}" of storage "{segment.storage}" {problem}'
        if sound and not self._quick:
            yield from self._unique(name, layout, found)

    def _segment(self, segment: Segment, layout: Layout) -> Iterator[str]:
        self.counts.segments += 1
        self.counts.cold_rows += segment.live
        storage = self._storages.get(segment.storage)
        if storage is None:
            yield "is in a storage that is not configured"
            return
        try:
            path = storage.fetch(segment.file)
            size = path.stat().st_size
            if size != segment.bytes:
                yield f"has {size} bytes instead of {segment.bytes}"
                return
            if self._quick:
                return
            if checksum_of(path) != segment.checksum:
                yield "has another checksum than when it was written"
                return
            yield from self._contents(SegmentFile(path, segment.file), segment, layout)
        except KalamError as error:
            yield "is missing" if error.sqlstate == "58P01" else error.message

    def _contents(self, file: SegmentFile, segment: Segment, layout: Layout) -> Iterator[str]:
        if file.rows != segment.rows:
            yield f"has {file.rows} rows instead of {segment.rows}"
        dead = segment.dead.astype(np.int64)
        if len(dead) and (np.any(np.diff(dead) <= 0) or dead[-1] >= segment.rows):
            yield "has dead rows that cannot be"
        last: Key | None = None
        for number, group in enumerate(file.groups):
            batch = file.read(number, [*([] if layout.shared else ["_userid"]), "k", "_seq"])
            first, end = key_at(batch, 0), key_at(batch, batch.num_rows - 1)
            if (first, end) != (group.first, group.last):
                yield f"has an index that is wrong about row group {number}"
            if last is not None and first <= last:
                yield f"is out of order at row group {number}"
            last = end
            yield from self._group(batch, number, file, segment, layout)
        if (file.groups[0].first, last) != (segment.first, segment.last):
            yield "has other first and last keys than the manifest says"

    def _group(self, batch: pa.RecordBatch, number: int, file: SegmentFile, segment: Segment, layout: Layout
               ) -> Iterator[str]:
        tenants = None if layout.shared else batch.column("_userid").to_pylist()
        column = batch.column("k")
        keys: Any = column.to_numpy() if layout.codec.integer else column.to_pylist()
        if not bool(bloom.may_contain_many(file.bloom, bloom.key_hashes(tenants, keys)).all()):
            yield f"has a Bloom filter that does not know all keys of row group {number}"
        pairs = list(zip(tenants or [""] * len(keys), column.to_pylist(), strict=True))
        if any(one >= two for one, two in pairwise(pairs)):
            yield f"is out of order in row group {number}"
        if min(pair[1] for pair in pairs) < segment.least or max(pair[1] for pair in pairs) > segment.greatest:
            yield f"has keys in row group {number} beyond what the manifest says"
        if "_seq" in batch.schema.names:
            seqs = batch.column("_seq").to_numpy()
            if seqs.min() < segment.min_seq or seqs.max() > min(segment.max_seq, self._last_seq):
                yield f"has rows of commits in row group {number} that cannot be"

    def _unique(self, name: str, layout: Layout, found: Manifest) -> Iterator[str]:
        cold = ColdStore(self._storages)
        last: Key | None = None
        for batch in cold.batches(found, layout, ["_userid", "k"], ColdRange(), _go_on):
            pairs = list(zip(batch.column("_userid").to_pylist(), batch.column("k").to_pylist(), strict=True))
            for one, two in zip([last, *pairs], pairs, strict=False):
                if one == two:
                    yield f"{name}: key {two!r} has two live rows in segments"
            last = pairs[-1]

    # ---------- contents of FILE columns ----------
    @property
    def _has_contents(self) -> bool:
        return bool(self._query("SELECT 1 FROM sqlite_schema WHERE name = 'kalam_contents'"))

    def _contents_of(self, table: TableDef) -> Iterator[str]:
        name = f"{table.namespace}.{table.name}"
        known: set[contents.Owner] = set()
        for each in contents.of_table(self._query, table.id) if self._has_contents else ():
            self.counts.files += 1
            known.add(each.owner)
            problem = self._content(each)
            if problem is not None:
                yield f'{name}: file "{each.file}" of storage "{each.storage}" {problem}'
        names = [f"c{column.id}" for column in table.columns if column.is_file]
        for column in names if not self._quick else ():
            found, unreadable = self._references(table, column)
            whose = {tenant: "" if table.kind == "shared" else f' of tenant "{tenant}"'
                     for tenant in unreadable | {owner[0] for owner in found}}
            for tenant in sorted(unreadable):
                yield f"{name}: a row{whose[tenant]} has a reference to a file that cannot be read"
            for tenant, sha256 in sorted(found - known):
                yield f"{name}: a row{whose[tenant]} refers to the file {sha256.hex()}, which is not there"

    def _content(self, each: contents.Content) -> str | None:
        storage = self._storages.get(each.storage)
        if storage is None:
            return "is in a storage that is not configured"
        try:
            return contents.problem_of(storage.fetch(each.file), each.sha256, each.size, quick=self._quick)
        except KalamError as error:
            return "is missing" if error.sqlstate == "58P01" else error.message

    def _references(self, table: TableDef, column: str) -> tuple[set[contents.Owner], set[str]]:
        """What rows refer to; of segments that cannot be read, which are problems of their own, nothing; and
        the tenants with values that cannot be read."""
        layout = Layout(table)
        found: set[contents.Owner] = set()
        unreadable: set[str] = set()

        def note(tenant: str, value: str | None) -> None:
            sha256 = b"" if value is None else reference.hash_of(value)
            if sha256 is None:
                unreadable.add(tenant)
            elif sha256:
                found.add((tenant, sha256))

        if column in layout.present(self._connection):
            for tenant, value in self._connection.execute(f"SELECT _userid, {column} FROM {layout.table}"):
                note(str(tenant), None if value is None else str(value))
        version = manifest.version_of(self._query, table.id)
        held = manifest.load(self._query, table.id, version).segments if version else ()
        cold, names = ColdStore(self._storages), [column, *([] if layout.shared else ["_userid"])]
        with suppress(KalamError):
            for batch in cold.batches(Manifest(table.id, 0, tuple(held)), layout, names, ColdRange(), _go_on,
                                      ordered=False):
                tenants = [""] * batch.num_rows if layout.shared else batch.column("_userid").to_pylist()
                for tenant, value in zip(tenants, batch.column(column).to_pylist(), strict=True):
                    note(tenant, value)
        return found, unreadable

    # ---------- files ----------
    def _files(self) -> Iterator[str]:
        known = set(self._query("SELECT storage, file FROM kalam_segments"))
        if self._has_contents:
            known |= set(self._query("SELECT storage, file FROM kalam_contents"))
        for storage_id, storage in self._storages.items():
            try:
                names = storage.names("")
            except KalamError as error:
                yield f'storage "{storage_id}": {error.message}'
                continue
            self.orphans += [f"{storage_id}/{name}" for name in names if (storage_id, name) not in known]


def _go_on() -> None:
    pass
