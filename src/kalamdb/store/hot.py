"""Hot rows in SQLite: one table per Kalam table, clustered by tenant and key.

``h_<id>(_userid, k, _seq, c<column id> …)``: ``_userid`` is the tenant ("" in a shared table), ``k`` the encoded key
(``store.keys``), every column holds its storage value (NaN as a blob, see there). A snapshot is a connection with an
open read transaction; connections are kept in a pool. Nothing here knows of transactions of clients.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from itertools import count, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from weakref import ref

import apsw

from kalamdb import kept
from kalamdb.api import Row
from kalamdb.errors import KalamError
from kalamdb.order import NAN, NUMERIC_FUNCTION, is_float, key_function, numeric_bytes
from kalamdb.store.keys import KeyCodec
from kalamdb.txn.api import Scan, TableDef

T = TypeVar("T")

#: Rows read per hold of a snapshot's lock, so that several scans of one snapshot take turns. Few enough to be in the
#: processor's cache still when they are turned into arrays, which halves the time of that.
TURN_ROWS = 512
#: or until their texts and blobs have so many bytes, looked at after so many rows
TURN_BYTES = 4 << 20
SIZED_ROWS = 64
#: of so many rows that their successors need no closer look
SMALL_BYTES = 64 << 10
#: SQLite's virtual machine steps between two looks at whether a scan was interrupted
INTERRUPT_STEPS = 20_000
POOL = 32
#: pages of the write-ahead log before it is written back to the database
LOG_PAGES = 4000
#: KiB of page cache, negative as SQLite wants it. A commit that has split a page looks at all that are in the writer's:
#: with 64 MiB one in fifteen inserts took a millisecond for that
READER_CACHE, WRITER_CACHE = -8192, -16384
#: in pages, of the event loop's reader: each commit empties it, and that takes as long as it was ever large
LIVE_CACHE = 200
SEQ, USERID = -1, -2

_NAN = float("nan")


def open_scratch() -> apsw.Connection:
    """A database in memory, with the functions that scans use."""
    connection = apsw.Connection(":memory:")
    _add_functions(connection)
    return connection


def open_connection(path: Path, *, read_only: bool = False) -> apsw.Connection:
    """A connection set up for this store. Only this library may open the file in this process (POSIX locks)."""
    flags = apsw.SQLITE_OPEN_READWRITE if read_only else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=256)
    connection.set_busy_timeout(10_000)
    if not read_only:
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("PRAGMA synchronous=FULL")
        connection.pragma("wal_autocheckpoint", LOG_PAGES)  # until a ``Writer`` sees to it
        connection.pragma("journal_size_limit", _log_size(connection))
    connection.pragma("cache_size", READER_CACHE if read_only else WRITER_CACHE)
    _add_functions(connection)
    return connection


def _add_functions(connection: apsw.Connection) -> None:
    # apsw's type for a function has any number of arguments
    connection.create_scalar_function(NUMERIC_FUNCTION, _numeric_order, 1, deterministic=True)  # type: ignore[arg-type]
    for each in kept.ORDERED:
        if each.key is not None:
            order = partial(_key_order, each.key)
            connection.create_scalar_function(key_function(each.name), order, 1, deterministic=True)


#: of the size of a statement, whatever wrote it
_LIMITS = re.compile(r"tree is too large|stack overflow|too many", re.IGNORECASE)
_DISK = (apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, apsw.NotADBError, apsw.BusyError, apsw.ProtocolError,
         apsw.PermissionsError)


def storage_error(error: BaseException, action: str = "write to") -> BaseException:
    """What a client is told of a failed write (or "read"); the error itself where the disk is not to blame."""
    hint = "Nothing of the transaction was stored." if action == "write to" else None
    if isinstance(error, apsw.FullError) or (
            isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE):
        return KalamError("53100", f"could not {action} the data directory: no space left on device",
                          hint=f"{hint} Free space and repeat it." if hint else None)
    if isinstance(error, apsw.CorruptError):
        return KalamError("XX001", "hot.db in the data directory is damaged", detail=str(error),
                          hint="kalam check tells more; restore it from a backup.")
    if isinstance(error, _DISK):
        return KalamError("58030", f"could not {action} the data directory: {error}", hint=hint)
    if isinstance(error, apsw.TooBigError):
        return KalamError("54000", "a row is larger than the hot store takes", detail="The limit is 1000000000 bytes.",
                          hint=hint)
    if isinstance(error, apsw.SQLError) and _LIMITS.search(str(error)):
        return KalamError("54001", "statement is too complex", detail=f"{str(error)[:1].upper()}{str(error)[1:]}.")
    return error


def _fail(error: apsw.Error) -> NoReturn:
    """Of reading."""
    told = storage_error(error, "read")
    if told is error:
        raise error
    raise told from error


def _log_size(connection: apsw.Connection) -> int:
    """Of the log's file: it goes on while it is written back."""
    pages: int = LOG_PAGES + LOG_PAGES // 2
    return pages * int(connection.pragma("page_size"))


