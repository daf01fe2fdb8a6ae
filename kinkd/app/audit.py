"""What enforcement would drop of what passes in clear: where a rule or a host is in audit.

There the kernel neither drops nor counts, so packets are looked at on the interfaces, a sample of
them (see ``kernel.capture``), and each is asked of the realm's policy. ``require`` and ``block``
would have dropped what is reported; ``request`` would do so from the time on that the two hosts
were keyed once.

A packet that an SA could have protected counts only if some seconds later there still is none:
the first packets of two hosts pass in clear while they are keyed, and enforced they would have
waited. While SAs live nothing counts that they are for: what comes out of a tunnel is seen a second
time, in clear. So what a peer sends in clear beside a live tunnel is not seen here; it is at the
peer, who sees what it sends exactly as it is on the wire.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple, Protocol

from kinkd.kernel.capture import Seen
from kinkd.model import Action, Direction, IPAddress, PortMatch, Selector
from kinkd.policy.exemptions import Exempt
from kinkd.policy.realm import PROTECTING, Packet, RealmPolicy, Term
from kinkd.policy.traffic import ICMP, ICMPV6, Traffic

PER_SECOND: Final = 500
"""So many packets are looked at in a second: about a hundredth of one processor's time."""
GRACE_SECONDS: Final = 10.0
"""So long two hosts may take to be keyed before what passes in clear counts."""
ROWS: Final = 1000
"""So many are told apart; what is more is counted together."""
_RECENT: Final = 64  # packets that may be seen again on the interface above, or below

_ANY_ICMP: Final = Traffic(ICMP)
_WITH_PORTS: Final = frozenset((6, 17, 33, 132, 136))  # TCP, UDP, DCCP, SCTP, UDP-Lite
_IPSEC: Final = frozenset((50, 51))
_FRAGMENT: Final = 44
_EXTENSIONS: Final = frozenset((0, 43, 60))  # hop-by-hop, routing, destination: RFC 8200 §4
_MOST_EXTENSIONS: Final = 8
_PORTS: Final = struct.Struct("!HH")


class Instant(NamedTuple):
    """A time by both clocks, in seconds: one that only ever goes on, and the one on the wall."""

    monotonic: float
    wall: float


class Source(Protocol):
    """Where packets are seen: ``kernel.capture.Capture``."""

    def read(self, limit: int) -> Iterator[Seen]:
        """What waits, ``limit`` packets at most."""

    def missed(self) -> int:
        """How many were lost, since this was last asked."""

    def close(self) -> None:
        """Look no more."""


def in_audit(policy: RealmPolicy, me: str) -> bool:
    """Whether there is anything to audit at a host, by its name in the document."""
    return any(host.audit for host in policy.hosts.values()) or any(
        rule.audit and (me in rule.source or me in rule.destination) for rule in policy.rules
    )


class _Key(NamedTuple):
    """What is counted together."""

    outgoing: bool
    party: str
    rule: str
    action: Action
    traffic: str


class _Drop(NamedTuple):
    """What would be dropped: by which row it counts, whose addresses; ``can_be_keyed``."""

    key: _Key
    local: IPAddress
    remote: IPAddress
    can_be_keyed: bool


@dataclass(slots=True)
class _Row:
    """Packets seen; ``first`` and ``last`` by the wall's clock, ``due`` by the other one."""

    sample: Packet
    first: float
    last: float
    due: float
    count: int = 0

    def add(self, count: int, last: float) -> None:
        self.count += count
        self.last = max(self.last, last)


