"""Statement text to ``Statement``: a hand-written parser for everything but SELECT, INSERT, UPDATE and DELETE.

Those four go to sqlglot whole (PostgreSQL dialect), except for the wire dialect's ``FROM ARROW`` forms. Errors are
42601 with a position; statements that PostgreSQL knows and this server does not are 0A000.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import sqlglot
from sqlglot import TokenType, exp
from sqlglot import errors as sqlglot_errors
from sqlglot.dialects.postgres import Postgres
from sqlglot.parsers.postgres import PostgresParser

from kalamdb.errors import KalamError
from kalamdb.sql import parseadmin, refusals
from kalamdb.sql.lexer import Token, original, plain, tokenize
from kalamdb.sql.parsefile import file_statement
from kalamdb.sql.parsetable import TableBody, alter_table
from kalamdb.sql.statements import (
    FILE_STATEMENTS,
    ArrowWrite,
    Begin,
    CancelJob,
    CloseCursor,
    Commit,
    CreateTable,
    Describe,
    Empty,
    Estimate,
    ExecuteAs,
    Fetch,
    Modes,
    Name,
    Query,
    Release,
    ResetSettings,
    Rollback,
    RollbackTo,
    RollbackToLevel,
    SampleRows,
    Savepoint,
    SetSetting,
    SetTransaction,
    Show,
    ShowTable,
    Statement,
    StorageJob,
    UndropTable,
)

if TYPE_CHECKING:
    from kalamdb.txn.api import Isolation

logging.getLogger("sqlglot").setLevel(logging.CRITICAL)  # its warnings name neither session nor statement

_QUERY_WORDS = frozenset({"select", "with", "values", "table", "insert", "update", "delete"})
_FOREIGN_OPERATORS = frozenset({"==", "??", "**", "<=>", "//"})
_BEGINNINGS = ("Statements begin with SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, DROP, SHOW, DESCRIBE, SET, BEGIN, "
               "COMMIT, ROLLBACK, STORAGE or EXECUTE AS USER.")
_CLOSING = (")", ",", ";")
_CLAUSES = ("from", "where", "group", "order", "having", "qualify", "limit", "offset", "union", "intersect", "except",
            "window", "returning", "fetch")
_BRANCHES = ("when", "then", "else", "end")
#: reserved words that something follows; sqlglot takes some of them alone
_JOINING = frozenset({"in", "is", "as", "and", "or", "not", "like", "ilike", "where", "having", "qualify", "limit",
                      "offset", "on", "using", "when", "then", "else", "union", "intersect", "except", "join", "by"})
#: brackets within each other, and CASE; the interpreter's own limit is far above (``kalamdb.server``)
DEPTH = 100
_METHODS = ("auto", "random", "system", "bernoulli")
_ISOLATION: dict[str, Isolation] = {
    "read uncommitted": "read committed", "read committed": "read committed", "repeatable read": "repeatable read",
    "serializable": "serializable",
}


_SECRET = re.compile(r"password|\b(create|alter)\s+user\b(?!\s+table)", re.IGNORECASE)


def _is_secret(sql: str) -> bool:
    """May a word of the statement be a password? Error messages go into logs."""
    return _SECRET.search(sql) is not None


def _error_near(sql: str, near: str, position: int, hint: str | None = None) -> KalamError:
    message = "syntax error" if _is_secret(sql) else f'syntax error at or near "{near}"'
    return KalamError("42601", message, position=position, hint=hint)


def too_deep(position: int | None = None) -> KalamError:
    return KalamError("54001", "statement is too deeply nested", position=position,
                      hint=f"Brackets and CASE may be {DEPTH} deep.")


def _several(position: int | None = None) -> KalamError:
    return KalamError("42601", "cannot insert multiple commands into a prepared statement", position=position,
                      hint="Send one statement at a time.")


class Dialect(Postgres):
    """PostgreSQL's, with function calls left as they are written: what they mean is ``kalamdb.sql.functions``'."""

    class Parser(PostgresParser):
        FUNCTIONS = {}  # noqa: RUF012
        FUNCTION_PARSERS = {  # noqa: RUF012
            name: work for name, work in PostgresParser.FUNCTION_PARSERS.items()
            if name in ("CAST", "EXTRACT", "POSITION", "SUBSTRING", "TRIM", "OVERLAY")
        }

        def _parse_types(self, check_func: bool = False, schema: bool = False, allow_identifiers: bool = True,
                         with_collation: bool = False) -> exp.Expr | None:
            """What cannot be a type is not tried as one where a value is wanted: each level of nesting would double
            the time."""
            if check_func and self._is_value():
                return None
            return super()._parse_types(check_func, schema, allow_identifiers, with_collation)

        def _is_value(self) -> bool:
            """Does the bracket behind a type's name hold something else than the numbers of a type?"""
            tokens, at = self._tokens, self._index + 1
            kinds = [token.token_type for token in tokens[at : at + 5]]
            match kinds:
                case [TokenType.L_PAREN, TokenType.NUMBER, TokenType.R_PAREN, *_]:
                    return False
                case [TokenType.L_PAREN, TokenType.NUMBER, TokenType.COMMA, TokenType.NUMBER, TokenType.R_PAREN]:
                    return False
                case [TokenType.L_BRACKET, TokenType.R_BRACKET, *_]:
                    return bool(tokens[self._index].token_type == TokenType.ARRAY)
                case [TokenType.L_BRACKET, TokenType.NUMBER, TokenType.R_BRACKET, *_]:
                    return bool(tokens[self._index].token_type == TokenType.ARRAY)
            return bool(kinds) and kinds[0] in (TokenType.L_PAREN, TokenType.L_BRACKET)

        def _parse_cube_or_rollup(self, with_prefix: bool = False) -> exp.Cube | exp.Rollup | None:
            """Of any expressions; sqlglot takes no conditions."""
            if not self._match_set((TokenType.CUBE, TokenType.ROLLUP)):
                return None
            kind = exp.Cube if self._prev.token_type == TokenType.CUBE else exp.Rollup
            return self.expression(kind(expressions=self._parse_wrapped_csv(self._parse_disjunction)))

        def _parse_grouping_set(self) -> exp.Expr | None:
            return self._parse_grouping_sets() or self._parse_cube_or_rollup() or self._parse_disjunction()

        def _parse_interval_span(self, this: exp.Expr, parse_function_unit: bool = True) -> exp.Interval:
            """The string whole: sqlglot would keep its first number and unit only."""
            if isinstance(this, exp.Literal) and this.is_string and not this.this.strip().lstrip("+-").isdecimal():
                return self.expression(exp.Interval(this=this))
            return super()._parse_interval_span(this, parse_function_unit)


