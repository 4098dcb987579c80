"""Types that cross package borders of the server.

What the protocol session (``rpc``), the SQL layer (``sql``) and the engine (``txn``, ``store``, ``catalog``) say to
each other. No behaviour lives here, but for how a ``Pending`` is waited for. Values in ``rows`` are in the storage
representation of ``docs/protocol.md``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import pyarrow as pa

from kalamdb.types import ARROW_OID as ARROW_OID

if TYPE_CHECKING:
    from kalamdb.errors import KalamError
    from kalamdb.types import PgType

CONTEXT_OID = 90001

#: One stored value: integer, float, text, blob or NULL (see docs/protocol.md, "Values").
type_Value = int | float | str | bytes | None
Row = tuple[Any, ...]


class Role(IntEnum):
    """What an account may do; each includes the ones before."""

    USER = 1
    SERVICE = 2
    DBA = 3
    SYSTEM = 4


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    role: Role
    stored: bool = field(default=False, compare=False)  # as CREATE USER made it; a token's is not


class TxnContext(msgspec.Struct, frozen=True):
    id: str
    iso: str = "read committed"
    ro: bool = False


class Context(msgspec.Struct, frozen=True, omit_defaults=True):
    """The context parameter of pg_kalam (docs/protocol.md)."""

    user: str | None = None
    txn: TxnContext | None = None
    floor: int = 1
    level: int = 1
    snap: int = 0
    take: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    close: tuple[str, ...] = ()
    fetch: int = 10_000
    arrow: bool = False
    commit: bool = False
    exec: bool = False
    bound: bool = False
    path: tuple[str, ...] = ()
    lock_timeout: int = 0
    stats: int = 0
    rules: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a result: its name and how its values are stored and sent."""

    name: str
    type: PgType
    typmod: int = -1


@dataclass(slots=True)
class Result:
    """What one execution of a statement yields.

    Either nothing but a tag, or columns with the first chunk: ``rows`` (storage values) or ``batches``. ``cursor``
    names the rest (statements with a context); ``stream`` yields it chunk by chunk (statements without one).
    """

    tag: str
    columns: tuple[Column, ...] | None = None
    rows: Sequence[Row] = ()
    batches: Sequence[pa.RecordBatch] | None = None
    schema: pa.Schema | None = None
    cursor: str | None = None
    stream: AsyncIterator[Sequence[Row]] | None = None
    notices: Sequence[str] = ()


class Pending:
    """A result that waits for one future, which nobody can stop, and for nothing else: it takes no task to wait for it.
    ``end`` is called once, when the future is done, and gives the result or raises what became of it."""

    __slots__ = ("end", "future")

    def __init__(self, future: asyncio.Future[Any], end: Callable[[asyncio.Future[Any]], Result]) -> None:
        self.future = future
        self.end = end

    def __await__(self) -> Generator[Any, Any, Result]:
        try:
            yield from self.future
        except BaseException:  # its own error, or a cancellation, which comes after it
            if not self.future.done():
                raise
        return self.end(self.future)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A parsed statement. ``columns`` is None where no rows come back, or where only execution tells (a context)."""

    sql: str
    param_types: tuple[int, ...]  # OIDs, without the context; unknown ones inferred
    columns: tuple[Column, ...] | None
    plan: Any = None


@dataclass(slots=True, eq=False)
class ClientSession:
    """One client, whatever it speaks. Owned by ``rpc`` or ``http``; ``sql`` keeps its state in the last fields."""

    id: int
    account: Account
    application: str = ""
    peer: str = ""
    settings: dict[str, str] = field(default_factory=dict)  # SET name = value (kalam.user_id, search_path, …)
    transaction: Any = None  # txn.Transaction
    cursors: dict[str, Any] = field(default_factory=dict)
    #: set while a thread works for this session; called (in the event loop) on cancel or disconnect
    interrupt: Callable[[], None] | None = None
    #: ends the session with that farewell; set by who owns it
    end: Callable[[KalamError], None] | None = None
    ends_itself: bool = False  # its own statement takes rights from its account: that is answered before the end
    active: bool = False  # a statement of its runs
    #: what is left to do of a statement once its answer is written, before anything else is done; None where nobody
    #: does it
    later: list[Callable[[], None]] | None = None
    connected_ns: int = field(default_factory=time.time_ns)  # Unix time, as the next one
    statement_ns: int = 0  # of the last statement's start
    tenant: str | None = None  # of the last statement

    @property
    def status(self) -> str:
        """ReadyForQuery's letter: I idle, T in a transaction, E in a failed one."""
        return "I" if self.transaction is None else self.transaction.status


#: Rows for other values of a statement's parameters, in wire form with these formats; None: ``execute`` has to tell.
Lookup = Callable[[Sequence[bytes], Sequence[int]], Sequence[Row] | None]


class Executor(Protocol):
    """The SQL layer as protocol sessions see it."""

    def open(self, session: ClientSession) -> None:
        """A client has logged in. From now on it is listed in ``system.sessions``, until ``close``."""

    def prepare(self, session: ClientSession, sql: str, param_types: Sequence[int]) -> Prepared:
        """Parse and bind. Raises KalamError (42601, 42P01, …). Cached by text; microseconds when cached.

        ``param_types`` as announced by Parse, CONTEXT_OID included: with it, names are resolved at execution (the
        context has the search path) and ``columns`` is None. A failure makes an open transaction a failed one.
        """

    def execute(
        self, session: ClientSession, prepared: Prepared, params: Sequence[bytes | None], formats: Sequence[int],
        context: Context | None,
    ) -> Result | Awaitable[Result]:
        """Run. What takes microseconds returns a Result at once, the rest an awaitable. Raises KalamError.

        ``params`` are in wire form (format 0 text, 1 binary), without the context. A cancelled awaitable raises 57014.
        """

    def lookup(self, session: ClientSession, prepared: Prepared, context: Context) -> Lookup | None:
        """How the same may be executed again, at once, with other values that are not NULL, where it looks up a row by
        its key outside a block. None: in no other way than ``execute``."""

    def split(self, sql: str) -> list[tuple[int, str]]:
        """The statements of a simple-protocol string, and where in it each begins."""

    def close(self, session: ClientSession) -> None:
        """The client has gone: roll back, free locks and cursors."""
