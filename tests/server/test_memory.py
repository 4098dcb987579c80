"""What a server needs for results and transactions that are much larger than that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from support.server import KalamServer

ROWS = 120_000
WIDTH = 2000
#: half of what the rows take
LIMIT = ROWS * WIDTH // 2


@pytest.fixture(scope="module")
def server() -> Iterator[KalamServer]:
    server = KalamServer(tiers__cache_mib="16", tiers__flush_policy="rows:1000000000")
    server.nursery = None  # pages that it shared with its mother would count when it writes to them
    try:
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("CREATE NAMESPACE app")
            conn.execute("CREATE SHARED TABLE app.t (id bigint PRIMARY KEY, v text)")
            for first in range(0, ROWS, 10_000):
                conn.execute(f"INSERT INTO app.t SELECT i, repeat(md5(i::text), {WIDTH // 32}) "
                             f"FROM generate_series({first}, {first + 9_999}) i")
        yield server
    finally:
        server.close()


def resident(server: KalamServer, what: str) -> int:
    text = Path(f"/proc/{server.pid}/status").read_text()
    return int(text.partition(f"{what}:")[2].split()[0]) << 10


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["hot", "cold"])
def test_a_result(server: KalamServer, tier: str) -> None:
    with psycopg.connect(server.dsn(), autocommit=True) as conn, conn.cursor() as cursor:
        if tier == "cold":
            conn.execute("STORAGE FLUSH TABLE app.t")
        conn.execute("SELECT count(*) FROM app.t WHERE id < 10")
        Path(f"/proc/{server.pid}/clear_refs").write_text("5")
        before = resident(server, "VmRSS")
        assert sum(len(row[1]) for row in cursor.stream("SELECT id, v FROM app.t")) == ROWS * (WIDTH // 32) * 32
        assert resident(server, "VmHWM") - before < LIMIT


def test_an_update_of_wide_rows() -> None:
    """Sent whole: neither are all rows read at once, nor do the changed ones stay until the commit."""
    count, width = 240, 1_000_000
    server = KalamServer()
    try:
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            conn.execute("CREATE NAMESPACE app")
            conn.execute("CREATE SHARED TABLE app.w (id bigint PRIMARY KEY, a text, v text)")
            for first in range(0, count, 20):
                conn.execute(f"INSERT INTO app.w SELECT i, 'a', repeat(md5(i::text), {width // 32}) "
                             f"FROM generate_series({first}, {first + 19}) i")
            Path(f"/proc/{server.pid}/clear_refs").write_text("5")
            before = resident(server, "VmRSS")
            assert conn.execute("UPDATE app.w SET a = 'b'").statusmessage == f"UPDATE {count}"
            assert resident(server, "VmHWM") - before < count * width * 3 // 4
            assert conn.execute("SELECT count(*) FROM app.w WHERE a = 'b'").fetchone() == (count,)
    finally:
        server.close()
