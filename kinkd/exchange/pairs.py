"""The SA pairs that live in the kernel on our behalf, found by SPI, by CREATE, or by slot."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from kinkd.errors import LocalError
from kinkd.kernel.port import SaId, SaName
from kinkd.model import IPAddress, IpsecProtocol, Lifetime, Mode, Selector, Slot
from kinkd.policy.match import HostPolicy


class Role(enum.Enum):
    """Which end of the CREATE we were. The initiator is the one who rekeys (RFC 4430 §3.6)."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


class CommandId(NamedTuple):
    """What tells a repeated command from a new one: an XID alone may come again (RFC 4430 §4).

    ``fingerprint`` is 56 bits of a digest of what the command holds.
    """

    epoch: int
    xid: int
    fingerprint: int


class Spis(NamedTuple):
    """The two SAs of one protocol: each SPI was chosen by the SA's receiver."""

    protocol: IpsecProtocol
    inbound: int
    outbound: int


@dataclass(frozen=True, slots=True)
class SaPair:
    """An SA each way that one Quick Mode made; of a bundle, one each way for every protocol.

    ``sas`` stand in the order of the suite's transforms. ``selector`` is our outbound traffic.
    ``created`` is POSIX seconds; ``epoch`` and ``xid`` are those under which the peer knows
    the exchange: with the host they recognise a repeated CREATE across a restart.
    """

    host: str
    principal: str
    local: IPAddress
    remote: IPAddress
    sas: tuple[Spis, ...]
    mode: Mode
    udp: bool
    selector: Selector
    reqid: int
    suite: str
    role: Role
    lifetime: Lifetime
    created: int
    epoch: int  # the peer's, RFC 4430 §3.7
    xid: int
    fingerprint: int  # of the CREATE, where the peer sent it; else 0
    etype: int
    born: float = field(default=0.0, repr=False, compare=False)  # as ``created``, by our own clock
    # Of Ni and Nr, while this daemon lives: it settles which of two that cross remains.
    lowest_nonce: bytes = field(default=b"", repr=False, compare=False)

    @property
    def command(self) -> CommandId:
        """The CREATE that made the pair."""
        return CommandId(self.epoch, self.xid, self.fingerprint)

    @property
    def slot(self) -> Slot:
        """What the pair is for."""
        return (self.local, self.remote, self.reqid)

    @property
    def inbound(self) -> tuple[SaId, ...]:
        """The SAs from the peer to us."""
        ends = (self.remote, self.local)
        return tuple(SaId(*ends, spis.inbound, spis.protocol) for spis in self.sas)

    @property
    def outbound(self) -> tuple[SaId, ...]:
        """The SAs from us to the peer."""
        ends = (self.local, self.remote)
        return tuple(SaId(*ends, spis.outbound, spis.protocol) for spis in self.sas)

    @property
    def both_ways(self) -> tuple[SaId, ...]:
        """All its SAs."""
        return (*self.inbound, *self.outbound)

    @property
    def inbound_spis(self) -> tuple[tuple[IpsecProtocol, int], ...]:
        """What a DELETE of ours names."""
        return tuple((spis.protocol, spis.inbound) for spis in self.sas)

    def words(self) -> dict[str, object]:
        """What reports say of it; the SPIs are those of the innermost protocol."""
        said: dict[str, object] = {
            "peer": self.host,
            "role": self.role.value,
            "local": self.local,
            "remote": self.remote,
            "spi_in": f"{self.sas[0].inbound:#010x}",
            "spi_out": f"{self.sas[0].outbound:#010x}",
            "suite": self.suite,
            "etype": self.etype,
        }
        if self.mode is Mode.TUNNEL:
            said["traffic"] = f"{self.selector.source}-{self.selector.destination}"
        return said


def is_wanted(pair: SaPair, policy: HostPolicy) -> bool:
    """Whether a policy allows a pair of this kind: an address may be another's by now.

    Of the terms it knows the suite alone; see ``Endpoint.apply``.
    """
    protection = policy.acquired(*pair.slot)
    if protection is None:
        return False
    peer = protection.peer
    return (
        peer.name == pair.host
        and pair.principal in (str(peer.client), str(peer.service))
        and (protection.mode, protection.udp) == (pair.mode, pair.udp)
        and protection.selector.covers(pair.selector)
        and pair.suite in (suite.name for suite in protection.profile.suites)
    )


_Key = TypeVar("_Key")


