"""An initiator's guards: what it takes for the answer to its CREATE, and what it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

import pytest

from kinkd.exchange import granting
from kinkd.exchange.effects import Path, Send
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.kerberos import etypes, messages
from kinkd.kerberos.keytab import KeytabEntry
from kinkd.kerberos.offline import OfflineAcceptor
from kinkd.keying import dh
from kinkd.keying.negotiate import Choice, choose
from kinkd.model import Mode, Profile
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import IdType, MessageType
from tests.pair.test_replies import PATH, command_of, give, key_of, outcome, proof_time
from tests.support.pair import ALICE, BOB, FAST, POSIX, World, mirrored, offer, passes

GCM, AES128 = FAST.suites
KE = replace(FAST, groups=(19,))
NR = isakmp.Nonce(b"r" * 32)
PUBLIC = isakmp.KeyExchange(dh.generate(dh.GROUPS[19]).public)
SPI = 0x7777


def asked(profile: Profile = FAST) -> World:
    """Alice has sent a CREATE that bob never gets."""
    world = World(profile=profile)
    world.acquire("alice", "bob")
    world.wire.clear()
    return world


def association(*offers: tuple[isakmp.Proposal, ...]) -> isakmp.SecurityAssociation:
    return isakmp.SecurityAssociation(sum(offers, ()))


OPTIMISTIC = association(offer(GCM, SPI))
SECOND = association(offer(AES128, SPI, number=2))
WITH_KE = association(offer(GCM, SPI, group=19))


def reply(
    world: World,
    *quick_modes: Sequence[isakmp.QuickModePayload],
    ack: bool = False,
    command: kink.Message | None = None,
    path: Path = PATH,
) -> list[kink.Message]:
    """Give alice a genuine REPLY of so many KINK_ISAKMP payloads; what she sends upon it."""
    command = command or command_of(world)
    key = key_of(world, command)
    proof = kink.ApRep(1001, messages.build_ap_rep(key, *proof_time(world, command)))
    chain: tuple[kink.Payload, ...] = (proof,)
    if quick_modes:
        inner = tuple(isakmp.encode(tuple(parts)) for parts in quick_modes)
        chain = (proof, kink.Encrypt(key.encrypt(39, kink.encode_inner(inner))))
    signed = kink.encode(kink.Message(MessageType.REPLY, command.xid, chain, ack_request=ack))
    datagram = kink.with_checksum(signed, key.checksum(40, signed))
    if path == PATH:
        return give(world, datagram)
    world["alice"].endpoint.receive(datagram, path, world.now)
    world.settle()
    return []


def identity(address: IPv4Address) -> isakmp.Identification:
    return isakmp.Identification(IdType.IPV4_ADDR, 0, 0, address.packed)


OURS = tuple(identity(each.addresses[0]) for each in (ALICE, BOB))
OTHERS = tuple(identity(IPv4Address(each)) for each in ("10.0.0.1", "10.0.0.3"))


@pytest.mark.parametrize(
    ("profile", "parts", "ack"),
    [
        (FAST, [OPTIMISTIC], False),
        (FAST, [OPTIMISTIC, *OURS], False),
        (FAST, [OPTIMISTIC], True),
        (FAST, [OPTIMISTIC, NR], True),
        (FAST, [SECOND], True),
        (FAST, [SECOND, NR], True),
        (KE, [WITH_KE, NR, PUBLIC], True),
    ],
    ids=["plain", "ids", "ack", "Nr", "second", "second, Nr", "KE"],
)
def test_what_a_responder_may_say_keys(
    profile: Profile, parts: list[isakmp.QuickModePayload], ack: bool
) -> None:
    world = asked(profile)
    sent = reply(world, parts, ack=ack)
    assert outcome(world) is True
    assert [each.type for each in sent] == [MessageType.ACK] * ack


@pytest.mark.rfc("4430-3.2-7", "4430-3.2-8", "4430-6.3-2")
@pytest.mark.parametrize(
    ("profile", "parts", "ack", "reason"),
    [
        (FAST, [OPTIMISTIC, *OTHERS], False, "other-identities"),
        (FAST, [OPTIMISTIC, *reversed(OURS)], False, "other-identities"),
        (FAST, [association(offer(GCM, 0))], False, "a reserved SPI"),
        (FAST, [association(offer(GCM, 255))], False, "a reserved SPI"),
        (FAST, [SECOND], False, "a choice that needs an ACK"),
        (FAST, [SECOND, NR], False, "a choice that needs an ACK"),
        (FAST, [OPTIMISTIC, NR], False, "a choice that needs an ACK"),
        (KE, [WITH_KE, NR, PUBLIC], False, "a choice that needs an ACK"),
        (KE, [WITH_KE, PUBLIC], False, "a choice that needs an ACK"),
        (KE, [WITH_KE, NR], True, "a KE payload on one side only"),
        (FAST, [OPTIMISTIC, NR, PUBLIC], True, "a KE payload on one side only"),
    ],
)
def test_what_it_may_not_say_keys_nothing_and_its_half_is_deleted(
    profile: Profile, parts: list[isakmp.QuickModePayload], ack: bool, reason: str
) -> None:
    world = asked(profile)
    sent = reply(world, parts, ack=ack)
    assert reason in str(outcome(world))
    assert [each.type for each in sent if each.type is not MessageType.ACK] == [MessageType.DELETE]
    assert not [each for each in world["alice"].kernel.states() if not each.larval]


@pytest.mark.rfc("4430-6.3-1")
@pytest.mark.parametrize(
    "quick_modes",
    [
        [],
        [[OPTIMISTIC], [association(offer(GCM, SPI + 1))]],
        [[OPTIMISTIC], [OPTIMISTIC]],
        [[association(offer(GCM, SPI), offer(AES128, SPI, number=2))]],
        [[isakmp.SecurityAssociation(offer(GCM, SPI) * 2)]],
    ],
    ids=["no Quick Mode", "two", "twice the same", "two proposals", "one proposal twice"],
)
def test_of_more_than_one_choice_or_none_nothing_is_taken(
    quick_modes: list[list[isakmp.QuickModePayload]],
) -> None:
    world = asked()
    reply(world, *quick_modes)
    assert isinstance(outcome(world), str)
    assert not [each for each in world["alice"].kernel.states() if not each.larval]
    assert world["alice"].endpoint.counters.get("internal-error", 0) == 0


@pytest.mark.rfc("4430-3.2-7", "4430-7-2")
def test_a_nonce_of_the_responders_renews_the_keys_of_the_optimistic_proposal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its SAs were live with keys of Ni alone, and the keys of a live SA cannot be changed."""

    def careful(*wanted: Any) -> Choice:
        return replace(choose(*wanted), optimistic=False)

    monkeypatch.setattr(granting, "choose", careful)
    world = World()
    world.acquire("alice", "bob")
    world.run()
    types = [kink.header(send.datagram).type for send in world.sent]
    assert types == [MessageType.CREATE, MessageType.REPLY, MessageType.ACK]
    (ours,), (theirs,) = (list(node.endpoint.pairs) for node in world.nodes.values())
    assert mirrored(ours, theirs)
    assert ours.suite == GCM.name
    assert passes(world, "alice", "bob") == passes(world, "bob", "alice") == "esp"


