"""XFRM requests, built from strict tables.

A request holds only the attributes its table allows; an SA or policy that contradicts itself
is never encoded. What the kernel answers is read by ``answers``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6

from kinkd.kernel.layouts import (
    ALGORITHM,
    ALGORITHM_ICV,
    ALLOW,
    BLOCK,
    ENCAP,
    ESP_IN_UDP,
    INFINITE,
    MAX_TEMPLATES,
    POLICY,
    POLICY_ID,
    POLICY_ID_TAIL,
    POLICY_REST,
    PRIORITY_INDEX_DIRECTION_ACTION,
    REPLAY_ESN,
    SELECTOR,
    STATE_ALIGN4,
    STATE_ESN,
    TEMPLATE,
    USERSA,
    USERSA_ID,
    USERSA_TAIL,
    USERSPI,
    USERSPI_TAIL,
    Attribute,
    Type,
)
from kinkd.kernel.netlink import Flag, LayoutError, Octets, encode
from kinkd.kernel.port import Sa, SaId, SaLimits
from kinkd.model import (
    Direction,
    IPAddress,
    IPNetwork,
    IpsecProtocol,
    Mode,
    Selector,
    SpdEntry,
    Template,
    Transform,
)

_EVERY_ALGORITHM = 0xFFFFFFFF
_MAX_REPLAY_WINDOW = 4096
_NO_LIMITS = (INFINITE,) * 4 + (0,) * 4
_SPI_RANGE = (0x100, 0xFFFFFFFF)  # 1 to 255 are reserved (RFC 4303 §2.1)
_ANY_SELECTOR = SELECTOR.pack(*(b"",) * 6, 0, 0, 0, 0, 0, 0)
_EVERYTHING = {
    4: Selector(IPv4Network((0, 0)), IPv4Network((0, 0))),
    6: Selector(IPv6Network((0, 0)), IPv6Network((0, 0))),
}
_ESP_PORT = 4500  # RFC 3948 §2.1: that of IKE, at both ends

_SA_ATTRIBUTES = frozenset(
    {
        Attribute.ALG_AEAD,
        Attribute.ALG_CRYPT,
        Attribute.ALG_AUTH_TRUNC,
        Attribute.ENCAP,
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
    Type.GETPOLICY: (POLICY_ID, _NONE),
}
Attributes = Sequence[tuple[Attribute, Sequence[Octets]]]


def request(
    kind: Type, flags: int, sequence: int, body: Octets, attached: Attributes = ()
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
    Around a tunnel the kernel compares the selector with the packet inside it, and is content
    with a selector of another family than the endpoints in tunnel mode only.

    Raises:
        LayoutError: with what is wrong.
    """
    if sa.id.source.version != sa.id.destination.version:
        raise LayoutError(f"{words(sa.id)}: endpoints of two families")
    if not 0 < sa.id.spi < 2**32:
        raise LayoutError(f"{words(sa.id)}: SPI out of range")
    _check_transform(sa)
    if not 0 <= sa.replay_window <= _MAX_REPLAY_WINDOW:
        raise LayoutError(f"{words(sa.id)}: replay window {sa.replay_window}")
    if sa.esn and not sa.replay_window:  # the receiver works the upper half out from it
        raise LayoutError(f"{words(sa.id)}: ESN without a replay window")
    if sa.udp and sa.id.protocol is not IpsecProtocol.ESP:  # RFC 3948 §1: AH covers addresses
        raise LayoutError(f"{words(sa.id)}: only ESP goes in UDP")
    if sa.mode is Mode.TUNNEL:
        if sa.tunnelled:
            raise LayoutError(f"{words(sa.id)}: a tunnel of its own, in one of the bundle")
    elif not sa.tunnelled:
        if not _is_pinned(sa):
            raise LayoutError(f"{words(sa.id)}: the selector is not the SA's address pair")
    elif sa.selector.source.version != sa.id.source.version:
        raise LayoutError(f"{words(sa.id)}: around a tunnel that carries another family")


