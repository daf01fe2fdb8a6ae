"""What a real kernel shows of traffic in clear, before and after IPsec, and what counts of it."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kinkd.app.audit import GRACE_SECONDS, Audit, Instant, packet_of
from kinkd.document import Document
from kinkd.kernel.capture import Capture, Seen
from kinkd.model import Direction, IPAddress, Mode, Selector
from kinkd.policy.exemptions import EXEMPTION_COUNT
from kinkd.policy.reader import read
from kinkd.policy.realm import Packet, RealmPolicy
from kinkd.policy.resolve import PRIORITY_BASE, Options, resolve
from tests.support.kernel_lab import (
    GCM,
    PORT,
    Side,
    bundle,
    hosts,
    nothing_arrives,
    pair_of,
    require,
    rule,
    sa,
    sides_of,
    templates,
    udp,
)
from tests.support.topology import Node, Topology

CHECKOUT = Path(__file__).resolve().parents[2]
FAMILIES = pytest.mark.parametrize("family", [4, 6])
UDP = socket.IPPROTO_UDP
Sight = tuple[bool, str, str, str]


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with hosts() as topology:
        yield topology


@pytest.fixture
def sides(network: Topology) -> Iterator[dict[str, Side]]:
    with sides_of(network) as made:
        yield made


@contextmanager
def captures(*nodes: Node) -> Iterator[list[Capture]]:
    made = [node.python(Capture) for node in nodes]
    try:
        yield made
    finally:
        for each in made:
            each.close()


def seen(by: Capture) -> list[tuple[Seen, Packet]]:
    """What is there of UDP: a network of IPv6 speaks of itself, too."""
    found = [(each, packet_of(each.octets)) for each in by.read(1000)]
    return [(each, packet) for each, packet in found if packet and packet.protocol == UDP]


def sights(by: Capture) -> list[Sight]:
    return [
        (each.outgoing, each.interface, str(packet.source), str(packet.destination))
        for each, packet in seen(by)
    ]


def send(sender: socket.socket, to: IPAddress, receiver: socket.socket, port: int = PORT) -> None:
    sender.sendto(b"hello", (str(to), port))
    assert receiver.recv(64) == b"hello"


@FAMILIES
def test_in_transport_mode_neither_side_shows_what_an_sa_protected(
    sides: dict[str, Side], family: int
) -> None:
    alice, bob = sides["alice"], sides["bob"]
    ends = pair_of(alice.node, bob.node, family)
    names = tuple(map(str, ends))
    with (
        udp(alice.node, family) as sender,
        udp(bob.node, family) as receiver,
        captures(alice.node, bob.node) as (by_alice, by_bob),
    ):
        send(sender, ends[1], receiver)
        assert sights(by_alice) == [(True, "eth0", *names)]
        assert sights(by_bob) == [(False, "eth0", *names)]
        out = require(alice, bob, family)
        made = sa(alice.node, bob.node, family, 0x1000)
        bob.kernel.install_inbound([made])
        alice.kernel.install_outbound([made], [out])
        send(sender, ends[1], receiver)
        assert sights(by_alice) == sights(by_bob) == []


@FAMILIES
def test_what_comes_out_of_a_tunnel_is_seen_in_clear_and_does_not_count(family: int) -> None:
    with (
        Topology(("left", "right"), gateways=("left", "right")) as network,
        sides_of(network) as sides,
        captures(sides["left"].node, sides["right"].node) as (by_left, by_right),
    ):
        left, right = sides["left"], sides["right"]
        inner = pair_of(network.behind["left"], network.behind["right"], family)
        names = tuple(map(str, inner))
        with (
            udp(network.behind["left"], family) as sender,
            udp(network.behind["right"], family) as receiver,
        ):
            send(sender, inner[1], receiver)
            assert sights(by_left) == [(False, "inside", *names), (True, "eth0", *names)]
            assert sights(by_right) == [(False, "eth0", *names), (True, "inside", *names)]
            _tunnel(left, right, Selector.between(*inner), family)
            send(sender, inner[1], receiver)
            assert sights(by_left) == [(False, "inside", *names)]
            # Nothing tells this from a packet that came in clear, and so SAs are asked about.
            assert sights(by_right) == [(False, "eth0", *names), (True, "inside", *names)]
            policy = policy_of(network, 'mode = "tunnel"\naudit = true')
            for protected, rows in ((True, 0), (False, 1)):
                send(sender, inner[1], receiver)
                audit = Audit(policy, "right", by_right, lambda *_, p=protected: p)
                audit.read(Instant(0, 0))
                audit.read(Instant(GRACE_SECONDS, 0))
                assert len(audit.rows()) == rows
                audit = Audit(policy, "left", by_left, lambda *_: False)
                audit.read(Instant(0, 0))
                audit.read(Instant(GRACE_SECONDS, 0))
                assert audit.rows() == []


def _tunnel(left: Side, right: Side, traffic: Selector, family: int) -> None:
    ends = pair_of(left.node, right.node, family)
    out = rule(Direction.OUT, traffic, templates(GCM, ends))
    left.kernel.write_policy(out)
    right.kernel.write_policy(replace(out, direction=Direction.FWD))
    made = bundle(ends, 0x2000 + family, GCM, Mode.TUNNEL, traffic)
    right.kernel.install_inbound(made)
    left.kernel.install_outbound(made, [out])


@pytest.mark.long
def test_a_port_of_a_bridge_shows_what_the_bridge_shows_and_it_counts_once(
    network: Topology, sides: dict[str, Side]
) -> None:
    alice, carol = sides["alice"].node, sides["carol"].node
    carol.ip(
        "link add br9 type bridge mcast_snooping 0",
        f"addr del {carol.ipv4}/24 dev eth0",
        "link set eth0 master br9",
        f"addr add {carol.ipv4}/24 dev br9",
        f"link set br9 address {carol.hardware_address()} up",
    )
    policy = policy_of(network, 'audit = true\ntraffic = "udp"')
    with udp(alice, 4) as sender, udp(carol, 4) as receiver, captures(carol) as (by_carol,):
        send(sender, carol.ipv4, receiver)
        names = str(alice.ipv4), str(carol.ipv4)
        assert sights(by_carol) == [(False, "eth0", *names), (False, "br9", *names)]
        send(sender, carol.ipv4, receiver)
        send(receiver, alice.ipv4, sender)
        audit = Audit(policy, "carol", by_carol, lambda *_: False)
        audit.read(Instant(0, 0))
        audit.read(Instant(GRACE_SECONDS, 0))
        assert [(row["direction"], row["packets"]) for row in audit.rows()] == [
            ("in", 1),
            ("out", 1),
        ]


# --- the same document, audited and enforced -----------------------------------------------------

BLOCKED, REQUIRED, CLEAR, EXEMPT = 7001, 7002, 7003, 123


def policy_of(network: Topology, of_rule: str, more: str = "") -> RealmPolicy:
    """Of all hosts of a network: one rule of ``require``, after others."""
    text = 'schema = 1\nversion = 1\nrealm = "EXAMPLE.TEST"\n'
    for name, node in network.nodes.items():
        networks = ", ".join(f'"{each}"' for each in node.networks)
        text += f'[hosts.{name}]\nfqdn = "{name}.example.test"\n'
        text += f'addresses = ["{node.ipv4}", "{node.ipv6}"]\n'
        text += f"networks = [{networks}]\n" if networks else ""
    text += more + '[[rules]]\nname = "all"\nfrom = "all"\nto = "all"\naction = "require"\n'
    return read(Document.parse("policy.toml", (text + of_rule).encode()))


def three_rules(network: Topology, *, audit: bool) -> RealmPolicy:
    word = f"audit = {str(audit).lower()}\n"
    more = "".join(
        f'[[rules]]\nname = "{action}"\nfrom = "all"\nto = "all"\ntraffic = "udp/{port}"\n'
        f'action = "{action}"\n{word}'
        for action, port in (("block", BLOCKED), ("clear", CLEAR))
    )
    return policy_of(network, word, more)


@FAMILIES
def test_what_an_audit_counts_is_what_enforcement_drops(
    network: Topology, sides: dict[str, Side], family: int
) -> None:
    alice, bob = sides["alice"], sides["bob"]
    to = bob.node.address(family)
    options = Options(servers=(("ntp", to),))
    ports = (BLOCKED, REQUIRED, CLEAR, EXEMPT)
    with ExitStack() as stack:
        sender = stack.enter_context(udp(alice.node, family))
        receivers = {port: stack.enter_context(bound(bob.node, family, port)) for port in ports}
        sender_ntp = stack.enter_context(bound(alice.node, family, 40123))
        by_alice, by_bob = stack.enter_context(captures(alice.node, bob.node))
        policy = three_rules(network, audit=True)
        install(policy, (alice, bob), options)
        for port, receiver in receivers.items():
            send(sender_ntp if port == EXEMPT else sender, to, receiver, port)
        rows = {
            side.node.name: audited(policy, side.node.name, source, options)
            for side, source in ((alice, by_alice), (bob, by_bob))
        }
        expected = {("block", f"udp/{BLOCKED}"), ("all", f"udp/{REQUIRED}")}
        assert rows == {
            "alice": {("out", "bob", *each) for each in expected},
            "bob": {("in", "alice", *each) for each in expected},
        }
        for side in (alice, bob):
            side.node.ip("xfrm state flush", "xfrm policy flush")
        install(three_rules(network, audit=False), (alice, bob), options)
        passed = {
            port
            for port, receiver in receivers.items()
            if arrives(sender_ntp if port == EXEMPT else sender, to, receiver, port)
        }
        assert passed == {CLEAR, EXEMPT}


def bound(node: Node, family: int, port: int) -> socket.socket:
    made = node.python(
        lambda: socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    )
    made.bind((str(node.address(family)), port))
    made.settimeout(5)
    return made


def install(policy: RealmPolicy, sides: Sequence[Side], options: Options) -> None:
    for side in sides:
        for entry in resolve(policy, side.node.name, options).entries:
            side.kernel.write_policy(entry)


def arrives(sender: socket.socket, to: IPAddress, receiver: socket.socket, port: int) -> bool:
    try:
        sender.sendto(b"hello", (str(to), port))
    except OSError:  # blocked
        return False
    if nothing_arrives(receiver):
        return False
    receiver.recv(64)
    return True


def audited(
    policy: RealmPolicy, me: str, source: Capture, options: Options
) -> set[tuple[object, ...]]:
    """By the daemon's ways: what is exempt stands in the first part of the band."""
    entries = resolve(policy, me, options).entries
    exempt = [each.key for each in entries if each.priority < PRIORITY_BASE + EXEMPTION_COUNT]
    audit = Audit(policy, me, source, lambda *_: False, exempt)
    audit.read(Instant(0, 0))
    audit.read(Instant(GRACE_SECONDS, 0))
    names = ("direction", "party", "rule", "traffic")
    return {tuple(row[name] for name in names) for row in audit.rows()}


