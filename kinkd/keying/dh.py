"""Diffie-Hellman for the KE payload: groups, public values, shared secrets (RFC 2409 §5.5).

A private value serves one agreement and is given up whatever comes of it. It lives inside
OpenSSL, which clears it on release. The library hands the shared secret over as immutable
octets: the ``Secret`` made of them can be wiped, the octets it was copied from are only released.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning

from kinkd.errors import LocalError, PeerError
from kinkd.model import Secret
from kinkd.wire.numbers import NotifyType

# cryptography 50 announces the end of its finite-field groups, in a warning that nobody who runs
# kinkd can act on. Where a version has none, GROUPS is without the MODP groups.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", CryptographyDeprecationWarning)
    try:
        from cryptography.hazmat.primitives.asymmetric.dh import (
            DHParameterNumbers,
            DHPrivateKey,
            DHPublicNumbers,
        )
    except ImportError:
        _HAS_MODP = False
    else:
        _HAS_MODP = True

# [2^8062 pi]. RFC 3526 makes every prime of a leading part of it: no other digits to copy.
_PI: Final = int(
    "c90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74020bbea63b139b22514a08798e3404ddef9519b3"
    "cd3a431b302b0a6df25f14374fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed"
    "ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf0598da48361c55d39a69163fa8"
    "fd24cf5f83655d23dca3ad961c62f356208552bb9ed529077096966d670c354e4abc9804f1746c08ca18217c"
    "32905e462e36ce3be39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf6955817183995497c"
    "ea956ae515d2261898fa051015728e5a8aaac42dad33170d04507a33a85521abdf1cba64ecfb850458dbef0a"
    "8aea71575d060c7db3970f85a6e1e4c7abf5ae8cdb0933d71e8c94e04a25619dcee3d2261ad2ee6bf12ffa06"
    "d98a0864d87602733ec86a64521f2b18177b200cbbe117577a615d6c770988c0bad946e208e24fa074e5ab31"
    "43db5bfce0fd108e4b82d120a92108011a723c12a787e6d788719a10bdba5b2699c327186af4e23c1a946834"
    "b6150bda2583e9ca2ad44ce8dbbbc2db04de8ef92e8efc141fbecaa6287c59474e6bc05d99b2964fa090c3a2"
    "233ba186515be7ed1f612970cee2d7afb81bdd762170481cd0069127d5b05aa993b4ea988d8fddc186ffb7dc"
    "90a6c08f4df435c93402849236c3fab4d27c7026c1d4dcb2602646dec9751e763dba37bdf8ff9406ad9e530e"
    "e5db382f413001aeb06a53ed9027d831179727b0865a8918da3edbebcf9b14ed44ce6cbaced4bb1bdb7f1447"
    "e6cc254b332051512bd7af426fb8f401378cd2bf5983ca01c64b92ecf032ea15d1721d03f482d7ce6e74fef6"
    "d55e702f46980c82b5a84031900b1c9e59e7c97fbec7e8f323a97a7e36cc88be0f1d45b7ff585ac54bd407b2"
    "2b4154aacc8f6d7ebf48e1d814cc5ed20f8037e0a79715eef29be32806a1d58bb7c5da76f550aa3d8a1fbff0"
    "eb19ccb1a313d55cda56c9ec2ef29632387fe8d76e3c0468043e8f663f4860ee12bf2d5b0b7474d6e694f91e"
    "6dbe115974a3926f12fee5e438777cb6a932df8cd8bec4d073b931ba3bc832b68d9dd300741fa7bf8afc47ed"
    "2576f6936ba424663aab639c5ae4f5683423b4742bf1c978238f16cbe39d652de3fdb8befc848ad922222e04"
    "a4037c0713eb57a81a23f0c73473fc646cea306b4bcbc8862f8385ddfa9d4b7fa2c087e879683303ed5bdd3a"
    "062b3cf5b3a278a66d2a13f83f44f82ddf310ee074ab6a364597e899a0255dc164f31cc50846851df9ab4819"
    "5ded7ea1b1d510bd7ee74d73faf36bc31ecfa268359046f4eb879f924009438b481c6cd7889a002ed5ee382b"
    "c9190da6fc026e479558e4475677e9aa9e3050e2765694dfc81f56e880b96e7160c980dd98a573ea",
    16,
)


class Private(Protocol):
    """A private value, in the form its kind of group has for it."""

    @property
    def public(self) -> bytes:
        """The public value as KE data."""

    def agree(self, peer_public: bytes) -> bytes:
        """The shared secret with a public value of the right length.

        Raises:
            ValueError: no public value of the group, or of small order.
        """


class ModpPrivate:
    """RFC 3526: KE data and secret are padded on the left to the length of the prime."""

    def __init__(self, key: DHPrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> bytes:
        return self._key.public_key().public_numbers().y.to_bytes(self._key.key_size // 8)

    def agree(self, peer_public: bytes) -> bytes:
        numbers = self._key.parameters().parameter_numbers()
        y = int.from_bytes(peer_public)
        # RFC 6989 §2.1: of the subgroups of a safe prime, no more need be kept out.
        if not 2 <= y <= numbers.p - 2:
            raise ValueError("not in 2..p-2")
        return self._key.exchange(DHPublicNumbers(y, numbers).public_key())


class EcpPrivate:
    """RFC 5903 §7: KE data is x | y, the secret is x alone, each of the length of the field."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> bytes:
        key = self._key.public_key()
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]

    def agree(self, peer_public: bytes) -> bytes:
        # RFC 6989 §2.3: on the curve, which the library sees to; this form has no infinity.
        point = b"\x04" + peer_public
        key = ec.EllipticCurvePublicKey.from_encoded_point(self._key.curve, point)
        return self._key.exchange(ec.ECDH(), key)


