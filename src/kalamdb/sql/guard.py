"""Which expressions of the query engine may fail, and AND and OR that keep these from rows they need not see.

PostgreSQL computes the sides of AND and OR from left to right, and no more than it needs, so a condition may stand
before a cast that fails for other rows. The query engine computes all of them for all rows, or in an order that it
changes while it runs; CASE is what it computes branch by branch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kalamdb import kept

#: what is written between quotes: constants and names
_QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
#: a cast of one constant or parameter fails for all rows or for none
_CONSTANT_CAST = re.compile(r"\bCAST\((?:q|\$\w+|-?[\d.]+(?:e[+-]?\d+)?|NULL) AS "
                            r"[\w ]+(?:\(\d+(?:, ?\d+)?\))?(?:\[\])*\)", re.IGNORECASE)
_CALL = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
#: they fail for no value; so do words before a parenthesis that are no functions
_SURE = frozenset("""
    and or not in is when then else from case values distinct any all coalesce least greatest nullif ifnull lower
    upper length strlen bit_length octet_length starts_with contains prefix suffix instr strpos trim ltrim rtrim
    reverse isnan isinf isfinite list_contains list_value row struct_pack concat len array_length
""".split()) | {f"kalam_key_{each.name}" for each in kept.ORDERED}  # noqa: SIM905 - as a text it is read more easily
_ARITHMETIC = re.compile(r"[+*/%~^&]|<<|>>|->|\||[\w\])]\s*-\s*[\w($]")
_CHANGING = re.compile(r"\b(?:random|uuid|gen_random_uuid|nextval)\(", re.IGNORECASE)
#: branches within branches, and characters that may be written twice, once more for each level of nesting
_DEEPEST, _LONGEST = 50, 20_000


def may_fail(sql: str) -> bool:
    """Is it not certain that the expression gives a value, or NULL, for every row?"""
    text = _QUOTED.sub("q", sql)
    while (plainer := _CONSTANT_CAST.sub("q", text)) != text:
        text = plainer
    return _ARITHMETIC.search(text.replace("||", " ")) is not None or any(
        name.lower() not in _SURE for name in _CALL.findall(text))


def junction(word: str, parts: Sequence[str]) -> str:
    """The parts joined by AND or OR. One that may fail is computed where neither those that cannot nor those before it
    have decided."""
    sure = [part for part in parts if not may_fail(part)]
    risky = [part for part in parts if part not in sure] if len(sure) < len(parts) else []
    if not risky or len(parts) == 1 or len(risky) > _DEEPEST or sum(map(len, parts)) > _LONGEST or any(
            _CHANGING.search(part) for part in parts):
        return f" {word} ".join(parts)
    undecided, decided = ("IS NOT FALSE", "FALSE") if word == "AND" else ("IS NOT TRUE", "TRUE")
    made = risky[-1]
    for part in reversed(risky[:-1]):
        made = f"({part} {word} CASE WHEN {part} {undecided} THEN {made} ELSE {decided} END)"
    if not sure:
        return made[1:-1] if len(risky) > 1 else made
    before = f" {word} ".join(sure)
    return f"{before} {word} CASE WHEN ({before}) {undecided} THEN {made} ELSE {decided} END"
