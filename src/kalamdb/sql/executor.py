"""The SQL layer's door: ``SqlExecutor`` implements ``kalamdb.api.Executor`` for every kind of client.

``prepare`` finds or makes a statement's entry; ``execute`` opens the right transaction, runs the plan and ends what
was the statement's own. A statement that costs microseconds is answered at once; everything else is a coroutine whose
cancellation becomes 57014. An error leaves a transaction block failed, and nothing behind outside one.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from kalamdb.api import CONTEXT_OID, Account, ClientSession, Context, Lookup, Pending, Prepared, Result, Role, Row
from kalamdb.errors import KalamError
from kalamdb.settings import Settings
from kalamdb.sql import access, accounts, ddl, eager, files, transaction
from kalamdb.sql.alter import alter_table
from kalamdb.sql.checks import check_row
from kalamdb.sql.coerce import Snowflakes
from kalamdb.sql.cursors import close_cursor, close_cursors, fetch
from kalamdb.sql.duck import QueryEngine
from kalamdb.sql.insert import InsertPlan
from kalamdb.sql.jsonout import exec_answer
from kalamdb.sql.lexer import split
from kalamdb.sql.lone import LoneRead
from kalamdb.sql.parse import parse
from kalamdb.sql.planning import Bound, Entry, entry_of
from kalamdb.sql.report import measured
from kalamdb.sql.run import Run
from kalamdb.sql.settings import reset_settings, set_setting
from kalamdb.sql.show import show, show_outcome
from kalamdb.sql.statements import (
    AlterTable,
    CancelJob,
    CloseCursor,
    Commit,
    CreateNamespace,
    CreateTable,
    CreateUser,
    Describe,
    DropNamespace,
    DropTable,
    DropUser,
    Empty,
    ExecuteAs,
    Fetch,
    ResetSettings,
    SampleRows,
    SetSetting,
    Show,
    ShowColumnWidths,
    ShowOutcome,
    ShowScanStats,
    ShowTable,
    ShowTableSize,
    ShowTableStats,
    Statement,
    StorageJob,
    UndropTable,
)
from kalamdb.sql.statistics import column_widths, sample_rows, table_size
from kalamdb.sql.storage import cancel_job, storage_job, table_stats
from kalamdb.sql.transaction import CONTROL, ENDING, SessionState, check_usable
from kalamdb.sql.values import decode
from kalamdb.sql.workers import Workers, cancelled
from kalamdb.txn.api import Engine, StaleDefinition

#: statement texts whose plans are kept, and the longest of them: a plan of many rows takes far more than its text
ENTRIES = 4096
LONGEST = 16_384
THREADS = 8
#: so long must a session have been the only one that worked for its commits to be done in the event loop
ALONE_NS = 20_000_000


class OtherRules(Exception):
    """The table's definition is not the one whose rules the client relies on. Nothing has been done."""

    def __init__(self, definition: str) -> None:
        super().__init__(definition)
        self.definition = definition


_DEFINITIONS: dict[type[Statement], Callable[[Any, Run], Awaitable[Result]]] = {
    CreateNamespace: ddl.create_namespace, CreateTable: ddl.create_table, DropTable: ddl.drop_table,
    CreateUser: accounts.create_user, DropUser: accounts.drop_user, AlterTable: alter_table,
    UndropTable: ddl.undrop_table, DropNamespace: ddl.drop_namespace,
}


