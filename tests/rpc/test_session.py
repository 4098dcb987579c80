"""The session's state machine, driven through bytes without a socket."""

from __future__ import annotations

import asyncio
import struct

import pyarrow as pa
import pytest
from link import Wire, scenario

import frames
from kalamdb.api import ARROW_OID, CONTEXT_OID, Result
from kalamdb.errors import KalamError
from kalamdb.rpc.session import CHUNK
from kalamdb.sql import eager

# ---------- the flight of a single statement ----------


@scenario
async def test_one_flight_is_answered_at_once_in_one_write(w: Wire) -> None:
    w.send(frames.flight("NUMBER 5", result_format=1))
    assert len(w.writes) == 1
    data = w.taken()
    assert frames.kinds(data) == "12TDCZ"
    assert frames.rows(data) == [[struct.pack("!q", 5)]]
    assert frames.tags(data) == ["SELECT 1"]


@scenario
async def test_the_context_is_taken_out_of_the_parameters(w: Wire) -> None:
    context = b'{"user":"alice","txn":{"id":"00","iso":"repeatable read"},"level":2,"future":1}'
    data = await w.ask(frames.flight("CONTEXT", [context], [CONTEXT_OID]))
    assert frames.rows(data) == [[b'{"user":"alice","txn":{"id":"00","iso":"repeatable read","ro":false},"level":2}']]
    data = await w.ask(frames.flight("ECHO $1", [b"x", b"{}"], [25, CONTEXT_OID]))
    assert frames.rows(data) == [[b"x"]]


@scenario
async def test_a_portal_with_context_runs_at_describe(w: Wire) -> None:
    w.send(frames.parse("PUT a", types=[CONTEXT_OID]), frames.bind([b"{}"]), frames.describe())
    assert w.executor.stored == ["a"]
    data = await w.ask(frames.execute(), frames.SYNC)
    assert frames.kinds(data) == "12nCZ"
    assert w.executor.stored == ["a"]


@scenario
async def test_a_portal_with_context_that_nobody_describes_runs_at_execute(w: Wire) -> None:
    w.send(frames.parse("LATER a", types=[CONTEXT_OID]), frames.bind([b"{}"]))
    assert w.executor.stored == []
    data = await w.ask(frames.execute(), frames.SYNC)
    assert (frames.kinds(data), w.executor.stored) == ("12CZ", ["a"])


@pytest.mark.parametrize("context", [b"", b"[]", b"{", b'{"user":5}', b'{"txn":{}}', b"\xff", None])
def test_a_bad_context_is_refused(context: bytes | None) -> None:
    async def run() -> None:
        w = Wire()
        data = await w.ask(frames.flight("NUMBER 1", [context], [CONTEXT_OID]))
        assert [e["C"] for e in frames.errors(data)] == ["08P01"]
        assert w.executor.ran == []

    asyncio.run(run())


@scenario
async def test_arrow_results_are_ipc_messages(w: Wire) -> None:
    data = await w.ask(frames.flight("ARROW 1000", [b'{"arrow":true}'], [CONTEXT_OID], result_format=1))
    messages = frames.split(data)
    assert frames.kinds(data) == "12TDDDCZ"
    assert messages[2][1] == struct.pack("!H", 1) + b"arrow\0" + struct.pack("!IHIhih", 0, 0, ARROW_OID, -1, -1, 1)
    values = [row[0] for row in frames.rows(data)]
    schema = pa.ipc.read_schema(pa.py_buffer(values[0]))
    batches = [pa.ipc.read_record_batch(pa.py_buffer(value), schema) for value in values[1:]]
    assert [batch.column(0)[999].as_py() for batch in batches] == [999, 999]
    assert frames.tags(data) == ["SELECT 1000 scan_7"]


@scenario
async def test_awaitables_keep_the_order(w: Wire) -> None:
    w.send(frames.flight("LATER a"), frames.flight("NUMBER 1"), frames.query("LATER b"), frames.flight("NUMBER 2"))
    await w.until(lambda: b"".join(w.writes).count(b"Z\0\0\0\5") == 4)
    data = w.taken()
    assert frames.kinds(data) == "12nCZ12TDCZCZ12TDCZ"
    assert w.executor.ran == ["LATER a", "NUMBER 1", "LATER b", "NUMBER 2"]


