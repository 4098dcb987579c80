"""ON CONFLICT: DO NOTHING, and DO UPDATE on the table's key, one row after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlglot import exp

from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.sql.bind import Params, identifier
from kalamdb.sql.run import Run
from kalamdb.txn.api import TableDef

if TYPE_CHECKING:
    from kalamdb.sql.update import Assignments


@dataclass(slots=True)
class Upsert:
    table: TableDef
    assignments: Assignments

    async def run(self, run: Run, batch: Sequence[tuple[str, Row]]) -> list[tuple[str, Row]]:
        """The rows as they stand afterwards, those left alone by the condition not among them."""
        done: list[tuple[str, Row]] = []
        touched: set[tuple[str, Any]] = set()
        for tenant, row in batch:
            key = tuple(row[place] for place in self.table.key)
            if await run.transaction.insert(self.table, [(tenant, row)], skip_conflicts=True):
                touched.add((tenant, key))
                done.append((tenant, row))
                continue
            if (tenant, key) in touched:
                raise KalamError(
                    "21000", "ON CONFLICT DO UPDATE command cannot affect row a second time",
                    hint="Ensure that no rows proposed for insertion within the same command have duplicate "
                         "constrained values.",
                )
            touched.add((tenant, key))
            changed = await self._change(run, tenant, key, row)
            if changed is not None:
                done.append((tenant, changed))
        return done

    async def _change(self, run: Run, tenant: str, key: tuple[Any, ...], proposed: Row) -> Row | None:
        snapshot = run.fresh_snapshot()
        found = (await run.transaction.lock(snapshot, self.table, [(tenant, key)], timeout_ms=run.lock_timeout))[0]
        if found is None:  # gone between the two steps: the next attempt inserts
            return proposed if await run.transaction.insert(self.table, [(tenant, proposed)]) else None
        changes = await self.assignments.values(run, [found], [(*proposed, None, tenant)])
        if not changes:
            return None
        _, values = changes[0]
        await run.transaction.update(self.table, [((tenant, key), values)])
        whole = list(found[:-2])
        for position, value in values.items():
            whole[position] = value
        return tuple(whole)

    @classmethod
    def plan(cls, clause: exp.OnConflict, table: TableDef, params: Params,
             plan_query: Callable[[exp.Expression], Any]) -> tuple[bool, Upsert | None]:
        """(DO NOTHING?, DO UPDATE)."""
        target = [identifier(item.this.this if isinstance(item, exp.Ordered) else item.this)
                  for item in clause.args.get("conflict_keys") or []]
        key = [table.columns[place].name for place in table.key]
        constraint = clause.args.get("constraint")
        if (target and set(target) != set(key)) or (
            constraint is not None and identifier(constraint) != table.key_constraint
        ):
            raise KalamError("42P10", "there is no unique or exclusion constraint matching the ON CONFLICT "
                                      "specification")
        if "UPDATE" not in str(clause.args.get("action") or "").upper():
            return True, None
        if not target and constraint is None:
            raise KalamError("42601", "ON CONFLICT DO UPDATE requires inference specification or constraint name")
        from kalamdb.sql.update import plan_assignments

        items = list(clause.expressions)
        where = clause.args.get("where")
        return False, cls(table, plan_assignments(items, table, params, plan_query, None if where is None else
                                                  where.this, excluded=True))
