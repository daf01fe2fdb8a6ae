"""The groups of a policy document: of hosts, places and other groups, by name or by pattern."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NoReturn

from kinkd.document import Item, show, suggestion
from kinkd.policy.names import RESERVED, checked_name
from kinkd.policy.realm import ALL, WORLD

_PATTERN: Final = re.compile(r"[A-Za-z0-9._*?\[\]!-]{1,255}")
_WILD: Final = frozenset("*?[")

Groups = Mapping[str, frozenset[str]]


class Parties:
    """All that a rule can name: hosts and places by themselves, groups, patterns.

    ``hosts`` holds the names of hosts with their domain names: a pattern is one of either.
    """

    def __init__(self, hosts: Mapping[str, str], places: Iterable[str]) -> None:
        self.hosts = hosts
        self.places = frozenset(places)
        self.groups: dict[str, frozenset[str]] = {ALL: frozenset(hosts)}
        self.empty: list[Item] = []  # patterns that no host matches
        self._matching: dict[str, frozenset[str]] = {}

    def read_groups(self, item: Item) -> None:
        """Take the document's groups up, groups in groups resolved.

        Raises:
            DocumentError: a name is taken or unknown, or groups contain each other.
        """
        entries = dict(item.entries())
        for name, entry in entries.items():
            checked_name(name, entry)
            if name in self.hosts or name in self.places:
                kind = "host" if name in self.hosts else "network"
                raise entry.error(
                    f"{show(name)} is a {kind} already; a group needs a name of its own"
                )
        plain: dict[str, frozenset[str]] = {}
        members: dict[str, list[tuple[str, Item]]] = {}
        for name, entry in entries.items():
            hosts, others = self._told_apart(entry)
            plain[name] = frozenset(hosts)
            members[name] = [(self._checked(member, entries), member) for member in others]
        for name in _inside_out(members):
            self.groups[name] = plain[name].union(
                *(self._resolved(*member) for member in members[name])
            )

    def _told_apart(self, entry: Item) -> tuple[list[str], list[Item]]:
        """Members of a group: names of hosts, which most are, and all others with their places."""
        values = entry.value if isinstance(entry.value, list) else []
        hosts = [each for each in values if isinstance(each, str) and each in self.hosts]
        if values and len(hosts) == len(values):
            return hosts, []
        return hosts, [
            each
            for each in entry.items()
            if not isinstance(each.value, str) or each.value not in self.hosts
        ]

    def side(self, item: Item) -> frozenset[str]:
        """The parties on one side of a rule.

        Raises:
            DocumentError: a name means nobody.
        """
        first, *others = [
            self._resolved(self._checked(each, self.groups), each) for each in item.one_or_more()
        ]
        return first.union(*others) if others else first

    def party(self, item: Item) -> str:
        """One party by its own name.

        Raises:
            DocumentError: it is none.
        """
        name = item.string()
        if name not in self.hosts and name not in self.places and name != WORLD:
            known = [*self.hosts, *self.places, WORLD]
            raise item.error(f"no host or network {show(name)}; {suggestion(name, known)}")
        return name

    def _checked(self, item: Item, groups: Iterable[str]) -> str:
        name = item.string()
        if _WILD & set(name):
            if not _PATTERN.fullmatch(name):
                raise item.error(f"{show(name)} is no pattern of names; write like web*")
        elif not (name in self.hosts or name in self.places or name in groups or name in RESERVED):
            known = [*self.hosts, *groups, *self.places, *RESERVED]
            raise item.error(f"no host, group or network {show(name)}; {suggestion(name, known)}")
        return name

    def _resolved(self, name: str, item: Item) -> frozenset[str]:
        if _WILD & set(name):
            found = self._matched(name)
            if not found:
                self.empty.append(item)
            return found
        return self.groups[name] if name in self.groups else frozenset((name,))

    def _matched(self, pattern: str) -> frozenset[str]:
        if pattern not in self._matching:
            is_match = re.compile(fnmatch.translate(pattern)).match
            self._matching[pattern] = frozenset(
                name for name, fqdn in self.hosts.items() if is_match(name) or is_match(fqdn)
            )
        return self._matching[pattern]

    def warnings(self) -> Iterator[str]:
        """Patterns without a match, a line each."""
        for item in self.empty:
            yield item.warning(f"no host's name or domain name is like {show(item.value)}")


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
