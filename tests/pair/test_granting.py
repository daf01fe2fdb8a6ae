"""A responder's guards: what it counts, what it knows again, and what it never answers twice."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinkd.exchange import quickmode
from kinkd.exchange.effects import Send
from kinkd.exchange.granting import QUICK_MODES
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.exchange.verified import seal
from kinkd.kerberos import messages
from kinkd.kerberos.offline import OfflineTicket
from kinkd.kernel.port import Expire
from kinkd.keying import dh
from kinkd.model import IpsecProtocol, Secret
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import IdType, KinkErrorCode, MessageType, ProtocolId
from tests.pair.test_several import PATH, acknowledge, asked, codes, told
from tests.support.pair import ALICE, BOB, FAST, World

KE = replace(FAST, groups=(19,))
CREATE, STATUS, DELETE = MessageType.CREATE, MessageType.STATUS, MessageType.DELETE
PORT_443 = (
    isakmp.Identification(IdType.IPV4_ADDR, 6, 0, ALICE.addresses[0].packed),
    isakmp.Identification(IdType.IPV4_ADDR, 6, 443, BOB.addresses[0].packed),
)


def with_ke(spi: int = 0x2000) -> kink.Isakmp:
    """A Quick Mode that takes three messages."""
    return asked(spi, public=dh.generate(dh.GROUPS[19]).public)


def for_one_port(spi: int = 0x2000) -> kink.Isakmp:
    association, nonce = isakmp.decode(asked(spi))
    return isakmp.encode((association, nonce, *PORT_443))


def commands(world: World, kind: MessageType) -> set[int]:
    """The XIDs of what was sent of a kind."""
    heads = [kink.header(send.datagram) for send in world.sent]
    return {head.xid for head in heads if head.type == kind}


# --- what it counts ---


def test_pairs_that_await_their_ack_count_among_those_a_host_may_have() -> None:
    world = World(profile=KE)
    most = 64
    public = dh.generate(dh.GROUPS[19]).public
    for xid in range(most // QUICK_MODES):
        spis = range(0x2000 + xid * QUICK_MODES, 0x2000 + (xid + 1) * QUICK_MODES)
        ack, _ = told(world, CREATE, *(asked(spi, public=public) for spi in spis), xid=xid)
        assert ack
    assert not list(world["bob"].endpoint.pairs)
    _, inner = told(world, CREATE, asked(0x9000, public=public), xid=999)
    assert inner == (kink.KinkError(KinkErrorCode.INTERR),)
    assert world["bob"].endpoint.counters["drop.too-many-sas"] == 1
    assert len(world["bob"].kernel.states()) == most


# --- what it knows again ---


def test_a_create_that_took_an_ack_is_not_answered_again_by_a_later_life() -> None:
    world = World(profile=KE)
    create = with_ke()
    assert told(world, CREATE, create)[0]
    acknowledge(world)
    before = list(world["bob"].endpoint.pairs)
    assert len(before) == 1
    world.restart("bob")
    assert told(world, CREATE, create) == (False, ())
    assert world["bob"].endpoint.counters["drop.stale-command"] == 1
    assert list(world["bob"].endpoint.pairs) == before


def test_what_was_never_acknowledged_is_not_made_again_not_even_by_a_later_life() -> None:
    world = World(profile=KE)
    create = with_ke()
    assert told(world, CREATE, create)[0]
    world.run(TRANSACTION_SECONDS + 10, pass_on=lambda _: [])
    for life in (1, 2):
        assert not world["bob"].kernel.states()
        assert told(world, CREATE, create) == (False, ())
        assert world["bob"].endpoint.counters["drop.stale-command"] == 1, life
        world.restart("bob")


def test_a_delete_of_a_half_is_remembered_like_its_end() -> None:
    world = World(profile=KE)
    create = with_ke()
    assert told(world, CREATE, create)[0]
    told(world, DELETE, quickmode.deletion([(IpsecProtocol.ESP, 0x2000)]), xid=8)
    assert not world["bob"].kernel.states()
    assert told(world, CREATE, create) == (False, ())
    assert world["bob"].endpoint.counters["drop.stale-command"] == 1


@pytest.mark.rfc("4430-4-6")
def test_another_type_under_the_same_xid_with_the_same_octets_is_another_command() -> None:
    world = World()
    note = isakmp.encode((isakmp.Notification(ProtocolId.ESP, b"", 24578),))
    assert told(world, STATUS, note) == (False, ())
    _, inner = told(world, DELETE, note)  # which names no SA
    assert codes(inner) == [16]
    assert world["bob"].endpoint.counters.get("repeated-command", 0) == 0


def test_a_repeated_reply_echoes_the_newest_authenticator() -> None:
    world = World(profile=KE)
    create = with_ke()
    ticket = world["alice"].tickets.fetch(BOB.service)
    times = []
    for now in (0.0, 0.1):
        world.advance(now)
        times.append(sent_at(world, ticket, create))
    assert times[0] != times[1]
    assert [echoed(send, ticket) for send in world.wire] == times
    world.wire.clear()
    world.run(2.0, pass_on=lambda _: [])
    repeated = [echoed(send, ticket) for send in world.sent[2:]]
    assert repeated
    assert set(repeated) == {times[1]}


def sent_at(world: World, ticket: OfflineTicket, create: kink.Isakmp) -> tuple[int, int]:
    """Give bob alice's CREATE with a new authenticator, whose time this is."""
    authenticator = ticket.authenticate()
    proof = kink.ApReq(1000, authenticator.ap_req)
    world.deliver(Send(seal(CREATE, 7, proof, (create,), ticket.key), PATH))
    return authenticator.ctime, authenticator.cusec


