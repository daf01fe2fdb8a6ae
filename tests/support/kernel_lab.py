"""Hosts whose kernels are keyed by hand: what the laboratory's tests of ``kernel`` share."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from kinkd.kernel.port import KernelEvent, Sa, SaId
from kinkd.kernel.socket import XfrmSocket
from kinkd.keying.algorithms import SUITES
from kinkd.model import (
    Direction,
    IPAddress,
    Mode,
    PortMatch,
    Secret,
    Selector,
    SpdEntry,
    Suite,
    Template,
)
from tests.support.topology import Node, Topology

REQID = 0x4B01
PORT = 7777
GCM = SUITES["aes256gcm16"]
_ONE_PORT = PortMatch(PORT, 0xFFFF)
Ends = tuple[IPAddress, IPAddress]


@dataclass(frozen=True)
class Side:
    """A host and the requests to its kernel."""

    node: Node
    kernel: XfrmSocket


@contextmanager
def hosts() -> Iterator[Topology]:
    """alice, bob and carol. Larval SAs lapse after five seconds."""
    with Topology(("alice", "bob", "carol")) as topology:
        for node in topology.nodes.values():
            node.sysctl("net.core.xfrm_acq_expires", 5)
        yield topology


@contextmanager
def sides_of(network: Topology) -> Iterator[dict[str, Side]]:
    """All hosts by name; their kernels are empty again afterwards."""
    made = {name: Side(node, node.python(XfrmSocket)) for name, node in network.nodes.items()}
    try:
        yield made
    finally:
        for side in made.values():
            side.node.ip("xfrm state flush", "xfrm policy flush")
            side.kernel.close()


def pair_of(source: Node, destination: Node, family: int) -> Ends:
    """The addresses of two hosts."""
    return source.address(family), destination.address(family)


def bundle(
    ends: Ends,
    spi: int,
    suite: Suite = GCM,
    mode: Mode = Mode.TRANSPORT,
    selector: Selector | None = None,
) -> list[Sa]:
    """The SAs of a suite, one way; SPIs count upwards. ``mode`` is that of the first of them."""
    made = []
    for number, transform in enumerate(suite.transforms):
        octets = bytes((spi + number + place) % 256 for place in range(transform.keymat_octets))
        name = SaId(*ends, spi + number, transform.protocol)
        selected = selector or Selector.between(*ends)
        sa = Sa(name, mode, REQID, selected, transform, Secret(octets))
        if number and mode is Mode.TUNNEL:
            sa = replace(sa, mode=Mode.TRANSPORT, tunnelled=True)
        made.append(sa)
    return made


def sa(source: Node, destination: Node, family: int, spi: int, suite: Suite = GCM) -> Sa:
    """The one SA of a suite in transport mode."""
    (made,) = bundle(pair_of(source, destination, family), spi, suite)
    return made


def templates(suite: Suite, tunnel: Ends | None = None) -> tuple[Template, ...]:
    """What an SPD entry demands for the suite; in tunnel mode the first one is the tunnel."""
    first, *others = suite.protocols
    rest = tuple(Template(protocol, Mode.TRANSPORT, REQID) for protocol in others)
    if tunnel is None:
        return (Template(first, Mode.TRANSPORT, REQID), *rest)
    return (Template(first, Mode.TUNNEL, REQID, *tunnel), *rest)


def rule(
    direction: Direction,
    selector: Selector,
    demands: Sequence[Template],
    port: PortMatch = _ONE_PORT,
) -> SpdEntry:
    """UDP, and to the tests' port only, so that neighbour discovery stays out of it."""
    narrowed = replace(selector, protocol=socket.IPPROTO_UDP, destination_port=port)
    return SpdEntry(direction, narrowed, 100, tuple(demands))


def require(alice: Side, bob: Side, family: int, suite: Suite = GCM) -> SpdEntry:
    """Transport mode from alice to bob is demanded of both; alice's entry."""
    selector = Selector.between(*pair_of(alice.node, bob.node, family))
    out = rule(Direction.OUT, selector, templates(suite))
    alice.kernel.write_policy(out)
    bob.kernel.write_policy(replace(out, direction=Direction.IN))
    return out


def udp(node: Node, family: int, address: IPAddress | None = None) -> socket.socket:
    """A socket on the tests' port of a host."""
    made = node.python(
        lambda: socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    )
    made.bind((str(address or node.address(family)), PORT))
    made.settimeout(5)
    return made


def raw(node: Node, family: int, protocol: int) -> socket.socket:
    """What arrives of an IP protocol, as it was on the wire; of IPv4 with the IP header."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    made = node.python(lambda: socket.socket(kind, socket.SOCK_RAW, protocol))
    made.settimeout(5)
    return made


def nothing_arrives(receiver: socket.socket) -> bool:
    """Within a third of a second."""
    return not select.select([receiver], [], [], 0.3)[0]


def wait_for(kernel: XfrmSocket, wanted: Callable[[KernelEvent], bool]) -> KernelEvent:
    """The first event of that kind.

    Raises:
        AssertionError: none came in 20 seconds.
    """
    until = time.monotonic() + 20
    while time.monotonic() < until:
        select.select([kernel], [], [], 1)
        for event in kernel.events():
            if wanted(event):
                return event
    raise AssertionError("the event did not come")
