"""Two endpoints in memory: CREATE, DELETE, STATUS, and what goes wrong on the way."""

from __future__ import annotations

import pytest

from kinkd.errors import PeerError
from kinkd.exchange.effects import Path, Send
from kinkd.exchange.pairs import Role
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.kernel.port import Expire, Overrun
from kinkd.model import IpsecProtocol
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.support.pair import ALICE, BOB, CAROL, World, mirrored, passes


def keyed() -> World:
    world = World()
    world.acquire("alice", "bob")
    world.run()
    return world


def types_on_the_wire(world: World) -> list[MessageType]:
    return [kink.decode(send.datagram).message.type for send in world.sent]


def assert_keyed_once(world: World) -> None:
    (alice,) = world["alice"].endpoint.pairs
    (bob,) = world["bob"].endpoint.pairs
    assert mirrored(alice, bob)
    assert passes(world, "alice", "bob") == "esp"
    assert passes(world, "bob", "alice") == "esp"


def assert_empty(world: World) -> None:
    for node in world.nodes.values():
        assert not list(node.endpoint.pairs)
        assert not [state for state in node.kernel.states() if not state.larval]
        assert not node.journal


@pytest.mark.rfc("4430-6.3-1", "4430-3.7-1", "4430-3.7-2", "4430-4-12", "4430-5.4-2")
def test_one_round_trip_keys_both_directions() -> None:
    world = keyed()
    assert types_on_the_wire(world) == [MessageType.CREATE, MessageType.REPLY]
    assert_keyed_once(world)
    (alice,), (bob,) = world["alice"].endpoint.pairs, world["bob"].endpoint.pairs
    assert (alice.role, bob.role) == (Role.INITIATOR, Role.RESPONDER)
    assert (alice.epoch, bob.epoch) == (1001, 1000)
    assert world["bob"].journal


def test_the_initiators_inbound_sa_is_there_before_the_reply() -> None:
    world = World()
    world.acquire("alice", "bob")
    (state,) = [s for s in world["alice"].kernel.states() if not s.larval]
    assert state.id.destination == ALICE.addresses[0]


def test_acquires_for_one_address_pair_are_one_exchange() -> None:
    world = World()
    for _ in range(5):
        world.acquire("alice", "bob")
    world.run()
    assert types_on_the_wire(world) == [MessageType.CREATE, MessageType.REPLY]


@pytest.mark.rfc("4430-9-2", "4430-9-3", "4430-9-5", "4430-9-7")
def test_a_lost_create_is_sent_again_with_a_new_authenticator_and_the_same_xid() -> None:
    world = World()
    world.acquire("alice", "bob")
    lost = world.wire.popleft()
    world.run(1.0)
    again = world.sent[1]
    first, second = (kink.decode(send.datagram).message for send in (lost, again))
    assert first.xid == second.xid
    assert first.payloads[0] != second.payloads[0]
    assert_keyed_once(world)


def test_a_lost_reply_is_answered_again_and_nothing_is_keyed_twice() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.deliver(world.wire.popleft())
    world.wire.clear()  # the REPLY
    world.run(1.0)
    assert world["bob"].endpoint.counters["repeated-command"] == 1
    assert_keyed_once(world)


@pytest.mark.rfc("4430-9-6")
def test_a_reply_to_an_earlier_authenticator_is_accepted() -> None:
    world = World()
    world.acquire("alice", "bob")
    first = world.wire.popleft()
    world.advance(0.6)
    retransmission = world.wire.popleft()
    world.deliver(first)
    world.deliver(world.wire.popleft())  # the REPLY to the first, when the second is out
    assert_keyed_once(world)
    world.deliver(retransmission)
    world.run()
    assert_keyed_once(world)


def test_a_create_repeated_across_a_restart_of_the_responder_is_not_keyed_twice() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.deliver(world.wire.popleft())
    world.wire.clear()
    world.restart("bob")
    world.run(1.0)
    assert_keyed_once(world)


def test_a_dead_peer_leaves_nothing_behind() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run(TRANSACTION_SECONDS + 10, pass_on=lambda _: [])
    assert_empty(world)
    assert world["alice"].events("create-failed")[0]["reason"] == "no answer"
    world.run(400)  # a REPLY may come late while its authenticator is fresh; then all is forgotten
    world.pass_refresh()
    assert world["alice"].endpoint.timers == 1
    assert passes(world, "alice", "bob") in ("held", "dropped")  # and never in clear


def test_a_kdc_that_comes_back_in_time_is_enough() -> None:
    world = World()
    world["alice"].kdc_up = False
    world.acquire("alice", "bob")
    world.run(5.0)
    assert passes(world, "alice", "bob") in ("held", "dropped")
    world["alice"].kdc_up = True
    world.run(10.0)
    assert_keyed_once(world)


