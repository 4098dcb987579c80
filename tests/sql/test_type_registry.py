"""One registry of types: the capability table, the documentation and PostgreSQL itself agree with it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from kalamdb import kept, types
from kalamdb.errors import KalamError
from kalamdb.order import part_decoder, part_encoder
from kalamdb.sql import capabilities
from support.postgres import Postgres

from .client import Client, Failed

REFERENCE = Path(__file__).parents[2] / "docs" / "reference.md"
STORED = {"bool": "integer", "int16": "integer", "int32": "integer", "int64": "integer", "float32": "real",
          "float64": "real", "utf8": "text", "binary": "blob"}
ROWS = {name: (layout, remote, flags.split()) for _, name, layout, remote, flags in capabilities.types()}
KINDS = {name: kind for kind, name, *_ in capabilities.types()}


def documented() -> list[str]:
    """The lines of the table "Types" of docs/reference.md."""
    compared = {name for pair in capabilities.COMPARABLE for name in pair} | {"varchar"}
    lines = []
    for type_ in types.TYPES:
        layout, _, flags = ROWS[type_.name]
        lines.append(f"| `{type_.display}` | {STORED[layout]} | `{layout}` | "
                     f"{'server' if type_.name in compared else 'PostgreSQL'} | {'yes' if 'key' in flags else 'no'} |")
    ordered = {row[1] for row in capabilities.compared()}
    for each in kept.SCALARS:
        order = "server" if each.name in ordered else "PostgreSQL"
        lines.append(f"| `{each.display}` | text | text | {order} | {'no' if each.key is None else 'yes'} |")
    return lines


def test_documentation() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    missing = [line for line in documented() if line not in text]
    assert not missing, "\n".join(missing)


def test_capabilities_follow_the_registry() -> None:
    for type_ in types.TYPES:
        layout, remote, flags = ROWS[type_.name]
        assert layout == type_.layout
        assert types.parse_declared(remote)[0] is type_
        assert ("key" in flags) == type_.is_key
        assert KINDS[type_.name] == "type"
    for name, each in kept.TYPES.items():
        if name == "embedding":
            continue
        type_ = types.by_name(name)
        assert type_.text_only
        assert (KINDS[name], *ROWS[name]) == ("kept", "utf8", each.remote, ["key"] if each.key else [])
        if each.remote not in ("bpchar", "bit", "bpchar[]", "bit[]"):
            assert types.parse_declared(each.remote) == (type_, -1)


def test_names_are_those_of_postgresql(postgres: Postgres) -> None:
    """Each is in pg_catalog, and means there what its name in server SQL means; keys have an order in PostgreSQL."""
    client = Client(postgres.dsn())
    for name, (_, remote, flags) in ROWS.items():
        oid, shown, ordered = client.run(
            f"""SELECT t.oid::text, '{remote}'::regtype::oid::text,
                       (t.typarray = 0 OR EXISTS (SELECT FROM pg_opclass o JOIN pg_am a ON a.oid = o.opcmethod
                        WHERE a.amname = 'btree' AND opcdefault AND (opcintype = t.oid OR t.typtype IN ('r', 'm')
                              OR opcintype IN (25, 869, 1562) AND t.typname IN ('varchar', 'cidr', 'varbit'))))::text
                FROM pg_type t WHERE typname = '{name}' AND typnamespace = 'pg_catalog'::regnamespace""").rows[0]
        assert remote == "text" or oid == shown, name
        assert "key" not in flags or ordered == "true", name
    client.close()


# ---------- reading and keys ----------
READ = [
    ("interval", "1 day 2 hours ago", "-1 days -02:00:00"), ("interval", "Infinity", "infinity"),
    ("time", "7:05", "07:05:00"), ("timetz", "7:05 UTC", "07:05:00+00"), ("timetz", "1:00:00-0130", "01:00:00-01:30"),
    ("inet", "192.168.1.5/32", "192.168.1.5"), ("inet", "::FFFF:1.2.3.4/100", "::ffff:1.2.3.4/100"),
    ("cidr", "10.1.0.0/16", "10.1.0.0/16"), ("macaddr", "0800.2b01.0203", "08:00:2b:01:02:03"),
    ("macaddr8", "08-00-2b-01-02-03", "08:00:2b:ff:fe:01:02:03"), ("bit", "X1F", "00011111"), ("varbit", "b101", "101"),
]  # fmt: skip
BAD = [
    ("interval", "1 fortnight", "22007"), ("interval", "", "22007"), ("interval", "3000000000 days", "22015"),
    ("time", "25:00", "22008"), ("time", "noon", "22007"), ("timetz", "12:00+17", "22009"), ("inet", "1.2.3", "22P02"),
    ("cidr", "10.0.0.1/8", "22P02"), ("macaddr", "08:00", "22P02"), ("bit", "012", "22P02"), ("bit", "XZ", "22P02"),
    ("int4range", "1,2", "22P02"), ("_int4", "1,2", "22P02"), ("embedding", "[1,x]", "22P02"),
    ("embedding", "[nan]", "22000"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "wanted"), READ)
def test_reading(name: str, text: str, wanted: str) -> None:
    assert types.by_name(name).read(text) == wanted


@pytest.mark.parametrize(("name", "text", "sqlstate"), BAD)
def test_bad_texts(name: str, text: str, sqlstate: str) -> None:
    with pytest.raises(KalamError) as failure:
        types.by_name(name).read(text)
    assert failure.value.sqlstate == sqlstate


SENT = [
    ("jsonb", b'\x01{"b":1,"a":[1.50,-0.0,1e2]}', '{"a": [1.50, 0.0, 100], "b": 1}'),
    ("jsonb", b'\x01{"a": 1, "b": {"c": -0.5, "dd": "\xc3\xa9\\n"}}', '{"a": 1, "b": {"c": -0.5, "dd": "é\\n"}}'),
    ("jsonb", b'\x01{"aa": 1, "b": 2}', '{"b": 2, "aa": 1}'), ("jsonb", b'\x01{"a": 1, "a": 2}', '{"a": 2}'),
    ("jsonb", b"\x01" + b"[" * 900 + b"]" * 900, "[" * 900 + "]" * 900), ("json", b'{"b":1}', '{"b":1}'),
    ("inet", b"10.0.0.1/32", "10.0.0.1"), ("interval", b"36 hours", "36:00:00"), ("text", b"{", "{"),
]
NOT_SENT = [
    ("jsonb", b"\x01not json", "22P02"), ("jsonb", b"\x01", "22P02"), ("jsonb", b"", "22P03"),
    ("jsonb", b"\x02{}", "22P03"),
    ("jsonb", b"\x01NaN", "22P02"), ("jsonb", b'\x01"\\u0000"', "22P05"), ("jsonb", b'\x01"\\ud800"', "22P02"),
    ("jsonb", b"\x01" + b"[" * 5000, "54001"), ("jsonb", b'\x01"\xff"', "22021"), ("json", b"not json", "22P02"),
    ("inet", b"1.2.3", "22P02"), ("int4range", b"1,2", "22P02"), ("date", b"\x7f\xff\xff\xfe", "22008"),
    ("timestamp", b"\x80" + b"\0" * 6 + b"\1", "22008"), ("numeric", b"\0\0\0\0\xe0\0\0\0", "22P03"),
    ("numeric", b"\0\0\0\0\0\0\xff\xff", "22P03"),
]  # fmt: skip


def in_arrow(*texts: str | None) -> bytes:
    batch = pa.record_batch([pa.array(texts, pa.utf8())], ["v"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(("name", "data", "wanted"), SENT)
def test_binary_values_are_read(name: str, data: bytes, wanted: str) -> None:
    kind = types.by_name(name)
    assert kind.decode(data, 1) == wanted
    stream = in_arrow(None, data[name == "jsonb" :].decode(), wanted)
    assert types.rows_from_arrow(stream, [kind]) == [(None,), (wanted,), (wanted,)]


@pytest.mark.parametrize(("name", "data", "sqlstate"), NOT_SENT)
def test_bad_binary_values(name: str, data: bytes, sqlstate: str) -> None:
    kind = types.by_name(name)
    with pytest.raises(KalamError) as failure:
        kind.decode(data, 1)
    assert failure.value.sqlstate == sqlstate
    if kind.layout == "utf8" and sqlstate in ("22P02", "22P05", "54001"):
        with pytest.raises(KalamError) as failure:
            types.rows_from_arrow(in_arrow(data[name == "jsonb" :].decode()), [kind])
        assert failure.value.sqlstate == sqlstate


@pytest.mark.parametrize(("text", "wanted"), [
    ("1.50", "1.50"), ("-0.5", "-0.5"), ("-0.00", "0.00"), ("1e2", "100"), ("007", "7"), ("NaN", "NaN"), ("x", None),
    ("-Infinity", "-Infinity"), ("1\n", "1"),
])
def test_numbers_in_arrow(text: str, wanted: str | None) -> None:
    kind = types.by_name("numeric")
    stream = in_arrow(text, "1.0", None)
    if wanted is None:
        with pytest.raises(KalamError, match="invalid input syntax for type numeric"):
            types.rows_from_arrow(stream, [kind])
    else:
        assert types.rows_from_arrow(stream, [kind]) == [(wanted,), ("1.0",), (None,)]


#: of types made of others: what is written, in many ways and wrongly
COMPOSED = {
    "int4[]": ["{1, 2}", "{01,2}", "{abc}", "{t}", "{}", " { } ", "{1,}", "{,1}", "{1 2}", "[0:1]={1,2}", "[1:2]={1,2}",
               "[2]={1,2}", "[0:2]={1,2}", "[1:0]={}", "[0:1] = {1,2} ", "{{1,2},{3,4}}", "{{1,2},{3}}", "{1,{2}}",
               "{{1},2}", "{1}}", "{1", "{NULL,null}", "{\"NULL\"}", "{\"1\",2}", "{{{{{{{1}}}}}}}", "1,2",
               "{99999999999}", "{}x", "[-3:-2][0:0]={{1},{2}}", "{1,\"2}", "", "[1:1]{1}"],
    "bool[]": ["{true,f,on}", "{2}"],
    "text[]": ["{a,\"a\"}", "{ a b , \" c \"}", "{a\\ ,b\\\\ }", "{\"\",\"null\",Null}", "{\\NULL}", "{a\\,b}",
               "{\"{\",\"}\",\"\\\"\"}", "{\"a\nb\",\tc}", "{a,", "{\"a", "{{a},{b}}"],
    "float8[]": ["{1e0,1e20,-0,nan}", "{1,x}"], "numeric[]": ["{1e2,1.50}"], "bytea[]": ["{\"\\\\x0a\",abc}"],
    "date[]": ["{2000-1-2,infinity}", "{2000-13-01}"], "timestamptz[]": ["{2000-01-01 02:00+02}"],
    "jsonb[]": ["{\"{\\\"b\\\":1,\\\"a\\\":[1.0]}\"}", "{x}"], "interval[]": ["{1 day 2 hours}"],
    "bpchar[]": ["{\"a \",b}"], "inet[]": ["{10.0.0.1/32}"],
    "int4range[]": ["{\"[1,2]\",\"(0,3)\",empty}", "{\"[2,1]\"}"],
    "int4range": ["[1,2]", "[1, 3)", "(0,3)", "[3,3)", "[3,3]", "(3,4)", " EMPTY ", "empty x", "[zz,yy)", "[5,1)",
                  "(5,1)", "(,5]", "[,]", "[\"1\",2)", "[1,2147483647]", "[2147483648,)", "1,2", "[1", "[1,", "[1,2",
                  "[1)", "[1,2,3)", "[1,2) x", ""],
    "int8range": ["(0,9223372036854775806]", "(1,9223372036854775807]"],
    "daterange": ["[2000-01-01,2000-02-28]", "(2000-01-01,infinity]", "[-infinity,infinity]", "(2000-01-01,2000-01-02)",
                  "[2000-02-30,)"],
    "numrange": ["[1.0,NaN]", "[1.50,1.5]", "[1.5,1.50)", "(-Infinity,1e2)", "[NaN,1]"],
    "tsrange": ["[2000-01-01 , 2000-01-02]", "[2000-01-01 1:00,\"2000-01-01 01:00:00\")"],
    "tstzrange": ["[2000-01-01 02:00+02,infinity)", "(,2000-01-01 00:00:00+00]"],
    "int4multirange": ["{[1,3), [3,4], (8,9)}", "{empty}", "{}", " { [5,6),[1,2) } ", "{[1,9),[2,3)}", "{[1,2],}",
                       "{[1,2]", "{1,2}", "[1,2)", "{[1,2]} x", "{[3,1)}", "{(,3),[2,)}", "{[1,2)[3,4)}"],
    "nummultirange": ["{[1,2),(2,3)}", "{[1,2],(2,3.0)}", "{[1,2),[2.0,3)}", "{(1,2],[1.0,2)}"],
    "datemultirange": ["{[2000-01-01,2000-01-02],[2000-01-03,2000-01-04]}"],
    "inet": ["1.2.3.4/0.0.0.255", "1.2.3.4/255.255.255.0", "fe80::1%eth0", "fe80::1/64", "1.2.3.4/24", "1.2.3.4/33"],
    "cidr": ["10.0.0.0/255.0.0.0", "fe80::%eth0", "10.0.0.0/8"],
}  # fmt: skip


def shown(client: Client, sql: str) -> tuple[str, str | None]:
    """The value, or why there is none."""
    try:
        return client.run(sql).column[0], None
    except Failed as failed:
        return "", failed.sqlstate


@pytest.mark.parametrize("declared", COMPOSED)
def test_composed_values_are_read_as_postgresql_reads_them(postgres: Postgres, declared: str) -> None:
    """The same text, or the same SQLSTATE; and what PostgreSQL wrote stays as it is."""
    type_, client = types.parse_declared(declared)[0], Client(postgres.dsn())
    client.run("SET TimeZone = 'UTC'")
    for text in COMPOSED[declared]:
        literal = text.replace("\\", "\\\\")
        wanted, sqlstate = shown(client, f"SELECT E'{literal}'::{declared}::text AS v")
        if sqlstate is not None:
            with pytest.raises(KalamError) as failure:
                type_.read(text)
            assert failure.value.sqlstate == sqlstate, text
            continue
        assert type_.read(text) == wanted
        assert type_.read(wanted) == wanted
    client.close()


@pytest.mark.parametrize(
    ("declared", "text", "wanted"),
    [("char(3)", "a", "a  "), ("char(3)", "abc  ", "abc"), ("char", "x", "x"), ("time(1)", "00:00:00.06", "00:00:00.1"),
     ("interval(0)", "-1.5 s", None), ("timetz(0)", "01:00:00.5+01", "01:00:01+01"),
     ("embedding(2)", "[1,2]", "[1,2]")],
)  # fmt: skip
def test_modifiers(declared: str, text: str, wanted: str | None) -> None:
    type_, typmod = types.parse_declared(declared)
    if wanted is None:
        text, wanted = "-00:00:01.5", "-00:00:02"
    assert types.read_text(type_, text, typmod) == wanted


@pytest.mark.parametrize(("declared", "text", "sqlstate"), [
    ("char(2)", "abc", "22001"), ("bit(3)", "10", "22026"), ("varbit(2)", "101", "22001"),
    ("embedding(3)", "[1,2]", "22000"),
])
def test_values_too_long(declared: str, text: str, sqlstate: str) -> None:
    type_, typmod = types.parse_declared(declared)
    with pytest.raises(KalamError) as failure:
        types.read_text(type_, text, typmod)
    assert failure.value.sqlstate == sqlstate


@pytest.mark.parametrize("declared", ["int2vector", "foo", "integer[", "_int4", "char(0)", "embedding(0)", "foo[]"])
def test_unknown_types(declared: str) -> None:
    with pytest.raises(KalamError) as failure:
        types.parse_declared(declared)
    assert failure.value.sqlstate in ("42704", "22023")


@pytest.mark.parametrize(("name", "values"), [
    ("interval", ["-1 mon", "-00:00:01", "00:00:00", "29 days 23:59:59", "1 mon", "31 days", "1 year", "infinity"]),
    ("time", ["00:00:00", "00:00:00.000001", "24:00:00"]),
    ("timetz", ["13:00:00+02", "12:00:00+01", "11:00:00+00", "12:00:00+00"]),
    ("varbit", ["", "0", "00", "000000000", "0000000001", "01", "1", "10", "100000000", "11"]),
    ("inet", ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.1/8", "10.0.0.0/9", "10.0.0.0", "10.0.0.1", "11.0.0.0/8", "::/0",
              "::1"]),
    ("macaddr", ["00:00:00:00:00:01", "08:00:2b:01:02:03", "ff:ff:ff:ff:ff:ff"]),
    ("bpchar", ["", "a", "ab", "b"]),
])
def test_key_order(name: str, values: list[str], postgres: Postgres) -> None:
    """Keys are in PostgreSQL's order, and tell what they were made of."""
    encode, decode = part_encoder(name), part_decoder(name)
    client = Client(postgres.dsn())
    listed = ", ".join(f"('{value}'::{name})" for value in values if value != "infinity")
    asked = client.run(f"SELECT v::text AS shown FROM (VALUES {listed}) x(v) ORDER BY x.v").column
    client.close()
    wanted = [*asked, "infinity"] if "infinity" in values else asked
    keys = [encode(types.by_name(name).read(value or "")) for value in wanted]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    for key in keys:
        shown, end = decode(key + b"rest", 0)
        assert end == len(key)
        assert encode(shown) == key
