"""Which attribute of which object class stands for which key of the document.

The tables here are all there is to it: a key more is a line more, and one in the schema
(``conf/ldap``). Attributes have values in no order (RFC 4512 §2.2), the document's lists have one:
values are read sorted, unless each begins with its place in the list, ``{0}``; and where the order
is the meaning, the list is one value, its words apart by blanks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

_PLACED: Final = re.compile(r"\{(\d{1,6})\}(.*)", re.S | re.A)
_INTEGER: Final = re.compile(r"-?\d{1,18}", re.A)
_FLAGS: Final = {"TRUE": True, "FALSE": False}  # Boolean, RFC 4517 §3.3.3


class Form(Enum):
    """How a value of the document is one or several of an attribute."""

    TEXT = auto()
    NUMBER = auto()
    FLAG = auto()  # or a word that is no flag
    LIST = auto()
    WORDS = auto()  # a list of words in one value: their order counts


@dataclass(frozen=True, slots=True)
class Key:
    """A key and its attribute. ``lone``: the document may have a string for a list of one."""

    name: str
    attribute: str
    form: Form = Form.TEXT
    lone: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """A section of the document, and the object class of its entries.

    ``ordered``: it is a list of tables, its entries have their places in kinkdOrder. ``named``:
    the key ``name`` of such a table is the entry's name.
    """

    section: str
    object_class: str
    keys: tuple[Key, ...]
    ordered: bool = False
    named: bool = False
    structural: tuple[str, ...] = ()  # classes to make a new entry of, where the own is auxiliary


NAME: Final = "cn"
ORDER: Final = "kinkdOrder"
RULE_COUNT: Final = "kinkdRuleCount"
POLICY: Final = Kind(  # what stands outside of all sections
    "",
    "kinkdPolicy",
    (
        Key("schema", "kinkdSchema", Form.NUMBER),
        Key("version", "kinkdVersion", Form.NUMBER),
        Key("realm", "kinkdRealm"),
    ),
)
SERVERS: Final = "servers"
SERVER_KEYS: Final = (
    Key("kdc", "kinkdKdc", Form.LIST),
    Key("dns", "kinkdDns", Form.LIST),
    Key("ntp", "kinkdNtp", Form.LIST),
    Key("directory", "kinkdDirectory", Form.LIST),
)
_SIDES: Final = (
    Key("from", "kinkdFrom", Form.LIST, lone=True),
    Key("to", "kinkdTo", Form.LIST, lone=True),
    Key("traffic", "kinkdTraffic", Form.LIST, lone=True),
)
HOSTS: Final = Kind(
    "hosts",
    "kinkdHost",
    (
        Key("service", "kinkdService"),
        Key("client", "kinkdClient"),
        Key("fqdn", "kinkdFqdn"),
        Key("user", "kinkdUser"),
        Key("user_to_user", "kinkdUserToUser"),
        Key("addresses", "kinkdAddress", Form.LIST),
        Key("networks", "kinkdNetwork", Form.LIST),
        Key("disabled", "kinkdDisabled", Form.FLAG),
        Key("audit", "kinkdAudit", Form.FLAG),
    ),
    structural=("device",),
)
MEMBERS: Final = Key("members", "kinkdMember", Form.LIST)
GROUPS: Final = Kind("groups", "kinkdGroup", (MEMBERS,))
NETWORKS: Final = Kind(
    "networks", "kinkdNetworkGroup", (Key("prefixes", "kinkdPrefix", Form.LIST),)
)
PROFILES: Final = Kind(
    "profiles",
    "kinkdProfile",
    (
        Key("suites", "kinkdSuites", Form.WORDS),
        Key("lifetime", "kinkdLifetime"),
        Key("volume", "kinkdVolume"),
        Key("group", "kinkdKeyExchange", Form.WORDS, lone=True),
        Key("esn", "kinkdEsn", Form.FLAG),
        Key("ticket_grace", "kinkdTicketGrace"),
    ),
)
RULES: Final = Kind(
    "rules",
    "kinkdRule",
    (
        *_SIDES,
        Key("action", "kinkdAction"),
        Key("back", "kinkdBack"),
        Key("profile", "kinkdProfileName"),
        Key("mode", "kinkdMode"),
        Key("udp_encapsulation", "kinkdUdpEncapsulation", Form.FLAG),
        Key("audit", "kinkdAudit", Form.FLAG),
    ),
    ordered=True,
    named=True,
)
TESTS: Final = Kind(
    "tests",
    "kinkdTest",
    (*_SIDES, Key("expect", "kinkdExpect"), Key("back", "kinkdBack")),
    ordered=True,
)
KINDS: Final = (HOSTS, NETWORKS, GROUPS, PROFILES, RULES, TESTS)

Values = Mapping[str, tuple[str, ...]]  # by attribute, in lower case


def attributes() -> list[str]:
    """Every attribute of kinkd's own, once."""
    keys = (*SERVER_KEYS, *(key for kind in (POLICY, *KINDS) for key in kind.keys))
    return list(dict.fromkeys((RULE_COUNT, ORDER, *(key.attribute for key in keys))))


