"""Traffic through SAs: pings and a TCP stream at a bounded rate, and what became of them.

A process of its own beside the daemons, light because it shares one processor with them. It is
given sockets that are connected already, as descriptors, says "running" in a line, and ends on
SIGTERM with its figures as JSON. It sleeps between pings where ping(8) spins: at intervals below
10 ms it would take all the time that others leave.

    stream.py PING SOURCE SINK INTERVAL RATE PATIENCE

PING is a raw ICMP socket, SOURCE and SINK are the ends of a TCP connection; RATE is in octets a
second. Answers are waited for, after the end, for PATIENCE seconds.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import time

ECHO_REPLY, ECHO_REQUEST = 0, 8
OUTAGE = 0.1
"""Seconds without an answer that are told of one by one."""
TOLD = 100  # of the lost pings and of the outages
TICK = 0.01  # seconds from one piece of the stream to the next
_TOTAL_RETRANSMITS = 100  # offset in struct tcp_info of linux/tcp.h


def checksum(octets: bytes) -> int:
    """The Internet checksum of an even number of octets (RFC 1071)."""
    total: int = sum(struct.unpack(f">{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Pinger:
    """Echo requests at an interval; sequence numbers that do not wrap are in their payload."""

    def __init__(self, sock: socket.socket, interval: float) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.due = time.monotonic()
        self._interval = interval
        self._identifier = os.getpid() & 0xFFFF
        self._waiting: dict[int, float] = {}
        self._last: float | None = None
        self.sent = self.refused = self.answered = self.duplicates = 0
        self.longest = 0.0
        self.outages: list[tuple[float, float]] = []

    @property
    def outstanding(self) -> int:
        """Requests without an answer so far."""
        return len(self._waiting)

    def send(self, now: float) -> None:
        """One request, if it is time."""
        if now < self.due:
            return
        self.due = max(self.due + self._interval, now)
        number, self.sent = self.sent, self.sent + 1
        body = struct.pack(">HHQ", self._identifier, number & 0xFFFF, number) + bytes(44)
        head = struct.pack(">BBH", ECHO_REQUEST, 0, 0)
        head = struct.pack(">BBH", ECHO_REQUEST, 0, checksum(head + body))
        try:
            self.socket.send(head + body)
        except OSError:  # the kernel holds as many as it will, or forbids it: lost
            self.refused += 1
        else:
            self._waiting[number] = time.time()

    def receive(self) -> None:
        """Whatever has come."""
        while True:
            try:
                packet = self.socket.recv(2048)
            except BlockingIOError:
                return
            except OSError:
                continue
            offset = (packet[0] & 15) * 4
            if len(packet) < offset + 16 or packet[offset] != ECHO_REPLY:
                continue
            identifier, _, number = struct.unpack_from(">HHQ", packet, offset + 4)
            if identifier == self._identifier:
                self._answer(number)

    def _answer(self, number: int) -> None:
        if self._waiting.pop(number, None) is None:
            self.duplicates += 1
            return
        self.answered += 1
        now = time.time()
        if self._last is not None:
            pause = now - self._last
            self.longest = max(self.longest, pause)
            if pause > OUTAGE and len(self.outages) < TOLD:
                self.outages.append((self._last, now))
        self._last = now

    def figures(self) -> dict[str, object]:
        """What there was; instants are POSIX seconds."""
        return {
            "sent": self.sent,
            "lost": self.sent - self.answered,
            "refused": self.refused,
            "duplicates": self.duplicates,
            "longest_pause": self.longest,
            "outages": self.outages,
            "lost_at": sorted(self._waiting.values())[:TOLD],
        }


class Stream:
    """Octets from one socket to the other, at a rate."""

    def __init__(self, source: socket.socket, sink: socket.socket, rate: int) -> None:
        source.setblocking(False)
        sink.setblocking(False)
        self.sink = sink
        self.due = time.monotonic()
        self.ended = False
        self._source = source
        self._piece = bytes(max(1, int(rate * TICK)))
        self._last = time.monotonic()
        self._sent = self._received = 0
        self._longest = 0.0
        self._fault = ""

    def send(self, now: float) -> None:
        """One piece, if it is time and there is room."""
        if now < self.due:
            return
        self.due = max(self.due + TICK, now)
        try:
            self._sent += self._source.send(self._piece)
        except BlockingIOError:
            return
        except OSError as error:
            self._fault = str(error)

    def receive(self) -> None:
        """Whatever has come."""
        try:
            got = len(self.sink.recv(1 << 18))
        except BlockingIOError:
            return
        except OSError as error:
            self._fault, got = str(error), 0
        now = time.monotonic()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        self._received += got
        self.ended = got == 0

    def close(self) -> None:
        """No more is sent."""
        try:
            self._source.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._fault = str(error)

    def figures(self) -> dict[str, object]:
        """What there was."""
        info = self._source.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        (retransmits,) = struct.unpack_from("=I", info, _TOTAL_RETRANSMITS)
        return {
            "octets_sent": self._sent,
            "octets_received": self._received,
            "longest_gap": self._longest,
            "retransmits": retransmits,
            "fault": self._fault,
        }


def run(pinger: Pinger, stream: Stream, patience: float) -> None:
    """Until SIGTERM, then until all has arrived, or for ``patience`` seconds."""
    stopped: list[float] = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(time.monotonic()))
    print("running", flush=True)
    while not stopped:
        now = time.monotonic()
        pinger.send(now)
        stream.send(now)
        wait(pinger, stream, min(pinger.due, stream.due))
    stream.close()
    end = stopped[0] + patience
    while time.monotonic() < end and (pinger.outstanding or not stream.ended):
        wait(pinger, stream, end)


def wait(pinger: Pinger, stream: Stream, until: float) -> None:
    """Receive what comes until then, or the first of it."""
    sockets = [pinger.socket] if stream.ended else [pinger.socket, stream.sink]
    ready, _, _ = select.select(sockets, (), (), max(0.0, until - time.monotonic()))
    if pinger.socket in ready:
        pinger.receive()
    if stream.sink in ready:
        stream.receive()


def main() -> None:
    """See above."""
    ping, source, sink = (socket.socket(fileno=int(word)) for word in sys.argv[1:4])
    interval, rate, patience = float(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
    pinger, stream = Pinger(ping, interval), Stream(source, sink, rate)
    run(pinger, stream, patience)
    json.dump({"ping": pinger.figures(), "stream": stream.figures()}, sys.stdout)


if __name__ == "__main__":
    main()
