"""The realm's document: what is read from it, and what is refused in one line."""

from __future__ import annotations

import pytest

from kinkd.document import Document
from kinkd.errors import DocumentError
from kinkd.model import Action, Principal
from kinkd.policy.model import RealmPolicy, read

HEAD = 'schema = 1\nversion = 7\nrealm = "EXAMPLE.TEST"\n'
HOSTS = """
[hosts.alice]
service = "kink/alice.example.test"
addresses = ["192.0.2.1", "2001:db8::1"]
[hosts.bob]
fqdn = "bob.example.test"
client = "BOB$@AD.TEST"
addresses = "192.0.2.2"
[hosts.carol]
fqdn = "carol.example.test"
addresses = ["192.0.2.3"]
"""


def policy(text: str, head: str = HEAD) -> RealmPolicy:
    return read(Document.parse("p.toml", (head + text).encode()))


def rule(name: str, one: str, other: str, action: str = "require", more: str = "") -> str:
    return f'[[rules]]\nname = "{name}"\nfrom = {one}\nto = {other}\naction = "{action}"\n{more}\n'


def test_hosts_have_principals_with_the_realm_as_default() -> None:
    hosts = policy(HOSTS).hosts
    alice = Principal(("kink", "alice.example.test"), "EXAMPLE.TEST")
    assert (hosts["alice"].service, hosts["alice"].client) == (alice, alice)
    assert hosts["bob"].service == Principal(("kink", "bob.example.test"), "EXAMPLE.TEST")
    assert hosts["bob"].client == Principal(("BOB$",), "AD.TEST")


def test_the_default_profile_is_there_without_being_written() -> None:
    fast = policy(HOSTS + rule("r", '"all"', '"all"')).rules[0].profile
    assert fast is not None
    assert [suite.name for suite in fast.suites] == ["aes256gcm16", "aes128gcm16"]
    assert fast.lifetime.seconds == 3600


@pytest.mark.parametrize(("more", "esn"), [("", False), ("esn = true\n", True)])
def test_a_profile_names_its_suites_and_wants_esn_only_where_it_says_so(
    more: str, esn: bool
) -> None:
    profile = f'[profiles.x]\nsuites = ["null-sha256", "aes128gmac"]\n{more}'
    found = policy(HOSTS + profile + rule("r", '"all"', '"all"', more='profile = "x"'))
    made = found.rules[0].profile
    assert made is not None
    assert [suite.name for suite in made.suites] == ["null-sha256", "aes128gmac"]
    assert made.esn is esn


def test_groups_contain_groups() -> None:
    text = HOSTS + '[groups]\nouter = ["inner", "carol"]\ninner = ["alice"]\n'
    found = policy(text + rule("r", '"outer"', '"bob"')).rules[0]
    assert found.source == {"alice", "carol"}


def test_the_first_rule_that_covers_a_pair_decides_in_both_directions() -> None:
    text = HOSTS + rule("first", '"bob"', '"alice"', "clear") + rule("second", '"all"', '"all"')
    realm = policy(text)
    for pair, name in ((("alice", "bob"), "first"), (("alice", "carol"), "second")):
        for one, other in (pair, pair[::-1]):
            found = realm.rule_between(one, other)
            assert found is not None
            assert found.name == name
    assert realm.rules[0].action is Action.CLEAR


def test_a_rule_that_never_decides_is_warned_of() -> None:
    text = HOSTS + rule("a", '"all"', '"bob"') + rule("b", '"bob"', '["alice", "carol"]')
    assert len(policy(text).warnings) == 1
    assert policy(text).warnings[0].startswith('p.toml:21: rules[1]: rule "b" never decides')
    assert not policy(HOSTS + rule("a", '"all"', '"all"')).warnings
    assert policy(HOSTS + rule("self", '"bob"', '"bob"')).warnings


