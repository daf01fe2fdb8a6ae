"""What a policy change, a clock that was set and a peer that repeats itself must not leave."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path as FilePath

import pytest

from kinkd.app import startup
from kinkd.app.daemon import Daemon
from kinkd.app.journal import Journal
from kinkd.exchange.core import MEMORY_SECONDS
from kinkd.exchange.effects import FetchTgt, FetchTicket, Path, Send
from kinkd.exchange.lifecycle import Probing
from kinkd.kerberos import etypes
from kinkd.kerberos.keytab import KeytabEntry
from kinkd.kerberos.offline import OfflineAcceptor
from kinkd.kernel.port import Deleted
from kinkd.keying.algorithms import SUITES
from kinkd.model import Host, Principal, UserToUser
from kinkd.policy.match import HostPolicy
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.pair.test_storms import Many, times_stopped
from tests.support.pair import (
    ALICE,
    BOB,
    CAROL,
    FAST,
    POSIX,
    REALM,
    LivingWorld,
    Node,
    World,
    host,
    passes,
    policy_of,
)

NAMES = frozenset(SUITES)
SUITES_OF = {4: NAMES, 6: NAMES}
ROBERT = replace(BOB, name="robert")  # the same principals under another name


def nothing(_: Send) -> list[Send]:
    return []


def go_by(world: World, name: str, *peers: Host, profile=FAST) -> None:  # type: ignore[no-untyped-def]
    node = world[name]
    node.endpoint.apply(policy_of(node.host, peers, profile), SUITES_OF, world.now)
    world.settle()


class SlowKdc(LivingWorld):
    """A KDC that answers after ``delay`` seconds, first come, first served."""

    delay = 0.0

    def __init__(self) -> None:
        self.asked: list[tuple[float, Node, FetchTicket | FetchTgt]] = []
        super().__init__()

    def _fetch(self, node: Node, wanted: FetchTicket | FetchTgt) -> None:
        if not self.delay:
            super()._fetch(node, wanted)
        else:
            self.asked.append((self.now + self.delay, node, wanted))

    def _advance(self, now: float) -> None:
        super()._advance(now)
        while self.asked and self.asked[0][0] <= now:
            _, node, wanted = self.asked.pop(0)
            super()._fetch(node, wanted)
            self.settle()


def test_what_is_owed_by_a_name_before_keeps_no_ticket_from_the_name_of_today() -> None:
    """Both ask the KDC for the same principal: each must get its answer."""
    world = SlowKdc()
    world.traffic("bob", "alice")  # alice needed no ticket
    world.run(5.0)
    alice = world["alice"]
    assert passes(world, "alice", "bob") == "esp"
    world.delay, alice.kdc_up = 10.0, False  # as libkrb5 takes for a KDC that is away
    go_by(world, "alice", ROBERT)  # a DELETE for bob waits for a ticket; so do CREATEs for robert
    for _ in range(200):
        world.traffic("alice", "bob")
        world.run(1.0, nothing)
    alice.kdc_up, world.delay = True, 0.1
    for _ in range(300):
        world.traffic("alice", "bob")
        world.run(1.0)
    peer = alice.endpoint.peer(ROBERT)
    assert peer.ticket is not None, "five minutes after the KDC came back"
    assert not alice.endpoint._initiator.tickets.is_fetching(peer)


def test_a_clock_that_is_set_forward_forgives_no_debt() -> None:
    """bob's half lives for an hour of his own time; alice's clock has been set meanwhile."""
    world = LivingWorld()
    world.traffic("alice", "bob")
    world.run(5.0)
    alice = world["alice"]
    alice.endpoint.set_posix(POSIX + 7200.0)  # as NTP does after a boot
    alice.endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(120.0, nothing)  # bob is out of reach for two minutes
    world.run(400.0)  # LONGEST_PAUSE, and more
    assert not list(world["bob"].endpoint.pairs), "bob sends into nothing for the rest of the hour"


def test_a_hangup_while_the_policy_is_being_read_has_it_read_again() -> None:
    """It is changed, told, changed again and told again: what counts is the last of it."""
    document, read = ["first"], list[str]()
    daemon = Daemon.__new__(Daemon)
    daemon._hangups = set()

    async def reload() -> object:
        read.append(document[0])
        await asyncio.sleep(0.01)  # resolving takes seconds
        return None

    daemon.reload = reload  # type: ignore[method-assign, assignment]

    async def main() -> None:
        daemon._hangup()
        await asyncio.sleep(0.005)
        document[0] = "second"
        daemon._hangup()
        await asyncio.sleep(0.1)

    asyncio.run(main())
    assert read[-1] == "second"


def test_commands_of_who_had_the_name_before_are_not_taken_for_those_of_who_has_it_now(
    tmp_path: FilePath,
) -> None:
    """bob is bob-old by a policy read at start, and another machine is bob.

    The journal knows commands by name alone, so the start must refuse what is older than itself.
    """
    world = LivingWorld()
    world.traffic("alice", "bob")
    world.run(2.0)
    (pair,) = world["bob"].endpoint.pairs  # alice's CREATE
    journal = Journal(tmp_path / "journal.db")
    (tmp_path / "rcache").touch()
    before = policy_of(BOB, (ALICE,))
    born = startup._replay_cache_birth(journal, tmp_path / "rcache", before)
    journal.set_meta(startup._REPLAY_CACHE_BIRTH, int(born) - 3600)
    journal.record(pair)
    journal.forget(pair)  # carried out, and undone
    assert startup._replay_cache_birth(journal, tmp_path / "rcache", before) == born - 3600
    other = Principal(("kink", "new.example.test"), REALM)
    now = policy_of(
        BOB, (replace(ALICE, name="alice-old"), Host("alice", other, other, CAROL.addresses))
    )
    again = startup._replay_cache_birth(journal, tmp_path / "rcache", now)
    assert again >= born, "a withheld CREATE of alice-old is carried out a second time"


def doubted() -> LivingWorld:
    """alice asks bob, by a STATUS that is lost, whether he has begun a new life."""
    world = LivingWorld()
    world.traffic("alice", "bob")
    world.run(5.0)
    world.begin_anew("bob", reboot=True)
    world.traffic("bob", "alice")
    world.run(0.0, lambda send: [send] if send.path.local in BOB.addresses else [])
    world.run(1.0, nothing)
    assert world["alice"].endpoint._lifecycle._probed == {world["alice"].endpoint.peer(BOB)}
    return world


def test_who_is_no_more_meant_by_a_name_is_not_asked_for_ever() -> None:
    world = doubted()
    alice, bob = world["alice"], world["bob"]
    principal = Principal(("kink", "robert.example.test"), REALM)
    robert = replace(BOB, service=principal, client=principal)
    world.keys[principal] = (1, etypes.key(18, bytes([77]) * 32))
    go_by(world, "alice", robert)
    world.run(120.0, nothing)
    # The machine is robert now, with a keytab of his own.
    bob.host = robert
    bob.acceptor = OfflineAcceptor([KeytabEntry(principal, 1, 18, bytes([77]) * 32)], _clock(world))
    bob.endpoint._core.acceptor = bob.acceptor
    for _ in range(30):
        world.traffic("alice", "bob")
        world.run(10.0)
    assert [pair.principal for pair in alice.endpoint.pairs] == [str(principal)]
    for _ in range(60):
        world.run(10.0)
        for exchange in alice.endpoint._initiator._by_xid.values():
            of_before = exchange.peer.host.client == BOB.client
            assert not (of_before and exchange.purpose.type is MessageType.STATUS)


def _clock(world: World):  # type: ignore[no-untyped-def]
    return lambda: POSIX + world.now


def test_hosts_that_come_and_go_leave_nothing_behind() -> None:
    """Machines of a cloud: each lives for an hour, has a principal of its own, and is removed."""
    world = LivingWorld()
    core = world["alice"].endpoint._core
    for number in range(200):
        principal = Principal(("kink", f"h{number}.example.test"), REALM)
        world.keys[principal] = world.keys[BOB.service]
        go_by(world, "alice", BOB, Host(f"h{number}", principal, principal, CAROL.addresses))
        world.traffic("alice", "bob")
        alice = world["alice"].endpoint
        alice.initiate(alice.policy.with_host(f"h{number}")[0], world.now, lambda *_: None)
        world.settle()
        world.run(1.0)
    go_by(world, "alice", BOB)
    world.run(2 * MEMORY_SECONDS + 400.0)
    go_by(world, "alice", BOB)
    tickets = world["alice"].endpoint._initiator.tickets
    assert set(core._known.values()) <= set(core._peers.values())
    assert len(tickets._by_server) <= 1
    assert len(tickets._sources) <= 1


def rekeyed() -> tuple[LivingWorld, Send]:
    """A rekey with forward secrecy, and its REPLY, as anybody on the path has it."""
    world = LivingWorld(replace(FAST, groups=(19,)))
    world.traffic("alice", "bob")
    world.run(5.0)
    (old,) = world["alice"].endpoint.pairs
    world["alice"].endpoint._rekeying.soft_expired(old.inbound[0], world.now)
    world.settle()
    replies: list[Send] = []

    def network(send: Send) -> list[Send]:
        if kink.header(send.datagram).type == MessageType.REPLY:
            replies.append(send)
        return [send]

    world.run(0.1, network)
    return world, replies[0]


def test_who_repeats_a_reply_for_ever_keeps_no_old_pair() -> None:
    """Anybody on the path can: it verifies."""
    world, reply = rekeyed()
    for _ in range(300):
        world.run(0.4)
        world.deliver(reply)
    assert len(world["alice"].endpoint.pairs) == 1, "the old pair is there after two minutes"


class Dead(World):
    """alice, and very many hosts that are not there."""

    def __init__(self, count: int) -> None:
        self.dead = tuple(host(f"d{n}", IPv4Address("10.9.0.0") + n) for n in range(count))
        super().__init__(hosts=(ALICE,))

    def policy(self, me: Host) -> HostPolicy:
        return policy_of(me, self.dead)


def test_a_storm_while_the_kdc_is_slow_costs_no_square_of_it() -> None:
    world = Dead(1500)
    world._fetch = lambda *_: None  # type: ignore[method-assign,assignment]  # no answer yet
    alice = world["alice"].endpoint
    looks = 0
    is_fetching = alice._acquires._is_fetching

    def counted(peer):  # type: ignore[no-untyped-def]
        nonlocal looks
        looks += 1
        return is_fetching(peer)

    alice._acquires._is_fetching = counted
    for each in world.dead:
        world["alice"].kernel.traffic(ALICE.addresses[0], each.addresses[0], world.now)
    for event in world["alice"].kernel.events():
        alice.kernel_event(event, world.now)
    world.settle()
    looks = 0
    world.run(2.5, nothing)
    assert looks < 40 * 1500, f"{looks} looks at who is being fetched, in 2.5 s"


def test_a_host_that_was_put_back_is_told_what_it_owes_once_it_is_heard() -> None:
    world = LivingWorld()
    world.traffic("alice", "bob")
    world.run(5.0)
    go_by(world, "alice")
    world.run(45.0, nothing)  # the DELETE is lost for a whole transaction
    go_by(world, "alice", BOB)
    assert world["alice"].debts
    assert len(world["bob"].endpoint.pairs) == 1
    peer = world["bob"].endpoint.peer(ALICE)
    path = Path(BOB.addresses[0], ALICE.addresses[0])
    world["bob"].endpoint._initiator.begin(Probing(lambda *_: None), peer, path, world.now)
    world.settle()
    world.run(1.0)
    assert not world["alice"].debts


JANE = Principal(("jane",), REALM)
PERSON = Host("bob", JANE, JANE, BOB.addresses, user_to_user=UserToUser.ALWAYS)


@pytest.mark.parametrize("name", ["bob", "jane"])
def test_a_person_whose_name_was_changed_is_told_what_goes(name: str) -> None:
    world = LivingWorld(hosts=(ALICE, PERSON))
    world.settle()
    world.traffic("bob", "alice")  # alice has no ticket for her
    world.run(5.0)
    assert len(world["bob"].endpoint.pairs) == 1
    if name == "bob":  # for comparison
        world["alice"].endpoint.terminate(PERSON, world.now, lambda _: None)
    else:
        go_by(world, "alice", replace(PERSON, name=name))
    world.run(900.0)
    assert not list(world["bob"].endpoint.pairs)


def test_an_ack_that_is_lost_on_a_path_of_changing_delay_stops_no_traffic() -> None:
    """bob repeats his REPLY later than alice's grace ends."""
    world = LivingWorld(replace(FAST, groups=(19,)))
    world.traffic("alice", "bob")
    world.run(5.0)
    for rtt in (0.1, 0.9, 0.1, 0.9, 0.1, 0.9):
        world["bob"].endpoint.peer(ALICE).round_trip.sample(rtt)
    stopped = times_stopped(world, acks=1, seconds=5.0)
    assert not stopped, f"from {stopped[0]:.2f} to {stopped[-1]:.2f} s"


