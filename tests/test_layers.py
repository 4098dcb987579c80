"""Which package of kalamdb may import which: one table, and every import in the source tree checked against it.

Imports inside functions and under TYPE_CHECKING count too: a type is a dependency as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "kalamdb"

# Part -> what it may import: other parts, or one module of a part. Every part may import itself and kalamdb's version.
BOTTOM = {"errors", "numbers", "types", "kept", "composed", "api", "order", "faults", "reference"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "composed": {"errors"},
    "kept": {"errors", "composed"},
    "numbers": {"errors"},
    "types": {"errors", "numbers", "kept", "composed"},
    "api": {"errors", "types"},
    "order": {"kept"},
    "faults": set(),
    "reference": {"errors", "types"},
    "settings": {"errors"},
    # txn.api holds the types that the layers share, and imports no other layer (tested below).
    "store": BOTTOM | {"settings", "txn.api"},
    "catalog": BOTTOM | {"store", "txn.api"},
    "txn": BOTTOM | {"store", "catalog"},
    "auth": BOTTOM | {"settings", "txn.api"},
    "sql": BOTTOM | {"settings", "txn.api", "auth.passwords"},
    "rpc": BOTTOM | {"settings", "auth"},
    "http": BOTTOM | {"settings", "auth", "rpc.wire"},
    # Puts the parts together.
    "server": BOTTOM | {"settings", "store.storage", "txn.engine", "sql.executor", "auth", "rpc.listener", "rpc.unix",
                        "http"},
    # Programs around the server: they start it and talk to it, and know nothing of its inside.
    "stack": {"errors", "settings"},
    # Works on a data directory without its server.
    "admin": BOTTOM | {"settings", "store", "catalog", "txn.api"},
    "cli": {"errors", "settings", "server", "stack", "admin", "demo", "bench"},
    "demo": {"stack"},
    "bench": {"stack"},
}


def parts_of(module: str) -> list[str]:
    """`kalamdb.sql.duck` -> ["sql", "duck"]."""
    return module.split(".")[1:]


def module_of(path: Path) -> str:
    names = ["kalamdb", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


def is_module(name: str) -> bool:
    place = SOURCE.joinpath(*parts_of(name))
    return place.is_dir() or place.with_suffix(".py").is_file()


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full name of every module of kalamdb that is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                base = module.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
                origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{origin}.{alias.name}"
                yield node.lineno, inner if inner.startswith("kalamdb.") and is_module(inner) else origin


def violations(module: str, text: str, *, is_package: bool = False) -> list[str]:
    own = parts_of(module)[:1]
    if not own:
        return []
    allowed = ALLOWED.get(own[0])
    if allowed is None:
        return [f"{module}: the package {own[0]} is not in the table"]
    found = []
    for line, name in imported(ast.parse(text), module, is_package):
        target = parts_of(name) if name.startswith("kalamdb.") else []
        if target and target[0] != own[0] and target[0] not in allowed and ".".join(target[:2]) not in allowed:
            found.append(f"{module}:{line} imports {name}")
    return found


def test_every_import_is_allowed() -> None:
    found = [
        text
        for path in sorted(SOURCE.rglob("*.py"))
        for text in violations(module_of(path), path.read_text(encoding="utf-8"), is_package=path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_the_table_has_no_cycle() -> None:
    """Whole packages only: what is allowed one module of a package (txn.api) lies below both."""
    whole = {part: {name for name in allowed if "." not in name} for part, allowed in ALLOWED.items()}
    while free := [part for part, below in whole.items() if not below & whole.keys()]:
        for part in free:
            del whole[part]
    assert not whole


def test_the_table_names_what_exists() -> None:
    named = set(ALLOWED).union(*ALLOWED.values())
    assert [name for name in sorted(named) if not is_module(f"kalamdb.{name}")] == []


def test_txn_api_lies_below_its_package() -> None:
    """What the layers above may import must not bring the engine with it."""
    tree = ast.parse((SOURCE / "txn" / "api.py").read_text(encoding="utf-8"))
    names = {name for _, name in imported(tree, "kalamdb.txn.api", False) if name.startswith("kalamdb.")}
    assert names <= {f"kalamdb.{part}" for part in BOTTOM}


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("kalamdb.store.hot", "import kalamdb.txn.engine"),
        ("kalamdb.store.hot", "from kalamdb import txn"),
        ("kalamdb.store.hot", "from ..txn.engine import Engine"),
        ("kalamdb.store", "from ..txn import engine"),
        ("kalamdb.rpc.session", "from kalamdb.sql.executor import SqlExecutor"),
        ("kalamdb.rpc.session", "def f():\n    from kalamdb.store import hot"),
        ("kalamdb.sql.read", "from kalamdb.txn.engine import open_engine"),
        ("kalamdb.sql.read", "from kalamdb.txn import engine"),
        ("kalamdb.demo.tour", "from kalamdb import settings"),
        ("kalamdb.types", "if TYPE_CHECKING:\n    from kalamdb.api import TableDef"),
        ("kalamdb.newcomer", "import os"),
    ],
)
def test_what_is_not_allowed_is_found(module: str, text: str) -> None:
    assert len(violations(module, text, is_package=module == "kalamdb.store")) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("kalamdb.sql.read", "from kalamdb.txn.api import Engine\nfrom kalamdb.txn import api\nimport os"),
        ("kalamdb.sql.read", "from kalamdb.sql import duck\nfrom . import duck\nfrom .duck import Duck"),
        ("kalamdb.http.app", "from kalamdb import __version__"),
        ("kalamdb.store", "from .hot import Hot\nfrom ..errors import KalamError"),
    ],
)
def test_what_is_allowed_passes(module: str, text: str) -> None:
    assert violations(module, text, is_package=module == "kalamdb.store") == []
