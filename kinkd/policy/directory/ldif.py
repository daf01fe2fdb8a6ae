"""The policy document as LDIF (RFC 2849), and back, without loss."""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import ldif

from kinkd.document import MAXIMUM_OCTETS, Document, Item, show
from kinkd.errors import DocumentError
from kinkd.policy import reader
from kinkd.policy.directory import assemble, mapping, names
from kinkd.policy.directory.content import MAXIMUM_ENTRIES, Entry
from kinkd.policy.directory.convert import Converter
from kinkd.policy.directory.mapping import GROUPS, KINDS, POLICY, RULES, Kind
from kinkd.policy.directory.options import DirectoryOptions

_STEP: Final = 10  # between the places of two rules: room for one in between

Attributes = Mapping[str, list[str]]


def export_file(path: str, base: str) -> str:
    """The LDIF of the policy in a TOML file, to be added below an entry that is there.

    Raises:
        DocumentError: it cannot be read, cannot be meant, or an entry cannot say it.
    """
    document = Document.parse(path, _read(path))
    reader.read(document)
    return export(document, base)


def import_file(path: str) -> str:
    """The TOML of the policy in an LDIF file.

    Raises:
        DocumentError: it cannot be read, or cannot be meant.
    """
    assembled = load(path, _read(path))
    reader.read(assembled.document)
    return assembled.text


def export(document: Document, base: str) -> str:
    """The LDIF of a document that was found good.

    Raises:
        DocumentError: two names that are one to a directory, or ``base`` is no DN.
    """
    try:
        kinds = [kind for kind, _ in names.parse(base)[0]] if base else []
    except ValueError as error:
        raise DocumentError(document.path, None, str(error)) from None
    if kinds != [mapping.NAME]:
        raise DocumentError(
            document.path, None, f"{show(base)}: write a base like cn=kinkd,dc=example,dc=test"
        )
    text = io.StringIO()
    writer = ldif.LDIFWriter(text, cols=100)
    for dn, attributes in _entries(document, base):
        found = {name: [value.encode() for value in each] for name, each in attributes.items()}
        writer.unparse(dn, found)
    return text.getvalue()


def load(path: str, octets: bytes) -> assemble.Assembled:
    """The document in the octets of an LDIF file, whatever base its entries are below.

    Raises:
        DocumentError: it is no LDIF, or entries in it have a fault.
    """
    try:
        text = octets.decode()
        reader = ldif.LDIFRecordList(io.StringIO(text), max_entries=MAXIMUM_ENTRIES)
        reader.parse()
        entries = [_entry(dn, attributes) for dn, attributes in reader.all_records]
        base = _base(entries)
        if base is None:
            raise assemble.no_policy(path)
        converter = Converter(DirectoryOptions((), base))
        parts = [part for entry in entries if (part := converter.convert(entry)) is not None]
    except (ValueError, EOFError) as error:
        raise DocumentError(path, None, f"not LDIF: {error}") from None
    return assemble.assemble(path, parts)


def _read(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            octets = file.read(MAXIMUM_OCTETS + 1)
    except OSError as error:
        raise DocumentError(path, None, f"cannot be read: {error.strerror}") from None
    if len(octets) > MAXIMUM_OCTETS:
        raise DocumentError(path, None, f"larger than {MAXIMUM_OCTETS >> 20} MiB")
    return octets


def _entry(dn: str, attributes: Mapping[str, list[bytes]]) -> Entry:
    found = {name.lower(): tuple(values) for name, values in attributes.items()}
    return Entry(str(uuid.uuid4()), dn, found)


def _base(entries: list[Entry]) -> str | None:
    wanted = POLICY.object_class.lower().encode()
    found = (
        entry.dn
        for entry in entries
        if wanted in map(bytes.lower, entry.attributes.get("objectclass", ()))
    )
    return min(found, key=lambda dn: len(names.parse(dn)), default=None)


# --- entries of a document ----------------------------------------------------------------------


def _entries(document: Document, base: str) -> Iterator[tuple[str, Attributes]]:
    root = dict(document.root.entries())
    sections = {kind: root.pop(kind.section) for kind in KINDS if kind.section in root}
    yield base, _head(document.root, root, sections.get(RULES), base)
    for kind, section in sections.items():
        area = names.child(kind.section, base, "ou")
        yield area, {"objectClass": ["organizationalUnit"], "ou": [kind.section]}
        seen: dict[str, str] = {}
        for place, (name, item) in enumerate(_named(kind, section), 1):
            if (other := seen.setdefault(names.prepare(name), name)) != name:
                raise item.error(
                    f"a directory takes {show(name)} and {show(other)} for one name; change one"
                )
            yield names.child(name, area), {mapping.NAME: [name], **_attributes(kind, place, item)}


def _head(place: Item, root: dict[str, Item], rules: Item | None, base: str) -> Attributes:
    """The policy's own entry."""
    servers = root.pop(mapping.SERVERS, None)
    try:
        return {
            "objectClass": [POLICY.object_class],
            mapping.NAME: [names.own_value(base)],
            mapping.RULE_COUNT: [str(0 if rules is None else len(rules.items()))],
            **mapping.write(POLICY.keys, _values(root.items())),
            **mapping.write(
                mapping.SERVER_KEYS, {} if servers is None else _values(servers.entries())
            ),
        }
    except ValueError as error:
        raise place.error(str(error)) from None


def _named(kind: Kind, section: Item) -> list[tuple[str, Item]]:
    if not kind.ordered:
        return section.entries()
    items = section.items()
    if not kind.named:
        return [(str(place), item) for place, item in enumerate(items, 1)]
    return [(str(dict(item.entries())["name"].value), item) for item in items]


def _attributes(kind: Kind, place: int, item: Item) -> Attributes:
    table = {mapping.MEMBERS.name: item.value} if kind is GROUPS else _values(item.entries())
    if kind.named:
        del table["name"]
    try:
        found = mapping.write(kind.keys, table)
    except ValueError as error:
        raise item.error(str(error)) from None
    order = {mapping.ORDER: [str(place * _STEP)]} if kind.ordered else {}
    return {"objectClass": [*kind.structural, kind.object_class], **order, **found}


def _values(entries: Iterable[tuple[str, Item]]) -> dict[str, object]:
    return {key: item.value for key, item in entries}
