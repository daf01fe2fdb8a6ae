"""Traffic that is only requested to be protected: in clear where need be, and never again after."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from kinkd.app import protocol
from tests.support import observe, scenario
from tests.support.lab import Host, Lab, wait_for
from tests.support.oracle import Oracle

DOCUMENT = """
schema = 1
version = $version
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = $alice
[hosts.bob]
fqdn = "bob.example.test"
addresses = $bob
[[rules]]
name = "where it can be had"
from = "alice"
to = "bob"
action = "request"
"""
GUARD = (sys.executable, "-B", "-m", "kinkd.cli.kinkd", "guard", "--config")


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(document=DOCUMENT) as lab:
        lab.start()
        yield lab


def bare(host: Host) -> None:
    """It never had a kinkd, as far as its kernel knows."""
    host.stop(signal.SIGKILL)
    host.node.ip("xfrm state flush", "xfrm policy flush")


@pytest.fixture
def strangers(lab: Lab) -> Lab:
    """alice does not know yet whether bob can be keyed; he has no kinkd."""
    alice, bob = lab["alice"], lab["bob"]
    bare(bob)
    bare(alice)
    alice.start()
    protocol.ask(str(alice.socket), "forget", 10, peer="bob")
    return lab


@pytest.fixture
def secured(strangers: Lab) -> Lab:
    """They were keyed once, and then bob's kinkd and SAs went away."""
    alice, bob = strangers["alice"], strangers["bob"]
    bob.start()
    wait_for(lambda: bob.ping(alice).lost == 0 and bool(alice.states()), "keyed", 60)
    assert "bob" in state(alice)["secured"]  # type: ignore[operator]
    bare(bob)
    return strangers


def state(host: Host) -> dict[str, object]:
    return protocol.ask(str(host.socket), "policy", 10)


def pings(lab: Lab, family: int) -> observe.Ping:
    bob = lab["bob"].node.address(family)
    return observe.ping(lab["alice"].node, bob, count=4, interval=0.5, patience=3)


def in_clear(lab: Lab) -> int:
    """How many echo requests alice sends as they are; IPv4 and IPv6 alike."""
    alice, judge = lab["alice"], Oracle(lab.policy.read_text())
    with lab.capture("alice") as pcap:
        for family in (4, 6):
            pings(lab, family)
    counts = judge.judge(pcap, [alice.node.hardware_address()]).counts
    return counts["clear by where it can be had"]


def guard(host: Host) -> subprocess.CompletedProcess[str]:
    return host.node.run(*GUARD, host.config, check=False)


@pytest.mark.parametrize("family", [4, 6])
def test_a_peer_that_cannot_be_keyed_is_talked_to_in_clear(strangers: Lab, family: int):
    first = pings(strangers, family)
    later = pings(strangers, family)
    scenario.note(
        f"request, IPv{family}, peer without kinkd",
        first_packet=f"{first.rtts.get(1, -1):.0f} ms",
        later_ones_at_most=f"{max(later.rtts.values()):.0f} ms",
    )
    assert (first.lost, later.lost) == (0, 0)
    alice = strangers["alice"]
    assert str(strangers["bob"].node.address(family)) in state(alice)["in_clear"]  # type: ignore[operator]
    assert alice.logged("request-in-clear")
    assert alice.states() == []


def test_once_he_has_a_kinkd_he_is_keyed_by_what_goes_on(strangers: Lab):
    alice, bob = strangers["alice"], strangers["bob"]
    assert pings(strangers, 4).lost == 0
    bob.start()
    begun = time.monotonic()
    pinging = alice.node.popen("ping", "-n", "-i", "0.2", str(bob.node.ipv4))
    try:
        wait_for(lambda: bool(alice.states() and bob.states()), "keyed", 90)
        took = time.monotonic() - begun
        time.sleep(3)
        with strangers.capture("alice") as pcap:
            time.sleep(2)
    finally:
        pinging.send_signal(signal.SIGINT)
        result = observe.read_ping(pinging.communicate(timeout=20)[0])
    scenario.note(
        "request, the peer starts a kinkd", seconds_until_keyed=took, pings_lost=result.lost
    )
    judge = Oracle(strangers.policy.read_text())
    counts = judge.judge(pcap, [alice.node.hardware_address()]).counts
    assert counts["clear by where it can be had"] == 0
    assert counts["IPsec"] > 0
    assert result.lost == 0


def test_once_keyed_nothing_goes_in_clear_any_more_until_it_is_forgotten(secured: Lab):
    alice = secured["alice"]
    counts = {"peer gone": in_clear(secured)}
    alice.stop()
    counts["daemon stopped"] = in_clear(secured)
    alice.start()
    counts["restarted"] = in_clear(secured)
    bare(alice)
    done = guard(alice)
    counts["booted"] = in_clear(secured)
    alice.start()
    counts["started after boot"] = in_clear(secured)
    assert protocol.ask(str(alice.socket), "forget", 10, peer="bob")["known"] is True
    forgotten = in_clear(secured)
    scenario.note("request, once keyed: packets in clear", **counts, forgotten=forgotten)
    assert done.returncode == 0, done.stderr
    assert set(counts.values()) == {0}
    assert forgotten >= 8  # what the kernel still held goes out as well
    assert alice.logged("request-forgotten")


def test_a_boot_before_anything_was_keyed_lets_pass(strangers: Lab):
    alice = strangers["alice"]
    bare(alice)
    done = guard(alice)
    assert done.returncode == 0, done.stderr
    assert in_clear(strangers) == 8
    alice.start()
    assert pings(strangers, 4).lost == 0
