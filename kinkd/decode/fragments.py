"""IP fragments put together again (RFC 791 §3.2, RFC 8200 §4.5), within bounds.

A capture can come from anyone: what is held at once is limited in every direction, and a datagram
whose fragments overlap is refused as a whole, for IPv4 as RFC 5722 has it for IPv6, since its
receiver may have read other octets than we would.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Hashable
from dataclasses import dataclass, field

from kinkd.errors import PeerError

LIFETIME = 60_000_000_000
"""Nanoseconds until the rest of a datagram is no longer waited for (RFC 8200 §4.5)."""
MAX_DATAGRAMS = 64
"""Incomplete datagrams held at once; the oldest gives way."""
MAX_PIECES = 256
"""Fragments of one datagram: enough for 64 KiB in IPv4's least MTU of practice, 576 octets."""
MAX_OCTETS = 0xFFFF
"""Octets of one datagram: what the length fields of IP can say."""

_UNIT = 8  # octets; fragments begin at multiples of it


class RefusedError(PeerError):
    """A fragment, and with it its datagram, cannot be put together."""

    def __init__(self, detail: str) -> None:
        super().__init__("bad-fragment", detail)


@dataclass(slots=True)
class _Partial:
    """What has come of one datagram, in the order of the offsets."""

    begun: int
    protocol: int = 0
    offsets: list[int] = field(default_factory=list)
    pieces: list[bytes] = field(default_factory=list, repr=False)
    octets: int = 0
    total: int | None = None
    refused: str = ""

    def add(self, offset: int, more: bool, octets: bytes) -> None:
        """Take a fragment in; an exact copy of one that is there changes nothing."""
        ends = offset + len(octets)
        at = bisect(self.offsets, offset)
        if at and self.offsets[at - 1] == offset and self.pieces[at - 1] == octets:
            if more == (self.total != ends):
                return
            raise RefusedError("two fragments disagree on where the datagram ends")
        if more and (not octets or len(octets) % _UNIT):
            raise RefusedError("a fragment before the last is no multiple of 8 octets")
        if ends > MAX_OCTETS:
            raise RefusedError(f"a fragment ends behind octet {MAX_OCTETS}")
        if at and self.offsets[at - 1] + len(self.pieces[at - 1]) > offset:
            raise RefusedError("fragments overlap")
        if at < len(self.offsets) and self.offsets[at] < ends:
            raise RefusedError("fragments overlap")
        if len(self.offsets) == MAX_PIECES:
            raise RefusedError(f"more than {MAX_PIECES} fragments")
        self._settle_end(ends, more)
        self.offsets.insert(at, offset)
        self.pieces.insert(at, octets)
        self.octets += len(octets)

    def _settle_end(self, ends: int, more: bool) -> None:
        furthest = self.offsets[-1] + len(self.pieces[-1]) if self.offsets else 0
        if not more:
            if self.total is not None or furthest > ends:
                raise RefusedError("two fragments disagree on where the datagram ends")
            self.total = ends
        elif self.total is not None and ends > self.total:
            raise RefusedError("a fragment lies behind the last one")

    def refuse(self, why: str) -> None:
        """Let go of what has come; the datagram stays refused (RFC 5722 §4)."""
        self.refused = why
        self.offsets.clear()
        self.pieces.clear()


class Reassembler:
    """The incomplete datagrams of one capture."""

    def __init__(self) -> None:
        self._partial: dict[Hashable, _Partial] = {}

    def add(
        self, time: int, key: Hashable, protocol: int, offset: int, more: bool, octets: bytes
    ) -> tuple[int, bytes] | None:
        """Take in a fragment.

        Args:
            time: POSIX nanoseconds.
            key: what the fragments of one datagram have in common.
            protocol: of what is carried; the first fragment's counts (RFC 8200 §4.5).
            offset: of ``octets`` in the datagram.
            more: the bit that says so.
            octets: the part of the datagram.

        Returns:
            The protocol and the octets of the datagram that this fragment completes.

        Raises:
            RefusedError: the datagram cannot be put together, or was refused before.
        """
        partial = self._find(time, key)
        if partial.refused:
            raise RefusedError(partial.refused)
        try:
            partial.add(offset, more, octets)
        except RefusedError as error:
            partial.refuse(error.detail)
            raise
        if offset == 0:
            partial.protocol = protocol
        if partial.octets != partial.total:
            return None
        del self._partial[key]
        return partial.protocol, b"".join(partial.pieces)

    def _find(self, time: int, key: Hashable) -> _Partial:
        found = self._partial.get(key)
        if found is not None and abs(time - found.begun) <= LIFETIME:
            return found
        self._partial.pop(key, None)  # an identification used again goes to the end of the queue
        if len(self._partial) == MAX_DATAGRAMS:
            del self._partial[next(iter(self._partial))]
        self._partial[key] = _Partial(time)
        return self._partial[key]
