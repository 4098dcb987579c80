"""Keys and tests of whole columns are those of one value after the other."""

from __future__ import annotations

from random import Random

import pyarrow as pa
import pytest

from kalamdb import kept
from kalamdb.sql import keyarrays
from kalamdb.sql.exact import FUNCTIONS

from .values import KEPT

RANDOM = Random(1)
BYTES = [".".join(str(RANDOM.randrange(256)) for _ in range(4)) for _ in range(300)]
ADDRESSES = [*KEPT["inet"], *KEPT["cidr"], *BYTES, *(f"{text}/{place % 33}" for place, text in enumerate(BYTES)), None]


def _some_interval() -> str:
    return kept.interval_text(*(RANDOM.choice([0, RANDOM.randint(-most, most)]) for most in (500, 5000, 10**12)))


INTERVALS = [*KEPT["interval"], "infinity", "-infinity", "99999 years", "-99999 years -11 mons -9999999 days", None,
             *(_some_interval() for _ in range(500))]  # fmt: skip


@pytest.mark.parametrize(("name", "texts"), [("inet", ADDRESSES), ("interval", INTERVALS),
                                             ("timetz", [*KEPT["timetz"], None])])
def test_keys(name: str, texts: list[str | None]) -> None:
    key, keys = kept.TYPES[name].key, keyarrays.keys_of(name)
    assert key is not None
    for part in (texts, texts[-400:], [], [None], texts[:3]):
        array = pa.chunked_array([pa.array(part[:100], pa.string()), pa.array(part[100:], pa.string())])
        assert keys(array).to_pylist() == [None if text is None else key(text) for text in part]


@pytest.mark.parametrize(("name", "one"), [("a_inside", kept.is_inside), ("a_within", kept.is_inside_or_equal),
                                           ("a_overlaps", kept.overlaps)])
def test_networks(name: str, one: object) -> None:
    (function,) = (each for each in FUNCTIONS if each.name == name)
    assert function.arrays is not None
    assert function.work is one
    for left, right in ((ADDRESSES, RANDOM.sample(ADDRESSES, len(ADDRESSES))), (BYTES, ["128.0.0.0/1"] * len(BYTES)),
                        (BYTES, [None] * len(BYTES)), ([], [])):
        found = function.arrays(pa.array(left, pa.string()), pa.array(right, pa.string())).to_pylist()
        assert found == [None if a is None or b is None else function.work(a, b)
                         for a, b in zip(left, right, strict=True)]
