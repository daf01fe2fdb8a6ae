"""When tickets are fetched, and when anew: stale keys, early renewal, a KDC that is away."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from kinkd.app import views
from kinkd.cli import kinkctl
from kinkd.exchange.acquires import REST_WITHOUT_TICKET
from kinkd.exchange.effects import FetchTicket, Path
from kinkd.exchange.installing import Agreement, Seeds
from kinkd.exchange.tickets import DEMANDED_PAUSE, EARLY_PAUSE
from kinkd.exchange.timing import FIRST_TIMEOUT, TRANSACTION_SECONDS
from kinkd.kerberos import etypes, messages
from kinkd.keying.negotiate import Terms
from kinkd.model import Lifetime, Principal, Profile
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.pair.test_answers import rekeyed
from tests.support.pair import ALICE, BOB, FAST, POSIX, REALM, World, host, mirrored, passes

TO_BOB = Path(ALICE.addresses[0], BOB.addresses[0])


def keyed(profile: Profile = FAST, *, ticket_life: int = 36000) -> World:
    world = World(profile=profile)
    for node in world.nodes.values():
        node.tickets._lifetime = ticket_life
    world.acquire("alice", "bob")
    world.run()
    assert passes(world, "alice", "bob") == "esp"
    world.sent.clear()
    world["alice"].fetched.clear()
    return world


def established(world: World) -> int:
    return len(world["alice"].events("sa-established"))


def unproven(world: World, code: int, count: int = 1) -> None:
    """A KRB-ERROR to alice's latest command that anyone could have sent."""
    xid = kink.decode(world.sent[-1].datagram).message.xid
    error = kink.KrbError(messages.build_krb_error(code, REALM, BOB.service, int(POSIX), 0))
    octets = kink.encode(kink.Message(MessageType.REPLY, xid, (error,)), protected=False)
    for _ in range(count):
        world["alice"].endpoint.receive(octets, TO_BOB, world.now)
        world.settle()


# --- stale keys -------------------------------------------------------------------------------


def test_a_pair_heals_where_the_peer_has_another_key() -> None:
    world = keyed()
    rekeyed(world, "bob")
    world.initiate("alice", "bob")
    world.run(FIRST_TIMEOUT)  # in case that a proven answer comes
    assert established(world) == 2
    assert world["alice"].fetched == [FetchTicket(BOB.service)]
    creates = [kink.decode(send.datagram).message for send in world.sent]
    xids = [message.xid for message in creates if message.type is MessageType.CREATE]
    assert len(xids) == len(set(xids)) == 2  # RFC 4430 §9: another ticket, another transaction


@pytest.mark.parametrize("code", [31, 41, 44, 45])
def test_any_error_that_speaks_of_keys_has_the_ticket_fetched_anew(code: int) -> None:
    world = keyed()
    world.initiate("alice", "bob")
    world.wire.clear()
    unproven(world, code)
    assert world["alice"].fetched == [FetchTicket(BOB.service)]


@pytest.mark.parametrize("code", [7, 29, 32, 33, 37, 60, 69])
def test_no_other_error_that_nobody_proved_does(code: int) -> None:
    world = keyed()
    ticket = world["alice"].endpoint.peer(BOB).ticket
    world.initiate("alice", "bob")
    world.wire.clear()
    unproven(world, code)
    assert not world["alice"].fetched
    assert world["alice"].endpoint.peer(BOB).ticket is ticket


def test_forged_errors_cost_one_request_a_minute() -> None:
    world = keyed()
    world.initiate("alice", "bob")
    world.wire.clear()
    unproven(world, 31, count=100)
    assert len(world["alice"].fetched) == 1
    for _ in range(10):
        world.initiate("alice", "bob")
        world.wire.clear()
        unproven(world, 44, count=100)
        world.advance(world.now + 30)
    assert len(world["alice"].fetched) <= 1 + 6


def test_the_old_ticket_stays_until_there_is_a_new_one() -> None:
    world = keyed()
    ticket = world["alice"].endpoint.peer(BOB).ticket
    world["alice"].kdc_up = False
    world.initiate("alice", "bob")
    world.wire.clear()
    unproven(world, 31)
    assert world["alice"].endpoint.peer(BOB).ticket is ticket
    world.run(2.0)  # and is good, whoever said otherwise
    assert established(world) == 2


def test_an_error_to_a_command_that_is_over_is_nothing() -> None:
    world = keyed()
    world.initiate("alice", "bob")
    world.run()
    command = next(send for send in world.sent if send.path == TO_BOB)
    world.sent.append(command)
    unproven(world, 31)
    assert not world["alice"].fetched


