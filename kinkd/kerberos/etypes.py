"""The encryption types of KINK's keys: 17 and 18 (RFC 3962), 19 and 20 (RFC 8009).

A ``Key`` has the operations of RFC 3961 §3 under one protocol key. What it derives for a key
usage it keeps, so that each message costs the AES and the HMAC of its octets and little more.
"""

from __future__ import annotations

import hmac
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha1
from math import lcm
from types import MappingProxyType
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from kinkd.errors import LocalError, PeerError
from kinkd.model import Secret

BLOCK: Final = 16  # octets, the block of AES and the length of the confounder
_ZERO_IV: Final = bytes(BLOCK)

# What follows the key usage in the constant of a derived key: RFC 3961 §5.3, RFC 8009 §5.
_CHECKSUM: Final = 0x99  # Kc
_ENCRYPTION: Final = 0xAA  # Ke
_INTEGRITY: Final = 0x55  # Ki


@lru_cache(maxsize=64)
def n_fold(data: bytes, octets: int) -> bytes:
    """Stretch or shrink ``data`` to ``octets`` octets (RFC 3961 §5.1).

    Copies of the input, each rotated right by 13 bits more than the one before, are laid end to
    end up to the least common multiple of both lengths, cut, and added in ones' complement.
    """
    bits = len(data) * 8
    value = int.from_bytes(data)
    copies = lcm(len(data), octets) // len(data)
    laid = bytearray()
    for copy in range(copies):
        rotation = 13 * copy % bits
        rotated = value >> rotation | (value & (1 << rotation) - 1) << bits - rotation
        laid += rotated.to_bytes(len(data))
    limit = (1 << octets * 8) - 1
    total = sum(int.from_bytes(laid[at : at + octets]) for at in range(0, len(laid), octets))
    while total > limit:  # the end-around carry
        total = (total & limit) + (total >> octets * 8)
    return total.to_bytes(octets)


class _AesCbc:
    """AES-CBC from a zero initial vector, over and over in one context: to make one costs more
    than to encrypt a message with it.

    A context goes on from the last block of ciphertext it has seen. That block is taken out of
    the first block again, and with it all that went before. Not for several threads at once.
    """

    __slots__ = ("_decryptor", "_encryptor", "_received", "_sent")

    def __init__(self, secret: Secret) -> None:
        cipher = Cipher(algorithms.AES(secret.value), modes.CBC(_ZERO_IV))
        self._encryptor = cipher.encryptor()
        self._decryptor = cipher.decryptor()
        self._sent = self._received = 0  # the last block of ciphertext, as a number

    def encrypt(self, blocks: bytes) -> bytes:
        """Encrypt whole blocks."""
        first = int.from_bytes(blocks[:BLOCK]) ^ self._sent
        cipher = self._encryptor.update(first.to_bytes(BLOCK) + blocks[BLOCK:])
        self._sent = int.from_bytes(cipher[-BLOCK:])
        return cipher

    def decrypt(self, blocks: bytes) -> bytes:
        """Decrypt whole blocks."""
        plain = self._decryptor.update(blocks)
        first = int.from_bytes(plain[:BLOCK]) ^ self._received
        self._received = int.from_bytes(blocks[-BLOCK:])
        return first.to_bytes(BLOCK) + plain[BLOCK:]


class _AesCts:
    """AES in CBC mode with ciphertext stealing and a zero initial vector (RFC 3962 §5).

    The last two blocks are always exchanged; a single block is plain AES. The key's octets stay
    the caller's ``Secret``; the contexts' own copies end with this object.
    """

    __slots__ = ("_cbc", "secret")

    def __init__(self, secret: Secret) -> None:
        self.secret = secret
        self._cbc = _AesCbc(secret)

    def block(self, block: bytes) -> bytes:
        """Encrypt one block."""
        return self._cbc.encrypt(block)

    def encrypt(self, plain: bytes) -> bytes:
        """Encrypt at least one block; the result is as long as ``plain``."""
        missing = -len(plain) % BLOCK
        # The zeros that complete the last block are cut off again with the stolen ciphertext.
        blocks = self._cbc.encrypt(plain + bytes(missing) if missing else plain)
        if len(blocks) == BLOCK:
            return blocks
        return b"".join((blocks[:-32], blocks[-16:], blocks[-32 : -16 - missing]))

    def decrypt(self, cipher: bytes) -> bytes:
        """The inverse of ``encrypt``."""
        length = len(cipher)
        if length == BLOCK:
            return self._cbc.decrypt(cipher)
        stolen = length - ((length - 1) % BLOCK + 1)  # where the last, perhaps short, block starts
        whole = cipher[stolen - BLOCK : stolen]  # the encrypted form of the last plaintext block
        short = cipher[stolen:]
        # Of the last block but one of CBC only the head was sent; the rest is in ``whole``,
        # where it met the zeros of the padding.
        rest = self._cbc.decrypt(whole)[len(short) :]
        blocks = b"".join((cipher[: stolen - BLOCK], short, rest, whole))
        return self._cbc.decrypt(blocks)[:length]