# ---------- statements and portals ----------


@scenario
async def test_named_statements_and_portals(w: Wire) -> None:
    data = await w.ask(frames.parse("ECHO $1", "s"), frames.describe("S", "s"), frames.SYNC)
    assert frames.kinds(data) == "1tTZ"
    assert frames.split(data)[1][1] == struct.pack("!HI", 1, 25)
    await w.ask(frames.query("BEGIN"))
    for value in (b"a", b"b"):
        data = await w.ask(
            frames.bind([value], portal="p", name="s"), frames.execute("p"), frames.close("P", "p"), frames.SYNC
        )
        assert (frames.kinds(data), frames.rows(data)) == ("2DC3Z", [[value]])
    data = await w.ask(frames.close("S", "s"), frames.close("S", "never there"), frames.SYNC)
    assert frames.kinds(data) == "33Z"
    data = await w.ask(frames.bind([b"a"], name="s"), frames.SYNC)
    assert frames.errors(data)[0]["C"] == "26000"


@scenario
async def test_names_that_exist_or_do_not(w: Wire) -> None:
    async def state(*data: bytes) -> str:
        return frames.errors(await w.ask(*data, frames.SYNC))[0]["C"]

    assert await state(frames.parse("NUMBER 1", "s"), frames.parse("NUMBER 1", "s")) == "42P05"
    assert await state(frames.bind(name="s", portal="p"), frames.bind(name="s", portal="p")) == "42P03"
    assert await state(frames.describe("S", "nope")) == "26000"
    assert await state(frames.describe("P", "nope")) == "34000"
    assert await state(frames.execute("nope")) == "34000"
    assert await state(frames.bind([b"x", b"y"], name="s")) == "08P01"


@scenario
async def test_a_failed_parse_leaves_no_unnamed_statement(w: Wire) -> None:
    await w.ask(frames.parse("NUMBER 1"), frames.SYNC)
    await w.ask(frames.parse("NONSENSE"), frames.SYNC)
    assert frames.errors(await w.ask(frames.bind(), frames.SYNC))[0]["C"] == "26000"


@scenario
async def test_max_rows_suspends_a_portal(w: Wire) -> None:
    await w.ask(frames.query("BEGIN"))
    data = await w.ask(frames.parse("SERIES 5"), frames.bind(portal="p"), frames.execute("p", 2), frames.SYNC)
    assert frames.kinds(data) == "12DDsZ"
    data = await w.ask(frames.execute("p", 2), frames.execute("p", 2), frames.execute("p", 2), frames.SYNC)
    assert (frames.kinds(data), frames.tags(data)) == ("DDsDCCZ", ["SELECT 1", "SELECT 0"])
    await w.ask(frames.query("COMMIT"))
    assert frames.errors(await w.ask(frames.execute("p"), frames.SYNC))[0]["C"] == "34000"


@scenario
async def test_a_stream_is_suspended_and_closed(w: Wire) -> None:
    await w.ask(frames.query("BEGIN"))
    data = await w.ask(frames.parse("STREAM 5000"), frames.bind(portal="p"), frames.execute("p", 1500), frames.SYNC)
    assert (len(frames.rows(data)), frames.kinds(data)[-2:]) == (1500, "sZ")
    assert w.executor.streams_open == 1
    await w.ask(frames.close("P", "p"), frames.SYNC)
    await w.until(lambda: w.executor.streams_open == 0)


@scenario
async def test_an_executed_command_does_not_run_twice(w: Wire) -> None:
    data = await w.ask(frames.parse("PUT a"), frames.bind(), frames.execute(), frames.execute(), frames.SYNC)
    assert frames.errors(data)[0]["C"] == "55000"
    assert w.executor.ran.count("PUT a") == 1


@scenario
async def test_empty_statements(w: Wire) -> None:
    assert frames.kinds(await w.ask(frames.query(" ; "))) == "IZ"
    assert frames.kinds(await w.ask(frames.flight(" "))) == "12nIZ"


