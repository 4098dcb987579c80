"""Lets the server of this source tree write the folder of its format: `python tests/data/make.py FOLDER`."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from pathlib import Path

import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.server import KalamServer

STATEMENTS = """
CREATE NAMESPACE shop;
CREATE SHARED TABLE shop.items (id bigint NOT NULL, name text NOT NULL, price numeric DEFAULT 1.5,
    CONSTRAINT items_pkey PRIMARY KEY (id), CONSTRAINT cheap CHECK (price < 1000));
CREATE USER TABLE shop.notes (id bigint, body text, PRIMARY KEY (id));
CREATE STREAM TABLE shop.events (id bigint, what text) WITH (ttl_seconds = '1000000000');
CREATE SHARED TABLE shop.gone (id bigint PRIMARY KEY);
INSERT INTO shop.items VALUES (1, 'apple', 0.25), (2, 'pear', 1.50), (3, 'quince', 2);
STORAGE FLUSH TABLE shop.items;
UPDATE shop.items SET price = 0.75 WHERE id = 2;
DELETE FROM shop.items WHERE id = 3;
INSERT INTO shop.items VALUES (4, 'näme', NULL);
EXECUTE AS USER 'alice' (INSERT INTO shop.notes VALUES (1, 'alice one'), (2, 'alice two'));
EXECUTE AS USER 'bob' (INSERT INTO shop.notes VALUES (1, 'bob one'), (2, 'bob two'));
EXECUTE AS USER 'alice' (INSERT INTO shop.events VALUES (1, 'alice came'));
EXECUTE AS USER 'bob' (INSERT INTO shop.events VALUES (1, 'bob came'));
STORAGE FLUSH TABLE shop.notes;
DROP TABLE shop.gone
"""


def write(folder: Path) -> None:
    server = KalamServer()
    try:
        server.start()
        with psycopg.connect(server.dsn(), autocommit=True) as conn:
            for statement in STATEMENTS.split(";"):
                conn.execute(statement.strip())
        server.stop()
        folder.mkdir(parents=True)
        shutil.copytree(server.data / "segments", folder / "segments")
        with sqlite3.connect(server.data / "hot.db") as database:
            (folder / "hot.sql").write_text("\n".join(database.iterdump()) + "\n", encoding="utf-8")
    finally:
        server.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
