"""Between Quick Mode payloads and what is negotiated: proposals, offers, nonces, SPIs."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from kinkd.errors import MalformedIsakmp, PeerError
from kinkd.keying.negotiate import DEFAULT_LIFETIME_SECONDS, Offer
from kinkd.model import IPAddress, Lifetime, Mode, Suite
from kinkd.wire import grammar, isakmp, kink
from kinkd.wire.numbers import (
    AttributeClass,
    EncapsulationMode,
    IdType,
    IsakmpPayload,
    LifeType,
    MessageType,
    NotifyType,
    ProtocolId,
)

NONCE_OCTETS = 32
_ESN_64_BITS = 1  # RFC 4304 §2: the only value; without the attribute it is 32 bits
FIRST_SPI = 256  # RFC 4303 §2.1: 0 to 255 are reserved

_MODES = {
    Mode.TRANSPORT: EncapsulationMode.TRANSPORT,
    Mode.TUNNEL: EncapsulationMode.TUNNEL,
}
_KNOWN_MODES = {int(number): mode for mode, number in _MODES.items()}
_SINGLE = frozenset(
    map(
        int,
        (
            AttributeClass.ENCAPSULATION_MODE,
            AttributeClass.AUTHENTICATION_ALGORITHM,
            AttributeClass.KEY_LENGTH,
            AttributeClass.GROUP_DESCRIPTION,
            AttributeClass.ESN,
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Creation:
    """The Quick Mode part of a CREATE or of its REPLY."""

    offers: tuple[Offer, ...]
    nonce: bytes | None = field(repr=False)
    public: bytes | None = None  # of a KE payload
    identities: tuple[isakmp.Identification, ...] = ()


def propose(
    suite: Suite,
    mode: Mode,
    lifetime: Lifetime,
    spi: int,
    *,
    number: int = 1,
    group: int | None = None,
    esn: bool = False,
) -> isakmp.Proposal:
    """One ESP proposal of one transform, its attributes in the order that every peer reads.

    With a KE payload every transform names its ``group`` (RFC 2409 §5.5).
    """
    attributes = [
        isakmp.Attribute(AttributeClass.LIFE_TYPE, LifeType.SECONDS),
        isakmp.Attribute(AttributeClass.LIFE_DURATION, lifetime.seconds),
    ]
    if lifetime.kilobytes is not None:
        attributes += [
            isakmp.Attribute(AttributeClass.LIFE_TYPE, LifeType.KILOBYTES),
            isakmp.Attribute(AttributeClass.LIFE_DURATION, lifetime.kilobytes),
        ]
    if group is not None:
        attributes.append(isakmp.Attribute(AttributeClass.GROUP_DESCRIPTION, group))
    attributes.append(isakmp.Attribute(AttributeClass.ENCAPSULATION_MODE, _MODES[mode]))
    if suite.key_bits is not None:
        attributes.append(isakmp.Attribute(AttributeClass.KEY_LENGTH, suite.key_bits))
    if suite.authentication_id is not None:
        attributes.append(
            isakmp.Attribute(AttributeClass.AUTHENTICATION_ALGORITHM, suite.authentication_id)
        )
    if esn:
        attributes.append(isakmp.Attribute(AttributeClass.ESN, _ESN_64_BITS))
    transform = isakmp.Transform(1, suite.transform_id, tuple(attributes))
    return isakmp.Proposal(number, ProtocolId.ESP, spi.to_bytes(4, "big"), (transform,))


def creation(
    proposals: tuple[isakmp.Proposal, ...], nonce: bytes | None, public: bytes | None = None
) -> kink.Isakmp:
    """The KINK_ISAKMP payload of a CREATE, or with one proposal of its REPLY (§6.3).

    ``nonce`` is Ni or Nr, None in the REPLY of a 2-message exchange; ``public`` is the public
    value of a KE payload.
    """
    parts: list[isakmp.QuickModePayload] = [isakmp.SecurityAssociation(proposals)]
    if nonce is not None:
        parts.append(isakmp.Nonce(nonce))
    if public is not None:
        parts.append(isakmp.KeyExchange(public))
    return isakmp.encode(tuple(parts))


def read_creation(payload: kink.Isakmp, *, reply: bool = False) -> Creation:
    """Read the Quick Mode part of a CREATE, or of the REPLY to one.

    Raises:
        PeerError: malformed; "refused-by-peer" for an error notification in a REPLY.
    """
    parts = isakmp.decode(payload)
    grammar.check_quick_mode(MessageType.CREATE, parts, reply=reply)
    offers: tuple[Offer, ...] = ()
    nonce: bytes | None = None
    public: bytes | None = None
    identities: list[isakmp.Identification] = []
    for part in parts:
        match part:
            case isakmp.SecurityAssociation():
                offers = _read_offers(part)
            case isakmp.Nonce():
                nonce = part.data
            case isakmp.KeyExchange():
                public = part.data
            case isakmp.Identification():
                identities.append(part)
            case isakmp.Notification() if reply:
                refuse_error_notification(part)
            case _:
                continue  # in a request an unknown error type is ignored too, RFC 4430 §5.5
    return Creation(offers, nonce, public, tuple(identities))


def refuse_key_exchange() -> PeerError:
    """What a responder that wants no KE payload answers one with (RFC 4430 §3.2)."""
    return PeerError(
        "ke-unsupported",
        "a KE payload, and the policy wants none",
        notify=NotifyType.INVALID_PAYLOAD_TYPE,
        notify_data=bytes((IsakmpPayload.KE,)),
    )


def holds_association(payloads: tuple[kink.Payload, ...]) -> bool:
    """Whether a REPLY tells of an SA: the peer has made its half, whatever else it says."""
    return any(
        isinstance(payload, kink.Isakmp) and payload.first == IsakmpPayload.SA
        for payload in payloads
    )


def refuse_error_notification(part: isakmp.Notification) -> None:
    """Raise for a notification of the error range (RFC 4430 §5.5); status types pass."""
    if part.type < 16384:
        try:
            name = NotifyType(part.type).name
        except ValueError:
            name = f"error notification {part.type}"
        raise PeerError("refused-by-peer", name.replace("_", "-"))


def _read_offers(association: isakmp.SecurityAssociation) -> tuple[Offer, ...]:
    if association.doi != 1 or association.situation != 1:  # RFC 4430 §5, SIT_IDENTITY_ONLY
        raise MalformedIsakmp("an SA payload of another DOI or situation")
    offers: list[Offer] = []
    numbers = [proposal.number for proposal in association.proposals]
    for proposal in association.proposals:
        bundled = numbers.count(proposal.number) > 1  # RFC 2408 §4.2: a logical AND
        # What cannot be chosen keeps its place: the first offer is the optimistic one.
        usable = proposal.protocol_id == ProtocolId.ESP and not bundled
        spi = int.from_bytes(proposal.spi, "big")
        offers += [
            _read_transform(proposal.number, spi, transform, usable=usable)
            for transform in proposal.transforms
        ]
    return tuple(offers)


def _read_transform(proposal: int, spi: int, transform: isakmp.Transform, *, usable: bool) -> Offer:
    values: dict[int, int] = {}
    life_type: int | None = None
    seconds: int | None = None
    kilobytes: int | None = None
    readable = usable
    for attribute in transform.attributes:
        kind, value = attribute.type, attribute.value
        if kind == AttributeClass.LIFE_TYPE:
            life_type = value
        elif kind == AttributeClass.LIFE_DURATION and life_type == LifeType.SECONDS:
            seconds, life_type = value, None
        elif kind == AttributeClass.LIFE_DURATION and life_type == LifeType.KILOBYTES:
            kilobytes, life_type = value, None
        elif kind in _SINGLE and kind not in values:
            values[kind] = value
        else:
            readable = False  # RFC 2407 §4.5: a transform we do not understand is not chosen
    esn = values.get(AttributeClass.ESN)
    return Offer(
        proposal=proposal,
        transform=transform.number,
        spi=spi,
        transform_id=transform.transform_id,
        key_bits=values.get(AttributeClass.KEY_LENGTH),
        authentication_id=values.get(AttributeClass.AUTHENTICATION_ALGORITHM),
        group=values.get(AttributeClass.GROUP_DESCRIPTION),
        mode=_KNOWN_MODES.get(values.get(AttributeClass.ENCAPSULATION_MODE, 0)),
        lifetime=Lifetime(DEFAULT_LIFETIME_SECONDS if seconds is None else seconds, kilobytes),
        readable=readable and seconds != 0 and kilobytes != 0 and esn in (None, _ESN_64_BITS),
        esn=esn is not None,
    )


def check_identities(
    identities: tuple[isakmp.Identification, ...], initiator: IPAddress, responder: IPAddress
) -> None:
    """Client identities must be the address pair itself, all protocols: our SAs are of that grain.

    Raises:
        PeerError: NO-PROPOSAL-CHOSEN for any other, RFC 4430 §5.3.
    """
    if not identities:
        return
    expected = (initiator, responder)
    given = tuple(_address_of(identity) for identity in identities)
    if given != expected:
        raise PeerError(
            "other-identities",
            "client identities that are not the two addresses",
            notify=NotifyType.NO_PROPOSAL_CHOSEN,
        )


def _address_of(identity: isakmp.Identification) -> IPAddress | None:
    whole = identity.protocol == 0 and identity.port == 0
    lengths: dict[int, int] = {IdType.IPV4_ADDR: 4, IdType.IPV6_ADDR: 16}
    if not whole or lengths.get(identity.id_type) != len(identity.data):
        return None
    return ip_address(identity.data)


def deletion(spis: tuple[int, ...]) -> kink.Isakmp:
    """A KINK_ISAKMP payload that names our inbound ESP SAs (RFC 4430 §3.3)."""
    octets = tuple(spi.to_bytes(4, "big") for spi in spis)
    return isakmp.encode((isakmp.Delete(ProtocolId.ESP, octets),))


def read_deletion(payload: kink.Isakmp) -> tuple[tuple[int, bytes], ...]:
    """The (protocol id, SPI) that a DELETE names (RFC 4430 §3.3). PeerError where malformed."""
    parts = isakmp.decode(payload)
    grammar.check_quick_mode(MessageType.DELETE, parts)
    deletes = [part for part in parts if isinstance(part, isakmp.Delete)]
    return tuple((part.protocol_id, spi) for part in deletes for spi in part.spis)


def deletion_answer(
    ours: tuple[int, ...], unknown: tuple[tuple[int, bytes], ...]
) -> tuple[kink.Payload, ...]:
    """One KINK_ISAKMP payload: our inbound SPIs, INVALID-SPI for what we have not (§3.3, §6.4)."""
    parts: list[isakmp.QuickModePayload] = []
    if ours:
        octets = tuple(spi.to_bytes(4, "big") for spi in ours)
        parts.append(isakmp.Delete(ProtocolId.ESP, octets))
    parts += [
        isakmp.Notification(protocol, spi, NotifyType.INVALID_SPI)
        for protocol, spi in unknown[: grammar.MAX_NOTIFICATIONS]
    ]
    return (isakmp.encode(tuple(parts)),) if parts else ()


def notification(notify: int, data: bytes = b"") -> kink.Isakmp:
    """A KINK_ISAKMP payload with one Notify (RFC 4430 §5.5)."""
    return isakmp.encode((isakmp.Notification(ProtocolId.ESP, b"", notify, data),))
