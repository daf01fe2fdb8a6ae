"""Two hosts authenticate each other through a real KDC, and share a session key."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from kinkd.errors import TicketRefused
from kinkd.kerberos import messages
from kinkd.kerberos.accepting import GssAcceptor
from kinkd.kerberos.gss import GssTicket
from kinkd.kerberos.port import OpenedTicket
from kinkd.model import Principal
from tests.support.realm import Realm
from tests.support.realm_pair import Pair, make_pair, use


def _same_key(ticket: GssTicket, opened: OpenedTicket) -> bool:
    return opened.key.prf(b"nonce") == ticket.key.prf(b"nonce") and opened.key.verify(
        40, b"message", ticket.key.checksum(40, b"message")
    )


def _plain(ticket: GssTicket, ctime: float) -> bytes:
    """An AP-REQ as krb5_mk_req makes it, without GSS checksum."""
    raw = messages.read_ap_req(ticket.authenticate().ap_req).ticket.raw
    return messages.build_ap_req(raw, ticket.key, ticket.client, int(ctime), int(ctime % 1 * 1e6))


@pytest.mark.rfc("4430-4.2.1-1")
@pytest.mark.parametrize("etype", [17, 18, 19, 20])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_two_hosts_share_the_session_key_of_a_ticket(
    etype: int, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Realm(tmp_path / "realm", etypes=(etype,), address=address) as realm:
        use(realm, monkeypatch, tmp_path)
        pair = make_pair(realm)
        ticket = pair.source().fetch(pair.bob)
        sent = ticket.authenticate()
        acceptor = pair.acceptor(tmp_path)
        opened = acceptor.open(sent.ap_req)
        accepted = acceptor.accept(opened)

    assert (ticket.key.etype, opened.key.etype) == (etype, etype)
    assert _same_key(ticket, opened)
    assert (opened.client, opened.server) == (pair.alice, pair.bob)
    assert (ticket.client, ticket.server) == (pair.alice, pair.bob)
    assert opened.start <= time.time() < opened.end == ticket.end
    assert opened.octets == ticket.octets
    assert (accepted.ctime, accepted.cusec) == (sent.ctime, sent.cusec)
    assert messages.read_ap_rep(ticket.key, accepted.ap_rep) == (sent.ctime, sent.cusec)
    options = messages.read_ap_req(sent.ap_req).ap_options
    assert options & messages.AP_OPTION_MUTUAL_REQUIRED


def test_a_service_key_of_another_etype_is_no_obstacle_to_an_aes_session_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Realm(tmp_path / "realm", etypes=(18, 26)) as realm:
        use(realm, monkeypatch, tmp_path)
        pair = make_pair(realm)
        keytab = tmp_path / "carol.keytab"
        carol = Principal.parse(realm.add("carol", etypes=(26,), keytab=keytab))
        realm.set_session_etypes(str(carol), (18,))
        ticket = pair.source().fetch(carol)
    ap_req = ticket.authenticate().ap_req
    acceptor = GssAcceptor(str(keytab), f"{tmp_path}/rcache", 0)
    opened = acceptor.open(ap_req)
    acceptor.accept(opened)
    assert (messages.read_ap_req(ap_req).ticket.etype, opened.key.etype) == (26, 18)
    assert _same_key(ticket, opened)


@pytest.mark.rfc("4430-9-5")
def test_each_authenticator_is_a_new_one_under_the_same_ticket(pair: Pair, tmp_path: Path) -> None:
    ticket, acceptor = pair.source().fetch(pair.bob), pair.acceptor(tmp_path)
    sent = [ticket.authenticate() for _ in range(20)]
    assert len({(each.ctime, each.cusec) for each in sent}) == 20
    assert len({messages.read_ap_req(each.ap_req).ticket.raw for each in sent}) == 1
    for each in sent:
        acceptor.accept(acceptor.open(each.ap_req))


def test_an_ap_req_without_gss_checksum_is_accepted_and_answered(
    pair: Pair, tmp_path: Path
) -> None:
    ticket, acceptor, now = pair.source().fetch(pair.bob), pair.acceptor(tmp_path), time.time()
    accepted = acceptor.accept(acceptor.open(_plain(ticket, now)))
    assert accepted.ctime == int(now)
    assert messages.read_ap_rep(ticket.key, accepted.ap_rep) == (accepted.ctime, accepted.cusec)


@pytest.mark.parametrize("plain", [False, True])
def test_a_replay_is_refused_in_silence(pair: Pair, tmp_path: Path, plain: bool) -> None:
    ticket, acceptor = pair.source().fetch(pair.bob), pair.acceptor(tmp_path)
    ap_req = _plain(ticket, time.time()) if plain else ticket.authenticate().ap_req
    acceptor.accept(acceptor.open(ap_req))
    with pytest.raises(TicketRefused) as refused:
        acceptor.accept(acceptor.open(ap_req))
    assert (refused.value.reason, refused.value.krb_error) == ("replay", None)


_ACCEPT = """
import sys
from kinkd.errors import TicketRefused
from kinkd.kerberos.accepting import GssAcceptor
acceptor = GssAcceptor(sys.argv[1], sys.argv[2], 0)
try:
    acceptor.accept(acceptor.open(bytes.fromhex(sys.argv[3])))
    print("accepted")