class Parser:
    """One statement. Methods named after what they parse consume it or raise."""

    def __init__(self, sql: str, tokens: list[Token]) -> None:
        self.sql = sql
        self.tokens = tokens
        self.at = 0

    # ---------- tokens ----------
    @property
    def token(self) -> Token:
        return self.tokens[self.at]

    def peek(self, ahead: int = 1) -> Token:
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def advance(self) -> Token:
        token = self.tokens[self.at]
        if token.kind != "end":
            self.at += 1
        return token

    def error(self, token: Token | None = None, hint: str | None = None) -> KalamError:
        token = token or self.token
        if token.kind == "end":
            return KalamError("42601", "syntax error at end of input", position=token.start + 1, hint=hint)
        return _error_near(self.sql, self.sql[token.start : token.end], token.start + 1, hint)

    def accept(self, *words: str) -> bool:
        """The words in this order, or nothing."""
        for ahead, word in enumerate(words):
            if not self.peek(ahead).is_word(word):
                return False
        self.at += len(words)
        return True

    def expect(self, *words: str) -> None:
        for word in words:
            if not self.accept(word):
                raise self.error(hint=f"expected {' '.join(words).upper()}")

    def accept_op(self, op: str) -> bool:
        if self.token.is_op(op):
            self.at += 1
            return True
        return False

    def expect_op(self, op: str) -> None:
        if not self.accept_op(op):
            raise self.error(hint=f'expected "{op}"')

    def end(self) -> None:
        if self.token.is_op(";"):
            self.advance()
            while self.token.is_op(";"):
                self.advance()
            if self.token.kind != "end":
                raise _several(self.token.start + 1)
        if self.token.kind != "end":
            raise self.error()

    def name(self) -> str:
        token = self.token
        if token.kind not in ("word", "name"):
            raise self.error()
        self.advance()
        return token.value

    def string(self) -> str:
        if self.token.kind != "string":
            raise self.error(hint="expected a quoted string")
        return self.advance().value

    def integer(self) -> int:
        if self.token.kind != "number" or not self.token.value.isdecimal():
            raise self.error(hint="expected a whole number")
        return int(self.advance().value)

    def table(self) -> Name:
        first = self.name()
        if self.accept_op("."):
            return Name(first, self.name())
        return Name(None, first)

    def names(self) -> tuple[str, ...]:
        self.expect_op("(")
        names = [self.name()]
        while self.accept_op(","):
            names.append(self.name())
        self.expect_op(")")
        return tuple(names)

    def if_exists(self) -> bool:
        return self.accept("if", "exists")

    def if_not_exists(self) -> bool:
        return self.accept("if", "not", "exists")

    # ---------- statement ----------
    def statement(self) -> Statement:
        first = self.token
        if first.kind == "end" or (first.is_op(";") and self.peek().kind == "end"):
            return Empty()
        if first.is_op("(") or (first.kind == "word" and first.value in _QUERY_WORDS):
            return self.arrow_write() or self.query()
        handler = _STATEMENTS.get(first.value) if first.kind == "word" else None
        if handler is None:
            word = first.value if first.kind == "word" else ""
            if word in refusals.STATEMENTS:
                raise refusals.unsupported(word.upper(), first.start + 1, refusals.STATEMENTS[word])
            raise self.error(hint=refusals.meant(word, (*_STATEMENTS, *_QUERY_WORDS), _BEGINNINGS))
        self.advance()
        statement = handler(self)
        self.end()
        return statement

    def query(self) -> Query:
        if self.token.is_word("insert"):
            self._check_insert()
        self._check_tokens()
        return Query(self._tree(), self.sql)

    def _tree(self) -> exp.Expression:
        """sqlglot's, of what is left; it sees the tokens that are seen here."""
        text, moved = plain(self.sql, self.tokens[self.at : -1])
        try:
            tree = parse_tree(text)
        except KalamError as error:
            if error.position is not None:
                error.position = original(error.position - 1, moved) + 1
            raise
        if moved:
            for node in tree.walk():
                if "start" in node.meta:
                    node.meta["start"] = original(node.meta["start"], moved)
        return tree

    @staticmethod
    def written(sql: str) -> Query:
        """A query that this server has written itself."""
        return Query(parse_tree(sql), sql)

    def _check_tokens(self) -> None:
        """What sqlglot takes and PostgreSQL does not: a comma with nothing after it, operators of other dialects."""
        depth = 0
        for place, token in enumerate(self.tokens[:-1]):
            after = self.tokens[place + 1]
            if token.is_op("(", "[") or token.is_word("case"):
                depth += 1
                if depth > DEPTH:
                    raise too_deep(token.start + 1)
            elif token.is_op(")", "]") or token.is_word("end"):
                depth -= 1
            if self._dangles(place):
                raise self.error(after)
            if token.kind == "op" and after.kind == "op" and after.start == token.end and (
                    pair := token.value + after.value) in _FOREIGN_OPERATORS:
                raise KalamError("42883", f"operator does not exist: {pair}", position=token.start + 1)
            if token.is_op("{", "}"):
                raise self.error(token)
            if token.kind == "string" == after.kind:
                raise self.error(after)
            if token.is_op(";") and after.kind != "end" and not after.is_op(";"):
                raise _several(after.start + 1)

    def _dangles(self, place: int) -> bool:
        """Does something have to follow this token, and nothing does?"""
        token, after, before = self.tokens[place], self.tokens[place + 1], self.tokens[max(0, place - 1)]
        if token.is_op(","):
            return after.kind == "end" or after.is_op(*_CLOSING) or after.is_word(*_CLAUSES)
        if not token.is_word(*_JOINING) or before.is_op(".") or (before.is_word("as") and before is not token):
            return False
        if token.is_word("by") and not before.is_word("group", "order", "partition"):
            return False
        if after.kind == "end" or after.is_op(*_CLOSING):
            return True
        return after.is_word(*_CLAUSES, *_BRANCHES) and not token.is_word("as")

    def _check_insert(self) -> None:
        """What stands where the rows begin: sqlglot takes more than PostgreSQL does."""
        start = self.at
        self.advance()
        self.expect("into")
        self.table()
        if self.accept("as"):
            self.name()
        if self.token.is_op("(") and not self.peek().is_word("select", "with", "values"):
            self.names()
        if not self.token.is_op("(") and not self.token.is_word("values", "select", "with", "default", "table",
                                                                 "overriding"):
            raise self.error()
        self.at = start

    # ---------- FROM ARROW ----------
    def arrow_write(self) -> ArrowWrite | None:
        start = self.at
        verb = self.token.value
        if verb in ("insert", "update", "delete") and any(
            token.is_word("arrow") and self.tokens[place - 1].is_word("from")
            and self.tokens[place + 1].kind == "param"
            for place, token in enumerate(self.tokens) if place
        ):
            self.advance()
            write = {"insert": self._arrow_insert, "update": self._arrow_update, "delete": self._arrow_delete}[verb]()
            self.end()
            return write
        self.at = start
        return None

    def _arrow_param(self) -> int:
        self.expect("from", "arrow")
        token = self.token
        if token.kind != "param" or int(token.value) < 1:
            raise self.error(hint="expected a parameter")
        self.advance()
        return int(token.value) - 1

    def _arrow_insert(self) -> ArrowWrite:
        self.expect("into")
        table = self.table()
        alias = self.name() if self.accept("as") else None
        columns, param = self.names(), self._arrow_param()
        return ArrowWrite("insert", table, columns, param, alias=alias, conflict=self._on_conflict())

    def _on_conflict(self) -> exp.OnConflict | None:
        """What follows the rows, as sqlglot parses it after an INSERT of one."""
        if not self.token.is_word("on"):
            return None
        tree = parse_tree("INSERT INTO t VALUES (1) " + self.sql[self.token.start:])
        conflict = tree.args.get("conflict")
        if not isinstance(conflict, exp.OnConflict) or tree.args.get("returning") is not None:
            raise self.error()
        self.at = len(self.tokens) - 1
        return conflict

    def _arrow_update(self) -> ArrowWrite:
        table = self.table()
        self.expect("set")
        columns, param = self.names(), self._arrow_param()
        self.expect("key")
        return ArrowWrite("update", table, columns, param, self.names())

    def _arrow_delete(self) -> ArrowWrite:
        self.expect("from")
        table, param = self.table(), self._arrow_param()
        self.expect("key")
        key = self.names()
        return ArrowWrite("delete", table, (), param, key)

    # ---------- transactions ----------
    def modes(self) -> Modes:
        isolation: Isolation | None = None
        read_only: bool | None = None
        while self.token.kind == "word":
            if self.accept("isolation", "level"):
                words = self.name()
                if words in ("read", "repeatable"):
                    words += " " + self.name()
                if words not in _ISOLATION:
                    raise self.error(self.tokens[self.at - 1])
                isolation = _ISOLATION[words]
            elif self.accept("read", "only"):
                read_only = True
            elif self.accept("read", "write"):
                read_only = False
            elif self.accept("not", "deferrable") or self.accept("deferrable"):
                pass
            else:
                raise self.error()
            self.accept_op(",")
        return Modes(isolation, read_only)

    def begin(self) -> Statement:
        self.accept("transaction") or self.accept("work")
        return Begin(self.modes())

    def start(self) -> Statement:
        self.expect("transaction")
        return Begin(self.modes(), start=True)

    def commit(self) -> Statement:
        if self.token.is_word("prepared"):
            raise KalamError("0A000", "COMMIT PREPARED is not supported", position=self.token.start + 1)
        self.accept("transaction") or self.accept("work")
        self._no_chain()
        return Commit()

    def rollback(self) -> Statement:
        if self.token.is_word("prepared"):
            raise KalamError("0A000", "ROLLBACK PREPARED is not supported", position=self.token.start + 1)
        self.accept("transaction") or self.accept("work")
        if not self.accept("to"):
            self._no_chain()
            return Rollback()
        if self.token.is_word("level") and self.peek().kind == "number":
            self.advance()
            return RollbackToLevel(self.integer())
        self.accept("savepoint")
        return RollbackTo(self.name())

    def _no_chain(self) -> None:
        if self.accept("and", "no", "chain"):
            return
        if self.token.is_word("and"):
            raise KalamError("0A000", "AND CHAIN is not supported", position=self.token.start + 1)

    def savepoint(self) -> Statement:
        return Savepoint(self.name())

    def release(self) -> Statement:
        self.accept("savepoint")
        return Release(self.name())

    # ---------- cursors ----------
    def fetch(self) -> Statement:
        self.accept("forward")
        count = self.integer() if self.token.kind == "number" else 1
        self.accept("from") or self.accept("in")
        return Fetch(count, self.name())

    def close(self) -> Statement:
        if self.accept("all"):
            return CloseCursor(None)
        return CloseCursor(self.name())

    # ---------- settings ----------
    def set(self) -> Statement:
        if self.accept("session", "characteristics", "as", "transaction"):
            return SetTransaction(self.modes(), session=True)
        if self.accept("transaction"):
            return SetTransaction(self.modes())
        local = self.accept("local")
        if not local:
            self.accept("session")
        if self.accept("time", "zone"):
            return SetSetting("timezone", self._set_value(), local)
        if self.accept("names"):
            return SetSetting("client_encoding", self._set_value(), local)
        place = self.token.start + 1
        name = self.setting_name()
        if not self.accept_op("="):
            self.expect("to")
        return SetSetting(name, self._set_value(), local, place)

    def setting_name(self) -> str:
        name = self.name().lower()
        while self.accept_op("."):
            name += "." + self.name().lower()
        return name

    def _set_value(self) -> tuple[str, ...] | None:
        if self.accept("default"):
            return None
        values = [self._one_value()]
        while self.accept_op(","):
            values.append(self._one_value())
        return tuple(values)

    def _one_value(self) -> str:
        sign = "-" if self.accept_op("-") else ""
        if self.token.kind not in ("word", "name", "string", "number"):
            raise self.error()
        return sign + self.advance().value

    def reset(self) -> Statement:
        if self.accept("all"):
            return ResetSettings(None)
        if self.accept("time", "zone"):
            return ResetSettings("timezone")
        return ResetSettings(self.setting_name())

    def undrop(self) -> Statement:
        self.expect("table")
        name = self.table()
        number = self.integer() if self.accept("id") else None
        return UndropTable(name, number, self.name() if self.accept("to") else None)

    def discard(self) -> Statement:
        self.expect("all")
        return ResetSettings(None, discard=True)

    # ---------- information ----------
    def estimate(self) -> Statement:
        self._check_tokens()
        query = Query(self._tree(), self.sql)
        self.at = len(self.tokens) - 1
        return Estimate(query)

    def sample(self) -> Statement:
        rows = self.integer()
        self.expect("rows", "of")
        table, columns = self.table(), self.names()
        method = "auto"
        if self.accept("method"):
            if self.token.value not in _METHODS:
                raise self.error(hint=f"expected one of {', '.join(_METHODS)}")
            method = self.name()
        return SampleRows(rows, table, columns, method)

    # ---------- tiers ----------
    def storage(self) -> Statement:
        verb = "flush" if self.accept("flush") else "compact" if self.accept("compact") else None
        if verb is None:
            raise self.error(hint="expected FLUSH or COMPACT")
        if self.accept("all"):
            return StorageJob(verb, None, self.name() if self.accept("in") else None)
        self.accept("table")
        return StorageJob(verb, self.table())

    def cancel(self) -> Statement:
        self.expect("job")
        return CancelJob(self.integer())

    def describe(self) -> Statement:
        self.accept("table")
        return Describe(self.table())

    # ---------- EXECUTE AS USER ----------
    def execute(self) -> Statement:
        if not self.accept("as", "user"):
            raise KalamError("0A000", "EXECUTE of a prepared statement is not supported here",
                             position=self.tokens[self.at - 1].start + 1,
                             hint="EXECUTE AS USER 'name' (statement) runs a statement for a tenant")
        user = self.string()
        self.expect_op("(")
        if self.token.is_word("execute"):
            raise KalamError("0A000", "EXECUTE AS USER cannot be nested", position=self.token.start + 1)
        if self.token.is_op(")", ";"):
            raise self.error(hint="expected SELECT, INSERT, UPDATE, DELETE or FILE")
        start, depth, place = self.at, 1, self.at
        while depth:
            token = self.tokens[place]
            if token.kind == "end":
                raise self.error(token)
            depth += token.is_op("(") - token.is_op(")")
            place += 1
        close = self.tokens[place - 1]
        self.at = place
        # blanks keep the inner statement's positions
        body = " " * self.tokens[start].start + self.sql[self.tokens[start].start : close.start]
        inner = parse(body)
        if not isinstance(inner, (Query, Show, ShowTable, Describe, *FILE_STATEMENTS)):
            raise KalamError("0A000", "EXECUTE AS USER takes SELECT, INSERT, UPDATE, DELETE or FILE",
                             position=self.tokens[start].start + 1,
                             hint="SET kalam.user_id = 'name' sets the tenant of the statements that follow.")
        return ExecuteAs(user, body, inner)

    # ---------- CREATE ----------
    def create(self) -> Statement:
        if self.accept("namespace") or self.accept("schema"):
            return parseadmin.create_namespace(self)
        if self.token.is_word("user") and not self.peek().is_word("table"):
            self.advance()
            return parseadmin.account(self, alter=False)
        kind = self.advance().value if self.token.is_word("user", "shared", "stream") else None
        if not self.accept("table"):
            raise parseadmin.refuse_object(self, "create")
        return self.create_table(kind)

    def create_table(self, kind: str | None) -> CreateTable:
        exists = self.if_not_exists()
        name = self.table()
        body = TableBody(self)
        self.expect_op("(")
        while True:
            body.element()
            if not self.accept_op(","):
                break
        self.expect_op(")")
        if self.accept("using"):
            self.expect("kalamdb")
        options = self.options() if self.accept("with") else {}
        return CreateTable(name, kind, exists, tuple(body.columns), body.key, body.key_constraint, tuple(body.checks),
                           options)

    def options(self) -> dict[str, str]:
        self.expect_op("(")
        options: dict[str, str] = {}
        while True:
            token = self.token
            name = self.setting_name()
            if name in options:
                raise KalamError("42601", f'option "{name}" was given twice', position=token.start + 1)
            self.expect_op("=")
            options[name] = self._one_value()
            if not self.accept_op(","):
                break
        self.expect_op(")")
        return options

    def until(self, *stops: str, words: frozenset[str] = frozenset()) -> str:
        """Source text up to one of the operators or words outside parentheses; not empty."""
        first = self.token
        if first.kind == "end" or first.is_op(",", ")", *stops):
            raise self.error()
        depth = 0
        while True:
            token = self.token
            if token.kind == "end":
                break
            if depth == 0 and token is not first and token.kind == "word" and token.value in words:
                break
            if depth == 0 and token.is_op(",", ")", *stops):
                break
            depth += token.is_op("(", "[") - token.is_op(")", "]")
            self.advance()
        return self.sql[first.start : self.tokens[self.at - 1].end]

    def alter(self) -> Statement:
        if self.token.is_word("user") and not self.peek().is_word("table"):
            self.advance()
            return parseadmin.account(self, alter=True)
        kind = self.advance().value if self.token.is_word("user", "shared", "stream") else None
        if self.accept("table"):
            return alter_table(self, kind)
        raise parseadmin.refuse_object(self, "alter")


