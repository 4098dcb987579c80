"""Logging in: trust, shared secret, signed tokens, accounts, lockout; and what must never be shown."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import jwt
import psycopg
import pytest

import frames
from kalamdb.api import Role
from kalamdb.auth.lockout import Lockout
from kalamdb.auth.passwords import hash_password, verify_password
from rig import Rig, StoredAccount, rig, wait_for

SECRET = "tell-nobody-1"
KEY = "k" * 40


@pytest.fixture(scope="module")
def server() -> Iterator[Rig]:
    ada = StoredAccount("ada", Role.SERVICE, hash_password("lovelace"))
    mute = StoredAccount("mute", Role.USER, None)
    given = {"auth__shared_secret": SECRET, "auth__jwt_key": KEY, "auth__max_failures": 3, "auth__lockout": 60}
    with rig(ada, mute, **given) as running:
        yield running


def token(key: str = KEY, algorithm: str = "HS256", **claims: object) -> str:
    return jwt.encode({"sub": "bob", "exp": time.time() + 60, **claims}, key, algorithm)


def refused(server: Rig, user: str, password: str | None) -> dict[str, str]:
    with server.raw() as client:
        client.send(frames.startup(user=user))
        if password is not None:
            assert frames.kinds(client.until("R")) == "R"
            client.send(frames.password(password))
        fields = frames.errors(client.rest())[-1]
        assert fields["S"] == "FATAL"
        assert password is None or password not in str(fields)
        return fields


def account(server: Rig, user: str, password: str) -> tuple[str, Role]:
    with psycopg.connect(server.dsn(user, password=password)) as connection:
        pid = connection.info.backend_pid
        # The client may read its welcome before the listener's thread has come to the next line.
        wait_for(lambda: server.listener._by_pid[pid].session, "the session")
        session = server.listener._by_pid[pid].session
        assert session is not None
        return session.client.account.name, session.client.account.role


def test_the_shared_secret(server: Rig) -> None:
    assert account(server, "bearer", SECRET) == ("bearer", Role.DBA)


@pytest.mark.parametrize(("claims", "role"), [({}, Role.USER), ({"role": "service"}, Role.SERVICE)])
def test_signed_tokens(server: Rig, claims: dict[str, str], role: Role) -> None:
    assert account(server, "bearer", token(**claims)) == ("bob", role)


def test_an_account(server: Rig) -> None:
    assert account(server, "ada", "lovelace") == ("ada", Role.SERVICE)


def test_wrong_tokens() -> None:
    with rig(auth__shared_secret=SECRET, auth__jwt_key=KEY, auth__max_failures=1000) as server:
        wrong = [
            "", "nonsense", SECRET[:-1], SECRET + "x", token("x" * 40), token(exp=time.time() - 5), token(role="king"),
            token(sub=""), token(sub=5), token()[:-2], jwt.encode({"sub": "bob"}, KEY, "HS256"),
            jwt.encode({"sub": "bob", "exp": time.time() + 60}, "", "none"), token("k" * 64, "HS512"), "é" * 20,
        ]
        for password in wrong:
            with server.raw() as client:
                client.send(frames.startup(user="bearer"))
                client.until("R")
                client.send(frames.password(password))
                fields = frames.errors(client.rest())[-1]
            assert (fields["C"], fields["H"]) == ("28P01", 'check "auth_header"'), password
        assert "expired" in refused(server, "bearer", token(exp=time.time() - 5))["D"]


def test_wrong_passwords(server: Rig) -> None:
    for user, password in (("ada", "wrong"), ("nobody", "x"), ("mute", "x")):
        fields = refused(server, user, password)
        assert fields["C"] == "28P01"
        assert '"login_user" and "login_password"' in fields["H"]
    assert account(server, "ada", "lovelace")[0] == "ada"


def test_no_credentials_at_all(server: Rig) -> None:
    fields = refused(server, "kalam", None)
    assert fields["C"] == "28000"
    assert "auth_header" in fields["H"]
    assert "login_user" in fields["H"]


def test_lockout_after_failures_in_a_row() -> None:
    ada = StoredAccount("ada", Role.SERVICE, hash_password("lovelace"))
    with rig(ada, auth__mode="password", auth__max_failures=2, auth__lockout=3600) as server:
        refused(server, "ada", "wrong")
        account(server, "ada", "lovelace")  # begins to count anew
        refused(server, "ada", "wrong")
        refused(server, "ada", "wrong")
        fields = refused(server, "ada", "lovelace")
        assert fields["C"] == "28000"
        assert fields["H"].startswith("try again in 3")
        assert refused(server, "other", "x")["C"] == "28P01"
        server.authenticator._clock = lambda: time.monotonic() + 3600
        assert account(server, "ada", "lovelace")[0] == "ada"


def test_lockout_counts_by_the_clock_it_is_given() -> None:
    lockout = Lockout(2, 10)
    lockout.failed("a", 0)
    assert lockout.remaining("a", 0) == 0
    lockout.failed("a", 20)  # the first is forgotten
    assert lockout.remaining("a", 20) == 0
    lockout.failed("a", 21)
    assert lockout.remaining("a", 25) == 6
    assert lockout.remaining("b", 25) == 0
    assert lockout.remaining("a", 31) == 0
    for n in range(20_000):
        lockout.failed(f"name{n}", 40)
    assert len(lockout._failures) <= 10_000


def test_trust_gives_accounts_their_role() -> None:
    with rig(StoredAccount("ada", Role.USER, None)) as server:
        assert account(server, "ada", "ignored") == ("ada", Role.USER)
        assert account(server, "someone", "ignored") == ("someone", Role.DBA)


@pytest.mark.parametrize("data", [frames.query("PUT a"), frames.SYNC, b"p\0\0\0\1", b"p\x7f\0\0\0"])
def test_anything_but_a_password_ends_the_connection(server: Rig, data: bytes) -> None:
    with server.raw() as client:
        client.send(frames.startup(user="ada"))
        client.until("R")
        client.send(data)
        assert frames.errors(client.rest())[0]["C"] == "08P01"
    assert server.executor.stored == []


def test_a_client_that_leaves_while_its_password_is_checked(server: Rig) -> None:
    with server.raw() as client:
        client.send(frames.startup(user="ada"))
        client.until("R")
        client.send(frames.password("lovelace"))
    wait_for(lambda: not server.listener._connections)


def test_hashes() -> None:
    stored = hash_password("ünïcode")
    assert verify_password(stored, "ünïcode".encode())
    assert not verify_password(stored, b"unicode")
    assert not verify_password("not a hash", b"x")
    assert not verify_password(None, b"no account has this password")


def test_logs_hold_no_secret(server: Rig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        refused(server, "bearer", SECRET + "more")
        refused(server, "ada", "wrong-secret-password")
    assert SECRET not in caplog.text
    assert "wrong-secret-password" not in caplog.text
