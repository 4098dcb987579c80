"""What the tests of storages share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.s3 import S3Service


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Service]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    service = S3Service(tmp_path_factory.mktemp("moto"))
    try:
        yield service
    finally:
        service.close()
