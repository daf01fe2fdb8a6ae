"""Tunnels: what goes through them, where they end, what must not be taken by them.

The properties hold for any document of four hosts, with networks inside networks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kinkd.errors import DocumentError, LocalError
from kinkd.model import (
    Direction,
    Host,
    IPAddress,
    IPNetwork,
    IpsecProtocol,
    Mode,
    Principal,
    Protection,
    Selector,
    SpdEntry,
    Template,
)
from kinkd.policy.match import HostPolicy
from kinkd.policy.realm import RealmPolicy, Rule
from kinkd.policy.resolve import Options, reqids_of, resolve, tunnel_ends
from tests.unit.test_policy_resolve import NAMES, SIDES, Rules, meet, parsed, rules_text

HALF = settings(max_examples=settings().max_examples // 2, deadline=None)
"""Of what is costly."""
HEAD = """
schema = 1
version = 3
realm = "R.TEST"
[profiles.cbc]
suites = "aes256-sha256"
[profiles.both]
suites = ["ah-sha256+aes256gcm16", "ah-sha1+null-sha256"]
"""
NETWORKS = (
    *("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.0.1.0/24", "10.0.1.1/32", "192.0.2.0/24"),
    *("::/0", "2001:db8::/32", "2001:db8:1::/48"),
)
ADDRESSES = st.sampled_from(
    [
        ["192.0.2.{}"],
        ["2001:db8::{}"],
        ["192.0.2.{}", "2001:db8::{}"],
        ["2001:db8::{}", "192.0.2.{}", "10.0.1.1{}"],
    ]
)
ACTIONS = st.sampled_from(
    ["clear", "fast", "cbc", "fast tunnel", "cbc tunnel udp", "both tunnel", "both"]
)
RULES = st.lists(st.tuples(SIDES, SIDES, ACTIONS), min_size=1, max_size=5)


def document(
    addresses: Mapping[str, list[str]], networks: Mapping[str, list[str]], rules: Rules
) -> str:
    text = HEAD
    for name, own in addresses.items():
        text += f'[hosts.{name}]\nfqdn = "{name}.r.test"\naddresses = {own}\n'
        text += f"networks = {behind}\n" if (behind := networks.get(name)) else ""
    return text + rules_text(rules)


@st.composite
def realms(draw: st.DrawFn) -> RealmPolicy:
    addresses = {
        name: [address.format(number) for address in draw(ADDRESSES)]
        for number, name in enumerate(NAMES, 1)
    }
    owners = draw(st.lists(st.sampled_from([*NAMES, ""]), min_size=9, max_size=9))
    networks: dict[str, list[str]] = {}
    for owner, network in zip(owners, NETWORKS, strict=True):
        networks.setdefault(owner, []).append(network)
    try:
        found = parsed(document(addresses, networks, draw(RULES)))
        for name in NAMES:
            resolve(found, name, Options())
    except (DocumentError, LocalError) as error:
        assume("they have no addresses of one family" not in str(error))
        assume("of another address family" not in str(error))
        raise
    return found


def small(networks: Mapping[str, list[str]], rules: Rules) -> RealmPolicy:
    """Hosts a to d at 192.0.2.1 to 192.0.2.4, and networks behind them."""
    addresses = {name: [f"192.0.2.{number}"] for number, name in enumerate(NAMES, 1)}
    return parsed(document(addresses, networks, rules))


OF_THE_LINK = ("169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32")


def is_of_the_link(address: IPAddress) -> bool:
    """Whether it is neither a host's nor the world's: broadcast, multicast, link-local."""
    nets = map(ip_network, (*OF_THE_LINK, "::1/128", "fe80::/10", "ff00::/8"))
    return any(address in network for network in nets)


def longest(hosts: Mapping[str, Host], address: IPAddress) -> tuple[str, str]:
    """Whose an address is: the host, the prefix; empty words for nobody's."""
    found = [
        (network.prefixlen, host.name, str(network))
        for host in hosts.values()
        for network in (*map(ip_network, host.addresses), *host.networks)
        if address in network
    ]
    return max(found, default=(0, "", ""))[1:]


