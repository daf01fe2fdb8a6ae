"""Readers of what the kernel says over NETLINK_XFRM: SAs, policies, acquires, expiries."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import AF_INET, AF_INET6

from kinkd.kernel.layouts import (
    ACQUIRE,
    ACQUIRE_INDEX,
    ACQUIRE_SELECTOR,
    ACQUIRE_SEQUENCE,
    ALGORITHM,
    BLOCK,
    ENCAP,
    ESP_IN_UDP,
    EXPIRE,
    INFINITE,
    NUMBER,
    POLICY,
    POLICY_TAIL,
    PORTS,
    PRIORITY_INDEX_DIRECTION_ACTION,
    REQID_FAMILY_MODE,
    SA_CURRENT,
    SA_FLAGS,
    SA_ID,
    SA_LIMITS,
    SA_REQID,
    SA_SEQUENCE,
    SA_SOURCE,
    STATE_ESN,
    TEMPLATE,
    USERSA,
    USERSA_ID,
    Attribute,
    Type,
)
from kinkd.kernel.netlink import MalformedMessage, Message, attributes
from kinkd.kernel.port import Acquire, Deleted, Expire, KernelEvent, SaId, SaLimits, SaState
from kinkd.model import (
    Direction,
    IPAddress,
    IpsecProtocol,
    Mode,
    PortMatch,
    Selector,
    SpdEntry,
    Template,
)

_UNSAID = (Type.FLUSHSA, Type.DELPOLICY, Type.FLUSHPOLICY, Type.POLEXPIRE)
EVENTS = (Type.ACQUIRE, Type.EXPIRE, Type.DELSA, *_UNSAID)
"""The types that ``read_event`` has words for."""


def read_event(message: Message) -> KernelEvent | None:
    """What an event says; None: another message, or one about what kinkd has no words for.

    Raises:
        MalformedMessage: its octets cannot be read.
    """
    if message.type == Type.ACQUIRE:
        return _read_acquire(message.payload)
    if message.type == Type.EXPIRE:
        return _read_expire(message.payload)
    if message.type == Type.DELSA:
        return _read_deleted(message.payload)
    if message.type in _UNSAID:
        return Deleted()
    return None


def read_state(message: Message) -> SaState | None:
    """The SA of a NEWSA; None: one of a protocol, mode or mark that no request here can name.

    Raises:
        MalformedMessage: its octets cannot be read.
    """
    body, attached = _split(message.payload, USERSA)
    head = _read_sa(body)
    if head is None or _is_marked(attached):
        return None
    current = struct.unpack_from("=4Q", body, SA_CURRENT)
    algorithms = _algorithms(attached)
    return SaState(
        id=head.id,
        mode=head.mode,
        reqid=head.reqid,
        selector=_read_selector(body, head.family),
        limits=_read_limits(body[SA_LIMITS:]),
        octets=current[0],
        packets=current[1],
        added=current[2],
        used=current[3],
        algorithms=algorithms,
        larval=not algorithms,
        esn=bool(body[SA_FLAGS] & STATE_ESN),
        udp=_is_in_udp(attached),
        sequence=NUMBER.unpack_from(body, SA_SEQUENCE)[0],
    )


def read_spi(message: Message) -> int:
    """The SPI of a NEWSA, as ALLOCSPI answers.

    Raises:
        MalformedMessage: its octets cannot be read.
    """
    body, _ = _split(message.payload, USERSA)
    return int.from_bytes(body[SA_ID + 16 : SA_ID + 20], "big")


def read_policy(message: Message) -> SpdEntry | None:
    """The entry of a NEWPOLICY; None: of a socket, or one that no request here can name.

    An entry of another's whose templates the model cannot say reads as one that discards:
    it must not look like a bypass.

    Raises:
        MalformedMessage: its octets cannot be read.
    """
    body, attached = _split(message.payload, POLICY)
    priority, _, direction, action = PRIORITY_INDEX_DIRECTION_ACTION.unpack_from(body, POLICY_TAIL)
    ifindex, user = struct.unpack_from("=iI", body, 48)
    sub_type = bytes(attached.get(Attribute.POLICY_TYPE, b"\0"))[:1] != b"\0"
    if direction > Direction.FWD or ifindex or user or sub_type or _is_marked(attached):
        return None
    templates = _read_templates(attached.get(Attribute.TMPL, memoryview(b"")))
    block = action == BLOCK or templates is None
    return SpdEntry(
        direction=Direction(direction),
        selector=_read_selector(body, 0),
        priority=priority,
        templates=() if block or templates is None else templates,
        block=block,
    )


@dataclass(frozen=True, slots=True)
class _SaHead:
    id: SaId
    mode: Mode
    reqid: int
    family: int


def _split(payload: memoryview, layout: struct.Struct) -> tuple[memoryview, dict[int, memoryview]]:
    if len(payload) < layout.size:
        raise MalformedMessage(f"{len(payload)} octets where {layout.size} were expected")
    return payload[: layout.size], attributes(payload[layout.size :])


def _address(octets: memoryview, family: int) -> IPAddress:
    if family == AF_INET:
        return IPv4Address(bytes(octets[:4]))
    if family == AF_INET6:
        return IPv6Address(bytes(octets[:16]))
    raise MalformedMessage(f"address family {family}")


def _read_selector(octets: memoryview, fallback: int) -> Selector:
    """``fallback`` is the family of a selector that names none: it matches everything."""
    family, destination_bits, source_bits, protocol = struct.unpack_from("=HBBB", octets, 40)
    dport, dmask, sport, smask = PORTS.unpack_from(octets, 32)
    family = family or fallback
    width = 32 if family == AF_INET else 128
    if max(destination_bits, source_bits) > width:
        raise MalformedMessage(f"a prefix of more than {width} bits")
    return Selector(
        source=ip_network((_address(octets[16:], family), source_bits), strict=False),
        destination=ip_network((_address(octets, family), destination_bits), strict=False),
        protocol=protocol,
        source_port=PortMatch(sport, smask),
        destination_port=PortMatch(dport, dmask),
    )


def _read_limits(octets: memoryview) -> SaLimits:
    values = struct.unpack_from("=8Q", octets)

    def volume(value: int) -> int | None:
        return None if value == INFINITE else value

    return SaLimits(
        soft_octets=volume(values[0]),
        hard_octets=volume(values[1]),
        soft_packets=volume(values[2]),
        hard_packets=volume(values[3]),
        soft_seconds=values[4] or None,
        hard_seconds=values[5] or None,
    )


def _known(protocol: int, mode: int) -> tuple[IpsecProtocol, Mode] | None:
    if protocol not in tuple(IpsecProtocol) or mode not in tuple(Mode):
        return None  # IPComp, BEET and others: not ours
    return IpsecProtocol(protocol), Mode(mode)


def _read_sa(body: memoryview) -> _SaHead | None:
    reqid, family, mode = REQID_FAMILY_MODE.unpack_from(body, SA_REQID)
    known = _known(body[SA_ID + 20], mode)
    if known is None:
        return None
    sa = SaId(
        source=_address(body[SA_SOURCE:], family),
        destination=_address(body[SA_ID:], family),
        spi=int.from_bytes(body[SA_ID + 16 : SA_ID + 20], "big"),
        protocol=known[0],
    )
    return _SaHead(sa, known[1], reqid, family)


def _is_marked(attached: dict[int, memoryview]) -> bool:
    return any(any(attached.get(kind, b"")) for kind in (Attribute.MARK, Attribute.IF_ID))


def _algorithms(attached: dict[int, memoryview]) -> tuple[str, ...]:
    names: list[str] = []
    trunc = Attribute.ALG_AUTH_TRUNC in attached  # the kernel then gives ALG_AUTH as well
    auth = Attribute.ALG_AUTH_TRUNC if trunc else Attribute.ALG_AUTH
    for attribute in (Attribute.ALG_AEAD, Attribute.ALG_CRYPT, auth):
        if attribute in attached:
            if len(attached[attribute]) < ALGORITHM.size:
                raise MalformedMessage(f"an algorithm of {len(attached[attribute])} octets")
            name = bytes(attached[attribute][:64]).split(b"\0", 1)[0]
            names.append(name.decode("ascii", "replace"))
    return tuple(names)


def _is_in_udp(attached: dict[int, memoryview]) -> bool:
    if Attribute.ENCAP not in attached:
        return False
    if len(attached[Attribute.ENCAP]) < ENCAP.size:
        raise MalformedMessage(f"an encapsulation of {len(attached[Attribute.ENCAP])} octets")
    return bool(ENCAP.unpack_from(attached[Attribute.ENCAP])[0] == ESP_IN_UDP)


def _read_templates(octets: memoryview) -> tuple[Template, ...] | None:
    """All of them in order; None: one is of a protocol or mode that the model cannot say."""
    if len(octets) % TEMPLATE.size:
        raise MalformedMessage(f"templates of {len(octets)} octets")
    found: list[Template] = []
    for fields in TEMPLATE.iter_unpack(octets):
        destination, _, protocol, family, source, reqid, mode, _, optional, *_ = fields
        known = _known(protocol, mode)
        if known is None:
            return None
        tunnel = known[1] is Mode.TUNNEL
        template = Template(
            protocol=known[0],
            mode=known[1],
            reqid=reqid,
            source=_address(memoryview(source), family) if tunnel else None,
            destination=_address(memoryview(destination), family) if tunnel else None,
            optional=bool(optional),
        )
        found.append(template)
    return tuple(found)


def _read_acquire(payload: memoryview) -> Acquire | None:
    """The kernel attaches all templates of the policy; the SA it wants is named in the body."""
    body, attached = _split(payload, ACQUIRE)
    templates = attached.get(Attribute.TMPL, memoryview(b""))
    if len(templates) % TEMPLATE.size:
        raise MalformedMessage(f"templates of {len(templates)} octets")
    wanted = [each for each in TEMPLATE.iter_unpack(templates) if each[2] == body[20]]
    if not wanted:
        raise MalformedMessage("an acquire without its template")
    _, _, protocol, family, _, reqid, mode, *_ = wanted[0]
    known = _known(protocol, mode)
    if known is None:
        return None
    (sequence,) = NUMBER.unpack_from(body, ACQUIRE_SEQUENCE)
    (index,) = NUMBER.unpack_from(body, ACQUIRE_INDEX)
    return Acquire(
        source=_address(body[24:], family),
        destination=_address(body, family),
        protocol=known[0],
        mode=known[1],
        reqid=reqid,
        policy_index=index,
        sequence=sequence,
        flow=_read_selector(body[ACQUIRE_SELECTOR:], family),
    )


def _read_expire(payload: memoryview) -> Expire | None:
    body, attached = _split(payload, EXPIRE)
    head = _read_sa(body)
    if head is None or _is_marked(attached):
        return None
    return Expire(head.id, head.reqid, bool(body[USERSA.size]))


def _read_deleted(payload: memoryview) -> Deleted | None:
    """What is deleted is named in the body, and stands whole in an attribute."""
    _, attached = _split(payload, USERSA_ID)
    whole = attached.get(Attribute.SA, memoryview(b""))
    if len(whole) < USERSA.size:
        raise MalformedMessage(f"a deleted SA of {len(whole)} octets")
    head = _read_sa(whole)
    return None if head is None or _is_marked(attached) else Deleted(head.id)
