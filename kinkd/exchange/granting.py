"""The responder's CREATE (RFC 4430 §3.2): all that one command asks for, or nothing of it.

A CREATE holds a Quick Mode for each KINK_ISAKMP payload. Each is negotiated on its own and first,
so that whatever must be refused is refused before anything is made.
"""

from __future__ import annotations

from dataclasses import dataclass

from kinkd.errors import KernelError, PeerError
from kinkd.exchange import installing, quickmode
from kinkd.exchange.core import PAIRS_PER_HOST, Answer, Core, Peer
from kinkd.exchange.crossing import Crossings
from kinkd.exchange.effects import Level, Path
from kinkd.exchange.halfopen import Established, Half, HalfOpen, HalfOpens, install_outbound, undone
from kinkd.exchange.installing import Agreement, Seeds
from kinkd.exchange.lifecycle import Lifecycle
from kinkd.exchange.pairs import CommandId, Role, SaPair
from kinkd.exchange.quickmode import Creation
from kinkd.exchange.verified import VerifiedCommand
from kinkd.keying import dh
from kinkd.keying.negotiate import Choice, Demands, choose
from kinkd.model import IpsecProtocol, Protection, Secret, Selector
from kinkd.wire import kink
from kinkd.wire.numbers import KinkErrorCode, NotifyType

QUICK_MODES = 8
"""So many one CREATE may ask for: each may cost a Diffie-Hellman exchange."""


@dataclass(frozen=True, slots=True)
class Request:
    """A verified command of a known host, opened."""

    command: VerifiedCommand
    payloads: tuple[kink.Payload, ...]
    id: CommandId
    peer: Peer
    path: Path


@dataclass(frozen=True, slots=True)
class _Grant:
    """What one Quick Mode of a CREATE comes to; ``selector`` is our outbound traffic."""

    wanted: Creation
    protection: Protection
    selector: Selector
    choice: Choice


