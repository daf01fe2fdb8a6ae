"""XFRM messages: requests from strict tables, and readers of what the kernel answers.

The layouts are those of ``linux/xfrm.h``; their sizes are checked when the module loads. A
request is built only of the attributes its table allows. SPI, ports and port masks are
big-endian, all else is in host order.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import AF_INET, AF_INET6

from kinkd.kernel.netlink import (
    Flag,
    LayoutError,
    MalformedMessage,
    Message,
    Octets,
    attributes,
    encode,
    sized,
)
from kinkd.kernel.port import Acquire, Expire, KernelEvent, Sa, SaId, SaLimits, SaState
from kinkd.model import (
    Direction,
    IPAddress,
    IPNetwork,
    IpsecProtocol,
    Mode,
    PortMatch,
    Selector,
    SpdEntry,
    Suite,
    Template,
)


class Type(enum.IntEnum):
    """Message types (XFRM_MSG_*)."""

    NEWSA = 0x10
    DELSA = 0x11
    GETSA = 0x12
    NEWPOLICY = 0x13
    DELPOLICY = 0x14
    GETPOLICY = 0x15
    ALLOCSPI = 0x16
    ACQUIRE = 0x17
    EXPIRE = 0x18
    UPDPOLICY = 0x19
    UPDSA = 0x1A


class Attribute(enum.IntEnum):
    """Attribute types (XFRMA_*): the ones written or read here."""

    ALG_AUTH = 1
    ALG_CRYPT = 2
    TMPL = 5
    POLICY_TYPE = 16
    ALG_AEAD = 18
    ALG_AUTH_TRUNC = 20
    MARK = 21
    REPLAY_ESN_VAL = 23
    IF_ID = 31


class Group(enum.IntEnum):
    """Multicast groups (XFRMNLGRP_*)."""

    ACQUIRE = 1
    EXPIRE = 2


_SELECTOR = "16s16s2s2s2s2sHBBB3xiI"  # daddr saddr dport mask sport mask family len_d len_s proto
_ID = "16s4sB3x"  # daddr spi proto
_LIMITS = "8Q"  # octets, packets, seconds since added, seconds since used: soft and hard each
_CURRENT = "4Q"  # octets, packets, added, used
_SA = f"{_SELECTOR}{_ID}16s{_LIMITS}{_CURRENT}3IIIHBBB7x"
_POLICY = f"{_SELECTOR}{_LIMITS}{_CURRENT}IIBBBB4x"

SELECTOR = sized("xfrm_selector", _SELECTOR, 56)
USERSA = sized("xfrm_usersa_info", _SA, 224)
USERSPI = sized("xfrm_userspi_info", f"{_SA}II", 232)
USERSA_ID = sized("xfrm_usersa_id", "16s4sHBx", 24)
POLICY = sized("xfrm_userpolicy_info", _POLICY, 168)
POLICY_ID = sized("xfrm_userpolicy_id", f"{_SELECTOR}IB3x", 64)
TEMPLATE = sized("xfrm_user_tmpl", f"{_ID}H2x16sIBBBxIII", 64)
ACQUIRE = sized("xfrm_user_acquire", f"{_ID}16s{_SELECTOR}{_POLICY}IIII", 280)
EXPIRE = sized("xfrm_user_expire", f"{_SA}B7x", 232)
REPLAY_ESN = sized("xfrm_replay_state_esn", "6I", 24)
ALGORITHM = sized("xfrm_algo", "64sI", 68)
ALGORITHM_ICV = sized("xfrm_algo_auth", "64sII", 72)  # and xfrm_algo_aead
MARK = sized("xfrm_mark", "II", 8)
NUMBER = sized("u32", "I", 4)
_NOTHING = sized("nothing", "", 0)

# Where parts of the above begin.
_SA_ID, _SA_SOURCE, _SA_LIMITS, _SA_CURRENT, _SA_REQID = 56, 80, 96, 160, 208
_POLICY_TAIL, _ACQUIRE_SELECTOR, _ACQUIRE_INDEX, _ACQUIRE_SEQUENCE = 152, 40, 96 + 156, 276
_PORTS = struct.Struct(">HHHH")
_REQID_FAMILY_MODE = struct.Struct("=IHB")
_PRIORITY_INDEX_DIRECTION_ACTION = struct.Struct("=IIBB")

INFINITE = 2**64 - 1  # XFRM_INF
_EVERY_ALGORITHM = 0xFFFFFFFF
_ALLOW, _BLOCK = 0, 1
_MAX_REPLAY_WINDOW = 4096
_NO_LIMITS = (INFINITE,) * 4 + (0,) * 4
_SPI_RANGE = (0x100, 0xFFFFFFFF)  # 1 to 255 are reserved (RFC 4303 §2.1)
_ANY_SELECTOR = SELECTOR.pack(*(b"",) * 6, 0, 0, 0, 0, 0, 0)

_SA_ATTRIBUTES = frozenset(
    {
        Attribute.ALG_AEAD,
        Attribute.ALG_CRYPT,
        Attribute.ALG_AUTH_TRUNC,
        Attribute.REPLAY_ESN_VAL,
    }
)
_NONE: frozenset[Attribute] = frozenset()
_TABLE: dict[Type, tuple[struct.Struct, frozenset[Attribute]]] = {
    Type.NEWSA: (USERSA, _SA_ATTRIBUTES),
    Type.UPDSA: (USERSA, _SA_ATTRIBUTES),
    Type.DELSA: (USERSA_ID, _NONE),
    Type.GETSA: (USERSA_ID, _NONE),
    Type.ALLOCSPI: (USERSPI, _NONE),
    Type.UPDPOLICY: (POLICY, frozenset({Attribute.TMPL})),
    Type.DELPOLICY: (POLICY_ID, _NONE),
    Type.GETPOLICY: (_NOTHING, _NONE),
}
Attributes = Sequence[tuple[Attribute, Sequence[Octets]]]


def request(
    kind: Type, flags: Flag, sequence: int, body: Octets, attached: Attributes = ()
) -> bytearray:
    """One request, checked against its table.

    Raises:
        LayoutError: the body has another size, or an attribute is none of this message's.
    """
    if kind not in _TABLE:
        raise LayoutError(f"{kind.name} is not a request")
    layout, allowed = _TABLE[kind]
    dump = flags & Flag.DUMP == Flag.DUMP  # a dump request has no body at all
    if len(body) != (0 if dump else layout.size):
        raise LayoutError(f"{kind.name} with a body of {len(body)} octets")
    for attribute, _ in attached:
        if attribute not in allowed:
            raise LayoutError(f"{kind.name} with attribute {attribute!r}")
    return encode(kind, Flag.REQUEST | flags, sequence, body, attached)


# --- requests ---------------------------------------------------------------------------


def install(sa: Sa, sequence: int, *, update: bool = False) -> bytearray:
    """NEWSA, or UPDSA for a reserved SPI. Holds the keys: overwrite it once it is sent.

    Raises:
        LayoutError: the SA contradicts itself (key length, families, selector, window).
    """
    check_sa(sa)
    kind = Type.UPDSA if update else Type.NEWSA
    return request(kind, Flag.ACK, sequence, _usersa(sa), _sa_attributes(sa))


def check_sa(sa: Sa) -> None:
    """Refuse an SA that must not reach the kernel.

    A transport mode SA without its address pair as selector would let one authenticated
    host speak for another (RFC 4301 §5.2 step 3a wants the selectors of the SA checked).

    Raises:
        LayoutError: with what is wrong.
    """
    if sa.id.source.version != sa.id.destination.version:
        raise LayoutError(f"{words(sa.id)}: endpoints of two families")
    if not 0 < sa.id.spi < 2**32:
        raise LayoutError(f"{words(sa.id)}: SPI out of range")
    if len(sa.keymat) != sa.suite.keymat_octets:
        wanted = f"{sa.suite.name} takes {sa.suite.keymat_octets}"
        raise LayoutError(f"{words(sa.id)}: {len(sa.keymat)} octets of KEYMAT, {wanted}")
    if not 0 <= sa.replay_window <= _MAX_REPLAY_WINDOW:
        raise LayoutError(f"{words(sa.id)}: replay window {sa.replay_window}")
    if sa.mode is Mode.TRANSPORT and not _is_pinned(sa):
        raise LayoutError(f"{words(sa.id)}: the selector is not the SA's address pair")


def allocate_spi(
    source: IPAddress,
    destination: IPAddress,
    reqid: int,
    sequence: int,
    *,
    mode: Mode = Mode.TRANSPORT,
    protocol: IpsecProtocol = IpsecProtocol.ESP,
    acquire: int = 0,
) -> bytearray:
    """ALLOCSPI; ``acquire`` names the larval SA of an ACQUIRE by its sequence number."""
    head = _ANY_SELECTOR + _id(destination, 0, protocol) + _octets(source)
    tail = (*_NO_LIMITS, 0, 0, 0, 0, 0, 0, 0, acquire, reqid, _family(source), mode, 0, 0)
    body = head + _USERSA_TAIL.pack(*tail) + _USERSPI_TAIL.pack(*_SPI_RANGE)
    return request(Type.ALLOCSPI, Flag(0), sequence, body)


_USERSA_TAIL = sized("xfrm_usersa_info.lft", f"{_LIMITS}{_CURRENT}3IIIHBBB7x", 128)
_USERSPI_TAIL = sized("xfrm_userspi_info.min", "II", 8)


def delete_sa(sa: SaId, sequence: int) -> bytearray:
    """DELSA."""
    return request(Type.DELSA, Flag.ACK, sequence, _usersa_id(sa))


def get_sa(sa: SaId, sequence: int) -> bytearray:
    """GETSA of one SA; answered by a NEWSA that holds keys."""
    return request(Type.GETSA, Flag(0), sequence, _usersa_id(sa))


def dump_sas(sequence: int) -> bytearray:
    """GETSA of all SAs; the answers hold keys."""
    return request(Type.GETSA, Flag.DUMP, sequence, b"")


def update_policy(entry: SpdEntry, sequence: int) -> bytearray:
    """UPDPOLICY: write an entry, in place of any other of its selector and direction.

    Raises:
        LayoutError: the entry contradicts itself.
    """
    attached = [] if entry.template is None else [(Attribute.TMPL, (_template(entry),))]
    action = _BLOCK if entry.block else _ALLOW
    body = (
        _selector(entry.selector)
        + _POLICY_REST.pack(*_NO_LIMITS, 0, 0, 0, 0)
        + _PRIORITY_INDEX_DIRECTION_ACTION.pack(entry.priority, 0, entry.direction, action)
        + bytes(6)
    )
    message = request(Type.UPDPOLICY, Flag.ACK, sequence, body, attached)
    # An allow entry that lost its template lets clear text through: count the octets.
    template = 0 if entry.template is None else 4 + TEMPLATE.size
    if len(message) != 16 + POLICY.size + template:
        raise LayoutError(f"{words(entry)}: encoded without its template")
    return message


_POLICY_REST = sized("xfrm_userpolicy_info.lft", f"{_LIMITS}{_CURRENT}", 96)


def delete_policy(direction: Direction, selector: Selector, sequence: int) -> bytearray:
    """DELPOLICY, by selector and direction."""
    body = _selector(selector) + _POLICY_ID_TAIL.pack(0, direction)
    return request(Type.DELPOLICY, Flag.ACK, sequence, body)


_POLICY_ID_TAIL = sized("xfrm_userpolicy_id.index", "IB3x", 8)


def dump_policies(sequence: int) -> bytearray:
    """GETPOLICY of all entries."""
    return request(Type.GETPOLICY, Flag.DUMP, sequence, b"")


# --- parts of requests ------------------------------------------------------------------


def _octets(address: IPAddress) -> bytes:
    return address.packed.ljust(16, b"\0")


def _family(address: IPAddress | IPNetwork) -> int:
    return AF_INET if address.version == 4 else AF_INET6


def _id(destination: IPAddress, spi: int, protocol: int) -> bytes:
    return _octets(destination) + spi.to_bytes(4, "big") + bytes((protocol, 0, 0, 0))


def _usersa_id(sa: SaId) -> bytes:
    return USERSA_ID.pack(
        _octets(sa.destination), sa.spi.to_bytes(4, "big"), _family(sa.destination), sa.protocol
    )


def _is_pinned(sa: Sa) -> bool:
    source, destination = sa.selector.source, sa.selector.destination
    return (
        source.network_address == sa.id.source
        and destination.network_address == sa.id.destination
        and source.prefixlen == source.max_prefixlen
        and destination.prefixlen == destination.max_prefixlen
    )


def _selector(selector: Selector) -> bytes:
    source, destination = selector.source, selector.destination
    if source.version != destination.version:
        raise LayoutError(f"a selector of two families: {source} to {destination}")
    sport, dport = selector.source_port, selector.destination_port
    return SELECTOR.pack(
        destination.network_address.packed,
        source.network_address.packed,
        dport.port.to_bytes(2, "big"),
        dport.mask.to_bytes(2, "big"),
        sport.port.to_bytes(2, "big"),
        sport.mask.to_bytes(2, "big"),
        _family(source),
        destination.prefixlen,
        source.prefixlen,
        selector.protocol,
        0,
        0,
    )


def _limits(limits: SaLimits) -> tuple[int, ...]:
    def volume(value: int | None) -> int:
        return INFINITE if value is None else value

    return (
        volume(limits.soft_octets),
        volume(limits.hard_octets),
        volume(limits.soft_packets),
        volume(limits.hard_packets),
        limits.soft_seconds or 0,
        limits.hard_seconds or 0,
        0,
        0,
    )


def _usersa(sa: Sa) -> bytes:
    family = _family(sa.id.destination)
    return (
        _selector(sa.selector)
        + _id(sa.id.destination, sa.id.spi, sa.id.protocol)
        + _octets(sa.id.source)
        # replay_window stays 0: REPLAY_ESN_VAL has it, the field knows no more than 32.
        + _USERSA_TAIL.pack(
            *_limits(sa.limits), 0, 0, 0, 0, 0, 0, 0, 0, sa.reqid, family, sa.mode, 0, 0
        )
    )


def _sa_attributes(sa: Sa) -> Attributes:
    suite, key = sa.suite, memoryview(sa.keymat.value)
    split = suite.encryption_octets
    attached: list[tuple[Attribute, Sequence[Octets]]] = []
    if suite.aead is not None:
        head = ALGORITHM_ICV.pack(suite.aead.encode(), 8 * split, suite.icv_bits)
        attached.append((Attribute.ALG_AEAD, (head, key[:split])))
    else:
        attached.extend(_crypt_and_auth(suite, key[:split], key[split:]))
    if sa.replay_window:
        # The attribute without XFRM_STATE_ESN: 32-bit sequence numbers, a window above 32.
        words32 = -(-sa.replay_window // 32)
        head = REPLAY_ESN.pack(words32, 0, 0, 0, 0, sa.replay_window)
        attached.append((Attribute.REPLAY_ESN_VAL, (head, bytes(4 * words32))))
    return attached


def _crypt_and_auth(suite: Suite, encryption: memoryview, authentication: memoryview) -> Attributes:
    # The kernel takes encryption without authentication: never write one alone.
    if suite.encryption is None or suite.authentication is None or not authentication:
        raise LayoutError(f"suite {suite.name} has no integrity protection")
    crypt = ALGORITHM.pack(suite.encryption.encode(), 8 * len(encryption))
    # RFC 4868 §2.6: truncated to half; by the kernel's default hmac(sha256) gives 96 bits.
    auth = ALGORITHM_ICV.pack(
        suite.authentication.encode(), 8 * len(authentication), suite.icv_bits
    )
    return (
        (Attribute.ALG_CRYPT, (crypt, encryption)),
        (Attribute.ALG_AUTH_TRUNC, (auth, authentication)),
    )


def _template(entry: SpdEntry) -> bytes:
    template = entry.template
    if template is None or entry.block:
        raise LayoutError(f"{words(entry)}: discards, yet has a template")
    ends = (template.source, template.destination)
    if (template.mode is Mode.TUNNEL) != all(ends) or any(ends) != all(ends):
        raise LayoutError(f"{words(entry)}: endpoints belong to tunnel mode, and only there")
    source, destination = ends
    family = _family(destination or entry.selector.destination)
    return TEMPLATE.pack(
        b"" if destination is None else destination.packed,
        bytes(4),
        template.protocol,
        family,
        b"" if source is None else source.packed,
        template.reqid,
        template.mode,
        0,
        template.optional,
        *(_EVERY_ALGORITHM,) * 3,
    )


# --- readers ----------------------------------------------------------------------------


def read_event(message: Message) -> KernelEvent | None:
    """An ACQUIRE or EXPIRE; None: another message, or one about what kinkd has no words for.

    Raises:
        MalformedMessage: its octets cannot be read.
    """
    if message.type == Type.ACQUIRE:
        return _read_acquire(message.payload)
    if message.type == Type.EXPIRE:
        return _read_expire(message.payload)
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
    current = struct.unpack_from("=4Q", body, _SA_CURRENT)
    algorithms = _algorithms(attached)
    return SaState(
        id=head.id,
        mode=head.mode,
        reqid=head.reqid,
        selector=_read_selector(body, head.family),
        limits=_read_limits(body[_SA_LIMITS:]),
        octets=current[0],
        packets=current[1],
        added=current[2],
        used=current[3],
        algorithms=algorithms,
        larval=not algorithms,
    )


def read_spi(message: Message) -> int:
    """The SPI of a NEWSA, as ALLOCSPI answers.

    Raises:
        MalformedMessage: its octets cannot be read.
    """
    body, _ = _split(message.payload, USERSA)
    return int.from_bytes(body[_SA_ID + 16 : _SA_ID + 20], "big")


def read_policy(message: Message) -> SpdEntry | None:
    """The entry of a NEWPOLICY; None: of a socket, or one that no request here can name.

    An entry of another's whose templates the model cannot say reads as one that discards:
    it must not look like a bypass.

    Raises:
        MalformedMessage: its octets cannot be read.
    """
    body, attached = _split(message.payload, POLICY)
    priority, _, direction, action = _PRIORITY_INDEX_DIRECTION_ACTION.unpack_from(
        body, _POLICY_TAIL
    )
    ifindex, user = struct.unpack_from("=iI", body, 48)
    sub_type = bytes(attached.get(Attribute.POLICY_TYPE, b"\0"))[:1] != b"\0"
    if direction > Direction.FWD or ifindex or user or sub_type or _is_marked(attached):
        return None
    templates = attached.get(Attribute.TMPL, memoryview(b""))
    template = _read_template(templates)
    block = action == _BLOCK or (template is None and len(templates) > 0)
    return SpdEntry(
        direction=Direction(direction),
        selector=_read_selector(body, 0),
        priority=priority,
        template=None if block else template,
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
    dport, dmask, sport, smask = _PORTS.unpack_from(octets, 32)
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
    reqid, family, mode = _REQID_FAMILY_MODE.unpack_from(body, _SA_REQID)
    known = _known(body[_SA_ID + 20], mode)
    if known is None:
        return None
    sa = SaId(
        source=_address(body[_SA_SOURCE:], family),
        destination=_address(body[_SA_ID:], family),
        spi=int.from_bytes(body[_SA_ID + 16 : _SA_ID + 20], "big"),
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


def _read_template(octets: memoryview) -> Template | None:
    """The one template the model can say; None: none, several, or of another protocol."""
    if len(octets) % TEMPLATE.size:
        raise MalformedMessage(f"templates of {len(octets)} octets")
    if len(octets) != TEMPLATE.size:
        return None
    fields = TEMPLATE.unpack(octets)
    destination, _, protocol, family, source, reqid, mode, _, optional, *_ = fields
    known = _known(protocol, mode)
    if known is None:
        return None
    tunnel = known[1] is Mode.TUNNEL
    return Template(
        protocol=known[0],
        mode=known[1],
        reqid=reqid,
        source=_address(memoryview(source), family) if tunnel else None,
        destination=_address(memoryview(destination), family) if tunnel else None,
        optional=bool(optional),
    )


def _read_acquire(payload: memoryview) -> Acquire | None:
    body, attached = _split(payload, ACQUIRE)
    templates = attached.get(Attribute.TMPL, memoryview(b""))
    if len(templates) < TEMPLATE.size:
        raise MalformedMessage("an acquire without its template")
    _, _, protocol, family, _, reqid, mode, *_ = TEMPLATE.unpack_from(templates)
    known = _known(protocol, mode)
    if known is None:
        return None
    (sequence,) = NUMBER.unpack_from(body, _ACQUIRE_SEQUENCE)
    (index,) = NUMBER.unpack_from(body, _ACQUIRE_INDEX)
    return Acquire(
        source=_address(body[24:], family),
        destination=_address(body, family),
        protocol=known[0],
        mode=known[1],
        reqid=reqid,
        policy_index=index,
        sequence=sequence,
        flow=_read_selector(body[_ACQUIRE_SELECTOR:], family),
    )


def _read_expire(payload: memoryview) -> Expire | None:
    body, attached = _split(payload, EXPIRE)
    head = _read_sa(body)
    if head is None or _is_marked(attached):
        return None
    return Expire(head.id, head.reqid, bool(body[USERSA.size]))


# --- words ------------------------------------------------------------------------------


def words(thing: SaId | SpdEntry) -> str:
    """An SA or SPD entry in words, for errors and logs."""
    if isinstance(thing, SaId):
        pair = f"{thing.source} to {thing.destination}"
        return f"{thing.protocol.name} SA {thing.spi:#010x} from {pair}"
    selector = thing.selector
    pair = f"{selector.source} to {selector.destination}"
    limit = f" protocol {selector.protocol}" if selector.protocol else ""
    return f"{thing.direction.name.lower()} policy {pair}{limit} priority {thing.priority}"
