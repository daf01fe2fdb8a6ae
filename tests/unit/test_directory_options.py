"""The ``[directory]`` table of the configuration."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kinkd.document import Document
from kinkd.errors import DocumentError
from kinkd.model import Principal
from kinkd.policy import directory
from kinkd.policy.directory.names import common_base, is_within, own_value, parse
from kinkd.policy.directory.options import DirectoryOptions, Server, options
from kinkd.policy.directory.session import search_filter

BASE = "cn=kinkd,dc=example,dc=test"
GOOD = f'uri = "ldap://ds.example.test"\nbase = "{BASE}"\n'


def read(text: str) -> DirectoryOptions:
    return options(Document.parse("kinkd.toml", text.encode()).root)


def test_where_it_is_suffices() -> None:
    found = read(GOOD)
    assert found == DirectoryOptions((Server("ds.example.test", 389),), BASE)
    assert "ipaHost" not in search_filter(found)
    assert "(objectClass=kinkdPolicy)" in search_filter(found)


def test_everything_can_be_said() -> None:
    found = read(
        f"""
        uri = ["ldap://a.example.test", "ldap://[2001:db8::1]:3890/"]
        base = "{BASE}"
        server = "ldap/ds.example.test@EXAMPLE.TEST"
        client = "ALICE$"
        hosts = "cn=computers,dc=example,dc=test"
        host_class = "device"
        host_filter = "(memberOf=cn=kink,dc=example,dc=test)"
        groups = "cn=groups,dc=example,dc=test"
        group_class = "groupOfNames"
        attributes = {{ fqdn = "dNSHostName", principal = "p", address = "ip", member = "m" }}
        """
    )
    assert [str(server) for server in found.servers] == [
        "ldap://a.example.test",
        "ldap://[2001:db8::1]:3890",
    ]
    assert found.expected == Principal(("ldap", "ds.example.test"), "EXAMPLE.TEST")
    assert (found.client, found.fqdn, found.member) == ("ALICE$", "dNSHostName", "m")
    assert (
        "(&(objectClass=device)(memberOf=cn=kink,dc=example,dc=test))(objectClass=groupOfNames)"
    ) in search_filter(found)
    assert common_base(found.bases) == "dc=example,dc=test"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "uri is missing"),
        ('uri = "ldap://a"', "base is missing"),
        (GOOD.replace("ldap:", "http:"), "is not a server"),
        (GOOD.replace("ds.example.test", ""), "is not a server"),
        (GOOD.replace("ds.example.test", "ds:x"), "is not a server"),
        (GOOD.replace("ds.example.test", "ds/dc=test"), "is not a server"),
        (GOOD.replace("ds.example.test", "me@ds"), "is not a server"),
        (GOOD.replace("ds.example.test", "ds?cn"), "is not a server"),
        (GOOD.replace("ldap:", "ldaps:"), 'write "ldap://ds.example.test"'),
        (GOOD.replace("cn=kinkd", "kinkd"), "is not a distinguished name"),
        (GOOD + 'server = "host/a@B"', "is not the principal of a directory server"),
        (GOOD + 'server = "ldap/a"', "is not the principal of a directory server"),
        (GOOD + 'host_class = "a)(b"', "not the name of an attribute"),
        (GOOD + 'attributes = { fqdn = "a*" }', "not the name of an attribute"),
        (GOOD + 'host_filter = "a=b"', "is not a filter"),
        (GOOD + 'hosts = "dc=other"', "no suffix in common"),
        (GOOD + 'colour = "red"', "unknown key"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(DocumentError, match=said):
        read(text)


def test_who_has_no_directory_needs_no_library() -> None:
    script = """
import sys
sys.modules["ldap"] = None
from kinkd.document import Document
from kinkd.errors import DocumentError
from kinkd.policy import directory
import kinkd.app.config, kinkd.cli.kinkctl, kinkd.cli.policy_ldif
try:
    directory.read_options(Document.parse("kinkd.toml", b"uri = 1").root)
except DocumentError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "kinkd.toml: module ldap is missing: install kinkd[ldap]\n"


def test_the_package_reads_options_and_makes_a_source() -> None:
    found = directory.read_options(Document.parse("kinkd.toml", GOOD.encode()).root)
    assert found == read(GOOD)
    source = directory.make_source(found, lambda: pytest.fail("nobody asked"))
    assert source.name == f"ldap://ds.example.test {BASE}"
    assert source.state()["reachable"] is False


def test_names_are_compared_as_a_directory_does() -> None:
    assert parse("CN=Alice  B, OU=Hosts,dc=test") == parse("cn=alice b,ou=hosts,DC=TEST")
    assert parse("cn=a+ou=b,dc=test") == parse("ou=b+cn=a,dc=test")
    assert parse(r"cn=a\2cb,dc=test") == parse(r"cn=a\,b,dc=test") != parse("cn=a,cn=b,dc=test")
    assert is_within(parse("cn=a,dc=b,dc=c"), parse("dc=b,dc=c"))
    assert not is_within(parse("cn=a,dc=xb,dc=c"), parse("dc=b,dc=c"))
    assert not is_within(parse("dc=c"), parse("dc=b,dc=c"))


def test_an_entry_is_called_what_its_name_says() -> None:
    assert own_value(r"cn=a\, b,dc=test") == "a, b"
    assert own_value("fqdn=web.example.test,dc=test") == "web.example.test"
    assert own_value("ipHostNumber=192.0.2.1+cn=web,dc=test") == "web"
