"""The strict reader: values of the right kind, and the line of everything."""

from __future__ import annotations

import json
import tomllib
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.document import MAXIMUM_OCTETS, Document, Item
from kinkd.errors import DocumentError

LAYOUT = b"""# comment [not.a.table]
top = 1
"quo ted".'in ner' = 2
text = \"\"\"
[no.table]
x = 1\"\"\"\"\"
last = '''
y'''
list = [ # why
  "a]",
  { b = 1, c = [
    2 ] },
]
when = 1979-05-27 07:32:00
[a.b]
c = 1
[a]
d = 2
[[many]]
k = 1
[[many]]
k = 2
[many.sub]
z = { y.x = 3 }
"""


def item(text: str, key: str = "k") -> Item:
    return Document.parse("file.toml", f"{key} = {text}\n".encode()).root.table(key).item(key)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("quo ted",), 3),
        (("quo ted", "in ner"), 3),
        (("text",), 4),
        (("last",), 7),
        (("list",), 9),
        (("list", 0), 10),
        (("list", 1), 11),
        (("list", 1, "b"), 11),
        (("list", 1, "c"), 11),
        (("list", 1, "c", 0), 12),
        (("when",), 14),
        (("a", "b"), 15),
        (("a", "b", "c"), 16),
        (("a",), 17),
        (("a", "d"), 18),
        (("many", 0), 19),
        (("many", 1), 21),
        (("many", 1, "k"), 22),
        (("many", 1, "sub"), 23),
        (("many", 1, "sub", "z", "y", "x"), 24),
        (("many", 1, "nowhere"), 21),
        ((), None),
    ],
)
def test_everything_has_its_line(path: tuple[str | int, ...], line: int | None) -> None:
    assert Document.parse("f", LAYOUT).line(path) == line


def test_an_unknown_key_is_refused_with_its_place_and_the_nearest_known_key() -> None:
    document = Document.parse("f.toml", b"[h]\n\nadresses = 1\n")
    with pytest.raises(DocumentError) as caught:
        document.root.table("h").item("h").table("addresses", "service")
    assert str(caught.value) == ('f.toml:3: h.adresses: unknown key; did you mean "addresses"?')


def test_a_missing_key_is_named_at_its_table() -> None:
    table = Document.parse("f.toml", b"x = 1\n[h]\n").root.table("x", "h").item("h").table("s")
    with pytest.raises(DocumentError, match=r'^f\.toml:2: h: s is missing; write s = "v"$'):
        table.item("s", hint='"v"')


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"a = 1\nb =\n", r"^f:2: not TOML: invalid value at column 4$"),
        (b"a = 1\na = 2\n", r"^f:2: not TOML: "),
        (b'a = 1\nb = "x', r"^f:\d: not TOML: "),
        (b"a = 1\n# \xff\n", r"^f:2: not UTF-8"),
        (b"a = " + b"[" * 100000, r"^f: nested too deeply$"),
        (b"a = " + b"1" * 5000, r"^f: not TOML: a number of absurd length$"),
        (b"#" * (MAXIMUM_OCTETS + 1), r"^f: larger than 16 MiB$"),
    ],
)
def test_what_is_no_toml_is_refused_with_its_line(octets: bytes, text: str) -> None:
    with pytest.raises(DocumentError, match=text):
        Document.parse("f", octets)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("8h", 28800), ("1h30m", 5400), ("1d", 86400)]
)
def test_durations_are_read_in_seconds(text: str, seconds: int) -> None:
    assert item(f'"{text}"').duration(30, 86400) == seconds


@pytest.mark.parametrize("text", ['""', '"1"', '"h"', '"30m1h"', '"-1h"', '"1.5h"', "3600", "[]"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match=r"^file\.toml:1: k: .* is not a duration"):
        item(text).duration(0, 1 << 40)


def test_a_duration_out_of_range_is_refused() -> None:
    with pytest.raises(DocumentError, match="out of range; 30s to 100s is right"):
        item('"29s"').duration(30, 100)


@pytest.mark.parametrize(
    ("text", "octets"), [("500MB", 500_000_000), ("2 GiB", 2 << 30), ("1kB", 1000)]
)
def test_sizes_are_read_in_octets(text: str, octets: int) -> None:
    assert item(f'"{text}"').size(0, 1 << 40) == octets


@pytest.mark.parametrize("text", ['"5"', '"5Gi"', '"5 XB"', '"MB"', "5", '"5kkB"'])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(DocumentError, match="is not a size"):
        item(text).size(0, 1 << 40)


@pytest.mark.parametrize("text", ["1", "true", "[]", '""', '"\\u0007"'])
def test_what_is_no_printable_string_is_refused(text: str) -> None:
    with pytest.raises(DocumentError):
        item(text).string()


@pytest.mark.parametrize("text", ["true", "1.0", '"1"', "0", "11"])
def test_what_is_no_integer_in_range_is_refused(text: str) -> None:
    with pytest.raises(DocumentError):
        item(text).integer(1, 10)


@pytest.mark.parametrize(
    "text", ['"192.0.2.1/32"', '"fe80::1%eth0"', '"::ffff:192.0.2.1"', '"host"', "1"]
)
def test_what_is_no_plain_address_is_refused(text: str) -> None:
    with pytest.raises(DocumentError):
        item(text).address()


@pytest.mark.parametrize("text", ["10.1.0.0/16", "0.0.0.0/0", "192.0.2.1/32", "2001:db8::/33"])
def test_networks_are_read(text: str) -> None:
    assert item(f'"{text}"').network() == ip_network(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('"10.1.0.0"', '"10.1.0.0" is not an IP network; write "10.1.0.0/16"'),
        ('"10.1.0.0/255.255.0.0"', "is not an IP network"),
        ('"10.1.0.0/33"', "is not an IP network"),
        ('"fe80::%1/64"', "is not an IP network"),
        ('"net"', "is not an IP network"),
        ("1", "is not a string"),
        ('"10.1.2.3/16"', '"10.1.2.3/16" has bits beyond its prefix; write "10.1.0.0/16"'),
        ('"2001:db8::1/64"', 'write "2001:db8::/64"'),
        ('"::ffff:10.1.0.0/112"', '"::ffff:10.1.0.0/112" is IPv4; write "10.1.0.0/16"'),
    ],
)
def test_what_is_no_network_is_refused_with_what_would_be_right(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        item(text).network()
    assert message in str(caught.value)


def test_a_relative_path_starts_at_the_document() -> None:
    document = Document.parse("/etc/kinkd/kinkd.toml", b'a = "policy.toml"\nb = "/x"\n')
    table = document.root.table("a", "b")
    assert table.item("a").file() == "/etc/kinkd/policy.toml"
    assert table.item("b").file() == "/x"


VALUES = st.recursive(
    st.integers(-99, 99) | st.booleans() | st.text("a#]}\"'\\=,[ ", max_size=6),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)
KEYS = st.text('ab.-" #=[', min_size=1, max_size=4)


@given(st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=4), max_size=4))
def test_every_key_of_any_document_has_its_line(tables: dict[str, dict[str, object]]) -> None:
    lines: list[str] = []
    wanted: dict[tuple[str | int, ...], int] = {}
    for name, values in tables.items():
        lines.append(f"[{json.dumps(name)}] # ]")
        wanted[name,] = len(lines)
        for key, value in values.items():
            lines += ["", f"{json.dumps(key)} = {json.dumps(value)}"]
            wanted[name, key] = len(lines)
    text = "\n".join(lines)
    assert tomllib.loads(text) == tables
    document = Document.parse("f", text.encode())
    assert {path: document.line(path) for path in wanted} == wanted
