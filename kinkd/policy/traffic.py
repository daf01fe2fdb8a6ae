"""The words for traffic: what a rule is about, and the selectors of the kernel that say so.

    any
    icmp                        ICMP of IPv4, and ICMPv6 of IPv6
    tcp                         also udp, sctp, dccp, udplite
    tcp/443                     to this port of the side that answers
    tcp/8000-8080
    udp/53 from 1024-65535      from these ports of the side that asks
    gre                         and others by name
    ip/89                       all others by number

A word speaks of packets of the side that asks; the answers are the same the other way.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass
from typing import Final

from kinkd.document import show, suggestion
from kinkd.model import IPNetwork, PortMatch, Selector

ICMP: Final = 1
ICMPV6: Final = 58
ALL_PORTS: Final = range(0x10000)  # 0 as well: of a protocol without ports the kernel says 0

NO_PORT: Final = PortMatch(0, 0xFFFF)

# IANA's registry of protocol numbers. A table and not the host's /etc/protocols: all hosts of a
# realm have to read the same.
_WITH_PORTS: Final = {"tcp": 6, "udp": 17, "sctp": 132, "dccp": 33, "udplite": 136}
_CONNECTED: Final = (_WITH_PORTS["tcp"], _WITH_PORTS["dccp"])
_NUMBERS: Final = {
    "any": 0,
    "icmp": ICMP,
    **_WITH_PORTS,
    "igmp": 2,
    "rsvp": 46,
    "gre": 47,
    "eigrp": 88,
    "ospf": 89,
    "etherip": 97,
    "pim": 103,
    "vrrp": 112,
    "l2tp": 115,
    "hip": 139,
}
_NAMES: Final = {number: name for name, number in _NUMBERS.items()}
_ICMP_NAMES: Final = ("icmpv6", "icmp6", "ipv6-icmp", "icmp4", "icmpv4")
_IPSEC: Final = {"esp": 50, "ah": 51}
_EXTENSION_HEADERS: Final = (43, 44, 59, 60)  # RFC 8200 §4
_HIGHEST: Final = 254  # 255 is reserved

_EXAMPLES: Final = '"any", "icmp", "tcp/443", "udp/53 from 1024-65535", "ip/89"'
_FROM: Final = re.compile(r"\bfrom\b")
_PORTS: Final = re.compile(r"([0-9]+)(?:\s*-\s*([0-9]+))?")
_NUMBER: Final = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class Traffic:
    """Packets of one protocol, or of any, as ``parse`` reads them from a word.

    ``number`` 0: any protocol; 1: ICMP, which is 58 in IPv6. Protocols without ports have all of
    them. ``ports`` are those of the side that answers, ``source_ports`` of the one that asks.
    """

    number: int = 0
    ports: range = ALL_PORTS
    source_ports: range = ALL_PORTS

    def __str__(self) -> str:
        text = _NAMES.get(self.number) or f"ip/{self.number}"
        text += f"/{_ports_text(self.ports)}" * (self.ports != ALL_PORTS)
        return text + f" from {_ports_text(self.source_ports)}" * (self.source_ports != ALL_PORTS)

    @property
    def has_ports(self) -> bool:
        """Whether it is told by ports: then what is asked and what is answered are two things."""
        return self.ports != ALL_PORTS or self.source_ports != ALL_PORTS

    def protocol(self, version: int) -> int:
        """What packets of IP ``version`` carry; 0: any."""
        return ICMPV6 if self.number == ICMP and version == 6 else self.number

    def selectors(self, source: IPNetwork, destination: IPNetwork) -> tuple[Selector, ...]:
        """Disjoint ones that together are this traffic, from who asks to who answers.

        The two are of one address family. As many as the ranges of ports take: 30 each at most.
        """
        protocol = self.protocol(source.version)
        matches = itertools.product(_matches(self.source_ports), _matches(self.ports))
        return tuple(Selector(source, destination, protocol, *ports) for ports in matches)

    def unbound(self, source: IPNetwork, destination: IPNetwork) -> tuple[Selector, ...]:
        """What the kernel asks for when one who asks connects and has no port yet.

        TCP and DCCP ask the policies before they choose a port. Over IPv4 they ask again then; over
        IPv6 the first answer holds for the connection. On a wire there is no port 0.
        """
        protocol = self.protocol(source.version)
        if protocol not in _CONNECTED or self.source_ports == ALL_PORTS:
            return ()
        ports = _matches(self.ports)
        return tuple(Selector(source, destination, protocol, NO_PORT, port) for port in ports)

    def covers(self, other: Traffic) -> bool:
        """Whether every packet of ``other`` is one of this."""
        return (
            self.number in (0, other.number)
            and is_within(other.ports, self.ports)
            and is_within(other.source_ports, self.source_ports)
        )

    def overlaps(self, other: Traffic) -> bool:
        """Whether some packet is one of both."""
        return (
            (self.number == other.number or 0 in (self.number, other.number))
            and meet(self.ports, other.ports)
            and meet(self.source_ports, other.source_ports)
        )

    def admits(self, version: int, protocol: int, source_port: int, destination_port: int) -> bool:
        """Whether a packet of the side that asks is one of this; without ports, they are 0."""
        return (
            self.protocol(version) in (0, protocol)
            and source_port in self.source_ports
            and destination_port in self.ports
        )


ANY: Final = Traffic()


def parse(word: str) -> Traffic:
    """Read one word for traffic; neither case matters nor spaces around its parts.

    Raises:
        ValueError: it is none; says what would be right.
    """
    what, *sources = _FROM.split(word.strip().lower(), maxsplit=1)
    name, *ports = (part.strip() for part in what.split("/", maxsplit=1))
    if not name:
        raise ValueError(f"{show(word)} is no traffic; write it like {_EXAMPLES}")
    if name == "ip":
        number = _protocol_number(ports[0] if ports else "")
        ports = []
    else:
        number = _named(name)
    if number in _WITH_PORTS.values():
        return Traffic(number, _read_ports(ports), _read_ports(sources))
    if ports or sources:
        raise ValueError(_without_ports(number))
    return Traffic(number)


def _named(name: str) -> int:
    if name in _IPSEC:
        return _usable(_IPSEC[name])
    if name in _ICMP_NAMES:
        return _usable(ICMPV6)
    if _PORTS.fullmatch(name):
        raise ValueError(f'{show(name)} has no protocol; write {show(f"tcp/{name}")}, or "udp/..."')
    if name not in _NUMBERS:
        raise ValueError(
            f'{show(name)} is no protocol known here (by number, one is written like "ip/89");'
            f" {suggestion(name, _NUMBERS)}"
        )
    return _NUMBERS[name]


def _protocol_number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(
            f'"ip" takes the number of a protocol, and {show(text)} is none; write it like "ip/89",'
            ' or "any"'
        )
    return _usable(int(text))


def _usable(number: int) -> int:
    """Of the numbers of protocols, one that traffic can be told by."""
    if number in _IPSEC.values():
        raise ValueError(
            f"protocol {number} is IPsec's own: it protects traffic and is not what a rule is"
            ' about; name what it carries, or "any"'
        )
    if number in (ICMP, ICMPV6):
        raise ValueError('ICMP of either version of IP is written "icmp"')
    if number == 0:
        raise ValueError('0 is no protocol of packets; of all protocols write "any"')
    if number in _EXTENSION_HEADERS:
        raise ValueError(
            f"{number} is an extension header of IPv6 and not what a packet carries; write"
            ' the protocol behind it, or "any"'
        )
    if number > _HIGHEST:
        raise ValueError(f"{number}: numbers of protocols are 1 to {_HIGHEST}")
    return number


def _without_ports(number: int) -> str:
    if number == 0:
        return 'traffic of any protocol has no ports; name one, like "tcp/443", or write "any"'
    if number == ICMP:
        return 'ICMP has no ports, and its types go together; write "icmp"'
    return f"protocol {number} has no ports; write {show(str(Traffic(number)))}"


def _read_ports(texts: list[str]) -> range:
    if not texts:
        return ALL_PORTS
    text = texts[0].strip()
    if not (match := _PORTS.fullmatch(text)):
        raise ValueError(
            f'{show(text)} is neither a port nor a range of ports; write "443" or "8000-8080"'
        )
    low, high = (match[1], match[2] or match[1])
    for port in (low, high):
        if len(port) > 5 or not 1 <= int(port) <= 0xFFFF:
            raise ValueError(f"{show(port)}: ports are 1 to 65535")
    if int(low) > int(high):
        raise ValueError(f"{show(text)} is reversed; write {show(f'{high}-{low}')}")
    return range(int(low), int(high) + 1)


def _ports_text(ports: range) -> str:
    return f"{ports[0]}" if len(ports) == 1 else f"{ports[0]}-{ports[-1]}"


@functools.lru_cache(maxsize=1024)  # of one range, the selectors of very many pairs of networks
def _matches(ports: range) -> tuple[PortMatch, ...]:
    """The fewest disjoint blocks that are the range, each as the bits that its ports share.

    Masks with holes could do with fewer where both ends are odd, and nobody could read them.
    """
    found: list[PortMatch] = []
    low = ports.start
    while low < ports.stop:
        size = low & -low or len(ALL_PORTS)
        while low + size > ports.stop:
            size >>= 1
        found.append(PortMatch(low, len(ALL_PORTS) - size))
        low += size
    return tuple(found)


def is_within(inner: range, outer: range) -> bool:
    """Whether all ports of a range are ports of another."""
    return outer.start <= inner.start and inner.stop <= outer.stop


def meet(one: range, other: range) -> bool:
    """Whether two ranges of ports have one in common."""
    return one.start < other.stop and other.start < one.stop
