"""UDP port 910, in both families, with the local address of every datagram (RFC 4430 §9).

And port 4500, for traffic whose policy wants ESP in UDP.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

from kinkd.app.notify import keep, let_go, take_kept
from kinkd.errors import LocalError
from kinkd.exchange.effects import Path
from kinkd.kernel.xfrm import socket_bypass
from kinkd.model import Direction, IPAddress
from kinkd.policy.match import HostPolicy
from kinkd.wire.numbers import ESP_IN_UDP_PORT, KINK_PORT

_BURST = 64  # datagrams read before the loop gets to do something else
_RECEIVE_BUFFER = 1 << 20
_PKTINFO4 = struct.Struct("=I4s4s")  # ifindex, spec_dst, addr: ip(7)
_PKTINFO6 = struct.Struct("=16sI")  # address, ifindex: ipv6(7)
_SO_SNDBUFFORCE = 32
_SEND_BUFFER = 16 << 20
"""Octets. What goes to neighbours that do not answer ARP waits in it for seconds: with the usual
200 kB a few dozen of these would keep all others from being sent to."""
_PMTUDISC_DONT = 0  # a message with a large ticket is fragmented rather than lost
_IP_MTU_DISCOVER = 10
_IPV6_MTU_DISCOVER = 23
_IP_XFRM_POLICY, _IPV6_XFRM_POLICY = 17, 35
_UDP_ENCAP, _UDP_ENCAP_ESPINUDP = 100, 2
_IP_PKTINFO = getattr(socket, "IP_PKTINFO", 8)


class UdpSocket:
    """One family's socket on port 910."""

    def __init__(self, family: int) -> None:
        self.family = family
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        s = self._socket
        try:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            with contextlib.suppress(PermissionError):
                s.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
            if family == socket.AF_INET:
                s.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
                s.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
                s.bind(("", KINK_PORT))
            else:
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                s.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
                s.bind(("::", KINK_PORT))
        except OSError as error:
            s.close()
            raise LocalError(
                f"UDP port {KINK_PORT} cannot be bound: {error.strerror}; does another KINK "
                "daemon run here, or is CAP_NET_BIND_SERVICE missing?"
            ) from error

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def receive(self) -> Iterator[tuple[bytes, Path]]:
        """The datagrams that wait, a bounded number, each with where it came from and to."""
        for _ in range(_BURST):
            try:
                data, ancillary, _, source = self._socket.recvmsg(0xFFFF, 64)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # an error of an earlier sending, reported here by the kernel
                continue
            local = self._local_address(ancillary)
            if local is not None:
                yield data, Path(local, ip_address(source[0].partition("%")[0]), source[1])

    def send(self, datagram: bytes, path: Path) -> None:
        """Send from ``path.local``. Raises OSError."""
        if isinstance(path.local, IPv4Address):
            info = _PKTINFO4.pack(0, path.local.packed, b"\0\0\0\0")
            level, kind = socket.IPPROTO_IP, _IP_PKTINFO
        else:
            info = _PKTINFO6.pack(path.local.packed, 0)
            level, kind = socket.IPPROTO_IPV6, socket.IPV6_PKTINFO
        self._socket.sendmsg([datagram], [(level, kind, info)], 0, (str(path.remote), path.port))

    def _local_address(self, ancillary: list[tuple[int, int, bytes]]) -> IPAddress | None:
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                return IPv4Address(_PKTINFO4.unpack(data)[1])
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
                return IPv6Address(_PKTINFO6.unpack(data)[0])
        return None


class EspInUdp:
    """A socket for each family in which the policy wants ESP in UDP: port 4500.

    While it is open the kernel takes ESP out of UDP (RFC 3948), and SAs outlive us: so the service
    manager keeps it for our next start. What it kept and nobody wants any more, it lets go of.

    Raises:
        LocalError: in one line, why the port cannot be had.
    """

    def __init__(self, policy: HostPolicy) -> None:
        self._sockets: dict[int, socket.socket] = {}
        kept = take_kept()
        wanted = {_esp_in_udp_name(version): version for version in _in_udp(policy)}
        for name, there in kept.items():
            if name in wanted:
                self._sockets[wanted[name]] = there
            else:
                there.close()
                let_go(name)
        self.follow(policy)

    def follow(self, policy: HostPolicy) -> None:
        """Open what another policy wants more. What it wants no more, old SAs may still need.

        Raises:
            LocalError: in one line, why the port cannot be had.
        """
        for version in _in_udp(policy):
            if version not in self._sockets:
                self._sockets[version] = _esp_in_udp(version)
                keep(_esp_in_udp_name(version), self._sockets[version])

    def close(self) -> None:
        """Close them; what the service manager keeps stays open."""
        for each in self._sockets.values():
            each.close()


def _esp_in_udp_name(version: int) -> str:
    return f"esp-in-udp{version}"


def _in_udp(policy: HostPolicy) -> set[int]:
    """The address families in which a policy wants ESP in UDP."""
    return {protection.local.version for protection in policy.protections if protection.udp}


def _esp_in_udp(version: int) -> socket.socket:
    """Nothing is read from it. What comes without being ESP fills a small buffer, and is lost."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    s = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    level, option, any_address = socket.IPPROTO_IP, _IP_XFRM_POLICY, ""
    try:
        if version == 6:
            level, option, any_address = socket.IPPROTO_IPV6, _IPV6_XFRM_POLICY, "::"
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        s.setsockopt(socket.IPPROTO_UDP, _UDP_ENCAP, _UDP_ENCAP_ESPINUDP)
        # The kernel asks the policy about the outer packet before it looks inside.
        for direction in (Direction.IN, Direction.OUT):
            s.setsockopt(level, option, socket_bypass(direction, version))
        s.bind((any_address, ESP_IN_UDP_PORT))
    except OSError as error:
        s.close()
        raise LocalError(
            f"UDP port {ESP_IN_UDP_PORT} cannot be had for ESP in UDP: {error.strerror}; "
            "does another IKE daemon run here, or is CAP_NET_ADMIN missing?"
        ) from error
    return s


def open_sockets() -> list[UdpSocket]:
    """A socket for IPv4, and one for IPv6 where the host has it."""
    sockets = [UdpSocket(socket.AF_INET)]
    try:
        sockets.append(UdpSocket(socket.AF_INET6))
    except OSError:  # no IPv6 in this kernel
        pass
    except LocalError:
        sockets[0].close()
        raise
    return sockets
