"""How many octets of KEYMAT a transform takes, also of algorithms that kinkd never chooses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kinkd.wire import isakmp
from kinkd.wire.numbers import (
    AttributeClass,
    AuthenticationAlgorithm,
    EspTransform,
    ProtocolId,
)

_MAX_KEY_BITS = 4096

_FIXED: Mapping[int, int] = {  # octets, where the Key Length attribute plays no part
    EspTransform.DES_IV64: 8,
    EspTransform.DES: 8,
    EspTransform.TRIPLE_DES: 24,
    EspTransform.DES_IV32: 8,
    EspTransform.NULL: 0,
    EspTransform.CHACHA20_POLY1305: 36,  # RFC 7634 §2, salt included
}
_SALT: Mapping[int, int] = {  # octets behind the key, where the Key Length attribute gives that
    EspTransform.CAST: 0,
    EspTransform.BLOWFISH: 0,
    EspTransform.AES_CBC: 0,
    EspTransform.AES_CTR: 4,  # RFC 3686 §5.1
    EspTransform.AES_CCM_8: 3,  # RFC 4309 §7.1
    EspTransform.AES_CCM_12: 3,
    EspTransform.AES_CCM_16: 3,
    EspTransform.AES_GCM_8: 4,  # RFC 4106 §8.1
    EspTransform.AES_GCM_12: 4,
    EspTransform.AES_GCM_16: 4,
    EspTransform.NULL_AES_GMAC: 4,  # RFC 4543 §5.2
}
_AUTHENTICATION: Mapping[int, int] = {
    AuthenticationAlgorithm.HMAC_MD5: 16,
    AuthenticationAlgorithm.HMAC_SHA: 20,
    AuthenticationAlgorithm.HMAC_SHA2_256: 32,
    AuthenticationAlgorithm.HMAC_SHA2_384: 48,
    AuthenticationAlgorithm.HMAC_SHA2_512: 64,
}


@dataclass(frozen=True, slots=True)
class KeyLengths:
    """Octets of the encryption key, salt included, and of the authentication key."""

    encryption: int
    authentication: int

    @property
    def total(self) -> int:
        """Octets of KEYMAT."""
        return self.encryption + self.authentication


def key_lengths(proposal: isakmp.Proposal) -> KeyLengths | None:
    """What the first transform of an ESP or AH proposal takes; None: not known."""
    if not proposal.transforms:
        return None
    transform = proposal.transforms[0]
    values = {attribute.type: attribute.value for attribute in transform.attributes}
    algorithm = values.get(AttributeClass.AUTHENTICATION_ALGORITHM)
    authentication = 0 if algorithm is None else _AUTHENTICATION.get(algorithm)
    if authentication is None:
        return None
    if proposal.protocol_id == ProtocolId.AH:
        return KeyLengths(0, authentication) if authentication else None
    if proposal.protocol_id != ProtocolId.ESP:
        return None
    kind = transform.transform_id
    if kind in _FIXED:
        return KeyLengths(_FIXED[kind], authentication)
    bits = values.get(AttributeClass.KEY_LENGTH, 0)
    if kind not in _SALT or not 0 < bits <= _MAX_KEY_BITS or bits % 8:
        return None
    return KeyLengths(bits // 8 + _SALT[kind], authentication)
