"""The realm's policy document as values: hosts, groups, profiles, rules.

Every host of the realm reads the same document. A rule covers the traffic between two hosts
whichever of them it names first, and the first rule that covers a pair decides, so that both
hosts come to the same result. Where no rule covers a pair, its traffic is clear.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NoReturn

from kinkd.document import Document, Item, Table, show, suggestion
from kinkd.keying.algorithms import GROUP_NUMBERS, SUITES
from kinkd.model import Action, Host, IPAddress, Lifetime, Principal, Profile

SCHEMA: Final = 1
ALL: Final = "all"  # the group of every host
DEFAULT_PROFILE: Final = "standard"
FAST_PROFILE: Final = "fast"
DEFAULT_GROUP: Final = "ecp256"
NO_GROUP: Final = "none"
MINIMUM_LIFETIME: Final = 30  # seconds; a rekey needs some of them
MAXIMUM_LIFETIME: Final = 7 * 86400
MINIMUM_VOLUME: Final = 1 << 20  # octets
MAXIMUM_VOLUME: Final = (1 << 32) * 1024 - 1  # LIFE_DURATION counts kilobytes in 32 bits

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REALM: Final = re.compile(r"[^\s/@\\:]+")
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_FQDN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; ``source`` and ``destination`` are names of hosts, groups already resolved."""

    name: str
    source: frozenset[str]
    destination: frozenset[str]
    action: Action
    profile: Profile | None  # None: nothing to protect, the action is ``clear``


@dataclass(frozen=True, slots=True)
class RealmPolicy:
    """A policy document that was read and found good.

    ``fqdns`` holds every host's fully qualified domain name; ``warnings`` holds what is no
    error but can hardly be meant, a line each.
    """

    version: int
    realm: str
    hosts: Mapping[str, Host]
    fqdns: Mapping[str, str]
    profiles: Mapping[str, Profile]
    rules: tuple[Rule, ...]
    warnings: tuple[str, ...] = ()
    # Bit i of a host's mask: rule i names the host on that side.
    _sources: Mapping[str, int] = field(repr=False, default_factory=dict)
    _destinations: Mapping[str, int] = field(repr=False, default_factory=dict)

    def rule_between(self, one: str, other: str) -> Rule | None:
        """The rule that decides for two hosts, in whichever order; None: no rule, clear."""
        index = _first_rule(self._sources, self._destinations, one, other)
        return None if index is None else self.rules[index]


def read(document: Document) -> RealmPolicy:
    """Read a policy document.

    Raises:
        DocumentError: something in it cannot be meant, or is not understood.
    """
    # The schema comes first: of another schema, every other complaint would be misleading.
    for key, item in document.root.entries():
        if key == "schema" and item.integer(1, 1 << 31) != SCHEMA:
            raise item.error(f"schema {show(item.value)} is not known here; {SCHEMA} is")
    root = document.root.table("schema", "version", "realm", "hosts", "groups", "profiles", "rules")
    root.item("schema", hint=str(SCHEMA))
    version = root.item("version", hint="1, and one more with every change").integer(1, 1 << 53)
    realm = _realm(root.item("realm", hint='"EXAMPLE.TEST"'))
    hosts, fqdns = _hosts(root.item("hosts", hint="..., a table [hosts.NAME] for each"), realm)
    groups = _groups(root.item("groups", {}), hosts)
    profiles = _profiles(root.item("profiles", {}))
    items = root.item("rules", []).items()
    rules = _rules(items, hosts, groups, profiles)
    sources = _masks(hosts, [rule.source for rule in rules])
    destinations = _masks(hosts, [rule.destination for rule in rules])
    return RealmPolicy(
        version=version,
        realm=realm,
        hosts=MappingProxyType(hosts),
        fqdns=MappingProxyType(fqdns),
        profiles=MappingProxyType(profiles),
        rules=rules,
        warnings=tuple(_unreachable(items, rules, sources, destinations)),
        _sources=MappingProxyType(sources),
        _destinations=MappingProxyType(destinations),
    )


