"""XIDs are all distinct and tell nobody the next one (RFC 4430 §4)."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kinkd.exchange.xids import permuted

NUMBERS = st.integers(0, (1 << 32) - 1)
PINNED = [1751511045, 1366240808, 4017050116]


@given(st.binary(min_size=1, max_size=32), NUMBERS, st.sets(NUMBERS, min_size=2, max_size=200))
def test_no_two_commands_have_the_same(key: bytes, epoch: int, numbers: set[int]) -> None:
    images = {permuted(key, epoch, number) for number in numbers}
    assert len(images) == len(numbers)
    assert all(0 <= image < 1 << 32 for image in images)


def test_the_first_thousands_are_all_different_and_scattered() -> None:
    images = [permuted(b"secret", 7, number) for number in range(20_000)]
    assert len(set(images)) == 20_000
    gaps = {after - before for before, after in pairwise(images)}
    assert len(gaps) > 19_000


@given(NUMBERS)
def test_another_secret_or_another_epoch_gives_others(number: int) -> None:
    images = {permuted(key, epoch, number) for key in (b"a", b"b") for epoch in (1, 2)}
    assert len(images) >= 3  # by chance two may agree


def test_they_stay_what_they_are_over_versions() -> None:
    """A restart goes on with the journal's count and secret: the same XID must not come again."""
    assert [permuted(bytes(16), 1, number) for number in range(3)] == PINNED
