"""What a plan says of a statement: which of it is made on the server, and what the server is asked."""

from __future__ import annotations

from typing import Any

import psycopg

from .ddl import Session


def plan(db: Session, sql: str) -> dict[str, Any]:
    """The root node of EXPLAIN (VERBOSE), without what depends on statistics."""
    (found,) = db.value(f"EXPLAIN (FORMAT JSON, VERBOSE, COSTS OFF) {sql}")
    root: dict[str, Any] = found["Plan"]
    return root


def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [node, *(found for child in node.get("Plans", ()) for found in nodes(child))]


def root_is_foreign_scan(db: Session, sql: str) -> bool:
    """Is all that chooses, joins, groups, sorts and limits rows made on the server?"""
    root = plan(db, sql)
    return root["Node Type"] == "Foreign Scan" and "Filter" not in root


def remote_sql(db: Session, sql: str) -> list[str]:
    """All that the plan would ask the server."""
    return [node["Remote SQL"] for node in nodes(plan(db, sql)) if "Remote SQL" in node]


def make_collations(conn: psycopg.Connection) -> bool:
    """``english`` and ``any_case``, first in the path; False if PostgreSQL was built without ICU.

    Plans look only at what the catalog says: without ICU the one is a locale that is not known to be one of code
    points, whose name the system's library understands, and the other is declared nondeterministic.
    """
    try:
        conn.execute("CREATE COLLATION english (provider = icu, locale = 'en')")
        conn.execute("CREATE COLLATION any_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    except psycopg.errors.FeatureNotSupported:
        conn.execute("CREATE COLLATION english (provider = libc, locale = 'C.UTF8')")
        conn.execute("CREATE COLLATION any_case (provider = libc, locale = 'C.UTF8')")
        conn.execute("UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'any_case'")
        return False
    return True
