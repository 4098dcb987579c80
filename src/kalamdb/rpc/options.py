"""Settings a client gives when it connects, as SET statements.

``options`` is what libpq's parameter of that name holds: ``-c name=value`` or ``--name=value``, with backslash before
a space that belongs to a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from kalamdb.errors import KalamError

#: Parameters of the start-up packet that are no settings, or are dealt with elsewhere.
_NO_SETTINGS = frozenset({"user", "database", "options", "replication", "client_encoding", "application_name"})
_NAME = re.compile(r"[A-Za-z_][\w$]*(\.[A-Za-z_][\w$]*)*")
_WORD = re.compile(r"(?:\\.|[^\\\s])+")


def startup_settings(parameters: Mapping[str, str]) -> list[str]:
    """One SET statement for each setting. Raises KalamError."""
    given = {name: value for name, value in parameters.items() if name not in _NO_SETTINGS and name[:5] != "_pq_."}
    given.update(_options(parameters.get("options", "")))
    return [_set(name, value) for name, value in given.items()]


def _set(name: str, value: str) -> str:
    if not _NAME.fullmatch(name):
        raise KalamError("42602", f'invalid setting name "{name}" in startup packet')
    quoted = value.replace("'", "''")
    return f"SET {name} = '{quoted}'"


def _options(text: str) -> Iterator[tuple[str, str]]:
    words = iter([re.sub(r"\\(.)", r"\1", word) for word in _WORD.findall(text)])
    for word in words:
        if word == "-c":
            setting = next(words, "")
        elif word.startswith(("-c", "--")):
            setting = word[2:]
        else:
            raise KalamError("42601", f'invalid word "{word}" in "options"', hint="use -c name=value")
        name, equals, value = setting.partition("=")
        if not equals:
            raise KalamError("42601", f'"options" sets "{name}" to nothing', hint="use -c name=value")
        yield name.replace("-", "_"), value
