"""From the SPD entries that are in the kernel to those that the policy wants.

One entry at a time is all that the kernel changes at once. The order of the changes is such that
a packet which both the old entries and the new ones protect or discard never meets a moment in
which it would pass in clear:

1. entries that protect or discard are added, or moved up to a smaller number;
2. entries that let pass in clear are moved down, or removed: so far nothing is weaker than before;
3. the other way round: what protects moves down to its number, what lets pass moves up or is
   added: nothing is weaker than it will be;
4. what protected and is not wanted any more is removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kinkd.errors import LocalError
from kinkd.kernel.port import Kernel
from kinkd.model import SpdEntry, SpdKey

LOOKED_AT = 256
"""Entries that are looked at one by one, and not all together with those that stay."""


@dataclass(frozen=True, slots=True)
class Step:
    """A change: ``entry`` is written, or ``remove``d."""

    entry: SpdEntry
    remove: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What leads from one set of entries to another.

    ``steps`` stand in their order; none where all is as it should be. ``in_the_way`` are entries of
    someone else that have a selector which is wanted: they are not replaced. ``before`` holds
    what was ours where something changes, by key.
    """

    steps: tuple[Step, ...]
    in_the_way: tuple[SpdEntry, ...]
    before: Mapping[SpdKey, SpdEntry] = field(default_factory=dict)

    @property
    def fault(self) -> str:
        """What is in the way, in words; empty: nothing is."""
        return "; ".join(
            f"an IPsec policy of other software is in the way: {_words(entry)}; "
            "remove it, or take the pair out of kinkd's policy"
            for entry in self.in_the_way[:1]
        )


def plan(present: Iterable[SpdEntry], wanted: Iterable[SpdEntry], ours: range) -> Plan:
    """The changes; of ``present`` those with a priority in ``ours`` are ours."""
    present, wanted = list(present), list(wanted)
    # Entries take long to hash and to compare, and most of them may be the same objects.
    same = {id(entry) for entry in present if entry.priority in ours}
    same.intersection_update(map(id, wanted))
    new = {entry.key: entry for entry in wanted if id(entry) not in same}
    old: dict[SpdKey, SpdEntry] = {}
    foreign: list[SpdEntry] = []
    for entry in present:
        if id(entry) in same:
            continue
        if entry.priority in ours:
            old[entry.key] = entry
        elif new.pop(entry.key, None) is not None:
            foreign.append(entry)
    changed = [key for key in new if old.get(key) != new[key]]
    gone = [key for key in old if key not in new]
    steps = [
        *(Step(new[key]) for key in changed),
        *(Step(old[key], remove=True) for key in gone),
    ]
    steps.sort(key=lambda step: _phase(step, old.get(step.entry.key)))
    return Plan(tuple(steps), tuple(foreign), old)


def install(kernel: Kernel, wanted: Iterable[SpdEntry], ours: range) -> int:
    """Make the kernel's entries those that are wanted; how many changes that took.

    Raises:
        LocalError: something of someone else is in the way; nothing was changed.
        KernelError: the kernel refused a change.
    """
    return _carried_out(kernel, plan(kernel.policies(), wanted, ours))


def change(
    kernel: Kernel, known: Iterable[SpdEntry], wanted: Iterable[SpdEntry], ours: range
) -> int:
    """The same where it is ``known`` what we last had there: the kernel is asked for less.

    Of a few changes each is looked at by itself: where the kernel has something else there than
    is known, all of its entries are read. What is to stay as it is, is not looked at.

    Raises:
        LocalError: something of someone else is in the way; nothing was changed.
        KernelError: the kernel refused a change.
    """
    known, wanted = list(known), list(wanted)
    found = plan(known, wanted, ours)
    keys = {step.entry.key for step in found.steps}
    if len(keys) > LOOKED_AT:
        return install(kernel, wanted, ours)
    if any(kernel.policy(*key) != found.before.get(key) for key in keys):
        return install(kernel, wanted, ours)
    return _carried_out(kernel, found)


def _carried_out(kernel: Kernel, found: Plan) -> int:
    if found.in_the_way:
        raise LocalError(found.fault)
    carry_out(kernel, found)
    return len(found.steps)


def carry_out(kernel: Kernel, found: Plan) -> None:
    """Make the changes, around what is in the way. Raises KernelError."""
    for step in found.steps:
        if step.remove:
            kernel.remove_policy(step.entry.direction, step.entry.selector)
        else:
            kernel.write_policy(step.entry)


def _phase(step: Step, old: SpdEntry | None) -> int:
    entry = step.entry
    if step.remove:
        return 4 if _is_strict(entry) else 2
    if old is None or _is_strict(entry) != _is_strict(old):
        return 1 if _is_strict(entry) else 3
    rises = entry.priority <= old.priority
    return (1 if rises else 3) if _is_strict(entry) else (3 if rises else 2)


def _is_strict(entry: SpdEntry) -> bool:
    """Whether nothing passes it in clear."""
    return entry.block or any(not template.optional for template in entry.templates)


def _words(entry: SpdEntry) -> str:
    selector = entry.selector
    return (
        f"dir {entry.direction.name.lower()} src {selector.source} dst {selector.destination} "
        f"priority {entry.priority}"
    )
