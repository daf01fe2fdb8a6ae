"""What can be said of a whole policy once it was read: faults, failed tests, oddities.

Parties that the same rules name on the same sides are alike: two of a kind stand for all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from kinkd.document import Item, show
from kinkd.model import Action, Host, IPAddress, IPNetwork, Mode
from kinkd.policy.realm import WORLD, Expectation, RealmPolicy, Rule, Term
from kinkd.policy.traffic import ALL_PORTS, ANY, Traffic

_SHOWN: Final = 4  # names in one line


def refuse(items: list[Item], policy: RealmPolicy) -> None:
    """Refuse what no host could carry out. ``items`` are the rules'.

    Raises:
        DocumentError: tunnels without ends, or two kinds of SA between the same two addresses.
    """
    _refuse_tunnels_without_ends(items, policy)
    _refuse_two_kinds(items, policy)


def run_tests(items: list[Item], policy: RealmPolicy) -> None:
    """Compare what the document's tests expect with what its rules say.

    Raises:
        DocumentError: the first test that fails.
    """
    for item, test in zip(items, policy.tests, strict=True):
        if fault := _failure(policy, test):
            raise item.error(fault)


def _failure(policy: RealmPolicy, test: Expectation) -> str:
    pairs = itertools.product(
        _representatives(policy, test.source), _representatives(policy, test.destination)
    )
    for one, other in pairs:
        if one == other:
            continue
        for asks, expected in ((True, test.action), (False, test.back)):
            ends = (one, other) if asks else (other, one)
            for term in policy.terms_for(*ends, test.traffic, asks=asks):
                if not _holds(policy, expected, term, ends):
                    return (
                        f"{one} -> {other} {test.traffic}{'' if asks else ', the answers'}:"
                        f" {expected.value} is expected, but it is {_said(policy, term)}"
                    )
    return ""


def _holds(policy: RealmPolicy, expected: Action, term: Term, ends: tuple[str, str]) -> bool:
    if expected is term.action:
        return True
    # Of a disabled host, what is written holds as well: disabling one must not refuse the document.
    hosts = [policy.hosts[name] for name in ends if name in policy.hosts]
    return expected is term.written and any(host.disabled for host in hosts)


def _said(policy: RealmPolicy, term: Term) -> str:
    if term.rule is None:
        return f"{term.action.value}: no rule matches"
    return f"{term.action.value}, by rule {show(term.rule.name)} ({policy.place(term.rule)})"


def _representatives(policy: RealmPolicy, names: Iterable[str]) -> list[str]:
    """Of each kind among ``names`` two, or the one that there is."""
    kinds: dict[tuple[object, ...], list[str]] = {}
    for name in sorted(names):
        host = policy.hosts.get(name)
        flags = None if host is None else (host.disabled, host.audit)
        of_kind = kinds.setdefault((*policy.kind(name), flags), [])
        if len(of_kind) < 2:
            of_kind.append(name)
    return [name for of_kind in kinds.values() for name in of_kind]


# --- what is refused ---------------------------------------------------------------------------


def _refuse_tunnels_without_ends(items: list[Item], policy: RealmPolicy) -> None:
    """Traffic that a rule wants in a tunnel, between hosts that cannot have one, would be clear."""
    hosts: dict[frozenset[type[IPAddress]], list[Host]] = {}
    for host in policy.hosts.values():
        hosts.setdefault(frozenset(map(type, host.addresses)), []).append(host)
    for gateway in (host for host in policy.hosts.values() if host.networks):
        own = frozenset(map(type, gateway.addresses))
        for other in (host for ends, group in hosts.items() if not own & ends for host in group):
            rule = policy.protecting_rule(gateway.name, other.name)
            inside = _families(gateway.prefixes)
            if rule is not None and rule.mode is Mode.TUNNEL and inside & _families(other.prefixes):
                raise items[policy.rules.index(rule)].error(
                    f"no tunnel between hosts {show(gateway.name)} and {show(other.name)}:"
                    " they have no addresses of one family for its ends"
                )


def _families(places: Iterable[IPAddress | IPNetwork]) -> frozenset[int]:
    return frozenset(place.version for place in places)


def _refuse_two_kinds(items: list[Item], policy: RealmPolicy) -> None:
    """One pair of SAs serves two addresses: it has one profile, one mode, one encapsulation."""
    partial = [
        (index, rule)
        for index, rule in enumerate(policy.rules)
        if rule.profile is not None and ANY not in rule.traffic
    ]
    for index, rule in partial:
        others = [
            (later, each)
            for later, each in enumerate(policy.rules[index + 1 :], index + 1)
            if each.profile is not None and _kind(each) != _kind(rule)
        ]
        for later, each in others:
            shared = _shared_pair(policy, rule, each)
            if shared is not None:
                one, other = shared
                raise items[later].error(
                    f"rule {show(each.name)} wants {_kind_words(each)} between {one} and {other},"
                    f" and rule {show(rule.name)} ({policy.place(rule)}) {_kind_words(rule)}: one"
                    " pair of SAs serves two hosts; give both rules the same"
                )


def _kind(rule: Rule) -> tuple[object, ...]:
    return (rule.profile, rule.mode, rule.udp)


def _kind_words(rule: Rule) -> str:
    profile = "" if rule.profile is None else f"profile {show(rule.profile.name)}"
    udp = ", in UDP" if rule.udp else ""
    return f"{profile} in {rule.mode.name.lower()} mode{udp}"


def _shared_pair(policy: RealmPolicy, rule: Rule, other: Rule) -> tuple[str, str] | None:
    """Two hosts whose traffic both rules protect, if there are any."""
    hosts = policy.hosts.keys()
    sides = (
        (rule.source & other.source, rule.destination & other.destination),
        (rule.source & other.destination, rule.destination & other.source),
    )
    for one_side, other_side in sides:
        ones = _representatives(policy, one_side & hosts)
        others = _representatives(policy, other_side & hosts)
        for one, two in itertools.product(ones, others):
            if one == two:
                continue
            terms = (*policy.terms(one, two), *policy.terms(two, one))
            protecting = [term.rule for term in terms if term.protects]
            if rule in protecting and other in protecting:
                return one, two
    return None


# --- what can hardly be meant ------------------------------------------------------------------


def warnings(items: list[Item], policy: RealmPolicy) -> Iterator[str]:
    """Oddities, a line each. ``items`` are the rules'."""
    parties = (*policy.hosts, *policy.places, WORLD)
    numbers = {name: number for number, name in enumerate(parties)}
    hosts = _mask(numbers, policy.hosts)
    sides = [
        (_mask(numbers, rule.source), _mask(numbers, rule.destination)) for rule in policy.rules
    ]
    clear = _clear_networks(policy)
    for index, (item, rule) in enumerate(zip(items, policy.rules, strict=True)):
        if not _decides(policy, index, sides, numbers, hosts):
            yield item.warning(
                f"rule {show(rule.name)} never decides: rules before it cover all its pairs"
                " of two parties, or it has none"
            )
        if gateways := clear.get(rule.name):
            yield item.warning(
                f"rule {show(rule.name)} leaves the networks behind {_few(gateways)} clear:"
                ' transport mode protects addresses of hosts alone; write mode = "tunnel"'
            )
        if opened := _opened_by_trial(policy, index):
            yield item.warning(
                f"rule {show(rule.name)} is in audit: its traffic passes in clear though rule"
                f" {show(opened.name)} ({policy.place(opened)}) would not let it; put it behind"
            )
        if port := _open_back(policy, index):
            yield item.warning(
                f"rule {show(rule.name)} lets pass in clear all that is sent from port {port}, to"
                f' any service; write traffic = "{port} from 32768-65535" if that is where those'
                " who ask have their ports"
            )


