"""Why two ends do, or do not, talk: what the document says, what was seen, and the likely cause.

What was seen is given: nothing here asks a host anything. The cause is one of a list, and the list
has an order: what settles the matter by itself comes before what it may hide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import Final, NamedTuple

from kinkd.document import show, suggestion
from kinkd.errors import LocalError
from kinkd.model import Action, IPAddress, Mode
from kinkd.policy import traffic as words
from kinkd.policy.realm import PROTECTING, WORLD, RealmPolicy, Term, in_reach
from kinkd.policy.traffic import ANY, Traffic

MOST_SKEW: Final = 300.0  # seconds that Kerberos bears (RFC 4120 §1.6)
_SEVERITY: Final = (Action.BLOCK, Action.REQUIRE, Action.REQUEST, Action.CLEAR)


# --- the question ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class End:
    """One end of the question: whose it is, and at which address it is asked about, if at one."""

    name: str
    address: IPAddress | None = None
    behind: bool = False

    def __str__(self) -> str:
        if self.address is None:
            return self.name
        return f"{self.address} ({'behind ' * self.behind}{self.name})"


def find(policy: RealmPolicy, word: str) -> End:
    """Who is meant by an address, the name of a host or network, or a domain name.

    Raises:
        LocalError: nobody is; says who could be.
    """
    try:
        address = ip_address(word)
    except ValueError:
        pass
    else:
        return End(policy.owner(address).name, address, policy.owner(address).behind)
    if word in policy.hosts or word in policy.places:
        return End(word)
    wanted = word.lower().rstrip(".")
    named = [name for name, fqdn in policy.fqdns.items() if fqdn and fqdn == wanted]
    if len(named) == 1:
        return End(named[0])
    if named:
        raise LocalError(f"{word} is the domain name of {_list(named)}; name one of them")
    if word == WORLD:
        raise LocalError(f"of {WORLD!r} write an address that is meant: its owner is looked up")
    known = [*policy.hosts, *policy.places, *filter(None, policy.fqdns.values())]
    raise LocalError(
        f"{show(word)} is no host, domain name or network of the policy, and no address;"
        f" {suggestion(word, known)}"
    )


def parse_traffic(word: str) -> Traffic:
    """Traffic in the words of the document. Raises LocalError."""
    try:
        return words.parse(word)
    except ValueError as error:
        raise LocalError(str(error)) from None


# --- what the document says --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Way:
    """What is done with some packets one way, and why. ``rule`` empty: none covers them."""

    traffic: Traffic
    action: Action
    audit: bool = False
    rule: str = ""
    place: str = ""  # of the rule, in the document
    wanted: Action | None = None  # what the rule would have, where that cannot be
    profile: str = ""
    mode: Mode = Mode.TRANSPORT

    @property
    def protects(self) -> bool:
        """Whether an SA is wanted."""
        return self.action in PROTECTING


@dataclass(frozen=True, slots=True)
class Situation:
    """All that the document says of the question.

    ``asked`` is of the packets of the one that asks, ``answers`` of what comes back; of several
    the last decides for all that those before leave. ``addresses`` are some of the two, of one
    family, if they have such.
    """

    source: End
    destination: End
    traffic: Traffic
    asked: tuple[Way, ...]
    answers: tuple[Way, ...]
    disabled: tuple[str, ...] = ()  # hosts
    without_kinkd: tuple[str, ...] = ()  # networks, the world
    addresses: tuple[IPAddress, IPAddress] | None = None

    @property
    def is_inside(self) -> bool:
        """Whether both ends are one party's."""
        return self.source.name == self.destination.name

    @property
    def deciding(self) -> tuple[Way, Way]:
        """What decides for the traffic as a whole, there and back."""
        return self.asked[-1], self.answers[-1]

    @property
    def strictest(self) -> Way:
        """Of these two."""
        return min(self.deciding, key=lambda way: _SEVERITY.index(way.action))

    @property
    def protecting(self) -> Way | None:
        """The first of them that wants an SA."""
        return next((way for way in self.deciding if way.protects), None)

    @property
    def apart(self) -> tuple[Traffic, ...]:
        """Parts of the traffic for which another rule decides."""
        parts = (*self.asked[:-1], *self.answers[:-1])
        return tuple(dict.fromkeys(way.traffic for way in parts))


