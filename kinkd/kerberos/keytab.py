"""The reader of MIT keytab files, version 2 (0x0502), as libkrb5 and Heimdal write them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from kinkd.errors import LocalError
from kinkd.model import Principal, Secret

_VERSION: Final = b"\x05\x02"
_MAX_COMPONENTS: Final = 64


@dataclass(frozen=True, slots=True)
class KeytabEntry:
    """One key of a keytab; the etype may be one this package does not compute with."""

    principal: Principal
    kvno: int
    etype: int
    key: Secret = field(repr=False)


def read_keytab(octets: bytes) -> list[KeytabEntry]:
    """All entries of a keytab file in its order; holes of removed entries are passed over.

    Raises:
        LocalError: these octets are not a keytab of version 2, or one that is damaged.
    """
    if octets[:2] != _VERSION:
        raise LocalError("not a keytab of version 5.2; write it anew with ktutil or kadmin")
    entries: list[KeytabEntry] = []
    file = _Fields(octets[2:])
    while file.left:
        size = file.number(">i")
        if size == 0:  # what an interrupted writer leaves: the end
            break
        record = file.take(abs(size))
        if size > 0:
            entries.append(_entry(_Fields(record)))
    return entries


class _Fields:
    """Big-endian fields, read from left to right."""

    __slots__ = ("_at", "_octets")

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._octets) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise LocalError("the keytab is damaged: an entry is cut off")
        self._at += count
        return self._octets[self._at - count : self._at]

    def number(self, form: str) -> int:
        (number,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(number)

    def counted(self) -> bytes:
        return self.take(self.number(">H"))

    def text(self) -> str:
        try:
            return self.counted().decode()
        except UnicodeDecodeError:
            raise LocalError("the keytab is damaged: a name is not UTF-8") from None


def _entry(fields: _Fields) -> KeytabEntry:
    count = fields.number(">H")
    if not 1 <= count <= _MAX_COMPONENTS:
        raise LocalError(f"the keytab is damaged: a principal of {count} components")
    realm = fields.text()
    components = tuple(fields.text() for _ in range(count))
    fields.take(8)  # name type, time of writing
    kvno = fields.number(">B")
    etype = fields.number(">h")
    key = Secret(fields.counted())
    # A 32-bit kvno follows where the writer knew of it; zero there means that it did not.
    if fields.left >= 4:
        kvno = fields.number(">I") or kvno
    return KeytabEntry(Principal(components, realm), kvno, etype, key)
