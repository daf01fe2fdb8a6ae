"""Packets and capture files made by hand."""

from __future__ import annotations

import struct
from ipaddress import IPv6Address

A4, B4 = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
A6, B6 = IPv6Address("fd00::1").packed, IPv6Address("fd00::2").packed


def capture(*frames, link=101, order="<", magic=0xA1B2C3D4, fraction=5, snap=65535):
    head = struct.pack(order + "IHHIIII", magic, 2, 4, 0, 0, 65535, link)
    records = (
        struct.pack(order + "IIII", 1, fraction, min(len(frame), snap), len(frame)) + frame[:snap]
        for frame in frames
    )
    return head + b"".join(records)


def udp(payload=b"payload", source=910, destination=910):
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def ipv4(protocol, body, fragment=0):
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, fragment, 64, protocol, 0)
    return head + A4 + B4 + body


def ipv6(protocol, body):
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + A6 + B6 + body


def ip(source, destination, protocol, body):
    """IPv4 or IPv6, as the addresses are."""
    if source.version == 4:
        return ipv4(protocol, body)[:12] + source.packed + destination.packed + body
    return ipv6(protocol, body)[:8] + source.packed + destination.packed + body
