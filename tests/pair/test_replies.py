"""What an initiator makes of REPLYs: made by hand, under the key of the ticket it was sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinkd.exchange.effects import Path, Send
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.exchange.verified import seal
from kinkd.kerberos import messages, offline
from kinkd.kernel.memory import Flow
from kinkd.keying.algorithms import SUITES
from kinkd.model import Lifetime
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import KinkErrorCode, MessageType, ProtocolId
from tests.support.pair import ALICE, BOB, FAST, POSIX, World, offer

PATH = Path(ALICE.addresses[0], BOB.addresses[0])
GCM = SUITES["aes256gcm16"]


def asked() -> World:
    """Alice has sent a CREATE that bob never gets."""
    world = World()
    world.acquire("alice", "bob")
    world.wire.clear()
    return world


def association(lifetime: Lifetime = FAST.lifetime, suite=GCM) -> isakmp.SecurityAssociation:
    return isakmp.SecurityAssociation(offer(suite, 0x7777, lifetime=lifetime))


def note(kind: int) -> isakmp.Notification:
    return isakmp.Notification(ProtocolId.ESP, b"", kind)


def command_of(world: World, index: int = -1) -> kink.Message:
    kinds = (MessageType.CREATE, MessageType.DELETE, MessageType.STATUS)
    sent = [kink.decode(each.datagram).message for each in world.sent]
    return [each for each in sent if each.type in kinds][index]


def proof_time(world: World, command: kink.Message) -> tuple[int, int]:
    request = command.payloads[0]
    assert isinstance(request, kink.ApReq)
    opened = world["bob"].acceptor.open(request.ap_req)
    part = offline._authenticator(opened.key, messages.read_ap_req(request.ap_req))
    return part.ctime, part.cusec


def key_of(world: World, command: kink.Message):
    request = command.payloads[0]
    assert isinstance(request, kink.ApReq)
    return world["bob"].acceptor.open(request.ap_req).key


def answer(
    world: World,
    *inner: kink.Payload | isakmp.QuickModePayload,
    ack: bool = False,
    seconds_off: int = 0,
    command: kink.Message | None = None,
) -> list[kink.Message]:
    """Give alice a genuine REPLY to her last command, or this one; what she sends upon it."""
    command = command or command_of(world)
    key = key_of(world, command)
    ctime, cusec = proof_time(world, command)
    proof = kink.ApRep(1001, messages.build_ap_rep(key, ctime + seconds_off, cusec))
    codes = (kink.KinkError, kink.KrbError)
    payloads = [part for part in inner if isinstance(part, codes)]
    if quick := tuple(part for part in inner if not isinstance(part, codes)):
        payloads.append(isakmp.encode(quick))
    chain = (proof,)
    if payloads:
        chain = (proof, kink.Encrypt(key.encrypt(39, kink.encode_inner(payloads))))
    signed = kink.encode(kink.Message(MessageType.REPLY, command.xid, chain, ack_request=ack))
    return give(world, kink.with_checksum(signed, key.checksum(40, signed)))


def give(world: World, datagram: bytes) -> list[kink.Message]:
    before = len(world.sent)
    world["alice"].endpoint.receive(datagram, PATH, world.now)
    world.settle()
    world.wire.clear()
    return [kink.decode(each.datagram).message for each in world.sent[before:]]


def unproven(world: World, *payloads: kink.Payload) -> list[kink.Message]:
    """Give alice a REPLY without Cksum."""
    message = kink.Message(MessageType.REPLY, command_of(world).xid, payloads)
    return give(world, kink.encode(message, protected=False))


def outcome(world: World) -> object:
    """True: keyed; None: still waiting; else the reason why it failed."""
    if list(world["alice"].endpoint.pairs):
        return True
    failed = world["alice"].events("create-failed")
    return failed[0]["reason"] if failed else None


@pytest.mark.rfc("4430-6.1-2", "4430-3.2-1")
def test_the_optimistic_proposal_in_a_reply_keys() -> None:
    world = asked()
    answer(world, association())
    assert outcome(world) is True


@pytest.mark.rfc("4430-3.2-1")
def test_another_transform_than_the_optimistic_one_does_not() -> None:
    world = asked()
    answer(world, association(suite=SUITES["aes128gcm16"]))
    assert "other-proposal-chosen" in str(outcome(world))


@pytest.mark.rfc("4430-3.2-2")
def test_a_raised_lifetime_fails_the_request_and_the_peers_half_is_deleted() -> None:
    world = asked()
    (delete,) = answer(world, association(Lifetime(FAST.lifetime.seconds + 1)))
    assert "raised-lifetime" in str(outcome(world))
    assert delete.type is MessageType.DELETE
    assert not [each for each in world["alice"].kernel.states() if not each.larval]


@pytest.mark.rfc("4430-3.2-3")
@pytest.mark.parametrize("seconds", [60, 3599])
def test_a_lowered_lifetime_is_both_sas_lifetime(seconds: int) -> None:
    world = asked()
    answer(world, association(Lifetime(seconds)))
    states = [each for each in world["alice"].kernel.states() if not each.larval]
    assert [each.limits.hard_seconds for each in states] == [seconds, seconds]


@pytest.mark.rfc("4430-3.2-9", "4430-9-4", "4430-6.2-1")
def test_an_ack_is_given_each_time_it_is_asked_for_whatever_the_reply_holds() -> None:
    world = asked()
    wrong = association(Lifetime(FAST.lifetime.seconds + 1))
    command = command_of(world)
    acks = []
    for now in (0.0, 1.0, TRANSACTION_SECONDS - 1):  # while the responder may repeat its REPLY
        world.now = now
        sent = answer(world, wrong, ack=True, command=command)
        acks += [each for each in sent if each.type is not MessageType.DELETE]
    assert [(ack.type, ack.xid) for ack in acks] == [(MessageType.ACK, command.xid)] * 3
    assert all([type(part) for part in ack.payloads] == [kink.ApReq] for ack in acks)
    assert len({ack.payloads for ack in acks}) == 3  # each with an authenticator of its own


@pytest.mark.rfc("4430-3.5-1")
@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (kink.KinkError(KinkErrorCode.INTERR), "KINK_INTERR"),
        (kink.KrbError(messages.build_krb_error(37, "R", BOB.service, 1, 1)), "KRB_AP_ERR_SKEW"),
        (note(14), "NO-PROPOSAL-CHOSEN"),
    ],
)
def test_a_proven_error_ends_the_request_and_is_reported(payload: kink.Payload, name: str) -> None:
    world = asked()
    answer(world, payload)
    assert name in str(outcome(world))
    assert not [each for each in world["alice"].kernel.states() if not each.larval]


@pytest.mark.rfc("4430-5.5-1")
@pytest.mark.parametrize("kind", [1, 9999, 16383])
def test_an_error_notification_in_a_reply_fails_the_request(kind: int) -> None:
    world = asked()
    answer(world, association(), note(kind))
    assert "refused-by-peer" in str(outcome(world))


@pytest.mark.rfc("4430-5.5-3")
@pytest.mark.parametrize("kind", [16384, 24578, 40000])
def test_a_status_notification_in_a_reply_is_ignored(kind: int) -> None:
    world = asked()
    answer(world, association(), note(kind))
    assert outcome(world) is True


@pytest.mark.rfc("4430-4.2.8-2")
def test_a_kink_ok_in_a_reply_is_as_if_it_were_not_there() -> None:
    world = asked()
    answer(world, kink.KinkError(KinkErrorCode.OK), association())
    assert outcome(world) is True


@pytest.mark.rfc("4430-4.2.2-1")
@pytest.mark.parametrize("seconds", [-1, 1, 3600])
def test_an_ap_rep_that_echoes_no_authenticator_of_ours_is_stale(seconds: int) -> None:
    world = asked()
    answer(world, association(), seconds_off=seconds)
    assert world["alice"].endpoint.counters["drop.stale-ap-rep"] == 1
    assert outcome(world) is None


@pytest.mark.rfc("4430-4-14")
def test_a_reply_whose_cksum_is_wrong_is_dropped() -> None:
    world = asked()
    command = command_of(world)
    key = key_of(world, command)
    proof = kink.ApRep(1001, messages.build_ap_rep(key, *proof_time(world, command)))
    cipher = key.encrypt(39, kink.encode_inner((isakmp.encode((association(),)),)))
    signed = kink.encode(
        kink.Message(MessageType.REPLY, command.xid, (proof, kink.Encrypt(cipher)))
    )
    wrong = bytearray(key.checksum(40, signed))
    wrong[-1] ^= 1
    give(world, kink.with_checksum(signed, bytes(wrong)))
    assert world["alice"].endpoint.counters["drop.bad-checksum"] == 1
    assert outcome(world) is None


@pytest.mark.rfc("4430-3.5-6", "4430-4.2.3-3", "4430-4.2.8-7")
def test_an_unproven_skew_error_moves_neither_the_clock_nor_the_exchange() -> None:
    world = asked()
    hours = int(POSIX) + 7200
    lie = messages.build_krb_error(37, "R", BOB.service, hours, 0, client_time=(int(POSIX), 0))
    assert not unproven(world, kink.KrbError(lie))
    assert outcome(world) is None
    world.advance(0.6)
    assert proof_time(world, command_of(world)) == (int(POSIX), 600_000)
    world.run()
    assert outcome(world) is True


@pytest.mark.rfc("4430-3.7.1-1", "4430-3.7.1-2")
def test_a_tgt_rep_makes_no_peer_dead_and_takes_no_ticket_away() -> None:
    world = asked()
    world.advance(0.6)
    world.run()
    (pair,) = world["alice"].endpoint.pairs
    world["alice"].kdc_up = False  # only the ticket that is there already will do
    world.initiate("alice", "bob")
    world.wire.clear()
    assert not unproven(world, kink.TgtRep(b"ticket"))
    assert pair in list(world["alice"].endpoint.pairs)
    world.run(0.5)
    assert len(world["alice"].endpoint.pairs) == 2
    world.initiate("alice", "bob")
    world.run(0.5)
    assert len(world["alice"].endpoint.pairs) == 3


@pytest.mark.rfc("4430-9-8")
def test_a_ticket_that_would_end_within_the_transaction_is_not_begun_with() -> None:
    world = World()
    world["alice"].tickets._lifetime = 100
    world.acquire("alice", "bob")
    world.run()
    first = ticket_of(command_of(world))
    world["alice"].kdc_up = False  # else it would have been replaced before
    world.advance(100 - TRANSACTION_SECONDS - 2)
    world.initiate("alice", "bob")
    world.run()
    assert ticket_of(command_of(world)) == first
    world["alice"].kdc_up = True
    world.advance(100 - TRANSACTION_SECONDS)
    world.initiate("alice", "bob")
    world.run(2.0)
    assert ticket_of(command_of(world)) != first


@pytest.mark.rfc("4430-9-7", "4430-9-8")
def test_a_command_is_sent_again_under_its_own_ticket_though_there_is_a_newer_one() -> None:
    world = World()
    world["alice"].tickets._lifetime = 100
    world.acquire("alice", "bob")
    world.run()
    world["alice"].kdc_up = False  # else it would have been replaced before
    world.advance(68.0)
    world.initiate("alice", "bob")
    create = command_of(world)
    world.run(2.5, pass_on=lambda _: [])
    world["alice"].kdc_up = True
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.run(2.0, pass_on=lambda _: [])
    delete = command_of(world)
    assert delete.type is MessageType.DELETE
    assert ticket_of(delete) != ticket_of(create)
    world.sent.clear()
    world.run(10.0, pass_on=lambda _: [])
    again = [kink.decode(send.datagram).message for send in world.sent]
    tickets = {ticket_of(each) for each in again if each.xid == create.xid}
    assert tickets == {ticket_of(create)}


def ticket_of(command: kink.Message) -> bytes:
    request = command.payloads[0]
    assert isinstance(request, kink.ApReq)
    return messages.read_ap_req(request.ap_req).ticket.raw


@pytest.mark.rfc("4430-3.7-8")
def test_a_status_whose_reply_is_lost_is_sent_again() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run()
    (old,) = world["alice"].endpoint.pairs
    world.restart("bob", epoch=2000)
    world.acquire("bob", "alice")
    lost: list[Send] = []

    def network(send: Send) -> list[Send]:
        message = kink.decode(send.datagram).message
        if message.type is MessageType.STATUS and not lost:
            lost.append(send)
            return []
        return [send]

    world.run(5.0, network)
    assert lost
    assert old not in list(world["alice"].endpoint.pairs)


@pytest.mark.rfc("4430-3.7-9", "4430-3.7-10")
def test_after_a_status_no_other_is_expected() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run()
    ticket = world["alice"].tickets.fetch(BOB.service)
    proof = kink.ApReq(1000, ticket.authenticate().ap_req)
    status = seal(MessageType.STATUS, 50, proof, (), ticket.key)
    world.deliver(Send(status, PATH))
    world.run()
    (pair,) = world["bob"].endpoint.pairs
    world.sent.clear()
    world.run(86400)
    assert list(world["bob"].endpoint.pairs) == [pair]
    assert not world.sent


@pytest.mark.rfc("4430-3.6-1")
def test_of_two_pairs_the_newest_is_used() -> None:
    world = World()
    for _ in range(2):
        world.acquire("alice", "bob")
        world.run()
        world.advance(world.now + 1)
    newest = max(world["alice"].endpoint.pairs, key=lambda pair: pair.xid)
    alice, bob = world["alice"], world["bob"]
    _, packet = alice.kernel.transmit(Flow(alice.address, bob.address))
    assert packet is not None
    assert packet.sas[0].id == newest.outbound[0]


def test_a_reply_of_another_protocol_is_not_the_optimistic_proposal() -> None:
    world = asked()
    (esp,) = association().proposals
    ah = replace(esp, protocol_id=ProtocolId.AH)
    answer(world, isakmp.SecurityAssociation((ah,)))
    assert "other-proposal-chosen" in str(outcome(world))
