"""tshark with the dissector of ``conf/wireshark``, on captures made by hand."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.support import packets

SCRIPT = Path(__file__).resolve().parent.parent.parent / "conf" / "wireshark" / "kink.lua"


def capture(datagrams: Iterable[bytes], snap: int = 65535) -> bytes:
    """A capture file of KINK datagrams, cut off at ``snap`` octets a frame."""
    frames = [packets.ipv4(17, packets.udp(octets)) for octets in datagrams]
    return packets.capture(*frames, snap=snap)


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
    assert (done.returncode, said) == (0, []), (done.returncode, said[:5])
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
