"""The listener over real sockets: handshakes, limits, cancel, clients that vanish, dawdle or talk something else."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
from collections.abc import Iterator

import pytest

import frames
from rig import Raw, Rig, StoredAccounts, make_settings, rig, wait_for
from support import places


@pytest.fixture(scope="module", params=["tcp", "unix", "unix in uvloop"])
def server(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "tcp":
        with rig() as running:
            yield running
        return
    loop = pytest.importorskip("uvloop").new_event_loop if "uvloop" in request.param else asyncio.new_event_loop
    folder = places.new("krpc")
    running = Rig(make_settings(rpc__socket_dir=str(folder)), StoredAccounts(), loop())
    try:
        yield running
    finally:
        running.stop()
        shutil.rmtree(folder)


def test_encryption_is_refused_then_login_goes_on(server: Rig) -> None:
    with server.raw() as client:
        client.send(frames.GSSENC_REQUEST)
        assert client.byte() == b"N"
        client.send(frames.SSL_REQUEST)
        assert client.byte() == b"N"
        client.log_in()
        client.send(frames.query("NUMBER 4"))
        assert frames.rows(client.until("Z")) == [[b"4"]]


def test_encryption_is_asked_for_once(server: Rig) -> None:
    with server.raw() as client:
        client.send(frames.SSL_REQUEST, frames.SSL_REQUEST)
        assert client.byte() == b"N"
        assert frames.errors(client.rest())[0]["C"] == "08P01"


def test_the_greeting(server: Rig) -> None:
    with server.raw() as client:
        client.send(frames.startup(user="kalam", application_name="trial"))
        messages = frames.split(client.until("Z"))
        status = dict(body[:-1].split(b"\0") for kind, body in messages if kind == "S")
        assert status[b"server_version"].startswith(b"16.0 (KalamDB ")
        expected = {
            b"client_encoding": b"UTF8", b"integer_datetimes": b"on", b"standard_conforming_strings": b"on",
            b"TimeZone": b"UTC", b"application_name": b"trial", b"is_superuser": b"on",
        }
        assert expected.items() <= status.items()
        assert status[b"DateStyle"].startswith(b"ISO")
        assert [len(body) for kind, body in messages if kind == "K"] == [8]


@pytest.mark.parametrize(
    ("minor", "options", "answer", "key"),
    [(0, {}, None, 4), (2, {}, None, 32), (9999, {}, (2, []), 32), (0, {"_pq_.x": "1"}, (0, ["_pq_.x"]), 4)],
)
def test_version_negotiation(
    server: Rig, minor: int, options: dict[str, str], answer: tuple[int, list[str]] | None, key: int
) -> None:
    with server.raw() as client:
        client.send(frames.startup(minor, user="kalam", **options))
        messages = frames.split(client.until("Z"))
        negotiated = [body for kind, body in messages if kind == "v"]
        assert [len(body) - 4 for kind, body in messages if kind == "K"] == [key]
        if answer is None:
            assert negotiated == []
        else:
            newest, unknown = answer
            names = b"".join(frames.z(name) for name in unknown)
            assert negotiated == [struct.pack("!II", 3 << 16 | newest, len(unknown)) + names]


@pytest.mark.parametrize(
    ("parameters", "state"),
    [
        ({}, "28000"), ({"user": "kalam", "database": "other"}, "3D000"),
        ({"user": "kalam", "replication": "true"}, "0A000"), ({"user": "kalam", "client_encoding": "LATIN1"}, "0A000"),
        ({"user": "kalam", "options": "-c nothing=1"}, "42704"), ({"user": "kalam", "options": "-x"}, "42601"),
        ({"user": "kalam", "bad name": "1"}, "42602"),
    ],
)
def test_refused_startup_packets(server: Rig, parameters: dict[str, str], state: str) -> None:
    with server.raw() as client:
        client.send(frames.startup(**parameters))
        fields = frames.errors(client.rest())[-1]
        assert (fields["S"], fields["C"]) == ("FATAL", state)


def test_options_are_set(server: Rig) -> None:
    with server.raw() as client:
        client.send(frames.startup(user="kalam", options="-c kalam.user_id=a\\ b --work-mem=5 -cx=y"))
        client.until("Z")
        wait_for(lambda: {"kalam.user_id": "a b", "work_mem": "5", "x": "y"}.items() <= settings_of(server).items())


def settings_of(server: Rig) -> dict[str, str]:
    sessions = [c.session for c in server.listener._by_pid.values() if c.session is not None]
    return {name: value for session in sessions for name, value in session.client.settings.items()}


@pytest.mark.parametrize("data", [b"\x7f\xff\xff\xff", b"\0\0\0\3", b"\0\1\0\0", b"\0\0\0\x0cabcdefgh"])
def test_nonsense_before_login(server: Rig, data: bytes) -> None:
    with server.raw() as client:
        client.send(data)
        assert frames.errors(client.rest())[0]["S"] == "FATAL"


def test_oversized_message_after_login_is_told_though_the_client_still_sends(server: Rig) -> None:
    with server.raw() as client:
        client.log_in()
        client.send(b"Q" + struct.pack("!i", 0x7FFFFFFF), b"x" * 200_000)
        assert frames.errors(client.rest())[0]["C"] == "08P01"


def test_a_slow_sender_is_served(server: Rig) -> None:
    with server.raw() as client:
        if client.socket.family == socket.AF_INET:
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in frames.startup(user="kalam") + frames.flight("NUMBER 1") + frames.flight("LATER a"):
            client.send(bytes([byte]))
        client.until("Z")
        client.until("Z")
        assert frames.tags(client.until("Z")) == ["INSERT 0 1"]


def test_a_sender_too_slow_to_log_in_is_dropped() -> None:
    with rig(authentication_timeout=0.1) as server:
        with server.raw() as silent, server.raw() as half:
            half.send(frames.startup(user="kalam")[:6])
            for client in (silent, half):
                assert "timeout" in frames.errors(client.rest())[0]["M"]
        wait_for(lambda: not server.listener._connections)


def test_http_at_the_rpc_port(server: Rig) -> None:
    server.listener.http_url = "http://127.0.0.1:12345"
    with server.raw() as client:
        client.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = client.rest().decode()
        assert answer.startswith("HTTP/1.1 400 ")
        assert "RPC port" in answer
        assert "http://127.0.0.1:12345" in answer


def test_max_connections() -> None:
    with rig(max_connections=2) as server:
        clients = [server.raw() for _ in range(2)]
        for client in clients:
            client.log_in()
        with server.raw() as third:
            third.send(frames.startup(user="kalam"))
            assert frames.errors(third.rest())[0]["C"] == "53300"
        clients[0].socket.close()
        wait_for(lambda: server.listener.sessions == 1)
        with server.raw() as fourth:
            fourth.log_in()
        clients[1].socket.close()


def test_half_open_connections_are_limited() -> None:
    with rig(max_connections=1) as server:
        clients = [server.raw() for _ in range(101)]
        wait_for(lambda: len(server.listener._connections) == 101)
        with server.raw() as late:
            assert frames.errors(late.rest())[0]["C"] == "53300"
        for client in clients:
            client.socket.close()


# ---------- cancel, vanished clients ----------


def test_cancel_request(server: Rig) -> None:
    with server.raw() as client:
        pid, key = client.log_in()
        client.send(frames.query("WAIT"))
        wait_for(lambda: server.executor.waiting == 1)
        for wrong in (frames.cancel(pid, b"xxxx"), frames.cancel(pid ^ 1, key), frames.cancel(pid, key + b"x")):
            with server.raw() as other:
                other.send(wrong)
                assert other.rest() == b""
        assert server.executor.waiting == 1
        with server.raw() as other:
            other.send(frames.cancel(pid, key))
            assert other.rest() == b""
        assert frames.errors(client.until("Z"))[0]["C"] == "57014"
        client.send(frames.query("NUMBER 1"))
        assert frames.rows(client.until("Z")) == [[b"1"]]


@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_a_vanished_client_stops_its_work(server: Rig, how: str) -> None:
    with server.raw() as client:
        pid, _ = client.log_in()
        client.send(frames.query("BEGIN"))
        client.until("Z")
        client.send(frames.query("WAIT"))
        wait_for(lambda: server.executor.waiting == 1)
        vanish(client, how)
        wait_for(lambda: pid in server.executor.closed)
        assert server.executor.waiting == 0


def test_a_client_that_vanishes_behind_a_full_read_buffer_is_noticed(server: Rig) -> None:
    with server.raw() as client:
        pid, _ = client.log_in()
        client.send(frames.query("WAIT"))
        wait_for(lambda: server.executor.waiting == 1)
        client.send(frames.query("PUT " + "x" * 1000) * 1100)
        wait_for(lambda: not server.listener._by_pid[pid]._reading, "the pause")
        vanish(client, "close")
        wait_for(lambda: pid in server.executor.closed)
        assert not any(text.startswith("x") for text in server.executor.stored)


def vanish(client: Raw, how: str) -> None:
    if how == "half":
        client.socket.shutdown(socket.SHUT_WR)
        return
    if how == "reset":
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.close()


def test_what_waits_behind_a_statement_is_bounded_and_then_served(server: Rig) -> None:
    with server.raw() as client:
        pid, _ = client.log_in()
        client.send(frames.query("HOLD"))
        wait_for(lambda: server.executor.waiting == 1)
        client.send(frames.query("ECHO " + "x" * 1000) * 1100)
        connection = server.listener._by_pid[pid]
        wait_for(lambda: not connection._reading, "the pause")
        assert connection._decoder.buffered < 2 << 20
        server.loop.call_soon_threadsafe(server.executor.release.set)
        for _ in range(1101):
            client.until("Z")
    server.loop.call_soon_threadsafe(server.executor.release.clear)


def test_a_client_that_does_not_read_holds_the_stream_and_then_gets_it_all(server: Rig) -> None:
    with server.raw() as client:
        client.log_in()
        client.send(frames.query("STREAM 2000000"))
        wait_for(lambda: any(c.blocked for c in server.listener._by_pid.values()), "backpressure")
        assert server.executor.streamed < 1_500_000
        data = client.until_ready()
        assert len(data) > 30_000_000
        assert frames.tags(data[data.rindex(b"C\0") :]) == ["SELECT 2000000"]


# ---------- the end ----------


def test_draining() -> None:
    with rig() as server:
        idle, running, waiting = (server.raw() for _ in range(3))
        for client in (idle, running):
            client.log_in()
        running.send(frames.query("HOLD"))
        wait_for(lambda: server.executor.waiting == 1)
        server.loop.call_soon_threadsafe(server.loop.create_task, server.listener.drain(quiet(server)))
        assert frames.errors(idle.rest())[0]["C"] == "57P01"
        assert waiting.rest() == b""
        with pytest.raises(OSError, match="refused"):
            server.raw()
        server.loop.call_soon_threadsafe(server.executor.release.set)
        assert frames.kinds(running.rest()) == "CZE"
        for client in (idle, running, waiting):
            client.socket.close()


def quiet(server: Rig) -> asyncio.Event:
    async def make() -> asyncio.Event:
        return asyncio.Event()

    event: asyncio.Event = server.call(make())
    return event


def test_draining_in_a_hurry() -> None:
    with rig() as server, server.raw() as client:
        client.log_in()
        client.send(frames.query("WAIT"))
        wait_for(lambda: server.executor.waiting == 1)
        server.drain(hurry=True)
        assert frames.errors(client.rest())[0]["C"] == "57P01"
        assert server.executor.waiting == 0


def test_what_still_runs_after_the_limit_is_cancelled() -> None:
    with rig(shutdown_timeout=0.05) as server, server.raw() as client:
        client.log_in()
        client.send(frames.query("WAIT"))
        wait_for(lambda: server.executor.waiting == 1)
        server.drain()
        assert frames.errors(client.rest())[0]["C"] == "57P01"
