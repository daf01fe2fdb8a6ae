"""The words for traffic mean the same to people, to the policy and to the kernel."""

from __future__ import annotations

import itertools
import re
from ipaddress import ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kinkd.model import PortMatch, Selector
from kinkd.policy.traffic import ALL_PORTS, ANY, Traffic, parse

NETWORKS = {
    4: (ip_network("192.0.2.1/32"), ip_network("198.51.100.0/24")),
    6: (ip_network("2001:db8::1/128"), ip_network("2001:db8:1::/64")),
}
TCP, UDP, GRE = 6, 17, 47
WITH_PORTS = (TCP, UDP, 33, 132, 136)
NO_TRAFFIC = (1, 43, 44, 50, 51, 58, 59, 60)  # ICMP apart: it has two numbers
WITHOUT_PORTS = tuple(n for n in range(1, 255) if n not in (*WITH_PORTS, *NO_TRAFFIC))

PORTS = st.integers(1, 65535) | st.sampled_from(
    [1, 2, 3, 80, 443, 1023, 1024, 1025, 32767, 32768, 65534, 65535]
)


@st.composite
def port_ranges(draw: st.DrawFn) -> range:
    low, high = sorted((draw(PORTS), draw(PORTS)))
    return range(low, high + 1)


RANGES = st.just(ALL_PORTS) | port_ranges()
TRAFFIC = (
    st.just(ANY)
    | st.sampled_from((1, GRE, 89, *WITHOUT_PORTS)).map(Traffic)
    | st.builds(Traffic, st.sampled_from(WITH_PORTS), RANGES, RANGES)
)
# Of few ports, so that two often share some, and often none.
FEW = st.sampled_from([range(a, b) for a in range(1, 6) for b in range(a + 1, 7)])
NEAR = st.sampled_from([ANY, Traffic(1), Traffic(GRE)]) | st.builds(
    Traffic, st.sampled_from([TCP, UDP]), *[st.just(ALL_PORTS) | FEW] * 2
)


def matches(match: PortMatch, port: int) -> bool:
    """As the kernel compares (``__xfrm4_selector_match``)."""
    return (match.port ^ port) & match.mask == 0


def selects(selector: Selector, protocol: int, source_port: int, destination_port: int) -> bool:
    return (
        selector.protocol in (0, protocol)
        and matches(selector.source_port, source_port)
        and matches(selector.destination_port, destination_port)
    )


def port_matches(ports: range) -> list[PortMatch]:
    selectors = Traffic(TCP, ports).selectors(*NETWORKS[4])
    return [selector.destination_port for selector in selectors]


def fewest_blocks(ports: range, low: int = 0, size: int = 0x10000) -> int:
    """By halving: what is neither in the range nor outside it takes what its halves take."""
    if low >= ports.stop or low + size <= ports.start:
        return 0
    if low in ports and low + size - 1 in ports:
        return 1
    half = size // 2
    return fewest_blocks(ports, low, half) + fewest_blocks(ports, low + half, half)


def packets(*several: Traffic) -> list[tuple[int, int, int, int]]:
    """Of every kind that some of ``several`` could tell from another."""
    edges = (
        sorted(
            {0, 65535}
            | {
                port
                for ports in ranges
                for edge in (ports.start, ports.stop)
                for port in (edge - 1, edge)
                if port in ALL_PORTS
            }
        )
        for ranges in ([t.source_ports for t in several], [t.ports for t in several])
    )
    source_ports, ports = edges
    protocols = {1, 2, 58, *(each.number for each in several)} - {0}
    return list(itertools.product((4, 6), protocols, source_ports, ports))


