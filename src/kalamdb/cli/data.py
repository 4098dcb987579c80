"""``kalam check``, ``backup``, ``restore``: a data directory without its server, or beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from kalamdb.cli.output import err, fail, out, told
from kalamdb.settings import Settings, load

#: of a check: there are problems; it could not be made, as with arguments that are wrong
PROBLEMS, NOT_CHECKED = 1, 2


def _settings(data: Path) -> Settings:
    return load({"data": str(data)})


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    columns = (TextColumn(what), BarColumn(), TextColumn("{task.completed}/{task.total} files {task.fields[size]}"))
    with Progress(*columns, console=err, transient=True) as bar:
        yield bar


def _follow(bar: Progress) -> Callable[[int, int, int], None]:
    task = bar.add_task("", total=None, size="")

    def progress(done: int, total: int, copied: int) -> None:
        bar.update(task, completed=done, total=total, size=f"{copied / 1e6:,.1f} MB")

    return progress


def _and_contents(count: int) -> str:
    """Of FILE columns, where there are any."""
    return f", {count:,} files" if count else ""


def check(data: Path, *, quick: bool, as_json: bool) -> None:
    from kalamdb.admin.check import Check
    from kalamdb.admin.files import offline, readable_storages

    with told(NOT_CHECKED), offline(data), readable_storages(data, _settings(data)) as storages:
        checking = Check(data, storages, quick=quick)
        try:
            problems = []
            for problem in checking.problems():
                problems.append(problem)
                if not as_json:
                    out.print(Text(problem))
        finally:
            checking.close()
    if as_json:
        print(json.dumps({"problems": problems, "orphans": checking.orphans, **asdict(checking.counts)}))
    else:
        counts = checking.counts
        for orphan in checking.orphans:
            err.print(Text(f"note: nothing names file {orphan}; the server will remove it", "dim"))
        err.print(Text(f"{counts.tables} tables, {counts.hot_rows:,} hot rows, {counts.segments} segments, "
                       f"{counts.cold_rows:,} cold rows{_and_contents(counts.files)}: "
                       f"{len(problems) or 'no'} problems"))
    if problems:
        raise typer.Exit(PROBLEMS)


def backup(data: Path, root: Path, *, keep: int, show: bool, as_json: bool) -> None:
    from kalamdb.admin import backup as backups
    from kalamdb.admin.files import readable_storages

    with told():
        if show:
            for each in backups.backups(root):
                size = sum(file.bytes for file in each.files)
                out.print(Text(f"{each.name}  {len(each.segments)} segments{_and_contents(len(each.contents))}, "
                               f"{size / 1e6:,.1f} MB"))
            return
        with readable_storages(data, _settings(data)) as storages, _bar("backing up") as bar:
            made = backups.take(data, storages, root, _follow(bar))
        gone = backups.prune(root, keep) if keep else []
    if as_json:
        print(json.dumps({"name": made.name, "segments": len(made.segments), "files": len(made.contents),
                          "copied_bytes": made.copied, "removed": gone}))
        return
    out.print(Text(f"{made.name}: {len(made.segments)} segments{_and_contents(len(made.contents))}, "
                   f"{made.copied / 1e6:,.1f} MB copied"))
    for name in gone:
        out.print(Text(f"{name}: removed"))


def restore(root: Path, data: Path, name: str | None) -> None:
    from kalamdb.admin import backup as backups
    from kalamdb.admin.check import Check
    from kalamdb.admin.files import offline, readable_storages

    with told():
        chosen = backups.choose(root, name)
        with _bar("restoring") as bar:
            backups.restore(root, chosen, data, _follow(bar))
        with offline(data), readable_storages(data, Settings(data=data)) as storages:
            checking = Check(data, storages)
            try:
                problems = list(checking.problems())
            finally:
                checking.close()
    for problem in problems:
        out.print(Text(problem))
    if problems:
        raise fail(f"the restored directory has {len(problems)} problems", "Take another backup of the list.")
    counts = checking.counts
    out.print(Text(f"{chosen.name} is restored to {data}: {counts.tables} tables, {counts.hot_rows:,} hot and "
                   f"{counts.cold_rows:,} cold rows{_and_contents(counts.files)}, verified"))
