"""How large tables are, for planners: cheap enough to be asked while a query is planned.

Hot rows are counted, and counted anew only when enough has been written since to matter. Cold rows are what manifests
say. A row that is in both tiers counts twice: these are estimates. Everything here is for worker threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import apsw
import pyarrow.compute as pc

from kalamdb.store.cold import ColdStore
from kalamdb.store.manifest import Manifest, Segment
from kalamdb.txn.api import TableDef
from kalamdb.txn.clock import now_ms

if TYPE_CHECKING:
    from kalamdb.txn.engine import StoreEngine

#: a count is good until so many rows were written, or a tenth of it
FEW_WRITES = 100
#: and for no longer than this, since rows of streams expire
GOOD_MS = 300_000
#: of one tenant, no more hot rows are counted
MOST_COUNTED = 100_000
FORGET_AT = 1000


@dataclass(frozen=True, slots=True)
class _Hot:
    rows: int
    bytes: int
    written: int  # rows written to the table when they were counted
    version: int  # of its manifest: a flush moves rows
    at: int


class Sizes:
    def __init__(self, engine: StoreEngine, cold: ColdStore) -> None:
        self._engine = engine
        self._cold = cold
        self._hot: dict[int, _Hot] = {}

    def of(self, table: TableDef, tenant: str | None) -> dict[str, int]:
        """``rows`` and ``bytes`` of the table; ``tenant_rows`` where a tenant is named."""
        found = self._cold.tables.get(table.id)
        hot = self._hot_of(table, 0 if found is None else found.version)
        segments = found.segments if found is not None else ()
        sizes = {
            "rows": hot.rows + sum(segment.live for segment in segments),
            "bytes": hot.bytes + sum(segment.bytes for segment in segments),
        }
        if tenant is not None and table.kind != "shared":
            of_tenant = self._hot_rows_of(table, tenant) + self._cold_rows_of(found, tenant)
            sizes["tenant_rows"] = min(sizes["rows"], of_tenant)
        return sizes

    # ---------- hot rows ----------
    def _hot_of(self, table: TableDef, version: int) -> _Hot:
        written, now = self._engine.rows_written(table.id), now_ms()
        found = self._hot.get(table.id)
        if found is not None and now - found.at < GOOD_MS and version == found.version and (
                written - found.written <= max(FEW_WRITES, found.rows // 10)):
            return found
        name = self._engine.layouts.of(table).table
        ((rows,),) = self._query(f"SELECT count(*) FROM {name}{self._alive(table)}", ())
        ((taken,),) = self._query("SELECT sum(pgsize) FROM dbstat WHERE name = ? AND aggregate = 1", (name,))
        if len(self._hot) >= FORGET_AT:
            self._hot.clear()
        found = self._hot[table.id] = _Hot(int(rows), int(taken or 0), written, version, now)
        return found

    def _hot_rows_of(self, table: TableDef, tenant: str) -> int:
        name = self._engine.layouts.of(table).table
        alive = self._alive(table, " AND")
        ((rows,),) = self._query(f"SELECT count(*) FROM (SELECT 1 FROM {name} WHERE _userid = ?{alive} LIMIT ?)",
                                 (tenant, MOST_COUNTED))
        return int(rows)

    def _alive(self, table: TableDef, word: str = " WHERE") -> str:
        return f"{word} _seq > {self._engine.horizon(table)}" if table.kind == "stream" else ""

    def _query(self, text: str, values: tuple[Any, ...]) -> list[Any]:
        snapshot = self._engine.hot_snapshot()
        try:
            return snapshot.query(text, values)
        except apsw.SQLError as error:
            if "no such table" not in str(error):
                raise
            return [(0,)]  # it is not committed
        finally:
            snapshot.close()

    # ---------- cold rows ----------
    def _cold_rows_of(self, found: Manifest | None, tenant: str) -> int:
        return sum(
            self._in_segment(segment, tenant) for segment in (found.segments if found is not None else ())
            if segment.first[0] <= tenant <= segment.last[0]
        )

    def _in_segment(self, segment: Segment, tenant: str) -> int:
        """Only row groups in which the tenant begins or ends have to be looked into."""
        rows = 0
        for number, group in enumerate(self._cold.file(segment).groups):
            if group.first[0] == group.last[0] == tenant:
                rows += group.rows
            elif group.first[0] <= tenant <= group.last[0]:
                owners = self._cold.read(segment, number, ["_userid"]).column("_userid")
                rows += int(pc.sum(pc.equal(owners, tenant)).as_py() or 0)
        return rows * segment.live // segment.rows
