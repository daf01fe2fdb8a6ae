"""Capture files: octet orders, clocks, link types, and what is not KINK."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest

from kinkd.decode import pcap
from kinkd.errors import LocalError
from tests.support.packets import capture, ipv4, ipv6, udp


def only(octets):
    (packet,) = pcap.read(octets)
    return packet


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "time"), [(0xA1B2C3D4, 5000), (0xA1B23C4D, 5)])
def test_both_octet_orders_and_both_clocks_are_read(order, magic, time):
    packet = only(capture(ipv4(17, udp()), order=order, magic=magic))
    assert packet == pcap.Datagram(
        1_000_000_000 + time, ip_address("10.0.0.1"), 910, ip_address("10.0.0.2"), 910, b"payload"
    )


@pytest.mark.parametrize(
    ("link", "head"),
    [
        (1, bytes(12) + b"\x08\x00"),
        (1, bytes(12) + b"\x81\x00\x00\x05\x08\x00"),
        (12, b""),
        (101, b""),
        (228, b""),
        (113, bytes(14) + b"\x08\x00"),
        (276, b"\x08\x00" + bytes(18)),
    ],
)
def test_every_link_type_leads_to_the_datagram(link, head):
    packet = only(capture(head + ipv4(17, udp()), link=link))
    assert isinstance(packet, pcap.Datagram)
    assert packet.octets == b"payload"


@pytest.mark.parametrize("link", [101, 229])
def test_ipv6_is_read_through_its_extension_headers(link):
    packet = only(
        capture(ipv6(0, bytes((60, 0)) + bytes(6) + bytes((17, 0)) + bytes(6) + udp()), link=link)
    )
    assert isinstance(packet, pcap.Datagram)
    assert packet.source == ip_address("fd00::1")
    assert packet.octets == b"payload"


def test_trailing_octets_of_a_short_ethernet_frame_are_not_payload():
    packet = only(capture(bytes(12) + b"\x08\x00" + ipv4(17, udp(b"x")) + bytes(17), link=1))
    assert packet.octets == b"x"


ESP = struct.pack("!II", 0x1234, 7) + bytes(16)


@pytest.mark.parametrize(
    ("frame", "kind", "clear", "detail"),
    [
        (ipv4(50, ESP), "ESP", False, "spi 0x00001234"),
        (ipv6(50, ESP), "ESP", False, "spi 0x00001234"),
        (ipv4(51, bytes((1, 4, 0, 0)) + ESP), "AH", True, "spi 0x00001234 carrying ICMP"),
        (ipv4(51, bytes((50, 4, 0, 0)) + ESP), "AH", False, "spi 0x00001234 carrying ESP"),
        (ipv4(51, bytes((4, 4, 0, 0)) + ESP), "AH", True, "spi 0x00001234 carrying IPv4"),
        (ipv4(17, udp(ESP, 4500, 4500)), "ESP in UDP", False, "port 4500 > 4500 spi 0x00001234"),
        (ipv6(17, udp(ESP, 4500, 9)), "ESP in UDP", False, "port 4500 > 9 spi 0x00001234"),
        (ipv4(17, udp(bytes(4) + ESP, 4500, 4500)), "IKE", True, "port 4500 > 4500"),
        (ipv4(17, udp(b"\xff", 4500, 4500)), "NAT keep-alive", True, "port 4500 > 4500"),
        (ipv4(17, udp(b"", 4500, 4500)), "UDP", True, "port 4500 > 4500"),
        (ipv4(1, bytes(8)), "ICMP", True, ""),
        (ipv6(58, bytes(8)), "ICMPv6", True, ""),
        (ipv4(17, udp(source=1000, destination=88)), "UDP", True, "port 1000 > 88"),
        (ipv4(6, struct.pack("!HH", 1, 2)), "TCP", True, "port 1 > 2"),
        (ipv4(99, b""), "protocol 99", True, ""),
        (ipv4(17, udp(b"12345678"), fragment=0x2000), "UDP", True, "an IP fragment"),
        (ipv4(17, udp(), fragment=3), "UDP", True, "an IP fragment"),
        (ipv6(44, bytes((17, 0, 0, 1)) + bytes(12)), "UDP", True, "an IP fragment"),
    ],
)
def test_what_is_not_kink_is_told_in_brief(frame, kind, clear, detail):
    packet = only(capture(frame))
    assert (packet.kind, packet.clear, packet.detail) == (kind, clear, detail)
    assert packet.sequence == (7 if "spi" in detail else None)


def test_arp_has_a_name():
    assert only(capture(bytes(12) + b"\x08\x06" + bytes(28), link=1)).kind == "ARP"


@pytest.mark.parametrize(
    "frame", [b"", b"\x45", ipv4(17, udp())[:-1], ipv4(17, b"\0"), b"\x41" + ipv4(17, udp())[1:]]
)
def test_a_frame_that_cannot_be_read_leaves_the_rest_readable(frame):
    first, second = pcap.read(capture(frame, ipv4(17, udp())))
    assert isinstance(first, pcap.Other)
    assert first.kind == "unreadable"
    assert isinstance(second, pcap.Datagram)


@pytest.mark.parametrize(
    ("octets", "words"),
    [
        (b"\x0a\x0d\x0d\x0a" + bytes(30), "editcap"),
        (b"GET / HTTP/1.1", "no capture file"),
        (capture(link=105), "link type 105"),
        (capture()[:20], "cut-off"),
        (capture(b"frame")[:-1], "cut-off"),
        (capture() + struct.pack("<IIII", 1, 1, 0x7FFFFFFF, 1), "frame of 2147483647 octets"),
    ],
)
def test_a_damaged_file_is_named_for_what_it_is(octets, words):
    with pytest.raises(LocalError, match=words):
        list(pcap.read(octets))
