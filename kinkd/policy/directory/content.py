"""A replica of the directory's content (RFC 4533), as far as a search covers it. No I/O.

What comes is staged beside what is complete. A refresh is complete when the server says so; only
then are entries deleted, and only then does its cookie hold: a session that ends before leaves
nothing behind. ``commit`` makes what is staged the content.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from kinkd.document import MAXIMUM_OCTETS
from kinkd.errors import LocalError

MAXIMUM_ENTRIES: Final = 200_000


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the directory. ``attributes``: by name, in lower case, without options."""

    uuid: str
    dn: str
    attributes: Mapping[str, tuple[bytes, ...]]

    @property
    def octets(self) -> int:
        """What it takes, roughly."""
        values = (len(value) for found in self.attributes.values() for value in found)
        return len(self.dn) + sum(values)


class Content:
    """Complete content and the cookie that belongs to it, and what a session has staged.

    ``complete``: a refresh has ended, ever. ``refreshing``: one has begun and not ended.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.cookie: str | None = None
        self.complete = False
        self.refreshing = False
        self._octets = 0
        self._whole = True
        self._reset()

    def _reset(self) -> None:
        self.staged: dict[str, Entry | None] = {}  # None: deleted
        self._staged_cookie: str | None = None
        self._more_entries = self._more_octets = 0  # with what is staged
        self._present: set[str] = set()

    @property
    def has_news(self) -> bool:
        """Whether a commit would change anything, be it the cookie alone."""
        return bool(self.staged) or self._staged_cookie is not None

    def begin(self) -> None:
        """A session's search begins; what another has staged is forgotten."""
        self._reset()
        self.refreshing = True
        self._whole = self.cookie is None

    def forget_cookie(self) -> None:
        """The next session reads everything anew; until it has, the content stays."""
        self.cookie = None

    def put(self, entry: Entry) -> None:
        """An entry that was added, modified or renamed.

        Raises:
            LocalError: more than ``MAXIMUM_ENTRIES``, or larger than ``MAXIMUM_OCTETS`` in all.
        """
        self._stage(entry.uuid, entry)
        if (
            len(self.entries) + self._more_entries > MAXIMUM_ENTRIES
            or self._octets + self._more_octets > MAXIMUM_OCTETS
        ):
            raise LocalError(
                f"the directory gives more than {MAXIMUM_ENTRIES} entries or"
                f" {MAXIMUM_OCTETS >> 20} MiB: see that base, hosts and groups are not too wide"
            )

    def delete(self, uuids: Iterable[str]) -> None:
        """Entries that the server says are gone; unknown ones are none of ours."""
        for uuid in uuids:
            if uuid in self.entries or uuid in self.staged:
                self._stage(uuid, None)

    def _stage(self, uuid: str, entry: Entry | None) -> None:
        before = self.staged[uuid] if uuid in self.staged else self.entries.get(uuid)
        for each, sign in ((entry, 1), (before, -1)):
            if each is not None:
                self._more_entries += sign
                self._more_octets += sign * each.octets
        if entry is None and uuid not in self.entries:
            del self.staged[uuid]  # it came and went; nobody is to know of it
        else:
            self.staged[uuid] = entry

    def present(self, uuids: Iterable[str]) -> None:
        """Entries that are unchanged (RFC 4533 §3.3.1); unknown ones are none of ours."""
        if self.refreshing:
            self._present.update(uuid for uuid in uuids if uuid in self.entries)

    def end_present(self) -> None:
        """The present phase is over: what it did not name is gone. Staged, as all is."""
        if self.refreshing:
            self.delete([uuid for uuid in self.entries if self._is_absent(uuid)])
            self._present.clear()

    def _is_absent(self, uuid: str) -> bool:
        return uuid not in self._present and uuid not in self.staged

    def set_cookie(self, cookie: str) -> None:
        """The server's name for what has come so far."""
        self._staged_cookie = cookie

    def refresh_done(self) -> None:
        """The refresh is complete, and may be committed."""
        if self._whole:  # RFC 4533 §3.3: without a cookie, what came is all there is
            self.end_present()
        self._present.clear()
        self.refreshing = False

    def commit(self) -> dict[str, Entry | None]:
        """Make what is staged the content; gives what has changed, None for what is gone."""
        if self.refreshing:
            raise AssertionError("a refresh that is not complete cannot be committed")
        changes = self.staged
        for uuid, entry in changes.items():
            self.entries.pop(uuid, None)
            if entry is not None:
                self.entries[uuid] = entry
        self._octets += self._more_octets
        self.cookie = self._staged_cookie or self.cookie
        self.complete = True
        self._reset()
        return changes
