"""How SAs end: DELETE with its grace, expiry, rekeying, a peer that lost its state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kinkd.exchange import quickmode
from kinkd.exchange.core import Core, Peer
from kinkd.exchange.effects import ForgetPair, Level, Path
from kinkd.exchange.machine import Exchange, Initiator
from kinkd.exchange.pairs import Role, SaPair
from kinkd.exchange.verified import VerifiedReply
from kinkd.kernel.port import SaId
from kinkd.model import IpsecProtocol
from kinkd.wire import grammar, isakmp, kink
from kinkd.wire.numbers import MessageType, NotifyType

InboundSpis = tuple[tuple[IpsecProtocol, int], ...]
"""What a DELETE names: SPIs that we have chosen."""


class Lifecycle:
    """The one who takes pairs out of the kernel."""

    def __init__(self, core: Core, initiator: Initiator) -> None:
        self._core = core
        self._initiator = initiator
        self._probed: set[str] = set()
        initiator.observe_epochs(self.epoch_proven)

    def retire(self, pair: SaPair, now: float, *, grace: float) -> None:
        """Stop sending on a pair at once; receive on it for ``grace`` seconds (RFC 4430 §3.3)."""
        if not self._give_up(pair, now):
            return
        if grace:
            self._core.timers.at(now + grace, lambda _: self.remove_inbound((pair,)))
        else:
            self.remove_inbound((pair,))

    def _give_up(self, pair: SaPair, now: float) -> bool:
        """Stop sending on a pair, and see that the CREATE that made it makes it no second time."""
        core = self._core
        if not core.pairs.discard(pair):
            return False
        for sa in pair.outbound:
            core.remove_sa(sa)
        core.emit(ForgetPair(pair))
        host = core.policy.host_by_name(pair.host)
        if pair.role is Role.RESPONDER and host is not None:
            core.peer(host).remember(pair.command, None, now)
        return True

    def delete(
        self, pairs: list[SaPair], now: float, done: Callable[[float], None] | None = None
    ) -> None:
        """Announce to their peer that pairs go (RFC 4430 §3.3): outbound now, inbound when told."""
        if not pairs:
            if done is not None:
                done(now)
            return
        first = pairs[0]
        host = self._core.policy.host_by_name(first.host)
        if host is None:  # the policy no longer knows the peer: nothing can be told it
            for pair in pairs:
                self.retire(pair, now, grace=0)
            if done is not None:
                done(now)
            return
        for pair in pairs:
            self._give_up(pair, now)
        peer = self._core.peer(host)
        spis = tuple(name for pair in pairs for name in pair.inbound_spis)
        purpose = Deleting(self._core, self, spis, tuple(pairs), done)
        self._initiator.begin(purpose, peer, Path(first.local, first.remote), now)

    def disown(self, peer: Peer, path: Path, spis: InboundSpis, now: float) -> None:
        """Have a peer remove a pair of which we have no half, by the SPIs we once offered."""
        self._initiator.begin(Deleting(self._core, self, spis), peer, path, now)

    def expired(self, sa: SaId, now: float) -> None:
        """The kernel removed one SA of a pair: the other goes with it (no half-open SAs, §3.3)."""
        pair = self._core.pairs.by_sa(sa)
        if pair is None:
            return
        self._core.report(Level.INFO, "sa-expired", peer=pair.host, spi=f"{sa.spi:#010x}")
        self.retire(pair, now, grace=0)

    def epoch_claimed(self, peer: Peer, path: Path, epoch: int, now: float) -> None:
        """A command carries an EPOCH (RFC 4430 §3.7).

        It may have been delayed: a changed one is confirmed by a STATUS of ours first.
        """
        stale = any(pair.epoch != epoch for pair in self._core.pairs.of_host(peer.host.name))
        if stale and peer.host.name not in self._probed:
            self._probed.add(peer.host.name)
            self._core.report(
                Level.INFO, "epoch-changed", peer=peer.host.name, epoch=epoch, proven=False
            )
            self._initiator.begin(Probing(self, self._probe_ended), peer, path, now)
        elif peer.epoch is None:
            peer.epoch = epoch

    def epoch_proven(self, peer: Peer, epoch: int, now: float) -> None:
        """A REPLY to a command of ours carries an EPOCH: SAs of any other are void (§3.7)."""
        peer.epoch = epoch
        stale = [p for p in self._core.pairs.of_host(peer.host.name) if p.epoch != epoch]
        if stale:
            self._core.counters["peer-restarted"] += 1
            self._core.report(
                Level.WARNING, "peer-restarted", peer=peer.host.name, epoch=epoch, sas=len(stale)
            )
        for pair in stale:
            self.retire(pair, now, grace=0)

    def _probe_ended(self, peer: Peer, _alive: bool, _now: float) -> None:
        self._probed.discard(peer.host.name)

    def remove_inbound(self, pairs: tuple[SaPair, ...]) -> None:
        """The peer knows of the DELETE: nothing more can come in on these."""
        for pair in pairs:
            for sa in pair.inbound:
                self._core.remove_sa(sa)


@dataclass(slots=True, eq=False)
class Deleting:
    """A DELETE of ours; the outbound SAs are gone already (RFC 4430 §3.3)."""

    core: Core
    lifecycle: Lifecycle
    spis: InboundSpis
    pairs: tuple[SaPair, ...] = ()  # those of them that we still receive on
    done: Callable[[float], None] | None = None
    type: MessageType = MessageType.DELETE

    def prepare(self, exchange: Exchange, now: float) -> tuple[kink.Payload, ...]:
        """Name our inbound SAs (§3.3)."""
        return (quickmode.deletion(self.spis),)

    def complete(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """The peer deleted them, or never had them (INVALID-SPI): ours may go, after grace."""
        for payload in reply.inner:
            if isinstance(payload, kink.Isakmp):
                _check_deletion(payload)
        pairs, lifecycle = self.pairs, self.lifecycle
        grace = exchange.peer.round_trip.grace()
        if self.done is not None:  # whoever waits for it wants the kernel empty now
            lifecycle.remove_inbound(pairs)
            self.done(now)
        else:
            self.core.timers.at(now + grace, lambda _: lifecycle.remove_inbound(pairs))
        self.core.counters["delete.initiated"] += len(self.spis)
        self.core.report(
            Level.INFO,
            "sa-deleted",
            peer=exchange.peer.host.name,
            role="initiator",
            sas=len(self.spis),
        )

    def abandon(self, exchange: Exchange, reason: str, now: float) -> None:
        """The peer cannot be told; its half ends at its hard lifetime."""
        self.lifecycle.remove_inbound(self.pairs)
        self.core.counters["delete.failed"] += 1
        self.core.report(
            Level.WARNING, "delete-failed", peer=exchange.peer.host.name, reason=reason
        )
        if self.done is not None:
            self.done(now)

    def again(self) -> Deleting:
        """Nothing was prepared."""
        return self

    def late(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """Deleted after all: as was wanted."""


def _check_deletion(payload: kink.Isakmp) -> None:
    parts = isakmp.decode(payload)
    grammar.check_quick_mode(MessageType.DELETE, parts, reply=True)
    for part in parts:
        if isinstance(part, isakmp.Notification) and part.type != NotifyType.INVALID_SPI:
            quickmode.refuse_error_notification(part)


@dataclass(slots=True, eq=False)
class Probing:
    """A STATUS of ours: is the peer alive, and is its EPOCH what we think (RFC 4430 §3.7)?

    ``ended`` is told whether there was a REPLY, and the instant; and again of a late one.
    """

    lifecycle: Lifecycle
    ended: Callable[[Peer, bool, float], None]
    type: MessageType = MessageType.STATUS

    def prepare(self, exchange: Exchange, now: float) -> tuple[kink.Payload, ...]:
        """Nothing but the AP-REQ (§6.5)."""
        return ()

    def complete(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """The REPLY's EPOCH, proven by its AP-REP, is what was wanted."""
        self.ended(exchange.peer, True, now)

    def abandon(self, exchange: Exchange, reason: str, now: float) -> None:
        """No conclusion may be drawn but that we do not know."""
        self.ended(exchange.peer, False, now)

    def again(self) -> Probing:
        """Nothing was prepared."""
        return self

    def late(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """Its EPOCH is proven, if late."""
        self.lifecycle.epoch_proven(exchange.peer, reply.epoch, now)
        self.ended(exchange.peer, True, now)
