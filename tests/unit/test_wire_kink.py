"""The KINK message: header, payloads, alignment, checksum (RFC 4430 §4)."""

from __future__ import annotations

import pytest

from kinkd.errors import LocalError, Malformed, PeerError, UnsupportedDoi, UnsupportedVersion
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.support import recordings

STATUS = kink.Message(MessageType.STATUS, 7, (kink.ApReq(5, b"abc"),))


def mutated(octets: bytes, offset: int, value: int) -> bytes:
    return octets[:offset] + bytes((value,)) + octets[offset + 1 :]


@pytest.mark.rfc("4430-4-3", "4430-4-1", "4430-4.2-1", "4430-4.2-3")
def test_a_message_is_laid_out_as_the_rfc_draws_it():
    header = "0610001c 00000001 00000007 01000000"  # STATUS, 1.x, 28 octets, DOI 1, XID 7, AP_REQ
    payload = "0000000b 00000005 61626300"  # DONE, 11 octets, EPOCH 5, "abc", one of padding
    assert kink.encode(STATUS) == bytes.fromhex(header + payload)


@pytest.mark.rfc("4430-4-1")
@pytest.mark.rfc("4430-4.1-1")
@pytest.mark.rfc("4430-4.1-2")
@pytest.mark.rfc("4430-4.2-2")
def test_padding_is_zero_and_in_no_payload_length():
    message = kink.Message(
        MessageType.REPLY, 1, (kink.ApRep(1, b"x"), kink.Isakmp(0, b""), kink.KrbError(b"e"))
    )
    octets = kink.encode(message)
    assert octets[16:20] == bytes((6, 0, 0, 9))
    assert octets[25:28] == bytes(3)
    assert octets[-3:] == bytes(3)
    assert len(octets) % 4 == 0


@pytest.mark.rfc("4430-4.1-1", "4430-4-4")
@pytest.mark.parametrize("octets", range(1, 6))
def test_an_unprotected_message_ends_with_its_last_payload(octets):
    message = kink.Message(MessageType.REPLY, 1, (kink.KrbError(bytes(octets)),))
    whole = kink.encode(message, protected=False)
    assert len(whole) == int.from_bytes(whole[2:4]) == 16 + 4 + octets
    assert kink.decode(whole).message == message


@pytest.mark.rfc("4430-4-10")
def test_the_checksum_covers_the_padding_before_it_and_completes_the_lengths():
    signed = kink.encode(STATUS)
    whole = kink.with_checksum(signed, b"c" * 12)
    assert whole[:4] == bytes((6, 0x10, 0, len(signed) + 12))
    assert whole[14:16] == bytes((0, 12))
    received = kink.decode(whole)
    assert received.signed == signed
    assert received.checksum == b"c" * 12
    assert received.message == STATUS


@pytest.mark.rfc("4430-4-4")
def test_octets_behind_the_length_are_ignored():
    whole = kink.with_checksum(kink.encode(STATUS), b"c" * 12)
    assert kink.decode(whole + b"garbage") == kink.decode(whole)


@pytest.mark.rfc("4430-4-2", "4430-4-3")
@pytest.mark.rfc("4430-4-9")
@pytest.mark.rfc("4430-4.2-3")
@pytest.mark.parametrize(("offset", "value"), [(1, 0x1F), (13, 0x7F), (17, 0xFF), (27, 0xEE)])
def test_reserved_bits_and_padding_are_ignored_but_signed(offset, value):
    octets = mutated(kink.encode(STATUS), offset, value)
    received = kink.decode(octets)
    assert received.message == STATUS
    assert received.signed == octets


@pytest.mark.rfc("4430-4-1")
def test_the_ackreq_bit_goes_both_ways_and_no_other_is_set():
    message = kink.Message(MessageType.REPLY, 1, (kink.ApRep(1, b"x"),), ack_request=True)
    octets = kink.encode(message)
    assert octets[13] == 0x80
    assert kink.decode(octets).message == message


@pytest.mark.rfc("4430-4-3")
@pytest.mark.rfc("4430-4.2.8-4")
def test_another_major_version_is_named_before_anything_else():
    with pytest.raises(UnsupportedVersion) as caught:
        kink.decode(b"\xff\x20" + bytes(14))
    assert caught.value.kink_error == 3