@scenario
async def test_deallocate(w: Wire) -> None:
    await w.ask(frames.parse("NUMBER 1", 'a"b'), frames.parse("NUMBER 1", "c"), frames.SYNC)
    assert frames.tags(await w.ask(frames.query('DEALLOCATE "a""b"'))) == ["DEALLOCATE"]
    assert frames.errors(await w.ask(frames.query('DEALLOCATE "a""b"')))[0]["C"] == "26000"
    assert frames.tags(await w.ask(frames.flight("deallocate ALL"))) == ["DEALLOCATE ALL"]
    assert frames.errors(await w.ask(frames.bind(name="c"), frames.SYNC))[0]["C"] == "26000"


@scenario
async def test_flush_sends_what_there_is(w: Wire) -> None:
    w.send(frames.parse("NUMBER 1"), frames.FLUSH, frames.bind(), frames.execute(), frames.FLUSH)
    await w.until(lambda: frames.kinds(b"".join(w.writes)) == "12DC")
    assert frames.kinds(await w.ask(frames.SYNC))[-1] == "Z"


# ---------- errors ----------


@scenario
async def test_an_error_skips_to_sync(w: Wire) -> None:
    data = await w.ask(
        frames.parse("FAIL"), frames.bind(), frames.execute(), frames.parse("PUT a"), frames.bind(), frames.execute(),
        frames.message("B", b"malformed"), frames.query("PUT b"), frames.SYNC,
    )
    assert frames.kinds(data) == "12EZ"
    assert w.executor.stored == []
    fields = frames.errors(data)[0]
    assert fields == {
        "S": "ERROR", "V": "ERROR", "C": "23505", "M": "duplicate key", "D": "Key (id)=(5) already exists.",
        "H": "take another", "P": "3", "s": "s", "t": "t", "c": "c", "n": "t_pkey",
    }
    assert frames.kinds(await w.ask(frames.flight("NUMBER 1"))) == "12TDCZ"


@scenario
async def test_an_error_fails_the_transaction(w: Wire) -> None:
    assert (await w.ask(frames.query("BEGIN")))[-1:] == b"T"
    assert (await w.ask(frames.bind(name="nope"), frames.SYNC))[-1:] == b"E"
    assert frames.errors(await w.ask(frames.flight("NUMBER 1")))[0]["C"] == "25P02"
    assert (await w.ask(frames.query("ROLLBACK")))[-1:] == b"I"


@scenario
async def test_an_unexpected_exception_is_reported_and_survived(w: Wire) -> None:
    for data in (frames.query("CRASH"), frames.flight("CRASH")):
        fields = frames.errors(await w.ask(data))[0]
        assert fields["C"] == "XX000"
        assert "secret" not in str(fields)
    assert frames.kinds(await w.ask(frames.flight("NUMBER 1"))) == "12TDCZ"


@scenario
async def test_malformed_messages(w: Wire) -> None:
    assert frames.kinds(await w.ask(frames.message("Q", b"no end"))) == "EZ"
    assert frames.kinds(await w.ask(frames.message("P", b"no end"), frames.flight("NUMBER 1"))) == "EZ"
    assert frames.kinds(await w.ask(frames.message("F", b""))) == "EZ"
    assert frames.kinds(await w.ask(frames.message("d", b"late copy data"), frames.query("NUMBER 1"))) == "TDCZ"
    assert not w.closed


@scenario
async def test_oversized_and_unknown_messages_end_the_connection(w: Wire) -> None:
    w.send(b"Q" + struct.pack("!i", 0x7FFFFFFF), b"x" * 100)
    data = w.taken()
    assert frames.errors(data)[0] | {"M": ""} == frames.errors(data)[0] | {"S": "FATAL", "C": "08P01", "M": ""}
    assert w.closed
    w.send(frames.query("PUT a"))
    assert (w.taken(), w.executor.stored) == (b"", [])


@scenario
async def test_a_message_beyond_the_limit_is_refused_and_the_session_goes_on(w: Wire) -> None:
    w.send(b"Q" + struct.pack("!i", 1 << 21), b"x" * 100)
    data = w.taken()
    assert frames.kinds(data) == "EZ"
    assert (frames.errors(data)[0]["S"], frames.errors(data)[0]["C"]) == ("ERROR", "54000")
    w.send(b"x" * ((1 << 21) - 104))
    assert frames.kinds(await w.ask(frames.query("PUT a"))) == "CZ"
    assert (w.closed, w.executor.stored) == (False, ["a"])