class Key(ABC):
    """A Kerberos key and the operations of its etype (``kerberos.port.SessionKey``).

    Attributes:
        secret: the octets of the protocol key. The Key owns them; ``wipe`` ends them.
    """

    __slots__ = ("_checking", "_etype", "_prf_cipher", "_sealing", "secret")

    def __init__(self, etype: _Etype, secret: Secret) -> None:
        self._etype = etype
        self.secret = secret
        self._sealing: dict[int, tuple[_AesCts, Secret]] = {}
        self._checking: dict[int, Secret] = {}
        self._prf_cipher: _AesCts | None = None

    def __repr__(self) -> str:
        return f"<Kerberos key of {self._etype.name}>"

    @property
    def etype(self) -> int:
        """The number of the etype (RFC 3961 §8, RFC 8009 §7)."""
        return self._etype.number

    @property
    def checksum_type(self) -> int:
        """The number of the etype's required checksum mechanism."""
        return self._etype.checksum_type

    @property
    def checksum_octets(self) -> int:
        """Length of the etype's required checksum, and of the HMAC within a ciphertext."""
        return self._etype.mac_octets

    def encrypt(self, usage: int, plain: bytes) -> bytes:
        """RFC 3961 §3 ``encrypt`` under the specific key of ``usage``, random confounder."""
        return self._seal(usage, os.urandom(BLOCK) + plain)

    def decrypt(self, usage: int, cipher: bytes) -> bytes:
        """The inverse of ``encrypt``.

        Raises:
            PeerError: "bad-integrity", where the octets are not genuine or too few.
        """
        body = len(cipher) - self._etype.mac_octets
        if body < BLOCK:
            raise PeerError("bad-integrity", f"a ciphertext of {len(cipher)} octets")
        plain = self._open(usage, cipher[:body], cipher[body:])
        if plain is None:
            raise PeerError("bad-integrity", f"a ciphertext of key usage {usage} is not genuine")
        return plain[BLOCK:]

    def checksum(self, usage: int, data: bytes) -> bytes:
        """RFC 3961 §3 ``get_mic`` of the required checksum mechanism."""
        secret = self._checking.get(usage)
        if secret is None:
            secret = self._derive(usage, _CHECKSUM, self._etype.mac_key_octets)
            self._checking[usage] = secret
        return self._mac(secret, data)

    def verify(self, usage: int, data: bytes, checksum: bytes) -> bool:
        """RFC 3961 §3 ``verify_mic``, in constant time."""
        return hmac.compare_digest(self.checksum(usage, data), checksum)

    @abstractmethod
    def prf(self, data: bytes) -> bytes:
        """RFC 3961 §3 ``pseudo-random``."""

    def wipe(self) -> None:
        """Overwrite the key and all that was derived from it; the Key is of no use afterwards."""
        for cipher, integrity in self._sealing.values():
            cipher.secret.wipe()
            integrity.wipe()
        for secret in self._checking.values():
            secret.wipe()
        if self._prf_cipher is not None:
            self._prf_cipher.secret.wipe()
        self._sealing.clear()
        self._checking.clear()
        self._prf_cipher = None
        self.secret.wipe()
        # Cut to nothing: encrypting under a key of zeros must fail, not work.
        self.secret.value.clear()

    def _derive(self, usage: int, kind: int, octets: int) -> Secret:
        return self._derived(usage.to_bytes(4) + bytes((kind,)), octets)

    def _mac(self, secret: Secret, data: bytes) -> bytes:
        return hmac.digest(secret.value, data, self._etype.hash)[: self._etype.mac_octets]

    def _sealing_keys(self, usage: int) -> tuple[_AesCts, Secret]:
        keys = self._sealing.get(usage)
        if keys is None:
            encryption = self._derive(usage, _ENCRYPTION, self._etype.key_octets)
            integrity = self._derive(usage, _INTEGRITY, self._etype.mac_key_octets)
            keys = self._sealing[usage] = (_AesCts(encryption), integrity)
        return keys

    def _live(self) -> bytearray:
        if not self.secret.value:
            raise LocalError(f"a {self._etype.name} key was used after it was wiped")
        return self.secret.value

    @abstractmethod
    def _derived(self, constant: bytes, octets: int) -> Secret:
        """The key of ``octets`` octets that ``constant`` stands for."""

    @abstractmethod
    def _seal(self, usage: int, plain: bytes) -> bytes:
        """Encrypt ``plain``, which begins with the confounder, and append its HMAC."""

    @abstractmethod
    def _open(self, usage: int, cipher: bytes, mac: bytes) -> bytes | None:
        """The plaintext with its confounder; None where ``mac`` does not fit."""