def keyed_with(count: int) -> Many:
    """alice, keyed with so many live hosts."""
    world = Many(count)
    for n in range(count):
        world.traffic("alice", f"h{n}")
        if n % 50 == 0:
            world.run(0.5)
    world.run(10.0)
    assert len(world["alice"].endpoint.pairs) == count
    world.sent.clear()
    return world


def test_sas_that_are_deleted_one_by_one_are_not_all_replaced_in_one_go() -> None:
    """As by ``ip xfrm state deleteall``: told with names."""
    world = keyed_with(200)
    alice = world["alice"]
    for held in list(alice.kernel.states()):
        alice.kernel.remove(held.id)
    for event in alice.kernel.events():
        alice.endpoint.kernel_event(event, world.now)
    sends = [c for c in alice.endpoint.commands() if isinstance(c, Send)]
    assert len(sends) <= 128, f"{len(sends)} datagrams in one step of the loop"


def test_a_stronger_profile_does_not_renew_all_sas_in_one_go() -> None:
    world = keyed_with(200)
    alice = world["alice"]
    peers = world.hosts[1:]
    policy = policy_of(ALICE, peers, replace(FAST, groups=(None, 19)))
    alice.endpoint.apply(policy, SUITES_OF, world.now)
    sends = [c for c in alice.endpoint.commands() if isinstance(c, Send)]
    assert len(sends) <= 128, f"{len(sends)} datagrams in one step of the loop"


