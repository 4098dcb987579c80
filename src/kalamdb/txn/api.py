"""What the SQL layer may ask of the engine (catalog, transactions, store).

Everything runs in the event loop's thread unless it says otherwise. A method without ``async`` never waits for locks
or disk flushes; it costs microseconds, or is said to be for a worker thread. Values are storage values
(docs/protocol.md). A row is a tuple as wide as ``TableDef.columns``, in that order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from kalamdb.api import ClientSession, Role, Row
from kalamdb.types import PgType

#: a column's type as declared, whose values are jsonb
FILE = "file"


def is_file(declared: str) -> bool:
    return declared.strip().lower() == FILE


Isolation = Literal["read committed", "repeatable read", "serializable"]
Kind = Literal["user", "shared", "stream"]
Key = tuple[Any, ...]
#: ``(tenant, key)``; the tenant of a shared table is "".
RowId = tuple[str, Key]


@dataclass(frozen=True, slots=True)
class ColumnDef:
    id: int  # never reused within the table; SQLite's column is f"c{id}"
    name: str
    type: PgType
    declared: str  # the type as written, with modifiers: numeric(10,2)
    typmod: int = -1
    not_null: bool = False
    default: str | None = None  # SQL text
    #: added to a table that was there: rows of before do not have it, and show ``missing`` (a storage value)
    late: bool = False
    missing: Any = None

    @property
    def is_file(self) -> bool:
        """Does it hold references to contents (``kalamdb.reference``)?"""
        return self.declared == FILE


@dataclass(frozen=True, slots=True)
class CheckDef:
    name: str
    expression: str
    enforced: bool  # the server can evaluate it exactly


@dataclass(frozen=True, slots=True)
class TableDef:
    """One table's definition; immutable, a change makes a new one with a higher ``version``."""

    id: int
    namespace: str
    name: str
    kind: Kind
    columns: tuple[ColumnDef, ...]  # the user's; _seq and _userid exist on every table and are not listed
    key: tuple[int, ...]  # positions in columns, in key order; () for a stream without one
    key_constraint: str  # name shown in 23505
    checks: tuple[CheckDef, ...] = ()
    options: Mapping[str, str] = ()  # type: ignore[assignment]
    owner: str | None = None  # "sysid/dboid/relid" of the PostgreSQL relation that manages it
    version: int = 1  # no two definitions of a table have the same
    last_column: int = 0  # the highest column id ever given

    @property
    def next_column(self) -> int:
        """The id of a column to come."""
        return max([self.last_column, *(column.id for column in self.columns)]) + 1

    @property
    def definition(self) -> str:
        """Names this definition: no other, of this table or of another, has the same."""
        return f"{self.id}.{self.version}"


class CatalogView(Protocol):
    """The catalog as one transaction sees it (its own DDL included)."""

    @property
    def version(self) -> int: ...  # changes with any visible DDL: the plan cache's key

    def table(self, namespace: str, name: str) -> TableDef | None: ...
    def tables(self, namespace: str | None = None) -> list[TableDef]: ...
    def namespaces(self) -> list[str]: ...
    def account(self, name: str) -> AccountDef | None: ...
    def accounts(self) -> list[AccountDef]: ...


class NotInMemory(Exception):
    """A row asked for in the event loop may lie in a file. ``load`` reads it (in a worker thread), for the next try."""

    def __init__(self, load: Callable[[], object]) -> None:
        super().__init__("the row is not in memory")
        self.load = load


class StaleDefinition(Exception):
    """The table was altered after the statement's plan was made. Nothing has been written: it is planned anew."""

    def __init__(self, table: TableDef) -> None:
        super().__init__(f"{table.namespace}.{table.name}")
        self.table = table


class Snapshot(Protocol):
    """Committed data as of one instant and the transaction's own writes up to one position."""


@dataclass(slots=True)
class ScanStats:
    """What scans did; counted by them as they go, each in one thread at a time."""

    hot_rows: int = 0  # that satisfied the condition
    cold_rows: int = 0  # read, whatever the condition
    segments: int = 0
    segments_pruned: int = 0  # known from the manifest to hold nothing of the range
    groups: int = 0
    groups_pruned: int = 0  # of the segments read


