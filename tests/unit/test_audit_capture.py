"""The filter in the kernel lets through what is of interest, and gets along with any octets."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import LocalError
from kinkd.kernel import capture
from kinkd.kernel.capture import FILTER, SNAPSHOT, Capture, assemble
from tests.support import packets
from tests.unit.test_audit import extended

IPV4, IPV6, ARP, VLAN = 0x0800, 0x86DD, 0x0806, 0x8100
HOST, BROADCAST, MULTICAST, OTHERS, OUTGOING = range(5)
ETHERNET, LOOPBACK, NO_LINK = 1, 772, 0xFFFE
PROGRAM = assemble(FILTER)


def run(octets: bytes, protocol: int, kind: int, hardware: int, tagged: int) -> int:
    """What the filter answers, by the rules of filter.rst: how much is kept of a packet."""
    steps = list(struct.iter_unpack("=HBBI", PROGRAM))
    beside = {0: protocol, 4: kind, 28: hardware, 48: tagged}  # SKF_AD_*
    sizes = {0x20: 4, 0x28: 2, 0x30: 1, 0x48: 2}
    a = x = at = 0
    while True:
        code, then, otherwise, value = steps[at]
        at += 1
        match code:
            case 0x20 | 0x28 | 0x30 | 0x48 if value >= 0xFFFFF000:
                a = beside[value - 0xFFFFF000]
            case 0x20 | 0x28 | 0x30 | 0x48:
                start = value + x * (code == 0x48)
                if start + sizes[code] > len(octets):
                    return 0
                a = int.from_bytes(octets[start : start + sizes[code]], "big")
            case 0xB1:
                x = 4 * (octets[value] & 15)
            case 0x54:
                a &= value
            case 0x15:
                at += then if a == value else otherwise
            case 0x45:
                at += then if a & value else otherwise
            case 0x06:
                return value
            case _:
                raise AssertionError(hex(code))


def passes(
    octets: bytes, kind: int = OUTGOING, hardware: int = ETHERNET, *, tagged: int = 0
) -> bool:
    protocol = IPV6 if octets[0] >> 4 == 6 else IPV4
    kept = run(octets, protocol, kind, hardware, tagged)
    assert kept in (0, SNAPSHOT)
    return bool(kept)


def ip(protocol: int, body: bytes = bytes(8), source: str = "", destination: str = "") -> bytes:
    ends = source or "192.0.2.1", destination or "192.0.2.2"
    return packets.ip(*map(ip_address, ends), protocol, body)


def ip6(protocol: int, body: bytes = bytes(8), source: str = "", destination: str = "") -> bytes:
    return ip(protocol, body, source or "2001:db8::1", destination or "2001:db8::2")


BOTH = pytest.mark.parametrize("family", [ip, ip6])


def test_the_kernel_takes_it() -> None:
    """It proves of every program that it ends, and knows every instruction of it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        capture._attach(s, PROGRAM)
        with pytest.raises(OSError, match="Invalid argument"):
            capture._attach(s, PROGRAM[:-8])


@BOTH
@pytest.mark.parametrize("protocol", [0, 1, 6, 17, 44, 47, 58, 60, 89, 132, 255])
def test_what_is_not_of_ipsec_passes(family: type[bytes], protocol: int) -> None:
    assert passes(family(protocol))
    assert passes(family(protocol), HOST)


@BOTH
@pytest.mark.parametrize("protocol", [50, 51])
def test_ipsec_does_not(family: type[bytes], protocol: int) -> None:
    assert not passes(family(protocol))


@BOTH
@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        (910, 910, False),
        (910, 911, True),
        (911, 910, True),
        (4500, 4500, False),
        (40000, 4500, False),
        (4500, 40000, False),
        (910, 4500, False),
        (53, 40000, True),
    ],
)
def test_udp_that_is_ours_does_not(
    family: type[bytes], source: int, destination: int, expected: bool
) -> None:
    assert passes(family(17, packets.udp(b"", source, destination))) is expected
    assert passes(family(6, packets.udp(b"", source, destination)))


