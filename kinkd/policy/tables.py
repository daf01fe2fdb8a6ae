"""For each prefix of one host, what the policy says of its traffic with every prefix there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, NamedTuple

from kinkd.model import Action, Host, IPNetwork, Mode, Profile, lone
from kinkd.policy.prefixes import (
    BITS,
    Covering,
    fewest,
    length_at,
    lone_place,
    network_at,
    place,
)
from kinkd.policy.realm import (
    OF_THE_LINK,
    PROTECTING,
    WORLD,
    RealmPolicy,
    Rule,
    Term,
    in_reach,
)
from kinkd.policy.traffic import Traffic

ANYWHERE: Final = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_FAMILIES: Final[dict[int, type[IPv4Network] | type[IPv6Network]]] = {
    4: IPv4Network,
    6: IPv6Network,
}
_LINK: Final = {
    version: {place(each): each for each in OF_THE_LINK if each.version == version}
    for version in ANYWHERE
}

Placed = tuple[tuple[int, IPNetwork], ...]
"""Prefixes of one family with their places: see ``prefixes``."""


class Ruling(NamedTuple):
    """What of a rule goes into SAs."""

    rule: str
    profile: Profile
    mode: Mode
    udp: bool


Act = tuple[Traffic, bool, Action, bool]
"""What of a term goes into entries: traffic, whether it asks, the action, whether in audit."""


class Wording(NamedTuple):
    """All of what is said that goes into entries, but for whose they are."""

    out: tuple[Act, ...]
    inbound: tuple[Act, ...]
    ruling: Ruling | None

    # Whether it has a clear end, which stands only within something broader.
    ends_clear: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What is done with packets out and in, term by term; there is one of each kind."""

    wording: Wording
    peer: Host | None = None  # whose alone the entries are: its tunnel, or it is only requested


CLEAR: Final = Said(Wording((), (), None))


@dataclass(slots=True, eq=False)
class View:
    """What the policy says of this host and all parties of one kind.

    ``shares``: entries can be shared by all who are spoken of so. ``initiates``: traffic from
    here asks for SAs.
    """

    out: tuple[Term, ...]
    inbound: tuple[Term, ...]
    rule: Rule | None
    ruling: Ruling | None
    shares: bool
    initiates: bool
    # By whether it is of networks behind hosts; not what differs from one party to the other.
    said: dict[bool, Said] = field(default_factory=dict)
    wordings: dict[bool, Wording | None] = field(default_factory=dict)


class Places(NamedTuple):
    """The prefixes of a party, by family: its own, and those behind it."""

    own: dict[int, Placed]
    behind: dict[int, Placed]


@dataclass(slots=True)
class Spoken:
    """What the same rules say of a host that they name on the same sides, ``kind``."""

    rules: tuple[Rule, ...]
    kind: tuple[int, int]
    # By the rules that name a party, and what it is.
    views: dict[tuple[tuple[int, int], int], View] = field(default_factory=dict)
    shared: dict[tuple[int, int, bool], Said] = field(default_factory=dict)


@dataclass(slots=True)
class Known:
    """What was worked out for another document, and may be the same for the next.

    Everything is found by what it was made of, and so is right for any document.
    """

    hosts: dict[str, tuple[Host, Places]] = field(default_factory=dict)
    rulings: dict[Ruling, Ruling] = field(default_factory=dict)
    wordings: dict[Wording, Wording] = field(default_factory=dict)
    networks: dict[tuple[int, int], IPNetwork] = field(default_factory=dict)
    spoken: Spoken | None = None


