"""The Kerberos messages that KINK carries (RFC 4120 §5), read and built; RFC 4121 §4.1 framing.

Pure: octets, keys and times are given. What cannot be read raises
PeerError("malformed-kerberos"); what is not genuine, PeerError("bad-integrity").
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from kinkd.kerberos import der
from kinkd.kerberos.der import Reader
from kinkd.kerberos.port import SessionKey
from kinkd.model import Principal, Secret

_PVNO: Final = 5  # RFC 4120 §5.10: also tkt-vno and authenticator-vno
_NT_SRV_HST: Final = 3  # RFC 4120 §6.2
_NT_PRINCIPAL: Final = 1

AP_OPTION_USE_SESSION_KEY: Final = 1 << 30  # RFC 4120 §5.5.1: bit 1
AP_OPTION_MUTUAL_REQUIRED: Final = 1 << 29  # bit 2
TICKET_FLAG_INVALID: Final = 1 << 24  # RFC 4120 §5.3: bit 7

TOKEN_AP_REQ: Final = b"\x01\x00"  # RFC 4121 §4.1
TOKEN_AP_REP: Final = b"\x02\x00"
TOKEN_KRB_ERROR: Final = b"\x03\x00"
_MECHANISM: Final = bytes.fromhex("06092a864886f712010202")  # 1.2.840.113554.1.2.2, DER
_GSS_FRAME: Final = 0x60


class Tag(enum.IntEnum):
    """[APPLICATION] tags; those of messages are their msg-type as well (RFC 4120 §5.10)."""

    TICKET = 1
    AUTHENTICATOR = 2
    ENC_TICKET_PART = 3
    AP_REQ = 14
    AP_REP = 15
    ENC_AP_REP_PART = 27
    KRB_ERROR = 30


class Usage(enum.IntEnum):
    """Key usages of these messages (RFC 4120 §7.5.1)."""

    TICKET = 2
    AP_REQ_AUTHENTICATOR = 11
    AP_REP = 12


@dataclass(frozen=True, slots=True)
class EncryptedData:
    """EncryptedData (RFC 4120 §5.2.9)."""

    etype: int
    kvno: int | None
    cipher: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TicketHeader:
    """A Ticket without what is encrypted in it (RFC 4120 §5.3); ``raw`` is the whole of it."""

    realm: str
    sname: Principal
    etype: int
    kvno: int | None
    cipher: bytes = field(repr=False)
    raw: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ApReq:
    """KRB_AP_REQ (RFC 4120 §5.5.1)."""

    ap_options: int
    ticket: TicketHeader
    authenticator_etype: int
    authenticator_cipher: bytes = field(repr=False)

    @property
    def user_to_user(self) -> bool:
        """Whether the ticket is encrypted in a session key, and in no long-term one."""
        return bool(self.ap_options & AP_OPTION_USE_SESSION_KEY)


@dataclass(frozen=True, slots=True)
class EncTicket:
    """EncTicketPart (RFC 4120 §5.3), times in POSIX seconds.

    ``start`` is authtime where the ticket has no starttime. Addresses and authorization data
    are passed over.
    """

    client: Principal
    session_etype: int
    session_key: Secret
    flags: int
    authtime: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class AuthenticatorPart:
    """Authenticator (RFC 4120 §5.5.1). A subkey is noticed, never used (RFC 4430 §7)."""

    client: Principal
    ctime: int  # POSIX seconds
    cusec: int
    checksum: int | None  # its cksumtype
    subkey: bool
    sequence: int | None


@dataclass(frozen=True, slots=True)
class KrbErrorPart:
    """KRB-ERROR (RFC 4120 §5.9.1), times in POSIX seconds and microseconds."""

    code: int
    stime: int
    susec: int
    ctime: int | None
    cusec: int | None
    realm: str
    server: Principal
    text: str

    @property
    def name(self) -> str:
        """The code's name in RFC 4120 §7.5.9."""
        return krb_error_name(self.code)


