"""SPD entries: what the tables say, in the words of the kernel."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kinkd.errors import LocalError
from kinkd.model import (
    Action,
    Direction,
    Host,
    IPAddress,
    IPNetwork,
    Mode,
    Profile,
    Selector,
    SpdEntry,
    SpdKey,
    Template,
    contains,
)
from kinkd.policy.exemptions import Breadth
from kinkd.policy.prefixes import BITS, Covering, length_at, number, place
from kinkd.policy.tables import ANYWHERE, CLEAR, Act, Said, Table, Wording, free_bits
from kinkd.policy.traffic import ANY, Traffic, is_within, meet


def transport_name(profile: Profile) -> str:
    """From which the reqid of a profile in transport mode comes."""
    return f"transport/{profile.name}"


def tunnel_name(profile: Profile, here: IPNetwork, there: IPNetwork, peer: Host) -> str:
    """From which the reqid of a tunnel comes.

    SAs of transport mode are told apart by their addresses. Those of tunnels between the same
    two gateways are not: with one reqid the kernel would ask for one SA where two networks
    wait, and a gateway's SA for one network would pass for another's.
    """
    return f"tunnel/{profile.name}/{here}/{there}/{peer.name}"


def tunnel_ends(me: Host, peer: Host) -> tuple[IPAddress, IPAddress] | None:
    """Between which of their addresses two hosts have their tunnels; None: no one family.

    The addresses that stand first in the document, of two equally good pairs that of IPv4. The peer
    comes to the same two: two pairs of one family are never equally good.
    """
    pairs = [
        (i + j, local.version, local, remote)
        for i, local in enumerate(me.addresses)
        for j, remote in enumerate(peer.addresses)
        if local.version == remote.version
    ]
    return min(pairs, key=lambda pair: pair[:2])[2:] if pairs else None


@dataclass(frozen=True, slots=True)
class Makers:
    """What makes entries: whose, with which reqids, and from which ports its programs ask."""

    me: Host
    reqids: Mapping[str, int]
    client_ports: range

    def reqid_name(self, said: Said, here: IPNetwork, there: IPNetwork) -> str:
        """From which the reqid of an SA comes; empty: none is wanted, or possible."""
        ruling, peer = said.wording.ruling, said.peer
        if ruling is None:
            return ""
        if ruling.mode is Mode.TRANSPORT:
            return transport_name(ruling.profile)
        if peer is None or tunnel_ends(self.me, peer) is None:
            return ""
        return tunnel_name(ruling.profile, here, there, peer)

    def templates(
        self, said: Said, reqid_name: str
    ) -> tuple[tuple[Template, ...], tuple[Template, ...]]:
        """Those of packets out, and of packets in; none: an SA is not wanted, or not possible."""
        ruling, peer = said.wording.ruling, said.peer
        if ruling is None or not reqid_name:
            return (), ()
        reqid, protocols = self.reqids[reqid_name], ruling.profile.protocols
        if ruling.mode is Mode.TRANSPORT:
            plain = tuple(Template(each, Mode.TRANSPORT, reqid) for each in protocols)
            return plain, plain
        ends = tunnel_ends(self.me, peer) if peer is not None else None
        if ends is None:
            return (), ()
        local, remote = ends
        first, *rest = protocols
        # The outer ones of a bundle go by the ends of the tunnel: the kernel takes them over.
        outer = tuple(Template(each, Mode.TRANSPORT, reqid) for each in rest)
        return (
            (Template(first, Mode.TUNNEL, reqid, local, remote), *outer),
            (Template(first, Mode.TUNNEL, reqid, remote, local), *outer),
        )


_Entries = tuple[SpdEntry, ...]


class Made(NamedTuple):
    """The entries of one prefix here and one there: see ``Protection``."""

    entries: _Entries
    requested: _Entries = ()
    when_keyed: _Entries = ()


class Making(NamedTuple):
    """Of what entries were made: of the same, the same are made."""

    wording: Wording
    peer: Host | None
    numbers: range
    to_the_end: bool
    reqid_name: str
    reqid: int
    made: Made

    def is_of(self, said: Said, numbers: range, *, to_the_end: bool) -> bool:
        """Whether what is said now is what they were made of, but for reqids."""
        return (
            self.wording is said.wording
            and self.peer is said.peer
            and self.to_the_end == to_the_end
            and self.numbers == numbers
        )


Makings = dict[tuple[int, int, int], Making]
"""By family and the places of a prefix here and of one there."""


class Written:
    """All SPD entries of what the tables say, and which of them speak for what.

    What is ``exempt`` has no second entry: of one selector the kernel holds one, the last.
    ``known`` are of a document before, with the same exemptions; ``makings`` of this one.
    """

    def __init__(
        self,
        tables: Mapping[IPNetwork, Table],
        makers: Makers,
        foreign: Mapping[int, Iterable[tuple[int, IPNetwork]]],
        numbers: range,
        exempt: Collection[SpdKey],
        known: Makings,
    ) -> None:
        self._tables = tables
        self._exempt = exempt
        self._foreign = foreign
        self.makings: Makings = {}
        self._known = known
        self._makers = makers
        self._transits: list[Made] = []
        transit = list(self._transit())
        shares = _shares(tables.values(), transit, numbers)
        self._made = {number(here): self._of_table(table, shares) for here, table in tables.items()}
        self._speaking = {
            number(here): Covering(self._made[number(here)], BITS[here.version]) for here in tables
        }
        for here, there in transit:
            if place(there) not in self._made.get(number(here), ()):
                first = shares[free_bits(here), free_bits(there)].start
                self._transits.append(Made(tuple(_clear_entries(Selector(here, there), first))))

    def entries(self) -> Iterator[SpdEntry]:
        """All of them."""
        of_tables = (made for table in self._made.values() for made in table.values())
        return itertools.chain.from_iterable(made.entries for made in (*of_tables, *self._transits))

    def of(self, here: int, there: int) -> Made:
        """The entries for traffic between a prefix, by its number, and one there by its place."""
        made = self._made[here].get(there) or self._speaking[here].of(there)
        if made is None:
            raise LookupError("traffic that is protected has no entries")
        return made

    def _transit(self) -> Iterator[tuple[IPNetwork, IPNetwork]]:
        """Prefixes of others within networks of ours of which something is said, to anywhere."""
        networks = [here for here in self._makers.me.networks if self._tables[here].is_strict]
        for version, anywhere in ANYWHERE.items():
            strict = Covering(
                {place(here): True for here in networks if here.version == version}, BITS[version]
            )
            if strict:
                for at, prefix in self._foreign[version]:
                    if strict.of(at, itself=False):
                        yield prefix, anywhere

    def _of_table(self, table: Table, shares: Mapping[tuple[int, int], range]) -> dict[int, Made]:
        here = table.here
        bits, at, version = BITS[here.version], place(here), here.version
        around = [outer for outer in self._tables.values() if contains(outer.here, here)]
        found: dict[int, Made] = {}
        for there, network, said in table.pairs():
            numbers = shares[free_bits(here), bits - length_at(there)]
            to_the_end = said.wording.ends_clear and any(
                each.is_within_strict(there, itself=each is not table) for each in around
            )
            known = self._known.get((version, at, there))
            if (
                known is None
                or not known.is_of(said, numbers, to_the_end=to_the_end)
                or self._makers.reqids.get(known.reqid_name, 0) != known.reqid
            ):
                known = self._making(here, network, said, numbers, to_the_end=to_the_end)
            self.makings[version, at, there] = known
            found[there] = known.made
        return found

    def _making(
        self,
        here: IPNetwork,
        there: IPNetwork,
        said: Said,
        numbers: range,
        *,
        to_the_end: bool,
    ) -> Making:
        name = self._makers.reqid_name(said, here, there)
        if said is CLEAR:
            made = Made(tuple(_clear_entries(Selector(here, there), numbers.start)))
        else:
            templates = self._makers.templates(said, name)
            made = self._made_of(
                (here, there), said.wording, numbers, templates, to_the_end=to_the_end
            )
        reqid = self._makers.reqids.get(name, 0)
        return Making(said.wording, said.peer, numbers, to_the_end, name, reqid, made)

    def _made_of(
        self,
        prefixes: tuple[IPNetwork, IPNetwork],
        wording: Wording,
        numbers: range,
        templates: tuple[tuple[Template, ...], tuple[Template, ...]],
        *,
        to_the_end: bool,
    ) -> Made:
        entries: list[SpdEntry] = []
        requested: list[SpdEntry] = []
        when_keyed: list[SpdEntry] = []
        out, inbound = templates
        for direction, acts, wanted in (
            (Direction.OUT, wording.out, out),
            (Direction.IN, wording.inbound, inbound),
            (Direction.FWD, wording.inbound, inbound),
        ):
            ours = direction is Direction.OUT
            ends = prefixes if ours else prefixes[::-1]
            unbound = self._makers.client_ports if ours else None
            count = iter(numbers)
            for action, audit, selector in _selected(acts, ends, unbound, to_the_end=to_the_end):
                entry = _entry(direction, selector, _next(count), action, wanted)
                if entry.key in self._exempt:
                    continue
                if audit:
                    strict, entry = entry, entry.relaxed()
                    if strict.templates and not entry.templates:
                        when_keyed.append(strict)
                elif action is Action.REQUEST:
                    requested.append(entry)
                entries.append(entry)
        return Made(tuple(entries), tuple(requested), tuple(when_keyed))


def breadth(tables: Iterable[Table]) -> Breadth:
    """What the entries of tables meet."""
    tables = list(tables)
    return Breadth(
        frozenset(table.here.version for table in tables if table.is_strict),
        frozenset(table.here.version for table in tables if table.is_broad),
    )


def _shares(
    tables: Iterable[Table], transit: Iterable[tuple[IPNetwork, IPNetwork]], numbers: range
) -> dict[tuple[int, int], range]:
    """Priorities for each pair of lengths of prefixes, the longer ones first."""
    found = {(free_bits(here), free_bits(there)) for here, there in transit}
    for table in tables:
        bits, here = BITS[table.here.version], free_bits(table.here)
        found.update((here, bits - length) for length in set(map(length_at, table.said)))
    breadths = sorted(found)
    size = len(numbers) // max(1, len(breadths))
    return {
        breadth: numbers[index * size : (index + 1) * size]
        for index, breadth in enumerate(breadths)
    }


def _selected(
    acts: Sequence[Act],
    ends: tuple[IPNetwork, IPNetwork],
    client_ports: range | None,
    *,
    to_the_end: bool,
) -> Iterator[tuple[Action, bool, Selector]]:
    """The selectors of acts; what is clear at the end stands only if ``to_the_end``.

    ``client_ports``: of those who ask at the first of the ends; None: they are not at that end.
    """
    count = len(acts)
    while count and not to_the_end and acts[count - 1][2] is Action.CLEAR:
        count -= 1
    if count == 1:
        traffic, asks, action, audit = acts[0]
        if asks and traffic == ANY:  # most are so
            yield action, audit, Selector(*ends)
            return
    seen: set[Selector] = set()
    for traffic, asks, action, audit in acts[:count]:
        if asks:
            selectors = traffic.selectors(*ends)
            if client_ports is not None and _may_be_of(traffic, action, client_ports):
                selectors += traffic.unbound(*ends)
        else:
            selectors = tuple(each.reversed() for each in traffic.selectors(*ends[::-1]))
        for selector in selectors:
            if selector not in seen:
                seen.add(selector)
                yield action, audit, selector


def _may_be_of(traffic: Traffic, action: Action, client_ports: range) -> bool:
    """Whether traffic is of who asks and has no port yet; strictly, where it is not certain."""
    if action is Action.CLEAR:
        return is_within(client_ports, traffic.source_ports)
    return meet(client_ports, traffic.source_ports)


def _entry(
    direction: Direction,
    selector: Selector,
    priority: int,
    action: Action,
    templates: tuple[Template, ...],
) -> SpdEntry:
    if action is Action.CLEAR:
        return SpdEntry(direction, selector, priority)
    if action is Action.BLOCK or not templates:  # fail closed: no SA can be had
        return SpdEntry(direction, selector, priority, block=True)
    return SpdEntry(direction, selector, priority, templates)


def _clear_entries(selector: Selector, priority: int) -> Iterator[SpdEntry]:
    back = selector.reversed()
    yield SpdEntry(Direction.OUT, selector, priority)
    yield SpdEntry(Direction.IN, back, priority)
    yield SpdEntry(Direction.FWD, back, priority)


def _next(numbers: Iterator[int]) -> int:
    number = next(numbers, None)
    if number is None:
        raise LocalError("the priority band is too small for what the policy protects here")
    return number
