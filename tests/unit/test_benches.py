"""The benchmarks speak of the code as it is."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHES = sorted((Path(__file__).resolve().parents[1] / "bench").glob("*.py"))


@pytest.mark.parametrize("path", BENCHES, ids=lambda path: path.stem)
def test_a_benchmark_can_be_loaded(path: Path) -> None:
    assert callable(importlib.import_module(f"tests.bench.{path.stem}").main)
