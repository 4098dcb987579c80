"""Bloom filters over the keys of a segment: "certainly not there", or "perhaps" for about one key in a hundred.

Ten bits a key and seven probes, made by double hashing (Kirsch and Mitzenmacher 2006). A key's hash mixes a CRC of the
tenant with the integer key, or with a CRC of any other key, through splitmix64's finaliser. Both ways of computing it,
for one key in Python and for a column in numpy, give the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt

BITS_PER_KEY = 10
PROBES = 7
_MASK = 0xFFFFFFFFFFFFFFFF
_ONE, _TWO = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

Hashes = npt.NDArray[np.uint64]


def _mixed(value: int) -> int:
    value = ((value ^ (value >> 30)) * _ONE) & _MASK
    value = ((value ^ (value >> 27)) * _TWO) & _MASK
    return value ^ (value >> 31)


def key_hash(tenant: str, k: int | bytes) -> int:
    number = k & _MASK if isinstance(k, int) else crc32(k)
    return _mixed((number + (crc32(tenant.encode()) << 32)) & _MASK)


def key_hashes(tenants: Sequence[str] | None, keys: Sequence[int] | Sequence[bytes] | npt.NDArray[np.int64]) -> Hashes:
    """Of many keys; ``tenants`` None: all of the tenant ""."""
    if isinstance(keys, np.ndarray):
        numbers = keys.astype(np.uint64)
    elif keys and isinstance(keys[0], bytes):
        numbers = np.fromiter((crc32(key) for key in keys), np.uint64, len(keys))  # type: ignore[arg-type]
    else:
        numbers = np.array(keys, np.int64).astype(np.uint64)
    if tenants is not None:
        known = {tenant: crc32(tenant.encode()) << 32 for tenant in set(tenants)}
        numbers += np.fromiter((known[tenant] for tenant in tenants), np.uint64, len(tenants))
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(_ONE)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(_TWO)
    mixed: Hashes = numbers ^ (numbers >> np.uint64(31))
    return mixed


def build(hashes: Hashes) -> bytes:
    size = max(64, len(hashes) * BITS_PER_KEY)
    size += -size % 64
    bits = np.zeros(size, np.bool_)
    step = (hashes >> np.uint64(32)) | np.uint64(1)
    place = hashes & np.uint64(0xFFFFFFFF)
    for _ in range(PROBES):
        bits[place % np.uint64(size)] = True
        place = place + step
    return np.packbits(bits, bitorder="little").tobytes()


def may_contain(bits: bytes, found: int) -> bool:
    size = len(bits) * 8
    step, place = (found >> 32) | 1, found & 0xFFFFFFFF
    for _ in range(PROBES):
        at = place % size
        if not bits[at >> 3] >> (at & 7) & 1:
            return False
        place += step
    return True


def may_contain_many(bits: bytes, hashes: Hashes) -> npt.NDArray[np.bool_]:
    table = np.frombuffer(bits, np.uint8)
    size = np.uint64(len(bits) * 8)
    step = (hashes >> np.uint64(32)) | np.uint64(1)
    place = hashes & np.uint64(0xFFFFFFFF)
    found = np.ones(len(hashes), np.bool_)
    for _ in range(PROBES):
        at = place % size
        found &= (table[at >> np.uint64(3)] >> (at & np.uint64(7)).astype(np.uint8) & np.uint8(1)).astype(np.bool_)
        place = place + step
    return found