def echoed(send: Send, ticket: OfflineTicket) -> tuple[int, int]:
    proof = kink.decode(send.datagram).message.payloads[0]
    assert isinstance(proof, kink.ApRep)
    return messages.read_ap_rep(ticket.key, proof.ap_rep)


# --- what it holds no longer than it must ---


@pytest.fixture
def agreed(monkeypatch: pytest.MonkeyPatch) -> list[Secret]:
    """All that Diffie-Hellman exchanges come to, at both ends."""
    found: list[Secret] = []
    agree = dh.Ephemeral.agree

    def watched(ephemeral: dh.Ephemeral, public: bytes) -> Secret:
        found.append(agree(ephemeral, public))
        return found[-1]

    monkeypatch.setattr(dh.Ephemeral, "agree", watched)
    return found


@pytest.mark.parametrize("acknowledged", [True, False])
def test_shared_secrets_are_overwritten_at_both_ends(
    agreed: list[Secret], acknowledged: bool
) -> None:
    world = World(profile=KE)
    world.acquire("alice", "bob")
    world.deliver(world.wire.popleft())
    (of_bob,) = agreed
    assert any(of_bob.value)  # it is needed until the ACK
    ack = {MessageType.ACK}
    world.run(
        TRANSACTION_SECONDS + 10,
        lambda send: [send] if acknowledged or kink.header(send.datagram).type not in ack else [],
    )
    assert len(agreed) >= 2
    assert len(list(world["bob"].endpoint.pairs)) == acknowledged
    assert not any(any(secret.value) for secret in agreed)


# --- what a narrow pair stands for ---


def test_a_pair_for_one_port_answers_no_acquire_for_all_traffic() -> None:
    world = World()
    told(world, CREATE, for_one_port())
    assert len(list(world["bob"].endpoint.pairs)) == 1
    world.sent.clear()
    world.acquire("bob", "alice")
    assert len(commands(world, CREATE)) == 1


def test_a_pair_for_all_traffic_answers_an_acquire_that_waited_to_be_read() -> None:
    world = World()
    told(world, CREATE, asked(0x2000))
    world.sent.clear()
    world.acquire("bob", "alice")
    assert not commands(world, CREATE)
    assert world["bob"].endpoint.counters["acquire-stale"] == 1


@pytest.mark.parametrize(("narrow", "pairs"), [(True, 2), (False, 1)])
def test_only_a_pair_for_all_of_it_is_worth_an_acquire_that_waits_for_its_ticket(
    narrow: bool, pairs: int
) -> None:
    world = World()
    world["bob"].kdc_up = False
    world.acquire("bob", "alice")
    told(world, CREATE, for_one_port() if narrow else asked(0x2000))
    world["bob"].kdc_up = True
    world.run(5.0)
    assert len(list(world["bob"].endpoint.pairs)) == pairs


# --- what makes it rekey ---


@pytest.mark.parametrize(("direction", "creates"), [("inbound", 1), ("outbound", 1)])
def test_the_soft_limit_of_either_sa_makes_the_initiator_rekey(
    direction: str, creates: int
) -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run()
    (pair,) = world["alice"].endpoint.pairs
    world.sent.clear()
    (sa,) = getattr(pair, direction)
    world["alice"].endpoint.kernel_event(Expire(sa, pair.reqid, hard=False), world.now)
    world.settle()
    assert len(commands(world, CREATE)) == creates


# --- what it asks a peer that seems to have begun anew ---


def claim(world: World, epoch: int, xid: int) -> None:
    """A genuine STATUS of alice's under another EPOCH."""
    ticket = world["alice"].tickets.fetch(BOB.service)
    proof = kink.ApReq(epoch, ticket.authenticate().ap_req)
    world.deliver(Send(seal(STATUS, xid, proof, (), ticket.key), PATH))


def test_however_often_an_epoch_is_claimed_there_is_one_question_at_a_time() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run()
    world.sent.clear()
    for xid in range(50, 55):
        world.now += 0.001
        claim(world, 4242, xid)
    assert len(commands(world, STATUS)) == 1
    world.run(5.0)
    world.sent.clear()
    claim(world, 4242, 60)  # the answer to the first is there: this one is asked again
    assert len(commands(world, STATUS)) == 1
