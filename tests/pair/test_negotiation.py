"""What a responder makes of proposals, identities, notifications and XIDs that are not our own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinkd.exchange import quickmode
from kinkd.exchange.core import MEMORY_SECONDS
from kinkd.exchange.effects import Path
from kinkd.exchange.verified import seal
from kinkd.keying.algorithms import SUITES
from kinkd.model import IpsecProtocol, Lifetime, PortMatch, Profile
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import IdType, MessageType, ProtocolId
from tests.support.pair import ALICE, BOB, FAST, World, offer

PATH = Path(BOB.addresses[0], ALICE.addresses[0])
GCM = SUITES["aes256gcm16"]


def proposal(spi: int = 0x2000, number: int = 1, lifetime: Lifetime = FAST.lifetime):
    (made,) = offer(GCM, spi, number=number, lifetime=lifetime)
    return made


def quick_mode(*proposals: isakmp.Proposal, also: tuple[isakmp.QuickModePayload, ...] = ()):
    parts = (isakmp.SecurityAssociation(proposals), isakmp.Nonce(b"n" * 32), *also)
    return isakmp.encode(parts)


def tell(
    world: World, *inner: kink.Payload, xid: int = 7, kind: MessageType = MessageType.CREATE
) -> tuple[isakmp.QuickModePayload, ...]:
    """Send bob a genuine command of alice; the Quick Mode payloads of his answer."""
    ticket = world["alice"].tickets.fetch(BOB.service)
    proof = kink.ApReq(1000, ticket.authenticate().ap_req)
    world.wire.clear()
    world["bob"].endpoint.receive(seal(kind, xid, proof, inner, ticket.key), PATH, world.now)
    world.settle()
    (answer,) = world.wire
    payloads = kink.decode(answer.datagram).message.payloads
    assert isinstance(payloads[0], kink.ApRep)
    if len(payloads) == 1:
        return ()
    assert isinstance(payloads[1], kink.Encrypt)
    told = kink.decode_inner(ticket.key.decrypt(39, payloads[1].cipher))
    return tuple(
        part
        for payload in told
        if isinstance(payload, kink.Isakmp)
        for part in isakmp.decode(payload)
    )


def chosen(answer: tuple[isakmp.QuickModePayload, ...]) -> isakmp.Proposal:
    association = answer[0]
    assert isinstance(association, isakmp.SecurityAssociation)
    (only,) = association.proposals
    return only


AH = isakmp.Proposal(1, ProtocolId.AH, b"\0\0\x20\1", proposal().transforms)


@pytest.mark.rfc("4430-3.2-8", "4430-6.3-3", "4430-6.3-2")
@pytest.mark.parametrize(
    "offered",
    [
        [AH, proposal(number=2)],
        [AH, proposal(), proposal(0x3000, 2)],  # AH and ESP of one number: a bundle
    ],
    ids=["AH first", "a bundle first"],
)
def test_what_stands_second_is_never_taken_for_the_optimistic_proposal(
    offered: list[isakmp.Proposal],
) -> None:
    world = World()
    association, nonce = tell(world, quick_mode(*offered))
    assert isinstance(association, isakmp.SecurityAssociation)
    assert association.proposals[0].number == 2
    assert isinstance(nonce, isakmp.Nonce)
    assert kink.header(world.wire[-1].datagram).ack_request
    assert not list(world["bob"].endpoint.pairs)  # not before the ACK


def identities(kind: int, *addresses: bytes) -> tuple[isakmp.Identification, ...]:
    return tuple(isakmp.Identification(kind, 0, 0, address) for address in addresses)


ENDS = (ALICE.addresses[0].packed, BOB.addresses[0].packed)
WHOLE = identities(IdType.IPV4_ADDR, *ENDS)


def test_identities_of_the_two_addresses_are_given_back() -> None:
    answer = tell(World(), quick_mode(proposal(), also=WHOLE))
    assert chosen(answer)
    assert answer[1:] == WHOLE


def test_less_than_the_policy_protects_may_be_asked_for_and_the_sas_are_for_no_more() -> None:
    world = World()
    web = (replace(WHOLE[0], protocol=6), replace(WHOLE[1], protocol=6, port=443))
    assert tell(world, quick_mode(proposal(), also=web))[1:] == web
    (pair,) = world["bob"].endpoint.pairs
    assert pair.selector.source_port == PortMatch(443, 0xFFFF)  # ours is the responder's side
    assert {
        (s.selector.protocol, s.selector.destination_port)
        for s in world["bob"].kernel.states()
        if s.id == pair.inbound[0]
    } == {(6, PortMatch(443, 0xFFFF))}


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (identities(IdType.IPV4_ADDR, *reversed(ENDS)), 14),
        (identities(IdType.IPV4_ADDR_SUBNET, *(end + b"\xff\xff\xff\0" for end in ENDS)), 14),
        (identities(2, b"alice.example.test", b"bob.example.test"), 16),  # ID_FQDN
        ((replace(WHOLE[0], protocol=6), replace(WHOLE[1], protocol=17)), 16),
        ((WHOLE[0], replace(WHOLE[1], port=443)), 16),  # a port of no protocol
    ],
    ids=["other ends", "more than the policy", "a name", "two protocols", "a port alone"],
)
def test_other_identities_are_refused(bad: tuple[isakmp.Identification, ...], code: int) -> None:
    world = World()
    (refusal,) = tell(world, quick_mode(proposal(), also=bad))
    assert isinstance(refusal, isakmp.Notification)
    assert refusal.type == code
    assert not world["bob"].kernel.states()


@pytest.mark.rfc("4430-5.5-2", "4430-5.5-3")
@pytest.mark.parametrize("kind", [9, 14, 24578, 40000])
def test_a_notification_in_a_request_that_is_not_known_is_ignored(kind: int) -> None:
    notification = isakmp.Notification(ProtocolId.ESP, b"", kind)
    world = World()
    assert chosen(tell(world, quick_mode(proposal(), also=(notification,))))
    assert tell(world, isakmp.encode((notification,)), kind=MessageType.STATUS, xid=8) == ()
    logged = world["bob"].events("notification-ignored")
    assert [(each["peer"], each["type"]) for each in logged] == [("alice", kind)] * 2


@pytest.mark.rfc("4430-4-6", "4430-4-7")
def test_an_xid_that_comes_again_with_another_create_makes_another_pair() -> None:
    world = World()
    first = chosen(tell(world, quick_mode(proposal(0x2000))))
    second = chosen(tell(world, quick_mode(proposal(0x3000))))
    assert first.spi != second.spi
    assert len(world["bob"].endpoint.pairs) == 2


def test_an_xid_that_comes_again_before_its_ack_leaves_one_half_that_dies() -> None:
    world = World(lacking={"bob": {"aes256gcm16"}})
    (second,) = offer(SUITES["aes128gcm16"], 0x3000)
    for spi in (0x2000, 0x4000):
        tell(world, quick_mode(proposal(spi), replace(second, number=2)))
        assert len(world["bob"].kernel.states()) == 1
        second = replace(second, spi=b"\0\0\x50\0")
    world["alice"].kdc_up = world["bob"].kdc_up = False
    world.run(200.0, pass_on=lambda _: [])
    assert not world["bob"].kernel.states()


def test_an_xid_that_comes_again_with_a_delete_deletes() -> None:
    world = World()
    ours = chosen(tell(world, quick_mode(proposal(0x2000)))).spi
    (deleted,) = tell(
        world, quickmode.deletion([(IpsecProtocol.ESP, 0x2000)]), kind=MessageType.DELETE
    )
    assert deleted == isakmp.Delete(ProtocolId.ESP, (ours,))
    assert not list(world["bob"].endpoint.pairs)


def test_commands_are_forgotten_in_time() -> None:
    world = World()
    for number in range(1024):
        tell(world, xid=number, kind=MessageType.STATUS)
    assert world["bob"].endpoint.counters.get("drop.too-many-commands", 0) == 0
    tell(world, xid=2000, kind=MessageType.STATUS)
    assert world["bob"].endpoint.counters["drop.too-many-commands"] == 1
    world.advance(world.now + MEMORY_SECONDS + 1)
    assert chosen(tell(world, quick_mode(proposal())))


@pytest.mark.rfc("4430-3.3-3")
def test_a_delete_of_many_unknown_spis_is_answered_in_one_message() -> None:
    spis = [(IpsecProtocol.ESP, spi) for spi in range(0x5000, 0x5000 + 64)]
    answer = tell(World(), quickmode.deletion(spis), kind=MessageType.DELETE)
    assert {part.type for part in answer if isinstance(part, isakmp.Notification)} == {11}
    assert 1 <= len(answer) <= 16


@pytest.mark.rfc("4430-3.3-3")
def test_a_delete_of_an_ah_sa_is_an_invalid_spi_of_that_protocol() -> None:
    wanted = isakmp.encode((isakmp.Delete(ProtocolId.AH, (b"\0\0\x20\0",)),))
    (part,) = tell(World(), wanted, kind=MessageType.DELETE)
    assert part == isakmp.Notification(ProtocolId.AH, b"\0\0\x20\0", 11)


@pytest.mark.rfc("4430-3.2-3")
def test_the_shorter_lifetime_holds_for_both_sas_of_the_initiator() -> None:
    world = World()
    short = Profile("fast", FAST.suites, Lifetime(60))
    other = World(profile=short)
    world.nodes["bob"] = other["bob"]  # whose policy knows a shorter life
    world.nodes["bob"].acceptor = other["bob"].acceptor
    world.keys[BOB.service] = other.keys[BOB.service]
    world.acquire("alice", "bob")
    world.run()
    assert {s.limits.hard_seconds for s in world["alice"].kernel.states()} == {60}


def test_a_volume_that_was_not_offered_is_not_answered() -> None:
    world = World(profile=Profile("fast", FAST.suites, Lifetime(3600, 1 << 20)))
    answer = chosen(tell(world, quick_mode(proposal(lifetime=Lifetime(600)))))
    assert [a.value for a in answer.transforms[0].attributes if a.type == 1] == [1]
    (pair,) = world["bob"].endpoint.pairs
    assert pair.lifetime.kilobytes == 1 << 20