def test_a_command_that_was_carried_out_and_begun_again_leaves_no_half_pair() -> None:
    world = keyed()
    world.initiate("alice", "bob")
    world.run(TRANSACTION_SECONDS + 10, pass_on=lambda _: [])  # there is another ticket now
    world.initiate("alice", "bob")
    world.deliver(world.wire.popleft())
    world.wire.clear()  # bob has made a pair, and alice does not hear of it
    world.run(10.0)
    alice, bob = (list(world[name].endpoint.pairs) for name in ("alice", "bob"))
    assert len(alice) == len(bob)
    assert all(any(mirrored(one, other) for other in bob) for one in alice)
    assert len(world["bob"].kernel.states()) == 2 * len(bob)


def test_a_peer_that_is_gone_costs_the_kdc_less_and_less() -> None:
    world = keyed()
    for _ in range(120):
        world.initiate("alice", "bob")
        world.run(TRANSACTION_SECONDS + 1, pass_on=lambda _: [])
    assert len(world["alice"].fetched) <= 12  # in an hour


# --- the ticket's end -------------------------------------------------------------------------


@pytest.mark.parametrize("ke", [(None,), (19,)])
@pytest.mark.parametrize("grace", [0, 60, 600])
def test_no_sa_outlives_the_ticket_by_more_than_the_policy_says(
    ke: tuple[int | None, ...], grace: int
) -> None:
    profile = replace(FAST, lifetime=Lifetime(8 * 3600), groups=ke, ticket_grace=grace)
    world = keyed(profile, ticket_life=1000)
    for name in ("alice", "bob"):
        (pair,) = world[name].endpoint.pairs
        assert pair.lifetime.seconds == 1000 + grace
        ends = {state.limits.hard_seconds for state in world[name].kernel.states()}
        assert ends == {1000 + grace}


def test_a_ticket_that_ended_long_ago_makes_an_sa_of_no_use() -> None:
    """Kerberos forgives a clock five minutes; the bound stands all the same."""
    world = keyed(replace(FAST, ticket_grace=60), ticket_life=1000)
    protection = world.protection("alice", "bob")
    terms = Terms(protection.mode, protection.profile.lifetime)
    suite, key = protection.profile.suites[0], etypes.random_key(18)
    made = Agreement(protection, protection.selector, suite, terms, key, 1000, Seeds(bytes(16)))
    moments = (900.0, 1000.0, 1059.0, 1060.0, 2000.0)
    seconds = [made.lifetime(posix).seconds for posix in moments]
    assert seconds == [160, 60, 1, 1, 1]


def test_a_ticket_that_lives_long_enough_changes_no_lifetime() -> None:
    world = keyed(replace(FAST, lifetime=Lifetime(1000), ticket_grace=0), ticket_life=1001)
    (pair,) = world["bob"].endpoint.pairs
    assert pair.lifetime.seconds == 1000


# --- early renewal ----------------------------------------------------------------------------


def test_a_ticket_is_replaced_before_its_end_while_there_are_sas() -> None:
    world = keyed()
    world.run(0.59 * 36000)
    assert not world["alice"].fetched
    world.run(0.22 * 36000)
    assert world["alice"].fetched == [FetchTicket(BOB.service)]
    world["alice"].kdc_up = False
    world.run(0.3 * 36000)  # the first has ended
    world.initiate("alice", "bob")
    world.run(1.0)
    assert established(world) == 2


def test_no_ticket_is_fetched_early_for_a_peer_without_sas() -> None:
    world = keyed()
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run(36000)
    assert not world["alice"].fetched


def test_hosts_do_not_renew_all_at_the_same_time() -> None:
    peers = tuple(host(f"h{n}", IPv4Address(f"10.0.1.{n + 1}")) for n in range(20))
    world = World((ALICE, *peers))
    for peer in peers:
        world.acquire("alice", peer.name)
    world.run()
    sources = world["alice"].endpoint._initiator.tickets._sources.values()
    times = sorted(source.refresh for source in sources)
    assert times[-1] - times[0] > 0.1 * 36000
    assert len(set(times)) == len(peers)


def test_while_the_kdc_is_away_the_early_attempts_grow_rare() -> None:
    world = keyed()
    world["alice"].kdc_up = False
    world.run(0.8 * 36000)
    world["alice"].fetched.clear()
    world.run(0.1 * 36000)
    assert 4 <= len(world["alice"].fetched) <= 0.1 * 36000 / (EARLY_PAUSE * 0.5)
    world["alice"].kdc_up = True
    world.run(EARLY_PAUSE * 1.5)
    ticket = world["alice"].endpoint.peer(BOB).ticket
    assert ticket is not None
    assert ticket.end > world.now + POSIX + 0.9 * 36000


# --- the KDC is away --------------------------------------------------------------------------


