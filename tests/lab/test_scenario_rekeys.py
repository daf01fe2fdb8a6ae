"""Rekeys under traffic: new SAs before the old ones go, and no packet notices (RFC 4430 §3.6)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from kinkd.policy.profiles import MINIMUM_LIFETIME, MINIMUM_VOLUME
from tests.support import observe
from tests.support.lab import Host, Lab, Rule, wait_for
from tests.support.scenario import ClearPackets, Scenario, initiate

PROFILES = f"""
[profiles.small]
suites = ["aes256gcm16"]
volume = "{MINIMUM_VOLUME >> 20}MiB"
group = "none"
[profiles.small-with-ke]
suites = ["aes256gcm16"]
volume = "{MINIMUM_VOLUME >> 20}MiB"
[profiles.brief]
suites = ["aes256gcm16"]
lifetime = "{MINIMUM_LIFETIME}s"
group = "none"
"""
PEERS = {"bob": "small", "carol": "small-with-ke", "dave": "brief"}
FILLING = 400_000  # octets a second: a volume is full after two seconds and a half


def counts(few: int, many: int = 50) -> list[object]:
    """Few in a short run, many in a long one."""
    return [few, pytest.param(many, marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """alice, and a peer for each profile."""
    rules = [Rule(profile, ("alice", name)) for name, profile in PEERS.items()]
    with Lab(("alice", *PEERS), families=(4,), rules=rules, profiles=PROFILES) as lab:
        lab.start()
        yield lab


class Passing:
    """Traffic with dave beside all other tests of this file: SAs take half a minute to age."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._stack = ExitStack()
        self._begun: int | None = None
        self.begin()

    def begin(self) -> int:
        """Go on, or begin anew; how many pairs there were since."""
        alice, dave = self._lab["alice"], self._lab["dave"]
        if self._begun is None:
            self._scenario = self._stack.enter_context(Scenario(self._lab, "", "alice", "dave"))
            self._begun = made(alice, dave)
        return made(alice, dave) - self._begun

    def end(self, what: str) -> Scenario:
        """Enough."""
        self._scenario.what = what
        self._stack.close()
        self._begun = None
        return self._scenario

    def leave(self) -> None:
        """Nobody asked for its figures."""
        if self._begun is not None:
            self.end("brief, beside others")


@pytest.fixture(scope="module", autouse=True)
def passing(lab: Lab) -> Iterator[Passing]:
    passing = Passing(lab)
    yield passing
    passing.leave()


def made(one: Host, other: Host, cause: str = "") -> int:
    """How many pairs two hosts have made at the wish of either, or for one cause alone."""
    return sum(
        f"peer={peer.name}" in words and any(word.startswith(f"cause={cause}") for word in words)
        for host, peer in ((one, other), (other, one))
        for words in map(str.split, host.logged("sa-established"))
    )


def rekeyed(one: Host, other: Host, count: int, seconds: float) -> list[str]:
    """Wait for so many pairs; what is wrong where an SA had to end before."""
    begun, rekeys = made(one, other), made(one, other, "rekey")
    wait_for(lambda: made(one, other) - begun >= count, f"{count} rekeys", seconds)
    others = (made(one, other) - begun) - (made(one, other, "rekey") - rekeys)
    return [f"{others} pairs that were no rekeys"] if others else []


def test_the_capture_sees_what_goes_in_clear(lab: Lab):
    """Of the KDC no rule speaks: what the scenarios look for is seen where it is."""
    alice, kdc = lab["alice"].node, lab.topology["kdc"]
    with ClearPackets(lab, alice, kdc) as capture:
        alice.run("ping", "-n", "-c", "3", "-i", "0.01", str(kdc.ipv4))
        alice.run("ping", "-n", "-c", "2", "-i", "0.01", str(kdc.ipv6))
    assert len(capture.packets) == 10


def test_larval_sas_are_counted_apart(lab: Lab):
    kdc = lab.topology["kdc"]
    address = lab["alice"].node.ipv4
    kdc.ip(
        f"xfrm state allocspi src {address} dst {kdc.ipv4} proto esp mode transport"
        " reqid 1 min 0x1000 max 0x1000",
        f"xfrm state add src {kdc.ipv4} dst {address} proto esp spi 0x1001 mode transport"
        f" reqid 1 aead rfc4106(gcm(aes)) 0x{'11' * 20} 128",
    )
    assert observe.count_states(kdc) == observe.StateCount(keyed=1, larval=1)
    assert observe.count_states(kdc, kdc.ipv4, address) == observe.StateCount(keyed=1, larval=1)
    assert observe.count_states(kdc, address) == observe.StateCount(keyed=0, larval=0)
    kdc.ip("xfrm state flush")


@contextmanager
def side_by_side(lab: Lab, what: str, **more: Any) -> Iterator[list[Scenario]]:
    """Traffic with the peer without KE, and with the one with it."""
    with ExitStack() as stack:
        scenarios = [
            stack.enter_context(Scenario(lab, f"{what}, {PEERS[peer]}", "alice", peer, **more))
            for peer in ("bob", "carol")
        ]
        yield scenarios
        for scenario in scenarios:
            scenario.stop()


@pytest.mark.parametrize("count", counts(10))
def test_rekeys_one_after_the_other(lab: Lab, count: int):
    with side_by_side(lab, f"{count} rekeys") as scenarios:
        for _ in range(count):
            assert all(initiate(s.host, s.peer) for s in scenarios)
    assert [fault for s in scenarios for fault in s.figures.unharmed()] == []


def rekeys_by_octets(lab: Lab, count: int, way: str, *, upload: bool) -> list[str]:
    """What is wrong with them."""
    with (
        side_by_side(
            lab, f"{count} rekeys by octets {way}", upload=upload, rate=FILLING
        ) as scenarios,
        ThreadPoolExecutor(len(scenarios)) as pool,
    ):
        waits = [pool.submit(rekeyed, s.host, s.peer, count, 20 + 10 * count) for s in scenarios]
        faults = [fault for wait in waits for fault in wait.result()]
    return faults + [fault for s in scenarios for fault in s.figures.unharmed()]


@pytest.mark.parametrize("count", counts(3))
def test_rekeys_by_octets_sent(lab: Lab, count: int):
    assert rekeys_by_octets(lab, count, "sent", upload=True) == []


@pytest.mark.parametrize("count", counts(3))
def test_rekeys_by_octets_received(lab: Lab, count: int):
    """The initiator's inbound SA is what fills."""
    assert rekeys_by_octets(lab, count, "received", upload=False) == []


@pytest.mark.parametrize("count", counts(3))
def test_rekeys_by_time(lab: Lab, passing: Passing, count: int):
    left = count - passing.begin()
    faults = rekeyed(lab["alice"], lab["dave"], left, MINIMUM_LIFETIME * count)
    scenario = passing.end(f"{count} rekeys by time, {PEERS['dave']}")
    assert faults + scenario.figures.unharmed() == []
