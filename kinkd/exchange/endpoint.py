"""The core's front: datagrams, kernel events, tickets and wishes go in, commands come out.

The endpoint never waits and never reads a clock. Every call carries ``now``, seconds of one
monotonic clock; ``set_posix`` says how far POSIX time is from it. After each call take
``commands()`` and carry them out in order, and ask ``next_timer()`` when to call ``tick``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kinkd.errors import KernelError, LocalError, PeerError, TicketUnavailable
from kinkd.exchange.core import Core, Peer, Start
from kinkd.exchange.creating import Creating, Variant
from kinkd.exchange.crossing import Crossings
from kinkd.exchange.effects import Command, Level, Path, RecordDebt
from kinkd.exchange.granting import Granting
from kinkd.exchange.lifecycle import Lifecycle, by_path
from kinkd.exchange.machine import Exchange, Initiator
from kinkd.exchange.pairs import CommandId, PairTable, Role, SaPair
from kinkd.exchange.responder import Responder
from kinkd.exchange.suspicion import Suspicion
from kinkd.exchange.timing import FIRST_TIMEOUT
from kinkd.kerberos.port import Acceptor, Tgt, Ticket
from kinkd.kernel.port import Acquire, Expire, Kernel, KernelEvent, Overrun, SaId
from kinkd.model import Host, IPAddress, Principal, Protection, Slot
from kinkd.policy.match import HostPolicy
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType

CONCURRENT_COMMANDS = 1024
"""Commands of ours under way at once; what comes above waits for the kernel's next acquire."""

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
        self._suspicion = Suspicion(self._core, self._initiator, self._renew)

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
        adopted = list(pairs)
        for pair in adopted:
            self._core.pairs.add(pair)
        for slot in {pair.slot for pair in adopted}:
            self._crossings.adopted(self._core.pairs.in_slot(slot), now)
        self._suspicion.watch(now)

    def recall(self, commands: Iterable[tuple[str, CommandId]], now: float) -> None:
        """Know again the CREATEs, by host, whose pairs an earlier life gave up."""
        for name, command in commands:
            host = self._core.policy.host_by_name(name)
            if host is not None:
                self._core.peer(host).remember(command, None, now)

    def recall_debts(self, debts: Iterable[RecordDebt], now: float) -> None:
        """Take up what peers owed to an earlier life (RFC 4430 §3.3)."""
        for debt in debts:
            host = self._core.policy.host_by_name(debt.host)
            if host is not None:
                spis = ((debt.protocol, debt.spi),)
                left = debt.until - self._core.posix(now)
                self._lifecycle.disown(self._core.peer(host), debt.path, spis, now, seconds=left)

    def disown(self, pairs: Iterable[SaPair], now: float) -> None:
        """Tell peers of pairs that did not survive on our side (RFC 4430 §3.3)."""
        self._lifecycle.disown_pairs(pairs, now)

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
                self._acquired(event, now)
            case Expire(hard=True):
                self._lifecycle.expired(event.id, now)
            case Expire():
                self._soft_expired(event, now)
            case Overrun():
                self._core.counters["kernel-overrun"] += 1
                self._read_kernel_again(now)

    def start(self, now: float) -> None:
        """Begin what needs no cause: have a TGT at hand where the policy gives it to peers."""
        self._giving.start(now)

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

    def stop_creating(self, now: float) -> None:
        """From now on no SA is made, and what is under way ends."""
        self._core.closing = True
        self._responder.half_open.give_up_all(now)
        for attempt in list(self._creating.values()):
            if attempt.exchange is not None:
                self._initiator.cancel(attempt.exchange, "this daemon is leaving", now)

    # How it is done.

    def _acquired(self, event: Acquire, now: float) -> None:
        core = self._core
        core.counters["acquired"] += 1
        if core.closing:
            return
        protection = core.policy.acquired(event.source, event.destination, event.reqid)
        if protection is None:
            core.counters["acquire-foreign"] += 1  # a policy that is not ours
            return
        if self._responder.half_open.awaits(protection.slot, event.flow):
            core.counters["acquire-joined"] += 1  # the ACK of the peer's CREATE will do
            return
        if self._is_answered(protection, event):
            core.counters["acquire-stale"] += 1  # an SA came while the event waited to be read
            return
        if len(self._initiator) >= CONCURRENT_COMMANDS:
            core.counters["acquire-deferred"] += 1
            return
        self._create(protection, now, "acquire")

    def _is_answered(self, protection: Protection, event: Acquire) -> bool:
        """Whether the kernel has by now what it asked for."""
        core = self._core
        try:
            return any(
                pair.selector.covers(event.flow)
                and all(core.kernel.state(sa) is not None for sa in pair.outbound)
                for pair in core.pairs.in_slot(protection.slot)
            )
        except KernelError as error:
            core.kernel_refused(error)
            return False

    def _read_kernel_again(self, now: float) -> None:
        """Events were lost: SAs that are gone went without our being told."""
        core = self._core
        try:
            present = {_name(state.id) for state in core.kernel.states()}
        except KernelError as error:
            core.kernel_refused(error)
            return
        for pair in core.pairs:
            for sa in (*pair.inbound, *pair.outbound):
                if _name(sa) not in present:
                    self._lifecycle.expired(sa, now)

    def _soft_expired(self, event: Expire, now: float) -> None:
        core = self._core
        pair = core.pairs.by_sa(event.id)
        if (
            core.closing
            or pair is None
            or pair.role is not Role.INITIATOR
            or event.id not in pair.outbound
            or core.pairs.for_the_same(pair)[-1] is not pair  # replaced already
        ):
            return
        self._renew(pair, "rekey", now)

    def _renew(self, pair: SaPair, cause: str, now: float) -> None:
        protection = self._core.policy.acquired(*pair.slot)
        if protection is not None:
            self._create(protection, now, cause)

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
        self._crossings.created(protection.slot, pair if creating.superseded is None else None, now)
        if pair is not None and creating.superseded is None:
            # Make before break: what is in flight on the old pair still arrives (RFC 4430 §3.6).
            grace = self._core.peer(protection.peer).round_trip.grace()
            for old in creating.replaces:
                self._delete_old(old, now + grace)
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

    def _delete_old(self, pair: SaPair, when: float) -> None:
        def delete(now: float) -> None:
            if self._core.pairs.holds(pair):
                self._lifecycle.delete([pair], now)
            elif pair in self._responder.half_open.pairs_in_slot(pair.slot):
                self._delete_old(pair, now + FIRST_TIMEOUT)  # its ACK may yet come

        self._core.timers.at(when, delete)


def _name(sa: SaId) -> tuple[IPAddress, int, int]:
    """What is unique of an SA; its source is not."""
    return (sa.destination, sa.protocol, sa.spi)
