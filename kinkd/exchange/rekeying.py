"""When a pair is replaced while it lives (RFC 4430 §3.6).

The initiator of a pair renews it at its soft limit, in seconds, octets or packets, whichever of its
SAs meets it first. The responder waits for a whole retransmission cycle after that, or for as long
as the octets last at the rate at which they go, and then, if the pair is still the one in use,
renews it itself. Whoever began and failed begins again, at growing intervals, for as long as the
pair lives.

The kernel tells a soft limit once, and only to who listens at that moment: ``overdue`` finds those
that were told to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kinkd.errors import KernelError
from kinkd.exchange.core import Core
from kinkd.exchange.pairs import Role, SaPair
from kinkd.exchange.timing import TRANSACTION_SECONDS, Paced, Timer, back_off
from kinkd.kernel.port import SaId, SaState
from kinkd.model import Protection, Slot

_AT_ONCE, _TURN_SECONDS = 64, 0.1  # so many renewals begin, and so long is the pause then
_LOOK_SECONDS = 0.5  # between two looks at what is left of a volume
_LOOKS_LEFT = 4  # so many more must there be at the present rate
LONGEST_PAUSE = 60.0
"""Seconds to which the time between two attempts grows."""

Create = Callable[[Protection, float, str], None]
"""Begin a CREATE, or join the one of its slot that is under way: protection, instant, cause."""


@dataclass(slots=True, eq=False)
class _Renewal:
    """A pair that is to be replaced."""

    pair: SaPair
    cause: str
    failures: int = 0
    timer: Timer | None = None


class Rekeying:
    """The one who has pairs replaced."""

    def __init__(self, core: Core, create: Create) -> None:
        self._core = core
        self._create = create
        self._paced = Paced(core.timers, rate=_AT_ONCE / _TURN_SECONDS, burst=_AT_ONCE)
        self._renewals: dict[Slot, dict[SaId, _Renewal]] = {}

    def soft_expired(self, sa: SaId, now: float) -> None:
        """A soft limit of an SA was met."""
        pair = self._core.pairs.by_sa(sa)
        if pair is None or not self._is_due(pair) or self._renewal(pair) is not None:
            return
        if pair.role is Role.INITIATOR:
            self.renew(pair, "rekey", now)
            return
        # Both ends were told of the same limit: the initiator has its cycle first.
        patience = min(TRANSACTION_SECONDS, self._seconds_left(pair, now) / 2)
        self._wait(self._add(pair, "takeover"), now + patience, None, now)

    def _wait(self, renewal: _Renewal, until: float, before: float | None, now: float) -> None:
        """Leave it to the initiator ``until`` then, or as long as the volume lasts.

        ``before`` is what was left of it a moment ago.
        """
        if renewal.pair.lifetime.kilobytes is None:
            renewal.timer = self._core.timers.at(until, lambda then: self._begin(renewal, then))
            return
        left = self._volume_left(renewal.pair)
        if now >= until or (before is not None and left < _LOOKS_LEFT * (before - left)):
            self._begin(renewal, now)
            return
        renewal.timer = self._core.timers.at(
            min(until, now + _LOOK_SECONDS), lambda then: self._wait(renewal, until, left, then)
        )

    def _volume_left(self, pair: SaPair) -> float:
        """Which part of its octets or packets the SA has left that has the least."""
        try:
            states = [self._core.kernel.state(sa) for sa in pair.both_ways]
        except KernelError as error:
            self._core.kernel_refused(error)
            return 0.0
        return min((_left(state) for state in states if state is not None), default=0.0)

    def overdue(self, states: Mapping[SaId, SaState], now: float) -> None:
        """Find soft limits that were met; ``states`` of the SAs of pairs, by their ids."""
        for sa, state in states.items():
            pair = self._core.pairs.by_sa(sa)
            if pair is not None and _is_soft(state, now - pair.born):
                self.soft_expired(sa, now)

    def renew(self, pair: SaPair, cause: str, now: float) -> None:
        """Have a pair replaced, now; ``cause`` is for people."""
        if self._is_due(pair):
            self._begin(self._renewal(pair) or self._add(pair, cause), now)

    def renew_in_turn(self, pair: SaPair, cause: str, now: float) -> None:
        """The same of one of many: at a rate that leaves time for all else."""
        self._paced.do(lambda then: self.renew(pair, cause, then), now)

    def ended(self, slot: Slot, *, made: bool, now: float) -> None:
        """A CREATE for a slot has ended."""
        for renewal in list(self._renewals.get(slot, {}).values()):
            if made or not self._is_due(renewal.pair):
                self._drop(renewal)
            elif renewal.timer is None:
                self._again(renewal, now)

    def _again(self, renewal: _Renewal, now: float) -> None:
        renewal.failures += 1
        pause = back_off(renewal.failures, LONGEST_PAUSE, self._core.random)
        wait = min(pause, max(1.0, self._seconds_left(renewal.pair, now) / 3))
        renewal.timer = self._core.timers.at(now + wait, lambda then: self._begin(renewal, then))

    def _begin(self, renewal: _Renewal, now: float) -> None:
        if renewal.timer is not None:
            renewal.timer.cancel()
            renewal.timer = None
        protection = self._core.policy.acquired(*renewal.pair.slot)
        if protection is None or not self._is_due(renewal.pair):
            self._drop(renewal)
            return
        if renewal.cause == "takeover":
            self._core.counters["rekey.taken-over"] += 1
        self._create(protection, now, renewal.cause)

    def _is_due(self, pair: SaPair) -> bool:
        """Whether it is still the pair in use."""
        return not self._core.closing and self._core.pairs.is_latest(pair)

    def _renewal(self, pair: SaPair) -> _Renewal | None:
        return self._renewals.get(pair.slot, {}).get(pair.inbound[0])

    def _add(self, pair: SaPair, cause: str) -> _Renewal:
        renewal = _Renewal(pair, cause)
        self._renewals.setdefault(pair.slot, {})[pair.inbound[0]] = renewal
        return renewal

    def _drop(self, renewal: _Renewal) -> None:
        if renewal.timer is not None:
            renewal.timer.cancel()
        slot = renewal.pair.slot
        of_slot = self._renewals.get(slot, {})
        of_slot.pop(renewal.pair.inbound[0], None)
        if not of_slot:
            self._renewals.pop(slot, None)

    def _seconds_left(self, pair: SaPair, now: float) -> float:
        return max(0.0, pair.born + pair.lifetime.seconds - now)


def _is_soft(state: SaState, age: float) -> bool:
    limits = state.limits
    return (
        (limits.soft_seconds is not None and age >= limits.soft_seconds)
        or (limits.soft_octets is not None and state.octets >= limits.soft_octets)
        or (limits.soft_packets is not None and state.packets >= limits.soft_packets)
    )


def _left(state: SaState) -> float:
    limits = state.limits
    counts = ((limits.hard_octets, state.octets), (limits.hard_packets, state.packets))
    return min((1 - count / limit for limit, count in counts if limit), default=1.0)
