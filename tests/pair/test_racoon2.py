"""Our endpoints fed with what racoon2's kinkd sent: octet for octet as it expects, and its keys."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import pytest

from kinkd.document import Document
from kinkd.exchange.verified import seal, verify_reply
from kinkd.kerberos import offline
from kinkd.kerberos.messages import (
    KrbErrorPart,
    build_ap_req,
    read_ap_rep,
    read_ap_req,
    read_krb_error,
)
from kinkd.keying.algorithms import SUITES
from kinkd.model import IpsecProtocol, Mode, Secret
from kinkd.policy import reader
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import IdType, MessageType
from tests.support.racoon2 import CONF, AtAlice, Initiating, Responding
from tests.support.recordings import (
    AHEAD,
    KEYED,
    NAMES,
    A,
    B,
    Recording,
    Transaction,
    clear,
    kernel_keys,
    proposals,
    quick_mode,
)


def assert_is(ours: kink.Received, theirs: Transaction) -> None:
    """Header, proof, contents, and the length of the whole."""
    sent = ours.message
    assert (sent.type, sent.xid, sent.ack_request) == (theirs.type, theirs.message.xid, False)
    assert sent.payloads[0] == theirs.proof
    assert clear(theirs.opened.key, sent) == theirs.asked
    assert len(ours.signed) + len(ours.checksum) == len(theirs.command.octets)


# --- we answer --------------------------------------------------------------------------------


@pytest.mark.rfc("4430-4.2.6-4", "4430-4-12", "4430-5.4-1", "4430-5-4", "4430-6.3-1")
@pytest.mark.parametrize("name", KEYED)
def test_our_replies_are_its_own_and_key_what_its_kernel_had(name: str) -> None:
    world = Responding(Recording(name))
    answered = 0
    for each in world.recording.transactions:
        sent = world.receive(each.command.octets, world.recording.now(each.command))
        if each.reply is None:
            assert not sent  # an ACK
            continue
        (ours,), theirs = sent, kink.decode(each.reply.octets).message
        if not any(isinstance(part, kink.KrbError) for part in each.answered):
            answered += 1
            assert clear(each.opened.key, ours.message) == each.answered
            assert (ours.message.ack_request, ours.message.xid) == (theirs.ack_request, theirs.xid)
            assert len(ours.signed) + len(ours.checksum) == len(each.reply.octets)
            verify_reply(ours, each.opened.key, [each.authenticator])
    assert answered
    assert kernel_keys(name).items() <= world.kernel.keys.items()


def test_every_recording_with_a_create_that_was_carried_out_is_compared() -> None:
    created = {n for n in NAMES if any(each.creates for each in Recording(n).transactions)}
    assert created == {*KEYED}


def test_a_bundle_is_answered_in_its_order_ah_first() -> None:
    world = Responding(Recording("ah_esp"))
    reply = world.give(world.recording.datagrams[0])
    assert [proposal.protocol_id for proposal in proposals(reply.inner)] == [2, 3]
    (pair,) = world.endpoint.pairs
    assert [each.protocol for each in pair.sas] == [IpsecProtocol.ESP, IpsecProtocol.AH]


def test_its_tunnel_without_identities_is_that_between_the_two_hosts() -> None:
    world = Responding(Recording("tunnel"))
    world.give(world.recording.datagrams[0])
    (pair,) = world.endpoint.pairs
    assert pair.mode is Mode.TUNNEL
    assert (str(pair.selector.source), str(pair.selector.destination)) == (f"{B}/32", f"{A}/32")


def test_what_the_policy_does_not_allow_gets_no_proposal_chosen_each_time() -> None:
    """Its first sight of the error makes it give up; it asked five times, since its own peer
    keeps silent."""
    world = Responding(Recording("noproposal"))
    for each in world.recording.transactions:
        (part,) = quick_mode(world.give(each.command).inner)
        assert isinstance(part, isakmp.Notification)
        assert (part.protocol_id, part.type) == (3, 14)
    assert len(world.recording.transactions) == 5
    assert not world.kernel.states()


@pytest.mark.parametrize("name", ["ah", "tunnel"])
def test_another_protocol_or_mode_than_the_policys_is_refused(name: str) -> None:
    recording = Recording(name)
    recording.name = "esp2way"  # and its policy
    world = Responding(recording)
    (part,) = quick_mode(world.give(world.recording.datagrams[0]).inner)
    assert isinstance(part, isakmp.Notification)
    assert part.type == 14


def krb_error(payloads: Iterable[kink.Payload]) -> KrbErrorPart:
    (payload,) = payloads
    assert isinstance(payload, kink.KrbError)
    return read_krb_error(payload.krb_error)


@pytest.mark.rfc("4430-3.5-2", "4430-3.5-3")
@pytest.mark.parametrize(("name", "code", "refused"), [("skew", 37, 1), ("tktexpired", 32, 2)])
def test_its_clock_and_its_ticket_are_refused_as_its_own_kind_does(name, code, refused) -> None:
    world = Responding(Recording(name))
    for each in world.recording.transactions[:refused]:
        ours, theirs = krb_error(world.give(each.command).inner), krb_error(each.answered)
        assert ours.code == theirs.code == code
        assert (ours.ctime, ours.cusec) == (theirs.ctime, theirs.cusec)
        assert abs(ours.stime - theirs.stime) <= 1  # it answered some milliseconds later
        assert (ours.realm, ours.server) == (theirs.realm, theirs.server)
    assert not world.kernel.states()


def test_a_ticket_under_a_key_that_we_have_no_more_is_told() -> None:
    recording = Recording("wrongkey")
    others = [replace(entry, key=Secret(bytes(len(entry.key)))) for entry in recording.entries]
    world = Responding(recording, others)
    for each in recording.transactions:
        (answer,) = world.receive(each.command.octets, each.command.time / 1e9)
        assert krb_error(answer.message.payloads).code == 31
        assert not answer.checksum


@pytest.mark.rfc("4430-3.3-3")
def test_its_delete_of_what_we_never_had_gets_invalid_spi() -> None:
    world = Responding(Recording("delete"))
    (part,) = quick_mode(world.give(world.recording.datagrams[2]).inner)
    assert isinstance(part, isakmp.Notification)
    assert (part.protocol_id, part.type, len(part.spi)) == (3, 11, 4)


@pytest.mark.rfc("4430-3.3-2")
def test_its_delete_leaves_nothing() -> None:
    world = Responding(Recording("delete"))
    create, _, delete, _ = world.recording.datagrams
    world.give(create)
    assert len(world.endpoint.pairs) == 1
    world.give(delete)
    assert not list(world.endpoint.pairs)


@pytest.mark.rfc("4430-3.7-7")
def test_its_status_is_answered_by_an_ap_rep_and_our_epoch_in_both_directions() -> None:
    recording = Recording("status")
    statuses = [
        each for each in recording.datagrams if kink.header(each.octets).type == MessageType.STATUS
    ]
    assert {each.source for each in statuses} == {A, B}
    for status in statuses:
        world = (Responding if status.destination == B else AtAlice)(recording)
        reply = world.give(status)
        assert (reply.epoch, reply.inner) == (1795421000, ())


@pytest.mark.rfc("4430-3.7-6")
def test_it_may_ask_whether_we_live_and_then_key_anew() -> None:
    """It did so when its peer had restarted; its own EPOCH stays, so nothing of it is void."""
    world = Responding(Recording("dpd"))
    for each in world.recording.transactions:
        assert world.give(each.command).epoch == 1795421000
    assert len(world.endpoint.pairs) == 2


@pytest.mark.rfc("4430-3.3-2")
def test_its_rekeying_leaves_one_pair_after_another() -> None:
    world = Responding(Recording("rekey"))
    alive = []
    for each in world.recording.transactions:
        world.give(each.command)
        alive.append(len(world.endpoint.pairs))
    assert alive == [1, 2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize("name", ["esp2way", "ah_esp", "delete", "status"])
def test_a_recorded_command_given_again_is_a_replay(name: str) -> None:
    world = Responding(Recording(name))
    command = world.recording.datagrams[0]
    world.give(command)
    assert not world.receive(command.octets, world.now)
    assert world.endpoint.counters["drop.replay"] == 1


def test_its_retransmission_gets_the_same_answer_under_a_fresh_ap_rep() -> None:
    """It sends the same command under a new authenticator, XID and SPI as they were (§9)."""
    world = Responding(Recording("esp2way"))
    (create,) = world.recording.transactions
    first = world.give(create.command)
    key = create.opened.key
    request = read_ap_req(create.proof.ap_req)
    part = offline._authenticator(key, request)
    later = build_ap_req(request.ticket.raw, key, part.client, part.ctime + 1, 0)
    proof = kink.ApReq(create.proof.epoch, later)
    again = seal(MessageType.CREATE, create.message.xid, proof, create.asked, key)
    (reply,) = world.receive(again, world.now + 1)
    assert clear(key, reply.message) == first.inner
    assert read_ap_rep(key, reply.message.payloads[0].ap_rep) == (part.ctime + 1, 0)
    assert len(world.endpoint.pairs) == 1


# --- we ask -----------------------------------------------------------------------------------


@pytest.mark.rfc("4430-3.2-1", "4430-4.2.2-1", "4430-7-1")
@pytest.mark.parametrize("name", sorted({*KEYED} - {"esp3way-prop2", "skew", "tunnel"}))
def test_our_create_is_its_own_and_its_reply_gives_the_recorded_keys(name: str) -> None:
    world = Initiating(name)
    create = world.transactions[0]
    assert_is(world.acquire(), create)
    assert not world.answer(create)  # two messages
    assert len(world.endpoint.pairs) == 1
    recorded, ours = kernel_keys(name), world.kernel.keys
    common = recorded.keys() & ours.keys()
    if name != "rekey":  # whose first SAs were gone when the kernel was asked
        assert common
    assert {sa: recorded[sa] for sa in common} == {sa: ours[sa] for sa in common}


def test_our_create_of_a_tunnel_differs_by_its_identities_alone() -> None:
    """It ignores ours and sends none: absent ones mean the two addresses (RFC 2409 §5.5)."""
    world = Initiating("tunnel")
    create = world.transactions[0]
    sent = world.acquire()
    parts = quick_mode(clear(create.opened.key, sent.message))
    identities = [part for part in parts if isinstance(part, isakmp.Identification)]
    assert identities == [
        isakmp.Identification(IdType.IPV4_ADDR, 0, 0, address.packed) for address in (A, B)
    ]
    rest = isakmp.encode([part for part in parts if part not in identities])
    assert (rest,) == create.asked
    assert len(sent.signed) + len(sent.checksum) == len(create.command.octets) + 2 * 12
    assert not world.answer(create)
    (pair,) = world.endpoint.pairs
    assert pair.mode is Mode.TUNNEL
    assert world.kernel.keys == kernel_keys("tunnel")


def of_one_spi(payloads: Iterable[kink.Payload]) -> kink.Isakmp:
    """With the last proposal's SPI in all: racoon2 takes one for each, we take one for all."""
    association, *others = quick_mode(payloads)
    assert isinstance(association, isakmp.SecurityAssociation)
    spi = association.proposals[-1].spi
    alike = tuple(replace(proposal, spi=spi) for proposal in association.proposals)
    return isakmp.encode([isakmp.SecurityAssociation(alike), *others])


