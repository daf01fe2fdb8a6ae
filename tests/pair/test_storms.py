"""Storms of questions and of deletions: bounded work, and nobody starves."""

from __future__ import annotations

import inspect
import sys
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from kinkd.errors import KernelError
from kinkd.exchange import acquires
from kinkd.exchange.acquires import GIVE_WAY, TICKETS_AWAITED
from kinkd.exchange.effects import FetchTicket, Send
from kinkd.exchange.reconciler import ROUND_SECONDS
from kinkd.kernel.memory import Flow
from kinkd.kernel.port import Overrun
from kinkd.model import Host, Lifetime
from kinkd.policy.match import HostPolicy
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.pair.test_acquires import Storm
from tests.support.pair import (
    ALICE,
    BOB,
    CAROL,
    FAST,
    POSIX,
    LivingWorld,
    World,
    host,
    passes,
    policy_of,
)


def nothing(_: Send) -> list[Send]:
    return []


def test_an_entry_of_others_in_the_way_of_one_keeps_no_other_from_being_restored() -> None:
    """Clear text would pass to everybody because of one."""
    world = LivingWorld(hosts=(ALICE, BOB, CAROL))
    alice = world["alice"]
    with_bob = next(
        e
        for e in alice.endpoint.policy.entries
        if e.selector.destination.network_address == BOB.addresses[0]
    )
    alice.kernel.flush_policies()
    alice.kernel.write_policy(replace(with_bob, priority=7))
    world.settle()
    world.run(10 * ROUND_SECONDS)
    outcome, _ = alice.kernel.transmit(Flow(alice.address, CAROL.addresses[0]))
    assert outcome != "clear"


