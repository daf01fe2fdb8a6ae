"""``kinkctl explain`` where something real is in the way, and where nothing is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kinkd.kerberos.keytab import read_keytab
from tests.support.lab import Host, Lab, wait_for

SILENCE = 60.0  # seconds in which a whole cycle of retransmissions has passed


pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(("alice", "bob", "carol"), families=(4,)) as lab:
        lab.start()
        yield lab


def explained(host: Host, *asked: str) -> dict[str, Any]:
    """What kinkctl explains on a host."""
    done = host.kinkctl("explain", "--json", "--config", str(host.config), *asked)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def foreign_policy(host: Host, *what: str) -> Iterator[None]:
    """Meanwhile another program has an SPD entry in the kernel of a host."""
    host.node.run("ip", "xfrm", "policy", "add", *what, "priority", "5", "action", "block")
    try:
        yield
    finally:
        host.node.run("ip", "xfrm", "policy", "delete", *what)


def test_all_is_well_and_every_fact_is_told(lab: Lab) -> None:
    alice, bob = lab["alice"], lab["bob"]
    assert alice.ping(bob).lost == 0
    found = explained(alice, "alice", "bob", "icmp")
    assert found["cause"] == "all-well"
    (way,) = found["asked"]
    line = lab.policy_text().splitlines().index("[[rules]]") + 1
    assert (way["rule"], way["place"]) == ("1", f"{lab.policy}:{line}")
    seen = found["seen"]
    (sa,) = seen["sas"]
    assert sa["packets_in"] > 0
    assert int(sa["spi_out"], 16) in {state.spi for state in bob.states()}
    keys = read_keytab(bob.keytab.read_bytes())
    assert seen["ticket"]["kvno"] in {key.kvno for key in keys}
    own = {key.kvno for key in read_keytab(alice.keytab.read_bytes())}
    assert {key["kvno"] for key in seen["keytab"]["keys"]} == own
    assert seen["spd_out"]["ours"]
    assert f"dst {bob.node.ipv4}/32" in seen["spd_out"]["entry"]
    text = alice.kinkctl("explain", "--config", str(alice.config), "alice", "bob").stdout
    assert text.startswith("All is well: SAs with bob are up;")


def test_from_the_other_side_it_is_the_same_and_a_third_host_has_seen_nothing(lab: Lab) -> None:
    alice, bob, carol = lab["alice"], lab["bob"], lab["carol"]
    assert alice.ping(bob).lost == 0
    assert explained(bob, str(alice.node.ipv4), str(bob.node.ipv4))["cause"] == "all-well"
    found = explained(carol, "alice", "bob")
    assert (found["cause"], found["seen"]["peer"]) == ("document-only", None)


def test_an_spd_entry_of_other_software_is_named(lab: Lab) -> None:
    alice, bob = lab["alice"], lab["bob"]
    ends = ("src", f"{alice.node.ipv4}/31", "dst", f"{bob.node.ipv4}/32")
    with foreign_policy(alice, *ends, "dir", "out"):
        found = explained(alice, "alice", "bob")
    assert found["cause"] == "foreign-spd-entry"
    assert "priority 5 block" in found["text"]
    assert explained(alice, "alice", "bob")["cause"] != "foreign-spd-entry"


def test_esp_that_is_dropped_on_the_way_is_told_from_a_peer_that_is_silent(lab: Lab) -> None:
    alice, bob = lab["alice"], lab["bob"]
    lab.unkey("alice", "bob")
    with lab.without_esp("bob"):
        assert alice.ping(bob, count=3, patience=3).received == 0
        found = explained(alice, "alice", "bob")
    assert found["cause"] == "nothing-comes-in", found
    lab.unkey("alice", "bob")
    assert alice.ping(bob).lost == 0


def test_a_kdc_that_cannot_be_reached(lab: Lab) -> None:
    alice, carol = lab["alice"], lab["carol"]
    assert explained(alice, "alice", "carol")["cause"] == "not-tried"
    alice.stop()  # with its tickets: it got them when it told peers of its new life
    lab.realm.stop()
    try:
        alice.start()
        alice.ping(carol, patience=3)
        wait_for(lambda: bool(alice.logged("ticket-unavailable")), "the KDC is missed", SILENCE)
        found = explained(alice, "alice", "carol")
    finally:
        lab.realm.start()
    assert found["cause"] == "kdc-unreachable", found
    assert found["seen"]["kernel_waits_for_sa"]


def test_a_peer_whose_kinkd_does_not_run(lab: Lab) -> None:
    alice, bob = lab["alice"], lab["bob"]
    assert alice.ping(bob).lost == 0  # there is a ticket
    lab.unkey("alice", "bob")
    before = len(alice.logged("create-failed"))
    bob.stop()
    alice.ping(bob, patience=2)
    wait_for(lambda: len(alice.logged("create-failed")) > before, "alice gives up", SILENCE)
    assert explained(alice, "alice", "bob")["cause"] == "peer-silent"
    found = explained(bob, "alice", "bob")
    assert found["cause"] == "document-only"
    assert "is it running?" in found["daemon"]
    bob.start()
    assert alice.ping(bob, patience=60).lost == 0
