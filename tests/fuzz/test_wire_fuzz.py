"""Any octets parse or raise PeerError; any value comes back as it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import PeerError
from kinkd.wire import grammar, isakmp, kink
from kinkd.wire.numbers import MessageType
from tests.support import recordings

OCTETS = [packet.octets for name in recordings.NAMES for packet in recordings.datagrams(name)]
BYTE = st.integers(0, 0xFF)
WORD = st.integers(0, 0xFFFFFFFF)
BLOB = st.binary(max_size=40)


@st.composite
def damaged(draw, originals):
    """One of the originals with octets changed, cut off or put in."""
    octets = bytearray(draw(originals))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(octets)))
        octets[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(octets)


PAYLOADS = st.one_of(
    st.builds(kink.ApReq, WORD, BLOB),
    st.builds(kink.ApRep, WORD, BLOB),
    st.builds(kink.KrbError, BLOB),
    st.builds(kink.TgtReq, BLOB),
    st.builds(kink.TgtRep, BLOB),
    st.builds(kink.Isakmp, BYTE, BLOB, st.integers(0, 15), st.integers(0, 15)),
    st.builds(kink.KinkError, WORD),
    st.builds(kink.Unknown, st.integers(9, 255), BLOB),
)


@st.composite
def messages(draw):
    payloads = draw(st.lists(PAYLOADS, max_size=5))
    payloads += draw(st.lists(st.builds(kink.Encrypt, BLOB), max_size=1))
    kind = draw(st.sampled_from(MessageType))
    return kink.Message(kind, draw(WORD), tuple(payloads), draw(st.booleans()))


SPI = st.binary(max_size=16)
ATTRIBUTES = st.builds(
    isakmp.Attribute, st.integers(0, 0x7FFF), st.integers(0, 2**64 - 1), st.sampled_from((0, 8, 9))
)
TRANSFORMS = st.builds(isakmp.Transform, BYTE, BYTE, st.lists(ATTRIBUTES, max_size=4).map(tuple))
PROPOSALS = st.builds(
    isakmp.Proposal,
    BYTE,
    BYTE,
    SPI,
    st.lists(TRANSFORMS, min_size=1, max_size=3).map(tuple),
)
QUICK_MODE = st.one_of(
    st.builds(isakmp.SecurityAssociation, st.lists(PROPOSALS, min_size=1, max_size=3).map(tuple)),
    st.builds(isakmp.Nonce, BLOB),
    st.builds(isakmp.KeyExchange, BLOB),
    st.builds(isakmp.Identification, BYTE, BYTE, st.integers(0, 0xFFFF), BLOB),
    st.builds(isakmp.Notification, BYTE, SPI, st.integers(0, 0xFFFF), BLOB),
    st.builds(
        isakmp.Delete,
        BYTE,
        st.lists(st.binary(min_size=4, max_size=4), min_size=1, max_size=4).map(tuple),
    ),
)


def read_all(octets: bytes) -> None:
    """Whatever the wire offers to read, on octets that may be anything."""
    message = kink.decode(octets).message
    grammar.check(message)
    for payload in message.payloads:
        if isinstance(payload, kink.Isakmp):
            grammar.check_quick_mode(message.type, isakmp.decode(payload))


@given(st.one_of(st.binary(max_size=200), damaged(st.sampled_from(OCTETS))))
def test_any_datagram_is_read_or_refused(octets):
    try:
        read_all(octets)
    except PeerError:
        return


@given(st.one_of(BLOB, damaged(st.lists(PAYLOADS, max_size=5).map(kink.encode_inner))))
def test_any_inner_plaintext_is_read_or_refused(octets):
    try:
        payloads = kink.decode_inner(octets)
    except PeerError:
        return
    assert kink.decode_inner(kink.encode_inner(payloads)) == payloads


@given(BYTE, st.one_of(BLOB, damaged(st.lists(QUICK_MODE).map(lambda p: isakmp.encode(p).body))))
def test_any_isakmp_body_is_read_or_refused(first, body):
    try:
        payloads = isakmp.decode(kink.Isakmp(first, body))
    except PeerError:
        return
    assert isakmp.decode(isakmp.encode(payloads)) == payloads


@given(messages(), st.binary(max_size=32), BLOB)
def test_any_message_comes_back_as_it_was(message, checksum, garbage):
    signed = kink.encode(message)
    received = kink.decode(kink.with_checksum(signed, checksum) + garbage)
    assert received.message == message
    assert received.signed == signed
    assert received.checksum == checksum


@given(st.lists(PAYLOADS, max_size=6).map(tuple))
def test_any_inner_chain_comes_back_as_it_was(payloads):
    assert kink.decode_inner(kink.encode_inner(payloads)) == payloads


@given(st.lists(QUICK_MODE, max_size=5).map(tuple))
def test_any_quick_mode_chain_comes_back_as_it_was(payloads):
    body = isakmp.encode(payloads)
    read = isakmp.decode(body)
    assert read == payloads
    assert isakmp.encode(read) == body
