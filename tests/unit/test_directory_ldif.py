"""The document as entries of a directory, and back."""

from __future__ import annotations

import io
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.cli import policy_ldif
from kinkd.document import Document
from kinkd.errors import DocumentError
from kinkd.policy import reader
from kinkd.policy.directory import ldif, mapping, names
from kinkd.policy.directory.mapping import GROUPS, KINDS, POLICY, Form, Key
from kinkd.policy.realm import RealmPolicy

CONF = Path(__file__).resolve().parents[2] / "conf" / "ldap"
BASE = "cn=kinkd,dc=example,dc=test"

POLICY_TOML = """\
schema = 1
version = 7
realm = "EXAMPLE.TEST"

[hosts.alice]
fqdn = "alice.example.test"
addresses = ["192.0.2.2", "192.0.2.1"]

[hosts.bob]
service = "kink/bob.example.test"
client = "BOB$"
user_to_user = "allowed"
addresses = ["192.0.2.3", "2001:db8::3"]
networks = ["10.1.0.0/16"]

[groups]
web = ["alice", "bob"]
none = []

[profiles.slow]
suites = ["aes256gcm16", "aes128gcm16"]
lifetime = "8h"
group = ["ecp384", "ecp256"]
esn = "try"

[profiles.plain]
suites = ["aes256gcm16"]
group = "none"
esn = true

[[rules]]
name = "the web, all of it"
from = "web"
to = ["bob", "alice"]
action = "require"
profile = "slow"
udp_encapsulation = false

[[rules]]
name = "  ä rest \\\\ "
from = "all"
to = "all"
action = "clear"
"""


# --- any document -------------------------------------------------------------------------------

_words = st.from_regex(r"[A-Za-z0-9.:/_{}*-]{1,12}", fullmatch=True)
_texts = st.text(
    st.characters(exclude_categories=("C", "Z")) | st.just(" "), min_size=1, max_size=12
)
_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)


def _values(key: Key) -> st.SearchStrategy[object]:
    if key.form is Form.NUMBER:
        return st.integers(0, 1 << 53)
    if key.form is Form.FLAG:
        return st.booleans() | st.just("try")
    if key.form is Form.TEXT:
        return _texts.filter(lambda text: text.strip(" ") != "")
    each = _words if key.form is Form.WORDS else _texts.filter(lambda text: text.strip(" ") != "")
    lists = st.lists(each, min_size=1, max_size=4, unique=True)
    return lists | each if key.lone else lists


def _tables(keys: tuple[Key, ...]) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries({}, optional={key.name: _values(key) for key in keys})


def _distinct(found: list[str]) -> list[str]:
    return list({names.prepare(name): name for name in found}.values())


@st.composite
def documents(draw: st.DrawFn) -> dict[str, object]:
    found = draw(_tables(POLICY.keys))
    if servers := draw(_tables(mapping.SERVER_KEYS)):
        found["servers"] = servers
    for kind in KINDS:
        drawn = draw(st.lists(_texts if kind.ordered else _names, max_size=3))
        titles = _distinct([title for title in drawn if title.strip(" ")])
        tables = [draw(_tables(kind.keys)) for _ in titles]
        if kind is GROUPS:
            section: object = {
                title: draw(st.lists(_words, max_size=4, unique=True)) for title in titles
            }
        elif kind.ordered:
            section = [
                ({"name": title} if kind.named else {}) | table
                for title, table in zip(titles, tables, strict=True)
            ]
        else:
            section = dict(zip(titles, tables, strict=True))
        if section:
            found[kind.section] = section
    return found


def _normal(document: dict[str, object]) -> dict[str, object]:
    """What means the same, written in one way."""
    found = mapping.normal(POLICY.keys, document)
    if servers := mapping.normal(mapping.SERVER_KEYS, document.get("servers", {})):
        found["servers"] = servers
    for kind in KINDS:
        keys = (Key("name", "cn"), *kind.keys) if kind.named else kind.keys
        section = document.get(kind.section, {})
        if kind is GROUPS:
            normal: object = section
        elif isinstance(section, list):
            normal = [mapping.normal(keys, table) for table in section]
        else:
            normal = {name: mapping.normal(keys, table) for name, table in section.items()}
        if normal:
            found[kind.section] = normal
    return found


