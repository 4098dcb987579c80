"""Joins in every nesting, with conditions in WHERE on each side, give PostgreSQL's rows.

A condition on one table is left to the store only where no join may fill up that table's columns with NULLs.
"""

from __future__ import annotations

from itertools import product

import pytest

from .client import Client

TABLES = {"a": "(1,1),(2,2),(3,NULL),(4,1)", "b": "(1,NULL),(2,2),(5,1),(6,2)", "c": "(2,1),(3,2),(5,NULL),(7,2)"}
SHAPES = [
    "a {0} b ON a.id = b.id {1} c ON b.id = c.id OR a.v = c.v",
    "(a {0} b ON a.id = b.id) {1} c ON a.v = c.v",
    "((a {0} b ON a.id = b.id) {1} c ON b.v = c.v)",
    "a {1} (b {0} c ON b.id = c.id) ON a.v = b.v",
    "(a {1} (b {0} c ON b.v = c.v) ON a.id = c.id)",
    "a, (b {0} c ON b.id = c.id) {1} c AS d ON b.v = d.v",
]
KINDS = ["JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"]
CONDITIONS = ["a.v IS NULL", "b.v IS NULL", "c.v IS NULL", "b.v = 2", "a.id > 1 AND c.id IS NULL", "b.id IS NOT NULL"]


@pytest.mark.parametrize("shape", SHAPES)
def test_conditions_above_joins(db: Client, pg: Client, shape: str) -> None:
    for client, (table, rows) in product((db, pg), TABLES.items()):
        client.run(f"CREATE TABLE {table} (id int PRIMARY KEY, v int)")
        client.run(f"INSERT INTO {table} VALUES {rows}")
    differ = []
    for one, two, condition in product(KINDS, KINDS, CONDITIONS):
        if "OR" in shape and two == "FULL JOIN":
            continue  # PostgreSQL cannot hash or merge this
        sql = f"SELECT a.id, a.v, b.id, b.v, c.id, c.v FROM {shape.format(one, two)} WHERE {condition}"
        wanted, got = (sorted(map(repr, client.run(sql).rows)) for client in (pg, db))
        if wanted != got:
            differ.append(sql)
    assert not differ
