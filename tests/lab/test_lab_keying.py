"""A profile with AES-CBC and a short life, and a host with more than one address."""

from __future__ import annotations

import socket

import pytest

from tests.support.lab import Lab, wait_for
from tests.support.topology import Node

SHORT = """
[profiles.short]
suites = ["aes128-sha256"]
lifetime = "30s"
group = "none"
"""
SECOND = "10.77.0.200"  # an address of bob that no policy knows
LATER_VERSION = bytes.fromhex("01200010 00000001 00000007 00000000")  # a CREATE of version 2


def test_a_pair_is_replaced_before_it_ends_and_no_packet_is_lost():
    with Lab() as lab:
        lab.policy.write_text(lab.policy_text(profile="short") + SHORT)
        lab.start()
        alice, bob = lab["alice"], lab["bob"]
        assert alice.ping(bob).lost == 0
        (first,) = alice.sas()
        assert (first["suite"], first["lifetime_seconds"]) == ("aes128-sha256", 30)
        assert alice.ping(bob, count=140, interval=0.2, patience=60).lost == 0
        wait_for(lambda: len(alice.sas()) == len(bob.sas()) == 1, "one pair is left")
        (second,) = alice.sas()
        assert second["spi_in"] != first["spi_in"]
        assert second["role"] == "initiator"


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
    device = bob.run("ip", "-o", "-4", "addr", "show", "to", str(bob.ipv4)).stdout.split()[1]
    bob.run("ip", "addr", "add", f"{SECOND}/24", "dev", device)
    try:
        datagram, sender = ask_second_address(lab["carol"].node)
    finally:
        bob.run("ip", "addr", "del", f"{SECOND}/24", "dev", device)
    assert sender == (SECOND, 910)
    assert datagram[0] == 3  # a REPLY: KINK_INVMAJ
    assert datagram[-4:] == bytes((0, 0, 0, 3))


def profile_of(*suites: str) -> str:
    return f"\n[profiles.own]\ngroup = 'none'\nsuites = {list(suites)}\n"


def test_hosts_that_prefer_differently_agree_in_three_messages():
    with Lab() as lab:
        alice, bob = lab["alice"], lab["bob"]
        text = lab.policy_text(profile="own")
        lab.policy.write_text(text + profile_of("aes256gcm16", "aes128-sha256"))
        other = lab.directory / "other.toml"
        other.write_text(text + profile_of("aes128-sha256"))
        bob.configure(policy=other)
        lab.start()
        with lab.capture("alice") as pcap:
            assert alice.ping(bob, count=3).lost == 0
        assert [sa["suite"] for sa in (*alice.sas(), *bob.sas())] == ["aes128-sha256"] * 2
        decoded = lab.decode(pcap, bob.keytab, "--show-keys")
        assert [kind for kind in ("CREATE(1)", "REPLY(3)", "ACK(5)") if kind in decoded] == [
            "CREATE(1)",
            "REPLY(3)",
            "ACK(5)",
        ]
        assert "ackreq 1" in decoded
        assert all(state.keys["enc"].hex() in decoded for state in alice.states())
        assert {s.spi for s in alice.states()} == {s.spi for s in bob.states()}


def test_the_default_profile_has_forward_secrecy():
    with Lab(profile="standard") as lab:
        alice, bob = lab["alice"], lab["bob"]
        lab.start()
        with lab.capture("alice") as pcap:
            assert alice.ping(bob, family=4, count=3).lost == 0
            # The first echo may reach bob before the ACK, and the kernel does not hold its own
            # ICMPv6 answers for want of an SA as it holds all else.
            assert alice.ping(bob, family=6, count=3).lost <= 1
        assert [sa["suite"] for sa in (*alice.sas(), *bob.sas())] == ["aes256gcm16"] * 4
        decoded = lab.decode(pcap, bob.keytab)
        assert decoded.count("GROUP_DESCRIPTION(3) = 19") == 2 * (2 + 1)  # two offered, one taken
        assert decoded.count("ACK(5)") == 2
        keys = {state.spi: state.keymat for state in alice.states()}
        assert keys == {state.spi: state.keymat for state in bob.states()}


@pytest.mark.parametrize(
    ("name", "esn"), [("chacha20poly1305", True), ("aes256-sha512", True), ("null-sha256", False)]
)
def test_daemons_key_the_suite_of_a_profile_and_the_decoder_agrees_on_the_keys(
    name: str, esn: bool
) -> None:
    profile = f'\n[profiles.one]\nsuites = "{name}"\ngroup = "none"\nesn = {str(esn).lower()}\n'
    with Lab() as lab:
        lab.policy.write_text(lab.policy_text(profile="one") + profile)
        lab.start("alice", "bob")
        alice, bob = lab["alice"], lab["bob"]
        with lab.capture("alice") as pcap:
            assert alice.ping(bob, count=3).lost == 0
        assert [sa["suite"] for sa in (*alice.sas(), *bob.sas())] == [name, name]
        for host in (alice, bob):
            shown = host.node.run("ip", "-d", "xfrm", "state").stdout
            assert shown.count("flag esn") == (2 if esn else 0)
            assert {sa.packets for sa in host.states()} == {3}
        derived = lab.derived_keymat(pcap, bob.keytab)
        assert derived == {state.spi: state.keymat for state in alice.states()}