@given(documents())
def test_any_document_comes_back_as_it_was(document: dict[str, object]) -> None:
    text = ldif.export(Document("there", "", document), BASE)
    back = ldif.load("here", text.encode())
    assert back.document.root.value == _normal(document)
    assert tomllib.loads(back.text) == _normal(document)


def _meaning(document: Document) -> RealmPolicy:
    return reader.read(document)


def test_a_policy_comes_back_as_the_same_policy() -> None:
    document = Document.parse("there", POLICY_TOML.encode())
    text = ldif.export(document, BASE)
    back = ldif.load("here", text.encode())
    again = Document.parse("again", back.text.encode())
    assert _meaning(back.document) == _meaning(again) == _meaning(document)


def test_a_list_of_one_and_a_lone_string_are_the_same() -> None:
    table = {"from": ["web"], "to": "all", "traffic": ["tcp/443", "any"]}
    keys = mapping.RULES.keys
    values = {name.lower(): tuple(each) for name, each in mapping.write(keys, table).items()}
    assert mapping.read(keys, values) == {"from": "web", "to": "all", "traffic": table["traffic"]}


def test_values_that_are_not_in_order_carry_their_places() -> None:
    key = Key("addresses", "kinkdAddress", Form.LIST)

    def write(*values: str) -> list[str]:
        return mapping.write((key,), {"addresses": list(values)})["kinkdAddress"]

    assert write("a", "b") == ["a", "b"]
    assert write("b", "a") == ["{0}b", "{1}a"]
    assert write("{0}a") == ["{0}{0}a"]
    # A server gives values in any order.
    eleven = write(*(f"x{n}" for n in reversed(range(11))))
    read = mapping.read((key,), {"kinkdaddress": tuple(sorted(eleven))})
    assert read == {"addresses": [f"x{n}" for n in reversed(range(11))]}


def test_what_is_no_number_and_no_flag_is_for_the_reader_to_refuse() -> None:
    values = {"kinkdversion": ("seven",), "kinkdaudit": ("true",), "kinkdesn": ("FALSE",)}
    assert mapping.read(POLICY.keys, values) == {"version": "seven"}
    assert mapping.read(mapping.HOSTS.keys, values) == {"audit": "true"}
    assert mapping.read(mapping.PROFILES.keys, values) == {"esn": False}


# --- what cannot be said ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hosts": {"Web": {}, "web": {}}}, 'a directory takes "web" and "Web" for one name'),
        ({"hosts": {"web": {"colour": "red"}}}, "hosts.web: colour: there is no attribute for it"),
        ({"colours": {}}, "colours: there is no attribute for it"),
        ({"servers": {"smtp": ["a"]}}, "smtp: there is no attribute for it"),
        (
            {"profiles": {"p": {"suites": ["two words"]}}},
            "profiles.p: suites: 'two words' is not one word",
        ),
    ],
)
def test_export_leaves_nothing_out_in_silence(change: dict[str, object], said: str) -> None:
    with pytest.raises(DocumentError, match=re.escape(said)):
        ldif.export(Document("there", "", {"version": 1, **change}), BASE)


@pytest.mark.parametrize("base", ["", "kinkd", "ou=kinkd,dc=test", "cn=a+ou=b,dc=test"])
def test_the_base_is_a_dn_with_a_cn(base: str) -> None:
    with pytest.raises(DocumentError, match=r"distinguished name|write a base like"):
        ldif.export(Document("there", "", {}), base)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no entry of class kinkdPolicy"),
        (b"dn: cn=x\nobjectClass: kinkdRule\n", "no entry of class kinkdPolicy"),
        (b"\xff", "not LDIF"),
        (b"dn: =\nobjectClass: kinkdPolicy\n", "not LDIF"),
        (b"hello\n", "not LDIF"),
    ],
)
def test_what_is_no_policy_in_ldif_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        ldif.load("here", text)


# --- the command --------------------------------------------------------------------------------


