"""The Kerberos octets of one recorded CREATE and its REPLY, cut out at their fixed offsets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

INTEROP = Path(__file__).parent.parent / "data" / "interop"


@dataclass(frozen=True)
class KinkDatagram:
    """What KINK puts around Kerberos (RFC 4430 §4): first payload, KINK_ENCRYPT, Cksum."""

    kerberos: bytes
    cipher: bytes
    signed: bytes
    checksum: bytes


def exchange(name: str) -> tuple[KinkDatagram, KinkDatagram]:
    """The first two KINK datagrams of a recording."""
    datagrams = _udp_910((INTEROP / name / "exchange.pcap").read_bytes())
    return _cut(datagrams[0]), _cut(datagrams[1])


def keytab(name: str) -> bytes:
    """The recording's keytab file."""
    return (INTEROP / name / "realm.keytab").read_bytes()


def _udp_910(pcap: bytes) -> list[bytes]:
    found, at = [], 24
    while at < len(pcap):
        size = int.from_bytes(pcap[at + 8 : at + 12], "little")
        packet = pcap[at + 16 : at + 16 + size]
        # Ethernet II, IPv4 without options, UDP
        if packet[12:14] == b"\x08\x00" and packet[23] == 17 and packet[36:38] == b"\x03\x8e":
            found.append(packet[42:])
        at += 16 + size
    return found


def _cut(message: bytes) -> KinkDatagram:
    checksum_octets = int.from_bytes(message[14:16])
    first = int.from_bytes(message[18:20])
    second = 16 + (first + 3) // 4 * 4
    end = second + int.from_bytes(message[second + 2 : second + 4])
    body = len(message) - checksum_octets
    signed = message[:2] + body.to_bytes(2) + message[4:14] + b"\0\0" + message[16:body]
    return KinkDatagram(message[24 : 16 + first], message[second + 4 : end], signed, message[body:])
