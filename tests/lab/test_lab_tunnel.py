"""Gateways and the networks behind them, tunnels between hosts, ESP in UDP.

All of it at once, twice: through ends of IPv4 and of IPv6. alice and bob are gateways with ESP
between them; carol is a host, and the way to her takes ESP in UDP only.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.support import forge, observe
from tests.support.lab import Lab, Rule, wait_for
from tests.support.topology import BRIDGE, Node

RULES = (
    Rule("fast", ("alice", "bob"), "tunnel"),
    Rule("fast", ("alice", "carol"), "tunnel", udp=True),
    Rule("fast", ("bob", "carol"), udp=True),
)
PINGS = 2
PATIENTLY = ("-n", "-c", "20", "-i", "0.2", "-W", "10")
PORT = 7777
INSIDE = "(net 10.88.0.0/16 or net fd88::/16)"
NEIGHBORS = "(arp or (icmp6 and ip6[40] >= 133 and ip6[40] <= 137))"
ESP = "(ip proto 50 or ip6 proto 50)"
_sequence = itertools.count(1000)  # above what the kernel has used: no replay


@dataclass(frozen=True)
class Way:
    """From a node to a node, which the kinkd of ``initiator`` protects with that of ``peer``."""

    source: Node
    target: Node
    initiator: str
    peer: str

    def __str__(self) -> str:
        return f"{self.source.name} to {self.target.name}"


def ways(lab: Lab) -> list[Way]:
    alice, bob, carol = (lab[name].node for name in ("alice", "bob", "carol"))
    left, right = lab.behind["alice"], lab.behind["bob"]
    return [
        Way(left, right, "alice", "bob"),
        Way(alice, right, "alice", "bob"),
        Way(bob, alice, "bob", "alice"),
        Way(carol, left, "carol", "alice"),
        Way(alice, carol, "alice", "carol"),
        Way(carol, bob, "carol", "bob"),
    ]


@dataclass(frozen=True)
class Sites:
    """The laboratory, between whose gateways tunnels are of family ``outer``."""

    lab: Lab
    outer: int

    def end(self, name: str) -> forge.Address:
        return self.lab[name].node.address(self.outer)

    def clear(self, pcap: Path, *names: str) -> list[str]:
        """What a capture has between hosts that is no ESP, nor in UDP, nor makes it."""
        hosts = " or ".join(
            f"host {self.lab[name].node.address(family)}" for name in names for family in (4, 6)
        )
        allowed = f"{ESP} or udp port 4500 or udp port 910 or port 88 or {NEIGHBORS}"
        return observe.read_capture(pcap, f"({hosts} or {INSIDE}) and not ({allowed})")


@pytest.fixture(scope="module", params=[4, 6], ids="ends of IPv{}".format)
def sites(request: pytest.FixtureRequest) -> Iterator[Sites]:
    outer = request.param
    names = ("alice", "bob", "carol")
    with Lab(names, gateways=names[:2], families=(outer, 10 - outer), rules=RULES) as lab:
        lab.start()
        yield Sites(lab, outer)


@dataclass(frozen=True)
class Walk:
    """Every way gone in both families, and what was seen of it."""

    pings: dict[tuple[str, int], observe.Ping]
    pcap: Path
    states: dict[str, list[observe.KernelSa]]
    rows: dict[str, list[dict[str, object]]]


@pytest.fixture(scope="module")
def walk(sites: Sites) -> Walk:
    lab = sites.lab
    with lab.capture(BRIDGE) as pcap, lab.without_esp("carol"):
        pings = {
            (str(way), family): observe.ping(way.source, way.target.address(family), count=PINGS)
            for way in ways(lab)
            for family in (4, 6)
        }
    names = ("alice", "bob", "carol")
    states = {name: lab[name].states() for name in names}
    return Walk(pings, pcap, states, {name: lab[name].sas() for name in names})


def test_every_way_is_answered_from_the_first_packet(walk: Walk) -> None:
    assert {way: ping.lost for way, ping in walk.pings.items()} == dict.fromkeys(walk.pings, 0)


def test_on_the_wire_is_nothing_of_networks_and_nothing_in_clear(sites: Sites, walk: Walk) -> None:
    assert observe.read_capture(walk.pcap, INSIDE) == []
    assert sites.clear(walk.pcap, "alice", "bob", "carol") == []
    alice, bob, carol = map(sites.end, ("alice", "bob", "carol"))
    between = f"host {alice} and host {bob}"
    packets = 2 * 2 * PINGS  # a way in both families, answers too
    assert len(observe.read_capture(walk.pcap, f"{ESP} and {between}")) == 3 * packets
    assert len(observe.read_capture(walk.pcap, ESP)) == 3 * packets  # and nowhere else
    encapsulated = observe.read_capture(walk.pcap, f"udp port 4500 and host {alice}")
    assert len(encapsulated) == 2 * packets
    assert all(f"{carol}.4500" in line and "UDP-encap: ESP(" in line for line in encapsulated)
    assert len(observe.read_capture(walk.pcap, "udp port 4500")) == 3 * packets


def test_kinkctl_shows_the_traffic_of_every_pair(sites: Sites, walk: Walk) -> None:
    for way, family in itertools.product(ways(sites.lab), (4, 6)):
        source, target = way.source.address(family), way.target.address(family)
        rows = [
            row
            for row in walk.rows[way.initiator]
            if source in ip_network(str(row["source"]))
            and target in ip_network(str(row["destination"]))
        ]
        assert len(rows) == 1, (str(way), family)
        (row,) = rows
        assert row["peer"] == way.peer
        assert (row["packets_in"], row["packets_out"]) == (PINGS, PINGS)
        assert row["udp"] == ("carol" in (way.initiator, way.peer))
        assert row["mode"] == ("transport" if way.target.name == "bob" else "tunnel")
        if row["mode"] == "tunnel":
            ends = (row["local"], row["remote"])
            assert ends == (str(sites.end(way.initiator)), str(sites.end(way.peer)))
    assert [len(walk.rows[name]) for name in ("alice", "bob", "carol")] == [10, 8, 6]


def test_kernels_hold_what_the_decoder_derives_pinned_to_its_traffic(
    sites: Sites, walk: Walk
) -> None:
    lab = sites.lab
    keytab = lab.directory / "both.keytab"
    lab.realm.write_keytab(keytab, *(lab[name].principal for name in walk.states))
    derived = lab.derived_keymat(walk.pcap, keytab)
    held = {state.spi: state.keymat for states in walk.states.values() for state in states}
    assert held == derived
    for name, states in walk.states.items():
        told = {
            (row[f"spi_{way}"], *ends)
            for row in walk.rows[name]
            for way, ends in (
                ("out", (row["source"], row["destination"])),
                ("in", (row["destination"], row["source"])),
            )
        }
        assert {(f"{s.spi:#010x}", *s.selector.split()[1::2]) for s in states} == told


def test_what_claims_to_be_of_another_network_is_refused(sites: Sites, walk: Walk) -> None:
    lab, bob, alice = sites.lab, sites.lab["bob"].node, sites.lab["alice"].node
    for family in (4, 6):
        target = lab.behind["alice"].address(family)
        mine = lab.behind["bob"].address(family)
        (sa,) = (
            sa
            for sa in lab["bob"].states()
            if sa.destination == sites.end("alice")
            and sa.selector == f"src {_network(bob, family)} dst {_network(alice, family)}"
        )

        def send_as(
            source: forge.Address,
            sa: observe.KernelSa = sa,
            target: forge.Address = target,
        ) -> bytes | None:
            receive = forge.receive_udp(lab.behind["alice"], target, PORT)
            datagram = forge.udp_datagram(source, target, PORT, b"from %d" % int(source))
            packet, next_header = forge.tunnelled(source, target, datagram)
            forge.send_esp(
                *(bob, alice, sa),
                source=sites.end("bob"),
                sequence=next(_sequence),
                datagram=packet,
                next_header=next_header,
            )
            return receive(1)

        before = alice.xfrm_counters()["XfrmInStateMismatch"]
        assert send_as(mine) == b"from %d" % int(mine)  # well made: only the source is false below
        assert alice.xfrm_counters()["XfrmInStateMismatch"] == before
        assert send_as(lab["carol"].node.address(family)) is None
        assert alice.xfrm_counters()["XfrmInStateMismatch"] == before + 1
    lab.unkey("alice", "bob")  # the forged sequence numbers make all that bob sends a replay


def _network(gateway: Node, family: int) -> str:
    return str(next(net for net in gateway.networks if net.version == family))


def test_esp_in_udp_passes_where_esp_does_not(sites: Sites, walk: Walk) -> None:
    lab = sites.lab
    bare, _, _, encapsulated, _, transport = ways(lab)
    with lab.without_esp("carol"), lab.without_esp("alice"):
        for family in (4, 6):
            assert observe.ping(bare.source, bare.target.address(family), patience=1).lost == 1
            assert observe.ping(encapsulated.source, encapsulated.target.address(family)).lost == 0
            assert observe.ping(transport.source, transport.target.address(family)).lost == 0


@contextmanager
def pinging(way: Way, family: int) -> Iterator[list[observe.Ping]]:
    """A ping that runs meanwhile; afterwards its result is in the list."""
    target = str(way.target.address(family))
    process = way.source.popen("ping", "-n", "-i", "0.05", "-W", "2", target)
    result: list[observe.Ping] = []
    try:
        yield result
    finally:
        process.send_signal(signal.SIGINT)
        result.append(observe.read_ping(process.communicate(timeout=20)[0]))


def test_a_gateways_daemon_starts_anew_and_no_packet_is_lost(sites: Sites, walk: Walk) -> None:
    lab = sites.lab
    alice = lab["alice"]
    bare, _, _, encapsulated, _, _ = ways(lab)
    for way, family in itertools.product((bare, encapsulated), (4, 6)):
        assert observe.ping(way.source, way.target.address(family)).lost == 0
    before = {state.spi for state in alice.states()}
    with pinging(bare, 4) as four, pinging(bare, 6) as six, pinging(encapsulated, 4) as in_udp:
        alice.stop()
        alice.start()
    results = (*four, *six, *in_udp)
    assert [result.lost for result in results] == [0, 0, 0]
    assert all(result.received > 20 for result in results)
    assert {state.spi for state in alice.states()} == before
    assert {int(str(row["spi_in"]), 16) for row in alice.sas()} < before


def test_gateways_that_begin_at_once_keep_one_pair_and_lose_no_packet(sites: Sites) -> None:
    lab = sites.lab
    alice, bob = lab["alice"], lab["bob"]
    left, right = lab.behind["alice"], lab.behind["bob"]
    both = ((left, right), (right, left), (alice.node, bob.node), (bob.node, alice.node))
    lab.unkey("alice", "bob")
    crossed = alice.counters().get("create.crossed", 0)
    with lab.delay("alice", "bob", milliseconds=200):
        started = [
            source.popen("ping", *PATIENTLY, str(target.address(family)))
            for family in (4, 6)
            for source, target in both
        ]
        results = [observe.read_ping(each.communicate(timeout=60)[0]) for each in started]
    # Of the hosts' own IPv6, one: a ping can come in before the SA for its answer is there, and
    # the kernel does not hold its own ICMPv6 answers for want of one as it holds all else.
    assert [result.lost for result in results[:-2]] == [0] * (len(started) - 2)
    assert all(result.lost <= 1 for result in results[-2:])
    wait_for(lambda: len(lab.states_between("alice", "bob")) == 8, "one pair each remains", 30)
    for host, peer in ((alice, "bob"), (bob, "alice")):
        rows = [row for row in host.sas() if row["peer"] == peer]
        assert len({(row["source"], row["destination"]) for row in rows}) == len(rows) == 4
    assert alice.counters()["create.crossed"] > crossed


def test_without_a_daemon_and_sas_nothing_passes(sites: Sites, walk: Walk) -> None:
    lab = sites.lab
    alice, bob = lab["alice"], lab["bob"]
    there = ways(lab)[0]
    back = Way(there.target, there.source, "bob", "alice")
    bob.ask("shutdown", "--delete")
    bob.wait()
    wait_for(lambda: not lab.states_between("alice", "bob"), "alice loses the SAs with bob")
    with lab.capture("alice") as pcap:
        for family in (4, 6):
            assert observe.ping(there.source, there.target.address(family), patience=1).lost == 1
    assert observe.read_capture(pcap, INSIDE) == []
    for family in (4, 6):  # bob has no policy left, and sends in clear: alice does not take it
        before = alice.node.xfrm_counters()["XfrmInTmplMismatch"]
        assert observe.ping(back.source, back.target.address(family), patience=1).lost == 1
        assert alice.node.xfrm_counters()["XfrmInTmplMismatch"] > before
    bob.start()
    for family in (4, 6):
        assert observe.ping(back.source, back.target.address(family), patience=40).lost == 0