def rule_between(policy: RealmPolicy, one: str, other: str) -> Rule | None:
    """The first rule that names two hosts; here all rules are of any traffic."""
    for rule in policy.rules:
        if (one in rule.source and other in rule.destination) or (
            other in rule.source and one in rule.destination
        ):
            return rule
    return None


def wanted(policy: RealmPolicy, me: str) -> Iterator[tuple[Selector, str]]:
    """What is to become of traffic between all kinds of addresses at host ``me``, in words."""
    owned = [(address, *longest(policy.hosts, address)) for address in places(policy)]
    for (ours, here, source), (theirs, there, destination) in itertools.product(owned, repeat=2):
        if ours.version != theirs.version or is_of_the_link(ours):  # as a source nobody routes it
            continue
        rule = rule_between(policy, here, there) if here and there else None
        own = ours in policy.hosts[me].addresses
        words = f"{source} - {destination}: {rule and rule.name} with {there}"
        not_theirs = here != me or there == me or is_of_the_link(theirs)
        if not_theirs or rule is None or rule.profile is None:
            words = "clear"
        elif rule.mode is Mode.TRANSPORT:
            words = words if own and theirs in policy.hosts[there].addresses else "clear"
        yield Selector.between(ours, theirs), words


def asked(policy: HostPolicy, direction: Direction) -> list[SpdEntry]:
    """The entries of a direction in the order in which the kernel asks them, without exemptions."""
    entries = [
        each
        for each in policy.entries
        if each.direction is direction and not each.selector.protocol
    ]
    return sorted(entries, key=lambda each: each.priority)


def decided(policy: HostPolicy, direction: Direction, packet: Selector) -> str:
    """What the entries make of a packet, in the same words; all of them that could be meant."""
    entry = next((e for e in asked(policy, direction) if e.selector.covers(packet)), None)
    if entry is None or not entry.templates:
        assert entry is None or not entry.block
        return "clear"
    out = packet if direction is Direction.OUT else packet.reversed()
    return " or ".join(
        f"{traffic(each)}: {each.rule} with {each.peer.name}"
        for each in policy.protections
        if entry in each.entries and each.selector.covers(out)
    )


def places(policy: RealmPolicy) -> list[IPAddress]:
    """Addresses of every kind: of hosts, at the edges of networks, of nobody."""
    found = {ip_address("203.0.113.1"), ip_address("2001:db8:f::1"), ip_address("3fff::1")}
    for host in policy.hosts.values():
        found.update(host.addresses)
        for network in host.networks:
            found.update((network[0], network[-1]))
    return sorted(found, key=lambda address: (address.version, address))


@HALF
@given(realms(), st.sampled_from(NAMES))
def test_every_packet_meets_the_rule_of_the_two_hosts_whose_its_addresses_are(
    policy: RealmPolicy, me: str
) -> None:
    here = resolve(policy, me, Options())
    for packet, want in wanted(policy, me):
        assert decided(here, Direction.OUT, packet) == want
        assert decided(here, Direction.IN, packet.reversed()) == want
        assert decided(here, Direction.FWD, packet.reversed()) == want


@given(realms())
def test_the_two_hosts_of_a_protection_agree_in_everything(policy: RealmPolicy) -> None:
    views = {name: resolve(policy, name, Options()) for name in NAMES}
    for one, other in itertools.permutations(NAMES, 2):
        ours, theirs = views[one].with_host(other), views[other].with_host(one)
        mirrored = {each.selector.reversed(): each for each in theirs}
        assert len(ours) == len(theirs) == len(mirrored)
        for here in ours:
            there = mirrored[here.selector]
            assert (here.local, here.remote) == (there.remote, there.local)
            rule = rule_between(policy, one, other)
            assert rule is not None
            for each in (here, there):
                assert (each.rule, each.mode, each.udp) == (rule.name, rule.mode, rule.udp)
                assert each.profile is rule.profile
            assert here.local in policy.hosts[one].addresses
            assert here in views[one].between(here.local, here.remote)
            assert views[one].acquired(here.local, here.remote, here.reqid) is here


