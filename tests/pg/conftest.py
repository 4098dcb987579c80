"""One PostgreSQL with the extension and one KalamDB server for the session; a database for each module of tests.

Tests of a module keep apart by `ns`; one that would spoil its database for others takes `second`, which is its own.

What a random test varies is mostly the server's part, which is the same under each PostgreSQL: with all `examples` it
runs on the one of `make test`, elsewhere with a third of them. Everything else runs on each in full.

A test may kill or stop either: the next test finds both running. What both logged during a test is shown if it fails,
and a backend that crashed fails the test it crashed in.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pytest

from support.build import Installed, install
from support.postgres import Postgres
from support.proxy import Proxy
from support.server import KalamServer

from .ddl import Session
from .observer import Observer
from .shards import Shards

TEMPLATE = "template_kalam"
WHOLE = "bundled16"
CRASH = re.compile(r"^.*(terminated by signal (?!2:|3:|9:|15:)|PANIC:|TRAP:).*\n?.*$", re.MULTILINE)

_numbers = itertools.count(1)
_logs: dict[str, Postgres | KalamServer] = {}
_began = pytest.StashKey[dict[str, int]]()


@pytest.fixture(scope="session")
def installed(request: pytest.FixtureRequest) -> Installed:
    """A PostgreSQL of `--pg-config` with the extension as it is in the source tree."""
    return install(request.param)


@pytest.fixture(scope="session")
def examples(installed: Installed) -> Callable[[int], int]:
    """How many of so many random examples to run on this PostgreSQL."""
    return lambda count: count if installed.name == WHOLE else max(1, count // 3)


@pytest.fixture(scope="session")
def running_server() -> Iterator[KalamServer]:
    server = KalamServer()
    server.settings["rpc__socket_dir"] = str(server.dir)
    _logs["KalamDB server"] = server
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def running_second() -> Iterator[KalamServer]:
    server = KalamServer()
    _logs["second KalamDB server"] = server
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
def second_server(running_second: KalamServer) -> KalamServer:
    """One more KalamDB server, with data of its own."""
    running_second.start()
    return running_second


@pytest.fixture
def pg(running_pg: Postgres) -> Iterator[Postgres]:
    """The PostgreSQL cluster: `kill`, `stop`, `start`, `restart`, `connect`, `dsn`."""
    running_pg.start()
    before = running_pg.log_size()
    yield running_pg
    crash = CRASH.search(running_pg.log_since(before))
    assert crash is None, f"PostgreSQL crashed:\n{crash.group() if crash else ''}"


@contextmanager
def _database(pg: Postgres) -> Iterator[str]:
    """One more database with the extension and `kalam_server`."""
    name = f"t{next(_numbers)}"
    pg.start()
    with pg.connect() as conn:
        conn.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield pg.dsn(name)
    pg.start()
    with pg.connect() as conn:
        conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="module")
def module_dsn(running_pg: Postgres) -> Iterator[str]:
    with _database(running_pg) as dsn:
        yield dsn


@pytest.fixture
def dsn(module_dsn: str, pg: Postgres, server: KalamServer) -> str:
    """A superuser's way into the module's database."""
    return module_dsn


@pytest.fixture
def db(dsn: str) -> Iterator[Session]:
    """A session in the module's database."""
    yield from _session(dsn)


@pytest.fixture
def other(dsn: str) -> Iterator[Session]:
    """One more session in the same database."""
    yield from _session(dsn)


@pytest.fixture
def second(pg: Postgres, server: KalamServer) -> Iterator[Session]:
    """A session in one more database of the same PostgreSQL, which is the test's own."""
    with _database(pg) as dsn:
        yield from _session(dsn)


def _session(dsn: str) -> Iterator[Session]:
    session = Session(dsn)
    yield session
    session.close()


@pytest.fixture
def ns(dsn: str) -> str:
    """The name of a new schema, which is no other test's, nor another test's namespace on the server."""
    name = f"ns{next(_numbers)}"
    with Session(dsn).conn as conn:
        conn.execute(f"CREATE SCHEMA {name}")
    return name


@pytest.fixture
def proxy(server: KalamServer, dsn: str, ns: str) -> Iterator[Proxy]:
    """What may happen between PostgreSQL and the server; the server `NS_proxy` leads through it."""
    with Proxy(server.port) as proxy:
        with Session(dsn).conn as conn:
            conn.execute(f"CREATE SERVER {ns}_proxy FOREIGN DATA WRAPPER pg_kalam "
                         f"OPTIONS (host '127.0.0.1', port '{proxy.port}')")
        yield proxy


@pytest.fixture
def shards(db: Session, ns: str, server: KalamServer, second_server: KalamServer) -> Iterator[Shards]:
    """Both servers, each behind a proxy."""
    with Proxy(server.port) as a, Proxy(second_server.port) as b:
        yield Shards(db, ns, a, b)


@pytest.fixture
def observer(server: KalamServer) -> Iterator[Observer]:
    """Sees on the server what other sessions do there."""
    observer = Observer(server)
    yield observer
    observer.conn.close()


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
