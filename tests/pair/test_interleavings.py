"""Whatever two hosts do and the network makes of it: once it works, both are as if nothing was.

Actions are done in any order: traffic, wishes of people, limits that are reached, datagrams that
are delivered, lost, doubled or late, time, new lives of the daemon or the machine, a KDC that is
away. Then the network works, packets go both ways, and after ``SETTLED`` seconds all must be well.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinkd.exchange.effects import Send
from kinkd.kernel.port import Expire
from kinkd.keying.algorithms import SUITES
from kinkd.model import Host, Principal, Profile, UserToUser
from kinkd.policy.match import HostPolicy
from tests.support.pair import ALICE, BOB, FAST, REALM, LivingWorld, mirrored, policy_of

SETTLED = 700.0
"""Seconds of a network that works: beyond the longest that a half-pair may live then."""
FORGOTTEN = 5000.0
"""Seconds after which nothing is remembered of what is over: beyond the life of a pair."""
EXAMPLES = 2000 if os.environ.get("KINKD_LONG") else 60

NAMES = ("alice", "bob")
HOSTS: dict[str, Host] = {"alice": ALICE, "bob": BOB}
WORLDS: dict[str, Callable[[], LivingWorld]] = {
    "fast": lambda: LivingWorld(FAST),
    "ke": lambda: LivingWorld(replace(FAST, groups=(19,))),
    "ke-or-not": lambda: LivingWorld(replace(FAST, groups=(19, None), esn=(True, False))),
    "second-suite": lambda: LivingWorld(FAST, lacking={"bob": {"aes256gcm16"}}),
    "bundle": lambda: LivingWorld(BUNDLE),
    "person": lambda: LivingWorld(FAST, hosts=(ALICE, PERSON)),
}
JANE = Principal(("jane",), REALM)
PERSON = Host("bob", JANE, JANE, BOB.addresses, user_to_user=UserToUser.ALWAYS)
BUNDLE = Profile("bundle", (SUITES["ah-sha256+aes128gcm16"],), FAST.lifetime)
PASSING = ("esp", "ah+esp")

Action = tuple[str, int]  # what, and one number that says at whom, of what, or how long


def act(world: LivingWorld, action: Action) -> None:  # noqa: PLR0912  # a table
    """Do one thing."""
    what, number = action
    me, peer = NAMES[number % 2], NAMES[1 - number % 2]
    match what:
        case "traffic":
            assert world.traffic(me, peer) in (*PASSING, "held", "dropped", "clear")
        case "acquire" | "initiate" if not world[me].endpoint.policy.with_host(peer):
            pass  # without a rule nobody wants any
        case "acquire":
            world.acquire(me, peer)
        case "initiate":
            world.initiate(me, peer)
        case "soft" | "hard":
            expire(world, me, number // 2, hard=what == "hard")
        case "flush":
            node = world[me]
            (node.kernel.flush_states if number // 2 % 2 else node.kernel.flush_policies)()
        case "terminate":
            world[me].endpoint.terminate(HOSTS[peer], world.now, lambda _: None)
        case "time":
            world.advance(world.now + (0.2, 0.6, 1.1, 5.0, 12.0, 35.0, 70.0)[number % 7])
        case "restart" | "reboot":
            world.begin_anew(me, reboot=what == "reboot")
        case "policy":
            change_policy(world, me, number // 2 % 4)
        case "name":
            change_policy(world, me, 4)
        case "kdc":
            world[me].kdc_up = not world[me].kdc_up
        case "deliver" | "drop" | "double" if world.wire:
            at = number % len(world.wire)
            send = world.wire[at]
            if what != "double":
                del world.wire[at]
            if what != "drop":
                world.deliver(send)
    world.settle()


def change_policy(world: LivingWorld, name: str, number: int) -> None:
    """Go by the usual policy; one of other priorities; one without the peer (2, 3); or one in which
    he has another name.
    """
    node = world[name]
    usual = world.policy(node.host)
    changed = (
        usual,
        moved(usual),
        HostPolicy(node.host, 2, (), (), ()),
        HostPolicy(node.host, 2, (), (), (), others=usual.peers),
        policy_of(node.host, tuple(replace(each, name="robert") for each in usual.peers)),
    )[number]
    node.endpoint.apply(changed, {4: node.endpoint._core._suites[4]}, world.now)


def moved(policy: HostPolicy) -> HostPolicy:
    """The same, as where a rule was put before it."""
    protections = tuple(
        replace(each, entries=tuple(replace(e, priority=e.priority + 10) for e in each.entries))
        for each in policy.protections
    )
    entries = tuple(entry for each in protections for entry in each.entries)
    return HostPolicy(policy.me, 2, policy.peers, protections, entries)


def expire(world: LivingWorld, name: str, number: int, *, hard: bool) -> None:
    """Let an SA come to one of its limits."""
    node = world[name]
    pairs = list(node.endpoint.pairs)
    if not pairs:
        return
    pair = pairs[number // 2 % len(pairs)]
    sa = (pair.outbound if number % 2 or not hard else pair.inbound)[0]
    if hard:
        node.kernel.remove(sa)
    node.endpoint.kernel_event(Expire(sa, pair.reqid, hard=hard), world.now)


def settle(world: LivingWorld, seconds: float, lost: Callable[[], bool] = lambda: False) -> None:
    """Packets both ways every ten seconds, over a network that works, or nearly."""

    def network(send: Send) -> list[Send]:
        return [] if lost() else [send]

    for name, node in world.nodes.items():
        node.kdc_up = True
        change_policy(world, name, 0)
    world.settle()
    end = world.now + seconds
    while world.now < end:
        for me, peer in (NAMES, NAMES[::-1]):
            world.traffic(me, peer)
        world.run(10.0, network)


def assert_well(world: LivingWorld) -> None:
    """One pair, known to both, and nothing else in either kernel; packets pass both ways."""
    alice, bob = (list(world[name].endpoint.pairs) for name in NAMES)
    assert (len(alice), len(bob)) == (1, 1)
    assert mirrored(alice[0], bob[0])
    for name, (pair,) in zip(NAMES, (alice, bob), strict=True):
        there = {state.id for state in world[name].kernel.states()}
        assert there == {*pair.inbound, *pair.outbound}
        assert list(world[name].journal.values()) == [pair]
    for me, peer in (NAMES, NAMES[::-1]):
        assert world.traffic(me, peer) in PASSING


def assert_forgotten(world: LivingWorld) -> None:
    """Nothing that is over is kept, and nothing is ever to be done again."""
    world.pass_refresh()
    for node in world.nodes.values():
        endpoint = node.endpoint
        if endpoint._giving._timer is not None:  # a TGT is kept at hand for ever
            endpoint._giving._timer.cancel()
        assert endpoint.timers == 1  # the next look at the kernel
        assert not endpoint._initiator.tickets.asking._by_xid
        assert endpoint.commands_under_way == 0
        assert not list(endpoint.pairs)
        assert not node.kernel.states()
        assert not endpoint._creating
        assert not endpoint._initiator._over
        assert not endpoint._initiator._late
        assert not endpoint._initiator._unanswered
        assert not endpoint._initiator.tickets.asking._by_peer
        assert not [s for s in endpoint._initiator.tickets._by_server.values() if s.fetching]
        assert not endpoint._responder.half_open._open
        assert not endpoint._responder.half_open._outbound
        assert not endpoint._crossings._theirs
        assert not endpoint._crossings._couples
        assert not endpoint._lifecycle._probed
        assert not endpoint._lifecycle._debts._debts
        assert not endpoint._lifecycle.leaving
        assert not len(endpoint._acquires)
        assert not endpoint._acquires._strangers
        assert not endpoint._acquires._of_path
        assert not endpoint._acquires._rests
        assert not endpoint._rekeying._renewals
        assert not endpoint._acquires._silent
        assert not endpoint._reconciler._broken
        assert not endpoint._reconciler._unclaimed
        assert not endpoint._suspicion._asked
        assert not endpoint._suspicion._to_ask
        assert not endpoint._suspicion._traffic
        pairs = endpoint.pairs
        assert not any((pairs._by_sa, pairs._outbound, pairs._creates, pairs._slots))
        assert not endpoint._initiator._waiting
        assert not node.debts


NUMBERS = st.integers(0, 13)
COMMON = ("acquire", "deliver", "deliver", "deliver", "time")
RARE = (
    *("traffic", "initiate", "soft", "hard", "terminate"),
    *("drop", "double", "restart", "reboot", "kdc", "flush", "policy", "policy"),
)
ACTIONS: st.SearchStrategy[list[Action]] = st.lists(
    st.tuples(st.sampled_from(COMMON * 3 + RARE * 2), NUMBERS),
    max_size=40 if os.environ.get("KINKD_LONG") else 25,
)


# A start finds names that have changed by the journal's word, of which this world has none.
NAMED: st.SearchStrategy[list[Action]] = st.lists(
    st.tuples(
        st.sampled_from(COMMON * 3 + RARE[:7] * 2 + ("kdc", "flush", "policy", "name", "name") * 2),
        NUMBERS,
    ),
    max_size=25,
)


# What long searches have found.
RARE_CASES: list[tuple[str, list[Action]]] = [
    # Two restarts before what is owed could be told; the other reads the command only then.
    ("fast", [("acquire", 0), ("acquire", 1), ("deliver", 0), ("kdc", 1), *[("restart", 1)] * 2]),
    # A command that failed comes through after its sender's restart.
    ("bundle", [("acquire", 0), ("acquire", 1), ("deliver", 1), ("time", 6), ("restart", 0)]),
    (
        "second-suite",
        [
            *[("acquire", 1), ("deliver", 0), ("deliver", 0), ("initiate", 1)],
            *[("restart", 1), ("drop", 1), ("restart", 1)],
        ],
    ),
    # A refused CREATE is carried out once the other has forgotten why.
    ("bundle", [("acquire", 0), ("time", 6), ("deliver", 6), ("deliver", 0), ("restart", 1)]),
    # A CREATE that was deleted before it came, and comes after a restart of who had been told.
    (
        "fast",
        [
            *[("acquire", 0), ("acquire", 1), ("deliver", 0), ("restart", 1), ("deliver", 2)],
            ("restart", 0),
        ],
    ),
    # A host is taken out of the policy, and put back at once.
    ("fast", [("acquire", 1), ("policy", 5), ("policy", 1), ("time", 6)]),
    # Each end keys with a life of the other that is over.
    (
        "bundle",
        [("acquire", 0), ("acquire", 1), ("reboot", 0), ("reboot", 1), *[("deliver", 0)] * 2],
    ),
]


@pytest.mark.parametrize(("kind", "actions"), RARE_CASES)
def test_what_long_searches_have_found_does_not_come_back(kind: str, actions: list[Action]) -> None:
    come_to_rest(WORLDS[kind](), actions)


def come_to_rest(world: LivingWorld, actions: list[Action]) -> None:
    for action in actions:
        act(world, action)
    settle(world, SETTLED)
    assert_well(world)
    world.kernels_count = False
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(FORGOTTEN)
    assert_forgotten(world)


@pytest.mark.parametrize("kind", WORLDS)
@settings(max_examples=EXAMPLES)
@given(actions=ACTIONS)
def test_whatever_happens_both_end_with_the_same_pair_and_nothing_else(
    kind: str, actions: list[Action]
) -> None:
    come_to_rest(WORLDS[kind](), actions)


@pytest.mark.parametrize("kind", WORLDS)
@settings(max_examples=EXAMPLES // 2)
@given(actions=NAMED)
def test_whatever_hosts_are_called_meanwhile_it_comes_to_the_same(
    kind: str, actions: list[Action]
) -> None:
    come_to_rest(WORLDS[kind](), actions)


@pytest.mark.parametrize("kind", WORLDS)
@settings(max_examples=EXAMPLES // 2)
@given(actions=ACTIONS, seed=st.integers(0, 1 << 32))
def test_a_network_that_loses_a_third_for_good_comes_to_the_same(
    kind: str, actions: list[Action], seed: int
) -> None:
    world = WORLDS[kind]()
    for action in actions:
        act(world, action)
    chance = random.Random(seed)
    settle(world, 2 * SETTLED, lambda: chance.random() < 1 / 3)
    settle(world, 20.0)  # a DELETE may be under way
    assert_well(world)
