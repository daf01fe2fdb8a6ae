"""The realm's policy as values, and the questions that everybody asks of it.

Every host of the realm reads the same document, and each comes to the same result for two hosts:
the functions here are asked by both, by ``kinkctl`` and by the document's own tests.

**Whose an address is.** Of all prefixes in the document (addresses of hosts, networks behind them,
prefixes of places without kinkd) the longest that contains it says so; what none contains is the
``world``'s. So traffic is always between two parties: hosts, places, or the world. Multicast,
broadcast and link-local addresses are nobody's: that is the link's own traffic, and always clear.

**What is done with a packet.** The first rule that names both parties, on either side, and whose
traffic the packet is of. A rule is written from the party that asks to the one that answers, and
covers both: the packets of the one that asks (``action``), and what comes back (``back``, the same
where nothing else is written). Where no rule covers a packet, it passes in clear.

- ``require``: protected by an SA, or dropped.
- ``request``: protected where that can be had, else in clear; once had, required.
- ``clear``: as if there were no kinkd.
- ``block``: dropped.

Whoever is ``disabled`` is never keyed: what a rule would have protected is blocked. What is in
``audit``, a rule or a host, is negotiated and reported, and nothing is dropped for it.

A rule of transport mode protects the addresses of the two hosts, one of tunnel mode the networks
behind them as well; ``clear`` and ``block`` hold for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from typing import Final, NamedTuple

from kinkd.model import Action, Host, IPAddress, IPNetwork, Mode, Profile, lone
from kinkd.policy.prefixes import BITS, Covering, lone_place, place
from kinkd.policy.traffic import ANY, Traffic

ALL: Final = "all"
"""The group of every host."""
WORLD: Final = "world"
"""Whoever has an address that the document gives to nobody."""
OF_THE_LINK: Final = tuple(
    map(
        ip_network,
        (
            *("169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"),
            *("::1/128", "fe80::/10", "ff00::/8"),
        ),
    )
)
"""Neither a host's nor the world's, unless a longer prefix says so."""
PROTECTING: Final = frozenset((Action.REQUIRE, Action.REQUEST))


@dataclass(frozen=True, slots=True)
class Place:
    """Addresses without kinkd: printers, a network of guests. Nobody there can be keyed."""

    name: str
    prefixes: tuple[IPNetwork, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; ``source`` and ``destination`` are names of parties, groups already resolved.

    ``profile`` None: nothing to protect. ``udp``: ESP in UDP, for what drops ESP on the way
    (RFC 3948).
    """

    name: str
    source: frozenset[str]
    destination: frozenset[str]
    traffic: tuple[Traffic, ...]
    action: Action
    back: Action
    profile: Profile | None
    mode: Mode = Mode.TRANSPORT
    udp: bool = False
    audit: bool = False


class Term(NamedTuple):
    """What is done with some packets from one party to another.

    ``asks``: packets of the side that asks, else its answers. ``rule`` None: there is none.
    """

    rule: Rule | None
    traffic: Traffic
    asks: bool
    action: Action
    audit: bool = False

    @property
    def protects(self) -> bool:
        """Whether an SA is wanted."""
        return self.action in PROTECTING

    @property
    def written(self) -> Action:
        """What the rule says, whoever the two are."""
        if self.rule is None:
            return self.action
        return self.rule.action if self.asks else self.rule.back


TermCache = dict[tuple[int, int, int], tuple[Term, ...]]
"""By the rules that name both parties, each way, and what the two are: see ``terms``."""

REST: Final = Term(None, ANY, True, Action.CLEAR)
"""Where no rule says anything."""


@dataclass(frozen=True, slots=True)
class Packet:
    """What is seen of one packet; for ICMP the ports hold type and code."""

    source: IPAddress
    destination: IPAddress
    protocol: int
    source_port: int = 0
    destination_port: int = 0


class Owner(NamedTuple):
    """Whose an address is: a host's, a place's, the world's; ``behind``: behind that host.

    ``name`` is empty for what is only of the link.
    """

    name: str
    behind: bool = False


_THE_WORLD: Final = Owner(WORLD)
THE_LINK: Final = Owner("")
"""Who has what is only of the link: nobody."""


