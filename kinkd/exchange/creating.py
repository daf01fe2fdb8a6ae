"""The initiator's CREATE (RFC 4430 §3.2): in two messages where all goes as hoped, or three."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from kinkd.errors import KernelError, LocalError, PeerError
from kinkd.exchange import identities, installing, quickmode
from kinkd.exchange.core import Core
from kinkd.exchange.effects import Level
from kinkd.exchange.installing import Agreement, Seeds
from kinkd.exchange.lifecycle import Lifecycle
from kinkd.exchange.machine import Exchange
from kinkd.exchange.pairs import CommandId, Role, SaPair
from kinkd.exchange.timing import FIRST_TIMEOUT, LONGEST_TIMEOUT, TRANSACTION_SECONDS
from kinkd.exchange.verified import VerifiedReply
from kinkd.kerberos.port import Ticket
from kinkd.kernel.port import SaId
from kinkd.keying import dh
from kinkd.keying.negotiate import Offer, Terms, check_answer
from kinkd.model import Mode, Profile, Protection, Secret, Suite
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import IsakmpPayload, MessageType, NotifyType

GAVE_WAY = "no answer; others wait"
"""Why a CREATE ended whose place another was given: of many, people are not told of each."""

Ended = Callable[["Creating", SaPair | str, float], None]
"""Told once how a CREATE ended: the pair, or the reason why there is none; and the instant."""


class Variant(NamedTuple):
    """What an attempt offers of what the profile allows: its group, and sequence numbers."""

    group: int | None
    esn: tuple[bool, ...]


def variants(profile: Profile) -> tuple[Variant, ...]:
    """The attempts that a profile allows, in the order in which they are made.

    All transforms of a CREATE with a KE payload name one group (RFC 2409 §5.5). A peer that
    does not know an attribute may refuse the whole of the message: so without ESN in the end.
    """
    made = [Variant(group, profile.esn) for group in profile.groups]
    if len(profile.esn) > 1:
        made += [Variant(group, (False,)) for group in profile.groups]
    return tuple(made)


def after_refusal(left: Sequence[Variant], tried: Variant, refusal: PeerError) -> list[Variant]:
    """Which attempts may still do, once a peer has proven to refuse one (RFC 4430 §3.2)."""
    if refusal.notify == NotifyType.NO_PROPOSAL_CHOSEN:
        return list(left)
    refuses_ke = refusal.notify_data == bytes((IsakmpPayload.KE,))
    if refusal.notify == NotifyType.INVALID_PAYLOAD_TYPE and refuses_ke:
        return [variant for variant in left if variant.group is None]
    if True in tried.esn:
        return [variant for variant in left if variant == Variant(tried.group, (False,))]
    return []


@dataclass(slots=True, eq=False)
class Creating:
    """One CREATE of ours: the optimistic inbound SAs, and what they replace."""

    core: Core
    lifecycle: Lifecycle
    protection: Protection
    cause: str  # "acquire", "initiate", "rekey"
    ended: Ended
    replaces: Sequence[SaPair] = ()
    variants: Sequence[Variant] = ()  # this attempt, then those that may follow
    superseded: SaPair | None = None  # the peer was faster: nothing is left to be made
    type: MessageType = MessageType.CREATE
    _offered: list[tuple[Suite, Terms]] = field(default_factory=list)
    _offers: tuple[Offer, ...] = ()
    _nonce: bytes = field(default=b"", repr=False)
    _inbound: tuple[SaId, ...] = ()
    _ticket_at: float = 0.0
    _created_by_peer: bool = False
    _made: SaPair | None = None
    _ephemeral: dh.Ephemeral | None = None
    _completed: float = float("-inf")
    _awaits_ack: bool = False
    _asked: tuple[float, float] = (float("-inf"), float("-inf"))  # the last two times for an ACK

    def __post_init__(self) -> None:
        self.variants = self.variants or variants(self.protection.profile)

    def prepare(self, exchange: Exchange, now: float) -> tuple[kink.Payload, ...]:
        """Install the optimistic inbound SAs, so that the peer may use them at once (§3.2 step 1).

        With a KE payload there is nothing to hope for yet: only the SPIs are reserved.
        """
        self._ticket_at = now
        core, protection = self.core, self.protection
        if exchange.ticket is None:
            raise LocalError("a CREATE was prepared without a ticket")
        suites = core.suites(protection.profile, protection.remote)
        if not suites:
            raise LocalError(f"this kernel has no suite of profile {protection.profile.name!r}")
        self._nonce = core.random(quickmode.NONCE_OCTETS)
        group, esn = self.variants[0]
        if group is not None:
            self._ephemeral = dh.generate(dh.GROUPS[group])
        self._inbound = installing.reserve(
            core,
            protection.remote,
            protection.local,
            protection.reqid,
            protection.profile.protocols,
        )
        self._offered = [
            (
                suite,
                Terms(protection.mode, protection.profile.lifetime, protection.udp, group, wide),
            )
            for suite in suites
            for wide in esn
        ]
        if group is None:
            self._install_inbound(self._agreement(exchange.ticket, 0, Seeds(self._nonce)), now)
        return (self._offer(),)

    def _offer(self) -> kink.Isakmp:
        spis = [sa.spi for sa in self._inbound]
        proposals = tuple(
            proposal
            for number, (suite, terms) in enumerate(self._offered, 1)
            for proposal in quickmode.propose(number, suite, terms, spis)
        )
        self._offers = quickmode.read_offers(isakmp.SecurityAssociation(proposals))
        public = self._ephemeral.public if self._ephemeral is not None else None
        # In transport mode the addresses that the messages go between say it all.
        tunnel = self.protection.mode is Mode.TUNNEL
        clients = identities.write(self.protection.selector) if tunnel else ()
        return quickmode.creation(proposals, self._nonce, public, clients)

    def complete(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """Install the outbound SAs under the responder's SPIs (§3.2 step 5, or step 4 of three).

        Where the responder did not simply take the optimistic proposal, the inbound SAs are
        replaced first: the keys of a live one cannot be changed.
        """
        self._created_by_peer = quickmode.holds_association(reply.inner)
        if not self._inbound or exchange.ticket is None:
            raise LocalError("a CREATE was completed before it was prepared")
        answered, position, terms, seeds = self._read_answer(exchange, reply, now)
        core = self.core
        agreement = self._agreement(exchange.ticket, position, seeds, terms)
        try:
            live = self.variants[0].group is None
            if live and (position or seeds.nr):
                for sa in self._inbound:
                    core.kernel.remove(sa)
            hoped_for = self._agreement(exchange.ticket, 0, Seeds(self._nonce))
            if agreement != hoped_for:  # of a live SA only the limits change
                self._install_inbound(agreement, now)
            pair = self._pair(exchange, reply, answered, agreement)
            limits = installing.initiator_limits(core, agreement.lifetime(core.posix(now)))
            agreement.install_outbound(core, pair.outbound, limits)
        finally:
            seeds.wipe()
        self._made = pair
        self._completed, self._awaits_ack = now, reply.ack_request
        self._asked = (now, now)
        core.keep(pair, now)
        self._report(exchange, pair, now)
        self.ended(self, pair, now)

    def _agreement(
        self, ticket: Ticket, position: int, seeds: Seeds, terms: Terms | None = None
    ) -> Agreement:
        suite, offered = self._offered[position]
        protection = self.protection
        return Agreement(
            protection,
            protection.selector,
            suite,
            terms or offered,
            ticket.key,
            ticket.end,
            seeds,
        )

    def _install_inbound(self, agreement: Agreement, now: float) -> None:
        limits = installing.initiator_limits(self.core, agreement.lifetime(self.core.posix(now)))
        agreement.install_inbound(self.core.kernel, self._inbound, limits)

    def abandon(self, exchange: Exchange, reason: str, now: float) -> None:
        """Take the optimistic SAs back; where the peer made its half, have it removed too."""
        self._forget_private_value()
        for sa in self._inbound:
            self.core.remove_sa(sa)
        if exchange.sent_at and (self._created_by_peer or not exchange.answered):
            # Its REPLY may have been lost; where it answered nothing it is told when it is heard.
            self._disown(exchange, now, silent=not exchange.answered and not self.core.closing)
        if self.superseded is not None:
            self.ended(self, self.superseded, now)
            return
        if exchange.refusal is not None:
            self.variants = after_refusal(self.variants[1:], self.variants[0], exchange.refusal)
        else:
            self.variants = ()
        self.core.counters["create.refused" if self.variants else "create.failed"] += 1
        self.core.report(
            Level.DEBUG if reason == GAVE_WAY else Level.INFO if self.variants else Level.WARNING,
            "create-refused" if self.variants else "create-failed",
            peer=exchange.peer.host.name,
            local=exchange.path.local,
            remote=exchange.path.remote,
            cause=self.cause,
            reason=reason,
        )
        self.ended(self, reason, now)

    def _forget_private_value(self) -> None:
        if self._ephemeral is not None:
            self._ephemeral.wipe()
            self._ephemeral = None

    def repeated(self, now: float) -> None:
        """The responder has not got our ACK: it cannot send on the new pair yet (§9)."""
        self._asked = (self._asked[1], now)

    def responder_is_done(self, now: float) -> float:
        """Until when the old pair is to be kept: the responder may still have to send on it.

        What comes in on the new pair says that it has our ACK. So does its silence: it asks again
        on timer T (§9), twice as long after the last time, and not beyond a cycle.
        """
        before, last = self._asked
        if not self._awaits_ack or self._is_used():
            return now
        quiet = last + max(2 * (last - before) + FIRST_TIMEOUT, LONGEST_TIMEOUT + FIRST_TIMEOUT)
        return min(quiet, self._completed + TRANSACTION_SECONDS)

    def _is_used(self) -> bool:
        """Whether the responder sends on the new pair."""
        try:
            inbound = self._made.inbound if self._made is not None else ()
            states = [self.core.kernel.state(sa) for sa in inbound]
        except KernelError as error:
            self.core.kernel_refused(error)
            return False
        return any(state is not None and state.packets for state in states)

    def again(self, exchange: Exchange, now: float, *, refused: bool) -> Creating:
        """Take the optimistic SAs back; the next ones have other SPIs and another nonce."""
        if not refused:
            self._disown(exchange, now, silent=True)
        spent = replace(self)
        for sa in self._inbound:
            self.core.remove_sa(sa)
        spent._forget_private_value()
        self._inbound, self._ephemeral = (), None
        return spent

    def late(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """The peer made a pair of which we have no half: a black hole, were it left there."""
        if self._made is not None and self.core.pairs.holds(self._made):
            self.lifecycle.delete([self._made], now)  # of other keys: its SPI of ours is the same
            return
        if self._created_by_peer and self._made is None:
            return  # it was told already
        if self._inbound and quickmode.holds_association(reply.inner):
            self._disown(exchange, now)

    def _disown(self, exchange: Exchange, now: float, *, silent: bool = False) -> None:
        named = tuple((sa.protocol, sa.spi) for sa in self._inbound)
        seconds = self.protection.profile.lifetime.seconds
        peer, path = exchange.peer, exchange.path
        self.lifecycle.disown(peer, path, named, now, seconds=seconds, silent=silent)

    def _read_answer(
        self, exchange: Exchange, reply: VerifiedReply, now: float
    ) -> tuple[Offer, int, Terms, Seeds]:
        """What the responder chose, checked against what was offered (§3.2)."""
        payloads = [part for part in reply.inner if isinstance(part, kink.Isakmp)]
        if len(payloads) != 1:
            raise PeerError("malformed-reply", f"{len(payloads)} KINK_ISAKMP payloads, not one")
        answer = quickmode.read_creation(payloads[0], reply=True)
        for notification in answer.notifications:
            self.core.notified(notification, exchange.peer.host.name, now)
        if len(answer.offers) != 1:
            raise PeerError("malformed-reply", f"{len(answer.offers)} transforms chosen, not one")
        (answered,) = answer.offers
        if any(part.spi < quickmode.FIRST_SPI for part in answered.parts):
            raise PeerError("malformed-reply", "a reserved SPI")
        for protocol, spi in answer.spis:
            if exchange.peer.is_buried(protocol, spi, now):
                raise PeerError("stale-reply", "the responder has deleted what it made")
            if self.core.pairs.by_outbound(self.protection.remote, protocol, spi):
                raise PeerError("malformed-reply", f"SPI {spi:#010x} is another SA's")
        position, terms = check_answer(self._offers, answered)
        if answer.traffic not in (None, self.protection.selector):
            raise PeerError("other-identities", "the responder answers for other traffic")
        # §3.2: whoever chooses another proposal or adds a nonce must wait for our ACK.
        hoped_for = position == 0 and answer.nonce is None and answer.public is None
        if not reply.ack_request and not hoped_for:
            raise PeerError("malformed-reply", "a choice that needs an ACK, and none is asked for")
        seeds = Seeds(self._nonce, answer.nonce or b"", self._agree(answer.public))
        return answered, position, terms, seeds

    def _agree(self, public: bytes | None) -> Secret | None:
        """What our KE payload and the responder's agree on; the private value is gone with it."""
        ephemeral, self._ephemeral = self._ephemeral, None
        if (ephemeral is None) != (public is None):
            raise PeerError("malformed-reply", "a KE payload on one side only")
        return ephemeral.agree(public) if ephemeral is not None and public is not None else None

    def _pair(
        self, exchange: Exchange, reply: VerifiedReply, answered: Offer, agreement: Agreement
    ) -> SaPair:
        if exchange.ticket is None or exchange.xid is None:
            raise LocalError("a CREATE was completed before it was sent")
        return installing.pair_of(
            self.core,
            agreement,
            self._inbound,
            answered,
            CommandId(reply.epoch, exchange.xid, 0),
            role=Role.INITIATOR,
            principal=exchange.peer.host.service,
            created=exchange.started,
        )

    def _report(self, exchange: Exchange, pair: SaPair, now: float) -> None:
        self.core.counters["create.initiated"] += 1
        self.core.report(
            Level.INFO,
            "sa-established",
            **pair.words(),
            cause=self.cause,
            attempts=len(exchange.outstanding),
            ms_total=round((now - exchange.started) * 1000, 1),
            ms_ticket=round((self._ticket_at - exchange.started) * 1000, 1),
            ms_round_trip=round((now - exchange.sent_at[-1]) * 1000, 1),
        )
