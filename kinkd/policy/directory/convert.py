"""What one entry of the directory adds to the document.

Every entry is converted once, when it comes. A fault in it is kept with its part, and is an error
of every document that would contain it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import tomli_w

from kinkd.document import show
from kinkd.errors import DocumentError
from kinkd.policy.directory import mapping, names
from kinkd.policy.directory.content import Entry
from kinkd.policy.directory.mapping import GROUPS, HOSTS, KINDS, POLICY, Kind, Values
from kinkd.policy.directory.names import Dn
from kinkd.policy.directory.options import DirectoryOptions

_SERVICE_PREFIX: Final = "kink/"


@dataclass(frozen=True, slots=True)
class Part:
    """What an entry adds to the document. ``table`` stays the same object while the entry does."""

    kind: Kind
    dn: str
    prepared: Dn
    name: str = ""
    table: dict[str, object] = field(default_factory=dict)
    text: str = ""  # the table in TOML
    order: int = 0  # of a rule or test
    members: tuple[tuple[str, Dn | None], ...] = ()  # of a group: DNs, None: it is no DN
    rules: int = 0  # of the policy: how many there are
    fault: DocumentError | None = None

    @property
    def is_policy(self) -> bool:
        """Whether it is the policy's own entry."""
        return self.kind is POLICY


class Converter:
    """Makes parts of entries, as the options say where they are and what they are called."""

    def __init__(self, options: DirectoryOptions) -> None:
        self._options = options
        self._base = names.parse(options.base)
        self._elsewhere = [
            (kind, names.parse(area), object_class.lower())
            for kind, area, object_class in (
                (HOSTS, options.hosts, options.host_class),
                (GROUPS, options.groups, options.group_class),
            )
            if area is not None
        ]

    def convert(self, entry: Entry) -> Part | None:
        """The part; None where the entry is none of the policy's."""
        dn, text = names.parse(entry.dn), names.readable(entry.dn)
        classes = {
            each.decode("ascii", "replace").lower()
            for each in entry.attributes.get("objectclass", ())
        }
        kind = self._kind(dn, classes)
        if kind is None:
            return None
        try:
            values = _decode(entry.attributes)
            if kind is POLICY:
                return self._policy(text, dn, values)
            if kind is HOSTS and not (kind.object_class.lower() in classes or self._joins(values)):
                return None
            return self._part(kind, text, dn, values)
        except ValueError as error:
            return Part(kind, text, dn, fault=DocumentError(text, None, str(error)))

    def _kind(self, dn: Dn, classes: set[str]) -> Kind | None:
        """What an entry is. Who may write elsewhere in the tree has no say in the policy."""
        if names.is_within(dn, self._base):
            for kind in (POLICY, *KINDS):
                if kind.object_class.lower() in classes:
                    return kind
        for kind, area, object_class in self._elsewhere:
            if names.is_within(dn, area) and classes & {object_class, kind.object_class.lower()}:
                return kind
        return None

    def _joins(self, values: Values) -> bool:
        """Whether a machine that the directory knows anyway has what a host of the policy needs."""
        return any(name.lower() in values for name in ("kinkdAddress", self._options.address))

    def _policy(self, text: str, dn: Dn, values: Values) -> Part:
        if dn != self._base:
            raise ValueError(f"a policy within the policy {self._options.base}: take it out")
        head = mapping.read(POLICY.keys, values)
        servers = mapping.read(mapping.SERVER_KEYS, values)
        why = "it says how many rules there are, so that none is overlooked"
        count = _integer(values, mapping.RULE_COUNT, why)
        tables = {mapping.SERVERS: servers} if servers else {}
        toml = tomli_w.dumps(head | tables)
        return Part(POLICY, text, dn, table=head | tables, text=toml, rules=count)

    def _part(self, kind: Kind, text: str, dn: Dn, values: Values) -> Part:
        name, order = names.own_value(text), 0
        table = mapping.read(kind.keys, values)
        if kind.ordered:
            order = _integer(values, mapping.ORDER, "a smaller number comes first")
            table = {"name": name, **table} if kind.named else table
            toml = f"[[{kind.section}]]\n{tomli_w.dumps(table)}"
        elif kind is GROUPS:
            found = sorted(values.get(self._options.member.lower(), ()))
            return Part(kind, text, dn, name, table, members=tuple(map(_member, found)))
        else:
            if kind is HOSTS:
                self._complete(table, values)
            toml = tomli_w.dumps({kind.section: {name: table}})
        return Part(kind, text, dn, name, table, toml, order)

    def _complete(self, table: dict[str, object], values: Values) -> None:
        """A host's table, from what the directory knows of it anyway."""
        options = self._options
        if (found := values.get(options.address.lower())) and "addresses" not in table:
            table["addresses"] = sorted(found)
        if "service" in table or "user" in table:
            return
        services = [
            each
            for each in sorted(values.get(options.principal.lower(), ()))
            if each.startswith(_SERVICE_PREFIX)
        ]
        if len(services) > 1:
            raise ValueError(
                f"{options.principal}: {show(services[0])} and {show(services[1])} are KINK"
                " services both; say which it is with kinkdService"
            )
        fqdns = values.get(options.fqdn.lower(), ())
        if services:
            table["service"] = services[0]
        elif len(fqdns) == 1 and "fqdn" not in table:
            table["fqdn"] = fqdns[0].lower()  # RFC 4430 §4.2.1


def _decode(attributes: Mapping[str, tuple[bytes, ...]]) -> Values:
    found = {}
    for attribute, values in attributes.items():
        try:
            found[attribute] = tuple(value.decode() for value in values)
        except UnicodeDecodeError:
            raise ValueError(f"{attribute}: not UTF-8") from None
    return found


def _integer(values: Values, attribute: str, why: str) -> int:
    found = values.get(attribute.lower(), ())
    if not found:
        raise ValueError(f"{attribute} is missing; {why}")
    number = mapping.number(found[0])
    if len(found) == 1 and isinstance(number, int):
        return number
    raise ValueError(f"{attribute}: {show(found[0])} is not one integer; {why}")


def _member(text: str) -> tuple[str, Dn | None]:
    try:
        return text, names.parse(text)
    except ValueError:
        return text, None
