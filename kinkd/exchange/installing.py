"""From what was agreed on to SAs in the kernel: keys, selector, limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from kinkd.exchange.core import Core
from kinkd.exchange.pairs import CommandId, Role, SaPair, Spis
from kinkd.exchange.quickmode import PROTOCOL_IDS
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.kerberos.port import SessionKey
from kinkd.kernel.port import Kernel, Sa, SaId, SaLimits
from kinkd.keying import keymat
from kinkd.keying.negotiate import Offer, Terms
from kinkd.model import (
    IPAddress,
    IpsecProtocol,
    Lifetime,
    Mode,
    Principal,
    Protection,
    Secret,
    Selector,
    Suite,
    Transform,
)

# A 32-bit sequence number must never wrap (RFC 4303 §3.3.3): rekey far before, stop at the end.
# With ESN neither holds: 64 bits outlive any SA (see _sas).
_HARD_PACKETS = (1 << 32) - 256
_SHORT = 10 * TRANSACTION_SECONDS  # an SA that lives no longer cannot keep the margins below
_RESPONDER_SECONDS, _RESPONDER_VOLUME = 0.65, 0.85  # of an SA's life, where a part of it counts


@dataclass(frozen=True, slots=True)
class Seeds:
    """What goes into KEYMAT beside the session key (RFC 4430 §7).

    Ni and, in a 3-message CREATE, Nr, without payload headers; and what a KE exchange agreed on.
    """

    ni: bytes = field(repr=False)
    nr: bytes = field(default=b"", repr=False)
    shared: Secret | None = None

    @property
    def lowest(self) -> bytes:
        """The lower of the nonces."""
        return min(self.ni, self.nr) if self.nr else self.ni

    def wipe(self) -> None:
        """Overwrite the shared secret: once all SAs have their keys nobody needs it."""
        if self.shared is not None:
            self.shared.wipe()


@dataclass(frozen=True, slots=True)
class Agreement:
    """All that both ends must know alike for the SAs of one Quick Mode.

    ``selector`` is our outbound traffic, ``key`` the session key of a ticket that ends at
    ``ticket_end``, POSIX seconds.
    """

    protection: Protection
    selector: Selector
    suite: Suite
    terms: Terms
    key: SessionKey
    ticket_end: int
    seeds: Seeds

    def lifetime(self, posix: float) -> Lifetime:
        """Of SAs that are made at ``posix``: as agreed, but not far beyond the ticket's end.

        So an account that was disabled is gone from the network soon after its last ticket.
        """
        agreed = self.terms.lifetime
        left = int(self.ticket_end - posix) + self.protection.profile.ticket_grace
        return replace(agreed, seconds=max(1, min(agreed.seconds, left)))

    def install_inbound(self, kernel: Kernel, sas: Sequence[SaId], limits: SaLimits) -> None:
        """Fill the SPIs that were reserved for the suite's transforms."""
        made = self._sas(sas, self.selector.reversed(), limits)
        _hand_over(made, kernel.install_inbound)

    def install_outbound(self, core: Core, sas: Sequence[SaId], limits: SaLimits) -> None:
        """From now on the kernel sends on these, first of all what it holds back."""
        # The entries may have other priorities than when this began.
        current = core.policy.acquired(*self.protection.slot) or self.protection
        forms = core.forms.outbound(current)
        entries = [entry for entry in forms if entry.key not in core.in_the_way]
        made = self._sas(sas, self.selector, limits)
        _hand_over(made, lambda whole: core.kernel.install_outbound(whole, entries))

    def _sas(self, ids: Sequence[SaId], selector: Selector, limits: SaLimits) -> list[Sa]:
        """The SAs of one direction, each pinned to its traffic.

        Without the selector an authenticated host could send ESP under another host's source
        address and pass that host's policy.
        """
        if self.terms.esn:
            limits = replace(limits, soft_packets=None, hard_packets=None)
        mode, made = self.protection.mode, list[Sa]()
        for sa, transform in zip(ids, self.suite.transforms, strict=True):
            first = not made
            made.append(
                Sa(
                    id=sa,
                    # One tunnel alone: what lies around it in a bundle meets its packets.
                    mode=mode if first else Mode.TRANSPORT,
                    reqid=self.protection.reqid,
                    selector=selector,
                    transform=transform,
                    keymat=derive(self.key, sa.spi, self.seeds, transform),
                    limits=limits,
                    esn=self.terms.esn,
                    udp=self.protection.udp,
                    tunnelled=mode is Mode.TUNNEL and not first,
                )
            )
        return made


