"""What the core asks of the kernel's SA and policy databases.

``kernel.socket`` is the kernel itself; ``kernel.memory`` is the one of the fast tests and
of ``--dry-run``. Every call is synchronous, takes microseconds, and raises ``KernelError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kinkd.model import (
    Direction,
    IPAddress,
    IpsecProtocol,
    Mode,
    Secret,
    Selector,
    SpdEntry,
    Transform,
)

SaName = tuple[IPAddress, IpsecProtocol, int]
"""Destination, protocol, SPI."""


@dataclass(frozen=True, slots=True)
class SaId:
    """What names an SA in the kernel: destination, protocol, SPI. ``source`` is informative."""

    source: IPAddress
    destination: IPAddress
    spi: int
    protocol: IpsecProtocol = IpsecProtocol.ESP

    @property
    def name(self) -> SaName:
        """What is unique of it."""
        return self.destination, self.protocol, self.spi


@dataclass(frozen=True, slots=True)
class SaLimits:
    """When the kernel tells us (soft) and when it removes the SA (hard); None: never."""

    soft_seconds: int | None = None
    hard_seconds: int | None = None
    soft_octets: int | None = None
    hard_octets: int | None = None
    soft_packets: int | None = None
    hard_packets: int | None = None


@dataclass(frozen=True, slots=True)
class Sa:
    """An SA to install. ``keymat`` is encryption key then authentication key, per ``transform``.

    ``udp``: ESP in UDP, port 4500 at both ends (RFC 3948). ``tunnelled``: the outer SA of a
    bundle whose inner one is a tunnel; its own mode is then transport, and its selector, which
    the kernel compares with the packets inside, that of the tunnel.
    """

    id: SaId
    mode: Mode
    reqid: int
    selector: Selector
    transform: Transform
    keymat: Secret
    limits: SaLimits = SaLimits()
    replay_window: int = 128
    esn: bool = False  # sequence numbers of 64 bits (RFC 4303 §2.2.1)
    udp: bool = False
    tunnelled: bool = False


@dataclass(frozen=True, slots=True)
class SaState:
    """An SA as the kernel has it; no keys."""

    id: SaId
    mode: Mode
    reqid: int
    selector: Selector
    limits: SaLimits
    octets: int
    packets: int
    added: int  # POSIX seconds
    used: int  # POSIX seconds of the first use, 0: never
    algorithms: tuple[str, ...] = ()  # the kernel's names
    larval: bool = False
    esn: bool = False
    udp: bool = False
    sequence: int = 0  # of the acquire that a larval one stands for


@dataclass(frozen=True, slots=True)
class Acquire:
    """Traffic met an SPD entry that wants an SA which is not there."""

    source: IPAddress
    destination: IPAddress
    protocol: IpsecProtocol
    mode: Mode
    reqid: int
    policy_index: int
    sequence: int
    flow: Selector = field(repr=False)


@dataclass(frozen=True, slots=True)
class Expire:
    """A soft limit was met, or (``hard``) the SA is gone. SPI 0: an acquire timed out."""

    id: SaId
    reqid: int
    hard: bool


@dataclass(frozen=True, slots=True)
class Deleted:
    """Somebody deleted an SA; ``id`` None: SAs or SPD entries, and it is not said which.

    Deletions of our own are told as well.
    """

    id: SaId | None = None


@dataclass(frozen=True, slots=True)
class Overrun:
    """The kernel dropped events (ENOBUFS): what it has must be read again."""


KernelEvent = Acquire | Expire | Deleted | Overrun


class Kernel(Protocol):
    """The SA and policy databases of one network namespace."""

    def probe(self, transform: Transform, family: int, *, esn: bool = False) -> None:
        """Install and remove a dummy SA, so that a missing algorithm is known before READY.

        ``family`` is 4 or 6. Loads modules: may take a second; call it before the loop runs.
        """

    def allocate_spi(
        self,
        source: IPAddress,
        destination: IPAddress,
        reqid: int,
        protocol: IpsecProtocol = IpsecProtocol.ESP,
    ) -> int:
        """Reserve an SPI for an inbound SA (XFRM_MSG_ALLOCSPI)."""

    def clear_acquire(self, acquire: Acquire) -> None:
        """Remove the larval SA an acquire stands for, so that traffic acquires again.

        Left alone it is the kernel's own back-off.
        """

    def install_inbound(self, sas: Sequence[Sa]) -> None:
        """Fill reserved SPIs (UPDSA), or add those whose reservation has lapsed (NEWSA).

        The SAs are of one bundle. Where one is refused, none of them stays.
        """

    def install_outbound(self, sas: Sequence[Sa], refresh: Sequence[SpdEntry]) -> None:
        """Add the outbound SAs of one bundle, the last one first, then write ``refresh`` again.

        ``sas`` stand in the order in which a packet meets them. All is one request, and where a
        part is refused no SA of it stays. Writing the SPD entries again sends what they hold back
        and moves connected sockets.
        """

    def remove(self, sa: SaId) -> bool:
        """Remove one SA (DELSA); False: the kernel has none of that name."""

    def states(self) -> list[SaState]:
        """All SAs of the namespace, ours and others', larval ones included."""

    def state(self, sa: SaId) -> SaState | None:
        """One SA, or None."""

    def write_policy(self, entry: SpdEntry) -> None:
        """Write an SPD entry, replacing one of the same selector and direction (UPDPOLICY)."""

    def remove_policy(self, direction: Direction, selector: Selector) -> bool:
        """Remove an SPD entry; False: there was none."""

    def policy(self, direction: Direction, selector: Selector) -> SpdEntry | None:
        """One SPD entry, or None."""

    def policies(self) -> list[SpdEntry]:
        """All SPD entries of the namespace but the ones bound to a socket."""