class Decision(NamedTuple):
    """What is done with a packet, by which term; the parties are those of its two addresses.

    A party is empty where the address is only of the link.
    """

    action: Action
    term: Term
    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class Expectation:
    """A test of the document: traffic that parties begin with others, and what is to be done.

    ``back`` is of the answers.
    """

    source: frozenset[str]
    destination: frozenset[str]
    traffic: Traffic
    action: Action
    back: Action


@dataclass(frozen=True, slots=True)
class RealmPolicy:
    """A policy document that was read and found good.

    ``fqdns`` holds every host's fully qualified domain name. ``servers`` are those that must be
    reached before anything is keyed: (service, address).
    """

    version: int
    realm: str
    hosts: Mapping[str, Host]
    fqdns: Mapping[str, str]
    profiles: Mapping[str, Profile]
    rules: tuple[Rule, ...]
    places: Mapping[str, Place] = field(default_factory=dict)
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)
    servers: tuple[tuple[str, IPAddress], ...] = ()
    tests: tuple[Expectation, ...] = ()
    # Where rule number i stands, in words.
    place_of_rule: Callable[[int], str] = field(default=str, repr=False, compare=False)
    # Bit i of a party's mask: rule i names it on that side.
    _sources: Mapping[str, int] = field(repr=False, default_factory=dict)
    _destinations: Mapping[str, int] = field(repr=False, default_factory=dict)
    _warn: Callable[[], tuple[str, ...]] = field(repr=False, compare=False, default=tuple)
    _terms: TermCache = field(repr=False, compare=False, default_factory=dict)
    _numbers: dict[str, int] = field(repr=False, compare=False, default_factory=dict)
    _owners: dict[int, Covering[Owner]] = field(repr=False, compare=False, default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is no error but can hardly be meant, a line each; looked for when first asked."""
        return self._warn()

    def with_warnings(self, more: Sequence[str]) -> RealmPolicy:
        """The same with more to warn of."""
        return replace(self, _warn=lambda: (*self._warn(), *more))

    def kind(self, name: str) -> tuple[int, int]:
        """The same for parties that the same rules name on the same sides."""
        return self._sources[name], self._destinations[name]

    def place(self, rule: Rule) -> str:
        """Where in the document a rule stands."""
        return self.place_of_rule(self._number(rule))

    def _number(self, rule: Rule) -> int:
        if not self._numbers:
            self._numbers.update((each.name, number) for number, each in enumerate(self.rules))
        return self._numbers[rule.name]

    def terms(self, one: str, other: str) -> tuple[Term, ...]:
        """What is done with packets from one party to another, the first that matches decides.

        The last term is of any traffic. The answer is the same object for parties that are treated
        alike.
        """
        forward = self._sources[one] & self._destinations[other]
        back = self._destinations[one] & self._sources[other]
        here, there = self.hosts.get(one), self.hosts.get(other)
        keyed = here is not None and there is not None
        disabled = (here is not None and here.disabled) or (there is not None and there.disabled)
        # Whoever is disabled is not on trial.
        audit = not disabled and any(host is not None and host.audit for host in (here, there))
        key = (forward, back, keyed | disabled << 1 | audit << 2)
        terms = self._terms.get(key)
        if terms is None:
            found = self._terms_of(forward, back)
            terms = tuple(
                term._replace(
                    action=_feasible(term, keyed=keyed, disabled=disabled),
                    audit=term.audit or (audit and term.rule is not None),
                )
                for term in found
            )
            self._terms[key] = terms
        return terms

    def _terms_of(self, forward: int, back: int) -> list[Term]:
        terms: list[Term] = []
        left = forward | back
        while left:
            bit = left & -left
            left ^= bit
            rule = self.rules[bit.bit_length() - 1]
            sides = ((forward & bit, True, rule.action), (back & bit, False, rule.back))
            for named, asks, action in sides:
                if not named:
                    continue
                for traffic in rule.traffic:
                    term = Term(rule, traffic, asks, action, rule.audit)
                    if not any(_hides(earlier, term) for earlier in terms):
                        terms.append(term)
                    if traffic == ANY:
                        return terms
        return [*terms, REST]

    def protecting_rule(self, one: str, other: str) -> Rule | None:
        """The first rule that wants SAs between two parties; it says of which profile and mode."""
        terms = (*self.terms(one, other), *self.terms(other, one))
        wanting = [term.rule for term in terms if term.protects and term.rule is not None]
        return min(wanting, key=self._number, default=None)

    def may_initiate(self, one: str, other: str) -> bool:
        """Whether traffic from ``one`` to ``other`` asks for SAs: then ``one`` makes them."""
        keyed = one in self.hosts and other in self.hosts
        return keyed and any(term.protects for term in self.terms(one, other))

    def owner(self, address: IPAddress) -> Owner:
        """Whose an address is."""
        if not self._owners:
            of_family: dict[int, dict[int, Owner]] = {version: {} for version in BITS}
            for owner, prefix in self.prefixes():
                of_family[prefix.version][place(prefix)] = owner
            self._owners.update({v: Covering(each, BITS[v]) for v, each in of_family.items()})
        return self._owners[address.version].of(lone_place(address)) or _THE_WORLD

    def prefixes(self) -> Iterator[tuple[Owner, IPNetwork]]:
        """All prefixes that somebody has."""
        yield from ((THE_LINK, prefix) for prefix in OF_THE_LINK)
        for host in self.hosts.values():
            for address in host.addresses:
                yield Owner(host.name), lone(address)
            for network in host.networks:
                yield Owner(host.name, behind=True), network
        for party in self.places.values():
            for network in party.prefixes:
                yield Owner(party.name), network

    def decide(self, packet: Packet) -> Decision:
        """What is done with a packet; inside one party nothing is."""
        one, other = self.owner(packet.source), self.owner(packet.destination)
        if one.name == other.name or THE_LINK in (one, other):
            return Decision(Action.CLEAR, REST, one.name, other.name)
        term = next(t for t in self.terms(one.name, other.name) if _matches(t, packet))
        action = in_reach(term, behind=one.behind or other.behind)
        return Decision(action, term, one.name, other.name)

    def terms_for(self, one: str, other: str, traffic: Traffic, *, asks: bool) -> list[Term]:
        """What is done with traffic from one party to another: more than one term may be.

        ``asks``: ``one`` asks, else it answers.
        """
        found: list[Term] = []
        for term in self.terms(one, other):
            if _touches(term, traffic, asks=asks):
                found.append(term)
                if term.traffic.covers(traffic):
                    break
        return found


def in_reach(term: Term, *, behind: bool) -> Action:
    """What a term does with a packet; ``behind``: one end lies behind a gateway."""
    # By what is written: of a disabled host no more is blocked than was protected.
    is_transport = term.rule is not None and term.rule.mode is Mode.TRANSPORT
    if behind and is_transport and term.written in PROTECTING:
        return Action.CLEAR
    return term.action


def _feasible(term: Term, *, keyed: bool, disabled: bool) -> Action:
    """What becomes of an action where one of the two cannot be keyed, or must not be."""
    if not term.protects:
        return term.action
    if keyed:
        return Action.BLOCK if disabled else term.action
    if term.action is Action.REQUEST:
        return Action.CLEAR
    # A tunnel has no far end there. In transport mode there is no SA, and so no packet, either.
    return Action.BLOCK if term.rule is not None and term.rule.mode is Mode.TUNNEL else term.action


def _hides(earlier: Term, later: Term) -> bool:
    alike = earlier.asks == later.asks or not earlier.traffic.has_ports
    return alike and earlier.traffic.covers(later.traffic)


def _touches(term: Term, traffic: Traffic, *, asks: bool) -> bool:
    # What is asked at a port is not what is answered from one.
    alike = term.asks == asks or not (term.traffic.has_ports and traffic.has_ports)
    return alike and term.traffic.overlaps(traffic)


def _matches(term: Term, packet: Packet) -> bool:
    ports = (packet.source_port, packet.destination_port)
    if not term.asks:
        ports = ports[::-1] if term.traffic.has_ports else ports
    return term.traffic.admits(packet.source.version, packet.protocol, *ports)