def extend_log(connection: apsw.Connection) -> None:
    """Give the write-ahead log its full size at once.

    A commit that makes the file longer has to synchronise the file system's own journal too, which doubles its time
    (measured: 290 to 410 µs against 160 to 200). The space is taken by a transaction too large for its cache, so that
    its pages are written to the log, and rolled back.
    """
    size = _log_size(connection)
    connection.pragma("cache_size", 16)
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE kalam_filler (data BLOB)")
        connection.execute("INSERT INTO kalam_filler VALUES (zeroblob(?))", (size,))
    except apsw.FullError:  # it will grow as it is needed
        pass
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        connection.pragma("cache_size", WRITER_CACHE)


def _numeric_order(text: str | None) -> bytes | None:
    return None if text is None else numeric_bytes(text)


def _key_order(key: Callable[[str], bytes], text: str | None) -> bytes | None:
    return None if text is None else key(text)


# ---------- layout ----------
class Layout:
    """How one table's rows lie in SQLite."""

    def __init__(self, table: TableDef) -> None:
        self.table_id = table.id
        self.table = f"h_{table.id}"
        self.codec = KeyCodec.of(table)
        self.columns = tuple(f"c{column.id}" for column in table.columns)
        self.types = tuple(column.type for column in table.columns)
        self.arrow = {name: column.type.arrow for name, column in zip(self.columns, table.columns, strict=True)}
        self.booleans = tuple(place for place, column in enumerate(table.columns) if column.type.layout == "bool")
        self.floats = tuple(place for place, column in enumerate(table.columns) if is_float(column.type.name))
        #: texts and the like, as long as they please
        self.wide = tuple(place for place, column in enumerate(table.columns)
                          if column.type.layout in ("utf8", "binary"))
        self.key = table.key
        self.files = tuple(place for place, column in enumerate(table.columns) if column.is_file)
        self.shared = table.kind == "shared"
        self.stream = table.kind == "stream"
        names = ", ".join(self.columns)
        self.create = (
            f"CREATE TABLE {self.table} (_userid TEXT NOT NULL, k ANY NOT NULL, _seq INTEGER NOT NULL, "
            + "".join(f"{name} ANY, " for name in self.columns) + "PRIMARY KEY (_userid, k)) STRICT, WITHOUT ROWID"
        )
        self.index = f"CREATE INDEX {self.table}_seq ON {self.table} (_seq)" if self.stream else None
        owner = "NULL" if self.shared else "_userid"
        self.get = (f"SELECT {names}{', ' if names else ''}_seq, {owner} FROM {self.table} WHERE _userid = ? AND k = ?")
        #: the same for a table with cold rows, all in one look: version of its manifest, is there a tombstone, and the
        #: hot row after its key, NULL where there is none
        self.get_tiered = (
            f"SELECT (SELECT version FROM kalam_manifests WHERE table_id = {table.id}), "
            f"EXISTS (SELECT 1 FROM d_{table.id} WHERE _userid = ?1 AND k = ?2), k, "
            f"{names}{', ' if names else ''}_seq, {owner} "
            f"FROM (SELECT 1) LEFT JOIN {self.table} ON _userid = ?1 AND k = ?2")
        self.exists = f"SELECT 1 FROM {self.table} WHERE _userid = ? AND k = ?"
        self.put = (f"REPLACE INTO {self.table} (_userid, k, _seq{''.join(f', {name}' for name in self.columns)}) "
                    f"VALUES (?, ?, ?{', ?' * len(self.columns)})")
        self.delete = f"DELETE FROM {self.table} WHERE _userid = ? AND k = ?"
        self.any_between = f"SELECT 1 FROM {self.table} WHERE _userid = ? AND k BETWEEN ? AND ? LIMIT 1"
        self.last_key = f"SELECT max(k) FROM {self.table} WHERE _userid = ?"
        #: what rows show that are older than a column
        self.missing = {f"c{column.id}": column.missing for column in table.columns if column.late}
        self.additions = {name: f"ALTER TABLE {self.table} ADD COLUMN {name} ANY DEFAULT {_literal(value)}"
                          for name, value in self.missing.items()}

    def present(self, connection: apsw.Connection) -> set[str]:
        """Columns that the table has in the connection's snapshot; dropped ones may be among them."""
        return {name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (self.table,))}

    def fitted(self, text: str, connection: apsw.Connection) -> str:
        """A statement about a snapshot from before some of the columns were added."""
        present = self.present(connection)
        absent = {name: value for name, value in self.missing.items() if name not in present}
        return _COLUMN.sub(lambda found: _literal(absent[found[0]]) if found[0] in absent else found[0], text)

    def output(self, position: int) -> str:
        if position == SEQ:
            return "_seq"
        if position == USERID:
            return "NULL" if self.shared else "_userid"
        return self.columns[position]

    def stored(self, row: Row) -> Row:
        """A row as SQLite is to hold it."""
        if not self.floats:
            return row
        values = list(row)
        for place in self.floats:
            value = values[place]
            if value is not None and value != value:
                values[place] = NAN
        return tuple(values)

    def load_row(self, row: Row) -> Row:
        """Brings back what ``stored`` changed, in a whole row."""
        for place in self.floats:
            if type(row[place]) is bytes:
                return _with_nan(row, self.floats)
        return row

    def loader(self, positions: Sequence[int], offset: int = 0) -> Callable[[list[Row]], list[Row]] | None:
        """Brings back what ``stored`` changed, for rows of these columns after ``offset`` others; None: nothing."""
        places = [offset + place for place, position in enumerate(positions) if position in self.floats]
        if not places:
            return None
        pickers = [itemgetter(place) for place in places]

        def load(rows: list[Row]) -> list[Row]:
            if not any(bytes in map(type, map(pick, rows)) for pick in pickers):
                return rows
            return [_with_nan(row, places) for row in rows]

        return load


