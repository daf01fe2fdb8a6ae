"""What the kernel waits for: traffic that met an SPD entry and no SA.

The kernel asks once for each pair of addresses and leaves a larval state behind, which keeps it
from asking again for half a minute (net.core.xfrm_acq_expires). Whatever becomes of the question
must therefore end in an SA, or in the larval state's removal once it makes sense to be asked again.

- One CREATE for each slot: what asks for the same joins it.
- A peer that does not answer rests: between two addresses nothing is begun for seconds that double
  with each failure, up to ``LONGEST_REST``, with jitter. So does what one slot is for, where the
  peer refuses, or where SAs are made and go again and again. When the rest is over the larval state
  is removed: traffic that is still there asks again. Whoever did not answer and is then heard need
  not wait for that. Where there is no ticket, the KDC has its own pauses, and the rest is short.
- There are ``PLACES`` for CREATEs to peers that never answered, and ``PLACES_OF_PATH`` of them
  between two addresses. What finds none waits in a queue that is bounded, too; the latest is served
  first, and may have the place of one that got no answer for ``GIVE_WAY`` seconds. What the queue
  does not hold is left to the kernel, which asks again. So a thousand dead peers cost a live one
  seconds at most, and one that was heard before waits for none of them.
"""

from __future__ import annotations

import enum
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from kinkd.errors import KernelError
from kinkd.exchange.core import Core, Peer
from kinkd.exchange.effects import Path
from kinkd.exchange.timing import Pacer, Timer, back_off
from kinkd.kernel.port import Acquire
from kinkd.model import IPAddress, Protection, Selector, Slot

PLACES = 512
"""CREATEs under way at once to peers that have not answered yet."""
PLACES_OF_PATH = 16
"""Of these between two addresses: many networks may lie behind a gateway that is down."""
TICKETS_AWAITED = 64
"""Peers of one realm for whose tickets its KDC is asked at once, on behalf of such CREATEs."""
QUEUE = 4096
"""What waits for one of the places."""
GIVE_WAY = 2.0
"""Seconds without an answer after which a place is another's who waits for it."""
LONGEST_REST = 60.0
REST_WITHOUT_TICKET = 2.0
_SWEEP = 0.25  # seconds between two looks at who must give way
_FORGET = 600.0  # seconds after a rest in which nothing asked


class Outcome(enum.Enum):
    """How a CREATE ended."""

    MADE = enum.auto()
    REFUSED = enum.auto()
    UNANSWERED = enum.auto()
    UNSENT = enum.auto()  # there was no ticket


@dataclass(slots=True, eq=False)
class _Rest:
    """What was not to be had: anything between two addresses, or what one slot is for."""

    of: Path | Slot
    failures: int = 0
    until: float = float("-inf")
    is_over: bool = True
    wants: dict[Slot, Acquire] = field(default_factory=dict)
    timer: Timer | None = None


