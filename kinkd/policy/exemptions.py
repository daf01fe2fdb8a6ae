"""What passes in clear whatever the rules say, because without it nothing could be keyed.

All of it is narrow: by protocol and port or type, and where there is one, in the direction of the
client. A server's answers pass to the ports alone from which this host's programs ask: whoever
sends from port 88 or 53 reaches no service here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from typing import Final, NamedTuple

from kinkd.model import Direction, Host, IPAddress, PortMatch, Selector, lone
from kinkd.policy import traffic
from kinkd.policy.traffic import Traffic

EXEMPTION_COUNT: Final = 10_000  # the part of the band that exemptions take, at its beginning

KINK_PORT: Final = 910  # RFC 4430 §4
UDP: Final = 17
ICMP: Final = 1
ICMPV6: Final = 58
NEIGHBOR_SOLICITATION: Final = 135  # RFC 4861 §4.3
NEIGHBOR_ADVERTISEMENT: Final = 136  # RFC 4861 §4.4
FRAGMENTATION_NEEDED: Final = (3, 4)  # type and code, RFC 1191 §4
PACKET_TOO_BIG: Final = 2  # RFC 4443 §3.2

SERVICES: Final = {
    "kdc": ("tcp/88", "udp/88", "tcp/464", "udp/464"),
    "dns": ("udp/53", "tcp/53"),
    "ntp": ("udp/123",),
    "directory": ("tcp/389", "tcp/636"),
}
"""What may be reached in clear at a server."""
_FROM_ITS_OWN_PORT: Final = {"ntp": ("udp/123 from 123",)}  # RFC 5905 §9.1: of both sides

_ANY_V4: Final = ip_network("0.0.0.0/0")
_ANY_V6: Final = ip_network("::/0")
_ANY: Final = {4: _ANY_V4, 6: _ANY_V6}
_ONE: Final = 0xFFFF
_HIGH: Final = 0x8000
_EVERY: Final = PortMatch()

Exempt = tuple[Direction, Selector]


class Breadth(NamedTuple):
    """What the entries of a host's policy meet.

    ``families`` in which something is kept from passing; ``broad``: those of them in which it is
    kept from passing to more than single addresses of hosts.
    """

    families: frozenset[int]
    broad: frozenset[int]


def exemptions(
    me: Host, servers: Iterable[tuple[str, IPAddress]], client_ports: range, breadth: Breadth
) -> list[Exempt]:
    """What is exempt at this host, without repetitions."""
    found = itertools.chain(
        _kink(me),
        _neighbor_discovery() if 6 in breadth.families else (),
        _path_mtu(breadth.broad),
        _dhcp(breadth.broad),
        _servers(me, servers, client_ports),
    )
    return list(dict.fromkeys(found))


def _kink(me: Host) -> Iterator[Exempt]:
    """KINK of this host itself: from port 910 to port 910, nothing else of either port.

    Of nobody behind it: that goes into the tunnel, as all else.
    """
    port = PortMatch(KINK_PORT, _ONE)
    for address in me.addresses:
        out = Selector(lone(address), _ANY[address.version], UDP, port, port)
        yield from _both_ways(out)


def _neighbor_discovery() -> Iterator[Exempt]:
    """Without it the first packet waits for a neighbor that waits for an SA."""
    for icmp_type in (NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT):
        yield from _icmp(6, ICMPV6, PortMatch(icmp_type, _ONE))


def _path_mtu(families: Iterable[int]) -> Iterator[Exempt]:
    """What routers, whom nobody can key, say of the way to a peer: ESP itself goes by it."""
    if 4 in families:
        icmp_type, code = FRAGMENTATION_NEEDED
        yield from _icmp(4, ICMP, PortMatch(icmp_type, _ONE), PortMatch(code, _ONE))
    if 6 in families:
        yield from _icmp(6, ICMPV6, PortMatch(PACKET_TOO_BIG, _ONE))


def _icmp(
    version: int, protocol: int, icmp_type: PortMatch, code: PortMatch = _EVERY
) -> Iterator[Exempt]:
    # Type and code stand where others have source and destination port.
    for direction in Direction:
        yield direction, Selector(_ANY[version], _ANY[version], protocol, icmp_type, code)


def _dhcp(families: Iterable[int]) -> Iterator[Exempt]:
    """A lease is renewed at the server's own address (RFC 2131 §4.4.5, RFC 8415 §7.2)."""
    for version, client, server in ((4, 68, 67), (6, 546, 547)):
        if version in families:
            any_of_all = _ANY[version]
            ports = (PortMatch(client, _ONE), PortMatch(server, _ONE))
            yield from _both_ways(Selector(any_of_all, any_of_all, UDP, *ports))


def _both_ways(out: Selector) -> Iterator[Exempt]:
    yield Direction.OUT, out
    yield Direction.IN, out.reversed()


def _servers(
    me: Host, servers: Iterable[tuple[str, IPAddress]], client_ports: range
) -> Iterator[Exempt]:
    """Requests of this host to a server's port and their answers; not what others ask from there.

    On the server itself the same requests come in, from anyone.
    """
    for service, address in dict.fromkeys(servers):
        far = lone(address)
        if address in me.addresses:
            for word in SERVICES[service]:
                for request in traffic.parse(word).selectors(_ANY[address.version], far):
                    yield Direction.IN, request
                    yield Direction.OUT, request.reversed()
        for mine in me.addresses:
            if mine.version == address.version and mine != address:
                for asked in _asked(service, client_ports):
                    for request in asked.selectors(lone(mine), far):
                        yield from _both_ways(request)
                    for request in asked.unbound(lone(mine), far):
                        yield Direction.OUT, request


def _asked(service: str, client_ports: range) -> Iterator[Traffic]:
    # Up to the end of all ports: in the kernel's masks one entry instead of many.
    last = 0xFFFF if client_ports.start >= _HIGH else client_ports.stop - 1
    ports = f"{client_ports.start}-{last}"
    for word in SERVICES[service]:
        yield traffic.parse(f"{word} from {ports}")
    yield from map(traffic.parse, _FROM_ITS_OWN_PORT.get(service, ()))
