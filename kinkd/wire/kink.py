"""The KINK message and its payloads (RFC 4430 §4).

Reserved fields and padding are ignored when read and zero when written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple

from kinkd.errors import LocalError, Malformed, UnsupportedDoi, UnsupportedVersion
from kinkd.wire.cursor import Cursor
from kinkd.wire.numbers import (
    DOI_IPSEC,
    KINK_VERSION,
    QUICK_MODE_VERSION,
    KinkPayload,
    MessageType,
)

MAX_MESSAGE = 0xFFFF
"""Octets of a message: what the Length field can say."""
MAX_PAYLOADS = 32
"""Payloads in one chain; more is no message that any exchange of RFC 4430 §6 needs."""

HEADER_OCTETS = 16

_HEADER = Struct("!BBHIIBBH")
_PAYLOAD = Struct("!BxH")
_LENGTH = Struct("!H")
_LENGTH_AT = 2  # of Length in the header
_CHECKSUM_LENGTH_AT = 14  # of CksumLen
_ENCRYPTED = Struct("!B3x")
_ISAKMP = Struct("!BB2x")
_WORD = Struct("!I")
_ACKREQ = 0x80

_MESSAGE_TYPES = {int(kind): kind for kind in MessageType}


@dataclass(frozen=True, slots=True)
class ApReq:
    """KINK_AP_REQ (§4.2.1). ``epoch``: low 32 bits of POSIX seconds; ``ap_req``: raw KRB_AP_REQ."""

    epoch: int
    ap_req: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ApRep:
    """KINK_AP_REP (§4.2.2). ``ap_rep``: raw KRB_AP_REP."""

    epoch: int
    ap_rep: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KrbError:
    """KINK_KRB_ERROR (§4.2.3). ``krb_error``: raw KRB_ERROR."""

    krb_error: bytes


@dataclass(frozen=True, slots=True)
class TgtReq:
    """KINK_TGT_REQ (§4.2.4). ``name``: a principal as in RFC 1964 §2.1.3."""

    name: bytes


@dataclass(frozen=True, slots=True)
class TgtRep:
    """KINK_TGT_REP (§4.2.5). ``tgt``: a DER ticket."""

    tgt: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Isakmp:
    """KINK_ISAKMP (§4.2.6): ``first`` is the type of the first Quick Mode payload in ``body``.

    The body stays undecoded here, since its faults are answered by an ISAKMP notification and
    not by a KINK_ERROR: see ``isakmp.decode``.
    """

    first: int
    body: bytes
    major: int = QUICK_MODE_VERSION[0]
    minor: int = QUICK_MODE_VERSION[1]


@dataclass(frozen=True, slots=True)
class Encrypt:
    """KINK_ENCRYPT (§4.2.7). The plaintext of ``cipher`` is for ``decode_inner``."""

    cipher: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KinkError:
    """KINK_ERROR (§4.2.8)."""

    code: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """A payload of a type that RFC 4430 does not assign; the grammar refuses it."""

    type: int
    body: bytes


Payload = ApReq | ApRep | KrbError | TgtReq | TgtRep | Isakmp | Encrypt | KinkError | Unknown


@dataclass(frozen=True, slots=True)
class Message:
    """A KINK message without its Cksum."""

    type: MessageType
    xid: int
    payloads: tuple[Payload, ...]
    ack_request: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A message as it came: ``checksum`` is the get_mic of ``signed`` (§4), empty where none."""

    message: Message
    signed: bytes = field(repr=False)
    checksum: bytes


class Header(NamedTuple):
    """The fixed fields of a message, unchecked: what an error needs for its answer."""

    type: int
    version: int
    length: int
    doi: int
    xid: int
    first: int
    ack_request: bool
    checksum_length: int


def header(datagram: bytes) -> Header:
    """The header of ``datagram``, its values as they are.

    Raises:
        Malformed: fewer than 16 octets.
    """
    kind, version, length, doi, xid, first, flags, checksum_length = Cursor(datagram).unpack(
        _HEADER
    )
    return Header(
        kind, version >> 4, length, doi, xid, first, bool(flags & _ACKREQ), checksum_length
    )