class SqlExecutor:
    """``settings``: ``kalamdb.settings.Settings``; None: the defaults."""

    def __init__(self, engine: Engine, settings: Any = None) -> None:
        self.engine = engine
        engine.check_row = check_row
        engine.accounts_changed = self._accounts_changed
        limits = getattr(settings, "duckdb", None)
        self.queries = QueryEngine(getattr(limits, "memory_limit", "1GB"), getattr(limits, "threads", 0))
        self.workers = Workers(THREADS)
        self.snowflakes = Snowflakes(engine.node_id)
        self._lock_timeout: int = getattr(settings, "lock_timeout", 0)
        self._entries: OrderedDict[tuple[str, tuple[int, ...]], Entry] = OrderedDict()
        self._prepared: OrderedDict[tuple[str, tuple[int, ...], access.SearchPath | None], Prepared] = OrderedDict()
        self._states: dict[int, SessionState] = {}
        self._latest: ClientSession | None = None  # who alone has executed statements
        self._latest_since = 0  # since then
        self.sessions: dict[int, ClientSession] = {}
        self.settings = settings if isinstance(settings, Settings) else Settings()

    def open(self, session: ClientSession) -> None:
        self._state(session)
        if not access.still_stands(session.account, self.engine.committed.account(session.account.name)):
            # changed while it logged in
            asyncio.get_running_loop().call_soon(self._accounts_changed, (session.account.name,))

    def _accounts_changed(self, names: Sequence[str]) -> None:
        """Sessions whose accounts are gone, locked or of less than they were end."""
        for session in list(self.sessions.values()):
            if session.account.name in names:
                known = self.engine.committed.account(session.account.name)
                if not access.still_stands(session.account, known):
                    access.end_session(session)

    # ---------- preparing ----------
    def prepare(self, session: ClientSession, sql: str, param_types: Sequence[int]) -> Prepared:
        announced = tuple(param_types)
        if announced and announced[-1] == CONTEXT_OID:
            key = (sql, announced, None)
            prepared = self._prepared.get(key)
            return prepared if prepared is not None else self._prepare_context(session, sql, announced)
        try:
            return self._prepare_plain(session, sql, announced)
        except KalamError:
            transaction.fail(session, None)
            raise

    def _prepare_context(self, session: ClientSession, sql: str, announced: tuple[int, ...]) -> Prepared:
        """Names are resolved at execution: only then are transaction and search path known."""
        try:
            entry = self._entry(sql, announced[:-1])
        except KalamError:
            transaction.fail(session, Context())
            raise
        return self._keep_prepared((sql, announced, None), Prepared(sql, announced[:-1], None, entry))

    def _prepare_plain(self, session: ClientSession, sql: str, announced: tuple[int, ...]) -> Prepared:
        current = session.transaction
        if current is not None and current.status == "E":
            entry = self._entry(sql, announced)
            if not isinstance(entry.statement, ENDING):
                check_usable(current)
            return Prepared(sql, announced, None, entry)
        entry = self._entry(sql, announced)
        inner = entry.inner or entry
        if not inner.planned:
            prepared = self._prepared.get((sql, announced, None))
            return prepared or self._keep_prepared(
                (sql, announced, None), Prepared(sql, announced, inner.columns, entry))
        path = access.search_path(session, None)
        bound = inner.bound(self.engine.committed if current is None else current.catalog, path, self.queries,
                            session.account)
        key = (sql, announced, path)
        prepared = self._prepared.get(key)
        if prepared is None or prepared.columns is not bound.plan.columns:
            types = tuple(kind.oid for kind in bound.kinds)
            prepared = self._keep_prepared(key, Prepared(sql, types, bound.plan.columns, entry))
        return prepared

    def _keep_prepared(self, key: tuple[str, tuple[int, ...], access.SearchPath | None], prepared: Prepared
                       ) -> Prepared:
        if _may_keep(prepared.plan, prepared.sql):
            _keep(self._prepared, key, prepared)
        return prepared

    def _entry(self, sql: str, announced: tuple[int, ...]) -> Entry:
        key = (sql, announced)
        entry = self._entries.get(key)
        if entry is None:
            if "\0" in sql:
                raise KalamError("22021", 'invalid byte sequence for encoding "UTF8": 0x00')
            entry = entry_of(parse(sql), announced)
            if _may_keep(entry, sql):
                _keep(self._entries, key, entry)
        return entry

    def split(self, sql: str) -> list[tuple[int, str]]:
        return split(sql)

    # ---------- executing ----------
    def execute(
        self, session: ClientSession, prepared: Prepared, params: Sequence[bytes | None], formats: Sequence[int],
        context: Context | None,
    ) -> Result | Awaitable[Result]:
        if context is None or not context.stats:
            return self._execute(session, prepared, params, formats, context)
        report, started = self._state(session).reports.of(context.stats), time.perf_counter_ns()
        return measured(report, started, self._execute(session, prepared, params, formats, context))

    def _execute(
        self, session: ClientSession, prepared: Prepared, params: Sequence[bytes | None], formats: Sequence[int],
        context: Context | None,
    ) -> Result | Awaitable[Result]:
        entry: Entry = prepared.plan
        state = self._state(session)
        self._began(session)
        if context is not None and context.close:
            for name in context.close:
                close_cursor(session, name, missing_ok=True)
        statement = entry.statement
        if isinstance(statement, CONTROL):
            return self._control(session, state, statement, context)
        if context is not None and session.transaction is None:
            if context.txn is None:
                read = LoneRead.of(self.engine, session, entry, context)
                if read is not None and (rows := read.rows(params, formats)) is not None:
                    return Result(f"SELECT {len(rows)}", read.plan.columns, rows)
            elif context.commit and self.alone(session):
                lone = self._insert_alone(session, state, entry, params, formats, context)
                if lone is not None:
                    return lone
        run = self._open(session, state, context)
        run.described = prepared.columns if context is None else None

        def start() -> Result | Awaitable[Result]:
            return self._start(run, entry, params, formats)

        try:
            outcome = start()
        except StaleDefinition as stale:
            outcome = self._again(run, start, stale)
        except OtherRules as other:
            return self._untouched(run, other)
        except BaseException:
            self._abort(run)
            raise
        if isinstance(outcome, Result):
            if run.own:
                if not run.wrote:
                    if not run.handed:
                        run.roll_back()
                    return _answer(run, outcome)
            elif not (context is not None and context.commit):
                return _answer(run, outcome)
            if not (run.handed or self.alone(session)):
                pending = self._commit_soon(run, outcome)
                if pending is not None:
                    return pending
        return eager.begin(self._finish(run, outcome, start))

    def _commit_soon(self, run: Run, result: Result) -> Pending | None:
        """What is left of a statement that has written and is to be committed. None: it takes more, or cannot be."""
        if not run.own:
            return transaction.commit_soon(run.session, run.state, partial(_answer, run, result))
        stored = run.transaction.commit_soon()

        def end(stored: asyncio.Future[int]) -> Result:
            stored.result()
            return _answer(run, result)

        return None if stored is None else Pending(stored, end)

    def lookup(self, session: ClientSession, prepared: Prepared, context: Context) -> Lookup | None:
        read = None if context.close else LoneRead.of(self.engine, session, prepared.plan, context)
        if read is None:
            return None

        def look(params: Sequence[bytes], formats: Sequence[int]) -> list[Row] | None:
            if not read.stands():
                return None
            self._began(session)
            return read.rows(params, formats)

        return look

    def _insert_alone(self, session: ClientSession, state: SessionState, entry: Entry, params: Sequence[bytes | None],
                      formats: Sequence[int], context: Context) -> Result | None:
        """A row that is all of its transaction, as pg_kalam sends it. None: it takes more, or is an error, which the
        usual way tells."""
        txn = context.txn
        if not entry.planned or txn is None or txn.iso != "read committed" or txn.ro or context.exec or (
                context.snap or context.take or context.level > 1):
            return None
        try:
            run = self._run(session, state, context)
            bound = entry.bound(run.catalog, run.path, self.queries, run.account)
            if not isinstance(bound.plan, InsertPlan):
                return None
            if context.rules:
                _check_rules(bound.plan, context.rules)
            run.params = decode(params, formats, bound.kinds)
            found = bound.plan.one(run)
        except (KalamError, OtherRules):
            return None
        session.tenant = run.tenant
        return Result("INSERT 0 1") if found and self.engine.insert_alone(txn.id, bound.plan.table, *found) else None

    def _began(self, session: ClientSession) -> None:
        """A statement of the session begins."""
        session.statement_ns = now = time.time_ns()
        if session is not self._latest:
            self._latest, self._latest_since = session, now

    def _state(self, session: ClientSession) -> SessionState:
        state = self._states.get(session.id)
        if state is None:
            state = self._states[session.id] = SessionState()
            self.sessions[session.id] = session
        return state

    def _open(self, session: ClientSession, state: SessionState, context: Context | None) -> Run:
        current = session.transaction
        if context is not None:
            try:
                current = transaction.enter(self.engine, session, context)
                run = self._run(session, state, context)
            except KalamError:
                transaction.fail(session, context)
                raise
        elif current is not None:
            check_usable(current)
            current.lock_timeout_ms = lock_timeout_of(session)
        if context is None:
            run = self._run(session, state, None)
        run.begun, run.own = current, current is None
        state.used = current is not None
        if context is not None and current is not None:
            for number in context.take:
                current.snapshot(number)
            if context.snap:
                current.snapshot(context.snap)  # before the statement writes, and also if it does not read
        session.tenant = run.tenant
        return run

    def _run(self, session: ClientSession, state: SessionState, context: Context | None) -> Run:
        bound = None if context is None else access.bound_tenant(session.account, context)
        return Run(
            self, session, state, context, None, True, access.tenant_of(session, context),
            access.search_path(session, context),
            session.account if bound is None else Account(bound, Role.USER), bound,
            report=state.reports.of(context.stats) if context is not None and context.stats else None,
        )

    def begin_own(self, session: ClientSession, state: SessionState, context: Context | None) -> Any:
        if context is not None:
            return self.engine.begin(session, lock_timeout_ms=context.lock_timeout)
        if not session.settings and state.modes.read_only is None:
            return self.engine.begin(session)
        return self.engine.begin(
            session, read_only=transaction.default_read_only(session, state), lock_timeout_ms=lock_timeout_of(session)
        )

    def _start(self, run: Run, entry: Entry, params: Sequence[bytes | None], formats: Sequence[int]
               ) -> Result | Awaitable[Result]:
        if entry.planned:
            return self._plan(run, entry, params, formats)
        statement = entry.statement
        match statement:
            case ShowOutcome():
                return show_outcome(statement, run)
            case Show() | ShowTable() | ShowScanStats() | Describe():
                return show(statement, run)
            case SetSetting() | ResetSettings():
                if run.exec:
                    raise KalamError("0A000", "settings cannot be changed inside kalam_exec",
                                     hint="SET kalam.user_id in PostgreSQL itself.")
                if isinstance(statement, SetSetting):
                    return set_setting(run.session, run.state, statement, in_block=not run.own)
                return reset_settings(run.session, statement)
            case Fetch():
                run.spares = run.context is not None and not run.exec
                return fetch(run.session, statement.cursor, statement.count)
            case CloseCursor():
                if statement.cursor is None:
                    close_cursors(run.session)
                else:
                    close_cursor(run.session, statement.cursor, missing_ok=run.context is not None and not run.exec)
                return Result("CLOSE CURSOR")
            case ExecuteAs():
                access.check_bound(run.bound, statement.user)
                access.check_tenant(run.account, statement.user)
                run.tenant = statement.user
                assert entry.inner is not None
                return self._start(run, entry.inner, params, formats)
            case StorageJob():
                return storage_job(statement, run)
            case CancelJob():
                return cancel_job(statement, run)
            case ShowTableStats():
                return table_stats(statement, run)
            case ShowTableSize():
                return table_size(statement, run)
            case ShowColumnWidths():
                return column_widths(statement, run)
            case SampleRows():
                return sample_rows(statement, run)
            case Empty():
                return Result("")
        run.wrote = True
        if run.transaction.read_only:
            raise KalamError("25006", "cannot execute a definition in a read-only transaction")
        return _DEFINITIONS[type(statement)](statement, run)

    def _plan(self, run: Run, entry: Entry, params: Sequence[bytes | None], formats: Sequence[int]
              ) -> Result | Awaitable[Result]:
        bound: Bound = entry.bound(run.catalog, run.path, self.queries, run.account)
        plan = bound.plan
        context = run.context
        if run.described is not None and plan.columns != run.described:
            raise KalamError("0A000", "cached plan must not change result type", hint="Prepare the statement anew.")
        if params or bound.kinds:
            run.params = decode(params, formats, bound.kinds)
        run.spares = context is not None and not context.exec and not plan.writes
        if plan.writes:
            if context is not None and context.rules:
                _check_rules(plan, context.rules)
            run.wrote = True
            if run.transaction.read_only:
                raise KalamError("25006", "cannot execute a writing statement in a read-only transaction")
        outcome: Result | Awaitable[Result] = plan.start(run)
        return outcome

    async def _result(self, run: Run, outcome: Result | Awaitable[Result],
                      start: Callable[[], Result | Awaitable[Result]]) -> Result:
        try:
            return outcome if isinstance(outcome, Result) else await outcome
        except StaleDefinition as stale:
            return await self._again(run, start, stale)

    async def _again(self, run: Run, start: Callable[[], Result | Awaitable[Result]], stale: StaleDefinition) -> Result:
        """Start a statement anew whose table was altered between its planning and its turn; it has written nothing."""
        while True:
            await run.transaction.settled(stale.table)
            run.forget_snapshot()
            try:
                outcome = start()
                return outcome if isinstance(outcome, Result) else await outcome
            except StaleDefinition as again:
                stale = again

    def _untouched(self, run: Run, other: OtherRules) -> Result:
        """The answer of a statement that did nothing, not even the commit that was to follow it."""
        if run.own:
            run.roll_back()
        return _answer(run, Result(f"STALE {other.definition}"))

    async def _finish(self, run: Run, outcome: Result | Awaitable[Result],
                      start: Callable[[], Result | Awaitable[Result]]) -> Result:
        try:
            try:
                result = await self._result(run, outcome, start)
            except OtherRules as other:
                return self._untouched(run, other)
            if run.own and not run.handed:
                if run.wrote:
                    await run.transaction.commit(alone=self.alone(run.session))
                else:
                    run.roll_back()
            elif not run.own and run.context is not None and run.context.commit:
                await transaction.commit(run.session, run.state, alone=self.alone(run.session))
        except asyncio.CancelledError:
            raise self._cancelled(run, cancelled()) from None
        except KalamError as error:
            if error.sqlstate == "57014":
                raise self._cancelled(run, error) from None
            self._abort(run)
            raise
        except BaseException:
            self._abort(run)
            raise
        return _answer(run, result)

    def _cancelled(self, run: Run, error: KalamError) -> KalamError:
        if run.own or not run.spares:
            self._abort(run)
        else:
            error.spares = True
        return error

    def _abort(self, run: Run) -> None:
        if run.own:
            run.roll_back()
        elif run.session.transaction is run.begun:
            transaction.fail(run.session, run.context)

    # ---------- transaction control ----------
    def _control(self, session: ClientSession, state: SessionState, statement: Statement, context: Context | None
                 ) -> Result | Awaitable[Result]:
        if context is not None and context.exec:
            transaction.fail(session, context)
            raise KalamError("0A000", "transaction control cannot be used inside kalam_exec",
                             hint="The statement takes part in the session's transaction.")
        if context is not None and context.txn is not None and isinstance(statement, Commit):
            current = session.transaction
            if current is None or current.id != context.txn.id:
                raise KalamError("25P01", f'transaction "{context.txn.id}" is not open in this session')
        try:
            result = transaction.control(self.engine, session, state, statement, lock_timeout_of(session))
        except KalamError:
            transaction.fail(session, context)
            raise
        if result is None and self.alone(session) and transaction.commit_now(session, state):
            return Result("COMMIT")
        if result is not None:
            return result
        pending = transaction.commit_soon(session, state, partial(Result, "COMMIT"))
        return pending if pending is not None else eager.begin(self._commit(session, state))

    async def _commit(self, session: ClientSession, state: SessionState) -> Result:
        await transaction.commit(session, state, alone=self.alone(session))
        return Result("COMMIT")

    def alone(self, session: ClientSession) -> bool:
        """Has nobody else executed anything for a while?"""
        return session is self._latest and session.statement_ns - self._latest_since > ALONE_NS

    # ---------- the end ----------
    def close(self, session: ClientSession) -> None:
        close_cursors(session)
        transaction.rollback(session, self._state(session))
        files.abandon(self._state(session).uploads)
        self._states.pop(session.id, None)
        self.sessions.pop(session.id, None)

    def shutdown(self) -> None:
        """Stop the threads and the query engine. Sessions have been closed before."""
        self.workers.close()
        self.queries.close()


def _answer(run: Run, result: Result) -> Result:
    """A result as the client gets it."""
    answer = exec_answer(result) if run.exec else result
    if not run.own:
        notices = transaction.isolation_notices(run.state, run.transaction.isolation)
        if notices:
            answer.notices = (*notices, *answer.notices)
    return answer


def lock_timeout_of(session: ClientSession) -> int:
    """lock_timeout of a session in milliseconds."""
    if "lock_timeout" not in session.settings:
        return 0
    return transaction.milliseconds(session.settings.get("lock_timeout", "0"))


def _check_rules(plan: Any, relied_on: str) -> None:
    definition = plan.table.definition
    if definition != relied_on:
        raise OtherRules(definition)


def _may_keep(entry: Entry, sql: str) -> bool:
    """A long text is seldom seen again, and no password stays longer than its statement."""
    return len(sql) <= LONGEST and not isinstance(entry.statement, CreateUser)


def _keep(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    if len(cache) > ENTRIES:
        cache.popitem(last=False)