@pytest.mark.rfc("4430-3.2-8", "4430-6.2-1", "4430-7-2")
def test_its_choice_of_our_second_proposal_is_acknowledged_and_keyed_with_both_nonces() -> None:
    world = Initiating("esp3way-prop2")
    create, ack = world.transactions
    sent = world.acquire()
    assert len(sent.signed) + len(sent.checksum) == len(create.command.octets)
    assert clear(create.opened.key, sent.message) == (of_one_spi(create.asked),)
    (acknowledged,) = world.answer(create)
    assert_is(acknowledged, ack)
    (pair,) = world.endpoint.pairs
    assert pair.suite == "aes128-sha1"
    assert world.kernel.keys == kernel_keys("esp3way-prop2")


def test_our_delete_is_its_own() -> None:
    world = Initiating("delete")
    create, delete = world.transactions
    world.acquire()
    world.answer(create)
    ended = []
    (peer,) = world.policy.peers
    assert world.endpoint.terminate(peer, world.now, ended.append) == 1
    (sent,) = world.sent()
    assert_is(sent, delete)
    assert not world.answer(delete)
    assert ended
    assert not world.wait(60.0)
    assert not world.kernel.states()


def test_our_rekeying_is_its_own_and_ends_with_the_recorded_keys() -> None:
    world = Initiating("rekey")
    first, *others = world.transactions
    assert_is(world.acquire(), first)
    world.answer(first)
    for create, delete in zip(others[::2], others[1::2], strict=True):
        assert_is(world.soft_expire(create.command.time / 1e9), create)
        assert not world.answer(create)
        (sent,) = world.wait(2.0)  # what is in flight on the old pair still arrives
        assert_is(sent, delete)
        assert not world.answer(delete)
    assert len(world.endpoint.pairs) == 1
    assert kernel_keys("rekey").items() <= world.kernel.keys.items()


