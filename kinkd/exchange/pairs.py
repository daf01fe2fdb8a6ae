"""The SA pairs that live in the kernel on our behalf, found by either SPI or by address pair."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from kinkd.kernel.port import SaId
from kinkd.model import IPAddress, Lifetime


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


@dataclass(frozen=True, slots=True)
class SaPair:
    """Two SAs, one each way, that one CREATE made.

    ``created`` is POSIX seconds; ``epoch`` and ``xid`` are those under which the peer knows
    the exchange: with the host they recognise a repeated CREATE across a restart.
    """

    host: str
    principal: str
    local: IPAddress
    remote: IPAddress
    inbound_spi: int
    outbound_spi: int
    reqid: int
    suite: str
    role: Role
    lifetime: Lifetime
    created: int
    epoch: int  # the peer's, RFC 4430 §3.7
    xid: int
    fingerprint: int  # of the CREATE, where the peer sent it; else 0
    etype: int

    @property
    def command(self) -> CommandId:
        """The CREATE that made the pair."""
        return CommandId(self.epoch, self.xid, self.fingerprint)

    @property
    def inbound(self) -> SaId:
        """The SA from the peer to us; we chose its SPI."""
        return SaId(self.remote, self.local, self.inbound_spi)

    @property
    def outbound(self) -> SaId:
        """The SA from us to the peer; the peer chose its SPI."""
        return SaId(self.local, self.remote, self.outbound_spi)


class PairTable:
    """The one owner of the live pairs. An SPI is found only together with its destination."""

    def __init__(self) -> None:
        self._inbound: dict[tuple[IPAddress, int], SaPair] = {}
        self._outbound: dict[tuple[IPAddress, int], SaPair] = {}
        self._creates: dict[tuple[str, CommandId], SaPair] = {}
        self._between: dict[tuple[IPAddress, IPAddress], list[SaPair]] = {}
        self._hosts: dict[str, list[SaPair]] = {}

    def __len__(self) -> int:
        return len(self._inbound)

    def __iter__(self) -> Iterator[SaPair]:
        return iter(tuple(self._inbound.values()))

    def add(self, pair: SaPair) -> None:
        """Take a pair up. Both its SPIs must be new: the kernel has seen to that."""
        self._inbound[pair.local, pair.inbound_spi] = pair
        self._outbound[pair.remote, pair.outbound_spi] = pair
        if pair.role is Role.RESPONDER:
            self._creates[pair.host, pair.command] = pair
        self._between.setdefault((pair.local, pair.remote), []).append(pair)
        self._hosts.setdefault(pair.host, []).append(pair)

    def discard(self, pair: SaPair) -> bool:
        """Give a pair up; False where it was gone already."""
        if self._inbound.pop((pair.local, pair.inbound_spi), None) is None:
            return False
        del self._outbound[pair.remote, pair.outbound_spi]
        self._creates.pop((pair.host, pair.command), None)
        self._between[pair.local, pair.remote].remove(pair)
        self._hosts[pair.host].remove(pair)
        return True

    def by_sa(self, sa: SaId) -> SaPair | None:
        """The pair that an SA of the kernel belongs to."""
        key = (sa.destination, sa.spi)
        return self._inbound.get(key) or self._outbound.get(key)

    def by_outbound(self, remote: IPAddress, spi: int) -> SaPair | None:
        """The pair whose outbound SPI the peer names in a DELETE."""
        return self._outbound.get((remote, spi))

    def of_host(self, host: str) -> list[SaPair]:
        """All pairs with one host, the oldest first."""
        return list(self._hosts.get(host, ()))

    def between(self, local: IPAddress, remote: IPAddress) -> list[SaPair]:
        """All pairs of one address pair, the oldest first."""
        return list(self._between.get((local, remote), ()))

    def of_create(self, host: str, command: CommandId) -> SaPair | None:
        """The pair that this CREATE of a peer made, if it lives."""
        return self._creates.get((host, command))
