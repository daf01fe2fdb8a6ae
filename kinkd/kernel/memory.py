"""The SA and policy databases of one host, in memory: for tests and ``--dry-run``.

Behaves as Linux was seen to (with ``net.core.xfrm_larval_drop=0``): the same errnos, larval
SAs that back acquires off, hold queues that writing the policy again drains. Time is given.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kinkd.errors import KernelError
from kinkd.kernel import xfrm
from kinkd.kernel.port import Acquire, Expire, KernelEvent, Sa, SaId, SaLimits, SaState
from kinkd.kernel.xfrm import words
from kinkd.model import (
    Direction,
    IPAddress,
    IPNetwork,
    IpsecProtocol,
    Mode,
    PortMatch,
    Secret,
    Selector,
    SpdEntry,
    Suite,
)

Outcome = Literal["esp", "clear", "held", "dropped"]
_QUEUE = 101  # packets a policy holds
_Name = tuple[IPAddress, int, IpsecProtocol]
_Ends = tuple[IPAddress, IPAddress, IpsecProtocol, Mode, int]


@dataclass(frozen=True, slots=True)
class Flow:
    """A packet, as far as selectors look. For ICMP the ports hold type and code."""

    source: IPAddress
    destination: IPAddress
    protocol: int = 0
    source_port: int = 0
    destination_port: int = 0


@dataclass(frozen=True, slots=True)
class Packet:
    """A flow's packet on the wire; ``sa`` None: in clear."""

    flow: Flow
    sa: Sa | None = None


@dataclass(slots=True)
class _Entry:
    """An SA of the database; ``sa`` None: a reserved SPI."""

    id: SaId
    reqid: int
    sa: Sa | None
    added: float
    used: float = 0
    octets: int = 0
    packets: int = 0
    dying: bool = False


@dataclass(frozen=True, slots=True)
class _Larval:
    """What an acquire leaves behind: it keeps the next one away until it lapses."""

    acquire: Acquire
    until: float


