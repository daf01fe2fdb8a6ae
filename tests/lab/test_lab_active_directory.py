"""Hosts of an Active Directory domain: machine accounts, PACs, RC4-encrypted tickets (Samba)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from tests.support import observe
from tests.support.lab import Lab, wait_for
from tests.support.samba import AES, SambaRealm

pytestmark = pytest.mark.long

GROUPS = 600  # a PAC has 8 octets for each; Samba takes its time over more


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(("alice", "bob"), kind=SambaRealm, profile="standard") as lab:
        lab.start()
        yield lab


def domain(lab: Lab) -> SambaRealm:
    return cast(SambaRealm, lab.realm)


def key(lab: Lab, family: int = 4) -> tuple[str, list[int]]:
    """A new pair, asked for with a new ticket: what the decoder says, and the sizes."""
    alice, bob = lab["alice"], lab["bob"]
    lab.unkey("alice", "bob")
    alice.stop()  # a ticket of before dies with it
    alice.start()
    with lab.capture("alice", "udp port 910 or ip[6:2]&0x1fff!=0 or ip6[6]=44") as pcap:
        # A domain controller takes its time over thousands of groups.
        assert any(alice.ping(bob, family=family).lost == 0 for _ in range(9))
    text = lab.decode(pcap, bob.keytab)
    whole = [line for line in text.splitlines() if line.startswith("  version ")]
    sizes = [int(line.split("length ")[1].split()[0]) for line in whole]
    (ticket,) = (row["ticket"] for row in alice.ask("peers")["peers"])
    line = next(line for line in text.splitlines() if "AP-REQ  options" in line)
    print(f"{ticket['client']} -> {ticket['server']}, session key etype {ticket['etype']}")
    packets = len(observe.read_capture(pcap))
    print(f"  IPv{family}, ticket {ticket['octets']} octets, messages {sizes}, {packets} packets")
    print(f"  {line.strip()}")
    print(f"  {alice.logged('sa-established')[-1]}")
    return line, sizes


def test_as_active_directory_makes_them_tickets_are_encrypted_in_rc4(lab: Lab) -> None:
    line, sizes = key(lab)
    assert "etype 23" in line
    assert max(sizes) > 1400  # a PAC is in it
    (pair,) = lab["bob"].sas()
    assert pair["etype"] == 18
    assert pair["principal"] == "ALICE$@EXAMPLE.TEST"
    lab.unkey("bob", "alice")
    assert lab["bob"].ping(lab["alice"], family=4).lost == 0  # and the other way


def test_with_aes_after_the_account_says_so(lab: Lab) -> None:
    domain(lab).set_encryption("BOB$", AES)
    lab["bob"].keytab.unlink()
    domain(lab).export(lab["bob"].keytab, "kink/bob.example.test", "BOB$")
    line, _ = key(lab)
    assert "etype 18" in line


def test_a_machine_in_very_many_groups(lab: Lab) -> None:
    """Its PAC goes in fragments, over both address families; the ticket is named."""
    domain(lab).join_groups("ALICE$", GROUPS)
    for family in (4, 6):
        _, sizes = key(lab, family)
        assert max(sizes) > 5_000
    (said, *_) = lab["alice"].logged("ticket-large")
    print(f"  {said}")
    assert "kink/bob.example.test@EXAMPLE.TEST" in said


def test_fragments_may_come_late_and_in_any_order(lab: Lab) -> None:
    wire = lab.topology.wire
    wire.run("tc", "qdisc", "add", "dev", "bob", "root", "netem", "delay", "30ms", "20ms")
    try:
        _, sizes = key(lab)
    finally:
        wire.run("tc", "qdisc", "del", "dev", "bob", "root")
    assert max(sizes) > 5_000


def test_a_service_that_wants_no_pac_gets_small_tickets(lab: Lab) -> None:
    domain(lab).set_no_pac("BOB$")
    key(lab)
    (ticket,) = (row["ticket"] for row in lab["alice"].ask("peers")["peers"])
    assert ticket["octets"] < 500
    wait_for(lambda: lab["bob"].sas() != [], "keyed")


def test_small_links_will_do() -> None:
    with Lab(("alice", "bob"), kind=SambaRealm, mtu=1280) as lab:
        lab.start()
        for family in (4, 6):
            _, sizes = key(lab, family)
            assert max(sizes) > 1280
