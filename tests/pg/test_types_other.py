"""Types beside the matrix: vectors, imports, tables of before, comparisons by the server's SQL, altered types."""

from __future__ import annotations

import json

import pytest

from .ddl import Session

pytestmark = pytest.mark.pg

#: pgvector's type as far as SQL can make it: a name, a length, and text
VECTOR = """
CREATE TYPE {ns}.vector;
CREATE FUNCTION {ns}.vector_in(cstring, oid, int) RETURNS {ns}.vector LANGUAGE internal IMMUTABLE STRICT AS 'varcharin';
CREATE FUNCTION {ns}.vector_out({ns}.vector) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'varcharout';
CREATE FUNCTION {ns}.vector_length_in(cstring[]) RETURNS int LANGUAGE internal IMMUTABLE STRICT AS 'bittypmodin';
CREATE FUNCTION {ns}.vector_length_out(int) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'bittypmodout';
CREATE TYPE {ns}.vector (INPUT = {ns}.vector_in, OUTPUT = {ns}.vector_out, LIKE = text,
    TYPMOD_IN = {ns}.vector_length_in, TYPMOD_OUT = {ns}.vector_length_out);
"""


@pytest.fixture
def vectors(db: Session, ns: str) -> str:
    db(VECTOR.format(ns=ns))
    db(f"CREATE TABLE {ns}.v (id int PRIMARY KEY, e {ns}.vector(3), w {ns}.vector) USING kalamdb")
    return f"{ns}.v"


def test_vectors(db: Session, ns: str, vectors: str) -> None:
    columns = db.remote_columns(f"{ns}.v")
    assert (columns["e"]["type"], columns["w"]["type"]) == ("embedding(3)", "embedding")
    db(f"INSERT INTO {vectors} SELECT g, '[1,2.5,-3e-5]', '[1]' FROM generate_series(1, 300) g")
    db(f"SELECT kalam_flush('{vectors}')")
    assert db(f"SELECT DISTINCT e::text, w::text FROM {vectors}") == [("[1,2.5,-3e-5]", "[1]")]
    db(f"SELECT kalam_exec('INSERT INTO {ns}.v VALUES (1000, ''[4,5,6]'', NULL)')")
    assert db.value(f"SELECT e::text FROM {vectors} WHERE id = 1000") == "[4,5,6]"
    db.fails(f"SELECT kalam_exec('INSERT INTO {ns}.v VALUES (1001, ''[4,5]'', NULL)')", "22000", "expected 3 dimen")
    db.fails(f"CREATE TABLE {ns}.k (e {ns}.vector(3) PRIMARY KEY) USING kalamdb", "42P16", "cannot be part of the key")
    db(f"SET search_path = {ns}, public")
    db(f"CREATE SCHEMA {ns}_i")
    db(f"IMPORT FOREIGN SCHEMA {ns} LIMIT TO (v) FROM SERVER kalam_server INTO {ns}_i")
    assert db.value(f"SELECT format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = '{ns}_i.v'::regclass"
                    " AND attname = 'e'") == "vector(3)"
    assert db.value(f"SELECT count(*) FROM {ns}_i.v WHERE e::text = '[4,5,6]'") == 1
    assert db(f"SELECT * FROM kalam_drift('{vectors}')") == []
    assert db(f"SELECT * FROM kalam_drift('{ns}_i.v')") == []


TYPES = [
    "time(3)", "timetz", "interval", "interval(2)", "char(5)", "bpchar", "bit(3)", "varbit(9)", "varbit", "inet",
    "cidr", "macaddr", "macaddr8", "int4range", "nummultirange", "integer[]", "numeric[]", "timestamptz[]", "text[]",
    "inet[]", "numrange[]", "char[]",
]  # fmt: skip


