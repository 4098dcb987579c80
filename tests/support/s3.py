"""A real S3 service on this machine: moto's server as a process of its own, with one bucket."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.config import Config  # type: ignore[import-untyped]

from kalamdb.settings import StorageSettings
from support.ports import reserved_port

BUCKET = "history"
#: names in one answer to a listing
PAGE = 10


class S3Service:
    """Everybody is let in until ``require_credentials``. ``log`` has a line for each request."""

    access_key_id = "TESTKEYID0123456789"
    secret_access_key = "test/secret+0123456789"

    def __init__(self, directory: Path) -> None:
        self.log = directory / "moto.log"
        self._reserved = reserved_port()
        self.port: int = self._reserved.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=log, stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1", "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)},
            )
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, "the S3 service did not start"
            time.sleep(0.05)
        self.client().create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        self.stop()
        self._reserved.close()

    def require_credentials(self) -> None:
        """From now on only users of the service are let in, and there are none."""
        request = urllib.request.Request(
            self.endpoint + "/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(request, timeout=5).close()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint + "/moto-api/data.json", timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False
        return True

    def client(self) -> Any:
        """Another client than the one under test."""
        return boto3.client(
            "s3", endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key, config=Config(proxies={}, retries={"max_attempts": 1}),
        )

    def settings(self, **changes: Any) -> StorageSettings:
        given: dict[str, Any] = {
            "type": "s3", "bucket": BUCKET, "endpoint": self.endpoint, "allow_http": True,
            "access_key_id": self.access_key_id, "secret_access_key": self.secret_access_key,
        }
        return StorageSettings(**given | changes)

    def requests(self, method: str) -> Counter[str]:
        """How often each path was asked for."""
        text = re.sub(r"\x1b\[\d+m", "", self.log.read_text())
        return Counter(re.findall(rf'"{method} (/{BUCKET}[^ ?]*)\S* HTTP', text))

    def keys(self) -> list[str]:
        """Of the first page, without the marker that says whose the storage is."""
        found = self.client().list_objects_v2(Bucket=BUCKET).get("Contents", [])
        return [item["Key"] for item in found if not item["Key"].endswith("kalam.json")]
