"""Messages are ASCII, as PostgreSQL's own: every encoding of a database or a client has them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
C_TOKENS = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def test_messages_of_the_extension() -> None:
    bad = []
    for path in sorted((ROOT / "extension").glob("*.[ch]")):
        strings = [token for token in C_TOKENS.findall(path.read_text()) if token.startswith('"')]
        bad += [(path.name, string) for string in strings if not string.isascii()]
    assert not bad


def test_messages_of_the_server() -> None:
    bad = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name | ast.Attribute) and (
                "rror" in ast.unparse(call.func)
            ):
                parts = [node for node in ast.walk(call) if isinstance(node, ast.Constant)]
                bad += [
                    (path.name, part.value) for part in parts
                    if isinstance(part.value, str) and not part.value.isascii()
                ]  # fmt: skip
    assert not bad
