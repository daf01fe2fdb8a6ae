"""When to ask whether a peer is alive (RFC 4430 §3.7): packets go out to it, and none come in.

The kernel tells nobody that a peer has lost an SA: what is sent on it vanishes. So, as long as
there are pairs, the packet counters of their SAs are looked at. Where they grow one way only from
one look to the next and to the one after, a STATUS is sent. Without such traffic nothing is ever
sent: this is no keepalive.

What is concluded, and what is not:

- The REPLY carries another EPOCH: the pairs are void (``Lifecycle.epoch_proven``).
- The REPLY carries the same EPOCH, and still nothing comes in: the peer lives and may have lost
  single SAs. A CREATE replaces the pair, once; there are flows that nobody answers.
- There is no REPLY: people are told, once. The pairs stay, and packets go nowhere but into them.
  The next question waits twice as long as the last.

ICMP is not listened to: anyone can send it, and the counters say as much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from kinkd.errors import KernelError
from kinkd.exchange.core import Core, Peer
from kinkd.exchange.effects import Level, Path
from kinkd.exchange.lifecycle import Probing
from kinkd.exchange.machine import Initiator
from kinkd.exchange.pairs import SaPair
from kinkd.kernel.port import SaId
from kinkd.model import Host, Slot

LOOK_SECONDS = 5.0
"""From one look at a pair to the next."""
SLICE = 64
"""Address pairs that are looked at in one go: some milliseconds of system calls."""
SLICE_SECONDS = 0.2
"""From one slice to the next. Where pairs are so many that a round takes longer, it does."""
LONGEST_WAIT = 600.0
"""Seconds to which the time between two questions grows while nothing comes in."""
ASKED_AT_ONCE = 16
"""Hosts that are asked at the same time: where our own link is down, all are silent."""


@dataclass(slots=True)
class _Traffic:
    """What was seen of one slot, by its pairs' counters."""

    counts: dict[SaId, int] = field(default_factory=dict)
    silent_since: float | None = None
    next_step: float = 0.0
    wait: float = LOOK_SECONDS
    renewed: bool = False

    def heard(self) -> None:
        """Something came in: there is nothing to suspect, and all may begin anew."""
        self.silent_since, self.renewed = None, False
        self.next_step, self.wait = 0.0, LOOK_SECONDS


class Suspicion:
    """The one who looks at counters, and asks.

    Args:
        renew: begins a CREATE that replaces a pair.
        vanished: told of an SA that is not in the kernel.
    """

    def __init__(
        self,
        core: Core,
        initiator: Initiator,
        renew: Callable[[SaPair, str, float], None],
        vanished: Callable[[SaId, float], None],
    ) -> None:
        self._core = core
        self._initiator = initiator
        self._renew = renew
        self._vanished = vanished
        self._looking = False
        self._round: deque[Slot] = deque()
        self._round_began = 0.0
        self._traffic: dict[Slot, _Traffic] = {}
        self._pairs: dict[Slot, list[SaPair]] = {}
        self._asked: set[str] = set()
        self._to_ask: dict[str, tuple[Host, Path]] = {}  # first come, first asked
        self._alive: dict[str, float] = {}  # when a host last answered us
        self._silent: set[str] = set()

    def watch(self, now: float) -> None:
        """Look at the counters from now on, until there are no pairs."""
        if not self._looking and len(self._core.pairs):
            self._looking = True
            self._core.timers.at(now + LOOK_SECONDS, self._look)

    def _look(self, now: float) -> None:
        if not self._round:
            self._begin_round(now)
        try:
            for _ in range(min(SLICE, len(self._round))):
                self._examine(self._round.popleft(), now)
        except KernelError as error:
            self._core.kernel_refused(error)
            self._round.clear()  # said once, not of every pair
        if self._round:
            self._core.timers.at(now + SLICE_SECONDS, self._look)
        elif self._traffic:
            when = max(self._round_began + LOOK_SECONDS, now + SLICE_SECONDS)
            self._core.timers.at(when, self._look)
        else:
            self._looking = False

    def _begin_round(self, now: float) -> None:
        self._pairs = {}
        for pair in self._core.pairs:
            self._pairs.setdefault(pair.slot, []).append(pair)
        self._traffic = {slot: self._traffic.get(slot, _Traffic()) for slot in self._pairs}
        self._round = deque(self._pairs)
        self._round_began = now

    def _examine(self, slot: Slot, now: float) -> None:
        traffic, pairs = self._traffic[slot], self._pairs[slot]
        outbound = self._packets((sa for pair in pairs for sa in pair.outbound), now)
        inbound = self._packets((sa for pair in pairs for sa in pair.inbound), now)
        before, traffic.counts = traffic.counts, outbound | inbound
        if not before:
            return  # what an earlier life of the daemon counted says nothing of now
        if _grown(before, inbound):
            traffic.heard()
            self._heard(pairs[-1].host)
        elif _grown(before, outbound):
            if traffic.silent_since is None:
                traffic.silent_since = now
            elif now >= traffic.next_step:
                self._act(traffic, pairs[-1], now)

    def _packets(self, sas: Iterable[SaId], now: float) -> dict[SaId, int]:
        counts: dict[SaId, int] = {}
        for sa in sas:
            state = self._core.kernel.state(sa)
            counts[sa] = 0 if state is None else state.packets
            if state is None:
                self._vanished(sa, now)
        return counts

    def _act(self, traffic: _Traffic, pair: SaPair, now: float) -> None:
        core = self._core
        host = core.policy.host_by_name(pair.host)
        if core.closing or host is None or traffic.silent_since is None:
            return
        alive = self._alive.get(host.name, float("-inf")) > traffic.silent_since
        if alive and not traffic.renewed:
            traffic.renewed = True
            core.counters["one-way"] += 1
            core.report(
                Level.WARNING, "one-way", peer=host.name, local=pair.local, remote=pair.remote
            )
            self._renew(pair, "one-way", now)
        elif host.name not in self._asked:
            self._to_ask.setdefault(host.name, (host, Path(pair.local, pair.remote)))
            self._ask(now)
        traffic.next_step = now + traffic.wait
        traffic.wait = min(2 * traffic.wait, LONGEST_WAIT)

    def _ask(self, now: float) -> None:
        while self._to_ask and len(self._asked) < ASKED_AT_ONCE:
            name = next(iter(self._to_ask))
            host, path = self._to_ask.pop(name)
            if self._core.policy.host_by_name(name) is None:
                continue
            self._asked.add(name)
            self._core.counters["status.asked"] += 1
            probing = Probing(partial(self._answered, name))
            self._initiator.begin(probing, self._core.peer(host), path, now)

    def _answered(self, name: str, _: Peer, alive: bool, now: float) -> None:
        """A STATUS has ended; or, when it had, its REPLY came after all."""
        self._asked.discard(name)
        if alive:
            self._alive[name] = now
            self._heard(name)
        elif name not in self._silent:
            self._silent.add(name)
            self._core.counters["peer-silent"] += 1
            sas = len(self._core.pairs.of_host(name))
            self._core.report(Level.WARNING, "peer-silent", peer=name, sas=sas)
        if self._to_ask:  # whoever waits for this one's place
            self._core.timers.at(now, self._ask)

    def _heard(self, name: str) -> None:
        self._to_ask.pop(name, None)
        if name in self._silent:
            self._silent.discard(name)
            self._core.report(Level.INFO, "peer-heard", peer=name)


def _grown(before: dict[SaId, int], now: dict[SaId, int]) -> bool:
    return any(packets > before.get(sa, 0) for sa, packets in now.items())
