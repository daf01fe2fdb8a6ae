"""A policy change must not forget, mix up or strand what concerns a host under its old name."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest

from kinkd.errors import LocalError
from kinkd.exchange.effects import FetchTicket, Path, Send
from kinkd.kerberos import etypes
from kinkd.keying.algorithms import SUITES
from kinkd.model import Host, Principal, UserToUser
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.support.pair import (
    ALICE,
    BOB,
    FAST,
    REALM,
    KeyedTwiceError,
    LivingWorld,
    World,
    passes,
    policy_of,
)

NAMES = frozenset(SUITES)
SUITES_OF = {4: NAMES, 6: NAMES}
ROBERT = Principal(("kink", "robert.example.test"), REALM)


def go_by(world: World, name: str, *peers: Host, profile=FAST) -> object:
    node = world[name]
    changes = node.endpoint.apply(policy_of(node.host, peers, profile), SUITES_OF, world.now)
    world.settle()
    return changes


def withheld_create(world: LivingWorld) -> Send:
    """alice keys with bob; one transmission of her CREATE, of its own authenticator, is kept."""
    world.traffic("alice", "bob")
    held = world.wire.popleft()  # the first one: delayed in the network
    assert kink.header(held.datagram).type == MessageType.CREATE
    world.run(2.0)  # she repeats it
    assert passes(world, "alice", "bob") == "esp"
    return held


@pytest.mark.parametrize("change", ["user-to-user", "renamed", "removed for a moment"])
def test_a_create_that_was_carried_out_and_undone_is_remembered_over_a_policy_change(
    change: str,
) -> None:
    """Else its keys are used twice: with GCM the peer's traffic can be read."""
    world = LivingWorld()
    held = withheld_create(world)
    world["bob"].endpoint.terminate(ALICE, world.now, lambda _: None)
    world.settle()
    world.run(5.0)
    assert not world["bob"].kernel.states()
    if change == "user-to-user":
        go_by(world, "bob", replace(ALICE, user_to_user=UserToUser.ALLOWED))
    elif change == "renamed":
        go_by(world, "bob", replace(ALICE, name="alicia"))
    else:
        go_by(world, "bob")
        go_by(world, "bob", ALICE)
    try:
        world.deliver(held)
    except KeyedTwiceError as error:
        pytest.fail(str(error))
    assert not world["bob"].kernel.states()


def test_control_without_a_policy_change_it_is_remembered() -> None:
    world = LivingWorld()
    held = withheld_create(world)
    world["bob"].endpoint.terminate(ALICE, world.now, lambda _: None)
    world.settle()
    world.run(5.0)
    world.deliver(held)
    assert not world["bob"].kernel.states()


@pytest.mark.parametrize("when", [5.0, 100.0])
def test_who_has_another_principal_by_the_policy_is_not_keyed_by_the_old_one(when: float) -> None:
    """robert has bob's address now. Whoever still answers as bob is not robert."""
    world = LivingWorld()
    world.keys[ROBERT] = (1, etypes.key(18, bytes([77]) * 32))
    world.traffic("alice", "bob")
    world.run(1.0, lambda _: [])  # her CREATE was not answered yet
    go_by(world, "alice", replace(BOB, service=ROBERT, client=ROBERT))
    world.run(when, lambda _: [])  # what was sent to the old bob is owed, and told in vain
    for _ in range(40):
        world.traffic("alice", "bob")
        world.run(10.0)
    made = [each["peer"] for each in world["alice"].events("sa-established")]
    assert not made, f"{len(made)} pairs with who has a key of {BOB.service} alone"


JANE = Principal(("jane",), REALM)
JOAN = Principal(("joan",), REALM)
PERSON = Host("bob", JANE, JANE, BOB.addresses, user_to_user=UserToUser.ALWAYS)


def asked_for_tgt() -> tuple[LivingWorld, Send]:
    """alice asks a person for the TGT, and the policy then no longer knows that person."""
    world = LivingWorld(hosts=(ALICE, PERSON))
    world.settle()
    world.traffic("alice", "bob")
    gettgt = world.wire.popleft()
    assert kink.header(gettgt.datagram).type == MessageType.GETTGT
    return world, gettgt


def test_the_answer_to_a_gettgt_for_a_host_that_was_removed_harms_nobody() -> None:
    world, gettgt = asked_for_tgt()
    go_by(world, "alice")
    world.deliver(gettgt)
    world.run()


