"""A storage in a bucket of an S3-compatible service, with a cache of whole files on the disk.

A put is durable when the service has answered it: S3 shows an object whole or not at all. Requests have timeouts and
are repeated a bounded number of times by the client (obstore, the object_store of the Rust world). What the service
says of an error is not passed on but for its code, since it may repeat what it was sent, the key among it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import S3Store

from kalamdb.errors import KalamError
from kalamdb.settings import StorageSettings
from kalamdb.store.filecache import FileCache
from kalamdb.store.files import check_name, check_prefix, missing, open_error, told
from kalamdb.store.storage import MARKER

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = timedelta(seconds=5)
READ_TIMEOUT = timedelta(seconds=20)
REQUEST_TIMEOUT = timedelta(minutes=10)
RETRIES = 3
RETRY_TIMEOUT = timedelta(seconds=30)
PART = 8 * 1024 * 1024
#: the client has its own class for it and raises Python's, without a number
_NOT_FOUND = (NotFoundError, FileNotFoundError)
#: where the client asks for the role of the machine when it found no key
_METADATA = re.compile(r"/latest/(api/token|meta-data)\b")
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")


class S3Storage:
    """``kalamdb.store.storage.Storage`` over one bucket and prefix."""

    kind = "s3"

    def __init__(self, id_: str, settings: StorageSettings, cache: Path) -> None:
        self.id = id_
        self._settings = settings
        self._store = _client(settings)
        try:
            self._cache = FileCache(cache, settings.cache_bytes, self._download)
        except OSError as error:
            raise open_error(error, id_, cache) from error

    def __repr__(self) -> str:
        return f"<S3Storage {self.id!r} {self.location}>"

    @property
    def location(self) -> str:
        place = f"s3://{self._settings.bucket}/{self._settings.prefix}".rstrip("/")
        return f"{place} at {self._settings.endpoint}" if self._settings.endpoint else place

    @property
    def cached_bytes(self) -> int:
        return self._cache.bytes

    def scratch(self) -> Path:
        return self._cache.new()

    def put(self, name: str, source: Path) -> None:
        check_name(name, self.id)
        with told("write", name, self.id), self._asked("write", name):
            source.stat()  # a missing file and a missing bucket are the same error of the client
            obstore.put(self._store, name, source, chunk_size=PART)
        try:
            self._cache.add(name, source)
        except OSError as error:  # the object is there, which is what counts
            log.warning("could not keep segment file %s of %r in the cache: %s", name, self, error.strerror)
            source.unlink(missing_ok=True)

    def fetch(self, name: str) -> Path:
        return self._cache.get(check_name(name, self.id))

    def delete(self, name: str) -> None:
        check_name(name, self.id)
        with self._asked("delete", name):
            try:
                obstore.delete(self._store, name)
            except _NOT_FOUND as error:
                if _code(error) != "NoSuchKey":
                    raise
        self._cache.discard(name)

    def names(self, prefix: str) -> list[str]:
        directory = check_prefix(prefix, self.id).rpartition("/")[0]  # the client lists directories only
        with self._asked("list", prefix + "*"):
            found = [item["path"] for page in obstore.list(self._store, directory or None) for item in page]
        return sorted(name for name in found if name.startswith(prefix) and name != MARKER)

    # ---------- whose it is ----------
    def owner(self) -> str | None:
        with self._asked("read", MARKER):
            try:
                return bytes(obstore.get(self._store, MARKER).bytes()).decode("utf-8", "replace")
            except _NOT_FOUND as error:
                if _code(error) == "NoSuchBucket":
                    raise
                return None

    def make_owner(self, text: str) -> None:
        data = text.encode()
        with self._asked("write", MARKER):
            try:
                obstore.put(self._store, MARKER, data, mode="create")
            except AlreadyExistsError:
                return
            except BaseError as error:
                if _code(error) != "NotImplemented":  # some services have no conditions
                    raise
                obstore.put(self._store, MARKER, data)

    def close(self) -> None:
        """The client's connections go with it."""

    # ---------- the service ----------
    def _download(self, name: str, target: Path, make_room: Callable[[int], None]) -> None:
        with told("cache", name, self.id), self._asked("read", name):
            answer = obstore.get(self._store, name)
            make_room(answer.meta["size"])
            with target.open("wb") as file:
                for chunk in answer.stream(min_chunk_size=PART):  # an error if it ends early
                    file.write(chunk)

    @contextmanager
    def _asked(self, action: str, name: str) -> Iterator[None]:
        """Errors of the client within become ours; without their text and cause, which tell too much."""
        try:
            yield
        except (BaseError, *_NOT_FOUND) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of our own files
                raise
            raise self._error(error, action, name) from None

    def _error(self, error: Exception, action: str, name: str) -> KalamError:
        code = _code(error)
        if action == "read" and isinstance(error, _NOT_FOUND) and code != "NoSuchBucket":
            return missing(name, self.id)
        reason, hint = self._reason(str(error), code)
        return KalamError("58030", f'could not {action} segment file "{name}" of storage "{self.id}": {reason}',
                          hint=hint)

    def _reason(self, text: str, code: str | None) -> tuple[str, str | None]:
        """What went wrong, and what to do about it."""
        setting = f"storages.{self.id}"
        key = f'settings "{setting}.access_key_id" and "{setting}.secret_access_key"'
        if code == "NoSuchBucket":
            return (f'bucket "{self._settings.bucket}" does not exist',
                    f'Check settings "{setting}.bucket", "{setting}.region" and "{setting}.endpoint".')
        if self._settings.access_key_id is None and _METADATA.search(text):
            return "no credentials were found", f"Set {key}, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        status = _STATUS.search(text)
        if status is None:
            late = "Timeout" in text or "timed out" in text
            return (f"{self.location} {'gave no answer in time' if late else 'cannot be reached'}",
                    f'Check the network and setting "{setting}.endpoint". It was tried {RETRIES + 1} times.')
        answer = " ".join(filter(None, (status[1], code)))
        if status[1] in ("401", "403"):
            return f"access denied ({answer})", f"Check {key}, and what they may do."
        return f"the service answered {answer}", None


def _code(error: Exception) -> str | None:
    found = _CODE.search(str(error))
    return found[1] if found else None


def _client(settings: StorageSettings) -> S3Store:
    given: dict[str, Any] = {"prefix": settings.prefix, "region": settings.region, "endpoint": settings.endpoint}
    if settings.access_key_id is not None:
        # As options they would be mixed with what AWS variables of the environment say, such as AWS_SESSION_TOKEN.
        key = {"access_key_id": settings.access_key_id, "secret_access_key": settings.secret_access_key,
               "expires_at": None}
        given |= {"credential_provider": lambda: key, "skip_signature": False}
    return S3Store(
        settings.bucket, **{name: value for name, value in given.items() if value not in (None, "")},
        disable_bulk_delete=True,  # not every compatible service has it
        client_options={
            "allow_http": settings.allow_http, "connect_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT,
            "timeout": REQUEST_TIMEOUT,
        },
        retry_config={
            "max_retries": RETRIES, "retry_timeout": RETRY_TIMEOUT,
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
        },
    )