def _mask(numbers: dict[str, int], names: Iterable[str]) -> int:
    mask = 0
    for name in names:
        mask |= 1 << numbers[name]
    return mask


def _decides(
    policy: RealmPolicy,
    index: int,
    sides: list[tuple[int, int]],
    numbers: dict[str, int],
    hosts: int,
) -> bool:
    """Whether a rule is the first for some traffic of some two parties, one of them a host."""
    rule = policy.rules[index]
    earlier = [
        (
            number,
            each,
            all(any(_takes_both(t, mine) for t in each.traffic) for mine in rule.traffic),
        )
        for number, each in enumerate(policy.rules[:index])
        if all(any(t.covers(mine) for t in each.traffic) for mine in rule.traffic)
    ]
    for one in _representatives(policy, rule.source):
        left = sides[index][1] & ~(1 << numbers[one])
        if one not in policy.hosts:
            left &= hosts
        for number, each, whole in earlier:
            if one in each.source:
                left &= ~sides[number][1]
            if whole and one in each.destination:
                left &= ~sides[number][0]
            if not left:
                break
        if left:
            return True
    return False


def _takes_both(traffic: Traffic, mine: Traffic) -> bool:
    """Whether all of ``mine`` is taken, whoever of the two asks."""
    return not traffic.has_ports and traffic.covers(mine)


def _clear_networks(policy: RealmPolicy) -> dict[str, list[str]]:
    """For every rule of transport mode, the gateways whose networks it leaves clear."""
    found: dict[str, list[str]] = {}
    names = _representatives(policy, policy.hosts)
    gateways = [host.name for host in policy.hosts.values() if host.networks]
    for gateway in _representatives(policy, gateways):
        rules = {
            rule.name: rule
            for other in names
            if other != gateway and (rule := policy.protecting_rule(gateway, other)) is not None
        }
        for rule in rules.values():
            if rule.mode is Mode.TRANSPORT:
                found.setdefault(rule.name, []).append(gateway)
    return found


def _open_back(policy: RealmPolicy, index: int) -> str:
    """The port from which a rule lets everything pass that a later one would not; else empty."""
    rule = policy.rules[index]
    if rule.back is not Action.CLEAR or rule.audit:
        return ""
    for traffic in rule.traffic:
        if traffic.ports != ALL_PORTS and traffic.source_ports == ALL_PORTS:
            for later in policy.rules[index + 1 :]:
                if _is_strict(later) and _meet(rule, later):
                    return str(traffic)
    return ""


def _opened_by_trial(policy: RealmPolicy, index: int) -> Rule | None:
    """A later rule that would keep traffic from passing which this one, in audit, lets pass."""
    rule = policy.rules[index]
    if not rule.audit or not _is_strict(rule):
        return None
    later = (each for each in policy.rules[index + 1 :] if not each.audit and _is_strict(each))
    return next((each for each in later if _meet(rule, each) and _overlap(rule, each)), None)


def _is_strict(rule: Rule) -> bool:
    return bool({rule.action, rule.back} - {Action.CLEAR})


def _overlap(rule: Rule, other: Rule) -> bool:
    return any(one.overlaps(two) for one in rule.traffic for two in other.traffic)


def _meet(rule: Rule, later: Rule) -> bool:
    return bool(
        (rule.source & later.source and rule.destination & later.destination)
        or (rule.source & later.destination and rule.destination & later.source)
    )


def _few(names: list[str]) -> str:
    return ", ".join(map(show, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