def read_ap_req(raw: bytes) -> ApReq:
    """Read a KRB_AP_REQ; nothing is decrypted."""
    fields = _message(raw, Tag.AP_REQ)
    options = fields.field(2).flags()
    ticket = read_ticket(fields.field(3).rest())
    authenticator = _encrypted(fields.field(4))
    fields.extensions(4)
    return ApReq(options, ticket, authenticator.etype, authenticator.cipher)


def read_ticket(raw: bytes) -> TicketHeader:
    """Read a Ticket; nothing is decrypted (RFC 4120 §5.3)."""
    fields = Reader(raw).application(Tag.TICKET)
    _require(fields.field(0).integer(), _PVNO, "tkt-vno")
    realm = fields.field(1).string()
    sname = _principal(fields.field(2), realm)
    encrypted = _encrypted(fields.field(3))
    fields.extensions(3)
    return TicketHeader(realm, sname, encrypted.etype, encrypted.kvno, encrypted.cipher, raw)


def read_enc_ticket(plain: bytes) -> EncTicket:
    """Read the plaintext of a ticket (key usage 2)."""
    fields = Reader(plain).application(Tag.ENC_TICKET_PART)
    flags = fields.field(0).flags()
    etype, octets = _encryption_key(fields.field(1))
    realm = fields.field(2).string()
    client = _principal(fields.field(3), realm)
    fields.field(4).enter(der.SEQUENCE)  # transited: the KDC's business, RFC 4120 §2.7
    authtime = fields.field(5).time()
    starttime = fields.optional(6)
    start = starttime.time() if starttime is not None else authtime
    end = fields.field(7).time()
    fields.extensions(7)  # renew-till, caddr, authorization-data
    return EncTicket(client, etype, Secret(octets), flags, authtime, start, end)


def read_authenticator(plain: bytes) -> AuthenticatorPart:
    """Read the plaintext of an AP-REQ's authenticator (key usage 11)."""
    fields = Reader(plain).application(Tag.AUTHENTICATOR)
    _require(fields.field(0).integer(), _PVNO, "authenticator-vno")
    realm = fields.field(1).string()
    client = _principal(fields.field(2), realm)
    checksum = fields.optional(3)
    cksumtype = checksum.sequence().field(0).integer() if checksum is not None else None
    cusec = fields.field(4).microseconds()
    ctime = fields.field(5).time()
    subkey = fields.optional(6)
    number = fields.optional(7)
    sequence = number.uint32() if number is not None else None
    fields.extensions(7)  # authorization-data
    return AuthenticatorPart(client, ctime, cusec, cksumtype, subkey is not None, sequence)


def read_authenticator_time(plain: bytes) -> tuple[int, int]:
    """(ctime, cusec) of an authenticator that Kerberos made or accepted; the rest was its business.

    Raises PeerError where they are not there.
    """
    fields = Reader(plain).application(Tag.AUTHENTICATOR)
    fields.skip_to(4)
    cusec = fields.field(4).microseconds()
    return fields.field(5).time(), cusec


def authenticator_time(key: SessionKey, request: ApReq) -> tuple[int, int]:
    """(ctime, cusec) of an AP-REQ's authenticator, decrypted under the ticket's session key.

    Raises PeerError: the authenticator is not genuine, or has no time.
    """
    return read_authenticator_time(
        key.decrypt(Usage.AP_REQ_AUTHENTICATOR, request.authenticator_cipher)
    )


def read_ap_rep(key: SessionKey, raw: bytes) -> tuple[int, int]:
    """(ctime, cusec) of a KRB_AP_REP, decrypted under the ticket's session key.

    A subkey and a sequence number are ignored (RFC 4430 §7).
    """
    fields = _message(raw, Tag.AP_REP)
    encrypted = _encrypted(fields.field(2))
    fields.extensions(2)
    if encrypted.etype != key.etype:
        der.malformed(f"an AP-REP of etype {encrypted.etype} under a key of etype {key.etype}")
    plain = key.decrypt(Usage.AP_REP, encrypted.cipher)
    part = Reader(plain).application(Tag.ENC_AP_REP_PART)
    ctime = part.field(0).time()
    cusec = part.field(1).microseconds()
    part.extensions(1)
    return ctime, cusec