def test_imported_types(db: Session, ns: str) -> None:
    """A table has the same types where it is imported, and the server finds no difference."""
    body = ", ".join(f"c{place} {type_}" for place, type_ in enumerate(TYPES))
    db(f"CREATE TABLE {ns}.t (id int PRIMARY KEY, {body}) USING kalamdb")
    assert db(f"SELECT * FROM kalam_drift('{ns}.t')") == []
    db(f"CREATE SCHEMA {ns}_i")
    db(f"IMPORT FOREIGN SCHEMA {ns} FROM SERVER kalam_server INTO {ns}_i")
    shown = ("SELECT attname, CASE typcategory WHEN 'A' THEN typname ELSE format_type(atttypid, atttypmod) END"
             " FROM pg_attribute JOIN pg_type t ON t.oid = atttypid WHERE attrelid = %s::regclass AND attnum > 0"
             " ORDER BY attnum")
    assert db(shown, f"{ns}_i.t") == db(shown, f"{ns}.t")


def test_table_of_text(db: Session, ns: str) -> None:
    """A table whose remote columns were declared as text goes on as it was."""
    db(f"SELECT kalam_exec('CREATE NAMESPACE {ns}')")
    db(f"SELECT kalam_exec('CREATE SHARED TABLE {ns}.old (id integer PRIMARY KEY, i text, a text)')")
    db(f"CREATE FOREIGN TABLE {ns}.old (id int OPTIONS (key '1'), i interval, a numeric[]) SERVER kalam_server "
       f"OPTIONS (namespace '{ns}', \"table\" 'old')")
    db(f"INSERT INTO {ns}.old VALUES (1, '1 mon', '{{1.0}}')")
    assert db(f"SELECT i::text, a::text FROM {ns}.old WHERE i = '30 days'") == [("1 mon", "{1.0}")]
    db(f"INSERT INTO {ns}.old VALUES (2, '30 days'), (3, '-9 days'), (4, '9 days')")
    for sql, wanted in (("SELECT id FROM old ORDER BY i, id", [3, 4, 1, 2]),
                        ("SELECT id FROM old WHERE i > '10 d'", [1, 2]),
                        ("SELECT count(*)::int FROM old GROUP BY i ORDER BY i", [1, 1, 2]),
                        ("SELECT id FROM old WHERE i IN ('9 d', '-9 d') ORDER BY i DESC", [4, 3]),
                        ("SELECT extract(day FROM min(i))::int FROM old", [-9])):
        assert db(sql.replace("old", f"{ns}.old")) == [(value,) for value in wanted], sql
    assert db(f"SELECT * FROM kalam_drift('{ns}.old')") == []


def test_cidr_as_inet(db: Session, ns: str) -> None:
    """Without a function's call, as PostgreSQL has it: an inet of all bits is written without their number."""
    db(f"CREATE TABLE {ns}.t (id int PRIMARY KEY, ip inet, net cidr) USING kalamdb WITH (system_columns = 'false')")
    db(f"INSERT INTO {ns}.t VALUES (1, '10.0.0.1/8', '10.0.0.1'), (2, '::1', '2001:db8::/32'), (3, '::2', '::1')")
    db(f"UPDATE {ns}.t SET ip = net")
    assert db(f"SELECT ip::text, host(ip) FROM {ns}.t WHERE ip = '10.0.0.1'") == [("10.0.0.1/32", "10.0.0.1")]
    assert ask(db, f"SELECT ip FROM {ns}.t ORDER BY id") == ["10.0.0.1", "2001:db8::/32", "::1"]
    db(f"UPDATE {ns}.t SET ip = COALESCE(network(ip), ip), net = NULL WHERE id > 1")
    assert ask(db, f"SELECT ip FROM {ns}.t ORDER BY id") == ["10.0.0.1", "2001:db8::/32", "::1"]
    db(f"SELECT kalam_exec('UPDATE {ns}.t SET net = ''10.0.0.1/8''::inet WHERE id = 1')")
    assert ask(db, f"SELECT net FROM {ns}.t WHERE id = 1") == ["10.0.0.0/8"]


def ask(db: Session, sql: str) -> list[object]:
    return [next(iter(row.values())) for row in json.loads(db.value("SELECT kalam_exec(%s)", sql))]


