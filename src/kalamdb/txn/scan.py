"""Scans: committed rows of a snapshot merged with the transaction's own, in order of tenant and key.

Own rows hide the committed ones of their keys. Those that a scan's condition is to judge are put into an in-memory
SQLite table of the same shape, so that one evaluator decides for both.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from kalamdb.api import Row
from kalamdb.store.hot import SEQ, TURN_ROWS, HotSnapshot, Layout, Stop, open_scratch, scan_sql
from kalamdb.txn.api import Scan
from kalamdb.txn.overlay import RowKey, Version


class StoreScan:
    """``kalamdb.txn.api.ScanCursor``. ``own``: the table's overlay items as of the scan's opening, and its position."""

    def __init__(self, snapshot: HotSnapshot, layout: Layout, scan: Scan, since: int | None,
                 own: Sequence[tuple[RowKey, Version]] = (), position: int = 0) -> None:
        self._snapshot = snapshot
        self._reader = snapshot.reader
        self._layout = layout
        self._scan = scan
        self._since = since
        self._own = own
        self._position = position
        self._stop = Stop()
        self._cursor: Any = None
        self._parts: Iterator[list[Row]] | None = None
        self._left: list[Row] = []  # of the last part

    def fetch(self, n: int) -> list[Row]:
        self._stop.check()
        if self._parts is None:
            self._parts = self._merged() if self._own else self._committed()
        rows, self._left = self._left, []
        while len(rows) < n:
            part = next(self._parts, None)
            if part is None:
                return rows
            if rows:
                rows.extend(part)
            else:
                rows = part
        self._left = rows[n:]
        return rows[:n] if self._left else rows

    def interrupt(self) -> None:
        self._stop.asked = True

    def close(self) -> None:
        cursor, self._cursor = self._cursor, None
        self._parts, self._left = iter(()), []
        if cursor is not None:
            self._reader.finish(cursor)

    # ---------- what comes out ----------
    def _identity(self) -> tuple[int, ...]:
        """Positions of the key's columns, put before the wanted ones where the rows' ids are asked for."""
        return self._layout.key if self._scan.with_id else ()

    def _finish(self, row: Row) -> Row:
        """(tenant, key parts …, columns …) → (tenant, key, columns …)."""
        parts = 1 + max(1, len(self._layout.key))
        return (row[0], row[1:parts], *row[parts:])

    def _outputs(self) -> tuple[list[str], int]:
        """SQLite's outputs, and how many come before the scan's columns."""
        layout, scan = self._layout, self._scan
        head: list[str] = []
        if scan.with_id:
            head = ["_userid", *[layout.columns[place] for place in layout.key]]
            if not layout.key:
                head.append("k")
        return head + [layout.output(position) for position in scan.columns], len(head)

    # ---------- committed rows alone ----------
    def _committed(self) -> Iterator[list[Row]]:
        outputs, head = self._outputs()
        statement = scan_sql(self._layout, self._scan, outputs or ["1"], self._since, limit=True)
        if statement is None:
            return
        load = self._loader(head)
        for rows in self._chunks(*statement):
            if not outputs:
                yield [()] * len(rows)
                continue
            loaded = rows if load is None else load(rows)
            yield [self._finish(row) for row in loaded] if head else loaded

    def _loader(self, head: int) -> Any:
        positions = (*self._identity(), *self._scan.columns)
        if head and self._layout.key:
            return self._layout.loader(positions, 1)
        return self._layout.loader(self._scan.columns, head)

    def _chunks(self, text: str, values: tuple[Any, ...]) -> Iterator[list[Row]]:
        self._cursor = self._snapshot.reader.execute(text, values, self._stop)
        while self._cursor is not None:
            rows = self._snapshot.reader.rows(self._cursor, TURN_ROWS, self._stop)
            if not rows:
                return
            yield rows

    # ---------- merged with own rows ----------
    def _merged(self) -> Iterator[list[Row]]:
        hidden, own = self._split_own()
        outputs, head = self._outputs()
        statement = scan_sql(self._layout, self._scan, ["_userid", "k", *outputs], self._since, limit=False)
        mine = self._judged(own, outputs)
        plain = 3 if self._layout.key and head else 2 + head
        load = self._layout.loader((*self._identity(), *self._scan.columns), plain)
        merged = islice(_merge(self._visible(statement, hidden), mine), self._scan.limit)
        while rows := list(islice(merged, TURN_ROWS)):
            loaded = rows if load is None else load(rows)
            yield [self._finish(row[2:]) for row in loaded] if head else [row[2:] for row in loaded]

    def _split_own(self) -> tuple[set[RowKey], list[tuple[RowKey, Row]]]:
        """Keys whose committed rows are hidden, and own rows that may qualify."""
        hidden: set[RowKey] = set()
        own: list[tuple[RowKey, Row]] = []
        fits = _range_check(self._layout, self._scan)
        tenant = self._scan.tenant
        for key, head in self._own:
            version: Version | None = head
            while version is not None and version[0] > self._position:
                version = version[2]
            if version is None or (tenant is not None and key[0] != tenant):
                continue
            hidden.add(key)
            row = version[1]
            if row is not None and fits(key[1]):
                own.append((key, row))
        return hidden, own

    def _visible(self, statement: tuple[str, tuple[Any, ...]] | None, hidden: set[RowKey]) -> Iterator[Row]:
        if statement is None:
            return
        for rows in self._chunks(*statement):
            for row in rows:
                if (row[0], row[1]) not in hidden:
                    yield row

    def _judged(self, own: list[tuple[RowKey, Row]], outputs: list[str]) -> list[Row]:
        """Own rows that satisfy the condition: (tenant, encoded key, *outputs), in order."""
        if not own:
            return []
        if self._scan.where is None:
            rows = [self._projected(key, row) for key, row in own]
        else:
            rows = self._evaluated(own, outputs)
        rows.sort(key=lambda row: row[:2])
        return rows

    def _projected(self, key: RowKey, row: Row) -> Row:
        layout, scan = self._layout, self._scan
        values: list[Any] = [key[0], key[1]]
        if scan.with_id:
            values.append(key[0])
            values += [row[place] for place in layout.key] if layout.key else [key[1]]
        for position in scan.columns:
            if position >= 0:
                values.append(row[position])
            else:
                values.append(None if position == SEQ or layout.shared else key[0])
        return tuple(values)

    def _evaluated(self, own: list[tuple[RowKey, Row]], outputs: list[str]) -> list[Row]:
        layout = self._layout
        connection = open_scratch()
        try:
            connection.execute(layout.create.replace("_seq INTEGER NOT NULL", "_seq INTEGER"))
            connection.execute("BEGIN")
            connection.executemany(layout.put, ((*key, None, *layout.stored(row)) for key, row in own))
            text = f"SELECT {', '.join(['_userid', 'k', *outputs])} FROM {layout.table} WHERE {self._scan.where}"
            return connection.execute(text, self._scan.params).fetchall()
        finally:
            connection.close(True)


def _merge(committed: Iterator[Row], own: list[Row]) -> Iterator[Row]:
    """Two sources in order of their first two fields."""
    place = 0
    for row in committed:
        while place < len(own) and own[place][:2] < row[:2]:
            yield own[place]
            place += 1
        yield row
    yield from own[place:]


_TESTS = {"=": operator.eq, ">=": operator.ge, ">": operator.gt, "<": operator.lt, "<=": operator.le}


def _range_check(layout: Layout, scan: Scan) -> Any:
    bounds, possible = layout.codec.bounds(scan.key_prefix, scan.low, scan.high)
    if not possible:
        return lambda k: False
    tests = [(_TESTS[sign], value) for sign, value in bounds]
    if not tests:
        return lambda k: True
    return lambda k: all(test(k, value) for test, value in tests)
