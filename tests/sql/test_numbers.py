"""Texts of numbers are read as PostgreSQL reads them, by the rules of each version, errors and their words included."""

from __future__ import annotations

from random import Random

import pytest

from kalamdb.errors import KalamError
from kalamdb.numbers import read_integer, read_numeric
from kalamdb.types import by_name
from support.postgres import Postgres

from .arguments import LONG_NUMBERS, NUMBERS

_READ = """CREATE FUNCTION pg_temp.read(given text, type_ text) RETURNS text LANGUAGE plpgsql AS $$
    DECLARE made text;
    BEGIN EXECUTE format('SELECT $1::%s::text', type_) INTO made USING given;
        RETURN CASE WHEN type_ = 'float8' AND made <> 'NaN' THEN encode(float8send(given::float8), 'hex') ELSE made END;
    EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE || ' ' || SQLERRM; END $$"""
INTEGERS = {"int2": ("smallint", 16), "int4": ("integer", 32), "int8": ("bigint", 64)}


def here(text: str, kind: str, *, old: bool) -> str:
    try:
        if kind in INTEGERS:
            return str(read_integer(text, *INTEGERS[kind], old=old))
        if kind == "numeric":
            return read_numeric(text, old=old)
        value = by_name(kind).read(text)
        return "NaN" if value != value else by_name(kind).write_binary(value).hex()
    except KalamError as error:
        return f"{error.sqlstate} {error.message}"


def nearly_numbers(count: int) -> list[str]:
    random = Random(16)
    signs = "0123456789" * 2 + "__xXoObBaAfF+-..eEpP \n"
    digits = ["".join(random.choices("0123456789", k=random.randint(3, 21))) for _ in range(count // 4)]
    return ["".join(random.choices(signs, k=random.randint(1, 7))) for _ in range(count)] + [
        random.choice(["", "-", "0x", "+"]) + each + random.choice(["", "_", "x", " ", "_1", "e2"]) for each in digits]


@pytest.mark.parametrize("kind", [*INTEGERS, "numeric", "float8"])
@pytest.mark.parametrize(("postgres_of", "old"), [("debian15", True), ("bundled16", False), ("bundled18", False)],
                         indirect=["postgres_of"])
def test_numbers(kind: str, old: bool, postgres_of: Postgres) -> None:
    given = list(dict.fromkeys([*NUMBERS, *LONG_NUMBERS, *nearly_numbers(700)]))
    with postgres_of.connect() as conn:
        conn.execute(_READ)
        wanted = conn.execute("SELECT pg_temp.read(t, %s) FROM unnest(%s::text[]) WITH ORDINALITY u(t, n) ORDER BY n",
                              [kind, given]).fetchall()
    for text, (there,) in zip(given, wanted, strict=True):
        assert here(text, kind, old=old) == there, text[:60]