def _realm(item: Item) -> str:
    realm = item.string()
    if not _REALM.fullmatch(realm):
        raise item.error(f'{show(realm)} is not a realm; write it like "EXAMPLE.TEST"')
    return realm


def _name(name: str, item: Item) -> str:
    if not _NAME.fullmatch(name):
        raise item.error("a name is of letters, digits, '.', '_' and '-', 64 at most")
    return name


# --- hosts -------------------------------------------------------------------------------------


def _hosts(item: Item, realm: str) -> tuple[dict[str, Host], dict[str, str]]:
    hosts: dict[str, Host] = {}
    fqdns: dict[str, str] = {}
    principals: dict[Principal, str] = {}
    addresses: dict[IPAddress, str] = {}
    for name, entry in item.entries():
        if _name(name, entry) == ALL:
            raise entry.error(f"{show(ALL)} is the group of every host; name the host otherwise")
        table = entry.table("service", "client", "fqdn", "addresses")
        host, fqdn = _host(name, table, realm)
        hosts[name], fqdns[name] = host, fqdn
        for principal in {host.service, host.client}:
            _claim(principals, principal, name, _principal_item(table, principal, host))
        for address, place in zip(
            host.addresses, table.item("addresses").one_or_more(), strict=True
        ):
            if (owner := addresses.setdefault(address, name)) != name:
                raise place.error(
                    f"{address} is host {show(owner)}'s already; an address belongs to one host"
                )
    if not hosts:
        raise item.error("there is no host; write a table [hosts.NAME] for each")
    return hosts, fqdns


def _principal_item(table: Table, principal: Principal, host: Host) -> Item:
    key = "service" if principal == host.service else "client"
    return table.optional(key) or table.optional("fqdn") or table.place


def _claim(owners: dict[Principal, str], principal: Principal, name: str, place: Item) -> None:
    if (owner := owners.setdefault(principal, name)) != name:
        raise place.error(
            f"{principal} is host {show(owner)}'s already; a principal belongs to one host"
        )


def _host(name: str, table: Table, realm: str) -> tuple[Host, str]:
    fqdn_item = table.optional("fqdn")
    fqdn = None if fqdn_item is None else _fqdn(fqdn_item)
    service_item = table.optional("service")
    if service_item is None and fqdn is None:
        raise table.place.error(
            f'neither service nor fqdn; write service = "kink/FQDN" or fqdn = "{name}.example.test"'
        )
    service = _service(service_item or table.item("service", f"kink/{fqdn}"), realm)
    client_item = table.optional("client")
    client = service if client_item is None else _principal(client_item, realm)
    addresses: list[IPAddress] = []
    for item in table.item("addresses", hint='["192.0.2.1"]').one_or_more():
        address = unicast(item)
        if address in addresses:
            raise item.error(f"{address} stands here twice")
        addresses.append(address)
    return Host(name, service, client, tuple(addresses)), fqdn or service.components[1]


def _fqdn(item: Item) -> str:
    fqdn = item.string()
    if not _FQDN.fullmatch(fqdn):  # RFC 4430 §4.2.1: the "fqdn" part MUST be lowercase
        raise item.error(f"{show(fqdn)} is not a domain name in lower case")
    return fqdn


def _principal(item: Item, realm: str) -> Principal:
    text = item.string()
    for candidate in (text, f"{text}@{realm}"):
        try:
            return Principal.parse(candidate)
        except ValueError:
            continue
    raise item.error(f'{show(text)} is not a principal; write it like "kink/host.example.test"')


def _service(item: Item, realm: str) -> Principal:
    # RFC 4430 §4.2.1: "kink/fqdn@REALM", and the "fqdn" part MUST be lowercase.
    service = _principal(item, realm)
    if len(service.components) != 2 or service.components[0] != "kink":
        raise item.error(f'{service} is no KINK service; write "kink/FQDN", or name a client apart')
    if not _FQDN.fullmatch(service.components[1]):
        right = f"kink/{service.components[1].lower()}"
        raise item.error(f"{service}: the name after kink/ is a domain name; write {show(right)}")
    return service


