"""Array parameters of the wire dialect: what is read of them, and what damaged ones are told."""

from __future__ import annotations

import struct

import pytest

from kalamdb import types
from kalamdb.errors import KalamError

INT4, TEXT = types.by_name("int4"), types.by_name("text")
INTS, TEXTS = types.ARRAYS["int4[]"], types.ARRAYS["text[]"]


def array(oid: int, dimensions: tuple[int, ...], *elements: bytes | None) -> bytes:
    head = struct.pack(">iiI", len(dimensions), int(None in elements), oid)
    head += b"".join(struct.pack(">ii", size, 1) for size in dimensions)
    return head + b"".join(struct.pack(">i", -1) if each is None else struct.pack(">i", len(each)) + each
                           for each in elements)


def four(number: int) -> bytes:
    return struct.pack(">i", number)


@pytest.mark.parametrize(("data", "value"), [
    (array(23, ()), ()), (array(23, (0,)), ()), (array(23, (3,), four(5), None, four(-1)), (5, None, -1)),
    (array(23, (2, 2), *map(four, range(4))), (0, 1, 2, 3)),
])  # fmt: skip
def test_integers(data: bytes, value: tuple[int | None, ...]) -> None:
    assert INTS.decode(data, 1) == value


def test_texts() -> None:
    assert TEXTS.decode(array(25, (3,), b"", "é,{}\"".encode(), b"NULL"), 1) == ("", 'é,{}"', "NULL")


@pytest.mark.parametrize("data", [
    b"", b"\0" * 11, array(25, (1,), four(5)), array(23, (2,), four(5)), array(23, (1,), four(5), four(6)),
    array(23, (1,), b"\0"), array(23, (-1,)), array(23, (2**31 - 1,)), array(23, (2**15, 2**15, 2**15)),
    array(23, (1,), four(5))[:-1], struct.pack(">iiI", 7, 0, 23) + b"\0" * 56, struct.pack(">iiI", -1, 0, 23),
    array(23, (1,)) + struct.pack(">i", -2), array(23, (1,)) + struct.pack(">i", 2**30),
])  # fmt: skip
def test_damaged(data: bytes) -> None:
    with pytest.raises(KalamError) as caught:
        INTS.decode(data, 1)
    assert caught.value.sqlstate == "22P03"


def test_text_form() -> None:
    with pytest.raises(KalamError) as caught:
        INTS.decode(b"{1}", 0)
    assert caught.value.sqlstate == "0A000"
