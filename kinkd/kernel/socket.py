"""The kernel's SA and policy databases over NETLINK_XFRM.

Two sockets: one for requests, each answered before the call returns (the kernel works on a
request inside ``sendmsg``, so nothing waits), one for events. Both belong to the network
namespace they are opened in. Needs CAP_NET_ADMIN.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address
from typing import Self, TypeVar

from kinkd.errors import KernelError
from kinkd.kernel import answers, xfrm
from kinkd.kernel.layouts import Group
from kinkd.kernel.netlink import Answer, Control, MalformedMessage, Message, answer, messages
from kinkd.kernel.port import Acquire, KernelEvent, Overrun, Sa, SaId, SaLimits, SaState
from kinkd.kernel.xfrm import words
from kinkd.model import (
    Direction,
    IPAddress,
    IpsecProtocol,
    Mode,
    Secret,
    Selector,
    SpdEntry,
    Transform,
)

_NETLINK_XFRM = 6
_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _BROADCAST_ERROR, _CAP_ACK, _EXT_ACK = 1, 4, 10, 11
_SO_RCVBUFFORCE, _SO_ATTACH_FILTER = 33, 26
_LDH, _JEQ, _RET = 0x28, 0x15, 0x06  # BPF_LD | BPF_H | BPF_ABS, BPF_JMP | BPF_JEQ, BPF_RET
_TYPE_OFFSET = 4  # of nlmsghdr
_EVENT_BUFFER = 8 << 20  # octets: 4000 acquires unread
_DATAGRAM = 64 << 10  # a dump comes in parts of at most 32 KiB
_EVENTS_PER_CALL = 256
_PROBE_ADDRESSES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8::1", "2001:db8::2")}
_PROBE_SECONDS = 60  # a probe that is killed between its two requests leaves nothing for long
_PROBE_ATTEMPTS = 8

_Read = TypeVar("_Read")
_Words = Callable[[], str]  # put together only where something fails


class XfrmSocket:
    """``port.Kernel`` on the kernel of the network namespace it is made in.

    Args:
        event_buffer: octets of the event socket's receive buffer.

    Raises:
        KernelError: NETLINK_XFRM is missing, or CAP_NET_ADMIN is.
    """

    def __init__(self, event_buffer: int = _EVENT_BUFFER) -> None:
        self._sequence = 0
        self._buffer = bytearray(_DATAGRAM)
        self._event = bytearray(_DATAGRAM)
        self._requests = _open("the request socket")
        try:
            self._events = _open("the event socket")
            try:
                _configure(self._requests, self._events, event_buffer)
            except OSError as error:
                self._events.close()
                raise KernelError(error.errno or 0, "joining the XFRM event groups") from error
        except KernelError:
            self._requests.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close both sockets. SAs and policies stay in the kernel."""
        self._requests.close()
        self._events.close()

    def fileno(self) -> int:
        """The event socket, for a selector: readable when ``events`` has something."""
        return self._events.fileno()

    def events(self) -> list[KernelEvent]:
        """What happened since the last call; never waits, returns at most 256 at a time.

        An event that was lost (ENOBUFS) or cannot be read shows as ``Overrun``.
        """
        found: list[KernelEvent] = []
        view = memoryview(self._event)
        while len(found) < _EVENTS_PER_CALL:
            try:
                size, (sender, _) = self._events.recvfrom_into(view)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(error.errno or 0, "reading XFRM events") from error
                found.append(Overrun())
                continue
            if sender == 0:  # 0 is the kernel
                found.extend(_read_events(view[:size]))
            view[:size] = bytes(size)  # a deleted SA is told with its keys
        return found

    # --- SAs ---

    def probe(self, transform: Transform, family: int, *, esn: bool = False) -> None:
        """See ``port.Kernel``. The dummy's addresses are those of RFC 5737 and RFC 3849."""
        source, destination = map(ip_address, _PROBE_ADDRESSES[family])
        name = f"NEWSA to probe {words(transform)} over IPv{family}"
        keymat = Secret(os.urandom(transform.keymat_octets))
        for attempt in range(_PROBE_ATTEMPTS):
            spi = int.from_bytes(os.urandom(4), "big") | 0x100
            sa = Sa(
                id=SaId(source, destination, spi, transform.protocol),
                mode=Mode.TRANSPORT,
                reqid=0,
                selector=Selector.between(source, destination),
                transform=transform,
                keymat=keymat,
                limits=SaLimits(hard_seconds=_PROBE_SECONDS),
                esn=esn,
            )
            try:
                self._succeeds(xfrm.install(sa, self._next()), lambda: name)
            except KernelError as error:
                if error.errno != errno.EEXIST or attempt == _PROBE_ATTEMPTS - 1:
                    raise
                continue
            self.remove(sa.id)
            return

    def allocate_spi(
        self,
        source: IPAddress,
        destination: IPAddress,
        reqid: int,
        protocol: IpsecProtocol = IpsecProtocol.ESP,
    ) -> int:
        """See ``port.Kernel``. The reservation lapses after net.core.xfrm_acq_expires seconds."""
        message = xfrm.allocate_spi(source, destination, reqid, self._next(), protocol=protocol)
        return self._one(
            message,
            lambda: f"{protocol.name} ALLOCSPI from {source} to {destination} reqid {reqid}",
            answers.read_spi,
        )

    def clear_acquire(self, acquire: Acquire) -> None:
        """See ``port.Kernel``.

        There is no request that names it: it is given an SPI by its sequence number, and
        that SPI is deleted.
        """
        source, destination = acquire.source, acquire.destination
        message = xfrm.allocate_spi(
            source,
            destination,
            acquire.reqid,
            self._next(),
            mode=acquire.mode,
            protocol=acquire.protocol,
            acquire=acquire.sequence,
        )
        spi = self._one(
            message,
            lambda: f"ALLOCSPI for acquire {acquire.sequence} from {source} to {destination}",
            answers.read_spi,
        )
        self.remove(SaId(source, destination, spi, acquire.protocol))

    def install_inbound(self, sas: Sequence[Sa]) -> None:
        """See ``port.Kernel``. Where one is refused the reserved SPIs of the others go, too.

        Of an SA that is live already UPDSA changes only the limits. It is not of this call's
        making: it stays, with its new limits, even where another part is refused.
        """
        xfrm.check_bundle(sas)
        fresh = [sa.id for sa in sas if not self._is_live(sa.id)]
        try:
            for sa in sas:
                self._fill(sa)
        except KernelError:
            for name in fresh:
                self.remove(name)
            raise

    def install_outbound(self, sas: Sequence[Sa], refresh: Sequence[SpdEntry]) -> None:
        """See ``port.Kernel``. The last one first: no packet finds a part of the bundle only."""
        xfrm.check_bundle(sas)
        # The entries are encoded first: where one is refused here, no request with keys is left.
        entries = [xfrm.update_policy(entry, self._next()) for entry in refresh]
        added = list(reversed(sas))
        requests = [*(xfrm.install(sa, self._next()) for sa in added), *entries]
        given = self._acknowledged(requests, lambda: f"NEWSA {words(sas[0].id)}")
        things: list[SaId | SpdEntry] = [*(sa.id for sa in added), *refresh]
        refused = [pair for pair in zip(things, given, strict=True) if pair[1].errno]
        if not refused:
            return
        for sa, verdict in zip(added, given, strict=False):
            if not verdict.errno:  # no part of it stays
                self.remove(sa.id)
        thing, verdict = refused[0]
        kind = "NEWSA" if isinstance(thing, SaId) else "UPDPOLICY"
        raise KernelError(verdict.errno, f"{kind} {words(thing)}", verdict.text)

    def remove(self, sa: SaId) -> bool:
        """See ``port.Kernel``."""
        message = xfrm.delete_sa(sa, self._next())
        return self._succeeds(message, lambda: f"DELSA {words(sa)}", absent=errno.ESRCH)

    def states(self) -> list[SaState]:
        """See ``port.Kernel``; not those of a protocol, mode or mark that kinkd cannot name."""
        found = self._dump(xfrm.dump_sas(self._next()), lambda: "dump of SAs", answers.read_state)
        return [state for state in found if state is not None]

    def state(self, sa: SaId) -> SaState | None:
        """See ``port.Kernel``."""
        message = xfrm.get_sa(sa, self._next())
        try:
            return self._one(message, lambda: f"GETSA {words(sa)}", answers.read_state)
        except KernelError as error:
            if error.errno != errno.ESRCH:
                raise
            return None

    def _is_live(self, sa: SaId) -> bool:
        held = self.state(sa)
        return held is not None and not held.larval

    def _fill(self, sa: Sa) -> None:
        try:
            update = xfrm.install(sa, self._next(), update=True)
            self._succeeds(update, lambda: f"UPDSA {words(sa.id)}")
        except KernelError as error:
            if error.errno != errno.ESRCH:
                raise
            self._succeeds(xfrm.install(sa, self._next()), lambda: f"NEWSA {words(sa.id)}")

    # --- policies ---

    def write_policy(self, entry: SpdEntry) -> None:
        """See ``port.Kernel``."""
        message = xfrm.update_policy(entry, self._next())
        self._succeeds(message, lambda: f"UPDPOLICY {words(entry)}")

    def remove_policy(self, direction: Direction, selector: Selector) -> bool:
        """See ``port.Kernel``."""
        message = xfrm.delete_policy(direction, selector, self._next())
        pair = f"{selector.source} to {selector.destination}"
        name = f"DELPOLICY {direction.name.lower()} policy {pair}"
        return self._succeeds(message, lambda: name, absent=errno.ENOENT)

    def policy(self, direction: Direction, selector: Selector) -> SpdEntry | None:
        """See ``port.Kernel``; as ``policies`` has it."""
        message = xfrm.get_policy(direction, selector, self._next())
        pair = f"{selector.source} to {selector.destination}"
        name = f"GETPOLICY {direction.name.lower()} policy {pair}"
        try:
            return self._one(message, lambda: name, answers.read_policy)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def policies(self) -> list[SpdEntry]:
        """See ``port.Kernel``; not those of a mark or interface that kinkd cannot name."""
        request = xfrm.dump_policies(self._next())
        found = self._dump(request, lambda: "dump of policies", answers.read_policy)
        return [entry for entry in found if entry is not None]

    # --- requests and answers ---

    def _next(self) -> int:
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        return self._sequence

    def _send(self, requests: Sequence[bytearray], name: _Words) -> None:
        """Send all in one datagram, then overwrite them: they may hold keys."""
        try:
            self._requests.sendmsg(requests)
        except OSError as error:
            raise KernelError(error.errno or 0, name()) from error
        finally:
            for request in requests:
                request[:] = bytes(len(request))

    def _answers(self, sequences: Sequence[int], name: _Words) -> Iterator[Message]:
        """What the kernel answers to these requests, without end.

        A message is valid until the next is asked for: its octets, perhaps keys, are then
        overwritten. Answers to other requests are left-overs of one that failed.
        """
        view = memoryview(self._buffer)
        while True:
            try:
                size, _, flags, sender = self._requests.recvmsg_into([view])
            except OSError as error:
                raise KernelError(error.errno or 0, name()) from error
            try:
                if flags & socket.MSG_TRUNC:
                    raise MalformedMessage(f"an answer of more than {_DATAGRAM} octets")
                if sender[0] == 0:  # the kernel
                    for message in messages(view[:size]):
                        if message.sequence in sequences:
                            yield message
            finally:
                view[:size] = bytes(size)

    def _acknowledged(self, requests: Sequence[bytearray], name: _Words) -> list[Answer]:
        """Send requests together; the acknowledgement of each, in order."""
        sequences = [_sequence_of(request) for request in requests]
        self._send(requests, name)
        given: dict[int, Answer] = {}
        for message in self._answers(sequences, name):
            if message.type == Control.ERROR:
                given[message.sequence] = answer(message)
                if len(given) == len(sequences):
                    break
        return [given[sequence] for sequence in sequences]

    def _succeeds(self, request: bytearray, name: _Words, absent: int = 0) -> bool:
        """One request; False where the kernel answers with the errno ``absent``."""
        (given,) = self._acknowledged([request], name)
        if given.errno == 0:
            return True
        if given.errno == absent:
            return False
        raise KernelError(given.errno, name(), given.text)

    def _one(self, request: bytearray, name: _Words, read: Callable[[Message], _Read]) -> _Read:
        """A request that is answered by one message, or refused."""
        sequence = _sequence_of(request)
        self._send([request], name)
        for message in self._answers([sequence], name):
            if message.type != Control.ERROR:
                return read(message)
            given = answer(message)
            raise KernelError(given.errno or errno.EBADMSG, name(), given.text)
        raise KernelError(errno.EBADMSG, name())

    def _dump(
        self, request: bytearray, name: _Words, read: Callable[[Message], _Read]
    ) -> list[_Read]:
        """A request that is answered by many messages and NLMSG_DONE."""
        sequence = _sequence_of(request)
        self._send([request], name)
        found: list[_Read] = []
        for message in self._answers([sequence], name):
            if message.type not in (Control.DONE, Control.ERROR):
                found.append(read(message))
                continue
            given = answer(message)
            if given.errno:
                raise KernelError(given.errno, name(), given.text)
            break
        return found


