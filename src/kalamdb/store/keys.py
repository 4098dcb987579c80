"""How a table's key is laid out in SQLite: one integer-like column as an integer, any other key as ordered bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kalamdb.order import INTEGERS, part_encoder
from kalamdb.txn.api import TableDef


def successor(prefix: bytes) -> bytes | None:
    """The least byte string above all that begin with ``prefix``; None: there is none."""
    short = prefix.rstrip(b"\xff")
    return short[:-1] + bytes([short[-1] + 1]) if short else None


@dataclass(frozen=True, slots=True)
class KeyCodec:
    """One table's keys. ``integer``: the key is one integer column, or a keyless stream's own number."""

    integer: bool
    encoders: tuple[Callable[[Any], bytes], ...]

    @classmethod
    def of(cls, table: TableDef) -> KeyCodec:
        names = [table.columns[position].type.name for position in table.key]
        if not names or (len(names) == 1 and names[0] in INTEGERS):
            return cls(True, ())
        return cls(False, tuple(part_encoder(name) for name in names))

    def encode(self, key: Sequence[Any]) -> int | bytes:
        if self.integer:
            value: int = key[0]
            return value
        encoders = self.encoders
        if len(key) == 1:
            return encoders[0](key[0])
        return b"".join([encode(value) for encode, value in zip(encoders, key, strict=True)])

    def row_keys(self, rows: Sequence[tuple[str, Sequence[Any]]], places: Sequence[int]
                 ) -> list[tuple[str, int | bytes]]:
        """(tenant, encoded key) of rows whose keys are at these places."""
        if self.integer:
            place = places[0]
            return [(tenant, row[place]) for tenant, row in rows]
        encode = self.encode
        return [(tenant, encode([row[place] for place in places])) for tenant, row in rows]

    def bounds(self, prefix: Sequence[Any], low: tuple[Any, bool] | None, high: tuple[Any, bool] | None
               ) -> tuple[list[tuple[str, int | bytes]], bool]:
        """Conditions ``(operator, value)`` on the encoded key; and False where no key satisfies them."""
        if self.integer:
            return self._integer_bounds(prefix, low, high)
        start = b"".join([encode(value) for encode, value in zip(self.encoders, prefix, strict=False)])
        if len(prefix) == len(self.encoders):
            return [("=", start)], True
        found: list[tuple[str, int | bytes]] = []
        encode = self.encoders[len(prefix)]
        lower: bytes | None = start or None
        upper = successor(start) if start else None
        if low is not None:
            edge = start + encode(low[0])
            lower = edge if low[1] else successor(edge)
            if lower is None:
                return [], False
        if high is not None:
            edge = start + encode(high[0])
            upper = successor(edge) if high[1] else edge
        if lower is not None:
            found.append((">=", lower))
        if upper is not None:
            found.append(("<", upper))
        return found, True

    @staticmethod
    def _integer_bounds(prefix: Sequence[Any], low: tuple[Any, bool] | None, high: tuple[Any, bool] | None
                        ) -> tuple[list[tuple[str, int | bytes]], bool]:
        if prefix:
            return [("=", prefix[0])], True
        found: list[tuple[str, int | bytes]] = []
        if low is not None:
            found.append((">=" if low[1] else ">", low[0]))
        if high is not None:
            found.append(("<=" if high[1] else "<", high[0]))
        return found, True
