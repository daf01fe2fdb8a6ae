"""Numbers of the protocol as people read them; also those that kinkd itself never uses.

A reader of captures meets what others send. What only names a number stands here; what is
decided by one is in ``kinkd.wire.numbers``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

from kinkd.kerberos.etypes import NAMES as ETYPES
from kinkd.keying.dh import GROUPS
from kinkd.wire import isakmp
from kinkd.wire.numbers import (
    AhTransform,
    AttributeClass,
    AuthenticationAlgorithm,
    EncapsulationMode,
    EspTransform,
    IdType,
    IsakmpPayload,
    LifeType,
    NotifyType,
    ProtocolId,
)

Names = Mapping[int, str]


def _names(known: type[enum.IntEnum], others: Mapping[int, str] | None = None) -> Names:
    return {**{int(one): one.name for one in known}, **(others or {})}


PROTOCOLS = _names(ProtocolId)
TRANSFORMS: Mapping[int, Names] = {
    # RFC 2407 §4.4.3, RFC 2857 §3, RFC 3566 §4.5; RFC 2407 §4.4.4, RFC 4196 §6, RFC 4312 §8
    ProtocolId.AH: _names(AhTransform, {8: "RIPEMD", 9: "AES_XCBC_MAC", 10: "RSA"}),
    ProtocolId.ESP: _names(EspTransform, {21: "SEED_CBC", 22: "CAMELLIA"}),
    ProtocolId.IPCOMP: {1: "OUI", 2: "DEFLATE", 3: "LZS", 4: "LZJH"},
}
ATTRIBUTES = _names(  # RFC 2407 §4.5, RFC 3168 §9.2.1.1
    AttributeClass,
    {8: "COMPRESS_DICTIONARY_SIZE", 9: "COMPRESS_PRIVATE_ALGORITHM", 10: "ECN_TUNNEL"},
)
# RFC 2409 §6, RFC 5114 §3; those that kinkd has by the name that policy uses
DH_GROUPS: Names = {
    1: "modp768",
    2: "modp1024",
    5: "modp1536",
    22: "modp1024-160",
    23: "modp2048-224",
    24: "modp2048-256",
    25: "ecp192",
    26: "ecp224",
    **{number: group.name for number, group in GROUPS.items()},
}
_AUTHENTICATION = _names(  # RFC 2857 §3, RFC 3566 §4.5, RFC 4359 §4, RFC 4543 §9
    AuthenticationAlgorithm,
    {
        8: "HMAC_RIPEMD",
        9: "AES_XCBC_MAC",
        10: "SIG_RSA",
        11: "AES_128_GMAC",
        12: "AES_192_GMAC",
        13: "AES_256_GMAC",
    },
)
_VALUES: Mapping[int, Names] = {
    AttributeClass.LIFE_TYPE: _names(LifeType),
    AttributeClass.ENCAPSULATION_MODE: _names(EncapsulationMode),
    AttributeClass.AUTHENTICATION_ALGORITHM: _AUTHENTICATION,
}
PAYLOADS = _names(  # RFC 2408 §3.1
    IsakmpPayload,
    {6: "CERTIFICATE", 7: "CERTIFICATE_REQUEST", 8: "HASH", 9: "SIGNATURE", 13: "VENDOR_ID"},
)
ID_TYPES = _names(  # RFC 2407 §4.6.2.1; RFC 4430 §5.3 takes six of them
    IdType, {2: "FQDN", 3: "USER_FQDN", 9: "DER_ASN1_DN", 10: "DER_ASN1_GN", 11: "KEY_ID"}
)
NOTIFICATIONS = _names(  # RFC 2408 §3.14.1
    NotifyType,
    {
        2: "DOI_NOT_SUPPORTED",
        3: "SITUATION_NOT_SUPPORTED",
        4: "INVALID_COOKIE",
        5: "INVALID_MAJOR_VERSION",
        6: "INVALID_MINOR_VERSION",
        7: "INVALID_EXCHANGE_TYPE",
        8: "INVALID_FLAGS",
        9: "INVALID_MESSAGE_ID",
        10: "INVALID_PROTOCOL_ID",
        12: "INVALID_TRANSFORM_ID",
        13: "ATTRIBUTES_NOT_SUPPORTED",
        15: "BAD_PROPOSAL_SYNTAX",
        17: "INVALID_KEY_INFORMATION",
        18: "INVALID_ID_INFORMATION",
        19: "INVALID_CERT_ENCODING",
        20: "INVALID_CERTIFICATE",
        21: "CERT_TYPE_UNSUPPORTED",
        22: "INVALID_CERT_AUTHORITY",
        23: "INVALID_HASH_INFORMATION",
        24: "AUTHENTICATION_FAILED",
        25: "INVALID_SIGNATURE",
        26: "ADDRESS_NOTIFICATION",
        27: "NOTIFY_SA_LIFETIME",
        28: "CERTIFICATE_UNAVAILABLE",
        29: "UNSUPPORTED_EXCHANGE_TYPE",
        30: "UNEQUAL_PAYLOAD_LENGTHS",
        16384: "CONNECTED",
    },
)
IP_PROTOCOLS: Names = {
    1: "ICMP",
    4: "IPv4",
    6: "TCP",
    17: "UDP",
    33: "DCCP",
    41: "IPv6",
    47: "GRE",
    50: "ESP",
    51: "AH",
    58: "ICMPv6",
    89: "OSPF",
    132: "SCTP",
    136: "UDP-Lite",
}
AP_OPTIONS: Names = {1: "use-session-key", 2: "mutual-required"}  # RFC 4120 §5.5.1
TICKET_FLAGS: Names = {  # RFC 4120 §5.3, RFC 6806 §11, RFC 6112 §3
    1: "forwardable",
    2: "forwarded",
    3: "proxiable",
    4: "proxy",
    5: "may-postdate",
    6: "postdated",
    7: "invalid",
    8: "renewable",
    9: "initial",
    10: "pre-authent",
    11: "hw-authent",
    12: "transited-policy-checked",
    13: "ok-as-delegate",
    15: "enc-pa-rep",
    16: "anonymous",
}
_SUBNETS = (IdType.IPV4_ADDR_SUBNET, IdType.IPV6_ADDR_SUBNET)
_RANGES = (IdType.IPV4_ADDR_RANGE, IdType.IPV6_ADDR_RANGE)
_OCTETS: Mapping[int, int] = {  # of an identity's data, RFC 2407 §4.6.2
    IdType.IPV4_ADDR: 4,
    IdType.IPV4_ADDR_SUBNET: 8,
    IdType.IPV4_ADDR_RANGE: 8,
    IdType.IPV6_ADDR: 16,
    IdType.IPV6_ADDR_SUBNET: 32,
    IdType.IPV6_ADDR_RANGE: 32,
}


def name(names: Mapping[int, str], number: int) -> str:
    """``NAME(number)``, or the bare number where it has no name here."""
    return f"{names[number]}({number})" if number in names else str(number)


def attribute(one: isakmp.Attribute) -> tuple[str, str]:
    """What an SA attribute is called, and its value."""
    if one.type == AttributeClass.GROUP_DESCRIPTION:
        value = _numbered(DH_GROUPS, one.value)
    elif one.type == AttributeClass.ESN:
        value = _numbered({1: "64-bit sequence numbers"}, one.value)  # RFC 4304 §2
    else:
        value = name(_VALUES.get(one.type, {}), one.value)
    return name(ATTRIBUTES, one.type), value


def _numbered(names: Names, number: int) -> str:
    """Of what people know by its number, too: that, then the name."""
    return f"{number} {names[number]}" if number in names else str(number)


def transform(protocol_id: int, one: isakmp.Transform) -> str:
    """In one line: the algorithm, its key length, and what else is not a lifetime."""
    said = [name(TRANSFORMS.get(protocol_id, {}), one.transform_id)]
    lifetimes = (AttributeClass.LIFE_TYPE, AttributeClass.LIFE_DURATION)
    for each in one.attributes:
        if each.type == AttributeClass.KEY_LENGTH:
            said.insert(1, f"{each.value} bits")
        elif each.type == AttributeClass.ESN:
            said.append("ESN")
        elif each.type == AttributeClass.GROUP_DESCRIPTION:
            said.append(f"group {attribute(each)[1]}")
        elif each.type not in lifetimes:
            said.append(attribute(each)[1])
    return " ".join(said)


def spi(octets: bytes) -> str:
    """As ``ip xfrm state`` prints it; of any length."""
    return f"0x{octets.hex()}" if octets else "none"


def address(one: isakmp.Identification) -> str:
    """The address, subnet or range that an identity names; "": its data do not fit its type."""
    data = one.data
    if _OCTETS.get(one.id_type) != len(data):
        return ""
    half = len(data) // 2
    if one.id_type in _SUBNETS:
        first, mask = ip_address(data[:half]), ip_address(data[half:])
        bits = int(mask).bit_count()
        whole = (1 << mask.max_prefixlen) - 1
        if int(mask) == whole ^ (whole >> bits):
            return str(ip_network((data[:half], bits), strict=False))
        return f"{first} mask {mask}"
    if one.id_type in _RANGES:
        return f"{ip_address(data[:half])}-{ip_address(data[half:])}"
    return str(ip_address(data))


def identity(one: isakmp.Identification) -> str:
    """The traffic that an identity means at its side (RFC 2407 §4.6.2); octets where unknown."""
    protocol = name(IP_PROTOCOLS, one.protocol) if one.protocol else "any"
    port = str(one.port) if one.port else "any"
    return f"{address(one) or one.data.hex() or 'nothing'}  protocol {protocol}  port {port}"


def notified(one: isakmp.Notification) -> str:
    """What the data of a notification say (RFC 4430 §5.5); "": there are none."""
    if one.type == NotifyType.INVALID_PAYLOAD_TYPE and len(one.data) == 1:
        return f"payload type {name(PAYLOADS, one.data[0])}"
    return one.data.hex()


def etype(number: int) -> str:
    """A Kerberos encryption type."""
    return _numbered(ETYPES, number)


def flags(names: Names, value: int) -> str:
    """The flags of a KerberosFlags of 32 bits (RFC 4120 §5.2.8); those without a name by number."""
    bits = [bit for bit in range(32) if value >> (31 - bit) & 1]
    return _joined(names.get(bit, f"bit-{bit}") for bit in bits)


def _joined(words: Iterable[str]) -> str:
    return ",".join(words) or "none"