CARDINAL = '[hosts.dave]\nfqdn = "{}"\naddresses = ["{}"]\n{}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CARDINAL.format("d.test", "192.0.2.1", ""), '192.0.2.1 is host "alice"\'s already'),
        (CARDINAL.format("bob.example.test", "192.0.2.9", ""), 'is host "bob"\'s already'),
        (CARDINAL.format("d.test", "192.0.2.9", 'client = "BOB$@AD.TEST"'), "p.toml:18:"),
        (CARDINAL.format("d.test", "192.0.2.9", 'service = "host/d"'), "is no KINK service"),
        (CARDINAL.format("D.test", "192.0.2.9", ""), "not a domain name in lower case"),
        (CARDINAL.format("d.test", "224.0.0.1", ""), "a multicast address"),
        (CARDINAL.format("d.test", "::", ""), "the unspecified address"),
        (CARDINAL.format("d.test", "127.0.0.2", ""), "a loopback address"),
        (CARDINAL.format("d.test", "fe80::1", ""), "an address of one link"),
        (CARDINAL.format("d.test", "255.255.255.255", ""), "the broadcast address"),
        ("[hosts.all]\n", "is the group of every host"),
        ("[hosts.dave]\naddresses = []\n", "neither service nor fqdn"),
        ('[hosts.dave]\nfqdn = "d.test"\n', "addresses is missing"),
        ('[hosts.dave]\nfqdn = "d.test"\nadress = "1"\n', 'did you mean "addresses"?'),
        ('[groups]\ng = ["alcie"]\n', 'no host or group "alcie"; did you mean "alice"?'),
        ('[groups]\na = ["b"]\nb = ["c"]\nc = ["a"]\n', "the groups contain each other"),
        ('[groups]\ng = ["g"]\n', "the groups contain each other: g contains g"),
        ("[groups]\nall = []\n", "it cannot be set"),
        ("[groups]\nbob = []\n", '"bob" is a host already'),
        ('[profiles.x]\nsuites = ["aes256gcm61"]\n', 'did you mean "aes256gcm16"?'),
        ('[profiles.x]\nsuites = ["3des"]\n', 'it can be "aes256gcm16", "aes128gcm16", "chacha20'),
        ('[profiles.x]\nsuites = ["chacha20"]\n', 'did you mean "chacha20poly1305"?'),
        ("[profiles.x]\nsuites = []\n", "an empty list"),
        ('[profiles.x]\nsuites = "null-sha256"\nesn = 1\n', "1 is neither true nor false"),
        ('[profiles.x]\nsuites = "aes256gcm16"\nlifetime = "29s"\n', "out of range; 30s"),
        (rule("r", '"bbo"', '"all"'), 'did you mean "bob"?'),
        (rule("r", "[]", '"all"'), "an empty list"),
        (rule("r", '"all"', '"all"', "requir"), 'did you mean "require"?'),
        (rule("r", '"all"', '"all"', more='profile = "fats"'), 'did you mean "fast"?'),
        (rule("r", '"all"', '"all"', "clear", 'profile = "fast"'), "clear traffic has no profile"),
        (rule("r", '"all"', '"all"', more='traffic = "tcp/22"'), "is not understood yet"),
        (rule("r", '"all"', '"bob"') + rule("r", '"all"', '"all"'), 'is called "r", too'),
        ("[unknown]\n", "unknown: unknown key"),
    ],
)
@pytest.mark.rfc("4430-4.2.1-2")
def test_what_cannot_be_meant_is_refused_in_one_line_with_its_place(
    text: str, message: str
) -> None:
    with pytest.raises(DocumentError) as caught:
        policy(HOSTS + text)
    line = str(caught.value)
    assert message in line
    assert "\n" not in line
    assert caught.value.line is not None
    assert caught.value.line > 14  # below HEAD and HOSTS, where the fault is


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("schema = 2\nfuture = 1\n", "p.toml:1: schema: schema 2 is not known here; 1 is"),
        ("version = 1\n", "schema is missing"),
        ("schema = 1\nversion = 0\n", "out of range"),
        ("schema = 1\nversion = 1\n", "realm is missing"),
        ('schema = 1\nversion = 1\nrealm = "A@B"\n', "is not a realm"),
    ],
)
def test_the_head_of_the_document_must_be_right(head: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        policy(HOSTS, head)
    assert message in str(caught.value)