class Audit:
    """Reads a sample of what passes in clear, and counts what enforcement would have dropped.

    ``read`` is to be called a few times a second, by a timer: the source's descriptor stays
    readable while more waits than may be read.

    Args:
        policy: the realm's.
        me: this host's name in it.
        source: where packets are seen; closed by ``close``.
        is_protected: whether SAs live for traffic between an address here and one there.
        exempt: what passes in clear whatever the rules say (``policy.exemptions``).
    """

    def __init__(
        self,
        policy: RealmPolicy,
        me: str,
        source: Source,
        is_protected: Callable[[IPAddress, IPAddress], bool],
        exempt: Iterable[Exempt] = (),
    ) -> None:
        self._source = source
        self._is_protected = is_protected
        self._rows: dict[_Key, _Row] = {}
        self._waiting: dict[tuple[_Key, IPAddress, IPAddress], _Row] = {}  # in the order of due
        self._recent: dict[tuple[bool, bytes], str] = {}
        self._second, self._left = float("-inf"), 0
        self._others = self._looked_at = self._missed = self._unreadable = 0
        self._judge = _Judge(policy, me, exempt)

    def follow(self, policy: RealmPolicy, me: str, exempt: Iterable[Exempt] = ()) -> None:
        """Go by another policy. Rows stay where it says the same of their samples."""
        self._judge = _Judge(policy, me, exempt)
        self._rows = {key: row for key, row in self._rows.items() if self._stands(key, row)}
        self._waiting = {at: row for at, row in self._waiting.items() if self._stands(at[0], row)}

    def _stands(self, key: _Key, row: _Row) -> bool:
        drop = self._judge.verdict(row.sample, outgoing=key.outgoing)
        return drop is not None and drop.key == key

    def read(self, now: Instant) -> None:
        """Look at what waits, as much of it as may be looked at in this second."""
        known: dict[tuple[IPAddress, IPAddress], bool] = {}

        def is_protected(local: IPAddress, remote: IPAddress) -> bool:
            if (local, remote) not in known:
                known[local, remote] = self._is_protected(local, remote)
            return known[local, remote]

        self._settle(now, is_protected)
        if now.monotonic - self._second >= 1:
            self._second, self._left = now.monotonic, PER_SECOND
        for seen in self._source.read(self._left):
            self._left -= 1
            self._looked_at += 1
            self._take(seen, now, is_protected)
        self._missed += self._source.missed()

    def _settle(self, now: Instant, is_protected: Callable[[IPAddress, IPAddress], bool]) -> None:
        """Of what waited long enough, count what no SA is there for."""
        while self._waiting:
            at = next(iter(self._waiting))
            if self._waiting[at].due > now.monotonic:
                return
            row, (key, local, remote) = self._waiting.pop(at), at
            if not is_protected(local, remote):
                self._count(key, row)

    def _take(
        self, seen: Seen, now: Instant, is_protected: Callable[[IPAddress, IPAddress], bool]
    ) -> None:
        if self._is_second_sight(seen):
            return
        packet = packet_of(seen.octets)
        if packet is None:
            self._unreadable += 1
            return
        drop = self._judge.verdict(packet, outgoing=seen.outgoing)
        if drop is None:
            return
        row = _Row(packet, now.wall, now.wall, now.monotonic + GRACE_SECONDS, 1)
        if not drop.can_be_keyed:
            self._count(drop.key, row)
        elif not is_protected(drop.local, drop.remote):
            at = (drop.key, drop.local, drop.remote)
            if at in self._waiting:
                self._waiting[at].add(1, now.wall)
            elif len(self._waiting) < ROWS:
                self._waiting[at] = row
            else:
                self._count(drop.key, row)

    def _count(self, key: _Key, row: _Row) -> None:
        if key in self._rows:
            self._rows[key].add(row.count, row.last)
        elif len(self._rows) < ROWS:
            self._rows[key] = row
        else:
            self._others += row.count

    def _is_second_sight(self, seen: Seen) -> bool:
        """The same octets on another interface: that of a bond or a bridge, and the port below."""
        first = self._recent.setdefault((seen.outgoing, seen.octets), seen.interface)
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        return first != seen.interface

    def rows(self) -> list[dict[str, object]]:
        """What would have been dropped, the most frequent first; times are seconds since 1970."""
        found = sorted(self._rows.items(), key=lambda each: -each[1].count)
        return [
            {
                "direction": "out" if key.outgoing else "in",
                "party": key.party,
                "rule": key.rule,
                "place": self._judge.place(key.rule),
                "action": key.action.value,
                "traffic": key.traffic,
                "packets": row.count,
                "first": int(row.first),
                "last": int(row.last),
                "sample": words(row.sample),
            }
            for key, row in found
        ]

    def report(self) -> dict[str, object]:
        """The rows, and how far to trust them.

        ``looked_at``: packets in the sample, ``missed``: that it lacks; ``others``: that would have
        been dropped and have no row; ``waiting``: rows to come, if no SAs do.
        """
        return {
            "rows": self.rows(),
            "others": self._others,
            "waiting": len(self._waiting),
            "looked_at": self._looked_at,
            "missed": self._missed,
            "unreadable": self._unreadable,
        }

    def close(self) -> None:
        """Look no more; what was counted stays."""
        self._source.close()


