"""``make bench``: KalamDB against postgres_fdw, same machine, same run, alternating rounds.

Both wrappers reach their servers by TCP, as those on other machines; with ``--unix`` both through Unix-domain sockets.
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
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from rich.console import Console
from rich.table import Table as View

from kalamdb.bench import engine, memory
from kalamdb.bench.sides import SIDES, Place, check_same, lead, prepare
from kalamdb.bench.work import WORKS, Work
from kalamdb.stack.server import may_hold_sockets

ENGINE = "engine"


def kalam(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("kalam")), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(2)
    return done.stdout


def measure(work: Work, place: Place, rounds: int) -> dict[str, Any]:
    """Alternate the sides; medians, and the ratio to postgres_fdw."""
    figures: dict[str, list[float]] = {side.name: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            figures[side.name].append(work.measure(place, side))
    medians = {side: statistics.median(values) for side, values in figures.items()}
    return {
        "key": work.key, "work": work.name, "unit": work.unit, "must": work.must, "aim": work.aim,
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
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory_gib, 1),
            "python": platform.python_version()}


# ---------- showing ----------
def _coloured(text: str, reached: bool) -> str:
    colour = "green" if reached else "red"
    return f"[{colour}]{text}[/{colour}]"


def show(console: Console, results: list[dict[str, Any]]) -> None:
    view = View("work", "KalamDB", "postgres_fdw", "heap", "unit", "ratio", "must", "aim", box=None)
    for row in results:
        digits = 0 if row["medians"]["kalam"] >= 100 else 2
        view.add_row(
            row["work"], *(f"{row['medians'][side.name]:,.{digits}f}" for side in SIDES), row["unit"],
            _coloured(f"{row['ratio']:.2f}", row["ratio"] >= row["must"]), f"{row['must']:g}", f"{row['aim']:g}",
        )
    console.print(view)


def show_engine(console: Console, results: list[dict[str, Any]]) -> None:
    view = View("the engine by itself", "figure", "unit", box=None)
    for row in results:
        view.add_row(row["work"], f"{row['median']:,.0f}", row["unit"])
    console.print(view)


def show_memory(console: Console, results: list[dict[str, Any]]) -> None:
    view = View("memory", "grown by", "must", box=None)
    for row in results:
        view.add_row(row["work"], _coloured(f"{row['grown']:,.0f} MiB", row["grown"] < row["must"]),
                     f"{row['must']} MiB")
    console.print(view)


# ---------- the run ----------
def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kalamdb.bench", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(".kalam-bench"), help="data directory of the stack")
    parser.add_argument("--postgres", default="/usr/lib/postgresql/15/bin/pg_config",
                        help="pg_config of a PostgreSQL with postgres_fdw and pgbench")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=5, help="length of one pgbench run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", metavar="WORK,…", help="some works, with * and ?; they are "
                        f"{', '.join(work.key for work in WORKS)}, and {ENGINE}")
    parser.add_argument("--memory", action="store_true", help="look at memory, too, with 10,000,000 rows: minutes")
    parser.add_argument("--json", type=Path, default=Path("bench-results.json"), help="where to write the figures")
    parser.add_argument("--unix", action="store_true", help="both wrappers through Unix-domain sockets, not by TCP")
    parser.add_argument("--keep", action="store_true", help="leave the stack running")
    parser.add_argument("--reuse", action="store_true", help="take the tables of a run before that was to --keep them")
    options = parser.parse_args()
    options.only = None if options.only is None else options.only.split(",")
    for pattern in options.only or ():
        if not any(fnmatch(key, pattern) for key in (ENGINE, *(work.key for work in WORKS))):
            parser.error(f'there is no work "{pattern}"')
    return options


def _wanted(key: str, only: list[str] | None) -> bool:
    return only is None or any(fnmatch(key, pattern) for pattern in only)


def start(options: argparse.Namespace) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """The stack, and with ``--unix`` the directories of KalamDB's and PostgreSQL's sockets."""
    up = ("up", "--data", str(options.data), "--postgres", options.postgres, "--json")
    stack = json.loads(kalam(*up))
    if not options.unix:
        return stack, None
    mine = json.loads((options.data / "server.json").read_text())["socket_dir"]
    theirs = str((options.data / "postgres").resolve())
    if mine is None or not may_hold_sockets(Path(theirs)):
        print(f"{options.data} cannot hold Unix-domain sockets: give a shorter --data")
        raise SystemExit(2)
    with psycopg.connect(stack["dsn"], autocommit=True) as connection:
        if connection.execute("SHOW unix_socket_directories").fetchone() == (f'"{theirs}"',):
            return stack, (mine, theirs)
        connection.execute(sql.SQL("ALTER SYSTEM SET unix_socket_directories = {}").format(theirs))
    kalam("down", "--data", str(options.data))
    return json.loads(kalam(*up)), (mine, theirs)


def run(options: argparse.Namespace, stack: dict[str, Any], sockets: tuple[str, str] | None, pgbench: Path,
        console: Console) -> dict[str, Any]:
    place = Place(stack["dsn"], pgbench, options.rows, options.seconds)
    hosts = sockets or (stack["rpc"]["host"], str(psycopg.conninfo.conninfo_to_dict(stack["dsn"])["host"]))
    if not options.reuse:
        console.print(f"loading {options.rows:,} rows on each side")
        prepare(place)
        check_same(place)
    lead(place, *hosts)
    results = []
    for work in WORKS:
        if _wanted(work.key, options.only):
            console.print(f"measuring {work.name}")
            results.append(measure(work, place, options.rounds))
    own: list[dict[str, Any]] = []
    if _wanted(ENGINE, options.only):
        console.print("measuring the engine by itself")
        rpc = psycopg.conninfo.make_conninfo(host=stack["rpc"]["host"], port=stack["rpc"]["port"], user="kalam",
                                             dbname="kalam", sslmode="disable")
        own = engine.measure(rpc, options.rows, options.seconds, options.rounds)
    grown = memory.measure(place, stack["pids"]["server"], console.print) if options.memory else []
    return {"machine": machine(), "unix": options.unix, "rows": options.rows, "results": results, "engine": own,
            "memory": grown}


def main() -> int:
    options = _options()
    console = Console(stderr=False, width=None if sys.stdout.isatty() else 150)
    if not Path(options.postgres).exists():
        print(f"no {options.postgres}: the comparison needs a PostgreSQL with postgres_fdw (Debian: postgresql-15)")
        return 2
    bindir = subprocess.run([options.postgres, "--bindir"], capture_output=True, text=True, check=True).stdout.strip()
    stack, sockets = start(options)
    try:
        whole = run(options, stack, sockets, Path(bindir) / "pgbench", console)
    finally:
        if not options.keep:
            kalam("down", "--data", str(options.data))
    show(console, whole["results"])
    if whole["engine"]:
        show_engine(console, whole["engine"])
    if whole["memory"]:
        show_memory(console, whole["memory"])
    options.json.write_text(json.dumps(whole, indent=2))
    console.print(f"written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
