"""FILE columns through PostgreSQL: contents by kalam_exec, references like any jsonb, whose they are."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import psycopg
import pytest

from support.postgres import Postgres
from support.server import KalamServer

from .ddl import Session

pytestmark = pytest.mark.pg

PUT = ("SELECT (kalam_exec(format('FILE PUT INTO {} NAME %%L DATA BASE64 %%L', %s::text, encode(%s::bytea, 'base64')))"
       "::jsonb)->0->'file'")
GET = ("SELECT string_agg(decode(substr(part->>'data', 3), 'hex'), '' ORDER BY (part->>'offset')::bigint) "
       "FROM jsonb_array_elements(kalam_exec(%s)::jsonb) part")


def put(db: Session, into: str, name: str, data: bytes) -> Any:
    return db.value(PUT.format(into), name, data)


def get(db: Session, text: str) -> bytes:
    return bytes(db.value(GET, text))


def table(db: Session, ns: str, kind: str = "shared") -> str:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, f FILE) USING kalamdb WITH (type = '{kind}')")
    return f"{ns}.t"


def insert(db: Session, name: str, key: int, found: Any) -> None:
    db(f"INSERT INTO {name} (id, f) VALUES (%s, %s)", key, json.dumps(found))


def test_there_and_back(db: Session, ns: str) -> None:
    name, data = table(db, ns), os.urandom(1_200_000)
    found = put(db, f"{name} (f)", "plan é.pdf", data)
    assert (found["name"], found["size"], found["mime"]) == ("plan é.pdf", len(data), "application/pdf")
    assert found["sha256"] == hashlib.sha256(data).hexdigest()
    insert(db, name, 1, found)
    assert db(f"SELECT f, f->>'name', pg_typeof(f)::text FROM {name}") == [(found, "plan é.pdf", "jsonb")]
    assert get(db, f"FILE GET f FROM {name} WHERE id = 1") == data
    assert get(db, f"FILE GET f FROM {name} WHERE id = 1 OFFSET 1000000 LIMIT 9") == data[1_000_000:1_000_009]


def test_it_is_a_jsonb(db: Session, ns: str) -> None:
    name = table(db, ns)
    found = [put(db, f"{name} (f)", f"{'cab'[number]}.txt", b"x" * (number + 1)) for number in range(3)]
    with db.conn.cursor().copy(f"COPY {name} (id, f) FROM STDIN") as copy:
        for number, each in enumerate(found):
            copy.write_row((number, json.dumps(each)))
    db(f"INSERT INTO {name} VALUES (3, NULL)")
    assert db(f"SELECT id FROM {name} WHERE f->>'mime' = 'text/plain' ORDER BY f->>'name'") == [(1,), (2,), (0,)]
    assert db(f"SELECT sum((f->>'size')::int), count(*) FROM {name}") == [(6, 4)]
    assert db(f"SELECT id FROM {name} WHERE f IS NULL OR f = %s::jsonb ORDER BY id", json.dumps(found[1])) == [
        (1,), (3,)]
    db(f"UPDATE {name} SET f = jsonb_set(f, '{{name}}', '\"renamed\"') WHERE id = 0")
    db(f"UPDATE {name} SET f = (SELECT f FROM {name} WHERE id = 2) WHERE id = 1 RETURNING f")
    db(f"INSERT INTO {name} SELECT id + 10, f FROM {name} WHERE f IS NOT NULL")
    db.value("SELECT kalam_flush(%s)", name)
    assert db(f"SELECT f->>'name' FROM {name} WHERE id IN (0, 1, 10) ORDER BY id") == [
        ("renamed",), ("b.txt",), ("renamed",)]
    assert get(db, f"FILE GET f FROM {name} WHERE id = 11") == b"xxx"


@pytest.mark.parametrize(("change", "sqlstate", "words"), [
    ("'{}'", "22023", "invalid reference to a file"),
    ("'[]'", "22023", "invalid reference to a file"),
    ("f || '{\"name\": \"../../x\"}'", "22023", "invalid name of a file"),
    ("f || '{\"name\": \"a\\nb\"}'", "22023", "invalid name of a file"),
    ("f || jsonb_build_object('name', repeat('é', 200))", "22023", "longer than 255 bytes"),
    ("f || '{\"size\": 1}'", "22023", "size"),
    ("f || jsonb_build_object('sha256', repeat('0', 64))", "23503", "has not been put"),
])
def test_what_is_refused(db: Session, ns: str, change: str, sqlstate: str, words: str) -> None:
    name = table(db, ns)
    found = put(db, f"{name} (f)", "x", b"data")
    insert(db, name, 1, found)
    db.fails(f"UPDATE {name} SET f = {change}", sqlstate, words)
    db.fails(f"INSERT INTO {name} SELECT id + 1, {change} FROM {name}", sqlstate, words)
    assert db(f"SELECT id, f FROM {name}") == [(1, found)]


def test_definitions(db: Session, ns: str) -> None:
    name = table(db, ns)
    db.fails(f"CREATE TABLE {ns}.d (id int, f FILE DEFAULT '{{}}') USING kalamdb", "0A000", "cannot have a default")
    db.fails(f"ALTER TABLE {name} ALTER COLUMN f SET DEFAULT '{{}}'", "0A000", "cannot have a default")
    db.fails(f"ALTER TABLE {name} ADD COLUMN g FILE DEFAULT '{{}}'", "0A000", "cannot have a default")
    db(f"INSERT INTO {name} VALUES (1)")
    db(f"ALTER TABLE {name} ADD COLUMN g FILE")
    found = put(db, f"{name} (g)", "x", b"of g")
    db(f"UPDATE {name} SET g = %s", json.dumps(found))
    assert get(db, f"FILE GET g FROM {name}") == b"of g"
    db(f"ALTER TABLE {name} RENAME COLUMN g TO h")
    assert get(db, f"FILE GET h FROM {name}") == b"of g"
    assert db(f"SELECT h FROM {name}") == [(found,)]
    for type_ in ("int", "text", "jsonb[]", "json"):
        db.fails(f"ALTER TABLE {name} ALTER COLUMN h TYPE {type_}", "0A000", "cannot alter type")
    assert db(f"SELECT h FROM {name}") == [(found,)]
    assert db("SELECT * FROM kalam_drift(%s)", name) == []
    db(f"ALTER TABLE {name} DROP COLUMN h")
    db.fails(f"SELECT kalam_exec('FILE GET h FROM {name}')", "42703", "does not exist")


@pytest.mark.parametrize("kind", ["user", "stream"])
def test_tenants(db: Session, ns: str, kind: str) -> None:
    options = f"type = '{kind}'" + (", ttl_seconds = 3600" if kind == "stream" else "")
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, f FILE) USING kalamdb WITH ({options})")
    name = f"{ns}.t"
    db.fails(f"SELECT kalam_exec('FILE PUT INTO {name} (f) DATA ''x''')", "42501", "no tenant")
    db("SET kalam.user_id = 'ann'")
    found = put(db, f"{name} (f)", "x", b"secret of ann")
    insert(db, name, 1, found)
    db("SET kalam.user_id = 'bob'")
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        insert(db, name, 1, found)
    db.fails(f"SELECT kalam_exec('FILE GET f FROM {name} WHERE id = 1')", "P0002", "no row")
    mine = put(db, f"{name} (f)", "x", b"secret of ann")
    assert mine["sha256"] == found["sha256"]
    insert(db, name, 1, mine)
    db("SET kalam.user_id = 'ann'")
    assert get(db, f"FILE GET f FROM {name} WHERE id = 1") == b"secret of ann"


def test_a_role_bound_to_a_tenant(db: Session, ns: str, dsn: str, pg: Postgres) -> None:
    name = table(db, ns, "user")
    role = f"{ns}_bob"
    db(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {ns} TO {role}; GRANT ALL ON {name} TO {role};"
       f"GRANT EXECUTE ON FUNCTION kalam_exec TO {role}; GRANT USAGE ON FOREIGN SERVER kalam_server TO {role};"
       f"CREATE USER MAPPING FOR {role} SERVER kalam_server OPTIONS (user_id 'bob')")
    try:
        db("SET kalam.user_id = 'ann'")
        found = put(db, f"{name} (f)", "x", b"of ann")
        insert(db, name, 1, found)
        with psycopg.connect(dsn, user=role, autocommit=True) as conn:
            for text, sqlstate in (
                (f"FILE GET f FROM {name} WHERE id = 1", "P0002"),
                (f"EXECUTE AS USER 'ann' (FILE GET f FROM {name} WHERE id = 1)", "42501"),
                (f"EXECUTE AS USER 'ann' (FILE PUT INTO {name} (f) DATA 'x')", "42501"),
            ):
                with pytest.raises(psycopg.Error) as caught:
                    conn.execute("SELECT kalam_exec(%s)", [text])
                assert caught.value.sqlstate == sqlstate
            ((answer,),) = conn.execute("SELECT kalam_exec(%s)", [f"FILE PUT INTO {name} (f) DATA 'of bob'"]).fetchall()
            conn.execute(f"INSERT INTO {name} (id, f) VALUES (1, %s)", [json.dumps(json.loads(answer)[0]["file"])])
        db("SET kalam.user_id = 'bob'")
        assert get(db, f"FILE GET f FROM {name} WHERE id = 1") == b"of bob"
    finally:
        db(f"DROP USER MAPPING FOR {role} SERVER kalam_server; DROP OWNED BY {role}; DROP ROLE {role}")


def test_transactions(db: Session, other: Session, ns: str) -> None:
    name = table(db, ns)
    db("BEGIN")
    found = put(db, f"{name} (f)", "x", b"rolled back")
    insert(db, name, 1, found)
    assert get(db, f"FILE GET f FROM {name} WHERE id = 1") == b"rolled back"
    other.fails(f"SELECT kalam_exec('FILE GET f FROM {name} WHERE id = 1')", "P0002")
    db("SAVEPOINT a")
    db.fails(f"UPDATE {name} SET f = '{{}}'", "22023")
    db("ROLLBACK TO a")
    db("ROLLBACK")
    assert db(f"SELECT * FROM {name}") == []
    insert(db, name, 2, found)  # within the grace period it is there still
    assert get(db, f"FILE GET f FROM {name}") == b"rolled back"
    db("BEGIN READ ONLY")
    db.fails(f"SELECT kalam_exec('FILE PUT INTO {name} (f) DATA ''x''')", "25006")
    db("ROLLBACK")


def test_in_pieces_and_after_a_restart(db: Session, ns: str, server: KalamServer) -> None:
    name = table(db, ns)
    upload = db.remote(f"FILE OPEN INTO {name} (f) NAME 'x'")[0]["upload"]
    for part in ("one ", "two ", "three"):
        db.remote(f"FILE APPEND TO '{upload}' DATA '{part}'")
    insert(db, name, 1, db.remote(f"FILE CLOSE '{upload}'")[0]["file"])
    db("SELECT kalam_flush(%s)", name)
    server.kill()
    server.start()
    db.fails(f"SELECT kalam_exec('FILE CLOSE ''{upload}''')", "42704", "does not exist")
    assert get(db, f"FILE GET f FROM {name} WHERE id = 1") == b"one two three"


def test_a_dropped_table_comes_back_with_its_files(db: Session, ns: str) -> None:
    name = table(db, ns)
    insert(db, name, 1, put(db, f"{name} (f)", "x", b"kept"))
    db(f"DROP TABLE {name}")
    db.remote(f"UNDROP TABLE {name}")
    assert get(db, f"FILE GET f FROM {name} WHERE id = 1") == b"kept"
    db(f"IMPORT FOREIGN SCHEMA {ns} FROM SERVER kalam_server INTO {ns}")
    assert db(f"SELECT f->>'size' FROM {name}") == [("4",)]
    insert(db, name, 2, put(db, f"{name} (f)", "x", b"more"))