@given(realms(), st.sampled_from(NAMES))
def test_the_more_specific_entry_comes_first_and_none_comes_twice(
    policy: RealmPolicy, me: str
) -> None:
    here = resolve(policy, me, Options())
    assert len({(each.direction, each.selector) for each in here.entries}) == len(here.entries)
    priorities = [each.priority for each in here.entries]
    assert priorities == sorted(priorities)
    assert all(priority in Options().priorities for priority in priorities)
    for direction in Direction:
        for one, later in itertools.combinations(asked(here, direction), 2):
            assert not one.selector.covers(later.selector)
            if one.priority == later.priority:
                assert not meet(one.selector, later.selector)
    listed = {entry for each in here.protections for entry in each.entries}
    assert listed == {entry for entry in here.entries if entry.templates}


@given(realms(), st.sampled_from(NAMES))
def test_no_exception_stands_where_there_is_no_tunnel_around_it(
    policy: RealmPolicy, me: str
) -> None:
    here = resolve(policy, me, Options())
    tunnels = [each.selector for each in here.protections if each.mode is Mode.TUNNEL]
    for entry in asked(here, Direction.OUT):
        ours, theirs = entry.selector.source, entry.selector.destination
        assert entry.templates or any(
            is_within(ours, tunnel.source)
            and (is_within(theirs, tunnel.destination) or theirs.prefixlen == 0)
            and (ours, theirs) != (tunnel.source, tunnel.destination)
            for tunnel in tunnels
        )


def is_within(inner: IPNetwork, outer: IPNetwork) -> bool:
    return inner.prefixlen >= outer.prefixlen and inner.network_address in outer


@given(realms(), st.sampled_from(NAMES))
def test_every_tunnel_has_a_reqid_of_its_own_and_every_profile_one_for_transport(
    policy: RealmPolicy, me: str
) -> None:
    protections = resolve(policy, me, Options()).protections
    tunnels = [each.reqid for each in protections if each.mode is Mode.TUNNEL]
    transport = {
        each.profile.name: each.reqid for each in protections if each.mode is Mode.TRANSPORT
    }
    for each in protections:
        if each.mode is Mode.TRANSPORT:
            assert each.reqid == transport[each.profile.name]
        assert {template.reqid for entry in each.entries for template in entry.templates} == {
            each.reqid
        }
    own = {*tunnels, *transport.values()}
    assert len(own) == len(tunnels) + len(transport)
    assert own <= set(Options().reqids)


def test_a_tunnel_covers_addresses_and_networks_of_both_in_one_family() -> None:
    networks = {"a": ["10.1.0.0/16"], "b": ["10.2.0.0/16", "2001:db8::/48"]}
    here = resolve(small(networks, [(["a"], ["b"], "fast tunnel")]), "a", Options())
    assert [traffic(each) for each in here.protections] == [
        "192.0.2.1/32 - 192.0.2.2/32",
        "192.0.2.1/32 - 10.2.0.0/16",
        "10.1.0.0/16 - 192.0.2.2/32",
        "10.1.0.0/16 - 10.2.0.0/16",
    ]


def traffic(protection: Protection) -> str:
    return f"{protection.selector.source} - {protection.selector.destination}"


def test_inside_a_tunnel_may_be_another_family_than_outside() -> None:
    networks = {"a": ["2001:db8:1::/48"], "b": ["2001:db8:2::/48"]}
    here = resolve(small(networks, [(["a"], ["b"], "fast tunnel")]), "a", Options())
    assert "2001:db8:1::/48 - 2001:db8:2::/48" in [traffic(each) for each in here.protections]
    assert {str(each.local) for each in here.protections} == {"192.0.2.1"}
    discovery = [each for each in here.entries if each.selector.protocol == 58]
    assert sorted((each.selector.source_port.port, each.direction.name) for each in discovery) == [
        (icmp_type, direction)
        for icmp_type in (2, 135, 136)  # packet too big, and neighbor discovery
        for direction in ("FWD", "IN", "OUT")
    ]


