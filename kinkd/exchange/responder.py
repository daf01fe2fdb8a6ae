"""Commands of peers: each is verified, bound to a host of the policy, and answered on the spot."""

from __future__ import annotations

import hashlib

from kinkd.errors import KernelError, Malformed, PeerError, UserToUserRefused
from kinkd.exchange import quickmode
from kinkd.exchange.core import Answer, Core
from kinkd.exchange.debts import InboundSpis
from kinkd.exchange.effects import Level, Path, RecordBurial
from kinkd.exchange.granting import Granting, Request
from kinkd.exchange.halfopen import HalfOpen
from kinkd.exchange.lifecycle import Lifecycle
from kinkd.exchange.pairs import CommandId, SaPair
from kinkd.exchange.refusing import krb_error, refuse_provably
from kinkd.exchange.usertouser import TgtGiving
from kinkd.exchange.verified import (
    CommandRefused,
    VerifiedCommand,
    accept_command,
    open_command,
    seal,
    unseal,
)
from kinkd.kerberos.port import OpenedTicket
from kinkd.model import Host
from kinkd.wire import grammar, isakmp, kink
from kinkd.wire.numbers import KinkErrorCode, MessageType, NotifyType

_Inner = tuple[kink.Payload, ...]

SMALL_ANSWER = 24
"""Octets of a KINK_ERROR alone: given to any command, however short."""


