"""What the kernel asks for becomes an SA, or is asked again in good time; dead peers are cheap."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from kinkd.exchange.acquires import (
    GIVE_WAY,
    LONGEST_REST,
    PLACES,
    PLACES_OF_PATH,
    QUEUE,
    Acquires,
)
from kinkd.exchange.effects import Send
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.kerberos import etypes
from kinkd.kernel.port import Acquire
from kinkd.model import Host, IpsecProtocol, Mode, Selector
from kinkd.policy.match import HostPolicy
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.support.pair import ALICE, BOB, CAROL, REQID, LivingWorld, World, host, passes, policy_of

CREATE = MessageType.CREATE


def dead(count: int) -> tuple[Host, ...]:
    """Hosts of the policy that nobody ever starts."""
    return tuple(host(f"dead{n}", IPv4Address("10.66.0.0") + n) for n in range(count))


class Storm(LivingWorld):
    """alice has rules with bob and with many hosts that are not there."""

    def __init__(self, count: int) -> None:
        self.dead = dead(count)
        super().__init__()
        key = etypes.key(18, bytes(32))
        self.keys.update({each.service: (1, key) for each in self.dead})

    def policy(self, me: Host) -> HostPolicy:
        policy = policy_of(me, (BOB, *self.dead) if me is ALICE else (ALICE,))
        # The memory kernel looks entries up one by one: it has those with bob only.
        return replace(policy, entries=policy.entries[:2])

    @property
    def acquires(self) -> Acquires:
        return self["alice"].endpoint._acquires

    def send_to(self, count: int, first: int = 0) -> None:
        """The kernel asks for each of so many dead hosts, as fast as it can."""
        alice = self["alice"]
        for number, each in enumerate(self.dead[first : first + count]):
            ends = (ALICE.addresses[0], each.addresses[0])
            flow = Selector.between(*ends)
            event = Acquire(*ends, IpsecProtocol.ESP, Mode.TRANSPORT, REQID, 0, 1 + number, flow)
            alice.endpoint.kernel_event(event, self.now)
        self.settle()


def creates(world: LivingWorld, since: int = 0) -> int:
    heads = [kink.header(send.datagram) for send in world.sent[since:]]
    return len({head.xid for head in heads if head.type == CREATE})


def nothing(_: Send) -> list[Send]:
    return []


def ping(world: LivingWorld, seconds: float, network=lambda send: [send]) -> None:
    """A packet a second from alice to bob."""
    for _ in range(int(seconds)):
        world.traffic("alice", "bob")
        world.run(1.0, network)


def test_a_peer_that_does_not_answer_is_asked_ever_more_rarely() -> None:
    world = LivingWorld()
    ping(world, 3600, nothing)
    longest = TRANSACTION_SECONDS + 1.5 * LONGEST_REST
    assert (
        3600 / longest - 2 <= creates(world) <= 3600 / (TRANSACTION_SECONDS + LONGEST_REST / 2) + 8
    )


def test_two_hosts_do_not_come_back_at_the_same_instants() -> None:
    world = LivingWorld(hosts=(ALICE, BOB, CAROL))
    for _ in range(300):
        world.traffic("alice", "carol")
        world.traffic("bob", "carol")
        world.run(1.0, nothing)
    rests = {
        name: next(iter(world[name].endpoint._acquires._rests.values())).until
        for name in ("alice", "bob")
    }
    assert rests["alice"] != rests["bob"]


def test_a_peer_that_comes_back_is_keyed_within_its_rest() -> None:
    world = LivingWorld()
    ping(world, 600, nothing)
    ping(world, 1.5 * LONGEST_REST + 2)
    assert passes(world, "alice", "bob") == "esp"


def test_a_silent_peer_that_speaks_itself_need_not_wait_for_the_end_of_its_rest() -> None:
    world = LivingWorld()
    rests = world["alice"].endpoint._acquires._rests
    ping(world, 600, nothing)
    while not any(rest.until > world.now + 5 for rest in rests.values()):
        ping(world, 1, nothing)
    world["bob"].endpoint.announce(world.now)
    world.settle()
    world.run(0.1)
    world.traffic("alice", "bob")
    world.run(0.1)
    assert passes(world, "alice", "bob") == "esp"
    assert not rests


def test_a_peer_that_refuses_is_not_asked_again_because_it_speaks() -> None:
    world = LivingWorld(lacking={"bob": {"aes256gcm16", "aes128gcm16"}})
    ping(world, 600)
    assert creates(world) <= 600 / (LONGEST_REST / 2) + 8
    assert world["alice"].events("create-failed")


def test_no_larval_state_is_left_once_nobody_sends_any_more() -> None:
    world = LivingWorld()
    ping(world, 20, nothing)
    world.run(600.0, nothing)
    assert not world["alice"].kernel.states()
    assert not len(world["alice"].endpoint._acquires)


def test_when_a_rest_is_over_what_is_still_sent_asks_at_once() -> None:
    """And not only when the larval state lapses, half a minute after the last question."""
    world = LivingWorld(lacking={"bob": {"aes256gcm16", "aes128gcm16"}})
    world.traffic("alice", "bob")
    world.run(0.5)
    (rest,) = world["alice"].endpoint._acquires._rests.values()
    assert world.traffic("alice", "bob") == "held"
    world["bob"].endpoint._core._suites = world["alice"].endpoint._core._suites  # it has learnt
    world.run(rest.until - world.now + 0.01)
    assert rest.until - 0.5 < 5
    world.traffic("alice", "bob")
    world.run(0.1)
    assert passes(world, "alice", "bob") == "esp"


# --- storms ---


@pytest.fixture(scope="module")
def storm_size() -> int:
    return 10_000


def test_ten_thousand_acquires_to_dead_peers_cost_live_ones_nothing(storm_size: int) -> None:
    world = Storm(storm_size)
    world.traffic("alice", "bob")  # bob is known, and has no SA now
    world.run(0.1)
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(5.0)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    world.send_to(storm_size)
    assert len(world.acquires._strangers) <= PLACES
    assert len(world.acquires._queue) <= QUEUE
    world.sent.clear()
    assert world.traffic("alice", "bob") == "held"
    world.run(0.2)
    assert passes(world, "alice", "bob") == "esp"
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / storm_size < 8192, "octets for each dead peer"


def test_a_live_peer_that_was_never_heard_is_keyed_within_seconds_of_a_storm() -> None:
    world = Storm(3000)
    world.send_to(3000)
    assert world.traffic("alice", "bob") == "held"
    world.run(GIVE_WAY + 1.0)
    assert passes(world, "alice", "bob") == "esp"


def test_after_a_storm_nothing_of_it_is_left() -> None:
    world = Storm(2000)
    world.send_to(2000)
    world.run(1000.0)
    acquires, initiator = world.acquires, world["alice"].endpoint._initiator
    assert not len(acquires)
    assert not acquires._strangers
    assert not acquires._of_path
    assert not acquires._rests
    assert len(initiator._over) <= 400  # a question a second, for who may have heard one of ours
    assert world["alice"].endpoint.commands_under_way <= 1024
    assert not [state for state in world["alice"].kernel.states() if state.larval]


def test_one_dead_gateway_with_many_networks_has_few_places() -> None:
    networks = ", ".join(f'"10.{n}.0.0/16"' for n in range(100, 200))
    document = f"""
schema = 1
version = 1
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = ["10.0.0.1"]
[hosts.gate]
fqdn = "gate.example.test"
addresses = ["10.0.0.2"]
networks = [{networks}]
[[rules]]
name = "all"
from = "all"
to = "all"
action = "require"
profile = "fast"
mode = "tunnel"
"""
    world = World(document=document)
    alice = world["alice"]
    for n in range(100, 200):
        alice.kernel.traffic(ALICE.addresses[0], IPv4Address(f"10.{n}.0.1"), 0.0)
    for event in alice.kernel.events():
        alice.endpoint.kernel_event(event, world.now)
    world.settle()
    assert alice.endpoint.commands_under_way == PLACES_OF_PATH
    assert len(alice.endpoint._acquires._queue) == 100 - PLACES_OF_PATH
    world.run(20.0)  # it lives after all
    assert len(alice.endpoint.pairs) == 100
