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
from kinkd.kernel.port import (
    Acquire,
    Deleted,
    Expire,
    KernelEvent,
    Sa,
    SaId,
    SaLimits,
    SaName,
    SaState,
)
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
    Template,
    Transform,
)

Outcome = Literal["esp", "ah", "ah+esp", "clear", "held", "dropped"]
_PASSING = ("esp", "ah", "ah+esp", "clear")
_QUEUE = 101  # packets a policy holds
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
    """A flow's packet on the wire, and the SAs it went through, outermost last; none: in clear."""

    flow: Flow
    sas: tuple[Sa, ...] = ()


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
        without: transforms whose algorithms this kernel lacks.
        posix: POSIX seconds at the instant 0.
    """

    def __init__(
        self,
        first_spi: int = 0x1000,
        acquire_expires: float = 30,
        without: Iterable[Transform] = (),
        posix: float = 0.0,
    ) -> None:
        self.now = 0.0
        self._posix = posix
        self.released: list[Flow] = []
        self._without = frozenset(without)
        self._acquire_expires = acquire_expires
        self._next_spi = first_spi
        self._next_sequence = 1
        self._states: dict[SaName, _Entry] = {}
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

    def probe(self, transform: Transform, family: int, *, esn: bool = False) -> None:
        """See ``port.Kernel``."""
        self._need(transform, f"NEWSA to probe {words(transform)} over IPv{family}")

    def allocate_spi(
        self,
        source: IPAddress,
        destination: IPAddress,
        reqid: int,
        protocol: IpsecProtocol = IpsecProtocol.ESP,
    ) -> int:
        """See ``port.Kernel``. SPIs count upwards."""
        xfrm.allocate_spi(source, destination, reqid, 1, protocol=protocol)
        while (destination, protocol, self._next_spi) in self._states:
            self._next_spi += 1
        spi, self._next_spi = self._next_spi, self._next_spi + 1
        sa = SaId(source, destination, spi, protocol)
        self._states[sa.name] = _Entry(sa, reqid, None, self.now)
        return spi

    def clear_acquire(self, acquire: Acquire) -> None:
        """Remove the larval SA an acquire stands for, so that traffic acquires again."""
        self._larvals.pop(_ends_of(acquire), None)

    def install_inbound(self, sas: Sequence[Sa]) -> None:
        """See ``port.Kernel``. Of an SA that is live already only the limits change."""
        xfrm.check_bundle(sas)
        try:
            for sa in sas:
                self._need(sa.transform, f"UPDSA {words(sa.id)}")
        except KernelError:
            for sa in sas:
                held = self._states.get(sa.id.name)
                if held is not None and held.sa is None:
                    self.remove(sa.id)
            raise
        for sa in sas:
            held = self._states.get(sa.id.name)
            if held is None or held.sa is None:
                self._states[sa.id.name] = _Entry(sa.id, sa.reqid, _copy(sa), self.now)
            else:
                held.sa = replace(held.sa, limits=sa.limits)
                held.dying = False

    def install_outbound(self, sas: Sequence[Sa], refresh: Sequence[SpdEntry]) -> None:
        """See ``port.Kernel``. What ``refresh`` releases is appended to ``released``."""
        xfrm.check_bundle(sas)
        for entry in refresh:
            xfrm.update_policy(entry, 1)
        added: list[Sa] = []
        try:
            for sa in reversed(sas):
                self._need(sa.transform, f"NEWSA {words(sa.id)}")
                self._add(sa)
                added.append(sa)
            for entry in refresh:
                self.write_policy(entry)
        except KernelError:
            for sa in added:
                self.remove(sa.id)
            raise

    def remove(self, sa: SaId) -> bool:
        """See ``port.Kernel``."""
        held = self._take(sa)
        if held is not None:
            self._pending.append(Deleted(held.id))
        return held is not None

    def states(self) -> list[SaState]:
        """See ``port.Kernel``. Acquires in progress show as larval SAs of SPI 0."""
        larvals = [_larval_state(larval.acquire) for larval in self._larvals.values()]
        return [self._state(held) for held in self._states.values()] + larvals

    def state(self, sa: SaId) -> SaState | None:
        """See ``port.Kernel``."""
        held = self._states.get(sa.name)
        return None if held is None else self._state(held)

    # --- port.Kernel: policies ---

    def write_policy(self, entry: SpdEntry) -> None:
        """See ``port.Kernel``. What the policy held goes the way the new one says."""
        xfrm.update_policy(entry, 1)
        optional_tunnel = any(
            template.optional and template.mode is Mode.TUNNEL for template in entry.templates
        )
        if optional_tunnel and entry.direction is Direction.OUT:
            text = "Mode in optional template not allowed in outbound policy"
            raise KernelError(errno.EINVAL, f"UPDPOLICY {words(entry)}", text)
        key = entry.key
        index = self._policies[key][0] if key in self._policies else self._next_index * 8 + 1
        self._next_index += key not in self._policies
        self._policies[key] = (index, entry)
        for flow in self._queues.pop(key, []):
            outcome, _ = self._output(flow, 0)
            if outcome in _PASSING:
                self.released.append(flow)

    def remove_policy(self, direction: Direction, selector: Selector) -> bool:
        """See ``port.Kernel``. What the policy held is dropped."""
        self._queues.pop((direction, selector), None)
        return self._policies.pop((direction, selector), None) is not None

    def policy(self, direction: Direction, selector: Selector) -> SpdEntry | None:
        """See ``port.Kernel``."""
        held = self._policies.get((direction, selector))
        return None if held is None else held[1]

    def policies(self) -> list[SpdEntry]:
        """See ``port.Kernel``."""
        return [entry for _, entry in self._policies.values()]

    # --- others ---

    def flush_states(self) -> None:
        """Somebody else deletes every SA (``ip xfrm state flush``)."""
        for held in list(self._states.values()):
            self.remove(held.id)
        self._larvals.clear()
        self._pending.append(Deleted())

    def flush_policies(self) -> None:
        """Somebody else deletes every SPD entry; what they held is dropped."""
        self._policies.clear()
        self._queues.clear()
        self._pending.append(Deleted())

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
        self,
        peer: MemoryKernel,
        source: IPAddress,
        destination: IPAddress,
        size: int = 64,
        *,
        forward: bool = False,
    ) -> Outcome:
        """Whether a packet gets from here into ``peer``, or (``forward``) through it, and how.

        Protected only where both hold the same SPIs, KEYMAT and transforms, and both the SAs'
        selectors and the policy of the peer take the packet. Behind gateways ``source`` and
        ``destination`` are the hosts' own addresses.
        """
        outcome, packet = self._output(Flow(source, destination), size)
        if packet is None:
            return outcome
        return outcome if peer.receive(packet, size, forward=forward) else "dropped"

    def receive(self, packet: Packet, size: int = 64, *, forward: bool = False) -> bool:
        """Whether a packet from the wire is accepted: for this host, or to be forwarded."""
        used: list[Sa] = []
        for sent in reversed(packet.sas):
            held = self._states.get(sent.id.name)
            if held is None or held.sa is None or not _decrypts(held.sa, sent):
                return False
            used.append(held.sa)
            if not self._charge(held, size):
                return False
        # Both questions are about the packet inside, once it is reached.
        if not all(_matches(sa.selector, packet.flow) for sa in used):
            return False
        found = self._lookup(Direction.FWD if forward else Direction.IN, packet.flow)
        if found is None:
            return all(sa.mode is Mode.TRANSPORT for sa in used)
        _, entry = found
        return not entry.block and _satisfied(entry.templates, used)

    # --- inside ---

    def _state(self, held: _Entry) -> SaState:
        added, used = int(self._posix + held.added), int(self._posix + held.used)
        return replace(_state(held), added=added, used=used if held.used else 0)

    def _need(self, transform: Transform, request: str) -> None:
        if transform in self._without:
            raise KernelError(errno.ENOSYS, request, "Requested algorithm not found")

    def _add(self, sa: Sa) -> None:
        if sa.id.name in self._states:
            raise KernelError(errno.EEXIST, f"NEWSA {words(sa.id)}")
        self._states[sa.id.name] = _Entry(sa.id, sa.reqid, _copy(sa), self.now)
        ends = (sa.id.source, sa.id.destination, sa.id.protocol, sa.mode, sa.reqid)
        self._larvals.pop(ends, None)

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
        if entry.block:
            return "dropped", None
        stack = self._resolve(entry, index, flow)
        if stack is None:
            queue = self._queues.setdefault((Direction.OUT, entry.selector), [])
            if len(queue) >= _QUEUE:
                return "dropped", None
            queue.append(flow)
            return "held", None
        sas = tuple(held.sa for held in stack if held.sa is not None)
        if not all(self._charge(held, size) for held in stack):
            return "dropped", None
        return _outcome(sas), Packet(flow, sas)

    def _resolve(self, entry: SpdEntry, index: int, flow: Flow) -> list[_Entry] | None:
        """The SAs of the templates in order; None: one is missing, and asked for."""
        source, destination = flow.source, flow.destination
        stack: list[_Entry] = []
        for template in entry.templates:
            # A tunnel's endpoints are those of the packet that the next template meets.
            source, destination = template.source or source, template.destination or destination
            ends = (source, destination, template.protocol, template.mode, template.reqid)
            held = self._outbound(ends, flow)
            if held is not None:
                stack.append(held)
                continue
            self._acquire(ends, index, flow)
            if not template.optional:
                return None
        return stack

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

    def _take(self, sa: SaId) -> _Entry | None:
        held = self._states.pop(sa.name, None)
        if held is not None and held.sa is not None:
            held.sa.keymat.wipe()
        return held

    def _expire(self, held: _Entry) -> None:
        self._take(held.id)
        self._pending.append(Expire(held.id, held.reqid, hard=True))


def _reached(limit: int | None, count: int) -> bool:
    return limit is not None and count >= limit


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


def _decrypts(sa: Sa, sent: Sa) -> bool:
    return (sa.transform, sa.mode, sa.esn, sa.udp, sa.keymat) == (
        sent.transform,
        sent.mode,
        sent.esn,
        sent.udp,
        sent.keymat,
    )


def _satisfied(templates: Sequence[Template], used: Sequence[Sa]) -> bool:
    """Whether the SAs that a packet came through, outermost first, are what the policy demands.

    Templates are met from the outermost inwards. SAs in transport mode may be more than that;
    one in tunnel mode that no template names is refused.
    """
    position = 0
    for template in reversed(templates):
        if template.optional and template.mode is Mode.TRANSPORT:
            continue
        met = _meet(template, used, position)
        if met is None and not template.optional:
            return False
        position = position if met is None else met
    return all(sa.mode is Mode.TRANSPORT for sa in used[position:])


def _meet(template: Template, used: Sequence[Sa], start: int) -> int | None:
    """Where to go on after the SA that satisfies the template; no tunnel is passed over."""
    for position, sa in enumerate(used[start:], start):
        ends = (template.source, template.destination)
        if (
            (sa.id.protocol, sa.mode) == (template.protocol, template.mode)
            and template.reqid in (0, sa.reqid)
            and (sa.mode is Mode.TRANSPORT or ends == (sa.id.source, sa.id.destination))
        ):
            return position + 1
        if sa.mode is Mode.TUNNEL:
            return None
    return None


def _outcome(sas: Sequence[Sa]) -> Outcome:
    protocols = {sa.id.protocol for sa in sas}
    if len(protocols) > 1:
        return "ah+esp"
    if not protocols:
        return "clear"
    return "esp" if IpsecProtocol.ESP in protocols else "ah"


def _state(held: _Entry) -> SaState:
    sa = held.sa
    transform = sa.transform if sa else None
    names = (transform.aead, transform.encryption, transform.authentication) if transform else ()
    pair = Selector.between(held.id.source, held.id.destination)
    return SaState(
        id=held.id,
        mode=sa.mode if sa else Mode.TRANSPORT,
        reqid=held.reqid,
        selector=sa.selector if sa else pair,
        limits=sa.limits if sa else SaLimits(),
        octets=held.octets,
        packets=held.packets,
        added=0,
        used=0,
        algorithms=tuple(name for name in names if name),
        larval=sa is None,
        esn=sa is not None and sa.esn,
        udp=sa is not None and sa.udp,
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
        sequence=acquire.sequence,
    )
