"""Bundles, tunnels and ESP in UDP on a real kernel, with gateways and the networks behind them."""

from __future__ import annotations

import errno
import itertools
import secrets
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from kinkd.errors import KernelError
from kinkd.kernel import xfrm
from kinkd.kernel.netlink import LayoutError
from kinkd.kernel.port import Acquire, Expire, Sa
from kinkd.kernel.socket import XfrmSocket
from kinkd.keying.algorithms import SUITES
from kinkd.model import Direction, IPAddress, IpsecProtocol, Mode, PortMatch, Selector, Template
from tests.support import observe
from tests.support.kernel_lab import (
    GCM,
    PORT,
    REQID,
    Side,
    bundle,
    hosts,
    nothing_arrives,
    pair_of,
    raw,
    require,
    rule,
    sides_of,
    templates,
    udp,
    wait_for,
)
from tests.support.topology import Node, Topology

BOTH = SUITES["ah-sha256+aes256gcm16"]
FAMILIES = list(itertools.product((4, 6), repeat=2))
ESP_PORT = 4500
UDP_ENCAP, UDP_ENCAP_ESPINUDP = 100, 2
BYPASS = {4: (socket.IPPROTO_IP, 17), 6: (socket.IPPROTO_IPV6, 35)}  # IP(V6)_XFRM_POLICY


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with hosts() as topology:
        yield topology


@pytest.fixture
def sides(network: Topology) -> Iterator[dict[str, Side]]:
    with sides_of(network) as made:
        yield made


@contextmanager
def counted(node: Node, counter: str, expected: int = 1) -> Iterator[None]:
    """What is done meanwhile makes the kernel count so many packets."""
    before = node.xfrm_counters()[counter]
    yield
    assert node.xfrm_counters()[counter] == before + expected


@dataclass(frozen=True)
class Passage:
    """Datagrams from one node to another, of one family."""

    source: Node
    destination: Node
    family: int

    @property
    def selector(self) -> Selector:
        return Selector.between(*pair_of(self.source, self.destination, self.family))

    def passes(self, source: IPAddress | None = None) -> bool:
        """Whether one gets there and is what was sent."""
        with (
            udp(self.source, self.family, source) as sender,
            udp(self.destination, self.family) as receiver,
        ):
            sender.sendto(b"hello", (str(self.destination.address(self.family)), PORT))
            return not nothing_arrives(receiver) and receiver.recv(64) == b"hello"


def reserved(kernel: XfrmSocket, sas: list[Sa]) -> list[Sa]:
    """The SAs under SPIs that the kernel of their receiver gave out."""
    found = []
    for sa in sas:
        spi = kernel.allocate_spi(sa.id.source, sa.id.destination, REQID, sa.id.protocol)
        found.append(replace(sa, id=replace(sa.id, spi=spi)))
    return found


# --- bundles ----------------------------------------------------------------------------

BUNDLES = [
    ("ah-sha256+aes256gcm16", 4, None),
    ("ah-sha1+aes128-sha1", 6, None),
    ("ah-sha512+null-sha256", 4, 4),
    ("ah-sha384+aes256ctr-sha256", 6, 6),
]


@pytest.mark.parametrize(("name", "family", "tunnel"), BUNDLES)
def test_a_bundle_carries_traffic_and_a_part_of_it_does_not_satisfy_the_policy(
    sides: dict[str, Side], name: str, family: int, tunnel: int | None
) -> None:
    suite, alice, bob = SUITES[name], sides["alice"], sides["bob"]
    passage = Passage(alice.node, bob.node, family)
    ends = pair_of(alice.node, bob.node, family)
    out = rule(Direction.OUT, passage.selector, templates(suite, ends if tunnel else None))
    alice.kernel.write_policy(out)
    bob.kernel.write_policy(replace(out, direction=Direction.IN))
    mode = Mode.TUNNEL if tunnel else Mode.TRANSPORT
    made = bundle(ends, 0, suite, mode, passage.selector if tunnel else None)
    sas = reserved(bob.kernel, made)
    bob.kernel.install_inbound(sas)
    alice.kernel.install_outbound(sas, [out])
    with raw(bob.node, family, IpsecProtocol.AH) as packets:
        assert passage.passes()
        packet = packets.recv(2048)
    header = packet[20 if family == 4 else 0 :]
    assert header[0] == IpsecProtocol.ESP  # what AH carries (RFC 4302 §2.1)
    assert header[4:8] == sas[1].id.spi.to_bytes(4, "big")
    shown = {state.protocol: state for state in observe.read_states(bob.node)}
    assert [shown[name].spi for name in ("esp", "ah")] == [sa.id.spi for sa in sas]
    assert (shown["esp"].mode, shown["ah"].mode) == (mode.name.lower(), "transport")
    assert [shown[name].packets for name in ("esp", "ah")] == [1, 1]
    assert shown["ah"].keymat == bytes(sas[1].keymat.value)
    for sa in sas:  # either of them alone does not do
        alice.kernel.write_policy(replace(out, templates=_only(sa, out.templates)))
        with counted(bob.node, "XfrmInTmplMismatch"):
            assert not passage.passes()


