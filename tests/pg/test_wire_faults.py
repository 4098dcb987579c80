"""What a session shows when the way to the server is slow, silent or cut, wherever in a statement that happens."""

from __future__ import annotations

import pytest

from support.proxy import Proxy

from .ddl import Session

pytestmark = pytest.mark.pg


@pytest.fixture
def table(db: Session, ns: str, proxy: Proxy) -> str:
    """5,000 rows in chunks of 1,000, behind the proxy."""
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, body text) USING kalamdb WITH (type = 'shared', "
       f"server = '{ns}_proxy')")
    db(f"ALTER FOREIGN TABLE {ns}.t OPTIONS (ADD fetch_size '1000')")
    db(f"INSERT INTO {ns}.t SELECT g, 'body ' || g FROM generate_series(1, 5000) g")
    return f"{ns}.t"


def test_it_passes_everything(db: Session, proxy: Proxy, table: str) -> None:
    assert db(f"SELECT count(*), sum(id), min(body) FROM (SELECT * FROM {table} OFFSET 0) t") == [
        (5000, 12502500, "body 1")]
    assert proxy.connections == 1
    assert proxy.count("FETCH") > 0


@pytest.mark.parametrize("after", [0, 1, 30, 5000])
def test_cut_inside_an_answer(db: Session, proxy: Proxy, table: str, after: int) -> None:
    trap = proxy.trap("FETCH", "cut answer", after=after)
    db.fails(f"SELECT count(*) FROM (SELECT * FROM {table} OFFSET 0) t", "08006")
    trap.wait()
    assert db(f"SELECT count(*) FROM {table}") == [(5000,)]
