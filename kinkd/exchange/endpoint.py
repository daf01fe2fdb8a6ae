"""The core's front: datagrams, kernel events, tickets and wishes go in, commands come out.

The endpoint never waits and never reads a clock. Every call carries ``now``, seconds of one
monotonic clock; ``set_posix`` says how far POSIX time is from it. After each call take
``commands()`` and carry them out in order, and ask ``next_timer()`` when to call ``tick``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from kinkd.errors import KernelError, LocalError, PeerError, TicketUnavailable
from kinkd.exchange import spd
from kinkd.exchange.acquires import Acquires, Outcome
from kinkd.exchange.core import Core, Peer, Start
from kinkd.exchange.creating import GAVE_WAY, Creating, Variant
from kinkd.exchange.crossing import Crossings
from kinkd.exchange.effects import Command, Level, Path, RecordBurial, RecordDebt
from kinkd.exchange.enforcing import Enforcing
from kinkd.exchange.forms import Forms
from kinkd.exchange.granting import Granting
from kinkd.exchange.lifecycle import Lifecycle, Probing, by_path
from kinkd.exchange.machine import Exchange, Initiator
from kinkd.exchange.pairs import CommandId, PairTable, SaPair, is_wanted
from kinkd.exchange.reconciler import Reconciler
from kinkd.exchange.rekeying import Rekeying
from kinkd.exchange.responder import Responder
from kinkd.exchange.suspicion import Suspicion
from kinkd.exchange.timing import FIRST_TIMEOUT
from kinkd.kerberos.port import Acceptor, Tgt, Ticket
from kinkd.kernel.port import Acquire, Deleted, Expire, Kernel, KernelEvent, Overrun, SaId
from kinkd.model import Host, IPAddress, Principal, Protection, Slot
from kinkd.policy.match import HostPolicy
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType

ANNOUNCED = 64
"""Peers that are told of a life that has forgotten all before: each costs a ticket."""


class Changes(NamedTuple):
    """What another policy came to: SPD entries that were written or removed, pairs deleted."""

    entries: int
    pairs: int


InitiateEnded = Callable[[SaPair | None, str, float], None]


@dataclass(slots=True)
class _Attempt:
    """The CREATE under way for a slot, and who wants to know how it ends."""

    purpose: Creating
    listeners: list[InitiateEnded]
    exchange: Exchange | None = None


class Endpoint:
    """One host's end of KINK."""

    def __init__(
        self, policy: HostPolicy, kernel: Kernel, acceptor: Acceptor, start: Start
    ) -> None:
        self._core = Core(policy, kernel, acceptor, start)
        self._initiator = Initiator(self._core)
        self._lifecycle = Lifecycle(self._core, self._initiator)
        self._creating: dict[Slot, _Attempt] = {}
        self._crossings = Crossings(self._core, self._lifecycle, self._creating.__contains__)
        granting = Granting(self._core, self._lifecycle, self._crossings, self._established)
        self._responder = Responder(self._core, self._lifecycle, granting)
        self._giving = self._responder.giving
        self._enforcing = Enforcing(
            self._core, lambda protection, now: self._create(protection, now, "relaxed")
        )
        self._rekeying = Rekeying(self._core, self._create)
        self._acquires = Acquires(
            self._core,
            create=self._acquire,
            cancel=self._give_way,
            is_fetching=self._initiator.tickets.is_fetching,
            half_open=self._responder.half_open.awaits,
        )
        self._reconciler = Reconciler(
            self._core, self._lifecycle, self._rekeying, self._acquires, self.disown_unclaimed
        )
        self._suspicion = Suspicion(
            self._core, self._initiator, self._rekeying.renew, self._reconciler.deleted
        )

    # What people and the application read.

    @property
    def policy(self) -> HostPolicy:
        """What applies to this host."""
        return self._core.policy

    @property
    def epoch(self) -> int:
        """Our EPOCH."""
        return self._core.epoch

    @property
    def pairs(self) -> PairTable:
        """The live pairs; read only."""
        return self._core.pairs

    def peer(self, host: Host) -> Peer:
        """What is remembered of a host of the policy; read only."""
        return self._core.peer(host)

    @property
    def counters(self) -> dict[str, int]:
        """How often what happened, by name; drops under ``drop.REASON``."""
        return dict(self._core.counters)

    @property
    def commands_under_way(self) -> int:
        """Commands of ours that have not ended."""
        return len(self._initiator)

    @property
    def acquires_waiting(self) -> int:
        """Questions of the kernel that wait: for a CREATE under way, a place, or a peer's rest."""
        return len(self._acquires)

    @property
    def timers(self) -> int:
        """How many things are due some time; one of them is always the next look at the kernel."""
        return len(self._core.timers)

    def commands(self) -> list[Command]:
        """What to do, since the last call; in this order."""
        return self._core.take_commands()

    def next_timer(self) -> float | None:
        """When to call ``tick``, or None."""
        return self._core.timers.next()

    # What happens.

    def set_posix(self, offset: float) -> None:
        """Set POSIX time minus monotonic time, seconds."""
        self._core.posix_offset = offset

    def adopt(self, pairs: Iterable[SaPair], now: float) -> None:
        """Take up pairs that an earlier life of this daemon left in the kernel.

        Of several for the same one will remain.
        """
        adopted = [self._aged(pair, now) for pair in pairs]
        for pair in adopted:
            self._core.pairs.add(pair)
            self._enforcing.made(pair, now)
        for slot in {pair.slot for pair in adopted}:
            self._crossings.adopted(self._core.pairs.in_slot(slot), now)
        self._suspicion.watch(now)

    def recall(self, commands: Iterable[tuple[str, CommandId]], now: float) -> None:
        """Know again the CREATEs, by host, whose pairs an earlier life gave up."""
        for name, command in commands:
            host = self._core.policy.host_by_name(name)
            if host is not None:
                self._core.peer(host).remember(command, None, now)

    def recall_burials(self, burials: Iterable[RecordBurial], now: float) -> None:
        """Know again what peers have deleted before it came to be (RFC 4430 §3.3)."""
        for burial in burials:
            host = self._core.policy.host_by_name(burial.host)
            if host is not None:
                self._core.peer(host).bury((burial.protocol, burial.spi), now)

    def recall_debts(self, debts: Iterable[RecordDebt], now: float) -> None:
        """Take up what peers owed to an earlier life (RFC 4430 §3.3)."""
        for debt in debts:
            host = self._core.policy.host_by_name(debt.host)
            if host is not None:
                self._lifecycle.recall(self._core.peer(host), debt, now)

    def disown(self, pairs: Iterable[SaPair], now: float) -> None:
        """Tell peers of pairs that did not survive on our side (RFC 4430 §3.3)."""
        self._lifecycle.disown_pairs([self._aged(pair, now) for pair in pairs], now)

    def _aged(self, pair: SaPair, now: float) -> SaPair:
        """A pair of an earlier life, with its age by the clock of this one."""
        age = self._core.posix(now) - pair.created
        return replace(pair, born=now - min(max(0.0, age), pair.lifetime.seconds))

    def disown_unclaimed(self, sas: Iterable[SaId], now: float) -> None:
        """Tell peers of SAs that an earlier life made and did not come to record.

        A CREATE that was under way made them: the other end may hold its half (RFC 4430 §3.3).
        """
        for sa in sas:
            local, remote = sa.destination, sa.source
            for protection in self._core.policy.between(local, remote)[:1]:
                self._lifecycle.disown(
                    self._core.peer(protection.peer),
                    Path(local, remote),
                    ((sa.protocol, sa.spi),),
                    now,
                    seconds=protection.profile.lifetime.seconds,
                )

    def tick(self, now: float) -> None:
        """Time has come."""
        self._core.timers.run(now)

    def receive(self, datagram: bytes, path: Path, now: float) -> None:
        """A datagram came to port 910. Whatever it holds, this returns."""
        core = self._core
        core.counters["received"] += 1
        try:
            head = kink.header(datagram)
        except PeerError as error:
            core.drop(error, path, now)
            return
        # A REPLY is never answered, whatever is wrong with it (RFC 4430 §3.5), nor an ACK (§6.2).
        is_reply = head.type == MessageType.REPLY
        is_answered = head.type not in (MessageType.REPLY, MessageType.ACK)
        try:
            received = kink.decode(datagram)
            if is_reply:
                self._initiator.receive_reply(received, path, now)
            else:
                self._responder.receive_command(received, len(datagram), path, now)
        except PeerError as error:
            core.drop(error, path, now)
            if is_answered:
                self._responder.refuse(error, head.xid, len(datagram), path, now)
        except LocalError as error:  # of ours: an answer that does not fit, a ticket that ended
            core.counters["internal-error"] += 1
            core.report(Level.ERROR, "internal-error", peer=path.remote, reason=str(error))
        self._suspicion.watch(now)

    def kernel_event(self, event: KernelEvent, now: float) -> None:
        """The kernel wants an SA, or one came to its end."""
        match event:
            case Acquire():
                self._enforcing.acquired(event, now)
                self._acquires.asked(event, now)
            case Expire(hard=True):
                self._lifecycle.expired(event.id, now)
            case Expire():
                self._rekeying.soft_expired(event.id, now)
            case Deleted(None):
                self._reconciler.disturbed(now)
            case Deleted(SaId() as sa):
                self._reconciler.deleted(sa, now)
            case Overrun():
                self._core.counters["kernel-overrun"] += 1
                self._reconciler.disturbed(now)

    def start(self, now: float) -> None:
        """Begin what needs no cause, once all that an earlier life left has been taken up.

        What the kernel has is looked at; a TGT is at hand where the policy gives it to peers.
        """
        self._enforcing.start(now)
        self._giving.start(now)
        self._reconciler.start(now)

    def announce(self, now: float) -> None:
        """Tell peers that this is another life (RFC 4430 §3.7), of which no journal knows one.

        Whoever was a peer of an earlier one may still send into its SAs. Of too many of them each
        finds out for itself.
        """
        for host in self._core.policy.peers[:ANNOUNCED]:
            first = self._core.policy.with_host(host.name)[0]
            self._core.counters["status.announced"] += 1
            path = Path(first.local, first.remote)
            self._initiator.begin(Probing(lambda *_: None), self._core.peer(host), path, now)

    def ticket_ready(self, server: Principal, ticket: Ticket, now: float) -> None:
        """The answer to ``FetchTicket``."""
        self._initiator.tickets.ticket_ready(server, ticket, now)

    def ticket_failed(self, server: Principal, error: TicketUnavailable, now: float) -> None:
        """The other answer to ``FetchTicket``."""
        self._initiator.tickets.ticket_failed(server, error, now)

    def tgt_ready(self, tgt: Tgt, now: float) -> None:
        """The answer to ``FetchTgt``."""
        self._giving.ready(tgt, now)

    def tgt_failed(self, error: TicketUnavailable, now: float) -> None:
        """The other answer to ``FetchTgt``."""
        self._giving.failed(error, now)

    # What people want.

    def initiate(self, protection: Protection, now: float, ended: InitiateEnded) -> None:
        """Create a pair for a protection of the policy now; ``ended`` is told how it went.

        Raises:
            PeerError: "closing": this daemon is leaving.
        """
        if self._core.closing:
            raise PeerError("closing", "this daemon is leaving")
        self._create(protection, now, "initiate", ended)

    def terminate(self, host: Host, now: float, done: Callable[[float], None]) -> int:
        """Delete all pairs with a host; ``done`` is called once it is over. How many there were."""
        pairs = self._core.pairs.of_host(host.name)
        groups = by_path(pairs)
        left = len(groups)

        def one_done(then: float) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done(then)

        if not groups:
            done(now)
        for group in groups.values():
            self._lifecycle.delete(group, now, one_done)
        return len(pairs)

    def apply(
        self, policy: HostPolicy, suites: Mapping[int, frozenset[str]], now: float
    ) -> Changes:
        """Go by another policy from now on, and change only what it changes.

        SAs that it would not have made are deleted, and their peers told (RFC 4430 §3.3); what is
        under way for them ends. Where it wants other terms than before (groups, sequence numbers,
        a shorter life), they are renewed. All other SAs and what is under way are left as they are.

        Raises:
            LocalError: an entry of other software is in the way; nothing was changed.
            KernelError: the kernel refused an entry; the old policy is in force.
        """
        core, before = self._core, self._core.policy
        if core.closing:
            raise LocalError("this daemon is leaving")
        try:
            entries = core.install_policy(policy)
        except KernelError:
            wanted, there = core.forms.wanted(before), core.kernel.policies()
            spd.carry_out(core.kernel, spd.plan(there, wanted, core.ownership.priorities))
            raise
        unwanted = [pair for pair in core.pairs if not is_wanted(pair, policy)]
        weaker = [pair for pair in core.pairs if _is_weaker(pair, before, policy)]

        def is_stale(protection: Protection) -> bool:
            current = policy.acquired(*protection.slot)
            return current is None or not current.makes_the_same(protection)

        # While the peers are still known: they are told.
        for group in by_path(unwanted).values():
            self._lifecycle.delete(group, now)
        self._responder.half_open.give_up_all(
            now, lambda opened: any(is_stale(half.agreement.protection) for half in opened.halves)
        )
        for peer in core.apply(policy, suites, now):
            self._initiator.tickets.forget(peer)
        for attempt in list(self._creating.values()):
            if attempt.exchange is not None and is_stale(attempt.purpose.protection):
                attempt.purpose.variants = ()
                self._initiator.cancel(attempt.exchange, "the policy has changed", now)
        for pair in weaker:
            self._rekeying.renew_in_turn(pair, "policy", now)
        self._giving.start(now)
        self._acquires.wake(now)
        self._enforcing.follow(now)
        return Changes(entries, len(unwanted))

    def forget(self, host: Host, now: float) -> bool:
        """Have a host be as if there had never been SAs with it: see ``request``.

        Those that there are end. False: there were none that mattered.
        """
        self._lifecycle.end(self._core.pairs.of_host(host.name), now)
        was_secured = self._enforcing.forget(host)
        for protection in self._core.policy.with_host(host.name):
            if self._acquires.is_asking(protection.slot):  # begun when it was still required
                self._enforcing.asked(protection, now)
        self._acquires.wake(now)  # what the kernel holds for it is asked for anew, and let go
        return was_secured

    def suspend(self, until: float, now: float) -> None:
        """Enforce nothing until an instant, POSIX seconds; one that is past ends a suspension.

        Raises:
            KernelError: the kernel refused an entry.
        """
        self._enforcing.suspend(until, now)

    @property
    def forms(self) -> Forms:
        """How strictly the policy is enforced; read only."""
        return self._core.forms

    def addresses_up(self, addresses: Iterable[IPAddress], now: float) -> None:
        """These addresses of ours are there, again: what waits on them need not wait longer."""
        for local in addresses:
            self._initiator.hurry(local, now)
            self._acquires.wake(now, local)

    def stop_creating(self, now: float) -> None:
        """From now on no SA is made, and what is under way ends."""
        self._core.closing = True
        self._responder.half_open.give_up_all(now)
        for attempt in list(self._creating.values()):
            if attempt.exchange is not None:
                self._initiator.cancel(attempt.exchange, "this daemon is leaving", now)

    # How it is done.

    def _acquire(self, protection: Protection, now: float) -> None:
        self._enforcing.asked(protection, now)
        self._create(protection, now, "acquire")

    def _create(
        self,
        protection: Protection,
        now: float,
        cause: str,
        ended: InitiateEnded | None = None,
    ) -> None:
        """Begin a CREATE, or join the one of this slot that is under way."""
        attempt = self._creating.get(protection.slot)
        if attempt is not None:
            if ended is not None:
                attempt.listeners.append(ended)
            return
        self._begin(protection, now, cause, [ended] if ended is not None else [])

    def _begin(
        self,
        protection: Protection,
        now: float,
        cause: str,
        listeners: list[InitiateEnded],
        variants: Sequence[Variant] = (),
    ) -> None:
        slot = protection.slot
        # All that is there or about to be for the same is replaced: one pair is enough. Of what
        # comes while this is under way the crossing rule decides.
        there = [
            pair
            for pair in (
                *self._core.pairs.in_slot(slot),
                *self._responder.half_open.pairs_in_slot(slot),
            )
            if pair.selector == protection.selector
        ]
        purpose = Creating(
            self._core, self._lifecycle, protection, cause, self._created, there, variants
        )
        attempt = _Attempt(purpose, listeners)
        self._creating[protection.slot] = attempt
        peer = self._core.peer(protection.peer)
        path = Path(protection.local, protection.remote)
        attempt.exchange = self._initiator.begin(purpose, peer, path, now)

    def _created(self, creating: Creating, result: SaPair | str, now: float) -> None:
        pair, reason = (None, result) if isinstance(result, str) else (result, "")
        protection = creating.protection
        attempt = self._creating.pop(protection.slot)
        if pair is None and creating.variants and not self._core.closing:
            # The peer will not have this; the policy allows to ask for less (RFC 4430 §3.2).
            left = creating.variants
            self._begin(protection, now, creating.cause, attempt.listeners, left)
            return
        outcome = _outcome(attempt, pair)
        replaced = creating.replaces if pair is not None and pair is not creating.superseded else ()
        self._reconciler.ended(protection.slot, replaced, now)
        self._rekeying.ended(protection.slot, made=pair is not None, now=now)
        self._acquires.ended(protection.slot, outcome, now)
        if pair is None:
            self._enforcing.failed(protection.slot, now)
        self._crossings.created(protection.slot, pair if creating.superseded is None else None, now)
        if pair is not None and creating.superseded is None:
            # Make before break: what is in flight on the old pair still arrives (RFC 4430 §3.6).
            grace = self._core.peer(protection.peer).round_trip.grace()
            for old in creating.replaces:
                self._delete_old(old, now + grace, creating)
        for ended in attempt.listeners:
            ended(pair, reason, now)

    def _established(self, pair: SaPair, now: float) -> None:
        """The peer was faster: traffic that waits for a ticket of ours need wait no more."""
        attempt = self._creating.get(pair.slot)
        if attempt is None or attempt.exchange is None:
            return
        purpose, exchange = attempt.purpose, attempt.exchange
        wanted = purpose.protection.selector
        if purpose.cause == "acquire" and exchange.xid is None and pair.selector.covers(wanted):
            purpose.superseded = pair
            self._initiator.cancel(exchange, "the peer was faster", now)

    def _give_way(self, slot: Slot, now: float) -> bool:
        attempt = self._creating.get(slot)
        if attempt is None or attempt.exchange is None:
            return False
        if attempt.purpose.cause != "acquire" or attempt.listeners:
            return False  # somebody else waits for it, too
        self._initiator.cancel(attempt.exchange, GAVE_WAY, now)
        return True

    def _delete_old(self, pair: SaPair, when: float, successor: Creating) -> None:
        def delete(now: float) -> None:
            later = successor.responder_is_done(now)
            if now < later and self._core.pairs.holds(pair):
                self._delete_old(pair, later, successor)
            elif self._core.pairs.holds(pair):
                self._lifecycle.delete([pair], now)
            elif pair in self._responder.half_open.pairs_in_slot(pair.slot):
                self._delete_old(pair, now + FIRST_TIMEOUT, successor)  # its ACK may yet come

        self._core.timers.at(when, delete)


def _outcome(attempt: _Attempt, pair: SaPair | None) -> Outcome:
    exchange = attempt.exchange
    if pair is not None:
        return Outcome.MADE
    if exchange is None or exchange.ticket is None:
        return Outcome.UNSENT
    if not exchange.sent_at:
        return Outcome.REFUSED  # by our own kernel, say
    return Outcome.REFUSED if exchange.answered else Outcome.UNANSWERED


def _is_weaker(pair: SaPair, before: HostPolicy, policy: HostPolicy) -> bool:
    """Whether a pair that may stay may have been made with less than the policy wants now."""
    old, new = before.acquired(*pair.slot), policy.acquired(*pair.slot)
    if old is None or new is None or not is_wanted(pair, policy):
        return False
    return (old.profile.groups, old.profile.esn) != (
        new.profile.groups,
        new.profile.esn,
    ) or new.profile.lifetime.seconds < old.profile.lifetime.seconds
