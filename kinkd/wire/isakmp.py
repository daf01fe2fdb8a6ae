"""The ISAKMP payloads of Quick Mode (RFC 2408 §3, RFC 2407 §4.5 and §4.6), as KINK carries them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from struct import Struct

from kinkd.errors import LocalError, MalformedIsakmp, PeerError, UnsupportedQuickMode
from kinkd.wire.cursor import Cursor
from kinkd.wire.kink import Isakmp
from kinkd.wire.numbers import (
    DOI_IPSEC,
    QUICK_MODE_VERSION,
    SIT_IDENTITY_ONLY,
    IsakmpPayload,
    NotifyType,
)

MAX_PAYLOADS = 32
MAX_PROPOSALS = 64
MAX_TRANSFORMS = 64
MAX_ATTRIBUTES = 32
MAX_SPI_OCTETS = 16  # RFC 2408 §3.5
MAX_SPIS = 256
MAX_ATTRIBUTE_OCTETS = 64

_PAYLOAD = Struct("!BxH")
_SA = Struct("!II")
_PROPOSAL = Struct("!BBBB")
_TRANSFORM = Struct("!BB2x")
_ATTRIBUTE = Struct("!HH")
_ID = Struct("!BBH")
_NOTIFY = Struct("!IBBH")
_DELETE = Struct("!IBBH")
_SHORT_FORM = 0x8000  # AF, RFC 2408 §3.3


@dataclass(frozen=True, slots=True)
class Attribute:
    """An SA attribute (RFC 2408 §3.3): the short form to 65535, else the long one of 4 or 8 octets.

    ``long_octets`` remembers a peer's long form of another size, so that it can be echoed as it
    came; it does not make another attribute.
    """

    type: int
    value: int
    long_octets: int = field(default=0, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Transform:
    """A Transform payload (RFC 2408 §3.6)."""

    number: int
    transform_id: int
    attributes: tuple[Attribute, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A Proposal payload (RFC 2408 §3.5). Proposals of one number belong together: a bundle."""

    number: int
    protocol_id: int
    spi: bytes
    transforms: tuple[Transform, ...]


@dataclass(frozen=True, slots=True)
class SecurityAssociation:
    """A Security Association payload (RFC 2407 §4.6.1)."""

    proposals: tuple[Proposal, ...]
    doi: int = DOI_IPSEC
    situation: int = SIT_IDENTITY_ONLY


@dataclass(frozen=True, slots=True)
class Nonce:
    """A Nonce payload (RFC 2408 §3.13)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class KeyExchange:
    """A Key Exchange payload (RFC 2408 §3.7): a public value."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Identification:
    """An Identification payload (RFC 2407 §4.6.2)."""

    id_type: int
    protocol: int
    port: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Notification:
    """A Notification payload (RFC 2408 §3.14)."""

    protocol_id: int
    spi: bytes
    type: int
    data: bytes = b""
    doi: int = DOI_IPSEC


@dataclass(frozen=True, slots=True)
class Delete:
    """A Delete payload (RFC 2408 §3.15); the SPIs are of one size."""

    protocol_id: int
    spis: tuple[bytes, ...]
    doi: int = DOI_IPSEC


QuickModePayload = (
    SecurityAssociation | Nonce | KeyExchange | Identification | Notification | Delete
)


def decode(payload: Isakmp) -> tuple[QuickModePayload, ...]:
    """Read the Quick Mode payloads of a KINK_ISAKMP payload.

    Raises:
        UnsupportedQuickMode: a version other than 1.0.
        MalformedIsakmp: a length, a count or a value that cannot be.
        PeerError: INVALID-PAYLOAD-TYPE (1) with the type (RFC 4430 §5.5).
    """
    if (payload.major, payload.minor) != QUICK_MODE_VERSION:
        raise UnsupportedQuickMode(payload.major, payload.minor)
    cursor = Cursor(payload.body, MalformedIsakmp)
    payloads: list[QuickModePayload] = []
    kind = payload.first
    while kind != IsakmpPayload.NONE:
        if len(payloads) == MAX_PAYLOADS:
            raise MalformedIsakmp(f"more than {MAX_PAYLOADS} payloads")
        read = _READERS.get(kind)
        if read is None:
            raise PeerError(
                "invalid-payload-type",
                f"ISAKMP payload type {kind}",
                notify=NotifyType.INVALID_PAYLOAD_TYPE,
                notify_data=bytes((kind,)),
            )
        kind, length = cursor.unpack(_PAYLOAD)
        body = cursor.sub(length - _PAYLOAD.size)
        payloads.append(read(body))
    cursor.finish("KINK_ISAKMP")
    return tuple(payloads)


