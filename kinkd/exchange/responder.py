"""Commands of peers: each is verified, bound to a host of the policy, and answered on the spot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from kinkd.errors import KernelError, Malformed, PeerError, TicketRefused
from kinkd.exchange import installing, quickmode
from kinkd.exchange.core import PAIRS_PER_HOST, Answer, Core, Peer
from kinkd.exchange.effects import Level, Path, RecordPair
from kinkd.exchange.halfopen import HalfOpen, HalfOpens
from kinkd.exchange.installing import Seeds
from kinkd.exchange.lifecycle import Lifecycle
from kinkd.exchange.pairs import CommandId, Role, SaPair
from kinkd.exchange.quickmode import Creation
from kinkd.exchange.refusing import krb_error, refuse_provably
from kinkd.exchange.timing import TokenBucket
from kinkd.exchange.verified import (
    CommandRefused,
    VerifiedCommand,
    accept_command,
    open_command,
    seal,
    unseal,
)
from kinkd.kerberos.port import OpenedTicket
from kinkd.keying import dh
from kinkd.keying.negotiate import Choice, choose
from kinkd.model import Host, Protection, Secret
from kinkd.wire import grammar, isakmp, kink
from kinkd.wire.numbers import KinkErrorCode, MessageType, NotifyType, ProtocolId

_Inner = tuple[kink.Payload, ...]


@dataclass(frozen=True, slots=True)
class _Request:
    """A verified command of a known host, opened."""

    command: VerifiedCommand
    payloads: _Inner
    id: CommandId
    peer: Peer
    path: Path


class Responder:
    """Answers CREATE, DELETE, STATUS and GETTGT."""

    def __init__(self, core: Core, lifecycle: Lifecycle) -> None:
        self._core = core
        self._lifecycle = lifecycle
        # RFC 4430 §4.2.8, §10: unprotected answers must not make us a tool of someone else.
        self._unprotected = TokenBucket(rate=10, burst=20)
        self.half_open = HalfOpens(core, lifecycle, self._established)

    def receive_command(self, received: kink.Received, path: Path, now: float) -> None:
        """A command came in. Raises PeerError where it is dropped without an answer of its own."""
        message = received.message
        if message.type is MessageType.GETTGT:
            raise PeerError(
                "user-to-user-denied",
                "no TGT is given out",
                kink_error=KinkErrorCode.U2UDENIED,  # RFC 4430 §6.6
            )
        opened = open_command(received, self._core.acceptor)
        command = accept_command(received, opened, self._core.acceptor)
        if command.type is MessageType.ACK:
            self.half_open.acknowledged(command, self._bind(command.ticket, path))
            return
        inner, ack_request = self._answer(command, path, now)
        proof = kink.ApRep(self._core.epoch, command.ap_rep)
        datagram = seal(
            MessageType.REPLY, command.xid, proof, inner, opened.key, ack_request=ack_request
        )
        self._core.send(datagram, path)

    def refuse(self, error: PeerError, xid: int, path: Path, now: float) -> None:
        """Answer a command that was not accepted, where RFC 4430 §6.3 wants it."""
        payload: kink.Payload
        if isinstance(error, CommandRefused):
            refuse_provably(self._core, error, xid, path, now)
            return
        if isinstance(error, TicketRefused) and error.krb_error is not None:
            payload = krb_error(self._core, error.krb_error, now)
        elif error.kink_error is not None:
            payload = kink.KinkError(error.kink_error)
        else:
            return
        if not self._unprotected.take(now):
            self._core.counters["unprotected-answer-withheld"] += 1
            return
        message = kink.Message(MessageType.REPLY, xid, (payload,))
        self._core.send(kink.encode(message, protected=False), path)

    def _answer(self, command: VerifiedCommand, path: Path, now: float) -> Answer:
        """What goes into the REPLY: the result, or the error as a payload (RFC 4430 §6.3, §6.4)."""
        try:
            host = self._bind(command.ticket, path)
            peer = self._core.peer(host)
            self._lifecycle.epoch_claimed(peer, path, command.epoch, now)
            payloads = unseal(command)
            request = _Request(command, payloads, _fingerprint(command, payloads), peer, path)
            peer.make_room(now)
            repeated = peer.recall(request.id)
            if repeated is not None:
                self._core.counters["repeated-command"] += 1
                self.half_open.repeated(command, host)
                return repeated
            answer = self._carry_out(request, now)
        except PeerError as error:
            inner = _error_payloads(error)
            if not inner:
                raise
            self._core.drop(error, path, now)
            return Answer(inner)
        except KernelError as error:
            self._core.kernel_refused(error)
            return Answer((kink.KinkError(KinkErrorCode.INTERR),))
        peer.remember(request.id, answer, now)
        return answer

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

    def _carry_out(self, request: _Request, now: float) -> Answer:
        match request.command.type:
            case MessageType.CREATE:
                return self._create(request, now)
            case MessageType.DELETE:
                return Answer(self._delete(request, now))
            case MessageType.STATUS:
                _read_status(request.payloads)
                self._core.counters["status.answered"] += 1
                return Answer(())
            case _:
                raise Malformed(f"{request.command.type.name} is no command")

    def _create(self, request: _Request, now: float) -> Answer:
        """RFC 4430 §3.2 step 3: both SAs and the REPLY; or the inbound SA, and it asks for an ACK.

        Three messages only where another than the first proposal is chosen; then with Nr, which
        costs nothing more.
        """
        core, peer, path = self._core, request.peer, request.path
        protection = self._protection(peer, path)
        wanted = _read_creation(request)
        suites = core.suites(protection.profile, path.remote)
        profile = protection.profile
        if wanted.public is not None and profile.group is None:
            raise quickmode.refuse_key_exchange()
        choice = choose(
            wanted.offers,
            suites,
            protection.mode,
            profile.lifetime,
            group=profile.group,
            esn=profile.esn,
        )
        repeated = core.pairs.of_create(peer.host.name, request.id)
        if repeated is not None:
            if not choice.optimistic:  # its ACK came: whoever repeats it has had our REPLY
                raise PeerError("stale-command", f"XID {request.id.xid} was acknowledged")
            return Answer((_reply_creation(repeated.inbound_spi, choice, protection),))
        self._check_spi(choice.offer.spi, peer, path)
        nr = b"" if choice.optimistic else core.random(quickmode.NONCE_OCTETS)
        public, shared = _agree(profile.group, wanted.public)
        pair = self._pair(request, choice, protection, now)
        reply = (_reply_creation(pair.inbound_spi, choice, protection, nr or None, public),)
        answer = Answer(reply, ack_request=not choice.optimistic)
        half = HalfOpen(
            pair=pair,
            peer=peer,
            path=path,
            protection=protection,
            suite=choice.suite,
            key=request.command.ticket.key,
            seeds=Seeds(wanted.nonce or b"", nr, shared),
            limits=installing.responder_limits(choice.lifetime),
            answer=answer,
            ap_rep=request.command.ap_rep,
        )
        half.install_inbound(core)
        if choice.optimistic:
            half.install_outbound(core)
            self._established(pair)
        else:
            self.half_open.add(half, now)
        return answer

    def _protection(self, peer: Peer, path: Path) -> Protection:
        """What the policy demands of traffic with this peer at this address."""
        if self._core.closing:
            raise PeerError(
                "closing", "this daemon is leaving", notify=NotifyType.NO_PROPOSAL_CHOSEN
            )
        protection = self._core.policy.protection(path.local, path.remote)
        if protection is None or protection.peer.name != peer.host.name:
            raise PeerError(
                "no-policy",
                f"no rule protects traffic with {path.remote}",
                notify=NotifyType.NO_PROPOSAL_CHOSEN,
            )
        return protection

    def _established(self, pair: SaPair) -> None:
        core = self._core
        core.pairs.add(pair)
        core.emit(RecordPair(pair))
        core.counters["create.answered"] += 1
        core.report(
            Level.INFO,
            "sa-established",
            peer=pair.host,
            role=pair.role.value,
            local=pair.local,
            remote=pair.remote,
            spi_in=f"{pair.inbound_spi:#010x}",
            spi_out=f"{pair.outbound_spi:#010x}",
            suite=pair.suite,
            etype=pair.etype,
        )

    def _check_spi(self, spi: int, peer: Peer, path: Path) -> None:
        known = self._core.pairs.by_outbound(path.remote, spi) or self.half_open.by_outbound(
            path.remote, spi
        )
        if known or spi < quickmode.FIRST_SPI:  # RFC 4430 §3.2
            raise PeerError(
                "invalid-spi",
                f"SPI {spi:#010x} exists or is reserved",
                notify=NotifyType.INVALID_SPI,
            )
        pairs = len(self._core.pairs.of_host(peer.host.name))
        if pairs + self.half_open.of_host(peer.host.name) >= PAIRS_PER_HOST:
            raise PeerError(
                "too-many-sas",
                f"{peer.host.name} has {PAIRS_PER_HOST} pairs",
                kink_error=KinkErrorCode.INTERR,
            )

    def _pair(
        self, request: _Request, choice: Choice, protection: Protection, now: float
    ) -> SaPair:
        core, command, path = self._core, request.command, request.path
        return SaPair(
            host=protection.peer.name,
            principal=str(command.ticket.client),
            local=path.local,
            remote=path.remote,
            inbound_spi=core.kernel.allocate_spi(path.remote, path.local, protection.reqid),
            outbound_spi=choice.offer.spi,
            reqid=protection.reqid,
            suite=choice.suite.name,
            role=Role.RESPONDER,
            lifetime=choice.lifetime,
            created=int(core.posix(now)),
            epoch=command.epoch,
            xid=command.xid,
            fingerprint=request.id.fingerprint,
            etype=command.ticket.key.etype,
        )

    def _delete(self, request: _Request, now: float) -> _Inner:
        """RFC 4430 §3.3: both SAs go, and the REPLY names our inbound ones."""
        peer, path = request.peer, request.path
        ours: list[int] = []
        unknown: list[tuple[int, bytes]] = []
        for payload in request.payloads:
            if not isinstance(payload, kink.Isakmp):
                continue
            for protocol, spi in quickmode.read_deletion(payload):
                inbound = None
                if protocol == ProtocolId.ESP:
                    inbound = self._delete_one(peer, path, int.from_bytes(spi, "big"), now)
                if inbound is None:
                    unknown.append((protocol, spi))
                else:
                    ours.append(inbound)
        self._core.counters["delete.answered"] += len(ours)
        if ours:
            self._core.report(
                Level.INFO, "sa-deleted", peer=peer.host.name, role="responder", sas=len(ours)
            )
        return quickmode.deletion_answer(tuple(ours), tuple(unknown))

    def _delete_one(self, peer: Peer, path: Path, spi: int, now: float) -> int | None:
        """Delete what the peer knows by this SPI of its own; our inbound SPI, or None."""
        pair = self._core.pairs.by_outbound(path.remote, spi)
        if pair is not None and pair.host == peer.host.name:
            self._lifecycle.retire(pair, now, grace=peer.round_trip.grace())
            return pair.inbound_spi
        half = self.half_open.by_outbound(path.remote, spi)
        if half is not None and half.pair.host == peer.host.name:
            self.half_open.give_up(half, now)
            return half.pair.inbound_spi
        return None


def _fingerprint(command: VerifiedCommand, payloads: _Inner) -> CommandId:
    """What a retransmission repeats: EPOCH, XID, type, and every octet but the authenticator."""
    digest = hashlib.sha256(bytes((command.type,)) + kink.encode_inner(payloads)).digest()
    return CommandId(command.epoch, command.xid, int.from_bytes(digest[:7]))


def _read_creation(request: _Request) -> Creation:
    payloads = [part for part in request.payloads if isinstance(part, kink.Isakmp)]
    if len(payloads) != 1:
        raise PeerError(
            "several-operations",
            f"{len(payloads)} KINK_ISAKMP payloads, one is supported",
            notify=NotifyType.PAYLOAD_MALFORMED,
        )
    wanted = quickmode.read_creation(payloads[0])
    quickmode.check_identities(wanted.identities, request.path.remote, request.path.local)
    return wanted


def _read_status(payloads: _Inner) -> None:
    """Its notifications must be readable; those we do not know are ignored (RFC 4430 §5.5)."""
    for payload in payloads:
        if isinstance(payload, kink.Isakmp):
            grammar.check_quick_mode(MessageType.STATUS, isakmp.decode(payload))


def _agree(group: int | None, public: bytes | None) -> tuple[bytes | None, Secret | None]:
    """Our public value and what it and the initiator's agree on; the private one is gone (§3.2).

    Raises:
        PeerError: the policy wants a KE payload and there is none, or its value is no good.
    """
    if group is None:
        return None, None
    if public is None:
        raise PeerError("ke-missing", "no KE payload", notify=NotifyType.NO_PROPOSAL_CHOSEN)
    ephemeral = dh.generate(dh.GROUPS[group])
    return ephemeral.public, ephemeral.agree(public)


def _reply_creation(
    spi: int,
    choice: Choice,
    protection: Protection,
    nonce: bytes | None = None,
    public: bytes | None = None,
) -> kink.Isakmp:
    """The chosen proposal under its own numbers, with our SPI (RFC 2409 §5.5)."""
    lifetime = choice.lifetime
    if lifetime.kilobytes is not None and choice.offer.lifetime.kilobytes is None:
        lifetime = replace(lifetime, kilobytes=None)  # what was not offered is not answered
    proposal = quickmode.propose(
        choice.suite,
        protection.mode,
        lifetime,
        spi,
        group=choice.offer.group,
        esn=choice.offer.esn,
    )
    transform = proposal.transforms[0]
    echoed = isakmp.Transform(choice.offer.transform, transform.transform_id, transform.attributes)
    chosen = isakmp.Proposal(choice.offer.proposal, proposal.protocol_id, proposal.spi, (echoed,))
    return quickmode.creation((chosen,), nonce, public)


def _error_payloads(error: PeerError) -> _Inner:
    if error.notify is not None:
        return (quickmode.notification(error.notify, error.notify_data),)
    if error.kink_error is not None:
        return (kink.KinkError(error.kink_error),)
    return ()
