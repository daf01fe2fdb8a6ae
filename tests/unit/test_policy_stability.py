"""What a change of the document leaves alone: hosts of which it says nothing see none of it."""

from __future__ import annotations

import itertools
import os
import re
from ipaddress import ip_network
from random import Random

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kinkd.model import Direction, IPNetwork, SpdEntry
from kinkd.policy.match import HostPolicy
from kinkd.policy.realm import Rule
from kinkd.policy.resolve import Options
from kinkd.policy.tables import free_bits
from tests.support.documents import documents
from tests.unit.test_policy_properties import resolved

EXAMPLES = 1000 if os.environ.get("KINKD_LONG") else 30
NEWCOMERS = st.sampled_from(
    ["192.0.2.7", "192.0.2.1", "192.0.2.200", "10.0.1.77", "10.9.9.9", "203.0.113.5", "2001:db8::7"]
)


def lengths(policy: HostPolicy) -> set[tuple[int, int]]:
    """How many bits of an address the entries of a host leave open, at this end and the other."""
    return {
        (free_bits(each.selector.source), free_bits(each.selector.destination))
        for each in ruled(policy)
        if each.direction is Direction.OUT
    }


def ends(entry: SpdEntry) -> tuple[IPNetwork, IPNetwork]:
    return entry.selector.source, entry.selector.destination


def ruled(policy: HostPolicy) -> set[SpdEntry]:
    return {each for each in policy.entries if each.priority >= Options().priorities[10_000]}


def exempt(policy: HostPolicy) -> set[SpdEntry]:
    return set(policy.entries) - ruled(policy)


def with_newcomer(text: str, address: str) -> str:
    host = f'[hosts.e]\nfqdn = "e.new.test"\naddresses = ["{address}"]\n'
    return text.replace("[networks.p]\n", f"{host}[networks.p]\n")


def is_near(network: IPNetwork, newcomer: IPNetwork) -> bool:
    """Whether a prefix, or its sibling, encloses another."""
    around = network.supernet() if network.prefixlen else network
    return around.version == newcomer.version and newcomer.subnet_of(around)


@settings(max_examples=EXAMPLES)
@given(documents(), NEWCOMERS)
def test_a_host_more_changes_only_entries_of_prefixes_around_it(text: str, address: str) -> None:
    _, before = resolved(text)
    _, after = resolved(with_newcomer(text, address))
    newcomer = ip_network(address)
    for name, old in before.items():
        new = after[name]
        if lengths(new) == lengths(old):
            for entry in ruled(old) ^ ruled(new):
                assert any(each.prefixlen and is_near(each, newcomer) for each in ends(entry))


@settings(max_examples=EXAMPLES)
@given(documents(), NEWCOMERS)
def test_a_host_more_changes_no_others_protections(text: str, address: str) -> None:
    _, before = resolved(text)
    _, after = resolved(with_newcomer(text, address))
    for name, old in before.items():
        known = [each for each in after[name].protections if each.peer.name != "e"]
        assert [each.slot for each in known] == [each.slot for each in old.protections]
        for one, other in zip(old.protections, known, strict=True):
            assert one.makes_the_same(other)


@settings(max_examples=EXAMPLES)
@given(documents(), NEWCOMERS)
def test_a_host_more_opens_nothing_but_the_discovery_of_neighbors(text: str, address: str) -> None:
    """Exemptions go by what the document keeps from passing, not by how its prefixes are merged."""
    _, before = resolved(text)
    _, after = resolved(with_newcomer(text, address))
    for name, old in before.items():
        assert exempt(old) <= exempt(after[name])
        for entry in exempt(after[name]) - exempt(old):
            assert entry.selector.protocol == 58
            assert entry.selector.source_port.port in (135, 136)


def pairs(rule: Rule) -> set[frozenset[str]]:
    ends = itertools.product(rule.source, rule.destination)
    return {frozenset(pair) for pair in ends if len(set(pair)) == 2}


def rules_of(text: str) -> list[str]:
    return re.split(r"(?=\[\[rules\]\])", text)


@settings(max_examples=EXAMPLES)
@given(documents(), st.data())
def test_the_order_of_rules_that_share_no_pair_does_not_matter(
    text: str, data: st.DataObject
) -> None:
    policy, before = resolved(text)
    swappable = [
        number
        for number, (one, other) in enumerate(itertools.pairwise(policy.rules))
        if not pairs(one) & pairs(other)
    ]
    assume(swappable)
    number = data.draw(st.sampled_from(swappable))
    head, *rules = rules_of(text)
    rules[number : number + 2] = rules[number + 1], rules[number]
    _, after = resolved(head + "".join(rules))
    assert seen(after) == seen(before)


@settings(max_examples=EXAMPLES)
@given(documents(), st.randoms(use_true_random=False))
def test_the_order_of_hosts_does_not_matter(text: str, order: Random) -> None:
    _, before = resolved(text)
    head, *hosts, rest = re.split(r"(?=\[hosts\.)|(?=\[networks\.p\])", text)
    order.shuffle(hosts)
    _, after = resolved(head + "".join(hosts) + rest)
    assert seen(after) == seen(before)


def seen(views: dict[str, HostPolicy]) -> dict[str, tuple[set[SpdEntry], set[object]]]:
    return {name: (set(view.entries), protections(view)) for name, view in views.items()}


def protections(view: HostPolicy) -> set[object]:
    return {
        (each.slot, each.selector, each.rule, each.profile, each.entries, each.requested)
        for each in view.protections
    }
