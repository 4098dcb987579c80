"""What SHOW CAPABILITIES lists is PostgreSQL's: each template has the result of the operator or function it stands for.

PostgreSQL is asked by the name in pg_catalog and the types, the server by the template.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal

import pytest

from kalamdb.sql import fields
from kalamdb.sql.capabilities import (
    FLOATS,
    ROUNDED,
    TYPES,
    CapabilityRow,
    aggregates,
    capabilities,
    compared,
    comparisons,
    conversions,
    scalars,
    variadic,
    windows,
)
from kalamdb.types import by_name, write_text
from support.postgres import Postgres
from support.server import KalamServer

from .arguments import ARGUMENTS, literal, texts
from .client import Client, Failed, Wire, batch
from .proof import Call, Sides, agree, outcome, over
from .values import KEPT, VALUES


@pytest.fixture(scope="module")
def sides(server: KalamServer, postgres: Postgres) -> Iterator[Sides]:
    sides = Sides(Client(postgres.dsn()), Client(server.dsn()))
    yield sides
    sides.close()


def locally(row: CapabilityRow, columns: list[str]) -> str:
    """The call in PostgreSQL, whose name is nobody else's."""
    kind, name, args, _, flags = row
    collated = ' COLLATE "C"' if "a" in flags.split() else ""
    typed = [f"{column}::{type_}{collated}" for column, type_ in zip(columns, args.split(","), strict=True)]
    if kind in ("input", "output"):
        return f"{typed[0]}::{name}"
    if kind == "operator":
        return f"({' '.join(typed[:-1])} OPERATOR(pg_catalog.{name}) {typed[-1]})"
    if "_extract_path" in name:
        typed[-1] = f"VARIADIC {typed[-1]}"
    return f'pg_catalog."{name}"({", ".join(typed)})'


def remotely(row: CapabilityRow, columns: list[str]) -> str:
    return re.sub(r"\$(\d)", lambda found: f'"{columns[int(found.group(1)) - 1]}"', row[3])


VERSIONS = {"debian15": 15, "bundled16": 16, "bundled18": 18}


def is_kept(row: CapabilityRow) -> bool:
    """Of types that have no literals in the server's SQL, but columns."""
    return not {*row[2].split(",")}.isdisjoint({*KEPT, "anyenum"})


def is_of(row: CapabilityRow, version: int) -> bool:
    """Is it listed for that version of PostgreSQL?"""
    bounds = dict(re.findall(r"\b(from|before)(\d+)", row[4]))
    return int(bounds.get("from", 0)) <= version < int(bounds.get("before", 99))


def given(row: CapabilityRow, *, stored: bool = False) -> list[tuple[str | None, ...]]:
    """Rows of arguments; what must be one of some constants is each of them."""
    kinds = row[2].split(",")
    listed = re.search(r"const1=(\S+)", row[4])
    if listed is None:  # an option of a regular expression is a constant
        return [cells for cells in texts(row[1], kinds, stored=stored)
                if "regex1" not in row[4] or cells[3:] != (None,)]
    return [(word, *rest) for word in listed[1].split("|") for rest in texts(row[1], kinds[1:], stored=stored)]


SCALARS = [row for row in (*comparisons(), *scalars()) if not is_kept(row) and is_of(row, 16)]


@pytest.mark.parametrize("row", SCALARS, ids=lambda row: f"{row[1]}({row[2]})")
def test_scalars(row: CapabilityRow, sides: Sides) -> None:
    kinds = row[2].split(",")
    columns = list("abcdef"[: len(kinds)])
    rows = [[literal(*cell) for cell in zip(each, kinds, strict=True)] for each in given(row)]
    agree(sides, [(locally(row, columns), remotely(row, columns))], columns, rows)


@pytest.fixture(scope="module")
def sides_of(server: KalamServer, postgres_of: Postgres) -> Iterator[Sides]:
    sides = Sides(Client(postgres_of.dsn()), Client(server.dsn()))
    yield sides
    sides.close()


def answer(client: Client, sql: str) -> object:
    """A value, or an error's SQLSTATE and words."""
    try:
        return client.value(sql)
    except Failed as error:
        return error.sqlstate, error.message


@pytest.mark.parametrize(("postgres_of", "row"), [
    pytest.param(name, row, id=f"{name}-{row[2]}-{row[1]}") for name, version in VERSIONS.items()
    for row in conversions() if is_of(row, version)], indirect=["postgres_of"])  # fmt: skip
