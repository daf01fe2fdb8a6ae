"""Half-pairs: how they come about, and that they die, each in the time that is stated for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from kinkd.exchange.debts import FIRST_PAUSE, LONGEST_PAUSE, OWED_SPIS
from kinkd.exchange.effects import Send
from kinkd.exchange.quickmode import notification
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.kernel.port import Expire
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType, NotifyType
from tests.support.pair import (
    ALICE,
    BOB,
    FAST,
    Filter,
    LivingWorld,
    World,
    mirrored,
    passes,
)

CYCLE = TRANSACTION_SECONDS + 10
KE = replace(FAST, groups=(19,))


def keyed(profile: object = FAST) -> World:
    world = World(profile=profile) if profile is KE else World()
    world.acquire("alice", "bob")
    world.run(0.01)
    return world


def type_of(send: Send) -> MessageType:
    return MessageType(kink.header(send.datagram).type)


def without(*types: MessageType) -> Filter:
    return lambda send: [] if type_of(send) in types else [send]


def nothing(_: Send) -> list[Send]:
    return []


def take(world: World, wanted: MessageType) -> Send:
    """Take the only datagram of a type off the wire."""
    (send,) = [send for send in world.wire if type_of(send) is wanted]
    world.wire.remove(send)
    return send


def assert_empty(world: World) -> None:
    for node in world.nodes.values():
        assert not list(node.endpoint.pairs)
        assert not [state for state in node.kernel.states() if not state.larval]


def assert_keyed_once(world: World) -> None:
    (alice,), (bob,) = (list(world[name].endpoint.pairs) for name in ("alice", "bob"))
    assert mirrored(alice, bob)
    for name, pair in (("alice", alice), ("bob", bob)):
        there = {state.id for state in world[name].kernel.states() if not state.larval}
        assert there == {*pair.inbound, *pair.outbound}
    assert passes(world, "alice", "bob") == passes(world, "bob", "alice") == "esp"


def hard_expiry(world: World, name: str) -> None:
    (pair,) = world[name].endpoint.pairs
    world[name].kernel.remove(pair.outbound[0])
    world[name].endpoint.kernel_event(Expire(pair.outbound[0], pair.reqid, hard=True), world.now)
    world.settle()


# What each loss leaves behind: at whom, and how it comes about.


def reply_lost(world: World) -> None:
    world.acquire("alice", "bob")
    world.run(CYCLE, without(MessageType.REPLY))


def delete_lost(world: World) -> None:
    world.acquire("alice", "bob")
    world.run(1.0)
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(CYCLE, nothing)


def expiry_untold(world: World) -> None:
    world.acquire("alice", "bob")
    world.run(1.0)
    hard_expiry(world, "alice")
    world.run(CYCLE, nothing)


def ack_lost(world: World) -> None:
    world.acquire("bob", "alice")
    world.run(CYCLE, without(MessageType.ACK, MessageType.DELETE))
    world.run(CYCLE, nothing)


LOSSES = {
    "reply": (FAST, reply_lost),
    "delete": (FAST, delete_lost),
    "expiry": (FAST, expiry_untold),
    "ack": (KE, ack_lost),
}


@pytest.mark.rfc("4430-3.3-2", "4430-3.3-5")
@pytest.mark.parametrize(("profile", "lose"), LOSSES.values(), ids=LOSSES)
def test_a_half_pair_dies_with_the_next_message_between_the_two(
    profile: object, lose: Callable[[World], None]
) -> None:
    for name, peer in (("alice", "bob"), ("bob", "alice")):
        world = World(profile=KE) if profile is KE else World()
        lose(world)
        assert len(world["bob"].endpoint.pairs) == 1  # bob's half, of which alice has none
        assert not list(world["alice"].endpoint.pairs)
        (half,) = world["bob"].endpoint.pairs
        world.initiate(name, peer)
        world.run(0.01)
        assert half not in list(world["bob"].endpoint.pairs)
        world.run(5.0)
        assert_keyed_once(world)


@pytest.mark.parametrize(("profile", "lose"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("dead", [0.0, 1000.0])
def test_without_any_message_it_dies_soon_after_the_network_works(
    profile: object, lose: Callable[[World], None], dead: float
) -> None:
    world = World(profile=KE) if profile is KE else World()
    lose(world)
    world.run(dead, nothing)
    assert len(world["bob"].endpoint.pairs) == 1
    world.run(LONGEST_PAUSE if dead else FIRST_PAUSE)
    world.run(5.0)  # grace
    assert_empty(world)


def test_what_is_owed_is_not_told_beyond_the_life_of_the_half() -> None:
    world = World()
    reply_lost(world)
    world.run(FAST.lifetime.seconds - CYCLE, nothing)
    world.run(LONGEST_PAUSE, nothing)
    world.sent.clear()
    world.run(86400)
    assert not world.sent
    world.pass_refresh()
    assert world["alice"].endpoint.timers == 1


def test_what_is_owed_to_a_dead_peer_is_one_delete_at_a_time_and_bounded() -> None:
    world = World()
    world["alice"].endpoint.peer(BOB).round_trip.sample(0.01)  # it was there a moment ago
    for _ in range(OWED_SPIS + 10):
        world.initiate("alice", "bob")
        lifecycle = world["alice"].endpoint._lifecycle
        world.now += 0.001
        for attempt in list(world["alice"].endpoint._creating.values()):
            assert attempt.exchange is not None
            world["alice"].endpoint._initiator.cancel(attempt.exchange, "test", world.now)
    world.wire.clear()
    assert len(lifecycle._debts) == OWED_SPIS
    assert world["alice"].endpoint.commands_under_way == 0
    world.sent.clear()
    world.run(FIRST_PAUSE + 1)
    assert [type_of(send) for send in world.sent] == [MessageType.DELETE, MessageType.REPLY]
    assert len(lifecycle._debts) == 0


def test_a_peer_that_refuses_a_delete_is_not_asked_again_at_once() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run(1.0)
    (pair,) = world["bob"].endpoint.pairs
    bob = world["bob"].endpoint._responder
    refusal = notification(NotifyType.NO_PROPOSAL_CHOSEN)
    world.sent.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bob), "_delete", lambda *_: (refusal,))
        hard_expiry(world, "alice")
        world.run(FIRST_PAUSE - 5)
    assert [type_of(send) for send in world.sent] == [MessageType.DELETE, MessageType.REPLY]
    assert list(world["bob"].endpoint.pairs) == [pair]
    world.run(FIRST_PAUSE)
    assert_empty(world)


def test_a_dead_peers_delete_is_reported_once() -> None:
    world = World()
    delete_lost(world)
    world.run(1000.0, nothing)
    assert world["alice"].endpoint.counters["delete.failed"] > 3
    assert len(world["alice"].events("delete-failed")) <= 2


@pytest.mark.rfc("4430-3.3-2")
def test_a_limit_that_only_one_kernel_reached_ends_both_halves() -> None:
    world = keyed()
    hard_expiry(world, "alice")
    world.run(5.0)
    assert_empty(world)


@pytest.mark.rfc("4430-3.3-3")
def test_a_delete_that_overtakes_the_reply_leaves_no_half_at_the_initiator() -> None:
    for profile in (FAST, KE):
        world = World(profile=profile)
        world.acquire("alice", "bob")
        world.deliver(take(world, MessageType.CREATE))
        reply = take(world, MessageType.REPLY)
        bob = world["bob"].endpoint
        if profile is KE:
            bob._responder.half_open.give_up_all(world.now)
        else:
            bob.terminate(ALICE, world.now, lambda _: None)
        world.settle()
        world.run(0.01)
        world.deliver(reply)
        world.run(5.0)
        assert_empty(world)


@pytest.mark.rfc("4430-3.3-3")
def test_a_delete_that_overtakes_the_create_leaves_no_half_at_the_responder() -> None:
    world = World()
    world.acquire("alice", "bob")
    create = take(world, MessageType.CREATE)
    world.run(CYCLE, nothing)
    world.run(FIRST_PAUSE)  # what bob has not got yet is deleted
    assert world["alice"].endpoint.counters["delete.initiated"] == 1
    world.deliver(create)
    world.wire.clear()  # alice does not hear that it came
    assert_empty(world)


def test_a_withheld_create_that_another_life_answers_does_not_split_the_keys() -> None:
    world = LivingWorld(KE)
    world.acquire("bob", "alice")  # a pair that outlives alice's restart
    world.run(1.0)
    world.initiate("bob", "alice")
    first = take(world, MessageType.CREATE)
    world.advance(world.now + 0.6)
    withheld = take(world, MessageType.CREATE)
    world.deliver(first)
    world.deliver(take(world, MessageType.REPLY))
    world.wire.clear()  # the ACK
    world.begin_anew("alice", reboot=False)
    world.wire.clear()  # the DELETE of the half that the new life found
    world.deliver(withheld)
    world.run(CYCLE)
    assert all(mirrored(*both) for both in zip(*pairs_of(world), strict=True))
    for source, destination in (("alice", "bob"), ("bob", "alice")):
        assert world.traffic(source, destination) in ("esp", "held")
    world.run(CYCLE)
    assert_keyed_once(world)


def pairs_of(world: World) -> list[list[object]]:
    return [list(world[name].endpoint.pairs) for name in ("alice", "bob")]


@pytest.mark.rfc("4430-3.7-3")
def test_a_delayed_reply_of_an_earlier_life_does_not_void_the_pairs_of_the_new_one() -> None:
    world = LivingWorld()
    world.acquire("alice", "bob")
    world.run(1.0)
    world.initiate("bob", "alice")
    world.deliver(take(world, MessageType.CREATE))
    delayed = take(world, MessageType.REPLY)
    world.advance(world.now + 0.05)
    world.begin_anew("alice", reboot=True)
    world.wire.clear()
    world.acquire("alice", "bob")
    world.run(0.05)
    (new,) = world["bob"].endpoint.pairs
    world.deliver(delayed)
    assert new in list(world["bob"].endpoint.pairs)
    world.run(CYCLE)
    assert_keyed_once(world)


@pytest.mark.rfc("4430-3.7-8")
def test_an_epoch_that_could_not_be_confirmed_is_asked_for_again() -> None:
    world = LivingWorld()
    world.acquire("alice", "bob")
    world.run(1.0)
    world.begin_anew("bob", reboot=True)
    world.wire.clear()
    world.acquire("bob", "alice")
    world.run(CYCLE, without(MessageType.STATUS, MessageType.DELETE))
    assert len(world["alice"].endpoint.pairs) == 2
    world.run(FIRST_PAUSE)
    world.run(5.0)
    assert_keyed_once(world)


@pytest.mark.parametrize("profile", [FAST, KE], ids=["fast", "ke"])
def test_an_initiator_that_restarts_in_the_middle_has_the_other_half_removed(
    profile: object,
) -> None:
    world = LivingWorld(KE if profile is KE else FAST)
    world.acquire("alice", "bob")
    world.run(1.0)
    (old,) = world["alice"].endpoint.pairs
    world.initiate("alice", "bob")
    world.deliver(take(world, MessageType.CREATE))
    world.wire.clear()
    world.begin_anew("alice", reboot=False)
    world.run(CYCLE)
    assert_keyed_once(world)
    assert list(world["alice"].endpoint.pairs) == [old]


def test_a_kernel_that_will_not_at_the_ack_has_the_initiators_half_removed() -> None:
    world = World(profile=KE)
    world.acquire("alice", "bob")
    world.deliver(take(world, MessageType.CREATE))
    world.deliver(take(world, MessageType.REPLY))
    (pair,) = world["alice"].endpoint.pairs
    (sa,) = pair.inbound
    world["bob"].kernel._states[sa.name] = world["alice"].kernel._states[sa.name]
    world.deliver(take(world, MessageType.ACK))
    assert world["bob"].endpoint.counters["kernel-error"] == 1
    world["bob"].kernel.remove(sa)
    world.run(5.0)
    assert_empty(world)


def test_initiating_while_the_peers_pair_awaits_its_ack_replaces_that_too() -> None:
    world = World(profile=KE)
    world.acquire("alice", "bob")
    world.deliver(take(world, MessageType.CREATE))
    world.deliver(take(world, MessageType.REPLY))
    ack = take(world, MessageType.ACK)
    world.initiate("bob", "alice")
    world.run(0.05)
    world.deliver(ack)
    world.run(20.0)
    assert_keyed_once(world)


def test_a_new_pair_replaces_all_that_were_there() -> None:
    world = keyed()
    (old,) = world["alice"].endpoint.pairs
    world["alice"].kernel.remove(old.outbound[0])  # nobody says so
    world.acquire("alice", "bob")
    world.run(20.0)
    assert_keyed_once(world)


def test_a_kdc_that_is_away_is_asked_by_one_chain_of_attempts() -> None:
    world = World()
    world["alice"].kdc_up = False
    for _ in range(20):  # one attempt after the other, each given up before the next
        world.initiate("alice", "bob")
        world.run(5.0)
        for attempt in list(world["alice"].endpoint._creating.values()):
            assert attempt.exchange is not None
            world["alice"].endpoint._initiator.cancel(attempt.exchange, "test", world.now)
    asked = world["alice"].endpoint.counters["ticket-unavailable"]
    assert 8 <= asked <= 16  # with pauses that grow to a quarter of a minute or so
    world.acquire("alice", "bob")
    assert world["alice"].endpoint.counters["ticket-unavailable"] <= asked + 1
    world.run(CYCLE)
    world.pass_refresh()
    assert world["alice"].endpoint.timers == 1


def test_a_repeated_reply_is_acknowledged_again_and_nothing_else_happens() -> None:
    world = World(profile=KE)
    world.acquire("alice", "bob")
    world.deliver(take(world, MessageType.CREATE))
    reply = take(world, MessageType.REPLY)
    for _ in range(3):
        world.deliver(reply)
    world.run(5.0)
    assert_keyed_once(world)
    assert "late-reply" not in world["alice"].endpoint.counters