class X25519Private:
    """RFC 7748 §6.1; a point of small order gives zeros, which the library refuses."""

    def __init__(self, key: X25519PrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> bytes:
        return self._key.public_key().public_bytes_raw()

    def agree(self, peer_public: bytes) -> bytes:
        return self._key.exchange(X25519PublicKey.from_public_bytes(peer_public))


@dataclass(frozen=True, slots=True)
class Group:
    """A Diffie-Hellman group by its number in Group Description (RFC 2407 §4.5)."""

    number: int
    name: str
    public_octets: int
    secret_octets: int
    make: Callable[[], Private] = field(repr=False, compare=False)


class Ephemeral:
    """One private value and its public value: good for one agreement, then gone."""

    __slots__ = ("_private", "group", "public")

    def __init__(self, group: Group, private: Private) -> None:
        self.group = group
        self.public = private.public
        self._private: Private | None = private

    def __repr__(self) -> str:
        return f"<ephemeral value of {self.group.name}>"

    def agree(self, peer_public: bytes) -> Secret:
        """g^xy with the peer's public value, as it enters KEYMAT.

        The private value is gone afterwards, even where the peer's value is refused: nobody
        gets to try a second one on it.

        Raises:
            PeerError: ``bad-public-value``: of another length, or no element to agree with.
            LocalError: the private value has been used or wiped.
        """
        private, self._private = self._private, None
        if private is None:
            raise LocalError(f"the private value of {self.group.name} is used up")
        outcome = self._attempt(private, peer_public)
        del private  # else the traceback of the error would keep it
        if isinstance(outcome, Secret):
            return outcome
        raise PeerError(
            "bad-public-value",
            f"{self.group.name}: {outcome}",
            notify=NotifyType.PAYLOAD_MALFORMED,
        )

    def wipe(self) -> None:
        """Give up the private value unused."""
        self._private = None

    def _attempt(self, private: Private, peer_public: bytes) -> Secret | str:
        """The shared secret, or why there is none."""
        if len(peer_public) != self.group.public_octets:
            return f"{len(peer_public)} octets, not {self.group.public_octets}"
        try:
            return Secret(private.agree(peer_public))
        except ValueError as error:
            return str(error)


def generate(group: Group) -> Ephemeral:
    """A fresh private value of the group, from the system's random source."""
    return Ephemeral(group, group.make())


def _modp_prime(bits: int, constant: int) -> int:
    """2^n - 2^(n-64) - 1 + 2^64 * ([2^(n-130) pi] + constant) (RFC 3526 §§3-7)."""
    pi = _PI >> 8192 - bits
    return (1 << bits) - (1 << bits - 64) - 1 + (pi + constant << 64)


def _modp(number: int, bits: int, constant: int) -> Group:
    numbers = DHParameterNumbers(_modp_prime(bits, constant), 2)

    def make() -> Private:
        return ModpPrivate(numbers.parameters().generate_private_key())

    return Group(number, f"modp{bits}", bits // 8, bits // 8, make)


def _ecp(number: int, curve: ec.EllipticCurve) -> Group:
    octets = (curve.key_size + 7) // 8

    def make() -> Private:
        return EcpPrivate(ec.generate_private_key(curve))

    return Group(number, f"ecp{curve.key_size}", 2 * octets, octets, make)


_MODP: Final = (
    (14, 2048, 124476),
    (15, 3072, 1690314),
    (16, 4096, 240904),
    (17, 6144, 929484),
    (18, 8192, 4743158),
)

# What this host can negotiate, by number. 31 is registered for IKEv2 (RFC 8031 §5), not for the
# Group Description of RFC 2409: no sole offer to a peer that is not known to have it.
GROUPS: Final[Mapping[int, Group]] = MappingProxyType(
    {
        group.number: group
        for group in (
            *(_modp(*row) for row in _MODP if _HAS_MODP),
            _ecp(19, ec.SECP256R1()),
            _ecp(20, ec.SECP384R1()),
            _ecp(21, ec.SECP521R1()),
            Group(31, "curve25519", 32, 32, lambda: X25519Private(X25519PrivateKey.generate())),
        )
    }
)