def test_ports_are_found_behind_options() -> None:
    plain = ip(17, packets.udp(b"", 910, 910))
    for words in range(11):
        head = bytes((0x45 + words,)) + plain[1:20] + bytes(4 * words)
        assert not passes(head + plain[20:])
        assert passes(head + packets.udp(b"", 911, 910))


@pytest.mark.parametrize(
    ("field", "expected"),
    [(0, True), (0x4000, True), (0x2000, True), (0x2001, False), (1, False), (0x1FFF, False)],
)
def test_of_fragments_the_first_passes(field: int, expected: bool) -> None:
    whole = ip(6)
    assert passes(whole[:6] + field.to_bytes(2, "big") + whole[8:]) is expected


@pytest.mark.parametrize(
    ("field", "expected"), [(0, True), (1, True), (7, True), (8, False), (0xFFF9, False)]
)
def test_of_fragments_of_ipv6_the_first_passes(field: int, expected: bool) -> None:
    whole = extended(ip6(6), [44])
    assert passes(whole[:42] + field.to_bytes(2, "big") + whole[44:]) is expected


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *(("224.0.0.1", False), ("239.255.255.255", False), ("255.255.255.255", False)),
        *(("169.254.0.1", False), ("169.253.0.1", True), ("169.255.0.1", True)),
        *(("240.0.0.1", True), ("223.255.255.255", True), ("192.0.2.255", True)),
        *(("ff02::1", False), ("ff0e::1", False), ("fe80::1", False), ("febf::1", False)),
        *(("fec0::1", True), ("fe7f::1", True), ("fd00::1", True)),
    ],
)
def test_addresses_that_are_nobodys_do_not(address: str, expected: bool) -> None:
    family = ip6 if ":" in address else ip
    assert passes(family(6, destination=address)) is expected
    assert passes(family(6, source=address)) is expected


@pytest.mark.parametrize("kind", range(8))
def test_what_is_to_this_host_or_from_it_passes(kind: int) -> None:
    assert passes(ip(6), kind) is (kind in (HOST, OUTGOING))


def test_loopback_does_not() -> None:
    assert not passes(ip(6), OUTGOING, LOOPBACK)
    assert passes(ip(6), OUTGOING, NO_LINK)


def test_what_has_a_tag_is_seen_on_the_interface_of_the_vlan() -> None:
    assert not passes(ip(6), HOST, tagged=1)


@pytest.mark.parametrize("protocol", [ARP, VLAN, 3, 0x88CC])
def test_what_is_not_ip_does_not(protocol: int) -> None:
    assert not run(ip(6), protocol, HOST, ETHERNET, 0)


@given(st.binary(max_size=80), st.sampled_from((IPV4, IPV6)), st.integers(0, 5))
def test_it_ends_whatever_the_octets(octets: bytes, protocol: int, kind: int) -> None:
    assert run(octets, protocol, kind, ETHERNET, 0) in (0, SNAPSHOT)


@given(st.ip_addresses(), st.integers(0, 255), st.sampled_from((HOST, OUTGOING)))
def test_of_all_addresses_those_of_hosts_pass(
    address: IPv4Address | IPv6Address, protocol: int, kind: int
) -> None:
    family = ip6 if address.version == 6 else ip
    whole = family(protocol, bytes(8), str(address))
    shared = address.is_multicast or address.is_link_local or str(address) == "255.255.255.255"
    assert passes(whole, kind) is (not shared and protocol not in (50, 51))


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EPERM, "CAP_NET_RAW"), (errno.EAFNOSUPPORT, "AF_PACKET"), (errno.EMFILE, "Too many")],
)
def test_where_there_is_no_socket_it_says_why(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(number, "Too many, or not allowed")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(LocalError, match=words) as fault:
        Capture()
    assert "\n" not in str(fault.value)