def check_bundle(sas: Sequence[Sa]) -> None:
    """``check_sa`` for each SA of a bundle, and whether they go together.

    An SA that claims to be around a tunnel has it before it, of the same ends and the same
    selector: without the tunnel it would be an SA that is pinned to nothing.

    Raises:
        LayoutError: with what is wrong.
    """
    tunnel: Sa | None = None
    for sa in sas:
        check_sa(sa)
        if sa.udp and len(sas) > 1:
            raise LayoutError(f"{words(sa.id)}: ESP in UDP within a bundle")
        if sa.mode is Mode.TUNNEL:
            tunnel = sa
            continue
        if sa.tunnelled and (tunnel is None or _carries(sa) != _carries(tunnel)):
            raise LayoutError(f"{words(sa.id)}: not around the tunnel before it")
        if tunnel is not None and not sa.tunnelled:
            raise LayoutError(f"{words(sa.id)}: around a tunnel, but pinned to its ends")


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
    body = head + USERSA_TAIL.pack(*tail) + USERSPI_TAIL.pack(*_SPI_RANGE)
    return request(Type.ALLOCSPI, 0, sequence, body)


def delete_sa(sa: SaId, sequence: int) -> bytearray:
    """DELSA."""
    return request(Type.DELSA, Flag.ACK, sequence, _usersa_id(sa))


def get_sa(sa: SaId, sequence: int) -> bytearray:
    """GETSA of one SA; answered by a NEWSA that holds keys."""
    return request(Type.GETSA, 0, sequence, _usersa_id(sa))


def dump_sas(sequence: int) -> bytearray:
    """GETSA of all SAs; the answers hold keys."""
    return request(Type.GETSA, Flag.DUMP, sequence, b"")


def update_policy(entry: SpdEntry, sequence: int) -> bytearray:
    """UPDPOLICY: write an entry, in place of any other of its selector and direction.

    Raises:
        LayoutError: the entry contradicts itself.
    """
    count = len(entry.templates)
    if count > MAX_TEMPLATES:
        raise LayoutError(f"{words(entry)}: {count} templates, {MAX_TEMPLATES} are possible")
    if entry.block and count:
        raise LayoutError(f"{words(entry)}: discards, yet has a template")
    attached = [(Attribute.TMPL, _templates(entry))] if count else []
    message = request(Type.UPDPOLICY, Flag.ACK, sequence, _policy(entry), attached)
    # An allow entry that lost a template lets through what it must not: count the octets.
    size = 4 + count * TEMPLATE.size if count else 0
    if len(message) != 16 + POLICY.size + size:
        raise LayoutError(f"{words(entry)}: encoded without its templates")
    return message


def socket_bypass(direction: Direction, family: int) -> bytes:
    """The value of IP_XFRM_POLICY or IPV6_XFRM_POLICY that exempts one socket, one way.

    ``family``, 4 or 6, is that of the socket. One that takes ESP out of UDP needs it: the kernel
    asks its policy of the UDP packet first, and to the policy that is clear text.
    """
    return _policy(SpdEntry(direction, _EVERYTHING[family], 0))


def delete_policy(direction: Direction, selector: Selector, sequence: int) -> bytearray:
    """DELPOLICY, by selector and direction."""
    body = _selector(selector) + POLICY_ID_TAIL.pack(0, direction)
    return request(Type.DELPOLICY, Flag.ACK, sequence, body)


def get_policy(direction: Direction, selector: Selector, sequence: int) -> bytearray:
    """GETPOLICY, by selector and direction."""
    body = _selector(selector) + POLICY_ID_TAIL.pack(0, direction)
    return request(Type.GETPOLICY, 0, sequence, body)


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


def _carries(sa: Sa) -> tuple[IPAddress, IPAddress, Selector]:
    return sa.id.source, sa.id.destination, sa.selector


def _check_transform(sa: Sa) -> None:
    transform = sa.transform
    if transform.protocol is not sa.id.protocol:
        raise LayoutError(f"{words(sa.id)}: a transform of {transform.protocol.name}")
    if len(sa.keymat) != transform.keymat_octets:
        wanted = f"{words(transform)} takes {transform.keymat_octets}"
        raise LayoutError(f"{words(sa.id)}: {len(sa.keymat)} octets of KEYMAT, {wanted}")
    authenticates = transform.authentication is not None and transform.authentication_octets > 0
    if transform.protocol is IpsecProtocol.AH:
        if (
            not authenticates
            or transform.aead
            or transform.encryption
            or transform.encryption_octets
        ):
            raise LayoutError(f"{words(sa.id)}: {words(transform)} is no AH")
    elif transform.aead is not None:
        if transform.encryption or transform.authentication or transform.authentication_octets:
            raise LayoutError(f"{words(sa.id)}: {words(transform)} beside an AEAD")
    elif transform.encryption is None or not authenticates:
        # The kernel takes encryption without authentication: never write one alone.
        raise LayoutError(f"{words(sa.id)}: {words(transform)} has no integrity protection")


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
    flags = STATE_ESN if sa.esn else 0
    if sa.id.protocol is IpsecProtocol.AH and family == AF_INET:
        flags |= STATE_ALIGN4  # RFC 4302 §2.6: no more padding than 32 bits need
    return (
        _selector(sa.selector)
        + _id(sa.id.destination, sa.id.spi, sa.id.protocol)
        + _octets(sa.id.source)
        # replay_window stays 0: REPLAY_ESN_VAL has it, the field knows no more than 32.
        + USERSA_TAIL.pack(
            *_limits(sa.limits), 0, 0, 0, 0, 0, 0, 0, 0, sa.reqid, family, sa.mode, 0, flags
        )
    )


