"""A network that loses, delays, reorders and repeats packets: keying goes on through it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import scenario
from tests.support.lab import Host, Lab, Rule
from tests.support.scenario import Scenario, initiate, terminate

PEERS = {"bob": "fast", "carol": "standard"}
ROUNDS = [15, pytest.param(100, marks=pytest.mark.long)]  # of IPv4 and IPv6 at once
AIM = 1000  # milliseconds, of p95 at 5 % loss
SLOW = 3
"""So much longer may it take in User-Mode Linux, beside other tests."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    rules = [Rule(profile, ("alice", name)) for name, profile in PEERS.items()]
    with Lab(("alice", *PEERS), rules=rules) as lab:
        lab.start()
        for peer in PEERS:  # tickets are fetched while the KDC can be reached
            assert all(initiate(*ends) for ends in by_turns(lab["alice"], lab[peer], 2))
        yield lab


def by_turns(one: Host, other: Host, count: int) -> Iterator[tuple[Host, Host]]:
    """Who initiates, and with whom: a host takes 1024 commands of another in ten minutes."""
    for number in range(count):
        yield (one, other) if number % 2 == 0 else (other, one)


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("percent", [5, 20])
def test_negotiations_where_packets_are_lost(lab: Lab, percent: int, rounds: int):
    """So many are lost each way; with a peer without KE, and with one with it, side by side."""
    alice = lab["alice"]
    begun = {peer: Counter(times(alice, lab[peer])) for peer in PEERS}
    with (
        lab.netem("alice", *PEERS, how=f"loss {percent}%"),
        ThreadPoolExecutor(len(PEERS)) as pool,
    ):
        assert all(pool.map(lambda peer: negotiations(alice, lab[peer], rounds), PEERS))
    for peer, profile in PEERS.items():
        took = sorted((Counter(times(alice, lab[peer])) - begun[peer]).elements())
        assert len(took) == 2 * rounds
        p95 = percentile(took, 95)
        scenario.note(
            f"{len(took)} negotiations, {percent} % lost each way, {profile}",
            p50=f"{percentile(took, 50):.0f} ms",
            p95=f"{p95:.0f} ms",
            max=f"{took[-1]:.0f} ms",
        )
        assert percent > 5 or p95 < AIM * SLOW


def negotiations(one: Host, other: Host, rounds: int) -> bool:
    """Make and delete, again and again; whether none failed."""
    good = True
    for host, peer in by_turns(one, other, rounds):
        terminate(host, peer)
        good = initiate(host, peer) and good
    return good


def times(one: Host, other: Host) -> list[float]:
    """Milliseconds that each negotiation of two hosts took so far, from the wish to the SA."""
    rows = [
        (peer.name, dict(word.split("=", 1) for word in line.split() if "=" in word))
        for host, peer in ((one, other), (other, one))
        for line in host.logged("sa-established")
    ]
    return [
        float(row["ms_total"])
        for peer, row in rows
        if (row["role"], row["peer"]) == ("initiator", peer)
    ]


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The least of the values that so many percent of them do not exceed."""
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


@pytest.mark.parametrize(
    ("peer", "count"),
    [
        ("carol", 5),
        pytest.param("bob", 50, marks=pytest.mark.long),
        pytest.param("carol", 50, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(
    "how",
    ["delay 100ms", "delay 10ms reorder 25% 50%", "duplicate 20%"],
    ids=["late", "out-of-order", "repeated"],
)
def test_rekeys_where_packets_are_late_out_of_order_or_repeated(
    lab: Lab, how: str, peer: str, count: int
):
    alice = lab["alice"]
    assert initiate(alice, lab[peer])  # both families, whatever came before
    with (
        lab.netem("alice", peer, how=how),
        Scenario(lab, f"{count} rekeys, {how} each way, {PEERS[peer]}", peer=peer, states=4) as s,
    ):
        for ends in by_turns(alice, lab[peer], count):
            assert initiate(*ends)
            time.sleep(0.1)
    assert s.figures.unharmed(states=4) == []
