"""What `kalam doctor` looks at: is the extension where a PostgreSQL looks for it, whole and of this release?"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from kalamdb.stack.install import PgInstall, source_folder

LIBRARY = "pg_kalam.so"


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``hint``: what mends it, where it is not ``good``."""

    good: bool
    text: str
    hint: str | None = None


def examine(pg: PgInstall) -> list[Finding]:
    """Every file of the extension in this PostgreSQL's folders."""
    mend = f"kalam pg install --pg-config {shlex.quote(str(pg.pg_config))}"
    found = [Finding(True, f"PostgreSQL {pg.version} ({pg.pg_config})"), _library(pg.pkglibdir / LIBRARY, mend)]
    source = source_folder()
    for path in sorted(source.iterdir()):
        if path.suffix in (".control", ".sql"):
            found.append(_script(pg.extension_dir / path.name, path.read_bytes(), mend))
    return found


def _missing(target: Path, mend: str) -> Finding:
    return Finding(False, f"{target.name} is missing in {target.parent}", mend)


def _library(target: Path, mend: str) -> Finding:
    if not target.is_file():
        return _missing(target, mend)
    try:
        head = target.read_bytes()[:4]
    except OSError as error:
        return Finding(False, f"{target.name} in {target.parent} cannot be read: {error.strerror}", mend)
    if head[:4] != b"\x7fELF" and head[:4] not in (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"):
        return Finding(False, f"{target.name} in {target.parent} is not a library", mend)
    return Finding(True, f"{target.name} in {target.parent}")


def _script(target: Path, wanted: bytes, mend: str) -> Finding:
    if not target.is_file():
        return _missing(target, mend)
    if target.read_bytes() != wanted:
        return Finding(False, f"{target.name} in {target.parent} is of another release", mend)
    return Finding(True, f"{target.name} in {target.parent}")
