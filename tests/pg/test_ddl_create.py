"""CREATE TABLE … USING kalamdb: options, keys, rewrites, defaults and system columns, as both sides show them."""

from __future__ import annotations

import pytest

from .ddl import Session

pytestmark = pytest.mark.pg

# WITH clause, SQLSTATE, words that the message or hint must have
BAD_OPTIONS = [
    ("type = 'sharde'", "HV00D", ["table_type", "shared"]),
    ("type = ''", "HV00D", ["table_type"]),
    ("colour = 'red'", "HV00D", ["colour", "flush_policy", "system_columns"]),
    ("flush_polic = 'rows:1'", "HV00D", ["flush_polic", "flush_policy"]),
    ("table_type = 'user'", "HV00D", ["table_type", "type"]),
    ("kalam.type = 'user'", "HV00D", ["kalam.type"]),
    ("key = 'id'", "HV00D", ["key", "PRIMARY KEY"]),
    ("type = 'stream'", "HV00D", ["ttl_seconds"]),
    ("type = 'stream', ttl_seconds = 0", "HV00D", ["ttl_seconds"]),
    ("type = 'stream', ttl_seconds = -5", "HV00D", ["ttl_seconds"]),
    ("type = 'stream', ttl_seconds = 'soon'", "HV00D", ["ttl_seconds"]),
    ("ttl_seconds = 60", "HV00D", ["ttl_seconds"]),
    ("type = 'user', ttl_seconds = 60", "HV00D", ["ttl_seconds"]),
    ("type = 'stream', ttl_seconds = 60, flush_policy = 'rows:5'", "HV00D", ["flush_policy"]),
    ("type = 'stream', ttl_seconds = 60, compression = 'zstd'", "HV00D", ["compression"]),
    ("type = 'stream', ttl_seconds = 60, deleted_retention_hours = 1", "HV00D", ["deleted_retention_hours"]),
    ("flush_policy = 'rows'", "HV00D", ["flush_policy"]),
    ("flush_policy = 'rows:0'", "HV00D", ["flush_policy"]),
    ("flush_policy = 'interval:-1'", "HV00D", ["flush_policy"]),
    ("flush_policy = 'rows:1,rows:2'", "HV00D", ["flush_policy"]),
    ("flush_policy = ''", "HV00D", ["flush_policy"]),
    ("deleted_retention_hours = -1", "HV00D", ["deleted_retention_hours"]),
    ("deleted_retention_hours = 'x'", "HV00D", ["deleted_retention_hours"]),
    ("access_level = 'everyone'", "HV00D", ["access_level", "private"]),
    ("type = 'user', access_level = 'public'", "HV00D", ["access_level"]),
    ("use_user_storage = true", "HV00D", ["use_user_storage"]),
    ("type = 'user', use_user_storage = 'maybe'", "HV00D", ["use_user_storage"]),
    ("compression = 'lzma'", "HV00D", ["compression", "zstd"]),
    ("system_columns = 'maybe'", "HV00D", ["system_columns"]),
    ("fetch_size = 0", "HV00D", ["fetch_size"]),
    ("batch_size = 1000001", "HV00D", ["batch_size"]),
    ("updatable = 'x'", "HV00D", ["updatable"]),
    ("server = 'nowhere'", "42704", ["nowhere", "CREATE SERVER nowhere"]),
    ("type = 'user', type = 'shared'", "42710", ["more than once"]),
    ("server = 'kalam_server', server = 'kalam_server'", "42710", ["more than once"]),
    ("storage_id = 'no such place'", None, ["no such place"]),
]

GOOD_OPTIONS = [
    ("type = 'shared', access_level = 'public'", {"type": "shared", "access_level": "public"}),
    ("type = user, use_user_storage = true", {"type": "user"}),
    ("type = stream, ttl_seconds = 3600", {"type": "stream", "ttl_seconds": "3600"}),
    ("flush_policy = 'rows:1000,interval:60'", {"flush_policy": "rows:1000,interval:60"}),
    ("deleted_retention_hours = 0, compression = 'snappy'", {"deleted_retention_hours": "0", "compression": "snappy"}),
]


@pytest.mark.parametrize(("options", "sqlstate", "words"), BAD_OPTIONS)
def test_bad_option(db: Session, ns: str, options: str, sqlstate: str | None, words: list[str]) -> None:
    statement = f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY) USING kalamdb WITH ({options})"
    db.fails(statement, sqlstate, *words)
    assert not db.exists(f"{ns}.t")
    assert db.facts(f'"{ns}"."t"') == {}


