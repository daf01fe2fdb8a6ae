"""DER (X.690 §10) for the few ASN.1 types the Kerberos messages of KINK are made of.

Strict: definite lengths in their shortest form, integers in theirs, tags of one octet, nothing
left over. Nothing recurses over what a peer sent: a reader goes exactly as deep as its caller
asks it to, and what is skipped is not looked into.
"""

from __future__ import annotations

import calendar
import functools
import time
from datetime import UTC, datetime
from typing import Final, NoReturn

from kinkd.errors import PeerError

MAX_OCTETS: Final = 0xFFFF  # no message is larger than the datagram that carried it

INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
GENERALIZED_TIME: Final = 0x18
GENERAL_STRING: Final = 0x1B
SEQUENCE: Final = 0x30
_APPLICATION: Final = 0x60  # constructed
_CONTEXT: Final = 0xA0  # constructed

_TIME_OCTETS: Final = 15  # YYYYMMDDHHMMSSZ, RFC 4120 §5.2.3
_INT32: Final = range(-(1 << 31), 1 << 31)


def malformed(detail: str) -> NoReturn:
    """Raise the one error for Kerberos octets that cannot be read."""
    raise PeerError("malformed-kerberos", detail)


class Reader:
    """The values between two offsets of some octets, read from left to right.

    Every method raises PeerError("malformed-kerberos") on what it does not expect.
    """

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        self._data = data
        self._at = start
        if end is None:
            end = len(data)
            if end > MAX_OCTETS:
                malformed(f"{end} octets of DER")
        self._end = end

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._at < self._end

    def rest(self) -> bytes:
        """All that is left, as it stands."""
        octets = self._data[self._at : self._end]
        self._at = self._end
        return octets

    def finish(self) -> None:
        """Require that nothing is left."""
        if self._at != self._end:
            malformed(f"{self._end - self._at} octets follow at offset {self._at}")

    def enter(self, tag: int) -> Reader:
        """The contents of the next value, which must have ``tag``."""
        start, end = self._pass(tag)
        return Reader(self._data, start, end)

    def application(self, number: int) -> Reader:
        """The fields of ``[APPLICATION number] SEQUENCE``, all that the octets hold."""
        outer = self.enter(_APPLICATION | number)
        self.finish()
        return outer.sequence()

    def sequence(self) -> Reader:
        """The fields of a SEQUENCE that fills this reader."""
        fields = self.enter(SEQUENCE)
        self.finish()
        return fields

    def field(self, number: int) -> Reader:
        """The value of the next field, which must be ``[number]``."""
        return self.enter(_CONTEXT | number)

    def optional(self, number: int) -> Reader | None:
        """The value of the next field where it is ``[number]``."""
        if self._at < self._end and self._data[self._at] == _CONTEXT | number:
            return self.enter(_CONTEXT | number)
        return None

    def skip_to(self, number: int) -> None:
        """Pass over the fields before ``[number]``, unread."""
        while self and _CONTEXT <= self._data[self._at] < _CONTEXT | number:
            self._at = self._extent()[1]

    def extensions(self, last: int) -> None:
        """Pass over fields numbered above ``last``, in order: a later specification's."""
        while self:
            number = self._data[self._at] - _CONTEXT
            if not last < number < 31:
                malformed(f"tag {self._data[self._at]:#04x} at offset {self._at}")
            last = number
            self._at = self._extent()[1]

    def integer(self, allowed: range = _INT32) -> int:
        """An INTEGER of ``allowed`` that fills this reader."""
        octets = self._only(INTEGER)
        if len(octets) == 1 and octets[0] < 0x80 and octets[0] in allowed:  # nearly all are
            return octets[0]
        if not octets or len(octets) > 5:
            malformed(f"an INTEGER of {len(octets)} octets")
        if len(octets) > 1 and octets[0] in (0, 0xFF) and octets[0] >> 7 == octets[1] >> 7:
            malformed("an INTEGER that is not in its shortest form")
        value = int.from_bytes(octets, signed=True)
        if value not in allowed:
            malformed(f"INTEGER {value} is out of range")
        return value

    def uint32(self) -> int:
        """A UInt32. RFC 4120 §5.2.4: some write the upper half as negative numbers."""
        return self.integer(range(-(1 << 31), 1 << 32)) & 0xFFFFFFFF

    def microseconds(self) -> int:
        """Microseconds (RFC 4120 §5.2.4)."""
        return self.integer(range(1_000_000))

    def octets(self) -> bytes:
        """An OCTET STRING that fills this reader."""
        return self._only(OCTET_STRING)

    def flags(self) -> int:
        """KerberosFlags (RFC 4120 §5.2.8): the first 32 bits, bit 0 the most significant."""
        octets = self._only(BIT_STRING)
        if len(octets) < 5 or octets[0] > 7:
            malformed(f"KerberosFlags of {len(octets)} octets")
        if octets[-1] & (1 << octets[0]) - 1:
            malformed("KerberosFlags whose unused bits are not zero")
        return int.from_bytes(octets[1:5])

    def string(self) -> str:
        """A KerberosString that names something and fills this reader."""
        text = self.next_string()
        self.finish()
        return text

    def next_string(self) -> str:
        """The next KerberosString (RFC 4120 §5.2.1), a name: no control characters."""
        try:
            start, end = self._pass(GENERAL_STRING)
            text = self._data[start:end].decode()
        except UnicodeDecodeError:
            malformed("a name that is not UTF-8")
        if not text or not text.isprintable():
            malformed("a name that is empty or holds control characters")
        return text

    def text(self) -> str:
        """A KerberosString meant for people, whatever its octets; control characters escaped."""
        text = self._only(GENERAL_STRING).decode(errors="backslashreplace")
        return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)

    def time(self) -> int:
        """A KerberosTime (RFC 4120 §5.2.3) as POSIX seconds."""
        return _posix(self._only(GENERALIZED_TIME))

    def _only(self, tag: int) -> bytes:
        """The octets of the one primitive value this reader holds."""
        start, end = self._pass(tag)
        self.finish()
        return self._data[start:end]

    def _pass(self, tag: int) -> tuple[int, int]:
        """Go past the next value, which must have ``tag``; where its contents start and end."""
        data, at = self._data, self._at
        start = at + 2
        if start <= self._end and data[at] == tag and (length := data[at + 1]) < 0x80:
            end = start + length  # the short form, which nearly all have
            if end <= self._end:
                self._at = end
                return start, end
        if at >= self._end or data[at] != tag:
            found = f"{data[at]:#04x}" if self else "the end"
            malformed(f"tag {tag:#04x} expected at offset {at}, found {found}")
        extent = self._extent()
        self._at = extent[1]
        return extent

    def _extent(self) -> tuple[int, int]:
        """Where the contents of the value at hand start and end."""
        data, start = self._data, self._at + 2
        if start > self._end:
            malformed(f"a value is cut off at offset {self._at}")
        length = data[start - 1]
        if length >= 0x80:
            size = length - 0x80
            if not 1 <= size <= 2 or start + size > self._end:
                malformed(f"length octet {length:#04x} at offset {start - 1}")
            length = int.from_bytes(data[start : start + size])
            if length < 0x80 or (size == 2 and length < 0x100):
                malformed(f"a length not in its shortest form at offset {start - 1}")
            start += size
        end = start + length
        if end > self._end:
            malformed(f"a value of {length} octets is cut off at offset {self._at}")
        return start, end


