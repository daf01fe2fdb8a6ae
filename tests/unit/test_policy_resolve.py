"""What the realm's document means to one host: SPD entries, reqids, questions."""

from __future__ import annotations

import itertools
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.document import Document
from kinkd.errors import LocalError
from kinkd.model import (
    Direction,
    IpsecProtocol,
    Mode,
    PortMatch,
    Selector,
    Template,
)
from kinkd.policy.match import HostPolicy
from kinkd.policy.model import RealmPolicy, read
from kinkd.policy.resolve import Options, identify, reqids_of, resolve

NAMES = ("a", "b", "c", "d")
DOCUMENT = """
schema = 1
version = 3
realm = "R.TEST"
[profiles.cbc]
suites = "aes256-sha256"
""" + "".join(
    f'[hosts.{name}]\nfqdn = "{name}.r.test"\n'
    f'addresses = ["192.0.2.{number}", "2001:db8::{number}"]\n'
    for number, name in enumerate(NAMES, 1)
)

SIDES = st.lists(st.sampled_from([*NAMES, "all"]), min_size=1, max_size=3)
ACTIONS = st.sampled_from(["clear", "fast", "cbc"])
RULES = st.lists(st.tuples(SIDES, SIDES, ACTIONS), max_size=5)
Rules = list[tuple[list[str], list[str], str]]


def rules_text(rules: Rules) -> str:
    """A rule's last word is "clear", or a profile and what else there is: "cbc tunnel udp"."""
    text = ""
    for number, (one, other, what) in enumerate(rules):
        profile, *more = what.split()
        text += f'[[rules]]\nname = "{number}"\nfrom = {one}\nto = {other}\n'
        text += 'action = "clear"\n' if profile == "clear" else 'action = "require"\n'
        text += "" if profile == "clear" else f'profile = "{profile}"\n'
        text += 'mode = "tunnel"\n' * ("tunnel" in more)
        text += "udp_encapsulation = true\n" * ("udp" in more)
    return text


def parsed(text: str) -> RealmPolicy:
    return read(Document.parse("p", text.encode()))


def realm(rules: Rules) -> RealmPolicy:
    return parsed(DOCUMENT + rules_text(rules))


def host(name: str, rules: Rules, options: Options | None = None) -> HostPolicy:
    return resolve(realm(rules), name, options or Options())


EVERYONE: Rules = [(["all"], ["all"], "fast")]


@given(RULES)
def test_both_hosts_of_a_pair_come_to_the_same_result_by_the_first_rule(rules: Rules) -> None:
    policy = realm(rules)
    views = {name: resolve(policy, name, Options()) for name in NAMES}
    for one, other in itertools.permutations(NAMES, 2):
        wanted = None
        for number, (froms, tos, what) in enumerate(rules):
            ours, theirs = ("all" in froms or one in froms), ("all" in tos or other in tos)
            back = ("all" in froms or other in froms) and ("all" in tos or one in tos)
            if (ours and theirs) or back:
                wanted = None if what == "clear" else (str(number), what)
                break
        for local, remote in itertools.product(
            policy.hosts[one].addresses, policy.hosts[other].addresses
        ):
            found = views[one].between(local, remote)
            mirrored = views[other].between(remote, local)
            if local.version != remote.version or wanted is None:
                assert found == mirrored == ()
                continue
            (here,), (there,) = found, mirrored
            assert (here.rule, here.profile.name) == wanted == (there.rule, there.profile.name)
            assert here.reqid == there.reqid
            assert here.peer.name == other


@given(RULES)
def test_priorities_are_distinct_in_the_band_and_follow_the_rules(rules: Rules) -> None:
    policy = host("a", rules)
    priorities = [entry.priority for entry in policy.entries]
    assert priorities == sorted(set(priorities))
    assert all(priority in Options().priorities for priority in priorities)
    order = [int(protection.rule) for protection in policy.protections]
    assert order == sorted(order)


@given(RULES)
def test_a_warning_is_given_for_exactly_the_rules_that_decide_nothing(rules: Rules) -> None:
    policy = realm(rules)
    deciding = {
        found.name
        for one, other in itertools.combinations(NAMES, 2)
        if (found := policy.rule_between(one, other)) is not None
    }
    assert len(policy.warnings) == len(rules) - len(deciding)


def test_a_protected_pair_has_an_entry_out_in_and_forward() -> None:
    policy = host("a", [(["a"], ["b"], "cbc")])
    local, remote = ip_address("192.0.2.1"), ip_address("192.0.2.2")
    (protection,) = policy.between(local, remote)
    assert protection.mode is Mode.TRANSPORT
    assert (protection.local, protection.remote, protection.udp) == (local, remote, False)
    assert protection.selector == Selector.between(local, remote)
    out, inbound, forward = protection.entries
    assert [e.direction for e in protection.entries] == [
        Direction.OUT,
        Direction.IN,
        Direction.FWD,
    ]
    assert (str(out.selector.source), str(out.selector.destination)) == (
        "192.0.2.1/32",
        "192.0.2.2/32",
    )
    assert inbound.selector == forward.selector == out.selector.reversed()
    for entry in protection.entries:
        assert entry.templates == (Template(IpsecProtocol.ESP, Mode.TRANSPORT, protection.reqid),)
    assert set(protection.entries) <= set(policy.entries)


def exempted(policy: HostPolicy) -> set[tuple[str, str, int, int, str, int]]:
    return {
        (
            entry.direction.name,
            str(entry.selector.source),
            entry.selector.source_port.port,
            entry.selector.protocol,
            str(entry.selector.destination),
            entry.selector.destination_port.port,
        )
        for entry in policy.entries
        if not entry.templates
    }