class PairTable:
    """The one owner of the live pairs. An SPI is found only with its destination and protocol."""

    def __init__(self) -> None:
        self._by_sa: dict[SaName, SaPair] = {}
        self._outbound: dict[SaName, SaPair] = {}
        self._creates: dict[tuple[str, CommandId], list[SaPair]] = {}
        self._slots: dict[Slot, list[SaPair]] = {}
        self._hosts: dict[str, list[SaPair]] = {}
        self._ends: Counter[tuple[IPAddress, IPAddress]] = Counter()  # of transport mode
        self._tunnels: dict[SaName, SaPair] = {}

    def __len__(self) -> int:
        return sum(map(len, self._hosts.values()))

    def __iter__(self) -> Iterator[SaPair]:
        return iter([pair for pairs in self._hosts.values() for pair in pairs])

    def add(self, pair: SaPair) -> None:
        """Take a pair up.

        Raises:
            LocalError: one of its SPIs is a live pair's.
        """
        names = [sa.name for sa in pair.both_ways]
        if any(name in self._by_sa for name in names):
            raise LocalError(f"two pairs with {pair.host} under one SPI")
        self._by_sa.update(dict.fromkeys(names, pair))
        for sa in pair.outbound:
            self._outbound[sa.name] = pair
        if pair.role is Role.RESPONDER:
            self._creates.setdefault((pair.host, pair.command), []).append(pair)
        self._slots.setdefault(pair.slot, []).append(pair)
        self._hosts.setdefault(pair.host, []).append(pair)
        if pair.mode is Mode.TRANSPORT:
            self._ends[pair.local, pair.remote] += 1
        else:
            self._tunnels[pair.inbound[0].name] = pair

    def discard(self, pair: SaPair) -> bool:
        """Give a pair up; False where it was gone already."""
        if not self.holds(pair):
            return False
        for sa in pair.both_ways:
            del self._by_sa[sa.name]
        for sa in pair.outbound:
            del self._outbound[sa.name]
        if pair.role is Role.RESPONDER:
            _remove(self._creates, (pair.host, pair.command), pair)
        _remove(self._slots, pair.slot, pair)
        _remove(self._hosts, pair.host, pair)
        self._tunnels.pop(pair.inbound[0].name, None)
        if pair.mode is Mode.TRANSPORT:
            ends = (pair.local, pair.remote)
            self._ends[ends] -= 1
            if not self._ends[ends]:
                del self._ends[ends]
        return True

    def holds(self, pair: SaPair) -> bool:
        """Whether a pair lives."""
        return self._by_sa.get(pair.inbound[0].name) is pair

    def by_sa(self, sa: SaId) -> SaPair | None:
        """The pair that an SA of the kernel belongs to."""
        return self._by_sa.get(sa.name)

    def by_outbound(self, remote: IPAddress, protocol: IpsecProtocol, spi: int) -> SaPair | None:
        """The pair whose outbound SPI the peer names in a DELETE."""
        return self._outbound.get((remote, protocol, spi))

    def of_host(self, host: str) -> list[SaPair]:
        """All pairs with one host, the oldest first."""
        return list(self._hosts.get(host, ()))

    def in_slot(self, slot: Slot) -> list[SaPair]:
        """All pairs that are for the same, the oldest first."""
        return list(self._slots.get(slot, ()))

    def protects(self, local: IPAddress, remote: IPAddress) -> bool:
        """Whether there are SAs for traffic between an address here and one there."""
        return self._ends[local, remote] > 0 or any(
            local in pair.selector.source and remote in pair.selector.destination
            for pair in self._tunnels.values()
        )

    def is_latest(self, pair: SaPair) -> bool:
        """Whether a pair lives, and none that came later is for all of its traffic."""
        of_slot = self._slots.get(pair.slot, [])
        for each in reversed(of_slot):
            if each is pair:
                return True
            if each.selector.covers(pair.selector):
                return False
        return False

    def of_create(self, host: str, command: CommandId) -> list[SaPair]:
        """The pairs that this CREATE of a peer made, as far as they live."""
        return list(self._creates.get((host, command), ()))


def _remove(table: dict[_Key, list[SaPair]], key: _Key, pair: SaPair) -> None:
    """Take a pair out of an index, and the entry with its last one."""
    pairs = table[key]
    pairs[:] = [other for other in pairs if other is not pair]
    if not pairs:
        del table[key]