def read_krb_error(raw: bytes) -> KrbErrorPart:
    """Read a KRB-ERROR; e-data is ignored (RFC 4430 §4.2.3)."""
    fields = _message(raw, Tag.KRB_ERROR)
    client_time, client_usec = fields.optional(2), fields.optional(3)
    stime = fields.field(4).time()
    susec = fields.field(5).microseconds()
    code = fields.field(6).integer()
    fields.optional(7)  # crealm
    fields.optional(8)  # cname
    realm = fields.field(9).string()
    server = _principal(fields.field(10), realm)
    text = fields.optional(11)
    fields.extensions(11)
    return KrbErrorPart(
        code,
        stime,
        susec,
        client_time.time() if client_time is not None else None,
        client_usec.microseconds() if client_usec is not None else None,
        realm,
        server,
        text.text() if text is not None else "",
    )


def unused_time(posix: float, last: int) -> int:
    """``posix`` in microseconds; what follows ``last``, where that one was no earlier.

    No two authenticators under one key share their time (RFC 4120 §5.5.1). A clock that was set
    back, a second or more, is followed all the same.
    """
    wanted = int(posix * 1_000_000)
    return last + 1 if wanted <= last < wanted + 1_000_000 else wanted


def build_ap_req(
    ticket_raw: bytes,
    key: SessionKey,
    client: Principal,
    ctime: int,
    cusec: int,
    *,
    user_to_user: bool = False,
) -> bytes:
    """A KRB_AP_REQ that requires mutual authentication: no checksum, subkey or sequence number.

    Args:
        ticket_raw: the Ticket as the KDC encoded it.
        key: the ticket's session key.
        client: whom the ticket names.
        ctime: POSIX seconds; with ``cusec`` never used twice under one key.
        cusec: microseconds.
        user_to_user: the ticket is encrypted in the session key of its server's TGT.
    """
    options = AP_OPTION_MUTUAL_REQUIRED  # RFC 4430 §4.2.1
    if user_to_user:
        options |= AP_OPTION_USE_SESSION_KEY
    authenticator = der.application(
        Tag.AUTHENTICATOR,
        der.field(0, der.integer(_PVNO)),
        der.field(1, der.string(client.realm)),
        der.field(2, _name(client, _NT_PRINCIPAL)),
        der.field(4, der.integer(cusec)),
        der.field(5, der.kerberos_time(ctime)),
    )
    cipher = key.encrypt(Usage.AP_REQ_AUTHENTICATOR, authenticator)
    return der.application(
        Tag.AP_REQ,
        der.field(0, der.integer(_PVNO)),
        der.field(1, der.integer(Tag.AP_REQ)),
        der.field(2, der.flags(options)),
        der.field(3, ticket_raw),
        der.field(4, _encrypted_data(key.etype, None, cipher)),
    )


def build_ap_rep(key: SessionKey, ctime: int, cusec: int) -> bytes:
    """The KRB_AP_REP that repeats an authenticator's time; without subkey (RFC 4430 §7)."""
    part = der.application(
        Tag.ENC_AP_REP_PART,
        der.field(0, der.kerberos_time(ctime)),
        der.field(1, der.integer(cusec)),
    )
    cipher = key.encrypt(Usage.AP_REP, part)
    return der.application(
        Tag.AP_REP,
        der.field(0, der.integer(_PVNO)),
        der.field(1, der.integer(Tag.AP_REP)),
        der.field(2, _encrypted_data(key.etype, None, cipher)),
    )


