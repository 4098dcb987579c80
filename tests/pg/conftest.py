"""One PostgreSQL with the extension and one KalamDB server for the session; a database of its own for each test.

A test may kill or stop either: the next test finds both running. What both logged during a test is shown if it fails,
and a backend that crashed fails the test it crashed in.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from support.build import Installed, install
from support.postgres import Postgres
from support.server import KalamServer

from .ddl import Session

TEMPLATE = "template_kalam"
CRASH = re.compile(r"^.*(terminated by signal (?!2:|3:|9:|15:)|PANIC:|TRAP:).*\n?.*$", re.MULTILINE)

_numbers = itertools.count(1)
_logs: dict[str, Postgres | KalamServer] = {}
_began = pytest.StashKey[dict[str, int]]()


@pytest.fixture(scope="session")
def installed(request: pytest.FixtureRequest) -> Installed:
    """A PostgreSQL of `--pg-config` with the extension as it is in the source tree."""
    return install(request.param)


@pytest.fixture(scope="session")
def running_server() -> Iterator[KalamServer]:
    server = KalamServer()
    _logs["KalamDB server"] = server
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def running_pg(installed: Installed, running_server: KalamServer) -> Iterator[Postgres]:
    pg = Postgres(installed)
    _logs["PostgreSQL"] = pg
    try:
        pg.start()
        with pg.connect() as conn:
            conn.execute(f"CREATE DATABASE {TEMPLATE}")
        with pg.connect(TEMPLATE) as conn:
            conn.execute("CREATE EXTENSION pg_kalam")
            conn.execute(
                "CREATE SERVER kalam_server FOREIGN DATA WRAPPER pg_kalam "
                f"OPTIONS (host '127.0.0.1', port '{running_server.port}')"
            )
        yield pg
    finally:
        pg.close()


@pytest.fixture
def server(running_server: KalamServer) -> KalamServer:
    """The KalamDB server: `port`, `kill`, `stop`, `start`, `restart`, `dsn`."""
    running_server.start()
    return running_server


@pytest.fixture
def pg(running_pg: Postgres) -> Iterator[Postgres]:
    """The PostgreSQL cluster: `kill`, `stop`, `start`, `restart`, `connect`, `dsn`."""
    running_pg.start()
    before = running_pg.log_size()
    yield running_pg
    crash = CRASH.search(running_pg.log_since(before))
    assert crash is None, f"PostgreSQL crashed:\n{crash.group() if crash else ''}"


@pytest.fixture
def make_database(pg: Postgres, server: KalamServer) -> Iterator[Any]:
    """A function that makes one more database with the extension and `kalam_server`, and returns its dsn."""
    made: list[str] = []

    def make() -> str:
        name = f"t{next(_numbers)}"
        with pg.connect() as conn:
            conn.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        made.append(name)
        return pg.dsn(name)

    yield make
    pg.start()
    with pg.connect() as conn:
        for name in made:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture
def dsn(make_database: Any) -> str:
    """A superuser's way into the test's own database."""
    return str(make_database())


@pytest.fixture
def db(dsn: str) -> Iterator[Session]:
    """A session in the test's own database."""
    yield from _session(dsn)


@pytest.fixture
def other(dsn: str) -> Iterator[Session]:
    """One more session in the same database."""
    yield from _session(dsn)


@pytest.fixture
def second(make_database: Any) -> Iterator[Session]:
    """A session in one more database of the same PostgreSQL."""
    yield from _session(make_database())


def _session(dsn: str) -> Iterator[Session]:
    session = Session(dsn)
    yield session
    session.close()


@pytest.fixture
def ns(dsn: str) -> str:
    """The name of a schema of the test's database that is no other test's namespace on the server."""
    name = f"ns{next(_numbers)}"
    with Session(dsn).conn as conn:
        conn.execute(f"CREATE SCHEMA {name}")
    return name


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.stash[_began] = {name: owner.log_size() for name, owner in _logs.items()}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        began = item.stash.get(_began, {})
        for name, owner in _logs.items():
            if text := owner.log_since(began.get(name, 0)).strip():
                report.sections.append((f"log of the {name}", text[-4000:]))
    return report