@dataclass(frozen=True, slots=True)
class Scan:
    """Rows of one table in key order within a tenant.

    ``columns``: positions; -1 stands for _seq, -2 for _userid. ``where`` is a SQLite expression over the columns
    ``c{id}``, ``_seq`` and ``_userid`` with ``?`` for ``params``, evaluated on storage values, with SQL's three-valued
    logic; None: all rows. ``key_prefix`` narrows to keys that begin with these values (whole key: at most one row);
    ``low``/``high`` bound the first key column after the prefix (value, inclusive). ``mask`` gives the truth of
    ``where`` for every row of a batch with the table's columns, where there is such a form of it; null: unknown.
    """

    table: TableDef
    tenant: str | None  # None: every tenant; "" for shared tables
    columns: tuple[int, ...]
    where: str | None = None
    params: tuple[Any, ...] = ()
    key_prefix: Key = ()
    low: tuple[Any, bool] | None = None
    high: tuple[Any, bool] | None = None
    limit: int | None = None
    with_id: bool = False  # each row preceded by its tenant and key tuple: (tenant, key, *columns)
    mask: Callable[[pa.RecordBatch], pa.Array] | None = field(default=None, compare=False)
    stats: ScanStats | None = field(default=None, compare=False)
    descending: bool = False  # only where the transaction ``reads_hot_alone``

    @property
    def in_range(self) -> bool:
        """Does it want a range of keys only?"""
        return bool(self.key_prefix) or self.low is not None or self.high is not None


