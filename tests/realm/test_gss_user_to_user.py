"""User-to-user tickets from a real KDC, and credentials of persons (RFC 4430 §3.1)."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kinkd.errors import TicketRefused, TicketUnavailable, UserToUserRefused
from kinkd.kerberos import messages
from kinkd.kerberos.accepting import GssAcceptor
from kinkd.kerberos.gss import GssTicketSource
from kinkd.kerberos.messages import AP_OPTION_USE_SESSION_KEY
from kinkd.model import Principal
from tests.support.realm import Realm, RealmError
from tests.support.realm_pair import Pair, make_pair, use

JANE = Principal.parse("jane@EXAMPLE.TEST")


@dataclass
class Person:
    """Jane, who has typed her password: a credentials cache and no keytab."""

    pair: Pair
    ccache: str
    state: Path

    def source(self) -> GssTicketSource:
        return GssTicketSource(None, JANE, ccache=self.ccache)

    def acceptor(self) -> GssAcceptor:
        return GssAcceptor(None, f"file2:{self.state}/jane.rcache", 0.0)


@pytest.fixture(scope="module", params=[17, 18, 19, 20])
def realm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    directory = tmp_path_factory.mktemp("realm")
    with Realm(directory, etypes=(request.param,)) as realm:
        realm.add_person("jane", "secret")
        realm.add_person("mallory", "secret")
        yield make_pair(realm)


@pytest.fixture
def jane(realm: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Person:
    use(realm.realm, monkeypatch, tmp_path)
    ccache = f"FILE:{tmp_path}/jane"
    realm.realm.kinit("jane", "secret", ccache)
    return Person(realm, ccache, tmp_path)


def test_a_person_is_keyed_user_to_user(jane: Person) -> None:
    tgt = jane.source().tgt()
    assert (tgt.client, tgt.end > time.time()) == (JANE, True)
    acceptor = jane.acceptor()
    acceptor.add_tgt(tgt)
    ticket = jane.pair.source().fetch(JANE, tgt.ticket)
    assert (ticket.client, ticket.server) == (jane.pair.alice, JANE)
    authenticator = ticket.authenticate()
    asked = messages.read_ap_req(authenticator.ap_req)
    assert asked.ap_options & AP_OPTION_USE_SESSION_KEY
    opened = acceptor.open(authenticator.ap_req)
    assert (opened.client, opened.server, opened.user_to_user) == (jane.pair.alice, JANE, True)
    accepted = acceptor.accept(opened)
    assert messages.read_ap_rep(ticket.key, accepted.ap_rep) == (
        authenticator.ctime,
        authenticator.cusec,
    )
    assert opened.key.prf(b"both") == ticket.key.prf(b"both")


def test_a_replay_is_a_replay(jane: Person) -> None:
    acceptor, tgt = jane.acceptor(), jane.source().tgt()
    acceptor.add_tgt(tgt)
    ap_req = jane.pair.source().fetch(JANE, tgt.ticket).authenticate().ap_req
    acceptor.accept(acceptor.open(ap_req))
    with pytest.raises(TicketRefused) as refused:
        acceptor.accept(acceptor.open(ap_req))
    assert (refused.value.reason, refused.value.krb_error) == ("replay", None)


def test_tickets_under_a_tgt_of_before_are_opened_until_it_ends(jane: Person) -> None:
    acceptor, first = jane.acceptor(), jane.source().tgt()
    acceptor.add_tgt(first)
    ticket = jane.pair.source().fetch(JANE, first.ticket)
    jane.pair.realm.kinit("jane", "secret", jane.ccache)
    second = jane.source().tgt()
    assert second.ticket != first.ticket
    acceptor.add_tgt(second)
    assert acceptor.open(ticket.authenticate().ap_req).client == jane.pair.alice
    newer = jane.pair.source().fetch(JANE, second.ticket)
    assert acceptor.open(newer.authenticate().ap_req).client == jane.pair.alice
    other = jane.acceptor()  # in another life, which never saw the first
    other.add_tgt(second)
    with pytest.raises(UserToUserRefused) as refused:
        other.open(ticket.authenticate().ap_req)
    assert (refused.value.reason, refused.value.krb_error) == ("user-to-user-unknown-tgt", 31)


def test_a_tgt_that_has_ended_opens_nothing_and_its_key_is_overwritten(jane: Person) -> None:
    acceptor, tgt = jane.acceptor(), jane.source().tgt()
    ap_req = jane.pair.source().fetch(JANE, tgt.ticket).authenticate().ap_req
    short = replace(tgt, end=int(time.time()) + 1)
    acceptor.add_tgt(short)
    assert acceptor.open(ap_req).user_to_user
    time.sleep(2.2)
    with pytest.raises(UserToUserRefused):
        acceptor.open(ap_req)
    assert not any(short.key.value)


def test_a_service_ticket_finds_no_keytab_and_says_what_would_do(jane: Person) -> None:
    acceptor = jane.acceptor()
    acceptor.add_tgt(jane.source().tgt())
    service = jane.source().fetch(jane.pair.bob)  # a person asks a host in the usual way
    with pytest.raises(TicketRefused) as refused:
        acceptor.open(service.authenticate().ap_req)
    assert (refused.value.reason, refused.value.krb_error) == ("user-to-user-required", 69)


def test_no_key_of_one_kind_opens_a_ticket_of_the_other(jane: Person, tmp_path: Path) -> None:
    pair = jane.pair
    host = pair.acceptor(tmp_path)
    tgt = GssTicketSource(str(pair.bob_keytab), pair.bob).tgt()
    host.add_tgt(tgt)
    service = pair.source().fetch(pair.bob)
    direct = pair.source().fetch(pair.bob, tgt.ticket)
    assert host.open(service.authenticate().ap_req).user_to_user is False
    assert host.open(direct.authenticate().ap_req).user_to_user is True
    for ticket, other in ((service, True), (direct, False)):
        ap_req = messages.build_ap_req(
            ticket._ticket, ticket.key, ticket.client, int(time.time()), 1, user_to_user=other
        )
        with pytest.raises(TicketRefused):
            host.open(ap_req)


def test_the_kdc_does_not_take_the_tgt_of_somebody_else(jane: Person, tmp_path: Path) -> None:
    jane.pair.realm.kinit("mallory", "secret", f"FILE:{tmp_path}/mallory")
    mallory = Principal.parse("mallory@EXAMPLE.TEST")
    stolen = GssTicketSource(None, mallory, ccache=f"FILE:{tmp_path}/mallory").tgt()
    with pytest.raises(TicketUnavailable, match="is not that of jane") as unavailable:
        jane.pair.source().fetch(JANE, stolen.ticket)
    assert unavailable.value.code == 26


def test_what_is_no_tgt_is_refused_in_words(jane: Person) -> None:
    service = jane.pair.source().fetch(jane.pair.bob)._ticket
    for junk in (service, b"", b"junk"):
        with pytest.raises(TicketUnavailable):
            jane.pair.source().fetch(JANE, junk)


def test_a_kdc_that_wants_user_to_user_says_so_by_its_code(jane: Person) -> None:
    pair = jane.pair
    name = "kink/direct.example.test"
    pair.realm.add(name, attributes=("-allow_svr",))
    with pytest.raises(TicketUnavailable, match='write user_to_user = "allowed"') as unavailable:
        pair.source().fetch(Principal.parse(f"{name}@EXAMPLE.TEST"))
    assert unavailable.value.code == 27


# --- credentials caches -----------------------------------------------------------------------


def test_a_person_asks_a_host_in_the_usual_way(jane: Person, tmp_path: Path) -> None:
    ticket = jane.source().fetch(jane.pair.bob)
    host = jane.pair.acceptor(tmp_path)
    opened = host.open(ticket.authenticate().ap_req)
    assert opened.client == JANE
    host.accept(opened)


def test_a_collection_of_caches_will_do(jane: Person, tmp_path: Path) -> None:
    (tmp_path / "caches").mkdir(mode=0o700)
    ccache = f"DIR:{tmp_path}/caches"
    jane.pair.realm.kinit("jane", "secret", ccache)
    assert GssTicketSource(None, JANE, ccache=ccache).fetch(jane.pair.bob).client == JANE


def test_the_kernel_keeps_caches_too(jane: Person) -> None:
    ccache = "KEYRING:user:kinkd-test"
    try:
        jane.pair.realm.kinit("jane", "secret", ccache)
    except RealmError as error:
        pytest.skip(f"no keyrings for processes here, as in many containers: {error}")
    try:
        assert GssTicketSource(None, JANE, ccache=ccache).fetch(jane.pair.bob).client == JANE
    finally:
        subprocess.run(["kdestroy", "-q", "-c", ccache], check=True)
    with pytest.raises(TicketUnavailable, match="run kinit jane"):
        GssTicketSource(None, JANE, ccache=ccache).fetch(jane.pair.bob)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("FILE:{}/missing", "run kinit jane@EXAMPLE.TEST"),
        ("NONSENSE:x", "Unknown credential cache type"),
        ("KCM:", "credentials cache"),
    ],
)
def test_a_cache_that_is_not_there_is_one_line(
    jane: Person, tmp_path: Path, name: str, words: str
) -> None:
    source = GssTicketSource(None, JANE, ccache=name.format(tmp_path))
    for attempt in (lambda: source.fetch(jane.pair.bob), source.tgt):
        with pytest.raises(TicketUnavailable, match=words) as unavailable:
            attempt()
        assert "\n" not in str(unavailable.value)


def test_a_cache_of_somebody_else_is_refused(jane: Person) -> None:
    jane.pair.realm.kinit("mallory", "secret", jane.ccache)
    with pytest.raises(TicketUnavailable, match=r"is that of mallory@EXAMPLE\.TEST: run kinit"):
        jane.source().fetch(jane.pair.bob)


def test_a_cache_whose_tgt_has_ended_is_told_before_the_kdc_is_asked(jane: Person) -> None:
    jane.pair.realm.kinit("jane", "secret", jane.ccache, "-l", "1s")
    time.sleep(1.1)
    with pytest.raises(TicketUnavailable, match=r"TGT of jane.* has ended: run kinit jane"):
        jane.source().fetch(jane.pair.bob)
