"""Where the realm's document comes from: a file here, the realm's directory in ``directory``."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple, Protocol

from kinkd.document import MAXIMUM_OCTETS, Document
from kinkd.errors import DocumentError
from kinkd.policy import reader
from kinkd.policy.realm import RealmPolicy

_LINKS: Final = 40  # in a row, as path_resolution(7) has it


class Loaded(NamedTuple):
    """A policy, and the text it was read from."""

    policy: RealmPolicy
    text: str


class Source(Protocol):
    """Who has the policy. ``name`` says it in words, for messages and status."""

    name: str

    def load(self) -> Loaded:
        """The policy as it is there now. It may take long: called in a worker thread.

        Raises:
            LocalError: it cannot be had, is not to be trusted, or cannot be meant.
        """

    def start(self, changed: Callable[[], None]) -> None:
        """From now on call ``changed``, from any thread, when ``load`` would do otherwise."""

    def stop(self) -> None:
        """Not any more."""

    def state(self) -> dict[str, object]:
        """What people want to know of it: plain values."""


class FileSource:
    """The policy in a file. Who owns it sees to it that its changes are noticed."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._memory = reader.Memory()

    def load(self) -> Loaded:
        """Read the file (see ``load_file``)."""
        return load(self.name, self._memory)

    def start(self, changed: Callable[[], None]) -> None:
        """Nothing comes by itself from a file."""

    def stop(self) -> None:
        """Nothing was started."""

    def state(self) -> dict[str, object]:
        """A file is there, or ``load`` says why not."""
        return {"kind": "file"}


def read_octets(path: str, maximum: int = MAXIMUM_OCTETS) -> bytes:
    """Read a file that nobody but root or this process's user can have written.

    Who writes it decides what leaves this host in clear. The check is of the file that was
    opened, so it cannot be exchanged in between; and of the directories of it and of symbolic
    links to it, in which others could put another in its place.

    Raises:
        DocumentError: it cannot be read, others can write or replace it, or it is larger than
            ``maximum``.
    """
    try:
        # Not to wait for a writer where the path is a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _check_trust(path, os.fstat(descriptor))
            for name in _names(path):
                _check_directory(path, name)
            with open(descriptor, "rb", closefd=False) as file:
                octets = file.read(maximum + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DocumentError(path, None, f"cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL in the path
        raise DocumentError(repr(path), None, "is not the path of a file") from None
    if len(octets) > maximum:
        raise DocumentError(path, None, f"larger than {maximum >> 20} MiB")
    return octets


def read_trusted(path: str) -> Document:
    """Read a document that is to be trusted (see ``read_octets``).

    Raises:
        DocumentError: it cannot be read, others can write it, or it is no TOML.
    """
    return Document.parse(path, read_octets(path))


def load(path: str, memory: reader.Memory | None = None) -> Loaded:
    """The policy in a file, and its text; ``memory`` of what was there before makes it fast.

    Raises:
        DocumentError: it cannot be read, is not to be trusted, or cannot be meant.
    """
    document = read_trusted(path)
    return Loaded(reader.read(document, memory), document.text)


def load_file(path: str) -> RealmPolicy:
    """The policy in a file.

    Raises:
        DocumentError: it cannot be read, is not to be trusted, or cannot be meant.
    """
    return load(path).policy


def _check_trust(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise DocumentError(path, None, "not a regular file")
    me = os.geteuid()
    if status.st_uid not in (0, me):
        raise DocumentError(
            path,
            None,
            f"owned by uid {status.st_uid}, who could change it; make root (or uid {me}) its owner",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise DocumentError(
            path, None, f"others can write it (mode {stat.S_IMODE(status.st_mode):04o}); chmod go-w"
        )


def _names(path: str) -> Iterator[str]:
    """The path of a file, and where it is a symbolic link what that leads to, down to the file."""
    for _ in range(_LINKS):
        directory = os.path.realpath(os.path.dirname(path))
        path = os.path.join(directory, os.path.basename(path))
        yield path
        if not os.path.islink(path):
            return
        path = os.path.join(directory, os.readlink(path))


def _check_directory(path: str, name: str) -> None:
    """Whether others could put something else at ``name``, which ``path`` leads to."""
    directory = os.path.dirname(name)
    status = os.stat(directory)
    trusted = (0, os.geteuid())
    if status.st_uid not in trusted:
        raise DocumentError(
            path, None, f"in {directory}, whose owner, uid {status.st_uid}, could replace it"
        )
    if not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    if status.st_mode & stat.S_ISVTX and os.lstat(name).st_uid in trusted:
        return
    if os.statvfs(directory).f_flag & os.ST_RDONLY:  # Kubernetes mounts volumes of mode 0777 so
        return
    raise DocumentError(
        path,
        None,
        f"in {directory}, where others can replace it (mode {stat.S_IMODE(status.st_mode):04o});"
        f" chmod go-w {directory}",
    )
