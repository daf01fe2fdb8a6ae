"""What becomes of traffic when one document takes the place of another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from kinkd.document import Document
from kinkd.errors import DocumentError
from kinkd.model import Action, IPAddress
from kinkd.policy.compare import (
    Change,
    Delta,
    End,
    Verdict,
    Within,
    compare,
    within,
)
from kinkd.policy.reader import read
from kinkd.policy.realm import PROTECTING, Packet, RealmPolicy

HALF = settings(max_examples=settings().max_examples // 2, deadline=None)
"""Of what is costly."""

HEAD = 'schema = 1\nversion = 1\nrealm = "R.TEST"\n'
NAMES = ("a", "b", "c", "d")
ADDRESSES = [f"10.0.0.{number}" for number in range(1, 10)]
NETWORKS = ["10.0.0.0/24", "10.0.0.0/28", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"]
OTHERS = ["10.0.0.14", "10.0.0.99", "10.1.0.1", "10.1.2.3", "10.1.2.4", "8.8.8.8"]
SEEN = [*map(ip_address, [*ADDRESSES, *OTHERS])]
TRAFFIC = ["any", "tcp", "tcp/443", "tcp/80-500", "udp/53 from 1024-65535", "icmp", "ip/89"]
PORTS = [0, 1, 53, 80, 443, 444, 1024, 40000]


def parsed(text: str) -> RealmPolicy:
    return read(Document.parse("p", text.encode()))


@st.composite
def documents(draw: st.DrawFn, rules: list[str]) -> str:
    """A small realm; ``rules`` are some that it may have."""
    addresses = draw(st.permutations(ADDRESSES))
    networks = draw(st.permutations(NETWORKS))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    text = HEAD
    for name in names:
        own = [addresses.pop() for _ in range(draw(st.integers(1, 2)))]
        text += f'[hosts.{name}]\nfqdn = "{name}.r.test"\naddresses = {own}\n'
        text += f'networks = ["{networks.pop()}"]\n' if networks and draw(st.booleans()) else ""
        text += "disabled = true\n" if draw(st.integers(0, 7)) == 0 else ""
        text += "audit = true\n" if draw(st.integers(0, 7)) == 0 else ""
    if networks:
        text += f'[networks.p]\nprefixes = ["{networks.pop()}"]\n'
    else:
        text += f'[networks.p]\nprefixes = ["{addresses.pop()}"]\n'
    members = draw(st.lists(st.sampled_from([*names, "p"]), max_size=3, unique=True))
    text += f"[groups]\ng = {members}\n"
    known = {*names, "p", "g", "all", "world"}
    for number, rule in enumerate(draw(st.lists(st.sampled_from(rules), max_size=5))):
        one, other, rest = rule.split("|")
        if {one, other} <= known:
            text += f'[[rules]]\nname = "{number}"\nfrom = "{one}"\nto = "{other}"\n{rest}\n'
    return text


@st.composite
def rule_pools(draw: st.DrawFn) -> list[str]:
    """Rules of which two documents draw theirs, so that they have some in common."""
    side = st.sampled_from([*NAMES, "g", "p", "all", "world"])
    how = draw(
        st.sampled_from(['profile = "fast"', 'mode = "tunnel"', "udp_encapsulation = true", ""])
    )
    other_how = draw(st.sampled_from([how, 'profile = "fast"', ""]))
    pool = []
    for _ in range(draw(st.integers(1, 6))):
        action = draw(st.sampled_from(["require", "request", "clear", "block"]))
        back = draw(st.sampled_from([action, "clear", "block"]))
        lines = [f'traffic = "{draw(st.sampled_from(TRAFFIC))}"']
        lines += [f'action = "{action}"', f'back = "{back}"']
        if action in ("require", "request"):
            lines.append(draw(st.sampled_from([how, other_how])))
        lines += ["audit = true"] if draw(st.integers(0, 5)) == 0 else []
        pool.append("|".join((draw(side), draw(side), "\n".join(lines))))
    return pool


@st.composite
def edited(draw: st.DrawFn, text: str) -> str:
    """A document with one line another, and all that is above and below it as it was."""
    lines = text.splitlines()
    known = [name for name in (*NAMES, "p") if f".{name}]" in text]
    members = draw(st.lists(st.sampled_from(known), max_size=3, unique=True))
    word = draw(st.sampled_from(TRAFFIC))
    new = {
        "g = ": f"g = {members}",
        "action = ": 'action = "block"',
        "back = ": f'back = "{draw(st.sampled_from(["clear", "block"]))}"',
        "traffic = ": f'traffic = "{word}"',
        "addresses = ": "disabled = true\n{}",
        "fqdn = ": "audit = true\n{}",
        "[[rules]]": '[[rules]]\nname = "x"\nfrom = "all"\nto = "g"\naction = "clear"\n{}',
        "[networks.": '[networks.elsewhere]\nprefixes = ["10.1.2.4"]\n{}',
    }
    kinds = sorted({key for key in new for line in lines if line.startswith(key)})
    kind = draw(st.sampled_from(kinds))
    at = draw(st.sampled_from([n for n, line in enumerate(lines) if line.startswith(kind)]))
    lines[at] = new[kind].replace("{}", lines[at])
    return "\n".join(lines)


@st.composite
def pairs_of_documents(draw: st.DrawFn) -> tuple[RealmPolicy, RealmPolicy]:
    pool = draw(rule_pools())
    old = draw(documents(pool))
    new = draw(documents(pool)) if draw(st.integers(0, 3)) == 0 else draw(edited(old))
    try:
        return parsed(old), parsed(new)
    except DocumentError:
        reject()


SHAPES = st.lists(
    st.tuples(st.sampled_from([6, 17]), st.sampled_from(PORTS), st.sampled_from(PORTS))
    | st.sampled_from([(1, 0, 0), (89, 0, 0), (47, 0, 0)]),
    min_size=3,
    max_size=6,
)
"""Protocol, source and destination port of packets that go between all addresses."""


def decided(policy: RealmPolicy, packet: Packet) -> tuple[Verdict, str | None]:
    """What the policy itself says of a packet, and by which rule."""
    found = policy.decide(packet)
    rule = found.term.rule
    audit = found.term.audit and found.action is not Action.CLEAR
    said = Verdict(found.action, audit)
    if rule is not None and rule.profile is not None and found.action in PROTECTING:
        said = Verdict(found.action, audit, rule.profile.name, rule.mode, rule.udp)
    return said, None if rule is None else rule.name


def matches(delta: Delta, packet: Packet) -> bool:
    seen = (packet.source.version, packet.protocol, packet.source_port, packet.destination_port)
    return delta.traffic.admits(*seen) and not any(each.admits(*seen) for each in delta.but)


Told = tuple[Delta, frozenset[End], frozenset[End], Within]


def expanded(changes: list[Change]) -> list[Told]:
    """Each way by itself."""
    found: list[Told] = []
    for change in changes:
        ends = frozenset(change.sources), frozenset(change.destinations)
        found.append((change.delta, *ends, change.within))
        if change.both_ways:
            found.append((change.delta.reversed(), *ends[::-1], change.within))
    return found


def differing(
    changes: list[Told], ends: tuple[End, End], packet: Packet
) -> set[tuple[object, ...]]:
    """What the changes say of a packet, each of them by itself."""
    return {
        (delta.before, delta.rule_before, delta.after, delta.rule_after)
        for delta, sources, destinations, inside in changes
        if ends[0] in sources and ends[1] in destinations
        if inside is within(*ends) and matches(delta, packet)
    }


def check_all(old: RealmPolicy, new: RealmPolicy, shapes: list[tuple[int, int, int]]) -> int:
    """Compare what is told with what is decided, packet by packet; how many differ."""
    changes = expanded(compare(old, new))
    ends = {address: End(old.owner(address), new.owner(address)) for address in SEEN}
    count = 0
    for source, destination in itertools.product(SEEN, SEEN):
        for shape in shapes:
            packet = Packet(source, destination, *shape)
            (before, rule_before), (after, rule_after) = decided(old, packet), decided(new, packet)
            expected = {(before, rule_before, after, rule_after)} if before != after else set()
            assert differing(changes, (ends[source], ends[destination]), packet) == expected
            count += bool(expected)
    return count


@HALF
@given(pairs_of_documents(), SHAPES)
def test_the_difference_is_what_packet_by_packet_is_decided_otherwise(
    policies: tuple[RealmPolicy, RealmPolicy], shapes: list[tuple[int, int, int]]
) -> None:
    check_all(*policies, shapes)


REALM = (
    HEAD
    + "".join(
        f'[hosts.{name}]\nfqdn = "{name}.r.test"\naddresses = ["10.0.0.{n}"]\n'
        for n, name in enumerate(NAMES, 1)
    )
    + 'networks = ["10.1.0.0/16"]\n'
    + '[groups]\ng = ["a"]\n'
    + '[[rules]]\nname = "g"\nfrom = "g"\nto = "all"\ntraffic = "tcp/443"\naction = "require"\n'
    + '[[rules]]\nname = "h"\nfrom = "b"\nto = "all"\naction = "request"\n'
)


@pytest.mark.parametrize(
    ("edit", "count"),
    [
        (("realm", "realm"), 0),
        (('g = ["a"]', 'g = ["a", "c"]'), None),
        (('g = ["a"]', 'g = ["b"]'), None),
        (("tcp/443", "tcp/80-500"), None),
        (('"h"\nfrom = "b"', '"h"\nfrom = "c"'), None),
        (('"10.0.0.3"', '"10.0.0.3", "10.0.0.7"'), None),  # more of the same
        (('"10.0.0.3"', '"10.0.0.7"'), None),
        (('["10.1.0.0/16"]', '["10.1.0.0/16", "10.1.2.0/24"]'), 0),
        (('"10.0.0.2"]', '"10.0.0.2"]\ndisabled = true'), None),
        (('"10.0.0.2"]', '"10.0.0.2"]\naudit = true'), None),
        (('traffic = "tcp/443"\naction', 'profile = "fast"\naction'), None),
    ],
)
def test_an_edit_of_one_thing(edit: tuple[str, str], count: int | None) -> None:
    old, new = parsed(REALM), parsed(REALM.replace(*edit))
    shapes = [(6, 40000, 443), (6, 443, 40000), (6, 40000, 80), (1, 0, 0)]
    found = check_all(old, new, shapes)
    assert found == check_all(new, old, shapes)
    assert found > 0 if count is None else found == count


def test_an_address_that_goes_from_one_host_to_another() -> None:
    old = parsed(REALM.replace('"10.0.0.3"', '"10.0.0.3", "10.0.0.7"'))
    new = parsed(REALM.replace('"10.0.0.2"', '"10.0.0.2", "10.0.0.7"'))
    shapes = [(6, 40000, 443), (1, 0, 0)]
    assert check_all(old, new, shapes) == check_all(new, old, shapes) > 0
    # What was between the two hosts is inside one of them, and the other way round.
    insides = {change.within for change in compare(old, new)}
    assert {Within.BEFORE, Within.AFTER} <= insides


def instance(change: Change, old: RealmPolicy, new: RealmPolicy) -> Iterator[tuple[Packet, Packet]]:
    """Packets that a change is about, and if it is so for both ways, those back."""
    owned: dict[End, list[IPAddress]] = {}
    for address in SEEN:
        owned.setdefault(End(old.owner(address), new.owner(address)), []).append(address)
    traffic, but = change.delta.traffic, change.delta.but
    ports, source_ports = (
        sorted({each[0] for each in of} | {each[-1] for each in of} | {7, 7777})
        for of in (
            [traffic.ports, *(each.ports for each in but)],
            [traffic.source_ports, *(each.source_ports for each in but)],
        )
    )
    protocols = {1: [1]}.get(traffic.number, [traffic.number] if traffic.number else [47, 6, 17])
    for one, other in itertools.product(change.sources, change.destinations):
        if within(one, other) is not change.within:
            continue
        for here, there in itertools.product(owned.get(one, ()), owned.get(other, ())):
            for protocol, port, from_port in itertools.product(protocols, ports, source_ports):
                packet = Packet(here, there, protocol, from_port, port)
                if matches(change.delta, packet):
                    yield packet, Packet(there, here, protocol, port, from_port)


@given(pairs_of_documents())
def test_nothing_is_told_that_no_packet_meets(
    policies: tuple[RealmPolicy, RealmPolicy],
) -> None:
    old, new = policies
    for change in compare(old, new):
        packets = list(instance(change, old, new))
        assert packets
        for ways in packets:
            for packet in ways[: 2 if change.both_ways else 1]:
                assert decided(old, packet)[0] == change.delta.before
                assert decided(new, packet)[0] == change.delta.after


@given(pairs_of_documents())
def test_a_document_does_not_differ_from_itself(policies: tuple[RealmPolicy, RealmPolicy]) -> None:
    assert compare(policies[0], policies[0]) == []
