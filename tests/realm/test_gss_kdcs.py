"""KDCs that are down, slow or lying, and those of other realms: tickets, or one line why not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from kinkd.errors import TicketRefused, TicketUnavailable
from kinkd.kerberos.accepting import GssAcceptor
from kinkd.kerberos.gss import GssTicketSource
from kinkd.kerberos.libkrb5 import MemoryKeytab
from kinkd.model import Principal
from tests.support.realm import Realm, connect, free_port
from tests.support.realm_pair import Pair, use

Answer = Callable[[bytes, bytes], list[bytes]]
"""From a request and the KDC's answer to it to what is sent back."""


@contextmanager
def between(realm: Realm, answer: Answer) -> Iterator[None]:
    """Somebody between the hosts and the KDC, on UDP; TCP is closed."""
    port = free_port(realm.address)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as front,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as back,
    ):
        front.bind((realm.address, port))
        front.settimeout(0.1)
        back.connect((realm.address, realm.port))
        back.settimeout(2)
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                try:
                    request, source = front.recvfrom(65535)
                    back.send(request)
                    for datagram in answer(request, back.recv(65535)):
                        front.sendto(datagram, source)
                except TimeoutError:
                    continue

        thread = threading.Thread(target=work)
        thread.start()
        before = realm.config.read_text()
        realm.config.write_text(before.replace(realm.server, f"{realm.address}:{port}"))
        try:
            yield
        finally:
            realm.config.write_text(before)
            over.set()
            thread.join()


def unavailable(source: GssTicketSource, server: Principal) -> str:
    """Why there is no ticket: one line, and no other exception."""
    with pytest.raises(TicketUnavailable) as raised:
        source.fetch(server)
    text = str(raised.value)
    assert "\n" not in text
    assert str(server) in text or "KDC" in text or "credentials" in text, text
    return text


def test_of_several_kdcs_the_next_is_asked(own_pair: Pair) -> None:
    realm = own_pair.realm
    dead = f"{realm.address}:{free_port(realm.address)}"
    text = realm.config.read_text()
    entry = f"kdc = {realm.server}"
    realm.config.write_text(text.replace(entry, f"kdc = {dead}\n        {entry}"))
    assert own_pair.source().fetch(own_pair.bob).server == own_pair.bob


def test_of_several_kdcs_a_silent_one_is_not_waited_for_to_the_end(own_pair: Pair) -> None:
    realm = own_pair.realm
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((realm.address, 0))
        silent.settimeout(5)
        text = realm.config.read_text()
        entry = f"kdc = {realm.server}"
        first = f"kdc = {realm.address}:{silent.getsockname()[1]}"
        realm.config.write_text(text.replace(entry, f"{first}\n        {entry}"))
        assert own_pair.source().fetch(own_pair.bob).server == own_pair.bob
        assert silent.recv(65535)  # it was asked


def test_a_slow_kdc_will_do(own_pair: Pair) -> None:
    def slow(_: bytes, answer: bytes) -> list[bytes]:
        time.sleep(1.5)
        return [answer]

    with between(own_pair.realm, slow):
        assert own_pair.source().fetch(own_pair.bob).server == own_pair.bob


def test_who_stands_between_and_does_nothing_is_not_noticed(own_pair: Pair) -> None:
    with between(own_pair.realm, lambda _, answer: [answer]):
        assert own_pair.source().fetch(own_pair.bob).server == own_pair.bob


@pytest.mark.parametrize(
    "junk", [b"", b"junk", bytes(2000), b"\x6b\x82\xff\xff", b"\x6b\x03\x30\x01\x00"]
)
def test_a_kdc_that_answers_junk_is_no_kdc(own_pair: Pair, junk: bytes) -> None:
    with between(own_pair.realm, lambda *_: [junk]):
        unavailable(own_pair.source(), own_pair.bob)


def test_answers_to_another_request_are_not_taken(own_pair: Pair) -> None:
    heard: list[bytes] = []

    def listen(_: bytes, answer: bytes) -> list[bytes]:
        heard.append(answer)
        return [answer]

    carol = Principal.parse(own_pair.realm.add("kink/carol.example.test"))
    with between(own_pair.realm, listen):
        own_pair.source().fetch(carol)
    answers = [each for each in heard if each[0] in (0x6B, 0x6D)]  # AS-REP, TGS-REP
    assert len(answers) == 2
    for replayed in answers:
        with between(own_pair.realm, lambda *_, old=replayed: [old]):  # type: ignore[misc]  # bound now
            unavailable(own_pair.source(), own_pair.bob)
    # The TGT is got in the right way, and the ticket is another one's.
    with between(own_pair.realm, lambda _, new: [answers[1] if new[0] == 0x6D else new]):
        unavailable(own_pair.source(), own_pair.bob)