def _describe(parser: Parser) -> Statement:
    return parser.describe()


_STATEMENTS: dict[str, Callable[[Parser], Statement]] = {
    "begin": Parser.begin, "start": Parser.start, "commit": Parser.commit, "end": Parser.commit,
    "rollback": Parser.rollback, "abort": Parser.rollback, "savepoint": Parser.savepoint, "release": Parser.release,
    "fetch": Parser.fetch, "close": Parser.close, "set": Parser.set, "reset": Parser.reset, "discard": Parser.discard,
    "estimate": Parser.estimate, "sample": Parser.sample,
    "show": parseadmin.show, "describe": _describe, "desc": _describe, "execute": Parser.execute,
    "create": Parser.create, "file": file_statement, "storage": Parser.storage, "cancel": Parser.cancel,
    "drop": parseadmin.drop, "undrop": Parser.undrop, "alter": Parser.alter,
}


def _line_to_position(sql: str, line: int, column: int) -> int:
    start = 0
    for _ in range(line - 1):
        start = sql.find("\n", start) + 1
    return start + column


def _tree_error(sql: str, error: sqlglot_errors.SqlglotError) -> KalamError:
    details = getattr(error, "errors", None)
    if not details:
        return KalamError("42601", "syntax error", hint=None if _is_secret(sql) else str(error).splitlines()[0])
    first = details[0]
    near = first.get("highlight") or ""
    end = _line_to_position(sql, int(first.get("line") or 1), int(first.get("col") or 1))
    if not near:
        return KalamError("42601", "syntax error at end of input", position=max(1, end + 1))
    return _error_near(sql, near, max(1, end - len(near) + 1))