@scenario
async def test_terminate(w: Wire) -> None:
    w.send(frames.TERMINATE, frames.query("PUT a"))
    assert (w.closed, w.executor.stored, w.taken()) == (True, [], b"")


# ---------- implicit transactions ----------


@scenario
async def test_a_script_is_one_transaction(w: Wire) -> None:
    data = await w.ask(frames.query("PUT a; LATER b; NUMBER 3"))
    assert (frames.kinds(data), w.executor.stored) == ("CCTDCZ", ["a", "b"])
    assert w.executor.ran == ["BEGIN", "PUT a", "LATER b", "NUMBER 3", "COMMIT"]


@scenario
async def test_a_failed_script_leaves_nothing(w: Wire) -> None:
    data = await w.ask(frames.query("PUT a; FAIL; PUT b"))
    assert (frames.kinds(data), w.executor.stored, w.executor.ran[-1]) == ("CEZ", [], "ROLLBACK")
    assert data[-1:] == b"I"


@scenario
async def test_a_script_whose_commit_fails(w: Wire) -> None:
    data = await w.ask(frames.query("PUT a; PUT poison"))
    assert (frames.kinds(data), frames.errors(data)[0]["C"], w.executor.stored) == ("CCEZ", "40001", [])


@scenario
async def test_commit_inside_a_script_ends_a_block_and_begin_keeps_it(w: Wire) -> None:
    data = await w.ask(frames.query("PUT a; COMMIT; PUT b; FAIL"))
    assert (w.executor.stored, frames.kinds(data)) == (["a"], "CCCEZ")
    data = await w.ask(frames.query("PUT c; BEGIN; PUT d"))
    assert (frames.tags(data)[1], data[-1:], w.executor.stored) == ("BEGIN", b"T", ["a"])
    await w.ask(frames.query("COMMIT"))
    assert w.executor.stored == ["a", "c", "d"]


@scenario
async def test_refused_inside_an_implicit_block(w: Wire) -> None:
    data = await w.ask(frames.query("PUT a; BEGIN ISOLATION LEVEL SERIALIZABLE"))
    assert frames.errors(data)[0]["C"] == "25001"
    data = await w.ask(frames.query("PUT a; /* why */ SAVEPOINT s"))
    assert frames.errors(data)[0]["C"] in ("25P01", "42601")
    assert w.executor.stored == []


@scenario
async def test_a_pipeline_up_to_sync_is_one_transaction(w: Wire) -> None:
    put = [frames.parse(f"PUT {x}") + frames.bind() + frames.describe() + frames.execute() for x in "abc"]
    assert (await w.ask(*put, frames.SYNC))[-1:] == b"I"
    assert w.executor.stored == ["a", "b", "c"]
    assert w.executor.ran.count("BEGIN") == 1
    await w.ask(*put, frames.parse("FAIL") + frames.bind() + frames.execute(), frames.SYNC)
    assert w.executor.stored == ["a", "b", "c"]


@scenario
async def test_a_lone_statement_is_its_own_transaction(w: Wire) -> None:
    await w.ask(frames.flight("PUT a"))
    await w.ask(frames.query("PUT b"))
    assert w.executor.ran == ["PUT a", "PUT b"]


@scenario
async def test_statements_with_a_context_open_no_block(w: Wire) -> None:
    put = frames.parse("PUT a", types=[CONTEXT_OID]) + frames.bind([b"{}"]) + frames.describe() + frames.execute()
    await w.ask(put, put, frames.SYNC)
    assert w.executor.ran == ["PUT a", "PUT a"]


# ---------- settings, notices ----------


@scenario
async def test_changed_settings_are_reported(w: Wire) -> None:
    data = await w.ask(frames.query("SET TimeZone = 'Europe/Berlin'"))
    assert frames.kinds(data) == "CSZ"
    assert frames.split(data)[1][1] == b"TimeZone\0Europe/Berlin\0"
    assert frames.kinds(await w.ask(frames.query("SET TimeZone = 'Europe/Berlin'"))) == "CZ"


