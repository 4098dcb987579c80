"""Functions of bytea by PostgreSQL's rules, and digests."""

from __future__ import annotations

import hashlib

from kalamdb.errors import KalamError

_NEGATIVE = "negative substring length not allowed"


def part(data: bytes, start: int, length: int | None = None) -> bytes:
    """substr(): from the first byte, 1, on."""
    if length is None:
        return data[max(start, 1) - 1 :]
    if length < 0:
        raise KalamError("22011", _NEGATIVE)
    end = start + length
    return data[max(start, 1) - 1 : max(end - 1, 0)] if end > 1 else b""


def place(data: bytes, wanted: bytes) -> int:
    return data.find(wanted) + 1


def overlaid(data: bytes, new: bytes, start: int, length: int | None = None) -> bytes:
    length = len(new) if length is None else length
    if start <= 0:
        raise KalamError("22011", _NEGATIVE)
    if not -(1 << 31) <= start + length < 1 << 31:
        raise KalamError("22003", "integer out of range")
    return data[: start - 1] + new + part(data, start + length)


def _check(number: int, count: int) -> None:
    if not 0 <= number < count:
        raise KalamError("2202E", f"index {number} out of valid range, 0..{count - 1}")


def byte(data: bytes, number: int) -> int:
    _check(number, len(data))
    return data[number]


def with_byte(data: bytes, number: int, new: int) -> bytes:
    _check(number, len(data))
    return data[:number] + bytes([new & 255]) + data[number + 1 :]


def bit(data: bytes, number: int) -> int:
    _check(number, len(data) * 8)
    return data[number // 8] >> number % 8 & 1


def with_bit(data: bytes, number: int, new: int) -> bytes:
    _check(number, len(data) * 8)
    if new not in (0, 1):
        raise KalamError("22023", "new bit must be 0 or 1")
    mask = 1 << number % 8
    old = data[number // 8]
    return with_byte(data, number // 8, old | mask if new else old & ~mask)


def bits(data: bytes) -> int:
    """How many are set."""
    return int.from_bytes(data).bit_count()


def trimmed(data: bytes, of: bytes) -> bytes:
    return data.strip(of)


def trimmed_left(data: bytes, of: bytes) -> bytes:
    return data.lstrip(of)


def trimmed_right(data: bytes, of: bytes) -> bytes:
    return data.rstrip(of)


def sha224(data: bytes) -> bytes:
    return hashlib.sha224(data).digest()


def sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def sha512(data: bytes) -> bytes:
    return hashlib.sha512(data).digest()
