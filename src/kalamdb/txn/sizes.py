"""How large tables are, for planners: cheap enough to be asked while a query is planned.

Hot rows are counted, and counted anew only when enough has been written since to matter. Cold rows are what manifests
say. A row that is in both tiers counts twice: these are estimates. ``at_hand`` is for the event loop, all else for
worker threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import apsw

from kalamdb.store.cold import ColdStore, Room
from kalamdb.store.hot import Layout
from kalamdb.store.manifest import Manifest, Segment
from kalamdb.store.segment import position_of
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
#: the event loop counts no more hot rows of one tenant, and in no more bytes of the table than this
COUNTED_AT_ONCE, BYTES_AT_ONCE = 2000, 256 << 10
#: of so many columns that are texts or blobs the bytes are counted, too
MEASURED = 8
#: of one row group, the tenants of its rows stay decoded if they take no more: the next tenant is looked up there, too
KEPT_BYTES = 4 << 20
FORGET_AT = 1000
#: tenants
FORGET_TENANTS_AT = 10_000


@dataclass(frozen=True, slots=True)
class _Hot:
    rows: int
    bytes: int
    written: int  # rows written to the table when they were counted
    version: int  # of its manifest: a flush moves rows
    at: int


@dataclass(frozen=True, slots=True)
class _Tenant:
    """``rows``: of both tiers; the others as of ``_Hot``. ``more``: that many hot ones at least, counted no further."""

    rows: int
    written: int
    version: int
    at: int
    more: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """``bytes``: of texts and blobs, where they have just been counted; None: unknown."""

    rows: int
    bytes: int | None


class Sizes:
    def __init__(self, engine: StoreEngine, cold: ColdStore) -> None:
        self._engine = engine
        self._cold = cold
        self._hot: dict[int, _Hot] = {}
        self._tenants: dict[tuple[int, str], _Tenant] = {}

    def of(self, table: TableDef, tenant: str | None) -> dict[str, int]:
        """``rows`` and ``bytes`` of the table; ``tenant_rows`` where a tenant is named."""
        found = self._cold.tables.get(table.id)
        hot = self._hot_of(table, found)
        if tenant is None or table.kind == "shared":
            return self._sizes(hot, found, None)
        rows = self._known_tenant(table, found, tenant)
        if rows is None:
            written = self._engine.rows_written(table.id)
            hot_rows, _ = self._hot_rows_of(table, tenant, MOST_COUNTED)
            rows = hot_rows + self._cold_rows_of(found, tenant)
            self._know_tenant(table, found, tenant, rows, written)
        return self._sizes(hot, found, rows)

    def at_hand(self, table: TableDef, tenant: str | None) -> dict[str, int] | None:
        """The same where it takes no longer than reading some rows; None: ask a worker."""
        found = self._cold.tables.get(table.id)
        hot = self._known_hot(table, found)
        if hot is None:
            return None
        if tenant is None or table.kind == "shared":
            return self._sizes(hot, found, None)
        rows = self._known_tenant(table, found, tenant)
        if rows is None:
            most = min(COUNTED_AT_ONCE, BYTES_AT_ONCE * max(hot.rows, 1) // max(hot.bytes, 1))
            counted = self._counted(table, found, tenant, most)
            if counted is None:
                return None
            rows = counted.rows
        return self._sizes(hot, found, rows)

    def few(self, table: TableDef, tenant: str | None, most: int) -> Known | None:
        """What was counted of the rows of this tenant, or of all, if they are no more than that; a tenant's hot ones
        are counted now where they were not. None also where that takes a worker. For the event loop."""
        found = self._cold.tables.get(table.id)
        if tenant is None or table.kind == "shared":
            hot = self._known_hot(table, found)
            known = None if hot is None else Known(self._sizes(hot, found, None)["rows"], None)
        else:
            counted = self._fresh(table, found, tenant)
            if counted is None or (counted.more and counted.rows <= most):
                known = self._counted(table, found, tenant, most + 1, measure=True)
            else:
                known = Known(counted.rows, None)
        return known if known is not None and known.rows <= most else None

    def _counted(self, table: TableDef, found: Manifest | None, tenant: str, most: int, *, measure: bool = False
                 ) -> Known | None:
        """A tenant's rows, if there are fewer and all of them are hot."""
        if found is not None and any(_may_have(segment, tenant) for segment in found.segments):
            return None
        written = self._engine.rows_written(table.id)
        rows, size = self._hot_rows_of(table, tenant, most, measure=measure, here=True)
        self._know_tenant(table, found, tenant, rows, written, more=rows >= most)
        return None if rows >= most else Known(rows, size)

    @staticmethod
    def _sizes(hot: _Hot, found: Manifest | None, tenant_rows: int | None) -> dict[str, int]:
        segments = found.segments if found is not None else ()
        sizes = {
            "rows": hot.rows + sum(segment.live for segment in segments),
            "bytes": hot.bytes + sum(segment.bytes for segment in segments),
        }
        if tenant_rows is not None:
            sizes["tenant_rows"] = min(sizes["rows"], tenant_rows)
        return sizes

    def _known_tenant(self, table: TableDef, found: Manifest | None, tenant: str) -> int | None:
        known = self._fresh(table, found, tenant)
        return None if known is None or known.more else known.rows

    def _fresh(self, table: TableDef, found: Manifest | None, tenant: str) -> _Tenant | None:
        """What is known of a tenant, if too little has been written since to matter."""
        known = self._tenants.get((table.id, tenant))
        if known is None or known.version != _version(found) or now_ms() - known.at >= GOOD_MS or (
                self._engine.rows_written(table.id) - known.written > known.rows // 10):
            return None
        return known

    def _know_tenant(self, table: TableDef, found: Manifest | None, tenant: str, rows: int, written: int, *,
                     more: bool = False) -> None:
        if table.kind == "stream":  # its rows expire
            return
        if len(self._tenants) >= FORGET_TENANTS_AT:
            self._tenants.clear()
        self._tenants[table.id, tenant] = _Tenant(rows, written, _version(found), now_ms(), more)

    # ---------- hot rows ----------
    def _known_hot(self, table: TableDef, found: Manifest | None) -> _Hot | None:
        known = self._hot.get(table.id)
        if known is None or now_ms() - known.at >= GOOD_MS or known.version != _version(found) or (
                self._engine.rows_written(table.id) - known.written > max(FEW_WRITES, known.rows // 10)):
            return None
        return known

    def _hot_of(self, table: TableDef, manifest: Manifest | None) -> _Hot:
        known = self._known_hot(table, manifest)
        if known is not None:
            return known
        written = self._engine.rows_written(table.id)
        name = self._engine.layouts.of(table).table
        ((rows,),) = self._query(f"SELECT count(*) FROM {name}{self._alive(table)}", ())
        ((taken,),) = self._query("SELECT sum(pgsize) FROM dbstat WHERE name = ? AND aggregate = 1", (name,))
        if len(self._hot) >= FORGET_AT:
            self._hot.clear()
        known = self._hot[table.id] = _Hot(int(rows), int(taken or 0), written, _version(manifest), now_ms())
        return known

    def _hot_rows_of(self, table: TableDef, tenant: str, most: int, *, measure: bool = False, here: bool = False
                     ) -> tuple[int, int | None]:
        """Rows, and with ``measure`` bytes as of ``Known``: their lengths lie where rows begin, so no text is read for
        that. ``here``: in the event loop, through a connection that will have in its cache what is then read."""
        layout = self._engine.layouts.of(table)
        measured = measure and len(layout.wide) <= MEASURED
        wide = layout.wide if measured else ()
        size = " + ".join(f"ifnull(octet_length({layout.columns[place]}), 0)" for place in wide) or "0"
        alive = self._alive(table, " AND")
        ((rows, taken),) = self._query(f"SELECT count(*), total(size) FROM (SELECT {size} AS size FROM {layout.table} "
                                       f"WHERE _userid = ?{alive} LIMIT ?)", (tenant, most), (0, 0), layout, here=here)
        return int(rows), int(taken) if measured else None

    def _alive(self, table: TableDef, word: str = " WHERE") -> str:
        return f"{word} _seq > {self._engine.horizon(table)}" if table.kind == "stream" else ""

    def _query(self, text: str, values: tuple[Any, ...], nothing: tuple[int, ...] = (0,), layout: Layout | None = None,
               *, here: bool = False) -> list[Any]:
        """``layout``: whose columns the text names; some may not be committed yet."""
        snapshot = self._engine.hot_snapshot(late=here)
        try:
            return snapshot.query(text, values, layout)
        except apsw.SQLError as error:
            if "no such table" not in str(error):
                raise
            return [nothing]  # it is not committed
        finally:
            snapshot.close()

    # ---------- cold rows ----------
    def _cold_rows_of(self, found: Manifest | None, tenant: str) -> int:
        return sum(
            self._in_segment(segment, tenant) for segment in (found.segments if found is not None else ())
            if _may_have(segment, tenant)
        )

    def _in_segment(self, segment: Segment, tenant: str) -> int:
        """Only row groups in which the tenant begins or ends have to be looked into."""
        rows = 0
        for number, group in enumerate(self._cold.file(segment).groups):
            if group.first[0] == group.last[0] == tenant:
                rows += group.rows
            elif group.first[0] <= tenant <= group.last[0]:
                owners = self._cold.read_kept(segment, number, ["_userid"], Room(KEPT_BYTES))
                rows += position_of(owners, (tenant,), after=True) - position_of(owners, (tenant,))
        return rows * segment.live // segment.rows


def _version(manifest: Manifest | None) -> int:
    return 0 if manifest is None else manifest.version


def _may_have(segment: Segment, tenant: str) -> bool:
    return bool(segment.first[0] <= tenant <= segment.last[0])
