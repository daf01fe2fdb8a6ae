"""What every message that we send has in common, whatever it is for."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest

from kinkd.errors import TicketRefused
from kinkd.exchange import quickmode
from kinkd.exchange.effects import Path, Send
from kinkd.exchange.verified import seal
from kinkd.keying.algorithms import SUITES
from kinkd.model import IpsecProtocol, Lifetime
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import IsakmpPayload, MessageType
from tests.support.pair import ALICE, BOB, CAROL, FAST, World, offer

COMMANDS = (MessageType.CREATE, MessageType.DELETE, MessageType.STATUS)
PROOFS = (kink.ApReq, kink.ApRep)
PATH = Path(ALICE.addresses[0], BOB.addresses[0])


@dataclass
class Sent:
    """A datagram of ours, with the session key of its exchange."""

    datagram: bytes
    received: kink.Received
    key: object

    @property
    def message(self) -> kink.Message:
        return self.received.message

    @property
    def inner(self) -> tuple[kink.Payload, ...]:
        for payload in self.message.payloads:
            if isinstance(payload, kink.Encrypt):
                return kink.decode_inner(self.key.decrypt(39, payload.cipher))
        return ()


def genuine(world: World, kind: MessageType, xid: int, *inner: kink.Payload, server=BOB) -> Send:
    """A command of alice, made by hand."""
    ticket = world["alice"].tickets.fetch(server.service)
    proof = kink.ApReq(1000, ticket.authenticate().ap_req)
    return Send(seal(kind, xid, proof, inner, ticket.key), PATH)


def creation(spi: int, suite: str = "aes256gcm16") -> kink.Isakmp:
    proposals = offer(SUITES[suite], spi, lifetime=Lifetime(600))
    return quickmode.creation(proposals, b"n" * 32)


def busy_world() -> tuple[World, list[Send]]:
    """CREATE, DELETE and STATUS of ours, done and repeated; commands made by hand, refused."""
    world = World((ALICE, BOB, CAROL))
    given: list[Send] = []

    def tell(send: Send) -> None:
        given.append(send)
        world.sent.append(send)
        world.deliver(send)

    world.acquire("alice", "bob")
    world.wire.popleft()
    world.run(1.0)
    world.acquire("carol", "bob")
    world.run()
    world.restart("carol", epoch=3000)
    world.acquire("carol", "bob")
    world.run(5.0)
    for number, inner in enumerate(
        (
            (creation(0x2000, "aes128-sha1"),),
            (creation(0),),
            (creation(0x2001), creation(0x2002)),
            (isakmp.encode((isakmp.Nonce(b"n" * 32),)),),
            (kink.Isakmp(1, b"", 2, 0),),
            (kink.Isakmp(13, bytes.fromhex("00000004")),),
        )
    ):
        tell(genuine(world, MessageType.CREATE, 900 + number, *inner))
    tell(genuine(world, MessageType.DELETE, 950, quickmode.deletion([(IpsecProtocol.ESP, 0x9999)])))
    tell(genuine(world, MessageType.STATUS, 951, server=CAROL))
    tell(Send(kink.encode(kink.Message(MessageType.GETTGT, 952, (kink.TgtReq(b"x"),))), PATH))
    for version, doi in ((0x20, 1), (0x10, 2)):
        octets = bytearray(genuine(world, MessageType.STATUS, 953).datagram)
        octets[1], octets[7] = version, doi
        world.deliver(Send(bytes(octets), PATH))
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(10.0)
    return world, given


def everything() -> Iterator[Sent]:
    world, given = busy_world()
    keys: dict[tuple[object, int], object] = {}  # of who asks; XIDs of another EPOCH come later
    for send in world.sent:
        received = kink.decode(send.datagram)
        message = received.message
        proof = message.payloads[0]
        asker = send.path.local if message.type in COMMANDS else send.path.remote
        if isinstance(proof, kink.ApReq):
            server = next(n for n in world.nodes.values() if n.address == send.path.remote)
            with suppress(TicketRefused):
                keys[asker, message.xid] = server.acceptor.open(proof.ap_req).key
        if send not in given:
            yield Sent(send.datagram, received, keys.get((asker, message.xid)))


@pytest.fixture(scope="module")
def sent() -> list[Sent]:
    return list(everything())


def quick_modes(sent: list[Sent]) -> list[kink.Isakmp]:
    return [part for each in sent for part in each.inner if isinstance(part, kink.Isakmp)]


def test_there_is_something_of_every_kind(sent: list[Sent]) -> None:
    assert {each.message.type for each in sent} == {*COMMANDS, MessageType.REPLY}
    kinds = {type(part) for each in sent for part in (*each.message.payloads, *each.inner)}
    assert {kink.KinkError, kink.KrbError, kink.Isakmp, *PROOFS} <= kinds


@pytest.mark.rfc("4430-4-8")
def test_nothing_but_a_reply_has_the_ackreq_flag(sent: list[Sent]) -> None:
    world = World(profile=replace(FAST, groups=(19,)))  # in three messages
    world.acquire("alice", "bob")
    world.run()
    three = [kink.decode(send.datagram).message for send in world.sent]
    assert [each.type for each in three if each.ack_request] == [MessageType.REPLY]
    assert [each.type for each in three if not each.ack_request] == [
        MessageType.CREATE,
        MessageType.ACK,
    ]
    assert {each.message.type for each in sent} >= {*COMMANDS}
    assert not [each for each in sent if each.message.ack_request]


@pytest.mark.rfc("4430-4-6")
def test_commands_that_are_outstanding_have_xids_of_their_own() -> None:
    """Even those to different hosts: a REPLY is told apart by its XID alone."""
    world = World((ALICE, BOB, CAROL))
    for peer in (BOB, CAROL):
        world.initiate("alice", peer.name)
    world.run()
    world.sent.clear()
    for peer in (BOB, CAROL):
        world.initiate("alice", peer.name)
        world["alice"].endpoint.terminate(peer, world.now, lambda _: None)
        world.settle()
    outstanding = {send.datagram: kink.header(send.datagram) for send in world.sent}
    assert {head.type for head in outstanding.values()} == {MessageType.CREATE, MessageType.DELETE}
    assert len({head.xid for head in outstanding.values()}) == len(outstanding) == 4
    assert world["alice"].endpoint.commands_under_way == 4


@pytest.mark.rfc("4430-4-11", "4430-4-12", "4430-4.2.7-2", "4430-4-10")
def test_whoever_proves_himself_signs_the_whole_message_after_encrypting(sent: list[Sent]) -> None:
    for each in sent:
        proves = isinstance(each.message.payloads[0], PROOFS)
        assert bool(each.received.checksum) == proves
        if proves:
            assert each.key is not None
            assert each.key.verify(40, each.received.signed, each.received.checksum)


@pytest.mark.rfc("4430-4.2.7-1", "4430-6-2")
def test_quick_mode_payloads_are_encrypted_and_last(sent: list[Sent]) -> None:
    assert quick_modes(sent)
    for each in sent:
        kinds = [type(part) for part in each.message.payloads]
        assert kink.Isakmp not in kinds
        assert kink.Encrypt not in kinds[:-1]


@pytest.mark.rfc("4430-4.2.6-1", "4430-4.2.6-2", "4430-4.2.6-6")
def test_quick_mode_is_of_version_1_0(sent: list[Sent]) -> None:
    assert {(part.major, part.minor) for part in quick_modes(sent)} == {(1, 0)}
    octets = kink.encode_inner((quick_modes(sent)[0],))
    assert octets[8 + 1] == 0x10  # behind the headers: the first payload's type, then QMMaj, QMMin


@pytest.mark.rfc("4430-4.2.6-3", "4430-5-2", "4430-5-3", "4430-5.4-2")
def test_a_payload_holds_one_quick_mode_transaction_and_nothing_of_phase_1(
    sent: list[Sent],
) -> None:
    phase_2 = {IsakmpPayload.SA, IsakmpPayload.NONCE, IsakmpPayload.NOTIFY, IsakmpPayload.DELETE}
    for each in sent:
        for part in (part for part in each.inner if isinstance(part, kink.Isakmp)):
            assert part.first in phase_2
            decoded = isakmp.decode(part)
            associations = [p for p in decoded if isinstance(p, isakmp.SecurityAssociation)]
            assert len(associations) <= 1
            assert {(p.doi, p.situation) for p in associations} <= {(1, 1)}
            if each.message.type is MessageType.CREATE:
                assert isakmp.Nonce in [type(p) for p in decoded]


@pytest.mark.rfc("4430-4.2.8-1")
def test_no_error_is_kink_ok(sent: list[Sent]) -> None:
    errors = [
        part.code
        for each in sent
        for part in (*each.message.payloads, *each.inner)
        if isinstance(part, kink.KinkError)
    ]
    assert {2, 3, 6, 7} <= set(errors)
    assert 0 not in errors


@pytest.mark.rfc("4430-4-4", "4430-4.1-1", "4430-4.1-2")
def test_length_is_the_length(sent: list[Sent]) -> None:
    for each in sent:
        assert struct.unpack_from("!H", each.datagram, 2)[0] == len(each.datagram)
        if each.received.checksum:
            assert len(each.received.signed) % 4 == 0


@pytest.mark.rfc("4430-3.7-1")
def test_every_proof_carries_its_senders_epoch(sent: list[Sent]) -> None:
    epochs = {each.message.payloads[0].epoch for each in sent if proves(each)}
    assert epochs == {1000, 1001, 1002, 3000}


def proves(each: Sent) -> bool:
    return isinstance(each.message.payloads[0], PROOFS)


@pytest.mark.rfc("4430-6.4-1", "4430-6.5-1", "4430-6.3-4")
@pytest.mark.parametrize("kind", COMMANDS)
def test_a_command_for_which_no_ap_rep_can_be_made_gets_a_lone_error(kind: MessageType) -> None:
    world = World((ALICE, BOB, CAROL))
    inner = {
        MessageType.CREATE: (creation(0x2000),),
        MessageType.DELETE: (quickmode.deletion([(IpsecProtocol.ESP, 0x2000)]),),
        MessageType.STATUS: (),
    }[kind]
    world["bob"].endpoint.receive(
        genuine(world, kind, 7, *inner, server=CAROL).datagram,
        Path(BOB.addresses[0], ALICE.addresses[0]),
        world.now,
    )
    world.settle()
    (answer,) = world.wire
    message = kink.decode(answer.datagram).message
    assert message.xid == 7
    assert [type(part) for part in message.payloads] == [kink.KrbError]


@pytest.mark.rfc("4430-3.7-6", "4430-3.7-3")
def test_a_status_with_another_epoch_is_asked_after() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run()
    ticket = world["alice"].tickets.fetch(BOB.service)
    world.sent.clear()
    for epoch, asked in ((1000, 0), (4000, 1)):
        proof = kink.ApReq(epoch, ticket.authenticate().ap_req)
        world.deliver(Send(seal(MessageType.STATUS, 60 + epoch, proof, (), ticket.key), PATH))
        kinds = [kink.header(each.datagram).type for each in world.sent]
        assert kinds.count(MessageType.STATUS) == asked
