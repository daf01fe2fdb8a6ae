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
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar

T = TypeVar("T")

HOSTS = ("kdc", "alice", "bob", "carol")
_CLONE_NEWNET = 0x40000000
BRIDGE = "br0"


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
    """One host: a namespace with ``lo`` and ``eth0``.

    ``networks``: what lies behind it, where it is a gateway.
    """

    name: str
    namespace: str
    ipv4: IPv4Address
    ipv6: IPv6Address
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

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
        pass_fds: tuple[int, ...] = (),
    ) -> subprocess.Popen[str]:
        """Start a command here; its end is the caller's."""
        return subprocess.Popen(
            [*self.prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=env,
            pass_fds=pass_fds,
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

    Args:
        names: of the hosts.
        mtu: of every link, in octets.
        gateways: which of them forward for a network behind them, 10.88.N.0/24 and fd88:N::/64 by
            their order here. In ``behind`` by the gateway's name is the one host there is in it;
            all others have routes to it.
    """

    def __init__(
        self, names: Sequence[str] = HOSTS, *, mtu: int = 1500, gateways: Sequence[str] = ()
    ) -> None:
        tag = secrets.token_hex(3)
        self.mtu = mtu
        self.behind: dict[str, Node] = {}
        for number, name in enumerate(gateways, 1):
            network4 = IPv4Network(f"10.88.{number}.0/24")
            network6 = IPv6Network(f"fd88:{number}::/64")
            self.behind[name] = Node(
                f"behind-{name}",
                f"behind-{name}-{tag}",
                network4[2],
                network6[2],
                (network4, network6),
            )
        self.nodes = {
            name: Node(
                name,
                f"{name}-{tag}",
                IPv4Address("10.77.0.0") + number,
                IPv6Address("fd77::") + number,
                self.behind[name].networks if name in self.behind else (),
            )
            for number, name in enumerate(names, 1)
        }
        self.wire = Node("wire", f"wire-{tag}", IPv4Address(0), IPv6Address(0))

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    @property
    def _everyone(self) -> list[Node]:
        return [*self.nodes.values(), *self.behind.values(), self.wire]

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
        _ip([f"netns add {node.namespace}" for node in self._everyone])
        for node in self._everyone:
            # Duplicate address detection would keep an address unusable for a second.
            node.sysctl("net.ipv6.conf.default.accept_dad", 0)
        self.wire.sysctl("net.ipv6.conf.default.disable_ipv6", 1)
        lines = [
            f"link add {BRIDGE} type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
            f"link set {BRIDGE} up",
        ]
        for node in self.nodes.values():
            lines += [
                f"link add {node.name} mtu {self.mtu} type veth"
                f" peer name eth0 mtu {self.mtu} netns {node.namespace}",
                f"link set {node.name} master {BRIDGE} up",
            ]
        self.wire.ip(*lines)
        for node in self.nodes.values():
            node.ip(
                "link set lo up",
                f"addr add {node.ipv4}/24 dev eth0",
                f"addr add {node.ipv6}/64 dev eth0 nodad",
                "link set eth0 up",
                *self._routes(node),
            )
            # A packet that needs keys waits for them: 1 would lose it.
            node.sysctl("net.core.xfrm_larval_drop", 0)
        for name, node in self.behind.items():
            self._put_behind(self.nodes[name], node)

    def _routes(self, node: Node) -> list[str]:
        """To the networks behind the others."""
        return [
            f"route add {network} via {other.address(network.version)}"
            for other in self.nodes.values()
            for network in other.networks
            if other is not node
        ]

    def _put_behind(self, gateway: Node, node: Node) -> None:
        gateway.sysctl("net.ipv4.ip_forward", 1)
        gateway.sysctl("net.ipv6.conf.all.forwarding", 1)
        gateway.ip(
            f"link add inside mtu {self.mtu} type veth"
            f" peer name eth0 mtu {self.mtu} netns {node.namespace}",
            *(f"addr add {net[1]}/{net.prefixlen} dev inside nodad" for net in node.networks),
            "link set inside up",
        )
        node.ip(
            "link set lo up",
            *(f"addr add {net[2]}/{net.prefixlen} dev eth0 nodad" for net in node.networks),
            "link set eth0 up",
            *(f"route add default via {net[1]}" for net in node.networks),
        )

    def close(self) -> None:
        """Take it down; what still runs in it keeps its namespace until it ends."""
        for node in self._everyone:
            subprocess.run(
                ["ip", "netns", "delete", node.namespace], capture_output=True, check=False
            )
