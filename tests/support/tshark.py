"""tshark with the dissector of ``conf/wireshark``, on captures made by hand."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent.parent / "conf" / "wireshark" / "kink.lua"

_HOSTS = bytes((10, 99, 0, 1)), bytes((10, 99, 0, 2))
_RAW_IP = 101
_UDP = 17


def capture(datagrams: Iterable[bytes], port: int = 910, snap: int = 0x40000) -> bytes:
    """A capture file of UDP datagrams between two hosts, cut off at ``snap`` octets a frame."""
    octets = bytearray(struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 0x40000, _RAW_IP))
    for number, payload in enumerate(datagrams):
        udp = struct.pack("!HHHH", port, port, 8 + len(payload), 0) + payload
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), number & 0xFFFF, 0, 64, _UDP, 0)
        frame = head + _HOSTS[0] + _HOSTS[1] + udp
        octets += struct.pack("<IIII", number, 0, min(len(frame), snap), len(frame))
        octets += frame[:snap]
    return bytes(octets)


def run(home: Path, *arguments: str) -> str:
    """What tshark prints with the dissector loaded, and none of its user's own settings.

    Raises:
        AssertionError: tshark failed, or said anything but that it runs as root.
    """
    done = subprocess.run(
        ["tshark", "-n", "-X", f"lua_script:{SCRIPT}", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("Running as user")]
    assert (done.returncode, said) == (0, [])
    return done.stdout


def rows(
    home: Path, octets: bytes, fields: Sequence[str], *arguments: str
) -> list[dict[str, list[str]]]:
    """Of every packet, every value of each of the ``fields``, in the order of the packet."""
    path = home / "capture.pcap"
    path.write_bytes(octets)
    select = [word for field in fields for word in ("-e", field)]
    form = ["-T", "fields", "-E", "separator=/t", "-E", "aggregator=|", "-E", "occurrence=a"]
    printed = run(home, *arguments, "-r", str(path), *form, *select)
    return [
        {
            field: value.split("|") if value else []
            for field, value in zip(fields, line.split("\t"), strict=True)
        }
        for line in printed.splitlines()
    ]
