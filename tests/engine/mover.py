"""A process that commits, flushes and compacts all the time until it is killed.

Session ``s`` does commits 1, 2, 3 …, each a function of its number (``apply``), and says so after each. Everything is
small, so that a few hundred rows fill row groups, segments and runs.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pyarrow as pa

import kalamdb.store.hot
import kalamdb.store.segment
import kalamdb.txn.bulk
import kalamdb.txn.tiering
import kalamdb.txn.tiers
from kalamdb import faults, types
from kalamdb.txn.api import ColumnDef, TableDef
from kalamdb.txn.engine import StoreEngine, open_engine

SESSIONS = 3
LARGE = 30
INT8 = types.by_name("int8")
#: key (commit, place) of a session → value
State = dict[tuple[int, int], int]
Row = tuple[str, tuple[int, ...]]  # tenant, values
Step = tuple[str, int, int, int]  # put, set or delete; commit, place, value


def steps(number: int) -> list[Step]:
    """What commit ``number`` of any session does."""
    made: list[Step] = [("put" if number == 1 else "set", 0, 0, number), ("put", number, 0, number)]
    if number > 3 and number % 2:
        made.append(("set", number - 2, 0, -number))
    if number > 4 and number % 5 == 0:
        made.append(("delete", number - 4, 0, 0))
    if number % 7 == 0:
        made += [("put", number, place, place) for place in range(1, LARGE)]
    if number > 7 and number % 7 == 1:  # more than stay in memory are changed, and then deleted
        made += [("set", number - 1, place, number) for place in range(1, LARGE)]
    if number > 7 and number % 7 == 3:
        made += [("delete", number - 3, place, 0) for place in range(1, LARGE)]
    if number > 7 and number % 7 == 4:  # some that were deleted come back
        made += [("put", number - 4, place, -place) for place in range(1, LARGE - 4)]
    return made


def state(commits: int) -> State:
    """A session's rows after so many commits."""
    rows: State = {}
    for number in range(1, commits + 1):
        for verb, commit, place, value in steps(number):
            if verb == "put":
                assert (commit, place) not in rows
            if verb == "delete":
                rows.pop((commit, place), None)
            elif verb == "put" or (commit, place) in rows:
                rows[commit, place] = value
    return rows


def make_small() -> None:
    kalamdb.store.hot.LOG_PAGES = 200
    kalamdb.store.segment.GROUP_ROWS = 16
    kalamdb.txn.bulk.BULK_ROWS = 20
    kalamdb.txn.bulk.RUN_ROWS = 30
    kalamdb.txn.bulk.PART_ROWS = 4
    kalamdb.txn.tiering.CHUNK_ROWS = 8
    kalamdb.txn.tiering.SEGMENT_ROWS = 200
    kalamdb.txn.tiers.CLEAN_ROWS = 5
    kalamdb.txn.tiers.LOOK_EVERY = 0.01


def definition() -> TableDef:
    columns = tuple(ColumnDef(number, name, INT8, "int8", not_null=True)
                    for number, name in enumerate(("session", "number", "place", "value"), 1))
    return TableDef(0, "n", "log", "shared", columns, (0, 1, 2), "log_pkey", (), {})


async def table_of(engine: StoreEngine) -> TableDef:
    found = engine.catalog.by_name.get(("n", "log"))
    if found is None:
        one = engine.begin(None)
        await one.create_namespace("n")
        found = await one.create_table(definition())
        await one.commit()
    return found


def batch_of(rows: list[Row]) -> pa.RecordBatch:
    schema = types.arrow_schema([(column.name, INT8) for column in definition().columns])
    return types.rows_to_arrow([values for _, values in rows], [INT8] * 4, schema)


async def commit(engine: StoreEngine, table: TableDef, session: int, number: int) -> None:
    one = engine.begin(None, txn_id=f"{session}.{number}")
    puts: list[Row] = []
    for verb, first, place, value in steps(number):
        key = (session, first, place)
        if verb == "put":
            puts.append(("", (*key, value)))
        elif verb == "set":
            await one.update(table, [(("", key), {3: value})])
        else:
            await one.delete(table, [("", key)])
    for start in range(0, len(puts), 8):
        part = puts[start : start + 8]
        if number % 2 == 0 or not await one.insert_batch(table, "", batch_of(part)):
            await one.insert(table, part)
    await one.commit()


async def session(engine: StoreEngine, table: TableDef, number: int) -> None:
    one = engine.begin(None)
    row = (await one.lock(one.snapshot(), table, [("", (number, 0, 0))]))[0]
    one.rollback()
    done = 0 if row is None else row[3]
    while True:
        done += 1
        await commit(engine, table, number, done)
        os.write(1, f"{number} {done}\n".encode())


async def move(engine: StoreEngine, table: TableDef) -> None:
    turn = 0
    while True:
        turn += 1
        await engine.flush(table)
        if turn % 3 == 0:
            await engine.compact(table)
        await asyncio.sleep(0)


async def main(directory: Path) -> None:
    make_small()
    engine = await open_engine(directory)
    table = await table_of(engine)
    await asyncio.gather(move(engine, table), *[session(engine, table, number) for number in range(SESSIONS)])


def run(directory: str, fault: str) -> None:
    """In a process of its own; ``fault`` as ``KALAM_FAULT`` has it."""
    faults.arm(fault)
    asyncio.run(main(Path(directory)))
