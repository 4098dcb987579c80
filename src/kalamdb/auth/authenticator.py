"""Who a client is: trust, the shared secret, a signed token or an account's password (settings ``auth.…``).

Failures raise ``KalamError`` with severity FATAL: 28P01 for wrong credentials, 28000 where the account is locked or the
method is not allowed. What was given never appears in a message.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import jwt

from kalamdb.api import Account, Role
from kalamdb.auth.lockout import Lockout
from kalamdb.auth.passwords import verify_password
from kalamdb.errors import KalamError
from kalamdb.settings import AuthSettings

if TYPE_CHECKING:
    from kalamdb.txn.api import Accounts

#: The start-up user whose password is a token (docs/protocol.md), and the one of clients without credentials.
BEARER = "bearer"
ANONYMOUS = "kalam"

_ROLES = {role.name.lower(): role for role in Role}


class Authenticator:
    def __init__(
        self, settings: AuthSettings, accounts: Accounts, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._accounts = accounts
        self._clock = clock
        self._lockout = Lockout(settings.max_failures, settings.lockout)
        # argon2 wants 64 MiB for each verification: two at a time, the others wait
        self._threads = ThreadPoolExecutor(2, "kalam-auth")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def trusts(self) -> bool:
        return self._settings.mode in (None, "trust")

    def admit(self, user: str) -> Account | None:
        """The account of a client that needs no password; None: ask for it. Raises 28000."""
        if self.trusts:
            known = self._accounts.get(user)
            if known is not None and known.locked:
                raise _locked(user)
            return Account(user, known.role if known else Role.DBA, stored=known is not None)
        if user == ANONYMOUS and self._accounts.get(user) is None:
            raise KalamError(
                "28000", "this server does not let clients in without credentials",
                hint='give the server or the user mapping "auth_header", or "login_user" and "login_password"',
                severity="FATAL",
            )
        return None

    async def authenticate(self, user: str, password: bytes, peer: str) -> Account:
        """The account, if the password is right. ``peer`` is the client's address."""
        # A token cannot be guessed, so its failures lock the address alone: else anybody could lock everybody out.
        locked = f"{BEARER}@{peer}" if user == BEARER else user
        left = self._lockout.remaining(locked, self._clock())
        if left > 0:
            raise KalamError(
                "28000", f'account "{user}" is locked after repeated failures',
                hint=f"try again in {int(left) + 1} seconds", severity="FATAL",
            )
        try:
            account = self._bearer(password) if user == BEARER else await self._password(user, password)
        except KalamError:
            self._lockout.failed(locked, self._clock())
            raise
        self._lockout.succeeded(locked)
        stored = None if account.name == BEARER else self._accounts.get(account.name)
        if stored is not None and stored.locked:  # said only to those who know the password, or have a token
            raise _locked(account.name)
        return account

    def _bearer(self, token: bytes) -> Account:
        secret = self._settings.shared_secret
        if secret is not None and hmac.compare_digest(secret.encode(), token):
            return Account(BEARER, Role.DBA)
        if self._settings.jwt_key is None:
            raise _refused("the shared secret is wrong" if secret else "this server accepts no tokens")
        return _token_account(token, self._settings.jwt_key)

    async def _password(self, user: str, password: bytes) -> Account:
        known = self._accounts.get(user)
        stored = known.password_hash if known else None
        loop = asyncio.get_running_loop()
        if not await loop.run_in_executor(self._threads, verify_password, stored, password) or known is None:
            raise KalamError(
                "28P01", f'password authentication failed for user "{user}"',
                hint='check "login_user" and "login_password"', severity="FATAL",
            )
        return Account(known.name, known.role, stored=True)


def _locked(user: str) -> KalamError:
    return KalamError("28000", f'account "{user}" is locked', hint="ALTER USER ... UNLOCK by an account of role dba",
                      severity="FATAL")


def _refused(why: str) -> KalamError:
    return KalamError("28P01", "authentication by token failed", detail=f"{why[0].upper()}{why[1:]}.",
                      hint='check "auth_header"', severity="FATAL")


def _token_account(token: bytes, key: str) -> Account:
    try:
        claims = jwt.decode(token, key, algorithms=["HS256"], options={"require": ["exp", "sub"]})
    except jwt.ExpiredSignatureError:
        raise _refused("the token has expired") from None
    except jwt.MissingRequiredClaimError as error:
        raise _refused(f'the token lacks the claim "{error.claim}"') from None
    except (jwt.PyJWTError, ValueError):
        raise _refused("it is neither the shared secret nor a valid signed token") from None
    role = _ROLES.get(str(claims.get("role", "user")))
    if role is None or not claims["sub"]:
        raise _refused('the token\'s claim "role" must be one of ' + ", ".join(_ROLES))
    return Account(claims["sub"], role)