def build_krb_error(
    code: int,
    realm: str,
    server: Principal,
    stime: int,
    susec: int,
    *,
    client_time: tuple[int, int] | None = None,
    text: str = "",
) -> bytes:
    """A KRB-ERROR.

    Args:
        code: RFC 4120 §7.5.9.
        realm: the server's realm.
        server: who answers.
        stime: the server's time, POSIX seconds.
        susec: its microseconds.
        client_time: (ctime, cusec) of the authenticator that was refused (RFC 4430 §3.5).
        text: words for the log of the other side.
    """
    optional: list[bytes] = []
    if client_time is not None:
        optional.append(der.field(2, der.kerberos_time(client_time[0])))
        optional.append(der.field(3, der.integer(client_time[1])))
    return der.application(
        Tag.KRB_ERROR,
        der.field(0, der.integer(_PVNO)),
        der.field(1, der.integer(Tag.KRB_ERROR)),
        *optional,
        der.field(4, der.kerberos_time(stime)),
        der.field(5, der.integer(susec)),
        der.field(6, der.integer(code)),
        der.field(9, der.string(realm)),
        der.field(10, _name(server, _NT_SRV_HST)),
        der.field(11, der.string(text)) if text else b"",
    )


def build_ticket(
    server: Principal,
    kvno: int,
    key: SessionKey,
    part: EncTicket,
    authorization_data: bytes = b"",
) -> bytes:
    """A Ticket for ``server`` under its long-term ``key``, as a KDC mints it (RFC 4120 §5.3).

    ``authorization_data``: DER (§5.2.6); what a PAC would be in.
    """
    session = der.sequence(
        der.field(0, der.integer(part.session_etype)),
        der.field(1, der.octets(bytes(part.session_key.value))),
    )
    plain = der.application(
        Tag.ENC_TICKET_PART,
        der.field(0, der.flags(part.flags)),
        der.field(1, session),
        der.field(2, der.string(part.client.realm)),
        der.field(3, _name(part.client, _NT_PRINCIPAL)),
        der.field(4, der.sequence(der.field(0, der.integer(1)), der.field(1, der.octets(b"")))),
        der.field(5, der.kerberos_time(part.authtime)),
        der.field(6, der.kerberos_time(part.start)),
        der.field(7, der.kerberos_time(part.end)),
        der.field(10, authorization_data) if authorization_data else b"",
    )
    return der.application(
        Tag.TICKET,
        der.field(0, der.integer(_PVNO)),
        der.field(1, der.string(server.realm)),
        der.field(2, _name(server, _NT_SRV_HST)),
        der.field(3, _encrypted_data(key.etype, kvno, key.encrypt(Usage.TICKET, plain))),
    )


def gss_frame(raw: bytes, token_id: bytes) -> bytes:
    """A raw message as the token GSS knows it by (RFC 4121 §4.1)."""
    return der.value(_GSS_FRAME, _MECHANISM, token_id, raw)


def gss_unframe(token: bytes) -> tuple[bytes, bytes]:
    """(token id, raw message) of a Kerberos context token (RFC 4121 §4.1)."""
    outer = Reader(token)
    content = outer.enter(_GSS_FRAME).rest()
    outer.finish()
    start = len(_MECHANISM) + 2
    if len(content) < start or not content.startswith(_MECHANISM):
        der.malformed("a GSS token of another mechanism than Kerberos")
    return content[start - 2 : start], content[start:]


def _require(found: int, expected: int, what: str) -> None:
    if found != expected:
        der.malformed(f"{what} {found}, not {expected}")


def _message(raw: bytes, tag: Tag) -> Reader:
    """The fields of a message after pvno and msg-type."""
    fields = Reader(raw).application(tag)
    _require(fields.field(0).integer(), _PVNO, "pvno")
    _require(fields.field(1).integer(), tag, "msg-type")
    return fields


def _encrypted(reader: Reader) -> EncryptedData:
    fields = reader.sequence()
    etype = fields.field(0).integer()
    kvno = fields.optional(1)
    number = kvno.uint32() if kvno is not None else None
    cipher = fields.field(2).octets()
    fields.finish()
    return EncryptedData(etype, number, cipher)


def _encryption_key(reader: Reader) -> tuple[int, bytes]:
    fields = reader.sequence()
    etype = fields.field(0).integer()
    octets = fields.field(1).octets()
    fields.finish()
    return etype, octets


def _principal(reader: Reader, realm: str) -> Principal:
    """PrincipalName (RFC 4120 §5.2.2); its name-type says nothing of identity (§6.2)."""
    fields = reader.sequence()
    fields.field(0).integer()
    names = fields.field(1).sequence()
    fields.finish()
    components: list[str] = []
    while names:
        components.append(names.next_string())
    if not components:
        der.malformed("a principal without a name")
    return Principal(tuple(components), realm)


