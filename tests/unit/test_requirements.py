"""The statements of RFC 4430 that tests say they prove are statements of RFC 4430."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
KNOWN = set((TESTS / "data" / "rfc4430-ids.txt").read_text().split())


def test_every_mark_names_a_statement() -> None:
    named = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r'"(4430-[0-9a-z.]+-\d+)"', path.read_text())
    }
    assert len(KNOWN) == 118
    assert named
    assert not named - KNOWN