def pair_of(
    core: Core,
    agreement: Agreement,
    inbound: Sequence[SaId],
    answered: Offer,
    command: CommandId,
    *,
    role: Role,
    principal: Principal,
    created: float,
) -> SaPair:
    """What is remembered of the SAs of an agreement: ours, and those that ``answered`` names."""
    protection = agreement.protection
    return SaPair(
        host=protection.peer.name,
        principal=str(principal),
        local=protection.local,
        remote=protection.remote,
        sas=tuple(Spis(sa.protocol, sa.spi, answered.part(sa.protocol).spi) for sa in inbound),
        mode=protection.mode,
        udp=protection.udp,
        selector=agreement.selector,
        reqid=protection.reqid,
        suite=agreement.suite.name,
        role=role,
        lifetime=agreement.lifetime(core.posix(created)),
        created=int(core.posix(created)),
        epoch=command.epoch,
        xid=command.xid,
        fingerprint=command.fingerprint,
        etype=agreement.key.etype,
        born=created,
        lowest_nonce=agreement.seeds.lowest,
    )


def _hand_over(sas: list[Sa], put: Callable[[list[Sa]], None]) -> None:
    """Give SAs to the kernel and overwrite their keys, whatever comes of it."""
    try:
        put(sas)
    finally:
        for sa in sas:
            sa.keymat.wipe()


def derive(key: SessionKey, spi: int, seeds: Seeds, transform: Transform) -> Secret:
    """KEYMAT of one SA (RFC 4430 §7)."""
    return keymat.derive(
        key.prf,
        PROTOCOL_IDS[transform.protocol],
        spi.to_bytes(4, "big"),
        seeds.ni,
        seeds.nr,
        octets=transform.keymat_octets,
        shared=seeds.shared.value if seeds.shared is not None else b"",
    )


def reserve(
    core: Core, remote: IPAddress, local: IPAddress, reqid: int, protocols: Iterable[IpsecProtocol]
) -> tuple[SaId, ...]:
    """An SPI of ours for each protocol; the kernel takes them back where nothing fills them."""
    return tuple(
        SaId(remote, local, core.kernel.allocate_spi(remote, local, reqid, protocol), protocol)
        for protocol in protocols
    )


def initiator_limits(core: Core, lifetime: Lifetime) -> SaLimits:
    """Hard limits, and soft ones somewhat before them, randomised (RFC 4430 §3.6).

    By time: two to four retransmission cycles before the end (T-rekey is four times T-retrans),
    so that the responder has two left; of a short life 50 to 65 %.
    """
    fraction = int.from_bytes(core.random(4), "big") / (1 << 32)
    hard = lifetime.seconds
    if hard > _SHORT:
        soft = hard - int(TRANSACTION_SECONDS * (2 + 2 * fraction))
    else:
        soft = int(hard * (0.5 + 0.15 * fraction))
    return _limits(lifetime, soft, 0.65 + 0.2 * fraction)


def responder_limits(lifetime: Lifetime) -> SaLimits:
    """Hard limits, and the latest soft ones that the initiator may have.

    Rekeying is the initiator's (RFC 4430 §3.6). What the responder is told is when it has had to
    begin: see ``rekeying``.
    """
    hard = lifetime.seconds
    late = int(hard * _RESPONDER_SECONDS)
    soft = hard - 2 * int(TRANSACTION_SECONDS) if hard > _SHORT else late
    return _limits(lifetime, soft, _RESPONDER_VOLUME)


def _limits(lifetime: Lifetime, soft_seconds: int, volume: float) -> SaLimits:
    octets = None if lifetime.kilobytes is None else lifetime.kilobytes * 1024
    return SaLimits(
        soft_seconds=max(1, soft_seconds),
        hard_seconds=lifetime.seconds,
        soft_octets=None if octets is None else int(octets * volume),
        hard_octets=octets,
        soft_packets=int(_HARD_PACKETS * volume),
        hard_packets=_HARD_PACKETS,
    )