def unicast(item: Item) -> IPAddress:
    """An address that one host alone can have.

    Raises:
        DocumentError: it is none, or of a kind that many hosts have.
    """
    address = item.address()
    kind = ""
    if address.is_multicast:
        kind = "a multicast address"
    elif address.is_unspecified:
        kind = "the unspecified address"
    elif address.is_loopback:
        kind = "a loopback address"
    elif address.version == 6 and address.is_link_local:
        kind = "an address of one link"
    elif address.version == 4 and int(address) == 0xFFFFFFFF:
        kind = "the broadcast address"
    if kind:
        raise item.error(f"{address} is {kind}; write an address that is one host's own")
    return address


# --- groups ------------------------------------------------------------------------------------


def _groups(item: Item, hosts: Mapping[str, Host]) -> dict[str, frozenset[str]]:
    """Every group with the hosts in it, groups in groups resolved, ``all`` included."""
    entries = dict(item.entries())
    for name, entry in entries.items():
        if _name(name, entry) == ALL:
            raise entry.error(f"{show(ALL)} is the group of every host; it cannot be set")
        if name in hosts:
            raise entry.error(f"{show(name)} is a host already; a group needs a name of its own")
    groups = {ALL: frozenset(hosts)}
    members = {
        name: [(_member(member, hosts, entries), member) for member in entry.items()]
        for name, entry in entries.items()
    }
    for name in _inside_out(members):
        groups[name] = frozenset[str]().union(
            *(groups.get(member, frozenset((member,))) for member, _ in members[name])
        )
    return groups


def _member(item: Item, hosts: Iterable[str], groups: Iterable[str]) -> str:
    name = item.string()
    if name != ALL and name not in hosts and name not in groups:
        raise item.error(
            f"no host or group {show(name)}; {suggestion(name, [*hosts, *groups, ALL])}"
        )
    return name


def _inside_out(members: Mapping[str, list[tuple[str, Item]]]) -> list[str]:
    """The groups, each after those it contains; a group that contains itself is refused."""
    order: list[str] = []
    done: set[str] = set()
    for start in members:
        # Depth first without recursion: a chain of groups may be longer than the stack is deep.
        trail: list[str] = [start]
        on_trail = {start}
        pending = [list(members[start])]
        while trail:
            if not pending[-1]:
                pending.pop()
                on_trail.discard(name := trail.pop())
                if name not in done:
                    done.add(name)
                    order.append(name)
                continue
            member, item = pending[-1].pop()
            if member in on_trail:
                _refuse_cycle(item, [*trail[trail.index(member) :], member])
            if member in members and member not in done:
                trail.append(member)
                on_trail.add(member)
                pending.append(list(members[member]))
    return order


def _refuse_cycle(item: Item, cycle: list[str]) -> NoReturn:
    words = " contains ".join(cycle[:8]) + ("" if len(cycle) <= 8 else " ...")
    raise item.error(f"the groups contain each other: {words}; take one out")


# --- profiles ----------------------------------------------------------------------------------


def _profiles(item: Item) -> dict[str, Profile]:
    suites, lifetime = (SUITES["aes256gcm16"], SUITES["aes128gcm16"]), Lifetime(3600)
    profiles = {
        DEFAULT_PROFILE: Profile(DEFAULT_PROFILE, suites, lifetime, GROUP_NUMBERS[DEFAULT_GROUP]),
        FAST_PROFILE: Profile(FAST_PROFILE, suites, lifetime),
    }
    for name, entry in item.entries():
        table = entry.table("suites", "lifetime", "volume", "group", "esn")
        names: list[str] = []
        for suite in table.item("suites", hint='["aes256gcm16"]').one_or_more():
            if suite.choice(SUITES) in names:
                raise suite.error(f"{show(suite.value)} stands here twice")
            names.append(suite.choice(SUITES))
        seconds = table.item("lifetime", "1h").duration(MINIMUM_LIFETIME, MAXIMUM_LIFETIME)
        volume = table.optional("volume")
        kilobytes = None if volume is None else volume.size(MINIMUM_VOLUME, MAXIMUM_VOLUME) // 1024
        # Whoever does not think of it has forward secrecy.
        group = table.item("group", DEFAULT_GROUP).choice((*GROUP_NUMBERS, NO_GROUP))
        profiles[_name(name, entry)] = Profile(
            name,
            tuple(SUITES[suite] for suite in names),
            Lifetime(seconds, kilobytes),
            GROUP_NUMBERS.get(group),
            table.item("esn", False).boolean(),
        )
    return profiles


