"""What SHOW CAPABILITIES lists is PostgreSQL's: each template has the result of the operator or function it stands for.

PostgreSQL is asked by the name in pg_catalog and the types, the server by the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from kalamdb.sql.capabilities import CapabilityRow, aggregates, capabilities, comparisons, scalars, windows
from support.postgres import Postgres
from support.server import KalamServer

from .arguments import arguments
from .client import Client
from .proof import Sides, agree


@pytest.fixture(scope="module")
def sides(server: KalamServer, postgres: Postgres) -> Iterator[Sides]:
    sides = Sides(Client(postgres.dsn()), Client(server.dsn()))
    yield sides
    sides.close()


def locally(row: CapabilityRow, columns: list[str]) -> str:
    """The call in PostgreSQL, whose name is nobody else's."""
    kind, name, args, _, _ = row
    typed = [f"{column}::{type_}" for column, type_ in zip(columns, args.split(","), strict=True)]
    if kind == "operator":
        return f"({' '.join(typed[:-1])} OPERATOR(pg_catalog.{name}) {typed[-1]})"
    return f'pg_catalog."{name}"({", ".join(typed)})'


def remotely(row: CapabilityRow, columns: list[str]) -> str:
    return re.sub(r"\$(\d)", lambda found: f'"{columns[int(found.group(1)) - 1]}"', row[3])


SCALARS = [*comparisons(), *scalars()]


@pytest.mark.parametrize("row", SCALARS, ids=lambda row: f"{row[1]}({row[2]})")
def test_scalars(row: CapabilityRow, sides: Sides) -> None:
    kinds = row[2].split(",")
    columns = list("abcd"[: len(kinds)])
    agree(sides, [(locally(row, columns), remotely(row, columns))], columns, arguments(row[1], kinds))


def test_names_are_those_of_postgresql(sides: Sides) -> None:
    for kind, name, args, _, _ in [*SCALARS, *aggregates(), *windows()]:
        if kind == "operator":
            left, _, right = args.rpartition(",")
            found = sides.pg.value("SELECT to_regoperator($1)", f"pg_catalog.{name}({left or 'NONE'},{right})")
        else:
            typed = ",".join(f'"{each}"' for each in args.split(",") if each)
            found = sides.pg.value("SELECT to_regprocedure($1)", f'pg_catalog."{name}"({typed})')
        assert found is not None, (kind, name, args)


def test_the_list(sides: Sides) -> None:
    rows = [tuple(row) for row in sides.kalam.rows("SHOW CAPABILITIES")]
    assert len(rows) == len({row[:3] for row in rows}), "an entry twice"
    listed = [row for row in rows if row[0] not in ("info", "type")]
    assert listed == [row for row in capabilities("", 0) if row[0] not in ("info", "type")]
