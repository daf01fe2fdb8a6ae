"""What an initiator does about a refusal by Kerberos that is proven to be the responder's."""

from __future__ import annotations

import pytest

from kinkd.exchange.effects import Path, Send
from kinkd.exchange.remedy import LARGEST_OFFSET
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.exchange.verified import seal
from kinkd.kerberos import messages
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import MessageType
from tests.support.pair import ALICE, BOB, POSIX, World, mirrored, passes

PATH = Path(ALICE.addresses[0], BOB.addresses[0])
CREATE, REPLY = MessageType.CREATE, MessageType.REPLY


def kinds(world: World) -> list[MessageType]:
    return [kink.header(send.datagram).type for send in world.sent]


def commands(world: World) -> list[kink.Message]:
    sent = [kink.decode(send.datagram).message for send in world.sent]
    return [each for each in sent if each.type is not REPLY]


def proof_time(world: World, command: kink.Message) -> tuple[int, int]:
    request = command.payloads[0]
    assert isinstance(request, kink.ApReq)
    key = world["bob"].acceptor.open(request.ap_req).key
    return messages.authenticator_time(key, messages.read_ap_req(request.ap_req))


def chosen(world: World, command: kink.Message) -> tuple[bytes, bytes]:
    """SPI and nonce of a CREATE."""
    request, sealed = command.payloads
    assert isinstance(request, kink.ApReq)
    assert isinstance(sealed, kink.Encrypt)
    key = world["bob"].acceptor.open(request.ap_req).key
    (inner,) = kink.decode_inner(key.decrypt(39, sealed.cipher))
    assert isinstance(inner, kink.Isakmp)
    association, nonce = isakmp.decode(inner)[:2]
    assert isinstance(association, isakmp.SecurityAssociation)
    assert isinstance(nonce, isakmp.Nonce)
    return association.proposals[0].spi, nonce.data


def tell(world: World, code: int, stime: int, *, seconds_off: int = 0, command: int = -1) -> None:
    """Give alice a REPLY of bob's to a command of hers: a KRB-ERROR, proven."""
    asked = commands(world)[command]
    request = asked.payloads[0]
    assert isinstance(request, kink.ApReq)
    key = world["bob"].acceptor.open(request.ap_req).key
    ctime, cusec = proof_time(world, asked)
    error = messages.build_krb_error(
        code, "R", BOB.service, stime, cusec, client_time=(ctime + seconds_off, cusec)
    )
    proof = kink.ApRep(1001, messages.build_ap_rep(key, ctime, cusec))
    datagram = seal(REPLY, asked.xid, proof, (kink.KrbError(error),), key)
    world["alice"].endpoint.receive(datagram, PATH, world.now)
    world.settle()


def assert_keyed_once(world: World) -> None:
    (alice,) = world["alice"].endpoint.pairs
    (bob,) = world["bob"].endpoint.pairs
    assert mirrored(alice, bob)
    assert passes(world, "alice", "bob") == passes(world, "bob", "alice") == "esp"
    for node in world.nodes.values():
        assert len(node.kernel.states()) == 2


@pytest.mark.rfc("4430-3.5-1", "4430-3.5-4", "4430-3.5-5")
@pytest.mark.parametrize("ahead", [-1200.5, 1200.5, -80_000.0, 80_000.0])
def test_a_wrong_clock_costs_one_more_round_trip_once(ahead: float) -> None:
    # The KDC tells the same time as bob; a ticket of a day and a half is valid on both clocks.
    world = World(ahead={"alice": ahead})
    world["alice"].tickets._lifetime = 130_000
    world.acquire("alice", "bob")
    world.run()
    assert kinds(world) == [CREATE, REPLY, CREATE, REPLY]
    assert_keyed_once(world)
    first, second = commands(world)
    assert first.xid != second.xid
    assert abs(proof_time(world, second)[0] - POSIX) <= 1
    (learnt,) = world["alice"].events("clock-offset-learnt")
    assert learnt == {"peer": "bob", "seconds": -ahead}

    world.sent.clear()
    world.run(5.0)
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(5.0)
    assert kinds(world) == [MessageType.DELETE, REPLY]
    assert proof_time(world, commands(world)[0])[0] == POSIX + 5


def test_nothing_of_a_refused_create_is_used_again() -> None:
    world = World(ahead={"alice": 1200})
    world.acquire("alice", "bob")
    world.run()
    first, second = (chosen(world, each) for each in commands(world))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_a_refused_create_that_is_withheld_until_it_is_fresh_leaves_no_black_hole() -> None:
    world = World(ahead={"alice": 1200})
    world.acquire("alice", "bob")
    withheld = world.wire[0]
    world.run()
    assert_keyed_once(world)
    world.run(1200)
    world.deliver(withheld)
    assert len(world["bob"].endpoint.pairs) == 2  # for an instant: his answer is under way
    world.run(10.0)
    assert_keyed_once(world)


@pytest.mark.parametrize("code", [37, 32])
def test_the_same_refusal_twice_ends_the_command(code: int) -> None:
    world = World()
    world.acquire("alice", "bob")
    world.wire.clear()
    for _ in range(2):
        tell(world, code, int(POSIX) + 1000)
        world.wire.clear()
    assert kinds(world) == [CREATE, CREATE]
    (failed,) = world["alice"].events("create-failed")
    assert ("KRB_AP_ERR_SKEW" if code == 37 else "KRB_AP_ERR_TKT_EXPIRED") in failed["reason"]
    assert not world["alice"].kernel.states()
    assert world["alice"].endpoint.commands_under_way == 0


