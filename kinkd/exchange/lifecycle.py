"""How SAs end: DELETE with its grace, expiry, a peer that lost its state.

However a pair ends on our side, its peer is told, and told again until it answers: see ``debts``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kinkd.exchange import quickmode
from kinkd.exchange.core import Core, Peer
from kinkd.exchange.debts import FIRST_PAUSE, Debts, InboundSpis, check_deletion
from kinkd.exchange.effects import ForgetPair, Level, Path, RecordDebt
from kinkd.exchange.machine import Exchange, Initiator
from kinkd.exchange.pairs import Role, SaPair
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.exchange.verified import VerifiedReply
from kinkd.kernel.port import SaId
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType


class Lifecycle:
    """The one who takes pairs out of the kernel."""

    def __init__(self, core: Core, initiator: Initiator) -> None:
        self._core = core
        self._initiator = initiator
        self._debts = Debts(core, initiator)
        self._probed: set[Peer] = set()
        self._leaving: set[SaId] = set()
        initiator.observe_epochs(self.epoch_proven)

    @property
    def leaving(self) -> frozenset[SaId]:
        """The SAs of pairs that are given up on which we still receive."""
        return frozenset(self._leaving)

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
        if not core.give_up(pair, now):
            return False
        for sa in pair.outbound:
            core.remove_sa(sa)
        core.emit(ForgetPair(pair))
        self._leaving.update(pair.inbound)
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

    def disown(
        self,
        peer: Peer,
        path: Path,
        spis: InboundSpis,
        now: float,
        *,
        seconds: float,
        silent: bool = False,
    ) -> None:
        """Have a peer remove a pair of which we have no half, by the SPIs we once offered.

        It may have it for ``seconds`` more. One that is ``silent`` is told once it is heard.
        """
        tell = self._debts.owe if silent else self._debts.tell
        tell(peer, path, spis, seconds, now)

    def recall(self, peer: Peer, debt: RecordDebt, now: float) -> None:
        """Have a peer remove what it still owed to an earlier life."""
        left = debt.until - self._core.posix(now)
        self._debts.recall(peer, debt.path, (debt.protocol, debt.spi), left, now)

    def disown_pairs(self, pairs: Iterable[SaPair], now: float) -> None:
        """Have their peers remove pairs that are gone on our side."""
        for path, group in by_path(pairs).items():
            host = self._core.policy.host_by_name(group[0].host)
            if host is not None:
                spis = tuple(name for pair in group for name in pair.inbound_spis)
                self.disown(
                    self._core.peer(host), path, spis, now, seconds=self.seconds_left(group, now)
                )

    def seconds_left(self, pairs: Iterable[SaPair], now: float) -> float:
        """How long a peer may hold its halves of pairs that ended before their time."""
        left = max(pair.born + pair.lifetime.seconds - now for pair in pairs)
        # Its half may have been made a whole exchange later.
        return max(0.0, left) + TRANSACTION_SECONDS

    def expired(self, sa: SaId, now: float) -> None:
        """The kernel removed one SA of a pair: the other goes with it, here and at the peer.

        Its clock or its count of octets may differ from ours, and RFC 4430 §3.3 allows no half.
        """
        pair = self._core.pairs.by_sa(sa)
        if pair is None:
            return
        self._core.report(Level.INFO, "sa-expired", peer=pair.host, spi=f"{sa.spi:#010x}")
        self.end([pair], now)

    def end(self, pairs: list[SaPair], now: float) -> None:
        """Take pairs out at once that are of no more use, and have their peers do the same."""
        for pair in pairs:
            self.retire(pair, now, grace=0)
        self.disown_pairs(pairs, now)

    def epoch_claimed(self, peer: Peer, path: Path, epoch: int, now: float) -> None:
        """A command carries an EPOCH (RFC 4430 §3.7).

        It may have been delayed: a changed one is confirmed by a STATUS of ours first.
        """
        if peer.epoch not in (None, epoch) or self._stale(peer, epoch):
            self._probe(peer, path, epoch, now)
        elif peer.epoch is None:
            peer.epoch = epoch
        self._core.heard(peer, now)

    def _stale(self, peer: Peer, epoch: int) -> list[SaPair]:
        return [p for p in self._core.pairs.of_host(peer.host.name) if p.epoch != epoch]

    def _probe(self, peer: Peer, path: Path, epoch: int, now: float) -> None:
        if peer in self._probed:
            return
        self._probed.add(peer)
        self._core.report(Level.INFO, "epoch-doubted", peer=peer.host.name, claimed=epoch)

        def ended(_: Peer, alive: bool, then: float) -> None:
            self._probed.discard(peer)
            if not alive:
                self._core.timers.at(then + FIRST_PAUSE, again)

        def again(then: float) -> None:
            if not self._core.is_current(peer):
                return  # nothing depends on it
            pairs = self._core.pairs.of_host(peer.host.name)
            if any(pair.epoch != peer.epoch or pair.epoch != epoch for pair in pairs):
                self._probe(peer, path, epoch, then)  # while anything depends on it

        # Not to the port that the command came from: KINK is at home at one (RFC 4430 §9).
        self._initiator.begin(Probing(ended), peer, Path(path.local, path.remote), now)

    def epoch_proven(self, peer: Peer, path: Path, epoch: int, asked: float, now: float) -> None:
        """A REPLY to what we sent at ``asked`` has an EPOCH: SAs of any other are void (§3.7).

        Unless another was proven to us after that: the REPLY may come from the life before.
        """
        self._core.heard(peer, now)
        if not self._core.is_current(peer):
            return  # it speaks for nobody any more
        if peer.epoch not in (None, epoch) and asked < peer.epoch_proven:
            self._probe(peer, path, epoch, now)
            return
        peer.epoch, peer.epoch_proven = epoch, now
        stale = self._stale(peer, epoch)
        if stale:
            self._core.counters["peer-restarted"] += 1
            self._core.report(
                Level.WARNING, "peer-restarted", peer=peer.host.name, epoch=epoch, sas=len(stale)
            )
        self.end(stale, now)  # were it wrong, the peer must not keep halves of them

    def remove_inbound(self, pairs: tuple[SaPair, ...]) -> None:
        """The peer knows of the DELETE: nothing more can come in on these."""
        for pair in pairs:
            for sa in pair.inbound:
                self._core.remove_sa(sa)
                self._leaving.discard(sa)


@dataclass(slots=True, eq=False)
class Deleting:
    """A DELETE of ours; the outbound SAs are gone already (RFC 4430 §3.3)."""

    core: Core
    lifecycle: Lifecycle
    spis: InboundSpis
    pairs: tuple[SaPair, ...]  # we still receive on them
    done: Callable[[float], None] | None = None
    type: MessageType = MessageType.DELETE

    def prepare(self, exchange: Exchange, now: float) -> tuple[kink.Payload, ...]:
        """Name our inbound SAs (§3.3)."""
        return (quickmode.deletion(self.spis),)

    def complete(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """The peer deleted them, or never had them (INVALID-SPI): ours may go, after grace."""
        check_deletion(reply.inner)
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
        """The peer cannot be told; its half ends when it is heard again."""
        self.lifecycle.remove_inbound(self.pairs)
        seconds = self.lifecycle.seconds_left(self.pairs, now)
        self.lifecycle.disown(
            exchange.peer, exchange.path, self.spis, now, seconds=seconds, silent=True
        )
        self.core.counters["delete.failed"] += 1
        self.core.report(
            Level.WARNING, "delete-failed", peer=exchange.peer.host.name, reason=reason
        )
        if self.done is not None:
            self.done(now)

    def again(self, exchange: Exchange, now: float, *, refused: bool) -> Deleting:
        """Nothing was prepared."""
        return self

    def repeated(self, now: float) -> None:
        """It asks for no ACK."""

    def late(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """Deleted after all: as was wanted."""


def by_path(pairs: Iterable[SaPair]) -> dict[Path, list[SaPair]]:
    """Pairs by the addresses that they are between: a DELETE is for one such."""
    groups: dict[Path, list[SaPair]] = {}
    for pair in pairs:
        groups.setdefault(Path(pair.local, pair.remote), []).append(pair)
    return groups


@dataclass(slots=True, eq=False)
class Probing:
    """A STATUS of ours: is the peer alive, and is its EPOCH what we think (RFC 4430 §3.7)?

    ``ended`` is told whether there was a REPLY, and the instant; and again of a late one.
    """

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

    def again(self, exchange: Exchange, now: float, *, refused: bool) -> Probing:
        """Nothing was prepared."""
        return self

    def repeated(self, now: float) -> None:
        """It asks for no ACK."""

    def late(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """Its EPOCH is proven, if late."""
        self.ended(exchange.peer, True, now)
