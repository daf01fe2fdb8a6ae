"""User-to-user: who has only a ticket-granting ticket, as responder and as initiator (§3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from kinkd.errors import TicketUnavailable
from kinkd.exchange.effects import FetchTgt, FetchTicket, Path, Send
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.exchange.usertouser import FIRST_LENGTH
from kinkd.kerberos import messages
from kinkd.kerberos.names import exported_name
from kinkd.model import Host, Principal, UserToUser
from kinkd.wire import kink
from kinkd.wire.numbers import GREATEST_DATAGRAM, KinkErrorCode, MessageType
from tests.support.pair import ALICE, BOB, CAROL, POSIX, REALM, World, mirrored, passes

JANE = Principal(("jane",), REALM)
JOHN = Principal(("john",), REALM)
LAPTOP = Host("laptop", JANE, JANE, (IPv4Address("10.0.0.2"),), user_to_user=UserToUser.ALWAYS)
TABLET = Host("tablet", JOHN, JOHN, (IPv4Address("10.0.0.1"),), user_to_user=UserToUser.ALWAYS)
ALLOWED = replace(BOB, user_to_user=UserToUser.ALLOWED)
TO_LAPTOP = Path(ALICE.addresses[0], LAPTOP.addresses[0])
FROM_ALICE = Path(LAPTOP.addresses[0], ALICE.addresses[0])


def people(*hosts: Host) -> World:
    world = World(hosts or (ALICE, LAPTOP))
    world.settle()
    return world


def read(send: Send) -> kink.Message:
    return kink.decode(send.datagram).message


def sent(world: World, kind: MessageType) -> list[Send]:
    return [send for send in world.sent if read(send).type is kind]


def tgt_of(world: World, name: str) -> bytes:
    return world[name].tickets.tgt().ticket


def assert_keyed(world: World, one: str, other: str) -> None:
    (mine,), (theirs,) = (list(world[name].endpoint.pairs) for name in (one, other))
    assert mirrored(mine, theirs)
    assert passes(world, one, other) == passes(world, other, one) == "esp"


def gettgt(name: Principal | bytes, octets: int = FIRST_LENGTH, xid: int = 7) -> bytes:
    name = exported_name(name) if isinstance(name, Principal) else name
    message = kink.Message(MessageType.GETTGT, xid, (kink.TgtReq(name),))
    return kink.encode(message, protected=False).ljust(octets, b"\0")


def asked(world: World, datagram: bytes, path: Path = FROM_ALICE) -> list[kink.Payload]:
    """What the laptop answers."""
    before = len(world.sent)
    world["laptop"].endpoint.receive(datagram, path, world.now)
    world.settle()
    answers = world.sent[before:]
    assert all(len(each.datagram) <= len(datagram) for each in answers)  # never amplified
    return [payload for each in answers for payload in read(each).payloads]


# --- it works ---------------------------------------------------------------------------------


@pytest.mark.rfc("4430-3.1-1", "4430-4.2.4-1")
def test_a_host_keys_a_person_whose_policy_says_so() -> None:
    world = people()
    world.acquire("alice", "laptop")
    world.run()
    assert_keyed(world, "alice", "laptop")
    kinds = [read(send).type for send in world.sent]
    assert kinds == [MessageType.GETTGT, MessageType.REPLY, MessageType.CREATE, MessageType.REPLY]
    (asking,), given = sent(world, MessageType.GETTGT), read(world.sent[1]).payloads
    assert read(asking).payloads == (kink.TgtReq(b"jane@EXAMPLE.TEST"),)
    assert given == (kink.TgtRep(tgt_of(world, "laptop")),)
    assert len(asking.datagram) == FIRST_LENGTH >= len(world.sent[1].datagram)
    assert world["alice"].endpoint.counters["gettgt.sent"] == 1
    assert world["laptop"].endpoint.counters["gettgt.answered"] == 1
    (create,) = sent(world, MessageType.CREATE)
    proof = read(create).payloads[0]
    assert isinstance(proof, kink.ApReq)
    assert messages.read_ap_req(proof.ap_req).user_to_user


def test_a_person_keys_a_host_with_a_service_ticket() -> None:
    world = people()
    world.acquire("laptop", "alice")
    world.run()
    assert_keyed(world, "laptop", "alice")
    assert [read(send).type for send in world.sent] == [MessageType.CREATE, MessageType.REPLY]


def test_two_persons_key_each_other() -> None:
    world = people(TABLET, LAPTOP)
    world.acquire("tablet", "laptop")
    world.run()
    assert_keyed(world, "tablet", "laptop")
    world.initiate("laptop", "tablet")
    world.run(2.0)
    assert len(sent(world, MessageType.GETTGT)) == 2


def test_who_comes_first_waits_for_the_tgt_and_the_others_with_it() -> None:
    world = people()
    for _ in range(3):
        world.initiate("alice", "laptop")
    assert len(sent(world, MessageType.GETTGT)) == 1
    world.run()
    assert_keyed(world, "alice", "laptop")


def test_a_lost_gettgt_is_sent_again_and_no_answer_ends_it() -> None:
    world = people()
    world.acquire("alice", "laptop")
    world.run(3.0, pass_on=lambda _: [])
    assert len(sent(world, MessageType.GETTGT)) == 3
    world.run(1.0)
    assert_keyed(world, "alice", "laptop")
    world = people()
    world.acquire("alice", "laptop")
    world.run(TRANSACTION_SECONDS + 1, pass_on=lambda _: [])
    assert len(world["alice"].events("create-failed")) == 1
    assert not world["alice"].kernel.states()
    world.run(400, pass_on=lambda _: [])
    before = len(sent(world, MessageType.GETTGT))
    world.run(4000, pass_on=lambda _: [])
    assert len(sent(world, MessageType.GETTGT)) == before  # nobody waits for it any more


@pytest.mark.rfc("4430-3.1-1")
def test_the_kdc_may_ask_for_it_where_the_policy_allows_it() -> None:
    world = people(ALICE, ALLOWED)
    world.user_to_user_only.add(ALLOWED.service)
    world.acquire("alice", "bob")
    world.run()
    assert_keyed(world, "alice", "bob")
    assert world["alice"].endpoint.peer(ALLOWED).user_to_user
    world = people(ALICE, BOB)  # and not where it does not
    world.user_to_user_only.add(BOB.service)
    world.acquire("alice", "bob")
    world.run(1.0)
    assert not sent(world, MessageType.GETTGT)
    assert not list(world["alice"].endpoint.pairs)


@pytest.mark.rfc("4430-3.1-1")
@pytest.mark.parametrize(("host", "keyed"), [(ALLOWED, True), (BOB, False)])
def test_the_peer_may_ask_for_it_where_the_policy_allows_it(host: Host, keyed: bool) -> None:
    world = people(ALICE, host)
    world["bob"].acceptor._keys.clear()  # its keytab is gone
    world.acquire("alice", "bob")
    world.run(2.0)
    assert bool(list(world["alice"].endpoint.pairs)) is keyed
    assert bool(sent(world, MessageType.GETTGT)) is keyed


# --- whose TGT is given to whom ---------------------------------------------------------------


@pytest.mark.rfc("4430-4.2.4-2")
def test_the_tgt_of_somebody_else_is_not_to_be_had() -> None:
    for name in (
        JOHN,
        ALICE.client,
        Principal(("jane",), "OTHER.TEST"),
        Principal(("Jane",), REALM),
    ):
        world = people()
        assert not asked(world, gettgt(name, 0))  # the answer would be longer than the question
        (answer,) = asked(world, gettgt(name))
        assert isinstance(answer, kink.KrbError)
        assert messages.read_krb_error(answer.krb_error).name == "KRB_AP_ERR_NOT_US"


def test_a_host_that_may_not_gives_none() -> None:
    world = people(ALICE, replace(LAPTOP, user_to_user=UserToUser.NEVER))
    assert asked(world, gettgt(JANE)) == [kink.KinkError(KinkErrorCode.U2UDENIED)]
    assert not world["laptop"].fetched


def test_strangers_are_given_none() -> None:
    world = people()
    stranger = Path(LAPTOP.addresses[0], IPv4Address("10.9.9.9"))
    assert asked(world, gettgt(JANE), stranger) == [kink.KinkError(KinkErrorCode.U2UDENIED)]


@pytest.mark.parametrize("name", [b"", b"jane", b"\xff", b"jane@R\\", b"x" * 2000 + b"@R"])
def test_a_name_that_is_none_is_dropped(name: bytes) -> None:
    world = people()
    assert not asked(world, gettgt(name))
    assert world["laptop"].endpoint.counters["drop.malformed-kerberos"] == 1


def test_nobody_is_sent_more_than_was_sent_in_his_name() -> None:
    world = people()
    whole = len(
        kink.encode(
            kink.Message(MessageType.REPLY, 7, (kink.TgtRep(tgt_of(world, "laptop")),)),
            protected=False,
        )
    )
    too_short = [kink.KinkError(KinkErrorCode.REQUEST_TOO_SHORT)]
    assert asked(world, gettgt(JANE, 0)) == too_short
    assert asked(world, gettgt(JANE, whole - 1)) == too_short
    assert asked(world, gettgt(JANE, whole)) == [kink.TgtRep(tgt_of(world, "laptop"))]


def test_a_tgt_that_is_longer_is_asked_for_at_greater_length() -> None:
    world = people()
    long = replace(world["laptop"].tickets.tgt(), ticket=bytes(40_000))
    world["laptop"].endpoint.tgt_ready(long, world.now)
    world.acquire("alice", "laptop")
    world.run(25.0)
    lengths = [len(send.datagram) for send in sent(world, MessageType.GETTGT)]
    assert lengths[:6] == [FIRST_LENGTH << n for n in range(6)]
    assert world["alice"].endpoint.counters["drop.malformed-kerberos"] >= 1  # zeros are no TGT


def test_who_forges_that_it_is_too_short_makes_nobody_a_mill() -> None:
    world = people()
    world.acquire("alice", "laptop")
    xid = read(sent(world, MessageType.GETTGT)[0]).xid
    answer = kink.Message(
        MessageType.REPLY, xid, (kink.KinkError(KinkErrorCode.REQUEST_TOO_SHORT),)
    )
    for _ in range(300):
        for _ in range(20):
            octets = kink.encode(answer, protected=False)
            world["alice"].endpoint.receive(octets, TO_LAPTOP, world.now)
        world.run(0.1, pass_on=lambda _: [])
    lengths = [len(send.datagram) for send in sent(world, MessageType.GETTGT)]
    assert len(lengths) <= 11  # as often as without
    assert max(lengths) <= GREATEST_DATAGRAM


def test_a_flood_is_answered_at_a_bounded_rate() -> None:
    world = people()
    answers = [asked(world, gettgt(JANE, xid=xid)) for xid in range(1000)]
    assert 100 <= sum(map(bool, answers)) <= 401
    other = people(ALICE, LAPTOP, CAROL)  # and one whose name is taken in vain spends no third's
    for xid in range(1000):
        asked(other, gettgt(JANE, xid=xid))
    from_carol = Path(LAPTOP.addresses[0], CAROL.addresses[0])
    assert asked(other, gettgt(JANE), from_carol) == [kink.TgtRep(tgt_of(other, "laptop"))]


def test_without_a_tgt_there_is_no_answer_until_there_is_one() -> None:
    world = people()
    world["laptop"].kdc_up = False
    world.advance(40_000)  # it has ended, and there was no other
    assert not asked(world, gettgt(JANE))
    world["laptop"].kdc_up = True
    world.run(100)
    assert asked(world, gettgt(JANE)) == [kink.TgtRep(tgt_of(world, "laptop"))]


def test_a_missing_tgt_is_not_fetched_at_every_asking() -> None:
    world = people()
    world["laptop"].kdc_up = False
    world.advance(40_000)
    world["laptop"].fetched.clear()
    for xid in range(500):
        asked(world, gettgt(JANE, xid=xid))
    assert len(world["laptop"].fetched) <= 3


# --- what comes back --------------------------------------------------------------------------


def forged(world: World, payload: kink.Payload, kind: MessageType = MessageType.GETTGT) -> None:
    """An answer to alice that anyone could have made."""
    xid = read(sent(world, kind)[-1]).xid
    octets = kink.encode(kink.Message(MessageType.REPLY, xid, (payload,)), protected=False)
    world["alice"].endpoint.receive(octets, TO_LAPTOP, world.now)
    world.settle()


@pytest.mark.rfc("4430-4.2.4-1")
def test_an_inter_realm_tgt_or_no_tgt_at_all_is_not_taken() -> None:
    for server in (
        Principal(("krbtgt", "OTHER.TEST"), REALM),
        Principal(("krbtgt", REALM), "OTHER.TEST"),
        Principal(("kink", "bob.example.test"), REALM),
    ):
        world = people()
        world.acquire("alice", "laptop")
        world.wire.clear()
        key = world.tgs
        raw = messages.build_ticket(server, 1, key, messages.read_enc_ticket(_part(world)))
        forged(world, kink.TgtRep(raw))
        assert world["alice"].endpoint.counters["drop.not-a-tgt"] == 1
        assert not [each for each in world["alice"].fetched if isinstance(each, FetchTicket)]
        world.run(2.0)  # the true answer comes all the same
        assert_keyed(world, "alice", "laptop")


def _part(world: World) -> bytes:
    header = messages.read_ticket(tgt_of(world, "laptop"))
    return world.tgs.decrypt(messages.Usage.TICKET, header.cipher)


def test_the_tgt_of_somebody_else_gets_no_ticket_of_the_kdc() -> None:
    world = people()
    world.acquire("alice", "laptop")
    world.wire.clear()
    forged(world, kink.TgtRep(tgt_of(world, "alice")))
    assert not list(world["alice"].endpoint.pairs)
    world.run(TRANSACTION_SECONDS / 2)
    assert_keyed(world, "alice", "laptop")


@pytest.mark.parametrize(
    "payload",
    [
        kink.KinkError(KinkErrorCode.U2UDENIED),
        kink.KrbError(messages.build_krb_error(35, REALM, JANE, 0, 0)),
        kink.KinkError(KinkErrorCode.INTERR),
        kink.TgtRep(b"junk"),
    ],
)
def test_a_forged_refusal_ends_nothing(payload: kink.Payload) -> None:
    world = people()
    world.acquire("alice", "laptop")
    world.wire.clear()
    forged(world, payload)
    world.run(2.0)
    assert_keyed(world, "alice", "laptop")


def test_a_refusal_is_said_in_the_end() -> None:
    world = people()
    world["laptop"].endpoint._core.policy = replace(
        world["laptop"].endpoint.policy, me=replace(LAPTOP, user_to_user=UserToUser.NEVER)
    )
    world.acquire("alice", "laptop")
    world.run(TRANSACTION_SECONDS + 1)
    (failed,) = world["alice"].events("create-failed")
    assert "gives no TGT out" in str(failed["reason"])


@pytest.mark.rfc("4430-4.2.8-5")
def test_who_gives_no_tgt_out_is_asked_with_a_service_ticket() -> None:
    world = people(ALICE, ALLOWED)
    world["alice"].endpoint.peer(ALLOWED).user_to_user = True
    world["bob"].endpoint._core.policy = replace(world["bob"].endpoint.policy, me=BOB)
    world.acquire("alice", "bob")
    world.run(2.0)
    assert_keyed(world, "alice", "bob")
    assert not world["alice"].endpoint.peer(ALLOWED).user_to_user


@pytest.mark.rfc("4430-4.2.8-5")
def test_who_was_said_to_give_none_is_asked_again_after_a_while() -> None:
    world = people(ALICE, ALLOWED)
    world.user_to_user_only.add(ALLOWED.service)
    world.acquire("alice", "bob")
    for _ in range(3):  # the true answers are lost
        forged(world, kink.KinkError(KinkErrorCode.U2UDENIED))
        world.run(1.0, pass_on=lambda _: [])
    world.run(100, pass_on=lambda _: [])
    world.initiate("alice", "bob")
    world.run(30.0)
    assert_keyed(world, "alice", "bob")


def test_who_was_said_to_want_it_and_does_not_is_asked_in_the_usual_way_again() -> None:
    """One forged packet: KRB_AP_ERR_USER_TO_USER_REQUIRED."""
    world = people(ALICE, ALLOWED)

    def no_gettgt(send: Send) -> list[Send]:
        return [] if read(send).type is MessageType.GETTGT else [send]

    world.acquire("alice", "bob")
    world.run()
    world.initiate("alice", "bob")
    world.wire.clear()
    forged(
        world,
        kink.KrbError(messages.build_krb_error(69, REALM, ALLOWED.service, 0, 0)),
        MessageType.CREATE,
    )
    assert sent(world, MessageType.GETTGT)
    world.run(TRANSACTION_SECONDS + 10, no_gettgt)
    world.initiate("alice", "bob")
    world.run(5.0, no_gettgt)
    assert len(world["alice"].events("sa-established")) == 3


def test_a_kdc_that_fails_once_makes_no_true_tgt_useless() -> None:
    world = people()
    faults = iter([TicketUnavailable("generic error", 60)])
    whole = world["alice"].tickets.fetch

    def once(server: Principal, tgt: bytes | None = None) -> object:
        for fault in faults:
            raise fault
        return whole(server, tgt)

    world["alice"].tickets.fetch = once  # type: ignore[assignment,method-assign]  # fails once
    world.acquire("alice", "laptop")
    world.run(TRANSACTION_SECONDS / 2)
    assert_keyed(world, "alice", "laptop")


def test_a_host_that_was_keyed_user_to_user_may_be_given_a_keytab() -> None:
    world = people(ALICE, ALLOWED)
    world.user_to_user_only.add(ALLOWED.service)
    world.acquire("alice", "bob")
    world.run()
    assert world["alice"].endpoint.peer(ALLOWED).user_to_user
    world.user_to_user_only.clear()
    world["bob"].endpoint._core.policy = replace(world["bob"].endpoint.policy, me=BOB)
    world["alice"].endpoint.terminate(ALLOWED, world.now, lambda _: None)
    world.run(40_000)  # its ticket has ended
    for _ in range(4):
        world.acquire("alice", "bob")
        world.run(TRANSACTION_SECONDS + 10)
    assert_keyed(world, "alice", "bob")


def test_a_kdc_that_wants_user_to_user_even_of_that_is_not_asked_without_pause() -> None:
    world = people(ALICE, ALLOWED)
    world["alice"].endpoint.peer(ALLOWED).user_to_user = True

    def refuse(*_: object) -> None:
        raise TicketUnavailable("user-to-user alone", 27)

    world["alice"].tickets.fetch = refuse  # type: ignore[assignment,method-assign]  # a mad KDC
    world.acquire("alice", "bob")
    world.run(10.0)
    assert len(world["alice"].fetched) < 20


def test_a_reply_to_gettgt_from_elsewhere_is_not_taken() -> None:
    world = people()
    world.acquire("alice", "laptop")
    xid = read(sent(world, MessageType.GETTGT)[0]).xid
    reply = kink.Message(MessageType.REPLY, xid, (kink.TgtRep(tgt_of(world, "laptop")),))
    elsewhere = Path(ALICE.addresses[0], CAROL.addresses[0])
    octets = kink.encode(reply, protected=False)
    world["alice"].endpoint.receive(octets, elsewhere, world.now)
    world.settle()
    assert world["alice"].endpoint.counters["drop.unexpected-reply"] == 1
    assert not world["alice"].fetched


# --- another TGT ------------------------------------------------------------------------------


def keyed() -> World:
    world = people()
    world.acquire("alice", "laptop")
    world.run()
    assert_keyed(world, "alice", "laptop")
    world.sent.clear()
    return world


def test_tickets_under_the_tgt_of_before_still_do() -> None:
    world = keyed()
    world["laptop"].tickets._held = None
    world.advance(2000)  # it has looked for another, and given it to nobody yet
    assert len(world["laptop"].acceptor._tgts) == 2
    world.initiate("alice", "laptop")
    world.run(1.0)
    assert [read(send).type for send in world.sent[:2]] == [MessageType.CREATE, MessageType.REPLY]
    assert len(world["alice"].events("sa-established")) == 2


def renewed(world: World) -> None:
    """Jane has logged out and in again: nobody knows the session key of before."""
    world["laptop"].acceptor._tgts.clear()
    world["laptop"].tickets._held = None
    world.restart("laptop")
    world.settle()


@pytest.mark.rfc("4430-3.7.1-1", "4430-3.7.1-2")
def test_a_responder_with_a_new_tgt_offers_it_and_the_command_begins_again() -> None:
    world = keyed()
    (pair,) = world["alice"].endpoint.pairs
    renewed(world)
    world.initiate("alice", "laptop")
    world.deliver(world.wire.popleft())
    offered = read(world.sent[-1])
    assert offered.payloads == (kink.TgtRep(tgt_of(world, "laptop")),)
    assert len(world.sent[-1].datagram) <= len(world.sent[-2].datagram)
    assert pair in list(world["alice"].endpoint.pairs)  # it is not dead, §3.7.1
    world.run(1.0)
    first, second = sent(world, MessageType.CREATE)
    assert read(first).xid != read(second).xid
    assert not sent(world, MessageType.GETTGT)
    assert len(world["alice"].events("sa-established")) == 2


def test_a_new_tgt_is_offered_to_hosts_of_the_policy_alone() -> None:
    world = keyed()
    renewed(world)
    world.initiate("alice", "laptop")
    command = world.wire.popleft()
    stranger = Path(LAPTOP.addresses[0], IPv4Address("10.9.9.9"))
    assert [type(each) for each in asked(world, command.datagram, stranger)] == [kink.KrbError]
    assert [type(each) for each in asked(world, command.datagram)] == [kink.TgtRep]


def test_an_offer_that_answers_a_ticket_of_before_begins_the_command_again() -> None:
    world = keyed()
    renewed(world)
    world.initiate("alice", "laptop")
    world.wire.clear()
    newer = world["alice"].tickets.fetch(JANE, tgt_of(world, "laptop"))
    world["alice"].endpoint.peer(LAPTOP).ticket = newer  # an early renewal came between
    forged(world, kink.TgtRep(tgt_of(world, "laptop")), MessageType.CREATE)
    world.run(1.0)
    assert len(world["alice"].events("sa-established")) == 2


def test_rubbish_in_a_hosts_name_does_not_keep_it_from_its_answer() -> None:
    world = people()
    for xid in range(1000):
        asked(world, gettgt(JOHN, 0, xid=xid))
        world["laptop"].endpoint.receive(bytes(16), FROM_ALICE, world.now)
    world.settle()
    world.wire.clear()
    world.acquire("alice", "laptop")
    world.run(1.0)
    assert_keyed(world, "alice", "laptop")


def test_an_old_tgt_that_is_sent_again_and_again_keeps_no_pair_down() -> None:
    """The KDC makes tickets of it, though its session key is lost: none of them is ever proven."""
    world = keyed()
    old = tgt_of(world, "laptop")
    renewed(world)
    world.initiate("alice", "laptop")
    world.run(2.0)
    assert len(world["alice"].events("sa-established")) == 2
    made = 2
    for _ in range(10):
        world.initiate("alice", "laptop")
        create = world.wire.popleft()  # the attacker is always faster
        for payload in (
            kink.TgtRep(old),
            kink.TgtRep(b"junk"),
            kink.TgtRep(tgt_of(world, "alice")),
        ):
            forged(world, payload, MessageType.CREATE)
        world.wire.appendleft(create)
        world.run(2.0)
        made += 1
        assert len(world["alice"].events("sa-established")) == made
    assert not world["alice"].events("create-failed")


def test_forged_answers_to_gettgt_end_nothing_however_many() -> None:
    world = people()
    world.acquire("alice", "laptop")
    xid = read(sent(world, MessageType.GETTGT)[-1]).xid
    held = world.wire.popleft()
    for _ in range(5):
        world["alice"].tickets._held = None  # another TGT each time
        reply = kink.Message(MessageType.REPLY, xid, (kink.TgtRep(tgt_of(world, "alice")),))
        world["alice"].endpoint.receive(kink.encode(reply, protected=False), TO_LAPTOP, world.now)
        world.settle()
    world.wire.append(held)
    world.run()  # the true answer to the very same question
    assert_keyed(world, "alice", "laptop")


def test_twenty_hours_without_a_kdc_do_not_end_the_asking() -> None:
    world = people()
    world["laptop"].kdc_up = False
    before = len(world["laptop"].fetched)
    for _ in range(20 * 60):
        world.advance(world.now + 60)
    assert 500 < len(world["laptop"].fetched) - before < 4000
    world["laptop"].kdc_up = True
    world.run(100.0)
    assert asked(world, gettgt(JANE)) == [kink.TgtRep(tgt_of(world, "laptop"))]


def test_while_the_kdc_is_away_our_own_tgt_is_asked_for_with_pauses() -> None:
    world = people()
    world["laptop"].kdc_up = False
    world.advance(40_000)
    world["laptop"].fetched.clear()
    for _ in range(600):
        world.advance(world.now + 1)
    assert 8 <= len(world["laptop"].fetched) <= 30


def test_a_tgt_that_is_about_to_end_is_looked_at_again_before() -> None:
    world = people()
    dying = replace(world["laptop"].tickets.tgt(), end=int(POSIX + world.now) + 12, ticket=b"x")
    world["laptop"].fetched.clear()
    world["laptop"].endpoint.tgt_ready(dying, world.now)
    world.advance(world.now + 9)
    assert not world["laptop"].fetched
    world.advance(world.now + 2)
    assert world["laptop"].fetched == [FetchTgt()]


def test_of_many_forged_offers_one_at_a_time_is_asked_of_the_kdc() -> None:
    world = keyed()
    renewed(world)
    world.initiate("alice", "laptop")
    world.wire.clear()
    xid = read(sent(world, MessageType.CREATE)[-1]).xid
    for _ in range(3):  # while the KDC has not answered
        world["alice"].tickets._held = None
        reply = kink.Message(MessageType.REPLY, xid, (kink.TgtRep(tgt_of(world, "alice")),))
        world["alice"].endpoint.receive(kink.encode(reply, protected=False), TO_LAPTOP, world.now)
    wanted = [each for each in world["alice"].endpoint.commands() if isinstance(each, FetchTicket)]
    assert len(wanted) == 1


@pytest.mark.rfc("4430-3.7.1-2")
def test_a_forged_offer_costs_one_request_and_no_ticket() -> None:
    world = keyed()
    before = world["alice"].endpoint.peer(LAPTOP).ticket
    world["alice"].fetched.clear()
    world.initiate("alice", "laptop")
    world.wire.clear()
    for _ in range(50):
        forged(world, kink.TgtRep(tgt_of(world, "alice")), MessageType.CREATE)
    asked_kdc = [each for each in world["alice"].fetched if isinstance(each, FetchTicket)]
    assert 1 <= len(asked_kdc) <= 3
    assert world["alice"].endpoint.peer(LAPTOP).ticket is before
    world.run(2.0)
    assert len(world["alice"].events("sa-established")) == 2


def test_an_offer_of_the_same_tgt_or_for_a_service_ticket_is_nothing_new() -> None:
    world = keyed()
    world.initiate("alice", "laptop")
    world.wire.clear()
    world["alice"].fetched.clear()
    forged(world, kink.TgtRep(tgt_of(world, "laptop")), MessageType.CREATE)
    assert not world["alice"].fetched
    world = people(ALICE, replace(BOB, user_to_user=UserToUser.NEVER))
    world.acquire("alice", "bob")
    world.wire.clear()
    world["alice"].fetched.clear()
    forged(world, kink.TgtRep(tgt_of(world, "bob")), MessageType.CREATE)
    assert not world["alice"].fetched


def test_a_tgt_is_at_hand_before_anyone_asks_and_only_where_it_is_given_out() -> None:
    world = people()
    world.settle()
    assert world["laptop"].fetched == [FetchTgt()]
    assert not world["alice"].fetched


def test_after_all_is_over_nothing_of_it_is_kept() -> None:
    world = people()
    world.acquire("alice", "laptop")
    world.run(TRANSACTION_SECONDS + 1, pass_on=lambda _: [])
    world.run(1000, pass_on=lambda _: [])
    asking = world["alice"].endpoint._initiator.tickets.asking
    assert not asking._by_peer
    assert not asking._by_xid
    world.pass_refresh()
    assert world["alice"].endpoint.timers == 1  # the next look at the kernel


@pytest.mark.parametrize("lost", range(4))
def test_whichever_message_is_lost_they_key(lost: int) -> None:
    world = people()
    count = iter(range(1000))
    lose: Callable[[Send], list[Send]] = lambda send: [] if next(count) == lost else [send]  # noqa: E731
    world.acquire("alice", "laptop")
    world.run(5.0, lose)
    assert_keyed(world, "alice", "laptop")
