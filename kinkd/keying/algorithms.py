"""The one table of protections: ISAKMP ids, the kernel's names, lengths of KEYMAT.

Each algorithm's own RFC says what KEYMAT holds: an AEAD's or counter mode's salt follows its
key; an authentication key, of the length of the hash, follows that (RFC 2409 §5.5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from kinkd.keying import dh
from kinkd.model import IpsecProtocol, Suite, Transform
from kinkd.wire.numbers import AhTransform, AuthenticationAlgorithm, EspTransform

_SIZES = (256, 128)


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
    ah: AhTransform  # RFC 4302 with it: the transform says the same as the attribute
    octets: int
    icv_bits: int


_GCM = _Combined("gcm16", EspTransform.AES_GCM_16, 4, "rfc4106(gcm(aes))")  # RFC 4106 §8.1
_CCM = _Combined("ccm16", EspTransform.AES_CCM_16, 3, "rfc4309(ccm(aes))")  # RFC 4309 §7.1
_GMAC = _Combined("gmac", EspTransform.NULL_AES_GMAC, 4, "rfc4543(gcm(aes))")  # RFC 4543 §5.2

# RFC 4868 §2.6, and RFC 2404 §3 for the last.
_SHA512 = _Hmac("sha512", AuthenticationAlgorithm.HMAC_SHA2_512, AhTransform.SHA2_512, 64, 256)
_SHA384 = _Hmac("sha384", AuthenticationAlgorithm.HMAC_SHA2_384, AhTransform.SHA2_384, 48, 192)
_SHA256 = _Hmac("sha256", AuthenticationAlgorithm.HMAC_SHA2_256, AhTransform.SHA2_256, 32, 128)
_SHA1 = _Hmac("sha1", AuthenticationAlgorithm.HMAC_SHA, AhTransform.SHA, 20, 96)


def _combined(key_bits: int, cipher: _Combined) -> Suite:
    transform = Transform(
        protocol=IpsecProtocol.ESP,
        transform_id=int(cipher.transform),
        key_bits=key_bits,
        authentication_id=None,
        encryption_octets=key_bits // 8 + cipher.salt_octets,
        authentication_octets=0,
        icv_bits=128,
        aead=cipher.kernel,
    )
    return Suite(f"aes{key_bits}{cipher.name}", (transform,))


def _chacha20_poly1305() -> Suite:
    transform = Transform(
        protocol=IpsecProtocol.ESP,
        transform_id=int(EspTransform.CHACHA20_POLY1305),
        key_bits=None,  # RFC 7634 §4: one key length alone, and no attribute for it
        authentication_id=None,
        encryption_octets=36,  # RFC 7634 §2: a key of 256 bits and a salt of 32
        authentication_octets=0,
        icv_bits=128,
        aead="rfc7539esp(chacha20,poly1305)",
    )
    return Suite("chacha20poly1305", (transform,))


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
    number: EspTransform,
    key_bits: int | None,
    encryption_octets: int,
    encryption: str,
    mac: _Hmac,
) -> Suite:
    transform = Transform(
        protocol=IpsecProtocol.ESP,
        transform_id=int(number),
        key_bits=key_bits,
        authentication_id=int(mac.algorithm),
        encryption_octets=encryption_octets,
        authentication_octets=mac.octets,
        icv_bits=mac.icv_bits,
        encryption=encryption,
        authentication=f"hmac({mac.name})",
    )
    return Suite(f"{name}-{mac.name}", (transform,))


def _ah(mac: _Hmac) -> Suite:
    # RFC 2407 §4.4.3: the Authentication Algorithm attribute must be there, and be the same.
    transform = Transform(
        protocol=IpsecProtocol.AH,
        transform_id=int(mac.ah),
        key_bits=None,
        authentication_id=int(mac.algorithm),
        encryption_octets=0,
        authentication_octets=mac.octets,
        icv_bits=mac.icv_bits,
        authentication=f"hmac({mac.name})",
    )
    return Suite(f"ah-{mac.name}", (transform,))


def _esp_suites() -> Iterator[Suite]:
    """The better ones first. None but the first two is ever used unless policy names it."""
    yield from (_combined(bits, _GCM) for bits in _SIZES)
    yield _chacha20_poly1305()
    yield from (_combined(bits, _CCM) for bits in _SIZES)
    yield from (_cbc(bits, mac) for mac in (_SHA512, _SHA384, _SHA256) for bits in _SIZES)
    yield from (_ctr(bits, _SHA256) for bits in _SIZES)
    yield from (_cbc(bits, _SHA1) for bits in _SIZES)  # for old peers
    yield from (_combined(bits, _GMAC) for bits in _SIZES)  # integrity alone, as is the next
    yield _null(_SHA256)


def _bundle(ah: Suite, esp: Suite) -> Suite:
    """AH around ESP (RFC 2401 §4.3; RFC 4301 §4.3): its name reads as the packet does."""
    return Suite(f"{ah.name}+{esp.name}", esp.transforms + ah.transforms)


def _all() -> Iterator[Suite]:
    esp = tuple(_esp_suites())
    # The kernel's AH knows no GMAC (RFC 4543 §3.6), so there is none here.
    ah = tuple(_ah(mac) for mac in (_SHA512, _SHA384, _SHA256, _SHA1))
    yield from esp
    yield from ah
    yield from (_bundle(outer, inner) for outer in ah for inner in esp)


SUITES: Mapping[str, Suite] = MappingProxyType({suite.name: suite for suite in _all()})
"""Every suite kinkd knows, by the name that policy uses: ESP's, AH's, then bundles of the two."""

GROUP_NUMBERS: Mapping[str, int] = MappingProxyType(
    {group.name: number for number, group in dh.GROUPS.items()}
)
"""The Diffie-Hellman groups there are, by the name that policy uses: the Group Description
attribute (RFC 3526, RFC 5903; 31 is registered for IKEv2 alone, RFC 8031)."""
