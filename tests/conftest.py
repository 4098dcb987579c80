"""Options of the whole test suite."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from support import places
from support.build import NAMES, ROOT


def pytest_configure(config: pytest.Config) -> None:
    # So that fixtures end what they started when somebody ends the test run.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("ended by SIGTERM", 143))
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(places.parent()))  # of tmp_path
    if sys.dont_write_bytecode:  # the programs that tests start would compile themselves each time
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ["PYTHONPYCACHEPREFIX"] = str(ROOT / ".build" / "pycache")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pg-config",
        action="append",
        metavar="|".join((*NAMES, "PATH")),
        help="PostgreSQL for tests/pg: a name or the path of its pg_config; may be repeated, and each test then runs "
        "on each (default: the words of KALAM_TEST_PG, else bundled16)",
    )


def chosen(config: pytest.Config) -> list[str]:
    """The PostgreSQLs asked for."""
    given: list[str] = config.getoption("--pg-config") or os.environ.get("KALAM_TEST_PG", "").split()
    return given or ["bundled16"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "installed" in metafunc.fixturenames:
        names = chosen(metafunc.config)
        # With one PostgreSQL its name would only lengthen every test's.
        ids = names if len(names) > 1 else [pytest.HIDDEN_PARAM]
        metafunc.parametrize("installed", names, indirect=True, scope="session", ids=ids)


def pytest_report_header(config: pytest.Config) -> str:
    return f"PostgreSQL for tests/pg: {', '.join(chosen(config))}"
