"""Timers, the retransmission timer (RFC 4430 §9), token buckets."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.exchange.timing import LONGEST_TIMEOUT, RoundTrip, Timers, TokenBucket


def test_timers_run_in_order_and_only_when_due() -> None:
    timers, ran = Timers(), []
    timers.at(2.0, lambda _: ran.append("b"))
    timers.at(1.0, lambda _: ran.append("a"))
    timers.at(3.0, lambda _: ran.append("c"))
    timers.run(2.5)
    assert ran == ["a", "b"]
    assert timers.next() == 3.0


def test_a_cancelled_timer_is_gone() -> None:
    timers, ran = Timers(), []
    timer = timers.at(1.0, lambda _: ran.append("a"))
    timer.cancel()
    assert timers.next() is None
    timers.run(5.0)
    assert not ran


@pytest.mark.rfc("4430-9-1")
@given(st.lists(st.floats(0.0001, 5), max_size=20))
def test_the_back_off_doubles_and_is_truncated(samples: list[float]) -> None:
    round_trip = RoundTrip()
    for sample in samples:
        round_trip.sample(sample)
    waits = [round_trip.timeout(attempt) for attempt in range(12)]
    assert waits == sorted(waits)
    assert waits[-1] == max(LONGEST_TIMEOUT, waits[0])
    for shorter, longer in itertools.pairwise(waits):
        assert longer == pytest.approx(min(2 * shorter, waits[-1]))


def test_the_first_retransmission_adapts_to_the_round_trip() -> None:
    near, far = RoundTrip(), RoundTrip()
    for _ in range(20):
        near.sample(0.001)
        far.sample(0.4)
    assert near.timeout(0) < RoundTrip().timeout(0) < 1
    assert far.timeout(0) > 0.4


@given(st.lists(st.floats(0, 100), max_size=200))
def test_a_token_bucket_never_gives_more_than_burst_and_rate(times: list[float]) -> None:
    bucket = TokenBucket(rate=10, burst=20)
    taken = sum(bucket.take(now) for now in sorted(times))
    span = max(times, default=0) - min(times, default=0)
    assert taken <= 20 + 10 * span + 1
