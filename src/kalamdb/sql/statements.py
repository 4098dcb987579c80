"""What can be executed: one immutable value per form of statement.

The parser makes them, the executor dispatches on their class. ``Query`` carries sqlglot's tree; everything else is
complete in itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlglot import exp

if TYPE_CHECKING:
    from kalamdb.txn.api import Isolation


@dataclass(frozen=True, slots=True)
class Name:
    """A table's name as written; without a namespace the search path decides."""

    namespace: str | None
    table: str

    def __str__(self) -> str:
        return f"{self.namespace}.{self.table}" if self.namespace else self.table


class Statement:
    """Base of all statements."""

    __slots__ = ()


# ---------- data ----------
@dataclass(frozen=True, slots=True)
class Query(Statement):
    """SELECT, INSERT, UPDATE or DELETE as sqlglot parsed it."""

    tree: exp.Expression
    sql: str


@dataclass(frozen=True, slots=True)
class ArrowWrite(Statement):
    """INSERT, UPDATE or DELETE … FROM ARROW $n."""

    verb: str  # insert, update, delete
    table: Name
    columns: tuple[str, ...]
    param: int  # from 0
    key: tuple[str, ...] = ()
    alias: str | None = None
    conflict: exp.OnConflict | None = None


@dataclass(frozen=True, slots=True)
class ExecuteAs(Statement):
    user: str
    sql: str
    inner: Statement


# ---------- cursors ----------
@dataclass(frozen=True, slots=True)
class Fetch(Statement):
    count: int
    cursor: str


@dataclass(frozen=True, slots=True)
class CloseCursor(Statement):
    cursor: str | None  # None: ALL


# ---------- transactions ----------
@dataclass(frozen=True, slots=True)
class Modes:
    isolation: Isolation | None = None
    read_only: bool | None = None


@dataclass(frozen=True, slots=True)
class Begin(Statement):
    modes: Modes = field(default_factory=Modes)
    start: bool = False  # START TRANSACTION: only the tag differs


@dataclass(frozen=True, slots=True)
class SetTransaction(Statement):
    modes: Modes
    session: bool = False


@dataclass(frozen=True, slots=True)
class Commit(Statement):
    pass


@dataclass(frozen=True, slots=True)
class Rollback(Statement):
    pass


@dataclass(frozen=True, slots=True)
class Savepoint(Statement):
    name: str


@dataclass(frozen=True, slots=True)
class Release(Statement):
    name: str


@dataclass(frozen=True, slots=True)
class RollbackTo(Statement):
    name: str


@dataclass(frozen=True, slots=True)
class RollbackToLevel(Statement):
    level: int


# ---------- settings ----------
@dataclass(frozen=True, slots=True)
class SetSetting(Statement):
    name: str
    value: tuple[str, ...] | None  # None: DEFAULT
    local: bool = False
    place: int | None = None  # of the name in the statement's text, from 1


@dataclass(frozen=True, slots=True)
class ResetSettings(Statement):
    name: str | None  # None: ALL
    discard: bool = False  # DISCARD ALL


# ---------- definitions ----------
@dataclass(frozen=True, slots=True)
class ColumnSpec:
    name: str
    type: str
    not_null: bool
    default: str | None
    position: int  # in the statement's text, from 1, for errors about the type


@dataclass(frozen=True, slots=True)
class CheckSpec:
    name: str | None
    expression: str


@dataclass(frozen=True, slots=True)
class CreateNamespace(Statement):
    name: str
    if_not_exists: bool


@dataclass(frozen=True, slots=True)
class DropNamespace(Statement):
    names: tuple[str, ...]
    if_exists: bool
    cascade: bool


@dataclass(frozen=True, slots=True)
class CreateTable(Statement):
    name: Name
    kind: str | None
    if_not_exists: bool
    columns: tuple[ColumnSpec, ...]
    key: tuple[str, ...]
    key_constraint: str | None
    checks: tuple[CheckSpec, ...]
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AddColumn:
    column: ColumnSpec
    checks: tuple[CheckSpec, ...]
    if_not_exists: bool
    fill: str | None  # what rows that are there show, as text; "" is a text, too
    filled: bool  # FILL was written: NULL where ``fill`` is None


@dataclass(frozen=True, slots=True)
class DropColumn:
    name: str
    if_exists: bool


@dataclass(frozen=True, slots=True)
class RenameColumn:
    name: str
    to: str


@dataclass(frozen=True, slots=True)
class RenameTable:
    to: str


@dataclass(frozen=True, slots=True)
class RenameConstraint:
    name: str
    to: str


@dataclass(frozen=True, slots=True)
class SetType:
    column: str
    type: str
    position: int


@dataclass(frozen=True, slots=True)
class SetDefault:
    column: str
    default: str | None


@dataclass(frozen=True, slots=True)
class SetNotNull:
    column: str
    not_null: bool


@dataclass(frozen=True, slots=True)
class AddCheck:
    check: CheckSpec
    valid: bool  # look at the rows that are there


