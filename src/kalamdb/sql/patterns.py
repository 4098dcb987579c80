"""Regular expressions of PostgreSQL that the query engine understands alike, and their spelling there.

What is taken: characters, ``.``, ``\\`` before punctuation, ``\\d \\w \\s`` and their complements, lists with ranges of
digits and of letters of one case, ``* + ?`` and ``{m,n}``, groups, ``|``, and ``^`` and ``$`` at the ends of a branch.
Whether such a pattern matches is decided alike by both. *Where* it matches is so if at most one part may have several
lengths (``single``): PostgreSQL takes the longest match, the query engine what its first alternatives lead to.
``kalam_pattern.c`` decides by the same grammar what is sent. Letters, digits and spaces are those of ASCII.
"""

from __future__ import annotations

import re

from kalamdb.errors import KalamError

_PUNCTUATION = r"[!-/:-@\[-`{-~]"
_ESCAPE = rf"\\(?:[dwsDWSntrfv]|{_PUNCTUATION})"
_ITEM = rf"(?:[0-9]-[0-9]|[a-z]-[a-z]|[A-Z]-[A-Z]|\\(?:[dwsntrfv]|{_PUNCTUATION})|[^\\\[\]^-])"
_LIST = rf"\[\^?-?{_ITEM}+-?\]"
_TOKEN = re.compile(rf"(?P<open>\((?:\?:)?)(?!\?)|(?P<close>\))|(?P<bar>\|)|(?P<begin>\^)|(?P<end>\$(?=[|)]|\Z))|"
                    rf"(?P<quantity>(?:[*+?]|\{{(?P<low>\d{{1,3}})(?P<comma>,(?P<high>\d{{1,3}})?)?\}})(?P<lazy>\??))|"
                    rf"(?P<list>{_LIST})|(?P<atom>{_ESCAPE}|\.|[^\\\[\]{{}}()*+?^$|.])", re.DOTALL)
_ITEMS = re.compile(_ITEM, re.DOTALL)
#: longest pattern, in bytes, and how often something may be repeated in all: PostgreSQL's own limit for one bound
MAX_LENGTH, MAX_REPEATED = 1000, 255
_SPACES = r"\t\n\v\f\r "


def _spelled(text: str, *, fold: bool) -> str:
    """A character or an item of a list, as it stands between brackets."""
    if text in (r"\s", r"\S"):
        return _SPACES
    if not fold or text[0] == "\\":
        return text
    return text + text.swapcase() if text.isascii() and text[0].isalpha() else text


def _atom(text: str, *, fold: bool) -> str:
    if text == r"\s":
        return f"[{_SPACES}]"
    if text == r"\S":
        return f"[^{_SPACES}]"
    if text[0] == "[":
        begin = 2 if text[1] == "^" else 1
        body, dash = text[begin:-1], ""
        if body[0] == "-":
            body, dash = body[1:], r"\-"
        if body[-1] == "-":
            body, dash = body[:-1], r"\-"
        return text[:begin] + dash + "".join(_spelled(item, fold=fold) for item in _ITEMS.findall(body)) + "]"
    if len(text) == 1 and text.isascii() and text.isalpha() and fold:
        return f"[{text}{text.swapcase()}]"
    return text


def translated(pattern: str, *, fold: bool = False, single: bool = False, group: str = "") -> str | None:
    """The query engine's spelling; None if it is not known to mean the same. ``fold``: of letters of either case.
    ``group``: what is to be the one group that is captured, "first" (all of it if there is none) or "whole"."""
    if len(pattern.encode()) > MAX_LENGTH:
        return None
    made: list[str] = []
    opened: list[bool] = []  # groups; captures?
    place, repeated, quantities, least, captured = 0, 1, 0, 0, False
    empty, before = True, ""  # the branch so far; what a quantifier would be of
    while place < len(pattern):
        found = _TOKEN.match(pattern, place)
        if found is None:
            return None
        place, text = found.end(), found[0]
        if text[0] == "[" and any(len(item) == 3 and item[0] > item[2] for item in _ITEMS.findall(text[1:-1])):
            return None
        match found.lastgroup if found["quantity"] is None else "quantity":
            case "open":
                wanted = group == "first" and text == "(" and not captured
                captured = captured or text == "("
                opened.append(wanted)
                text = "(" if wanted else "(?:"
                empty, before = True, ""
            case "close":
                if not opened or empty:
                    return None
                opened.pop()
                before = "" if single else ")"
            case "bar":
                if empty or single:
                    return None
                empty, before = True, ""
            case "begin":
                if not empty or before:
                    return None
                empty, before = False, ""
                if place < len(pattern) and pattern[place] in "*+?{":
                    return None
            case "end":
                empty, before = False, ""
            case "quantity":
                low = {"*": 0, "?": 0, "+": 1}.get(text[0], int(found["low"] or 0))
                high = int(found["high"]) if found["high"] else low + (found["comma"] is not None)
                high = 1 if text[0] in "*+?" else high
                repeated *= max(high, 1)
                quantities += 1
                if not before or low > max(high, 1) or (text[0] == "{" and not low <= high <= MAX_REPEATED) or (
                        repeated > MAX_REPEATED or (single and (quantities > 1 or found["lazy"]))):
                    return None
                least += low - 1
                before = ""
            case _:
                text = _atom(text, fold=fold)
                least += 1
                empty, before = False, text
        made.append(text)
    if opened or empty or (single and least < 1):
        return None
    body = "".join(made)
    return body if not group or (group == "first" and captured) else f"({body})"


def _known(pattern: str, made: str | None) -> str:
    if made is None:
        raise KalamError("0A000", "this regular expression is not supported",
                         hint="Characters, lists, groups and the operators . * + ? | { } ^ $ are.")
    return made


def plain(pattern: str) -> str:
    return _known(pattern, translated(pattern))


def folded(pattern: str) -> str:
    return _known(pattern, translated(pattern, fold=True))


def replaced(pattern: str) -> str:
    return _known(pattern, translated(pattern, single=True))


def first(pattern: str) -> str:
    return _known(pattern, translated(pattern, single=True, group="first"))


def whole(pattern: str) -> str:
    return _known(pattern, translated(pattern, single=True, group="whole"))
