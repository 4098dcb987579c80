"""One KalamDB server for the session, a namespace for each test, and a plain PostgreSQL that says what is right.

A session's `search_path` is the test's namespace, so that the same text runs on the server and on PostgreSQL.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import psycopg
import pytest

from support.build import Installed, ask, pg_config_of
from support.postgres import Postgres
from support.server import KalamServer

from .client import Client, Wire

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def server() -> Iterator[KalamServer]:
    server = KalamServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def plain() -> Iterator[Callable[[str], Postgres]]:
    """The PostgreSQL of that name without the extension: one of each."""
    started: dict[str, Postgres] = {}

    def plain(name: str) -> Postgres:
        if name not in started:
            try:
                config = pg_config_of(name)
            except FileNotFoundError as error:
                pytest.skip(str(error))
            version = ask(config, "version").split()[1]
            pg = Postgres(Installed(name, version, config.parent), shared_preload_libraries="", timezone="UTC")
            started[name] = pg
            pg.start()
        return started[name]

    yield plain
    for pg in started.values():
        pg.close()


@pytest.fixture(scope="session")
def postgres(plain: Callable[[str], Postgres]) -> Postgres:
    return plain("bundled16")


@pytest.fixture(scope="module")
def postgres_of(request: pytest.FixtureRequest, plain: Callable[[str], Postgres]) -> Postgres:
    """Of the version that the test names."""
    return plain(request.param)


@pytest.fixture
def ns(server: KalamServer) -> str:
    """A new namespace."""
    name = f"ns{next(_numbers)}"
    with psycopg.connect(server.dsn(), autocommit=True) as conn:
        conn.execute(f"CREATE NAMESPACE {name}")
    return name


@pytest.fixture
def connect(server: KalamServer, ns: str) -> Iterator[Callable[..., Client]]:
    """Opens clients of the server with the namespace as their path."""
    opened: list[Client] = []

    def connect(tenant: str | None = None, **options: str) -> Client:
        client = Client(server.dsn(**options))
        opened.append(client)
        client.run(f"SET search_path = {ns}")
        if tenant is not None:
            client.run(f"SET kalam.user_id = '{tenant}'")
        return client

    yield connect
    for client in opened:
        client.close()


@pytest.fixture
def db(connect: Callable[..., Client]) -> Client:
    """A client of the server."""
    return connect()


@pytest.fixture
def other(connect: Callable[..., Client]) -> Client:
    """One more."""
    return connect()


@pytest.fixture
def pg(postgres: Postgres) -> Iterator[Client]:
    """A client of PostgreSQL, in a schema of its own."""
    client = Client(postgres.dsn())
    name = f"s{next(_numbers)}"
    client.run(f"CREATE SCHEMA {name}")
    client.run(f"SET search_path = {name}")
    yield client
    client.close()


@pytest.fixture
def wires(server: KalamServer) -> Iterator[Callable[[], Wire]]:
    """Opens connections that speak as pg_kalam does."""
    opened: list[Wire] = []

    def connect() -> Wire:
        opened.append(Wire(server.dsn()))
        return opened[-1]

    yield connect
    for wire in opened:
        wire.close()


@pytest.fixture
def wire(wires: Callable[[], Wire]) -> Wire:
    return wires()
