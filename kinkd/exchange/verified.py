"""The only maker of verified messages.

Whatever reaches a state machine has passed through here: its ticket was opened, its Cksum
verified under the ticket's session key, its authenticator accepted. The order is that of
RFC 4430 §4 and matters: were the authenticator accepted before the Cksum is verified, anyone
who overheard an AP-REQ could burn it in the replay cache with a message of his own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kinkd.errors import Malformed, PeerError, TicketRefused
from kinkd.kerberos import messages
from kinkd.kerberos.port import Acceptor, Authenticator, OpenedTicket, SessionKey
from kinkd.wire import grammar, kink
from kinkd.wire.numbers import KeyUsage, MessageType


@dataclass(frozen=True, slots=True)
class VerifiedCommand:
    """A command (or ACK) of an authenticated peer. ``unseal`` gives what it holds."""

    type: MessageType
    xid: int
    epoch: int
    ticket: OpenedTicket
    ap_rep: bytes = field(repr=False)
    sealed: tuple[kink.Payload, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class VerifiedReply:
    """A REPLY that proves its sender knows the ticket's session key and answers us, now.

    ``attempt`` is the index of the authenticator that its AP-REP echoes.
    """

    xid: int
    epoch: int
    ack_request: bool
    attempt: int
    inner: tuple[kink.Payload, ...] = field(repr=False)


class CommandRefused(TicketRefused):
    """Kerberos refuses the authenticator of a command whose Cksum verified (RFC 4430 §4.2.3).

    Its sender shares a key with us, so that the refusal can be proven to it. ``client_time`` is
    the authenticator's (ctime, cusec), None where that cannot be read.
    """

    def __init__(
        self, refused: TicketRefused, ticket: OpenedTicket, client_time: tuple[int, int] | None
    ) -> None:
        super().__init__(refused.reason, refused.detail, refused.krb_error)
        self.ticket = ticket
        self.client_time = client_time


def open_command(received: kink.Received, acceptor: Acceptor) -> OpenedTicket:
    """Open the ticket of a command and verify its Cksum. Nothing changes by it.

    Raises:
        PeerError: malformed; ticket refused; "missing-checksum" or "bad-checksum", both
            dropped in silence (RFC 4430 §4).
    """
    message = received.message
    grammar.check(message)
    request = message.payloads[0]
    if not isinstance(request, kink.ApReq):
        raise Malformed(f"{message.type.name} without a leading KINK_AP_REQ")
    opened = acceptor.open(request.ap_req)
    _verify_checksum(received, opened.key)
    return opened


def accept_command(
    received: kink.Received, opened: OpenedTicket, acceptor: Acceptor
) -> VerifiedCommand:
    """Let Kerberos accept the authenticator.

    Raises:
        CommandRefused: clock, expiry: whoever asked is told.
        TicketRefused: a replay, or an ACK: silence.
    """
    message = received.message
    request = message.payloads[0]
    if not isinstance(request, kink.ApReq):
        raise Malformed(f"{message.type.name} without a leading KINK_AP_REQ")
    try:
        accepted = acceptor.accept(opened)
    except TicketRefused as refused:
        raise _refused(refused, message.type, opened) from None
    sealed = message.payloads[1:]
    return VerifiedCommand(
        message.type, message.xid, request.epoch, opened, accepted.ap_rep, sealed
    )


def _refused(
    refused: TicketRefused, message_type: MessageType, opened: OpenedTicket
) -> TicketRefused:
    if refused.krb_error is None:
        return refused
    if message_type is MessageType.ACK:  # expects no answer, RFC 4430 §6.2
        return TicketRefused(refused.reason, refused.detail, None)
    try:
        request = messages.read_ap_req(opened.ap_req)
        client_time = messages.authenticator_time(opened.key, request)
    except PeerError:
        client_time = None
    return CommandRefused(refused, opened, client_time)


def unseal(command: VerifiedCommand) -> tuple[kink.Payload, ...]:
    """The payloads after the AP-REQ, those inside KINK_ENCRYPT in its place (§4.2.7).

    Raises:
        PeerError: "bad-integrity"; malformed. The AP-REP is there to answer it with.
    """
    return _open_payloads(command.type, command.sealed, command.ticket.key)


def verify_reply(
    received: kink.Received, key: SessionKey, outstanding: Sequence[Authenticator]
) -> VerifiedReply:
    """Verify a REPLY against the authenticators that are outstanding for its transaction (§9).

    Raises:
        PeerError: no Cksum, a wrong one, no AP-REP, or one that echoes no authenticator of ours.
    """
    message = received.message
    grammar.check(message)
    proof = message.payloads[0]
    if not isinstance(proof, kink.ApRep):
        raise PeerError("unauthenticated-reply", "a REPLY without KINK_AP_REP")
    _verify_checksum(received, key)
    echoed = messages.read_ap_rep(key, proof.ap_rep)
    known = [(authenticator.ctime, authenticator.cusec) for authenticator in outstanding]
    if echoed not in known:
        raise PeerError("stale-ap-rep", "the AP-REP echoes no outstanding authenticator")
    attempt = known.index(echoed)
    inner = _open_payloads(message.type, message.payloads[1:], key)
    return VerifiedReply(message.xid, proof.epoch, message.ack_request, attempt, inner)


def _verify_checksum(received: kink.Received, key: SessionKey) -> None:
    if not received.checksum:
        raise PeerError("missing-checksum", "a key is there, so the Cksum must be")
    if not key.verify(KeyUsage.CHECKSUM, received.signed, received.checksum):
        raise PeerError("bad-checksum", "the Cksum does not verify under the ticket's key")


def _open_payloads(
    message_type: MessageType, payloads: tuple[kink.Payload, ...], key: SessionKey
) -> tuple[kink.Payload, ...]:
    opened: list[kink.Payload] = []
    for payload in payloads:
        if isinstance(payload, kink.Encrypt):
            inner = kink.decode_inner(key.decrypt(KeyUsage.ENCRYPT, payload.cipher))
            grammar.check_inner(message_type, inner)
            opened += inner
        else:
            opened.append(payload)
    return tuple(opened)


def seal(
    message_type: MessageType,
    xid: int,
    proof: kink.ApReq | kink.ApRep,
    inner: tuple[kink.Payload, ...],
    key: SessionKey,
    *,
    ack_request: bool = False,
) -> bytes:
    """A whole datagram: ``inner`` inside KINK_ENCRYPT, then the Cksum over it all (RFC 4430 §4)."""
    payloads: tuple[kink.Payload, ...] = (proof,)
    if inner:
        cipher = key.encrypt(KeyUsage.ENCRYPT, kink.encode_inner(inner))
        payloads = (proof, kink.Encrypt(cipher))
    return sign(kink.Message(message_type, xid, payloads, ack_request), key)


def sign(message: kink.Message, key: SessionKey) -> bytes:
    """A whole datagram with its Cksum (RFC 4430 §4)."""
    signed = kink.encode(message)
    return kink.with_checksum(signed, key.checksum(KeyUsage.CHECKSUM, signed))