def _sa_attributes(sa: Sa) -> Attributes:
    transform, key = sa.transform, memoryview(sa.keymat.value)
    split = transform.encryption_octets
    attached: list[tuple[Attribute, Sequence[Octets]]] = []
    if transform.aead is not None:
        head = ALGORITHM_ICV.pack(transform.aead.encode(), 8 * split, transform.icv_bits)
        attached.append((Attribute.ALG_AEAD, (head, key)))
    if transform.encryption is not None:
        head = ALGORITHM.pack(transform.encryption.encode(), 8 * split)
        attached.append((Attribute.ALG_CRYPT, (head, key[:split])))
    if transform.authentication is not None:
        # RFC 4868 §2.6: truncated to half; by the kernel's default hmac(sha256) gives 96 bits.
        bits = 8 * transform.authentication_octets
        head = ALGORITHM_ICV.pack(transform.authentication.encode(), bits, transform.icv_bits)
        attached.append((Attribute.ALG_AUTH_TRUNC, (head, key[split:])))
    if sa.udp:
        port = _ESP_PORT.to_bytes(2, "big")
        attached.append((Attribute.ENCAP, (ENCAP.pack(ESP_IN_UDP, port, port, b""),)))
    if sa.replay_window:
        # Without XFRM_STATE_ESN: 32-bit sequence numbers, a window above 32.
        words32 = -(-sa.replay_window // 32)
        head = REPLAY_ESN.pack(words32, 0, 0, 0, 0, sa.replay_window)
        attached.append((Attribute.REPLAY_ESN_VAL, (head, bytes(4 * words32))))
    return attached


def _policy(entry: SpdEntry) -> bytes:
    action = BLOCK if entry.block else ALLOW
    return (
        _selector(entry.selector)
        + POLICY_REST.pack(*_NO_LIMITS, 0, 0, 0, 0)
        + PRIORITY_INDEX_DIRECTION_ACTION.pack(entry.priority, 0, entry.direction, action)
        + bytes(6)
    )


def _templates(entry: SpdEntry) -> list[bytes]:
    """In order. Transport mode is of the family that the packet has then: tunnels change it."""
    family = _family(entry.selector.destination)
    found: list[bytes] = []
    for template in entry.templates:
        source, destination = template.source, template.destination
        if (source is None) != (destination is None):
            raise LayoutError(f"{words(entry)}: a template with one endpoint")
        if (template.mode is Mode.TUNNEL) != (destination is not None):
            raise LayoutError(f"{words(entry)}: endpoints belong to tunnel mode, and only there")
        if source is not None and destination is not None:
            if source.version != destination.version:
                raise LayoutError(f"{words(entry)}: a tunnel with endpoints of two families")
            family = _family(destination)
        found.append(_template(template, family))
    return found


def _template(template: Template, family: int) -> bytes:
    source, destination = template.source, template.destination
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


# --- words ------------------------------------------------------------------------------


def words(thing: SaId | SpdEntry | Transform) -> str:
    """An SA, SPD entry or transform in words, for errors and logs."""
    if isinstance(thing, SaId):
        pair = f"{thing.source} to {thing.destination}"
        return f"{thing.protocol.name} SA {thing.spi:#010x} from {pair}"
    if isinstance(thing, Transform):
        names = (thing.aead, thing.encryption, thing.authentication)
        bits = f" of {thing.key_bits} bits" if thing.key_bits else ""
        return f"{thing.protocol.name} {' '.join(name for name in names if name)}{bits}"
    selector = thing.selector
    pair = f"{selector.source} to {selector.destination}"
    limit = f" protocol {selector.protocol}" if selector.protocol else ""
    return f"{thing.direction.name.lower()} policy {pair}{limit} priority {thing.priority}"