class Granting:
    """Makes the pairs that peers ask for."""

    def __init__(
        self, core: Core, lifecycle: Lifecycle, crossings: Crossings, established: Established
    ) -> None:
        self._core = core
        self._crossings = crossings
        self._tell = established
        self.half_open = HalfOpens(core, lifecycle, self._established)

    def create(self, request: Request, now: float) -> Answer:
        """RFC 4430 §3.2 step 3: all SAs and the REPLY; or the inbound SAs, and it asks for an ACK.

        Three messages only where another than the first proposal is chosen, or a KE payload asks
        for them; then with Nr, which costs nothing more.

        Raises:
            PeerError: refused; the code says how it is answered.
            KernelError: the kernel would not; nothing is left of it.
        """
        core = self._core
        if core.closing:
            raise PeerError(
                "closing", "this daemon is leaving", notify=NotifyType.NO_PROPOSAL_CHOSEN
            )
        asked = [part for part in request.payloads if isinstance(part, kink.Isakmp)]
        if len(asked) > QUICK_MODES:
            raise PeerError(
                "too-many-quick-modes",
                f"{len(asked)} in one CREATE; {QUICK_MODES} are the most",
                notify=NotifyType.PAYLOAD_MALFORMED,
            )
        grants = [self._negotiate(request, payload, now) for payload in asked]
        made = core.pairs.of_create(request.peer.host.name, request.id)
        if made:
            return self._again(grants, made)
        self._check(grants, request, now)
        two_messages = all(grant.choice.optimistic for grant in grants)
        halves, inner = self._make(grants, request, now)
        answer = Answer(inner, ack_request=not two_messages)
        if two_messages:
            try:
                install_outbound(halves, core, now)
            except KernelError:
                undone(halves, request.peer, core, now)
                raise
        for half in halves:
            self._crossings.answered(half.pair)
            if two_messages:
                self._established(half.pair, now)
        if two_messages:
            return answer
        key, ap_rep = request.command.ticket.key, request.command.ap_rep
        opened = HalfOpen(halves, request.id, request.peer, request.path, key, answer, ap_rep)
        self.half_open.add(opened, now)
        return answer

    def _negotiate(self, request: Request, payload: kink.Isakmp, now: float) -> _Grant:
        """What the policy makes of one Quick Mode. Changes nothing."""
        wanted = quickmode.read_creation(payload)
        for notification in wanted.notifications:
            self._core.notified(notification, request.peer.host.name, now)
        protection, selector = self._protection(request, wanted.traffic)
        profile = protection.profile
        with_ke = wanted.public is not None
        if with_ke and not any(profile.groups):
            raise quickmode.refuse_key_exchange()
        groups = tuple(group for group in profile.groups if (group is not None) == with_ke)
        if not groups:
            raise PeerError("ke-missing", "no KE payload", notify=NotifyType.NO_PROPOSAL_CHOSEN)
        demands = Demands(protection.mode, profile.lifetime, protection.udp, groups, profile.esn)
        suites = self._core.suites(profile, protection.remote)
        choice = choose(wanted.offers, suites, demands)
        return _Grant(wanted, protection, selector, choice)

    def _protection(
        self, request: Request, traffic: Selector | None
    ) -> tuple[Protection, Selector]:
        """What the policy demands of the traffic that is asked for: the peer may ask for less.

        Without client identities it is that between the two addresses (RFC 2409 §5.5).
        """
        path = request.path
        selector = (
            Selector.between(path.local, path.remote) if traffic is None else traffic.reversed()
        )
        for protection in self._core.policy.between(path.local, path.remote):  # the narrowest first
            if protection.peer.name == request.peer.host.name and protection.selector.covers(
                selector
            ):
                return protection, selector
        raise PeerError(
            "no-policy",
            f"no rule protects {selector.source} to {selector.destination} with {path.remote}",
            notify=NotifyType.NO_PROPOSAL_CHOSEN,
        )

    def _again(self, grants: list[_Grant], made: list[SaPair]) -> Answer:
        """The REPLY to a CREATE that an earlier life of this daemon carried out."""
        by_spis = {frozenset(spis.outbound for spis in pair.sas): pair for pair in made}
        inner: list[kink.Payload] = []
        for grant in grants:
            parts = grant.choice.offer.parts
            pair = by_spis.get(frozenset(part.spi for part in parts))
            if pair is None or not grant.choice.optimistic:
                # With an ACK: it came, so whoever repeats the CREATE has had our REPLY.
                raise PeerError("stale-command", "what it made is no longer whole")
            inner.append(self._reply(grant, pair))
        return Answer(tuple(inner))

    def _check(self, grants: list[_Grant], request: Request, now: float) -> None:
        """All SPIs must be new (RFC 4430 §3.2), and no host may have too many pairs."""
        core, remote = self._core, request.path.remote
        seen: set[tuple[IpsecProtocol, int]] = set()
        for grant in grants:
            # Those of proposals that were not chosen, too: the CREATE "contains" them.
            for protocol, spi in grant.wanted.spis:
                known = (
                    (protocol, spi) in seen
                    or core.pairs.by_outbound(remote, protocol, spi)
                    or self.half_open.by_outbound(remote, protocol, spi)
                    or request.peer.is_buried(protocol, spi, now)
                )
                if known or spi < quickmode.FIRST_SPI:
                    raise PeerError(
                        "invalid-spi",
                        f"SPI {spi:#010x} exists, was deleted or is reserved",
                        notify=NotifyType.INVALID_SPI,
                    )
            seen |= grant.wanted.spis
        name = request.peer.host.name
        there = len(core.pairs.of_host(name)) + self.half_open.of_host(name)
        most = max(PAIRS_PER_HOST, 4 * len(core.policy.with_host(name)))
        if there + len(grants) > most:
            raise PeerError(
                "too-many-sas",
                f"{name} has {there} pairs; {most} are the most",
                kink_error=KinkErrorCode.INTERR,
            )

    def _make(
        self, grants: list[_Grant], request: Request, now: float
    ) -> tuple[tuple[Half, ...], tuple[kink.Payload, ...]]:
        """The inbound SAs of every grant and what the REPLY says of it; of all, or of none."""
        halves: list[Half] = []
        inner: list[kink.Payload] = []
        complete = False
        try:
            for grant in grants:
                nr = b"" if grant.choice.optimistic else self._core.random(quickmode.NONCE_OCTETS)
                public, shared = _agree(grant)
                seeds = Seeds(grant.wanted.nonce or b"", nr, shared)
                half = self._half(grant, seeds, request, now)
                halves.append(half)
                half.install_inbound(self._core, now)
                inner.append(self._reply(grant, half.pair, nr or None, public))
            complete = True
        finally:
            if not complete:
                for half in halves:
                    half.remove_inbound(self._core)
        return tuple(halves), tuple(inner)

    def _half(self, grant: _Grant, seeds: Seeds, request: Request, now: float) -> Half:
        core, ticket, protection = self._core, request.command.ticket, grant.protection
        choice = grant.choice
        inbound = installing.reserve(
            core, protection.remote, protection.local, protection.reqid, choice.suite.protocols
        )
        agreement = Agreement(
            protection,
            grant.selector,
            choice.suite,
            choice.terms,
            ticket.key,
            ticket.end,
            seeds,
        )
        pair = installing.pair_of(
            core,
            agreement,
            inbound,
            choice.offer,
            request.id,
            role=Role.RESPONDER,
            principal=ticket.client,
            created=now,
        )
        return Half(pair, agreement)

    def _reply(
        self,
        grant: _Grant,
        pair: SaPair,
        nonce: bytes | None = None,
        public: bytes | None = None,
    ) -> kink.Isakmp:
        """The chosen proposal under its own numbers, with our SPIs (RFC 2409 §5.5)."""
        choice = grant.choice
        spis = [spis.inbound for spis in pair.sas]
        proposals = quickmode.answer(choice.suite, choice.offer, choice.terms, spis)
        return quickmode.creation(proposals, nonce, public, grant.wanted.clients)

    def _established(self, pair: SaPair, now: float) -> None:
        core = self._core
        core.keep(pair, now)
        core.counters["create.answered"] += 1
        core.report(Level.INFO, "sa-established", **pair.words())
        self._crossings.established(pair, now)
        self._tell(pair, now)


def _agree(grant: _Grant) -> tuple[bytes | None, Secret | None]:
    """Our public value and what it and the initiator's agree on; the private one is gone (§3.2).

    Raises:
        PeerError: its value is no good.
    """
    group, public = grant.choice.terms.group, grant.wanted.public
    if group is None or public is None:
        return None, None
    ephemeral = dh.generate(dh.GROUPS[group])
    return ephemeral.public, ephemeral.agree(public)
