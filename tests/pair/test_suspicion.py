"""A peer is asked for its life when traffic goes one way, and only then (RFC 4430 §3.7)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from kinkd.errors import KernelError
from kinkd.exchange.effects import Send
from kinkd.exchange.suspicion import ASKED_AT_ONCE, LONGEST_WAIT, LOOK_SECONDS, SLICE
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.kernel.port import SaId, SaState
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.support.pair import ALICE, BOB, Filter, World, host, passes

CREATE, STATUS = MessageType.CREATE, MessageType.STATUS


def keyed() -> World:
    world = World()
    world.acquire("alice", "bob")
    world.run()
    world.sent.clear()
    return world


def deaf(_: Send) -> list[Send]:
    return []


def talk(
    world: World, seconds: float, *ways: tuple[str, str], network: Filter = lambda send: [send]
) -> None:
    """Packets, one a second each way that is named."""
    for _ in range(int(seconds)):
        for way in ways:
            passes(world, *way)
        world.run(1.0, network)


A_TO_B, B_TO_A = ("alice", "bob"), ("bob", "alice")


def asked(world: World, kind: MessageType = STATUS) -> list[int]:
    """The XIDs of commands of a kind: retransmissions are one command."""
    heads = [kink.header(send.datagram) for send in world.sent]
    return list(dict.fromkeys(head.xid for head in heads if head.type == kind))


@pytest.mark.rfc("4430-3.7-5", "4430-3.7-9")
def test_without_traffic_nothing_is_ever_sent() -> None:
    world = keyed()
    world.run(7200)
    assert not world.sent


def test_where_traffic_goes_both_ways_nothing_is_ever_sent() -> None:
    world = keyed()
    talk(world, 300, A_TO_B, B_TO_A)
    assert not world.sent


def test_a_few_answers_are_enough() -> None:
    world = keyed()
    for _ in range(30):
        talk(world, LOOK_SECONDS, A_TO_B)
        passes(world, *B_TO_A)
        talk(world, LOOK_SECONDS, A_TO_B)
        passes(world, *B_TO_A)
    assert not world.sent


@pytest.mark.rfc("4430-3.7-5")
def test_who_lost_everything_is_found_out_by_traffic_alone() -> None:
    world = keyed()
    (old,) = world["alice"].endpoint.pairs
    world.restart("bob", epoch=2000)
    talk(world, 4 * LOOK_SECONDS, A_TO_B)
    assert asked(world) != []
    assert world["alice"].endpoint.counters["peer-restarted"] == 1
    assert old not in list(world["alice"].endpoint.pairs)
    world.acquire("alice", "bob")  # the kernel has no SA now, and says so
    world.run(1.0)
    assert passes(world, *A_TO_B) == passes(world, *B_TO_A) == "esp"


@pytest.mark.rfc("4430-3.7-5", "4430-3.7-8")
def test_who_does_not_answer_is_reported_once_and_asked_at_longer_intervals() -> None:
    world = keyed()
    pairs = list(world["alice"].endpoint.pairs)
    talk(world, 3600, A_TO_B, network=deaf)
    assert len(world["alice"].events("peer-silent")) == 1
    assert world["alice"].endpoint.counters["peer-silent"] == 1
    # 5 s doubled up to 600 s: seven steps in the first 635 s, then one in 600 s.
    assert 9 <= len(asked(world)) <= 15
    assert list(world["alice"].endpoint.pairs) == pairs
    assert not asked(world, CREATE)


def test_a_silent_peer_that_is_back_is_reported_and_the_next_silence_is_a_new_one() -> None:
    world = keyed()
    for silences in (1, 2):
        talk(world, 100, A_TO_B, network=deaf)
        assert len(world["alice"].events("peer-silent")) == silences
        talk(world, 2 * LOOK_SECONDS, A_TO_B, B_TO_A)
        assert len(world["alice"].events("peer-heard")) == silences
    assert len(world["alice"].endpoint.pairs) == 1


def test_a_peer_that_lives_and_lost_one_pair_gets_a_new_one() -> None:
    world = keyed()
    (old,) = world["alice"].endpoint.pairs
    (of_bob,) = world["bob"].endpoint.pairs
    for sa in (*of_bob.inbound, *of_bob.outbound):
        world["bob"].kernel.remove(sa)
    world["bob"].endpoint._core.pairs.discard(of_bob)  # and bob tells nobody
    assert passes(world, *A_TO_B) == "dropped"
    talk(world, 5 * LOOK_SECONDS, A_TO_B)
    assert len(asked(world)) == 1
    assert len(asked(world, CREATE)) == 1
    assert old not in list(world["alice"].endpoint.pairs)
    assert len(world["alice"].endpoint.pairs) == len(world["bob"].endpoint.pairs) == 1
    assert passes(world, *A_TO_B) == passes(world, *B_TO_A) == "esp"


def test_a_peer_that_lost_its_outbound_half_alone_gets_a_new_pair_too() -> None:
    world = keyed()
    (of_bob,) = world["bob"].endpoint.pairs
    world["bob"].kernel.remove(of_bob.outbound[0])
    world["bob"].endpoint._core.pairs.discard(of_bob)
    talk(world, 5 * LOOK_SECONDS, A_TO_B)
    assert passes(world, *B_TO_A) == "esp"


def test_a_flow_that_nobody_answers_costs_one_pair_and_then_ever_fewer_questions() -> None:
    world = keyed()
    talk(world, 7200, A_TO_B)
    assert len(asked(world, CREATE)) == 1
    assert 10 <= len(asked(world)) <= 7200 / LONGEST_WAIT + 8
    assert not world["alice"].events("peer-silent")
    assert passes(world, *A_TO_B) == "esp"


def test_once_answered_the_next_silence_may_cost_a_pair_again() -> None:
    world = keyed()
    for created in (1, 2):
        talk(world, 100, A_TO_B)
        assert len(asked(world, CREATE)) == created
        talk(world, 2 * LOOK_SECONDS, B_TO_A)


def test_after_the_last_pair_nobody_looks_at_counters() -> None:
    world = keyed()
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(1000)
    world.pass_refresh()
    assert world["alice"].endpoint.timers == 1  # the next look at the kernel
    world.acquire("alice", "bob")
    world.run()
    world.restart("bob", epoch=2000)
    talk(world, 4 * LOOK_SECONDS, A_TO_B)
    assert world["alice"].endpoint.counters["peer-restarted"] == 1


def test_pairs_of_an_earlier_life_are_looked_at_too() -> None:
    world = keyed()
    talk(world, 5, A_TO_B, B_TO_A)
    world.restart("alice")
    world.restart("bob", epoch=2000)
    talk(world, 5 * LOOK_SECONDS, A_TO_B)
    assert world["alice"].endpoint.counters["peer-restarted"] == 1


def test_who_takes_leave_asks_nobody() -> None:
    for seconds, asked_before in ((1, 0), (3.5 * LOOK_SECONDS, 1)):
        world = keyed()
        talk(world, seconds, A_TO_B)
        assert len(asked(world)) == asked_before
        world["alice"].endpoint.stop_creating(world.now)
        talk(world, 100, A_TO_B)
        assert len(asked(world)) == asked_before
        assert not asked(world, CREATE)


def test_where_all_are_silent_not_all_are_asked_at_once() -> None:
    peers = tuple(host(f"h{n}", IPv4Address(f"10.1.0.{n}")) for n in range(1, 41))
    world = World((ALICE, *peers))
    for peer in peers:
        world.acquire("alice", peer.name)
    world.run()
    world.sent.clear()
    ways = [("alice", peer.name) for peer in peers]
    talk(world, 3 * LOOK_SECONDS, *ways, network=deaf)
    assert len(asked(world)) == ASKED_AT_ONCE
    talk(world, 4 * TRANSACTION_SECONDS, *ways, network=deaf)
    assert world["alice"].endpoint.counters["peer-silent"] == len(peers)


def test_a_look_at_many_pairs_is_taken_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    world = keyed()
    (pair,) = world["alice"].endpoint.pairs
    many = [
        replace(
            pair,
            remote=IPv4Address(f"10.2.{n >> 8}.{n & 255}"),
            sas=(pair.sas[0]._replace(inbound=0x9000 + n),),
        )
        for n in range(1000)
    ]
    world["alice"].endpoint.adopt(many, world.now)
    seen: list[SaId] = []
    kernel = world["alice"].kernel
    state = kernel.state

    (some,) = pair.inbound

    def counted(sa: SaId) -> SaState | None:
        seen.append(sa)
        return state(some)

    monkeypatch.setattr(kernel, "state", counted)
    most = 0
    for _ in range(400):
        before = len(seen)
        world.advance(world.now + 0.1)
        most = max(most, len(seen) - before)
    assert 0 < most <= 2 * SLICE
    assert {sa.spi for sa in seen} >= {each.sas[0].inbound for each in many}


def test_a_kernel_that_refuses_is_reported_once_a_look_and_concluded_nothing_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peers = tuple(host(f"h{n}", IPv4Address(f"10.1.0.{n}")) for n in range(1, 5))
    world = World((ALICE, *peers))
    for peer in peers:
        world.acquire("alice", peer.name)
    world.run()
    world.sent.clear()

    def refuses(sa: SaId) -> SaState | None:
        raise KernelError(105, "GETSA")

    with monkeypatch.context() as patch:
        patch.setattr(world["alice"].kernel, "state", refuses)
        world.run(3 * LOOK_SECONDS)
    assert world["alice"].endpoint.counters["kernel-error"] == 3
    ways = [("alice", peer.name) for peer in peers]
    talk(world, 2 * LOOK_SECONDS, *ways)
    assert not world.sent
    talk(world, 2 * LOOK_SECONDS, *ways)
    assert len(asked(world)) == len(peers)
