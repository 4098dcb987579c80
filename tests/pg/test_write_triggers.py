"""Row and statement triggers around writes: what they change is stored, what they read is what a local table shows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .pair import Pair

pytestmark = pytest.mark.pg

# The order in which an UPDATE comes to the rows is nobody's promise, so nothing logged may depend on it.
SETUP = """
CREATE TABLE items (id int PRIMARY KEY, n int, t text) {using};
CREATE TABLE log (what text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO log (what) VALUES (concat_ws(' ', TG_NAME, TG_OP,
        CASE WHEN TG_OP <> 'INSERT' AND TG_LEVEL = 'ROW' THEN OLD.id || ':' || coalesce(OLD.t, '-') END,
        CASE WHEN TG_OP <> 'DELETE' AND TG_LEVEL = 'ROW' THEN NEW.id || ':' || coalesce(NEW.t, '-') END));
    RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE FUNCTION count_rows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO log (what) SELECT concat_ws(' ', TG_OP, TG_WHEN, TG_LEVEL, count(*),
        CASE WHEN TG_WHEN = 'AFTER' OR TG_LEVEL = 'STATEMENT' THEN sum(n) || max(t COLLATE "C") END) FROM items;
    RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE FUNCTION rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.n = 13 THEN RETURN NULL; END IF;
    IF NEW.n = 14 THEN NEW.id = NEW.id + 1000; END IF;
    NEW.t = upper(NEW.t) || '.';
    RETURN NEW;
END $$;
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.n = 2 THEN RETURN NULL; END IF;
    RETURN OLD;
END $$;
"""

STATEMENTS = [
    "INSERT INTO items VALUES (1, 1, 'a')",
    "INSERT INTO items SELECT g, g, 'b' || g FROM generate_series(2, 6) g",
    "INSERT INTO items VALUES (13, 13, 'unlucky'), (14, 14, 'moved')",
    "INSERT INTO items VALUES (15, 13, 'alone') RETURNING *",
    "UPDATE items SET n = n + 10 WHERE id = 1",
    "UPDATE items SET n = n + 1 RETURNING id, n, t",
    "UPDATE items SET n = 13 WHERE id = 4",
    "UPDATE items SET id = id + 50 WHERE id < 4",
    "UPDATE items SET t = 'none' WHERE false",
    "DELETE FROM items WHERE n < 6 RETURNING *",
    "DELETE FROM items",
    "DELETE FROM items WHERE false",
]

TRIGGERS = {
    "before row changes": "CREATE TRIGGER r BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION rewrite()",
    "before row keeps": "CREATE TRIGGER k BEFORE DELETE ON items FOR EACH ROW EXECUTE FUNCTION keep()",
    "after row notes": "CREATE TRIGGER n AFTER INSERT OR UPDATE OR DELETE ON items"
    " FOR EACH ROW EXECUTE FUNCTION note()",
    "after row reads": "CREATE TRIGGER c AFTER INSERT OR UPDATE OR DELETE ON items"
    " FOR EACH ROW EXECUTE FUNCTION count_rows()",
    "before row reads": "CREATE TRIGGER c BEFORE INSERT OR UPDATE OR DELETE ON items"
    " FOR EACH ROW EXECUTE FUNCTION count_rows()",
    "statement": "CREATE TRIGGER s BEFORE INSERT OR UPDATE OR DELETE ON items EXECUTE FUNCTION count_rows();"
    "CREATE TRIGGER t AFTER INSERT OR UPDATE OR DELETE ON items EXECUTE FUNCTION count_rows()",
    "all": "CREATE TRIGGER r BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION rewrite();"
    "CREATE TRIGGER m AFTER INSERT OR UPDATE OR DELETE ON items FOR EACH ROW EXECUTE FUNCTION note();"
    "CREATE TRIGGER n AFTER INSERT OR UPDATE OR DELETE ON items FOR EACH ROW EXECUTE FUNCTION count_rows();"
    "CREATE TRIGGER o AFTER INSERT OR UPDATE OR DELETE ON items FOR EACH ROW EXECUTE FUNCTION note();"
    "CREATE TRIGGER s AFTER INSERT OR UPDATE OR DELETE ON items EXECUTE FUNCTION count_rows()",
}


@pytest.fixture
def pair(dsn: str) -> Iterator[Pair]:
    pair = Pair(dsn, "user")
    yield pair
    pair.close()


@pytest.mark.parametrize("name", TRIGGERS)
def test_triggers(pair: Pair, name: str) -> None:
    pair.setup(SETUP)
    pair.setup(TRIGGERS[name])
    for sql in STATEMENTS:
        pair.both(sql)


@pytest.mark.parametrize("name", ["before row changes", "after row reads", "all"])
def test_copy_fires_triggers(pair: Pair, name: str) -> None:
    pair.setup(SETUP)
    pair.setup(TRIGGERS[name])
    pair.copy("COPY items (id, n, t) FROM STDIN", [(i, i, f"row {i}") for i in range(10, 16)])


def test_trigger_that_fails_undoes_the_statement(pair: Pair) -> None:
    pair.setup(SETUP)
    pair.setup(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN IF NEW.n = 5 THEN RAISE EXCEPTION 'five'; END IF; RETURN NEW; END$$;"
        "CREATE TRIGGER f AFTER INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION fail()"
    )
    pair.both("INSERT INTO items VALUES (1, 1, 'a')")
    assert pair.both("INSERT INTO items VALUES (5, 5, 'b')").sqlstate == "P0001"
    assert pair.both("INSERT INTO items SELECT g, g, 'c' FROM generate_series(2, 9) g").sqlstate == "P0001"
    assert pair.both("UPDATE items SET n = 5").sqlstate == "P0001"
    # a row is refused before triggers hear of it
    assert pair.both("INSERT INTO items VALUES (1, 5, 'd')").sqlstate == "23505"
    assert pair.both("INSERT INTO items VALUES (6, 6, 'e'), (1, 5, 'd')").sqlstate == "23505"
    assert pair.copy("COPY items (id, n) FROM STDIN", [(7, 7), (8, 5)]).sqlstate == "P0001"


def test_trigger_writing_to_a_kalam_table(pair: Pair) -> None:
    pair.setup("CREATE TABLE items (id int PRIMARY KEY, n int) {using}")
    pair.setup("CREATE TABLE totals (id int PRIMARY KEY, n int) {using}")
    pair.setup(
        "CREATE FUNCTION total() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " UPDATE totals SET n = n + NEW.n WHERE id = NEW.id % 2;"
        " IF NOT FOUND THEN INSERT INTO totals VALUES (NEW.id % 2, NEW.n); END IF; RETURN NEW; END$$;"
        "CREATE TRIGGER t BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION total()"
    )
    pair.both("INSERT INTO items VALUES (1, 10)")
    pair.both("INSERT INTO items SELECT g, g FROM generate_series(2, 9) g")
    assert pair.both("INSERT INTO items VALUES (10, 1), (1, 1)").sqlstate == "23505"


def test_view_with_instead_triggers(pair: Pair) -> None:
    pair.setup("CREATE TABLE items (id int PRIMARY KEY, n int) {using}")
    pair.setup(
        "CREATE VIEW v AS SELECT id, n * 2 AS twice FROM items;"
        "CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " IF TG_OP = 'INSERT' THEN INSERT INTO items VALUES (NEW.id, NEW.twice / 2);"
        " ELSIF TG_OP = 'UPDATE' THEN UPDATE items SET n = NEW.twice / 2 WHERE id = OLD.id;"
        " ELSE DELETE FROM items WHERE id = OLD.id; RETURN OLD; END IF; RETURN NEW; END$$;"
        "CREATE TRIGGER i INSTEAD OF INSERT OR UPDATE OR DELETE ON v FOR EACH ROW EXECUTE FUNCTION act()"
    )
    pair.both("INSERT INTO v VALUES (1, 10), (2, 20), (3, 30)")
    pair.both("UPDATE v SET twice = twice + 2 WHERE id < 3 RETURNING *")
    pair.both("DELETE FROM v WHERE twice = 30")
    assert pair.both("INSERT INTO v VALUES (1, 1)").sqlstate == "23505"


def test_before_trigger_changing_what_the_statement_changes(pair: Pair) -> None:
    pair.setup("CREATE TABLE items (id int PRIMARY KEY, n int) {using}")
    pair.setup(
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " DELETE FROM items WHERE id = OLD.id; RETURN OLD; END$$;"
        "CREATE TRIGGER m BEFORE DELETE ON items FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION meddle()"
    )
    pair.both("INSERT INTO items VALUES (1, 1), (2, 2)")
    assert pair.heap.run("DELETE FROM items").sqlstate == "27000"
    assert pair.kalam.run("DELETE FROM items").sqlstate == "27000"
    pair.both("SELECT count(*) FROM items")
