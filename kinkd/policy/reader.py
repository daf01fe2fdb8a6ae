"""From a policy document to ``RealmPolicy``; its parts are read by the modules beside this."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from kinkd.document import Document, Item, Table, show, suggestion
from kinkd.model import Host, IPAddress
from kinkd.policy import lint
from kinkd.policy.exemptions import SERVICES
from kinkd.policy.groups import Parties
from kinkd.policy.hosts import Inhabitants, read_inhabitants, unicast
from kinkd.policy.profiles import read_profiles
from kinkd.policy.realm import WORLD, RealmPolicy, Rule, TermCache
from kinkd.policy.rules import read_expectation, read_rules

SCHEMA: Final = 1

_REALM: Final = re.compile(r"[^\s/@\\:]+")
_KEYS: Final = (
    *("schema", "version", "realm", "hosts", "networks", "groups"),
    *("profiles", "servers", "rules", "tests"),
)


@dataclass(slots=True)
class Memory:
    """What the last good document of a source was: most of the next one will be the same."""

    inhabitants: Inhabitants | None = None
    masks: tuple[_Masks, ...] = ()
    rules: tuple[Rule, ...] = ()
    terms: TermCache = field(default_factory=dict)


def read(document: Document, memory: Memory | None = None) -> RealmPolicy:
    """Read a policy document, and run its own tests.

    What ``memory`` holds makes it fast, and nothing else of it: it is this document's afterwards.

    Raises:
        DocumentError: something in it cannot be meant, or is not understood; or a test fails.
    """
    root = _root(document)
    version = root.item("version", hint="1, and one more with every change").integer(1, 1 << 53)
    realm = _realm(root.item("realm", hint='"EXAMPLE.TEST"'))
    found = read_inhabitants(
        root.item("hosts", hint="..., a table [hosts.NAME] for each"),
        root.item("networks", {}),
        realm,
        None if memory is None else memory.inhabitants,
    )
    parties = Parties(found.fqdns, found.places)
    parties.read_groups(root.item("groups", {}))
    profiles = read_profiles(root.item("profiles", {}))
    rule_items = root.item("rules", []).items()
    rules = read_rules(rule_items, parties, profiles)
    terms: TermCache = {}
    if memory is not None and memory.rules == rules:
        rules, terms = memory.rules, memory.terms  # terms are made of rules and nothing else
    names = (*found.hosts, *found.places, WORLD)
    known = () if memory is None else memory.masks
    sources = _masks(names, tuple(rule.source for rule in rules), known[:1])
    destinations = _masks(names, tuple(rule.destination for rule in rules), known[1:])
    test_items = root.item("tests", []).items()
    policy = RealmPolicy(
        version=version,
        realm=realm,
        hosts=MappingProxyType(found.hosts),
        fqdns=MappingProxyType(found.fqdns),
        profiles=MappingProxyType(profiles),
        rules=rules,
        places=MappingProxyType(found.places),
        groups=MappingProxyType(parties.groups),
        servers=tuple(_servers(root.item("servers", {}), found.hosts, found.fqdns)),
        tests=tuple(read_expectation(item, parties) for item in test_items),
        place_of_rule=lambda index: rule_items[index].where,
        _sources=sources.masks,
        _destinations=destinations.masks,
        _terms=terms,
    )
    lint.refuse(rule_items, policy)
    lint.run_tests(test_items, policy)
    if memory is not None:
        memory.inhabitants, memory.masks = found, (sources, destinations)
        memory.rules, memory.terms = rules, terms

    @functools.cache
    def warn() -> tuple[str, ...]:
        return (*parties.warnings(), *lint.warnings(rule_items, policy))

    return replace(policy, _warn=warn)


def _root(document: Document) -> Table:
    # The schema comes first: of another schema, every other complaint would be misleading.
    for key, item in document.root.entries():
        if key == "schema" and item.integer(1, 1 << 31) != SCHEMA:
            raise item.error(f"schema {show(item.value)} is not known here; {SCHEMA} is")
    root = document.root.table(*_KEYS)
    root.item("schema", hint=str(SCHEMA))
    return root


def _realm(item: Item) -> str:
    realm = item.string()
    if not _REALM.fullmatch(realm):
        raise item.error(f'{show(realm)} is not a realm; write it like "EXAMPLE.TEST"')
    return realm


@dataclass(frozen=True, slots=True)
class _Masks:
    """Of every party, bit by bit, on which of the rules' ``sides`` it is."""

    names: tuple[str, ...]
    sides: tuple[frozenset[str], ...]
    masks: Mapping[str, int]


def _masks(
    names: tuple[str, ...], sides: Iterable[frozenset[str]], known: Iterable[_Masks]
) -> _Masks:
    sides = tuple(sides)
    for before in known:
        if before.names == names and before.sides == sides:
            return before
    masks = dict.fromkeys(names, 0)
    of_side: dict[frozenset[str], int] = {}  # most groups stand in more than one rule
    for index, side in enumerate(sides):
        of_side[side] = of_side.get(side, 0) | 1 << index
    for side, mask in of_side.items():
        for name in side:
            masks[name] |= mask
    return _Masks(names, sides, MappingProxyType(masks))


def _listed(item: Item) -> list[Item]:
    """A list, which may be empty; or one string instead of it."""
    return item.one_or_more() if isinstance(item.value, str) else item.items()


def _servers(
    item: Item, hosts: Mapping[str, Host], fqdns: Mapping[str, str]
) -> Iterator[tuple[str, IPAddress]]:
    """Servers by the name of a host here, its domain name, or an address."""
    by_fqdn = {fqdn: hosts[name] for name, fqdn in fqdns.items()}
    table = item.table(*SERVICES)
    for service in SERVICES:
        for each in _listed(table.item(service, [])):
            name = each.string()
            host = hosts.get(name) or by_fqdn.get(name)
            if host is not None:
                yield from ((service, address) for address in host.addresses)
            elif name[:1].isdigit() or ":" in name:
                yield service, unicast(each)
            else:
                raise each.error(
                    f"{show(name)} is neither a host here nor an address; {suggestion(name, hosts)}"
                )
