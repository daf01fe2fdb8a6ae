"""A strict reader of TOML documents that knows where everything stands.

``tomllib`` parses and gives values without places. An ``Item`` is such a value with its path in
the document; the line is looked for only when there is something to say about it, so a good
document pays nothing for it. Tables that come from elsewhere have a ``Document`` of their own,
which says what places are called there.

Every fault is a ``DocumentError``: the place, what is wrong, what would be right, on one line.
Keys nobody expects are refused.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, NamedTuple, Self

from kinkd.errors import DocumentError

KeyPath = tuple[str | int, ...]

MAXIMUM_OCTETS: Final = 16 << 20  # a realm of 50,000 hosts is half of it

_SECONDS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION: Final = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.A)
_OCTETS: Final = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
_SIZE: Final = re.compile(r"(\d{1,9}) ?([kMGTi]+B)", re.A)
_NETWORK: Final = re.compile(r"[0-9A-Fa-f.:]+/\d{1,3}", re.A)
_PARSER_PLACE: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")

_ABSENT: Final = object()


def show(value: object) -> str:
    """A value as a document would write it: on one line, printable, not too long."""
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    text = str(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"
    return text.encode("unicode_escape").decode("ascii")


def suggestion(word: str, words: Iterable[str]) -> str:
    """What would be right instead of ``word``: the nearest of ``words``, or the first of them."""
    choices = list(words)
    near = difflib.get_close_matches(word, choices, n=1)
    if near:
        return f"did you mean {show(near[0])}?"
    if not choices:
        return "there is none to name here"
    few = ", ".join(show(choice) for choice in choices[:8])
    return f"it can be {few}" + (", ..." if len(choices) > 8 else "")


def path_text(path: KeyPath) -> str:
    """A path in the words of TOML: ``hosts.alice.addresses[0]``."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if _BARE_KEY.fullmatch(step) else show(step))
    return text


class Place(NamedTuple):
    """Where something stands, for messages: file (or entry), line if it has one, name in it."""

    path: str
    line: int | None
    name: str


class Document:
    """A parsed document. ``path`` is what it is called in messages.

    A source without lines overrides ``place`` and ``assignment``.
    """

    def __init__(self, path: str, text: str, root: Mapping[str, object]) -> None:
        self.path = path
        self._text = text
        self._root = root

    @classmethod
    def parse(cls, path: str, octets: bytes) -> Self:
        """Read the octets of a document.

        Raises:
            DocumentError: it is no TOML, or larger than ``MAXIMUM_OCTETS``.
        """
        if len(octets) > MAXIMUM_OCTETS:
            raise DocumentError(path, None, f"larger than {MAXIMUM_OCTETS >> 20} MiB")
        try:
            text = octets.decode("utf-8").replace("\r\n", "\n")  # as tomllib counts
            return cls(path, text, tomllib.loads(text))
        except UnicodeDecodeError as error:
            line = octets.count(b"\n", 0, error.start) + 1
            raise DocumentError(path, line, "not UTF-8, the encoding of TOML") from None
        except tomllib.TOMLDecodeError as error:
            raise _syntax_error(path, octets, str(error)) from None
        except ValueError:  # int() beyond its limit of digits
            raise DocumentError(path, None, "not TOML: a number of absurd length") from None
        except RecursionError:
            raise DocumentError(path, None, "nested too deeply") from None

    @property
    def text(self) -> str:
        """What was parsed, its lines ended as TOML counts them; empty: it was no text."""
        return self._text

    @property
    def root(self) -> Item:
        """The whole document, a table."""
        return Item(self, (), self._root)

    def place(self, path: KeyPath) -> Place:
        """Where ``path`` stands, in the words of who wrote it."""
        return Place(self.path, self.line(path), path_text(path))

    def assignment(self, table: KeyPath, key: str, hint: str) -> tuple[str, str]:
        """What ``key`` of a table is called there, and how to write it with the value ``hint``."""
        return key, f"{key} = {hint}"

    def line(self, path: KeyPath) -> int | None:
        """The line, from 1, on which ``path`` or the nearest thing around it stands."""
        while path:
            if path in self._lines:
                return self._lines[path]
            path = path[:-1]
        return None

    @cached_property
    def _lines(self) -> Mapping[KeyPath, int]:
        try:
            return _Locator(self._text).locate()
        except RecursionError:  # a place is a courtesy: the error it belongs to is what counts
            return {}


def _syntax_error(path: str, octets: bytes, message: str) -> DocumentError:
    place = _PARSER_PLACE.search(message)
    if place is None:
        return DocumentError(path, None, f"not TOML: {message}")
    words = message[: place.start()]
    words = "not TOML: " + words[:1].lower() + words[1:]
    if place[1] is None:
        return DocumentError(path, octets.rstrip().count(b"\n") + 1, words)
    return DocumentError(path, int(place[1]), f"{words} at column {place[2]}")