def encode(payloads: Iterable[QuickModePayload]) -> Isakmp:
    """The KINK_ISAKMP payload that carries ``payloads``.

    Raises:
        LocalError: a payload does not fit the 16 bits of its length.
    """
    parts = [_write(payload) for payload in payloads]
    kinds = [kind for kind, _ in parts] + [IsakmpPayload.NONE]
    body = b"".join(
        _wrap(following, octets) for (_, octets), following in zip(parts, kinds[1:], strict=True)
    )
    return Isakmp(kinds[0], body)


def _read_sa(body: Cursor) -> SecurityAssociation:
    doi, situation = body.unpack(_SA)
    _check_doi(doi)
    if situation != SIT_IDENTITY_ONLY:  # RFC 4430 §5: with it, no further fields
        raise MalformedIsakmp(f"situation {situation}")
    proposals: list[Proposal] = []
    following = int(IsakmpPayload.PROPOSAL)
    while following != IsakmpPayload.NONE:
        if following != IsakmpPayload.PROPOSAL or len(proposals) == MAX_PROPOSALS:
            raise MalformedIsakmp(f"payload {following} after {len(proposals)} proposals")
        following, length = body.unpack(_PAYLOAD)
        proposals.append(_read_proposal(body.sub(length - _PAYLOAD.size)))
    body.finish("the SA payload")
    return SecurityAssociation(tuple(proposals), doi, situation)


def _read_proposal(body: Cursor) -> Proposal:
    number, protocol_id, spi_octets, count = body.unpack(_PROPOSAL)
    if spi_octets > MAX_SPI_OCTETS or not 1 <= count <= MAX_TRANSFORMS:
        raise MalformedIsakmp(f"a proposal with an SPI of {spi_octets} and {count} transforms")
    spi = body.take(spi_octets)
    transforms: list[Transform] = []
    for left in range(count, 0, -1):
        following, length = body.unpack(_PAYLOAD)
        # RFC 2408 §3.6: 3 while more transforms of the proposal follow, 0 in the last.
        if following != (IsakmpPayload.TRANSFORM if left > 1 else IsakmpPayload.NONE):
            raise MalformedIsakmp(f"payload {following} where {left - 1} transforms follow")
        transforms.append(_read_transform(body.sub(length - _PAYLOAD.size)))
    body.finish("a proposal")
    return Proposal(number, protocol_id, spi, tuple(transforms))


def _read_transform(body: Cursor) -> Transform:
    number, transform_id = body.unpack(_TRANSFORM)
    attributes: list[Attribute] = []
    while body.remaining:
        if len(attributes) == MAX_ATTRIBUTES:
            raise MalformedIsakmp(f"more than {MAX_ATTRIBUTES} attributes")
        kind, value = body.unpack(_ATTRIBUTE)
        if kind & _SHORT_FORM:
            attributes.append(Attribute(kind & ~_SHORT_FORM, value))
        else:
            attributes.append(_read_long(kind, body, value))
    return Transform(number, transform_id, tuple(attributes))


def _read_long(kind: int, body: Cursor, octets: int) -> Attribute:
    if not 1 <= octets <= MAX_ATTRIBUTE_OCTETS:
        raise MalformedIsakmp(f"an attribute of {octets} octets")
    value = int.from_bytes(body.take(octets), "big")
    return Attribute(kind, value, 0 if octets == _natural_octets(value) else octets)


def _natural_octets(value: int) -> int:
    """Octets of the long form that a value has by itself; 0: the short form holds it."""
    return 0 if value <= 0xFFFF else 4 if value <= 0xFFFFFFFF else 8


def _read_nonce(body: Cursor) -> Nonce:
    return Nonce(body.rest())


def _read_key_exchange(body: Cursor) -> KeyExchange:
    return KeyExchange(body.rest())


def _read_id(body: Cursor) -> Identification:
    id_type, protocol, port = body.unpack(_ID)
    return Identification(id_type, protocol, port, body.rest())