def test_the_command_exports_and_imports(tmp_path: Path) -> None:
    toml, entries = tmp_path / "policy.toml", tmp_path / "policy.ldif"
    toml.write_text(POLICY_TOML)
    out = io.StringIO()
    assert policy_ldif.run("export", str(toml), BASE, out) == 0
    entries.write_text(out.getvalue())
    back = io.StringIO()
    assert policy_ldif.run("import", str(entries), "", back) == 0
    again = Document.parse("again", back.getvalue().encode())
    assert _meaning(again) == _meaning(Document.parse("there", POLICY_TOML.encode()))


def test_the_command_writes_nothing_of_what_cannot_be_meant(tmp_path: Path) -> None:
    file = tmp_path / "policy"
    for action, text, said in (
        ("export", POLICY_TOML.replace("require", "requires"), r'action: "requires" is unknown'),
        ("import", f"dn: {BASE}\nobjectClass: kinkdPolicy\nkinkdRuleCount: 0\n", "is missing"),
    ):
        file.write_text(text)
        out = io.StringIO()
        with pytest.raises(DocumentError, match=said):
            policy_ldif.run(action, str(file), BASE, out)
        assert out.getvalue() == ""
    with pytest.raises(DocumentError, match="cannot be read"):
        policy_ldif.run("export", str(tmp_path / "missing"), BASE, io.StringIO())


def test_the_example_is_a_policy() -> None:
    text = ldif.import_file(str(CONF / "example.ldif"))
    found = reader.read(Document.parse("example", text.encode()))
    assert [rule.name for rule in found.rules] == ["the web", "everything else"]
    assert found.rules[0].destination == {"alice", "bob"}


# --- the schema ---------------------------------------------------------------------------------

_DEFINITION = re.compile(r"\( (?P<oid>[\d.]+) NAME '(?P<name>\w+)'(?P<rest>.*) \)")


def _definitions(file: str, kind: str) -> dict[str, tuple[str, str]]:
    """The number and the rest of every definition of a kind, by name."""
    unfolded = (CONF / file).read_text().replace("\n ", "")
    lines = [line for line in unfolded.splitlines() if line.lower().startswith(kind.lower() + ":")]
    found = [_DEFINITION.search(line) for line in lines]
    return {match["name"]: (match["oid"], match["rest"]) for match in found if match is not None}


def _listed(text: str, word: str) -> set[str]:
    match = re.search(rf"{word} (?:\( ([^)]*) \)|(\w+))", text)
    return set((match[1] or match[2]).split(" $ ")) if match else set()


def test_both_schemas_are_one() -> None:
    for kind in ("AttributeTypes", "ObjectClasses"):
        openldap = _definitions("kinkd.ldif", f"olc{kind}")
        assert openldap
        assert openldap == _definitions("60kinkd.ldif", kind)
        numbers = [oid for oid, _ in openldap.values()]
        assert len(set(numbers)) == len(numbers)


def test_the_schema_has_every_attribute_as_the_document_needs_it() -> None:
    types = {
        name: rest for name, (_, rest) in _definitions("kinkd.ldif", "olcAttributeTypes").items()
    }
    assert set(types) == set(mapping.attributes())
    syntaxes = {Form.NUMBER: ".27", Form.FLAG: ".7"}
    for key in (*POLICY.keys, *mapping.SERVER_KEYS, *(key for kind in KINDS for key in kind.keys)):
        rest = types[key.attribute]
        assert ("SINGLE-VALUE" in rest) == (key.form is not Form.LIST), key
        syntax = ".15" if key.name == "esn" else syntaxes.get(key.form, ".15")
        assert f"SYNTAX 1.3.6.1.4.1.1466.115.121.1{syntax}" in rest, key


def test_the_schema_lets_every_class_have_its_attributes() -> None:
    classes = _definitions("kinkd.ldif", "olcObjectClasses")
    assert set(classes) == {kind.object_class for kind in (POLICY, *KINDS)}
    for kind in (POLICY, *KINDS):
        _, rest = classes[kind.object_class]
        allowed = _listed(rest, "MUST") | _listed(rest, "MAY")
        assert {key.attribute for key in kind.keys} <= allowed
        assert (mapping.ORDER in _listed(rest, "MUST")) == kind.ordered
    assert mapping.RULE_COUNT in _listed(classes[POLICY.object_class][1], "MUST")
