"""Fixtures of the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from engine.rig import Runner

settings.register_profile("engine", deadline=None, max_examples=60,
                          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def run(tmp_path: Path) -> Runner:
    return Runner(tmp_path)
