"""What the acceptor refuses, and by which name and code."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import LocalError, TicketRefused
from kinkd.kerberos import etypes, messages
from kinkd.kerberos.accepting import GssAcceptor
from kinkd.kerberos.gss import GssTicket
from kinkd.kerberos.local import principals
from kinkd.kerberos.port import Acceptor
from kinkd.model import Principal
from tests.support.realm import Realm
from tests.support.realm_pair import Pair, make_pair, use


def _refused(acceptor: Acceptor, ap_req: bytes) -> tuple[str, int | None]:
    with pytest.raises(TicketRefused) as refused:
        acceptor.accept(acceptor.open(ap_req))
    return refused.value.reason, refused.value.krb_error


def _ap_req(ticket: GssTicket, ctime: float, client: Principal | None = None) -> bytes:
    raw = messages.read_ap_req(ticket.authenticate().ap_req).ticket.raw
    return messages.build_ap_req(raw, ticket.key, client or ticket.client, int(ctime), 0)


def test_a_ticket_under_another_key_of_the_same_kvno_is_refused(
    own_pair: Pair, tmp_path: Path
) -> None:
    ticket = own_pair.source().fetch(own_pair.bob)
    own_pair.realm.delete(str(own_pair.bob))
    other = tmp_path / "other.keytab"
    own_pair.realm.add(str(own_pair.bob), keytab=other)
    acceptor = GssAcceptor(str(other), f"{tmp_path}/rcache", 0)
    with pytest.raises(TicketRefused) as refused:
        acceptor.open(ticket.authenticate().ap_req)
    assert (refused.value.reason, refused.value.krb_error) == ("ticket-bad-integrity", 31)


def test_a_ticket_of_a_kvno_that_is_not_here_is_refused_until_the_keytab_has_it(
    own_pair: Pair, tmp_path: Path
) -> None:
    acceptor = own_pair.acceptor(tmp_path)
    own_pair.realm.change_key(str(own_pair.bob))
    ap_req = own_pair.source().fetch(own_pair.bob).authenticate().ap_req
    assert _refused(acceptor, ap_req) == ("ticket-wrong-kvno", 44)
    own_pair.realm.write_keytab(own_pair.bob_keytab, str(own_pair.bob))
    acceptor.accept(acceptor.open(ap_req))
    assert {entry.kvno for entry in acceptor.entries} == {1, 2}


def test_a_ticket_for_a_service_that_has_no_key_here_is_refused(pair: Pair, tmp_path: Path) -> None:
    acceptor = GssAcceptor(str(pair.alice_keytab), f"{tmp_path}/rcache", 0)
    ap_req = pair.source().fetch(pair.bob).authenticate().ap_req
    assert _refused(acceptor, ap_req) == ("ticket-no-key", 45)


def test_a_session_key_that_kink_does_not_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Realm(tmp_path / "realm", etypes=(26,)) as realm:
        use(realm, monkeypatch, tmp_path)
        pair = make_pair(realm)
        acceptor = pair.acceptor(tmp_path)
        ap_req = _camellia_ap_req(pair)
    with pytest.raises(TicketRefused) as refused:
        acceptor.open(ap_req)
    assert (refused.value.reason, refused.value.krb_error) == ("weak-session-key", 14)


def _camellia_ap_req(pair: Pair) -> bytes:
    from gssapi import Credentials, Name, NameType, SecurityContext

    own = Name(str(pair.alice), NameType.kerberos_principal)
    creds = Credentials(name=own, usage="initiate", store={"client_keytab": str(pair.alice_keytab)})
    target = Name(str(pair.bob), NameType.kerberos_principal)
    token = SecurityContext(name=target, creds=creds, usage="initiate").step()
    assert token is not None
    return messages.gss_unframe(token)[1]


@pytest.mark.parametrize("offset", [-600, 600])
def test_a_clock_ten_minutes_off_is_refused(pair: Pair, tmp_path: Path, offset: int) -> None:
    ap_req = _ap_req(pair.source().fetch(pair.bob), time.time() + offset)
    assert _refused(pair.acceptor(tmp_path), ap_req) == ("clock-skew", 37)


def test_an_authenticator_from_before_the_replay_cache_is_refused_in_silence(
    pair: Pair, tmp_path: Path
) -> None:
    now = time.time()
    acceptor = pair.acceptor(tmp_path, birth=now)
    ticket = pair.source().fetch(pair.bob)
    assert _refused(acceptor, _ap_req(ticket, now - 5)) == ("before-replay-cache", None)
    acceptor.accept(acceptor.open(_ap_req(ticket, now + 5)))


def test_an_authenticator_of_another_client_is_refused(pair: Pair, tmp_path: Path) -> None:
    ticket = pair.source().fetch(pair.bob)
    ap_req = _ap_req(ticket, time.time(), client=pair.bob)
    assert _refused(pair.acceptor(tmp_path), ap_req) == ("client-mismatch", 36)


def test_an_expired_ticket_is_refused_on_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Realm(tmp_path / "realm", lifetime=2, clockskew=1) as realm:
        use(realm, monkeypatch, tmp_path)
        pair = make_pair(realm)
        ticket = pair.source().fetch(pair.bob)
        raw = messages.read_ap_req(ticket.authenticate().ap_req).ticket.raw
    while time.time() <= ticket.end + 2.1:  # libkrb5 asks time(2), whose clock may be a tick behind
        time.sleep(0.1)
    late = messages.build_ap_req(raw, ticket.key, ticket.client, int(time.time()), 0)
    assert _refused(pair.acceptor(tmp_path), late) == ("ticket-expired", 32)
    for offset in (0.0, 60.0):
        with pytest.raises(LocalError, match="expired"):
            ticket.authenticate(offset)


def _minted(pair: Pair, start: int, end: int) -> bytes:
    """An AP-REQ with a ticket that the KDC would not give: bob's key makes it."""
    from kinkd.kerberos.keytab import read_keytab

    entry = read_keytab(pair.bob_keytab.read_bytes())[0]
    session = etypes.random_key(18)
    part = messages.EncTicket(
        pair.alice, session.etype, session.secret, 0, int(time.time()), start, end
    )
    ticket = messages.build_ticket(pair.bob, entry.kvno, etypes.key(entry.etype, entry.key), part)
    return messages.build_ap_req(ticket, session, pair.alice, int(time.time()), 0)