def test_kink_is_exempt_from_port_910_to_port_910_and_neighbor_discovery_by_type() -> None:
    any6 = "::/0"
    ends = (("192.0.2.1/32", "0.0.0.0/0"), ("2001:db8::1/128", any6))
    kink = {("OUT", mine, 910, 17, net, 910) for mine, net in ends}
    kink |= {("IN", net, 910, 17, mine, 910) for mine, net in ends}
    discovery = {(d, any6, t, 58, any6, 0) for d in ("IN", "OUT") for t in (135, 136)}
    assert exempted(host("a", EVERYONE)) == kink | discovery
    assert exempted(host("a", [])) == kink
    for entry in host("a", EVERYONE).entries:
        for match in (entry.selector.source_port, entry.selector.destination_port):
            assert match == PortMatch() or match.mask == 0xFFFF


def test_a_server_is_exempt_in_the_direction_of_its_client_alone() -> None:
    options = Options(servers=(("ntp", ip_address("192.0.2.2")),))
    more = exempted(host("a", EVERYONE, options)) - exempted(host("a", EVERYONE))
    assert more == {
        ("OUT", "192.0.2.1/32", 0, 17, "192.0.2.2/32", 123),
        ("IN", "192.0.2.2/32", 123, 17, "192.0.2.1/32", 0),
    }
    there = exempted(host("b", EVERYONE, options)) - exempted(host("b", EVERYONE))
    assert there == {
        ("IN", "0.0.0.0/0", 0, 17, "192.0.2.2/32", 123),
        ("OUT", "192.0.2.2/32", 123, 17, "0.0.0.0/0", 0),
    }


def test_esp_in_udp_is_not_exempt_for_whoever_sends_from_its_port() -> None:
    plain = exempted(host("a", [(["a"], ["b"], "fast")]))
    assert exempted(host("a", [(["a"], ["b"], "fast udp")])) == plain


def test_exemptions_come_before_all_that_is_required() -> None:
    entries = host("a", EVERYONE).entries
    required = [bool(entry.templates) for entry in entries]
    assert required == sorted(required)


@given(st.sets(st.text("abc", min_size=1), max_size=6), st.integers(6, 12))
def test_reqids_are_distinct_in_the_block_and_do_not_depend_on_order(
    names: set[str], size: int
) -> None:
    block, taken = range(100, 100 + size), {100 + size - 1} if size > 6 else set[int]()
    reqids = reqids_of(names, block, taken)
    assert set(reqids) == names
    assert len(set(reqids.values())) == len(names)
    assert set(reqids.values()) <= set(block) - taken
    assert reqids == reqids_of(sorted(names, reverse=True), block, taken)


@given(
    st.sets(st.text("abc", min_size=1), max_size=8),
    st.sets(st.text("abc", min_size=1), max_size=8),
    st.integers(16, 40),
)
def test_a_reqid_stays_whatever_is_added_that_does_not_collide_with_it(
    names: set[str], more: set[str], size: int
) -> None:
    block = range(size)
    homes = {name: reqids_of([name], block)[name] for name in names | more}
    before, after = reqids_of(names, block), reqids_of(names | more, block)
    for name in names:
        if not any(homes[other] == homes[name] for other in names | more if other != name):
            assert before[name] == after[name] == homes[name]
        if not any(homes[other] == homes[name] and other < name for other in names | more):
            assert after[name] == homes[name]


def test_the_last_of_colliding_names_takes_the_next_free_reqid() -> None:
    block = range(7, 9)
    first, second = (
        reqids_of("a", block)["a"],
        reqids_of("a", block, reqids_of("a", block).values()),
    )
    assert {first, second["a"]} == set(block)
    with pytest.raises(LocalError, match="too many for what is free of the reqid block of 2"):
        reqids_of(["a", "b"], block, [7])


def test_a_block_or_band_that_is_too_small_is_refused() -> None:
    with pytest.raises(LocalError, match="reqid block"):
        host("a", EVERYONE, Options(reqids=range(1, 2)))
    with pytest.raises(LocalError, match="priority band"):
        host("a", EVERYONE, Options(priorities=range(1, 10_005)))


def test_two_protections_between_two_addresses_are_refused() -> None:
    fast, cbc = host("a", EVERYONE), host("a", [(["all"], ["all"], "cbc")])
    with pytest.raises(LocalError, match=r"two protections between 192\.0\.2\.1 and 192\.0\.2\.2"):
        HostPolicy(fast.me, 1, fast.peers, fast.protections + cbc.protections, ())


def test_hosts_are_found_by_all_their_names_but_never_oneself() -> None:
    policy = host("a", [(["a"], ["b"], "fast")])
    assert [peer.name for peer in policy.peers] == ["b"]
    for name in ("b", "c"):
        other = policy.host_by_name(name)
        assert other is not None
        assert policy.host_by_client(other.client) is other
    assert policy.host_by_name("a") is None
    assert policy.host_by_client(policy.me.client) is None


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a"], "a"),
        (["B.R.TEST."], "b"),
        (["c.elsewhere.test"], "c"),
        (["localhost", "d.r.test"], "d"),
        (["x"], None),
        ([], None),
    ],
)
def test_a_machine_is_found_by_its_names(names: list[str], found: str | None) -> None:
    assert identify(realm([]), names) == found


def test_an_unknown_host_is_refused() -> None:
    with pytest.raises(LocalError, match="'x' is no host"):
        host("x", EVERYONE)
