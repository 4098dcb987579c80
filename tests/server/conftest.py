"""A KalamDB server process for each test that wants one."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from support.server import KalamServer


@pytest.fixture
def server() -> Iterator[KalamServer]:
    """A running server of the test's own."""
    server = KalamServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def conn(server: KalamServer) -> Iterator[psycopg.Connection]:
    """A client of that server."""
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        yield connection
