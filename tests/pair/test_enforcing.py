"""Requested, audited and suspended traffic under a policy that changes meanwhile."""

from __future__ import annotations

import pytest

from kinkd.document import Document
from kinkd.exchange.enforcing import ATTEMPTS_AT_ONCE, ATTEMPTS_PER_SECOND, HOLD, SETTLING
from kinkd.keying.algorithms import SUITES
from kinkd.policy import reader
from tests.pair.test_request import DOCUMENT, TUNNEL, keyed, kill, lose, world_of
from tests.support.pair import LivingWorld

SUITE_NAMES = frozenset(SUITES)
AUDITED = f"audit = true\n{TUNNEL}"


def apply(world: LivingWorld, name: str, text: str) -> None:
    """Have a host go by another document."""
    world.realm = reader.read(Document.parse("policy", text.encode()))
    policy = world.policy(world[name].host)
    world[name].endpoint.apply(policy, {4: SUITE_NAMES, 6: SUITE_NAMES}, world.now)


def audited() -> LivingWorld:
    """Two gateways whose tunnels are in audit, and up."""
    world = world_of("require", AUDITED)
    world.run(5)
    assert world.traffic("alice", "bob") == "esp"
    return world


@pytest.mark.parametrize(
    "after",
    [
        DOCUMENT.format(action="block", more="").replace('profile = "fast"', ""),
        DOCUMENT.format(action="require", more=TUNNEL).replace('"fast"', '"standard"'),
        DOCUMENT.format(action="require", more=""),
        DOCUMENT.format(action="require", more=TUNNEL).replace(
            '"10.0.0.2"]', '"10.0.0.2"]\ndisabled = true'
        ),
    ],
    ids=["block", "profile", "transport", "disabled"],
)
def test_the_end_of_a_tunnel_in_audit_opens_nothing_that_the_next_policy_closes(
    after: str,
) -> None:
    world = audited()
    apply(world, "alice", after)
    endpoint, kernel = world["alice"].endpoint, world["alice"].kernel
    assert set(kernel.policies()) == set(endpoint.forms.wanted(endpoint.policy))
    world.run(0.1, lose)
    assert world.traffic("alice", "bob") in ("held", "dropped")


def test_who_does_not_ask_for_a_tunnel_does_not_try_for_it_either() -> None:
    text = DOCUMENT.format(action="require", more=f'back = "clear"\n{TUNNEL}').replace(
        'from = "all"\nto = "all"', 'from = "alice"\nto = "bob"'
    )
    world = LivingWorld(document=text)
    assert not world.protection("bob", "alice").initiates
    world.run(120)
    assert not world.sent
    assert world.traffic("bob", "alice") == "clear"
    assert world.traffic("alice", "bob") == "held"
    world.run(1)
    assert world.traffic("alice", "bob") == "esp"


@pytest.mark.parametrize("before", ["require", "audit"])
def test_whoever_has_sas_is_secured_when_the_policy_comes_to_request_them(before: str) -> None:
    world = world_of("require") if before == "require" else world_of("request", "audit = true")
    world.traffic("alice", "bob")
    world.run(5)
    assert world.traffic("alice", "bob") == "esp"
    for name in world.nodes:
        apply(world, name, DOCUMENT.format(action="request", more=""))
    world.run(SETTLING + 1)
    assert world["alice"].secured == {"bob": "kink/bob.example.test@EXAMPLE.TEST"}
    kill(world)
    for _ in range(5):
        assert world.traffic("alice", "bob") in ("held", "dropped")
        world.run(HOLD + 10, lose)


def test_who_is_forgotten_while_he_rests_is_held_up_no_longer_than_another() -> None:
    world = keyed()
    kill(world)
    for _ in range(4):  # the next rest is longer than a packet is held
        world.traffic("alice", "bob")
        world.run(60, lose)
    world.traffic("alice", "bob")
    while not world["alice"].events("create-failed")[4:]:
        assert world.traffic("alice", "bob") == "held"
        world.run(1, lose)
    alice = world["alice"].endpoint
    bob = alice.policy.host_by_name("bob")
    assert bob is not None
    assert alice.forget(bob, world.now)
    world.settle()
    assert world.traffic("alice", "bob") == "held"
    world.run(HOLD + 0.1, lose)
    assert {remote for _, remote, _ in alice.forms.clear} == {world["bob"].address}


def test_what_is_no_slot_of_the_policy_any_more_is_not_remembered() -> None:
    world = world_of()
    world.traffic("alice", "bob")
    world.run(HOLD + 1, lose)
    alice = world["alice"].endpoint
    assert alice.forms.clear
    apply(world, "alice", DOCUMENT.format(action="require", more="").replace("fast", "standard"))
    assert not alice.forms.clear


def test_many_tunnels_that_nothing_asks_for_are_not_begun_all_at_once() -> None:
    networks = [f"10.{{}}.{number}.0/24" for number in range(20)]
    text = DOCUMENT.format(action="require", more=AUDITED)
    for one in ("1", "2"):
        many = ", ".join(f'"{network.format(one)}"' for network in networks)
        text = text.replace(f'"10.{one}.0.0/16"', many)
    world = LivingWorld(document=text)
    alice = world["alice"].endpoint
    assert len(alice.policy.protections) == 21 * 21
    world.run(3, lose)
    assert (
        ATTEMPTS_AT_ONCE <= alice.commands_under_way <= ATTEMPTS_AT_ONCE + 3 * ATTEMPTS_PER_SECOND
    )
    world.run(60)
    assert world["alice"].endpoint.pairs.in_slot(alice.policy.protections[-1].slot)
    assert len({pair.slot for pair in alice.pairs}) == 21 * 21
