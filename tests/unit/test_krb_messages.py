"""The Kerberos messages of KINK: recorded ones read, ours built and read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import PeerError
from kinkd.kerberos import der, etypes, messages
from kinkd.kerberos.messages import KRB_ERROR_NAMES, Usage
from kinkd.model import Principal
from tests.support import recorded_kerberos as recorded

ALICE = Principal(("kink", "alice.kink.test"), "KINK.TEST")
BOB = Principal(("kink", "bob.kink.test"), "KINK.TEST")
SESSION = bytes.fromhex("d4ddbbf132a9e4a524d13f1a4942e212ec07a21bd23ff5877d8937fbc14e200c")
CTIME, CUSEC = 1795421229, 121248
SECONDS = st.integers(0, 253402300799)
MICROSECONDS = st.integers(0, 999_999)


@pytest.mark.rfc("4430-4.2.1-1")
def test_a_recorded_ap_req_is_read() -> None:
    request = messages.read_ap_req(recorded.exchange("esp2way")[0].kerberos)
    assert request.ap_options == messages.AP_OPTION_MUTUAL_REQUIRED
    assert (request.ticket.sname, request.ticket.realm) == (BOB, "KINK.TEST")
    assert (request.ticket.etype, request.ticket.kvno, request.authenticator_etype) == (18, 1, 18)
    plain = etypes.key(18, SESSION).decrypt(
        Usage.AP_REQ_AUTHENTICATOR, request.authenticator_cipher
    )
    part = messages.read_authenticator(plain)
    assert (part.client, part.ctime, part.cusec) == (ALICE, CTIME, CUSEC)
    assert (part.checksum, part.subkey, part.sequence) == (None, False, None)


@pytest.mark.rfc("4430-4.2.2-1")
def test_a_recorded_ap_rep_repeats_the_authenticators_time() -> None:
    reply = recorded.exchange("esp2way")[1].kerberos
    assert messages.read_ap_rep(etypes.key(18, SESSION), reply) == (CTIME, CUSEC)


@given(st.sampled_from(sorted(etypes.SUPPORTED)), SECONDS, MICROSECONDS)
def test_our_ap_rep_is_read_back(etype: int, ctime: int, cusec: int) -> None:
    key = etypes.random_key(etype)
    assert messages.read_ap_rep(key, messages.build_ap_rep(key, ctime, cusec)) == (ctime, cusec)


def test_an_ap_rep_under_another_key_is_not_genuine() -> None:
    reply = messages.build_ap_rep(etypes.random_key(18), CTIME, CUSEC)
    with pytest.raises(PeerError, match="bad-integrity"):
        messages.read_ap_rep(etypes.random_key(18), reply)
    with pytest.raises(PeerError, match="malformed-kerberos"):
        messages.read_ap_rep(etypes.random_key(20), reply)


@pytest.mark.rfc("4430-7-1")
def test_subkey_and_sequence_number_of_an_ap_rep_are_ignored() -> None:
    key = etypes.key(18, SESSION)
    subkey = der.sequence(der.field(0, der.integer(18)), der.field(1, der.octets(bytes(32))))
    plain = der.application(
        27,
        der.field(0, der.kerberos_time(CTIME)),
        der.field(1, der.integer(CUSEC)),
        der.field(2, subkey),
        der.field(3, der.integer(-5)),
    )
    cipher = key.encrypt(Usage.AP_REP, plain)
    encrypted = der.sequence(der.field(0, der.integer(18)), der.field(2, der.octets(cipher)))
    reply = der.application(
        15, der.field(0, der.integer(5)), der.field(1, der.integer(15)), der.field(2, encrypted)
    )
    assert messages.read_ap_rep(key, reply) == (CTIME, CUSEC)


@pytest.mark.rfc("4430-4.2.1-1")
def test_our_ap_req_repeats_the_recorded_ticket_and_requires_mutual_authentication() -> None:
    key = etypes.key(18, SESSION)
    ticket = messages.read_ap_req(recorded.exchange("esp2way")[0].kerberos).ticket
    request = messages.read_ap_req(messages.build_ap_req(ticket.raw, key, ALICE, 7, 8))
    assert request.ticket == ticket
    assert request.ap_options == messages.AP_OPTION_MUTUAL_REQUIRED
    plain = key.decrypt(Usage.AP_REQ_AUTHENTICATOR, request.authenticator_cipher)
    part = messages.read_authenticator(plain)
    assert (part.client, part.ctime, part.cusec, part.subkey) == (ALICE, 7, 8, False)


@given(st.sampled_from(sorted(KRB_ERROR_NAMES)), SECONDS, MICROSECONDS, SECONDS, MICROSECONDS)
def test_our_krb_error_is_read_back(
    code: int, stime: int, susec: int, ctime: int, cusec: int
) -> None:
    raw = messages.build_krb_error(
        code, BOB.realm, BOB, stime, susec, client_time=(ctime, cusec), text="words"
    )
    part = messages.read_krb_error(raw)
    assert (part.code, part.stime, part.susec) == (code, stime, susec)
    assert (part.ctime, part.cusec, part.text) == (ctime, cusec, "words")
    assert (part.server, part.realm, part.name) == (BOB, BOB.realm, KRB_ERROR_NAMES[code])


@pytest.mark.rfc("4430-4.2.3-1", "4430-4.2.3-4")
def test_any_code_and_e_data_are_accepted_in_a_krb_error() -> None:
    bare = messages.build_krb_error(37, BOB.realm, BOB, 1, 2)
    fields = der.Reader(bare).application(30).rest()
    part = messages.read_krb_error(der.application(30, fields, der.field(12, der.octets(b"data"))))
    assert (part.code, part.ctime, part.text) == (37, None, "")
    assert messages.read_krb_error(messages.build_krb_error(99, "R", BOB, 1, 2)).name == (
        "KRB-ERROR 99"
    )


def test_error_names_are_those_of_rfc_4120() -> None:
    assert KRB_ERROR_NAMES[31] == "KRB_AP_ERR_BAD_INTEGRITY"
    assert KRB_ERROR_NAMES[37] == "KRB_AP_ERR_SKEW"
    assert messages.KRB_ERROR_TEXTS[37] == "Clock skew too great"
    assert KRB_ERROR_NAMES.keys() == set(range(77)) - {30, 43, *range(53, 60)}


def test_gss_framing_is_that_of_rfc_4121() -> None:
    token = messages.gss_frame(b"raw", messages.TOKEN_AP_REQ)
    assert token.hex() == "6010" + "06092a864886f712010202" + "0100" + b"raw".hex()
    assert messages.gss_unframe(token) == (messages.TOKEN_AP_REQ, b"raw")
    for broken in (token[:-1], token + b"\0", token[:12], b"", b"\x60\x0b" + token[2:13]):
        with pytest.raises(PeerError, match="malformed-kerberos"):
            messages.gss_unframe(broken)


def test_another_message_or_version_is_refused() -> None:
    raw = recorded.exchange("esp2way")[0].kerberos
    with pytest.raises(PeerError, match="malformed-kerberos"):
        messages.read_krb_error(raw)
    with pytest.raises(PeerError, match="pvno 4"):
        messages.read_ap_req(raw.replace(b"\xa0\x03\x02\x01\x05", b"\xa0\x03\x02\x01\x04", 1))
    for end in range(0, len(raw), 37):
        with pytest.raises(PeerError, match="malformed-kerberos"):
            messages.read_ap_req(raw[:end])
    with pytest.raises(PeerError, match="malformed-kerberos"):
        messages.read_ap_req(raw + b"\0")


def test_a_clock_that_stands_still_gives_new_times() -> None:
    last = messages.unused_time(1_800_000_000.0, 0)
    for _ in range(100):
        assert messages.unused_time(1_800_000_000.0, last) == last + 1
        last += 1


def test_a_clock_that_is_set_back_is_followed() -> None:
    last = messages.unused_time(1_800_001_200.0, 0)
    assert messages.unused_time(1_800_000_000.0, last) == 1_800_000_000_000_000