class _Judge:
    """What enforcement of a policy would do with a packet of this host."""

    def __init__(self, policy: RealmPolicy, me: str, exempt: Iterable[Exempt]) -> None:
        self._policy = policy
        self._me = me
        self._exempt: dict[tuple[Direction, int], list[Selector]] = defaultdict(list)
        for direction, selector in exempt:
            self._exempt[direction, selector.protocol].append(selector)
        self._rules = {rule.name: rule for rule in policy.rules}

    def place(self, rule: str) -> str:
        """Where a rule stands; looked for when somebody asks."""
        return self._policy.place(self._rules[rule])

    def verdict(self, packet: Packet, *, outgoing: bool) -> _Drop | None:
        """What a packet counts as; None: it would have passed, or is not of this host."""
        if packet.protocol in _IPSEC:
            return None
        action, term, mine, party = self._policy.decide(packet)
        local, remote = packet.source, packet.destination
        if not outgoing:
            mine, party, local, remote = party, mine, remote, local
        if not term.audit or term.rule is None or action is Action.CLEAR:
            return None
        # At a gateway a packet is seen twice: it counts where it goes out to others, or comes in.
        if mine != self._me or self._is_exempt(packet, local, outgoing=outgoing):
            return None
        key = _Key(outgoing, party, term.rule.name, action, _traffic(term, packet))
        return _Drop(key, local, remote, action in PROTECTING and party in self._policy.hosts)

    def _is_exempt(self, packet: Packet, local: IPAddress, *, outgoing: bool) -> bool:
        direction = Direction.OUT
        if not outgoing:
            behind = self._policy.owner(local).behind
            direction = Direction.FWD if behind else Direction.IN
        return any(
            _admits(selector, packet)
            for protocol in (packet.protocol, 0)
            for selector in self._exempt.get((direction, protocol), ())
        )


def _admits(selector: Selector, packet: Packet) -> bool:
    return (
        _is_of(packet.source_port, selector.source_port)
        and _is_of(packet.destination_port, selector.destination_port)
        and packet.source in selector.source
        and packet.destination in selector.destination
    )


def _is_of(port: int, match: PortMatch) -> bool:
    return (port ^ match.port) & match.mask == 0


def _traffic(term: Term, packet: Packet) -> str:
    """In the words of the document, with the port of the side that answers.

    Where the rule does not say which side that is, it is the one with the lower port.
    """
    number, version = packet.protocol, packet.source.version
    if number in _WITH_PORTS:
        ports = (packet.source_port, packet.destination_port)
        port = ports[term.asks] if term.traffic.has_ports else min(ports)
        return str(Traffic(number, range(port, port + 1)))
    if number == _ANY_ICMP.protocol(version):
        return str(_ANY_ICMP)
    # 0, and ICMP of IPv4 in IPv6, are nothing that a document could say.
    return f"ip/{number}" if number in (0, ICMP) else str(Traffic(number))


def words(packet: Packet) -> str:
    """One packet for people."""
    ends = f"{packet.source} -> {packet.destination}"
    if packet.protocol in _WITH_PORTS:
        source, destination = packet.source, packet.destination
        ends = f"{source} port {packet.source_port} -> {destination} port {packet.destination_port}"
    elif packet.protocol in (ICMP, ICMPV6):
        ends += f" type {packet.source_port} code {packet.destination_port}"
    return f"{ends}, protocol {packet.protocol}"


# --- from octets -------------------------------------------------------------------------------


def packet_of(octets: bytes) -> Packet | None:
    """What a packet is, from its IP header on; None: that cannot be told from these octets.

    RFC 791 §3.1 and RFC 8200 §3, §4. A fragment beyond the first cannot be told.
    """
    version = octets[0] >> 4 if octets else 0
    if version == 4 and len(octets) >= 20:
        start = 4 * (octets[0] & 0x0F)
        if start < 20 or int.from_bytes(octets[6:8], "big") & 0x1FFF:
            return None
        source, destination = IPv4Address(octets[12:16]), IPv4Address(octets[16:20])
        return _with_ports(octets, start, source, destination, octets[9])
    if version == 6 and len(octets) >= 40:
        found = _behind_extensions(octets)
        if found is not None:
            ends = IPv6Address(octets[8:24]), IPv6Address(octets[24:40])
            return _with_ports(octets, found[1], *ends, found[0])
    return None


def _behind_extensions(octets: bytes) -> tuple[int, int] | None:
    """What an IPv6 packet carries, and where it begins."""
    protocol, start = octets[6], 40
    for _ in range(_MOST_EXTENSIONS):
        if protocol not in _EXTENSIONS and protocol != _FRAGMENT:
            return protocol, start
        if len(octets) < start + 8:
            return None
        if protocol == _FRAGMENT:
            if int.from_bytes(octets[start + 2 : start + 4], "big") & 0xFFF8:
                return None
            length = 8
        else:
            length = 8 * (octets[start + 1] + 1)
        protocol, start = octets[start], start + length
    return None


def _with_ports(
    octets: bytes, start: int, source: IPAddress, destination: IPAddress, protocol: int
) -> Packet | None:
    if protocol in _WITH_PORTS:
        if len(octets) < start + 4:
            return None
        return Packet(source, destination, protocol, *_PORTS.unpack_from(octets, start))
    if protocol in (ICMP, ICMPV6):
        if len(octets) < start + 2:
            return None
        return Packet(source, destination, protocol, octets[start], octets[start + 1])
    return Packet(source, destination, protocol)
