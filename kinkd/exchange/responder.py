"""Commands of peers: each is verified, bound to a host of the policy, and answered on the spot."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from kinkd.errors import KernelError, Malformed, PeerError, TicketRefused
from kinkd.exchange import installing, quickmode
from kinkd.exchange.core import PAIRS_PER_HOST, Core, Peer
from kinkd.exchange.effects import Level, Path, RecordPair
from kinkd.exchange.lifecycle import Lifecycle
from kinkd.exchange.pairs import CommandId, Role, SaPair
from kinkd.exchange.quickmode import Creation
from kinkd.exchange.timing import TokenBucket
from kinkd.exchange.verified import VerifiedCommand, accept_command, open_command, seal, unseal
from kinkd.kerberos import messages
from kinkd.kerberos.port import OpenedTicket
from kinkd.kernel.port import SaId
from kinkd.keying.negotiate import Choice, choose
from kinkd.model import Host, Principal, Protection
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
            raise PeerError("unexpected-ack", "no REPLY of ours asked for one")
        inner = self._answer(command, path, now)
        proof = kink.ApRep(self._core.epoch, command.ap_rep)
        self._core.send(seal(MessageType.REPLY, command.xid, proof, inner, opened.key), path)

    def refuse(self, error: PeerError, xid: int, path: Path, now: float) -> None:
        """Answer a command for which no AP-REP can be made, where RFC 4430 §6.3 wants it."""
        payload: kink.Payload
        if isinstance(error, TicketRefused) and error.krb_error is not None:
            me = self._core.policy.me.service
            payload = kink.KrbError(_lone_krb_error(error.krb_error, me, self._core.posix(now)))
        elif error.kink_error is not None:
            payload = kink.KinkError(error.kink_error)
        else:
            return
        if not self._unprotected.take(now):
            self._core.counters["unprotected-answer-withheld"] += 1
            return
        message = kink.Message(MessageType.REPLY, xid, (payload,))
        self._core.send(kink.encode(message, protected=False), path)

    def _answer(self, command: VerifiedCommand, path: Path, now: float) -> _Inner:
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
                return repeated
            inner = self._carry_out(request, now)
        except PeerError as error:
            inner = _error_payloads(error)
            if not inner:
                raise
            self._core.drop(error, path, now)
            return inner
        except KernelError as error:
            self._core.kernel_refused(error)
            return (kink.KinkError(KinkErrorCode.INTERR),)
        peer.remember(request.id, inner, now)
        return inner

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

    def _carry_out(self, request: _Request, now: float) -> _Inner:
        match request.command.type:
            case MessageType.CREATE:
                return self._create(request, now)
            case MessageType.DELETE:
                return self._delete(request, now)
            case MessageType.STATUS:
                _read_status(request.payloads)
                self._core.counters["status.answered"] += 1
                return ()
            case _:
                raise Malformed(f"{request.command.type.name} is no command")

    def _create(self, request: _Request, now: float) -> _Inner:
        """RFC 4430 §3.2 step 3: both SAs, then the REPLY."""
        core, peer, path = self._core, request.peer, request.path
        if core.closing:
            raise PeerError(
                "closing", "this daemon is leaving", notify=NotifyType.NO_PROPOSAL_CHOSEN
            )
        protection = core.policy.protection(path.local, path.remote)
        if protection is None or protection.peer.name != peer.host.name:
            raise PeerError(
                "no-policy",
                f"no rule protects traffic with {path.remote}",
                notify=NotifyType.NO_PROPOSAL_CHOSEN,
            )
        wanted = _read_creation(request)
        profile = protection.profile
        suites = core.suites(profile, path.remote)
        choice = choose(wanted.offers, suites, protection.mode, profile.lifetime, esn=profile.esn)
        if not choice.optimistic:
            # A 3-message CREATE would be the answer; until then the peer is told plainly.
            raise PeerError(
                "no-proposal-chosen",
                "only another than the first proposal is allowed by the policy",
                notify=NotifyType.NO_PROPOSAL_CHOSEN,
            )
        repeated = core.pairs.of_create(peer.host.name, request.id)
        if repeated is not None:
            return _reply_creation(repeated.inbound_spi, choice, protection)
        self._check_spi(choice.offer.spi, peer, path)
        pair = self._install(request, wanted.nonce or b"", choice, protection, now)
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
        return _reply_creation(pair.inbound_spi, choice, protection)

    def _check_spi(self, spi: int, peer: Peer, path: Path) -> None:
        known = self._core.pairs.by_outbound(path.remote, spi) is not None
        if known or spi < quickmode.FIRST_SPI:  # RFC 4430 §3.2
            raise PeerError(
                "invalid-spi",
                f"SPI {spi:#010x} exists or is reserved",
                notify=NotifyType.INVALID_SPI,
            )
        if len(self._core.pairs.of_host(peer.host.name)) >= PAIRS_PER_HOST:
            raise PeerError(
                "too-many-sas",
                f"{peer.host.name} has {PAIRS_PER_HOST} pairs",
                kink_error=KinkErrorCode.INTERR,
            )

    def _install(
        self,
        request: _Request,
        nonce: bytes,
        choice: Choice,
        protection: Protection,
        now: float,
    ) -> SaPair:
        core, command, path = self._core, request.command, request.path
        key = command.ticket.key
        spi = core.kernel.allocate_spi(path.remote, path.local, protection.reqid)
        pair = SaPair(
            host=protection.peer.name,
            principal=str(command.ticket.client),
            local=path.local,
            remote=path.remote,
            inbound_spi=spi,
            outbound_spi=choice.offer.spi,
            reqid=protection.reqid,
            suite=choice.suite.name,
            role=Role.RESPONDER,
            lifetime=choice.lifetime,
            created=int(core.posix(now)),
            epoch=command.epoch,
            xid=command.xid,
            fingerprint=request.id.fingerprint,
            etype=key.etype,
        )
        limits = installing.responder_limits(choice.lifetime)

        def install(sa: SaId, *, outbound: bool) -> None:
            material = installing.derive(key, sa.spi, nonce, choice.suite)
            try:
                built = installing.build_sa(sa, protection, choice.suite, material, limits)
                if outbound:
                    core.kernel.install_outbound(built, protection.outbound_entries)
                else:
                    core.kernel.install_inbound(built)
            finally:
                material.wipe()

        install(pair.inbound, outbound=False)
        try:
            install(pair.outbound, outbound=True)
        except KernelError:
            core.remove_sa(pair.inbound)
            raise
        return pair

    def _delete(self, request: _Request, now: float) -> _Inner:
        """RFC 4430 §3.3: both SAs go, and the REPLY names our inbound ones."""
        peer, path = request.peer, request.path
        ours: list[int] = []
        unknown: list[tuple[int, bytes]] = []
        for payload in request.payloads:
            if not isinstance(payload, kink.Isakmp):
                continue
            for protocol, spi in quickmode.read_deletion(payload):
                pair = None
                if protocol == ProtocolId.ESP:
                    pair = self._core.pairs.by_outbound(path.remote, int.from_bytes(spi, "big"))
                if pair is None or pair.host != peer.host.name:
                    unknown.append((protocol, spi))
                else:
                    ours.append(pair.inbound_spi)
                    self._lifecycle.retire(pair, now, grace=peer.round_trip.grace())
        self._core.counters["delete.answered"] += len(ours)
        if ours:
            self._core.report(
                Level.INFO, "sa-deleted", peer=peer.host.name, role="responder", sas=len(ours)
            )
        return quickmode.deletion_answer(tuple(ours), tuple(unknown))


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


def _reply_creation(spi: int, choice: Choice, protection: Protection) -> _Inner:
    """The chosen proposal under its own numbers, with our SPI (RFC 2409 §5.5)."""
    lifetime = choice.lifetime
    if choice.offer.lifetime.kilobytes is None:  # what was not offered is not answered
        lifetime = replace(lifetime, kilobytes=None)
    esn = choice.offer.esn
    proposal = quickmode.propose(choice.suite, protection.mode, lifetime, spi, esn=esn)
    transform = proposal.transforms[0]
    echoed = isakmp.Transform(choice.offer.transform, transform.transform_id, transform.attributes)
    chosen = isakmp.Proposal(choice.offer.proposal, proposal.protocol_id, proposal.spi, (echoed,))
    return (quickmode.creation(chosen, None),)


def _error_payloads(error: PeerError) -> _Inner:
    if error.notify is not None:
        return (quickmode.notification(error.notify, error.notify_data),)
    if error.kink_error is not None:
        return (kink.KinkError(error.kink_error),)
    return ()


def _lone_krb_error(code: int, me: Principal, posix: float) -> bytes:
    microseconds = int(posix % 1 * 1_000_000)
    return messages.build_krb_error(code, me.realm, me, int(posix), microseconds)
