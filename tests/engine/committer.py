"""A process that commits in a loop and says so after each commit, until it is killed: ``committer.py DIRECTORY``.

Commit ``n`` of ``session`` writes WIDTH rows (session, n, place), names its transaction, and every tenth one deletes
the rows of the commit before it, too.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from kalamdb import types
from kalamdb.txn.api import ColumnDef, TableDef
from kalamdb.txn.engine import StoreEngine, open_engine

WIDTH = 5
SESSIONS = 4
INT8 = types.by_name("int8")


def definition() -> TableDef:
    columns = tuple(ColumnDef(number, name, INT8, "int8", not_null=True)
                    for number, name in enumerate(("session", "commit", "place"), 1))
    return TableDef(0, "n", "log", "shared", columns, (0, 1, 2), "log_pkey", (), {})


async def table_of(engine: StoreEngine) -> TableDef:
    found = engine.catalog.by_name.get(("n", "log"))
    if found is None:
        one = engine.begin(None)
        await one.create_namespace("n")
        found = await one.create_table(definition())
        await one.commit()
    return found


async def session(engine: StoreEngine, table: TableDef, number: int, commit: int) -> None:
    while True:
        commit += 1
        one = engine.begin(None, txn_id=f"{number}.{commit}")
        await one.insert(table, [("", (number, commit, place)) for place in range(WIDTH)])
        if commit % 10 == 0:
            await one.delete(table, [("", (number, commit - 1, place)) for place in range(WIDTH)])
        await one.commit()
        os.write(1, f"{number} {commit}\n".encode())


async def main(directory: Path) -> None:
    engine = await open_engine(directory)
    table = await table_of(engine)
    last: dict[int, int] = dict(engine.live.query(f"SELECT c1, max(c2) FROM h_{table.id} GROUP BY c1", ()))
    await asyncio.gather(*[session(engine, table, number, last.get(number, 0)) for number in range(SESSIONS)])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
