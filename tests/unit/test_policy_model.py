"""The realm's document: what is read from it, and what is refused in one line."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from kinkd.document import Document
from kinkd.errors import DocumentError
from kinkd.keying.algorithms import GROUP_NUMBERS, SUITES
from kinkd.model import Action, Mode, Principal, UserToUser
from kinkd.policy.profiles import protocol_words
from kinkd.policy.reader import read
from kinkd.policy.realm import RealmPolicy
from kinkd.policy.resolve import Options, resolve

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

MANY = [name for name in SUITES if not name.startswith("ah-")][:17]


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


@pytest.mark.rfc("4430-4.2.1-2")
@pytest.mark.parametrize(
    "name",
    ['service = "kink/Dora.example.test"', 'service = "kink/DORA.EXAMPLE.TEST"', 'fqdn = "D.test"'],
)
def test_the_domain_name_of_a_service_is_in_lower_case(name: str) -> None:
    dora = f'[hosts.dora]\n{name}\naddresses = ["192.0.2.9"]\n'
    policy(HOSTS + dora.replace(name, name.lower()))
    with pytest.raises(DocumentError, match="domain name"):
        policy(HOSTS + dora)


@pytest.mark.rfc("4430-4.2.1-2")
def test_principals_are_told_apart_by_case() -> None:
    applied = resolve(policy(HOSTS + rule("r", '"all"', '"all"')), "alice", Options())
    bob = applied.host_by_client(Principal(("BOB$",), "AD.TEST"))
    assert bob is not None
    assert bob.name == "bob"
    for components, realm in (
        (("bob$",), "AD.TEST"),
        (("BOB$",), "ad.test"),
        (("kink", "Carol.example.test"), "EXAMPLE.TEST"),
        (("KINK", "carol.example.test"), "EXAMPLE.TEST"),
    ):
        assert applied.host_by_client(Principal(components, realm)) is None


def test_the_default_profile_is_there_without_being_written() -> None:
    fast = policy(HOSTS + rule("r", '"all"', '"all"')).rules[0].profile
    assert fast is not None
    assert [suite.name for suite in fast.suites] == ["aes256gcm16", "aes128gcm16"]
    assert fast.lifetime.seconds == 3600


@pytest.mark.parametrize(
    ("more", "esn"),
    [
        ("", (False,)),
        ("esn = false\n", (False,)),
        ("esn = true\n", (True,)),
        ('esn = "try"\n', (True, False)),
    ],
)
def test_a_profile_names_its_suites_and_wants_esn_only_where_it_says_so(
    more: str, esn: tuple[bool, ...]
) -> None:
    profile = f'[profiles.x]\nsuites = ["null-sha256", "aes128gmac"]\n{more}'
    found = policy(HOSTS + profile + rule("r", '"all"', '"all"', more='profile = "x"'))
    made = found.rules[0].profile
    assert made is not None
    assert [suite.name for suite in made.suites] == ["null-sha256", "aes128gmac"]
    assert made.esn == esn


@pytest.mark.parametrize(
    ("more", "groups"),
    [
        ("", ["ecp256"]),
        ('group = "none"\n', [None]),
        ('group = "ecp384"\n', ["ecp384"]),
        ('group = ["ecp521", "none"]\n', ["ecp521", None]),
        ('group = ["none", "ecp256", "curve25519"]\n', [None, "ecp256", "curve25519"]),
    ],
)
def test_a_profile_has_its_groups_in_the_order_in_which_they_are_tried(
    more: str, groups: list[str | None]
) -> None:
    found = policy(f'{HOSTS}[profiles.x]\nsuites = "aes256gcm16"\n{more}').profiles["x"]
    assert found.groups == tuple(name and GROUP_NUMBERS[name] for name in groups)


@pytest.mark.parametrize(
    ("suites", "words"),
    [
        ('["aes256gcm16", "null-sha256"]', "ESP"),
        ('["ah-sha512", "ah-sha1"]', "AH"),
        ('["ah-sha256+aes256gcm16", "ah-sha1+aes128-sha1"]', "ESP in AH"),
    ],
)
def test_a_profile_is_of_esp_of_ah_or_of_both(suites: str, words: str) -> None:
    found = policy(f"{HOSTS}[profiles.x]\nsuites = {suites}\n").profiles["x"]
    assert protocol_words(found.protocols) == words


def test_a_rule_is_of_transport_mode_without_udp_unless_it_says_otherwise() -> None:
    plain = rule("plain", '"bob"', '"carol"')
    tunnel = rule("t", '"all"', '"all"', more='mode = "tunnel"\nudp_encapsulation = true')
    rules = policy(HOSTS + plain + tunnel).rules
    assert [(each.mode, each.udp) for each in rules] == [
        (Mode.TRANSPORT, False),
        (Mode.TUNNEL, True),
    ]


GATEWAY = '[hosts.gw]\nfqdn = "gw.test"\naddresses = "192.0.2.9"\nnetworks = {}\n'


def test_networks_lie_behind_their_host_and_may_overlap_those_of_another() -> None:
    text = GATEWAY.format('["10.0.0.0/8", "0.0.0.0/0", "192.0.2.0/24"]')
    text += GATEWAY.replace("gw", "in").replace(".9", ".8").format('"10.1.0.0/16"')
    hosts = policy(HOSTS + text).hosts
    assert [str(network) for network in hosts["gw"].networks] == [
        "10.0.0.0/8",
        "0.0.0.0/0",
        "192.0.2.0/24",
    ]
    assert hosts["in"].networks == (ip_network("10.1.0.0/16"),)
    assert hosts["alice"].networks == ()


def test_a_transport_rule_that_leaves_networks_clear_is_warned_of() -> None:
    gateway = GATEWAY.format('["10.0.0.0/8"]')
    rules = rule("t", '"bob"', '"gw"', more='mode = "tunnel"') + rule("r", '"all"', '"all"')
    (warning,) = policy(HOSTS + gateway + rules).warnings
    assert warning == (
        'p.toml:25: rules[1]: rule "r" leaves the networks behind "gw" clear: transport mode'
        ' protects addresses of hosts alone; write mode = "tunnel"'
    )
    for quiet in (
        rule("t", '"all"', '"all"', more='mode = "tunnel"'),
        rule("c", '"gw"', '"all"', "clear") + rule("r", '"all"', '"all"'),
        rule("r", '"bob"', '"carol"'),
    ):
        assert policy(HOSTS + gateway + quiet).warnings == ()


def test_groups_contain_groups() -> None:
    text = HOSTS + '[groups]\nouter = ["inner", "carol"]\ninner = ["alice"]\n'
    found = policy(text + rule("r", '"outer"', '"bob"')).rules[0]
    assert found.source == {"alice", "carol"}


def test_the_first_rule_that_covers_a_pair_decides_in_both_directions() -> None:
    text = HOSTS + rule("first", '"bob"', '"alice"', "clear") + rule("second", '"all"', '"all"')
    realm = policy(text)
    for pair, name, action in (
        (("alice", "bob"), "first", Action.CLEAR),
        (("alice", "carol"), "second", Action.REQUIRE),
    ):
        for one, other in (pair, pair[::-1]):
            (term,) = realm.terms(one, other)
            assert term.rule is not None
            assert (term.rule.name, term.action) == (name, action)
            found = realm.protecting_rule(one, other)
            assert (found and found.name) == (name if action is Action.REQUIRE else None)
            assert realm.may_initiate(one, other) == (action is Action.REQUIRE)


def test_a_rule_that_never_decides_is_warned_of() -> None:
    text = HOSTS + rule("a", '"all"', '"bob"') + rule("b", '"bob"', '["alice", "carol"]')
    assert len(policy(text).warnings) == 1
    assert policy(text).warnings[0].startswith('p.toml:21: rules[1]: rule "b" never decides')
    assert not policy(HOSTS + rule("a", '"all"', '"all"')).warnings
    assert policy(HOSTS + rule("self", '"bob"', '"bob"')).warnings


PERSON = '[hosts.dave]\nuser = "{}"\naddresses = ["192.0.2.9"]\n{}\n'
CARDINAL = '[hosts.dave]\nfqdn = "{}"\naddresses = ["{}"]\n{}\n'


def test_a_person_is_a_host_that_is_keyed_user_to_user() -> None:
    for written, realm in (("jane", "EXAMPLE.TEST"), ("jane@AD.TEST", "AD.TEST")):
        found = policy(HOSTS + PERSON.format(written, ""))
        dave, jane = found.hosts["dave"], Principal(("jane",), realm)
        assert (dave.service, dave.client, dave.user_to_user) == (jane, jane, UserToUser.ALWAYS)
        assert found.fqdns["dave"] == ""
    named = policy(HOSTS + PERSON.format("jane", 'fqdn = "laptop.example.test"'))
    assert named.fqdns["dave"] == "laptop.example.test"


def test_a_host_gives_no_tgt_out_unless_it_says_so() -> None:
    hosts = policy(HOSTS + CARDINAL.format("d.test", "192.0.2.9", 'user_to_user = "allowed"')).hosts
    assert hosts["dave"].user_to_user is UserToUser.ALLOWED
    assert all(hosts[name].user_to_user is UserToUser.NEVER for name in ("alice", "bob", "carol"))


def test_an_sa_may_outlive_its_ticket_by_ten_minutes_or_what_the_profile_says() -> None:
    written = '[profiles.x]\nsuites = ["aes256gcm16"]\nticket_grace = "{}"\n'
    assert policy(HOSTS).profiles["standard"].ticket_grace == 600
    assert (
        policy(HOSTS + written.replace('ticket_grace = "{}"', "")).profiles["x"].ticket_grace == 600
    )
    for text, seconds in (("0s", 0), ("90s", 90), ("24h", 86400)):
        assert policy(HOSTS + written.format(text)).profiles["x"].ticket_grace == seconds


def test_a_principal_of_another_realm_is_another_principal() -> None:
    away = CARDINAL.format("d.test", "192.0.2.9", "").replace(
        'fqdn = "d.test"', 'service = "kink/carol.example.test@OTHER.TEST"'
    )
    applied = resolve(policy(HOSTS + away + rule("r", '"all"', '"all"')), "alice", Options())
    for realm, name in (("OTHER.TEST", "dave"), ("EXAMPLE.TEST", "carol"), ("THIRD.TEST", None)):
        host = applied.host_by_client(Principal(("kink", "carol.example.test"), realm))
        assert (host and host.name) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CARDINAL.format("d.test", "192.0.2.1", ""), '192.0.2.1 is host "alice"\'s already'),
        (CARDINAL.format("bob.example.test", "192.0.2.9", ""), 'is host "bob"\'s already'),
        (CARDINAL.format("d.test", "192.0.2.9", 'client = "BOB$@AD.TEST"'), "p.toml:18:"),
        (CARDINAL.format("d.test", "192.0.2.9", 'service = "host/d"'), "is no KINK service"),
        (CARDINAL.format("D.test", "192.0.2.9", ""), "not a domain name in lower case"),
        (CARDINAL.format("d.test", "224.0.0.1", ""), "224.0.0.1 is multicast"),
        (CARDINAL.format("d.test", "::", ""), "the unspecified address"),
        (CARDINAL.format("d.test", "127.0.0.2", ""), "127.0.0.2 is loopback"),
        (CARDINAL.format("d.test", "fe80::1", ""), "fe80::1 is of one link"),
        (CARDINAL.format("d.test", "255.255.255.255", ""), "the broadcast address"),
        ("[hosts.all]\n", "is the group of every host"),
        ("[hosts.dave]\naddresses = []\n", "no service, fqdn or user"),
        ('[hosts.dave]\nfqdn = "d.test"\n', "addresses is missing"),
        (
            PERSON.format("jane", 'client = "joan"'),
            'user says all: a ticket-granting ticket of "jane"',
        ),
        (PERSON.format("jane", 'service = "kink/d.test"'), "leave service out, or user"),
        (PERSON.format("jane", 'user_to_user = "never"'), "leave user_to_user out, or user"),
        (PERSON.format("jane@", ""), '"jane@" is not a principal'),
        (
            PERSON.format("BOB$@AD.TEST", ""),
            'p.toml:16: hosts.dave.user: BOB$@AD.TEST is host "bob"',
        ),
        (CARDINAL.format("d.test", "192.0.2.9", 'user_to_user = "maybe"'), "never"),
        ('[profiles.x]\nsuites = ["aes256gcm16"]\nticket_grace = "2d"\n', "ticket_grace"),
        ('[profiles.x]\nsuites = ["aes256gcm16"]\nticket_grace = 5\n', "ticket_grace"),
        ('[hosts.dave]\nfqdn = "d.test"\nadress = "1"\n', 'did you mean "addresses"?'),
        ('[groups]\ng = ["alcie"]\n', 'no host, group or network "alcie"; did you mean "alice"?'),
        ('[groups]\na = ["b"]\nb = ["c"]\nc = ["a"]\n', "the groups contain each other"),
        ('[groups]\ng = ["g"]\n', "the groups contain each other: g contains g"),
        ("[groups]\nall = []\n", '"all" is the group of every host; take another name'),
        ("[groups]\nbob = []\n", '"bob" is a host already'),
        ('[profiles.x]\nsuites = ["aes256gcm61"]\n', 'did you mean "aes256gcm16"?'),
        ('[profiles.x]\nsuites = ["3des"]\n', 'it can be "aes256gcm16", "aes128gcm16", "chacha20'),
        ('[profiles.x]\nsuites = ["chacha20"]\n', 'did you mean "chacha20poly1305"?'),
        ("[profiles.x]\nsuites = []\n", "an empty list"),
        (
            '[profiles.x]\nsuites = "null-sha256"\nesn = 1\n',
            '1 is neither true, nor false, nor "try"',
        ),
        ('[profiles.x]\nsuites = "aes256gcm16"\nesn = "tyr"\n', 'nor "try"'),
        ('[profiles.x]\nsuites = ["ah-sha256+aes256gcm61"]\n', '"ah-sha256+aes256gcm16"?'),
        (
            '[profiles.x]\nsuites = ["aes256gcm16",\n"ah-sha256"]\n',
            'p.toml:17: profiles.x.suites[1]: "ah-sha256" is AH, but "aes256gcm16" ESP; a profile',
        ),
        (
            '[profiles.x]\nsuites = ["ah-sha1+null-sha256", "aes128gcm16"]\n',
            '"aes128gcm16" is ESP, but "ah-sha1+null-sha256" ESP in AH',
        ),
        ('[profiles.x]\nsuites = ["aes256gcm16", "aes256gcm16"]\n', "stands here twice"),
        (f"[profiles.x]\nsuites = {MANY}\n", "17 suites; 16 at most are offered to a peer"),
        ('[profiles.x]\nsuites = "aes256gcm16"\ngroup = []\n', "an empty list"),
        (
            '[profiles.x]\nsuites = "aes256gcm16"\ngroup = ["none", "ecp255"]\n',
            'p.toml:17: profiles.x.group[1]: "ecp255" is unknown; did you mean "ecp256"?',
        ),
        (
            '[profiles.x]\nsuites = "aes256gcm16"\ngroup = ["none", "none"]\n',
            '"none" stands here twice',
        ),
        (GATEWAY.format('["10.1.0.0/16", "10.1.2.0/16"]'), 'write "10.1.0.0/16"'),
        (GATEWAY.format('["10.1.0.0/16", "10.1.0.0/16"]'), '"10.1.0.0/16" stands here twice'),
        (GATEWAY.format('"127.0.0.0/8"'), "127.0.0.0/8 is loopback; write a network of hosts"),
        (GATEWAY.format('"233.0.0.0/8"'), "233.0.0.0/8 is multicast"),
        (GATEWAY.format('"fe80::/64"'), "fe80::/64 is of one link"),
        (GATEWAY.format('"255.255.255.255/32"'), "is the broadcast address"),
        (GATEWAY.format("[]"), "an empty list"),
        (GATEWAY.format('"192.0.2.2/32"'), '192.0.2.2 is host "bob"\'s already'),
        (
            GATEWAY.format('"10.1.0.0/16"')
            + GATEWAY.replace("gw", "in").replace(".9", ".8").format('["10.1.0.0/16"]'),
            'p.toml:22: hosts.in.networks[0]: 10.1.0.0/16 is host "gw"\'s already; a network',
        ),
        (
            '[hosts.six]\nfqdn = "6.test"\naddresses = "2001:db8::6"\nnetworks = "10.1.0.0/16"\n'
            + rule("r", '"all"', '"all"', more='mode = "tunnel"'),
            'p.toml:19: rules[0]: no tunnel between hosts "six" and "bob": they have no addresses',
        ),
        (rule("r", '"all"', '"all"', more='mode = "tunel"'), 'did you mean "tunnel"?'),
        (rule("r", '"all"', '"all"', "clear", 'mode = "tunnel"'), "is not protected has no mode"),
        (rule("r", '"all"', '"all"', "clear", "udp_encapsulation = false"), "has no udp_encaps"),
        (rule("r", '"all"', '"all"', more="udp_encapsulation = 1"), "1 is neither true nor"),
        (
            '[profiles.x]\nsuites = "ah-sha1+aes128-sha1"\n'
            + rule("r", '"all"', '"all"', more='profile = "x"\nudp_encapsulation = true'),
            "p.toml:23: rules[0].udp_encapsulation: UDP carries ESP alone (RFC 3948), and profile"
            ' "x" is ESP in AH',
        ),
        ('[profiles.x]\nsuites = "aes256gcm16"\nlifetime = "29s"\n', "out of range; 30s"),
        (rule("r", '"bbo"', '"all"'), 'did you mean "bob"?'),
        (rule("r", "[]", '"all"'), "an empty list"),
        (rule("r", '"all"', '"all"', "requir"), 'did you mean "require"?'),
        (rule("r", '"all"', '"all"', more='profile = "fats"'), 'did you mean "fast"?'),
        (
            rule("r", '"all"', '"all"', "clear", 'profile = "fast"'),
            "is not protected has no profile",
        ),
        (rule("r", '"all"', '"all"', more='traffic = "tpc/22"'), 'did you mean "tcp"'),
        (rule("r", '"all"', '"bob"') + rule("r", '"all"', '"all"'), 'is called "r", too'),
        ("[unknown]\n", "unknown: unknown key"),
    ],
)
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


def test_the_example_is_good_and_gives_no_warning() -> None:
    path = Path(__file__).resolve().parents[2] / "conf" / "policy.toml"
    found = read(Document.parse(str(path), path.read_bytes()))
    assert found.warnings == ()
    assert {rule.action for rule in found.rules} == set(Action)
    for name in found.hosts:
        assert resolve(found, name, Options()).entries
