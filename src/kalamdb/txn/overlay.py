"""A transaction's own writes: versions of rows by table and key, with positions and savepoints.

Every write gets a position; a reader sees the newest version at or below its own position. An undo log with one mark
per savepoint level takes versions back.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from operator import itemgetter
from typing import Any

from kalamdb.api import Row
from kalamdb.catalog.catalog import CatalogChanges
from kalamdb.store.hot import Layout
from kalamdb.store.manifest import Segment
from kalamdb.txn.api import TableDef
from kalamdb.txn.bulk import Part, Run, Runs, Version

RowKey = tuple[str, int | bytes]

#: so many keys are put in order one by one
FEW = 16


class TableOverlay:
    """Own versions of one table's rows."""

    __slots__ = ("_order", "changing", "fresh", "layout", "rows", "runs", "table", "weight")

    def __init__(self, table: TableDef, layout: Layout) -> None:
        self.table = table
        self.layout = layout
        self.runs = Runs(table, layout)
        self.fresh: list[RowKey] = []  # written since the last savepoint or run: these may become a run
        self.weight = 0  # characters and bytes in those, about
        self.changing = False  # may one of those have the key of a row that was there?
        self.rows: dict[RowKey, Version] = {}
        self._order: list[RowKey] = []  # keys in order, those that came last perhaps missing

    def altered(self, table: TableDef, layout: Layout) -> TableOverlay:
        """The same rows under another definition."""
        made = TableOverlay(table, layout)
        made.runs = self.runs.altered(table, layout)
        made.fresh, made.weight, made.changing = list(self.fresh), self.weight, self.changing
        places = {column.id: place for place, column in enumerate(self.table.columns)}
        sources = [(places.get(column.id), column.missing) for column in table.columns]
        for key, version in self.rows.items():
            made.rows[key] = _altered(version, sources)
        return made

    def forget_fresh(self) -> None:
        self.fresh.clear()
        self.weight = 0
        self.changing = False

    def add_fresh(self, keys: Sequence[RowKey], rows: Sequence[Row]) -> None:
        """Of many rows one in four is weighed: looking at all would take longer than the rest."""
        self.fresh.extend(keys)
        step = 4 if len(rows) >= FEW else 1
        for place in self.layout.wide:
            self.weight += step * sum(len(row[place]) for row in rows[::step] if row[place] is not None)

    def forget(self, key: RowKey) -> None:
        del self.rows[key]
        self.forget_order()

    def forget_order(self) -> None:
        self._order.clear()

    def in_range(self, tenant: str, bounds: Sequence[tuple[str, int | bytes]]) -> list[RowKey]:
        """Keys of a tenant that satisfy these conditions (``KeyCodec.bounds``)."""
        if len(self._order) < len(self.rows):
            self._sort()
        order = self._order
        start, stop = bisect_left(order, (tenant,)), bisect_left(order, (tenant + "\0",))
        for operator, value in bounds:
            edge = (tenant, value)
            if operator in ("=", ">=", ">"):
                start = max(start, (bisect_right if operator == ">" else bisect_left)(order, edge))
            if operator in ("=", "<=", "<"):
                stop = min(stop, (bisect_left if operator == "<" else bisect_right)(order, edge))
        return order[start:stop]

    def _sort(self) -> None:
        """A dict gives back its keys in the order they came."""
        missing = list(islice(reversed(self.rows), len(self.rows) - len(self._order)))
        if len(missing) < FEW:
            for key in missing:
                insort(self._order, key)
        else:
            self._order += missing
            self._order.sort()

    def newest(self, key: RowKey) -> Version | None:
        """NotInMemory where a file has to be read."""
        version = self.rows.get(key)
        return self.runs.find(key) if version is None and self.runs else version

    def visible(self, key: RowKey, position: int) -> Version | None:
        """NotInMemory where a file has to be read."""
        version = self.rows.get(key)
        while version is not None and version[0] > position:
            version = version[2]
        return self.runs.find(key, position) if version is None and self.runs else version

    def for_run(self) -> list[tuple[RowKey, Version]]:
        """What is fresh, in order, without that of which a reader or a savepoint may want another version."""
        rows = self.rows
        found = {key: version for key in self.fresh if (version := rows.get(key)) is not None and version[2] is None}
        return sorted(found.items(), key=itemgetter(0))

    def size(self, enough: int) -> int:
        """Characters and bytes of the texts and blobs to be stored; once there are more than ``enough``, what has been
        counted."""
        total = 0
        for (_, k), version in self.rows.items():
            if isinstance(k, bytes):
                total += len(k)
            row = version[1]
            if row is not None:
                for place in self.layout.wide:
                    value = row[place]
                    if value is not None:
                        total += len(value)
            if total > enough:
                break
        return total

    @property
    def count(self) -> int:
        """Of rows that are not in a file."""
        return len(self.rows) + self.runs.rows_in_parts

    def keys(self) -> list[RowKey]:
        """Of the same."""
        return [*self.rows, *self.runs.hot_keys()]

    def changes(self) -> Iterator[tuple[str, int | bytes, Row | None]]:
        """The same. Any thread."""
        rows = self.rows
        for tenant, k, row in self.runs.hot_rows():
            if (tenant, k) not in rows:
                yield tenant, k, row
        for (tenant, k), version in self.rows.items():
            yield tenant, k, version[1]


