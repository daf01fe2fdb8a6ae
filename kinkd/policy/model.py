"""The realm's policy document as values: hosts, groups, profiles, rules.

Every host of the realm reads the same document. A rule covers the traffic between two hosts
whichever of them it names first, and the first rule that covers a pair decides, so that both
hosts come to the same result. Where no rule covers a pair, its traffic is clear.

A rule of transport mode covers the addresses of the two hosts, one of tunnel mode the networks
behind them as well. Of networks that overlap, the longest prefix says whose an address is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from types import MappingProxyType
from typing import Final, NoReturn, TypeVar

from kinkd.document import Document, Item, Table, show, suggestion
from kinkd.keying.algorithms import GROUP_NUMBERS, SUITES
from kinkd.model import (
    Action,
    Host,
    IPAddress,
    IPNetwork,
    IpsecProtocol,
    Lifetime,
    Mode,
    Principal,
    Profile,
    Suite,
    UserToUser,
)

SCHEMA: Final = 1
ALL: Final = "all"  # the group of every host
DEFAULT_PROFILE: Final = "standard"
FAST_PROFILE: Final = "fast"
DEFAULT_GROUP: Final = "ecp256"
NO_GROUP: Final = "none"
TRY: Final = "try"  # of esn: 64 bits first, 32 where the peer has no more
MAXIMUM_SUITES: Final = 16  # with AH and ESP, with and without ESN: 64 proposals
MINIMUM_LIFETIME: Final = 30  # seconds; a rekey needs some of them
MAXIMUM_LIFETIME: Final = 7 * 86400
MINIMUM_VOLUME: Final = 1 << 20  # octets
DEFAULT_TICKET_GRACE: Final = "10m"
MAXIMUM_TICKET_GRACE: Final = 86400  # seconds
MAXIMUM_VOLUME: Final = (1 << 32) * 1024 - 1  # LIFE_DURATION counts kilobytes in 32 bits

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REALM: Final = re.compile(r"[^\s/@\\:]+")
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_FQDN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

_GROUPS: Final = (*GROUP_NUMBERS, NO_GROUP)
_MODES: Final = {mode.name.lower(): mode for mode in Mode}
_USER_TO_USER: Final = {each.value: each for each in UserToUser}
_BROADCAST: Final = (ip_address("255.255.255.255"), ip_network("255.255.255.255/32"))

_HOST_KEYS: Final = (
    *("service", "client", "fqdn", "user", "user_to_user"),
    *("addresses", "networks"),
)
_Read = TypeVar("_Read")
_Owners = dict[Principal | IPAddress | IPNetwork, str]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; ``source`` and ``destination`` are names of hosts, groups already resolved.

    ``udp``: ESP in UDP, for what drops ESP on the way (RFC 3948).
    """

    name: str
    source: frozenset[str]
    destination: frozenset[str]
    action: Action
    profile: Profile | None  # None: nothing to protect, the action is ``clear``
    mode: Mode = Mode.TRANSPORT
    udp: bool = False


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
        sources, destinations = self._sources, self._destinations
        covering = sources[one] & destinations[other] | destinations[one] & sources[other]
        return self.rules[(covering & -covering).bit_length() - 1] if covering else None

    def kind(self, name: str) -> tuple[int, int]:
        """The same for hosts that the same rules name on the same sides."""
        return self._sources[name], self._destinations[name]


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
    found = RealmPolicy(
        version=version,
        realm=realm,
        hosts=MappingProxyType(hosts),
        fqdns=MappingProxyType(fqdns),
        profiles=MappingProxyType(profiles),
        rules=rules,
        _sources=MappingProxyType(sources),
        _destinations=MappingProxyType(destinations),
    )
    _refuse_tunnels_without_ends(items, found)
    return replace(found, warnings=tuple(_warnings(items, found)))


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
    owners: _Owners = {}
    lone: list[tuple[IPAddress, Item]] = []  # networks of one address
    for name, entry in item.entries():
        if _name(name, entry) == ALL:
            raise entry.error(f"{show(ALL)} is the group of every host; name the host otherwise")
        table = entry.table(*_HOST_KEYS)
        host, fqdn = _host(name, table, realm)
        hosts[name], fqdns[name] = host, fqdn
        for principal in {host.service, host.client}:
            _claim(owners, principal, name, _principal_item(table, principal, host), "a principal")
        places = table.item("addresses").one_or_more()
        for address, place in zip(host.addresses, places, strict=True):
            _claim(owners, address, name, place, "an address")
        for network, place in zip(host.networks, _network_items(table), strict=True):
            _claim(owners, network, name, place, "a network")
            if network.prefixlen == network.max_prefixlen:
                lone.append((network.network_address, place))
    if not hosts:
        raise item.error("there is no host; write a table [hosts.NAME] for each")
    for address, place in lone:
        if (owner := owners.get(address)) is not None:
            raise place.error(
                f"{address} is an address of host {show(owner)} itself; leave it out here"
            )
    return hosts, fqdns


