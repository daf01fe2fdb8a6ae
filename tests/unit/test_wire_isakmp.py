"""The ISAKMP payloads of Quick Mode (RFC 2408 §3, RFC 2407 §4)."""

from __future__ import annotations

import pytest

from kinkd.errors import LocalError, MalformedIsakmp, PeerError, UnsupportedQuickMode
from kinkd.wire import isakmp
from kinkd.wire.isakmp import Attribute, Proposal, SecurityAssociation, Transform
from kinkd.wire.kink import Isakmp

SA_HEX = (
    "0a000034 00000001 00000001"  # next NONCE, 52 octets, DOI, situation
    "00000028 01030401 0d7d4993"  # proposal 1, ESP, SPI of 4, one transform
    "0000001c 010c0000 80010001 80020e10 80040002 80060080 80050002"
)
NONCE_HEX = "00000014 600b1e5723360ef9a24a39064a92297c"
TRANSFORM = Transform(
    1,
    12,
    (Attribute(1, 1), Attribute(2, 3600), Attribute(4, 2), Attribute(6, 128), Attribute(5, 2)),
)
SA = SecurityAssociation((Proposal(1, 3, bytes.fromhex("0d7d4993"), (TRANSFORM,)),))
NONCE = isakmp.Nonce(bytes.fromhex("600b1e5723360ef9a24a39064a92297c"))
RECORDED = Isakmp(1, bytes.fromhex(SA_HEX + NONCE_HEX))


def patched(offset: int, value: int) -> Isakmp:
    body = bytearray(RECORDED.body)
    body[offset] = value
    return Isakmp(1, bytes(body))


def test_a_recorded_create_reads_field_for_field_and_writes_back():
    assert isakmp.decode(RECORDED) == (SA, NONCE)
    assert isakmp.encode((SA, NONCE)) == RECORDED


@pytest.mark.parametrize(
    "payload",
    [
        isakmp.KeyExchange(b"public"),
        isakmp.Identification(4, 6, 22, b"\x0a\0\0\0\xff\0\0\0"),
        isakmp.Notification(3, b"spi!", 11, b"data"),
        isakmp.Notification(3, b"", 14),
        isakmp.Delete(3, (b"spi1", b"spi2")),
        isakmp.Nonce(b""),
    ],
)
def test_every_payload_comes_back_as_it_was(payload):
    assert isakmp.decode(isakmp.encode((payload, NONCE))) == (payload, NONCE)


def test_an_empty_chain_is_an_empty_payload():
    assert isakmp.decode(isakmp.encode(())) == ()


def attributes_of(octets: bytes) -> tuple[Attribute, ...]:
    length = len(octets)
    transform = bytes((0, 0, 0, 8 + length, 1, 12, 0, 0)) + octets
    proposal = bytes((0, 0, 0, 8 + len(transform), 1, 3, 0, 1)) + transform
    sa = bytes((0, 0, 0, 12 + len(proposal), 0, 0, 0, 1, 0, 0, 0, 1)) + proposal
    read = isakmp.decode(Isakmp(1, sa))
    assert isakmp.encode(read).body == sa
    (association,) = read
    assert isinstance(association, SecurityAssociation)
    return association.proposals[0].transforms[0].attributes


def test_attributes_are_read_in_both_forms_and_echoed_as_they_came():
    short, small, large, wide = attributes_of(
        bytes.fromhex("80020e10 00020004 00000e10 00020004 00015180 00020008 0000000000015180")
    )
    assert short == small == Attribute(2, 3600)
    assert large == wide == Attribute(2, 86400)
    assert large.long_octets == 0
    assert wide.long_octets == 8


@pytest.mark.parametrize("hexed", ["00020000", "00020041" + "00" * 65, "0002", "0002000400"])
def test_an_attribute_that_cannot_be_is_malformed(hexed):
    with pytest.raises(MalformedIsakmp):
        attributes_of(bytes.fromhex(hexed))


def test_the_bounds_on_what_is_counted_hold():
    with pytest.raises(MalformedIsakmp, match="more than 32"):
        attributes_of(bytes.fromhex("80010001") * 33)
    crowd = SecurityAssociation(SA.proposals * 65)
    with pytest.raises(MalformedIsakmp):
        isakmp.decode(isakmp.encode((crowd,)))
    crowd = SecurityAssociation((Proposal(1, 3, b"spi!", (TRANSFORM,) * 65),))
    with pytest.raises(MalformedIsakmp):
        isakmp.decode(isakmp.encode((crowd,)))
    with pytest.raises(MalformedIsakmp):
        isakmp.decode(isakmp.encode((NONCE,) * 33))


@pytest.mark.rfc("4430-4.2.6-4")
@pytest.mark.rfc("4430-12-2")
@pytest.mark.parametrize(("major", "minor"), [(1, 1), (2, 0), (0, 9)])
def test_another_quick_mode_version_is_named(major, minor):
    with pytest.raises(UnsupportedQuickMode) as caught:
        isakmp.decode(Isakmp(1, b"", major, minor))
    assert caught.value.kink_error == 6


@pytest.mark.rfc("4430-5.5-4")
@pytest.mark.parametrize("kind", [2, 3, 8, 13, 255])
def test_an_unknown_payload_type_is_named_in_the_notification(kind):
    with pytest.raises(PeerError) as caught:
        isakmp.decode(Isakmp(kind, bytes.fromhex("00000004")))
    assert caught.value.notify == 1
    assert caught.value.notify_data == bytes((kind,))


@pytest.mark.rfc("4430-4-5")
@pytest.mark.rfc("4430-5-3")
@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (3, 3),  # SA: shorter than its header
        (3, 255),  # past the end
        (3, 51),  # cuts the proposal
        (7, 2),  # another DOI than the header's
        (11, 3),  # a situation with more fields
        (12, 3),  # next payload of a proposal
        (12, 2),  # a second proposal that is not there
        (15, 0x29),  # proposal past the SA payload
        (18, 17),  # SPI size
        (19, 0),  # no transforms
        (19, 2),  # a transform that is not there
        (24, 3),  # another transform announced
        (27, 29),  # transform past its proposal
        (55, 3),  # nonce shorter than its header
    ],
)
def test_lengths_counts_and_values_that_cannot_be_are_malformed(offset, value):
    with pytest.raises(MalformedIsakmp) as caught:
        isakmp.decode(patched(offset, value))
    assert caught.value.notify == 16


@pytest.mark.parametrize("offset", [1, 13, 25, 30, 31, 53])
def test_reserved_octets_are_ignored(offset):
    assert isakmp.decode(patched(offset, 0xFF)) == (SA, NONCE)


def test_octets_behind_the_chain_are_malformed():
    with pytest.raises(MalformedIsakmp):
        isakmp.decode(Isakmp(1, RECORDED.body + b"\0"))


def test_spis_of_different_sizes_cannot_share_a_delete():
    with pytest.raises(LocalError):
        isakmp.encode((isakmp.Delete(3, (b"four", b"fiver")),))
