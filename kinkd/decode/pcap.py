"""Packets out of a classic capture file: KINK datagrams whole, everything else in brief."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from struct import Struct

from kinkd.decode.fragments import Reassembler, RefusedError
from kinkd.decode.words import IP_PROTOCOLS
from kinkd.errors import LocalError, PeerError
from kinkd.model import IPAddress
from kinkd.wire.cursor import Cursor
from kinkd.wire.numbers import ESP_IN_UDP_PORT, KINK_PORT

MAX_FRAME = 0x40000
"""Octets of one captured frame; what claims more is damage (libpcap's own bound)."""

_MAGICS: Mapping[bytes, tuple[str, int]] = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),  # octet order, nanoseconds in a unit of the fraction
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}
_PCAPNG = b"\x0a\x0d\x0d\x0a"

_ETHERNET = Struct("!12xH")
_TAG = Struct("!2xH")
_SLL = Struct("!14xH")
_SLL2 = Struct("!H18x")
_IPV4 = Struct("!B1xHHH1xB2x4s4s")
_IPV6 = Struct("!B3xHB1x16s16s")
_UDP = Struct("!HHH2x")
_PORTS = Struct("!HH")
_ESP = Struct("!II")
_AH = Struct("!B3xII")
_EXTENSION = Struct("!BB")
_FRAGMENT = Struct("!BxHI")

_ETHERTYPE_IPV4 = 0x0800
_ETHERTYPE_IPV6 = 0x86DD
_ETHERTYPE_NAMES = {0x0806: "ARP"}
_TAGS = (0x8100, 0x88A8)

_EXTENSIONS = (0, 43, 60)  # hop-by-hop options, routing, destination options: RFC 8200 §4.1
_FRAGMENT_HEADER = 44


@dataclass(frozen=True, slots=True)
class Datagram:
    """A UDP datagram to or from the port of KINK. ``time``: POSIX nanoseconds."""

    time: int
    source: IPAddress
    source_port: int
    destination: IPAddress
    destination_port: int
    octets: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Other:
    """Any other packet. ``kind``: ESP, AH, ICMP, ...; ``clear``: it shows its contents.

    ``sequence`` is that of ESP or AH.
    """

    time: int
    kind: str
    clear: bool
    source: IPAddress | None = None
    destination: IPAddress | None = None
    detail: str = ""
    sequence: int | None = None


Packet = Datagram | Other


class _UnreadableError(PeerError):
    """One packet cannot be read; the capture as a whole can."""

    def __init__(self, detail: str) -> None:
        super().__init__("unreadable", detail)


def read(octets: bytes) -> Iterator[Packet]:
    """The packets of a capture, in its order.

    Raises:
        LocalError: no classic pcap file, another link type, or a damaged file.
    """
    magic = octets[:4]
    if magic == _PCAPNG:
        raise LocalError("a pcapng file: convert it with `editcap -F pcap IN OUT`")
    if magic not in _MAGICS:
        raise LocalError("no capture file: it does not begin as pcap files do")
    order, unit = _MAGICS[magic]
    cursor = Cursor(octets, _damaged)
    (link,) = cursor.unpack(Struct(f"{order}20xI"))
    link &= 0x0FFFFFFF  # the upper bits say how long the frame check sequence is
    if link not in _LINKS:
        known = ", ".join(str(number) for number in sorted(_LINKS))
        raise LocalError(f"link type {link} is not one that can be read ({known})")
    record = Struct(f"{order}IIII")
    fragments = Reassembler()
    while cursor.remaining:
        seconds, fraction, captured, original = cursor.unpack(record)
        if captured > MAX_FRAME:
            raise LocalError(f"a damaged capture file: a frame of {captured} octets")
        time = seconds * 1_000_000_000 + fraction * unit
        frame = cursor.take(captured)
        yield _read_frame(time, frame, _LINKS[link], original > captured, fragments)


def _damaged(detail: str) -> LocalError:
    return LocalError(f"a damaged or cut-off capture file: {detail}")


def _read_frame(
    time: int,
    frame: bytes,
    link: Callable[[Cursor], int],
    cut: bool,
    fragments: Reassembler,
) -> Packet:
    cursor = Cursor(frame, _UnreadableError)
    try:
        ethertype = link(cursor)
        if ethertype == _ETHERTYPE_IPV4:
            return _read_ipv4(time, cursor, fragments)
        if ethertype == _ETHERTYPE_IPV6:
            return _read_ipv6(time, cursor, fragments)
    except _UnreadableError as error:
        why = "cut off by the capture" if cut else error.detail
        return Other(time, "unreadable", True, detail=why)
    return Other(time, _ETHERTYPE_NAMES.get(ethertype, f"ethertype {ethertype:#06x}"), True)


def _ethernet(cursor: Cursor) -> int:
    (ethertype,) = cursor.unpack(_ETHERNET)
    while ethertype in _TAGS:
        (ethertype,) = cursor.unpack(_TAG)
    return int(ethertype)


def _raw(cursor: Cursor) -> int:
    version = cursor.peek() >> 4
    return {4: _ETHERTYPE_IPV4, 6: _ETHERTYPE_IPV6}.get(version, 0)


def _cooked(cursor: Cursor) -> int:
    return int(cursor.unpack(_SLL)[0])