class MemoryKernel:
    """``port.Kernel`` without a kernel.

    Args:
        first_spi: where ALLOCSPI begins to count.
        acquire_expires: seconds until a larval SA lapses (net.core.xfrm_acq_expires).
        without: names of suites whose algorithms this kernel lacks.
    """

    def __init__(
        self, first_spi: int = 0x1000, acquire_expires: float = 30, without: Iterable[str] = ()
    ) -> None:
        self.now = 0.0
        self.released: list[Flow] = []
        self._without = frozenset(without)
        self._acquire_expires = acquire_expires
        self._next_spi = first_spi
        self._next_sequence = 1
        self._states: dict[_Name, _Entry] = {}
        self._larvals: dict[_Ends, _Larval] = {}
        self._policies: dict[tuple[Direction, Selector], tuple[int, SpdEntry]] = {}
        self._next_index = 1
        self._queues: dict[tuple[Direction, Selector], list[Flow]] = {}
        self._pending: deque[KernelEvent] = deque()

    def events(self) -> list[KernelEvent]:
        """What happened since the last call."""
        found = list(self._pending)
        self._pending.clear()
        return found

    # --- port.Kernel: SAs ---

    def probe(self, suite: Suite, family: int, *, esn: bool = False) -> None:
        """See ``port.Kernel``."""
        if suite.name in self._without:
            request = f"NEWSA to probe {suite.name} over IPv{family}"
            raise KernelError(errno.ENOSYS, request, "Requested algorithm not found")

    def allocate_spi(self, source: IPAddress, destination: IPAddress, reqid: int) -> int:
        """See ``port.Kernel``. SPIs count upwards."""
        xfrm.allocate_spi(source, destination, reqid, 1)
        while (destination, self._next_spi, IpsecProtocol.ESP) in self._states:
            self._next_spi += 1
        spi, self._next_spi = self._next_spi, self._next_spi + 1
        sa = SaId(source, destination, spi)
        self._states[_name(sa)] = _Entry(sa, reqid, None, self.now)
        return spi

    def clear_acquire(self, acquire: Acquire) -> None:
        """Remove the larval SA an acquire stands for, so that traffic acquires again."""
        self._larvals.pop(_ends_of(acquire), None)

    def install_inbound(self, sa: Sa) -> None:
        """See ``port.Kernel``. Of an SA that is there already only the limits change."""
        xfrm.check_sa(sa)
        self._need(sa.suite, f"UPDSA {words(sa.id)}")
        held = self._states.get(_name(sa.id))
        if held is None:
            self._add(sa)
        elif held.sa is None:
            self._states[_name(sa.id)] = _Entry(sa.id, sa.reqid, _copy(sa), self.now)
        else:
            held.sa = replace(held.sa, limits=sa.limits)
            held.dying = False

    def install_outbound(self, sa: Sa, refresh: Sequence[SpdEntry]) -> None:
        """See ``port.Kernel``. What ``refresh`` releases is appended to ``released``."""
        xfrm.check_sa(sa)
        for entry in refresh:
            xfrm.update_policy(entry, 1)
        self._need(sa.suite, f"NEWSA {words(sa.id)}")
        self._add(sa)
        ends = (sa.id.source, sa.id.destination, sa.id.protocol, sa.mode, sa.reqid)
        self._larvals.pop(ends, None)
        for entry in refresh:
            self.write_policy(entry)

    def remove(self, sa: SaId) -> bool:
        """See ``port.Kernel``."""
        held = self._states.pop(_name(sa), None)
        if held is not None and held.sa is not None:
            held.sa.keymat.wipe()
        return held is not None

    def states(self) -> list[SaState]:
        """See ``port.Kernel``. Acquires in progress show as larval SAs of SPI 0."""
        larvals = [_larval_state(larval.acquire) for larval in self._larvals.values()]
        return [_state(held) for held in self._states.values()] + larvals

    def state(self, sa: SaId) -> SaState | None:
        """See ``port.Kernel``."""
        held = self._states.get(_name(sa))
        return None if held is None else _state(held)

    # --- port.Kernel: policies ---

    def write_policy(self, entry: SpdEntry) -> None:
        """See ``port.Kernel``. What the policy held goes the way the new one says."""
        xfrm.update_policy(entry, 1)
        template = entry.template
        optional_tunnel = template and template.optional and template.mode is Mode.TUNNEL
        if optional_tunnel and entry.direction is Direction.OUT:
            text = "Mode in optional template not allowed in outbound policy"
            raise KernelError(errno.EINVAL, f"UPDPOLICY {words(entry)}", text)
        key = (entry.direction, entry.selector)
        index = self._policies[key][0] if key in self._policies else self._next_index * 8 + 1
        self._next_index += key not in self._policies
        self._policies[key] = (index, entry)
        for flow in self._queues.pop(key, []):
            outcome, _ = self._output(flow, 0)
            if outcome in ("esp", "clear"):
                self.released.append(flow)

    def remove_policy(self, direction: Direction, selector: Selector) -> bool:
        """See ``port.Kernel``. What the policy held is dropped."""
        self._queues.pop((direction, selector), None)
        return self._policies.pop((direction, selector), None) is not None

    def policies(self) -> list[SpdEntry]:
        """See ``port.Kernel``."""
        return [entry for _, entry in self._policies.values()]

    # --- time and traffic ---

    def advance(self, now: float) -> None:
        """Let time pass: soft and hard limits in seconds, larval SAs that lapse."""
        self.now = max(self.now, now)
        for ends, larval in list(self._larvals.items()):
            if larval.until <= self.now:
                del self._larvals[ends]
                acquire = larval.acquire
                sa = SaId(acquire.source, acquire.destination, 0, acquire.protocol)
                self._pending.append(Expire(sa, acquire.reqid, hard=True))
        for held in list(self._states.values()):
            limits = held.sa.limits if held.sa else SaLimits()
            hard = limits.hard_seconds if held.sa else self._acquire_expires
            if hard and self.now - held.added >= hard:
                self._expire(held)
            elif limits.soft_seconds and self.now - held.added >= limits.soft_seconds:
                self._soften(held)

    def traffic(
        self, source: IPAddress, destination: IPAddress, now: float, size: int = 64
    ) -> Outcome:
        """Send a packet of ``size`` octets of payload; acquires what it needs."""
        self.advance(now)
        return self.transmit(Flow(source, destination), size)[0]

    def transmit(self, flow: Flow, size: int = 64) -> tuple[Outcome, Packet | None]:
        """What leaves for this flow; the packet where one does."""
        return self._output(flow, size)

    def send(
        self, peer: MemoryKernel, source: IPAddress, destination: IPAddress, size: int = 64
    ) -> Outcome:
        """Whether a packet gets from here into ``peer``, and how.

        ``"esp"`` only where both hold the same SPI, KEYMAT and suite, and both the SA's
        selector and the inbound policy of the peer take the packet.
        """
        outcome, packet = self._output(Flow(source, destination), size)
        if packet is None:
            return outcome
        return outcome if peer.receive(packet, size) else "dropped"

    def receive(self, packet: Packet, size: int = 64) -> bool:
        """Whether a packet from the wire is accepted."""
        held = None
        if packet.sa is not None:
            held = self._states.get(_name(packet.sa.id))
            if held is None or held.sa is None or not _decrypts(held.sa, packet):
                return False
            if not self._charge(held, size):
                return False
        found = self._lookup(Direction.IN, packet.flow)
        if found is None:
            return held is None or (held.sa is not None and held.sa.mode is Mode.TRANSPORT)
        _, entry = found
        if entry.block:
            return False
        if entry.template is None or entry.template.optional:
            return True
        if held is None or held.sa is None or held.sa.mode is not entry.template.mode:
            return False
        return entry.template.reqid in (0, held.reqid)

    # --- inside ---

    def _need(self, suite: Suite, request: str) -> None:
        if suite.name in self._without:
            raise KernelError(errno.ENOSYS, request, "Requested algorithm not found")

    def _add(self, sa: Sa) -> None:
        if _name(sa.id) in self._states:
            raise KernelError(errno.EEXIST, f"NEWSA {words(sa.id)}")
        self._states[_name(sa.id)] = _Entry(sa.id, sa.reqid, _copy(sa), self.now)

    def _lookup(self, direction: Direction, flow: Flow) -> tuple[int, SpdEntry] | None:
        matching = [
            (index, entry)
            for index, entry in self._policies.values()
            if entry.direction is direction and _matches(entry.selector, flow)
        ]
        return min(matching, key=lambda found: found[1].priority, default=None)

    def _output(self, flow: Flow, size: int) -> tuple[Outcome, Packet | None]:
        found = self._lookup(Direction.OUT, flow)
        if found is None:
            return "clear", Packet(flow)
        index, entry = found
        template = entry.template
        if entry.block:
            return "dropped", None
        if template is None:
            return "clear", Packet(flow)
        ends = (
            template.source or flow.source,
            template.destination or flow.destination,
            template.protocol,
            template.mode,
            template.reqid,
        )
        held = self._outbound(ends, flow)
        if held is not None and held.sa is not None:
            sa = held.sa
            return ("esp", Packet(flow, sa)) if self._charge(held, size) else ("dropped", None)
        self._acquire(ends, index, flow)
        if template.optional:
            return "clear", Packet(flow)
        queue = self._queues.setdefault((Direction.OUT, entry.selector), [])
        if len(queue) >= _QUEUE:
            return "dropped", None
        queue.append(flow)
        return "held", None

    def _outbound(self, ends: _Ends, flow: Flow) -> _Entry | None:
        """The newest SA that fits; one past its soft limit only where no other does."""
        source, destination, protocol, mode, reqid = ends
        fitting = [
            held
            for held in self._states.values()
            if held.sa is not None
            and (held.id.source, held.id.destination) == (source, destination)
            and (held.id.protocol, held.sa.mode, held.reqid) == (protocol, mode, reqid)
            and _matches(held.sa.selector, flow)
        ]
        healthy = [held for held in fitting if not held.dying]
        chosen = healthy or fitting
        return chosen[-1] if chosen else None

    def _acquire(self, ends: _Ends, index: int, flow: Flow) -> None:
        if ends in self._larvals:
            return
        source, destination, protocol, mode, reqid = ends
        selector = replace(
            Selector.between(flow.source, flow.destination),
            protocol=flow.protocol,
            source_port=PortMatch(flow.source_port, 0xFFFF),
            destination_port=PortMatch(flow.destination_port, 0xFFFF),
        )
        acquire = Acquire(
            source, destination, protocol, mode, reqid, index, self._next_sequence, selector
        )
        self._next_sequence += 1
        self._larvals[ends] = _Larval(acquire, self.now + self._acquire_expires)
        self._pending.append(acquire)

    def _charge(self, held: _Entry, size: int) -> bool:
        """Count a packet; False: it was one too many, and the SA is gone."""
        limits = held.sa.limits if held.sa else SaLimits()
        if _reached(limits.hard_packets, held.packets) or _reached(limits.hard_octets, held.octets):
            self._expire(held)
            return False
        if _reached(limits.soft_packets, held.packets) or _reached(limits.soft_octets, held.octets):
            self._soften(held)
        held.packets += 1
        held.octets += size
        held.used = held.used or self.now
        return True

    def _soften(self, held: _Entry) -> None:
        if not held.dying:
            held.dying = True
            self._pending.append(Expire(held.id, held.reqid, hard=False))

    def _expire(self, held: _Entry) -> None:
        self.remove(held.id)
        self._pending.append(Expire(held.id, held.reqid, hard=True))