def decode(datagram: bytes) -> Received:
    """Read a message; octets after its Length are ignored (RFC 4430 §4).

    Raises:
        UnsupportedVersion: the major version is not 1, whatever else is wrong.
        UnsupportedDoi: the DOI is not IPsec.
        Malformed: a type, a length or a chain of payloads that cannot be.
    """
    kind, version, length, doi, xid, first, flags, checksum_length = Cursor(datagram).unpack(
        _HEADER
    )
    if version >> 4 != KINK_VERSION:  # the low four bits are reserved: ignored
        raise UnsupportedVersion(version >> 4)
    if doi != DOI_IPSEC:
        raise UnsupportedDoi(doi)
    message_type = _MESSAGE_TYPES.get(kind)
    if message_type is None:
        raise Malformed(f"message type {kind}")
    whole = Cursor(Cursor(datagram).take(length))
    signed = _as_signed(whole.take(length - checksum_length))
    checksum = whole.rest()
    if checksum and len(signed) % 4:
        raise Malformed("the Cksum is not aligned")  # RFC 4430 §4.1
    chain = Cursor(signed)
    chain.take(HEADER_OCTETS)
    payloads = _read_chain(chain, first)
    chain.finish("the message")
    message = Message(message_type, xid, payloads, bool(flags & _ACKREQ))
    return Received(message, signed, checksum)


def encode(message: Message, *, protected: bool = True) -> bytes:
    """The part of a message that get_mic runs over: Length without Cksum, CksumLen zero (§4).

    With ``protected`` false it is a whole, unauthenticated message: no Cksum follows that would
    have to be aligned.

    Raises:
        LocalError: it does not fit the 16 bits of a length field.
    """
    first, chain = _write_chain(message.payloads)
    octets = HEADER_OCTETS + len(chain) + (-len(chain) % 4 if protected else 0)
    _fit(octets, "a KINK message")
    head = _HEADER.pack(
        message.type,
        KINK_VERSION << 4,
        octets,
        DOI_IPSEC,
        message.xid,
        first,
        _ACKREQ if message.ack_request else 0,
        0,
    )
    return (head + chain).ljust(octets, b"\0")


def with_checksum(signed: bytes, checksum: bytes) -> bytes:
    """Complete what ``encode`` gave by its checksum (RFC 4430 §4).

    Raises:
        LocalError: it does not fit the 16 bits of the length field.
    """
    octets = len(signed) + len(checksum)
    _fit(octets, "a KINK message")
    whole = bytearray(signed)
    _LENGTH.pack_into(whole, _LENGTH_AT, octets)
    _LENGTH.pack_into(whole, _CHECKSUM_LENGTH_AT, len(checksum))
    return bytes(whole) + checksum


def encode_inner(payloads: Iterable[Payload]) -> bytes:
    """The plaintext of a KINK_ENCRYPT payload (RFC 4430 §4.2.7)."""
    first, chain = _write_chain(payloads)
    return _ENCRYPTED.pack(first) + chain


def decode_inner(plain: bytes) -> tuple[Payload, ...]:
    """Read the plaintext of a KINK_ENCRYPT payload; padding behind the last payload is ignored.

    Raises:
        Malformed: a length or a chain of payloads that cannot be.
    """
    cursor = Cursor(plain)
    (first,) = cursor.unpack(_ENCRYPTED)
    return _read_chain(cursor, first)


def _as_signed(octets: bytes) -> bytes:
    """A received message without its Cksum, Length and CksumLen as they were when it was signed."""
    if len(octets) < HEADER_OCTETS:
        raise Malformed("the Length field leaves no room for the header")
    whole = bytearray(octets)
    _LENGTH.pack_into(whole, _LENGTH_AT, len(octets))
    _LENGTH.pack_into(whole, _CHECKSUM_LENGTH_AT, 0)
    return bytes(whole)


