"""``kinkctl decode``: a capture in, every field of its KINK messages out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from kinkd.app.protocol import VERSION
from kinkd.decode import pcap, text
from kinkd.decode.document import plain
from kinkd.decode.reader import Reader
from kinkd.errors import LocalError
from kinkd.kerberos.keytab import KeytabEntry, read_keytab


def run(
    pcap_path: str, keytab_path: str | None, show_keys: bool, as_json: bool, out: TextIO
) -> int:
    """Decode a capture to ``out``, as text or as one JSON object; the exit status.

    Raises:
        LocalError: a file that cannot be read or is not what it should be.
    """
    reader = Reader(_entries(keytab_path) if keytab_path else ())
    start: int | None = None
    packets: list[object] = []
    octets = _octets(pcap_path)
    try:
        for packet in pcap.read(octets):
            start = packet.time if start is None else start
            view = reader.read(packet) if isinstance(packet, pcap.Datagram) else packet
            if as_json:
                packets.append(plain(view, show_keys=show_keys))
            elif isinstance(view, pcap.Other):
                out.write(text.render_other(view, start) + "\n")
            else:
                lines = text.render_message(view, start, show_keys=show_keys)
                out.write("\n".join(lines) + "\n")
    except LocalError as error:
        out.flush()
        raise LocalError(f"{pcap_path}: {error}") from error
    if as_json:
        json.dump({"version": VERSION, "packets": packets}, out, indent=2)
        out.write("\n")
    return 0


def _entries(path: str) -> list[KeytabEntry]:
    octets = _octets(path)
    try:
        return read_keytab(octets)
    except LocalError as error:
        raise LocalError(f"{path}: {error}") from error


def _octets(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from error
