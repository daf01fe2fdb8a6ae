"""The statements of RFC 4430: what stands for each, and which tests prove it.

``tests/data/rfc4430.tsv`` says of each statement, in our own words, whether it is proven or does
not apply. Tests name what they prove by ``@pytest.mark.rfc``. Where the
environment has KINKD_PROOFS, pytest appends to that file what passed, a line each, over as many
runs as there are layers; ``python -m tests.support.requirements FILE`` tells the result.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
TABLE = TESTS / "data" / "rfc4430.tsv"
LAYERS = ("unit", "pair", "realm")
"""Where a statement's proof has to be: layers that run everywhere, in moments."""
STATUSES = ("proven", "not applicable")


@dataclass(frozen=True, slots=True)
class Statement:
    """One row; ``why`` is empty where it is proven."""

    id: str
    words: str
    status: str
    why: str


def statements() -> list[Statement]:
    """The table, in the order of the RFC."""
    rows = TABLE.read_text().splitlines()[1:]
    found = []
    for row in rows:
        name, words, status = row.split("\t")
        status, _, why = status.partition(": ")
        found.append(Statement(name, words, status, why))
    return found


def marks(path: Path) -> Iterator[str]:
    """The statements that a test file's marks name, as they are written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.rfc":
            for argument in node.args:
                yield ast.literal_eval(argument)


class Recorder:
    """A pytest plugin: what passed and what failed of the tests that prove statements."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids: dict[str, list[str]] = {}
        self._lines: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            names = [name for mark in item.iter_markers("rfc") for name in mark.args]
            if names:
                self._ids[item.nodeid] = names

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or (report.when == "call" and report.passed):
            test = report.nodeid.partition("[")[0].removeprefix("tests/")
            for name in self._ids.get(report.nodeid, ()):
                self._lines.append(f"{name}\t{test}\t{report.outcome}\n")

    def pytest_sessionfinish(self) -> None:
        with self._path.open("a") as file:
            file.writelines(self._lines)


Proofs = dict[str, dict[str, bool]]
"""By statement: its tests, and whether every case of them passed."""


def read_proofs(text: str) -> Proofs:
    """What ``Recorder`` wrote."""
    found: Proofs = defaultdict(dict)
    for line in text.splitlines():
        name, test, outcome = line.split("\t")
        found[name][test] = found[name].get(test, True) and outcome == "passed"
    return found


def summary(proofs: Proofs) -> str:
    """How the statements stand, in a line or a few."""
    table = statements()
    count = {status: sum(s.status == status for s in table) for status in STATUSES}
    lines = [
        f"RFC 4430: {len(table)} statements, {count['proven']} proven by tests, "
        f"{count['not applicable']} not applicable"
    ]
    absent = sum(s.status == "proven" and s.id not in proofs for s in table)
    if absent:
        lines.append(f"  of those proven, {absent} by layers that did not run")
    for name, tests in proofs.items():
        lines += [f"  NOT PROVEN: {name}, {test}" for test, well in tests.items() if not well]
    return "\n".join(lines)


def whole(proofs: Proofs) -> str:
    """Every statement, and below it the tests that proved it or why there is none."""
    lines = []
    for each in statements():
        lines.append(f"{each.id:<16}{each.words}")
        if each.status != "proven":
            lines.append(f"{'':<18}{each.status}: {each.why}")
        elif each.id not in proofs:
            lines.append(f"{'':<18}its tests did not run")
        for test, well in sorted(proofs.get(each.id, {}).items()):
            lines.append(f"{'':<18}{'' if well else 'FAILED '}{test}")
    return "\n".join([*lines, "", summary(proofs)])


if __name__ == "__main__":
    *options, path = sys.argv[1:]
    tell = whole if options == ["--whole"] else summary
    print(tell(read_proofs(Path(path).read_text())))
