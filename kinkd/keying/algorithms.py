"""The one table of ESP protections: ISAKMP ids, the kernel's names, lengths of KEYMAT.

Each algorithm's own RFC says what KEYMAT holds: an AEAD's or counter mode's salt follows its
key; an authentication key, of the length of the hash, follows that (RFC 2409 §5.5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from kinkd.keying import dh
from kinkd.model import Suite
from kinkd.wire.numbers import AuthenticationAlgorithm, EspTransform


class _Combined(NamedTuple):
    """A cipher that protects integrity, too; policy's name for it follows "aes" and the bits."""

    name: str
    transform: EspTransform
    salt_octets: int
    kernel: str


class _Hmac(NamedTuple):
    """An HMAC whose key is as long as its hash; ``icv_bits`` of the result are sent."""

    name: str
    algorithm: AuthenticationAlgorithm
    octets: int
    icv_bits: int


_GCM = _Combined("gcm16", EspTransform.AES_GCM_16, 4, "rfc4106(gcm(aes))")  # RFC 4106 §8.1
_CCM = _Combined("ccm16", EspTransform.AES_CCM_16, 3, "rfc4309(ccm(aes))")  # RFC 4309 §7.1
_GMAC = _Combined("gmac", EspTransform.NULL_AES_GMAC, 4, "rfc4543(gcm(aes))")  # RFC 4543 §5.2

_SHA512 = _Hmac("sha512", AuthenticationAlgorithm.HMAC_SHA2_512, 64, 256)  # RFC 4868 §2.6
_SHA384 = _Hmac("sha384", AuthenticationAlgorithm.HMAC_SHA2_384, 48, 192)
_SHA256 = _Hmac("sha256", AuthenticationAlgorithm.HMAC_SHA2_256, 32, 128)
_SHA1 = _Hmac("sha1", AuthenticationAlgorithm.HMAC_SHA, 20, 96)  # RFC 2404 §3


def _combined(key_bits: int, cipher: _Combined) -> Suite:
    return Suite(
        name=f"aes{key_bits}{cipher.name}",
        transform_id=int(cipher.transform),
        key_bits=key_bits,
        authentication_id=None,
        encryption_octets=key_bits // 8 + cipher.salt_octets,
        authentication_octets=0,
        icv_bits=128,
        aead=cipher.kernel,
    )


def _chacha20_poly1305() -> Suite:
    return Suite(
        name="chacha20poly1305",
        transform_id=int(EspTransform.CHACHA20_POLY1305),
        key_bits=None,  # RFC 7634 §4: one key length alone, and no attribute for it
        authentication_id=None,
        encryption_octets=36,  # RFC 7634 §2: a key of 256 bits and a salt of 32
        authentication_octets=0,
        icv_bits=128,
        aead="rfc7539esp(chacha20,poly1305)",
    )


def _cbc(key_bits: int, mac: _Hmac) -> Suite:  # RFC 3602
    return _separate(
        f"aes{key_bits}", EspTransform.AES_CBC, key_bits, key_bits // 8, "cbc(aes)", mac
    )


def _ctr(key_bits: int, mac: _Hmac) -> Suite:  # RFC 3686 §5.1: four octets of nonce
    octets = key_bits // 8 + 4
    name = f"aes{key_bits}ctr"
    return _separate(name, EspTransform.AES_CTR, key_bits, octets, "rfc3686(ctr(aes))", mac)


def _null(mac: _Hmac) -> Suite:  # RFC 2410: no key at all
    return _separate("null", EspTransform.NULL, None, 0, "ecb(cipher_null)", mac)


def _separate(
    name: str,
    transform: EspTransform,
    key_bits: int | None,
    encryption_octets: int,
    encryption: str,
    mac: _Hmac,
) -> Suite:
    return Suite(
        name=f"{name}-{mac.name}",
        transform_id=int(transform),
        key_bits=key_bits,
        authentication_id=int(mac.algorithm),
        encryption_octets=encryption_octets,
        authentication_octets=mac.octets,
        icv_bits=mac.icv_bits,
        encryption=encryption,
        authentication=f"hmac({mac.name})",
    )


def _all() -> Iterator[Suite]:
    """The better ones first. None but the first two is ever used unless policy names it."""
    sizes = (256, 128)
    yield from (_combined(bits, _GCM) for bits in sizes)
    yield _chacha20_poly1305()
    yield from (_combined(bits, _CCM) for bits in sizes)
    yield from (_cbc(bits, mac) for mac in (_SHA512, _SHA384, _SHA256) for bits in sizes)
    yield from (_ctr(bits, _SHA256) for bits in sizes)
    yield from (_cbc(bits, _SHA1) for bits in sizes)  # for old peers
    yield from (_combined(bits, _GMAC) for bits in sizes)  # integrity alone, as is the next
    yield _null(_SHA256)


SUITES: Mapping[str, Suite] = MappingProxyType({suite.name: suite for suite in _all()})
"""Every suite kinkd knows, by the name that policy uses."""

GROUP_NUMBERS: Mapping[str, int] = MappingProxyType(
    {group.name: number for number, group in dh.GROUPS.items()}
)
"""The Diffie-Hellman groups there are, by the name that policy uses: the Group Description
attribute (RFC 3526, RFC 5903; 31 is registered for IKEv2 alone, RFC 8031)."""
