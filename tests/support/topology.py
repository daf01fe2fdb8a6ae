"""The laboratory's network: hosts as network namespaces on a bridge that has one of its own.

Nothing is left in the namespace it is called from, and names carry a random suffix, so that
two laboratories can stand side by side. Needs root.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

T = TypeVar("T")

HOSTS = ("kdc", "alice", "bob", "carol")
_CLONE_NEWNET = 0x40000000
_BRIDGE = "br0"


def _ip(lines: Sequence[str], namespace: str | None = None) -> None:
    """Run ``ip`` once over many lines: process starts are what costs in User-Mode Linux."""
    where = ["-n", namespace] if namespace else []
    done = subprocess.run(
        ["ip", *where, "-batch", "-"],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(where)}: {done.stderr.strip() or done.stdout.strip()}")


@dataclass(frozen=True, slots=True)
class Node:
    """One host: a namespace with ``lo`` and ``eth0``."""

    name: str
    namespace: str
    ipv4: IPv4Address
    ipv6: IPv6Address

    def address(self, family: int) -> IPv4Address | IPv6Address:
        """Its address of family 4 or 6."""
        return self.ipv4 if family == 4 else self.ipv6

    @property
    def prefix(self) -> tuple[str, ...]:
        """What put before a command runs it here."""
        return ("nsenter", f"--net=/run/netns/{self.namespace}", "--")

    def run(
        self,
        *command: str | os.PathLike[str],
        check: bool = True,
        timeout: float = 60,
        env: dict[str, str] | None = None,
        stdin: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end; what it printed is captured as text.

        Raises:
            RuntimeError: it failed, and ``check`` is set; the text holds what it said.
        """
        done = subprocess.run(
            [*self.prefix, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=env,
            input=stdin or "",
        )
        if check and done.returncode:
            words = " ".join(map(str, command))
            raise RuntimeError(
                f"{self.name}: {words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def popen(
        self,
        *command: str | os.PathLike[str],
        stdout: int | IO[Any] | None = subprocess.PIPE,
        stderr: int | IO[Any] | None = subprocess.PIPE,
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a command here; its end is the caller's."""
        return subprocess.Popen(
            [*self.prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=env,
        )

    def python(self, function: Callable[[], T]) -> T:
        """Call ``function`` in a thread that has entered this namespace; sockets it makes stay."""

        def enter() -> T:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/run/netns/{self.namespace}", "rb") as handle:
                if libc.setns(handle.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), f"setns {self.namespace}")
            return function()

        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(enter).result()

    def ip(self, *lines: str) -> None:
        """Run lines of ``ip -batch`` here."""
        _ip(lines, self.namespace)

    def sysctl(self, name: str, value: int) -> None:
        """Set a sysctl of this namespace, e.g. ``net.core.xfrm_larval_drop``."""

        def write() -> None:
            Path("/proc/sys", *name.split(".")).write_text(str(value), encoding="ascii")

        self.python(write)

    def hardware_address(self) -> str:
        """The Ethernet address of ``eth0``."""
        links: list[dict[str, str]] = json.loads(
            self.run("ip", "-j", "link", "show", "eth0").stdout
        )
        return links[0]["address"]

    def xfrm_counters(self) -> dict[str, int]:
        """``/proc/net/xfrm_stat`` of this namespace."""

        def read() -> str:
            return Path("/proc/thread-self/net/xfrm_stat").read_text(encoding="ascii")

        pairs = (line.split() for line in self.python(read).splitlines())
        return {name: int(count) for name, count in pairs}


class Topology:
    """``names`` on one bridge, 10.77.0.N/24 and fd77::N/64, in the order they are given.

    ``wire`` is the bridge's own node: its port ``NAME`` sees what NAME sends and receives as
    it is on the wire, before the kernel of NAME decrypts it and after it encrypted.
    """

    def __init__(self, names: Sequence[str] = HOSTS, *, mtu: int = 1500) -> None:
        tag = secrets.token_hex(3)
        self.mtu = mtu
        self.nodes = {
            name: Node(
                name,
                f"{name}-{tag}",
                IPv4Address("10.77.0.0") + number,
                IPv6Address("fd77::") + number,
            )
            for number, name in enumerate(names, 1)
        }
        self.wire = Node("wire", f"wire-{tag}", IPv4Address(0), IPv6Address(0))

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _build(self) -> None:
        everyone = [*self.nodes.values(), self.wire]
        _ip([f"netns add {node.namespace}" for node in everyone])
        for node in everyone:
            # Duplicate address detection would keep an address unusable for a second.
            node.sysctl("net.ipv6.conf.default.accept_dad", 0)
        self.wire.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        lines = [
            f"link add {_BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set {_BRIDGE} up",
        ]
        for node in self.nodes.values():
            lines += [
                f"link add {node.name} mtu {self.mtu} type veth"
                f" peer name eth0 mtu {self.mtu} netns {node.namespace}",
                f"link set {node.name} master {_BRIDGE} up",
            ]
        self.wire.ip(*lines)
        for node in self.nodes.values():
            node.ip(
                "link set lo up",
                f"addr add {node.ipv4}/24 dev eth0",
                f"addr add {node.ipv6}/64 dev eth0 nodad",
                "link set eth0 up",
            )
            # A packet that needs keys waits for them: 1 would lose it.
            node.sysctl("net.core.xfrm_larval_drop", 0)

    def close(self) -> None:
        """Take it down; what still runs in it keeps its namespace until it ends."""
        for node in [*self.nodes.values(), self.wire]:
            subprocess.run(
                ["ip", "netns", "delete", node.namespace], capture_output=True, check=False
            )
