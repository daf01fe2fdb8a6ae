"""Telling that a file was changed: by looking, once a second.

inotify(7) tells of directories and of inodes, and a path leads through several of both: a ConfigMap
of Kubernetes is a symbolic link to another in a directory that is exchanged. To look at what the
path leads to is right for all of it, on any file system, and costs one stat(2).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

INTERVAL_SECONDS: Final = 1.0


class State(NamedTuple):
    """What a path led to; all that changes when a file is written, replaced or touched."""

    device: int
    inode: int
    octets: int
    modified_ns: int
    changed_ns: int


def state_of(path: str) -> State | None:
    """What a path leads to, through symbolic links; None: nothing that can be looked at."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    return State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Handle(Protocol):
    """What is to be called later, and need not be."""

    def cancel(self) -> None:
        """Not to be called."""


CallLater = Callable[[float, Callable[[], None]], Handle]
"""``loop.call_later``: seconds, and what is to be called then."""


class Watch:
    """Tells of changes once they are over: when two looks in a row find the same, and it is new.

    Made before the file is first read: then what is written in between is told. Whoever reads the
    file when told has read the last of it, unless told again. A fault of ``tell`` is the loop's
    to report, and ends nothing. What a writer does not leave alone is told when it does.

    Args:
        path: of the file.
        call_later: of the event loop.
        tell: called after a change; the file may be absent then.
        interval: seconds between two looks.
        known: what the file was before it was read, where that was before this.
    """

    def __init__(
        self,
        path: str,
        call_later: CallLater,
        tell: Callable[[], None],
        interval: float = INTERVAL_SECONDS,
        known: State | None = None,
    ) -> None:
        self._path = path
        self._call_later = call_later
        self._tell = tell
        self._interval = interval
        self._seen = state_of(path)
        self._told = known or self._seen
        self._handle = call_later(interval, self._look)

    def stop(self) -> None:
        """Look no more."""
        self._handle.cancel()

    def _look(self) -> None:
        self._handle = self._call_later(self._interval, self._look)
        before, self._seen = self._seen, state_of(self._path)
        if self._seen == before and self._seen != self._told:
            self._told = self._seen
            self._tell()