@pytest.mark.parametrize(
    ("profile", "outer"), [("fast", ()), ("both", (IpsecProtocol.AH,))], ids=["ESP", "ESP in AH"]
)
def test_the_first_template_of_a_tunnel_has_its_ends_the_others_go_by_them(
    profile: str, outer: tuple[IpsecProtocol, ...]
) -> None:
    policy = small({"a": ["10.1.0.0/16"]}, [(["a"], ["b"], f"{profile} tunnel")])
    for each in resolve(policy, "a", Options()).protections:
        out, inbound, forward = each.entries
        a, b = ip_address("192.0.2.1"), ip_address("192.0.2.2")
        rest = tuple(Template(protocol, Mode.TRANSPORT, each.reqid) for protocol in outer)
        tunnel = Template(IpsecProtocol.ESP, Mode.TUNNEL, each.reqid, a, b)
        back = Template(IpsecProtocol.ESP, Mode.TUNNEL, each.reqid, b, a)
        assert (out.direction, out.templates) == (Direction.OUT, (tunnel, *rest))
        assert (inbound.direction, inbound.templates) == (Direction.IN, (back, *rest))
        assert (forward.direction, forward.templates) == (Direction.FWD, (back, *rest))
        assert out.selector == each.selector
        assert inbound.selector == forward.selector == each.selector.reversed()


def test_a_bundle_in_transport_mode_has_both_templates_without_ends() -> None:
    (each,) = resolve(small({}, [(["a"], ["b"], "both")]), "a", Options()).protections
    for entry in each.entries:
        assert entry.templates == (
            Template(IpsecProtocol.ESP, Mode.TRANSPORT, each.reqid),
            Template(IpsecProtocol.AH, Mode.TRANSPORT, each.reqid),
        )


def located(name: str, addresses: list[str]) -> Host:
    principal = Principal(("kink", name), "R.TEST")
    return Host(name, principal, principal, tuple(map(ip_address, addresses)))


@pytest.mark.parametrize(
    ("one", "other", "ends"),
    [
        (["192.0.2.1", "2001:db8::1"], ["192.0.2.2", "2001:db8::2"], "192.0.2.1 192.0.2.2"),
        (["2001:db8::1", "192.0.2.1"], ["2001:db8::2", "192.0.2.2"], "2001:db8::1 2001:db8::2"),
        (["2001:db8::1", "192.0.2.1"], ["192.0.2.2", "2001:db8::2"], "192.0.2.1 192.0.2.2"),
        (["2001:db8::1", "192.0.2.3"], ["192.0.2.4", "192.0.2.2"], "192.0.2.3 192.0.2.4"),
        (["::9", "10.0.0.2", "10.0.0.1"], ["::8", "::7"], "::9 ::8"),
        (["192.0.2.1"], ["2001:db8::2"], None),
    ],
)
def test_a_tunnel_ends_at_the_addresses_that_come_first_in_the_document(
    one: list[str], other: list[str], ends: str | None
) -> None:
    a, b = located("a", one), located("b", other)
    found = tunnel_ends(a, b)
    assert (found and " ".join(map(str, found))) == ends
    assert tunnel_ends(b, a) == (found and found[::-1])


LISTS = st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True)


@given(LISTS, LISTS, st.integers(0, 15), st.integers(0, 15))
def test_both_ends_of_a_tunnel_find_the_same_two_addresses(
    one: list[int], other: list[int], families: int, more: int
) -> None:
    def host(name: str, numbers: list[int], bits: int) -> Host:
        kinds = (f"10.{len(name)}.0.{{}}", f"2001:db8:{len(name)}::{{}}")
        return located(
            name, [kinds[bits >> place & 1].format(n) for place, n in enumerate(numbers)]
        )

    a, bb = host("a", one, families), host("bb", other, more)
    found = tunnel_ends(a, bb)
    assert tunnel_ends(bb, a) == (found and found[::-1])
    shared = {each.version for each in a.addresses} & {each.version for each in bb.addresses}
    assert (found is None) == (not shared)


def opened(policy: HostPolicy, direction: Direction) -> list[str]:
    return [
        f"{entry.selector.source} - {entry.selector.destination}"
        for entry in policy.entries
        if not entry.templates and not entry.selector.protocol and entry.direction is direction
    ]


