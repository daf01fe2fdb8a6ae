"""The recorded exchanges of racoon2 in ``tests/data/interop``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from kinkd.decode import pcap
from kinkd.kerberos import offline
from kinkd.kerberos.keytab import KeytabEntry, read_keytab
from kinkd.kerberos.messages import read_ap_req
from kinkd.kerberos.offline import OfflineAcceptor
from kinkd.kerberos.port import Authenticator, OpenedTicket, SessionKey
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import KeyUsage, MessageType

INTEROP = Path(__file__).resolve().parent.parent / "data" / "interop"
NAMES = tuple(sorted(folder.name for folder in INTEROP.iterdir() if folder.is_dir()))
KEYED = tuple(name for name in NAMES if (INTEROP / name / "a.xfrm.txt").exists())
"""Those of which the keys in the first host's kernel are known."""

A, B = IPv4Address("10.99.0.1"), IPv4Address("10.99.0.2")

AHEAD = {"skew": 600, "tktexpired": 11 * 3600}
"""Seconds by which the second host's clock was ahead, where it was."""


def capture(name: str) -> bytes:
    return (INTEROP / name / "exchange.pcap").read_bytes()


def keytab(name: str) -> bytes:
    return (INTEROP / name / "realm.keytab").read_bytes()


def datagrams(name: str) -> list[pcap.Datagram]:
    packets = pcap.read(capture(name))
    return [packet for packet in packets if isinstance(packet, pcap.Datagram)]


class Keys(NamedTuple):
    """Of one SA, in hex."""

    encryption: str
    authentication: str


class Named(NamedTuple):
    """An SA: its destination, "esp" or "ah", and its SPI in hex."""

    destination: str
    protocol: str
    spi: str


def kernel_keys(name: str) -> dict[Named, Keys]:
    """What the first host's kernel had."""
    text = (INTEROP / name / "a.xfrm.txt").read_text()
    found = {}
    for block in re.split(r"^(?=src )", text, flags=re.MULTILINE)[1:]:
        destination = re.search(r"dst (\S+)", block)
        sa = re.search(r"proto (\w+) spi 0x(\w+)", block)
        encryption = re.search(r"enc \S+ 0x(\w+)", block)
        authentication = re.search(r"auth\S* \S+ 0x(\w+)", block)
        assert destination
        assert sa
        found[Named(destination[1], sa[1], sa[2])] = Keys(
            encryption[1] if encryption else "",
            authentication[1] if authentication else "",
        )
    return found


def clear(key: SessionKey, message: kink.Message) -> tuple[kink.Payload, ...]:
    """What is inside KINK_ENCRYPT; empty: there is none."""
    (*_, last) = message.payloads
    if not isinstance(last, kink.Encrypt):
        return ()
    return kink.decode_inner(key.decrypt(KeyUsage.ENCRYPT, last.cipher))


def quick_mode(payloads: Iterable[kink.Payload]) -> tuple[isakmp.QuickModePayload, ...]:
    """Of a message with one KINK_ISAKMP payload."""
    (payload,) = payloads
    assert isinstance(payload, kink.Isakmp)
    return isakmp.decode(payload)


def proposals(payloads: Iterable[kink.Payload]) -> tuple[isakmp.Proposal, ...]:
    """Of a CREATE or its REPLY."""
    association = quick_mode(payloads)[0]
    assert isinstance(association, isakmp.SecurityAssociation)
    return association.proposals


def nonce(payloads: Iterable[kink.Payload]) -> bytes | None:
    """Ni or Nr."""
    parts = quick_mode(payloads)
    return next((part.data for part in parts if isinstance(part, isakmp.Nonce)), None)


@dataclass(frozen=True)
class Transaction:
    """A command of the first host, and what the second answered, opened. ``reply`` may be None."""

    command: pcap.Datagram
    reply: pcap.Datagram | None
    opened: OpenedTicket
    authenticator: Authenticator

    @cached_property
    def message(self) -> kink.Message:
        return kink.decode(self.command.octets).message

    @property
    def type(self) -> MessageType:
        return self.message.type

    @property
    def proof(self) -> kink.ApReq:
        first = self.message.payloads[0]
        assert isinstance(first, kink.ApReq)
        return first

    @cached_property
    def asked(self) -> tuple[kink.Payload, ...]:
        return clear(self.opened.key, self.message)

    @cached_property
    def answered(self) -> tuple[kink.Payload, ...]:
        assert self.reply is not None
        return clear(self.opened.key, kink.decode(self.reply.octets).message)

    @property
    def creates(self) -> bool:
        """Whether it is a CREATE that was carried out."""
        if self.type is not MessageType.CREATE or self.reply is None:
            return False
        return any(isinstance(part, kink.Isakmp) for part in self.answered)


class Recording:
    """One recorded exchange: its KINK datagrams, and the keys that open them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.datagrams = datagrams(name)
        self.entries: list[KeytabEntry] = read_keytab(keytab(name))
        self.suffix = "128" if name.endswith("etype17") else ""  # the hosts' other principals

    def opened(self, command: pcap.Datagram) -> OpenedTicket:
        """The ticket of a command."""
        request = kink.decode(command.octets).message.payloads[0]
        assert isinstance(request, kink.ApReq)
        return OfflineAcceptor(self.entries, lambda: 0).open(request.ap_req)

    def authenticator(self, command: pcap.Datagram) -> Authenticator:
        """Of a command or ACK."""
        opened = self.opened(command)
        part = offline._authenticator(opened.key, read_ap_req(opened.ap_req))
        return Authenticator(opened.ap_req, part.ctime, part.cusec)

    def now(self, datagram: pcap.Datagram) -> float:
        """POSIX seconds on the second host's clock when a datagram came."""
        return datagram.time / 1e9 + AHEAD.get(self.name, 0)

    @cached_property
    def transactions(self) -> list[Transaction]:
        """All commands and ACKs of the first host, in their order."""
        replies = {
            head.xid: each
            for each in self.datagrams
            if each.source == B and (head := kink.header(each.octets)).type == MessageType.REPLY
        }
        return [
            Transaction(
                each,
                replies.get(head.xid) if head.type != MessageType.ACK else None,
                self.opened(each),
                self.authenticator(each),
            )
            for each in self.datagrams
            if each.source == A and (head := kink.header(each.octets)).type != MessageType.REPLY
        ]
