"""The responder's side of a 3-message CREATE between its REPLY and the ACK (RFC 4430 §3.2, §9).

The inbound SA is there, since the initiator may send on it as soon as it has the REPLY. The
outbound SA waits for the ACK, which proves that the initiator has its inbound one. The REPLY is
repeated on timer T; without an ACK in a full cycle the half goes, and cannot be made again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kinkd.errors import KernelError, PeerError
from kinkd.exchange import installing
from kinkd.exchange.core import Answer, Core, Peer
from kinkd.exchange.effects import Level, Path
from kinkd.exchange.installing import Seeds
from kinkd.exchange.lifecycle import Lifecycle
from kinkd.exchange.pairs import SaPair
from kinkd.exchange.timing import TRANSACTION_SECONDS, Timer
from kinkd.exchange.verified import VerifiedCommand, seal
from kinkd.kerberos.port import SessionKey
from kinkd.kernel.port import Sa, SaId, SaLimits
from kinkd.model import Host, IPAddress, Protection, Suite
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType

_Key = tuple[str, int, int]  # host, EPOCH, XID: all that an ACK tells

Established = Callable[[SaPair], None]


@dataclass(slots=True, eq=False)
class HalfOpen:
    """A pair of which only the inbound SA is in the kernel."""

    pair: SaPair
    peer: Peer
    path: Path
    protection: Protection
    suite: Suite
    key: SessionKey
    seeds: Seeds
    limits: SaLimits
    answer: Answer = field(repr=False)
    ap_rep: bytes = field(repr=False)  # of the latest command that was answered
    attempt: int = 0
    since: float = 0.0
    timer: Timer | None = None

    def install_inbound(self, core: Core) -> None:
        """From the initiator to us."""
        self._install(core.kernel.install_inbound, self.pair.inbound)

    def install_outbound(self, core: Core) -> None:
        """From us to the initiator; where the kernel refuses it, the inbound SA goes too."""
        entries = self.protection.outbound_entries
        try:
            self._install(lambda sa: core.kernel.install_outbound(sa, entries), self.pair.outbound)
        except KernelError:
            core.remove_sa(self.pair.inbound)
            raise
        finally:
            self.seeds.wipe()

    def _install(self, put: Callable[[Sa], None], sa: SaId) -> None:
        installing.install(put, sa, self.key, self.seeds, self.protection, self.suite, self.limits)

    @property
    def name(self) -> _Key:
        """By what its ACK finds it."""
        return (self.pair.host, self.pair.epoch, self.pair.xid)


class HalfOpens:
    """The owner of all halves that await their ACK."""

    def __init__(self, core: Core, lifecycle: Lifecycle, established: Established) -> None:
        self._core = core
        self._lifecycle = lifecycle
        self._established = established
        self._halves: dict[_Key, HalfOpen] = {}

    def add(self, half: HalfOpen, now: float) -> None:
        """Take up a half whose REPLY is being sent.

        An ACK tells no more than host, EPOCH and XID: of two halves of one name the later counts.
        """
        before = self._halves.get(half.name)
        if before is not None:
            self.give_up(before, now)
        half.since = now
        self._halves[half.name] = half
        self._set_timer(half, now)

    def of_host(self, host: str) -> int:
        """How many there are of one host."""
        return sum(half.pair.host == host for half in self._halves.values())

    def between(self, local: IPAddress, remote: IPAddress) -> bool:
        """Whether one is under way for an address pair: an acquire waits for it."""
        pairs = (half.pair for half in self._halves.values())
        return any((pair.local, pair.remote) == (local, remote) for pair in pairs)

    def by_outbound(self, remote: IPAddress, spi: int) -> HalfOpen | None:
        """The half whose SPI at the initiator this is."""
        for half in self._halves.values():
            if (half.pair.remote, half.pair.outbound_spi) == (remote, spi):
                return half
        return None

    def repeated(self, command: VerifiedCommand, host: Host) -> None:
        """The CREATE came again: what is sent from now on echoes its newest authenticator."""
        half = self._halves.get((host.name, command.epoch, command.xid))
        if half is not None:
            half.ap_rep = command.ap_rep

    def acknowledged(self, command: VerifiedCommand, host: Host) -> None:
        """An ACK has verified: install the outbound SA (§3.2 step 6).

        Raises:
            PeerError: "unexpected-ack": none is awaited, or it came before.
        """
        half = self._halves.get((host.name, command.epoch, command.xid))
        if half is None:
            raise PeerError("unexpected-ack", f"no REPLY of ours asked for one, XID {command.xid}")
        self._forget(half)
        try:
            half.install_outbound(self._core)
        except KernelError as error:
            self._core.kernel_refused(error)
        else:
            self._established(half.pair)

    def give_up(self, half: HalfOpen, now: float) -> None:
        """Remove a half; the CREATE that made it makes it no second time."""
        self._forget(half)
        half.seeds.wipe()
        self._core.remove_sa(half.pair.inbound)
        half.peer.remember(half.pair.command, None, now)

    def give_up_all(self, now: float) -> None:
        """The daemon takes leave."""
        for half in list(self._halves.values()):
            self._abandon(half, now)

    def _abandon(self, half: HalfOpen, now: float) -> None:
        self.give_up(half, now)
        # It may have had our REPLY, and send into what is gone now.
        self._lifecycle.disown(half.peer, half.path, half.pair.inbound_spi, now)

    def _forget(self, half: HalfOpen) -> None:
        del self._halves[half.name]
        if half.timer is not None:
            half.timer.cancel()

    def _set_timer(self, half: HalfOpen, now: float) -> None:
        wait = half.peer.round_trip.timeout(half.attempt)
        half.timer = self._core.timers.at(now + wait, lambda then: self._timeout(half, then))

    def _timeout(self, half: HalfOpen, now: float) -> None:
        if now >= half.since + TRANSACTION_SECONDS:
            self._core.counters["create.unacknowledged"] += 1
            self._core.report(
                Level.WARNING,
                "create-unacknowledged",
                peer=half.pair.host,
                local=half.pair.local,
                remote=half.pair.remote,
            )
            self._abandon(half, now)
            return
        half.attempt += 1
        self._core.counters["retransmitted"] += 1
        proof = kink.ApRep(self._core.epoch, half.ap_rep)
        datagram = seal(
            MessageType.REPLY,
            half.pair.xid,
            proof,
            half.answer.inner,
            half.key,
            ack_request=half.answer.ack_request,
        )
        self._core.send(datagram, half.path)
        self._set_timer(half, now)
