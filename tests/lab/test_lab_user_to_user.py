"""Persons: hosts that have a ticket-granting ticket from kinit, and no keytab (RFC 4430 §3.1)."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from kinkd.wire.numbers import MessageType
from tests.support import observe
from tests.support.lab import Host, Lab, wait_for


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """alice has a keytab; jane sits at bob, and john at carol."""
    people = {"bob": "jane", "carol": "john"}
    with Lab(("alice", "bob", "carol"), people=people, profile="standard") as lab:
        lab.start()
        yield lab


def tell(host: Host, peer: str) -> dict[str, object]:
    """What its kinkd has for a peer; printed for whoever looks."""
    (row,) = (row for row in host.ask("peers")["peers"] if row["peer"] == peer)
    (pair,) = (row for row in host.sas() if row["peer"] == peer)
    ticket = row["ticket"]
    print(
        f"{host.name} -> {peer}: role {pair['role']}, etype {pair['etype']}, {pair['suite']}"
        + (f", ticket for {ticket['server']} of {ticket['octets']} octets" if ticket else "")
        + (", user-to-user" if row["user_to_user"] else "")
    )
    print("  ", *(line for line in host.logged("sa-established")[-1:]))
    found: dict[str, object] = {**row, **pair}
    return found


def length_of(line: str) -> int:
    """The payload of a datagram, as tcpdump says."""
    return int(line.rpartition("length ")[2])


def test_a_host_keys_a_person(lab: Lab) -> None:
    lab["alice"].stop()
    lab["alice"].start()  # with no ticket for her
    with lab.capture("alice", "udp port 910") as pcap:
        assert lab["alice"].ping(lab["bob"], family=4).lost == 0
    found = tell(lab["alice"], "bob")
    assert (found["user_to_user"], found["role"]) == (True, "initiator")
    assert found["principal"] == "jane@EXAMPLE.TEST"
    text = lab.decode(pcap, lab["alice"].keytab)
    print(text)
    assert "KINK_TGT_REQ  name 'jane@EXAMPLE.TEST'" in text
    assert "KINK_TGT_REP" in text
    assert "a user-to-user ticket: only jane@EXAMPLE.TEST has its key" in text
    between = f"udp and host {lab['bob'].node.address(4)}"  # others tell of a new EPOCH meanwhile
    (asked,) = observe.read_capture(pcap, f"{between} and udp[8] = {MessageType.GETTGT:d}")
    given, *_ = observe.read_capture(pcap, f"{between} and udp[8] = {MessageType.REPLY:d}")
    assert length_of(given) <= length_of(asked) == 1400  # nobody is sent more than he sent


def test_a_person_keys_a_host(lab: Lab) -> None:
    lab.unkey("bob", "alice")
    assert lab["bob"].ping(lab["alice"], family=4).lost == 0
    found = tell(lab["bob"], "alice")
    assert (found["user_to_user"], found["role"]) == (False, "initiator")
    assert tell(lab["alice"], "bob")["role"] == "responder"


@pytest.mark.parametrize("family", [4, 6])
def test_a_person_keys_a_person(lab: Lab, family: int) -> None:
    assert lab["bob"].ping(lab["carol"], family=family, count=2).received >= 1
    found = tell(lab["bob"], "carol") if family == 4 else lab["bob"].sas()
    assert found


def test_who_has_logged_in_again_is_keyed_all_the_same(lab: Lab) -> None:
    """The ticket of before still does: its kinkd keeps the session key of the TGT of before."""
    lab["bob"].kinit()
    lab.unkey("alice", "bob")
    assert lab["alice"].ping(lab["bob"], family=4).lost == 0
    assert tell(lab["alice"], "bob")["user_to_user"] is True


def test_a_kinkd_that_lost_its_tgt_offers_the_new_one(lab: Lab) -> None:
    lab["bob"].kinit()
    lab["bob"].stop(signal.SIGKILL)
    lab["bob"].start()
    assert lab["alice"].ping(lab["bob"], family=4).lost == 0  # SAs have outlived it
    lab.unkey("alice", "bob")  # a DELETE under a ticket that nobody can open any more
    assert lab["bob"].counters()["tgt-offered"] >= 1
    assert lab["alice"].ping(lab["bob"], family=4).lost == 0
    tell(lab["alice"], "bob")


def test_who_has_no_ticket_any_more_gets_no_traffic(lab: Lab) -> None:
    """kdestroy: nothing is keyed, nothing leaks; kinit heals it."""
    path = lab["bob"].ccache.removeprefix("FILE:")
    lab["bob"].node.run("rm", path)
    lab.unkey("alice", "bob")
    with lab.capture("bob", "icmp") as pcap:
        assert lab["bob"].ping(lab["alice"], family=4, patience=2).received == 0
    assert not observe.read_capture(pcap)
    assert "run kinit jane" in lab["bob"].kinkctl("peers").stdout
    lab["bob"].kinit()
    wait_for(
        lambda: lab["bob"].ping(lab["alice"], family=4, patience=5).received == 1, "healed", 40
    )
