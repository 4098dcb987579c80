"""``make bench``: KalamDB against postgres_fdw, same machine, same run, alternating rounds.

A figure is the ratio of the medians. Needs a PostgreSQL that has postgres_fdw and pgbench (Debian's 15). Prints a
table and writes it as JSON. Exit code 2 where the comparison cannot run here, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from rich.console import Console
from rich.table import Table as View

from kalamdb.bench import engine
from kalamdb.bench.work import COLUMNS, ROW, WORKS, Place, Work

#: rows of one transaction when the tables are filled
BATCH = 50_000
SIDES = {"kalam": "bench_kalam", "postgres_fdw": "bench_fdw", "heap": "bench_heap"}


def kalam(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("kalam")), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(2)
    return done.stdout


def prepare(dsn: str, rows: int) -> None:
    """The three tables with the same rows, and the second database behind postgres_fdw."""
    info = psycopg.conninfo.conninfo_to_dict(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS bench_remote")
        connection.execute("CREATE DATABASE bench_remote")
    remote = psycopg.conninfo.make_conninfo(dsn, dbname="bench_remote")
    with psycopg.connect(remote, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE bench_fdw ({COLUMNS}, PRIMARY KEY (id))")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET client_min_messages = warning")
        for statement in (
            "CREATE EXTENSION IF NOT EXISTS postgres_fdw",
            "DROP SERVER IF EXISTS bench_loopback CASCADE",
            "DROP TABLE IF EXISTS bench_kalam, bench_heap",
            f"CREATE TABLE bench_heap ({COLUMNS}, PRIMARY KEY (id))",
            f"CREATE TABLE bench_kalam ({COLUMNS}, PRIMARY KEY (id)) USING kalamdb"
            " WITH (flush_policy = 'rows:1000000000')",
        ):
            connection.execute(statement)
        connection.execute(
            sql.SQL(
                "CREATE SERVER bench_loopback FOREIGN DATA WRAPPER postgres_fdw"
                " OPTIONS (host {}, port {}, dbname 'bench_remote', fetch_size '10000')"
            ).format(str(info["host"]), str(info["port"]))
        )
        connection.execute(
            sql.SQL("CREATE USER MAPPING FOR CURRENT_USER SERVER bench_loopback OPTIONS (user {}, password {})").format(
                str(info["user"]), str(info["password"])
            )
        )
        connection.execute(f"CREATE FOREIGN TABLE bench_fdw ({COLUMNS}) SERVER bench_loopback"
                           " OPTIONS (table_name 'bench_fdw', batch_size '1000')")
        source = ROW.format(owners=1000)
        for table in SIDES.values():
            for first in range(1, rows + 1, BATCH):  # more at once would go straight to segments
                last = min(first + BATCH - 1, rows)
                connection.execute(f"INSERT INTO {table} (id, owner, a, b, c) "
                                   f"SELECT {source} FROM generate_series({first}, {last}) AS i")
        connection.execute("ANALYZE bench_heap")
    with psycopg.connect(remote, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE bench_fdw")


def measure(work: Work, place: Place, rounds: int) -> dict[str, Any]:
    """Alternate the sides; medians, and the ratio to postgres_fdw."""
    figures: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side, table in SIDES.items():
            figures[side].append(work.measure(place, table))
    medians = {side: statistics.median(values) for side, values in figures.items()}
    return {
        "work": work.name, "unit": work.unit, "must": work.must, "aim": work.aim,
        "ratio": medians["kalam"] / medians["postgres_fdw"], "medians": medians, "rounds": figures,
    }


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = (line for line in info.read_text().splitlines() if line.startswith("model name"))
        names = [line.split(":", 1)[1].strip() for line in models]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1), "python": platform.python_version()}


def show(console: Console, results: list[dict[str, Any]]) -> None:
    view = View("work", "KalamDB", "postgres_fdw", "heap", "unit", "ratio", "must", "aim", box=None)
    for row in results:
        reached = "green" if row["ratio"] >= row["must"] else "red"
        medians = row["medians"]
        view.add_row(
            row["work"], *(f"{medians[side]:,.0f}" for side in SIDES), row["unit"],
            f"[{reached}]{row['ratio']:.2f}[/{reached}]", f"{row['must']:g}", f"{row['aim']:g}",
        )
    console.print(view)


def show_engine(console: Console, results: list[dict[str, Any]]) -> None:
    view = View("the engine by itself", "figure", "unit", box=None)
    for row in results:
        view.add_row(row["work"], f"{row['median']:,.0f}", row["unit"])
    console.print(view)


def flush(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT kalam_flush('bench_kalam')")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kalamdb.bench", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(".kalam-bench"), help="data directory of the stack")
    parser.add_argument("--postgres", default="/usr/lib/postgresql/15/bin/pg_config",
                        help="pg_config of a PostgreSQL with postgres_fdw and pgbench")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=5, help="length of one pgbench run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("bench-results.json"), help="where to write the figures")
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    options = parser.parse_args()
    console = Console(stderr=False)
    if not Path(options.postgres).exists():
        print(f"no {options.postgres}: the comparison needs a PostgreSQL with postgres_fdw (Debian: postgresql-15)")
        return 2
    bindir = subprocess.run([options.postgres, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
    stack = json.loads(kalam("up", "--data", str(options.data), "--postgres", options.postgres, "--json"))
    try:
        console.print(f"loading {options.rows:,} rows on each side")
        prepare(stack["dsn"], options.rows)
        place = Place(stack["dsn"], Path(bindir) / "pgbench", options.rows, options.seconds)
        results = []
        for cold in (False, True):
            if cold:
                flush(stack["dsn"])
            for work in [work for work in WORKS if work.cold is cold]:
                console.print(f"measuring {work.name}")
                results.append(measure(work, place, options.rounds))
        console.print("measuring the engine by itself")
        rpc = psycopg.conninfo.make_conninfo(host=stack["rpc"]["host"], port=stack["rpc"]["port"], user="kalam",
                                             dbname="kalam", sslmode="disable")
        own = engine.measure(rpc, options.rows, options.seconds, options.rounds)
    finally:
        if not options.keep:
            kalam("down", "--data", str(options.data))
    show(console, results)
    show_engine(console, own)
    whole = {"machine": machine(), "rows": options.rows, "results": results, "engine": own}
    options.json.write_text(json.dumps(whole, indent=2))
    console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
