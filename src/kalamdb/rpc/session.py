"""One client's conversation after it has logged in: simple and extended protocol, errors, transactions' status.

``Session.advance`` handles every message the decoder has, without leaving the event loop's current step, until the
executor gives an awaitable; then it waits for that and goes on. All answers to what came in one read leave in one
write. An error in the extended protocol skips to Sync; a failed statement fails the transaction. Nothing a client sends
raises out of here.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from kalamdb.api import ClientSession, Executor, Pending, Prepared, Result
from kalamdb.errors import KalamError
from kalamdb.rpc import results, wire
from kalamdb.rpc.blocks import Block
from kalamdb.rpc.lookups import Lookups
from kalamdb.rpc.portals import Portal, Statement, bind, discard, takes_context

log = logging.getLogger(__name__)

#: Rows encoded in one step of the event loop.
CHUNK: Final = 512
#: Messages handled in one step of the event loop.
_TURN: Final = 256

_DEALLOCATE = re.compile(r'\s*DEALLOCATE\s+(?:PREPARE\s+)?(?:"((?:[^"]|"")*)"|([\w$]+))\s*;?\s*', re.IGNORECASE)
#: How a statement may begin that is empty or a DEALLOCATE; looking at one character keeps it cheap for the others.
_UNCOMMON = frozenset(["", " ", "\t", "\r", "\n", ";", "D", "d"])
_DURATION = re.compile(r"(\d{1,12})\s*(ms|s|min|h|d)?")
_UNITS = {None: 0.001, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}
_IDLE_SETTING: Final = "idle_in_transaction_session_timeout"
#: Tags after which a reported setting may have another value.
_SETTING_TAGS = frozenset({"SET", "RESET", "DISCARD ALL", "ROLLBACK", "COMMIT"})
#: Settings a client is told about, and what they are until something sets them.
REPORTED: Final = {
    "application_name": "", "client_encoding": "UTF8", "DateStyle": "ISO, MDY", "IntervalStyle": "postgres",
    "TimeZone": "UTC", "standard_conforming_strings": "on",
}


class Link(Protocol):
    """The connection as a session sees it."""

    blocked: bool  # the client does not read; produce nothing more until advance() is called again

    def write(self, data: bytes) -> None: ...
    async def drain(self) -> None:
        """Return when the client can take more."""

    def close(self, *, linger: bool = False) -> None:
        """Close when everything written has gone out. ``linger``: the client may be sending; let it read first."""

    def settled(self) -> None:
        """The session has done what it could for now."""


class Session:
    def __init__(
        self, link: Link, decoder: wire.Decoder, executor: Executor, client: ClientSession, *,
        idle_in_transaction_ms: int = 0,
    ) -> None:
        self.client = client
        client.end = self._end_by_command
        self._later: list[Callable[[], None]] = []
        client.later = self._later
        self._link = link
        self._decoder = decoder
        decoder.flights = True
        self._executor = executor
        self._block = Block(executor, client)
        self._lookups = Lookups(executor, client)
        self._statements: dict[str, Statement] = {}
        self._portals: dict[str, Portal] = {}
        self._out: list[Any] = []
        self._answered = False  # it holds a whole answer
        self._work: asyncio.Future[Any] | None = None
        self._then: Callable[[Any], None] = self._nothing
        self._end_of_work: Callable[[asyncio.Future[Any]], Any] = _result
        self._cancel_error: KalamError | None = None
        self._skipping = False  # after an error, until Sync
        self._owes_ready = False  # an error is followed by ReadyForQuery, not by skipping
        self._offset = 0  # of the statement in the simple-protocol string it came in
        self._ready_sent = True
        self._ended = False
        self._farewell: KalamError | None = None
        self._idle_limit = idle_in_transaction_ms / 1000
        self._timer: asyncio.TimerHandle | None = None  # of an idle transaction
        self._deadline: asyncio.TimerHandle | None = None  # of the running statement
        self._looked_at: dict[str, str] = {}
        self._reported = {name: client.settings.get(name, value) for name, value in REPORTED.items()}
        self.released = asyncio.get_running_loop().create_future()

    # ---------- for the listener ----------

    def received(self, data: bytes) -> None:
        """Handle what has come."""
        if not self._answer_known(data):
            self._decoder.feed(data)
            self.advance()

    def _answer_known(self, data: bytes) -> bool:
        """A look-up that is known, and nothing else is to be done? Then that is all."""
        if not self._ready_sent or self._skipping or self.client.transaction is not None or self._later or (
                self._ended or self._link.blocked or self._farewell is not None or not self._decoder.empty):
            return False
        try:
            found = self._lookups.answer(data)
        except Exception:  # whatever it is, the usual way tells
            return False
        if found is None:
            return False
        self._statements[""], answer = found
        self._link.write(answer)
        return True

    @property
    def busy(self) -> bool:
        return self._work is not None

    def advance(self) -> None:
        """Handle what the decoder holds."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._turn()
        if self._work is None or self._answered:  # the beginning of an answer waits for its end: one write
            self._flush()
        if self._later:
            self._tidy()
        if self._work is None and not self._ended:
            self._rest()
        self._link.settled()

    def cancel(self, error: KalamError | None = None) -> None:
        """Interrupt the running statement, if there is one."""
        if self._work is None:
            return
        self._cancel_error = error
        if self.client.interrupt is not None:
            self.client.interrupt()
        # not at once: a task cancelled before its first step throws its awaitable away unseen, and this one has begun
        asyncio.get_running_loop().call_soon(self._work.cancel)

    def lost(self) -> None:
        """The client is gone: stop what runs, then free everything. Once is enough, more does no harm."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()
        if self._work is None:
            self._release()
        else:
            self.cancel()

    def end_when_idle(self, error: KalamError) -> None:
        """Say farewell as soon as no statement runs."""
        self._farewell = error
        if self._work is None and not self._ended:
            self._rest()

    def _end_by_command(self, error: KalamError) -> None:
        if self._ended:
            return
        if self.client.ends_itself:
            self.end_when_idle(error)
        else:
            self.end_now(error)

    def end_now(self, error: KalamError) -> None:
        """Cancel what runs and close."""
        self._farewell = error
        if self._work is None:
            self._end(error)
        else:
            self.cancel(error)

    # ---------- the loop ----------

    def _turn(self) -> None:
        """Handle messages until there are none, or one has to be waited for, or others should have their turn."""
        link, following = self._link, self._decoder.next
        for _ in range(_TURN):
            if self._work is not None or self._ended or link.blocked:
                return
            try:
                message = following()
                if message is None:
                    return
                self._ready_sent = False
                if self._later:
                    self._tidy()
                if not self._skipping or type(message) in _NEVER_SKIPPED:
                    _HANDLERS[type(message)](self, message)
                elif type(message) is wire.Flight:
                    self._decoder.give_back(wire.SYNC_ONLY)
            except wire.WireError as error:
                self._malformed(error)
            except KalamError as error:
                self._fail(error)
            except Exception as error:
                self._fail(_unexpected(error))
        asyncio.get_running_loop().call_soon(self.advance)

    def _tidy(self) -> None:
        """Do what statements have left to do until they were answered."""
        while self._later:
            self._later.pop(0)()

    def _malformed(self, error: wire.WireError) -> None:
        if self._skipping and error.severity != "FATAL":
            return
        self._owes_ready = error.kind == "Q"
        self._fail(error)

    def _start(self, work: Awaitable[Any], then: Callable[[Any], None]) -> None:
        """Wait for ``work``; what it gives goes to ``then``."""
        self._then = then
        if isinstance(work, Pending):
            self._work, self._end_of_work = work.future, work.end
        else:
            self._work, self._end_of_work = asyncio.ensure_future(work), _result
        self.client.active = True
        self._work.add_done_callback(self._finished)
        if "statement_timeout" in self.client.settings:
            limit = _seconds(self.client.settings["statement_timeout"])
            if limit:
                self._deadline = asyncio.get_running_loop().call_later(limit, self._time_out)

    def _time_out(self) -> None:
        self.cancel(KalamError("57014", "canceling statement due to statement timeout"))

    def _finished(self, task: asyncio.Future[Any]) -> None:
        self._work = None
        self.client.active = False
        error, self._cancel_error = self._cancel_error, None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._ended:
            self._forget(task)
            return
        try:
            self._then(self._end_of_work(task))
        except asyncio.CancelledError:
            self._fail(error or KalamError("57014", "canceling statement due to user request"))
        except KalamError as raised:
            self._fail(error if error is not None and raised.sqlstate == "57014" else raised)
        except Exception as raised:
            self._fail(_unexpected(raised))
        self.advance()

    def _forget(self, task: asyncio.Future[Any]) -> None:
        """A statement has ended and nobody is left to hear of it."""
        with suppress(asyncio.CancelledError, Exception):
            result = self._end_of_work(task)
            if isinstance(result, Result):
                portal = Portal(Statement(None))
                portal.accept(result)
                discard(portal)
        self._release()

    def _nothing(self, _: object) -> None:
        pass

    def _fail(self, error: KalamError) -> None:
        if error.severity == "FATAL":
            self._end(error)
            return
        transaction = self.client.transaction
        if transaction is not None and transaction.status == "T" and not error.spares:
            transaction.fail()
        if error.position is not None:
            error.position += self._offset
        self._out.append(wire.error_response(error))
        if self._owes_ready:
            self._end_query(None)
        else:
            self._skipping = True

    def _end(self, error: KalamError) -> None:
        self._ended = True
        self._out.append(wire.error_response(error))
        self._flush()
        self._link.close(linger=isinstance(error, wire.WireError))
        self._release()  # what it holds is free before the client has read its farewell

    def _release(self) -> None:
        if self.released.done():
            return
        self._tidy()
        self._drop_portals()
        self._statements.clear()
        self._lookups.clear()
        self.client.interrupt = None
        self.client.end = None
        try:
            self._executor.close(self.client)
        except Exception:
            log.exception("closing session %d failed", self.client.id)
        self.released.set_result(None)

    def _flush(self) -> None:
        self._answered = False
        if self._out:
            self._link.write(b"".join(self._out))
            self._out.clear()

    def _rest(self) -> None:
        """Nothing to do until the client says more."""
        if not self._ready_sent:
            return
        if self._farewell is not None:
            if not self._decoder.buffered:
                self._end(self._farewell)
        elif self.client.status != "I":
            given = self.client.settings.get(_IDLE_SETTING)
            limit = self._idle_limit if given is None else _seconds(given)
            if limit:  # also while half a message is there: the rest may never come
                self._timer = asyncio.get_running_loop().call_later(limit, self._idle_too_long)

    def _idle_too_long(self) -> None:
        self._end(KalamError(
            "25P03", "terminating connection due to idle-in-transaction timeout",
            hint=f'the limit is "{_IDLE_SETTING}", of the session or the server', severity="FATAL",
        ))

    def _ready(self) -> None:
        status = self.client.status
        if self._portals and status == "I":
            self._drop_portals()
        self._offset = 0
        self._out.append(wire.READY[status])
        self._answered = True
        self._owes_ready = False
        self._ready_sent = True

    def _drop_portals(self) -> None:
        for portal in self._portals.values():
            discard(portal)
        self._portals.clear()

    # ---------- simple protocol ----------

    def _on_query(self, message: wire.Query) -> None:
        self._owes_ready = True
        self._statements.pop("", None)
        self._close_portal("")
        parts = self._executor.split(message.sql)
        if not parts:
            self._out.append(wire.EMPTY_QUERY)
            self._end_query(None)
        elif len(parts) == 1 and not self._block.open:
            self._offset, sql = parts[0]
            self._query_one(sql)
        else:
            self._start(self._script(parts), self._end_query)

    def _query_one(self, sql: str) -> None:
        portal = Portal(self._statement(sql, ()))
        outcome = self._begin(portal)
        if isinstance(outcome, Result):
            portal.accept(outcome)
            if _is_small(portal):
                self._describe_and_send(portal)
                self._end_query(None)
                return
        self._start(self._answer(portal, outcome), self._end_query)

    async def _script(self, parts: list[tuple[int, str]]) -> None:
        for self._offset, sql in parts:
            statement = self._statement(sql, ())
            portal = Portal(statement)
            assert statement.prepared is not None
            if statement.local:
                await self._answer(portal, self._run_local(statement.prepared))
            else:
                await self._answer(portal, self._block.run(statement.prepared))

    async def _answer(self, portal: Portal, outcome: Result | Awaitable[Result]) -> None:
        portal.accept(outcome if isinstance(outcome, Result) else await outcome)
        if _is_small(portal):
            self._describe_and_send(portal)
        else:
            self._announce(portal)
            await self._send_rows(portal)

    def _describe_and_send(self, portal: Portal) -> None:
        self._announce(portal)
        self._send_small(portal)

    def _announce(self, portal: Portal) -> None:
        self._notices(portal)
        assert portal.result is not None
        if portal.result.columns is not None:
            self._out.append(results.result_description(portal.result, portal.result_formats))

    def _end_query(self, _: object) -> None:
        if self._block.open:
            self._owes_ready = True
            self._start(self._block.finish(), self._end_query)
        else:
            self._ready()

    # ---------- extended protocol ----------

    def _statement(self, sql: str, types: tuple[int, ...]) -> Statement:
        if sql[:1] in _UNCOMMON:
            if not sql.strip(" \t\r\n;"):
                return Statement(None)
            if _DEALLOCATE.fullmatch(sql):
                return Statement(Prepared(sql, (), None), local=True)
        return Statement(self._executor.prepare(self.client, sql, types), takes_context(types))

    def _run_local(self, prepared: Prepared) -> Result:
        found = _DEALLOCATE.fullmatch(prepared.sql)
        assert found is not None
        quoted, plain = found.groups()
        name = plain.lower() if quoted is None else quoted.replace('""', '"')
        if quoted is None and name == "all":
            self._statements.clear()
            return Result("DEALLOCATE ALL")
        if self._statements.pop(name, None) is None:
            raise KalamError("26000", f'prepared statement "{name}" does not exist')
        return Result("DEALLOCATE")

    def _on_parse(self, message: wire.Parse) -> None:
        name, sql = message.name, message.sql
        if not name:
            self._statements.pop("", None)
        elif name in self._statements:
            raise KalamError("42P05", f'prepared statement "{name}" already exists')
        self._statements[name] = self._statement(sql, message.types)
        self._out.append(wire.PARSE_COMPLETE)

    def _on_bind(self, message: wire.Bind) -> None:
        statement = self._find_statement(message.statement)
        if message.portal and message.portal in self._portals:
            raise KalamError("42P03", f'cursor "{message.portal}" already exists')
        portal = bind(statement, message)
        self._close_portal(message.portal)
        self._portals[message.portal] = portal
        self._out.append(wire.BIND_COMPLETE)

    def _on_describe(self, message: wire.Describe) -> None:
        if message.kind == "S":
            statement = self._find_statement(message.name)
            prepared = statement.prepared
            self._out.append(wire.parameter_description(() if prepared is None else prepared.param_types))
            self._out.append(results.description(None if prepared is None else prepared.columns, ()))
            return
        portal = self._find_portal(message.name)
        prepared = portal.statement.prepared
        if portal.context is None or prepared is None:
            columns = None if prepared is None else prepared.columns
            self._out.append(results.description(columns, portal.result_formats))
        elif portal.result is not None:
            self._describe_result(portal)
        else:
            self._with_result(portal, self._begin(portal), self._describe_result)

    def _describe_result(self, portal: Portal) -> None:
        assert portal.result is not None
        self._out.append(results.result_description(portal.result, portal.result_formats))

    def _on_execute(self, message: wire.Execute) -> None:
        portal = self._find_portal(message.portal)
        prepared = portal.statement.prepared
        if prepared is None:
            self._out.append(wire.EMPTY_QUERY)
            return
        portal.limit = message.max_rows
        if portal.result is not None:
            self._send(portal)
        elif portal.context is None and not portal.statement.local and self._wants_block():
            self._with_result(portal, self._block.run(prepared, portal.params, portal.formats), self._send)
        else:
            self._with_result(portal, self._begin(portal), self._send)

    def _wants_block(self) -> bool:
        """Whether more may follow before Sync: then one transaction holds it all."""
        if self._block.open:
            return True
        return self.client.status == "I" and self._decoder.peek(1) != b"S"

    def _with_result(
        self, portal: Portal, outcome: Result | Awaitable[Result], then: Callable[[Portal], None]
    ) -> None:
        if isinstance(outcome, Result):
            portal.accept(outcome)
            then(portal)
        else:
            self._start(outcome, partial(self._resume, portal, then))

    @staticmethod
    def _resume(portal: Portal, then: Callable[[Portal], None], result: Result) -> None:
        portal.accept(result)
        then(portal)

    def _begin(self, portal: Portal) -> Result | Awaitable[Result]:
        prepared = portal.statement.prepared
        assert prepared is not None
        if portal.statement.local:
            return self._run_local(prepared)
        return self._executor.execute(self.client, prepared, portal.params, portal.formats, portal.context)

    def _send(self, portal: Portal) -> None:
        """The answer to Execute."""
        result = portal.result
        assert result is not None
        if portal.done:
            if result.columns is None:
                raise KalamError("55000", "portal cannot be run again", hint="bind the statement anew")
            self._out.append(results.tag(result, 0))
        elif portal.limit == 0 and _is_small(portal):
            self._notices(portal)
            self._send_small(portal)
        else:
            self._notices(portal)
            self._start(self._send_rows(portal), self._nothing)

    def _notices(self, portal: Portal) -> None:
        assert portal.result is not None
        if portal.result.notices:
            self._out += [wire.notice_response(text) for text in portal.result.notices]
            portal.result.notices = ()

    def _send_small(self, portal: Portal) -> None:
        result, rows = portal.result, portal.rows
        assert result is not None
        assert rows is not None
        portal.done = True
        if result.batches is not None:
            self._out += results.arrow_rows(result)
        elif result.columns is not None:
            sent = rows.take()
            self._out.append(results.data_rows(result.columns, portal.result_formats, sent))
            if portal.counted:
                self._complete(result, len(sent))
                return
        self._complete(result, None)

    async def _send_rows(self, portal: Portal) -> None:
        result, rows, limit = portal.result, portal.rows, portal.limit
        assert result is not None
        assert rows is not None
        sent = 0
        try:
            while chunk := await rows.next(min(CHUNK, limit - sent) if limit else CHUNK):
                self._out.append(results.data_rows(result.columns or (), portal.result_formats, chunk))
                sent += len(chunk)
                if sent == limit:
                    portal.counted = portal.counted or result.tag.startswith("SELECT")
                    self._out.append(wire.PORTAL_SUSPENDED)
                    return
                self._flush()
                await self._link.drain()
                await asyncio.sleep(0)
        except BaseException:
            await rows.close()
            raise
        portal.done = True
        self._complete(result, sent if portal.counted else None)

    def _complete(self, result: Result, sent: int | None) -> None:
        self._out.append(results.tag(result, sent))
        if result.tag in _SETTING_TAGS:
            self._report()

    def _report(self) -> None:
        """ParameterStatus for what has changed."""
        settings = self.client.settings
        if settings == self._looked_at:
            return
        self._looked_at = dict(settings)
        for name, lower, default in _REPORTED:
            value = settings.get(name) or settings.get(lower) or default
            if value != self._reported[name]:
                self._reported[name] = value
                self._out.append(wire.parameter_status(name, value))

    def _on_close(self, message: wire.Close) -> None:
        if message.kind == "S":
            self._statements.pop(message.name, None)
        else:
            self._close_portal(message.name)
        self._out.append(wire.CLOSE_COMPLETE)

    def _close_portal(self, name: str) -> None:
        portal = self._portals.pop(name, None)
        if portal is not None:
            discard(portal)

    def _find_statement(self, name: str) -> Statement:
        statement = self._statements.get(name)
        if statement is None:
            what = f'prepared statement "{name}"' if name else "unnamed prepared statement"
            raise KalamError("26000", f"{what} does not exist")
        return statement

    def _find_portal(self, name: str) -> Portal:
        portal = self._portals.get(name)
        if portal is None:
            raise KalamError("34000", f'portal "{name}" does not exist')
        return portal

    def _on_sync(self, _: wire.Sync) -> None:
        self._skipping = False
        self._end_query(None)

    def _on_flight(self, message: wire.Flight) -> None:
        """A flight's five messages in one step, if its answer can be had and written at once."""
        give_back = wire.SYNC_ONLY  # also after an error
        try:
            self._on_parse(message.parse)
            statement = self._find_statement(message.bind.statement)
            portal = bind(statement, message.bind)
            self._close_portal("")
            self._out.append(wire.BIND_COMPLETE)
            prepared = statement.prepared
            if prepared is None or (portal.context is None and not self._ends_here(statement, prepared)):
                self._portals[""] = portal
                give_back = wire.DESCRIBE_ON
                return
            outcome = self._begin(portal)
            if isinstance(outcome, Result) and outcome.stream is None and len(outcome.rows) <= CHUNK:
                self._send_whole(portal, outcome)
                give_back = 0
                if len(outcome.rows) <= 1 and outcome.columns is not None and outcome.batches is None:
                    self._lookups.learn(self._decoder.last_flight, message, portal, outcome.columns)
                return
            self._portals[""] = portal
            give_back = wire.EXECUTE_ON
            self._with_result(portal, outcome, self._describe_result)
        finally:
            self._decoder.give_back(give_back)

    def _ends_here(self, statement: Statement, prepared: Prepared) -> bool:
        """Is it a statement without a context that has no rows and no part in an implicit block, as COMMIT?"""
        return prepared.columns is None and not (statement.local or self._block.open)

    def _send_whole(self, portal: Portal, result: Result) -> None:
        """Everything from Describe's answer on."""
        if self.client.status != "I":  # else the portal ends with Sync
            self._portals[""] = portal
            portal.accept(result)
            portal.done = True
        formats = portal.result_formats
        self._out.append(results.result_description(result, formats))
        if result.notices:
            self._out += [wire.notice_response(text) for text in result.notices]
        if result.batches is not None:
            self._out += results.arrow_rows(result)
        elif result.columns is not None:
            self._out.append(results.data_rows(result.columns, formats, result.rows))
        self._complete(result, None)
        self._end_query(None)

    # ---------- the rest ----------

    def _on_flush(self, _: wire.Flush) -> None:
        self._flush()

    def _on_terminate(self, _: wire.Terminate) -> None:
        self._ended = True
        self._flush()
        self._link.close()
        self._release()

    def _on_copy_input(self, _: wire.CopyInput) -> None:
        """What is still under way when COPY was refused."""

    def _on_function_call(self, _: wire.FunctionCall) -> None:
        self._owes_ready = True
        raise KalamError("0A000", "function calls by protocol message are not supported", hint="use SELECT")

    def _on_stray(self, message: wire.Message) -> None:
        raise KalamError("08P01", f"unexpected {type(message).__name__} message", severity="FATAL")


