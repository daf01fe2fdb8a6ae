"""Bundles, and several Quick Modes in one CREATE: all of it or nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinkd.errors import KernelError
from kinkd.exchange import quickmode
from kinkd.exchange.effects import Path, Send
from kinkd.exchange.verified import seal
from kinkd.kernel.port import Expire
from kinkd.keying.algorithms import SUITES
from kinkd.model import IpsecProtocol
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import MessageType, ProtocolId
from tests.support.pair import ALICE, BOB, FAST, World, mirrored, offer, passes

PATH = Path(ALICE.addresses[0], BOB.addresses[0])
GCM, AES128 = SUITES["aes256gcm16"], SUITES["aes128gcm16"]
BUNDLE = replace(FAST, suites=(SUITES["ah-sha256+aes128-sha256"], SUITES["ah-sha1+aes128-sha1"]))
KE = replace(FAST, groups=(19, None))


def told(
    world: World, kind: MessageType, *inner: kink.Payload, xid: int = 7
) -> tuple[bool, tuple[kink.Payload, ...]]:
    """Give bob a command of alice's, made by hand; ACKREQ and what his REPLY holds."""
    ticket = world["alice"].tickets.fetch(BOB.service)
    proof = kink.ApReq(1000, ticket.authenticate().ap_req)
    world.wire.clear()
    world.deliver(Send(seal(kind, xid, proof, inner, ticket.key), PATH))
    if not world.wire:
        return False, ()
    message = kink.decode(world.wire.popleft().datagram).message
    if len(message.payloads) == 1:
        return message.ack_request, ()
    sealed = message.payloads[1]
    assert isinstance(sealed, kink.Encrypt)
    return message.ack_request, kink.decode_inner(ticket.key.decrypt(39, sealed.cipher))


def asked(spi: int, *suites: object, nonce: bytes = b"n" * 32, public: bytes | None = None):
    group = None if public is None else 19
    proposals = tuple(
        part
        for number, suite in enumerate(suites or (GCM,), 1)
        for part in offer(suite, spi, number=number, group=group)
    )
    return quickmode.creation(proposals, nonce, public)


def associations(inner: tuple[kink.Payload, ...]) -> list[tuple[isakmp.Proposal, ...]]:
    return [
        part.proposals
        for payload in inner
        if isinstance(payload, kink.Isakmp)
        for part in isakmp.decode(payload)
        if isinstance(part, isakmp.SecurityAssociation)
    ]


def codes(inner: tuple[kink.Payload, ...]) -> list[int]:
    return [
        part.type
        for payload in inner
        if isinstance(payload, kink.Isakmp)
        for part in isakmp.decode(payload)
        if isinstance(part, isakmp.Notification)
    ]


def acknowledge(world: World, xid: int = 7) -> None:
    assert told(world, MessageType.ACK, xid=xid) == (False, ())


# --- several Quick Modes ---


@pytest.mark.rfc("4430-5-1", "4430-4.2.6-3")
def test_each_quick_mode_is_answered_in_its_place_and_makes_its_pair() -> None:
    world = World()
    ack, inner = told(
        world, MessageType.CREATE, asked(0x2000), asked(0x3000, AES128, nonce=b"m" * 32)
    )
    assert not ack
    chosen = [proposals[0].transforms[0].attributes for proposals in associations(inner)]
    assert [{a.type: a.value for a in each}[6] for each in chosen] == [256, 128]
    pairs = list(world["bob"].endpoint.pairs)
    assert [pair.sas[0].outbound for pair in pairs] == [0x2000, 0x3000]
    answered = [int.from_bytes(proposals[0].spi) for proposals in associations(inner)]
    assert [pair.sas[0].inbound for pair in pairs] == answered
    assert len(world["bob"].kernel.states()) == 4


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (asked(0x3000, SUITES["aes128-sha1"]), 14),
        (asked(0x2000), 11),  # the SPI of the first
        (asked(0), 11),
        (kink.Isakmp(1, b"\0\0"), 16),
        (quickmode.deletion([(IpsecProtocol.ESP, 0x3000)]), 16),
    ],
    ids=["proposal", "spi twice", "reserved spi", "malformed", "no association"],
)
def test_one_that_cannot_be_leaves_nothing_of_the_others(second: kink.Isakmp, code: int) -> None:
    for order in (1, -1):
        world = World()
        _, inner = told(world, MessageType.CREATE, *(asked(0x2000), second)[::order])
        assert codes(inner) == [code]
        assert not associations(inner)
        assert not world["bob"].kernel.states()
        assert not list(world["bob"].endpoint.pairs)


def test_where_one_needs_an_ack_all_wait_for_it() -> None:
    world = World()
    last = asked(0x3000, SUITES["aes128-sha1"], AES128)
    ack, inner = told(world, MessageType.CREATE, asked(0x2000), last)
    assert ack
    assert [proposals[0].number for proposals in associations(inner)] == [1, 2]
    assert not list(world["bob"].endpoint.pairs)
    assert len(world["bob"].kernel.states()) == 2  # inbound alone
    acknowledge(world)
    assert len(list(world["bob"].endpoint.pairs)) == 2
    assert len(world["bob"].kernel.states()) == 4


