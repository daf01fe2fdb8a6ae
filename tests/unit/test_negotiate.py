"""What is chosen, and what an initiator takes for an answer (RFC 4430 §3.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import PeerError
from kinkd.keying.algorithms import SUITES
from kinkd.keying.negotiate import Demands, Offer, Part, Terms, check_answer, choose
from kinkd.model import IpsecProtocol, Lifetime, Mode, Suite

GCM, CBC = SUITES["aes256gcm16"], SUITES["aes128-sha256"]
BUNDLE = SUITES["ah-sha256+aes256gcm16"]
HOUR = Lifetime(3600)


PLAIN = Demands(Mode.TRANSPORT, HOUR)


def offer(
    suite: Suite = GCM,
    number: int = 1,
    lifetime: Lifetime = HOUR,
    mode: Mode | None = Mode.TRANSPORT,
    **terms: Any,
) -> Offer:
    parts = tuple(
        Part(
            protocol=transform.protocol,
            transform=1,
            spi=0x1000 + number,
            transform_id=transform.transform_id,
            key_bits=transform.key_bits,
            authentication_id=transform.authentication_id,
            terms=Terms(mode, lifetime, **terms),
        )
        for transform in suite.transforms
    )
    return Offer(number, parts)


def changed(made: Offer, index: int = 0, **change: Any) -> Offer:
    parts = list(made.parts)
    parts[index] = replace(parts[index], **change)
    return Offer(made.proposal, tuple(parts))


def test_the_optimistic_proposal_wins_where_it_is_allowed() -> None:
    choice = choose([offer(CBC), offer(GCM, 2)], [GCM, CBC], PLAIN)
    assert choice.suite is CBC
    assert choice.optimistic


def test_an_offer_without_esn_is_not_taken_where_policy_wants_it() -> None:
    plain, wide = offer(), offer(number=2, esn=True)
    always = replace(PLAIN, esn=(True,))
    assert choose([plain, wide], [GCM], always).offer is wide
    with pytest.raises(PeerError, match="no-proposal-chosen"):
        choose([plain], [GCM], always)


def test_where_either_will_do_the_initiator_decides_on_esn() -> None:
    plain, wide = offer(), offer(number=2, esn=True)
    either = replace(PLAIN, esn=(True, False))
    assert choose([plain, wide], [GCM], either).offer is plain
    assert choose([plain], [GCM], either).optimistic


def test_another_is_chosen_where_it_is_not() -> None:
    choice = choose([offer(CBC), offer(GCM, 2)], [GCM], PLAIN)
    assert choice.offer.proposal == 2
    assert not choice.optimistic


@pytest.mark.parametrize(
    "offers",
    [
        [],
        [offer(CBC)],
        [offer(mode=Mode.TUNNEL)],
        [offer(mode=None)],
        [offer(udp=True)],
        [offer(group=19)],
        [offer(esn=True)],
        [changed(offer(), readable=False)],
        [changed(offer(), key_bits=128)],
        [changed(offer(), key_bits=None)],
        [changed(offer(), protocol=None)],
        [changed(offer(), protocol=IpsecProtocol.AH)],
        [offer(BUNDLE)],
    ],
)
def test_nothing_acceptable_is_no_proposal_chosen(offers: list[Offer]) -> None:
    with pytest.raises(PeerError) as caught:
        choose(offers, [GCM], PLAIN)
    assert caught.value.notify == 14


seconds = st.integers(1, 1 << 31)
volumes = st.none() | st.integers(1, 1 << 31)
lifetimes = st.builds(Lifetime, seconds, volumes)


@pytest.mark.rfc("4430-3.2-2")
@given(lifetimes, lifetimes)
def test_a_responder_never_raises_a_lifetime(offered: Lifetime, own: Lifetime) -> None:
    chosen = choose([offer(lifetime=offered)], [GCM], Demands(Mode.TRANSPORT, own)).terms.lifetime
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
            check_answer([offer(lifetime=offered)], offer(lifetime=answered))
    else:
        position, used = check_answer([offer(lifetime=offered)], offer(lifetime=answered))
        assert (position, used.lifetime.seconds) == (0, answered.seconds)


@pytest.mark.rfc("4430-3.2-1")
@pytest.mark.parametrize(
    "change",
    [
        {"transform_id": 12},
        {"key_bits": 128},
        {"key_bits": None},
        {"authentication_id": 2},
        {"transform": 2},
        {"protocol": IpsecProtocol.AH},
        {"terms": Terms(Mode.TUNNEL, HOUR)},
        {"terms": Terms(Mode.TRANSPORT, HOUR, udp=True)},
        {"terms": Terms(Mode.TRANSPORT, HOUR, group=19)},
        {"terms": Terms(Mode.TRANSPORT, HOUR, esn=True)},
        {"readable": False},
    ],
)
@pytest.mark.parametrize(("suite", "index"), [(GCM, 0), (BUNDLE, 0), (BUNDLE, 1)])
def test_anything_else_than_the_optimistic_transform_is_refused(
    change: dict[str, object], suite: Suite, index: int
) -> None:
    asked, answered = offer(suite), changed(offer(suite), index, **change)
    if asked == answered:
        return  # AH is AH already, and has no key length
    with pytest.raises(PeerError, match="other-proposal-chosen"):
        check_answer([asked], answered)


def test_a_bundle_is_taken_whole_in_whatever_order_its_protocols_stand() -> None:
    asked = offer(BUNDLE)
    turned = Offer(1, asked.parts[::-1])
    for each in (asked, turned):
        choice = choose([each], [GCM, BUNDLE], PLAIN)
        assert (choice.suite, choice.optimistic) == (BUNDLE, True)
        assert check_answer([asked], each)[0] == 0
    for half in asked.parts:
        with pytest.raises(PeerError):
            choose([Offer(1, (half,))], [BUNDLE], PLAIN)
        with pytest.raises(PeerError):
            check_answer([asked], Offer(1, (half,)))


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    "other",
    [
        Terms(Mode.TUNNEL, HOUR),
        Terms(None, HOUR),
        Terms(Mode.TRANSPORT, HOUR, udp=True),
        Terms(Mode.TRANSPORT, HOUR, group=19),
        Terms(Mode.TRANSPORT, HOUR, esn=True),
    ],
)
def test_a_bundle_whose_parts_disagree_is_not_taken(other: Terms, index: int) -> None:
    """Whichever of its parts says what policy demands."""
    halved = changed(offer(BUNDLE), index, terms=other)
    either = replace(PLAIN, groups=(None, 19), esn=(False, True))
    for demands in (PLAIN, either):
        with pytest.raises(PeerError, match="no-proposal-chosen"):
            choose([halved], [BUNDLE], demands)


@pytest.mark.rfc("4430-3.2-1")
@pytest.mark.parametrize("suite", [GCM, BUNDLE])
def test_an_answer_has_no_part_that_was_not_asked_for(suite: Suite) -> None:
    asked = offer(suite)
    for part in offer(BUNDLE).parts:
        with pytest.raises(PeerError, match="other-proposal-chosen"):
            check_answer([asked], Offer(1, (*asked.parts, part)))
    assert check_answer([asked], asked)[0] == 0


def test_the_shortest_lifetime_of_a_bundle_holds_for_all_of_it() -> None:
    asked = changed(offer(BUNDLE), 1, terms=Terms(Mode.TRANSPORT, Lifetime(60)))
    assert choose([asked], [BUNDLE], PLAIN).terms.lifetime == Lifetime(60)


@given(st.permutations(list(SUITES.values())), st.integers(1, 5))
def test_a_chosen_offer_is_always_one_that_both_have(suites: list[Suite], count: int) -> None:
    offered, allowed = suites[: 3 * count], suites[2 * count :]
    common = [suite for suite in offered if suite in allowed]
    offers = [offer(suite, number) for number, suite in enumerate(offered, 1)]
    if not common:
        with pytest.raises(PeerError):
            choose(offers, allowed, PLAIN)
        return
    choice = choose(offers, allowed, PLAIN)
    assert choice.suite is common[0]
    assert offers[choice.offer.proposal - 1] is choice.offer
