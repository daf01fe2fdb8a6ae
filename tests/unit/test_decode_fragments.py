"""IP fragments in captures: put together in any order, hostile ones refused, memory bounded."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.decode import fragments, pcap
from kinkd.decode.fragments import Reassembler, RefusedError
from tests.support.packets import A4, A6, B4, B6, capture, udp

MESSAGE = bytes(range(256)) * 12
WHOLE = udp(MESSAGE)


def cut(whole, size):
    """(offset, more, octets) of fragments of ``size`` octets, a multiple of 8."""
    return [
        (at, at + size < len(whole), whole[at : at + size]) for at in range(0, len(whole), size)
    ]


def ipv4(offset, more, octets, number=7, protocol=17):
    place = more << 13 | offset // 8
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(octets), number, place, 64, protocol, 0)
    return head + A4 + B4 + octets


def ipv6(offset, more, octets, number=7, protocol=17):
    body = struct.pack("!BxHI", protocol, offset | more, number) + octets
    return struct.pack("!IHBB", 6 << 28, len(body), 44, 64) + A6 + B6 + body


def read(*frames):
    return list(pcap.read(capture(*frames)))


def details(packets):
    return [
        packet.detail if isinstance(packet, pcap.Other) else packet.octets for packet in packets
    ]


@pytest.mark.parametrize("family", [ipv4, ipv6])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_fragments_make_the_datagram_in_any_order(family, order):
    parts = cut(WHOLE, 1480)
    assert len(parts) == 3
    *before, last = read(*(family(*parts[index]) for index in order))
    assert details(before) == ["an IP fragment"] * 2
    assert isinstance(last, pcap.Datagram)
    assert (last.octets, last.source_port, last.destination_port) == (MESSAGE, 910, 910)
    assert str(last.source) in ("10.0.0.1", "fd00::1")


@pytest.mark.parametrize("family", [ipv4, ipv6])
def test_datagrams_are_told_apart_by_their_identification(family):
    other = udp(MESSAGE[::-1])
    frames = [
        family(*part, number=number)
        for pair in zip(cut(WHOLE, 1480), cut(other, 1480), strict=True)
        for number, part in enumerate(pair)
    ]
    found = [packet.octets for packet in read(*frames) if isinstance(packet, pcap.Datagram)]
    assert found == [MESSAGE, MESSAGE[::-1]]


def test_ipv4_tells_datagrams_apart_by_protocol_too():
    first, second = cut(WHOLE, 1600)
    packets = read(ipv4(*first), ipv4(*second, protocol=50), ipv4(*second))
    assert details(packets) == ["an IP fragment", "an IP fragment", MESSAGE]


def test_an_ipv6_fragment_of_its_own_is_the_datagram():
    (packet,) = read(ipv6(0, False, WHOLE))
    assert packet.octets == MESSAGE


def test_an_ipv6_fragment_of_its_own_leaves_others_alone():
    first, second = cut(WHOLE, 1600)
    packets = read(ipv6(*first), ipv6(0, False, udp(b"x")), ipv6(*second))
    assert details(packets) == ["an IP fragment", b"x", MESSAGE]


def test_the_first_fragment_says_what_ipv6_carries_even_behind_more_headers():
    whole = bytes((17, 0)) + bytes(6) + WHOLE  # destination options
    first, second = cut(whole, 1600)
    frames = [ipv6(*first, protocol=60), ipv6(*second, protocol=99)]
    assert read(*frames)[-1].octets == MESSAGE
    assert read(*frames[::-1])[-1].octets == MESSAGE


def test_a_fragmented_packet_that_is_not_kink_is_told_in_brief():
    whole = udp(bytes(100), 1000, 88)
    assert read(*(ipv4(*part) for part in cut(whole, 64)))[-1].detail == "port 1000 > 88"


def test_a_copy_of_a_fragment_changes_nothing():
    first, second, third = cut(WHOLE, 1480)
    packets = read(*(ipv4(*part) for part in (third, third, first, first, second)))
    assert details(packets)[-1] == MESSAGE


EIGHT, SIXTEEN = bytes(8), bytes(16)
OVERLAP = "overlap"
END = "disagree on where"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([(0, True, SIXTEEN), (8, True, SIXTEEN)], OVERLAP),
        ([(8, True, SIXTEEN), (0, True, SIXTEEN)], OVERLAP),
        ([(0, True, SIXTEEN), (8, True, EIGHT)], OVERLAP),
        ([(0, True, EIGHT), (0, True, b"8" * 8)], OVERLAP),
        ([(0, True, EIGHT), (0, True, SIXTEEN)], OVERLAP),
        ([(0, True, EIGHT), (24, True, EIGHT), (8, True, bytes(24))], OVERLAP),
        ([(16, False, b"x"), (16, False, b"xy")], OVERLAP),
        ([(16, False, b"x"), (24, False, b"x")], END),
        ([(16, False, EIGHT), (16, True, EIGHT)], END),
        ([(16, True, EIGHT), (16, False, EIGHT)], END),
        ([(16, True, EIGHT), (8, False, b"x")], END),
        ([(8, False, b"x"), (16, True, EIGHT)], "behind the last one"),
        ([(0, True, b"1234567")], "no multiple of 8"),
        ([(0, True, b"")], "no multiple of 8"),
        ([(0xFFF8, False, EIGHT)], "behind octet 65535"),
    ],
)
def test_fragments_that_cannot_be_are_refused_and_their_datagram_with_them(parts, words):
    held = Reassembler()
    *before, last = parts
    for part in before:
        assert held.add(0, "key", 17, *part) is None
    with pytest.raises(RefusedError, match=words):
        held.add(0, "key", 17, *last)
    with pytest.raises(RefusedError, match=words):  # RFC 5722 §4: those not yet received too
        held.add(0, "key", 17, 0, True, EIGHT)
    assert held.add(0, "another", 17, 0, True, EIGHT) is None


def test_the_reader_says_why_it_refuses():
    packets = read(ipv4(0, True, SIXTEEN), ipv4(8, False, SIXTEEN), ipv4(16, False, b"x"))
    refused = "an IP fragment, refused: fragments overlap"
    assert details(packets) == ["an IP fragment", refused, refused]


def test_what_is_held_is_bounded():
    held = Reassembler()
    for index in range(fragments.MAX_PIECES):
        held.add(0, "many", 17, 16 * index, True, EIGHT)
    with pytest.raises(RefusedError, match="more than"):
        held.add(0, "many", 17, 16 * fragments.MAX_PIECES, True, EIGHT)

    held = Reassembler()
    for index in range(fragments.MAX_DATAGRAMS + 1):
        held.add(0, index, 17, 0, True, EIGHT)
    assert held.add(0, 1, 17, 8, False, b"x") == (17, EIGHT + b"x")
    assert held.add(0, 0, 17, 8, False, b"x") is None  # the oldest gave way


def test_an_identification_used_again_later_is_another_datagram():
    late = fragments.LIFETIME + 1
    held = Reassembler()
    held.add(0, "key", 17, 0, True, EIGHT)
    held.add(late, "key", 17, 0, True, b"8" * 8)
    assert held.add(late, "key", 17, 8, False, b"x") == (17, b"8" * 8 + b"x")


@given(st.binary(min_size=1, max_size=600), st.integers(1, 10), st.randoms(use_true_random=False))
def test_any_cut_in_any_order_gives_the_whole_once(whole, units, dice: random.Random):
    held = Reassembler()
    parts = cut(whole, 8 * units)
    dice.shuffle(parts)
    *before, last = [held.add(0, "key", 17, *part) for part in parts]
    assert last == (17, whole)
    assert not any(before)


PART = st.tuples(st.integers(0, 8).map(lambda n: 8 * n), st.booleans(), st.binary(max_size=24))


@given(st.lists(PART, max_size=12))
def test_whatever_is_put_together_was_sent_so(parts):
    """Each octet of a result is that of every fragment that covers it, since the last result."""
    held, seen = Reassembler(), []
    for part in parts:
        seen.append(part)
        try:
            whole = held.add(0, "key", 17, *part)
        except RefusedError:
            return
        if whole is not None:
            for offset, _, octets in seen:
                assert whole[1][offset : offset + len(octets)] == octets
            assert sum(len(octets) for _, _, octets in set(seen)) == len(whole[1])
            seen.clear()
