"""The wire protocol without I/O: every message, every limit, and arbitrary bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import frames
from kalamdb.errors import KalamError
from kalamdb.rpc import wire


def decoder(phase: wire.Phase = wire.Phase.NORMAL, limit: int = 1 << 20) -> wire.Decoder:
    made = wire.Decoder(limit)
    made.phase = phase
    return made


def one(data: bytes, phase: wire.Phase = wire.Phase.NORMAL, limit: int = 1 << 20) -> wire.Message | None:
    made = decoder(phase, limit)
    made.feed(data)
    return made.next()


def fails(data: bytes, phase: wire.Phase = wire.Phase.NORMAL, limit: int = 1 << 20) -> wire.WireError:
    with pytest.raises(wire.WireError) as caught:
        one(data, phase, limit)
    return caught.value


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (frames.query("SELECT 'é'"), wire.Query("SELECT 'é'")),
        (frames.parse("SELECT $1", "s", [23, 90001]), wire.Parse("s", "SELECT $1", (23, 90001))),
        (frames.describe("S", "s"), wire.Describe("S", "s")),
        (frames.execute("p", 5), wire.Execute("p", 5)),
        (frames.execute("p", -1), wire.Execute("p", 0)),
        (frames.close("P", "p"), wire.Close("P", "p")),
        (frames.SYNC, wire.Sync()),
        (frames.FLUSH, wire.Flush()),
        (frames.TERMINATE, wire.Terminate()),
        (frames.message("d", b"data"), wire.CopyInput()),
        (frames.message("F", b"whatever"), wire.FunctionCall()),
        (
            frames.bind([b"a", None, b""], portal="p", name="s", formats=[1], result_formats=[0, 1]),
            wire.Bind("p", "s", (1, 1, 1), [b"a", None, b""], (0, 1)),
        ),
    ],
)
def test_each_message_is_read_whole_and_byte_by_byte(data: bytes, expected: wire.Message) -> None:
    assert one(data) == expected
    slow = decoder()
    for at in range(len(data) - 1):
        slow.feed(data[at : at + 1])
        assert slow.next() is None
    slow.feed(data[-1:])
    assert slow.next() == expected
    assert slow.buffered == 0


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (frames.startup(2, user="a", database="b"), wire.Startup(2, {"user": "a", "database": "b"})),
        (frames.startup(), wire.Startup(0, {})),
        (frames.SSL_REQUEST, wire.SSLRequest()),
        (frames.GSSENC_REQUEST, wire.GSSENCRequest()),
        (frames.cancel(7, b"1234"), wire.CancelRequest(7, b"1234")),
        (frames.cancel(7, b"x" * 32), wire.CancelRequest(7, b"x" * 32)),
    ],
)
def test_packets_before_login(data: bytes, expected: wire.Message) -> None:
    assert one(data, wire.Phase.STARTUP) == expected


def test_password() -> None:
    assert one(frames.password("geheim"), wire.Phase.PASSWORD) == wire.Password(b"geheim")


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!i", 7), struct.pack("!i", -1), struct.pack("!i", wire.MAX_STARTUP + 1),
        struct.pack("!i", 0x7FFFFFFF), frames.special(80877103, b"x"), frames.cancel(1, b"abc"),
        frames.cancel(1, b"x" * 257), struct.pack("!ii", 9, 3 << 16) + b"x",
        struct.pack("!ii", 13, 3 << 16) + b"user\0", struct.pack("!ii", 15, 3 << 16) + b"user\0a\0",
        struct.pack("!ii", 11, 3 << 16) + b"\0a\0",
    ],
)
def test_bad_startup_packets_end_the_connection(data: bytes) -> None:
    error = fails(data, wire.Phase.STARTUP)
    assert (error.sqlstate, error.severity) == ("08P01", "FATAL")


def test_other_protocols_are_named() -> None:
    error = fails(struct.pack("!ii", 8, 2 << 16), wire.Phase.STARTUP)
    assert error.sqlstate == "0A000"
    assert "2.0" in error.message


@pytest.mark.parametrize("data", [frames.query("x"), b"p" + struct.pack("!i", 3), b"p" + struct.pack("!i", 70_000)])
def test_only_a_password_may_come_when_one_was_asked_for(data: bytes) -> None:
    assert fails(data, wire.Phase.PASSWORD).severity == "FATAL"


@pytest.mark.parametrize(
    "data",
    [
        b"Q" + struct.pack("!i", 3), b"Q" + struct.pack("!i", -5), b"Q" + struct.pack("!i", 0x7FFFFFFF),
        b"E" + struct.pack("!i", wire.MAX_SMALL + 1), b"z" + struct.pack("!i", 4), frames.message("S", b"x"),
    ],
)
def test_lengths_are_checked_before_the_body_comes(data: bytes) -> None:
    error = fails(data, limit=1000)
    assert (error.sqlstate, error.severity) == ("08P01", "FATAL")


@pytest.mark.parametrize("piece", [1, 7, 999, 1000, 1001, 5000])
@pytest.mark.parametrize("kind", ["Q", "P", "B"])
def test_a_message_that_is_too_long_goes_by(kind: str, piece: int) -> None:
    data = frames.message(kind, b"x" * 3000) + frames.SYNC + frames.message(kind, b"y" * 1000) + frames.query("x")
    made = decoder(limit=1000)
    found: list[object] = []
    for at in range(0, len(data), piece):
        made.feed(data[at : at + piece])
        for _ in range(5):
            try:
                message = made.next()
            except wire.WireError as error:
                found.append((error.sqlstate, error.severity, error.kind))
            else:
                found += [message] if message is not None else []
        assert made.buffered <= piece + 1000
    assert found == [("54000", "ERROR", kind), wire.Sync(), ("54000", "ERROR", kind), wire.Query("x")]


@pytest.mark.parametrize(
    "data",
    [
        frames.message("Q", b"no end"), frames.message("Q", b"a\0b\0"), frames.message("Q"),
        frames.message("P", b"a\0b"), frames.message("P", b"a\0b\0"), frames.message("P", b"a\0b\0\0\1"),
        frames.message("P", b"a\0b\0\0\0x"), frames.message("D", b"Xa\0"), frames.message("D"),
        frames.message("E", b"p\0\0"), frames.message("B", b"\0\0"), frames.message("B", b"\0\0\0\0\0\1"),
        frames.message("B", b"\0\0\0\0\0\1" + struct.pack("!i", 9) + b"short\0\0"),
        frames.message("B", b"\0\0\0\0\0\1" + struct.pack("!i", -2) + b"\0\0"),
        frames.bind([b"a", b"b", b"c"], formats=[0, 0]), frames.bind()[:-2] + b"\0\0\0",
    ],
)
def test_a_malformed_body_concerns_its_message_alone(data: bytes) -> None:
    made = decoder()
    made.feed(data[:1] + struct.pack("!i", len(data) - 1) + data[5:] + frames.SYNC)
    with pytest.raises(wire.WireError) as caught:
        made.next()
    assert (caught.value.sqlstate, caught.value.severity, caught.value.kind) == ("08P01", "ERROR", data[:1].decode())
    assert made.next() == wire.Sync()


def test_text_that_is_not_utf8() -> None:
    assert fails(frames.message("Q", b"SELECT '\xff'\0")).sqlstate == "22021"
    assert fails(frames.bind([b"x"], formats=[7])).sqlstate == "22023"


def test_equal_parse_messages_are_told_apart_from_others() -> None:
    first, second = one(frames.parse("SELECT 1")), one(frames.parse("SELECT 1"))
    assert first is second
    assert one(frames.parse("SELECT 1", "a")) == wire.Parse("a", "SELECT 1", ())


def test_large_messages_in_many_pieces() -> None:
    body = bytes(range(256)) * 4000
    data = frames.bind([body]) + frames.SYNC
    made = decoder(limit=2 << 20)
    for at in range(0, len(data), 997):
        made.feed(data[at : at + 997])
    found = made.next()
    assert isinstance(found, wire.Bind)
    assert found.params == [body]
    assert made.next() == wire.Sync()
    assert made.next() is None


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(list(wire.Phase)), st.lists(st.binary(max_size=60), max_size=8))
def test_arbitrary_bytes_raise_nothing_else(phase: wire.Phase, pieces: list[bytes]) -> None:
    drive(decoder(phase, 4096), pieces)


FRAME = st.builds(frames.message, st.sampled_from("QPBDECHSXdcfF"), st.binary(max_size=80))


@settings(max_examples=400, deadline=None)
@given(st.lists(FRAME, max_size=6))
def test_arbitrary_bodies_raise_nothing_else(pieces: list[bytes]) -> None:
    drive(decoder(), pieces)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_byte_raises_nothing_else(data: st.DataObject) -> None:
    flight = bytearray(frames.flight("SELECT $1, $2", [b"abc", None], [23, 90001]))
    for _ in range(data.draw(st.integers(1, 4))):
        flight[data.draw(st.integers(0, len(flight) - 1))] = data.draw(st.integers(0, 255))
    drive(decoder(), [bytes(flight)])


def drive(made: wire.Decoder, pieces: list[bytes]) -> None:
    for piece in pieces:
        made.feed(piece)
        for _ in range(100):
            before = made.buffered
            try:
                if made.next() is None:
                    break
            except wire.WireError as error:
                if error.severity == "FATAL":
                    return
            assert made.buffered < before


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
VALUES = st.lists(st.none() | st.binary(max_size=20), max_size=5)


@given(TEXT, TEXT, VALUES, st.lists(st.integers(0, 1), max_size=3))
def test_bind_round_trip(portal: str, name: str, values: list[bytes | None], result_formats: list[int]) -> None:
    found = one(frames.bind(values, portal=portal, name=name, result_formats=result_formats))
    assert found == wire.Bind(portal, name, (0,) * len(values), values, tuple(result_formats))


@given(VALUES)
def test_data_row_round_trip(values: list[bytes | None]) -> None:
    assert frames.rows(wire.data_row(values)) == [values]


def test_error_response_has_all_fields_and_survives_nul() -> None:
    error = KalamError(
        "23505", "a\0b", detail="d", hint="h", position=4, schema="s", table="t", column="c", constraint="k"
    )
    fields = frames.errors(wire.error_response(error))[0]
    assert fields == {
        "S": "ERROR", "V": "ERROR", "C": "23505", "M": "a\ufffdb", "D": "d", "H": "h", "P": "4", "s": "s", "t": "t",
        "c": "c", "n": "k",
    }


# ---------- flights ----------
PARSE, BIND = frames.parse("SELECT $1", "", [90001]), frames.bind([b"{}"], result_formats=[1])
REST = frames.describe("P", ""), frames.execute("", 0), frames.SYNC


def messages(data: bytes, *, flights: bool = True) -> list[wire.Message]:
    made = decoder()
    made.flights = flights
    made.feed(data)
    found = []
    while (message := made.next()) is not None:
        found.append(message)
    return found


def test_a_flight_is_one_message() -> None:
    parts = [PARSE, BIND, *REST]
    single = messages(b"".join(parts), flights=False)
    assert [type(message) for message in single] == [wire.Parse, wire.Bind, wire.Describe, wire.Execute, wire.Sync]
    assert messages(b"".join(parts)) == [wire.Flight(single[0], single[1])]  # type: ignore[arg-type]
    before = frames.close("S", "s")
    assert messages(before + b"".join(parts)) == [wire.Close("S", "s"), *messages(b"".join(parts))]


@pytest.mark.parametrize("parts", [
    (PARSE, BIND, *REST, frames.SYNC), (PARSE, BIND, REST[1], REST[2]), (PARSE, *REST), (PARSE, BIND, BIND, *REST),
    (PARSE, PARSE, *REST), (PARSE, frames.bind([b"{}"], portal="p"), *REST), (BIND, *REST),
])  # fmt: skip
def test_what_is_no_flight_comes_message_by_message(parts: tuple[bytes, ...]) -> None:
    data = b"".join(parts)
    assert messages(data) == messages(data, flights=False)


@pytest.mark.parametrize(("size", "left"), [(wire.DESCRIBE_ON, 3), (wire.EXECUTE_ON, 2), (wire.SYNC_ONLY, 1)])
def test_the_rest_of_a_flight_can_be_given_back(size: int, left: int) -> None:
    data = b"".join([PARSE, BIND, *REST])
    made = decoder()
    made.flights = True
    made.feed(data)
    assert isinstance(made.next(), wire.Flight)
    made.give_back(size)
    made.feed(frames.TERMINATE)
    found = [made.next() for _ in range(left + 1)]
    assert found == [*messages(data, flights=False)[-left:], wire.Terminate()]
    assert made.next() is None


def test_no_password_is_kept() -> None:
    """Repeated texts are found by their bytes; those of accounts are decoded anew each time."""
    plain, secret = frames.parse("SELECT 'kept'"), frames.parse("ALTER USER u WITH PassWord 'hunter2 hunter2'")
    for data in (plain, secret):
        assert one(data) == one(data)
    kept = b"".join(wire._parsed)
    assert b"SELECT 'kept'" in kept
    assert b"hunter2" not in kept
