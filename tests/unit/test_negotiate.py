"""What is chosen, and what an initiator takes for an answer (RFC 4430 §3.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import PeerError
from kinkd.keying.algorithms import SUITES
from kinkd.keying.negotiate import Offer, check_answer, choose
from kinkd.model import Lifetime, Mode, Suite

GCM, CBC = SUITES["aes256gcm16"], SUITES["aes128-sha256"]
HOUR = Lifetime(3600)


def offer(suite: Suite = GCM, number: int = 1, lifetime: Lifetime = HOUR) -> Offer:
    return Offer(
        proposal=number,
        transform=1,
        spi=0x1000 + number,
        transform_id=suite.transform_id,
        key_bits=suite.key_bits,
        authentication_id=suite.authentication_id,
        mode=Mode.TRANSPORT,
        lifetime=lifetime,
    )


def test_the_optimistic_proposal_wins_where_it_is_allowed() -> None:
    choice = choose([offer(CBC), offer(GCM, 2)], [GCM, CBC], Mode.TRANSPORT, HOUR)
    assert choice.suite is CBC
    assert choice.optimistic


def test_an_offer_without_esn_is_not_taken_where_policy_wants_it() -> None:
    plain, wide = offer(), replace(offer(number=2), esn=True)
    assert choose([plain, wide], [GCM], Mode.TRANSPORT, HOUR, esn=True).offer is wide
    with pytest.raises(PeerError, match="no-proposal-chosen"):
        choose([plain], [GCM], Mode.TRANSPORT, HOUR, esn=True)


def test_another_is_chosen_where_it_is_not() -> None:
    choice = choose([offer(CBC), offer(GCM, 2)], [GCM], Mode.TRANSPORT, HOUR)
    assert choice.offer.proposal == 2
    assert not choice.optimistic


@pytest.mark.parametrize(
    "offers",
    [
        [],
        [offer(CBC)],
        [replace(offer(), mode=Mode.TUNNEL)],
        [replace(offer(), mode=None)],
        [replace(offer(), readable=False)],
        [replace(offer(), key_bits=128)],
        [replace(offer(), key_bits=None)],
        [replace(offer(), esn=True)],
    ],
)
def test_nothing_acceptable_is_no_proposal_chosen(offers: list[Offer]) -> None:
    with pytest.raises(PeerError) as caught:
        choose(offers, [GCM], Mode.TRANSPORT, HOUR)
    assert caught.value.notify == 14


seconds = st.integers(1, 1 << 31)
volumes = st.none() | st.integers(1, 1 << 31)
lifetimes = st.builds(Lifetime, seconds, volumes)


@pytest.mark.rfc("4430-3.2-2")
@given(lifetimes, lifetimes)
def test_a_responder_never_raises_a_lifetime(offered: Lifetime, own: Lifetime) -> None:
    chosen = choose([offer(lifetime=offered)], [GCM], Mode.TRANSPORT, own).lifetime
    assert chosen.seconds == min(offered.seconds, own.seconds)
    if offered.kilobytes is not None:
        assert chosen.kilobytes is not None
        assert chosen.kilobytes <= offered.kilobytes


@pytest.mark.rfc("4430-3.2-3")
@given(lifetimes, lifetimes)
def test_the_initiator_uses_the_shorter_and_refuses_the_longer(
    offered: Lifetime, answered: Lifetime
) -> None:
    raised = answered.seconds > offered.seconds or (
        None not in (offered.kilobytes, answered.kilobytes)
        and (answered.kilobytes or 0) > (offered.kilobytes or 0)
    )
    if raised:
        with pytest.raises(PeerError, match="raised-lifetime"):
            check_answer(offer(lifetime=offered), offer(lifetime=answered))
    else:
        used = check_answer(offer(lifetime=offered), offer(lifetime=answered))
        assert used.seconds == answered.seconds


@pytest.mark.rfc("4430-3.2-1")
@pytest.mark.parametrize(
    "change",
    [
        {"transform_id": 12},
        {"key_bits": 128},
        {"key_bits": None},
        {"esn": True},
        {"authentication_id": 2},
        {"mode": Mode.TUNNEL},
        {"readable": False},
    ],
)
def test_anything_else_than_the_optimistic_transform_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PeerError, match="other-proposal-chosen"):
        check_answer(offer(), replace(offer(), **change))
