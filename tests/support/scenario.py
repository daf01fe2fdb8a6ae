"""Traffic between two hosts while something happens to their SAs, and what it cost, in figures.

with Scenario(lab, "rekeys by time") as s:
    ...
assert s.figures.lost == 0

Pings at 5 ms and a TCP stream go through the SAs, and a capture on the wire of the first host
holds whatever went between the two in clear. Every scenario is a line of ``table``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from kinkd.app import protocol
from kinkd.cli import tables
from tests.support import observe, stream
from tests.support.lab import Host, Lab
from tests.support.topology import Node

INTERVAL = 0.005  # seconds from ping to ping
RATE = 200_000  # octets of TCP a second
PORT = 7777
PATIENCE = 5.0
"""Seconds for what is under way at the end: answers, and pairs that are in their grace."""
SETTLING = 15.0
_CONNECTING = 30.0
_INITIATING = 40.0  # a full retransmission cycle, and some more

MEASURED: list[tuple[str, Figures | None, dict[str, object]]] = []
"""What each scenario of this run is called, what it measured, and figures of its own."""


@dataclass(frozen=True)
class Ping:
    """What became of the pings; instants are POSIX seconds."""

    sent: int
    lost: int
    refused: int  # of the lost: by the sender's own kernel
    duplicates: int
    longest_pause: float  # seconds from one answer to the next
    outages: Sequence[tuple[float, float]]  # pauses of more than ``stream.OUTAGE``
    lost_at: Sequence[float]


@dataclass(frozen=True)
class Tcp:
    """What became of the stream."""

    octets_sent: int
    octets_received: int
    longest_gap: float  # seconds from one delivery to the next
    retransmits: int  # segments
    fault: str  # of a socket, empty: none


@dataclass(frozen=True)
class Left:
    """What is in a host's kernel between it and another, and in its kinkd."""

    states: int
    larval: int
    policies: int
    descriptors: int
    rss: int  # KiB
    errors: Counter[str] = field(repr=False)  # /proc/net/xfrm_stat

    @classmethod
    def of(cls, host: Host, other: Host) -> Self:
        """Read it."""
        states = observe.count_states(host.node, *ends(host, other))
        return cls(
            states=states.keyed,
            larval=states.larval,
            policies=len(host.policies()),
            descriptors=descriptors(host),
            rss=rss(host),
            errors=Counter(host.node.xfrm_counters()),
        )


@dataclass(frozen=True)
class Figures:
    """What a scenario measured."""

    ping: Ping
    tcp: Tcp
    clear: tuple[str, ...]  # packets, as tcpdump tells them
    before: tuple[Left, Left]
    after: tuple[Left, Left]

    @property
    def recovery(self) -> float:
        """Seconds that no ping was answered, at the longest."""
        return max(0.0, self.ping.longest_pause - INTERVAL)

    @property
    def errors(self) -> tuple[Counter[str], Counter[str]]:
        """What the two kernels dropped meanwhile, by the kernels' own names of the reasons."""
        mine, peers = (
            new.errors - old.errors for old, new in zip(self.before, self.after, strict=True)
        )
        return mine, peers

    def unharmed(self, *, states: int = 2) -> list[str]:
        """What is not as it must be where nothing may be lost, and no more left than ``states``."""
        faults = {
            "pings lost": self.ping.lost,
            "octets lost": self.tcp.octets_sent - self.tcp.octets_received,
            "packets in clear": len(self.clear),
            f"TCP: {self.tcp.fault}": int(bool(self.tcp.fault)),
        }
        for name, old, new in zip(("here", "there"), self.before, self.after, strict=True):
            faults[f"SAs {name} (of {states})"] = new.states - states
            faults[f"larval SAs {name}"] = new.larval
            faults[f"more policies {name}"] = new.policies - old.policies
            faults[f"more descriptors {name}"] = max(0, new.descriptors - old.descriptors)
        return [f"{count} {what}" for what, count in faults.items() if count]