class ScanCursor(Protocol):
    @property
    def full(self) -> bool:
        """The last fetch ended because of its rows' bytes: there may be more."""

    def fetch(self, n: int) -> list[Row]:
        """Up to n more rows, [] at the end. May run in a worker thread, one call at a time."""

    def batches(self) -> Iterator[pa.RecordBatch] | None:
        """All rows as record batches of the columns in their wire layouts, named by place ("0", "1" …), in no order;
        None where that is no shorter way than rows. Instead of ``fetch``, and in the same threads."""

    def interrupt(self) -> None:
        """Make a running fetch fail with 57014; callable from another thread."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Sample:
    """So many random rows. ``blocks``: how many blocks of cold rows may be read for them at most; None: all.
    Columns, tenant and bounds of the key as in a scan; a row just outside may be drawn as well."""

    table: TableDef
    columns: tuple[int, ...]
    rows: int
    blocks: int | None = None
    tenant: str | None = None
    key_prefix: Key = ()
    low: tuple[Any, bool] | None = None
    high: tuple[Any, bool] | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """The rows, fewer only where there are not so many (or not in the blocks read), and how many there are."""

    rows: Sequence[Row]
    total: int


class SampleCursor(Protocol):
    def draw(self) -> Sampled:
        """In a worker thread, once."""

    def interrupt(self) -> None: ...


class Transaction(Protocol):
    id: str
    isolation: Isolation
    read_only: bool
    lock_timeout_ms: int  # of the statement under way; 0: the engine's
    status: str  # "T" open, "E" failed (only rollback and rollback-to are accepted)
    catalog: CatalogView
    level: int  # 1: no savepoint

    def snapshot(self, number: int = 0) -> Snapshot:
        """Snapshot of that number, fixed when it is first named; 0: a fresh one for this call."""

    def release(self, number: int) -> None: ...

    def reads_hot_alone(self, snapshot: Snapshot, table: TableDef) -> bool:
        """Are all rows of the table that it sees hot, and none its own?"""

    def own_definition(self, table: TableDef) -> TableDef | None:
        """What the transaction itself has made of the table, by creating or altering it."""

    # reading; sees snapshot's committed data and own writes
    def get(self, snapshot: Snapshot, table: TableDef, tenant: str, key: Key) -> Row | None:
        """The row of a whole key: (*columns, _seq, _userid), or None. Microseconds; raises NotInMemory otherwise."""

    def scan(self, snapshot: Snapshot, scan: Scan) -> ScanCursor: ...

    def at_hand(self, snapshot: Snapshot, scan: Scan, *, alone: bool) -> list[pa.RecordBatch] | None:
        """The scan's ``batches`` where they are in memory and few, in microseconds; where the session is ``alone``
        also those known to be few, in a millisecond. None: it takes a worker."""

    def sample(self, snapshot: Snapshot, sample: Sample) -> SampleCursor: ...

    # writing: takes row locks, waits for other writers, checks key uniqueness (23505 with constraint, detail
    # 'Key (id)=(5) already exists.'), NOT NULL (23502) and enforced checks (23514); read-only: 25006
    async def insert(
        self, table: TableDef, rows: Iterable[tuple[str, Row]], *, skip_conflicts: bool = False,
        conflicts: list[int] | None = None,
    ) -> int:
        """How many rows; ``skip_conflicts``: without those whose key is taken, whose places go to ``conflicts``."""

    async def insert_batch(self, table: TableDef, tenant: str, batch: pa.RecordBatch) -> bool:
        """Insert the rows of a batch of the table's columns that are new without doubt, as those of a load mostly are.
        False, and nothing was done, where each has to be looked at: ``insert`` does that."""

    def insert_nowait(self, table: TableDef, tenant: str, row: Row) -> bool:
        """Single row where no lock has to be waited for; False: call insert."""

    async def update(self, table: TableDef, changes: Sequence[tuple[RowId, Mapping[int, Any]]]) -> int:
        """Set columns (by position) of rows by key; the number found. Under READ COMMITTED the newest version is
        changed; otherwise a row changed since the snapshot raises 40001."""

    def change_nowait(
        self, table: TableDef, tenant: str, key: Key, matches: Callable[[Row], bool],
        values: Callable[[Row], Mapping[int, Any]] | None,
    ) -> bool | None:
        """UPDATE (no column of the key) or, without ``values``, DELETE of one row if it ``matches``: was there one?
        None, and nothing was done, where it has to wait for a lock or a file, or sees an older snapshot."""

    async def update_locked(self, table: TableDef, changes: Sequence[tuple[RowId, Row, Mapping[int, Any]]]) -> None:
        """``update`` of rows as ``lock`` has just given them."""

    async def delete(self, table: TableDef, ids: Sequence[RowId]) -> int: ...

    async def lock(
        self, snapshot: Snapshot, table: TableDef, ids: Sequence[RowId], *, share: bool = False,
        wait: Literal["wait", "nowait", "skip"] = "wait", timeout_ms: int = 0,
    ) -> list[Row | None]:
        """Lock rows, then give their newest version ((*columns, _seq, _userid); None: gone, skipped, or written by
        the transaction itself after the snapshot: PostgreSQL, too, passes over what the same statement wrote)."""

    # DDL: visible to this transaction at once, to others after commit; transactional
    async def create_namespace(self, name: str) -> None: ...
    async def lock_namespace(self, name: str) -> None:
        """Keep everybody else from making or dropping tables' namespace, or tables in it, until the end."""

    async def drop_namespace(self, name: str) -> None:
        """An empty one, which ``lock_namespace`` locked."""

    async def create_table(self, table: TableDef) -> TableDef:
        """Assigns id. 42P07 if it exists, 3F000 if the namespace does not."""

    async def lock_to_drop(self, table: TableDef) -> None:
        """Keep everybody else away from a table and its name. Raises StaleDefinition where it was altered meanwhile."""

    async def drop_table(self, table: TableDef) -> None: ...

    async def restore_table(self, dropped: DroppedTable, namespace: str, name: str) -> TableDef:
        """Bring a dropped table back under this name, with its rows and no owner. 42P07 where the name is taken, 42704
        where its grace has ended meanwhile."""

    async def lock_table(self, table: TableDef) -> TableDef:
        """Keep everybody else from writing to the table until the end; its definition of now. 42P01 if it is gone."""

    async def alter_table(self, table: TableDef) -> TableDef:
        """Another definition of a table that ``lock_table`` locked. Columns are the same if their ids are: new ones
        take ``next_column``, and rows that are there show their ``missing``. A column's type changes only to one with
        the same storage values. 42P07 where the name is taken."""

    def newest(self) -> Snapshot:
        """All that is committed now, whatever the isolation level, and own writes."""

    async def settled(self, table: TableDef) -> None:
        """Wait while somebody's change of the table's definition is being committed."""

    async def put_account(self, account: AccountDef) -> None:
        """Make an account, or replace the one of its name. It counts at log-in after the commit."""

    async def lock_account(self, name: str) -> None:
        """Keep everybody else from changing an account until the end; "": the administrators as a whole."""

    async def drop_account(self, name: str) -> None: ...

    # savepoints
    def set_level(self, floor: int, level: int) -> None:
        """Release levels above floor, then open levels up to level."""

    def rollback_to_level(self, level: int) -> None:
        """Undo what levels >= level wrote; the depth becomes level - 1; a failed transaction is open again."""

    def fail(self, *, final: bool = False) -> None:
        """An error happened: status E. ``final``: only ROLLBACK can follow, so nobody need wait for its locks."""

    async def commit(self, *, alone: bool = False) -> int | None:
        """Durable when it returns: the commit's sequence number; None if nothing was written. Locks freed. ``alone``:
        nobody else would have to wait if the event loop did it at once.

        Once it is under way, cancelling the task does not stop it.
        """

    def commit_soon(self) -> asyncio.Future[int] | None:
        """Begin to commit what the writer stores by itself. The future, which nothing cancels, gives the sequence
        number; locks are free when it is done. None: nothing was done, use ``commit``."""

    def commit_now(self, later: Callable[[Callable[[], None]], None]) -> int | None:
        """A small commit that the event loop does, and waits for. None: use ``commit``. What is left to do when it is
        durable goes to ``later``, to be done before anything else that is asked of the engine."""

    def rollback(self) -> None: ...