def test_another_doi_is_named_before_the_length_is_looked_at():
    with pytest.raises(UnsupportedDoi) as caught:
        kink.decode(b"\x01\x10\xff\xff\x00\x00\x00\x02" + bytes(8))
    assert caught.value.kink_error == 2


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        bytes(15),
        mutated(kink.encode(STATUS), 0, 0),
        mutated(kink.encode(STATUS), 0, 7),
        mutated(kink.encode(STATUS), 3, 255),  # longer than the datagram
        mutated(kink.encode(STATUS), 3, 15),  # shorter than the header
        mutated(kink.encode(STATUS), 12, 0),  # octets that no payload holds
        mutated(kink.encode(STATUS), 15, 255),  # Cksum longer than the message
        mutated(kink.encode(STATUS), 15, 1),  # Cksum not aligned
        mutated(kink.encode(STATUS), 16, 2),  # a next payload that is not there
        mutated(kink.encode(STATUS), 19, 3),  # a payload shorter than its header
        mutated(kink.encode(STATUS), 19, 7),  # no room for EPOCH
        mutated(kink.encode(STATUS), 19, 16),  # a payload past the end
    ],
)
def test_a_message_that_cannot_be_is_malformed(octets):
    with pytest.raises(Malformed) as caught:
        kink.decode(octets)
    assert caught.value.kink_error == 1


@pytest.mark.rfc("4430-4.2.7-1")
def test_nothing_may_follow_an_encrypted_payload():
    message = kink.Message(MessageType.CREATE, 1, (kink.Encrypt(b"c"), kink.ApReq(1, b"r")))
    with pytest.raises(Malformed):
        kink.decode(kink.encode(message))


@pytest.mark.rfc("4430-4.2.7-3")
@pytest.mark.rfc("4430-4.2.7-4")
def test_padding_behind_the_inner_payloads_is_ignored():
    inner = (kink.KinkError(1), kink.Isakmp(11, b"abcde"), kink.KrbError(b"xyz"))
    plain = kink.encode_inner(inner)
    assert plain[1:4] == bytes(3)
    assert kink.decode_inner(plain + b"\x01\x02\x03\x04\x05") == inner
    assert kink.decode_inner(mutated(plain, 2, 9)) == inner


def test_a_chain_is_bounded():
    payload = bytes((3, 0, 0, 4))
    header = bytes((6, 0x10, 0, 16 + 4 * 33, 0, 0, 0, 1, 0, 0, 0, 0, 3, 0, 0, 0))
    with pytest.raises(Malformed, match="more than 32"):
        kink.decode(header + payload * 33)
    with pytest.raises(LocalError):
        kink.encode(kink.Message(MessageType.STATUS, 1, (kink.KrbError(b""),) * 33))


@pytest.mark.parametrize("octets", [65530, 70000])
def test_what_does_not_fit_the_length_field_is_a_local_error(octets):
    with pytest.raises(LocalError):
        kink.encode(kink.Message(MessageType.STATUS, 1, (kink.ApReq(1, bytes(octets)),)))
    with pytest.raises(LocalError):
        kink.with_checksum(kink.encode(STATUS), bytes(octets))


def test_an_unknown_payload_is_kept_for_the_grammar():
    message = kink.Message(MessageType.STATUS, 1, (kink.Unknown(99, b"data"),))
    assert kink.decode(kink.encode(message)).message == message


def test_no_repr_shows_what_authenticates():
    text = repr(kink.decode(kink.encode(STATUS)))
    assert "abc" not in text


@pytest.mark.parametrize("name", recordings.NAMES)
def test_every_recorded_message_is_written_again_octet_for_octet(name):
    for datagram in recordings.datagrams(name):
        received = kink.decode(datagram.octets)
        signed = kink.encode(received.message)
        assert signed == received.signed
        whole = kink.with_checksum(signed, received.checksum) if received.checksum else signed
        assert whole == datagram.octets


def test_the_header_is_readable_where_the_message_is_not():
    with pytest.raises(PeerError):
        kink.decode(mutated(kink.encode(STATUS), 0, 200))
    assert kink.header(mutated(kink.encode(STATUS), 0, 200)).xid == 7
