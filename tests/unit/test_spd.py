"""The order in which SPD entries are changed: nothing passes in clear that never should."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import LocalError
from kinkd.exchange import spd
from kinkd.kernel.memory import MemoryKernel
from kinkd.model import Direction, IpsecProtocol, Mode, Selector, SpdEntry, Template

OURS = range(1000, 2000)
PREFIXES = ("10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32")
NETWORKS = [ip_network(text) for text in PREFIXES]
HERE = ip_network("192.0.2.1/32")
SELECTORS = [Selector(HERE, network) for network in NETWORKS]
TEMPLATES = (Template(IpsecProtocol.ESP, Mode.TRANSPORT, 7),)
OPTIONAL = (Template(IpsecProtocol.ESP, Mode.TRANSPORT, 7, optional=True),)
KINDS: list[tuple[tuple[Template, ...], bool]] = [
    (TEMPLATES, False),
    ((), True),
    ((), False),
    (OPTIONAL, False),
]
WORLDS = st.lists(
    st.tuples(st.integers(0, len(SELECTORS) - 1), st.integers(0, 7), st.sampled_from(KINDS)),
    unique_by=(lambda each: each[0], lambda each: each[1]),
    max_size=4,
)


def entries(world: list[tuple[int, int, tuple[tuple[Template, ...], bool]]]) -> list[SpdEntry]:
    return [
        SpdEntry(Direction.OUT, SELECTORS[where], OURS[priority], templates, block=block)
        for where, priority, (templates, block) in world
    ]


def is_strict(present: Iterable[SpdEntry], packet: Selector) -> bool:
    """Whether the packet that has this selector is protected or discarded."""
    matching = [entry for entry in present if entry.selector.covers(packet)]
    if not matching:
        return False
    first = min(matching, key=lambda entry: entry.priority)
    return first.block or any(not template.optional for template in first.templates)


@given(WORLDS, WORLDS)
def test_what_old_and_new_protect_is_never_in_clear_in_between(
    old_world: list[tuple[int, int, tuple[tuple[Template, ...], bool]]],
    new_world: list[tuple[int, int, tuple[tuple[Template, ...], bool]]],
) -> None:
    old, new = entries(old_world), entries(new_world)
    state = {(entry.direction, entry.selector): entry for entry in old}
    for step in spd.plan(old, new, OURS).steps:
        key = (step.entry.direction, step.entry.selector)
        if step.remove:
            del state[key]
        else:
            state[key] = step.entry
        for packet in SELECTORS:
            if is_strict(old, packet) and is_strict(new, packet):
                assert is_strict(state.values(), packet), (step, packet)
    assert set(state.values()) == set(new)
    assert not spd.plan(state.values(), new, OURS).steps


@given(WORLDS, WORLDS)
def test_the_kernel_ends_with_what_is_wanted_and_what_is_others(
    old_world: list[tuple[int, int, tuple[tuple[Template, ...], bool]]],
    new_world: list[tuple[int, int, tuple[tuple[Template, ...], bool]]],
) -> None:
    kernel = MemoryKernel()
    foreign = SpdEntry(Direction.IN, SELECTORS[0].reversed(), 5)
    for entry in (*entries(old_world), foreign):
        kernel.write_policy(entry)
    spd.install(kernel, entries(new_world), OURS)
    assert set(kernel.policies()) == {foreign, *entries(new_world)}
    assert spd.install(kernel, entries(new_world), OURS) == 0


def test_what_others_have_in_the_way_is_named_and_nothing_is_written() -> None:
    kernel = MemoryKernel()
    kernel.write_policy(SpdEntry(Direction.OUT, SELECTORS[0], 5))
    with pytest.raises(LocalError, match=r"in the way: dir out .*10\.0\.0\.0/8 priority 5"):
        spd.install(kernel, entries([(1, 0, KINDS[0]), (0, 1, KINDS[0])]), OURS)
    assert len(kernel.policies()) == 1


class AskedKernel(MemoryKernel):
    """Counts how often all entries are read."""

    def __init__(self) -> None:
        super().__init__()
        self.dumps = 0

    def policies(self) -> list[SpdEntry]:
        self.dumps += 1
        return super().policies()


@given(WORLDS, WORLDS, st.integers(0, 2))
def test_what_is_known_is_changed_without_reading_all(
    old_world: list[tuple[int, int, tuple[tuple[Template, ...], bool]]],
    new_world: list[tuple[int, int, tuple[tuple[Template, ...], bool]]],
    shared: int,
) -> None:
    kernel, known = AskedKernel(), entries(old_world)
    new = {entry.key: entry for entry in entries(new_world)}
    new.update((entry.key, entry) for entry in known[:shared])  # the same objects
    spd.install(kernel, known, OURS)
    spd.change(kernel, known, new.values(), OURS)
    assert set(kernel.policies()) == set(new.values())
    assert kernel.dumps == 2  # none of them by the change


@pytest.mark.parametrize("kind", KINDS)
def test_where_something_else_is_than_is_known_all_is_read_and_mended(
    kind: tuple[tuple[Template, ...], bool],
) -> None:
    kernel, known = AskedKernel(), entries([(0, 0, KINDS[0]), (1, 1, KINDS[0])])
    kernel.write_policy(known[0])  # the other one has gone
    spd.change(kernel, known, [known[0], *entries([(1, 2, kind)])], OURS)
    assert set(kernel.policies()) == {known[0], *entries([(1, 2, kind)])}
    assert kernel.dumps == 2


def test_an_entry_of_others_is_not_replaced_by_a_change_of_what_is_known() -> None:
    kernel, known = AskedKernel(), entries([(0, 0, KINDS[0])])
    foreign = SpdEntry(Direction.OUT, SELECTORS[1], 5)
    for entry in (*known, foreign):
        kernel.write_policy(entry)
    with pytest.raises(LocalError, match="in the way"):
        spd.change(kernel, known, [*known, *entries([(1, 1, KINDS[0])])], OURS)
    assert set(kernel.policies()) == {*known, foreign}


def test_many_changes_are_made_of_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spd, "LOOKED_AT", 1)
    kernel, known = AskedKernel(), entries([(0, 0, KINDS[0])])
    spd.change(kernel, known, entries([(1, 1, KINDS[0]), (2, 2, KINDS[0])]), OURS)
    assert set(kernel.policies()) == set(entries([(1, 1, KINDS[0]), (2, 2, KINDS[0])]))
    assert kernel.dumps == 2
