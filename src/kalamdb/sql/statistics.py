"""Statistics for planners: SAMPLE, SHOW COLUMN WIDTHS, SHOW TABLE SIZE.

Rows are sampled of shared tables only, for accounts that may read them. Of user and stream tables, counts and average
widths over all tenants are told and no values, so these need no tenant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kalamdb import types
from kalamdb.api import Column, Result, Row
from kalamdb.errors import KalamError
from kalamdb.sql import access
from kalamdb.sql.cursors import ListSource
from kalamdb.sql.run import MAX_FETCH, Run, answer
from kalamdb.sql.statements import Name, SampleRows, ShowColumnWidths, ShowTableSize
from kalamdb.sql.storage import STATS, WIDTHS
from kalamdb.sql.system import check_writable, is_system
from kalamdb.txn.api import Sample, Sampled, TableDef
from kalamdb.types import PgType

_TEXT, _INT8 = types.by_name("text"), types.by_name("int8")
#: blocks of cold rows (32,768 each) that each method reads at most; None: all
METHODS: dict[str, int | None] = {"auto": 256, "system": 64, "bernoulli": None, "random": None}
#: rows that widths are averaged over, and the blocks they may come from
WIDTH_ROWS, WIDTH_BLOCKS = 3000, 16
#: a value of up to so many bytes has a header of one byte in PostgreSQL, a longer one of four
SHORT = 126


def _table(run: Run, name: Name) -> TableDef:
    table = access.resolve(run.transaction.catalog, name, run.path)
    check_writable(table)  # those of the namespace system have no statistics
    if not access.may_read(run.account, table):
        access.read_tenant(run.account, table, run.tenant)
    return table


async def _draw(run: Run, sample: Sample) -> Sampled:
    cursor = run.transaction.sample(run.snapshot, sample)
    return await run.workers.run(run.session, cursor.interrupt, cursor.draw)


# ---------- SAMPLE ----------
async def sample_rows(statement: SampleRows, run: Run) -> Result:
    """The rows, and the tag "SAMPLE rows total", with a cursor's name where more rows follow."""
    if run.context is None or run.exec:
        raise KalamError("0A000", "SAMPLE is for PostgreSQL's ANALYZE",
                         hint="SELECT ... ORDER BY random() LIMIT n gives random rows.")
    table = _table(run, statement.table)
    if table.kind != "shared":
        raise KalamError("42809", f'"{table.name}" is a {table.kind} table',
                         detail="Samples would show one tenant's values to another.",
                         hint="SHOW COLUMN WIDTHS tells what statistics there are.",
                         schema=table.namespace, table=table.name)
    places, columns = _columns(table, statement.columns)
    found = await _draw(run, Sample(table, places, min(statement.rows, MAX_FETCH), METHODS[statement.method]))
    result = await answer(run, ListSource(list(found.rows)), columns)
    result.tag = f"SAMPLE {result.tag.split()[1]} {found.total}" + (f" {result.cursor}" if result.cursor else "")
    return result


def _columns(table: TableDef, names: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[Column, ...]]:
    known = {column.name: place for place, column in enumerate(table.columns)} | {"_seq": -1, "_userid": -2}
    places: list[int] = []
    columns: list[Column] = []
    for name in names:
        place = known.get(name)
        if place is None:
            raise KalamError("42703", f'column "{name}" of relation "{table.name}" does not exist',
                             schema=table.namespace, table=table.name)
        places.append(place)
        if place >= 0:
            columns.append(Column(name, table.columns[place].type, table.columns[place].typmod))
        else:
            columns.append(Column(name, _INT8 if place == -1 else _TEXT))
    return tuple(places), tuple(columns)


# ---------- SHOW COLUMN WIDTHS ----------
def _with_header(length: int) -> int:
    return length + (1 if length <= SHORT else 4)


def _numeric_width(text: str) -> int:
    whole, _, fraction = text.lstrip("+-").partition(".")
    digits = (len(whole.lstrip("0")) + 3) // 4 + (len(fraction.rstrip("0")) + 3) // 4
    return _with_header(2 + 2 * digits)


def _width_of(kind: PgType) -> Callable[[Any], int]:
    """Bytes that a storage value takes in PostgreSQL."""
    match kind.layout:
        case "utf8" if kind.name == "numeric":
            return _numeric_width
        case "utf8":
            return lambda value: _with_header(len(value.encode()))
        case "binary" if kind.name != "uuid":
            return lambda value: _with_header(len(value))
        case layout:
            fixed = 16 if layout == "binary" else _FIXED[layout]
            return lambda value: fixed


_FIXED = {"bool": 1, "int16": 2, "int32": 4, "int64": 8, "float32": 4, "float64": 8}


async def column_widths(statement: ShowColumnWidths, run: Run) -> Result:
    """(column, average width of its values that are not NULL, rows of the table); 0: there are no such values."""
    table = _table(run, statement.table)
    places = tuple(range(len(table.columns)))
    found = await _draw(run, Sample(table, places, WIDTH_ROWS, WIDTH_BLOCKS))
    rows: list[Row] = []
    for place, column in enumerate(table.columns):
        measure = _width_of(column.type)
        widths = [measure(row[place]) for row in found.rows if row[place] is not None]
        rows.append((column.name, round(sum(widths) / len(widths)) if widths else 0, found.total))
    return Result("SHOW", columns=WIDTHS, rows=rows)


# ---------- SHOW TABLE SIZE ----------
async def table_size(statement: ShowTableSize, run: Run) -> Result:
    """Of a tenant's rows only where the account may act for the tenant, of the namespace system nothing: a planner
    asks."""
    if is_system(access.resolve(run.transaction.catalog, statement.table, run.path)):
        return Result("SHOW", columns=STATS, rows=[])
    table = _table(run, statement.table)
    tenant = run.tenant
    try:
        if tenant:
            access.check_tenant(run.account, tenant)
    except KalamError:
        tenant = None
    one = None if not tenant or tenant == access.EVERYONE else tenant
    facts = run.engine.table_size_nowait(table, one)
    if facts is None:
        facts = await run.workers.run(run.session, lambda: None, lambda: run.engine.table_size(table, one))
    return Result("SHOW", columns=STATS, rows=list(facts.items()))
