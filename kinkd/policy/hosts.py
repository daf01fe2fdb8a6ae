"""The hosts of a policy document, and the places without kinkd: whose is which address."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final, NamedTuple

from kinkd.document import Item, Table, show
from kinkd.errors import DocumentError
from kinkd.model import Host, IPAddress, IPNetwork, Principal, UserToUser, lone
from kinkd.policy.names import checked_name, distinct
from kinkd.policy.prefixes import lone_number, number
from kinkd.policy.realm import Place

_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?"
_FQDN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_PLAIN: Final = re.compile(r"[^/@\\]+(?:/[^/@\\]+)*")  # a principal without realm and quoting
_SERVICE: Final = "kink"  # RFC 4430 §4.2.1
_USER_TO_USER: Final = {each.value: each for each in UserToUser}
_BROADCAST: Final = (ip_address("255.255.255.255"), ip_network("255.255.255.255/32"))

_ORDINARY: Final = {4: {*range(1, 224)} - {127}, 6: range(0x2000, 0x4000)}
"""First octet of IPv4, first two of IPv6: where an address is unicast, and no link's or host's."""

_HOST_KEYS: Final = (
    *("service", "client", "fqdn", "user", "user_to_user"),
    *("addresses", "networks", "disabled", "audit"),
)


Claim = str | int
"""A principal in words, or the number of a prefix: dictionaries find these faster."""


class Known(NamedTuple):
    """A host as it was read from its table ``raw``, and what it claims for itself alone."""

    raw: Mapping[str, object]
    host: Host
    fqdn: str
    claims: tuple[Claim, ...]

    def is_of(self, raw: object) -> bool:
        """Whether another table reads the same."""
        if raw is self.raw:
            return True
        # To Python 1 is True; all other values of a good table are words and lists of words.
        return (
            isinstance(raw, dict)
            and raw == self.raw
            and raw.get("disabled") is self.raw.get("disabled")
            and raw.get("audit") is self.raw.get("audit")
        )


@dataclass(frozen=True, slots=True)
class Inhabitants:
    """Who has addresses. ``fqdns`` holds every host's fully qualified domain name.

    ``known`` spares whoever reads the next document of this ``realm`` to read all hosts again.
    """

    realm: str
    hosts: dict[str, Host] = field(default_factory=dict)
    fqdns: dict[str, str] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)


def read_inhabitants(
    hosts: Item, places: Item, realm: str, before: Inhabitants | None = None
) -> Inhabitants:
    """Read the tables of hosts and of places; ``before``: what was read of another document.

    Raises:
        DocumentError: one cannot be meant, or two have the same.
    """
    known = before.known if before is not None and before.realm == realm else {}
    found = Inhabitants(realm)
    for name, raw in hosts.mapping().items():
        one = known.get(name)
        if one is None or not one.is_of(raw):
            try:
                one = _host(name, hosts.entry(name), realm)
            except DocumentError:
                _refuse_conflicts(hosts, found)  # of what stands before
                raise
        elif one.raw is not raw and isinstance(raw, dict):
            one = Known(raw, one.host, one.fqdn, one.claims)  # the document before can go
        found.hosts[name], found.fqdns[name], found.known[name] = one.host, one.fqdn, one
    taken = set(itertools.chain.from_iterable(one.claims for one in found.known.values()))
    if len(taken) != sum(len(one.claims) for one in found.known.values()):
        _refuse_conflicts(hosts, found)
    if not found.hosts:
        raise hosts.error("there is no host; write a table [hosts.NAME] for each")
    _take_up_places(places, found, taken)
    return found


def _take_up_places(places: Item, found: Inhabitants, taken: Collection[Claim]) -> None:
    owners: dict[int, str] = {}
    for name, entry in places.entries():
        if checked_name(name, entry) in found.hosts:
            raise entry.error(f"{show(name)} is a host already; a network needs another name")
        items = entry.table("prefixes").item("prefixes", hint='["192.0.2.0/24"]').one_or_more()
        prefixes = distinct(items, _prefix)
        for prefix, item in zip(prefixes, items, strict=True):
            claim = number(prefix)
            if claim in taken:
                owner = next(each for each, one in found.known.items() if claim in one.claims)
                raise _conflict(item, prefix, f"host {show(owner)}", "a prefix", "network")
            if (owner := owners.setdefault(claim, name)) != name:
                raise _conflict(item, prefix, f"network {show(owner)}", "a prefix", "network")
        found.places[name] = Place(name, prefixes)


def _refuse_conflicts(hosts: Item, found: Inhabitants) -> None:
    """Refuse the first host that claims what one before it has, if there is any."""
    owners: dict[Claim, str] = {}
    for name, one in found.known.items():
        for claim in one.claims:
            if (owner := owners.setdefault(claim, name)) != name:
                raise _host_conflict(hosts.entry(name), one, claim, owner)


def _host_conflict(entry: Item, one: Known, claim: Claim, owner: str) -> DocumentError:
    """The error that another host has what this one claims."""
    table, host, whose = entry.table(*_HOST_KEYS), one.host, f"host {show(owner)}"
    for principal in (host.service, host.client):
        if str(principal) == claim:
            item = _principal_item(table, principal, host)
            return _conflict(item, principal, whose, "a principal", "host")
    items = (*table.item("addresses").one_or_more(), *_network_items(table))
    place = next(i for i, each in enumerate(host.prefixes) if number(each) == claim)
    kind = "an address" if place < len(host.addresses) else "a network"
    return _conflict(items[place], host.prefixes[place], whose, kind, "host")


def _conflict(
    item: Item, thing: Principal | IPNetwork, whose: str, kind: str, of: str
) -> DocumentError:
    words = str(thing)
    if not isinstance(thing, Principal) and thing.prefixlen == thing.max_prefixlen:
        words = str(thing.network_address)
    return item.error(f"{words} is {whose}'s already; {kind} belongs to one {of}")


def _principal_item(table: Table, principal: Principal, host: Host) -> Item:
    key = "service" if principal == host.service else "client"
    found = table.optional(key) or table.optional("user") or table.optional("fqdn")
    return found or table.place


def _network_items(table: Table) -> list[Item]:
    item = table.optional("networks")
    return [] if item is None else item.one_or_more()


def _host(name: str, entry: Item, realm: str) -> Known:
    checked_name(name, entry)
    table = entry.table(*_HOST_KEYS)
    service, client, fqdn, user_to_user = _identity(name, table, realm)
    addresses = distinct(table.item("addresses", hint='["192.0.2.1"]').one_or_more(), unicast)
    networks = distinct(_network_items(table), _network)
    disabled = table.item("disabled", False).boolean()
    audit = table.item("audit", False).boolean()
    host = Host(name, service, client, addresses, networks, user_to_user, disabled, audit)
    for network, item in zip(networks, _network_items(table), strict=True):
        if network.prefixlen == network.max_prefixlen and network.network_address in addresses:
            raise item.error(
                f"{network.network_address} is an address of host {show(name)} itself; leave it"
                " out here"
            )
    principals = dict.fromkeys((str(service), str(client)))
    claims: tuple[Claim, ...] = (*principals, *map(lone_number, addresses), *map(number, networks))
    return Known(table.values, host, fqdn, claims)


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
    if service_item is not None:
        service = _service(service_item, realm)
    elif fqdn is not None:
        service = Principal((_SERVICE, fqdn), realm)
    else:
        raise table.place.error(
            f'no service, fqdn or user; write service = "kink/FQDN" or fqdn = "{name}.example.test"'
        )
    client_item = table.optional("client")
    client = service if client_item is None else _principal(client_item, realm)
    how = table.item("user_to_user", UserToUser.NEVER.value).choice(_USER_TO_USER)
    return service, client, fqdn or service.components[1], _USER_TO_USER[how]


def _fqdn(item: Item) -> str:
    fqdn = item.string()
    if not _FQDN.fullmatch(fqdn):  # RFC 4430 §4.2.1: the "fqdn" part MUST be lowercase
        raise item.error(f"{show(fqdn)} is not a domain name in lower case")
    return fqdn


def _principal(item: Item, realm: str) -> Principal:
    text = item.string()
    if _PLAIN.fullmatch(text):
        return Principal(tuple(text.split("/")), realm)
    for candidate in (text, f"{text}@{realm}"):
        try:
            return Principal.parse(candidate)
        except ValueError:
            continue
    raise item.error(f'{show(text)} is not a principal; write it like "kink/host.example.test"')


def _service(item: Item, realm: str) -> Principal:
    # RFC 4430 §4.2.1: "kink/fqdn@REALM", and the "fqdn" part MUST be lowercase.
    service = _principal(item, realm)
    if len(service.components) != 2 or service.components[0] != _SERVICE:
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
        raise item.error(f"{network} is {kind}; write a network of hosts")
    return network


def _prefix(item: Item) -> IPNetwork:
    """A prefix, or an address, of a place."""
    text = item.string()
    if "/" not in text:
        return lone(unicast(item))
    return _network(item)


def _shared(what: IPAddress | IPNetwork) -> str:
    """Of which kind an address, or every one of a network, is, if it is no host's own."""
    first = int(what) if isinstance(what, IPv4Address | IPv6Address) else int(what.network_address)
    # Most are of none, which all these questions take long to tell.
    if first >> 24 in _ORDINARY[4] if what.version == 4 else first >> 112 in _ORDINARY[6]:
        return ""
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
