"""Tables on two servers, each reached through a proxy, and partitioned tables that are spread over both.

``a`` and ``b`` are the proxies, ``NS_a`` and ``NS_b`` the servers of PostgreSQL that lead through them.
"""

from __future__ import annotations

from typing import Any

from support.proxy import Proxy

from .ddl import Session


class Shards:
    def __init__(self, db: Session, ns: str, a: Proxy, b: Proxy) -> None:
        self.db, self.ns, self.a, self.b = db, ns, a, b
        for name, proxy in (("a", a), ("b", b)):
            db(
                f"CREATE SERVER {ns}_{name} FOREIGN DATA WRAPPER pg_kalam "
                f"OPTIONS (host '127.0.0.1', port '{proxy.port}')"
            )
        db(f"SET search_path = {ns}, public")

    def options(self, how: str = "ADD", **values: str) -> None:
        """Of both servers."""
        given = ", ".join(f"{how} {name} '{value}'" for name, value in values.items())
        for name in ("a", "b"):
            self.db(f"ALTER SERVER {self.ns}_{name} OPTIONS ({given})")

    def table(self, name: str, shard: str, columns: str = "id int PRIMARY KEY, v text") -> None:
        self.db(
            f"CREATE TABLE {name} ({columns}) USING kalamdb WITH (type = 'shared', server = '{self.ns}_{shard}', "
            "system_columns = 'false')"
        )

    def partitioned(self, name: str, places: str, columns: str = "id int NOT NULL, k int, v text") -> None:
        """Partitions NAME_0, NAME_1 … by LIST (k), one a letter of `places`: a, b, or h for an ordinary table."""
        self.db(f"CREATE TABLE {name} ({columns}) PARTITION BY LIST (k)")
        for k, place in enumerate(places):
            bound = f"PARTITION OF {name} FOR VALUES IN ({k})"
            if place == "h":
                self.db(f"CREATE TABLE {name}_{k} {bound}")
            else:
                self.db(
                    f"CREATE FOREIGN TABLE {name}_{k} {bound} SERVER {self.ns}_{place} OPTIONS (table_type 'shared')"
                )

    def fill(self, name: str, places: str, rows: int) -> None:
        """Rows 1 to `rows`, in all partitions in turn."""
        self.partitioned(name, places)
        self.db(f"INSERT INTO {name} SELECT g, g % {len(places)}, 'v' || g FROM generate_series(1, {rows}) g")

    def sorted(self, sql: str, *params: Any) -> list[str]:
        return sorted(map(repr, self.db(sql, *params)))
