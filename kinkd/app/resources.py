"""What a process of kinkd has to take hold of before it touches anything."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from kinkd.errors import KernelError, LocalError
from kinkd.kernel.socket import XfrmSocket


class StateInUse(LocalError):
    """Another process of kinkd has the state directory."""


def lock_state(directory: Path) -> int:
    """Take the state directory for this process alone; the lock ends with the descriptor.

    Raises:
        StateInUse: another kinkd has it.
        LocalError: it is not there, or not writable.
    """
    path = directory / "lock"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LocalError(
            f"the state directory {directory} cannot be used: {error.strerror}; "
            "is it there and writable for this user?"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StateInUse(f"another kinkd uses the state directory {directory}") from None
    return descriptor


def open_kernel() -> XfrmSocket:
    """The kernel's SA and policy databases.

    Raises:
        LocalError: without CAP_NET_ADMIN.
        KernelError: a kernel without XFRM.
    """
    try:
        return XfrmSocket()
    except KernelError as error:
        if error.errno != errno.EPERM:
            raise
        raise LocalError(
            "the kernel's SAs and policies need CAP_NET_ADMIN: run kinkd by its systemd unit, "
            "or as root"
        ) from None
