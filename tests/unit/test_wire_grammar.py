"""Which payloads a message may hold (RFC 4430 §6)."""

from __future__ import annotations

import pytest

from kinkd.errors import Malformed, MalformedIsakmp
from kinkd.wire import grammar, isakmp, kink
from kinkd.wire.isakmp import Attribute, Proposal, SecurityAssociation, Transform
from kinkd.wire.numbers import MessageType as Type

REQ = kink.ApReq(1, b"r")
REP = kink.ApRep(1, b"r")
QM = kink.Isakmp(1, b"")
ENC = kink.Encrypt(b"c")
KRB = kink.KrbError(b"e")
ERR = kink.KinkError(1)

TRANSFORM = Transform(1, 12, (Attribute(4, 2),))
SA = SecurityAssociation((Proposal(1, 3, b"spi!", (TRANSFORM,)),))
NONCE = isakmp.Nonce(b"n" * 16)
NOTE = isakmp.Notification(3, b"", 14)
KE = isakmp.KeyExchange(b"public")
ID = isakmp.Identification(1, 0, 0, b"\x0a\0\0\1")
GONE = isakmp.Delete(3, (b"spi!",))


@pytest.mark.rfc("4430-6.1-2", "4430-6.2-1")
@pytest.mark.parametrize(
    ("kind", "payloads"),
    [
        (Type.CREATE, (REQ, ENC)),
        (Type.CREATE, (REQ, QM)),
        (Type.CREATE, (REQ, QM, QM, ENC)),
        (Type.DELETE, (REQ, QM)),
        (Type.STATUS, (REQ,)),
        (Type.STATUS, (REQ, ENC)),
        (Type.ACK, (REQ,)),
        (Type.GETTGT, (kink.TgtReq(b"n"),)),
        (Type.REPLY, (REP,)),
        (Type.REPLY, (REP, ENC)),
        (Type.REPLY, (REP, KRB)),
        (Type.REPLY, (REP, ERR, QM)),
        (Type.REPLY, (KRB,)),
        (Type.REPLY, (ERR,)),
        (Type.REPLY, (kink.TgtRep(b"t"),)),
    ],
)
def test_the_forms_of_the_rfc_pass(kind, payloads):
    grammar.check(kink.Message(kind, 1, payloads))


@pytest.mark.rfc("4430-6.1-1")
@pytest.mark.rfc("4430-6.2-1")
@pytest.mark.rfc("4430-6.3-4")
@pytest.mark.parametrize(
    ("kind", "payloads"),
    [
        (Type.CREATE, ()),
        (Type.CREATE, (REQ,)),
        (Type.CREATE, (QM,)),
        (Type.CREATE, (ENC,)),
        (Type.CREATE, (REQ, REQ, QM)),
        (Type.CREATE, (REQ, QM, ERR)),
        (Type.CREATE, (REQ, QM, kink.Unknown(9, b""))),
        (Type.STATUS, (REP,)),
        (Type.ACK, ()),
        (Type.ACK, (REQ, QM)),
        (Type.ACK, (REQ, ENC)),
        (Type.GETTGT, (REQ,)),
        (Type.GETTGT, (kink.TgtReq(b"n"), REQ)),
        (Type.REPLY, ()),
        (Type.REPLY, (QM,)),
        (Type.REPLY, (KRB, QM)),
        (Type.REPLY, (ERR, ENC)),
        (Type.REPLY, (KRB, ERR)),
        (Type.REPLY, (REP, REQ)),
        (Type.REPLY, (REP, ERR, ERR)),
    ],
)
def test_every_other_chain_is_malformed(kind, payloads):
    with pytest.raises(Malformed):
        grammar.check(kink.Message(kind, 1, payloads))


@pytest.mark.rfc("4430-6-2")
def test_what_carries_no_key_may_be_encrypted():
    grammar.check_inner(Type.CREATE, (QM, QM))
    grammar.check_inner(Type.REPLY, (ERR, QM))
    grammar.check_inner(Type.REPLY, (KRB,))


@pytest.mark.parametrize(
    ("kind", "payloads"),
    [
        (Type.CREATE, ()),
        (Type.CREATE, (REQ, QM)),
        (Type.CREATE, (ENC,)),
        (Type.CREATE, (KRB,)),
        (Type.REPLY, (REP,)),
        (Type.ACK, (QM,)),
    ],
)
def test_what_may_not_be_encrypted_is_malformed(kind, payloads):
    with pytest.raises(Malformed):
        grammar.check_inner(kind, payloads)


@pytest.mark.parametrize(
    ("command", "reply", "payloads"),
    [
        (Type.CREATE, False, (SA, NONCE)),
        (Type.CREATE, False, (SA, NONCE, KE, ID, ID, NOTE)),
        (Type.CREATE, True, (SA,)),
        (Type.CREATE, True, (SA, NONCE)),
        (Type.CREATE, True, (NOTE,)),
        (Type.DELETE, False, (GONE, GONE)),
        (Type.DELETE, True, (GONE,)),
        (Type.DELETE, True, (NOTE,)),
        (Type.STATUS, False, ()),
        (Type.STATUS, True, (NOTE,)),
    ],
)
def test_the_quick_mode_forms_of_the_rfc_pass(command, reply, payloads):
    grammar.check_quick_mode(command, payloads, reply=reply)


MANY = SecurityAssociation((Proposal(1, 3, b"spi!", (TRANSFORM, TRANSFORM)),))
TWO = SecurityAssociation((SA.proposals[0], Proposal(2, 3, b"spi2", (TRANSFORM,))))
SHORT = SecurityAssociation((Proposal(1, 3, b"spi", (TRANSFORM,)),))


@pytest.mark.rfc("4430-5.4-2")
@pytest.mark.rfc("4430-6.3-1")
@pytest.mark.parametrize(
    ("command", "reply", "payloads"),
    [
        (Type.CREATE, False, ()),
        (Type.CREATE, False, (SA,)),
        (Type.CREATE, False, (NONCE,)),
        (Type.CREATE, False, (NONCE, SA)),
        (Type.CREATE, False, (SA, SA, NONCE)),
        (Type.CREATE, False, (SA, NONCE, ID)),
        (Type.CREATE, False, (SA, NONCE, GONE)),
        (Type.CREATE, False, (SA, isakmp.Nonce(b"short"))),
        (Type.CREATE, False, (SA, isakmp.Nonce(bytes(257)))),
        (Type.CREATE, False, (SHORT, NONCE)),
        (Type.CREATE, True, ()),
        (Type.CREATE, True, (MANY,)),
        (Type.CREATE, True, (TWO,)),
        (Type.DELETE, False, (NOTE,)),
        (Type.DELETE, False, (isakmp.Delete(3, (b"sp",)),)),
        (Type.STATUS, False, (SA,)),
        (Type.ACK, False, ()),
        (Type.GETTGT, True, ()),
    ],
)
def test_every_other_quick_mode_chain_is_malformed(command, reply, payloads):
    with pytest.raises(MalformedIsakmp) as caught:
        grammar.check_quick_mode(command, payloads, reply=reply)
    assert caught.value.notify == 16


def test_a_bundle_is_several_proposals_of_one_number():
    bundle = SecurityAssociation((SA.proposals[0], Proposal(1, 2, b"spi2", (TRANSFORM,))))
    grammar.check_quick_mode(Type.CREATE, (bundle,), reply=True)
