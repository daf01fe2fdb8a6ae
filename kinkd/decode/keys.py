"""The keys that a CREATE and its REPLY agree on, also of algorithms that kinkd never chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from kinkd.errors import LocalError
from kinkd.keying import keymat
from kinkd.model import IPAddress, Secret
from kinkd.wire import isakmp
from kinkd.wire.numbers import (
    AhTransform,
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
    8: 20,  # HMAC-RIPEMD: RFC 2857 §3
    9: 16,  # AES-XCBC-MAC: RFC 3566 §4.1
}
_AH_GMAC: Mapping[int, int] = {  # salt included, RFC 4543 §5.4
    AhTransform.AES_128_GMAC: 20,
    AhTransform.AES_192_GMAC: 28,
    AhTransform.AES_256_GMAC: 36,
}


class Keyless(LocalError):
    """SAs were agreed on, and their keys cannot be derived from the capture."""


@dataclass(frozen=True, slots=True)
class KeyLengths:
    """Octets of the encryption key, salt included, and of the authentication key."""

    encryption: int
    authentication: int

    @property
    def total(self) -> int:
        """Octets of KEYMAT."""
        return self.encryption + self.authentication


@dataclass(frozen=True, slots=True)
class KeymatView:
    """The keys of one SA, by the side that receives on it.

    ``quick_mode`` counts the KINK_ISAKMP payloads of the message from 1.
    """

    quick_mode: int
    receiver: str
    destination: IPAddress
    protocol_id: int
    spi: bytes
    encryption: Secret = field(repr=False)
    authentication: Secret = field(repr=False)


def key_lengths(proposal: isakmp.Proposal) -> KeyLengths | None:
    """What the first transform of a proposal takes; None: not known."""
    if proposal.protocol_id == ProtocolId.IPCOMP:  # RFC 3173: it has no keys
        return KeyLengths(0, 0)
    if not proposal.transforms:
        return None
    transform = proposal.transforms[0]
    kind = transform.transform_id
    if proposal.protocol_id == ProtocolId.AH and kind in _AH_GMAC:
        return KeyLengths(0, _AH_GMAC[kind])
    values = {attribute.type: attribute.value for attribute in transform.attributes}
    algorithm = values.get(AttributeClass.AUTHENTICATION_ALGORITHM)
    authentication = 0 if algorithm is None else _AUTHENTICATION.get(algorithm)
    if authentication is None:
        return None
    if proposal.protocol_id == ProtocolId.AH:
        return KeyLengths(0, authentication) if authentication else None
    if proposal.protocol_id != ProtocolId.ESP:
        return None
    if kind in _FIXED:
        return KeyLengths(_FIXED[kind], authentication)
    bits = values.get(AttributeClass.KEY_LENGTH, 0)
    if kind not in _SALT or not 0 < bits <= _MAX_KEY_BITS or bits % 8:
        return None
    return KeyLengths(bits // 8 + _SALT[kind], authentication)


@dataclass(frozen=True, slots=True)
class Ends:
    """The two sides of an exchange."""

    initiator: IPAddress
    responder: IPAddress


def derive(
    prf: Callable[[bytes], bytes],
    offer: Iterable[object],
    answer: Iterable[object],
    ends: Ends,
    number: int,
) -> tuple[KeymatView, ...]:
    """The keys of all SAs that one Quick Mode agreed on (RFC 4430 §7), of a bundle by protocol.

    Args:
        prf: the pseudo-random function under the ticket's session key.
        offer: the payloads of the CREATE's KINK_ISAKMP payload.
        answer: those of the REPLY's. Without an SA payload nothing was agreed on.
        ends: whose SAs they are.
        number: which of the message's KINK_ISAKMP payloads it is.

    Raises:
        Keyless: what the keys are made of is not in the capture.
    """
    offered, answered = tuple(offer), tuple(answer)
    chosen = _proposals(answered)
    if not chosen:
        return ()
    if any(isinstance(part, isakmp.KeyExchange) for part in answered):
        raise Keyless("g^xy of the KE payloads goes into KEYMAT: only the two hosts know it")
    ni, nr = _nonce(offered), _nonce(answered)
    if not ni:
        raise Keyless("the nonce of the CREATE is not in the capture")
    found: list[KeymatView] = []
    for theirs in chosen:
        lengths = key_lengths(theirs)
        if lengths is None:
            raise Keyless(f"how long the keys of protocol {theirs.protocol_id} are is not known")
        name = (theirs.number, theirs.protocol_id)
        own = [each for each in _proposals(offered) if (each.number, each.protocol_id) == name]
        if not own:
            raise Keyless(f"proposal {theirs.number} was not offered")
        sides = (("initiator", ends.initiator, own[0]), ("responder", ends.responder, theirs))
        for receiver, destination, one in sides:
            material = keymat.derive(prf, one.protocol_id, one.spi, ni, nr, octets=lengths.total)
            halves = _split(material, lengths.encryption)
            sa = (receiver, destination, one.protocol_id, one.spi)
            found.append(KeymatView(number, *sa, *halves))
    return tuple(found)


def _split(material: Secret, octets: int) -> tuple[Secret, Secret]:
    """The key of encryption first, then that of authentication (RFC 2409 §5.5)."""
    halves = Secret(material.value[:octets]), Secret(material.value[octets:])
    material.wipe()
    return halves


def _proposals(payloads: Iterable[object]) -> list[isakmp.Proposal]:
    associations = (each for each in payloads if isinstance(each, isakmp.SecurityAssociation))
    return [proposal for each in associations for proposal in each.proposals]


def _nonce(payloads: Iterable[object]) -> bytes:
    return next((each.data for each in payloads if isinstance(each, isakmp.Nonce)), b"")