def test_looks_that_come_often_do_not_pile_up_what_is_gone() -> None:
    world = keyed_with(200)
    alice = world["alice"]
    alice.kernel._states.clear()
    for _ in range(5):
        alice.endpoint.kernel_event(Deleted(), world.now)
        alice.endpoint._reconciler._look(world.now)
    assert len(alice.endpoint._rekeying._paced._waiting) <= 200


def test_a_host_that_gets_more_networks_may_send_more_commands() -> None:
    world = World()
    core = world["alice"].endpoint._core
    peer = core.peer(BOB)
    before = core.most_commands(peer)
    (one,) = policy_of(ALICE, (BOB,)).protections
    many = tuple(
        replace(one, reqid=one.reqid + n, selector=replace(one.selector, protocol=n + 1))
        for n in range(40)
    )
    core.apply(HostPolicy(ALICE, 2, (BOB,), many, ()), SUITES_OF, world.now)
    assert core.peer(BOB) is peer
    assert core.most_commands(peer) > before


def test_a_ticket_that_the_kdc_gives_after_a_reload_serves_what_is_under_way() -> None:
    """The KDC was away for a second when a host was removed, which is to be told."""
    world = LivingWorld()
    world.traffic("bob", "alice")  # alice needed no ticket
    world.run(5.0)
    alice = world["alice"]
    alice.kdc_up = False
    alice.endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    go_by(world, "alice")
    alice.kdc_up = True
    world.run(20.0)
    assert not list(world["bob"].endpoint.pairs)


