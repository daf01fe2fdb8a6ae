"""The initiator's CREATE: the 2-message optimistic exchange of RFC 4430 §3.2, transport mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kinkd.errors import LocalError, PeerError
from kinkd.exchange import installing, quickmode
from kinkd.exchange.core import Core
from kinkd.exchange.effects import Level, Path, RecordPair
from kinkd.exchange.lifecycle import Lifecycle
from kinkd.exchange.machine import Exchange
from kinkd.exchange.pairs import Role, SaPair
from kinkd.exchange.verified import VerifiedReply
from kinkd.kerberos.port import SessionKey
from kinkd.kernel.port import SaId
from kinkd.keying.negotiate import Offer, check_optimistic
from kinkd.model import Lifetime, Protection, Suite
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType

Ended = Callable[["Creating", Path, SaPair | str, float], None]
"""Told once how a CREATE ended: the pair, or the reason why there is none; and the instant."""


@dataclass(slots=True, eq=False)
class Creating:
    """One CREATE of ours: the optimistic inbound SA, and what it replaces."""

    core: Core
    lifecycle: Lifecycle
    protection: Protection
    cause: str  # "acquire", "initiate", "rekey"
    ended: Ended
    replaces: SaPair | None = None
    type: MessageType = MessageType.CREATE
    _suite: Suite | None = None
    _nonce: bytes = field(default=b"", repr=False)
    _inbound: SaId | None = None
    _ticket_at: float = 0.0
    _created_by_peer: bool = False

    def prepare(self, exchange: Exchange, now: float) -> tuple[kink.Payload, ...]:
        """Install the optimistic inbound SA, so that the peer may use it at once (§3.2 step 1)."""
        self._ticket_at = now
        core, path, protection = self.core, exchange.path, self.protection
        if exchange.ticket is None:
            raise LocalError("a CREATE was prepared without a ticket")
        profile = protection.profile
        suites = core.suites(profile, path.remote)
        if not suites:
            raise LocalError(f"this kernel has no suite of profile {profile.name!r}")
        suite = self._suite = suites[0]
        lifetime = profile.lifetime
        nonce = self._nonce = core.random(quickmode.NONCE_OCTETS)
        spi = core.kernel.allocate_spi(path.remote, path.local, protection.reqid)
        inbound = SaId(path.remote, path.local, spi)
        material = installing.derive(exchange.ticket.key, spi, nonce, suite)
        limits = installing.responder_limits(lifetime)
        try:
            core.kernel.install_inbound(
                installing.build_sa(inbound, protection, suite, material, limits)
            )
        finally:
            material.wipe()
        self._inbound = inbound
        proposal = quickmode.propose(suite, protection.mode, lifetime, spi, esn=profile.esn)
        return (quickmode.creation(proposal, nonce),)

    def complete(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """Install the outbound SA under the responder's SPI (§3.2 step 5)."""
        self._created_by_peer = quickmode.holds_association(reply.inner)
        answered = self._read_answer(reply)
        suite, inbound, ticket = self._suite, self._inbound, exchange.ticket
        if suite is None or inbound is None or ticket is None:
            raise LocalError("a CREATE was completed before it was prepared")
        lifetime = check_optimistic(self._offered(suite), answered)
        pair = self._pair(exchange, reply, answered, suite, lifetime)
        core = self.core
        if lifetime != self.protection.profile.lifetime:
            self._shorten(inbound, suite, ticket.key, lifetime)
        material = installing.derive(ticket.key, answered.spi, self._nonce, suite)
        limits = installing.initiator_limits(core, lifetime)
        try:
            core.kernel.install_outbound(
                installing.build_sa(pair.outbound, self.protection, suite, material, limits),
                self.protection.outbound_entries,
            )
        finally:
            material.wipe()
        core.pairs.add(pair)
        core.emit(RecordPair(pair))
        self._report(exchange, pair, now)
        self.ended(self, exchange.path, pair, now)

    def _shorten(self, inbound: SaId, suite: Suite, key: SessionKey, lifetime: Lifetime) -> None:
        """The shorter lifetime holds for both SAs (§3.2); of a live one only the limits change."""
        material = installing.derive(key, inbound.spi, self._nonce, suite)
        limits = installing.responder_limits(lifetime)
        try:
            self.core.kernel.install_inbound(
                installing.build_sa(inbound, self.protection, suite, material, limits)
            )
        finally:
            material.wipe()

    def abandon(self, exchange: Exchange, reason: str, now: float) -> None:
        """Take the optimistic SA back; where the peer made its half, have it removed too."""
        if self._inbound is not None:
            self.core.remove_sa(self._inbound)
            if self._created_by_peer:
                self.lifecycle.disown(exchange.peer, exchange.path, self._inbound.spi, now)
        self.core.counters["create.failed"] += 1
        self.core.report(
            Level.WARNING,
            "create-failed",
            peer=exchange.peer.host.name,
            local=exchange.path.local,
            remote=exchange.path.remote,
            cause=self.cause,
            reason=reason,
        )
        self.ended(self, exchange.path, reason, now)

    def late(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """The peer made a pair of which we have no half: a black hole, were it left there."""
        if self._inbound is not None and quickmode.holds_association(reply.inner):
            self.lifecycle.disown(exchange.peer, exchange.path, self._inbound.spi, now)

    def _offered(self, suite: Suite) -> Offer:
        return Offer(
            proposal=1,
            transform=1,
            spi=self._inbound.spi if self._inbound else 0,
            transform_id=suite.transform_id,
            key_bits=suite.key_bits,
            authentication_id=suite.authentication_id,
            mode=self.protection.mode,
            lifetime=self.protection.profile.lifetime,
            esn=self.protection.profile.esn,
        )

    def _read_answer(self, reply: VerifiedReply) -> Offer:
        payloads = [part for part in reply.inner if isinstance(part, kink.Isakmp)]
        if len(payloads) != 1:
            raise PeerError("malformed-reply", f"{len(payloads)} KINK_ISAKMP payloads, not one")
        answer = quickmode.read_creation(payloads[0], reply=True)
        if reply.ack_request or answer.nonce is not None:
            raise PeerError("three-message-create", "the responder wants a 3-message exchange")
        if len(answer.offers) != 1:
            raise PeerError("malformed-reply", f"{len(answer.offers)} transforms chosen, not one")
        if answer.offers[0].spi < quickmode.FIRST_SPI:
            raise PeerError("malformed-reply", f"reserved SPI {answer.offers[0].spi}")
        return answer.offers[0]

    def _pair(
        self,
        exchange: Exchange,
        reply: VerifiedReply,
        answered: Offer,
        suite: Suite,
        lifetime: Lifetime,
    ) -> SaPair:
        if self._inbound is None or exchange.ticket is None or exchange.xid is None:
            raise LocalError("a CREATE was completed before it was sent")
        return SaPair(
            host=exchange.peer.host.name,
            principal=str(exchange.peer.host.service),
            local=exchange.path.local,
            remote=exchange.path.remote,
            inbound_spi=self._inbound.spi,
            outbound_spi=answered.spi,
            reqid=self.protection.reqid,
            suite=suite.name,
            role=Role.INITIATOR,
            lifetime=lifetime,
            created=int(self.core.posix(exchange.started)),
            epoch=reply.epoch,
            xid=exchange.xid,
            fingerprint=0,
            etype=exchange.ticket.key.etype,
        )

    def _report(self, exchange: Exchange, pair: SaPair, now: float) -> None:
        self.core.counters["create.initiated"] += 1
        self.core.report(
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
            cause=self.cause,
            attempts=len(exchange.outstanding),
            ms_total=round((now - exchange.started) * 1000, 1),
            ms_ticket=round((self._ticket_at - exchange.started) * 1000, 1),
            ms_round_trip=round((now - exchange.sent_at[-1]) * 1000, 1),
        )
