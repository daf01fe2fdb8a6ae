"""ESP packets made by hand, as a host that holds a key could make them with any source address."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.support.observe import KernelSa
from tests.support.topology import Node

_UDP = 17
_ESP = 50
_TUNNELLED = {4: 4, 6: 41}  # next header of a packet in a tunnel (RFC 4303 §2.6)
_HOP_LIMIT = 64
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}

Address = IPv4Address | IPv6Address


def send_esp(
    node: Node,
    receiver: Node,
    sa: KernelSa,
    *,
    source: Address,
    sequence: int,
    datagram: bytes,
    next_header: int = _UDP,
) -> None:
    """Send from ``node`` under the keys of ``sa``, in an IP header that claims ``source``.

    ``datagram`` is a UDP datagram whose checksum was made for ``source``, or else what
    ``next_header`` says.
    """
    octets = _esp(sa, sequence, datagram, next_header)
    header = _ip_header(source, sa.destination, _ESP, len(octets))
    _send_packet(node, receiver, sa.destination.version, header + octets)


def tunnelled(source: Address, destination: Address, datagram: bytes) -> tuple[bytes, int]:
    """A UDP datagram as an IP packet in a tunnel, and the number that is its next header's."""
    packet = _ip_header(source, destination, _UDP, len(datagram)) + datagram
    return packet, _TUNNELLED[source.version]


def send_clear(
    node: Node, receiver: Node, source: Address, destination: Address, datagram: bytes
) -> None:
    """Send a UDP datagram from ``node`` as it is, in an IP header that claims ``source``."""
    header = _ip_header(source, destination, _UDP, len(datagram))
    _send_packet(node, receiver, destination.version, header + datagram)


def _send_packet(node: Node, receiver: Node, version: int, packet: bytes) -> None:
    ethertype = _ETHERTYPES[version]
    hardware = bytes.fromhex(receiver.hardware_address().replace(":", ""))

    def send() -> None:
        # A packet socket goes past IP and so past the sender's own policies (packet(7)).
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as link:
            link.sendto(packet, ("eth0", ethertype, 0, 0, hardware))

    node.python(send)


def udp_datagram(source: Address, destination: Address, port: int, payload: bytes) -> bytes:
    """A UDP datagram from and to ``port`` (RFC 768; RFC 8200 §8.1)."""
    length = 8 + len(payload)
    plain = struct.pack("!HHHH", port, port, length, 0) + payload
    pseudo = source.packed + destination.packed + struct.pack("!IHBB", length, 0, 0, _UDP)
    return plain[:6] + struct.pack("!H", _checksum(pseudo + plain) or 0xFFFF) + payload


def receive_udp(node: Node, address: Address, port: int) -> Callable[[float], bytes | None]:
    """Listen; what is returned waits so many seconds for a datagram, None: there came none."""

    def listen() -> socket.socket:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        listener = socket.socket(family, socket.SOCK_DGRAM)
        listener.bind((str(address), port))
        return listener

    listener = node.python(listen)

    def receive(patience: float) -> bytes | None:
        with listener:
            listener.settimeout(patience)
            try:
                return listener.recv(65535)
            except TimeoutError:
                return None

    return receive


def _esp(sa: KernelSa, sequence: int, payload: bytes, next_header: int) -> bytes:
    """RFC 4303 §2, with AES-GCM (RFC 4106) or AES-CBC and HMAC-SHA-2 (RFC 3602, RFC 4868)."""
    head = struct.pack("!II", sa.spi, sequence)
    if "aead" in sa.keys:
        key, salt = sa.keys["aead"][:-4], sa.keys["aead"][-4:]
        vector = os.urandom(8)
        sealed = AESGCM(key).encrypt(salt + vector, _padded(payload, next_header, 4), head)
        return head + vector + sealed
    vector = os.urandom(16)
    cipher = Cipher(algorithms.AES(sa.keys["enc"]), modes.CBC(vector)).encryptor()
    body = head + vector + cipher.update(_padded(payload, next_header, 16)) + cipher.finalize()
    key = sa.keys["auth-trunc"]
    digest = {20: hashlib.sha1, 32: hashlib.sha256, 48: hashlib.sha384, 64: hashlib.sha512}
    octets = 12 if len(key) == 20 else len(key) // 2
    return body + hmac.digest(key, body, digest[len(key)])[:octets]


def _padded(payload: bytes, next_header: int, block: int) -> bytes:
    padding = -(len(payload) + 2) % block
    return payload + bytes(range(1, padding + 1)) + bytes([padding, next_header])


def _ip_header(source: Address, destination: Address, protocol: int, length: int) -> bytes:
    addresses = source.packed + destination.packed
    if source.version == 6:
        return struct.pack("!IHBB", 0x60000000, length, protocol, _HOP_LIMIT) + addresses
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, _HOP_LIMIT, protocol, 0)
    return head[:10] + struct.pack("!H", _checksum(head + addresses)) + addresses


def _checksum(octets: bytes) -> int:
    octets += b"\0" * (len(octets) % 2)
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
