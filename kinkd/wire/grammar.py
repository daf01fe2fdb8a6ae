"""Which payloads a message may hold, how often, and where (RFC 4430 §6), as tables.

Faults of the KINK chain are ``Malformed``, faults of a Quick Mode chain ``MalformedIsakmp``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kinkd.errors import Malformed, MalformedIsakmp
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import MessageType, ProtocolId

MAX_NOTIFICATIONS = 16
MIN_NONCE_OCTETS = 8  # RFC 2409 §5
MAX_NONCE_OCTETS = 256
SPI_OCTETS = 4  # RFC 4301 §4.1: of ESP and AH


@dataclass(frozen=True, slots=True)
class Rule:
    """How often a payload may occur, and whether it may do so inside KINK_ENCRYPT.

    RFC 4430 §6 asks for encryption nowhere and allows it for everything that does not itself
    carry the key, so "inside" is a permission and never a duty.
    """

    payload: type[kink.Payload]
    least: int
    most: int
    inside: bool = False


_AP_REQ = Rule(kink.ApReq, 1, 1)
_AP_REP = Rule(kink.ApRep, 1, 1)
_ENCRYPT = Rule(kink.Encrypt, 0, 1)
_ISAKMP = Rule(kink.Isakmp, 1, kink.MAX_PAYLOADS, inside=True)
_NO_ISAKMP = Rule(kink.Isakmp, 0, kink.MAX_PAYLOADS, inside=True)

COMMANDS: Mapping[MessageType, tuple[Rule, ...]] = {
    MessageType.CREATE: (_AP_REQ, _ENCRYPT, _ISAKMP),  # §6.3
    MessageType.DELETE: (_AP_REQ, _ENCRYPT, _ISAKMP),  # §6.4
    MessageType.STATUS: (_AP_REQ, _ENCRYPT, _NO_ISAKMP),  # §6.5
    MessageType.ACK: (_AP_REQ,),  # §6.2
    MessageType.GETTGT: (Rule(kink.TgtReq, 1, 1),),  # §6.6
}
"""What is not a REPLY."""

REPLIES: tuple[tuple[Rule, ...], ...] = (
    (
        _AP_REP,
        _ENCRYPT,
        _NO_ISAKMP,
        Rule(kink.KrbError, 0, 1, inside=True),
        Rule(kink.KinkError, 0, 1, inside=True),
    ),
    (Rule(kink.KrbError, 1, 1),),
    (Rule(kink.KinkError, 1, 1),),
    (Rule(kink.TgtRep, 1, 1),),
)
"""The forms of a REPLY: a message must be of one of them (§6.1, §6.3 to §6.6)."""


@dataclass(frozen=True, slots=True)
class QuickModeRule:
    """How often a payload may occur in one KINK_ISAKMP payload; 0 or ``most`` where ``paired``."""

    payload: type[isakmp.QuickModePayload]
    least: int
    most: int
    paired: bool = False


_KE = QuickModeRule(isakmp.KeyExchange, 0, 1)
_IDS = QuickModeRule(isakmp.Identification, 0, 2, paired=True)  # IDci and IDcr, RFC 2409 §5.5
_NOTIFICATIONS = QuickModeRule(isakmp.Notification, 0, MAX_NOTIFICATIONS)
_DELETES = QuickModeRule(isakmp.Delete, 1, isakmp.MAX_PAYLOADS)
_ONLY_NOTIFICATIONS = (QuickModeRule(isakmp.Notification, 1, MAX_NOTIFICATIONS),)

QUICK_MODE_COMMANDS: Mapping[MessageType, tuple[QuickModeRule, ...]] = {
    MessageType.CREATE: (
        QuickModeRule(isakmp.SecurityAssociation, 1, 1),
        QuickModeRule(isakmp.Nonce, 1, 1),
        _KE,
        _IDS,
        _NOTIFICATIONS,
    ),
    MessageType.DELETE: (_DELETES, _NOTIFICATIONS),
    MessageType.STATUS: (_NOTIFICATIONS,),
}

QUICK_MODE_REPLIES: Mapping[MessageType, tuple[tuple[QuickModeRule, ...], ...]] = {
    MessageType.CREATE: (
        (
            QuickModeRule(isakmp.SecurityAssociation, 1, 1),
            QuickModeRule(isakmp.Nonce, 0, 1),  # RFC 4430 §5.4
            _KE,
            _IDS,
            _NOTIFICATIONS,
        ),
        _ONLY_NOTIFICATIONS,
    ),
    MessageType.DELETE: ((_DELETES, _NOTIFICATIONS), _ONLY_NOTIFICATIONS),
    MessageType.STATUS: ((_NOTIFICATIONS,),),
}
"""The forms of the answer, by the command it answers."""


def check(message: kink.Message) -> None:
    """Check the outer chain of a message.

    Where it holds KINK_ENCRYPT, what may be inside is counted by ``check_inner`` instead.

    Raises:
        Malformed: KINK_PROTOERR.
    """
    rules = _rules(message)
    encrypted = isinstance(message.payloads[-1], kink.Encrypt) if message.payloads else False
    _count(message.type, message.payloads, rules, lenient=encrypted)


def check_inner(message_type: MessageType, payloads: tuple[kink.Payload, ...]) -> None:
    """Check the payloads that a message of ``message_type`` had inside KINK_ENCRYPT.

    Raises:
        Malformed: KINK_PROTOERR.
    """
    if not payloads:
        raise Malformed(f"nothing is inside KINK_ENCRYPT of a {message_type.name}")
    rules = COMMANDS.get(message_type, REPLIES[0])
    inside = tuple(rule for rule in rules if rule.inside)
    _count(message_type, payloads, inside, lenient=False)


def check_quick_mode(
    command: MessageType, payloads: tuple[isakmp.QuickModePayload, ...], *, reply: bool = False
) -> None:
    """Check the payloads of one KINK_ISAKMP payload of ``command``, or of the REPLY to it.

    Raises:
        MalformedIsakmp: PAYLOAD-MALFORMED.
    """
    if reply:
        forms = QUICK_MODE_REPLIES.get(command, ())
    else:
        forms = (QUICK_MODE_COMMANDS[command],) if command in QUICK_MODE_COMMANDS else ()
    if not any(_fits(payloads, form) for form in forms):
        held = ", ".join(type(payload).__name__ for payload in payloads) or "nothing"
        kind = "the REPLY to a " if reply else "a "
        raise MalformedIsakmp(f"{kind}{command.name} with {held}")
    for position, payload in enumerate(payloads):
        match payload:
            case isakmp.SecurityAssociation(proposals):
                if position:  # RFC 2409 §5.5: before all other payloads
                    raise MalformedIsakmp("the SA payload is not the first")
                _check_proposals(proposals, chosen=reply)
            case isakmp.Nonce(data):
                if not MIN_NONCE_OCTETS <= len(data) <= MAX_NONCE_OCTETS:
                    raise MalformedIsakmp(f"a nonce of {len(data)} octets")
            case isakmp.Delete(protocol_id, spis):
                for spi in spis:
                    _check_spi(protocol_id, spi)


def _check_proposals(proposals: tuple[isakmp.Proposal, ...], *, chosen: bool) -> None:
    for proposal in proposals:
        _check_spi(proposal.protocol_id, proposal.spi)
    if not chosen:
        return
    # RFC 4430 §6.3: several proposals only for a bundle, which is one number (RFC 2408 §4.2).
    if len({proposal.number for proposal in proposals}) != 1:
        raise MalformedIsakmp("a REPLY that chooses several proposals")
    if any(len(proposal.transforms) != 1 for proposal in proposals):
        raise MalformedIsakmp("a REPLY that chooses several transforms")


def _check_spi(protocol_id: int, spi: bytes) -> None:
    if protocol_id in (ProtocolId.AH, ProtocolId.ESP) and len(spi) != SPI_OCTETS:
        raise MalformedIsakmp(f"an SPI of {len(spi)} octets")


def _rules(message: kink.Message) -> tuple[Rule, ...]:
    if message.type is not MessageType.REPLY:
        return COMMANDS[message.type]
    for form in REPLIES:
        if any(isinstance(payload, form[0].payload) for payload in message.payloads):
            return form
    raise Malformed("a REPLY without KINK_AP_REP, KINK_KRB_ERROR, KINK_ERROR or KINK_TGT_REP")


def _count(
    message_type: MessageType,
    payloads: tuple[kink.Payload, ...],
    rules: tuple[Rule, ...],
    *,
    lenient: bool,
) -> None:
    counts = dict.fromkeys((rule.payload for rule in rules), 0)
    for payload in payloads:
        kind = type(payload)
        if kind not in counts:
            name = f"type {payload.type}" if isinstance(payload, kink.Unknown) else kind.__name__
            raise Malformed(f"a {message_type.name} may not hold a payload {name} here")
        counts[kind] += 1
    for rule in rules:
        least = 0 if lenient and rule.inside else rule.least
        if not least <= counts[rule.payload] <= rule.most:
            raise Malformed(
                f"a {message_type.name} with {counts[rule.payload]} {rule.payload.__name__}"
            )


def _fits(payloads: Iterable[isakmp.QuickModePayload], rules: tuple[QuickModeRule, ...]) -> bool:
    counts = dict.fromkeys((rule.payload for rule in rules), 0)
    for payload in payloads:
        if type(payload) not in counts:
            return False
        counts[type(payload)] += 1
    return all(
        rule.least <= counts[rule.payload] <= rule.most
        and not (rule.paired and counts[rule.payload] not in (0, rule.most))
        for rule in rules
    )
