"""Break-glass ends, whatever the kernel or a clock do meanwhile: else nothing is enforced again."""

from __future__ import annotations

import contextlib
import errno
from dataclasses import replace

import pytest

from kinkd.errors import KernelError, LocalError
from kinkd.model import SpdEntry
from tests.support.pair import POSIX, Node, World


@pytest.fixture
def world() -> World:
    return World()


def enforced(node: Node) -> int:
    """How many entries are as the policy writes them."""
    return len(set(node.endpoint.policy.entries) & set(node.kernel.policies()))


def in_the_way(node: Node) -> SpdEntry:
    """Somebody else has an entry with a selector of the policy's."""
    entry = node.endpoint.policy.entries[0]
    foreign = replace(entry, priority=5)
    node.kernel.remove_policy(entry.direction, entry.selector)
    node.kernel.write_policy(foreign)
    return foreign


def test_a_kernel_that_refused_the_beginning_is_no_reason_not_to_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = world["alice"]

    def refuse(entry: SpdEntry) -> None:
        raise KernelError(errno.ENOMEM, "NEWPOLICY")

    with monkeypatch.context() as patch:
        patch.setattr(alice.kernel, "write_policy", refuse)
        with contextlib.suppress(KernelError):
            alice.endpoint.suspend(POSIX + 100, world.now)
    world.run(1000)
    assert enforced(alice) == len(alice.endpoint.policy.entries)


def test_what_is_in_the_way_at_the_end_keeps_only_its_own_entry(world: World) -> None:
    alice = world["alice"]
    alice.endpoint.suspend(POSIX + 100, world.now)
    in_the_way(alice)
    world.run(1000)
    assert enforced(alice) == len(alice.endpoint.policy.entries) - 1


def test_what_is_in_the_way_at_the_beginning_does_not_suspend_for_ever(world: World) -> None:
    alice = world["alice"]
    in_the_way(alice)
    with contextlib.suppress(LocalError):
        alice.endpoint.suspend(POSIX + 100, world.now)
    world.run(1000)
    assert enforced(alice) == len(alice.endpoint.policy.entries) - 1


def test_a_clock_that_is_set_back_makes_it_no_longer(world: World) -> None:
    alice = world["alice"]
    alice.endpoint.suspend(POSIX + 100, world.now)
    world.run(10)
    alice.endpoint.set_posix(POSIX - 86400)
    world.run(1000)
    assert enforced(alice) == len(alice.endpoint.policy.entries)