def situation(
    policy: RealmPolicy, source: End, destination: End, traffic: Traffic = ANY
) -> Situation:
    """What the document says of traffic that one end begins with another."""
    behind = source.behind or destination.behind
    one, other = source.name, destination.name
    asked = policy.terms_for(one, other, traffic, asks=True)
    answers = policy.terms_for(other, one, traffic, asks=False)
    hosts = [policy.hosts[name] for name in (one, other) if name in policy.hosts]
    return Situation(
        source,
        destination,
        traffic,
        _ways(policy, asked, behind=behind),
        _ways(policy, answers, behind=behind),
        disabled=tuple(host.name for host in hosts if host.disabled),
        without_kinkd=tuple(name for name in (one, other) if name not in policy.hosts),
        addresses=_addresses(policy, source, destination),
    )


def _ways(policy: RealmPolicy, terms: Iterable[Term], *, behind: bool) -> tuple[Way, ...]:
    found = []
    for term in terms:
        rule, action = term.rule, in_reach(term, behind=behind)
        if rule is None:
            found.append(Way(term.traffic, action))
            continue
        written = rule.action if term.asks else rule.back
        found.append(
            Way(
                term.traffic,
                action,
                term.audit,
                rule.name,
                policy.place(rule),
                written if written is not action else None,
                rule.profile.name if rule.profile is not None else "",
                rule.mode,
            )
        )
    return tuple(found)


def _addresses(policy: RealmPolicy, one: End, other: End) -> tuple[IPAddress, IPAddress] | None:
    for here in _of(policy, one):
        for there in _of(policy, other):
            if here.version == there.version:
                return here, there
    return None


def _of(policy: RealmPolicy, end: End) -> tuple[IPAddress, ...]:
    if end.address is not None:
        return (end.address,)
    if end.name in policy.hosts:
        return policy.hosts[end.name].addresses
    return tuple(prefix.network_address for prefix in policy.places[end.name].prefixes)


# --- what was seen -----------------------------------------------------------------------------


class SaSeen(NamedTuple):
    """A live pair of SAs between the two, by what the kernel counts; ``whole``: it is all there."""

    packets_in: int = 0
    packets_out: int = 0
    whole: bool = True


class EntrySeen(NamedTuple):
    """The SPD entry of the kernel that decides one way, in words; ``ours``: kinkd's."""

    words: str
    ours: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """What the daemon of one of the two hosts has at hand; no request was made for it."""

    here: str
    peer: str
    out: EntrySeen | None = None
    inbound: EntrySeen | None = None
    wants_entry: bool = True  # whether there should be entries that decide
    pairs: tuple[SaSeen, ...] = ()
    has_ticket: bool = False
    ticket_fault: str = ""
    clock_offset: float = 0.0  # seconds by which the peer's clock is ahead
    failure: str = ""  # why the last CREATE failed, if it did
    drops: tuple[tuple[str, int], ...] = ()  # of all peers, by reason
    missing: tuple[str, ...] = ()  # addresses of this host that are on no interface
    suspended: int = 0  # seconds for which enforcement is suspended yet
    version: int | None = None  # of the policy in force

    @classmethod
    def read(cls, said: Mapping[str, object], missing: Iterable[str] = ()) -> Seen | None:
        """What the control command "explain" answered; None: the host is neither of the two."""
        if not said.get("peer"):
            return None
        last = _mapping(said, "last_negotiation")
        return cls(
            here=str(said["host"]),
            peer=str(said["peer"]),
            out=_entry(_mapping(said, "spd_out")),
            inbound=_entry(_mapping(said, "spd_in")),
            wants_entry=bool(said.get("spd_wanted")),
            pairs=tuple(
                SaSeen(int(sa["packets_in"]), int(sa["packets_out"]), bool(sa["installed"]))
                for sa in _list_of(said, "sas")
            ),
            has_ticket=bool(said.get("ticket")),
            ticket_fault=str(said.get("ticket_fault") or ""),
            clock_offset=float(str(said.get("clock_offset_seconds") or 0)),
            failure=str(last.get("reason", "")) if last.get("event") == "create-failed" else "",
            drops=tuple((name, int(str(n))) for name, n in _mapping(said, "drops").items()),
            missing=tuple(missing),
            suspended=int(str(said.get("suspended_seconds") or 0)),
            version=int(str(said["policy_version"])),
        )


