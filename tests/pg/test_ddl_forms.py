"""What PostgreSQL says of its own tables only, said of KalamDB tables: CREATE TABLE AS, LIKE, PARTITION OF."""

from __future__ import annotations

import pytest

from .ddl import Session

pytestmark = pytest.mark.pg


@pytest.fixture
def t(db: Session, ns: str) -> Session:
    db(f"SET search_path = {ns}, public; SET kalam.user_id = 'alice'")
    return db


# ---------- CREATE TABLE AS ----------
def test_create_table_as(t: Session, ns: str) -> None:
    t("CREATE TABLE heap AS SELECT g AS id, 'row ' || g AS name, g / 4.0 AS quarter FROM generate_series(1, 1000) g")
    cursor = t.conn.execute("CREATE TABLE k USING kalamdb WITH (type = 'user') AS SELECT * FROM heap WHERE id > 500")
    assert cursor.statusmessage == "SELECT 500"
    assert t("SELECT id, name, quarter FROM k ORDER BY id") == t("SELECT * FROM heap WHERE id > 500 ORDER BY id")
    assert t.local_columns("k") == ["id", "name", "quarter", "_seq", "_userid"]
    assert t.key("k") == ["id"]
    assert t.facts(f'"{ns}"."k"')["type"] == "user"


def test_key_and_names(t: Session) -> None:
    t("CREATE TABLE k (\"Größe\", b, c) USING kalamdb WITH (key = 'b, \"Größe\"') "
      "AS VALUES (1, 'x'::text, now()), (2, 'y', now())")
    assert t.key("k") == ["b", "Größe"]
    t.fails("INSERT INTO k (\"Größe\", b) VALUES (1, 'x')", "23505")
    t.fails("CREATE TABLE k2 USING kalamdb AS SELECT 1 AS a", "42P16", "no primary key")
    t.fails("CREATE TABLE k2 USING kalamdb WITH (key = 'nope') AS SELECT 1 AS a", "42703")
    t.fails("CREATE TABLE k2 USING kalamdb WITH (key = '') AS SELECT 1 AS a", "HV00D", "key")
    t.fails("CREATE TABLE k2 (x, y) USING kalamdb AS SELECT 1 AS id", "42601")
    t.fails("CREATE TABLE k2 USING kalamdb AS SELECT 1 / (2 - id) AS id FROM generate_series(1, 3) id", "22012")
    assert not t.exists("k2")
    t("CREATE TABLE IF NOT EXISTS k USING kalamdb AS SELECT 1 AS id")
    assert "already exists" in t.notices[-1]
    assert t("SELECT count(*) FROM k") == [(2,)]


def test_with_no_data_in_functions_and_rolled_back(t: Session, ns: str) -> None:
    t("CREATE TABLE k USING kalamdb AS SELECT 1 AS id, 'x'::varchar(3) AS v WITH NO DATA")
    assert t("SELECT * FROM k") == []
    t("DO $$ DECLARE n int := 7; BEGIN CREATE TABLE made USING kalamdb AS SELECT 5 AS id; "
      "EXECUTE 'INSERT INTO made VALUES ($1)' USING n; END $$")
    assert t("SELECT id FROM made ORDER BY id") == [(5,), (7,)]
    t("BEGIN; CREATE TABLE gone USING kalamdb AS SELECT id FROM made")
    assert t("SELECT count(*) FROM gone") == [(2,)]
    t("ROLLBACK")
    assert t.facts(f'"{ns}"."gone"') == {}
    t("PREPARE p AS SELECT 1 AS id")
    t.fails("CREATE TABLE e USING kalamdb AS EXECUTE p", "0A000", "INSERT")
    t("CREATE TABLE empty USING kalamdb AS WITH w AS (DELETE FROM made RETURNING id) SELECT id FROM w WITH NO DATA")
    assert t("SELECT id FROM made ORDER BY id") == [(5,), (7,)]
    t("CREATE TABLE walked USING kalamdb AS WITH w AS (SELECT id FROM made) SELECT id FROM w")
    assert t("SELECT id FROM walked ORDER BY id") == [(5,), (7,)]