def _principal_item(table: Table, principal: Principal, host: Host) -> Item:
    key = "service" if principal == host.service else "client"
    found = table.optional(key) or table.optional("user") or table.optional("fqdn")
    return found or table.place


def _network_items(table: Table) -> list[Item]:
    item = table.optional("networks")
    return [] if item is None else item.one_or_more()


def _claim(
    owners: _Owners, thing: Principal | IPAddress | IPNetwork, name: str, place: Item, kind: str
) -> None:
    if (owner := owners.setdefault(thing, name)) != name:
        raise place.error(f"{thing} is host {show(owner)}'s already; {kind} belongs to one host")


def _host(name: str, table: Table, realm: str) -> tuple[Host, str]:
    service, client, fqdn, user_to_user = _identity(name, table, realm)
    addresses = _distinct(table.item("addresses", hint='["192.0.2.1"]').one_or_more(), unicast)
    networks = _distinct(_network_items(table), _network)
    return Host(name, service, client, addresses, networks, user_to_user), fqdn


def _identity(name: str, table: Table, realm: str) -> tuple[Principal, Principal, str, UserToUser]:
    """Service and client principal, domain name ("" if unknown), how it is keyed."""
    fqdn_item = table.optional("fqdn")
    fqdn = None if fqdn_item is None else _fqdn(fqdn_item)
    if (user := table.optional("user")) is not None:
        # Without a long-term key that a KDC could encrypt service tickets in.
        for key in ("service", "client", "user_to_user"):
            if (beside := table.optional(key)) is not None:
                raise beside.error(
                    f"user says all: a ticket-granting ticket of {show(user.value)} is what this"
                    f" host is keyed by; leave {key} out, or user"
                )
        person = _principal(user, realm)
        return person, person, fqdn or "", UserToUser.ALWAYS
    service_item = table.optional("service")
    if service_item is None and fqdn is None:
        raise table.place.error(
            f'no service, fqdn or user; write service = "kink/FQDN" or fqdn = "{name}.example.test"'
        )
    service = _service(service_item or table.item("service", f"kink/{fqdn}"), realm)
    client_item = table.optional("client")
    client = service if client_item is None else _principal(client_item, realm)
    how = table.item("user_to_user", UserToUser.NEVER.value).choice(_USER_TO_USER)
    return service, client, fqdn or service.components[1], _USER_TO_USER[how]


def _distinct(items: Iterable[Item], reader: Callable[[Item], _Read]) -> tuple[_Read, ...]:
    values: list[_Read] = []
    for item in items:
        if (value := reader(item)) in values:
            raise item.error(f"{show(item.value)} stands here twice")
        values.append(value)
    return tuple(values)


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
    if kind := _shared(address):
        raise item.error(f"{address} is {kind}; write an address that is one host's own")
    return address


def _network(item: Item) -> IPNetwork:
    network = item.network()
    if kind := _shared(network):
        raise item.error(f"{network} is {kind}; write a network that is routed to this host")
    return network


