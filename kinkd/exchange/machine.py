"""Commands that we initiate: tickets, XIDs, retransmission, and finding the REPLY's exchange.

What a command is for (creating, deleting, probing) is its ``Purpose``; what happens to every
command alike is here, by the table in ``table.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

from kinkd.errors import KernelError, LocalError, PeerError
from kinkd.exchange import remedy, unproven
from kinkd.exchange.core import Core, Peer
from kinkd.exchange.effects import Level, Path
from kinkd.exchange.table import Action, Event, State, step
from kinkd.exchange.tickets import Tickets
from kinkd.exchange.timing import SHORTEST_TIMEOUT, TRANSACTION_SECONDS, Timer
from kinkd.exchange.verified import VerifiedReply, seal, verify_reply
from kinkd.kerberos import messages
from kinkd.kerberos.port import Authenticator, Ticket
from kinkd.model import IPAddress
from kinkd.wire import kink
from kinkd.wire.numbers import GREATEST_DATAGRAM, KinkErrorCode, MessageType, kink_error_name

# A delayed command is accepted as long as its authenticator is fresh (RFC 4120 §3.2.3).
_LATE_SECONDS = 300.0 + TRANSACTION_SECONDS
_LATE_COMMANDS = 128  # of one host
_UNANSWERED_COMMANDS = 1024  # of all hosts: who has never answered is hardly about to
USUAL_PATH = 1452
"""Octets of a datagram that passes whole over IPv4 and IPv6 where the MTU is 1500."""


class Purpose(Protocol):
    """What a command is for."""

    @property
    def type(self) -> MessageType: ...

    def prepare(self, exchange: Exchange, now: float) -> tuple[kink.Payload, ...]:
        """What goes inside KINK_ENCRYPT; called once for each XID, when the ticket is there."""

    def complete(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """A REPLY has verified. Raises PeerError where its contents are no success."""

    def abandon(self, exchange: Exchange, reason: str, now: float) -> None:
        """The command has failed; undo what ``prepare`` did."""

    def again(self, exchange: Exchange, now: float, *, refused: bool) -> Purpose:
        """Undo what ``prepare`` did, which will be called again.

        The peer has ``refused`` what was sent, or else may yet have carried it out.

        Returns whom to tell of a late REPLY to what was refused.
        """

    def repeated(self, now: float) -> None:
        """The REPLY that ended it came again: the responder awaits an ACK that was lost."""

    def late(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """A REPLY has verified after the command had ended, and not the one that ended it.

        The peer carried it out though we gave it up, or once more, in another life.
        """


@dataclass(slots=True, eq=False)
class Exchange:
    """One command of ours and where it stands."""

    purpose: Purpose
    peer: Peer
    path: Path
    started: float
    xid: int | None = None  # given with the first sending
    state: State = State.NEEDS_TICKET
    ticket: Ticket | None = None
    inner: tuple[kink.Payload, ...] = field(default=(), repr=False)
    # §9: every authenticator of the transaction stays valid for its REPLY, with its sending time.
    outstanding: list[Authenticator] = field(default_factory=list, repr=False)
    sent_at: list[float] = field(default_factory=list)
    timer: Timer | None = None
    answered: bool = False  # a REPLY has verified, whatever it says
    replied: tuple[kink.Payload, ...] | None = field(default=None, repr=False)  # the latest REPLY
    hint: str = ""  # an unproven reason why nothing comes back
    refusal: PeerError | None = None  # what the peer has proven to say instead of yes
    remedied: set[int] = field(default_factory=set)  # KRB-ERRORs; each has it begun again once
    may_renew: bool = False  # there is another ticket, for what nobody has proven
    renewed: bool = False  # it was begun again with that, once

    @property
    def over(self) -> bool:
        """Whether it has ended, well or badly."""
        return self.state in (State.DONE, State.FAILED)


EpochProven = Callable[[Peer, Path, int, float, float], None]
"""Told the EPOCH of a REPLY, when we sent what it answers, and the instant."""


class Initiator:
    """The owner of all commands of ours that are under way."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._by_xid: dict[int, Exchange] = {}
        self._over: dict[int, Exchange] = {}
        self._late: dict[Peer, dict[int, Exchange]] = {}  # the same, the oldest first
        self._unanswered: OrderedDict[int, Exchange] = OrderedDict()  # those of ``_over``
        self._waiting: dict[Peer, list[Exchange]] = {}  # for a ticket
        self.tickets = Tickets(core, self)
        self._epoch_proven: EpochProven = lambda *_: None

    def observe_epochs(self, observer: EpochProven) -> None:
        """Whom to tell the EPOCH that each verified REPLY proves (RFC 4430 §3.7)."""
        self._epoch_proven = observer

    def __len__(self) -> int:
        return len(self._by_xid) + sum(map(len, self._waiting.values()))

    def begin(self, purpose: Purpose, peer: Peer, path: Path, now: float) -> Exchange:
        """Start a command. It ends by its purpose's ``complete`` or ``abandon``."""
        exchange = Exchange(purpose, peer, path, now)
        exchange.may_renew = peer.candidate is not None
        self._obtain_ticket(exchange, now)
        return exchange

    def cancel(self, exchange: Exchange, reason: str, now: float) -> None:
        """End a command that is no longer wanted."""
        exchange.hint = reason
        self._step(exchange, Event.CANCEL, now)

    def hurry(self, local: IPAddress, now: float) -> None:
        """Send again at once what was sent from an address that was not there."""
        for exchange in list(self._by_xid.values()):
            is_ripe = now >= exchange.sent_at[-1] + SHORTEST_TIMEOUT
            if exchange.path.local == local and is_ripe:
                self._step(exchange, Event.TIMEOUT, now)

    # What ``Tickets`` asks and tells.

    def waits(self, peer: Peer) -> bool:
        """Whether a command to this peer waits for a ticket."""
        return peer in self._waiting

    def ready(self, peer: Peer, ticket: Ticket, now: float) -> None:
        """It is there."""
        for exchange in self._waiting.pop(peer, ()):
            exchange.ticket = ticket
            self._step(exchange, Event.TICKET, now)

    def hint(self, peer: Peer, reason: str) -> None:
        """It is not."""
        for exchange in self._waiting.get(peer, ()):
            exchange.hint = reason

    def replaced(self, peer: Peer, doubted: Ticket) -> None:
        """What was sent with ``doubted`` begins again where its time T passes unanswered."""
        for exchange in self._by_xid.values():
            if exchange.peer is peer and exchange.ticket is doubted:
                exchange.may_renew = True

    # What comes in.

    def receive_reply(self, received: kink.Received, path: Path, now: float) -> None:
        """A REPLY came in. Raises PeerError where it is to be dropped."""
        xid = received.message.xid
        exchange = self._by_xid.get(xid) or self._over.get(xid)
        if exchange is None or exchange.ticket is None:
            if self.tickets.asking.receive(received, path, now):
                return
            raise PeerError("unexpected-reply", f"XID {xid} awaits none")
        if (path.local, path.remote) != (exchange.path.local, exchange.path.remote):
            raise PeerError("unexpected-reply", "from another address than was asked")
        if not received.checksum:
            if exchange.over:
                raise PeerError("unauthenticated-reply", "to a command that has ended")
            peer, ticket, said = exchange.peer, exchange.ticket, received.message
            exchange.hint = unproven.heed(self.tickets, peer, ticket, said, exchange.path, now)
            raise PeerError("unauthenticated-reply", exchange.hint)
        reply = verify_reply(received, exchange.ticket.key, exchange.outstanding)
        asked = exchange.sent_at[reply.attempt]
        if exchange.over:
            self._replied_late(exchange, xid, exchange.ticket, reply, now)
            self._epoch_proven(exchange.peer, exchange.path, reply.epoch, asked, now)
            return
        exchange.peer.round_trip.sample(now - asked)
        exchange.answered = True
        self.tickets.proven(exchange.peer, exchange.ticket, exchange.path, now)
        event = self._judge(exchange, exchange.ticket, reply, now)
        if reply.ack_request:  # §3.2: after our SAs, and always, whatever we think of the REPLY
            self._acknowledge(exchange, xid, exchange.ticket)
        self._step(exchange, event, now)
        if reply.ack_request and event is not Event.REMEDIED:
            exchange.replied = reply.inner
            self._watch(exchange, now)  # §9: until the responder can no longer repeat the REPLY
        self._epoch_proven(exchange.peer, exchange.path, reply.epoch, asked, now)

    def _judge(self, exchange: Exchange, ticket: Ticket, reply: VerifiedReply, now: float) -> Event:
        try:
            refusal = remedy.krb_error(reply)
            if refusal is not None:
                sent = exchange.outstanding[reply.attempt]
                remedied = remedy.apply(self._core, exchange.peer, refusal, sent, ticket)
                if remedied and refusal.code not in exchange.remedied:
                    exchange.remedied.add(refusal.code)
                    return Event.REMEDIED
            _refuse_errors(reply)
            exchange.purpose.complete(exchange, reply, now)
        except (PeerError, LocalError, KernelError) as error:
            exchange.hint = str(error)
            if isinstance(error, PeerError) and error.reason == "refused-by-peer":
                exchange.refusal = error
            return Event.REFUSED
        return Event.ACCEPTED

    def _replied_late(
        self, exchange: Exchange, xid: int, ticket: Ticket, reply: VerifiedReply, now: float
    ) -> None:
        if reply.ack_request:  # the ACK before may have been lost, RFC 4430 §9
            self._acknowledge(exchange, xid, ticket)
        if reply.inner == exchange.replied:
            exchange.purpose.repeated(now)
        else:
            exchange.replied = reply.inner
            self._core.counters["late-reply"] += 1
            exchange.purpose.late(exchange, reply, now)

    def _begin_again(self, exchange: Exchange, now: float, *, refused: bool) -> None:
        """Another transaction for the same purpose.

        Nothing of the refused one is used again, neither XID nor what ``prepare`` chose: whoever
        withheld it can have it carried out once the peer's clock comes to its authenticator, and
        keys made of the same nonce and SPI would be used twice. Its REPLY would find it here.
        """
        purpose = exchange.purpose.again(exchange, now, refused=refused)
        spent = replace(exchange, purpose=purpose, state=State.FAILED)
        self._end(spent)
        self._watch(spent, now)
        exchange.xid = exchange.ticket = exchange.timer = None
        exchange.inner, exchange.outstanding, exchange.sent_at = (), [], []
        exchange.answered = False
        self._obtain_ticket(exchange, now)

    def _obtain_ticket(self, exchange: Exchange, now: float) -> None:
        ticket = self.tickets.candidate(exchange.peer, now) if exchange.renewed else None
        if ticket is None:
            ticket = self.tickets.usable(exchange.peer, exchange.path, now)
        if ticket is not None:
            exchange.ticket = ticket
            self._step(exchange, Event.TICKET, now)
        else:
            exchange.timer = self._core.timers.at(
                now + TRANSACTION_SECONDS, lambda then: self._step(exchange, Event.EXHAUSTED, then)
            )
            self._waiting.setdefault(exchange.peer, []).append(exchange)
            self.tickets.want(exchange.peer, exchange.path, now)

    def _timeout(self, exchange: Exchange, now: float, *, last: bool) -> None:
        """T has passed without an answer that is proven (RFC 4430 §9)."""
        if last:
            self._step(exchange, Event.EXHAUSTED, now)
        elif exchange.may_renew and not exchange.renewed:
            exchange.renewed = True
            self._step(exchange, Event.RENEWED, now)
        else:
            self._step(exchange, Event.TIMEOUT, now)

    def _step(self, exchange: Exchange, event: Event, now: float) -> None:
        exchange.state, action = step(exchange.state, event)
        match action:
            case Action.SEND:
                self._send(exchange, now)
            case Action.BEGIN_AGAIN:
                self._begin_again(exchange, now, refused=event is Event.REMEDIED)
            case Action.COMPLETE:
                self._end(exchange)
            case Action.ABANDON:
                self._end(exchange)
                self._watch(exchange, now)
                exchange.purpose.abandon(exchange, exchange.hint or "no answer", now)
                # What is wrong may be the ticket: a peer that was re-keyed cannot say so provably.
                if event is Event.EXHAUSTED and exchange.ticket is not None:
                    self.tickets.unanswered(exchange.peer, exchange.ticket, exchange.path, now)
            case Action.NOTHING:
                pass

    def _end(self, exchange: Exchange) -> None:
        if exchange.timer is not None:
            exchange.timer.cancel()
        if exchange.xid is not None:
            self._by_xid.pop(exchange.xid, None)
        waiting = self._waiting.get(exchange.peer, [])
        if exchange in waiting:
            waiting.remove(exchange)
            if not waiting:
                del self._waiting[exchange.peer]

    def _watch(self, exchange: Exchange, now: float) -> None:
        """A command that is still in the network may yet be carried out, a REPLY be repeated."""
        xid = exchange.xid
        if xid is None or xid in self._over:
            return
        mine = self._late.setdefault(exchange.peer, {})
        if len(mine) >= _LATE_COMMANDS:
            self._forget(next(iter(mine.values())))  # the oldest; one host costs another nothing
            mine = self._late.setdefault(exchange.peer, {})
        self._over[xid] = mine[xid] = exchange
        if not exchange.answered:
            self._unanswered[xid] = exchange
            if len(self._unanswered) > _UNANSWERED_COMMANDS:
                self._forget(next(iter(self._unanswered.values())))
        # Of a clock ahead of the peer's, authenticators become fresh as late as that is far.
        offsets = [each.offset for each in exchange.outstanding]
        ahead = max(offsets, default=0.0) - exchange.peer.clock_offset
        end = now + _LATE_SECONDS + max(0.0, ahead)
        exchange.timer = self._core.timers.at(end, lambda _: self._forget(exchange))

    def _forget(self, exchange: Exchange) -> None:
        peer, xid = exchange.peer, exchange.xid
        if xid is None or self._over.pop(xid, None) is None:
            return
        self._unanswered.pop(xid, None)
        del self._late[peer][xid]
        if not self._late[peer]:
            del self._late[peer]
        if exchange.timer is not None:
            exchange.timer.cancel()

    def _send(self, exchange: Exchange, now: float) -> None:
        core, ticket = self._core, exchange.ticket
        if ticket is None:
            raise LocalError("an exchange was to be sent without a ticket")
        if exchange.timer is not None:
            exchange.timer.cancel()
        try:
            if exchange.xid is None:
                exchange.inner = exchange.purpose.prepare(exchange, now)
                exchange.xid = core.next_xid()
                self._by_xid[exchange.xid] = exchange
            # §9: a new authenticator each time, the same ticket, XID, nonce and SPI.
            authenticator = ticket.authenticate(exchange.peer.clock_offset)
            proof = kink.ApReq(core.epoch, authenticator.ap_req)
            kind = exchange.purpose.type
            datagram = seal(kind, exchange.xid, proof, exchange.inner, ticket.key)
            _refuse_too_large(datagram, ticket)
        except (LocalError, KernelError, PeerError) as error:
            exchange.hint = str(error)
            self._step(exchange, Event.REFUSED, now)
            return
        exchange.outstanding.append(authenticator)
        exchange.sent_at.append(now)
        attempt = len(exchange.outstanding) - 1
        if attempt:
            core.counters["retransmitted"] += 1
        elif len(datagram) > USUAL_PATH:
            self._say_large(exchange.peer, ticket, len(datagram))
        core.send(datagram, exchange.path)
        wait = exchange.peer.round_trip.timeout(attempt)
        last = now + wait > exchange.sent_at[0] + TRANSACTION_SECONDS
        exchange.timer = core.timers.at(
            now + wait, lambda then: self._timeout(exchange, then, last=last)
        )

    def _say_large(self, peer: Peer, ticket: Ticket, octets: int) -> None:
        """Fragments are lost more easily than packets, and dropped by many filters."""
        if peer.said_large is ticket:
            return
        peer.said_large = ticket
        self._core.report(
            Level.WARNING,
            "ticket-large",
            server=str(ticket.server),
            ticket_octets=ticket.octets,
            message_octets=octets,
            hint="messages go in fragments; have the KDC leave the PAC out of this service's "
            "tickets, see README, Kerberos",
        )

    def _acknowledge(self, exchange: Exchange, xid: int, ticket: Ticket) -> None:
        """RFC 4430 §6.2: the AP-REQ alone, with an authenticator of its own."""
        try:
            authenticator = ticket.authenticate(exchange.peer.clock_offset)
        except LocalError as error:  # the ticket ended: the responder gives up in time
            self._core.report(Level.WARNING, "ack-impossible", reason=str(error))
            return
        proof = kink.ApReq(self._core.epoch, authenticator.ap_req)
        datagram = seal(MessageType.ACK, xid, proof, (), ticket.key)
        self._core.send(datagram, exchange.path)


def _refuse_too_large(datagram: bytes, ticket: Ticket) -> None:
    if len(datagram) > GREATEST_DATAGRAM:
        raise LocalError(
            f"a message of {len(datagram)} octets does not fit into UDP: the ticket for"
            f" {ticket.server} has {ticket.octets}; have the KDC leave the PAC out of it"
        )


def _refuse_errors(reply: VerifiedReply) -> None:
    """Raise for a KINK_ERROR or KRB-ERROR that the responder has proven to be its own."""
    for payload in reply.inner:
        match payload:
            case kink.KinkError(code=KinkErrorCode.OK):
                continue  # §4.2.8: as if it were not there
            case kink.KinkError():
                raise PeerError("refused-by-peer", kink_error_name(payload.code))
            case kink.KrbError():
                raise PeerError("refused-by-peer", messages.read_krb_error(payload.krb_error).name)
            case _:
                continue
