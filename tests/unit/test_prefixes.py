"""Fewer prefixes say the same of every address, and little changes where little changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kinkd.model import IPAddress, IPNetwork
from tests.support.prefixes import aggregate

DEFAULT, OTHER, KEPT, KEPT_TOO = "default", "other", "kept", "kept too"
Said = dict[IPNetwork, str]


def is_kept(value: str) -> bool:
    return value.startswith("kept")


def aggregated(said: Mapping[IPNetwork, str]) -> Said:
    return aggregate(said, DEFAULT, is_kept)


def value_of(said: Mapping[IPNetwork, str], address: IPAddress) -> str:
    around = [network for network in said if address in network]
    longest = max(around, key=lambda network: network.prefixlen, default=None)
    return DEFAULT if longest is None else said[longest]


def short_prefixes(bits: int) -> list[IPNetwork]:
    """All of IPv4 down to a length: every address behaves like the first of its longest."""
    return [
        IPv4Network((head << 32 - length, length))
        for length in range(bits + 1)
        for head in range(1 << length)
    ]


def edges(*maps: Mapping[IPNetwork, str]) -> set[IPAddress]:
    """The addresses at which the value can change, and those before: enough for all others."""
    return {
        address
        for network in itertools.chain((ip_network("0.0.0.0/0"), ip_network("::/0")), *maps)
        for address in (network[0], network[-1], *beside(network))
    }


def beside(network: IPNetwork) -> Iterator[IPAddress]:
    first, last = network[0], network[-1]
    if int(first) > 0:
        yield first - 1
    if int(last) < (1 << network.max_prefixlen) - 1:
        yield last + 1


def is_within(network: IPNetwork, other: IPNetwork) -> bool:
    return network.version == other.version and network[0] in other and network[-1] in other


def sibling(network: IPNetwork) -> IPNetwork:
    (other,) = (each for each in network.supernet().subnets() if each != network)
    return other


VALUES = st.sampled_from([DEFAULT, OTHER, "third", KEPT, KEPT_TOO])
SHORT = st.dictionaries(st.sampled_from(short_prefixes(4)), VALUES, max_size=31)


@st.composite
def real_prefixes(draw: st.DrawFn) -> IPNetwork:
    """Hosts and subnets that stand close together, as siblings and in each other."""
    if draw(st.booleans()):
        address = 0x0A000000 + draw(st.integers(0, 31)) + (draw(st.integers(0, 1)) << 16)
        return IPv4Network((address, draw(st.integers(24, 32) | st.integers(0, 32))), strict=False)
    address = (0x20010DB8 << 96) + draw(st.integers(0, 15)) + (draw(st.integers(0, 1)) << 64)
    return IPv6Network((address, draw(st.integers(122, 128) | st.integers(0, 128))), strict=False)


REAL = st.dictionaries(real_prefixes(), VALUES, max_size=40)
ANY = SHORT | REAL


def test_every_map_of_the_first_two_bits_says_the_same_afterwards() -> None:
    prefixes = short_prefixes(2)
    addresses = [prefix[0] for prefix in prefixes if prefix.prefixlen == 2]
    inside = {prefix: [a for a in addresses if a in prefix] for prefix in prefixes}

    def values(said: Mapping[IPNetwork, str]) -> dict[IPAddress, str]:
        found = dict.fromkeys(addresses, DEFAULT)
        for prefix in prefixes:  # the longer ones come later
            if prefix in said:
                found.update(dict.fromkeys(inside[prefix], said[prefix]))
        return found

    for choice in itertools.product((None, DEFAULT, OTHER, KEPT), repeat=len(prefixes)):
        said = {p: value for p, value in zip(prefixes, choice, strict=True) if value is not None}
        assert values(aggregated(said)) == values(said), said


@given(SHORT)
def test_four_bits_say_the_same_of_every_address(said: Said) -> None:
    result = aggregated(said)
    for head in range(16):
        address = ip_address(head << 28)
        assert value_of(result, address) == value_of(said, address)


@given(REAL)
def test_prefixes_of_both_families_say_the_same_of_every_address(said: Said) -> None:
    result = aggregated(said)
    for address in edges(said, result):
        assert value_of(result, address) == value_of(said, address)


@given(ANY)
def test_nothing_is_left_to_merge_or_to_leave_out(said: Said) -> None:
    result = aggregated(said)
    assert len(result) <= len(said)
    for network, value in result.items():
        if is_kept(value):
            continue
        around = [other for other in result if other != network and is_within(network, other)]
        nearest = max(around, key=lambda other: other.prefixlen, default=None)
        assert value != (DEFAULT if nearest is None else result[nearest])
        if network.prefixlen and result.get(sibling(network)) == value:
            assert is_kept(result[network.supernet()])


@given(ANY)
def test_what_is_kept_stays_as_it_is(said: Said) -> None:
    def kept(some: Said) -> Said:
        return {network: value for network, value in some.items() if is_kept(value)}

    assert kept(aggregated(said)) == kept(said)


@given(ANY)
def test_the_result_is_its_own(said: Said) -> None:
    result = aggregated(said)
    assert aggregated(result) == result


@given(ANY, st.data())
def test_one_prefix_changes_no_more_than_what_is_near_it(said: Said, data: st.DataObject) -> None:
    assume(said)
    changed = data.draw(st.sampled_from(list(said)))
    before = aggregated(said)
    inside = {each for each in said if each != changed and is_within(each, changed)}
    without = {network: value for network, value in said.items() if network != changed}
    for after in (without, said | {changed: data.draw(VALUES)}):
        result = aggregated(after)
        for network in before.keys() | result.keys():
            if before.get(network) == result.get(network):
                continue
            if not is_within(changed, network.supernet() if network.prefixlen else network):
                assert is_within(network, changed)
                assert not any(each != network and is_within(network, each) for each in inside)


@given(ANY)
def test_the_order_of_what_is_said_does_not_matter(said: Said) -> None:
    result = aggregated(said)
    other = aggregated(dict(reversed(said.items())))
    assert list(other.items()) == list(result.items())
    places = [(each.version, int(each[0]), each.prefixlen) for each in result]
    assert places == sorted(places)


@pytest.mark.parametrize("network", ["10.1.2.0/24", "0.0.0.0/0", "2001:db8::/120", "::/0"])
def test_parts_that_say_the_same_become_the_whole(network: str) -> None:
    whole = ip_network(network)
    parts: Said = dict.fromkeys(whole.subnets(8), OTHER)
    assert aggregated(parts) == {whole: OTHER}
    first = next(iter(parts))
    parts[first] = "third"
    others: Said = {sibling(first.supernet(bits)): OTHER for bits in range(8)}
    assert aggregated(parts) == {first: "third", **others}


def test_an_exception_survives_the_merging_around_it() -> None:
    halves = ("10.0.0.0/25", "10.0.0.128/25")
    said: Said = {ip_network(half): OTHER for half in halves}
    host = ip_network("10.0.0.7/32")
    said[host] = DEFAULT
    assert aggregated(said) == {ip_network("10.0.0.0/24"): OTHER, host: DEFAULT}


def test_a_kept_parent_is_not_merged_onto() -> None:
    said: Said = {
        ip_network("10.0.0.0/24"): KEPT,
        ip_network("10.0.0.0/25"): OTHER,
        ip_network("10.0.0.128/25"): OTHER,
    }
    assert aggregated(said) == said


def test_networks_that_stay_are_the_given_ones() -> None:
    said: Said = {ip_network("10.0.0.1/32"): OTHER, ip_network("2001:db8::/64"): KEPT}
    assert {id(each) for each in aggregated(said)} == {id(each) for each in said}


def test_without_values_to_keep_all_are_merged() -> None:
    said = {ip_network(f"10.0.0.{number}/32"): tuple(range(1, 3)) for number in range(4)}
    assert len({id(value) for value in said.values()}) == 4, "equal, and not the same"
    assert aggregate(said, None) == {ip_network("10.0.0.0/30"): (1, 2)}
    assert aggregate(said, (1, 2)) == {}