_REPORTED: Final = [(name, name.lower(), default) for name, default in REPORTED.items()]
_NEVER_SKIPPED: Final = frozenset({wire.Sync, wire.Terminate})
_HANDLERS: Final[dict[type, Callable[[Session, Any], None]]] = {
    wire.Flight: Session._on_flight,
    wire.Query: Session._on_query, wire.Parse: Session._on_parse, wire.Bind: Session._on_bind,
    wire.Describe: Session._on_describe, wire.Execute: Session._on_execute, wire.Close: Session._on_close,
    wire.Flush: Session._on_flush, wire.Sync: Session._on_sync, wire.Terminate: Session._on_terminate,
    wire.CopyInput: Session._on_copy_input, wire.FunctionCall: Session._on_function_call,
}


def _result(work: asyncio.Future[Any]) -> Any:
    return work.result()


def _is_small(portal: Portal) -> bool:
    """Whether the answer can be written in one step."""
    rows = portal.rows
    assert rows is not None
    return not rows.streaming and rows.left <= CHUNK


def _unexpected(error: Exception) -> KalamError:
    log.error("a statement raised an unexpected exception", exc_info=error)
    return KalamError(
        "XX000", f"internal error: {type(error).__name__}", hint="the server's log has the details; please report it"
    )


def _seconds(text: str) -> float:
    """A duration as SET takes it; 0 means none."""
    found = _DURATION.fullmatch(text.strip().strip("'"))
    return int(found[1]) * _UNITS[found[2]] if found else 0.0