def parse_tree(sql: str) -> exp.Expression:
    """One statement through sqlglot."""
    try:
        trees = [tree for tree in sqlglot.parse(sql, read=Dialect) if tree is not None]
    except sqlglot_errors.SqlglotError as error:
        raise _tree_error(sql, error) from None
    except RecursionError:
        raise too_deep() from None
    if len(trees) != 1:
        raise _several()
    tree = trees[0]
    if not isinstance(tree, exp.Query | exp.Insert | exp.Update | exp.Delete | exp.Values):
        first = sql.split(None, 1)[0].upper()
        place = len(sql) - len(sql.lstrip()) + 1
        if not first.isalpha():
            raise _error_near(sql, first[0], place)
        raise KalamError("0A000", f"this form of {first} is not supported", position=place)
    return cast(exp.Expression, tree)  # sqlglot's Query is a trait of such nodes


def parse_expression(sql: str) -> exp.Expression:
    """One expression (a DEFAULT or CHECK) through sqlglot."""
    try:
        tree = sqlglot.parse_one(sql, read=Dialect)
    except sqlglot_errors.SqlglotError as error:
        raise _tree_error(sql, error) from None
    except RecursionError:
        raise KalamError("54001", "expression is too deeply nested") from None
    if not isinstance(tree, exp.Expression):
        raise KalamError("42601", "syntax error", hint="expected an expression")
    return tree


def parse(sql: str) -> Statement:
    """One statement. Raises KalamError."""
    try:
        return Parser(sql, tokenize(sql)).statement()
    except RecursionError:
        raise too_deep() from None
