"""What kinkctl says of policy documents, without a daemon: as plain data, the schema of ``--json``.

Whether a document is to be trusted is the daemon's question. These here change nothing, and read
what anyone may have written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from ipaddress import ip_network
from itertools import groupby
from pathlib import Path
from typing import Final

from kinkd.document import MAXIMUM_OCTETS, Document
from kinkd.errors import DocumentError
from kinkd.model import Host, Profile
from kinkd.policy import compare, reader
from kinkd.policy.realm import WORLD, Owner, Place, RealmPolicy

_NAMES: Final = 3  # of parties or groups in one cell

Facts = dict[str, object]


def read(path: str) -> RealmPolicy:
    """The policy in a file, whoever may have written it; its tests are run.

    Raises:
        DocumentError: it cannot be read, cannot be meant, or one of its own tests fails.
    """
    try:
        with Path(path).open("rb") as file:
            octets = file.read(MAXIMUM_OCTETS + 1)
    except OSError as error:
        raise DocumentError(path, None, f"cannot be read: {error.strerror}") from None
    return reader.read(Document.parse(path, octets))


def check(path: str) -> Facts:
    """What is in a document that is good. Raises DocumentError."""
    policy = read(path)
    return {
        "file": path,
        "version": policy.version,
        "realm": policy.realm,
        "hosts": len(policy.hosts),
        "networks": len(policy.places),
        "groups": len(policy.groups) - 1,  # without that of all
        "profiles": len(policy.profiles),
        "rules": len(policy.rules),
        "tests": len(policy.tests),
        "warnings": list(policy.warnings),
    }


def diff(old_path: str, new_path: str, most: int | None = None) -> Facts:
    """What changes from one document to another.

    Args:
        old_path, new_path: files.
        most: of the rows of each kind of change; None: all of them.

    Raises:
        DocumentError: one of them is not good.
    """
    old, new = read(old_path), read(new_path)
    found: Facts = {
        "old": {"file": old_path, "version": old.version},
        "new": {"file": new_path, "version": new.version},
        "realm": None if old.realm == new.realm else [old.realm, new.realm],
        "hosts": _things(_hosts(old), _hosts(new)),
        "networks": _things(_places(old), _places(new)),
        "profiles": _things(_profiles(old), _profiles(new)),
        "servers": {
            "added": _servers(set(new.servers) - set(old.servers)),
            "removed": _servers(set(old.servers) - set(new.servers)),
        },
        "traffic": list(_Traffic(old, new, most).rows()),
    }
    return {**found, "differs": any(_is_something(found[key]) for key in _TELLING)}


_TELLING: Final = ("realm", "hosts", "networks", "profiles", "servers", "traffic")


def _is_something(thing: object) -> bool:
    return any(thing.values()) if isinstance(thing, dict) else bool(thing)


# --- hosts, networks, profiles, servers --------------------------------------------------------


def _hosts(policy: RealmPolicy) -> dict[str, dict[str, str]]:
    return {
        name: {"fqdn": policy.fqdns[name], **_plain_fields(host)}
        for name, host in policy.hosts.items()
    }


def _places(policy: RealmPolicy) -> dict[str, dict[str, str]]:
    return {name: _plain_fields(place) for name, place in policy.places.items()}


def _profiles(policy: RealmPolicy) -> dict[str, dict[str, str]]:
    return {name: _profile(profile) for name, profile in policy.profiles.items()}


def _plain_fields(thing: Host | Place) -> dict[str, str]:
    fields = dataclasses.fields(thing)
    return {each.name: _plain(getattr(thing, each.name)) for each in fields if each.name != "name"}


def _plain(value: object) -> str:
    match value:
        case Enum():
            return str(value.value)
        case bool():
            return str(value).lower()
        case tuple():
            return ", ".join(map(str, value))
        case _:
            return str(value)


def _profile(profile: Profile) -> dict[str, str]:
    kilobytes = profile.lifetime.kilobytes
    return {
        "suites": ", ".join(suite.name for suite in profile.suites),
        "lifetime": f"{profile.lifetime.seconds} s",
        "volume": "unlimited" if kilobytes is None else f"{kilobytes} KiB",
        "group": ", ".join("none" if each is None else str(each) for each in profile.groups),
        "esn": ", ".join(_plain(each) for each in profile.esn),
        "ticket_grace": f"{profile.ticket_grace} s",
    }


def _things(old: Mapping[str, dict[str, str]], new: Mapping[str, dict[str, str]]) -> Facts:
    return {
        "added": [{"name": name, **new[name]} for name in new if name not in old],
        "removed": [{"name": name, **old[name]} for name in old if name not in new],
        "changed": [
            {"name": name, "what": key, "before": old[name][key], "after": new[name][key]}
            for name in old
            if name in new
            for key in old[name]
            if old[name][key] != new[name][key]
        ],
    }


def _servers(servers: Iterable[tuple[str, object]]) -> list[Facts]:
    pairs = sorted((service, str(address)) for service, address in servers)
    return [{"service": service, "address": address} for service, address in pairs]


# --- traffic -----------------------------------------------------------------------------------


class _Traffic:
    """The changes of ``compare``, in words, those together that have one reason."""

    def __init__(self, old: RealmPolicy, new: RealmPolicy, most: int | None) -> None:
        self._policies = (old, new)
        self._most = most
        self._prefixes = compare.ends(old, new)
        self._words = _Words(old, new)
        self._places: tuple[dict[str, str], dict[str, str]] = ({}, {})

    def rows(self) -> Iterator[Facts]:
        """One for each reason."""
        changes = compare.compare(*self._policies)
        order: dict[tuple[object, ...], int] = {}
        for change in changes:
            order.setdefault(_reason(change), len(order))
        changes.sort(key=lambda change: order[_reason(change)])
        for _, of_reason in groupby(changes, key=_reason):
            together = list(of_reason)
            delta = together[0].delta
            yield {
                "before": self._said(0, delta.before, delta.rule_before),
                "after": self._said(1, delta.after, delta.rule_after),
                "within": together[0].within.name.lower(),
                "between": [self._between(each) for each in together[: self._most]],
                "left_out": len(together[self._most :]) if self._most is not None else 0,
            }

    def _said(self, side: int, verdict: compare.Verdict, rule: str | None) -> Facts:
        said: Facts = {"action": verdict.action.value, "audit": verdict.audit, "rule": rule}
        if rule is not None:
            said["place"] = self._place(side, rule)
        if verdict.profile:
            said |= {"profile": verdict.profile, "mode": verdict.mode.name.lower()}
            said["udp"] = verdict.udp
        return said

    def _place(self, side: int, name: str) -> str:
        places, policy = self._places[side], self._policies[side]
        if name not in places:
            number = next(n for n, rule in enumerate(policy.rules) if rule.name == name)
            places[name] = policy.place_of_rule(number)
        return places[name]

    def _between(self, change: compare.Change) -> Facts:
        return {
            "from": self._end(change.sources),
            "to": self._end(change.destinations),
            "both_ways": change.both_ways,
            "traffic": str(change.delta.traffic),
            "but": [str(each) for each in change.delta.but],
        }

    def _end(self, ends: compare.Ends) -> Facts:
        still, behind, others = set[str](), set[str](), list[Facts]()
        for end in ends:
            if end.moves:
                others.append(self._moved(end))
            else:
                (behind if end.before.behind else still).add(end.before.name)
        words = []
        if still:
            words.append(self._words.of(still))
        if behind:
            words.append(f"networks behind {self._words.of(behind)}")
        words += _few([str(each["words"]) for each in others])
        return {
            "words": ", ".join(words),
            "parties": sorted(still),
            "behind": sorted(behind),
            "moved": others,
        }

    def _moved(self, end: compare.End) -> Facts:
        """Addresses that change hands; of a host that comes or goes its name says it."""
        before, after = (_owner_words(owner) for owner in end)
        prefixes = [_prefix(each) for each in self._prefixes[end]]
        words = f"{', '.join(_few(prefixes))} (was {before}, is {after})"
        old, new = self._policies
        if before == WORLD and not _is_in(old, end.after.name):
            words = f"{after} (new)"
        elif after == WORLD and not _is_in(new, end.before.name):
            words = f"{before} (removed)"
        return {"words": words, "prefixes": prefixes, "before": before, "after": after}


def _reason(change: compare.Change) -> tuple[object, ...]:
    delta = change.delta
    return (delta.before, delta.after, delta.rule_before, delta.rule_after, change.within)


def _owner_words(owner: Owner) -> str:
    return f"behind {owner.name}" if owner.behind else owner.name


def _is_in(policy: RealmPolicy, name: str) -> bool:
    return name in policy.hosts or name in policy.places


def _prefix(prefix: object) -> str:
    network = ip_network(str(prefix))
    lone = network.prefixlen == network.max_prefixlen
    return str(network.network_address) if lone else str(network)


class _Words:
    """Sets of parties by the names of groups, where these say the same."""

    def __init__(self, old: RealmPolicy, new: RealmPolicy) -> None:
        groups = {**old.groups, **new.groups}
        self._groups = sorted(groups.items(), key=lambda each: -len(each[1]))
        self._all = new.groups["all"]
        self._known: dict[frozenset[str], str] = {}

    def of(self, names: Iterable[str]) -> str:
        """As few words as will do; not all names, where they are many."""
        wanted = frozenset(names)
        if wanted not in self._known:
            self._known[wanted] = self._find(wanted)
        return self._known[wanted]

    def _find(self, wanted: frozenset[str]) -> str:
        for name, members in self._groups:
            if members == wanted and len(members) > 1:
                return name
        beside = self._all - wanted
        if wanted < self._all and len(beside) <= min(_NAMES, len(wanted) - 1):
            return f"all but {', '.join(sorted(beside))}"
        parts, left = list[str](), set(wanted)
        for name, members in self._groups:
            if len(parts) < _NAMES and len(members) > 1 and members <= wanted and members & left:
                parts.append(name)
                left -= members
        if len(left) > _NAMES and len(left) > len(wanted) / 2:
            parts, left = [], set(wanted)  # no help
        return ", ".join([*parts, *_few(sorted(left))])


def _few(words: list[str]) -> list[str]:
    if len(words) <= _NAMES + 1:
        return words
    return [*words[:_NAMES], f"{len(words) - _NAMES:,} more"]