class Responder:
    """Answers CREATE, DELETE, STATUS and GETTGT."""

    def __init__(self, core: Core, lifecycle: Lifecycle, granting: Granting) -> None:
        self._core = core
        self._lifecycle = lifecycle
        self._granting = granting
        self.half_open = granting.half_open
        self.giving = TgtGiving(core)

    def receive_command(self, received: kink.Received, length: int, path: Path, now: float) -> None:
        """A command came in, in a datagram of ``length`` octets.

        Raises PeerError where it is dropped without an answer of its own.
        """
        message = received.message
        if message.type is MessageType.GETTGT:
            self.giving.answer(message, length, path, now)
            return
        opened = open_command(received, self._core.acceptor)
        command = accept_command(received, opened, self._core.acceptor)
        if command.type is MessageType.ACK:
            self.half_open.acknowledged(command, self._bind(command.ticket, path), now)
            return
        inner, ack_request = self._answer(command, path, now)
        proof = kink.ApRep(self._core.epoch, command.ap_rep)
        datagram = seal(
            MessageType.REPLY, command.xid, proof, inner, opened.key, ack_request=ack_request
        )
        self._core.send(datagram, path)

    def refuse(self, error: PeerError, xid: int, length: int, path: Path, now: float) -> None:
        """Answer a command that was not accepted, where RFC 4430 §6.3 wants it.

        ``length``: its octets; where our TGT is the answer, it must not be longer.
        """
        payload: kink.Payload
        if isinstance(error, CommandRefused):
            refuse_provably(self._core, error, xid, path, now)
            return
        if isinstance(error, UserToUserRefused) and self._gives_tgt(xid, length, path, now):
            return
        if error.krb_error is not None:
            payload = krb_error(self._core, error.krb_error, now)
        elif error.kink_error is not None:
            payload = kink.KinkError(error.kink_error)
        else:
            return
        answer = kink.encode(kink.Message(MessageType.REPLY, xid, (payload,)), protected=False)
        # RFC 4430 §4.2.8, §10: unprotected answers must not make us a tool of someone else.
        amplified = len(answer) > max(length, SMALL_ANSWER)
        if amplified or not self._core.unprotected_bucket(path).take(now):
            self._core.counters["unprotected-answer-withheld"] += 1
            return
        self._core.send(answer, path)

    def _gives_tgt(self, xid: int, length: int, path: Path, now: float) -> bool:
        """RFC 4430 §3.7.1: who has no ticket under our present TGT may make himself one."""
        if not self._core.policy.between(path.local, path.remote):
            return False
        try:
            self.giving.give(xid, length, path, now)
        except PeerError:
            return False
        self._core.counters["tgt-offered"] += 1
        return True

    def _answer(self, command: VerifiedCommand, path: Path, now: float) -> Answer:
        """What goes into the REPLY: the result, or the error as a payload (RFC 4430 §6.3, §6.4)."""
        try:
            host = self._bind(command.ticket, path)
            peer = self._core.peer(host)
            self._lifecycle.epoch_claimed(peer, path, command.epoch, now)
            payloads = unseal(command)
            request = Request(command, payloads, _fingerprint(command, payloads), peer, path)
            peer.make_room(self._core.most_commands(peer), now)
            repeated = peer.recall(request.id)
            if repeated is not None:
                self._core.counters["repeated-command"] += 1
                self.half_open.repeated(command, host)
                return repeated
            answer = self._carry_out(request, now)
        except PeerError as error:
            return self._refused(error, command.ticket, path, now)
        except KernelError as error:
            self._core.kernel_refused(error)
            return Answer((kink.KinkError(KinkErrorCode.INTERR),))
        peer.remember(request.id, answer, now)
        return answer

    def _refused(self, error: PeerError, ticket: OpenedTicket, path: Path, now: float) -> Answer:
        """The answer to a command that is refused. Raises PeerError where there is none."""
        host = self._core.policy.host_by_client(ticket.client)
        if host is not None:
            self._core.peer(host).failures.take(now)
        inner = _error_payloads(error)
        if not inner:
            raise error
        self._core.drop(error, path, now)
        return Answer(inner)

    def _bind(self, ticket: OpenedTicket, path: Path) -> Host:
        """The host that the policy knows by this principal at this address (RFC 4430 §10)."""
        host = self._core.policy.host_by_client(ticket.client)
        if host is None:
            raise PeerError(
                "unknown-principal",
                f"{ticket.client} is no host of the policy",
                notify=NotifyType.NO_PROPOSAL_CHOSEN,
            )
        if path.remote not in host.addresses:
            raise PeerError(
                "address-not-bound",
                f"{ticket.client} is not at {path.remote} by the policy",
                notify=NotifyType.NO_PROPOSAL_CHOSEN,
            )
        return host

    def _carry_out(self, request: Request, now: float) -> Answer:
        match request.command.type:
            case MessageType.CREATE:
                return self._granting.create(request, now)
            case MessageType.DELETE:
                return Answer(self._delete(request, now))
            case MessageType.STATUS:
                self._status(request, now)
                self._core.counters["status.answered"] += 1
                return Answer(())
            case _:
                raise Malformed(f"{request.command.type.name} is no command")

    def _status(self, request: Request, now: float) -> None:
        """Its notifications must be readable; none of them tells us to do anything (§5.5)."""
        for payload in request.payloads:
            if isinstance(payload, kink.Isakmp):
                parts = isakmp.decode(payload)
                grammar.check_quick_mode(MessageType.STATUS, parts)
                for part in parts:
                    if isinstance(part, isakmp.Notification):
                        self._core.notified(part, request.peer.host.name, now)

    def _delete(self, request: Request, now: float) -> _Inner:
        """RFC 4430 §3.3: SAs of both directions go, and the REPLY names our inbound ones.

        Of a bundle all goes, whichever of its SPIs is named. Nothing goes before all is found:
        the SPIs of one bundle may be named one by one.
        """
        found: dict[int, SaPair | HalfOpen] = {}
        unknown: list[quickmode.Named] = []
        for payload in request.payloads:
            if not isinstance(payload, kink.Isakmp):
                continue
            for name in quickmode.read_deletion(payload):
                made = self._made_by(request, name)
                if made is None:
                    unknown.append(name)
                    known = quickmode.known_sa(name)
                    if known is not None:
                        request.peer.bury(known, now)
                        self._core.emit(RecordBurial(request.peer.host.name, *known))
                else:
                    found[id(made)] = made
        ours = [name for made in found.values() for name in self._give_up(made, request, now)]
        self._core.counters["delete.answered"] += len(ours)
        if ours:
            self._core.report(
                Level.INFO,
                "sa-deleted",
                peer=request.peer.host.name,
                role="responder",
                sas=len(ours),
            )
        return quickmode.deletion_answer(ours, unknown)

    def _made_by(self, request: Request, name: quickmode.Named) -> SaPair | HalfOpen | None:
        """What this peer knows by an SPI of its own; None: nothing that is its own."""
        known = quickmode.known_sa(name)
        if known is None:
            return None
        remote, host = request.path.remote, request.peer.host.name
        pair = self._core.pairs.by_outbound(remote, *known)
        if pair is not None and pair.host == host:
            return pair
        opened = self.half_open.by_outbound(remote, *known)
        return opened if opened is not None and opened.peer.host.name == host else None

    def _give_up(self, made: SaPair | HalfOpen, request: Request, now: float) -> InboundSpis:
        """Take it out of the kernel; our inbound SPIs."""
        if isinstance(made, SaPair):
            self._lifecycle.retire(made, now, grace=request.peer.round_trip.grace())
            return made.inbound_spis
        self.half_open.give_up(made, now)
        return tuple(name for half in made.halves for name in half.pair.inbound_spis)


def _fingerprint(command: VerifiedCommand, payloads: _Inner) -> CommandId:
    """What a retransmission repeats: EPOCH, XID, type, and every octet but the authenticator."""
    digest = hashlib.sha256(bytes((command.type,)) + kink.encode_inner(payloads)).digest()
    return CommandId(command.epoch, command.xid, int.from_bytes(digest[:7]))


def _error_payloads(error: PeerError) -> _Inner:
    if error.notify is not None:
        return (quickmode.notification(error.notify, error.notify_data),)
    if error.kink_error is not None:
        return (kink.KinkError(error.kink_error),)
    return ()
