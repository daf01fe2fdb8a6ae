"""Whatever a directory, or somebody in its place, says: a document, or an error with a name."""

from __future__ import annotations

import contextlib
import tomllib

from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import DocumentError
from kinkd.policy import reader
from kinkd.policy.directory import bind, ldif, mapping, names
from kinkd.policy.directory.assemble import assemble
from kinkd.policy.directory.content import Entry
from kinkd.policy.directory.convert import Converter
from kinkd.policy.directory.options import DirectoryOptions
from kinkd.policy.directory.sasl import _next_frame

BASE = "cn=kinkd,dc=test"
CONVERTER = Converter(
    DirectoryOptions((), BASE, hosts="ou=hosts,dc=test", groups="ou=groups,dc=test")
)
_CLASSES = [
    "ipaHost",
    "ipaHostGroup",
    "kinkdPolicy",
    *(kind.object_class for kind in mapping.KINDS),
]
_ATTRIBUTES = [*mapping.attributes(), "fqdn", "krbPrincipalName", "ipHostNumber", "member"]
_WORDS = [
    *("all", "h0", "192.0.2.1", "10.0.0.0/8", "TRUE", "1", "2", "-7", "require", "clear", "8h"),
    *("aes256gcm16", "ecp256 none", "kink/a.test", "A.test", "{0}h0", f"cn=h0,{BASE}", "{1}"),
]
_VALUES = st.sampled_from(_WORDS).map(str.encode) | st.binary(max_size=8)
_NAMES = st.sampled_from(["h0", "h1", "g0", "Ä", "a\\, b", "\\0a", "", "#00", "a+ou=b"])
_DNS = st.sampled_from([BASE, "ou=x,dc=test", f"ou=rules,{BASE}", "ou=hosts,dc=test"])


@st.composite
def _entries(draw: st.DrawFn) -> Entry:
    classes = draw(st.lists(st.sampled_from(_CLASSES), max_size=2))
    dn = draw(
        st.sampled_from([BASE]) | st.tuples(_NAMES, _DNS).map(lambda two: "cn={},{}".format(*two))
    )
    attributes = draw(
        st.dictionaries(
            st.sampled_from(_ATTRIBUTES), st.lists(_VALUES, min_size=1, max_size=3), max_size=8
        )
    )
    found = {name.lower(): tuple(values) for name, values in attributes.items()}
    return Entry(dn, dn, {"objectclass": tuple(map(str.encode, classes)), **found})


_HEAD = Entry(
    "head",
    BASE,
    {
        "objectclass": (b"kinkdPolicy",),
        "kinkdschema": (b"1",),
        "kinkdversion": (b"1",),
        "kinkdrealm": (b"A.TEST",),
        "kinkdrulecount": (b"0",),
    },
)


@given(st.lists(_entries(), max_size=8), st.booleans())
def test_any_entries_are_a_document_or_an_error(entries: list[Entry], headed: bool) -> None:
    made = [CONVERTER.convert(each) for each in entries] + [CONVERTER.convert(_HEAD)] * headed
    parts = [part for part in made if part is not None]
    with contextlib.suppress(DocumentError):
        found = assemble("ldap://a.test", parts)
        assert tomllib.loads(found.text) == found.document.root.value
        reader.read(found.document)


_LDIF = st.lists(
    st.sampled_from(
        [
            *("dn: ", "dn:: ", BASE, f"cn=h0,{BASE}", "objectClass: kinkdPolicy\n", "\n", "\n\n"),
            *("kinkdRuleCount: 0\n", "kinkdAddress: ", "version: 1\n", "changetype: add\n", "#"),
            *("192.0.2.1", ":", ":: ", ":< file:///etc/passwd\n", " ", "=", "-", "Y249YQ==", "\\,"),
        ]
    )
    | st.text(max_size=4),
    max_size=30,
).map(lambda pieces: "".join(pieces).encode("utf-8", "surrogatepass"))


@given(_LDIF | st.binary(max_size=64))
def test_any_octets_are_ldif_or_an_error(octets: bytes) -> None:
    with contextlib.suppress(DocumentError):
        ldif.load("policy.ldif", octets)


@given(
    st.text(max_size=20)
    | st.lists(st.sampled_from(["cn", "=", ",", "\\", "+", "#0", '"', " "])).map("".join)
)
def test_any_text_is_a_name_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        parsed = names.parse(text)
        assert names.readable(text).isprintable()
        if parsed:
            names.own_value(text)


_ELEMENTS = st.recursive(
    st.binary(max_size=8),
    lambda inner: st.lists(st.tuples(st.sampled_from([2, 4, 10, 0x30, 0x61, 0x87]), inner)).map(
        lambda elements: b"".join(bind._tlv(tag, value) for tag, value in elements)
    ),
    max_leaves=10,
)


@given(st.binary(max_size=64) | _ELEMENTS)
def test_any_octets_are_an_answer_or_malformed(octets: bytes) -> None:
    with contextlib.suppress(bind.Malformed):
        bind.read_response(octets)


@given(st.lists(st.binary(max_size=40), max_size=5), st.lists(st.integers(1, 50), max_size=20))
def test_frames_come_out_whole_however_they_came_in(frames: list[bytes], cuts: list[int]) -> None:
    octets = b"".join(len(each).to_bytes(4, "big") + each for each in frames)
    received, found = bytearray(), []
    for cut in [*cuts, len(octets)]:
        received += octets[:cut]
        octets = octets[cut:]
        while (frame := _next_frame(received)) is not None:
            found.append(frame)
    assert found == frames
    assert not received