@scenario
async def test_notices_precede_the_tag(w: Wire) -> None:
    for data, expected in ((frames.query("NOTE"), "NCZ"), (frames.flight("NOTE"), "12nNCZ")):
        assert frames.kinds(await w.ask(data)) == expected


# ---------- long results, cancel, the end ----------


@scenario
async def test_many_rows_are_written_in_pieces(w: Wire) -> None:
    data = await w.ask(frames.flight(f"SERIES {CHUNK * 3 + 1}"))
    assert len(frames.rows(data)) == CHUNK * 3 + 1
    assert frames.tags(data) == [f"SELECT {CHUNK * 3 + 1}"]
    data = await w.ask(frames.query("STREAM 3500"))
    assert (len(frames.rows(data)), frames.tags(data)) == (3500, ["SELECT 3500"])
    assert w.executor.streams_open == 0


@scenario
async def test_a_client_that_does_not_read_stops_the_stream(w: Wire) -> None:
    w.blocked = True
    w.blocked = False
    w.send(frames.query("STREAM 1000000"))
    w.blocked = True
    await w.until(lambda: w.writes)
    for _ in range(50):
        await asyncio.sleep(0)
    assert sum(map(len, w.writes)) < 100_000
    w.session.cancel()
    w.blocked = False
    w.unblocked.set()
    await w.until(lambda: frames.kinds(b"".join(w.writes)).endswith("EZ"))
    assert w.executor.streams_open == 0


@scenario
async def test_cancel(w: Wire) -> None:
    for data in (frames.query("WAIT"), frames.flight("WAIT"), frames.query("PUT a; WAIT")):
        w.send(data)
        await w.until(lambda: w.executor.waiting)
        w.session.cancel()
        answer = await w.ask()
        assert frames.errors(answer)[0]["C"] == "57014"
        assert "user request" in frames.errors(answer)[0]["M"]
    assert (w.executor.interrupted, w.executor.stored) == (3, [])
    w.session.cancel()  # nothing runs
    assert frames.kinds(await w.ask(frames.query("NUMBER 1"))) == "TDCZ"


@scenario
async def test_cancel_reaches_what_has_begun_before_its_task(w: Wire) -> None:
    seen: list[type[BaseException]] = []

    async def work() -> Result:
        try:
            await asyncio.get_running_loop().create_future()
        except BaseException as error:
            seen.append(type(error))
            raise
        raise AssertionError

    execute = w.executor.execute
    for data in (frames.query("NUMBER 1"), frames.flight("NUMBER 1")):
        w.executor.execute = lambda *_: eager.begin(work())  # type: ignore[method-assign]
        w.send(data)
        w.session.cancel()
        assert frames.errors(await w.ask())[0]["C"] == "57014"
        w.executor.execute = execute  # type: ignore[method-assign]
    assert seen == [asyncio.CancelledError] * 2


@scenario
async def test_what_waits_for_a_future_alone(w: Wire) -> None:
    w.send(frames.flight("SOON"), frames.flight("NUMBER 1"))
    assert (w.taken(), w.session.busy, w.client.active) == (b"", True, True)
    w.executor.soon.set_result(7)
    await w.until(lambda: b"".join(w.writes).count(b"Z\0\0\0\5") == 2)
    assert frames.tags(w.taken()) == ["INSERT 0 7", "SELECT 1"]
    assert (w.executor.ends, w.session.busy, w.client.active) == (1, False, False)


@pytest.mark.parametrize("sql", ["SOON", "PUT a; SOON"])
@pytest.mark.parametrize("simple", [True, False])
def test_what_waits_for_a_future_alone_is_not_cancelled(sql: str, simple: bool) -> None:
    async def run() -> None:
        w = Wire()
        w.send(frames.query(sql) if simple or ";" in sql else frames.flight(sql))
        await w.until(lambda: w.session.busy)
        w.session.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        assert w.taken() == b""
        w.executor.soon.set_result(1)
        await w.until(lambda: b"".join(w.writes)[-6:-1] == b"Z\0\0\0\5")
        assert (frames.tags(w.taken())[-1], w.executor.ends) == ("INSERT 0 1", 1)
        w.session.cancel()
        assert frames.rows(await w.ask(frames.query("NUMBER 1"))) == [[b"1"]]

    asyncio.run(run())