class Scenario:
    """Traffic from host ``name`` to host ``peer`` and back, as long as the block lasts.

    Args:
        what: happens; the name of its line.
        upload: the stream goes from ``name`` to ``peer``.
        rate: of the stream, octets a second.
        patience: seconds for what is under way at the end.
        states: each kernel is waited for to have as many SAs, in vain if need be.
    """

    def __init__(
        self,
        lab: Lab,
        what: str,
        name: str = "alice",
        peer: str = "bob",
        *,
        upload: bool = True,
        rate: int = RATE,
        patience: float = PATIENCE,
        states: int = 2,
    ) -> None:
        self.what = what
        self.host, self.peer = lab[name], lab[peer]
        self.notes: dict[str, object] = {}
        self._lab = lab
        self._upload = upload
        self._rate = rate
        self._patience = patience
        self._states = states
        self._figures: Figures | None = None

    @property
    def figures(self) -> Figures:
        """What was measured, once the block has ended."""
        if self._figures is None:
            raise RuntimeError(f"{self.what}: not over yet")
        return self._figures

    def note(self, **figures: object) -> None:
        """Figures of this scenario's own, for its line."""
        self.notes.update(figures)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            sockets = self._sockets()
            for each in sockets:
                stack.enter_context(each)
            self._settle()  # what came before may be in its grace
            self._before = self._left()
            self._clear = stack.enter_context(
                ClearPackets(self._lab, self.host.node, self.peer.node)
            )
            self._traffic = _spawn(sockets, self._rate, self._patience)
            stack.callback(self._traffic.kill)
            self._stack = stack.pop_all()
        return self

    def _sockets(self) -> tuple[socket.socket, socket.socket, socket.socket]:
        here, there = self.host.node, self.peer.node
        with there.python(lambda: socket.create_server((str(there.ipv4), PORT))) as listening:
            address = listening.getsockname()
            one = here.python(lambda: socket.create_connection(address, _CONNECTING))
            other, _ = listening.accept()
        source, sink = (one, other) if self._upload else (other, one)
        return echo_socket(here, there), source, sink

    def stop(self) -> None:
        """End the traffic; what is left of it is looked at when the block ends."""
        if self._traffic.returncode is not None:
            return
        with self._stack:
            self._traffic.send_signal(signal.SIGTERM)
            self._said, _ = self._traffic.communicate(timeout=self._patience + 20)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if self._traffic.returncode:
            raise RuntimeError(f"{self.what}: the traffic ended badly, see standard error")
        if fault is None:
            self._settle()
        heard = json.loads(self._said)
        self._figures = Figures(
            Ping(**heard["ping"]),
            Tcp(**heard["stream"]),
            self._clear.packets,
            self._before,
            self._left(),
        )
        MEASURED.append((self.what, self._figures, self.notes))

    def _left(self) -> tuple[Left, Left]:
        return Left.of(self.host, self.peer), Left.of(self.peer, self.host)

    def _settle(self) -> None:
        settle(lambda: all(self._settled(host) for host in (self.host, self.peer)))

    def _settled(self, host: Host) -> bool:
        count = observe.count_states(host.node, *ends(self.host, self.peer))
        return (count.keyed, count.larval) == (self._states, 0)


def ends(one: Host, other: Host) -> list[observe.Address]:
    """The addresses of two hosts."""
    return [host.node.address(family) for host in (one, other) for family in (4, 6)]


class ClearPackets:
    """A capture of all IP between two hosts that is neither IPsec nor what keys it.

    Neighbour discovery is not IP's payload but its link: it is left out, as ARP is.
    """

    def __init__(self, lab: Lab, one: Node, other: Node) -> None:
        between = " or ".join(
            f"( host {one.address(family)} and host {other.address(family)} )" for family in (4, 6)
        )
        ipsec = "ip proto 50 or ip proto 51 or ip6 proto 50 or ip6 proto 51"
        keying = "( udp src port 910 and udp dst port 910 ) or udp port 4500"
        discovery = "( icmp6 and ip6[40] > 132 )"
        self._lab = lab
        self._name = one.name
        self._path = lab.directory / f"clear-{time.monotonic_ns()}.pcap"
        self._expression = (
            f"( ip or ip6 ) and ( {between} ) and not ( {ipsec} or {keying} or {discovery} )"
        )
        self.packets: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        self._capture = observe.Capture(
            self._lab.topology.wire, self._name, self._path, self._expression
        )
        self._capture.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._capture.__exit__(kind, fault, trace)
        self.packets = tuple(observe.read_capture(self._path))


