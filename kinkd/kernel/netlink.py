"""Netlink framing: headers, attributes, acknowledgements. Knows nothing of XFRM."""

from __future__ import annotations

import enum
import errno
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kinkd.errors import KernelError, LocalError

Octets = bytes | bytearray | memoryview


class MalformedMessage(KernelError):
    """A message from the kernel whose octets cannot be read."""

    def __init__(self, detail: str) -> None:
        super().__init__(errno.EBADMSG, "reading a netlink message", detail)


class LayoutError(LocalError):
    """A request that its table does not allow: it is never sent."""


class Control(enum.IntEnum):
    """Message types that every netlink family has (NLMSG_*)."""

    NOOP = 1
    ERROR = 2
    DONE = 3
    OVERRUN = 4


class Flag(enum.IntEnum):
    """Header flags (NLM_F_*)."""

    REQUEST = 0x1
    ACK = 0x4
    DUMP = 0x300
    ACK_TLVS = 0x200  # of an answer
    CAPPED = 0x100  # of an answer: the request is quoted by its header only


def sized(name: str, layout: str, octets: int) -> struct.Struct:
    """A packed struct in host byte order that has the size the kernel's header gives it.

    Raises:
        ImportError: it has another; nothing built on it may run.
    """
    made = struct.Struct("=" + layout)
    if made.size != octets:
        raise ImportError(f"struct {name} packs to {made.size} octets, the kernel has {octets}")
    return made


HEADER = sized("nlmsghdr", "IHHII", 16)  # length, type, flags, sequence, port id
ATTRIBUTE = sized("nlattr", "HH", 4)  # length without padding, type
_ERROR = sized("errno", "i", 4)
_ATTRIBUTE_TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_ATTRIBUTE_TEXT = 1  # NLMSGERR_ATTR_MSG


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message; ``payload`` is a view of the buffer it came in."""

    type: int
    flags: int
    sequence: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class Answer:
    """An acknowledgement: ``errno`` 0 is success, ``text`` the extended ACK's words."""

    errno: int
    text: str = ""


def encode(
    kind: int,
    flags: int,
    sequence: int,
    body: Octets,
    attributes: Sequence[tuple[int, Sequence[Octets]]] = (),
) -> bytearray:
    """One message. It is allocated once: attribute octets (keys) exist in no other copy."""
    size = HEADER.size + len(body)
    for _, parts in attributes:
        size += -(-(ATTRIBUTE.size + sum(map(len, parts))) // 4) * 4
    message = bytearray(size)
    HEADER.pack_into(message, 0, size, kind, flags, sequence, 0)
    position = HEADER.size
    message[position : position + len(body)] = body
    position += len(body)
    for attribute, parts in attributes:
        start = position
        position += ATTRIBUTE.size
        for part in parts:
            message[position : position + len(part)] = part
            position += len(part)
        ATTRIBUTE.pack_into(message, start, position - start, attribute)
        position += -position % 4
    return message


def messages(datagram: Octets) -> Iterator[Message]:
    """The messages of one datagram, in order.

    Raises:
        MalformedMessage: a length that does not fit.
    """
    view = memoryview(datagram)
    while view:
        if len(view) < HEADER.size:
            raise MalformedMessage(f"{len(view)} octets where a header was expected")
        length, kind, flags, sequence, _ = HEADER.unpack_from(view)
        if not HEADER.size <= length <= len(view):
            raise MalformedMessage(f"message length {length} of {len(view)} octets")
        yield Message(kind, flags, sequence, view[HEADER.size : length])
        view = view[-(-length // 4) * 4 :]


def attributes(view: memoryview) -> dict[int, memoryview]:
    """The attributes that follow a message's fixed part; of a repeated one the last.

    Raises:
        MalformedMessage: a length that does not fit.
    """
    found: dict[int, memoryview] = {}
    while view:
        if len(view) < ATTRIBUTE.size:
            raise MalformedMessage(f"{len(view)} octets where an attribute was expected")
        length, kind = ATTRIBUTE.unpack_from(view)
        if not ATTRIBUTE.size <= length <= len(view):
            raise MalformedMessage(f"attribute length {length} of {len(view)} octets")
        found[kind & _ATTRIBUTE_TYPE] = view[ATTRIBUTE.size : length]
        view = view[-(-length // 4) * 4 :]
    return found


def answer(message: Message) -> Answer:
    """Read an NLMSG_ERROR or NLMSG_DONE; both begin with a negative errno.

    Raises:
        MalformedMessage: it is too short, or holds a positive errno.
    """
    payload = message.payload
    if message.type == Control.DONE and not payload:
        return Answer(0)
    if len(payload) < _ERROR.size:
        raise MalformedMessage("an acknowledgement without an errno")
    code = int(_ERROR.unpack_from(payload)[0])
    if not -4095 <= code <= 0:  # MAX_ERRNO of the kernel
        raise MalformedMessage(f"errno {-code}")
    if not message.flags & Flag.ACK_TLVS:
        return Answer(-code)
    return Answer(-code, _extended_text(message))


def _extended_text(message: Message) -> str:
    """The words of an extended ACK, which follow the quoted request."""
    start = _ERROR.size
    if message.type == Control.ERROR:
        quoted = message.payload[start:]
        if len(quoted) < HEADER.size:
            raise MalformedMessage("an acknowledgement that quotes no request")
        capped = message.flags & Flag.CAPPED or not _ERROR.unpack_from(message.payload)[0]
        length = HEADER.size if capped else int(HEADER.unpack_from(quoted)[0])
        if not HEADER.size <= length <= len(quoted):
            raise MalformedMessage(f"an acknowledgement that quotes {length} octets")
        start += -(-length // 4) * 4
    text = attributes(message.payload[start:]).get(_ATTRIBUTE_TEXT, memoryview(b""))
    return bytes(text).split(b"\0", 1)[0].decode("utf-8", "replace")