def test_server_sql(db: Session, ns: str) -> None:
    """The server compares and sorts by PostgreSQL's rules what has an order there, and refuses the rest."""
    db(f"CREATE TABLE {ns}.t (id int PRIMARY KEY, i interval, n inet, c char(4), b varbit, r numrange) USING kalamdb")
    db(f"INSERT INTO {ns}.t VALUES (1, '1 mon', '10.0.0.1', 'a', '1', '[1,2)'), (4, NULL, NULL, NULL, NULL, NULL),"
       " (2, '30 days', '9.0.0.0/8', 'ab', '01', 'empty'), (3, '-1 day', '::1', 'b', '', NULL)")
    for flushed in (False, True):
        if flushed:
            db(f"SELECT kalam_flush('{ns}.t')")
        for condition in ("i = '30 days'", "i > '0'", "n < '10.0.0.1'", "c = 'a'", "c >= 'ab  '", "b > '0'",
                          "i IS NULL", "i <> '1 mon'", "n BETWEEN '9.0.0.0/8' AND '::'",
                          "i IN ('720:00:00', '1 s')", "i = i"):
            wanted = [row[0] for row in db(f"SELECT id FROM {ns}.t WHERE {condition} ORDER BY id")]
            assert ask(db, f"SELECT id FROM {ns}.t WHERE {condition} ORDER BY id") == wanted, condition
            engine = f"SELECT id FROM {ns}.t WHERE ({condition}) OR length('x') = 2 ORDER BY id"
            assert ask(db, engine) == wanted, condition
        for order in ("i, id", "n DESC NULLS LAST", "c, id", "b"):
            wanted = [row[0] for row in db(f"SELECT id FROM {ns}.t ORDER BY {order}")]
            assert ask(db, f"SELECT id FROM {ns}.t ORDER BY {order}") == wanted, order
        assert ask(db, f"SELECT count(*) FROM {ns}.t GROUP BY i ORDER BY 1") == [1, 1, 2]
        assert ask(db, f"SELECT count(DISTINCT i) FROM {ns}.t") == [2]
        assert ask(db, f"SELECT CAST(c AS text) || '.' FROM {ns}.t WHERE id = 1") == ["a."]
    db.fails(f"SELECT kalam_exec('SELECT id FROM {ns}.t ORDER BY r')", "0A000", "numrange")
    db.fails(f"SELECT kalam_exec('SELECT id FROM {ns}.t WHERE r = ''empty''')", "0A000", "numrange")
    db.fails(f"SELECT kalam_exec('INSERT INTO {ns}.t (id, i) VALUES (9, ''soon'')')", "22007", "interval")
    db.fails(f"SELECT kalam_exec('INSERT INTO {ns}.t (id, c) VALUES (9, ''too long'')')", "22001")


@pytest.mark.parametrize("column", ["{}", "{}[]", "{}_d", "{}_c", "{}_c[]"])
def test_altered_types(db: Session, ns: str, column: str) -> None:
    """What would leave rows that no longer read is refused while a column uses the type; all else is allowed."""
    db(f"CREATE TYPE {ns}.e AS ENUM ('a', 'b'); CREATE DOMAIN {ns}.e_d AS {ns}.e; CREATE TYPE {ns}.e_c AS (x {ns}.e);"
       f"CREATE TYPE {ns}.p AS (a int, b int); CREATE DOMAIN {ns}.p_d AS {ns}.p; CREATE TYPE {ns}.p_c AS (x {ns}.p[])")
    e, p = (column.format(f"{ns}.{name}") for name in "ep")
    db(f"CREATE TABLE {ns}.t (id int PRIMARY KEY, e {e}, p {p}) USING kalamdb")
    for change in (f"ALTER TYPE {ns}.e RENAME VALUE 'a' TO 'c'", f"ALTER TYPE {ns}.p ADD ATTRIBUTE c int",
                   f"ALTER TYPE {ns}.p DROP ATTRIBUTE a", f"ALTER TYPE {ns}.p ALTER ATTRIBUTE a TYPE text"):
        error = db.fails(change, "0A000", "cannot alter type", '"t.')
        assert error.diag.message_hint
    db(f"ALTER TYPE {ns}.e ADD VALUE 'between' AFTER 'a'")
    db(f"ALTER TYPE {ns}.p RENAME ATTRIBUTE b TO bb")
    db(f"DROP TABLE {ns}.t")
    db(f"ALTER TYPE {ns}.e RENAME VALUE 'a' TO 'c'")
    db(f"ALTER TYPE {ns}.p ADD ATTRIBUTE c int")
    db.fails(f"ALTER TYPE {ns}.nothing RENAME VALUE 'a' TO 'c'", "42704")
