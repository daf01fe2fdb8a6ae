"""KE payloads: forward secrecy in three messages (RFC 4430 §3.2, §5.7, §7; RFC 2409 §5.5)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinkd.exchange import quickmode
from kinkd.exchange.effects import Send
from kinkd.keying import dh
from kinkd.keying.algorithms import GROUP_NUMBERS
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import MessageType
from tests.support.pair import BOB, FAST, World, mirrored, offer, passes

STANDARD = replace(FAST, name="standard", groups=(19,))
QUICK = [name for name in GROUP_NUMBERS if not name.startswith("modp") or name == "modp2048"]


def assert_keyed_once(world: World) -> None:
    (alice,) = world["alice"].endpoint.pairs
    (bob,) = world["bob"].endpoint.pairs
    assert mirrored(alice, bob)
    assert passes(world, "alice", "bob") == "esp"
    assert passes(world, "bob", "alice") == "esp"


def opened(world: World, send: Send) -> tuple[isakmp.QuickModePayload, ...]:
    """The Quick Mode payloads of one of alice's messages or of the answer to it."""
    ticket = world.nodes["alice"].endpoint._core.peer(BOB).ticket
    assert ticket is not None
    sealed = kink.decode(send.datagram).message.payloads[1]
    assert isinstance(sealed, kink.Encrypt)
    (inner,) = kink.decode_inner(ticket.key.decrypt(39, sealed.cipher))
    assert isinstance(inner, kink.Isakmp)
    return isakmp.decode(inner)


@pytest.mark.rfc("4430-5.7-1", "4430-3.2-8")
@pytest.mark.parametrize("name", QUICK)
def test_every_group_keys_both_ways_in_three_messages(name: str) -> None:
    world = World(profile=replace(FAST, groups=(GROUP_NUMBERS[name],)))
    world.acquire("alice", "bob")
    world.run()
    types = [kink.header(send.datagram).type for send in world.sent]
    assert types == [MessageType.CREATE, MessageType.REPLY, MessageType.ACK]
    assert_keyed_once(world)


def test_both_public_values_and_the_group_are_on_the_wire_and_new_each_time() -> None:
    world = World(profile=STANDARD)
    seen = set()
    for _ in range(2):
        world.sent.clear()
        world.initiate("alice", "bob")
        world.run(0.5)
        for send in world.sent[:2]:
            association, _, exchange = opened(world, send)
            assert isinstance(association, isakmp.SecurityAssociation)
            for proposal in association.proposals:
                values = {a.type: a.value for a in proposal.transforms[0].attributes}
                assert values[3] == 19
            assert isinstance(exchange, isakmp.KeyExchange)
            seen.add(exchange.data)
    assert len(seen) == 4


def test_there_is_no_optimistic_sa_with_a_ke() -> None:
    world = World(profile=STANDARD)
    world.acquire("alice", "bob")
    assert [state.larval for state in world["alice"].kernel.states()] == [True]


def test_the_agreed_secret_is_in_the_keys() -> None:
    """Whoever knows ticket and nonces, but no private value, has other keys."""
    world = World(profile=STANDARD)
    other = World(profile=FAST)
    for each in (world, other):
        each.acquire("alice", "bob")
        each.run()
    (pair,) = world["alice"].endpoint.pairs
    assert pair.suite == "aes256gcm16"
    assert passes(world, "alice", "bob") == "esp"
    lone = world["alice"].kernel.send(
        other["bob"].kernel, world["alice"].address, world["bob"].address
    )
    assert lone != "esp"


@pytest.mark.rfc("4430-3.2-5")
def test_a_host_that_wants_no_ke_says_so_and_nothing_is_left() -> None:
    world = World(profile=STANDARD)
    world.nodes["bob"] = World(profile=FAST)["bob"]
    world.keys = {BOB.service: world.keys[BOB.service]}
    plain = World(profile=FAST)
    plain.nodes["alice"] = world["alice"]
    world["alice"].tickets._server_keys = plain.keys
    plain.acquire("alice", "bob")
    plain.run(1.0)
    assert "INVALID-PAYLOAD-TYPE" in str(plain["alice"].events("create-failed")[0]["reason"])
    for node in plain.nodes.values():
        assert not node.kernel.states()


@pytest.mark.parametrize(
    ("public", "reason"),
    [(b"", "bad-public-value"), (bytes(64), "bad-public-value"), (None, "ke-missing")],
)
def test_a_bad_public_value_or_none_is_refused(public: bytes | None, reason: str) -> None:
    world = World(profile=STANDARD)
    ticket = world["alice"].tickets.fetch(BOB.service)
    proposals = offer(FAST.suites[0], 0x2000, group=19 if public is not None else None)
    from kinkd.exchange.effects import Path
    from kinkd.exchange.verified import seal

    inner = (quickmode.creation(proposals, b"n" * 32, public),)
    proof = kink.ApReq(1000, ticket.authenticate().ap_req)
    datagram = seal(MessageType.CREATE, 3, proof, inner, ticket.key)
    path = Path(world["bob"].address, world["alice"].address)
    world["bob"].endpoint.receive(datagram, path, world.now)
    world.settle()
    assert world["bob"].endpoint.counters[f"drop.{reason}"] == 1
    assert not world["bob"].kernel.states()


@pytest.mark.rfc("4430-9-2", "4430-9-4")
@pytest.mark.parametrize("kind", [MessageType.CREATE, MessageType.REPLY, MessageType.ACK])
def test_the_loss_of_any_one_message_is_made_good(kind: MessageType) -> None:
    world = World(profile=STANDARD)
    lost: list[Send] = []

    def lose_first(send: Send) -> list[Send]:
        if kink.header(send.datagram).type == kind and not lost:
            lost.append(send)
            return []
        return [send]

    world.acquire("alice", "bob")
    world.run(10.0, lose_first)
    assert lost
    assert_keyed_once(world)


def test_the_names_of_policy_are_the_groups_there_are() -> None:
    assert set(GROUP_NUMBERS.values()) == set(dh.GROUPS)