@pytest.mark.parametrize(("options", "facts"), GOOD_OPTIONS)
def test_options_reach_the_server(db: Session, ns: str, options: str, facts: dict[str, str]) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, a text) USING kalamdb WITH ({options})")
    remote = db.facts(f'"{ns}"."t"')
    assert {name: remote.get(name) for name in facts} == facts
    local = db.options(f"{ns}.t")
    assert (local["namespace"], local["table"], local["table_type"]) == (ns, "t", facts.get("type", "shared"))


def test_owner_is_this_relation(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb")
    owner = db.facts(f'"{ns}"."t"')["owner"].split("/")
    expected = db(
        "SELECT system_identifier::text, (SELECT oid::text FROM pg_database WHERE datname = current_database()), "
        "%s::regclass::oid::text FROM pg_control_system()",
        f"{ns}.t",
    )[0]
    assert tuple(owner) == expected


def test_names_may_differ_on_the_server(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb WITH (namespace = '{ns}_far', \"table\" = 'other')")
    db(f"INSERT INTO {ns}.t VALUES (1)")
    assert db.remote(f'SELECT id FROM "{ns}_far"."other"') == [{"id": 1}]
    assert db.facts(f'"{ns}"."t"') == {}


def test_default_access_method(db: Session, ns: str) -> None:
    db("SET default_table_access_method = kalamdb")
    db(f"CREATE TABLE {ns}.t (id bigint)")
    db(f"CREATE TABLE {ns}.parent (id bigint) PARTITION BY LIST (id)")
    db(f"CREATE TABLE {ns}.h (a int) USING heap")
    db.fails("CREATE TEMP TABLE x (id bigint)", "0A000", "TEMPORARY", "USING heap")
    kinds = dict(db("SELECT relname, relkind::text FROM pg_class WHERE relnamespace = %s::regnamespace", ns))
    assert kinds == {"t": "f", "parent": "p", "h": "r"}


def test_if_not_exists_touches_nothing(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb")
    before = db.facts(f'"{ns}"."t"')
    db.notices.clear()
    db(f"CREATE TABLE IF NOT EXISTS {ns}.t (x text) USING kalamdb WITH (type = 'user', \"table\" = 'fresh')")
    assert db.notices == ['relation "t" already exists, skipping']
    assert db.facts(f'"{ns}"."t"') == before
    assert db.facts(f'"{ns}"."fresh"') == {}
    db(f"CREATE TABLE IF NOT EXISTS {ns}.t2 (id bigint) USING kalamdb")
    assert db.facts(f'"{ns}"."t2"')


def test_existing_tables(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb")
    db.fails(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb", "42P07")
    db.fails(f"CREATE TABLE {ns}.u (id bigint) USING kalamdb WITH (\"table\" = 't')", "42P07")
    assert not db.exists(f"{ns}.u")


# ---------- keys ----------

KEYS = [
    ("id bigint", ["id"], "t_pkey"),
    ("a text, id int PRIMARY KEY", ["id"], "t_pkey"),
    ("a text, b int, c uuid, PRIMARY KEY (c)", ["c"], "t_pkey"),
    ("a text, b int, c date, PRIMARY KEY (c, a)", ["c", "a"], "t_pkey"),
    ("id int, b int CONSTRAINT mine PRIMARY KEY NOT DEFERRABLE", ["b"], "mine"),
    ('"my id" bigint, "Ü" text, CONSTRAINT "the ""key""" PRIMARY KEY ("Ü", "my id")', ["Ü", "my id"], 'the "key"'),
]


@pytest.mark.parametrize(("columns", "key", "name"), KEYS)
def test_keys(db: Session, ns: str, columns: str, key: list[str], name: str) -> None:
    db(f"CREATE TABLE {ns}.t ({columns}) USING kalamdb")
    assert db.key(f"{ns}.t") == key
    remote = db.remote_columns(f'"{ns}"."t"')
    assert sorted((c for c in remote if remote[c]["key"]), key=lambda c: remote[c]["key"]) == key
    assert db.facts(f'"{ns}"."t"')["key_constraint"] == name == db.options(f"{ns}.t")["key_constraint"]
    not_null = db(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnotnull AND attnum > 0", f"{ns}.t"
    )
    assert {row[0] for row in not_null} == set(key)


BAD_KEYS = [
    ("a int", "42P16", ["no primary key", '"id"']),
    ("a int PRIMARY KEY, b int PRIMARY KEY", "42P16", ["multiple primary keys"]),
    ("a int PRIMARY KEY, b int, PRIMARY KEY (b)", "42P16", ["multiple primary keys"]),
    ("a int, PRIMARY KEY (b)", "42703", ['"b"']),
    ("a int, PRIMARY KEY (_seq)", "42703", ["_seq"]),
    ("a int, PRIMARY KEY (a, a)", "42701", ["twice"]),
    ("a point PRIMARY KEY", "42P16", ['"a"', "point"]),
    ("a int PRIMARY KEY DEFERRABLE", "0A000", ["deferrable"]),
    ("a int, PRIMARY KEY (a) INITIALLY DEFERRED", "0A000", ["deferrable"]),
    ("a int, b int, PRIMARY KEY (a) INCLUDE (b)", "0A000", ["INCLUDE"]),
    ("a int NULL PRIMARY KEY", "42601", ["NULL"]),
]


@pytest.mark.parametrize(("columns", "sqlstate", "words"), BAD_KEYS)
def test_bad_keys(db: Session, ns: str, columns: str, sqlstate: str, words: list[str]) -> None:
    db.fails(f"CREATE TABLE {ns}.t ({columns}) USING kalamdb", sqlstate, *words)
    assert not db.exists(f"{ns}.t")
    assert db.facts(f'"{ns}"."t"') == {}


def test_stream_needs_no_key(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (at timestamptz, what text) USING kalamdb WITH (type = 'stream', ttl_seconds = 60)")
    assert db.key(f"{ns}.t") == []


# ---------- rewrites ----------

SERIALS = [
    ("id serial PRIMARY KEY", ["serial"]),
    ("id serial4", ["serial4"]),
    ("id smallserial", ["smallserial"]),
    ("id bigserial", []),
    ("id serial8", []),
    ("id int GENERATED ALWAYS AS IDENTITY", ["integer"]),
    ("id smallint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY", ["smallint"]),
    ("id bigint GENERATED ALWAYS AS IDENTITY (START WITH 5)", []),
]


@pytest.mark.parametrize(("column", "told"), SERIALS)
def test_serial_and_identity(db: Session, ns: str, column: str, told: list[str]) -> None:
    db(f"CREATE TABLE {ns}.t ({column}, a text) USING kalamdb")
    assert len(db.notices) == len(told)
    assert all(word in notice for word, notice in zip(told, db.notices, strict=True))
    kind, default = db(
        "SELECT format_type(atttypid, atttypmod), pg_get_expr(adbin, adrelid) FROM pg_attribute JOIN pg_attrdef "
        "ON adrelid = attrelid AND adnum = attnum WHERE attrelid = %s::regclass",
        f"{ns}.t",
    )[0]
    assert (kind, default.rsplit(".", 1)[-1]) == ("bigint", "snowflake_id()")
    db(f"INSERT INTO {ns}.t (a) VALUES ('here')")
    db.remote(f"INSERT INTO {ns}.t (a) VALUES ('there')")
    ids = dict(db(f"SELECT a, id FROM {ns}.t"))
    assert ids["here"] > 2**40
    assert ids["there"] > 2**40
    assert ids["here"] != ids["there"]


def test_serial_keeps_an_explicit_default(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (id serial DEFAULT 7, a text) USING kalamdb")
    db(f"INSERT INTO {ns}.t (a) VALUES ('x')")
    assert db(f"SELECT id FROM {ns}.t") == [(7,)]


def test_identity_of_a_wrong_type(db: Session, ns: str) -> None:
    db.fails(f"CREATE TABLE {ns}.t (id text GENERATED ALWAYS AS IDENTITY) USING kalamdb", "22023", "identity")


def test_file_is_jsonb_here(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint, doc FILE) USING kalamdb")
    assert (
        db.value(
            "SELECT format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'doc'",
            f"{ns}.t",
        )
        == "jsonb"
    )
    assert db.remote_columns(f'"{ns}"."t"')["doc"]["type"].lower() == "file"


# column, value PostgreSQL gives, value the server gives (None: the server has no default)
DEFAULTS = [
    ("a int DEFAULT 5", 5, 5),
    ("a int DEFAULT -2147483648", -2147483648, -2147483648),
    ("a bigint DEFAULT 5", 5, 5),
    ("a numeric(8,2) DEFAULT 1.5", "1.50", "1.50"),
    ("a boolean DEFAULT true", True, True),
    ("a text DEFAULT 'it''s \\ \"q\" ü'", 'it\'s \\ "q" ü', 'it\'s \\ "q" ü'),
    ("a varchar(5) DEFAULT 'abc'", "abc", "abc"),
    ("a text DEFAULT ''", "", ""),
    ("a text DEFAULT NULL", None, None),
    ("a date DEFAULT '2020-02-29'", "2020-02-29", "2020-02-29"),
    ("a timestamptz DEFAULT '2020-02-29 12:00+00'", "2020-02-29 12:00:00+00", "2020-02-29 12:00:00+00"),
    ("a uuid DEFAULT '6a1f1c1e-0000-4000-8000-000000000001'", *["6a1f1c1e-0000-4000-8000-000000000001"] * 2),
    ("a double precision DEFAULT 0.1", 0.1, 0.1),
    ("a int DEFAULT length('abcd')", 4, 4),
    ("a int DEFAULT random()::int * 0 + 3", 3, None),
]


@pytest.mark.parametrize(("column", "here", "there"), DEFAULTS)
def test_defaults_on_both_sides(db: Session, ns: str, column: str, here: object, there: object) -> None:
    db("SET TimeZone = 'UTC'; SET DateStyle = 'German'")
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, {column}) USING kalamdb")
    db("RESET DateStyle")
    db(f"INSERT INTO {ns}.t (id) VALUES (1)")
    db.remote(f"INSERT INTO {ns}.t (id) VALUES (2)")
    cast = "::text" if isinstance(here, str) else ""
    assert dict(db(f"SELECT id, a{cast} FROM {ns}.t")) == {1: here, 2: there}


@pytest.mark.parametrize(
    ("column", "check"),
    [
        ("a timestamptz DEFAULT now()", "a BETWEEN now() - interval '1 minute' AND now() + interval '1 minute'"),
        ("a timestamptz DEFAULT current_timestamp", "a > now() - interval '1 minute'"),
        ("a uuid DEFAULT gen_random_uuid()", "a IS NOT NULL"),
        ("a bigint DEFAULT snowflake_id()", "a > 0"),
    ],
)
def test_volatile_defaults_on_both_sides(db: Session, ns: str, column: str, check: str) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, {column}) USING kalamdb")
    db(f"INSERT INTO {ns}.t (id) VALUES (1)")
    db.remote(f"INSERT INTO {ns}.t (id) VALUES (2)")
    assert db(f"SELECT id, {check} FROM {ns}.t ORDER BY id") == [(1, True), (2, True)]
    assert db.value(f"SELECT count(DISTINCT a) FROM {ns}.t") == 2


def test_quoting_does_not_depend_on_the_session(db: Session, ns: str) -> None:
    db("SET standard_conforming_strings = off; SET bytea_output = 'escape'")
    db(f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, a text CHECK (a <> E'x\\\\y') DEFAULT E'\\\\''', "
       "b bytea DEFAULT E'\\\\x005c27ff') USING kalamdb")
    db("RESET ALL")
    db(f"INSERT INTO {ns}.t (id) VALUES (1)")
    db.remote(f"INSERT INTO {ns}.t (id) VALUES (2)")
    assert db(f"SELECT DISTINCT a, b FROM {ns}.t") == [("\\'", b"\0\\'\xff")]
    db.remote(f"INSERT INTO {ns}.t (id, a) VALUES (3, 'x\\\\y')")  # two backslashes are no violation
    db.fails(f"SELECT kalam_exec('INSERT INTO {ns}.t (id, a) VALUES (4, ''x\\y'')')", "23514")


CHECKS = [
    "a > 0",
    "a <> 3 AND (a IS NULL OR a < 100)",
    "a IN (1, 2, 3)",
    "b LIKE 'x%'",
    "b ~ '^[a-z]+$'",
    "length(b) < 10",
    "a = ANY (ARRAY[1, 2])",
    "b = 'it''s \\'",
    "CASE WHEN a = 1 THEN b <> '' ELSE true END",
    "b COLLATE \"C\" < 'm'",
    "(a, b) IS NOT NULL",
    "a::numeric % 2 = 1",
    "b IS DISTINCT FROM E'a\\nb'",
    "d > '2020-01-01'::date",
    "d > current_date - 30000",
    "j ->> 'k' <> ''",
]


@pytest.mark.parametrize("check", CHECKS)
def test_any_check_can_be_declared(db: Session, ns: str, check: str) -> None:
    db(
        f"CREATE TABLE {ns}.t (id bigint PRIMARY KEY, a int, b text, d date, j jsonb, "
        f'CONSTRAINT "my ""check""" CHECK ({check})) USING kalamdb'
    )
    assert db.facts(f'"{ns}"."t"')
    assert db("SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'c'", f"{ns}.t") == [
        ('my "check"',)
    ]


def test_generated_column_is_a_plain_one_there(db: Session, ns: str) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint, a int, b int GENERATED ALWAYS AS (a * 2) STORED) USING kalamdb")
    db(f"INSERT INTO {ns}.t (id, a) VALUES (1, 21)")
    assert db.remote(f"SELECT a, b FROM {ns}.t") == [{"a": 21, "b": 42}]


def test_virtual_generated_column_is_refused(db: Session, ns: str) -> None:
    if db.conn.info.server_version < 180000:
        pytest.skip("virtual generated columns came with PostgreSQL 18")
    db.fails(f"CREATE TABLE {ns}.t (id bigint, b int GENERATED ALWAYS AS (1)) USING kalamdb", "0A000", "STORED")


# ---------- system columns ----------


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ("", ["id", "a", "_seq"]),
        ("WITH (type = 'shared')", ["id", "a", "_seq"]),
        ("WITH (type = 'user')", ["id", "a", "_seq", "_userid"]),
        ("WITH (type = 'stream', ttl_seconds = 60)", ["id", "a", "_seq", "_userid"]),
        ("WITH (type = 'user', system_columns = false)", ["id", "a"]),
    ],
)
def test_system_columns_are_the_last(db: Session, ns: str, options: str, columns: list[str]) -> None:
    db(f"CREATE TABLE {ns}.t (id bigint, a text) USING kalamdb {options}")
    assert db.local_columns(f"{ns}.t") == columns
    not_null = db(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND attnotnull", f"{ns}.t"
    )
    assert not_null == [("id",)]


@pytest.mark.parametrize("name", ["_seq bigint", "_userid text", "_deleted boolean"])
def test_declaring_a_system_column_is_refused(db: Session, ns: str, name: str) -> None:
    db.fails(f"CREATE TABLE {ns}.t (id bigint, {name}) USING kalamdb", "42939", name.split()[0])


def test_insert_and_copy_without_a_list_mean_the_users_columns(db: Session, ns: str) -> None:
    db("SET kalam.user_id = 'alice'")
    columns = "id bigint, a text, g int GENERATED ALWAYS AS (3) STORED"
    db(f"CREATE TABLE {ns}.t ({columns}) USING kalamdb WITH (type = 'user')")
    db(f"INSERT INTO {ns}.t VALUES (1, 'one')")
    with db.conn.cursor().copy(f"COPY {ns}.t FROM STDIN") as copy:
        copy.write_row((2, "two"))
    with db.conn.cursor().copy(f"COPY {ns}.t (a, id) FROM STDIN") as copy:
        copy.write_row(("three", 3))
    with db.conn.cursor().copy(f"COPY {ns}.t TO STDOUT") as copy:
        rows = sorted(copy.rows())
    assert rows == [("1", "one"), ("2", "two"), ("3", "three")]
    with db.conn.cursor().copy(f"COPY {ns}.t (_userid, g, id) TO STDOUT WITH (FORMAT csv, HEADER)") as copy:
        text = b"".join(bytes(block) for block in copy).decode().splitlines()
    assert text[0] == "_userid,g,id"
    assert sorted(text[1:]) == ["alice,3,1", "alice,3,2", "alice,3,3"]
    db.fails(f"COPY {ns}.t (nonsense) TO STDOUT", "42703", "nonsense")


# ---------- names ----------

NAMES = ['we"ird', "sp ace", "grün", "select", "semi;colon--", "a'b", "$1", "UPPER", "日本" * 10]
NAMES.append("x" * 63)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names(db: Session, ns: str, name: str) -> None:
    ident = '"' + name.replace('"', '""') + '"'
    db(f"CREATE SCHEMA IF NOT EXISTS {ident}")
    try:
        db(
            f'CREATE TABLE {ident}.{ident} ({ident} bigint, {ident[:-1][:50]}2" text, CONSTRAINT {ident} PRIMARY KEY '
            f'({ident}), CONSTRAINT {ident[:-1][:50]}3" CHECK ({ident} > 0)) USING kalamdb'
        )
        db(f"INSERT INTO {ident}.{ident} VALUES (1, %s)", name)
        assert db(f'SELECT {ident}, {ident[:-1][:50]}2" FROM {ident}.{ident} WHERE {ident} = 1') == [(1, name)]
        db.fails(f"INSERT INTO {ident}.{ident} VALUES (1, 'again')", "23505", name)
        db(f"DROP TABLE {ident}.{ident}")
        assert db.facts(f"{ident}.{ident}") == {}
    finally:
        db(f"DROP SCHEMA {ident} CASCADE")


def test_control_characters_in_a_pinned_name_are_refused(db: Session, ns: str) -> None:
    db.fails(f'CREATE TABLE {ns}."tab\t" (id bigint) USING kalamdb', "HV00D", "Control characters")
    db(f'CREATE TABLE {ns}.t ("tab\t\n" bigint PRIMARY KEY) USING kalamdb')
    db(f"INSERT INTO {ns}.t VALUES (1)")
    assert db(f'SELECT "tab\t\n" FROM {ns}.t') == [(1,)]


# ---------- where the statement may stand ----------


def test_in_functions_and_cached_plans(db: Session, ns: str) -> None:
    db(
        f"CREATE FUNCTION {ns}.make() RETURNS void LANGUAGE plpgsql AS $$ BEGIN "
        f"CREATE TABLE {ns}.t (id serial PRIMARY KEY, a text) USING kalamdb WITH (type = 'shared'); "
        f"INSERT INTO {ns}.t (a) VALUES ('x'); DROP TABLE {ns}.t; END $$"
    )
    for _ in range(3):
        db(f"SELECT {ns}.make()")
    assert db.facts(f'"{ns}"."t"') == {}
    db(
        f"DO $$ BEGIN CREATE TABLE {ns}.t (id bigint) USING kalamdb; RAISE division_by_zero; "
        f"EXCEPTION WHEN division_by_zero THEN NULL; END $$"
    )
    assert not db.exists(f"{ns}.t")
    assert db.facts(f'"{ns}"."t"') == {}


def test_inside_create_schema(db: Session, ns: str) -> None:
    db(f"CREATE SCHEMA {ns}_s CREATE TABLE t (id bigint, a text) USING kalamdb")
    assert db.facts(f'"{ns}_s"."t"')
    db(f"DROP SCHEMA {ns}_s CASCADE")
    assert db.facts(f'"{ns}_s"."t"') == {}


def test_event_triggers_run(db: Session, ns: str) -> None:
    db(
        f"CREATE TABLE {ns}.log (tag text); CREATE FUNCTION {ns}.note() RETURNS event_trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN INSERT INTO {ns}.log VALUES (tg_tag); END $$; "
        f"CREATE EVENT TRIGGER note_{ns} ON ddl_command_end EXECUTE FUNCTION {ns}.note()"
    )
    try:
        db(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb")
        assert db(f"SELECT tag FROM {ns}.log") == [("CREATE FOREIGN TABLE",)]
    finally:
        db(f"DROP EVENT TRIGGER note_{ns}")


# ---------- who may ----------


def test_usage_on_the_server_is_needed(db: Session, ns: str) -> None:
    db(f"CREATE ROLE {ns}_role; GRANT CREATE, USAGE ON SCHEMA {ns} TO {ns}_role; SET ROLE {ns}_role")
    try:
        db.fails(
            f"CREATE TABLE {ns}.t (id bigint) USING kalamdb",
            "42501",
            "kalam_server",
            f"GRANT USAGE ON FOREIGN SERVER kalam_server TO {ns}_role",
        )
    finally:
        db(f"RESET ROLE; DROP OWNED BY {ns}_role; DROP ROLE {ns}_role")


def test_missing_default_server(db: Session, ns: str) -> None:
    db("SET kalam.default_server = 'gone'")
    db.fails(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb", "42704", "gone", "CREATE SERVER gone")


def test_server_of_another_wrapper(db: Session, ns: str) -> None:
    db(f"CREATE FOREIGN DATA WRAPPER {ns}_w; CREATE SERVER {ns}_s FOREIGN DATA WRAPPER {ns}_w")
    try:
        db.fails(f"CREATE TABLE {ns}.t (id bigint) USING kalamdb WITH (server = '{ns}_s')", "42809", f"{ns}_s")
    finally:
        db(f"DROP FOREIGN DATA WRAPPER {ns}_w CASCADE")
