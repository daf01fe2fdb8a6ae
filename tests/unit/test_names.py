"""The NAME of a principal in GETTGT (RFC 4430 §4.2.4, RFC 1964 §2.1.3)."""

from __future__ import annotations

import pytest
from gssapi import NameType
from gssapi import raw as gss
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import PeerError
from kinkd.kerberos.names import exported_name, read_exported_name
from kinkd.model import Principal

NAMES = st.text(st.characters(codec="utf-8"), min_size=1)
PRINCIPALS = st.builds(
    lambda parts, realm: Principal(tuple(parts), realm), st.lists(NAMES, min_size=1), NAMES
)


@given(PRINCIPALS)
def test_a_principal_comes_back_as_it_was(principal: Principal) -> None:
    assert read_exported_name(exported_name(principal)) == principal


def test_every_special_character_is_quoted() -> None:
    odd = Principal(("a/b@c\\d", "\0\b\t\n"), "R@/\\")
    assert exported_name(odd) == rb"a\/b\@c\\d/\0\b\t\n@R\@\/\\"


@pytest.mark.parametrize(
    "name", ["jane@EXAMPLE.TEST", "kink/a.example.test@EXAMPLE.TEST", "A$@B", r"a\/b@C"]
)
def test_it_is_the_name_that_gssapi_exports(name: str) -> None:
    imported = gss.import_name(name.encode(), NameType.kerberos_principal)
    exported = gss.export_name(
        gss.canonicalize_name(imported, gss.OID.from_int_seq("1.2.840.113554.1.2.2"))
    )
    assert exported.endswith(exported_name(Principal.parse(name)))


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"jane",
        b"@R",
        b"jane@",
        b"a//b@R",
        b"a@b@R",
        b"a@b/c",
        b"jane\\@R",
        b"a\\xb@R",
        b"jane@R\\",
        b"\xff@R",
        b"a\nb@R",
        b"jane@R\0",
    ],
)
def test_what_names_no_principal_is_refused(octets: bytes) -> None:
    with pytest.raises(PeerError) as refused:
        read_exported_name(octets)
    assert refused.value.reason == "malformed-kerberos"


@given(st.binary(max_size=64))
def test_any_octets_name_a_principal_or_are_refused(octets: bytes) -> None:
    try:
        principal = read_exported_name(octets)
    except PeerError:
        return
    assert read_exported_name(exported_name(principal)) == principal