class Upload(Protocol):
    """A content that is being put. Its methods are for worker threads, one call at a time."""

    size: int

    @property
    def sha256(self) -> bytes: ...

    def append(self, data: bytes) -> None:
        """54000 where it becomes too large. After an error the upload is over."""

    def abandon(self) -> None: ...


class OpenContent(Protocol):
    """A content that is being read. Its methods are for worker threads, one call at a time."""

    size: int

    def read(self, offset: int, count: int) -> bytes:
        """Fewer bytes only at the end. XX001 at the end where all were read in order and are not what they were."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class DroppedTable:
    """A table whose rows are kept for a while; times in milliseconds of Unix time."""

    table: TableDef
    dropped_at: int
    until: int


@dataclass(frozen=True, slots=True)
class AccountDef:
    """A stored account. ``password_hash`` is argon2's (``kalamdb.auth.passwords``); None: no log-in by password."""

    name: str
    role: Role
    password_hash: str | None = None
    locked: bool = False  # no log-in at all


class Accounts(Protocol):
    """Stored accounts, as last committed (kept in memory; reading costs microseconds)."""

    def get(self, name: str) -> AccountDef | None: ...
    def all(self) -> list[AccountDef]: ...


class StorageInfo(Protocol):
    """A place that ``storage_id`` of a table can name."""

    @property
    def id(self) -> str: ...

    @property
    def kind(self) -> str:
        """``local`` or ``s3``."""

    @property
    def location(self) -> str:
        """For people; without credentials."""


@dataclass(frozen=True, slots=True)
class TransactionInfo:
    """An open transaction, as ``system.transactions`` shows it."""

    id: str
    session: ClientSession | None
    isolation: Isolation
    read_only: bool
    status: str  # active, failed, committing
    started_ns: int  # Unix time
    rows_written: int
    level: int
    waiting: bool  # for a lock