def _sequence_of(request: bytearray) -> int:
    return int.from_bytes(request[8:12], sys.byteorder)


def _open(name: str) -> socket.socket:
    try:
        made = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_XFRM
        )
    except OSError as error:
        raise KernelError(error.errno or 0, f"opening {name} of NETLINK_XFRM") from error
    made.bind((0, 0))
    return made


def _configure(requests: socket.socket, events: socket.socket, event_buffer: int) -> None:
    requests.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
    requests.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
    events.setblocking(False)
    events.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, event_buffer)
    # Without it an acquire that is lost here leaves its larval SA where another listens,
    # and the flow is stuck until that lapses.
    events.setsockopt(_SOL_NETLINK, _BROADCAST_ERROR, 1)
    _attach_filter(events)
    for group in Group:
        events.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)


def _attach_filter(events: socket.socket) -> None:
    """Have the kernel keep what nobody here reads: every new SA is told, with its keys.

    A classic BPF program over the type in the header, which it loads as big-endian.
    """
    types = [int.from_bytes(struct.pack("=H", kind), "big") for kind in answers.EVENTS]
    jumps = [(_JEQ, len(types) - number, 0, kind) for number, kind in enumerate(types)]
    program = [(_LDH, 0, 0, _TYPE_OFFSET), *jumps, (_RET, 0, 0, 0), (_RET, 0, 0, _DATAGRAM)]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    held = ctypes.create_string_buffer(code, len(code))
    pointer = struct.pack("@HP", len(program), ctypes.addressof(held))
    events.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)


def _read_events(octets: memoryview) -> list[KernelEvent]:
    found: list[KernelEvent] = []
    try:
        for message in messages(octets):
            event = answers.read_event(message)
            if event is not None:
                found.append(event)
    except MalformedMessage:
        found.append(Overrun())  # whatever it said is lost
    return found
