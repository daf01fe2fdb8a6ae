"""``request``, audit and break-glass: what may go in clear, for how long, and what never may."""

from __future__ import annotations

import pytest

from kinkd.document import Document
from kinkd.exchange.effects import Send
from kinkd.exchange.enforcing import HOLD, SETTLING
from kinkd.kernel.memory import Flow
from kinkd.policy import reader
from tests.support.pair import POSIX, LivingWorld, passes

DOCUMENT = """
schema = 1
version = 1
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = ["10.0.0.1"]
networks = ["10.1.0.0/16"]
[hosts.bob]
fqdn = "bob.example.test"
addresses = ["10.0.0.2"]
networks = ["10.2.0.0/16"]
[[rules]]
name = "r"
from = "all"
to = "all"
action = "{action}"
profile = "fast"
{more}
"""
TUNNEL = 'mode = "tunnel"'


def lose(_: Send) -> list[Send]:
    return []


def world_of(action: str = "request", more: str = "") -> LivingWorld:
    return LivingWorld(document=DOCUMENT.format(action=action, more=more))


def keyed(more: str = "") -> LivingWorld:
    world = world_of(more=more)
    first = world.traffic("alice", "bob")
    world.run(SETTLING + 1)
    if first == "clear":  # in a tunnel nothing asks before packets have been let go
        world.run(30)
    assert world.traffic("alice", "bob") == "esp"
    return world


def kill(world: LivingWorld) -> None:
    """Neither end has SAs any more, and each knows it."""
    for node in world.nodes.values():
        for pair in node.endpoint.pairs:
            for sa in pair.both_ways:
                node.kernel.remove(sa)
        node.endpoint._lifecycle.end(list(node.endpoint.pairs), world.now)
    world.wire.clear()


def test_the_first_packets_wait_for_the_sa_and_none_goes_in_clear() -> None:
    world = world_of()
    assert world.traffic("alice", "bob") == "held"
    world.run(0.5)
    assert world.traffic("alice", "bob") == "esp"
    assert world.traffic("bob", "alice") == "esp"


@pytest.mark.parametrize("more", ["", TUNNEL])
def test_who_does_not_answer_gets_packets_in_clear_after_a_second(more: str) -> None:
    world = world_of(more=more)
    assert world.traffic("alice", "bob") == "held"
    world.run(HOLD - 0.1, lose)
    assert world.traffic("alice", "bob") == "held"
    world.run(0.2, lose)
    assert world.traffic("alice", "bob") == "clear"
    world.run(300, lose)
    assert world.traffic("alice", "bob") == "clear"
    assert world["alice"].endpoint.counters["request.in-clear"] == 1


def test_without_a_ticket_it_is_the_same() -> None:
    world = world_of()
    world["alice"].kdc_up = False
    world.traffic("alice", "bob")
    world.run(HOLD)
    assert world.traffic("alice", "bob") == "clear"


@pytest.mark.parametrize("more", ["", TUNNEL])
def test_it_is_tried_again_and_once_it_works_it_is_required(more: str) -> None:
    world = world_of(more=more)
    world.traffic("alice", "bob")
    world.run(60, lose)
    assert world.traffic("alice", "bob") == "clear"
    for _ in range(100):
        world.run(10)
        if world.traffic("alice", "bob") == "esp":
            break
    world.run(SETTLING + 0.1)
    assert world.traffic("alice", "bob") == "esp"
    kill(world)
    world.run(1, lose)
    for _ in range(20):
        assert world.traffic("alice", "bob") in ("held", "dropped")
        world.run(30, lose)


def test_packets_in_clear_come_in_until_it_worked_once_and_a_moment_longer() -> None:
    world = world_of()
    bare = LivingWorld(
        document=DOCUMENT.format(action="clear", more="").replace('profile = "fast"', "")
    )
    sender, receiver = bare["bob"], world["alice"]
    ends = (sender.address, receiver.address)
    assert sender.kernel.send(receiver.kernel, *ends) == "clear"
    world.traffic("alice", "bob")
    world.run(0.5)
    assert sender.kernel.send(receiver.kernel, *ends) == "clear"  # it was on its way
    world.run(SETTLING)
    assert sender.kernel.send(receiver.kernel, *ends) == "dropped"


@pytest.mark.parametrize("more", ["", TUNNEL])
def test_a_restart_remembers_whom_it_had(more: str) -> None:
    world = keyed(more)
    kill(world)
    world.restart("alice")
    for _ in range(10):
        assert world.traffic("alice", "bob") in ("held", "dropped")
        world.run(30, lose)


def test_the_end_that_was_asked_remembers_as_well() -> None:
    world = keyed()
    kill(world)
    assert world.traffic("bob", "alice") == "held"
    world.run(HOLD + 1, lose)
    assert world.traffic("bob", "alice") == "held"


def test_forget_makes_it_as_before_the_first_time() -> None:
    world = keyed()
    alice = world["alice"].endpoint
    bob = alice.policy.host_by_name("bob")
    assert bob is not None
    assert alice.forget(bob, world.now)
    assert not alice.forget(bob, world.now)
    world.settle()
    assert not world["alice"].secured
    world.run(1, lose)
    world.traffic("alice", "bob")
    world.run(HOLD + 1, lose)
    # bob has not forgotten: what alice sends in clear is nothing to him.
    assert world.traffic("alice", "bob") == "dropped"
    flow = Flow(world["alice"].address, world["bob"].address)
    assert world["alice"].kernel.transmit(flow)[0] == "clear"