def test_no_answer_is_asked_for_again_as_it_did_under_its_own_authenticators() -> None:
    """It answers nothing to a proposal that it will not have."""
    world = Initiating("noproposal")
    assert_is(world.acquire(), world.transactions[0])
    for each in world.transactions[1:]:
        timer = world.endpoint.next_timer()
        assert timer is not None
        (again,) = world.wait(timer - world.now)
        assert_is(again, each)
    assert not list(world.endpoint.pairs)


@pytest.mark.rfc("4430-3.5-4", "4430-3.5-5")
def test_its_proven_skew_error_corrects_our_clock_as_it_did_its_own_kinds() -> None:
    world = Initiating("skew")
    refused, carried_out = world.transactions
    assert_is(world.acquire(), refused)
    (again,) = world.answer(refused)
    assert_is(again, carried_out)
    # What it computed itself was what its next authenticator was ahead by, within a second.
    assert world.offsets[0] == 0
    assert abs(world.offsets[1] - AHEAD["skew"]) < 2
    assert not world.answer(carried_out)
    assert world.kernel.keys.items() >= kernel_keys("skew").items()


def test_its_proven_expiry_errors_cost_us_one_more_ticket_each_command() -> None:
    world = Initiating("tktexpired")
    first, second = world.transactions
    assert_is(world.acquire(), first)
    (again,) = world.answer(first)
    assert_is(again, second)
    assert not world.answer(second)
    assert world.endpoint.commands_under_way == 0
    assert not world.kernel.states()