def test_conversions(row: CapabilityRow, sides_of: Sides) -> None:
    """Casts from and to text, and the words of their errors, of each version of PostgreSQL."""
    tried = [literal(text, row[2]) for (text,) in texts(row[1], [row[2]])]
    failures = sides_of.failures([over(locally(row, ["a"]), ["a"], [[each]]) for each in tried])
    good = [[each] for each, failure in zip(tried, failures, strict=True) if failure is None]
    agree(sides_of, [(locally(row, ["a"]), remotely(row, ["a"]))], ["a"], good)
    for each, failure in zip(tried, failures, strict=True):
        if failure is not None:
            local, remote = (over(call, ["a"], [[each]]) for call in (locally(row, ["a"]), remotely(row, ["a"])))
            assert answer(sides_of.kalam, remote) == answer(sides_of.pg, local), remote[:200]


#: types of which functions of any number of values make texts
OUTPUTS = ["text", "bool", *(row[2] for row in conversions() if row[0] == "output")]


@pytest.mark.parametrize("kind", OUTPUTS)
@pytest.mark.parametrize("row", list(variadic()), ids=lambda row: row[1])
def test_functions_of_any_number_of_values(row: CapabilityRow, kind: str, sides: Sides) -> None:
    values = [*ARGUMENTS[kind][:8], None]
    rows = [[literal(text, kind), literal(separator, "text"), literal(other, kind)]
            for text, other in zip(values, reversed(values), strict=True) for separator in (",", "", None)]
    calls = [f"{row[1]}({args})" for args in ("b, a", "b, a, c", "b, c, NULL::int4, a, b, true, 1.50", "b, NULL::text")]
    agree(sides, calls, ["a", "b", "c"], rows)


def call(row: CapabilityRow, before: str = "", after: str = "") -> Call:
    """With column v, and o to order by where that matters."""
    args = {"": "*", "text,text": "v, ','", "float8,float8": "v, o"}.get(row[2], "v")
    ordered = " ORDER BY o" if "o" in row[4].split() else ""
    body = f"({before}{args}{ordered}){after}"
    return f'pg_catalog."{row[1]}"{body}', row[3] + body


@pytest.fixture(scope="module")
def wired(server: KalamServer) -> Iterator[tuple[Wire, str]]:
    """A connection that speaks as pg_kalam does, and a namespace."""
    wire = Wire(server.dsn())
    wire("CREATE NAMESPACE proved")
    yield wire, '"proved"."t"'
    wire.close()


def stored(kind: str, text: str | None) -> object:
    return None if text is None else by_name(kind).read(text)


ON_THE_WIRE = [row for row in (*scalars(), *conversions()) if "_text" not in row[2] and is_of(row, 16)]