def test_create_table_as_checks_privileges(t: Session, ns: str) -> None:
    t("CREATE TABLE secret AS SELECT 1 AS id; CREATE VIEW open AS SELECT id FROM secret")
    t(f"CREATE ROLE {ns}_r; GRANT ALL ON SCHEMA {ns} TO {ns}_r; GRANT USAGE ON FOREIGN SERVER kalam_server TO {ns}_r")
    t(f"GRANT SELECT ON open TO {ns}_r; SET ROLE {ns}_r")
    try:
        t.fails("CREATE TABLE k USING kalamdb AS SELECT * FROM secret", "42501")
        t("CREATE TABLE k USING kalamdb AS SELECT * FROM open")
        assert t("SELECT id FROM k") == [(1,)]
    finally:
        t(f"RESET ROLE; DROP OWNED BY {ns}_r CASCADE; DROP ROLE {ns}_r")


def test_default_table_access_method(t: Session) -> None:
    t("SET default_table_access_method = kalamdb")
    try:
        t("CREATE TABLE a (id int PRIMARY KEY)")
        t("CREATE TABLE b AS SELECT 1 AS id")
        t("SELECT 2 AS id INTO c")
        t("CREATE TABLE d (LIKE a INCLUDING ALL)")
        t("CREATE TABLE h (x int) USING heap")
        t("CREATE TABLE p (id int) PARTITION BY LIST (id)")
        kinds = t("SELECT string_agg(relname || relkind::text, ' ' ORDER BY relname) FROM pg_class WHERE relname IN "
                  "('a', 'b', 'c', 'd', 'h', 'p') AND relnamespace = current_schema()::regnamespace")
        assert kinds == [("af bf cf df hr pp",)]
        assert t("SELECT id FROM b UNION ALL SELECT id FROM c") == [(1,), (2,)]
        t.fails("CREATE TEMP TABLE x (id int)", "0A000", "USING heap")
    finally:
        t("RESET default_table_access_method")


# ---------- LIKE ----------
def test_like_a_heap_table(t: Session) -> None:
    t("CREATE TABLE heap (a int NOT NULL, b text DEFAULT 'it''s' COLLATE \"C\", c numeric(5,2) CHECK (c > 0), "
      "d int GENERATED ALWAYS AS (a * 2) STORED, e bigint GENERATED ALWAYS AS IDENTITY, "
      "CONSTRAINT pk PRIMARY KEY (b, a)); CREATE INDEX i ON heap (c); COMMENT ON COLUMN heap.a IS 'the first'")
    t("CREATE TABLE plain (LIKE heap, PRIMARY KEY (a)) USING kalamdb")
    t("CREATE TABLE whole (LIKE heap INCLUDING ALL, extra int) USING kalamdb")
    assert "index \"i\" is not copied" in t.notices
    assert t.key("whole") == ["b", "a"]
    assert t.local_columns("whole") == ["a", "b", "c", "d", "e", "extra", "_seq"]
    t("INSERT INTO whole (a, c) VALUES (1, 2)")
    assert t("SELECT a, b, c::text, d, e > 0 FROM whole") == [(1, "it's", "2.00", 2, True)]
    t.fails("INSERT INTO whole (a, c) VALUES (2, 0)", "23514")
    assert t("SELECT col_description('whole'::regclass, 1)") == [("the first",)]
    t("INSERT INTO plain (a, b, c, e) VALUES (1, 'x', -1, 5)")
    assert t("SELECT a, b, d, e FROM plain") == [(1, "x", None, 5)]
    t("CREATE TABLE part (LIKE heap INCLUDING DEFAULTS EXCLUDING CONSTRAINTS, PRIMARY KEY (a)) USING kalamdb")
    t("INSERT INTO part (a, c, e) VALUES (1, -1, 1)")
    assert t("SELECT b FROM part") == [("it's",)]


