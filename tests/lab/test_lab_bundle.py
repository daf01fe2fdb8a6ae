"""AH, alone and around ESP, between hosts and between gateways, in one family at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import observe
from tests.support.lab import Lab, Rule
from tests.support.topology import BRIDGE, Node

PROFILES = """
[profiles.ah]
suites = ["ah-sha256", "ah-sha512"]
group = "none"
[profiles.both]
suites = ["ah-sha256+aes256gcm16", "ah-sha1+aes128-sha1"]
group = "none"
"""
NAMES = ("alice", "bob", "carol")
# By family: what is between alice and bob, alice and carol, bob and carol.
ARRANGEMENTS = {
    4: (("both", "tunnel"), ("both", "transport"), ("ah", "transport")),
    6: (("ah", "tunnel"), ("ah", "transport"), ("both", "tunnel")),
}
SUITES = {"ah": "ah-sha256", "both": "ah-sha256+aes256gcm16"}
INSIDE = "(net 10.88.0.0/16 or net fd88::/16)"
PINGS = 3


class Sites:
    """The laboratory of one family; ``arranged`` by the two hosts."""

    def __init__(self, lab: Lab, family: int) -> None:
        self.lab = lab
        self.family = family
        pairs = (("alice", "bob"), ("alice", "carol"), ("bob", "carol"))
        self.arranged = dict(zip(pairs, ARRANGEMENTS[family], strict=True))

    def way(self, one: str, other: str) -> tuple[Node, Node]:
        """From where to where the traffic goes: gateways have it of what is behind them."""
        if (one, other) == ("alice", "bob"):
            return self.lab.behind[one], self.lab.behind[other]
        return self.lab[one].node, self.lab[other].node

    def packets(self, pcap: Path, pair: tuple[str, str]) -> list[str]:
        """What a capture has between two hosts, but how it came to be keyed."""
        one, other = (self.lab[name].node.address(self.family) for name in pair)
        making = "udp port 910 or arp or (icmp6 and ip6[40] >= 133 and ip6[40] <= 137)"
        return observe.read_capture(pcap, f"host {one} and host {other} and not ({making})")


@pytest.fixture(scope="module", params=sorted(ARRANGEMENTS), ids="IPv{}".format)
def sites(request: pytest.FixtureRequest) -> Iterator[Sites]:
    family = request.param
    pairs = (("alice", "bob"), ("alice", "carol"), ("bob", "carol"))
    rules = [
        Rule(profile, pair, mode)
        for pair, (profile, mode) in zip(pairs, ARRANGEMENTS[family], strict=True)
    ]
    with Lab(NAMES, gateways=NAMES[:2], families=(family,), rules=rules, profiles=PROFILES) as lab:
        lab.start()
        yield Sites(lab, family)


def test_traffic_passes_under_ah_and_the_decoder_derives_its_keys(sites: Sites) -> None:
    lab = sites.lab
    with lab.capture(BRIDGE) as pcap:
        for pair in sites.arranged:
            source, target = sites.way(*pair)
            assert observe.ping(source, target.address(sites.family), count=PINGS).lost == 0
    # A tunnel under AH alone is no secret: its inner packet is read in its outer.
    assert observe.read_capture(pcap, f"{INSIDE} and not (ip proto 51 or ip6 proto 51)") == []
    for pair, (profile, _) in sites.arranged.items():
        lines = sites.packets(pcap, pair)
        assert len(lines) == 2 * PINGS
        assert all("AH(spi=" in line for line in lines)
        assert all(("ESP(spi=" in line) == (profile == "both") for line in lines)
    keytab = lab.directory / "all.keytab"
    lab.realm.write_keytab(keytab, *(lab[name].principal for name in NAMES))
    held = {state.spi: state.keymat for name in NAMES for state in lab[name].states()}
    assert held == lab.derived_keymat(pcap, keytab)


def test_kinkctl_and_the_kernel_show_both_parts_of_a_bundle(sites: Sites) -> None:
    lab = sites.lab
    for (one, other), (profile, mode) in sites.arranged.items():
        (row,) = (row for row in lab[one].sas() if row["peer"] == other)
        assert (row["suite"], row["mode"]) == (SUITES[profile], mode)
        protocols = ["esp", "ah"] if profile == "both" else ["ah"]
        assert [spis["protocol"] for spis in row["spis"]] == protocols
        assert row["packets_in"] == row["packets_out"] == PINGS
        states = lab.states_between(one, other)
        told = {
            (spis["protocol"], int(spis[way], 16)) for spis in row["spis"] for way in ("in", "out")
        }
        assert {(state.protocol, state.spi) for state in states} == told
        assert {state.packets for state in states} == {PINGS}
        modes = {state.protocol: state.mode for state in states}
        assert modes == dict(zip(protocols, (mode, "transport"), strict=False))


def test_a_rekey_by_hand_replaces_both_parts_and_deletes_both(sites: Sites) -> None:
    lab = sites.lab
    for one, other in sites.arranged:
        old = {state.spi for state in lab.states_between(one, other)}
        answer = lab[one].ask("initiate", other)
        assert all(pair["ok"] for pair in answer["pairs"])
        new = {state.spi for state in lab.states_between(other, one)} - old
        assert len(new) >= len(old)
        source, target = sites.way(one, other)
        assert observe.ping(source, target.address(sites.family)).lost == 0
        lab.unkey(one, other)


def test_clear_packets_are_not_taken_where_ah_is_required(sites: Sites) -> None:
    lab = sites.lab
    lab["carol"].ask("shutdown", "--delete")
    lab["carol"].wait()
    counters = {name: lab[name].node.xfrm_counters()["XfrmInTmplMismatch"] for name in NAMES}
    for name in ("alice", "bob"):
        target = lab[name].node
        assert observe.ping(lab["carol"].node, target.address(sites.family), patience=1).lost == 1
        assert target.xfrm_counters()["XfrmInTmplMismatch"] == counters[name] + 1
    lab.start("carol")
