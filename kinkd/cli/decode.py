"""``kinkctl decode``: a capture in, every field of its KINK messages out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from kinkd.app.protocol import VERSION
from kinkd.decode import pcap, text
from kinkd.decode.document import plain
from kinkd.decode.reader import MessageView, Reader
from kinkd.decode.summary import Summary
from kinkd.errors import LocalError
from kinkd.kerberos.keytab import KeytabEntry, read_keytab

_View = MessageView | pcap.Other


def run(
    pcap_path: str, keytab_path: str | None, show_keys: bool, as_json: bool, out: TextIO
) -> int:
    """Decode a capture to ``out``, as text or as one JSON object; the exit status.

    Raises:
        LocalError: a file that cannot be read or is not what it should be.
    """
    reader = Reader(_entries(keytab_path) if keytab_path else ())
    octets = _octets(pcap_path)
    summary = Summary()
    views = _views(pcap.read(octets), reader, summary)
    try:
        if as_json:
            packets = [plain(view, show_keys=show_keys) for view in views]
        else:
            _print(views, summary, show_keys, out)
    except LocalError as error:
        out.flush()
        raise LocalError(f"{pcap_path}: {error}") from error
    if as_json:
        commands = plain(summary.outcomes, show_keys=show_keys)
        json.dump({"version": VERSION, "packets": packets, "commands": commands}, out, indent=2)
        out.write("\n")
    return 0


def _views(packets: Iterable[pcap.Packet], reader: Reader, summary: Summary) -> Iterator[_View]:
    for packet in packets:
        if isinstance(packet, pcap.Datagram):
            view = reader.read(packet)
            summary.add(view)
            yield view
        else:
            yield packet


def _print(views: Iterable[_View], summary: Summary, show_keys: bool, out: TextIO) -> None:
    """KINK messages in full, what is between them in brief, and what came of it all."""
    start: int | None = None
    others: list[pcap.Other] = []
    try:
        for view in views:
            moment = view.time if isinstance(view, pcap.Other) else view.datagram.time
            if start is None:
                start = moment
                out.write(text.render_start(start) + "\n")
            if isinstance(view, pcap.Other):
                others.append(view)
                continue
            _write(text.render_others(others, start), out)
            others.clear()
            _write(text.render_message(view, start, show_keys=show_keys), out)
    finally:  # of a capture that is cut off, too
        if start is not None:
            _write(text.render_others(others, start), out)
            _write(("", "commands:", *summary.lines(start)), out)


def _write(lines: Iterable[str], out: TextIO) -> None:
    out.writelines(f"{line}\n" for line in lines)


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