def test_like_a_table_of_ours_and_a_view(t: Session, ns: str) -> None:
    t("CREATE TABLE k (x int, f file, y text DEFAULT 'y', PRIMARY KEY (y, x)) USING kalamdb WITH (type = 'user')")
    t("CREATE TABLE k2 (LIKE k INCLUDING ALL) USING kalamdb")
    assert t.key("k2") == ["y", "x"]
    assert t.local_columns("k2") == ["x", "f", "y", "_seq"]
    assert t.remote_columns(f'"{ns}"."k2"')["f"]["type"] == t.remote_columns(f'"{ns}"."k"')["f"]["type"]
    t("CREATE VIEW v AS SELECT 1 AS id, 'x'::text AS b")
    t("CREATE TABLE k3 (LIKE v) USING kalamdb")
    assert t.key("k3") == ["id"]
    t("CREATE TABLE u (a int PRIMARY KEY, b int UNIQUE)")
    t.fails("CREATE TABLE k4 (LIKE u INCLUDING INDEXES) USING kalamdb", "0A000", "UNIQUE")
    t.fails("CREATE TABLE k4 (LIKE nowhere) USING kalamdb", "42P01")
    assert not t.exists("k4")


# ---------- partitions ----------
def test_partitions(t: Session, ns: str) -> None:
    t("CREATE TABLE p (id int NOT NULL, at date NOT NULL, v text DEFAULT 'v' CHECK (v <> 'no')) "
      "PARTITION BY RANGE (at)")
    t("CREATE TABLE p1 PARTITION OF p (PRIMARY KEY (at, id)) FOR VALUES FROM ('2024-01-01') TO ('2025-01-01') "
      "USING kalamdb")
    t("CREATE TABLE p2 PARTITION OF p (v DEFAULT 'w') FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') USING kalamdb "
      "WITH (flush_policy = 'rows:100')")
    t("CREATE TABLE p3 PARTITION OF p DEFAULT")
    assert (t.key("p1"), t.key("p2")) == (["at", "id"], ["id"])
    assert t.local_columns("p1") == ["id", "at", "v"]
    t("INSERT INTO p VALUES (1, '2024-05-05', 'v'), (2, '2025-05-05', 'x'), (3, '2030-01-01', 'v')")
    assert t("SELECT tableoid::regclass::text, id, v FROM p ORDER BY id") == [
        ("p1", 1, "v"), ("p2", 2, "x"), ("p3", 3, "v")]
    t.fails("INSERT INTO p VALUES (1, '2024-05-05')", "23505")
    t.fails("INSERT INTO p VALUES (9, '2024-05-05', 'no')", "23514")
    assert t.remote_columns(f'"{ns}"."p1"')["id"]["not_null"]
    t("ALTER TABLE p ADD COLUMN n int DEFAULT 3")
    assert t("SELECT sum(n) FROM p") == [(9,)]
    t.fails("CREATE TABLE p4 PARTITION OF p (PRIMARY KEY (nope)) FOR VALUES FROM ('2027-01-01') TO ('2028-01-01') "
            "USING kalamdb", "42703")
    t.fails("CREATE TABLE q (id int) PARTITION BY LIST (id) USING kalamdb", "0A000")
    t("DROP TABLE p2, p3, p1, p")
    assert t.facts(f'"{ns}"."p1"') == {}


def test_mixed_drop_lists(t: Session, ns: str) -> None:
    t("CREATE TABLE h (id int); CREATE TABLE k (id int PRIMARY KEY) USING kalamdb; CREATE TABLE h2 (id int)")
    t("DROP TABLE IF EXISTS h, nope, k, h2")
    assert t.facts(f'"{ns}"."k"') == {}
    assert not t.exists("h2")