class Many(LivingWorld):
    """alice and many live hosts."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(
            hosts=(ALICE, *(host(f"h{n}", IPv4Address("10.1.0.0") + n) for n in range(count)))
        )

    def policy(self, me: Host) -> HostPolicy:
        return policy_of(me, self.hosts[1:] if me is ALICE else (ALICE,))


def test_all_peers_of_a_host_that_lost_its_state_are_told_within_two_seconds() -> None:
    world = Many(60)
    for n in range(60):
        world.traffic("alice", f"h{n}")
    world.run(5.0)
    assert len(world["alice"].endpoint.pairs) == 60
    world.begin_anew("alice", reboot=True)
    world.run(2.0)
    left = [n for n in range(60) if list(world[f"h{n}"].endpoint.pairs)]
    world.run(58.0)
    after_a_minute = [n for n in range(60) if list(world[f"h{n}"].endpoint.pairs)]
    assert not left, (
        f"{len(left)} of 60 send into nothing after 2 s, {len(after_a_minute)} after 60 s"
    )


GATE = """
schema = 1
version = 1
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = ["10.0.0.1"]
[hosts.gate]
fqdn = "gate.example.test"
addresses = ["10.0.0.2"]
networks = ["10.100.0.0/16", "10.101.0.0/16"]
[[rules]]
name = "all"
from = "all"
to = "all"
action = "require"
profile = "fast"
mode = "tunnel"
"""


def test_an_sa_for_one_network_strands_no_question_about_another() -> None:
    """A question is followed by an SA, or by the removal of its larval state."""
    world = World(document=GATE)
    alice = world["alice"]
    first, second = (IPv4Address(f"10.{n}.0.1") for n in (100, 101))
    me = ALICE.addresses[0]

    def ask(to: IPv4Address) -> None:
        alice.kernel.traffic(me, to, world.now)
        for event in alice.kernel.events():
            alice.endpoint.kernel_event(event, world.now)
        world.settle()

    ask(first)
    rests = alice.endpoint._acquires._rests
    while not rests:
        world.run(0.1, nothing)  # the gateway is silent: it rests
    ask(second)
    assert [len(rest.wants) for rest in rests.values()] == [2]
    slot = next(p for p in alice.endpoint.policy.protections if first in p.selector.destination)
    alice.endpoint.initiate(slot, world.now, lambda *_: None)  # as kinkctl, or a rekey
    world.settle()
    world.run(0.1)
    assert len(alice.endpoint.pairs) == 1
    world.run(20.0)
    ask(second)  # it is still sent
    world.run(1.0)
    assert len(alice.endpoint.pairs) == 2


def test_a_narrower_pair_that_vanished_is_replaced_once() -> None:
    world = LivingWorld()
    alice = world["alice"]
    world.traffic("alice", "bob")
    world.run(1.0)
    (pair,) = alice.endpoint.pairs
    # The policy speaks of more now than when it was made: TCP then, all between the two today.
    narrow = replace(pair, selector=replace(pair.selector, protocol=6))
    alice.endpoint._core.pairs.discard(pair)
    alice.endpoint._core.pairs.add(narrow)
    alice.kernel.remove(pair.inbound[0])
    world.settle()
    for _ in range(60):
        world.traffic("alice", "bob")
        world.traffic("bob", "alice")
        world.run(10.0)
    assert alice.endpoint.counters["create.initiated"] <= 3


def test_creates_that_fail_at_once_do_not_nest_in_one_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(acquires, "PLACES", 4)
    world = Storm(400)
    alice = world["alice"]
    world.send_to(400)
    assert len(alice.endpoint._acquires._queue) == 396

    def refuse(*_: object) -> int:
        raise KernelError(12, "ALLOCSPI")

    monkeypatch.setattr(alice.kernel, "allocate_spi", refuse)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 150)
    try:
        world.run(GIVE_WAY + 3.0, nothing)
    finally:
        sys.setrecursionlimit(limit)
    assert not alice.endpoint._acquires._queue
    assert not alice.endpoint._creating


def test_what_else_waits_for_tickets_takes_no_place_of_strangers() -> None:
    """TICKETS_AWAITED is said to bound what is asked on behalf of acquires."""
    world = Storm(TICKETS_AWAITED)
    kdc = world._fetch
    live = {BOB.service}

    def fetch(node, wanted) -> None:  # type: ignore[no-untyped-def]
        if wanted.server in live:
            kdc(node, wanted)  # the KDC of another realm is away

    world._fetch = fetch  # type: ignore[method-assign]
    alice = world["alice"]
    for each in world.dead:
        protection = alice.endpoint.policy.with_host(each.name)[0]
        alice.endpoint._create(protection, world.now, "rekey")
    world.settle()
    for _ in range(28):
        world.traffic("alice", "bob")
        world.run(1.0)
    assert passes(world, "alice", "bob") == "esp"


def test_the_kdc_is_not_asked_for_more_than_it_answers() -> None:
    world = Storm(3000)
    asked: list[FetchTicket] = []
    world._fetch = lambda node, wanted: asked.append(wanted)  # type: ignore[method-assign,assignment]
    world.send_to(3000)
    world.run(60.0)
    # Workers serve first come, first served: a live peer's request stands behind all of them.
    assert len(asked) <= 2 * TICKETS_AWAITED, f"{len(asked)} requests wait for an answer"


def test_what_is_owed_to_hosts_that_were_never_heard_is_bounded() -> None:
    world = Storm(50)
    for _ in range(120):
        world.send_to(50)
        world.run(30.0, nothing)
    owed = len(world["alice"].debts)
    assert owed <= 5 * 50, f"{owed} journal rows for 50 hosts that do not exist"


def test_a_flush_of_many_sas_does_not_make_all_creates_in_one_go() -> None:
    world = Many(240)
    alice = world["alice"]
    for n in range(240):
        world.traffic("alice", f"h{n}")
        if n % 50 == 0:
            world.run(0.5)
    world.run(10.0)
    assert len(alice.endpoint.pairs) == 240
    alice.kernel._states.clear()  # as a flush: told once, without names
    world.sent.clear()
    alice.endpoint._reconciler._look(world.now)
    world.settle()
    assert len(world.sent) <= 128, f"{len(world.sent)} datagrams in one step of the loop"


@pytest.mark.parametrize("busy", ["alice", "bob"])
def test_the_responder_takes_over_before_the_octets_are_used_up(busy: str) -> None:
    """5 MB/s and a limit of 100 MB: between its soft limit and the hard one lie three seconds."""
    world = LivingWorld(replace(FAST, lifetime=Lifetime(3600, 100 * 1024)))
    world.traffic("alice", "bob")
    world.run()
    world["alice"].endpoint._rekeying.soft_expired = lambda *_: None  # type: ignore[method-assign]
    peer = "bob" if busy == "alice" else "alice"
    lost = 0
    for number in range(1000):
        node, other = world[busy], world[peer]
        lost += node.kernel.send(other.kernel, node.address, other.address, size=500_000) != "esp"
        if number % 10 == 0:
            world.traffic(peer, busy)
        world.settle()
        world.run(0.1)
    assert lost == 0


def test_an_entry_of_others_in_the_way_is_left_by_a_rekey_too() -> None:
    world = LivingWorld()
    alice = world["alice"]
    world.traffic("alice", "bob")
    world.run(1.0)
    foreign = replace(alice.endpoint.policy.entries[0], priority=7)
    alice.kernel.write_policy(foreign)
    world.run(ROUND_SECONDS)
    assert foreign in alice.kernel.policies()
    world.initiate("alice", "bob")
    world.run(5.0)
    assert foreign in alice.kernel.policies()


def test_an_sa_that_is_deleted_again_and_again_is_not_made_as_often() -> None:
    world = LivingWorld()
    alice = world["alice"]
    world.traffic("alice", "bob")
    world.run(1.0)
    for _ in range(500):  # for ten seconds
        for pair in list(alice.endpoint.pairs)[-1:]:
            alice.kernel.remove(pair.outbound[0])
        world.settle()
        world.run(0.02)
    assert alice.endpoint.counters["create.initiated"] <= 50


def test_a_peer_that_deletes_what_it_has_just_made_is_not_asked_without_end() -> None:
    world = LivingWorld()
    for _ in range(500):  # for ten seconds
        world.traffic("alice", "bob")
        world.run(0.01)
        world["bob"].endpoint.terminate(ALICE, world.now, lambda _: None)
        world.settle()
        world.run(0.01)
    assert world["alice"].endpoint.counters["create.initiated"] <= 50


def test_old_hosts_are_no_bounds_for_a_gateway_that_went_down() -> None:
    """PLACES_OF_PATH: many networks may lie behind a gateway that is down."""
    networks = ", ".join(f'"10.{n}.0.0/16"' for n in range(100, 200))
    world = World(document=GATE.replace('"10.100.0.0/16", "10.101.0.0/16"', networks))
    alice = world["alice"]
    me = ALICE.addresses[0]
    alice.kernel.traffic(me, IPv4Address("10.100.0.1"), 0.0)
    for event in alice.kernel.events():
        alice.endpoint.kernel_event(event, world.now)
    world.settle()
    world.run(1.0)
    assert len(alice.endpoint.pairs) == 1  # it is known now, and goes down
    for n in range(101, 200):
        alice.kernel.traffic(me, IPv4Address(f"10.{n}.0.1"), world.now)
    for event in alice.kernel.events():
        alice.endpoint.kernel_event(event, world.now)
    world.settle()
    assert alice.endpoint.commands_under_way <= 16


def test_a_clock_that_is_set_forward_takes_no_sa_from_what_is_under_way() -> None:
    """As at boot, when the network comes and the time with it."""
    world = LivingWorld(replace(FAST, groups=(19,)))
    world.traffic("alice", "bob")
    world.deliver(world.wire.popleft())  # bob has his half, and waits for the ACK
    bob = world["bob"]
    assert len(bob.kernel.states()) == 1
    bob.endpoint.set_posix(POSIX + 300.0)
    bob.endpoint.kernel_event(Overrun(), world.now)
    world.run(0.2, nothing)  # the REPLY comes a little later
    world.run(3.0)
    assert len(alice_and_bob := [*world["alice"].endpoint.pairs, *bob.endpoint.pairs]) == 2
    assert alice_and_bob
    assert passes(world, "alice", "bob") == "esp"


def test_a_clock_that_is_set_forward_renews_nothing_before_its_time() -> None:
    world = Many(50)
    alice = world["alice"]
    for n in range(50):
        world.traffic("alice", f"h{n}")
    world.run(30.0)
    made = alice.endpoint.counters["create.initiated"]
    alice.endpoint.set_posix(POSIX + 3600.0)
    world.run(2 * ROUND_SECONDS)
    assert alice.endpoint.counters["create.initiated"] - made == 0


def test_a_network_that_is_refused_keeps_no_other_waiting() -> None:
    """The gateway lives and would grant it: it has no rule for the first network alone."""
    world = World(document=GATE)
    alice, gate = world["alice"], world["gate"]
    policy = gate.endpoint.policy
    without = [p for p in policy.protections if "10.100" not in str(p.selector.source)]
    gate.endpoint.apply(
        replace(policy, protections=tuple(without)), gate.endpoint._core._suites, world.now
    )
    first, second = (IPv4Address(f"10.{n}.0.1") for n in (100, 101))

    def ask(to: IPv4Address) -> None:
        alice.kernel.traffic(ALICE.addresses[0], to, world.now)
        for event in alice.kernel.events():
            alice.endpoint.kernel_event(event, world.now)
        world.settle()

    for _ in range(600):
        ask(first)
        world.run(1.0)
    waits: list[float] = []
    for _ in range(200):
        ask(second)
        world.run(0.5)
        if len(alice.endpoint.pairs):
            break
        waits.append(world.now)
    assert len(waits) <= 4, f"held for {len(waits) / 2} s"


def times_stopped(world: LivingWorld, *, acks: int, seconds: float) -> list[float]:
    """When packets did not pass, in a rekey of alice's of which so many ACKs are lost."""
    (old,) = world["alice"].endpoint.pairs
    left = acks

    def network(send: Send) -> list[Send]:
        nonlocal left
        if left and kink.header(send.datagram).type == MessageType.ACK:
            left -= 1
            return []
        return [send]

    world["alice"].endpoint._rekeying.soft_expired(old.inbound[0], world.now)
    world.settle()
    stopped: list[float] = []
    began = world.now
    while world.now < began + seconds:
        for ends in (("alice", "bob"), ("bob", "alice")):
            if world.traffic(*ends) != "esp":
                stopped.append(world.now - began)
        world.run(0.05, network)
    return stopped


@pytest.mark.parametrize("acks", [1, 2, 3])
def test_a_rekey_whose_acks_are_lost_stops_no_traffic(acks: int) -> None:
    """The old pair is deleted only once the peer can send on the new one."""
    world = LivingWorld(replace(FAST, groups=(19,)))
    world.traffic("alice", "bob")
    world.run(5.0)
    stopped = times_stopped(world, acks=acks, seconds=10.0)
    assert not stopped, f"bob cannot send from {stopped[0]:.2f} to {stopped[-1]:.2f} s"