@pytest.mark.parametrize(
    ("word", "traffic", "normal"),
    [
        ("any", ANY, "any"),
        (" ANY ", ANY, "any"),
        ("icmp", Traffic(1), "icmp"),
        ("tcp", Traffic(TCP), "tcp"),
        ("tcp/443", Traffic(TCP, range(443, 444)), "tcp/443"),
        ("TCP / 443", Traffic(TCP, range(443, 444)), "tcp/443"),
        ("tcp/0443-443", Traffic(TCP, range(443, 444)), "tcp/443"),
        ("tcp/8000 - 8080", Traffic(TCP, range(8000, 8081)), "tcp/8000-8080"),
        ("tcp/1-65535", Traffic(TCP, range(1, 65536)), "tcp/1-65535"),
        (
            "udp/53  From 1024-65535",
            Traffic(UDP, range(53, 54), range(1024, 65536)),
            "udp/53 from 1024-65535",
        ),
        ("udp from 68", Traffic(UDP, ALL_PORTS, range(68, 69)), "udp from 68"),
        ("sctp/36412", Traffic(132, range(36412, 36413)), "sctp/36412"),
        ("dccp/5", Traffic(33, range(5, 6)), "dccp/5"),
        ("udplite/5", Traffic(136, range(5, 6)), "udplite/5"),
        ("gre", Traffic(GRE), "gre"),
        ("OSPF", Traffic(89), "ospf"),
        ("ip/89", Traffic(89), "ospf"),
        ("ip / 4", Traffic(4), "ip/4"),
        ("ip/6", Traffic(TCP), "tcp"),
        ("ip/254", Traffic(254), "ip/254"),
    ],
)
def test_words_and_how_they_are_written(word: str, traffic: Traffic, normal: str) -> None:
    assert parse(word) == traffic
    assert str(traffic) == normal


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("", 'write it like "any", "icmp"'),
        ("/443", 'write it like "any", "icmp"'),
        ("from 80", 'write it like "any", "icmp"'),
        ("tpc/443", 'did you mean "tcp"?'),
        ("http", '"http" is no protocol known here'),
        ("443", 'write "tcp/443"'),
        ("443/tcp", 'write "tcp/443"'),
        ("any/443", 'name one, like "tcp/443"'),
        ("any from 443", 'name one, like "tcp/443"'),
        ("icmp/8", 'write "icmp"'),
        ("icmpv6", 'is written "icmp"'),
        ("ip/1", 'is written "icmp"'),
        ("ip/58", 'is written "icmp"'),
        ("gre/5", 'has no ports; write "gre"'),
        ("ip/4 from 5", 'has no ports; write "ip/4"'),
        ("esp", "IPsec's own"),
        ("AH", "IPsec's own"),
        ("ip/50", "IPsec's own"),
        ("ip/51", "IPsec's own"),
        ("ip", 'like "ip/89"'),
        ("ip/tcp", 'like "ip/89"'),
        ("ip/6/443", 'like "ip/89"'),
        ("ip/0", 'write "any"'),
        ("ip/44", "an extension header of IPv6"),
        ("ip/255", "1 to 254"),
        ("ip/4294967302", 'like "ip/89"'),
        ("tcp/", 'write "443" or "8000-8080"'),
        ("tcp/https", 'write "443" or "8000-8080"'),
        ("tcp/80,443", 'write "443" or "8000-8080"'),
        ("tcp/-5", 'write "443" or "8000-8080"'),
        ("tcp/5-", 'write "443" or "8000-8080"'),
        ("tcp/٤٤٣", 'write "443" or "8000-8080"'),  # digits, but not ASCII's
        ("tcp from", 'write "443" or "8000-8080"'),
        ("tcp/443from 5", 'write "443" or "8000-8080"'),
        ("tcp from 5 from 6", 'write "443" or "8000-8080"'),
        ("tcp/0", "ports are 1 to 65535"),
        ("tcp/0-5", "ports are 1 to 65535"),
        ("tcp/65536", "ports are 1 to 65535"),
        ("tcp/5-99999999999999", "ports are 1 to 65535"),
        pytest.param("tcp/" + "9" * 5000, "ports are 1 to 65535", id="a huge port"),
        ("udp from 0", "ports are 1 to 65535"),
        ("tcp/8080-8000", 'reversed; write "8000-8080"'),
        ("tcp from 10-9", 'reversed; write "9-10"'),
    ],
)
def test_what_is_no_word_for_traffic_is_told_what_would_be(word: str, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse(word)


@given(TRAFFIC)
def test_traffic_is_read_as_it_is_written(traffic: Traffic) -> None:
    assert parse(str(traffic)) == traffic
    assert parse(str(traffic).upper()) == traffic


@given(
    st.text(max_size=20)
    | st.lists(
        st.sampled_from(["tcp", "ip", "any", "icmp", "/", "-", " ", "from", "0", "443", "99"])
    ).map("".join)
)
def test_any_text_is_a_word_or_refused(text: str) -> None:
    try:
        traffic = parse(text)
    except ValueError:
        return
    assert parse(str(traffic)) == traffic


@given(port_ranges())
@example(range(1, 65536))
@example(range(1, 65535))
@example(ALL_PORTS)
def test_masks_are_the_range_exactly_once_and_as_few_as_can_be(ports: range) -> None:
    found = port_matches(ports)
    times = [0] * 0x10000
    for match in found:
        free = ~match.mask & 0xFFFF
        assert free & (free + 1) == 0, "the bits that count are the leading ones"
        assert match.port & free == 0
        for port in range(match.port, match.port + free + 1):
            times[port] += 1
    assert times == [1 if port in ports else 0 for port in range(0x10000)]
    assert len(found) == fewest_blocks(ports) <= 30


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("word", ["any", "icmp", "tcp", "gre", "ip/200"])
def test_without_ports_one_selector_is_enough(word: str, version: int) -> None:
    traffic = parse(word)
    source, destination = NETWORKS[version]
    protocol = 58 if (word, version) == ("icmp", 6) else traffic.number
    assert traffic.protocol(version) == protocol
    assert traffic.selectors(source, destination) == (Selector(source, destination, protocol),)


def test_selectors_are_every_source_with_every_destination() -> None:
    source, destination = NETWORKS[6]
    ports = [PortMatch(8000, 0xFFC0), PortMatch(8064, 0xFFF0), PortMatch(8080, 0xFFFF)]
    sources = [PortMatch(53, 0xFFFF), PortMatch(54, 0xFFFF)]
    assert parse("tcp/8000-8080 from 53-54").selectors(source, destination) == tuple(
        Selector(source, destination, TCP, one, other) for one in sources for other in ports
    )


@given(TRAFFIC)
def test_what_is_admitted_is_what_one_selector_takes(traffic: Traffic) -> None:
    selectors = {version: traffic.selectors(*NETWORKS[version]) for version in (4, 6)}
    for packet in packets(traffic):
        version, protocol, source_port, destination_port = packet
        taking = [s for s in selectors[version] if selects(s, *packet[1:])]
        assert len(taking) == traffic.admits(*packet)
        answering = [
            s.reversed()
            for s in selectors[version]
            if selects(s.reversed(), protocol, destination_port, source_port)
        ]
        assert answering == [selector.reversed() for selector in taking]


@given(NEAR, NEAR)
def test_covering_and_overlapping_are_what_packets_say(one: Traffic, other: Traffic) -> None:
    told = [(one.admits(*packet), other.admits(*packet)) for packet in packets(one, other)]
    assert one.covers(other) == all(mine for mine, theirs in told if theirs)
    assert one.overlaps(other) == any(mine and theirs for mine, theirs in told)
    assert one.overlaps(other) == other.overlaps(one)


@given(NEAR)
def test_traffic_covers_itself_and_any_covers_it(traffic: Traffic) -> None:
    assert traffic.covers(traffic)
    assert ANY.covers(traffic)
    assert traffic.covers(ANY) == (traffic == ANY)
