"""ON CONFLICT: DO NOTHING, and DO UPDATE on the table's key.

Rows are worked on in rounds that hold one row of a key at most. A round inserts what is new, locks the rows that are in
the way all at once, and changes those that the condition lets through. What the statement itself has written since its
snapshot may not be touched again (21000).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.order import part_encoder
from kalamdb.sql.bind import Params, identifier
from kalamdb.sql.run import Run
from kalamdb.txn.api import NotInMemory, RowId, TableDef

if TYPE_CHECKING:
    from kalamdb.sql.update import Assignments

Proposed = tuple[str, Row]


@dataclass(slots=True)
class Upsert:
    table: TableDef
    assignments: Assignments

    async def run(self, run: Run, batch: Sequence[Proposed]) -> list[Proposed]:
        """The rows as they stand afterwards, those left alone by the condition not among them."""
        snapshot = run.snapshot  # before anything is written
        done: dict[int, Proposed] = {}
        for places in self._rounds(batch):
            while places:
                conflicts: list[int] = []
                rows = [batch[place] for place in places]
                await run.transaction.insert(self.table, rows, skip_conflicts=True, conflicts=conflicts)
                left = set(conflicts)
                done.update((place, row) for at, (place, row) in enumerate(zip(places, rows, strict=True))
                            if at not in left)
                places = await self._change(run, snapshot, batch, [places[at] for at in conflicts], done)
        return [done[place] for place in sorted(done)]

    def _rounds(self, batch: Sequence[Proposed]) -> Iterator[list[int]]:
        """Places of rows, each key once a round."""
        encoders = [part_encoder(self.table.columns[place].type.name) for place in self.table.key]
        times: dict[tuple[str, Any], int] = {}
        rounds: list[list[int]] = []
        for place, (tenant, row) in enumerate(batch):
            parts = zip(encoders, self.table.key, strict=True)
            key = (tenant, tuple(None if row[at] is None else encode(row[at]) for encode, at in parts))
            number = times[key] = times.get(key, -1) + 1
            if number == len(rounds):
                rounds.append([])
            rounds[number].append(place)
        yield from rounds

    def _id(self, proposed: Proposed) -> RowId:
        tenant, row = proposed
        return tenant, tuple(row[place] for place in self.table.key)

    async def _change(self, run: Run, snapshot: Any, batch: Sequence[Proposed], places: list[int],
                      done: dict[int, Proposed]) -> list[int]:
        """Change the rows in the way; places whose row has gone meanwhile."""
        if not places:
            return []
        ids = [self._id(batch[place]) for place in places]
        found = await run.transaction.lock(snapshot, self.table, ids, timeout_ms=run.lock_timeout)
        gone = [place for place, id_, row in zip(places, ids, found, strict=True)
                if row is None and not await self._touched(run, id_)]
        there = [(place, id_, row) for place, id_, row in zip(places, ids, found, strict=True) if row is not None]
        proposed = [(*batch[place][1], None, batch[place][0]) for place, _, _ in there]
        changes = await self.assignments.values(run, [row for _, _, row in there], proposed)
        await run.transaction.update(self.table, [(there[at][1], values) for at, values in changes])
        for at, values in changes:
            place, (tenant, _), row = there[at]
            whole = list(row[:-2])
            for position, value in values.items():
                whole[position] = value
            done[place] = (tenant, tuple(whole))
        return gone

    async def _touched(self, run: Run, id_: RowId) -> bool:
        """A row that cannot be had though it is locked: gone (False), or this statement's own work (21000)."""
        while True:
            try:
                there = run.transaction.get(run.fresh_snapshot(), self.table, *id_)
                break
            except NotInMemory as missing:
                await run.workers.run(run.session, lambda: None, missing.load)
        if there is None:
            return False
        raise KalamError(
            "21000", "ON CONFLICT DO UPDATE command cannot affect row a second time",
            hint="Ensure that no rows proposed for insertion within the same command have duplicate constrained "
                 "values.",
        )


def _check_target(clause: exp.OnConflict, table: TableDef) -> bool:
    """Is there a conflict target? 42P10 unless it is the key."""
    target = {identifier(item.this.this if isinstance(item, exp.Ordered) else item.this)
              for item in clause.args.get("conflict_keys") or []}
    key = {table.columns[place].name for place in table.key}
    constraint = clause.args.get("constraint")
    if (target and target != key) or (constraint is not None and identifier(constraint) != table.key_constraint):
        raise KalamError("42P10", "there is no unique or exclusion constraint matching the ON CONFLICT specification")
    return bool(target) or constraint is not None


def plan_conflict(clause: exp.OnConflict, table: TableDef, params: Params, plan_query: Callable[..., Any],
                  alias: str | None) -> tuple[bool, Upsert | None]:
    """(DO NOTHING?, DO UPDATE)."""
    targeted = _check_target(clause, table)
    if "UPDATE" not in str(clause.args.get("action") or "").upper():
        return True, None
    if not targeted:
        raise KalamError("42601", "ON CONFLICT DO UPDATE requires inference specification or constraint name")
    from kalamdb.sql.update import plan_assignments, refuse_stream_update

    refuse_stream_update(table)
    where = clause.args.get("where")
    assignments = plan_assignments(list(clause.expressions), table, params, plan_query,
                                   None if where is None else where.this, alias=alias, excluded=True)
    return False, Upsert(table, assignments)
