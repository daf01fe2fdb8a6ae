"""What comes goes: after many cycles nothing is left of any of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support import observe, scenario
from tests.support.lab import Host, Lab
from tests.support.scenario import descriptors, initiate, settle, terminate

WARMING = 5  # cycles until all is there that will be
GROWTH = 4096
"""KiB that a kinkd may grow by: what it answered it remembers for ten minutes."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    """For each test: a host takes 1024 commands of another in ten minutes, and no more."""
    with Lab(("alice", "bob"), families=(4,)) as lab:
        lab.start()
        yield lab


@dataclass(frozen=True)
class Leftovers:
    """What a host's kernel and its kinkd have when nothing goes on."""

    states: observe.StateCount
    policies: int
    descriptors: int
    threads: int
    tasks: int
    pairs: int
    negotiating: int
    waiting: int

    @classmethod
    def of(cls, host: Host) -> Leftovers:
        """Read it."""
        status = host.ask("status")
        assert host.process is not None
        return cls(
            observe.count_states(host.node),
            len(host.policies()),
            descriptors(host),
            len(os.listdir(f"/proc/{host.process.pid}/task")),
            status["tasks"],
            status["sas"],
            status["negotiating"],
            status["waiting"],
        )


@pytest.mark.parametrize("count", [30, pytest.param(1000, marks=pytest.mark.long)])
def test_cycles_of_making_and_deleting_leave_nothing(lab: Lab, count: int):
    hosts = list(lab.hosts.values())
    cycles(lab, WARMING)
    before = [Leftovers.of(host) for host in hosts]
    memory = [scenario.rss(host) for host in hosts]
    cycles(lab, count)
    settle(lambda: [Leftovers.of(host) for host in hosts] == before)
    assert [Leftovers.of(host) for host in hosts] == before
    assert before[0].states == before[1].states == observe.StateCount(0, 0)
    growth = [scenario.rss(host) - old for host, old in zip(hosts, memory, strict=True)]
    scenario.note(f"{count} cycles of initiate, terminate", RSS=f"{growth[0]:+}/{growth[1]:+} KiB")
    assert max(growth) < GROWTH


def cycles(lab: Lab, count: int) -> None:
    """A pair made and deleted; by turns at the wish of one and of the other."""
    hosts = list(lab.hosts.values())
    for number in range(count):
        host, peer = hosts[number % 2], hosts[1 - number % 2]
        assert initiate(host, peer)
        assert terminate(host, peer) == 1
    settle(lambda: not any(host.states() for host in hosts))