@pytest.mark.parametrize("row", ON_THE_WIRE, ids=lambda row: f"{row[1]}({row[2]})")
def test_scalars_on_the_wire(row: CapabilityRow, sides: Sides, wired: tuple[Wire, str]) -> None:
    """Of columns, of a column and parameters, and in a condition."""
    wire, table = wired
    kinds = row[2].split(",")
    columns = list("abcdef"[: len(kinds)])
    chosen = given(row, stored=True)
    chosen = [row for row in chosen if all(len(text or "") < 1000 for text in row)]
    chosen = chosen[:: max(1, len(chosen) // 30)]
    literals = [[literal(*cell) for cell in zip(given, kinds, strict=True)] for given in chosen]
    local = locally(row, columns)
    failures = sides.failures([over(local, columns, [each]) for each in literals])
    good = [(cells, each) for cells, each, failure in zip(chosen, literals, failures, strict=True) if failure is None]
    wanted = sides.pg.run(over(local, columns, [each for _, each in good])).column

    body = ", ".join(f'"{column}" {kind}' for column, kind in zip(columns, kinds, strict=True))
    wire(f"DROP TABLE IF EXISTS {table}")
    wire(f'CREATE SHARED TABLE {table} ("n" bigint, {body}, PRIMARY KEY ("n"))')
    stored_cells = {column: (kind, [stored(kind, cells[place]) for cells, _ in good])
             for place, (column, kind) in enumerate(zip(columns, kinds, strict=True))}
    names = ", ".join(f'"{column}"' for column in columns)
    wire(f'INSERT INTO {table} ("n", {names}) FROM ARROW $1', batch(n=("int8", list(range(len(good)))), **stored_cells))

    def asked(sql: str, *params: tuple[str, str | None]) -> list[str | None]:
        answer = wire(sql, *params)
        type_ = by_name(answer.types[-1])
        return [None if value is None else write_text(type_, value) for *_, value in sorted(answer.rows)]

    assert asked(f'SELECT "n", {remotely(row, columns)} FROM {table}') == wanted
    found = wire(f'SELECT "n" FROM {table} WHERE ({remotely(row, columns)} IS NOT NULL)').column
    assert sorted(found) == [place for place, value in enumerate(wanted) if value is not None]
    for place in range(0, len(good), max(1, len(good) // 3)):
        params = list(zip(kinds, good[place][0], strict=True))[1:]
        template = re.sub(r"\$(\d)", lambda found: '"a"' if found.group(1) == "1" else f"${int(found.group(1)) - 1}",
                          row[3])
        sql = f'SELECT "n", {template} FROM {table} WHERE ("n" = ${len(params) + 1})'
        assert asked(sql, *params, ("int8", str(place))) == [wanted[place]], sql


# ---------- types kept as text ----------
@pytest.mark.parametrize("declared", ["itself", "text"])
@pytest.mark.parametrize("row", [row for row in compared() if row[1] != "anyenum"], ids=lambda row: row[1])
def test_types_kept_as_text(row: CapabilityRow, declared: str, sides: Sides, wired: tuple[Wire, str]) -> None:
    """Of all pairs of values, in columns of the type, and in those of tables that are older than it and have text."""
    wire, table = wired
    _, name, announced, mark, _ = row
    values = [*KEPT[name], None]
    pairs = [(one, two) for one in values for two in values]
    kind = name if declared == "itself" and announced != "text" else "text"
    wire(f"DROP TABLE IF EXISTS {table}")
    wire(f'CREATE SHARED TABLE {table} ("n" bigint, "a" {kind}, "b" {kind}, PRIMARY KEY ("n"))')
    wire(f'INSERT INTO {table} ("n", "a", "b") FROM ARROW $1', batch(
        n=("int8", list(range(len(pairs)))), a=(kind, [one for one, _ in pairs]), b=(kind, [two for _, two in pairs])))
    operators = [each for each in comparisons() if each[2] == f"{name},{name}"] or [  # of cidr there are those of inet
        each for each in comparisons() if each[2] == "inet,inet"]
    local_name = f'"{name}"' if name == "char" else "varbit" if name == "bit" else name
    listed = [f"({n}, {literal(one, local_name)}, {literal(two, local_name)})" for n, (one, two) in enumerate(pairs)]
    rows = f"(VALUES {', '.join(listed)}) t(n, a, b)"

    def marked(remote: str) -> str:
        return re.sub(r'"([ab])"', lambda found: mark.replace("$1", found[0]), remote)

    def agrees(local: str, remote: str) -> None:
        wanted = sides.pg.run(f"SELECT {local}").column
        assert [None if value is None else str(value) for value in wire(marked(remote)).column] == wanted, remote

    for local, remote in [
            *((f"(a {each[1]} b)", remotely(each, ["a", "b"])) for each in operators),
            ("(a IS DISTINCT FROM b)", '("a" IS DISTINCT FROM "b")'), ("(a IN (b, NULL))", '("a" IN ("b", NULL))'),
            ("(NULLIF(a, b) IS NULL)", '(NULLIF("a", "b") IS NULL)')]:
        agrees(f"count({local}) FROM {rows}", f"SELECT count({remote}) FROM {table}")
        agrees(f"n FROM {rows} WHERE {local} ORDER BY n", f'SELECT "n" FROM {table} WHERE {remote} ORDER BY "n"')
    agrees(f"format('%s', coalesce(a, b)) FROM {rows} WHERE num_nulls(a, b) < 2 ORDER BY n",
           f'SELECT COALESCE("a", "b") FROM {table} WHERE (("a" IS NOT NULL) OR ("b" IS NOT NULL)) ORDER BY "n"')
    agrees(f"count(*) FROM {rows} GROUP BY a ORDER BY 1",
           f'SELECT count(*) FROM {table} GROUP BY "a" ORDER BY count(*)')
    agrees(f"count(DISTINCT b) FROM {rows}", f'SELECT count(DISTINCT "b") FROM {table}')
    if len(operators) > 2:
        agrees(f"n FROM {rows} ORDER BY a DESC NULLS LAST, b, n",
               f'SELECT "n" FROM {table} ORDER BY "a" DESC NULLS LAST, "b" ASC NULLS LAST, "n" ASC NULLS LAST')
    for word, of in ((each[1], each[2]) for each in aggregates()):
        if of == name:
            (found,) = wire(marked(f'SELECT {word}("a") FROM {table}')).column
            assert sides.pg.value(f"SELECT {word}(a) = {literal(found, local_name)} FROM {rows}") == "t"


def unequal(kind: str, texts: list[str]) -> list[str]:
    """Without what equals another and is written otherwise: which of them an aggregate meets first is no rule."""
    if kind not in ("numeric", "float4", "float8"):
        return list(dict.fromkeys(texts))
    found: dict[object, str] = {}
    for text in texts:
        found.setdefault(text if text == "NaN" else Decimal(text), text)
    return list(found.values())


def test_words_for_fields(sides: Sides) -> None:
    """Every word, with which PostgreSQL takes and refuses the same."""
    words = [*" ".join(fields.WORDS.values()).split(), "microseconds", "Millisecond", "millenniums", "quarters", " day",
             "isoweek", "ago", ""]  # fmt: skip
    for call, remote in (("extract", "extract_field"), ("date_part", "date_part"), ("date_trunc", "date_trunc")):
        rows = [[literal(word, "text"), "'2024-02-29 12:30:15.123456'::timestamp"] for word in words]
        agree(sides, [(f'pg_catalog."{call}"(w, t)', f"{remote}(w, t)")], ["w", "t"], rows)


FINITE = ("NaN", "Infinity", "-Infinity", "infinity", "-infinity")


#: what takes any type is tried with each
AGGREGATES = [row for row in aggregates() if row[2] != "anynonarray" and not is_kept(row)] + [
    (kind, name, each, remote, flags) for kind, name, args, remote, flags in aggregates() if args == "anynonarray"
    for each, _, _, _ in TYPES if each in ARGUMENTS]  # fmt: skip


@pytest.mark.parametrize("row", AGGREGATES, ids=lambda row: f"{row[1]}({row[2]})")
def test_aggregates(row: CapabilityRow, sides: Sides) -> None:
    kind = row[2].partition(",")[0] or "int4"
    values = unequal(kind, [*ARGUMENTS[kind], *VALUES.get(kind, [])])
    values = [text for text in values if not text.startswith("294276")]  # beyond the query engine's range
    finite = [text for text in values if text not in FINITE]
    if is_rounded(row):  # whether an overflow is noticed beside an infinity depends on which comes first
        values = [text for text in values if "e308" not in text]
    small = [text for text in finite if len(text) < 8]
    calls = [call(row), call(row, after=" FILTER (WHERE o > 1)")]
    if row[2] and "o" not in row[4].split() and "," not in row[2]:
        calls.append(call(row, "DISTINCT "))
    for part in (values, finite, small, small[:1], small[1:3], [*small, *small], []):
        body = ", ".join(f"({literal(text, kind)}, {place})" for place, text in enumerate([*part, None]))
        for tail in ("", " WHERE false", " GROUP BY o % 3 ORDER BY o % 3"):
            local, remote = (f"SELECT {', '.join(each[side] for each in calls)} FROM (VALUES {body}) t(v, o){tail}"
                             for side in (0, 1))
            rough = is_rounded(row)
            assert outcome(sides.kalam, remote, rough=rough) == outcome(sides.pg, local, rough=rough), remote


def is_rounded(row: CapabilityRow) -> bool:
    return row[1] in ROUNDED and row[2].partition(",")[0] in FLOATS


@pytest.mark.parametrize("name", ["sum", "avg", "count"])
def test_equal_numbers_are_not_distinct(name: str, sides: Sides) -> None:
    sql = f"""SELECT {name}(DISTINCT v)::float8, {name}(DISTINCT v) FILTER (WHERE v > 1)::float8
              FROM (VALUES (1.50::numeric), (1.5), (1), (1.00), (NULL), (20), (20.0), (-3)) t(v)"""
    assert outcome(sides.kalam, sql) == outcome(sides.pg, sql)


ROWS = """(1, 'a'::text, 1.50::numeric(10,2), 1.5::numeric, 1::int8, 'x'::text), (2, 'b', 2.00, 1.50, 3, 'x'),
          (2, NULL, NULL, NULL, NULL, NULL), (3, 'a', 0.25, 'NaN', -5, 'x'), (5, '', 9.99, 3, 0, 'y'),
          (6, 'é', 1.50, 1.50, 9223372036854775807, 'y')"""
OVER = ["ORDER BY n, v", "PARTITION BY g ORDER BY n, v", "PARTITION BY n % 2 ORDER BY n DESC, v",
        "ORDER BY n, v ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING", "ORDER BY n, v ROWS UNBOUNDED PRECEDING",
        "PARTITION BY u ORDER BY n, v ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING"]  # fmt: skip


def window_arguments(args: str) -> list[str]:
    if not args.startswith("any"):
        return ["3", "1"] if args else [""]
    rest = args.partition(",")[2].split(",")
    more = [f", {number}" for number in ("1", "2")] if rest[0] else [""]
    return [value + each + (f", {other}" if len(rest) > 1 else "")
            for value, other in (("v", "'z'::text"), ("u", "'7'::numeric"), ("p", "p"), ("i", "0::int8"), ("n", "n"))
            for each in more]


#: whose result rows that sort alike share
PEERS = ("rank", "dense_rank", "percent_rank", "cume_dist")


@pytest.mark.parametrize("row", list(windows()), ids=lambda row: f"{row[1]}({row[2]})")
def test_windows(row: CapabilityRow, sides: Sides) -> None:
    overs = [*OVER, "ORDER BY g", "PARTITION BY g ORDER BY n DESC"] if row[1] in PEERS else OVER
    for args in window_arguments(row[2]):
        local, remote = (", ".join(f"{name}({args}) OVER ({over})" for over in overs)
                         for name in (f'pg_catalog."{row[1]}"', row[3]))
        sql = f"SELECT n, v, $1 FROM (VALUES {ROWS}) t(n, v, p, u, i, g) ORDER BY n, v"
        wanted, got = outcome(sides.pg, sql.replace("$1", local)), outcome(sides.kalam, sql.replace("$1", remote))
        assert got == wanted, f"{row[3]}({args})"


@pytest.mark.parametrize("row", [row for row in aggregates() if row[4] != "o" and not is_kept(row)],
                         ids=lambda row: f"{row[1]}({row[2]})")
def test_aggregates_over_windows(row: CapabilityRow, sides: Sides) -> None:
    kind = row[2].partition(",")[0] or "int4"
    kind = "int4" if kind == "any" else kind
    values = [text for text in ARGUMENTS[kind] if "infinity" not in text and len(text) < 30][:5]
    body = ", ".join(f"({place}, {literal(text, kind)})" for place, text in enumerate([*values, None, *values]))
    for window in ("ORDER BY n", "PARTITION BY n % 2 ORDER BY n", "PARTITION BY n % 3",
                   "ORDER BY n ROWS BETWEEN 2 PRECEDING AND 1 PRECEDING"):  # fmt: skip
        local, remote = (text.replace(", o)", ", n)") for text in call(row, after=f" OVER ({window})"))
        sql = f"SELECT n, $1 FROM (VALUES {body}) t(n, v) ORDER BY n"
        wanted, got = (outcome(client, sql.replace("$1", text), rough=is_rounded(row))
                       for client, text in ((sides.pg, local), (sides.kalam, remote)))
        assert got == wanted, sql.replace("$1", remote)


def test_names_are_those_of_postgresql(sides: Sides) -> None:
    listed = [*comparisons(), *scalars(), *variadic(), *aggregates(), *windows()]
    for kind, name, args, _, _ in [row for row in listed if is_of(row, 16)]:
        if kind == "operator":
            left, _, right = args.rpartition(",")
            found = sides.pg.value("SELECT to_regoperator($1)", f"pg_catalog.{name}({left or 'NONE'},{right})")
        else:
            typed = ",".join(f'"{each}"' for each in args.split(",") if each)
            found = sides.pg.value("SELECT to_regprocedure($1)", f'pg_catalog."{name}"({typed})')
        assert found is not None, (kind, name, args)


def test_the_list(sides: Sides) -> None:
    rows = [tuple(row) for row in sides.kalam.rows("SHOW CAPABILITIES")]
    for version in VERSIONS.values():
        known = [row[:3] for row in rows if is_of(row, version)]
        assert len(known) == len(set(known)), "an entry twice"
    listed = [row for row in rows if row[0] not in ("info", "type")]
    assert listed == [row for row in capabilities("", 0) if row[0] not in ("info", "type")]
