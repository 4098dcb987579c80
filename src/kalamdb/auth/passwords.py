"""Hashes of account passwords (argon2id). Hashing and verifying cost tens of milliseconds: call them in a thread."""

from __future__ import annotations

import argon2

_hasher = argon2.PasswordHasher()

#: The hash of no account's password, verified where there is no account so that both cases take the same time.
_NOBODY = _hasher.hash("no account has this password")


def hash_password(password: str) -> str:
    return _hasher.hash(password)


def verify_password(stored: str | None, password: bytes) -> bool:
    """Whether ``password`` is the one hashed in ``stored``; None never matches, and takes as long."""
    try:
        _hasher.verify(_NOBODY if stored is None else stored, password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
    return stored is not None