def _only(sa: Sa, demands: tuple[Template, ...]) -> tuple[Template, ...]:
    return tuple(template for template in demands if template.protocol is sa.id.protocol)


def test_an_acquire_names_the_first_sa_that_is_missing(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"], sides["bob"]
    out = require(alice, bob, 4, BOTH)
    esp, ah = bundle(pair_of(alice.node, bob.node, 4), 0x3100, BOTH)
    to = (str(bob.node.ipv4), PORT)
    with udp(alice.node, 4) as sender, udp(bob.node, 4) as receiver:
        sender.sendto(b"1", to)
        first = wait_for(alice.kernel, lambda event: isinstance(event, Acquire))
        assert isinstance(first, Acquire)
        assert (first.protocol, first.reqid) == (IpsecProtocol.ESP, REQID)
        alice.kernel.install_outbound([esp], [out])
        again = wait_for(alice.kernel, lambda event: isinstance(event, Acquire))
        assert isinstance(again, Acquire)
        assert (again.protocol, again.mode) == (IpsecProtocol.AH, Mode.TRANSPORT)
        assert (again.source, again.destination) == (ah.id.source, ah.id.destination)
        alice.kernel.clear_acquire(again)
        sender.sendto(b"2", to)
        third = wait_for(alice.kernel, lambda event: isinstance(event, Acquire | Expire))
        assert isinstance(third, Acquire)  # had it not been cleared, it would expire first
        assert third.sequence != again.sequence
        assert alice.kernel.remove(esp.id)
        bob.kernel.install_inbound([esp, ah])
        alice.kernel.install_outbound([esp, ah], [out])
        assert [receiver.recv(64) for _ in range(2)] == [b"1", b"2"]


def test_an_acquire_around_a_tunnel_is_between_its_ends(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"], sides["bob"]
    inner, outer = (pair_of(alice.node, bob.node, family) for family in (6, 4))
    out = rule(Direction.OUT, Selector.between(*inner), templates(BOTH, outer))
    alice.kernel.write_policy(out)
    (esp,) = bundle(outer, 0x3180, GCM, Mode.TUNNEL, Selector.between(*inner))
    alice.kernel.install_outbound([esp], [])
    with udp(alice.node, 6) as sender:
        sender.sendto(b"1", (str(bob.node.ipv6), PORT))
        acquire = wait_for(alice.kernel, lambda event: isinstance(event, Acquire))
    assert isinstance(acquire, Acquire)
    assert acquire.protocol is IpsecProtocol.AH
    assert (acquire.source, acquire.destination) == outer
    assert acquire.flow.destination == ip_network(bob.node.ipv6)


def test_where_a_part_of_a_bundle_is_refused_nothing_of_it_stays(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"], sides["bob"]
    ends = pair_of(alice.node, bob.node, 4)
    kernel = alice.kernel
    spis = [kernel.allocate_spi(*ends, REQID, protocol) for protocol in BOTH.protocols]
    made = bundle(ends, 0, BOTH)
    esp, ah = (replace(sa, id=replace(sa.id, spi=spi)) for sa, spi in zip(made, spis, strict=True))
    bad_ah = replace(ah, transform=replace(ah.transform, authentication="hmac(none)"))
    bad_esp = replace(esp, transform=replace(esp.transform, aead="rfc4106(gcm(none))"))
    assert len(kernel.states()) == 2
    with pytest.raises(KernelError, match="UPDSA AH SA") as caught:
        kernel.install_inbound([esp, bad_ah])
    assert caught.value.errno == errno.ENOSYS
    assert kernel.states() == []
    for sas, refused in (([bad_esp, ah], "ESP"), ([esp, bad_ah], "AH")):
        with pytest.raises(KernelError, match=f"NEWSA {refused} SA"):
            kernel.install_outbound(sas, [])
        assert kernel.states() == []
    with pytest.raises(KernelError, match="NEWSA AH SA"):  # of two refusals the first one's
        kernel.install_outbound([bad_esp, bad_ah], [])
    # Nor does anything go that was there before.
    kernel.install_inbound([esp])
    with pytest.raises(KernelError, match="UPDSA AH SA"):
        kernel.install_inbound([esp, bad_ah])
    assert [state.id for state in kernel.states()] == [esp.id]
    with pytest.raises(KernelError, match="NEWSA ESP SA") as caught:
        kernel.install_outbound([esp, ah], [])
    assert caught.value.errno == errno.EEXIST
    assert [state.id for state in kernel.states()] == [esp.id]


def test_the_kernel_has_no_ah_around_a_tunnel_of_another_family(sides: dict[str, Side]) -> None:
    """So kinkd refuses such a bundle before the kernel does."""
    alice, bob = sides["alice"], sides["bob"]
    ends = pair_of(alice.node, bob.node, 4)
    inner = Selector.between(*pair_of(alice.node, bob.node, 6))
    with pytest.raises(LayoutError, match="carries another family"):
        alice.kernel.install_outbound(bundle(ends, 0x3200, BOTH, Mode.TUNNEL, inner), [])
    tried = alice.node.run(
        *("ip", "xfrm", "state", "add", "src", str(ends[0]), "dst", str(ends[1]), "proto", "ah"),
        *("spi", "0x3201", "mode", "transport", "auth-trunc", "hmac(sha256)", "0x" + "11" * 32),
        *("128", "sel", "src", str(inner.source), "dst", str(inner.destination)),
        check=False,
    )
    assert "Only tunnel modes can accommodate a change of family" in tried.stderr
    assert alice.kernel.states() == []


# --- tunnels ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Behind:
    """A host in the network behind a gateway."""

    node: Node
    networks: dict[int, str]


@pytest.fixture(scope="module")
def behind(network: Topology) -> Iterator[dict[str, Behind]]:
    """One host each behind alice and bob, which forward between their networks."""
    made = {}
    try:
        for number, gateway in enumerate(("alice", "bob"), 1):
            made[gateway] = _behind(network[gateway], number)
        for number, (here, there) in enumerate((("alice", "bob"), ("bob", "alice"))):
            other = 2 - number
            network[here].ip(
                f"route add 10.78.{other}.0/24 via {network[there].ipv4}",
                f"route add fd78:{other}::/64 via {network[there].ipv6}",
            )
        yield made
    finally:
        for each in made.values():
            subprocess.run(["ip", "netns", "delete", each.node.namespace], check=False)


def _behind(gateway: Node, number: int) -> Behind:
    namespace = f"behind-{gateway.name}-{secrets.token_hex(3)}"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    addresses = f"10.78.{number}.2", f"fd78:{number}::2"
    ipv4, ipv6 = (ip_address(address) for address in addresses)
    node = Node("behind", namespace, ipv4, ipv6)  # type: ignore[arg-type]  # one of each family
    node.sysctl("net.ipv6.conf.default.accept_dad", 0)
    gateway.sysctl("net.ipv4.ip_forward", 1)
    gateway.sysctl("net.ipv6.conf.all.forwarding", 1)
    gateway.ip(
        f"link add inside type veth peer name eth0 netns {namespace}",
        f"addr add 10.78.{number}.1/24 dev inside",
        f"addr add fd78:{number}::1/64 dev inside nodad",
        "link set inside up",
    )
    node.ip(
        "link set lo up",
        f"addr add {ipv4}/24 dev eth0",
        f"addr add {ipv6}/64 dev eth0 nodad",
        "link set eth0 up",
        f"route add default via 10.78.{number}.1",
        f"route add default via fd78:{number}::1",
    )
    return Behind(node, {4: f"10.78.{number}.0/24", 6: f"fd78:{number}::/64"})


@pytest.mark.parametrize(("inner", "outer"), FAMILIES)
def test_a_tunnel_between_hosts_carries_either_family(
    sides: dict[str, Side], inner: int, outer: int
) -> None:
    alice, bob = sides["alice"], sides["bob"]
    passage = Passage(alice.node, bob.node, inner)
    ends = pair_of(alice.node, bob.node, outer)
    out = rule(Direction.OUT, passage.selector, templates(GCM, ends))
    sas = bundle(ends, 0x4000, GCM, Mode.TUNNEL, passage.selector)
    bob.kernel.install_inbound(sas)
    alice.kernel.write_policy(out)
    alice.kernel.install_outbound(sas, [out])
    with counted(bob.node, "XfrmInNoPols"):  # a tunnel that no policy asks for
        assert not passage.passes()
    bob.kernel.write_policy(replace(out, direction=Direction.IN))
    assert passage.passes()
    (state,) = bob.kernel.states()
    assert (state.id, state.mode, state.selector) == (sas[0].id, Mode.TUNNEL, passage.selector)
    (shown,) = observe.read_states(bob.node)
    assert (shown.mode, shown.packets, shown.keymat) == ("tunnel", 2, bytes(sas[0].keymat.value))
    (_, written) = sorted(observe.read_policies(bob.node) + observe.read_policies(alice.node))
    assert f"tmpl src {ends[0]} dst {ends[1]} proto esp reqid {REQID} mode tunnel" in written


@pytest.mark.parametrize(("inner", "outer"), FAMILIES)
def test_gateways_speak_for_the_networks_behind_them_and_for_no_other(
    sides: dict[str, Side], behind: dict[str, Behind], inner: int, outer: int
) -> None:
    alice, bob = sides["alice"], sides["bob"]
    left, right = behind["alice"], behind["bob"]
    ends = pair_of(alice.node, bob.node, outer)
    networks = Selector(ip_network(left.networks[inner]), ip_network(right.networks[inner]))
    out = rule(Direction.OUT, networks, templates(GCM, ends))
    alice.kernel.write_policy(out)
    bob.kernel.write_policy(replace(out, direction=Direction.FWD))
    passage = Passage(left.node, right.node, inner)
    with counted(bob.node, "XfrmInTmplMismatch"):  # clear text under bob's policy
        assert alice.kernel.remove_policy(Direction.OUT, out.selector)
        assert not passage.passes()
    alice.kernel.write_policy(out)
    with (
        udp(left.node, inner) as sender,
        udp(right.node, inner) as receiver,
        raw(bob.node, outer, IpsecProtocol.ESP) as packets,
    ):
        sender.sendto(b"hello", (str(right.node.address(inner)), PORT))
        acquire = wait_for(alice.kernel, lambda event: isinstance(event, Acquire))
        assert isinstance(acquire, Acquire)
        assert ((acquire.source, acquire.destination), acquire.mode) == (ends, Mode.TUNNEL)
        assert acquire.flow.source == ip_network(left.node.address(inner))
        sas = reserved(bob.kernel, bundle(ends, 0, GCM, Mode.TUNNEL, networks))
        bob.kernel.install_inbound(sas)
        alice.kernel.install_outbound(sas, [out])
        assert receiver.recv(64) == b"hello"  # it was held by the gateway
        assert b"hello" not in packets.recv(2048)
    # alice, keyed as she is, speaks for an address that is not hers.
    forged = ip_address("10.99.9.9" if inner == 4 else "fd99::9")
    wide = Selector(ip_network(forged), networks.destination)
    (another,) = reserved(bob.kernel, bundle(ends, 0, GCM, Mode.TUNNEL, networks))
    bob.kernel.install_inbound([another])
    forging = rule(Direction.OUT, wide, templates(GCM, ends))
    alice.kernel.write_policy(forging)
    alice.kernel.install_outbound([replace(another, selector=wide)], [forging])
    bob.kernel.write_policy(replace(forging, direction=Direction.FWD))
    width = forged.max_prefixlen
    left.node.ip(f"addr add {forged}/{width} dev lo")
    try:
        with counted(bob.node, "XfrmInStateMismatch"):
            assert not passage.passes(forged)
    finally:
        left.node.ip(f"addr del {forged}/{width} dev lo")


def test_a_bundle_around_a_tunnel_between_gateways(
    sides: dict[str, Side], behind: dict[str, Behind]
) -> None:
    alice, bob = sides["alice"], sides["bob"]
    left, right = behind["alice"], behind["bob"]
    for family in (4, 6):
        ends = pair_of(alice.node, bob.node, family)
        networks = Selector(ip_network(left.networks[family]), ip_network(right.networks[family]))
        out = rule(Direction.OUT, networks, templates(BOTH, ends))
        alice.kernel.write_policy(out)
        bob.kernel.write_policy(replace(out, direction=Direction.FWD))
        sas = bundle(ends, 0x4200, BOTH, Mode.TUNNEL, networks)
        bob.kernel.install_inbound(sas)
        alice.kernel.install_outbound(sas, [out])
        passage = Passage(left.node, right.node, family)
        assert passage.passes()
        alice.kernel.write_policy(replace(out, templates=out.templates[:1]))
        with counted(bob.node, "XfrmInTmplMismatch"):
            assert not passage.passes()


# --- ESP in UDP -------------------------------------------------------------------------


def esp_in_udp(node: Node, family: int) -> socket.socket:
    """The socket that takes ESP out of UDP, not yet exempt from policy."""

    def make() -> socket.socket:
        kind = socket.AF_INET if family == 4 else socket.AF_INET6
        made = socket.socket(kind, socket.SOCK_DGRAM)
        made.bind((str(node.address(family)), ESP_PORT))
        made.setsockopt(socket.IPPROTO_UDP, UDP_ENCAP, UDP_ENCAP_ESPINUDP)
        return made

    return node.python(make)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("family", [4, 6])
def test_esp_in_udp_passes_a_policy_that_takes_udp_in_esp_only(
    sides: dict[str, Side], tmp_path: Path, network: Topology, family: int, mode: Mode
) -> None:
    alice, bob = sides["alice"], sides["bob"]
    passage = Passage(alice.node, bob.node, family)
    ends = pair_of(alice.node, bob.node, family)
    demands = templates(GCM, ends if mode is Mode.TUNNEL else None)
    out = rule(Direction.OUT, passage.selector, demands, port=PortMatch())
    alice.kernel.write_policy(out)
    bob.kernel.write_policy(replace(out, direction=Direction.IN))
    (plain,) = reserved(bob.kernel, bundle(ends, 0, GCM, mode))
    sa = replace(plain, udp=True)
    bob.kernel.install_inbound([sa])
    alice.kernel.install_outbound([sa], [out])
    (shown,) = observe.read_states(bob.node)
    assert shown.encapsulation == "espinudp sport 4500 dport 4500"
    (state,) = bob.kernel.states()
    assert state.udp
    path = tmp_path / "wire.pcap"
    with esp_in_udp(bob.node, family) as taker, observe.Capture(network.wire, "bob", path, "udp"):
        with counted(bob.node, "XfrmInTmplMismatch"):  # the UDP around it is clear text
            assert not passage.passes()
        taker.setsockopt(*BYPASS[family], xfrm.socket_bypass(Direction.IN, family))
        assert passage.passes()
        assert alice.kernel.remove(sa.id)
        alice.kernel.install_outbound([plain], [])
        with counted(bob.node, "XfrmInStateMismatch"):  # the same SA, but not in UDP
            assert not passage.passes()
    lines = observe.read_capture(path)
    assert len(lines) == 2
    for line in lines:
        assert ".4500 > " in line
        assert f"UDP-encap: ESP(spi=0x{sa.id.spi:08x}" in line
    policies = bob.node.run("ip", "xfrm", "policy").stdout
    assert "socket" not in policies  # it went with its socket
