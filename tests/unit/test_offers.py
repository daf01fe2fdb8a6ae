"""Transforms as they are on the wire: what of them may be chosen (RFC 2407 §4.5)."""

from __future__ import annotations

import pytest

from kinkd.exchange import quickmode
from kinkd.keying.algorithms import SUITES
from kinkd.keying.negotiate import Offer
from kinkd.model import Lifetime, Mode
from kinkd.wire import isakmp
from kinkd.wire.numbers import AttributeClass, ProtocolId
from tests.support.pair import offer

GCM = SUITES["aes256gcm16"]
TYPE, DURATION = AttributeClass.LIFE_TYPE, AttributeClass.LIFE_DURATION
MODE, KEY, ESN = AttributeClass.ENCAPSULATION_MODE, AttributeClass.KEY_LENGTH, AttributeClass.ESN
PLAIN = [(TYPE, 1), (DURATION, 600), (MODE, 2), (KEY, 256)]


def read(attributes: list[tuple[int, int]], transforms: int = 1) -> tuple[Offer, ...]:
    """What an SA payload offers whose only proposal has these attributes."""
    made = tuple(isakmp.Attribute(kind, value) for kind, value in attributes)
    numbered = tuple(isakmp.Transform(number + 1, 20, made) for number in range(transforms))
    proposal = isakmp.Proposal(1, ProtocolId.ESP, b"\0\0\x20\0", numbered)
    return quickmode.read_offers(isakmp.SecurityAssociation((proposal,)))


def readable(attributes: list[tuple[int, int]]) -> bool:
    (made,) = read(attributes)
    (part,) = made.parts
    return part.readable


def test_the_plain_transform_is_read_as_it_was_written() -> None:
    (made,) = read(PLAIN)
    assert readable(PLAIN)
    assert made.parts[0].is_for(GCM.transforms[0])
    assert (made.terms.mode, made.terms.lifetime) == (Mode.TRANSPORT, Lifetime(600))


@pytest.mark.parametrize(
    "twice",
    [
        (MODE, 2),
        (MODE, 1),
        (KEY, 256),
        (KEY, 128),
        (AttributeClass.AUTHENTICATION_ALGORITHM, 5),
        (AttributeClass.GROUP_DESCRIPTION, 19),
        (ESN, 1),
    ],
)
def test_an_attribute_that_stands_there_twice_is_not_understood(twice: tuple[int, int]) -> None:
    once = [each for each in PLAIN if each[0] != twice[0]] + [twice]
    assert readable(once)
    assert not readable([*once, twice])
    assert not readable([*PLAIN, *once])


@pytest.mark.parametrize(
    ("unit", "value", "expected"), [(1, 0, False), (2, 0, False), (2, 1, True)]
)
def test_a_life_of_nothing_is_not_understood(unit: int, value: int, expected: bool) -> None:
    attributes = [*PLAIN[2:], (TYPE, unit), (DURATION, value)]
    assert readable(attributes) is expected


@pytest.mark.parametrize(("value", "expected"), [(0, False), (1, True), (2, False), (3, False)])
def test_esn_has_one_value(value: int, expected: bool) -> None:
    assert readable([*PLAIN, (ESN, value)]) is expected


@pytest.mark.parametrize(
    "attribute", [(DURATION, 60), (TYPE, 3), (99, 1)], ids=["no type", "unknown", "class"]
)
def test_what_is_not_known_is_not_understood(attribute: tuple[int, int]) -> None:
    more = [attribute] if attribute[0] != TYPE else [attribute, (DURATION, 5)]
    assert not readable([*PLAIN, *more])


def test_what_is_not_understood_keeps_its_place() -> None:
    unknown = isakmp.Transform(1, 20, (isakmp.Attribute(99, 1),))
    first = isakmp.Proposal(1, ProtocolId.ESP, b"\0\0\x20\0", (unknown,))
    association = isakmp.SecurityAssociation((first, *offer(GCM, 0x2000, number=2)))
    offers = quickmode.read_offers(association)
    assert [each.parts[0].readable for each in offers] == [False, True]


@pytest.mark.parametrize(("transforms", "offers"), [(15, 225), (16, 256), (17, 256)])
def test_of_a_bundle_so_many_combinations_are_read_and_no_more(
    transforms: int, offers: int
) -> None:
    """Else 64 transforms of each of two protocols would be 4096."""
    made = tuple(isakmp.Transform(number + 1, 20, ()) for number in range(transforms))
    bundle = tuple(
        isakmp.Proposal(1, protocol, b"\0\0\x20\0", made)
        for protocol in (ProtocolId.AH, ProtocolId.ESP)
    )
    assert len(quickmode.read_offers(isakmp.SecurityAssociation(bundle))) == offers
