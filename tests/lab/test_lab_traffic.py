"""Two hosts, real ESP: keyed by the first packet, nothing in clear, nobody else's address."""

from __future__ import annotations

import itertools
import socket

import pytest

from tests.support import forge, observe
from tests.support.lab import Host, Lab
from tests.support.topology import Node

PORT = 7777
SECOND = "10.77.0.200"  # an address of bob that no policy knows
LATER_VERSION = bytes.fromhex("01200010 00000001 00000007 00000000")  # a CREATE of version 2
_sequence = itertools.count(1000)  # above what the kernel has used: no replay


def spis_told(host: Host) -> set[int]:
    return {int(row[end], 16) for row in host.sas() for end in ("spi_in", "spi_out")}


@pytest.mark.parametrize("family", [4, 6])
def test_the_first_packets_make_their_keys_and_none_is_lost_or_in_clear(lab: Lab, family: int):
    alice, bob = lab["alice"], lab["bob"]
    lab.unkey("alice", "bob")
    begun = alice.counters().get("acquired", 0)
    with lab.capture("alice") as pcap:
        result = alice.ping(bob, family=family, count=5)
    assert result.received == result.sent == 5
    assert alice.counters()["acquired"] == begun + 1
    ends = f"host {alice.node.address(family)} and host {bob.node.address(family)}"
    ip = "ip" if family == 4 else "ip6"
    assert len(observe.read_capture(pcap, f"{ends} and udp port 910")) == 2
    assert len(observe.read_capture(pcap, f"{ends} and {ip} proto 50")) == 10
    allowed = f"{ip} proto 50 or udp port 910 or arp or (icmp6 and ip6[40] > 134)"
    assert observe.read_capture(pcap, f"{ends} and not ({allowed})") == []


def test_kernel_and_kinkd_name_the_same_sas_pinned_to_the_address_pair(keyed: Lab):
    for host in (keyed["alice"], keyed["bob"]):
        states = host.states()
        assert {state.spi for state in states} == spis_told(host)
        assert len(states) == 2
        for state in states:
            assert state.selector == f"src {state.source}/32 dst {state.destination}/32"
            assert state.algorithms == {"aead": "rfc4106(gcm(aes))"}
            assert state.mode == "transport"


@pytest.mark.rfc("4430-7-1")
def test_the_decoder_derives_the_kernels_keys_from_capture_and_keytab(lab: Lab):
    lab.unkey("alice", "bob")
    with lab.capture("alice") as pcap:
        lab["alice"].ping(lab["bob"])
    derived = lab.derived_keymat(pcap, lab["bob"].keytab)
    for host in (lab["alice"], lab["bob"]):
        assert {state.spi: state.keymat for state in host.states()} == derived


def test_the_decoder_shows_no_key_unless_it_is_asked_to(lab: Lab):
    lab.unkey("alice", "bob")
    with lab.capture("alice") as pcap:
        lab["alice"].ping(lab["bob"])
    keys = [state.keymat[:-4].hex() for state in lab["alice"].states()]
    for options in ((), ("--json",)):
        silent = lab.decode(pcap, lab["bob"].keytab, *options)
        telling = lab.decode(pcap, lab["bob"].keytab, *options, "--show-keys")
        assert all(key not in silent and key in telling for key in keys)


@pytest.mark.parametrize("family", [4, 6])
def test_esp_with_a_forged_source_is_not_accepted(lab: Lab, family: int):
    alice, bob, carol = (lab[name] for name in ("alice", "bob", "carol"))
    if not carol.running:
        carol.start()
    assert carol.ping(bob, family=family).lost == 0
    target = bob.node.address(family)
    own = carol.node.address(family)
    sa = next(sa for sa in carol.states() if (sa.source, sa.destination) == (own, target))

    def send_as(source: forge.Address) -> bytes | None:
        receive = forge.receive_udp(bob.node, target, PORT)
        datagram = forge.udp_datagram(source, target, PORT, b"from %d" % int(source))
        forge.send_esp(
            *(carol.node, bob.node, sa),
            source=source,
            sequence=next(_sequence),
            datagram=datagram,
        )
        return receive(1)

    before = bob.node.xfrm_counters()["XfrmInStateMismatch"]
    assert send_as(own) == b"from %d" % int(own)  # well made: only the address is false below
    assert bob.node.xfrm_counters()["XfrmInStateMismatch"] == before
    assert send_as(alice.node.address(family)) is None
    assert bob.node.xfrm_counters()["XfrmInStateMismatch"] == before + 1


def test_clear_packets_of_a_host_that_must_protect_them_are_not_accepted(keyed: Lab):
    alice, bob = keyed["alice"], keyed["bob"]
    target, source = bob.node.ipv4, alice.node.ipv4
    before = bob.node.xfrm_counters()["XfrmInTmplMismatch"]
    receive = forge.receive_udp(bob.node, target, PORT)
    datagram = forge.udp_datagram(source, target, PORT, b"in clear")
    forge.send_clear(keyed["carol"].node, bob.node, source, target, datagram)
    assert receive(1) is None
    assert bob.node.xfrm_counters()["XfrmInTmplMismatch"] == before + 1


def ask_second_address(node: Node) -> tuple[bytes, tuple[str, int]]:
    def ask() -> tuple[bytes, tuple[str, int]]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.bind((str(node.ipv4), 0))
            s.settimeout(5)
            s.sendto(LATER_VERSION, (SECOND, 910))
            return s.recvfrom(65535)

    return node.python(ask)


def test_the_answer_comes_from_the_address_that_was_asked(lab: Lab):
    bob = lab["bob"].node
    bob.ip(f"addr add {SECOND}/24 dev eth0")
    try:
        datagram, sender = ask_second_address(lab["carol"].node)
    finally:
        bob.ip(f"addr del {SECOND}/24 dev eth0")
    assert sender == (SECOND, 910)
    assert datagram[0] == 3  # a REPLY: KINK_INVMAJ
    assert datagram[-4:] == bytes((0, 0, 0, 3))
