"""Settings for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.requirements import Recorder

# Properties search anew in a long run; a short one is the same each time, and quick.
settings.register_profile("short", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=2000, deadline=None)
settings.load_profile("long" if os.environ.get("KINKD_LONG") else "short")


def pytest_configure(config: pytest.Config) -> None:
    if proofs := os.environ.get("KINKD_PROOFS"):
        config.pluginmanager.register(Recorder(Path(proofs)))