@pytest.mark.parametrize("resting", [False, True], ids=["while it is asked", "while it rests"])
def test_forget_lets_pass_in_clear_after_a_second_who_does_not_answer(resting: bool) -> None:
    world = keyed()
    kill(world)
    alice = world["alice"]
    bob = alice.endpoint.policy.host_by_name("bob")
    assert bob is not None
    flow = Flow(alice.address, world["bob"].address)
    for _ in range(20 if resting else 1):  # the more failures, the longer it rests
        alice.kernel.transmit(flow)
        world.run(1, lose)
        while resting and alice.endpoint.commands_under_way:
            world.run(1, lose)
    assert alice.kernel.transmit(flow)[0] == "held"
    alice.endpoint.forget(bob, world.now)
    world.settle()
    world.wire.clear()
    alice.kernel.transmit(flow)
    world.settle()
    world.run(HOLD + 0.1, lose)
    assert alice.kernel.transmit(flow)[0] == "clear"


def test_another_principal_under_the_name_is_another_peer() -> None:
    world = keyed()
    alice = world["alice"].endpoint
    assert alice.forms.secured == {"bob": "kink/bob.example.test@EXAMPLE.TEST"}
    text = DOCUMENT.format(action="request", more="").replace("bob.example", "robert.example")
    world.realm = reader.read(Document.parse("p", text.encode()))
    alice.apply(world.policy(world["alice"].host), {4: frozenset(), 6: frozenset()}, world.now)
    bob = alice.policy.host_by_name("bob")
    assert bob is not None
    assert not alice.forms.is_secured(bob)


def test_what_the_kernel_has_is_what_the_reconciler_wants() -> None:
    """In each of the states: nothing is "restored"."""
    world = world_of()
    world.run(61)
    world.traffic("alice", "bob")
    world.run(120, lose)
    world.run(300)
    world.traffic("alice", "bob")
    world.run(300)
    for node in world.nodes.values():
        assert "reconcile.policies" not in node.endpoint.counters


# --- audit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", TUNNEL])
@pytest.mark.parametrize("action", ["require", "request"])
def test_audit_negotiates_and_drops_nothing(action: str, more: str) -> None:
    world = world_of(action, f"audit = true\n{more}")
    assert world.traffic("alice", "bob") == "clear"
    world.run(5)
    assert world.traffic("alice", "bob") == "esp"
    assert len(world["bob"].endpoint.pairs) == (4 if more else 1)
    kill(world)
    world.run(0.1, lose)
    for _ in range(10):
        assert world.traffic("alice", "bob") == "clear"
        world.run(30, lose)


def test_what_audit_would_block_passes() -> None:
    text = DOCUMENT.format(action="block", more="audit = true").replace('profile = "fast"', "")
    world = LivingWorld(document=text)
    assert world.traffic("alice", "bob") == "clear"


# --- break-glass ------------------------------------------------------------------------------


@pytest.mark.parametrize("more", ["", TUNNEL])
def test_break_glass_lets_pass_for_its_time_and_no_longer(more: str) -> None:
    world = world_of("require", more)
    world.traffic("alice", "bob")
    world.run(20, lose)
    for node in world.nodes.values():  # who is to be reached must not insist, either
        node.endpoint.suspend(POSIX + world.now + 600, world.now)
    world.settle()
    assert world.traffic("alice", "bob") == "clear"
    world.run(590, lose)
    assert world.traffic("alice", "bob") == "clear"
    world.run(11, lose)
    assert world.traffic("alice", "bob") == "held"
    assert len(world["alice"].events("enforcement-suspended")) == 10
    assert world["alice"].events("enforcement-resumed")


@pytest.mark.parametrize("more", ["", TUNNEL])
def test_break_glass_uses_the_sas_that_there_are(more: str) -> None:
    world = world_of("require", more)
    world.traffic("alice", "bob")
    world.run(1)
    world["alice"].endpoint.suspend(POSIX + world.now + 600, world.now)
    world.settle()
    assert world.traffic("alice", "bob") == "esp"
    assert passes(world, "bob", "alice") == "esp"


def test_break_glass_outlives_a_restart_and_ends_when_told() -> None:
    world = world_of("require")
    world["alice"].endpoint.suspend(POSIX + world.now + 600, world.now)
    world.settle()
    world.restart("alice")
    world.run(100, lose)
    assert world["alice"].kernel.policies()[-1].templates[0].optional
    world["alice"].endpoint.suspend(0.0, world.now)
    world.settle()
    assert world.traffic("alice", "bob") == "held"
    assert world["alice"].suspended == 0.0


def test_what_is_blocked_is_not_while_enforcement_is_suspended() -> None:
    world = LivingWorld(
        document=DOCUMENT.format(action="block", more="").replace('profile = "fast"', "")
    )
    assert world.traffic("alice", "bob") == "dropped"
    for node in world.nodes.values():
        node.endpoint.suspend(POSIX + world.now + 60, world.now)
    assert world.traffic("alice", "bob") == "clear"
    world.run(61)
    assert world.traffic("alice", "bob") == "dropped"