def _mapping(said: Mapping[str, object], key: str) -> Mapping[str, object]:
    found = said.get(key)
    return found if isinstance(found, dict) else {}


def _list_of(said: Mapping[str, object], key: str) -> list[dict[str, int]]:
    found = said.get(key)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _entry(said: Mapping[str, object]) -> EntrySeen | None:
    return EntrySeen(str(said["entry"]), bool(said["ours"])) if said else None


# --- the most likely cause ---------------------------------------------------------------------


class Kind(Enum):
    """The causes that there are."""

    INSIDE = "inside-one-party"
    FAMILIES = "no-common-family"
    DISABLED = "disabled"
    BLOCKED = "blocked"
    UNKEYABLE = "cannot-be-keyed"
    SUSPENDED = "break-glass"
    FOREIGN = "foreign-spd-entry"
    AUDIT = "audit"
    NO_RULE = "no-rule"
    CLEAR = "clear"
    UNSEEN = "document-only"
    NO_ADDRESS = "address-missing"
    NO_ENTRY = "spd-entry-missing"
    SA_LOST = "sa-lost"
    NOTHING_IN = "nothing-comes-in"
    WELL = "all-well"
    KDC_UNREACHABLE = "kdc-unreachable"
    PRINCIPAL_UNKNOWN = "principal-unknown"
    CLOCK = "clock"
    NO_TICKET = "no-ticket"
    REFUSED = "peer-refuses"
    NOT_BOUND = "not-bound"
    SILENT = "peer-silent"
    IN_CLEAR = "requested-in-clear"
    UNTRIED = "not-tried"


class Cause(NamedTuple):
    """The most likely cause in one sentence, and what to do next."""

    kind: Kind
    text: str
    then: str = ""

    def __str__(self) -> str:
        return f"{self.text}; {self.then}." if self.then else f"{self.text}."


def cause(found: Situation, seen: Seen | None) -> Cause:
    """The most likely cause of what these two find between them."""
    most_likely = (
        _by_nature(found)
        or _by_suspension(found, seen)
        or _by_document(found)
        or _by_host(found, seen)
        or _by_keying(found, seen)
    )
    if not found.apart or most_likely.kind in (Kind.INSIDE, Kind.FAMILIES):
        return most_likely
    apart = f"ask for {' and for '.join(map(str, found.apart))} apart"
    then = f"{most_likely.then}; {apart}" if most_likely.then else apart
    return most_likely._replace(then=then)


def _by_nature(found: Situation) -> Cause | None:
    """Of what no rule can be about."""
    one, other = found.source, found.destination
    if found.is_inside:
        return Cause(
            Kind.INSIDE,
            f"both ends are {one.name}'s, and no rule is about what is inside one party",
            "look for another cause than IPsec",
        )
    if found.addresses is None:
        return Cause(
            Kind.FAMILIES,
            f"{one} and {other} have no addresses of one family",
            "give both an IPv4 or an IPv6 address in the policy",
        )
    return None


def _by_suspension(found: Situation, seen: Seen | None) -> Cause | None:
    if seen is None or not seen.suspended or found.strictest.action is Action.CLEAR:
        return None
    return Cause(
        Kind.SUSPENDED,
        f"enforcement is suspended on {seen.here} for another {seen.suspended} s: it drops nothing,"
        " the other end may",
        "kinkctl break-glass --end enforces again",
    )


