"""What an earlier life left of a suspension, and what becomes of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kinkd.app import recovery
from kinkd.app.journal import Journal


@pytest.mark.parametrize(("read_at", "again_at"), [(1000, -100), (-90_000, -100)])
def test_a_suspension_that_a_start_found_over_does_not_come_back_with_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_at: int, again_at: int
) -> None:
    """NTP is in clear: who can set the clock back must not suspend enforcement by it."""
    end = 1_800_000_000
    journal = Journal(tmp_path / "journal.db")
    recovery.record_suspension(journal, end)
    monkeypatch.setattr(time, "time", lambda: float(end + read_at))
    assert recovery.recover_forms(journal).suspended_until == 0.0
    journal.close()
    journal = Journal(tmp_path / "journal.db")
    monkeypatch.setattr(time, "time", lambda: float(end + again_at))
    assert recovery.recover_forms(journal).suspended_until == 0.0
    journal.close()


def test_one_that_lasts_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal.db")
    recovery.record_suspension(journal, 1_800_000_000)
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0 - 60)
    for _ in range(2):
        assert recovery.recover_forms(journal).suspended_until == 1_800_000_000.0
    journal.close()
