"""What came of each command in a capture: the end of a long output, and often all one needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from kinkd.decode import words
from kinkd.decode.reader import MessageView
from kinkd.kerberos import messages
from kinkd.model import IPAddress
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import KinkErrorCode, MessageType, kink_error_name


@dataclass(slots=True)
class Outcome:
    """One command, from its first sending to its REPLY and ACK.

    Args:
        time: POSIX nanoseconds of the first sending.
        sent: how often the command was seen.
        replies: how often a REPLY was.
        result: in words.
        proven: whether the REPLY had a Cksum; one without counts only where no other is.
    """

    time: int
    initiator: IPAddress
    responder: IPAddress
    xid: int
    command: str
    sent: int = 1
    replies: int = 0
    result: str = "NO ANSWER"
    proven: bool = False
    ack_awaited: bool = False


@dataclass(slots=True)
class Summary:
    """The commands of a capture, in the order in which they were first sent."""

    outcomes: list[Outcome] = field(default_factory=list)
    _open: dict[tuple[IPAddress, IPAddress, int], tuple[int, Outcome]] = field(default_factory=dict)

    def add(self, view: MessageView) -> None:
        """Take in the next message of the capture."""
        packet, head = view.datagram, view.header
        if head is None:
            return
        if head.type == MessageType.REPLY:
            known = self._open.get((packet.destination, packet.source, head.xid))
            if known is not None:
                _answered(known[1], view)
            return
        key = (packet.source, packet.destination, head.xid)
        known = self._open.get(key)
        if head.type == MessageType.ACK:
            if known is not None:
                known[1].ack_awaited = False
            return
        epoch = _epoch(view)
        if known is not None and known[0] == epoch:
            known[1].sent += 1
            return
        outcome = Outcome(packet.time, *key, _command(head.type))
        self._open[key] = epoch, outcome
        self.outcomes.append(outcome)

    def lines(self, start: int) -> Iterator[str]:
        """Text for people; ``start``: nanoseconds of the first packet."""
        for one in self.outcomes:
            often = f" sent {one.sent} times" if one.sent > 1 else ""
            missing = "; THE ACK IS MISSING" if one.ack_awaited else ""
            yield (
                f"{(one.time - start) / 1e9:+.6f} s {one.initiator} > {one.responder}"
                f"  {one.command} xid {one.xid}{often}: {one.result}{missing}"
            )


def _command(kind: int) -> str:
    try:
        return MessageType(kind).name
    except ValueError:
        return f"message type {kind}"


def _epoch(view: MessageView) -> int:
    return next((p.payload.epoch for p in view.flat if isinstance(p.payload, kink.ApReq)), 0)


def _answered(outcome: Outcome, view: MessageView) -> None:
    outcome.replies += 1
    proven = bool(view.checksum)
    if outcome.proven and not proven:
        return
    if proven and not outcome.proven and view.header is not None:
        outcome.ack_awaited = view.header.ack_request
    outcome.proven = proven
    outcome.result = ", ".join(_results(view)) or "answered"
    if not proven:
        outcome.result += ", unauthenticated"


def _results(view: MessageView) -> Iterator[str]:
    if view.problem:
        yield f"an answer that breaks RFC 4430: {view.problem}"
    if view.verified is False:
        yield "an answer whose Cksum is WRONG"
    for part in view.flat:
        match part.payload, part.kerberos:
            case kink.KinkError(code), _ if code != KinkErrorCode.OK:
                yield kink_error_name(code)
            case _, messages.KrbErrorPart(code=code):
                yield messages.krb_error_name(code)
            case kink.TgtRep(), _:
                yield "a TGT"
            case kink.Encrypt(), _ if part.problem:
                yield "answered, encrypted"
        for element in part.quick_mode:
            yield from _quick_mode(element)


def _quick_mode(element: object) -> Iterator[str]:
    match element:
        case isakmp.SecurityAssociation(proposals):
            for proposal in proposals:
                protocol = proposal.protocol_id
                kinds = [words.transform(protocol, each) for each in proposal.transforms]
                yield f"{_protocol(protocol)} {_spi(proposal.spi)} {', '.join(kinds)}"
        case isakmp.Notification(type=kind, spi=spi):
            data = words.notified(element)
            name = words.name(words.NOTIFICATIONS, kind)
            yield name + (f" {_spi(spi)}" if spi else "") + (f" {data}" if data else "")
        case isakmp.Delete(protocol_id, spis):
            yield f"deleted {_protocol(protocol_id)} {' '.join(map(_spi, spis))}"


def _protocol(number: int) -> str:
    return words.name(words.PROTOCOLS, number)


def _spi(octets: bytes) -> str:
    return f"spi {words.spi(octets)}"
