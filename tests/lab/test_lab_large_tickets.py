"""Tickets of a person in thousands of groups: messages of 40 kB and more, in fragments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinkd.model import Principal
from tests.support import observe
from tests.support.lab import Lab, wait_for
from tests.support.large import write_ccache

PEOPLE = {"bob": "jane"}


def enlarge(lab: Lab, octets: int) -> None:
    """Jane's TGT, and so every ticket of hers, has so many octets more; her kinkd begins anew."""
    bob = lab["bob"]
    lab.unkey("bob", "alice")
    bob.stop()
    path = Path(bob.ccache.removeprefix("FILE:"))
    write_ccache(path, lab.realm, Principal.parse(bob.client), octets)
    bob.start()


@contextmanager
def disorder(lab: Lab, name: str) -> Iterator[None]:
    """What this host is sent comes late, and in another order."""
    wire = lab.topology.wire
    wire.run("tc", "qdisc", "add", "dev", name, "root", "netem", "delay", "20ms", "15ms")
    try:
        yield
    finally:
        wire.run("tc", "qdisc", "del", "dev", name, "root")


def key(lab: Lab, family: int) -> int:
    """A person keys a host; the octets of the ticket."""
    lab.unkey("bob", "alice")
    fragments = "udp port 910 or ip[6:2]&0x1fff!=0 or ip6[6]=44"
    with lab.capture("bob", fragments) as pcap:
        assert lab["bob"].ping(lab["alice"], family=family).lost == 0
    (ticket,) = (row["ticket"] for row in lab["bob"].ask("peers")["peers"])
    packets = len(observe.read_capture(pcap))
    (*_, said) = lab["bob"].logged("sa-established")
    print(
        f"{ticket['client']} -> {ticket['server']}, IPv{family}, MTU {lab.topology.mtu}: etype"
        f" {ticket['etype']}, ticket {ticket['octets']} octets, {packets} packets seen\n  {said}"
    )
    octets: int = ticket["octets"]
    return octets


@pytest.mark.parametrize("mtu", [1500, 1280])
def test_40_kilobytes_go_in_fragments(mtu: int) -> None:
    with Lab(("alice", "bob"), people=PEOPLE, mtu=mtu) as lab:
        lab.start()
        enlarge(lab, 40_000)
        assert key(lab, 4) > 40_000
        assert key(lab, 6) > 40_000
        with disorder(lab, "alice"):
            assert key(lab, 4) > 40_000
        wait_for(lambda: lab["bob"].logged("ticket-large") != [], "said")
        (said, *_) = lab["bob"].logged("ticket-large")
        print(f"  {said}")
        assert f"server={lab['alice'].principal}" in said
        if mtu == 1280:
            return
        enlarge(lab, 64_000)  # nearly all that UDP can hold
        assert key(lab, 4) > 64_000
        assert "message_octets=64776" in lab["bob"].logged("ticket-large")[-1]
        enlarge(lab, 66_000)
        assert lab["bob"].ping(lab["alice"], patience=2).received == 0
        (row,) = lab["bob"].ask("peers")["peers"]
        print(f"  {row['ticket_fault']}")
        assert "more than UDP can carry: have the KDC leave the PAC out" in row["ticket_fault"]