def test_its_unproven_kerberos_error_ends_nothing() -> None:
    world = Initiating("wrongkey")
    first = world.transactions[0]
    assert_is(world.acquire(), first)
    assert not world.answer(first)
    (again,) = world.wait(0.5)  # under a new ticket and with another XID, once
    assert again.message.xid != kink.decode(first.command.octets).message.xid
    assert world.endpoint.commands_under_way == 1
    assert world.endpoint.counters["drop.unauthenticated-reply"] == 1
    assert not world.answer(first)
    assert world.endpoint.commands_under_way == 1


# --- the policy -------------------------------------------------------------------------------


def test_the_profile_is_all_that_racoon2_can_do() -> None:
    realm = reader.read(Document.parse(CONF.name, CONF.read_bytes()))
    rule = realm.protecting_rule("alice", "bob")
    assert rule is not None
    assert rule.profile is not None
    assert [suite.name for suite in rule.profile.suites] == ["aes128-sha1"]
    assert rule.profile.lifetime.kilobytes is None
    assert rule.profile.groups == (None,)
    assert rule.profile.esn == (False,)


def test_the_lines_for_other_protections_that_the_policy_file_names_are_right() -> None:
    text = CONF.read_text()
    named = re.findall(r'"((?:ah-|aes|3des)[a-z0-9+-]*)"', text)
    assert {"ah-sha1", "ah-sha1+aes128-sha1"} <= {*named} <= {*SUITES}
    assert 'mode = "tunnel"' in text
