"""The one table of ESP protections: ISAKMP ids, the kernel's names, lengths of KEYMAT.

Transform ids: RFC 2407 §4.4.4, RFC 3602 §5.2 (AES-CBC, 12), RFC 4106 §8.2 (AES-GCM-16, 20).
Authentication Algorithm values: RFC 2407 §4.5, RFC 4868 §2.3 (HMAC-SHA2-256, 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kinkd.keying import dh
from kinkd.model import Suite

_ESP_AES_CBC = 12
_ESP_AES_GCM_16 = 20
_HMAC_SHA1 = 2
_HMAC_SHA2_256 = 5
_GCM_SALT_OCTETS = 4  # RFC 4106 §8.1: the salt follows the key in KEYMAT


def _gcm(key_bits: int) -> Suite:
    return Suite(
        name=f"aes{key_bits}gcm16",
        transform_id=_ESP_AES_GCM_16,
        key_bits=key_bits,
        authentication_id=None,
        encryption_octets=key_bits // 8 + _GCM_SALT_OCTETS,
        authentication_octets=0,
        icv_bits=128,
        aead="rfc4106(gcm(aes))",
    )


def _cbc(key_bits: int, hash_name: str, hash_id: int, hash_octets: int, icv_bits: int) -> Suite:
    return Suite(
        name=f"aes{key_bits}-{hash_name}",
        transform_id=_ESP_AES_CBC,
        key_bits=key_bits,
        authentication_id=hash_id,
        encryption_octets=key_bits // 8,
        authentication_octets=hash_octets,
        icv_bits=icv_bits,
        encryption="cbc(aes)",
        authentication=f"hmac({hash_name})",
    )


SUITES: Mapping[str, Suite] = MappingProxyType(
    {
        suite.name: suite
        for suite in (
            _gcm(256),
            _gcm(128),
            _cbc(256, "sha256", _HMAC_SHA2_256, 32, 128),
            _cbc(128, "sha256", _HMAC_SHA2_256, 32, 128),
            _cbc(128, "sha1", _HMAC_SHA1, 20, 96),  # only where policy names it
        )
    }
)
"""Every suite kinkd knows, by the name that policy uses."""

GROUP_NUMBERS: Mapping[str, int] = MappingProxyType(
    {group.name: number for number, group in dh.GROUPS.items()}
)
"""The Diffie-Hellman groups there are, by the name that policy uses: the Group Description
attribute (RFC 3526, RFC 5903; 31 is registered for IKEv2 alone, RFC 8031)."""
