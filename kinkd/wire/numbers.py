"""The numbers of the protocol, each with the section that assigns it."""

from __future__ import annotations

import enum

KINK_PORT = 910  # RFC 4430 §11
ESP_IN_UDP_PORT = 4500  # RFC 3948 §2.1
KINK_VERSION = 1  # RFC 4430 §4
DOI_IPSEC = 1  # RFC 2407 §6.1
SIT_IDENTITY_ONLY = 1  # RFC 2407 §4.2.1
QUICK_MODE_VERSION = (1, 0)  # RFC 4430 §4.2.6


class MessageType(enum.IntEnum):
    """KINK message types (RFC 4430 §4)."""

    CREATE = 1
    DELETE = 2
    REPLY = 3
    GETTGT = 4
    ACK = 5
    STATUS = 6


class KinkPayload(enum.IntEnum):
    """KINK payload types (RFC 4430 §4.2)."""

    DONE = 0
    AP_REQ = 1
    AP_REP = 2
    KRB_ERROR = 3
    TGT_REQ = 4
    TGT_REP = 5
    ISAKMP = 6
    ENCRYPT = 7
    ERROR = 8


GREATEST_DATAGRAM = 65507
"""Octets that fit into UDP over IPv4; over IPv6 it would be a few more."""


class KinkErrorCode(enum.IntEnum):
    """Codes of a KINK_ERROR payload (RFC 4430 §4.2.8)."""

    OK = 0
    PROTOERR = 1
    INVDOI = 2
    INVMAJ = 3
    INTERR = 5
    BADQMVERS = 6
    U2UDENIED = 7
    REQUEST_TOO_SHORT = 8192
    """Private use, of kinkd: a GETTGT is to be as long as the TGT that it asks for."""


def kink_error_name(code: int) -> str:
    """A KINK_ERROR code in words."""
    try:
        return f"KINK_{KinkErrorCode(code).name}"
    except ValueError:
        return f"KINK error {code}"


class KeyUsage(enum.IntEnum):
    """Kerberos key usage numbers of KINK (RFC 4430 §8)."""

    ENCRYPT = 39
    CHECKSUM = 40


class IsakmpPayload(enum.IntEnum):
    """ISAKMP payload types of Quick Mode (RFC 2408 §3.1)."""

    NONE = 0
    SA = 1
    PROPOSAL = 2
    TRANSFORM = 3
    KE = 4
    ID = 5
    NONCE = 10
    NOTIFY = 11
    DELETE = 12


class NotifyType(enum.IntEnum):
    """Notify message types: errors (RFC 4430 §5.5), status from 16384 on (RFC 2407 §4.6.3)."""

    INVALID_PAYLOAD_TYPE = 1
    INVALID_SPI = 11
    NO_PROPOSAL_CHOSEN = 14
    PAYLOAD_MALFORMED = 16
    RESPONDER_LIFETIME = 24576
    REPLAY_STATUS = 24577
    INITIAL_CONTACT = 24578


NOTIFY_STATUS_FIRST = 16384  # RFC 4430 §5.5: below it a type reports an error


class ProtocolId(enum.IntEnum):
    """Security protocol identifiers (RFC 2407 §4.4.1)."""

    ISAKMP = 1
    AH = 2
    ESP = 3
    IPCOMP = 4


class AhTransform(enum.IntEnum):
    """AH transform identifiers (RFC 2407 §4.4.3, RFC 4868 §2.3, RFC 4543 §9)."""

    MD5 = 2
    SHA = 3
    DES = 4
    SHA2_256 = 5
    SHA2_384 = 6
    SHA2_512 = 7
    AES_128_GMAC = 11
    AES_192_GMAC = 12
    AES_256_GMAC = 13


class EspTransform(enum.IntEnum):
    """ESP transform identifiers (RFC 2407 §4.4.4 and the RFCs named beside them)."""

    DES_IV64 = 1
    DES = 2
    TRIPLE_DES = 3
    RC5 = 4
    IDEA = 5
    CAST = 6
    BLOWFISH = 7
    TRIPLE_IDEA = 8
    DES_IV32 = 9
    RC4 = 10
    NULL = 11
    AES_CBC = 12  # RFC 3602 §5.2
    AES_CTR = 13  # RFC 3686 §8.1
    AES_CCM_8 = 14  # RFC 4309 §7.2
    AES_CCM_12 = 15  # RFC 4309 §7.2
    AES_CCM_16 = 16  # RFC 4309 §7.2
    AES_GCM_8 = 18  # RFC 4106 §8.2
    AES_GCM_12 = 19  # RFC 4106 §8.2
    AES_GCM_16 = 20  # RFC 4106 §8.2
    NULL_AES_GMAC = 23  # RFC 4543 §9
    # RFC 7634 has no ISAKMP number: one of those for private use (RFC 2407 §6.5), kinkd's own.
    CHACHA20_POLY1305 = 250


class AttributeClass(enum.IntEnum):
    """SA attribute classes (RFC 2407 §4.5)."""

    LIFE_TYPE = 1
    LIFE_DURATION = 2
    GROUP_DESCRIPTION = 3
    ENCAPSULATION_MODE = 4
    AUTHENTICATION_ALGORITHM = 5
    KEY_LENGTH = 6
    KEY_ROUNDS = 7
    ESN = 11  # RFC 4304 §2


class LifeType(enum.IntEnum):
    """Values of SA Life Type (RFC 2407 §4.5)."""

    SECONDS = 1
    KILOBYTES = 2


class EncapsulationMode(enum.IntEnum):
    """Values of Encapsulation Mode (RFC 2407 §4.5; the UDP ones RFC 3947 §5.1)."""

    TUNNEL = 1
    TRANSPORT = 2
    UDP_TUNNEL = 3
    UDP_TRANSPORT = 4


class AuthenticationAlgorithm(enum.IntEnum):
    """Values of Authentication Algorithm (RFC 2407 §4.5, RFC 4868 §2.3)."""

    HMAC_MD5 = 1
    HMAC_SHA = 2
    DES_MAC = 3
    KPDK = 4
    HMAC_SHA2_256 = 5
    HMAC_SHA2_384 = 6
    HMAC_SHA2_512 = 7


class IdType(enum.IntEnum):
    """Identification types that KINK allows (RFC 4430 §5.3, RFC 2407 §4.6.2.1)."""

    IPV4_ADDR = 1
    IPV4_ADDR_SUBNET = 4
    IPV6_ADDR = 5
    IPV6_ADDR_SUBNET = 6
    IPV4_ADDR_RANGE = 7
    IPV6_ADDR_RANGE = 8
