"""Where the realm's document comes from: so far, a file."""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from kinkd.document import MAXIMUM_OCTETS, Document
from kinkd.errors import DocumentError
from kinkd.policy import model


class Loaded(NamedTuple):
    """A policy, and the text it was read from."""

    policy: model.RealmPolicy
    text: str


def read_octets(path: str, maximum: int = MAXIMUM_OCTETS) -> bytes:
    """Read a file that nobody but root or this process's user can have written.

    Who writes it decides what leaves this host in clear. The check is of the file that was
    opened, so it cannot be exchanged in between.

    Raises:
        DocumentError: it cannot be read, others can write it, or it is larger than ``maximum``.
    """
    try:
        # Not to wait for a writer where the path is a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _check_trust(path, status)
            octets = file.read(maximum + 1)
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


def load(path: str) -> Loaded:
    """The policy in a file, and its text.

    Raises:
        DocumentError: it cannot be read, is not to be trusted, or cannot be meant.
    """
    octets = read_octets(path)
    policy = model.read(Document.parse(path, octets))
    return Loaded(policy, octets.decode("utf-8"))  # as the document was: it is no TOML else


def load_file(path: str) -> model.RealmPolicy:
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