def test_whoever_waits_does_not_wait_long_once_the_kdc_is_back() -> None:
    world = World()
    world["alice"].kdc_up = False
    for _ in range(20):
        world.acquire("alice", "bob")
        world.run(TRANSACTION_SECONDS + 1)
    asked = len(world["alice"].fetched)
    assert asked <= 20 * (TRANSACTION_SECONDS + 1) / (DEMANDED_PAUSE * 0.5) + 5
    world["alice"].kdc_up = True
    world.run(2 * REST_WITHOUT_TICKET)
    world.acquire("alice", "bob")
    world.run(DEMANDED_PAUSE * 1.5)
    assert established(world) == 1


def test_a_late_or_unasked_answer_of_the_kdc_is_nothing() -> None:
    world = keyed()
    ticket = world["alice"].endpoint.peer(BOB).ticket
    other = world["alice"].tickets.fetch(BOB.service)
    world["alice"].endpoint.ticket_ready(BOB.service, other, world.now)
    assert world["alice"].endpoint.peer(BOB).ticket is ticket


# --- size -------------------------------------------------------------------------------------


def test_a_ticket_that_makes_fragments_is_named_once() -> None:
    long = Principal(("x" * 1500,), REALM)  # stands in the ticket, as a PAC would
    world = World((replace(ALICE, client=long), BOB))
    world.acquire("alice", "bob")
    world.run()
    world.initiate("alice", "bob")
    world.run()
    (said,) = world["alice"].events("ticket-large")
    assert said["server"] == str(BOB.service)
    octets, whole = said["ticket_octets"], said["message_octets"]
    assert isinstance(octets, int)
    assert isinstance(whole, int)
    assert 1500 < octets < whole
    assert established(world) == 2
    world = keyed()
    assert not world["alice"].events("ticket-large")


# --- what people see --------------------------------------------------------------------------


def test_people_see_the_ticket_or_why_there_is_none() -> None:
    world = World()
    world["alice"].kdc_up = False
    world.acquire("alice", "bob")
    (row,) = _peers(world)
    assert (row["ticket"], row["ticket_fault"]) == (None, "KDC unreachable")
    assert "KDC unreachable" in kinkctl._show_peers({"peers": [row]})
    world["alice"].kdc_up = True
    world.run(3.0)
    (row,) = _peers(world)
    ticket = row["ticket"]
    assert isinstance(ticket, dict)
    assert (ticket["server"], ticket["etype"], row["ticket_fault"]) == (str(BOB.service), 18, "")
    assert "etype 18, " in kinkctl._show_peers({"peers": [row]})


def _peers(world: World) -> list[dict[str, object]]:
    rows = views.peers(world["alice"].endpoint)["peers"]
    assert isinstance(rows, list)
    return rows


# --- what nobody has proven stays a candidate ------------------------------------------------


def doubted() -> World:
    """Somebody has put alice's ticket in doubt: there is another, which no answer has proven."""
    world = keyed()
    world.initiate("alice", "bob")
    world.wire.clear()
    unproven(world, 31)
    assert world["alice"].endpoint.peer(BOB).candidate is not None
    return world


def test_a_proven_answer_under_the_old_ticket_ends_the_doubt() -> None:
    world = doubted()
    ticket = world["alice"].endpoint.peer(BOB).ticket
    octets = world.sent[-1]
    world.deliver(octets)  # the true answer, late
    world.run()
    assert world["alice"].endpoint.peer(BOB).ticket is ticket
    assert world["alice"].endpoint.peer(BOB).candidate is None
    assert established(world) == 2


def test_a_candidate_is_better_than_no_ticket() -> None:
    world = keyed(ticket_life=1000)
    world["alice"].tickets._lifetime = 36000
    world.initiate("alice", "bob")
    world.wire.clear()
    unproven(world, 31)
    world["alice"].kdc_up = False
    for pair in list(world["alice"].endpoint.pairs):
        assert pair.host == "bob"
    world.advance(1100)  # the proven one has ended
    world.initiate("alice", "bob")
    world.run(10.0)
    assert established(world) == 2


def test_a_doubt_while_the_kdc_is_away_takes_nothing_that_is_not_proven() -> None:
    world = keyed()
    ticket = world["alice"].endpoint.peer(BOB).ticket
    world["alice"].kdc_up = False
    world.initiate("alice", "bob")
    world.wire.clear()
    unproven(world, 31)
    world.run(5.0, pass_on=lambda _: [])
    world["alice"].kdc_up = True
    world.run(EARLY_PAUSE * 2, pass_on=lambda _: [])
    assert world["alice"].endpoint.peer(BOB).ticket is ticket


def test_one_forged_error_does_not_end_the_early_renewal() -> None:
    world = doubted()
    world.wire.clear()
    world["alice"].endpoint.stop_creating(world.now)
    before = len(world["alice"].fetched)
    world.run(0.85 * 36000)
    assert len(world["alice"].fetched) > before