_COLUMN = re.compile(r"\bc\d+\b")


def _literal(value: Any) -> str:
    """A stored value as SQLite's text."""
    match value:
        case None:
            return "NULL"
        case bytes():
            return f"X'{value.hex()}'"
        case str():
            return "'" + value.replace("'", "''") + "'"
        case float() if value != value:
            return f"X'{NAN.hex()}'"
        case float() if value in (float("inf"), float("-inf")):
            return "9e999" if value > 0 else "-9e999"
    return repr(value)


def run_fitted(connection: apsw.Connection, layout: Layout, text: str, values: Sequence[Any]) -> apsw.Cursor:
    """Execute a query that names the layout's columns, also where the snapshot is older than some of them."""
    try:
        return connection.cursor().execute(text, values)
    except apsw.SQLError as error:
        if not layout.missing or "no such column" not in str(error):
            raise
    return connection.cursor().execute(layout.fitted(text, connection), values)


def _first_row(connection: apsw.Connection, layout: Layout, text: str, values: Sequence[Any]) -> Row | None:
    """Of a query that gives one at most; None also where its table is not in the snapshot."""
    try:
        found = run_fitted(connection, layout, text, values).fetchall()
    except apsw.Error as error:
        if _no_table(error):
            return None
        _fail(error)
    return found[0] if found else None


