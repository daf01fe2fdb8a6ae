"""The table of RFC 4430's statements is whole, and true as far as marks can tell."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from tests.support import requirements
from tests.support.requirements import LAYERS, STATUSES, TESTS

# Statements with MUST, SHOULD or MAY, by section.
SECTIONS = """
    3.1:1 3.2:9 3.3:5 3.5:6 3.6:3 3.7:10 3.7.1:2 4:14 4.1:2 4.2:3 4.2.1:2 4.2.2:1 4.2.3:4 4.2.4:3
    4.2.6:6 4.2.7:4 4.2.8:7 5:4 5.4:2 5.5:4 5.7:1 6:2 6.1:2 6.2:1 6.3:4 6.4:1 6.5:1 6.6:1 7:2 9:8
    12:3
"""
ROWS = requirements.statements()


def marked(*layers: str) -> set[str]:
    files = itertools.chain(*((TESTS / layer).rglob("test_*.py") for layer in layers))
    return {name for path in files for name in requirements.marks(path)}


def test_every_statement_has_one_row() -> None:
    sections = [entry.split(":") for entry in SECTIONS.split()]
    wanted = [f"4430-{name}-{n + 1}" for name, count in sections for n in range(int(count))]
    assert len(wanted) == 118
    assert [row.id for row in ROWS] == wanted


def test_a_row_has_a_few_words_a_status_and_a_reason_where_there_is_no_proof() -> None:
    for row in ROWS:
        assert 1 <= len(row.words.split()) <= 12, row
        assert row.status in STATUSES, row
        assert bool(row.why) == (row.status != "proven"), row


def test_what_is_proven_has_a_test_and_what_is_not_has_none() -> None:
    proven = {row.id for row in ROWS if row.status == "proven"}
    assert proven <= marked(*LAYERS), proven - marked(*LAYERS)
    everywhere = marked("")
    assert everywhere <= proven, everywhere - proven


def test_every_mark_is_written_out() -> None:
    """A mark made of anything but literals would escape the tests above."""
    for path in TESTS.rglob("test_*.py"):
        named = Counter(re.findall(r'"(4430-[0-9.]+-\d+)"', path.read_text()))
        assert path.name == "test_requirements.py" or named == Counter(requirements.marks(path))


def test_the_report_tells_what_ran_what_failed_and_what_did_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, *_ = [row for row in ROWS if row.status == "proven"]
    other = next(row for row in ROWS if row.status == "not applicable")
    monkeypatch.setattr(requirements, "statements", lambda: [first, second, other])
    lines = [f"{first.id}\tpair/t.py::t\t{outcome}" for outcome in ("passed", "failed", "passed")]
    proofs = requirements.read_proofs("\n".join(lines))
    assert requirements.summary(proofs).splitlines() == [
        "RFC 4430: 3 statements, 2 proven by tests, 1 not applicable",
        "  of those proven, 1 by layers that did not run",
        f"  NOT PROVEN: {first.id}, pair/t.py::t",
    ]
    text = requirements.whole(proofs)
    for part in ("FAILED pair/t.py::t", "its tests did not run", f"not applicable: {other.why}"):
        assert part in text
