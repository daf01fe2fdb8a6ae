"""The responder's side of a 3-message CREATE between its REPLY and the ACK (RFC 4430 §3.2, §9).

The inbound SAs are there, since the initiator may send on them as soon as it has the REPLY. The
outbound SAs wait for the ACK, which proves that the initiator has its inbound ones. The REPLY is
repeated on timer T; without an ACK in a full cycle the half goes, and cannot be made again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kinkd.errors import KernelError, PeerError
from kinkd.exchange.core import Answer, Core, Peer
from kinkd.exchange.effects import ForgetPair, Level, Path
from kinkd.exchange.installing import Agreement, responder_limits
from kinkd.exchange.lifecycle import Lifecycle
from kinkd.exchange.pairs import CommandId, SaPair
from kinkd.exchange.timing import TRANSACTION_SECONDS, Timer
from kinkd.exchange.verified import VerifiedCommand, seal
from kinkd.kerberos.port import SessionKey
from kinkd.kernel.port import SaName
from kinkd.model import Host, IPAddress, IpsecProtocol, Selector, Slot
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType

_Name = tuple[Peer, int, int]  # whose, EPOCH, XID: all that an ACK tells

Established = Callable[[SaPair, float], None]


@dataclass(frozen=True, slots=True)
class Half:
    """A pair of which only the inbound SAs are in the kernel, or are about to be."""

    pair: SaPair
    agreement: Agreement

    def install_inbound(self, core: Core, now: float) -> None:
        """From the initiator to us."""
        limits = responder_limits(self.agreement.lifetime(core.posix(now)))
        self.agreement.install_inbound(core.kernel, self.pair.inbound, limits)

    def install_outbound(self, core: Core, now: float) -> None:
        """From us to the initiator."""
        limits = responder_limits(self.agreement.lifetime(core.posix(now)))
        self.agreement.install_outbound(core, self.pair.outbound, limits)

    def remove_inbound(self, core: Core) -> None:
        """Take back what ``install_inbound`` did; its secret goes, too."""
        self.agreement.seeds.wipe()
        for sa in self.pair.inbound:
            core.remove_sa(sa)


def install_outbound(halves: tuple[Half, ...], core: Core, now: float) -> None:
    """Make pairs of halves: all that one CREATE asked for, or nothing is left of any.

    Raises:
        KernelError: the kernel refused one.
    """
    whole: list[Half] = []
    try:
        for half in halves:
            half.install_outbound(core, now)
            whole.append(half)
    except KernelError:
        for sa in (sa for half in whole for sa in half.pair.outbound):
            core.remove_sa(sa)  # never one that was refused: the peer's SPI may be another's
        for half in halves:
            half.remove_inbound(core)
        raise
    finally:
        for half in halves:
            half.agreement.seeds.wipe()


def undone(halves: tuple[Half, ...], peer: Peer, core: Core, now: float) -> None:
    """Remember, over a restart too, that the CREATE that asked for these is not carried out again.

    Their keys may have been used.
    """
    for half in halves:
        core.emit(ForgetPair(half.pair))
        peer.remember(half.pair.command, None, now)


@dataclass(slots=True, eq=False)
class HalfOpen:
    """A CREATE that was answered and waits for its ACK."""

    halves: tuple[Half, ...]
    command: CommandId
    peer: Peer
    path: Path
    key: SessionKey
    answer: Answer = field(repr=False)
    ap_rep: bytes = field(repr=False)  # of the latest command that was answered
    attempt: int = 0
    since: float = 0.0
    timer: Timer | None = None

    @property
    def name(self) -> _Name:
        """By what its ACK finds it."""
        return (self.peer, self.command.epoch, self.command.xid)

    @property
    def outbound(self) -> list[SaName]:
        """The SPIs that the initiator chose."""
        sas = (sa for half in self.halves for sa in half.pair.outbound)
        return [sa.name for sa in sas]


class HalfOpens:
    """The owner of all halves that await their ACK."""

    def __init__(self, core: Core, lifecycle: Lifecycle, established: Established) -> None:
        self._core = core
        self._lifecycle = lifecycle
        self._established = established
        self._open: dict[_Name, HalfOpen] = {}
        self._outbound: dict[SaName, HalfOpen] = {}

    def add(self, opened: HalfOpen, now: float) -> None:
        """Take up halves whose REPLY is being sent.

        An ACK tells no more than host, EPOCH and XID: of two of one name the later counts.
        """
        before = self._open.get(opened.name)
        if before is not None:
            self.give_up(before, now)
        opened.since = now
        self._open[opened.name] = opened
        self._outbound.update(dict.fromkeys(opened.outbound, opened))
        self._set_timer(opened, now)

    def of_host(self, host: str) -> int:
        """How many halves there are of one host."""
        mine = (opened for opened in self._open.values() if opened.peer.host.name == host)
        return sum(len(opened.halves) for opened in mine)

    def awaits(self, slot: Slot, flow: Selector) -> bool:
        """Whether an SA for this traffic is under way: an acquire waits for it."""
        return any(pair.selector.covers(flow) for pair in self.pairs_in_slot(slot))

    def pairs_in_slot(self, slot: Slot) -> list[SaPair]:
        """What they will be, where they are for the same."""
        halves = (half for opened in self._open.values() for half in opened.halves)
        return [half.pair for half in halves if half.pair.slot == slot]

    def by_outbound(self, remote: IPAddress, protocol: IpsecProtocol, spi: int) -> HalfOpen | None:
        """The CREATE in which the initiator chose this SPI."""
        return self._outbound.get((remote, protocol, spi))

    def repeated(self, command: VerifiedCommand, host: Host) -> None:
        """The CREATE came again: what is sent from now on echoes its newest authenticator."""
        opened = self._open.get((self._core.peer(host), command.epoch, command.xid))
        if opened is not None:
            opened.ap_rep = command.ap_rep

    def acknowledged(self, command: VerifiedCommand, host: Host, now: float) -> None:
        """An ACK has verified: install the outbound SAs (§3.2 step 6).

        Raises:
            PeerError: "unexpected-ack": none is awaited, or it came before.
        """
        opened = self._open.get((self._core.peer(host), command.epoch, command.xid))
        if opened is None:
            raise PeerError("unexpected-ack", f"no REPLY of ours asked for one, XID {command.xid}")
        self._forget(opened)
        try:
            install_outbound(opened.halves, self._core, now)
        except KernelError as error:
            self._core.kernel_refused(error)
            undone(opened.halves, opened.peer, self._core, now)
            self._disown(opened, now)
            return
        for half in opened.halves:
            self._established(half.pair, now)

    def give_up(self, opened: HalfOpen, now: float) -> None:
        """Remove halves; the CREATE that made them makes them no second time."""
        self._forget(opened)
        for half in opened.halves:
            half.remove_inbound(self._core)
        undone(opened.halves, opened.peer, self._core, now)

    def give_up_all(self, now: float, which: Callable[[HalfOpen], bool] = lambda _: True) -> None:
        """The daemon takes leave, or of some of them."""
        for opened in filter(which, list(self._open.values())):
            self._abandon(opened, now)

    def _abandon(self, opened: HalfOpen, now: float) -> None:
        self.give_up(opened, now)
        self._disown(opened, now)

    def _disown(self, opened: HalfOpen, now: float) -> None:
        """The peer may have had our REPLY, and send into what is gone now."""
        self._lifecycle.disown_pairs([half.pair for half in opened.halves], now)

    def _forget(self, opened: HalfOpen) -> None:
        del self._open[opened.name]
        for name in opened.outbound:
            del self._outbound[name]
        if opened.timer is not None:
            opened.timer.cancel()

    def _set_timer(self, opened: HalfOpen, now: float) -> None:
        wait = opened.peer.round_trip.timeout(opened.attempt)
        opened.timer = self._core.timers.at(now + wait, lambda then: self._timeout(opened, then))

    def _timeout(self, opened: HalfOpen, now: float) -> None:
        if now >= opened.since + TRANSACTION_SECONDS:
            self._core.counters["create.unacknowledged"] += 1
            self._core.report(
                Level.WARNING,
                "create-unacknowledged",
                peer=opened.peer.host.name,
                local=opened.path.local,
                remote=opened.path.remote,
            )
            self._abandon(opened, now)
            return
        opened.attempt += 1
        self._core.counters["retransmitted"] += 1
        proof = kink.ApRep(self._core.epoch, opened.ap_rep)
        datagram = seal(
            MessageType.REPLY,
            opened.command.xid,
            proof,
            opened.answer.inner,
            opened.key,
            ack_request=opened.answer.ack_request,
        )
        self._core.send(datagram, opened.path)
        self._set_timer(opened, now)
