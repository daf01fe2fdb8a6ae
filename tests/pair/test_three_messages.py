"""The 3-message CREATE: another proposal chosen, Nr, ACKREQ and ACK (RFC 4430 §3.2, §9)."""

from __future__ import annotations

import pytest

from kinkd.exchange.effects import Send
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.support.pair import ALICE, BOB, World, mirrored, passes

CYCLE = TRANSACTION_SECONDS + 10


def world_of_three() -> World:
    """Bob's kernel has no AES-256: he takes alice's second proposal."""
    return World(lacking={"bob": {"aes256gcm16"}})


def types(world: World) -> list[MessageType]:
    return [kink.decode(send.datagram).message.type for send in world.sent]


def is_ack(send: Send) -> bool:
    return kink.header(send.datagram).type == MessageType.ACK


def assert_keyed_once(world: World) -> None:
    (alice,) = world["alice"].endpoint.pairs
    (bob,) = world["bob"].endpoint.pairs
    assert mirrored(alice, bob)
    assert alice.suite == bob.suite == "aes128gcm16"
    assert passes(world, "alice", "bob") == "esp"
    assert passes(world, "bob", "alice") == "esp"


@pytest.mark.rfc(
    "4430-3.2-7", "4430-3.2-8", "4430-3.2-9", "4430-6.2-1", "4430-6.3-2", "4430-6.3-3", "4430-7-2"
)
def test_another_proposal_takes_three_messages_and_both_nonces() -> None:
    world = world_of_three()
    world.acquire("alice", "bob")
    world.run()
    assert types(world) == [MessageType.CREATE, MessageType.REPLY, MessageType.ACK]
    create, reply, ack = (kink.decode(send.datagram).message for send in world.sent)
    assert (create.ack_request, reply.ack_request, ack.ack_request) == (False, True, False)
    assert [type(payload) for payload in ack.payloads] == [kink.ApReq]
    assert_keyed_once(world)


@pytest.mark.rfc("4430-4-8")
def test_the_optimistic_proposal_takes_two() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run()
    assert types(world) == [MessageType.CREATE, MessageType.REPLY]
    assert not kink.header(world.sent[1].datagram).ack_request


def test_the_responder_has_no_outbound_sa_before_the_ack() -> None:
    world = world_of_three()
    world.acquire("alice", "bob")
    world.deliver(world.wire.popleft())
    (state,) = world["bob"].kernel.states()
    assert state.id.destination == BOB.addresses[0]
    assert not list(world["bob"].endpoint.pairs)


@pytest.mark.rfc("4430-9-2")
def test_a_lost_reply_is_repeated_by_the_responder() -> None:
    world = world_of_three()
    world.acquire("alice", "bob")
    world.deliver(world.wire.popleft())
    world.wire.clear()
    # alice's retransmission is lost too: bob's own timer has to do it
    world.run(3.0, lambda s: [] if kink.header(s.datagram).type == MessageType.CREATE else [s])
    assert_keyed_once(world)


@pytest.mark.rfc("4430-9-4", "4430-3.2-9")
def test_a_lost_ack_is_made_again_as_often_as_it_is_asked_for() -> None:
    world = world_of_three()
    lost = []

    def lose_three_acks(send: Send) -> list[Send]:
        if is_ack(send) and len(lost) < 3:
            lost.append(send)
            return []
        return [send]

    world.acquire("alice", "bob")
    world.run(CYCLE, lose_three_acks)
    assert len(lost) == 3
    assert_keyed_once(world)


def test_without_an_ack_the_half_dies_and_the_initiator_hears_of_it() -> None:
    world = world_of_three()
    world.acquire("alice", "bob")
    world.run(CYCLE, lambda send: [] if is_ack(send) else [send])
    world.run(10.0)
    for node in world.nodes.values():
        assert not node.kernel.states()
        assert not list(node.endpoint.pairs)
    assert world["bob"].endpoint.counters["create.unacknowledged"] == 1
    world.acquire("alice", "bob")
    world.run(1.0)
    assert_keyed_once(world)


def test_a_repeated_ack_does_nothing() -> None:
    world = world_of_three()
    world.acquire("alice", "bob")
    world.run(1.0, lambda send: [send, send] if is_ack(send) else [send])
    assert_keyed_once(world)


def test_an_acquire_at_a_responder_that_awaits_an_ack_joins_it() -> None:
    world = world_of_three()
    world.acquire("alice", "bob")
    world.deliver(world.wire.popleft())
    world.acquire("bob", "alice")
    world.run(5.0)
    assert_keyed_once(world)


@pytest.mark.parametrize("leaver", ["alice", "bob"])
def test_leaving_in_the_middle_leaves_nothing(leaver: str) -> None:
    world = world_of_three()
    world.acquire("alice", "bob")
    world.deliver(world.wire.popleft())
    world[leaver].endpoint.stop_creating(world.now)
    world.settle()
    world.run(CYCLE)
    world[leaver].endpoint.terminate(
        {"alice": BOB, "bob": ALICE}[leaver], world.now, lambda _: None
    )
    world.settle()
    world.run(CYCLE)
    for node in world.nodes.values():
        assert not node.kernel.states()


def test_a_responder_that_restarts_before_the_ack_keys_anew() -> None:
    world = world_of_three()
    world.acquire("alice", "bob")
    world.deliver(world.wire.popleft())
    world.wire.clear()
    half = world["bob"].kernel.states()[0]
    world["bob"].kernel.remove(half.id)  # as a new start does with what nobody claims
    world.restart("bob")
    world.run(CYCLE)
    assert_keyed_once(world)