def test_a_kdc_that_stays_away_ends_the_attempt() -> None:
    world = World()
    world["alice"].kdc_up = False
    world.acquire("alice", "bob")
    world.run(TRANSACTION_SECONDS + 5)
    assert world["alice"].events("create-failed")[0]["reason"] == "KDC unreachable"
    assert world["alice"].endpoint.commands_under_way == 0


@pytest.mark.rfc("4430-3.3-2")
def test_delete_empties_both_kernels() -> None:
    world = keyed()
    world.sent.clear()
    done: list[float] = []
    world["alice"].endpoint.terminate(BOB, world.now, done.append)
    world.settle()
    world.run(10.0)
    assert types_on_the_wire(world) == [MessageType.DELETE, MessageType.REPLY]
    assert done
    assert_empty(world)


@pytest.mark.rfc("4430-3.3-3")
def test_delete_of_what_the_peer_does_not_have_still_empties_ours() -> None:
    world = keyed()
    world.restart("bob", epoch=1001)  # the same EPOCH, as if only this SA were lost
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(10.0)
    assert_empty(world)


@pytest.mark.rfc("4430-3.3-4")
def test_a_responder_still_receives_for_a_grace_after_delete() -> None:
    world = keyed()
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(0.01)
    assert [s.id.destination for s in world["bob"].kernel.states()] == [BOB.addresses[0]]
    world.run(5.0)
    assert not world["bob"].kernel.states()


def test_delete_of_another_hosts_sa_is_refused() -> None:
    world = World((ALICE, BOB, CAROL))
    world.acquire("alice", "bob")
    world.acquire("carol", "bob")
    world.run()
    (of_alice,) = world["bob"].endpoint.pairs.of_host("alice")
    (mine,) = world["carol"].endpoint.pairs
    # carol names the SPI of alice's SA
    forged = kink_delete(world, of_alice.sas[0].outbound)
    world.deliver(forged)
    world.run(5.0)
    assert world["bob"].endpoint.pairs.of_host("alice") == [of_alice]
    assert mine in list(world["carol"].endpoint.pairs)


def kink_delete(world: World, spi: int) -> Send:
    from kinkd.exchange import quickmode
    from kinkd.exchange.verified import seal

    carol = world["carol"]
    ticket = carol.tickets.fetch(BOB.service)
    proof = kink.ApReq(1002, ticket.authenticate().ap_req)
    inner = (quickmode.deletion([(IpsecProtocol.ESP, spi)]),)
    datagram = seal(MessageType.DELETE, 77, proof, inner, ticket.key)
    return Send(datagram, Path(CAROL.addresses[0], BOB.addresses[0]))


def test_a_soft_expiry_makes_a_new_pair_before_the_old_one_goes() -> None:
    world = keyed()
    (old,) = world["alice"].endpoint.pairs
    world["alice"].endpoint.kernel_event(Expire(old.outbound[0], old.reqid, hard=False), world.now)
    world.settle()
    world.run(0.01)
    assert len(world["alice"].endpoint.pairs) == 2
    assert passes(world, "alice", "bob") == "esp"
    world.run(20.0)
    assert_keyed_once(world)
    (new,) = world["alice"].endpoint.pairs
    assert new.inbound != old.inbound


def test_an_acquire_that_was_read_late_makes_no_second_pair() -> None:
    world = keyed()
    world.acquire("bob", "alice")
    world.run(1.0)
    assert_keyed_once(world)
    assert world["bob"].endpoint.counters["acquire-stale"] == 1


def test_an_acquire_for_an_sa_that_was_taken_from_the_kernel_makes_a_new_pair() -> None:
    world = keyed()
    (old,) = world["alice"].endpoint.pairs
    world["alice"].kernel.remove(old.outbound[0])
    world.acquire("alice", "bob")
    world.run(1.0)
    assert passes(world, "alice", "bob") == "esp"


def test_initiating_anew_replaces_the_pair() -> None:
    world = keyed()
    (old,) = world["alice"].endpoint.pairs
    told: list[object] = []
    world["alice"].endpoint.initiate(
        world.protection("alice", "bob"), world.now, lambda *end: told.append(end[0])
    )
    world.settle()
    world.run(20.0)
    assert_keyed_once(world)
    assert told == list(world["alice"].endpoint.pairs) != [old]


def test_the_responder_leaves_rekeying_to_the_initiator() -> None:
    world = keyed()
    (pair,) = world["bob"].endpoint.pairs
    world["bob"].endpoint.kernel_event(Expire(pair.outbound[0], pair.reqid, hard=False), world.now)
    world.settle()
    assert not world.wire


@pytest.mark.rfc("4430-3.3-5")
def test_a_hard_expiry_takes_the_other_half_with_it() -> None:
    world = keyed()
    (pair,) = world["alice"].endpoint.pairs
    world["alice"].kernel.remove(pair.outbound[0])
    world["alice"].endpoint.kernel_event(Expire(pair.outbound[0], pair.reqid, hard=True), world.now)
    world.settle()
    assert not world["alice"].kernel.states()
    assert not world["alice"].journal


