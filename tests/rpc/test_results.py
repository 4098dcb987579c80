"""Results as bytes: what the protocol's lengths cannot say is an error of the statement."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kalamdb import types
from kalamdb.api import Column, Result
from kalamdb.errors import KalamError
from kalamdb.rpc import results

TEXT = Column("v", types.TEXT)


class Huge(bytes):
    """A value whose bytes are said to be so many."""

    def __len__(self) -> int:
        return 1 << 31


def test_a_value_that_is_too_large() -> None:
    encode = results._with_length(lambda _: Huge())
    with pytest.raises(KalamError) as caught:
        encode(None)
    assert caught.value.sqlstate == "54000"


def test_a_row_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_MOST", 1000)
    assert results.data_rows((TEXT, TEXT), (), [("x" * 490, "y" * 490)])
    for row in (("x" * 500, "y" * 500), ("x" * 1001, None)):
        with pytest.raises(KalamError, match="larger than the protocol takes") as caught:
            results.data_rows((TEXT, TEXT), (), [("small", None), row])
        assert caught.value.sqlstate == "54000"


def test_a_batch_that_is_too_large() -> None:
    batch: Any = SimpleNamespace(serialize=lambda: SimpleNamespace(size=(1 << 31) - 9))
    with pytest.raises(KalamError) as caught:
        results.arrow_rows(Result("SELECT 1", columns=(TEXT,), batches=[batch]))
    assert caught.value.sqlstate == "54000"
