"""The limits an SA is given in the kernel (RFC 4430 §3.6)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.exchange.installing import initiator_limits, responder_limits
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.model import Lifetime


def limits(lifetime: Lifetime, random: int):
    core = SimpleNamespace(random=lambda octets: random.to_bytes(octets, "big"))
    return initiator_limits(core, lifetime)  # type: ignore[arg-type]


WORDS = st.integers(0, (1 << 32) - 1)


@pytest.mark.rfc("4430-3.6-2")
@pytest.mark.parametrize("lifetime", [Lifetime(3600, 1 << 20), Lifetime(60)])
def test_the_soft_limits_are_random(lifetime: Lifetime) -> None:
    early, late = limits(lifetime, 0), limits(lifetime, (1 << 32) - 1)
    assert early.soft_seconds != late.soft_seconds
    assert early.soft_packets != late.soft_packets
    if lifetime.kilobytes is not None:
        assert early.soft_octets != late.soft_octets


@pytest.mark.rfc("4430-3.6-3")
@given(WORDS, st.integers(301, 86400))
def test_rekeying_has_two_to_four_retransmission_cycles(random: int, seconds: int) -> None:
    soft = limits(Lifetime(seconds), random).soft_seconds
    assert 2 * TRANSACTION_SECONDS <= seconds - soft <= 4 * TRANSACTION_SECONDS
    # The margin reaches both ends: T-rekey is at least twice T-retrans.
    assert seconds - limits(Lifetime(seconds), 0).soft_seconds == 2 * TRANSACTION_SECONDS
    latest = limits(Lifetime(seconds), (1 << 32) - 1).soft_seconds
    assert seconds - latest >= 4 * TRANSACTION_SECONDS - 1


@given(WORDS, st.integers(30, 86400), st.none() | st.integers(1024, 1 << 30))
def test_soft_comes_before_hard(random: int, seconds: int, kilobytes: int | None) -> None:
    found = limits(Lifetime(seconds, kilobytes), random)
    assert 0 < found.soft_seconds < found.hard_seconds == seconds
    assert 0 < found.soft_packets < found.hard_packets < 1 << 32
    if kilobytes is not None:
        assert 0 < found.soft_octets < found.hard_octets == kilobytes * 1024


@given(WORDS, st.integers(30, 86400), st.none() | st.integers(1024, 1 << 30))
def test_a_responder_is_told_when_the_initiator_must_have_been(
    random: int, seconds: int, kilobytes: int | None
) -> None:
    ours = limits(Lifetime(seconds, kilobytes), random)
    theirs = responder_limits(Lifetime(seconds, kilobytes))
    assert ours.soft_seconds <= theirs.soft_seconds < theirs.hard_seconds == seconds
    assert ours.soft_packets <= theirs.soft_packets < theirs.hard_packets
    if kilobytes is not None:
        assert ours.soft_octets <= theirs.soft_octets < theirs.hard_octets == kilobytes * 1024