def _cooked2(cursor: Cursor) -> int:
    return int(cursor.unpack(_SLL2)[0])


_LINKS: Mapping[int, Callable[[Cursor], int]] = {
    1: _ethernet,
    12: _raw,
    101: _raw,
    113: _cooked,
    228: _raw,
    229: _raw,
    276: _cooked2,
}


def _read_ipv4(time: int, cursor: Cursor, fragments: Reassembler) -> Packet:
    first, total, identification, flags, protocol, source, destination = cursor.unpack(_IPV4)
    header = (first & 0x0F) * 4
    cursor.take(header - _IPV4.size)
    body = cursor.sub(total - header)
    ends = IPv4Address(source), IPv4Address(destination)
    if flags & 0x3FFF:  # More Fragments, or an offset
        key = (*ends, protocol, identification)  # RFC 791 §3.2
        more, offset = bool(flags & 0x2000), (flags & 0x1FFF) * 8
        return _read_fragment(time, ends, key, protocol, offset, more, body, fragments)
    return _read_transport(time, ends, protocol, body)


def _read_ipv6(time: int, cursor: Cursor, fragments: Reassembler) -> Packet:
    _, length, protocol, source, destination = cursor.unpack(_IPV6)
    body = cursor.sub(length)
    ends = IPv6Address(source), IPv6Address(destination)
    protocol = _skip_extensions(protocol, body)
    if protocol == _FRAGMENT_HEADER:
        protocol, place, identification = body.unpack(_FRAGMENT)
        key = (*ends, identification)  # RFC 8200 §4.5
        more, offset = bool(place & 1), place & 0xFFF8
        if not more and not offset:
            key = (*ends, None)  # a fragment of its own, whatever else is under way: RFC 6946 §4
        return _read_fragment(time, ends, key, protocol, offset, more, body, fragments)
    return _read_transport(time, ends, protocol, body)


def _skip_extensions(protocol: int, body: Cursor) -> int:
    while protocol in _EXTENSIONS:
        protocol, units = body.unpack(_EXTENSION)
        body.take(units * 8 + 6)
    return protocol


def _read_fragment(
    time: int,
    ends: tuple[IPAddress, IPAddress],
    key: Hashable,
    protocol: int,
    offset: int,
    more: bool,
    body: Cursor,
    fragments: Reassembler,
) -> Packet:
    """A fragment in brief, or the packet that it completes."""
    try:
        whole = fragments.add(time, key, protocol, offset, more, body.rest())
    except RefusedError as error:
        return _fragment(time, ends, protocol, f"an IP fragment, refused: {error.detail}")
    if whole is None:
        return _fragment(time, ends, protocol, "an IP fragment")
    protocol, body = whole[0], Cursor(whole[1], _UnreadableError)
    if ends[0].version == 6:  # destination options may follow the Fragment header: RFC 8200 §4.1
        protocol = _skip_extensions(protocol, body)
    return _read_transport(time, ends, protocol, body)


def _fragment(time: int, ends: tuple[IPAddress, IPAddress], protocol: int, detail: str) -> Other:
    name = IP_PROTOCOLS.get(protocol, f"protocol {protocol}")
    return Other(time, name, protocol not in (50, 51), *ends, detail)


def _read_transport(
    time: int, ends: tuple[IPAddress, IPAddress], protocol: int, body: Cursor
) -> Packet:
    name = IP_PROTOCOLS.get(protocol, f"protocol {protocol}")
    if name == "UDP":
        source_port, destination_port, length = body.unpack(_UDP)
        if KINK_PORT in (source_port, destination_port):
            payload = body.take(length - _UDP.size)
            return Datagram(time, ends[0], source_port, ends[1], destination_port, payload)
        detail = f"port {source_port} > {destination_port}"
        if ESP_IN_UDP_PORT in (source_port, destination_port):
            return _read_encapsulated(time, ends, detail, body)
        return Other(time, name, True, *ends, detail)
    if name == "TCP":
        source_port, destination_port = body.unpack(_PORTS)
        return Other(time, name, True, *ends, f"port {source_port} > {destination_port}")
    if name == "ESP":
        spi, sequence = body.unpack(_ESP)
        return Other(time, name, False, *ends, f"spi {spi:#010x}", sequence)
    if name == "AH":  # protects what it carries, does not hide it
        carried, spi, sequence = body.unpack(_AH)
        what = IP_PROTOCOLS.get(carried, f"protocol {carried}")
        detail = f"spi {spi:#010x} carrying {what}"
        return Other(time, name, what != "ESP", *ends, detail, sequence)
    return Other(time, name, True, *ends)


def _read_encapsulated(
    time: int, ends: tuple[IPAddress, IPAddress], ports: str, body: Cursor
) -> Other:
    """ESP in UDP, a keep-alive, or IKE, which marks its own (RFC 3948 §2)."""
    if body.remaining < _ESP.size:
        kind = "NAT keep-alive" if body.rest()[:1] == b"\xff" else "UDP"
        return Other(time, kind, True, *ends, ports)
    spi, sequence = body.unpack(_ESP)
    if not spi:
        return Other(time, "IKE", True, *ends, ports)
    return Other(time, "ESP in UDP", False, *ends, f"{ports} spi {spi:#010x}", sequence)