class _Sha1Key(Key):
    """Etypes 17 and 18: RFC 3961's simplified profile with the parameters of RFC 3962 §6."""

    __slots__ = ()

    def _derived(self, constant: bytes, octets: int) -> Secret:
        # DK(key, constant) = k-truncate(K1 | K2 ...), Kn = E(key, Kn-1): RFC 3961 §5.1.
        aes = _AesCts(Secret(self._live()))
        block = n_fold(constant, BLOCK)
        derived = Secret(b"")
        while len(derived) < octets:
            block = aes.block(block)
            derived.value += block
        aes.secret.wipe()
        return derived

    def _seal(self, usage: int, plain: bytes) -> bytes:
        cipher, integrity = self._sealing_keys(usage)
        return cipher.encrypt(plain) + self._mac(integrity, plain)  # RFC 3961 §5.3

    def _open(self, usage: int, cipher: bytes, mac: bytes) -> bytes | None:
        aes, integrity = self._sealing_keys(usage)
        plain = aes.decrypt(cipher)
        return plain if hmac.compare_digest(self._mac(integrity, plain), mac) else None

    def prf(self, data: bytes) -> bytes:
        """RFC 3961 §5.3: E(DK(key, "prf"), H(data)): 20 octets.

        RFC 3962 §6 sets the message block size m to 1, so the whole hash is encrypted. libkrb5
        cuts it to 16 octets; KEYMAT of its kind agrees with no other KINK implementation.
        """
        cipher = self._prf_cipher
        if cipher is None:
            cipher = self._prf_cipher = _AesCts(self._derived(b"prf", self._etype.key_octets))
        return cipher.encrypt(sha1(data).digest())  # noqa: S324  # what the etype prescribes


class _Sha2Key(Key):
    """Etypes 19 and 20: encrypt-then-MAC of RFC 8009."""

    __slots__ = ()

    def _kdf(self, label: bytes, context: bytes, octets: int) -> bytes:
        # KDF-HMAC-SHA2: one block of SP800-108 in counter mode (RFC 8009 §3).
        seed = b"".join((b"\0\0\0\x01", label, b"\0", context, (octets * 8).to_bytes(4)))
        return hmac.digest(self._live(), seed, self._etype.hash)[:octets]

    def _derived(self, constant: bytes, octets: int) -> Secret:
        return Secret(self._kdf(constant, b"", octets))

    def _seal(self, usage: int, plain: bytes) -> bytes:
        aes, integrity = self._sealing_keys(usage)
        cipher = aes.encrypt(plain)
        return cipher + self._mac(integrity, _ZERO_IV + cipher)  # RFC 8009 §5

    def _open(self, usage: int, cipher: bytes, mac: bytes) -> bytes | None:
        aes, integrity = self._sealing_keys(usage)
        if not hmac.compare_digest(self._mac(integrity, _ZERO_IV + cipher), mac):
            return None
        return aes.decrypt(cipher)

    def prf(self, data: bytes) -> bytes:
        """RFC 8009 §5: KDF-HMAC-SHA2(key, "prf", data, 256 or 384): 32 or 48 octets."""
        return self._kdf(b"prf", data, self._etype.prf_octets)


@dataclass(frozen=True, slots=True)
class _Etype:
    """The parameters of an etype; lengths in octets."""

    number: int
    name: str
    key_octets: int
    mac_key_octets: int  # Ki and Kc
    mac_octets: int  # of a ciphertext's HMAC, and of a checksum
    checksum_type: int
    prf_octets: int
    hash: str
    make: Callable[[_Etype, Secret], Key] = field(repr=False)


_ETYPES: Final[Mapping[int, _Etype]] = MappingProxyType(
    {
        etype.number: etype
        for etype in (
            # RFC 3962 §6 and §7
            _Etype(17, "aes128-cts-hmac-sha1-96", 16, 16, 12, 15, 20, "sha1", _Sha1Key),
            _Etype(18, "aes256-cts-hmac-sha1-96", 32, 32, 12, 16, 20, "sha1", _Sha1Key),
            # RFC 8009 §5 and §7
            _Etype(19, "aes128-cts-hmac-sha256-128", 16, 16, 16, 19, 32, "sha256", _Sha2Key),
            _Etype(20, "aes256-cts-hmac-sha384-192", 32, 24, 24, 20, 48, "sha384", _Sha2Key),
        )
    }
)

SUPPORTED: Final = frozenset(_ETYPES)
NAMES: Final[Mapping[int, str]] = MappingProxyType(
    {number: etype.name for number, etype in _ETYPES.items()}
)


def key(etype: int, octets: bytes | bytearray | Secret) -> Key:
    """A key of ``etype`` with a copy of these octets.

    Raises:
        LocalError: an etype that is not ``SUPPORTED``, or a key of another length than it has.
    """
    known = _known(etype)
    if len(octets) != known.key_octets:
        raise LocalError(f"a {known.name} key has {known.key_octets} octets, not {len(octets)}")
    return known.make(known, Secret(octets.value if isinstance(octets, Secret) else octets))


def random_key(etype: int) -> Key:
    """A new key of ``etype`` from the system's generator. Raises LocalError as ``key`` does."""
    return key(etype, os.urandom(_known(etype).key_octets))


def _known(etype: int) -> _Etype:
    known = _ETYPES.get(etype)
    if known is None:
        raise LocalError(f"etype {etype} is not one KINK may use here: 17, 18, 19, 20")
    return known
