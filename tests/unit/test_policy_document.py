"""The realm's document: groups and patterns, places, servers, its own tests, faults, warnings."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

import pytest

from kinkd.document import MAXIMUM_OCTETS, Document
from kinkd.errors import DocumentError
from kinkd.model import Action
from kinkd.policy import sources
from kinkd.policy.reader import read
from kinkd.policy.realm import Packet, RealmPolicy
from tests.unit.test_policy_model import HEAD, HOSTS, policy, rule

PRINTERS = (
    '[networks.printers]\nprefixes = ["198.51.100.0/24", "192.0.2.128/25", "2001:db8:f::9"]\n'
)
WEB = "".join(
    f'[hosts.{name}]\nfqdn = "{name.lower()}.{domain}"\naddresses = "192.0.2.{number}"\n'
    for number, (name, domain) in enumerate(
        (("web1", "x.test"), ("web2", "y.test"), ("Web3", "x.test"), ("db", "web.test")), 11
    )
)


def expect(one: str, other: str, expected: str, more: str = "") -> str:
    return f'[[tests]]\nfrom = {one}\nto = {other}\nexpect = "{expected}"\n{more}\n'


def refusal(text: str) -> str:
    with pytest.raises(DocumentError) as caught:
        policy(HOSTS + text)
    line = str(caught.value)
    assert "\n" not in line
    return line


def action(realm: RealmPolicy, one: str, other: str, *what: int) -> str:
    return realm.decide(Packet(ip_address(one), ip_address(other), *(what or (6,)))).action.value


# --- groups and patterns -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("web*", {"web1", "web2", "Web3"}),  # by its domain name, which is in lower case
        ("*web.*", {"db"}),
        ("web[!1]", {"web2"}),
        ("[Ww]eb[13]", {"web1", "Web3"}),
        ("*.x.test", {"web1", "Web3"}),
        ("*", {"alice", "bob", "carol", "web1", "web2", "Web3", "db"}),
        ("Web*", {"Web3"}),
        ("db.*.test", {"db"}),
    ],
)
def test_a_pattern_is_of_names_or_domain_names_of_hosts(pattern: str, names: set[str]) -> None:
    text = HOSTS + WEB + PRINTERS + f'[groups]\ng = ["{pattern}"]\n'
    found = policy(text + rule("direct", f'"{pattern}"', '"bob"') + rule("r", '"g"', '"bob"'))
    assert found.groups["g"] == found.rules[0].source == found.rules[1].source == names


def test_groups_take_in_groups_hosts_places_patterns_and_the_world() -> None:
    text = '[groups]\nouter = ["inner", "printers"]\ninner = ["w*", "world", "inmost"]\n'
    text += 'inmost = ["all"]\nnobody = []\n'
    groups = policy(HOSTS + PRINTERS + text).groups
    hosts = {"alice", "bob", "carol"}
    assert groups["all"] == groups["inmost"] == hosts
    assert groups["inner"] == {*hosts, "world"}
    assert groups["outer"] == {*hosts, "world", "printers"}
    assert groups["nobody"] == set()


def test_the_world_has_a_name_that_is_no_pattern() -> None:
    (found,) = policy(HOSTS + rule("r", '"w*"', '"*"', "clear")).rules
    assert found.source == set()


def test_groups_may_be_nested_deeper_than_the_stack() -> None:
    depth = 3000
    chain = "".join(f'g{number} = ["g{number + 1}"]\n' for number in range(depth))
    found = policy(f'{HOSTS}[groups]\n{chain}g{depth} = ["bob"]\n')
    assert found.groups["g0"] == {"bob"}
    line = refusal(f'[groups]\n{chain}g{depth} = ["g7"]\n')
    assert f"p.toml:{16 + depth}: groups.g{depth}[0]: the groups contain each other: g7" in line
    assert len(line) < 200


def test_a_pattern_that_matches_nobody_is_warned_of() -> None:
    text = HOSTS + '[groups]\ng = ["wbe*", "bob"]\n' + rule("r", '"g"', '"x?"')
    warnings = policy(text).warnings
    assert warnings[:2] == (
        'p.toml:16: groups.g[0]: no host\'s name or domain name is like "wbe*"',
        'p.toml:20: rules[0].to: no host\'s name or domain name is like "x?"',
    )
    assert warnings[2].startswith('p.toml:17: rules[0]: rule "r" never decides')


# --- whose an address is -----------------------------------------------------------------------


def test_the_longest_prefix_says_whose_an_address_is() -> None:
    gateway = '[hosts.gw]\nfqdn = "gw.test"\naddresses = "192.0.2.129"\nnetworks = {}\n'
    realm = policy(HOSTS + gateway.format('["192.0.2.0/24", "192.0.2.192/26"]') + PRINTERS)
    for address, owner in {
        "192.0.2.1": ("alice", False),
        "2001:db8::1": ("alice", False),
        "192.0.2.129": ("gw", False),
        "192.0.2.130": ("printers", False),
        "192.0.2.4": ("gw", True),
        "192.0.2.200": ("gw", True),
        "198.51.100.255": ("printers", False),
        "198.51.101.0": ("world", False),
        "2001:db8:f::9": ("printers", False),
        "2001:db8:f::a": ("world", False),
        "169.254.0.1": ("", False),
        "ff02::1": ("", False),
    }.items():
        assert realm.owner(ip_address(address)) == owner


def test_nobody_in_a_place_can_be_keyed() -> None:
    for mode, (require, request) in {
        "transport": ("require", "clear"),
        "tunnel": ("block", "clear"),
    }.items():
        rules = rule("q", '"bob"', '"printers"', "request", f'mode = "{mode}"')
        rules += rule("r", '"all"', '["printers", "world"]', more=f'mode = "{mode}"')
        realm = policy(HOSTS + PRINTERS + rules)
        assert action(realm, "192.0.2.2", "198.51.100.1") == request
        for far in ("198.51.100.1", "203.0.113.1"):
            assert action(realm, "192.0.2.1", far) == action(realm, far, "192.0.2.1") == require
        for name in ("printers", "world"):
            assert not realm.may_initiate("alice", name)
            assert not realm.may_initiate(name, "alice")
    assert action(realm, "192.0.2.1", "192.0.2.2") == "clear"


def test_inside_a_place_or_a_host_nothing_is_said() -> None:
    realm = policy(HOSTS + PRINTERS + rule("r", '["all", "printers"]', '["all", "printers"]'))
    assert action(realm, "198.51.100.1", "198.51.100.2") == "clear"
    assert action(realm, "192.0.2.1", "192.0.2.1") == "clear"
    assert action(realm, "192.0.2.1", "192.0.2.2") == "require"


# --- what a rule says --------------------------------------------------------------------------


def test_answers_go_by_the_port_of_who_answers_and_have_an_action_of_their_own() -> None:
    ports = 'traffic = ["tcp/443", "udp/53 from 1024-65535"]\nback = "clear"'
    realm = policy(HOSTS + rule("r", '"alice"', '"bob"', "require", ports))
    alice, bob = "192.0.2.1", "192.0.2.2"
    for one, other, packet, want in (
        (alice, bob, (6, 40000, 443), "require"),
        (bob, alice, (6, 443, 40000), "clear"),
        (alice, bob, (6, 443, 40000), "clear"),
        (bob, alice, (6, 40000, 443), "clear"),
        (alice, bob, (17, 1024, 53), "require"),
        (alice, bob, (17, 1023, 53), "clear"),
        (alice, bob, (17, 40000, 443), "clear"),
    ):
        assert action(realm, one, other, *packet) == want
    by = realm.decide(Packet(ip_address(bob), ip_address(alice), 6, 443, 40000))
    assert (by.term.rule and by.term.rule.name, by.term.asks) == ("r", False)
    none = realm.decide(Packet(ip_address(bob), ip_address(alice), 6, 40000, 443))
    assert none.term.rule is None
    assert realm.may_initiate("alice", "bob")
    assert not realm.may_initiate("bob", "alice")


def test_whoever_is_disabled_is_never_keyed_and_blocked_where_he_was_protected() -> None:
    disabled = HOSTS.replace("[hosts.bob]\n", "[hosts.bob]\ndisabled = true\n")
    rules = rule("ping", '"all"', '"all"', "clear", 'traffic = "icmp"')
    rules += rule("q", '"carol"', '"bob"', "request") + rule("r", '"all"', '"all"')
    realm = policy(disabled + rules)
    for one in ("192.0.2.1", "192.0.2.3"):
        assert action(realm, one, "192.0.2.2") == action(realm, "192.0.2.2", one) == "block"
        assert action(realm, one, "192.0.2.2", 1) == "clear"
    assert action(realm, "192.0.2.1", "192.0.2.3") == "require"
    assert not realm.may_initiate("alice", "bob")
    assert not realm.may_initiate("bob", "alice")
    assert realm.protecting_rule("alice", "bob") is None


def test_what_was_clear_with_others_stays_clear_with_whoever_is_disabled() -> None:
    disabled = HOSTS.replace("[hosts.bob]\n", "[hosts.bob]\ndisabled = true\n")
    printing = rule("q", '"all"', '"printers"', "request")
    realm = policy(disabled + PRINTERS + printing)
    for host in ("192.0.2.1", "192.0.2.2"):
        assert action(realm, host, "198.51.100.1") == "clear"


def test_audit_of_a_rule_or_of_a_host_is_told_with_what_would_be_done() -> None:
    text = HOSTS.replace("[hosts.bob]\n", "[hosts.bob]\naudit = true\n")
    rules = rule("a", '"alice"', '"carol"', "block", "audit = true") + rule("r", '"bob"', '"carol"')
    realm = policy(text + rules)
    for one, other, want in (
        ("192.0.2.1", "192.0.2.3", (Action.BLOCK, True)),
        ("192.0.2.2", "192.0.2.3", (Action.REQUIRE, True)),
        ("192.0.2.1", "192.0.2.2", (Action.CLEAR, False)),  # no rule: nothing to try out
    ):
        decision = realm.decide(Packet(ip_address(one), ip_address(other), 6))
        assert (decision.action, decision.term.audit) == want


# --- the document's own tests ------------------------------------------------------------------

RULES = rule("ssh", '"all"', '"bob"', "clear", 'traffic = "tcp/22 from 1024-65535"') + rule(
    "r", '"all"', '"all"', "require"
)


def test_a_document_whose_tests_hold_is_taken() -> None:
    tests = expect('"alice"', '"bob"', "clear", 'traffic = "tcp/22 from 1024-65535"')
    tests += expect('"all"', '"all"', "require", 'traffic = "udp"')
    tests += expect('"bob"', '["alice", "c*"]', "require", 'traffic = "tcp/22"')
    tests += expect('"world"', '"all"', "clear")
    assert len(policy(HOSTS + RULES + tests).tests) == 4


@pytest.mark.parametrize(
    ("test", "fault"),
    [
        (
            expect('"alice"', '"carol"', "clear"),
            'alice -> carol any: clear is expected, but it is require, by rule "r" (p.toml:21)',
        ),
        (  # of some of the traffic it does not hold
            expect('"alice"', '"bob"', "require", 'traffic = "tcp/20-25"'),
            "alice -> bob tcp/20-25: require is expected, but it is clear, by rule"
            ' "ssh" (p.toml:15)',
        ),
        (
            expect('"alice"', '"bob"', "require"),
            'require is expected, but it is clear, by rule "ssh" (p.toml:15)',
        ),
        (
            expect('"all"', '"world"', "block", 'traffic = "tcp/443"'),
            "-> world tcp/443: block is expected, but it is clear: no rule matches",
        ),
        (
            expect(
                '"alice"', '"bob"', "clear", 'traffic = "tcp/22 from 1024-65535"\nback = "block"'
            ),
            "alice -> bob tcp/22 from 1024-65535, the answers: block is expected, but it is clear",
        ),
        (  # one host of a group for which it does not hold
            expect('"all"', '["bob", "carol"]', "require", 'traffic = "tcp/22"'),
            '-> bob tcp/22: require is expected, but it is clear, by rule "ssh" (p.toml:15)',
        ),
        (expect('"alice"', '"bbo"', "clear"), 'did you mean "bob"?'),
        (expect('"alice"', '"bob"', "claer"), 'tests[0].expect: "claer" is unknown; did you mean'),
        (expect('"alice"', '"bob"', "clear", "traffic = 22"), "22 is not a string"),
        (expect('"alice"', '"bob"', "clear", 'action = "clear"'), "action: unknown key"),
        ('[[tests]]\nfrom = "alice"\nto = "bob"\n', "expect is missing"),
    ],
)
def test_a_document_whose_tests_fail_is_refused(test: str, fault: str) -> None:
    line = refusal(RULES + test)
    assert fault in line
    number = re.match(r"p\.toml:(\d+): tests\[0\]", line)
    assert number is not None
    assert int(number[1]) > (HEAD + HOSTS + RULES).count("\n")


def test_the_tests_hold_while_a_host_is_disabled() -> None:
    tests = expect('"all"', '"all"', "require", 'traffic = "udp"')
    disabled = HOSTS.replace("[hosts.bob]\n", "[hosts.bob]\ndisabled = true\n")
    policy(disabled + RULES + tests)
    policy(disabled + RULES + expect('"alice"', '"bob"', "block", 'traffic = "udp"'))
    line = refusal(RULES + expect('"alice"', '"bob"', "block", 'traffic = "udp"'))
    assert "block is expected, but it is require" in line
    with pytest.raises(DocumentError, match="require is expected, but it is clear"):
        policy(disabled + RULES + expect('"alice"', '"bob"', "require", 'traffic = "tcp/22"'))


# --- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[networks.bob]\nprefixes = "10.0.0.0/8"\n', 'networks.bob: "bob" is a host already'),
        ('[networks.world]\nprefixes = "10.0.0.0/8"\n', '"world" is whoever has an address that'),
        ("[networks.x]\n", "prefixes is missing"),
        ("[networks.x]\nprefixes = []\n", "networks.x.prefixes: an empty list"),
        ('[networks.x]\nprefixes = "192.0.2.2"\n', '192.0.2.2 is host "bob"\'s already; a prefix'),
        ('[networks.x]\nprefixes = "127.0.0.0/8"\n', "127.0.0.0/8 is loopback"),
        ('[networks.x]\nprefixes = "10.0.0.1/8"\n', 'write "10.0.0.0/8"'),
        (
            PRINTERS + '[networks.x]\nprefixes = ["10.0.0.0/8",\n"198.51.100.0/24"]\n',
            'p.toml:19: networks.x.prefixes[1]: 198.51.100.0/24 is network "printers"\'s already',
        ),
        (PRINTERS + "[groups]\nprinters = []\n", '"printers" is a network already; a group needs'),
        ("[groups]\nworld = []\n", 'groups.world: "world" is whoever has an address that'),
        ("[groups]\n'a b' = []\n", "a name is of letters, digits"),
        ("[groups]\ng = ['web*/']\n", '"web*/" is no pattern of names; write like web*'),
        ("[groups]\ng = 1\n", "groups.g: 1 is not a list"),
        ("[groups]\ng = [['bob']]\n", "groups.g[0]: a list is not a string"),
        ("[servers]\nkcd = ['bob']\n", 'servers.kcd: unknown key; did you mean "kdc"?'),
        ("[servers]\nkdc = ['bbo']\n", 'servers.kdc[0]: "bbo" is neither a host here nor an addr'),
        ("[servers]\nkdc = ['192.0.2']\n", '"192.0.2" is not an IP address'),
        ("[servers]\nkdc = ['127.0.0.1']\n", "127.0.0.1 is loopback"),
        (rule("r", '"all"', '"all"', "request", "audit = 1"), "rules[0].audit: 1 is neither true"),
        (rule("r", '"all"', '"all"', "block", 'profile = "fast"'), "is not protected has no profi"),
        (rule("r", '"all"', '"all"', more='back = "requir"'), 'rules[0].back: "requir" is unknown'),
        (rule("r", '"all"', '"all"', more="traffic = []"), "rules[0].traffic: an empty list"),
        (rule("r", '"all"', '"all"', more='traffic = ["tcp/80",\n"tcp/808-80"]'), "p.toml:21: "),
        (rule("r", '"all"', '"all"', more='traffic = "any/80"'), "has no ports; name one"),
        (rule("r", '"all"', '"all"', more='traffic = ["tcp", "tcp"]'), "stands here twice"),
        ("[hosts.x]\nfqdn = 'x.test'\naddresses = '192.0.2.9'\ndisabled = 'no'\n", '"no" is neith'),
        ("[[hosts.x]]\n", "hosts.x: a list is not a table"),
        ("rules = 1\n", "rules"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line_with_its_place(
    text: str, message: str
) -> None:
    line = refusal(text)
    assert message in line
    assert line.startswith("p.toml:")


TCP = 'traffic = "tcp"\n'


@pytest.mark.parametrize(
    ("first", "second", "kinds"),
    [
        ('profile = "fast"', "", '"standard" in transport mode.* profile "fast" in transport'),
        ("", 'mode = "tunnel"', '"standard" in tunnel mode.* profile "standard" in transport'),
        (
            "udp_encapsulation = true",
            "",
            '"standard" in transport mode .*"standard" in transport mode, in UDP:',
        ),
    ],
)
def test_two_kinds_of_sa_between_the_same_two_hosts_are_refused(
    first: str, second: str, kinds: str
) -> None:
    one = rule("one", '"alice"', '"bob"', more=TCP + first)
    line = refusal(one + rule("two", '"all"', '"all"', more=second))
    assert re.search(rf'p\.toml:\d+: rules\[1\]: rule "two" wants profile {kinds}', line)
    assert "(p.toml:15)" in line
    assert "between alice and bob" in line or "between bob and alice" in line
    # No pair of hosts has both, or one of the two protects nothing there.
    policy(HOSTS + one + rule("two", '"all"', '"carol"', more=second))
    policy(
        HOSTS
        + one
        + rule("c", '"bob"', '"alice"', "clear")
        + rule("t", '"all"', '"all"', more=second)
    )
    policy(HOSTS + one + rule("two", '"all"', '"world"', more=second))
    policy(HOSTS + one.replace(TCP, "") + rule("two", '"all"', '"all"', more=second))


@pytest.mark.parametrize("octets", [b"\xff", b'\n\nrealm = "\xc3\x28"\n', b"# \xed\xa0\x80\n"])
def test_what_is_not_utf_8_is_refused_with_its_line(octets: bytes) -> None:
    with pytest.raises(DocumentError, match=r"^p\.toml:\d+: not UTF-8") as caught:
        read(Document.parse("p.toml", HEAD.encode() + octets + HOSTS.encode()))
    assert caught.value.line == HEAD.count("\n") + 1 + octets[:5].count(b"\n")


def test_a_document_of_100_mb_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    with path.open("wb") as file:
        file.write((HEAD + HOSTS).encode())
        file.truncate(100 << 20)
    path.chmod(0o600)
    with pytest.raises(DocumentError, match="larger than 16 MiB"):
        sources.load(str(path))
    assert MAXIMUM_OCTETS == 16 << 20


# --- warnings ----------------------------------------------------------------------------------


def test_what_passes_in_clear_from_a_port_is_warned_of_where_something_later_is_strict() -> None:
    web = rule("web", '"alice"', '"bob"', "clear", 'traffic = "tcp/443"')
    strict = rule("r", '"all"', '"all"')
    (warning,) = policy(HOSTS + web + strict).warnings
    assert warning == (
        'p.toml:15: rules[0]: rule "web" lets pass in clear all that is sent from port tcp/443, to'
        ' any service; write traffic = "tcp/443 from 32768-65535" if that is where those who ask'
        " have their ports"
    )
    for last in ("request", "block"):
        assert len(policy(HOSTS + web + rule("r", '"bob"', '"alice"', last)).warnings) == 1
    for quiet in (
        web,
        web + rule("r", '"all"', '"carol"'),
        web + rule("r", '"all"', '"world"', "block"),
        web.replace("tcp/443", "tcp/443 from 32768-65535") + strict,
        web.replace("tcp/443", "icmp") + strict,
        web + 'back = "require"\n' + strict,
        strict + rule("web", '"alice"', '"world"', "clear", 'traffic = "tcp/443"'),
    ):
        assert policy(HOSTS + quiet).warnings == ()


def test_a_rule_hidden_by_broader_traffic_never_decides() -> None:
    broad = rule("broad", '"all"', '"all"', more='traffic = ["tcp", "udp/53"]')
    for traffic, is_hidden in (
        ("tcp/443", True),
        ("udp/53 from 1024-2000", True),
        ("udp", False),
        ("any", False),
    ):
        text = HOSTS + broad + rule("x", '"alice"', '"bob"', more=f'traffic = "{traffic}"')
        warnings = policy(text).warnings
        assert ["never decides" in each for each in warnings] == [True] * is_hidden
    back = rule("back", '"bob"', '"alice"', more='traffic = "tcp"')
    for traffic, is_hidden in (("tcp/443", True), ("any", False)):
        text = HOSTS + back + rule("x", '"alice"', '"bob"', more=f'traffic = "{traffic}"')
        assert len(policy(text).warnings) == is_hidden


# --- servers -----------------------------------------------------------------------------------


def test_servers_are_hosts_by_either_name_or_addresses() -> None:
    text = '[servers]\nkdc = ["alice", "bob.example.test"]\ndns = ["192.0.2.53"]\nntp = []\n'
    text += 'directory = ["2001:db8::53"]\n'
    assert {(service, str(address)) for service, address in policy(HOSTS + text).servers} == {
        ("kdc", "192.0.2.1"),
        ("kdc", "2001:db8::1"),
        ("kdc", "192.0.2.2"),
        ("dns", "192.0.2.53"),
        ("directory", "2001:db8::53"),
    }


def test_a_rule_on_trial_that_opens_what_a_later_one_closes_is_warned_of() -> None:
    rules = [
        ("audit = true", "tcp/23", "block"),
        ("", "any", "require"),
    ]
    text = "".join(
        f'[[rules]]\nname = "r{n}"\nfrom = "all"\nto = "all"\ntraffic = "{traffic}"\n'
        f'action = "{action}"\n{more}\n'
        for n, (more, traffic, action) in enumerate(rules)
    )
    (warning,) = read(Document.parse("p", (TWO_HOSTS + text).encode())).warnings
    assert 'rule "r0" is in audit' in warning
    assert 'rule "r1"' in warning


TWO_HOSTS = """
schema = 1
version = 1
realm = "R.TEST"
[hosts.a]
fqdn = "a.r.test"
addresses = ["192.0.2.1"]
[hosts.b]
fqdn = "b.r.test"
addresses = ["192.0.2.2"]
"""
