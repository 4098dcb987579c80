"""Parameters from their wire form to storage values."""

from __future__ import annotations

from collections.abc import Sequence

from kalamdb.errors import KalamError
from kalamdb.sql.predicate import Given
from kalamdb.types import PgType


def decode(params: Sequence[bytes | None], formats: Sequence[int], kinds: Sequence[PgType]) -> Given:
    """Storage values of a Bind message's parameters. ``formats``: none (all text), one for all, or one for each."""
    if len(params) != len(kinds):
        raise KalamError("08P01", f"bind message supplies {len(params)} parameters, but the prepared statement "
                                  f"requires {len(kinds)}")
    if len(formats) == len(params):
        return Given([None if data is None else kind.decode(data, fmt)
                      for data, fmt, kind in zip(params, formats, kinds, strict=True)])
    fmt = formats[0] if formats else 0
    return Given([None if data is None else kind.decode(data, fmt) for data, kind in zip(params, kinds, strict=True)])
