"""Between Quick Mode payloads and what is negotiated: proposals, offers, nonces, SPIs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kinkd.errors import MalformedIsakmp, PeerError
from kinkd.exchange import identities
from kinkd.keying.negotiate import DEFAULT_LIFETIME_SECONDS, Offer, Part, Terms
from kinkd.model import IpsecProtocol, Lifetime, Mode, Selector, Suite, Transform
from kinkd.wire import grammar, isakmp, kink
from kinkd.wire.numbers import (
    NOTIFY_STATUS_FIRST,
    AttributeClass,
    EncapsulationMode,
    IsakmpPayload,
    LifeType,
    MessageType,
    NotifyType,
    ProtocolId,
)

NONCE_OCTETS = 32
FIRST_SPI = 256  # RFC 4303 §2.1: 0 to 255 are reserved
_ESN_64_BITS = 1  # RFC 4304 §2: the only value; without the attribute it is 32 bits
_OFFERS = 256
"""So many are read of one SA payload, in its order; who offers more means no good."""
_LONGEST = (1 << 32) - 1  # seconds or kilobytes: what is longer is no limit to any SA

PROTOCOL_IDS = {IpsecProtocol.ESP: ProtocolId.ESP, IpsecProtocol.AH: ProtocolId.AH}
"""ISAKMP's numbers of the protocols (RFC 2407 §4.4.1)."""
_PROTOCOLS = {int(number): protocol for protocol, number in PROTOCOL_IDS.items()}
_MODES = {
    (Mode.TRANSPORT, False): EncapsulationMode.TRANSPORT,
    (Mode.TUNNEL, False): EncapsulationMode.TUNNEL,
    (Mode.TRANSPORT, True): EncapsulationMode.UDP_TRANSPORT,  # RFC 3947 §5.1
    (Mode.TUNNEL, True): EncapsulationMode.UDP_TUNNEL,
}
_KNOWN_MODES = {int(number): known for known, number in _MODES.items()}
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
    """The Quick Mode part of a CREATE or of its REPLY.

    ``traffic`` is what the client identities ``clients`` say, from the initiator's side to the
    responder's.
    """

    offers: tuple[Offer, ...]
    nonce: bytes | None = field(repr=False)
    public: bytes | None = None  # of a KE payload
    traffic: Selector | None = None
    clients: tuple[isakmp.Identification, ...] = ()
    notifications: tuple[isakmp.Notification, ...] = ()  # that refuse nothing

    @property
    def spis(self) -> frozenset[tuple[IpsecProtocol, int]]:
        """All that the offers name."""
        parts = (part for offer in self.offers for part in offer.parts)
        return frozenset((p.protocol, p.spi) for p in parts if p.protocol is not None)


def propose(
    number: int, suite: Suite, terms: Terms, spis: Sequence[int]
) -> tuple[isakmp.Proposal, ...]:
    """The proposals of one number that offer ``suite``: one for each protocol, of one transform.

    AH stands before ESP, as it does in the packet. ``spis`` are those of the suite's transforms.
    """
    return tuple(
        isakmp.Proposal(
            number,
            PROTOCOL_IDS[transform.protocol],
            spi.to_bytes(4, "big"),
            (isakmp.Transform(1, transform.transform_id, _attributes(transform, terms)),),
        )
        for transform, spi in reversed(tuple(zip(suite.transforms, spis, strict=True)))
    )


def _attributes(transform: Transform, terms: Terms) -> tuple[isakmp.Attribute, ...]:
    """In the order that every peer reads."""
    lifetime = terms.lifetime
    attributes = [
        isakmp.Attribute(AttributeClass.LIFE_TYPE, LifeType.SECONDS),
        isakmp.Attribute(AttributeClass.LIFE_DURATION, lifetime.seconds),
    ]
    if lifetime.kilobytes is not None:
        attributes += [
            isakmp.Attribute(AttributeClass.LIFE_TYPE, LifeType.KILOBYTES),
            isakmp.Attribute(AttributeClass.LIFE_DURATION, lifetime.kilobytes),
        ]
    if terms.group is not None:  # RFC 2409 §5.5: with a KE payload every transform names it
        attributes.append(isakmp.Attribute(AttributeClass.GROUP_DESCRIPTION, terms.group))
    if terms.mode is not None:
        mode = _MODES[terms.mode, terms.udp]
        attributes.append(isakmp.Attribute(AttributeClass.ENCAPSULATION_MODE, mode))
    if transform.key_bits is not None:
        attributes.append(isakmp.Attribute(AttributeClass.KEY_LENGTH, transform.key_bits))
    if transform.authentication_id is not None:
        attributes.append(
            isakmp.Attribute(AttributeClass.AUTHENTICATION_ALGORITHM, transform.authentication_id)
        )
    if terms.esn:
        attributes.append(isakmp.Attribute(AttributeClass.ESN, _ESN_64_BITS))
    return tuple(attributes)


