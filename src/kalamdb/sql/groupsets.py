"""GROUP BY of sets: GROUPING SETS, ROLLUP and CUBE written out as the list of sets that they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, combinations

from sqlglot import exp

from kalamdb.errors import KalamError

#: what one set of rows is grouped by, each key once
GroupingSet = tuple[str, ...]
Key = Callable[[exp.Expr], str]

#: PostgreSQL's limits
MOST_SETS = 4096
MOST_CUBED = 12


def has_sets(items: Iterable[exp.Expr]) -> bool:
    return any(isinstance(item, exp.Rollup | exp.Cube | exp.GroupingSets) or (
        isinstance(item, exp.Tuple) and not item.expressions) for item in items)


def grouping_sets(items: Sequence[exp.Expr], key: Key, *, distinct: bool) -> list[GroupingSet]:
    """One of each item, in all combinations; repeated sets count unless `distinct`."""
    sets: list[GroupingSet] = [()]
    for item in items:
        each = _sets(item, key)
        if len(sets) * len(each) > MOST_SETS:
            raise KalamError("54001", f"too many grouping sets present (maximum {MOST_SETS})")
        sets = [_joined([one, two]) for one in sets for two in each]
    return list({frozenset(each): each for each in sets}.values()) if distinct else sets


def _joined(parts: Iterable[GroupingSet]) -> GroupingSet:
    return tuple(dict.fromkeys(chain.from_iterable(parts)))


def _columns(item: exp.Expr, key: Key) -> GroupingSet:
    item = item.unnest()
    return _joined(_columns(each, key) for each in item.expressions) if isinstance(item, exp.Tuple) else (key(item),)


def _sets(item: exp.Expr, key: Key) -> list[GroupingSet]:
    if isinstance(item, exp.GroupingSets):
        return [each for part in item.expressions for each in _sets(part, key)]
    if not isinstance(item, exp.Rollup | exp.Cube):
        return [_columns(item, key)]
    parts = [_columns(part, key) for part in item.expressions]
    if not parts:
        raise KalamError("42601", "syntax error: ROLLUP and CUBE need columns")
    if isinstance(item, exp.Rollup):
        return [_joined(parts[:length]) for length in range(len(parts), -1, -1)]
    if len(parts) > MOST_CUBED:
        raise KalamError("54011", f"CUBE is limited to {MOST_CUBED} elements")
    return [_joined(chosen) for length in range(len(parts), -1, -1) for chosen in combinations(parts, length)]
