"""What the kernel has, against what it should have.

Anybody with the right to can delete SAs and SPD entries under a daemon that believes in them, and
events can be lost. So all of it is compared: when the daemon starts, when the kernel says that
somebody deleted something or that events were lost (ENOBUFS), and every ``ROUND_SECONDS``.

- An SPD entry that is missing or another is written again: under ``require`` nothing else keeps
  clear text in. One of ours that nobody wants is removed.
- A pair that lost an SA before its time is replaced, first made and then broken, as at a rekey.
  Where that fails what is left of it goes, and the peer is told.
- An SA in our block of reqids that belongs to no pair, and is too old to be of one that is being
  made or deleted, is removed, and its peer is told.
- A soft limit that was told to nobody, and an acquire, are taken up as if they came now.

Nothing that is not in our block of reqids or in our band of priorities is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kinkd.errors import KernelError
from kinkd.exchange.acquires import Acquires
from kinkd.exchange.core import Core
from kinkd.exchange.effects import Level
from kinkd.exchange.lifecycle import Lifecycle
from kinkd.exchange.pairs import SaPair
from kinkd.exchange.rekeying import Rekeying
from kinkd.exchange.timing import Pacer, Timer
from kinkd.kernel.port import Acquire, SaId, SaName, SaState
from kinkd.model import Slot

ROUND_SECONDS = 60.0
PAUSE_FOR_EACH = 0.0002
"""Seconds between two looks for each SA: a look shall not take a larger part of the time."""
SHORTEST_PAUSE = 0.1
"""Seconds between two looks, however often the kernel says that something went."""
UNCLAIMED_SECONDS = 180.0
"""After so long an SA belongs to no CREATE that is under way any more."""

Disown = Callable[[Iterable[SaId], float], None]
"""Tell the peers of SAs that nothing is known of."""


@dataclass(slots=True)
class _Found:
    """What the kernel has of ours."""

    states: dict[SaName, SaState]
    acquires: list[Acquire]


class Reconciler:
    """The one who looks at all that is in the kernel.

    Args:
        disown: tells the peers of SAs that belong to nothing.
    """

    def __init__(
        self,
        core: Core,
        lifecycle: Lifecycle,
        rekeying: Rekeying,
        acquires: Acquires,
        disown: Disown,
    ) -> None:
        self._core = core
        self._lifecycle = lifecycle
        self._rekeying = rekeying
        self._acquires = acquires
        self._disown = disown
        self._timer: Timer | None = None
        self._due = float("inf")
        self._looked = float("-inf")
        self._pause = SHORTEST_PAUSE
        self._in_the_way = ""
        self._unclaimed: dict[SaName, float] = {}  # since when
        self._pacer = Pacer()
        self._broken: dict[SaId, SaPair] = {}  # pairs whose replacement is under way

    def start(self, now: float) -> None:
        """Look now, and from now on."""
        self._look(now)

    def disturbed(self, now: float) -> None:
        """Something was deleted, or events were lost: look as soon as may be."""
        self._look_at(max(now, self._looked + self._pause))

    def deleted(self, sa: SaId, now: float) -> None:
        """Somebody deleted this SA; we did ourselves, mostly."""
        pair = self._core.pairs.by_sa(sa)
        if pair is None or self._core.closing:
            return
        try:
            if self._core.kernel.state(sa) is None:  # else it was made anew
                self._replace(pair, sa, now)
        except KernelError as error:
            self._core.kernel_refused(error)

    def _look_at(self, when: float) -> None:
        if when >= self._due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = when
        self._timer = self._core.timers.at(when, self._look)

    def _look(self, now: float) -> None:
        self._timer, self._due, self._looked = None, float("inf"), now
        if self._core.closing:
            return
        self._core.counters["reconciled"] += 1
        try:
            self._check_policies()
            found = self._read_states()
            self._check_pairs(found, now)
            self._remove_unclaimed(found, now)
        except KernelError as error:
            self._core.kernel_refused(error)
        else:
            self._rekeying.overdue(self._of_pairs(found), now)
            for acquire in found.acquires:
                self._acquires.found(acquire, now)
        self._look_at(now + ROUND_SECONDS)

    def _check_policies(self) -> None:
        core = self._core
        found = core.restore_policy()
        if found.fault and found.fault != self._in_the_way:  # said once
            core.report(Level.ERROR, "policy-in-the-way", reason=found.fault)
        self._in_the_way = found.fault
        if changes := len(found.steps):
            core.counters["reconcile.policies"] += changes
            core.report(Level.WARNING, "policies-restored", changes=changes)

    def _read_states(self) -> _Found:
        found = _Found({}, [])
        there = self._core.kernel.states()
        self._pause = max(SHORTEST_PAUSE, PAUSE_FOR_EACH * len(there))
        for state in there:
            if state.reqid not in self._core.ownership.reqids:
                continue
            if not state.larval:
                found.states[state.id.name] = state
            elif not state.id.spi:
                found.acquires.append(_acquire_of(state))
        return found

    def _of_pairs(self, found: _Found) -> dict[SaId, SaState]:
        return {
            sa: found.states[sa.name]
            for pair in self._core.pairs
            for sa in pair.both_ways
            if sa.name in found.states
        }

    def _check_pairs(self, found: _Found, now: float) -> None:
        for pair in self._core.pairs:
            gone = (sa for sa in pair.both_ways if sa.name not in found.states)
            if (sa := next(gone, None)) is not None:
                self._replace(pair, sa, now)

    def _replace(self, pair: SaPair, sa: SaId, now: float) -> None:
        core = self._core
        if pair.inbound[0] in self._broken:
            return
        ended = pair.born + pair.lifetime.seconds <= now + 1
        if ended or not core.pairs.is_latest(pair) or self._pacer.wait(pair.slot, now) > 0:
            self._lifecycle.expired(sa, now)
            return
        self._pacer.done(pair.slot, now)
        self._broken[pair.inbound[0]] = pair
        core.counters["reconcile.sas"] += 1
        core.report(Level.WARNING, "sa-vanished", peer=pair.host, spi=f"{sa.spi:#010x}")
        self._rekeying.renew_in_turn(pair, "vanished", now)

    def ended(self, slot: Slot, replaced: Iterable[SaPair], now: float) -> None:
        """A CREATE has ended: what it has not replaced of what is broken is of no more use."""
        for broken in [pair for pair in self._broken.values() if pair.slot == slot]:
            del self._broken[broken.inbound[0]]
            if broken not in replaced and self._core.pairs.holds(broken):
                self._lifecycle.end([broken], now)

    def _remove_unclaimed(self, found: _Found, now: float) -> None:
        core = self._core
        claimed = {sa.name for pair in core.pairs for sa in pair.both_ways}
        claimed.update(sa.name for sa in self._lifecycle.leaving)
        # Not by the age that the kernel tells: a clock may have been set.
        self._unclaimed = {
            name: self._unclaimed.get(name, now) for name in found.states if name not in claimed
        }
        unclaimed = [
            found.states[name].id
            for name, since in self._unclaimed.items()
            if now - since >= UNCLAIMED_SECONDS
        ]
        for sa in unclaimed:
            core.kernel.remove(sa)
            core.counters["reconcile.unclaimed"] += 1
            core.report(Level.WARNING, "sa-unclaimed", spi=f"{sa.spi:#010x}", remote=sa.source)
        self._disown(unclaimed, now)


def _acquire_of(larval: SaState) -> Acquire:
    """The question that a larval state stands for."""
    sa = larval.id
    return Acquire(
        source=sa.source,
        destination=sa.destination,
        protocol=sa.protocol,
        mode=larval.mode,
        reqid=larval.reqid,
        policy_index=0,
        sequence=larval.sequence,
        flow=larval.selector,
    )