def _read_notify(body: Cursor) -> Notification:
    doi, protocol_id, spi_octets, kind = body.unpack(_NOTIFY)
    _check_doi(doi)
    if spi_octets > MAX_SPI_OCTETS:
        raise MalformedIsakmp(f"an SPI of {spi_octets} octets")
    return Notification(protocol_id, body.take(spi_octets), kind, body.rest(), doi)


def _read_delete(body: Cursor) -> Delete:
    doi, protocol_id, spi_octets, count = body.unpack(_DELETE)
    _check_doi(doi)
    if not 1 <= spi_octets <= MAX_SPI_OCTETS or not 1 <= count <= MAX_SPIS:
        raise MalformedIsakmp(f"{count} SPIs of {spi_octets} octets")
    spis = tuple(body.take(spi_octets) for _ in range(count))
    body.finish("the Delete payload")
    return Delete(protocol_id, spis, doi)


def _check_doi(doi: int) -> None:
    if doi != DOI_IPSEC:  # RFC 4430 §4: the same as in the header, which is IPsec here
        raise MalformedIsakmp(f"DOI {doi} in a message of DOI {DOI_IPSEC}")


_READERS: Mapping[int, Callable[[Cursor], QuickModePayload]] = {
    IsakmpPayload.SA: _read_sa,
    IsakmpPayload.KE: _read_key_exchange,
    IsakmpPayload.ID: _read_id,
    IsakmpPayload.NONCE: _read_nonce,
    IsakmpPayload.NOTIFY: _read_notify,
    IsakmpPayload.DELETE: _read_delete,
}


def _write(payload: QuickModePayload) -> tuple[int, bytes]:
    match payload:
        case SecurityAssociation(proposals, doi, situation):
            return IsakmpPayload.SA, _SA.pack(doi, situation) + _write_proposals(proposals)
        case Nonce(data):
            return IsakmpPayload.NONCE, data
        case KeyExchange(data):
            return IsakmpPayload.KE, data
        case Identification(id_type, protocol, port, data):
            return IsakmpPayload.ID, _ID.pack(id_type, protocol, port) + data
        case Notification(protocol_id, spi, kind, data, doi):
            head = _NOTIFY.pack(doi, protocol_id, len(spi), kind)
            return IsakmpPayload.NOTIFY, head + spi + data
        case Delete(protocol_id, spis, doi):
            size = len(spis[0]) if spis else 0
            if any(len(spi) != size for spi in spis):
                raise LocalError("the SPIs of one Delete payload are of different sizes")
            head = _DELETE.pack(doi, protocol_id, size, len(spis))
            return IsakmpPayload.DELETE, head + b"".join(spis)


def _write_proposals(proposals: tuple[Proposal, ...]) -> bytes:
    last = len(proposals) - 1
    return b"".join(
        _wrap(
            IsakmpPayload.PROPOSAL if position < last else IsakmpPayload.NONE,
            _PROPOSAL.pack(
                proposal.number,
                proposal.protocol_id,
                len(proposal.spi),
                len(proposal.transforms),
            )
            + proposal.spi
            + _write_transforms(proposal.transforms),
        )
        for position, proposal in enumerate(proposals)
    )


def _write_transforms(transforms: tuple[Transform, ...]) -> bytes:
    last = len(transforms) - 1
    return b"".join(
        _wrap(
            IsakmpPayload.TRANSFORM if position < last else IsakmpPayload.NONE,
            _TRANSFORM.pack(transform.number, transform.transform_id)
            + b"".join(map(_write_attribute, transform.attributes)),
        )
        for position, transform in enumerate(transforms)
    )


def _write_attribute(attribute: Attribute) -> bytes:
    octets = attribute.long_octets or _natural_octets(attribute.value)
    if not octets:
        return _ATTRIBUTE.pack(_SHORT_FORM | attribute.type, attribute.value)
    return _ATTRIBUTE.pack(attribute.type, octets) + attribute.value.to_bytes(octets, "big")


def _wrap(following: int, body: bytes) -> bytes:
    octets = _PAYLOAD.size + len(body)
    if octets > 0xFFFF:
        raise LocalError(f"an ISAKMP payload of {octets} octets does not fit: 65535 is the most")
    return _PAYLOAD.pack(following, octets) + body
