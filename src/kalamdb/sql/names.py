"""What PostgreSQL calls the columns of a result that have no name of their own."""

from __future__ import annotations

from sqlglot import exp

from kalamdb import types
from kalamdb.errors import KalamError
from kalamdb.sql.bind import identifier

UNNAMED = "?column?"
_NODES: dict[type[exp.Expr], str] = {
    exp.Exists: "exists", exp.Boolean: "bool", exp.CurrentTimestamp: "current_timestamp",
    exp.CurrentDate: "current_date", exp.Localtimestamp: "localtimestamp", exp.CurrentUser: "current_user",
    exp.SessionUser: "session_user", exp.CurrentSchema: "current_schema", exp.CurrentCatalog: "current_catalog",
    exp.Substring: "substring", exp.StrPosition: "position", exp.Extract: "extract", exp.Overlay: "overlay",
    exp.Array: "array", exp.AtTimeZone: "timezone", exp.Interval: "interval", exp.ParseJSON: "json",
    exp.Tuple: "row",
}
_TRIMS = {"LEADING": "ltrim", "TRAILING": "rtrim"}


def output_name(node: exp.Expr) -> str:
    return _named(node)[0]


def _named(node: exp.Expr) -> tuple[str, bool]:
    """The name, and whether it is a strong one that a cast or CASE around it keeps."""
    match node:
        case exp.Alias():
            return identifier(node.args["alias"]), True
        case exp.Column():
            return identifier(node.this), True
        case exp.Paren() | exp.Filter() | exp.Window() | exp.WithinGroup() | exp.Collate() | exp.Bracket():
            return _named(node.this)
        case exp.Dot():
            return _named(node.args["expression"])
        case exp.Cast():
            inner = _named(node.this)
            return inner if inner[1] else (_type_name(node.args["to"]), False)
        case exp.Anonymous():
            named = identifier(node.this) if isinstance(node.this, exp.Identifier) else str(node.this).lower()
            return named, True
        case exp.Case():
            inner = _named(node.args["default"]) if node.args.get("default") is not None else (UNNAMED, False)
            return inner if inner[1] else ("case", False)
        case exp.Subquery() | exp.Select():
            first = node.this if isinstance(node, exp.Subquery) else node
            items = first.expressions if isinstance(first, exp.Select) else []
            return _named(items[0]) if items else (UNNAMED, False)
        case exp.Trim():
            return _TRIMS.get(str(node.args.get("position") or "").upper(), "btrim"), True
    found = _NODES.get(type(node))
    return (UNNAMED, False) if found is None else (found, not isinstance(node, exp.Boolean | exp.Interval))


def _type_name(node: exp.Expr) -> str:
    try:
        return types.parse_declared(node.sql("postgres").lower())[0].name
    except KalamError:
        return UNNAMED