def _altered(version: Version, sources: Sequence[tuple[int | None, Any]]) -> Version:
    chain: list[Version] = []
    link: Version | None = version
    while link is not None:
        chain.append(link)
        link = link[2]
    made: Version | None = None
    for position, row, _ in reversed(chain):
        values = None if row is None else tuple(
            missing if place is None else row[place] for place, missing in sources)
        made = (position, values, made)
    assert made is not None
    return made


#: in the undo log: the table had this overlay before it was altered
_ALTERED: Any = object()


@dataclass(slots=True)
class _Mark:
    undo: int
    locks: int


class Overlay:
    """All of a transaction's writes. ``level`` 1: no savepoint."""

    __slots__ = ("_marks", "_undo", "position", "tables")

    def __init__(self) -> None:
        self.tables: dict[int, TableOverlay] = {}
        self.position = 0
        self._undo: list[tuple[TableOverlay, RowKey | Segment | int] | tuple[None, CatalogChanges | None]] = []
        self._marks: list[_Mark] = []

    @property
    def level(self) -> int:
        return len(self._marks) + 1

    @property
    def locks_before(self) -> int:
        """How many locks were held when the innermost level began."""
        return self._marks[-1].locks if self._marks else 0

    def table(self, table: TableDef, layout: Layout) -> TableOverlay:
        found = self.tables.get(table.id)
        if found is None:
            found = self.tables[table.id] = TableOverlay(table, layout)
        return found

    def write(self, overlay: TableOverlay, key: RowKey, row: Row | None, *, new: bool = False) -> None:
        before = overlay.rows.get(key)
        if self._marks:
            self._undo.append((overlay, key))
        elif before is not None and before[0] == self.position:  # no reader can want it, nothing can bring it back
            before = before[2]
        overlay.rows[key] = (self.position, row, before)
        overlay.add_fresh((key,), () if row is None else (row,))
        if not new:
            overlay.changing = True

    def insert(self, overlay: TableOverlay, key: RowKey, row: Row) -> None:
        """``write`` of a row whose key nobody has now."""
        self.write(overlay, key, row, new=key not in overlay.rows)

    def insert_new(self, overlay: TableOverlay, keys: Sequence[RowKey], rows: Sequence[Row]) -> None:
        """Rows of keys that nobody had before, this transaction included."""
        overlay.rows.update(zip(keys, zip(repeat(self.position), rows, repeat(None)), strict=False))
        overlay.add_fresh(keys, rows)
        if self._marks:
            self._undo.extend([(overlay, key) for key in keys])

    def insert_part(self, overlay: TableOverlay, part: Part) -> None:
        """Rows of keys that nobody had before."""
        overlay.runs.add_part(part)
        if self._marks:
            self._undo.append((overlay, part.id))

    def to_runs(self, overlay: TableOverlay, keys: Sequence[RowKey], runs: Sequence[Run]) -> None:
        """What was written under these keys is in runs now."""
        if len(keys) == len(overlay.rows):
            overlay.rows.clear()
        else:
            for key in keys:
                del overlay.rows[key]
        overlay.forget_order()
        overlay.forget_fresh()
        for run in runs:
            overlay.runs.add(run)
        if self._marks:  # all of them were written in the innermost level
            start, moved = self._marks[-1].undo, set(keys)
            self._undo[start:] = [entry for entry in self._undo[start:]
                                  if entry[0] is not overlay or entry[1] not in moved]
            self._undo += [(overlay, run.segment) for run in runs]

    def alter(self, table: TableDef, layout: Layout) -> None:
        """Own rows of a table take its new definition. Scans that are open keep what they have."""
        before = self.tables.get(table.id)
        if before is None:
            return
        self.tables[table.id] = before.altered(table, layout)
        if self._marks:
            self._undo.append((before, _ALTERED))

    def note_definition(self, before: CatalogChanges | None) -> None:
        if self._marks:
            self._undo.append((None, before))

    # ---------- savepoints ----------
    def open_level(self, locks: int) -> None:
        for overlay in self.tables.values():
            overlay.forget_fresh()
            overlay.runs.seal()
        self._marks.append(_Mark(len(self._undo), locks))

    def release_level(self) -> None:
        self._marks.pop()
        if not self._marks:
            self._undo.clear()

    def roll_back_level(self) -> tuple[int, list[CatalogChanges | None]]:
        """Undo the innermost level: how many locks were held before it, and definitions to restore in this order."""
        mark = self._marks.pop()
        definitions: list[CatalogChanges | None] = []
        while len(self._undo) > mark.undo:
            entry = self._undo.pop()
            if entry[0] is None:
                definitions.append(entry[1])
                continue
            overlay, key = entry
            if key is _ALTERED:
                self.tables[overlay.table.id] = overlay
                continue
            if isinstance(key, Segment):
                overlay.runs.drop(key)
                continue
            if isinstance(key, int):
                overlay.runs.drop_part(key)
                continue
            before: Version | None = overlay.rows[key][2]
            if before is None:
                overlay.forget(key)
            else:
                overlay.rows[key] = before
        for overlay in self.tables.values():
            overlay.forget_fresh()
        return mark.locks, definitions

    def clear(self) -> None:
        for overlay in self.tables.values():
            overlay.runs.clear()
        self.tables.clear()
        self._undo.clear()
        self._marks.clear()