# --- rules -------------------------------------------------------------------------------------


def _rules(
    items: list[Item],
    hosts: Mapping[str, Host],
    groups: Mapping[str, frozenset[str]],
    profiles: Mapping[str, Profile],
) -> tuple[Rule, ...]:
    rules: dict[str, Rule] = {}
    for item in items:
        table = item.table("name", "from", "to", "traffic", "action", "profile")
        name = table.item("name", hint='"what the rule is for"').string()
        if name in rules:
            raise table.item("name").error(f"a rule before is called {show(name)}, too")
        traffic = table.item("traffic", "any")
        if traffic.string() != "any":
            raise traffic.error(
                f'{show(traffic.value)} is not understood yet; "any" is: a rule covers all'
                " traffic between two hosts"
            )
        action = Action(table.item("action", hint='"require"').choice(a.value for a in Action))
        rules[name] = Rule(
            name,
            _side(table.item("from", hint='"all"'), hosts, groups),
            _side(table.item("to", hint='"all"'), hosts, groups),
            action,
            _rule_profile(table, action, profiles),
        )
    return tuple(rules.values())


def _side(
    item: Item, hosts: Mapping[str, Host], groups: Mapping[str, frozenset[str]]
) -> frozenset[str]:
    names = [_member(member, hosts, groups) for member in item.one_or_more()]
    return frozenset[str]().union(*(groups.get(name, frozenset((name,))) for name in names))


def _rule_profile(table: Table, action: Action, profiles: Mapping[str, Profile]) -> Profile | None:
    written = table.optional("profile")
    if action is Action.CLEAR:
        if written is not None:
            raise written.error('clear traffic has no profile; leave it out, or "require"')
        return None
    return profiles[(written or table.item("profile", DEFAULT_PROFILE)).choice(profiles)]


def _masks(hosts: Iterable[str], sides: list[frozenset[str]]) -> dict[str, int]:
    masks = dict.fromkeys(hosts, 0)
    for index, side in enumerate(sides):
        for name in side:
            masks[name] |= 1 << index
    return masks


def _first_rule(
    sources: Mapping[str, int], destinations: Mapping[str, int], one: str, other: str
) -> int | None:
    covering = sources[one] & destinations[other] | destinations[one] & sources[other]
    return (covering & -covering).bit_length() - 1 if covering else None


def _unreachable(
    items: list[Item],
    rules: tuple[Rule, ...],
    sources: Mapping[str, int],
    destinations: Mapping[str, int],
) -> Iterable[str]:
    """A warning for every rule that decides for no pair of hosts.

    Hosts that the same rules name on the same sides are alike: two of a kind stand for all.
    """
    kinds: dict[tuple[int, int], list[str]] = {}
    for name in sources:
        kind = kinds.setdefault((sources[name], destinations[name]), [])
        if len(kind) < 2:
            kind.append(name)
    names = [name for kind in kinds.values() for name in kind]
    for index, (item, rule) in enumerate(zip(items, rules, strict=True)):
        if not any(
            one != other and _first_rule(sources, destinations, one, other) == index
            for one in names
            if one in rule.source
            for other in names
            if other in rule.destination
        ):
            yield item.warning(
                f"rule {show(rule.name)} never decides: rules before it cover all its pairs"
                " of two hosts, or it has none"
            )