def answer(
    suite: Suite, offer: Offer, terms: Terms, spis: Sequence[int]
) -> tuple[isakmp.Proposal, ...]:
    """The proposals of a REPLY: the chosen ones under their own numbers, in their own order,
    with our SPIs (RFC 2409 §5.5) and ``terms``, of which only the lifetime may differ."""
    ours = {t.protocol: (t, spi) for t, spi in zip(suite.transforms, spis, strict=True)}
    answers: list[isakmp.Proposal] = []
    for part in offer.parts:
        if part.protocol is None:
            continue
        transform, spi = ours[part.protocol]
        lifetime = terms.lifetime
        if part.terms.lifetime.kilobytes is None:  # what was not offered is not answered
            lifetime = Lifetime(lifetime.seconds)
        said = part.terms.within(lifetime)
        chosen = isakmp.Transform(part.transform, part.transform_id, _attributes(transform, said))
        protocol_id = PROTOCOL_IDS[part.protocol]
        answers.append(
            isakmp.Proposal(offer.proposal, protocol_id, spi.to_bytes(4, "big"), (chosen,))
        )
    return tuple(answers)


def creation(
    proposals: tuple[isakmp.Proposal, ...],
    nonce: bytes | None,
    public: bytes | None = None,
    clients: tuple[isakmp.Identification, ...] = (),
) -> kink.Isakmp:
    """The KINK_ISAKMP payload of a CREATE, or with one proposal of its REPLY (§6.3).

    ``nonce`` is Ni or Nr, None in the REPLY of a 2-message exchange; ``public`` is the public
    value of a KE payload; ``clients`` are IDci and IDcr, which a responder gives back.
    """
    parts: list[isakmp.QuickModePayload] = [isakmp.SecurityAssociation(proposals)]
    if nonce is not None:
        parts.append(isakmp.Nonce(nonce))
    if public is not None:
        parts.append(isakmp.KeyExchange(public))
    parts += clients
    return isakmp.encode(tuple(parts))


def read_creation(payload: kink.Isakmp, *, reply: bool = False) -> Creation:
    """Read the Quick Mode part of a CREATE, or of the REPLY to one.

    Raises:
        PeerError: malformed; identities that no selector can say; "refused-by-peer" for an error
            notification in a REPLY.
    """
    parts = isakmp.decode(payload)
    grammar.check_quick_mode(MessageType.CREATE, parts, reply=reply)
    offers: tuple[Offer, ...] = ()
    nonce: bytes | None = None
    public: bytes | None = None
    clients: list[isakmp.Identification] = []
    notifications: list[isakmp.Notification] = []
    for part in parts:
        match part:
            case isakmp.SecurityAssociation():
                offers = read_offers(part)
            case isakmp.Nonce():
                nonce = part.data
            case isakmp.KeyExchange():
                public = part.data
            case isakmp.Identification():
                clients.append(part)
            case isakmp.Notification():
                if reply:  # in a request an unknown error type is ignored too, RFC 4430 §5.5
                    refuse_error_notification(part)
                notifications.append(part)
            case _:
                continue
    traffic = identities.read(clients[0], clients[1]) if clients else None
    return Creation(offers, nonce, public, traffic, tuple(clients), tuple(notifications))


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
    if part.type < NOTIFY_STATUS_FIRST:
        try:
            name = NotifyType(part.type).name
        except ValueError:
            name = f"error notification {part.type}"
        raise PeerError(
            "refused-by-peer",
            name.replace("_", "-"),
            notify=part.type,
            notify_data=part.data,
        )


def read_offers(association: isakmp.SecurityAssociation) -> tuple[Offer, ...]:
    """All that an SA payload offers, in its order: the first is the optimistic one (§3.2)."""
    if association.doi != 1 or association.situation != 1:  # RFC 4430 §5, SIT_IDENTITY_ONLY
        raise MalformedIsakmp("an SA payload of another DOI or situation")
    by_number: dict[int, list[isakmp.Proposal]] = {}
    for proposal in association.proposals:  # RFC 2408 §4.2: one number is a logical AND
        by_number.setdefault(proposal.number, []).append(proposal)
    offers = (offer for group in by_number.values() for offer in _combine(group))
    return tuple(itertools.islice(offers, _OFFERS))


def _combine(bundle: list[isakmp.Proposal]) -> Iterable[Offer]:
    """Each choice of a transform for every protocol of a bundle; the first of each first."""
    choices = [
        [_read_transform(proposal, transform) for transform in proposal.transforms]
        for proposal in bundle
    ]
    for parts in itertools.product(*choices):
        yield Offer(bundle[0].number, parts)


