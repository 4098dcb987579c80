"""What is compared: a KalamDB table, a postgres_fdw table, and a local heap table, with the same rows.

The remote side of postgres_fdw is a second database of the same PostgreSQL. Both wrappers reach their side in the same
way, by TCP or through a Unix-domain socket. The heap table is the floor, for reading only. Of the KalamDB side there
are two tables, one with all rows in the hot store and one with all in segments. Columns are the same everywhere:
``(id bigint primary key, owner text, a text, b double precision, c timestamptz)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

COLUMNS = "id bigint NOT NULL, owner text NOT NULL, a text, b double precision, c timestamptz"
OWNERS = 1000
ROW = (
    f"i, 'owner-' || lpad((i % {OWNERS})::text, 4, '0'), 'row number ' || i,"
    " (i::bigint * 7919 % 1000003) / 3.0::float8, timestamptz '2026-01-01' + make_interval(secs => i)"
)
#: rows of one transaction when tables are filled: fewer than the server writes straight to segments
BATCH = 50_000
STAY_HOT = "flush_policy = 'rows:1000000000'"


@dataclass(frozen=True, slots=True)
class Side:
    """``table`` is the one with all rows; ``cold`` the same in segments where there is a difference; ``load`` is made
    anew for each load."""

    name: str
    table: str
    cold: str
    user: str
    load: str
    load_row_by_row: str


KALAM = Side("kalam", "bench_kalam", "bench_kalam_cold", "bench_kalam_user", "bench_kalam_load", "bench_kalam_load")
FDW = Side("postgres_fdw", "bench_fdw", "bench_fdw", "bench_fdw_user", "bench_fdw_load", "bench_fdw_load_default")
HEAP = Side("heap", "bench_heap", "bench_heap", "bench_heap_user", "bench_heap_load", "bench_heap_load")
SIDES = (KALAM, FDW, HEAP)


@dataclass(frozen=True, slots=True)
class Place:
    """Where to measure: connection strings of both databases, pgbench, sizes."""

    dsn: str
    pgbench: Path
    rows: int
    seconds: int

    @property
    def remote(self) -> str:
        """The database behind postgres_fdw."""
        return psycopg.conninfo.make_conninfo(self.dsn, dbname="bench_remote")

    @contextmanager
    def connect(self, *, remote: bool = False) -> Iterator[psycopg.Connection[Any]]:
        with psycopg.connect(self.remote if remote else self.dsn, autocommit=True) as connection:
            connection.execute("SET client_min_messages = warning")
            yield connection


# ---------- the tables ----------
def prepare(place: Place) -> None:
    with place.connect() as connection:
        connection.execute("DROP DATABASE IF EXISTS bench_remote")
        connection.execute("CREATE DATABASE bench_remote")
    with place.connect(remote=True) as remote:
        remote.execute(f"CREATE TABLE bench_fdw ({COLUMNS}, PRIMARY KEY (id))")
        remote.execute(f"CREATE TABLE bench_fdw_user ({COLUMNS}, PRIMARY KEY (owner, id))")
    with place.connect() as connection:
        _loopback(connection, place)
        for table, kind in ((KALAM.table, "shared"), (KALAM.cold, "shared"), (KALAM.user, "user")):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.execute(f"CREATE TABLE {table} ({COLUMNS}, PRIMARY KEY (id))"
                               f" USING kalamdb WITH (type = '{kind}', {STAY_HOT})")
        for table, key in ((HEAP.table, "id"), (HEAP.user, "owner, id")):
            connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.execute(f"CREATE TABLE {table} ({COLUMNS}, PRIMARY KEY ({key}))")
        _fill(connection, place.rows)
        connection.execute(f"SELECT kalam_flush('{KALAM.cold}')")
        connection.execute(f"VACUUM ANALYZE {HEAP.table}, {HEAP.user}")
    with place.connect(remote=True) as remote:
        remote.execute(f"VACUUM ANALYZE {FDW.table}, {FDW.user}")


def lead(place: Place, kalam: str, fdw: str) -> None:
    """Where pg_kalam and postgres_fdw find their servers: hosts, or directories of sockets."""
    with place.connect() as connection:
        for server, host in (("kalam_server", kalam), ("bench_loopback", fdw)):
            connection.execute(sql.SQL("ALTER SERVER {} OPTIONS (SET host {})").format(sql.Identifier(server), host))


def _loopback(connection: psycopg.Connection[Any], place: Place) -> None:
    """postgres_fdw's server and foreign tables; a larger fetch_size and batch_size than its defaults."""
    info = psycopg.conninfo.conninfo_to_dict(place.dsn)
    connection.execute("CREATE EXTENSION IF NOT EXISTS postgres_fdw")
    connection.execute("DROP SERVER IF EXISTS bench_loopback CASCADE")
    connection.execute(
        sql.SQL("CREATE SERVER bench_loopback FOREIGN DATA WRAPPER postgres_fdw"
                " OPTIONS (host {}, port {}, dbname 'bench_remote', fetch_size '10000')"
                ).format(str(info["host"]), str(info["port"])))
    connection.execute(
        sql.SQL("CREATE USER MAPPING FOR CURRENT_USER SERVER bench_loopback OPTIONS (user {}, password {})"
                ).format(str(info["user"]), str(info["password"])))
    for table, remote, options in (
        (FDW.table, FDW.table, ", batch_size '1000'"), (FDW.user, FDW.user, ", batch_size '1000'"),
        (FDW.load, FDW.load, ", batch_size '1000'"), (FDW.load_row_by_row, FDW.load, ""),
    ):
        connection.execute(f"CREATE FOREIGN TABLE {table} ({COLUMNS}) SERVER bench_loopback"
                           f" OPTIONS (table_name '{remote}'{options})")


def _fill(connection: psycopg.Connection[Any], rows: int) -> None:
    for first in range(1, rows + 1, BATCH):
        series = f"FROM generate_series({first}, {min(first + BATCH - 1, rows)}) AS i"
        for table in (KALAM.table, KALAM.cold, FDW.table, FDW.user, HEAP.table, HEAP.user):
            connection.execute(f"INSERT INTO {table} (id, owner, a, b, c) SELECT {ROW} {series}")
        connection.execute("SET kalam.user_id = '*'")
        connection.execute(f"INSERT INTO {KALAM.user} (id, owner, a, b, c, _userid)"
                           f" SELECT s.*, s.owner FROM (SELECT {ROW} {series}) AS s (id, owner, a, b, c)")
        connection.execute("RESET kalam.user_id")


def fresh_load_table(place: Place, side: Side) -> None:
    """An empty table to load into."""
    with place.connect(remote=side is FDW) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {side.load}")
        form = f"USING kalamdb WITH ({STAY_HOT})" if side is KALAM else ""
        connection.execute(f"CREATE TABLE {side.load} ({COLUMNS}, PRIMARY KEY (id)) {form}")


# ---------- the same everywhere? ----------
def check_same(place: Place) -> None:
    """All tables have the same rows, or RuntimeError."""
    rows = "SELECT count(*), sum(hashtextextended(concat_ws('|', id, owner, a, b, c), 0)::numeric) FROM {}"
    found = {}
    with place.connect() as connection:
        connection.execute("SET kalam.user_id = '*'")
        for side in SIDES:
            for table in {side.table, side.cold, side.user}:
                found[table] = connection.execute(rows.format(table)).fetchone()
    if len(set(found.values())) != 1 or found[HEAP.table][0] != place.rows:  # type: ignore[index]
        raise RuntimeError(f"the tables differ: {found}")
