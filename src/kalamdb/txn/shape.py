"""Scans as columns: what a scan gives, what it needs for that, and how rows of SQLite become batches of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from kalamdb import types
from kalamdb.api import Row
from kalamdb.store.hot import SEQ, TURN_BYTES, Layout, Sizes
from kalamdb.txn.api import Scan
from kalamdb.types import PgType

#: shapes of so many scans are kept
KEPT = 512
WIDE = (pa.string(), pa.binary())
_NAMES = re.compile(r"\b(?:c\d+|_seq|_userid)\b")


def needed(layout: Layout, names: Sequence[str], where: str | None) -> list[str]:
    """Columns of a segment that outputs and condition use, and the key."""
    found = [*names, *(_NAMES.findall(where) if where is not None else ())]
    skipped = ("NULL", "_userid") if layout.shared else ("NULL",)
    return [name for name in dict.fromkeys(found) if name not in skipped]


def type_of(layout: Layout, position: int) -> PgType:
    if position >= 0:
        return layout.types[position]
    return types.by_name("int8") if position == SEQ else types.TEXT


@dataclass(frozen=True, slots=True)
class Shape:
    """A scan's outputs, the columns needed for them and for the condition, and its types and schema."""

    outputs: list[str]
    names: list[str]
    kinds: list[PgType]
    schema: pa.Schema

    @classmethod
    def of(cls, layout: Layout, scan: Scan) -> Shape:
        return _shape(layout, scan.columns, scan.where)

    def outputs_of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Of a batch of the columns needed, the outputs."""
        return pa.RecordBatch.from_arrays([_array(batch, name) for name in self.outputs], schema=self.schema)


@lru_cache(KEPT)
def _shape(layout: Layout, columns: tuple[int, ...], where: str | None) -> Shape:
    kinds = [type_of(layout, position) for position in columns]
    outputs = [layout.output(position) for position in columns]
    return Shape(outputs, needed(layout, ["_userid", "k", *outputs], where), kinds,
                 pa.schema([pa.field(str(place), kind.arrow) for place, kind in enumerate(kinds)]))


def _array(batch: pa.RecordBatch, name: str) -> pa.Array:
    return pa.nulls(batch.num_rows, pa.string()) if name == "NULL" else batch.column(name)


class HotRows:
    """How hot rows become batches of these columns: ``select`` is what SQLite is asked for. ``of_one``: of one tenant.

    Tenant and key mostly follow from what else is known, which is quicker than reading them for each row.
    """

    def __init__(self, layout: Layout, names: Sequence[str], of_one: bool) -> None:
        places = {name: place for place, name in enumerate(layout.columns)}
        key = types.by_name("int8" if layout.codec.integer else "bytea")
        others = {"_userid": types.TEXT, "k": key, "_seq": types.by_name("int8")}
        kinds = {name: layout.types[places[name]] if name in places else others[name] for name in names}
        column = layout.columns[layout.key[0]] if layout.codec.integer and layout.key else None
        derived = ({"_userid"} if of_one else set()) | ({"k"} if column in names else set())
        read = [name for name in names if name not in derived]
        self._names = names
        self._read = {name: place for place, name in enumerate(read)}
        self._key = -1 if column is None or column not in names else self._read[column]  # whose values are the keys
        self._wide = [place for place, name in enumerate(read) if kinds[name].arrow in WIDE]
        self.load = layout.loader([places.get(name, SEQ) for name in read])
        self.kinds = [kinds[name] for name in read]
        self.schema, self._whole = (pa.schema([pa.field(name, kinds[name].arrow) for name in some])
                                    for some in (read, names))
        self.select = f"SELECT {', '.join(read)} FROM {layout.table}"

    @staticmethod
    @lru_cache(KEPT)
    def of(layout: Layout, names: tuple[str, ...], of_one: bool) -> HotRows:
        return HotRows(layout, names, of_one)

    def sizes(self, most: int = TURN_BYTES) -> Sizes | None:
        return Sizes(self._wide, most) if self._wide else None

    def batch(self, rows: list[Row]) -> pa.RecordBatch:
        """Rows as SQLite gives them."""
        return types.rows_to_arrow(rows if self.load is None else self.load(rows), self.kinds, self.schema)

    def whole(self, batch: pa.RecordBatch, tenant: str | None) -> pa.RecordBatch:
        """What was read, and what follows from it."""
        arrays, read = batch.columns, self._read

        def column(name: str) -> pa.Array:
            if name in read:
                return arrays[read[name]]
            if name == "k":
                return arrays[self._key].cast(pa.int64())
            return pa.repeat(pa.scalar(tenant, pa.string()), batch.num_rows)

        return pa.RecordBatch.from_arrays([column(name) for name in self._names], schema=self._whole)