except TicketRefused as refused:
    print(refused.reason)
"""


def test_the_replay_cache_outlives_the_process(pair: Pair, tmp_path: Path) -> None:
    ap_req = pair.source().fetch(pair.bob).authenticate().ap_req.hex()
    command = [sys.executable, "-c", _ACCEPT, pair.bob_keytab, tmp_path / "rcache", ap_req]
    root = Path(__file__).parents[2]
    said = [
        subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert said == ["accepted", "replay"]


def test_opening_alone_leaves_the_replay_cache_untouched(pair: Pair, tmp_path: Path) -> None:
    acceptor = pair.acceptor(tmp_path)
    ap_req = pair.source().fetch(pair.bob).authenticate().ap_req
    for _ in range(3):
        opened = acceptor.open(ap_req)
    assert not (tmp_path / "rcache").exists()
    acceptor.accept(opened)
    assert (tmp_path / "rcache").stat().st_mode & 0o077 == 0


def test_accepting_and_authenticating_go_on_without_a_kdc(own_pair: Pair, tmp_path: Path) -> None:
    ticket, acceptor = own_pair.source().fetch(own_pair.bob), own_pair.acceptor(tmp_path)
    own_pair.realm.stop()
    accepted = acceptor.accept(acceptor.open(ticket.authenticate().ap_req))
    assert messages.read_ap_rep(ticket.key, accepted.ap_rep) == (accepted.ctime, accepted.cusec)


def test_a_pinned_ticket_keeps_its_key_beside_a_new_generation(pair: Pair, tmp_path: Path) -> None:
    source, acceptor = pair.source(), pair.acceptor(tmp_path)
    old = source.fetch(pair.bob)
    before = old.key.prf(b"nonce")
    new = source.fetch(pair.bob)
    assert new.key.prf(b"nonce") != before
    opened = acceptor.open(old.authenticate().ap_req)
    assert _same_key(old, opened)
    assert opened.key.prf(b"nonce") == before
    acceptor.accept(opened)
    acceptor.accept(acceptor.open(new.authenticate().ap_req))


def test_no_repr_shows_a_key_or_a_ticket(pair: Pair, tmp_path: Path) -> None:
    ticket, acceptor = pair.source().fetch(pair.bob), pair.acceptor(tmp_path)
    sent = ticket.authenticate()
    opened = acceptor.open(sent.ap_req)
    shown = "".join(map(repr, (ticket, sent, opened, acceptor.accept(opened), acceptor.entries)))
    assert "\\x" not in shown
    assert "bytearray" not in shown
