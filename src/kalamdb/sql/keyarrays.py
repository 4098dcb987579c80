"""Keys of whole columns of types kept as text, as ``kalamdb.kept`` makes them of one value: conditions and the query
engine compare many rows by them.

Usual texts of intervals and of addresses of IPv4 are taken apart by Arrow, all at once; what is left, and other types,
text by text, of those that are the same once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from kalamdb import kept

Ints = npt.NDArray[np.int64]
_DAY = 86_400_000_000
#: so small that the sum of all fields is an int64
_INTERVAL = (r"^(?:(?P<y>-?\d{1,5}) years? ?)?(?:\+?(?P<n>-?\d{1,2}) mons? ?)?(?:\+?(?P<d>-?\d{1,7}) days? ?)?"
             r"(?:\+?(?P<s>-?)(?P<h>\d{1,8}):(?P<m>\d\d):(?P<c>\d\d)(?:\.(?P<f>\d{1,6}))?)?$")
_IPV4 = r"^(?P<a>\d{1,3})\.(?P<b>\d{1,3})\.(?P<c>\d{1,3})\.(?P<d>\d{1,3})(?:/(?P<l>\d{1,2}))?$"


def each_text(array: pa.Array, work: Callable[[str], Any], kind: pa.DataType) -> pa.Array:
    """Of each text, once for those that are the same; null of null."""
    coded = array.dictionary_encode()
    return pa.array([work(text) for text in coded.dictionary.to_pylist()], kind).take(coded.indices)


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) and column.num_chunks else (
        pa.array([], column.type) if isinstance(column, pa.ChunkedArray) else column)


def _numbers(parts: pa.StructArray, name: str, default: str = "0") -> Ints:
    """A group's integers, where it stands."""
    texts = parts.field(name).fill_null("")
    found: Ints = pc.if_else(pc.equal(texts, ""), default, texts).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return found


def _with_rest(found: pa.Array, array: pa.Array, fits: npt.NDArray[np.bool_], work: Callable[[str], Any]) -> pa.Array:
    """What was found where it fits, the work's result of other texts, null of null."""
    known = pa.array(fits)
    if fits.all():
        return found
    others = each_text(pc.if_else(known, None, array), work, found.type)
    return pc.if_else(known, found, others)


def _fixed(rows: npt.NDArray[np.uint8]) -> pa.Array:
    kind = pa.binary(rows.shape[1])
    buffer = pa.py_buffer(np.ascontiguousarray(rows).tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(rows), [None, buffer]).cast(pa.binary())


def _interval_keys(array: pa.Array) -> pa.Array:
    parts = pc.extract_regex(array, _INTERVAL)
    fits = pc.is_valid(parts).to_numpy(zero_copy_only=False)
    days = (12 * _numbers(parts, "y") + _numbers(parts, "n")) * 30 + _numbers(parts, "d")
    fraction = pc.utf8_rpad(parts.field("f").fill_null(""), 6, padding="0").cast(pa.int64()).to_numpy()
    micros = ((_numbers(parts, "h") * 60 + _numbers(parts, "m")) * 60 + _numbers(parts, "c")) * 1_000_000 + fraction
    minus = pc.equal(parts.field("s").fill_null(""), "-").to_numpy(zero_copy_only=False)
    total = days * _DAY + np.where(minus, -micros, micros)
    words = np.empty((len(total), 2), ">u8")  # a number of 16 bytes, with the sign bit flipped
    words[:, 0] = np.where(total < 0, np.uint64(0x7FFFFFFFFFFFFFFF), np.uint64(0x8000000000000000))
    words[:, 1] = total.view(np.uint64)
    return _with_rest(_fixed(words.view(np.uint8).reshape(-1, 16)), array, fits, kept._interval_key)


def _inet_keys(array: pa.Array) -> pa.Array:
    parts = pc.extract_regex(array, _IPV4)
    fits = pc.is_valid(parts).to_numpy(zero_copy_only=False) & (_numbers(parts, "l", "32") == 32)
    rows = np.empty((len(array), 13), np.uint8)
    rows[:, 0] = 4
    for place, name in enumerate("abcd"):
        byte = _numbers(parts, name).astype(np.uint8)
        rows[:, 1 + 2 * place], rows[:, 2 + 2 * place], rows[:, 9 + place] = byte, 8 if name == "d" else 9, byte
    return _with_rest(_fixed(rows), array, fits, kept._inet_key)


def _ipv4(array: pa.Array) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Numbers, bits of their networks, and which are addresses of IPv4 at all."""
    parts = pc.extract_regex(array, _IPV4)
    a, b, c, d = (_numbers(parts, name) for name in "abcd")
    return a << 24 | b << 16 | c << 8 | d, _numbers(parts, "l", "32"), pc.is_valid(parts).to_numpy(zero_copy_only=False)


def networks(order: Callable[[Any, Any], Any], one: Callable[[str, str], bool]) -> Callable[[Any, Any], pa.Array]:
    """A test of two columns of addresses: the lengths of their networks are in that order, and their bits the same in
    the shorter; ``one`` is that of two texts."""

    def test(left: Any, right: Any) -> pa.Array:
        left, right = _whole(left), _whole(right)
        (number1, length1, fits1), (number2, length2, fits2) = _ipv4(left), _ipv4(right)
        rest = 32 - np.minimum(length1, length2)
        found = pa.array(order(length1, length2) & (number1 >> rest == number2 >> rest))
        if (fits1 & fits2).all():
            return found
        pairs = zip((fits1 & fits2).tolist(), found.to_pylist(), left.to_pylist(), right.to_pylist(), strict=True)
        return pa.array([known if fits else None if a is None or b is None else one(a, b)
                         for fits, known, a, b in pairs], pa.bool_())

    return test


_FAST: dict[str, Callable[[pa.Array], pa.Array]] = {
    "interval": _interval_keys, "inet": _inet_keys, "cidr": _inet_keys,
}


def keys_of(name: str) -> Callable[[Any], pa.Array]:
    """A function that makes of texts of that type their keys, as binary."""
    fast, key = _FAST.get(name), kept.TYPES[name].key
    assert key is not None
    if fast is not None:
        return lambda column: fast(_whole(column))
    return lambda column: each_text(_whole(column), key, pa.binary())