def _by_document(found: Situation) -> Cause | None:
    """What holds wherever one looks."""
    way = found.strictest
    if way.audit:
        return None
    if found.disabled and way.action is Action.BLOCK and way.wanted is not None:
        return Cause(
            Kind.DISABLED,
            f"{_list(found.disabled)} is disabled in the policy, and what {_rule(way)} would"
            " protect is blocked",
            "take disabled = true out of the policy once the host may be keyed again",
        )
    if found.without_kinkd and way.action in (Action.REQUIRE, Action.BLOCK) and _wants_sa(way):
        return Cause(
            Kind.UNKEYABLE,
            f"{_rule(way)} requires protection, and {_list(found.without_kinkd)} has no kinkd to"
            " key it with: every packet is dropped",
            'make it a host of the policy, or let a rule before say action = "clear"',
        )
    if way.action is Action.BLOCK:
        return Cause(
            Kind.BLOCKED,
            f"{_rule(way)} blocks {_traffic(way)}{_direction(found, way)}",
            "change that rule, or put one before it",
        )
    return None


def _wants_sa(way: Way) -> bool:
    return PROTECTING & {way.action, way.wanted} != frozenset()


def _by_host(found: Situation, seen: Seen | None) -> Cause | None:
    """What a host does beside the document, and what the document leaves alone."""
    entries = [] if seen is None else [("out", seen.out), ("in", seen.inbound)]
    for way_of, entry in entries:
        if seen is not None and entry is not None and not entry.ours:
            return Cause(
                Kind.FOREIGN,
                f"an IPsec policy of other software decides on {seen.here} for packets {way_of}:"
                f" {entry.words}",
                "remove it (ip xfrm policy), or take the pair out of kinkd's policy",
            )
    way = found.strictest
    if way.audit:
        return Cause(
            Kind.AUDIT,
            f"{_rule(way)} is in audit: SAs are made where they can be, nothing is dropped for it",
            "look for another cause than kinkd, on this host",
        )
    if found.protecting is None:
        return _clear(found, way)
    return None


def _clear(found: Situation, way: Way) -> Cause:
    then = "if they do not talk, look for another cause than kinkd"
    if not way.rule:
        what = "traffic" if found.traffic == ANY else found.traffic
        text = f"no rule covers {what} between {found.source} and {found.destination}"
        return Cause(Kind.NO_RULE, f"{text}, so it passes in clear", then)
    why = ""
    if way.wanted is Action.REQUEST:
        why = f", since {_list(found.without_kinkd)} has no kinkd"
    elif way.wanted is not None:
        why = ", since it lies behind a gateway and the rule is of transport mode"
    return Cause(Kind.CLEAR, f"{_rule(way)} lets it pass in clear{why}", then)


def _by_keying(found: Situation, seen: Seen | None) -> Cause:
    """Of traffic that is to be protected: how far it has come."""
    way = found.protecting or found.strictest
    if seen is None:
        return Cause(
            Kind.UNSEEN,
            f"{_rule(way)} has them protected (profile {way.profile}), and nothing in the document"
            " keeps them apart",
            "run kinkctl explain on one of the two hosts to see how far it comes",
        )
    if seen.missing:
        return Cause(
            Kind.NO_ADDRESS,
            f"{_list(seen.missing)} is an address of {seen.here} in the policy, and on no interface"
            " of it",
            "give it to an interface, or correct the policy",
        )
    if seen.wants_entry and seen.out is None:
        return Cause(
            Kind.NO_ENTRY,
            f"the kernel of {seen.here} has no SPD entry for this: somebody has removed it",
            "kinkctl reload writes it again",
        )
    return _by_pairs(seen) or _by_ticket(seen) or _by_peer(found, seen, way)


