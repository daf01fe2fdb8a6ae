"""A bounded reader: the only place where received octets are cut up."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Self

from kinkd.errors import KinkdError, Malformed

Fault = Callable[[str], KinkdError]


class Cursor:
    """Reads forward through ``octets`` and never past ``end``.

    Args:
        octets: what was received.
        fault: makes the error that a read past the end raises.
        start: offset of the first octet to read.
        end: offset behind the last octet to read; None: all of them.
    """

    __slots__ = ("_end", "_fault", "_octets", "_position")

    def __init__(
        self, octets: bytes, fault: Fault = Malformed, start: int = 0, end: int | None = None
    ) -> None:
        self._octets = octets
        self._fault = fault
        self._position = start
        self._end = len(octets) if end is None else end

    @property
    def remaining(self) -> int:
        """Octets not yet read."""
        return self._end - self._position

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """Read the fields of ``layout``."""
        return layout.unpack_from(self._octets, self._advance(layout.size))

    def take(self, count: int) -> bytes:
        """Read ``count`` octets."""
        start = self._advance(count)
        return self._octets[start : start + count]

    def peek(self) -> int:
        """The next octet, left unread."""
        start = self._advance(1)
        self._position = start
        return self._octets[start]

    def rest(self) -> bytes:
        """Read all that is left."""
        return self.take(self._end - self._position)

    def sub(self, count: int) -> Self:
        """Read ``count`` octets as a reader of their own."""
        start = self._advance(count)
        return type(self)(self._octets, self._fault, start, start + count)

    def align(self) -> None:
        """Skip to the next multiple of four octets; at the end there may be no padding left."""
        self._position = min(self._position + 3 & ~3, self._end)

    def finish(self, what: str) -> None:
        """Raise the fault unless everything was read."""
        if self._position != self._end:
            raise self._fault(f"{self._end - self._position} octets too many in {what}")

    def _advance(self, count: int) -> int:
        start = self._position
        # A payload length below the size of its own header arrives here as a negative count.
        if not 0 <= count <= self._end - start:
            raise self._fault(f"{count} octets wanted at offset {start}, the end is at {self._end}")
        self._position = start + count
        return start
