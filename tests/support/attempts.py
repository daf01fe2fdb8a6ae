"""Attempts to reach services, hundreds at once: who gets through to whom.

All sockets are this process's own, made in the namespaces of the hosts: a process for each would
take a minute in User-Mode Linux.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

from tests.support.observe import Address
from tests.support.oracle import Packet
from tests.support.stream import checksum
from tests.support.topology import Node

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "icmp": socket.SOCK_RAW}
NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1}
ECHO = {4: (8, 0), 6: (128, 129)}  # request and reply
EPHEMERAL = 40000  # stands for a port that the kernel chose
MARK = b"an intruder was here"
AGAIN = 1.0  # seconds until what was not answered is asked again; TCP does so itself
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}


class Attempt(NamedTuple):
    """Somebody asks somebody; ``source_port`` 0: any that the kernel gives."""

    source: str
    target: str
    family: int
    protocol: str
    port: int = 0
    source_port: int = 0

    def packets(self, nodes: Mapping[str, Node]) -> tuple[Packet, Packet]:
        """The first packet, and its answer."""
        ends = [nodes[name].address(self.family) for name in (self.source, self.target)]
        if self.protocol == "icmp":
            number = 1 if self.family == 4 else 58
            request, reply = ECHO[self.family]
            return Packet(*ends, number, request), Packet(*ends[::-1], number, reply)
        number, ports = NUMBERS[self.protocol], (self.source_port or EPHEMERAL, self.port)
        return Packet(*ends, number, *ports), Packet(*ends[::-1], number, *ports[::-1])


class _Trial:
    """One attempt under way."""

    def __init__(self, number: int, attempt: Attempt, here: Node, there: Node) -> None:
        self.attempt = attempt
        self.socket = socket.socket(
            FAMILIES[attempt.family],
            KINDS[attempt.protocol],
            (1 if attempt.family == 4 else 58) if attempt.protocol == "icmp" else 0,
        )
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.answered = 0.0  # when
        self._octets = b"?"
        if attempt.protocol == "icmp":
            kind = ECHO[attempt.family][0]
            plain = struct.pack("!BBHHH", kind, 0, 0, number & 0xFFFF, 1)
            self._octets = plain[:2] + struct.pack("!H", checksum(plain)) + plain[4:]
        if attempt.source_port:
            self.socket.bind((str(here.address(attempt.family)), attempt.source_port))
        self._target = (str(there.address(attempt.family)), attempt.port)

    def ask(self) -> None:
        with contextlib.suppress(OSError):  # EPERM: blocked; EINPROGRESS
            self.socket.connect(self._target)
            self.socket.send(self._octets)

    def again(self) -> None:
        if self.attempt.protocol != "tcp" and not self.answered:
            self.ask()

    def hear(self) -> None:
        try:
            octets = self.socket.recv(2048)
        except OSError:
            return
        if self.attempt.protocol == "icmp":
            octets = octets[20:] if self.attempt.family == 4 else octets
            if octets[0] != ECHO[self.attempt.family][1] or octets[4:6] != self._octets[4:6]:
                return
        if octets and not self.answered:
            self.answered = time.monotonic()


def _serve(node: Node, services: Iterable[Attempt]) -> list[socket.socket]:
    made = []
    for each in services:
        listener = socket.socket(FAMILIES[each.family], KINDS[each.protocol])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(node.address(each.family)), each.port))
        listener.setblocking(False)
        if each.protocol == "tcp":
            listener.listen(256)
        made.append(listener)
    return made


def _answer(listener: socket.socket, accepted: list[socket.socket]) -> None:
    with contextlib.suppress(OSError):
        if listener.type == socket.SOCK_STREAM:
            connection, _ = listener.accept()
            accepted.append(connection)
            connection.send(b"!")
        else:
            octets, asker = listener.recvfrom(2048)
            listener.sendto(octets, asker)


def reach(
    nodes: Mapping[str, Node], attempts: Sequence[Attempt], patience: float
) -> dict[Attempt, float]:
    """Make all attempts at once; after how many seconds each had its answer, of those that had."""
    by_target: dict[str, dict[tuple[int, str, int], Attempt]] = defaultdict(dict)
    by_source: dict[str, list[tuple[int, Attempt]]] = defaultdict(list)
    for number, each in enumerate(attempts):
        by_source[each.source].append((number, each))
        if each.protocol != "icmp":
            by_target[each.target][each.family, each.protocol, each.port] = each
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        accepted: list[socket.socket] = []
        stack.callback(lambda: _close(accepted))
        for name, services in by_target.items():
            for listener in nodes[name].python(partial(_serve, nodes[name], services.values())):
                stack.enter_context(listener)
                selector.register(
                    listener, selectors.EVENT_READ, partial(_answer, listener, accepted)
                )
        trials: list[_Trial] = []
        for name, own in by_source.items():
            trials += nodes[name].python(partial(_prepare, nodes, own))
        begun = time.monotonic()
        for trial in trials:
            stack.enter_context(trial.socket)
            trial.ask()
            selector.register(trial.socket, selectors.EVENT_READ, trial.hear)
        _run(selector, trials, begun + patience)
    return {each.attempt: each.answered - begun for each in trials if each.answered}


def _close(sockets: Iterable[socket.socket]) -> None:
    for each in sockets:
        each.close()


def _prepare(nodes: Mapping[str, Node], own: list[tuple[int, Attempt]]) -> list[_Trial]:
    return [_Trial(number, each, nodes[each.source], nodes[each.target]) for number, each in own]


def _run(selector: selectors.BaseSelector, trials: Sequence[_Trial], end: float) -> None:
    due = time.monotonic() + AGAIN
    while (now := time.monotonic()) < end and not all(trial.answered for trial in trials):
        for key, _ in selector.select(max(0.0, min(due, end) - now)):
            key.data()
        if time.monotonic() >= due:
            due += AGAIN
            for trial in trials:
                trial.again()


# --- packets that no kernel of the lab would send ---------------------------------------------


def forged(packet: Packet) -> bytes:
    """An IP packet, well made, that carries ``MARK``: a datagram, an echo request or a SYN."""
    ports = struct.pack("!HH", packet.source_port, packet.destination_port)
    if packet.protocol == 6:
        body, at = ports + struct.pack("!IIBBHHH", 1, 0, 0x50, 0x02, 65535, 0, 0) + MARK, 16
    elif packet.protocol == 17:
        body, at = ports + struct.pack("!HH", 8 + len(MARK), 0) + MARK, 6
    else:
        body, at = struct.pack("!BBHI", packet.source_port, 0, 0, 1) + MARK, 2
    ends = packet.source.packed + packet.destination.packed
    pseudo = ends + struct.pack("!IHBB", len(body), 0, 0, packet.protocol)
    summed = body if packet.protocol == 1 else pseudo + body
    body = body[:at] + struct.pack("!H", checksum(summed)) + body[at + 2 :]
    if packet.source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(body), packet.protocol, 64) + ends + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, packet.protocol, 0)
    return head[:10] + struct.pack("!H", checksum(head + ends)) + ends + body


def inject(node: Node, receiver: Node, packets: Iterable[Packet]) -> None:
    """Put forged packets on the wire of ``node``, past all that its kernel would do to them."""
    hardware = bytes.fromhex(receiver.hardware_address().replace(":", ""))

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as link:
            for packet in packets:
                ethertype = _ETHERTYPES[packet.source.version]
                link.sendto(forged(packet), ("eth0", ethertype, 0, 0, hardware))

    node.python(send)


@contextlib.contextmanager
def delivered(node: Node) -> Iterator[list[Packet]]:
    """What of forged packets comes past the policies of ``node``: complete after the block.

    Raw sockets hear what the protocols hear: what has passed the policies for packets in.
    """

    def listen() -> list[tuple[socket.socket, int]]:
        return [
            (socket.socket(FAMILIES[family], socket.SOCK_RAW, number), number)
            for family, numbers in ((4, (1, 6, 17)), (6, (6, 17, 58)))
            for number in numbers
        ]

    heard: list[Packet] = []
    listeners = node.python(listen)
    for listener, _ in listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    try:
        yield heard
        time.sleep(0.3)
    finally:
        for listener, number in listeners:
            with listener:
                heard += _hear(listener, number, node)


def _hear(listener: socket.socket, number: int, node: Node) -> Iterator[Packet]:
    listener.setblocking(False)
    while True:
        try:
            octets, (sender, *_) = listener.recvfrom(2048)
        except BlockingIOError:
            return
        own: Address = node.ipv6
        if listener.family == socket.AF_INET:
            octets, own = octets[4 * (octets[0] & 15) :], node.ipv4
        if octets.endswith(MARK):
            ports = (
                (octets[0], octets[1]) if number in (1, 58) else struct.unpack("!HH", octets[:4])
            )
            yield Packet(own.__class__(sender), own, number, *ports)
