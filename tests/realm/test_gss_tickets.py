"""Tickets from a real KDC, and what is said where there are none."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kinkd.errors import TicketUnavailable
from kinkd.kerberos.gss import GssTicketSource
from kinkd.model import Principal
from tests.support.realm import Realm
from tests.support.realm_pair import Pair, make_pair, use


class Clock:
    """A clock that stands ``offset`` seconds off the system's."""

    def __init__(self) -> None:
        self.offset = 0.0

    def __call__(self) -> float:
        return time.time() + self.offset


def _kdc_requests(realm: Realm, kind: str) -> int:
    return (realm.directory / "kdc.log").read_text().count(f"{kind} (")


def test_an_unreachable_kdc_is_named(own_pair: Pair) -> None:
    own_pair.realm.stop()
    with pytest.raises(TicketUnavailable, match=r"no KDC of EXAMPLE\.TEST can be reached"):
        own_pair.source().fetch(own_pair.bob)


def test_a_kdc_that_goes_away_after_the_first_ticket_is_named(own_pair: Pair) -> None:
    source = own_pair.source()
    source.fetch(own_pair.bob)
    own_pair.realm.stop()
    with pytest.raises(TicketUnavailable, match=r"no KDC of EXAMPLE\.TEST can be reached"):
        source.fetch(own_pair.bob)
    own_pair.realm.start()
    assert source.fetch(own_pair.bob).server == own_pair.bob


def test_an_unknown_service_is_named(pair: Pair) -> None:
    nobody = Principal.parse("kink/nobody.example.test@EXAMPLE.TEST")
    with pytest.raises(TicketUnavailable, match="does not know the service kink/nobody"):
        pair.source().fetch(nobody)


def test_an_unknown_client_is_named(own_pair: Pair) -> None:
    own_pair.realm.delete(str(own_pair.alice))
    with pytest.raises(TicketUnavailable, match="does not know kink/alice"):
        own_pair.source().fetch(own_pair.bob)


def test_a_realm_without_a_kdc_is_named(pair: Pair) -> None:
    elsewhere = Principal.parse("kink/alice.example.test@ELSEWHERE.TEST")
    with pytest.raises(TicketUnavailable, match=r"holds no key of .*ELSEWHERE"):
        GssTicketSource(str(pair.alice_keytab), elsewhere).fetch(pair.bob)


def test_a_missing_keytab_is_named(pair: Pair, tmp_path: Path) -> None:
    source = GssTicketSource(str(tmp_path / "missing.keytab"), pair.alice)
    with pytest.raises(TicketUnavailable, match=r"missing\.keytab does not exist"):
        source.fetch(pair.bob)


def test_a_wrong_key_in_the_keytab_is_named(own_pair: Pair) -> None:
    own_pair.realm.change_key(str(own_pair.alice))
    with pytest.raises(TicketUnavailable, match="is not the KDC's: write the keytab again"):
        own_pair.source().fetch(own_pair.bob)


def test_a_wrong_key_is_named_where_the_kdc_demands_preauthentication(
    own_pair: Pair, tmp_path: Path
) -> None:
    keytab = tmp_path / "carol.keytab"
    carol = own_pair.realm.add("carol", keytab=keytab, attributes=["+requires_preauth"])
    source = GssTicketSource(str(keytab), Principal.parse(carol))
    source.fetch(own_pair.bob)
    own_pair.realm.change_key(carol)
    with pytest.raises(TicketUnavailable, match="is not the KDC's: write the keytab again"):
        GssTicketSource(str(keytab), Principal.parse(carol)).fetch(own_pair.bob)


def test_a_session_key_that_kink_does_not_use_is_named_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Realm(tmp_path / "realm", etypes=(26, 18)) as realm:
        use(realm, monkeypatch, tmp_path)
        pair = make_pair(realm)
        with pytest.raises(TicketUnavailable, match=r"etype 26.*session_enctypes"):
            pair.source().fetch(pair.bob)
        realm.set_session_etypes(str(pair.bob), (18,))
        assert pair.source().fetch(pair.bob).key.etype == 18


def test_one_tgt_serves_many_threads_and_a_new_one_follows_at_half_its_life(
    own_pair: Pair,
) -> None:
    clock = Clock()
    source = GssTicketSource(str(own_pair.alice_keytab), own_pair.alice, clock)
    with ThreadPoolExecutor(8) as pool:
        tickets = list(pool.map(source.fetch, [own_pair.bob] * 32))
    assert len({ticket.key.prf(b"") for ticket in tickets}) == 32
    assert _kdc_requests(own_pair.realm, "AS_REQ") == 1
    clock.offset = 19000  # of 36000
    first = source.fetch(own_pair.bob)
    assert _kdc_requests(own_pair.realm, "AS_REQ") == 2
    assert first.authenticate().ap_req != tickets[0].authenticate().ap_req


def test_a_keytab_that_vanishes_does_not_end_a_tgt_that_is_good(own_pair: Pair) -> None:
    clock = Clock()
    source = GssTicketSource(str(own_pair.alice_keytab), own_pair.alice, clock)
    source.fetch(own_pair.bob)
    own_pair.alice_keytab.unlink()
    clock.offset = 19000
    assert source.fetch(own_pair.bob).server == own_pair.bob
    clock.offset = 37000
    with pytest.raises(TicketUnavailable, match="does not exist"):
        source.fetch(own_pair.bob)


def test_a_kdc_with_a_new_key_of_its_own_costs_one_more_tgt_and_no_error(own_pair: Pair) -> None:
    source = own_pair.source()
    source.fetch(own_pair.bob)
    own_pair.realm.change_key("krbtgt/EXAMPLE.TEST@EXAMPLE.TEST")
    assert source.fetch(own_pair.bob).server == own_pair.bob
    assert _kdc_requests(own_pair.realm, "AS_REQ") == 2


def test_a_persons_ticket_is_used_and_their_ccache_left_as_it_was(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = GssTicketSource(None, pair.alice)
    with pytest.raises(TicketUnavailable, match="No credentials cache"):
        source.fetch(pair.bob)
    ccache = tmp_path / "ccache"
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{ccache}")
    subprocess.run(["kinit", "-k", "-t", str(pair.alice_keytab), str(pair.alice)], check=True)
    before = ccache.read_bytes()
    assert source.fetch(pair.bob).client == pair.alice
    assert ccache.read_bytes() == before
    with pytest.raises(TicketUnavailable, match="run kinit kink/bob"):
        GssTicketSource(None, pair.bob).fetch(pair.alice)


def test_no_ccache_is_left_on_disk(pair: Pair, tmp_path: Path) -> None:
    pair.source().fetch(pair.bob)
    assert not (tmp_path / "no-ccache").exists()