def test_a_gettgt_to_a_host_that_was_removed_ends_quietly() -> None:
    world, _ = asked_for_tgt()
    go_by(world, "alice")
    world.run(60.0, lambda _: [])
    assert not world["alice"].endpoint._initiator.tickets.asking._by_xid


def test_a_person_who_was_removed_and_put_back_can_be_keyed_again() -> None:
    world, _ = asked_for_tgt()
    go_by(world, "alice")
    for _ in range(100):
        with contextlib.suppress(KeyError):  # as the event loop: it logs, and goes on
            world.run(1.0, lambda _: [])
    go_by(world, "alice", PERSON)
    for _ in range(60):
        world.traffic("alice", "bob")
        world.run(5.0)
    assert passes(world, "alice", "bob") == "esp"


def test_a_user_to_user_ticket_that_comes_after_its_host_was_removed_harms_nobody() -> None:
    world, gettgt = asked_for_tgt()
    alice = world["alice"]
    fetches: list[FetchTicket] = []
    fetch = world._fetch

    def later(node, wanted) -> None:  # type: ignore[no-untyped-def]
        if node is alice and isinstance(wanted, FetchTicket):
            fetches.append(wanted)
        else:
            fetch(node, wanted)

    world._fetch = later  # type: ignore[method-assign]
    world.deliver(gettgt)
    world.run()
    assert fetches
    go_by(world, "alice")
    world._fetch = fetch  # type: ignore[method-assign]
    fetch(alice, fetches[0])
    world.settle()
    world.pass_refresh()


def test_sas_without_forward_secrecy_are_renewed_where_the_policy_demands_it_now() -> None:
    world = LivingWorld()
    world.traffic("alice", "bob")
    world.run(1.0)
    (old,) = world["alice"].endpoint.pairs
    for name, peer in (("alice", BOB), ("bob", ALICE)):
        go_by(world, name, peer, profile=replace(FAST, groups=(19,)))
        world.run(1.0)  # in this order bob refuses first: he does not know of it yet
    world.run(30.0)
    (new,) = world["alice"].endpoint.pairs
    assert new != old
    assert passes(world, "alice", "bob") == "esp"


def test_a_daemon_that_takes_leave_takes_no_new_policy() -> None:
    world = LivingWorld()
    alice = world["alice"]
    alice.endpoint.stop_creating(world.now)
    for entry in list(alice.kernel.policies()):  # as shutdown --delete does
        alice.kernel.remove_policy(entry.direction, entry.selector)
    with pytest.raises(LocalError, match="leaving"):
        go_by(world, "alice", BOB)  # a reload that read the document meanwhile
    assert not alice.kernel.policies()


def test_a_half_of_a_host_that_was_removed_is_told_as_pairs_are() -> None:
    world = LivingWorld(replace(FAST, groups=(19,)))
    world.traffic("alice", "bob")
    world.deliver(world.wire.popleft())  # bob's half is there, and his REPLY under way
    assert world["bob"].endpoint._responder.half_open._open
    reply = world.wire.popleft()
    world.deliver(reply)  # alice is complete, and sends
    world.wire.clear()  # her ACK is late
    assert len(world["alice"].endpoint.pairs) == 1
    go_by(world, "bob")
    world.run(60.0)
    assert not [p for p in world["alice"].endpoint.pairs if p.sas[0].inbound], "a black hole"


def test_who_waits_to_be_asked_whether_it_lives_is_not_asked_as_who_it_was() -> None:
    """Of many silent hosts some wait for their turn; meanwhile one has another principal."""
    world = LivingWorld()
    world.keys[ROBERT] = (1, etypes.key(18, bytes([77]) * 32))
    world.traffic("alice", "bob")
    world.run(1.0)
    alice, robert = world["alice"], replace(BOB, service=ROBERT, client=ROBERT)
    suspicion = alice.endpoint._suspicion
    suspicion._asked.update(f"other{n}" for n in range(16))
    (pair,) = alice.endpoint.pairs
    suspicion._to_ask["bob"] = (BOB, Path(pair.local, pair.remote))
    go_by(world, "alice", robert)
    world.run(0.1, lambda _: [])
    suspicion._asked.clear()
    suspicion._ask(world.now)
    world.settle()
    assert alice.endpoint.peer(robert).host is robert