def test_leaving_ends_what_is_under_way_and_a_late_answer_puts_nothing_back() -> None:
    world = World()
    world.acquire("alice", "bob")
    world["alice"].endpoint.stop_creating(world.now)
    world.settle()
    assert not world["alice"].kernel.states()
    world.run(10.0)
    assert_empty(world)  # bob was told that alice has no use for his half
    with pytest.raises(PeerError, match="closing"):
        world["alice"].endpoint.initiate(
            world.protection("alice", "bob"), world.now, lambda *_: None
        )


def test_a_withheld_retransmission_does_not_key_a_deleted_pair_again() -> None:
    world = World()
    world.acquire("alice", "bob")
    first = world.wire.popleft()
    world.advance(0.6)
    withheld = world.wire.popleft()
    world.deliver(first)
    world.run()
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(5.0)
    assert_empty(world)
    for restarted in (False, True):
        if restarted:
            world.restart("bob")
        world.deliver(withheld)
        assert not world["bob"].kernel.states()
        counters = world["bob"].endpoint.counters
        assert counters.get("drop.stale-command", 0) + counters.get("drop.replay", 0) == 1


def test_an_exchange_without_an_xid_takes_none_from_another() -> None:
    world = World((ALICE, BOB, CAROL))
    world["alice"].kdc_up = False
    world.acquire("alice", "carol")
    world.run(25.0)
    world["alice"].kdc_up = True
    world["alice"].endpoint.ticket_ready(
        BOB.service, world["alice"].tickets.fetch(BOB.service), world.now
    )
    world.keys.pop(CAROL.service)
    world.acquire("alice", "bob")
    held = list(world.wire)
    world.wire.clear()
    assert len(held) == 1
    world.run(6.0, pass_on=lambda _: [])  # carol's attempt ends without ever having been sent
    for send in held:
        world.deliver(send)
    world.run()
    assert len(world["alice"].endpoint.pairs) == 1


def test_a_rekey_that_joins_a_running_create_still_ends_the_old_pair() -> None:
    world = keyed()
    (old,) = world["alice"].endpoint.pairs
    world["alice"].endpoint.initiate(world.protection("alice", "bob"), world.now, lambda *_: None)
    world["alice"].endpoint.kernel_event(Expire(old.outbound[0], old.reqid, hard=False), world.now)
    world.settle()
    world.run(20.0)
    assert_keyed_once(world)


def test_after_lost_events_what_the_kernel_lacks_is_made_anew() -> None:
    world = keyed()
    (pair,) = world["alice"].endpoint.pairs
    world["alice"].kernel.remove(pair.inbound[0])
    world["alice"].endpoint.kernel_event(Overrun(), world.now)
    world.run(20.0)
    assert_keyed_once(world)
    assert pair not in list(world["alice"].endpoint.pairs)


@pytest.mark.rfc("4430-3.7-3", "4430-3.7-7")
def test_a_peer_that_lost_its_state_is_noticed_and_the_old_pair_goes() -> None:
    world = keyed()
    (old,) = world["alice"].endpoint.pairs
    world.restart("bob", epoch=2000)
    world.acquire("bob", "alice")
    world.run(5.0)
    assert MessageType.STATUS in types_on_the_wire(world)
    assert old not in list(world["alice"].endpoint.pairs)
    assert_keyed_once(world)
    assert world["alice"].endpoint.counters["peer-restarted"] == 1


def test_an_epoch_that_only_a_command_claims_tears_nothing_down() -> None:
    world = keyed()
    (pair,) = world["alice"].endpoint.pairs
    world.restart("bob", epoch=2000)
    world.acquire("bob", "alice")
    world.deliver(world.wire.popleft())  # bob's CREATE; alice's STATUS never arrives
    world.wire.clear()
    assert pair in list(world["alice"].endpoint.pairs)


@pytest.mark.rfc("4430-4-6")
def test_a_restart_keeps_pairs_and_uses_no_xid_again() -> None:
    world = keyed()
    before = {kink.header(send.datagram).xid for send in world.sent}
    world.restart("alice")
    assert_keyed_once(world)
    world.sent.clear()
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(10.0)
    after = {kink.header(send.datagram).xid for send in world.sent}
    assert not before & after
    assert_empty(world)


def test_a_daemon_that_takes_leave_makes_no_new_sa() -> None:
    world = keyed()
    world["alice"].endpoint.stop_creating(world.now)
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(10.0)
    world.acquire("alice", "bob")
    world.acquire("bob", "alice")
    world.run(1.0)
    assert not list(world["alice"].endpoint.pairs)
    assert not list(world["bob"].endpoint.pairs)