@pytest.mark.parametrize("refused", [1, 2])
def test_what_the_kernel_refuses_at_the_last_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    world = World()
    kernel, calls = world["bob"].kernel, iter(range(1, 9))
    install = kernel.install_outbound

    def refusing(*arguments: object) -> None:
        if next(calls) == refused:
            raise KernelError(17, "NEWSA")
        install(*arguments)

    monkeypatch.setattr(kernel, "install_outbound", refusing)
    _, inner = told(world, MessageType.CREATE, asked(0x2000), asked(0x3000))
    assert inner == (kink.KinkError(5),)  # KINK_INTERR
    assert not kernel.states()
    assert not list(world["bob"].endpoint.pairs)


def test_a_repeated_create_of_several_gets_the_same_answer_also_after_a_restart() -> None:
    world = World()
    both = (asked(0x2000), asked(0x3000))
    first = told(world, MessageType.CREATE, *both)
    assert told(world, MessageType.CREATE, *both) == first
    world.restart("bob")
    assert told(world, MessageType.CREATE, *both) == first
    assert len(list(world["bob"].endpoint.pairs)) == 2
    # One of them gone: what is left of the command is not made again.
    told(world, MessageType.DELETE, quickmode.deletion([(IpsecProtocol.ESP, 0x2000)]), xid=8)
    world.run(5.0)
    told(world, MessageType.CREATE, *both)
    assert len(list(world["bob"].endpoint.pairs)) == 1


def test_too_many_at_once_are_refused_whole() -> None:
    world = World()
    ack, inner = told(
        world, MessageType.CREATE, *(asked(0x2000 + n, nonce=bytes([n]) * 32) for n in range(8))
    )
    assert not ack
    assert len(associations(inner)) == 8
    _, inner = told(world, MessageType.CREATE, *(asked(0x8000 + n) for n in range(9)), xid=6)
    assert codes(inner) == [16]
    for round_ in range(1, 8):
        many = (asked(0x2000 + 0x100 * round_ + n) for n in range(8))
        told(world, MessageType.CREATE, *many, xid=7 + round_)
    assert len(list(world["bob"].endpoint.pairs)) == 64
    _, inner = told(world, MessageType.CREATE, asked(0x9000), xid=20)
    assert inner == (kink.KinkError(5),)


# --- bundles ---


def keyed(**options: object) -> World:
    world = World(profile=BUNDLE, **options)
    world.acquire("alice", "bob")
    world.run()
    return world


@pytest.mark.rfc("4430-5-1")
def test_a_bundle_has_an_spi_and_keys_for_each_protocol_and_both_are_needed() -> None:
    world = keyed()
    (ours,), (theirs,) = world["alice"].endpoint.pairs, world["bob"].endpoint.pairs
    assert mirrored(ours, theirs)
    assert [spis.protocol for spis in ours.sas] == [IpsecProtocol.ESP, IpsecProtocol.AH]
    assert passes(world, "alice", "bob") == passes(world, "bob", "alice") == "ah+esp"
    world["bob"].kernel.remove(theirs.inbound[1])
    assert passes(world, "alice", "bob") == "dropped"


def test_a_bundle_in_three_messages() -> None:
    world = keyed(lacking={"bob": {"ah-sha256+aes128-sha256"}})
    (ours,), (theirs,) = world["alice"].endpoint.pairs, world["bob"].endpoint.pairs
    assert mirrored(ours, theirs)
    assert ours.suite == "ah-sha1+aes128-sha1"
    assert passes(world, "alice", "bob") == passes(world, "bob", "alice") == "ah+esp"
    assert len(world["alice"].kernel.states()) == 4


@pytest.mark.rfc("4430-3.3-2")
def test_whichever_spi_of_a_bundle_is_named_all_of_it_goes_and_all_is_told() -> None:
    for named in ((0,), (1,), (0, 1), (1, 0)):
        world = keyed()
        (theirs,) = world["alice"].endpoint.pairs
        (ours,) = world["bob"].endpoint.pairs
        spis = [theirs.inbound_spis[index] for index in named]
        _, inner = told(world, MessageType.DELETE, quickmode.deletion(spis))
        (payload,) = inner
        assert isinstance(payload, kink.Isakmp)
        deletes = {
            (part.protocol_id, spi)
            for part in isakmp.decode(payload)
            if isinstance(part, isakmp.Delete)
            for spi in part.spis
        }
        numbers = {IpsecProtocol.ESP: ProtocolId.ESP, IpsecProtocol.AH: ProtocolId.AH}
        assert deletes == {(numbers[p], spi.to_bytes(4, "big")) for p, spi in ours.inbound_spis}
        assert not codes(inner)
        world.run(5.0)
        assert not world["bob"].kernel.states()


def test_a_part_of_a_bundle_that_expires_takes_the_rest_with_it() -> None:
    for index in (0, 1):
        for direction in ("inbound", "outbound"):
            world = keyed()
            (pair,) = world["alice"].endpoint.pairs
            gone = getattr(pair, direction)[index]
            world["alice"].kernel.remove(gone)
            event = Expire(gone, pair.reqid, hard=True)
            world["alice"].endpoint.kernel_event(event, world.now)
            assert not list(world["alice"].endpoint.pairs)
            assert not world["alice"].kernel.states()


