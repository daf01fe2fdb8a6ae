"""The rule for CREATEs that cross, with nonces that were chosen: who loses, when, and who waits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinkd.exchange.crossing import PATIENCE
from kinkd.exchange.effects import Send
from kinkd.exchange.pairs import Role, SaPair
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.kernel.port import Expire
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.pair.test_bounds import narrow
from tests.pair.test_crossing import NAMES, SETTLED, WAYS, assert_one_pair, newest
from tests.pair.test_several import told
from tests.support.pair import FAST, LivingWorld, World, passes

LOW, HIGH = 0, 255
KE = replace(FAST, groups=(19,))
GRACE = 1.0


def draw(world: World, higher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nonces of one side are all higher than those of the other."""
    for name in NAMES:
        octet = HIGH if name == higher else LOW
        random = lambda count, octet=octet: bytes([octet]) * count  # noqa: E731  # a source
        monkeypatch.setattr(world[name].endpoint._core, "random", random)


def cross(world: World) -> None:
    """Both CREATEs are on the wire before either comes to its end; all is delivered at once."""
    for way in WAYS:
        world.acquire(*way)
    world.run()


def ends(world: World, name: str) -> list[SaPair]:
    return list(world[name].endpoint.pairs)


def deletes(world: World) -> int:
    """How many DELETEs were sent, each counted once."""
    heads = [kink.header(send.datagram) for send in world.sent]
    return len({head.xid for head in heads if head.type == MessageType.DELETE})


def without_the_rule(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world[name].endpoint._crossings, "answered", lambda _: None)


@pytest.mark.parametrize("higher", NAMES)
def test_who_knows_no_rule_is_given_time_before_its_pair_is_deleted_for_it(
    higher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    draw(world, higher, monkeypatch)
    without_the_rule(world, "bob", monkeypatch)
    cross(world)
    assert [len(ends(world, name)) for name in NAMES] == [2, 2]
    world.run(PATIENCE - 1)
    # Its own pair alice deletes at once; that of bob, who may have meant it, is waited for.
    assert len(ends(world, "alice")) == (2 if higher == "alice" else 1)
    world.run(SETTLED)
    kept = assert_one_pair(world)
    assert kept.role is (Role.INITIATOR if higher == "alice" else Role.RESPONDER)


@pytest.mark.parametrize("higher", NAMES)
def test_where_both_know_it_the_loser_deletes_its_own_and_nobody_waits(
    higher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    draw(world, higher, monkeypatch)
    cross(world)
    world.sent.clear()
    world.run(GRACE + 0.5)
    kept = assert_pair_at_both(world)
    assert kept.role is (Role.INITIATOR if higher == "alice" else Role.RESPONDER)
    world.run(SETTLED)
    assert deletes(world) == 1


def assert_pair_at_both(world: World) -> SaPair:
    (alice,), (_,) = (ends(world, name) for name in NAMES)
    return alice


def expire(world: World, pair: SaPair) -> None:
    """The kernel's hard limit, at the end that alice has."""
    (sa,) = pair.inbound
    world["alice"].kernel.remove(sa)
    event = Expire(sa, pair.reqid, hard=True)
    world["alice"].endpoint.kernel_event(event, world.now)
    world.settle()
    world.run()


@pytest.mark.parametrize("gone", ["kept", "lost"])
@pytest.mark.parametrize("higher", NAMES)
def test_what_is_alone_by_then_is_not_deleted_and_what_is_gone_not_again(
    higher: str, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    draw(world, higher, monkeypatch)
    cross(world)
    mine = Role.INITIATOR if higher == "alice" else Role.RESPONDER
    kept = next(pair for pair in ends(world, "alice") if pair.role is mine)
    (lost,) = (pair for pair in ends(world, "alice") if pair is not kept)
    world.sent.clear()
    expire(world, kept if gone == "kept" else lost)
    assert deletes(world) == 1  # bob is told of what expired
    world.run(SETTLED)
    assert deletes(world) == 1
    assert ends(world, "alice") == [lost if gone == "kept" else kept]
    assert [passes(world, *way) for way in WAYS] == ["esp", "esp"]


@pytest.mark.parametrize("higher", NAMES)
def test_what_came_before_crosses_nothing_whatever_its_nonce(
    higher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    draw(world, higher, monkeypatch)
    world.acquire("bob", "alice")
    world.run(SETTLED)
    (before,) = ends(world, "alice")
    world.initiate("alice", "bob")
    world.run(SETTLED)
    kept = assert_one_pair(world)
    assert kept.role is Role.INITIATOR
    assert kept is not before
    assert "create.crossed" not in world["alice"].endpoint.counters


def is_ack(send: Send) -> bool:
    return kink.header(send.datagram).type == MessageType.ACK


@pytest.mark.parametrize("acknowledged", [True, False])
def test_of_a_crossing_that_is_over_nothing_is_kept(
    acknowledged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(profile=KE)
    draw(world, "alice", monkeypatch)
    for way in WAYS:
        world.acquire(*way)
    kept: list[Send] = []

    def hold_acks_of_bob(send: Send) -> list[Send]:
        if is_ack(send) and send.path.local == world["bob"].address:
            kept.append(send)
            return []
        return [send]

    world.run(0.0, hold_acks_of_bob)
    crossings = world["alice"].endpoint._crossings
    assert len(crossings._couples) == 1  # alice's is up, that of bob is not
    if acknowledged:
        world.deliver(kept[0])
        world.run(0.0)
    else:
        world.run(2 * TRANSACTION_SECONDS + 1, hold_acks_of_bob)
    assert not crossings._couples
    assert not crossings._theirs


# --- pairs of an earlier life, whose nonces are forgotten ---


def test_after_a_restart_the_end_that_knows_the_nonces_decides_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = LivingWorld()
    draw(world, "alice", monkeypatch)
    cross(world)
    by_spi = min(ends(world, "alice"), key=lambda pair: pair.sas[0].inbound)
    assert by_spi.role is Role.INITIATOR  # the rule of SPIs alone would have this one lose
    world.begin_anew("alice", reboot=False)
    world.run(SETTLED)
    assert assert_one_pair(world).role is Role.INITIATOR


def test_after_a_restart_a_pair_for_one_port_and_one_for_all_traffic_both_remain() -> None:
    world = World()
    world.acquire("bob", "alice")
    world.run()
    told(world, MessageType.CREATE, narrow(0x2000))
    before = ends(world, "bob")
    world.restart("bob")
    world.run(SETTLED)
    assert sorted(pair.selector.protocol for pair in before) == [0, 6]
    assert ends(world, "bob") == before
    assert newest(world, "bob").selector.protocol == 6
