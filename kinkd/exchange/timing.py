"""Time without a clock: timers, the retransmission timer of RFC 4430 §9, token buckets.

All instants are seconds of one monotonic clock that the caller owns.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

FIRST_TIMEOUT = 0.5
"""Seconds before the first retransmission to a host whose round trip is not known yet."""
SHORTEST_TIMEOUT = 0.1
LONGEST_TIMEOUT = 4.0
"""Where the exponential back-off is truncated, seconds (RFC 4430 §9): here, or at a round trip.

Where many packets are lost, long pauses between attempts are what makes the slowest slow."""
TRANSACTION_SECONDS = 30.0
"""A full retransmission cycle: after it an exchange has failed (T-retrans of RFC 4430 §3.6)."""


@dataclass(order=True, slots=True)
class Timer:
    """An entry of ``Timers``; ``cancel`` makes it a no-op."""

    when: float
    number: int
    action: Callable[[float], None] | None = field(compare=False)

    def cancel(self) -> None:
        """Forget the action, and all that it holds."""
        self.action = None


class Timers:
    """A queue of actions by time."""

    def __init__(self) -> None:
        self._queue: list[Timer] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """How many actions are due some time."""
        return sum(timer.action is not None for timer in self._queue)

    def at(self, when: float, action: Callable[[float], None]) -> Timer:
        """Call ``action(now)`` once ``when`` has come."""
        timer = Timer(when, next(self._numbers), action)
        heapq.heappush(self._queue, timer)
        return timer

    def next(self) -> float | None:
        """When ``run`` is due, or None."""
        while self._queue and self._queue[0].action is None:
            heapq.heappop(self._queue)
        return self._queue[0].when if self._queue else None

    def run(self, now: float) -> None:
        """Call everything that is due, in order."""
        while self._queue and self._queue[0].when <= now:
            timer = heapq.heappop(self._queue)
            action, timer.action = timer.action, None
            if action is not None:
                action(now)


class RoundTrip:
    """A host's round trip, smoothed as TCP does it (RFC 6298 §2), for the timer T of §9."""

    def __init__(self) -> None:
        self.smoothed: float | None = None
        self._variation = 0.0

    def sample(self, seconds: float) -> None:
        """Take one measurement: from an authenticator's sending to the AP-REP that echoes it."""
        if self.smoothed is None:
            self.smoothed, self._variation = seconds, seconds / 2
        else:
            self._variation += (abs(self.smoothed - seconds) - self._variation) / 4
            self.smoothed += (seconds - self.smoothed) / 8

    def timeout(self, attempt: int) -> float:
        """Seconds to wait after sending for the ``attempt``-th time (0, 1, ...)."""
        if self.smoothed is None:
            first = FIRST_TIMEOUT
        else:
            first = max(SHORTEST_TIMEOUT, self.smoothed + 4 * self._variation)
        return float(min(first * 2**attempt, max(first, LONGEST_TIMEOUT)))

    def grace(self) -> float:
        """Seconds that packets in flight are given before an SA goes (RFC 4430 §3.3)."""
        return max(1.0, 2 * (self.smoothed or 0.0))


def back_off(failures: int, longest: float, random: Callable[[int], bytes]) -> float:
    """Seconds to wait after so many failures: doubled each time, and no host like another."""
    jitter = 0.5 + int.from_bytes(random(4), "big") / (1 << 32)
    return float(min(longest, 2.0 ** min(failures - 1, 16)) * jitter)


class Paced:
    """Does things at a bounded rate, in order: many at once would keep all else waiting."""

    def __init__(self, timers: Timers, rate: float, burst: float) -> None:
        self._timers = timers
        self._bucket = TokenBucket(rate, burst)
        self._pause = burst / rate
        self._waiting: deque[Callable[[float], None]] = deque()
        self._timer: Timer | None = None

    def do(self, action: Callable[[float], None], now: float) -> None:
        """Call ``action(now)``, now or when it is its turn."""
        self._waiting.append(action)
        if self._timer is None:
            self._run(now)

    def _run(self, now: float) -> None:
        self._timer = None
        while self._waiting and self._bucket.take(now):
            self._waiting.popleft()(now)
        if self._waiting and self._timer is None:
            self._timer = self._timers.at(now + self._pause, self._run)


class Pacer:
    """How soon something may be done again that was done for a key a moment ago, and before that.

    ``_FREE`` times it may be done at once. Then each time takes twice as long as the last, up to
    ``_LONGEST`` seconds. After ``_CALM`` seconds without it all is as in the beginning.
    """

    _FREE, _LONGEST, _CALM = 5, 32.0, 60.0

    def __init__(self) -> None:
        self._done: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()

    def wait(self, key: Hashable, now: float) -> float:
        """Seconds until it may be done; 0 or less: now."""
        when, times = self._done.get(key, (now, 0))
        if times < self._FREE or now - when >= self._CALM:
            return 0.0
        return float(when + min(self._LONGEST, 2.0 ** (times - self._FREE))) - now

    def done(self, key: Hashable, now: float) -> None:
        """It is being done."""
        when, times = self._done.pop(key, (now, 0))
        self._done[key] = (now, times + 1 if now - when < self._CALM else 1)
        while self._done and now - next(iter(self._done.values()))[0] >= self._CALM:
            self._done.popitem(last=False)


class TokenBucket:
    """A bound on how often something is done: ``rate`` a second, bursts of ``burst``."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._last: float | None = None

    def has(self, now: float) -> bool:
        """Whether it may be done once more, now."""
        if self._last is not None:
            refill = max(0.0, now - self._last) * self._rate
            self._tokens = min(self._burst, self._tokens + refill)
        self._last = now
        return self._tokens >= 1

    def take(self, now: float) -> bool:
        """Whether it may be done once more, now; counted where it may."""
        if not self.has(now):
            return False
        self._tokens -= 1
        return True
