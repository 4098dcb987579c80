"""What the C library's functions give here, in one text: where PostgreSQL's gives the same, they are computed here.

The last digit of exp, ln, sin and the like is not fixed by any standard: it differs between libraries, their versions,
and the processors that they have variants for. ``kalam_math.c`` makes the same text of the same arguments, whose
arithmetic is exact.
"""

from __future__ import annotations

import hashlib
import math
import struct
from functools import cache

import duckdb

COUNT = 1000
_MULTIPLIER, _INCREMENT, _MASK = 6364136223846793005, 1442695040888963407, (1 << 64) - 1
#: in the order of the C side; the query engine's own ones, in which x is up to 128 from zero and u is up to 1
_QUERY = """SELECT ln(abs(x)), log10(abs(x)), sin(x), cos(x), tan(x), asin(u), acos(u), atan(x), atan2(x, u), tanh(u)
    FROM (SELECT unnest($1) AS x, unnest($2) AS u)"""


def _samples() -> list[float]:
    state, found = 1, []
    for _ in range(COUNT):
        state = (state * _MULTIPLIER + _INCREMENT) & _MASK
        signed = state - (1 << 64) if state >> 63 else state
        found.append(math.ldexp(signed >> 11, -45))
    return found


@cache
def fingerprint() -> str:
    samples = _samples()
    with duckdb.connect(":memory:") as connection:
        rows = connection.execute(_QUERY, [samples, [x / 128 for x in samples]]).fetchall()
    digest = hashlib.md5(usedforsecurity=False)
    for x, row in zip(samples, rows, strict=True):
        own = (math.exp(x), math.pow(abs(x), x / 16), math.cbrt(x), math.sinh(x), math.cosh(x))
        digest.update(struct.pack("<15d", *row, *own))
    return digest.hexdigest()