def _shared(what: IPAddress | IPNetwork) -> str:
    """Of which kind an address, or every one of a network, is, if it is no host's own."""
    if what.is_multicast:
        return "multicast"
    if what.is_unspecified:
        return "the unspecified address"
    if what.is_loopback:
        return "loopback"
    if what.version == 6 and what.is_link_local:
        return "of one link"
    if what in _BROADCAST:
        return "the broadcast address"
    return ""


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
    groups = (GROUP_NUMBERS[DEFAULT_GROUP],)
    profiles = {
        DEFAULT_PROFILE: Profile(DEFAULT_PROFILE, suites, lifetime, groups),
        FAST_PROFILE: Profile(FAST_PROFILE, suites, lifetime),
    }
    for name, entry in item.entries():
        table = entry.table("suites", "lifetime", "volume", "group", "esn", "ticket_grace")
        seconds = table.item("lifetime", "1h").duration(MINIMUM_LIFETIME, MAXIMUM_LIFETIME)
        volume = table.optional("volume")
        kilobytes = None if volume is None else volume.size(MINIMUM_VOLUME, MAXIMUM_VOLUME) // 1024
        # Whoever does not think of it has forward secrecy.
        group = table.item("group", DEFAULT_GROUP).one_or_more()
        profiles[_name(name, entry)] = Profile(
            name,
            _suites(table.item("suites", hint='["aes256gcm16"]')),
            Lifetime(seconds, kilobytes),
            _distinct(group, lambda each: GROUP_NUMBERS.get(each.choice(_GROUPS))),
            _esn(table.item("esn", False)),
            table.item("ticket_grace", DEFAULT_TICKET_GRACE).duration(0, MAXIMUM_TICKET_GRACE),
        )
    return profiles


def _suites(item: Item) -> tuple[Suite, ...]:
    items = item.one_or_more()
    if len(items) > MAXIMUM_SUITES:
        raise item.error(f"{len(items)} suites; {MAXIMUM_SUITES} at most are offered to a peer")
    suites = _distinct(items, lambda each: SUITES[each.choice(SUITES)])
    first = suites[0]
    for place, suite in zip(items, suites, strict=True):
        # One SPD entry stands for them all, and it names the protocols.
        if suite.protocols != first.protocols:
            raise place.error(
                f"{show(suite.name)} is {protocol_words(suite.protocols)}, but {show(first.name)}"
                f" {protocol_words(first.protocols)}; a profile's suites have the same protocols"
            )
    return suites


def protocol_words(protocols: Iterable[IpsecProtocol]) -> str:
    """What a packet looks like on its way, from the inside out: "ESP", "ESP in AH"."""
    return " in ".join(protocol.name for protocol in protocols)


def _esn(item: Item) -> tuple[bool, ...]:
    if item.value == TRY:
        return (True, False)
    if not isinstance(item.value, bool):
        raise item.error(f"{show(item.value)} is neither true, nor false, nor {show(TRY)}")
    return (item.value,)


# --- rules -------------------------------------------------------------------------------------


def _rules(
    items: list[Item],
    hosts: Mapping[str, Host],
    groups: Mapping[str, frozenset[str]],
    profiles: Mapping[str, Profile],
) -> tuple[Rule, ...]:
    rules: dict[str, Rule] = {}
    for item in items:
        table = item.table(
            "name", "from", "to", "traffic", "action", "profile", "mode", "udp_encapsulation"
        )
        name = table.item("name", hint='"what the rule is for"').string()
        if name in rules:
            raise table.item("name").error(f"a rule before is called {show(name)}, too")
        traffic = table.item("traffic", "any")
        if traffic.string() != "any":
            raise traffic.error(
                f'{show(traffic.value)} is not understood yet; "any" is: a rule covers all'
                " traffic between two hosts"
            )
        rules[name] = Rule(
            name,
            _side(table.item("from", hint='"all"'), hosts, groups),
            _side(table.item("to", hint='"all"'), hosts, groups),
            *_protection(table, profiles),
        )
    return tuple(rules.values())


def _side(
    item: Item, hosts: Mapping[str, Host], groups: Mapping[str, frozenset[str]]
) -> frozenset[str]:
    names = [_member(member, hosts, groups) for member in item.one_or_more()]
    return frozenset[str]().union(*(groups.get(name, frozenset((name,))) for name in names))


