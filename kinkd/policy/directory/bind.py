"""The messages of an LDAP bind by SASL (RFC 4511 §4.2), and no others."""

from __future__ import annotations

import socket
import time
from typing import Final

from kinkd.errors import LocalError

_GREATEST: Final = 1 << 16  # octets of an answer; an AP-REP is a few hundred
_INTEGER, _OCTETS, _ENUMERATED, _SEQUENCE = 0x02, 0x04, 0x0A, 0x30
_BIND_REQUEST, _BIND_RESPONSE, _SASL, _SERVER_CREDENTIALS = 0x60, 0x61, 0xA3, 0x87
_SUCCESS, _IN_PROGRESS = 0, 14
_METHOD_NOT_SUPPORTED, _STRONGER_REQUIRED, _INAPPROPRIATE = 7, 8, 48


class Malformed(Exception):
    """What came is not what may come there."""


class Exchange:
    """A bind by GSSAPI, one token at a time.

    Args:
        stream: a connection on which nothing was said.
        name: the server in words.
        timeout: seconds for all of it: who sends an octet now and then is not waited for.
    """

    def __init__(self, stream: socket.socket, name: str, timeout: float) -> None:
        self._stream = stream
        self._end = time.monotonic() + timeout
        self._name = name
        self._message = 0

    def step(self, token: bytes) -> bytes:
        """Send a token, and give the server's.

        Raises:
            LocalError: the server refuses, has enough already, or makes no sense.
            OSError: the connection is lost, or times out.
        """
        code, answer = self._ask(token)
        if code != _IN_PROGRESS:
            raise LocalError(f"{self._name}: the bind ended before the server proved who it is")
        return answer

    def finish(self, token: bytes) -> None:
        """Send the last token. Raises as ``step`` does."""
        code, _ = self._ask(token)
        if code != _SUCCESS:
            raise LocalError(f"{self._name}: the bind does not end")

    def _ask(self, token: bytes) -> tuple[int, bytes]:
        self._message += 1
        self._stream.sendall(request(self._message, token))
        try:
            message, code, text, answer = read_response(self._receive())
        except Malformed as error:
            raise LocalError(f"{self._name}: no answer to a bind: {error}") from None
        if message != self._message:
            raise LocalError(f"{self._name}: the answer to another request")
        if code in (_METHOD_NOT_SUPPORTED, _STRONGER_REQUIRED, _INAPPROPRIATE):
            raise LocalError(f"{self._name}: the server does no GSSAPI that encrypts ({text})")
        if code not in (_SUCCESS, _IN_PROGRESS):
            raise LocalError(f"{self._name}: the server refuses the bind: {text or code}")
        return code, answer

    def _receive(self) -> bytes:
        """One message, and not an octet of what follows it."""
        head = self._exactly(2)
        while (length := announced(head)) is None:
            head += self._exactly(1)
        if length > _GREATEST:
            raise Malformed("a message of absurd length")
        return head + self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        octets = b""
        while len(octets) < count:
            if (left := self._end - time.monotonic()) <= 0:
                raise TimeoutError
            self._stream.settimeout(left)
            if not (found := self._stream.recv(count - len(octets))):
                raise ConnectionError("the server ended the connection")
            octets += found
        return octets


class Lengths:
    """Follows messages through a stream: libldap makes room for whatever length one has."""

    def __init__(self, greatest: int) -> None:
        self._greatest = greatest
        self._head = b""
        self._left = 0  # octets of the message that is under way

    def follow(self, octets: bytes) -> None:
        """The next octets of the stream.

        Raises:
            Malformed: a message begins that is longer than the greatest, or is none.
        """
        at = 0
        while at < len(octets):
            if self._left:
                step = min(self._left, len(octets) - at)
                self._left -= step
                at += step
                continue
            self._head += octets[at : at + 1]
            at += 1
            if (length := announced(self._head)) is not None:
                if length > self._greatest:
                    raise Malformed(f"the server sends a message of {length} octets")
                self._head, self._left = b"", length


def announced(head: bytes) -> int | None:
    """The length that follows these first octets of an element; None: they are not all.

    Raises:
        Malformed: it is indefinite, or of more than 4 octets (RFC 4511 §5.1).
    """
    if len(head) < 2:
        return None
    if not head[1] & 0x80:
        return head[1]
    more = head[1] & 0x7F
    if not 0 < more <= 4:
        raise Malformed("no length of LDAP")
    return int.from_bytes(head[2:], "big") if len(head) == 2 + more else None


def plain(text: str) -> str:
    """Words of a server as they may be shown on a terminal: on one line, and not too long."""
    line = " ".join(text.split())[:500]
    return "".join(char if char.isprintable() else "?" for char in line)


def request(message: int, token: bytes) -> bytes:
    """A BindRequest with a token of the mechanism GSSAPI."""
    credentials = _tlv(_SASL, _tlv(_OCTETS, b"GSSAPI") + _tlv(_OCTETS, token))
    version, name = _tlv(_INTEGER, b"\x03"), _tlv(_OCTETS, b"")
    operation = _tlv(_BIND_REQUEST, version + name + credentials)
    return _tlv(_SEQUENCE, _tlv(_INTEGER, message.to_bytes(1, "big")) + operation)


def read_response(octets: bytes) -> tuple[int, int, str, bytes]:
    """Message id, result code, diagnostic message and the server's token of a BindResponse.

    Raises:
        Malformed: it is none.
    """
    (tag, message), *beyond = _read(octets)
    if tag != _SEQUENCE or beyond:
        raise Malformed("no LDAP message")
    (first, number), (second, operation), *_ = *_read(message), (0, b""), (0, b"")
    if (first, second) != (_INTEGER, _BIND_RESPONSE):
        raise Malformed("no BindResponse")
    fields = _read(operation)
    if [tag for tag, _ in fields[:3]] != [_ENUMERATED, _OCTETS, _OCTETS]:
        raise Malformed("no LDAPResult in it")
    if len(fields[0][1]) > 4:
        raise Malformed("an absurd result code")
    text = plain(fields[2][1].decode("utf-8", "replace"))
    token = next((value for tag, value in fields[3:] if tag == _SERVER_CREDENTIALS), b"")
    return int.from_bytes(number, "big"), int.from_bytes(fields[0][1], "big"), text, token


def _tlv(tag: int, value: bytes) -> bytes:
    length = len(value)
    if length < 0x80:
        return bytes((tag, length)) + value
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + value


def _read(octets: bytes) -> list[tuple[int, bytes]]:
    """All elements of definite length, one after the other (X.690 §8.1)."""
    found, at = [], 0
    while at < len(octets):
        if at + 2 > len(octets) or octets[at] & 0x1F == 0x1F or octets[at + 1] == 0x80:
            raise Malformed("no BER of LDAP")
        size = octets[at + 1] & 0x7F if octets[at + 1] & 0x80 else 0
        start = at + 2 + size
        end = start + (int.from_bytes(octets[at + 2 : start], "big") if size else octets[at + 1])
        if size > 4 or end > len(octets):
            raise Malformed("an element longer than what it is in")
        found.append((octets[at], octets[start:end]))
        at = end
    if not found:
        raise Malformed("an empty element")
    return found
