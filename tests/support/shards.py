"""A second KalamDB server beside the session's first, and partitioned tables whose partitions live on both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .server import KalamServer


@contextmanager
def second_server() -> Iterator[KalamServer]:
    server = KalamServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


def create_server(name: str, server: KalamServer, options: str = "") -> str:
    """The statement that makes it known to PostgreSQL."""
    return (
        f"CREATE SERVER {name} FOREIGN DATA WRAPPER pg_kalam "
        f"OPTIONS (host '127.0.0.1', port '{server.port}'{', ' if options else ''}{options})"
    )
