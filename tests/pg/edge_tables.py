"""Tables of all types, full of NULLs and of extreme values, the same in every tier that rows can be in.

`z` is partitioned, and one of its partitions is an ordinary table on both sides, as `l` is.

What computations are made with is small; the columns named …x, `big` and `r` have their types' extremes, as far as the
server's query engine has them.
"""

from __future__ import annotations

import random

from .grammar import TYPES
from .pair import Pair

BOUNDED = "numeric(12,3)"  # the query engine computes with these as decimals, which have no NaN
#: table → columns: name, type, tag; the key's first
TABLES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "p": (
        ("id", "int", "int"), ("i", "int", "int"), ("s", "smallint", "int"), ("big", "bigint", "big"),
        ("n", "numeric", "numeric"), ("m", BOUNDED, "numeric"), ("nx", "numeric", "nx"),
        ("f", "float8", "float"), ("fx", "float8", "fx"), ("r", "real", "real"), ("x", "text", "text"),
        ("v", "varchar(10)", "text"), ("e", "text COLLATE english", "text"), ("b", "bool", "bool"),
        ("d", "date", "date"), ("dx", "date", "dx"), ("ts", "timestamp", "ts"), ("tsx", "timestamp", "tsx"),
        ("tz", "timestamptz", "tz"), ("u", "uuid", "uuid"), ("y", "bytea", "bytea"), ("j", "jsonb", "json"),
    ),
    "q": (
        ("id", "int", "int"), ("i", "int", "int"), ("x", "text", "text"), ("n", "numeric", "numeric"),
        ("f", "float8", "float"), ("b", "bool", "bool"), ("d", "date", "date"), ("ts", "timestamp", "ts"),
        ("e", "text COLLATE english", "text"), ("j", "jsonb", "json"),
    ),
    "w": (("a", "int", "int"), ("k", "text", "text"), ("i", "int", "int"), ("x", "text", "text"),
          ("b", "bool", "bool")),
    "z": (("id", "int", "int"), ("i", "int", "int"), ("x", "text", "text"), ("n", "numeric", "numeric"),
          ("f", "float8", "float"), ("d", "date", "date"), ("ts", "timestamp", "ts"), ("u", "uuid", "uuid")),
    "l": (("id", "int", "int"), ("i", "int", "int"), ("x", "text", "text"), ("n", "numeric", "numeric"),
          ("f", "float8", "float"), ("ts", "timestamp", "ts"), ("u", "uuid", "uuid")),
}  # fmt: skip
KEYS = {"p": ("id",), "q": ("id",), "w": ("a", "k"), "z": ("id",), "l": ("id",)}
SIZES = {"p": 44, "q": 24, "w": 20, "z": 30, "l": 20}
#: table → its partitions, by the first and the last key, and whether they are KalamDB's
PARTITIONS = {"z": ((1, 12, True), (13, 22, True), (23, 1000, False))}
STORED = ("p", "q", "w", "z_0", "z_1")
TIERS = ("hot", "cold", "mixed", "user", "own writes")


def literal(tag: str, text: str | None) -> str:
    return "NULL" if text is None else "'" + text.replace("'", "''") + f"'::{TYPES[tag][0]}"


def value(draw: random.Random, tag: str, type_: str) -> str:
    """Of a small domain, so that conditions and joins find rows; every sixth is NULL."""
    small = draw.randint(-3, 4)
    nan = "NaN" if type_ != BOUNDED else "99.999"
    texts = {
        "int": str(small),
        "text": draw.choice(("a", "b", "B", "é", "", " x ", "text 1", "text 12", "e5", "%")),
        "numeric": draw.choice((f"{small}.5", f"{small}.50", f"{small}", f"{small}.125", nan if small == 4 else "0")),
        "float": draw.choice((f"{small}.25", f"{small}", "-0", "Infinity" if small == 4 else "1.5")),
        "date": f"2024-0{abs(small) + 1}-1{abs(small)}", "ts": f"2024-0{abs(small) + 1}-10 1{abs(small)}:30:00.25",
        "tz": f"2024-0{abs(small) + 1}-28 2{abs(small) % 4}:30+00",
        "json": draw.choice((f'{{"a": "{small}", "b": [{small}, "x"]}}', '{"b": [], "c": {"d": null}}', "{}")),
    }  # fmt: skip
    if draw.random() < 1 / 6:
        return literal(tag, None)
    if tag in texts and draw.random() < 0.85:
        return literal(tag, texts[tag])
    return literal(tag, draw.choice([text for text in TYPES[tag][1] if text != "NaN" or type_ != BOUNDED]))


def rows(draw: random.Random, table: str, first: int, count: int) -> list[str]:
    """In VALUES; the key numbers them, a table's second key column repeats."""
    found = []
    for number in range(first, first + count):
        keys = [str(number), f"'k{number % 3}'"][: len(KEYS[table])]
        values = [value(draw, tag, type_) for _, type_, tag in TABLES[table][len(keys) :]]
        found.append(f"({', '.join([*keys, *values])})")
    return found


def insert(draw: random.Random, table: str, first: int, count: int) -> str:
    return f"INSERT INTO {table} VALUES {', '.join(rows(draw, table, first, count))}"


def create(pair: Pair) -> None:
    for table, columns in TABLES.items():
        names = ", ".join(f"{name} {type_}" for name, type_, _ in columns)
        key = f"PRIMARY KEY ({', '.join(KEYS[table])})"
        if table in PARTITIONS:
            pair.setup(f"CREATE TABLE {table} ({names}) PARTITION BY RANGE (id)")
            for place, (first, last, stored) in enumerate(PARTITIONS[table]):
                pair.setup(f"CREATE TABLE {table}_{place} PARTITION OF {table} ({key}) FOR VALUES FROM ({first})"
                           f" TO ({last + 1}) {'{using}' if stored else ''}")
        else:
            pair.setup(f"CREATE TABLE {table} ({names}, {key}) {'{using}' if table in STORED else ''}")


def flush(pair: Pair) -> None:
    for table in STORED:
        pair.kalam.conn.execute(f"SELECT kalam_flush('{table}')")


def change(pair: Pair, draw: random.Random, table: str) -> None:
    """Some rows are new, some are gone, some come back as others."""
    key, half = KEYS[table][0], SIZES[table] // 2
    for name, type_, tag in draw.sample(TABLES[table][len(KEYS[table]) :], 3):
        pair.setup(f"UPDATE {table} SET {name} = {value(draw, tag, type_)} WHERE {key} % 5 = {draw.randint(0, 4)}")
    pair.setup(f"DELETE FROM {table} WHERE {key} % 7 = 3 AND {key} <= {half}")
    pair.setup(insert(draw, table, 3, 1))
    pair.setup(insert(draw, table, half + 1, SIZES[table] - half))


def fill(pair: Pair, tier: str) -> None:
    draw = random.Random(tier)
    create(pair)
    if tier == "user":
        pair.kalam.conn.execute("SET kalam.user_id = 'bob'")
        for table in ("p", "q", "w"):
            pair.kalam.conn.execute(insert(random.Random(1), table, 1, 30))
        pair.kalam.conn.execute("SET kalam.user_id = 'alice'")
    for table, size in SIZES.items():
        pair.setup(insert(draw, table, 1, size if tier in ("hot", "cold") else size // 2))
    if tier != "hot":
        flush(pair)
    if tier != "cold":
        pair.setup("ANALYZE p; ANALYZE q; ANALYZE z; ANALYZE l")
    if tier == "own writes":
        pair.setup("BEGIN")
    if tier in ("mixed", "user", "own writes"):
        for table in TABLES:
            change(pair, draw, table)