@dataclass(frozen=True, slots=True)
class Item:
    """A value and its place. The readers below refuse what is not of their kind."""

    document: Document = field(repr=False)
    path: KeyPath
    value: object

    def error(self, text: str) -> DocumentError:
        """The error that says ``text`` of this value, for the caller to raise."""
        path, line, name = self.document.place(self.path)
        return DocumentError(path, line, f"{name}: {text}" if name else text)

    def warning(self, text: str) -> str:
        """The same line for something that is no error."""
        return str(self.error(text))

    @property
    def where(self) -> str:
        """Where it stands, in words."""
        path, line, name = self.document.place(self.path)
        if line is None:
            return f"{path}: {name}" if name else path
        return f"{path}:{line}"

    @property
    def line(self) -> int | None:
        """The line it stands on; for what is not written there, that of the table around it."""
        return self.document.line(self.path)

    def table(self, *known: str) -> Table:
        """A table with no keys but ``known``."""
        values = self._mapping()
        for key in values:
            if key not in known:
                child = Item(self.document, (*self.path, key), values[key])
                raise child.error(f"unknown key; {suggestion(key, known)}")
        return Table(self, values)

    def entries(self) -> list[tuple[str, Item]]:
        """The entries of a table whose keys are names of the writer's choice."""
        values = self._mapping()
        return [(key, Item(self.document, (*self.path, key), values[key])) for key in values]

    def mapping(self) -> Mapping[str, object]:
        """The values of such a table; ``entry`` gives one its place."""
        return self._mapping()

    def entry(self, key: str) -> Item:
        """One of its entries."""
        return Item(self.document, (*self.path, key), self._mapping()[key])

    def items(self) -> list[Item]:
        """The elements of a list."""
        if not isinstance(self.value, list):
            raise self.error(f"{show(self.value)} is not a list; write [...]")
        return [
            Item(self.document, (*self.path, index), value)
            for index, value in enumerate(self.value)
        ]

    def one_or_more(self) -> list[Item]:
        """The elements of a list that is not empty; a lone string stands for a list of one."""
        if isinstance(self.value, str):
            return [self]
        items = self.items()
        if not items:
            raise self.error("an empty list; name one at least")
        return items

    def string(self) -> str:
        """A string that is not empty, of printable characters."""
        if not isinstance(self.value, str):
            raise self.error(f'{show(self.value)} is not a string; write "..."')
        if not self.value:
            raise self.error("an empty string; leave the key out or give a value")
        if not self.value.isprintable():
            raise self.error(f"{show(self.value)} has characters that cannot be printed")
        return self.value

    def integer(self, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            raise self.error(f"{show(self.value)} is not an integer")
        if not low <= self.value <= high:
            raise self.error(f"{show(self.value)} is out of range; {low} to {high} is right")
        return self.value

    def boolean(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self.error(f"{show(self.value)} is neither true nor false")
        return self.value

    def choice(self, choices: Iterable[str]) -> str:
        """One of some words."""
        words = tuple(choices)
        if (word := self.string()) not in words:
            raise self.error(f"{show(word)} is unknown; {suggestion(word, words)}")
        return word

    def duration(self, low: int, high: int) -> int:
        """Seconds, written with units: ``"90s"``, ``"8h"``, ``"1h30m"``."""
        match = _DURATION.fullmatch(self.value) if isinstance(self.value, str) else None
        if not self.value or match is None:
            raise self.error(f'{show(self.value)} is not a duration; write "90s", "8h" or "1h30m"')
        seconds = sum(
            int(count) * unit
            for count, unit in zip(match.groups(default="0"), _SECONDS.values(), strict=True)
        )
        if not low <= seconds <= high:
            raise self.error(f"{show(self.value)} is out of range; {low}s to {high}s is right")
        return seconds

    def size(self, low: int, high: int) -> int:
        """Octets, written with units: ``"500MB"``, ``"2 GiB"``."""
        match = _SIZE.fullmatch(self.value) if isinstance(self.value, str) else None
        if match is None or match[2] not in _OCTETS:
            raise self.error(f'{show(self.value)} is not a size; write "500MB" or "2GiB"')
        octets = int(match[1]) * _OCTETS[match[2]]
        if not low <= octets <= high:
            raise self.error(f"{show(self.value)} is out of range; {low} to {high} octets is right")
        return octets

    def address(self) -> IPv4Address | IPv6Address:
        """An IP address, without prefix length or zone."""
        address: IPv4Address | IPv6Address
        try:
            text = self.string()
            address = IPv6Address(text) if ":" in text else IPv4Address(text)
        except ValueError:
            raise self.error(
                f'{show(self.value)} is not an IP address; write "192.0.2.1" or "2001:db8::1"'
            ) from None
        if isinstance(address, IPv6Address):
            if address.scope_id is not None:
                raise self.error(
                    f"{show(self.value)} has a zone; an address of one link will not do"
                )
            if address.ipv4_mapped is not None:
                raise self.error(f'{show(self.value)} is IPv4; write "{address.ipv4_mapped}"')
        return address

    def network(self) -> IPv4Network | IPv6Network:
        """An IP network as address and prefix length, no bit set beyond the prefix."""
        text = self.string()
        try:
            # Without the pattern: netmasks and lone addresses, too.
            network = ip_network(text, strict=False) if _NETWORK.fullmatch(text) else None
        except ValueError:
            network = None
        if network is None:
            raise self.error(
                f'{show(text)} is not an IP network; write "10.1.0.0/16" or "2001:db8:1::/48"'
            )
        first, bits = network.network_address, network.prefixlen
        if isinstance(first, IPv6Address) and first.ipv4_mapped is not None and bits >= 96:
            raise self.error(f'{show(text)} is IPv4; write "{first.ipv4_mapped}/{bits - 96}"')
        if ip_address(text.partition("/")[0]) != first:
            raise self.error(f'{show(text)} has bits beyond its prefix; write "{network}"')
        return network

    def file(self) -> str:
        """The path of a file; a relative one starts at the directory of the document."""
        return os.path.normpath(os.path.join(os.path.dirname(self.document.path), self.string()))

    def _mapping(self) -> Mapping[str, object]:
        if not isinstance(self.value, dict):
            raise self.error(f"{show(self.value)} is not a table; write [{path_text(self.path)}]")
        return self.value


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose keys were checked."""

    place: Item
    values: Mapping[str, object] = field(repr=False)

    def item(self, key: str, default: object = _ABSENT, *, hint: str = "") -> Item:
        """The value of a key; ``default`` is written like the document writes it.

        Args:
            key: one of the table's known keys.
            default: what a missing key stands for; without it, the key must be there.
            hint: an example of the value, for the error.
        """
        value = self.values.get(key, default)
        if value is _ABSENT:
            place = self.place
            name, example = place.document.assignment(place.path, key, hint)
            raise place.error(f"{name} is missing" + (f"; write {example}" if hint else ""))
        return Item(self.place.document, (*self.place.path, key), value)

    def optional(self, key: str) -> Item | None:
        """The value of a key, None where it is missing."""
        return self.item(key) if key in self.values else None


class _Locator:
    """Finds the line of every key, table and element of a text that ``tomllib`` accepted.

    It reads only as much of the grammar as names and places need, and stops where it is lost.
    """

    _KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*'""")
    _STRING = re.compile(
        r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'
        r"|'''.*?'''(?:'{0,2})"
        r'|"(?:\\.|[^"\\\n])*"'
        r"|'[^'\n]*'",
        re.S,
    )
    _SPACE = re.compile(r"[ \t]*")
    _BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
    _SCALAR = re.compile(r"[^,\]}\n#]*")  # numbers, dates and times, with the space in them

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._counted = 0
        self._lines: dict[KeyPath, int] = {}
        self._tables: dict[KeyPath, int] = {}  # the arrays of tables, and how many there are

    def locate(self) -> Mapping[KeyPath, int]:
        table: KeyPath = ()
        self._take(self._BLANK)
        while self._at < len(self._text):
            before = self._at
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._take(self._BLANK)
            if self._at == before:
                break
        return self._lines

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _take_char(self, char: str) -> bool:
        taken = self._text.startswith(char, self._at)
        self._at += len(char) * taken
        return taken

    def _line_here(self) -> int:
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def _keys(self) -> list[str]:
        """A key, dotted or not, and the space around it."""
        keys: list[str] = []
        while True:
            self._take(self._SPACE)
            key = self._take(self._KEY)
            if key[:1] in ("'", '"'):
                key = str(tomllib.loads(f"k = {key}")["k"])
            keys.append(key)
            self._take(self._SPACE)
            if not self._take_char("."):
                return keys

    def _header(self) -> KeyPath:
        line = self._line_here()
        many = self._take_char("[[")
        if not many:
            self._take_char("[")
        path: KeyPath = ()
        keys = self._keys()
        for depth, key in enumerate(keys, 1):
            path = (*path, key)
            self._lines.setdefault(path, line)
            if depth < len(keys) and path in self._tables:
                path = (*path, self._tables[path] - 1)
        if many:
            index = self._tables.get(path, 0)
            self._tables[path] = index + 1
            path = (*path, index)
        self._lines[path] = line  # over that of a table which only implied it
        self._take_char("]]" if many else "]")
        return path

    def _pair(self, path: KeyPath) -> None:
        line = self._line_here()
        for key in self._keys():
            path = (*path, key)
            self._lines.setdefault(path, line)
        self._take_char("=")
        self._take(self._SPACE)
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        if self._take_char("["):
            self._elements(path)
        elif self._take_char("{"):
            self._take(self._SPACE)
            while not self._take_char("}") and self._at < len(self._text):
                before = self._at
                self._pair(path)
                self._take(self._SPACE)
                self._take_char(",")
                self._take(self._SPACE)
                if self._at == before:
                    return
        elif not self._take(self._STRING):
            self._take(self._SCALAR)

    def _elements(self, path: KeyPath) -> None:
        index = 0
        self._take(self._BLANK)
        while not self._take_char("]") and self._at < len(self._text):
            before = self._at
            self._lines[(*path, index)] = self._line_here()
            self._value((*path, index))
            index += 1
            self._take(self._BLANK)
            self._take_char(",")
            self._take(self._BLANK)
            if self._at == before:
                return