def test_a_ticket_that_begins_later_is_refused(pair: Pair, tmp_path: Path) -> None:
    later = int(time.time()) + 3600
    ap_req = _minted(pair, later, later + 60)
    assert _refused(pair.acceptor(tmp_path), ap_req) == ("ticket-not-yet-valid", 33)


def test_octets_that_are_no_ap_req_are_refused(pair: Pair, tmp_path: Path) -> None:
    acceptor = pair.acceptor(tmp_path)
    genuine = pair.source().fetch(pair.bob).authenticate().ap_req
    for octets in (b"", b"\x6e", genuine[:-1], b"\x6f" + genuine[1:], genuine + b"\0"):
        assert _refused(acceptor, octets) == ("malformed-kerberos", 40)


def test_an_authenticator_of_another_etype_than_the_session_key_is_not_genuine(
    pair: Pair, tmp_path: Path
) -> None:
    genuine = pair.source().fetch(pair.bob).authenticate().ap_req
    at = genuine.rindex(bytes((0xA0, 3, 2, 1, 18)))  # of the authenticator: the last etype
    changed = genuine[: at + 4] + bytes((17,)) + genuine[at + 5 :]
    assert _refused(pair.acceptor(tmp_path), changed) == ("ticket-bad-integrity", 31)


@given(data=st.data())
def test_any_one_bit_changed_is_refused_by_name(
    shared_pair: Pair, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use(shared_pair.realm, patch, tmp_path_factory.getbasetemp())
        acceptor, genuine = _bit_flips(shared_pair, tmp_path_factory)
        position = data.draw(st.integers(0, 65535)) % (len(genuine) * 8)
        changed = bytearray(genuine)
        changed[position // 8] ^= 1 << position % 8
        try:
            acceptor.accept(acceptor.open(bytes(changed)))
        except TicketRefused as refused:
            assert refused.reason not in {"ticket-refused", "replay-cache-unusable"}  # noqa: PT017
        else:
            # Outside of what is encrypted stand flags and names that no key protects.
            before, after = map(messages.read_ap_req, (genuine, bytes(changed)))
            assert before.ticket.cipher == after.ticket.cipher
            assert before.authenticator_cipher == after.authenticator_cipher


_made: dict[str, tuple[GssAcceptor, GssTicket]] = {}


def _bit_flips(pair: Pair, factory: pytest.TempPathFactory) -> tuple[GssAcceptor, bytes]:
    if "made" not in _made:
        acceptor = pair.acceptor(factory.mktemp("flips"))
        _made["made"] = (acceptor, pair.source().fetch(pair.bob))
    acceptor, ticket = _made["made"]
    return acceptor, ticket.authenticate().ap_req


def test_a_keytab_that_cannot_be_used_is_a_local_error_that_names_it(tmp_path: Path) -> None:
    missing = tmp_path / "missing.keytab"
    with pytest.raises(LocalError, match=r"missing\.keytab does not exist"):
        GssAcceptor(str(missing), f"{tmp_path}/rcache", 0)
    garbage = tmp_path / "garbage.keytab"
    garbage.write_bytes(b"no keytab at all")
    with pytest.raises(LocalError, match=r"garbage\.keytab cannot be used"):
        GssAcceptor(str(garbage), f"{tmp_path}/rcache", 0)
    empty = tmp_path / "empty.keytab"
    empty.write_bytes(b"\x05\x02")
    with pytest.raises(LocalError, match=r"empty\.keytab holds no key"):
        GssAcceptor(str(empty), f"{tmp_path}/rcache", 0)


def test_a_replay_cache_that_cannot_be_written_is_a_local_error(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="make the directory"):
        GssAcceptor(str(pair.bob_keytab), f"{tmp_path}/missing/rcache", 0)
    if os.geteuid() == 0:  # whom no mode stops; /proc does
        with pytest.raises(LocalError, match="not writable"):
            GssAcceptor(str(pair.bob_keytab), "/proc/self/task/rcache", 0)
    else:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(LocalError, match="not writable"):
            GssAcceptor(str(pair.bob_keytab), f"{tmp_path}/closed/rcache", 0)


def test_a_replay_cache_that_breaks_later_accepts_nothing(pair: Pair, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    acceptor = pair.acceptor(state)
    state.rmdir()
    ap_req = pair.source().fetch(pair.bob).authenticate().ap_req
    assert _refused(acceptor, ap_req) == ("replay-cache-unusable", None)


def test_reload_reads_a_changed_keytab_once_and_keeps_its_keys_where_it_is_gone(
    pair: Pair, tmp_path: Path
) -> None:
    keytab = tmp_path / "bob.keytab"
    shutil.copy(pair.bob_keytab, keytab)
    acceptor = GssAcceptor(str(keytab), f"{tmp_path}/rcache", 0)
    ticket = pair.source().fetch(pair.bob)
    assert not acceptor.reload()
    acceptor.open(ticket.authenticate().ap_req)
    shutil.copy(pair.alice_keytab, keytab)
    assert acceptor.reload()
    assert not acceptor.reload()
    assert _refused(acceptor, ticket.authenticate().ap_req) == ("ticket-no-key", 45)
    keytab.unlink()
    with pytest.raises(LocalError, match="does not exist"):
        acceptor.reload()
    assert [entry.principal for entry in acceptor.entries] == [pair.alice]


def test_principals_lists_each_name_of_a_keytab_once(own_pair: Pair, tmp_path: Path) -> None:
    keytab = tmp_path / "both.keytab"
    own_pair.realm.write_keytab(keytab, str(own_pair.bob), str(own_pair.alice), str(own_pair.bob))
    assert principals(str(keytab)) == (own_pair.bob, own_pair.alice)
