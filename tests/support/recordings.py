"""The recorded exchanges of racoon2 in ``tests/data/interop``."""

from __future__ import annotations

import re
from pathlib import Path

from kinkd.decode import pcap

INTEROP = Path(__file__).resolve().parent.parent / "data" / "interop"
NAMES = tuple(sorted(folder.name for folder in INTEROP.iterdir() if folder.is_dir()))


def capture(name: str) -> bytes:
    return (INTEROP / name / "exchange.pcap").read_bytes()


def keytab(name: str) -> bytes:
    return (INTEROP / name / "realm.keytab").read_bytes()


def datagrams(name: str) -> list[pcap.Datagram]:
    packets = pcap.read(capture(name))
    return [packet for packet in packets if isinstance(packet, pcap.Datagram)]


def kernel_keys(name: str) -> dict[tuple[str, str, str], tuple[str, str]]:
    """(destination, protocol, SPI) to (encryption key, authentication key), all in hex."""
    text = (INTEROP / name / "a.xfrm.txt").read_text()
    found = {}
    for block in re.split(r"^(?=src )", text, flags=re.M)[1:]:
        destination = re.search(r"dst (\S+)", block)
        sa = re.search(r"proto (\w+) spi 0x(\w+)", block)
        encryption = re.search(r"enc \S+ 0x(\w+)", block)
        authentication = re.search(r"auth\S* \S+ 0x(\w+)", block)
        assert destination
        assert sa
        found[destination[1], sa[1], sa[2]] = (
            encryption[1] if encryption else "",
            authentication[1] if authentication else "",
        )
    return found
