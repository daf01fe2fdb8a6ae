"""What is asked for next, once a peer has refused (RFC 4430 §3.2)."""

from __future__ import annotations

import pytest

from kinkd.errors import PeerError
from kinkd.exchange.creating import Variant, after_refusal
from kinkd.wire.numbers import NotifyType

EITHER, NARROW = (True, False), (False,)
ALL = [Variant(group, esn) for esn in (EITHER, NARROW) for group in (31, 19, None)]
FIRST = ALL[0]


def left(tried: Variant, notify: int | None, data: bytes = b"") -> list[Variant]:
    refusal = PeerError("refused-by-peer", "no", notify=notify, notify_data=data)
    return after_refusal(ALL[ALL.index(tried) + 1 :], tried, refusal)


def test_where_no_proposal_will_do_all_that_is_left_is_tried() -> None:
    for number, tried in enumerate(ALL):
        assert left(tried, NotifyType.NO_PROPOSAL_CHOSEN) == ALL[number + 1 :]


@pytest.mark.rfc("4430-3.2-6")
def test_where_a_ke_payload_is_refused_none_is_sent_again() -> None:
    without = [Variant(None, EITHER), Variant(None, NARROW)]
    assert left(FIRST, NotifyType.INVALID_PAYLOAD_TYPE, b"\x04") == without


@pytest.mark.parametrize("data", [b"", b"\x05", b"\x04\x04"])
def test_another_payload_that_is_refused_says_nothing_of_ke(data: bytes) -> None:
    expected = [Variant(31, NARROW)]
    assert left(FIRST, NotifyType.INVALID_PAYLOAD_TYPE, data) == expected


@pytest.mark.parametrize("notify", [NotifyType.PAYLOAD_MALFORMED, 9999, None])
def test_who_chokes_on_the_message_is_asked_for_the_same_without_esn(notify: int | None) -> None:
    for group in (31, 19, None):
        assert left(Variant(group, EITHER), notify) == [Variant(group, NARROW)]
        assert left(Variant(group, NARROW), notify) == []


def test_the_type_of_ke_in_another_notification_refuses_no_ke() -> None:
    assert left(FIRST, NotifyType.PAYLOAD_MALFORMED, b"\x04") == [Variant(31, NARROW)]
