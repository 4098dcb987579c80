"""Statements with tokens cut, swapped, doubled and put in: an error is one of PostgreSQL's, and the session goes on.

To repeat a failure: the seed stands in its message, ``KALAM_FUZZ_SEED`` brings it back, ``KALAM_FUZZ_COUNT`` asks for
more statements than usual.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable

from kalamdb.errors import KalamError
from kalamdb.sql.lexer import tokenize
from support.server import KalamServer

from .client import Client, Failed

COUNT = int(os.environ.get("KALAM_FUZZ_COUNT", "1000"))
SEED = int(os.environ.get("KALAM_FUZZ_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
#: what a statement of a user may end with
EXPECTED = re.compile(r"08P01|0A000|2[0-9A-Z]{4}|3[0-9A-Z]{4}|4[0-9A-Z]{4}|5[45][0-9A-Z]{3}")
QUERIES = [
    "SELECT a.id, count(*) FILTER (WHERE a.n > 1) FROM t a LEFT JOIN t b ON a.id = b.n GROUP BY a.id "
    "HAVING count(*) > 0",
    "WITH RECURSIVE r(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM r WHERE x < 5) SELECT sum(x), max(x)::text FROM r",
    "SELECT id, row_number() OVER (PARTITION BY n ORDER BY id DESC) FROM t ORDER BY 2, id LIMIT 3 OFFSET 1",
    "SELECT * FROM t WHERE id IN (SELECT n FROM t) AND v LIKE 'a%' OR n BETWEEN 1 AND 2 OR v IS NOT NULL FOR UPDATE",
    "(SELECT id FROM t EXCEPT SELECT 1) UNION ALL VALUES (1), (2) ORDER BY 1",
    "SELECT CASE WHEN n > 1 THEN 'x' ELSE v END, CAST(n AS numeric(5, 2)), ARRAY[1, 2], j -> 'a' FROM t",
    "SELECT extract(year FROM now()), coalesce(v, 'é'), interval '1 day', date '2024-01-01' + 1 FROM t",
    "INSERT INTO t (id, n, v) VALUES (1, 2, 'x'), (2, DEFAULT, NULL) ON CONFLICT (id) DO UPDATE SET n = excluded.n "
    "WHERE t.n < 5 RETURNING id, n + 1 AS m",
    "INSERT INTO t (id, v) SELECT id + 100, v FROM t WHERE id < 3",
    "UPDATE t SET n = n + 1, v = 'y' || v WHERE id = 1 RETURNING *",
    "DELETE FROM t WHERE id > 10 AND n IS NULL RETURNING id",
    "CREATE SHARED TABLE IF NOT EXISTS u (id bigint NOT NULL DEFAULT 1, v varchar(3), CHECK (id > 0), "
    "PRIMARY KEY (id)) WITH (access_level = 'public')",
    "ALTER TABLE t ADD COLUMN c int DEFAULT 5, DROP COLUMN c",
    "EXECUTE AS USER 'o''x' (SELECT count(*) FROM t WHERE n = 1)",
    "CREATE USER fuzzed PASSWORD 'long enough' ROLE user LOCK", "ALTER USER fuzzed UNLOCK",
    "DROP USER IF EXISTS fuzzed",
    "SHOW TABLES IN system LIKE 's%'", "SHOW COLUMNS IN t LIKE 'i%'", "DESCRIBE t", "SHOW USERS", "SHOW TABLE STATS t",
    "STORAGE FLUSH TABLE t", "SET lock_timeout = '5s'", "SHOW search_path", "BEGIN ISOLATION LEVEL REPEATABLE READ",
    "SAVEPOINT a", "ROLLBACK TO SAVEPOINT a", "COMMIT", "ROLLBACK", "DROP NAMESPACE IF EXISTS nosuch CASCADE",
    "DROP TABLE IF EXISTS u, nosuch", "SELECT * FROM system.locks JOIN system.sessions s ON s.id = session",
]
#: put in where nobody expects them
STRAYS = [
    "(", ")", ",", ";", "'", '"', "$1", "$$", "*", "::", ".", "[", "]", "=", "-", "||", "{", "@", "%", "\\", "/*", "--",
    "NULL", "SELECT", "FROM", "AS", "NOT", "WITH", "IN", "VALUES", "DEFAULT", "TABLE", "ORDER BY", "OVER ()",
    "ON CONFLICT",
    "é", "0", "1e400", "99999999999999999999", "'\\'", "E'\\n'", "t", "nosuch", "ARRAY[", "::int",
]


def pieces(sql: str) -> list[str]:
    return [sql[token.start : token.end] for token in tokenize(sql)[:-1]]


def mutated(rng: random.Random, words: list[str]) -> str:
    words = list(words)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        place = rng.randrange(len(words) + 1)
        match rng.randrange(6):
            case 0 if words:
                del words[place : place + rng.choice((1, 1, 2, 5))]
            case 1:
                words.insert(place, rng.choice(STRAYS))
            case 2 if len(words) > 1:
                other = rng.randrange(len(words))
                place = min(place, len(words) - 1)
                words[place], words[other] = words[other], words[place]
            case 3 if words:
                words[min(place, len(words) - 1)] = rng.choice(STRAYS)
            case 4:
                others = pieces(rng.choice(QUERIES))
                start = rng.randrange(len(others))
                words[place:place] = others[start : start + rng.randrange(1, 6)]
            case _:
                words = words[:place]
    text = " ".join(words)
    return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.1 else text


def problem(client: Client, sql: str, *, simple: bool) -> str | None:
    try:
        client.simple(sql) if simple else client.run(sql)
    except Failed as error:
        if error.sqlstate == "57014" and "RECURSIVE" in sql:
            return None  # one that does not end, by right
        if error.sqlstate is None or not EXPECTED.fullmatch(error.sqlstate):
            return f"SQLSTATE {error.sqlstate}: {error}"
        message = error.message or ""
        if message[:1].isupper() and not message[1:2].isupper() and not message.startswith("FOR "):
            return f"message begins with a capital: {message}"
        position = error.position
        if position is not None and not 1 <= int(position) <= len(sql) + 1:
            return f"position {position} of a statement of {len(sql)} characters"
        if error.sqlstate == "42601" and position is None and message.startswith("syntax error"):
            return f"syntax error without a position: {message}"
    return None


def test_nothing_but_clear_errors(server: KalamServer, connect: Callable[..., Client], ns: str) -> None:
    rng, found, before = random.Random(SEED), [], server.log_size()
    client = connect("fuzz")
    client.run("CREATE SHARED TABLE t (id int PRIMARY KEY, n int, v text, j jsonb)")
    client.run("INSERT INTO t VALUES (1, 1, 'a', '{}'), (2, 2, 'b', NULL), (3, NULL, NULL, NULL)")
    client.run("SET statement_timeout = '20s'")
    for number in range(COUNT):
        sql = mutated(rng, pieces(rng.choice(QUERIES)))
        wrong = problem(client, sql, simple=number % 3 == 0)
        if wrong is not None:
            found.append(f"{sql!r}: {wrong}")
        if number % 10 == 9:
            client.simple("ROLLBACK")
            client.run(f"SET search_path = {ns}")
            assert client.value("SELECT 1 + 1") == "2"
    assert not found, f"seed {SEED}\n" + "\n".join(found)
    log = server.log_since(before)
    assert "Traceback" not in log, f"seed {SEED}\n{log[-4000:]}"


def test_the_lexer_raises_only_its_own_errors() -> None:
    rng = random.Random(SEED)
    parts = [*STRAYS, "u&'\\00", "e'\\u12", "x'0", "$a$", "\n", "\t", " ", "\x00", "\ud800", "'a' 'b'", "\\x",
             "U&\"\\+"]
    for _ in range(3000):
        text = "".join(rng.choice(parts) for _ in range(rng.randrange(1, 8)))
        place: int | None = 1
        try:
            tokenize(text)
        except KalamError as error:
            place = error.position
        assert place is not None, (SEED, text)
