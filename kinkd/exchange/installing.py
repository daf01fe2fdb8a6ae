"""From a negotiated suite to an SA in the kernel: keys, selector, limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from kinkd.exchange.core import Core
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.kerberos.port import SessionKey
from kinkd.kernel.port import Sa, SaId, SaLimits
from kinkd.keying import keymat
from kinkd.model import Lifetime, Protection, Secret, Selector, Suite
from kinkd.wire.numbers import ProtocolId

# A 32-bit sequence number must never wrap (RFC 4303 §3.3.3): rekey far before, stop at the end.
# With ESN neither holds: 64 bits outlive any SA (build_sa).
_SOFT_PACKETS = 3 << 30
_HARD_PACKETS = (1 << 32) - 256


@dataclass(frozen=True, slots=True)
class Seeds:
    """What goes into KEYMAT beside the session key (RFC 4430 §7).

    Ni and, in a 3-message CREATE, Nr, without payload headers; and what a KE exchange agreed on.
    """

    ni: bytes = field(repr=False)
    nr: bytes = field(default=b"", repr=False)
    shared: Secret | None = None

    def wipe(self) -> None:
        """Overwrite the shared secret: once both SAs have their keys nobody needs it."""
        if self.shared is not None:
            self.shared.wipe()


def derive(key: SessionKey, spi: int, seeds: Seeds, suite: Suite) -> Secret:
    """KEYMAT of one SA (RFC 4430 §7)."""
    return keymat.derive(
        key.prf,
        ProtocolId.ESP,
        spi.to_bytes(4, "big"),
        seeds.ni,
        seeds.nr,
        octets=suite.keymat_octets,
        shared=seeds.shared.value if seeds.shared is not None else b"",
    )


def build_sa(
    sa: SaId, protection: Protection, suite: Suite, material: Secret, limits: SaLimits
) -> Sa:
    """An SA pinned to its address pair.

    Without the selector an authenticated host could send ESP under another host's source
    address and pass that host's policy.
    """
    selector = Selector.between(sa.source, sa.destination)
    esn = protection.profile.esn
    if esn:
        limits = replace(limits, soft_packets=None, hard_packets=None)
    return Sa(sa, protection.mode, protection.reqid, selector, suite, material, limits, esn=esn)


def install(
    put: Callable[[Sa], None],
    sa: SaId,
    key: SessionKey,
    seeds: Seeds,
    protection: Protection,
    suite: Suite,
    limits: SaLimits,
) -> None:
    """Derive the keys of one SA, hand it to ``put``, and overwrite them, whatever comes of it."""
    material = derive(key, sa.spi, seeds, suite)
    try:
        put(build_sa(sa, protection, suite, material, limits))
    finally:
        material.wipe()


def responder_limits(lifetime: Lifetime) -> SaLimits:
    """Hard limits alone: rekeying is the initiator's (RFC 4430 §3.6)."""
    octets = None if lifetime.kilobytes is None else lifetime.kilobytes * 1024
    return SaLimits(hard_seconds=lifetime.seconds, hard_octets=octets, hard_packets=_HARD_PACKETS)


def initiator_limits(core: Core, lifetime: Lifetime) -> SaLimits:
    """Hard limits, and soft ones somewhat before them, randomised (RFC 4430 §3.6).

    By time: between T-rekey and T-retrans before the end, T-rekey = 2 * T-retrans; of an SA
    too short for that, at 60 to 80 % of its life.
    """
    fraction = int.from_bytes(core.random(4), "big") / (1 << 32)
    hard = lifetime.seconds
    if hard > 5 * TRANSACTION_SECONDS:
        soft = hard - int(TRANSACTION_SECONDS * (1 + fraction))
    else:
        soft = int(hard * (0.6 + 0.2 * fraction))
    octets = None if lifetime.kilobytes is None else lifetime.kilobytes * 1024
    return SaLimits(
        soft_seconds=soft,
        hard_seconds=hard,
        soft_octets=None if octets is None else int(octets * (0.7 + 0.2 * fraction)),
        hard_octets=octets,
        soft_packets=int(_SOFT_PACKETS * (1 + 0.2 * fraction)),
        hard_packets=_HARD_PACKETS,
    )