def _with_nan(row: Row, places: Sequence[int]) -> Row:
    values = list(row)
    for place in places:
        if type(values[place]) is bytes:
            values[place] = _NAN
    return tuple(values)


class Layouts:
    """Layouts by table id and version."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, int], Layout] = {}

    def of(self, table: TableDef) -> Layout:
        layout = self._made.get((table.id, table.version))
        if layout is None:
            if len(self._made) > 10_000:
                self._made.clear()
            layout = self._made[table.id, table.version] = Layout(table)
        return layout


# ---------- scans as SQL ----------
def scan_sql(layout: Layout, scan: Scan, outputs: Sequence[str], since: int | None, *, limit: bool
             ) -> tuple[str, tuple[Any, ...]] | None:
    """Statement and values of a scan over a table of this layout; None: no key can qualify.

    ``since``: only rows with a higher ``_seq`` (a stream's horizon).
    """
    bounds, possible = layout.codec.bounds(scan.key_prefix, scan.low, scan.high)
    if not possible:
        return None
    conditions: list[str] = []
    values: list[Any] = []
    if scan.tenant is not None:
        conditions.append("_userid = ?")
        values.append(scan.tenant)
    for operator, value in bounds:
        conditions.append(f"k {operator} ?")
        values.append(value)
    if since is not None:
        conditions.append("_seq > ?")
        values.append(since)
    if scan.where is not None:
        conditions.append(f"({scan.where})")
        values.extend(scan.params)
    text = f"SELECT {', '.join(outputs)} FROM {layout.table}"
    if conditions:
        text += " WHERE " + " AND ".join(conditions)
    text += " ORDER BY _userid DESC, k DESC" if scan.descending else " ORDER BY _userid, k"
    if limit and scan.limit is not None:
        text += " LIMIT ?"
        values.append(scan.limit)
    return text, tuple(values)


# ---------- snapshots ----------
class Stop:
    """Asks a scan to end."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        if self.asked:
            raise KalamError("57014", "canceling statement due to user request")


class Sizes:
    """Counts the bytes of texts and blobs at these places of rows, and ends a turn when there are many.

    Rows are looked at a few at a time, more of them as long as they are small: looking costs as much as reading does.
    """

    def __init__(self, places: Sequence[int], most: int = TURN_BYTES) -> None:
        self._pickers = [itemgetter(place) for place in places]
        self._most = most  # of a turn
        self._step = 1
        self.taken = 0

    def take(self, rows: Iterator[Row], count: int) -> list[Row]:
        found: list[Row] = []
        end = self.taken + self._most
        while len(found) < count and self.taken < end:
            part = list(islice(rows, min(self._step, count - len(found))))
            if not part:
                break
            found += part
            size = sum([sum(map(len, filter(None, map(pick, part)))) for pick in self._pickers])
            self.taken += size
            self._step = min(2 * self._step, SIZED_ROWS) if size < SMALL_BYTES else max(1, self._step // 4)
        return found


class Reader:
    """A pooled connection; while a snapshot has it, a read transaction is open on it."""

    def __init__(self, path: Path) -> None:
        self.connection = open_connection(path, read_only=True)
        self.connection.execute("PRAGMA query_only=1")
        self.lock = threading.Lock()
        self._running: Stop | None = None
        self._cursors: list[Any] = []
        self.connection.set_progress_handler(self._interrupted, INTERRUPT_STEPS)

    def _interrupted(self) -> bool:
        return self._running is not None and self._running.asked

    def rows(self, cursor: Any, count: int, stop: Stop, sizes: Sizes | None = None) -> list[Row]:
        """Up to ``count`` rows of a running statement, and with ``sizes`` about TURN_BYTES at most. Any thread."""
        with self.lock:
            stop.check()
            self._running = stop
            try:
                return list(islice(cursor, count)) if sizes is None else sizes.take(cursor, count)
            except apsw.InterruptError:
                stop.check()
                raise
            except apsw.Error as error:
                _fail(error)
            finally:
                self._running = None

    def execute(self, layout: Layout, text: str, values: Sequence[Any], stop: Stop) -> Any:
        """Begin a statement; None where its table is not in this snapshot."""
        with self.lock:
            stop.check()
            self._running = stop
            try:
                cursor = run_fitted(self.connection, layout, text, values)
                self._cursors.append(cursor)
                return cursor
            except apsw.InterruptError:
                stop.check()
                raise
            except apsw.Error as error:
                if _no_table(error):
                    return None
                _fail(error)
            finally:
                self._running = None

    def finish(self, cursor: Any) -> None:
        with self.lock:
            if cursor in self._cursors:
                self._cursors.remove(cursor)
            cursor.close(True)

    def end(self) -> None:
        """End the read transaction. A statement left open would keep its instant."""
        for cursor in self._cursors:
            cursor.close(True)
        self._cursors.clear()
        self.connection.execute("ROLLBACK")


class HotSnapshot:
    """Committed rows as of one instant. Ends with ``close``, or with the last reference to it.

    Who reads in a thread holds it: then it ends with the last ``drop``, if that comes later.

    ``late``: it need not have a read transaction of its own as long as nothing is committed. In the event loop's thread
    its rows are read through the connection that commits, which has in its cache what it wrote; ``ReaderPool.settle``
    opens the read transaction before the next commit. ``pin`` before another thread reads from it.
    """

    __slots__ = ("__weakref__", "_closed", "_held", "_late", "_lock", "_number", "_pinned", "_pool", "_reader", "since")

    def __init__(self, pool: ReaderPool, *, late: bool = False) -> None:
        self._pool = pool
        self._number = pool.enter()
        self.since = pool.done()  # it sees all groups of commits up to this one
        self._reader: Reader | None = None
        self._pinned = False
        self._lock = threading.Lock()
        self._held = 0
        self._closed = False
        self._late = late and pool.writing() is not None
        if self._late:
            pool.late[self._number] = ref(self)
        else:
            self._open()

    def _open(self) -> None:
        """A read transaction of its own, whose instant is that of the first read."""
        self._late = False
        pool = self._pool
        pool.late.pop(self._number, None)
        try:
            self._reader = pool.take()
            self._reader.connection.execute("BEGIN")
        except BaseException:
            if self._reader is None:
                pool.leave(self._number)
            self._end()
            raise

    @property
    def reader(self) -> Reader:
        """34000 after the end: the connection may be another snapshot's by then."""
        if self._late and not self._closed:
            self._open()
        reader = self._reader
        if self._closed or reader is None:
            raise KalamError("34000", "the snapshot's transaction has ended")
        return reader

    def fix(self) -> None:
        """Fix the instant now, not at the first read; for the event loop's thread."""
        if not self._late:
            self.pin()

    def pin(self) -> None:
        """The same, for any thread."""
        if not self._pinned:
            self._run(self.reader, lambda connection: connection.execute("SELECT 1 FROM kalam_meta LIMIT 1").fetchall())
            self._pinned = True

    def _run(self, reader: Reader, read: Callable[[apsw.Connection], T]) -> T:
        with reader.lock:
            try:
                return read(reader.connection)
            except apsw.Error as error:
                _fail(error)

    def _read(self, read: Callable[[apsw.Connection], T]) -> T:
        if self._late and not self._closed:
            lent = self._pool.writing()
            if lent is not None:
                try:
                    return read(lent)
                except apsw.Error as error:
                    _fail(error)
        reader = self.reader
        self._pinned = True
        return self._run(reader, read)

    def get(self, layout: Layout, tenant: str, k: int | bytes) -> Row | None:
        """(*columns, _seq, _userid) as stored, or None."""
        return self._read(lambda connection: _first_row(connection, layout, layout.get, (tenant, k)))

    def get_tiered(self, layout: Layout, tenant: str, k: int | bytes) -> Row | None:
        """``Layout.get_tiered``; None where the snapshot is older than the table's cold tier."""
        return self._read(lambda connection: _first_row(connection, layout, layout.get_tiered, (tenant, k)))

    def query(self, text: str, values: Sequence[Any], layout: Layout | None = None) -> list[Row]:
        """``layout``: whose columns the text names."""
        return self._read(lambda connection: (connection.execute(text, values) if layout is None else run_fitted(
            connection, layout, text, values)).fetchall())

    def few(self, layout: Layout, text: str, values: Sequence[Any], most: int, sizes: Sizes | None) -> list[Row] | None:
        """The rows of a query; None: there are more than that, or more than fit in one turn of ``sizes``, or the table
        is not in the snapshot."""

        def read(connection: apsw.Connection) -> list[Row] | None:
            try:
                cursor = run_fitted(connection, layout, f"{text} LIMIT {most + 1}", values)
            except apsw.Error as error:
                if _no_table(error):
                    return None
                raise
            try:
                rows = cursor.fetchall() if sizes is None else sizes.take(cursor, most + 1)
                return None if len(rows) > most or next(cursor, None) is not None else rows
            finally:
                cursor.close(True)  # a statement left open would keep a commit from its end

        return self._read(read)

    @property
    def newest(self) -> bool:
        """Is it read through the connection that commits, and so as of now?"""
        return self._late and not self._closed and self._pool.writing() is not None

    @staticmethod
    def instant() -> AbstractContextManager[None]:
        """As a live reader's; everything read here is of one instant."""
        return nullcontext()

    def hold(self) -> None:
        with self._lock:
            self._held += 1

    def drop(self) -> None:
        """Any thread."""
        with self._lock:
            self._held -= 1
            over = self._closed and not self._held
        if over:
            self._end()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            over = not self._held
        if over:
            self._end()

    def _end(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            self._pool.give_back(reader)
            self._pool.leave(self._number)
        elif self._late:
            self._late = False
            self._pool.late.pop(self._number, None)
            self._pool.leave(self._number)

    def __del__(self) -> None:
        with suppress(Exception):  # at the interpreter's end
            self._end()


def _no_table(error: apsw.Error) -> bool:
    return isinstance(error, apsw.SQLError) and "no such table" in str(error)


class ReaderPool:
    """``done``: the number of the group of commits that ended last. ``writing``: the connection that commits, while
    nothing is committed."""

    def __init__(self, path: Path, done: Callable[[], int] = int,
                 writing: Callable[[], apsw.Connection | None] = lambda: None) -> None:
        self.done = done
        self.writing = writing
        self.late: dict[int, ref[HotSnapshot]] = {}  # by their numbers
        self._path = path
        self._idle: deque[Reader] = deque()
        self._closed = False
        self._numbers = count()
        self._entered: set[int] = set()

    # ---------- who reads ----------
    def enter(self) -> int:
        """Somebody reads from now on what is there now; the number tells when. Any thread."""
        number = next(self._numbers)
        self._entered.add(number)
        return number

    def leave(self, number: int) -> None:
        self._entered.discard(number)

    def nobody_before(self, number: int) -> bool:
        """Have all that entered before this number left?"""
        return min(tuple(self._entered), default=number) >= number

    def settle(self) -> None:
        """Before something is committed: snapshots of until now get read transactions of their own."""
        for each in tuple(self.late.values()):
            snapshot = each()
            if snapshot is not None:
                try:
                    snapshot.pin()
                except (KalamError, apsw.Error):  # it must not show what comes now
                    snapshot.close()

    # ---------- connections ----------

    def take(self) -> Reader:
        try:
            return self._idle.pop()
        except IndexError:
            try:
                return Reader(self._path)
            except apsw.Error as error:
                _fail(error)

    def give_back(self, reader: Reader) -> None:
        try:
            reader.end()
        except apsw.Error:  # broken: not for anybody else
            reader.connection.close(True)
            return
        if self._closed or len(self._idle) >= POOL:
            reader.connection.close(True)
        else:
            self._idle.append(reader)

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().connection.close(True)


class LiveReader:
    """The newest committed rows, read in the event loop outside any snapshot.

    ``writing`` gives the connection that commits while nothing is committed. It has in its cache what it wrote; any
    other reads the database's pages anew after each commit.
    """

    def __init__(self, path: Path) -> None:
        self._connection = open_connection(path, read_only=True)
        self._connection.execute("PRAGMA query_only=1")
        self._connection.pragma("cache_size", LIVE_CACHE)
        self._within: apsw.Connection | None = None
        self.writing: Callable[[], apsw.Connection | None] = lambda: None

    def _best(self) -> apsw.Connection:
        return self._within or self.writing() or self._connection

    def query(self, text: str, values: Sequence[Any], layout: Layout | None = None) -> list[Row]:
        connection = self._best()
        try:
            if layout is not None:
                return run_fitted(connection, layout, text, values).fetchall()
            return connection.execute(text, values).fetchall()
        except apsw.Error as error:
            if _no_table(error):
                return []
            _fail(error)

    @contextmanager
    def instant(self) -> Iterator[None]:
        """What is read within is of one instant: the writer commits meanwhile."""
        self._within = connection = self.writing() or self._connection
        connection.execute("BEGIN")
        try:
            yield
        finally:
            self._within = None
            connection.execute("COMMIT")

    def get(self, layout: Layout, tenant: str, k: int | bytes) -> Row | None:
        return _first_row(self._best(), layout, layout.get, (tenant, k))

    def get_tiered(self, layout: Layout, tenant: str, k: int | bytes) -> Row | None:
        """``Layout.get_tiered``."""
        return _first_row(self._best(), layout, layout.get_tiered, (tenant, k))

    def exists(self, layout: Layout, tenant: str, k: int | bytes) -> bool:
        return bool(self.query(layout.exists, (tenant, k)))

    def any_between(self, layout: Layout, tenant: str, least: int | bytes, greatest: int | bytes) -> bool:
        return bool(self.query(layout.any_between, (tenant, least, greatest)))

    def last_key(self, layout: Layout, tenant: str) -> int | bytes | None:
        found = self.query(layout.last_key, (tenant,))
        return found[0][0] if found else None

    def close(self) -> None:
        self._connection.close(True)


# ---------- writing, in the writer's thread ----------
def apply_rows(connection: apsw.Connection, layout: Layout, seq: int,
               changes: Iterable[tuple[str, int | bytes, Row | None]], tombstones: str | None = None) -> None:
    """Put (row) or delete (None) rows as versions of one commit.

    ``tombstones``: the table in which deletes leave their keys, since cold rows may have them.
    """
    deletes: list[tuple[str, int | bytes]] = []
    stale: list[tuple[str, int | bytes]] = []  # tombstones that a put makes void
    dug = tombstones is not None and bool(connection.execute(f"SELECT 1 FROM {tombstones} LIMIT 1").fetchall())

    def puts() -> Iterable[Row]:
        for tenant, k, row in changes:
            if row is None:
                deletes.append((tenant, k))
            else:
                if dug:
                    stale.append((tenant, k))
                yield (tenant, k, seq, *layout.stored(row))

    connection.executemany(layout.put, puts())
    if stale:
        connection.executemany(f"DELETE FROM {tombstones} WHERE _userid = ? AND k = ?", stale)
    if deletes:
        connection.executemany(layout.delete, deletes)
        if tombstones is not None:
            now = time.time_ns() // 1_000_000
            connection.executemany(f"REPLACE INTO {tombstones} VALUES (?, ?, ?, ?)",
                                   ((tenant, k, seq, now) for tenant, k in deletes))