def test_each_proven_skew_sets_the_difference_anew_from_our_own_clock() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.wire.clear()
    tell(world, 37, int(POSIX) + 1000)
    tell(world, 37, int(POSIX) + 400)
    learnt = [each["seconds"] for each in world["alice"].events("clock-offset-learnt")]
    assert learnt == [1000, 400]
    world.initiate("alice", "bob")
    assert proof_time(world, commands(world)[-1])[0] == POSIX + 400


@pytest.mark.rfc("4430-3.5-4")
def test_a_proven_skew_with_another_client_time_moves_nothing() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.wire.clear()
    tell(world, 37, int(POSIX) + 1000, seconds_off=1)
    assert kinds(world) == [CREATE]
    assert world["alice"].events("create-failed")
    world.initiate("alice", "bob")
    assert proof_time(world, commands(world)[-1])[0] == POSIX


def test_a_proven_skew_that_comes_after_the_end_moves_nothing() -> None:
    """Who holds a command back for minutes must not be able to say how wrong our clock is."""
    world = World()
    world.acquire("alice", "bob")
    world.run(TRANSACTION_SECONDS + 5, pass_on=lambda _: [])
    sent = len(world.sent)
    tell(world, 37, int(POSIX) + 1000)
    # Whoever answers can be told to remove what it may have made.
    assert kinds(world)[sent:] == [MessageType.DELETE]
    assert not world["alice"].events("clock-offset-learnt")


@pytest.mark.parametrize("seconds", [LARGEST_OFFSET + 2, -LARGEST_OFFSET - 2, 250_000_000_000])
def test_a_difference_of_more_than_a_day_is_not_believed(seconds: float) -> None:
    world = World()
    world.acquire("alice", "bob")
    world.wire.clear()
    tell(world, 37, int(POSIX + seconds))
    assert world["alice"].events("create-failed")
    assert world["alice"].endpoint.counters["clock-offset-refused"] == 1
    world.initiate("alice", "bob")
    assert proof_time(world, commands(world)[-1])[0] == POSIX


def test_an_expired_ticket_is_replaced_and_the_command_begun_again() -> None:
    world = World()
    world["alice"].tickets._lifetime = -1000
    world.acquire("alice", "bob")
    world["alice"].tickets._lifetime = 36000
    world.run()
    assert kinds(world) == [CREATE, REPLY, CREATE, REPLY]
    assert_keyed_once(world)


def test_an_expired_ticket_and_a_wrong_clock_are_both_put_right() -> None:
    world = World(ahead={"bob": 700})
    world["alice"].tickets._lifetime = 200
    world.acquire("alice", "bob")
    world["alice"].tickets._lifetime = 36000
    world.run()
    assert kinds(world) == [CREATE, REPLY] * 3
    assert_keyed_once(world)


def test_a_kdc_that_gives_no_better_ticket_ends_the_command() -> None:
    world = World()
    world["alice"].tickets._lifetime = -1000
    world.acquire("alice", "bob")
    world.run()
    assert kinds(world) == [CREATE, REPLY] * 2
    assert not world["alice"].kernel.states()
    assert world["alice"].endpoint.commands_under_way == 0


def test_a_status_is_remedied_as_well() -> None:
    """The clock of a host that has been keyed may jump: its DELETE and STATUS are heard again."""
    world = World()
    world.acquire("alice", "bob")
    world.run()
    (old,) = world["alice"].endpoint.pairs
    world.ahead["alice"] = 1200
    world["alice"].endpoint.set_posix(POSIX + 1200)
    world.restart("bob", epoch=2000)
    world.acquire("bob", "alice")  # alice refuses bob, who learns her clock
    world.run(5.0)
    assert kinds(world).count(MessageType.STATUS) == 2
    assert world["alice"].endpoint.counters["peer-restarted"] == 1
    assert old not in list(world["alice"].endpoint.pairs)
    assert_keyed_once(world)


def test_leaving_ends_a_command_that_was_begun_again() -> None:
    world = World(ahead={"alice": 1200})
    world.acquire("alice", "bob")
    for _ in range(2):
        world.deliver(world.wire.popleft())
    assert kinds(world) == [CREATE, REPLY, CREATE]
    world["alice"].endpoint.stop_creating(world.now)
    world.settle()
    assert kinds(world)[3:] == [MessageType.DELETE]  # bob may have carried it out
    assert not world["alice"].kernel.states()
    world.run(1.0)
    assert world["alice"].endpoint.commands_under_way == 0


def test_unproven_words_about_expiry_take_no_ticket_away() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.wire.clear()
    error = messages.build_krb_error(32, "R", BOB.service, int(POSIX), 0, client_time=(1, 0))
    lie = kink.Message(REPLY, commands(world)[0].xid, (kink.KrbError(error),))
    world.wire.append(Send(kink.encode(lie, protected=False), Path(PATH.remote, PATH.local)))
    world.run(1.0)
    assert kinds(world) == [CREATE, CREATE, REPLY]
    first, again = commands(world)
    assert first.xid == again.xid
    assert_keyed_once(world)
