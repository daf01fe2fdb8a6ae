"""What passes this host's interfaces in clear: the first octets of packets, and by far not of all.

A socket of packet(7) sees packets out after IPsec and packets in before it, and of ESP in transport
mode no more than that. But what came out of a tunnel passes its interface's input once more and is
seen again, in clear, with nothing about it that says so (the same holds of transport mode where the
interface does GRO for ESP: module esp4_offload). Whoever counts has to know of the SAs there are.

A filter in the kernel keeps away what is of no interest; what it lets through waits in a small
buffer. What does not fit is counted and lost: a busy host is sampled, and not slowed down.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from kinkd.errors import LocalError

SNAPSHOT: Final = 128
"""Octets of a packet: an IPv4 header with all options, or some extension headers, and ports."""
_RECEIVE_BUFFER: Final = 128 << 10  # a packet takes what it took in memory, however little is read

_ETH_P_ALL: Final = 3  # to sockets of one protocol the kernel shows no packets out
_ETH_P_IP: Final = 0x0800
_ETH_P_IPV6: Final = 0x86DD
_HOST, _OUTGOING = 0, 4  # PACKET_HOST, PACKET_OUTGOING
_LOOPBACK: Final = 772  # ARPHRD_LOOPBACK
_ADDRESS: Final = struct.Struct("=H2s16x")  # struct sockaddr_ll: family, protocol; interface 0
_SOL_PACKET: Final = 263
_PACKET_STATISTICS: Final = 6
_STATISTICS: Final = struct.Struct("=II")  # struct tpacket_stats: packets, drops
_SO_ATTACH_FILTER: Final = 26
_FRAGMENT: Final = 44  # IPv6-Frag
_ESP, _AH, _UDP = 50, 51, 17
_KINK_PORT: Final = 910
_ESP_IN_UDP_PORT: Final = 4500


class Seen(NamedTuple):
    """A packet on an interface: from its IP header on, at most ``SNAPSHOT`` octets of it."""

    outgoing: bool
    interface: str
    octets: bytes


class Capture:
    """The socket. It is to be asked now and then, and not whenever something is there.

    Raises:
        LocalError: in one line, why it cannot be had.
    """

    def __init__(self) -> None:
        try:
            # Of no protocol until the filter stands: nothing that it would refuse gets in.
            self._socket = socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0
            )
        except OSError as error:
            raise LocalError(_why(error)) from error
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            _attach(self._socket, assemble(FILTER))
            _see_all(self._socket)
        except OSError as error:
            self._socket.close()
            raise LocalError(_why(error)) from error

    def fileno(self) -> int:
        """Of the socket."""
        return self._socket.fileno()

    def read(self, limit: int) -> Iterator[Seen]:
        """What waits, ``limit`` packets at most."""
        for _ in range(limit):
            try:
                octets, source = self._socket.recvfrom(SNAPSHOT)
            except InterruptedError:
                continue
            except OSError:  # nothing waits; or an interface went down, and that is all it says
                return
            yield Seen(source[2] == _OUTGOING, source[0], octets)

    def missed(self) -> int:
        """How many packets passed the filter and found no room, since this was last asked."""
        try:
            answer = self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size)
        except OSError:
            return 0
        return int(_STATISTICS.unpack(answer)[1])

    def close(self) -> None:
        """Look no more."""
        self._socket.close()


def _why(error: OSError) -> str:
    text = f"cannot see what passes in clear: {error.strerror}"
    if error.errno in (errno.EPERM, errno.EACCES):
        return f"{text}; CAP_NET_RAW is missing"
    if error.errno == errno.EAFNOSUPPORT:
        return f"{text}; the kernel needs af_packet, and the service AF_PACKET"
    return text


# --- the filter --------------------------------------------------------------------------------

# Classic BPF: Documentation/networking/filter.rst, linux/bpf_common.h and linux/filter.h.
_WORD, _HALF, _OCTET = 0x20, 0x28, 0x30  # load A from a fixed place
_HALF_AT_X: Final = 0x48
_HEADER_TO_X: Final = 0xB1  # X: four times the lower half of an octet, as IPv4 counts
_AND: Final = 0x54
_IF_EQUAL: Final = 0x15
_IF_SET: Final = 0x45  # any of these bits
_RETURN: Final = 0x06
_ANCILLARY: Final = 0xFFFFF000  # SKF_AD_OFF
_PROTOCOL, _PACKET_TYPE, _HARDWARE, _TAGGED = 0, 4, 28, 48
_INSTRUCTION: Final = struct.Struct("=HBBI")


class Step(NamedTuple):
    """One instruction; ``then`` and ``otherwise`` are labels, and without one the next follows."""

    code: int
    value: int
    then: str = ""
    otherwise: str = ""


Program = Sequence[str | Step]
"""Instructions, and labels of the one that follows each."""


def _unless_in(prefixes: Sequence[tuple[int, int]], load: int, places: Sequence[int]) -> Program:
    """Drop packets with one of the prefixes (value, mask) in one of the places."""
    return [
        step
        for place in places
        for value, mask in prefixes
        for step in (Step(load, place), Step(_AND, mask), Step(_IF_EQUAL, value, "drop"))
    ]


def _unless_ours(load: int, source: int) -> Program:
    """Drop UDP of KINK itself, and ESP in UDP; the ports stand from ``source`` on."""
    return [
        Step(load, source + 2),
        Step(_IF_EQUAL, _ESP_IN_UDP_PORT, "drop"),
        Step(load, source),
        Step(_IF_EQUAL, _ESP_IN_UDP_PORT, "drop"),
        Step(_IF_EQUAL, _KINK_PORT, "", "pass"),
        Step(load, source + 2),
        Step(_IF_EQUAL, _KINK_PORT, "drop", "pass"),
    ]


FILTER: Final[Program] = (
    Step(_HALF, _ANCILLARY + _HARDWARE),
    Step(_IF_EQUAL, _LOOPBACK, "drop"),
    # A tagged packet is its VLAN's, on whose interface it is seen again without the tag.
    Step(_HALF, _ANCILLARY + _TAGGED),
    Step(_IF_EQUAL, 0, "", "drop"),
    Step(_HALF, _ANCILLARY + _PACKET_TYPE),
    Step(_IF_EQUAL, _HOST, "mine"),
    Step(_IF_EQUAL, _OUTGOING, "mine", "drop"),
    "mine",
    Step(_HALF, _ANCILLARY + _PROTOCOL),
    Step(_IF_EQUAL, _ETH_P_IP, "IPv4"),
    Step(_IF_EQUAL, _ETH_P_IPV6, "IPv6", "drop"),
    "IPv4",  # RFC 791 §3.1
    Step(_HALF, 6),
    Step(_IF_SET, 0x1FFF, "drop"),  # a fragment beyond the first has no ports
    *_unless_in(
        # Broadcast, multicast, of one link: RFC 919 §7, RFC 1112 §4, RFC 3927 §2.1.
        [(0xFFFFFFFF, 0xFFFFFFFF), (0xE0000000, 0xF0000000), (0xA9FE0000, 0xFFFF0000)],
        _WORD,
        (12, 16),
    ),
    Step(_OCTET, 9),
    Step(_IF_EQUAL, _ESP, "drop"),
    Step(_IF_EQUAL, _AH, "drop"),
    Step(_IF_EQUAL, _UDP, "", "pass"),
    Step(_HEADER_TO_X, 0),
    *_unless_ours(_HALF_AT_X, 0),
    "IPv6",  # RFC 8200 §3; multicast and of one link: RFC 4291 §2.7, §2.5.6
    *_unless_in([(0xFF00, 0xFF00), (0xFE80, 0xFFC0)], _HALF, (8, 24)),
    Step(_OCTET, 6),
    Step(_IF_EQUAL, _ESP, "drop"),
    Step(_IF_EQUAL, _AH, "drop"),
    Step(_IF_EQUAL, _UDP, "UDP in IPv6"),
    Step(_IF_EQUAL, _FRAGMENT, "", "pass"),
    Step(_HALF, 42),
    Step(_IF_SET, 0xFFF8, "drop", "pass"),  # RFC 8200 §4.5
    "UDP in IPv6",
    *_unless_ours(_HALF, 40),
    "pass",
    Step(_RETURN, SNAPSHOT),
    "drop",
    Step(_RETURN, 0),
)
"""What gets to ``Capture``: IP to and from this host, in clear, of addresses of hosts."""


def assemble(program: Program) -> bytes:
    """The instructions in the kernel's form (struct sock_filter)."""
    steps = [each for each in program if isinstance(each, Step)]
    labels: dict[str, int] = {}
    for each in program:
        if isinstance(each, Step):
            continue
        labels[each] = program.index(each) - len(labels)
    octets = b""
    for number, step in enumerate(steps, 1):
        # Jumps are counted from the instruction that follows.
        then, otherwise = (
            labels[label] - number if label else 0 for label in (step.then, step.otherwise)
        )
        octets += _INSTRUCTION.pack(step.code, then, otherwise, step.value)
    return octets


def _see_all(by: socket.socket) -> None:
    """Bind to every interface: ``socket.bind`` would have the name of one."""
    address = _ADDRESS.pack(socket.AF_PACKET, _ETH_P_ALL.to_bytes(2, "big"))
    if ctypes.CDLL(None, use_errno=True).bind(by.fileno(), address, len(address)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _attach(to: socket.socket, program: bytes) -> None:
    memory = ctypes.create_string_buffer(program, len(program))
    count = len(program) // _INSTRUCTION.size
    # struct sock_fprog: a count, and where the instructions are
    to.setsockopt(
        socket.SOL_SOCKET,
        _SO_ATTACH_FILTER,
        struct.pack("@HP", count, ctypes.addressof(memory)),
    )
