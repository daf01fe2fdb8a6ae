"""A pair is replaced while it lives: by its initiator, and where that one fails by the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinkd.exchange.pairs import Role, SaPair
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.model import Lifetime, Profile
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.support.pair import ALICE, FAST, LivingWorld, World, mirrored, passes

KE = replace(FAST, groups=(19,))
PROFILES = pytest.mark.parametrize("profile", [FAST, KE], ids=["fast", "ke"])


def keyed(profile: Profile = FAST) -> LivingWorld:
    world = LivingWorld(profile)
    world.traffic("alice", "bob")
    world.run()
    return world


def only(world: World, name: str) -> SaPair:
    (pair,) = world[name].endpoint.pairs
    return pair


def live(world: LivingWorld, seconds: float, *, every: float = 1.0, network=lambda send: [send]):
    """Let time pass with a packet each way, and count those that did not get through."""
    lost = 0
    end = world.now + seconds
    while world.now < end:
        for ends in (("alice", "bob"), ("bob", "alice")):
            lost += world.traffic(*ends) != "esp"
        world.run(every, network)
    return lost


@PROFILES
@pytest.mark.rfc("4430-3.6-1", "4430-3.6-2")
def test_a_day_of_rekeys_by_time_loses_no_packet(profile: Profile) -> None:
    world = keyed(profile)
    assert live(world, 86400.0, every=5.0) == 0
    assert mirrored(only(world, "alice"), only(world, "bob"))
    made = world["alice"].endpoint.counters["create.initiated"]
    assert 24 <= made <= 27
    assert "create.initiated" not in world["bob"].endpoint.counters
    assert len(world["alice"].kernel.states()) == 2


@PROFILES
@pytest.mark.parametrize("busy", ["alice", "bob"])
def test_rekeys_by_volume_lose_no_packet_whoever_sends(profile: Profile, busy: str) -> None:
    world = keyed(replace(profile, lifetime=Lifetime(3600, 1024)))
    peer = "bob" if busy == "alice" else "alice"
    for number in range(5000):
        node, other = world[busy], world[peer]
        assert node.kernel.send(other.kernel, node.address, other.address, size=4096) == "esp"
        if number % 50 == 0:  # else one would ask why nothing comes back
            assert world.traffic(peer, busy) == "esp"
        world.settle()
        world.run(0.1)
    assert world["alice"].endpoint.counters["create.initiated"] >= 20
    assert "create.initiated" not in world["bob"].endpoint.counters


def test_an_initiator_that_does_not_rekey_is_given_its_time_and_then_the_responder_does() -> None:
    world = keyed()
    old = only(world, "bob")
    assert old.role is Role.RESPONDER
    world["alice"].endpoint._rekeying.soft_expired = lambda *_: None  # type: ignore[method-assign]
    assert live(world, 3600 - 2 * TRANSACTION_SECONDS - 1) == 0
    assert only(world, "bob") is old
    before = world.now
    assert live(world, 2 * TRANSACTION_SECONDS) == 0
    new = only(world, "bob")
    assert (new.role, world["bob"].endpoint.counters["rekey.taken-over"]) == (Role.INITIATOR, 1)
    assert new.created - (before + 1_800_000_000) >= TRANSACTION_SECONDS
    assert live(world, 60.0) == 0


def test_who_fails_to_rekey_tries_again_as_long_as_the_pair_lives() -> None:
    world = keyed()
    old = only(world, "alice")
    world["bob"].endpoint._rekeying.soft_expired = lambda *_: None  # type: ignore[method-assign]
    live(world, 3600 - 4 * TRANSACTION_SECONDS)
    live(world, TRANSACTION_SECONDS * 3.4, network=lambda _: [])  # no REPLY to the first attempts
    assert world["alice"].endpoint.counters["create.failed"] >= 1
    assert only(world, "alice") is old
    assert live(world, 15.0) == 0
    assert only(world, "alice") is not old


def test_a_soft_limit_that_nobody_was_told_of_is_found_at_the_next_start() -> None:
    world = keyed()
    old = only(world, "alice")
    world.kernels_count = True
    for node in world.nodes.values():  # both daemons sleep through it
        node.kernel.advance(world.now + 3600 - 70)
        node.kernel.events()
    world.now += 3600 - 70
    world.begin_anew("alice", reboot=False)
    world.run(5.0)
    assert only(world, "alice") is not old
    assert passes(world, "alice", "bob") == "esp"


def test_a_rekey_under_way_is_not_begun_twice() -> None:
    world = keyed()
    pair = only(world, "alice")
    world.sent.clear()
    for sa in (*pair.inbound, *pair.outbound):
        world["alice"].endpoint._rekeying.soft_expired(sa, world.now)
    world.settle()
    kinds = [kink.header(send.datagram).type for send in world.sent]
    assert kinds == [MessageType.CREATE]


def test_terminated_pairs_are_not_rekeyed() -> None:
    world = keyed()
    world["bob"].endpoint.terminate(ALICE, world.now, lambda _: None)
    world.settle()
    world.run(7200.0)
    assert not list(world["alice"].endpoint.pairs)
    assert world["alice"].endpoint.counters["create.initiated"] == 1
