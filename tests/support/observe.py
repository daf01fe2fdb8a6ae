"""What the lab sees without asking kinkd: ``ip xfrm``, ``ping`` and ``tcpdump``."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.topology import Node

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class KernelSa:
    """One SA as ``ip -s xfrm state`` prints it."""

    source: Address
    destination: Address
    spi: int
    reqid: int
    mode: str
    selector: str  # "src ADDRESS/LENGTH dst ADDRESS/LENGTH", empty: none
    algorithms: dict[str, str]  # "aead", "enc", "auth-trunc" -> the kernel's name
    keys: dict[str, bytes] = field(repr=False)
    octets: int = 0
    packets: int = 0
    protocol: str = "esp"
    encapsulation: str = ""  # "espinudp sport PORT dport PORT", empty: none
    esn: bool = False

    @property
    def keymat(self) -> bytes:
        """Encryption key with its salt, then authentication key."""
        return b"".join(self.keys.get(kind, b"") for kind in ("aead", "enc", "auth-trunc"))


def read_states(node: Node) -> list[KernelSa]:
    """All SAs of a node that have keys; larval ones are left out."""
    text = node.run("ip", "-s", "xfrm", "state").stdout
    blocks = re.split(r"^(?=src )", text, flags=re.MULTILINE)
    return [state for block in blocks if block and (state := _state(block)) is not None]


@dataclass(frozen=True, slots=True)
class StateCount:
    """SAs of a node: with keys, and larval ones that wait for some."""

    keyed: int
    larval: int


def count_states(node: Node, *ends: Address) -> StateCount:
    """How many SAs a node has, or only those that are between addresses of ``ends``."""
    text = node.run("ip", "xfrm", "state").stdout
    blocks = [
        block
        for block in re.split(r"^(?=src )", text, flags=re.MULTILINE)
        if (head := re.match(r"src (\S+) dst (\S+)", block))
        and (not ends or {ip_address(head[1]), ip_address(head[2])} <= set(ends))
    ]
    keyed = sum(_state(block) is not None for block in blocks)
    return StateCount(keyed, len(blocks) - keyed)


def _state(block: str) -> KernelSa | None:
    head = re.match(
        r"src (\S+) dst (\S+)\n"
        r"\s+proto (esp|ah) spi (0x[0-9a-f]+)\S* reqid (\d+)\S* mode (\S+)",
        block,
    )
    algorithms = {
        kind: (name, bytes.fromhex(key))
        for kind, name, key in re.findall(
            r"^\s+(aead|enc|auth-trunc) (\S+) (?:0x)?([0-9a-f]*)", block, flags=re.MULTILINE
        )
    }
    if head is None or not algorithms:
        return None
    encapsulation = re.search(r"^\s+encap type (\S+ sport \d+ dport \d+)", block, re.MULTILINE)
    selector = re.search(r"^\s+sel (src \S+ dst \S+)", block, flags=re.MULTILINE)
    current = re.search(r"lifetime current:\s+(\d+)\(bytes\), (\d+)\(packets\)", block)
    return KernelSa(
        ip_address(head[1]),
        ip_address(head[2]),
        int(head[4], 16),
        int(head[5]),
        head[6],
        selector[1] if selector else "",
        {kind: name for kind, (name, _) in algorithms.items()},
        {kind: key for kind, (_, key) in algorithms.items()},
        int(current[1]) if current else 0,
        int(current[2]) if current else 0,
        head[3],
        encapsulation[1] if encapsulation else "",
        re.search(r"^\s+replay-window .* flag .*\besn\b", block, re.MULTILINE) is not None,
    )


def read_policies(node: Node) -> list[str]:
    """All policies of a node but those bound to a socket, one line each."""
    text = node.run("ip", "xfrm", "policy").stdout
    blocks = re.split(r"^(?=src )", text, flags=re.MULTILINE)
    lines = [" ".join(block.split()) for block in blocks if block.strip()]
    return [line for line in lines if " socket in " not in line and " socket out " not in line]


@dataclass(frozen=True, slots=True)
class Ping:
    """What ``ping`` counted; round trips in milliseconds by sequence number, from 1.

    ``answers``: when they came, POSIX seconds.
    """

    sent: int
    received: int
    rtts: dict[int, float]
    answers: tuple[float, ...]
    text: str = field(repr=False)

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return self.sent - self.received


def ping(
    node: Node,
    target: Address | str,
    *,
    count: int = 1,
    interval: float = 0.2,
    patience: float = 10,
    size: int = 56,
) -> Ping:
    """Ping ``target`` from ``node``; each answer is waited for ``patience`` seconds."""
    done = node.run(
        *("ping", "-n", "-D", "-c", str(count), "-i", str(interval), "-W", str(patience)),
        *("-s", str(size), str(target)),
        check=False,
        timeout=2 * count * interval + patience + 30,  # a virtual machine is slow
    )
    return read_ping(done.stdout + done.stderr)


def read_ping(text: str) -> Ping:
    """Read what ``ping`` printed.

    Raises:
        RuntimeError: it printed no statistics.
    """
    found = re.search(r"(\d+) packets transmitted, (\d+) received", text)
    if found is None:
        raise RuntimeError(f"ping: {text.strip()}")
    rtts = {int(n): float(ms) for n, ms in re.findall(r"icmp_seq=(\d+) .*time=([\d.]+) ms", text)}
    answers = tuple(
        map(float, re.findall(r"^\[([\d.]+)\] .*icmp_seq=.* time=", text, re.MULTILINE))
    )
    return Ping(int(found[1]), int(found[2]), rtts, answers, text)


class Capture:
    """``tcpdump`` on one port of the bridge: what is on that host's wire, both directions."""

    def __init__(self, wire: Node, port: str, path: Path, expression: str = "") -> None:
        self.path = path
        self._wire = wire
        self._command = [
            *("tcpdump", "--immediate-mode", "-U", "-n", "-s", "0", "-i", port),
            *("-Z", "root", "-w", str(path), *expression.split()),
        ]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._process = self._wire.popen(*self._command, stdout=subprocess.DEVNULL)
        # It says "listening on" when the socket is open; only then is nothing missed.
        said = ""
        while "listening on" not in said:
            line = self._process.stderr.readline() if self._process.stderr else ""
            if not line:
                raise RuntimeError(f"tcpdump: {said.strip()}")
            said += line
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            time.sleep(0.1)  # what is in the kernel's ring is written before the end
            self._process.send_signal(signal.SIGINT)
            self._process.communicate(timeout=20)


def read_capture(path: Path, expression: str = "") -> list[str]:
    """The packets of a capture that match, one line each, without time stamps."""
    done = subprocess.run(
        ["tcpdump", "-n", "-t", "-r", str(path), *expression.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()