class Sayings:
    """What the policy says of this host and each prefix of others.

    ``known`` is of a document before, ``fresh`` of this one: what there is of both is the same
    objects.
    """

    def __init__(self, policy: RealmPolicy, me: Host, known: Known | None = None) -> None:
        self.policy = policy
        self.me = me
        self.fresh = Known()
        self._known = known or Known()
        spoken, kind = self._known.spoken, policy.kind(me.name)
        if spoken is None or spoken.rules is not policy.rules or spoken.kind != kind:
            spoken = Spoken(policy.rules, kind)
        else:
            self.fresh.rulings, self.fresh.wordings = self._known.rulings, self._known.wordings
        self.fresh.spoken = self._spoken = spoken
        self._of_party = {
            me.name: View((), (), None, None, True, False, {True: CLEAR, False: CLEAR})
        }
        self._of_peer: dict[tuple[int, int, bool, str], Said] = {}
        self.places = {host.name: self._places(host) for host in policy.hosts.values()}

    def _places(self, host: Host) -> Places:
        known = self._known.hosts.get(host.name)
        if known is None or known[0] is not host:
            own: dict[int, Placed] = {4: (), 6: ()}
            behind = dict(own)
            for address in host.addresses:
                own[address.version] += ((lone_place(address), lone(address)),)
            for network in host.networks:
                behind[network.version] += ((place(network), network),)
            known = (host, Places(own, behind))
        self.fresh.hosts[host.name] = known
        return known[1]

    def view(self, name: str) -> View:
        """What is said of a party, wherever it is."""
        view = self._of_party.get(name)
        if view is None:
            host = self.policy.hosts.get(name)
            flags = 0 if host is None else 1 | host.disabled << 1 | host.audit << 2
            key = (self.policy.kind(name), flags)
            view = self._spoken.views.get(key)
            if view is None:
                view = self._spoken.views[key] = self._view(name)
            self._of_party[name] = view
        return view

    def _view(self, name: str) -> View:
        policy, me = self.policy, self.me.name
        out, inbound = policy.terms(me, name), policy.terms(name, me)
        rule = policy.protecting_rule(me, name)
        requested = any(term.action is Action.REQUEST for term in (*out, *inbound))
        ruling = None
        if rule is not None and rule.profile is not None:
            ruling = Ruling(rule.name, rule.profile, rule.mode, rule.udp)
            ruling = self._known.rulings.get(ruling, ruling)
            ruling = self.fresh.rulings.setdefault(ruling, ruling)
        shares = not requested and (rule is None or rule.mode is Mode.TRANSPORT)
        return View(out, inbound, rule, ruling, shares, policy.may_initiate(me, name))

    def about(self, name: str, *, behind: bool) -> Said:
        """What is said of a party; ``behind``: of networks behind hosts, here or there."""
        view = self.view(name)
        if behind in view.said:
            return view.said[behind]
        if behind not in view.wordings:
            view.wordings[behind] = self._wording(view, behind=behind)
        wording = view.wordings[behind]
        if wording is None:
            view.said[behind] = CLEAR
            return CLEAR
        # Terms are the same objects wherever they say the same.
        key = (id(view.out), id(view.inbound), behind)
        if view.shares:
            said = view.said[behind] = self._spoken.shared.setdefault(key, Said(wording))
            return said
        peer = self.policy.hosts.get(name)
        said = Said(wording, peer if wording.ruling is not None else None)
        return self._of_peer.setdefault((*key, "" if peer is None else name), said)

    def _wording(self, view: View, *, behind: bool) -> Wording | None:
        """None: all is clear."""
        out, inbound = (
            tuple(
                (term.traffic, term.asks, in_reach(term, behind=behind), term.audit)
                for term in terms
            )
            for terms in (view.out, view.inbound)
        )
        actions = {action for _, _, action, _ in (*out, *inbound)}
        if actions == {Action.CLEAR}:
            return None
        ruling = view.ruling if actions & PROTECTING else None
        ends_clear = any(acts[-1][2] is Action.CLEAR for acts in (out, inbound))
        wording = Wording(out, inbound, ruling, ends_clear)
        wording = self._known.wordings.get(wording, wording)
        return self.fresh.wordings.setdefault(wording, wording)

    def by_place(self, here: IPNetwork) -> tuple[dict[int, Said], dict[int, IPNetwork]]:
        """By place there, of one family, what is said of its traffic with a prefix here."""
        version, policy = here.version, self.policy
        behind_me = here in self.me.networks
        anywhere = ANYWHERE[version]
        networks = {place(anywhere): anywhere, **_LINK[version]}
        found = {place(anywhere): self.about(WORLD, behind=behind_me)}
        found.update(dict.fromkeys(_LINK[version], CLEAR))
        for name, places in self.places.items():
            for beyond, placed in ((behind_me, places.own), (True, places.behind)):
                if of_family := placed[version]:
                    view = self._of_party.get(name)
                    said = None if view is None else view.said.get(beyond)
                    said = said or self.about(name, behind=beyond)
                    for at, prefix in of_family:
                        found[at], networks[at] = said, prefix
        for name, party in policy.places.items():
            said = self.about(name, behind=behind_me)
            for prefix in party.prefixes:
                if prefix.version == version:
                    networks[place(prefix)], found[place(prefix)] = prefix, said
        return found, networks

    def foreign(self, version: int) -> Iterator[tuple[int, IPNetwork]]:
        """All prefixes of a family that are others' or the link's, with their places."""
        yield from _LINK[version].items()
        for name, places in self.places.items():
            if name != self.me.name:
                yield from places.own[version]
                yield from places.behind[version]
        for party in self.policy.places.values():
            for prefix in party.prefixes:
                if prefix.version == version:
                    yield place(prefix), prefix

    def network(self, version: int, at: int) -> IPNetwork:
        """The prefix at a place."""
        key = (version, at)
        made = self._known.networks.get(key) or network_at(at, _FAMILIES[version])
        return self.fresh.networks.setdefault(key, made)


class Table:
    """The fewest prefixes there that say all that is to be said for one prefix here."""

    def __init__(self, here: IPNetwork, sayings: Sayings) -> None:
        self.here = here
        version, bits = here.version, BITS[here.version]
        said, networks = sayings.by_place(here)
        # Of the document's own prefixes: which of them are merged must not open anything.
        self.is_broad = any(said[at] is not CLEAR for at in said if length_at(at) < bits)
        self.said = fewest(said, bits, CLEAR, lambda each: each.peer is not None)
        self._networks = networks
        self._sayings = sayings
        self.is_strict = any(each is not CLEAR for each in self.said.values())
        """Whether anything in it is not just clear."""
        self._version = version
        self._strict: Covering[bool] | None = None

    def pairs(self) -> Iterator[tuple[int, IPNetwork, Said]]:
        """What it says, by place and prefix, ordered by address."""
        for at, said in self.said.items():
            yield at, self._networks.get(at) or self._sayings.network(self._version, at), said

    def is_within_strict(self, there: int, *, itself: bool) -> bool:
        """Whether a broader prefix here, or the same one if ``itself``, is not just clear."""
        if self._strict is None:  # seldom asked for
            strict = {at: True for at, each in self.said.items() if each is not CLEAR}
            self._strict = Covering(strict, BITS[self._version])
        return self._strict.of(there, itself=itself) is not None


def free_bits(prefix: IPNetwork) -> int:
    """How many bits of an address the prefix leaves open."""
    return prefix.max_prefixlen - prefix.prefixlen