def _protection(
    table: Table, profiles: Mapping[str, Profile]
) -> tuple[Action, Profile | None, Mode, bool]:
    action = Action(table.item("action", hint='"require"').choice(a.value for a in Action))
    if action is Action.CLEAR:
        for key in ("profile", "mode", "udp_encapsulation"):
            if (written := table.optional(key)) is not None:
                raise written.error(f'clear traffic has no {key}; leave it out, or "require"')
        return action, None, Mode.TRANSPORT, False
    profile = profiles[table.item("profile", DEFAULT_PROFILE).choice(profiles)]
    mode = _MODES[table.item("mode", Mode.TRANSPORT.name.lower()).choice(_MODES)]
    encapsulation = table.item("udp_encapsulation", False)
    if encapsulation.boolean() and IpsecProtocol.AH in profile.protocols:
        raise encapsulation.error(
            f"UDP carries ESP alone (RFC 3948), and profile {show(profile.name)} is"
            f" {protocol_words(profile.protocols)}; leave it out, or take a profile of ESP"
        )
    return action, profile, mode, encapsulation.boolean()


def _masks(hosts: Iterable[str], sides: list[frozenset[str]]) -> dict[str, int]:
    masks = dict.fromkeys(hosts, 0)
    for index, side in enumerate(sides):
        for name in side:
            masks[name] |= 1 << index
    return masks


# --- what can hardly be meant ------------------------------------------------------------------


def _refuse_tunnels_without_ends(items: list[Item], policy: RealmPolicy) -> None:
    """Traffic that a rule wants in a tunnel, between hosts that cannot have one, would be clear."""
    hosts: dict[frozenset[int], list[Host]] = {}
    for host in policy.hosts.values():
        hosts.setdefault(_families(host.addresses), []).append(host)
    for gateway in (host for host in policy.hosts.values() if host.networks):
        own = _families(gateway.addresses)
        for other in (host for ends, group in hosts.items() if not own & ends for host in group):
            rule = policy.rule_between(gateway.name, other.name)
            inside = _families(gateway.addresses + gateway.networks)
            if (
                rule is not None
                and rule.mode is Mode.TUNNEL
                and inside & _families(other.addresses + other.networks)
            ):
                raise items[policy.rules.index(rule)].error(
                    f"no tunnel between hosts {show(gateway.name)} and {show(other.name)}:"
                    " they have no addresses of one family for its ends"
                )


def _families(places: Iterable[IPAddress | IPNetwork]) -> frozenset[int]:
    return frozenset(place.version for place in places)


def _warnings(items: list[Item], policy: RealmPolicy) -> Iterator[str]:
    # Hosts that the same rules name on the same sides are alike: two of a kind stand for all.
    kinds: dict[tuple[int, int], list[str]] = {}
    for name in policy.hosts:
        kind = kinds.setdefault(policy.kind(name), [])
        if len(kind) < 2:
            kind.append(name)
    names = [name for kind in kinds.values() for name in kind]
    clear = _clear_networks(policy, names)
    for item, rule in zip(items, policy.rules, strict=True):
        if not any(
            one != other and policy.rule_between(one, other) is rule
            for one in names
            if one in rule.source
            for other in names
            if other in rule.destination
        ):
            yield item.warning(
                f"rule {show(rule.name)} never decides: rules before it cover all its pairs"
                " of two hosts, or it has none"
            )
        if gateways := clear.get(rule.name):
            few = ", ".join(show(name) for name in gateways[:4])
            yield item.warning(
                f"rule {show(rule.name)} leaves the networks behind {few}"
                f"{', ...' if len(gateways) > 4 else ''} clear: transport mode protects addresses"
                ' of hosts alone; write mode = "tunnel"'
            )


def _clear_networks(policy: RealmPolicy, names: list[str]) -> dict[str, list[str]]:
    """For every rule of transport mode, the gateways between which and some host it decides."""
    found: dict[str, list[str]] = {}
    for gateway in (host.name for host in policy.hosts.values() if host.networks):
        deciding = {
            rule.name: rule
            for other in names
            if other != gateway and (rule := policy.rule_between(gateway, other)) is not None
        }
        for rule in deciding.values():
            if rule.action is Action.REQUIRE and rule.mode is Mode.TRANSPORT:
                found.setdefault(rule.name, []).append(gateway)
    return found
