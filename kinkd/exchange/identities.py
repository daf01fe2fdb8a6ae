"""Client identities of Quick Mode (RFC 2407 §4.6.2, RFC 4430 §5.3) as the selectors they mean.

All six types that KINK allows are read. The kernel selects by prefix, so a range is accepted
where it is one, and refused where it is not: an SA for more than was agreed on is none.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from kinkd.errors import LocalError, MalformedIsakmp, PeerError
from kinkd.model import IPAddress, IPNetwork, PortMatch, Selector
from kinkd.wire.isakmp import Identification
from kinkd.wire.numbers import IdType, NotifyType

_ONE_PORT = 0xFFFF
_WITH_PORTS = frozenset((6, 17, 33, 132, 136))  # TCP, UDP, DCCP, SCTP, UDP-Lite


def write(traffic: Selector) -> tuple[Identification, Identification]:
    """IDci and IDcr for traffic from the initiator's side to the responder's.

    Raises:
        LocalError: ports that they cannot say; left out, they would mean more traffic.
    """
    return (
        _write(traffic.source, traffic.protocol, traffic.source_port),
        _write(traffic.destination, traffic.protocol, traffic.destination_port),
    )


def read(initiator: Identification, responder: Identification) -> Selector:
    """The traffic that IDci and IDcr mean, from the initiator's side to the responder's.

    Raises:
        MalformedIsakmp: a type, length or value that cannot be.
        PeerError: NO-PROPOSAL-CHOSEN: a range that is no prefix.
    """
    source, destination = _read(initiator), _read(responder)
    if source.version != destination.version:
        raise MalformedIsakmp("client identities of two address families")
    protocol = initiator.protocol or responder.protocol
    if responder.protocol not in (0, protocol):
        raise MalformedIsakmp("client identities of two protocols")
    if (initiator.port or responder.port) and protocol not in _WITH_PORTS:
        raise MalformedIsakmp(f"a port of protocol {protocol}")
    return Selector(source, destination, protocol, _port(initiator), _port(responder))


def _write(network: IPNetwork, protocol: int, port: PortMatch) -> Identification:
    address = network.network_address.packed
    number = _port_number(protocol, port)
    if network.prefixlen == network.max_prefixlen:
        kind = IdType.IPV4_ADDR if network.version == 4 else IdType.IPV6_ADDR
        return Identification(kind, protocol, number, address)
    kind = IdType.IPV4_ADDR_SUBNET if network.version == 4 else IdType.IPV6_ADDR_SUBNET
    return Identification(kind, protocol, number, address + network.netmask.packed)


def _port_number(protocol: int, port: PortMatch) -> int:
    if not port.mask:
        return 0
    if port.mask != _ONE_PORT or not port.port or protocol not in _WITH_PORTS:
        raise LocalError(f"no client identity says port {port.port}/{port.mask:#06x} of {protocol}")
    return port.port


def _read(identity: Identification) -> IPNetwork:
    data, half = identity.data, len(identity.data) // 2
    first, last = data[:half], data[half:]
    match identity.id_type, len(data):
        case (IdType.IPV4_ADDR, 4) | (IdType.IPV6_ADDR, 16):
            return ip_network(data)
        case (IdType.IPV4_ADDR_SUBNET, 8) | (IdType.IPV6_ADDR_SUBNET, 32):
            # Host bits mean nothing (RFC 2407 §4.6.2.4): the mask says what counts.
            return ip_network((first, _prefix(last)), strict=False)
        case (IdType.IPV4_ADDR_RANGE, 8) | (IdType.IPV6_ADDR_RANGE, 32):
            return _range(ip_address(first), ip_address(last))
        case _:
            raise MalformedIsakmp(f"identity type {identity.id_type} of {len(data)} octets")


def _prefix(mask: bytes) -> int:
    """The bits of a mask, which stand at its beginning (RFC 2407 §4.6.2.4)."""
    width, value = 8 * len(mask), int.from_bytes(mask, "big")
    bits = value.bit_count()
    if value != ((1 << bits) - 1) << (width - bits):
        raise MalformedIsakmp("a subnet whose mask has holes")
    return bits


def _range(first: IPAddress, last: IPAddress) -> IPNetwork:
    low, high = int(first), int(last)
    if low > high:
        raise MalformedIsakmp("a range that ends before it begins")
    size = high - low + 1
    if size & (size - 1) or low & (size - 1):
        raise PeerError(
            "range-is-no-prefix",
            f"{first} to {last}: the kernel selects by prefix",
            notify=NotifyType.NO_PROPOSAL_CHOSEN,
        )
    return ip_network((first, first.max_prefixlen - (size.bit_length() - 1)))


def _port(identity: Identification) -> PortMatch:
    return PortMatch(identity.port, _ONE_PORT) if identity.port else PortMatch()