def _name(principal: Principal, name_type: int) -> bytes:
    return der.sequence(
        der.field(0, der.integer(name_type)),
        der.field(1, der.sequence(*map(der.string, principal.components))),
    )


def _encrypted_data(etype: int, kvno: int | None, cipher: bytes) -> bytes:
    return der.sequence(
        der.field(0, der.integer(etype)),
        der.field(1, der.integer(kvno)) if kvno is not None else b"",
        der.field(2, der.octets(cipher)),
    )


# RFC 4120 §7.5.9
_KRB_ERRORS: Final[Mapping[int, tuple[str, str]]] = MappingProxyType(
    {
        code: (name, text)
        for code, name, text in (
            (0, "KDC_ERR_NONE", "No error"),
            (1, "KDC_ERR_NAME_EXP", "Client's entry in database has expired"),
            (2, "KDC_ERR_SERVICE_EXP", "Server's entry in database has expired"),
            (3, "KDC_ERR_BAD_PVNO", "Requested protocol version number not supported"),
            (4, "KDC_ERR_C_OLD_MAST_KVNO", "Client's key encrypted in old master key"),
            (5, "KDC_ERR_S_OLD_MAST_KVNO", "Server's key encrypted in old master key"),
            (6, "KDC_ERR_C_PRINCIPAL_UNKNOWN", "Client not found in Kerberos database"),
            (7, "KDC_ERR_S_PRINCIPAL_UNKNOWN", "Server not found in Kerberos database"),
            (8, "KDC_ERR_PRINCIPAL_NOT_UNIQUE", "Multiple principal entries in database"),
            (9, "KDC_ERR_NULL_KEY", "The client or server has a null key"),
            (10, "KDC_ERR_CANNOT_POSTDATE", "Ticket not eligible for postdating"),
            (11, "KDC_ERR_NEVER_VALID", "Requested starttime is later than end time"),
            (12, "KDC_ERR_POLICY", "KDC policy rejects request"),
            (13, "KDC_ERR_BADOPTION", "KDC cannot accommodate requested option"),
            (14, "KDC_ERR_ETYPE_NOSUPP", "KDC has no support for encryption type"),
            (15, "KDC_ERR_SUMTYPE_NOSUPP", "KDC has no support for checksum type"),
            (16, "KDC_ERR_PADATA_TYPE_NOSUPP", "KDC has no support for padata type"),
            (17, "KDC_ERR_TRTYPE_NOSUPP", "KDC has no support for transited type"),
            (18, "KDC_ERR_CLIENT_REVOKED", "Clients credentials have been revoked"),
            (19, "KDC_ERR_SERVICE_REVOKED", "Credentials for server have been revoked"),
            (20, "KDC_ERR_TGT_REVOKED", "TGT has been revoked"),
            (21, "KDC_ERR_CLIENT_NOTYET", "Client not yet valid; try again later"),
            (22, "KDC_ERR_SERVICE_NOTYET", "Server not yet valid; try again later"),
            (23, "KDC_ERR_KEY_EXPIRED", "Password has expired; change password to reset"),
            (24, "KDC_ERR_PREAUTH_FAILED", "Pre-authentication information was invalid"),
            (25, "KDC_ERR_PREAUTH_REQUIRED", "Additional pre-authentication required"),
            (26, "KDC_ERR_SERVER_NOMATCH", "Requested server and ticket don't match"),
            (27, "KDC_ERR_MUST_USE_USER2USER", "Server principal valid for user2user only"),
            (28, "KDC_ERR_PATH_NOT_ACCEPTED", "KDC Policy rejects transited path"),
            (29, "KDC_ERR_SVC_UNAVAILABLE", "A service is not available"),
            (31, "KRB_AP_ERR_BAD_INTEGRITY", "Integrity check on decrypted field failed"),
            (32, "KRB_AP_ERR_TKT_EXPIRED", "Ticket expired"),
            (33, "KRB_AP_ERR_TKT_NYV", "Ticket not yet valid"),
            (34, "KRB_AP_ERR_REPEAT", "Request is a replay"),
            (35, "KRB_AP_ERR_NOT_US", "The ticket isn't for us"),
            (36, "KRB_AP_ERR_BADMATCH", "Ticket and authenticator don't match"),
            (37, "KRB_AP_ERR_SKEW", "Clock skew too great"),
            (38, "KRB_AP_ERR_BADADDR", "Incorrect net address"),
            (39, "KRB_AP_ERR_BADVERSION", "Protocol version mismatch"),
            (40, "KRB_AP_ERR_MSG_TYPE", "Invalid msg type"),
            (41, "KRB_AP_ERR_MODIFIED", "Message stream modified"),
            (42, "KRB_AP_ERR_BADORDER", "Message out of order"),
            (44, "KRB_AP_ERR_BADKEYVER", "Specified version of key is not available"),
            (45, "KRB_AP_ERR_NOKEY", "Service key not available"),
            (46, "KRB_AP_ERR_MUT_FAIL", "Mutual authentication failed"),
            (47, "KRB_AP_ERR_BADDIRECTION", "Incorrect message direction"),
            (48, "KRB_AP_ERR_METHOD", "Alternative authentication method required"),
            (49, "KRB_AP_ERR_BADSEQ", "Incorrect sequence number in message"),
            (50, "KRB_AP_ERR_INAPP_CKSUM", "Inappropriate type of checksum in message"),
            (51, "KRB_AP_PATH_NOT_ACCEPTED", "Policy rejects transited path"),
            (52, "KRB_ERR_RESPONSE_TOO_BIG", "Response too big for UDP; retry with TCP"),
            (60, "KRB_ERR_GENERIC", "Generic error (description in e-text)"),
            (61, "KRB_ERR_FIELD_TOOLONG", "Field is too long for this implementation"),
            (62, "KDC_ERROR_CLIENT_NOT_TRUSTED", "Reserved for PKINIT"),
            (63, "KDC_ERROR_KDC_NOT_TRUSTED", "Reserved for PKINIT"),
            (64, "KDC_ERROR_INVALID_SIG", "Reserved for PKINIT"),
            (65, "KDC_ERR_KEY_TOO_WEAK", "Reserved for PKINIT"),
            (66, "KDC_ERR_CERTIFICATE_MISMATCH", "Reserved for PKINIT"),
            (67, "KRB_AP_ERR_NO_TGT", "No TGT available to validate USER-TO-USER"),
            (68, "KDC_ERR_WRONG_REALM", "Reserved for future use"),
            (69, "KRB_AP_ERR_USER_TO_USER_REQUIRED", "Ticket must be for USER-TO-USER"),
            (70, "KDC_ERR_CANT_VERIFY_CERTIFICATE", "Reserved for PKINIT"),
            (71, "KDC_ERR_INVALID_CERTIFICATE", "Reserved for PKINIT"),
            (72, "KDC_ERR_REVOKED_CERTIFICATE", "Reserved for PKINIT"),
            (73, "KDC_ERR_REVOCATION_STATUS_UNKNOWN", "Reserved for PKINIT"),
            (74, "KDC_ERR_REVOCATION_STATUS_UNAVAILABLE", "Reserved for PKINIT"),
            (75, "KDC_ERR_CLIENT_NAME_MISMATCH", "Reserved for PKINIT"),
            (76, "KDC_ERR_KDC_NAME_MISMATCH", "Reserved for PKINIT"),
        )
    }
)
KRB_ERROR_NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {code: name for code, (name, _) in _KRB_ERRORS.items()}
)
KRB_ERROR_TEXTS: Final[Mapping[int, str]] = MappingProxyType(
    {code: text for code, (_, text) in _KRB_ERRORS.items()}
)


def krb_error_name(code: int) -> str:
    """The name of a KRB-ERROR code; for one without, its number in words."""
    return KRB_ERROR_NAMES.get(code, f"KRB-ERROR {code}")
