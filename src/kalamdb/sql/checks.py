"""CHECK constraints: which the server can enforce, and whether a row satisfies them.

A constraint is enforced where its expression is a simple condition of the table's columns, so that it is evaluated
exactly as PostgreSQL would; any other is kept as text, and PostgreSQL, which wrote it, enforces it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from kalamdb import types
from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.sql.bind import Binder, NotSimple, Params
from kalamdb.sql.lexer import Token, quote, tokenize
from kalamdb.sql.parse import parse_expression
from kalamdb.sql.predicate import Condition, evaluate
from kalamdb.sql.statements import CheckSpec
from kalamdb.txn.api import CheckDef, TableDef


def define(table: TableDef, specs: Sequence[CheckSpec]) -> tuple[CheckDef, ...]:
    """Definitions of a new table's constraints; those without a name get PostgreSQL's, ``table_check``."""
    taken = {spec.name for spec in specs if spec.name is not None}
    made: list[CheckDef] = []
    for spec in specs:
        name = spec.name or _free_name(f"{table.name}_check", taken)
        if any(check.name == name for check in made):
            raise KalamError("42710", f'check constraint "{name}" already exists', constraint=name)
        taken.add(name)
        made.append(definition(table, name, spec.expression))
    return tuple(made)


def definition(table: TableDef, name: str, expression: str) -> CheckDef:
    return CheckDef(name, expression, _condition_of(table, expression) is not None)


def violation(table: TableDef, check: CheckDef) -> Condition | None:
    """What holds for rows that violate a constraint; None where the server does not enforce it."""
    return _condition_of(table, f"NOT ({check.expression})") if check.enforced else None


# ---------- names in expressions ----------
def mentions(check: CheckDef, column: str) -> bool:
    return any(_names(tokens, place, column) for tokens in (tokenize(check.expression),)
               for place in range(len(tokens)))


def renamed(check: CheckDef, column: str, to: str) -> CheckDef:
    """The constraint after a column's change of name."""
    text, tokens = check.expression, tokenize(check.expression)
    for place in reversed(range(len(tokens))):
        if _names(tokens, place, column):
            text = text[: tokens[place].start] + quote(to) + text[tokens[place].end :]
    return CheckDef(check.name, text, check.enforced)


def _names(tokens: list[Token], place: int, column: str) -> bool:
    """Is this token the column's name? Not a type's after ``::``, and not a function's."""
    token = tokens[place]
    return (token.kind in ("word", "name") and token.value == column
            and not (place and tokens[place - 1].is_op("::")) and not tokens[place + 1].is_op("("))


def free_name(table: TableDef, column: str | None = None) -> str:
    """As PostgreSQL names a constraint that has no name."""
    base = f"{table.name}_{column}_check" if column is not None else f"{table.name}_check"
    return _free_name(base, {check.name for check in table.checks} | {table.key_constraint})


def _free_name(base: str, taken: set[str]) -> str:
    name, number = base, 0
    while name in taken:
        number += 1
        name = f"{base}{number}"
    return name


def _condition_of(table: TableDef, expression: str) -> Condition | None:
    try:
        return Binder(table, Params(())).condition(parse_expression(expression))
    except NotSimple:
        return None
    except KalamError:  # something of PostgreSQL's own
        return None


@lru_cache(maxsize=1024)
def _conditions(table_id: int, version: int, table: _Hashed) -> tuple[tuple[CheckDef, Condition], ...]:
    found = []
    for check in table.table.checks:
        condition = _condition_of(table.table, check.expression) if check.enforced else None
        if condition is not None:
            found.append((check, condition))
    return tuple(found)


class _Hashed:
    """A definition as the cache sees it: by the other two arguments alone."""

    __slots__ = ("table",)

    def __init__(self, table: TableDef) -> None:
        self.table = table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed)

    def __hash__(self) -> int:
        return 0


def check_row(table: TableDef, row: Row) -> None:
    """23514 where a row violates an enforced constraint; an unknown answer does not."""
    for check, condition in _conditions(table.id, table.version, _Hashed(table)):
        if evaluate(condition, (*row, None, None), ()) is False:
            shown = ", ".join("null" if value is None else types.write_text(column.type, value)
                              for column, value in zip(table.columns, row, strict=True))
            raise KalamError(
                "23514", f'new row for relation "{table.name}" violates check constraint "{check.name}"',
                detail=f"Failing row contains ({shown}).", schema=table.namespace, table=table.name,
                constraint=check.name,
            )