def _fit(octets: int, what: str) -> None:
    if octets > MAX_MESSAGE:
        raise LocalError(f"{what} of {octets} octets does not fit: 65535 is the most")


def _read_chain(cursor: Cursor, first: int) -> tuple[Payload, ...]:
    payloads: list[Payload] = []
    kind = first
    while kind != KinkPayload.DONE:
        if len(payloads) == MAX_PAYLOADS:
            raise Malformed(f"more than {MAX_PAYLOADS} payloads")
        following, length = cursor.unpack(_PAYLOAD)
        body = cursor.sub(length - _PAYLOAD.size)
        read = _READERS.get(kind)
        payloads.append(read(body) if read else Unknown(kind, body.rest()))
        if kind == KinkPayload.ENCRYPT and following != KinkPayload.DONE:
            raise Malformed("KINK_ENCRYPT is not the last payload")  # RFC 4430 §4.2.7
        cursor.align()
        kind = following
    return tuple(payloads)


def _read_ap_req(body: Cursor) -> ApReq:
    (epoch,) = body.unpack(_WORD)
    return ApReq(epoch, body.rest())


def _read_ap_rep(body: Cursor) -> ApRep:
    (epoch,) = body.unpack(_WORD)
    return ApRep(epoch, body.rest())


def _read_isakmp(body: Cursor) -> Isakmp:
    first, version = body.unpack(_ISAKMP)
    return Isakmp(first, body.rest(), version >> 4, version & 0x0F)


def _read_error(body: Cursor) -> KinkError:
    (code,) = body.unpack(_WORD)
    body.finish("KINK_ERROR")
    return KinkError(code)


_READERS: Mapping[int, Callable[[Cursor], Payload]] = {
    KinkPayload.AP_REQ: _read_ap_req,
    KinkPayload.AP_REP: _read_ap_rep,
    KinkPayload.KRB_ERROR: lambda body: KrbError(body.rest()),
    KinkPayload.TGT_REQ: lambda body: TgtReq(body.rest()),
    KinkPayload.TGT_REP: lambda body: TgtRep(body.rest()),
    KinkPayload.ISAKMP: _read_isakmp,
    KinkPayload.ENCRYPT: lambda body: Encrypt(body.rest()),
    KinkPayload.ERROR: _read_error,
}


def _write_chain(payloads: Iterable[Payload]) -> tuple[int, bytes]:
    """The type of the first payload, and the chain, padded between payloads (RFC 4430 §4.1)."""
    parts = [_write(payload) for payload in payloads]
    if len(parts) > MAX_PAYLOADS:
        raise LocalError(f"a chain of {len(parts)} payloads: {MAX_PAYLOADS} is the most")
    kinds = [kind for kind, _ in parts] + [KinkPayload.DONE]
    chain = bytearray()
    for (_, body), following in zip(parts, kinds[1:], strict=True):
        octets = _PAYLOAD.size + len(body)
        _fit(octets, "a KINK payload")
        chain += bytes(-len(chain) % 4)
        chain += _PAYLOAD.pack(following, octets)
        chain += body
    return kinds[0], bytes(chain)


def _write(payload: Payload) -> tuple[int, bytes]:
    match payload:
        case ApReq(epoch, raw):
            return KinkPayload.AP_REQ, _WORD.pack(epoch) + raw
        case ApRep(epoch, raw):
            return KinkPayload.AP_REP, _WORD.pack(epoch) + raw
        case KrbError(raw):
            return KinkPayload.KRB_ERROR, raw
        case TgtReq(raw):
            return KinkPayload.TGT_REQ, raw
        case TgtRep(raw):
            return KinkPayload.TGT_REP, raw
        case Isakmp(first, body, major, minor):
            return KinkPayload.ISAKMP, _ISAKMP.pack(first, major << 4 | minor) + body
        case Encrypt(cipher):
            return KinkPayload.ENCRYPT, cipher
        case KinkError(code):
            return KinkPayload.ERROR, _WORD.pack(code)
        case Unknown(kind, body):
            return kind, body