# --- the socket itself ---------------------------------------------------------------------------


@pytest.mark.long
def test_what_finds_no_room_is_counted_and_the_filter_comes_first(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"].node, sides["bob"].node
    with udp(alice, 4) as sender, udp(bob, 4) as receiver, captures(bob) as (by_bob,):
        send(sender, bob.ipv4, receiver)
        assert len(seen(by_bob)) == 1
        with bound(alice, 4, 910) as kink:
            for _ in range(3000):
                kink.sendto(b"", (str(bob.ipv4), 910))
        settle()
        assert (seen(by_bob), by_bob.missed()) == ([], 0)
        for _ in range(3000):
            sender.sendto(bytes(1000), (str(bob.ipv4), PORT))
        settle()
        missed = by_bob.missed()
        there = len(seen(by_bob))
        assert 0 < there < 1000
        assert missed == 3000 - there
        assert by_bob.missed() == 0


def settle() -> None:
    time.sleep(0.2)  # between namespaces packets pass a queue


def test_no_more_is_read_than_was_asked_for(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"].node, sides["bob"].node
    with udp(alice, 4) as sender, captures(alice) as (by_alice,):
        for _ in range(20):
            sender.sendto(bytes(1000), (str(bob.ipv4), PORT))
        assert len(list(by_alice.read(7))) == 7
        assert all(len(each.octets) == 128 for each in by_alice.read(7))


def test_without_cap_net_raw_it_says_so(sides: dict[str, Side]) -> None:
    program = "from kinkd.kernel.capture import Capture; Capture()"
    done = sides["alice"].node.run(
        *("env", f"PYTHONPATH={CHECKOUT}", "setpriv", "--bounding-set=-net_raw"),
        *("--inh-caps=-net_raw", sys.executable, "-B", "-c", program),
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("kinkd.errors.LocalError: cannot see what passes in clear")
    assert last.endswith("CAP_NET_RAW is missing")


def test_an_interface_that_goes_down_ends_nothing(sides: dict[str, Side]) -> None:
    alice = sides["alice"].node
    alice.ip("link add d0 type dummy", "addr add 10.99.0.1/24 dev d0", "link set d0 up")
    with udp(alice, 4, alice.ipv4) as sender, captures(alice) as (by_alice,):
        alice.ip("link set d0 down", "link del d0")
        list(by_alice.read(10))
        sender.sendto(b"", (str(sides["bob"].node.ipv4), PORT))
        assert len(seen(by_alice)) == 1