def _read_transform(proposal: isakmp.Proposal, transform: isakmp.Transform) -> Part:
    values: dict[int, int] = {}
    life_type: int | None = None
    seconds: int | None = None
    kilobytes: int | None = None
    readable = True
    for attribute in transform.attributes:
        kind, value = attribute.type, attribute.value
        if kind == AttributeClass.LIFE_TYPE:
            life_type = value
        elif kind == AttributeClass.LIFE_DURATION and life_type == LifeType.SECONDS:
            seconds, life_type = min(value, _LONGEST), None
        elif kind == AttributeClass.LIFE_DURATION and life_type == LifeType.KILOBYTES:
            kilobytes, life_type = min(value, _LONGEST), None
        elif kind in _SINGLE and kind not in values:
            values[kind] = value
        else:
            readable = False  # RFC 2407 §4.5: a transform we do not understand is not chosen
    esn = values.get(AttributeClass.ESN)
    mode, udp = _KNOWN_MODES.get(values.get(AttributeClass.ENCAPSULATION_MODE, 0), (None, False))
    return Part(
        protocol=_PROTOCOLS.get(proposal.protocol_id),
        transform=transform.number,
        spi=int.from_bytes(proposal.spi, "big"),
        transform_id=transform.transform_id,
        key_bits=values.get(AttributeClass.KEY_LENGTH),
        authentication_id=values.get(AttributeClass.AUTHENTICATION_ALGORITHM),
        terms=Terms(
            mode=mode,
            lifetime=Lifetime(DEFAULT_LIFETIME_SECONDS if seconds is None else seconds, kilobytes),
            udp=udp,
            group=values.get(AttributeClass.GROUP_DESCRIPTION),
            esn=esn is not None,
        ),
        # What cannot be chosen keeps its place: the first offer is the optimistic one.
        readable=readable and seconds != 0 and kilobytes != 0 and esn in (None, _ESN_64_BITS),
    )


Named = tuple[int, bytes]
"""A protocol id of ISAKMP, and an SPI as it is on the wire."""


def deletion(spis: Iterable[tuple[IpsecProtocol, int]]) -> kink.Isakmp:
    """A KINK_ISAKMP payload that names our inbound SAs (RFC 4430 §3.3)."""
    return isakmp.encode(_deletes(spis))


def read_deletion(payload: kink.Isakmp) -> tuple[Named, ...]:
    """The (protocol id, SPI) that a DELETE names (RFC 4430 §3.3). PeerError where malformed."""
    parts = isakmp.decode(payload)
    grammar.check_quick_mode(MessageType.DELETE, parts)
    deletes = [part for part in parts if isinstance(part, isakmp.Delete)]
    return tuple((part.protocol_id, spi) for part in deletes for spi in part.spis)


def known_sa(name: Named) -> tuple[IpsecProtocol, int] | None:
    """What a DELETE names, in our terms; None: no protocol of ours."""
    protocol_id, spi = name
    protocol = _PROTOCOLS.get(protocol_id)
    return None if protocol is None else (protocol, int.from_bytes(spi, "big"))


def deletion_answer(
    ours: Iterable[tuple[IpsecProtocol, int]], unknown: Sequence[Named]
) -> tuple[kink.Payload, ...]:
    """One KINK_ISAKMP payload: our inbound SPIs, INVALID-SPI for what we have not (§3.3, §6.4)."""
    notifications = tuple(
        isakmp.Notification(protocol, spi, NotifyType.INVALID_SPI)
        for protocol, spi in unknown[: grammar.MAX_NOTIFICATIONS]
    )
    parts: tuple[isakmp.QuickModePayload, ...] = (*_deletes(ours), *notifications)
    return (isakmp.encode(parts),) if parts else ()


def _deletes(spis: Iterable[tuple[IpsecProtocol, int]]) -> tuple[isakmp.Delete, ...]:
    """A payload for each protocol, or more where a peer would not read so many SPIs in one."""
    by_protocol: dict[IpsecProtocol, list[bytes]] = {}
    for protocol, spi in spis:
        by_protocol.setdefault(protocol, []).append(spi.to_bytes(4, "big"))
    return tuple(
        isakmp.Delete(PROTOCOL_IDS[protocol], tuple(named[start : start + isakmp.MAX_SPIS]))
        for protocol, named in by_protocol.items()
        for start in range(0, len(named), isakmp.MAX_SPIS)
    )


def notification(notify: int, data: bytes = b"") -> kink.Isakmp:
    """A KINK_ISAKMP payload with one Notify (RFC 4430 §5.5)."""
    return isakmp.encode((isakmp.Notification(ProtocolId.ESP, b"", notify, data),))
