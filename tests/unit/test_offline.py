"""Kerberos without libkrb5: what is accepted, and under which name and code the rest is refused."""

from __future__ import annotations

import pytest

from kinkd.errors import TicketRefused, TicketUnavailable
from kinkd.kerberos import etypes, messages
from kinkd.kerberos.keytab import KeytabEntry, read_keytab
from kinkd.kerberos.messages import EncTicket
from kinkd.kerberos.offline import OfflineAcceptor, OfflineTicket, OfflineTicketSource
from kinkd.kerberos.port import Acceptor, Ticket, TicketSource
from kinkd.model import Principal, Secret
from tests.support import recorded_kerberos as recorded

ALICE = Principal(("kink", "alice.example.test"), "EXAMPLE.TEST")
BOB = Principal(("kink", "bob.example.test"), "EXAMPLE.TEST")
CAROL = Principal(("kink", "carol.example.test"), "EXAMPLE.TEST")
NOW = 1_800_000_000


class World:
    """One service with a keytab, and a KDC for it, under a clock that tests set."""

    def __init__(self, etype: int = 18, kvno: int = 3) -> None:
        self.now: float = NOW
        self.key = etypes.random_key(etype)
        self.entry = KeytabEntry(BOB, kvno, etype, self.key.secret)
        self.acceptor = OfflineAcceptor([self.entry], lambda: self.now)
        self.kdc: TicketSource = self.kdc_of(self.key, kvno)

    def kdc_of(self, key: etypes.Key, kvno: int = 3, etype: int = 18) -> OfflineTicketSource:
        return OfflineTicketSource(ALICE, {BOB: (kvno, key)}, lambda: self.now, etype)

    def refusal(self, ap_req: bytes, acceptor: Acceptor | None = None) -> tuple[str, int | None]:
        judge = acceptor or self.acceptor
        with pytest.raises(TicketRefused) as refused:
            judge.accept(judge.open(ap_req))
        return refused.value.reason, refused.value.krb_error


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("service", sorted(etypes.SUPPORTED))
@pytest.mark.parametrize("session", sorted(etypes.SUPPORTED))
def test_a_minted_ticket_is_accepted_and_its_ap_rep_matches(service: int, session: int) -> None:
    world = World(service)
    ticket: Ticket = world.kdc_of(world.key, etype=session).fetch(BOB)
    made = ticket.authenticate()
    opened = world.acceptor.open(made.ap_req)
    assert (opened.client, opened.server, opened.key.etype) == (ALICE, BOB, session)
    assert (opened.start, opened.end, opened.octets) == (NOW, NOW + 36000, ticket.octets)
    assert opened.key.prf(b"same key") == ticket.key.prf(b"same key")
    accepted = world.acceptor.accept(opened)
    assert messages.read_ap_rep(ticket.key, accepted.ap_rep) == (made.ctime, made.cusec)


@pytest.mark.parametrize("name", ["esp2way", "esp2way-etype17"])
def test_recorded_ap_reqs_are_accepted_at_their_time(name: str) -> None:
    acceptor = OfflineAcceptor(read_keytab(recorded.keytab(name)), lambda: 1795421240)
    opened = acceptor.open(recorded.exchange(name)[0].kerberos)
    accepted = acceptor.accept(opened)
    recorded_reply = recorded.exchange(name)[1].kerberos
    assert messages.read_ap_rep(opened.key, recorded_reply) == (accepted.ctime, accepted.cusec)


@pytest.mark.rfc("4430-9-5")
def test_no_two_authenticators_share_their_time(world: World) -> None:
    ticket = world.kdc.fetch(BOB)
    made = [ticket.authenticate() for _ in range(50)]
    assert len({(each.ctime, each.cusec) for each in made}) == 50
    for each in made:
        world.acceptor.accept(world.acceptor.open(each.ap_req))


def test_a_replay_is_refused_in_silence(world: World) -> None:
    ap_req = world.kdc.fetch(BOB).authenticate().ap_req
    world.acceptor.accept(world.acceptor.open(ap_req))
    assert world.refusal(ap_req) == ("replay", None)
    world.now += 299
    assert world.refusal(ap_req) == ("replay", None)
    world.now += 3
    assert world.refusal(ap_req) == ("clock-skew", 37)


def test_opening_twice_burns_nothing(world: World) -> None:
    ap_req = world.kdc.fetch(BOB).authenticate().ap_req
    world.acceptor.open(ap_req)
    world.acceptor.accept(world.acceptor.open(ap_req))


