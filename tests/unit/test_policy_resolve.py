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
    SpdEntry,
    Template,
)
from kinkd.policy.exemptions import EXEMPTION_COUNT
from kinkd.policy.match import HostPolicy
from kinkd.policy.reader import read
from kinkd.policy.realm import RealmPolicy
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
def test_no_packet_meets_two_entries_of_one_priority(rules: Rules) -> None:
    policy = host("a", rules)
    numbers = [entry.priority for entry in policy.entries]
    assert numbers == sorted(numbers)
    assert all(number in Options().priorities for number in numbers)
    for one, other in itertools.combinations(policy.entries, 2):
        if (one.direction, one.priority) == (other.direction, other.priority):
            assert not meet(one.selector, other.selector)


def meet(one: Selector, other: Selector) -> bool:
    """Whether some packet is in both."""
    return (
        one.source.overlaps(other.source)
        and one.destination.overlaps(other.destination)
        and (one.protocol == other.protocol or 0 in (one.protocol, other.protocol))
        and all(
            not (a.port ^ b.port) & a.mask & b.mask
            for a, b in (
                (one.source_port, other.source_port),
                (one.destination_port, other.destination_port),
            )
        )
    )


@given(RULES)
def test_a_warning_is_given_for_exactly_the_rules_that_decide_nothing(rules: Rules) -> None:
    policy = realm(rules)
    deciding = {
        rule.name
        for one, other in itertools.permutations(NAMES, 2)
        if (rule := policy.terms(one, other)[0].rule) is not None
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


def exempted(policy: HostPolicy) -> set[str]:
    """What passes in clear ahead of all rules: "OUT udp net 1024/mask -> net port/mask"."""
    return {
        f"{entry.direction.name} {entry.selector.protocol} {end(entry.selector)}"
        f" -> {end(entry.selector.reversed())}"
        for entry in policy.entries
        if entry.priority < Options().priorities[EXEMPTION_COUNT]
    }


def end(selector: Selector) -> str:
    match = selector.source_port
    mask = "" if match.mask in (0, 0xFFFF) else f"/{match.mask:x}"
    return f"{selector.source}" + f" {match.port}{mask}" * (match != PortMatch())


KINK = {
    f"{direction} 17 {' -> '.join(ends)}"
    for mine, everyone in (
        ("192.0.2.1/32 910", "0.0.0.0/0 910"),
        ("2001:db8::1/128 910", "::/0 910"),
    )
    for direction, ends in (("OUT", (mine, everyone)), ("IN", (everyone, mine)))
}
DISCOVERY = {
    f"{direction} 58 ::/0 {icmp_type} -> ::/0"
    for direction in ("IN", "OUT", "FWD")
    for icmp_type in (135, 136)
}
PATH_MTU = {
    f"{direction} {what}"
    for direction in ("IN", "OUT", "FWD")
    for what in ("1 0.0.0.0/0 3 -> 0.0.0.0/0 4", "58 ::/0 2 -> ::/0")
}
DHCP = {
    *("OUT 17 0.0.0.0/0 68 -> 0.0.0.0/0 67", "IN 17 0.0.0.0/0 67 -> 0.0.0.0/0 68"),
    *("OUT 17 ::/0 546 -> ::/0 547", "IN 17 ::/0 547 -> ::/0 546"),
}


def test_kink_is_exempt_from_port_910_to_port_910_and_neighbor_discovery_by_type() -> None:
    assert exempted(host("a", [])) == KINK
    assert exempted(host("a", [(["a"], ["b"], "fast")])) == KINK | DISCOVERY
    for entry in host("a", EVERYONE).entries:
        assert not entry.block
        for match in (entry.selector.source_port, entry.selector.destination_port):
            assert match == PortMatch() or match.mask == 0xFFFF


def test_path_mtu_and_leases_are_exempt_where_more_than_hosts_are_kept_from_passing() -> None:
    # b and c are neighbors by their addresses: they have an entry in common, and are two hosts.
    assert exempted(host("a", EVERYONE)) == KINK | DISCOVERY
    for words, more in (("fast", set()), ("fast tunnel", PATH_MTU | DHCP)):
        text = DOCUMENT.replace("[hosts.b]\n", '[hosts.b]\nnetworks = ["0.0.0.0/0", "::/0"]\n')
        policy = parsed(text + rules_text([(["a"], ["b"], words)]))
        assert exempted(resolve(policy, "a", Options())) == KINK | DISCOVERY | more


def exempted_more(name: str, service: str, ports: range) -> set[str]:
    options = Options(servers=((service, ip_address("192.0.2.2")),), client_ports=ports)
    return exempted(host(name, EVERYONE, options)) - exempted(host(name, EVERYONE))


def test_a_server_is_exempt_in_the_direction_of_its_client_alone() -> None:
    me, server = "192.0.2.1/32", "192.0.2.2/32"
    # 20480-21439, in the blocks of ports that the kernel can tell by a mask
    masks = ("20480/fe00", "20992/ff00", "21248/ff80", "21376/ffc0")
    # A connection of TCP has no port yet when the kernel first asks for it.
    assert exempted_more("a", "dns", range(20480, 21440)) == {f"OUT 6 {me} 0 -> {server} 53"} | {
        each
        for protocol in (6, 17)
        for mask in masks
        for each in (
            f"OUT {protocol} {me} {mask} -> {server} 53",
            f"IN {protocol} {server} 53 -> {me} {mask}",
        )
    }
    assert exempted_more("b", "dns", range(20480, 21440)) == {
        each
        for protocol in (6, 17)
        for each in (
            f"IN {protocol} 0.0.0.0/0 -> {server} 53",
            f"OUT {protocol} {server} 53 -> 0.0.0.0/0",
        )
    }


def test_servers_of_the_document_and_of_the_host_are_exempt_alike() -> None:
    everyone = rules_text(EVERYONE)
    named = parsed(DOCUMENT + '[servers]\nkdc = ["b"]\nntp = ["192.0.2.99"]\n' + everyone)
    own = Options(
        servers=tuple(
            (service, ip_address(address))
            for service, address in (
                ("kdc", "192.0.2.2"),
                ("kdc", "2001:db8::2"),
                ("ntp", "192.0.2.99"),
            )
        )
    )
    for name in ("a", "b"):
        of_document = exempted(resolve(named, name, Options()))
        assert of_document == exempted(host(name, EVERYONE, own))
        assert of_document == exempted(resolve(named, name, own))
        assert of_document > exempted(host(name, EVERYONE))


def test_a_rule_of_the_same_selector_does_not_take_an_exemptions_place() -> None:
    """The kernel has one entry of one selector and direction: the last that was installed."""
    rule = '[[rules]]\nname = "r"\nfrom = "world"\nto = "b"\ntraffic = "udp/53"\n'
    policy = parsed(DOCUMENT + '[servers]\ndns = ["b"]\n' + rule + 'action = "block"\n')
    entries = resolve(policy, "b", Options()).entries
    assert len({entry.key for entry in entries}) == len(entries)
    dns = next(e for e in entries if str(e.selector.destination) == "192.0.2.2/32" and is_dns(e))
    assert not dns.block


def is_dns(entry: SpdEntry) -> bool:
    return (entry.direction, entry.selector.destination_port.port) == (Direction.IN, 53)


def test_a_server_of_time_is_asked_from_its_own_port_as_well() -> None:
    me, server = "192.0.2.1/32", "192.0.2.2/32"
    assert exempted_more("a", "ntp", Options().client_ports) == {
        f"OUT 17 {me} 32768/8000 -> {server} 123",
        f"IN 17 {server} 123 -> {me} 32768/8000",
        f"OUT 17 {me} 123 -> {server} 123",
        f"IN 17 {server} 123 -> {me} 123",
    }


@pytest.mark.parametrize(
    ("source", "action", "decides"),
    [
        ("32768-65535", "clear", True),
        ("1024-65535", "clear", True),
        ("32768-60999", "clear", True),
        ("40000-65535", "clear", False),  # the port may come to be another
        ("40000-40001", "require", True),
        ("40000-40001", "block", True),
        ("1-1023", "require", False),
    ],
)
def test_who_asks_and_has_no_port_yet_is_decided_by_the_ports_he_may_get(
    source: str, action: str, decides: bool
) -> None:
    text = DOCUMENT + (
        f'[[rules]]\nname = "r"\nfrom = "a"\nto = "b"\ntraffic = "tcp/25 from {source}"\n'
        f'action = "{action}"\n[[rules]]\nname = "s"\nfrom = "a"\nto = "b"\n'
        f'action = "{"block" if action == "clear" else "clear"}"\n'
    )
    policy = resolve(parsed(text), "a", Options())
    none = PortMatch(0, 0xFFFF)
    found = [each for each in policy.entries if each.selector.source_port == none]
    assert {each.direction for each in found} == ({Direction.OUT} if decides else set())
    assert all(each.selector.destination_port == PortMatch(25, 0xFFFF) for each in found)
    peer = resolve(parsed(text), "b", Options())
    assert not [each for each in peer.entries if each.selector.source_port == none]


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
        host("a", EVERYONE, Options(priorities=range(1, 10_002)))


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