def test_a_peer_whose_half_was_refused_is_told_once() -> None:
    world = asked()
    create = command_of(world)
    wrong = [association(offer(GCM, SPI, mode=Mode.TUNNEL))]
    (delete,) = reply(world, wrong)
    assert delete.type is MessageType.DELETE
    assert not reply(world, command=delete)  # done, says the peer
    assert not world["alice"].debts
    assert not reply(world, wrong, command=create)  # which the network had twice
    assert not world["alice"].endpoint.commands_under_way


def test_a_reply_from_another_address_than_was_asked_is_dropped() -> None:
    world = asked()
    for path in (
        Path(PATH.local, IPv4Address("10.0.0.3")),
        Path(IPv4Address("10.0.0.9"), PATH.remote),
    ):
        reply(world, [OPTIMISTIC], path=path)
    assert world["alice"].endpoint.counters["drop.unexpected-reply"] == 2
    assert outcome(world) is None
    reply(world, [OPTIMISTIC])
    assert outcome(world) is True


def rekeyed(world: World, name: str) -> None:
    """A host gets another service key, in its keytab and at the KDC."""
    node = world[name]
    key = etypes.key(18, bytes([99]) * 32)
    world.keys[node.host.service] = (2, key)
    entry = KeytabEntry(node.host.service, 2, 18, key.secret)
    clock: Callable[[], float] = lambda: POSIX + world.now  # noqa: E731  # as the pair's own
    world.acceptors[name] = OfflineAcceptor([entry], clock)
    world.restart(name)


def test_a_ticket_that_nobody_answers_is_not_used_for_ever() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run()
    rekeyed(world, "bob")  # who knows its tickets of before no more

    def silent(send: Send) -> list[Send]:
        return [send] if send.path.local == ALICE.addresses[0] else []

    world.initiate("alice", "bob")
    world.run(TRANSACTION_SECONDS + 10, silent)
    assert len(world["alice"].events("create-failed")) == 1
    world.initiate("alice", "bob")
    world.run(TRANSACTION_SECONDS + 10)
    assert len(world["alice"].events("create-failed")) == 1
    assert len(world["alice"].events("sa-established")) == 2