class Acquires:
    """The one who decides which of the kernel's questions make a CREATE, and when.

    Args:
        create: begins a CREATE for a protection, or joins the one of its slot.
        cancel: ends the CREATE of a slot, if it may; ``ended`` is then told.
        is_fetching: whether the KDC is being asked for a peer's ticket.
        half_open: whether an SA for this traffic only waits for the peer's ACK.
    """

    def __init__(
        self,
        core: Core,
        *,
        create: Callable[[Protection, float], None],
        cancel: Callable[[Slot, float], bool],
        is_fetching: Callable[[Peer], bool],
        half_open: Callable[[Slot, Selector], bool],
    ) -> None:
        self._core = core
        self._create = create
        self._cancel = cancel
        self._is_fetching = is_fetching
        self._half_open = half_open
        self._asked: dict[Slot, Acquire] = {}  # the latest question, of each CREATE under way
        self._strangers: OrderedDict[Slot, float] = OrderedDict()  # those in PLACES, since when
        self._of_path: Counter[Path] = Counter()
        self._queue: OrderedDict[Slot, Acquire] = OrderedDict()
        self._rests: dict[Path | Slot, _Rest] = {}
        self._silent: dict[IPAddress, dict[Path, _Rest]] = {}  # those of paths, by the far end
        self._sweeping = self._serving = False
        self._asked_for: dict[str, set[Peer]] = {}  # by realm: whose tickets, not long ago
        self._counted: dict[str, float] = {}  # when that was last looked at
        self._pacer = Pacer()
        core.hearers.append(self.heard)

    def __len__(self) -> int:
        """How many questions are remembered."""
        resting = sum(len(rest.wants) for rest in self._rests.values())
        return len(self._asked) + len(self._queue) + resting

    def asked(self, acquire: Acquire, now: float) -> None:
        """The kernel asks; or is found to have asked."""
        core = self._core
        core.counters["acquired"] += 1
        if core.closing:
            return
        protection = core.policy.acquired(acquire.source, acquire.destination, acquire.reqid)
        if protection is None:
            core.counters["acquire-foreign"] += 1  # a policy that is not ours
        elif self._half_open(protection.slot, acquire.flow):
            core.counters["acquire-joined"] += 1  # the ACK of the peer's CREATE will do
        elif self._is_answered(protection, acquire):
            core.counters["acquire-stale"] += 1  # an SA came while the event waited to be read
        elif protection.slot in self._asked:
            core.counters["acquire-joined"] += 1
            self._asked[protection.slot] = acquire
            self._create(protection, now)
        else:
            self._consider(protection, acquire, now)

    def found(self, acquire: Acquire, now: float) -> None:
        """A larval state stands in the kernel: the question may have been asked of nobody."""
        slot = (acquire.source, acquire.destination, acquire.reqid)
        rests = [rest for of in (Path(*slot[:2]), slot) if (rest := self._rests.get(of))]
        known = slot in self._asked or slot in self._queue
        if not known and not any(slot in rest.wants for rest in rests):
            self.asked(acquire, now)

    def ended(self, slot: Slot, outcome: Outcome, now: float) -> None:
        """A CREATE has ended, whatever its cause was."""
        path = Path(slot[0], slot[1])
        asked = self._asked.pop(slot, None)
        self._strangers.pop(slot, None)
        if asked is not None:
            self._of_path[path] -= 1
            if not self._of_path[path]:
                del self._of_path[path]
        if outcome is Outcome.MADE:
            if path in self._rests:  # there may be questions about other traffic between the two
                self._wake(self._rests[path], now)
            self._forget(path)
            self._forget(slot)
        elif asked is not None:
            self._rest(path, slot, asked, outcome, now)
        self._serve(now)

    def is_asking(self, slot: Slot) -> bool:
        """Whether a CREATE that traffic waits for is under way."""
        return slot in self._asked

    def heard(self, peer: Peer, now: float) -> None:
        """A verified message of a peer came: who was silent may be asked again."""
        for address in peer.host.addresses:
            for rest in list(self._silent.get(address, {}).values()):
                if rest.until > now:
                    self._wake(rest, now)

    def wake(self, now: float, local: IPAddress | None = None) -> None:
        """Something is better than it was: a link is up, the policy another. All may ask again."""
        for asked_for in self._asked_for.values():
            asked_for -= {peer for peer in asked_for if not self._is_fetching(peer)}
        for rest in list(self._rests.values()):
            its = rest.of.local if isinstance(rest.of, Path) else rest.of[0]
            if rest.until > now and local in (None, its):
                self._wake(rest, now)

    def _consider(self, protection: Protection, acquire: Acquire, now: float) -> None:
        core, slot = self._core, protection.slot
        path = Path(protection.local, protection.remote)
        rests = [rest for of in (path, slot) if (rest := self._rests.get(of))]
        if resting := [rest for rest in rests if now < rest.until]:
            core.counters["acquire-rests"] += 1
            resting[0].wants[slot] = acquire
        elif (wait := self._pacer.wait(slot, now)) > 0:
            self._let_rest(slot, slot, acquire, now + wait)
        elif self._has_place(path, core.peer(protection.peer), now):
            self._pacer.done(slot, now)
            self._begin(protection, acquire, now)
        else:
            core.counters["acquire-queued"] += 1
            self._queue[slot] = acquire
            self._queue.move_to_end(slot)
            if len(self._queue) > QUEUE:
                self._queue.popitem(last=False)  # the kernel asks again
                core.counters["acquire-deferred"] += 1
            self._sweep_later(now)

    def _has_place(self, path: Path, peer: Peer, now: float) -> bool:
        if self._of_path[path] >= PLACES_OF_PATH:
            return False
        if self._is_known(path, peer):
            return True
        return len(self._strangers) < PLACES and (
            peer.ticket is not None or self._may_ask_kdc_for(peer, now)
        )

    def _is_known(self, path: Path, peer: Peer) -> bool:
        """Whether a peer was heard, and has not failed to answer since."""
        return peer.round_trip.smoothed is not None and path not in self._rests

    def _may_ask_kdc_for(self, peer: Peer, now: float) -> bool:
        """A KDC that is slow, or away, is not asked for more than it can answer."""
        realm = peer.host.service.realm
        asked_for = self._asked_for.get(realm, set())
        if peer in asked_for or len(asked_for) < TICKETS_AWAITED:
            return True
        if now >= self._counted.get(realm, float("-inf")) + _SWEEP:
            self._counted[realm] = now
            asked_for -= {each for each in asked_for if not self._is_fetching(each)}
        return len(asked_for) < TICKETS_AWAITED

    def _ask_kdc_for(self, peer: Peer) -> None:
        if peer.ticket is None:
            self._asked_for.setdefault(peer.host.service.realm, set()).add(peer)

    def _begin(self, protection: Protection, acquire: Acquire, now: float) -> None:
        slot, path = protection.slot, Path(protection.local, protection.remote)
        peer = self._core.peer(protection.peer)
        self._of_path[path] += 1
        if not self._is_known(path, peer):
            self._strangers[slot] = now
            self._ask_kdc_for(peer)
        self._asked[slot] = acquire
        self._create(protection, now)

    def _is_answered(self, protection: Protection, acquire: Acquire) -> bool:
        """Whether the kernel has by now what it asked for."""
        core = self._core
        try:
            return any(
                pair.selector.covers(acquire.flow)
                and all(core.kernel.state(sa) is not None for sa in pair.outbound)
                for pair in core.pairs.in_slot(protection.slot)
            )
        except KernelError as error:
            core.kernel_refused(error)
            return False

    # --- who rests ---

    def _rest(self, path: Path, slot: Slot, asked: Acquire, outcome: Outcome, now: float) -> None:
        of = slot if outcome is Outcome.REFUSED else path
        failures = self._rests[of].failures if of in self._rests else 0
        longest = REST_WITHOUT_TICKET if outcome is Outcome.UNSENT else LONGEST_REST
        until = now + back_off(failures + 1, longest, self._core.random)
        rest = self._let_rest(of, slot, asked, until)
        if rest.until == until:  # of many at once the first counts
            rest.failures += 1

    def _let_rest(self, of: Path | Slot, slot: Slot, asked: Acquire, until: float) -> _Rest:
        rest = self._rests.setdefault(of, _Rest(of))
        rest.wants[slot] = asked
        if isinstance(of, Path):
            self._silent.setdefault(of.remote, {})[of] = rest
        if rest.is_over:
            rest.until, rest.is_over = until, False
            self._set_timer(rest, rest.until, lambda then: self._wake(rest, then))
        return rest

    def _wake(self, rest: _Rest, now: float) -> None:
        """Have traffic that is still there ask again, and forget a peer that nobody asks for."""
        rest.until, rest.is_over = now, True
        wants, rest.wants = rest.wants, {}
        for acquire in wants.values():
            try:
                self._core.kernel.clear_acquire(acquire)
            except KernelError as error:
                self._core.kernel_refused(error)
        self._set_timer(rest, now + _FORGET, lambda _: self._forget(rest.of))

    def _forget(self, of: Path | Slot) -> None:
        rest = self._rests.pop(of, None)
        if rest is None:
            return
        if rest.timer is not None:
            rest.timer.cancel()
        if isinstance(of, Path):
            of_remote = self._silent[of.remote]
            del of_remote[of]
            if not of_remote:
                del self._silent[of.remote]

    def _set_timer(self, rest: _Rest, when: float, action: Callable[[float], None]) -> None:
        if rest.timer is not None:
            rest.timer.cancel()
        rest.timer = self._core.timers.at(when, action)

    # --- who waits for a place ---

    def _serve(self, now: float) -> None:
        """Give places to those that wait, the latest first."""
        if self._serving:  # a CREATE that fails at once has ended within this
            return
        self._serving = True
        try:
            for slot in list(reversed(self._queue)):
                if len(self._strangers) >= PLACES:
                    return
                protection = self._core.policy.acquired(*slot)
                if protection is None:
                    del self._queue[slot]
                elif self._has_place(Path(*slot[:2]), self._core.peer(protection.peer), now):
                    self.asked(self._queue.pop(slot), now)
        finally:
            self._serving = False

    def _sweep_later(self, now: float) -> None:
        if not self._sweeping:
            self._sweeping = True
            self._core.timers.at(now + _SWEEP, self._sweep)

    def _sweep(self, now: float) -> None:
        self._sweeping = False
        self._serving, wanted = True, len(self._queue)  # all of it is served at the end
        for slot, since in list(self._strangers.items()):
            if not wanted or now - since < GIVE_WAY:
                break
            wanted -= self._cancel(slot, now)
        self._serving = False
        self._serve(now)
        if self._queue:
            self._sweep_later(now)