@scenario
async def test_what_waits_for_a_future_alone_may_fail(w: Wire) -> None:
    w.send(frames.flight("SOON"))
    w.executor.soon.set_exception(KalamError("53100", "no space left"))
    await w.until(lambda: w.writes)
    assert [error["C"] for error in frames.errors(w.taken())] == ["53100"]
    assert (w.executor.ends, w.session.busy) == (1, False)


@scenario
async def test_a_client_that_vanishes_while_a_future_is_waited_for(w: Wire) -> None:
    w.send(frames.flight("SOON"))
    w.session.lost()
    for _ in range(3):
        await asyncio.sleep(0)
    assert (w.executor.ends, w.executor.closed) == (0, [])
    w.executor.soon.set_result(1)
    await w.session.released
    assert (w.executor.ends, w.executor.closed, w.taken()) == (1, [1], b"")


@scenario
async def test_statement_timeout(w: Wire) -> None:
    await w.ask(frames.query("SET statement_timeout = '5ms'"))
    fields = frames.errors(await w.ask(frames.query("WAIT")))[0]
    assert (fields["C"], fields["M"]) == ("57014", "canceling statement due to statement timeout")


@scenario
async def test_input_that_comes_while_a_statement_runs_does_not_disturb_its_timeout(w: Wire) -> None:
    await w.ask(frames.query("SET statement_timeout = '20'"))
    w.send(frames.query("WAIT"))
    w.send(frames.query("NUMBER 1"))
    await w.until(lambda: frames.kinds(b"".join(w.writes)) == "EZTDCZ")


@scenario
async def test_a_vanished_client_frees_everything(w: Wire) -> None:
    w.send(frames.query("BEGIN"))
    w.send(frames.query("WAIT"), frames.query("PUT a"))
    await w.until(lambda: w.executor.waiting)
    w.session.lost()
    assert w.executor.closed == []  # not while its statement still runs
    await asyncio.wait_for(w.session.released, 10)
    assert (w.executor.closed, w.executor.interrupted, w.executor.stored) == ([1], 1, [])
    assert w.client.transaction is None


@scenario
async def test_a_vanished_client_ends_its_streams(w: Wire) -> None:
    await w.ask(frames.query("BEGIN"))
    await w.ask(frames.parse("STREAM 5000"), frames.bind(portal="p"), frames.execute("p", 10), frames.SYNC)
    w.session.lost()
    await w.until(lambda: w.executor.streams_open == 0)
    assert w.executor.closed == [1]


@scenario
async def test_draining_lets_the_running_statement_end(w: Wire) -> None:
    farewell = KalamError("57P01", "terminating connection due to administrator command", severity="FATAL")
    w.send(frames.query("HOLD"))
    await w.until(lambda: w.executor.waiting)
    w.session.end_when_idle(farewell)
    assert not w.closed
    w.executor.release.set()
    await w.until(lambda: w.closed)
    assert frames.kinds(w.taken()) == "CZE"


@scenario
async def test_draining_ends_idle_sessions_and_hurrying_ends_all(w: Wire) -> None:
    farewell = KalamError("57P01", "terminating connection due to administrator command", severity="FATAL")
    w.session.end_when_idle(farewell)
    assert (frames.errors(w.taken())[0]["C"], w.closed) == ("57P01", True)
    other = Wire()
    other.send(frames.query("WAIT"))
    await other.until(lambda: other.executor.waiting)
    other.session.end_now(farewell)
    await other.until(lambda: other.closed)
    assert frames.errors(other.taken())[0]["C"] == "57P01"


def test_idle_in_transaction_timeout() -> None:
    async def run() -> None:
        w = Wire(idle_in_transaction_ms=5)
        await w.ask(frames.query("NUMBER 1"))
        w.send(frames.query("BEGIN"))
        await w.until(lambda: w.closed)
        assert frames.errors(w.taken())[0]["C"] == "25P03"

    asyncio.run(run())


@scenario
async def test_a_long_pipeline_gives_others_their_turn(w: Wire) -> None:
    w.send(*[frames.flight("NUMBER 1")] * 500)
    assert b"".join(w.writes).count(b"Z\0\0\0\5") < 500
    await w.until(lambda: b"".join(w.writes).count(b"Z\0\0\0\5") == 500)