def _by_pairs(seen: Seen) -> Cause | None:
    if not seen.pairs:
        return None
    if not any(pair.whole for pair in seen.pairs):
        return Cause(
            Kind.SA_LOST,
            f"SAs with {seen.peer} were made, and the kernel of {seen.here} has lost some",
            f"kinkctl initiate {seen.peer} makes new ones",
        )
    if any(pair.packets_out for pair in seen.pairs) and not any(
        pair.packets_in for pair in seen.pairs
    ):
        return Cause(
            Kind.NOTHING_IN,
            f"SAs with {seen.peer} are up and packets go out, but none have come in",
            f"see that nothing on the way drops ESP (IP protocol 50, or UDP port 4500) and that"
            f" the service on {seen.peer} answers",
        )
    return Cause(
        Kind.WELL,
        f"all is well: SAs with {seen.peer} are up",
        "if they do not talk, look for another cause than kinkd",
    )


TICKET_FAULTS: Final = (
    (Kind.KDC_UNREACHABLE, ("can be reached", "no KDC is known")),
    (Kind.PRINCIPAL_UNKNOWN, ("the KDC does not know",)),
    (Kind.CLOCK, ("the clocks of",)),
)
"""By which words of ``kerberos.gss`` a fault is known."""


def _by_ticket(seen: Seen) -> Cause | None:
    if seen.has_ticket or not seen.ticket_fault:
        return None
    text, _, then = seen.ticket_fault.partition(": ")
    kind = next(
        (kind for kind, parts in TICKET_FAULTS if any(part in text for part in parts)),
        Kind.NO_TICKET,
    )
    return Cause(kind, f"{seen.here} has no ticket for {seen.peer}: {text}", then.rstrip("?."))


_SILENCE: Final = ("no answer", "no answer; others wait")
_UNBOUND: Final = ("address-not-bound", "unknown-principal")


def _by_peer(found: Situation, seen: Seen, way: Way) -> Cause:
    if abs(seen.clock_offset) > MOST_SKEW:
        ahead = "ahead of" if seen.clock_offset > 0 else "behind"
        return Cause(
            Kind.CLOCK,
            f"the clock of {seen.peer} is {abs(seen.clock_offset):.0f} s {ahead} that of"
            f" {seen.here}, and Kerberos bears {MOST_SKEW:.0f} s",
            "run NTP on both",
        )
    if seen.failure and seen.failure not in _SILENCE:
        return Cause(
            Kind.REFUSED,
            f"{seen.peer} was asked for SAs, and they were not made: {seen.failure}",
            f"kinkctl explain on {seen.peer} says more",
        )
    unbound = [name for name, count in seen.drops if name in _UNBOUND and count]
    if unbound:
        return Cause(
            Kind.NOT_BOUND,
            f"{seen.here} has refused commands of principals that the policy does not bind to the"
            f" addresses they come from ({_list(unbound)})",
            f"compare the principal and the addresses of {seen.peer} in the policy with what it is",
        )
    if seen.failure:
        return Cause(
            Kind.SILENT,
            f"{seen.peer} does not answer on UDP port 910",
            "see that kinkd runs there and that nothing on the way drops the port",
        )
    if way.action is Action.REQUEST:
        return Cause(
            Kind.IN_CLEAR,
            f"{_rule(way)} requests protection, there are no SAs yet, and until then it is clear",
            f"kinkctl initiate {seen.peer} tries now and says why it fails",
        )
    return Cause(
        Kind.UNTRIED,
        f"nothing has been sent that needs SAs with {seen.peer}: there are none",
        f"kinkctl initiate {seen.peer} makes them now, or says why not",
    )


def _rule(way: Way) -> str:
    return f"rule {show(way.rule)} ({way.place})"


def _traffic(way: Way) -> str:
    return "all traffic" if way.traffic == ANY else str(way.traffic)


def _direction(found: Situation, way: Way) -> str:
    asked, answers = found.deciding
    if asked.action is answers.action:
        return f" between {found.source} and {found.destination}"
    if way is asked:
        return f" from {found.source} to {found.destination}"
    return f" that {found.destination} answers to {found.source}"


def _list(names: Sequence[str]) -> str:
    return " and ".join(names)