def read(keys: Iterable[Key], values: Values) -> dict[str, object]:
    """The table that an entry's values stand for.

    What is no number or flag where one should be stays a string, for the document's reader to
    refuse.
    """
    return {
        key.name: _read(key, found) for key in keys if (found := values.get(key.attribute.lower()))
    }


def write(keys: Iterable[Key], table: Mapping[str, object]) -> dict[str, list[str]]:
    """The values of an entry that stand for a table, by attribute. Empty lists are left out.

    Raises:
        ValueError: a key that has no attribute, or a word that has blanks in it.
    """
    keys = tuple(keys)
    if strange := sorted(set(table) - {key.name for key in keys}):
        raise ValueError(f"{strange[0]}: there is no attribute for it")
    written = {key.attribute: _write(key, table[key.name]) for key in keys if key.name in table}
    return {attribute: values for attribute, values in written.items() if values}


def normal(keys: Iterable[Key], table: Mapping[str, object]) -> dict[str, object]:
    """A table as it is after having been an entry: of what means the same, one way to write it."""
    found: dict[str, object] = {}
    for key in keys:
        if key.name not in table or table[key.name] == []:
            continue
        value = table[key.name]
        if key.form in (Form.LIST, Form.WORDS):
            value = _list(key, [value] if isinstance(value, str) else value)
        found[key.name] = value
    return found


def number(text: str) -> int | str:
    """An INTEGER (RFC 4517 §3.3.16), or the text that is none."""
    return int(text) if _INTEGER.fullmatch(text) else text


def _read(key: Key, values: tuple[str, ...]) -> object:
    if key.form is Form.LIST:
        return _list(key, _in_order(values))
    # Single-valued in the schema; where a server is lax, the reader shall see that it is a list.
    if len(values) > 1:
        return sorted(values)
    if key.form is Form.WORDS:
        return _list(key, values[0].split())
    if key.form is Form.NUMBER:
        return number(values[0])
    return _FLAGS.get(values[0], values[0]) if key.form is Form.FLAG else values[0]


def _write(key: Key, value: object) -> list[str]:
    if isinstance(value, bool):
        return ["TRUE" if value else "FALSE"]
    if not isinstance(value, list):
        return _placed([value]) if key.form is Form.LIST else [str(value)]
    if key.form is not Form.WORDS:
        return _placed(value)
    if spoilt := [word for word in value if len(str(word).split()) != 1]:
        raise ValueError(f"{key.name}: {spoilt[0]!r} is not one word")
    return [" ".join(value)] if value else []


def _list(key: Key, values: object) -> object:
    return values[0] if key.lone and isinstance(values, list) and len(values) == 1 else values


def _in_order(values: Iterable[str]) -> list[str]:
    found = sorted(values)
    placed = [_PLACED.fullmatch(value) for value in found]
    pairs = [(int(match[1]), match[2]) for match in placed if match is not None]
    return [value for _, value in sorted(pairs)] if len(pairs) == len(found) else found


def _placed(values: Iterable[object]) -> list[str]:
    texts = [str(value) for value in values]
    if texts == sorted(set(texts)) and not any(map(_PLACED.fullmatch, texts)):
        return texts
    return [f"{{{place}}}{text}" for place, text in enumerate(texts)]
