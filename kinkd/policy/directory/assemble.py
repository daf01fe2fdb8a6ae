"""From the parts of all entries to the document that the policy's reader takes, and its text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import tomli_w

from kinkd.document import Document, KeyPath, Place, path_text, show
from kinkd.errors import DocumentError
from kinkd.policy.directory import mapping
from kinkd.policy.directory.convert import Part
from kinkd.policy.directory.mapping import GROUPS, HOSTS, KINDS, POLICY, RULES, Key, Kind
from kinkd.policy.directory.names import Dn


class DirectoryDocument(Document):
    """A document whose places are entries and attributes."""

    def __init__(
        self, source: str, root: Mapping[str, object], parts: Mapping[KeyPath, Part], head: Part
    ) -> None:
        super().__init__(source, "", root)
        self._parts = parts
        self._head = head

    def line(self, path: KeyPath) -> None:
        """None: entries have no lines."""

    def place(self, path: KeyPath) -> Place:
        """The entry's DN, and the attribute."""
        part = self._parts.get(path[:2])
        if part is None:
            return Place(self._head.dn, None, self._word(path) if path else "")
        return Place(part.dn, None, self._word(path))

    def assignment(self, table: KeyPath, key: str, hint: str) -> tuple[str, str]:
        """The attribute, and a line of LDIF that sets it."""
        word = self._word((*table, key))
        if word == key:
            return super().assignment(table, key, hint)
        return word, f"{word}: " + hint.strip('[]"')

    def _word(self, path: KeyPath) -> str:
        keys, rest = _keys_at(path)
        if not rest and self._parts.get(path[:2]) is not None:
            return ""
        found = next((key.attribute for key in keys if rest and key.name == rest[0]), None)
        return found or path_text(path)


def _keys_at(path: KeyPath) -> tuple[tuple[Key, ...], KeyPath]:
    """The keys of the table that ``path`` is in, and the path from there."""
    if path[:1] == (mapping.SERVERS,):
        return mapping.SERVER_KEYS, path[1:]
    for kind in KINDS:
        if path[:1] == (kind.section,):
            if kind is GROUPS and len(path) > 2:
                return kind.keys, (mapping.MEMBERS.name,)
            return kind.keys, path[2:]
    return POLICY.keys, path


@dataclass(frozen=True, slots=True)
class Assembled:
    """A document, its text in TOML, and what is worth a warning."""

    document: Document
    text: str
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Sections:
    """The parts in the document's order, by section and name or place in the list."""

    head: Part
    parts: dict[str, dict[str, Part] | list[Part]]

    def named(self, kind: Kind) -> dict[str, Part]:
        """The parts of a section of tables with names."""
        found = self.parts.get(kind.section, {})
        return found if isinstance(found, dict) else {}

    def listed(self, kind: Kind) -> list[Part]:
        """The parts of a section that is a list."""
        found = self.parts.get(kind.section, [])
        return found if isinstance(found, list) else []


def assemble(source: str, parts: Iterable[Part]) -> Assembled:
    """The document that all parts make. ``source`` is what it is called in messages.

    Raises:
        DocumentError: an entry that has a fault, two that contradict each other, or some missing.
    """
    sections = _sort(source, parts)
    groups, warnings = _groups(sections)
    root: dict[str, object] = dict(sections.head.table)
    chunks = [sections.head.text]
    places: dict[KeyPath, Part] = {}
    for kind in KINDS:
        listed, named = sections.listed(kind), sections.named(kind)
        places.update({(kind.section, place): part for place, part in enumerate(listed)})
        places.update({(kind.section, name): part for name, part in named.items()})
        values = groups if kind is GROUPS else {name: part.table for name, part in named.items()}
        if listed or values:
            root[kind.section] = [part.table for part in listed] if kind.ordered else values
        if groups and kind is GROUPS:
            chunks.append(tomli_w.dumps({kind.section: groups}))
        chunks += [part.text for part in (*listed, *named.values())]
    document = DirectoryDocument(source, root, places, sections.head)
    return Assembled(document, "\n".join(filter(None, chunks)), tuple(warnings))


def no_policy(source: str) -> DocumentError:
    """The error that there is none, which is not the policy that everything is clear."""
    why = f"no entry of class {POLICY.object_class}: it was deleted, or this host may not read it"
    return DocumentError(source, None, why)


def _sort(source: str, parts: Iterable[Part]) -> _Sections:
    ordered = sorted(parts, key=lambda part: (part.order, part.name, part.dn))
    for part in ordered:
        if part.fault is not None:
            raise part.fault
    head = next((part for part in ordered if part.is_policy), None)
    if head is None:
        raise no_policy(source)
    sections = _Sections(head, {kind.section: [] if kind.ordered else {} for kind in KINDS})
    for part in ordered:
        if part.kind.ordered:
            _append(sections.listed(part.kind), part)
        elif not part.is_policy:
            _insert(sections.named(part.kind), part)
    _check_count(head, len(sections.listed(RULES)))
    return sections


def _append(parts: list[Part], part: Part) -> None:
    if parts and parts[-1].order == part.order:
        raise DocumentError(
            part.dn,
            None,
            f"{mapping.ORDER}: {part.order} is that of {parts[-1].dn}, too; which comes first?",
        )
    parts.append(part)


def _insert(parts: dict[str, Part], part: Part) -> None:
    if (other := parts.setdefault(part.name, part)) is not part:
        raise DocumentError(
            part.dn, None, f"{show(part.name)} is {other.dn}, too; give one another name"
        )


def _check_count(head: Part, count: int) -> None:
    # A rule that is missing, or hidden by access control, would let pass what it forbids.
    if count != head.rules:
        raise DocumentError(
            head.dn,
            None,
            f"{mapping.RULE_COUNT} is {head.rules}, but there are {count} rules: some were deleted"
            " or added without changing it, or this host may not read them all",
        )


def _groups(sections: _Sections) -> tuple[dict[str, object], list[str]]:
    """Every group with its members by name, and a line for each with members nobody knows."""
    known: dict[Dn | None, str] = {}
    for kind in (GROUPS, HOSTS):
        known.update({part.prepared: name for name, part in sections.named(kind).items()})
    found: dict[str, object] = {}
    warnings: list[str] = []
    for name, part in sections.named(GROUPS).items():
        written = part.table.get(mapping.MEMBERS.name, [])
        members = dict.fromkeys(written if isinstance(written, list) else [])
        members.update({known[dn]: None for _, dn in part.members if dn in known})
        found[name] = list(members)
        strangers = [text for text, dn in part.members if dn not in known]
        if strangers:
            # A group of a whole realm has machines in it that take no part.
            warnings.append(
                f"{part.dn}: {len(strangers)} of its members are no hosts or groups of the policy"
                f" and are left out, {show(strangers[0])} for one"
            )
    return found, warnings