def test_acquires_know_no_peers_whose_tickets_they_asked_for_long_ago() -> None:
    world = LivingWorld()
    world.keys[CAROL.service] = world.keys[BOB.service]
    go_by(world, "alice", BOB, CAROL)
    for to in (BOB, CAROL):
        world["alice"].kernel.traffic(ALICE.addresses[0], to.addresses[0], world.now)
    world.settle()
    world.run(5.0)
    go_by(world, "alice", BOB)
    world.run(5000.0)
    kept = {
        peer.host.name
        for peers in world["alice"].endpoint._acquires._asked_for.values()
        for peer in peers
    }
    assert "carol" not in kept


def test_control_hosts_that_swap_their_names_are_remembered_by_their_principals() -> None:
    world = LivingWorld(hosts=(ALICE, BOB, CAROL))
    world.traffic("bob", "alice")
    held = world.wire.popleft()
    world.run(2.0)
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(5.0)
    go_by(world, "alice", replace(BOB, name="carol"), replace(CAROL, name="bob"))
    world.deliver(held)
    assert not world["alice"].kernel.states()


def test_what_is_under_way_with_who_was_removed_leaves_no_timer_that_never_runs_out() -> None:
    world = LivingWorld()
    world.traffic("alice", "bob")
    world.run(5.0)
    go_by(world, "alice")  # bob is told, and is out of reach
    world.run(3000.0, nothing)
    timers = [t.when for t in world["alice"].endpoint._core.timers._queue if t.action]
    never = timers.count(float("inf"))
    assert not never, f"{never} timers of {len(timers)} are for the end of time"


def test_who_is_heard_after_a_restart_is_told_what_it_owes() -> None:
    """Sixty hosts were out of reach, and owe; they come back, each with a STATUS."""
    world = keyed_with(60)
    alice = world["alice"]
    for each in world.hosts[2:]:
        alice.endpoint.terminate(each, world.now, lambda _: None)
    world.settle()
    world.run(40.0, nothing)
    assert len(alice.debts) == 59
    world.begin_anew("alice", reboot=False)
    world.run(5.0, nothing)
    for each in world.hosts[2:]:
        node = world[each.name]
        path = Path(each.addresses[0], ALICE.addresses[0])
        probing = Probing(lambda *_: None)
        node.endpoint._initiator.begin(probing, node.endpoint.peer(ALICE), path, world.now)
    world.settle()
    world.run(10.0)
    assert not world["alice"].debts, f"{len(world['alice'].debts)} of 59 were heard and not told"
