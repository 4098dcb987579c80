"""The engine in the small, which the engine is held against: committed rows in a dict, own writes in another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kalamdb.api import Row
from kalamdb.txn.api import RowId

#: a committed row and its number; the numbers are only compared for equality
Rows = dict[RowId, tuple[Row, int]]
Own = dict[RowId, Row | None]


class Conflict(Exception):
    """The engine has to raise this SQLSTATE."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@dataclass
class View:
    """What a snapshot shows."""

    base: Rows
    own: Own
    depth: int  # how many savepoints there were

    def rows(self) -> dict[RowId, Row]:
        found = {key: row for key, (row, _) in self.base.items()}
        for key, row in self.own.items():
            if row is None:
                found.pop(key, None)
            else:
                found[key] = row
        return found


@dataclass
class Model:
    """One table. ``canon`` makes the key by which rows are one and the same."""

    canon: Callable[[RowId], RowId]
    committed: Rows = field(default_factory=dict)
    transactions: list[ModelTransaction] = field(default_factory=list)
    commits: int = 0

    def alter(self, change: Callable[[Row], Row]) -> None:
        """Every row of every snapshot; nobody has rows of its own."""
        changed: dict[int, Rows] = {}

        def altered(rows: Rows) -> Rows:
            if id(rows) not in changed:
                changed[id(rows)] = {key: (change(row), number) for key, (row, number) in rows.items()}
            return changed[id(rows)]

        before = self.committed, [(one, one.base, [view.base for view in one.views.values()])
                                  for one in self.transactions]
        self.committed = altered(before[0])
        for one, base, views in before[1]:
            assert not one.own
            one.base = None if base is None else altered(base)
            for view, rows in zip(one.views.values(), views, strict=True):
                view.base = altered(rows)

    def holder(self, key: RowId) -> ModelTransaction | None:
        return next((one for one in self.transactions if key in one.locks), None)


class ModelTransaction:
    def __init__(self, model: Model, *, repeatable: bool) -> None:
        self.model = model
        self.repeatable = repeatable
        self.base: Rows | None = None
        self.own: Own = {}
        self.locks: list[RowId] = []
        self.marks: list[tuple[Own, int]] = []
        self.views: dict[int, View] = {}
        model.transactions.append(self)

    @property
    def level(self) -> int:
        return len(self.marks) + 1

    # ---------- reading ----------
    def fix(self) -> Rows:
        if not self.repeatable:
            return dict(self.model.committed)
        if self.base is None:
            self.base = dict(self.model.committed)
        return self.base

    def view(self, number: int) -> View:
        if number in self.views:
            return self.views[number]
        made = View(self.fix(), dict(self.own), len(self.marks))
        if number:
            self.views[number] = made
        return made

    # ---------- writing; the caller has looked that nobody else holds the locks ----------
    def lock(self, key: RowId) -> None:
        if key not in self.locks:
            self.locks.append(key)

    def exists(self, key: RowId) -> bool:
        if key in self.own:
            return self.own[key] is not None
        return key in self.model.committed

    def insert(self, key: RowId, row: Row, *, skip: bool) -> int:
        self.fix()
        self.lock(key)
        if not self.exists(key):
            self.own[key] = row
            return 1
        if not skip:
            raise Conflict("23505")
        if self.base is not None and key not in self.own and key not in self.base:
            raise Conflict("40001")
        return 0

    def newest(self, key: RowId) -> Row | None:
        if key in self.own:
            return self.own[key]
        now = self.model.committed.get(key)
        if self.base is not None:
            seen = self.base.get(key)
            if seen is None:
                return None
            if now is None or now[1] != seen[1]:
                raise Conflict("40001")
        return None if now is None else now[0]

    def change(self, key: RowId, moved: RowId, row: Callable[[Row], Row]) -> int:
        self.fix()
        self.lock(key)
        before = self.newest(key)
        if before is None:
            return 0
        if moved != key:
            self.lock(moved)
            if self.exists(moved):
                raise Conflict("23505")
            self.own[key] = None
        self.own[moved] = row(before)
        return 1

    def delete(self, key: RowId) -> int:
        self.fix()
        self.lock(key)
        if self.newest(key) is None:
            return 0
        self.own[key] = None
        return 1

    # ---------- savepoints and the end ----------
    def set_level(self, floor: int, level: int) -> None:
        del self.marks[max(1, floor) - 1:]
        for view in self.views.values():
            view.depth = min(view.depth, len(self.marks))
        while self.level < level:
            self.marks.append((dict(self.own), len(self.locks)))

    def rollback_to(self, level: int) -> None:
        while self.level >= max(2, level):
            self.own, locks = self.marks.pop()
            del self.locks[locks:]
            for view in self.views.values():  # what is undone is nobody's to see
                if view.depth > len(self.marks):
                    view.own, view.depth = dict(self.own), len(self.marks)

    def commit(self) -> None:
        self.model.commits += 1
        for key, row in self.own.items():
            if row is None:
                self.model.committed.pop(key, None)
            else:
                self.model.committed[key] = (row, self.model.commits)
        self.end()

    def end(self) -> None:
        self.locks.clear()
        self.model.transactions.remove(self)


def plain(value: Any) -> Any:
    """A value that equals itself exactly: NaN and the zeros told apart."""
    if isinstance(value, tuple):
        return tuple(plain(part) for part in value)
    return repr(value) if isinstance(value, float) else value