def test_an_answer_that_was_changed_on_the_way_is_not_taken(own_pair: Pair) -> None:
    def changed(_: bytes, answer: bytes) -> list[bytes]:
        return [answer[:-20] + bytes([answer[-20] ^ 1]) + answer[-19:]]

    with between(own_pair.realm, changed):
        unavailable(own_pair.source(), own_pair.bob)


@pytest.mark.long
def test_a_kdc_that_never_answers_is_named(own_pair: Pair) -> None:
    with between(own_pair.realm, lambda *_: []):
        begun = time.monotonic()
        text = unavailable(own_pair.source(), own_pair.bob)
        print(f"libkrb5 gave up after {time.monotonic() - begun:.1f} s: {text}")
    assert "no KDC of EXAMPLE.TEST can be reached" in text


# --- other realms -----------------------------------------------------------------------------


class Row:
    """Realms in a row, each trusting the next, one host in each."""

    def __init__(self, directory: Path, *names: str) -> None:
        self.realms = [Realm(directory / name, name=name) for name in names]
        self.hosts: list[tuple[Principal, Path]] = []
        for realm in self.realms:
            realm.create()
            keytab = realm.directory / "keytab"
            service, _ = realm.add_host(f"host-{realm.name[0].lower()}", keytab)
            self.hosts.append((Principal.parse(service), keytab))
        for one, other in pairwise(self.realms):
            one.trust(other)
        connect(self.realms, (("A.TEST", "C.TEST", "B.TEST"),))
        for realm in self.realms:
            realm.start()

    def source(self, index: int) -> GssTicketSource:
        principal, keytab = self.hosts[index]
        return GssTicketSource(str(keytab), principal)


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Row]:
    """A, B and C: A and B trust each other, B and C do; hosts are A's."""
    made = Row(tmp_path, "A.TEST", "B.TEST", "C.TEST")
    use(made.realms[0], monkeypatch, tmp_path)
    try:
        yield made
    finally:
        for realm in made.realms:
            realm.stop()


@pytest.mark.parametrize("hops", [1, 2])
def test_a_client_keeps_its_realm_over_every_hop(row: Row, hops: int, tmp_path: Path) -> None:
    (client, _), (server, keytab) = row.hosts[0], row.hosts[hops]
    ticket = row.source(0).fetch(server)
    assert (ticket.client, ticket.server) == (client, server)
    acceptor = GssAcceptor(str(keytab), str(tmp_path / "rcache"), 0.0)
    opened = acceptor.open(ticket.authenticate().ap_req)
    acceptor.accept(opened)
    assert opened.client == client


def test_a_realm_that_nobody_trusts_is_one_line(row: Row) -> None:
    stranger = Principal.parse("kink/host-d.example.test@D.TEST")
    assert "D.TEST" in unavailable(row.source(0), stranger)
    row.realms[0].delete("krbtgt/B.TEST@A.TEST")
    assert "kink/host-b.example.test@B.TEST" in unavailable(row.source(0), row.hosts[1][0])


def test_the_kdc_of_the_other_realm_may_be_down(row: Row) -> None:
    row.realms[1].stop()
    text = unavailable(row.source(0), row.hosts[1][0])
    assert "no KDC of A.TEST or B.TEST can be reached" in text


def test_tgts_are_those_of_the_own_realm(row: Row) -> None:
    source = row.source(0)
    source.fetch(row.hosts[2][0])
    tgt = source.tgt()
    peer = GssTicketSource(str(row.hosts[1][1]), row.hosts[1][0])
    assert peer.fetch(row.hosts[0][0], tgt.ticket).server == row.hosts[0][0]  # user-to-user, too