def _reached(limit: int | None, count: int) -> bool:
    return limit is not None and count >= limit


def _name(sa: SaId) -> _Name:
    return sa.destination, sa.spi, sa.protocol


def _ends_of(acquire: Acquire) -> _Ends:
    ends = (acquire.source, acquire.destination)
    return (*ends, acquire.protocol, acquire.mode, acquire.reqid)


def _copy(sa: Sa) -> Sa:
    """With keys of its own: the caller wipes theirs."""
    return replace(sa, keymat=Secret(sa.keymat.value))


def _covers(network: IPNetwork, address: IPAddress) -> bool:
    return network.version == address.version and address in network


def _matches(selector: Selector, flow: Flow) -> bool:
    sport, dport = selector.source_port, selector.destination_port
    return (
        _covers(selector.source, flow.source)
        and _covers(selector.destination, flow.destination)
        and selector.protocol in (0, flow.protocol)
        and not (sport.port ^ flow.source_port) & sport.mask
        and not (dport.port ^ flow.destination_port) & dport.mask
    )


def _decrypts(sa: Sa, packet: Packet) -> bool:
    sent = packet.sa
    return (
        sent is not None
        and (sa.suite, sa.mode, sa.esn) == (sent.suite, sent.mode, sent.esn)
        and sa.keymat == sent.keymat
        and _matches(sa.selector, packet.flow)
    )


def _state(held: _Entry) -> SaState:
    sa = held.sa
    suite = sa.suite if sa else None
    names = (suite.aead, suite.encryption, suite.authentication) if suite else ()
    pair = Selector.between(held.id.source, held.id.destination)
    return SaState(
        id=held.id,
        mode=sa.mode if sa else Mode.TRANSPORT,
        reqid=held.reqid,
        selector=sa.selector if sa else pair,
        limits=sa.limits if sa else SaLimits(),
        octets=held.octets,
        packets=held.packets,
        added=int(held.added),
        used=int(held.used),
        algorithms=tuple(name for name in names if name),
        larval=sa is None,
        esn=sa is not None and sa.esn,
    )


def _larval_state(acquire: Acquire) -> SaState:
    return SaState(
        id=SaId(acquire.source, acquire.destination, 0, acquire.protocol),
        mode=acquire.mode,
        reqid=acquire.reqid,
        selector=acquire.flow,
        limits=SaLimits(),
        octets=0,
        packets=0,
        added=0,
        used=0,
        larval=True,
    )