def echo_socket(here: Node, there: Node) -> socket.socket:
    """A raw ICMP socket that hears one host alone."""

    def connected() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        made.connect((str(there.ipv4), 0))
        return made

    return here.python(connected)


def _spawn(sockets: Sequence[socket.socket], rate: int, patience: float) -> subprocess.Popen[str]:
    """Start ``stream`` with ping, source and sink; it has come to its first ping."""
    descriptors = [each.fileno() for each in sockets]
    words = map(str, (*descriptors, INTERVAL, rate, patience))
    # Without site-packages it is there in a fifth of the time.
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", stream.__file__, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=descriptors,
    )
    if process.stdout is None or process.stdout.readline() != "running\n":
        raise RuntimeError("the traffic did not start, see standard error")
    for each in sockets:
        each.close()
    return process


def initiate(host: Host, peer: Host) -> bool:
    """Make pairs with a peer now; whether all came to be. May be called in several threads."""
    answer = protocol.ask(str(host.socket), "initiate", _INITIATING, peer=peer.name)
    pairs = answer["pairs"]
    return isinstance(pairs, list) and all(pair["ok"] for pair in pairs)


def terminate(host: Host, peer: Host) -> object:
    """Delete all pairs with a peer; how many there were. As ``initiate``."""
    return protocol.ask(str(host.socket), "terminate", _INITIATING, peer=peer.name)["sas"]


def settle(condition: Callable[[], bool], timeout: float = SETTLING) -> None:
    """Wait for what ought to be; whether it is, is for others to say."""
    deadline = time.monotonic() + timeout
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)


def descriptors(host: Host) -> int:
    """How many files its kinkd has open; 0: it does not run."""
    # One that a control connection had may be closed only just now.
    return min(_descriptors(host) for _ in range(3))


def _descriptors(host: Host) -> int:
    if host.process is None or not host.running:
        return 0
    time.sleep(0.02)
    return len(os.listdir(f"/proc/{host.process.pid}/fd"))


def rss(host: Host) -> int:
    """Resident memory of its kinkd, KiB; 0: it does not run."""
    if host.process is None or not host.running:
        return 0
    lines = Path(f"/proc/{host.process.pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))


def note(what: str, **figures: object) -> None:
    """A line of ``table`` that has figures of its own alone."""
    MEASURED.append((what, None, figures))


def _row(what: str, figures: Figures | None, notes: dict[str, object]) -> dict[str, object]:
    if figures is None:
        return {"scenario": what, "notes": _words(notes)}
    return {
        "scenario": what,
        "pings": figures.ping.sent,
        "lost": figures.ping.lost,
        "dup": figures.ping.duplicates,
        "clear": len(figures.clear),
        "recovery": f"{figures.recovery:.2f}s",
        "tcp": tables.octets(figures.tcp.octets_received),
        "gap": f"{figures.tcp.longest_gap:.2f}s",
        "retr": figures.tcp.retransmits,
        "SAs": "/".join(_states(left) for left in figures.after),
        "fds": "/".join(
            f"{new.descriptors - old.descriptors:+d}"
            for old, new in zip(figures.before, figures.after, strict=True)
        ),
        "notes": _words({**notes, **_dropped(figures)}),
    }


def _states(left: Left) -> str:
    return f"{left.states}+{left.larval}" if left.larval else str(left.states)


def _dropped(figures: Figures) -> dict[str, object]:
    """The counters of the kernels that moved, of both hosts: here/there."""
    mine, peers = figures.errors
    return {name: f"{mine[name]}/{peers[name]}" for name in sorted(mine | peers)}


def _words(figures: dict[str, object]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {f'{value:.2f}' if isinstance(value, float) else value}"
        for name, value in figures.items()
    )


def table() -> str:
    """What the scenarios of this run measured; SAs with "+": larval ones beside them."""
    rows = [_row(*measured) for measured in MEASURED]
    # In this order, whichever scenario comes first.
    columns = dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row)
    return tables.table([{name: row.get(name, "") for name in columns} for row in rows])