def test_no_name_is_looked_up_whatever_krb5_conf_says(own_pair: Pair) -> None:
    """Principals are exact: no alias, no canonical host name of DNS comes in between."""
    text = own_pair.realm.config.read_text()
    changed = text.replace("dns_canonicalize_hostname = false", "dns_canonicalize_hostname = true")
    own_pair.realm.config.write_text(changed.replace("rdns = false", "rdns = true"))
    alias = Principal.parse(own_pair.realm.add("kink/localhost"))
    assert own_pair.source().fetch(alias).server == alias


# --- keys that changed ------------------------------------------------------------------------


def test_of_two_kvnos_both_are_accepted_while_both_are_there(
    own_pair: Pair, tmp_path: Path
) -> None:
    realm, bob = own_pair.realm, own_pair.bob
    old = own_pair.source().fetch(bob)
    acceptor = own_pair.acceptor(tmp_path)
    realm.change_key(str(bob))
    realm.write_keytab(own_pair.bob_keytab, str(bob))
    new = own_pair.source().fetch(bob)
    for ticket in (old, new, old):
        acceptor.accept(acceptor.open(ticket.authenticate().ap_req))
    own_pair.bob_keytab.unlink()
    realm.write_keytab(own_pair.bob_keytab, str(bob))
    time.sleep(1.1)
    acceptor.accept(acceptor.open(new.authenticate().ap_req))
    with pytest.raises(TicketRefused) as refused:  # a key that was taken away opens no more
        acceptor.open(old.authenticate().ap_req)
    assert refused.value.krb_error == 44


def test_a_keytab_that_is_gone_or_half_written_leaves_the_keys_of_before(
    own_pair: Pair, tmp_path: Path
) -> None:
    ticket = own_pair.source().fetch(own_pair.bob)
    acceptor = own_pair.acceptor(tmp_path)
    whole = own_pair.bob_keytab.read_bytes()
    for octets in (None, b"", whole[:30], whole):
        own_pair.bob_keytab.unlink(missing_ok=True)
        if octets is not None:
            own_pair.bob_keytab.write_bytes(octets)
        time.sleep(1.05)
        acceptor.accept(acceptor.open(ticket.authenticate().ap_req))


def test_a_keytab_that_is_of_no_use_is_read_once_and_not_for_every_bad_ticket(
    own_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acceptor = own_pair.acceptor(tmp_path)
    own_pair.realm.change_key(str(own_pair.bob))
    ticket = own_pair.source().fetch(own_pair.bob)  # of a key that is in no keytab
    own_pair.bob_keytab.write_bytes(own_pair.bob_keytab.read_bytes()[:30])
    reads: list[str] = []
    read = MemoryKeytab.read
    monkeypatch.setattr(MemoryKeytab, "read", lambda path: reads.append(path) or read(path))
    for _ in range(20):
        with pytest.raises(TicketRefused):
            acceptor.open(ticket.authenticate().ap_req)
    assert len(reads) == 1
    own_pair.bob_keytab.unlink()
    own_pair.realm.write_keytab(own_pair.bob_keytab, str(own_pair.bob))
    acceptor.open(ticket.authenticate().ap_req)  # at once


def test_a_ticket_in_rc4_with_a_session_key_in_aes_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Active Directory makes where nobody told it otherwise; krb5.conf must permit it."""
    with Realm(tmp_path / "realm", etypes=(18, 23)) as realm:
        use(realm, monkeypatch, tmp_path)
        alice_keytab, bob_keytab = tmp_path / "alice", tmp_path / "bob"
        alice = Principal.parse(realm.add("kink/alice.example.test", keytab=alice_keytab))
        bob = Principal.parse(realm.add("kink/bob.example.test", keytab=bob_keytab, etypes=(23,)))
        realm.set_session_etypes(str(bob), (18,))
        ticket = GssTicketSource(str(alice_keytab), alice).fetch(bob)
        assert ticket.key.etype == 18
        acceptor = GssAcceptor(str(bob_keytab), str(tmp_path / "rcache"), 0.0)
        ap_req = ticket.authenticate().ap_req
        acceptor.accept(acceptor.open(ap_req))
        text = realm.config.read_text()
        realm.config.write_text(text.replace(" arcfour-hmac", ""))
        strict = GssAcceptor(str(bob_keytab), str(tmp_path / "rcache"), 0.0)
        with pytest.raises(TicketRefused, match="permitted_enctypes"):
            strict.accept(strict.open(ticket.authenticate().ap_req))