@dataclass(frozen=True, slots=True)
class DropConstraint:
    name: str
    if_exists: bool


@dataclass(frozen=True, slots=True)
class SetOptions:
    options: Mapping[str, str]
    reset: tuple[str, ...] = ()


Action = (AddColumn | DropColumn | RenameColumn | RenameTable | RenameConstraint | SetType | SetDefault | SetNotNull
          | AddCheck | DropConstraint | SetOptions)


@dataclass(frozen=True, slots=True)
class AlterTable(Statement):
    name: Name
    kind: str | None
    if_exists: bool
    actions: tuple[Action, ...]
    owned_by: str | None = None


@dataclass(frozen=True, slots=True)
class DropTable(Statement):
    names: tuple[Name, ...]
    if_exists: bool
    owned_by: str | None


@dataclass(frozen=True, slots=True)
class UndropTable(Statement):
    """UNDROP TABLE name [ID number] [TO name]: the last one dropped of this name, or that one."""

    name: Name
    id: int | None
    to: str | None


# ---------- accounts ----------
@dataclass(frozen=True, slots=True)
class CreateUser(Statement):
    """CREATE USER, or ALTER USER where ``alter``. ``exists``: IF NOT EXISTS, or IF EXISTS."""

    name: str
    password: str | None  # None: NULL, where ``sets_password``
    role: str | None
    alter: bool = False
    exists: bool = False
    sets_password: bool = False
    locked: bool | None = None  # LOCK, UNLOCK, or neither

    def __repr__(self) -> str:  # the password must not reach a log
        return f"CreateUser({self.name!r}, role={self.role!r}, alter={self.alter})"


@dataclass(frozen=True, slots=True)
class DropUser(Statement):
    name: str
    if_exists: bool


# ---------- information ----------
@dataclass(frozen=True, slots=True)
class Describe(Statement):
    table: Name
    pattern: str | None = None  # LIKE, of SHOW COLUMNS


@dataclass(frozen=True, slots=True)
class Show(Statement):
    """SHOW CAPABILITIES, NAMESPACES, TABLES, ALL or a setting's name."""

    what: str
    namespace: str | None = None
    pattern: str | None = None  # LIKE
    place: int | None = None  # of the setting's name in the statement's text, from 1


@dataclass(frozen=True, slots=True)
class ShowTable(Statement):
    table: Name
    if_exists: bool


@dataclass(frozen=True, slots=True)
class ShowOutcome(Statement):
    """SHOW TRANSACTION OUTCOME 'id': what became of a transaction that the client named."""

    id: str


# ---------- tiers ----------
@dataclass(frozen=True, slots=True)
class StorageJob(Statement):
    """STORAGE FLUSH or COMPACT: TABLE name, or ALL [IN namespace]."""

    verb: str  # flush, compact
    table: Name | None
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class CancelJob(Statement):
    number: int


@dataclass(frozen=True, slots=True)
class ShowTableStats(Statement):
    table: Name


# ---------- files ----------
#: a text, or the place of a parameter, from 0
FileText = str | int


@dataclass(frozen=True, slots=True)
class FileData:
    value: FileText
    base64: bool = False  # else a bytea

    def __repr__(self) -> str:  # may be large
        return "FileData(…)"


@dataclass(frozen=True, slots=True)
class FilePut(Statement):
    """FILE PUT INTO table (column) … DATA …; without data FILE OPEN."""

    table: Name
    column: str
    name: FileText | None
    mime: FileText | None
    sha256: FileText | None
    data: FileData | None


@dataclass(frozen=True, slots=True)
class FileAppend(Statement):
    upload: FileText
    at: int | None
    data: FileData


@dataclass(frozen=True, slots=True)
class FileClose(Statement):
    upload: FileText
    sha256: FileText | None


@dataclass(frozen=True, slots=True)
class FileCancel(Statement):
    upload: FileText


@dataclass(frozen=True, slots=True)
class FileGet(Statement):
    """FILE GET column FROM table [WHERE …]: ``tree`` selects the column."""

    table: Name
    column: str
    tree: exp.Expression
    offset: int
    limit: int | None


FILE_STATEMENTS = (FilePut, FileAppend, FileClose, FileCancel, FileGet)


# ---------- statistics ----------
@dataclass(frozen=True, slots=True)
class SampleRows(Statement):
    """SAMPLE n ROWS OF table (columns) [METHOD method]."""

    rows: int
    table: Name
    columns: tuple[str, ...]
    method: str


@dataclass(frozen=True, slots=True)
class Estimate(Statement):
    """ESTIMATE SELECT … FROM table WHERE …: how many rows?"""

    query: Query


@dataclass(frozen=True, slots=True)
class ShowScanStats(Statement):
    """SHOW SCAN STATS number: of the report that contexts named so."""

    number: int


@dataclass(frozen=True, slots=True)
class ShowColumnWidths(Statement):
    table: Name


@dataclass(frozen=True, slots=True)
class ShowTableSize(Statement):
    table: Name


@dataclass(frozen=True, slots=True)
class Empty(Statement):
    pass