def test_both_soft_limits_of_a_bundle_make_one_new_pair() -> None:
    world = keyed()
    (old,) = world["alice"].endpoint.pairs
    for sa in old.outbound:
        world["alice"].endpoint.kernel_event(Expire(sa, old.reqid, hard=False), world.now)
        world.settle()
        world.run()
    assert len(list(world["alice"].endpoint.pairs)) == 2
    world.run(20.0)
    (ours,), (theirs,) = world["alice"].endpoint.pairs, world["bob"].endpoint.pairs
    assert mirrored(ours, theirs)
    assert ours.sas != old.sas
    assert passes(world, "alice", "bob") == "ah+esp"


# --- less than was hoped for ---


@pytest.mark.rfc("4430-3.2-6")
def test_a_peer_that_knows_no_ke_is_asked_again_without_where_the_policy_allows() -> None:
    world = World(profile=KE)
    world.nodes["bob"] = World(profile=FAST)["bob"]
    world.acquire("alice", "bob")
    world.run(5.0)
    (ours,), (theirs,) = world["alice"].endpoint.pairs, world["bob"].endpoint.pairs
    assert mirrored(ours, theirs)
    (refused,) = world["alice"].events("create-refused")
    assert "INVALID-PAYLOAD-TYPE" in str(refused["reason"])
    assert not world["alice"].events("create-failed")
    creates = [
        kink.header(send.datagram)
        for send in world.sent
        if kink.header(send.datagram).type == MessageType.CREATE
    ]
    assert len({create.xid for create in creates}) == 2  # another transaction, §3.2
    assert passes(world, "alice", "bob") == passes(world, "bob", "alice") == "esp"


def test_who_would_rather_have_ke_gives_it_and_who_must_have_it_gets_no_less() -> None:
    both = World(profile=KE)
    both.acquire("alice", "bob")
    both.run(5.0)
    assert not both["alice"].events("create-refused")
    strict = World(profile=replace(FAST, groups=(19,)))
    strict.nodes["bob"] = World(profile=FAST)["bob"]
    strict.acquire("alice", "bob")
    strict.run(5.0)
    (failed,) = strict["alice"].events("create-failed")
    assert "INVALID-PAYLOAD-TYPE" in str(failed["reason"])
    assert not list(strict["bob"].endpoint.pairs)
    # and the other way round: who asks without KE is refused by who must have it
    strict = World(profile=FAST)
    strict.nodes["bob"] = World(profile=replace(FAST, groups=(19,)))["bob"]
    strict.acquire("alice", "bob")
    strict.run(5.0)
    assert not list(strict["bob"].endpoint.pairs)


def test_groups_are_tried_in_their_order() -> None:
    world = World(profile=replace(FAST, groups=(31, 20, 19)))
    world.nodes["bob"] = World(profile=replace(FAST, groups=(19,)))["bob"]
    world.acquire("alice", "bob")
    world.run(5.0)
    assert len(world["alice"].events("create-refused")) == 2
    (ours,), (theirs,) = world["alice"].endpoint.pairs, world["bob"].endpoint.pairs
    assert mirrored(ours, theirs)


@pytest.mark.parametrize("theirs", [(False,), (True,), (True, False), (False, True)])
@pytest.mark.parametrize("ours", [(True, False), (False, True)])
def test_esn_where_both_have_it(ours: tuple[bool, ...], theirs: tuple[bool, ...]) -> None:
    world = World(profile=replace(FAST, esn=ours))
    world.nodes["bob"] = World(profile=replace(FAST, esn=theirs))["bob"]
    world.acquire("alice", "bob")
    world.run(5.0)
    expected = ours[0] if ours[0] in theirs else theirs[0]
    for node in world.nodes.values():
        assert {state.esn for state in node.kernel.states()} == {expected}
    assert passes(world, "alice", "bob") == passes(world, "bob", "alice") == "esp"


def test_a_peer_that_chokes_on_esn_is_asked_again_without(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(profile=replace(FAST, esn=(True, False)))
    bob = World(profile=FAST)["bob"]
    world.nodes["bob"] = bob
    read = quickmode.read_offers

    def choking(association: isakmp.SecurityAssociation):
        offers = read(association)
        if choking.armed and any(offer.terms.esn for offer in offers):
            raise quickmode.MalformedIsakmp("an attribute of class 11")
        return offers

    choking.armed = False
    monkeypatch.setattr(quickmode, "read_offers", choking)
    world.acquire("alice", "bob")
    choking.armed = True
    world.run(5.0)
    choking.armed = False
    (refused,) = world["alice"].events("create-refused")
    assert "PAYLOAD-MALFORMED" in str(refused["reason"])
    (ours,), (theirs,) = world["alice"].endpoint.pairs, bob.endpoint.pairs
    assert mirrored(ours, theirs)
    assert {state.esn for state in world["alice"].kernel.states()} == {False}
