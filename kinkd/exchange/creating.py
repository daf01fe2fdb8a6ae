"""The initiator's CREATE (RFC 4430 §3.2): in two messages where all goes as hoped, or three."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kinkd.errors import LocalError, PeerError
from kinkd.exchange import installing, quickmode
from kinkd.exchange.core import Core
from kinkd.exchange.effects import Level, Path, RecordPair
from kinkd.exchange.installing import Seeds
from kinkd.exchange.lifecycle import Lifecycle
from kinkd.exchange.machine import Exchange
from kinkd.exchange.pairs import Role, SaPair
from kinkd.exchange.verified import VerifiedReply
from kinkd.kerberos.port import SessionKey
from kinkd.kernel.port import SaId
from kinkd.keying import dh
from kinkd.keying.negotiate import Offer, check_answer
from kinkd.model import Lifetime, Protection, Secret, Suite
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType

Ended = Callable[["Creating", Path, SaPair | str, float], None]
"""Told once how a CREATE ended: the pair, or the reason why there is none; and the instant."""


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the SAs are made of: hoped for, or agreed."""

    suite: Suite
    seeds: Seeds
    lifetime: Lifetime


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
    _suites: tuple[Suite, ...] = ()
    _nonce: bytes = field(default=b"", repr=False)
    _inbound: SaId | None = None
    _ticket_at: float = 0.0
    _created_by_peer: bool = False
    _ephemeral: dh.Ephemeral | None = None

    def prepare(self, exchange: Exchange, now: float) -> tuple[kink.Payload, ...]:
        """Install the optimistic inbound SA, so that the peer may use it at once (§3.2 step 1).

        With a KE payload there is nothing to hope for yet: only the SPI is reserved.
        """
        self._ticket_at = now
        core, path, protection = self.core, exchange.path, self.protection
        if exchange.ticket is None:
            raise LocalError("a CREATE was prepared without a ticket")
        self._suites = core.suites(protection.profile, path.remote)
        if not self._suites:
            raise LocalError(f"this kernel has no suite of profile {protection.profile.name!r}")
        self._nonce = core.random(quickmode.NONCE_OCTETS)
        spi = core.kernel.allocate_spi(path.remote, path.local, protection.reqid)
        inbound = SaId(path.remote, path.local, spi)
        group, lifetime = protection.profile.group, protection.profile.lifetime
        if group is None:
            terms = _Terms(self._suites[0], Seeds(self._nonce), lifetime)
            self._install_inbound(inbound, exchange.ticket.key, terms)
        else:
            self._ephemeral = dh.generate(dh.GROUPS[group])
        self._inbound = inbound
        proposals = tuple(
            quickmode.propose(
                suite,
                protection.mode,
                lifetime,
                spi,
                number=number,
                group=group,
                esn=protection.profile.esn,
            )
            for number, suite in enumerate(self._suites, 1)
        )
        public = self._ephemeral.public if self._ephemeral is not None else None
        return (quickmode.creation(proposals, self._nonce, public),)

    def complete(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """Install the outbound SA under the responder's SPI (§3.2 step 5, or step 4 of three).

        Where the responder did not simply take the optimistic proposal, the inbound SA is
        replaced first: the keys of a live one cannot be changed.
        """
        self._created_by_peer = quickmode.holds_association(reply.inner)
        answered, terms = self._read_answer(reply)
        inbound, ticket = self._inbound, exchange.ticket
        if inbound is None or ticket is None:
            raise LocalError("a CREATE was completed before it was prepared")
        core = self.core
        if terms.seeds.shared is not None:
            self._install_inbound(inbound, ticket.key, terms)
        elif terms.suite is not self._suites[0] or terms.seeds.nr:
            core.kernel.remove(inbound)
            self._install_inbound(inbound, ticket.key, terms)
        elif terms.lifetime != self.protection.profile.lifetime:
            self._install_inbound(inbound, ticket.key, terms)  # of a live SA only the limits change
        pair = self._pair(exchange, reply, answered, terms)
        try:
            installing.install(
                lambda sa: core.kernel.install_outbound(sa, self.protection.outbound_entries),
                pair.outbound,
                ticket.key,
                terms.seeds,
                self.protection,
                terms.suite,
                installing.initiator_limits(core, terms.lifetime),
            )
        finally:
            terms.seeds.wipe()
        core.pairs.add(pair)
        core.emit(RecordPair(pair))
        self._report(exchange, pair, now)
        self.ended(self, exchange.path, pair, now)

    def _install_inbound(self, inbound: SaId, key: SessionKey, terms: _Terms) -> None:
        installing.install(
            self.core.kernel.install_inbound,
            inbound,
            key,
            terms.seeds,
            self.protection,
            terms.suite,
            installing.responder_limits(terms.lifetime),
        )

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

    def again(self) -> Creating:
        """Take the optimistic SA back; the next one has another SPI and another nonce."""
        spent = replace(self)
        if self._inbound is not None:
            self.core.remove_sa(self._inbound)
        self._inbound = self._ephemeral = spent._ephemeral = None
        return spent

    def late(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """The peer made a pair of which we have no half: a black hole, were it left there."""
        if self._created_by_peer:
            return  # it was told already
        if self._inbound is not None and quickmode.holds_association(reply.inner):
            self.lifecycle.disown(exchange.peer, exchange.path, self._inbound.spi, now)

    def _offered(self, number: int, suite: Suite) -> Offer:
        return Offer(
            proposal=number,
            transform=1,
            spi=self._inbound.spi if self._inbound else 0,
            transform_id=suite.transform_id,
            key_bits=suite.key_bits,
            authentication_id=suite.authentication_id,
            mode=self.protection.mode,
            lifetime=self.protection.profile.lifetime,
            group=self.protection.profile.group,
            esn=self.protection.profile.esn,
        )

    def _read_answer(self, reply: VerifiedReply) -> tuple[Offer, _Terms]:
        """What the responder chose, checked against what was offered (§3.2)."""
        payloads = [part for part in reply.inner if isinstance(part, kink.Isakmp)]
        if len(payloads) != 1:
            raise PeerError("malformed-reply", f"{len(payloads)} KINK_ISAKMP payloads, not one")
        answer = quickmode.read_creation(payloads[0], reply=True)
        if len(answer.offers) != 1:
            raise PeerError("malformed-reply", f"{len(answer.offers)} transforms chosen, not one")
        (answered,) = answer.offers
        if answered.spi < quickmode.FIRST_SPI:
            raise PeerError("malformed-reply", f"reserved SPI {answered.spi}")
        if not 1 <= answered.proposal <= len(self._suites):
            raise PeerError("other-proposal-chosen", f"proposal {answered.proposal} was not made")
        suite = self._suites[answered.proposal - 1]
        lifetime = check_answer(self._offered(answered.proposal, suite), answered)
        # §3.2: whoever chooses another proposal or adds a nonce must wait for our ACK.
        hoped_for = suite is self._suites[0] and answer.nonce is None and answer.public is None
        if not reply.ack_request and not hoped_for:
            raise PeerError("malformed-reply", "a choice that needs an ACK, and none is asked for")
        seeds = Seeds(self._nonce, answer.nonce or b"", self._agree(answer.public))
        return answered, _Terms(suite, seeds, lifetime)

    def _agree(self, public: bytes | None) -> Secret | None:
        """What our KE payload and the responder's agree on; the private value is gone with it."""
        ephemeral, self._ephemeral = self._ephemeral, None
        if (ephemeral is None) != (public is None):
            raise PeerError("malformed-reply", "a KE payload on one side only")
        return ephemeral.agree(public) if ephemeral is not None and public is not None else None

    def _pair(
        self, exchange: Exchange, reply: VerifiedReply, answered: Offer, terms: _Terms
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
            suite=terms.suite.name,
            role=Role.INITIATOR,
            lifetime=terms.lifetime,
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