def test_a_tunnel_to_anywhere_spares_what_is_the_hosts_own_and_what_is_clear_by_rule() -> None:
    networks = {"a": ["10.1.0.0/16"], "b": ["0.0.0.0/0"], "c": ["10.3.0.0/16"]}
    rules: Rules = [(["a"], ["b"], "fast tunnel"), (["a"], ["d"], "fast"), (["a"], ["c"], "clear")]
    here = resolve(small(networks, rules), "a", Options())
    own = ["192.0.2.1/32", "10.1.0.0/16"]
    spared = [*own, "192.0.2.3/32", "10.3.0.0/16", "192.0.2.4/32", *OF_THE_LINK]
    pairs = {f"{ours} - {theirs}" for ours in own for theirs in spared}
    pairs.remove(
        "192.0.2.1/32 - 192.0.2.4/32"
    )  # rule 1 protects it, of the network it says nothing
    assert set(opened(here, Direction.OUT)) == pairs
    back = {" - ".join(reversed(pair.split(" - "))) for pair in pairs}
    assert set(opened(here, Direction.IN)) == set(opened(here, Direction.FWD)) == back


def test_a_host_inside_a_gateways_network_speaks_for_itself() -> None:
    addresses = {"a": ["192.0.2.1"], "b": ["192.0.2.2"], "c": ["10.1.0.5"], "d": ["10.9.0.1"]}
    rules: Rules = [(["a"], ["b"], "fast tunnel"), (["c"], ["b"], "fast")]
    policy = parsed(document(addresses, {"a": ["10.1.0.0/16"]}, rules))
    assert opened(resolve(policy, "a", Options()), Direction.OUT) == ["10.1.0.5/32 - 0.0.0.0/0"]
    assert opened(resolve(policy, "a", Options()), Direction.FWD) == ["0.0.0.0/0 - 10.1.0.5/32"]
    assert opened(resolve(policy, "b", Options()), Direction.OUT) == []


def test_ipv6_loopback_and_own_addresses_are_spared_by_a_tunnel_to_anywhere() -> None:
    addresses = {"a": ["2001:db8::1"], "b": ["2001:db8::2"]}
    rules: Rules = [(["a"], ["b"], "fast tunnel")]
    policy = parsed(document(addresses, {"b": ["::/0"]}, rules))
    assert set(opened(resolve(policy, "a", Options()), Direction.OUT)) == {
        "2001:db8::1/128 - 2001:db8::1/128",
        "2001:db8::1/128 - ::1/128",
        "2001:db8::1/128 - fe80::/10",
        "2001:db8::1/128 - ff00::/8",
    }
    assert "::1/128 - ::/0" in opened(resolve(policy, "b", Options()), Direction.OUT)


def test_where_there_is_no_tunnel_nothing_is_spared() -> None:
    networks = {"a": ["10.0.0.0/8"], "b": ["0.0.0.0/0"]}
    here = resolve(small(networks, [(["a"], ["b"], "fast")]), "a", Options())
    assert opened(here, Direction.OUT) == []


def test_a_reqid_block_too_small_for_the_tunnels_is_refused() -> None:
    rules: Rules = [(["all"], ["all"], "fast tunnel")]
    resolve(small({}, rules), "a", Options(reqids=range(1, 8)))
    with pytest.raises(LocalError, match="3 profiles or tunnels are too many"):
        resolve(small({}, rules), "a", Options(reqids=range(1, 7)))


def test_the_reqid_of_a_tunnel_comes_from_what_it_is_for() -> None:
    block = Options().reqids
    (each,) = resolve(small({}, [(["a"], ["b"], "cbc tunnel")]), "a", Options()).protections
    name = "tunnel/cbc/192.0.2.1/32/192.0.2.2/32/b"
    assert each.reqid == reqids_of([name], block)[name]


def test_what_the_kernel_cannot_have_is_refused_by_name() -> None:
    six = {"a": ["2001:db8:1::/48"], "b": ["2001:db8:2::/48"]}
    with pytest.raises(LocalError, match=r"rule '0': ESP in AH .* cannot carry 2001:db8:1::/48"):
        resolve(small(six, [(["a"], ["b"], "both tunnel")]), "a", Options())
    resolve(small(six, [(["a"], ["b"], "cbc tunnel")]), "a", Options())
