"""What the extension may send: one line per operator and type that this server evaluates exactly as PostgreSQL does.

A line is a promise; the tests compare every one with PostgreSQL over edge values. The rows are those of
``SHOW CAPABILITIES`` (docs/protocol.md).
"""

from __future__ import annotations

from itertools import product

from kalamdb import __version__

CapabilityRow = tuple[str, str, str, str, str]

EQUALITY = ("=", "<>")
ORDER = ("<", "<=", ">", ">=")

#: name in pg_catalog, wire layout, name in server SQL, flags
TYPES: tuple[tuple[str, str, str, str], ...] = (
    ("bool", "bool", "boolean", "key"),
    ("int2", "int16", "smallint", "key"),
    ("int4", "int32", "integer", "key"),
    ("int8", "int64", "bigint", "key"),
    ("float4", "float32", "real", "key"),
    ("float8", "float64", "double precision", "key"),
    ("numeric", "utf8", "numeric", "key"),
    ("text", "utf8", "text", "key"),
    ("varchar", "utf8", "varchar", "key"),
    ("bytea", "binary", "bytea", "key"),
    ("date", "int32", "date", "key"),
    ("timestamp", "int64", "timestamp", "key"),
    ("timestamptz", "int64", "timestamptz", "key"),
    ("uuid", "binary", "uuid", "key"),
    ("json", "utf8", "json", ""),
    ("jsonb", "utf8", "jsonb", ""),
)

#: pairs of types whose comparison operators exist in PostgreSQL and are evaluated here
COMPARABLE: tuple[tuple[str, str], ...] = (
    *product(("int2", "int4", "int8"), ("int2", "int4", "int8")),
    *product(("float4", "float8"), ("float4", "float8")),
    ("bool", "bool"),
    ("numeric", "numeric"),
    ("text", "text"),
    ("bytea", "bytea"),
    ("uuid", "uuid"),
    ("date", "date"),
    ("timestamp", "timestamp"),
    ("timestamptz", "timestamptz"),
)


def _operator(name: str, left: str, right: str) -> CapabilityRow:
    flags = "plain"
    if left == "text":
        flags += " d" if name in EQUALITY else " c"
    return "operator", name, f"{left},{right}", f"($1 {name} $2)", flags


def operators() -> list[CapabilityRow]:
    return [_operator(name, left, right) for left, right in COMPARABLE for name in EQUALITY + ORDER]


def types() -> list[CapabilityRow]:
    return [("type", name, layout, remote, flags) for name, layout, remote, flags in TYPES]


def capabilities(server_id: str, node_id: int) -> list[CapabilityRow]:
    """All rows: facts about the server, then types and operators."""
    facts = {"version": __version__, "protocol": "1", "server_id": server_id, "node_id": str(node_id)}
    return [("info", name, "", value, "") for name, value in facts.items()] + types() + operators()