@dataclass(frozen=True, slots=True)
class LockInfo:
    """A lock held or waited for. On a row; on a table or a name, ``key`` is None."""

    transaction: str
    session: ClientSession | None
    namespace: str | None
    table: str | None
    tenant: str | None
    key: str | None
    mode: str  # share, exclusive
    granted: bool


class Engine(Protocol):
    """Made by ``await kalamdb.txn.engine.open_engine(data_dir: Path, *, node_id: int | None, lock_timeout_ms: int,
    drop_grace_hours: float, storages: Mapping[str, Storage] | None)``; node_id None: drawn once, kept in the data
    directory; storages None: ``local`` only. The engine closes them."""

    server_id: str  # UUID made with the data directory
    node_id: int
    accounts: Accounts
    #: raises 23514 for a row that violates a CHECK of its table; called before each write; set by the SQL layer
    check_row: Callable[[TableDef, Row], None]
    #: called in the event loop after a commit has changed accounts of these names; set by the SQL layer
    accounts_changed: Callable[[Sequence[str]], None]

    def begin(
        self, session: ClientSession | None, *, isolation: Isolation = "read committed", read_only: bool = False,
        txn_id: str | None = None, lock_timeout_ms: int = 0,
    ) -> Transaction:
        """A transaction. Cheap: resources are taken at first use."""

    def insert_alone(self, txn_id: str, table: TableDef, tenant: str, row: Row) -> bool:
        """A transaction that inserts one row, from its begin to its end; durable when this returns, which the event
        loop waits for. False where it is not so easy, and nothing was done."""

    @property
    def committed(self) -> CatalogView:
        """The catalog as last committed."""

    def get_newest(self, table: TableDef, tenant: str, key: Key) -> Row | None:
        """As ``Transaction.get``, of the newest committed row: for a statement that reads this one row, outside any
        transaction."""

    async def outcome(self, txn_id: str) -> Literal["committed", "aborted", "in progress"]:
        """What became of a transaction that its client named; known for an hour at least, over a restart too."""

    def storages(self) -> Sequence[StorageInfo]:
        """All that are configured; the first is ``local``."""

    def transactions(self, account: str | None = None) -> Iterable[TransactionInfo]:
        """Open transactions of one account's sessions, or all."""

    def held_locks(self, account: str | None = None) -> Iterable[LockInfo]:
        """Locks that one account's transactions, or all, hold or wait for now; to be read in a worker thread."""

    # tiers; 42809 for a stream, which has none
    async def flush(self, table: TableDef) -> int:
        """Move all committed hot rows to segments; how many. Cancelling the task cancels the job."""

    async def compact(self, table: TableDef) -> int:
        """Merge the table's segments; the number of rows written."""

    # contents of FILE columns
    def upload(self, table: TableDef, limit: int) -> Upload:
        """A content to come, of so many bytes at most. 55000 where the table is not committed."""

    async def publish_content(self, table: TableDef, tenant: str, upload: Upload) -> None:
        """From now on rows of the tenant may refer to it; durable, whatever becomes of the transaction."""

    async def open_content(self, table: TableDef, tenant: str, sha256: bytes) -> OpenContent:
        """The caller has seen a row of the tenant that refers to it. 58P01 where it is missing."""

    async def collect_contents(self, table: TableDef) -> int:
        """Remove contents that nothing has referred to for the grace period; how many."""

    async def table_stats(self, table: TableDef) -> Mapping[str, int]:
        """Rows and bytes by tier."""

    def table_size(self, table: TableDef, tenant: str | None) -> Mapping[str, int]:
        """``rows``, ``bytes``, and ``tenant_rows`` where a tenant is named: estimates. In a worker thread."""

    def table_size_nowait(self, table: TableDef, tenant: str | None) -> Mapping[str, int] | None:
        """The same where it takes microseconds; None: it does not. In the event loop."""

    def dropped_tables(self) -> Sequence[DroppedTable]:
        """Committed drops that can be taken back, the latest first."""

    def cancel_job(self, number: int) -> None:
        """42704, 55000 where it is not running."""

    async def close(self) -> None:
        """Wait for commits under way, checkpoint, close the files."""
