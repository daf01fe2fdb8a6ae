"""A laboratory for each module: hosts with running daemons. Every test leaves them running."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.support import scenario
from tests.support.lab import Lab

SECONDS = {
    "test_demo.py": 90,
    "test_lab_algorithms.py": 90,
    "test_lab_badinput.py": 100,
    "test_lab_directory.py": 70,
    "test_lab_policy.py": 60,
    "test_lab_tunnel.py": 90,
    "test_scenario_network.py": 60,
    "test_scenario_rekeys.py": 90,
    "test_scenario_restarts.py": 70,
    "test_scenario_zones.py": 80,
}
"""How long the longest files take, about; the others half a minute."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where the environment has KINKD_PART, 1 or 2, leave the other half to another run."""
    part = os.environ.get("KINKD_PART")
    if part is None:
        return
    files = sorted(
        {item.path.name for item in items}, key=lambda name: (-SECONDS.get(name, 30), name)
    )
    load, taken = {"1": 0, "2": 0}, {"1": set[str](), "2": set[str]()}
    for name in files:
        least = min(load, key=lambda each: load[each])
        load[least] += SECONDS.get(name, 30)
        taken[least].add(name)
    items[:] = [item for item in items if item.path.name in taken[part]]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure goes what the daemons said last."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        for host in lab.hosts.values():
            report.sections.append((f"log of {host.name}", host.log()[-6000:]))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was measured is for everyone to see, not only where something failed."""
    if scenario.MEASURED:
        terminalreporter.section("what the scenarios measured")
        terminalreporter.write_line(scenario.table())


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """alice, bob and carol; kinkd runs on alice and bob."""
    with Lab(("alice", "bob", "carol")) as lab:
        lab.start("alice", "bob")
        yield lab


@pytest.fixture
def keyed(lab: Lab) -> Lab:
    """The laboratory with one SA pair between alice and bob, IPv4."""
    lab.unkey("alice", "bob")
    assert lab["alice"].ping(lab["bob"]).lost == 0
    return lab