def test_a_full_replay_table_refuses_until_its_entries_end(world: World) -> None:
    acceptor = OfflineAcceptor([world.entry], lambda: world.now, replays=2)
    ticket = world.kdc.fetch(BOB)
    for _ in range(2):
        acceptor.accept(acceptor.open(ticket.authenticate().ap_req))
    assert world.refusal(ticket.authenticate().ap_req, acceptor) == ("replay", None)
    world.now += 302
    acceptor.accept(acceptor.open(ticket.authenticate().ap_req))


@pytest.mark.rfc("4430-3.5-2")
@pytest.mark.parametrize("offset", [-600, -302, 302, 600])
def test_a_clock_beyond_the_skew_is_refused(world: World, offset: int) -> None:
    ap_req = world.kdc.fetch(BOB).authenticate().ap_req
    world.now += offset
    reasons = {("clock-skew", 37)} if offset > 0 else {("ticket-not-yet-valid", 33)}
    assert world.refusal(ap_req) in reasons


def test_an_early_authenticator_under_a_valid_ticket_is_skew(world: World) -> None:
    ticket = world.kdc.fetch(BOB)
    world.now += 1000
    ap_req = ticket.authenticate().ap_req
    world.now -= 600
    assert world.refusal(ap_req) == ("clock-skew", 37)


def test_ends_of_a_ticket_are_kept_within_the_skew(world: World) -> None:
    ticket = world.kdc.fetch(BOB)
    world.now = NOW + 36000 + 300
    world.acceptor.accept(world.acceptor.open(ticket.authenticate().ap_req))
    world.now += 1
    assert world.refusal(ticket.authenticate().ap_req) == ("ticket-expired", 32)


def test_keys_that_do_not_fit_are_told_apart(world: World) -> None:
    wrong = world.kdc_of(etypes.random_key(18)).fetch(BOB)
    assert world.refusal(wrong.authenticate().ap_req) == ("ticket-bad-integrity", 31)
    older = world.kdc_of(world.key, kvno=2).fetch(BOB)
    assert world.refusal(older.authenticate().ap_req) == ("ticket-wrong-kvno", 44)
    other = world.kdc_of(etypes.random_key(20)).fetch(BOB)
    assert world.refusal(other.authenticate().ap_req) == ("ticket-no-key", 45)


def test_any_key_of_the_keytab_will_do_whatever_the_ticket_names(world: World) -> None:
    decoy = KeytabEntry(BOB, 3, 18, etypes.random_key(18).secret)
    theirs = KeytabEntry(CAROL, 3, 18, world.key.secret)
    old = KeytabEntry(BOB, 3, 23, Secret(bytes(16)))
    acceptor = OfflineAcceptor([old, decoy, theirs], lambda: world.now)
    acceptor.accept(acceptor.open(world.kdc.fetch(BOB).authenticate().ap_req))


def forged(world: World, **changes: object) -> OfflineTicket:
    session = etypes.random_key(18)
    fields: dict[str, object] = {
        "client": ALICE,
        "session_etype": 18,
        "session_key": Secret(session.secret.value),
        "flags": 0,
        "authtime": NOW,
        "start": NOW,
        "end": NOW + 100,
    }
    part = EncTicket(**(fields | changes))  # type: ignore[arg-type]
    raw = messages.build_ticket(BOB, 3, world.key, part)
    return OfflineTicket(raw, session, ALICE, BOB, part.end, lambda: world.now)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"session_etype": 23, "session_key": Secret(bytes(16))}, ("weak-session-key", 14)),
        ({"session_key": Secret(bytes(5))}, ("malformed-kerberos", 40)),
        ({"client": CAROL}, ("client-mismatch", 36)),
        ({"flags": messages.TICKET_FLAG_INVALID}, ("ticket-not-yet-valid", 33)),
        ({"start": NOW + 301, "end": NOW + 400}, ("ticket-not-yet-valid", 33)),
        ({"end": NOW - 301}, ("ticket-expired", 32)),
        ({"session_key": Secret(bytes(32))}, ("ticket-bad-integrity", 31)),
    ],
)
def test_a_genuine_ticket_can_still_be_refused(
    world: World, changes: dict[str, object], refusal: tuple[str, int]
) -> None:
    assert world.refusal(forged(world, **changes).authenticate().ap_req) == refusal


def test_what_is_no_ap_req_is_refused_by_name(world: World) -> None:
    for octets in (b"", b"\0" * 40, messages.build_ap_rep(world.key, 1, 2)):
        assert world.refusal(octets) == ("malformed-kerberos", 40)


def test_an_unknown_service_has_no_ticket(world: World) -> None:
    with pytest.raises(TicketUnavailable, match="carol"):
        world.kdc.fetch(CAROL)


def test_each_ticket_has_a_session_key_of_its_own(world: World) -> None:
    first, second = world.kdc.fetch(BOB), world.kdc.fetch(BOB)
    assert first.key.prf(b"") != second.key.prf(b"")
    assert str(ALICE) in repr(first)