@functools.lru_cache(maxsize=128)  # a ticket's times come with each of its AP-REQs
def _posix(octets: bytes) -> int:
    digits = octets[:-1]
    if len(octets) != _TIME_OCTETS or octets[-1:] != b"Z" or not digits.isdigit():
        malformed("a KerberosTime that is not YYYYMMDDHHMMSSZ")
    month, day, hour, minute, second = (int(digits[at : at + 2]) for at in range(4, 14, 2))
    try:
        moment = datetime(int(digits[:4]), month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        malformed("a KerberosTime that is no time")
    return calendar.timegm(moment.timetuple())


def value(tag: int, *contents: bytes) -> bytes:
    """One value: tag, shortest length, contents end to end."""
    body = b"".join(contents)
    length = len(body)
    if length < 0x80:
        return bytes((tag, length)) + body
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets + body


def sequence(*fields: bytes) -> bytes:
    """SEQUENCE, or SEQUENCE OF."""
    return value(SEQUENCE, *fields)


def application(number: int, *fields: bytes) -> bytes:
    """``[APPLICATION number] SEQUENCE``."""
    return value(_APPLICATION | number, sequence(*fields))


def field(number: int, content: bytes) -> bytes:
    """An explicitly tagged field ``[number]``."""
    return value(_CONTEXT | number, content)


def integer(number: int) -> bytes:
    """INTEGER in its shortest form."""
    bits = (number if number >= 0 else ~number).bit_length()
    return value(INTEGER, number.to_bytes(bits // 8 + 1, signed=True))


def octets(content: bytes) -> bytes:
    """OCTET STRING."""
    return value(OCTET_STRING, content)


def flags(bits: int) -> bytes:
    """KerberosFlags of 32 bits (RFC 4120 §5.2.8)."""
    return value(BIT_STRING, b"\0", bits.to_bytes(4))


def string(text: str) -> bytes:
    """KerberosString."""
    return value(GENERAL_STRING, text.encode())


def kerberos_time(seconds: int) -> bytes:
    """KerberosTime of POSIX seconds."""
    return value(GENERALIZED_TIME, time.strftime("%Y%m%d%H%M%SZ", time.gmtime(seconds)).encode())
