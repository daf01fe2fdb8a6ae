"""Hosts whose documents differ come to terms, and what they made is replaced before it ends."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import observe
from tests.support.lab import Lab, Rule, wait_for
from tests.support.topology import BRIDGE

SHORT = """
[profiles.short]
suites = ["aes128-sha256"]
lifetime = "30s"
group = "none"
[profiles.bundle]
suites = ["ah-sha256+aes128-sha256"]
lifetime = "30s"
group = "none"
"""


def test_pairs_are_replaced_before_they_end_and_no_packet_is_lost():
    """Between gateways, in transport mode and of a bundle, all at once: it takes their life."""
    rules = (
        Rule("short", ("alice", "bob"), "tunnel"),
        Rule("short", ("alice", "carol")),
        Rule("bundle", ("bob", "carol")),
    )
    names = ("alice", "bob", "carol")
    with Lab(names, gateways=names[:2], rules=rules, profiles=SHORT) as lab:
        lab.start()
        alice, bob, carol = (lab[name].node for name in names)
        left, right = lab.behind["alice"], lab.behind["bob"]
        ways = [(left, right.ipv4), (left, right.ipv6), (alice, carol.ipv4), (bob, carol.ipv6)]
        assert [observe.ping(source, target).lost for source, target in ways] == [0] * 4
        first = {name: lab[name].sas() for name in names}
        assert {row["lifetime_seconds"] for rows in first.values() for row in rows} == {30}
        with ThreadPoolExecutor(len(ways)) as pool:
            results = pool.map(lambda way: observe.ping(*way, count=140, patience=60), ways)
            assert [result.lost for result in results] == [0] * 4
        wait_for(lambda: all(len(lab[name].sas()) == len(first[name]) for name in names), "rekeyed")
        for name in names:
            old = {row["spi_in"] for row in first[name]}
            assert old.isdisjoint(row["spi_in"] for row in lab[name].sas())
        assert {row["role"] for row in lab["alice"].sas()} == {"initiator"}


OWN = """
[profiles.suites]
suites = [{suites}]
group = "none"
[profiles.groups]
suites = ["aes256gcm16"]
group = [{groups}]
[profiles.numbers]
suites = ["aes256-sha256"]
group = "none"
esn = {esn}
[profiles.both]
suites = ["aes256gcm16"]
group = [{groups}]
esn = {esn}
"""
MORE = {
    "suites": '"aes256gcm16", "aes128-sha256"',
    "groups": '"ecp256", "none"',
    "esn": '"try"',
}
OTHER_SUITES = {**MORE, "suites": '"aes128-sha256"'}
LESS = {**MORE, "groups": '"none"', "esn": "false"}
DIFFERING = (
    Rule("suites", ("alice", "bob")),
    Rule("groups", ("alice", "carol")),
    Rule("numbers", ("alice", "dave")),
    Rule("both", ("bob", "dave")),
    Rule("standard", ("bob", "carol")),
)


@dataclass(frozen=True)
class Differing:
    """The laboratory, whose hosts read documents that differ."""

    lab: Lab

    def key(self, one: str, other: str) -> tuple[Path, list[str]]:
        """Ping, by IPv4; the capture, and what of KINK it has, a text for every message.

        Each message once, and none of commands other than CREATE.
        """
        lab = self.lab
        with lab.capture(BRIDGE) as pcap:
            assert lab[one].ping(lab[other], count=3).lost == 0
        text = lab.decode(pcap, lab[other].keytab)
        blocks = re.split(r"^(?=\+\d)", text, flags=re.MULTILINE)
        assert {s.spi: s.keymat for s in lab.states_between(one, other)} == {
            s.spi: s.keymat for s in lab.states_between(other, one)
        }
        found: dict[tuple[str, str], str] = {}
        for block in blocks:
            if match := re.search(r"(CREATE|REPLY|ACK)\(\d\).*? xid (\w+)", block, re.DOTALL):
                found.setdefault((match[1], match[2]), block)
        ours = {xid for kind, xid in found if kind == "CREATE"}
        return pcap, [block for (_, xid), block in found.items() if xid in ours]


@pytest.fixture(scope="module")
def differing() -> Iterator[Differing]:
    names = ("alice", "bob", "carol", "dave")
    with Lab(names, rules=DIFFERING, profiles=OWN.format(**MORE)) as lab:
        for name, document in (("bob", OTHER_SUITES), ("carol", LESS), ("dave", LESS)):
            path = lab.directory / f"{name}.toml"
            path.write_text(lab.policy_text(profiles=OWN.format(**document)))
            lab[name].configure(policy=path)
        lab.start()
        yield Differing(lab)


def kinds(messages: list[str]) -> list[str]:
    found = [re.search(r"(CREATE|REPLY|ACK)\(\d\)", message) for message in messages]
    return [match[1] for match in found if match]


def esn_in_kernels(lab: Lab, *names: str) -> set[bool]:
    return {sa.esn for sa in lab.states_between(*names)}


def test_hosts_that_prefer_differently_agree_in_three_messages(differing: Differing):
    pcap, messages = differing.key("alice", "bob")
    lab = differing.lab
    (row,) = lab["alice"].sas()
    assert row["suite"] == "aes128-sha256"
    assert kinds(messages) == ["CREATE", "REPLY", "ACK"]
    assert "ackreq 1" in messages[1]
    keys = {sa.spi: sa.keymat for sa in lab.states_between("bob", "alice")}
    assert lab.derived_keymat(pcap, lab["bob"].keytab) == keys


def test_a_host_without_groups_is_keyed_without_forward_secrecy_where_policy_allows(
    differing: Differing,
):
    pcap, messages = differing.key("alice", "carol")
    lab = differing.lab
    assert kinds(messages) == ["CREATE", "REPLY", "CREATE", "REPLY"]
    assert "GROUP_DESCRIPTION(3) = 19" in messages[0]
    assert not any("GROUP_DESCRIPTION" in message for message in messages[2:])
    keys = {sa.spi: sa.keymat for sa in lab.states_between("carol", "alice")}
    assert lab.derived_keymat(pcap, lab["carol"].keytab) == keys


def test_a_host_without_esn_is_keyed_without_where_policy_only_tries_it(differing: Differing):
    _, messages = differing.key("alice", "dave")
    assert kinds(messages) == ["CREATE", "REPLY", "ACK"]
    assert ["ESN(11) = 1" in message for message in messages] == [True, False, False]
    assert esn_in_kernels(differing.lab, "alice", "dave") == {False}


def test_a_host_that_lacks_both_is_keyed_in_the_end(differing: Differing):
    pcap, messages = differing.key("bob", "dave")
    lab = differing.lab
    assert kinds(messages) == ["CREATE", "REPLY", "CREATE", "REPLY", "ACK"]
    assert not any("GROUP_DESCRIPTION" in message for message in messages[2:])
    assert esn_in_kernels(lab, "bob", "dave") == {False}
    keys = {sa.spi: sa.keymat for sa in lab.states_between("dave", "bob")}
    assert lab.derived_keymat(pcap, lab["dave"].keytab) == keys


def test_the_default_profile_has_forward_secrecy(differing: Differing):
    pcap, messages = differing.key("bob", "carol")
    lab = differing.lab
    # The first echo may reach carol before the ACK, and the kernel does not hold its own
    # ICMPv6 answers for want of an SA as it holds all else.
    assert lab["bob"].ping(lab["carol"], family=6, count=3).lost <= 1
    rows = [row for row in lab["bob"].sas() if row["peer"] == "carol"]
    assert [row["suite"] for row in rows] == ["aes256gcm16"] * 2
    assert kinds(messages) == ["CREATE", "REPLY", "ACK"]
    offered, taken, _ = (message.count("GROUP_DESCRIPTION(3) = 19") for message in messages)
    assert (offered, taken) == (2, 1)
    assert lab.derived_keymat(pcap, lab["carol"].keytab) == {}
