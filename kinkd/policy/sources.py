"""Where the realm's document comes from: so far, a file."""

from __future__ import annotations

import os
import stat

from kinkd.document import MAXIMUM_OCTETS, Document
from kinkd.errors import DocumentError
from kinkd.policy import model


def read_trusted(path: str) -> Document:
    """Read a document that nobody but root or this process's user can have written.

    Who writes it decides what leaves this host in clear. The check is of the file that was
    opened, so it cannot be exchanged in between.

    Raises:
        DocumentError: it cannot be read, others can write it, or it is no TOML.
    """
    try:
        # Not to wait for a writer where the path is a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _check_trust(path, status)
            octets = file.read(MAXIMUM_OCTETS + 1)
    except OSError as error:
        raise DocumentError(path, None, f"cannot be read: {error.strerror}") from None
    except ValueError:  # a NUL in the path
        raise DocumentError(repr(path), None, "is not the path of a file") from None
    return Document.parse(path, octets)


def load_file(path: str) -> model.RealmPolicy:
    """The policy in a file.

    Raises:
        DocumentError: it cannot be read, is not to be trusted, or cannot be meant.
    """
    return model.read(read_trusted(path))


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
